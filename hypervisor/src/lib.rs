//! What runs at EL2. `arch` needs AArch64; everything else is safe and runs on the host too, where it is tested.
#![cfg_attr(target_os = "none", no_std)]

extern crate alloc;

#[cfg(target_os = "none")]
pub mod arch;
#[cfg(target_os = "none")]
mod boot;
pub mod bundle;
pub mod config;
pub mod console;
pub mod cpu;
#[cfg(target_os = "none")]
mod cpus;
pub mod devices;
pub mod exit;
pub mod guest_fdt;
pub mod image;
pub mod json;
pub mod layout;
pub mod life;
pub mod monitor;
#[cfg(target_os = "none")]
mod output;
pub mod report;
#[cfg(target_os = "none")]
mod run;
pub mod sched;
pub mod stacks;
pub mod tag_fault;
pub mod throttle;
pub mod traps;
pub mod vcpu;
pub mod vm;
