//! Time, by the virtual counter.

use super::gic;
use crate::{execute, read_sys};

/// The virtual counter.
pub fn now() -> u64 {
    read_sys!("CNTVCT_EL0")
}

/// Counts of the virtual counter in `ms` milliseconds.
pub fn ticks(ms: u64) -> u64 {
    read_sys!("CNTFRQ_EL0") * ms / 1000
}

/// A moment from which time is measured.
#[derive(Clone, Copy, Debug)]
pub struct Start(u64);

impl Start {
    /// Now.
    pub fn now() -> Self {
        Self(now())
    }

    /// Whether `ms` milliseconds have passed since.
    pub fn has_passed(self, ms: u64) -> bool {
        now().wrapping_sub(self.0) >= ticks(ms)
    }
}

/// Sleeps by WFI until `ms` milliseconds have passed; nothing if `ms` is 0.
pub fn sleep(ms: u64) {
    if ms == 0 {
        return;
    }
    gic::enable();
    gic::start_timer(ticks(ms));
    while !gic::is_pending() {
        execute!("wfi");
    }
    gic::stop_timer();
}
