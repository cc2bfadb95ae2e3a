//! Which frame a page gets. Lock rank: memory.
//!
//! A frame is a page's as soon as it is taken, and taking it back is freeing it: so an operation
//! that is refused half way gives back what it took, and nothing is left of it.

use crate::addr::Frame;
use crate::block::{BadTransition, BlockState};
use crate::frames::{Piece, VmId};
use crate::host::HostMemory;
use crate::kept::Needs;
use crate::pieces::{Page, PieceMap};
use crate::pool::{BlockId, Tenant};
use crate::ports::{FrameCopy, TagCache};
use crate::ram::{Ram, at_home};

/// Which frames a page may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wish {
    /// Any, tag storage first: the page will hardly ever have tags.
    Lent,
    /// Any, the VM's own first: the page may get tags.
    Own,
    /// One that can have tags.
    Taggable,
}

impl Ram {
    /// Takes a frame for a page that has none. Its contents are whatever they were. `None`: there is
    /// no such frame, and nothing has changed.
    pub(crate) fn take_frame<H: TagCache + FrameCopy>(
        &mut self,
        host: &mut HostMemory,
        hw: &mut H,
        page: Page,
        wish: Wish,
    ) -> Option<Frame> {
        if let Some(frame) = self.take_at_home(host, page) {
            return Some(frame);
        }
        let has_own = !self.spare.is_empty() || host.holding(self.vm).outstanding() > 0;
        if wish != Wish::Lent && (has_own || wish == Wish::Taggable) {
            let own = self.take_new_home(host, page);
            if let Some(frame) = own.or_else(|| self.take_any(host, page)) {
                return Some(frame);
            }
        }
        if wish == Wish::Own
            && let Some(frame) = self.take_any(host, page)
        {
            return Some(frame);
        }
        if wish != Wish::Taggable
            && let Some(frame) = host.lend(hw, self.vm, page)
        {
            self.lent += 1;
            return Some(frame);
        }
        let own = self.take_new_home(host, page);
        own.or_else(|| self.take_any(host, page))
    }

    /// The frame at home, unless it is taken, or worth more for tags.
    fn take_at_home(&mut self, host: &mut HostMemory, page: Page) -> Option<Frame> {
        let frame = at_home(self.home(page.slot())?, page);
        if host.chunks.page_in(frame).is_some() || host.is_reserved(frame) {
            return None;
        }
        self.put(host, frame, page);
        Some(frame)
    }

    /// A frame of a piece that becomes the page's home, or that of another slot.
    fn take_new_home(&mut self, host: &mut HostMemory, page: Page) -> Option<Frame> {
        let slot = match self.homeless.contains(page.slot().into()) {
            true => page.slot(),
            false => self.homeless.first()? as u32,
        };
        let piece = self.take_piece(host, slot)?;
        if host.open_piece(piece, slot).is_none() {
            self.give_piece(host, piece, slot);
            return None;
        }
        self.roomy.insert(slot.into());
        let frame = at_home(piece, page);
        self.put(host, frame, page);
        Some(frame)
    }

    /// Any frame of the VM's own, rather none that is worth more for tags.
    fn take_any(&mut self, host: &mut HostMemory, page: Page) -> Option<Frame> {
        let slot = self.roomy.first()? as u32;
        let piece = self.home(slot)?;
        let map = host.chunks.map(piece)?;
        let plain = map.find_free(|index| !host.is_reserved(piece.plus(index)));
        let frame = piece.plus(plain.or_else(|| map.find_free(|_| true))?);
        self.put(host, frame, page);
        Some(frame)
    }

    /// Takes an unused piece to be the home of `slot`: of those the VM has, or of a new chunk.
    pub(crate) fn take_piece(&mut self, host: &mut HostMemory, slot: u32) -> Option<Frame> {
        if self.spare.is_empty() {
            // Room for all the VM's pieces: giving one back must not need memory.
            let all = self.owned + host.chunks.largest_pieces();
            self.spare.try_reserve(all).ok()?;
            let chunk = host.take_chunk(self.vm, self.lent)?;
            self.spare.extend(host.chunks.pieces(chunk));
            self.owned += self.spare.len();
            self.spare.reverse();
        }
        let piece = self.spare.pop()?;
        self.set_home(slot, Some(piece));
        Some(piece)
    }

    /// Gives an empty piece, the home of `slot`, back, and its chunk if all of that is unused.
    pub(crate) fn give_piece(&mut self, host: &mut HostMemory, piece: Frame, slot: u32) {
        host.chunks.clear_piece(piece);
        self.roomy.remove(slot.into());
        self.set_home(slot, None);
        self.spare.push(piece);
        self.release_unused(host, piece);
    }

    /// Gives all chunks back that are unused: one that was opened for tags may never have got any.
    pub(crate) fn give_unused_chunks(&mut self, host: &mut HostMemory) {
        let mut at = 0;
        while let Some(&piece) = self.spare.get(at) {
            let count = self.spare.len();
            self.release_unused(host, piece);
            at += usize::from(self.spare.len() == count);
        }
    }

    /// Gives the chunk of a piece back if all of it is unused.
    fn release_unused(&mut self, host: &mut HostMemory, piece: Frame) {
        let Some(chunk) = host.chunks.chunk_of(piece) else {
            return;
        };
        let frames = host.chunks.frames(chunk);
        let unused = |piece: &Frame| frames.contains(*piece);
        let pieces = host.chunks.pieces(chunk).count();
        if self.spare.iter().filter(|piece| unused(piece)).count() == pieces {
            self.spare.retain(|piece| !frames.contains(*piece));
            self.owned -= pieces;
            host.release_chunk(self.vm, chunk);
        }
    }

    /// Puts a page into a frame of the VM's own, whose piece has a map.
    pub(crate) fn put(&mut self, host: &mut HostMemory, frame: Frame, page: Page) {
        if let Some(slot) = host.chunks.place(frame, page) {
            self.roomy.remove(slot.into());
        }
    }

    /// Puts a page without tag access into a frame of the VM's that another page has left.
    pub(crate) fn replace(&mut self, host: &mut HostMemory, frame: Frame, page: Page) {
        match host.blocks.storage_of(frame) {
            Some(_) => {
                let vm = self.vm;
                host.blocks.set_tenant(frame, Some(Tenant { vm, page }));
            }
            None => self.put(host, frame, page),
        }
    }

    /// Gives back chunks in which nothing is, after an operation that was refused.
    pub(crate) fn trim(&mut self, host: &mut HostMemory) {
        for number in (0..self.spare.len()).rev() {
            if let Some(&piece) = self.spare.get(number) {
                self.release_unused(host, piece);
            }
        }
    }

    /// Takes the page out of a frame, which is free then. Its block may have become free.
    pub(crate) fn free_frame(
        &mut self,
        host: &mut HostMemory,
        frame: Frame,
    ) -> Result<(), BadTransition> {
        if host.blocks.storage_of(frame).is_some() {
            host.take_back(frame)?;
            self.lent -= 1;
            return Ok(());
        }
        host.chunks.update(frame, PieceMap::vacate);
        let Some(map) = host.chunks.map(frame) else {
            return Ok(());
        };
        let slot = map.slot();
        match map.used_count() {
            0 => {
                if let Some(piece) = host.chunks.piece_start(frame) {
                    self.give_piece(host, piece, slot);
                }
            }
            _ => self.roomy.insert(slot.into()),
        }
        Ok(())
    }

    /// Makes sure that a page can be put into `frame`, which is free: an unused piece becomes a
    /// home. Whether that worked.
    pub(crate) fn settle(&mut self, host: &mut HostMemory, frame: Frame, page: Page) -> bool {
        let Some(piece) = host.chunks.piece_start(frame) else {
            return false;
        };
        if host.chunks.piece(frame) != Piece::Unused {
            return true;
        }
        let slot = match self.homeless.contains(page.slot().into()) {
            true => Some(page.slot().into()),
            false => self.homeless.first(),
        };
        let Some(slot) = slot.map(|slot| slot as u32) else {
            return false;
        };
        if host.open_piece(piece, slot).is_none() {
            return false;
        }
        self.spare.retain(|spare| *spare != piece);
        self.set_home(slot, Some(piece));
        self.roomy.insert(slot.into());
        true
    }

    /// Undoes [`settle`](Self::settle) for a piece that is still empty.
    pub(crate) fn unsettle(&mut self, host: &mut HostMemory, frame: Frame) {
        if let Some(map) = host.chunks.map(frame)
            && map.used_count() == 0
            && let Some(piece) = host.chunks.piece_start(frame)
        {
            let slot = map.slot();
            self.give_piece(host, piece, slot);
        }
    }
}

/// Where the tags of a page can be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    /// In the block of the frame that it is in.
    InPlace,
    /// In the block of another frame of the VM, which a page without tag access may be in.
    Into(Frame, Option<Page>),
}

/// How a page gets a place for its tags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Choice {
    /// There.
    Place(Target),
    /// The block must be emptied first.
    Evict(BlockId),
    /// All that the VM may have reserved is full.
    OverBudget,
    /// There is no block for it.
    Nowhere,
}

/// How many free blocks are looked at for one that the budget has room for.
const TRIES: usize = 64;

impl HostMemory {
    /// Whether the block of `frame` holds tags.
    pub(crate) fn is_reserved(&self, frame: Frame) -> bool {
        self.lends
            && self.blocks.block_of(frame).is_some_and(|block| {
                matches!(self.blocks.state(block), BlockState::Reserved { .. })
            })
    }

    /// A frame that a block covers which can have tags, if there is any.
    pub(crate) fn room(&self, block: BlockId) -> Option<Target> {
        let (frame, page) = self.chunks.room(self.blocks.coverage(block))?;
        Some(Target::Into(frame, page))
    }

    /// Chooses where the page in `frame` gets its tags: where it is, if its block is reserved
    /// already; else in the fullest reserved block of its VM that has room; else in one that is to be
    /// reserved, its own if that is free. `left` is how many bytes of tag storage the VM may still
    /// have reserved.
    pub(crate) fn choose(&mut self, ram: &mut Ram, frame: Frame, left: u64) -> Choice {
        let vm = ram.vm;
        let own = self.blocks.block_of(frame);
        let state = own.map(|block| self.blocks.state(block));
        match (own, state) {
            (None, _) if self.blocks.storage_of(frame).is_none() => {
                return Choice::Place(Target::InPlace);
            }
            (_, Some(BlockState::Reserved { .. } | BlockState::Offline)) => {
                return Choice::Place(Target::InPlace);
            }
            _ => {}
        }
        if let Some(target) = self.spared_room(vm) {
            return Choice::Place(target);
        }
        if let Some(target) = self.fullest_room(vm).and_then(|block| self.room(block)) {
            return Choice::Place(target);
        }
        let affordable = |host: &Self, block| host.blocks.block_bytes(block) <= left;
        if let (Some(block), Some(BlockState::Unswept | BlockState::Free)) = (own, state)
            && affordable(self, block)
        {
            return Choice::Place(Target::InPlace);
        }
        if left == 0 {
            return Choice::OverBudget;
        }
        if let Some(target) = self.closed_room(vm, left) {
            return Choice::Place(target);
        }
        // Of what is kept for the VM, if it has not taken all yet: in the coverage of a free block, if
        // there is any, before data have to move.
        let can_evict = self.lent(vm).next().is_some();
        if self.holding(vm).outstanding() > 0
            && (self.can_lend() || !can_evict)
            && let Some(slot) = ram.homeless.first()
            && let Some(piece) = ram.take_piece(self, slot as u32)
        {
            ram.give_unused(piece, slot as u32);
            if let Some(target) = self.closed_room(vm, left) {
                return Choice::Place(target);
            }
            if can_evict {
                ram.release_unused(self, piece);
            }
        }
        let lent = |block: &BlockId| matches!(self.blocks.state(*block), BlockState::Lent { .. });
        let own_lent = own.filter(lent).filter(|&block| affordable(self, block));
        let others = || self.lent(vm).take(TRIES);
        match own_lent.or_else(|| others().find(|&block| affordable(self, block))) {
            Some(block) => Choice::Evict(block),
            None if own.is_some() || others().next().is_some() => Choice::OverBudget,
            None => Choice::Nowhere,
        }
    }

    /// What a page with `frame` needs to get its tags in `block` once that is empty: a table and a map
    /// for the split of the leaf that it is in, if it `is_big`, and for that of the page it swaps with.
    pub(crate) fn needs(&self, page: Page, frame: Frame, is_big: bool, block: BlockId) -> Needs {
        let mut needs = Needs {
            tables: is_big.into(),
            maps: is_big.into(),
        };
        if self.blocks.block_of(frame) == Some(block) {
            return needs;
        }
        let room = self.chunks.room(self.blocks.coverage(block));
        // An eviction may fill an unused piece, and never makes one whole.
        match room.map(|(to, _)| self.chunks.piece(to)) {
            Some(Piece::Whole(slot)) if slot != page.slot() => {
                needs.tables += 1;
                needs.maps += 1;
            }
            Some(Piece::Unused) => needs.maps += 1,
            Some(Piece::Whole(_) | Piece::Mapped(_)) | None => {}
        }
        needs
    }

    /// Room in a block that is offline, which costs nothing. One without room is found again when a
    /// page of it gives tag access back.
    fn spared_room(&mut self, vm: VmId) -> Option<Target> {
        while let Some(block) = self.spared(vm) {
            let target = self.room(block);
            if target.is_some() {
                return target;
            }
            self.unshelve_spared(vm, block);
        }
        None
    }

    fn closed_room(&self, vm: VmId, left: u64) -> Option<Target> {
        // Only blocks of several sizes make the first ones useless.
        let blocks = self.closed(vm).take(TRIES);
        let blocks = blocks.filter(|&block| self.blocks.block_bytes(block) <= left);
        blocks.filter_map(|block| self.room(block)).next()
    }
}

impl Ram {
    /// Makes a piece that was just taken spare again: its chunk stays.
    fn give_unused(&mut self, piece: Frame, slot: u32) {
        self.set_home(slot, None);
        self.spare.push(piece);
    }
}
