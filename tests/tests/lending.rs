//! Tag storage as memory: lent to guests, taken back when tags need it, and neither is ever mistaken for the other.
//!
//! The carve-out oracle makes the tags of a page and the data in its tag storage the same memory, so whatever lends a block too
//! early or too long changes what a guest finds.

// A helper of tests may fail the test.
#![allow(clippy::unwrap_used)]

mod storage;

use storage::{
    BLOCK, MIB, assert_right, assert_sound, efficiency, filler, guest, machine, of, run,
};
use tagvisor_tests::{Guest, Run, Scenario};
use tagvisor_tool::bundle::Policy;

/// The machine of most tests, in MiB: 480 of them are taggable, less what EL2, image and bundle take; 15.5 are tag storage.
const SMALL: u64 = 512;

/// A guest that takes nearly all of a machine's taggable memory tags `permille` of its pages.
fn tagged(order: &str, permille: u64) -> Run {
    let cmdline = format!("mode=tag bytes=512 order={order} permille={permille}");
    run(&machine(SMALL, guest("tagger", 448, &cmdline)))
}

#[test]
fn scattered_tags_cost_little_more_than_dense_ones() {
    // At random places so many tags would leave 0.73, 0.20, 0.04 and nothing of what can be reclaimed.
    for (permille, least, least_net) in [
        (10, 0.97, 0.85),
        (50, 0.97, 0.85),
        (100, 0.97, 0.85),
        (300, 0.95, 0.80),
    ] {
        let run = tagged("random", permille);
        let (efficiency, net) = efficiency(&run);
        assert!(
            efficiency >= least && net >= least_net,
            "{permille} of 1000 pages: efficiency {efficiency}, net {net}: {}",
            run.transcript()
        );
    }
}

#[test]
fn dense_tags_cost_what_they_must() {
    let run = tagged("linear", 100);
    let (efficiency, _) = efficiency(&run);
    assert!(efficiency >= 0.99, "{efficiency}: {}", run.transcript());
}

/// Two guests, each of which tags pages whose tag storage holds data of both.
fn mirror(options: &[&str]) -> Run {
    let taggers = [("a", 1), ("b", 2)].map(|(name, seed)| {
        let cmdline = format!("mode=tag bytes=512 busy=16 seed={seed} permille=200 rounds=2");
        guest(name, 230, &cmdline).tag_budget(2 * MIB)
    });
    let [a, b] = taggers;
    let scenario = machine(SMALL, a).and(b).with(&["--cpus", "2"]);
    run(&scenario.with(options).within(300))
}

/// How many pages each of the two evicted, and how many each had evicted.
fn evictions(run: &Run) -> [u64; 4] {
    let keys = ["evictions_caused", "evictions_suffered"];
    let [caused, suffered] = keys.map(|key| ["a", "b"].map(|name| of(run, name, key)));
    [caused[0], caused[1], suffered[0], suffered[1]]
}

#[test]
fn two_guests_tag_pages_whose_storage_holds_data_of_the_other() {
    let run = mirror(&[]);
    let [a, b, _, _] = evictions(&run);
    assert!(
        a > 0 && b > 0,
        "{a} and {b} evictions: {}",
        run.transcript()
    );
    assert!(run.figure("/peak_lent_bytes") > 0, "{}", run.transcript());
}

#[test]
fn two_guests_evict_hundreds_of_pages_of_each_other_and_lose_none() {
    // Both write in step, so each has some of tag storage.
    let run = mirror(&["--icount"]);
    let evictions = evictions(&run);
    assert!(
        evictions.iter().all(|&pages| pages >= 200),
        "{evictions:?}: {}",
        run.transcript()
    );
}

/// A guest without tags fills what another one's tags need later.
fn storm(stride: u64, configuration: &[&str]) -> Run {
    // The filler has written before, and verifies afterwards.
    let cmdline = format!("mode=tag bytes=512 stride={stride} permille=1000 begin=3000 busy=4");
    let tagger = guest("storm", 192, &cmdline).tag_budget(4 * MIB);
    let scenario = machine(SMALL, tagger)
        .and(filler("filler", 272, "bytes=512 wait=8000 rounds=2"))
        // Counted time: who writes when does not depend on the host.
        .with(&["--cpus", "2", "--icount"]);
    run(&configuration
        .iter()
        .fold(scenario, |scenario, line| scenario.machine(line)))
}

/// At least so many pages of the filler had to go.
fn assert_evicted(run: &Run, least: u64) {
    let evicted = of(run, "filler", "evictions_suffered");
    assert!(evicted >= least, "{evicted}: {}", run.transcript());
    let caused = of(run, "storm", "evictions_caused");
    assert!(caused >= evicted, "{caused}: {}", run.transcript());
    assert!(
        run.figure("/peak_lent_bytes") > 4 * MIB,
        "{}",
        run.transcript()
    );
}

#[test]
fn a_storm_of_tags_evicts_data_and_loses_none() {
    // One page in each block, and a few pages in each.
    for (stride, least) in [(32, 40), (3, 400)] {
        assert_evicted(&storm(stride, &[]), least);
    }
}

#[test]
fn storms_in_two_regions_and_in_blocks_of_other_sizes_lose_nothing() {
    assert_evicted(&storm(3, &["regions = 2"]), 400);
    assert_evicted(&storm(3, &["block_size = \"8K\""]), 400);
    assert_evicted(&storm(3, &["regions = 2", "block_size = \"12K\""]), 400);
}

#[test]
fn a_page_in_tag_storage_can_be_tagged() {
    // More memory than can be taggable: some of it lies in tag storage, and tags are used all over it.
    let cmdline = "mode=tag bytes=512 permille=100";
    let run = run(&machine(256, guest("tagger", 218, cmdline).tag_budget(MIB)));
    assert!(run.figure("/peak_lent_bytes") > 0, "{}", run.transcript());
    assert!(of(&run, "tagger", "moves") > 0, "{}", run.transcript());
}

#[test]
fn a_guest_can_live_in_tag_storage_alone() {
    let run = run(&machine(SMALL, filler("lodger", 8, "rounds=4")));
    let resident = of(&run, "lodger", "resident_bytes");
    assert!(resident > 4 * MIB, "{}", run.transcript());
    assert_eq!(
        run.figure("/peak_lent_bytes"),
        resident,
        "{}",
        run.transcript()
    );
}

#[test]
fn memory_of_the_whole_machine_is_used_and_comes_back_as_tags() {
    // Up to 31 in 32 of the budget: 4 MiB hold the tags of 32768 pages, an eighth of a GiB.
    let cmdline = "mode=tag bytes=256 permille=120 wait=3000 rounds=2";
    let tagger = guest("tagger", 1024, cmdline).tag_budget(4 * MIB);
    // It has written before the other one tags, and verifies afterwards: counted time.
    let filler = filler("filler", 976, "bytes=256 wait=8000 rounds=2");
    let scenario = machine(2048, tagger).and(filler);
    let run = run(&scenario.with(&["--cpus", "2", "--icount"]).within(300));
    assert!(
        run.figure("/peak_lent_bytes") > 40 * MIB,
        "{}",
        run.transcript()
    );
    assert!(
        of(&run, "tagger", "evictions_caused") > 0,
        "{}",
        run.transcript()
    );
    let peak = of(&run, "tagger", "peak/reserved_bytes");
    assert!(
        (3 * MIB..=4 * MIB).contains(&peak),
        "{peak}: {}",
        run.transcript()
    );
}

#[test]
fn a_guest_over_its_budget_ends_and_hurts_nobody() {
    let greedy = guest("greedy", 128, "mode=tag permille=1000 bytes=512").tag_budget(MIB);
    let modest = guest("modest", 64, "mode=tag permille=500 bytes=512 rounds=4");
    let scenario =
        machine(SMALL, greedy)
            .and(modest)
            .and(filler("filler", 192, "bytes=512 rounds=4"));
    let run = scenario.run().unwrap();
    assert_eq!(run.finished.code, Some(1), "{}", run.transcript());
    assert_eq!(
        run.text("/vms/0/end"),
        "over_budget",
        "{}",
        run.transcript()
    );
    assert_eq!(
        of(&run, "greedy", "peak/reserved_bytes"),
        MIB,
        "{}",
        run.transcript()
    );
    let told = |line: &&str| {
        line.starts_with("[tagvisor]") && line.contains("vm=greedy") && line.contains("tag_budget")
    };
    assert!(
        run.finished.output.lines().any(|line| told(&line)),
        "no remedy: {}",
        run.transcript()
    );
    assert_right(&run, "modest");
    assert_right(&run, "filler");
    assert_sound(&run);
}

#[test]
fn a_guest_at_its_budget_waits_for_more_while_the_others_run() {
    let greedy = guest("greedy", 128, "mode=tag permille=1000 bytes=512").tag_budget(MIB);
    let other = Guest::bare("el1-neighbour").unwrap().named("other");
    let scenario = machine(SMALL, greedy).and(other.cmdline("mode=echo"));
    let finished = scenario.interact(|terminal| {
        terminal.expect("vm=greedy paused: its tag_budget of 1024 KiB is used up")?;
        terminal.write("\x1dmattach other\r")?;
        terminal.expect("this is now the console of vm=other")?;
        terminal.write("still here\r")?;
        terminal.expect("ECHO still here")?;
        terminal.write("\x1dmvm budget greedy 1G\r")?;
        terminal.expect("tag_budget of greedy: 4096 KiB")?;
        terminal.write("vm resume greedy\r")?;
        terminal.expect("RESULT ok")?;
        terminal.expect("vm=greedy ended: off")?;
        terminal.write("\x03off\r")
    });
    let finished = finished.unwrap();
    assert_eq!(finished.code, Some(0), "{}", finished.transcript());
    assert!(
        finished.output.contains(" 0 broken"),
        "{}",
        finished.transcript()
    );
}

#[test]
fn two_hundred_small_guests_come_tag_and_go() {
    for round in 0..4 {
        let small = |number: u64| {
            let seed = round * 50 + number;
            let cmdline = format!("mode=tag permille=400 align=4096 seed={seed}");
            guest(&format!("small{number}"), 4, &cmdline)
        };
        let scenario = (1..50).fold(machine(SMALL, small(0)), |all, number| {
            all.and(small(number))
        });
        let run = run(&scenario);
        let tagged: u64 = (0..50)
            .map(|number| of(&run, &format!("small{number}"), "tag_faults"))
            .sum();
        assert!(tagged >= 50 * 100, "{tagged}: {}", run.transcript());
        // More than 96 pages each; not all guests run at the same time.
        let each = (0..50).map(|number| of(&run, &format!("small{number}"), "peak/reserved_bytes"));
        assert!(each.min() >= Some(4 * BLOCK), "{}", run.transcript());
        assert!(
            run.figure("/reserved_bytes") >= 50 * BLOCK,
            "{}",
            run.transcript()
        );
    }
}

#[test]
fn a_reset_leaves_neither_data_nor_tags() {
    let cycles = 3;
    let finished = machine(
        SMALL,
        guest("again", 64, "mode=reset permille=500 bytes=512"),
    )
    .interact(|terminal| {
        for _ in 0..cycles {
            terminal.expect("DIRTY pages=")?;
            terminal.write("r")?;
        }
        terminal.expect("DIRTY pages=")?;
        terminal.write("o")?;
        terminal.expect("RESULT ok")
    })
    .unwrap();
    assert_eq!(finished.code, Some(0), "{}", finished.transcript());
    assert!(
        !finished.output.contains("RESULT bad"),
        "{}",
        finished.transcript()
    );
}

#[test]
fn a_guest_that_evicts_too_much_waits_and_the_others_do_not() {
    let run = storm(3, &["eviction_rate = 500"]);
    assert!(of(&run, "storm", "throttled") > 0, "{}", run.transcript());
    assert_eq!(of(&run, "filler", "throttled"), 0, "{}", run.transcript());
}

#[test]
fn guests_of_different_policies_share_a_machine() {
    let cmdline = "mode=tag bytes=512 permille=200 busy=4";
    let eager = guest("eager", 64, cmdline).policy(Policy::Eager);
    let lazy = guest("lazy", 128, cmdline).tag_budget(MIB);
    let filler = filler("filler", 224, "bytes=512 rounds=6");
    let run = run(&Scenario::of(eager)
        .and(lazy)
        .and(filler)
        .with(&["--memory", "512M", "--cpus", "2"]));
    assert_eq!(of(&run, "eager", "tag_faults"), 0, "{}", run.transcript());
    assert!(of(&run, "lazy", "tag_faults") > 0, "{}", run.transcript());
    assert!(run.figure("/peak_lent_bytes") > MIB, "{}", run.transcript());
}

#[test]
fn a_guest_that_tags_everything_becomes_eager() {
    let run = run(&machine(
        SMALL,
        guest("all", 192, "mode=tag bytes=512 permille=1000 early=1"),
    ));
    let switched = run.report.pointer("/vms/0/switched_to_eager");
    assert_eq!(switched, Some(&true.into()), "{}", run.transcript());
    let few = run.figure("/vms/0/pages/tagged") / 4;
    assert!(of(&run, "all", "tag_faults") < few, "{}", run.transcript());
}

/// A guest of two vCPUs on a crowded machine.
fn crowded(name: &str, cmdline: &str) -> Run {
    let guest = guest(name, 64, cmdline).vcpus(2).tag_budget(MIB);
    run(&machine(256, guest)
        .and(filler("filler", 152, "bytes=512 rounds=6"))
        .with(&["--cpus", "2"]))
}

#[test]
fn code_that_is_rewritten_runs_in_pages_that_get_tags() {
    let cmdline = "mode=code pages=4096 permille=500 vcpus=2";
    run(&machine(SMALL, guest("code", 64, cmdline).vcpus(2)));
}

#[test]
fn nothing_that_two_vcpus_count_in_tagged_pages_is_lost() {
    let cmdline = "mode=atomics pages=4096 permille=500";
    run(&machine(SMALL, guest("count", 64, cmdline).vcpus(2)));
}

#[test]
fn code_that_is_rewritten_runs_in_pages_that_move() {
    let run = crowded("code", "mode=code pages=15000 permille=200 vcpus=2 busy=16");
    assert!(of(&run, "code", "moves") > 0, "{}", run.transcript());
}

#[test]
fn nothing_that_two_vcpus_count_in_pages_that_move_is_lost() {
    let run = crowded("count", "mode=atomics pages=15000 permille=200 busy=64");
    assert!(of(&run, "count", "moves") > 0, "{}", run.transcript());
}

#[test]
fn linux_tags_pages_that_lie_in_tag_storage() {
    // The demo tags 4096 pages: 129 blocks and a few.
    let linux = Guest::linux("demo").unwrap().tag_budget(MIB);
    let scenario = Scenario::of(linux)
        .and(filler("filler", 448, "bytes=512 rounds=40"))
        .with(&["--memory", "1G", "--cpus", "2", "--policy", "lazy"]);
    let run = scenario.run().unwrap();
    assert_eq!(run.finished.code, Some(0), "{}", run.transcript());
    assert_sound(&run);
    assert_right(&run, "filler");
    assert_eq!(
        run.guest_line("linux", "GUEST-RESULT"),
        "GUEST-RESULT ok",
        "{}",
        run.transcript()
    );
    assert!(
        of(&run, "linux", "peak/lent_bytes") > 0 && of(&run, "linux", "moves") > 0,
        "{}",
        run.transcript()
    );
}
