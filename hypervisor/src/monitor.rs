//! The monitor: commands for VMs and memory, typed on the console. What is typed, and what it means; the run loop does it.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::fmt;

use crate::vcpu::GuestContext;

/// The longest line that is taken.
const LINE_BYTES: usize = 160;

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Tells of all VMs and templates.
    List,
    /// Makes a VM.
    Create,
    /// Starts a VM that has ended.
    Start,
    /// Ends a VM.
    Stop,
    /// Starts a VM anew.
    Reset,
    /// Lets no vCPU of a VM run.
    Pause,
    /// Lets them run again.
    Resume,
    /// Ends a VM and forgets it.
    Destroy,
    /// Sets how much tag storage a VM may have.
    Budget,
    /// Leaves the monitor for a VM's console.
    Attach,
    /// Tells what VMs have cost.
    Stats,
    /// Prints the report.
    Memory,
    /// Prints the carve-out as a map.
    Blocks,
    /// Records a VM's exits, and prints the last.
    Trace,
    /// Sets what tagvisor logs.
    Log,
    /// Stops all.
    Quit,
    /// Tells what there is.
    Help,
}

/// All commands: words, and of arguments the kind, in capitals; those in brackets may be left out.
const COMMANDS: &[(Verb, &str, &str)] = &[
    (Verb::List, "vm list", "all VMs, and templates of others"),
    (
        Verb::Create,
        "vm create TEMPLATE [NAME]",
        "a new VM, called as its template or NAME",
    ),
    (Verb::Start, "vm start VM", "start one that has ended"),
    (Verb::Stop, "vm stop VM", "end it, as if its power went"),
    (Verb::Reset, "vm reset VM", "start it anew"),
    (Verb::Pause, "vm pause VM", "let it not run"),
    (Verb::Resume, "vm resume VM", "let it run again"),
    (Verb::Destroy, "vm destroy VM", "end it and forget it"),
    (
        Verb::Budget,
        "vm budget VM SIZE",
        "the most tag storage for it: bytes, or K, M, G",
    ),
    (
        Verb::Attach,
        "attach VM",
        "its console; Ctrl-C: the last one's",
    ),
    (Verb::Stats, "stats", "exits, faults and moves of each VM"),
    (Verb::Memory, "memory", "tag storage and memory of VMs"),
    (Verb::Blocks, "blocks", "the carve-out as a map"),
    (
        Verb::Trace,
        "trace [VM]",
        "record its exits and print the last; without VM: stop",
    ),
    (Verb::Log, "log LEVEL", "error, warn, info, debug or trace"),
    (
        Verb::Quit,
        "quit",
        "stop all VMs, print the report, power off",
    ),
    (Verb::Help, "help", "this"),
];

/// Levels of [`Verb::Log`].
const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// A command that was typed, with its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// What to do.
    pub verb: Verb,
    /// With what; empty: nothing was said.
    pub args: [&'a str; 2],
}

/// One word more than commands have.
const WORDS: usize = 5;

#[inline(never)]
fn words(text: &[u8]) -> [&[u8]; WORDS] {
    let mut words: [&[u8]; WORDS] = [&[]; WORDS];
    let mut places = words.iter_mut();
    for word in text.split(|byte| *byte == b' ') {
        if !word.is_empty()
            && let Some(place) = places.next()
        {
            *place = word;
        }
    }
    words
}

/// Text that is known to be ASCII.
fn ascii(bytes: &[u8]) -> &str {
    core::str::from_utf8(bytes).unwrap_or_default()
}

/// How far words are those of a command.
enum Match {
    /// They are its beginning, all that must be is there, and this would come next.
    Whole(&'static [u8]),
    /// They are its beginning, and this comes next.
    Part(&'static [u8]),
    /// They are not.
    No,
}

fn is_word(part: &[u8]) -> bool {
    part.first().is_some_and(u8::is_ascii_lowercase)
}

#[inline(never)]
fn compare(pattern: &'static str, given: &[&[u8]; WORDS]) -> Match {
    for (part, word) in words(pattern.as_bytes()).iter().zip(given) {
        if word.is_empty() {
            return match part.first() {
                None | Some(b'[') => Match::Whole(part),
                Some(_) => Match::Part(part),
            };
        }
        if part.is_empty() || is_word(part) && part != word {
            break;
        }
    }
    Match::No
}

/// Understands a line.
///
/// # Errors
///
/// It is no command: its first word, with which others may begin.
pub fn parse(line: &[u8]) -> Result<Request<'_>, &[u8]> {
    let given = words(line);
    for &(verb, pattern, _) in COMMANDS {
        if let Match::Whole(_) = compare(pattern, &given) {
            let mut args = [""; 2];
            let mut filled = args.iter_mut();
            // Arguments come last.
            for (part, word) in words(pattern.as_bytes()).iter().zip(given) {
                if !is_word(part)
                    && let Some(arg) = filled.next()
                {
                    *arg = ascii(word);
                }
            }
            return Ok(Request { verb, args });
        }
    }
    Err(given.first().copied().unwrap_or_default())
}

/// Returns how the commands are that begin with a word, all if it is empty, and what they do.
pub fn help(first: &[u8]) -> impl Iterator<Item = (&'static str, &'static str)> {
    let all = COMMANDS.iter().map(|&(_, pattern, what)| (pattern, what));
    all.filter(move |(pattern, _)| {
        first.is_empty() || words(pattern.as_bytes()).first() == Some(&first)
    })
}

/// Calls `each` with what the last word of a line can become, where a name can be one of `names`.
fn candidates(line: &[u8], names: &[&str], each: &mut dyn FnMut(&str)) {
    let start = word_start(line);
    let begun = line.get(start..).unwrap_or_default();
    let given = words(line.get(..start).unwrap_or_default());
    let mut before: &[u8] = &[];
    for &(_, pattern, _) in COMMANDS {
        let (Match::Part(next) | Match::Whole(next)) = compare(pattern, &given) else {
            continue;
        };
        let word = [ascii(next)];
        let all = match next {
            b"VM" | b"[VM]" | b"TEMPLATE" => names,
            b"LEVEL" => &LEVELS,
            // Commands that begin with the same words follow each other.
            next if is_word(next) && next != before => &word,
            _ => continue,
        };
        before = next;
        for name in all {
            if name.as_bytes().starts_with(begun) {
                each(name);
            }
        }
        if !is_word(next) {
            return;
        }
    }
}

/// Where the last word begins.
fn word_start(line: &[u8]) -> usize {
    let space = line.iter().rposition(|byte| *byte == b' ');
    space.map_or(0, |space| space + 1)
}

/// What a key does to the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Nothing.
    Nothing,
    /// So many bytes are new at its end.
    Add(usize),
    /// So many characters are gone from its end.
    Erase(usize),
    /// It is complete.
    Enter,
    /// Its last word is to be completed.
    Complete,
    /// The monitor is left.
    Leave,
}

/// The line under way: ASCII.
#[derive(Clone, Debug, Default)]
pub struct Editor {
    line: Vec<u8>,
    /// Bytes of an escape sequence, as arrow keys send them: not used here.
    sequence: u8,
}

impl Editor {
    /// Returns the line.
    #[must_use]
    pub fn line(&self) -> &[u8] {
        &self.line
    }

    /// Begins a line, and returns the one before.
    pub fn take(&mut self) -> Vec<u8> {
        core::mem::take(&mut self.line)
    }

    /// Takes a key.
    pub fn key(&mut self, key: u8) -> Edit {
        if self.sequence > 0 {
            let goes_on = self.sequence == 1 && matches!(key, b'[' | b'O')
                || self.sequence == 2 && key.is_ascii_digit();
            self.sequence = if goes_on { 2 } else { 0 };
            return Edit::Nothing;
        }
        let length = self.line.len();
        match key {
            b'\r' | b'\n' => Edit::Enter,
            // Ctrl-C, Ctrl-D.
            3 | 4 => Edit::Leave,
            b'\t' => Edit::Complete,
            // Backspace and delete; Ctrl-U.
            8 | 0x7f | 0x15 => {
                let gone = if key == 0x15 { length } else { length.min(1) };
                self.line.truncate(length - gone);
                Edit::Erase(gone)
            }
            b' '..=b'~' if length < LINE_BYTES => {
                self.line.push(key);
                Edit::Add(1)
            }
            _ => {
                self.sequence = u8::from(key == 0x1b);
                Edit::Nothing
            }
        }
    }

    /// Adds to the line what its last word goes on with in each case, and returns how many bytes that is. If none, calls `each` with
    /// the words that it can become.
    pub fn complete(&mut self, names: &[&str], each: &mut dyn FnMut(&str)) -> usize {
        let (mut common, mut count): (Option<Vec<u8>>, _) = (None, 0);
        candidates(&self.line, names, &mut |word| {
            count += 1;
            let word = word.as_bytes();
            match &mut common {
                Some(common) => {
                    let same = common.iter().zip(word).take_while(|(one, two)| one == two);
                    common.truncate(same.count());
                }
                None => common = Some(word.to_vec()),
            }
        });
        let Some(mut common) = common else {
            return 0;
        };
        if count == 1 {
            common.push(b' ');
        }
        let begun = self.line.len() - word_start(&self.line);
        let more = common.get(begun..).unwrap_or_default();
        if more.is_empty() {
            candidates(&self.line, names, each);
        }
        self.line.extend_from_slice(more);
        more.len()
    }
}

/// Exits that are kept of a VM.
const TRACED: usize = 16;

/// The last exits of a VM for its own doing.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    exits: VecDeque<(usize, [u64; 3])>,
}

impl Trace {
    /// Keeps an exit of a vCPU.
    #[cold]
    #[inline(never)]
    pub fn record(&mut self, vcpu: usize, context: &GuestContext) {
        if self.exits.len() >= TRACED {
            self.exits.pop_front();
        }
        self.exits
            .push_back((vcpu, [context.pc, context.esr, context.far]));
    }

    /// Tells of each, the oldest first.
    pub fn lines(&self, print: impl Fn(fmt::Arguments<'_>)) {
        for (vcpu, [pc, esr, far]) in &self.exits {
            let class = esr >> 26 & 0x3f;
            print(format_args!(
                "vcpu={vcpu} pc={pc:#x} ec={class:#x} esr={esr:#x} far={far:#x}"
            ));
        }
    }
}

/// Reads a size: bytes, or with K, M or G.
#[must_use]
pub fn size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes() {
        [digits @ .., b'k' | b'K'] => (digits, 10),
        [digits @ .., b'm' | b'M'] => (digits, 20),
        [digits @ .., b'g' | b'G'] => (digits, 30),
        digits => (digits, 0),
    };
    let mut bytes = (!digits.is_empty()).then_some(0_u64)?;
    for digit in digits {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        bytes = bytes.checked_mul(10)?.checked_add(digit)?;
    }
    bytes.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests;
