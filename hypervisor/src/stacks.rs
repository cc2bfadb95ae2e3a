//! Where the stacks of the CPUs lie that firmware starts for us; those of the boot CPU are in the image.
//!
//! Each CPU has two, each above a page that is never mapped: one for faults at EL2, of which a full stack may be the cause.

use core::ops::Range;

use stage2::addr::PAGE_SIZE;

const FAULT_STACK_BYTES: u64 = 16 << 10;
const STACK_BYTES: u64 = 64 << 10;

/// The stacks of one CPU, by the physical address of the lower guard page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stacks(u64);

impl Stacks {
    /// Bytes that the stacks of one CPU take, guard pages included.
    pub const BYTES: u64 = PAGE_SIZE + FAULT_STACK_BYTES + PAGE_SIZE + STACK_BYTES;

    /// Divides `range` into stacks for as many CPUs as it has room for.
    pub fn in_range(range: &Range<u64>) -> impl Iterator<Item = Self> {
        let count = range.end.saturating_sub(range.start) / Self::BYTES;
        let start = range.start;
        (0..count).map(move |index| Self(start + index * Self::BYTES))
    }

    /// Returns the pages that must not be mapped.
    #[must_use]
    pub const fn guards(self) -> [Range<u64>; 2] {
        let upper = self.fault_stack_top();
        [self.0..self.0 + PAGE_SIZE, upper..upper + PAGE_SIZE]
    }

    /// Returns where the stack for faults begins.
    #[must_use]
    pub const fn fault_stack_top(self) -> u64 {
        self.0 + PAGE_SIZE + FAULT_STACK_BYTES
    }

    /// Returns where the stack begins.
    #[must_use]
    pub const fn stack_top(self) -> u64 {
        self.0 + Self::BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stack_lies_above_a_guard_page_and_nothing_overlaps() {
        let range = 0x4000_0000..0x4000_0000 + 3 * Stacks::BYTES + PAGE_SIZE;
        let stacks: Vec<Stacks> = Stacks::in_range(&range).collect();
        assert_eq!(stacks.len(), 3);
        let mut at = range.start;
        for stacks in stacks {
            let [lower, upper] = stacks.guards();
            assert_eq!((lower.start, lower.end), (at, at + PAGE_SIZE));
            assert_eq!(stacks.fault_stack_top() - lower.end, FAULT_STACK_BYTES);
            assert_eq!(upper.start, stacks.fault_stack_top());
            assert_eq!(stacks.stack_top() - upper.end, STACK_BYTES);
            assert_eq!(stacks.stack_top() % 16, 0);
            at = stacks.stack_top();
        }
    }

    #[test]
    fn there_are_none_without_room() {
        assert_eq!(Stacks::in_range(&(0..Stacks::BYTES - 1)).count(), 0);
        assert_eq!(Stacks::in_range(&(8..8)).count(), 0);
    }
}
