//! What is written down: events and the counts at their time.

use std::fmt;

/// The exception levels of the architecture.
pub const LEVELS: usize = 4;

/// When the counts are written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Before the first instruction at EL1.
    FirstGuestInstruction,
    /// Before a marking hint at EL0 or EL1.
    Mark(u8),
    /// At QEMU's end.
    Exit,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FirstGuestInstruction => f.write_str("first-guest-instruction"),
            Self::Mark(number) => write!(f, "mark-{number:#x}"),
            Self::Exit => f.write_str("exit"),
        }
    }
}

/// Writes the line of an event; `counts` by exception level.
pub fn line(event: Event, counts: [u64; LEVELS]) -> String {
    let [el0, el1, el2, el3] = counts;
    format!("{event} el0={el0} el1={el1} el2={el2} el3={el3}\n")
}

/// Returns the number of a marking hint: `HINT #0x60` to `#0x7f` (DDI 0487, C6.2: unallocated hints are no-ops).
pub fn mark_of(instruction: u32) -> Option<u8> {
    let number = instruction >> 5 & 0x7f;
    let is_hint = instruction & 0xffff_f01f == 0xd503_201f;
    (is_hint && number >= 0x60).then_some(number as u8)
}

/// Returns the exception level in a value of PSTATE (CPSR's form: bits 3:2).
pub const fn level_of(pstate: u64) -> usize {
    (pstate >> 2 & 3) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_of_a_line_is_stable() {
        let counts = [1, 2, 3, 0];
        assert_eq!(
            line(Event::FirstGuestInstruction, counts),
            "first-guest-instruction el0=1 el1=2 el2=3 el3=0\n"
        );
        assert_eq!(
            line(Event::Mark(0x61), counts),
            "mark-0x61 el0=1 el1=2 el2=3 el3=0\n"
        );
        assert_eq!(line(Event::Exit, counts), "exit el0=1 el1=2 el2=3 el3=0\n");
    }

    #[test]
    fn only_the_upper_unallocated_hints_are_marks() {
        let hint = |number: u32| 0xd503_201f | number << 5;
        assert_eq!(mark_of(hint(0x60)), Some(0x60));
        assert_eq!(mark_of(hint(0x7f)), Some(0x7f));
        assert_eq!(mark_of(hint(0x5f)), None, "below the range");
        assert_eq!(mark_of(hint(0)), None, "NOP");
        assert_eq!(
            mark_of(hint(0x61) | 1 << 31 >> 4),
            None,
            "another instruction"
        );
        assert_eq!(
            mark_of(0xd503_2fff & !0x1f),
            None,
            "not the zero register's number"
        );
    }

    #[test]
    fn the_level_is_in_bits_3_and_2() {
        assert_eq!([0x3c0, 0x3c5, 0x3c9, 0x3cd].map(level_of), [0, 1, 2, 3]);
    }
}
