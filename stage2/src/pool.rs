//! The tag blocks of all regions: who may use the carve-out, right now. Lock rank: memory.
//!
//! A [`TagHold`] is the proof that a frame's tags have storage, [`TagsZeroed`] that they were
//! zeroed in it, [`TagsKept`] that they are a page's own, and only those can be mapped with tag
//! access. So neither the reserve nor the zeroing can be left out.

use alloc::vec::Vec;
use core::fmt;

use crate::addr::{Frame, FrameRange, PAGE_SIZE, try_filled};
use crate::block::BlockState;
use crate::frames::{VmId, usable_frames};
use crate::pieces::Page;
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
    /// In frames that hold data.
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

/// A list of blocks, linked through the block tables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    head: u32,
    count: u32,
}

impl List {
    pub(crate) const EMPTY: Self = Self {
        head: Link::END,
        count: 0,
    };

    /// How many blocks there are.
    pub(crate) const fn count(&self) -> u32 {
        self.count
    }
}

/// Neighbours of a block in its list, by block number plus 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Link {
    previous: u32,
    next: u32,
}

impl Link {
    /// No neighbour.
    const END: u32 = u32::MAX;
    /// In no list, and never was.
    const NEVER: Self = Self {
        previous: 0,
        next: 0,
    };
    /// In no list.
    const OUT: Self = Self {
        previous: u32::MAX - 1,
        next: u32::MAX - 1,
    };
}

/// The block table of one region.
#[derive(Debug)]
struct Table {
    region: TagRegion,
    /// The number of its first block among those of all regions.
    first: u32,
    /// Packed states; 0 stands for the pool's initial state.
    states: Vec<u32>,
    links: Vec<Link>,
    /// Whose page is in each frame of the carve-out, packed; 0: nobody's.
    tenants: Vec<u64>,
    /// No block from this one on is as it was at boot.
    fresh: u32,
    /// Frames of what a whole block covers that can have pages.
    capacity: u64,
    /// Blocks that cover as much as they can.
    whole: u32,
    reserved: u32,
    offline: u32,
    lent: u64,
    users: u64,
}

/// Whose page is in a frame of tag storage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tenant {
    pub(crate) vm: VmId,
    pub(crate) page: Page,
}

impl Tenant {
    const fn pack(self) -> u64 {
        (self.vm.index() as u64 + 1) << 32 | self.page.0 as u64
    }

    const fn unpack(bits: u64) -> Option<Self> {
        match (bits >> 32).checked_sub(1) {
            Some(vm) => match VmId::new(vm as u16) {
                Some(vm) => Some(Self {
                    vm,
                    page: Page(bits as u32),
                }),
                None => None,
            },
            None => None,
        }
    }
}

/// The tag blocks of all regions.
#[derive(Debug)]
pub struct TagBlocks {
    tables: Vec<Table>,
    initial: BlockState,
}

/// A user of a block, not yet mapped: until it is dropped the frame's tags have storage.
#[derive(Debug)]
#[must_use = "a hold that is not mapped must be given back"]
pub struct TagHold {
    frame: Frame,
    opened: u64,
}

/// A held frame whose tags are 0 in memory.
#[derive(Debug)]
#[must_use = "a hold that is not mapped must be given back"]
pub struct TagsZeroed(Frame);

/// A held frame whose tags are those of the page in it.
#[derive(Debug)]
#[must_use = "a hold that is not mapped must be given back"]
pub struct TagsKept(Frame);

impl TagHold {
    /// Of `frame`, whose block has it as a user now; `opened` bytes of tag storage were reserved for
    /// it.
    pub(crate) const fn new(frame: Frame, opened: u64) -> Self {
        Self { frame, opened }
    }

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

    /// Gives the frame the tags of another, whose page moves here and which no guest may reach now
    /// (S10), and waits.
    pub(crate) fn copy_tags(self, hw: &mut impl TagCache, from: Frame) -> TagsKept {
        hw.copy_tags(from, self.frame);
        hw.synchronize();
        TagsKept(self.frame)
    }
}

impl TagsZeroed {
    /// The frame, which is about to be mapped with tag access: the hold is a user now.
    pub(crate) fn into_user(self) -> Frame {
        self.0
    }
}

impl TagsKept {
    /// Of a page that had tag access until a moment ago, and is still a user.
    pub(crate) const fn still(frame: Frame) -> Self {
        Self(frame)
    }

    /// The frame, which is about to be mapped with tag access: the hold is a user now.
    pub(crate) fn into_user(self) -> Frame {
        self.0
    }
}

impl TagBlocks {
    /// The blocks of `regions`. Under `all_reserved` (today's machines) each stays reserved for
    /// ever: the pool itself is a user. Else the first use of each sweeps what a boot stage left.
    /// `None` if the heap has no room for 12 bytes a block and 8 bytes a frame of tag storage.
    pub fn new(regions: Vec<TagRegion>, all_reserved: bool) -> Option<Self> {
        let initial = match all_reserved {
            true => BlockState::Reserved { users: 1 },
            false => BlockState::Unswept,
        };
        let (mut tables, mut first) = (Vec::new(), 0_u32);
        tables.try_reserve_exact(regions.len()).ok()?;
        for region in regions {
            let blocks = region.blocks();
            tables.push(Table::new(region, initial, first)?);
            first = first.checked_add(blocks)?;
        }
        Some(Self { tables, initial })
    }

    /// The regions, in the order of [`BlockId::region`].
    pub fn regions(&self) -> impl Iterator<Item = &TagRegion> {
        self.tables.iter().map(|table| &table.region)
    }

    /// The region of a block.
    pub(crate) fn region(&self, block: BlockId) -> Option<&TagRegion> {
        Some(&self.tables.get(usize::from(block.region))?.region)
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

    /// Bytes of a block.
    pub(crate) fn block_bytes(&self, block: BlockId) -> u64 {
        self.region(block).map_or(0, TagRegion::block_bytes)
    }

    /// The frames of a block.
    pub(crate) fn storage(&self, block: BlockId) -> FrameRange {
        let region = self.region(block);
        region.map_or(NOTHING, |region| region.storage(block.index))
    }

    /// The frames whose tags a block holds.
    pub(crate) fn coverage(&self, block: BlockId) -> FrameRange {
        let region = self.region(block);
        region.map_or(NOTHING, |region| region.coverage(block.index))
    }

    /// How many frames of what a block covers can have pages.
    pub(crate) fn capacity(&self, block: BlockId) -> u64 {
        let table = self.tables.get(usize::from(block.region));
        table.map_or(0, |table| match block.index < table.whole {
            true => table.capacity,
            // The last block may cover less.
            false => table.capacity.min(table.region.coverage(block.index).count),
        })
    }

    /// The most frames of tag storage that a block has.
    pub(crate) fn largest_block(&self) -> u64 {
        let blocks = self.regions().map(TagRegion::block_bytes);
        blocks.max().unwrap_or(0) / PAGE_SIZE
    }

    /// All frames of tag storage.
    pub(crate) fn storage_frames(&self) -> u64 {
        self.regions().map(|region| region.tags().count).sum()
    }

    /// Brings a block from the state that it is in into another, which [`BlockState::after`] allows.
    pub(crate) fn set(&mut self, block: BlockId, old: BlockState, state: BlockState) {
        let standing = u64::from(self.standing_users());
        let Some(table) = self.tables.get_mut(usize::from(block.region)) else {
            return;
        };
        match (old, state) {
            (BlockState::Reserved { users: old }, BlockState::Reserved { users: new }) => {
                table.users = table.users + u64::from(new) - u64::from(old);
            }
            _ => {
                let (old, new) = (Counts::of(old, standing), Counts::of(state, standing));
                table.reserved = table.reserved - old.reserved + new.reserved;
                table.lent = table.lent - old.lent + new.lent;
                table.users = table.users - old.users + new.users;
            }
        }
        if let Some(bits) = table.states.get_mut(block.index as usize) {
            *bits = state.pack();
        }
    }

    /// Whose page is in a frame of tag storage.
    pub(crate) fn tenant(&self, frame: Frame) -> Option<Tenant> {
        let table = self
            .tables
            .iter()
            .find(|table| table.region.tags().contains(frame))?;
        Tenant::unpack(*table.tenants.get(table.place(frame))?)
    }

    /// Notes whose page is in a frame of tag storage.
    pub(crate) fn set_tenant(&mut self, frame: Frame, tenant: Option<Tenant>) {
        let table = self
            .tables
            .iter_mut()
            .find(|table| table.region.tags().contains(frame));
        if let Some(table) = table {
            let place = table.place(frame);
            if let Some(bits) = table.tenants.get_mut(place) {
                *bits = tenant.map_or(0, Tenant::pack);
            }
        }
    }

    /// The number of a frame of tag storage among all of them.
    pub(crate) fn storage_number(&self, frame: Frame) -> Option<u64> {
        let mut before = 0;
        for table in &self.tables {
            if table.region.tags().contains(frame) {
                return Some(before + table.place(frame) as u64);
            }
            before += table.region.tags().count;
        }
        None
    }

    /// The frame of tag storage with this number.
    pub(crate) fn storage_frame(&self, mut number: u64) -> Option<Frame> {
        for table in &self.tables {
            let tags = table.region.tags();
            if number < tags.count {
                return Some(tags.start.plus(number));
            }
            number -= tags.count;
        }
        None
    }

    /// The first block of a list.
    pub(crate) fn first(&self, list: &List) -> Option<BlockId> {
        self.numbered(list.head)
    }

    /// The block after this one in its list.
    pub(crate) fn next(&self, block: BlockId) -> Option<BlockId> {
        self.numbered(self.link(block)?.next)
    }

    /// Whether a block is in a list.
    pub(crate) fn is_listed(&self, block: BlockId) -> bool {
        self.link(block)
            .is_some_and(|link| link != Link::NEVER && link != Link::OUT)
    }

    /// Whether a block was never in a list.
    pub(crate) fn was_never_listed(&self, block: BlockId) -> bool {
        self.link(block) == Some(Link::NEVER)
    }

    /// Puts a block that is in no list at the front of one.
    pub(crate) fn push(&mut self, list: &mut List, block: BlockId) {
        let Some(number) = self.number(block) else {
            return;
        };
        let next = core::mem::replace(&mut list.head, number);
        list.count += 1;
        if let Some(link) = self.numbered(next).and_then(|next| self.link_mut(next)) {
            link.previous = number;
        }
        if let Some(link) = self.link_mut(block) {
            *link = Link {
                previous: Link::END,
                next,
            };
        }
    }

    /// Takes a block out of a list; one that is in none stays so.
    pub(crate) fn unlink(&mut self, list: &mut List, block: BlockId) {
        let Some(link) = self.link_mut(block) else {
            return;
        };
        let Link { previous, next } = core::mem::replace(link, Link::OUT);
        if (Link { previous, next }) == Link::NEVER || previous == Link::OUT.previous {
            return;
        }
        list.count -= 1;
        match self.numbered(previous).and_then(|at| self.link_mut(at)) {
            Some(link) => link.next = next,
            None => list.head = next,
        }
        if let Some(link) = self.numbered(next).and_then(|at| self.link_mut(at)) {
            link.previous = previous;
        }
    }

    /// Takes the next block that nobody has ever used or listed, from the top of a region down.
    pub(crate) fn next_fresh(&mut self) -> Option<BlockId> {
        for (number, table) in self.tables.iter_mut().enumerate() {
            while let Some(index) = table.fresh.checked_sub(1) {
                table.fresh = index;
                let link = table.links.get_mut(index as usize)?;
                let offline = table.states.get(index as usize) == Some(&BlockState::Offline.pack());
                if *link == Link::NEVER && !offline {
                    *link = Link::OUT;
                    return Some(BlockId {
                        region: number as u16,
                        index,
                    });
                }
            }
        }
        None
    }

    /// Whether [`next_fresh`](Self::next_fresh) may find one.
    pub(crate) fn has_fresh(&self) -> bool {
        self.tables.iter().any(|table| table.fresh > 0)
    }

    fn number(&self, block: BlockId) -> Option<u32> {
        let table = self.tables.get(usize::from(block.region))?;
        Some(table.first + block.index + 1)
    }

    fn numbered(&self, number: u32) -> Option<BlockId> {
        let number = number.checked_sub(1).filter(|_| number < Link::OUT.next)?;
        let region = self
            .tables
            .iter()
            .rposition(|table| table.first <= number)?;
        Some(BlockId {
            region: region as u16,
            index: number - self.tables.get(region)?.first,
        })
    }

    fn link(&self, block: BlockId) -> Option<Link> {
        let table = self.tables.get(usize::from(block.region))?;
        table.links.get(block.index as usize).copied()
    }

    fn link_mut(&mut self, block: BlockId) -> Option<&mut Link> {
        let table = self.tables.get_mut(usize::from(block.region))?;
        table.links.get_mut(block.index as usize)
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
                sum.lent += table.lent * PAGE_SIZE;
                sum.live_tagged += table.users * PAGE_SIZE;
                sum.least_reserved += table.users.div_ceil(coverage) * block_bytes;
                sum
            })
    }

    /// Bytes of the block tables.
    pub fn metadata_bytes(&self) -> u64 {
        let bytes = |table: &Table| {
            size_of_val(table.states.as_slice())
                + size_of_val(table.links.as_slice())
                + size_of_val(table.tenants.as_slice())
        };
        self.tables.iter().map(|table| bytes(table) as u64).sum()
    }
}

const NOTHING: FrameRange = FrameRange::new(Frame::from_number(0), 0);

/// What a block counts for.
struct Counts {
    reserved: u32,
    lent: u64,
    users: u64,
}

impl Counts {
    fn of(state: BlockState, standing: u64) -> Self {
        let (reserved, lent, users) = match state {
            BlockState::Reserved { users } => (1, 0, u64::from(users).saturating_sub(standing)),
            BlockState::Scrubbing => (1, 0, 0),
            BlockState::Lent { frames } | BlockState::Evicting { frames } => (0, frames.into(), 0),
            BlockState::Unswept | BlockState::Free | BlockState::Offline => (0, 0, 0),
        };
        Self {
            reserved,
            lent,
            users,
        }
    }
}

/// Before a block becomes tag storage: its data lines go to memory and out of the caches, then the
/// tag lines of its coverage, which speculation may have brought in, clean and stale (S13).
pub(crate) fn maintain<H: TagCache>(hw: &mut H, storage: FrameRange, coverage: FrameRange) {
    hw.clean_invalidate_data(storage);
    // Else a tag line could be fetched again before the data is in memory.
    hw.synchronize();
    hw.clean_invalidate_tags(coverage);
    hw.synchronize();
}

/// Before a block becomes ordinary memory: old tags leave the caches, then the block is zeroed in
/// memory, as tags are secrets (S9).
pub(crate) fn scrub<H: TagCache + FrameCopy>(
    hw: &mut H,
    storage: FrameRange,
    coverage: FrameRange,
) {
    hw.clean_invalidate_tags(coverage);
    hw.synchronize();
    storage.iter().for_each(|frame| hw.zero(frame));
    hw.clean_invalidate_data(storage);
    hw.synchronize();
}

impl Table {
    fn new(region: TagRegion, initial: BlockState, first: u32) -> Option<Self> {
        let blocks = region.blocks();
        let mut states = try_filled(0, blocks.into())?;
        let mut offline = 0;
        for range in region.offline() {
            offline += range.end - range.start;
            if let Some(part) = states.get_mut(range.start as usize..range.end as usize) {
                part.fill(BlockState::Offline.pack());
            }
        }
        let (is_static, reserved) = match initial {
            BlockState::Reserved { .. } => (true, blocks - offline),
            _ => (false, 0),
        };
        // Nothing is ever lent, or listed, where all is reserved.
        let lists = |entries: u64| if is_static { 0 } else { entries };
        Some(Self {
            first,
            states,
            links: try_filled(Link::NEVER, lists(blocks.into()))?,
            tenants: try_filled(0, lists(region.tags().count))?,
            fresh: if is_static { 0 } else { blocks },
            capacity: usable_frames(region.coverage_frames()),
            whole: (region.tagged().count / region.coverage_frames()) as u32,
            region,
            reserved,
            offline,
            lent: 0,
            users: 0,
        })
    }

    // Several times in each fault.
    #[inline(always)]
    fn state(&self, index: u32, initial: BlockState) -> BlockState {
        match self.states.get(index as usize) {
            Some(0) => initial,
            Some(&bits) => BlockState::unpack(bits),
            None => BlockState::Offline,
        }
    }

    /// Where a frame is in the carve-out.
    fn place(&self, frame: Frame) -> usize {
        (frame.number() - self.region.tags().start.number()) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{PhysAddr, PhysRange};
    use crate::region::{Dram, MemoryMap, TagRegionDesc};

    const MIB: u64 = 1 << 20;

    fn block(index: u32) -> BlockId {
        BlockId { region: 0, index }
    }

    fn pool() -> TagBlocks {
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
        TagBlocks::new(vec![region], false).unwrap()
    }

    #[test]
    fn a_list_gives_its_blocks_back_from_any_place_in_it() {
        let (mut pool, mut list) = (pool(), List::EMPTY);
        (0..5).for_each(|index| pool.push(&mut list, block(index)));
        for gone in [2, 4, 0] {
            pool.unlink(&mut list, block(gone));
            pool.unlink(&mut list, block(gone));
        }
        assert_eq!(list.count(), 2);
        let first = pool.first(&list).unwrap();
        assert_eq!((first, pool.next(first)), (block(3), Some(block(1))));
        assert_eq!(pool.next(block(1)), None);
        pool.unlink(&mut list, block(1));
        pool.unlink(&mut list, block(3));
        assert_eq!((pool.first(&list), list.count()), (None, 0));
    }

    #[test]
    fn fresh_blocks_come_from_the_top_once_and_without_those_in_a_list() {
        let (mut pool, mut list) = (pool(), List::EMPTY);
        pool.push(&mut list, block(14));
        pool.unlink(&mut list, block(14));
        pool.push(&mut list, block(3));
        let fresh: Vec<u32> = core::iter::from_fn(|| Some(pool.next_fresh()?.index)).collect();
        assert_eq!(fresh, [15, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 2, 1, 0]);
    }

    #[test]
    fn bytes_follow_the_states() {
        let mut pool = pool();
        let set = |pool: &mut TagBlocks, at, state| pool.set(at, pool.state(at), state);
        set(&mut pool, block(0), BlockState::Lent { frames: 1 });
        set(&mut pool, block(1), BlockState::Reserved { users: 64 });
        set(&mut pool, block(1), BlockState::Reserved { users: 65 });
        set(&mut pool, block(2), BlockState::Reserved { users: 1 });
        let bytes = pool.bytes();
        assert_eq!((bytes.lent, bytes.reserved), (0x1000, 0x4000));
        assert_eq!(bytes.live_tagged, 66 * PAGE_SIZE);
        assert_eq!(bytes.least_reserved, 0x4000, "a coverage is 64 frames");
        set(&mut pool, block(1), BlockState::Scrubbing);
        set(&mut pool, block(2), BlockState::Free);
        set(&mut pool, block(0), BlockState::Free);
        let bytes = pool.bytes();
        assert_eq!(
            (bytes.reserved, bytes.lent, bytes.live_tagged),
            (0x2000, 0, 0)
        );
    }

    #[test]
    fn a_tenant_is_found_by_its_frame() {
        let mut pool = pool();
        let frame = Frame::from_addr(PhysAddr::new(4 * MIB + 0x3000)).unwrap();
        let tenant = Tenant {
            vm: VmId::new(0).unwrap(),
            page: Page(0xff_ffff),
        };
        assert_eq!(pool.tenant(frame), None);
        pool.set_tenant(frame, Some(tenant));
        assert_eq!(pool.tenant(frame), Some(tenant));
        let number = pool.storage_number(frame).unwrap();
        assert_eq!((number, pool.storage_frame(number)), (3, Some(frame)));
        pool.set_tenant(frame, None);
        assert_eq!(pool.tenant(frame), None);
    }
}
