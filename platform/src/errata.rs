//! Errata that change what the hypervisor does, by MIDR_EL1.

/// Workarounds that a CPU needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Errata {
    /// CVE-2025-10263: a store that was translated by an entry which a TLBI removes may land after the DSB
    /// that follows. Each batch of TLBIs is followed by one more TLBI and DSB.
    pub repeat_tlbi: bool,
}

const ARM: u8 = 0x41;
const NVIDIA: u8 = 0x4e;
const MICROSOFT: u8 = 0x6d;

/// CPUs with CVE-2025-10263, all revisions: implementer, part number. From Arm's advisory and the list of
/// `ARM64_ERRATUM_4118414` in Linux.
const REPEAT_TLBI: [(u8, u16, &str); 25] = [
    (ARM, 0xd0b, "Cortex-A76"),
    (ARM, 0xd0e, "Cortex-A76AE"),
    (ARM, 0xd0d, "Cortex-A77"),
    (ARM, 0xd41, "Cortex-A78"),
    (ARM, 0xd42, "Cortex-A78AE"),
    (ARM, 0xd4b, "Cortex-A78C"),
    (ARM, 0xd47, "Cortex-A710"),
    (ARM, 0xd44, "Cortex-X1"),
    (ARM, 0xd4c, "Cortex-X1C"),
    (ARM, 0xd48, "Cortex-X2"),
    (ARM, 0xd4e, "Cortex-X3"),
    (ARM, 0xd82, "Cortex-X4"),
    (ARM, 0xd85, "Cortex-X925"),
    (ARM, 0xd0c, "Neoverse-N1"),
    (ARM, 0xd49, "Neoverse-N2"),
    (ARM, 0xd40, "Neoverse-V1"),
    (ARM, 0xd4f, "Neoverse-V2"),
    (ARM, 0xd84, "Neoverse-V3"),
    (ARM, 0xd83, "Neoverse-V3AE"),
    (ARM, 0xd8c, "C1-Ultra"),
    (ARM, 0xd90, "C1-Premium"),
    // The rest of the C1 family is not in Linux's list; the repetition costs one TLBI.
    (ARM, 0xd8b, "C1-Pro"),
    (ARM, 0xd8a, "C1-Nano"),
    // Derived from Arm's cores.
    (MICROSOFT, 0xd49, "Azure Cobalt 100"),
    (NVIDIA, 0x010, "Olympus"),
];

impl Errata {
    /// Looks up the workarounds for a CPU by its MIDR_EL1.
    #[must_use]
    pub fn for_midr(midr: u64) -> Self {
        let implementer = (midr >> 24) as u8;
        let part = (midr >> 4) as u16 & 0xfff;
        Self {
            repeat_tlbi: REPEAT_TLBI
                .iter()
                .any(|&(i, p, _)| (i, p) == (implementer, part)),
        }
    }

    /// Joins the needs of two CPUs: a TLBI is broadcast, so one CPU that needs a workaround is enough.
    #[must_use]
    pub const fn merge(self, other: Self) -> Self {
        Self {
            repeat_tlbi: self.repeat_tlbi || other.repeat_tlbi,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn midr(implementer: u64, part: u64, variant: u64, revision: u64) -> u64 {
        implementer << 24 | variant << 20 | 0xf << 16 | part << 4 | revision
    }

    #[test]
    fn every_revision_of_a_listed_core_repeats_its_tlbi() {
        for (implementer, part, name) in REPEAT_TLBI {
            for (variant, revision) in [(0, 0), (1, 1), (15, 15)] {
                let midr = midr(implementer.into(), part.into(), variant, revision);
                assert!(Errata::for_midr(midr).repeat_tlbi, "{name}");
            }
        }
    }

    #[test]
    fn other_cores_do_not_repeat_it() {
        // Cortex-A55, A510, Neoverse-E1, an Ampere core with a listed part number, QEMU's max.
        for midr in [
            midr(0x41, 0xd05, 0, 0),
            midr(0x41, 0xd46, 0, 0),
            midr(0x41, 0xd4a, 0, 0),
            midr(0xc0, 0xd49, 0, 0),
            midr(0, 0x51, 0, 0),
            0,
            u64::MAX,
        ] {
            assert!(!Errata::for_midr(midr).repeat_tlbi, "{midr:#x}");
        }
    }

    #[test]
    fn one_affected_cpu_is_enough() {
        let (yes, no) = (Errata { repeat_tlbi: true }, Errata::default());
        assert_eq!(yes.merge(no), yes);
        assert_eq!(no.merge(yes), yes);
        assert_eq!(no.merge(no), no);
    }
}
