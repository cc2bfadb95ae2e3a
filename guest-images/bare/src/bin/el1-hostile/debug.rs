//! Self-hosted debug: breakpoints, watchpoints and software step of this guest, across exits (DDI 0487, D2).

use core::arch::{asm, global_asm};

use bare_guests::rt::trap::{self, Outcome};
use bare_guests::rt::{gic, psci};
use bare_guests::{execute, read_sys, write_sys};

use super::checks::{Checks, done};

/// Exception classes, taken from EL1.
const BREAKPOINT: u64 = 0x31;
const STEP: u64 = 0x33;
const WATCHPOINT: u64 = 0x35;

/// MDSCR_EL1: SS, KDE, MDE.
const SS: u64 = 1 << 0;
const KDE: u64 = 1 << 13;
const MDE: u64 = 1 << 15;

/// DBGBCR: enabled, at EL1, all bytes of the instruction.
const AT_EL1: u64 = 0x1e3;
/// DBGWCR: enabled, at EL1, stores.
const STORES: u64 = 0x13;
/// BT: linked, to an address or to a context ID.
const LINKED: u64 = 1 << 20;
const CONTEXT: u64 = 2 << 20;

unsafe extern "C" {
    /// Adds one to `value`: its first instruction is where breakpoints are.
    fn debug_target(value: u64) -> u64;
    /// Steps over one instruction, of which there are [`WAYS`] to choose from, by ERET with SPSR.SS; returns where it stopped, from
    /// that instruction on.
    fn debug_step(way: u64) -> u64;
    /// The first of them.
    fn debug_ways();
}

global_asm!(
    ".global debug_target",
    "debug_target:",
    "add x0, x0, #1",
    "ret",
    ".global debug_step",
    "debug_step:",
    "adr x9, 1f",
    "add x9, x9, x0, lsl #3",
    "mov x10, #0x1c5",          // EL1h with A, I and F masked
    "movk x10, #0x20, lsl #16", // SS
    "msr elr_el1, x9",
    "msr spsr_el1, x10",
    "mov x0, #0",
    "isb",
    "eret",
    ".global debug_ways",
    "debug_ways:",
    "1: add x0, x0, #1",
    "b 2f",
    "mrs x0, id_aa64pfr0_el1",
    "b 2f",
    "smc #0",
    "b 2f",
    "hvc #0",
    "b 2f",
    "msr daifset, #8",
    "2: ret",
);

/// Instructions to step over: one of the CPU's own, one that is emulated, two calls.
const WAYS: [&str; 4] = ["ADD", "a trapped MRS", "SMC", "HVC"];

/// Turns monitor debug on while `run` runs.
fn debugged(mdscr: u64, run: impl FnOnce() -> u64) -> Outcome {
    write_sys!("MDSCR_EL1", mdscr);
    execute!("isb");
    let outcome = trap::attempt(|| {
        execute!("msr daifclr, #8");
        let value = run();
        execute!("msr daifset, #8");
        value
    });
    write_sys!("MDSCR_EL1", 0);
    execute!("isb");
    outcome
}

fn target() -> u64 {
    debug_target as *const () as u64
}

fn call_target() -> u64 {
    // SAFETY: adds one.
    unsafe { debug_target(41) }
}

fn is(class: u64) -> impl Fn(Outcome) -> bool {
    move |outcome| outcome.trap().is_some_and(|trap| trap.class() == class)
}

/// Every register holds its own value.
macro_rules! hold {
    ($checks:ident, $($name:literal = $value:expr),+ $(,)?) => {{
        $(write_sys!($name, $value);)+
        psci::hvc(psci::VERSION, [0; 3]);
        $($checks.equal(concat!($name, " holds"), read_sys!($name), $value);)+
        $(write_sys!($name, 0);)+
    }};
}

fn registers(checks: &mut Checks) {
    let dfr0 = read_sys!("ID_AA64DFR0_EL1");
    let counts = (dfr0 >> 12 & 0xf, dfr0 >> 20 & 0xf, dfr0 >> 28 & 0xf);
    checks.check(
        "six breakpoints, four watchpoints, two for contexts",
        counts == (5, 3, 1),
        dfr0,
    );
    hold!(
        checks,
        "DBGBVR0_EL1" = 0x4000_0000,
        "DBGBVR1_EL1" = 0x4000_1000,
        "DBGBVR2_EL1" = 0x4000_2000,
        "DBGBVR3_EL1" = 0x4000_3000,
        "DBGBVR4_EL1" = 0x4000_4000,
        "DBGBVR5_EL1" = 0x4000_5000,
        "DBGBCR0_EL1" = AT_EL1 & !1,
        "DBGBCR5_EL1" = AT_EL1 & !1,
        "DBGWVR0_EL1" = 0x4000_0008,
        "DBGWVR1_EL1" = 0x4000_1008,
        "DBGWVR2_EL1" = 0x4000_2008,
        "DBGWVR3_EL1" = 0x4000_3008,
        "DBGWCR0_EL1" = 0x1ff2,
        "DBGWCR3_EL1" = 0x1ff2,
    );
}

/// Sleeps for a millisecond, in which other guests run.
fn sleep() {
    gic::start_timer(read_sys!("CNTFRQ_EL0") / 1000);
    execute!("wfi");
    gic::stop_timer();
}

fn breakpoints(checks: &mut Checks) {
    write_sys!("DBGBVR1_EL1", target());
    write_sys!("DBGBCR1_EL1", AT_EL1);
    write_sys!("OSLAR_EL1", 1);
    // QEMU 11.1 looks at another bit of OSLSR_EL1 than the lock's.
    if !checks.bare {
        let locked = debugged(MDE | KDE, call_target);
        checks.outcome("a breakpoint behind the OS lock does not hit", locked, done);
    }
    write_sys!("OSLAR_EL1", 0);
    checks.outcome("nor one without MDE", debugged(KDE, call_target), done);
    checks.outcome(
        "nor one at EL1 without KDE",
        debugged(MDE, call_target),
        done,
    );
    let hit = debugged(MDE | KDE, call_target);
    checks.outcome("a breakpoint hits", hit, is(BREAKPOINT));
    checks.equal("at its address", trap::place(), target());
    sleep();
    let hit = debugged(MDE | KDE, || {
        psci::hvc(psci::VERSION, [0; 3]);
        call_target()
    });
    checks.outcome("it hits after a sleep and a call", hit, is(BREAKPOINT));

    // Linked with breakpoint 5, which compares the context.
    write_sys!("CONTEXTIDR_EL1", 0x1234_5678);
    write_sys!("DBGBVR5_EL1", 0x1234_5678);
    write_sys!("DBGBCR5_EL1", AT_EL1 | LINKED | CONTEXT);
    write_sys!("DBGBCR1_EL1", AT_EL1 | LINKED | 5 << 16);
    checks.outcome(
        "one that is linked with a context hits there",
        debugged(MDE | KDE, call_target),
        is(BREAKPOINT),
    );
    write_sys!("CONTEXTIDR_EL1", 0x1234_5679);
    checks.outcome("and not in another", debugged(MDE | KDE, call_target), done);
    write_sys!("CONTEXTIDR_EL1", 0);
    write_sys!("DBGBCR5_EL1", 0);
    write_sys!("DBGBCR1_EL1", 0);
    checks.outcome(
        "one that is disabled does not hit",
        debugged(MDE | KDE, call_target),
        |got| got == Outcome::Done(42),
    );
}

/// What watchpoints watch.
#[repr(align(16))]
struct Watched(#[allow(dead_code, reason = "written by assembly")] [u64; 2]);

fn watchpoints(checks: &mut Checks) {
    let mut watched = Watched([0; 2]);
    let place = (&raw mut watched).addr() as u64;
    let store = |offset: u64| {
        move || {
            // SAFETY: a byte of `watched`, which nobody else looks at.
            unsafe { asm!("strb wzr, [{}]", in(reg) place + offset, options(nostack)) };
            0
        }
    };
    let load = move || {
        let value: u64;
        // SAFETY: as for the store.
        unsafe { asm!("ldrb {:w}, [{}]", out(reg) value, in(reg) place + 9, options(nostack)) };
        value
    };
    write_sys!("DBGWVR3_EL1", place + 8);
    write_sys!("DBGWCR3_EL1", STORES | 0b10 << 5);
    let hit = debugged(MDE | KDE, store(9));
    checks.outcome("a watchpoint hits a store", hit, is(WATCHPOINT));
    let far = hit.trap().map_or(0, |trap| trap.far);
    checks.equal("and names its address", far, place + 9);
    for (name, outcome) in [
        ("not the byte beside it", debugged(MDE | KDE, store(8))),
        ("not a load", debugged(MDE | KDE, load)),
        ("not without KDE", debugged(MDE, store(9))),
    ] {
        checks.outcome(name, outcome, done);
    }
    write_sys!("DBGWCR3_EL1", 0);
    checks.outcome(
        "one that is disabled does not hit",
        debugged(MDE | KDE, store(9)),
        done,
    );
}

/// One step is one instruction, be it the CPU's or EL2's.
fn steps(checks: &mut Checks) {
    for (way, name) in (0..).zip(WAYS) {
        if checks.bare && way >= 2 {
            continue;
        }
        write_sys!("MDSCR_EL1", KDE | SS);
        // SAFETY: changes x0 to x17, ELR_EL1 and SPSR_EL1 at most; debug exceptions are masked again by the handler.
        let stepped = trap::attempt(|| unsafe { debug_step(way) });
        write_sys!("MDSCR_EL1", 0);
        execute!("isb");
        checks.outcome(name, stepped, is(STEP));
        let stepped = trap::place() - 8 * way - debug_ways as *const () as u64;
        checks.equal("is one step", stepped, 4);
    }
}

/// The same again and again, beside another guest that does it too: what that one has set is not here.
pub fn repeat(checks: &mut Checks, rounds: u64) {
    gic::enable();
    for _ in 0..rounds {
        run(checks);
        sleep();
        let outcome = debugged(MDE | KDE, call_target);
        checks.outcome("another guest's breakpoint does not hit", outcome, done);
    }
}

/// All of it.
pub fn run(checks: &mut Checks) {
    registers(checks);
    breakpoints(checks);
    watchpoints(checks);
    steps(checks);
}
