//! What an admitted VM is promised, on a machine whose memory is all in use: its RAM, and tags for as
//! many pages as its budget covers, wherever they are (S18).

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

mod common;

use common::{BASE, Board, MIB, Shape, World, range};
use proptest::prelude::*;
use stage2::addr::{Ipa, PAGE_SIZE};
use stage2::guest::{MemError, Policy};
use stage2::region::{Occupant, Occupied};

/// Blocks of tag storage of each VM's budget, and its RAM in pages; no budget: no MTE.
type Wish = (u64, u64);

fn boards() -> impl Strategy<Value = Board> {
    let blocks = proptest::sample::select(vec![0x1000, 0x2000, 0x3000, 0x8000, 1, 0x20000]);
    prop_oneof![
        3 => (blocks, 0..3_u64).prop_map(|(block, odd)| {
            Board::new(&[16 * MIB + odd * 5 * PAGE_SIZE], block)
        }),
        1 => Just(Board::with_regions(&[(6 * MIB, 0x1000), (8 * MIB, 0x8000)])),
        1 => Just(Board::with_regions(&[(26 * MIB, 0x43000), (4 * MIB, 0x1000)])),
        // Blocks that are not all ours, in chunks that are.
        2 => (0..64_u64, 1..40_u64).prop_map(|(first, count)| offline(first, count)),
    ]
}

fn shape((budget, pages): Wish) -> Shape {
    Shape {
        base: BASE,
        bytes: pages * PAGE_SIZE,
        mte: budget > 0,
        policy: Policy::Lazy,
        tag_budget: budget * PAGE_SIZE,
    }
}

/// Makes each VM as large as the machine admits, up to what is wished.
fn crowd(world: &mut World, wishes: &[Wish]) -> Vec<Wish> {
    let mut made = Vec::new();
    for &(budget, mut pages) in wishes {
        loop {
            let budget = budget.min(pages.div_ceil(32));
            match world.create_shape(made.len(), shape((budget, pages))) {
                Ok(()) => {
                    made.push((budget, pages));
                    break;
                }
                Err(MemError::TooMuch { .. } | MemError::TooMuchTaggable { .. }) => pages /= 2,
                Err(other) => panic!("{other}"),
            }
            if pages == 0 {
                break;
            }
        }
    }
    made
}

/// The pages below `count`, in an order that a seed gives.
fn shuffled(count: u64, seed: u64) -> Vec<u64> {
    let mut pages: Vec<u64> = (0..count).collect();
    let mut random = seed | 1;
    for at in (1..pages.len()).rev() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        pages.swap(at, (random % (at as u64 + 1)) as usize);
    }
    pages
}

/// Fills the machine, tags all that each budget covers, in any order, and reads everything back.
fn keep_promises(board: &Board, wishes: &[Wish], seed: u64, tagged_first: bool) {
    let mut world = World::new(board, Policy::Lazy);
    world.watch = false;
    let vms = crowd(&mut world, wishes);
    let at = |page: u64| Ipa::new(BASE + page * PAGE_SIZE);
    let orders: Vec<_> = vms
        .iter()
        .map(|&(_, pages)| shuffled(pages, seed))
        .collect();
    let most = vms.iter().map(|&(_, pages)| pages).max().unwrap_or(0) as usize;
    // All touch all their RAM, in turns.
    let touch = |world: &mut World| {
        for turn in 0..most {
            for (slot, order) in orders.iter().enumerate() {
                if let Some(&page) = order.get(turn) {
                    world.store(slot, at(page), page as u8).unwrap();
                }
            }
        }
    };
    if !tagged_first {
        touch(&mut world);
    }
    let tag = |world: &mut World, vms: &[Wish]| {
        for (slot, &(budget, pages)) in vms.iter().enumerate() {
            // Others than those that were touched first.
            for &page in shuffled(pages, !seed).iter().take(32 * budget as usize) {
                stg(world, slot, (at(page), 1 + page as u8 % 15), pages);
            }
        }
        touch(world);
        world.read_back();
        world.check();
    };
    tag(&mut world, &vms);
    check_reserved(&world, &vms);
    // A budget that is raised in time is as good as one that was given at the start.
    let raised = vms.iter().enumerate();
    let raised = raised.map(|(slot, &vm)| (raise(&mut world, slot, vm), vm.1));
    let raised: Vec<_> = raised.collect();
    world.check();
    tag(&mut world, &raised);
    check_reserved(&world, &raised);
}

/// Tags a page as EL2 lets a guest of `pages` pages do it: at its budget, what it holds of tags that are all 0 goes first.
/// There are such where the VM tagged so many pages that it gets tags for neighbours at once.
fn stg(world: &mut World, slot: usize, (ipa, tag): (Ipa, u8), pages: u64) {
    loop {
        match world.stg(slot, ipa, tag) {
            Err(MemError::OverBudget { .. }) if world.demote(slot, pages) > 0 => {}
            stored => return stored.unwrap(),
        }
    }
}

/// Raises the budget of a VM as far as the machine admits, at most to the double or by two blocks.
/// Returns what it is then.
fn raise(world: &mut World, slot: usize, (budget, pages): Wish) -> u64 {
    let most = (2 * budget).max(budget + 2).min(pages.div_ceil(32));
    let wanted = (budget + 1..=most).rev().filter(|_| budget > 0);
    let granted = wanted.into_iter().find(|wanted| {
        let raised = world.set_budget(slot, wanted * PAGE_SIZE);
        match raised {
            Ok(()) => true,
            Err(MemError::TooMuch { .. } | MemError::TooMuchTaggable { .. }) => false,
            Err(other) => panic!("{other}"),
        }
    });
    granted.unwrap_or(budget)
}

fn check_reserved(world: &World, vms: &[Wish]) {
    let blocks = world.memory.host().blocks();
    let sizes = blocks.regions().map(|region| region.block_bytes());
    let largest = sizes.max().unwrap();
    for (slot, &(budget, _)) in vms.iter().enumerate() {
        // All but one block are full; 3 in 67 frames of the odd chunks are nobody's.
        let most = budget * PAGE_SIZE * 67 / 64 + largest;
        assert!(world.guest(slot).account().reserved < most);
    }
}

/// A board of which `count` blocks from `first` on are offline.
fn offline(first: u64, count: u64) -> Board {
    let tags = range(BASE + 12 * MIB + first * PAGE_SIZE, count * PAGE_SIZE);
    Board::new(&[12 * MIB], 0x1000).occupy(Occupied {
        range: tags,
        by: Occupant::Firmware,
    })
}

#[test]
fn a_vm_whose_chunk_offline_blocks_cover_can_tag_all_that_its_budget_covers() {
    // The chunk that it gets is not known: try them all.
    for chunk in 0..3 {
        keep_promises(&offline(32 * chunk, 31), &[(12, 909)], 7, chunk % 2 == 0);
    }
    keep_promises(&offline(0, 96), &[(8, 700), (8, 700)], 7, false);
}

#[test]
fn a_vm_that_gets_tags_for_neighbours_can_tag_all_that_a_raised_budget_covers() {
    keep_promises(&Board::new(&[16 * MIB], 0x8000), &[(20, 1281)], 0, false);
    keep_promises(&Board::new(&[16 * MIB], 0x1000), &[(19, 1217)], 1, true);
}

#[test]
fn a_block_too_large_for_the_rest_of_a_budget_does_not_end_the_search() {
    let board = Board::with_regions(&[(26 * MIB, 0x43000), (4 * MIB, 0x1000)]);
    keep_promises(&board, &[(3, 693)], 1, false);
    keep_promises(&board, &[(20, 700)], 2, false);
}

#[test]
fn frames_of_a_chunks_tail_are_promised_to_nobody() {
    // One block covers a chunk of 4 pieces and 96 frames.
    let board = Board::new(&[18 * MIB], 0x43000);
    keep_promises(&board, &[(2, 100)], 3, true);
    // Much to simulate: a chunk that is full, and blocks of 4097 frames that cover 512 MiB and a tail.
    if cfg!(feature = "full") {
        let board = Board::new(&[35 * MIB], 0x43000);
        keep_promises(&board, &[(67, 2144)], 3, true);
        keep_promises(&Board::new(&[513 * MIB], 0x1001), &[(2, 70)], 4, false);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(feature = "full") { 400 } else { 2 },
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn each_vm_gets_all_its_ram_and_tags_for_all_that_its_budget_covers(
        board in boards(),
        wishes in proptest::collection::vec((0..24_u64, 1..2500_u64), 1..5),
        seed in any::<u64>(),
        tagged_first in any::<bool>(),
    ) {
        keep_promises(&board, &wishes, seed, tagged_first);
    }
}
