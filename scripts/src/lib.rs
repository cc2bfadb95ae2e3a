//! The host tool of tagvisor as a library: set-up, the machine that QEMU runs, the bundle, runs and their reports.
//!
//! `scripts/setup`, `scripts/run`, `scripts/bundle` and `scripts/test` are thin wrappers over the program of the same
//! package; the QEMU tests use the library.
#![allow(clippy::indexing_slicing)]

pub mod board;
pub mod bundle;
pub mod config;
pub mod image;
pub mod paths;
pub mod process;
pub mod progress;
pub mod run;
pub mod setup;
pub mod size;
pub mod test;
