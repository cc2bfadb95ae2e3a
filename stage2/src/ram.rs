//! The RAM of one VM: which host memory is behind which guest addresses. Lock rank: memory.
//!
//! A VM's taggable memory is pieces of 2 MiB. Each is the home of one 2 MiB slot of guest addresses;
//! a page whose frame at home is free goes there, so that one leaf can map the slot. Other pages
//! are where there was room.

use alloc::vec::Vec;

use crate::addr::{Frame, Ipa, PAGE_SHIFT, try_filled};
use crate::bitset::BitSet;
use crate::frames::{PIECE_BYTES, PIECE_FRAMES, VmId};
use crate::guest::{GuestSpec, MemError};
use crate::pieces::Page;

/// The RAM of a VM.
#[derive(Debug)]
pub(crate) struct Ram {
    pub(crate) vm: VmId,
    base: Ipa,
    bytes: u64,
    /// The piece that is the home of each slot.
    pub(crate) homes: Vec<Option<Frame>>,
    /// Slots without a home.
    pub(crate) homeless: BitSet,
    /// Slots whose home has a frame without a page.
    pub(crate) roomy: BitSet,
    /// Pieces that are no home: unused. There is room for all that the VM has.
    pub(crate) spare: Vec<Frame>,
    /// Pieces that the VM has.
    pub(crate) owned: usize,
    /// Frames of tag storage with its pages.
    pub(crate) lent: u64,
}

impl Ram {
    /// The RAM of a new VM, nothing of it anywhere; `None` if the heap has no room for its maps. A
    /// chunk is `pieces`: what the VM may have beyond its RAM is the home of slots beyond it.
    pub(crate) fn new(spec: &GuestSpec, pieces: u64) -> Option<Self> {
        let first = spec.ram_base.get() / PIECE_BYTES;
        let slots = (spec.ram_base.get() + spec.ram_bytes).div_ceil(PIECE_BYTES) - first;
        let slots = slots + 2 * pieces;
        let mut homeless = BitSet::new(slots)?;
        (0..slots).for_each(|slot| homeless.insert(slot));
        Some(Self {
            vm: spec.vm,
            base: spec.ram_base,
            bytes: spec.ram_bytes,
            homes: try_filled(None, slots)?,
            homeless,
            roomy: BitSet::new(slots)?,
            spare: Vec::new(),
            owned: 0,
            lent: 0,
        })
    }

    /// Bytes of the maps.
    pub(crate) fn metadata_bytes(&self) -> u64 {
        let sets = self.homeless.metadata_bytes() + self.roomy.metadata_bytes();
        size_of_val(self.homes.as_slice()) as u64 + sets
    }

    /// The page of an address, if it is RAM.
    pub(crate) fn page(&self, ipa: Ipa) -> Result<Page, MemError> {
        match ipa.get().checked_sub(self.base.get()) {
            Some(offset) if offset < self.bytes => {
                Ok(Page(((ipa.get() - self.origin()) >> PAGE_SHIFT) as u32))
            }
            _ => Err(MemError::NotRam(ipa)),
        }
    }

    /// The first page.
    pub(crate) const fn first_page(&self) -> Page {
        Page(((self.base.get() - self.origin()) >> PAGE_SHIFT) as u32)
    }

    /// The address of a page.
    pub(crate) const fn ipa(&self, page: Page) -> Ipa {
        Ipa::new(self.origin() + ((page.0 as u64) << PAGE_SHIFT))
    }

    /// Whether all 2 MiB of a slot are RAM.
    pub(crate) fn is_whole(&self, slot: u32) -> bool {
        let start = self.origin() + u64::from(slot) * PIECE_BYTES;
        start >= self.base.get() && start + PIECE_BYTES <= self.base.get() + self.bytes
    }

    /// The piece that is the home of a slot.
    pub(crate) fn home(&self, slot: u32) -> Option<Frame> {
        *self.homes.get(slot as usize)?
    }

    pub(crate) fn set_home(&mut self, slot: u32, home: Option<Frame>) {
        if let Some(entry) = self.homes.get_mut(slot as usize) {
            *entry = home;
        }
        match home {
            Some(_) => self.homeless.remove(slot.into()),
            None => self.homeless.insert(slot.into()),
        }
    }

    /// The pieces of the VM, homes or not.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Frame> {
        self.homes.iter().flatten().chain(&self.spare).copied()
    }

    const fn origin(&self) -> u64 {
        self.base.get() & !(PIECE_BYTES - 1)
    }
}

/// The frame of a page in a piece that is its home.
pub(crate) fn at_home(piece: Frame, page: Page) -> Frame {
    debug_assert!(page.offset() < PIECE_FRAMES);
    piece.plus(page.offset())
}
