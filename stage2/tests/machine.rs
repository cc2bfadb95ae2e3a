//! The real core as a state machine, against a naive model of what each guest must see: VMs of any
//! shape come and go on boards of any kind, while allocations are refused, evictions are limited,
//! and tables run short. All that must hold at rest is checked after each step.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

mod common;

use std::collections::BTreeMap;

use common::{BASE, Board, KIB, MIB, Shape, World, range};
use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use stage2::addr::{Ipa, PAGE_SIZE};
use stage2::frames::Owner;
use stage2::guest::{MemError, Policy};
use stage2::region::{Occupant, Occupied};

const SLOTS: usize = 4;

/// What happens next. Pages are numbers modulo the VM's RAM.
#[derive(Clone, Debug)]
enum Step {
    Create(usize, Shape),
    Destroy(usize),
    Reset(usize),
    /// So many parts of its memory are taken away: it runs no more until it is reset or destroyed.
    Release(usize, u64),
    Load(usize, u64),
    Store(usize, u64, u8),
    Ldg(usize, u64),
    Stg(usize, u64, u8),
    /// Data accesses to so many pages in a row.
    Sweep(usize, u64, u64),
    Demote(usize, u64),
    Compact(usize),
    SwitchToEager(usize),
    /// A budget for so many pages.
    SetBudget(usize, u64),
    /// So many pages may a fault evict from now on.
    Leave(u64),
    /// So many allocations are granted to each fault before one is refused, at first.
    Grants(Option<u64>),
    /// Only so many frames are left for tables, and no chunk, during each step from now on.
    Starve(Option<usize>),
}

/// The machine, and the VMs that the steps have tried to make: whether one was admitted is not
/// foreseen.
#[derive(Clone, Debug)]
struct Plan {
    board: Board,
    policy: Policy,
    vms: BTreeMap<usize, Shape>,
}

fn firmware(base: u64, bytes: u64) -> Occupied {
    Occupied {
        range: range(base, bytes),
        by: Occupant::Firmware,
    }
}

fn boards() -> impl Strategy<Value = Board> {
    let blocks = proptest::sample::select(vec![0x1000, 0x2000, 0x3000, 0x8000, 1, 0x20000]);
    prop_oneof![
        // The last block of a region may cover less than the others.
        4 => (blocks, 0..3_u64).prop_map(|(block, odd)| {
            Board::new(&[16 * MIB + odd * 5 * PAGE_SIZE], block)
        }),
        1 => Just(Board::new(&[6 * MIB, 10 * MIB], 0x1000)),
        2 => Just(Board::with_regions(&[(6 * MIB, 0x1000), (8 * MIB, 0x8000)])),
        // Chunks with a tail that is no whole piece.
        1 => Just(Board::with_regions(&[(26 * MIB, 0x43000), (4 * MIB, 0x1000)])),
        // Holes in memory, and blocks that are not all ours in chunks that are.
        1 => Just(Board::new(&[16 * MIB], 0x1000).occupy(firmware(BASE + 5 * MIB, 1))),
        2 => (0..32_u64, 1..8_u64).prop_map(|(first, count)| {
            let tags = BASE + 12 * MIB + first * PAGE_SIZE;
            Board::new(&[12 * MIB], 0x1000).occupy(firmware(tags, count * PAGE_SIZE))
        }),
        1 => Just(Board::without_region(12 * MIB)),
    ]
}

fn shapes(policy: Policy) -> impl Strategy<Value = Shape> {
    let policies = match policy {
        Policy::Static => vec![Policy::Static],
        Policy::Eager | Policy::Lazy => vec![Policy::Lazy, Policy::Lazy, Policy::Eager],
    };
    let bases = prop_oneof![2 => Just(0), 1 => Just(MIB), 1 => Just(2 * MIB - PAGE_SIZE)];
    let bytes = prop_oneof![
        Just(64 * KIB),
        Just(MIB),
        Just(2 * MIB),
        Just(2 * MIB + PAGE_SIZE),
        Just(4 * MIB),
        Just(5 * MIB),
    ];
    // In parts of what the VM could ever use.
    let budgets = prop_oneof![Just(0), Just(1), Just(8), Just(64), Just(64)];
    let policies = proptest::sample::select(policies);
    (
        bases,
        bytes,
        proptest::bool::weighted(0.7),
        policies,
        budgets,
    )
        .prop_map(|(base, bytes, mte, policy, budget)| Shape {
            base: BASE + base,
            bytes,
            mte,
            policy,
            tag_budget: bytes / 32 * budget / 64,
        })
}

impl ReferenceStateMachine for Plan {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        let policies = vec![
            Policy::Static,
            Policy::Eager,
            Policy::Lazy,
            Policy::Lazy,
            Policy::Lazy,
        ];
        (boards(), proptest::sample::select(policies))
            .prop_map(|(board, policy)| Self {
                board,
                policy,
                vms: BTreeMap::new(),
            })
            .boxed()
    }

    fn transitions(plan: &Self) -> BoxedStrategy<Step> {
        let create =
            (0..SLOTS, shapes(plan.policy)).prop_map(|(slot, shape)| Step::Create(slot, shape));
        if plan.vms.is_empty() {
            return create.boxed();
        }
        let slots = || proptest::sample::select(plan.vms.keys().copied().collect::<Vec<_>>());
        // Few pages in few slots, so that steps meet; and any.
        let near = prop_oneof![0..4_u64, 30..36_u64, 510..514_u64, 800..802_u64];
        let pages = prop_oneof![4 => near, 1 => 0..2000_u64].boxed();
        let at = || (slots(), pages.clone());
        prop_oneof![
            2 => create,
            1 => slots().prop_map(Step::Destroy),
            1 => slots().prop_map(Step::Reset),
            2 => (slots(), 1..4_u64).prop_map(|(slot, parts)| Step::Release(slot, parts)),
            4 => at().prop_map(|(slot, page)| Step::Load(slot, page)),
            6 => (at(), 1..=255_u8).prop_map(|((slot, page), value)| Step::Store(slot, page, value)),
            4 => at().prop_map(|(slot, page)| Step::Ldg(slot, page)),
            8 => (at(), 0..16_u8).prop_map(|((slot, page), tag)| Step::Stg(slot, page, tag)),
            3 => (at(), 1..200_u64).prop_map(|((slot, page), count)| Step::Sweep(slot, page, count)),
            2 => (slots(), 1..1500_u64).prop_map(|(slot, pages)| Step::Demote(slot, pages)),
            2 => slots().prop_map(Step::Compact),
            1 => slots().prop_map(Step::SwitchToEager),
            2 => (slots(), 0..1300_u64).prop_map(|(slot, pages)| Step::SetBudget(slot, pages)),
            1 => prop_oneof![Just(0), Just(2), Just(u64::MAX)].prop_map(Step::Leave),
            2 => proptest::option::weighted(0.8, 0..5_u64).prop_map(Step::Grants),
            1 => proptest::option::weighted(0.4, 0..4_usize).prop_map(Step::Starve),
        ]
        .boxed()
    }

    fn apply(mut plan: Self, step: &Step) -> Self {
        match *step {
            Step::Create(slot, shape) => {
                plan.vms.entry(slot).or_insert(shape);
            }
            Step::Destroy(slot) => {
                plan.vms.remove(&slot);
            }
            _ => {}
        }
        plan
    }

    fn preconditions(plan: &Self, step: &Step) -> bool {
        match *step {
            Step::Create(slot, _) => !plan.vms.contains_key(&slot),
            Step::Destroy(slot)
            | Step::Reset(slot)
            | Step::Release(slot, _)
            | Step::Load(slot, _)
            | Step::Store(slot, ..)
            | Step::Ldg(slot, _)
            | Step::Stg(slot, ..)
            | Step::Sweep(slot, ..)
            | Step::Demote(slot, _)
            | Step::Compact(slot)
            | Step::SwitchToEager(slot)
            | Step::SetBudget(slot, _) => plan.vms.contains_key(&slot),
            Step::Leave(_) | Step::Grants(_) | Step::Starve(_) => true,
        }
    }
}

/// The real core.
struct Core {
    plan: Plan,
    world: World,
    /// Frames that are left for tables during a step.
    left: Option<usize>,
    starved: bool,
}

impl Core {
    /// Whether a table that was made while they ran short is in a chunk that VMs were promised.
    fn lost_chunks(&mut self) -> bool {
        let owners = self.world.figures().owners;
        self.starved && (self.plan.board.descs.is_empty() || owners.contains(&Some(Owner::Tables)))
    }

    fn shape(&self, slot: usize) -> Option<(u64, u64)> {
        let vm = self.world.vms.get(slot)?.as_ref()?;
        Some((vm.spec.ram_base.get(), vm.spec.ram_bytes / PAGE_SIZE))
    }

    fn step(&mut self, step: Step) -> Result<(), MemError> {
        let world = &mut self.world;
        match step {
            Step::Create(slot, shape) => return world.create_shape(slot, shape),
            Step::Leave(leave) => world.leave = leave,
            Step::Grants(grants) => {
                // A refused fault may sweep a block.
                world.watch = false;
                world.grants = grants;
            }
            Step::Starve(left) => {
                self.left = left;
                self.starved = true;
            }
            other => {
                let taken = self.left.map(|left| world.leave_tables(left));
                let result = self.step_of_vm(other);
                self.world.free_tables(taken.unwrap_or_default());
                return result;
            }
        }
        Ok(())
    }

    fn step_of_vm(&mut self, step: Step) -> Result<(), MemError> {
        let slot = match step {
            Step::Destroy(slot) | Step::Reset(slot) | Step::Compact(slot) => slot,
            Step::Release(slot, _) => slot,
            Step::Load(slot, _) | Step::Store(slot, ..) | Step::Ldg(slot, _) => slot,
            Step::Stg(slot, ..) | Step::Sweep(slot, ..) | Step::Demote(slot, _) => slot,
            Step::SwitchToEager(slot) | Step::SetBudget(slot, _) => slot,
            Step::Create(..) | Step::Leave(_) | Step::Grants(_) | Step::Starve(_) => return Ok(()),
        };
        let Some((base, pages)) = self.shape(slot) else {
            return Ok(()); // It was not admitted.
        };
        let at = |page: u64| Ipa::new(base + page % pages * PAGE_SIZE + page % 4 * 1008);
        let world = &mut self.world;
        match step {
            Step::Destroy(_) => world.destroy(slot),
            Step::Reset(_) => world.reset(slot),
            Step::Release(_, parts) => world.release(slot, parts),
            _ if world.vm(slot).leaving => {}
            Step::Load(_, page) => world.load(slot, at(page))?,
            Step::Store(_, page, value) => world.store(slot, at(page), value)?,
            Step::Ldg(_, page) => world.ldg(slot, at(page))?,
            Step::Stg(_, page, tag) => world.stg(slot, at(page), tag)?,
            Step::Sweep(_, page, count) => {
                for page in page..page + count {
                    world.store(slot, at(page), page as u8)?;
                }
            }
            Step::Demote(_, pages) => {
                world.demote(slot, pages);
            }
            Step::Compact(_) => {
                world.compact(slot)?;
            }
            Step::SwitchToEager(_) => world.switch_to_eager(slot),
            Step::SetBudget(_, pages) => world.set_budget(slot, pages * PAGE_SIZE / 32)?,
            Step::Create(..) | Step::Leave(_) | Step::Grants(_) | Step::Starve(_) => {}
        }
        Ok(())
    }
}

impl StateMachineTest for Core {
    type SystemUnderTest = Self;
    type Reference = Plan;

    fn init_test(plan: &Plan) -> Self {
        let mut world = World::new(&plan.board, plan.policy);
        world.vms.resize_with(SLOTS, || None);
        world.images = true;
        Self {
            plan: plan.clone(),
            world,
            left: None,
            starved: false,
        }
    }

    fn apply(mut core: Self, _: &Plan, step: Step) -> Self {
        match core.step(step.clone()) {
            Ok(()) | Err(MemError::OverBudget { .. }) => {}
            Err(MemError::TooMuch { .. } | MemError::TooMuchTaggable { .. }) => {}
            // A budget below what is reserved, or of a VM without tags.
            Err(MemError::InUse { .. } | MemError::NotMte)
                if matches!(step, Step::SetBudget(..)) => {}
            // A case that shrinks may lose the machine that its VMs were for.
            Err(MemError::StaticMismatch) => {}
            // An admitted VM always gets its memory, unless a test takes it away.
            Err(MemError::NoMemory) if core.left.is_some() || core.lost_chunks() => {}
            Err(other) => panic!("{step:?}: {other}"),
        }
        core.world.check();
        core
    }

    fn teardown(mut core: Self) {
        let world = &mut core.world;
        (world.grants, world.leave) = (None, u64::MAX);
        world.read_back();
        world.check();
        (0..SLOTS).for_each(|slot| world.destroy(slot));
        world.check();
        let fresh = core.plan.board.memory(core.plan.policy).account().ledger;
        let ledger = world.memory.account().ledger;
        assert_eq!(ledger, fresh, "everything came back");
    }
}

prop_state_machine! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(feature = "full") { 4000 } else { 24 },
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_guest_sees_its_own_and_every_refusal_leaves_all_as_it_was(sequential 1..60 => Core);
}
