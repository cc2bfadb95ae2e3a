//! What faults cost, in instructions at EL2: counted, since wall time says little under emulation.

// A helper of tests may fail the test.
#![allow(clippy::unwrap_used)]

mod storage;

use storage::{MIB, counted, filler, guest, machine, mean, of, steps_of};
use tagvisor_tests::{Run, Scenario};

const PAGES: u64 = 4096;
/// Pages whose tags one block holds.
const COVERED: usize = 32;

/// What each first tag access cost.
fn touches(scenario: &Scenario) -> (Run, Vec<u64>) {
    let (run, counts) = counted(scenario, &["mark-0x70", "mark-0x71"]);
    let costs = steps_of(&counts);
    assert_eq!(costs.len() as u64, PAGES, "{}", run.transcript());
    (run, costs)
}

fn bench(cmdline: &str) -> Scenario {
    let cmdline = format!("mode=bench pages={PAGES} bytes=64 {cmdline}");
    machine(512, guest("bench", 256, &cmdline))
}

fn assert_mean(what: &str, costs: &[u64], most: u64) {
    let mean = mean(costs);
    println!(
        "{what}: {mean} EL2 instructions, at most {most}; worst {:?}",
        costs.iter().max()
    );
    assert!(
        mean <= most,
        "{what}: {mean} EL2 instructions, more than {most}"
    );
}

#[test]
fn a_first_tag_access_without_a_move() {
    let (run, costs) = touches(&bench("order=linear"));
    assert_eq!(of(&run, "bench", "moves"), 0, "{}", run.transcript());
    // Each 32nd opens a block, which is no part of it. A guest that has tagged most gets neighbours with it: not in this half.
    let inside: Vec<u64> = costs
        .get(..PAGES as usize / 2)
        .unwrap()
        .chunks(COVERED)
        .flat_map(|block| block.iter().skip(1).copied())
        .collect();
    assert_mean("a first tag access without a move", &inside, 1500);
}

/// A page that needs a place for its tags finds another page there: a VM's own 2 MiB are full from their first access on.
#[test]
fn a_first_tag_access_with_a_swap() {
    let (run, costs) = touches(&bench(""));
    let moves = of(&run, "bench", "moves");
    assert!(moves > PAGES * 3 / 4, "{}", run.transcript());
    assert_mean("a first tag access with a swap", &costs, 6000);
}

/// A block of 28 KiB covers 896 KiB of a VM's memory, which comes in pieces of 14 MiB here. The last such block of a VM of 16 MiB covers the
/// VM's last 64 pages, which get their tags first and stay where they are, and 160 frames in which no page ever was: the next
/// 160 pages, whose own blocks are not reserved, move there.
#[test]
fn a_first_tag_access_with_a_move() {
    const PAGES: usize = 3072;
    const OWN: usize = 64;
    const MOVED: usize = 160;
    let cmdline = format!("mode=bench pages={PAGES} bytes=64 order=reverse");
    let scenario = machine(512, guest("bench", 16, &cmdline)).machine("block_size = \"28K\"");
    let (run, counts) = counted(&scenario, &["mark-0x70", "mark-0x71"]);
    let costs = steps_of(&counts);
    assert_eq!(costs.len(), PAGES, "{}", run.transcript());
    let (own, moved) = costs.split_at(OWN);
    let in_place = mean(own.get(1..).unwrap());
    // A swap counts as two moves and takes two breaks, so there was none: as many moves as touches that took longer.
    let longer = |cost: &&u64| **cost > in_place * 3 / 2;
    let moves = of(&run, "bench", "moves");
    assert!(
        moves.abs_diff(costs.iter().filter(longer).count() as u64) < 32,
        "{}",
        run.transcript()
    );
    assert_mean(
        "a first tag access with a move",
        moved.get(..MOVED).unwrap(),
        3500,
    );
}

#[test]
fn a_tag_access_that_opens_a_block_with_eviction() {
    let cmdline = format!("mode=bench pages={PAGES} bytes=64 order=linear wait=1000");
    let tagger = guest("bench", 192, &cmdline).tag_budget(4 * MIB);
    let filler = filler("filler", 272, "bytes=64 rounds=0 hold=3000");
    let (run, costs) = touches(&machine(512, tagger).and(filler).within(300));
    let evictions = of(&run, "bench", "evictions_caused");
    assert_eq!(evictions, PAGES / COVERED as u64, "{}", run.transcript());
    // Those that open a block, but neither split a 2 MiB leaf nor tag neighbours, as a guest's do that has tagged most.
    let opening: Vec<u64> = costs
        .iter()
        .take(PAGES as usize / 2)
        .enumerate()
        .filter(|(page, _)| page % COVERED == 0 && page % 512 != 0)
        .map(|(_, &cost)| cost)
        .collect();
    assert_mean(
        "a tag access that opens a block with eviction",
        &opening,
        9000,
    );
}

/// EL2's instructions in a run with these options.
fn of_a_run(options: &[&str]) -> u64 {
    let tagger = guest("tagger", 64, "mode=tag permille=300 bytes=512");
    let (_, counts) = counted(&machine(512, tagger).with(options), &["exit"]);
    counts.first().copied().unwrap()
}

#[test]
fn checks_at_every_exit_cost_at_most_twelve_times_the_work() {
    let (plain, checked) = (of_a_run(&[]), of_a_run(&["--debug-checks"]));
    println!("{plain} EL2 instructions, {checked} with checks");
    assert!(
        checked > plain && checked <= 12 * plain,
        "{checked}, {plain} without"
    );
}

#[test]
fn a_fresh_page() {
    let pages = 40 * MIB / 4096;
    let cmdline = format!("mode=fresh pages={pages}");
    let fresh = machine(512, guest("fresh", 256, &cmdline));
    let (_, counts) = counted(&fresh, &["mark-0x72", "mark-0x73"]);
    let all = steps_of(&counts).iter().sum::<u64>();
    assert_mean("a fresh page", &[all / pages], 170);
}
