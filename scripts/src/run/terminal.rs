//! The terminal as the guest's console: keys go to the guest one by one, and the old settings come back at any end.

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

/// The escape key, Ctrl-].
pub const ESCAPE: u8 = 0x1d;

/// A terminal in raw input mode; dropping it restores the settings.
#[derive(Debug)]
pub struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Sets standard input raw, if it is a terminal. Guests and EL2 end their lines with CR and LF themselves.
    #[must_use]
    pub fn enter() -> Option<Self> {
        let input = rustix::stdio::stdin();
        if !isatty(input) {
            return None;
        }
        let before = tcgetattr(input).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(input, OptionalActions::Now, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Notices `Ctrl-] q` in what is typed.
#[derive(Clone, Copy, Debug, Default)]
pub struct EscapeWatch {
    escaped: bool,
}

impl EscapeWatch {
    /// Takes typed bytes; returns whether they complete the request to leave.
    pub fn wants_to_leave(&mut self, typed: &[u8]) -> bool {
        let mut leave = false;
        for &key in typed {
            leave |= self.escaped && key == b'q';
            self.escaped = !self.escaped && key == ESCAPE;
        }
        leave
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_escape_directly_before_q_leaves() {
        let leaves = |chunks: &[&[u8]]| {
            let mut watch = EscapeWatch::default();
            chunks.iter().any(|typed| watch.wants_to_leave(typed))
        };
        assert!(leaves(&[b"\x1dq"]));
        assert!(leaves(&[b"ls\n\x1d", b"q"]));
        assert!(!leaves(&[b"q", b"\x1dr", b"q"]));
        assert!(
            !leaves(&[b"\x1d\x1dq"]),
            "the second escape belongs to the first"
        );
    }
}
