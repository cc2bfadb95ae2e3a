//! Guest memory: addresses, frames, tag regions and blocks, stage-2 tables.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
