//! The table against a list of all that a guest may touch, and everything else is UNDEFINED.

use super::super::fixtures::{neoverse_n2, qemu_max};
use super::*;

const SHAPES: [GuestShape; 2] = [GuestShape { mte: false }, GuestShape { mte: true }];

type Encoding = (u8, u8, u8, u8, u8);

fn trap((op0, op1, crn, crm, op2): Encoding, write: bool) -> SysRegTrap {
    SysRegTrap {
        op0,
        op1,
        crn,
        crm,
        op2,
        rt: 3,
        write,
    }
}

fn access(encoding: Encoding, write: Option<u64>, regs: &mut VcpuSysRegs) -> SysRegOutcome {
    let hw = qemu_max();
    let context = SysRegContext {
        hw: &hw,
        shape: GuestShape { mte: true },
    };
    let trap = trap(encoding, write.is_some());
    emulate(trap, write.unwrap_or(0xdead), context, regs)
}

fn read(encoding: Encoding, regs: &mut VcpuSysRegs) -> SysRegOutcome {
    access(encoding, None, regs)
}

const ACTLR_EL1: Encoding = (3, 0, 1, 0, 1);
const CPACR_EL1: Encoding = (3, 0, 1, 0, 2);
const MDSCR_EL1: Encoding = (2, 0, 0, 2, 2);
const OSLAR_EL1: Encoding = (2, 0, 1, 0, 4);
const OSLSR_EL1: Encoding = (2, 0, 1, 1, 4);

/// What may be read and written: (encoding, read, write), from D24.2. ID registers apart.
const ALLOWED: &[(Encoding, bool, bool)] = &[
    ((1, 0, 7, 6, 2), false, true),  // DC ISW
    ((1, 0, 7, 10, 2), false, true), // DC CSW
    ((1, 0, 7, 14, 2), false, true), // DC CISW
    (ACTLR_EL1, true, true),
    (CPACR_EL1, true, true),
    ((3, 0, 0, 0, 6), true, false),   // REVIDR_EL1
    ((3, 1, 0, 0, 7), true, false),   // AIDR_EL1
    ((3, 0, 12, 11, 1), false, true), // ICC_DIR_EL1
    ((3, 0, 12, 11, 5), false, true), // ICC_SGI1R_EL1
    ((3, 0, 12, 11, 6), false, true), // ICC_ASGI1R_EL1
    ((3, 0, 12, 11, 7), false, true), // ICC_SGI0R_EL1
    ((3, 0, 12, 12, 5), true, true),  // ICC_SRE_EL1
    ((3, 3, 14, 2, 0), true, true),   // CNTP_TVAL_EL0
    ((3, 3, 14, 2, 1), true, true),   // CNTP_CTL_EL0
    ((3, 3, 14, 2, 2), true, true),   // CNTP_CVAL_EL0
    (MDSCR_EL1, true, true),
    (OSLAR_EL1, false, true),
    (OSLSR_EL1, true, false),
    ((2, 0, 0, 0, 2), true, true),   // OSDTRRX_EL1
    ((2, 0, 0, 2, 0), true, true),   // MDCCINT_EL1
    ((2, 0, 0, 3, 2), true, true),   // OSDTRTX_EL1
    ((2, 0, 0, 6, 2), true, true),   // OSECCR_EL1
    ((2, 0, 1, 0, 0), true, false),  // MDRAR_EL1
    ((2, 0, 1, 3, 4), true, true),   // OSDLR_EL1
    ((2, 0, 1, 4, 4), true, true),   // DBGPRCR_EL1
    ((2, 0, 7, 8, 6), true, true),   // DBGCLAIMSET_EL1
    ((2, 0, 7, 9, 6), true, true),   // DBGCLAIMCLR_EL1
    ((2, 0, 7, 14, 6), true, false), // DBGAUTHSTATUS_EL1
    ((2, 3, 0, 1, 0), true, false),  // MDCCSR_EL0
    ((2, 3, 0, 4, 0), true, true),   // DBGDTR_EL0
    ((2, 3, 0, 5, 0), true, true),   // DBGDTRRX_EL0, DBGDTRTX_EL0
];

/// DC IGSW, IGDSW, CGSW, CGDSW, CIGSW, CIGDSW.
const WITH_TAGS: &[Encoding] = &[
    (1, 0, 7, 6, 4),
    (1, 0, 7, 6, 6),
    (1, 0, 7, 10, 4),
    (1, 0, 7, 10, 6),
    (1, 0, 7, 14, 4),
    (1, 0, 7, 14, 6),
];

fn is_allowed(encoding: Encoding, write: bool, shape: GuestShape) -> bool {
    let (op0, op1, crn, crm, op2) = encoding;
    let named = ALLOWED.iter().find(|(named, _, _)| *named == encoding);
    let tags = shape.mte && write && WITH_TAGS.contains(&encoding);
    // Six breakpoints and four watchpoints.
    let comparator =
        (op0, op1, crn) == (2, 0, 0) && matches!((crm, op2), (0..6, 4 | 5) | (0..4, 6 | 7));
    let id_space = !write && (op0, op1, crn) == (3, 0, 0) && (1..=7).contains(&crm);
    named.is_some_and(|&(_, r, w)| if write { w } else { r }) || tags || comparator || id_space
}

fn all_encodings() -> impl Iterator<Item = Encoding> {
    (0..4u16 * 8 * 16).flat_map(|high| {
        (0..16 * 8u8).map(move |low| {
            let [op0, op1, crn] = [high >> 7, high >> 4 & 7, high & 15].map(|part| part as u8);
            (op0, op1, crn, low >> 3, low & 7)
        })
    })
}

#[test]
fn what_is_not_listed_is_undefined_by_default() {
    for hw in [qemu_max(), neoverse_n2()] {
        for shape in SHAPES {
            for (encoding, write) in all_encodings().flat_map(|e| [(e, false), (e, true)]) {
                let context = SysRegContext { hw: &hw, shape };
                let mut regs = VcpuSysRegs::RESET;
                let outcome = emulate(trap(encoding, write), 0, context, &mut regs);
                let expected = is_allowed(encoding, write, shape);
                assert_eq!(
                    outcome != SysRegOutcome::Undefined,
                    expected,
                    "{encoding:?} write {write}: {outcome:?}"
                );
            }
        }
    }
}

#[test]
fn a_read_never_acts_and_a_write_never_answers() {
    for (encoding, write) in all_encodings().flat_map(|e| [(e, None), (e, Some(u64::MAX))]) {
        let mut regs = VcpuSysRegs::RESET;
        let ok = match access(encoding, write, &mut regs) {
            SysRegOutcome::Undefined => true,
            SysRegOutcome::Read(_) => write.is_none(),
            SysRegOutcome::PhysicalTimer { write: given, .. } => given == write,
            _ => write.is_some(),
        };
        assert!(ok, "{encoding:?} {write:?}");
        assert!(write.is_some() || regs == VcpuSysRegs::RESET);
    }
}

/// Registers of what guests do not have. GCR and its kin trap only without tags.
#[test]
fn hidden_features_are_undefined() {
    for encoding in [
        (3, 3, 9, 12, 0), // PMCR_EL0
        (3, 3, 9, 13, 0), // PMCCNTR_EL0
        (3, 3, 13, 2, 0), // AMCR_EL0
        (3, 0, 5, 3, 0),  // ERRIDR_EL1
        (3, 0, 5, 4, 0),  // ERXFR_EL1
        (3, 0, 10, 4, 7), // LORID_EL1
        (3, 1, 0, 0, 4),  // GMID_EL1
        (3, 1, 0, 0, 6),  // SMIDR_EL1
        (3, 0, 1, 0, 5),  // RGSR_EL1
        (3, 0, 1, 0, 6),  // GCR_EL1
        (3, 0, 5, 6, 0),  // TFSR_EL1
        (3, 0, 5, 6, 1),  // TFSRE0_EL1
        (3, 0, 1, 2, 0),  // ZCR_EL1
        (3, 0, 1, 2, 6),  // SMCR_EL1
        (3, 3, 4, 4, 2),  // FPMR
        (3, 0, 2, 5, 0),  // GCSCR_EL1
        (3, 0, 10, 2, 3), // PIR_EL1
        (3, 0, 2, 0, 3),  // TCR2_EL1
        (3, 0, 1, 0, 3),  // SCTLR2_EL1
        (3, 0, 13, 0, 7), // SCXTNUM_EL1
        (3, 0, 9, 9, 0),  // PMSCR_EL1
        (3, 0, 9, 11, 0), // TRBLIMITR_EL1
        (2, 1, 0, 1, 0),  // TRCPRGCTLR
        (2, 1, 9, 0, 0),  // BRBCR_EL1
        (3, 0, 4, 3, 0),  // ALLINT
        (3, 0, 10, 5, 1), // MPAM0_EL1
        (3, 0, 11, 0, 0), // IMPLEMENTATION DEFINED
        (3, 0, 15, 1, 0), // IMPLEMENTATION DEFINED
        (3, 4, 1, 1, 0),  // HCR_EL2
    ] {
        for write in [None, Some(0)] {
            let mut regs = VcpuSysRegs::RESET;
            let outcome = access(encoding, write, &mut regs);
            assert_eq!(outcome, SysRegOutcome::Undefined, "{encoding:?}");
        }
    }
}

#[test]
fn the_id_registers_are_sanitised() {
    let regs = &mut VcpuSysRegs::default();
    // ID_AA64PFR1_EL1, ID_AA64PFR2_EL1, ID_AA64DFR0_EL1, and one that is not allocated.
    assert_eq!(read((3, 0, 0, 4, 1), regs), SysRegOutcome::Read(0x321));
    assert_eq!(read((3, 0, 0, 4, 2), regs), SysRegOutcome::Read(0));
    let debug = SysRegOutcome::Read(0xf0_1030_5006);
    assert_eq!(read((3, 0, 0, 5, 0), regs), debug);
    assert_eq!(read((3, 0, 0, 7, 7), regs), SysRegOutcome::Read(0));
}

#[test]
fn the_revision_is_the_hardware_s() {
    let mut hw = neoverse_n2();
    hw.revidr = 0x1c;
    let context = SysRegContext {
        hw: &hw,
        shape: GuestShape { mte: true },
    };
    let mut regs = VcpuSysRegs::RESET;
    let outcome = emulate(trap((3, 0, 0, 0, 6), false), 0, context, &mut regs);
    assert_eq!(outcome, SysRegOutcome::Read(0x1c));
}

#[test]
fn register_31_is_zero_when_written() {
    let hw = qemu_max();
    let context = SysRegContext {
        hw: &hw,
        shape: GuestShape { mte: true },
    };
    let mut regs = VcpuSysRegs::RESET;
    let mut trap = trap((3, 0, 12, 11, 5), true);
    trap.rt = 31;
    let sgi = SysRegOutcome::Sgi {
        register: SgiReg::Sgi1r,
        value: 0,
    };
    assert_eq!(emulate(trap, 0xffff, context, &mut regs), sgi);
}

#[test]
fn an_interrupt_is_sent_by_the_register_that_was_written() {
    for (op2, register) in [(5, SgiReg::Sgi1r), (6, SgiReg::Asgi1r), (7, SgiReg::Sgi0r)] {
        let sgi = SysRegOutcome::Sgi {
            register,
            value: 0x0100_0002,
        };
        let regs = &mut VcpuSysRegs::default();
        assert_eq!(access((3, 0, 12, 11, op2), Some(0x0100_0002), regs), sgi);
    }
}

/// ICC_DIR_EL1.INTID is 24 bits.
#[test]
fn an_interrupt_is_deactivated_by_its_number() {
    let regs = &mut VcpuSysRegs::default();
    let outcome = access((3, 0, 12, 11, 1), Some(u64::MAX), regs);
    assert_eq!(outcome, SysRegOutcome::DeactivateInterrupt(0xff_ffff));
    let outcome = access((3, 0, 12, 11, 1), Some(27), regs);
    assert_eq!(outcome, SysRegOutcome::DeactivateInterrupt(27));
}

/// SVE and SME must reach EL2, where they are UNDEFINED, not EL1, which would be told of them.
#[test]
fn the_guest_sees_its_own_cpacr_and_the_hardware_one_lets_sve_and_sme_through_to_el2() {
    let mut regs = VcpuSysRegs::RESET;
    let hardware = |value| SysRegOutcome::WriteHardware(HardwareReg::CpacrEl1, value);
    let outcome = access(CPACR_EL1, Some(u64::MAX), &mut regs);
    assert_eq!(outcome, hardware(0x0333_0000));
    assert_eq!(read(CPACR_EL1, &mut regs), SysRegOutcome::Read(0x0030_0000));
    assert_eq!(access(CPACR_EL1, Some(0), &mut regs), hardware(0x0303_0000));
    assert_eq!(regs.cpacr_el1(&IdRegs::ZERO), 0);
    assert_eq!(regs.cpacr_el1(&neoverse_n2()), 0x0003_0000);
}

/// MDSCR_EL1: SS, TDCC, KDE, MDE. Not HDE, TDA and what only an external debugger uses.
#[test]
fn the_physical_timer_is_named_with_its_value() {
    let mut regs = VcpuSysRegs::RESET;
    for (op2, register) in [(0, TimerReg::Tval), (1, TimerReg::Ctl), (2, TimerReg::Cval)] {
        for write in [None, Some(42)] {
            let outcome = access((3, 3, 14, 2, op2), write, &mut regs);
            assert_eq!(outcome, SysRegOutcome::PhysicalTimer { register, write });
        }
    }
}

#[test]
fn the_auxiliary_control_register_reads_zero_and_ignores_writes() {
    let mut regs = VcpuSysRegs::RESET;
    let outcome = access(ACTLR_EL1, Some(u64::MAX), &mut regs);
    assert_eq!(outcome, SysRegOutcome::WriteIgnored);
    assert_eq!(read(ACTLR_EL1, &mut regs), SysRegOutcome::Read(0));
}
