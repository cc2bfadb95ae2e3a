//! The generic timer as the device tree describes it. The timer itself is system registers, which the
//! hypervisor's `arch` layer owns.

use crate::machine::Interrupt;

/// The timer's interrupts, all PPIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timer {
    /// EL1 physical timer, Secure.
    pub phys_secure: Option<Interrupt>,
    /// EL1 physical timer, Non-secure.
    pub phys: Option<Interrupt>,
    /// EL1 virtual timer.
    pub virt: Interrupt,
    /// EL2 physical timer.
    pub hyp: Option<Interrupt>,
    /// EL2 virtual timer.
    pub hyp_virt: Option<Interrupt>,
    /// Hz, where firmware did not write CNTFRQ_EL0.
    pub frequency: Option<u32>,
}
