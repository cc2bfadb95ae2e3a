//! What the tests of tag storage share: guests that know what they must find, and what is true of a good run.

// Each test program uses some of it.
#![allow(dead_code)]

use serde_json::Value;
use tagvisor_tests::{Folder, Guest, Run, Scenario};

/// Bytes of a MiB.
pub const MIB: u64 = 1 << 20;
/// Bytes of a tag block.
pub const BLOCK: u64 = 4096;

/// A guest of `mib` MiB that runs `el1-storage` with MTE.
pub fn guest(name: &str, mib: u64, cmdline: &str) -> Guest {
    Guest::bare("el1-storage")
        .unwrap()
        .named(name)
        .memory(&format!("{mib}M"))
        .cmdline(cmdline)
}

/// A guest of `mib` MiB without MTE that fills its memory with data and verifies them in several rounds.
pub fn filler(name: &str, mib: u64, cmdline: &str) -> Guest {
    guest(name, mib, &format!("mode=fill {cmdline}")).without_mte()
}

/// A guest that takes `n` random steps of seed `seed` on `pages` pages.
pub fn steps(seed: u64, n: u64, pages: u64) -> Guest {
    Guest::bare("el1-steps")
        .unwrap()
        .named("steps")
        .cmdline(&format!("seed={seed} n={n} pages={pages}"))
}

/// A machine of `mib` MiB under policy lazy.
pub fn machine(mib: u64, first: Guest) -> Scenario {
    let memory = format!("{mib}M");
    Scenario::of(first).with(&["--memory", &memory, "--policy", "lazy"])
}

/// Runs guests that must all find what they wrote and power themselves off, and EL2 must have kept its promises.
pub fn run(scenario: &Scenario) -> Run {
    let run = scenario.run().unwrap();
    assert_eq!(run.finished.code, Some(0), "{}", run.transcript());
    assert_sound(&run);
    for name in names(&run) {
        assert_right(&run, &name);
    }
    run
}

/// The names of the VMs.
pub fn names(run: &Run) -> Vec<String> {
    let vms = run.report.pointer("/vms").and_then(Value::as_array);
    let name = |vm: &Value| Some(vm.get("name")?.as_str()?.to_owned());
    let names: Vec<String> = vms.into_iter().flatten().filter_map(name).collect();
    assert!(!names.is_empty(), "{}", run.transcript());
    names
}

/// Guest `name` found all that it wrote.
pub fn assert_right(run: &Run, name: &str) {
    let result = run.guest_line(name, "RESULT");
    assert!(
        result.starts_with("RESULT ok"),
        "{name}: {}",
        run.transcript()
    );
}

/// No invariant was broken, all is back, and the figures add up.
pub fn assert_sound(run: &Run) {
    let [checked, broken] =
        ["/invariants/checked", "/invariants/broken"].map(|path| run.figure(path));
    assert!(
        checked > 0 && checked < u64::MAX && broken == 0,
        "{}",
        run.transcript()
    );
    assert_eq!(run.figure("/final/lent_bytes"), 0, "{}", run.transcript());
    if run.text("/policy") != "static" {
        let left = run.figure("/final/reserved_bytes");
        assert_eq!(left, 0, "{}", run.transcript());
    }
    let parts = [
        "/reserved_bytes",
        "/lent_bytes",
        "/free_bytes",
        "/offline_bytes",
    ];
    let sum: u64 = parts.iter().map(|path| run.figure(path)).sum();
    assert_eq!(sum, run.figure("/carve_out_bytes"), "{}", run.transcript());
}

/// The figure `key` of VM `name`.
pub fn of(run: &Run, name: &str, key: &str) -> u64 {
    let place = names(run).iter().position(|is| is == name).unwrap();
    let figure = run.figure(&format!("/vms/{place}/{key}"));
    assert_ne!(figure, u64::MAX, "no {key}: {}", run.transcript());
    figure
}

/// The part of `ideal_bytes` that is reclaimed, and the part that is left after what reclaiming costs.
pub fn efficiency(run: &Run) -> (f64, f64) {
    let figure = |path| run.report.pointer(path).and_then(Value::as_f64);
    let ideal = figure("/ideal_bytes").unwrap();
    (
        figure("/reclaimed_bytes").unwrap() / ideal,
        figure("/net_reclaimed_bytes").unwrap() / ideal,
    )
}

/// Runs it with instructions counted; EL2's so far at each of these events.
pub fn counted(scenario: &Scenario, events: &[&str]) -> (Run, Vec<u64>) {
    let folder = Folder::new().unwrap();
    let file = folder.path().join("count");
    let run = run(&scenario.clone().with(&["--count", file.to_str().unwrap()]));
    let text = std::fs::read_to_string(&file).unwrap();
    let counts = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(event, _)| events.contains(event))
        .filter_map(|(_, rest)| rest.split(' ').find_map(|word| word.strip_prefix("el2=")))
        .map(|count| count.parse().unwrap())
        .collect();
    (run, counts)
}

/// How much each number is above the one before.
pub fn steps_of(counts: &[u64]) -> Vec<u64> {
    let following = counts.iter().skip(1);
    counts
        .iter()
        .zip(following)
        .map(|(from, to)| to - from)
        .collect()
}

/// The mean.
pub fn mean(numbers: &[u64]) -> u64 {
    numbers.iter().sum::<u64>() / numbers.len().max(1) as u64
}
