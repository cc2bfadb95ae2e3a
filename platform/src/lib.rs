//! The board: what the device tree and the CPU say, and the drivers for it.
#![cfg_attr(not(test), no_std)]
