//! The invariants, recomputed from the tables, block states and ownership tables themselves rather
//! than from what was counted on the way. Numbers S1 to S17 are the project's.

use alloc::collections::BinaryHeap;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use crate::addr::{Frame, Ipa, PAGE_SIZE};
use crate::block::BlockState;
use crate::descriptor::Leaf;
use crate::frames::{Owner, PIECE_FRAMES, Piece};
use crate::guest::GuestMemory;
use crate::host::HostMemory;
use crate::pool::BlockId;
use crate::ports::{TableMemory, TagCache};
use crate::tables::{Corrupt, Visit};

/// An invariant that does not hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Violation {
    /// S1: a page is mapped to a frame that its VM does not own, or not at this address.
    NotOwned {
        /// The page.
        ipa: Ipa,
        /// Its frame.
        frame: Frame,
    },
    /// S2, S4: a page is mapped to tag storage that is not lent, or with tag access.
    StorageMapped {
        /// The page.
        ipa: Ipa,
        /// The block.
        block: BlockId,
    },
    /// S3: a page has tag access, and its block does not hold tags.
    NotReserved {
        /// The page.
        ipa: Ipa,
        /// The block.
        block: BlockId,
        /// What the block is.
        state: BlockState,
    },
    /// S6: a block's users are not the frames of its coverage with tag access.
    Users {
        /// The block.
        block: BlockId,
        /// What the block is.
        state: BlockState,
        /// Its users, recounted.
        users: u32,
    },
    /// S7: a block that is not all ours is in use.
    NotOffline(BlockId),
    /// S8: a page that just got tag access has tags that are not 0.
    OldTags(Ipa),
    /// S12: a page is between break and make, and nobody is at work.
    LeftBroken(Ipa),
    /// S1: a table lives in a frame that is not in use for tables.
    TableNotOwned(Frame),
    /// A table holds what was never written to it.
    Corrupt(Corrupt),
    /// S17: a figure that was counted is not what there is.
    Count {
        /// Which.
        what: &'static str,
        /// The figure.
        counted: u64,
        /// What there is.
        found: u64,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotOwned { ipa, frame } => {
                write!(
                    f,
                    "S1: {ipa:?} is mapped to {frame:?}, which is not its own"
                )
            }
            Self::StorageMapped { ipa, block } => write!(f, "S2: {ipa:?} is mapped to {block}"),
            Self::NotReserved { ipa, block, state } => {
                write!(f, "S3: {ipa:?} has tag access, and {block} is {state}")
            }
            Self::Users {
                block,
                state,
                users,
            } => write!(f, "S6: {block} is {state} and has {users} users"),
            Self::NotOffline(block) => write!(f, "S7: {block} is in use and not all ours"),
            Self::OldTags(ipa) => write!(f, "S8: {ipa:?} had tags before its tag access"),
            Self::LeftBroken(ipa) => write!(f, "S12: {ipa:?} was left between break and make"),
            Self::TableNotOwned(frame) => write!(f, "S1: {frame:?} is a table and not in use"),
            Self::Corrupt(Corrupt { table, index, raw }) => {
                write!(f, "entry {index} of the table in {table:?} is {raw:#x}")
            }
            Self::Count {
                what,
                counted,
                found,
            } => write!(f, "S17: {what}: {counted} counted, {found} found"),
        }
    }
}

/// A check that counts what it has checked.
#[derive(Default)]
struct Facts(u64);

impl Facts {
    fn check(&mut self, holds: bool, or: Violation) -> Result<(), Violation> {
        self.0 += 1;
        if holds { Ok(()) } else { Err(or) }
    }

    fn equal(&mut self, what: &'static str, counted: u64, found: u64) -> Result<(), Violation> {
        self.check(
            counted == found,
            Violation::Count {
                what,
                counted,
                found,
            },
        )
    }
}

/// Checks one page and its tag block, in time that does not grow with memory: for use after each
/// trap. `fresh_tags` says that the trap was the page's first tag access, so that its tags must be 0.
/// Returns how many facts it checked.
pub fn check_page<H: TableMemory + TagCache>(
    host: &HostMemory,
    guest: &GuestMemory,
    hw: &mut H,
    ipa: Ipa,
    fresh_tags: bool,
) -> Result<u64, Violation> {
    let mut facts = Facts::default();
    let Some(leaf) = guest.leaf(hw, ipa) else {
        return Ok(0);
    };
    check_leaf(&mut facts, host, guest, (ipa.page(), leaf))?;
    if guest.has_tag_access(leaf) {
        if fresh_tags {
            facts.check(hw.tags_are_zero(leaf.frame), Violation::OldTags(ipa))?;
        }
        check_users(&mut facts, host, guest, (hw, leaf.frame))?;
    }
    check_sum(&mut facts, host)?;
    Ok(facts.0)
}

/// Recounts the users of the block behind a frame from the entries of the pages that it covers (S6).
fn check_users<H: TableMemory>(
    facts: &mut Facts,
    host: &HostMemory,
    guest: &GuestMemory,
    (hw, frame): (&H, Frame),
) -> Result<(), Violation> {
    let Some(block) = host.blocks.block_of(frame) else {
        return Ok(());
    };
    let mut users = host.blocks.standing_users();
    for frame in host.blocks.coverage(block).iter() {
        let leaf = host.chunks.page_in(frame).map(|page| guest.ram.ipa(page));
        let leaf = leaf.and_then(|ipa| guest.leaf(hw, ipa));
        let tagged = |leaf: Leaf| leaf.frame == frame && guest.has_tag_access(leaf);
        users += u32::from(leaf.is_some_and(tagged));
    }
    let state = host.blocks.state(block);
    let right = state == BlockState::Offline || state == BlockState::Reserved { users };
    facts.check(
        right,
        Violation::Users {
            block,
            state,
            users,
        },
    )
}

/// Checks everything, at rest: no operation is under way, and `guests` are all VMs. The work is in
/// proportion to mapped pages and blocks. Returns how many facts it checked.
pub fn check<'g, H: TableMemory>(
    host: &HostMemory,
    guests: impl IntoIterator<Item = &'g GuestMemory>,
    hw: &mut H,
) -> Result<u64, Violation> {
    let mut facts = Facts::default();
    let mut found = Found {
        users: host
            .blocks
            .regions()
            .map(|region| vec![0; region.blocks() as usize])
            .collect(),
        tables: 0,
        leaf_tables: 0,
        lent: 0,
    };
    for guest in guests {
        check_guest(&mut facts, host, guest, hw, &mut found)?;
        found.tables += u64::from(guest.tables().tables());
        found.leaf_tables += u64::from(guest.tables().leaf_tables());
        found.lent += guest.ram.lent;
    }
    check_blocks(&mut facts, host, &found.users)?;
    check_account(&mut facts, host)?;
    let bytes = host.blocks.bytes();
    facts.equal("lent pages", bytes.lent, found.lent * PAGE_SIZE)?;
    facts.equal("leaf tables", host.leaf_tables, found.leaf_tables)?;
    facts.equal("tables", host.account().tables, found.tables * PAGE_SIZE)?;
    Ok(facts.0)
}

/// What the VMs have, together.
struct Found {
    /// Frames with tag access of each block's coverage.
    users: Vec<Vec<u32>>,
    tables: u64,
    leaf_tables: u64,
    lent: u64,
}

fn check_leaf(
    facts: &mut Facts,
    host: &HostMemory,
    guest: &GuestMemory,
    (ipa, leaf): (Ipa, Leaf),
) -> Result<(), Violation> {
    let frame = leaf.frame;
    let not_owned = Violation::NotOwned { ipa, frame };
    let page = guest.ram.page(ipa).ok();
    let tagged = guest.has_tag_access(leaf);
    facts.check(page.is_some(), not_owned)?;
    if let Some(block) = host.blocks.storage_of(frame) {
        let tenant = host.blocks.tenant(frame);
        let own = tenant.map(|tenant| (tenant.vm, Some(tenant.page)));
        facts.check(own == Some((guest.spec().vm, page)), not_owned)?;
        let lent = matches!(host.blocks.state(block), BlockState::Lent { .. });
        return facts.check(lent && !tagged, Violation::StorageMapped { ipa, block });
    }
    // A frame has one page in the maps, and a page one entry: so no frame is mapped twice.
    let owner = host.owner(frame);
    facts.check(owner == Some(Owner::Vm(guest.spec().vm)), not_owned)?;
    facts.check(host.chunks.page_in(frame) == page, not_owned)?;
    if let Some(block) = host.blocks.block_of(frame).filter(|_| tagged) {
        let state = host.blocks.state(block);
        let has_storage = matches!(state, BlockState::Reserved { .. } | BlockState::Offline);
        facts.check(has_storage, Violation::NotReserved { ipa, block, state })?;
    }
    facts.check(host.chunks.is_tagged(frame) == tagged, not_owned)
}

fn check_big(
    facts: &mut Facts,
    host: &HostMemory,
    guest: &GuestMemory,
    (ipa, leaf): (Ipa, Leaf),
) -> Result<(), Violation> {
    let piece = host.chunks.piece(leaf.frame);
    let whole = guest.ram.page(ipa).map(|page| Piece::Whole(page.slot()));
    let frame = leaf.frame;
    facts.check(whole == Ok(piece), Violation::NotOwned { ipa, frame })?;
    check_leaf(facts, host, guest, (ipa, leaf))
}

/// Checks of what is about to be released.
pub(crate) struct Checks(Facts, Result<(), Violation>);

impl Default for Checks {
    fn default() -> Self {
        Self(Facts::default(), Ok(()))
    }
}

impl Checks {
    /// Checks a leaf that is mapped no more, while the maps still tell of it.
    pub(crate) fn check(&mut self, host: &HostMemory, guest: &GuestMemory, item: Visit) {
        let Self(facts, result) = self;
        let checked = match item {
            Visit::Page(ipa, leaf) => check_leaf(facts, host, guest, (ipa, leaf)),
            Visit::Big(ipa, leaf) => check_big(facts, host, guest, (ipa, leaf)),
            Visit::Busy(ipa) => Err(Violation::LeftBroken(ipa)),
            // Freeing it tells.
            Visit::Table(..) | Visit::Corrupt(_) => Ok(()),
        };
        *result = result.and(checked);
    }

    /// How many facts hold, or which does not.
    pub(crate) fn result(self) -> Result<u64, Violation> {
        self.1.map(|()| self.0.0)
    }
}

fn check_guest<H: TableMemory>(
    facts: &mut Facts,
    host: &HostMemory,
    guest: &GuestMemory,
    hw: &mut H,
    found: &mut Found,
) -> Result<(), Violation> {
    let (mut tagged, mut untagged, mut tables, mut lent, mut big) = (0, 0, 1, 0, 0);
    let mut result = Ok(());
    guest.tables().visit(hw, |_, item| {
        let checked = match item {
            Visit::Table(table, _) => {
                tables += 1;
                facts.check(host.tables.is_used(table), Violation::TableNotOwned(table))
            }
            Visit::Page(ipa, leaf) => {
                lent += u64::from(host.blocks.storage_of(leaf.frame).is_some());
                match guest.has_tag_access(leaf) {
                    true => tagged += 1,
                    false => untagged += 1,
                }
                if let Some(count) = user_count(host, guest, leaf, &mut found.users) {
                    *count += 1;
                }
                check_leaf(facts, host, guest, (ipa, leaf))
            }
            Visit::Big(ipa, leaf) => {
                untagged += PIECE_FRAMES;
                big += 1;
                check_big(facts, host, guest, (ipa, leaf))
            }
            Visit::Busy(ipa) => Err(Violation::LeftBroken(ipa)),
            Visit::Corrupt(corrupt) => Err(Violation::Corrupt(corrupt)),
        };
        result = result.and(checked);
    });
    result?;
    check_pieces(facts, host, guest, tagged + untagged - lent)?;
    let account = guest.account();
    facts.equal("tagged pages", account.pages.tagged, tagged)?;
    facts.equal(
        "pages without tag access",
        account.pages.no_tag_access,
        untagged,
    )?;
    facts.equal("lent pages of a VM", guest.ram.lent, lent)?;
    facts.equal("2 MiB leaves", account.big_leaves, big)?;
    facts.equal("tables of a VM", guest.tables().tables().into(), tables)
}

/// Each piece of a VM is in one place, and all frames in use have a page that is mapped.
fn check_pieces(
    facts: &mut Facts,
    host: &HostMemory,
    guest: &GuestMemory,
    mapped: u64,
) -> Result<(), Violation> {
    let pieces: BinaryHeap<Frame> = guest.ram.pieces().collect();
    let places = pieces.len() as u64;
    let mut pieces = pieces.into_sorted_vec();
    pieces.dedup();
    facts.equal("pieces, each in one place", places, pieces.len() as u64)?;
    facts.equal("pieces of a VM", guest.ram.owned as u64, places)?;
    let used = pieces.iter().map(|&piece| match host.chunks.piece(piece) {
        Piece::Unused => 0,
        Piece::Whole(_) => PIECE_FRAMES,
        Piece::Mapped(_) => host
            .chunks
            .map(piece)
            .map_or(0, |map| map.used_count().into()),
    });
    facts.equal("frames in use by a VM", used.sum(), mapped)?;
    let roomy = guest.ram.homes.iter().zip(0..).find(|&(home, slot)| {
        let map = home.and_then(|piece| host.chunks.map(piece));
        let has_room = map.is_some_and(|map| map.first_free().is_some());
        has_room != guest.ram.roomy.contains(slot)
            || home.is_none() != guest.ram.homeless.contains(slot)
    });
    facts.equal("slots noted wrongly", 0, roomy.is_some().into())
}

fn user_count<'u>(
    host: &HostMemory,
    guest: &GuestMemory,
    leaf: Leaf,
    users: &'u mut [Vec<u32>],
) -> Option<&'u mut u32> {
    let block = host
        .blocks
        .block_of(leaf.frame)
        .filter(|_| guest.has_tag_access(leaf))?;
    users
        .get_mut(usize::from(block.region))?
        .get_mut(block.index as usize)
}

fn check_blocks(facts: &mut Facts, host: &HostMemory, users: &[Vec<u32>]) -> Result<(), Violation> {
    let (mut reserved, mut offline, mut lent, mut live) = (0, 0, 0, 0);
    for ((number, region), users) in host.blocks.regions().enumerate().zip(users) {
        for (index, &users) in (0..).zip(users) {
            let block = BlockId {
                region: number as u16,
                index,
            };
            let state = host.blocks.state(block);
            let is_offline = region.offline().iter().any(|range| range.contains(&index));
            facts.check(
                !is_offline || state == BlockState::Offline,
                Violation::NotOffline(block),
            )?;
            let expected = users + host.blocks.standing_users();
            let storage = region.storage(index);
            let tenants = storage
                .iter()
                .filter(|frame| host.blocks.tenant(*frame).is_some());
            let tenants = tenants.count() as u32;
            let right = match state {
                BlockState::Reserved { users } => users == expected && users > 0 && tenants == 0,
                BlockState::Offline => tenants == 0,
                BlockState::Lent { frames } => frames == tenants && frames > 0 && expected == 0,
                BlockState::Unswept | BlockState::Free => expected == 0 && tenants == 0,
                // On their way: not at rest.
                BlockState::Evicting { .. } | BlockState::Scrubbing => false,
            };
            facts.check(
                right,
                Violation::Users {
                    block,
                    state,
                    users: expected,
                },
            )?;
            match state {
                BlockState::Reserved { .. } | BlockState::Scrubbing => {
                    reserved += region.block_bytes();
                    live += u64::from(users) * PAGE_SIZE;
                }
                BlockState::Offline => offline += region.block_bytes(),
                BlockState::Lent { frames } | BlockState::Evicting { frames } => {
                    lent += u64::from(frames) * PAGE_SIZE;
                }
                BlockState::Unswept | BlockState::Free => {}
            }
        }
    }
    let bytes = host.blocks.bytes();
    facts.equal("blocks in wrong lists", 0, host.misplaced())?;
    facts.equal("reserved bytes", bytes.reserved, reserved)?;
    facts.equal("offline bytes", bytes.offline, offline)?;
    facts.equal("lent bytes", bytes.lent, lent)?;
    facts.equal("live tagged bytes", bytes.live_tagged, live)
}

fn check_account(facts: &mut Facts, host: &HostMemory) -> Result<(), Violation> {
    let (chunks, tables) = (host.chunks.recount(), host.tables.recount());
    facts.equal("chunks", host.chunks.bytes().total, chunks.total)?;
    facts.equal("chunks of VMs", host.chunks.bytes().vms, chunks.vms)?;
    facts.equal(
        "chunks of tables",
        host.chunks.bytes().tables,
        chunks.tables,
    )?;
    facts.equal("frames of tables", host.tables.bytes().used, tables.used)?;
    check_sum(facts, host)
}

fn check_sum(facts: &mut Facts, host: &HostMemory) -> Result<(), Violation> {
    let account = host.account();
    facts.equal(
        "discovered memory",
        account.discovered,
        account.ledger.sum(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_violation_says_which_rule_broke_and_where() {
        let block = BlockId {
            region: 1,
            index: 7,
        };
        let users = Violation::Users {
            block,
            state: BlockState::Reserved { users: 2 },
            users: 3,
        };
        let told = "S6: tag block 7 of region 1 is reserved for 2 users and has 3 users";
        assert_eq!(users.to_string(), told);
        let count = Violation::Count {
            what: "tagged pages",
            counted: 4,
            found: 5,
        };
        let told = "S17: tagged pages: 4 counted, 5 found";
        assert_eq!(count.to_string(), told);
        let page = Violation::NotOwned {
            ipa: Ipa::new(0x4000_0000),
            frame: Frame::from_number(0x8_0000),
        };
        let told = "S1: ipa:0x40000000 is mapped to frame:0x80000000, which is not its own";
        assert_eq!(page.to_string(), told);
    }
}
