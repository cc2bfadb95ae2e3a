//! Deterministic contents: what a page and its tags must hold, from a seed.

/// A sequence of 64-bit values from a seed (Steele, Lea, Flood: splittable generators).
#[derive(Clone, Debug)]
pub struct Sequence(u64);

impl Sequence {
    /// Starts the sequence of `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next value.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// The next value below `limit`, which is not 0.
    pub const fn below(&mut self, limit: u64) -> u64 {
        match self.next().checked_rem(limit) {
            Some(value) => value,
            None => 0,
        }
    }
}

/// A value that depends on every bit of `seed`.
pub const fn mix(seed: u64) -> u64 {
    let mut z = seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The data word at `offset` (bytes) of page `page`.
pub const fn word(seed: u64, page: u64, offset: u64) -> u64 {
    mix(seed ^ mix(page.wrapping_mul(4096).wrapping_add(offset)))
}

/// The allocation tag, 0 to 15, of granule `granule` of page `page`, when `unit` granules get one tag.
pub const fn tag(seed: u64, page: u64, granule: u64, unit: u64) -> u64 {
    let first = granule & !(unit.wrapping_sub(1));
    mix(!seed ^ mix(page.wrapping_mul(256).wrapping_add(first))) & 0xf
}

/// The numbers below `count`, at most 2^32, each once, in an order that depends on `seed`.
pub fn shuffled(seed: u64, count: u64) -> impl Iterator<Item = u64> {
    let bits = u64::BITS - count.saturating_sub(1).leading_zeros();
    let mask = (1_u64 << bits.min(32)) - 1;
    let (add, shift) = (mix(seed), bits / 2 + 1);
    // Each step maps the numbers of `bits` bits one to one.
    let place = move |number: u64| {
        let mut n = number.wrapping_mul(0x9e37_79b1).wrapping_add(add) & mask;
        n ^= n >> shift;
        n = n.wrapping_mul(0x85eb_ca6b) & mask;
        n ^= n >> shift;
        n.wrapping_mul(0xc2b2_ae35).wrapping_add(add >> 32) & mask
    };
    (0..=mask).map(place).filter(move |&number| number < count)
}

/// A running checksum of 64-bit values (FNV-1a over whole words).
#[derive(Clone, Copy, Debug)]
pub struct Sum(u64);

impl Default for Sum {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Sum {
    /// Adds `value`.
    pub const fn add(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x0000_0100_0000_01b3);
    }

    /// The sum so far.
    pub const fn value(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_sequence_again() {
        let (mut a, mut b) = (Sequence::new(7), Sequence::new(7));
        for _ in 0..100 {
            assert_eq!(a.next(), b.next());
        }
        assert_ne!(Sequence::new(7).next(), Sequence::new(8).next());
    }

    #[test]
    fn granules_of_a_unit_share_their_tag() {
        for granule in 0..256 {
            assert_eq!(tag(1, 2, granule, 16), tag(1, 2, granule & !15, 16));
            assert!(tag(1, 2, granule, 1) < 16);
        }
    }

    #[test]
    fn a_shuffle_has_each_number_once() {
        for count in [0, 1, 2, 3, 31, 32, 33, 1000] {
            let mut seen = [false; 1000];
            for number in shuffled(7, count) {
                assert!(number < count);
                assert!(!core::mem::replace(&mut seen[number as usize], true));
            }
            assert_eq!(seen.iter().filter(|&&seen| seen).count() as u64, count);
        }
        assert!(shuffled(1, 100).ne(shuffled(2, 100)));
        assert!(shuffled(1, 100).ne(0..100));
    }

    #[test]
    fn the_sum_depends_on_order() {
        let (mut a, mut b) = (Sum::default(), Sum::default());
        a.add(1);
        a.add(2);
        b.add(2);
        b.add(1);
        assert_ne!(a.value(), b.value());
    }
}
