//! Guests that share a CPU: nobody starves, nobody sees the other's registers, no interrupt is lost.

// A helper of tests may fail the test.
#![allow(clippy::unwrap_used)]

use tagvisor_tests::{Guest, Run, Scenario};

fn neighbour(name: &str, cmdline: &str) -> Guest {
    Guest::bare("el1-neighbour")
        .unwrap()
        .named(name)
        .cmdline(cmdline)
}

/// Runs guests that all power themselves off.
fn run(scenario: &Scenario) -> Run {
    let run = scenario.run().unwrap();
    assert_eq!(run.finished.code, Some(0), "{}", run.transcript());
    assert_eq!(run.figure("/invariants/broken"), 0, "{}", run.transcript());
    run
}

/// Where the line with `text` is in the output, in bytes.
fn place(run: &Run, text: &str) -> usize {
    let at = run.finished.output.find(text);
    at.unwrap_or_else(|| panic!("no {text:?}: {}", run.transcript()))
}

#[test]
fn a_sleeper_wakes_beside_a_guest_that_never_sleeps() {
    let sleeper = neighbour("sleeper", "mode=sleep ms=100 n=10");
    let spinner = neighbour("spinner", "mode=spin ms=5000");
    let run = run(&Scenario::of(spinner).and(sleeper));
    let woken = place(&run, "sleeper| DONE sleep times=10");
    assert!(
        place(&run, "spinner| SPIN begins") < woken && woken < place(&run, "spinner| DONE spin"),
        "{}",
        run.transcript()
    );
}

#[test]
fn an_sgi_wakes_a_vcpu_while_its_sender_spins() {
    let run = run(&Scenario::of(neighbour("pair", "mode=ipi n=50").vcpus(2)));
    assert!(
        run.guest_line("pair", "DONE")
            .starts_with("DONE ipi on=0 up=true served=50 "),
        "{}",
        run.transcript()
    );
}

#[test]
fn the_physical_timer_loses_no_expiry() {
    let run = run(&Scenario::of(neighbour("timer", "mode=cntp n=1000")));
    assert_eq!(
        run.guest_line("timer", "DONE"),
        "DONE cntp times=1000 lost=0 wrong=0",
        "{}",
        run.transcript()
    );
}

#[test]
fn a_timer_that_was_moved_ends_a_suspend() {
    let guest = neighbour("suspend", "mode=suspend ms=100 n=5");
    let run = run(&Scenario::of(guest).within(30));
    assert_eq!(
        run.guest_line("suspend", "DONE"),
        "DONE suspend times=5 refused=0 slow=0 lost=0",
        "{}",
        run.transcript()
    );
}

#[test]
fn a_deferred_error_register_is_a_guests_own() {
    let [a, b] = [("a", "1"), ("b", "2")]
        .map(|(name, value)| neighbour(name, &format!("mode=disr ms=1000 value={value}")));
    let run = run(&Scenario::of(a).and(b));
    for (name, last) in [("a", "0x81000001"), ("b", "0x81000002")] {
        assert_eq!(
            run.guest_line(name, "DONE"),
            format!("DONE disr first=0x0 changed=false last={last}"),
            "{}",
            run.transcript()
        );
    }
}

/// What four guests, busy at the same time, each ran on the one CPU, in permille; the last is told more.
fn shares(more: &str) -> [u64; 4] {
    let guest = |name, more| neighbour(name, &format!("mode=share from=200 to=600 {more}"));
    let scenario = Scenario::of(guest("a", ""))
        .and(guest("b", ""))
        .and(guest("c", ""))
        .and(guest("d", more))
        .with(&["--icount"])
        .within(600);
    let run = run(&scenario);
    ["a", "b", "c", "d"].map(|name| {
        let line = run.guest_line(name, "DONE share");
        let share = line.strip_prefix("DONE share ran=");
        share
            .and_then(|share| share.parse().ok())
            .unwrap_or_else(|| panic!("{}", run.transcript()))
    })
}

fn assert_fair(shares: [u64; 4]) {
    println!("{shares:?}");
    assert!(
        shares.iter().all(|share| (230..=270).contains(share)),
        "{shares:?}"
    );
}

#[test]
fn four_busy_guests_have_a_quarter_of_their_cpu_each() {
    assert_fair(shares(""));
}

#[test]
fn a_guest_that_sleeps_and_wakes_often_takes_no_more_than_its_share_and_no_less() {
    assert_fair(shares("nap=200"));
}

#[test]
fn a_guest_that_exits_all_the_time_takes_no_more_than_its_share_and_no_less() {
    assert_fair(shares("trap=1"));
}
