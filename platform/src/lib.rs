//! The board: what the device tree and the CPU say, and the drivers for it.
//!
//! - [`fdt::discover`] turns the board's device tree into a [`Machine`], plain data that the rest of the
//!   hypervisor works with. No input makes it panic: what it cannot accept is a [`fdt::DiscoverError`].
//! - [`features`] and [`errata`] decode the CPU's identification registers; they read no register.
//! - The drivers ([`pl011`], [`gic`], [`smccc`]) reach hardware through [`mmio::Mmio`] and the accessors of
//!   `arm-gic`, `arm-sysregs` and `smccc`. Memory-mapped accesses are made in [`mmio`] only, which holds all
//!   of this crate's unsafe code.
//!
//! Boards are data: there is no feature and no constant for a particular board here.
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]

extern crate alloc;

pub mod errata;
pub mod fdt;
pub mod features;
pub mod gic;
mod machine;
pub mod mmio;
pub mod pl011;
pub mod smccc;
pub mod timer;

pub use machine::{
    Conduit, Cpu, Gic, Interrupt, Machine, MemRange, Memory, Psci, PsciVersion, Refusal,
    RefusalReason, Reserved, ReservedBy, TagRegionNode, Trigger, Uart,
};
