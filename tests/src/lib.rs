//! The harness of the QEMU tests: builds what they run, runs it within a time limit, and reads what it said.
//!
//! A test runs a bare-metal program in QEMU by itself ([`Qemu`]), or guests under tagvisor through `scripts/run`
//! ([`Scenario`]), as a user would, or tagvisor on a machine of its own making ([`Machine`]).
//!
//! Tests that take long run when [`is_full`] says so.

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

/// Whether tests that take long run too: `scripts/test --full`, which sets `TAGVISOR_FULL=1`.
#[must_use]
pub fn is_full() -> bool {
    std::env::var("TAGVISOR_FULL").is_ok_and(|value| value == "1")
}
