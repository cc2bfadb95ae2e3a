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

#[test]
fn a_guest_that_sleeps_and_wakes_often_has_its_quarter_of_a_cpu_and_leaves_the_others_theirs() {
    let busy = |name, more| neighbour(name, &format!("mode=share from=200 to=600 {more}"));
    // Alone it would run five sixths of the time.
    let scenario = Scenario::of(busy("a", ""))
        .and(busy("b", ""))
        .and(busy("c", ""))
        .and(busy("naps", "nap=200"));
    let run = run(&scenario.with(&["--icount"]).within(600));
    for name in ["a", "b", "c", "naps"] {
        let line = run.guest_line(name, "DONE share ran=");
        let permille = line.strip_prefix("DONE share ran=").unwrap();
        let permille: u64 = permille.parse().unwrap();
        assert!((230..=270).contains(&permille), "{}", run.transcript());
    }
}
