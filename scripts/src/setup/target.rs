//! Rust's core and alloc for the bare-metal target, by rustup or built from Debian's copy of the library's sources.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Work;
use super::apt::{Want, extract_parts};
use crate::paths::{BARE_TARGET, repository};
use crate::process::{find_program, output, shown, watched};
use crate::progress::Step;

const RUSTUP_LIMIT: Duration = Duration::from_secs(20);
/// Says in the folder of our own build which compiler it is for; a rustup update would leave it stale.
const BUILT_FOR: &str = "tagvisor-built-for";
const REMEDY: &str =
    "run `rustup target add aarch64-unknown-none-softfloat` where Rust's server can be reached";

/// The toolchain that builds this repository.
struct Toolchain {
    release: String,
    commit: String,
    sysroot: PathBuf,
}

impl Toolchain {
    fn current() -> Result<Self> {
        let remedy = "rustc does not run: install Rust with rustup (https://rustup.rs), then `rustup toolchain install stable`";
        let text =
            output(Command::new("rustc").arg("-vV").current_dir(repository())).context(remedy)?;
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name))
                .map(|value| value.trim().to_owned())
        };
        Ok(Self {
            release: field("release:").context("rustc -vV tells no release")?,
            commit: field("commit-hash:").unwrap_or_default(),
            sysroot: sysroot()?,
        })
    }

    fn place(&self) -> PathBuf {
        self.sysroot
            .join("lib/rustlib")
            .join(BARE_TARGET)
            .join("lib")
    }

    fn identity(&self) -> String {
        format!("{} {}", self.release, self.commit)
    }
}

/// Returns the folder of the Rust toolchain.
pub fn sysroot() -> Result<PathBuf> {
    let text = output(
        Command::new("rustc")
            .args(["--print", "sysroot"])
            .current_dir(repository()),
    )?;
    Ok(PathBuf::from(text.trim()))
}

/// Whether plain `cargo build --target` works for the bare-metal target.
pub fn is_present() -> Result<bool> {
    let place =
        sysroot().context("rustc does not run: install Rust with rustup (https://rustup.rs)")?;
    let place = place.join("lib/rustlib").join(BARE_TARGET).join("lib");
    if !has_core(&place) {
        return Ok(false);
    }
    match fs::read_to_string(place.join(BUILT_FOR)) {
        Ok(built_for) => Ok(built_for == Toolchain::current()?.identity()),
        Err(_) => Ok(true),
    }
}

fn has_core(place: &Path) -> bool {
    let Ok(entries) = fs::read_dir(place) else {
        return false;
    };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libcore-") && name.ends_with(".rlib")
    })
}

pub fn install(work: &Work) -> Result<()> {
    let toolchain = Toolchain::current()?;
    let stale = toolchain.place().join(BUILT_FOR).exists();
    if !stale && find_program("rustup").is_some() && by_rustup() {
        return Ok(());
    }
    build(&toolchain, work)
}

fn by_rustup() -> bool {
    let step = Step::begin(format!(
        "Rust's library for {BARE_TARGET}: rustup target add"
    ));
    let mut rustup = Command::new("rustup");
    rustup
        .args(["target", "add", BARE_TARGET])
        .env("RUSTUP_MAX_RETRIES", "0")
        .current_dir(repository());
    let result = watched(&mut rustup, RUSTUP_LIMIT, || ());
    let added = result.is_ok();
    step.done(if added {
        "added"
    } else {
        "Rust's server cannot be reached: building from Debian's sources instead"
    });
    added
}

fn build(toolchain: &Toolchain, work: &Work) -> Result<()> {
    let library = sources(&toolchain.release, work)?;
    let step = Step::begin(format!(
        "Rust's library for {BARE_TARGET}: build core and alloc {}",
        toolchain.release
    ));
    let empty = work.folder("empty")?;
    fs::write(
        empty.join("Cargo.toml"),
        "[package]\nname = \"empty\"\nedition = \"2024\"\n[lib]\npath = \"lib.rs\"\n[workspace]\n",
    )?;
    fs::write(empty.join("lib.rs"), "#![no_std]\n")?;
    // With bitcode, or a build with link-time optimization fails; without this machine's paths.
    let sources = library.display();
    let flags = format!("-Cembed-bitcode=yes\u{1f}--remap-path-prefix={sources}=/rustc/library");
    let mut cargo = Command::new("cargo");
    cargo
        .args([
            "build",
            "--release",
            "--target",
            BARE_TARGET,
            "-Zbuild-std=core,alloc,compiler_builtins",
        ])
        .arg("-Zbuild-std-features=compiler-builtins-mem")
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env("RUSTUP_TOOLCHAIN", &toolchain.sysroot)
        .env("CARGO_TARGET_DIR", empty.join("target"))
        .env("__CARGO_TESTS_ONLY_SRC_ROOT", &library)
        .current_dir(&empty);
    shown(&mut cargo).with_context(|| format!("the library cannot be built: {REMEDY}"))?;
    put_into_sysroot(toolchain, &empty)?;
    step.done("built and put into the toolchain");
    Ok(())
}

/// Extracts the library's sources of exactly this release.
fn sources(release: &str, work: &Work) -> Result<PathBuf> {
    let archive = work.guest_archive()?;
    let versions = archive.versions("rust-src")?;
    let Some(version) = versions
        .iter()
        .find(|version| version.starts_with(&format!("{release}+")))
    else {
        bail!(
            "rustc is {release}, but Debian's rust-src comes only as {}: {REMEDY}, or use one of these releases of Rust",
            versions.join(", ")
        );
    };
    let package = format!("rust-src={version}");
    let files = archive.fetch("Rust's library sources", Want::Only(&[&package]))?;
    let into = work.folder("rust-src")?;
    extract_parts(
        files.first().context("nothing was downloaded")?,
        &into,
        &["./usr/src/rustc-*/library"],
    )?;
    let mut found = fs::read_dir(into.join("usr/src"))?
        .flatten()
        .map(|entry| entry.path().join("library"));
    found
        .next()
        .filter(|library| library.join("core").is_dir())
        .context("rust-src holds no library/core")
}

fn put_into_sysroot(toolchain: &Toolchain, empty: &Path) -> Result<()> {
    let built = empty.join("target").join(BARE_TARGET).join("release/deps");
    let place = toolchain.place();
    let parent = place.parent().context("the sysroot is no folder")?;
    let made = parent.join(format!("lib.{}", std::process::id()));
    let remedy = || {
        format!(
            "cannot write into {}: run set-up as the owner of the Rust toolchain",
            parent.display()
        )
    };
    fs::create_dir_all(&made).with_context(remedy)?;
    for entry in fs::read_dir(&built)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".rlib") && !name.starts_with("libempty") {
            fs::copy(entry.path(), made.join(&name))?;
        }
    }
    fs::write(made.join(BUILT_FOR), toolchain.identity())?;
    if place.exists() {
        fs::remove_dir_all(&place).with_context(remedy)?;
    }
    fs::rename(&made, &place).with_context(remedy)
}
