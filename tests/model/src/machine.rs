//! What hardware does: memory and the two views of it, TLBs, barriers.
//!
//! A machine of six frames. Frames that hold no tags have coherent data, so a value is all there is
//! of them. The memory of a tag block is seen twice, as data and as the tags of its coverage, by
//! caches that do not know of each other.
//!
//! What may happen at any time is not a step of its own where a set of possibilities says the same:
//!
//! * Lines are fetched whenever speculation likes. So a clean line is [`Line::Stale`] from the
//!   moment at which memory changed behind its view, and fresh again only by maintenance.
//! * TLBs are filled whenever a walk likes. So when a valid entry of a table goes, any CPU of the VM
//!   may still hold it, until invalidated ([`Tlb`]); what the table says now is held besides.
//! * Accesses are under way whenever a CPU likes. So one that was translated may still land until
//!   its invalidation was waited for.

use std::ops::{BitAnd, BitOr, BitOrAssign, Not};

/// How many CPUs there are.
pub const CPUS: usize = 2;
/// How many guest pages there are, of all VMs.
pub const PAGES: usize = 4;
/// How many tag blocks there are.
pub const BLOCKS: usize = 2;

/// A guest page, of one VM.
pub type Page = u8;
/// A tag block, of one frame.
pub type Block = u8;
/// A VM, which is its VMID too.
pub type Vm = u8;
/// A CPU.
pub type Cpu = u8;

/// A frame of host memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Frame {
    /// Taggable, its tags are in [`Frame::T0`].
    A0,
    /// Taggable, its tags are in [`Frame::T0`].
    A1,
    /// Taggable, its tags are in [`Frame::T1`].
    B0,
    /// Storage of block 0.
    T0,
    /// Storage of block 1, the last of its region: it covers less.
    T1,
    /// Neither taggable nor tag storage: the spare frame.
    U,
}

impl Frame {
    /// All frames.
    pub const ALL: [Self; 6] = [Self::A0, Self::A1, Self::B0, Self::T0, Self::T1, Self::U];
    /// The taggable frames.
    pub const TAGGABLE: [Self; 3] = [Self::A0, Self::A1, Self::B0];

    /// The block that holds the frame's tags.
    pub const fn block(self) -> Option<Block> {
        match self {
            Self::A0 | Self::A1 => Some(0),
            Self::B0 => Some(1),
            Self::T0 | Self::T1 | Self::U => None,
        }
    }

    /// The block that the frame is.
    pub const fn storage(self) -> Option<Block> {
        match self {
            Self::T0 => Some(0),
            Self::T1 => Some(1),
            Self::A0 | Self::A1 | Self::B0 | Self::U => None,
        }
    }
}

/// The frames whose tags a block holds.
pub const fn coverage(block: Block) -> &'static [Frame] {
    match block {
        0 => &[Frame::A0, Frame::A1],
        _ => &[Frame::B0],
    }
}

/// The frame that a block is.
pub const fn storage(block: Block) -> Frame {
    match block {
        0 => Frame::T0,
        _ => Frame::T1,
    }
}

/// Who is there.
#[derive(Clone, Copy, Debug)]
pub struct Who {
    /// The VM of each page.
    pub owners: [Vm; PAGES],
    /// The VM that runs on each CPU.
    pub running: [Vm; CPUS],
    /// How many of the pages are used.
    pub pages: Page,
    /// Whether the CPUs have erratum CVE-2025-10263.
    pub erratum: bool,
}

impl Who {
    /// The VM of a page.
    pub const fn owner(&self, page: Page) -> Vm {
        self.owners[page as usize]
    }

    /// The VM that runs on a CPU.
    pub const fn running(&self, cpu: Cpu) -> Vm {
        self.running[cpu as usize]
    }

    /// The CPUs that run a VM.
    pub fn cpus_of(&self, vm: Vm) -> impl Iterator<Item = Cpu> + use<> {
        let running = self.running;
        (0..CPUS as Cpu).filter(move |&cpu| running[cpu as usize] == vm)
    }

    /// All pages.
    pub const fn all_pages(&self) -> std::ops::Range<Page> {
        0..self.pages
    }

    /// The pages of a VM.
    pub fn pages_of(&self, vm: Vm) -> impl Iterator<Item = Page> + use<> {
        let owners = self.owners;
        self.all_pages()
            .filter(move |&page| owners[page as usize] == vm)
    }
}

/// What memory holds: who wrote it, and as what.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Value {
    /// All zero.
    Zero,
    /// What firmware left, or pieces of several.
    Garbage,
    /// Data that a guest wrote to this page.
    Data(Page),
    /// Tags that a guest gave this page.
    Tags(Page),
}

/// What caches may hold of a line, through one of the two views.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Line {
    /// Nothing, or what memory holds.
    Fresh,
    /// Perhaps a clean copy of what memory held once.
    Stale,
    /// This, which memory does not have yet.
    Dirty(Value),
}

/// What a guest may do to a page by an entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Access {
    /// Data only: MemAttr NoTagAccess.
    Data,
    /// Data and tags: MemAttr write-back.
    Tags,
}

/// A valid stage-2 entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Leaf {
    /// Where the page is.
    pub frame: Frame,
    /// What it may be used for.
    pub access: Access,
}

/// A set of valid entries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Leaves(u16);

impl Leaves {
    /// No entry.
    pub const NONE: Self = Self(0);

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The entries.
    pub fn iter(self) -> impl Iterator<Item = Leaf> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let bit = left.checked_ilog2()?;
            left &= !(1 << bit);
            Some(Leaf {
                frame: Frame::ALL[bit as usize / 2],
                access: if bit % 2 == 1 {
                    Access::Tags
                } else {
                    Access::Data
                },
            })
        })
    }

    /// Takes all out.
    pub fn take(&mut self) -> Self {
        std::mem::take(self)
    }
}

impl From<Option<Leaf>> for Leaves {
    fn from(leaf: Option<Leaf>) -> Self {
        leaf.map_or(Self::NONE, |leaf| {
            Self(1 << (leaf.frame as u16 * 2 + u16::from(leaf.access == Access::Tags)))
        })
    }
}

impl BitOr for Leaves {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Leaves {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl BitAnd for Leaves {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Not for Leaves {
    type Output = Self;
    fn not(self) -> Self {
        Self(!self.0)
    }
}

/// By what a CPU may still reach a page, besides what the table says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Tlb {
    /// Entries of stage 2.
    pub stage2: Leaves,
    /// Entries of stage 1 and 2 combined.
    pub combined: Leaves,
    /// Translations of accesses under way, whose entry is invalidated.
    pub under_way: Leaves,
    /// On a CPU with erratum CVE-2025-10263: translations of stores that outlived the wait.
    pub late: Leaves,
}

impl Tlb {
    /// By what a load may still be done.
    pub fn loads(&self) -> Leaves {
        self.stage2 | self.combined | self.under_way
    }

    /// By what a store may still land.
    pub fn stores(&self) -> Leaves {
        self.loads() | self.late
    }
}

/// What a CPU's instructions have begun, to be waited for by a DSB.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Unsettled {
    /// An entry that was written, and what walks may see instead.
    pub entry: Option<(Page, Option<Leaf>)>,
    /// Frames (bits) whose data was written.
    pub data: u8,
    /// Frames (bits) whose tags were written.
    pub tags: u8,
    /// Blocks (bits) whose data lines are being cleaned and invalidated.
    pub clean_data: u8,
    /// Frames (bits) whose tag lines are being cleaned and invalidated.
    pub clean_tags: u8,
}

/// Memory, caches and TLBs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Machine {
    /// Data of the frames that are no tag storage; [`Frame::T0`] and [`Frame::T1`] are unused.
    data: [Value; 6],
    /// Memory of the tag blocks, by the taggable frame whose tags it may hold.
    memory: [Value; 3],
    /// Lines of it, seen as tags.
    tag_lines: [Line; 3],
    /// Lines of the blocks, seen as data.
    data_lines: [Line; BLOCKS],
    /// What is in the tables of each page.
    pub table: [Option<Leaf>; PAGES],
    /// What TLBs hold besides.
    pub tlbs: [[Tlb; PAGES]; CPUS],
    /// What each CPU has not waited for.
    pub unsettled: [Unsettled; CPUS],
    /// The VMID in each CPU's VTTBR_EL2.
    pub vttbr: [Vm; CPUS],
}

const fn bit(frame: Frame) -> u8 {
    1 << frame as u8
}

impl Machine {
    /// Memory as firmware leaves it: full of whatever, with dirty tag lines.
    pub const fn after_boot(vttbr: [Vm; CPUS]) -> Self {
        let unsettled = Unsettled {
            entry: None,
            data: 0,
            tags: 0,
            clean_data: 0,
            clean_tags: 0,
        };
        let tlb = Tlb {
            stage2: Leaves::NONE,
            combined: Leaves::NONE,
            under_way: Leaves::NONE,
            late: Leaves::NONE,
        };
        Self {
            data: [Value::Garbage; 6],
            memory: [Value::Garbage; 3],
            tag_lines: [Line::Dirty(Value::Garbage); 3],
            data_lines: [Line::Stale; BLOCKS],
            table: [None; PAGES],
            tlbs: [[tlb; PAGES]; CPUS],
            unsettled: [unsettled; CPUS],
            vttbr,
        }
    }

    /// Memory whose blocks were swept.
    pub const fn swept(vttbr: [Vm; CPUS]) -> Self {
        let mut machine = Self::after_boot(vttbr);
        machine.memory = [Value::Zero; 3];
        machine.tag_lines = [Line::Fresh; 3];
        machine.data_lines = [Line::Fresh; BLOCKS];
        machine
    }

    // Data and tags.

    /// What a load from the frame may find. `None`: perhaps a stale line.
    pub fn loads(&self, frame: Frame) -> Option<impl Iterator<Item = Value> + Clone> {
        let (one, granules): (_, &[Frame]) = match frame.storage() {
            None => (Some(self.data[frame as usize]), &[]),
            Some(block) => match self.data_lines[block as usize] {
                Line::Stale => return None,
                Line::Dirty(value) => (Some(value), &[]),
                Line::Fresh => (None, coverage(block)),
            },
        };
        let granules = granules
            .iter()
            .map(|&granule| self.memory[granule as usize]);
        Some(one.into_iter().chain(granules))
    }

    /// What EL2 reads of the frame: one value, [`Value::Garbage`] if it may be several.
    fn read(&self, frame: Frame) -> Value {
        let Some(mut values) = self.loads(frame) else {
            return Value::Garbage;
        };
        let first = values.next().unwrap_or(Value::Garbage);
        if values.all(|value| value == first) {
            first
        } else {
            Value::Garbage
        }
    }

    /// What a tag load of the frame finds. `None`: perhaps a stale line, or there are no tags.
    pub fn tags(&self, frame: Frame) -> Option<Value> {
        match self.tag_lines.get(frame as usize)? {
            Line::Stale => None,
            Line::Dirty(value) => Some(*value),
            Line::Fresh => Some(self.memory[frame as usize]),
        }
    }

    /// A store to the whole frame. Returns whether no stale line was merged into, were it only to
    /// a part of it.
    pub fn store(&mut self, frame: Frame, value: Value) -> bool {
        match frame.storage() {
            None => self.data[frame as usize] = value,
            Some(block) => {
                let line = &mut self.data_lines[block as usize];
                let sound = *line != Line::Stale;
                *line = Line::Dirty(value);
                return sound;
            }
        }
        true
    }

    /// A store of all tags of the frame. Returns whether no stale line was merged into, were it
    /// only to a part of them.
    pub fn store_tags(&mut self, frame: Frame, value: Value) -> bool {
        let Some(line) = self.tag_lines.get_mut(frame as usize) else {
            return true;
        };
        let sound = *line != Line::Stale;
        *line = Line::Dirty(value);
        sound
    }

    /// The tag lines of the frame, whatever they are.
    pub const fn tag_line(&self, frame: Frame) -> Line {
        self.tag_lines[frame as usize]
    }

    /// The data lines of the block, whatever they are.
    pub const fn data_line(&self, block: Block) -> Line {
        self.data_lines[block as usize]
    }

    /// Whether memory of the block is zero.
    pub fn is_zero(&self, block: Block) -> bool {
        let mut granules = coverage(block).iter();
        granules.all(|&granule| self.memory[granule as usize] == Value::Zero)
    }

    /// Writes the block's dirty data lines back, if it has any: eviction does at any time.
    pub fn write_back_data(&mut self, block: Block) -> bool {
        let Line::Dirty(value) = self.data_lines[block as usize] else {
            return false;
        };
        self.data_lines[block as usize] = Line::Fresh;
        for &granule in coverage(block) {
            let granule = granule as usize;
            if self.memory[granule] != value && self.tag_lines[granule] == Line::Fresh {
                self.tag_lines[granule] = Line::Stale;
            }
            self.memory[granule] = value;
        }
        true
    }

    /// Writes the frame's dirty tag lines back, if it has any: eviction does at any time.
    pub fn write_back_tags(&mut self, frame: Frame) -> bool {
        let Some(Line::Dirty(value)) = self.tag_lines.get(frame as usize).copied() else {
            return false;
        };
        self.tag_lines[frame as usize] = Line::Fresh;
        let data_line = frame
            .block()
            .map(|block| &mut self.data_lines[block as usize]);
        if let Some(line @ Line::Fresh) = data_line
            && self.memory[frame as usize] != value
        {
            *line = Line::Stale;
        }
        self.memory[frame as usize] = value;
        true
    }

    // What EL2 does.

    /// Zeroes a frame, through EL2's untagged view.
    pub fn zero(&mut self, cpu: Cpu, frame: Frame) {
        self.store(frame, Value::Zero);
        self.unsettled[cpu as usize].data |= bit(frame);
    }

    /// Copies a frame's data, through EL2's untagged view.
    pub fn copy(&mut self, cpu: Cpu, from: Frame, to: Frame) {
        let value = self.read(from);
        self.store(to, value);
        self.unsettled[cpu as usize].data |= bit(to);
    }

    /// Zeroes a frame's tags, through EL2's tagged view.
    pub fn zero_tags(&mut self, cpu: Cpu, frame: Frame) {
        self.store_tags(frame, Value::Zero);
        self.unsettled[cpu as usize].tags |= bit(frame);
    }

    /// Copies a frame's tags, through EL2's tagged view.
    pub fn copy_tags(&mut self, cpu: Cpu, from: Frame, to: Frame) {
        let value = self.tags(from).unwrap_or(Value::Garbage);
        self.store_tags(to, value);
        self.unsettled[cpu as usize].tags |= bit(to);
    }

    /// DC CIVAC on a block: done when waited for.
    pub const fn clean_data(&mut self, cpu: Cpu, block: Block) {
        self.unsettled[cpu as usize].clean_data |= 1 << block;
    }

    /// DC CIGVAC on a frame: done when waited for.
    pub const fn clean_tags(&mut self, cpu: Cpu, frame: Frame) {
        self.unsettled[cpu as usize].clean_tags |= bit(frame);
    }

    /// Writes an entry: walks may see the old one until published.
    pub fn write_entry(&mut self, who: &Who, cpu: Cpu, page: Page, leaf: Option<Leaf>) {
        self.publish(who, cpu);
        let old = std::mem::replace(&mut self.table[page as usize], leaf);
        self.unsettled[cpu as usize].entry = Some((page, old));
    }

    fn publish(&mut self, who: &Who, cpu: Cpu) {
        if let Some((page, old)) = self.unsettled[cpu as usize].entry.take() {
            let old = Leaves::from(old) & !Leaves::from(self.table[page as usize]);
            for other in who.cpus_of(who.owner(page)) {
                let tlb = &mut self.tlbs[other as usize][page as usize];
                tlb.stage2 |= old;
                tlb.combined |= old;
            }
        }
    }

    /// DSB: all that this CPU began is done. Two maintenance operations that were begun without a
    /// DSB between them are done in either order.
    pub fn synchronize(&mut self, who: &Who, cpu: Cpu, tags_first: bool) {
        self.publish(who, cpu);
        let Unsettled {
            clean_data,
            clean_tags,
            ..
        } = std::mem::take(&mut self.unsettled[cpu as usize]);
        for now_tags in [tags_first, !tags_first] {
            if now_tags {
                for frame in Frame::TAGGABLE {
                    if clean_tags & bit(frame) != 0 && !self.write_back_tags(frame) {
                        self.tag_lines[frame as usize] = Line::Fresh;
                    }
                }
            } else {
                for block in 0..BLOCKS as Block {
                    if clean_data & 1 << block != 0 && !self.write_back_data(block) {
                        self.data_lines[block as usize] = Line::Fresh;
                    }
                }
            }
        }
        for tlb in self.tlbs.as_flattened_mut() {
            let done = tlb.under_way.take();
            if who.erratum {
                tlb.late |= done;
            }
        }
    }

    /// Whether the next DSB has two orders to do its work in.
    pub const fn has_two_orders(&self, cpu: Cpu) -> bool {
        self.unsettled[cpu as usize].clean_data != 0 && self.unsettled[cpu as usize].clean_tags != 0
    }

    /// TLBI IPAS2E1IS: entries of stage 2 for a page.
    pub fn invalidate_stage2(&mut self, cpus: impl Iterator<Item = Cpu>, page: Page) {
        for cpu in cpus {
            let tlb = &mut self.tlbs[cpu as usize][page as usize];
            tlb.under_way |= tlb.stage2.take();
        }
    }

    /// TLBI VMALLE1IS: combined entries of a page of the VMID.
    pub fn invalidate_combined(&mut self, cpus: impl Iterator<Item = Cpu>, page: Page) {
        for cpu in cpus {
            let tlb = &mut self.tlbs[cpu as usize][page as usize];
            tlb.under_way |= tlb.combined.take();
        }
    }

    /// TLBI VALE2IS with the DSB after it, the erratum's remedy: stores that were late have landed.
    pub fn flush_late_stores(&mut self) {
        for tlb in self.tlbs.as_flattened_mut() {
            tlb.late = Leaves::NONE;
        }
    }

    // What guests can reach.

    /// By what a CPU that is in the guest may load from the page.
    pub fn reach(&self, cpu: Cpu, page: Page) -> Leaves {
        Leaves::from(self.table[page as usize])
            | self.unpublished(page)
            | self.tlbs[cpu as usize][page as usize].loads()
    }

    /// By what a store to the page may land, issued before the CPU came to EL2, if it did.
    pub fn landing(&self, cpu: Cpu, page: Page) -> Leaves {
        self.unpublished(page) | self.tlbs[cpu as usize][page as usize].stores()
    }

    /// By what the page may be reached by anyone, in any way.
    pub fn reach_by_any(&self, page: Page) -> Leaves {
        let held = self.tlbs.iter().map(|tlbs| tlbs[page as usize].stores());
        held.fold(
            Leaves::from(self.table[page as usize]) | self.unpublished(page),
            BitOr::bitor,
        )
    }

    /// By what TLBs may translate the page other than the table does.
    pub fn not_as_table(&self, page: Page) -> Leaves {
        let held = self.tlbs.iter().map(|tlbs| tlbs[page as usize].loads());
        held.fold(Leaves::NONE, BitOr::bitor) & !Leaves::from(self.table[page as usize])
    }

    fn unpublished(&self, page: Page) -> Leaves {
        self.unsettled
            .iter()
            .filter_map(|unsettled| unsettled.entry)
            .filter(|(of, _)| *of == page)
            .fold(Leaves::NONE, |all, (_, old)| all | old.into())
    }

    /// Whether EL2 wrote data of the frame that others may not see yet.
    pub fn data_is_settled(&self, frame: Frame) -> bool {
        self.unsettled
            .iter()
            .all(|unsettled| unsettled.data & bit(frame) == 0)
    }

    /// Whether EL2 wrote tags of the frame that others may not see yet.
    pub fn tags_are_settled(&self, frame: Frame) -> bool {
        self.unsettled
            .iter()
            .all(|unsettled| unsettled.tags & bit(frame) == 0)
    }
}
