//! A person at the terminal of `scripts/run`: a pseudo-terminal, what it shows, what is typed.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::process::{Finished, wait};

/// A program on a terminal of its own.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    keyboard: File,
    screen: Arc<Mutex<String>>,
    /// Copies what is shown to `screen` until the line is closed.
    reader: JoinHandle<()>,
    /// How much of the screen has been waited for, in bytes.
    read: usize,
    end: Instant,
}

impl Terminal {
    /// Starts `command` on a new terminal; it has to end within `limit`.
    ///
    /// # Errors
    /// There are no terminals, or it cannot be started.
    pub fn start(command: &mut Command, limit: Duration) -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let line = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(i32::try_from(OpenptFlags::NOCTTY.bits())?)
            .open(OsStr::from_bytes(name.to_bytes()))?;
        let child = command
            .stdin(line.try_clone()?)
            .stdout(line.try_clone()?)
            .stderr(line)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        // The child's ends of the line are the command's too: only without them does the line close with the child.
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let keyboard = File::from(master);
        let screen = Arc::new(Mutex::new(String::new()));
        let (mut shown, to) = (keyboard.try_clone()?, Arc::clone(&screen));
        let reader = thread::spawn(move || {
            let mut bytes = [0; 4096];
            // A closed line is an error to read.
            while let Ok(count @ 1..) = shown.read(&mut bytes) {
                let text = String::from_utf8_lossy(bytes.get(..count).unwrap_or_default());
                to.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push_str(&text);
            }
        });
        Ok(Self {
            child,
            keyboard,
            screen,
            reader,
            read: 0,
            end: Instant::now() + limit,
        })
    }

    /// All that it has shown so far.
    #[must_use]
    pub fn screen(&self) -> String {
        self.screen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// After its end: waits for what is on its way to the screen. Something that it has started may keep the line open.
    fn drain(&self) {
        let until = Instant::now() + Duration::from_secs(5);
        while !self.reader.is_finished() && Instant::now() < until {
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until it shows `text`, after what was waited for before.
    ///
    /// # Errors
    /// It ends, or its time is over, without that; the error has the screen.
    pub fn expect(&mut self, text: &str) -> Result<()> {
        loop {
            let ended = self.child.try_wait()?.is_some();
            if ended {
                self.drain();
            }
            let screen = self.screen();
            if let Some(at) = screen.get(self.read..).and_then(|rest| rest.find(text)) {
                self.read += at + text.len();
                return Ok(());
            }
            if ended || Instant::now() >= self.end {
                bail!("{text:?} was not shown:\n{screen}");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Types `text`.
    ///
    /// # Errors
    /// The terminal is closed.
    pub fn write(&mut self, text: &str) -> Result<()> {
        Ok(self.keyboard.write_all(text.as_bytes())?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn finish(mut self) -> Result<Finished> {
        let left = self.end.saturating_duration_since(Instant::now());
        let code = wait(&mut self.child, left)?;
        self.drain();
        Ok(Finished {
            code,
            output: self.screen(),
            errors: String::new(),
        })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // After a failed test; it is over otherwise.
        let _ = wait(&mut self.child, Duration::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_arrives_and_what_is_shown_is_seen() {
        let mut command = Command::new("sh");
        command.args(["-c", "tty; read line; echo got $line; exit 3"]);
        let mut terminal = Terminal::start(&mut command, Duration::from_secs(10)).unwrap();
        terminal.expect("/dev/pts/").unwrap();
        terminal.write("this\r").unwrap();
        terminal.expect("got this").unwrap();
        assert!(terminal.expect("got this").is_err(), "it was shown once");
        assert_eq!(terminal.finish().unwrap().code, Some(3));
    }

    #[test]
    fn what_is_shown_last_is_seen_though_the_program_has_ended() {
        for _ in 0..20 {
            let mut command = Command::new("sh");
            command.args(["-c", "seq 20000; echo the end"]);
            let mut terminal = Terminal::start(&mut command, Duration::from_secs(10)).unwrap();
            terminal.expect("the end").unwrap();
        }
    }
}
