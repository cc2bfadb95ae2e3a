//! The C compiler for the guests' programs: Debian's cross compiler of the host's own release, in a private prefix.
//!
//! It is of the host's release so that it runs with the host's C library; the rest of what it needs comes along.
//! Where that cannot be, the system's cross compiler serves, installed by apt if need be.

use std::fs;
use std::io::IsTerminal;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Error, Result, bail, ensure};

use super::apt::{NotReached, Want, extract};
use super::{Work, put_in_place, read_stamp, require_amd64, write_program, write_stamp};
use crate::paths::Cache;
use crate::process::{find_program, is_program, output};
use crate::progress::Step;

const FORMAT: &str = "format 1";
const PACKAGES: [&str; 3] = [
    "gcc-aarch64-linux-gnu",
    "libc6-dev-arm64-cross",
    "linux-libc-dev-arm64-cross",
];

/// How the names of the compiler and its tools begin.
const PREFIX: &str = "aarch64-linux-gnu-";
const COMPILER: &str = "aarch64-linux-gnu-gcc";

/// Whether the compiler is there.
pub fn is_present(cache: &Cache) -> bool {
    let stamped =
        read_stamp(&cache.cross()).is_some_and(|stamp| stamp.lines().next() == Some(FORMAT));
    stamped && is_program(&cache.cross_compiler())
}

pub fn install(cache: &Cache, work: &Work) -> Result<()> {
    let Err(reason) = install_private(cache, work) else {
        return Ok(());
    };
    if find_program(COMPILER).is_none() {
        install_on_host(reason)?;
    } else {
        eprintln!("    no private copy: {reason:#}");
    }
    let compiler = find_program(COMPILER)
        .with_context(|| format!("{COMPILER} is still not in PATH: {}", remedy()))?;
    use_system(&compiler, cache, work)
}

fn install_private(cache: &Cache, work: &Work) -> Result<()> {
    require_amd64("the cross compiler", "use the system's")?;
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
    finish(&made, "", cache, work)
}

/// Tries a compiler out and puts it in place.
fn finish(made: &Path, whose: &str, cache: &Cache, work: &Work) -> Result<()> {
    let step = Step::begin(format!("cross compiler: try {whose}it"));
    let version = try_out(made, work)?;
    write_stamp(made, &format!("{FORMAT}\n{whose}{version}"))?;
    put_in_place(made, &cache.cross(), work)?;
    step.done(&format!("{version} in {}", cache.cross().display()));
    Ok(())
}

fn remedy() -> String {
    let packages = PACKAGES.join(" ");
    format!("run `sudo apt-get install {packages}`, then this again")
}

/// Installs the compiler with the system's apt: as root, or with sudo where a person can say yes.
fn install_on_host(reason: Error) -> Result<()> {
    if reason.is::<NotReached>() {
        return Err(reason);
    }
    let mut apt = if rustix::process::geteuid().is_root() {
        let mut apt = Command::new("apt-get");
        apt.args(["install", "-y"]);
        apt
    } else if find_program("sudo").is_some() && std::io::stdin().is_terminal() {
        let mut sudo = Command::new("sudo");
        sudo.args(["apt-get", "install"]);
        sudo
    } else {
        return Err(reason.context(format!(
            "there is no cross compiler and no private copy can be had: {}",
            remedy()
        )));
    };
    apt.arg("--no-install-recommends").args(PACKAGES);
    eprintln!(
        "==> cross compiler: no private copy ({reason:#}), so apt-get installs {} in the system",
        PACKAGES.join(" ")
    );
    let status = apt
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("apt-get cannot be started: {}", remedy()))?;
    ensure!(status.success(), "apt-get failed: {}", remedy());
    Ok(())
}

/// Links to the system's cross compiler and its tools.
fn use_system(compiler: &Path, cache: &Cache, work: &Work) -> Result<()> {
    let made = work.folder("cross-system")?;
    link_tools(
        compiler.parent().context("a program without a folder")?,
        &made.join("bin"),
    )?;
    finish(&made, "the system's ", cache, work).with_context(remedy)
}

fn link_tools(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            symlink(
                std::path::absolute(entry.path())?,
                to.join(entry.file_name()),
            )?;
        }
    }
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
            "Debian 12 and 13 have the one that is brought, this is {}",
            other.unwrap_or("another system")
        ),
    }
}

/// Writes a small program for each tool, which finds its libraries and its system root beside itself.
fn write_tools(made: &Path) -> Result<()> {
    for entry in fs::read_dir(made.join("root/usr/bin"))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with(PREFIX) {
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
    let compiler = made.join("bin").join(COMPILER);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::scratch::Scratch;

    #[test]
    fn the_systems_tools_are_linked_and_nothing_else() {
        let dir = Scratch::new().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        for name in [COMPILER, "aarch64-linux-gnu-ld", "gcc"] {
            write_program(&from.join(name), "#!/bin/sh\necho ok\n").unwrap();
        }
        link_tools(&from, &to).unwrap();
        assert_eq!(
            output(&mut Command::new(to.join(COMPILER))).unwrap(),
            "ok\n"
        );
        assert_eq!(fs::read_dir(&to).unwrap().count(), 2);
        fs::remove_file(from.join(COMPILER)).unwrap();
        assert!(
            !is_program(&to.join(COMPILER)),
            "a removed compiler is noticed"
        );
    }

    #[test]
    fn without_a_network_nothing_is_installed() {
        let reason = Error::msg("404").context(NotReached("no network".to_owned()));
        let told = install_on_host(reason).unwrap_err();
        assert_eq!(format!("{told:#}"), "no network: 404");
    }
}
