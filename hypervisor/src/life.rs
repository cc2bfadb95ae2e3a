//! How a VM stops while its vCPUs run on several CPUs: nothing of it is released before no CPU has any of it in hardware.
//!
//! A pure state machine: the caller holds the lock over all VMs and interrupts the CPUs that [`Life::holders`] names.

use crate::report::End;

/// The most CPUs that run guests: they are counted in the bits of a word.
pub const MAX_CPUS: usize = 64;

/// What becomes of a VM that stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It ends.
    End(End),
    /// It starts again.
    Restart,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Its vCPUs may run.
    Running,
    /// None may be loaded for now.
    Paused,
    /// None may be loaded any more; this becomes due when the last is out of hardware.
    Stopping(Fate),
    /// Nobody has any of it in hardware; what it had is taken away before this comes.
    Leaving(Fate),
    /// It has ended.
    Over,
}

/// Whether the vCPUs of a VM may run, and which CPUs have one in hardware: its registers, and stage 2 in VTTBR_EL2.
#[derive(Clone, Debug)]
pub struct Life {
    state: State,
    holders: u64,
}

impl Default for Life {
    fn default() -> Self {
        Self {
            state: State::Running,
            holders: 0,
        }
    }
}

impl Life {
    /// Says whether its vCPUs may run.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.state == State::Running
    }

    /// Says whether its vCPUs run, or will once it is resumed.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self.state, State::Running | State::Paused)
    }

    /// Names its state.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self.state {
            State::Running => "running",
            State::Paused => "paused",
            State::Stopping(_) | State::Leaving(_) => "stopping",
            State::Over => "ended",
        }
    }

    /// Says whether it has ended and will not start again.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Returns the CPUs (bit `n`: CPU `n`) that have one of its vCPUs in hardware.
    #[must_use]
    pub const fn holders(&self) -> u64 {
        self.holders
    }

    /// Notes that `cpu` puts one of its vCPUs into hardware. Returns whether it may.
    #[must_use]
    pub fn load(&mut self, cpu: usize) -> bool {
        let may = self.is_running() && cpu < MAX_CPUS;
        if may {
            self.holders |= 1 << cpu;
        }
        may
    }

    /// Notes that `cpu` has taken the vCPU out of hardware. Returns what is due now: to be done before anything else happens
    /// to the VM.
    #[must_use]
    pub fn unload(&mut self, cpu: usize) -> Option<Fate> {
        if cpu < MAX_CPUS {
            self.holders &= !(1 << cpu);
        }
        self.due()
    }

    /// Pauses the VM if it runs: the CPUs that hold a vCPU are to take it out of hardware.
    pub fn pause(&mut self) {
        if self.state == State::Running {
            self.state = State::Paused;
        }
    }

    /// Lets the VM run again if it is paused.
    pub fn resume(&mut self) {
        if self.state == State::Paused {
            self.state = State::Running;
        }
    }

    /// Stops the VM, paused or not. A VM that was to restart can be ended instead; otherwise what was asked first holds. Returns what is due
    /// now, as [`unload`](Self::unload) does: nothing while a CPU holds a vCPU.
    #[must_use]
    pub fn stop(&mut self, fate: Fate) -> Option<Fate> {
        self.state = match (self.state, fate) {
            (State::Running | State::Paused, fate) => State::Stopping(fate),
            (State::Stopping(Fate::Restart), Fate::End(_)) => State::Stopping(fate),
            (State::Leaving(Fate::Restart), Fate::End(_)) => State::Leaving(fate),
            (state, _) => state,
        };
        self.due()
    }

    /// Notes that all that a VM had has been taken away. Returns what becomes of it now.
    #[must_use]
    pub fn finish(&mut self) -> Option<Fate> {
        let State::Leaving(fate) = self.state else {
            return None;
        };
        self.state = match fate {
            Fate::End(_) => State::Over,
            Fate::Restart => State::Running,
        };
        Some(fate)
    }

    fn due(&mut self) -> Option<Fate> {
        let State::Stopping(fate) = self.state else {
            return None;
        };
        if self.holders != 0 {
            return None;
        }
        self.state = State::Leaving(fate);
        Some(fate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFF: Fate = Fate::End(End::Off);
    const STOPPED: Fate = Fate::End(End::Stopped);

    #[test]
    fn the_last_cpu_to_leave_carries_out_the_end() {
        let mut life = Life::default();
        assert!(life.load(0) && life.load(3));
        assert_eq!(life.stop(OFF), None);
        assert_eq!(life.holders(), 0b1001);
        assert!(!life.is_running() && !life.is_over());
        assert_eq!(life.unload(3), None);
        assert_eq!(life.unload(0), Some(OFF));
        assert!(!life.is_over() && !life.load(0), "it has memory");
        assert_eq!(life.finish(), Some(OFF));
        assert!(life.is_over());
        assert_eq!(life.finish(), None);
    }

    #[test]
    fn nothing_is_loaded_of_a_vm_that_stops_or_is_over() {
        let mut life = Life::default();
        assert!(life.load(0));
        assert_eq!(life.stop(OFF), None);
        assert!(!life.load(1));
        assert_eq!(life.unload(0), Some(OFF));
        assert!(!life.load(1));
        assert_eq!((life.stop(STOPPED), life.unload(1)), (None, None));
    }

    #[test]
    fn a_restart_lets_it_run_again_and_an_end_overrides_it() {
        let mut life = Life::default();
        assert!(life.load(1));
        assert_eq!(life.stop(Fate::Restart), None);
        assert_eq!(life.unload(1), Some(Fate::Restart));
        assert!(!life.is_running() && !life.load(1));
        assert_eq!(life.finish(), Some(Fate::Restart));
        assert!(life.is_running() && life.load(1));
        assert_eq!(life.stop(Fate::Restart), None);
        assert_eq!(life.stop(STOPPED), None);
        assert_eq!(life.stop(OFF), None);
        assert_eq!(life.stop(Fate::Restart), None);
        assert_eq!(life.unload(1), Some(STOPPED), "what was asked first");
    }

    #[test]
    fn a_vm_that_nobody_holds_stops_at_once() {
        let mut life = Life::default();
        assert_eq!(life.stop(Fate::Restart), Some(Fate::Restart));
        assert_eq!(life.stop(OFF), None, "it leaves already");
        assert_eq!(life.stop(STOPPED), None);
        assert_eq!(life.finish(), Some(OFF), "but will not start again");
        assert!(life.is_over());
    }

    #[test]
    fn a_cpu_without_a_bit_holds_nothing() {
        let mut life = Life::default();
        assert!(!life.load(MAX_CPUS));
        assert!(life.load(MAX_CPUS - 1));
        assert_eq!(life.unload(MAX_CPUS), None);
        assert_eq!(life.holders(), 1 << 63);
    }

    #[test]
    fn nothing_is_loaded_of_a_paused_vm_and_all_of_one_that_is_resumed() {
        let mut life = Life::default();
        life.resume();
        assert!(life.load(0));
        life.pause();
        life.pause();
        assert!(!life.is_running() && life.is_live() && !life.is_over());
        assert_eq!(life.holders(), 1, "who has a vCPU has to leave");
        assert!(!life.load(1));
        assert_eq!(life.unload(0), None, "its memory stays");
        assert!(!life.load(0));
        life.resume();
        assert!(life.is_running() && life.load(1));
    }

    #[test]
    fn a_paused_vm_ends_or_restarts_as_soon_as_nobody_holds_it() {
        let mut life = Life::default();
        assert!(life.load(2));
        life.pause();
        assert_eq!(life.stop(Fate::Restart), None);
        life.pause();
        life.resume();
        assert_eq!(life.name(), "stopping");
        assert_eq!(life.unload(2), Some(Fate::Restart));
        life.pause();
        life.resume();
        assert_eq!(life.name(), "stopping", "its memory leaves");
        assert_eq!(life.finish(), Some(Fate::Restart));
        assert!(life.is_running());
        life.pause();
        assert_eq!(life.stop(OFF), Some(OFF));
        life.resume();
        assert_eq!(life.finish(), Some(OFF));
        life.resume();
        assert!(life.is_over());
    }

    /// All sequences of seven steps of two CPUs: memory goes only while nobody holds it, once for each stop.
    #[test]
    fn no_sequence_of_steps_releases_what_a_cpu_holds() {
        const STEPS: usize = 10;
        for sequence in 0..STEPS.pow(7) {
            let mut life = Life::default();
            let (mut held, mut over, mut asked) = ([false; 2], false, false);
            let (mut leaving, mut paused) = (false, false);
            let mut rest = sequence;
            for _ in 0..7 {
                let (step, cpu) = (rest % STEPS, rest % 2);
                rest /= STEPS;
                let due = match step {
                    0 | 1 => {
                        let may = life.load(cpu);
                        assert_eq!(may, !over && !asked && !leaving && !paused, "{sequence}");
                        held[cpu] |= may;
                        None
                    }
                    2 | 3 => {
                        held[cpu] = false;
                        life.unload(cpu)
                    }
                    4 | 5 => {
                        asked |= !over && !leaving;
                        life.stop(if step == 4 { OFF } else { STOPPED })
                    }
                    6 => {
                        asked |= !over && !leaving;
                        life.stop(Fate::Restart)
                    }
                    7 => {
                        life.pause();
                        paused |= !over && !asked && !leaving;
                        None
                    }
                    8 => {
                        life.resume();
                        paused = false;
                        None
                    }
                    _ => {
                        let fate = life.finish();
                        assert_eq!(fate.is_some(), leaving, "{sequence}");
                        over |= matches!(fate, Some(Fate::End(_)));
                        leaving = false;
                        None
                    }
                };
                paused &= !asked;
                let nobody = held == [false; 2];
                assert_eq!(due.is_some(), asked && nobody, "{sequence}");
                if due.is_some() {
                    (asked, leaving) = (false, true);
                }
                assert_eq!(life.is_over(), over, "{sequence}");
                let runs = !over && !asked && !leaving && !paused;
                assert_eq!(life.is_running(), runs, "{sequence}");
                assert_eq!(life.holders() == 0, nobody, "{sequence}");
            }
        }
    }
}
