//! The stage-2 tables of one VM: walk, make, break. Lock rank: VM tables.
//!
//! A walk ends in a [`Position`] that borrows the tables, so it cannot outlive the lock they are
//! behind. What it allows is all that can be done there: over a valid entry only a break, which
//! ends in a TLB invalidation; over an invalid one only a make (DDI 0487, D8.16.1).

use crate::addr::{Frame, Ipa};
use crate::descriptor::{
    Entry, IPA_BITS, Leaf, Level, MemAttr, ROOT_ENTRIES, TABLE_ENTRIES, Vacancy, Vmid,
};
use crate::pool::TagsZeroed;
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
}

/// An entry's place.
#[derive(Clone, Copy)]
struct Slot {
    table: Frame,
    index: usize,
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
}

/// What a walk found for one page.
pub enum Position<'t> {
    /// Not all tables exist on the way.
    Missing(Missing<'t>),
    /// Nothing was ever mapped.
    Vacant(Vacant<'t>),
    /// A page is mapped.
    Mapped(Mapped<'t>),
    /// Another handler is between break and make.
    Busy,
}

/// A page that lacks tables.
pub struct Missing<'t> {
    tables: &'t mut Stage2Tables,
    at: Slot,
    level: Level,
    ipa: Ipa,
}

/// A page that lacks tables, with the frames for them.
#[must_use = "the frames must be installed or freed"]
pub struct Supplied<'t> {
    missing: Missing<'t>,
    leaf_table: Frame,
    /// Present if, and only if, the table of level 2 lacks too.
    middle: Option<Frame>,
}

/// A page without a valid entry, ready to be made.
pub struct Vacant<'t> {
    _tables: &'t mut Stage2Tables,
    at: Slot,
}

/// A page with a valid entry.
pub struct Mapped<'t> {
    tables: &'t mut Stage2Tables,
    at: Slot,
    ipa: Ipa,
    leaf: Leaf,
}

/// A page whose entry was made invalid and dropped from all TLBs: no access to it is under way.
#[must_use = "the guest cannot reach a broken page until it is made again"]
pub struct Broken<'t> {
    tables: &'t mut Stage2Tables,
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

    /// The page mapped at `ipa`, if any.
    pub fn lookup(&self, memory: &impl TableMemory, ipa: Ipa) -> Option<Leaf> {
        let mut table = self.root;
        for level in [Level::One, Level::Two, Level::Three] {
            match Entry::decode(memory.read(table, index(ipa, level)?), level) {
                Entry::Table(next) => table = next,
                Entry::Page(leaf) => return Some(leaf),
                Entry::Invalid(_) | Entry::Foreign(_) => return None,
            }
        }
        None
    }

    /// Walks to `ipa`'s page. An address of more than [`IPA_BITS`] bits is an error of the caller,
    /// and reported as corruption of the root.
    pub fn walk(&mut self, memory: &impl TableMemory, ipa: Ipa) -> Result<Position<'_>, Corrupt> {
        let mut table = self.root;
        for level in [Level::One, Level::Two, Level::Three] {
            let corrupt = |index, raw| Corrupt { table, index, raw };
            let index = index(ipa, level).ok_or(corrupt(ROOT_ENTRIES, ipa.get()))?;
            let at = Slot { table, index };
            let raw = memory.read(table, index);
            match Entry::decode(raw, level) {
                Entry::Table(next) => table = next,
                Entry::Page(leaf) => {
                    return Ok(Position::Mapped(Mapped {
                        tables: self,
                        at,
                        ipa,
                        leaf,
                    }));
                }
                Entry::Invalid(Vacancy::Broken) => return Ok(Position::Busy),
                Entry::Invalid(Vacancy::NeverMapped) if level == Level::Three => {
                    return Ok(Position::Vacant(Vacant { _tables: self, at }));
                }
                Entry::Invalid(Vacancy::NeverMapped) => {
                    return Ok(Position::Missing(Missing {
                        tables: self,
                        at,
                        level,
                        ipa,
                    }));
                }
                Entry::Foreign(raw) => return Err(corrupt(index, raw)),
            }
        }
        Err(Corrupt {
            table,
            index: 0,
            raw: 0,
        })
    }

    /// Takes all below the root out of the VM's reach and out of all TLBs. The root stays, empty.
    pub fn detach(&mut self, hw: &mut impl Hardware) -> Detached {
        let mut entries = [0; ROOT_ENTRIES];
        for (index, entry) in entries.iter_mut().enumerate() {
            *entry = hw.read(self.root, index);
            if *entry != 0 {
                hw.write(self.root, index, 0);
            }
        }
        hw.invalidate_vm(self.vmid, self.root);
        (self.tables, self.leaf_tables) = (1, 0);
        Detached {
            root: self.root,
            entries,
        }
    }

    /// Visits all below the root, see [`Detached::visit`].
    pub fn visit<H: TableMemory>(&self, hw: &mut H, each: impl FnMut(&mut H, Visit)) {
        let mut entries = [0; ROOT_ENTRIES];
        for (index, entry) in entries.iter_mut().enumerate() {
            *entry = hw.read(self.root, index);
        }
        Detached {
            root: self.root,
            entries,
        }
        .visit(hw, each);
    }
}

impl<'t> Missing<'t> {
    /// Takes frames for the tables that lack from `alloc`.
    ///
    /// # Errors
    /// There are not enough; what was taken before, if anything, comes back.
    pub fn supply(
        self,
        mut alloc: impl FnMut() -> Option<Frame>,
    ) -> Result<Supplied<'t>, Option<Frame>> {
        let leaf_table = alloc().ok_or(None)?;
        let middle = match self.level {
            Level::One => Some(alloc().ok_or(Some(leaf_table))?),
            Level::Two | Level::Three => None,
        };
        Ok(Supplied {
            missing: self,
            leaf_table,
            middle,
        })
    }
}

impl<'t> Supplied<'t> {
    /// The frames, for one who does not install them.
    pub fn into_frames(self) -> impl Iterator<Item = Frame> {
        self.middle.into_iter().chain([self.leaf_table])
    }

    /// Links the tables in.
    pub fn install<H: TableMemory + Tlb>(self, hw: &mut H) -> Vacant<'t> {
        let Self {
            missing: Missing {
                tables, at, ipa, ..
            },
            leaf_table,
            middle,
        } = self;
        hw.clear(leaf_table);
        let mut link = leaf_table;
        if let Some(middle) = middle {
            hw.clear(middle);
            hw.write(
                middle,
                index_in(ipa, Level::Two),
                Entry::Table(leaf_table).encode(),
            );
            link = middle;
            tables.tables += 1;
        }
        // A walker must not see the link before the cleared tables.
        hw.publish();
        hw.write(at.table, at.index, Entry::Table(link).encode());
        tables.tables += 1;
        tables.leaf_tables += 1;
        let at = Slot {
            table: leaf_table,
            index: index_in(ipa, Level::Three),
        };
        Vacant {
            _tables: tables,
            at,
        }
    }
}

impl Vacant<'_> {
    /// Maps a page, visible to all walkers on return.
    pub fn make<H: TableMemory + Tlb>(self, hw: &mut H, mapping: Mapping) {
        let (frame, attr) = match mapping {
            Mapping::WithoutMte(frame) => (frame, MemAttr::WriteBack),
            Mapping::NoTagAccess(frame) => (frame, MemAttr::NoTagAccess),
            Mapping::Tagged(zeroed) => (zeroed.into_user(), MemAttr::WriteBack),
        };
        let leaf = Leaf { frame, attr };
        hw.write(self.at.table, self.at.index, Entry::Page(leaf).encode());
        hw.publish();
    }
}

impl<'t> Mapped<'t> {
    /// The page's frame and attribute.
    pub const fn leaf(&self) -> Leaf {
        self.leaf
    }

    /// Drops what TLBs hold of the page and leaves the entry alone: for a guest that faulted on an
    /// older entry than the one in memory.
    pub fn refresh(self, hw: &mut impl Tlb) {
        hw.invalidate_page(self.tables.vmid, self.tables.root, self.ipa);
    }

    /// Takes the page out of the VM's reach, and waits until no access to it is under way.
    pub fn break_leaf<H: TableMemory + Tlb>(self, hw: &mut H) -> Broken<'t> {
        hw.write(
            self.at.table,
            self.at.index,
            Entry::Invalid(Vacancy::Broken).encode(),
        );
        hw.invalidate_page(self.tables.vmid, self.tables.root, self.ipa);
        Broken {
            tables: self.tables,
            at: self.at,
            leaf: self.leaf,
        }
    }
}

impl<'t> Broken<'t> {
    /// What the entry said before the break.
    pub const fn was(&self) -> Leaf {
        self.leaf
    }

    /// The place for the new entry.
    pub fn vacant(self) -> Vacant<'t> {
        Vacant {
            _tables: self.tables,
            at: self.at,
        }
    }
}

/// Tables that no walker reaches any more.
#[must_use = "the frames of detached tables must be freed"]
pub struct Detached {
    root: Frame,
    entries: [u64; ROOT_ENTRIES],
}

/// One thing met in a visit of tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Visit {
    /// A mapped page.
    Page(Ipa, Leaf),
    /// A page between break and make.
    Busy(Ipa),
    /// A table below the root, after all that it holds: it may be freed.
    Table(Frame),
    /// An entry that this crate did not write.
    Corrupt(Corrupt),
}

impl Detached {
    /// Visits each page and table in the order of addresses, a table after what it holds.
    pub fn visit<H: TableMemory>(self, hw: &mut H, mut each: impl FnMut(&mut H, Visit)) {
        for (index, raw) in self.entries.into_iter().enumerate() {
            let at = Slot {
                table: self.root,
                index,
            };
            visit_entry(
                hw,
                at,
                raw,
                (Level::One, Ipa::new((index as u64) << 30)),
                &mut each,
            );
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
    let Slot { table, index } = at;
    match (Entry::decode(raw, level), level) {
        (Entry::Invalid(Vacancy::NeverMapped), _) => {}
        (Entry::Invalid(Vacancy::Broken), _) => each(hw, Visit::Busy(ipa)),
        (Entry::Page(leaf), _) => each(hw, Visit::Page(ipa, leaf)),
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
        visit_entry(hw, Slot { table, index }, raw, (level, ipa), each);
    }
    each(hw, Visit::Table(table));
}

const fn shift(level: Level) -> u32 {
    match level {
        Level::One => 30,
        Level::Two => 21,
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
    use crate::addr::PAGE_SIZE;
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
                missing.supply(take).unwrap().install(sim)
            }
            Position::Mapped(_) | Position::Busy => panic!("mapped twice"),
        };
        vacant.make(sim, Mapping::NoTagAccess(frame(target)));
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
        let (mut tables, sim) = mapped();
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
            Visit::Table(table) => below.push((table, pages.len())),
            Visit::Busy(_) | Visit::Corrupt(_) => panic!("{item:?}"),
        });
        assert_eq!(pages, PAGES);
        let ends: Vec<usize> = below.iter().map(|&(_, pages)| pages).collect();
        assert_eq!(ends, [3, 4, 4, 5, 5, 6, 6]);
    }

    #[test]
    fn detached_tables_are_out_of_reach_and_can_be_used_again() {
        let (mut tables, mut sim) = mapped();
        let detached = tables.detach(&mut sim);
        assert!(
            PAGES
                .iter()
                .all(|&(ipa, _)| tables.lookup(&sim, Ipa::new(ipa)).is_none())
        );
        let mut freed = 0;
        detached.visit(&mut sim, |_, item| {
            freed += u32::from(matches!(item, Visit::Table(_)))
        });
        assert_eq!((freed, tables.tables(), tables.leaf_tables()), (7, 1, 0));
        let mut next = 100;
        map(&mut tables, &mut sim, &mut next, PAGES[0]);
        assert!(tables.lookup(&sim, Ipa::new(0)).is_some());
    }

    #[test]
    fn tables_that_run_out_half_way_come_back() {
        let mut sim = SimMachine::default();
        let mut tables = Stage2Tables::new(&mut sim, frame(100), Vmid(1));
        for (have, back) in [(0, None), (1, Some(frame(0)))] {
            let Ok(Position::Missing(missing)) = tables.walk(&sim, Ipa::new(0)) else {
                panic!()
            };
            let mut left = (0..have).map(frame);
            assert_eq!(missing.supply(|| left.next()).map(drop), Err(back));
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
        let broken = mapped.break_leaf(&mut sim);
        assert_eq!(broken.was().frame, frame(500));
        assert_eq!(sim.tlb().count(), 0);
        broken
            .vacant()
            .make(&mut sim, Mapping::WithoutMte(frame(501)));
        assert_eq!(sim.broken_rules(), []);
    }
}
