//! Debian's unmodified kernel under tagvisor: the demo, its figures under each policy, counted, on two vCPUs.

// A helper of tests may fail the test.
#![allow(clippy::unwrap_used)]

mod demo;

use demo::{
    assert_demo, assert_eager, assert_good, assert_lazy, assert_static, assert_tagged, counted,
    cpus, demo, events, marks,
};
use tagvisor_tests::{Guest, Scenario};

/// EL2 may execute so many instructions from reset to the guest's first.
const BOOT_INSTRUCTIONS: u64 = 30_000_000;

#[test]
fn lazy_reserves_for_what_linux_tags() {
    assert_lazy(&demo(&["--policy", "lazy"]));
}

#[test]
fn eager_reserves_for_what_linux_touches() {
    assert_eager(&demo(&["--policy", "eager"]), "mte mte3");
}

#[test]
fn static_reserves_everything_and_linux_does_not_notice() {
    assert_static(&demo(&["--policy", "static"]));
}

#[test]
fn the_guest_starts_within_30_million_instructions_of_el2() {
    let (run, counts) = counted();
    assert_lazy(&run);
    let (first, instructions) = events(&counts)[0];
    assert_eq!(first, "first-guest-instruction", "{counts}");
    assert!(
        (100_000..=BOOT_INSTRUCTIONS).contains(&instructions),
        "{counts}"
    );
}

#[test]
fn the_marks_of_a_counted_run_come_in_their_order() {
    let counts = marks("work=boot");
    let names: Vec<&str> = events(&counts).iter().map(|&(event, _)| event).collect();
    let expected = [
        "first-guest-instruction",
        "mark-0x61",
        "mark-0x62",
        "mark-0x7f",
        "exit",
    ];
    assert_eq!(names, expected, "{counts}");
}

/// What `scripts/run --batch` shows: four VMs, of which the last lives in tag storage alone.
#[test]
fn the_demo_is_four_vms_and_one_of_them_has_no_other_memory_than_tag_storage() {
    let run = Scenario::demo()
        .with(&["--icount"])
        .within(900)
        .run()
        .unwrap();
    assert_good(&run);
    assert_eq!(run.figure("/carve_out_bytes"), 124 << 20);
    assert_demo(&run, "tagged", "mte mte3");
    assert_eq!(cpus(&run, "tagged"), "2 CPU");
    assert_demo(&run, "budget", "mte mte3");
    for index in [0, 1] {
        assert_tagged(&run, index);
    }
    for name in ["plain", "lent"] {
        assert_eq!(run.guest_line(name, "GUEST-RESULT"), "GUEST-RESULT ok");
    }
    for name in ["tagged", "budget", "plain", "lent"] {
        let says = run.guest_line(name, "this VM has ");
        assert!(!says.is_empty(), "{name}: {}", run.transcript());
    }
    assert_eq!(run.text("/vms/3/name"), "lent");
    assert_eq!(run.figure("/vms/3/memory_bytes"), 80 << 20);
    let resident = run.figure("/vms/3/resident_bytes");
    assert!(resident > 32 << 20, "{}", run.transcript());
    assert_eq!(
        run.figure("/vms/3/lent_bytes"),
        resident,
        "{}",
        run.transcript()
    );
}

#[test]
fn linux_runs_on_two_vcpus() {
    let run = Scenario::of(Guest::linux("demo").unwrap().vcpus(2))
        .run()
        .unwrap();
    assert_good(&run);
    assert_demo(&run, "linux", "mte mte3");
    assert_tagged(&run, 0);
    assert_eq!(cpus(&run, "linux"), "2 CPU", "{}", run.transcript());
}
