//! The real core against a naive model, on the simulated machine: random accesses, tag accesses,
//! resets and destroys of several VMs, under each policy, with any block size.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

mod common;

use common::{Board, MIB, World, page};
use proptest::prelude::*;
use stage2::addr::{Ipa, PAGE_SIZE as PAGE};
use stage2::guest::{MemError, Policy};

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Op {
    Load(u64),
    Store(u64, u8),
    Ldg(u64),
    Stg(u64, u8),
    /// A store while only so many frames for tables are left, and no chunk.
    Squeezed(u64, usize),
    Reset,
    Destroy,
}

const VMS: usize = 3;

fn boards() -> impl Strategy<Value = Board> {
    prop_oneof![
        // Any block size; the last block of a region may cover less than the others.
        proptest::sample::select(vec![0x1000, 0x2000, 0x3000, 0x8000, 1, 16])
            .prop_flat_map(|block| (0..3_u64)
                .prop_map(move |odd| Board::new(&[12 * MIB + odd * 5 * PAGE], block))),
        // Too small for all VMs: refusals.
        Just(Board::new(&[6 * MIB], 0x1000)),
        Just(Board::new(&[6 * MIB, 8 * MIB], 0x1000)),
        Just(Board::new(&[6 * MIB, 6 * MIB], 0x2000)),
        Just(Board::without_region(12 * MIB)),
    ]
}

/// Addresses in few pages of few pieces, so that steps meet.
fn address() -> impl Strategy<Value = u64> {
    let pages = prop_oneof![0..4_u64, 30..36_u64, 95..98_u64, 510..514_u64, 800..802_u64];
    (pages, 0..4_u64).prop_map(|(page, granule)| page * PAGE + granule * 1000)
}

fn ops() -> impl Strategy<Value = Vec<(usize, Op)>> {
    let op = prop_oneof![
        4 => address().prop_map(Op::Load),
        6 => (address(), 1..=255_u8).prop_map(|(at, value)| Op::Store(at, value)),
        4 => address().prop_map(Op::Ldg),
        6 => (address(), 1..16_u8).prop_map(|(at, tag)| Op::Stg(at, tag)),
        2 => (address(), 0..3_usize).prop_map(|(at, left)| Op::Squeezed(at, left)),
        1 => Just(Op::Reset),
        1 => Just(Op::Destroy),
    ];
    proptest::collection::vec((0..VMS, op), 1..60)
}

/// How each new VM is, in turn.
fn shapes(policy: Policy) -> impl Strategy<Value = Vec<(bool, Policy)>> {
    let policies = match policy {
        Policy::Static => vec![Policy::Static],
        Policy::Eager | Policy::Lazy => vec![Policy::Eager, Policy::Lazy, Policy::Lazy],
    };
    let shape = (
        proptest::bool::weighted(0.8),
        proptest::sample::select(policies),
    );
    proptest::collection::vec(shape, 1..5)
}

fn machine() -> impl Strategy<Value = (Policy, Vec<(bool, Policy)>)> {
    proptest::sample::select(vec![Policy::Static, Policy::Eager, Policy::Lazy])
        .prop_flat_map(|policy| (Just(policy), shapes(policy)))
}

fn step(world: &mut World, slot: usize, op: Op) -> Result<(), MemError> {
    let at = |offset| Ipa::new(page(0).get() + offset);
    match op {
        Op::Load(offset) => world.load(slot, at(offset)),
        Op::Store(offset, value) => world.store(slot, at(offset), value),
        Op::Ldg(offset) => world.ldg(slot, at(offset)),
        Op::Stg(offset, tag) => world.stg(slot, at(offset), tag),
        Op::Squeezed(offset, left) => {
            let taken = world.leave_tables(left);
            let before = world.figures();
            let result = world.store(slot, at(offset), 0x5a);
            if result.is_err() {
                assert_eq!(world.figures(), before, "a refusal leaves no trace");
            }
            world.free_tables(taken);
            result
        }
        Op::Reset => {
            world.reset(slot);
            Ok(())
        }
        Op::Destroy => {
            world.destroy(slot);
            Ok(())
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(feature = "full") { 400 } else { 24 },
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn guests_see_their_own_data_and_tags_and_every_invariant_holds(
        board in boards(),
        (policy, shapes) in machine(),
        ops in ops(),
    ) {
        let mut world = World::new(&board, policy);
        world.vms.resize_with(VMS, || None);
        world.images = true;
        let fresh = world.memory.account().ledger;
        let mut shapes = shapes.into_iter().cycle();
        for (slot, op) in ops {
            if world.vms[slot].is_none() {
                let (mte, policy) = shapes.next().unwrap();
                match world.create(slot, 4 * MIB, mte, policy) {
                    Ok(()) => {}
                    Err(MemError::TooMuch { .. } | MemError::TooMuchTaggable { .. }) => continue,
                    Err(other) => panic!("{other}"),
                }
            }
            // A machine that is full says so, and nothing else changes: the check below would tell.
            match step(&mut world, slot, op) {
                Ok(()) | Err(MemError::NoMemory) => {}
                Err(other) => panic!("{other}"),
            }
            world.check();
        }
        world.read_back();
        world.check();
        (0..VMS).for_each(|slot| world.destroy(slot));
        world.check();
        prop_assert_eq!(world.memory.account().ledger, fresh, "everything came back");
        prop_assert!(world.facts > 0);
    }
}
