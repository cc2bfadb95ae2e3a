//! Tag regions: which DRAM holds the tags of which DRAM, in which blocks.
//!
//! A [`TagRegion`] exists only if its description is sound in every respect; else the whole region
//! is refused, and its carve-out must go to [`MemoryMap::occupied`] as [`Occupant::StaticTags`].

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use crate::addr::{Frame, FrameRange, PAGE_SIZE, PhysAddr, PhysRange, lcm};
use crate::block::MAX_USERS;

/// Bytes of tagged memory whose tags fill one byte: two 4-bit tags of 16 bytes each.
pub const TAG_RATIO: u64 = 32;

/// A range of DRAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dram {
    /// Where.
    pub range: PhysRange,
    /// Whether it has tags at all (`arm,no-mte` says it has not).
    pub taggable: bool,
}

/// Who holds memory that is not ours to give.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Occupant {
    /// The hypervisor's image.
    Image,
    /// The hypervisor's data: the bundle, the device tree, its heap and stacks. Nobody uses tags of it.
    Data,
    /// Firmware, by a reserved range of the device tree.
    Firmware,
    /// The carve-out of a region that was refused: it stays tag storage.
    StaticTags,
}

/// A range of DRAM that is not ours to give.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Occupied {
    /// Where.
    pub range: PhysRange,
    /// Whose.
    pub by: Occupant,
}

/// All DRAM of the machine, and what of it is taken. The ranges of `dram` share no byte.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MemoryMap {
    /// All DRAM, carve-outs included.
    pub dram: Vec<Dram>,
    /// What of it is taken.
    pub occupied: Vec<Occupied>,
}

/// A tag region as the device tree describes it; nothing is believed yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TagRegionDesc {
    /// The carve-out's first byte.
    pub tags_base: PhysAddr,
    /// The carve-out's length in bytes.
    pub tags_bytes: u64,
    /// The first byte of the memory whose tags it holds.
    pub tagged_base: PhysAddr,
    /// The length of that memory in bytes.
    pub tagged_bytes: u64,
    /// `block-size` in bytes: any number from 1 up.
    pub block_size: u32,
}

/// Why a tag region is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RegionError {
    /// `block-size` is 0.
    NoBlockSize,
    /// A range has no bytes.
    Empty(PhysAddr),
    /// A range passes the end of the address space.
    Wraps {
        /// Its first byte.
        base: PhysAddr,
        /// Its length.
        bytes: u64,
    },
    /// A range does not begin and end on a 4 KiB boundary.
    Unaligned(PhysRange),
    /// The carve-out is not 1/32 of the tagged memory, rounded up to whole blocks.
    Size {
        /// The carve-out's length.
        found: u64,
        /// What it should be.
        expected: u64,
    },
    /// A block would have more users than can be counted.
    BlockTooLarge {
        /// The block's length in bytes.
        bytes: u64,
    },
    /// Part of the carve-out is no DRAM.
    OutsideDram(PhysRange),
    /// The region shares memory with itself or with another one.
    Overlap {
        /// Ours.
        ours: PhysRange,
        /// The one it overlaps.
        other: PhysRange,
    },
    /// Something was loaded into the carve-out.
    Loaded {
        /// The carve-out.
        tags: PhysRange,
        /// What was loaded.
        loaded: PhysRange,
    },
}

impl fmt::Display for RegionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoBlockSize => write!(f, "block-size is 0"),
            Self::Empty(base) => write!(f, "the range at {base:#x} is empty"),
            Self::Wraps { base, bytes } => {
                write!(
                    f,
                    "the range at {base:#x} of {bytes:#x} bytes passes the end of memory"
                )
            }
            Self::Unaligned(range) => write!(f, "{range} is not aligned to 4 KiB"),
            Self::Size { found, expected } => {
                write!(
                    f,
                    "the carve-out has {found:#x} bytes, its tagged memory needs {expected:#x}"
                )
            }
            Self::BlockTooLarge { bytes } => write!(f, "a block of {bytes:#x} bytes is too large"),
            Self::OutsideDram(tags) => write!(f, "the carve-out {tags} is not all DRAM"),
            Self::Overlap { ours, other } => write!(f, "{ours} overlaps {other}"),
            Self::Loaded { tags, loaded } => {
                write!(
                    f,
                    "{loaded} was loaded into the carve-out {tags}: load it elsewhere"
                )
            }
        }
    }
}

impl TagRegionDesc {
    /// The carve-out, if it is a range at all.
    pub fn tags(&self) -> Result<PhysRange, RegionError> {
        range(self.tags_base, self.tags_bytes)
    }

    /// The memory whose tags it holds, if it is a range at all.
    pub fn tagged(&self) -> Result<PhysRange, RegionError> {
        range(self.tagged_base, self.tagged_bytes)
    }
}

fn range(base: PhysAddr, bytes: u64) -> Result<PhysRange, RegionError> {
    if bytes == 0 {
        return Err(RegionError::Empty(base));
    }
    PhysRange::new(base, bytes).ok_or(RegionError::Wraps { base, bytes })
}

fn frames(range: PhysRange) -> Result<FrameRange, RegionError> {
    let inner = range.inner_frames();
    if inner == range.outer_frames() {
        Ok(inner)
    } else {
        Err(RegionError::Unaligned(range))
    }
}

/// A carve-out whose description is sound.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TagRegion {
    tags: FrameRange,
    tagged: FrameRange,
    block_frames: u64,
    blocks: u32,
    offline: Vec<Range<u32>>,
}

impl TagRegion {
    /// Checks `desc` against the machine's memory and against `others`, the other regions that the
    /// device tree describes, sound or not.
    pub fn new(
        desc: &TagRegionDesc,
        memory: &MemoryMap,
        others: &[TagRegionDesc],
    ) -> Result<Self, RegionError> {
        let (tags_range, tagged_range) = (desc.tags()?, desc.tagged()?);
        let (tags, tagged) = (frames(tags_range)?, frames(tagged_range)?);
        let block_bytes = lcm(PAGE_SIZE, desc.block_size.into()).ok_or(RegionError::NoBlockSize)?;
        let expected = tagged_range
            .bytes()
            .div_ceil(TAG_RATIO)
            .div_ceil(block_bytes);
        let expected = expected.saturating_mul(block_bytes);
        if tags_range.bytes() != expected {
            return Err(RegionError::Size {
                found: tags_range.bytes(),
                expected,
            });
        }
        let block_frames = block_bytes / PAGE_SIZE;
        if block_frames.saturating_mul(TAG_RATIO) >= MAX_USERS.into() {
            return Err(RegionError::BlockTooLarge { bytes: block_bytes });
        }
        disjoint(tags_range, tagged_range, others)?;
        in_free_dram(tags_range, memory)?;
        // More blocks than 32 bits count would be more DRAM than stage 2 reaches.
        let blocks = u32::try_from(tags.count / block_frames)
            .map_err(|_| RegionError::OutsideDram(tags_range))?;
        let mut region = Self {
            tags,
            tagged,
            block_frames,
            blocks,
            offline: Vec::new(),
        };
        region.offline = region.find_offline(memory);
        Ok(region)
    }

    /// The carve-out.
    pub const fn tags(&self) -> FrameRange {
        self.tags
    }

    /// The memory whose tags it holds.
    pub const fn tagged(&self) -> FrameRange {
        self.tagged
    }

    /// Bytes of a block: B = lcm(4 KiB, block-size).
    pub const fn block_bytes(&self) -> u64 {
        self.block_frames * PAGE_SIZE
    }

    /// How many blocks the carve-out has.
    pub const fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Frames of tagged memory that a block covers: 32 times its own. The last block may cover
    /// less.
    pub const fn coverage_frames(&self) -> u64 {
        self.block_frames * TAG_RATIO
    }

    /// The blocks that are, or cover, memory that is not ours; in order, not touching.
    pub fn offline(&self) -> &[Range<u32>] {
        &self.offline
    }

    /// The block that holds the tags of `frame`; `None` if the frame is not of the tagged memory.
    pub fn block_of(&self, frame: Frame) -> Option<u32> {
        if !self.tagged.contains(frame) {
            return None;
        }
        // floor((X - mem.start) / 32 / B), in frames. Less than `blocks` by the size check.
        Some(((frame.number() - self.tagged.start.number()) / self.coverage_frames()) as u32)
    }

    /// The block that `frame` is part of; `None` if the frame is not in the carve-out.
    pub fn storage_of(&self, frame: Frame) -> Option<u32> {
        if !self.tags.contains(frame) {
            return None;
        }
        Some(((frame.number() - self.tags.start.number()) / self.block_frames) as u32)
    }

    /// The frames of block `index`.
    pub const fn storage(&self, index: u32) -> FrameRange {
        FrameRange::new(
            self.tags.start.plus(index as u64 * self.block_frames),
            self.block_frames,
        )
    }

    /// The frames whose tags block `index` holds.
    pub fn coverage(&self, index: u32) -> FrameRange {
        let start = self
            .tagged
            .start
            .plus(u64::from(index) * self.coverage_frames());
        FrameRange::new(start, self.coverage_frames()).intersect(self.tagged)
    }

    /// Blocks of which a part, or a part of the coverage that exists, is not ours (S7), and those that cover our
    /// image. What they cover of our data is memory without tags.
    fn find_offline(&self, memory: &MemoryMap) -> Vec<Range<u32>> {
        let mut offline: Vec<Range<u32>> = Vec::new();
        let mut cover = |hole: FrameRange| {
            let covered = hole.intersect(self.tagged);
            offline.extend(self.block_range(covered, self.tagged, self.coverage_frames()));
        };
        let ours = memory.dram.iter().filter(|dram| dram.taggable);
        let ours = ours.map(|dram| dram.range.inner_frames());
        for hole in subtract(alloc::vec![self.tagged], ours) {
            cover(hole);
        }
        let taken = || memory.occupied.iter();
        for taken in taken().filter(|taken| taken.by != Occupant::Data) {
            cover(taken.range.outer_frames());
        }
        for taken in taken() {
            let stored = taken.range.outer_frames().intersect(self.tags);
            offline.extend(self.block_range(stored, self.tags, self.block_frames));
        }
        merge(offline)
    }

    fn block_range(&self, part: FrameRange, of: FrameRange, unit: u64) -> Option<Range<u32>> {
        if part.is_empty() {
            return None;
        }
        let first = part.start.number() - of.start.number();
        let end = (first + part.count).div_ceil(unit).min(self.blocks.into());
        Some((first / unit) as u32..end as u32)
    }
}

fn disjoint(
    tags: PhysRange,
    tagged: PhysRange,
    others: &[TagRegionDesc],
) -> Result<(), RegionError> {
    if tags.overlaps(tagged) {
        return Err(RegionError::Overlap {
            ours: tags,
            other: tagged,
        });
    }
    for other in others
        .iter()
        .flat_map(|other| [other.tags(), other.tagged()])
        .flatten()
    {
        for ours in [tags, tagged] {
            if ours.overlaps(other) {
                return Err(RegionError::Overlap { ours, other });
            }
        }
    }
    Ok(())
}

fn in_free_dram(tags: PhysRange, memory: &MemoryMap) -> Result<(), RegionError> {
    let dram = memory.dram.iter().map(|dram| dram.range.inner_frames());
    if !subtract(alloc::vec![tags.outer_frames()], dram).is_empty() {
        return Err(RegionError::OutsideDram(tags));
    }
    let loaded = memory
        .occupied
        .iter()
        .filter(|taken| matches!(taken.by, Occupant::Image | Occupant::Data));
    match loaded
        .map(|taken| taken.range)
        .find(|range| range.overlaps(tags))
    {
        Some(loaded) => Err(RegionError::Loaded { tags, loaded }),
        None => Ok(()),
    }
}

/// What is left of `runs` without `holes`.
pub(crate) fn subtract(
    mut runs: Vec<FrameRange>,
    holes: impl IntoIterator<Item = FrameRange>,
) -> Vec<FrameRange> {
    for hole in holes {
        cut(&mut runs, hole);
    }
    runs
}

/// Not part of [`subtract`], of which there is one copy for each kind of `holes`.
#[inline(never)]
fn cut(runs: &mut Vec<FrameRange>, hole: FrameRange) {
    for run in core::mem::take(runs) {
        let (low, high) = run.without(hole);
        runs.extend([low, high].into_iter().filter(|part| !part.is_empty()));
    }
}

/// Sorts ranges and joins those that touch. There are few: each is put into its place.
pub(crate) fn merge(ranges: Vec<Range<u32>>) -> Vec<Range<u32>> {
    let mut sorted: Vec<Range<u32>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        let at = sorted.partition_point(|other| other.start < range.start);
        sorted.insert(at, range);
    }
    sorted.dedup_by(|next, last| {
        let touch = next.start <= last.end;
        if touch {
            last.end = last.end.max(next.end);
        }
        touch
    });
    sorted
}
