//! A folder of a run's own, removed at its end.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A folder that goes with its owner.
#[derive(Debug)]
pub struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    /// Makes a folder that no other run uses; only its owner may look inside.
    ///
    /// # Errors
    /// The folder for temporary files cannot be written to.
    pub fn new() -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let base = std::env::temp_dir();
        let time = std::time::UNIX_EPOCH
            .elapsed()
            .map(|time| time.subsec_nanos())
            .unwrap_or(0);
        let dir = base.join(format!("tagvisor-{}-{number}-{time:x}", std::process::id()));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("cannot make a folder in {}: set TMPDIR", base.display()))?;
        Ok(Self { dir })
    }

    /// Returns the folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}
