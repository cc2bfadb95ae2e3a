//! What tests run: the bare-metal programs, the oracle, QEMU. Each is built once for each test program.

use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};
use tagvisor_tool::image::flatten_file;
use tagvisor_tool::paths::{BARE_TARGET, Cache, target_dir};
use tagvisor_tool::run::build::{cargo, library};

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

/// Returns set-up's QEMU.
///
/// # Errors
/// Set-up has not run.
pub fn qemu_program() -> Result<PathBuf> {
    let program = Cache::of_user()?.qemu_program();
    ensure!(
        program.is_file(),
        "{} is missing: run scripts/setup",
        program.display()
    );
    Ok(program)
}
