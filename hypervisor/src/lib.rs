//! What runs at EL2.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod devices;
pub mod traps;
