//! The invariants, recomputed from the tables, block states and ownership tables themselves rather
//! than from what was counted on the way. Numbers S1 to S17 are the project's.

use alloc::collections::BinaryHeap;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use crate::addr::{Frame, Ipa, PAGE_SIZE};
use crate::block::BlockState;
use crate::descriptor::Leaf;
use crate::frames::Owner;
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
    /// S2, S4: a page is mapped to tag storage.
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

/// Checks one page and its tag block, in time that does not grow with memory: for use after each trap. `fresh_tags` says that the trap was
/// the page's first tag access, so that its tags must be 0. Returns how many facts it checked.
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
        check_users(&mut facts, host, guest, (hw, ipa.page(), leaf))?;
    }
    check_sum(&mut facts, host)?;
    Ok(facts.0)
}

/// Recounts the users of the block behind one page (S6): where the page's neighbours in the coverage are its neighbours in
/// the guest too, which they are within a piece.
fn check_users<H: TableMemory>(
    facts: &mut Facts,
    host: &HostMemory,
    guest: &GuestMemory,
    (hw, ipa, leaf): (&H, Ipa, Leaf),
) -> Result<(), Violation> {
    let Some(block) = host.blocks.block_of(leaf.frame) else {
        return Ok(());
    };
    let region = host.blocks.regions().nth(usize::from(block.region));
    let Some(coverage) = region.map(|region| region.coverage(block.index)) else {
        return Ok(());
    };
    let mut users = host.blocks.standing_users();
    for frame in coverage.iter() {
        let there = ipa
            .get()
            .wrapping_add(frame.addr().get().wrapping_sub(leaf.frame.addr().get()));
        let there = Ipa::new(there);
        if guest.ram().home(there) != Some(frame) {
            return Ok(());
        }
        let tagged = |leaf: Leaf| leaf.frame == frame && guest.has_tag_access(leaf);
        users += u32::from(guest.leaf(hw, there).is_some_and(tagged));
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
    let mut users: Vec<Vec<u32>> = host
        .blocks
        .regions()
        .map(|region| vec![0; region.blocks() as usize])
        .collect();
    let (mut tables, mut leaf_tables) = (0, 0);
    for guest in guests {
        check_guest(&mut facts, host, guest, hw, &mut users)?;
        tables += u64::from(guest.tables().tables());
        leaf_tables += u64::from(guest.tables().leaf_tables());
    }
    check_blocks(&mut facts, host, &users)?;
    check_account(&mut facts, host)?;
    facts.equal("leaf tables", host.leaf_tables, leaf_tables)?;
    facts.equal("tables", host.account().tables, tables * PAGE_SIZE)?;
    Ok(facts.0)
}

fn check_leaf(
    facts: &mut Facts,
    host: &HostMemory,
    guest: &GuestMemory,
    (ipa, leaf): (Ipa, Leaf),
) -> Result<(), Violation> {
    let frame = leaf.frame;
    let not_owned = Violation::NotOwned { ipa, frame };
    // Each VM has chunks of its own, and each piece of them has one place in it: so no frame is
    // mapped twice.
    facts.check(
        host.owner(frame) == Some(Owner::Vm(guest.spec().vm)),
        not_owned,
    )?;
    facts.check(guest.ram().home(ipa) == Some(frame), not_owned)?;
    if let Some(block) = host.blocks.storage_of(frame) {
        facts.check(false, Violation::StorageMapped { ipa, block })?;
    }
    facts.0 += 1;
    if !guest.has_tag_access(leaf) {
        return Ok(());
    }
    let Some(block) = host.blocks.block_of(frame) else {
        return Ok(());
    };
    let state = host.blocks.state(block);
    let has_storage = matches!(state, BlockState::Reserved { .. } | BlockState::Offline);
    facts.check(has_storage, Violation::NotReserved { ipa, block, state })
}

fn check_guest<H: TableMemory>(
    facts: &mut Facts,
    host: &HostMemory,
    guest: &GuestMemory,
    hw: &mut H,
    users: &mut [Vec<u32>],
) -> Result<(), Violation> {
    let (mut tagged, mut untagged, mut tables) = (0, 0, 1);
    let mut result = Ok(());
    guest.tables().visit(hw, |_, item| {
        let checked = match item {
            Visit::Table(table) => {
                tables += 1;
                facts.check(host.tables.is_used(table), Violation::TableNotOwned(table))
            }
            Visit::Page(ipa, leaf) => {
                match guest.has_tag_access(leaf) {
                    true => tagged += 1,
                    false => untagged += 1,
                }
                if let Some(count) = user_count(host, guest, leaf, users) {
                    *count += 1;
                }
                check_leaf(facts, host, guest, (ipa, leaf))
            }
            Visit::Busy(ipa) => Err(Violation::LeftBroken(ipa)),
            Visit::Corrupt(corrupt) => Err(Violation::Corrupt(corrupt)),
        };
        result = result.and(checked);
    });
    result?;
    let pieces: BinaryHeap<Frame> = guest.ram().pieces().collect();
    let settled = pieces.len() as u64;
    let mut pieces = pieces.into_sorted_vec();
    pieces.dedup();
    facts.equal(
        "pieces of a VM, each in one place",
        settled,
        pieces.len() as u64,
    )?;
    let account = guest.account();
    facts.equal("tagged pages", account.pages.tagged, tagged)?;
    facts.equal(
        "pages without tag access",
        account.pages.no_tag_access,
        untagged,
    )?;
    facts.equal("tables of a VM", guest.tables().tables().into(), tables)
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
            let right = match state {
                BlockState::Reserved { users } => users == expected && users > 0,
                BlockState::Offline => true,
                _ => expected == 0,
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
                BlockState::Lent | BlockState::Evicting => lent += region.block_bytes(),
                BlockState::Unswept | BlockState::Free => {}
            }
        }
    }
    let bytes = host.blocks.bytes();
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
