//! Stores under way, and CPUs that translate ahead, on the simulated machine.

#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod sim;

use sim::*;
use stage2::addr::FrameRange;
use stage2::fakes::{BrokenRule, Sabotage, SimFault, SimMachine, Step};
use stage2::ports::{FrameCopy, TableMemory, TagCache, Tlb};

const OLD: u8 = 1;
const NEW: u8 = 2;

/// CPU 1 stores to page 0, in frame 0, and the store waits; the hypervisor is on CPU 0.
fn storing(mut sim: SimMachine) -> SimMachine {
    map(&mut sim, 0, frame(0), WRITE_BACK);
    sim.run_on(1);
    sim.store(GUEST, ipa(0), OLD).unwrap();
    sim.land_stores();
    sim.hold_next_store();
    sim.store(GUEST, ipa(0), NEW).unwrap();
    sim.run_on(0);
    sim
}

/// The page moves to frame 1. What the guest reads there.
fn move_page(sim: &mut SimMachine) -> u8 {
    break_page(sim, 0);
    sim.copy(frame(0), frame(1));
    sim.sync_code(frame(1).into());
    map(sim, 0, frame(1), WRITE_BACK);
    sim.land_stores();
    sim.load(GUEST, ipa(0)).unwrap()
}

#[test]
fn a_held_store_is_not_in_memory_and_its_guest_sees_it() {
    let mut sim = storing(with_tables(machine()));
    assert_eq!(sim.byte(frame(0).addr()), OLD);
    assert_eq!(sim.load(GUEST, ipa(0)), Ok(NEW));
    assert_eq!(sim.byte(frame(0).addr()), NEW);
}

#[test]
fn a_store_lands_at_the_dsb_after_the_tlbi_of_its_page() {
    let mut sim = storing(with_tables(machine()));
    sim.publish();
    sim.synchronize();
    sim.invalidate_vm(stage2::descriptor::Vmid(2), ROOT);
    assert_eq!(sim.byte(frame(0).addr()), OLD);
    break_page(&mut sim, 0);
    assert_eq!(sim.byte(frame(0).addr()), NEW);

    let mut sim = storing(with_tables(machine()));
    sim.invalidate_vm(VMID, ROOT);
    assert_eq!(sim.byte(frame(0).addr()), NEW);
}

#[test]
fn a_page_that_moves_takes_a_store_under_way_along() {
    let mut sim = storing(with_tables(machine()));
    assert_eq!(move_page(&mut sim), NEW);
    none(&sim);
}

#[test]
fn a_move_that_does_not_wait_loses_a_store() {
    for how in [
        Sabotage::NoTlbi,
        Sabotage::LocalTlbi,
        Sabotage::NoStage1Tlbi,
        Sabotage::WrongVmid,
        Sabotage::NoDsbAfterTlbi,
    ] {
        let mut sim = storing(with_tables(machine()));
        sim.sabotage(how);
        assert_eq!(move_page(&mut sim), OLD, "{how:?}");
        let rule = BrokenRule::FrameChangedUnderStore(frame(0));
        assert!(sim.broken_rules().contains(&rule), "{how:?}");
    }
}

#[test]
fn with_the_erratum_only_the_repeat_waits_for_a_store() {
    let erratum = || storing(with_tables(machine()).with_erratum());
    let mut sim = erratum();
    sim.sabotage(Sabotage::NoRepeat);
    assert_eq!(move_page(&mut sim), OLD);
    only(&sim, BrokenRule::FrameChangedUnderStore(frame(0)));

    let mut sim = erratum();
    sim.take_log();
    assert_eq!(move_page(&mut sim), NEW);
    none(&sim);
    let log = sim.take_log();
    let tlbis = log.iter().position(|step| *step == Step::TlbiStage1(VMID));
    assert_eq!(
        log[tlbis.unwrap()..][..4],
        [
            Step::TlbiStage1(VMID),
            Step::Publish,
            Step::TlbiRepeat,
            Step::Publish
        ]
    );
}

#[test]
fn a_repeat_without_a_dsb_before_it_waits_for_nothing() {
    let mut sim = storing(with_tables(machine()).with_erratum());
    sim.sabotage(Sabotage::NoDsbAfterTlbi);
    break_page(&mut sim, 0);
    sim.sabotage(None);
    sim.synchronize();
    assert_eq!(sim.byte(frame(0).addr()), OLD);
}

#[test]
fn a_machine_without_the_erratum_needs_no_repeat() {
    let mut sim = storing(with_tables(machine()));
    sim.take_log();
    move_page(&mut sim);
    sim.invalidate_vm(VMID, ROOT);
    assert!(!sim.take_log().contains(&Step::TlbiRepeat));
}

#[test]
fn el2_sees_the_stores_of_its_own_cpu() {
    let mut sim = storing(with_tables(machine()));
    sim.run_on(1);
    sim.sabotage(Sabotage::NoStage1Tlbi);
    break_page(&mut sim, 0);
    sim.copy(frame(0), frame(1));
    assert_eq!(sim.byte(frame(1).addr()), NEW);
}

#[test]
fn a_store_of_a_tag_is_held_as_well() {
    let mut sim = with_tables(machine());
    map(&mut sim, 0, frame(0), WRITE_BACK);
    sim.stg(GUEST, ipa(0), OLD).unwrap();
    sim.run_on(1);
    sim.hold_next_store();
    sim.stg(GUEST, ipa(0), NEW).unwrap();
    sim.run_on(0);
    assert_eq!(sim.tag(granule(frame(0), 0)), OLD);
    break_page(&mut sim, 0);
    sim.copy_tags(frame(0), frame(1));
    assert_eq!(sim.tag(granule(frame(1), 0)), NEW);
    none(&sim);
}

#[test]
fn the_adversary_holds_stores_and_lands_them_when_it_likes() {
    let run = |seed| {
        let mut sim = with_tables(machine()).with_adversary(seed);
        map(&mut sim, 0, frame(0), WRITE_BACK);
        sim.fill(frame(0), OLD);
        sim.store(GUEST, ipa(0), NEW).unwrap();
        let held = sim.byte(frame(0).addr()) == OLD;
        idle(&mut sim);
        (held, sim.byte(frame(0).addr()) == NEW)
    };
    assert!(can_happen(|seed| run(seed) == (true, true)));
    assert!(can_happen(|seed| run(seed) == (false, true)));
}

#[test]
fn no_adversary_gets_at_a_page_that_moves_in_order() {
    for seed in 0..SEEDS {
        for erratum in [false, true] {
            let mut sim = with_tables(machine()).with_adversary(seed);
            if erratum {
                sim = sim.with_erratum();
            }
            let mut sim = storing(sim);
            assert_eq!(move_page(&mut sim), NEW);
            none(&sim);
        }
    }
}

#[test]
fn a_cpu_translates_ahead_what_its_guest_uses() {
    let run = |seed| {
        let mut sim = with_tables(machine()).with_adversary(seed);
        map(&mut sim, 0, frame(0), NO_TAG_ACCESS);
        sim.load(GUEST, ipa(0)).unwrap();
        sim.invalidate_page(VMID, ROOT, ipa(0));
        idle(&mut sim);
        sim
    };
    assert!(can_happen(|seed| run(seed).tlb().count() > 0));
    // A VM whose entries are all dropped runs no more.
    for seed in 0..SEEDS {
        let mut sim = run(seed);
        sim.invalidate_vm(VMID, ROOT);
        idle(&mut sim);
        assert_eq!(sim.tlb().count(), 0);
    }
}

/// A walker may see an entry as it was until a `DSB`: then the TLBI comes too early.
#[test]
fn an_entry_that_was_broken_and_not_published_is_translated_ahead_again() {
    let break_late = |seed, how: Option<Sabotage>| {
        let mut sim = with_tables(machine()).with_adversary(seed);
        map(&mut sim, 0, frame(0), NO_TAG_ACCESS);
        sim.load(GUEST, ipa(0)).unwrap();
        sim.sabotage(how);
        break_page(&mut sim, 0);
        sim.load(GUEST, ipa(0))
    };
    let early = Some(Sabotage::NoDsbBeforeTlbi);
    assert!((0..5 * SEEDS).any(|seed| break_late(seed, early).is_ok()));
    let fault = Err(SimFault::Translation);
    assert!((0..5 * SEEDS).all(|seed| break_late(seed, None) == fault));
}

#[test]
fn a_vm_that_ran_on_two_cpus_is_dropped_on_both() {
    let mut sim = with_tables(machine());
    map(&mut sim, 0, frame(0), NO_TAG_ACCESS);
    for cpu in [0, 1, 5] {
        sim.run_on(cpu);
        sim.load(GUEST, ipa(0)).unwrap();
    }
    sim.invalidate_vm(VMID, ROOT);
    assert_eq!(sim.tlb().count(), 0);
    sim.write(LEVEL_3, 0, 0);
    sim.zero_frames(FrameRange::new(frame(0), 1));
    none(&sim);
}
