//! EL2's physical timer: one deadline on this CPU, for slices and sleeping vCPUs.

use super::regs::{instruction, read_reg, write_reg};

/// Reads the physical counter (CNTVOFF_EL2 is 0, so guests read the same).
#[must_use]
pub fn counter() -> u64 {
    instruction!("isb");
    read_reg!("cntpct_el0")
}

/// Counts per second.
#[must_use]
pub fn frequency() -> u64 {
    read_reg!("cntfrq_el0")
}

/// Raises the EL2 timer's interrupt at `deadline`, or never.
pub fn set_deadline(deadline: Option<u64>) {
    match deadline {
        Some(at) => {
            write_reg!("cnthp_cval_el2", at);
            write_reg!("cnthp_ctl_el2", 1);
        }
        None => write_reg!("cnthp_ctl_el2", 0),
    }
    instruction!("isb");
}

/// Returns CNTV_CTL_EL0 of the vCPU that is loaded.
#[must_use]
pub fn virtual_control() -> u64 {
    read_reg!("cntv_ctl_el0")
}
