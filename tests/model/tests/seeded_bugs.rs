//! Each seeded bug breaks the rule that forbids it, and that is seen.

use std::collections::BTreeSet;

use protocol_model::machine::Frame::{self, A0, A1, B0, T0, T1};
use protocol_model::machine::Page;
use protocol_model::{Bug, Bug::*, Operations, Rule, Rule::*, World};
use stateright::{Checker, HasDiscoveries, Model};

const FAULTS: Operations = Operations {
    release: false,
    demote: false,
    compact: false,
    reset: false,
};
const RELEASE: Operations = Operations {
    release: true,
    ..FAULTS
};
const DEMOTE: Operations = Operations {
    demote: true,
    ..FAULTS
};
const COMPACT: Operations = Operations {
    compact: true,
    ..FAULTS
};
const RESET: Operations = Operations {
    reset: true,
    ..FAULTS
};

/// Two VMs of one vCPU, with so many pages in all, in these frames, and so many operations.
const fn vms(
    pages: Page,
    frames: [&'static [Frame]; 2],
    limit: u8,
    operations: Operations,
) -> World {
    narrow(World::two_vms(), pages, frames, limit, operations)
}

/// Two vCPUs of one VM.
const fn vcpus(pages: Page, frames: &'static [Frame], limit: u8, operations: Operations) -> World {
    narrow(World::two_vcpus(), pages, [frames, &[]], limit, operations)
}

const fn narrow(
    mut world: World,
    pages: Page,
    frames: [&'static [Frame]; 2],
    limit: u8,
    operations: Operations,
) -> World {
    world.protocol.who.pages = pages;
    world.homes.frames = frames;
    world.limit = Some(limit);
    world.operations = operations;
    world
}

/// One vCPU alone, for what needs no other.
const fn vcpu(pages: Page, frames: &'static [Frame], limit: u8, operations: Operations) -> World {
    let mut world = vcpus(pages, frames, limit, operations);
    world.protocol.who.running = [0, 1];
    world
}

const fn unswept(mut world: World) -> World {
    world.unswept = true;
    world
}

const fn with_failures(mut world: World) -> World {
    world.homes.failures = true;
    world
}

const fn with_erratum(mut world: World) -> World {
    world.protocol.who.erratum = true;
    world
}

/// Each bug, a world in which it shows, and the rule that it breaks there.
#[rustfmt::skip]
const BUGS: &[(Bug, World, Rule)] = &[
    // TLBs.
    (NoTlbi, vcpus(2, &[A0, T0], 3, FAULTS), NeverDataAndTags),
    (LocalTlbi, vms(2, [&[A0], &[T0]], 3, FAULTS), NeverDataAndTags),
    (TlbiUnderOwnVmid, vms(2, [&[A0], &[T0]], 3, FAULTS), NeverDataAndTags),
    (OnlyStage2Tlbi, vcpus(2, &[A0, T0], 3, FAULTS), NeverDataAndTags),
    (OnlyCombinedTlbi, vcpus(2, &[A0, T0], 3, FAULTS), NeverDataAndTags),
    (NoDsbBeforeTlbi, vcpus(2, &[A0, T0], 3, FAULTS), NeverDataAndTags),
    (NoDsbAfterTlbi, vms(2, [&[A0, T1], &[T0, T1]], 3, RELEASE), NothingOfOthers),
    (SingleTlbiWithErratum, with_erratum(vcpus(2, &[A0, T0], 3, FAULTS)), LastWriteRead),
    (NoBreak, vcpus(1, &[A0], 2, FAULTS), BreakBeforeMake),
    (VmidReusedWithoutTlbi, vms(2, [&[A0], &[B0]], 2, RESET), VmidUnused),
    (ResetGivesBackBeforeTlbi, vms(1, [&[A0], &[]], 3, RESET), TagAccessImpliesReserved),
    // Order of steps.
    (CopyBeforeBreak, vcpus(1, &[A0, T1], 2, FAULTS), LastWriteRead),
    (MakeBeforeReserve, vcpus(1, &[A0], 2, FAULTS), TagAccessImpliesReserved),
    (NoTagClear, vcpus(2, &[A0, T0], 3, FAULTS), FirstTagsZero),
    (TagClearAfterMake, vcpus(1, &[A0], 2, FAULTS), LastWriteRead),
    (MakeBeforeVisible, vcpus(1, &[A0], 2, FAULTS), FirstTagsZero),
    (ReleaseBeforeBreak, vcpus(1, &[A0], 3, RELEASE), TagAccessImpliesReserved),
    // Caches and contents.
    (NoDataMaintenanceOnReserve, vcpus(2, &[A0, T0], 3, FAULTS), NeverDataAndTags),
    (NoTagMaintenanceOnReserve, vms(2, [&[A0], &[T0]], 3, FAULTS), NoStaleLine),
    (NoDsbBetweenMaintenance, vms(2, [&[A0], &[T0]], 3, FAULTS), NoStaleLine),
    (NoTagMaintenanceOnRelease, vcpus(1, &[A0], 3, RELEASE), NeverDataAndTags),
    (NoScrub, vcpus(1, &[A0], 3, RELEASE), ScrubbedToPoc),
    (ScrubNotToPoc, vcpus(1, &[A0], 3, RELEASE), ScrubbedToPoc),
    (NoZero, vms(2, [&[T0], &[T0]], 3, RELEASE), NothingOfOthers),
    // Which frame.
    (LendUnswept, unswept(vcpus(1, &[T0], 1, FAULTS)), NeverDataAndTags),
    (LendReserved, vcpus(2, &[A0, T0], 3, FAULTS), NeverDataAndTags),
    (StorageMappedTagged, vcpus(1, &[T0], 2, FAULTS), StorageNeverTagged),
    (NoEviction, vcpus(2, &[A0, T0], 3, FAULTS), NeverDataAndTags),
    (EvictionInsideBlock, vcpus(2, &[A0, T0], 3, FAULTS), NeverDataAndTags),
    // Moves.
    (SwapWithoutBreak, vcpus(2, &[A0, T1], 3, FAULTS), BreakBeforeMake),
    (ZeroInsteadOfCopy, vcpus(2, &[A0, T0], 3, FAULTS), LastWriteRead),
    (TagsOfOldFrameCleared, vcpu(2, &[A0, T0, T1], 3, FAULTS), FirstTagsZero),
    (CompactionLosesTags, vcpu(2, &[A0, A1, B0], 5, COMPACT), LastWriteRead),
    (DemotionLosesTags, vcpus(1, &[A0], 3, DEMOTE), TagAccessGoesWithZeroTags),
    (ScanBeforeBreak, vcpus(1, &[A0], 3, DEMOTE), TagAccessGoesWithZeroTags),
    // What was seen before the lock was taken.
    (BusyTakenForVacant, vcpus(1, &[A0, A1], 2, FAULTS), LastWriteRead),
    (FrameChosenBeforeLock, vms(2, [&[T0], &[T0]], 2, FAULTS), OneOwner),
    (NoRevalidation, vcpus(1, &[A0], 3, FAULTS), LastWriteRead),
    // Counting.
    (UserNotCounted, vcpu(2, &[A0, A1], 4, FAULTS), UsersCounted),
    (UserDroppedTwice, vcpu(2, &[A0, A1], 5, RELEASE), TagAccessImpliesReserved),
    (HoldKeptOnRefusal, with_failures(vcpu(2, &[A0, A1], 4, FAULTS)), RefusalLeavesNoTrace),
    (AllocationAfterBreak, with_failures(vms(2, [&[A0], &[T0]], 3, FAULTS)), RefusalLeavesNoTrace),
    // Locks.
    (LockPerVm, vms(4, [&[A0, T1], &[B0, T0]], 6, FAULTS), NoDeadlock),
    (UnfairLock, vcpus(2, &[A0, A1], 4, FAULTS), RacesLostBounded),
    (RetryOutsideLock, vcpus(2, &[A0, A1], 4, RELEASE), RacesLostBounded),
];

fn explore(world: World, rule: Rule) -> impl Checker<World> {
    world
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyOf([rule.name()].into()))
        .spawn_bfs()
        .join()
}

#[test]
fn each_seeded_bug_breaks_the_rule_that_forbids_it() {
    let mut missed = Vec::new();
    for &(bug, world, rule) in BUGS {
        let checker = explore(world.with_bug(bug), rule);
        let states = checker.unique_state_count();
        match checker.discovery(rule.name()) {
            Some(path) => {
                let steps = path.into_actions().len();
                println!("{bug:?}: {} ({steps} steps, {states} states)", rule.name());
            }
            None => missed.push((bug, states)),
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

#[test]
fn without_its_bug_each_of_those_worlds_keeps_the_rule() {
    for &(bug, mut world, rule) in BUGS {
        // The whole world is explored now: not the deepest ones.
        world.limit = world.limit.map(|limit| limit.min(3));
        let checker = explore(world, rule);
        assert!(
            checker.discovery(rule.name()).is_none(),
            "{bug:?}: {}",
            rule.name()
        );
    }
}

#[test]
fn each_bug_is_seeded_once_and_each_rule_is_broken_by_one() {
    let bugs: Vec<_> = BUGS.iter().map(|(bug, ..)| *bug).collect();
    assert_eq!(bugs, Bug::ALL);
    let rules: BTreeSet<_> = BUGS.iter().map(|(_, _, rule)| *rule).collect();
    let unbroken: Vec<_> = Rule::ALL
        .iter()
        .filter(|rule| !rules.contains(rule))
        .collect();
    assert!(unbroken.is_empty(), "no bug breaks {unbroken:?}");
}
