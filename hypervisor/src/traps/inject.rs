//! An exception given to a guest's EL1, and the step past an instruction that EL2 did for it.
//!
//! DDI 0487, AArch64.TakeException, section D1.3 (vectors, PSTATE on entry), and the ISS
//! encodings. Values in, values out.

use super::id_regs::{IdReg, IdRegs};

/// Bits of SPSR_EL2 and SPSR_EL1 for a state of AArch64, and what of AArch32 EL0 is needed.
pub mod spsr {
    /// `M[4]`: the state is AArch32.
    pub const AARCH32: u64 = 1 << 4;
    /// `M[3:0]`.
    pub const MODE: u64 = 0xf;
    /// `M[3:0]` of EL0.
    pub const EL0: u64 = 0b0000;
    /// `M[3:0]` of EL1 with SP_EL0.
    pub const EL1T: u64 = 0b0100;
    /// `M[3:0]` of EL1 with SP_EL1.
    pub const EL1H: u64 = 0b0101;
    /// D, A, I and F: all masked.
    pub const DAIF: u64 = 0xf << 6;
    /// BTYPE.
    pub const BTYPE: u64 = 0b11 << 10;
    /// SSBS. Bit 23 in a state of AArch32.
    pub const SSBS: u64 = 1 << 12;
    /// ALLINT (FEAT_NMI).
    pub const ALLINT: u64 = 1 << 13;
    /// IL: illegal state.
    pub const IL: u64 = 1 << 20;
    /// SS: software step, active and not pending.
    pub const SS: u64 = 1 << 21;
    /// PAN.
    pub const PAN: u64 = 1 << 22;
    /// UAO.
    pub const UAO: u64 = 1 << 23;
    /// DIT.
    pub const DIT: u64 = 1 << 24;
    /// TCO: tag checks are overridden.
    pub const TCO: u64 = 1 << 25;
    /// N, Z, C and V.
    pub const NZCV: u64 = 0xf << 28;
}

/// Bits of SCTLR_EL1 that decide PSTATE on exception entry.
mod sctlr {
    pub const SPAN: u64 = 1 << 23;
    pub const DSSBS: u64 = 1 << 44;
    pub const SPINTMASK: u64 = 1 << 62;
}

/// What a guest was doing when it left, and how its EL1 wants exceptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// ELR_EL2: the instruction to blame.
    pub pc: u64,
    /// SPSR_EL2.
    pub pstate: u64,
    /// SCTLR_EL1.
    pub sctlr_el1: u64,
    /// VBAR_EL1.
    pub vbar_el1: u64,
}

/// The parts of PSTATE that the hardware has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PstateFeatures {
    /// FEAT_PAN.
    pub pan: bool,
    /// FEAT_SSBS.
    pub ssbs: bool,
    /// FEAT_MTE: PSTATE.TCO, which exists whether or not the guest has tags.
    pub tco: bool,
    /// FEAT_NMI.
    pub nmi: bool,
}

impl PstateFeatures {
    /// The parts of PSTATE that `hw` has.
    pub fn of(hw: &IdRegs) -> Self {
        Self {
            pan: hw.field(IdReg::MMFR1, 20) != 0,
            ssbs: hw.field(IdReg::PFR1, 4) != 0,
            tco: hw.field(IdReg::PFR1, 8) != 0,
            nmi: hw.has_nmi(),
        }
    }
}

/// The exception to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exception {
    /// An instruction that is UNDEFINED: a hidden feature, an unknown register.
    Undefined,
    /// A synchronous external abort of a load or store: nothing answers at the address.
    DataAbort {
        /// FAR_EL2, if it was valid.
        far: Option<u64>,
        /// A write.
        write: bool,
        /// A cache maintenance instruction.
        cache_maintenance: bool,
    },
    /// A synchronous external abort of a fetch.
    InstructionAbort {
        /// FAR_EL2, if it was valid.
        far: Option<u64>,
    },
    /// An SError taken now. The usual way is HCR_EL2.VSE, which waits for PSTATE.A.
    SError {
        /// ESR_EL1.ISS.
        iss: u32,
    },
}

/// The new state of a guest that takes an exception to its EL1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Injected {
    /// ELR_EL1.
    pub elr_el1: u64,
    /// SPSR_EL1.
    pub spsr_el1: u64,
    /// ESR_EL1.
    pub esr_el1: u64,
    /// FAR_EL1, if the exception sets it.
    pub far_el1: Option<u64>,
    /// The new ELR_EL2.
    pub pc: u64,
    /// The new SPSR_EL2.
    pub pstate: u64,
}

/// Takes `exception` to EL1.
pub const fn inject(exception: Exception, from: Origin, features: PstateFeatures) -> Injected {
    Injected {
        elr_el1: from.pc,
        spsr_el1: from.pstate,
        esr_el1: syndrome(exception, is_el0(from.pstate)),
        far_el1: fault_address(exception),
        pc: vector(from, matches!(exception, Exception::SError { .. })),
        pstate: entry_pstate(from, features),
    }
}

/// PSTATE.EL is EL0, in AArch64 or AArch32.
pub const fn is_el0(pstate: u64) -> bool {
    pstate & spsr::MODE == spsr::EL0
}

/// The address of the vector (D1.3.1.5). VBAR_EL1 bits 10:0 are RES0.
const fn vector(from: Origin, serror: bool) -> u64 {
    let group = if from.pstate & spsr::AARCH32 != 0 {
        0x600
    } else {
        match from.pstate & spsr::MODE {
            spsr::EL0 => 0x400,
            spsr::EL1T => 0x000,
            _ => 0x200,
        }
    };
    let kind = if serror { 0x180 } else { 0x000 };
    (from.vbar_el1 & !0x7ff) + group + kind
}

/// PSTATE after the entry: what is not named is kept or cleared by the pseudocode.
const fn entry_pstate(from: Origin, features: PstateFeatures) -> u64 {
    let kept = from.pstate & (spsr::NZCV | spsr::DIT | spsr::PAN);
    let mut pstate = kept | spsr::DAIF | spsr::EL1H;
    if features.pan && from.sctlr_el1 & sctlr::SPAN == 0 {
        pstate |= spsr::PAN;
    }
    if features.ssbs && from.sctlr_el1 & sctlr::DSSBS != 0 {
        pstate |= spsr::SSBS;
    }
    if features.tco {
        pstate |= spsr::TCO;
    }
    if features.nmi && from.sctlr_el1 & sctlr::SPINTMASK == 0 {
        pstate |= spsr::ALLINT;
    }
    pstate
}

const fn syndrome(exception: Exception, from_el0: bool) -> u64 {
    const IL: u64 = 1 << 25;
    const SYNC_EXTERNAL: u64 = 0x10;
    let same_level = if from_el0 { 0 } else { 1 };
    let (class, iss) = match exception {
        Exception::Undefined => (0x00, 0),
        Exception::DataAbort {
            far,
            write,
            cache_maintenance,
        } => {
            let wnr = (write as u64) << 6;
            let cm = (cache_maintenance as u64) << 8;
            (0x24 + same_level, SYNC_EXTERNAL | wnr | cm | fnv(far))
        }
        Exception::InstructionAbort { far } => (0x20 + same_level, SYNC_EXTERNAL | fnv(far)),
        Exception::SError { iss } => (0x2f, iss as u64 & 0x1ff_ffff),
    };
    class << 26 | IL | iss
}

/// FnV: FAR_EL1 is not valid.
const fn fnv(far: Option<u64>) -> u64 {
    if far.is_none() { 1 << 10 } else { 0 }
}

const fn fault_address(exception: Exception) -> Option<u64> {
    match exception {
        Exception::DataAbort { far, .. } | Exception::InstructionAbort { far } => far,
        Exception::Undefined | Exception::SError { .. } => None,
    }
}

/// Steps past an instruction that EL2 performed: a trapped SMC, MSR, MRS or WFI, an emulated access.
///
/// Not for HVC, whose return address is the next instruction already. Gives the new (PC, PSTATE).
/// As executing it would: BTYPE is cleared, a software step is done (D2.12), the IT state moves on.
#[inline]
pub const fn advance(pc: u64, pstate: u64, is_32_bit_instruction: bool) -> (u64, u64) {
    if pstate & spsr::AARCH32 != 0 {
        let bytes = if is_32_bit_instruction { 4 } else { 2 };
        let pc = pc.wrapping_add(bytes) & 0xffff_ffff;
        return (pc, next_it(pstate) & !spsr::SS);
    }
    (pc.wrapping_add(4), pstate & !(spsr::BTYPE | spsr::SS))
}

/// ITAdvance (DDI 0487, shared/functions): `IT[1:0]` are bits 26:25, `IT[7:2]` are bits 15:10.
const fn next_it(pstate: u64) -> u64 {
    const FIELD: u64 = 0b11 << 25 | 0x3f << 10;
    let it = pstate >> 25 & 0b11 | (pstate >> 10 & 0x3f) << 2;
    let next = if it & 0b111 == 0 {
        0
    } else {
        it & 0xe0 | it << 1 & 0x1f
    };
    pstate & !FIELD | (next & 0b11) << 25 | (next >> 2) << 10
}

#[cfg(test)]
mod tests;
