//! The command line of `scripts/run`.

use std::path::PathBuf;

use clap::Args;

use crate::bundle::Policy;
use crate::config::Overrides;
use crate::size::parse_size;

/// What `--help` shows under the options.
pub const EXIT_CODES: &str = "\
Exit codes:
  0    every guest powered itself off (without --batch: or was stopped by Ctrl-] q) and EL2 is sound
  1    a guest ended otherwise: reset (in batch), crashed, stopped, refused, over its budget
  2    the command line or the configuration is wrong
  3    something could not be set up, built or started
  4    EL2 failed: a panic, a fatal message, no report, or a broken invariant
  124  the time limit passed
  130  Ctrl-C (129: the terminal went away, 143: terminated)

Without --batch the terminal is the guest's console. Ctrl-] is the escape:
  Ctrl-] q   stop all guests, print the report and leave
  Ctrl-] r   print the report and go on
  Ctrl-] ]   send Ctrl-] to the guest

--count FILE holds one line for each event, EVENT el0=N el1=N el2=N el3=N, where N is the number of
instructions executed at each exception level so far and EVENT is first-guest-instruction (the first
at EL1), mark-0xNN (a guest's HINT #0xNN, 0x60 to 0x7f) or exit.

Environment: TAGVISOR_PROFILE (el2 or el2-debug) chooses the build of EL2, TAGVISOR_LOG the level of its messages.";

/// Options of a run.
#[derive(Args, Clone, Debug, Default)]
pub struct RunOptions {
    /// What to run; without it the demo, four Debian guests
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// How tag storage is reserved, for the machine and every guest [default: auto]
    #[arg(long)]
    pub policy: Option<Policy>,
    /// RAM of the machine [default: 2G, for the demo 4G]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory: Option<u64>,
    /// CPUs of the machine [default: 2]
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// CPU model, as QEMU names it
    #[arg(long, value_name = "MODEL", default_value = "max")]
    pub cpu: String,
    /// No terminal: prefix each guest's lines with its name, end when all guests are off
    #[arg(long)]
    pub batch: bool,
    /// End the run after so many seconds of QEMU's time
    #[arg(long, value_name = "S")]
    pub timeout: Option<u64>,
    /// Write the report of EL2 to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Leave the tags where stock QEMU keeps them, outside the carve-out (no oracle)
    #[arg(long)]
    pub stock_tags: bool,
    /// Run deterministically, time counted in instructions
    #[arg(long)]
    pub icount: bool,
    /// Count instructions by exception level into this file; implies --icount
    #[arg(long, value_name = "FILE")]
    pub count: Option<PathBuf>,
    /// Run this QEMU instead of that of set-up
    #[arg(long, value_name = "PATH")]
    pub qemu: Option<PathBuf>,
    /// Build EL2 with assertions; its invariants are checked at every exit
    #[arg(long)]
    pub debug_checks: bool,
    /// Run this ELF at EL2 instead of tagvisor
    #[arg(long, value_name = "ELF", hide = true)]
    pub el2: Option<PathBuf>,
    /// More arguments for QEMU
    #[arg(last = true, value_name = "QEMU ARGS")]
    pub qemu_arguments: Vec<String>,
}

impl RunOptions {
    /// Returns what the options say in place of the configuration.
    #[must_use]
    pub const fn overrides(&self) -> Overrides {
        Overrides {
            memory_bytes: self.memory,
            cpus: self.cpus,
            policy: self.policy,
        }
    }

    /// Whether time is counted in instructions.
    #[must_use]
    pub const fn deterministic(&self) -> bool {
        self.icount || self.count.is_some()
    }
}
