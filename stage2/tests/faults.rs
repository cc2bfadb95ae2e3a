//! The faults, step by step: the order that hardware sees, what a refusal leaves behind, and the
//! figures.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

mod common;

use common::steps::*;
use common::{BASE, Board, KIB, MIB, World, frame, page, range, sim_of};
use stage2::addr::{FrameRange, Ipa, PAGE_SIZE};
use stage2::block::BlockState;
use stage2::descriptor::MemAttr;
use stage2::fakes::{SimFault, Step};
use stage2::guest::{Access, GuestSpec, MemError, Policy, TagOutcome};
use stage2::invariants::{self, Violation};
use stage2::pool::BlockId;
use stage2::ports::TableMemory;
use stage2::region::{Occupant, Occupied};

#[test]
fn a_new_vm_touches_nothing_but_its_root_table_however_large_it_is() {
    // Nor does a new machine: it has no hardware to do it with.
    let mut world = World::new(&Board::new(&[1024 * MIB], 0x8000), Policy::Lazy);
    world.sim.take_log();
    world.create(0, 1000 * MIB, true, Policy::Lazy).unwrap();
    let expected = [Step::ClearTable(root(&world, 0)), Step::Publish];
    assert_eq!(world.sim.take_log(), expected);
}

#[test]
fn a_first_access_zeroes_the_page_before_it_is_mapped_and_clears_tables_before_they_are_linked() {
    let mut world = world(true, Policy::Lazy);
    let Access::Mapped(mapped) = access(&mut world, 0, page(0)).unwrap() else {
        panic!()
    };
    let (middle, leaf) = (middle_table(&world, 0), leaf_table(&world, 0, 0));
    let expected = vec![
        Step::ZeroFrame(mapped),
        Step::SyncCode(one(mapped)),
        Step::ClearTable(leaf),
        Step::ClearTable(middle),
        Step::WriteEntry(middle, 0, link(leaf)),
        Step::Publish,
        Step::WriteEntry(root(&world, 0), 1, link(middle)),
        Step::WriteEntry(leaf, 0, entry(mapped, MemAttr::NoTagAccess)),
        Step::Publish,
    ];
    assert_eq!(world.sim.take_log(), expected);
    // With the tables there, only the page is left.
    let Access::Mapped(second) = access(&mut world, 0, page(5)).unwrap() else {
        panic!()
    };
    let expected = vec![
        Step::ZeroFrame(second),
        Step::SyncCode(one(second)),
        Step::WriteEntry(leaf, 5, entry(second, MemAttr::NoTagAccess)),
        Step::Publish,
    ];
    assert_eq!(world.sim.take_log(), expected);
    assert_eq!(
        second,
        mapped.plus(5),
        "host and guest run in step inside 2 MiB"
    );
}

#[test]
fn a_tag_fault_maintains_the_block_then_breaks_then_zeroes_tags_then_makes() {
    let mut world = world(true, Policy::Lazy);
    access(&mut world, 0, page(0)).unwrap();
    access(&mut world, 0, page(1)).unwrap();
    let first = frame_of(&world, 0, page(0));
    world.sim.take_log();

    assert_eq!(tag(&mut world, 0, page(0)), Ok(TagOutcome::Tagged));
    let last = |world: &World, index, frame| {
        let made = make_page(world, 0, index, entry(frame, MemAttr::WriteBack));
        [break_page(world, 0, index), zero_tags(frame), made].concat()
    };
    let expected = [sweep(0), maintain(0), last(&world, 0, first)].concat();
    assert_eq!(world.sim.take_log(), expected);

    // The block is reserved: a second page of its coverage costs no maintenance.
    assert_eq!(tag(&mut world, 0, page(1)), Ok(TagOutcome::Tagged));
    let expected = last(&world, 1, first.plus(1));
    assert_eq!(world.sim.take_log(), expected);
    assert_eq!(state(&world, 0), BlockState::Reserved { users: 2 });
}

#[test]
fn a_block_that_was_swept_once_is_only_maintained_when_reserved_again() {
    let mut world = world(true, Policy::Lazy);
    world.stg(0, page(0), 3).unwrap();
    world.reset(0);
    assert_eq!(state(&world, 0), BlockState::Free);
    world.load(0, page(0)).unwrap();
    world.sim.take_log();
    tag(&mut world, 0, page(0)).unwrap();
    assert_eq!(world.sim.take_log()[..4], maintain(0));
}

#[test]
fn an_eager_first_access_reserves_and_zeroes_tags_before_it_maps() {
    let mut world = world(true, Policy::Eager);
    access(&mut world, 0, page(0)).unwrap();
    world.reset(0);
    world.sim.take_log();
    let Access::Mapped(first) = access(&mut world, 0, page(0)).unwrap() else {
        panic!()
    };
    let mut log = world.sim.take_log();
    let made = |world: &World, frame, index| {
        let raw = entry(frame, MemAttr::WriteBack);
        make_page(world, 0, index, raw)
    };
    assert_eq!(log[..4], maintain(0), "it was swept before");
    assert_eq!(log.split_off(log.len() - 2), made(&world, first, 0));
    let zero = |frame| {
        let data = vec![Step::ZeroFrame(frame), Step::SyncCode(one(frame))];
        [data, zero_tags(frame)].concat()
    };
    assert_eq!(log[4..8], zero(first));
    // The block is reserved, and has room.
    let Access::Mapped(second) = access(&mut world, 0, page(40)).unwrap() else {
        panic!()
    };
    let expected = [zero(second), made(&world, second, 40)].concat();
    assert_eq!(world.sim.take_log(), expected);
    assert!(
        coverage(0).contains(second),
        "not the frame at home: that would open a block"
    );
    assert_eq!(world.guest(0).account().pages.tagged, 2);
    assert_eq!(world.guest(0).account().tag_faults, 0);
}

#[test]
fn a_release_unmaps_everywhere_then_cleans_tags_while_reserved_then_scrubs() {
    let mut world = world(true, Policy::Lazy);
    world.stg(0, page(0), 3).unwrap();
    world.stg(0, page(1), 4).unwrap();
    world.check();
    let first = frame_of(&world, 0, page(0));
    let (middle, leaf) = (middle_table(&world, 0), leaf_table(&world, 0, 0));
    world.sim.take_log();
    world.reset(0);
    let expected = [
        detach(&world, 0, &[(leaf, 0), (leaf, 1), (middle, 0)]),
        vec![
            Step::CleanTags(one(first)),
            Step::Synchronize,
            Step::CleanTags(one(first.plus(1))),
            Step::Synchronize,
        ],
        sweep(0),
        detach(&world, 0, &[(root(&world, 0), 1)]),
    ];
    assert_eq!(world.sim.take_log(), expected.concat());
    world.check();
}

#[test]
fn a_vm_that_tags_everything_gets_tags_at_the_first_access_until_it_is_reset() {
    let mut world = world(true, Policy::Lazy);
    world.store(0, page(0), 1).unwrap();
    world.switch_to_eager(0);
    world.store(0, page(1), 1).unwrap();
    world.check();
    let account = world.guest(0).account();
    let pages = (account.pages.tagged > 0, account.pages.no_tag_access);
    assert_eq!((account.switched_to_eager, pages), (true, (true, 1)));
    world.reset(0);
    world.store(0, page(1), 1).unwrap();
    world.check();
    let account = world.guest(0).account();
    let pages = (account.pages.tagged, account.pages.no_tag_access);
    assert_eq!((account.switched_to_eager, pages), (false, (0, 1)));
}

#[test]
fn a_tag_fault_on_a_tagged_page_only_drops_the_stale_tlb_entry() {
    let mut world = world(true, Policy::Lazy);
    world.stg(0, page(0), 7).unwrap();
    let before = world.guest(0).account();
    world.sim.take_log();
    assert_eq!(tag(&mut world, 0, page(0)), Ok(TagOutcome::Spurious));
    let expected = invalidate(&world, 0, page(0));
    assert_eq!(world.sim.take_log(), expected);
    assert_eq!(world.guest(0).account(), before);
    world.ldg(0, page(0)).unwrap();
    world.check();
}

#[test]
fn an_access_fault_on_a_mapped_page_changes_nothing() {
    let mut world = world(true, Policy::Lazy);
    world.store(0, page(0), 9).unwrap();
    world.sim.take_log();
    assert_eq!(access(&mut world, 0, page(0)), Ok(Access::Spurious));
    assert_eq!(world.sim.take_log(), []);
    world.load(0, page(0)).unwrap();
}

#[test]
fn a_tag_fault_on_a_page_that_is_gone_waits_for_the_translation_fault() {
    let mut world = world(true, Policy::Lazy);
    assert_eq!(tag(&mut world, 0, page(0)), Ok(TagOutcome::Unmapped));
    world.load(0, page(1)).unwrap();
    assert_eq!(tag(&mut world, 0, page(0)), Ok(TagOutcome::Unmapped));
    world.check();
}

#[test]
fn a_guest_without_mte_never_reaches_a_tag() {
    let mut world = world(false, Policy::Lazy);
    world.store(0, page(0), 9).unwrap();
    assert_eq!(tag(&mut world, 0, page(0)), Err(MemError::NotMte));
    world.stg(0, page(0), 9).unwrap();
    world.ldg(0, page(0)).unwrap();
    let account = world.guest(0).account();
    assert_eq!((account.pages.tagged, account.pages.no_tag_access), (0, 1));
    assert_eq!(world.memory.account().reserved, 0);
    world.check();
}

#[test]
fn an_address_that_is_not_ram_is_refused() {
    let mut world = world(true, Policy::Lazy);
    let end = BASE + SMALL;
    for address in [0, BASE - 1, end, 1 << 36, 1 << 48, u64::MAX] {
        let ipa = Ipa::new(address);
        assert_eq!(access(&mut world, 0, ipa), Err(MemError::NotRam(ipa)));
        assert_eq!(tag(&mut world, 0, ipa), Err(MemError::NotRam(ipa)));
        assert_eq!(world.guest(0).account().resident, 0);
    }
    assert!(access(&mut world, 0, Ipa::new(end - 1)).is_ok());
    assert!(access(&mut world, 0, Ipa::new(BASE + 17)).is_ok());
}

#[test]
fn ram_that_cannot_be_is_refused_with_nothing_taken() {
    let board = board();
    let (mut memory, mut sim) = (board.memory(Policy::Lazy), board.sim());
    let before = memory.account();
    for (base, bytes) in [
        (BASE, 0),
        (BASE + 1, MIB),
        (BASE, MIB + 1),
        ((1 << 36) - MIB, 2 * MIB),
        (u64::MAX - 0xfff, PAGE_SIZE),
    ] {
        let base = Ipa::new(base);
        let refused = memory.create(&mut sim, spec(base, bytes));
        assert_eq!(refused, Err(MemError::BadRam { base, bytes }));
    }
    assert_eq!(memory.account(), before);
    assert_eq!(memory.guests().count(), 0);
    let mut world = World::new(&board, Policy::Lazy);
    let refused = world.create(0, MIB, true, Policy::Static);
    assert_eq!(refused, Err(MemError::StaticMismatch));
}

/// A lazy VM with all the budget that it can use.
fn spec(ram_base: Ipa, ram_bytes: u64) -> GuestSpec {
    GuestSpec {
        vm: id(0),
        vmid: vmid(0),
        ram_base,
        ram_bytes,
        mte: true,
        policy: Policy::Lazy,
        tag_budget: ram_bytes / 32,
    }
}

#[test]
fn ram_need_not_start_or_end_on_2_mib() {
    let board = board();
    let (mut memory, mut sim) = (board.memory(Policy::Lazy), board.sim());
    let ram_base = Ipa::new(BASE + MIB);
    let spec = spec(ram_base, 2 * MIB + PAGE_SIZE);
    memory.create(&mut sim, spec).unwrap();
    let mut frames = Vec::new();
    for offset in [0, MIB - PAGE_SIZE, MIB, 2 * MIB - PAGE_SIZE, 2 * MIB] {
        let ipa = Ipa::new(ram_base.get() + offset);
        frames.push(memory.populate(&mut sim, spec.vm, ipa).unwrap());
    }
    frames.sort_unstable();
    frames.dedup();
    assert_eq!(frames.len(), 5);
    invariants::check(memory.host(), memory.guests(), &mut sim).unwrap();
    memory.destroy(&mut sim, spec.vm).unwrap();
    let ledger = board.memory(Policy::Lazy).account().ledger;
    assert_eq!(memory.account().ledger, ledger);
}

#[test]
fn a_refusal_for_want_of_frames_leaves_no_trace() {
    for policy in [Policy::Lazy, Policy::Eager] {
        // No table at all; one of the two that a first page needs; tables, and no chunk.
        for left in [0, 1, 2] {
            let mut world = world(true, policy);
            let taken = world.leave_tables(left);
            if (policy, left) == (Policy::Lazy, 2) {
                // Tag storage is memory too.
                world.store(0, page(0), 1).unwrap();
                assert_eq!(world.guest(0).account().lent, PAGE_SIZE);
                continue;
            }
            let before = world.figures();
            for _ in 0..3 {
                assert_eq!(access(&mut world, 0, page(0)), Err(MemError::NoMemory));
                assert_eq!(world.sim.take_log(), [], "no step on the machine");
                let after = world.figures();
                assert_eq!(after, before, "{policy:?}, {left} tables left");
            }
            world.free_tables(taken);
            world.store(0, page(0), 1).unwrap();
            world.check();
        }
    }
}

#[test]
fn no_vm_is_made_without_a_frame_for_its_root() {
    let mut world = World::new(&board(), Policy::Lazy);
    world.memory.host_mut().refuse_after(Some(0));
    let before = world.memory.account();
    assert_eq!(
        world.create(0, MIB, true, Policy::Lazy),
        Err(MemError::NoMemory)
    );
    assert_eq!(world.memory.account(), before);
    world.memory.host_mut().refuse_after(None);
    world.create(0, MIB, true, Policy::Lazy).unwrap();
}

#[test]
fn tables_never_live_in_tag_storage_and_use_untaggable_dram_first() {
    let mut world = World::new(&board(), Policy::Lazy);
    let tables = world.leave_tables(0);
    let untaggable = FrameRange::new(storage(0).end().plus(63), 16);
    assert!(tables[..16].iter().all(|&table| untaggable.contains(table)));
    assert!(
        tables
            .iter()
            .all(|&table| world.memory.host().blocks().storage_of(table).is_none())
    );
    assert_eq!(tables.len() as u64, 16 + 8 * MIB / PAGE_SIZE);
    world.memory.host_mut().free_table_page(tables[0]).unwrap();
    assert!(
        world.memory.host_mut().free_table_page(tables[0]).is_err(),
        "a double free is refused"
    );
}

#[test]
fn a_corrupt_table_is_reported_and_not_believed() {
    let mut world = world(true, Policy::Lazy);
    world.store(0, page(0), 1).unwrap();
    let table = leaf_table(&world, 0, 0);
    let raw = frame(BASE).addr().get() | 0x7d9;
    world.sim.write(table, 3, raw);
    assert!(
        matches!(access(&mut world, 0, page(3)), Err(MemError::Corrupt(bad)) if bad.raw == raw)
    );
    assert!(matches!(
        tag(&mut world, 0, page(3)),
        Err(MemError::Corrupt(_))
    ));
    let World { sim, memory, .. } = &mut world;
    assert!(matches!(
        invariants::check(memory.host(), memory.guests(), sim),
        Err(Violation::Corrupt(_))
    ));
}

#[test]
fn the_invariants_see_a_page_at_a_wrong_frame_and_one_left_broken() {
    let mut world = world(true, Policy::Lazy);
    world.store(0, page(0), 1).unwrap();
    world.store(0, page(1), 1).unwrap();
    let (table, first) = (leaf_table(&world, 0, 0), frame_of(&world, 0, page(0)));
    let mut with_entry = |index, raw| {
        let old = world.sim.read(table, index);
        world.sim.write(table, index, raw);
        let World { sim, memory, .. } = &mut world;
        let found = invariants::check(memory.host(), memory.guests(), sim);
        world.sim.write(table, index, old);
        found
    };
    let ours = entry(first, MemAttr::NoTagAccess);
    assert!(
        matches!(with_entry(1, ours), Err(Violation::NotOwned { .. })),
        "mapped twice"
    );
    let other = entry(first.plus(4 * MIB / PAGE_SIZE), MemAttr::NoTagAccess);
    assert!(
        matches!(with_entry(1, other), Err(Violation::NotOwned { .. })),
        "nobody's chunk"
    );
    let tags = entry(storage(0).start, MemAttr::NoTagAccess);
    assert!(
        matches!(with_entry(1, tags), Err(Violation::NotOwned { .. })),
        "tag storage"
    );
    let tagged = entry(first.plus(1), MemAttr::WriteBack);
    assert!(matches!(
        with_entry(1, tagged),
        Err(Violation::NotReserved { .. })
    ));
    assert!(matches!(
        with_entry(1, BROKEN),
        Err(Violation::LeftBroken(_))
    ));
    assert!(matches!(with_entry(1, 0), Err(Violation::Count { .. })));
    world.check_only_core();
}

#[test]
fn the_simulated_tags_are_the_carve_out() {
    let mut world = world(true, Policy::Lazy);
    world.stg(0, page(0), 0xa).unwrap();
    world.stg(0, Ipa::new(BASE + 16), 0xb).unwrap();
    let place = storage(0).start.addr();
    assert_eq!(world.sim.byte(place), 0xba, "low nibble: even granule");
    world.sim.set_byte(place, 0x21);
    let guest = sim_of(world.guest(0));
    assert_eq!(world.sim.ldg(guest, page(0)), Ok(1));
    assert_eq!(world.sim.ldg(guest, Ipa::new(BASE + 16)), Ok(2));
    assert_eq!(world.sim.ldg(guest, page(1)), Err(SimFault::Translation));
}

#[test]
fn a_static_machine_keeps_the_whole_carve_out_and_touches_none_of_it() {
    let mut world = world(true, Policy::Static);
    let carve_out = 8 * MIB / 32;
    let figures = |world: &World| {
        let account = world.memory.account();
        (
            account.reserved,
            account.free,
            account.reclaimed,
            account.ideal,
        )
    };
    assert_eq!(figures(&world), (carve_out, 0, 0, None));
    world.stg(0, page(0), 5).unwrap();
    world.check();
    let log = world.sim.take_log();
    assert!(
        !log.iter()
            .any(|step| matches!(step, Step::CleanTags(_) | Step::CleanData(_)))
    );
    let account = world.guest(0).account();
    assert_eq!((account.reserved, account.reclaimed), (SMALL / 32, 0));
    world.destroy(0);
    world.check();
    assert_eq!(figures(&world), (carve_out, 0, 0, None));
}

#[test]
fn a_page_that_an_offline_block_covers_can_be_tagged_and_reserves_nothing() {
    // Firmware holds block 0 itself: it stays tag storage for ever.
    let firmware = range(storage(0).start.addr().get(), PAGE_SIZE);
    let board = board().occupy(Occupied {
        range: firmware,
        by: Occupant::Firmware,
    });
    for policy in [Policy::Lazy, Policy::Eager, Policy::Static] {
        let mut world = World::new(&board, policy);
        assert_eq!(state(&world, 0), BlockState::Offline);
        assert_eq!(world.memory.account().offline, PAGE_SIZE);
        world.create(0, 2 * MIB, true, policy).unwrap();
        world.stg(0, page(0), 5).unwrap();
        let mapped = frame_of(&world, 0, page(0));
        assert_eq!(
            world.memory.host().blocks().block_of(mapped),
            Some(BlockId {
                region: 0,
                index: 0
            })
        );
        assert_eq!(state(&world, 0), BlockState::Offline);
        world.check();
        world.reset(0);
        world.check();
    }
}

#[test]
fn memory_that_firmware_holds_is_given_to_nobody() {
    let taken = range(BASE + 2 * MIB + 5, 10);
    let board = board().occupy(Occupied {
        range: taken,
        by: Occupant::Firmware,
    });
    let mut world = World::new(&board, Policy::Lazy);
    let refused = world.create(0, 8 * MIB, true, Policy::Lazy);
    assert!(
        matches!(refused, Err(MemError::TooMuch { .. })),
        "the chunk with a hole is no chunk"
    );
    world.create(0, 6 * MIB, true, Policy::Lazy).unwrap();
    for number in (0..3).map(|chunk| chunk * 512) {
        world.stg(0, page(number), 1).unwrap();
        assert!(
            !taken
                .outer_frames()
                .contains(frame_of(&world, 0, page(number)))
        );
    }
    let tables = world.leave_tables(0);
    assert!(
        tables.contains(&frame(BASE + 2 * MIB + PAGE_SIZE)),
        "its rest serves tables"
    );
    assert!(!tables.contains(&frame(BASE + 2 * MIB)));
    assert_eq!(world.memory.account().ledger.occupied, PAGE_SIZE);
    assert_eq!(
        world.memory.account().offline,
        PAGE_SIZE,
        "the block that covers the hole"
    );
}

#[test]
fn figures_of_a_lazy_machine_are_exact() {
    let mut world = world_of(4 * MIB, true, Policy::Lazy);
    let carve_out = 8 * MIB / 32;
    // 12 bytes a block, 8 a frame of tag storage, and a bit; 2 bytes a chunk, 4 a piece; a bit a table
    // frame. For the VM 16 bytes and 2 bits for each 2 MiB that it may have, of a chunk more at both
    // ends. Bits come in words.
    let metadata = 12 * 64 + 8 * 64 + 8 + (2 + 4) * 4 + 8 + 4 * 16 + 2 * 8;
    for number in 0..64 {
        world.store(0, page(number), 1).unwrap();
    }
    let account = world.memory.account();
    assert_eq!(account.metadata, metadata, "one 2 MiB leaf, no map");
    assert_eq!(
        (account.tables, world.guest(0).account().big_leaves),
        (2 * PAGE_SIZE, 1)
    );
    assert_eq!(account.net_reclaimed, (carve_out - metadata) as i64);
    for number in [0, 1, 40] {
        world.stg(0, page(number), 2).unwrap();
    }
    let account = world.memory.account();
    assert_eq!(account.carve_out, carve_out);
    // Page 40 moved to where the block of the other two has room.
    assert_eq!(account.reserved, PAGE_SIZE);
    assert_eq!(account.reclaimed, carve_out - PAGE_SIZE);
    assert_eq!(account.ideal, Some(carve_out - PAGE_SIZE));
    assert_eq!(account.untaggable, 64 * KIB);
    // The table of level 3 would be a 2 MiB leaf; the rest is metadata.
    assert_eq!(account.tables, 3 * PAGE_SIZE);
    let costs = PAGE_SIZE + account.metadata;
    assert_eq!(
        account.net_reclaimed,
        account.reclaimed as i64 - costs as i64
    );
    // Besides a group of maps: 3 bytes and 2 bits a frame and 8 bytes for each, in 64 KiB.
    let map = 512 * 3 + 512 / 4 + 8;
    assert_eq!(account.metadata, metadata + 64 * KIB / map * map);
    let vm = world.guest(0).account();
    assert_eq!((vm.pages.tagged, vm.pages.no_tag_access), (3, 509));
    assert_eq!((vm.tag_faults, vm.moves), (3, 2), "a swap moves two");
    assert_eq!((vm.peak.tagged_pages, vm.peak.reserved), (3, PAGE_SIZE));
    world.reset(0);
    let vm = world.guest(0).account();
    assert_eq!(
        (vm.reserved, vm.resident, vm.peak.reserved),
        (0, 0, PAGE_SIZE)
    );
    assert_eq!(world.memory.account().reserved, 0);
}

#[test]
fn the_snapshot_is_of_the_last_moment_of_the_highest_reserved_bytes() {
    let mut world = world(true, Policy::Lazy);
    world.create(1, MIB, true, Policy::Lazy).unwrap();
    world.stg(0, page(0), 1).unwrap();
    world.stg(1, page(0), 1).unwrap();
    world.stg(1, page(1), 1).unwrap();
    let first = world.memory.account();
    assert_eq!(world.memory.highest(), first, "while it is now");
    world.reset(1);
    assert_eq!(world.memory.highest(), first, "after it has passed");
    // The same height again, later and with other figures.
    world.stg(1, page(0), 1).unwrap();
    world.store(1, page(200), 1).unwrap();
    let second = world.memory.account();
    assert_eq!(world.memory.highest(), second);
    world.destroy(1);
    world.destroy(0);
    assert_eq!(world.memory.highest(), second);
    assert_eq!(second.reserved, first.reserved);
}

#[test]
fn a_static_snapshot_stays_where_it_was_taken() {
    let mut world = world_of(4 * MIB, true, Policy::Static);
    world.stg(0, page(0), 1).unwrap();
    world.memory.snapshot_now();
    let taken = world.memory.account();
    world.stg(0, page(600), 1).unwrap();
    world.destroy(0);
    assert_eq!(world.memory.highest(), taken);
}

#[test]
fn a_reset_guest_finds_zeroes_and_the_machine_loses_nothing_over_many_lives() {
    let mut world = World::new(&board(), Policy::Lazy);
    let mut fresh = None;
    for life in 0..200_u64 {
        world.create(0, 4 * MIB, true, Policy::Lazy).unwrap();
        world
            .stg(0, page(life % 1024), 1 + (life % 15) as u8)
            .unwrap();
        world.store(0, page(life % 700), 0xee).unwrap();
        world.reset(0);
        world.load(0, page(life % 700)).unwrap();
        world.ldg(0, page(life % 1024)).unwrap();
        world.destroy(0);
        world.sim.take_log();
        // The first life leaves the room for its maps to the others.
        assert_eq!(
            *fresh.get_or_insert(world.memory.account()),
            world.memory.account()
        );
    }
    let ledger = board().memory(Policy::Lazy).account().ledger;
    assert_eq!(world.memory.account().ledger, ledger);
    world.check_only_core();
    assert_eq!(world.sim.broken_rules(), []);
}
