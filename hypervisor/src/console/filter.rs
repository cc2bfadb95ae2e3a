//! What of a guest's output may reach the terminal.

/// Control sequences are no longer than this, with ESC and [.
const SEQUENCE_BYTES: usize = 16;

const ESC: u8 = 0x1b;
const C2: u8 = 0xc2;

/// Lets text pass, drops control characters, and of control sequences all that could leave the guest's own line.
///
/// On the screen a guest may go back and forth within what it has written after its VM's name, erase to the right of it, and
/// choose colours. How far back is counted in ASCII characters: those surely take one place each.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter {
    /// What passes goes through here, and what may be the beginning of a sequence waits here.
    bytes: [u8; SEQUENCE_BYTES],
    /// Bytes of a sequence so far, ESC and [ included; more than it holds: it is too long.
    length: usize,
    /// Places behind the name, at least.
    column: usize,
    /// Waits for what follows: a carriage return, which is nothing if the line ends, or C2.
    held: u8,
}

impl Filter {
    /// Takes a byte of the guest, and returns what may pass: only text and ends of lines if it is not for the `screen`.
    pub fn push(&mut self, byte: u8, screen: bool) -> &[u8] {
        if self.length > 0 && byte >= b' ' {
            return self.collect(byte, screen);
        }
        self.length = 0;
        let held = core::mem::take(&mut self.held);
        let returns = held == b'\r' && screen && !matches!(byte, b'\r' | b'\n');
        if returns || byte == b'\n' {
            self.column = 0;
        }
        let mut passes = true;
        match byte {
            ESC => (self.length, passes) = (1, false),
            b'\r' | C2 => (self.held, passes) = (byte, false),
            b'\n' | b'\t' => {}
            8 if screen && self.column > 0 => self.column -= 1,
            0..b' ' | 0x7f => passes = false,
            // U+0080 to U+009F, in UTF-8 C2 80 to C2 9F, are control characters too: U+009B begins what ESC [ begins.
            0x80..0xa0 if held == C2 => return &[],
            _ => self.column += usize::from(byte.is_ascii()),
        }
        [self.bytes[0], self.bytes[1]] = [held, byte];
        let first = usize::from(!returns && held != C2);
        self.bytes
            .get(first..1 + usize::from(passes))
            .unwrap_or_default()
    }

    /// Lets text pass that begins nothing and ends nothing. Returns how many bytes of it there are at the start of `bytes`.
    pub fn pass(&mut self, bytes: &[u8]) -> usize {
        if self.length > 0 || self.held != 0 {
            return 0;
        }
        let other = bytes
            .iter()
            .position(|byte| !(b' '..0x7f).contains(byte))
            .unwrap_or(bytes.len());
        self.column += other;
        other
    }

    /// The line has ended though the guest has not ended it.
    pub const fn begin_line(&mut self) {
        self.column = 0;
    }

    /// Takes a byte of a control sequence.
    fn collect(&mut self, byte: u8, screen: bool) -> &[u8] {
        if let Some(slot) = self.bytes.get_mut(self.length) {
            *slot = byte;
        }
        self.length += 1;
        let begins = self.length == 2 && byte == b'[';
        if begins || self.length > 2 && byte < b'@' {
            return &[];
        }
        let length = core::mem::take(&mut self.length);
        let Some(([esc, _, parameters @ ..], [_])) = self
            .bytes
            .get_mut(..length)
            .and_then(|bytes| bytes.split_at_mut_checked(length - 1))
        else {
            return &[];
        };
        *esc = ESC;
        if !screen || !may_pass(byte, parameters, &mut self.column) {
            return &[];
        }
        self.bytes.get(..length).unwrap_or_default()
    }
}

fn may_pass(end: u8, parameters: &[u8], column: &mut usize) -> bool {
    let number = parameters.iter().try_fold(0_usize, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| usize::from(digit - b'0'));
        Some((number * 10 + digit?).min(9999))
    });
    match (end, number) {
        // Colours.
        (b'm', _) => parameters.iter().all(|byte| matches!(byte, b'0'..=b';')),
        // Erase to the end of the line, or of the screen.
        (b'K' | b'J', Some(0)) => true,
        // Insert and delete characters; go right, where the edge of the screen may stop it.
        (b'@' | b'P' | b'C', Some(_)) => true,
        (b'D', Some(count)) if count.max(1) <= *column => {
            *column -= count.max(1);
            true
        }
        _ => false,
    }
}
