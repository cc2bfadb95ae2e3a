//! Guests under tagvisor, run as a user runs them: by `scripts/run`, in batch or on a terminal.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Error, Result};
use serde_json::Value;
use tagvisor_tool::bundle::{self, Policy};
use tagvisor_tool::paths::repository;
use tagvisor_tool::size::parse_size;

use crate::build::{flat, initramfs, linux, other_linux};
use crate::process::{Finished, Folder, run_within};
use crate::terminal::Terminal;

/// How long EL2 and its guests may take, in seconds.
const TIMEOUT: u64 = 120;
/// What building and starting may take beyond that.
const START: Duration = Duration::from_secs(600);

/// One guest of a configuration.
#[derive(Clone, Debug)]
pub struct Guest {
    name: String,
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    memory: String,
    vcpus: u32,
    cpus: Vec<u32>,
    cmdline: String,
    mte: bool,
    tag_budget: Option<u64>,
    policy: Policy,
    autostart: bool,
}

impl Guest {
    /// Makes a guest of the bare-metal program `program`, with 64 MiB of memory and MTE.
    ///
    /// # Errors
    /// The program cannot be built.
    pub fn bare(program: &str) -> Result<Self> {
        Ok(Self {
            name: program.to_owned(),
            kernel: flat(program)?,
            initrd: None,
            memory: "64M".to_owned(),
            vcpus: 1,
            cpus: Vec::new(),
            cmdline: String::new(),
            mte: true,
            tag_budget: None,
            policy: Policy::Auto,
            autostart: true,
        })
    }

    /// Makes a guest of Linux with the initramfs `image`, with 512 MiB of memory and MTE; the demo powers itself off.
    ///
    /// # Errors
    /// Set-up has not run, or the initramfs cannot be built.
    pub fn linux(image: &str) -> Result<Self> {
        Ok(Self {
            name: "linux".to_owned(),
            kernel: linux()?,
            initrd: Some(initramfs(image)?),
            memory: "512M".to_owned(),
            vcpus: 1,
            cpus: Vec::new(),
            cmdline: "console=ttyAMA0 tagvisor.batch".to_owned(),
            mte: true,
            tag_budget: None,
            policy: Policy::Auto,
            autostart: true,
        })
    }

    /// Returns it as the bundle describes it.
    pub(crate) fn to_bundle(&self) -> Result<bundle::Guest> {
        Ok(bundle::Guest {
            name: self.name.clone(),
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            memory_bytes: parse_size(&self.memory).map_err(Error::msg)?,
            vcpus: self.vcpus,
            cpu_mask: None,
            mte: self.mte,
            tag_budget: self.tag_budget,
            policy: self.policy,
            cmdline: self.cmdline.clone(),
            seed: String::new(),
            autostart: self.autostart,
        })
    }

    /// Runs another of set-up's Linux kernels: `stable-16k`, `newest-4k` or `newest-16k`.
    ///
    /// # Errors
    /// Set-up has not brought it.
    pub fn kernel(mut self, name: &str) -> Result<Self> {
        self.kernel = other_linux(name)?;
        Ok(self)
    }

    /// Gives it an initrd.
    #[must_use]
    pub fn initrd(mut self, file: PathBuf) -> Self {
        self.initrd = Some(file);
        self
    }

    /// Names it.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Gives it memory, as the configuration writes sizes.
    #[must_use]
    pub fn memory(mut self, memory: &str) -> Self {
        memory.clone_into(&mut self.memory);
        self
    }

    /// Gives it vCPUs.
    #[must_use]
    pub const fn vcpus(mut self, vcpus: u32) -> Self {
        self.vcpus = vcpus;
        self
    }

    /// Keeps its vCPUs on these CPUs.
    #[must_use]
    pub fn on_cpus(mut self, cpus: &[u32]) -> Self {
        self.cpus = cpus.to_vec();
        self
    }

    /// Gives it a kernel command line.
    #[must_use]
    pub fn cmdline(mut self, cmdline: &str) -> Self {
        cmdline.clone_into(&mut self.cmdline);
        self
    }

    /// Adds to its kernel command line.
    #[must_use]
    pub fn and_cmdline(mut self, more: &str) -> Self {
        self.cmdline = format!("{} {more}", self.cmdline);
        self
    }

    /// Hides MTE from it.
    #[must_use]
    pub const fn without_mte(mut self) -> Self {
        self.mte = false;
        self
    }

    /// Lets it be a template only: the monitor makes VMs of it.
    #[must_use]
    pub const fn template(mut self) -> Self {
        self.autostart = false;
        self
    }

    /// Limits the tag storage that may be reserved for it, in bytes.
    #[must_use]
    pub const fn tag_budget(mut self, bytes: u64) -> Self {
        self.tag_budget = Some(bytes);
        self
    }

    /// Gives it a policy other than the machine's.
    #[must_use]
    pub const fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }
}

/// A machine, its guests and the options of a run.
#[derive(Clone, Debug, Default)]
pub struct Scenario {
    guests: Vec<Guest>,
    machine: String,
    options: Vec<String>,
    timeout: Option<u64>,
}

impl Scenario {
    /// Makes what `scripts/run` runs without a configuration: the demo, four Linux VMs on 4 GiB.
    #[must_use]
    pub fn demo() -> Self {
        Self::default()
    }

    /// Makes a machine that runs one guest.
    #[must_use]
    pub fn of(guest: Guest) -> Self {
        Self {
            guests: vec![guest],
            ..Self::default()
        }
    }

    /// Adds a guest.
    #[must_use]
    pub fn and(mut self, guest: Guest) -> Self {
        self.guests.push(guest);
        self
    }

    /// Adds options of `scripts/run`.
    #[must_use]
    pub fn with(mut self, options: &[&str]) -> Self {
        self.options
            .extend(options.iter().map(|&option| option.to_owned()));
        self
    }

    /// Adds lines of the configuration to `[machine]`, such as `regions = 2`; the demo has no configuration.
    #[must_use]
    pub fn machine(mut self, line: &str) -> Self {
        self.machine += line;
        self.machine.push('\n');
        self
    }

    /// Sets the time limit of the run, in seconds.
    #[must_use]
    pub const fn within(mut self, seconds: u64) -> Self {
        self.timeout = Some(seconds);
        self
    }

    /// The configuration file.
    fn toml(&self) -> String {
        let machine = format!("[machine]\ncpus = 1\n{}", self.machine);
        self.guests.iter().fold(machine, |mut text, guest| {
            // Writing to a string does not fail.
            let _ = write!(
                text,
                "\n[[vm]]\nname = {:?}\nkernel = {:?}\nmemory = {:?}\nvcpus = {}\ncmdline = {:?}\nmte = {}\n",
                guest.name, guest.kernel, guest.memory, guest.vcpus, guest.cmdline, guest.mte
            );
            if let Some(initrd) = &guest.initrd {
                let _ = writeln!(text, "initrd = {initrd:?}");
            }
            if !guest.cpus.is_empty() {
                let _ = writeln!(text, "cpus = {:?}", guest.cpus);
            }
            if let Some(bytes) = guest.tag_budget {
                let _ = writeln!(text, "tag_budget = {bytes}");
            }
            if !guest.autostart {
                text.push_str("autostart = false\n");
            }
            if guest.policy != Policy::Auto {
                let _ = writeln!(text, "policy = {:?}", guest.policy.name());
            }
            text
        })
    }

    /// Runs it in batch mode and reads its report.
    ///
    /// # Errors
    /// The run cannot be started, or its report is no JSON.
    pub fn run(&self) -> Result<Run> {
        let folder = Folder::new()?;
        let report = folder.path().join("report.json");
        let mut command = self.command(&folder)?;
        command.arg("--batch").arg("--report").arg(&report);
        let finished = run_within(&mut command, self.limit())?;
        let report = match std::fs::read_to_string(&report) {
            Ok(text) => serde_json::from_str(&text).context("the report is no JSON")?,
            Err(_) => Value::Null,
        };
        Ok(Run { finished, report })
    }

    /// Runs it on a terminal, which `person` reads and types on; then it has to end.
    ///
    /// # Errors
    /// The run cannot be started, or the person does not see what they wait for.
    pub fn interact(&self, person: impl FnOnce(&mut Terminal) -> Result<()>) -> Result<Finished> {
        let folder = Folder::new()?;
        let mut terminal = Terminal::start(&mut self.command(&folder)?, self.limit())?;
        person(&mut terminal)?;
        terminal.finish()
    }

    /// The command line, but for the mode.
    fn command(&self, folder: &Folder) -> Result<Command> {
        let mut command = Command::new(repository().join("scripts/run"));
        if !self.guests.is_empty() {
            let config = folder.path().join("config.toml");
            std::fs::write(&config, self.toml())?;
            command.arg("--config").arg(config);
        }
        let timeout = self.timeout.unwrap_or(TIMEOUT).to_string();
        command.args(["--timeout", &timeout]).args(&self.options);
        Ok(command)
    }

    /// Building, starting and running take at most this long.
    fn limit(&self) -> Duration {
        Duration::from_secs(self.timeout.unwrap_or(TIMEOUT)) + START
    }
}

/// What came of a [`Scenario`].
#[derive(Clone, Debug)]
pub struct Run {
    /// What the run printed, and its exit code.
    pub finished: Finished,
    /// The report; null if there is none.
    pub report: Value,
}

impl Run {
    /// Returns the number at `path` in the report (a JSON pointer, `/vms/0/tag_faults`); `u64::MAX` if there is none.
    #[must_use]
    pub fn figure(&self, path: &str) -> u64 {
        self.report
            .pointer(path)
            .and_then(Value::as_u64)
            .unwrap_or(u64::MAX)
    }

    /// Returns the text at `path` in the report; empty if there is none.
    #[must_use]
    pub fn text(&self, path: &str) -> &str {
        self.report
            .pointer(path)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// Returns the lines of guest `name`, without its prefix.
    #[must_use]
    pub fn guest_lines(&self, name: &str) -> Vec<&str> {
        let prefix = format!("{name}| ");
        self.finished
            .output
            .lines()
            .filter_map(|line| line.strip_prefix(&prefix))
            .map(str::trim_end)
            .collect()
    }

    /// Returns the first line of guest `name` that begins with `start`; empty if there is none.
    #[must_use]
    pub fn guest_line(&self, name: &str, start: &str) -> &str {
        self.guest_lines(name)
            .into_iter()
            .find(|line| line.starts_with(start))
            .unwrap_or_default()
    }

    /// Returns everything that was printed and reported, for a failed test's message.
    #[must_use]
    pub fn transcript(&self) -> String {
        format!(
            "{}\n--- report\n{:#}",
            self.finished.transcript(),
            self.report
        )
    }
}
