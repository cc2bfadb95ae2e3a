//! The RAM of one VM: which host memory is behind which guest address. Lock rank: VM tables.

use alloc::vec::Vec;

use crate::addr::{Frame, FrameRange, Ipa, PAGE_SIZE, try_filled};
use crate::frames::{ChunkId, Owner, PIECE_BYTES, PIECE_FRAMES, VmId};
use crate::guest::{GuestSpec, MemError};
use crate::host::HostMemory;

/// The RAM of a VM: which 2 MiB piece of host memory is behind each 2 MiB of guest addresses.
/// Inside a piece both run in step, so that a block can be mapped as one later.
#[derive(Debug)]
pub(crate) struct Ram {
    vm: VmId,
    base: Ipa,
    bytes: u64,
    slots: Vec<Option<Frame>>,
    /// Pieces of the VM's chunks that are behind no guest address yet.
    spare: Vec<Frame>,
}

/// A frame for a page, and where its piece comes from.
pub(crate) struct Place {
    pub(crate) frame: Frame,
    slot: usize,
    piece: Piece,
}

/// Where a piece comes from.
enum Piece {
    /// It is behind its guest addresses already.
    Settled,
    /// The last of the spare ones.
    Spare(Frame),
    /// The first of a new chunk.
    New(ChunkId, FrameRange),
}

impl Ram {
    /// The RAM of a new VM, nothing of it settled; `None` if the heap has no room for the map.
    pub(crate) fn new(spec: GuestSpec) -> Option<Self> {
        let first = spec.ram_base.get() / PIECE_BYTES;
        let end = (spec.ram_base.get() + spec.ram_bytes).div_ceil(PIECE_BYTES);
        Some(Self {
            vm: spec.vm,
            base: spec.ram_base,
            bytes: spec.ram_bytes,
            slots: try_filled(None, end - first)?,
            spare: Vec::new(),
        })
    }

    /// Bytes of the map.
    pub(crate) fn metadata_bytes(&self) -> u64 {
        size_of_val(self.slots.as_slice()) as u64
    }

    /// The pieces of the VM, behind a guest address or not.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Frame> {
        self.slots.iter().flatten().chain(&self.spare).copied()
    }

    /// The page of an address, if it is RAM.
    pub(crate) fn page(&self, ipa: Ipa) -> Result<Ipa, MemError> {
        match ipa.get().checked_sub(self.base.get()) {
            Some(offset) if offset < self.bytes => Ok(ipa.page()),
            _ => Err(MemError::NotRam(ipa)),
        }
    }

    fn slot(&self, ipa: Ipa) -> usize {
        (ipa.get() / PIECE_BYTES - self.base.get() / PIECE_BYTES) as usize
    }

    /// The frame behind an address, if that is decided.
    pub(crate) fn home(&self, ipa: Ipa) -> Option<Frame> {
        let ipa = self.page(ipa).ok()?;
        Some(frame_in((*self.slots.get(self.slot(ipa))?)?, ipa))
    }

    /// Finds a frame for a page of RAM, and takes a chunk if that needs one.
    pub(crate) fn place(&mut self, host: &mut HostMemory, ipa: Ipa) -> Option<Place> {
        let slot = self.slot(ipa);
        let (base, piece) = match (*self.slots.get(slot)?, self.spare.last()) {
            (Some(base), _) => (base, Piece::Settled),
            (None, Some(&base)) => (base, Piece::Spare(base)),
            (None, None) => {
                let chunk = host.chunks.alloc(Owner::Vm(self.vm))?;
                let frames = host.chunks.frames(chunk);
                self.spare
                    .reserve((frames.count / PIECE_FRAMES - 1) as usize);
                (frames.start, Piece::New(chunk, frames))
            }
        };
        Some(Place {
            frame: frame_in(base, ipa),
            slot,
            piece,
        })
    }

    /// Undoes [`place`](Self::place) for an operation that is refused; returns why it is refused.
    pub(crate) fn give_back(
        &self,
        host: &mut HostMemory,
        place: Place,
        cause: MemError,
    ) -> MemError {
        match place.piece {
            Piece::Settled | Piece::Spare(_) => cause,
            Piece::New(chunk, _) => {
                let freed = host.chunks.free(chunk, Owner::Vm(self.vm));
                freed.map_or_else(MemError::from, |()| cause)
            }
        }
    }

    /// Settles what [`place`](Self::place) found.
    pub(crate) fn adopt(&mut self, place: Place) {
        let base = match place.piece {
            Piece::Settled => return,
            Piece::Spare(base) => {
                self.spare.pop();
                base
            }
            Piece::New(_, frames) => {
                let pieces = 1..frames.count / PIECE_FRAMES;
                let pieces = pieces.map(|number| frames.start.plus(number * PIECE_FRAMES));
                self.spare.extend(pieces.rev());
                frames.start
            }
        };
        if let Some(slot) = self.slots.get_mut(place.slot) {
            *slot = Some(base);
        }
    }

    /// Gives all chunks back.
    pub(crate) fn release(&mut self, host: &mut HostMemory) -> Result<(), MemError> {
        let owner = Owner::Vm(self.vm);
        let mut result = Ok(());
        for piece in self.slots.drain(..).flatten().chain(self.spare.drain(..)) {
            // The first piece of a chunk that is met takes the others with it.
            if let Some(chunk) = host.chunks.chunk_of(piece)
                && host.chunks.owner(chunk) == owner
            {
                result = result.and(host.chunks.free(chunk, owner).map_err(MemError::from));
            }
        }
        result
    }
}

/// The frame of a page inside its 2 MiB piece.
fn frame_in(piece: Frame, ipa: Ipa) -> Frame {
    piece.plus(ipa.get() % PIECE_BYTES / PAGE_SIZE)
}
