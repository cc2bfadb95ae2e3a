//! Each hidden feature is denied, and none is forgotten.

use super::super::controls::controls;
use super::super::fixtures::{everything, neoverse_n2, qemu_max};
use super::super::id_regs::{GuestShape, rules_of};
use super::*;

/// The 4-bit fields that DDI 0487 (M.a) allocates, as a mask of registers of CRm 4 to 7.
const ALLOCATED: &[(IdReg, u64)] = &[
    (IdReg::PFR0, 0xffff_ffff_ffff_ffff),
    (IdReg::PFR1, 0xffff_ffff_ff0f_ffff),
    (IdReg::PFR2, 0x0000_ffff_ffff_ffff),
    (IdReg::DFR0, 0xffff_ffff_ffff_ffff),
    (IdReg::DFR1, 0xffff_ffff_ffff_ffff),
    (IdReg::ISAR0, 0xffff_ffff_ffff_fff0),
    (IdReg::ISAR1, 0xffff_ffff_ffff_ffff),
    (IdReg::ISAR2, 0xffff_ffff_ffff_ffff),
    (IdReg::ISAR3, 0x0000_ffff_ffff_ffff),
    (IdReg::MMFR0, 0xff00_ffff_ffff_ffff),
    (IdReg::MMFR1, 0xffff_ffff_ffff_ffff),
    (IdReg::MMFR2, 0xffff_0fff_ffff_ffff),
    (IdReg::MMFR3, 0xfff0_ffff_ffff_ffff),
    (IdReg::MMFR4, 0xffff_ffff_ffff_ffff),
];

fn fields(mask: u64) -> impl Iterator<Item = u32> {
    (0..64)
        .step_by(4)
        .filter(move |shift| mask >> shift & 0xf != 0)
}

#[test]
fn every_field_of_the_architecture_is_either_shown_or_hidden() {
    for &(id, mask) in ALLOCATED {
        for shift in fields(mask) {
            let shown = rules_of(id).iter().filter(|f| f.shift == shift).count();
            let hidden = HIDDEN.iter().filter(|h| h.id == id && h.shift == shift);
            assert_eq!(shown + hidden.count(), 1, "{id:?} bit {shift}");
        }
    }
}

#[test]
fn nothing_is_listed_that_is_not_a_field() {
    for hidden in HIDDEN {
        let mask = ALLOCATED.iter().find(|(id, _)| *id == hidden.id);
        let mask = mask.map_or(0, |&(_, mask)| mask);
        assert_eq!(mask >> hidden.shift & 0xf, 0xf, "{}", hidden.name);
        assert!(!hidden.denials.is_empty(), "{}", hidden.name);
    }
}

#[test]
fn a_hidden_feature_of_any_level_is_denied_and_not_seen() {
    for hidden in HIDDEN {
        for level in 1..=15 {
            for mte in [false, true] {
                let shape = GuestShape { mte };
                let mut hw = everything();
                let others = hw.get(hidden.id) & !(0xf << hidden.shift);
                hw.set(hidden.id, others | level << hidden.shift);
                let seen = hw.for_guest(hidden.id, shape) >> hidden.shift & 0xf;
                assert_eq!(seen, 0, "{}", hidden.name);
                assert_denied(hidden, &hw, shape);
            }
        }
    }
}

fn assert_denied(hidden: &Hidden, hw: &IdRegs, shape: GuestShape) {
    let controls = controls(hw, shape, 6);
    for denial in hidden.denials {
        // FEAT_FGT 0 and 1, and FEAT_HCX 0, are levels of fields of this list.
        let absent = hidden.id == IdReg::MMFR0 || hidden.id == IdReg::MMFR1;
        let holds = denial.holds(&controls).unwrap_or(absent);
        assert!(holds, "{} {denial:?} {controls:x?}", hidden.name);
    }
}

/// On hardware that exists a denial may lack its register; one that remains must hold.
#[test]
fn what_qemu_has_and_guests_do_not_is_denied_by_a_control_that_exists() {
    for hw in [qemu_max(), neoverse_n2()] {
        let controls = controls(&hw, GuestShape { mte: true }, 6);
        for hidden in present(&hw) {
            let answers: Vec<_> = hidden
                .denials
                .iter()
                .filter_map(|d| d.holds(&controls))
                .collect();
            assert!(!answers.is_empty(), "{} has no denial", hidden.name);
            assert!(answers.iter().all(|&holds| holds), "{}", hidden.name);
        }
    }
}

#[test]
fn the_features_that_qemu_max_shows_and_guests_must_not_see_are_listed() {
    let hw = qemu_max();
    let names: Vec<_> = present(&hw).map(|hidden| hidden.name).collect();
    for name in [
        "FEAT_SVE",
        "FEAT_SME",
        "FEAT_NMI",
        "FEAT_GCS",
        "MTEX",
        "FEAT_FPMR",
        "FEAT_MOPS",
        "FEAT_NV",
        "FEAT_S1PIE",
        "FEAT_PMUv3",
        "FEAT_RAS",
        "FEAT_TCR2",
        "FEAT_SCTLR2",
        "FEAT_AIE",
    ] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
}
