//! `scripts/run`: builds what is missing, boots the machine in QEMU, tells what came of it.

pub mod build;
pub mod filter;
pub mod options;
pub mod outcome;
pub mod scratch;
pub mod session;
mod signals;
pub mod terminal;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Error, Result};

use crate::board::{Boot, Loaded, MachineSpec};
use crate::bundle::Bundle;
use crate::config::{Config, ConfigError, Overrides};
use crate::paths::Cache;
use crate::process::is_program;
use crate::setup::{self, Part};
use crate::size::show_size;
use options::RunOptions;
use outcome::{Evidence, Outcome, judge};
use scratch::Scratch;
use session::{End, Ended, Rules};

/// The key of a deterministic run's report; other runs take a random one.
const FIXED_KEY: &str = "5eed5eed5eed5eed";
/// The oracle writes here that it has moved the tags.
const ORACLE_PROOF: &str = "CARVEOUT_PROOF";

/// What QEMU says now and then under `-icount`, when all CPUs wait and the end is near.
const HARMLESS: &str = "icount sleep disabled and no active timers";

/// A mistake of the person who runs us, exit code 2.
#[derive(Debug)]
pub struct Usage(
    /// What is wrong and what to do.
    pub String,
);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Runs a machine as the options say; returns how it ended.
///
/// # Errors
/// The command line or the configuration is wrong ([`Usage`], [`ConfigError`]), or something cannot be set up or built.
pub fn run(options: &RunOptions) -> Result<Outcome> {
    let cache = Cache::of_user()?;
    let given = options
        .config
        .as_ref()
        .map(|file| Config::load(file, options.overrides()))
        .transpose()?;
    let report = options.report.as_deref().map(Output::claim).transpose()?;
    let count = options.count.as_deref().map(Output::claim).transpose()?;
    check_qemu(options)?;
    setup::ensure(&cache, &needed_parts(options))?;
    let config = match given {
        Some(config) => config,
        None => demo(options.batch, options.overrides(), &cache)?,
    };
    let files = Files::build(options, &cache)?;
    let scratch = Scratch::new()?;
    let rules = Rules {
        interactive: !options.batch,
        limit: options.timeout.map(Duration::from_secs),
        report_key: report_key(options.deterministic())?,
    };
    let mut qemu = prepare(
        options,
        &config,
        &files,
        &Place {
            cache: &cache,
            scratch: &scratch,
            key: &rules.report_key,
        },
    )?;
    announce(options, &config);
    let ended = session::run(&mut qemu, &rules, &mut std::io::stdout().lock())?;
    if let (Some(output), Some(json)) = (&report, ended.filter.report()) {
        output.write(json)?;
    }
    drop(count);
    let proof = options.stock_tags || scratch.path().join("proof").exists();
    Ok(tell(&ended, options, proof))
}

/// Where a run keeps things.
struct Place<'a> {
    cache: &'a Cache,
    scratch: &'a Scratch,
    key: &'a str,
}

/// What is built for a run.
struct Files {
    qemu: PathBuf,
    image: PathBuf,
    oracle: Option<PathBuf>,
    counter: Option<PathBuf>,
}

impl Files {
    fn build(options: &RunOptions, cache: &Cache) -> Result<Self> {
        let profile =
            build::profile(options.debug_checks).map_err(|error| Usage(error.to_string()))?;
        Ok(Self {
            qemu: options.qemu.clone().unwrap_or_else(|| cache.qemu_program()),
            image: options
                .el2
                .as_deref()
                .map_or_else(|| build::tagvisor(&profile), build::flat)?,
            oracle: if options.stock_tags {
                None
            } else {
                Some(build::library("carveout")?)
            },
            counter: if options.count.is_some() {
                Some(build::library("count")?)
            } else {
                None
            },
        })
    }
}

/// A file that the run will write; it does not outlive a run that wrote nothing.
struct Output<'a> {
    file: &'a Path,
}

impl<'a> Output<'a> {
    /// Empties the file now, so that a place that cannot be written is an error before the run.
    fn claim(file: &'a Path) -> Result<Self> {
        File::create(file).map_err(|error| {
            Usage(format!(
                "cannot write {} ({error}): choose another file",
                file.display()
            ))
        })?;
        Ok(Self { file })
    }

    fn write(&self, text: &str) -> Result<()> {
        fs::write(self.file, format!("{text}\n"))
            .with_context(|| format!("cannot write {}", self.file.display()))
    }
}

impl Drop for Output<'_> {
    fn drop(&mut self) {
        if self
            .file
            .metadata()
            .is_ok_and(|meta| meta.is_file() && meta.len() == 0)
        {
            let _ = fs::remove_file(self.file);
        }
    }
}

fn needed_parts(options: &RunOptions) -> Vec<Part> {
    let mut parts = vec![Part::Target];
    if options.qemu.is_none() {
        parts.push(Part::Qemu);
    }
    if options.config.is_none() {
        parts.extend([Part::Guests, Part::Cross]);
    }
    parts
}

fn check_qemu(options: &RunOptions) -> Result<()> {
    match &options.qemu {
        Some(qemu) if !is_program(qemu) => Err(Usage(format!(
            "--qemu {}: there is no such program: check the path",
            qemu.display()
        ))
        .into()),
        _ => Ok(()),
    }
}

/// Builds the demo's file system and returns its configuration; set-up has brought the rest.
///
/// # Errors
/// The build fails, or the options ask for a machine that cannot be.
pub fn demo(batch: bool, overrides: Overrides, cache: &Cache) -> Result<Config> {
    let initrd = build::guest_image("demo", cache.root())?;
    let kernel = cache.guests().join("Image");
    let mut config = Config::demo(&kernel, &initrd, overrides)?;
    if batch {
        // The demo's init then powers off instead of giving a shell.
        config
            .guests
            .iter_mut()
            .for_each(|guest| guest.cmdline += " tagvisor.batch");
    }
    Ok(config)
}

/// Writes the bundle, the DTB and the stub, and puts QEMU's command line together.
fn prepare(
    options: &RunOptions,
    config: &Config,
    files: &Files,
    place: &Place<'_>,
) -> Result<Command> {
    let dir = place.scratch.path();
    let bundle = dir.join("bundle.cpio");
    bundle_of(options, config, place.key)?.write(&bundle)?;
    let spec = MachineSpec {
        memory_bytes: config.memory_bytes,
        cpus: config.cpus,
        cpu: options.cpu.clone(),
        block_bytes: config.block_bytes,
        regions: config.regions,
        stock_tags: options.stock_tags,
        ..MachineSpec::default()
    };
    let dtb_cache = place.cache.root().join("dtb");
    let boot = Boot {
        qemu: &files.qemu,
        image: &files.image,
        bundle: Some(&bundle),
        dtb_cache: &dtb_cache,
    };
    let loaded = Loaded::prepare(&spec, &boot, dir)?;
    let mut qemu = Command::new(&files.qemu);
    qemu.args(spec.machine_arguments())
        .args(loaded.arguments(&spec))
        .args(CONSOLE);
    if options.deterministic() {
        qemu.args(DETERMINISTIC);
    }
    if let (Some(counter), Some(to)) = (&files.counter, &options.count) {
        qemu.arg("-plugin")
            .arg(plugin(counter, to)?)
            .env("TAGVISOR_PLUGIN_API", plugin_api(&files.qemu)?);
    }
    if let Some(oracle) = &files.oracle {
        preload(&mut qemu, &files.qemu, oracle, place);
    }
    qemu.args(&options.qemu_arguments);
    Ok(qemu)
}

/// The guests' console on QEMU's standard input and output.
pub const CONSOLE: [&str; 6] = [
    "-chardev",
    "stdio,id=console,signal=off",
    "-serial",
    "chardev:console",
    "-monitor",
    "none",
];

/// Time in instructions, and nothing random.
pub const DETERMINISTIC: [&str; 6] = [
    "-icount",
    "shift=0,sleep=off",
    "-seed",
    "1",
    "-rtc",
    "base=2026-01-01,clock=vm",
];

fn bundle_of(options: &RunOptions, config: &Config, key: &str) -> Result<Bundle> {
    let mut guests = config.guests.clone();
    for (index, guest) in guests.iter_mut().enumerate() {
        guest.seed = if options.deterministic() {
            format!("{index:0128x}")
        } else {
            random_hex(64)?
        };
    }
    for guest in guests.iter_mut().filter(|_| options.deterministic()) {
        let space = if guest.cmdline.is_empty() { "" } else { " " };
        guest.cmdline = format!("{}{space}nokaslr", guest.cmdline);
    }
    Ok(Bundle {
        policy: config.policy,
        eviction_rate: config.eviction_rate,
        compact_below: config.compact_below,
        batch: options.batch,
        colour: !options.batch && has_colours(),
        report_key: Some(key.to_owned()),
        log: log_level()?,
        guests,
    })
}

/// Whether standard output is a terminal that understands colours.
fn has_colours() -> bool {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let plain = set("NO_COLOR").is_some() || set("TERM").is_some_and(|term| term == "dumb");
    !plain && std::io::stdout().is_terminal()
}

/// Returns the level of EL2's messages that `TAGVISOR_LOG` asks for, if it does.
///
/// # Errors
/// There is no such level.
pub fn log_level() -> Result<Option<String>, Usage> {
    let asked = std::env::var("TAGVISOR_LOG").unwrap_or_default();
    match asked.as_str() {
        "" => Ok(None),
        "error" | "warn" | "info" | "debug" | "trace" => Ok(Some(asked)),
        other => Err(Usage(format!(
            "TAGVISOR_LOG is {other}: set it to error, warn, info, debug or trace"
        ))),
    }
}

fn plugin(counter: &Path, to: &Path) -> Result<OsString> {
    let to = std::path::absolute(to)?;
    let escaped = |path: &Path| path.to_string_lossy().replace(',', ",,");
    Ok(format!("{},out={}", escaped(counter), escaped(&to)).into())
}

/// The plugin API to speak: QEMU 11.1 takes only 7, those before know 4.
fn plugin_api(qemu: &Path) -> Result<&'static str> {
    let newer = setup::QemuVersion::of(qemu)? >= setup::MINIMUM_QEMU;
    Ok(if newer { "7" } else { "4" })
}

/// Loads the oracle into QEMU: through set-up's wrapper, or plainly into another QEMU.
fn preload(command: &mut Command, qemu: &Path, oracle: &Path, place: &Place<'_>) {
    let ours = qemu.starts_with(place.cache.qemu());
    command.env(
        if ours {
            "TAGVISOR_PRELOAD"
        } else {
            "LD_PRELOAD"
        },
        oracle,
    );
    command.env(ORACLE_PROOF, place.scratch.path().join("proof"));
}

/// Makes the key that marks the report: no guest can guess it.
fn report_key(deterministic: bool) -> Result<String> {
    if deterministic {
        return Ok(FIXED_KEY.to_owned());
    }
    random_hex(8)
}

/// Returns so many random bytes in hexadecimal.
fn random_hex(length: usize) -> Result<String> {
    let mut bytes = vec![0; length];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .context("no random numbers")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn announce(options: &RunOptions, config: &Config) {
    let guest = |guest: &crate::bundle::Guest| {
        format!("{} ({})", guest.name, show_size(guest.memory_bytes))
    };
    let guests: Vec<String> = config.guests.iter().map(guest).collect();
    let memory = show_size(config.memory_bytes);
    eprintln!(
        "==> machine: {memory}, {} CPUs ({}); guests: {}",
        config.cpus,
        options.cpu,
        guests.join(", ")
    );
    if !options.batch {
        eprintln!("==> Ctrl-] q leaves, Ctrl-] m is the monitor, Ctrl-] h shows all keys");
    }
}

/// Tells how the run ended if that is not plain from the console.
fn tell(ended: &Ended, options: &RunOptions, proof: bool) -> Outcome {
    for line in ended.errors.lines().filter(|line| !line.contains(HARMLESS)) {
        eprintln!("QEMU: {line}");
    }
    let (outcome, why) = match ended.end {
        End::TimedOut => {
            let limit = options.timeout.unwrap_or_default();
            (
                Outcome::TimedOut,
                Some(format!(
                    "the guests were not done after {limit} s (--timeout)"
                )),
            )
        }
        End::Signalled(signal) => (
            Outcome::Signalled(signal),
            Some("ended by a signal".to_owned()),
        ),
        End::Exited(status) if !status.success() => {
            (Outcome::NotStarted, Some(format!("QEMU failed ({status})")))
        }
        End::Exited(_) | End::Left if !proof => {
            let why = "the oracle was not loaded into QEMU, tags were not in DRAM: use set-up's QEMU or --stock-tags";
            (Outcome::NotStarted, Some(why.to_owned()))
        }
        End::Exited(_) | End::Left => judge(Evidence {
            report: ended.filter.report(),
            saw_fatal_line: ended.filter.saw_fatal_line(),
            interactive: !options.batch,
        }),
    };
    if let Some(why) = why {
        eprintln!("tagvisor: {why}");
    }
    outcome
}

/// Returns the exit code for an error before QEMU ran.
#[must_use]
pub fn error_code(error: &Error) -> u8 {
    if error.is::<Usage>() || error.is::<ConfigError>() {
        2
    } else {
        Outcome::NotStarted.code()
    }
}
