//! A guest that does what it must not: it gets the architecture's answers, and EL2 lives.

// A helper of tests may fail the test.
#![allow(clippy::unwrap_used)]

use tagvisor_tests::{Guest, Run, Scenario};

fn bare(program: &str) -> Guest {
    Guest::bare(program).unwrap()
}

fn run(scenario: &Scenario) -> Run {
    scenario.run().unwrap()
}

fn assert_ended(run: &Run, code: i32, end: &str) {
    assert_eq!(run.finished.code, Some(code), "{}", run.transcript());
    assert_eq!(run.text("/vms/0/end"), end, "{}", run.transcript());
    assert_eq!(run.figure("/invariants/broken"), 0, "{}", run.transcript());
}

#[test]
fn a_hostile_guest_gets_the_architectures_answers() {
    for guest in [bare("el1-hostile"), bare("el1-hostile").without_mte()] {
        let run = run(&Scenario::of(guest));
        let failed: Vec<&str> = run
            .guest_lines("el1-hostile")
            .into_iter()
            .filter(|line| line.starts_with("not ok"))
            .collect();
        assert!(failed.is_empty(), "{failed:#?}\n{}", run.transcript());
        let result = run.guest_line("el1-hostile", "HOSTILE passed=");
        assert!(result.ends_with(" failed=0"), "{}", run.transcript());
        assert_ended(&run, 0, "off");
        let own = run
            .finished
            .output
            .lines()
            .filter(|line| line.starts_with("[tagvisor]"))
            .count();
        assert!(own < 200, "a guest floods the log with {own} lines");
    }
}

#[test]
fn random_device_accesses_never_hurt_el2() {
    for seed in 2..5 {
        let run = run(&Scenario::of(
            bare("el1-hostile").cmdline(&format!("seed={seed}")),
        ));
        assert!(
            run.guest_line("el1-hostile", "HOSTILE passed=")
                .ends_with(" failed=0"),
            "{}",
            run.transcript()
        );
        assert_ended(&run, 0, "off");
    }
}

#[test]
fn guests_that_debug_themselves_on_one_cpu_do_not_hit_each_other_s_breakpoints() {
    let debugger = |name: &str| bare("el1-hostile").named(name).cmdline("debug=10");
    let run = run(&Scenario::of(debugger("a"))
        .and(debugger("b"))
        .with(&["--cpus", "1"]));
    for name in ["a", "b"] {
        let failed: Vec<&str> = run
            .guest_lines(name)
            .into_iter()
            .filter(|line| line.starts_with("not ok"))
            .collect();
        assert!(failed.is_empty(), "{name}: {failed:#?}");
        let result = run.guest_line(name, "HOSTILE passed=");
        assert!(result.ends_with(" failed=0"), "{}", run.transcript());
    }
    assert_ended(&run, 0, "off");
}
