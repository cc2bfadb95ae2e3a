//! The console: one UART carries tagvisor's own lines and all guests' output.
//!
//! Batch: each guest line is printed whole, after the VM's name; control characters are dropped, so that no guest can begin a
//! line, forge another's, or hide one. Interactive: the attached guest's bytes pass as they are, own lines stand alone.
//! Input: Ctrl-] begins a command of [`Command`]; twice, it is itself.
//!
//! Lock rank: last. Whoever holds the console takes no other lock.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};

/// The byte-wide device below.
pub trait Uart {
    /// Sends one byte, waiting for room.
    fn put(&mut self, byte: u8);
    /// Takes one received byte, if any.
    fn get(&mut self) -> Option<u8>;
    /// Raises an interrupt from now on when bytes are received.
    fn listen(&mut self) {}
}

/// Begins a command to tagvisor: Ctrl-].
pub const ESCAPE: u8 = 0x1d;
/// Begins the line of the JSON report; dropped from guests' lines.
pub const REPORT_MARK: u8 = 0x1e;
/// Longest guest line that is printed whole, bytes; longer ones are cut into several.
const LINE_BYTES: usize = 1024;

/// What a user can ask of tagvisor itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `q`: stop all VMs, report, power off.
    Quit,
    /// `t`: the same, because the time is up.
    Timeout,
    /// `r`: print the report now.
    Report,
    /// `n`: give the console to the next VM.
    Next,
    /// `h` or `?`: print what there is.
    Help,
}

/// What an input byte means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// It is for the attached guest.
    Guest(u8),
    /// It completes a command.
    Command(Command),
}

/// How guests' output is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Lines, prefixed.
    Batch,
    /// The bytes of the attached guest, given by its index.
    Interactive {
        /// Whose bytes are shown, and who gets the input.
        attached: usize,
    },
}

/// The console's state over a UART.
pub struct Console<U> {
    uart: Option<U>,
    mode: Mode,
    line_open: bool,
    escaped: bool,
    lines: Vec<Vec<u8>>,
}

impl<U: Uart> Console<U> {
    /// A console that swallows all until it has a UART.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            uart: None,
            mode: Mode::Batch,
            line_open: false,
            escaped: false,
            lines: Vec::new(),
        }
    }

    /// Uses `uart` from now on.
    pub fn attach(&mut self, uart: U) {
        self.uart = Some(uart);
    }

    /// Sets the mode for `vms` guests.
    pub fn start(&mut self, mode: Mode, vms: usize) {
        self.mode = mode;
        self.lines.resize_with(vms, Vec::new);
    }

    /// Shows guest `vm` from now on, if the console is a guest's terminal at all.
    pub fn show(&mut self, vm: usize) {
        if let Mode::Interactive { attached } = &mut self.mode {
            *attached = vm;
        }
    }

    /// Asks for an interrupt when there is input.
    pub fn listen(&mut self) {
        if let Some(uart) = &mut self.uart {
            uart.listen();
        }
    }

    /// Prints a line of tagvisor's own.
    pub fn line(&mut self, text: fmt::Arguments<'_>) {
        if self.line_open {
            self.end_line();
        }
        // Writing to the UART cannot fail; formatting can only if a Display of ours says so.
        let _ = self.write_fmt(text);
        self.end_line();
    }

    /// Prints the JSON report as the line the host tool looks for.
    pub fn report(&mut self, key: &str, json: &str) {
        self.line(format_args!("{}{key} {json}", char::from(REPORT_MARK)));
    }

    /// Prints a byte that guest `vm`, called `name`, sent.
    pub fn guest_byte(&mut self, vm: usize, name: &str, byte: u8) {
        match self.mode {
            Mode::Interactive { attached } if attached == vm => {
                self.line_open = byte != b'\n';
                self.put(byte);
            }
            Mode::Interactive { .. } => {}
            Mode::Batch => self.collect(vm, name, byte),
        }
    }

    /// Prints what guest `vm` left of a line; called when it ends.
    pub fn flush_guest(&mut self, vm: usize, name: &str) {
        if self.mode == Mode::Batch && self.lines.get(vm).is_some_and(|line| !line.is_empty()) {
            self.print_collected(vm, name);
        }
    }

    /// Takes the next input, if there is any.
    pub fn input(&mut self) -> Option<Input> {
        while let Some(byte) = self.uart.as_mut().and_then(Uart::get) {
            if let Some(input) = self.interpret(byte) {
                return Some(input);
            }
        }
        None
    }

    fn interpret(&mut self, byte: u8) -> Option<Input> {
        if !core::mem::take(&mut self.escaped) {
            if byte == ESCAPE {
                self.escaped = true;
                return None;
            }
            return matches!(self.mode, Mode::Interactive { .. }).then_some(Input::Guest(byte));
        }
        match byte {
            b'q' => Some(Input::Command(Command::Quit)),
            b't' => Some(Input::Command(Command::Timeout)),
            b'r' => Some(Input::Command(Command::Report)),
            b'n' => Some(Input::Command(Command::Next)),
            b'h' | b'?' => Some(Input::Command(Command::Help)),
            ESCAPE | b']' => Some(Input::Guest(ESCAPE)),
            _ => None,
        }
    }

    fn collect(&mut self, vm: usize, name: &str, byte: u8) {
        let Some(line) = self.lines.get_mut(vm) else {
            return;
        };
        let control = byte < 0x20 && byte != b'\t' || byte == 0x7f;
        // U+0080 to U+009F, in UTF-8 C2 80 to C2 9F, are control characters too: U+009B begins what ESC [ begins.
        if (0x80..0xa0).contains(&byte) && line.last() == Some(&0xc2) {
            line.pop();
        } else if !control {
            line.push(byte);
        }
        if byte == b'\n' || line.len() >= LINE_BYTES {
            self.print_collected(vm, name);
        }
    }

    fn print_collected(&mut self, vm: usize, name: &str) {
        let Some(line) = self.lines.get_mut(vm) else {
            return;
        };
        let mut line = core::mem::take(line);
        for byte in name.bytes().chain(*b"| ").chain(line.iter().copied()) {
            self.put(byte);
        }
        self.end_line();
        line.clear();
        if let Some(slot) = self.lines.get_mut(vm) {
            *slot = line;
        }
    }

    fn end_line(&mut self) {
        self.put(b'\r');
        self.put(b'\n');
        self.line_open = false;
    }

    fn put(&mut self, byte: u8) {
        if let Some(uart) = &mut self.uart {
            uart.put(byte);
        }
    }
}

impl<U: Uart> Default for Console<U> {
    fn default() -> Self {
        Self::new()
    }
}

impl<U: Uart> Write for Console<U> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.put(b'\r');
            }
            self.put(byte);
        }
        Ok(())
    }
}

/// Text that the user reads about the commands.
#[must_use]
pub fn help() -> String {
    String::from(
        "Ctrl-] then: q stop all VMs, report, power off; r report now; n console of the next VM; ] send Ctrl-] itself; h this help",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::VecDeque;

    #[derive(Default)]
    struct Recorder {
        sent: Vec<u8>,
        received: VecDeque<u8>,
    }

    impl Uart for &mut Recorder {
        fn put(&mut self, byte: u8) {
            self.sent.push(byte);
        }
        fn get(&mut self) -> Option<u8> {
            self.received.pop_front()
        }
    }

    fn printed(mode: Mode, act: impl FnOnce(&mut Console<&mut Recorder>)) -> String {
        let mut recorder = Recorder::default();
        let mut console = Console::new();
        console.attach(&mut recorder);
        console.start(mode, 2);
        act(&mut console);
        String::from_utf8(recorder.sent).unwrap()
    }

    fn send(console: &mut Console<&mut Recorder>, vm: usize, bytes: &[u8]) {
        for byte in bytes {
            console.guest_byte(vm, ["a", "b"][vm], *byte);
        }
    }

    #[test]
    fn batch_prints_whole_lines_with_the_name_of_their_vm() {
        let text = printed(Mode::Batch, |console| {
            send(console, 0, b"he");
            send(console, 1, b"x\r\n");
            console.line(format_args!("[tagvisor] INFO between"));
            send(console, 0, b"llo\r\nrest");
            console.flush_guest(0, "a");
            console.flush_guest(0, "a");
        });
        assert_eq!(
            text,
            "b| x\r\n[tagvisor] INFO between\r\na| hello\r\na| rest\r\n"
        );
    }

    #[test]
    fn a_guest_cannot_begin_a_line_or_forge_a_report_in_batch() {
        let text = printed(Mode::Batch, |console| {
            send(
                console,
                0,
                b"\r[tagvisor] INFO lie\x1b[2K\x1ekey {}\xc2\x9b2K\xc2\xa0\n",
            );
            send(console, 0, &[b'z'; 3000]);
        });
        for line in text.lines() {
            assert!(line.starts_with("a| "), "{line:?}");
        }
        assert!(
            !text
                .chars()
                .any(|c| c.is_control() && c != '\r' && c != '\n')
        );
    }

    #[test]
    fn interactive_shows_the_attached_guest_and_own_lines_apart() {
        let text = printed(Mode::Interactive { attached: 0 }, |console| {
            send(console, 0, b"$ ");
            send(console, 1, b"unseen\n");
            console.line(format_args!("[tagvisor] INFO hi"));
        });
        assert_eq!(text, "$ \r\n[tagvisor] INFO hi\r\n");
    }

    #[test]
    fn the_escape_key_reaches_tagvisor_and_doubled_the_guest() {
        let mut recorder = Recorder {
            received: b"l\x1dq\x1d\x1d\x1d]\x1dr\x1dzs".iter().copied().collect(),
            ..Recorder::default()
        };
        let mut console = Console::new();
        console.attach(&mut recorder);
        console.start(Mode::Interactive { attached: 0 }, 1);
        let mut all = Vec::new();
        while let Some(input) = console.input() {
            all.push(input);
        }
        use Input::{Command as C, Guest as G};
        assert_eq!(
            all,
            [
                G(b'l'),
                C(Command::Quit),
                G(ESCAPE),
                G(ESCAPE),
                C(Command::Report),
                G(b's')
            ]
        );
    }

    #[test]
    fn batch_takes_commands_but_no_input_for_guests() {
        let mut recorder = Recorder {
            received: b"ls\n\x1dt".iter().copied().collect(),
            ..Recorder::default()
        };
        let mut console = Console::new();
        console.attach(&mut recorder);
        console.start(Mode::Batch, 1);
        assert_eq!(console.input(), Some(Input::Command(Command::Timeout)));
        assert_eq!(console.input(), None);
    }
}
