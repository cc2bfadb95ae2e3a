//! Programs that must end: run within a time limit, with all their output.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// A program that has ended, or was ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its exit code; none if a signal or the time limit ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub output: String,
    /// Its standard error.
    pub errors: String,
}

impl Finished {
    /// Returns the first line of the output that begins with `start`.
    #[must_use]
    pub fn line(&self, start: &str) -> Option<&str> {
        self.output
            .lines()
            .map(str::trim_end)
            .find(|line| line.starts_with(start))
    }

    /// Returns everything it said, for a failed test's message.
    #[must_use]
    pub fn transcript(&self) -> String {
        format!(
            "exit code {:?}\n--- output\n{}\n--- errors\n{}",
            self.code, self.output, self.errors
        )
    }
}

/// Runs `command` until it ends; ends it after `limit`.
///
/// # Errors
/// It cannot be started.
pub fn run_within(command: &mut Command, limit: Duration) -> Result<Finished> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    let output = collect(child.stdout.take());
    let errors = collect(child.stderr.take());
    let code = wait(&mut child, limit)?;
    Ok(Finished {
        code,
        output: output.join().unwrap_or_default(),
        errors: errors.join().unwrap_or_default(),
    })
}

/// Waits for the end of `child`; ends it after `limit`. Returns its exit code.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Result<Option<i32>> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code());
        }
        if Instant::now() >= end {
            stop(child)?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Asks the program to end, so that it can end its own children, and makes it end if it does not.
fn stop(child: &mut Child) -> Result<()> {
    let asked = Command::new("kill").arg(child.id().to_string()).status();
    let patience = Instant::now() + Duration::from_secs(5);
    while asked.is_ok() && Instant::now() < patience {
        if child.try_wait()?.is_some() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(20));
    }
    child.kill()?;
    child.wait()?;
    Ok(())
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What came before an error is the output.
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// A folder of a test's own, removed at its end.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Makes one.
    ///
    /// # Errors
    /// The system's folder for temporary files cannot be written.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("tagvisor-test-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    /// Returns its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_does_not_end_is_ended() {
        let begin = Instant::now();
        let ended =
            run_within(Command::new("sleep").arg("60"), Duration::from_millis(200)).unwrap();
        assert_eq!(ended.code, None);
        assert!(begin.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn output_errors_and_exit_code_are_kept_apart() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2; exit 3"]);
        let ended = run_within(&mut command, Duration::from_secs(10)).unwrap();
        assert_eq!(
            (ended.code, ended.output.as_str(), ended.errors.as_str()),
            (Some(3), "one\n", "two\n")
        );
        assert_eq!(ended.line("on"), Some("one"));
        assert_eq!(ended.line("two"), None);
    }
}
