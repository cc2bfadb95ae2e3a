//! The controls of guests on hardware that exists, and what must never be off.

use proptest::prelude::*;

use super::super::fixtures::{everything, neoverse_n2, qemu_max, with};
use super::*;

const WITH_MTE: GuestShape = GuestShape { mte: true };
const WITHOUT_MTE: GuestShape = GuestShape { mte: false };

/// Each bit was needed to boot Debian 6.12 on QEMU, or is by the manual.
#[test]
fn a_guest_with_tags_on_qemu_max_runs_under_these_controls() {
    let controls = controls(&qemu_max(), WITH_MTE, 6);
    let hcr = controls.hcr_el2;
    let set: Vec<u32> = (0..64).filter(|bit| hcr >> bit & 1 != 0).collect();
    assert_eq!(
        set,
        [
            0, 1, 2, 3, 4, 5, 9, 10, 13, 16, 18, 19, 20, 21, 22, 31, 35, 36, 40, 41, 46, 56
        ]
    );
    assert_eq!(controls.hcrx_el2, Some(1 << 6));
    assert_eq!(controls.cptr_el2, 0x8000_33ff);
    assert_eq!(controls.mdcr_el2, 0xe66);
    assert_eq!(controls.cnthctl_el2, 1);
    assert_eq!(controls.fgt2, None);
    assert_eq!(controls.mpam2_el2, None);
    let fgt = controls.fgt.unwrap();
    // LOR (19 to 23), SCXTNUM (30, 31), ERR (40 to 49).
    assert_eq!(fgt.hfgrtr, 0x0003_ff00_c0f8_0000);
    assert_eq!(fgt.hfgwtr, 0x0003_ba00_c0d8_0000);
    assert_eq!((fgt.hfgitr, fgt.hdfgrtr, fgt.hdfgwtr), (0, 0, 0));
    assert_eq!(fgt.hafgrtr, None);
}

#[test]
fn a_control_register_that_the_hardware_lacks_is_not_written() {
    let controls = controls(&neoverse_n2(), WITH_MTE, 6);
    assert_eq!(controls.hcrx_el2, None);
    assert_eq!(controls.fgt, None);
    assert_eq!(controls.fgt2, None);
    assert_eq!(controls.cptr_el2, 0x8000_33ff);
    assert_eq!(controls.mdcr_el2, 0xe66);
}

#[test]
fn a_guest_has_tags_or_a_trap_for_gmid_never_both() {
    for hw in [qemu_max(), neoverse_n2()] {
        let tags = hcr::ATA | hcr::TID5;
        assert_eq!(controls(&hw, WITH_MTE, 0).hcr_el2 & tags, hcr::ATA);
        assert_eq!(controls(&hw, WITHOUT_MTE, 0).hcr_el2 & tags, hcr::TID5);
    }
    let without = with(&[(IdReg::PFR1, 0x100)]);
    assert_eq!(
        controls(&without, WITH_MTE, 0).hcr_el2 & (hcr::ATA | hcr::TID5),
        0
    );
}

/// The fields of CPTR_EL2 that are RES1 with E2H=0, and TFP which would trap FP.
#[test]
fn floating_point_does_not_trap() {
    for hw in [qemu_max(), neoverse_n2(), everything(), IdRegs::ZERO] {
        assert_eq!(controls(&hw, WITH_MTE, 0).cptr_el2 & cptr::TFP, 0);
    }
}

/// With HPMN above PMCR_EL0.N, or 0 without FEAT_HPMN0, the behaviour is CONSTRAINED UNPREDICTABLE.
#[test]
fn hpmn_is_the_number_of_counters() {
    for (counters, hpmn) in [(0, 0), (6, 6), (31, 31), (32 + 4, 4)] {
        let mdcr = controls(&qemu_max(), WITH_MTE, counters).mdcr_el2;
        assert_eq!(mdcr & mdcr::HPMN, hpmn);
    }
    let none = controls(&IdRegs::ZERO, WITH_MTE, 6).mdcr_el2;
    assert_eq!(none & (mdcr::HPMN | mdcr::TPM | mdcr::TPMCR), 0);
}

#[test]
fn hardware_without_features_gets_no_reserved_bit() {
    let controls = controls(&IdRegs::ZERO, WITHOUT_MTE, 0);
    let optional = hcr::TLOR
        | hcr::TERR
        | hcr::APK
        | hcr::API
        | hcr::FWB
        | hcr::ATA
        | hcr::TID5
        | hcr::EN_SCXT;
    assert_eq!(controls.hcr_el2 & optional, 0);
    assert_eq!(controls.cptr_el2, cptr::RES1 | cptr::TCPAC);
    assert_eq!(controls.mdcr_el2, mdcr::TDRA | mdcr::TDOSA | mdcr::TDA);
}

/// ID_AA64ISAR1 and 2: any of APA, API, GPA, GPI, GPA3, APA3.
#[test]
fn pointer_authentication_by_any_algorithm_is_enabled() {
    let keys = hcr::APK | hcr::API;
    for (id, shift) in [
        (IdReg::ISAR1, 4),
        (IdReg::ISAR1, 8),
        (IdReg::ISAR1, 24),
        (IdReg::ISAR1, 28),
        (IdReg::ISAR2, 8),
        (IdReg::ISAR2, 12),
    ] {
        let hw = with(&[(id, 1 << shift)]);
        assert_eq!(controls(&hw, WITH_MTE, 0).hcr_el2 & keys, keys);
    }
}

#[test]
fn a_read_only_register_has_no_write_trap() {
    let fgt = controls(&everything(), WITH_MTE, 0).fgt.unwrap();
    // LORID, ERRIDR, ERXFR, ERXPFGF: RES0 in HFGWTR_EL2.
    assert_eq!(fgt.hfgwtr & (1 << 21 | 1 << 40 | 1 << 42 | 1 << 46), 0);
    assert_eq!(
        fgt.hfgrtr & !fgt.hfgwtr,
        1 << 21 | 1 << 40 | 1 << 42 | 1 << 46
    );
}

#[test]
fn all_fine_grained_registers_are_set_where_they_exist() {
    let controls = controls(&everything(), WITH_MTE, 0);
    assert_eq!(controls.fgt2, Some(FineGrained2::default()));
    assert_eq!(controls.fgt.unwrap().hafgrtr, Some(0));
    assert_eq!(controls.mpam2_el2, Some(0b11 << 48));
}

proptest! {
    /// Whatever a CPU claims, these hold: no escape from stage 2, no trap missing, no enable given.
    #[test]
    fn no_hardware_loosens_the_essential_controls(
        values in prop::collection::vec(any::<u64>(), 56), mte: bool, counters: u64,
    ) {
        let hw = IdRegs::read(|crm, op2| values[usize::from(crm - 1) * 8 + usize::from(op2)]);
        let controls = controls(&hw, GuestShape { mte }, counters);
        let always = hcr::VM | hcr::FMO | hcr::IMO | hcr::AMO | hcr::TID3 | hcr::TSC | hcr::TSW
            | hcr::TIDCP | hcr::TACR | hcr::RW | hcr::TWI;
        let never = hcr::NV | hcr::TME | hcr::FIEN | hcr::EN_SCXT | 1 << 27 | 1 << 34 | 1 << 29;
        prop_assert_eq!(controls.hcr_el2 & always, always);
        prop_assert_eq!(controls.hcr_el2 & never, 0);
        prop_assert_eq!(controls.cptr_el2 & 0x33ff, 0x33ff);
        prop_assert_eq!(controls.hcrx_el2.unwrap_or(0) & !hcrx::TALLINT, 0);
        prop_assert_eq!(controls.cnthctl_el2 & cnthctl::EL1PCEN, 0);
        if !mte {
            prop_assert_eq!(controls.hcr_el2 & hcr::ATA, 0);
        }
    }
}
