//! DRAM, and where in it tags are. What is here has reached the point of coherency.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::GRANULE;
use crate::addr::{Frame, FrameRange, PAGE_SIZE, PhysAddr};
use crate::region::TagRegionDesc;

/// Granules of a frame.
pub(super) const GRANULES: usize = (PAGE_SIZE / GRANULE) as usize;

/// The bytes of a frame.
pub(super) type Page = Box<[u8; PAGE_SIZE as usize]>;
/// The tags of a frame.
pub(super) type Tags = Box<[u8; GRANULES]>;

/// Where a tag is: a byte of the carve-out and the shift of its nibble, or out of sight.
pub(super) enum TagPlace {
    Storage(PhysAddr, u32),
    Hidden,
}

#[derive(Default)]
pub(super) struct Memory {
    regions: Vec<TagRegionDesc>,
    hidden: Vec<FrameRange>,
    frames: BTreeMap<Frame, Page>,
    hidden_tags: BTreeMap<u64, u8>,
}

impl Memory {
    pub(super) fn new(regions: Vec<TagRegionDesc>, hidden: Vec<FrameRange>) -> Self {
        Self {
            regions,
            hidden,
            ..Self::default()
        }
    }

    pub(super) fn byte(&self, pa: PhysAddr) -> u8 {
        let page = self.frames.get(&Frame::containing(pa));
        page.and_then(|page| page.get(offset(pa)).copied())
            .unwrap_or_else(|| garbage(pa))
    }

    pub(super) fn set_byte(&mut self, pa: PhysAddr, value: u8) {
        if let Some(byte) = self.page(Frame::containing(pa)).get_mut(offset(pa)) {
            *byte = value;
        }
    }

    /// A frame, if anything was ever written to it.
    pub(super) fn written(&self, frame: Frame) -> Option<&Page> {
        self.frames.get(&frame)
    }

    pub(super) fn page(&mut self, frame: Frame) -> &mut Page {
        self.frames.entry(frame).or_insert_with(|| {
            let mut page = Box::new([0; PAGE_SIZE as usize]);
            for (byte, address) in page.iter_mut().zip(frame.addr().get()..) {
                *byte = garbage(PhysAddr::new(address));
            }
            page
        })
    }

    /// Whether the frame lies in a carve-out.
    pub(super) fn is_storage(&self, frame: Frame) -> bool {
        let at = frame.addr();
        self.regions
            .iter()
            .any(|r| at >= r.tags_base && at.get() - r.tags_base.get() < r.tags_bytes)
    }

    /// Whether the frame has tags, in sight of software or not.
    pub(super) fn is_taggable(&self, frame: Frame) -> bool {
        self.tag_place(frame.addr()).is_some()
    }

    pub(super) fn tag(&self, pa: PhysAddr) -> u8 {
        match self.tag_place(pa) {
            Some(TagPlace::Storage(place, shift)) => self.byte(place) >> shift & 0xf,
            Some(TagPlace::Hidden) => self
                .hidden_tags
                .get(&(pa.get() / GRANULE))
                .copied()
                .unwrap_or(garbage(pa) & 0xf),
            None => 0,
        }
    }

    pub(super) fn set_tag(&mut self, pa: PhysAddr, tag: u8) {
        match self.tag_place(pa) {
            Some(TagPlace::Storage(place, shift)) => {
                let other = self.byte(place) & 0xf << (4 - shift);
                self.set_byte(place, other | (tag & 0xf) << shift);
            }
            Some(TagPlace::Hidden) => {
                self.hidden_tags.insert(pa.get() / GRANULE, tag & 0xf);
            }
            None => {}
        }
    }

    pub(super) fn tags(&self, frame: Frame) -> Tags {
        let mut tags = Box::new([0; GRANULES]);
        for (tag, pa) in tags.iter_mut().zip(granules(frame)) {
            *tag = self.tag(pa);
        }
        tags
    }

    pub(super) fn set_tags(&mut self, frame: Frame, tags: &Tags) {
        for (&tag, pa) in tags.iter().zip(granules(frame)) {
            self.set_tag(pa, tag);
        }
    }

    pub(super) fn tag_place(&self, pa: PhysAddr) -> Option<TagPlace> {
        let frame = Frame::containing(pa);
        if self.hidden.iter().any(|range| range.contains(frame)) {
            return Some(TagPlace::Hidden);
        }
        let holds = |base: PhysAddr, bytes| pa >= base && pa.get() - base.get() < bytes;
        let region = self
            .regions
            .iter()
            .find(|r| holds(r.tagged_base, r.tagged_bytes))?;
        let block = (1..)
            .map(|n| n * PAGE_SIZE)
            .find(|b| b % u64::from(region.block_size) == 0)?;
        let offset = pa.get() - region.tagged_base.get();
        let within = interleave(offset / 32 % block, block / PAGE_SIZE);
        let place = region.tags_base.get() + offset / 32 / block * block + within;
        Some(TagPlace::Storage(
            PhysAddr::new(place),
            (offset / GRANULE % 2) as u32 * 4,
        ))
    }
}

/// Each granule of a frame.
fn granules(frame: Frame) -> impl Iterator<Item = PhysAddr> {
    let base = frame.addr().get();
    (base..base + PAGE_SIZE)
        .step_by(GRANULE as usize)
        .map(PhysAddr::new)
}

pub(super) const fn offset(pa: PhysAddr) -> usize {
    (pa.get() % PAGE_SIZE) as usize
}

/// What a boot stage left in memory: not 0, not the same everywhere.
const fn garbage(pa: PhysAddr) -> u8 {
    (pa.get().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 | 0x11
}

/// Tag storage is interleaved inside a block, in stripes of 16 bytes: nobody may count on more than
/// the block.
const fn interleave(offset: u64, pages: u64) -> u64 {
    let (stripe, byte) = (offset / 16, offset % 16);
    stripe % pages * PAGE_SIZE + stripe / pages * 16 + byte
}
