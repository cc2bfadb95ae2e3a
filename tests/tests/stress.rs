//! Two Linux VMs of two vCPUs each under Debian's stress-ng: no interrupt is lost, no task hangs.

// A helper of tests may fail the test.
#![allow(clippy::unwrap_used)]

use tagvisor_tests::{Guest, Run, Scenario};

const NAMES: [&str; 2] = ["one", "two"];
/// What a kernel says when an interrupt was lost, a CPU stood still, or worse.
const COMPLAINTS: [&str; 9] = [
    "rcu:",
    "stall",
    "hung",
    "blocked for more than",
    "BUG",
    "WARNING",
    "Oops",
    "lockup",
    "lost interrupt",
];

/// Runs stress-ng in both VMs for so many seconds of their time; their kernels say warnings and worse.
fn stress(seconds: u64, options: &[&str]) -> Run {
    let guest = |name| {
        Guest::linux("stress")
            .unwrap()
            .named(name)
            .memory("256M")
            .vcpus(2)
            .and_cmdline(&format!("loglevel=5 tagvisor.seconds={seconds}"))
    };
    let [one, two] = NAMES.map(guest);
    Scenario::of(one)
        .and(two)
        .with(&["--cpus", "2"])
        .with(options)
        .within(900)
        .run()
        .unwrap()
}

/// Whether a line of the kernel's is a complaint.
fn complains(line: &str) -> bool {
    COMPLAINTS.iter().any(|sign| line.contains(sign))
}

fn assert_survived(run: &Run) {
    assert_eq!(run.finished.code, Some(0), "{}", run.transcript());
    assert_eq!(run.figure("/invariants/broken"), 0, "{}", run.transcript());
    for name in NAMES {
        let lines = run.guest_lines(name);
        let complaints: Vec<_> = lines.iter().filter(|line| complains(line)).collect();
        assert!(
            complaints.is_empty(),
            "{complaints:#?}\n{}",
            run.transcript()
        );
        assert_eq!(run.guest_line(name, "GUEST-RESULT"), "GUEST-RESULT ok");
        for stressor in ["cpu", "fork", "futex", "timer"] {
            assert!(
                operations(&lines, stressor) > 0,
                "{name}: {stressor}: {}",
                run.transcript()
            );
        }
    }
}

/// How many operations of `stressor` stress-ng counts in its table: `stress-ng: metrc: [1] fork 1234 3.00 ...`.
fn operations(lines: &[&str], stressor: &str) -> u64 {
    let metrics = lines
        .iter()
        .filter_map(|line| line.split_once(" metrc: ")?.1.split_once("] "));
    let mut row = metrics.map(|(_, row)| row.split_whitespace());
    row.find_map(|mut words| {
        let is_it = words.next() == Some(stressor);
        words.next().filter(|_| is_it)?.parse().ok()
    })
    .unwrap_or(0)
}

#[test]
fn two_vms_survive_a_short_stress() {
    assert_survived(&stress(3, &["--icount"]));
}

#[test]
fn complaints_of_a_kernel_are_recognized() {
    for line in [
        "[   21.1] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        "[  132.0] INFO: task kworker/0:1:10 blocked for more than 10 seconds.",
        "[   24.2] watchdog: BUG: soft lockup - CPU#1 stuck for 22s!",
    ] {
        assert!(complains(line), "{line}");
    }
    assert!(!complains(
        "stress-ng: info:  [62] passed: 8: cpu (2) fork (2)"
    ));
}

#[cfg(feature = "full")]
#[test]
fn two_vms_survive_a_minute_of_stress() {
    // Not in counted time: QEMU's CPUs run side by side, and a minute takes one.
    assert_survived(&stress(60, &[]));
}
