//! Exceptions that a program takes on purpose: recorded and skipped. Any other is printed and ends the program.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use super::{gic, psci};
use crate::say;

/// What the vectors save; the layout is known to `start`.
#[repr(C)]
pub struct Frame {
    /// x0 to x30.
    pub x: [u64; 31],
    /// Where to return to.
    pub elr: u64,
    /// The PSTATE to return to.
    pub spsr: u64,
    /// The syndrome.
    pub esr: u64,
    /// The faulting address.
    pub far: u64,
    /// The vector, 0 to 15.
    pub vector: u64,
}

/// The exception class of an instruction or data abort from the same exception level (DDI 0487, ESR_ELx.EC).
pub const FETCH_ABORT: u64 = 0x21;
/// A data abort from the same exception level.
pub const DATA_ABORT: u64 = 0x25;
/// An instruction that is undefined here.
pub const UNDEFINED: u64 = 0x00;
/// A PC that is not a multiple of 4.
pub const PC_ALIGNMENT: u64 = 0x22;

/// A software step from the same exception level.
pub const STEP: u64 = 0x33;

/// Fault status: a tag check that failed.
pub const TAG_CHECK: u64 = 0x11;
/// Fault status: external abort, not on a translation table walk.
pub const EXTERNAL: u64 = 0x10;

/// PSTATE.D: debug exceptions are masked.
const D: u64 = 1 << 9;
const IRQ: u64 = 5;
const SYNC: u64 = 4;

/// One exception as the program sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap {
    /// ESR_ELx.
    pub esr: u64,
    /// FAR_ELx.
    pub far: u64,
}

impl Trap {
    /// The exception class.
    pub const fn class(self) -> u64 {
        self.esr >> 26 & 0x3f
    }

    /// The fault status code of an abort.
    pub const fn status(self) -> u64 {
        self.esr & 0x3f
    }

    /// Whether this is a data abort with fault status `status`.
    pub const fn is_data_abort(self, status: u64) -> bool {
        self.class() == DATA_ABORT && self.status() == status
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No exception; what the attempt returned.
    Done(u64),
    /// An exception at one of its instructions, which was skipped.
    Trapped(Trap),
}

impl Outcome {
    /// The exception, if there was one.
    pub const fn trap(self) -> Option<Trap> {
        match self {
            Self::Done(_) => None,
            Self::Trapped(trap) => Some(trap),
        }
    }

    /// What it returned; none after an exception.
    pub const fn value(self) -> Option<u64> {
        match self {
            Self::Done(value) => Some(value),
            Self::Trapped(_) => None,
        }
    }

    /// Whether the instruction was undefined.
    pub fn is_undefined(self) -> bool {
        self.trap().is_some_and(|trap| trap.class() == UNDEFINED)
    }
}

static ARMED: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicU64 = AtomicU64::new(0);
static ESR: AtomicU64 = AtomicU64::new(0);
static FAR: AtomicU64 = AtomicU64::new(0);
static ELR: AtomicU64 = AtomicU64::new(0);
static IRQS: AtomicU64 = AtomicU64::new(0);
static LAST_IRQ: AtomicU64 = AtomicU64::new(0);

/// Runs `attempt`; each of its instructions that takes an exception is skipped, and the first exception is the outcome.
///
/// A call to an address outside the program that takes an exception there returns to its caller.
pub fn attempt(attempt: impl FnOnce() -> u64) -> Outcome {
    COUNT.store(0, Relaxed);
    ARMED.store(true, Relaxed);
    let value = attempt();
    ARMED.store(false, Relaxed);
    if COUNT.load(Relaxed) == 0 {
        Outcome::Done(value)
    } else {
        Outcome::Trapped(Trap {
            esr: ESR.load(Relaxed),
            far: FAR.load(Relaxed),
        })
    }
}

/// Where the first exception of the last attempt was taken.
pub fn place() -> u64 {
    ELR.load(Relaxed)
}

/// How many interrupts were taken, and the INTID of the last.
pub fn interrupts() -> (u64, u64) {
    (IRQS.load(Relaxed), LAST_IRQ.load(Relaxed))
}

/// Serves the vectors.
#[unsafe(no_mangle)]
extern "C" fn bare_exception(frame: &mut Frame) {
    match frame.vector {
        SYNC if ARMED.load(Relaxed) => skip(frame),
        IRQ => take_interrupt(),
        _ => die(frame),
    }
}

/// Records the exception and goes on behind the instruction. A step is the last one: debug exceptions are masked.
fn skip(frame: &mut Frame) {
    let count = COUNT.load(Relaxed);
    if count == 0 {
        ESR.store(frame.esr, Relaxed);
        FAR.store(frame.far, Relaxed);
        ELR.store(frame.elr, Relaxed);
    }
    if count > 10_000 {
        die(frame);
    }
    COUNT.store(count + 1, Relaxed);
    let class = frame.esr >> 26 & 0x3f;
    if class == STEP {
        frame.spsr |= D;
        return;
    }
    frame.elr = if class == FETCH_ABORT || class == PC_ALIGNMENT {
        frame.x[30]
    } else {
        frame.elr + 4
    };
}

/// Acknowledges, counts and ends one interrupt; the timer is stopped, since its line stays up otherwise.
fn take_interrupt() {
    let id = gic::acknowledge();
    if id == gic::TIMER {
        gic::stop_timer();
    }
    LAST_IRQ.store(id, Relaxed);
    IRQS.store(IRQS.load(Relaxed) + 1, Relaxed);
    gic::end(id);
}

fn die(frame: &Frame) -> ! {
    say!(
        "EXCEPTION vector={} esr={:#x} far={:#x} elr={:#x} spsr={:#x} x0={:#x} x30={:#x}",
        frame.vector,
        frame.esr,
        frame.far,
        frame.elr,
        frame.spsr,
        frame.x[0],
        frame.x[30]
    );
    psci::system_off()
}
