//! What guests read, on hardware that exists, on hardware that does not, and on any.

use proptest::prelude::*;

use super::super::fixtures::{everything, neoverse_n2, qemu_max, with};
use super::*;

const WITH_MTE: GuestShape = GuestShape { mte: true };
const WITHOUT_MTE: GuestShape = GuestShape { mte: false };

fn all_ids() -> impl Iterator<Item = IdReg> {
    (1..=7).flat_map(|crm| (0..8).map(move |op2| IdReg { crm, op2 }))
}

/// Every bit that any guest may ever see set, written down apart from the rules.
const VISIBLE: &[(IdReg, u64)] = &[
    (IdReg::PFR0, 0x1101_0000_01ff_0011),
    (IdReg::PFR1, 0x0000_0f00_0000_0331),
    (IdReg::DFR0, 0x0000_00f0_7030_7006),
    (IdReg::ISAR0, 0x1331_1111_1031_3130),
    (IdReg::ISAR1, 0x0111_3111_1131_1773),
    (IdReg::ISAR2, 0x1131_0000_1110_7113),
    (IdReg::ISAR3, 0x0000_0000_1001_0010),
    (IdReg::MMFR0, 0x0000_1111_ff31_0131),
    (IdReg::MMFR1, 0x1111_1030_0030_3003),
    (IdReg::MMFR2, 0x1031_0011_1011_0111),
    (IdReg::MMFR3, 0x1000_0000_0000_0000),
];

fn visible(id: IdReg) -> u64 {
    VISIBLE
        .iter()
        .find(|(named, _)| *named == id)
        .map_or(0, |&(_, mask)| mask)
}

#[test]
fn a_guest_on_qemu_max_sees_what_works_and_nothing_else() {
    let expected = [
        (IdReg::PFR0, 0x1101_0000_0111_0011),
        (IdReg::PFR1, 0x0000_0000_0000_0321),
        (IdReg::DFR0, 0x0000_00f0_1030_5006),
        (IdReg::ISAR0, 0x1221_1111_1031_2120),
        (IdReg::ISAR1, 0x0111_2111_1021_1502),
        (IdReg::ISAR2, 0x1120_0000_0010_0012),
        (IdReg::ISAR3, 0x0000_0000_1000_0010),
        (IdReg::MMFR0, 0x0000_0111_1020_0121),
        (IdReg::MMFR1, 0x0110_1020_0030_2002),
        (IdReg::MMFR2, 0x1021_0011_1001_0011),
        (IdReg::MMFR3, 0x1000_0000_0000_0000),
    ];
    assert_guest_reads(&qemu_max(), WITH_MTE, &expected);
}

#[test]
fn a_guest_on_neoverse_n2_sees_what_works_and_nothing_else() {
    let expected = [
        (IdReg::PFR0, 0x1101_0000_0111_0011),
        (IdReg::PFR1, 0x0000_0000_0000_0221),
        (IdReg::DFR0, 0x0000_00f0_1030_5006),
        (IdReg::ISAR0, 0x1221_1111_1021_2120),
        (IdReg::ISAR1, 0x0011_1111_1021_1502),
        (IdReg::MMFR0, 0x0000_0111_0010_0121),
        (IdReg::MMFR1, 0x0000_0000_0020_2002),
        (IdReg::MMFR2, 0x1021_0011_1010_0011),
    ];
    assert_guest_reads(&neoverse_n2(), WITH_MTE, &expected);
}

fn assert_guest_reads(hw: &IdRegs, shape: GuestShape, expected: &[(IdReg, u64)]) {
    for id in all_ids() {
        let value = expected.iter().find(|(named, _)| *named == id);
        let value = value.map_or(0, |&(_, value)| value);
        assert_eq!(
            hw.for_guest(id, shape),
            value,
            "{id:?}: {:#x}",
            hw.for_guest(id, shape)
        );
    }
}

#[test]
fn a_guest_without_tags_sees_no_part_of_mte() {
    for hw in [qemu_max(), neoverse_n2(), everything()] {
        let field = |shift: u32| hw.for_guest(IdReg::PFR1, WITHOUT_MTE) >> shift & 0xf;
        assert_eq!(field(8), 0, "MTE");
        assert_eq!(field(40), 0, "MTE_frac");
        assert_eq!(field(52), 0, "MTEX");
        assert_eq!(hw.for_guest(IdReg::PFR2, WITHOUT_MTE), 0);
    }
}

/// DDI 0487, ID_AA64PFR1_EL1: at level 1 there are instructions without memory tags.
#[test]
fn tags_are_shown_from_level_2_up_to_level_3() {
    for (hardware, shown) in [(0, 0), (1, 0), (2, 2), (3, 3), (4, 3), (0xf, 3)] {
        let hw = with(&[(IdReg::PFR1, hardware << 8)]);
        assert_eq!(hw.for_guest(IdReg::PFR1, WITH_MTE), shown << 8);
    }
}

/// MTE_frac 0xF with MTE 2 says that asynchronous faults are missing: 0 would promise them.
#[test]
fn the_lack_of_asynchronous_tag_faults_is_not_hidden() {
    let async_field = |pfr1| with(&[(IdReg::PFR1, pfr1)]).for_guest(IdReg::PFR1, WITH_MTE) >> 40;
    assert_eq!(async_field(0x0f00_0000_0200), 0xf);
    assert_eq!(async_field(0x0000_0000_0200), 0);
    assert_eq!(async_field(0x0f00_0000_0300), 0);
}

/// D24.1.3: in ID_AA64PFR0_EL1.FP and TGran4 0xF means not implemented, and is not the most.
#[test]
fn a_missing_feature_of_a_signed_field_stays_missing() {
    let hw = with(&[(IdReg::PFR0, 0x00ff_0000), (IdReg::MMFR0, 0xff00_0000)]);
    let pfr0 = hw.for_guest(IdReg::PFR0, WITH_MTE);
    assert_eq!(pfr0 & 0x00ff_0000, 0x00ff_0000);
    assert_eq!(
        hw.for_guest(IdReg::MMFR0, WITH_MTE) & 0xff00_0000,
        0xff00_0000
    );
}

#[test]
fn the_physical_address_size_is_at_most_36_bits() {
    for (hardware, shown) in [(0, 0), (1, 1), (2, 1), (5, 1), (6, 1), (7, 1)] {
        let hw = with(&[(IdReg::MMFR0, hardware)]);
        assert_eq!(hw.for_guest(IdReg::MMFR0, WITH_MTE) & 0xf, shown);
    }
}

#[test]
fn a_register_outside_the_space_reads_zero_and_does_not_panic() {
    let mut hw = everything();
    for id in [(0, 0), (8, 0), (15, 7), (4, 8), (255, 255)] {
        let id = IdReg {
            crm: id.0,
            op2: id.1,
        };
        hw.set(id, 1);
        assert_eq!(hw.get(id), 0);
        assert_eq!(hw.for_guest(id, WITH_MTE), 0);
    }
}

#[test]
fn of_two_cpus_the_weaker_decides_what_is_shown() {
    let both = qemu_max().weakest(&neoverse_n2());
    assert_eq!(both, neoverse_n2().weakest(&qemu_max()));
    for id in all_ids() {
        assert_eq!(
            both.for_guest(id, WITH_MTE),
            match id {
                // The weaker of each field: LSE without LSE128, the fewer page sizes, and so on.
                IdReg::ISAR2 | IdReg::ISAR3 | IdReg::MMFR3 => 0,
                IdReg::MMFR2 => 0x1021_0011_1000_0011,
                id => neoverse_n2().for_guest(id, WITH_MTE),
            },
            "{id:?}"
        );
    }
}

/// FEAT_MTE_PERM and FEAT_S2FWB are for EL2, not for guests, and every CPU has to have them.
#[test]
fn of_two_cpus_the_weaker_decides_what_el2_can_use() {
    let mut without_fwb = qemu_max();
    without_fwb.set(IdReg::MMFR2, qemu_max().get(IdReg::MMFR2) & !(0xf << 40));
    assert!(qemu_max().has_mte_perm() && qemu_max().has_fwb());
    assert!(!qemu_max().weakest(&neoverse_n2()).has_mte_perm());
    assert!(qemu_max().weakest(&neoverse_n2()).has_fwb());
    assert!(!qemu_max().weakest(&without_fwb).has_fwb());
}

#[test]
fn the_revision_is_kept_only_if_the_cpus_agree() {
    let revised = |revidr| IdRegs {
        revidr,
        ..qemu_max()
    };
    assert_eq!(revised(5).weakest(&revised(5)).revidr, 5);
    assert_eq!(revised(5).weakest(&revised(6)).revidr, 0);
}

#[test]
fn a_workaround_that_one_cpu_needs_is_needed_and_what_one_does_not_know_is_not_promised() {
    use Need::{NotRequired, Required, Unknown};
    let of = |need| IdRegs {
        workarounds: [need; 3],
        ..IdRegs::ZERO
    };
    for (one, other, both) in [
        (Unknown, Unknown, Unknown),
        (Unknown, NotRequired, Unknown),
        (Unknown, Required, Required),
        (NotRequired, NotRequired, NotRequired),
        (NotRequired, Required, Required),
        (Required, Required, Required),
    ] {
        assert_eq!(of(one).weakest(&of(other)).workarounds, [both; 3]);
        assert_eq!(of(other).weakest(&of(one)).workarounds, [both; 3]);
        assert_eq!(Need::of(both.answer()), both);
    }
    assert_eq!(Need::of(-2), Unknown);
    let told = Workaround::ALL.map(|workaround| of(Required).workaround(workaround));
    assert_eq!(
        told,
        [Required, NotRequired, Required],
        "the state of loads is safe"
    );
}

fn any_hardware() -> impl Strategy<Value = IdRegs> {
    prop::collection::vec(any::<u64>(), 56).prop_map(|values| {
        IdRegs::read(|crm, op2| values[usize::from(crm - 1) * 8 + usize::from(op2)])
    })
}

proptest! {
    #[test]
    fn no_bit_that_is_not_listed_is_ever_seen(hw in any_hardware(), mte: bool) {
        for id in all_ids() {
            let seen = hw.for_guest(id, GuestShape { mte });
            prop_assert_eq!(seen & !visible(id), 0, "{:?}: {:#x}", id, seen);
        }
    }

    #[test]
    fn what_a_guest_sees_it_could_show_on(hw in any_hardware(), mte: bool) {
        let shape = GuestShape { mte };
        let shown = IdRegs::read(|crm, op2| hw.for_guest(IdReg { crm, op2 }, shape));
        for id in all_ids() {
            prop_assert_eq!(shown.for_guest(id, shape), shown.get(id));
        }
    }

    #[test]
    fn two_cpus_show_no_more_than_each(a in any_hardware(), b in any_hardware()) {
        let both = a.weakest(&b);
        for id in all_ids() {
            for field in rules_of(id) {
                if matches!(field.rule, Rule::Max(_) | Rule::Mte) {
                    let of = |regs: &IdRegs| regs.for_guest(id, WITH_MTE) >> field.shift & 0xf;
                    prop_assert_eq!(of(&both), of(&a).min(of(&b)));
                }
            }
        }
    }
}
