//! The virtual devices of a guest: pure logic, no register access.
//!
//! A device takes plain values (an offset, a size, a byte) and gives plain values back; the run loop owns the traps,
//! the locks and the hardware. Nothing a guest can write makes a device panic: what the architecture leaves out reads
//! as zero and ignores writes.

pub mod mmio;
pub mod pv_time;
pub mod vgic;
pub mod vpsci;
pub mod vtimer;
pub mod vuart;

/// Virtual CPUs with one value of Aff1: what the 16-bit target list of an SGI reaches.
const VCPUS_PER_CLUSTER: usize = 16;

/// Bit 31 of `MPIDR_EL1`, which is one on every AArch64 CPU.
const MPIDR_RES1: u64 = 1 << 31;

/// The bits of `MPIDR_EL1` that hold an affinity: Aff3, Aff2, Aff1, Aff0 (DDI 0487, D24.2.130).
pub const AFFINITY_MASK: u64 = 0xff_00ff_ffff;

/// Returns the affinity of virtual CPU `vcpu` in the layout of `MPIDR_EL1`: sixteen to a cluster, like QEMU virt.
pub const fn affinity(vcpu: usize) -> u64 {
    ((vcpu / VCPUS_PER_CLUSTER) << 8 | (vcpu % VCPUS_PER_CLUSTER)) as u64
}

/// Returns what virtual CPU `vcpu` reads from `MPIDR_EL1`.
pub const fn mpidr(vcpu: usize) -> u64 {
    MPIDR_RES1 | affinity(vcpu)
}

/// Returns the virtual CPU with this affinity, if a machine of `vcpus` has one.
pub fn vcpu_with_affinity(affinity: u64, vcpus: usize) -> Option<usize> {
    let aff0 = usize::try_from(affinity & 0xff).ok()?;
    let cluster = usize::try_from(affinity >> 8).ok()?;
    if aff0 >= VCPUS_PER_CLUSTER {
        return None;
    }
    let vcpu = cluster.checked_mul(VCPUS_PER_CLUSTER)?.checked_add(aff0)?;
    (vcpu < vcpus).then_some(vcpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vcpu_has_an_affinity_of_its_own_and_is_found_by_it() {
        for vcpu in 0..64 {
            assert_eq!(vcpu_with_affinity(affinity(vcpu), 64), Some(vcpu));
            assert_eq!(vcpu_with_affinity(affinity(vcpu), vcpu), None);
        }
        assert_eq!(mpidr(17), 0x8000_0101);
    }

    #[test]
    fn an_affinity_nobody_has_finds_no_vcpu() {
        for bad in [0x10, 0xff, 1 << 16, 1 << 32, 0xff << 32, u64::MAX] {
            assert_eq!(vcpu_with_affinity(bad, 64), None, "{bad:#x}");
        }
    }
}
