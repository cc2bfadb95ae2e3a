//! Where things are: the repository, cargo's output and the cache that set-up fills.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The bare-metal target of everything that runs at EL2 or in a test guest.
pub const BARE_TARGET: &str = "aarch64-unknown-none-softfloat";

/// Returns the root of the repository.
///
/// The wrappers in `scripts/` say it in `TAGVISOR_ROOT`; without them it is where this crate was built.
#[must_use]
pub fn repository() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    env::var_os("TAGVISOR_ROOT").map_or_else(
        || built.parent().unwrap_or(built).to_path_buf(),
        PathBuf::from,
    )
}

/// Returns cargo's output folder, which `CARGO_TARGET_DIR` may move.
#[must_use]
pub fn target_dir() -> PathBuf {
    let root = repository();
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir))
}

/// The folder that set-up fills and everything else reads: `$XDG_CACHE_HOME/tagvisor` or `~/.cache/tagvisor`.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Finds the cache of the user who runs the tool.
    ///
    /// # Errors
    /// Neither `XDG_CACHE_HOME` nor `HOME` is an absolute path.
    pub fn of_user() -> Result<Self> {
        let absolute = |name| {
            env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let base = absolute("XDG_CACHE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
            .context("neither XDG_CACHE_HOME nor HOME is an absolute path: set HOME")?;
        Ok(Self::at(base.join("tagvisor")))
    }

    /// Makes the cache that lies at `root`.
    #[must_use]
    pub const fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// Returns the folder of the cache.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the folder of the private QEMU.
    #[must_use]
    pub fn qemu(&self) -> PathBuf {
        self.root.join("qemu")
    }

    /// Returns the program that starts QEMU; it obeys `TAGVISOR_PRELOAD`.
    #[must_use]
    pub fn qemu_program(&self) -> PathBuf {
        self.qemu().join("bin/qemu-system-aarch64")
    }

    /// Returns the folder of the guests' kernels and programs.
    #[must_use]
    pub fn guests(&self) -> PathBuf {
        self.root.join("guests")
    }

    /// Returns the folder of the other kernels that guests run on.
    #[must_use]
    pub fn kernels(&self) -> PathBuf {
        self.root.join("kernels")
    }

    /// Returns the folder of stress-ng and its libraries.
    #[must_use]
    pub fn stress(&self) -> PathBuf {
        self.root.join("stress")
    }

    /// Returns the folder of the cross compiler for the guests' programs.
    #[must_use]
    pub fn cross(&self) -> PathBuf {
        self.root.join("cross")
    }

    /// Returns the cross compiler.
    #[must_use]
    pub fn cross_compiler(&self) -> PathBuf {
        self.cross().join("bin/aarch64-linux-gnu-gcc")
    }
}
