//! EL2's physical timer: one deadline on this CPU, for slices and sleeping vCPUs.

use super::regs::write_reg;
use aarch64_cpu::asm::barrier::{SY, isb};
use aarch64_cpu::registers::{
    CNTFRQ_EL0, CNTHP_CTL_EL2, CNTPCT_EL0, CNTV_CTL_EL0, Readable, Writeable,
};

/// Reads the physical counter (CNTVOFF_EL2 is 0, so guests read the same).
#[must_use]
pub fn counter() -> u64 {
    isb(SY);
    CNTPCT_EL0.get()
}

/// Counts per second.
#[must_use]
pub fn frequency() -> u64 {
    CNTFRQ_EL0.get()
}

/// Raises the EL2 timer's interrupt at `deadline`, or never.
pub fn set_deadline(deadline: Option<u64>) {
    match deadline {
        Some(at) => {
            write_reg!("cnthp_cval_el2", at);
            CNTHP_CTL_EL2.set(1);
        }
        None => write_reg!("cnthp_ctl_el2", 0),
    }
    isb(SY);
}

/// Returns CNTV_CTL_EL0 of the vCPU that is loaded.
#[must_use]
pub fn virtual_control() -> u64 {
    CNTV_CTL_EL0.get()
}
