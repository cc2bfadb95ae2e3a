//! Leave to evict: a token bucket for each VM, so that one that tags a page here and there cannot keep its neighbours' pages
//! moving (L4).

/// The evictions of one VM: some at once, then so many a second.
///
/// A fault that begins with leave may evict all that it needs, be it more than there is: the debt is waited off before the
/// next one. So no fault is too large ever to be served.
#[derive(Clone, Debug)]
pub struct Throttle {
    /// Pages a second; 0: any number.
    rate: u64,
    /// Counts of the physical counter in a second.
    frequency: u64,
    /// Counts that the pages so far are worth, less those that have passed: leave is while it is no more than a burst's.
    debt: u64,
    /// The count at which `debt` was right.
    at: u64,
}

impl Throttle {
    /// The part of a second whose pages may be evicted at once.
    const BURST: u64 = 8;

    /// A throttle that has not been used.
    #[must_use]
    pub const fn new(rate: u32, frequency: u64) -> Self {
        Self {
            rate: rate as u64,
            frequency,
            debt: 0,
            at: 0,
        }
    }

    /// The pages that may be evicted now: none, or any number.
    pub fn leave(&mut self, now: u64) -> u64 {
        self.debt = self.debt.saturating_sub(now.saturating_sub(self.at));
        self.at = now;
        if self.debt <= self.frequency / Self::BURST {
            u64::MAX
        } else {
            0
        }
    }

    /// Takes note of pages that were evicted.
    pub const fn spend(&mut self, pages: u64) {
        if let Some(counts) = pages.saturating_mul(self.frequency).checked_div(self.rate) {
            self.debt = self.debt.saturating_add(counts);
        }
    }

    /// The count at which there is leave again.
    #[must_use]
    pub const fn next(&self) -> u64 {
        let over = self.debt.saturating_sub(self.frequency / Self::BURST);
        self.at.saturating_add(over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn a_burst_is_free_and_what_follows_takes_its_time() {
        let mut throttle = Throttle::new(800, SECOND);
        let mut evicted = 0;
        while throttle.leave(5) > 0 {
            throttle.spend(1);
            evicted += 1;
        }
        assert_eq!(
            evicted, 101,
            "an eighth of a second's, and the one that is over it"
        );
        let next = throttle.next();
        assert_eq!(throttle.leave(next - 1), 0);
        assert_eq!(throttle.leave(next), u64::MAX);
        let (mut now, end) = (next, next + 10 * SECOND);
        let mut evicted = 0;
        while now < end {
            while throttle.leave(now) > 0 {
                throttle.spend(1);
                evicted += 1;
            }
            now = throttle.next();
        }
        assert!((7_990..=8_010).contains(&evicted), "{evicted} in 10 s");
    }

    #[test]
    fn one_fault_may_evict_more_than_a_burst_and_waits_it_off() {
        let mut throttle = Throttle::new(100, SECOND);
        assert!(throttle.leave(0) > 0);
        throttle.spend(1000);
        assert_eq!(throttle.next(), 10 * SECOND - SECOND / 8);
        assert_eq!(throttle.leave(9 * SECOND), 0);
        assert!(throttle.leave(10 * SECOND) > 0);
    }

    #[test]
    fn a_rate_of_0_is_no_limit() {
        let mut throttle = Throttle::new(0, SECOND);
        throttle.spend(u64::MAX);
        assert_eq!(throttle.leave(0), u64::MAX);
    }
}
