//! Trapped system registers and instructions: a default-deny table.
//!
//! What is not named is UNDEFINED, which is how everything hidden looks: PMU, AMU, SPE, trace, SVE,
//! SME, RAS records, LORegions, MTE without tags, and whatever comes next. Encodings: DDI 0487,
//! section D24.2, D23.1 for the instructions.

use super::debug::DebugRegs;
use super::esr::SysRegTrap;
use super::id_regs::{GuestShape, IdReg, IdRegs};

/// What the caller has to do for a trapped access. After all but `Undefined` the PC advances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SysRegOutcome {
    /// Put this into Rt (nowhere if Rt is 31).
    Read(u64),
    /// Nothing.
    WriteIgnored,
    /// Write the hardware register: the guest's view of it is recorded already.
    WriteHardware(HardwareReg, u64),
    /// Write the guest's breakpoints and watchpoints to the hardware: its view of them is recorded already.
    WriteComparators,
    /// Send a software generated interrupt.
    Sgi {
        /// Which register was written.
        register: SgiReg,
        /// The value.
        value: u64,
    },
    /// Cache maintenance by set and way. With FEAT_S2FWB there is nothing to do.
    SetWay,
    /// The EL1 physical timer: a read gives Rt the answer.
    PhysicalTimer {
        /// Which register.
        register: TimerReg,
        /// The value of a write, None for a read.
        write: Option<u64>,
    },
    /// Deactivate this INTID: ICC_DIR_EL1, which traps while the list registers do not hold all that
    /// is active.
    DeactivateInterrupt(u32),
    /// Inject [`super::inject::Exception::Undefined`]. The PC stays.
    Undefined,
}

/// A register that is written through, with the guest's view in [`VcpuSysRegs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HardwareReg {
    /// MDSCR_EL1.
    MdscrEl1,
    /// CPACR_EL1.
    CpacrEl1,
}

/// The registers that send interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SgiReg {
    /// ICC_SGI1R_EL1: group 1 of the own security state.
    Sgi1r,
    /// ICC_ASGI1R_EL1: group 1 of the other security state.
    Asgi1r,
    /// ICC_SGI0R_EL1: group 0.
    Sgi0r,
}

/// The registers of the EL1 physical timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerReg {
    /// CNTP_TVAL_EL0.
    Tval,
    /// CNTP_CTL_EL0.
    Ctl,
    /// CNTP_CVAL_EL0.
    Cval,
}

/// The state of one vCPU behind its trapped registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuSysRegs {
    cpacr: u64,
    /// What the guest's debugger has set.
    pub debug: DebugRegs,
}

/// Fields of CPACR_EL1.
mod cpacr {
    pub const ZEN: u64 = 0b11 << 16;
    pub const FPEN: u64 = 0b11 << 20;
    pub const SMEN: u64 = 0b11 << 24;
}

impl Default for VcpuSysRegs {
    fn default() -> Self {
        Self::RESET
    }
}

impl VcpuSysRegs {
    /// After a reset: FP traps, debug is off, the OS lock is locked.
    pub const RESET: Self = Self {
        cpacr: 0,
        debug: DebugRegs::RESET,
    };

    /// The value for CPACR_EL1 of the hardware.
    ///
    /// SVE and SME must not trap to EL1, where they would be reported as such (EC 0x19, 0x1D): they
    /// pass here, trap to EL2 by CPTR_EL2, and become UNDEFINED.
    pub fn cpacr_el1(&self, hw: &IdRegs) -> u64 {
        let zen = if hw.has_sve() { cpacr::ZEN } else { 0 };
        let smen = if hw.has_sme() { cpacr::SMEN } else { 0 };
        self.cpacr | zen | smen
    }
}

/// The machine that a trapped access meets.
#[derive(Clone, Copy, Debug)]
pub struct SysRegContext<'a> {
    /// The hardware's ID registers.
    pub hw: &'a IdRegs,
    /// The guest's shape.
    pub shape: GuestShape,
}

/// Answers a trapped access. `rt_value` is the register named by Rt, for a write.
pub fn emulate(
    trap: SysRegTrap,
    rt_value: u64,
    context: SysRegContext,
    regs: &mut VcpuSysRegs,
) -> SysRegOutcome {
    let write = trap
        .write
        .then_some(if trap.rt == 31 { 0 } else { rt_value });
    match (trap.op0, trap.op1, trap.crn) {
        (1, 0, 7) => data_cache(trap, context.shape),
        (2, _, _) => regs.debug.emulate(trap, write, context.hw),
        (3, 0, 0) => identification(trap, context),
        (3, 0, 1) => control(trap, write, context, regs),
        // AIDR_EL1, by TID1 like SMIDR_EL1. IMPLEMENTATION DEFINED, and nothing to say.
        (3, 1, 0) if (trap.crm, trap.op2) == (0, 7) && write.is_none() => SysRegOutcome::Read(0),
        (3, 0, 12) => interrupt_controller(trap, write),
        (3, 3, 14) => physical_timer(trap, write),
        _ => SysRegOutcome::Undefined,
    }
}

/// DC by set and way: (CRm, op2). The forms with tags need a guest with tags.
fn data_cache(trap: SysRegTrap, shape: GuestShape) -> SysRegOutcome {
    match (trap.crm, trap.op2) {
        _ if !trap.write => SysRegOutcome::Undefined,
        (6 | 10 | 14, 2) => SysRegOutcome::SetWay,
        (6 | 10 | 14, 4 | 6) if shape.mte => SysRegOutcome::SetWay,
        _ => SysRegOutcome::Undefined,
    }
}

/// ID registers of op1 0, by HCR_EL2.TID3, and REVIDR_EL1, by TID1.
fn identification(trap: SysRegTrap, context: SysRegContext) -> SysRegOutcome {
    let id = IdReg {
        crm: trap.crm,
        op2: trap.op2,
    };
    match (trap.write, id.crm, id.op2) {
        (false, 0, 6) => SysRegOutcome::Read(context.hw.revidr),
        (false, 1..=7, _) => SysRegOutcome::Read(context.hw.for_guest(id, context.shape)),
        _ => SysRegOutcome::Undefined,
    }
}

/// ACTLR_EL1 (RAZ/WI) and CPACR_EL1.
fn control(
    trap: SysRegTrap,
    write: Option<u64>,
    context: SysRegContext,
    regs: &mut VcpuSysRegs,
) -> SysRegOutcome {
    match (trap.crm, trap.op2, write) {
        (0, 1, _) => raz_wi(write),
        (0, 2, None) => SysRegOutcome::Read(regs.cpacr),
        (0, 2, Some(value)) => {
            regs.cpacr = value & cpacr::FPEN;
            SysRegOutcome::WriteHardware(HardwareReg::CpacrEl1, regs.cpacr_el1(context.hw))
        }
        _ => SysRegOutcome::Undefined,
    }
}

/// The write-only registers of the GIC CPU interface that trap.
fn interrupt_controller(trap: SysRegTrap, write: Option<u64>) -> SysRegOutcome {
    // ICC_SRE_EL1: SRE, DFB and DIB are fixed to 1; there is one for all guests.
    const SRE: u64 = 0x7;
    if (trap.crm, trap.op2) == (12, 5) {
        return write.map_or(SysRegOutcome::Read(SRE), |_| SysRegOutcome::WriteIgnored);
    }
    let Some(value) = write else {
        return SysRegOutcome::Undefined;
    };
    let register = match (trap.crm, trap.op2) {
        (11, 1) => return SysRegOutcome::DeactivateInterrupt((value & 0xff_ffff) as u32),
        (11, 5) => SgiReg::Sgi1r,
        (11, 6) => SgiReg::Asgi1r,
        (11, 7) => SgiReg::Sgi0r,
        _ => return SysRegOutcome::Undefined,
    };
    SysRegOutcome::Sgi { register, value }
}

fn physical_timer(trap: SysRegTrap, write: Option<u64>) -> SysRegOutcome {
    let register = match (trap.crm, trap.op2) {
        (2, 0) => TimerReg::Tval,
        (2, 1) => TimerReg::Ctl,
        (2, 2) => TimerReg::Cval,
        _ => return SysRegOutcome::Undefined,
    };
    SysRegOutcome::PhysicalTimer { register, write }
}

pub(super) fn raz_wi(write: Option<u64>) -> SysRegOutcome {
    match write {
        None => SysRegOutcome::Read(0),
        Some(_) => SysRegOutcome::WriteIgnored,
    }
}

#[cfg(test)]
mod tests;
