//! A folder of a run's own, removed at its end; what a killed run left is removed by the next.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

static NEXT: AtomicU32 = AtomicU32::new(0);
/// How the folders' names begin.
const PREFIX: &str = "tagvisor-run-";
/// A file in the folder that its owner holds locked.
const LOCK: &str = "lock";

/// A folder that goes with its owner.
#[derive(Debug)]
pub struct Scratch {
    dir: PathBuf,
    _lock: File,
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
        sweep(&base);
        let time = std::time::UNIX_EPOCH
            .elapsed()
            .map(|time| time.subsec_nanos())
            .unwrap_or(0);
        let name = format!("{PREFIX}{}-{number}-{time:x}", std::process::id());
        // Until it is locked it has another name: who sweeps at this moment must not take it for a dead owner's.
        let (fresh, dir) = (base.join(format!(".{name}")), base.join(name));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&fresh)
            .with_context(|| format!("cannot make a folder in {}: set TMPDIR", base.display()))?;
        let lock = File::create(fresh.join(LOCK))?;
        lock.lock()?;
        fs::rename(&fresh, &dir)?;
        Ok(Self { dir, _lock: lock })
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

/// Removes folders whose owners are gone: their locks are free.
fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else {
        return;
    };
    for entry in entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
    {
        let free = File::open(entry.path().join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok());
        if free {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_goes_with_its_owner_and_a_dead_owners_with_the_next() {
        let left = std::env::temp_dir().join(format!("{PREFIX}test-{}", std::process::id()));
        fs::create_dir_all(&left).unwrap();
        fs::write(left.join(LOCK), "").unwrap();
        let first = Scratch::new().unwrap();
        let second = Scratch::new().unwrap();
        assert!(!left.exists() && first.path().exists());
        let path = second.path().to_path_buf();
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn nobody_sweeps_a_folder_that_somebody_is_making() {
        let makers: Vec<_> = (0..4)
            .map(|_| {
                std::thread::spawn(|| {
                    for _ in 0..200 {
                        let scratch = Scratch::new().unwrap();
                        std::fs::write(scratch.path().join("file"), "").unwrap();
                    }
                })
            })
            .collect();
        for maker in makers {
            maker.join().unwrap();
        }
    }
}
