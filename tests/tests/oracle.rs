//! The carve-out oracle: proved in both directions, and loud when it cannot hold.

// A helper of tests may fail the test.
#![allow(clippy::unwrap_used)]

use tagvisor_tests::{Finished, Qemu};

/// The backend that the oracle needs, and others that it must refuse.
const MEMFD: &str = "memory-backend-memfd,share=on";

fn payload(memory: &str, backend: &str) -> Qemu {
    Qemu::at_el2("oracle-payload", memory, backend).unwrap()
}

/// The run was stopped before its guest, with a message that begins with `cause`.
fn assert_refused(qemu: &Qemu, cause: &str) {
    let (ended, proof) = qemu.clone().with_oracle().run().unwrap();
    assert_eq!(ended.code, Some(99), "{}", ended.transcript());
    assert!(
        ended.errors.contains(&format!("carveout: {cause}")),
        "{}",
        ended.transcript()
    );
    assert_eq!(proof, None);
}

fn assert_passes((ended, proof): (Finished, Option<String>), want: &str) {
    assert!(
        ended.line("ORACLE PASS").is_some(),
        "{}",
        ended.transcript()
    );
    assert_eq!(ended.code, Some(0), "{}", ended.transcript());
    assert_eq!(proof.as_deref(), Some(want), "{}", ended.transcript());
    assert_eq!(ended.errors, "", "the oracle is silent when all is well");
}

#[test]
fn tags_are_carve_out_data_and_carve_out_data_are_tags() {
    assert_passes(
        payload("1G", MEMFD).with_oracle().run().unwrap(),
        "moved offset=0x3e000000 size=0x2000000\n",
    );
}

#[test]
fn the_alias_holds_at_sizes_where_the_tag_ram_is_as_big_as_a_flash_bank() {
    let run = payload("2G", MEMFD).with_oracle().run().unwrap();
    assert_passes(run, "moved offset=0x7c000000 size=0x4000000\n");
}

#[test]
fn the_alias_holds_with_four_cpus_and_four_gigabytes() {
    let run = payload("4G", MEMFD)
        .with(&["-smp", "4"])
        .with_oracle()
        .run()
        .unwrap();
    assert_passes(run, "moved offset=0xf8000000 size=0x8000000\n");
}

#[test]
fn the_alias_holds_when_time_is_counted_in_instructions() {
    let run = payload("1000M", MEMFD)
        .with(&["-icount", "shift=0,sleep=off"])
        .with_oracle()
        .run()
        .unwrap();
    assert_passes(run, "moved offset=0x3c8c0000 size=0x1f40000\n");
}

#[test]
fn without_the_oracle_the_payload_fails() {
    let (ended, proof) = payload("1G", MEMFD).run().unwrap();
    assert!(
        ended
            .line("ORACLE FAIL tags are not in the carve-out")
            .is_some(),
        "{}",
        ended.transcript()
    );
    assert_eq!(proof, None);
}

#[test]
fn anonymous_memory_is_refused() {
    assert_refused(
        &payload("1G", "memory-backend-ram"),
        "memory region mem has no file behind it",
    );
}

#[test]
fn private_memory_is_refused() {
    assert_refused(
        &payload("1G", "memory-backend-memfd,share=off"),
        "the carve-out does not alias main RAM",
    );
}

#[test]
fn a_machine_without_tags_is_refused_at_its_end() {
    let qemu = payload("1G", MEMFD).with(&["-M", "mte=off"]);
    assert_refused(&qemu, "a machine ran without its tags in the carve-out");
}

#[test]
fn a_backend_that_may_not_be_main_ram_is_refused() {
    let other = [
        "-object",
        "memory-backend-memfd,id=other,size=1G,share=on",
        "-M",
        "memory-backend=other",
    ];
    assert_refused(
        &payload("1G", MEMFD).with(&other),
        "memory region other is as big as mem",
    );
    let small = [
        "-object",
        "memory-backend-memfd,id=other,size=2G,share=on",
        "-M",
        "memory-backend=other",
        "-m",
        "2G",
    ];
    assert_refused(
        &payload("1G", MEMFD).with(&small),
        "memory region mem has 1073741824 bytes but the tag RAM has",
    );
}

#[test]
fn secure_ram_with_tags_of_its_own_is_refused() {
    assert_refused(
        &payload("1G", MEMFD).with(&["-M", "secure=on"]),
        "this machine has secure RAM",
    );
}

#[test]
fn tags_before_main_ram_are_refused() {
    let qemu = Qemu::at_el1("el1-hello", "").unwrap();
    assert_refused(&qemu, "tag RAM mach-virt.tag came before memory region mem");
}
