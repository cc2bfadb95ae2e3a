//! Set-up: brings what a build and a run need and the machine lacks, once, into the user's cache.
//!
//! Each part is made in a scratch folder and moved into place whole, so an interrupted set-up leaves nothing
//! half-made. A file lock keeps two set-ups apart. When everything is there, set-up only looks.

pub mod apt;
mod cross;
mod guests;
mod kernels;
mod qemu;
mod stress;
mod target;

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::paths::Cache;
use apt::Archive;

pub use qemu::{MINIMUM_QEMU, QemuVersion};

/// The Debian release that guests, QEMU and the library's sources come from, whatever the host runs.
const RELEASE: &str = "trixie";
/// Its suite of newer packages.
const BACKPORTS: &str = "trixie-backports";

/// One thing that set-up brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Rust's core and alloc for the bare-metal target.
    Target,
    /// QEMU 11.1 or later.
    Qemu,
    /// The guests' kernel and busybox.
    Guests,
    /// The C compiler for the guests' programs.
    Cross,
    /// stress-ng for the guest of that name.
    Stress,
    /// More of Debian's kernels: pages of 16 KiB, the newest version.
    Kernels,
}

impl Part {
    /// All parts, in the order in which they are brought.
    pub const ALL: [Self; 6] = [
        Self::Target,
        Self::Qemu,
        Self::Guests,
        Self::Cross,
        Self::Stress,
        Self::Kernels,
    ];
    /// Those that are used every day: all but the kernels, which only long tests run.
    pub const USUAL: [Self; 5] = [
        Self::Target,
        Self::Qemu,
        Self::Guests,
        Self::Cross,
        Self::Stress,
    ];

    fn is_present(self, cache: &Cache) -> Result<bool> {
        match self {
            Self::Target => target::is_present(),
            Self::Qemu => Ok(qemu::is_present(cache)),
            Self::Guests => Ok(guests::is_present(cache)),
            Self::Cross => Ok(cross::is_present(cache)),
            Self::Stress => Ok(stress::is_present(cache)),
            Self::Kernels => Ok(kernels::is_present(cache)),
        }
    }

    fn install(self, cache: &Cache, work: &Work) -> Result<()> {
        match self {
            Self::Target => target::install(work),
            Self::Qemu => qemu::install(cache, work),
            Self::Guests => guests::install(cache, work),
            Self::Cross => cross::install(cache, work),
            Self::Stress => stress::install(cache, work),
            Self::Kernels => kernels::install(cache, work),
        }
    }
}

/// Brings the parts that are missing; returns whether anything was.
///
/// # Errors
/// A part cannot be brought: the message says which, why and what to do.
pub fn ensure(cache: &Cache, parts: &[Part]) -> Result<bool> {
    if missing(cache, parts)?.is_empty() {
        return Ok(false);
    }
    fs::create_dir_all(cache.root())
        .with_context(|| format!("cannot make {}", cache.root().display()))?;
    let lock = fs::File::create(cache.root().join("lock"))?;
    if lock.try_lock().is_err() {
        eprintln!("==> another set-up is at work: waiting for it");
        lock.lock()?;
    }
    let work = Work::begin(cache)?;
    for part in missing(cache, parts)? {
        part.install(cache, &work)?;
        if !part.is_present(cache)? {
            bail!(
                "set-up of {part:?} ended without its result: remove {} and try again",
                cache.root().display()
            );
        }
    }
    Ok(true)
}

/// Tells for people what is in place and where.
///
/// # Errors
/// The Rust compiler cannot be asked.
pub fn describe(cache: &Cache) -> Result<String> {
    let stamp = |dir: PathBuf| read_stamp(&dir).unwrap_or_default().replace('\n', ", ");
    Ok(format!(
        "bare-metal target: {}\nQEMU: {} ({})\nguests: {} ({})\ncross compiler: {} ({})\n\
         stress-ng: {} ({})\nmore kernels: {} ({})",
        target::sysroot()?.display(),
        cache.qemu_program().display(),
        stamp(cache.qemu()),
        cache.guests().display(),
        stamp(cache.guests()),
        cache.cross_compiler().display(),
        stamp(cache.cross()),
        cache.stress().display(),
        stamp(cache.stress()),
        cache.kernels().display(),
        stamp(cache.kernels()),
    ))
}

fn missing(cache: &Cache, parts: &[Part]) -> Result<Vec<Part>> {
    let mut missing = Vec::new();
    for part in Part::ALL.into_iter().filter(|part| parts.contains(part)) {
        if !part.is_present(cache)? {
            missing.push(part);
        }
    }
    Ok(missing)
}

/// The scratch folder of a set-up and the package archives that it has opened so far.
#[derive(Debug)]
pub struct Work {
    dir: PathBuf,
    guests: OnceCell<Archive>,
    host: OnceCell<Archive>,
}

impl Work {
    /// Makes the scratch folder, beside the cache's parts so that a rename moves them; called under the lock.
    fn begin(cache: &Cache) -> Result<Self> {
        let dir = cache.root().join("scratch");
        if dir.exists() {
            fs::remove_dir_all(&dir).context("cannot remove what an interrupted set-up left")?;
        }
        fs::create_dir_all(&dir)?;
        Ok(Self {
            dir,
            guests: OnceCell::new(),
            host: OnceCell::new(),
        })
    }

    /// Returns the archive of the release that guests and QEMU come from.
    fn guest_archive(&self) -> Result<&Archive> {
        opened(&self.guests, &self.dir.join("apt"), &[RELEASE, BACKPORTS])
    }

    /// Returns the archive of the host's own release.
    fn host_archive(&self, release: &str) -> Result<&Archive> {
        if release == RELEASE {
            self.guest_archive()
        } else {
            opened(&self.host, &self.dir.join("apt-host"), &[release])
        }
    }

    /// Makes a folder to prepare a part in.
    fn folder(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn opened<'a>(cell: &'a OnceCell<Archive>, dir: &Path, suites: &[&str]) -> Result<&'a Archive> {
    if cell.get().is_none() {
        let _ = cell.set(Archive::open(dir, suites)?);
    }
    cell.get().context("the archive is not open")
}

/// Puts a finished folder in place of an older one.
fn put_in_place(made: &Path, place: &Path, work: &Work) -> Result<()> {
    if place.exists() {
        fs::rename(
            place,
            work.folder("old")?
                .join(place.file_name().context("a place without a name")?),
        )?;
    }
    fs::rename(made, place).with_context(|| format!("cannot put {} in place", place.display()))
}

const STAMP: &str = "stamp";

fn read_stamp(dir: &Path) -> Option<String> {
    fs::read_to_string(dir.join(STAMP))
        .ok()
        .map(|text| text.trim_end().to_owned())
}

fn write_stamp(dir: &Path, text: &str) -> Result<()> {
    fs::write(dir.join(STAMP), format!("{text}\n")).context("cannot write a stamp")
}

fn write_program(file: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(file, text)?;
    fs::set_permissions(file, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// The architecture of the host must be that of the packages which are brought.
fn require_amd64(what: &str, remedy: &str) -> Result<()> {
    if cfg!(target_arch = "x86_64") {
        return Ok(());
    }
    bail!("{what} is brought for x86-64 hosts only: {remedy}")
}
