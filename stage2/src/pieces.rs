//! Which page of its VM is in each frame of a 2 MiB piece, in 3 bytes and 2 bits a frame.
//!
//! A piece that one 2 MiB leaf maps needs no map: its frames run in step with their pages. So maps
//! exist for pieces only in which some page has, or had, a life of its own.

use alloc::vec::Vec;

use crate::frames::PIECE_FRAMES;

/// Frames of a piece, as an index.
const FRAMES: usize = PIECE_FRAMES as usize;
/// Maps are allocated in groups of 64 KiB: an allocator of powers of two wastes nothing then.
const GROUP: usize = (64 << 10) / size_of::<PieceMap>();

/// A page of a VM's RAM, counted from the 2 MiB boundary at or below its first byte.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Page(pub(crate) u32);

impl Page {
    /// The page at `offset` of 2 MiB slot `slot`.
    pub(crate) const fn in_slot(slot: u32, offset: u64) -> Self {
        Self(slot * PIECE_FRAMES as u32 + offset as u32)
    }

    /// Its 2 MiB slot.
    pub(crate) const fn slot(self) -> u32 {
        self.0 / PIECE_FRAMES as u32
    }

    /// Where it is in its slot, in pages.
    pub(crate) const fn offset(self) -> u64 {
        self.0 as u64 % PIECE_FRAMES
    }
}

/// What is in a frame that can be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Room {
    /// Its index in the piece.
    pub(crate) index: u64,
    /// The page in it, which has no tag access; `None` if the frame is free.
    pub(crate) page: Option<Page>,
}

/// The map of one piece.
#[derive(Debug)]
pub(crate) struct PieceMap {
    /// The slot that the piece is the home of; in an unused map the next unused one, plus 1.
    slot: u32,
    pages: [[u8; 3]; FRAMES],
    used: [u64; FRAMES / 64],
    tagged: [u64; FRAMES / 64],
    used_count: u16,
}

impl PieceMap {
    /// An empty map of the home of `slot`.
    pub(crate) const fn new(slot: u32) -> Self {
        Self {
            slot,
            pages: [[0; 3]; FRAMES],
            used: [0; FRAMES / 64],
            tagged: [0; FRAMES / 64],
            used_count: 0,
        }
    }

    /// The map of the home of `slot` in which each frame holds the page of its place.
    pub(crate) fn in_step(slot: u32) -> Self {
        let mut map = Self::new(slot);
        for (entry, offset) in map.pages.iter_mut().zip(0..) {
            let [low, middle, high, _] = Page::in_slot(slot, offset).0.to_le_bytes();
            *entry = [low, middle, high];
        }
        map.used = [u64::MAX; FRAMES / 64];
        map.used_count = FRAMES as u16;
        map
    }

    pub(crate) const fn slot(&self) -> u32 {
        self.slot
    }

    /// Frames in use.
    pub(crate) const fn used_count(&self) -> u16 {
        self.used_count
    }

    /// Whether one 2 MiB leaf could map the piece: each frame holds the page of its place, and none
    /// has tag access.
    pub(crate) fn is_uniform(&self) -> bool {
        let at_home = |index| self.page(index) == Some(Page::in_slot(self.slot, index));
        self.used_count as usize == FRAMES
            && self.tagged.iter().all(|&word| word == 0)
            && (0..PIECE_FRAMES).all(at_home)
    }

    /// The page in frame `index`.
    pub(crate) fn page(&self, index: u64) -> Option<Page> {
        if !bit(&self.used, index) {
            return None;
        }
        let &[low, middle, high] = self.pages.get(index as usize)?;
        Some(Page(u32::from_le_bytes([low, middle, high, 0])))
    }

    /// Puts `page` into frame `index`, without tag access.
    pub(crate) fn place(&mut self, index: u64, page: Page) {
        if bit(&self.used, index) {
            self.vacate(index);
        }
        let [low, middle, high, _] = page.0.to_le_bytes();
        if let Some(entry) = self.pages.get_mut(index as usize) {
            *entry = [low, middle, high];
            set_bit(&mut self.used, index, true);
            self.used_count += 1;
        }
    }

    /// Takes the page out of frame `index`.
    pub(crate) fn vacate(&mut self, index: u64) {
        set_bit(&mut self.tagged, index, false);
        if bit(&self.used, index) {
            self.used_count -= 1;
            set_bit(&mut self.used, index, false);
        }
    }

    /// Notes whether the page in frame `index` has tag access.
    // At each tag fault.
    #[inline(always)]
    pub(crate) fn set_tagged(&mut self, index: u64, tagged: bool) {
        set_bit(&mut self.tagged, index, tagged);
    }

    /// Whether the page in frame `index` has tag access.
    pub(crate) fn is_tagged(&self, index: u64) -> bool {
        bit(&self.tagged, index)
    }

    /// The first frame from `start` on, below `end`, without a page; else the first without tag
    /// access.
    pub(crate) fn room(&self, start: u64, end: u64) -> Option<Room> {
        let free = first_clear(&self.used, start, end);
        let index = free.or_else(|| first_clear(&self.tagged, start, end))?;
        Some(Room {
            index,
            page: self.page(index),
        })
    }

    /// The first frame from `start` on, below `end`, with tag access.
    pub(crate) fn first_tagged(&self, start: u64, end: u64) -> Option<u64> {
        let mut index = start;
        while index < end {
            let word = self.tagged.get((index / 64) as usize)? >> (index % 64);
            match word {
                0 => index = (index / 64 + 1) * 64,
                _ => return Some(index + u64::from(word.trailing_zeros())).filter(|&at| at < end),
            }
        }
        None
    }

    /// The first frame without a page that `suits`.
    pub(crate) fn find_free(&self, suits: impl Fn(u64) -> bool) -> Option<u64> {
        let mut start = 0;
        while let Some(index) = first_clear(&self.used, start, PIECE_FRAMES) {
            if suits(index) {
                return Some(index);
            }
            start = index + 1;
        }
        None
    }

    /// The first frame without a page.
    pub(crate) fn first_free(&self) -> Option<u64> {
        first_clear(&self.used, 0, PIECE_FRAMES)
    }
}

fn bit(words: &[u64], index: u64) -> bool {
    words
        .get((index / 64) as usize)
        .is_some_and(|word| word >> (index % 64) & 1 != 0)
}

#[inline(always)]
fn set_bit(words: &mut [u64], index: u64, value: bool) {
    if let Some(word) = words.get_mut((index / 64) as usize) {
        *word = *word & !(1 << (index % 64)) | u64::from(value) << (index % 64);
    }
}

fn first_clear(words: &[u64], start: u64, end: u64) -> Option<u64> {
    let mut index = start;
    while index < end {
        let clear = !words.get((index / 64) as usize)? >> (index % 64);
        match clear {
            0 => index = (index / 64 + 1) * 64,
            _ => return Some(index + u64::from(clear.trailing_zeros())).filter(|&at| at < end),
        }
    }
    None
}

/// A map's number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct MapId(pub(crate) u32);

/// All maps.
#[derive(Debug, Default)]
pub(crate) struct PieceMaps {
    groups: Vec<Vec<PieceMap>>,
    /// The number of the first unused map, plus 1.
    unused: u32,
}

impl PieceMaps {
    /// No map.
    pub(crate) const fn new() -> Self {
        Self {
            groups: Vec::new(),
            unused: 0,
        }
    }

    /// A map with any contents; `None` if the heap has no room.
    pub(crate) fn alloc(&mut self) -> Option<MapId> {
        if let Some(number) = self.unused.checked_sub(1) {
            self.unused = self.get(MapId(number))?.slot;
            return Some(MapId(number));
        }
        if self.groups.last().is_none_or(|group| group.len() == GROUP) {
            let mut group = Vec::new();
            group.try_reserve_exact(GROUP).ok()?;
            self.groups.try_reserve(1).ok()?;
            self.groups.push(group);
        }
        let number = (self.groups.len() - 1) * GROUP;
        let group = self.groups.last_mut()?;
        group.push(PieceMap::new(0));
        Some(MapId((number + group.len() - 1) as u32))
    }

    /// Gives a map back.
    pub(crate) fn free(&mut self, map: MapId) {
        let unused = self.unused;
        if let Some(freed) = self.get_mut(map) {
            freed.slot = unused;
            self.unused = map.0 + 1;
        }
    }

    pub(crate) fn get(&self, map: MapId) -> Option<&PieceMap> {
        let (group, index) = (map.0 as usize / GROUP, map.0 as usize % GROUP);
        self.groups.get(group)?.get(index)
    }

    pub(crate) fn get_mut(&mut self, map: MapId) -> Option<&mut PieceMap> {
        let (group, index) = (map.0 as usize / GROUP, map.0 as usize % GROUP);
        self.groups.get_mut(group)?.get_mut(index)
    }

    /// Bytes of all maps, in use or not.
    pub(crate) fn metadata_bytes(&self) -> u64 {
        (self.groups.len() * GROUP * size_of::<PieceMap>()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_takes_3_bytes_and_2_bits() {
        assert!(size_of::<PieceMap>() * 8 <= FRAMES * (24 + 2) + 96);
        assert!(GROUP * size_of::<PieceMap>() <= 64 << 10);
        assert!(
            GROUP * size_of::<PieceMap>() > 63 << 10,
            "a group wastes a map at most"
        );
    }

    #[test]
    fn a_map_tells_pages_room_and_uniformity() {
        let mut map = PieceMap::new(3);
        assert_eq!(
            map.room(32, 64),
            Some(Room {
                index: 32,
                page: None
            })
        );
        for index in 0..PIECE_FRAMES {
            assert!(!map.is_uniform());
            map.place(index, Page::in_slot(3, index));
        }
        assert!(map.is_uniform() && PieceMap::in_step(3).is_uniform());
        let whole = PieceMap::in_step(0x7fff);
        assert_eq!(whole.page(511), Some(Page((1 << 24) - 1)));
        assert_eq!((whole.used_count(), whole.first_free()), (512, None));
        assert_eq!((map.used_count(), map.first_free()), (512, None));
        map.set_tagged(40, true);
        map.set_tagged(40, true);
        assert!(!map.is_uniform());
        assert_eq!(map.first_tagged(0, 40), None);
        assert_eq!(map.first_tagged(0, 512), Some(40));
        let page = Some(Page::in_slot(3, 41));
        assert_eq!(map.room(40, 64), Some(Room { index: 41, page }));
        map.vacate(50);
        assert_eq!(
            map.room(40, 64),
            Some(Room {
                index: 50,
                page: None
            }),
            "free ones first"
        );
        map.place(50, Page::in_slot(3, 51));
        map.set_tagged(40, false);
        assert!(!map.is_uniform(), "a page away from its place");
        map.place(50, Page::in_slot(3, 50));
        assert!(map.is_uniform());
        (40..64).for_each(|index| map.set_tagged(index, true));
        assert_eq!(map.room(40, 64), None);
        assert_eq!(map.page(63), Some(Page(3 * 512 + 63)));
        let last = Page((1 << 24) - 1);
        map.place(0, last);
        assert_eq!(map.page(0), Some(last));
    }

    #[test]
    fn room_and_tags_are_sought_only_between_the_bounds() {
        let mut map = PieceMap::new(0);
        (0..PIECE_FRAMES).for_each(|index| map.place(index, Page::in_slot(0, index)));
        (0..PIECE_FRAMES).for_each(|index| map.set_tagged(index, true));
        for free in [0, 63, 64, 127, 511] {
            map.vacate(free);
            let found = |map: &PieceMap, start, end| map.room(start, end).map(|room| room.index);
            assert_eq!(found(&map, 0, 512), Some(free));
            assert_eq!(found(&map, free, free + 1), Some(free));
            assert_eq!(found(&map, 0, free), None);
            assert_eq!(found(&map, free + 1, 512), None);
            assert_eq!(map.find_free(|index| index != free), None);
            assert!(!map.is_tagged(free), "nothing is left of the page");
            assert_eq!(map.first_tagged(free, free + 1), None);
            map.place(free, Page::in_slot(0, free));
            assert_eq!(found(&map, 0, 512), Some(free), "no tag access");
            map.set_tagged(free, true);
        }
        assert_eq!(map.first_tagged(511, 512), Some(511));
        assert_eq!(map.used_count(), 512);
    }

    #[test]
    fn a_freed_map_is_used_again_the_last_one_first() {
        let mut maps = PieceMaps::new();
        let ids: Vec<_> = (0..100).map(|_| maps.alloc().unwrap()).collect();
        assert_eq!(
            ids.iter().map(|id| id.0).collect::<Vec<_>>(),
            (0..100).collect::<Vec<_>>()
        );
        maps.free(ids[50]);
        maps.free(ids[20]);
        let bytes = maps.metadata_bytes();
        let again = [maps.alloc().unwrap(), maps.alloc().unwrap()];
        assert_eq!(again, [ids[20], ids[50]]);
        assert_eq!(maps.metadata_bytes(), bytes);
    }
}
