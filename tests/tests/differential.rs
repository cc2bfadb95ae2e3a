//! A guest cannot tell the policies apart: a million random steps on data, tags and mappings end with the same sum.

// A helper of tests may fail the test.
#![allow(clippy::unwrap_used)]

mod storage;

use storage::{MIB, filler, machine, of, run, steps};
use tagvisor_tests::{Qemu, Run, Scenario};

const STEPS: u64 = 1_000_000;
/// 16 MiB: most of them are touched, and tagged, for the first time on the way.
const PAGES: u64 = 4096;

/// The sums that a guest printed on its way, and the last one.
fn sums(lines: &[&str]) -> Vec<String> {
    let told = |line: &&&str| line.starts_with("STEPS") || line.starts_with("RESULT ok");
    let sums: Vec<String> = lines
        .iter()
        .filter(told)
        .map(|line| (*line).to_owned())
        .collect();
    assert_eq!(sums.len(), 17, "{lines:#?}");
    sums
}

fn alone(seed: u64, n: u64) -> Vec<String> {
    let line = format!("seed={seed} n={n} pages={PAGES}");
    let (ended, _) = Qemu::at_el1("el1-steps", &line).unwrap().run().unwrap();
    let lines: Vec<&str> = ended.output.lines().map(str::trim_end).collect();
    sums(&lines)
}

fn under(policy: &str, seed: u64, n: u64) -> Vec<String> {
    let options = ["--memory", "512M", "--policy", policy];
    let run = Scenario::of(steps(seed, n, PAGES))
        .with(&options)
        .run()
        .unwrap();
    assert_eq!(run.finished.code, Some(0), "{}", run.transcript());
    assert_eq!(run.figure("/invariants/broken"), 0, "{}", run.transcript());
    sums(&run.guest_lines("steps"))
}

fn assert_all_alike(seed: u64, n: u64) {
    let alone = alone(seed, n);
    for policy in ["static", "eager", "lazy"] {
        assert_eq!(
            under(policy, seed, n),
            alone,
            "{policy} and no hypervisor differ, seed {seed}"
        );
    }
}

#[test]
fn a_million_steps_end_alike_under_every_policy_and_without_a_hypervisor() {
    assert_all_alike(1, STEPS);
}

#[test]
fn another_seed_gives_another_sum() {
    let last = |seed| alone(seed, 50_000).pop();
    assert_ne!(last(3), last(4));
}

/// A machine without room: the guest's pages lie in tag storage too, are moved, swapped and evicted.
fn crowded(seed: u64) -> Run {
    let guest = steps(seed, STEPS, PAGES).memory("48M").tag_budget(MIB);
    run(&machine(256, guest).and(filler("filler", 168, "rounds=8")))
}

#[test]
fn a_million_steps_on_a_crowded_machine_end_alike_too() {
    let run = crowded(2);
    assert_eq!(sums(&run.guest_lines("steps")), alone(2, STEPS));
    assert!(of(&run, "steps", "moves") > 0, "{}", run.transcript());
    assert!(
        of(&run, "filler", "evictions_suffered") > 0,
        "{}",
        run.transcript()
    );
}
