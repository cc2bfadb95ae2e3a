//! Counting and printing checks.

use bare_guests::rt::trap::{self, Outcome, Trap};
use bare_guests::say;

/// The checks so far.
pub struct Checks {
    /// Below is QEMU's own EL1 and no hypervisor.
    pub bare: bool,
    /// Checks that held.
    pub passed: u32,
    /// Checks that did not.
    pub failed: u32,
}

impl Checks {
    /// Begins.
    pub const fn new(bare: bool) -> Self {
        Self {
            bare,
            passed: 0,
            failed: 0,
        }
    }

    /// One check; `got` is printed if it does not hold.
    pub fn check(&mut self, name: &str, holds: bool, got: u64) {
        if holds {
            self.passed += 1;
            say!("ok {name}");
        } else {
            self.failed += 1;
            say!("not ok {name} got {got:#x}");
        }
    }

    /// `got` is `want`.
    pub fn equal(&mut self, name: &str, got: u64, want: u64) {
        self.check(name, got == want, got);
    }

    /// An attempt ended as `accept` wants.
    pub fn outcome(&mut self, name: &str, outcome: Outcome, accept: impl Fn(Outcome) -> bool) {
        if accept(outcome) {
            self.passed += 1;
            say!("ok {name}");
            return;
        }
        self.failed += 1;
        match outcome {
            Outcome::Done(value) => say!("not ok {name} got value {value:#x}"),
            Outcome::Trapped(Trap { esr, far }) => {
                say!("not ok {name} got esr={esr:#x} far={far:#x}")
            }
        }
    }

    /// Tries `attempt` and checks how it ended.
    pub fn attempt(
        &mut self,
        name: &str,
        attempt: impl FnOnce() -> u64,
        accept: impl Fn(Outcome) -> bool,
    ) {
        let outcome = trap::attempt(attempt);
        self.outcome(name, outcome, accept);
    }
}

/// It was an undefined instruction.
pub fn undefined(outcome: Outcome) -> bool {
    outcome.is_undefined()
}

/// There was no exception.
pub fn done(outcome: Outcome) -> bool {
    outcome.trap().is_none()
}

/// It was a synchronous external abort on a data access.
pub fn external(outcome: Outcome) -> bool {
    outcome
        .trap()
        .is_some_and(|trap| trap.is_data_abort(trap::EXTERNAL))
}

/// It was decoded, or answered by an external abort: what a device may do with an odd access.
///
/// Alignment faults (0x21) and faults of unsupported exclusives and atomics (0x35) are a CPU's own answers.
pub fn done_or_external(outcome: Outcome) -> bool {
    done(outcome)
        || external(outcome)
        || outcome
            .trap()
            .is_some_and(|trap| trap.is_data_abort(0x21) || trap.is_data_abort(0x35))
}
