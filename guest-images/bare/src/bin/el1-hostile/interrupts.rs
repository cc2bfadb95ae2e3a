//! Sleep, the virtual timer and interrupts, with every interrupt masked and then taken.

use bare_guests::rt::{gic, psci, trap};
use bare_guests::{execute, read_sys, write_sys};

use super::checks::Checks;

/// Timer status: the condition holds.
const STATUS: u64 = 1 << 2;
/// Timer control: enabled but masked.
const MASKED: u64 = 0b11;

/// A tenth of a second in ticks.
fn tenth() -> u64 {
    read_sys!("CNTFRQ_EL0") / 10
}

fn timer(checks: &mut Checks) {
    let before = read_sys!("CNTVCT_EL0");
    gic::start_timer(tenth() / 10);
    execute!("wfi");
    let waited = gic::wait(tenth() * 10, gic::is_pending);
    checks.check("the timer wakes WFI with interrupts masked", waited, 0);
    let slept = read_sys!("CNTVCT_EL0") - before;
    checks.check("no earlier than asked", slept >= tenth() / 10, slept);
    checks.equal(
        "the timer's interrupt is 27",
        gic::acknowledge(),
        gic::TIMER,
    );
    gic::end(gic::TIMER);
    let again = gic::wait(tenth(), gic::is_pending);
    checks.check("its line stays up after the end of interrupt", again, 0);
    checks.equal("and it is 27 again", gic::acknowledge(), gic::TIMER);
    gic::stop_timer();
    gic::end(gic::TIMER);
    checks.check(
        "a stopped timer is silent",
        !gic::wait(tenth() / 10, gic::is_pending),
        1,
    );
    checks.equal("nothing pending is 1023", gic::acknowledge(), gic::SPURIOUS);
}

/// Compare values at the edges.
fn edges(checks: &mut Checks) {
    for (name, value, fires) in [
        ("CVAL 0", 0, true),
        ("CVAL of all ones", u64::MAX, false),
        ("CVAL now", read_sys!("CNTVCT_EL0"), true),
    ] {
        write_sys!("CNTV_CVAL_EL0", value);
        write_sys!("CNTV_CTL_EL0", MASKED);
        let status = read_sys!("CNTV_CTL_EL0");
        checks.check(name, (status & STATUS != 0) == fires, status);
        checks.check("a masked timer is silent", !gic::is_pending(), 1);
        write_sys!("CNTV_CTL_EL0", 1);
        let pending = gic::wait(tenth() / 10, || gic::is_pending() == fires);
        checks.check(
            "an unmasked one is not",
            pending && gic::is_pending() == fires,
            u64::from(pending),
        );
        drain();
    }
    write_sys!("CNTV_TVAL_EL0", -5_i64 as u64);
    write_sys!("CNTV_CTL_EL0", MASKED);
    let status = read_sys!("CNTV_CTL_EL0");
    checks.check("a negative TVAL has passed", status & STATUS != 0, status);
    gic::stop_timer();
}

fn software(checks: &mut Checks) {
    gic::send_sgi(5, 1);
    checks.check(
        "an SGI to oneself arrives",
        gic::wait(tenth(), gic::is_pending),
        0,
    );
    checks.equal("with its number", gic::acknowledge(), 5);
    gic::end(5);
    gic::send_sgi(6, 0xfffe);
    checks.check(
        "an SGI to CPUs that are not there does not",
        !gic::wait(tenth() / 100, gic::is_pending),
        1,
    );
    write_sys!("S3_0_C12_C11_5", !(1 << 40)); // ICC_SGI1R_EL1: every field at its end
    checks.check(
        "nor one to all affinities",
        !gic::wait(tenth() / 100, gic::is_pending),
        1,
    );
    gic::raise_spi();
    checks.check(
        "a pending SPI arrives",
        gic::wait(tenth(), gic::is_pending),
        0,
    );
    checks.equal("with its number", gic::acknowledge(), 40);
    gic::end(40);
    gic::end(1023);
    gic::end(5000);
    checks.equal("and all is quiet", gic::acknowledge(), gic::SPURIOUS);
}

/// Priorities: a masked priority waits, and the order is by priority.
fn priorities(checks: &mut Checks) {
    write_sys!("S3_0_C4_C6_0", 0); // ICC_PMR_EL1: nothing passes
    gic::send_sgi(1, 1);
    checks.check(
        "a masked priority waits",
        !gic::wait(tenth() / 100, gic::is_pending),
        1,
    );
    write_sys!("S3_0_C4_C6_0", 0xff);
    checks.check("and then arrives", gic::wait(tenth(), gic::is_pending), 0);
    checks.equal("with its number", gic::acknowledge(), 1);
    gic::end(1);
}

/// More SGIs than any CPU has list registers.
fn many(checks: &mut Checks) {
    for id in 0..16 {
        gic::send_sgi(id, 1);
    }
    let mut seen = 0_u64;
    for _ in 0..16 {
        gic::wait(tenth(), gic::is_pending);
        let id = gic::acknowledge();
        if id < 16 {
            seen |= 1 << id;
            gic::end(id);
        }
    }
    checks.equal("16 SGIs at once all arrive", seen, 0xffff);
    checks.equal("each once", gic::acknowledge(), gic::SPURIOUS);
}

/// Taken through the vectors, with interrupts unmasked.
fn taken(checks: &mut Checks) {
    let (before, _) = trap::interrupts();
    gic::start_timer(tenth() / 100);
    execute!("msr daifclr, #2");
    let arrived = gic::wait(tenth() * 10, || trap::interrupts().0 > before);
    execute!("msr daifset, #2");
    checks.check("the timer's interrupt is taken", arrived, 0);
    checks.equal("it is 27", trap::interrupts().1, gic::TIMER);
    checks.equal("it is taken once", trap::interrupts().0 - before, 1);
    gic::stop_timer();
}

/// WFE and a suspend end too.
fn sleep(checks: &mut Checks) {
    execute!("sev", "wfe");
    gic::start_timer(tenth() / 100);
    let got = psci::hvc(psci::CPU_SUSPEND, [0, 0, 0]);
    checks.check(
        "CPU_SUSPEND to standby ends",
        (got as i32) == 0 || (got as i32) == -2,
        got,
    );
    drain();
    gic::start_timer(0);
    for _ in 0..1000 {
        execute!("wfi");
    }
    checks.check("1000 WFIs with a pending interrupt end", true, 0);
    drain();
    checks.equal("and all is quiet", gic::acknowledge(), gic::SPURIOUS);
}

/// Takes what is pending: what an earlier check left, and a timer's interrupt that was offered before its line fell, which
/// a hypervisor may only take back when it runs next.
fn drain() {
    gic::stop_timer();
    for _ in 0..32 {
        let id = gic::acknowledge();
        if id == gic::SPURIOUS {
            return;
        }
        gic::end(id);
    }
}

/// All of it.
pub fn run(checks: &mut Checks) {
    gic::enable();
    for part in [timer, edges, software, priorities, many, sleep, taken] {
        drain();
        part(checks);
    }
}
