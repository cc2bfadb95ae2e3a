//! `scripts/bundle`: the files that a boot loader, or QEMU without `scripts/run`, starts.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use super::{Bundle, Guest, Policy};
use crate::config::{Config, DEFAULT_CPUS, DEFAULT_MEMORY, Overrides};
use crate::paths::Cache;
use crate::process::find_program;
use crate::progress::megabytes;
use crate::run::{Usage, build, demo, log_level};
use crate::setup::{self, Part};
use crate::size::show_size;

/// The longest key that EL2 takes, in hexadecimal digits.
const LONGEST_KEY: usize = 64;

/// What to write.
#[derive(Args, Clone, Debug, Default)]
pub struct BundleOptions {
    /// What to run; without it the demo, four Debian guests
    #[arg(long, value_name = "FILE.toml", requires = "output")]
    pub config: Option<PathBuf>,
    /// Write the bundle to this file
    #[arg(long, value_name = "FILE", required_unless_present = "image")]
    pub output: Option<PathBuf>,
    /// Write tagvisor's Image to this file
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// How tag storage is reserved, for the machine and every guest [default: auto]
    #[arg(long, requires = "output")]
    pub policy: Option<Policy>,
    /// No terminal: prefix each guest's lines with its name, end when all guests are off
    #[arg(long, requires = "output")]
    pub batch: bool,
    /// Also print the report as JSON, one line, behind the byte 0x1e and this key of up to 64 hexadecimal digits
    #[arg(long, value_name = "HEX", value_parser = parse_key, requires = "output")]
    pub report_key: Option<String>,
}

/// Writes what the options ask for and tells how to start it.
///
/// # Errors
/// The command line or the configuration is wrong, or something cannot be set up, built or written.
pub fn bundle(options: &BundleOptions) -> Result<()> {
    let cache = Cache::of_user()?;
    if options.output.is_some() && options.output == options.image {
        return Err(Usage("--output and --image name the same file: choose two".to_owned()).into());
    }
    let (mut memory_bytes, mut cpus) = (DEFAULT_MEMORY, DEFAULT_CPUS);
    if let Some(output) = &options.output {
        let config = configuration(options, &cache)?;
        (memory_bytes, cpus) = (config.memory_bytes, config.cpus);
        let bytes = write_bundle(options, &config, output)?;
        let guests: Vec<String> = config.guests.iter().map(shown).collect();
        let (file, guests) = (output.display(), guests.join(", "));
        println!("{file}: the bundle, {}; guests: {guests}", megabytes(bytes));
    }
    if let Some(to) = &options.image {
        let bytes = write_image(to, &cache)?;
        println!("{}: tagvisor's Image, {bytes} bytes", to.display());
    }
    println!("{}", how_to_start(options, memory_bytes, cpus, &cache));
    Ok(())
}

fn configuration(options: &BundleOptions, cache: &Cache) -> Result<Config> {
    let overrides = Overrides {
        policy: options.policy,
        ..Overrides::default()
    };
    if let Some(file) = &options.config {
        return Ok(Config::load_for_any_machine(file, overrides)?);
    }
    setup::ensure(cache, &[Part::Guests, Part::Cross])?;
    demo(options.batch, overrides, cache)
}

fn write_bundle(options: &BundleOptions, config: &Config, output: &Path) -> Result<u64> {
    let bundle = Bundle {
        policy: config.policy,
        eviction_rate: config.eviction_rate,
        compact_below: config.compact_below,
        batch: options.batch,
        // Nobody knows what will show the console.
        colour: false,
        report_key: options.report_key.clone(),
        log: log_level()?,
        // Without seeds: a bundle starts many times, and what is random has to differ each time.
        guests: config.guests.clone(),
    };
    for file in bundle.conf().1 {
        let same = |output: &Path| Some(output.canonicalize().ok()? == file.canonicalize().ok()?);
        if same(output) == Some(true) {
            let text = format!(
                "--output {} is one of the guests' own files: choose another",
                output.display()
            );
            return Err(Usage(text).into());
        }
    }
    whole(output, |fresh| bundle.write(fresh))
}

fn write_image(to: &Path, cache: &Cache) -> Result<u64> {
    setup::ensure(cache, &[Part::Target])?;
    let profile = build::profile(false).map_err(|error| Usage(error.to_string()))?;
    let image = build::tagvisor(&profile)?;
    whole(to, |fresh| Ok(fs::copy(image, fresh)?))
}

/// Writes a file beside its place and moves it there, so that no half of it is ever seen.
fn whole(to: &Path, write: impl FnOnce(&Path) -> Result<u64>) -> Result<u64> {
    let name = to.file_name().map(|name| name.to_string_lossy());
    let name = name.ok_or_else(|| Usage(format!("{} is no file's name", to.display())))?;
    let fresh = to.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = write(&fresh).and_then(|bytes| {
        fs::rename(&fresh, to)?;
        Ok(bytes)
    });
    if written.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    written.with_context(|| format!("cannot write {}", to.display()))
}

fn shown(guest: &Guest) -> String {
    format!("{} ({})", guest.name, show_size(guest.memory_bytes))
}

/// Tells how to start what was written, and stand-ins for what was not.
fn how_to_start(options: &BundleOptions, memory_bytes: u64, cpus: u32, cache: &Cache) -> String {
    let file = |file: &Option<PathBuf>, other: &str| {
        file.as_ref()
            .map_or_else(|| other.to_owned(), |file| file.display().to_string())
    };
    let image = file(&options.image, "IMAGE (written by --image)");
    let bundle = file(&options.output, "BUNDLE (written by --output)");
    let private = cache.qemu_program();
    let qemu = if find_program("qemu-system-aarch64").is_none() && private.is_file() {
        private.display().to_string()
    } else {
        "qemu-system-aarch64".to_owned()
    };
    format!(
        "boot loader: start the Image at EL2 as a Linux kernel with the bundle as its initrd, in U-Boot:\n  \
           booti IMAGE_ADDRESS BUNDLE_ADDRESS:BUNDLE_BYTES DTB_ADDRESS\n\
         QEMU, whose own device tree has no tag storage to reclaim (scripts/run adds it):\n  \
           {qemu} -M virt,virtualization=on,mte=on,gic-version=3 -cpu max -smp {cpus} -m {} -nographic -nic none \
           -kernel {image} -initrd {bundle}",
        show_size(memory_bytes)
    )
}

/// Reads a report key.
fn parse_key(text: &str) -> Result<String, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if digits && (1..=LONGEST_KEY).contains(&text.len()) {
        return Ok(text.to_owned());
    }
    Err(format!("a key has 1 to {LONGEST_KEY} hexadecimal digits"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::scratch::Scratch;

    const CONFIG: &str =
        "[machine]\nmemory = \"4G\"\n[[vm]]\nname = \"a\"\nkernel = \"k\"\nmemory = \"32G\"\n";

    /// A folder with a configuration `c.toml` and its raw kernel `k`.
    fn folder() -> Scratch {
        let dir = Scratch::new().unwrap();
        fs::write(dir.path().join("c.toml"), CONFIG).unwrap();
        fs::write(dir.path().join("k"), b"12345").unwrap();
        dir
    }

    fn options(dir: &Scratch, output: &str) -> BundleOptions {
        BundleOptions {
            config: Some(dir.path().join("c.toml")),
            output: Some(dir.path().join(output)),
            policy: Some(Policy::Eager),
            batch: true,
            report_key: Some("00ff".to_owned()),
            ..BundleOptions::default()
        }
    }

    fn names(dir: &Scratch) -> Vec<String> {
        let entries = fs::read_dir(dir.path()).unwrap().flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_bundle_says_what_the_options_say_and_has_no_seed() {
        let dir = folder();
        bundle(&options(&dir, "b.cpio")).unwrap();
        let text = fs::read(dir.path().join("b.cpio")).unwrap();
        let text = String::from_utf8_lossy(&text);
        let conf = "tagvisor 1\npolicy eager\nbatch on\nreport-key 00ff\n";
        let vm = "vm a\nkernel image-0\nmemory 34359738368\nvcpus 1\nmte on\n";
        assert!(text.contains(&format!("{conf}{vm}")), "{text}");
        assert!(!text.contains("\nseed "));
    }

    #[test]
    fn a_bundle_does_not_overwrite_what_it_is_made_of() {
        let dir = folder();
        let error = bundle(&options(&dir, "k")).unwrap_err();
        assert!(error.is::<Usage>(), "{error:#}");
        assert_eq!(fs::read(dir.path().join("k")).unwrap(), b"12345");
        let mut both = options(&dir, "b");
        both.image = both.output.clone();
        assert!(bundle(&both).unwrap_err().is::<Usage>());
    }

    #[test]
    fn what_cannot_be_finished_leaves_nothing() {
        let dir = folder();
        let before = names(&dir);
        let failed = whole(&dir.path().join("b"), |fresh| {
            fs::write(fresh, b"half")?;
            anyhow::bail!("the disk is full")
        });
        assert!(format!("{:#}", failed.unwrap_err()).ends_with("b: the disk is full"));
        assert_eq!(names(&dir), before);
    }

    #[test]
    fn the_way_to_start_names_the_files_and_the_machine() {
        let options = BundleOptions {
            output: Some("b.cpio".into()),
            ..BundleOptions::default()
        };
        let text = how_to_start(&options, 4 << 30, 2, &Cache::at("/none".into()));
        let ending =
            "-smp 2 -m 4G -nographic -nic none -kernel IMAGE (written by --image) -initrd b.cpio";
        assert!(text.ends_with(ending), "{text}");
    }

    #[test]
    fn a_report_key_is_what_el2_takes() {
        assert_eq!(parse_key("00ffAB"), Ok("00ffAB".to_owned()));
        for wrong in ["", "xyz", "0 0", &"0".repeat(65)] {
            assert!(parse_key(wrong).is_err(), "{wrong}");
        }
    }
}
