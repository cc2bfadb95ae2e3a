//! A set of numbers that finds its smallest member in a few steps, however large it is.

use alloc::vec::Vec;

use crate::addr::try_filled;

/// A set of numbers below a limit: a tree of words in which a bit says that a word below it has
/// one. Four levels reach 16 million numbers.
#[derive(Debug, Default)]
pub(crate) struct BitSet {
    /// The members, then summaries; the last level is one word.
    levels: Vec<Vec<u64>>,
}

impl BitSet {
    /// The empty set of numbers below `limit`; `None` if the heap has no room for it.
    pub(crate) fn new(limit: u64) -> Option<Self> {
        let mut levels = Vec::new();
        levels.try_reserve_exact(5).ok()?;
        let mut words = limit.div_ceil(64).max(1);
        loop {
            levels.push(try_filled(0, words)?);
            if words == 1 {
                return Some(Self { levels });
            }
            words = words.div_ceil(64);
        }
    }

    /// Adds a number; one beyond the limit is ignored.
    pub(crate) fn insert(&mut self, number: u64) {
        let mut at = number;
        for level in &mut self.levels {
            let Some(word) = level.get_mut((at / 64) as usize) else {
                return;
            };
            let was_empty = *word == 0;
            *word |= 1 << (at % 64);
            if !was_empty {
                return;
            }
            at /= 64;
        }
    }

    /// Takes a number out.
    pub(crate) fn remove(&mut self, number: u64) {
        let mut at = number;
        for level in &mut self.levels {
            let Some(word) = level.get_mut((at / 64) as usize) else {
                return;
            };
            *word &= !(1 << (at % 64));
            if *word != 0 {
                return;
            }
            at /= 64;
        }
    }

    /// The smallest member.
    pub(crate) fn first(&self) -> Option<u64> {
        let mut at = 0;
        for level in self.levels.iter().rev() {
            let word = level.get(at as usize).filter(|word| **word != 0)?;
            at = at * 64 + u64::from(word.trailing_zeros());
        }
        Some(at)
    }

    /// Whether a number is a member.
    pub(crate) fn contains(&self, number: u64) -> bool {
        let word = self
            .levels
            .first()
            .and_then(|level| level.get((number / 64) as usize));
        word.is_some_and(|word| word >> (number % 64) & 1 != 0)
    }

    /// Bytes of the set.
    pub(crate) fn metadata_bytes(&self) -> u64 {
        self.levels.iter().map(|level| 8 * level.len() as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_smallest_member_is_found_at_every_size() {
        for limit in [1, 64, 65, 4096, 4097, 300_000] {
            let (mut set, mut model) = (BitSet::new(limit).unwrap(), BTreeSet::new());
            let mut number = 1_u64;
            for step in 0..4000 {
                number = number
                    .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                    .wrapping_add(step);
                let at = (number >> 20) % limit;
                if number >> 13 & 3 == 0 {
                    set.insert(at);
                    model.insert(at);
                } else {
                    set.remove(at);
                    model.remove(&at);
                }
                assert_eq!(set.first(), model.first().copied(), "limit {limit}");
                assert_eq!(set.contains(at), model.contains(&at));
            }
            while let Some(first) = set.first() {
                set.remove(first);
                assert!(model.remove(&first));
            }
            assert!(model.is_empty());
        }
    }

    #[test]
    fn a_number_beyond_the_limit_is_no_member() {
        let mut set = BitSet::new(64).unwrap();
        set.insert(64);
        assert_eq!(set.first(), None);
        assert!(!set.contains(64));
    }
}
