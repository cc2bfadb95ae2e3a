//! Debian's unmodified kernel under tagvisor, at length: other machines, checks at every trap, several VMs, the kernel's own tests.

// A helper of tests may fail the test.
#![allow(clippy::unwrap_used)]

mod demo;

use demo::{
    assert_demo, assert_eager, assert_good, assert_lazy, assert_static, assert_tagged, counted,
    cpus, demo, events, marks,
};
use tagvisor_tests::{Guest, Scenario};

#[test]
fn counted_time_makes_linux_run_the_same_each_time() {
    let ((first, counts), (second, again)) = (counted(), counted());
    assert_lazy(&first);
    assert!(counts.contains("\nexit "), "{counts}");
    assert_eq!(counts, again);
    assert_eq!(first.report, second.report);
    assert_eq!(first.finished.output, second.finished.output);
}

/// How often `mark` was given.
fn times(counts: &str, mark: u32) -> usize {
    let name = format!("mark-{mark:#x}");
    let all = events(counts);
    all.iter().filter(|&&(event, _)| event == name).count()
}

#[test]
fn each_bench_of_the_marks_guest_begins_and_ends() {
    let counts = marks("work=bench n=100");
    for mark in 0x64..=0x6c {
        assert_eq!(times(&counts, mark), 2, "{mark:#x}: {counts}");
    }
    let counts = marks("work=idle");
    for mark in [0x6d, 0x69] {
        assert_eq!(times(&counts, mark), 2, "{mark:#x}: {counts}");
    }
}

#[test]
fn the_size_of_the_machine_does_not_matter() {
    for memory in ["1G", "4G"] {
        assert_lazy(&demo(&["--memory", memory]));
        assert_eager(
            &demo(&["--policy", "eager", "--memory", memory]),
            "mte mte3",
        );
        assert_static(&demo(&["--policy", "static", "--memory", memory]));
    }
}

#[test]
fn a_cpu_without_mte_perm_is_served_eagerly() {
    let run = demo(&["--cpu", "neoverse-n2"]);
    assert_eager(&run, "mte");
    assert!(
        run.guest_line("debian", "TAGDEMO")
            .contains("asymm=untested")
    );
}

#[test]
fn the_figures_do_not_depend_on_where_qemu_keeps_the_tags() {
    assert_lazy(&demo(&["--policy", "lazy", "--stock-tags"]));
}

#[test]
fn invariants_hold_at_every_trap_of_linux() {
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

#[test]
fn two_linux_vms_of_several_vcpus_run_at_once() {
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

/// The demo on the kernel of `guest` with 1 to 8 vCPUs: its tags work, and storage is reserved exactly for the pages that it tags: its
/// own and the kernel's zero page of `zero` times 4 KiB.
fn assert_runs(guest: &Guest, zero: u64) {
    for vcpus in [1, 2, 4, 8] {
        let run = Scenario::of(guest.clone().vcpus(vcpus))
            .with(&["--cpus", "2", "--icount"])
            .within(600)
            .run()
            .unwrap();
        assert_good(&run);
        assert_demo(&run, "linux", "mte mte3");
        assert_eq!(cpus(&run, "linux"), format!("{vcpus} CPU"));
        let version = run.guest_line("linux", "demo guest:");
        assert_eq!(version.contains("-16k,"), zero == 4, "{version}");
        let tagged = run.figure("/vms/0/pages/tagged");
        assert_eq!(tagged, 4096 + zero, "{}", run.transcript());
        assert_eq!(
            run.figure("/reserved_bytes"),
            tagged.div_ceil(32) * 4096,
            "{}",
            run.transcript()
        );
    }
}

/// The demo on another of set-up's kernels.
fn demo_on(kernel: &str) -> Guest {
    Guest::linux("demo").unwrap().kernel(kernel).unwrap()
}

#[test]
fn the_stable_kernel_runs_with_pages_of_4_kib() {
    assert_runs(&Guest::linux("demo").unwrap(), 1);
}

#[test]
fn the_stable_kernel_runs_with_pages_of_16_kib() {
    assert_runs(&demo_on("stable-16k"), 4);
}

#[test]
fn the_newest_kernel_runs_with_pages_of_4_kib() {
    assert_runs(&demo_on("newest-4k"), 1);
}

#[test]
fn the_newest_kernel_runs_with_pages_of_16_kib() {
    assert_runs(&demo_on("newest-16k"), 4);
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
    assert!(passed(&kselftest("lazy", "")) >= 130);
    let some = "tagvisor.tests=check_prctl,check_buffer_fill,check_user_mem";
    assert!(passed(&kselftest("eager", some)) >= 40);
}
