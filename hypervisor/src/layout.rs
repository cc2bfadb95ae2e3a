//! Who gets which DRAM: from the board as discovered and what is loaded, to what EL2 maps, the memory map of `stage2`, the
//! sound tag regions, and a place for the heap.
//!
//! All addresses are physical; ranges are half open.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use crate::life::MAX_CPUS;
use crate::stacks::Stacks;
use platform::{Machine, ReservedBy};
use stage2::addr::{PAGE_SIZE, PhysAddr, PhysRange};
use stage2::region::{Dram, MemoryMap, Occupant, Occupied, RegionError, TagRegion, TagRegionDesc};

/// What the boot loader put into DRAM.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Our image, stacks included.
    pub image: Range<u64>,
    /// The DTB.
    pub dtb: Range<u64>,
    /// The bundle, if there is one.
    pub bundle: Option<Range<u64>>,
}

impl Loaded {
    fn data(&self) -> impl Iterator<Item = Range<u64>> {
        [self.dtb.clone()].into_iter().chain(self.bundle.clone())
    }
}

/// A tag region of the device tree that stays static, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedRegion {
    /// Its node.
    pub path: String,
    /// What is wrong.
    pub error: RegionError,
}

impl fmt::Display for RefusedRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "tag region {} refused: {}; its tag storage stays static",
            self.path, self.error
        )
    }
}

/// What becomes of the DRAM.
#[derive(Clone, Debug)]
pub struct Layout {
    /// DRAM that EL2 maps as data; our image is not in it.
    pub data: Vec<Range<u64>>,
    /// DRAM that EL2 maps Tagged as well: taggable, no tag storage.
    pub tagged: Vec<Range<u64>>,
    /// The memory map for `stage2`, heap and all that is loaded marked as taken.
    pub map: MemoryMap,
    /// The sound tag regions.
    pub regions: Vec<TagRegion>,
    /// The others: their storage holds tags for ever.
    pub refused: Vec<RefusedRegion>,
    /// Where the heap goes.
    pub heap: Range<u64>,
    /// Where the stacks of all CPUs but one go; empty if there is no room.
    pub stacks: Range<u64>,
}

/// Why EL2 cannot live in this DRAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// There is no room for the heap.
    NoRoom {
        /// Bytes of contiguous DRAM needed.
        bytes: u64,
    },
    /// Our image lies in memory that holds tags: a guest's tags would overwrite it.
    ImageInTagStorage {
        /// The image.
        image: Range<u64>,
    },
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoom { bytes } => write!(
                f,
                "no {} KiB of contiguous DRAM left for the hypervisor itself: give the machine more memory, or load less into it",
                bytes >> 10
            ),
            Self::ImageInTagStorage { image } => write!(
                f,
                "the hypervisor at [{:#x}, {:#x}) lies in tag storage: load it elsewhere",
                image.start, image.end
            ),
        }
    }
}

/// Bytes of heap for a machine, besides the boot heap in the image: 1/1024 of its DRAM, which bounds the metadata (4 bytes a
/// frame), and is also how much of a machine's DRAM a carve-out's own tags would take.
#[must_use]
pub fn heap_bytes(memory: u64) -> u64 {
    (memory / 1024).next_multiple_of(PAGE_SIZE)
}

impl Layout {
    /// Decides what becomes of the DRAM of `machine`.
    ///
    /// # Errors
    ///
    /// No room for the heap, or our image lies in tag storage.
    pub fn new(machine: &Machine, loaded: &Loaded) -> Result<Self, Unusable> {
        let mut map = MemoryMap {
            dram: dram(machine),
            occupied: occupied(machine, loaded),
        };
        let (regions, refused) = regions(machine, &mut map);
        let storage: Vec<Range<u64>> = machine
            .tag_regions
            .iter()
            .map(|node| node.tag_base..node.tag_base.saturating_add(node.tag_bytes))
            .collect();
        let foreign: Vec<Range<u64>> = ranges(&map, |by| by != Occupant::Data).collect();
        check_image(&loaded.image, &map, &storage)?;
        let all = |only_taggable: bool| {
            map.dram
                .iter()
                .filter(move |dram| dram.taggable || !only_taggable)
                .map(|dram| dram.range.base().get()..dram.range.end().get())
                .collect::<Vec<_>>()
        };
        let data = without(&all(false), &foreign);
        let tagged = without(&without(&all(true), &foreign), &storage);
        let bytes = heap_bytes(machine.memory_bytes());
        let heap = place(bytes, &map, &storage).ok_or(Unusable::NoRoom { bytes })?;
        map.occupied
            .extend(occupied_by(Occupant::Data, [heap.clone()]));
        let others = machine.cpus.len().clamp(1, MAX_CPUS) - 1;
        let bytes = others as u64 * Stacks::BYTES;
        let stacks = place(bytes, &map, &storage).unwrap_or(0..0);
        map.occupied
            .extend(occupied_by(Occupant::Data, [stacks.clone()]));
        Ok(Self {
            data,
            tagged,
            map,
            regions,
            refused,
            heap,
            stacks,
        })
    }
}

impl Layout {
    /// Says whether all of `range` is DRAM that EL2 maps as data.
    #[must_use]
    pub fn maps(&self, range: &Range<u64>) -> bool {
        let around = |data: &Range<u64>| data.start <= range.start && range.end <= data.end;
        self.data.iter().any(around)
    }
}

fn dram(machine: &Machine) -> Vec<Dram> {
    let dram = machine.memory.iter().filter_map(|memory| {
        let range = phys_range(&(memory.range.base()..memory.range.end()))?;
        Some(Dram {
            range,
            taggable: memory.taggable,
        })
    });
    dram.collect()
}

/// Refuses an image in tag storage, be it used, static, or of a region that is not even sound: tags may be written to any.
fn check_image(
    image: &Range<u64>,
    map: &MemoryMap,
    storage: &[Range<u64>],
) -> Result<(), Unusable> {
    let mut tags = ranges(map, |by| by == Occupant::StaticTags).chain(storage.iter().cloned());
    if tags.any(|tags| tags.start < image.end && image.start < tags.end) {
        return Err(Unusable::ImageInTagStorage {
            image: image.clone(),
        });
    }
    Ok(())
}

fn phys_range(range: &Range<u64>) -> Option<PhysRange> {
    PhysRange::new(
        PhysAddr::new(range.start),
        range.end.checked_sub(range.start)?,
    )
}

fn ranges(map: &MemoryMap, wanted: impl Fn(Occupant) -> bool) -> impl Iterator<Item = Range<u64>> {
    map.occupied
        .iter()
        .filter(move |occupied| wanted(occupied.by))
        .map(|occupied| occupied.range.base().get()..occupied.range.end().get())
}

/// What is taken before anything is decided. A page that is both ours and firmware's is ours.
fn occupied(machine: &Machine, loaded: &Loaded) -> Vec<Occupied> {
    let mut ours: Vec<Range<u64>> = loaded.data().collect();
    let mut all = occupied_by(Occupant::Data, ours.iter().cloned());
    all.extend(occupied_by(Occupant::Image, [loaded.image.clone()]));
    ours.push(loaded.image.clone());
    for reserved in &machine.reserved {
        let range = reserved.range.base()..reserved.range.end();
        match reserved.by {
            // Even what was loaded there is not ours to keep: tags overwrite it.
            ReservedBy::TagStorage => all.extend(occupied_by(Occupant::StaticTags, [range])),
            // Boot loaders often reserve the DTB and the initrd as well, rounded up: those stay ours to read.
            ReservedBy::MemReserve | ReservedBy::Node => {
                let rest = without(&[whole_pages(&range)], &ours);
                all.extend(occupied_by(Occupant::Firmware, rest));
            }
        }
    }
    all
}

fn occupied_by(by: Occupant, ranges: impl IntoIterator<Item = Range<u64>>) -> Vec<Occupied> {
    let ranges = ranges.into_iter().filter_map(|range| phys_range(&range));
    ranges.map(|range| Occupied { range, by }).collect()
}

/// All pages that a range touches; the last page of the address space is none.
fn whole_pages(range: &Range<u64>) -> Range<u64> {
    let end = range.end.checked_next_multiple_of(PAGE_SIZE);
    range.start & !(PAGE_SIZE - 1)..end.unwrap_or(u64::MAX)
}

/// Returns the pages of which no part lies outside a range; an empty range if there is none.
fn inner_pages(range: &Range<u64>) -> Range<u64> {
    let start = range.start.checked_next_multiple_of(PAGE_SIZE);
    start.unwrap_or(u64::MAX)..range.end & !(PAGE_SIZE - 1)
}

/// Validates all regions; the storage of a refused one is marked as static.
fn regions(machine: &Machine, map: &mut MemoryMap) -> (Vec<TagRegion>, Vec<RefusedRegion>) {
    let describe = |node: &platform::TagRegionNode| TagRegionDesc {
        tags_base: PhysAddr::new(node.tag_base),
        tags_bytes: node.tag_bytes,
        tagged_base: PhysAddr::new(node.tagged_base),
        tagged_bytes: node.tagged_bytes,
        block_size: node.block_bytes,
    };
    let descs: Vec<TagRegionDesc> = machine.tag_regions.iter().map(describe).collect();
    let (mut sound, mut refused, mut static_tags) = (Vec::new(), Vec::new(), Vec::new());
    for (index, (node, desc)) in machine.tag_regions.iter().zip(&descs).enumerate() {
        let others: Vec<TagRegionDesc> = descs
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != index)
            .map(|(_, desc)| *desc)
            .collect();
        match TagRegion::new(desc, map, &others) {
            Ok(region) => sound.push(region),
            Err(error) => {
                static_tags.extend(desc.tags().ok().map(|range| Occupied {
                    range,
                    by: Occupant::StaticTags,
                }));
                refused.push(RefusedRegion {
                    path: node.path.clone(),
                    error,
                });
            }
        }
    }
    map.occupied.extend(static_tags);
    (sound, refused)
}

/// Takes `bytes` for ourselves from the top of untaggable DRAM if they fit, else from the top of other DRAM that is no tag
/// storage: what is taggable is worth more to guests.
fn place(bytes: u64, map: &MemoryMap, storage: &[Range<u64>]) -> Option<Range<u64>> {
    let taken: Vec<Range<u64>> = ranges(map, |_| true)
        .chain(storage.iter().cloned())
        .collect();
    let free = |taggable: bool| {
        let dram = map
            .dram
            .iter()
            .filter(move |dram| dram.taggable == taggable);
        let dram: Vec<Range<u64>> = dram
            .map(|dram| dram.range.base().get()..dram.range.end().get())
            .collect();
        without(&dram, &taken)
    };
    free(true)
        .into_iter()
        .chain(free(false))
        .rev()
        .find(|range| range.end - range.start >= bytes)
        .map(|range| range.end - bytes..range.end)
}

/// Returns `from` less `holes`, in whole pages: a page that a hole touches goes.
#[must_use]
pub fn without(from: &[Range<u64>], holes: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut left: Vec<Range<u64>> = from.iter().map(inner_pages).collect();
    for hole in holes.iter().filter(|hole| hole.start < hole.end) {
        let hole = whole_pages(hole);
        let runs = core::mem::take(&mut left);
        for run in runs {
            left.push(run.start..run.end.min(hole.start));
            left.push(run.start.max(hole.end)..run.end);
        }
        left.retain(|run| run.start < run.end);
    }
    left.retain(|run| run.start < run.end);
    left
}

#[cfg(test)]
#[allow(
    clippy::single_range_in_vec_init,
    reason = "lists of ranges that happen to have one"
)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pages_touched_by_a_hole_go() {
        let left = without(
            &[0..0x10000],
            &[0x2800..0x3001, 0x8000..0x9000, 0..1, 0x5000..0x5000],
        );
        assert_eq!(left, [0x1000..0x2000, 0x4000..0x8000, 0x9000..0x10000]);
        assert_eq!(without(&[0x800..0x1800], &[]), []);
        assert_eq!(without(&[0..0x4000], &[0x1000..u64::MAX]), [0..0x1000]);
    }

    proptest! {
        #[test]
        fn what_is_left_is_in_a_range_and_in_no_hole(
            ranges in prop::collection::vec((0u64..64, 0u64..16), 0..5),
            holes in prop::collection::vec((0u64..0x40000, 0u64..0x5000), 0..8),
        ) {
            let mut start = 0;
            let ranges: Vec<_> = ranges.iter().map(|(gap, pages)| {
                let from = start + gap * PAGE_SIZE;
                start = from + pages * PAGE_SIZE;
                from..start
            }).collect();
            let holes: Vec<_> = holes.iter().map(|(at, bytes)| *at..at + bytes).collect();
            let left = without(&ranges, &holes);
            for page in 0..start / PAGE_SIZE + 2 {
                let at = page * PAGE_SIZE;
                let free = ranges.iter().any(|range| range.contains(&at))
                    && !holes.iter().any(|hole| hole.start < hole.end && hole.start < at + PAGE_SIZE && hole.end > at);
                prop_assert_eq!(left.iter().any(|range| range.contains(&at)), free);
            }
        }
    }
}
