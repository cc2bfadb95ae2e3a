//! The generic timer of a guest as arithmetic: when it fires, what its registers read (DDI 0487, D12.2).
//!
//! The virtual timer is the hardware's; [`deadline`] tells when a sleeping virtual CPU has to be woken for it. The
//! physical timer is [emulated](EmulatedTimer).

use super::vgic::Vgic;
use crate::exit::VIRTUAL_TIMER_INTID;

/// `CNT*_CTL.ENABLE`.
const ENABLE: u64 = 1 << 0;
/// `CNT*_CTL.IMASK`.
const IMASK: u64 = 1 << 1;
/// `CNT*_CTL.ISTATUS`.
const ISTATUS: u64 = 1 << 2;

/// Returns the physical count at which the timer's interrupt goes high, or `None` if it never does as things stand.
///
/// The condition is `(count - offset) >= cval`, unsigned, so a compare value in the past gives a count that has passed
/// and one that the counter cannot reach gives `None`. `ctl`: `ISTATUS` is not looked at.
pub const fn deadline(ctl: u64, cval: u64, offset: u64) -> Option<u64> {
    if ctl & (ENABLE | IMASK) != ENABLE {
        return None;
    }
    cval.checked_add(offset)
}

/// Says whether the timer's condition is met at physical count `now`.
const fn is_met(cval: u64, offset: u64, now: u64) -> bool {
    now.wrapping_sub(offset) >= cval
}

/// Says whether the timer's interrupt line is high at physical count `now`, by the register values the guest left.
pub const fn level(ctl: u64, cval: u64, offset: u64, now: u64) -> bool {
    ctl & (ENABLE | IMASK) == ENABLE && is_met(cval, offset, now)
}

/// Makes the virtual timer of `vcpu`, whose registers `ctl` and `cval` are not in hardware, pending if it is due: as if its CPU had
/// taken the interrupt `physical`, which has to be active where the vCPU is loaded next.
pub fn raise_if_due(vgic: &mut Vgic, vcpu: usize, timer: (u64, u64), now: u64, physical: u16) {
    let (ctl, cval) = timer;
    if level(ctl, cval, 0, now) && !vgic.is_hw_ppi_held(vcpu, VIRTUAL_TIMER_INTID) {
        vgic.raise_hw_ppi(vcpu, VIRTUAL_TIMER_INTID, physical);
    }
}

/// A timer whose registers trap: the EL1 physical timer, counting without offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EmulatedTimer {
    ctl: u64,
    cval: u64,
}

impl EmulatedTimer {
    /// Reads `CNTP_CTL_EL0` at count `now`. `ISTATUS` is zero while the timer is disabled.
    pub const fn ctl(&self, now: u64) -> u64 {
        if self.ctl & ENABLE != 0 && is_met(self.cval, 0, now) {
            self.ctl | ISTATUS
        } else {
            self.ctl
        }
    }

    /// Writes `CNTP_CTL_EL0`.
    pub const fn set_ctl(&mut self, value: u64) {
        self.ctl = value & (ENABLE | IMASK);
    }

    /// Reads `CNTP_CVAL_EL0`.
    pub const fn cval(&self) -> u64 {
        self.cval
    }

    /// Writes `CNTP_CVAL_EL0`.
    pub const fn set_cval(&mut self, value: u64) {
        self.cval = value;
    }

    /// Reads `CNTP_TVAL_EL0` at count `now`: the low 32 bits of what is left.
    pub const fn tval(&self, now: u64) -> u64 {
        self.cval.wrapping_sub(now) & 0xffff_ffff
    }

    /// Writes `CNTP_TVAL_EL0` at count `now`: a signed 32-bit distance.
    pub const fn set_tval(&mut self, value: u64, now: u64) {
        self.cval = now.wrapping_add_signed(value as i32 as i64);
    }

    /// Says whether the interrupt line is high at count `now`.
    pub const fn level(&self, now: u64) -> bool {
        level(self.ctl, self.cval, 0, now)
    }

    /// Returns the count at which the interrupt line goes high, if it ever does as things stand.
    pub const fn deadline(&self) -> Option<u64> {
        deadline(self.ctl, self.cval, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_timer_that_is_off_or_masked_never_fires() {
        for ctl in [0, IMASK, ENABLE | IMASK, ISTATUS, ENABLE | IMASK | ISTATUS] {
            assert_eq!(deadline(ctl, 5, 0), None, "{ctl:#b}");
            assert!(!level(ctl, 0, 0, 100), "{ctl:#b}");
        }
    }

    #[test]
    fn the_deadline_is_a_physical_count() {
        assert_eq!(deadline(ENABLE, 100, 1_000), Some(1_100));
        assert_eq!(deadline(ENABLE, 0, 1_000), Some(1_000));
        assert_eq!(deadline(ENABLE | ISTATUS, 7, 0), Some(7));
    }

    #[test]
    fn a_compare_value_out_of_reach_has_no_deadline() {
        assert_eq!(deadline(ENABLE, u64::MAX, 1), None);
        assert_eq!(deadline(ENABLE, u64::MAX, 0), Some(u64::MAX));
    }

    #[test]
    fn istatus_needs_enable_and_ignores_imask() {
        let mut timer = EmulatedTimer::default();
        assert_eq!(timer.ctl(10), 0);
        timer.set_ctl(ENABLE | IMASK | ISTATUS);
        timer.set_cval(10);
        assert_eq!(timer.ctl(9), ENABLE | IMASK);
        assert_eq!(timer.ctl(10), ENABLE | IMASK | ISTATUS);
        assert!(!timer.level(10), "masked");
        timer.set_ctl(!IMASK);
        assert!(timer.level(10));
    }

    #[test]
    fn a_negative_tval_is_in_the_past() {
        let mut timer = EmulatedTimer::default();
        timer.set_ctl(ENABLE);
        timer.set_tval(0xffff_ffff, 1_000);
        assert_eq!(timer.cval(), 999);
        assert!(timer.level(1_000));
        timer.set_tval(0xdead_0000_0000_0005, 1_000);
        assert_eq!((timer.cval(), timer.tval(1_001)), (1_005, 4));
        assert_eq!(timer.tval(1_006), 0xffff_ffff, "one tick late");
    }

    proptest! {
        /// While the virtual count does not wrap, the line is high exactly from the deadline on.
        #[test]
        fn the_line_goes_high_at_the_deadline(cval: u64, offset in 0..1_u64 << 56, after in 0..1_u64 << 57) {
            let now = offset + after;
            let due = deadline(ENABLE, cval, offset).is_some_and(|at| now >= at);
            prop_assert_eq!(level(ENABLE, cval, offset, now), due);
        }
    }
}
