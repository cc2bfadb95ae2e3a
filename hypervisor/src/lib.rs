//! What runs at EL2. `arch` needs AArch64; everything else is safe and runs on the host too, where it is tested.
#![cfg_attr(target_os = "none", no_std)]

extern crate alloc;

#[cfg(target_os = "none")]
pub mod arch;
pub mod bundle;
pub mod config;
pub mod devices;
pub mod traps;
