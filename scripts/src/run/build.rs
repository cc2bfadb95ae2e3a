//! Builds what a run needs: tagvisor itself, the oracle, the counting plugin.

use std::io::{BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::image::flatten_file;
use crate::paths::{BARE_TARGET, repository, target_dir};

/// The profile of EL2 with assertions, and with its invariants checked at every trap.
pub const CHECKING_PROFILE: &str = "el2-debug";
const PROFILE: &str = "el2";

/// What cargo says when it needs a network that is not there.
const NO_NETWORK: [&str; 4] = [
    "failed to download",
    "failed to get",
    "Could not resolve",
    "network failure",
];

/// Returns the profile of EL2 that is asked for: by option, by `TAGVISOR_PROFILE`, or the release build.
///
/// # Errors
/// `TAGVISOR_PROFILE` names another one.
pub fn profile(debug_checks: bool) -> Result<String> {
    let asked = std::env::var("TAGVISOR_PROFILE").unwrap_or_default();
    match asked.as_str() {
        _ if debug_checks => Ok(CHECKING_PROFILE.to_owned()),
        "" | PROFILE => Ok(PROFILE.to_owned()),
        CHECKING_PROFILE => Ok(asked),
        other => bail!("TAGVISOR_PROFILE is {other}: set it to {PROFILE} or {CHECKING_PROFILE}"),
    }
}

/// Builds tagvisor and returns its flat Image, beside the ELF.
///
/// # Errors
/// The build fails, or the ELF is not usable.
pub fn tagvisor(profile: &str) -> Result<PathBuf> {
    let package = ["--package", "hypervisor", "--bin", "tagvisor"];
    cargo(
        &[
            &["build", "--profile", profile, "--target", BARE_TARGET][..],
            &package[..],
        ]
        .concat(),
    )?;
    flat(
        &target_dir()
            .join(BARE_TARGET)
            .join(profile)
            .join("tagvisor"),
    )
}

/// Makes the flat image of an ELF beside it, if there is none as new, and returns it.
///
/// # Errors
/// The ELF is not usable.
pub fn flat(elf: &Path) -> Result<PathBuf> {
    let image = elf.with_extension("image");
    let newer = |file: &Path| file.metadata().and_then(|meta| meta.modified()).ok();
    if newer(&image) < newer(elf) || newer(&image).is_none() {
        let fresh = elf.with_extension(format!("image.{}", std::process::id()));
        flatten_file(elf, &fresh)?;
        std::fs::rename(&fresh, &image)?;
    }
    Ok(image)
}

/// Builds a library that QEMU loads (`carveout` or `count`) and returns it.
///
/// # Errors
/// The build fails.
pub fn library(package: &str) -> Result<PathBuf> {
    cargo(&["build", "--release", "--package", package])?;
    let file = target_dir()
        .join("release")
        .join(format!("lib{package}.so"));
    ensure!(file.is_file(), "cargo built no {}", file.display());
    Ok(file)
}

/// Runs cargo in the repository, its messages shown if there is something to do; without a network, with what is there.
///
/// # Errors
/// cargo fails.
pub fn cargo(arguments: &[&str]) -> Result<()> {
    cargo_with(arguments, &[])
}

/// As [`cargo`], with more environment variables.
///
/// # Errors
/// cargo fails.
pub fn cargo_with(arguments: &[&str], variables: &[(&str, &str)]) -> Result<()> {
    match cargo_once(arguments, variables)? {
        Ended::Good => Ok(()),
        Ended::NoNetwork => match cargo_once(
            arguments,
            &[variables, &[("CARGO_NET_OFFLINE", "true")]].concat(),
        )? {
            Ended::Good => Ok(()),
            _ => bail!(
                "cargo needs packages that are not here, and the network is not there: connect once"
            ),
        },
        Ended::Failed => bail!(
            "cargo {} failed; its messages are above",
            arguments.join(" ")
        ),
    }
}

enum Ended {
    Good,
    Failed,
    NoNetwork,
}

fn cargo_once(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Ended> {
    let color = if std::io::stderr().is_terminal() {
        "always"
    } else {
        "auto"
    };
    let mut child = Command::new("cargo")
        .args(arguments)
        .env("CARGO_TERM_COLOR", color)
        .envs(variables.iter().copied())
        .current_dir(repository())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start cargo: install Rust with rustup (https://rustup.rs)")?;
    let pipe = child.stderr.take().context("no pipe from cargo")?;
    let (mut no_network, mut busy) = (false, false);
    for line in BufReader::new(pipe).lines() {
        let line = line?;
        no_network |= NO_NETWORK.iter().any(|sign| line.contains(sign));
        busy |= !line.contains("Finished");
        if busy {
            eprintln!("{line}");
        }
    }
    let status = child.wait()?;
    Ok(match (status.success(), no_network) {
        (true, _) => Ended::Good,
        (false, true) => Ended::NoNetwork,
        (false, false) => Ended::Failed,
    })
}

/// Builds the initramfs `name` and returns it.
///
/// # Errors
/// The script fails.
pub fn guest_image(name: &str, cache: &Path) -> Result<PathBuf> {
    let out = target_dir().join("guest-images");
    let script = repository().join("guest-images/build");
    let status = Command::new(&script)
        .arg(name)
        .env("TAGVISOR_CACHE", cache)
        .env("TAGVISOR_OUT", &out)
        .env("CARGO_TARGET_DIR", target_dir())
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("cannot start {}", script.display()))?;
    ensure!(
        status.success(),
        "the guest's file system cannot be built; the messages are above"
    );
    Ok(out.join(format!("{name}.cpio.gz")))
}
