//! Paravirtualized time for guests (DEN0057): how much of a virtual CPU's time others have had.
//!
//! A guest asks by a call where the structure of the calling virtual CPU is, and finds there the time in which that was ready and
//! did not run. All structures of a VM are in the last page of its RAM, which its device tree reserves; a guest that does not ask
//! has that page to itself.

use super::vpsci::{NOT_SUPPORTED, SUCCESS};

const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
const PV_TIME_FEATURES: u32 = 0xc500_0020;
const PV_TIME_ST: u32 = 0xc500_0021;

/// 64-bit words from one virtual CPU's structure to the next.
const WORDS: usize = 8;
const NANOSECONDS: u64 = 1_000_000_000;

/// What a call comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PvTimeCall {
    /// This is its answer.
    Answer(i64),
    /// Its answer is where the structure is, or [`NOT_SUPPORTED`] if that cannot be had.
    Start,
}

/// Decodes the call in `x0` and `x1`, if it is one about paravirtualized time.
#[must_use]
#[inline(never)]
pub fn decode(x0: u64, x1: u64) -> Option<PvTimeCall> {
    let about = x1 as u32;
    let found = match x0 as u32 {
        SMCCC_ARCH_FEATURES if about == PV_TIME_FEATURES => true,
        PV_TIME_FEATURES => matches!(about, PV_TIME_FEATURES | PV_TIME_ST),
        PV_TIME_ST => return Some(PvTimeCall::Start),
        _ => return None,
    };
    Some(PvTimeCall::Answer(if found {
        SUCCESS
    } else {
        NOT_SUPPORTED
    }))
}

/// The stolen time of a virtual CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StolenTime {
    /// Counts so far.
    pub counts: u64,
    /// The guest has asked for it.
    pub shown: bool,
}

impl StolenTime {
    /// Returns the words of the structure of `vcpu`: which of the page, and their values at `frequency` counts a second. The
    /// second one is written as a whole whenever it changes.
    #[must_use]
    pub fn words(&self, vcpu: usize, frequency: u64) -> [(usize, u64); 2] {
        let stolen = nanoseconds(self.counts, frequency);
        // Revision 0, no attributes; the stolen time.
        [(vcpu * WORDS, 0), (vcpu * WORDS + 1, stolen)]
    }
}

/// Returns how many nanoseconds `counts` are, at `frequency` counts a second.
#[must_use]
#[inline(never)]
pub fn nanoseconds(counts: u64, frequency: u64) -> u64 {
    let frequency = frequency.max(1);
    let (seconds, rest) = (counts / frequency, counts % frequency);
    seconds
        .wrapping_mul(NANOSECONDS)
        .wrapping_add(rest.saturating_mul(NANOSECONDS) / frequency)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ARCH_FEATURES: u64 = 0x8000_0001;

    #[test]
    fn a_guest_finds_it_step_by_step() {
        let table = [
            (ARCH_FEATURES, 0xc500_0020, Some(PvTimeCall::Answer(0))),
            (0xc500_0020, 0xc500_0020, Some(PvTimeCall::Answer(0))),
            (0xc500_0020, 0xc500_0021, Some(PvTimeCall::Answer(0))),
            (0xc500_0020, 0xc500_0022, Some(PvTimeCall::Answer(-1))),
            (0xc500_0020, 0, Some(PvTimeCall::Answer(-1))),
            (0xc500_0021, 7, Some(PvTimeCall::Start)),
        ];
        for (x0, x1, call) in table {
            assert_eq!(decode(x0, x1), call, "{x0:#x} {x1:#x}");
            let dirty = 0xdead_beef << 32;
            assert_eq!(decode(dirty | x0, dirty | x1), call, "only w0 and w1");
        }
    }

    #[test]
    fn other_calls_are_not_answered_here() {
        for (x0, x1) in [
            (ARCH_FEATURES, 0x8000_0000),
            (ARCH_FEATURES, 0xc500_0021),
            (0x8500_0020, 0xc500_0020), // the SMC32 form
            (0x8400_0000, 0),
            (0, 0xc500_0020),
        ] {
            assert_eq!(decode(x0, x1), None, "{x0:#x} {x1:#x}");
        }
    }

    #[test]
    fn a_structure_is_64_bytes_and_its_time_is_in_nanoseconds() {
        let stolen = StolenTime {
            counts: 3 * 62_500_000 + 31_250_000,
            shown: true,
        };
        let words = [(0, 0), (1, 3_500_000_000)];
        assert_eq!(stolen.words(0, 62_500_000), words);
        assert_eq!(
            stolen.words(7, 62_500_000),
            words.map(|(at, word)| (56 + at, word))
        );
    }

    proptest! {
        /// It never runs backwards, and is exact to the count.
        #[test]
        fn stolen_time_is_exact(counts in 0..1_u64 << 53, more in 0..1_u64 << 32, frequency in 1..=1_000_000_000_u64) {
            let at = |counts| StolenTime { counts, shown: true }.words(0, frequency)[1].1;
            prop_assert!(at(counts) <= at(counts + more));
            let exact = u128::from(counts) * 1_000_000_000 / u128::from(frequency);
            prop_assert_eq!(u128::from(at(counts)), exact & u128::from(u64::MAX));
        }
    }
}
