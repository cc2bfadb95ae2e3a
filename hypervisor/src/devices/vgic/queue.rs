//! The interrupts of one virtual CPU that wait for a list register, and the choice among them.

use super::MAX_INTIDS;
use super::irq::Irq;
use super::list::MAX_LIST_REGISTERS;

const WORDS: usize = MAX_INTIDS / 64;

/// A set of INTIDs: a bitmap with a summary, so that an empty one costs one look.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    words: [u64; WORDS],
    /// Bit `n`: `words[n]` is not zero.
    summary: u8,
}

impl Queue {
    pub(super) fn insert(&mut self, intid: u16) {
        let index = usize::from(intid / 64);
        if let Some(word) = self.words.get_mut(index) {
            *word |= 1 << (intid % 64);
            self.summary |= 1 << index;
        }
    }

    pub(super) fn remove(&mut self, intid: u16) {
        let index = usize::from(intid / 64);
        if let Some(word) = self.words.get_mut(index) {
            *word &= !(1 << (intid % 64));
            if *word == 0 {
                self.summary &= !(1 << index);
            }
        }
    }

    /// Takes out the lowest INTID.
    pub(super) fn pop(&mut self) -> Option<u16> {
        let index = self.summary.trailing_zeros() as usize;
        let word = self.words.get_mut(index)?;
        let bit = word.trailing_zeros();
        *word &= word.wrapping_sub(1);
        if *word == 0 {
            self.summary &= self.summary.wrapping_sub(1);
        }
        Some((index as u32 * 64 + bit) as u16)
    }

    /// Says whether there are more than `limit` in the set.
    pub(super) fn exceeds(&self, limit: usize) -> bool {
        let mut count = 0;
        for index in Bits(u64::from(self.summary)) {
            let word = self.words.get(usize::from(index)).copied();
            let word = word.unwrap_or(0);
            // Most often there is one, and no need to count.
            count += if word & word.wrapping_sub(1) == 0 {
                1
            } else {
                word.count_ones() as usize
            };
        }
        count > limit
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        Bits(u64::from(self.summary)).flat_map(|index| {
            let word = self.words.get(usize::from(index)).copied();
            Bits(word.unwrap_or(0)).map(move |bit| index * 64 + bit)
        })
    }
}

/// The positions of the ones in a word, lowest first.
pub(super) struct Bits(pub(super) u64);

impl Iterator for Bits {
    type Item = u16;

    fn next(&mut self) -> Option<u16> {
        if self.0 == 0 {
            return None;
        }
        let bit = self.0.trailing_zeros() as u16;
        self.0 &= self.0 - 1;
        Some(bit)
    }
}

/// The best candidates for `capacity` list registers, and what did not fit.
///
/// With EOImode 0 the guest touches interrupts strictly by priority, so that is the order; an active one goes before
/// a pending one of the same priority, which cannot preempt it. With EOImode 1 an active interrupt may stay so for
/// long after its priority was dropped: pending ones go first. In both, one pending interrupt is always among the
/// chosen if there is any: the guest may take it (software can set the active state of others without a running
/// priority), and it is what the maintenance interrupt waits for.
pub(super) struct Selection {
    keys: [u32; MAX_LIST_REGISTERS],
    len: usize,
    capacity: usize,
    eoi_mode1: bool,
    /// Pending interrupts that did not fit.
    pending_left: usize,
    /// The best of them.
    best_left: u32,
    /// An active interrupt did not fit.
    pub(super) active_left: bool,
}

/// In a key: the interrupt is not active. Above the INTID, below the priority.
const INACTIVE: u32 = 1 << 15;
/// In a key: the class that goes after all others.
const LAST: u32 = 1 << 24;

impl Selection {
    pub(super) const fn new(capacity: usize, eoi_mode1: bool) -> Self {
        Self {
            keys: [0; MAX_LIST_REGISTERS],
            len: 0,
            capacity,
            eoi_mode1,
            pending_left: 0,
            best_left: u32::MAX,
            active_left: false,
        }
    }

    pub(super) fn offer(&mut self, intid: u16, irq: &Irq) {
        let mut key = u32::from(irq.priority()) << 16 | u32::from(intid);
        if !irq.is_active() {
            key |= INACTIVE;
        } else if self.eoi_mode1 {
            key |= LAST;
        }
        if self.len < self.capacity
            && let Some(slot) = self.keys.get_mut(self.len)
        {
            *slot = key;
            self.len += 1;
        } else {
            self.displace(key);
        }
    }

    /// Puts `key` in the place of the worst one chosen so far, or leaves `key` out.
    #[cold]
    fn displace(&mut self, key: u32) {
        let chosen = self.keys.get_mut(..self.len).unwrap_or_default();
        let mut left = key;
        if let Some(worst) = chosen.iter_mut().max()
            && *worst > key
        {
            left = core::mem::replace(worst, key);
        }
        self.leave(left);
    }

    fn leave(&mut self, key: u32) {
        if key & INACTIVE == 0 {
            self.active_left = true;
        } else {
            self.pending_left += 1;
            self.best_left = self.best_left.min(key);
        }
    }

    /// Ends the choice. Returns whether a pending interrupt was left out.
    pub(super) fn finish(&mut self) -> bool {
        if self.pending_left == 0 {
            return false;
        }
        let chosen = self.keys.get_mut(..self.len).unwrap_or_default();
        if chosen.iter().all(|key| key & INACTIVE == 0)
            && let Some(worst) = chosen.iter_mut().max()
        {
            *worst = self.best_left;
            self.active_left = true;
            self.pending_left -= 1;
        }
        self.pending_left != 0
    }

    /// Returns the INTIDs chosen, in no order: the CPU picks by priority.
    pub(super) fn chosen(&self) -> impl Iterator<Item = u16> + '_ {
        self.keys
            .iter()
            .take(self.len)
            .map(|key| (key & 0x3ff) as u16)
    }
}
