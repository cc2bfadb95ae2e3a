//! What the CPUs can do: identification registers in, plain facts out. Reads no register itself.
//!
//! Field positions are those of Arm DDI 0487, D24.2. A field above the values known here counts as the
//! highest known one where the architecture's rule for ID fields allows that (D24.1.3).

use core::fmt::{self, Display, Formatter};

use crate::errata::Errata;
use crate::machine::Machine;

/// Raw values of the registers that [`CpuFeatures`] is made of, as EL2 reads them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdRegisters {
    /// MIDR_EL1.
    pub midr: u64,
    /// ID_AA64PFR0_EL1.
    pub pfr0: u64,
    /// ID_AA64PFR1_EL1.
    pub pfr1: u64,
    /// ID_AA64PFR2_EL1.
    pub pfr2: u64,
    /// ID_AA64ISAR0_EL1.
    pub isar0: u64,
    /// ID_AA64ISAR1_EL1.
    pub isar1: u64,
    /// ID_AA64ISAR2_EL1.
    pub isar2: u64,
    /// ID_AA64ISAR3_EL1.
    pub isar3: u64,
    /// ID_AA64MMFR0_EL1.
    pub mmfr0: u64,
    /// ID_AA64MMFR1_EL1.
    pub mmfr1: u64,
    /// ID_AA64MMFR2_EL1.
    pub mmfr2: u64,
    /// ID_AA64MMFR3_EL1.
    pub mmfr3: u64,
    /// ID_AA64MMFR4_EL1.
    pub mmfr4: u64,
    /// ID_AA64DFR0_EL1.
    pub dfr0: u64,
    /// ID_AA64ZFR0_EL1.
    pub zfr0: u64,
    /// ID_AA64SMFR0_EL1.
    pub smfr0: u64,
    /// CTR_EL0.
    pub ctr: u64,
    /// DCZID_EL0.
    pub dczid: u64,
    /// GMID_EL1; 0 where FEAT_MTE2 is not implemented, as it is UNDEFINED there.
    pub gmid: u64,
}

/// How much of the Memory Tagging Extension there is (ID_AA64PFR1_EL1.MTE).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum MteLevel {
    /// Nothing.
    #[default]
    None,
    /// FEAT_MTE: instructions only, no tags in memory.
    El0Only,
    /// FEAT_MTE2: tags in memory.
    Full,
    /// FEAT_MTE3: asymmetric checking as well.
    Asymm,
}

/// Facts about one CPU, or about all of a machine after [`CpuFeatures::merge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuFeatures {
    /// Memory tagging.
    pub mte: MteLevel,
    /// FEAT_MTE_PERM: stage 2 can map a page NoTagAccess.
    pub mte_perm: bool,
    /// FEAT_S2FWB: stage 2 can force write-back.
    pub fwb: bool,
    /// FEAT_PAN.
    pub pan: bool,
    /// FEAT_ATS1A: AT S1E1A, a translation without permission check.
    pub ats1a: bool,
    /// Bits of a VMID: 8 or 16.
    pub vmid_bits: u8,
    /// Bits of a physical address: 32 to 56.
    pub pa_range_bits: u8,
    /// FEAT_FGT: 0, 1, or 2 for FEAT_FGT2.
    pub fgt: u8,
    /// FEAT_HCX: HCRX_EL2.
    pub hcx: bool,
    /// FEAT_ECV: 0, 1, or 2 with CNTPOFF_EL2.
    pub ecv: u8,
    /// The GIC's system register interface.
    pub gicv3_sysregs: bool,
    /// 4 KiB granule at stage 2.
    pub stage2_4k: bool,
    /// FEAT_RME: memory belongs to worlds, and tag storage to Root.
    pub rme: bool,
    /// HCR_EL2.E2H can be 0. Not so where FEAT_E2H0 is absent.
    pub e2h0: bool,
    /// FEAT_VHE: HCR_EL2.E2H can be 1.
    pub vhe: bool,
    /// FEAT_SVE.
    pub sve: bool,
    /// FEAT_SME.
    pub sme: bool,
    /// FEAT_MOPS.
    pub mops: bool,
    /// Pointer authentication for addresses, by any algorithm.
    pub pauth: bool,
    /// FEAT_RAS.
    pub ras: bool,
    /// FEAT_AMUv1.
    pub amu: bool,
    /// FEAT_SPE.
    pub spe: bool,
    /// A PMU of the architecture (PMUv3).
    pub pmu: bool,
    /// FEAT_NV or FEAT_NV2.
    pub nv: bool,
    /// FEAT_EVT: traps of cache maintenance one by one.
    pub evt: bool,
    /// FEAT_CNP: CnP bit in VTTBR_EL2.
    pub cnp: bool,
    /// FEAT_XNX: execute-never at stage 2 for EL1 and EL0 apart.
    pub xnx: bool,
    /// FEAT_BBM level: 0 to 2.
    pub bbm: u8,
    /// FEAT_TLBIRANGE.
    pub tlbi_range: bool,
    /// FEAT_WFxT.
    pub wfxt: bool,
    /// FEAT_SCTLR2.
    pub sctlr2: bool,
    /// FEAT_TCR2.
    pub tcr2: bool,
    /// FEAT_DoubleFault2.
    pub double_fault2: bool,
    /// CTR_EL0.DIC: instruction caches need no invalidation after a data write.
    pub dic: bool,
    /// CTR_EL0.IDC: data caches need no cleaning to the point of unification.
    pub idc: bool,
    /// Instruction caches are physically tagged and indexed: invalidation by any address of a line reaches it.
    pub pipt: bool,
    /// Bytes of the smallest data cache line.
    pub data_line: u32,
    /// Bytes of the step of tag cache maintenance, in addresses of data.
    pub tag_line: u32,
    /// Bytes of instruction cache's smallest line.
    pub instruction_line: u32,
    /// Bytes that DC ZVA, GVA and GZVA act on; none where they are prohibited.
    pub dc_zva: Option<u32>,
    /// Bytes of memory whose tags LDGM and STGM move at once; none without FEAT_MTE2 or if CPUs differ.
    pub ldgm: Option<u32>,
    /// What errata demand.
    pub errata: Errata,
}

const fn field(register: u64, lowest_bit: u32) -> u8 {
    (register >> lowest_bit & 0xf) as u8
}

/// Cache geometry from CTR_EL0 and its kin: sizes are logarithms of words of 4 bytes.
const fn words(log2: u64) -> u32 {
    4 << (log2 & 0xf)
}

impl CpuFeatures {
    /// Decodes the registers of one CPU.
    #[must_use]
    pub fn new(id: &IdRegisters) -> Self {
        let mte = match field(id.pfr1, 8) {
            0 => MteLevel::None,
            1 => MteLevel::El0Only,
            2 => MteLevel::Full,
            _ => MteLevel::Asymm,
        };
        let gmid = id.gmid & 0xf;
        Self {
            mte,
            mte_perm: mte >= MteLevel::Full && field(id.pfr2, 0) != 0,
            fwb: field(id.mmfr2, 40) != 0,
            pan: field(id.mmfr1, 20) != 0,
            ats1a: field(id.isar2, 60) != 0,
            vmid_bits: if field(id.mmfr1, 4) >= 2 { 16 } else { 8 },
            pa_range_bits: pa_range(field(id.mmfr0, 0)),
            fgt: field(id.mmfr0, 56).min(2),
            hcx: field(id.mmfr1, 40) != 0,
            ecv: field(id.mmfr0, 60).min(2),
            gicv3_sysregs: field(id.pfr0, 24) != 0,
            stage2_4k: stage2_4k(id.mmfr0),
            rme: field(id.pfr0, 52) != 0,
            // A signed field: negative where E2H is RES1.
            e2h0: field(id.mmfr4, 24) < 8,
            vhe: field(id.mmfr1, 8) != 0,
            sve: field(id.pfr0, 32) != 0,
            sme: field(id.pfr1, 24) != 0,
            mops: field(id.isar2, 16) != 0,
            pauth: field(id.isar1, 4) != 0 || field(id.isar1, 8) != 0 || field(id.isar2, 12) != 0,
            ras: field(id.pfr0, 28) != 0,
            amu: field(id.pfr0, 44) != 0,
            spe: field(id.dfr0, 32) != 0,
            // 0xf stands for a PMU of the implementer's own.
            pmu: !matches!(field(id.dfr0, 8), 0 | 0xf),
            nv: field(id.mmfr2, 24) != 0 || field(id.mmfr4, 20) != 0,
            evt: field(id.mmfr2, 56) != 0,
            cnp: field(id.mmfr2, 0) != 0,
            xnx: field(id.mmfr1, 28) != 0,
            bbm: field(id.mmfr2, 52).min(2),
            tlbi_range: field(id.isar0, 56) >= 2,
            wfxt: field(id.isar2, 0) >= 2,
            sctlr2: field(id.mmfr3, 4) != 0,
            tcr2: field(id.mmfr3, 0) != 0,
            double_fault2: field(id.pfr1, 56) != 0,
            dic: id.ctr >> 29 & 1 != 0,
            idc: id.ctr >> 28 & 1 != 0,
            pipt: id.ctr >> 14 & 3 == 3,
            data_line: words(id.ctr >> 16),
            tag_line: tag_line(id.ctr),
            instruction_line: words(id.ctr),
            dc_zva: (id.dczid & 0x10 == 0).then(|| words(id.dczid)),
            ldgm: (mte >= MteLevel::Full && (2..=6).contains(&gmid)).then(|| words(gmid)),
            errata: Errata::for_midr(id.midr),
        }
    }

    /// Joins two CPUs of one machine: what one lacks, the machine lacks.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        let both = |has: fn(&Self) -> bool| has(&self) && has(&other);
        let least = |value: fn(&Self) -> u8| value(&self).min(value(&other));
        let line = |value: fn(&Self) -> u32| value(&self).min(value(&other));
        let same = |a: Option<u32>, b: Option<u32>| a.filter(|_| a == b);
        Self {
            mte: self.mte.min(other.mte),
            mte_perm: both(|c| c.mte_perm),
            fwb: both(|c| c.fwb),
            pan: both(|c| c.pan),
            ats1a: both(|c| c.ats1a),
            vmid_bits: least(|c| c.vmid_bits),
            pa_range_bits: least(|c| c.pa_range_bits),
            fgt: least(|c| c.fgt),
            hcx: both(|c| c.hcx),
            ecv: least(|c| c.ecv),
            gicv3_sysregs: both(|c| c.gicv3_sysregs),
            stage2_4k: both(|c| c.stage2_4k),
            // A hindrance, not an ability: one is enough.
            rme: self.rme || other.rme,
            e2h0: both(|c| c.e2h0),
            vhe: both(|c| c.vhe),
            sve: both(|c| c.sve),
            sme: both(|c| c.sme),
            mops: both(|c| c.mops),
            pauth: both(|c| c.pauth),
            ras: both(|c| c.ras),
            amu: both(|c| c.amu),
            spe: both(|c| c.spe),
            pmu: both(|c| c.pmu),
            nv: both(|c| c.nv),
            evt: both(|c| c.evt),
            cnp: both(|c| c.cnp),
            xnx: both(|c| c.xnx),
            bbm: least(|c| c.bbm),
            tlbi_range: both(|c| c.tlbi_range),
            wfxt: both(|c| c.wfxt),
            sctlr2: both(|c| c.sctlr2),
            tcr2: both(|c| c.tcr2),
            double_fault2: both(|c| c.double_fault2),
            dic: both(|c| c.dic),
            idc: both(|c| c.idc),
            pipt: both(|c| c.pipt),
            data_line: line(|c| c.data_line),
            tag_line: line(|c| c.tag_line),
            instruction_line: line(|c| c.instruction_line),
            dc_zva: same(self.dc_zva, other.dc_zva),
            ldgm: same(self.ldgm, other.ldgm),
            errata: self.errata.merge(other.errata),
        }
    }

    /// Checks that the hypervisor can run at all.
    ///
    /// # Errors
    /// The first thing that is missing.
    pub fn check_required(&self) -> Result<(), MissingFeature> {
        let required = [
            (self.fwb, MissingFeature::Fwb),
            (self.gicv3_sysregs, MissingFeature::GicV3),
            (self.stage2_4k, MissingFeature::Stage2Granule),
            (self.e2h0, MissingFeature::E2h0),
        ];
        match required.into_iter().find(|&(present, _)| !present) {
            Some((_, missing)) => Err(missing),
            None => Ok(()),
        }
    }

    /// Decides what can be done with tags and tag storage on this machine.
    #[must_use]
    pub fn tag_support(&self, machine: &Machine) -> TagSupport {
        if self.mte < MteLevel::Full {
            return TagSupport::NoMte(NoMteReason::Cpu(self.mte));
        }
        if self.ldgm.is_none() {
            return TagSupport::NoMte(NoMteReason::Ldgm);
        }
        if machine.unknown_tag_storage().is_some() {
            return TagSupport::NoMte(NoMteReason::UnknownStorage);
        }
        if self.rme {
            return TagSupport::StaticOnly(StaticReason::Rme);
        }
        if machine.tag_regions.is_empty() {
            return TagSupport::StaticOnly(StaticReason::NoRegion);
        }
        if self.mte_perm {
            TagSupport::Lazy
        } else {
            TagSupport::EagerOnly
        }
    }
}

const fn pa_range(field: u8) -> u8 {
    match field {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        5 => 48,
        6 => 52,
        _ => 56,
    }
}

/// TGran4_2 says it, or refers to TGran4, a signed field.
const fn stage2_4k(mmfr0: u64) -> bool {
    match field(mmfr0, 40) {
        0 => field(mmfr0, 28) < 8,
        1 => false,
        _ => true,
    }
}

/// TminLine, unless it says nothing (0: MTE2 absent or unknown; 1: below a granule).
const fn tag_line(ctr: u64) -> u32 {
    let log2 = ctr >> 32 & 0x3f;
    match log2 {
        2..=15 => words(log2),
        _ => words(ctr >> 16),
    }
}

/// A feature without which the hypervisor does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingFeature {
    /// FEAT_S2FWB, mandatory from Armv8.4.
    Fwb,
    /// System registers of a GICv3.
    GicV3,
    /// 4 KiB granule at stage 2.
    Stage2Granule,
    /// HCR_EL2.E2H = 0.
    E2h0,
}

impl Display for MissingFeature {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fwb => {
                "the CPU has no FEAT_S2FWB; an Armv8.4 CPU is required (QEMU: -cpu max or neoverse-n2)"
            }
            Self::GicV3 => {
                "the CPU has no GICv3 system registers; use a board with a GICv3 (QEMU: -M gic-version=3)"
            }
            Self::Stage2Granule => {
                "the CPU has no 4 KiB pages at stage 2; use a CPU with them"
            }
            Self::E2h0 => {
                "the CPU has HCR_EL2.E2H fixed to 1 (no FEAT_E2H0), which is not supported yet"
            }
        })
    }
}

/// What can be done with tag storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagSupport {
    /// Reserve at the first tag access; eager and static as well.
    Lazy,
    /// Reserve at the first access; static as well.
    EagerOnly,
    /// Guests have MTE, but nothing can be reclaimed.
    StaticOnly(StaticReason),
    /// Guests have no MTE.
    NoMte(NoMteReason),
}

/// Why nothing can be reclaimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StaticReason {
    /// FEAT_RME: only Root can access tag storage as data.
    Rme,
    /// The device tree names no tag region, or all were refused.
    NoRegion,
}

/// Why guests have no MTE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoMteReason {
    /// Tags that EL2 writes do not read back: EL3 keeps SCR_EL3.ATA at 0.
    Firmware,
    /// The weakest CPU has less than FEAT_MTE2.
    Cpu(MteLevel),
    /// LDGM's block size is not valid, or differs between CPUs, which guests would see.
    Ldgm,
    /// The storage of a refused region may be anywhere.
    UnknownStorage,
}

impl Display for TagSupport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lazy => "tag storage is reserved at the first tag access (FEAT_MTE_PERM)",
            Self::EagerOnly => {
                "tag storage is reserved at the first access: a CPU has no FEAT_MTE_PERM"
            }
            Self::StaticOnly(StaticReason::Rme) => {
                "tag storage stays static: with FEAT_RME only Root reads it as data"
            }
            Self::StaticOnly(StaticReason::NoRegion) => {
                "tag storage stays static: the DTB has no usable arm,mte-tag-storage node"
            }
            Self::NoMte(NoMteReason::Cpu(MteLevel::El0Only)) => {
                "no MTE for guests: a CPU has its instructions but no tags (QEMU: -M mte=on)"
            }
            Self::NoMte(NoMteReason::Cpu(_)) => "no MTE for guests: a CPU has none",
            Self::NoMte(NoMteReason::Ldgm) => {
                "no MTE for guests: GMID_EL1 is invalid or differs between CPUs"
            }
            Self::NoMte(NoMteReason::Firmware) => {
                "no MTE for guests: tags do not read back, firmware keeps SCR_EL3.ATA at 0"
            }
            Self::NoMte(NoMteReason::UnknownStorage) => {
                "no MTE for guests: the DTB does not say where a tag region's storage is"
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::{String, ToString};

    use super::*;
    use crate::machine::{
        Gic, Interrupt, MemRange, Memory, Refusal, RefusalReason, TagRegionNode, Trigger,
    };
    use crate::timer::Timer;

    /// QEMU 11.1's `-cpu max` with `mte=on` as far as it matters here.
    fn max() -> IdRegisters {
        IdRegisters {
            midr: 0x000f_0510,
            pfr0: 0x1101_1111_1111_2222 & !(0xf << 52) | 1 << 24,
            pfr1: 0x0000_0000_0200_0000 | 3 << 8,
            pfr2: 1,
            isar1: 0x5 << 4,
            isar2: 1 << 60 | 1 << 16 | 2,
            isar0: 2 << 56,
            mmfr0: 2 << 60 | 1 << 56 | 2 << 40 | 6,
            mmfr1: 1 << 40 | 3 << 20 | 1 << 8 | 2 << 4,
            mmfr2: 1 << 40 | 2 << 52 | 1,
            ctr: 0x8444_c004,
            dczid: 4,
            gmid: 6,
            ..IdRegisters::default()
        }
    }

    fn machine(regions: usize, refusal: Option<bool>) -> Machine {
        let range = MemRange::new(0x4000_0000, 0x1000).unwrap();
        let trigger = Trigger::Level;
        let region = TagRegionNode {
            tag_base: 0,
            tag_bytes: 0,
            tagged_base: 0,
            tagged_bytes: 0,
            block_bytes: 0,
            path: String::new(),
        };
        Machine {
            memory: vec![Memory {
                range,
                taggable: true,
            }],
            reserved: vec![],
            tag_regions: vec![region; regions],
            refusals: refusal
                .into_iter()
                .map(|storage_known| Refusal {
                    path: String::new(),
                    reason: RefusalReason::Place,
                    storage_known,
                })
                .collect(),
            cpus: vec![],
            psci: None,
            gic: Gic {
                distributor: range,
                redistributors: vec![range],
                stride: None,
                maintenance: None,
            },
            timer: Timer {
                phys_secure: None,
                phys: None,
                virt: Interrupt { intid: 27, trigger },
                hyp: None,
                hyp_virt: None,
                frequency: None,
            },
            uart: None,
            initrd: None,
            bootargs: None,
            dtb_bytes: 0,
        }
    }

    fn support(id: &IdRegisters, regions: usize, refusal: Option<bool>) -> TagSupport {
        CpuFeatures::new(id).tag_support(&machine(regions, refusal))
    }

    #[test]
    fn the_features_of_a_new_cpu_are_decoded() {
        let cpu = CpuFeatures::new(&max());
        assert_eq!(cpu.mte, MteLevel::Asymm);
        assert!(cpu.mte_perm && cpu.fwb && cpu.gicv3_sysregs && cpu.ats1a && cpu.hcx);
        assert!(cpu.pauth && cpu.mops && cpu.pan && cpu.vhe && cpu.e2h0 && cpu.stage2_4k);
        assert!(cpu.cnp && cpu.wfxt && cpu.tlbi_range && !cpu.rme);
        assert_eq!((cpu.vmid_bits, cpu.pa_range_bits), (16, 52));
        assert_eq!((cpu.fgt, cpu.ecv, cpu.bbm), (1, 2, 2));
        assert_eq!((cpu.data_line, cpu.instruction_line), (64, 64));
        assert_eq!((cpu.dc_zva, cpu.ldgm), (Some(64), Some(256)));
        assert!(cpu.pipt && !cpu.idc && !cpu.dic);
        assert_eq!(cpu.check_required(), Ok(()));
        assert!(!cpu.errata.repeat_tlbi);
    }

    #[test]
    fn the_oldest_cpu_has_nothing() {
        let cpu = CpuFeatures::new(&IdRegisters::default());
        assert_eq!(cpu.mte, MteLevel::None);
        assert!(!cpu.mte_perm && !cpu.fwb && !cpu.hcx && !cpu.pauth && !cpu.gicv3_sysregs);
        assert_eq!((cpu.vmid_bits, cpu.pa_range_bits), (8, 32));
        assert_eq!(cpu.ldgm, None);
        // TGran4 = 0 means that there are 4 KiB pages.
        assert!(cpu.stage2_4k);
    }

    #[test]
    fn tag_maintenance_steps_by_tminlin_unless_it_says_nothing() {
        for (tmin, bytes) in [
            (0, 64),
            (1, 64),
            (2, 16),
            (4, 64),
            (6, 256),
            (16, 64),
            (63, 64),
        ] {
            let mut id = max();
            id.ctr = 4 << 16 | tmin << 32;
            assert_eq!(CpuFeatures::new(&id).tag_line, bytes, "TminLine {tmin}");
        }
    }

    #[test]
    fn what_is_required_is_named_when_it_is_missing() {
        let check = |change: fn(&mut IdRegisters)| {
            let mut id = max();
            change(&mut id);
            CpuFeatures::new(&id).check_required()
        };
        assert_eq!(check(|id| id.mmfr2 = 0), Err(MissingFeature::Fwb));
        assert_eq!(check(|id| id.pfr0 = 0), Err(MissingFeature::GicV3));
        let granule = Err(MissingFeature::Stage2Granule);
        assert_eq!(check(|id| id.mmfr0 = 1 << 40), granule);
        assert_eq!(check(|id| id.mmfr0 = 0xf << 28), granule);
        assert_eq!(check(|id| id.mmfr4 = 0xe << 24), Err(MissingFeature::E2h0));
        assert_eq!(check(|id| id.mmfr4 = 0xf << 24), Err(MissingFeature::E2h0));
        assert!(MissingFeature::Fwb.to_string().contains("-cpu max"));
    }

    #[test]
    fn lazy_needs_mte_perm_and_eager_only_a_region() {
        assert_eq!(support(&max(), 1, None), TagSupport::Lazy);
        // A refused region stays static; the others are used.
        assert_eq!(support(&max(), 1, Some(true)), TagSupport::Lazy);
        let mut id = max();
        id.pfr2 = 0;
        assert_eq!(support(&id, 1, None), TagSupport::EagerOnly);
        let none = TagSupport::StaticOnly(StaticReason::NoRegion);
        assert_eq!(support(&max(), 0, None), none);
        assert_eq!(support(&max(), 0, Some(true)), none);
    }

    #[test]
    fn with_rme_nothing_is_reclaimed() {
        let mut id = max();
        id.pfr0 |= 1 << 52;
        let rme = TagSupport::StaticOnly(StaticReason::Rme);
        assert_eq!(support(&id, 1, None), rme);
        assert_eq!(support(&id, 0, None), rme);
    }

    #[test]
    fn without_tags_in_memory_or_with_storage_unknown_guests_have_no_mte() {
        for (field, level) in [(0, MteLevel::None), (1, MteLevel::El0Only)] {
            let mut id = max();
            id.pfr1 = field << 8;
            let reason = NoMteReason::Cpu(level);
            assert_eq!(support(&id, 1, None), TagSupport::NoMte(reason));
            assert!(!CpuFeatures::new(&id).mte_perm);
        }
        let unknown = TagSupport::NoMte(NoMteReason::UnknownStorage);
        assert_eq!(support(&max(), 1, Some(false)), unknown);
        for gmid in [0, 1, 7, 15] {
            let mut id = max();
            id.gmid = gmid;
            let ldgm = TagSupport::NoMte(NoMteReason::Ldgm);
            assert_eq!(support(&id, 1, None), ldgm);
        }
    }

    #[test]
    fn the_weakest_cpu_decides_for_the_machine() {
        let big = CpuFeatures::new(&max());
        let mut id = max();
        id.midr = 0x410f_d490; // Neoverse-N2
        id.pfr1 = 2 << 8;
        id.pfr2 = 0;
        id.mmfr0 = 5;
        id.mmfr1 = 0;
        id.ctr = 3 << 16 | 3;
        let little = CpuFeatures::new(&id);
        let both = big.merge(little);
        assert_eq!(both, little.merge(big));
        assert_eq!(both.mte, MteLevel::Full);
        assert!(!both.mte_perm && !both.hcx && !both.pan);
        assert_eq!((both.vmid_bits, both.pa_range_bits), (8, 48));
        assert_eq!((both.data_line, both.tag_line), (32, 32));
        assert!(both.errata.repeat_tlbi);
        assert_eq!(both.tag_support(&machine(1, None)), TagSupport::EagerOnly);
        assert_eq!(big.merge(big), big);
    }

    #[test]
    fn cpus_that_differ_in_what_guests_see_of_tags_hide_mte() {
        let mut id = max();
        id.gmid = 5;
        id.dczid = 5;
        let both = CpuFeatures::new(&max()).merge(CpuFeatures::new(&id));
        assert_eq!((both.ldgm, both.dc_zva), (None, None));
        let support = both.tag_support(&machine(1, None));
        assert_eq!(support, TagSupport::NoMte(NoMteReason::Ldgm));
    }

    #[test]
    fn one_cpu_with_rme_is_enough_to_keep_storage_static() {
        let mut id = max();
        id.pfr0 |= 1 << 52;
        assert!(CpuFeatures::new(&max()).merge(CpuFeatures::new(&id)).rme);
    }
}
