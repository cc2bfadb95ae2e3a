//! Every feature that guests do not see, and what stops one that tries anyway.
//!
//! One entry per field of the AArch64 ID registers that [`super::id_regs`] does not show. The tests
//! hold each against [`super::controls`], and the list against the architecture's own.

use super::controls::{Controls, cptr, hcr, hcrx, hdfgxtr, hfgitr, hfgxtr, hfgxtr2, mdcr, mpam2};
use super::id_regs::{IdReg, IdRegs};

/// A hidden field.
#[derive(Clone, Copy, Debug)]
pub struct Hidden {
    /// The field's name, FEAT_ or as in the register.
    pub name: &'static str,
    /// The register.
    pub id: IdReg,
    /// The lowest of its 4 bits.
    pub shift: u32,
    /// What stops a guest, all of these.
    pub denials: &'static [Denial],
}

/// One reason why a hidden feature is out of reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// These bits are 1, and an access traps to EL2.
    Trap(Control, u64),
    /// These bits are 0, and the feature traps or is UNDEFINED.
    Off(Control, u64),
    /// EL1 has no way to it: it belongs to stage 2, EL2 or EL3.
    OutOfReach,
    /// Nothing denies it, and nothing is lost: why.
    Harmless(&'static str),
}

/// The registers that deny.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// HCR_EL2.
    Hcr,
    /// HCRX_EL2.
    Hcrx,
    /// CPTR_EL2.
    Cptr,
    /// MDCR_EL2.
    Mdcr,
    /// HFGRTR_EL2.
    Hfgrtr,
    /// HFGWTR_EL2.
    Hfgwtr,
    /// HFGITR_EL2.
    Hfgitr,
    /// HDFGRTR_EL2.
    Hdfgrtr,
    /// HDFGWTR_EL2.
    Hdfgwtr,
    /// HFGRTR2_EL2.
    Hfgrtr2,
    /// HFGITR2_EL2.
    Hfgitr2,
    /// HDFGRTR2_EL2.
    Hdfgrtr2,
    /// MPAM2_EL2.
    Mpam2,
}

impl Denial {
    /// Whether `controls` carry this denial out. None: the hardware has no such register.
    pub fn holds(self, controls: &Controls) -> Option<bool> {
        match self {
            Self::Trap(control, bits) => Some(control.value(controls)? & bits == bits),
            Self::Off(control, bits) => Some(control.value(controls)? & bits == 0),
            Self::OutOfReach | Self::Harmless(_) => Some(true),
        }
    }
}

impl Control {
    fn value(self, controls: &Controls) -> Option<u64> {
        let fgt = controls.fgt;
        let fgt2 = controls.fgt2;
        match self {
            Self::Hcr => Some(controls.hcr_el2),
            Self::Hcrx => controls.hcrx_el2,
            Self::Cptr => Some(controls.cptr_el2),
            Self::Mdcr => Some(controls.mdcr_el2),
            Self::Mpam2 => controls.mpam2_el2,
            Self::Hfgrtr => fgt.map(|fgt| fgt.hfgrtr),
            Self::Hfgwtr => fgt.map(|fgt| fgt.hfgwtr),
            Self::Hfgitr => fgt.map(|fgt| fgt.hfgitr),
            Self::Hdfgrtr => fgt.map(|fgt| fgt.hdfgrtr),
            Self::Hdfgwtr => fgt.map(|fgt| fgt.hdfgwtr),
            Self::Hfgrtr2 => fgt2.map(|fgt| fgt.hfgrtr2),
            Self::Hfgitr2 => fgt2.map(|fgt| fgt.hfgitr2),
            Self::Hdfgrtr2 => fgt2.map(|fgt| fgt.hdfgrtr2),
        }
    }
}

/// The hidden features that this hardware has, for a line in the log.
pub fn present(hw: &IdRegs) -> impl Iterator<Item = &'static Hidden> {
    HIDDEN
        .iter()
        .filter(move |hidden| hw.field(hidden.id, hidden.shift) != 0)
}

use Control::{
    Cptr, Hcr, Hcrx, Hdfgrtr, Hdfgrtr2, Hdfgwtr, Hfgitr, Hfgitr2, Hfgrtr, Hfgrtr2, Hfgwtr, Mdcr,
    Mpam2,
};
use Denial::{Harmless, Off, OutOfReach, Trap};

const fn hide(name: &'static str, id: IdReg, shift: u32, denials: &'static [Denial]) -> Hidden {
    Hidden {
        name,
        id,
        shift,
        denials,
    }
}

const EL2_ONLY: &[Denial] = &[OutOfReach];
const NESTED: &[Denial] = &[Off(Hcr, hcr::NV)];
const RAS: &[Denial] = &[
    Trap(Hcr, hcr::TERR),
    Trap(Hfgrtr, hfgxtr::ERR),
    Trap(Hfgwtr, hfgxtr::ERR & !hfgxtr::ERR_READ_ONLY),
    Off(Hcr, hcr::FIEN),
];
const MPAM: &[Denial] = &[Trap(Mpam2, mpam2::TRAP_MPAM0 | mpam2::TRAP_MPAM1)];
const SVE: &[Denial] = &[Trap(Cptr, cptr::TZ)];
const SME: &[Denial] = &[
    Trap(Cptr, cptr::TSM),
    // SMIDR_EL1.
    Trap(Hcr, hcr::TID1),
    Off(Hfgrtr, hfgxtr::N_SMPRI | hfgxtr::N_TPIDR2),
    Off(Hfgwtr, hfgxtr::N_SMPRI | hfgxtr::N_TPIDR2),
];
const SCXTNUM: &[Denial] = &[
    Off(Hcr, hcr::EN_SCXT),
    Trap(Hfgrtr, hfgxtr::SCXTNUM),
    Trap(Hfgwtr, hfgxtr::SCXTNUM),
];
const GCS: &[Denial] = &[
    Off(Hcrx, hcrx::GCS_EN),
    Off(Hfgrtr, hfgxtr::N_GCS),
    Off(Hfgwtr, hfgxtr::N_GCS),
    Off(Hfgitr, hfgitr::N_GCS),
];
const FP8: &[Denial] = &[Off(Hcrx, hcrx::EN_FPM)];
const PMU: &[Denial] = &[Trap(Mdcr, mdcr::TPM | mdcr::TPMCR)];
const DEBUG: &[Denial] = &[Trap(Mdcr, mdcr::TDA)];
const SPE: &[Denial] = &[
    Trap(Mdcr, mdcr::TPMS),
    Off(Mdcr, mdcr::E2PB),
    Trap(Hdfgrtr, hdfgxtr::PMBIDR),
];
const TRBE: &[Denial] = &[Off(Mdcr, mdcr::E2TB), Trap(Hdfgrtr, hdfgxtr::TRBIDR)];
const BRBE: &[Denial] = &[
    Off(Hdfgrtr, hdfgxtr::N_BRB),
    Off(Hdfgwtr, hdfgxtr::N_BRB),
    Off(Hfgitr, hfgitr::N_BRB),
];
const D128: &[Denial] = &[Off(Hcrx, hcrx::D128_EN | hcrx::EN_IDCP128)];
const TCR2: &[Denial] = &[Off(Hcrx, hcrx::TCR2_EN)];
const SCTLR2: &[Denial] = &[Off(Hcrx, hcrx::SCTLR2_EN)];
const LOR: &[Denial] = &[
    Trap(Hcr, hcr::TLOR),
    Trap(Hfgrtr, hfgxtr::LOR),
    Trap(Hfgwtr, hfgxtr::LOR & !hfgxtr::LORID),
];
const OWN_CHECKS: &[Denial] = &[Harmless(
    "decides which of the guest's own accesses are tag-checked, or how a check is reported to it",
)];
const OWN_DATA: &[Denial] = &[Harmless("works on the guest's own registers and memory")];
const HINT: &[Denial] = &[Harmless("a hint")];

/// All hidden fields, by register and shift. ID_AA64ZFR0, SMFR0 and FPFR0 stand for their features.
pub const HIDDEN: &[Hidden] = &[
    hide("EL2", IdReg::PFR0, 8, NESTED),
    hide("EL3", IdReg::PFR0, 12, EL2_ONLY),
    hide("FEAT_RAS", IdReg::PFR0, 28, RAS),
    hide("FEAT_SVE", IdReg::PFR0, 32, SVE),
    hide("FEAT_SEL2", IdReg::PFR0, 36, EL2_ONLY),
    hide("FEAT_MPAM", IdReg::PFR0, 40, MPAM),
    hide("FEAT_AMUv1", IdReg::PFR0, 44, &[Trap(Cptr, cptr::TAM)]),
    hide("FEAT_RME", IdReg::PFR0, 52, EL2_ONLY),
    hide("RAS_frac", IdReg::PFR1, 12, RAS),
    hide("MPAM_frac", IdReg::PFR1, 16, MPAM),
    hide("FEAT_SME", IdReg::PFR1, 24, SME),
    hide("FEAT_RNG_TRAP", IdReg::PFR1, 28, EL2_ONLY),
    hide("CSV2_frac", IdReg::PFR1, 32, SCXTNUM),
    hide(
        "FEAT_NMI",
        IdReg::PFR1,
        36,
        &[Trap(Hcrx, hcrx::TALLINT), Harmless("ALLINT can be read")],
    ),
    hide("FEAT_GCS", IdReg::PFR1, 44, GCS),
    hide(
        "FEAT_THE",
        IdReg::PFR1,
        48,
        &[
            Off(Hfgrtr, hfgxtr::N_RCWMASK),
            Off(Hfgwtr, hfgxtr::N_RCWMASK),
            Off(Hcrx, hcrx::TCR2_EN),
        ],
    ),
    hide("MTEX", IdReg::PFR1, 52, OWN_CHECKS),
    hide("FEAT_DoubleFault2", IdReg::PFR1, 56, SCTLR2),
    hide(
        "FEAT_PFAR",
        IdReg::PFR1,
        60,
        &[Off(Hfgrtr2, hfgxtr2::N_PFAR)],
    ),
    hide("FEAT_MTE_PERM", IdReg::PFR2, 0, EL2_ONLY),
    hide("FEAT_MTE_STORE_ONLY", IdReg::PFR2, 4, OWN_CHECKS),
    hide("FEAT_MTE_TAGGED_FAR", IdReg::PFR2, 8, OWN_CHECKS),
    hide(
        "FEAT_GCIE",
        IdReg::PFR2,
        12,
        &[Harmless("needs a GICv5, which the platform refuses")],
    ),
    hide(
        "FEAT_UINJ",
        IdReg::PFR2,
        16,
        &[Harmless("EL1 gives its own EL0 an UNDEFINED exception")],
    ),
    hide("FEAT_MTE_EIRG", IdReg::PFR2, 20, OWN_CHECKS),
    hide(
        "FEAT_FGDT",
        IdReg::PFR2,
        24,
        &[Off(Hfgrtr2, 0b11 << 18 | 0b11 << 31)],
    ),
    hide("MPAM2", IdReg::PFR2, 28, MPAM),
    hide("FEAT_FPMR", IdReg::PFR2, 32, FP8),
    hide("VMTE", IdReg::PFR2, 36, &[Off(Hcrx, 0b111 << 37)]),
    hide("VMTETC", IdReg::PFR2, 40, &[Off(Hcrx, 0b111 << 37)]),
    hide("VMTETCL", IdReg::PFR2, 44, &[Off(Hcrx, 0b111 << 37)]),
    hide("FEAT_TRACE", IdReg::DFR0, 4, &[Trap(Cptr, cptr::TTA)]),
    hide("FEAT_PMUv3", IdReg::DFR0, 8, PMU),
    hide(
        "FEAT_PMUv3_SS",
        IdReg::DFR0,
        16,
        &[Off(Hdfgrtr2, 0b11 << 6)],
    ),
    hide("FEAT_SEBEP", IdReg::DFR0, 24, PMU),
    hide("FEAT_SPE", IdReg::DFR0, 32, SPE),
    hide("FEAT_TRF", IdReg::DFR0, 40, &[Trap(Mdcr, mdcr::TTRF)]),
    hide("FEAT_TRBE", IdReg::DFR0, 44, TRBE),
    hide("FEAT_MTPMU", IdReg::DFR0, 48, PMU),
    hide("FEAT_BRBE", IdReg::DFR0, 52, BRBE),
    hide("FEAT_TRBE_EXT", IdReg::DFR0, 56, &[Off(Mdcr, mdcr::E2TB)]),
    hide("FEAT_HPMN0", IdReg::DFR0, 60, PMU),
    hide("SysPMUID", IdReg::DFR1, 0, &[Off(Mdcr, mdcr::EN_SPM)]),
    hide("SysPMUID", IdReg::DFR1, 4, &[Off(Mdcr, mdcr::EN_SPM)]),
    hide("BRPs", IdReg::DFR1, 8, DEBUG),
    hide("BRPs", IdReg::DFR1, 12, DEBUG),
    hide("WRPs", IdReg::DFR1, 16, DEBUG),
    hide("WRPs", IdReg::DFR1, 20, DEBUG),
    hide("CTX_CMPs", IdReg::DFR1, 24, DEBUG),
    hide("CTX_CMPs", IdReg::DFR1, 28, DEBUG),
    hide("FEAT_SPMU", IdReg::DFR1, 32, &[Off(Mdcr, mdcr::EN_SPM)]),
    hide(
        "FEAT_PMUv3_ICNTR",
        IdReg::DFR1,
        36,
        &[Off(Hdfgrtr2, 0b11 << 2)],
    ),
    hide("FEAT_ABLE", IdReg::DFR1, 40, DEBUG),
    hide("FEAT_ITE", IdReg::DFR1, 44, &[Off(Hdfgrtr2, 1 << 20)]),
    hide("FEAT_EBEP", IdReg::DFR1, 48, PMU),
    hide("DPFZS", IdReg::DFR1, 52, PMU),
    hide("ABL_CMPs", IdReg::DFR1, 56, DEBUG),
    hide("ABL_CMPs", IdReg::DFR1, 60, DEBUG),
    hide("FEAT_TME", IdReg::ISAR0, 24, &[Off(Hcr, hcr::TME)]),
    hide(
        "FEAT_LS64",
        IdReg::ISAR1,
        60,
        &[
            Off(Hcrx, hcrx::EN_ALS | hcrx::EN_ASR | hcrx::EN_AS0),
            Off(Hfgrtr, hfgxtr::N_ACCDATA),
            Off(Hfgwtr, hfgxtr::N_ACCDATA),
        ],
    ),
    hide("FEAT_MOPS", IdReg::ISAR2, 16, &[Off(Hcrx, hcrx::MSC_EN)]),
    hide("FEAT_SYSREG128", IdReg::ISAR2, 32, D128),
    hide("FEAT_SYSINSTR128", IdReg::ISAR2, 36, D128),
    hide("FEAT_PRFMSLC", IdReg::ISAR2, 40, HINT),
    hide("FEAT_PCDPHINT", IdReg::ISAR2, 44, HINT),
    hide(
        "FEAT_CPA",
        IdReg::ISAR3,
        0,
        &[Off(Hcrx, hcrx::SCTLR2_EN), Harmless("adds pointers")],
    ),
    hide("FEAT_TLBIW", IdReg::ISAR3, 8, EL2_ONLY),
    hide("FEAT_PAuth_LR", IdReg::ISAR3, 12, &[Off(Hcrx, 1 << 24)]),
    hide("FEAT_OCCMO", IdReg::ISAR3, 20, OWN_DATA),
    hide("FEAT_LSUI", IdReg::ISAR3, 24, OWN_DATA),
    hide("PAC_frac2", IdReg::ISAR3, 32, OWN_DATA),
    hide("MTETC", IdReg::ISAR3, 36, OWN_CHECKS),
    hide("LSCSHINT", IdReg::ISAR3, 40, HINT),
    hide("FEAT_LSCP", IdReg::ISAR3, 44, OWN_DATA),
    hide("SNSMem", IdReg::MMFR0, 12, EL2_ONLY),
    hide("FEAT_FGT", IdReg::MMFR0, 56, EL2_ONLY),
    hide(
        "FEAT_ECV",
        IdReg::MMFR0,
        60,
        &[Harmless(
            "CNTVCTSS_EL0 reads what CNTVCT_EL0 reads, in order",
        )],
    ),
    hide("VMIDBits", IdReg::MMFR1, 4, EL2_ONLY),
    hide("FEAT_VHE", IdReg::MMFR1, 8, NESTED),
    hide("FEAT_LOR", IdReg::MMFR1, 16, LOR),
    hide(
        "SpecSEI",
        IdReg::MMFR1,
        24,
        &[Harmless("says how the hardware behaves; nothing to use")],
    ),
    hide("FEAT_XNX", IdReg::MMFR1, 28, EL2_ONLY),
    hide(
        "FEAT_TWED",
        IdReg::MMFR1,
        32,
        &[Harmless("delays a trap of WFE from EL0 to EL1")],
    ),
    hide("FEAT_HCX", IdReg::MMFR1, 40, EL2_ONLY),
    hide(
        "FEAT_IESB",
        IdReg::MMFR2,
        12,
        &[Harmless("synchronizes errors earlier")],
    ),
    hide("FEAT_NV", IdReg::MMFR2, 24, NESTED),
    hide("FEAT_S2FWB", IdReg::MMFR2, 40, EL2_ONLY),
    hide("FEAT_EVT", IdReg::MMFR2, 56, EL2_ONLY),
    hide("FEAT_TCR2", IdReg::MMFR3, 0, TCR2),
    hide("FEAT_SCTLR2", IdReg::MMFR3, 4, SCTLR2),
    hide(
        "FEAT_S1PIE",
        IdReg::MMFR3,
        8,
        &[
            Off(Hfgrtr, hfgxtr::N_PIR),
            Off(Hfgwtr, hfgxtr::N_PIR),
            Off(Hcrx, hcrx::TCR2_EN),
        ],
    ),
    hide("FEAT_S2PIE", IdReg::MMFR3, 12, EL2_ONLY),
    hide(
        "FEAT_S1POE",
        IdReg::MMFR3,
        16,
        &[
            Off(Hfgrtr, hfgxtr::N_POR),
            Off(Hfgwtr, hfgxtr::N_POR),
            Off(Hcrx, hcrx::TCR2_EN),
        ],
    ),
    hide(
        "FEAT_S2POE",
        IdReg::MMFR3,
        20,
        &[Off(Hfgrtr, hfgxtr::N_S2POR)],
    ),
    hide(
        "FEAT_AIE",
        IdReg::MMFR3,
        24,
        &[
            Off(Hfgrtr, hfgxtr::N_MAIR2),
            Off(Hfgwtr, hfgxtr::N_MAIR2),
            Off(Hcrx, hcrx::TCR2_EN),
        ],
    ),
    hide("FEAT_MEC", IdReg::MMFR3, 28, EL2_ONLY),
    hide("FEAT_D128", IdReg::MMFR3, 32, D128),
    hide("D128_2", IdReg::MMFR3, 36, EL2_ONLY),
    hide("SNERR", IdReg::MMFR3, 40, SCTLR2),
    hide("ANERR", IdReg::MMFR3, 44, SCTLR2),
    hide("SDERR", IdReg::MMFR3, 52, SCTLR2),
    hide("ADERR", IdReg::MMFR3, 56, SCTLR2),
    hide("FEAT_PoPS", IdReg::MMFR4, 0, &[Off(Hfgitr2, 1 << 1)]),
    hide(
        "EIESB",
        IdReg::MMFR4,
        4,
        &[Harmless("says when errors are synchronized")],
    ),
    hide("FEAT_ASID2", IdReg::MMFR4, 8, TCR2),
    hide("FEAT_HACDBS", IdReg::MMFR4, 12, EL2_ONLY),
    hide("FEAT_FGWTE3", IdReg::MMFR4, 16, EL2_ONLY),
    hide("NV_frac", IdReg::MMFR4, 20, NESTED),
    hide("E2H0", IdReg::MMFR4, 24, EL2_ONLY),
    hide("RMEGDI", IdReg::MMFR4, 28, EL2_ONLY),
    hide(
        "EAESR",
        IdReg::MMFR4,
        32,
        &[Harmless("says how errors are reported")],
    ),
    hide("FEAT_E3DSE", IdReg::MMFR4, 36, EL2_ONLY),
    hide(
        "FEAT_TLBID",
        IdReg::MMFR4,
        40,
        &[Off(Hcrx, 1 << 25 | 1 << 35), Off(Hfgrtr2, 1 << 30)],
    ),
    hide(
        "FEAT_SRMASK",
        IdReg::MMFR4,
        44,
        &[Off(Hcrx, hcrx::SRMASK_EN)],
    ),
    hide("FEAT_TPS", IdReg::MMFR4, 48, &[Off(Hcrx, 1 << 30)]),
    hide("TEV", IdReg::MMFR4, 52, OWN_DATA),
    hide("SCRX", IdReg::MMFR4, 56, EL2_ONLY),
    hide("MTEFGT", IdReg::MMFR4, 60, EL2_ONLY),
];

#[cfg(test)]
mod tests;
