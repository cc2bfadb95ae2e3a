//! The EL2 controls under which a guest runs: what its ID registers show works, the rest traps.
//!
//! Made of the same ID registers as [`super::id_regs`], so that a field and its enables change
//! together. A control bit of a feature that the hardware lacks is RES0 and stays 0. Layouts: DDI
//! 0487, section D24.2, the register named. HCR_EL2.E2H is 0.

use super::id_regs::{GuestShape, IdReg, IdRegs};

/// Bits of HCR_EL2.
pub mod hcr {
    /// Stage 2 is on.
    pub const VM: u64 = 1 << 0;
    /// DC ISW cleans too.
    pub const SWIO: u64 = 1 << 1;
    /// A stage 1 walk into Device memory faults.
    pub const PTW: u64 = 1 << 2;
    /// FIQs come to EL2.
    pub const FMO: u64 = 1 << 3;
    /// IRQs come to EL2.
    pub const IMO: u64 = 1 << 4;
    /// SErrors come to EL2.
    pub const AMO: u64 = 1 << 5;
    /// A virtual SError is pending.
    pub const VSE: u64 = 1 << 8;
    /// TLB and instruction cache maintenance is broadcast.
    pub const FB: u64 = 1 << 9;
    /// Barriers act at least on the Inner Shareable domain.
    pub const BSU_INNER: u64 = 0b01 << 10;
    /// WFI traps.
    pub const TWI: u64 = 1 << 13;
    /// WFE traps.
    pub const TWE: u64 = 1 << 14;
    /// REVIDR, AIDR and SMIDR trap.
    pub const TID1: u64 = 1 << 16;
    /// The ID registers trap.
    pub const TID3: u64 = 1 << 18;
    /// SMC traps.
    pub const TSC: u64 = 1 << 19;
    /// IMPLEMENTATION DEFINED registers and instructions trap.
    pub const TIDCP: u64 = 1 << 20;
    /// ACTLR_EL1 traps.
    pub const TACR: u64 = 1 << 21;
    /// Cache maintenance by set and way traps.
    pub const TSW: u64 = 1 << 22;
    /// EL1 is AArch64.
    pub const RW: u64 = 1 << 31;
    /// The LORegion registers trap (FEAT_LOR).
    pub const TLOR: u64 = 1 << 35;
    /// The error record registers trap (FEAT_RAS).
    pub const TERR: u64 = 1 << 36;
    /// TSTART and its kin are enabled (FEAT_TME).
    pub const TME: u64 = 1 << 39;
    /// The pointer authentication keys do not trap.
    pub const APK: u64 = 1 << 40;
    /// Pointer authentication instructions do not trap.
    pub const API: u64 = 1 << 41;
    /// Nested virtualization.
    pub const NV: u64 = 1 << 42;
    /// Stage 2 attributes win over stage 1's (FEAT_S2FWB).
    pub const FWB: u64 = 1 << 46;
    /// Fault injection registers do not trap (FEAT_RASv1p1).
    pub const FIEN: u64 = 1 << 47;
    /// SCXTNUM_EL1 and SCXTNUM_EL0 do not trap (FEAT_CSV2_2).
    pub const EN_SCXT: u64 = 1 << 53;
    /// Allocation tags can be accessed (FEAT_MTE2).
    pub const ATA: u64 = 1 << 56;
    /// GMID_EL1 traps (FEAT_MTE2).
    pub const TID5: u64 = 1 << 58;
}

/// Bits of HCRX_EL2. A feature that a guest gets later has its enable here.
pub mod hcrx {
    /// ST64BV0 does not trap.
    pub const EN_AS0: u64 = 1 << 0;
    /// LD64B and ST64B do not trap.
    pub const EN_ALS: u64 = 1 << 1;
    /// ST64BV does not trap.
    pub const EN_ASR: u64 = 1 << 2;
    /// MSR ALLINT traps (FEAT_NMI).
    pub const TALLINT: u64 = 1 << 6;
    /// Memory copy and set instructions are not UNDEFINED.
    pub const MSC_EN: u64 = 1 << 11;
    /// TCR2_EL1 does not trap and has effect.
    pub const TCR2_EN: u64 = 1 << 14;
    /// SCTLR2_EL1 does not trap and has effect.
    pub const SCTLR2_EN: u64 = 1 << 15;
    /// 128-bit system registers do not trap.
    pub const D128_EN: u64 = 1 << 17;
    /// 128-bit IMPLEMENTATION DEFINED registers do not trap.
    pub const EN_IDCP128: u64 = 1 << 21;
    /// Guarded control stacks are enabled.
    pub const GCS_EN: u64 = 1 << 22;
    /// FPMR does not trap.
    pub const EN_FPM: u64 = 1 << 23;
    /// The system register masks are enabled.
    pub const SRMASK_EN: u64 = 1 << 26;
}

/// Bits of CPTR_EL2 with E2H=0.
pub mod cptr {
    /// RES1, and with it TSM and TZ, which are RES1 without SME and SVE.
    pub const RES1: u64 = 0x33ff;
    /// SVE traps.
    pub const TZ: u64 = 1 << 8;
    /// FP and SIMD trap.
    pub const TFP: u64 = 1 << 10;
    /// SME traps.
    pub const TSM: u64 = 1 << 12;
    /// Trace registers trap.
    pub const TTA: u64 = 1 << 20;
    /// Activity monitors trap (FEAT_AMUv1).
    pub const TAM: u64 = 1 << 30;
    /// CPACR_EL1 traps.
    pub const TCPAC: u64 = 1 << 31;
}

/// Bits of MDCR_EL2.
pub mod mdcr {
    /// PMCR_EL0 traps.
    pub const TPMCR: u64 = 1 << 5;
    /// Performance monitors trap.
    pub const TPM: u64 = 1 << 6;
    /// Debug registers trap.
    pub const TDA: u64 = 1 << 9;
    /// OS lock and power-down registers trap.
    pub const TDOSA: u64 = 1 << 10;
    /// Debug ROM registers trap.
    pub const TDRA: u64 = 1 << 11;
    /// Profiling buffer: 0 gives it to EL2 and traps EL1.
    pub const E2PB: u64 = 0b11 << 12;
    /// Statistical profiling registers trap (FEAT_SPE).
    pub const TPMS: u64 = 1 << 14;
    /// System performance monitors do not trap (FEAT_SPMU).
    pub const EN_SPM: u64 = 1 << 15;
    /// Trace filter registers trap (FEAT_TRF).
    pub const TTRF: u64 = 1 << 19;
    /// Trace buffer: 0 gives it to EL2 and traps EL1.
    pub const E2TB: u64 = 0b11 << 24;
    /// MDSTEPOP_EL1 does not trap (FEAT_STEP2).
    pub const EN_STEPOP: u64 = 1 << 50;
    /// Mask of HPMN, the number of counters of EL1.
    pub const HPMN: u64 = 0x1f;
}

/// Bits of CNTHCTL_EL2 with E2H=0.
pub mod cnthctl {
    /// CNTPCT_EL0 does not trap.
    pub const EL1PCTEN: u64 = 1 << 0;
    /// CNTP_*_EL0 do not trap.
    pub const EL1PCEN: u64 = 1 << 1;
}

/// Bits of HFGRTR_EL2 and HFGWTR_EL2. Without "N": 1 traps. With "N": 0 traps.
pub mod hfgxtr {
    /// LORC, LOREA, LORID, LORN, LORSA.
    pub const LOR: u64 = 0b1_1111 << 19;
    /// LORID alone, which cannot be written.
    pub const LORID: u64 = 1 << 21;
    /// SCXTNUM_EL1 and SCXTNUM_EL0.
    pub const SCXTNUM: u64 = 0b11 << 30;
    /// ERRIDR to ERXMISCn and ERXADDR.
    pub const ERR: u64 = 0b11_1111 << 40 | 1 << 49;
    /// ERRIDR and ERXFR alone, which cannot be written.
    pub const ERR_READ_ONLY: u64 = 1 << 40 | 1 << 42;
    /// ERXPFGF, ERXPFGCTL, ERXPFGCDN.
    pub const ERXPFG: u64 = 0b111 << 46;
    /// ERXPFGF alone, which cannot be written.
    pub const ERXPFGF: u64 = 1 << 46;
    /// ACCDATA_EL1.
    pub const N_ACCDATA: u64 = 1 << 50;
    /// The guarded control stack registers of EL0 and EL1.
    pub const N_GCS: u64 = 0b11 << 52;
    /// SMPRI_EL1.
    pub const N_SMPRI: u64 = 1 << 54;
    /// TPIDR2_EL0.
    pub const N_TPIDR2: u64 = 1 << 55;
    /// RCWMASK_EL1.
    pub const N_RCWMASK: u64 = 1 << 56;
    /// PIRE0_EL1 and PIR_EL1.
    pub const N_PIR: u64 = 0b11 << 57;
    /// POR_EL0 and POR_EL1.
    pub const N_POR: u64 = 0b11 << 59;
    /// S2POR_EL1.
    pub const N_S2POR: u64 = 1 << 61;
    /// MAIR2_EL1 and AMAIR2_EL1.
    pub const N_MAIR2: u64 = 0b11 << 62;
}

/// Bits of HFGITR_EL2.
pub mod hfgitr {
    /// BRB INJ and BRB IALL, 0 traps.
    pub const N_BRB: u64 = 0b11 << 55;
    /// GCSPUSHM, GCSSTR and their kin, 0 traps.
    pub const N_GCS: u64 = 0b111 << 57;
    /// COSP RCTX, 1 traps (FEAT_SPECRES2).
    pub const COSPRCTX: u64 = 1 << 60;
}

/// Bits of HDFGRTR_EL2 and HDFGWTR_EL2.
pub mod hdfgxtr {
    /// TRBIDR_EL1, which E2TB leaves readable.
    pub const TRBIDR: u64 = 1 << 51;
    /// The branch record registers, 0 traps.
    pub const N_BRB: u64 = 0b111 << 59;
    /// PMBIDR_EL1, which E2PB leaves readable.
    pub const PMBIDR: u64 = 1 << 63;
}

/// Bits of HFGRTR2_EL2 and HFGWTR2_EL2.
pub mod hfgxtr2 {
    /// PFAR_EL1, 0 traps.
    pub const N_PFAR: u64 = 1 << 0;
    /// ERXGSR_EL1, 0 traps.
    pub const N_ERXGSR: u64 = 1 << 1;
}

/// Bits of MPAM2_EL2.
pub mod mpam2 {
    /// MPAM1_EL1 traps.
    pub const TRAP_MPAM1: u64 = 1 << 48;
    /// MPAM0_EL1 traps.
    pub const TRAP_MPAM0: u64 = 1 << 49;
}

/// The registers of FEAT_FGT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FineGrained {
    /// HFGRTR_EL2.
    pub hfgrtr: u64,
    /// HFGWTR_EL2.
    pub hfgwtr: u64,
    /// HFGITR_EL2.
    pub hfgitr: u64,
    /// HDFGRTR_EL2.
    pub hdfgrtr: u64,
    /// HDFGWTR_EL2.
    pub hdfgwtr: u64,
    /// HAFGRTR_EL2, only with FEAT_AMUv1.
    pub hafgrtr: Option<u64>,
}

/// The registers of FEAT_FGT2. All their features are hidden, and nearly all bits trap at 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FineGrained2 {
    /// HFGRTR2_EL2.
    pub hfgrtr2: u64,
    /// HFGWTR2_EL2.
    pub hfgwtr2: u64,
    /// HFGITR2_EL2.
    pub hfgitr2: u64,
    /// HDFGRTR2_EL2.
    pub hdfgrtr2: u64,
    /// HDFGWTR2_EL2.
    pub hdfgwtr2: u64,
}

/// The values of the EL2 registers that decide what a guest may do. None: no such register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controls {
    /// HCR_EL2.
    pub hcr_el2: u64,
    /// HCRX_EL2, with FEAT_HCX.
    pub hcrx_el2: Option<u64>,
    /// CPTR_EL2.
    pub cptr_el2: u64,
    /// MDCR_EL2.
    pub mdcr_el2: u64,
    /// CNTHCTL_EL2.
    pub cnthctl_el2: u64,
    /// With FEAT_FGT.
    pub fgt: Option<FineGrained>,
    /// With FEAT_FGT2.
    pub fgt2: Option<FineGrained2>,
    /// MPAM2_EL2, with FEAT_MPAM.
    pub mpam2_el2: Option<u64>,
}

/// What a CPU has, for the enables that follow from it.
impl IdRegs {
    fn has(&self, id: IdReg, shift: u32) -> bool {
        self.field(id, shift) != 0
    }

    /// FEAT_MTE2: allocation tags, not just the instructions.
    pub fn has_mte2(&self) -> bool {
        self.field(IdReg::PFR1, 8) >= 2
    }

    /// FEAT_MTE_PERM: stage 2 can map NoTagAccess.
    pub fn has_mte_perm(&self) -> bool {
        self.has(IdReg::PFR2, 0)
    }

    /// FEAT_ATS1A.
    pub fn has_ats1a(&self) -> bool {
        self.has(IdReg::ISAR2, 60)
    }

    /// FEAT_S2FWB.
    pub fn has_fwb(&self) -> bool {
        self.has(IdReg::MMFR2, 40)
    }

    /// FEAT_SVE.
    pub fn has_sve(&self) -> bool {
        self.has(IdReg::PFR0, 32)
    }

    /// FEAT_SME.
    pub fn has_sme(&self) -> bool {
        self.has(IdReg::PFR1, 24)
    }

    /// FEAT_NMI.
    pub fn has_nmi(&self) -> bool {
        self.has(IdReg::PFR1, 36)
    }

    /// FEAT_PAuth, by any algorithm.
    pub fn has_pauth(&self) -> bool {
        let isar1 = [4, 8, 24, 28].map(|shift| self.field(IdReg::ISAR1, shift));
        let isar2 = [8, 12].map(|shift| self.field(IdReg::ISAR2, shift));
        isar1.iter().chain(&isar2).any(|&field| field != 0)
    }

    /// FEAT_PMUv3, and so PMCR_EL0.N. 0xF is a monitor of another architecture.
    pub fn has_pmu(&self) -> bool {
        !matches!(self.field(IdReg::DFR0, 8), 0 | 0xf)
    }

    /// FEAT_HCX.
    pub fn has_hcx(&self) -> bool {
        self.has(IdReg::MMFR1, 40)
    }

    /// FEAT_RAS.
    pub fn has_ras(&self) -> bool {
        self.has(IdReg::PFR0, 28) || self.has(IdReg::PFR1, 12)
    }

    /// FEAT_MPAM: version 0.1 is a fraction without a whole.
    pub fn has_mpam(&self) -> bool {
        self.has(IdReg::PFR0, 40) || self.has(IdReg::PFR1, 16)
    }

    /// FEAT_RASv1p1, by the field or by the fraction.
    fn has_ras_v1p1(&self) -> bool {
        self.field(IdReg::PFR0, 28) >= 2 || self.has(IdReg::PFR1, 12)
    }

    /// FEAT_CSV2_2 or FEAT_CSV2_1p2: SCXTNUM_ELx exist.
    fn has_scxtnum(&self) -> bool {
        self.field(IdReg::PFR0, 56) >= 2 || self.field(IdReg::PFR1, 32) >= 2
    }
}

/// The controls for a guest of this `shape` on a CPU with these registers.
///
/// `pmu_counters` is PMCR_EL0.N, ignored without a PMU. Hidden features trap or are UNDEFINED; the
/// caller has to give a guest an UNDEFINED exception for each such trap.
pub fn controls(hw: &IdRegs, shape: GuestShape, pmu_counters: u64) -> Controls {
    let fgt_level = hw.field(IdReg::MMFR0, 56);
    Controls {
        hcr_el2: hcr_el2(hw, shape),
        hcrx_el2: hw.has_hcx().then(|| hcrx_el2(hw)),
        cptr_el2: cptr_el2(hw),
        mdcr_el2: mdcr_el2(hw, pmu_counters),
        cnthctl_el2: cnthctl::EL1PCTEN,
        fgt: (fgt_level >= 1).then(|| fine_grained(hw)),
        fgt2: (fgt_level >= 2).then(FineGrained2::default),
        mpam2_el2: hw
            .has_mpam()
            .then_some(mpam2::TRAP_MPAM0 | mpam2::TRAP_MPAM1),
    }
}

/// `bits` if `condition` holds.
fn when(condition: bool, bits: u64) -> u64 {
    if condition { bits } else { 0 }
}

fn hcr_el2(hw: &IdRegs, shape: GuestShape) -> u64 {
    const ALWAYS: u64 = hcr::VM
        | hcr::SWIO
        | hcr::PTW
        | hcr::FMO
        | hcr::IMO
        | hcr::AMO
        | hcr::FB
        | hcr::BSU_INNER
        | hcr::TWI
        | hcr::TID1
        | hcr::TID3
        | hcr::TSC
        | hcr::TIDCP
        | hcr::TACR
        | hcr::TSW
        | hcr::RW;
    ALWAYS
        | when(hw.has(IdReg::MMFR1, 16), hcr::TLOR)
        | when(hw.has_ras(), hcr::TERR)
        | when(hw.has_pauth(), hcr::APK | hcr::API)
        | when(hw.has_fwb(), hcr::FWB)
        | when(hw.has_mte2() && shape.mte, hcr::ATA)
        | when(hw.has_mte2() && !shape.mte, hcr::TID5)
}

/// Every enable stays 0: no feature behind one is shown. ALLINT traps by a 1.
fn hcrx_el2(hw: &IdRegs) -> u64 {
    when(hw.has_nmi(), hcrx::TALLINT)
}

fn cptr_el2(hw: &IdRegs) -> u64 {
    cptr::RES1
        | cptr::TCPAC
        | when(hw.has(IdReg::DFR0, 4), cptr::TTA)
        | when(hw.has(IdReg::PFR0, 44), cptr::TAM)
}

fn mdcr_el2(hw: &IdRegs, pmu_counters: u64) -> u64 {
    mdcr::TDRA
        | mdcr::TDOSA
        | mdcr::TDA
        | when(hw.has(IdReg::DFR0, 8), mdcr::TPM | mdcr::TPMCR)
        | when(hw.has_pmu(), pmu_counters & mdcr::HPMN)
        | when(hw.has(IdReg::DFR0, 32), mdcr::TPMS)
        | when(hw.has(IdReg::DFR0, 40), mdcr::TTRF)
}

fn fine_grained(hw: &IdRegs) -> FineGrained {
    let both = when(hw.has(IdReg::MMFR1, 16), hfgxtr::LOR)
        | when(hw.has_scxtnum(), hfgxtr::SCXTNUM)
        | when(hw.has_ras(), hfgxtr::ERR)
        | when(hw.has_ras_v1p1(), hfgxtr::ERXPFG);
    let read_only = hfgxtr::LORID | hfgxtr::ERR_READ_ONLY | hfgxtr::ERXPFGF;
    FineGrained {
        hfgrtr: both,
        hfgwtr: both & !read_only,
        hfgitr: when(hw.field(IdReg::ISAR1, 40) >= 2, hfgitr::COSPRCTX),
        hdfgrtr: when(hw.has(IdReg::DFR0, 32), hdfgxtr::PMBIDR)
            | when(hw.has(IdReg::DFR0, 44), hdfgxtr::TRBIDR),
        hdfgwtr: 0,
        hafgrtr: hw.has(IdReg::PFR0, 44).then_some(0),
    }
}

#[cfg(test)]
mod tests;
