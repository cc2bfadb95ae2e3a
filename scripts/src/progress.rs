//! What a person sees while the tool works: one line a step, with what, how much and how long.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// A step under way, told on standard error.
#[derive(Debug)]
pub struct Step {
    what: String,
    begun: Instant,
    shown: Option<Instant>,
}

impl Step {
    /// Begins a step and says so.
    #[must_use]
    pub fn begin(what: impl Into<String>) -> Self {
        let step = Self {
            what: what.into(),
            begun: Instant::now(),
            shown: None,
        };
        eprintln!("==> {}", step.what);
        step
    }

    /// Tells how far the step is, in bytes: often on a terminal, every 5 s elsewhere. The total may be unknown.
    pub fn at(&mut self, done: u64, total: Option<u64>) {
        let terminal = std::io::stderr().is_terminal();
        let pause = Duration::from_millis(if terminal { 200 } else { 5000 });
        let since = self.shown.unwrap_or(self.begun).elapsed();
        if since < pause {
            return;
        }
        self.shown = Some(Instant::now());
        let of = total.map_or_else(String::new, |total| format!(" of {}", megabytes(total)));
        let seconds = self.begun.elapsed().as_secs();
        let text = format!("    {}{of} ({seconds} s)", megabytes(done));
        if terminal {
            eprint!("\r{text}\x1b[K");
            let _ = std::io::stderr().flush();
        } else {
            eprintln!("{text}");
        }
    }

    /// Ends the step and says what came of it and how long it took.
    pub fn done(self, result: &str) {
        if self.shown.is_some() && std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
        eprintln!("    {result} ({:.1} s)", self.begun.elapsed().as_secs_f64());
    }
}

/// Writes a number of bytes as megabytes (10^6).
#[must_use]
pub fn megabytes(bytes: u64) -> String {
    let tenths = bytes / 100_000;
    format!("{}.{} MB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_in_megabytes_with_one_digit() {
        assert_eq!(megabytes(0), "0.0 MB");
        assert_eq!(megabytes(37_649_999), "37.6 MB");
    }
}
