//! The configuration of a run: a TOML file, checked with the line of each mistake before QEMU starts.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::bundle::{Guest, Policy};
use crate::size::show_size;

mod guest;
mod machine;

use guest::{RawVm, guest, most_tags, policy};
pub use machine::{DEFAULT_CPUS, DEFAULT_MEMORY};
use machine::{MOST_CPUS, RawMachine, machine};

const MOST_GUESTS: usize = 64;

/// The memory of the demo's machine, in bytes.
const DEMO_MEMORY: u64 = 4 << 30;

/// A guest of the demo. Its name is also its part: the guest's init says what that is.
struct DemoGuest {
    name: &'static str,
    memory_bytes: u64,
    vcpus: u32,
    mte: bool,
    tag_budget: Option<u64>,
    /// Words of the kernel command line.
    words: &'static str,
}

/// The guests of the demo. Those without MTE together touch less than there is tag storage: so all that they have is lent. They
/// have too little memory for the 64 MiB that Debian's kernel sets aside for devices (CMA).
const DEMO: [DemoGuest; 4] = [
    DemoGuest {
        name: "tagged",
        memory_bytes: 256 << 20,
        vcpus: 2,
        mte: true,
        tag_budget: None,
        words: "",
    },
    DemoGuest {
        name: "budget",
        memory_bytes: 256 << 20,
        vcpus: 1,
        mte: true,
        tag_budget: Some(4 << 20),
        words: " quiet",
    },
    DemoGuest {
        name: "plain",
        memory_bytes: 128 << 20,
        vcpus: 1,
        mte: false,
        tag_budget: None,
        words: " quiet cma=0 tagvisor.nomte",
    },
    DemoGuest {
        name: "lent",
        memory_bytes: 80 << 20,
        vcpus: 1,
        mte: false,
        tag_budget: None,
        words: " quiet cma=0 tagvisor.nomte",
    },
];

impl DemoGuest {
    fn guest(&self, kernel: &Path, initrd: &Path) -> Guest {
        Guest {
            name: self.name.to_owned(),
            kernel: kernel.to_path_buf(),
            initrd: Some(initrd.to_path_buf()),
            memory_bytes: self.memory_bytes,
            vcpus: self.vcpus,
            cpu_mask: None,
            mte: self.mte,
            tag_budget: self.tag_budget,
            policy: Policy::Auto,
            cmdline: format!(
                "console=ttyAMA0 earlycon{} tagvisor.part={}",
                self.words, self.name
            ),
            seed: String::new(),
            autostart: true,
        }
    }
}

/// What runs: the machine and its guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// RAM in bytes.
    pub memory_bytes: u64,
    /// CPUs.
    pub cpus: u32,
    /// How tag storage is reserved.
    pub policy: Policy,
    /// Pages a second that the tag faults of one guest may evict from tag storage, 0 for any number; none: EL2's default.
    pub eviction_rate: Option<u32>,
    /// A tag block is emptied in idle time if no more percent of the pages that it covers have tags, 0: none; none: EL2's default.
    pub compact_below: Option<u8>,
    /// Tag regions; 0: the machine's tags are hidden.
    pub regions: u32,
    /// `block-size` of the tag regions in bytes.
    pub block_bytes: u32,
    /// The guests.
    pub guests: Vec<Guest>,
}

/// What the command line says in place of the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// RAM in bytes.
    pub memory_bytes: Option<u64>,
    /// CPUs.
    pub cpus: Option<u32>,
    /// How tag storage is reserved, for the machine and each of its guests.
    pub policy: Option<Policy>,
}

/// A mistake in a configuration: where, what and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// `FILE:LINE`, `FILE`, or an option's name.
    pub place: String,
    /// What is wrong and what to do.
    pub text: String,
}

impl ConfigError {
    fn new(place: &str, text: &str) -> Self {
        Self {
            place: place.to_owned(),
            text: text.to_owned(),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.text)
    }
}

impl std::error::Error for ConfigError {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    #[serde(default)]
    machine: RawMachine,
    #[serde(default)]
    vm: Vec<RawVm>,
}

/// A configuration file under inspection: turns byte offsets into lines.
struct Source<'a> {
    file: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn error(&self, at: Option<usize>, text: impl Into<String>) -> ConfigError {
        let line = at.map(|at| {
            self.text
                .bytes()
                .take(at)
                .filter(|&byte| byte == b'\n')
                .count()
                + 1
        });
        let place = match line {
            Some(line) => format!("{}:{line}", self.file.display()),
            None => self.file.display().to_string(),
        };
        ConfigError {
            place,
            text: text.into(),
        }
    }

    /// Paths are relative to the configuration file.
    fn resolve(&self, path: &Path) -> PathBuf {
        self.file.parent().unwrap_or(Path::new("")).join(path)
    }
}

impl Config {
    /// Reads and checks a configuration file for QEMU's machine.
    ///
    /// # Errors
    /// The first mistake found, with its line and a remedy.
    pub fn load(file: &Path, overrides: Overrides) -> Result<Self, ConfigError> {
        Self::parse(&text_of(file)?, file, overrides)
    }

    /// Reads and checks a configuration file for a machine that is not known here: EL2 will tell whether the guests fit.
    ///
    /// # Errors
    /// As of [`Config::load`].
    pub fn load_for_any_machine(file: &Path, overrides: Overrides) -> Result<Self, ConfigError> {
        let text = text_of(file)?;
        let source = Source { file, text: &text };
        Ok(Self::read(&source, overrides, false)?.0)
    }

    /// Checks the text of a configuration file.
    ///
    /// # Errors
    /// As of [`Config::load`].
    pub fn parse(text: &str, file: &Path, overrides: Overrides) -> Result<Self, ConfigError> {
        let source = Source { file, text };
        let (config, last) = Self::read(&source, overrides, true)?;
        config.fits().map_err(|text| source.error(last, text))?;
        Ok(config)
    }

    /// Reads all but what concerns the guests together, and where the last guest's memory is said. Whether the machine has as many
    /// CPUs as the configuration says may be `known`.
    fn read(
        source: &Source<'_>,
        overrides: Overrides,
        known: bool,
    ) -> Result<(Self, Option<usize>), ConfigError> {
        let raw: RawConfig = toml::from_str(source.text).map_err(|error| {
            source.error(error.span().map(|span| span.start), error.message().trim())
        })?;
        let mut config = machine(source, &raw.machine, overrides)?;
        if raw.vm.is_empty() {
            return Err(source.error(
                None,
                "no guest: add a [[vm]] section with name, kernel and memory",
            ));
        }
        if let Some(extra) = raw.vm.get(MOST_GUESTS) {
            return Err(source.error(
                Some(extra.name.span().start),
                "a machine runs at most 64 guests: remove some",
            ));
        }
        let cpus = if known { config.cpus } else { MOST_CPUS };
        for vm in &raw.vm {
            let mut guest = guest(source, vm, &config.guests, cpus)?;
            if overrides.policy.is_none() {
                guest.policy = policy(source, vm, config.policy)?;
            }
            config.guests.push(guest);
        }
        Ok((config, raw.vm.last().map(|vm| vm.memory.span().start)))
    }

    /// Makes the configuration of the demo: four Debian guests that differ in what tags they use.
    ///
    /// # Errors
    /// The options ask for a machine that cannot be or that is too small.
    pub fn demo(kernel: &Path, initrd: &Path, overrides: Overrides) -> Result<Self, ConfigError> {
        let source = Source {
            file: Path::new("the demo"),
            text: "",
        };
        let overrides = Overrides {
            memory_bytes: overrides.memory_bytes.or(Some(DEMO_MEMORY)),
            ..overrides
        };
        let mut config = machine(&source, &RawMachine::default(), overrides)?;
        config.guests = DEMO.iter().map(|it| it.guest(kernel, initrd)).collect();
        config.fits().map_err(|text| ConfigError {
            place: "--memory".to_owned(),
            text,
        })?;
        Ok(config)
    }

    /// Guests that start with the machine, their tags, and all images must leave some of the machine's memory. How much EL2 needs, it tells itself.
    fn fits(&self) -> Result<(), String> {
        let taggable = self.memory_bytes / 32 * 31;
        let lends = self.policy != Policy::Static && self.regions > 0;
        let usable = if lends { self.memory_bytes } else { taggable };
        let left = usable.saturating_sub(self.image_bytes());
        let started = || self.guests.iter().filter(|guest| guest.autostart);
        let memory: u64 = started().map(|guest| guest.memory_bytes).sum();
        let tags: u64 = if lends {
            started().map(most_tags).sum()
        } else {
            0
        };
        if memory + tags < left {
            return Ok(());
        }
        let (with_tags, or_budgets) = if tags > 0 {
            (
                format!(" and {} of tag storage", show_size(tags)),
                " or tag_budget,",
            )
        } else {
            (String::new(), "")
        };
        Err(format!(
            "the guests have {} of memory{with_tags} together, a machine of {} has room for less than {}: \
             lower the guests' memory{or_budgets} or raise the machine's",
            show_size(memory),
            show_size(self.memory_bytes),
            show_size(left.next_multiple_of(1 << 20))
        ))
    }

    fn image_bytes(&self) -> u64 {
        let mut files: Vec<&PathBuf> = self
            .guests
            .iter()
            .flat_map(|guest| guest.initrd.iter().chain([&guest.kernel]))
            .collect();
        files.sort();
        files.dedup();
        files
            .iter()
            .filter_map(|file| fs::metadata(file).ok())
            .map(|meta| meta.len())
            .sum()
    }
}

fn text_of(file: &Path) -> Result<String, ConfigError> {
    fs::read_to_string(file).map_err(|error| ConfigError {
        place: file.display().to_string(),
        text: format!("cannot read the configuration ({error}): check the path after --config"),
    })
}

#[cfg(test)]
mod tests;
