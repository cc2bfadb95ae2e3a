//! What a CPU that firmware starts needs before it runs Rust, and its first Rust code.

use core::sync::atomic::{AtomicU32, Ordering};

use super::cpu;
use crate::cpus::Invitation;
use crate::stacks::Stacks;

/// Nobody has come yet.
const OPEN: u32 = 0;
/// A CPU uses the stacks.
pub const CLAIMED: u32 = 1;
/// Whoever comes now is too late.
const CLOSED: u32 = 2;

/// Where a CPU starts. The first four are known to the assembly in `arch::entry`, which reads them with the MMU off.
#[repr(C)]
pub struct Start {
    /// TTBR0_EL2.
    pub(super) root: u64,
    /// SP.
    pub(super) stack: u64,
    /// SP for faults at EL2.
    pub(super) fault_stack: u64,
    /// [`OPEN`], [`CLAIMED`] or [`CLOSED`].
    pub(super) claim: AtomicU32,
    /// What it does then.
    invitation: Invitation,
}

impl Start {
    /// Puts together where a CPU starts, and makes it visible to one whose MMU is off.
    pub fn new(root: u64, stacks: Stacks, line: u64, invitation: Invitation) -> &'static Self {
        let start = alloc::boxed::Box::leak(alloc::boxed::Box::new(Self {
            root,
            stack: stacks.stack_top(),
            fault_stack: stacks.fault_stack_top(),
            claim: AtomicU32::new(OPEN),
            invitation,
        }));
        let begin = &raw const *start as u64;
        let mut at = begin & !(line - 1);
        while at < begin + size_of::<Self>() as u64 {
            cpu::clean_to_memory(at);
            at += line;
        }
        start
    }

    /// Returns what the CPU was invited to.
    #[must_use]
    pub const fn invitation(&self) -> &Invitation {
        &self.invitation
    }

    /// Returns the physical address for PSCI's CPU_ON, and what goes into x0.
    #[must_use]
    pub fn entry(&'static self) -> (u64, u64) {
        unsafe extern "C" {
            static secondary_entry: u8;
        }
        ((&raw const secondary_entry) as u64, &raw const *self as u64)
    }

    /// Turns the CPU away if it has not come yet.
    pub fn close(&self) {
        let _ = self
            .claim
            .compare_exchange(OPEN, CLOSED, Ordering::AcqRel, Ordering::Acquire);
    }
}

/// The first Rust code of a CPU that firmware has started: MMU and caches on, interrupts masked, on its own stack.
pub(super) extern "C" fn secondary_rust_entry(start: &'static Start) -> ! {
    crate::cpus::arrive(start.invitation())
}
