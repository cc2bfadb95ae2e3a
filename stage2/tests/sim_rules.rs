//! The simulated machine itself: each rule is there, and tells right from wrong.

#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod sim;

use sim::*;
use stage2::addr::{Frame, FrameRange, PAGE_SIZE, PhysAddr};
use stage2::descriptor::Vmid;
use stage2::fakes::{BrokenRule, Sabotage, SimFault, SimGuest, SimMachine, Step};
use stage2::ports::{FrameCopy, TableMemory, TagCache, Tlb};

fn rig() -> SimMachine {
    with_tables(machine())
}

/// A guest with page 0 mapped to frame 0, which is in the TLBs.
fn running() -> SimMachine {
    let mut sim = rig();
    map(&mut sim, 0, frame(0), NO_TAG_ACCESS);
    sim.store(GUEST, ipa(0), 7).unwrap();
    sim
}

#[test]
fn a_tlb_entry_stays_until_it_is_invalidated() {
    let mut sim = running();
    unmap(&mut sim, 0);
    sim.publish();
    assert_eq!(sim.load(GUEST, ipa(0)), Ok(7));
    sim.invalidate_page(VMID, ROOT, ipa(0));
    assert_eq!(sim.load(GUEST, ipa(0)), Err(SimFault::Translation));
    none(&sim);
}

#[test]
fn a_combined_entry_outlives_the_stage_2_one() {
    let mut sim = running();
    sim.sabotage(Sabotage::NoStage1Tlbi);
    break_page(&mut sim, 0);
    assert_eq!(sim.load(GUEST, ipa(0)), Ok(7));
}

#[test]
fn a_tlbi_drops_entries_of_its_vmid_alone() {
    let mut sim = running();
    unmap(&mut sim, 0);
    sim.invalidate_page(Vmid(2), ROOT, ipa(0));
    sim.invalidate_vm(Vmid(2), ROOT);
    assert_eq!(sim.tlb().count(), 2, "stage 2, and combined");
    sim.sabotage(Sabotage::WrongVmid);
    sim.invalidate_page(VMID, ROOT, ipa(0));
    sim.invalidate_vm(VMID, ROOT);
    assert_eq!(sim.tlb().count(), 2);
    sim.sabotage(None);
    sim.invalidate_vm(VMID, ROOT);
    assert_eq!(sim.tlb().count(), 0);
}

#[test]
fn a_page_tlbi_leaves_the_stage_2_entries_of_other_pages() {
    let mut sim = running();
    map(&mut sim, 1, frame(1), NO_TAG_ACCESS);
    sim.load(GUEST, ipa(1)).unwrap();
    sim.invalidate_page(VMID, ROOT, ipa(0));
    let left: Vec<_> = sim
        .tlb()
        .map(|(_, ipa, entry)| (ipa, entry.frame()))
        .collect();
    assert_eq!(left, [(ipa(1), frame(1))]);
}

#[test]
fn each_cpu_has_its_own_tlb_and_a_broadcast_reaches_all() {
    let mut sim = running();
    sim.run_on(1);
    assert_eq!(sim.tlb_of(1).count(), 0);
    sim.load(GUEST, ipa(0)).unwrap();
    assert_eq!((sim.tlb_of(0).count(), sim.tlb_of(1).count()), (2, 2));
    sim.invalidate_page(VMID, ROOT, ipa(0));
    assert_eq!(sim.tlb().count(), 0);
}

#[test]
fn a_local_tlbi_leaves_what_other_cpus_hold() {
    let mut sim = running();
    sim.run_on(1);
    sim.load(GUEST, ipa(0)).unwrap();
    sim.sabotage(Sabotage::LocalTlbi);
    sim.invalidate_page(VMID, ROOT, ipa(0));
    assert_eq!((sim.tlb_of(0).count(), sim.tlb_of(1).count()), (2, 0));
}

#[test]
fn a_tlbi_has_done_nothing_before_the_dsb() {
    let mut sim = running();
    sim.sabotage(Sabotage::NoDsbAfterTlbi);
    break_page(&mut sim, 0);
    assert_eq!(sim.load(GUEST, ipa(0)), Ok(7));
    sim.sabotage(None);
    sim.synchronize();
    assert_eq!(sim.load(GUEST, ipa(0)), Err(SimFault::Translation));
}

#[test]
fn a_block_maps_2_mib() {
    let mut sim = rig();
    map_block(&mut sim, 1, frame(512));
    for page in [0, 1, 300, 511] {
        sim.set_byte(frame(512 + page).addr(), page as u8);
        assert_eq!(sim.load(GUEST, ipa(512 + page)), Ok(page as u8));
    }
    assert_eq!(sim.load(GUEST, ipa(1024)), Err(SimFault::Translation));
    assert_eq!(sim.ldg(GUEST, ipa(512)), Err(SimFault::TagAccess));
    none(&sim);
}

#[test]
fn a_leaf_that_is_no_block_of_level_2_or_lacks_the_access_flag_faults() {
    for (table, index, raw) in [
        (ROOT, 1, frame(0).addr().get() | NO_TAG_ACCESS | BLOCK),
        (LEVEL_3, 5, frame(0).addr().get() | NO_TAG_ACCESS | BLOCK),
        (LEVEL_2, 3, frame(0).addr().get() | BLOCK),
        (LEVEL_3, 6, frame(0).addr().get() | PAGE),
        // Invalid, with bits of software.
        (LEVEL_3, 7, 0xffff_ffff_ffff_fffe),
        (LEVEL_2, 4, 0x1234_5678_9abc_def0),
    ] {
        let mut sim = rig();
        write(&mut sim, (table, index), raw);
        let page = match table {
            ROOT => index as u64 * 512 * 512,
            LEVEL_2 => index as u64 * 512,
            _ => index as u64,
        };
        assert_eq!(sim.load(GUEST, ipa(page)), Err(SimFault::Translation));
        none(&sim);
    }
}

#[test]
fn a_tlb_holds_a_block_whole_and_in_pieces_and_one_tlbi_drops_all_of_it() {
    let mut sim = rig();
    map_block(&mut sim, 1, frame(512));
    sim.load(GUEST, ipa(512 + 7)).unwrap();
    sim.load(GUEST, ipa(512 + 300)).unwrap();
    let mut held: Vec<_> = sim.tlb().map(|(_, ipa, e)| (ipa, e.frames())).collect();
    held.sort_by_key(|(ipa, frames)| (*ipa, frames.count));
    let piece = |page: u64| (ipa(512 + page), FrameRange::new(frame(512 + page), 1));
    let whole = (ipa(512), FrameRange::new(frame(512), 512));
    assert_eq!(held, [whole, piece(7), piece(300)]);
    sim.write(LEVEL_2, 1, 0);
    sim.invalidate_block(VMID, ROOT, ipa(512 + 90));
    assert_eq!(sim.tlb().count(), 0);
}

#[test]
fn stage_2_may_hold_a_block_in_pieces_of_which_one_tlbi_drops_all() {
    let pieces = can_happen(|seed| {
        let mut sim = rig().with_adversary(seed);
        map_block(&mut sim, 1, frame(512));
        sim.load(GUEST, ipa(512 + 7)).unwrap();
        let pieces = sim.tlb().all(|(_, _, entry)| entry.frames().count == 1);
        sim.write(LEVEL_2, 1, 0);
        sim.invalidate_block(VMID, ROOT, ipa(512 + 90));
        assert_eq!(sim.tlb().count(), 0);
        pieces
    });
    assert!(pieces);
}

#[test]
fn a_valid_entry_is_not_overwritten_by_another() {
    for (entry, raw) in [
        ((LEVEL_3, 0), frame(1).addr().get() | NO_TAG_ACCESS | PAGE),
        ((LEVEL_3, 0), frame(0).addr().get() | WRITE_BACK | PAGE),
        // A block over a table.
        (
            (LEVEL_2, 0),
            frame(512).addr().get() | NO_TAG_ACCESS | BLOCK,
        ),
    ] {
        let mut sim = rig();
        map(&mut sim, 0, frame(0), NO_TAG_ACCESS);
        write(&mut sim, entry, raw);
        only(&sim, BrokenRule::NoBreakBeforeMake(entry.0, entry.1));
    }
}

#[test]
fn an_entry_is_not_made_while_a_tlb_holds_another_in_its_place() {
    let mut sim = running();
    unmap(&mut sim, 0);
    map(&mut sim, 0, frame(0), NO_TAG_ACCESS);
    none(&sim);
    unmap(&mut sim, 0);
    map(&mut sim, 0, frame(1), NO_TAG_ACCESS);
    only(&sim, BrokenRule::MadeOverLiveTlbEntry(LEVEL_3, 0));
}

#[test]
fn a_block_is_not_made_while_a_tlb_holds_a_page_of_the_table_in_its_place() {
    let make = |sim: &mut SimMachine| map_block(sim, 0, frame(512));
    let mut sim = running();
    sim.write(LEVEL_2, 0, 0);
    make(&mut sim);
    only(&sim, BrokenRule::MadeOverLiveTlbEntry(LEVEL_2, 0));

    let mut sim = running();
    sim.write(LEVEL_2, 0, 0);
    sim.invalidate_vm(VMID, ROOT);
    make(&mut sim);
    none(&sim);
}

#[test]
fn a_table_is_not_made_while_a_tlb_holds_a_piece_of_the_block_in_its_place() {
    let split = |tlbi: bool| {
        let mut sim = rig();
        map_block(&mut sim, 1, frame(512));
        sim.load(GUEST, ipa(512 + 7)).unwrap();
        sim.write(LEVEL_2, 1, 0);
        if tlbi {
            sim.invalidate_block(VMID, ROOT, ipa(512));
        }
        let table = ROOT.plus(3);
        sim.clear(table);
        sim.publish();
        write(&mut sim, (LEVEL_2, 1), table.addr().get() | PAGE);
        sim
    };
    only(&split(false), BrokenRule::MadeOverLiveTlbEntry(LEVEL_2, 1));
    none(&split(true));
}

#[test]
fn an_entry_is_published_before_a_walker_meets_it() {
    let mut sim = rig();
    sim.sabotage(Sabotage::NoPublish);
    map(&mut sim, 4, frame(0), NO_TAG_ACCESS);
    sim.load(GUEST, ipa(4)).unwrap();
    only(&sim, BrokenRule::UnpublishedEntry(LEVEL_3, 4));
}

#[test]
fn a_table_is_linked_after_its_contents_are_published() {
    let mut sim = rig();
    sim.clear(ROOT.plus(3));
    let raw = ROOT.plus(3).addr().get() | PAGE;
    write(&mut sim, (LEVEL_2, 1), raw);
    only(&sim, BrokenRule::LinkedBeforePublished(ROOT.plus(3)));
}

#[test]
fn a_table_is_not_cleared_while_an_entry_that_came_from_it_is_cached() {
    for table in [ROOT, LEVEL_2, LEVEL_3] {
        let mut sim = running();
        sim.clear(table);
        only(&sim, BrokenRule::TableReusedWhileCached(table));
    }
}

type Change = fn(&mut SimMachine, Frame);

/// All that EL2 does to the data or tags of a frame, and what a move reads.
const CHANGES: [(&str, Change); 10] = [
    ("clear", |sim, frame| sim.clear(frame)),
    ("zero", |sim, frame| sim.zero(frame)),
    ("zero many", |sim, to| {
        let first = Frame::from_number(to.number() - 1);
        sim.zero_frames(FrameRange::new(first, 2));
    }),
    ("copy to", |sim, to| sim.copy(frame(100), to)),
    ("copy from", |sim, from| sim.copy(from, frame(100))),
    ("exchange one", |sim, one| sim.exchange(one, frame(100))),
    ("exchange other", |sim, other| {
        sim.exchange(frame(100), other)
    }),
    ("zero tags", |sim, frame| sim.zero_tags(frame)),
    ("copy tags to", |sim, to| sim.copy_tags(frame(100), to)),
    ("copy tags from", |sim, from| {
        sim.copy_tags(from, frame(100))
    }),
];

#[test]
fn a_frame_is_not_changed_while_a_tlb_maps_it() {
    for (what, change) in CHANGES {
        let mut sim = rig();
        map(&mut sim, 1, frame(1), NO_TAG_ACCESS);
        sim.load(GUEST, ipa(1)).unwrap();
        change(&mut sim, frame(1));
        assert_eq!(
            sim.broken_rules(),
            [BrokenRule::FrameChangedWhileMapped(frame(1))],
            "{what}"
        );
        let mut sim = rig();
        map(&mut sim, 1, frame(1), NO_TAG_ACCESS);
        sim.load(GUEST, ipa(1)).unwrap();
        break_page(&mut sim, 1);
        change(&mut sim, frame(1));
        assert_eq!(sim.broken_rules(), [], "{what}");
    }
}

#[test]
fn a_frame_inside_a_block_is_mapped_too() {
    let mut sim = rig();
    map_block(&mut sim, 1, frame(512));
    sim.load(GUEST, ipa(512)).unwrap();
    sim.zero(frame(512 + 400));
    only(&sim, BrokenRule::FrameChangedWhileMapped(frame(512 + 400)));
}

#[test]
fn a_page_is_mapped_after_its_new_contents_are_visible() {
    for (what, change) in CHANGES.into_iter().skip(1) {
        let to = if what.ends_with("from") {
            frame(100)
        } else {
            frame(1)
        };
        for wait in [false, true] {
            let mut sim = rig();
            change(&mut sim, frame(1));
            if wait {
                sim.synchronize();
            }
            // Code is another matter.
            sim.write(LEVEL_3, 0, to.addr().get() | NO_TAG_ACCESS | PAGE);
            let seen = sim.broken_rules();
            let late = seen.contains(&BrokenRule::MappedBeforeVisible(to));
            assert_eq!(late, !wait, "{what}: {seen:?}");
        }
    }
}

#[test]
fn a_block_is_mapped_after_all_of_it_is_visible() {
    let mut sim = rig();
    sim.zero_frames(FrameRange::new(frame(512 + 511), 1));
    map_block(&mut sim, 1, frame(512));
    let last = frame(512 + 511);
    let broken = [
        BrokenRule::MappedBeforeVisible(last),
        BrokenRule::StaleCodeMapped(last),
    ];
    assert_eq!(sim.broken_rules(), broken);
}

#[test]
fn what_was_written_is_mapped_after_instruction_fetches_see_it() {
    let changes: [(Change, &[u64]); 3] = [
        (|sim, to| sim.zero(to), &[1]),
        (|sim, to| sim.copy(frame(100), to), &[1]),
        (|sim, one| sim.exchange(one, frame(100)), &[1, 100]),
    ];
    for (change, stale) in changes {
        for &number in stale {
            let mut sim = rig();
            change(&mut sim, frame(1));
            sim.synchronize();
            map(&mut sim, 0, frame(number), NO_TAG_ACCESS);
            only(&sim, BrokenRule::StaleCodeMapped(frame(number)));

            let mut sim = rig();
            change(&mut sim, frame(1));
            sim.sync_code(frame(number).into());
            map(&mut sim, 0, frame(number), NO_TAG_ACCESS);
            none(&sim);
        }
    }
    let mut sim = rig();
    sim.copy(frame(100), frame(512 + 3));
    sim.synchronize();
    map_block(&mut sim, 1, frame(512));
    only(&sim, BrokenRule::StaleCodeMapped(frame(512 + 3)));
}

#[test]
fn an_image_is_copied_byte_for_byte_over_the_bounds_of_frames() {
    let mut sim = rig();
    let at = |number, offset| PhysAddr::new(frame(number).addr().get() + offset);
    for number in 1..4 {
        sim.fill(frame(number), 0x77);
    }
    let bytes: Vec<u8> = (0..5000).map(|index| index as u8).collect();
    for (offset, &byte) in (0x74..).zip(&bytes) {
        sim.set_byte(at(100, offset), byte);
    }
    sim.copy_image(at(100, 0x74), at(1, 4090), 5000);
    for index in 0..5000 {
        assert_eq!(sim.byte(at(1, 4090 + index)), bytes[index as usize]);
    }
    let around = [at(1, 4089), at(1, 4090 + 5000)].map(|at| sim.byte(at));
    assert_eq!(around, [0x77, 0x77]);
    sim.sync_code(FrameRange::new(frame(1), 2));
    sim.synchronize();
    (1..3).for_each(|number| map(&mut sim, number, frame(number as u64), NO_TAG_ACCESS));
    none(&sim);
    map(&mut sim, 3, frame(3), NO_TAG_ACCESS);
    only(&sim, BrokenRule::StaleCodeMapped(frame(3)));
}

#[test]
fn tag_storage_and_memory_without_tags_have_none() {
    let untaggable = Frame::from_number(0x7000_0000 / PAGE_SIZE);
    for place in [storage(), untaggable] {
        let changes: [Change; 3] = [
            |sim, place| sim.zero_tags(place),
            |sim, place| sim.copy_tags(place, frame(1)),
            |sim, place| sim.copy_tags(frame(1), place),
        ];
        for change in changes {
            let mut sim = rig();
            change(&mut sim, place);
            only(&sim, BrokenRule::TagsOfUntaggable(place));
        }
        let accesses: [fn(&mut SimMachine); 2] = [
            |sim| assert_eq!(sim.ldg(GUEST, ipa(0)), Ok(0)),
            |sim| sim.stg(GUEST, ipa(0), 3).unwrap(),
        ];
        for access in accesses {
            let mut sim = rig();
            map(&mut sim, 0, place, WRITE_BACK);
            access(&mut sim);
            only(&sim, BrokenRule::TagsOfUntaggable(place));
        }
    }
}

#[test]
fn a_guest_without_ata_reads_tags_as_0_and_writes_none() {
    let mut sim = rig();
    map(&mut sim, 0, storage(), WRITE_BACK);
    let guest = SimGuest {
        ata: false,
        ..GUEST
    };
    let before = sim.byte(storage().addr());
    assert_eq!(sim.ldg(guest, ipa(0)), Ok(0));
    sim.stg(guest, ipa(0), 5).unwrap();
    assert_eq!(sim.byte(storage().addr()), before);
    none(&sim);
}

#[test]
fn a_page_in_tag_storage_holds_the_tags_of_others_as_data() {
    let mut sim = rig();
    map(&mut sim, 0, storage(), NO_TAG_ACCESS);
    map(&mut sim, 1, frame(0), WRITE_BACK);
    sim.stg(GUEST, ipa(1), 0xa).unwrap();
    assert_eq!(sim.load(GUEST, ipa(0)).unwrap() & 0xf, 0xa);
    sim.store(GUEST, ipa(0), 0x5c).unwrap();
    assert_eq!(sim.ldg(GUEST, ipa(1)), Ok(0xc));
}

/// Fills a frame's data and tags so that each place differs from its neighbours.
fn sow(sim: &mut SimMachine, to: Frame, seed: u64) {
    for offset in 0..PAGE_SIZE {
        let pa = PhysAddr::new(to.addr().get() + offset);
        sim.set_byte(pa, (offset * 7 + offset / 256 + seed) as u8);
    }
    map(sim, 511, to, WRITE_BACK);
    for number in 0..256 {
        let at = stage2::addr::Ipa::new(511 * PAGE_SIZE + number * 16);
        sim.stg(GUEST, at, (number + seed) as u8 & 0xf).unwrap();
    }
    break_page(sim, 511);
}

fn grown(sim: &SimMachine, at: Frame, seed: u64) -> bool {
    (0..PAGE_SIZE).all(|offset| {
        let pa = PhysAddr::new(at.addr().get() + offset);
        sim.byte(pa) == (offset * 7 + offset / 256 + seed) as u8
    })
}

fn tagged(sim: &SimMachine, at: Frame, seed: u64) -> bool {
    (0..256).all(|number| sim.tag(granule(at, number)) == (number + seed) as u8 & 0xf)
}

#[test]
fn data_and_tags_are_copied_and_zeroed_apart() {
    let sown = || {
        let mut sim = rig();
        sow(&mut sim, frame(1), 1);
        sow(&mut sim, frame(2), 2);
        sim
    };
    let state = |sim: &SimMachine| {
        [1, 2].map(|n| {
            let seed_of = |is: &dyn Fn(u64) -> bool| (1..3).find(|&seed| is(seed)).unwrap_or(0);
            let data = seed_of(&|seed| grown(sim, frame(n), seed));
            (data, seed_of(&|seed| tagged(sim, frame(n), seed)))
        })
    };
    let changes: [(Change, [(u64, u64); 2]); 6] = [
        (|_, _| (), [(1, 1), (2, 2)]),
        (|sim, to| sim.copy(frame(1), to), [(1, 1), (1, 2)]),
        (|sim, to| sim.exchange(frame(1), to), [(2, 1), (1, 2)]),
        (|sim, to| sim.copy_tags(frame(1), to), [(1, 1), (2, 1)]),
        (|sim, to| sim.zero(to), [(1, 1), (0, 2)]),
        (|sim, to| sim.zero_tags(to), [(1, 1), (2, 0)]),
    ];
    for (number, (change, expected)) in changes.into_iter().enumerate() {
        let mut sim = sown();
        change(&mut sim, frame(2));
        assert_eq!(state(&sim), expected, "change {number}");
        none(&sim);
    }
    let mut sim = sown();
    assert!(!sim.tags_are_zero(frame(2)));
    sim.zero_tags(frame(2));
    assert!(sim.tags_are_zero(frame(2)));
}

#[test]
fn the_log_has_the_steps_of_the_ports() {
    let mut sim = rig();
    sim.exchange(frame(1), frame(2));
    sim.copy_tags(frame(1), frame(2));
    sim.sync_code(frame(1).into());
    sim.zero_frames(FrameRange::new(frame(1), 2));
    sim.invalidate_block(VMID, ROOT, ipa(9));
    assert_eq!(
        sim.take_log(),
        [
            Step::Exchange(frame(1), frame(2)),
            Step::CopyTags(frame(1), frame(2)),
            Step::SyncCode(frame(1).into()),
            Step::ZeroFrame(frame(1)),
            Step::ZeroFrame(frame(2)),
            Step::Publish,
            Step::LoadVttbr(VMID, ROOT),
            Step::TlbiIpa(VMID, ipa(9)),
            Step::Publish,
            Step::TlbiStage1(VMID),
            Step::Publish,
        ]
    );
}
