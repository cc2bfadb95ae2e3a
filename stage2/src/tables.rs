//! The stage-2 tables of one VM: walk, make, break. Lock rank: memory.
//!
//! A walk ends in a [`Position`], and what that allows is all that can be done there: over a valid
//! entry only a break, which ends in a TLB invalidation; over an invalid one only a make (DDI 0487,
//! D8.16.1). A position is worth something only as long as the lock is held under which it was
//! found.

use crate::addr::{Frame, Ipa, PAGE_SIZE, PhysAddr};
use crate::descriptor::{
    Entry, IPA_BITS, Leaf, Level, MemAttr, ROOT_ENTRIES, TABLE_ENTRIES, Vacancy, Vmid,
};
use crate::frames::PIECE_BYTES;
use crate::pool::{TagsKept, TagsZeroed};
use crate::ports::{Hardware, TableMemory, Tlb};

/// An entry that this crate did not write: its table is corrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Corrupt {
    /// The table's frame.
    pub table: Frame,
    /// The entry's index.
    pub index: usize,
    /// Its bits.
    pub raw: u64,
}

/// The stage-2 tables of one VM.
#[derive(Debug)]
pub struct Stage2Tables {
    root: Frame,
    vmid: Vmid,
    tables: u32,
    leaf_tables: u32,
    blocks: u32,
}

/// An entry's place: the address of its table, and its index in the low bits. Positions are small, as
/// they are handed on at each fault.
#[derive(Clone, Copy, Debug)]
struct Slot(u64);

impl Slot {
    const fn new(table: Frame, index: usize) -> Self {
        Self(table.addr().get() | index as u64)
    }

    const fn table(self) -> Frame {
        Frame::containing(PhysAddr::new(self.0))
    }

    const fn index(self) -> usize {
        self.0 as usize % TABLE_ENTRIES
    }
}

/// What to map.
#[derive(Debug)]
pub enum Mapping {
    /// A page of a guest that may not use tags (HCR_EL2.ATA = 0): it needs no attribute for that.
    WithoutMte(Frame),
    /// A page whose first tag access is to fault.
    NoTagAccess(Frame),
    /// A page whose tags have storage, and are 0.
    Tagged(TagsZeroed),
    /// A page whose tags have storage, and are its own.
    Retagged(TagsKept),
}

impl Mapping {
    /// The entry.
    pub(crate) fn leaf(self) -> Leaf {
        let (frame, attr) = match self {
            Self::WithoutMte(frame) => (frame, MemAttr::WriteBack),
            Self::NoTagAccess(frame) => (frame, MemAttr::NoTagAccess),
            Self::Tagged(zeroed) => (zeroed.into_user(), MemAttr::WriteBack),
            Self::Retagged(kept) => (kept.into_user(), MemAttr::WriteBack),
        };
        Leaf { frame, attr }
    }
}

/// What a walk found for one page.
#[derive(Debug)]
pub enum Position {
    /// Not all tables exist on the way.
    Missing(Missing),
    /// Nothing was ever mapped.
    Vacant(Vacant),
    /// A page is mapped.
    Mapped(Mapped),
    /// A 2 MiB leaf maps the page and its neighbours.
    Big(Big),
    /// Another handler is between break and make.
    Busy(Vacant),
}

/// A page that lacks tables.
#[derive(Debug)]
pub struct Missing {
    at: Slot,
    level: Level,
    ipa: Ipa,
}

/// A page that lacks tables, with the frames for them.
#[must_use = "the frames must be installed or freed"]
#[derive(Debug)]
pub struct Supplied {
    missing: Missing,
    leaf_table: Option<Frame>,
    /// Present if, and only if, the table of level 2 lacks too.
    middle: Option<Frame>,
}

/// A page, or 2 MiB, without a valid entry, ready to be made.
#[derive(Debug)]
pub struct Vacant {
    at: Slot,
    level: Level,
}

/// A page with a valid entry.
#[derive(Debug)]
pub struct Mapped {
    at: Slot,
    leaf: Leaf,
}

/// A 2 MiB leaf, met on the way to one of its pages.
#[derive(Debug)]
pub struct Big {
    at: Slot,
    leaf: Leaf,
}

/// A page whose entry was made invalid and dropped from all TLBs: no access to it is under way.
#[must_use = "the guest cannot reach a broken page until it is made again"]
#[derive(Debug)]
pub struct Broken {
    at: Slot,
    leaf: Leaf,
}

impl Stage2Tables {
    /// Empty tables whose root is `root`, a frame that nothing else uses, for a VMID that no TLB
    /// holds anything of.
    pub fn new<H: TableMemory + Tlb>(hw: &mut H, root: Frame, vmid: Vmid) -> Self {
        hw.clear(root);
        // Before the first vCPU loads VTTBR_EL2.
        hw.publish();
        Self {
            root,
            vmid,
            tables: 1,
            leaf_tables: 0,
            blocks: 0,
        }
    }

    /// The frame of the root table.
    pub const fn root(&self) -> Frame {
        self.root
    }

    /// The VM's identifier in the TLBs.
    pub const fn vmid(&self) -> Vmid {
        self.vmid
    }

    /// How many tables there are, the root included.
    pub const fn tables(&self) -> u32 {
        self.tables
    }

    /// How many of them are of level 3: those that 2 MiB leaves would save.
    pub const fn leaf_tables(&self) -> u32 {
        self.leaf_tables
    }

    /// How many 2 MiB leaves there are.
    pub const fn big_leaves(&self) -> u32 {
        self.blocks
    }

    /// The page mapped at `ipa`, if any, be it part of a 2 MiB leaf.
    pub fn lookup(&self, memory: &impl TableMemory, ipa: Ipa) -> Option<Leaf> {
        match self.walk(memory, ipa).ok()? {
            Position::Mapped(mapped) => Some(mapped.leaf),
            Position::Big(big) => Some(big.leaf()),
            Position::Missing(_) | Position::Vacant(_) | Position::Busy(_) => None,
        }
    }

    /// Walks to `ipa`'s page. An address of more than [`IPA_BITS`] bits is an error of the caller,
    /// and reported as corruption of the root.
    pub fn walk(&self, memory: &impl TableMemory, ipa: Ipa) -> Result<Position, Corrupt> {
        let mut table = self.root;
        for level in [Level::One, Level::Two, Level::Three] {
            let corrupt = |index, raw| Corrupt { table, index, raw };
            let index = index(ipa, level).ok_or(corrupt(ROOT_ENTRIES, ipa.get()))?;
            let at = Slot::new(table, index);
            let raw = memory.read(table, index);
            return Ok(match (Entry::decode(raw, level), level) {
                (Entry::Table(next), _) => {
                    table = next;
                    continue;
                }
                (Entry::Page(leaf), Level::Three) => Position::Mapped(Mapped { at, leaf }),
                (Entry::Page(first), _) => {
                    let frame = first.frame.plus(index_in(ipa, Level::Three) as u64);
                    let leaf = Leaf { frame, ..first };
                    Position::Big(Big { at, leaf })
                }
                (Entry::Invalid(Vacancy::Broken), _) => Position::Busy(Vacant { at, level }),
                (Entry::Invalid(Vacancy::NeverMapped), Level::Three) => {
                    Position::Vacant(Vacant { at, level })
                }
                (Entry::Invalid(Vacancy::NeverMapped), _) => {
                    Position::Missing(Missing { at, level, ipa })
                }
                (Entry::Foreign(raw), _) => return Err(corrupt(index, raw)),
            });
        }
        Err(Corrupt {
            table,
            index: 0,
            raw: 0,
        })
    }

    /// Links the tables of a page in.
    pub fn install<H: TableMemory + Tlb>(&mut self, hw: &mut H, supplied: Supplied) -> Vacant {
        let Supplied {
            missing: Missing { at, ipa, .. },
            leaf_table,
            middle,
        } = supplied;
        let (mut end, mut link) = (at, None);
        if let Some(leaf_table) = leaf_table {
            hw.clear(leaf_table);
            link = Some(leaf_table);
            end = Slot::new(leaf_table, index_in(ipa, Level::Three));
            self.tables += 1;
            self.leaf_tables += 1;
        }
        if let Some(middle) = middle {
            hw.clear(middle);
            let index = index_in(ipa, Level::Two);
            match link {
                Some(table) => hw.write(middle, index, Entry::Table(table).encode(Level::Two)),
                None => end = Slot::new(middle, index),
            }
            link = Some(middle);
            self.tables += 1;
        }
        if let Some(link) = link {
            // A walker must not see the link before the cleared tables.
            hw.publish();
            hw.write(
                at.table(),
                at.index(),
                Entry::Table(link).encode(Level::One),
            );
        }
        let level = if leaf_table.is_some() {
            Level::Three
        } else {
            Level::Two
        };
        Vacant { at: end, level }
    }

    /// Maps a page, or 2 MiB without tag access, visible to all walkers on return.
    pub fn make<H: TableMemory + Tlb>(&mut self, hw: &mut H, vacant: Vacant, mapping: Mapping) {
        let Vacant { at, level } = vacant;
        self.blocks += u32::from(level == Level::Two);
        hw.write(
            at.table(),
            at.index(),
            Entry::Page(mapping.leaf()).encode(level),
        );
        hw.publish();
    }

    /// Drops what TLBs hold of a page and leaves the entry alone: for a guest that faulted on an
    /// older entry than the one in memory.
    pub fn refresh(&self, hw: &mut impl Tlb, ipa: Ipa) {
        hw.invalidate_page(self.vmid, self.root, ipa);
    }

    /// Takes the page at `ipa` out of the VM's reach, and waits until no access to it is under way.
    pub fn break_page<H: TableMemory + Tlb>(
        &mut self,
        hw: &mut H,
        ipa: Ipa,
        mapped: Mapped,
    ) -> Broken {
        let Mapped { at, leaf } = mapped;
        hw.write(at.table(), at.index(), BROKEN);
        hw.invalidate_page(self.vmid, self.root, ipa);
        Broken { at, leaf }
    }

    /// Replaces a 2 MiB leaf by `table`, whose entries map the same frames in the same way, but for
    /// the page at `ipa`, to which the walk was: that one is broken.
    pub fn split<H: TableMemory + Tlb>(
        &mut self,
        hw: &mut H,
        ipa: Ipa,
        (big, table): (Big, Frame),
    ) -> Broken {
        let Big { at, leaf } = big;
        let hole = index_in(ipa, Level::Three);
        let first = Leaf {
            frame: Frame::from_number(leaf.frame.number() - hole as u64),
            attr: leaf.attr,
        };
        hw.fill(table, Entry::Page(first).encode(Level::Three), PAGE_SIZE);
        hw.write(table, hole, BROKEN);
        hw.write(at.table(), at.index(), BROKEN);
        hw.invalidate_block(self.vmid, self.root, ipa);
        hw.write(
            at.table(),
            at.index(),
            Entry::Table(table).encode(Level::Two),
        );
        hw.publish();
        self.blocks -= 1;
        self.tables += 1;
        self.leaf_tables += 1;
        let at = Slot::new(table, hole);
        Broken { at, leaf }
    }

    /// Replaces the level-3 table behind `ipa` by a leaf that maps 2 MiB from `leaf` on, as the
    /// table does. Returns the table, which no walker reaches any more.
    pub fn join<H: TableMemory + Tlb>(
        &mut self,
        hw: &mut H,
        ipa: Ipa,
        leaf: Leaf,
    ) -> Option<Frame> {
        let mut table = self.root;
        for level in [Level::One, Level::Two] {
            let index = index(ipa, level)?;
            let Entry::Table(next) = Entry::decode(hw.read(table, index), level) else {
                return None;
            };
            if level == Level::Two {
                hw.write(table, index, BROKEN);
                // A change of the size of 512 entries: all of the VM, as IPAS2E1IS is for one page.
                hw.invalidate_vm(self.vmid, self.root);
                hw.write(table, index, Entry::Page(leaf).encode(level));
                hw.publish();
                self.blocks += 1;
                self.tables -= 1;
                self.leaf_tables -= 1;
                return Some(next);
            }
            table = next;
        }
        None
    }

    /// Takes a part of what is below the root out of the VM's reach and out of all TLBs: some pages of
    /// one level-3 table, or some 2 MiB leaves, and a table that nothing is left in. `None` if nothing
    /// is left below the root.
    pub fn detach(&mut self, hw: &mut impl Hardware) -> Option<Detached> {
        let (index, raw) = first_entry(hw, self.root, ROOT_ENTRIES)?;
        let base = Ipa::new((index as u64) << shift(Level::One));
        let mut part = Detached::new(Slot::new(self.root, index), base, Level::One);
        match Entry::decode(raw, Level::One) {
            Entry::Table(middle) => {
                part.at = (Slot::new(middle, 0), base, Level::Two);
                match part.take(hw, MOST_LEAVES) {
                    End::Table(at, leaves) => {
                        let base = Ipa::new(base.get() | (at as u64) << shift(Level::Two));
                        part.at = (Slot::new(leaves, 0), base, Level::Three);
                        if matches!(part.take(hw, MOST_PAGES), End::Empty) {
                            hw.write(middle, at, 0);
                            part.table = Some((leaves, true));
                            self.leaf_tables -= 1;
                            self.tables -= 1;
                        }
                    }
                    End::Empty => {
                        hw.write(self.root, index, 0);
                        part.table = Some((middle, false));
                        self.tables -= 1;
                        self.blocks -= part.count as u32;
                    }
                    End::Full => self.blocks -= part.count as u32,
                }
            }
            _ => {
                part.push(index, raw);
                hw.write(self.root, index, 0);
            }
        }
        hw.invalidate_vm(self.vmid, self.root);
        Some(part)
    }

    /// Visits all below the root in the order of addresses, a table after what it holds.
    pub fn visit<H: TableMemory>(&self, hw: &mut H, mut each: impl FnMut(&mut H, Visit)) {
        for index in 0..ROOT_ENTRIES {
            let raw = hw.read(self.root, index);
            let at = Slot::new(self.root, index);
            let ipa = Ipa::new((index as u64) << shift(Level::One));
            visit_entry(hw, at, raw, (Level::One, ipa), &mut each);
        }
    }
}

impl Missing {
    /// Whether all 2 MiB around the page are without a table: one leaf could map them.
    pub const fn is_block(&self) -> bool {
        matches!(self.level, Level::One | Level::Two)
    }

    /// Takes frames for the tables that lack from `alloc`; for a 2 MiB leaf the last one is not
    /// needed.
    ///
    /// # Errors
    /// There are not enough; what was taken before, if anything, comes back.
    pub fn supply(
        self,
        is_big: bool,
        mut alloc: impl FnMut() -> Option<Frame>,
    ) -> Result<Supplied, Option<Frame>> {
        let leaf_table = match is_big {
            true => None,
            false => Some(alloc().ok_or(None)?),
        };
        let middle = match self.level {
            Level::One => Some(alloc().ok_or(leaf_table)?),
            Level::Two | Level::Three => None,
        };
        Ok(Supplied {
            missing: self,
            leaf_table,
            middle,
        })
    }
}

impl Supplied {
    /// The frames, for one who does not install them.
    pub fn into_frames(self) -> impl Iterator<Item = Frame> {
        self.middle.into_iter().chain(self.leaf_table)
    }
}

impl Mapped {
    /// The page's frame and attribute.
    pub const fn leaf(&self) -> Leaf {
        self.leaf
    }
}

impl Big {
    /// The page's frame and attribute.
    pub const fn leaf(&self) -> Leaf {
        self.leaf
    }
}

impl Broken {
    /// What the entry said before the break.
    pub const fn was(&self) -> Leaf {
        self.leaf
    }

    /// The place for the new entry.
    pub const fn vacant(self) -> Vacant {
        Vacant {
            at: self.at,
            level: Level::Three,
        }
    }
}

const BROKEN: u64 = Entry::Invalid(Vacancy::Broken).encode(Level::Three);

/// The most pages that one part of a VM's memory has.
const MOST_PAGES: usize = 64;
/// The most 2 MiB leaves.
const MOST_LEAVES: usize = 8;

/// A part of a VM's memory that no walker reaches any more.
#[must_use = "what is detached must be freed"]
pub struct Detached {
    /// The table, the address that its first entry maps, its level.
    at: (Slot, Ipa, Level),
    /// Entries, with their indices.
    entries: [(u16, u64); MOST_PAGES],
    count: usize,
    /// A table that is empty now, and whether it is of level 3.
    table: Option<(Frame, bool)>,
}

/// Where taking entries out of a table has ended.
enum End {
    /// There may be more.
    Full,
    /// Nothing is left in the table.
    Empty,
    /// At the entry of another table, and nothing was taken.
    Table(usize, Frame),
}

/// The first entry of a table that is not as it was when the table was new.
fn first_entry(hw: &impl TableMemory, table: Frame, entries: usize) -> Option<(usize, u64)> {
    let mut entries = (0..entries).map(|index| (index, hw.read(table, index)));
    entries.find(|&(_, raw)| raw != 0)
}

/// One thing met in a visit of tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Visit {
    /// A mapped page.
    Page(Ipa, Leaf),
    /// 2 MiB mapped by one leaf.
    Big(Ipa, Leaf),
    /// A page between break and make.
    Busy(Ipa),
    /// A table below the root, after all that it holds, and whether it is of level 3: it may be
    /// freed.
    Table(Frame, bool),
    /// An entry that this crate did not write.
    Corrupt(Corrupt),
}

impl Detached {
    const fn new(at: Slot, base: Ipa, level: Level) -> Self {
        Self {
            at: (at, base, level),
            entries: [(0, 0); MOST_PAGES],
            count: 0,
            table: None,
        }
    }

    fn push(&mut self, index: usize, raw: u64) {
        if let Some(entry) = self.entries.get_mut(self.count) {
            *entry = (index as u16, raw);
            self.count += 1;
        }
    }

    /// Takes up to `most` entries that link no table.
    fn take(&mut self, hw: &mut impl TableMemory, most: usize) -> End {
        let (table, _, level) = self.at;
        for index in 0..TABLE_ENTRIES {
            let raw = hw.read(table.table(), index);
            match Entry::decode(raw, level) {
                Entry::Invalid(Vacancy::NeverMapped) => continue,
                Entry::Table(_) if self.count > 0 => return End::Full,
                Entry::Table(next) if level == Level::Two => return End::Table(index, next),
                _ if self.count == most => return End::Full,
                _ => {}
            }
            hw.write(table.table(), index, 0);
            self.push(index, raw);
        }
        End::Empty
    }

    /// Visits each entry, then the table.
    pub fn visit(self, mut each: impl FnMut(Visit)) {
        let (table, base, level) = self.at;
        for &(index, raw) in self.entries.iter().take(self.count) {
            let index = usize::from(index);
            let ipa = Ipa::new(base.get() | (index as u64) << shift(level));
            each(match (Entry::decode(raw, level), level) {
                (Entry::Invalid(_), _) => Visit::Busy(ipa),
                (Entry::Page(leaf), Level::Three) => Visit::Page(ipa, leaf),
                (Entry::Page(leaf), Level::Two) => Visit::Big(ipa, leaf),
                _ => Visit::Corrupt(Corrupt {
                    table: table.table(),
                    index,
                    raw,
                }),
            });
        }
        if let Some((table, is_leaf)) = self.table {
            each(Visit::Table(table, is_leaf));
        }
    }
}

fn visit_entry<H: TableMemory>(
    hw: &mut H,
    at: Slot,
    raw: u64,
    (level, ipa): (Level, Ipa),
    each: &mut impl FnMut(&mut H, Visit),
) {
    let (table, index) = (at.table(), at.index());
    match (Entry::decode(raw, level), level) {
        (Entry::Invalid(Vacancy::NeverMapped), _) => {}
        (Entry::Invalid(Vacancy::Broken), _) => each(hw, Visit::Busy(ipa)),
        (Entry::Page(leaf), Level::Three) => each(hw, Visit::Page(ipa, leaf)),
        (Entry::Page(leaf), _) => each(hw, Visit::Big(ipa, leaf)),
        (Entry::Table(next), Level::One) => visit_table(hw, next, (Level::Two, ipa), each),
        (Entry::Table(next), Level::Two) => visit_table(hw, next, (Level::Three, ipa), each),
        (Entry::Foreign(_), _) | (Entry::Table(_), Level::Three) => {
            each(hw, Visit::Corrupt(Corrupt { table, index, raw }));
        }
    }
}

fn visit_table<H: TableMemory>(
    hw: &mut H,
    table: Frame,
    (level, base): (Level, Ipa),
    each: &mut impl FnMut(&mut H, Visit),
) {
    for index in 0..TABLE_ENTRIES {
        let raw = hw.read(table, index);
        let ipa = Ipa::new(base.get() | (index as u64) << shift(level));
        visit_entry(hw, Slot::new(table, index), raw, (level, ipa), each);
    }
    each(hw, Visit::Table(table, level == Level::Three));
}

const fn shift(level: Level) -> u32 {
    match level {
        Level::One => 30,
        Level::Two => PIECE_BYTES.trailing_zeros(),
        Level::Three => 12,
    }
}

/// The index of `ipa` in a table of `level`, reduced to the table's size.
const fn index_in(ipa: Ipa, level: Level) -> usize {
    (ipa.get() >> shift(level)) as usize % TABLE_ENTRIES
}

/// The same for an address that may have more than [`IPA_BITS`] bits: `None` then.
const fn index(ipa: Ipa, level: Level) -> Option<usize> {
    if ipa.get() >> IPA_BITS == 0 {
        Some(index_in(ipa, level))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::SimMachine;

    fn frame(number: u64) -> Frame {
        Frame::from_number(number)
    }

    /// Maps `ipa` to `target`, with tables from `next` on.
    fn map(
        tables: &mut Stage2Tables,
        sim: &mut SimMachine,
        next: &mut u64,
        (ipa, target): (u64, u64),
    ) {
        let vacant = match tables.walk(sim, Ipa::new(ipa)).unwrap() {
            Position::Vacant(vacant) => vacant,
            Position::Missing(missing) => {
                let take = || {
                    *next += 1;
                    Some(frame(*next))
                };
                let supplied = missing.supply(false, take).unwrap();
                tables.install(sim, supplied)
            }
            _ => panic!("mapped twice"),
        };
        tables.make(sim, vacant, Mapping::NoTagAccess(frame(target)));
    }

    const PAGES: [(u64, u64); 6] = [
        (0, 500),
        (0x1000, 501),
        (0x1f_f000, 502),
        (0x20_0000, 503),
        (0x4000_0000, 504),
        ((1 << IPA_BITS) - PAGE_SIZE, 505),
    ];

    fn mapped() -> (Stage2Tables, SimMachine) {
        let (mut sim, mut next) = (SimMachine::default(), 100);
        let mut tables = Stage2Tables::new(&mut sim, frame(100), Vmid(1));
        PAGES
            .into_iter()
            .for_each(|page| map(&mut tables, &mut sim, &mut next, page));
        assert_eq!(sim.broken_rules(), []);
        (tables, sim)
    }

    #[test]
    fn the_whole_address_space_is_reached_and_no_more() {
        let (tables, sim) = mapped();
        for (ipa, target) in PAGES {
            let leaf = tables.lookup(&sim, Ipa::new(ipa + 0xfff)).unwrap();
            assert_eq!(leaf.frame, frame(target));
        }
        for ipa in [0x2000, 0x40_0000, 0x8000_0000, 1 << IPA_BITS, u64::MAX] {
            assert_eq!(tables.lookup(&sim, Ipa::new(ipa)), None);
        }
        assert!(tables.walk(&sim, Ipa::new(1 << IPA_BITS)).is_err());
        // Root; level 2 for 0, 1 and 63 GiB; level 3 for 0 and 2 MiB, 1 GiB, the top.
        assert_eq!((tables.tables(), tables.leaf_tables()), (8, 4));
    }

    #[test]
    fn a_visit_meets_each_page_once_and_a_table_after_what_it_holds() {
        let (tables, mut sim) = mapped();
        let (mut pages, mut below) = (Vec::new(), Vec::new());
        tables.visit(&mut sim, |_, item| match item {
            Visit::Page(ipa, leaf) => pages.push((ipa.get(), leaf.frame.number())),
            Visit::Table(table, _) => below.push((table, pages.len())),
            Visit::Big(..) | Visit::Busy(_) | Visit::Corrupt(_) => panic!("{item:?}"),
        });
        assert_eq!(pages, PAGES);
        let ends: Vec<usize> = below.iter().map(|&(_, pages)| pages).collect();
        assert_eq!(ends, [3, 4, 4, 5, 5, 6, 6]);
    }

    #[test]
    fn what_is_detached_part_by_part_is_out_of_reach_and_can_be_used_again() {
        let (mut tables, mut sim) = mapped();
        let (mut pages, mut freed, mut parts) = (Vec::new(), 0, 0);
        while let Some(part) = tables.detach(&mut sim) {
            parts += 1;
            assert_eq!(sim.tlb().count(), 0);
            part.visit(|item| match item {
                Visit::Page(ipa, leaf) => pages.push((ipa.get(), leaf.frame.number())),
                Visit::Table(..) => freed += 1,
                Visit::Big(..) | Visit::Busy(_) | Visit::Corrupt(_) => panic!("{item:?}"),
            });
            for (ipa, target) in PAGES {
                let leaf = tables.lookup(&sim, Ipa::new(ipa));
                let gone = pages.contains(&(ipa, target));
                assert_eq!(leaf.is_none(), gone, "{ipa:#x}");
            }
        }
        assert_eq!(pages, PAGES);
        // One for each table.
        assert_eq!((parts, freed), (7, 7));
        assert_eq!((tables.tables(), tables.leaf_tables()), (1, 0));
        let mut next = 100;
        map(&mut tables, &mut sim, &mut next, PAGES[0]);
        assert!(tables.lookup(&sim, Ipa::new(0)).is_some());
    }

    #[test]
    fn a_part_is_bounded() {
        let (mut sim, mut next) = (SimMachine::default(), 1000);
        let mut tables = Stage2Tables::new(&mut sim, frame(1000), Vmid(1));
        for number in 0..150 {
            let page = (number * PAGE_SIZE, 5000 + number);
            map(&mut tables, &mut sim, &mut next, page);
        }
        let mut sizes = Vec::new();
        while let Some(part) = tables.detach(&mut sim) {
            let mut size = 0;
            part.visit(|item| size += usize::from(matches!(item, Visit::Page(..))));
            sizes.push(size);
        }
        assert_eq!(sizes, [64, 64, 22, 0]);
    }

    #[test]
    fn tables_that_run_out_half_way_come_back() {
        let mut sim = SimMachine::default();
        let tables = Stage2Tables::new(&mut sim, frame(100), Vmid(1));
        for (have, back) in [(0, None), (1, Some(frame(0)))] {
            let Ok(Position::Missing(missing)) = tables.walk(&sim, Ipa::new(0)) else {
                panic!()
            };
            let mut left = (0..have).map(frame);
            assert_eq!(missing.supply(false, || left.next()).map(drop), Err(back));
        }
        assert_eq!(tables.tables(), 1);
    }

    #[test]
    fn a_break_drops_the_page_from_the_tlbs_before_it_can_be_made_again() {
        let (mut tables, mut sim) = mapped();
        let guest = crate::fakes::SimGuest {
            vmid: Vmid(1),
            root: tables.root(),
            ata: true,
        };
        sim.load(guest, Ipa::new(0)).unwrap();
        assert_eq!(sim.tlb().count(), 2, "stage 2, and combined with stage 1");
        let Ok(Position::Mapped(mapped)) = tables.walk(&sim, Ipa::new(0)) else {
            panic!()
        };
        let broken = tables.break_page(&mut sim, Ipa::new(0), mapped);
        assert_eq!(broken.was().frame, frame(500));
        assert_eq!(sim.tlb().count(), 0);
        tables.make(&mut sim, broken.vacant(), Mapping::WithoutMte(frame(501)));
        assert_eq!(sim.broken_rules(), []);
    }
}
