//! As many VMs as a machine of 2 GiB has memory for, all at once: under static one fewer than under lazy; one too many is refused
//! and hurts nobody.
//!
//! The bare-metal guests write all their memory, and carry a Linux kernel that they do not need: the machine has as much to load.

// A helper of tests may fail the test.
#![allow(clippy::unwrap_used)]

use tagvisor_tests::{Guest, Run, Scenario, linux};

/// Bytes of a KiB.
const KIB: u64 = 1 << 10;

/// What guests are made of, and the line by which one says that it is up.
struct Kind {
    guest: fn(&str) -> Guest,
    up: &'static str,
    good: &'static str,
}

/// Writes all its memory, waits until the others have too, tags 60 of a thousand pages, and verifies.
const BARE: Kind = Kind {
    guest: |name| {
        Guest::bare("el1-storage")
            .unwrap()
            .named(name)
            .initrd(linux().unwrap())
            .cmdline("mode=tag bytes=64 permille=60 wait=5000 hold=3000")
    },
    up: "WRITTEN pages=",
    good: "RESULT ok",
};

/// Stays in user space until all others are there. Without `cma=0` Debian's kernel sets 64 MiB aside for devices, and may then run
/// out of memory while it boots; a kernel that panics ends the test.
#[cfg(feature = "full")]
const LINUX: Kind = Kind {
    guest: |name| {
        Guest::linux("demo")
            .unwrap()
            .named(name)
            .and_cmdline("quiet cma=0 panic=-1 tagvisor.mib=4 tagvisor.hold=60")
    },
    up: "demo guest:",
    good: "GUEST-RESULT ok",
};

/// `count` guests of `memory`, made by `change` what they are to be.
fn guests(kind: &Kind, count: usize, memory: &str, change: fn(Guest) -> Guest) -> Vec<Guest> {
    let name = |number: usize| format!("vm{number}");
    (1..=count)
        .map(|number| change((kind.guest)(&name(number)).memory(memory)))
        .collect()
}

/// Runs them on 2 GiB and 2 CPUs.
fn run(guests: Vec<Guest>, policy: &str) -> Run {
    let scenario = guests.into_iter().fold(Scenario::default(), Scenario::and);
    scenario
        .with(&["--cpus", "2", "--icount", "--policy", policy])
        .within(3000)
        .run()
        .unwrap()
}

/// The first `count` VMs were all up before one was done, each was right, and nothing is broken.
fn assert_all_ran(run: &Run, kind: &Kind, count: usize) {
    let output = &run.finished.output;
    let done = output.find(" ended: ").unwrap();
    for number in 1..=count {
        let name = format!("vm{number}");
        let up = output.find(&format!("{name}| {}", kind.up));
        assert!(
            up.is_some_and(|up| up < done),
            "{name}: {}",
            run.transcript()
        );
        assert!(
            !run.guest_line(&name, kind.good).is_empty(),
            "{name}: {}",
            run.transcript()
        );
        let end = run.text(&format!("/vms/{}/end", number - 1));
        assert_eq!(end, "off", "{name}: {}", run.transcript());
    }
    assert_eq!(run.figure("/invariants/broken"), 0, "{}", run.transcript());
    assert_eq!(run.figure("/final/lent_bytes"), 0, "{}", run.transcript());
}

/// The VM after the first `count` was refused for want of memory, and told why; the run says so.
fn assert_next_is_refused(run: &Run, count: usize, reason: &str) {
    let end = run.text(&format!("/vms/{count}/end"));
    assert_eq!(end, "refused", "{}", run.transcript());
    let told = run.text(&format!("/vms/{count}/reason"));
    assert!(told.contains(reason), "{told}: {}", run.transcript());
    assert_eq!(run.finished.code, Some(1), "{}", run.transcript());
}

fn budget_of_256k(guest: Guest) -> Guest {
    guest.tag_budget(256 * KIB)
}

/// Sixteen of 122 MiB run under lazy, and a seventeenth is refused.
fn assert_sixteen_under_lazy(kind: &Kind) {
    let mut all = guests(kind, 16, "122M", budget_of_256k);
    let one_more = Guest::bare("el1-hello").unwrap().named("more");
    all.push(one_more.memory("24M").tag_budget(256 * KIB));
    let run = run(all, "lazy");
    assert_all_ran(&run, kind, 16);
    assert_next_is_refused(&run, 16, "lower memory of some VM");
}

/// Fifteen of 122 MiB run under static, and one more is refused even if it is smaller: by EL2, or before QEMU starts.
fn assert_fifteen_under_static(kind: &Kind) {
    let mut all = guests(kind, 15, "122M", budget_of_256k);
    let smaller = (kind.guest)("more").memory("114M");
    all.push(smaller);
    let ran = run(all, "static");
    assert_all_ran(&ran, kind, 15);
    assert_next_is_refused(&ran, 15, "lower");
    let refused = run(guests(kind, 16, "122M", budget_of_256k), "static");
    assert_eq!(refused.finished.code, Some(2), "{}", refused.transcript());
    let told = &refused.finished.errors;
    assert!(
        told.contains("lower the guests' memory"),
        "{}",
        refused.transcript()
    );
}

fn assert_fifteen_of_128_mib(kind: &Kind) {
    let run = run(guests(kind, 15, "128M", |guest| guest), "lazy");
    assert_all_ran(&run, kind, 15);
    assert_eq!(run.finished.code, Some(0), "{}", run.transcript());
}

#[test]
fn sixteen_vms_run_where_one_more_is_refused() {
    assert_sixteen_under_lazy(&BARE);
}

#[test]
fn fifteen_of_them_run_under_static() {
    assert_fifteen_under_static(&BARE);
}

#[test]
fn fifteen_vms_of_128_mib_run_with_tags_for_all_their_memory() {
    assert_fifteen_of_128_mib(&BARE);
}

#[cfg(feature = "full")]
#[test]
fn sixteen_linux_vms_run_where_one_more_is_refused() {
    assert_sixteen_under_lazy(&LINUX);
}

#[cfg(feature = "full")]
#[test]
fn fifteen_linux_vms_run_under_static() {
    assert_fifteen_under_static(&LINUX);
}

#[cfg(feature = "full")]
#[test]
fn fifteen_linux_vms_of_128_mib_run_with_tags_for_all_their_memory() {
    assert_fifteen_of_128_mib(&LINUX);
}
