//! Caches of the simulated machine: what a dirty or a stale line does when maintenance is left out,
//! and that nothing of it happens when it is not.

#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod sim;

use sim::*;
use stage2::addr::{Frame, FrameRange};
use stage2::fakes::{BrokenRule, Sabotage, SimMachine};
use stage2::ports::{FrameCopy, TagCache};

fn one(frame: Frame) -> FrameRange {
    FrameRange::new(frame, 1)
}

/// Frame 0 is a page with tag access.
fn rig(seed: u64) -> SimMachine {
    let mut sim = with_tables(machine()).with_adversary(seed);
    map(&mut sim, 0, frame(0), WRITE_BACK);
    sim
}

fn clean_data(sim: &mut SimMachine) {
    sim.clean_invalidate_data(one(storage()));
    sim.synchronize();
}

fn clean_tags(sim: &mut SimMachine) {
    sim.clean_invalidate_tags(one(frame(0)));
    sim.synchronize();
}

#[test]
fn without_an_adversary_each_write_is_in_memory_at_once() {
    let mut sim = machine();
    sim.zero(storage());
    assert!(sim.frame_is(storage(), 0));
    sim.set_byte(storage().addr(), 0x21);
    assert_eq!(
        (sim.tag(granule(frame(0), 0)), sim.tag(granule(frame(0), 1))),
        (1, 2)
    );
    sim.fill(storage(), 0x33);
    assert_eq!(sim.tag(granule(frame(0), 77)), 3);
}

#[test]
fn data_is_in_memory_after_clean_and_dsb_and_maybe_not_before() {
    let cached = can_happen(|seed| {
        let mut sim = rig(seed);
        sim.zero(storage());
        let cached = !sim.frame_is(storage(), 0);
        assert_eq!(sim.byte(storage().addr()), 0, "CPUs see it");
        clean_data(&mut sim);
        assert!(sim.frame_is(storage(), 0));
        none(&sim);
        cached
    });
    assert!(cached);
}

#[test]
fn maintenance_may_not_be_done_before_the_dsb() {
    for how in [Sabotage::NoSynchronize, Sabotage::NoDataClean] {
        assert!(can_happen(|seed| {
            let mut sim = rig(seed);
            sim.sabotage(how);
            sim.zero(storage());
            clean_data(&mut sim);
            !sim.frame_is(storage(), 0)
        }));
    }
}

#[test]
fn a_dirty_line_is_written_back_some_time_by_itself() {
    assert!(can_happen(|seed| {
        let mut sim = rig(seed);
        sim.zero(storage());
        idle(&mut sim);
        sim.frame_is(storage(), 0)
    }));
}

/// A block was zeroed as data; then it holds tags.
fn reserve(seed: u64, clean: bool) -> SimMachine {
    let mut sim = rig(seed);
    sim.zero(storage());
    if clean {
        clean_data(&mut sim);
    }
    sim.stg(GUEST, ipa(0), 9).unwrap();
    clean_tags(&mut sim);
    idle(&mut sim);
    sim
}

#[test]
fn a_late_line_of_data_destroys_tags() {
    assert!(can_happen(|seed| {
        let mut sim = reserve(seed, false);
        sim.ldg(GUEST, ipa(0)).unwrap() == 0
            && sim.broken_rules() == [BrokenRule::DataOverwroteTags(storage())]
    }));
    for seed in 0..SEEDS {
        let mut sim = reserve(seed, true);
        assert_eq!(sim.ldg(GUEST, ipa(0)), Ok(9));
        none(&sim);
    }
}

/// A guest used tags; then the block holds somebody's data.
fn release(seed: u64, clean: bool) -> SimMachine {
    let mut sim = rig(seed);
    sim.stg(GUEST, ipa(0), 9).unwrap();
    break_page(&mut sim, 0);
    if clean {
        clean_tags(&mut sim);
    }
    sim.fill(storage(), 0xca);
    idle(&mut sim);
    sim
}

#[test]
fn a_late_line_of_tags_destroys_data() {
    assert!(can_happen(|seed| {
        let sim = release(seed, false);
        !sim.frame_is(storage(), 0xca)
            && sim.broken_rules() == [BrokenRule::TagsOverwroteData(frame(0))]
    }));
    for seed in 0..SEEDS {
        let sim = release(seed, true);
        assert!(sim.frame_is(storage(), 0xca));
        none(&sim);
    }
}

#[test]
fn tags_read_through_a_stale_clean_line_are_old() {
    let read = |seed, clean: bool| {
        let mut sim = rig(seed);
        sim.fill(storage(), 0x11);
        assert_eq!(sim.ldg(GUEST, ipa(0)), Ok(1));
        idle(&mut sim);
        sim.zero(storage());
        clean_data(&mut sim);
        if clean {
            clean_tags(&mut sim);
        }
        sim.ldg(GUEST, ipa(0)).unwrap()
    };
    assert!(can_happen(|seed| read(seed, false) == 1));
    assert!((0..SEEDS).all(|seed| read(seed, true) == 0));
}

#[test]
fn data_read_through_a_stale_clean_line_is_old() {
    let read = |seed, clean: bool| {
        let mut sim = rig(seed);
        sim.fill(storage(), 0);
        sim.stg(GUEST, ipa(0), 5).unwrap();
        sim.land_stores();
        idle(&mut sim);
        clean_tags(&mut sim);
        if clean {
            clean_data(&mut sim);
        }
        sim.byte(storage().addr())
    };
    assert!(can_happen(|seed| read(seed, false) == 0));
    assert!((0..SEEDS).all(|seed| read(seed, true) == 5));
}

/// Without a `DSB` between the two, tags can be fetched again before the data is in memory.
#[test]
fn data_and_tag_lines_are_maintained_in_any_order_without_a_dsb_between() {
    let read = |seed, between: bool| {
        let mut sim = rig(seed);
        sim.fill(storage(), 0x11);
        sim.stg(GUEST, ipa(0), 1).unwrap();
        sim.land_stores();
        clean_tags(&mut sim);
        sim.zero(storage());
        sim.clean_invalidate_data(one(storage()));
        if between {
            sim.synchronize();
        }
        sim.clean_invalidate_tags(one(frame(0)));
        sim.synchronize();
        sim.ldg(GUEST, ipa(0)).unwrap()
    };
    let tries = || 0..5 * SEEDS;
    assert!(tries().any(|seed| read(seed, false) == 1));
    assert!(tries().all(|seed| read(seed, true) == 0));
}

#[test]
fn a_whole_line_that_is_written_needs_no_old_contents() {
    for seed in 0..SEEDS {
        let mut sim = rig(seed);
        sim.stg(GUEST, ipa(0), 5).unwrap();
        idle(&mut sim);
        break_page(&mut sim, 0);
        clean_tags(&mut sim);
        // What speculation fetched of the block, it fetched before the tags were in memory.
        sim.zero(storage());
        clean_data(&mut sim);
        assert!(sim.frame_is(storage(), 0));
        none(&sim);
    }
}

#[test]
fn the_same_seed_does_the_same() {
    let run = |seed| {
        let mut sim = release(seed, false);
        (
            sim.broken_rules().to_vec(),
            sim.take_log(),
            sim.frame_is(storage(), 0xca),
        )
    };
    assert!((0..SEEDS).all(|seed| run(seed) == run(seed)));
    assert!(can_happen(|seed| run(seed) != run(0)));
}
