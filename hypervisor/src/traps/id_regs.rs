//! What a guest reads from the ID registers: an allow-list, everything else is not there.
//!
//! The space is op0=3, op1=0, CRn=0, CRm=1..=7 (DDI 0487, D24.2 and table D22-4): 56 registers,
//! trapped as a whole by HCR_EL2.TID3. A field that no rule names reads as zero, also one that the
//! architecture defines tomorrow. What is hidden here is denied by [`super::controls`]:
//! [`super::hidden`] lists each with its denial.

use super::debug::{MAX_BREAKPOINTS, MAX_WATCHPOINTS};

/// The ID registers of the hardware. On a machine whose CPUs differ, see [`IdRegs::weakest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRegs {
    values: [[u64; Self::OP2S]; Self::CRMS],
    /// REVIDR_EL1, which a guest reads as it is.
    pub revidr: u64,
    /// What firmware says about each [`Workaround`], in their order.
    pub workarounds: [Need; Workaround::ALL.len()],
}

/// Whether a CPU needs one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Firmware does not know it.
    Unknown,
    /// It is not needed, or in effect anyway.
    NotRequired,
    /// It is needed, and firmware has it.
    Required,
}

impl Need {
    /// From the answer to SMCCC_ARCH_FEATURES.
    pub const fn of(answer: i64) -> Self {
        match answer {
            0 => Self::Required,
            1 => Self::NotRequired,
            _ => Self::Unknown,
        }
    }

    /// The answer to SMCCC_ARCH_FEATURES.
    pub const fn answer(self) -> i64 {
        match self {
            Self::Required => 0,
            Self::NotRequired => 1,
            Self::Unknown => -1,
        }
    }
}

/// What firmware can do against speculation, on behalf of software (DEN0028, 7.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workaround {
    /// SMCCC_ARCH_WORKAROUND_1: branch predictors (CVE-2017-5715).
    Predictors,
    /// SMCCC_ARCH_WORKAROUND_2: loads past stores (CVE-2018-3639).
    Stores,
    /// SMCCC_ARCH_WORKAROUND_3: branch history (CVE-2022-23960).
    History,
}

impl Workaround {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Predictors, Self::Stores, Self::History];

    /// The function identifier.
    pub const fn function(self) -> u32 {
        match self {
            Self::Predictors => 0x8000_8000,
            Self::Stores => 0x8000_7fff,
            Self::History => 0x8000_3fff,
        }
    }

    /// Finds the workaround with this function identifier.
    pub fn from_function(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.function() == id)
    }
}

/// What a guest is made of, as far as its CPU is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestShape {
    /// The guest has allocation tags.
    pub mte: bool,
}

impl IdRegs {
    /// Number of CRm values with ID registers.
    const CRMS: usize = 7;
    /// Number of op2 values.
    const OP2S: usize = 8;
    /// The first CRm with ID registers. CRm 0 is MIDR, MPIDR and REVIDR.
    const FIRST_CRM: u8 = 1;

    /// No feature at all.
    pub const ZERO: Self = Self {
        values: [[0; Self::OP2S]; Self::CRMS],
        revidr: 0,
        workarounds: [Need::Unknown; Workaround::ALL.len()],
    };

    /// Reads all registers by `read(crm, op2)`, for CRm 1 to 7 and op2 0 to 7.
    pub fn read(mut read: impl FnMut(u8, u8) -> u64) -> Self {
        let mut regs = Self::ZERO;
        for (crm, row) in (Self::FIRST_CRM..).zip(&mut regs.values) {
            for (op2, value) in (0..).zip(row) {
                *value = read(crm, op2);
            }
        }
        regs
    }

    /// The value of one register, 0 outside the space.
    pub fn get(&self, id: IdReg) -> u64 {
        self.slot(id).copied().unwrap_or(0)
    }

    /// Replaces the value of one register. Outside the space nothing happens.
    pub fn set(&mut self, id: IdReg, value: u64) {
        let row = usize::from(id.crm.wrapping_sub(Self::FIRST_CRM));
        if let Some(slot) = self
            .values
            .get_mut(row)
            .and_then(|row| row.get_mut(usize::from(id.op2)))
        {
            *slot = value;
        }
    }

    fn slot(&self, id: IdReg) -> Option<&u64> {
        let row = usize::from(id.crm.wrapping_sub(Self::FIRST_CRM));
        self.values.get(row)?.get(usize::from(id.op2))
    }

    /// One 4-bit field, unsigned.
    pub fn field(&self, id: IdReg, shift: u32) -> u64 {
        self.get(id) >> shift & 0xf
    }

    /// The features that both CPUs have, field by field: what guests may see, and what EL2 may use,
    /// on a machine of both.
    ///
    /// REVIDR_EL1 is kept if both agree. The controls are each CPU's own: [`super::controls`] takes
    /// the registers of the CPU that they are written on, where a hidden feature must be denied.
    #[must_use]
    pub fn weakest(&self, other: &Self) -> Self {
        let mut merged = Self::read(|crm, op2| {
            let id = IdReg { crm, op2 };
            merge_register(id, self.get(id), other.get(id))
        });
        if self.revidr == other.revidr {
            merged.revidr = self.revidr;
        }
        merged.workarounds = self.workarounds;
        for (merged, other) in merged.workarounds.iter_mut().zip(other.workarounds) {
            // One CPU that needs it is enough; where one firmware is silent nothing is promised.
            if *merged != Need::Required {
                *merged = match other {
                    Need::Required => other,
                    _ => other.min(*merged),
                };
            }
        }
        merged
    }

    /// What a guest is told about a workaround.
    ///
    /// Whether loads may pass stores is a state of the CPU. We never change it, and firmware's default is the safe one.
    pub fn workaround(&self, workaround: Workaround) -> Need {
        let need = self.workarounds.get(workaround as usize).copied();
        match (workaround, need.unwrap_or(Need::Unknown)) {
            (Workaround::Stores, Need::Required) => Need::NotRequired,
            (_, need) => need,
        }
    }

    /// What a guest reads from `id`.
    pub fn for_guest(&self, id: IdReg, shape: GuestShape) -> u64 {
        let hw = self.get(id);
        rules_of(id).iter().fold(0, |value, field| {
            value | field.rule.apply(hw >> field.shift & 0xf, self, shape) << field.shift
        })
    }
}

/// The name of one ID register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdReg {
    /// CRm, 1 to 7.
    pub crm: u8,
    /// Op2, 0 to 7.
    pub op2: u8,
}

macro_rules! id_regs {
    ($($(#[$doc:meta])* $name:ident = $crm:literal, $op2:literal;)*) => {
        impl IdReg {
            $($(#[$doc])* pub const $name: Self = Self { crm: $crm, op2: $op2 };)*
        }
    };
}

id_regs! {
    /// ID_AA64PFR0_EL1.
    PFR0 = 4, 0;
    /// ID_AA64PFR1_EL1.
    PFR1 = 4, 1;
    /// ID_AA64PFR2_EL1.
    PFR2 = 4, 2;
    /// ID_AA64ZFR0_EL1.
    ZFR0 = 4, 4;
    /// ID_AA64SMFR0_EL1.
    SMFR0 = 4, 5;
    /// ID_AA64FPFR0_EL1.
    FPFR0 = 4, 7;
    /// ID_AA64DFR0_EL1.
    DFR0 = 5, 0;
    /// ID_AA64DFR1_EL1.
    DFR1 = 5, 1;
    /// ID_AA64ISAR0_EL1.
    ISAR0 = 6, 0;
    /// ID_AA64ISAR1_EL1.
    ISAR1 = 6, 1;
    /// ID_AA64ISAR2_EL1.
    ISAR2 = 6, 2;
    /// ID_AA64ISAR3_EL1.
    ISAR3 = 6, 3;
    /// ID_AA64MMFR0_EL1.
    MMFR0 = 7, 0;
    /// ID_AA64MMFR1_EL1.
    MMFR1 = 7, 1;
    /// ID_AA64MMFR2_EL1.
    MMFR2 = 7, 2;
    /// ID_AA64MMFR3_EL1.
    MMFR3 = 7, 3;
    /// ID_AA64MMFR4_EL1.
    MMFR4 = 7, 4;
}

/// How one 4-bit field is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// At most this, unsigned.
    Max(u64),
    /// At most this, where 0xF means not implemented (D24.1.3: signed fields).
    SignedMax(u64),
    /// Always this, whatever the hardware says.
    Fixed(u64),
    /// ID_AA64PFR1_EL1.MTE: for a guest with tags, from level 2 on and up to level 3.
    Mte,
    /// ID_AA64PFR1_EL1.MTE_frac: 0xF at level 2 says that there are no asynchronous faults.
    MteFrac,
}

impl Rule {
    const NOT_IMPLEMENTED: u64 = 0xf;

    fn apply(self, hw: u64, regs: &IdRegs, shape: GuestShape) -> u64 {
        let mte = regs.field(IdReg::PFR1, MTE_SHIFT);
        let shown = shape.mte && mte >= 2;
        match self {
            Self::Max(max) => hw.min(max),
            Self::SignedMax(_) if hw >= 8 => Self::NOT_IMPLEMENTED,
            Self::SignedMax(max) => hw.min(max),
            Self::Fixed(value) => value,
            Self::Mte if shown => hw.min(3),
            Self::MteFrac if shown && mte == 2 && hw == Self::NOT_IMPLEMENTED => hw,
            Self::Mte | Self::MteFrac => 0,
        }
    }

    /// The weaker of two CPUs.
    fn merge(self, a: u64, b: u64) -> u64 {
        match self {
            Self::Max(_) | Self::Mte => a.min(b),
            Self::SignedMax(_) if a >= 8 || b >= 8 => Self::NOT_IMPLEMENTED,
            Self::SignedMax(_) => a.min(b),
            Self::Fixed(_) | Self::MteFrac => a.max(b),
        }
    }
}

fn merge_register(id: IdReg, a: u64, b: u64) -> u64 {
    (0..64).step_by(4).fold(0, |value, shift| {
        let (a, b) = (a >> shift & 0xf, b >> shift & 0xf);
        let merged = rules_of(id)
            .iter()
            .find(|field| field.shift == shift)
            .map_or(a.min(b), |field| field.rule.merge(a, b));
        value | merged << shift
    })
}

/// One allowed field.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    /// The field's lowest bit. Each is 4 bits wide.
    pub(super) shift: u32,
    /// How it is shown.
    pub(super) rule: Rule,
}

const fn show(shift: u32, rule: Rule) -> Field {
    Field { shift, rule }
}

pub(super) const MTE_SHIFT: u32 = 8;

use Rule::{Fixed, Max, Mte, MteFrac, SignedMax};

/// The allow-list. A register that is not named is all zero: AArch32 (CRm 1 to 3), SVE, SME, FP8,
/// ID_AA64PFR2 with the rest of MTE, ID_AA64DFR1, the IMPLEMENTATION DEFINED ones, ID_AA64MMFR4.
pub(super) const fn rules_of(id: IdReg) -> &'static [Field] {
    match (id.crm, id.op2) {
        (4, 0) => PFR0,
        (4, 1) => PFR1,
        (5, 0) => DFR0,
        (6, 0) => ISAR0,
        (6, 1) => ISAR1,
        (6, 2) => ISAR2,
        (6, 3) => ISAR3,
        (7, 0) => MMFR0,
        (7, 1) => MMFR1,
        (7, 2) => MMFR2,
        (7, 3) => MMFR3,
        _ => &[],
    }
}

const PFR0: &[Field] = &[
    show(0, Fixed(1)),      // EL0: AArch64 only
    show(4, Fixed(1)),      // EL1: AArch64 only
    show(16, SignedMax(1)), // FP: with half precision
    show(20, SignedMax(1)), // AdvSIMD
    show(24, Max(1)),       // GIC: system registers of GICv3
    show(48, Max(1)),       // DIT
    show(56, Max(1)),       // CSV2: without SCXTNUM_ELx
    show(60, Max(1)),       // CSV3
];

const PFR1: &[Field] = &[
    show(0, Max(1)), // BT
    show(4, Max(2)), // SSBS
    show(MTE_SHIFT, Mte),
    show(40, MteFrac),
];

/// As many comparators as [`super::debug`] keeps.
const DFR0: &[Field] = &[
    show(0, Fixed(6)),                         // DebugVer: Armv8.0
    show(12, Max(MAX_BREAKPOINTS as u64 - 1)), // BRPs
    show(20, Max(MAX_WATCHPOINTS as u64 - 1)), // WRPs
    show(28, Max(MAX_BREAKPOINTS as u64 - 1)), // CTX_CMPs
    show(36, Fixed(0xf)),                      // DoubleLock: not implemented
];

const ISAR0: &[Field] = &[
    show(4, Max(2)),  // AES, PMULL
    show(8, Max(1)),  // SHA1
    show(12, Max(2)), // SHA2
    show(16, Max(1)), // CRC32
    show(20, Max(3)), // Atomic: LSE, LSE128
    show(28, Max(1)), // RDM
    show(32, Max(1)), // SHA3
    show(36, Max(1)), // SM3
    show(40, Max(1)), // SM4
    show(44, Max(1)), // DP
    show(48, Max(1)), // FHM
    show(52, Max(2)), // TS: FlagM2
    show(56, Max(2)), // TLB: outer shareable, range
    show(60, Max(1)), // RNDR
];

const ISAR1: &[Field] = &[
    show(0, Max(2)),  // DPB
    show(4, Max(5)),  // APA: up to FPACCOMBINE
    show(8, Max(5)),  // API
    show(12, Max(1)), // JSCVT
    show(16, Max(1)), // FCMA
    show(20, Max(3)), // LRCPC
    show(24, Max(1)), // GPA
    show(28, Max(1)), // GPI
    show(32, Max(1)), // FRINTTS
    show(36, Max(1)), // SB
    show(40, Max(1)), // SPECRES
    show(44, Max(2)), // BF16
    show(48, Max(1)), // DGH
    show(52, Max(1)), // I8MM
    show(56, Max(1)), // XS
];

const ISAR2: &[Field] = &[
    show(0, Max(2)),  // WFxT
    show(4, Max(1)),  // RPRES
    show(8, Max(1)),  // GPA3
    show(12, Max(5)), // APA3
    show(20, Max(1)), // BC
    show(24, Max(1)), // PAC_frac
    show(28, Max(1)), // CLRBHB
    show(48, Max(1)), // RPRFM
    show(52, Max(2)), // CSSC, CMPBR
    show(56, Max(1)), // LUT
    show(60, Max(1)), // ATS1A
];

/// Data processing only, which nothing could trap.
const ISAR3: &[Field] = &[
    show(4, Max(1)),  // FAMINMAX
    show(16, Max(1)), // LSFE
    show(28, Max(1)), // FPRCVT
];

const MMFR0: &[Field] = &[
    show(0, Max(1)),        // PARange: 36 bits, 64 GiB
    show(4, Max(2)),        // ASIDBits
    show(8, Max(1)),        // BigEnd
    show(16, Max(1)),       // BigEndEL0
    show(20, Max(2)),       // TGran16
    show(24, SignedMax(0)), // TGran64
    show(28, SignedMax(1)), // TGran4
    show(32, Fixed(1)),     // TGran16_2: no stage 2
    show(36, Fixed(1)),     // TGran64_2: no stage 2
    show(40, Fixed(1)),     // TGran4_2: no stage 2
    show(44, Max(1)),       // ExS
];

const MMFR1: &[Field] = &[
    show(0, Max(2)),  // HAFDBS: access flag and dirty state
    show(12, Max(2)), // HPDS
    show(20, Max(3)), // PAN
    show(36, Max(2)), // ETS
    show(44, Max(1)), // AFP
    show(48, Max(1)), // nTLBPA
    show(52, Max(1)), // TIDCP1
    show(56, Max(1)), // CMOW
    show(60, Max(1)), // ECBHB
];

const MMFR2: &[Field] = &[
    show(0, Max(1)),  // CnP
    show(4, Max(1)),  // UAO
    show(8, Max(1)),  // LSM
    show(16, Max(1)), // VARange
    show(20, Max(1)), // CCIDX
    show(28, Max(1)), // ST
    show(32, Max(1)), // AT
    show(36, Max(1)), // IDS
    show(48, Max(1)), // TTL
    show(52, Max(2)), // BBM
    show(60, Max(1)), // E0PD
];

const MMFR3: &[Field] = &[
    show(60, Max(1)), // Spec_FPACC
];

#[cfg(test)]
mod tests;
