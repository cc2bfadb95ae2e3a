//! What the bare-metal test programs share.
//!
//! Each program is one flat image that needs nothing but a PL011 at the address where the `virt` machine has it, RAM, and
//! a device tree in x0. On the host the programs are empty; the modules without hardware are tested there.

#![no_std]

pub mod args;
pub mod fdt;
pub mod pattern;

#[cfg(target_os = "none")]
pub mod rt;
