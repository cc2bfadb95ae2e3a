//! stress-ng for guests: Debian's program and the shared libraries that it is linked with.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::apt::{Want, extract_parts};
use super::guests::{named, package_of};
use super::{Work, put_in_place, read_stamp, write_stamp};
use crate::paths::Cache;
use crate::progress::Step;

const FORMAT: &str = "format 1";
const PROGRAM: &str = "stress-ng:arm64";
/// The packages with the libraries that it is linked with, and those that these are linked with.
const LIBRARIES: [&str; 24] = [
    "libacl1:arm64",
    "libapparmor1:arm64",
    "libbsd0:arm64",
    "libc6:arm64",
    "libcrypt1:arm64",
    "libdrm2:arm64",
    "libegl1:arm64",
    "libexpat1:arm64",
    "libgbm1:arm64",
    "libgcc-s1:arm64",
    "libgles2:arm64",
    "libglvnd0:arm64",
    "libgmp10:arm64",
    "libjpeg62-turbo:arm64",
    "libjudydebian1:arm64",
    "libkmod2:arm64",
    "libmd0:arm64",
    "libmpfr6:arm64",
    "libsctp1:arm64",
    "libssl3t64:arm64",
    "libstdc++6:arm64",
    "libxxhash0:arm64",
    "libzstd1:arm64",
    "zlib1g:arm64",
];

/// Whether the program and its libraries are there.
pub fn is_present(cache: &Cache) -> bool {
    let dir = cache.stress();
    let stamped = read_stamp(&dir).is_some_and(|stamp| stamp.lines().next() == Some(FORMAT));
    stamped && dir.join("stress-ng").is_file() && dir.join("lib").is_dir()
}

pub fn install(cache: &Cache, work: &Work) -> Result<()> {
    let archive = work.guest_archive()?;
    let wanted: Vec<&str> = [PROGRAM].into_iter().chain(LIBRARIES).collect();
    let files = archive.fetch("stress-ng", Want::Only(&wanted))?;
    let step = Step::begin("stress-ng: extract it and its libraries");
    let parts = work.folder("stress-parts")?;
    for file in &files {
        extract_parts(file, &parts, &["./usr/*"])
            .with_context(|| format!("cannot extract {}", file.display()))?;
    }
    let made = work.folder("stress")?;
    fs::rename(parts.join("usr/bin/stress-ng"), made.join("stress-ng"))
        .context("the package stress-ng holds no stress-ng")?;
    fs::rename(parts.join("usr/lib/aarch64-linux-gnu"), made.join("lib"))
        .context("the packages hold no libraries")?;
    remove_folders(&made.join("lib"))?;
    let package = package_of(named(&files, "stress-ng_")?);
    write_stamp(&made, &format!("{FORMAT}\n{package}"))?;
    put_in_place(&made, &cache.stress(), work)?;
    step.done(&format!("{package} in {}", cache.stress().display()));
    Ok(())
}

/// Removes the folders in `dir`: what programs load by name, such as tables of character sets.
fn remove_folders(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}
