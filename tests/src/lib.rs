//! The harness of the QEMU tests: builds what they run, runs it within a time limit, and reads what it said.
//!
//! A test runs a bare-metal program in QEMU by itself ([`Qemu`]), or guests under tagvisor through `scripts/run`
//! ([`Scenario`]), as a user would, or tagvisor on a machine of its own making ([`Machine`]).
//!
//! Tests that take long are in test programs of their own, which need the feature `full`.

mod build;
mod machine;
mod patch;
mod process;
mod qemu;
mod scenario;
mod terminal;

pub use build::{carveout, elf, flat, initramfs, linux, qemu_program, tagvisor_elf};
pub use machine::Machine;
pub use patch::patch;
pub use process::{Finished, Folder, run_within};
pub use qemu::Qemu;
pub use scenario::{Guest, Run, Scenario};
pub use terminal::Terminal;
