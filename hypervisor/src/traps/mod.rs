//! Traps of a guest, decoded from values: exits, system registers, injected exceptions.
//!
//! Nothing here reads a register or touches memory: the vector reads, these modules decide, the
//! caller acts. No input panics.

pub mod controls;
pub mod debug;
pub mod esr;
pub mod fault;
pub mod hidden;
pub mod id_regs;
pub mod inject;
pub mod sysreg;
pub mod tag_access;

#[cfg(test)]
mod fixtures;
