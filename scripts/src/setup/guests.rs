//! What guests are made of: Debian's arm64 kernel and a static busybox.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::apt::{Want, extract_parts};
use super::{Work, put_in_place, read_stamp, write_stamp};
use crate::paths::Cache;
use crate::progress::Step;

const FORMAT: &str = "format 1";
/// The long-term kernel that Debian 13 has.
const KERNEL: &str = "linux-image-6.12.";
/// `ARM\x64` at byte 56 marks an arm64 kernel image.
const IMAGE_MAGIC: &[u8] = b"ARM\x64";

/// Whether the kernel and busybox are there.
pub fn is_present(cache: &Cache) -> bool {
    let dir = cache.guests();
    let stamped = read_stamp(&dir).is_some_and(|stamp| stamp.lines().next() == Some(FORMAT));
    stamped && dir.join("Image").is_file() && dir.join("busybox").is_file()
}

pub fn install(cache: &Cache, work: &Work) -> Result<()> {
    let archive = work.guest_archive()?;
    let depends = archive.depends("linux-image-arm64:arm64")?;
    let Some(kernel) = depends.iter().find(|name| name.starts_with(KERNEL)) else {
        bail!(
            "Debian's linux-image-arm64 is not a 6.12 kernel but {}: this tagvisor is too old for it",
            depends.join(", ")
        );
    };
    let files = archive.fetch(
        "guests' kernel and busybox",
        Want::Only(&[kernel, "busybox-static:arm64"]),
    )?;
    let step = Step::begin("guests: extract the kernel and busybox");
    let parts = work.folder("guest-parts")?;
    let (image, busybox) = (named(&files, KERNEL)?, named(&files, "busybox-static")?);
    extract_parts(image, &parts, &["./boot/vmlinuz-*"])?;
    extract_parts(busybox, &parts, &["./*bin/busybox"])?;
    let made = work.folder("guests")?;
    fs::rename(only_file(&parts.join("boot"))?, made.join("Image"))?;
    fs::rename(busybox_in(&parts)?, made.join("busybox"))?;
    check_image(&made.join("Image"))?;
    write_stamp(
        &made,
        &format!("{FORMAT}\n{}\n{}", package_of(image), package_of(busybox)),
    )?;
    put_in_place(&made, &cache.guests(), work)?;
    step.done(&format!(
        "{} in {}",
        package_of(image),
        cache.guests().display()
    ));
    Ok(())
}

/// The file of the package whose name begins with `name`.
pub(super) fn named<'a>(files: &'a [PathBuf], name: &str) -> Result<&'a PathBuf> {
    let is_named = |file: &&PathBuf| {
        file.file_name()
            .is_some_and(|full| full.to_string_lossy().starts_with(name))
    };
    files
        .iter()
        .find(is_named)
        .with_context(|| format!("apt fetched no {name}"))
}

fn only_file(dir: &Path) -> Result<PathBuf> {
    let entry = fs::read_dir(dir)?.flatten().next();
    Ok(entry
        .with_context(|| format!("the package holds nothing in {}", dir.display()))?
        .path())
}

fn busybox_in(parts: &Path) -> Result<PathBuf> {
    let places = ["usr/bin/busybox", "bin/busybox"].map(|place| parts.join(place));
    places
        .into_iter()
        .find(|file| file.is_file())
        .context("the package busybox-static holds no busybox")
}

/// Checks that a file is a kernel as tagvisor takes them.
pub(super) fn check_image(image: &Path) -> Result<()> {
    let bytes = fs::read(image)?;
    if bytes.get(56..60) != Some(IMAGE_MAGIC) {
        bail!(
            "Debian's vmlinuz is not a raw arm64 Image any more: this tagvisor is too old for it"
        );
    }
    Ok(())
}

/// The package in a file, with its version.
pub(super) fn package_of(file: &Path) -> String {
    file.file_stem()
        .map(|name| name.to_string_lossy().replace("%3a", ":"))
        .unwrap_or_default()
}
