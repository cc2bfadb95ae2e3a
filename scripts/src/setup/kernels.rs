//! More of Debian's arm64 kernels for guests: those with pages of 16 KiB, and the newest of its backports.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::apt::{Archive, Want, extract_parts};
use super::guests::{check_image, named, package_of};
use super::{Work, put_in_place, read_stamp, write_stamp};
use crate::paths::Cache;
use crate::progress::Step;

const FORMAT: &str = "format 1";

/// A kernel: its name in the cache, and the package that depends on it.
struct Kernel {
    name: &'static str,
    package: &'static str,
    newest: bool,
}

const KERNELS: [Kernel; 3] = [
    Kernel {
        name: "stable-16k",
        package: "linux-image-arm64-16k:arm64",
        newest: false,
    },
    Kernel {
        name: "newest-4k",
        package: "linux-image-arm64:arm64",
        newest: true,
    },
    Kernel {
        name: "newest-16k",
        package: "linux-image-arm64-16k:arm64",
        newest: true,
    },
];

/// Whether the kernels are there.
pub fn is_present(cache: &Cache) -> bool {
    let dir = cache.kernels();
    let stamped = read_stamp(&dir).is_some_and(|stamp| stamp.lines().next() == Some(FORMAT));
    stamped && KERNELS.iter().all(|kernel| dir.join(kernel.name).is_file())
}

pub fn install(cache: &Cache, work: &Work) -> Result<()> {
    let archive = work.guest_archive()?;
    let packages: Vec<String> = KERNELS
        .iter()
        .map(|kernel| kernel.package_with_image(archive))
        .collect::<Result<_>>()?;
    let wanted: Vec<&str> = packages.iter().map(String::as_str).collect();
    let files = archive.fetch("more kernels", Want::Only(&wanted))?;
    let step = Step::begin("kernels: extract them");
    let made = work.folder("kernels")?;
    let mut stamp = FORMAT.to_owned();
    for (kernel, package) in KERNELS.iter().zip(&packages) {
        let file = named(&files, &file_of(package))?;
        let parts = work.folder(&format!("kernel-{}", kernel.name))?;
        extract_parts(file, &parts, &["*/vmlinuz*"])?;
        let image = image_in(&parts).with_context(|| format!("{package} holds no vmlinuz"))?;
        check_image(&image)?;
        fs::rename(image, made.join(kernel.name))?;
        stamp += &format!("\n{}", package_of(file));
    }
    write_stamp(&made, &stamp)?;
    put_in_place(&made, &cache.kernels(), work)?;
    step.done(&format!("in {}", cache.kernels().display()));
    Ok(())
}

impl Kernel {
    /// Finds the package that holds the kernel itself.
    fn package_with_image(&self, archive: &Archive) -> Result<String> {
        let mut package = self.package.to_owned();
        if self.newest {
            let versions = archive.versions(&package)?;
            let newest = versions
                .first()
                .with_context(|| format!("Debian has no {package}"))?;
            package += &format!("={newest}");
        }
        let image = depends_on(archive, &package, "linux-image-")?
            .with_context(|| format!("{package} depends on no kernel"))?;
        // From 7.2 on the kernel is apart from its modules.
        Ok(depends_on(archive, &image, "linux-binary-")?.unwrap_or(image))
    }
}

/// Returns the package that `package` depends on whose name begins so.
fn depends_on(archive: &Archive, package: &str, name: &str) -> Result<Option<String>> {
    let depends = archive.depends(package)?;
    Ok(depends.into_iter().find(|other| other.starts_with(name)))
}

/// How the name of a package's file begins: up to the version.
fn file_of(package: &str) -> String {
    let name = package.split(':').next().unwrap_or(package);
    format!("{name}_")
}

/// Finds the kernel among what was extracted, wherever the package has it.
fn image_in(dir: &Path) -> Option<PathBuf> {
    fs::read_dir(dir).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        if path.is_dir() {
            image_in(&path)
        } else {
            Some(path)
        }
    })
}
