//! The console: one UART carries tagvisor's own lines, all guests' output and the monitor.
//!
//! Each line of a guest begins with its VM's name. Lines are printed whole; of the attached guest, whose terminal the console is,
//! each byte is shown at once: its open line, or the monitor's, is taken away for the lines of others and shown again below them.
//! What a guest sends passes [`Filter`], so that no guest can begin a line, forge another's, hide one, or steer the terminal.
//!
//! Nothing waits for the UART on behalf of a guest: what it does not take now is kept, then the guests find their UARTs full.
//! Input: Ctrl-] begins a command of [`Command`]; twice, it is itself.
//!
//! Lock rank: last. Whoever holds the console takes no other lock.

mod filter;

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};

use crate::devices::vuart::{KEPT_BYTES, TRANSMIT_HEADROOM};
use crate::monitor::{Edit, Editor};
use filter::Filter;

/// The byte-wide device below.
pub trait Uart {
    /// Sends one byte if it takes one now. Says whether it did.
    fn try_put(&mut self, byte: u8) -> bool;
    /// Sends one byte, waiting for room.
    fn put(&mut self, byte: u8);
    /// Takes one received byte, if any.
    fn get(&mut self) -> Option<u8>;
    /// Raises an interrupt from now on when bytes are received.
    fn listen(&mut self) {}
    /// Raises an interrupt when there is room, or no more.
    fn tell_room(&mut self, _on: bool) {}
}

/// Begins a command to tagvisor: Ctrl-].
pub const ESCAPE: u8 = 0x1d;
/// Begins the line of the JSON report; dropped from guests' lines.
pub const REPORT_MARK: u8 = 0x1e;
/// What the monitor's line begins with.
pub const PROMPT: &[u8] = b"tagvisor> ";
/// Longest guest line that is printed whole, bytes; longer ones are cut into several.
const LINE_BYTES: usize = 1024;
/// What is kept for a UART that is slower than those who print.
const OUT_BYTES: usize = 8192;
/// Room in it for the line of a guest, with the open line that it interrupts.
const LINE_ROOM: usize = 3 * LINE_BYTES;
/// Room in it for what the attached guest still sends when its UART is full: each byte may be a carriage return.
const BYTE_ROOM: usize = TRANSMIT_HEADROOM * 64;

/// What a user can ask of tagvisor by a key.
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
    /// `m`: the monitor.
    Monitor,
    /// `h` or `?`: print what there is.
    Help,
}

/// What an input byte means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// It is for the attached guest.
    Byte(u8),
    /// It completes a command.
    Command(Command),
    /// It completes a line for the monitor.
    Line(Vec<u8>),
    /// It asks to [complete](Console::complete) the monitor's line.
    Complete,
    /// It leaves the monitor.
    Leave,
}

/// What a guest has sent.
#[derive(Default)]
struct Source {
    name: String,
    filter: Filter,
    /// What is not printed yet; of the attached guest, the open line, printed already.
    text: Vec<u8>,
    /// Whole lines in it.
    lines: usize,
    /// Its UART is full until there is room again.
    full: bool,
}

impl Source {
    /// What there was is printed, and the line has ended.
    fn begin_line(&mut self) {
        self.text.clear();
        self.filter.begin_line();
    }
}

/// What is on the UART, and on its way there.
struct Screen<U> {
    uart: Option<U>,
    /// What the UART has not taken yet.
    out: VecDeque<u8>,
    /// The terminal understands colours, and that a line is erased.
    colour: bool,
    /// The last line is open.
    line_open: bool,
}

/// The console's state over a UART.
pub struct Console<U> {
    screen: Screen<U>,
    interactive: bool,
    escaped: bool,
    sources: Vec<Source>,
    /// Whose terminal this is.
    attached: Option<usize>,
    /// The line of the monitor, while it is open: it has the terminal then.
    editor: Option<Editor>,
    /// Whose turn it is to print lines that wait.
    turn: usize,
    /// What the attached guest may send while others wait: as much as they have.
    credit: usize,
    /// VMs (bit `n`: VM `n`) whose UARTs have room again.
    freed: u64,
}

impl<U: Uart> Console<U> {
    /// A console that swallows all until it has a UART.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            screen: Screen {
                uart: None,
                out: VecDeque::new(),
                colour: false,
                line_open: false,
            },
            interactive: false,
            escaped: false,
            sources: Vec::new(),
            attached: None,
            editor: None,
            turn: 0,
            credit: 0,
            freed: 0,
        }
    }

    /// Uses `uart` from now on.
    pub fn attach(&mut self, uart: U) {
        self.screen.uart = Some(uart);
    }

    /// Begins its work for guests: as somebody's terminal if `interactive`, one that understands `colour`. If the UART is never
    /// `told` to have room, who prints waits for it.
    pub fn start(&mut self, interactive: bool, colour: bool, told: bool) {
        if told {
            self.screen.out.reserve(OUT_BYTES);
        }
        (self.interactive, self.screen.colour) = (interactive, colour);
    }

    /// Makes room for VM `vm`, called `name`.
    pub fn add(&mut self, vm: usize, name: &str) {
        while self.sources.len() <= vm {
            self.sources.push(Source::default());
        }
        if let Some(source) = self.sources.get_mut(vm) {
            *source = Source::default();
            source.name.push_str(name);
        }
    }

    /// Shows guest `vm` from now on, if the console is a terminal at all.
    pub fn show(&mut self, vm: usize) {
        if !self.interactive || self.attached == Some(vm) {
            return;
        }
        if self.editor.is_none() {
            self.leave();
            // It was shown already.
            if let Some(source) = self.attached.and_then(|old| self.sources.get_mut(old)) {
                source.begin_line();
            }
        }
        self.attached = Some(vm);
        if self.editor.is_none() {
            self.enter();
        }
    }

    /// Gives the monitor the terminal, or takes it away.
    pub fn monitor(&mut self, open: bool) {
        self.leave();
        self.editor = open.then(Editor::default);
        self.enter();
    }

    /// Completes the monitor's last word, where a name can be one of `names`, or shows what there is.
    pub fn complete(&mut self, names: &[&str]) {
        let Some(mut editor) = self.editor.take() else {
            return;
        };
        let added = editor.complete(names, &mut |word| {
            self.leave();
            self.line(format_args!("  {word}"));
        });
        let line = editor.line();
        let new = line.len() - added;
        self.screen.put_all(line.get(new..).unwrap_or_default());
        self.editor = Some(editor);
        if !self.screen.line_open {
            self.enter();
        }
    }

    /// Ends the open line for good.
    pub fn leave(&mut self) {
        if self.screen.line_open {
            self.screen.put_style(b"\x1b[0m");
            self.screen.end_line();
        }
    }

    /// Asks for an interrupt when there is input.
    pub fn listen(&mut self) {
        if let Some(uart) = &mut self.screen.uart {
            uart.listen();
        }
    }

    /// Prints a line of tagvisor's own.
    pub fn line(&mut self, text: fmt::Arguments<'_>) {
        let was_open = self.screen.begin_line();
        // Writing to the UART cannot fail; formatting can only if a Display of ours says so.
        let _ = self.screen.write_fmt(text);
        self.end_line(was_open);
    }

    /// Prints the JSON report as the line the host tool looks for.
    pub fn report(&mut self, key: &str, json: &str) {
        self.line(format_args!("{}{key} {json}", char::from(REPORT_MARK)));
    }

    /// Prints bytes that guest `vm` sent while it had room, at most [`KEPT_BYTES`].
    pub fn guest_bytes(&mut self, vm: usize, bytes: &[u8]) {
        let mut rest = bytes;
        if self.shown() != Some(vm)
            && let Some(source) = self.sources.get_mut(vm)
            && source.lines == 0
        {
            // The last byte of a line that is too long cuts it.
            let room = (LINE_BYTES - 1).saturating_sub(source.text.len());
            let first = bytes.get(..room).unwrap_or(bytes);
            let (text, others) = bytes.split_at(source.filter.pass(first));
            source.text.extend_from_slice(text);
            rest = others;
        }
        for byte in rest {
            self.guest_byte(vm, *byte);
        }
    }

    /// Prints a byte that guest `vm` sent. Returns whether there is room for more than [`TRANSMIT_HEADROOM`] others.
    pub fn guest_byte(&mut self, vm: usize, byte: u8) -> bool {
        let shown = self.shown() == Some(vm);
        let Some(source) = self.sources.get_mut(vm) else {
            return true;
        };
        let before = source.text.len();
        if before >= LINE_BYTES + KEPT_BYTES + TRANSMIT_HEADROOM {
            // It does not look whether there is room.
            return false;
        }
        source
            .text
            .extend_from_slice(source.filter.push(byte, shown));
        let cut = source.lines == 0 && source.text.len() >= LINE_BYTES;
        let ends = byte == b'\n' || cut;
        if shown {
            self.show_more(vm, before, ends);
        } else if ends {
            if byte != b'\n' {
                source.text.push(b'\n');
                source.filter.begin_line();
            }
            source.lines += 1;
            self.pump();
        }
        let crowded = shown && self.is_crowded();
        let Some(source) = self.sources.get_mut(vm) else {
            return true;
        };
        source.full = crowded || !shown && source.text.len() >= LINE_BYTES;
        !source.full
    }

    /// Prints what guest `vm` left of a line; called when it ends.
    pub fn flush_guest(&mut self, vm: usize) {
        if self.shown() == Some(vm) {
            self.leave();
        } else {
            while self.print_line(vm, true) {}
        }
        if let Some(source) = self.sources.get_mut(vm) {
            source.begin_line();
            source.full = false;
        }
    }

    /// Takes the next input, if there is any.
    pub fn input(&mut self) -> Option<Input> {
        while let Some(byte) = self.screen.uart.as_mut().and_then(Uart::get) {
            if let Some(input) = self.interpret(byte) {
                return Some(input);
            }
        }
        None
    }

    /// Goes on with what waits for the UART. Returns the VMs (bit `n`: VM `n`) whose UARTs have room again.
    pub fn drain(&mut self) -> u64 {
        self.screen.send_waiting();
        self.pump();
        core::mem::take(&mut self.freed)
    }

    /// Sends all that is on its way, however long that takes.
    #[inline(never)]
    pub fn flush(&mut self) {
        while let (Some(uart), Some(byte)) = (&mut self.screen.uart, self.screen.out.pop_front()) {
            uart.put(byte);
        }
    }

    fn interpret(&mut self, byte: u8) -> Option<Input> {
        if !core::mem::take(&mut self.escaped) {
            if byte == ESCAPE {
                self.escaped = true;
                return None;
            }
            return match &mut self.editor {
                Some(editor) => {
                    let edit = editor.key(byte);
                    self.edit(edit, byte)
                }
                None => self.interactive.then_some(Input::Byte(byte)),
            };
        }
        Some(Input::Command(match byte {
            b'q' => Command::Quit,
            b't' => Command::Timeout,
            b'r' => Command::Report,
            b'n' => Command::Next,
            b'm' => Command::Monitor,
            b'h' | b'?' => Command::Help,
            ESCAPE | b']' => return Some(Input::Byte(ESCAPE)),
            _ => return None,
        }))
    }

    /// Shows what a key has done to the monitor's line.
    fn edit(&mut self, edit: Edit, key: u8) -> Option<Input> {
        match edit {
            Edit::Nothing => {}
            Edit::Add(_) => self.screen.put(key),
            Edit::Erase(count) => {
                for _ in 0..count {
                    self.screen.put_all(b"\x08 \x08");
                }
            }
            Edit::Enter => {
                self.leave();
                return self
                    .editor
                    .as_mut()
                    .map(|editor| Input::Line(editor.take()));
            }
            Edit::Complete => return Some(Input::Complete),
            Edit::Leave => return Some(Input::Leave),
        }
        None
    }

    /// The guest whose bytes are shown at once.
    fn shown(&self) -> Option<usize> {
        self.attached.filter(|_| self.editor.is_none())
    }

    /// Whether the attached guest has to wait.
    fn is_crowded(&self) -> bool {
        match self.screen.free() {
            ..BYTE_ROOM => true,
            ..LINE_ROOM if self.credit == 0 => self.sources.iter().any(|source| source.lines > 0),
            _ => false,
        }
    }

    /// Prints lines that wait, as long as there is room, and tells the guests that there is room again.
    fn pump(&mut self) {
        let shown = self.shown();
        let mut idle = 0;
        while idle < self.sources.len() && self.screen.free() >= LINE_ROOM {
            self.turn += 1;
            if self.turn >= self.sources.len() {
                self.turn = 0;
            }
            let is_shown = shown == Some(self.turn);
            idle += 1;
            if !is_shown && self.print_line(self.turn, false) {
                idle = 0;
            }
            if let Some(source) = self.sources.get_mut(self.turn)
                && source.full
                && (is_shown || source.text.len() < LINE_BYTES)
            {
                source.full = false;
                self.freed |= 1 << self.turn;
            }
        }
    }

    /// Prints the first whole line that waits of a guest, or `any` that has begun. Returns whether there was one.
    fn print_line(&mut self, vm: usize, any: bool) -> bool {
        let Some(source) = self.sources.get_mut(vm) else {
            return false;
        };
        if source.lines == 0 && (!any || source.text.is_empty()) {
            return false;
        }
        let end = source.text.iter().position(|byte| *byte == b'\n');
        let end = end.unwrap_or(source.text.len());
        let was_open = self.screen.begin_line();
        self.screen.put_name(vm, &source.name);
        self.screen.put_text(
            (vm, &source.name),
            source.text.get(..end).unwrap_or_default(),
        );
        source.text.drain(..source.text.len().min(end + 1));
        source.lines = source.lines.saturating_sub(1);
        self.credit = (self.credit + end).min(LINE_BYTES);
        self.end_line(was_open);
        true
    }

    /// Shows what the attached guest has sent beyond `from`, and `ends` its line.
    fn show_more(&mut self, vm: usize, from: usize, ends: bool) {
        let Some(source) = self.sources.get_mut(vm) else {
            return;
        };
        let screen = &mut self.screen;
        let more = source.text.get(from..).unwrap_or_default();
        let more = more.strip_suffix(b"\n").unwrap_or(more);
        if ends || !more.is_empty() {
            if !core::mem::replace(&mut screen.line_open, true) {
                screen.put_name(vm, &source.name);
            }
            screen.put_text((vm, &source.name), more);
            self.credit = self.credit.saturating_sub(1);
        }
        if ends {
            // What the line has done to colours.
            if source.text.contains(&0x1b) {
                screen.put_all(b"\x1b[0m");
            }
            screen.end_line();
            source.begin_line();
        }
    }

    /// Shows the open line of whoever has the terminal.
    pub fn enter(&mut self) {
        if let Some(editor) = &self.editor {
            self.screen.put_all(PROMPT);
            self.screen.put_all(editor.line());
            self.screen.line_open = true;
        } else if let Some(vm) = self.attached {
            while self.print_line(vm, false) {}
            self.show_more(vm, 0, false);
        }
    }

    /// Ends a line, and shows the one again that it interrupted.
    fn end_line(&mut self, was_open: bool) {
        self.screen.end_line();
        if was_open {
            self.enter();
        }
    }
}

impl<U: Uart> Screen<U> {
    /// Takes the open line away. Returns whether there was any.
    fn begin_line(&mut self) -> bool {
        let was_open = core::mem::take(&mut self.line_open);
        if was_open {
            if self.colour {
                self.put_all(b"\x1b[0m\r\x1b[K");
            } else {
                self.end_line();
            }
        }
        was_open
    }

    fn end_line(&mut self) {
        self.put_all(b"\r\n");
        self.line_open = false;
    }

    /// Prints the name of VM `vm`.
    fn put_name(&mut self, vm: usize, name: &str) {
        /// Green, yellow, blue, magenta, cyan, red.
        const COLOURS: &[u8; 6] = b"234561";
        let colour = COLOURS.get(vm % COLOURS.len()).copied().unwrap_or(b'2');
        self.put_style(&[0x1b, b'[', b'3', colour, b'm']);
        self.put_all(name.as_bytes());
        self.put_all(b"| ");
        self.put_style(b"\x1b[0m");
    }

    /// Prints a part of a guest's line; a carriage return goes back to behind its name.
    fn put_text(&mut self, (vm, name): (usize, &str), text: &[u8]) {
        for part in text.split_inclusive(|byte| *byte == b'\r') {
            self.put_all(part);
            if part.ends_with(b"\r") {
                self.put_name(vm, name);
            }
        }
    }

    /// Prints what only a terminal understands.
    fn put_style(&mut self, sequence: &[u8]) {
        if self.colour {
            self.put_all(sequence);
        }
    }

    fn put_all(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        if let Some(uart) = &mut self.uart
            && self.out.is_empty()
        {
            while let [first, others @ ..] = rest
                && uart.try_put(*first)
            {
                rest = others;
            }
        }
        rest.iter().for_each(|byte| self.put(*byte));
    }

    #[inline(never)]
    fn put(&mut self, byte: u8) {
        let Some(uart) = &mut self.uart else { return };
        if self.out.is_empty() {
            if uart.try_put(byte) {
                return;
            }
            if self.out.capacity() == 0 {
                return uart.put(byte);
            }
            uart.tell_room(true);
        } else if self.out.len() >= OUT_BYTES
            && let Some(first) = self.out.pop_front()
        {
            // Guests are stopped before: it is a line of our own.
            uart.put(first);
        }
        self.out.push_back(byte);
    }

    /// Room for what waits for the UART.
    fn free(&self) -> usize {
        OUT_BYTES.saturating_sub(self.out.len())
    }

    fn send_waiting(&mut self) {
        let Some(uart) = &mut self.uart else { return };
        if self.out.is_empty() {
            return;
        }
        while let Some(byte) = self.out.front() {
            if !uart.try_put(*byte) {
                return;
            }
            self.out.pop_front();
        }
        uart.tell_room(false);
    }
}

impl<U: Uart> Default for Console<U> {
    fn default() -> Self {
        Self::new()
    }
}

impl<U: Uart> Write for Screen<U> {
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

/// Text that the user reads about the keys.
pub const HELP: &str = "Ctrl-] then: q stop all VMs, report, power off; m monitor; r report now; n console of the next VM; ] send Ctrl-] itself; h this help";

#[cfg(test)]
mod tests;
