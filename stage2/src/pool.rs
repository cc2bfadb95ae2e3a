//! The tag blocks of all regions: who may use the carve-out, right now. Lock rank: block.
//!
//! A [`TagHold`] is the proof that a frame's tags have storage, [`TagsZeroed`] that they were
//! zeroed in it, and only that can be mapped with tag access. So neither the reserve nor the
//! zeroing can be left out.

use alloc::vec::Vec;
use core::fmt;

use crate::addr::{Frame, FrameRange, PAGE_SIZE, try_filled};
use crate::block::{BadTransition, BlockEvent, BlockState};
use crate::ports::{FrameCopy, TagCache};
use crate::region::TagRegion;

/// One tag block of the machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct BlockId {
    /// Which region, in the order of [`TagBlocks::regions`].
    pub region: u16,
    /// Which block of it.
    pub index: u32,
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tag block {} of region {}", self.index, self.region)
    }
}

/// How many bytes of a carve-out are in which state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BlockBytes {
    /// The whole carve-out.
    pub carve_out: u64,
    /// In blocks that hold tags, those being scrubbed included.
    pub reserved: u64,
    /// In blocks that hold tags for ever.
    pub offline: u64,
    /// In blocks that hold data, those being evicted included.
    pub lent: u64,
    /// Frames with tag access, in bytes of tagged memory, whose tags these carve-outs hold.
    pub live_tagged: u64,
    /// The least that could be reserved for `live_tagged`: B * ceil(live / (32 * B)) of each
    /// region.
    pub least_reserved: u64,
}

impl BlockBytes {
    /// Bytes that are neither reserved, lent nor offline.
    pub const fn free(&self) -> u64 {
        self.carve_out - self.reserved - self.offline - self.lent
    }
}

/// The block table of one region.
#[derive(Debug)]
struct Table {
    region: TagRegion,
    /// Packed states; 0 stands for the pool's initial state.
    states: Vec<u32>,
    reserved: u32,
    offline: u32,
    lent: u32,
    users: u64,
}

/// The tag blocks of all regions.
#[derive(Debug)]
pub struct TagBlocks {
    tables: Vec<Table>,
    initial: BlockState,
}

/// A user of a block, not yet mapped: until it is dropped the frame's tags have storage.
#[derive(Debug)]
#[must_use = "a hold that is not mapped must be given back with `TagBlocks::drop_user`"]
pub struct TagHold {
    frame: Frame,
    opened: u64,
}

/// A held frame whose tags are 0 in memory.
#[derive(Debug)]
#[must_use = "a hold that is not mapped must be given back with `TagBlocks::drop_user`"]
pub struct TagsZeroed(Frame);

impl TagHold {
    /// Bytes of tag storage that were not reserved before this hold.
    pub const fn opened(&self) -> u64 {
        self.opened
    }

    /// The held frame.
    pub const fn frame(&self) -> Frame {
        self.frame
    }

    /// Zeroes the tags of the frame, which no guest may reach now, and waits (S8).
    pub fn zero_tags(self, hw: &mut impl TagCache) -> TagsZeroed {
        hw.zero_tags(self.frame);
        hw.synchronize();
        TagsZeroed(self.frame)
    }
}

impl TagsZeroed {
    /// The frame, which is about to be mapped with tag access: the hold is a user now.
    pub(crate) fn into_user(self) -> Frame {
        self.0
    }
}

impl TagBlocks {
    /// The blocks of `regions`. Under `all_reserved` (today's machines) each stays reserved for
    /// ever: the pool itself is a user. Else the first use of each sweeps what a boot stage left.
    /// `None` if the heap has no room for 4 bytes a block.
    pub fn new(regions: Vec<TagRegion>, all_reserved: bool) -> Option<Self> {
        let initial = match all_reserved {
            true => BlockState::Reserved { users: 1 },
            false => BlockState::Unswept,
        };
        let tables = regions
            .into_iter()
            .map(|region| Table::new(region, initial));
        Some(Self {
            tables: tables.collect::<Option<_>>()?,
            initial,
        })
    }

    /// The regions, in the order of [`BlockId::region`].
    pub fn regions(&self) -> impl Iterator<Item = &TagRegion> {
        self.tables.iter().map(|table| &table.region)
    }

    /// The block that holds the tags of `frame`. `None`: the frame's tags, if it has any, live in
    /// storage that software does not see, and nothing is ever to be reserved for them.
    pub fn block_of(&self, frame: Frame) -> Option<BlockId> {
        self.find(|region| region.block_of(frame))
    }

    /// The block that `frame` is part of, if it lies in a carve-out.
    pub fn storage_of(&self, frame: Frame) -> Option<BlockId> {
        self.find(|region| region.storage_of(frame))
    }

    fn find(&self, index: impl Fn(&TagRegion) -> Option<u32>) -> Option<BlockId> {
        self.tables.iter().enumerate().find_map(|(number, table)| {
            Some(BlockId {
                region: number as u16,
                index: index(&table.region)?,
            })
        })
    }

    /// The state of a block; a block that does not exist is [`BlockState::Offline`].
    pub fn state(&self, block: BlockId) -> BlockState {
        let table = self.tables.get(usize::from(block.region));
        table.map_or(BlockState::Offline, |table| {
            table.state(block.index, self.initial)
        })
    }

    /// Users that each block has without any VM: 1 if all are reserved for ever.
    pub const fn standing_users(&self) -> u32 {
        match self.initial {
            BlockState::Reserved { users } => users,
            _ => 0,
        }
    }

    /// Bytes by state, over all regions. Constant time in the number of blocks.
    pub fn bytes(&self) -> BlockBytes {
        self.tables
            .iter()
            .fold(BlockBytes::default(), |mut sum, table| {
                let block_bytes = table.region.block_bytes();
                let coverage = table.region.coverage_frames();
                sum.carve_out += table.region.tags().bytes();
                sum.reserved += u64::from(table.reserved) * block_bytes;
                sum.offline += u64::from(table.offline) * block_bytes;
                sum.lent += u64::from(table.lent) * block_bytes;
                sum.live_tagged += table.users * PAGE_SIZE;
                sum.least_reserved += table.users.div_ceil(coverage) * block_bytes;
                sum
            })
    }

    /// Bytes of the block tables.
    pub fn metadata_bytes(&self) -> u64 {
        self.tables
            .iter()
            .map(|table| 4 * table.states.len() as u64)
            .sum()
    }

    /// Gives `frame`'s tags storage: reserves the block, or adds a user to it.
    /// An error changes nothing: the block is lent or on its way elsewhere.
    pub fn hold<H: TagCache + FrameCopy>(
        &mut self,
        hw: &mut H,
        frame: Frame,
    ) -> Result<TagHold, BadTransition> {
        let initial = self.initial;
        let held = TagHold { frame, opened: 0 };
        let Some((table, index)) = self.table_of(frame) else {
            return Ok(held);
        };
        let mut opened = 0;
        match table.state(index, initial) {
            BlockState::Offline => return Ok(held),
            state @ BlockState::Reserved { .. } => {
                table.set(index, state.after(BlockEvent::AddUser)?);
            }
            mut state => {
                let unswept = state == BlockState::Unswept;
                if unswept {
                    state = state.after(BlockEvent::Sweep)?;
                }
                let reserved = state.after(BlockEvent::Reserve)?;
                if unswept {
                    scrub(hw, &table.region, index);
                }
                maintain(hw, &table.region, index);
                table.set(index, reserved);
                table.reserved += 1;
                opened = table.region.block_bytes();
            }
        }
        table.users += 1;
        Ok(TagHold { frame, opened })
    }

    /// Takes back the user that `frame` is of its block. No guest can reach the frame any more, or
    /// not its tags. Cleans its tag lines while the block is still reserved; the last user leaves
    /// the block scrubbed and free. Returns the bytes of tag storage given back.
    pub fn drop_user<H: TagCache + FrameCopy>(
        &mut self,
        hw: &mut H,
        frame: Frame,
    ) -> Result<u64, BadTransition> {
        let initial = self.initial;
        let Some((table, index)) = self.table_of(frame) else {
            return Ok(0);
        };
        let state = table.state(index, initial);
        if state == BlockState::Offline {
            return Ok(0);
        }
        let next = state.after(BlockEvent::DropUser)?;
        hw.clean_invalidate_tags(FrameRange::new(frame, 1));
        hw.synchronize();
        table.set(index, next);
        table.users -= 1;
        if next != BlockState::Scrubbing {
            return Ok(0);
        }
        let free = next.after(BlockEvent::FinishScrub)?;
        scrub(hw, &table.region, index);
        table.set(index, free);
        table.reserved -= 1;
        Ok(table.region.block_bytes())
    }

    fn table_of(&mut self, frame: Frame) -> Option<(&mut Table, u32)> {
        self.tables.iter_mut().find_map(|table| {
            let index = table.region.block_of(frame)?;
            Some((table, index))
        })
    }
}

/// Before a block becomes tag storage: its data lines go to memory and out of the caches, then the
/// tag lines of its coverage, which speculation may have brought in, clean and stale.
fn maintain<H: TagCache>(hw: &mut H, region: &TagRegion, index: u32) {
    hw.clean_invalidate_data(region.storage(index));
    // Else a tag line could be fetched again before the data is in memory.
    hw.synchronize();
    hw.clean_invalidate_tags(region.coverage(index));
    hw.synchronize();
}

/// Before a block becomes ordinary memory: old tags leave the caches, then the block is zeroed in
/// memory, as tags are secrets (S9).
fn scrub<H: TagCache + FrameCopy>(hw: &mut H, region: &TagRegion, index: u32) {
    hw.clean_invalidate_tags(region.coverage(index));
    hw.synchronize();
    let storage = region.storage(index);
    storage.iter().for_each(|frame| hw.zero(frame));
    hw.clean_invalidate_data(storage);
    hw.synchronize();
}

impl Table {
    fn new(region: TagRegion, initial: BlockState) -> Option<Self> {
        let mut states = try_filled(0, region.blocks().into())?;
        let mut offline = 0;
        for range in region.offline() {
            offline += range.end - range.start;
            if let Some(part) = states.get_mut(range.start as usize..range.end as usize) {
                part.fill(BlockState::Offline.pack());
            }
        }
        let reserved = match initial {
            BlockState::Reserved { .. } => region.blocks() - offline,
            _ => 0,
        };
        Some(Self {
            region,
            states,
            reserved,
            offline,
            lent: 0,
            users: 0,
        })
    }

    fn state(&self, index: u32, initial: BlockState) -> BlockState {
        match self.states.get(index as usize) {
            Some(0) => initial,
            Some(&bits) => BlockState::unpack(bits),
            None => BlockState::Offline,
        }
    }

    fn set(&mut self, index: u32, state: BlockState) {
        if let Some(bits) = self.states.get_mut(index as usize) {
            *bits = state.pack();
        }
    }
}

#[cfg(test)]
impl TagBlocks {
    /// Puts a block into a state that no caller can bring about yet.
    pub(crate) fn force(&mut self, block: BlockId, state: BlockState) {
        if let Some(table) = self.tables.get_mut(usize::from(block.region)) {
            table.set(block.index, state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{PhysAddr, PhysRange};
    use crate::fakes::SimMachine;
    use crate::region::{Dram, MemoryMap, TagRegionDesc};

    const MIB: u64 = 1 << 20;
    const FIRST: BlockId = BlockId {
        region: 0,
        index: 0,
    };

    fn frame(pa: u64) -> Frame {
        Frame::from_addr(PhysAddr::new(pa)).unwrap()
    }

    fn pool(all_reserved: bool) -> (TagBlocks, SimMachine) {
        let desc = TagRegionDesc {
            tags_base: PhysAddr::new(4 * MIB),
            tags_bytes: 4 * MIB / 32,
            tagged_base: PhysAddr::new(0),
            tagged_bytes: 4 * MIB,
            block_size: 0x2000,
        };
        let range = PhysRange::new(PhysAddr::new(0), 5 * MIB).unwrap();
        let dram = vec![Dram {
            range,
            taggable: true,
        }];
        let memory = MemoryMap {
            dram,
            occupied: vec![],
        };
        let region = TagRegion::new(&desc, &memory, &[]).unwrap();
        let pool = TagBlocks::new(vec![region], all_reserved).unwrap();
        (pool, SimMachine::new(vec![desc], vec![]))
    }

    #[test]
    fn a_block_that_holds_data_or_is_on_its_way_is_not_reserved_and_nothing_changes() {
        for state in [BlockState::Lent, BlockState::Scrubbing] {
            let (mut pool, mut sim) = pool(false);
            pool.force(FIRST, state);
            let before = pool.bytes();
            let bad = pool.hold(&mut sim, frame(0)).map(drop).unwrap_err();
            assert_eq!(
                bad,
                BadTransition {
                    from: state,
                    event: BlockEvent::Reserve
                }
            );
            assert_eq!((pool.state(FIRST), pool.bytes()), (state, before));
            assert_eq!(sim.take_log(), []);
        }
    }

    #[test]
    fn a_block_with_all_the_users_that_can_be_counted_takes_no_more() {
        let (mut pool, mut sim) = pool(false);
        let users = crate::block::MAX_USERS;
        pool.force(FIRST, BlockState::Reserved { users });
        assert!(pool.hold(&mut sim, frame(0)).is_err());
        assert_eq!(pool.state(FIRST), BlockState::Reserved { users });
    }

    #[test]
    fn a_user_that_is_none_is_not_dropped() {
        let (mut pool, mut sim) = pool(false);
        assert!(pool.drop_user(&mut sim, frame(0)).is_err());
        assert_eq!(pool.state(FIRST), BlockState::Unswept);
        assert_eq!(
            pool.drop_user(&mut sim, frame(8 * MIB)),
            Ok(0),
            "not ours to count"
        );
        assert_eq!(sim.take_log(), []);
    }

    #[test]
    fn the_first_hold_opens_a_block_and_the_last_drop_gives_it_back() {
        let (mut pool, mut sim) = pool(false);
        let opened: Vec<u64> = [0, 0x1000, 256 * 1024]
            .map(|pa| pool.hold(&mut sim, frame(pa)).unwrap().opened())
            .to_vec();
        assert_eq!(opened, [0x2000, 0, 0x2000]);
        assert_eq!(pool.bytes().reserved, 0x4000);
        assert_eq!(pool.bytes().live_tagged, 3 * PAGE_SIZE);
        assert_eq!(
            pool.bytes().least_reserved,
            0x2000,
            "3 pages fit in one block's coverage"
        );
        let freed = [0, 256 * 1024, 0x1000].map(|pa| pool.drop_user(&mut sim, frame(pa)).unwrap());
        assert_eq!(freed, [0, 0x2000, 0x2000]);
        assert_eq!(pool.bytes().free(), pool.bytes().carve_out);
    }

    #[test]
    fn a_carve_out_that_is_reserved_for_ever_is_never_released() {
        let (mut pool, mut sim) = pool(true);
        assert_eq!(pool.bytes().reserved, pool.bytes().carve_out);
        assert_eq!(pool.hold(&mut sim, frame(0)).unwrap().opened(), 0);
        assert_eq!(pool.drop_user(&mut sim, frame(0)), Ok(0));
        assert_eq!(pool.state(FIRST), BlockState::Reserved { users: 1 });
    }
}
