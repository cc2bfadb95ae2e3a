//! The lookup finds the page, or gives up: in all cases after two translations at most.

use proptest::prelude::*;

use super::super::inject::spsr;
use super::*;

const FAILED: Par = Par(1);
const FOUND: Par = Par(0x0000_0000_4012_3000 | 1 << 11);

fn fault(pstate: u64, ats1a: bool) -> TagFault {
    TagFault {
        elr: 0x1000,
        far: 0x0500_0000_0000_2000,
        pstate,
        ats1a,
    }
}

#[test]
fn the_form_follows_the_level_unless_there_is_one_without_permissions() {
    let table = [
        (spsr::EL0, true, AtForm::S1E1A, AtForm::S1E1R),
        (spsr::EL1H, true, AtForm::S1E1A, AtForm::S1E0R),
        (spsr::EL0, false, AtForm::S1E0R, AtForm::S1E1R),
        (spsr::EL1H, false, AtForm::S1E1R, AtForm::S1E0R),
        (spsr::EL1T, false, AtForm::S1E1R, AtForm::S1E0R),
        (spsr::AARCH32, false, AtForm::S1E0R, AtForm::S1E1R),
    ];
    for (pstate, ats1a, first, other) in table {
        let fault = fault(pstate, ats1a);
        assert_eq!((fault.first_form(), fault.other_form()), (first, other));
    }
}

/// PAR_EL1: F is bit 0, PA[51:12] is bits 51:12, attributes and shareability around it.
#[test]
fn the_page_is_read_from_par() {
    assert_eq!(Par(0xff00_0000_4012_3b80).page(), Some(0x4012_3000));
    assert_eq!(Par(0xfff0_0000_0000_0ffe).page(), Some(0));
    assert_eq!(
        Par(0x000f_ffff_ffff_f000).page(),
        Some(0x000f_ffff_ffff_f000)
    );
    assert_eq!(Par(0x4012_3b81).page(), None);
}

#[test]
fn a_page_that_is_found_is_the_answer() {
    let mut guard = LoopGuard::default();
    let fault = fault(spsr::EL0, true);
    assert_eq!(guard.resolve(&fault, |_| FOUND), Lookup::Page(0x4012_3000));
    assert_eq!(guard, LoopGuard::default());
}

#[test]
fn a_first_failure_enters_the_guest_again() {
    let mut guard = LoopGuard::default();
    let mut lookups = 0;
    let lookup = guard.resolve(&fault(spsr::EL1H, false), |_| {
        lookups += 1;
        FAILED
    });
    assert_eq!((lookup, lookups), (Lookup::Reenter, 1));
}

#[test]
fn a_second_failure_at_the_same_place_tries_the_other_level() {
    let mut guard = LoopGuard::default();
    let fault = fault(spsr::EL1H, false);
    guard.resolve(&fault, |_| FAILED);
    let by_el0 = |form| if form == AtForm::S1E0R { FOUND } else { FAILED };
    assert_eq!(guard.resolve(&fault, by_el0), Lookup::Page(0x4012_3000));
}

#[test]
fn what_no_form_finds_is_reported_and_forgotten() {
    let mut guard = LoopGuard::default();
    let fault = fault(spsr::EL0, true);
    assert_eq!(guard.resolve(&fault, |_| FAILED), Lookup::Reenter);
    assert_eq!(guard.resolve(&fault, |_| FAILED), Lookup::Report);
    assert_eq!(guard, LoopGuard::default());
}

#[test]
fn another_place_or_a_success_starts_afresh() {
    let mut guard = LoopGuard::default();
    let here = fault(spsr::EL0, false);
    for there in [
        TagFault {
            elr: 0x1004,
            ..here
        },
        TagFault {
            far: 0x3000,
            ..here
        },
    ] {
        assert_eq!(guard.resolve(&here, |_| FAILED), Lookup::Reenter);
        assert_eq!(guard.resolve(&there, |_| FAILED), Lookup::Reenter);
        assert_eq!(guard.resolve(&here, |_| FAILED), Lookup::Reenter);
        assert_eq!(guard.resolve(&here, |_| FOUND), Lookup::Page(0x4012_3000));
    }
}

proptest! {
    #[test]
    fn a_place_that_stays_lost_is_reported_at_the_second_visit(
        elr: u64, far: u64, pstate: u64, ats1a: bool,
    ) {
        let fault = TagFault { elr, far, pstate, ats1a };
        let mut guard = LoopGuard::default();
        let mut lookups = 0;
        for expected in [Lookup::Reenter, Lookup::Report, Lookup::Reenter, Lookup::Report] {
            let lookup = guard.resolve(&fault, |_| { lookups += 1; FAILED });
            prop_assert_eq!(lookup, expected);
        }
        prop_assert_eq!(lookups, 6);
    }
}
