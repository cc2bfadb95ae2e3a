//! The C compiler for the guests' programs: Debian's cross compiler of the host's own release, in a private prefix.
//!
//! It is of the host's release so that it runs with the host's C library; the rest of what it needs comes along.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::apt::{Want, extract};
use super::{Work, put_in_place, read_stamp, require_amd64, write_program, write_stamp};
use crate::paths::Cache;
use crate::process::output;
use crate::progress::Step;

const FORMAT: &str = "format 1";
const PACKAGES: [&str; 3] = [
    "gcc-aarch64-linux-gnu",
    "libc6-dev-arm64-cross",
    "linux-libc-dev-arm64-cross",
];

/// Whether the compiler is there.
pub fn is_present(cache: &Cache) -> bool {
    let stamped =
        read_stamp(&cache.cross()).is_some_and(|stamp| stamp.lines().next() == Some(FORMAT));
    stamped && crate::process::is_program(&cache.cross_compiler())
}

pub fn install(cache: &Cache, work: &Work) -> Result<()> {
    require_amd64("the cross compiler", "install gcc and libc6-dev for arm64")?;
    let release = host_release()?;
    let files = work
        .host_archive(&release)?
        .fetch("cross compiler", Want::Closure(&release, &PACKAGES))?;
    let files: Vec<PathBuf> = files
        .into_iter()
        .filter(|file| !is_hosts_own(file))
        .collect();
    let made = work.folder("cross")?;
    extract("cross compiler", &files, &made.join("root"))?;
    write_tools(&made)?;
    let step = Step::begin("cross compiler: try it");
    let version = try_out(&made, work)?;
    write_stamp(&made, &format!("{FORMAT}\n{version}"))?;
    put_in_place(&made, &cache.cross(), work)?;
    step.done(&format!("{version} in {}", cache.cross().display()));
    Ok(())
}

/// The C library of the host must not be mixed with another copy of it.
fn is_hosts_own(package: &Path) -> bool {
    let name = package
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    [
        "libc6_",
        "libgcc-s1_",
        "libc-bin_",
        "gcc-12-base_",
        "gcc-14-base_",
    ]
    .iter()
    .any(|own| name.starts_with(own))
}

fn host_release() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let codename = text
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    match codename.map(|name| name.trim_matches('"')) {
        Some(name @ ("bookworm" | "trixie")) => Ok(name.to_owned()),
        other => bail!(
            "the cross compiler comes from Debian 12 or 13, this is {}: use such a machine",
            other.unwrap_or("another system")
        ),
    }
}

/// Writes a small program for each tool, which finds its libraries and its system root beside itself.
fn write_tools(made: &Path) -> Result<()> {
    for entry in fs::read_dir(made.join("root/usr/bin"))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("aarch64-linux-gnu-") {
            continue;
        }
        let sysroot = if name.contains("-gcc") || name.contains("-cpp") {
            " --sysroot=\"$root\""
        } else {
            ""
        };
        let text = format!(
            "#!/bin/sh\nself=$(readlink -f \"$0\")\nroot=${{self%/bin/*}}/root\n\
             export LD_LIBRARY_PATH=\"$root/usr/lib/x86_64-linux-gnu\"\nexec \"$root/usr/bin/{name}\"{sysroot} \"$@\"\n"
        );
        write_program(&made.join("bin").join(&name), &text)?;
    }
    Ok(())
}

/// Builds a static program, which proves compiler, assembler, linker, headers and C library at once.
fn try_out(made: &Path, work: &Work) -> Result<String> {
    let dir = work.folder("cross-try")?;
    fs::write(
        dir.join("try.c"),
        "#include <stdio.h>\n#include <linux/prctl.h>\nint main(void) { return puts(\"ok\") < 0; }\n",
    )?;
    let compiler = made.join("bin/aarch64-linux-gnu-gcc");
    let build = [
        "-O2",
        "-static",
        "-march=armv8.5-a+memtag",
        "-o",
        "try",
        "try.c",
    ];
    output(Command::new(&compiler).args(build).current_dir(&dir))
        .context("the cross compiler does not work")?;
    let text = output(Command::new(&compiler).arg("--version"))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
