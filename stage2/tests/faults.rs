//! The faults, step by step: the order that hardware sees, what a refusal leaves behind, and the
//! figures.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

mod common;

use common::{BASE, Board, KIB, MIB, World, frame, pa, page, range};
use stage2::addr::{Frame, FrameRange, Ipa, PAGE_SIZE};
use stage2::block::BlockState;
use stage2::descriptor::{Entry, Leaf, MemAttr, Vacancy, Vmid};
use stage2::fakes::{SimFault, Step};
use stage2::frames::VmId;
use stage2::guest::{Access, GuestMemory, GuestSpec, MemError, Policy, TagOutcome};
use stage2::invariants::{self, Violation};
use stage2::pool::BlockId;
use stage2::ports::TableMemory;
use stage2::region::{Occupant, Occupied};

const VMID: Vmid = Vmid(1);

fn board() -> Board {
    Board::new(&[8 * MIB], 0x1000)
}

/// A machine of 8 MiB with one VM of 4 MiB, its log empty.
fn world(mte: bool, policy: Policy) -> World {
    let mut world = World::new(&board(), policy);
    world.create(0, 4 * MIB, mte, policy).unwrap();
    world.sim.take_log();
    world
}

fn access(world: &mut World, ipa: Ipa) -> Result<Access, MemError> {
    let World { sim, host, vms, .. } = world;
    vms[0].as_mut().unwrap().memory.access_fault(host, sim, ipa)
}

fn tag(world: &mut World, ipa: Ipa) -> Result<TagOutcome, MemError> {
    let World { sim, host, vms, .. } = world;
    vms[0].as_mut().unwrap().memory.tag_fault(host, sim, ipa)
}

fn frame_of(world: &mut World, ipa: Ipa) -> Frame {
    world.vms[0]
        .as_ref()
        .unwrap()
        .memory
        .translate(&world.sim, ipa)
        .unwrap()
}

fn root(world: &mut World) -> Frame {
    world.vm(0).memory.tables().root()
}

fn one(frame: Frame) -> FrameRange {
    FrameRange::new(frame, 1)
}

/// The first block of the only region, its storage and its coverage.
const BLOCK: BlockId = BlockId {
    region: 0,
    index: 0,
};

fn storage() -> FrameRange {
    FrameRange::new(frame(BASE + 8 * MIB), 1)
}

fn coverage() -> FrameRange {
    FrameRange::new(frame(BASE), 32)
}

fn entry(frame: Frame, attr: MemAttr) -> u64 {
    Entry::Page(Leaf { frame, attr }).encode()
}

const BROKEN: u64 = Entry::Invalid(Vacancy::Broken).encode();

fn sweep() -> Vec<Step> {
    vec![
        Step::CleanTags(coverage()),
        Step::Synchronize,
        Step::ZeroFrame(storage().start),
        Step::CleanData(storage()),
        Step::Synchronize,
    ]
}

fn maintain() -> Vec<Step> {
    vec![
        Step::CleanData(storage()),
        Step::Synchronize,
        Step::CleanTags(coverage()),
        Step::Synchronize,
    ]
}

fn invalidate(root: Frame, ipa: Ipa) -> Vec<Step> {
    vec![
        Step::Publish,
        Step::LoadVttbr(VMID, root),
        Step::TlbiIpa(VMID, ipa),
        Step::Publish,
        Step::TlbiStage1(VMID),
        Step::Publish,
    ]
}

/// The level-3 table of the first 2 MiB, once there is one.
fn leaf_table(world: &mut World) -> Frame {
    let mut table = root(world);
    for shift in [30, 21] {
        let raw = world.sim.read(table, (BASE >> shift) as usize % 512);
        table = Frame::containing(pa(raw & 0xffff_ffff_f000));
    }
    table
}

#[test]
fn a_first_access_zeroes_the_page_before_it_is_mapped_and_clears_tables_before_they_are_linked() {
    let mut world = world(true, Policy::Lazy);
    let Access::Mapped(mapped) = access(&mut world, page(0)).unwrap() else {
        panic!()
    };
    let (root, leaf) = (root(&mut world), leaf_table(&mut world));
    let raw = world.sim.read(root, 1);
    let middle = Frame::containing(pa(raw & 0xffff_ffff_f000));
    let expected = vec![
        Step::ZeroFrame(mapped),
        Step::Synchronize,
        Step::ClearTable(leaf),
        Step::ClearTable(middle),
        Step::WriteEntry(middle, 0, leaf.addr().get() | 3),
        Step::Publish,
        Step::WriteEntry(root, 1, middle.addr().get() | 3),
        Step::WriteEntry(leaf, 0, entry(mapped, MemAttr::NoTagAccess)),
        Step::Publish,
    ];
    assert_eq!(world.sim.take_log(), expected);
    // With the tables there, only the page is left.
    let Access::Mapped(second) = access(&mut world, page(5)).unwrap() else {
        panic!()
    };
    let expected = vec![
        Step::ZeroFrame(second),
        Step::Synchronize,
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
    access(&mut world, page(0)).unwrap();
    access(&mut world, page(1)).unwrap();
    let (root, leaf) = (root(&mut world), leaf_table(&mut world));
    let first = frame_of(&mut world, page(0));
    world.sim.take_log();

    assert_eq!(tag(&mut world, page(0)), Ok(TagOutcome::Tagged));
    let last = |index, ipa, frame| {
        let mut steps = vec![Step::WriteEntry(leaf, index, BROKEN)];
        steps.extend(invalidate(root, ipa));
        steps.extend([
            Step::ZeroTags(frame),
            Step::Synchronize,
            Step::WriteEntry(leaf, index, entry(frame, MemAttr::WriteBack)),
            Step::Publish,
        ]);
        steps
    };
    let expected = [sweep(), maintain(), last(0, page(0), first)].concat();
    assert_eq!(world.sim.take_log(), expected);

    // The block is reserved: a second page of its coverage costs no maintenance.
    assert_eq!(tag(&mut world, page(1)), Ok(TagOutcome::Tagged));
    assert_eq!(world.sim.take_log(), last(1, page(1), first.plus(1)));
    assert_eq!(
        world.host.blocks().state(BLOCK),
        BlockState::Reserved { users: 2 }
    );
}

#[test]
fn a_block_that_was_swept_once_is_only_maintained_when_reserved_again() {
    let mut world = world(true, Policy::Lazy);
    world.stg(0, page(0), 3).unwrap();
    world.reset(0);
    assert_eq!(world.host.blocks().state(BLOCK), BlockState::Free);
    world.load(0, page(0)).unwrap();
    world.sim.take_log();
    tag(&mut world, page(0)).unwrap();
    assert_eq!(world.sim.take_log()[..4], maintain());
}

#[test]
fn an_eager_first_access_reserves_and_zeroes_tags_before_it_maps() {
    let mut world = world(true, Policy::Eager);
    access(&mut world, page(0)).unwrap();
    world.sim.take_log();
    world.reset(0);
    access(&mut world, page(40)).unwrap();
    world.sim.take_log();
    let Access::Mapped(mapped) = access(&mut world, page(0)).unwrap() else {
        panic!()
    };
    let (log, leaf) = (world.sim.take_log(), leaf_table(&mut world));
    assert_eq!(log[..4], maintain());
    let expected = [
        Step::ZeroTags(mapped),
        Step::Synchronize,
        Step::WriteEntry(leaf, 0, entry(mapped, MemAttr::WriteBack)),
        Step::Publish,
    ];
    assert_eq!(log[log.len() - 4..], expected);
    assert_eq!(world.vm(0).memory.account().pages.tagged, 2);
    assert_eq!(world.vm(0).memory.account().tag_faults, 0);
}

#[test]
fn a_release_unmaps_everywhere_then_cleans_tags_while_reserved_then_scrubs() {
    let mut world = world(true, Policy::Lazy);
    world.stg(0, page(0), 3).unwrap();
    world.stg(0, page(1), 4).unwrap();
    world.check();
    let (root, first) = (root(&mut world), frame_of(&mut world, page(0)));
    world.sim.take_log();
    world.reset(0);
    let expected = [
        vec![
            Step::WriteEntry(root, 1, 0),
            Step::Publish,
            Step::LoadVttbr(VMID, root),
            Step::TlbiAll(VMID),
            Step::Publish,
            Step::CleanTags(one(first)),
            Step::Synchronize,
            Step::CleanTags(one(first.plus(1))),
            Step::Synchronize,
        ],
        sweep(),
    ];
    assert_eq!(world.sim.take_log(), expected.concat());
    world.check();
}

#[test]
fn a_tag_fault_on_a_tagged_page_only_drops_the_stale_tlb_entry() {
    let mut world = world(true, Policy::Lazy);
    world.stg(0, page(0), 7).unwrap();
    let (before, root) = (world.vm(0).memory.account(), root(&mut world));
    world.sim.take_log();
    assert_eq!(tag(&mut world, page(0)), Ok(TagOutcome::Spurious));
    assert_eq!(world.sim.take_log(), invalidate(root, page(0)));
    assert_eq!(world.vm(0).memory.account(), before);
    world.ldg(0, page(0)).unwrap();
    world.check();
}

#[test]
fn an_access_fault_on_a_mapped_page_changes_nothing() {
    let mut world = world(true, Policy::Lazy);
    world.store(0, page(0), 9).unwrap();
    world.sim.take_log();
    assert_eq!(access(&mut world, page(0)), Ok(Access::Spurious));
    assert_eq!(world.sim.take_log(), []);
    world.load(0, page(0)).unwrap();
}

#[test]
fn a_tag_fault_on_a_page_that_is_gone_waits_for_the_translation_fault() {
    let mut world = world(true, Policy::Lazy);
    assert_eq!(tag(&mut world, page(0)), Ok(TagOutcome::Unmapped));
    world.load(0, page(1)).unwrap();
    assert_eq!(tag(&mut world, page(0)), Ok(TagOutcome::Unmapped));
    world.check();
}

#[test]
fn a_guest_without_mte_never_reaches_a_tag() {
    let mut world = world(false, Policy::Lazy);
    world.store(0, page(0), 9).unwrap();
    assert_eq!(tag(&mut world, page(0)), Err(MemError::NotMte));
    world.stg(0, page(0), 9).unwrap();
    world.ldg(0, page(0)).unwrap();
    let account = world.vm(0).memory.account();
    assert_eq!((account.pages.tagged, account.pages.no_tag_access), (0, 1));
    assert_eq!(world.host.account().reserved, 0);
    world.check();
}

#[test]
fn an_address_that_is_not_ram_is_refused() {
    let mut world = world(true, Policy::Lazy);
    let end = BASE + 4 * MIB;
    for address in [0, BASE - 1, end, 1 << 36, 1 << 48, u64::MAX] {
        let ipa = Ipa::new(address);
        assert_eq!(access(&mut world, ipa), Err(MemError::NotRam(ipa)));
        assert_eq!(tag(&mut world, ipa), Err(MemError::NotRam(ipa)));
        assert_eq!(world.vm(0).memory.account().resident, 0);
    }
    assert!(access(&mut world, Ipa::new(end - 1)).is_ok());
    assert!(access(&mut world, Ipa::new(BASE + 17)).is_ok());
}

#[test]
fn ram_that_cannot_be_is_refused_with_nothing_taken() {
    let board = board();
    let (mut host, mut sim) = (board.host(Policy::Lazy), board.sim());
    let before = host.account();
    for (base, bytes) in [
        (BASE, 0),
        (BASE + 1, MIB),
        (BASE, MIB + 1),
        ((1 << 36) - MIB, 2 * MIB),
        (u64::MAX - 0xfff, PAGE_SIZE),
    ] {
        let spec = GuestSpec {
            vm: VmId::new(0).unwrap(),
            vmid: VMID,
            ram_base: Ipa::new(base),
            ram_bytes: bytes,
            mte: true,
            policy: Policy::Lazy,
        };
        let refused = GuestMemory::new(&mut host, &mut sim, spec).map(drop);
        assert_eq!(
            refused,
            Err(MemError::BadRam {
                base: Ipa::new(base),
                bytes
            })
        );
    }
    assert_eq!(host.account(), before);
    let mut world = World::new(&board, Policy::Lazy);
    let refused = world.create(0, MIB, true, Policy::Static);
    assert_eq!(refused, Err(MemError::StaticMismatch));
}

#[test]
fn ram_need_not_start_or_end_on_2_mib() {
    let board = board();
    let (mut host, mut sim) = (board.host(Policy::Lazy), board.sim());
    let ram_base = Ipa::new(BASE + MIB);
    let spec = GuestSpec {
        vm: VmId::new(0).unwrap(),
        vmid: VMID,
        ram_base,
        ram_bytes: 2 * MIB + PAGE_SIZE,
        mte: true,
        policy: Policy::Lazy,
    };
    let mut guest = GuestMemory::new(&mut host, &mut sim, spec).unwrap();
    let mut frames = Vec::new();
    for offset in [0, MIB - PAGE_SIZE, MIB, 2 * MIB - PAGE_SIZE, 2 * MIB] {
        let ipa = Ipa::new(ram_base.get() + offset);
        frames.push(guest.populate(&mut host, &mut sim, ipa).unwrap());
    }
    frames.sort_unstable();
    frames.dedup();
    assert_eq!(frames.len(), 5);
    invariants::check(&host, [&guest], &mut sim).unwrap();
    guest.destroy(&mut host, &mut sim).unwrap();
    assert_eq!(host.account(), board.host(Policy::Lazy).account());
}

#[test]
fn a_refusal_for_want_of_frames_leaves_no_trace() {
    for policy in [Policy::Lazy, Policy::Eager] {
        // No table at all; one of the two that a first page needs; tables, and no chunk.
        for left in [0, 1, 2] {
            let mut world = world(true, policy);
            let taken = world.leave_tables(left);
            let before = world.figures(0);
            for _ in 0..3 {
                assert_eq!(access(&mut world, page(0)), Err(MemError::NoMemory));
                assert_eq!(world.sim.take_log(), [], "no step on the machine");
                let after = world.figures(0);
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
    let taken = world.leave_tables(0);
    let before = world.host.account();
    assert_eq!(
        world.create(0, MIB, true, Policy::Lazy),
        Err(MemError::NoMemory)
    );
    assert_eq!(world.host.account(), before);
    assert!(!taken.is_empty());
}

#[test]
fn tables_never_live_in_tag_storage_and_use_untaggable_dram_first() {
    let mut world = World::new(&board(), Policy::Lazy);
    let tables = world.leave_tables(0);
    let untaggable = FrameRange::new(storage().end().plus(63), 16);
    assert!(tables[..16].iter().all(|&table| untaggable.contains(table)));
    assert!(
        tables
            .iter()
            .all(|&table| world.host.blocks().storage_of(table).is_none())
    );
    assert_eq!(tables.len() as u64, 16 + 8 * MIB / PAGE_SIZE);
    world.host.free_table_page(tables[0]).unwrap();
    assert!(
        world.host.free_table_page(tables[0]).is_err(),
        "a double free is refused"
    );
}

#[test]
fn a_corrupt_table_is_reported_and_not_believed() {
    let mut world = world(true, Policy::Lazy);
    world.store(0, page(0), 1).unwrap();
    let table = leaf_table(&mut world);
    let raw = frame(BASE).addr().get() | 0x7d9;
    world.sim.write(table, 3, raw);
    assert!(matches!(access(&mut world, page(3)), Err(MemError::Corrupt(bad)) if bad.raw == raw));
    assert!(matches!(
        tag(&mut world, page(3)),
        Err(MemError::Corrupt(_))
    ));
    let World { sim, host, vms, .. } = &mut world;
    let guest = &vms[0].as_ref().unwrap().memory;
    assert!(matches!(
        invariants::check(host, [guest], sim),
        Err(Violation::Corrupt(_))
    ));
}

#[test]
fn the_invariants_see_a_page_at_a_wrong_frame_and_one_left_broken() {
    let mut world = world(true, Policy::Lazy);
    world.store(0, page(0), 1).unwrap();
    world.store(0, page(1), 1).unwrap();
    let (table, first) = (leaf_table(&mut world), frame_of(&mut world, page(0)));
    let mut with_entry = |index, raw| {
        let old = world.sim.read(table, index);
        world.sim.write(table, index, raw);
        let World { sim, host, vms, .. } = &mut world;
        let found = invariants::check(host, [&vms[0].as_ref().unwrap().memory], sim);
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
    let tags = entry(storage().start, MemAttr::NoTagAccess);
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
    let place = storage().start.addr();
    assert_eq!(world.sim.byte(place), 0xba, "low nibble: even granule");
    world.sim.set_byte(place, 0x21);
    let guest = world.vm(0).sim();
    assert_eq!(world.sim.ldg(guest, page(0)), Ok(1));
    assert_eq!(world.sim.ldg(guest, Ipa::new(BASE + 16)), Ok(2));
    assert_eq!(world.sim.ldg(guest, page(1)), Err(SimFault::Translation));
}

#[test]
fn a_static_machine_keeps_the_whole_carve_out_and_touches_none_of_it() {
    let mut world = world(true, Policy::Static);
    let carve_out = 8 * MIB / 32;
    let figures = |world: &World| {
        let account = world.host.account();
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
    let account = world.vm(0).memory.account();
    assert_eq!((account.reserved, account.reclaimed), (4 * MIB / 32, 0));
    world.destroy(0);
    world.check();
    assert_eq!(figures(&world), (carve_out, 0, 0, None));
}

#[test]
fn a_page_that_an_offline_block_covers_can_be_tagged_and_reserves_nothing() {
    // Firmware holds block 0 itself: it stays tag storage for ever.
    let firmware = range(storage().start.addr().get(), PAGE_SIZE);
    let board = board().occupy(Occupied {
        range: firmware,
        by: Occupant::Firmware,
    });
    for policy in [Policy::Lazy, Policy::Eager, Policy::Static] {
        let mut world = World::new(&board, policy);
        assert_eq!(world.host.blocks().state(BLOCK), BlockState::Offline);
        assert_eq!(world.host.account().offline, PAGE_SIZE);
        world.create(0, 2 * MIB, true, policy).unwrap();
        world.stg(0, page(0), 5).unwrap();
        let mapped = frame_of(&mut world, page(0));
        assert_eq!(world.host.blocks().block_of(mapped), Some(BLOCK));
        assert_eq!(world.host.blocks().state(BLOCK), BlockState::Offline);
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
    world.create(0, 8 * MIB, true, Policy::Lazy).unwrap();
    for number in (0..4).map(|chunk| chunk * 512) {
        let room = number < 3 * 512;
        assert_eq!(
            world.stg(0, page(number), 1).is_ok(),
            room,
            "the chunk with a hole"
        );
    }
    let tables = world.leave_tables(0);
    assert!(
        tables.contains(&frame(BASE + 2 * MIB + PAGE_SIZE)),
        "its rest serves tables"
    );
    assert!(!tables.contains(&frame(BASE + 2 * MIB)));
    assert_eq!(world.host.account().ledger.occupied, PAGE_SIZE);
    assert_eq!(
        world.host.account().offline,
        PAGE_SIZE,
        "the block that covers the hole"
    );
}

#[test]
fn figures_of_a_lazy_machine_are_exact() {
    let mut world = world(true, Policy::Lazy);
    let carve_out = 8 * MIB / 32;
    for number in 0..64 {
        world.store(0, page(number), 1).unwrap();
    }
    for number in [0, 1, 40] {
        world.stg(0, page(number), 2).unwrap();
    }
    let account = world.host.account();
    assert_eq!(account.carve_out, carve_out);
    assert_eq!(account.reserved, 2 * PAGE_SIZE);
    assert_eq!(account.reclaimed, carve_out - 2 * PAGE_SIZE);
    // 3 live pages need one block at least.
    assert_eq!(account.ideal, Some(carve_out - PAGE_SIZE));
    assert_eq!(account.efficiency_millionths(), Some(62 * 1_000_000 / 63));
    assert_eq!(account.untaggable, 64 * KIB);
    // One table of level 3 would be a 2 MiB leaf; the rest is metadata.
    assert_eq!(account.tables, 3 * PAGE_SIZE);
    let costs = PAGE_SIZE + account.metadata;
    assert_eq!(
        account.net_reclaimed,
        account.reclaimed as i64 - costs as i64
    );
    // 4 bytes a block, 2 a chunk, a bit a table frame, 16 for each 2 MiB of a VM.
    assert_eq!(account.metadata, 4 * 64 + 2 * 4 + 8 + 2 * 16);
    let vm = world.vm(0).memory.account();
    assert_eq!((vm.pages.tagged, vm.pages.no_tag_access), (3, 61));
    assert_eq!(
        (vm.tag_faults, vm.peak.tagged_pages, vm.peak.reserved),
        (3, 3, 2 * PAGE_SIZE)
    );
    world.reset(0);
    let vm = world.vm(0).memory.account();
    assert_eq!(
        (vm.reserved, vm.resident, vm.peak.reserved),
        (0, 0, 2 * PAGE_SIZE)
    );
    assert_eq!(world.host.account().reserved, 0);
}

#[test]
fn the_snapshot_is_of_the_last_moment_of_the_highest_reserved_bytes() {
    let mut world = world(true, Policy::Lazy);
    world.create(1, MIB, true, Policy::Lazy).unwrap();
    world.stg(0, page(0), 1).unwrap();
    world.stg(1, page(0), 1).unwrap();
    world.stg(1, page(1), 1).unwrap();
    let first = world.host.account();
    assert_eq!(world.host.highest(), first, "while it is now");
    world.reset(1);
    assert_eq!(world.host.highest(), first, "after it has passed");
    // The same height again, later and with other figures.
    world.stg(1, page(0), 1).unwrap();
    world.store(1, page(200), 1).unwrap();
    let second = world.host.account();
    assert_eq!(world.host.highest(), second);
    world.destroy(1);
    world.destroy(0);
    assert_eq!(world.host.highest(), second);
    assert_eq!(second.reserved, first.reserved);
}

#[test]
fn a_static_snapshot_stays_where_it_was_taken() {
    let mut world = world(true, Policy::Static);
    world.stg(0, page(0), 1).unwrap();
    world.host.snapshot_now();
    let taken = world.host.account();
    world.stg(0, page(600), 1).unwrap();
    world.destroy(0);
    assert_eq!(world.host.highest(), taken);
}

#[test]
fn a_reset_guest_finds_zeroes_and_the_machine_loses_nothing_over_many_lives() {
    let mut world = World::new(&board(), Policy::Lazy);
    let fresh = world.host.account();
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
    }
    world.check_only_core();
    assert_eq!(world.host.account(), fresh);
    assert_eq!(world.sim.broken_rules(), []);
}
