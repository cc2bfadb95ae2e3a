//! The syndrome of an exception that a guest took to EL2, decoded once from values.
//!
//! Sources: Arm ARM DDI 0487, ESR_EL2, ISS encodings, ISS2; HPFAR_EL2; D8.14 for the faults. No
//! register is read here and no value panics: what is not known is a variant.

use super::fault::{DataAbort, InstructionAbort};

/// A value of ESR_EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Esr(pub u64);

impl Esr {
    /// ESR_EL2.EC, the exception class.
    pub const fn ec(self) -> u8 {
        self.field(26, 6) as u8
    }

    /// ESR_EL2.IL: the instruction was 32 bits long.
    pub const fn is_32_bit_instruction(self) -> bool {
        self.bit(25)
    }

    /// ESR_EL2.ISS, bits 24:0.
    pub const fn iss(self) -> u32 {
        self.field(0, 25) as u32
    }

    /// The immediate of HVC, SMC, SVC, BRK.
    pub const fn imm16(self) -> u16 {
        self.field(0, 16) as u16
    }

    pub(super) const fn dfsc(self) -> u8 {
        self.field(0, 6) as u8
    }

    pub(super) const fn bit(self, bit: u32) -> bool {
        self.0 >> bit & 1 != 0
    }

    pub(super) const fn field(self, shift: u32, width: u32) -> u64 {
        self.0 >> shift & ((1 << width) - 1)
    }
}

/// The registers that describe one exception, read once by the vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syndrome {
    /// ESR_EL2.
    pub esr: Esr,
    /// FAR_EL2: the virtual address, with its tag byte.
    pub far: u64,
    /// HPFAR_EL2: the page of the IPA, for some faults.
    pub hpfar: u64,
}

/// Why a guest left EL1 or EL0 by a synchronous exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// EC 0x24: a data access.
    DataAbort(DataAbort),
    /// EC 0x20: an instruction fetch.
    InstructionAbort(InstructionAbort),
    /// EC 0x16. ELR_EL2 already names the next instruction.
    Hvc {
        /// The immediate.
        imm: u16,
    },
    /// EC 0x17, trapped by HCR_EL2.TSC. ELR_EL2 names the SMC itself.
    Smc {
        /// The immediate.
        imm: u16,
    },
    /// EC 0x18: MSR, MRS or a system instruction.
    SysReg(SysRegTrap),
    /// EC 0x14: MSRR, MRRS or a 128-bit system instruction.
    SysReg128,
    /// EC 0x01: a wait.
    Wait(Wait),
    /// EC 0x07: FP or SIMD trapped by CPTR_EL2.
    FpAccess,
    /// EC 0x19: SVE.
    Sve,
    /// EC 0x1D: SME.
    Sme,
    /// EC 0x09: pointer authentication trapped by HCR_EL2.API or APK.
    Pauth,
    /// EC 0x1C: pointer authentication failed (FEAT_FPAC).
    PauthFailure,
    /// EC 0x0A: LD64B, ST64B*, and others that HCRX_EL2 does not enable.
    Ls64,
    /// EC 0x1B: TSTART.
    Tstart,
    /// EC 0x0D: branch target.
    BranchTarget,
    /// EC 0x0E: PSTATE.IL was set.
    IllegalState,
    /// EC 0x22.
    PcAlignment,
    /// EC 0x26.
    SpAlignment,
    /// EC 0x1A: ERET trapped.
    Eret,
    /// EC 0x27: memory copy and memory set.
    Mops,
    /// EC 0x2D: guarded control stack.
    Gcs,
    /// EC 0x1E: granule protection.
    GranuleProtection,
    /// EC 0x15: SVC, only by HCR_EL2.TGE or HFGITR_EL2.
    Svc {
        /// The immediate.
        imm: u16,
    },
    /// EC 0x28 and 0x2C: a trapped floating-point exception.
    FpException,
    /// EC 0x30, 0x32, 0x34, 0x3A, 0x3D: a debug exception routed here.
    Debug(DebugEvent),
    /// EC 0x3C and 0x38: a breakpoint instruction.
    Brk {
        /// The comment field.
        imm: u16,
    },
    /// EC 0x03 to 0x08, 0x0C, 0x11 to 0x13: an AArch32 access or call.
    AArch32(AArch32Trap),
    /// EC 0x2F: an SError.
    SError(SError),
    /// EC 0x00: an instruction that is UNDEFINED here, routed to EL2.
    UnknownReason,
    /// A class that a guest cannot cause here, or that is not allocated.
    Unexpected {
        /// ESR_EL2.EC.
        ec: u8,
    },
}

impl Exit {
    /// Decodes the syndrome of a synchronous exception or SError from a lower exception level.
    pub const fn decode(syndrome: Syndrome) -> Self {
        let esr = syndrome.esr;
        match esr.ec() {
            0x00 => Self::UnknownReason,
            0x01 => Self::Wait(Wait::decode(esr)),
            0x14 => Self::SysReg128,
            0x15 => Self::Svc { imm: esr.imm16() },
            0x16 => Self::Hvc { imm: esr.imm16() },
            0x17 => Self::Smc { imm: esr.imm16() },
            0x18 => Self::SysReg(SysRegTrap::decode(esr)),
            0x20 => Self::InstructionAbort(InstructionAbort::decode(syndrome)),
            0x24 => Self::DataAbort(DataAbort::decode(syndrome)),
            0x2f => Self::SError(SError::decode(esr)),
            0x38 | 0x3c => Self::Brk { imm: esr.imm16() },
            ec => Self::of_denied_feature(ec),
        }
    }

    /// What a feature that guests do not have, or a fault of their own, looks like.
    const fn of_denied_feature(ec: u8) -> Self {
        match ec {
            0x07 => Self::FpAccess,
            0x09 => Self::Pauth,
            0x0a => Self::Ls64,
            0x0d => Self::BranchTarget,
            0x0e => Self::IllegalState,
            0x19 => Self::Sve,
            0x1a => Self::Eret,
            0x1b => Self::Tstart,
            0x1c => Self::PauthFailure,
            0x1d => Self::Sme,
            0x1e => Self::GranuleProtection,
            0x22 => Self::PcAlignment,
            0x26 => Self::SpAlignment,
            0x27 => Self::Mops,
            0x28 | 0x2c => Self::FpException,
            0x2d => Self::Gcs,
            ec => Self::of_debug_or_aarch32(ec),
        }
    }

    const fn of_debug_or_aarch32(ec: u8) -> Self {
        match (DebugEvent::from_ec(ec), AArch32Trap::from_ec(ec)) {
            (Some(event), _) => Self::Debug(event),
            (None, Some(trap)) => Self::AArch32(trap),
            (None, None) => Self::Unexpected { ec },
        }
    }
}

/// A trapped MSR, MRS or system instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SysRegTrap {
    /// Op0.
    pub op0: u8,
    /// Op1.
    pub op1: u8,
    /// CRn.
    pub crn: u8,
    /// CRm.
    pub crm: u8,
    /// Op2.
    pub op2: u8,
    /// The general-purpose register, 31 is XZR.
    pub rt: u8,
    /// MSR, or a system instruction that takes a value.
    pub write: bool,
}

impl SysRegTrap {
    const fn decode(esr: Esr) -> Self {
        Self {
            op0: esr.field(20, 2) as u8,
            op1: esr.field(14, 3) as u8,
            crn: esr.field(10, 4) as u8,
            crm: esr.field(1, 4) as u8,
            op2: esr.field(17, 3) as u8,
            rt: esr.field(5, 5) as u8,
            write: !esr.bit(0),
        }
    }
}

/// A trapped wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Which instruction.
    pub kind: WaitKind,
    /// The register with the deadline in ticks of the virtual counter, for WFIT and WFET, if the
    /// syndrome names it. 31 is XZR.
    pub deadline_register: Option<u8>,
}

/// The wait instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitKind {
    /// Wait for interrupt.
    Wfi,
    /// Wait for event.
    Wfe,
    /// Wait for interrupt with timeout.
    Wfit,
    /// Wait for event with timeout.
    Wfet,
}

impl Wait {
    const fn decode(esr: Esr) -> Self {
        let kind = match esr.field(0, 2) {
            0 => WaitKind::Wfi,
            1 => WaitKind::Wfe,
            2 => WaitKind::Wfit,
            _ => WaitKind::Wfet,
        };
        let timed = matches!(kind, WaitKind::Wfit | WaitKind::Wfet);
        Self {
            kind,
            deadline_register: if timed && esr.bit(2) {
                Some(esr.field(5, 5) as u8)
            } else {
                None
            },
        }
    }
}

/// A debug exception from a lower exception level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugEvent {
    /// A hardware breakpoint.
    Breakpoint,
    /// A software step.
    Step,
    /// A watchpoint.
    Watchpoint,
    /// An AArch32 vector catch.
    VectorCatch,
    /// A profiling exception (FEAT_EBEP).
    Profiling,
}

impl DebugEvent {
    const fn from_ec(ec: u8) -> Option<Self> {
        match ec {
            0x30 => Some(Self::Breakpoint),
            0x32 => Some(Self::Step),
            0x34 => Some(Self::Watchpoint),
            0x3a => Some(Self::VectorCatch),
            0x3d => Some(Self::Profiling),
            _ => None,
        }
    }
}

/// A trap of AArch32 code: EL0 only, since HCR_EL2.RW is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AArch32Trap {
    /// EC 0x03 and 0x04: coproc 0b1111.
    Cp15,
    /// EC 0x05, 0x06 and 0x0C: coproc 0b1110.
    Cp14,
    /// EC 0x08: VMRS of an ID register.
    Vmrs,
    /// EC 0x11 to 0x13: SVC, HVC, SMC.
    Call,
}

impl AArch32Trap {
    const fn from_ec(ec: u8) -> Option<Self> {
        match ec {
            0x03 | 0x04 => Some(Self::Cp15),
            0x05 | 0x06 | 0x0c => Some(Self::Cp14),
            0x08 => Some(Self::Vmrs),
            0x11..=0x13 => Some(Self::Call),
            _ => None,
        }
    }
}

/// An SError that interrupted a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SError {
    /// The syndrome without its meaning: ESR_EL2.ISS.
    pub iss: u32,
    /// How bad it is.
    pub severity: Severity,
}

/// ESR_EL2.AET, for an SError that FEAT_RAS describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Nothing is lost: corrected, or the guest can be continued.
    Restartable,
    /// The guest cannot be continued, or not without a repair that nobody here knows.
    Unrecoverable,
    /// The error may have spread: nothing can be trusted.
    Uncontainable,
    /// IMPLEMENTATION DEFINED, or without FEAT_RAS.
    Unknown,
}

impl SError {
    const fn decode(esr: Esr) -> Self {
        const IDS: u32 = 24;
        const DFSC_RAS: u8 = 0x11;
        let severity = if esr.bit(IDS) || esr.dfsc() != DFSC_RAS {
            Severity::Unknown
        } else {
            match esr.field(10, 3) {
                0 => Severity::Uncontainable,
                1 | 3 => Severity::Unrecoverable,
                2 | 6 => Severity::Restartable,
                _ => Severity::Unknown,
            }
        };
        Self {
            iss: esr.iss(),
            severity,
        }
    }
}

#[cfg(test)]
mod tests;
