//! What holds in each state. The names are those of the invariants in `ARCHITECTURE.md`.

use std::ops::BitOrAssign;

use crate::machine::{
    Access, BLOCKS, Block, CPUS, Cpu, Frame, Leaf, Line, Page, Value, Who, coverage, storage,
};
use crate::protocol::{BlockState, Step};
use crate::{Mode, State, World};

/// A rule that must never be broken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Rule {
    /// S1.
    OneOwner,
    /// S2.
    NeverDataAndTags,
    /// S3.
    TagAccessImpliesReserved,
    /// S4.
    StorageNeverTagged,
    /// S6.
    UsersCounted,
    /// S8.
    FirstTagsZero,
    /// S9, for a block given back.
    ScrubbedToPoc,
    /// S9, for what a guest can read.
    NothingOfOthers,
    /// S10 and S18.
    LastWriteRead,
    /// S11.
    TagAccessGoesWithZeroTags,
    /// S12.
    BreakBeforeMake,
    /// S13.
    NoStaleLine,
    /// S14.
    VmidUnused,
    /// F1 and F2.
    RefusalLeavesNoTrace,
    /// L1.
    NoDeadlock,
    /// L2.
    RacesLostBounded,
}

impl Rule {
    /// All rules.
    pub const ALL: [Self; 16] = [
        Self::OneOwner,
        Self::NeverDataAndTags,
        Self::TagAccessImpliesReserved,
        Self::StorageNeverTagged,
        Self::UsersCounted,
        Self::FirstTagsZero,
        Self::ScrubbedToPoc,
        Self::NothingOfOthers,
        Self::LastWriteRead,
        Self::TagAccessGoesWithZeroTags,
        Self::BreakBeforeMake,
        Self::NoStaleLine,
        Self::VmidUnused,
        Self::RefusalLeavesNoTrace,
        Self::NoDeadlock,
        Self::RacesLostBounded,
    ];

    /// The property's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OneOwner => "S1 a frame has one owner",
            Self::NeverDataAndTags => "S2 storage is never data and tags at once",
            Self::TagAccessImpliesReserved => "S3 tag access implies a reserved block",
            Self::StorageNeverTagged => "S4 storage is never mapped with tag access",
            Self::UsersCounted => "S6 users are counted",
            Self::FirstTagsZero => "S8 the first tags are zero",
            Self::ScrubbedToPoc => "S9 a block given back is zero in memory",
            Self::NothingOfOthers => "S9 nothing of another VM is read",
            Self::LastWriteRead => "S10 what was written last is read",
            Self::TagAccessGoesWithZeroTags => "S11 tag access goes with all tags zero only",
            Self::BreakBeforeMake => "S12 break before make",
            Self::NoStaleLine => "S13 no stale line is used",
            Self::VmidUnused => "S14 no VMID is used again before its TLBI",
            Self::RefusalLeavesNoTrace => "F2 a refusal leaves no trace",
            Self::NoDeadlock => "L1 no deadlock",
            Self::RacesLostBounded => "L2 races lost are bounded",
        }
    }

    /// Whether `state` keeps the rule.
    pub fn holds(self, world: &World, state: &State) -> bool {
        let who = &world.protocol.who;
        !state.broken.contains(self)
            && match self {
                Self::OneOwner => frames_have_one_owner(state),
                Self::NeverDataAndTags => blocks().all(|block| has_one_role(who, state, block)),
                Self::TagAccessImpliesReserved => reachable(who, state).all(is_backed(state)),
                Self::StorageNeverTagged => reachable(who, state)
                    .all(|leaf| leaf.access == Access::Data || leaf.frame.block().is_some()),
                Self::UsersCounted => blocks().all(|block| users_are_counted(who, state, block)),
                Self::FirstTagsZero | Self::NothingOfOthers | Self::LastWriteRead => {
                    !(0..CPUS as Cpu).any(|cpu| loads_break(who, state, cpu, self))
                }
                Self::NoStaleLine => {
                    blocks().all(|block| lines_are_fresh(state, block))
                        && !(0..CPUS as Cpu).any(|cpu| loads_break(who, state, cpu, self))
                }
                Self::TagAccessGoesWithZeroTags => who.all_pages().all(|page| {
                    let leaf = state.machine.table[page as usize];
                    leaf.is_none_or(|leaf| leaf.access == Access::Tags)
                        || !state.written[page as usize].tags
                }),
                Self::BreakBeforeMake => who.all_pages().all(|page| {
                    state.machine.table[page as usize].is_none()
                        || state.machine.not_as_table(page).is_empty()
                }),
                Self::NoDeadlock => (0..CPUS as Cpu).all(|cpu| can_go_on(world, state, cpu)),
                Self::RacesLostBounded => state
                    .cpus
                    .iter()
                    .all(|cpu| cpu.overtaken <= 1 && cpu.replanned <= 1),
                Self::ScrubbedToPoc | Self::VmidUnused | Self::RefusalLeavesNoTrace => true,
            }
    }
}

/// Rules that a step broke, for those that a state does not show.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Broken(u16);

impl Broken {
    /// Whether `rule` was broken.
    pub const fn contains(self, rule: Rule) -> bool {
        self.0 & 1 << rule as u8 != 0
    }

    /// Remembers that `rule` is broken unless `kept`.
    pub fn unless(&mut self, kept: bool, rule: Rule) {
        *self |= Self(u16::from(!kept) << rule as u8);
    }
}

impl BitOrAssign for Broken {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

fn blocks() -> impl Iterator<Item = Block> {
    0..BLOCKS as Block
}

fn frames_have_one_owner(state: &State) -> bool {
    Frame::ALL.iter().all(|frame| {
        let owners = state.owned.iter().filter(|&&owned| owned == Some(*frame));
        owners.count() <= 1
    })
}

/// All entries by which anyone may reach anything.
fn reachable(who: &Who, state: &State) -> impl Iterator<Item = Leaf> {
    who.all_pages()
        .flat_map(|page| state.machine.reach_by_any(page).iter())
}

fn is_backed(state: &State) -> impl Fn(Leaf) -> bool {
    |leaf| match leaf.frame.block() {
        Some(block) if leaf.access == Access::Tags => {
            matches!(state.blocks[block as usize], BlockState::Reserved { .. })
        }
        _ => true,
    }
}

fn has_one_role(who: &Who, state: &State, block: Block) -> bool {
    let machine = &state.machine;
    match state.blocks[block as usize] {
        BlockState::Reserved { .. } => {
            !matches!(machine.data_line(block), Line::Dirty(_))
                && reachable(who, state).all(|leaf| leaf.frame != storage(block))
        }
        BlockState::Scrubbing => reachable(who, state).all(|leaf| leaf.frame != storage(block)),
        BlockState::Unswept => true,
        BlockState::Free | BlockState::Lent | BlockState::Evicting => coverage(block)
            .iter()
            .all(|&frame| !matches!(machine.tag_line(frame), Line::Dirty(_))),
    }
}

/// In the view that its role is used by.
fn lines_are_fresh(state: &State, block: Block) -> bool {
    match state.blocks[block as usize] {
        BlockState::Reserved { .. } => coverage(block)
            .iter()
            .all(|&frame| state.machine.tag_line(frame) != Line::Stale),
        BlockState::Free | BlockState::Lent | BlockState::Evicting => {
            state.machine.data_line(block) != Line::Stale
        }
        BlockState::Unswept | BlockState::Scrubbing => true,
    }
}

/// Only at rest: a handler counts first and maps then.
fn users_are_counted(who: &Who, state: &State, block: Block) -> bool {
    if state
        .cpus
        .iter()
        .any(|cpu| matches!(cpu.mode, Mode::Running { .. }))
    {
        return true;
    }
    let table = state.machine.table;
    let tagged = who.all_pages().filter(|&page| {
        table[page as usize]
            .is_some_and(|leaf| leaf.access == Access::Tags && leaf.frame.block() == Some(block))
    });
    let users = match state.blocks[block as usize] {
        BlockState::Reserved { users } => usize::from(users),
        BlockState::Evicting | BlockState::Scrubbing => return false,
        _ => 0,
    };
    users == tagged.count()
}

/// Whether some load or tag load that the CPU can do now breaks `rule`.
fn loads_break(who: &Who, state: &State, cpu: Cpu, rule: Rule) -> bool {
    if state.cpus[cpu as usize].mode != Mode::Guest {
        return false;
    }
    who.pages_of(who.running(cpu)).any(|page| {
        state.machine.reach(cpu, page).iter().any(|leaf| {
            load_breaks(who, state, page, leaf.frame) == Some(rule)
                || leaf.access == Access::Tags
                    && tag_load_breaks(who, state, page, leaf.frame) == Some(rule)
        })
    })
}

fn load_breaks(who: &Who, state: &State, page: Page, frame: Frame) -> Option<Rule> {
    if !state.machine.data_is_settled(frame) {
        return Some(Rule::LastWriteRead);
    }
    let Some(mut found) = state.machine.loads(frame) else {
        return Some(Rule::NoStaleLine);
    };
    let expected = state.written[page as usize].data(page);
    let wrong = found.find(|&value| value != expected)?;
    Some(blame(who, page, wrong, Rule::LastWriteRead))
}

fn tag_load_breaks(who: &Who, state: &State, page: Page, frame: Frame) -> Option<Rule> {
    let written = state.written[page as usize];
    let rule = match written.tags {
        true => Rule::LastWriteRead,
        false => Rule::FirstTagsZero,
    };
    if !state.machine.tags_are_settled(frame) {
        return Some(rule);
    }
    frame.block()?; // else S4 is broken
    match state.machine.tags(frame) {
        None => Some(Rule::NoStaleLine),
        Some(value) if value != written.tags(page) => Some(blame(who, page, value, rule)),
        Some(_) => None,
    }
}

/// What it is to read `value` in a page of another's.
fn blame(who: &Who, page: Page, value: Value, otherwise: Rule) -> Rule {
    match value {
        Value::Data(other) | Value::Tags(other) if who.owner(other) != who.owner(page) => {
            Rule::NothingOfOthers
        }
        _ => otherwise,
    }
}

/// Whether the CPU waits for nobody, or for one that can go on.
fn can_go_on(world: &World, state: &State, cpu: Cpu) -> bool {
    let mut at = cpu;
    for _ in 0..CPUS {
        match world.waits_for(state, at) {
            None => return true,
            Some(holder) => at = holder,
        }
    }
    false
}

/// Whether a step is nobody else's business, so that it is done together with the next.
pub(crate) const fn is_private(step: Step) -> bool {
    matches!(step, Step::Vttbr(_) | Step::Own(..))
}
