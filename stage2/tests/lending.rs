//! Tag storage as memory: lent, evicted, moved about and given back, on machines that are nearly
//! full, with random accesses from a seed.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

mod common;

use common::{BASE, Board, KIB, MIB, World, page, range};
use stage2::addr::PAGE_SIZE;
use stage2::block::BlockState;
use stage2::guest::{MemError, Policy};
use stage2::pool::BlockId;
use stage2::region::{Occupant, Occupied};

const STEPS: u64 = if cfg!(feature = "full") {
    12_000
} else {
    2_000
};

/// Numbers from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// A VM to be: RAM, MTE, policy, tag budget.
type Shape = (u64, bool, Policy, u64);

/// A tagger whose budget is a fraction, a guest without MTE, and one with all the budget it can use.
fn crowd(budget: u64) -> [Shape; 3] {
    [
        (10 * MIB, true, Policy::Lazy, budget),
        (8 * MIB, false, Policy::Lazy, 0),
        (4 * MIB, true, Policy::Lazy, 4 * MIB / 32),
    ]
}

fn create(world: &mut World, slot: usize, (bytes, mte, policy, budget): Shape) {
    world.create_with(slot, bytes, mte, policy, budget).unwrap();
}

/// Random accesses, tag accesses, demotions, compactions, resets and ends, and a full check now and
/// then.
fn storm(board: &Board, shapes: &[Shape], seed: u64, steps: u64) -> World {
    let mut world = World::new(board, Policy::Lazy);
    world.watch = false;
    let mut random = Random(seed);
    for (slot, &shape) in shapes.iter().enumerate() {
        create(&mut world, slot, shape);
    }
    for step in 0..steps {
        let slot = random.below(shapes.len() as u64) as usize;
        let (bytes, mte, ..) = shapes[slot];
        let ipa = page(random.below(bytes / PAGE_SIZE));
        let result = match random.below(1000) {
            0 => {
                world.reset(slot);
                Ok(())
            }
            1 => {
                world.destroy(slot);
                create(&mut world, slot, shapes[slot]);
                Ok(())
            }
            2..12 => {
                world.demote(slot, 200);
                Ok(())
            }
            12..22 => world.compact(slot).map(drop),
            22..300 if mte => world.stg(slot, ipa, random.below(16) as u8),
            300..350 if mte => world.ldg(slot, ipa),
            350..500 => world.load(slot, ipa),
            _ => world.store(slot, ipa, random.below(256) as u8),
        };
        match result {
            Ok(()) | Err(MemError::OverBudget { .. }) => {}
            Err(other) => panic!(
                "seed {seed} step {step} slot {slot}: {other}\n{:#?}\n{:#?}",
                world.memory.account(),
                world
                    .memory
                    .guests()
                    .map(|g| g.account())
                    .collect::<Vec<_>>()
            ),
        }
        if step % 512 == 0 {
            world.check();
        }
    }
    world.read_back();
    world.check();
    world
}

fn assert_all_comes_back(mut world: World, vms: usize) {
    (0..vms).for_each(|slot| world.destroy(slot));
    world.check();
    let ledger = world.memory.account().ledger;
    assert_eq!(
        (ledger.owned, ledger.tables, ledger.reserved, ledger.lent),
        (0, 0, 0, 0)
    );
}

#[test]
fn a_crowded_machine_keeps_data_and_tags_of_all() {
    for (seed, block) in [(1, 0x1000), (2, 0x2000), (3, 0x3000), (4, 0x8000)] {
        // Chunks of 6 MiB at 12 KiB: more is promised than the pages need.
        let memory = if block == 0x3000 { 48 * MIB } else { 28 * MIB };
        let board = Board::new(&[memory], block);
        let world = storm(&board, &crowd(64 * KIB), seed, STEPS);
        let account = world.memory.account();
        assert!(account.peak_lent > 0, "block {block:#x}");
        assert_all_comes_back(world, 3);
    }
}

#[test]
fn tag_storage_of_the_hypervisor_s_data_is_lent_and_never_taken_back() {
    let data = Occupied {
        range: range(BASE + 2 * MIB + 4 * KIB, 3 * MIB),
        by: Occupant::Data,
    };
    let board = Board::new(&[28 * MIB], 0x1000).occupy(data);
    let mut world = World::new(&board, Policy::Lazy);
    world.watch = false;
    create(&mut world, 0, (8 * MIB, false, Policy::Lazy, 0));
    for number in 0..8 * MIB / PAGE_SIZE {
        world.store(0, page(number), number as u8).unwrap();
    }
    let account = world.memory.account();
    assert_eq!((account.offline, account.lent), (0, account.carve_out));
    // Tags of another VM need some of it back.
    create(&mut world, 1, (8 * MIB, true, Policy::Lazy, 64 * KIB));
    for number in (0..8 * MIB / PAGE_SIZE).step_by(8) {
        world.stg(1, page(number), 5).unwrap();
    }
    assert!(world.memory.evicted() > 0);
    for index in 16..16 + 25 {
        let block = BlockId { region: 0, index };
        let state = world.memory.host().blocks().state(block);
        assert_eq!(state, BlockState::Lent { frames: 1 }, "{block}");
    }
    world.read_back();
    world.check();
    assert_all_comes_back(world, 2);
}

#[test]
fn two_regions_lend_to_all() {
    let board = Board::new(&[14 * MIB, 14 * MIB], 0x1000);
    let world = storm(&board, &crowd(96 * KIB), 5, STEPS);
    assert!(world.memory.evicted() > 0);
    assert_all_comes_back(world, 3);
}

#[test]
fn eager_and_lazy_vms_share_a_machine() {
    let board = Board::new(&[28 * MIB], 0x1000);
    let shapes = [
        (6 * MIB, true, Policy::Eager, 192 * KIB),
        (8 * MIB, false, Policy::Lazy, 0),
        (8 * MIB, true, Policy::Lazy, 64 * KIB),
    ];
    let world = storm(&board, &shapes, 6, STEPS);
    assert_all_comes_back(world, 3);
}

#[test]
fn a_chunk_that_was_opened_for_tags_which_never_came_is_given_back() {
    let mut world = World::new(&Board::new(&[16 * MIB], 0x8000), Policy::Eager);
    // A VM that was: its blocks are the next that are lent.
    create(&mut world, 1, (MIB, true, Policy::Eager, MIB / 32));
    world.load(1, page(0)).unwrap();
    world.destroy(1);
    // With no budget it has no chunk: all its pages lie in tag storage.
    create(&mut world, 0, (64 * KIB, true, Policy::Lazy, 0));
    for number in 0..9 {
        world.store(0, page(number), number as u8).unwrap();
    }
    world.check();
    world.set_budget(0, PAGE_SIZE / 32).unwrap();
    // Nothing may be evicted: it gets a chunk, and no tags.
    world.leave = 0;
    world.stg(0, page(0), 1).unwrap();
    assert_eq!(world.waited, 1);
    world.check();
    assert_all_comes_back(world, 2);
}
