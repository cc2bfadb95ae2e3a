//! Every class of exception, from the encodings of DDI 0487, ESR_EL2.

use proptest::prelude::*;

use super::*;

fn decode(esr: u64) -> Exit {
    Exit::decode(Syndrome {
        esr: Esr(esr),
        far: 0,
        hpfar: 0,
    })
}

fn of_class(ec: u64, iss: u64) -> Exit {
    decode(ec << 26 | 1 << 25 | iss)
}

#[test]
fn every_exception_class_has_its_variant() {
    let table = [
        (0x00, Exit::UnknownReason),
        (0x03, Exit::AArch32(AArch32Trap::Cp15)),
        (0x04, Exit::AArch32(AArch32Trap::Cp15)),
        (0x05, Exit::AArch32(AArch32Trap::Cp14)),
        (0x06, Exit::AArch32(AArch32Trap::Cp14)),
        (0x07, Exit::FpAccess),
        (0x08, Exit::AArch32(AArch32Trap::Vmrs)),
        (0x09, Exit::Pauth),
        (0x0a, Exit::Ls64),
        (0x0c, Exit::AArch32(AArch32Trap::Cp14)),
        (0x0d, Exit::BranchTarget),
        (0x0e, Exit::IllegalState),
        (0x11, Exit::AArch32(AArch32Trap::Call)),
        (0x12, Exit::AArch32(AArch32Trap::Call)),
        (0x13, Exit::AArch32(AArch32Trap::Call)),
        (0x14, Exit::SysReg128),
        (0x15, Exit::Svc { imm: 0x2a }),
        (0x16, Exit::Hvc { imm: 0x2a }),
        (0x17, Exit::Smc { imm: 0x2a }),
        (0x19, Exit::Sve),
        (0x1a, Exit::Eret),
        (0x1b, Exit::Tstart),
        (0x1c, Exit::PauthFailure),
        (0x1d, Exit::Sme),
        (0x1e, Exit::GranuleProtection),
        (0x22, Exit::PcAlignment),
        (0x26, Exit::SpAlignment),
        (0x27, Exit::Mops),
        (0x28, Exit::FpException),
        (0x2c, Exit::FpException),
        (0x2d, Exit::Gcs),
        (0x30, Exit::Debug(DebugEvent::Breakpoint)),
        (0x32, Exit::Debug(DebugEvent::Step)),
        (0x34, Exit::Debug(DebugEvent::Watchpoint)),
        (0x38, Exit::Brk { imm: 0x2a }),
        (0x3a, Exit::Debug(DebugEvent::VectorCatch)),
        (0x3c, Exit::Brk { imm: 0x2a }),
        (0x3d, Exit::Debug(DebugEvent::Profiling)),
    ];
    for (ec, exit) in table {
        assert_eq!(of_class(ec, 0x2a), exit, "EC {ec:#x}");
    }
}

/// 0x21, 0x25, 0x31, 0x33, 0x35 come from EL2 itself; the rest is not allocated.
#[test]
fn a_class_that_no_guest_can_cause_is_unexpected() {
    for ec in [
        0x02, 0x0b, 0x0f, 0x10, 0x1f, 0x21, 0x23, 0x25, 0x29, 0x2a, 0x2b, 0x2e, 0x31, 0x33, 0x35,
        0x36, 0x37, 0x39, 0x3b, 0x3e, 0x3f,
    ] {
        assert_eq!(of_class(ec, 0), Exit::Unexpected { ec: ec as u8 });
    }
}

/// ISS of EC 0x18: Op0 21:20, Op2 19:17, Op1 16:14, CRn 13:10, Rt 9:5, CRm 4:1, direction 0.
#[test]
fn a_system_register_trap_names_the_register_and_the_direction() {
    // MRS X7, ID_AA64MMFR2_EL1 (3, 0, 0, 7, 2).
    let iss = 3 << 20 | 2 << 17 | 7 << 5 | 7 << 1 | 1;
    let mut expected = SysRegTrap {
        op0: 3,
        op1: 0,
        crn: 0,
        crm: 7,
        op2: 2,
        rt: 7,
        write: false,
    };
    assert_eq!(of_class(0x18, iss), Exit::SysReg(expected));
    // MSR OSLAR_EL1, XZR (2, 0, 1, 0, 4).
    let iss = 2 << 20 | 4 << 17 | 1 << 10 | 31 << 5;
    expected = SysRegTrap {
        op0: 2,
        op1: 0,
        crn: 1,
        crm: 0,
        op2: 4,
        rt: 31,
        write: true,
    };
    assert_eq!(of_class(0x18, iss), Exit::SysReg(expected));
}

/// ISS of EC 0x01: TI 1:0, RV 2, RN 9:5. WFI and WFE have no register.
#[test]
fn a_wait_names_its_kind_and_its_deadline() {
    let table = [
        (0b000, WaitKind::Wfi, None),
        (0b001, WaitKind::Wfe, None),
        (5 << 5 | 0b110, WaitKind::Wfit, Some(5)),
        (31 << 5 | 0b111, WaitKind::Wfet, Some(31)),
        (5 << 5 | 0b010, WaitKind::Wfit, None),
        (5 << 5 | 0b100, WaitKind::Wfi, None),
    ];
    for (iss, kind, deadline_register) in table {
        let wait = Wait {
            kind,
            deadline_register,
        };
        assert_eq!(of_class(0x01, 1 << 24 | iss), Exit::Wait(wait));
    }
}

/// ISS of EC 0x2F: IDS 24, AET 12:10, DFSC 5:0 (0x11 for FEAT_RAS).
#[test]
fn an_serror_says_how_bad_it_is_or_that_it_does_not_say() {
    let table = [
        (0x11, Severity::Uncontainable),
        (0b001 << 10 | 0x11, Severity::Unrecoverable),
        (0b010 << 10 | 0x11, Severity::Restartable),
        (0b011 << 10 | 0x11, Severity::Unrecoverable),
        (0b110 << 10 | 0x11, Severity::Restartable),
        (0b111 << 10 | 0x11, Severity::Unknown),
        (0b010 << 10, Severity::Unknown),
        (1 << 24 | 0b010 << 10 | 0x11, Severity::Unknown),
    ];
    for (iss, severity) in table {
        let serror = SError {
            iss: iss as u32,
            severity,
        };
        assert_eq!(of_class(0x2f, iss), Exit::SError(serror), "{iss:#x}");
    }
}

#[test]
fn the_immediate_is_16_bits_and_no_more() {
    assert_eq!(of_class(0x16, 0x1ff_ffff), Exit::Hvc { imm: 0xffff });
    assert_eq!(of_class(0x17, 0x1f0_0001), Exit::Smc { imm: 1 });
}

#[test]
fn the_length_of_the_instruction_is_bit_25() {
    assert!(Esr(1 << 25).is_32_bit_instruction());
    assert!(!Esr(!(1 << 25)).is_32_bit_instruction());
}

proptest! {
    #[test]
    fn no_syndrome_panics(esr: u64, far: u64, hpfar: u64) {
        let exit = Exit::decode(Syndrome { esr: Esr(esr), far, hpfar });
        let fields = Esr(esr);
        prop_assert!(u32::from(fields.ec()) < 64 && fields.iss() < 1 << 25);
        if let Exit::SysReg(trap) = exit {
            prop_assert!(trap.op0 < 4 && trap.op1 < 8 && trap.op2 < 8);
            prop_assert!(trap.crn < 16 && trap.crm < 16 && trap.rt < 32);
        }
    }
}
