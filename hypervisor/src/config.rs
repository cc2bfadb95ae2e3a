//! The configuration: the bundle's first file, one `key value` per line, written by the host tool from the user's TOML.
//!
//! The format is versioned by its first line. What a line may say is checked here again: a boot loader may pass anything.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use stage2::addr::PAGE_SIZE;
use stage2::host::Policy;

/// When a page of a guest gets its tag storage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PolicyChoice {
    /// Lazy if all CPUs have FEAT_MTE_PERM, else eager.
    #[default]
    Auto,
    /// The whole carve-out stays reserved: the baseline.
    Static,
    /// At the guest's first access to the page.
    Eager,
    /// At the guest's first tag access to the page.
    Lazy,
}

impl PolicyChoice {
    /// Returns the policy of a VM that chooses this, on a machine of policy `machine`; none where lazy cannot be, for want of
    /// FEAT_MTE_PERM. Static on another machine is for its memory to refuse.
    #[must_use]
    pub const fn of_vm(self, machine: Policy, mte_perm: bool) -> Option<Policy> {
        match (self, machine) {
            (_, Policy::Static) | (Self::Static, _) => Some(Policy::Static),
            (Self::Auto, machine) => Some(machine),
            (Self::Eager, _) => Some(Policy::Eager),
            (Self::Lazy, _) if mte_perm => Some(Policy::Lazy),
            (Self::Lazy, _) => None,
        }
    }
}

/// One VM as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmConfig {
    /// Name, unique.
    pub name: String,
    /// Name of the kernel's file in the bundle.
    pub kernel: String,
    /// Name of the initrd's file in the bundle.
    pub initrd: Option<String>,
    /// Kernel command line.
    pub cmdline: String,
    /// RAM, bytes, a multiple of 2 MiB.
    pub memory: u64,
    /// Number of vCPUs.
    pub vcpus: usize,
    /// Whether the guest sees MTE.
    pub mte: bool,
    /// The most tag storage that may be reserved for it, bytes, as configured: see [`Self::tag_budget_bytes`].
    pub tag_budget: Option<u64>,
    /// The CPUs on which its vCPUs may run (bit `n`: CPU `n`, the boot CPU is 0).
    pub cpus: u64,
    /// Policy for this VM; `auto` is the machine's.
    pub policy: PolicyChoice,
    /// Random bytes for its first start; empty: it gets none.
    pub seed: Vec<u8>,
    /// Whether it is started with the machine; else it is a template only.
    pub autostart: bool,
}

/// The whole configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Policy of the machine, and of each VM that does not choose another.
    pub policy: PolicyChoice,
    /// Pages a second that the tag faults of one VM may evict from tag storage; 0: any number.
    pub eviction_rate: u32,
    /// A tag block is emptied in idle time if no more percent of the pages that it covers have tags; 0: none.
    pub compact_below: u8,
    /// No terminal: guest lines are whole, a reset ends its VM.
    pub batch: bool,
    /// The terminal understands colours.
    pub colour: bool,
    /// Announces the JSON report on the console; none: no JSON report.
    pub report_key: Option<String>,
    /// Highest level that is logged.
    pub log: log::LevelFilter,
    /// The VMs, in start order.
    pub vms: Vec<VmConfig>,
}

/// Smallest and largest RAM of a VM, bytes; both ends of what the 36-bit guest address space takes above 1 GiB.
const MEMORY_LIMITS: core::ops::RangeInclusive<u64> = (2 << 20)..=(63 << 30);
/// RAM comes in whole 2 MiB.
const MEMORY_STEP: u64 = 2 << 20;
/// Bytes of memory whose tags take one byte.
const TAG_RATIO: u64 = 32;
/// [`Config::eviction_rate`] where none is configured.
pub const EVICTION_RATE: u32 = 4096;
/// [`Config::compact_below`] where none is configured.
pub const COMPACT_BELOW: u8 = 25;
/// Largest number of vCPUs of a VM.
pub const MAX_VCPUS: usize = 8;
/// Largest number of VMs.
pub const MAX_VMS: usize = 64;

/// What is wrong with a configuration, and in which line (from 1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The line, from 1; 0 if it is the file as a whole.
    pub line: usize,
    /// What is wrong and what would be right.
    pub problem: Problem,
}

/// The kinds of mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Not UTF-8.
    NotText,
    /// The first line is not `tagvisor 1`.
    Version,
    /// A key that this version does not know, or not here.
    UnknownKey(String),
    /// A value that the key does not take; what it takes.
    BadValue(String, &'static str),
    /// A key of a VM before any `vm` line.
    OutsideVm(String),
    /// Two VMs of one name.
    DuplicateName(String),
    /// A VM without a mandatory key.
    Missing(String, &'static str),
    /// No VM at all.
    NoVm,
    /// Too many VMs.
    TooManyVms,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "tagvisor.conf line {}: ", self.line)?;
        } else {
            write!(f, "tagvisor.conf: ")?;
        }
        write!(f, "{}", self.problem)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotText => write!(f, "not UTF-8 text"),
            Self::Version => write!(
                f,
                "the first line must be `tagvisor 1`: make the bundle with this version's tool"
            ),
            Self::UnknownKey(key) => write!(f, "unknown key `{key}`"),
            Self::BadValue(value, expected) => write!(f, "`{value}` is not {expected}"),
            Self::OutsideVm(key) => write!(f, "`{key}` belongs after a `vm` line"),
            Self::DuplicateName(name) => write!(f, "two VMs are named `{name}`"),
            Self::Missing(name, key) => write!(f, "VM `{name}` has no `{key}`"),
            Self::NoVm => write!(f, "no VM is configured"),
            Self::TooManyVms => write!(f, "more than {MAX_VMS} VMs"),
        }
    }
}

impl Config {
    /// Parses the configuration file of a bundle.
    ///
    /// # Errors
    ///
    /// The first mistake, with its line.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        let whole = |problem| ConfigError { line: 0, problem };
        let text = core::str::from_utf8(bytes).map_err(|_| whole(Problem::NotText))?;
        let mut lines = text
            .lines()
            .enumerate()
            .map(|(index, line)| (index + 1, line));
        if lines.next().map(|(_, line)| line.trim_end()) != Some("tagvisor 1") {
            return Err(ConfigError {
                line: 1,
                problem: Problem::Version,
            });
        }
        let mut config = Self {
            policy: PolicyChoice::Auto,
            eviction_rate: EVICTION_RATE,
            compact_below: COMPACT_BELOW,
            batch: false,
            colour: false,
            report_key: None,
            log: log::LevelFilter::Info,
            vms: Vec::new(),
        };
        for (line, content) in lines {
            let content = content.trim();
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            let (key, value) = content.split_once(' ').unwrap_or((content, ""));
            config
                .apply(key, value.trim())
                .map_err(|problem| ConfigError { line, problem })?;
        }
        config.check().map_err(whole)?;
        Ok(config)
    }

    /// Returns how a VM of a template is to be, under the template's name.
    #[must_use]
    pub fn instance_of(&self, template: usize) -> Option<VmConfig> {
        self.vms.get(template).cloned()
    }

    /// Notes that a VM of a template has started: its seed has served, no other VM gets it.
    pub fn spend_seed(&mut self, template: usize) {
        if let Some(template) = self.vms.get_mut(template) {
            template.seed = Vec::new();
        }
    }

    fn apply(&mut self, key: &str, value: &str) -> Result<(), Problem> {
        match key {
            "policy" => {
                let policy = choose(value, POLICIES, "auto, static, eager or lazy")?;
                match self.vms.last_mut() {
                    Some(vm) => vm.policy = policy,
                    None => self.policy = policy,
                }
            }
            "eviction-rate" => self.eviction_rate = number(value, "a number of pages a second")?,
            "compact-below" => {
                const EXPECTED: &str = "a percentage, 0 to 100";
                let percent = Some(number(value, EXPECTED)?).filter(|percent| *percent <= 100);
                self.compact_below = percent.ok_or_else(|| bad(value, EXPECTED))?;
            }
            "batch" => self.batch = switch(value)?,
            "colour" => self.colour = switch(value)?,
            "report-key" => self.report_key = Some(report_key(value)?),
            "log" => self.log = log_level(value)?,
            "vm" => self.begin_vm(value)?,
            _ => {
                let vm = self.vms.last_mut().ok_or_else(|| {
                    if VM_KEYS.contains(&key) {
                        Problem::OutsideVm(key.to_string())
                    } else {
                        Problem::UnknownKey(key.to_string())
                    }
                })?;
                vm.apply(key, value)?;
            }
        }
        Ok(())
    }

    fn begin_vm(&mut self, name: &str) -> Result<(), Problem> {
        check_name(name)?;
        if self.vms.iter().any(|vm| vm.name == name) {
            return Err(Problem::DuplicateName(name.to_string()));
        }
        if self.vms.len() == MAX_VMS {
            return Err(Problem::TooManyVms);
        }
        self.vms.push(VmConfig {
            name: name.to_string(),
            kernel: String::new(),
            initrd: None,
            cmdline: String::new(),
            memory: 0,
            vcpus: 1,
            mte: true,
            tag_budget: None,
            cpus: u64::MAX,
            policy: PolicyChoice::Auto,
            seed: Vec::new(),
            autostart: true,
        });
        Ok(())
    }

    fn check(&self) -> Result<(), Problem> {
        if self.vms.is_empty() {
            return Err(Problem::NoVm);
        }
        for vm in &self.vms {
            if vm.kernel.is_empty() {
                return Err(Problem::Missing(vm.name.clone(), "kernel"));
            }
            if vm.memory == 0 {
                return Err(Problem::Missing(vm.name.clone(), "memory"));
            }
        }
        Ok(())
    }
}

/// Reads a level of logging.
///
/// # Errors
///
/// There is no such level.
pub fn log_level(value: &str) -> Result<log::LevelFilter, Problem> {
    choose(value, LEVELS, "error, warn, info, debug or trace")
}

/// Checks that a VM can be called so.
///
/// # Errors
///
/// It cannot; says how names are.
pub fn check_name(name: &str) -> Result<(), Problem> {
    let valid = !name.is_empty()
        && name.len() <= 32
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    if !valid || name == "tagvisor" {
        return Err(bad(
            name,
            "a VM's name: 1 to 32 of a-z A-Z 0-9 - _ . and not `tagvisor`",
        ));
    }
    Ok(())
}

const VM_KEYS: [&str; 10] = [
    "kernel",
    "initrd",
    "cmdline",
    "memory",
    "vcpus",
    "mte",
    "tag-budget",
    "cpu-mask",
    "seed",
    "autostart",
];
const POLICIES: &[(&str, PolicyChoice)] = &[
    ("auto", PolicyChoice::Auto),
    ("static", PolicyChoice::Static),
    ("eager", PolicyChoice::Eager),
    ("lazy", PolicyChoice::Lazy),
];
const LEVELS: &[(&str, log::LevelFilter)] = &[
    ("error", log::LevelFilter::Error),
    ("warn", log::LevelFilter::Warn),
    ("info", log::LevelFilter::Info),
    ("debug", log::LevelFilter::Debug),
    ("trace", log::LevelFilter::Trace),
];

impl VmConfig {
    /// The most tag storage that may be reserved for the VM, bytes, whole 4 KiB: as configured, no more than all its RAM
    /// needs, which is also the default. 0 without MTE.
    #[must_use]
    pub fn tag_budget_bytes(&self) -> u64 {
        let most = if self.mte { self.memory / TAG_RATIO } else { 0 };
        let wanted = self.tag_budget.unwrap_or(most);
        wanted.min(most).next_multiple_of(PAGE_SIZE)
    }

    fn apply(&mut self, key: &str, value: &str) -> Result<(), Problem> {
        match key {
            "kernel" => self.kernel = value.to_string(),
            "initrd" => self.initrd = Some(value.to_string()),
            "cmdline" => self.cmdline = value.to_string(),
            "memory" => {
                self.memory = value
                    .parse()
                    .ok()
                    .filter(|bytes: &u64| {
                        MEMORY_LIMITS.contains(bytes) && bytes.is_multiple_of(MEMORY_STEP)
                    })
                    .ok_or_else(|| {
                        bad(
                            value,
                            "a number of bytes: a multiple of 2 MiB, 2 MiB to 63 GiB",
                        )
                    })?;
            }
            "vcpus" => {
                self.vcpus = value
                    .parse()
                    .ok()
                    .filter(|count| (1..=MAX_VCPUS).contains(count))
                    .ok_or_else(|| bad(value, "a number of vCPUs: 1 to 8"))?;
            }
            "mte" => self.mte = switch(value)?,
            "autostart" => self.autostart = switch(value)?,
            "tag-budget" => self.tag_budget = Some(number(value, "a number of bytes")?),
            "cpu-mask" => self.cpus = number(value, "a mask of CPUs")?,
            "seed" => self.seed = seed(value)?,
            _ => return Err(Problem::UnknownKey(key.to_string())),
        }
        Ok(())
    }
}

fn bad(value: &str, expected: &'static str) -> Problem {
    Problem::BadValue(value.to_string(), expected)
}

fn choose<T: Copy>(value: &str, among: &[(&str, T)], expected: &'static str) -> Result<T, Problem> {
    among
        .iter()
        .find(|(name, _)| *name == value)
        .map(|(_, chosen)| *chosen)
        .ok_or_else(|| bad(value, expected))
}

fn number<T: core::str::FromStr>(value: &str, expected: &'static str) -> Result<T, Problem> {
    value.parse().map_err(|_| bad(value, expected))
}

fn switch(value: &str) -> Result<bool, Problem> {
    choose(value, &[("on", true), ("off", false)], "on or off")
}

fn seed(value: &str) -> Result<Vec<u8>, Problem> {
    let error = || {
        bad(
            "the seed",
            "an even number of hexadecimal digits, at most 128",
        )
    };
    if value.len() > 128 || !value.is_ascii() {
        return Err(error());
    }
    let digits = value.as_bytes().chunks(2);
    digits
        .map(|pair| {
            let pair = core::str::from_utf8(pair)
                .ok()
                .filter(|pair| pair.len() == 2)?;
            u8::from_str_radix(pair, 16).ok()
        })
        .collect::<Option<_>>()
        .ok_or_else(error)
}

fn report_key(value: &str) -> Result<String, Problem> {
    if (1..=64).contains(&value.len()) && value.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(value.to_string())
    } else {
        Err(bad(value, "a report key: 1 to 64 hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "tagvisor 1\npolicy lazy\neviction-rate 0\ncompact-below 40\nbatch on\nreport-key 00ff\n# a comment\n\nvm a\nkernel image-0\n\
        initrd image-1\nmemory 536870912\nvcpus 2\nmte off\ncmdline console=ttyAMA0  two  spaces\n\
        vm b\nkernel image-0\ntag-budget 8192\ncpu-mask 5\npolicy eager\nmemory 2097152\n";

    #[test]
    fn all_keys_are_understood() {
        let config = Config::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(
            (config.policy, config.batch, config.report_key.as_deref()),
            (PolicyChoice::Lazy, true, Some("00ff"))
        );
        assert_eq!((config.eviction_rate, config.compact_below), (0, 40));
        let [a, b] = &config.vms[..] else {
            panic!("two VMs")
        };
        assert_eq!(
            (a.memory, a.vcpus, a.mte, a.initrd.as_deref()),
            (512 << 20, 2, false, Some("image-1"))
        );
        assert_eq!(a.cmdline, "console=ttyAMA0  two  spaces");
        assert_eq!((b.vcpus, b.mte, b.initrd.as_deref()), (1, true, None));
        assert_eq!((a.cpus, b.cpus), (u64::MAX, 0b101));
        assert_eq!((a.policy, a.tag_budget_bytes()), (PolicyChoice::Auto, 0));
        assert_eq!(
            (b.policy, b.tag_budget_bytes()),
            (PolicyChoice::Eager, 8192)
        );
    }

    #[test]
    fn a_tag_budget_is_whole_pages_and_at_most_what_all_ram_needs() {
        let budget = |lines: &str| {
            let text = alloc::format!("tagvisor 1\nvm a\nkernel k\nmemory 4194304\n{lines}");
            Config::parse(text.as_bytes()).unwrap().vms[0].tag_budget_bytes()
        };
        assert_eq!(budget(""), 128 << 10, "the default is memory / 32");
        assert_eq!(budget("memory 2097152\n"), 64 << 10);
        assert_eq!(budget("mte off\n"), 0, "without MTE there are no tags");
        assert_eq!(budget("tag-budget 0\n"), 0);
        assert_eq!(budget("tag-budget 1\n"), 4096);
        assert_eq!(budget("tag-budget 131073\n"), 128 << 10);
        assert_eq!(budget("tag-budget 18446744073709551615\n"), 128 << 10);
        assert_eq!(budget("tag-budget 4096\nmte off\n"), 0);
    }

    #[test]
    fn a_vm_has_the_machines_policy_unless_it_chooses_one_that_can_be() {
        use PolicyChoice::{Auto, Eager, Lazy, Static};
        for mte_perm in [true, false] {
            for machine in [Policy::Static, Policy::Eager, Policy::Lazy] {
                assert_eq!(Auto.of_vm(machine, mte_perm), Some(machine));
                assert_eq!(Static.of_vm(machine, mte_perm), Some(Policy::Static));
            }
            assert_eq!(Eager.of_vm(Policy::Lazy, mte_perm), Some(Policy::Eager));
            // No tag region: a machine that has nothing to reserve has nothing to choose.
            assert_eq!(Lazy.of_vm(Policy::Static, mte_perm), Some(Policy::Static));
        }
        assert_eq!(Lazy.of_vm(Policy::Eager, true), Some(Policy::Lazy));
        assert_eq!(
            Lazy.of_vm(Policy::Eager, false),
            None,
            "tags would be lost silently"
        );
    }

    #[test]
    fn a_template_keeps_its_seed_until_a_vm_has_started_with_it() {
        let text = "tagvisor 1\nvm a\nkernel k\nmemory 4194304\nseed 0102\n\
            vm b\nkernel k\nmemory 4194304\nautostart off\nseed 03\n";
        let mut config = Config::parse(text.as_bytes()).unwrap();
        let seed = |config: &Config, template| config.instance_of(template).unwrap().seed;
        // A VM that is refused has used nothing, nor has one that is only looked at.
        for _ in 0..2 {
            assert_eq!(seed(&config, 0), [1, 2]);
            assert_eq!(seed(&config, 1), [3]);
        }
        config.spend_seed(0);
        assert!(seed(&config, 0).is_empty());
        assert_eq!(seed(&config, 1), [3], "the other's");
        config.spend_seed(2);
        assert_eq!(config.instance_of(2), None);
    }

    #[test]
    fn evictions_have_a_limit_unless_it_is_lifted() {
        let text = "tagvisor 1\nvm a\nkernel k\nmemory 4194304\n";
        let config = Config::parse(text.as_bytes()).unwrap();
        assert_eq!(config.eviction_rate, EVICTION_RATE);
        assert_eq!(config.compact_below, COMPACT_BELOW);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let table = [
            ("", "line 1: the first line must be"),
            ("tagvisor 2\n", "line 1: the first line must be"),
            ("tagvisor 1\n", "no VM is configured"),
            (
                "tagvisor 1\npolicy fast\n",
                "line 2: `fast` is not auto, static, eager or lazy",
            ),
            ("tagvisor 1\nbatch yes\n", "line 2: `yes` is not on or off"),
            (
                "tagvisor 1\nreport-key x y\n",
                "line 2: `x y` is not a report key",
            ),
            (
                "tagvisor 1\neviction-rate fast\n",
                "line 2: `fast` is not a number of pages a second",
            ),
            (
                "tagvisor 1\neviction-rate 4294967296\n",
                "is not a number of pages a second",
            ),
            (
                "tagvisor 1\ncompact-below 101\n",
                "line 2: `101` is not a percentage, 0 to 100",
            ),
            (
                "tagvisor 1\nvm a\ntag-budget 8M\n",
                "line 3: `8M` is not a number of bytes",
            ),
            (
                "tagvisor 1\nvm a\ntag-budget -1\n",
                "line 3: `-1` is not a number of bytes",
            ),
            (
                "tagvisor 1\nvm a\npolicy fast\n",
                "line 3: `fast` is not auto, static, eager or lazy",
            ),
            (
                "tagvisor 1\ntag-budget 4\n",
                "line 2: `tag-budget` belongs after a `vm` line",
            ),
            ("tagvisor 1\nlog loud\n", "line 2: `loud` is not error"),
            (
                "tagvisor 1\nmemory 4\n",
                "line 2: `memory` belongs after a `vm` line",
            ),
            ("tagvisor 1\nsound red\n", "line 2: unknown key `sound`"),
            (
                "tagvisor 1\nvm a\nsound red\n",
                "line 3: unknown key `sound`",
            ),
            ("tagvisor 1\nvm a b\n", "line 2: `a b` is not a VM's name"),
            (
                "tagvisor 1\nvm tagvisor\n",
                "line 2: `tagvisor` is not a VM's name",
            ),
            ("tagvisor 1\nvm a\nvm a\n", "line 3: two VMs are named `a`"),
            (
                "tagvisor 1\nvm a\nmemory 4096\n",
                "line 3: `4096` is not a number of bytes",
            ),
            (
                "tagvisor 1\nvm a\nmemory 99999999999999999999\n",
                "is not a number of bytes",
            ),
            (
                "tagvisor 1\nvm a\nvcpus 0\n",
                "line 3: `0` is not a number of vCPUs",
            ),
            (
                "tagvisor 1\nvm a\nseed 0g\n",
                "line 3: `the seed` is not an even number of hexadecimal",
            ),
            (
                "tagvisor 1\nvm a\nseed 000\n",
                "line 3: `the seed` is not an even number of hexadecimal",
            ),
            ("tagvisor 1\nvm a\nkernel k\n", "VM `a` has no `memory`"),
            (
                "tagvisor 1\nvm a\nmemory 2097152\n",
                "VM `a` has no `kernel`",
            ),
        ];
        for (text, expected) in table {
            let message = Config::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(
                message.contains(expected),
                "{text:?} gave {message:?}, not {expected:?}"
            );
        }
        assert!(Config::parse(&[0xff, 0xfe]).is_err());
    }
}
