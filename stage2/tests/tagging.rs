//! Pages that get tags in odd places: evicted for their own tags, beyond a budget, without
//! FEAT_MTE_PERM; and claims that others must not eat up.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

mod common;

use common::{BASE, Board, KIB, MIB, Shape, World, page};
use stage2::addr::PAGE_SIZE;
use stage2::guest::{MemError, Policy};

#[test]
fn a_vm_that_tags_all_it_touches_may_touch_pages_beyond_what_its_budget_covers() {
    let mut world = World::new(&Board::new(&[16 * MIB], 0x1000), Policy::Lazy);
    world.watch = false;
    let budget = 32 * PAGE_SIZE;
    world
        .create_with(0, 8 * MIB, true, Policy::Lazy, budget)
        .unwrap();
    world.vm(0).loose = true;
    for number in 0..1024 {
        world.stg(0, page(number), 5).unwrap();
    }
    let account = world.guest(0).account();
    assert!(account.switched_to_eager);
    assert_eq!(account.reserved, budget);
    for number in 1024..2048 {
        world.store(0, page(number), 6).unwrap();
    }
    assert_eq!(world.guest(0).account().pages.no_tag_access, 1024);
    world.read_back();
    world.check();
}

#[test]
fn a_page_that_is_evicted_for_its_own_tags_gets_them_where_it_goes() {
    let mut world = World::new(&Board::new(&[8 * MIB], 0x1000), Policy::Lazy);
    world.watch = false;
    // The first 2 MiB are not whole: its pages come one by one.
    world
        .create_shape(
            0,
            Shape {
                base: BASE + PAGE_SIZE,
                bytes: 6 * MIB - 2 * PAGE_SIZE,
                mte: true,
                policy: Policy::Lazy,
                tag_budget: 64 * KIB,
            },
        )
        .unwrap();
    let at = |slot: u64, offset: u64| page(slot * 512 + offset);
    // Others fill the piece at home, so what follows is lent storage, from the last block down.
    world.store(0, at(0, 1), 1).unwrap();
    (0..511).for_each(|offset| world.store(0, at(2, offset), 2).unwrap());
    let evicted = at(1, 480);
    for block in (0..64).rev() {
        let ipa = if block == 31 {
            evicted
        } else {
            at(0, 100 + block)
        };
        world.store(0, ipa, 3).unwrap();
    }
    // All of what block 31 covers is full but the frame at home of the page in it.
    (481..512).for_each(|offset| world.store(0, at(1, offset), 4).unwrap());
    let blocks = |world: &World, ipa| {
        let frame = world.guest(0).translate(&world.sim, ipa).unwrap();
        let blocks = world.memory.host().blocks();
        (blocks.storage_of(frame), blocks.block_of(frame))
    };
    let (lent, covering) = (blocks(&world, evicted).0, blocks(&world, at(1, 481)).1);
    assert_eq!((lent, lent.map(|block| block.index)), (covering, Some(31)));
    world.stg(0, evicted, 5).unwrap();
    assert_eq!(blocks(&world, evicted).1, lent);
    assert_eq!(world.guest(0).evictions_caused(), 1);
    world.read_back();
    world.check();
}

#[test]
fn an_eager_vm_never_has_a_page_without_tag_access() {
    // Without FEAT_MTE_PERM such a page would lose its tags silently.
    let mut world = World::new(&Board::new(&[8 * MIB], 0x1000), Policy::Eager);
    world.create(0, MIB, true, Policy::Eager).unwrap();
    (0..64).for_each(|number| world.store(0, page(number), 7).unwrap());
    assert_eq!(world.demote(0, 256), 0);
    assert_eq!(world.guest(0).account().pages.no_tag_access, 0);
    world.stg(0, page(3), 9).unwrap();
    world.read_back();
    world.check();
}

/// Touches a page as a loader does: no more than that is simulated.
fn touch(world: &mut World, slot: usize, number: u64) {
    let id = world.vms[slot].as_ref().unwrap().id;
    let touched = world.memory.populate(&mut world.sim, id, page(number));
    touched.unwrap_or_else(|error| panic!("vm {slot}, page {number}: {error}"));
}

#[test]
fn a_vm_that_touches_each_slot_of_its_ram_leaves_others_what_they_were_promised() {
    let mut world = World::new(&Board::new(&[256 * MIB], 0x1000), Policy::Lazy);
    let lazy = world.create_with(0, 156 * MIB, true, Policy::Lazy, 64 * KIB);
    let plain = world.create_with(1, 100 * MIB, false, Policy::Lazy, 0);
    assert_eq!((lazy, plain), (Ok(()), Ok(())));
    // All tag storage, and then a page more of each 2 MiB.
    for number in 0..42 {
        (0..50).for_each(|slot| touch(&mut world, 1, slot * 512 + number));
    }
    assert_eq!(world.memory.account().free, 0);
    // 2 MiB more than its RAM is all that may be set aside for it.
    let ledger = world.memory.account().ledger;
    assert!(ledger.owned + ledger.lent <= 102 * MIB);
    (0..78).for_each(|slot| touch(&mut world, 0, slot * 512));
    world.check_only_core();
}

#[test]
fn a_vm_that_comes_later_is_promised_no_chunk_that_another_one_sits_in() {
    let mut world = World::new(&Board::new(&[64 * MIB], 0x1000), Policy::Lazy);
    let all = |world: &mut World, slot, bytes: u64| {
        (0..bytes / PAGE_SIZE).for_each(|number| touch(world, slot, number));
    };
    world.create(0, 2 * MIB, false, Policy::Lazy).unwrap();
    all(&mut world, 0, 2 * MIB);
    // There is no tag storage left for it.
    world.create(1, 56 * MIB, false, Policy::Lazy).unwrap();
    all(&mut world, 1, 56 * MIB);
    world.destroy(0);
    let free = world.memory.account().ledger.free;
    let refused = world.create(2, 4 * MIB, true, Policy::Eager);
    match refused {
        Ok(()) => all(&mut world, 2, 4 * MIB),
        Err(MemError::TooMuchTaggable { wanted, there }) => {
            assert!(wanted > there && there <= free);
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn regions_of_different_chunks_keep_their_promises() {
    // Chunks of 2 MiB, and of 6.
    let regions = [(18 * MIB, 0x1000), (18 * MIB, 0x3000)];
    let mut world = World::new(&Board::with_regions(&regions), Policy::Lazy);
    for slot in 0..2 {
        world
            .create_with(slot, 6 * MIB, true, Policy::Lazy, 132 * KIB)
            .unwrap();
    }
    for slot in 0..2 {
        (0..1536).for_each(|number| touch(&mut world, slot, number));
    }
    world.check_only_core();
}
