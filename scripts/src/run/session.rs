//! QEMU as a child: its console both ways, a time limit, signals, and nothing left behind.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process_group, set_parent_process_death_signal};

use super::filter::ReportFilter;
use super::signals::Signals;
use super::terminal::{ESCAPE, EscapeWatch, RawTerminal};

/// After `Ctrl-] q`, EL2 has this long to report and power off.
const LEAVE_GRACE: Duration = Duration::from_secs(5);
/// After the time limit, EL2 has this long to report.
const TIMEOUT_GRACE: Duration = Duration::from_secs(3);
/// After a signal, QEMU has this long to end itself.
const SIGNAL_GRACE: Duration = Duration::from_secs(2);
/// What EL2 takes as "time is up": end every guest as `timeout` and report.
const TIME_IS_UP: [u8; 2] = [ESCAPE, b't'];
/// Typed bytes that QEMU has not taken yet; more are left in the terminal.
const MOST_PENDING: usize = 4096;
/// How much of QEMU's own messages is kept for an error.
const MOST_ERRORS: usize = 16 << 10;

/// How QEMU ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself.
    Exited(ExitStatus),
    /// By `Ctrl-] q`, and EL2 did not answer.
    Left,
    /// By the time limit.
    TimedOut,
    /// By a signal to us.
    Signalled(i32),
}

/// What came out of a session.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub end: End,
    /// The console's filter, with the report if there was one.
    pub filter: ReportFilter,
    /// What QEMU itself said.
    pub errors: String,
}

/// What a session is told.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Whether the terminal is the guest's console.
    pub interactive: bool,
    /// The time limit.
    pub limit: Option<Duration>,
    /// What marks the report.
    pub report_key: String,
}

/// A QEMU under way.
struct Session<'a> {
    child: Child,
    console: Option<ChildStdout>,
    errors: Option<ChildStderr>,
    to_guest: ChildStdin,
    shown: &'a mut dyn Write,
    signals: Signals,
    /// Whether standard input is read.
    typing: bool,
    /// Typed and not yet taken by QEMU.
    pending: Vec<u8>,
    escape: EscapeWatch,
    filter: ReportFilter,
    said: Vec<u8>,
    limit: Option<Instant>,
    /// When QEMU is killed, and how that is called.
    doom: Option<(Instant, End)>,
}

/// Runs QEMU to its end; what its console shows goes to `shown`.
///
/// # Errors
/// QEMU cannot be started, or its pipes fail.
pub fn run(command: &mut Command, rules: &Rules, shown: &mut dyn Write) -> Result<Ended> {
    let signals = Signals::watch()?;
    let _terminal = if rules.interactive {
        RawTerminal::enter()
    } else {
        None
    };
    let mut child = start(command)?;
    let (console, errors) = (child.stdout.take(), child.stderr.take());
    let to_guest = child.stdin.take().context("QEMU has no standard input")?;
    rustix::io::ioctl_fionbio(&to_guest, true)?;
    let mut session = Session {
        child,
        console,
        errors,
        to_guest,
        shown,
        signals,
        typing: rules.interactive,
        pending: Vec::new(),
        escape: EscapeWatch::default(),
        filter: ReportFilter::new(&rules.report_key),
        said: Vec::new(),
        limit: rules.limit.map(|limit| Instant::now() + limit),
        doom: None,
    };
    session.finish()
}

/// Starts QEMU in a process group of its own, which dies with us.
fn start(command: &mut Command) -> Result<Child> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let dies_with_us =
        || set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from);
    // SAFETY: between fork and exec the closure makes one system call and touches no memory of ours.
    unsafe { command.pre_exec(dies_with_us) };
    let program = command.get_program().to_string_lossy().into_owned();
    command
        .spawn()
        .with_context(|| format!("cannot start QEMU ({program})"))
}

/// What a round of waiting found.
#[derive(Default)]
struct Ready {
    console: bool,
    errors: bool,
    signal: bool,
    typed: bool,
    takes_input: bool,
}

impl Session<'_> {
    fn finish(&mut self) -> Result<Ended> {
        let end = self.serve();
        if end.is_err() {
            self.kill(Signal::KILL);
        }
        let status = self.child.wait()?;
        let held = self.filter.finish();
        self.show(&held);
        Ok(Ended {
            end: end?.unwrap_or(End::Exited(status)),
            filter: std::mem::replace(&mut self.filter, ReportFilter::new("")),
            errors: String::from_utf8_lossy(&self.said).into_owned(),
        })
    }

    /// Serves the pipes until QEMU has closed them; `None` if it did so by itself.
    fn serve(&mut self) -> Result<Option<End>> {
        while self.console.is_some() || self.errors.is_some() {
            let ready = self.wait()?;
            if ready.console {
                self.take_console()?;
            }
            if ready.errors {
                self.take_errors()?;
            }
            if ready.signal {
                self.take_signal();
            }
            if ready.typed {
                self.take_typed();
            }
            if ready.takes_input {
                self.pass_typed();
            }
            self.watch_clock();
        }
        Ok(self
            .doom
            .map(|(_, end)| end)
            .filter(|end| *end != End::Left))
    }

    fn wait(&self) -> Result<Ready> {
        let input = rustix::stdio::stdin();
        let typing = self.typing && self.pending.len() < MOST_PENDING;
        let watched = [
            Some((self.signals.wake().as_fd(), PollFlags::IN)),
            self.console
                .as_ref()
                .map(|pipe| (pipe.as_fd(), PollFlags::IN)),
            self.errors
                .as_ref()
                .map(|pipe| (pipe.as_fd(), PollFlags::IN)),
            typing.then_some((input, PollFlags::IN)),
            (!self.pending.is_empty()).then_some((self.to_guest.as_fd(), PollFlags::OUT)),
        ];
        let mut fds: Vec<PollFd<'_>> = watched
            .iter()
            .flatten()
            .map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
            .collect();
        let now = Instant::now();
        let next = [self.limit, self.doom.map(|(at, _)| at)]
            .into_iter()
            .flatten()
            .min();
        let pause = next
            .map(|at| Timespec::try_from(at.saturating_duration_since(now)))
            .transpose()?;
        match poll(&mut fds, pause.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => (),
            Err(error) => return Err(error).context("cannot wait for QEMU"),
        }
        let mut found = fds.iter().map(|fd| !fd.revents().is_empty());
        let [signal, console, errors, typed, takes_input] =
            watched.map(|watch| watch.is_some() && found.next().unwrap_or(false));
        Ok(Ready {
            console,
            errors,
            signal,
            typed,
            takes_input,
        })
    }

    fn take_console(&mut self) -> Result<()> {
        let mut bytes = [0; 16 << 10];
        let count = self
            .console
            .as_mut()
            .map_or(Ok(0), |pipe| pipe.read(&mut bytes))?;
        if count == 0 {
            self.console = None;
        }
        let shown = self.filter.push(&bytes[..count]);
        self.show(&shown);
        Ok(())
    }

    /// Shows bytes of the console; a reader that went away ends the run.
    fn show(&mut self, bytes: &[u8]) {
        if self
            .shown
            .write_all(bytes)
            .and_then(|()| self.shown.flush())
            .is_err()
        {
            self.doom_at(Duration::ZERO, End::Signalled(signal_hook::consts::SIGPIPE));
        }
    }

    fn take_errors(&mut self) -> Result<()> {
        let mut bytes = [0; 4096];
        let count = self
            .errors
            .as_mut()
            .map_or(Ok(0), |pipe| pipe.read(&mut bytes))?;
        if count == 0 {
            self.errors = None;
        }
        let room = MOST_ERRORS.saturating_sub(self.said.len());
        self.said.extend_from_slice(&bytes[..count.min(room)]);
        Ok(())
    }

    fn take_signal(&mut self) {
        if let Some(signal) = self.signals.take() {
            self.kill(Signal::TERM);
            self.doom_at(SIGNAL_GRACE, End::Signalled(signal));
        }
    }

    fn take_typed(&mut self) {
        let mut bytes = [0; 1024];
        match io::stdin().read(&mut bytes) {
            Ok(count) if count > 0 => {
                self.pending.extend_from_slice(&bytes[..count]);
                if self.escape.wants_to_leave(&bytes[..count]) {
                    self.doom_at(LEAVE_GRACE, End::Left);
                }
            }
            _ => self.typing = false,
        }
    }

    fn pass_typed(&mut self) {
        match self.to_guest.write(&self.pending) {
            Ok(count) => drop(self.pending.drain(..count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
            Err(_) => {
                self.pending.clear();
                self.typing = false;
            }
        }
    }

    fn watch_clock(&mut self) {
        let now = Instant::now();
        if self.limit.is_some_and(|limit| now >= limit) {
            self.limit = None;
            self.pending.extend_from_slice(&TIME_IS_UP);
            self.pass_typed();
            self.doom_at(TIMEOUT_GRACE, End::TimedOut);
        }
        if let Some((at, end)) = self.doom.filter(|(at, _)| now >= *at) {
            self.kill(Signal::KILL);
            // Its pipes close now; a second look only if they do not.
            self.doom = Some((at + Duration::from_secs(3600), end));
        }
    }

    /// Sets the time of QEMU's end; the first reason stays the reason.
    fn doom_at(&mut self, grace: Duration, end: End) {
        let at = Instant::now() + grace;
        self.doom = Some(match self.doom {
            Some((earlier, reason)) => (
                earlier.min(at),
                if reason == End::Left { end } else { reason },
            ),
            None => (at, end),
        });
    }

    fn kill(&self, signal: Signal) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill(Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(script: &str, limit: Option<Duration>) -> (Ended, String) {
        let rules = Rules {
            interactive: false,
            limit,
            report_key: "ab".to_owned(),
        };
        let mut shown = Vec::new();
        let ended = run(Command::new("sh").args(["-c", script]), &rules, &mut shown).unwrap();
        (ended, String::from_utf8(shown).unwrap())
    }

    #[test]
    fn the_console_is_shown_and_the_report_kept() {
        let (ended, shown) = ran(
            "printf 'one\\n\\036ab {}\\ntwo\\n'; echo oops >&2; exit 3",
            None,
        );
        assert_eq!(
            (shown.as_str(), ended.filter.report()),
            ("one\ntwo\n", Some("{}"))
        );
        assert_eq!(ended.errors, "oops\n");
        assert!(matches!(ended.end, End::Exited(status) if status.code() == Some(3)));
    }

    #[test]
    fn at_the_time_limit_el2_is_asked_first_and_its_report_counts() {
        let asked = "head -c 2 | od -An -tx1; printf '\\036ab {}\\n'";
        let begun = Instant::now();
        let (ended, shown) = ran(asked, Some(Duration::from_millis(50)));
        assert_eq!((shown.trim(), ended.filter.report()), ("1d 74", Some("{}")));
        assert_eq!(ended.end, End::TimedOut);
        assert!(begun.elapsed() < TIMEOUT_GRACE);
    }

    #[test]
    fn what_does_not_answer_at_the_time_limit_is_killed_with_its_children() {
        let begun = Instant::now();
        let (ended, shown) = ran(
            "echo $$; sleep 3600 & sleep 3600",
            Some(Duration::from_millis(50)),
        );
        assert_eq!(ended.end, End::TimedOut);
        assert!(begun.elapsed() < TIMEOUT_GRACE + Duration::from_secs(2));
        // Gone, or a zombie that nobody waits for.
        let stat = std::path::PathBuf::from(format!("/proc/{}/stat", shown.trim()));
        let dead = || std::fs::read_to_string(&stat).map_or(true, |text| text.contains(") Z "));
        let gone = (0..50).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            dead()
        });
        assert!(gone, "a process of the group is still there");
    }
}
