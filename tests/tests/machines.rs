//! tagvisor on odd machines and with broken inputs.

// A helper of tests may fail the test.
#![allow(clippy::unwrap_used)]

use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use tagvisor_tests::{Guest, Machine, Run};
use tagvisor_tool::board::DTB;
use tagvisor_tool::bundle::Policy;

fn tags() -> Machine {
    Machine::of(Guest::bare("el1-tags").unwrap())
}

fn hello() -> Machine {
    Machine::of(Guest::bare("el1-hello").unwrap())
}

fn run(machine: &Machine) -> Run {
    machine.run().unwrap()
}

fn assert_tags_pass(run: &Run) {
    assert_eq!(
        run.guest_line("el1-tags", "TAGS PASS"),
        "TAGS PASS",
        "{}",
        run.transcript()
    );
    assert_eq!(run.text("/vms/0/end"), "off", "{}", run.transcript());
    assert_eq!(run.figure("/invariants/broken"), 0, "{}", run.transcript());
    assert_eq!(run.finished.code, Some(0), "{}", run.transcript());
}

/// tagvisor stops before any guest, with one clear line that has `cause`.
fn assert_fatal(run: &Run, cause: &str) {
    let fatal: Vec<&str> = run
        .finished
        .output
        .lines()
        .filter(|line| line.starts_with("[tagvisor] FATAL"))
        .collect();
    assert_eq!(fatal.len(), 1, "{}", run.transcript());
    assert!(fatal.concat().contains(cause), "{}", run.transcript());
    assert!(
        !run.finished.output.contains("HELLO"),
        "{}",
        run.transcript()
    );
}

#[test]
fn tag_blocks_of_every_size_work() {
    for block_bytes in [1, 0x1000, 0x2000, 0x3000, 0x8000] {
        for policy in [Policy::Lazy, Policy::Eager] {
            let mut machine = tags();
            machine.spec.block_bytes = block_bytes;
            machine.policy = policy;
            let run = run(&machine);
            assert_tags_pass(&run);
            let block = u64::from(block_bytes).next_multiple_of(4096);
            assert_eq!(
                run.figure("/regions/0/block_bytes"),
                block,
                "{}",
                run.transcript()
            );
            assert_eq!(
                run.figure("/reserved_bytes") % block,
                0,
                "{}",
                run.transcript()
            );
            assert_eq!(
                run.figure("/final/reserved_bytes"),
                0,
                "{}",
                run.transcript()
            );
        }
    }
}

#[test]
fn two_tag_regions_work() {
    let mut machine = tags();
    machine.spec.regions = 2;
    let run = run(&machine);
    assert_tags_pass(&run);
    let sum = run.figure("/regions/0/bytes") + run.figure("/regions/1/bytes");
    assert_eq!(sum, run.figure("/carve_out_bytes"), "{}", run.transcript());
}

#[test]
fn a_region_that_is_refused_stays_static_and_guests_keep_mte() {
    let mut machine = tags();
    machine.spec.block_bytes = 0;
    let run = run(&machine);
    assert_tags_pass(&run);
    let said = run.transcript();
    assert!(said.contains("refused: block-size is 0"), "{said}");
    assert!(said.contains("policy=static"), "{said}");
    assert_eq!(run.figure("/carve_out_bytes"), 0, "{said}");
}

#[test]
fn a_machine_that_hides_its_tags_runs_guests_with_mte() {
    let mut machine = tags();
    machine.spec.no_region = true;
    machine.spec.stock_tags = true;
    let run = run(&machine);
    assert_tags_pass(&run);
    assert_eq!(run.figure("/carve_out_bytes"), 0, "{}", run.transcript());
}

#[test]
fn what_firmware_left_in_tags_and_data_never_reaches_a_guest() {
    for policy in [Policy::Lazy, Policy::Eager, Policy::Static] {
        let mut machine = tags().with_junk(0x4800_0000, 96 << 20);
        machine.policy = policy;
        machine.spec.memory_bytes = 256 << 20;
        let carve_out = machine.spec.geometry().regions.first().unwrap().tags;
        assert_tags_pass(&run(&machine.with_junk(carve_out.base, carve_out.bytes)));
    }
}

/// Reserves 60 single pages, each far from the others.
fn reserve_pages(dtb: &mut Vec<u8>) {
    let mut tree = DeviceTree::from_fdt(&Fdt::new(dtb).unwrap());
    let reserved = tree.root.child_mut("reserved-memory").unwrap();
    for base in (0..60).map(|number| 0x6000_0000 + number * 0x3_3000_u64) {
        let mut page = DeviceTreeNode::new(format!("page@{base:x}")).unwrap();
        let reg = [base.to_be_bytes(), 4096_u64.to_be_bytes()].concat();
        page.add_property(DeviceTreeProperty::new("reg", reg).unwrap());
        reserved.add_child(page);
    }
    *dtb = tree.to_dtb();
}

#[test]
fn many_small_reservations_leave_a_machine_that_works() {
    let run = run(&tags().with_dtb(reserve_pages));
    assert_tags_pass(&run);
    // The tags of a page that is never a guest's have no use; their block serves its neighbours all the same.
    assert_eq!(run.figure("/final/reserved_bytes"), 0);
}

/// Adds CPUs 6, which no PSCI starts, and 7, which firmware does not have.
fn add_cpus(dtb: &mut Vec<u8>) {
    let mut tree = DeviceTree::from_fdt(&Fdt::new(dtb).unwrap());
    let cpus = tree.root.child_mut("cpus").unwrap();
    for (mpidr, method) in [(6_u32, "spin-table\0"), (7, "psci\0")] {
        let mut cpu = DeviceTreeNode::new(format!("cpu@{mpidr}")).unwrap();
        let reg = mpidr.to_be_bytes().to_vec();
        for (name, value) in [
            ("device_type", b"cpu\0".to_vec()),
            ("enable-method", method.as_bytes().to_vec()),
            ("reg", reg),
        ] {
            cpu.add_property(DeviceTreeProperty::new(name, value).unwrap());
        }
        cpus.add_child(cpu);
    }
    *dtb = tree.to_dtb();
}

#[test]
fn cpus_that_cannot_be_started_are_left_out() {
    let mut machine = tags().with_dtb(add_cpus);
    machine.spec.cpus = 4;
    let run = run(&machine);
    assert_tags_pass(&run);
    let out = &run.finished.output;
    for line in [
        "the CPU with MPIDR 0x6 is left out: its enable-method in the DTB is not \"psci\"",
        "the CPU with MPIDR 0x7 is left out: no GIC redistributor",
        "mte_perm=true cpus=4",
    ] {
        assert!(out.contains(line), "no {line:?}: {}", run.transcript());
    }
    assert_eq!(out.matches("left out").count(), 2, "{}", run.transcript());
    assert_eq!(run.figure("/machine/cpus"), 6, "{}", run.transcript());
}

#[test]
fn a_machine_without_a_bundle_says_so() {
    assert_fatal(&run(&hello().with_bundle(Vec::clear)), "bundle");
}

#[test]
fn a_cut_bundle_says_so() {
    assert_fatal(
        &run(&hello().with_bundle(|bytes| bytes.truncate(bytes.len() / 2))),
        "bundle",
    );
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let broken = hello().with_bundle(|bytes| {
        let at = bytes
            .windows(7)
            .position(|window| window == b"policy ")
            .unwrap();
        bytes[at..at + 6].copy_from_slice(b"policx");
    });
    let run = run(&broken);
    assert_fatal(&run, "policx");
    assert!(
        run.finished.output.contains("line 2"),
        "{}",
        run.transcript()
    );
}

#[test]
fn a_broken_device_tree_says_so() {
    assert_fatal(
        &run(&hello().with_dtb(|bytes| bytes[4] = 0xff).within(10)),
        "device tree",
    );
}

#[test]
fn an_x0_without_a_device_tree_says_so() {
    let zeros = 0x5000_0000;
    let unaligned = DTB + 4;
    let no_memory = 0x10_0000_0000;
    for x0 in [zeros, unaligned, no_memory] {
        assert_fatal(&run(&hello().with_x0(x0).within(10)), "device tree");
    }
}

#[test]
fn el1_is_no_place_for_a_hypervisor() {
    let run = run(&hello().with(&["-M", "virtualization=off"]).within(10));
    assert_fatal(&run, "EL2");
}
