//! Takes the machine-readable report out of the console's stream, and notices EL2's own fatal lines.

/// What begins a report's line.
const REPORT_START: u8 = 0x1e;
/// A line of a report is never longer; what is, is not a report.
const LONGEST_REPORT: usize = 4 << 20;
/// What EL2 begins its last line with when it stops itself.
const FATAL: [&[u8]; 2] = [b"[tagvisor] PANIC", b"[tagvisor] FATAL"];

/// Splits the console's bytes into what a person sees and the report.
///
/// The report is one line, `\x1eKEY {json}\n`. A guest does not know the key, so it cannot forge one.
#[derive(Debug)]
pub struct ReportFilter {
    /// `\x1eKEY ` in full.
    start: Vec<u8>,
    /// The bytes from the last `\x1e` on, while they may still be a report.
    held: Vec<u8>,
    report: Option<String>,
    line: Vec<u8>,
    fatal: bool,
}

impl ReportFilter {
    /// Makes a filter for reports that are marked with `key`.
    #[must_use]
    pub fn new(key: &str) -> Self {
        let start = [&[REPORT_START], key.as_bytes(), b" "].concat();
        Self {
            start,
            held: Vec::new(),
            report: None,
            line: Vec::new(),
            fatal: false,
        }
    }

    /// Takes bytes of the console; returns those to show.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut shown = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            self.push_byte(byte, &mut shown);
        }
        self.watch(&shown);
        shown
    }

    /// Ends the stream; returns what was held back.
    pub fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    /// Returns the last whole report.
    #[must_use]
    pub fn report(&self) -> Option<&str> {
        self.report.as_deref()
    }

    /// Whether a line said that EL2 stopped itself. No guest can begin such a line.
    #[must_use]
    pub const fn saw_fatal_line(&self) -> bool {
        self.fatal
    }

    fn push_byte(&mut self, byte: u8, shown: &mut Vec<u8>) {
        if self.held.is_empty() && byte != REPORT_START {
            shown.push(byte);
            return;
        }
        if byte == REPORT_START {
            shown.append(&mut self.held);
        }
        if byte == b'\n' && self.held.starts_with(&self.start) {
            let json = String::from_utf8_lossy(&self.held[self.start.len()..]);
            self.report = Some(json.trim_end_matches('\r').to_owned());
            self.held.clear();
            return;
        }
        self.held.push(byte);
        let compared = self.held.len().min(self.start.len());
        if self.held[..compared] != self.start[..compared] || self.held.len() > LONGEST_REPORT {
            shown.append(&mut self.held);
        }
    }

    fn watch(&mut self, shown: &[u8]) {
        for &byte in shown {
            if byte == b'\n' || byte == b'\r' {
                self.line.clear();
            } else if self.line.len() < FATAL[0].len() {
                self.line.push(byte);
                self.fatal |= FATAL.contains(&self.line.as_slice());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(chunks: &[&str]) -> (String, Option<String>) {
        let mut filter = ReportFilter::new("9f86");
        let mut shown: Vec<u8> = chunks
            .iter()
            .flat_map(|chunk| filter.push(chunk.as_bytes()))
            .collect();
        shown.extend(filter.finish());
        (
            String::from_utf8(shown).unwrap(),
            filter.report().map(str::to_owned),
        )
    }

    #[test]
    fn the_report_is_taken_out_of_the_stream() {
        let (shown, report) = filtered(&["boot\n\x1e9f86 {\"version\":1}\r\nend\n"]);
        assert_eq!(
            (shown.as_str(), report.as_deref()),
            ("boot\nend\n", Some("{\"version\":1}"))
        );
    }

    #[test]
    fn chunks_may_end_anywhere_in_a_report() {
        let text = "a\x1e9f86 {}\nb";
        for at in 0..text.len() {
            let (shown, report) = filtered(&[&text[..at], &text[at..]]);
            assert_eq!(
                (shown.as_str(), report.as_deref()),
                ("ab", Some("{}")),
                "cut at {at}"
            );
        }
    }

    #[test]
    fn a_wrong_key_is_shown_and_is_no_report() {
        let text = "\x1e9f87 {}\n\x1e\x1e9f8\n\x1e";
        assert_eq!(filtered(&[text]), (text.to_owned(), None));
    }

    #[test]
    fn the_last_report_counts_and_an_unfinished_one_does_not() {
        let (_, report) = filtered(&["\x1e9f86 {\"a\":1}\n\x1e9f86 {\"a\":2}\n\x1e9f86 {\"a\":3}"]);
        assert_eq!(report.as_deref(), Some("{\"a\":2}"));
    }

    #[test]
    fn only_a_line_of_el2_itself_is_fatal() {
        let fatal = |text: &str| {
            let mut filter = ReportFilter::new("9f86");
            filter.push(text.as_bytes());
            filter.saw_fatal_line()
        };
        assert!(fatal("x\r\n[tagvisor] PANIC at here\n"));
        assert!(fatal("[tagvisor] FATAL no DTB: pass one\n"));
        assert!(!fatal("debian| [tagvisor] PANIC\n[tagvisor] INFO PANIC\n"));
    }
}
