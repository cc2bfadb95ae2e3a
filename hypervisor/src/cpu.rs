//! What exit handling asks of the CPU it runs on, beyond the ports of `stage2`. Implemented by `arch`; a fake serves the tests.

use stage2::addr::Frame;
use stage2::ports::Hardware;

use crate::devices::vgic::ListRegisters;
use crate::traps::debug::DebugRegs;
use crate::traps::inject::{Injected, Origin};
use crate::traps::tag_access::{AtForm, Par};
use crate::vcpu::GuestContext;

/// The CPU while a vCPU's EL1 state is in its registers.
pub trait Cpu: Hardware {
    /// Translates `va` by stage 1 of the guest that is loaded; PAR_EL1 keeps the guest's value.
    fn translate(&mut self, form: AtForm, va: u64) -> Par;

    /// Reads what injecting an exception needs to know.
    fn origin(&self, context: &GuestContext) -> Origin;

    /// Writes the EL1 registers of an injected exception.
    fn take_exception(&mut self, injected: &Injected);

    /// Writes MDSCR_EL1.
    fn write_mdscr(&mut self, value: u64);

    /// Writes the breakpoints and watchpoints, of which the guest sees `shown` breakpoints: the last ones of this CPU, as those can
    /// compare contexts.
    fn write_comparators(&mut self, debug: &DebugRegs, shown: usize);

    /// Writes CPACR_EL1.
    fn write_cpacr(&mut self, value: u64);

    /// Has firmware do its part against speculation on this CPU: an SMCCC function without arguments.
    fn work_around(&mut self, function: u32);

    /// Takes 64 bits from the CPU's own source of entropy (FEAT_RNG); none if it has none left for now.
    fn random(&mut self) -> Option<u64>;

    /// Tells whether the guest's virtual timer does not ask for its interrupt now.
    fn virtual_timer_is_quiet(&self) -> bool;

    /// Stores what the guest may have changed in the virtual CPU interface.
    fn store_list_registers(&mut self, lrs: &mut ListRegisters);

    /// Copies `bytes` into `frame` from byte `offset` on; they fit.
    fn write_frame(&mut self, frame: Frame, offset: usize, bytes: &[u8]);
}
