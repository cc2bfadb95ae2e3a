//! Debian's unmodified kernel under tagvisor: the demo, its figures under each policy, several vCPUs and VMs.

// A helper of tests may fail the test.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use tagvisor_tests::{Folder, Guest, Run, Scenario, is_full};

const BLOCK: u64 = 4096;
/// PROT_MTE pages of the demo.
const PAGES: u64 = 4096;
/// What a kernel may tag for itself, in pages.
const KERNELS_OWN: u64 = 8;
/// EL2 may execute so many instructions from reset to the guest's first.
const BOOT_INSTRUCTIONS: u64 = 30_000_000;

/// `scripts/run --batch` with these options: the demo on 2 GiB.
fn demo(options: &[&str]) -> Run {
    Scenario::demo().with(options).run().unwrap()
}

/// All VMs powered themselves off, EL2 kept its promises, and all memory is back.
fn assert_good(run: &Run) {
    assert_eq!(run.finished.code, Some(0), "{}", run.transcript());
    let vms = run.report.pointer("/vms").unwrap().as_array().unwrap();
    assert!(!vms.is_empty(), "{}", run.transcript());
    assert!(
        vms.iter().all(|vm| vm.get("end") == Some(&"off".into())),
        "{}",
        run.transcript()
    );
    assert_eq!(run.figure("/invariants/broken"), 0, "{}", run.transcript());
    assert!(run.figure("/invariants/checked") > 0);
    if run.text("/policy") != "static" {
        let left = run.figure("/final/reserved_bytes");
        assert_eq!(left, 0, "{}", run.transcript());
    }
}

/// Guest `name` has seen `features` in its /proc/cpuinfo, and that its tags work.
fn assert_demo(run: &Run, name: &str, features: &str) {
    assert_eq!(
        run.guest_line(name, "/proc/cpuinfo:"),
        format!("/proc/cpuinfo: {features}"),
        "{}",
        run.transcript()
    );
    let result = run.guest_line(name, "TAGDEMO");
    assert!(
        result.starts_with("TAGDEMO pages=4096 bad=0 mismatch=segv_mteserr"),
        "{}",
        run.transcript()
    );
    assert!(result.ends_with(" result=ok"), "{}", run.transcript());
    assert_eq!(run.guest_line(name, "GUEST-RESULT"), "GUEST-RESULT ok");
}

/// Of VM `index`, the pages that the demo and its kernel tag are tagged, and no others.
fn assert_tagged(run: &Run, index: usize) -> u64 {
    let tagged = run.figure(&format!("/vms/{index}/pages/tagged"));
    assert!(
        (PAGES..=PAGES + KERNELS_OWN).contains(&tagged),
        "{}",
        run.transcript()
    );
    tagged
}

/// Each page with tags has its block, and few blocks have fewer than 32 of them.
fn assert_lazy(run: &Run) {
    assert_good(run);
    assert_demo(run, "debian", "mte mte3");
    assert_eq!(run.text("/policy"), "lazy");
    let tagged = assert_tagged(run, 0);
    assert_eq!(run.figure("/vms/0/tag_faults"), tagged);
    let (reserved, needed) = (run.figure("/reserved_bytes"), tagged.div_ceil(32) * BLOCK);
    assert!(
        (needed..=2 * needed).contains(&reserved) && reserved.is_multiple_of(BLOCK),
        "{reserved} reserved, {needed} needed: {}",
        run.transcript()
    );
    assert_eq!(run.figure("/vms/0/reserved_bytes"), reserved);
    assert_eq!(run.figure("/vms/0/peak/reserved_bytes"), reserved);
    let efficiency = run
        .report
        .pointer("/efficiency")
        .and_then(Value::as_f64)
        .unwrap();
    assert!(efficiency >= 0.95, "{}", run.transcript());
}

/// Each page of the guest has its block.
fn assert_eager(run: &Run, features: &str) {
    assert_good(run);
    assert_demo(run, "debian", features);
    assert_eq!(run.text("/policy"), "eager");
    let resident = run.figure("/vms/0/resident_bytes");
    assert!(resident > PAGES * 4096, "{}", run.transcript());
    assert_eq!(
        run.figure("/vms/0/pages/tagged") * 4096,
        resident,
        "{}",
        run.transcript()
    );
    let reserved = run.figure("/reserved_bytes");
    assert!(reserved >= resident / 32, "{}", run.transcript());
    assert!(reserved < run.figure("/vms/0/static_cost_bytes"));
    assert_eq!(run.figure("/vms/0/tag_faults"), 0);
}

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
    let run = demo(&["--policy", "static"]);
    assert_good(&run);
    assert_demo(&run, "debian", "mte mte3");
    assert_eq!(run.figure("/reclaimed_bytes"), 0, "{}", run.transcript());
    assert_eq!(run.figure("/vms/0/tag_faults"), 0);
}

/// The count of EL2 in the line of `event`.
fn el2_instructions(counts: &str, event: &str) -> u64 {
    let line = counts.lines().find(|line| line.starts_with(event)).unwrap();
    let count = line.split(' ').find_map(|word| word.strip_prefix("el2="));
    count.unwrap().parse().unwrap()
}

/// Runs the demo with its instructions counted; the file of counts too.
fn counted() -> (Run, String) {
    let folder = Folder::new().unwrap();
    let file = folder.path().join("count");
    let run = demo(&["--policy", "lazy", "--count", file.to_str().unwrap()]);
    (run, std::fs::read_to_string(&file).unwrap_or_default())
}

#[test]
fn the_guest_starts_within_30_million_instructions_of_el2() {
    let (run, counts) = counted();
    assert_lazy(&run);
    let instructions = el2_instructions(&counts, "first-guest-instruction");
    assert!(
        (100_000..=BOOT_INSTRUCTIONS).contains(&instructions),
        "{counts}"
    );
}

#[test]
fn counted_time_makes_linux_run_the_same_each_time() {
    if !is_full() {
        return;
    }
    let ((first, counts), (second, again)) = (counted(), counted());
    assert_lazy(&first);
    assert!(counts.contains("\nexit "), "{counts}");
    assert_eq!(counts, again);
    assert_eq!(first.report, second.report);
    assert_eq!(first.finished.output, second.finished.output);
}

#[test]
fn the_size_of_the_machine_does_not_matter() {
    if !is_full() {
        return;
    }
    for memory in ["1G", "4G"] {
        assert_lazy(&demo(&["--memory", memory]));
        assert_eager(
            &demo(&["--policy", "eager", "--memory", memory]),
            "mte mte3",
        );
    }
}

#[test]
fn a_cpu_without_mte_perm_is_served_eagerly() {
    if !is_full() {
        return;
    }
    let run = demo(&["--cpu", "neoverse-n2"]);
    assert_eager(&run, "mte");
    assert!(
        run.guest_line("debian", "TAGDEMO")
            .contains("asymm=untested")
    );
}

#[test]
fn the_figures_do_not_depend_on_where_qemu_keeps_the_tags() {
    if !is_full() {
        return;
    }
    assert_lazy(&demo(&["--policy", "lazy", "--stock-tags"]));
}

#[test]
fn invariants_hold_at_every_trap_of_linux() {
    if !is_full() {
        return;
    }
    for policy in ["lazy", "eager"] {
        let run = demo(&["--policy", policy, "--debug-checks"]);
        assert_good(&run);
        assert_demo(&run, "debian", "mte mte3");
        let checked = run.figure("/invariants/checked");
        assert!(
            checked > run.figure("/vms/0/exits/total"),
            "{}",
            run.transcript()
        );
    }
}

/// How many CPUs the demo in guest `name` has found.
fn cpus(run: &Run, name: &str) -> String {
    let line = run.guest_line(name, "demo guest:");
    let words: Vec<&str> = line.split(", ").collect();
    words.get(1).copied().unwrap_or_default().to_owned()
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

#[test]
fn two_linux_vms_of_several_vcpus_run_at_once() {
    if !is_full() {
        return;
    }
    let guest = |name| Guest::linux("demo").unwrap().named(name);
    let with = guest("with").vcpus(2);
    let without = guest("without")
        .vcpus(4)
        .without_mte()
        .and_cmdline("tagvisor.nomte");
    let run = Scenario::of(with).and(without).within(240).run().unwrap();
    assert_good(&run);
    assert_demo(&run, "with", "mte mte3");
    assert_tagged(&run, 0);
    assert_eq!(cpus(&run, "with"), "2 CPU");
    assert_eq!(cpus(&run, "without"), "4 CPU");
    assert_eq!(
        run.guest_line("without", "TAGDEMO"),
        "TAGDEMO pages=0 bad=0 result=no-mte"
    );
    assert_eq!(run.guest_line("without", "GUEST-RESULT"), "GUEST-RESULT ok");
    assert_eq!(run.figure("/vms/1/pages/tagged"), 0, "{}", run.transcript());
    assert_eq!(run.figure("/vms/1/reserved_bytes"), 0);
}

/// Runs the kernel's own MTE tests, or those that `choice` on the command line names; the line that counts them.
fn kselftest(policy: &str, choice: &str) -> String {
    let guest = Guest::linux("kselftest-mte").unwrap().and_cmdline(choice);
    let run = Scenario::of(guest)
        .with(&["--policy", policy])
        .within(900)
        .run()
        .unwrap();
    let lines = run.guest_lines("linux");
    let failed: Vec<&&str> = lines
        .iter()
        .filter(|line| line.trim_start().starts_with("not ok"))
        .collect();
    assert!(failed.is_empty(), "{failed:#?}\n{}", run.transcript());
    assert_good(&run);
    run.guest_line("linux", "KSELFTEST").to_owned()
}

/// The number of tests that passed; none failed.
fn passed(line: &str) -> u32 {
    assert!(line.contains(" fail=0 "), "{line}");
    let words = line.split(' ').find_map(|word| word.strip_prefix("pass="));
    words.unwrap().parse().unwrap()
}

#[test]
fn the_kernels_own_mte_tests_pass() {
    if !is_full() {
        return;
    }
    assert!(passed(&kselftest("lazy", "")) >= 130);
    let some = "tagvisor.tests=check_prctl,check_buffer_fill,check_user_mem";
    assert!(passed(&kselftest("eager", some)) >= 40);
}
