//! QEMU 11.1 or later: the system's where it will do, else Debian's newest in a private prefix.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::apt::{Want, extract};
use super::{BACKPORTS, Work, put_in_place, read_stamp, require_amd64, write_program, write_stamp};
use crate::paths::Cache;
use crate::process::{find_program, is_program, output};
use crate::progress::Step;

const FORMAT: &str = "format 1";

/// The first QEMU whose `-cpu max` has FEAT_MTE_PERM.
pub const MINIMUM_QEMU: QemuVersion = QemuVersion {
    major: 11,
    minor: 1,
};

/// A release of QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QemuVersion {
    /// Before the first dot.
    pub major: u32,
    /// After the first dot.
    pub minor: u32,
}

impl QemuVersion {
    /// Asks a QEMU program for its release.
    ///
    /// # Errors
    /// It cannot be started or says something else.
    pub fn of(program: &Path) -> Result<Self> {
        let text = output(Command::new(program).arg("--version"))?;
        Self::parse(&text)
            .with_context(|| format!("{} does not tell a QEMU version", program.display()))
    }

    /// Reads the release out of what `--version` prints.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text
            .split("version ")
            .nth(1)?
            .split(|c: char| !c.is_ascii_digit());
        Some(Self {
            major: numbers.next()?.parse().ok()?,
            minor: numbers.next()?.parse().ok()?,
        })
    }
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Whether the cache's QEMU is there and the system's has not changed since it was chosen.
pub fn is_present(cache: &Cache) -> bool {
    let stamp = read_stamp(&cache.qemu()).unwrap_or_default();
    let mut lines = stamp.lines();
    lines.next() == Some(FORMAT)
        && lines.next() == Some(&system_line())
        && is_program(&cache.qemu_program())
}

pub fn install(cache: &Cache, work: &Work) -> Result<()> {
    let made = work.folder("qemu")?;
    if let Some(system) = find_program("qemu-system-aarch64") {
        let version = QemuVersion::of(&system)?;
        if version >= MINIMUM_QEMU {
            write_program(
                &made.join("bin/qemu-system-aarch64"),
                &system_wrapper(&system)?,
            )?;
            stamp(&made, &format!("the system's QEMU {version}"))?;
            eprintln!("==> QEMU: using {} ({version})", system.display());
            return put_in_place(&made, &cache.qemu(), work);
        }
        eprintln!(
            "==> QEMU: {} is {version}, {MINIMUM_QEMU} is needed: bringing a private one",
            system.display()
        );
    }
    if cache.qemu().join("root").is_dir() {
        return stamp(&cache.qemu(), "private");
    }
    install_private(cache, work, &made)
}

fn install_private(cache: &Cache, work: &Work, made: &Path) -> Result<()> {
    require_amd64(
        "QEMU",
        "install QEMU 11.1 or later so that qemu-system-aarch64 is in PATH",
    )?;
    let files = work
        .guest_archive()?
        .fetch("QEMU", Want::Closure(BACKPORTS, &["qemu-system-arm"]))?;
    extract("QEMU", &files, &made.join("root"))?;
    let program = made.join("bin/qemu-system-aarch64");
    write_program(&program, WRAPPER)?;
    let step = Step::begin("QEMU: try it");
    let version = QemuVersion::of(&program)?;
    if version < MINIMUM_QEMU {
        bail!(
            "Debian's {BACKPORTS} has QEMU {version}, {MINIMUM_QEMU} is needed: install one, qemu-system-aarch64 in PATH"
        );
    }
    output(Command::new(&program).args(["-machine", "help"]))?;
    stamp(made, &format!("private {version}"))?;
    put_in_place(made, &cache.qemu(), work)?;
    step.done(&format!("QEMU {version} in {}", cache.qemu().display()));
    Ok(())
}

fn stamp(dir: &Path, what: &str) -> Result<()> {
    write_stamp(dir, &format!("{FORMAT}\n{}\n{what}", system_line()))
}

/// Names the system's QEMU, so that a new one is noticed without starting it.
fn system_line() -> String {
    let Some(program) = find_program("qemu-system-aarch64") else {
        return "system none".to_owned();
    };
    let identity = program
        .metadata()
        .map(|meta| format!("{} {} {}", meta.len(), meta.mtime(), meta.ino()))
        .unwrap_or_default();
    format!("system {} {identity}", program.display())
}

fn system_wrapper(program: &Path) -> Result<String> {
    let program = program
        .to_str()
        .filter(|path| !path.contains('\''))
        .context("the path of QEMU is not plain text")?;
    Ok(format!(
        "#!/bin/sh\n# Starts the system's QEMU; TAGVISOR_PRELOAD names a library to load into it.\n\
         [ -z \"${{TAGVISOR_PRELOAD:-}}\" ] || export LD_PRELOAD=\"$TAGVISOR_PRELOAD\"\nexec '{program}' \"$@\"\n"
    ))
}

/// Starts the private QEMU through the dynamic loader that came with it, with its own libraries and modules only.
const WRAPPER: &str = r#"#!/bin/sh
# Starts QEMU from this folder, with its own C library; TAGVISOR_PRELOAD names a library to load into it.
self=$(readlink -f "$0")
root=${self%/bin/*}/root
libraries=$root/usr/lib/x86_64-linux-gnu
unset LD_PRELOAD LD_LIBRARY_PATH
export QEMU_MODULE_DIR="$libraries/qemu"
exec "$root/usr/lib64/ld-linux-x86-64.so.2" --library-path "$libraries" --argv0 "$0" \
    ${TAGVISOR_PRELOAD:+--preload "$TAGVISOR_PRELOAD"} \
    "$root/usr/bin/qemu-system-aarch64" -L "$root/usr/share/qemu" "$@"
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_qemu_compare_by_number() {
        let of = |text| QemuVersion::parse(text).unwrap();
        assert_eq!(
            of("QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1)"),
            QemuVersion {
                major: 11,
                minor: 1
            }
        );
        assert!(of("QEMU emulator version 10.0.2") < MINIMUM_QEMU);
        assert!(of("QEMU emulator version 11.10.0") > MINIMUM_QEMU);
        assert_eq!(QemuVersion::parse("something else"), None);
    }
}
