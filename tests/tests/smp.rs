//! Several physical CPUs: guests run on all of them at once, vCPUs on different ones interrupt each other, start, stop and leave.

// A helper of tests may fail the test.
#![allow(clippy::unwrap_used)]

use tagvisor_tests::{Finished, Folder, Guest, Run, Scenario, patch, tagvisor_elf};

/// A guest with as many vCPUs.
fn smp(vcpus: u32, cmdline: &str) -> Guest {
    Guest::bare("el1-smp")
        .unwrap()
        .named("smp")
        .vcpus(vcpus)
        .cmdline(&format!("vcpus={vcpus} {cmdline}"))
}

fn spinner(name: &str) -> Guest {
    Guest::bare("el1-neighbour")
        .unwrap()
        .named(name)
        .cmdline("mode=spin ms=1500")
}

fn on(cpus: &str, scenario: Scenario) -> Scenario {
    scenario.with(&["--cpus", cpus])
}

/// All VMs powered themselves off, EL2 kept its promises, and all memory is back.
fn assert_good(run: &Run) {
    assert_eq!(run.finished.code, Some(0), "{}", run.transcript());
    assert_eq!(run.figure("/invariants/broken"), 0, "{}", run.transcript());
    assert_eq!(
        run.figure("/final/reserved_bytes"),
        0,
        "{}",
        run.transcript()
    );
    assert!(
        !run.finished.output.contains("left out"),
        "{}",
        run.transcript()
    );
}

fn run(scenario: &Scenario) -> Run {
    let run = scenario.run().unwrap();
    assert_good(&run);
    run
}

fn assert_done(scenario: Scenario, done: &str) {
    let run = run(&scenario);
    assert_eq!(run.guest_line("smp", "DONE"), done, "{}", run.transcript());
}

/// How often each of two spinning VMs was interrupted, and whether both had begun before one was done.
fn two_spinners(cpus: &str) -> ([u64; 2], bool) {
    let run = run(&on(cpus, Scenario::of(spinner("a")).and(spinner("b"))));
    let irqs = [0, 1].map(|vm| run.figure(&format!("/vms/{vm}/exits/irq")));
    let place = |text: &str| run.finished.output.find(text).unwrap();
    let begun = place("a| SPIN begins").max(place("b| SPIN begins"));
    let done = place("a| DONE spin").min(place("b| DONE spin"));
    (irqs, begun < done)
}

#[test]
fn two_vms_run_at_the_same_time_on_two_cpus() {
    let (shared, _) = two_spinners("1");
    assert!(shared.iter().all(|irqs| *irqs > 20), "{shared:?}");
    // Neither was interrupted for the other, so each had a CPU to itself while both were spinning.
    let (apart, together) = two_spinners("2");
    assert!(together);
    assert!(apart.iter().all(|irqs| *irqs < 10), "{apart:?}");
}

#[test]
fn an_sgi_reaches_a_vcpu_that_runs_on_another_cpu() {
    assert_done(
        on("2", Scenario::of(smp(2, "mode=ring n=500"))),
        "DONE ring up=1 back=500",
    );
    assert_done(
        on("4", Scenario::of(smp(4, "mode=ring n=200"))),
        "DONE ring up=3 back=200",
    );
}

#[test]
fn an_sgi_wakes_a_vcpu_that_sleeps_on_another_cpu() {
    assert_done(
        on("2", Scenario::of(smp(2, "mode=ring n=500 sleep=1"))),
        "DONE ring up=1 back=500",
    );
    // Some share a CPU.
    assert_done(
        on("3", Scenario::of(smp(8, "mode=ring n=50 sleep=1"))),
        "DONE ring up=7 back=50",
    );
}

#[test]
fn what_is_active_on_another_cpu_is_read_as_active() {
    assert_done(
        on("2", Scenario::of(smp(2, "mode=active n=100"))),
        "DONE active up=1 early=0 held=100 late=0",
    );
}

#[test]
fn a_vcpu_is_turned_on_and_off_again_and_again() {
    for cpus in ["1", "2"] {
        assert_done(
            on(cpus, Scenario::of(smp(2, "mode=again n=100"))),
            "DONE again times=100 refused=0 lost=0",
        );
    }
}

#[test]
fn a_vm_ends_while_its_vcpus_run_on_all_cpus() {
    for cpus in ["1", "2", "3"] {
        assert_done(
            on(cpus, Scenario::of(smp(4, "mode=leave"))),
            "DONE leave up=3",
        );
    }
}

#[test]
fn memory_of_a_vm_that_ends_on_two_cpus_is_checked() {
    let scenario = Scenario::of(smp(4, "mode=leave")).with(&["--debug-checks"]);
    assert_done(on("2", scenario), "DONE leave up=3");
}

fn assert_code(finished: &Finished, code: i32) {
    assert_eq!(finished.code, Some(code), "{}", finished.transcript());
}

#[test]
fn a_vm_restarts_while_its_vcpus_run_on_all_cpus() {
    let finished = on("2", Scenario::of(smp(3, "mode=echo")))
        .interact(|terminal| {
            for _ in 0..5 {
                terminal.expect("ECHO ready up=2\r\n")?;
                terminal.write("r")?;
                terminal.expect("vm=smp restarts")?;
            }
            terminal.expect("ECHO ready up=2\r\n")?;
            terminal.write("o")
        })
        .unwrap();
    assert_code(&finished, 0);
}

#[test]
fn the_escape_key_stops_vms_on_all_cpus() {
    let finished = on("2", Scenario::of(smp(4, "mode=echo")).and(spinner("other")))
        .interact(|terminal| {
            terminal.expect("ECHO ready up=3\r\n")?;
            terminal.write("\x1dq")?;
            terminal.expect("vm=smp ended: stopped")
        })
        .unwrap();
    assert_code(&finished, 0);
}

#[test]
fn a_run_on_two_cpus_in_counted_time_repeats_to_the_digit() {
    let counted = || {
        let sleeper = Guest::bare("el1-neighbour").unwrap();
        let sleeper = sleeper.named("other").cmdline("mode=sleep ms=2 n=20");
        let scenario = Scenario::of(smp(3, "mode=ring n=20 sleep=1")).and(sleeper);
        run(&on("2", scenario).with(&["--icount"]))
    };
    let (first, second) = (counted(), counted());
    assert_eq!(first.finished.output, second.finished.output);
    assert_eq!(first.report, second.report);
}

#[test]
fn linux_with_eight_vcpus_runs_on_two_cpus() {
    let guest = Guest::linux("demo").unwrap().vcpus(8);
    let scenario = Scenario::of(guest).with(&["--icount"]).within(600);
    let run = run(&on("2", scenario));
    assert_eq!(
        run.guest_line("linux", "GUEST-RESULT"),
        "GUEST-RESULT ok",
        "{}",
        run.transcript()
    );
    let line = run.guest_line("linux", "demo guest:");
    assert!(line.contains(", 8 CPU"), "{}", run.transcript());
}

/// Runs two guests on two CPUs under a tagvisor whose instructions at `symbol` are `code`.
fn run_with(symbol: &str, code: &[u32]) -> Run {
    let folder = Folder::new().unwrap();
    let file = folder.path().join("broken");
    let mut elf = std::fs::read(tagvisor_elf().unwrap()).unwrap();
    patch(&mut elf, symbol, code).unwrap();
    std::fs::write(&file, elf).unwrap();
    let hello = |name| Guest::bare("el1-hello").unwrap().named(name);
    on("2", Scenario::of(hello("a")).and(hello("b")))
        .with(&["--el2", file.to_str().unwrap()])
        .within(30)
        .run()
        .unwrap()
}

#[test]
fn a_cpu_that_does_not_come_is_left_out_after_a_second() {
    // b .
    let run = run_with("secondary_entry", &[0x1400_0000]);
    assert_eq!(run.finished.code, Some(0), "{}", run.transcript());
    let out = &run.finished.output;
    assert!(
        out.contains("MPIDR 0x1 is left out: it did not come"),
        "{}",
        run.transcript()
    );
    assert!(out.contains("cpus=1"), "{}", run.transcript());
    for name in ["a", "b"] {
        assert_eq!(run.guest_line(name, "HELLO PASS"), "HELLO PASS");
    }
}

#[test]
fn two_cpus_that_panic_at_once_say_it_once() {
    let run = run_with("guest_exit", &[0]);
    assert_eq!(run.finished.code, Some(4), "{}", run.transcript());
    let panics = run.finished.output.matches("PANIC").count();
    assert_eq!(panics, 1, "{}", run.transcript());
}

/// How often each of two spinning VMs was interrupted, on two CPUs of which both were given the first.
fn two_on_the_first_of_two_cpus(place: impl Fn(Guest) -> Guest) -> [u64; 2] {
    let busy = |name| place(spinner(name).cmdline("mode=spin ms=300"));
    let short = Guest::bare("el1-hello").unwrap();
    let scenario = Scenario::of(busy("a")).and(short).and(busy("b"));
    let run = run(&on("2", scenario.with(&["--icount"]).within(600)));
    [0, 2].map(|vm| run.figure(&format!("/vms/{vm}/exits/irq")))
}

#[test]
fn a_cpu_without_work_takes_a_vcpu_over_that_waits_for_another() {
    // Neither is interrupted for the other: each has a CPU to itself.
    let irqs = two_on_the_first_of_two_cpus(|guest| guest);
    assert!(irqs.iter().all(|irqs| *irqs < 10), "{irqs:?}");
}

#[test]
fn a_vcpu_runs_on_no_cpu_that_its_vm_is_not_allowed() {
    let irqs = two_on_the_first_of_two_cpus(|guest| guest.on_cpus(&[0]));
    assert!(irqs.iter().all(|irqs| *irqs > 40), "{irqs:?}");
}

#[test]
fn a_vcpu_that_waits_by_wfe_gives_way_to_the_one_it_waits_for() {
    let scenario = Scenario::of(smp(2, "mode=turns n=200")).with(&["--icount"]);
    let run = run(&on("1", scenario));
    let line = run.guest_line("smp", "DONE turns up=1 us=");
    let us: u64 = line
        .strip_prefix("DONE turns up=1 us=")
        .and_then(|us| us.parse().ok())
        .unwrap_or_else(|| panic!("{}", run.transcript()));
    // 400 slices of 2.5 ms would be a second.
    assert!(us < 50_000, "{us} us");
}

#[test]
fn linux_is_told_what_others_took_of_its_time() {
    let guest = |name| {
        Guest::linux("marks")
            .unwrap()
            .named(name)
            .memory("128M")
            .cmdline("console=ttyAMA0 work=boot mtemib=1")
    };
    let steal = |run: &Run, name| {
        let found = run
            .guest_line(name, "GUEST-STEAL ")
            .strip_prefix("GUEST-STEAL ");
        let ticks: u64 = found.unwrap().parse().unwrap();
        assert!(
            run.finished.output.contains("using stolen time PV"),
            "{}",
            run.transcript()
        );
        ticks
    };
    let alone = Scenario::of(guest("a")).with(&["--icount"]).within(600);
    let alone = run(&on("1", alone));
    assert_eq!(steal(&alone, "a"), 0, "{}", alone.transcript());
    let two = Scenario::of(guest("a")).and(guest("b"));
    let run = run(&on("1", two.with(&["--icount"]).within(600)));
    // Each was up for a second at least, half of which was the other's.
    for name in ["a", "b"] {
        assert!(steal(&run, name) >= 25, "{}", run.transcript());
    }
}
