//! What tests run: the bare-metal programs, Linux, tagvisor itself, the oracle, QEMU. Each is built once for each test program.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};
use tagvisor_tool::image::flatten_file;
use tagvisor_tool::paths::{BARE_TARGET, Cache, repository, target_dir};
use tagvisor_tool::run::build::{cargo, guest_image, library, profile, tagvisor};

/// Does `make` once, and gives everybody its result or its error's text.
pub fn once(
    cell: &OnceLock<Result<PathBuf, String>>,
    make: impl FnOnce() -> Result<PathBuf>,
) -> Result<PathBuf> {
    cell.get_or_init(|| make().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(|text| anyhow!(text))
}

/// Builds the bare-metal programs and returns the ELF of `name`.
///
/// # Errors
/// The build fails, or there is no such program.
pub fn elf(name: &str) -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let folder = once(&BUILT, || {
        cargo(&[
            "build",
            "--package",
            "bare-guests",
            "--bins",
            "--target",
            BARE_TARGET,
            "--profile",
            "el2",
        ])?;
        Ok(target_dir().join(BARE_TARGET).join("el2"))
    })?;
    let file = folder.join(name);
    ensure!(file.is_file(), "cargo built no {}", file.display());
    Ok(file)
}

/// Returns the flat image of the bare-metal program `name`: what a hypervisor enters at its first byte.
///
/// # Errors
/// As of [`elf`].
pub fn flat(name: &str) -> Result<PathBuf> {
    let elf = elf(name)?;
    let flat = elf.with_extension("flat");
    // Tests run side by side: each writes a file of its own, and the last one stays.
    let fresh = elf.with_extension(format!(
        "flat.{}.{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    flatten_file(&elf, &fresh)?;
    std::fs::rename(&fresh, &flat).with_context(|| format!("cannot make {}", flat.display()))?;
    Ok(flat)
}

/// Builds the carve-out oracle and returns its library.
///
/// # Errors
/// The build fails.
pub fn carveout() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    once(&BUILT, || library("carveout"))
}

/// Builds tagvisor and returns its flat Image.
///
/// # Errors
/// The build fails.
pub(crate) fn tagvisor_image() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    once(&BUILT, || tagvisor(&profile(false)?))
}

/// Builds tagvisor and returns its ELF.
///
/// # Errors
/// The build fails.
pub fn tagvisor_elf() -> Result<PathBuf> {
    Ok(tagvisor_image()?.with_extension(""))
}

/// Returns set-up's Linux kernel.
///
/// # Errors
/// Set-up has not run.
pub fn linux() -> Result<PathBuf> {
    is_there(Cache::of_user()?.guests().join("Image"))
}

/// Returns another of set-up's Linux kernels: `stable-16k`, `newest-4k` or `newest-16k`.
///
/// # Errors
/// Set-up has not brought it.
pub fn other_linux(name: &str) -> Result<PathBuf> {
    let file = Cache::of_user()?.kernels().join(name);
    ensure!(
        file.is_file(),
        "{} is missing: run scripts/setup kernels",
        file.display()
    );
    Ok(file)
}

/// Builds the initramfs `name`, `demo`, `stress` or `kselftest-mte`, and returns it.
///
/// # Errors
/// The build fails.
pub fn initramfs(name: &str) -> Result<PathBuf> {
    if name == "kselftest-mte" {
        kselftest()
    } else {
        guest_image(name, Cache::of_user()?.root())
    }
}

fn kselftest() -> Result<PathBuf> {
    let out = target_dir().join("guest-images");
    let status = Command::new(repository().join("guest-images/kselftest"))
        .env("TAGVISOR_CACHE", Cache::of_user()?.root())
        .env("TAGVISOR_OUT", &out)
        .env("CARGO_TARGET_DIR", target_dir())
        .stdin(Stdio::null())
        .status()
        .context("cannot start guest-images/kselftest")?;
    ensure!(status.success(), "guest-images/kselftest failed");
    Ok(out.join("kselftest-mte.cpio.gz"))
}

/// Returns set-up's QEMU.
///
/// # Errors
/// Set-up has not run.
pub fn qemu_program() -> Result<PathBuf> {
    is_there(Cache::of_user()?.qemu_program())
}

fn is_there(file: PathBuf) -> Result<PathBuf> {
    ensure!(
        file.is_file(),
        "{} is missing: run scripts/setup",
        file.display()
    );
    Ok(file)
}
