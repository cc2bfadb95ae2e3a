//! The harness of the QEMU tests: builds what they run, runs it within a time limit, and reads what it said.
//!
//! A test runs a bare-metal program in QEMU by itself ([`Qemu`]), or guests under tagvisor through `scripts/run`
//! ([`Scenario`]), as a user would, or tagvisor on a machine of its own making ([`Machine`]).

mod build;
mod machine;
mod process;
mod qemu;
mod scenario;

pub use build::{carveout, elf, flat, qemu_program};
pub use machine::Machine;
pub use process::{Finished, Folder, run_within};
pub use qemu::Qemu;
pub use scenario::{Guest, Run, Scenario};
