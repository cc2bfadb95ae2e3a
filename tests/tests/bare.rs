//! The guests at QEMU's own EL1: what they expect is the architecture, not what tagvisor happens to do.

// A helper of tests may fail the test.
#![allow(clippy::unwrap_used)]

use tagvisor_tests::{Finished, Qemu};

fn at_el1(name: &str, bootargs: &str, arguments: &[&str]) -> Finished {
    let (ended, _) = Qemu::at_el1(name, bootargs)
        .unwrap()
        .with(arguments)
        .run()
        .unwrap();
    assert_eq!(ended.code, Some(0), "{}", ended.transcript());
    ended
}

#[test]
fn hello_passes() {
    let ended = at_el1("el1-hello", "", &[]);
    assert_eq!(
        ended.line("HELLO PASS"),
        Some("HELLO PASS"),
        "{}",
        ended.transcript()
    );
}

#[test]
fn tags_pass_and_their_sum_depends_on_the_seed_alone() {
    let sum = |bootargs, arguments: &[&str]| {
        let ended = at_el1("el1-tags", bootargs, arguments);
        assert_eq!(
            ended.line("TAGS PASS"),
            Some("TAGS PASS"),
            "{}",
            ended.transcript()
        );
        ended.line("TAGS tagged=").unwrap_or_default().to_owned()
    };
    let first = sum("seed=1", &[]);
    assert!(
        first.starts_with("TAGS tagged=577 plain=512 sum=0x"),
        "{first}"
    );
    assert_eq!(sum("seed=1", &["-cpu", "neoverse-n2"]), first);
    assert_ne!(sum("seed=2", &[]), first);
}

#[test]
fn several_cpus_interrupt_and_stop_each_other() {
    for (mode, done) in [
        ("mode=ring n=100", "DONE ring up=3 back=100"),
        ("mode=ring n=100 sleep=1", "DONE ring up=3 back=100"),
        (
            "mode=active n=50",
            "DONE active up=1 early=0 held=50 late=0",
        ),
        ("mode=again n=50", "DONE again times=50 refused=0 lost=0"),
        ("mode=leave", "DONE leave up=3"),
    ] {
        let vcpus = if mode.starts_with("mode=active") {
            2
        } else {
            4
        };
        let bootargs = format!("vcpus={vcpus} {mode}");
        let ended = at_el1("el1-smp", &bootargs, &["-smp", "4"]);
        assert_eq!(ended.line("DONE"), Some(done), "{}", ended.transcript());
    }
}

#[test]
fn a_cpu_without_mte_is_said() {
    let ended = at_el1("el1-tags", "", &["-M", "mte=off"]);
    assert!(
        ended.line("TAGS FAIL needs EL1 with MTE").is_some(),
        "{}",
        ended.transcript()
    );
}

#[test]
fn every_answer_that_the_hostile_guest_expects_is_the_architectures() {
    for arguments in [
        &["-cpu", "max"][..],
        &["-cpu", "neoverse-n2"],
        &["-M", "mte=off"],
    ] {
        let ended = at_el1("el1-hostile", "bare=1", arguments);
        let result = ended.line("HOSTILE passed=").unwrap_or_default();
        assert!(result.ends_with(" failed=0"), "{}", ended.transcript());
    }
}

#[test]
fn guests_of_tag_storage_pass_without_a_hypervisor() {
    for bootargs in [
        "mode=tag permille=300",
        "mode=tag permille=100 order=linear busy=4",
        "mode=fill",
        "mode=bench pages=4096",
        "mode=fresh pages=4096",
        "mode=code pages=1024 permille=500 vcpus=2",
        "mode=atomics pages=1024 permille=500",
    ] {
        let ended = at_el1("el1-storage", bootargs, &["-smp", "2"]);
        assert!(
            ended.line("RESULT ok").is_some(),
            "{bootargs}: {}",
            ended.transcript()
        );
    }
}

#[test]
fn a_guest_of_tag_storage_notices_one_wrong_word_and_one_wrong_tag() {
    for (bootargs, what) in [
        (
            "mode=tag spoil=30000",
            "RESULT bad data are lost: page=30000 ",
        ),
        (
            "mode=tag permille=1000 pages=2000 spoiltag=1999",
            "RESULT bad a tag is lost: page=1999 ",
        ),
    ] {
        let ended = at_el1("el1-storage", bootargs, &[]);
        assert!(
            ended.line(what).is_some(),
            "{bootargs}: {}",
            ended.transcript()
        );
    }
}
