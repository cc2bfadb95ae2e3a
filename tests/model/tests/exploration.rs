//! The protocol without a bug: no rule is broken, and what it is for is seen to happen.

use std::collections::BTreeSet;
use std::time::Instant;

use protocol_model::machine::Frame::{A0, A1, B0, T0, T1};
use protocol_model::{Operations, Rule, World};
use stateright::{Checker, Expectation, Model, Path};

const ALL: Operations = Operations {
    release: true,
    demote: true,
    compact: true,
    reset: true,
};

/// Everything at once, with so many operations.
const fn busy(mut world: World, limit: u8) -> World {
    world.operations = ALL;
    world.homes.failures = true;
    world.protocol.who.erratum = true;
    world.limit = Some(limit);
    world
}

/// What was explored of a world.
struct Explored {
    #[cfg_attr(not(feature = "full"), expect(dead_code))]
    states: usize,
    complete: bool,
    /// What never happened of what might.
    unseen: BTreeSet<&'static str>,
}

impl Explored {
    /// All states were seen, and in them all that might happen but `unseen`.
    fn assert_all_but(&self, unseen: &[&'static str]) {
        assert!(self.complete);
        assert_eq!(self.unseen, unseen.iter().copied().collect());
    }
}

/// What takes more than three operations.
const WITHIN_THREE: [&str; 3] = [
    "a block has two users",
    "a tagged page moves",
    "both blocks are reserved",
];

/// Explores `world` on two cores, whole or until so many transitions were followed. No rule may be broken.
fn explore(name: &str, world: World, transitions: Option<usize>) -> Explored {
    let begun = Instant::now();
    let checker = world.checker().threads(2);
    let checker = match transitions {
        Some(transitions) => checker.target_state_count(transitions),
        None => checker,
    };
    let checker = checker.spawn_bfs().join();
    let (states, followed) = (checker.unique_state_count(), checker.state_count());
    println!(
        "{name}: {states} states, {followed} transitions, depth {}, {:.0} s",
        checker.max_depth(),
        begun.elapsed().as_secs_f64()
    );
    let mut discoveries = checker.discoveries();
    for rule in Rule::ALL {
        let path = discoveries.remove(rule.name()).map(Path::into_actions);
        assert!(
            path.is_none(),
            "{name}: {} is broken by {path:#?}",
            rule.name()
        );
    }
    let properties = checker.model().properties();
    let sights = properties
        .iter()
        .filter(|property| property.expectation == Expectation::Sometimes)
        .map(|property| property.name);
    Explored {
        states,
        complete: transitions.is_none_or(|transitions| followed < transitions),
        unseen: sights
            .filter(|name| !discoveries.contains_key(name))
            .collect(),
    }
}

#[test]
fn two_vms_break_no_rule_within_three_operations() {
    let explored = explore("two VMs", busy(World::two_vms(), 3), None);
    explored.assert_all_but(&WITHIN_THREE);
}

#[test]
fn two_vcpus_break_no_rule_within_three_operations() {
    let mut world = busy(World::two_vcpus(), 3);
    world.protocol.who.pages = 2;
    world.homes.frames = [&[A0, A1, B0, T0], &[]];
    let explored = explore("two vCPUs", world, None);
    explored.assert_all_but(&WITHIN_THREE);
}

/// Dirty tag lines everywhere: a block's first use sweeps it, whatever the use.
#[test]
fn what_firmware_left_breaks_no_rule() {
    let mut world = World::two_vms();
    world.unswept = true;
    world.operations.release = true;
    world.limit = Some(4);
    world.protocol.who.pages = 2;
    world.homes.frames = [&[A0, T1], &[T0]];
    let explored = explore("unswept", world, None);
    let unseen = [
        "a block has two users",
        "both blocks are reserved",
        "two pages are swapped",
        "a page lies in its own tag storage",
    ];
    explored.assert_all_but(&unseen);
}

/// What takes more operations, on one CPU.
#[test]
fn one_vcpu_breaks_no_rule_within_five_operations() {
    let mut world = World::two_vcpus();
    world.operations.compact = true;
    world.limit = Some(5);
    world.protocol.who.running = [0, 1];
    world.protocol.who.pages = 2;
    world.homes.frames = [&[A0, A1, B0], &[]];
    let explored = explore("one vCPU", world, None);
    let unseen = [
        "a CPU waits for another",
        "a page is evicted for a tagged one",
        "a page lies in its own tag storage",
        "a page lies in tag storage",
    ];
    explored.assert_all_but(&unseen);
}

/// All states of four operations. Compaction is left out: the frames of either VM lie under one block.
#[cfg(feature = "full")]
#[test]
fn two_vms_break_no_rule_within_four_operations() {
    let mut world = busy(World::two_vms(), 4);
    world.operations.compact = false;
    let explored = explore("two VMs, 4", world, None);
    assert!(explored.states >= 10_000_000);
    explored.assert_all_but(&[]);
}

#[cfg(feature = "full")]
#[test]
fn two_vcpus_with_three_pages_break_no_rule_within_three_operations() {
    let explored = explore("two vCPUs, 3 pages", busy(World::two_vcpus(), 3), None);
    assert!(explored.complete);
}

/// A breadth-first part of what four operations do.
#[cfg(feature = "full")]
#[test]
fn two_vcpus_break_no_rule_in_ten_million_states() {
    let world = busy(World::two_vcpus(), 4);
    let explored = explore("two vCPUs, part of 4", world, Some(36_000_000));
    assert!(explored.states >= 10_000_000);
}
