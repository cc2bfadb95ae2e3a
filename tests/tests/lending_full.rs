//! Tag storage as memory, at length: larger machines, other geometries, all invariants at every exit, many seeds.

// A helper of tests may fail the test.
#![allow(clippy::unwrap_used)]

mod storage;

use storage::{MIB, efficiency, filler, guest, machine, of, run, steps};
use tagvisor_tests::{Qemu, Scenario};

#[test]
fn scattered_tags_are_dense_on_a_larger_machine() {
    for (permille, least, least_net) in [(10, 0.97, 0.85), (100, 0.97, 0.85), (300, 0.95, 0.80)] {
        let cmdline = format!("mode=tag bytes=256 permille={permille}");
        let run = run(&machine(2048, guest("tagger", 1900, &cmdline)).within(300));
        let (efficiency, net) = efficiency(&run);
        assert!(
            efficiency >= least && net >= least_net,
            "{efficiency} {net}: {}",
            run.transcript()
        );
    }
}

/// The last line of a program of random steps.
fn result(lines: &[&str]) -> String {
    let last = lines.iter().find(|line| line.starts_with("RESULT ok"));
    last.unwrap().trim_end().to_owned()
}

/// What the program ends with on a machine of its own. With several CPUs QEMU says of an atomic access that faults that it
/// is a write (ESR_EL1.WnR), with one that it is a read: so it has as many as tagvisor's.
fn alone(seed: u64, n: u64, pages: u64, cpus: &str) -> String {
    let line = format!("seed={seed} n={n} pages={pages}");
    let qemu = Qemu::at_el1("el1-steps", &line).unwrap();
    let (ended, _) = qemu.with(&["-smp", cpus]).run().unwrap();
    result(&ended.output.lines().collect::<Vec<_>>())
}

#[test]
fn many_programs_of_random_steps_end_alike_under_every_policy() {
    for seed in 10..13 {
        let want = alone(seed, 3_000_000, 8192, "1");
        for policy in ["static", "eager", "lazy"] {
            let options = ["--memory", "512M", "--policy", policy];
            let run = run(&Scenario::of(steps(seed, 3_000_000, 8192)).with(&options));
            assert_eq!(result(&run.guest_lines("steps")), want, "{policy} {seed}");
        }
    }
}

#[test]
fn random_steps_end_alike_in_every_geometry_with_invariants_checked_at_every_exit() {
    let want = alone(20, 300_000, 4096, "2");
    for lines in [
        &["regions = 2"][..],
        &["block_size = \"8K\""],
        &["block_size = \"32K\"", "regions = 2"],
    ] {
        let guest = steps(20, 300_000, 4096).memory("48M").tag_budget(MIB);
        let scenario = machine(256, guest).and(filler("filler", 160, "bytes=512 rounds=4"));
        let scenario = lines
            .iter()
            .fold(scenario, |scenario, line| scenario.machine(line));
        let run = run(&scenario
            .with(&["--debug-checks", "--cpus", "2"])
            .within(400));
        assert_eq!(result(&run.guest_lines("steps")), want, "{lines:?}");
    }
}

#[test]
fn four_guests_on_four_cpus_tag_and_evict_with_invariants_checked_at_every_exit() {
    let tagger = |name, seed| {
        let cmdline = format!("mode=tag bytes=512 busy=8 permille=100 rounds=2 seed={seed}");
        guest(name, 100, &cmdline).tag_budget(MIB)
    };
    let scenario = machine(512, tagger("a", 1))
        .and(tagger("b", 2))
        .and(tagger("c", 3))
        .and(filler("filler", 150, "bytes=512 rounds=8"))
        .with(&["--cpus", "4", "--debug-checks"]);
    let run = run(&scenario.within(600));
    let caused: u64 = ["a", "b", "c"]
        .iter()
        .map(|name| of(&run, name, "evictions_caused"))
        .sum();
    assert!(caused > 0, "{}", run.transcript());
}
