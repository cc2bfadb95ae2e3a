//! The tag storage protocol, explored state by state.
//!
//! The tests of `stage2` and of `hypervisor` run the code, on one CPU, by random steps. This package has no
//! code of theirs: it is the protocol of `ARCHITECTURE.md` once more, small enough that *every* interleaving of two CPUs
//! is looked at, and it shows of each rule of the protocol what breaks without it ([`Bug`]).
//!
//! # What is modelled
//!
//! * [`machine`]: six frames, two tag blocks whose memory is seen as data and as tags by caches that are not coherent
//!   with each other, TLBs of two kinds, VMIDs, accesses under way, what needs a DSB to be seen, erratum CVE-2025-10263.
//! * [`protocol`]: translation faults (lending included), tag access faults (in place, by a move, by a swap; a block that
//!   is unswept, free, lent or reserved), eviction, release of a page, demotion, compaction, reset with reuse of the
//!   VMID, refusals. Each is a script of steps; guests on other CPUs load, store, tag and fault between any two. Which
//!   frame is chosen is open: each choice that the protocol permits is explored, the policy's is one of them.
//! * [`properties`]: the invariants, what a guest reads among them: each load and tag load that is possible in a state must
//!   find what this VM wrote last.
//!
//! # What is not
//!
//! * Blocks of more than one frame, several regions, Offline blocks, 2 MiB leaves, budgets and eager guests: the tests of
//!   `stage2` have them.
//! * Contents finer than a page: a page is zero or as its guest wrote it.
//! * A guest's own barriers and caches: coherent, and in order.
//! * TLB entries that vanish by themselves: that only takes possibilities away.
//! * A failure in the middle: a refusal is a plan that does nothing, and what it shows is that one which begins is seen.
//! * Fairness of the scheduler: a guest whose page is taken again before it repeated its access faults again.
//!
//! # How far
//!
//! [`World::limit`] bounds the faults and operations that begin; what guests store meanwhile is not bounded. The tests explore all
//! states with three of them, with the feature `full` all with four of two VMs, and a breadth-first part of those of two
//! vCPUs. What is needed for a rule to mean anything (an eviction, a swap, two users, a late store ...) has to be
//! seen there too.
//!
//! # Why one lock
//!
//! All of `Memory` is behind one ticket lock. A handler looks under it at everything anew and keeps it to the end, so its
//! plan cannot be overtaken: no race is lost after the lock is taken, and before it at most one turn of each other CPU
//! (L2). A lock per VM is faster until a fault needs a page of another VM ([`Bug::LockPerVm`] deadlocks, with eviction
//! in both directions), and a plan made under one hold and carried out under the next may be wrong each time
//! ([`Bug::RetryOutsideLock`]).

#![forbid(unsafe_code)]
#![allow(
    clippy::indexing_slicing,
    reason = "a panic is a failed test, and indices are of small arrays"
)]

pub mod bug;
pub mod machine;
pub mod properties;
pub mod protocol;

use std::hash::{DefaultHasher, Hash, Hasher};

use stateright::{Model, Property};

pub use bug::Bug;
use machine::{
    Access, BLOCKS, Block, CPUS, Cpu, Frame, Leaves, Machine, PAGES, Page, Value, Vm, Who,
};
pub use properties::Rule;
use properties::{Broken, is_private};
use protocol::{BlockState, Cause, Homes, Open, Plan, Protocol, Step, Tables};

/// What a CPU does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mode {
    /// It runs its VM.
    Guest,
    /// It waits for the lock.
    Waiting(Cause),
    /// It waits for the lock and knows already what to do: only bugs make it so.
    Planned(Cause, Plan),
    /// It has the lock.
    Running {
        /// What it does.
        plan: Plan,
        /// The next step of it.
        at: u8,
    },
}

/// A CPU, as far as EL2 is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CpuState {
    /// What it does.
    pub mode: Mode,
    /// How often another CPU took the lock while this one waits.
    pub overtaken: u8,
    /// How often what it was to do had changed when it got the lock.
    pub replanned: u8,
    /// What the tables were when it took the lock for something that will be refused.
    before: u32,
}

/// What a page's VM wrote last: the truth that loads are held against.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Written {
    /// Whether the data is the guest's, not zero.
    pub data: bool,
    /// Whether the tags are the guest's, not zero.
    pub tags: bool,
}

impl Written {
    const fn data(self, page: Page) -> Value {
        match self.data {
            true => Value::Data(page),
            false => Value::Zero,
        }
    }

    const fn tags(self, page: Page) -> Value {
        match self.tags {
            true => Value::Tags(page),
            false => Value::Zero,
        }
    }
}

/// A state of the whole machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct State {
    /// Hardware.
    pub machine: Machine,
    /// The frame of each page.
    pub owned: [Option<Frame>; PAGES],
    /// The block table.
    pub blocks: [BlockState; BLOCKS],
    /// Who has which lock. There is one; [`Bug::LockPerVm`] has one for each VM.
    pub holders: [Option<Cpu>; 2],
    /// Who waits, first come first.
    pub queue: [Option<Cpu>; CPUS],
    /// The CPUs.
    pub cpus: [CpuState; CPUS],
    /// What guests wrote.
    pub written: [Written; PAGES],
    /// How many operations may begin yet, if that is bounded.
    pub left: Option<u8>,
    /// What steps broke.
    pub broken: Broken,
}

impl State {
    fn tables(&self) -> Tables {
        Tables {
            leaves: self.machine.table,
            owned: self.owned,
            blocks: self.blocks,
        }
    }

    fn fingerprint_of_tables(&self) -> u32 {
        let mut hasher = DefaultHasher::new();
        self.tables().hash(&mut hasher);
        hasher.finish() as u32
    }
}

/// What happens next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// A CPU comes to EL2. With a bug that plans too early: which plan.
    Come(Cpu, Cause, u8),
    /// A CPU takes the lock and chooses one of its plans.
    Acquire(Cpu, u8),
    /// A handler's next step; for a DSB that completes two kinds of maintenance: tags first?
    Step(Cpu, bool),
    /// A guest's store lands.
    Store(Cpu, Page, Frame),
    /// A guest's tag store lands.
    StoreTags(Cpu, Page, Frame),
    /// Dirty data lines of a block are evicted.
    WriteBackData(Block),
    /// Dirty tag lines of a frame are evicted.
    WriteBackTags(Frame),
}

/// What EL2 does besides answering faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Operations {
    /// Pages are released.
    pub release: bool,
    /// Tagged pages are demoted.
    pub demote: bool,
    /// Tagged pages are moved to other blocks.
    pub compact: bool,
    /// VMs are reset.
    pub reset: bool,
}

/// A world to explore.
#[derive(Clone, Copy, Debug)]
pub struct World {
    /// VMs, CPUs, pages, and what is wrong.
    pub protocol: Protocol,
    /// Which frames pages may have.
    pub homes: Homes,
    /// What EL2 does besides.
    pub operations: Operations,
    /// Whether firmware left the blocks dirty.
    pub unswept: bool,
    /// How many faults and operations there are at most, if bounded.
    pub limit: Option<u8>,
}

const VM0: &[Frame] = &[Frame::A0, Frame::A1, Frame::T0, Frame::T1];
const VM1: &[Frame] = &[Frame::B0, Frame::T0, Frame::T1];
const ALL_BUT_SPARE: &[Frame] = &[Frame::A0, Frame::A1, Frame::B0, Frame::T0, Frame::T1];

impl World {
    /// Two VMs of one vCPU each. The first owns the coverage of block 0, the second that of block 1; both may have pages
    /// in either block.
    pub const fn two_vms() -> Self {
        Self::new([0, 1, 0, 1], [0, 1], 4, [VM0, VM1])
    }

    /// One VM of two vCPUs.
    pub const fn two_vcpus() -> Self {
        Self::new([0; PAGES], [0, 0], 3, [ALL_BUT_SPARE, &[]])
    }

    const fn new(
        owners: [Vm; PAGES],
        running: [Vm; CPUS],
        pages: Page,
        frames: [&'static [Frame]; 2],
    ) -> Self {
        let who = Who {
            owners,
            running,
            pages,
            erratum: false,
        };
        Self {
            protocol: Protocol { who, bug: None },
            homes: Homes {
                frames,
                failures: false,
            },
            operations: Operations {
                release: false,
                demote: false,
                compact: false,
                reset: false,
            },
            unswept: false,
            limit: None,
        }
    }

    /// This world with a bug in it.
    #[must_use]
    pub const fn with_bug(mut self, bug: Bug) -> Self {
        self.protocol.bug = Some(bug);
        self
    }

    const fn who(&self) -> &Who {
        &self.protocol.who
    }

    fn has(&self, bug: Bug) -> bool {
        self.protocol.has(bug)
    }

    fn lock_of(&self, cpu: Cpu) -> usize {
        match self.has(Bug::LockPerVm) {
            true => usize::from(self.who().running(cpu)),
            false => 0,
        }
    }

    fn causes(&self, state: &State, cpu: Cpu, actions: &mut Vec<Action>) {
        if state.left == Some(0) {
            return;
        }
        let vm = self.who().running(cpu);
        let mut come = |cause| {
            let early = self.early_plans(state, cause).len().max(1);
            actions.extend((0..early as u8).map(|choice| Action::Come(cpu, cause, choice)));
        };
        for page in self.who().pages_of(vm) {
            match state.machine.table[page as usize] {
                None => come(Cause::Fault(page)),
                Some(leaf) => {
                    if self.operations.release {
                        come(Cause::Release(page));
                    }
                    let tagged = leaf.access == Access::Tags;
                    if self.operations.demote && tagged {
                        come(Cause::Demote(page));
                    }
                    if self.operations.compact && tagged {
                        come(Cause::Compact(page));
                    }
                }
            }
            let mut reach = state.machine.reach(cpu, page).iter();
            if reach.any(|leaf| leaf.access == Access::Data) {
                come(Cause::TagFault(page));
            }
        }
        if self.operations.reset {
            come(Cause::Reset(vm));
        }
    }

    /// What a handler would do that does not look again under the lock.
    fn early_plans(&self, state: &State, cause: Cause) -> Vec<Plan> {
        let mut tables = state.tables();
        match cause {
            Cause::TagFault(_) if self.has(Bug::NoRevalidation) => {}
            Cause::Fault(_) if self.has(Bug::FrameChosenBeforeLock) => {}
            Cause::Fault(page) if self.has(Bug::BusyTakenForVacant) => {
                tables.owned[page as usize] = None;
            }
            _ => return Vec::new(),
        }
        self.protocol.plans(&tables, cause, &self.homes)
    }

    fn stores(&self, state: &State, cpu: Cpu, actions: &mut Vec<Action>) {
        for page in self.who().pages_of(self.who().running(cpu)) {
            let mut by = state.machine.landing(cpu, page);
            if state.cpus[cpu as usize].mode == Mode::Guest {
                by |= Leaves::from(state.machine.table[page as usize]);
            }
            let mut last = None;
            for leaf in by.iter() {
                if last != Some(leaf.frame) {
                    actions.push(Action::Store(cpu, page, leaf.frame));
                    last = Some(leaf.frame);
                }
                if leaf.access == Access::Tags {
                    actions.push(Action::StoreTags(cpu, page, leaf.frame));
                }
            }
        }
    }

    fn may_acquire(&self, state: &State, cpu: Cpu) -> bool {
        let lock = self.lock_of(cpu);
        let others = self.has(Bug::UnfairLock) || self.has(Bug::LockPerVm);
        state.holders[lock].is_none() && (others || state.queue[0] == Some(cpu))
    }

    fn come(&self, state: &mut State, cpu: Cpu, cause: Cause, choice: u8) {
        let early = self.early_plans(state, cause);
        state.cpus[cpu as usize].mode = match early.get(usize::from(choice)) {
            Some(&plan) => Mode::Planned(cause, plan),
            None => Mode::Waiting(cause),
        };
        enqueue(state, cpu);
        state.left = state.left.map(|left| left - 1);
    }

    fn acquire(&self, state: &mut State, cpu: Cpu, choice: u8) {
        dequeue(state, cpu);
        for (other, waiting) in state.cpus.iter_mut().enumerate() {
            let waits = matches!(waiting.mode, Mode::Waiting(_) | Mode::Planned(..));
            if other != cpu as usize && waits {
                waiting.overtaken = (waiting.overtaken + 1).min(2);
            }
        }
        state.cpus[cpu as usize].overtaken = 0;
        let plan = match state.cpus[cpu as usize].mode {
            Mode::Planned(cause, plan) if self.has(Bug::RetryOutsideLock) => {
                let plans = self.protocol.plans(&state.tables(), cause, &self.homes);
                if !plans.contains(&plan) && !plans.is_empty() {
                    let cpu_state = &mut state.cpus[cpu as usize];
                    cpu_state.replanned = (cpu_state.replanned + 1).min(2);
                    cpu_state.mode = Mode::Waiting(cause);
                    return enqueue(state, cpu);
                }
                plans.contains(&plan).then_some(plan)
            }
            Mode::Planned(_, plan) => Some(plan),
            Mode::Waiting(cause) => {
                let plans = self.protocol.plans(&state.tables(), cause, &self.homes);
                let plan = plans.get(usize::from(choice)).copied();
                if let Some(plan) = plan
                    && self.has(Bug::RetryOutsideLock)
                {
                    state.cpus[cpu as usize].mode = Mode::Planned(cause, plan);
                    return enqueue(state, cpu);
                }
                plan
            }
            _ => None,
        };
        let Some(plan) = plan else {
            // Nothing to do any more: it counts for nothing.
            state.left = state.left.map(|left| left + 1);
            return leave(state, cpu);
        };
        if let Plan::Tag { refused: true, .. } = plan {
            state.cpus[cpu as usize].before = state.fingerprint_of_tables();
        }
        state.holders[self.lock_of(cpu)] = Some(cpu);
        state.cpus[cpu as usize].mode = Mode::Running { plan, at: 0 };
    }

    /// The next step of a handler, with those that are nobody else's business.
    fn run(&self, state: &mut State, cpu: Cpu, tags_first: bool) {
        let own = self.who().running(cpu);
        let Mode::Running { mut plan, mut at } = state.cpus[cpu as usize].mode else {
            return;
        };
        let mut step = self.protocol.step(&plan, own, at);
        loop {
            self.carry_out(state, cpu, step, &mut plan, tags_first);
            if state.cpus[cpu as usize].mode == Mode::Guest {
                return;
            }
            at += 1;
            step = self.protocol.step(&plan, own, at);
            if !is_private(step) {
                break;
            }
        }
        state.cpus[cpu as usize].mode = Mode::Running { plan, at };
    }

    fn carry_out(
        &self,
        state: &mut State,
        cpu: Cpu,
        step: Step,
        plan: &mut Plan,
        tags_first: bool,
    ) {
        let who = self.who();
        let machine = &mut state.machine;
        match step {
            Step::Lock(vm) => state.holders[usize::from(vm)] = Some(cpu),
            Step::UnlockOther(vm) => state.holders[usize::from(vm)] = None,
            Step::Unlock => {
                if let Plan::Tag { refused: true, .. } = plan {
                    let same = state.cpus[cpu as usize].before == state.fingerprint_of_tables();
                    state.broken.unless(same, Rule::RefusalLeavesNoTrace);
                }
                state.holders[self.lock_of(cpu)] = None;
                leave(state, cpu);
            }
            Step::Block(block, to) => set_block(state, block, to),
            Step::AddUser(block) => change_users(state, block, 1),
            Step::DropUser(block) => change_users(state, block, -1),
            Step::Own(page, frame) => state.owned[page as usize] = frame,
            Step::Write(page, leaf) => {
                let old = machine.table[page as usize];
                let broken = old.is_some() && leaf.is_some() && old != leaf;
                machine.write_entry(who, cpu, page, leaf);
                state.broken.unless(!broken, Rule::BreakBeforeMake);
            }
            Step::Dsb => machine.synchronize(who, cpu, tags_first),
            Step::Vttbr(vm) => machine.vttbr[cpu as usize] = vm,
            Step::TlbiStage2(page) if machine.vttbr[cpu as usize] == who.owner(page) => {
                machine.invalidate_stage2(self.shareable(cpu), page);
            }
            Step::TlbiStage2(_) => {}
            Step::TlbiCombined => {
                for page in who.pages_of(machine.vttbr[cpu as usize]) {
                    machine.invalidate_combined(self.shareable(cpu), page);
                }
            }
            Step::TlbiVm => {
                for page in who.pages_of(machine.vttbr[cpu as usize]) {
                    machine.invalidate_stage2(self.shareable(cpu), page);
                    machine.invalidate_combined(self.shareable(cpu), page);
                }
            }
            Step::TlbiRepeat => machine.flush_late_stores(),
            Step::Zero(frame) => machine.zero(cpu, frame),
            Step::Copy(from, to) => machine.copy(cpu, from, to),
            Step::ZeroTags(frame) => machine.zero_tags(cpu, frame),
            Step::CopyTags(from, to) => machine.copy_tags(cpu, from, to),
            Step::CleanData(block) => machine.clean_data(cpu, block),
            Step::CleanTags(frame) => machine.clean_tags(cpu, frame),
            Step::Scan(frame) => {
                if let Plan::Demote { tags_found, .. } = plan {
                    *tags_found = machine.tags(frame) != Some(Value::Zero);
                }
            }
            Step::Forget(page) => state.written[page as usize] = Written::default(),
            Step::Restart(vm) => {
                let clean = who
                    .pages_of(vm)
                    .all(|page| state.machine.reach_by_any(page).is_empty());
                state.broken.unless(clean, Rule::VmidUnused);
            }
        }
    }

    /// The CPUs that a TLBI reaches.
    fn shareable(&self, cpu: Cpu) -> std::ops::Range<Cpu> {
        match self.has(Bug::LocalTlbi) {
            true => cpu..cpu + 1,
            false => 0..CPUS as Cpu,
        }
    }

    /// The CPU that `cpu` waits for.
    pub fn waits_for(&self, state: &State, cpu: Cpu) -> Option<Cpu> {
        let lock = match state.cpus[cpu as usize].mode {
            Mode::Guest => return None,
            Mode::Waiting(_) | Mode::Planned(..) => self.lock_of(cpu),
            // Only a handler that has one lock already waits for another.
            Mode::Running { plan, at } if self.has(Bug::LockPerVm) => {
                match self.protocol.step(&plan, self.who().running(cpu), at) {
                    Step::Lock(vm) => usize::from(vm),
                    _ => return None,
                }
            }
            Mode::Running { .. } => return None,
        };
        state.holders[lock]
    }
}

fn enqueue(state: &mut State, cpu: Cpu) {
    if let Some(place) = state.queue.iter_mut().find(|place| place.is_none()) {
        *place = Some(cpu);
    }
}

fn dequeue(state: &mut State, cpu: Cpu) {
    if state.queue[0] == Some(cpu) {
        state.queue.swap(0, 1);
    }
    state.queue[1] = None;
}

/// Back to the guest.
fn leave(state: &mut State, cpu: Cpu) {
    state.cpus[cpu as usize] = CpuState {
        mode: Mode::Guest,
        overtaken: 0,
        replanned: 0,
        before: 0,
    };
}

fn set_block(state: &mut State, block: Block, to: BlockState) {
    let from = std::mem::replace(&mut state.blocks[block as usize], to);
    let swept = matches!(from, BlockState::Unswept | BlockState::Scrubbing);
    if swept && to == BlockState::Free {
        let zero = state.machine.is_zero(block);
        state.broken.unless(zero, Rule::ScrubbedToPoc);
    }
}

fn change_users(state: &mut State, block: Block, by: i8) {
    let state_of = &mut state.blocks[block as usize];
    *state_of = match *state_of {
        BlockState::Reserved { users: 1 } if by < 0 => BlockState::Scrubbing,
        BlockState::Reserved { users } => BlockState::Reserved {
            users: users.saturating_add_signed(by),
        },
        other => {
            state.broken.unless(false, Rule::UsersCounted);
            other
        }
    };
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let running = self.who().running;
        let idle = CpuState {
            mode: Mode::Guest,
            overtaken: 0,
            replanned: 0,
            before: 0,
        };
        let (machine, block) = match self.unswept {
            true => (Machine::after_boot(running), BlockState::Unswept),
            false => (Machine::swept(running), BlockState::Free),
        };
        vec![State {
            machine,
            owned: [None; PAGES],
            blocks: [block; BLOCKS],
            holders: [None; 2],
            queue: [None; CPUS],
            cpus: [idle; CPUS],
            written: [Written::default(); PAGES],
            left: self.limit,
            broken: Broken::default(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for cpu in 0..CPUS as Cpu {
            match state.cpus[cpu as usize].mode {
                Mode::Guest => self.causes(state, cpu, actions),
                Mode::Waiting(cause) if self.may_acquire(state, cpu) => {
                    let plans = self.protocol.plans(&state.tables(), cause, &self.homes);
                    let choices = plans.len().max(1) as u8;
                    actions.extend((0..choices).map(|choice| Action::Acquire(cpu, choice)));
                }
                Mode::Planned(..) if self.may_acquire(state, cpu) => {
                    actions.push(Action::Acquire(cpu, 0));
                }
                Mode::Running { .. } if self.waits_for(state, cpu).is_none() => {
                    actions.push(Action::Step(cpu, true));
                    if state.machine.has_two_orders(cpu) {
                        actions.push(Action::Step(cpu, false));
                    }
                }
                _ => {}
            }
            self.stores(state, cpu, actions);
        }
        actions.extend((0..BLOCKS as Block).map(Action::WriteBackData));
        actions.extend(Frame::TAGGABLE.map(Action::WriteBackTags));
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = *before;
        match action {
            Action::Come(cpu, cause, choice) => self.come(&mut state, cpu, cause, choice),
            Action::Acquire(cpu, choice) => self.acquire(&mut state, cpu, choice),
            Action::Step(cpu, tags_first) => self.run(&mut state, cpu, tags_first),
            Action::Store(_, page, frame) => {
                let written = &mut state.written[page as usize];
                written.data = !written.data;
                let sound = state.machine.store(frame, written.data(page));
                state.broken.unless(sound, Rule::NoStaleLine);
            }
            Action::StoreTags(_, page, frame) => {
                let written = &mut state.written[page as usize];
                written.tags = !written.tags;
                let sound = state.machine.store_tags(frame, written.tags(page));
                state.broken.unless(sound, Rule::NoStaleLine);
            }
            Action::WriteBackData(block) => {
                state.machine.write_back_data(block).then_some(())?;
            }
            Action::WriteBackTags(frame) => {
                state.machine.write_back_tags(frame).then_some(())?;
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            always::<0>(),
            always::<1>(),
            always::<2>(),
            always::<3>(),
            always::<4>(),
            always::<5>(),
            always::<6>(),
            always::<7>(),
            always::<8>(),
            always::<9>(),
            always::<10>(),
            always::<11>(),
            always::<12>(),
            always::<13>(),
            always::<14>(),
            always::<15>(),
        ];
        if self.protocol.bug.is_none() {
            properties.extend(self.sights());
        }
        properties
    }
}

/// The property of a rule. A property is a plain function, so its rule is a type.
fn always<const RULE: usize>() -> Property<World> {
    Property::always(Rule::ALL[RULE].name(), |world, state| {
        Rule::ALL[RULE].holds(world, state)
    })
}

fn runs(state: &State, what: impl Fn(&Plan) -> bool) -> bool {
    state
        .cpus
        .iter()
        .any(|cpu| matches!(&cpu.mode, Mode::Running { plan, .. } if what(plan)))
}

impl World {
    /// What must be seen in this world: else its rules were kept by doing nothing.
    fn sights(&self) -> Vec<Property<Self>> {
        let mut sights: Vec<Property<Self>> = vec![
            Property::sometimes("a page lies in tag storage", |_, state: &State| {
                state.blocks.contains(&BlockState::Lent)
            }),
            Property::sometimes("both blocks are reserved", |_, state: &State| {
                let reserved = |block: &BlockState| matches!(block, BlockState::Reserved { .. });
                state.blocks.iter().all(reserved)
            }),
            Property::sometimes("a block has two users", |_, state: &State| {
                state.blocks.contains(&BlockState::Reserved { users: 2 })
            }),
            Property::sometimes("a page is evicted for a tagged one", |_, state: &State| {
                runs(
                    state,
                    |plan| matches!(plan, Plan::Tag { page, open: Open::Evict { page: victim, .. }, .. } if victim != page),
                )
            }),
            Property::sometimes("a page lies in its own tag storage", |_, state: &State| {
                runs(
                    state,
                    |plan| matches!(plan, Plan::Tag { page, open: Open::Evict { page: victim, .. }, .. } if victim == page),
                )
            }),
            Property::sometimes("two pages are swapped", |_, state: &State| {
                runs(state, |plan| {
                    matches!(plan, Plan::Tag { swap: Some(_), .. })
                })
            }),
            Property::sometimes("a CPU waits for another", |world: &Self, state: &State| {
                (0..CPUS as Cpu).any(|cpu| world.waits_for(state, cpu).is_some())
            }),
        ];
        if self.who().erratum {
            sights.push(Property::sometimes(
                "a store is late",
                |_, state: &State| {
                    let tlbs = state.machine.tlbs.as_flattened();
                    tlbs.iter().any(|tlb| !tlb.late.is_empty())
                },
            ));
        }
        if self.operations.demote {
            sights.push(Property::sometimes(
                "tags are found at demotion",
                |_, state: &State| {
                    runs(state, |plan| {
                        matches!(
                            plan,
                            Plan::Demote {
                                tags_found: true,
                                ..
                            }
                        )
                    })
                },
            ));
        }
        if self.operations.compact {
            sights.push(Property::sometimes(
                "a tagged page moves",
                |_, state: &State| runs(state, |plan| matches!(plan, Plan::Compact { .. })),
            ));
        }
        if self.operations.reset {
            sights.push(Property::sometimes(
                "a VMID is used again",
                |_, state: &State| runs(state, |plan| matches!(plan, Plan::Reset { .. })),
            ));
        }
        sights
    }
}
