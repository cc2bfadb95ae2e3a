//! Running other programs: their output when they fail, a time limit, their end when ours comes.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How many of a failed program's last lines an error shows.
const SHOWN_LINES: usize = 12;

/// Runs a program to its end and returns its standard output as text.
///
/// # Errors
/// It cannot be started, or it fails: the error shows the end of what it printed.
pub fn output(command: &mut Command) -> Result<String> {
    let name = name(command);
    let result = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {name}"))?;
    succeeded(&name, &result)?;
    Ok(String::from_utf8_lossy(&result.stdout).into_owned())
}

/// Runs a program that prints for people, its output passed on to standard error.
///
/// # Errors
/// It cannot be started, or it fails.
pub fn shown(command: &mut Command) -> Result<()> {
    let name = name(command);
    let status = command
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("cannot start {name}"))?;
    if !status.success() {
        bail!("{name} failed ({status}); its messages are above");
    }
    Ok(())
}

/// Runs a program for at most `limit`; calls `tick` every 100 ms.
///
/// # Errors
/// It cannot be started, fails, or is not done in time (it is then killed).
pub fn watched(command: &mut Command, limit: Duration, mut tick: impl FnMut()) -> Result<()> {
    let name = name(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let mut pipe = child.stderr.take().context("no pipe for errors")?;
    let errors = thread::spawn(move || {
        let mut text = Vec::new();
        let _ = pipe.read_to_end(&mut text);
        text
    });
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if begun.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            bail!("{name} was not done after {} s", limit.as_secs());
        }
        tick();
        thread::sleep(Duration::from_millis(
            if begun.elapsed().as_millis() < 500 {
                10
            } else {
                100
            },
        ));
    };
    let stderr = errors.join().unwrap_or_default();
    succeeded(
        &name,
        &Output {
            status,
            stdout: Vec::new(),
            stderr,
        },
    )
}

/// Finds a program in `PATH`.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| is_program(file))
}

/// Whether a file exists and somebody may execute it.
#[must_use]
pub fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn name(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args().take(2));
    words
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

fn succeeded(name: &str, result: &Output) -> Result<()> {
    if result.status.success() {
        return Ok(());
    }
    let text = [result.stdout.as_slice(), result.stderr.as_slice()].concat();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines
        .get(lines.len().saturating_sub(SHOWN_LINES)..)
        .unwrap_or_default();
    bail!(
        "{name} failed ({}):\n  {}",
        result.status,
        tail.join("\n  ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_program_is_reported_with_what_it_said() {
        let error = output(Command::new("sh").args(["-c", "echo no disk >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("no disk") && error.contains("exit status: 3"),
            "{error}"
        );
    }

    #[test]
    fn a_program_that_hangs_is_ended_at_its_limit() {
        let error = watched(
            Command::new("sleep").arg("60"),
            Duration::from_millis(50),
            || (),
        )
        .unwrap_err();
        assert!(error.to_string().contains("was not done after"), "{error}");
    }
}
