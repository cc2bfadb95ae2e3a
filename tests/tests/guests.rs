//! Guests under tagvisor, through `scripts/run`: what a guest sees, and what the report says of it.

// A helper of tests may fail the test.
#![allow(clippy::unwrap_used)]

use tagvisor_tests::{Guest, Qemu, Run, Scenario};

const GIB: u64 = 1 << 30;
const BLOCK: u64 = 4096;
/// Pages that el1-tags tags by default.
const TAGGED: u64 = 577;

fn bare(program: &str) -> Guest {
    Guest::bare(program).unwrap()
}

fn run(scenario: &Scenario) -> Run {
    scenario.run().unwrap()
}

/// The run ended as `code`, and its only guest as `end`.
fn assert_ended(run: &Run, code: i32, end: &str) {
    assert_eq!(run.finished.code, Some(code), "{}", run.transcript());
    assert_eq!(run.text("/vms/0/end"), end, "{}", run.transcript());
    assert_sound(run);
}

/// Nothing is broken, and everything is back.
fn assert_sound(run: &Run) {
    assert_eq!(run.figure("/invariants/broken"), 0, "{}", run.transcript());
    let checked = run.figure("/invariants/checked");
    assert!(checked > 0 && checked < u64::MAX, "{}", run.transcript());
    if run.text("/policy") != "static" {
        assert_eq!(
            run.figure("/final/reserved_bytes"),
            0,
            "{}",
            run.transcript()
        );
    }
    assert_eq!(run.figure("/final/lent_bytes"), 0, "{}", run.transcript());
}

#[test]
fn a_raw_guest_runs_at_el1_and_powers_off() {
    let run = run(&Scenario::of(bare("el1-hello")));
    assert_ended(&run, 0, "off");
    assert_eq!(
        run.guest_line("el1-hello", "HELLO PASS"),
        "HELLO PASS",
        "{}",
        run.transcript()
    );
    assert_eq!(
        run.guest_line("el1-hello", "HELLO memory"),
        "HELLO memory=67108864 base=0x40000000"
    );
}

#[test]
fn a_reset_ends_a_guest_in_batch_and_the_run_fails() {
    let run = run(&Scenario::of(bare("el1-hello").cmdline("end=reset")));
    assert_ended(&run, 1, "reset");
}

#[test]
fn a_guest_that_never_ends_is_stopped_by_the_time_limit() {
    let run = run(&Scenario::of(bare("el1-hello").cmdline("end=hang")).within(5));
    assert_eq!(run.finished.code, Some(124), "{}", run.transcript());
    assert_eq!(
        run.guest_line("el1-hello", "HELLO PASS"),
        "HELLO PASS",
        "{}",
        run.transcript()
    );
}

#[test]
fn tags_were_in_dram() {
    let stock = run(&Scenario::of(bare("el1-tags")).with(&["--stock-tags"]));
    assert_ended(&stock, 0, "off");
    let oracle = run(&Scenario::of(bare("el1-tags")));
    assert_ended(&oracle, 0, "off");
    assert_eq!(tags_line(&stock), tags_line(&oracle));
}

/// What el1-tags says of its pages, with the sum over all their data and tags.
fn tags_line(run: &Run) -> &str {
    assert_eq!(
        run.guest_line("el1-tags", "TAGS PASS"),
        "TAGS PASS",
        "{}",
        run.transcript()
    );
    run.guest_line("el1-tags", "TAGS tagged=")
}

fn tags_under(policy: &str, memory: &str) -> Run {
    run(&Scenario::of(bare("el1-tags")).with(&["--policy", policy, "--memory", memory]))
}

#[test]
fn a_guest_cannot_tell_the_policies_apart_nor_from_no_hypervisor() {
    let (alone, _) = Qemu::at_el1("el1-tags", "").unwrap().run().unwrap();
    let alone = alone.line("TAGS tagged=").unwrap().to_owned();
    for policy in ["static", "eager", "lazy", "auto"] {
        assert_eq!(tags_line(&tags_under(policy, "1G")), alone, "{policy}");
    }
}

/// The figures that follow from the machine's size alone.
fn assert_geometry(run: &Run, memory: u64) {
    let carve_out = memory / 1024 * 31;
    for (path, want) in [
        ("/version", 1),
        ("/machine/memory_bytes", memory),
        ("/carve_out_bytes", carve_out),
        ("/regions/0/bytes", carve_out),
        ("/regions/0/base", GIB + memory / 32 * 31),
        ("/regions/0/tagged_base", GIB),
        ("/regions/0/tagged_bytes", memory / 32 * 31),
        ("/regions/0/block_bytes", BLOCK),
        ("/regions/0/blocks", carve_out / BLOCK),
        ("/untaggable_bytes", memory / 1024),
        ("/offline_bytes", run.figure("/final/offline_bytes")),
        ("/vms/0/memory_bytes", 64 << 20),
        ("/vms/0/static_cost_bytes", 2 << 20),
        ("/vms/0/evictions_caused", 0),
    ] {
        assert_eq!(run.figure(path), want, "{path}: {}", run.transcript());
    }
    let parts = [
        "/reserved_bytes",
        "/lent_bytes",
        "/free_bytes",
        "/offline_bytes",
    ];
    assert_eq!(
        parts.map(|path| run.figure(path)).iter().sum::<u64>(),
        carve_out,
        "{}",
        run.transcript()
    );
    let reclaimed = carve_out - run.figure("/reserved_bytes") - run.figure("/offline_bytes");
    assert_eq!(
        run.figure("/reclaimed_bytes"),
        reclaimed,
        "{}",
        run.transcript()
    );
    let pages = ["untouched", "no_tag_access", "tagged"]
        .map(|kind| run.figure(&format!("/vms/0/pages/{kind}")));
    assert_eq!(
        pages.iter().sum::<u64>(),
        (64 << 20) / 4096,
        "{}",
        run.transcript()
    );
    assert_eq!(
        run.figure("/vms/0/resident_bytes"),
        (pages[1] + pages[2]) * 4096,
        "{}",
        run.transcript()
    );
}

#[test]
fn lazy_reserves_for_the_tagged_pages_alone() {
    for (option, memory) in [("1G", GIB), ("2G", 2 * GIB), ("4G", 4 * GIB)] {
        let run = tags_under("lazy", option);
        assert_ended(&run, 0, "off");
        assert_geometry(&run, memory);
        assert_eq!(run.text("/policy"), "lazy");
        assert_eq!(
            run.figure("/vms/0/pages/tagged"),
            TAGGED,
            "{}",
            run.transcript()
        );
        assert_eq!(
            run.figure("/vms/0/peak/tagged_pages"),
            TAGGED,
            "{}",
            run.transcript()
        );
        assert_eq!(
            run.figure("/vms/0/tag_faults"),
            TAGGED,
            "{}",
            run.transcript()
        );
        let ideal = TAGGED.div_ceil(32) * BLOCK;
        let reserved = run.figure("/reserved_bytes");
        assert!(
            reserved >= ideal && reserved <= TAGGED * BLOCK && reserved.is_multiple_of(BLOCK),
            "{}",
            run.transcript()
        );
        assert_eq!(
            run.figure("/vms/0/peak/reserved_bytes"),
            reserved,
            "{}",
            run.transcript()
        );
        let carve_out = memory / 1024 * 31;
        assert_eq!(
            run.figure("/ideal_bytes"),
            carve_out - run.figure("/offline_bytes") - ideal
        );
        let efficiency = run
            .report
            .pointer("/efficiency")
            .and_then(serde_json::Value::as_f64)
            .unwrap();
        let want = run.figure("/reclaimed_bytes") as f64 / run.figure("/ideal_bytes") as f64;
        assert!((efficiency - want).abs() < 1e-4, "{efficiency} {want}");
    }
}

#[test]
fn eager_reserves_for_every_page_that_is_touched() {
    let run = tags_under("eager", "1G");
    assert_ended(&run, 0, "off");
    assert_geometry(&run, GIB);
    assert_eq!(run.figure("/vms/0/moves"), 0, "{}", run.transcript());
    let tagged = run.figure("/vms/0/pages/tagged");
    assert_eq!(
        tagged * 4096,
        run.figure("/vms/0/resident_bytes"),
        "{}",
        run.transcript()
    );
    assert!(tagged > TAGGED + 512, "{}", run.transcript());
    assert_eq!(run.figure("/vms/0/tag_faults"), 0, "{}", run.transcript());
    assert!(
        run.figure("/reserved_bytes") >= tagged.div_ceil(32) * BLOCK,
        "{}",
        run.transcript()
    );
    assert!(
        run.report
            .pointer("/ideal_bytes")
            .is_some_and(serde_json::Value::is_null),
        "{}",
        run.transcript()
    );
}

#[test]
fn static_reserves_everything() {
    let run = tags_under("static", "1G");
    assert_ended(&run, 0, "off");
    assert_geometry(&run, GIB);
    assert_eq!(run.figure("/vms/0/moves"), 0, "{}", run.transcript());
    assert_eq!(run.figure("/reclaimed_bytes"), 0, "{}", run.transcript());
    assert_eq!(run.figure("/vms/0/tag_faults"), 0, "{}", run.transcript());
}

#[test]
fn auto_is_eager_on_a_cpu_without_mte_perm() {
    let run =
        run(&Scenario::of(bare("el1-tags")).with(&["--cpu", "neoverse-n2", "--memory", "1G"]));
    assert_ended(&run, 0, "off");
    assert_eq!(run.text("/policy"), "eager");
    tags_line(&run);
}

#[test]
fn lazy_is_refused_on_a_cpu_without_mte_perm() {
    let run = run(&Scenario::of(bare("el1-tags"))
        .with(&["--cpu", "neoverse-n2", "--policy", "lazy"])
        .within(20));
    assert!(
        !matches!(run.finished.code, Some(0 | 124) | None),
        "{}",
        run.transcript()
    );
    assert!(
        run.finished.output.contains("MTE_PERM"),
        "{}",
        run.transcript()
    );
}

#[test]
fn invariants_hold_at_every_trap() {
    let run = run(&Scenario::of(bare("el1-tags")).with(&["--debug-checks"]));
    assert_ended(&run, 0, "off");
    assert!(
        run.figure("/invariants/checked") > 1000,
        "{}",
        run.transcript()
    );
}

#[test]
fn the_same_run_in_counted_time_says_the_same() {
    let counted = || run(&Scenario::of(bare("el1-tags")).with(&["--icount"]));
    let (first, second) = (counted(), counted());
    assert_ended(&first, 0, "off");
    assert_eq!(first.finished.output, second.finished.output);
    assert_eq!(first.report, second.report);
}
