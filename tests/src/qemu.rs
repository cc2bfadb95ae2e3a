//! One bare-metal program in QEMU, without tagvisor.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::build::{carveout, elf, flat, qemu_program};
use crate::process::{Finished, Folder, run_within};

/// A run takes about a second.
const LIMIT: Duration = Duration::from_secs(60);

/// What QEMU says now and then under `-icount`, when all CPUs wait; nothing is wrong then.
const HARMLESS: &str = "icount sleep disabled and no active timers";

/// A QEMU command line.
#[derive(Clone, Debug)]
pub struct Qemu {
    arguments: Vec<String>,
    oracle: bool,
}

impl Qemu {
    /// Runs the payload `name` at EL2 with main RAM of `memory` (as QEMU writes sizes) in `backend`.
    ///
    /// # Errors
    /// The payload cannot be built.
    pub fn at_el2(name: &str, memory: &str, backend: &str) -> Result<Self> {
        let machine =
            "virt,virtualization=on,mte=on,gic-version=3,memory-backend=mem,dtb-randomness=off";
        let mut qemu = Self::machine(machine, memory, &elf(name)?);
        qemu.arguments.extend([
            "-object".to_owned(),
            format!("{backend},id=mem,size={memory}"),
        ]);
        Ok(qemu)
    }

    /// Runs the guest `name` at QEMU's own EL1, with the command line `bootargs`.
    ///
    /// # Errors
    /// The guest cannot be built.
    pub fn at_el1(name: &str, bootargs: &str) -> Result<Self> {
        let machine = "virt,virtualization=off,mte=on,gic-version=3,dtb-randomness=off";
        let qemu = Self::machine(machine, "256M", &flat(name)?);
        Ok(qemu.with(&["-append", bootargs]))
    }

    fn machine(machine: &str, memory: &str, kernel: &Path) -> Self {
        let kernel = kernel.display().to_string();
        let arguments = [
            "-nodefaults",
            "-display",
            "none",
            "-serial",
            "stdio",
            "-no-reboot",
            "-M",
            machine,
        ];
        Self {
            arguments: arguments.map(str::to_owned).to_vec(),
            oracle: false,
        }
        .with(&["-cpu", "max", "-m", memory, "-kernel", &kernel])
    }

    /// Adds arguments.
    #[must_use]
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments
            .extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// Preloads the carve-out oracle.
    #[must_use]
    pub const fn with_oracle(mut self) -> Self {
        self.oracle = true;
        self
    }

    /// Runs it; with the oracle, what the oracle left as proof is returned too. A known harmless warning is left out.
    ///
    /// # Errors
    /// QEMU or the oracle is missing.
    pub fn run(&self) -> Result<(Finished, Option<String>)> {
        let folder = Folder::new()?;
        let proof = folder.path().join("proof");
        let mut command = Command::new(qemu_program()?);
        command.args(&self.arguments);
        if self.oracle {
            command
                .env("TAGVISOR_PRELOAD", carveout()?)
                .env("CARVEOUT_PROOF", &proof);
        }
        let mut finished = run_within(&mut command, LIMIT)?;
        let lines = finished.errors.split_inclusive('\n');
        finished.errors = lines.filter(|line| !line.contains(HARMLESS)).collect();
        Ok((finished, std::fs::read_to_string(&proof).ok()))
    }
}
