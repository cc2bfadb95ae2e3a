//! Frames of ordinary DRAM: who owns which chunk, and where tables live. Lock rank: frames.
//!
//! Taggable DRAM goes to VMs in chunks of 2 MiB or more, cut so that a tag block's coverage never
//! crosses a chunk: all users of a block belong to one VM. A buddy allocator serves the chunks; it
//! accepts double frees, so the ownership table in front of it decides (S1).

use alloc::vec::Vec;

use buddy_system_allocator::FrameAllocator;

use crate::addr::{Frame, FrameRange, PAGE_SIZE, lcm, try_filled};
use crate::pieces::{MapId, Page, PieceMap, PieceMaps, Room};

/// Frames of a piece: 2 MiB, what one level-3 table maps.
pub const PIECE_FRAMES: u64 = 512;
/// Bytes of a piece.
pub const PIECE_BYTES: u64 = PIECE_FRAMES * PAGE_SIZE;
/// The largest chunk that is made for the sake of whole pieces: 64 MiB.
const MAX_ALIGNED_CHUNK: u64 = 32 * PIECE_FRAMES;

/// A VM's identifier, never reused while the VM owns anything.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VmId(u16);

impl VmId {
    /// The VM of number `index`; `None` above 65,533.
    pub const fn new(index: u16) -> Option<Self> {
        if index < u16::MAX - 1 {
            Some(Self(index))
        } else {
            None
        }
    }

    /// The VM's number.
    pub const fn index(self) -> u16 {
        self.0
    }
}

/// Who owns a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// Nobody.
    Free,
    /// The hypervisor, for stage-2 tables.
    Tables,
    /// A VM.
    Vm(VmId),
}

impl Owner {
    const fn pack(self) -> u16 {
        match self {
            Self::Free => 0,
            Self::Tables => 1,
            Self::Vm(vm) => vm.0 + 2,
        }
    }

    const fn unpack(bits: u16) -> Self {
        match bits {
            0 => Self::Free,
            1 => Self::Tables,
            vm => Self::Vm(VmId(vm - 2)),
        }
    }
}

/// A frame or chunk that was given back by somebody who does not own it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotOwned(pub Frame);

/// A chunk of taggable DRAM, by its number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ChunkId(u32);

/// A run of chunks of one size.
#[derive(Debug)]
struct Zone {
    frames: FrameRange,
    chunk_frames: u64,
    first: usize,
    owners: Vec<u16>,
    /// What is in each piece, packed.
    pieces: Vec<u32>,
}

/// What is in a piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Piece {
    /// Nothing: all its frames are free.
    Unused,
    /// The pages of a slot, in step, behind one 2 MiB leaf.
    Whole(u32),
    /// Pages in any order.
    Mapped(MapId),
}

impl Piece {
    const WHOLE: u32 = 1 << 31;

    const fn pack(self) -> u32 {
        match self {
            Self::Unused => 0,
            Self::Whole(slot) => Self::WHOLE | slot,
            Self::Mapped(map) => map.0 + 1,
        }
    }

    const fn unpack(bits: u32) -> Self {
        match bits {
            0 => Self::Unused,
            bits if bits & Self::WHOLE != 0 => Self::Whole(bits & !Self::WHOLE),
            bits => Self::Mapped(MapId(bits - 1)),
        }
    }
}

/// Where a frame is: its zone, its piece there, its index in that.
#[derive(Clone, Copy)]
struct At {
    zone: usize,
    piece: usize,
    index: u64,
}

/// Bytes of chunks by owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ChunkBytes {
    /// All chunks.
    pub total: u64,
    /// Owned by VMs.
    pub vms: u64,
    /// Owned by the hypervisor for tables.
    pub tables: u64,
}

/// All taggable DRAM that is whole chunks.
pub struct Chunks {
    zones: Vec<Zone>,
    buddy: FrameAllocator<32>,
    bytes: ChunkBytes,
    maps: PieceMaps,
}

/// Frames of a chunk in memory whose tag blocks cover `coverage` frames each; the smallest multiple
/// of the coverage that is whole pieces, if that is not too large.
fn chunk_frames(coverage: u64) -> u64 {
    match lcm(PIECE_FRAMES, coverage) {
        Some(frames) if frames <= MAX_ALIGNED_CHUNK => frames,
        _ => PIECE_FRAMES.div_ceil(coverage).saturating_mul(coverage),
    }
}

/// How many of the `coverage` frames that a tag block covers can have pages: not those of a chunk's
/// tail, see [`Chunks::at`].
pub(crate) fn usable_frames(coverage: u64) -> u64 {
    match chunk_frames(coverage).is_multiple_of(PIECE_FRAMES) {
        true => coverage,
        // Such a chunk is one block's coverage: smaller ones come to whole pieces soon.
        false => whole_pieces(coverage),
    }
}

const fn whole_pieces(frames: u64) -> u64 {
    frames / PIECE_FRAMES * PIECE_FRAMES
}

impl Chunks {
    /// No memory.
    pub fn new() -> Self {
        Self {
            zones: Vec::new(),
            buddy: FrameAllocator::new(),
            bytes: ChunkBytes::default(),
            maps: PieceMaps::new(),
        }
    }

    /// Adds the chunks of a `run` of taggable DRAM. Its tag blocks cover `coverage` frames each,
    /// counted from `origin` (at or below the run). Returns what is too small for a chunk, at both
    /// ends; `None` if the heap has no room for 2 bytes a chunk.
    pub fn add(
        &mut self,
        run: FrameRange,
        origin: Frame,
        coverage: u64,
    ) -> Option<[FrameRange; 2]> {
        let chunk_frames = chunk_frames(coverage);
        let skip = run.start.number() - origin.number();
        let start = origin.plus(skip.next_multiple_of(chunk_frames));
        let chunks = FrameRange::between(start, run.end()).count / chunk_frames;
        if chunks == 0 {
            return Some([run, FrameRange::new(run.end(), 0)]);
        }
        let frames = FrameRange::new(start, chunks * chunk_frames);
        let first = self
            .zones
            .last()
            .map_or(0, |zone| zone.first + zone.owners.len());
        let owners = try_filled(Owner::Free.pack(), chunks)?;
        let pieces = try_filled(0, chunks * (chunk_frames / PIECE_FRAMES))?;
        self.buddy.add_frame(first, first + owners.len());
        self.bytes.total += frames.bytes();
        self.zones.push(Zone {
            frames,
            chunk_frames,
            first,
            owners,
            pieces,
        });
        let (low, high) = run.without(frames);
        Some([low, high])
    }

    /// Gives a chunk to `owner`. Its data and tags are whatever they were.
    pub fn alloc(&mut self, owner: Owner) -> Option<ChunkId> {
        let chunk = ChunkId(self.buddy.alloc(1)? as u32);
        let (zone, index) = self.locate_mut(chunk)?;
        *zone.owners.get_mut(index)? = owner.pack();
        let bytes = zone.chunk_frames * PAGE_SIZE;
        self.count(owner, |count| count + bytes);
        Some(chunk)
    }

    /// Takes a chunk back from `owner`; refused if that is not its owner.
    pub fn free(&mut self, chunk: ChunkId, owner: Owner) -> Result<(), NotOwned> {
        let frames = self.frames(chunk);
        if owner == Owner::Free || self.owner(chunk) != owner {
            return Err(NotOwned(frames.start));
        }
        if let Some((zone, index)) = self.locate_mut(chunk)
            && let Some(entry) = zone.owners.get_mut(index)
        {
            *entry = Owner::Free.pack();
        }
        self.buddy.dealloc(chunk.0 as usize, 1);
        self.count(owner, |count| count - frames.bytes());
        Ok(())
    }

    /// The chunk's owner; a chunk that does not exist is [`Owner::Free`].
    pub fn owner(&self, chunk: ChunkId) -> Owner {
        let zone = self
            .zones
            .iter()
            .rev()
            .find(|zone| zone.first <= chunk.0 as usize);
        let bits = zone.and_then(|zone| zone.owners.get(chunk.0 as usize - zone.first));
        bits.map_or(Owner::Free, |&bits| Owner::unpack(bits))
    }

    /// The frames of a chunk.
    pub fn frames(&self, chunk: ChunkId) -> FrameRange {
        let zone = self
            .zones
            .iter()
            .rev()
            .find(|zone| zone.first <= chunk.0 as usize);
        zone.map_or(FrameRange::new(Frame::from_number(0), 0), |zone| {
            let skip = (chunk.0 as usize - zone.first) as u64 * zone.chunk_frames;
            FrameRange::new(zone.frames.start.plus(skip), zone.chunk_frames)
        })
    }

    /// The chunk that `frame` is part of.
    pub fn chunk_of(&self, frame: Frame) -> Option<ChunkId> {
        let zone = self.zones.iter().find(|zone| zone.frames.contains(frame))?;
        let index = (frame.number() - zone.frames.start.number()) / zone.chunk_frames;
        Some(ChunkId((zone.first as u64 + index) as u32))
    }

    /// Bytes by owner, as counted at each change.
    pub const fn bytes(&self) -> ChunkBytes {
        self.bytes
    }

    /// Bytes by owner, counted anew from the ownership table.
    pub(crate) fn recount(&self) -> ChunkBytes {
        let mut bytes = ChunkBytes::default();
        for zone in &self.zones {
            for &owner in &zone.owners {
                let chunk = zone.chunk_frames * PAGE_SIZE;
                bytes.total += chunk;
                match Owner::unpack(owner) {
                    Owner::Free => {}
                    Owner::Tables => bytes.tables += chunk,
                    Owner::Vm(_) => bytes.vms += chunk,
                }
            }
        }
        bytes
    }

    /// The owner of the chunk that `frame` is part of; [`Owner::Free`] if it is part of none.
    pub(crate) fn owner_of(&self, frame: Frame) -> Owner {
        let zone = self.zones.iter().find(|zone| zone.frames.contains(frame));
        let bits = zone.and_then(|zone| {
            let index = (frame.number() - zone.frames.start.number()) / zone.chunk_frames;
            zone.owners.get(index as usize)
        });
        bits.map_or(Owner::Free, |&bits| Owner::unpack(bits))
    }

    /// Whether all chunks are of one size.
    pub(crate) fn are_alike(&self) -> bool {
        let largest = self.largest();
        let mut sizes = self.zones.iter().map(|zone| zone.chunk_frames * PAGE_SIZE);
        sizes.all(|size| size == largest)
    }

    /// Bytes of the largest chunk.
    pub(crate) fn largest(&self) -> u64 {
        let sizes = self.zones.iter().map(|zone| zone.chunk_frames * PAGE_SIZE);
        sizes.max().unwrap_or(0)
    }

    /// The most pieces that a chunk has.
    pub(crate) fn largest_pieces(&self) -> usize {
        (self.largest() / PIECE_BYTES) as usize
    }

    /// Bytes of chunks that it takes to be sure that `bytes` of pages fit, whichever chunks they are.
    pub(crate) fn bytes_for(&self, bytes: u64) -> u64 {
        let most = self.zones.iter().map(|zone| {
            let used = whole_pieces(zone.chunk_frames) * PAGE_SIZE;
            bytes
                .div_ceil(used)
                .saturating_mul(zone.chunk_frames * PAGE_SIZE)
        });
        let whole = bytes.checked_next_multiple_of(self.largest().max(PIECE_BYTES));
        most.fold(whole.unwrap_or(u64::MAX), u64::max)
    }

    /// Bytes of chunks that nobody owns.
    pub(crate) const fn free_bytes(&self) -> u64 {
        self.bytes.total - self.bytes.vms - self.bytes.tables
    }

    /// The pieces of a chunk, by their first frames.
    pub(crate) fn pieces(&self, chunk: ChunkId) -> impl Iterator<Item = Frame> + use<> {
        let frames = self.frames(chunk);
        (0..frames.count / PIECE_FRAMES).map(move |number| frames.start.plus(number * PIECE_FRAMES))
    }

    /// The first frame of the piece that `frame` is part of.
    pub(crate) fn piece_start(&self, frame: Frame) -> Option<Frame> {
        let at = self.at(frame)?;
        Some(Frame::from_number(frame.number() - at.index))
    }

    /// What is in the piece that `frame` is part of; no piece is [`Piece::Unused`].
    pub(crate) fn piece(&self, frame: Frame) -> Piece {
        self.at(frame).map_or(Piece::Unused, |at| self.piece_at(at))
    }

    /// The map of the piece that `frame` is part of, if it has one.
    pub(crate) fn map(&self, frame: Frame) -> Option<&PieceMap> {
        match self.piece(frame) {
            Piece::Mapped(map) => self.maps.get(map),
            Piece::Unused | Piece::Whole(_) => None,
        }
    }

    /// The page in `frame`, if there is one.
    pub(crate) fn page_in(&self, frame: Frame) -> Option<Page> {
        let at = self.at(frame)?;
        match self.piece_at(at) {
            Piece::Unused => None,
            Piece::Whole(slot) => Some(Page::in_slot(slot, at.index)),
            Piece::Mapped(map) => self.maps.get(map)?.page(at.index),
        }
    }

    /// Whether the page in `frame` has tag access.
    pub(crate) fn is_tagged(&self, frame: Frame) -> bool {
        self.at(frame).is_some_and(|at| match self.piece_at(at) {
            Piece::Mapped(map) => self
                .maps
                .get(map)
                .is_some_and(|map| map.is_tagged(at.index)),
            Piece::Unused | Piece::Whole(_) => false,
        })
    }

    /// Makes the unused piece at `base` the home of a slot that one 2 MiB leaf maps.
    pub(crate) fn fill_piece(&mut self, base: Frame, slot: u32) {
        self.set_piece(base, Piece::Whole(slot));
    }

    /// A map for a piece; `None` if the heap has no room.
    pub(crate) fn alloc_map(&mut self) -> Option<MapId> {
        self.maps.alloc()
    }

    /// Gives a map back that no piece has.
    pub(crate) fn free_map(&mut self, map: MapId) {
        self.maps.free(map);
    }

    /// Gives the piece at `base`, which has none, a map as the home of `slot`: empty if it is unused,
    /// in step if it is whole.
    pub(crate) fn open_piece(&mut self, base: Frame, slot: u32, id: MapId) {
        let piece = self.piece(base);
        if let Some(map) = self.maps.get_mut(id) {
            *map = match piece {
                Piece::Whole(slot) => PieceMap::in_step(slot),
                Piece::Unused | Piece::Mapped(_) => PieceMap::new(slot),
            };
        }
        self.set_piece(base, Piece::Mapped(id));
    }

    /// Takes the map of the uniform piece that `frame` is part of away: one 2 MiB leaf maps it.
    pub(crate) fn join_piece(&mut self, frame: Frame) {
        if let Piece::Mapped(id) = self.piece(frame) {
            let slot = self.maps.get(id).map_or(0, PieceMap::slot);
            self.maps.free(id);
            self.set_piece(frame, Piece::Whole(slot));
        }
    }

    /// Empties a piece.
    pub(crate) fn clear_piece(&mut self, base: Frame) {
        if let Piece::Mapped(id) = self.piece(base) {
            self.maps.free(id);
        }
        self.set_piece(base, Piece::Unused);
    }

    /// Changes the map of the piece that `frame` is part of; nothing happens if it has none.
    pub(crate) fn update(&mut self, frame: Frame, change: impl FnOnce(&mut PieceMap, u64)) {
        let Some(at) = self.at(frame) else { return };
        if let Piece::Mapped(id) = self.piece_at(at)
            && let Some(map) = self.maps.get_mut(id)
        {
            change(map, at.index);
        }
    }

    /// Notes whether the page in `frame` has tag access.
    pub(crate) fn set_tagged(&mut self, frame: Frame, tagged: bool) {
        self.update(frame, |map, index| map.set_tagged(index, tagged));
    }

    /// Puts a page without tag access into `frame`, whose piece has a map. Returns the slot that the
    /// piece is the home of if it is full since then.
    pub(crate) fn place(&mut self, frame: Frame, page: Page) -> Option<u32> {
        let at = self.at(frame)?;
        let Piece::Mapped(id) = self.piece_at(at) else {
            return None;
        };
        let map = self.maps.get_mut(id)?;
        let before = map.used_count();
        map.place(at.index, page);
        let is_full_now = map.used_count() != before && u64::from(map.used_count()) == PIECE_FRAMES;
        is_full_now.then(|| map.slot())
    }

    /// A frame of `coverage` without a page, else one whose page has no tag access.
    pub(crate) fn room(&self, coverage: FrameRange) -> Option<(Frame, Option<Page>)> {
        self.each_part(coverage, |start, at, end| {
            let room = match self.piece_at(at) {
                Piece::Unused => Room {
                    index: at.index,
                    page: None,
                },
                Piece::Whole(slot) => Room {
                    index: at.index,
                    page: Some(Page::in_slot(slot, at.index)),
                },
                Piece::Mapped(map) => self.maps.get(map)?.room(at.index, end)?,
            };
            Some((start.plus(room.index - at.index), room.page))
        })
    }

    /// A frame of `coverage` with tag access.
    pub(crate) fn first_tagged(&self, coverage: FrameRange) -> Option<Frame> {
        self.each_part(coverage, |start, at, end| match self.piece_at(at) {
            Piece::Mapped(map) => {
                let index = self.maps.get(map)?.first_tagged(at.index, end)?;
                Some(start.plus(index - at.index))
            }
            Piece::Unused | Piece::Whole(_) => None,
        })
    }

    /// Calls `look` for the part of `frames` in each piece until it finds something: the part's first
    /// frame, where that is, and the index in the piece at which the part ends.
    fn each_part<T>(
        &self,
        frames: FrameRange,
        look: impl Fn(Frame, At, u64) -> Option<T>,
    ) -> Option<T> {
        let mut start = frames.start;
        while start < frames.end() {
            let at = self.at(start)?;
            let left = FrameRange::between(start, frames.end()).count;
            let end = PIECE_FRAMES.min(at.index + left);
            if let Some(found) = look(start, at, end) {
                return Some(found);
            }
            start = start.plus(end - at.index);
        }
        None
    }

    fn at(&self, frame: Frame) -> Option<At> {
        let zone = self
            .zones
            .iter()
            .position(|zone| zone.frames.contains(frame))?;
        let Zone {
            frames,
            chunk_frames,
            ..
        } = self.zones.get(zone)?;
        let offset = frame.number() - frames.start.number();
        let (chunk, inside) = (offset / chunk_frames, offset % chunk_frames);
        let pieces = chunk_frames / PIECE_FRAMES;
        let piece = inside / PIECE_FRAMES;
        // A chunk of an odd coverage has a tail that is no whole piece, and that nobody uses.
        (piece < pieces).then_some(At {
            zone,
            piece: (chunk * pieces + piece) as usize,
            index: inside % PIECE_FRAMES,
        })
    }

    fn piece_at(&self, at: At) -> Piece {
        let zone = self.zones.get(at.zone);
        let bits = zone.and_then(|zone| zone.pieces.get(at.piece));
        bits.map_or(Piece::Unused, |&bits| Piece::unpack(bits))
    }

    fn set_piece(&mut self, frame: Frame, piece: Piece) {
        if let Some(at) = self.at(frame)
            && let Some(zone) = self.zones.get_mut(at.zone)
            && let Some(bits) = zone.pieces.get_mut(at.piece)
        {
            *bits = piece.pack();
        }
    }

    /// Bytes of the ownership table, and of what tells what is in the pieces.
    pub fn metadata_bytes(&self) -> u64 {
        let zone = |zone: &Zone| (2 * zone.owners.len() + 4 * zone.pieces.len()) as u64;
        self.zones.iter().map(zone).sum::<u64>() + self.maps.metadata_bytes()
    }

    fn locate_mut(&mut self, chunk: ChunkId) -> Option<(&mut Zone, usize)> {
        let number = chunk.0 as usize;
        let zone = self
            .zones
            .iter_mut()
            .rev()
            .find(|zone| zone.first <= number)?;
        let index = number - zone.first;
        Some((zone, index))
    }

    fn count(&mut self, owner: Owner, change: impl FnOnce(u64) -> u64) {
        match owner {
            Owner::Free => {}
            Owner::Tables => self.bytes.tables = change(self.bytes.tables),
            Owner::Vm(_) => self.bytes.vms = change(self.bytes.vms),
        }
    }
}

impl Default for Chunks {
    fn default() -> Self {
        Self::new()
    }
}

/// Where a run of table frames comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    /// DRAM that cannot have tags.
    Untaggable,
    /// Taggable DRAM, too small for a chunk.
    Fragment,
    /// A chunk, which goes back when its last table is freed.
    Chunk(ChunkId),
}

/// A run of frames for tables, and which of them are in use.
#[derive(Debug)]
struct Run {
    frames: FrameRange,
    source: Source,
    taken: Vec<u64>,
    used: u64,
    /// No bit below this word is clear.
    full_words: usize,
}

/// Bytes of frames for tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TableBytes {
    /// In use, anywhere.
    pub used: u64,
    /// Not in use, in DRAM that cannot have tags.
    pub untaggable_free: u64,
    /// Not in use, in taggable DRAM that is no chunk.
    pub fragments_free: u64,
    /// Not in use, in chunks.
    pub chunks_free: u64,
}

/// Frames for stage-2 tables: first DRAM that can do nothing better.
#[derive(Default)]
pub struct TableFrames {
    runs: Vec<Run>,
}

impl TableFrames {
    /// No memory.
    pub const fn new() -> Self {
        Self { runs: Vec::new() }
    }

    /// Adds a run of DRAM that cannot have tags. To be called before
    /// [`add_fragment`](Self::add_fragment), as runs are used in their order. `None` if the heap
    /// has no room for a bit a frame.
    pub fn add_untaggable(&mut self, frames: FrameRange) -> Option<()> {
        self.push(frames, Source::Untaggable)
    }

    /// Adds a run of taggable DRAM that is too small for a chunk.
    /// `None` if the heap has no room for a bit a frame.
    pub fn add_fragment(&mut self, frames: FrameRange) -> Option<()> {
        self.push(frames, Source::Fragment)
    }

    /// Takes a frame, from `chunks` if there is no other. Its contents are whatever they were.
    pub fn alloc(&mut self, chunks: &mut Chunks) -> Option<Frame> {
        if let Some(run) = self.runs.iter_mut().find(|run| run.used < run.frames.count) {
            return run.take();
        }
        let chunk = chunks.alloc(Owner::Tables)?;
        if self
            .push(chunks.frames(chunk), Source::Chunk(chunk))
            .is_none()
        {
            // It was ours a moment ago, so this cannot be refused.
            let _ = chunks.free(chunk, Owner::Tables);
            return None;
        }
        self.runs.last_mut()?.take()
    }

    /// Gives a frame back; refused if it is not in use.
    pub fn free(&mut self, chunks: &mut Chunks, frame: Frame) -> Result<(), NotOwned> {
        let number = self.runs.iter().position(|run| run.frames.contains(frame));
        let number = number.ok_or(NotOwned(frame))?;
        let run = self.runs.get_mut(number).ok_or(NotOwned(frame))?;
        run.give_back(frame)?;
        if let (0, Source::Chunk(chunk)) = (run.used, run.source) {
            self.runs.swap_remove(number);
            chunks.free(chunk, Owner::Tables)?;
        }
        Ok(())
    }

    /// Bytes of all frames that are in no chunk.
    pub(crate) fn own_bytes(&self) -> u64 {
        let own = self
            .runs
            .iter()
            .filter(|run| !matches!(run.source, Source::Chunk(_)));
        own.map(|run| run.frames.bytes()).sum()
    }

    /// Whether a frame is in use.
    pub(crate) fn is_used(&self, frame: Frame) -> bool {
        let run = self.runs.iter().find(|run| run.frames.contains(frame));
        run.is_some_and(|run| {
            let offset = frame.number() - run.frames.start.number();
            let word = run.taken.get((offset / 64) as usize);
            word.is_some_and(|word| word >> (offset % 64) & 1 != 0)
        })
    }

    /// Bytes in use and not.
    pub fn bytes(&self) -> TableBytes {
        self.count(|run| run.used)
    }

    /// The same, counted anew from the bitmaps.
    pub(crate) fn recount(&self) -> TableBytes {
        self.count(|run| {
            run.taken
                .iter()
                .map(|word| u64::from(word.count_ones()))
                .sum()
        })
    }

    /// Bytes of the bitmaps.
    pub fn metadata_bytes(&self) -> u64 {
        self.runs.iter().map(|run| 8 * run.taken.len() as u64).sum()
    }

    fn count(&self, used: impl Fn(&Run) -> u64) -> TableBytes {
        self.runs
            .iter()
            .fold(TableBytes::default(), |mut sum, run| {
                let used = used(run);
                let free = (run.frames.count - used) * PAGE_SIZE;
                sum.used += used * PAGE_SIZE;
                match run.source {
                    Source::Untaggable => sum.untaggable_free += free,
                    Source::Fragment => sum.fragments_free += free,
                    Source::Chunk(_) => sum.chunks_free += free,
                }
                sum
            })
    }

    fn push(&mut self, frames: FrameRange, source: Source) -> Option<()> {
        if !frames.is_empty() {
            let taken = try_filled(0, frames.count.div_ceil(64))?;
            self.runs.try_reserve(1).ok()?;
            self.runs.push(Run {
                frames,
                source,
                taken,
                used: 0,
                full_words: 0,
            });
        }
        Some(())
    }
}

impl Run {
    fn take(&mut self) -> Option<Frame> {
        let words = self.taken.iter_mut().enumerate().skip(self.full_words);
        for (number, word) in words {
            if *word != u64::MAX {
                let bit = word.trailing_ones();
                *word |= 1 << bit;
                self.full_words = number;
                self.used += 1;
                return Some(self.frames.start.plus(number as u64 * 64 + u64::from(bit)));
            }
        }
        None
    }

    fn give_back(&mut self, frame: Frame) -> Result<(), NotOwned> {
        let offset = frame.number() - self.frames.start.number();
        let (number, bit) = ((offset / 64) as usize, 1 << (offset % 64));
        match self.taken.get_mut(number) {
            Some(word) if *word & bit != 0 => *word &= !bit,
            _ => return Err(NotOwned(frame)),
        }
        self.full_words = self.full_words.min(number);
        self.used -= 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::PhysAddr;

    fn frame(pa: u64) -> Frame {
        Frame::from_addr(PhysAddr::new(pa)).unwrap()
    }

    fn run(base: u64, bytes: u64) -> FrameRange {
        FrameRange::new(frame(base), bytes / PAGE_SIZE)
    }

    const MIB: u64 = 1 << 20;

    fn vm(index: u16) -> Owner {
        Owner::Vm(VmId::new(index).unwrap())
    }

    #[test]
    fn a_chunk_is_whole_pieces_and_whole_coverages() {
        for (block, chunk) in [
            (0x1000, 2),
            (0x2000, 2),
            (0x3000, 6),
            (0x8000, 2),
            (0x20000, 4),
        ] {
            assert_eq!(
                chunk_frames(block / 128),
                chunk * MIB / PAGE_SIZE,
                "block {block:#x}"
            );
        }
        // 16 MiB + 4 KiB: whole pieces would take 8 GiB; whole coverages suffice.
        assert_eq!(chunk_frames(4096 * 4097 / 128), 4096 * 4097 / 128);
    }

    #[test]
    fn what_a_chunks_tail_covers_is_not_counted_on() {
        for (coverage, usable) in [(32, 32), (96, 96), (256, 256), (1024, 1024), (2144, 2048)] {
            assert_eq!(usable_frames(coverage), usable, "coverage {coverage}");
        }
        let mut chunks = Chunks::new();
        assert_eq!(chunks.bytes_for(3 * MIB), 4 * MIB);
        chunks.add(run(0, 17 * MIB), frame(0), 2144).unwrap();
        let chunk = 2144 * PAGE_SIZE;
        assert_eq!(chunks.bytes().total, 2 * chunk);
        assert_eq!(chunks.bytes_for(8 * MIB), chunk);
        assert_eq!(chunks.bytes_for(8 * MIB + PAGE_SIZE), 2 * chunk);
        // A chunk without a tail holds less.
        chunks.add(run(32 * MIB, 2 * MIB), frame(0), 32).unwrap();
        assert_eq!(chunks.bytes_for(2 * MIB), chunk);
        let pieces = chunks.pieces(chunks.chunk_of(frame(0)).unwrap());
        assert_eq!(pieces.count(), 4);
        assert_eq!(chunks.piece_start(frame(8 * MIB)), None, "the tail");
    }

    #[test]
    fn chunks_start_on_coverage_bounds_of_their_region_and_the_rest_is_fragments() {
        let mut chunks = Chunks::new();
        // Tagged memory starts at 1 MiB, coverage 384 KiB: chunks of 6 MiB at 1 MiB + 6 MiB * n.
        let rest = chunks.add(run(2 * MIB, 30 * MIB), frame(MIB), 96).unwrap();
        assert_eq!(rest, [run(2 * MIB, 5 * MIB), run(31 * MIB, MIB)]);
        let chunk = chunks.alloc(vm(0)).unwrap();
        assert_eq!(chunks.frames(chunk), run(7 * MIB, 6 * MIB));
        assert_eq!(chunks.chunk_of(frame(12 * MIB)), Some(chunk));
        assert_eq!(chunks.chunk_of(frame(2 * MIB)), None);
    }

    #[test]
    fn a_chunk_has_one_owner_and_a_double_free_is_refused() {
        let mut chunks = Chunks::new();
        chunks.add(run(0, 8 * MIB), frame(0), 32).unwrap();
        let one = chunks.alloc(vm(0)).unwrap();
        let two = chunks.alloc(vm(1)).unwrap();
        assert_ne!(one, two);
        assert!(chunks.free(one, vm(1)).is_err(), "not its owner");
        chunks.free(one, vm(0)).unwrap();
        assert!(chunks.free(one, vm(0)).is_err(), "twice");
        assert!(
            chunks.free(one, Owner::Free).is_err(),
            "nobody owns nothing"
        );
        let mut seen = vec![two];
        while let Some(chunk) = chunks.alloc(vm(2)) {
            assert!(!seen.contains(&chunk), "one chunk, two owners");
            seen.push(chunk);
        }
        assert_eq!(seen.len(), 4);
        assert_eq!(chunks.bytes(), chunks.recount());
        assert_eq!(chunks.bytes().vms, 8 * MIB);
    }

    #[test]
    fn tables_use_untaggable_dram_then_fragments_then_chunks_and_give_chunks_back() {
        let mut chunks = Chunks::new();
        chunks.add(run(0, 4 * MIB), frame(0), 32).unwrap();
        let mut tables = TableFrames::new();
        tables
            .add_untaggable(run(0x8000_0000, 2 * PAGE_SIZE))
            .unwrap();
        tables.add_fragment(run(0x9000_0000, PAGE_SIZE)).unwrap();
        let frames: Vec<_> = (0..4).map(|_| tables.alloc(&mut chunks).unwrap()).collect();
        assert_eq!(frames[..2], [frame(0x8000_0000), frame(0x8000_1000)]);
        assert_eq!(frames[2], frame(0x9000_0000));
        assert!(chunks.chunk_of(frames[3]).is_some());
        assert_eq!(chunks.bytes().tables, 2 * MIB);
        for &frame in &frames {
            tables.free(&mut chunks, frame).unwrap();
            assert!(tables.free(&mut chunks, frame).is_err(), "twice");
        }
        assert_eq!(chunks.bytes().tables, 0);
        assert_eq!((tables.bytes().used, tables.bytes()), (0, tables.recount()));
        assert!(
            tables.free(&mut chunks, frame(0x7000_0000)).is_err(),
            "not a table frame"
        );
    }

    #[test]
    fn a_run_that_is_no_multiple_of_64_frames_gives_only_its_own() {
        let (mut chunks, mut tables) = (Chunks::new(), TableFrames::new());
        tables.add_untaggable(run(0x1000, 70 * PAGE_SIZE)).unwrap();
        let frames: Vec<_> = core::iter::from_fn(|| tables.alloc(&mut chunks)).collect();
        assert_eq!(frames.len(), 70);
        tables.free(&mut chunks, frames[3]).unwrap();
        tables.free(&mut chunks, frames[69]).unwrap();
        assert_eq!(tables.alloc(&mut chunks), Some(frames[3]));
        assert_eq!(tables.alloc(&mut chunks), Some(frames[69]));
        assert_eq!(tables.alloc(&mut chunks), None);
    }
}
