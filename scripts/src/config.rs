//! The configuration of a run: a TOML file, checked with the line of each mistake before QEMU starts.

use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use crate::board::{BUNDLE, LEAST_MEMORY, MEMORY_STEP, RAM_BASE};
use crate::bundle::{Guest, Policy};
use crate::image::{IMAGE_HEADER_BYTES, Kernel, kernel_kind};
use crate::size::{Size, show_size};

/// The memory of a machine whose configuration does not say it, in bytes.
pub const DEFAULT_MEMORY: u64 = 2 << 30;
/// The CPUs of a machine whose configuration does not say them.
pub const DEFAULT_CPUS: u32 = 2;
/// A guest's memory comes in these steps.
const GUEST_STEP: u64 = 2 << 20;
/// The longest kernel command line that Linux takes on arm64, in bytes.
const LONGEST_CMDLINE: usize = 2047;
/// What a guest needs beside kernel and initrd: its DTB and a stack, in bytes.
const GUEST_EXTRA: u64 = 2 << 20;
/// What the guests' address space of 36 bits holds from its RAM's start on, in bytes.
const MOST_GUEST_MEMORY: u64 = 63 << 30;
const MOST_VCPUS: u32 = 8;
const MOST_GUESTS: usize = 64;
const MOST_MEMORY: u64 = 64 << 30;
const MOST_CPUS: u32 = 64;

/// What runs: the machine and its guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// RAM in bytes.
    pub memory_bytes: u64,
    /// CPUs.
    pub cpus: u32,
    /// How tag storage is reserved.
    pub policy: Policy,
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
    /// How tag storage is reserved.
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

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMachine {
    memory: Option<Spanned<Size>>,
    cpus: Option<Spanned<u32>>,
    policy: Option<Policy>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVm {
    name: Spanned<String>,
    kernel: Spanned<PathBuf>,
    initrd: Option<Spanned<PathBuf>>,
    cmdline: Option<Spanned<String>>,
    memory: Spanned<Size>,
    vcpus: Option<Spanned<u32>>,
    #[serde(default = "yes")]
    mte: bool,
}

const fn yes() -> bool {
    true
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
        Ok(Self::read(&source, overrides)?.0)
    }

    /// Checks the text of a configuration file.
    ///
    /// # Errors
    /// As of [`Config::load`].
    pub fn parse(text: &str, file: &Path, overrides: Overrides) -> Result<Self, ConfigError> {
        let source = Source { file, text };
        let (config, last) = Self::read(&source, overrides)?;
        config.fits().map_err(|text| source.error(last, text))?;
        Ok(config)
    }

    /// Reads all but what concerns the guests together, and where the last guest's memory is said.
    fn read(
        source: &Source<'_>,
        overrides: Overrides,
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
        for vm in &raw.vm {
            let guest = guest(source, vm, &config)?;
            config.guests.push(guest);
        }
        Ok((config, raw.vm.last().map(|vm| vm.memory.span().start)))
    }

    /// Makes the configuration of the demo: one Debian guest.
    ///
    /// # Errors
    /// The options ask for a machine that cannot be or that is too small.
    pub fn demo(
        kernel: PathBuf,
        initrd: PathBuf,
        overrides: Overrides,
    ) -> Result<Self, ConfigError> {
        let source = Source {
            file: Path::new("the demo"),
            text: "",
        };
        let mut config = machine(&source, &RawMachine::default(), overrides)?;
        config.guests.push(Guest {
            name: "debian".to_owned(),
            kernel,
            initrd: Some(initrd),
            memory_bytes: 512 << 20,
            vcpus: 1,
            mte: true,
            cmdline: "console=ttyAMA0".to_owned(),
            seed: String::new(),
        });
        config.fits().map_err(|text| ConfigError {
            place: "--memory".to_owned(),
            text,
        })?;
        Ok(config)
    }

    /// Guests and bundle must fit into the machine's taggable memory, above what EL2 and its loader use.
    fn fits(&self) -> Result<(), String> {
        let taggable = self.memory_bytes / 32 * 31;
        let room = taggable
            .saturating_sub(BUNDLE - RAM_BASE)
            .saturating_sub(self.image_bytes());
        let wanted: u64 = self.guests.iter().map(|guest| guest.memory_bytes).sum();
        if wanted <= room {
            return Ok(());
        }
        Err(format!(
            "the guests have {} of memory together, a machine of {} has room for {}: \
             lower the guests' memory or raise the machine's",
            show_size(wanted),
            show_size(self.memory_bytes),
            show_size(room >> 20 << 20)
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

fn machine(
    source: &Source<'_>,
    raw: &RawMachine,
    overrides: Overrides,
) -> Result<Config, ConfigError> {
    let option = |name: &str, text: &str| ConfigError {
        place: name.to_owned(),
        text: text.to_owned(),
    };
    let sizes = "a machine has 128M to 64G of memory in steps of 32M: choose such a size";
    let memory_bytes = match (overrides.memory_bytes, &raw.memory) {
        (Some(bytes), _) => machine_memory(bytes).ok_or_else(|| option("--memory", sizes))?,
        (None, Some(size)) => machine_memory(size.get_ref().0)
            .ok_or_else(|| source.error(Some(size.span().start), sizes))?,
        (None, None) => DEFAULT_MEMORY,
    };
    let counts = "a machine has 1 to 64 CPUs: choose such a number";
    let valid = |cpus: u32| (1..=MOST_CPUS).contains(&cpus).then_some(cpus);
    let cpus = match (overrides.cpus, &raw.cpus) {
        (Some(cpus), _) => valid(cpus).ok_or_else(|| option("--cpus", counts))?,
        (None, Some(cpus)) => {
            valid(*cpus.get_ref()).ok_or_else(|| source.error(Some(cpus.span().start), counts))?
        }
        (None, None) => DEFAULT_CPUS,
    };
    let policy = overrides.policy.or(raw.policy).unwrap_or_default();
    Ok(Config {
        memory_bytes,
        cpus,
        policy,
        guests: Vec::new(),
    })
}

fn machine_memory(bytes: u64) -> Option<u64> {
    ((LEAST_MEMORY..=MOST_MEMORY).contains(&bytes) && bytes.is_multiple_of(MEMORY_STEP))
        .then_some(bytes)
}

fn guest(source: &Source<'_>, vm: &RawVm, config: &Config) -> Result<Guest, ConfigError> {
    check_name(vm.name.get_ref(), &config.guests)
        .map_err(|text| source.error(Some(vm.name.span().start), text))?;
    let kernel = source.resolve(vm.kernel.get_ref());
    let kernel_bytes =
        check_kernel(&kernel).map_err(|text| source.error(Some(vm.kernel.span().start), text))?;
    let mut initrd_bytes = 0;
    let initrd = vm
        .initrd
        .as_ref()
        .map(|initrd| (source.resolve(initrd.get_ref()), initrd.span().start));
    if let Some((file, at)) = &initrd {
        initrd_bytes =
            file_bytes(file).map_err(|text| source.error(Some(*at), format!("initrd {text}")))?;
    }
    let memory = vm.memory.get_ref().0;
    check_memory(memory, kernel_bytes + initrd_bytes)
        .map_err(|text| source.error(Some(vm.memory.span().start), text))?;
    let vcpus = vm.vcpus.as_ref().map_or(1, |vcpus| *vcpus.get_ref());
    if !(1..=MOST_VCPUS).contains(&vcpus) {
        let at = vm.vcpus.as_ref().map(|vcpus| vcpus.span().start);
        return Err(source.error(at, "a guest has 1 to 8 vCPUs: choose such a number"));
    }
    let cmdline = vm
        .cmdline
        .as_ref()
        .map(|cmdline| (cmdline.get_ref().trim().to_owned(), cmdline.span().start));
    if let Some((text, at)) = &cmdline {
        check_cmdline(text).map_err(|text| source.error(Some(*at), text))?;
    }
    Ok(Guest {
        name: vm.name.get_ref().clone(),
        kernel,
        initrd: initrd.map(|(file, _)| file),
        memory_bytes: memory,
        vcpus,
        mte: vm.mte,
        cmdline: cmdline.map(|(text, _)| text).unwrap_or_default(),
        seed: String::new(),
    })
}

fn check_name(name: &str, before: &[Guest]) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > 32 || !name.bytes().all(plain) || name == "tagvisor" {
        return Err(format!(
            "`{name}` cannot be a guest's name: use 1 to 32 letters, digits, - _ . and not `tagvisor`"
        ));
    }
    if before.iter().any(|guest| guest.name == name) {
        return Err(format!(
            "two guests are named `{name}`: give each its own name"
        ));
    }
    Ok(())
}

/// Checks that a file can be a guest's kernel; returns the memory that it takes in bytes.
///
/// # Errors
/// It cannot be read or is in a form that no loader here takes; says which form and how to convert it.
pub fn check_kernel(file: &Path) -> Result<u64, String> {
    let bytes = file_bytes(file).map_err(|text| format!("kernel {text}"))?;
    let mut header = Vec::new();
    let opened = File::open(file).and_then(|file| {
        file.take(IMAGE_HEADER_BYTES as u64)
            .read_to_end(&mut header)
    });
    opened.map_err(|error| format!("kernel {} cannot be read ({error})", file.display()))?;
    let shown = file.display();
    let wrong = |is: &str, remedy: &str| {
        Err(format!(
            "kernel {shown} is {is}, tagvisor takes an arm64 Image or a raw image: {remedy}"
        ))
    };
    match kernel_kind(&header) {
        Kernel::Image { memory_bytes } => Ok(bytes.max(memory_bytes)),
        Kernel::Raw if header.starts_with(&[0x1f, 0x8b]) => {
            wrong("compressed with gzip", "unpack it with gunzip")
        }
        Kernel::Raw if header.starts_with(b"\x28\xb5\x2f\xfd") => {
            wrong("compressed with zstd", "unpack it with unzstd")
        }
        Kernel::Raw if header.starts_with(b"\xfd7zXZ") => {
            wrong("compressed with xz", "unpack it with unxz")
        }
        Kernel::Raw if header.starts_with(b"\x7fELF") => {
            wrong("an ELF", "make it flat with objcopy -O binary")
        }
        Kernel::Raw if header.starts_with(b"MZ") => wrong(
            "an EFI program (compressed, or of another architecture)",
            "use the uncompressed Image of an arm64 build",
        ),
        Kernel::Raw => Ok(bytes),
    }
}

fn file_bytes(file: &Path) -> Result<u64, String> {
    let shown = file.display();
    let meta = fs::metadata(file)
        .map_err(|error| format!("{shown} cannot be read ({error}): check the path"))?;
    if !meta.is_file() {
        return Err(format!("{shown} is not a file: check the path"));
    }
    if meta.len() == 0 {
        return Err(format!("{shown} is empty: build it again"));
    }
    Ok(meta.len())
}

fn check_memory(memory: u64, loaded: u64) -> Result<(), String> {
    if memory == 0 || !memory.is_multiple_of(GUEST_STEP) {
        return Err(format!(
            "a guest's memory is a multiple of 2M, not {}: round it up",
            show_size(memory)
        ));
    }
    if memory > MOST_GUEST_MEMORY {
        return Err(format!(
            "a guest has at most 63G of memory, not {}: lower it",
            show_size(memory)
        ));
    }
    let needed = (loaded + GUEST_EXTRA).next_multiple_of(GUEST_STEP);
    if memory < needed {
        let (has, needs) = (show_size(memory), show_size(needed));
        return Err(format!(
            "the guest has {has}, its kernel and initrd alone need {needs}: give it more"
        ));
    }
    Ok(())
}

fn check_cmdline(text: &str) -> Result<(), String> {
    if text.len() > LONGEST_CMDLINE {
        return Err(format!(
            "the command line has {} bytes, Linux takes 2047: shorten it",
            text.len()
        ));
    }
    if text.chars().any(char::is_control) {
        return Err(
            "the command line has a line break or another control character: write it on one line"
                .to_owned(),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
