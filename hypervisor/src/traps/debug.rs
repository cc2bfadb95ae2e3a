//! Self-hosted debug: breakpoints, watchpoints and software step of a guest, by the registers of op0=2.
//!
//! Every access traps (MDCR_EL2.TDA, TDOSA, TDRA). What a guest writes is kept here, and the hardware has it, masked, while the
//! vCPU is loaded. Debug exceptions go to EL1 (MDCR_EL2.TDE = 0), so EL2 never takes one. The channel to an external debugger,
//! which all guests would share, is out of reach.

use super::esr::SysRegTrap;
use super::id_regs::{IdReg, IdRegs};
use super::sysreg::{HardwareReg, SysRegOutcome, raz_wi};

/// The most breakpoints that a guest sees, as many as Arm's CPUs have.
pub const MAX_BREAKPOINTS: usize = 6;
/// The most watchpoints that a guest sees.
pub const MAX_WATCHPOINTS: usize = 4;

/// What `ID_AA64DFR0_EL1` says to all guests of this hardware: how many breakpoints and watchpoints they see.
pub fn comparators_shown(hw: &IdRegs) -> (usize, usize) {
    let shown = |shift, most| (hw.field(IdReg::DFR0, shift) as usize + 1).min(most);
    (shown(12, MAX_BREAKPOINTS), shown(20, MAX_WATCHPOINTS))
}

/// A breakpoint or a watchpoint: DBGBVR and DBGBCR, or DBGWVR and DBGWCR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Comparator {
    /// What it compares with: an address, a context ID, a VMID.
    pub value: u64,
    control: u64,
}

impl Comparator {
    const ENABLED: u64 = 1;
    /// LBN: the number of the breakpoint that it is linked with.
    const LINKED: u64 = 0xf << 16;
    /// E, PMC, BAS, HMC, SSC, LBN and BT of a breakpoint.
    const BREAKPOINT: u64 = 0x00ff_e1e7;
    /// E, PAC, LSC, BAS, HMC, SSC, LBN, WT and MASK of a watchpoint.
    const WATCHPOINT: u64 = 0x1f1f_ffff;

    /// The control register of a CPU on which the guest's breakpoint 0 is breakpoint `first`.
    pub const fn control(&self, first: u64) -> u64 {
        let linked = self.control.wrapping_add(first << 16) & Self::LINKED;
        self.control & !Self::LINKED | linked
    }
}

/// What a guest's debugger has set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebugRegs {
    mdscr: u64,
    /// The guest has opened the OS lock.
    os_unlocked: bool,
    /// Any of the comparators is enabled, so the hardware has them while the vCPU is loaded.
    active: bool,
    /// The breakpoints; a guest sees the first of them.
    pub breakpoints: [Comparator; MAX_BREAKPOINTS],
    /// The watchpoints.
    pub watchpoints: [Comparator; MAX_WATCHPOINTS],
}

/// Bits of MDSCR_EL1.
mod mdscr {
    pub const SS: u64 = 1 << 0;
    pub const TDCC: u64 = 1 << 12;
    pub const KDE: u64 = 1 << 13;
    pub const MDE: u64 = 1 << 15;
    pub const ALLOWED: u64 = SS | TDCC | KDE | MDE;
    pub const WITH_OS_LOCK: u64 = TDCC;
}

impl DebugRegs {
    const UNSET: Comparator = Comparator {
        value: 0,
        control: 0,
    };

    /// After a reset: debug is off, the OS lock is locked.
    pub const RESET: Self = Self {
        mdscr: 0,
        os_unlocked: false,
        active: false,
        breakpoints: [Self::UNSET; MAX_BREAKPOINTS],
        watchpoints: [Self::UNSET; MAX_WATCHPOINTS],
    };

    /// The value for MDSCR_EL1 of the hardware. Its own OS lock must be unlocked.
    pub const fn mdscr_el1(&self) -> u64 {
        if self.os_unlocked {
            self.mdscr
        } else {
            self.mdscr & mdscr::WITH_OS_LOCK
        }
    }

    /// Says whether the hardware must have the comparators while the vCPU is loaded.
    pub const fn is_active(&self) -> bool {
        self.active
    }

    /// Answers an access to a register of op0=2.
    pub(super) fn emulate(
        &mut self,
        trap: SysRegTrap,
        write: Option<u64>,
        hw: &IdRegs,
    ) -> SysRegOutcome {
        match (trap.op1, trap.crn, trap.crm, trap.op2) {
            (0, 0, number, 4..=7) => self.comparator(number.into(), trap.op2, write, hw),
            (0, 0, 2, 2) => self.monitor_control(write),
            (0, 1, 0, 4) => self.os_lock_access(write),
            (0, 1, 1, 4) => self.os_lock_status(write),
            // OSDLR_EL1, DBGPRCR_EL1.
            (0, 1, 3 | 4, 4) => raz_wi(write),
            // MDCCINT_EL1, OSDTRRX_EL1, OSDTRTX_EL1, OSECCR_EL1.
            (0, 0, 2, 0) | (0, 0, 0 | 3 | 6, 2) => raz_wi(write),
            // DBGCLAIMSET_EL1, DBGCLAIMCLR_EL1.
            (0, 7, 8 | 9, 6) => raz_wi(write),
            // DBGDTR_EL0, DBGDTRRX_EL0 and DBGDTRTX_EL0.
            (3, 0, 4 | 5, 0) => raz_wi(write),
            // MDRAR_EL1, DBGAUTHSTATUS_EL1, MDCCSR_EL0.
            (0, 1, 0, 0) | (0, 7, 14, 6) | (3, 0, 1, 0) if write.is_none() => {
                SysRegOutcome::Read(0)
            }
            _ => SysRegOutcome::Undefined,
        }
    }

    /// DBGBVR, DBGBCR, DBGWVR and DBGWCR: op2 is 4 to 7.
    fn comparator(
        &mut self,
        number: usize,
        op2: u8,
        write: Option<u64>,
        hw: &IdRegs,
    ) -> SysRegOutcome {
        let (breakpoints, watchpoints) = comparators_shown(hw);
        let (found, count, mask) = if op2 < 6 {
            let found = self.breakpoints.get_mut(number);
            (found, breakpoints, Comparator::BREAKPOINT)
        } else {
            let found = self.watchpoints.get_mut(number);
            (found, watchpoints, Comparator::WATCHPOINT)
        };
        let Some(comparator) = found.filter(|_| number < count) else {
            return SysRegOutcome::Undefined;
        };
        let (register, mask) = if op2 & 1 == 0 {
            (&mut comparator.value, u64::MAX)
        } else {
            (&mut comparator.control, mask)
        };
        let Some(value) = write else {
            return SysRegOutcome::Read(*register);
        };
        *register = value & mask;
        let mut all = self.breakpoints.iter().chain(&self.watchpoints);
        self.active = all.any(|one| one.control & Comparator::ENABLED != 0);
        SysRegOutcome::WriteComparators
    }

    fn monitor_control(&mut self, write: Option<u64>) -> SysRegOutcome {
        match write {
            None => SysRegOutcome::Read(self.mdscr),
            Some(value) => {
                self.mdscr = value & mdscr::ALLOWED;
                SysRegOutcome::WriteHardware(HardwareReg::MdscrEl1, self.mdscr_el1())
            }
        }
    }

    /// OSLAR_EL1, write-only: bit 0 is OSLK.
    fn os_lock_access(&mut self, write: Option<u64>) -> SysRegOutcome {
        match write {
            None => SysRegOutcome::Undefined,
            Some(value) => {
                self.os_unlocked = value & 1 == 0;
                SysRegOutcome::WriteHardware(HardwareReg::MdscrEl1, self.mdscr_el1())
            }
        }
    }

    /// OSLSR_EL1, read-only: OSLM 0b10 (bits 3 and 0) says that there is a lock, OSLK is bit 1.
    fn os_lock_status(&self, write: Option<u64>) -> SysRegOutcome {
        const OSLM: u64 = 1 << 3;
        match write {
            Some(_) => SysRegOutcome::Undefined,
            None => SysRegOutcome::Read(OSLM | u64::from(!self.os_unlocked) << 1),
        }
    }
}

#[cfg(test)]
mod tests;
