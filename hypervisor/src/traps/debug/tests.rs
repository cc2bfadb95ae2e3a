//! The registers of a debugger, by table.

use super::super::fixtures::qemu_max;
use super::super::id_regs::GuestShape;
use super::*;

type Encoding = (u8, u8, u8, u8, u8);

const MDSCR_EL1: Encoding = (2, 0, 0, 2, 2);
const OSLAR_EL1: Encoding = (2, 0, 1, 0, 4);
const OSLSR_EL1: Encoding = (2, 0, 1, 1, 4);
/// Op2 of DBGBVR, DBGBCR, DBGWVR and DBGWCR.
const REGISTERS: [u8; 4] = [4, 5, 6, 7];

fn access_on(
    hw: &IdRegs,
    (op0, op1, crn, crm, op2): Encoding,
    write: Option<u64>,
    regs: &mut DebugRegs,
) -> SysRegOutcome {
    let trap = SysRegTrap {
        op0,
        op1,
        crn,
        crm,
        op2,
        rt: 3,
        write: write.is_some(),
    };
    regs.emulate(trap, write, hw)
}

fn access(encoding: Encoding, write: Option<u64>, regs: &mut DebugRegs) -> SysRegOutcome {
    access_on(&qemu_max(), encoding, write, regs)
}

fn read(encoding: Encoding, regs: &mut DebugRegs) -> SysRegOutcome {
    access(encoding, None, regs)
}

#[test]
fn software_step_works_and_external_debug_is_out_of_reach() {
    let mut regs = DebugRegs::RESET;
    access(OSLAR_EL1, Some(0), &mut regs);
    let hardware = |value| SysRegOutcome::WriteHardware(HardwareReg::MdscrEl1, value);
    let outcome = access(MDSCR_EL1, Some(u64::MAX), &mut regs);
    assert_eq!(outcome, hardware(0xb001));
    assert_eq!(read(MDSCR_EL1, &mut regs), SysRegOutcome::Read(0xb001));
}

/// The hardware's OS lock is open for EL2's own reasons; the guest's closes debug by MDSCR_EL1.
#[test]
fn the_os_lock_holds_debug_back() {
    let mut regs = DebugRegs::RESET;
    let hardware = |value| SysRegOutcome::WriteHardware(HardwareReg::MdscrEl1, value);
    assert_eq!(read(OSLSR_EL1, &mut regs), SysRegOutcome::Read(0b1010));
    assert_eq!(access(MDSCR_EL1, Some(0xb001), &mut regs), hardware(0x1000));
    assert_eq!(read(MDSCR_EL1, &mut regs), SysRegOutcome::Read(0xb001));
    assert_eq!(access(OSLAR_EL1, Some(0), &mut regs), hardware(0xb001));
    assert_eq!(read(OSLSR_EL1, &mut regs), SysRegOutcome::Read(0b1000));
    assert_eq!(access(OSLAR_EL1, Some(1), &mut regs), hardware(0x1000));
    assert_eq!(read(OSLSR_EL1, &mut regs), SysRegOutcome::Read(0b1010));
}

/// Hardware with so many breakpoints, watchpoints and, of the breakpoints, ones that can compare contexts.
fn hw(breakpoints: u64, watchpoints: u64, contexts: u64) -> IdRegs {
    let mut hw = IdRegs::ZERO;
    let dfr0 = (breakpoints - 1) << 12 | (watchpoints - 1) << 20 | (contexts - 1) << 28;
    hw.set(IdReg::DFR0, dfr0);
    hw
}

#[test]
fn a_guest_sees_as_many_comparators_as_its_id_register_says() {
    for (breakpoints, watchpoints) in [(2, 2), (4, 4), (6, 4), (16, 16)] {
        let hw = hw(breakpoints, watchpoints, 2);
        let dfr0 = hw.for_guest(IdReg::DFR0, GuestShape::default());
        let (shown_breakpoints, shown_watchpoints) = comparators_shown(&hw);
        assert_eq!(dfr0 >> 12 & 0xf, shown_breakpoints as u64 - 1);
        assert_eq!(dfr0 >> 20 & 0xf, shown_watchpoints as u64 - 1);
        assert_eq!(shown_breakpoints, breakpoints.min(6) as usize);
        assert_eq!(shown_watchpoints, watchpoints.min(4) as usize);
        for number in 0..16 {
            for op2 in REGISTERS {
                let shown = if op2 < 6 {
                    shown_breakpoints
                } else {
                    shown_watchpoints
                };
                let encoding = (2, 0, 0, number, op2);
                let mut regs = DebugRegs::RESET;
                let exists = usize::from(number) < shown;
                for write in [None, Some(0)] {
                    let outcome = access_on(&hw, encoding, write, &mut regs);
                    assert_eq!(outcome != SysRegOutcome::Undefined, exists, "{encoding:?}");
                }
            }
        }
    }
}

#[test]
fn each_comparator_holds_its_own_value_in_the_fields_there_are() {
    let mut regs = DebugRegs::RESET;
    let value = |number: u8, op2: u8| u64::MAX << 20 | u64::from(number) << 8 | u64::from(op2);
    let all = || {
        (0..6)
            .flat_map(|n| REGISTERS.map(|op2| (n, op2)))
            .filter(|&(n, op2)| n < 4 || op2 < 6)
    };
    for (number, op2) in all() {
        let outcome = access((2, 0, 0, number, op2), Some(value(number, op2)), &mut regs);
        assert_eq!(outcome, SysRegOutcome::WriteComparators);
    }
    for (number, op2) in all() {
        // DBGBCR: no reserved bit, nor those of Armv8.9; DBGWCR has MASK besides.
        let fields = match op2 {
            5 => 0x00ff_e1e7,
            7 => 0x1f1f_ffff,
            _ => u64::MAX,
        };
        let held = SysRegOutcome::Read(value(number, op2) & fields);
        assert_eq!(read((2, 0, 0, number, op2), &mut regs), held);
    }
    assert_eq!(regs.breakpoints[5].value, value(5, 4));
    assert_eq!(regs.watchpoints[3].value, value(3, 6));
}

#[test]
fn the_hardware_has_comparators_only_while_one_is_enabled() {
    let mut regs = DebugRegs::RESET;
    for (number, op2) in [(0, 5), (5, 5), (0, 7), (3, 7)] {
        let control = (2, 0, 0, number, op2);
        access(control, Some(!1), &mut regs);
        assert!(!regs.is_active());
        access(control, Some(1), &mut regs);
        assert!(regs.is_active());
        access((2, 0, 0, 1, 4), Some(u64::MAX), &mut regs);
        assert!(regs.is_active(), "another register");
        access(control, Some(0), &mut regs);
        assert!(!regs.is_active());
    }
    access((2, 0, 0, 0, 4), Some(1), &mut regs);
    access((2, 0, 0, 0, 6), Some(1), &mut regs);
    assert!(!regs.is_active(), "a value is no control");
}

#[test]
fn a_link_names_the_breakpoint_that_the_guest_means() {
    let linked = |number: u64| Comparator {
        value: 0,
        control: 0x0010_0001 | number << 16,
    };
    assert_eq!(linked(5).control(0), linked(5).control);
    // The guest's six are the last six of sixteen, of which the last ones compare contexts.
    assert_eq!(linked(4).control(10), 0x001e_0001);
    assert_eq!(linked(15).control(10), 0x0019_0001, "no other field");
}
