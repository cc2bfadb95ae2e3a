//! Tag blocks at work: which block is lent, reserved or evicted next, and what that takes. Lock
//! rank: memory.
//!
//! Each block is in at most one list, by what can be had of it, so that a choice takes a few steps
//! however large the machine is. A VM that may use tags has lists of its own for the blocks that
//! cover its chunks; all other blocks are idle: nobody's tags will need them soon.

use crate::addr::{Frame, FrameRange, PAGE_SIZE};
use crate::admission::Claim;
use crate::block::{BadTransition, BlockEvent, BlockState};
use crate::frames::{ChunkId, Owner, VmId};
use crate::host::HostMemory;
use crate::pieces::Page;
use crate::pool::{BlockId, List, TagBlocks, TagHold, Tenant, maintain, scrub};
use crate::ports::{FrameCopy, TagCache};

/// How finely blocks are told apart by how full they are: few pages of a block bring it into another
/// list.
const FULLNESS: u64 = 8;

/// What a VM holds of the machine's taggable memory, and its tag blocks.
#[derive(Clone, Debug)]
pub(crate) struct Holding {
    /// Whether the VM may use tags: the blocks that cover its chunks are in these lists.
    wants: bool,
    /// What it is promised, and may have at most.
    pub(crate) claim: Claim,
    /// Bytes of chunks that it has.
    chunks: u64,
    /// Blocks that are free.
    closed: List,
    /// Blocks that hold data.
    lent: List,
    /// Blocks that are offline, and may have room: tags there cost nothing.
    spared: List,
    /// Reserved blocks that are not full, by how full they are.
    rooms: [List; FULLNESS as usize],
    /// Which of `rooms` have any.
    filled: u32,
}

impl Holding {
    pub(crate) const NONE: Self = Self {
        wants: false,
        claim: Claim::NONE,
        chunks: 0,
        closed: List::EMPTY,
        lent: List::EMPTY,
        spared: List::EMPTY,
        rooms: [List::EMPTY; FULLNESS as usize],
        filled: 0,
    };

    /// Of a VM that is new, and may use tags if it `wants`; it is promised nothing yet.
    pub(crate) const fn new(wants: bool) -> Self {
        Self {
            wants,
            ..Self::NONE
        }
    }

    /// Bytes of chunks that it has.
    pub(crate) const fn chunks(&self) -> u64 {
        self.chunks
    }

    /// Bytes of chunks that are kept for it, of its quota: nobody else may have them.
    pub(crate) const fn outstanding(&self) -> u64 {
        self.claim.chunks.saturating_sub(self.chunks)
    }

    /// What the VM needs that has so many lent frames and is to be promised `claim` from now on: it may
    /// take its whole quota before anything comes back of what it has beyond that.
    pub(crate) fn renewed(&self, claim: Claim, lent: u64) -> Claim {
        let most = self.chunks.max(claim.chunks) + lent * PAGE_SIZE;
        Claim {
            memory: claim.memory.max(most),
            ..claim
        }
    }
}

/// How full a block is that covers so many frames, of [`FULLNESS`]: that much only if it is full.
const fn fullness(users: u32, covered: u64) -> u64 {
    match (users as u64 * FULLNESS).checked_div(covered) {
        Some(fullness) => fullness,
        None => FULLNESS,
    }
}

/// The list that a block belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shelf {
    Idle,
    Closed(usize),
    Lent(usize),
    Spared(usize),
    Room(usize, usize),
}

impl HostMemory {
    /// What a VM holds.
    pub(crate) fn holding(&self, vm: VmId) -> &Holding {
        const NONE: Holding = Holding::NONE;
        self.holdings.get(usize::from(vm.index())).unwrap_or(&NONE)
    }

    /// Bytes of chunks that are kept for VMs.
    pub(crate) fn outstanding(&self) -> u64 {
        self.holdings.iter().map(Holding::outstanding).sum()
    }

    /// Whether a VM with so many lent frames can have one more chunk: of its quota, or within its claim
    /// of what is nobody's.
    pub(crate) fn has_chunk(&self, vm: VmId, lent: u64) -> bool {
        let (free, largest) = (self.chunks.free_bytes(), self.chunks.largest());
        let holding = self.holding(vm);
        match holding.outstanding() {
            0 => {
                let claimed = holding.chunks + lent * PAGE_SIZE + largest <= holding.claim.memory;
                claimed && free >= self.outstanding() + largest
            }
            _ => free > 0,
        }
    }

    /// Gives a VM with so many lent frames a chunk. Its data and tags are whatever they were.
    pub(crate) fn take_chunk(&mut self, vm: VmId, lent: u64) -> Option<ChunkId> {
        if !self.has_chunk(vm, lent) || !self.grant() {
            return None;
        }
        let chunk = self.chunks.alloc(Owner::Vm(vm))?;
        let frames = self.chunks.frames(chunk);
        let holding = self.holdings.get_mut(usize::from(vm.index()))?;
        holding.chunks += frames.bytes();
        if holding.wants {
            self.each_block(frames, |host, block, state| {
                // It was nobody's: in the idle list, or in none.
                host.unshelve(Shelf::Idle, block);
                host.shelve_by_state(block, state);
            });
        }
        Some(chunk)
    }

    /// Takes a chunk back from a VM, none of whose pages are in it.
    pub(crate) fn release_chunk(&mut self, vm: VmId, chunk: ChunkId) {
        let frames = self.chunks.frames(chunk);
        self.each_block(frames, |host, block, state| {
            if let Some(shelf) = host.shelf(block, state) {
                host.unshelve(shelf, block);
            }
        });
        // It is the VM's: nobody else could have freed it.
        if self.chunks.free(chunk, Owner::Vm(vm)).is_ok()
            && let Some(holding) = self.holdings.get_mut(usize::from(vm.index()))
        {
            holding.chunks -= frames.bytes();
        }
        self.each_block(frames, Self::shelve_by_state);
    }

    /// Each block that covers a part of `frames`, a chunk, and its state; none where all is
    /// reserved for ever.
    fn each_block(
        &mut self,
        frames: FrameRange,
        mut each: impl FnMut(&mut Self, BlockId, BlockState),
    ) {
        if self.blocks.standing_users() > 0 {
            return;
        }
        let Some(mut block) = self.blocks.block_of(frames.start) else {
            return;
        };
        while self.blocks.coverage(block).start < frames.end()
            && !self.blocks.coverage(block).is_empty()
        {
            let state = self.blocks.state(block);
            each(self, block, state);
            block.index += 1;
        }
    }

    /// The VM whose lists a block belongs to: the one whose chunk it covers, if that may use tags.
    fn keeper(&self, block: BlockId) -> Option<usize> {
        match self.chunks.owner_of(self.blocks.coverage(block).start) {
            Owner::Vm(vm) if self.holding(vm).wants => Some(usize::from(vm.index())),
            _ => None,
        }
    }

    /// The list of a block in `state`, if it belongs to any.
    fn shelf(&self, block: BlockId, state: BlockState) -> Option<Shelf> {
        self.shelf_of(block, state, self.keeper(block))
    }

    fn shelf_of(&self, block: BlockId, state: BlockState, keeper: Option<usize>) -> Option<Shelf> {
        Some(match (state, keeper) {
            (BlockState::Unswept | BlockState::Free, None) => Shelf::Idle,
            (BlockState::Unswept | BlockState::Free, Some(vm)) => Shelf::Closed(vm),
            (BlockState::Lent { .. }, Some(vm)) => Shelf::Lent(vm),
            (BlockState::Offline, Some(vm)) => Shelf::Spared(vm),
            (BlockState::Reserved { users }, Some(vm)) => {
                let capacity = self.blocks.capacity(block);
                if u64::from(users) >= capacity {
                    return None;
                }
                Shelf::Room(vm, fullness(users, capacity) as usize)
            }
            _ => return None,
        })
    }

    fn shelve_by_state(&mut self, block: BlockId, state: BlockState) {
        if let Some(shelf) = self.shelf(block, state) {
            self.shelve(shelf, block);
        }
    }

    fn shelve(&mut self, shelf: Shelf, block: BlockId) {
        if let Some((blocks, list)) = self.list(shelf) {
            blocks.push(list, block);
            self.note_filled(shelf);
        }
    }

    fn unshelve(&mut self, shelf: Shelf, block: BlockId) {
        if let Some((blocks, list)) = self.list(shelf) {
            blocks.unlink(list, block);
            self.note_filled(shelf);
        }
    }

    fn list(&mut self, shelf: Shelf) -> Option<(&mut TagBlocks, &mut List)> {
        let list = match shelf {
            Shelf::Idle => &mut self.idle,
            Shelf::Closed(vm) => &mut self.holdings.get_mut(vm)?.closed,
            Shelf::Lent(vm) => &mut self.holdings.get_mut(vm)?.lent,
            Shelf::Spared(vm) => &mut self.holdings.get_mut(vm)?.spared,
            Shelf::Room(vm, fullness) => self.holdings.get_mut(vm)?.rooms.get_mut(fullness)?,
        };
        Some((&mut self.blocks, list))
    }

    fn note_filled(&mut self, shelf: Shelf) {
        if let Shelf::Room(vm, fullness) = shelf
            && let Some(holding) = self.holdings.get_mut(vm)
        {
            let rooms = holding.rooms.get(fullness).map_or(0, List::count);
            let bit = u32::from(rooms > 0) << fullness;
            holding.filled = holding.filled & !(1 << fullness) | bit;
        }
    }

    /// Brings a block into the state after `event`, and into the list of that state.
    pub(crate) fn apply(
        &mut self,
        block: BlockId,
        event: BlockEvent,
    ) -> Result<BlockState, BadTransition> {
        self.apply_to(block, self.blocks.state(block), event)
    }

    /// The same for a block that is known to be in state `old`.
    fn apply_to(
        &mut self,
        block: BlockId,
        old: BlockState,
        event: BlockEvent,
    ) -> Result<BlockState, BadTransition> {
        let new = old.after(event)?;
        if !self.lends || self.stays(block, old, new) {
            self.blocks.set(block, old, new);
            return Ok(new);
        }
        let keeper = self.keeper(block);
        let from = self.shelf_of(block, old, keeper);
        let to = self.shelf_of(block, new, keeper);
        self.blocks.set(block, old, new);
        if from != to {
            if let Some(from) = from {
                self.unshelve(from, block);
            }
            if let Some(to) = to {
                self.shelve(to, block);
            }
        }
        Ok(new)
    }

    /// Whether a block stays in its list, told from its states alone: most changes are one user more
    /// or less.
    fn stays(&self, block: BlockId, old: BlockState, new: BlockState) -> bool {
        match (old, new) {
            (BlockState::Reserved { users: old }, BlockState::Reserved { users: new }) => {
                let capacity = self.blocks.capacity(block);
                fullness(old, capacity) == fullness(new, capacity)
            }
            // In none.
            (BlockState::Evicting { .. }, BlockState::Evicting { .. }) => true,
            _ => false,
        }
    }

    /// Keeps the most that ever held data at once. An eviction has two frames for a page for a while:
    /// that does not count.
    pub(crate) fn count_lent(&mut self) {
        self.peak_lent = self.peak_lent.max(self.blocks.bytes().lent);
    }

    /// The fullest reserved block of a VM's chunks that has room.
    pub(crate) fn fullest_room(&self, vm: VmId) -> Option<BlockId> {
        let holding = self.holding(vm);
        let fullness = holding.filled.checked_ilog2()?;
        self.blocks.first(holding.rooms.get(fullness as usize)?)
    }

    /// The emptiest reserved block of a VM's chunks.
    pub(crate) fn emptiest_room(&self, vm: VmId) -> Option<BlockId> {
        let holding = self.holding(vm);
        let fullness = holding.filled.trailing_zeros();
        self.blocks.first(holding.rooms.get(fullness as usize)?)
    }

    /// The free blocks of a VM's chunks.
    pub(crate) fn closed(&self, vm: VmId) -> impl Iterator<Item = BlockId> {
        let first = self.blocks.first(&self.holding(vm).closed);
        core::iter::successors(first, |&block| self.blocks.next(block))
    }

    /// The lent blocks of a VM's chunks.
    pub(crate) fn lent(&self, vm: VmId) -> impl Iterator<Item = BlockId> {
        let first = self.blocks.first(&self.holding(vm).lent);
        core::iter::successors(first, |&block| self.blocks.next(block))
    }

    /// A block of a VM's chunks that is offline and may have room.
    pub(crate) fn spared(&self, vm: VmId) -> Option<BlockId> {
        self.blocks.first(&self.holding(vm).spared)
    }

    /// Notes that such a block has none.
    pub(crate) fn unshelve_spared(&mut self, vm: VmId, block: BlockId) {
        self.unshelve(Shelf::Spared(vm.index().into()), block);
    }

    /// Takes a frame of tag storage for a page, in a block that is wanted least: one that is lent
    /// already, an idle one, then one of the VM that has the most free ones. Its contents are
    /// whatever they were.
    pub(crate) fn lend<H: TagCache + FrameCopy>(
        &mut self,
        hw: &mut H,
        vm: VmId,
        page: Page,
    ) -> Option<Frame> {
        if !self.lends || !self.grant() {
            return None;
        }
        let frame = match self.spare.first() {
            Some(number) => self.blocks.storage_frame(number)?,
            None => self.open_for_data(hw)?,
        };
        let block = self.blocks.storage_of(frame)?;
        self.apply(block, BlockEvent::Lend).ok()?;
        self.spare.remove(self.blocks.storage_number(frame)?);
        self.blocks.set_tenant(frame, Some(Tenant { vm, page }));
        Some(frame)
    }

    /// Whether there is tag storage that could be lent.
    pub(crate) fn can_lend(&self) -> bool {
        let closed = || {
            self.holdings
                .iter()
                .any(|holding| holding.closed.count() > 0)
        };
        self.lends
            && (self.spare.first().is_some()
                || self.idle.count() > 0
                || self.blocks.has_fresh()
                || closed())
    }

    /// A swept free block for data; all its frames are spare.
    fn open_for_data<H: TagCache + FrameCopy>(&mut self, hw: &mut H) -> Option<Frame> {
        let block = match self.blocks.first(&self.idle) {
            Some(block) => block,
            None => match self.blocks.next_fresh() {
                Some(block) => block,
                None => self.least_wanted()?,
            },
        };
        self.sweep(hw, block).ok()?;
        let storage = self.blocks.storage(block);
        self.mark_spare(storage, true);
        Some(storage.start)
    }

    /// A free block of the VM that has the most.
    fn least_wanted(&self) -> Option<BlockId> {
        let most = self
            .holdings
            .iter()
            .max_by_key(|holding| holding.closed.count())?;
        self.blocks.first(&most.closed)
    }

    fn sweep<H: TagCache + FrameCopy>(
        &mut self,
        hw: &mut H,
        block: BlockId,
    ) -> Result<(), BadTransition> {
        if self.blocks.state(block) == BlockState::Unswept {
            scrub(hw, self.blocks.storage(block), self.blocks.coverage(block));
            self.apply(block, BlockEvent::Sweep)?;
        }
        Ok(())
    }

    fn mark_spare(&mut self, frames: FrameRange, is_spare: bool) {
        for frame in frames.iter() {
            let Some(number) = self.blocks.storage_number(frame) else {
                return;
            };
            match is_spare && self.blocks.tenant(frame).is_none() {
                true => self.spare.insert(number),
                false => self.spare.remove(number),
            }
        }
    }

    /// Takes back a frame of tag storage whose page is gone.
    pub(crate) fn take_back(&mut self, frame: Frame) -> Result<(), BadTransition> {
        let Some(block) = self.blocks.storage_of(frame) else {
            return Ok(());
        };
        let state = self.apply(block, BlockEvent::Return)?;
        self.blocks.set_tenant(frame, None);
        match state {
            BlockState::Lent { .. } => self.mark_spare(FrameRange::new(frame, 1), true),
            // Nothing of it is.
            BlockState::Evicting { .. } => {}
            // The whole block can become tags again.
            _ => self.mark_spare(self.blocks.storage(block), false),
        }
        Ok(())
    }

    /// Begins to move the data out of a block: nothing more is lent of it.
    pub(crate) fn begin_evict(&mut self, block: BlockId) -> Result<(), BadTransition> {
        let state = self.apply(block, BlockEvent::BeginEvict)?;
        let storage = self.blocks.storage(block);
        if !matches!(state, BlockState::Evicting { frames } if u64::from(frames) == storage.count) {
            self.mark_spare(storage, false);
        }
        Ok(())
    }

    /// Ends that: a drained block is free, another one stays lent.
    pub(crate) fn end_evict(&mut self, block: BlockId) -> Result<(), BadTransition> {
        if let BlockState::Lent { .. } = self.apply(block, BlockEvent::AbortEvict)? {
            self.mark_spare(self.blocks.storage(block), true);
        }
        Ok(())
    }

    /// Blocks that are not in the list of their state, and spare frames that are none: 0, or a
    /// guarantee is lost.
    pub(crate) fn misplaced(&self) -> u64 {
        if !self.lends {
            return 0;
        }
        let (mut wrong, mut listed, mut idle) = (0, 0_u64, 0);
        for (number, region) in self.blocks.regions().enumerate() {
            for index in 0..region.blocks() {
                let block = BlockId {
                    region: number as u16,
                    index,
                };
                let state = self.blocks.state(block);
                match self.shelf(block, state) {
                    Some(Shelf::Spared(_)) => listed += u64::from(self.blocks.is_listed(block)),
                    Some(Shelf::Idle) => idle += u64::from(!self.blocks.was_never_listed(block)),
                    Some(_) => listed += 1,
                    None => {}
                }
                let lent = matches!(state, BlockState::Lent { .. });
                for frame in region.storage(index).iter() {
                    let spare = self.blocks.storage_number(frame);
                    let spare = spare.is_some_and(|number| self.spare.contains(number));
                    wrong += u64::from(spare != (lent && self.blocks.tenant(frame).is_none()));
                }
            }
        }
        let mut there = 0;
        for holding in &self.holdings {
            let rooms = holding.rooms.iter().map(List::count).sum::<u32>();
            let others = [&holding.closed, &holding.lent, &holding.spared];
            there += u64::from(rooms + others.map(List::count).iter().sum::<u32>());
            for (number, room) in holding.rooms.iter().enumerate() {
                wrong += u64::from((holding.filled >> number & 1 != 0) != (room.count() > 0));
            }
        }
        wrong + listed.abs_diff(there) + idle.abs_diff(self.idle.count().into())
    }

    /// Gives `frame`'s tags storage: reserves the block, or adds a user to it.
    /// An error changes nothing: the block holds data, or is on its way elsewhere.
    pub(crate) fn hold<H: TagCache + FrameCopy>(
        &mut self,
        hw: &mut H,
        frame: Frame,
    ) -> Result<TagHold, BadTransition> {
        let Some(block) = self.blocks.block_of(frame) else {
            return Ok(TagHold::new(frame, 0));
        };
        let state = self.blocks.state(block);
        match state {
            BlockState::Offline => return Ok(TagHold::new(frame, 0)),
            BlockState::Reserved { .. } => {
                self.apply_to(block, state, BlockEvent::AddUser)?;
                return Ok(TagHold::new(frame, 0));
            }
            BlockState::Unswept => {}
            other => {
                other.after(BlockEvent::Reserve)?;
            }
        }
        self.sweep(hw, block)?;
        maintain(hw, self.blocks.storage(block), self.blocks.coverage(block));
        self.apply(block, BlockEvent::Reserve)?;
        Ok(TagHold::new(frame, self.blocks.block_bytes(block)))
    }

    /// Takes back the user that `frame` is of its block. No guest can reach the frame any more, or
    /// not its tags. Cleans its tag lines while the block is still reserved; the last user leaves
    /// the block scrubbed and free. Returns the bytes of tag storage given back.
    pub(crate) fn drop_user<H: TagCache + FrameCopy>(
        &mut self,
        hw: &mut H,
        frame: Frame,
    ) -> Result<u64, BadTransition> {
        let Some(block) = self.blocks.block_of(frame) else {
            return Ok(0);
        };
        let state = self.blocks.state(block);
        if state == BlockState::Offline {
            if self.lends && !self.blocks.is_listed(block) {
                self.shelve_by_state(block, state);
            }
            return Ok(0);
        }
        state.after(BlockEvent::DropUser)?;
        hw.clean_invalidate_tags(FrameRange::new(frame, 1));
        hw.synchronize();
        if self.apply_to(block, state, BlockEvent::DropUser)? != BlockState::Scrubbing {
            return Ok(0);
        }
        scrub(hw, self.blocks.storage(block), self.blocks.coverage(block));
        self.apply(block, BlockEvent::FinishScrub)?;
        Ok(self.blocks.block_bytes(block))
    }
}
