//! The time of a CPU is shared evenly, and no neighbour can take another's share: counted, so in instructions.

// A helper of tests may fail the test.
#![allow(clippy::unwrap_used)]

use tagvisor_tests::{Guest, Run, Scenario};

/// A guest of `el1-share`.
fn guest(name: &str, cmdline: &str) -> Guest {
    Guest::bare("el1-share")
        .unwrap()
        .named(name)
        .memory("16M")
        .cmdline(cmdline)
}

fn counter(name: &str) -> Guest {
    guest(name, "mode=count")
}

/// Runs guests that share one CPU to their end.
fn run(guests: impl IntoIterator<Item = Guest>) -> Run {
    let scenario = guests.into_iter().fold(Scenario::default(), Scenario::and);
    let run = scenario.with(&["--icount"]).run().unwrap();
    assert_eq!(run.finished.code, Some(0), "{}", run.transcript());
    assert_eq!(run.figure("/invariants/broken"), 0, "{}", run.transcript());
    run
}

/// The rounds of each vCPU of `name`.
fn rounds(run: &Run, name: &str) -> Vec<u64> {
    let lines = run.guest_lines(name);
    let shares = lines.iter().filter(|line| line.starts_with("SHARE "));
    let counts = shares.map(|line| line.split_once("rounds=").unwrap().1);
    let counts: Vec<u64> = counts.map(|count| count.parse().unwrap()).collect();
    assert!(!counts.is_empty(), "{name}: {}", run.transcript());
    counts
}

/// Each of four gets 25 % of what all got, give or take 2.
fn assert_quarters(counts: &[u64], run: &Run) {
    let sum: u64 = counts.iter().sum();
    assert_eq!(counts.len(), 4);
    for count in counts {
        assert!(
            (23 * sum..=27 * sum).contains(&(100 * count)),
            "{counts:?} of {sum}: {}",
            run.transcript()
        );
    }
    // A second of a CPU that executes an instruction a nanosecond: rounds of 2,000 instructions and a few.
    assert!((450_000..=500_000).contains(&sum), "{counts:?} of {sum}");
}

#[test]
fn each_of_four_vms_on_a_cpu_gets_a_quarter_of_it() {
    let names = ["a", "b", "c", "d"];
    let run = run(names.map(counter));
    let counts: Vec<u64> = names.iter().flat_map(|name| rounds(&run, name)).collect();
    assert_quarters(&counts, &run);
}

#[test]
fn each_of_four_vcpus_of_a_vm_on_a_cpu_gets_a_quarter_of_it() {
    let run = run([guest("four", "mode=count vcpus=4").vcpus(4)]);
    assert_quarters(&rounds(&run, "four"), &run);
}

/// Somewhere one more shares a CPU than elsewhere: each in its turn. QEMU itself does not give its two CPUs the same number of
/// instructions to the digit; a vCPU that never moved would get twice as many as others.
#[test]
fn vcpus_that_no_number_of_cpus_divides_have_equal_shares_of_all_cpus() {
    for names in [&["a", "b", "c"][..], &["a", "b", "c", "d", "e"]] {
        let guests = names.iter().map(|name| counter(name));
        let scenario = guests.fold(Scenario::default(), Scenario::and);
        let run = scenario.with(&["--icount", "--cpus", "2"]).run().unwrap();
        assert_eq!(run.finished.code, Some(0), "{}", run.transcript());
        let counts: Vec<u64> = names.iter().flat_map(|name| rounds(&run, name)).collect();
        let fair = counts.iter().sum::<u64>() / names.len() as u64;
        println!("{counts:?}, fair: {fair}");
        assert!(
            counts.iter().all(|count| count.abs_diff(fair) * 5 <= fair),
            "{counts:?}: {}",
            run.transcript()
        );
    }
}

/// A shorter time is enough where two share a CPU.
const SHORT: &str = "from=50 ms=400 tail=50";

/// What a VM that counts gets beside one that does `cmdline`, of what it gets beside one that counts too, in percent.
fn percent_beside(cmdline: &str) -> u64 {
    let beside = |cmdline: &str| {
        let guests = [("a", "mode=count"), ("b", cmdline)];
        let run = run(guests.map(|(name, mode)| guest(name, &format!("{mode} {SHORT}"))));
        rounds(&run, "a").iter().sum::<u64>()
    };
    100 * beside(cmdline) / beside("mode=count")
}

#[test]
fn a_storm_of_exits_takes_nothing_from_a_neighbour() {
    for cmdline in ["mode=hvc", "mode=mmio"] {
        let percent = percent_beside(cmdline);
        assert!((95..=105).contains(&percent), "{cmdline}: {percent} %");
    }
}

#[test]
fn a_vm_that_sleeps_leaves_the_cpu_to_its_neighbour() {
    let percent = percent_beside("mode=doze us=1000");
    assert!((190..=205).contains(&percent), "{percent} %");
}

#[test]
fn a_vm_that_wakes_at_once_takes_no_more_than_its_share() {
    // Asleep for 5 us again and again; nearly always busy, and asleep for a moment just before its time is over.
    for cmdline in ["mode=doze us=5", "mode=nap busy=9000 us=50"] {
        let percent = percent_beside(cmdline);
        assert!((95..=200).contains(&percent), "{cmdline}: {percent} %");
    }
}

/// What a VM has had of CPUs, and what others took of its time, in milliseconds.
fn times(run: &Run, vm: usize) -> (u64, u64) {
    let ms = |key| run.figure(&format!("/vms/{vm}/{key}")) / 1_000_000;
    (ms("cpu_ns"), ms("stolen_ns"))
}

#[test]
fn the_report_tells_what_each_vm_had_of_the_cpu_and_what_others_took() {
    let mode = |mode: &str| format!("{mode} {SHORT}");
    let [busy, dozing] = ["mode=count", "mode=doze us=1000"].map(mode);
    let run =
        run([("a", &busy), ("b", &busy), ("c", &dozing)].map(|(name, mode)| guest(name, mode)));
    // Half a second each, of which the other that is busy has half.
    for vm in [0, 1] {
        let (ran, stolen) = times(&run, vm);
        assert!((230..=280).contains(&ran), "{ran} ms");
        assert!((230..=280).contains(&stolen), "{stolen} ms");
        assert!((490..=540).contains(&(ran + stolen)), "{ran} + {stolen} ms");
    }
    let (ran, stolen) = times(&run, 2);
    assert!(ran > 0 && ran + stolen < 100, "{ran} + {stolen} ms");
}

/// The most instructions at EL2 for a tag access fault that evicts: `costs.rs` holds it to that.
const LONGEST_FAULT: u64 = 9_000;

/// A VM on a CPU of its own that looks at one after the other of its pages and stores to it, many of them in tag storage, while a
/// VM on another CPU tags `permille` of a thousand pages. Each found what it had stored.
fn beside_tags(permille: u64) -> Run {
    let cmdline = format!("mode=tag bytes=64 stride=2 permille={permille} begin=50 wait=300");
    let tagger = Guest::bare("el1-storage")
        .unwrap()
        .named("tagger")
        .memory("192M")
        .tag_budget(4 << 20)
        .cmdline(&cmdline);
    let neighbour = guest("a", "mode=count touch=1")
        .memory("272M")
        .without_mte();
    let run = Scenario::of(tagger)
        .and(neighbour)
        .with(&["--memory", "512M", "--cpus", "2", "--icount"])
        .run()
        .unwrap();
    assert_eq!(run.finished.code, Some(0), "{}", run.transcript());
    let right = run.guest_line("tagger", "RESULT");
    assert!(right.starts_with("RESULT ok"), "{}", run.transcript());
    let right = run.guest_line("a", "DONE");
    assert!(right.ends_with(" bad=0"), "{}", run.transcript());
    run
}

#[test]
fn a_storm_of_tag_faults_costs_a_neighbour_less_than_a_twentieth() {
    let runs = [0, 1000].map(beside_tags);
    let of = |key| {
        runs.each_ref()
            .map(|run| run.figure(&format!("/vms/1/{key}")))
    };
    let [none, evicted] = of("evictions_suffered");
    assert!(none == 0 && evicted >= 500, "{none} and {evicted}");
    // QEMU's CPUs take turns in counted time, so what the other one executes is missing here: some 2,000 instructions a round.
    let [quiet, beside] = runs
        .each_ref()
        .map(|run| rounds(run, "a").iter().sum::<u64>());
    let storm = 2_000 * (quiet - beside);
    // What the storm costs are exits: a fault of its own each, and one of the other CPU that it waits for.
    let [before, exits] = of("exits/total");
    let cost = 2 * LONGEST_FAULT * exits.saturating_sub(before);
    assert!(20 * cost <= storm, "{cost} of {storm}");
}
