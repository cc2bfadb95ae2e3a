//! Signals to us, noticed in a poll loop.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

/// Watches for Ctrl-C, termination and the loss of the terminal; dropping it restores the default.
#[derive(Debug)]
pub struct Signals {
    last: Arc<AtomicUsize>,
    wake: UnixStream,
    registered: Vec<SigId>,
}

impl Signals {
    /// Begins to watch.
    ///
    /// # Errors
    /// The handlers cannot be installed.
    pub fn watch() -> Result<Self> {
        let (wake, sender) = UnixStream::pair().context("cannot make a pipe for signals")?;
        wake.set_nonblocking(true)?;
        let last = Arc::new(AtomicUsize::new(0));
        let mut registered = Vec::new();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            registered.push(flag::register_usize(
                signal,
                Arc::clone(&last),
                usize::try_from(signal)?,
            )?);
            registered.push(low_level::pipe::register(signal, sender.try_clone()?)?);
        }
        Ok(Self {
            last,
            wake,
            registered,
        })
    }

    /// Returns what becomes readable when a signal comes.
    #[must_use]
    pub const fn wake(&self) -> &UnixStream {
        &self.wake
    }

    /// Takes the last signal that came, if any.
    pub fn take(&mut self) -> Option<i32> {
        let _ = self.wake.read(&mut [0; 64]);
        i32::try_from(self.last.swap(0, Ordering::SeqCst))
            .ok()
            .filter(|&signal| signal != 0)
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for id in self.registered.drain(..) {
            low_level::unregister(id);
        }
    }
}
