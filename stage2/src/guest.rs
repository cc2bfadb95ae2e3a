//! The memory of one VM: its RAM, its tables, and its figures. Lock rank: memory.

use core::fmt;

use crate::account::{PageCounts, VmAccount, VmPeak};
use crate::addr::{Frame, FrameRange, Ipa, PAGE_SIZE, PhysAddr};
use crate::block::BadTransition;
use crate::descriptor::{IPA_BITS, Leaf, MemAttr, Vmid};
use crate::frames::{NotOwned, PIECE_FRAMES, Piece, VmId};
use crate::host::HostMemory;
pub use crate::host::Policy;
use crate::invariants::{Checks, Violation};
use crate::pieces::{Page, PieceMap};
use crate::placement::Wish;
use crate::ports::{Hardware, TableMemory};
use crate::ram::Ram;
use crate::region::TAG_RATIO;
use crate::tables::{
    Big, Broken, Corrupt, Mapped, Mapping, Missing, Position, Stage2Tables, Supplied, Vacant, Visit,
};

/// A VM to be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestSpec {
    /// Who owns its memory.
    pub vm: VmId,
    /// What its TLB entries are marked with. No TLB holds any.
    pub vmid: Vmid,
    /// The first byte of its RAM.
    pub ram_base: Ipa,
    /// The length of its RAM in bytes.
    pub ram_bytes: u64,
    /// Whether the guest may use tags (HCR_EL2.ATA = 1).
    pub mte: bool,
    /// When tag storage is reserved for it.
    pub policy: Policy,
    /// The most tag storage that may be reserved for it, in bytes; rounded up to whole blocks. Not
    /// used without MTE or under the static policy.
    pub tag_budget: u64,
}

/// How many images a VM has at most: a kernel and an initrd.
pub const IMAGES: usize = 2;

/// What a VM finds in a part of its RAM that it has not touched yet. It is copied when the page is
/// mapped, so a VM starts, and starts again, without any of its pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Image {
    /// The first byte in the VM's RAM.
    pub ipa: Ipa,
    /// Where it comes from: memory that is nobody's and never changes.
    pub source: PhysAddr,
    /// The length in bytes.
    pub bytes: u64,
}

impl Image {
    /// Nothing.
    pub const NONE: Self = Self {
        ipa: Ipa::new(0),
        source: PhysAddr::new(0),
        bytes: 0,
    };

    /// The part of it that lies in `bytes` bytes of RAM from `start` on.
    fn part(self, start: Ipa, bytes: u64) -> Option<Self> {
        let from = self.ipa.max(start);
        let skipped = from.get() - self.ipa.get();
        let end = (start.get() + bytes).min(self.ipa.get() + self.bytes);
        let bytes = end.checked_sub(from.get()).filter(|&bytes| bytes > 0)?;
        Some(Self {
            ipa: from,
            source: PhysAddr::new(self.source.get() + skipped),
            bytes,
        })
    }
}

/// Why an operation on a VM's memory was refused. Nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemError {
    /// The RAM is empty, not whole 4 KiB pages, or beyond the guest physical addresses.
    BadRam {
        /// Its first byte.
        base: Ipa,
        /// Its length.
        bytes: u64,
    },
    /// A static VM on a machine that is not, or the other way round: the whole carve-out is
    /// reserved for all VMs or for none.
    StaticMismatch,
    /// A VM of this identifier has memory already.
    VmExists(VmId),
    /// No VM of this identifier has memory.
    NoSuchVm(VmId),
    /// The address is not of the VM's RAM.
    NotRam(Ipa),
    /// No frame is left.
    NoMemory,
    /// The VMs together could need more memory than there is.
    TooMuch {
        /// RAM, tables and tag budgets of all VMs, in bytes.
        wanted: u64,
        /// Memory for them.
        there: u64,
    },
    /// The VMs together could need more memory that can have tags than there is.
    TooMuchTaggable {
        /// Bytes that the tag budgets of all VMs cover, or that must be able to have tags.
        wanted: u64,
        /// Memory for them.
        there: u64,
    },
    /// All tag storage that the VM may have reserved is full.
    OverBudget {
        /// Its budget in bytes.
        budget: u64,
    },
    /// A budget lower than what is reserved for the VM.
    InUse {
        /// Tag storage reserved for it, in bytes.
        reserved: u64,
    },
    /// A tag access of a guest that may not use tags.
    NotMte,
    /// The tag block is in a state that does not allow it.
    Block(BadTransition),
    /// A table holds what was never written to it: the hypervisor has lost a guarantee.
    Corrupt(Corrupt),
    /// A frame was given back twice: the hypervisor has lost a guarantee.
    NotOwned(Frame),
}

impl fmt::Display for MemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadRam { base, bytes } => {
                write!(
                    f,
                    "RAM at {base:#x} of {bytes:#x} bytes is empty, unaligned, or too high"
                )
            }
            Self::StaticMismatch => {
                write!(
                    f,
                    "the policy is static for the machine and all its VMs, or for none"
                )
            }
            Self::VmExists(vm) => write!(f, "VM {} exists already", vm.index()),
            Self::NoSuchVm(vm) => write!(f, "VM {} has no memory", vm.index()),
            Self::NotRam(ipa) => write!(f, "{ipa:#x} is not RAM of the VM"),
            Self::NoMemory => write!(f, "no frame is left"),
            Self::TooMuch { wanted, there } => {
                write!(
                    f,
                    "memory, tables and tag budgets of all VMs are {} KiB, and there are {} KiB for them: lower memory of some VM",
                    wanted >> 10,
                    there >> 10
                )
            }
            Self::TooMuchTaggable { wanted, there } => {
                write!(
                    f,
                    "the tag budgets of all VMs are for {} KiB of memory, and {} KiB can have tags: lower tag_budget of some VM",
                    wanted >> 10,
                    there >> 10
                )
            }
            Self::OverBudget { budget } => {
                write!(
                    f,
                    "its tag_budget of {} KiB is used up: raise it",
                    budget >> 10
                )
            }
            Self::InUse { reserved } => {
                write!(f, "its tags take {} KiB already", reserved >> 10)
            }
            Self::NotMte => write!(f, "a tag access of a VM without MTE"),
            Self::Block(bad) => write!(f, "{bad}"),
            Self::Corrupt(Corrupt { table, index, raw }) => {
                write!(
                    f,
                    "entry {index} of the table at {:#x} is {raw:#x}",
                    table.addr()
                )
            }
            Self::NotOwned(frame) => {
                write!(f, "the frame at {:#x} was given back twice", frame.addr())
            }
        }
    }
}

impl From<BadTransition> for MemError {
    fn from(bad: BadTransition) -> Self {
        Self::Block(bad)
    }
}

impl From<Corrupt> for MemError {
    fn from(corrupt: Corrupt) -> Self {
        Self::Corrupt(corrupt)
    }
}

impl From<NotOwned> for MemError {
    fn from(NotOwned(frame): NotOwned) -> Self {
        Self::NotOwned(frame)
    }
}

/// What an access fault led to. In each case the guest is re-entered and repeats the access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// The page was never touched; it is mapped now, zeroed.
    Mapped(Frame),
    /// The page is mapped already: another vCPU was faster.
    Spurious,
    /// It would take more evictions than the VM has leave for: later.
    Wait,
}

/// What a tag fault led to. In each case the guest is re-entered and repeats the access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TagOutcome {
    /// The page has tag access now, and its tags are 0.
    Tagged,
    /// The page had tag access: the guest used an older TLB entry, which is dropped now.
    Spurious,
    /// The page is not mapped: a translation fault will follow.
    Unmapped,
    /// It would take more evictions than the VM has leave for: later.
    Wait,
}

/// When a page of the VM gets tag access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TagUse {
    Never,
    AtAccess,
    AtTagAccess,
}

impl TagUse {
    pub(crate) const fn of(spec: &GuestSpec) -> Self {
        match (spec.mte, spec.policy) {
            (false, _) => Self::Never,
            (true, Policy::Lazy) => Self::AtTagAccess,
            (true, Policy::Eager | Policy::Static) => Self::AtAccess,
        }
    }

    fn tagged(self, leaf: Leaf) -> bool {
        self != Self::Never && leaf.attr == MemAttr::WriteBack
    }

    pub(crate) const fn untagged(self, frame: Frame) -> Mapping {
        match self {
            Self::Never => Mapping::WithoutMte(frame),
            Self::AtAccess | Self::AtTagAccess => Mapping::NoTagAccess(frame),
        }
    }
}

/// A guest that has so many pages with tag access shows what it is.
const MANY: u64 = 1024;

/// What is counted of a VM over its life.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) tag_faults: u64,
    pub(crate) moves: u64,
    pub(crate) evictions_caused: u64,
    pub(crate) evictions_suffered: u64,
    pub(crate) demotions: u64,
    pub(crate) throttled: u64,
    pub(crate) switched_to_eager: bool,
}

/// The memory of one VM.
#[derive(Debug)]
pub struct GuestMemory {
    spec: GuestSpec,
    pub(crate) tag_use: TagUse,
    pub(crate) tables: Stage2Tables,
    pub(crate) ram: Ram,
    budget: u64,
    pub(crate) tagged: u64,
    pub(crate) no_tag_access: u64,
    pub(crate) reserved: u64,
    pub(crate) counts: Counts,
    images: [Image; IMAGES],
    /// Its RAM is being taken away.
    is_leaving: bool,
    /// The first guarantee that was found lost while RAM was taken away.
    lost: Option<MemError>,
    /// Where the search for pages that need no tags goes on.
    pub(crate) cursor: Page,
    peak: VmPeak,
}

impl GuestMemory {
    /// The memory of a new VM, nothing of it mapped. Needs one frame, for the root table.
    pub(crate) fn new(
        host: &mut HostMemory,
        hw: &mut impl Hardware,
        spec: GuestSpec,
    ) -> Result<Self, MemError> {
        let pieces = host.chunks.largest_pieces() as u64;
        let ram = Ram::new(&spec, pieces).ok_or(MemError::NoMemory)?;
        let root = host.alloc_table_page().ok_or(MemError::NoMemory)?;
        host.guest_metadata += ram.metadata_bytes();
        Ok(Self {
            tag_use: TagUse::of(&spec),
            tables: Stage2Tables::new(hw, root, spec.vmid),
            ram,
            budget: host.budget(&spec),
            tagged: 0,
            no_tag_access: 0,
            reserved: 0,
            counts: Counts::default(),
            images: [Image::NONE; IMAGES],
            is_leaving: false,
            lost: None,
            cursor: Page(0),
            peak: VmPeak::default(),
            spec,
        })
    }

    /// Says what the guest finds in its RAM where that is not zero.
    pub(crate) fn set_images(&mut self, images: [Image; IMAGES]) -> Result<(), MemError> {
        for image in images.iter().filter(|image| image.bytes > 0) {
            let last = image.ipa.checked_add(image.bytes - 1);
            self.ram.page(image.ipa)?;
            self.ram.page(last.ok_or(MemError::NotRam(image.ipa))?)?;
        }
        self.images = images;
        Ok(())
    }

    /// Gives it another budget, of `budget` bytes in whole blocks.
    pub(crate) const fn set_spec(&mut self, spec: GuestSpec, budget: u64) {
        (self.spec, self.budget) = (spec, budget);
    }

    /// What the VM was made from, with the budget that it has now.
    pub const fn spec(&self) -> &GuestSpec {
        &self.spec
    }

    /// The VM's tables.
    pub const fn tables(&self) -> &Stage2Tables {
        &self.tables
    }

    /// Whether a page mapped as `leaf` can use its tags.
    pub fn has_tag_access(&self, leaf: Leaf) -> bool {
        self.tag_use.tagged(leaf)
    }

    /// The frame behind a guest address, if the guest has touched its page.
    pub fn translate(&self, memory: &impl TableMemory, ipa: Ipa) -> Option<Frame> {
        Some(self.leaf(memory, ipa)?.frame)
    }

    /// The leaf behind a guest address, if the guest has touched its page.
    pub fn leaf(&self, memory: &impl TableMemory, ipa: Ipa) -> Option<Leaf> {
        self.tables.lookup(memory, ipa)
    }

    /// Bytes of tag storage that may still be reserved for it.
    pub(crate) const fn left(&self) -> u64 {
        self.budget.saturating_sub(self.reserved)
    }

    /// Pages of others that have moved for its tags so far.
    pub const fn evictions_caused(&self) -> u64 {
        self.counts.evictions_caused
    }

    /// Goes from lazy to eager if the guest tags all that it touches, as one with KASAN does: then
    /// one fault gives a page both its frame and its tags, and its neighbours theirs.
    pub(crate) fn adapt(&mut self) {
        let all = self.tagged + self.no_tag_access;
        let tags_all = self.tagged >= MANY && self.tagged * 4 >= all * 3;
        if tags_all {
            self.switch();
        }
    }

    /// Goes from lazy to eager; a reset ends that.
    pub(crate) fn switch(&mut self) {
        if self.tag_use == TagUse::AtTagAccess {
            self.tag_use = TagUse::AtAccess;
            self.counts.switched_to_eager = true;
        }
    }

    /// The pages that get their tags together with `page`, if the VM tags all that it touches: those
    /// that a block of 4 KiB covers.
    pub(crate) fn neighbours(&self, page: Page) -> Option<core::ops::Range<u32>> {
        const TOGETHER: u32 = TAG_RATIO as u32;
        let first = page.0 & !(TOGETHER - 1);
        let together = self.counts.switched_to_eager && self.tag_use == TagUse::AtAccess;
        together.then_some(first..first + TOGETHER)
    }

    /// Why a page gets no tag storage.
    pub(crate) const fn over_budget(&self) -> MemError {
        MemError::OverBudget {
            budget: self.budget,
        }
    }

    /// Which frames a page without tag access may have.
    pub(crate) const fn wish(&self) -> Wish {
        match self.tag_use {
            TagUse::Never => Wish::Lent,
            TagUse::AtTagAccess => Wish::Own,
            // What it holds from the time before it tagged everything may lie anywhere.
            TagUse::AtAccess if self.counts.switched_to_eager => Wish::Own,
            TagUse::AtAccess => Wish::Taggable,
        }
    }

    /// Maps a page that was never touched, without tag access, and with it 2 MiB where one leaf can.
    pub(crate) fn fill<H: Hardware>(
        &mut self,
        host: &mut HostMemory,
        hw: &mut H,
        page: Page,
        position: Position,
    ) -> Result<Frame, MemError> {
        let missing = match position {
            Position::Missing(missing) if self.wants_big(host, page) && missing.is_block() => {
                missing
            }
            other => {
                let gap = Gap::supply(other, host)?;
                return self.fill_one(host, hw, page, gap);
            }
        };
        let slot = page.slot();
        let Some(piece) = self.ram.take_piece(host, slot) else {
            let gap = Gap::supply(Position::Missing(missing), host)?;
            return self.fill_one(host, hw, page, gap);
        };
        if !piece.number().is_multiple_of(PIECE_FRAMES) {
            self.ram.give_piece(host, piece, slot);
            let gap = Gap::supply(Position::Missing(missing), host)?;
            return self.fill_one(host, hw, page, gap);
        }
        let supplied = match missing.supply(true, || host.alloc_table_page()) {
            Ok(supplied) => supplied,
            Err(taken) => {
                self.ram.give_piece(host, piece, slot);
                return Err(free_tables(host, taken, MemError::NoMemory));
            }
        };
        host.chunks.fill_piece(piece, slot);
        let frames = FrameRange::new(piece, PIECE_FRAMES);
        self.provide(hw, Page::in_slot(slot, 0), frames);
        let vacant = self.tables.install(hw, supplied);
        self.tables.make(hw, vacant, self.tag_use.untagged(piece));
        self.no_tag_access += PIECE_FRAMES;
        Ok(piece.plus(page.offset()))
    }

    /// Whether a page's slot should be mapped by one leaf.
    fn wants_big(&self, host: &HostMemory, page: Page) -> bool {
        let has_own = !self.ram.spare.is_empty() || host.holding(self.ram.vm).outstanding() > 0;
        let own = has_own && self.wish() != Wish::Lent || !host.can_lend();
        own && self.ram.is_whole(page.slot()) && self.ram.home(page.slot()).is_none()
    }

    /// Writes what the guest is to find in pages from `page` on into their `frames`: images, and zeroes.
    /// Another vCPU must not see the pages before that, so it waits.
    pub(crate) fn provide<H: Hardware>(&self, hw: &mut H, page: Page, frames: FrameRange) {
        let start = self.ram.ipa(page);
        let parts = self.images.map(|image| image.part(start, frames.bytes()));
        if !parts
            .iter()
            .flatten()
            .any(|part| part.bytes == frames.bytes())
        {
            hw.zero_frames(frames);
        }
        for Image { ipa, source, bytes } in parts.into_iter().flatten() {
            let to = frames.start.addr().get() + (ipa.get() - start.get());
            hw.copy_image(source, PhysAddr::new(to), bytes);
        }
        hw.sync_code(frames);
    }

    fn fill_one<H: Hardware>(
        &mut self,
        host: &mut HostMemory,
        hw: &mut H,
        page: Page,
        gap: Gap,
    ) -> Result<Frame, MemError> {
        let wish = self.wish();
        let Some(frame) = self.ram.take_frame(host, hw, page, wish) else {
            return Err(gap.give_back(host, MemError::NoMemory));
        };
        self.provide(hw, page, frame.into());
        let vacant = gap.fill(host, &mut self.tables, hw);
        self.tables.make(hw, vacant, self.tag_use.untagged(frame));
        self.no_tag_access += 1;
        Ok(frame)
    }

    /// Takes what breaking a page needs that is mapped at `position`: for one in a 2 MiB leaf a table,
    /// and a map of the piece.
    // On the way of each tag fault: called, it would copy its result.
    #[inline(always)]
    pub(crate) fn ready(
        &self,
        host: &mut HostMemory,
        page: Page,
        position: Position,
    ) -> Result<Ready, MemError> {
        let big = match position {
            Position::Mapped(mapped) => return Ok(Ready::Page(mapped)),
            Position::Big(big) => big,
            // The maps say that it is there: they and the tables differ.
            _ => return Err(MemError::NotRam(self.ram.ipa(page))),
        };
        let table = host.alloc_table_page().ok_or(MemError::NoMemory)?;
        if host.open_piece(big.leaf().frame, page.slot()).is_none() {
            return Err(free_tables(host, [table], MemError::NoMemory));
        }
        Ok(Ready::Block(big, table))
    }

    /// The same for the page at an address.
    pub(crate) fn ready_at(
        &self,
        host: &mut HostMemory,
        memory: &impl TableMemory,
        page: Page,
    ) -> Result<Ready, MemError> {
        let position = self.tables.walk(memory, self.ram.ipa(page))?;
        self.ready(host, page, position)
    }

    /// Breaks a page, and splits the 2 MiB leaf that it is in.
    pub(crate) fn break_page<H: Hardware>(
        &mut self,
        host: &mut HostMemory,
        hw: &mut H,
        page: Page,
        ready: Ready,
    ) -> Broken {
        let ipa = self.ram.ipa(page);
        match ready {
            Ready::Page(mapped) => self.tables.break_page(hw, ipa, mapped),
            Ready::Block(big, table) => {
                host.leaf_tables += 1;
                self.tables.split(hw, ipa, (big, table))
            }
        }
    }

    /// Moves the data of a page without tag access to a frame that is the page's already.
    pub(crate) fn move_page<H: Hardware>(
        &mut self,
        host: &mut HostMemory,
        hw: &mut H,
        page: Page,
        to: Frame,
    ) -> Result<(), MemError> {
        let ready = self.ready_at(host, hw, page)?;
        let broken = self.break_page(host, hw, page, ready);
        hw.copy(broken.was().frame, to);
        hw.sync_code(to.into());
        hw.synchronize();
        self.tables
            .make(hw, broken.vacant(), self.tag_use.untagged(to));
        Ok(())
    }

    /// Maps a whole piece by one leaf again, if each frame of it holds the page of its place and
    /// none has tag access.
    pub(crate) fn join<H: Hardware>(&mut self, host: &mut HostMemory, hw: &mut H, frame: Frame) {
        let Some(piece) = host.chunks.piece_start(frame) else {
            return;
        };
        let uniform = host.chunks.map(piece).filter(|map| map.is_uniform());
        let Some(slot) = uniform.map(PieceMap::slot) else {
            return;
        };
        if !piece.number().is_multiple_of(PIECE_FRAMES) || !self.ram.is_whole(slot) {
            return;
        }
        let leaf = self.tag_use.untagged(piece).leaf();
        let ipa = self.ram.ipa(Page::in_slot(slot, 0));
        if let Some(table) = self.tables.join(hw, ipa, leaf) {
            host.chunks.join_piece(piece);
            self.ram.roomy.remove(slot.into());
            host.leaf_tables -= 1;
            // It was a table a moment ago, so it is in use.
            let _ = host.free_table_page(table);
        }
    }

    /// Takes a part of its RAM away from a guest that does not run, and checks what is in it. All
    /// figures are right at any time, and others may do anything between two parts. `None` if nothing
    /// is left.
    pub(crate) fn release<H: Hardware>(
        &mut self,
        host: &mut HostMemory,
        hw: &mut H,
    ) -> Option<Result<u64, Violation>> {
        let part = self.tables.detach(hw)?;
        match core::mem::replace(&mut self.is_leaving, true) {
            true => host.amid_release(),
            false => host.before_release(),
        }
        let mut checks = Checks::default();
        part.visit(|item| {
            checks.check(host, self, item);
            if let Err(lost) = self.release_item(host, hw, item) {
                self.lost = self.lost.or(Some(lost));
            }
        });
        Some(checks.result())
    }

    fn release_item<H: Hardware>(
        &mut self,
        host: &mut HostMemory,
        hw: &mut H,
        item: Visit,
    ) -> Result<(), MemError> {
        match item {
            Visit::Page(_, leaf) => {
                match self.tag_use.tagged(leaf) {
                    true => {
                        self.tagged -= 1;
                        self.reserved -= host.drop_user(hw, leaf.frame)?;
                    }
                    false => self.no_tag_access -= 1,
                }
                self.ram.free_frame(host, leaf.frame)?;
            }
            Visit::Big(_, leaf) => {
                self.no_tag_access -= PIECE_FRAMES;
                if let Piece::Whole(slot) = host.chunks.piece(leaf.frame) {
                    self.ram.give_piece(host, leaf.frame, slot);
                }
            }
            Visit::Busy(_) => {}
            Visit::Table(table, is_leaf) => {
                host.leaf_tables -= u64::from(is_leaf);
                host.free_table_page(table)?;
            }
            Visit::Corrupt(corrupt) => return Err(corrupt.into()),
        }
        Ok(())
    }

    /// Takes all RAM away from the guest, as a reset does: each page is as at its start, and
    /// untouched, afterwards. The VM keeps its root table.
    ///
    /// # Errors
    /// Only a guarantee that was lost before; all that can be released has been.
    pub(crate) fn reset<H: Hardware>(
        &mut self,
        host: &mut HostMemory,
        hw: &mut H,
    ) -> Result<(), MemError> {
        while self.release(host, hw).is_some() {}
        self.is_leaving = false;
        self.tag_use = TagUse::of(&self.spec);
        self.counts.switched_to_eager = false;
        self.lost.take().map_or(Ok(()), Err)
    }

    /// Gives back all that the VM has. Its VMID may be used again.
    ///
    /// # Errors
    /// Only a guarantee that was lost before; all that can be released has been.
    pub(crate) fn destroy(
        mut self,
        host: &mut HostMemory,
        hw: &mut impl Hardware,
    ) -> Result<(), MemError> {
        let reset = self.reset(host, hw);
        self.ram.give_unused_chunks(host);
        host.guest_metadata -= self.ram.metadata_bytes();
        let root = host
            .free_table_page(self.tables.root())
            .map_err(MemError::from);
        reset.and(root)
    }

    /// The VM's figures now. Constant time.
    pub fn account(&self) -> VmAccount {
        let memory = self.spec.ram_bytes;
        let static_cost = memory / TAG_RATIO;
        let is_static = self.spec.policy == Policy::Static;
        let reserved = if is_static {
            static_cost
        } else {
            self.reserved
        };
        let touched = self.tagged + self.no_tag_access;
        let (counts, lent) = (&self.counts, self.ram.lent * PAGE_SIZE);
        VmAccount {
            memory,
            resident: touched * PAGE_SIZE,
            pages: PageCounts {
                untouched: memory / PAGE_SIZE - touched,
                no_tag_access: self.no_tag_access,
                tagged: self.tagged,
            },
            lent,
            big_leaves: self.tables.big_leaves().into(),
            reserved,
            static_cost,
            reclaimed: static_cost as i64 - reserved as i64,
            tag_faults: counts.tag_faults,
            moves: counts.moves,
            evictions_caused: counts.evictions_caused,
            evictions_suffered: counts.evictions_suffered,
            demotions: counts.demotions,
            throttled: counts.throttled,
            switched_to_eager: counts.switched_to_eager,
            peak: VmPeak {
                reserved: reserved.max(self.peak.reserved),
                lent: lent.max(self.peak.lent),
                ..self.peak
            },
        }
    }

    /// Counts a page that has tag access now; `opened` bytes of tag storage were reserved for it.
    pub(crate) fn count_tagged(&mut self, opened: u64) {
        self.tagged += 1;
        self.reserved += opened;
        self.peak.tagged_pages = self.peak.tagged_pages.max(self.tagged);
        self.peak.reserved = self.peak.reserved.max(self.reserved);
    }

    /// Keeps the most of its RAM that was ever in tag storage.
    pub(crate) fn count_lent(&mut self) {
        self.peak.lent = self.peak.lent.max(self.ram.lent * PAGE_SIZE);
    }
}

/// A mapped page, with all that breaking it needs.
#[derive(Debug)]
#[must_use = "what it holds must be used or given back"]
pub(crate) enum Ready {
    /// It has an entry of its own.
    Page(Mapped),
    /// It is in a 2 MiB leaf, whose piece has got a map, and which this table is to replace.
    Block(Big, Frame),
}

impl Ready {
    /// For one who does not break it after all; returns why.
    pub(crate) fn give_back(self, host: &mut HostMemory, cause: MemError) -> MemError {
        match self {
            Self::Page(_) => cause,
            Self::Block(big, table) => {
                host.chunks.join_piece(big.leaf().frame);
                free_tables(host, [table], cause)
            }
        }
    }
}

/// The way from the root to a page that is not mapped, with all that it needs.
pub(crate) enum Gap {
    Page(Vacant),
    Tables(Supplied),
}

impl Gap {
    pub(crate) fn supply(position: Position, host: &mut HostMemory) -> Result<Self, MemError> {
        let missing: Missing = match position {
            Position::Missing(missing) => missing,
            Position::Vacant(vacant) | Position::Busy(vacant) => return Ok(Self::Page(vacant)),
            Position::Mapped(_) | Position::Big(_) => return Err(MemError::NoMemory),
        };
        match missing.supply(false, || host.alloc_table_page()) {
            Ok(supplied) => Ok(Self::Tables(supplied)),
            Err(taken) => Err(free_tables(host, taken, MemError::NoMemory)),
        }
    }

    /// Gives back what it has.
    pub(crate) fn free(self, host: &mut HostMemory) -> Result<(), NotOwned> {
        match self {
            Self::Page(_) => Ok(()),
            Self::Tables(supplied) => {
                let mut frames = supplied.into_frames();
                frames.try_for_each(|table| host.free_table_page(table))
            }
        }
    }

    /// The same for an operation that is refused; returns why it is refused.
    pub(crate) fn give_back(self, host: &mut HostMemory, cause: MemError) -> MemError {
        self.free(host).map_or_else(MemError::from, |()| cause)
    }

    pub(crate) fn fill(
        self,
        host: &mut HostMemory,
        tables: &mut Stage2Tables,
        hw: &mut impl Hardware,
    ) -> Vacant {
        match self {
            Self::Page(vacant) => vacant,
            Self::Tables(supplied) => {
                host.leaf_tables += 1;
                tables.install(hw, supplied)
            }
        }
    }
}

/// Frees what was taken for an operation that is refused; returns why it is refused.
fn free_tables(
    host: &mut HostMemory,
    tables: impl IntoIterator<Item = Frame>,
    cause: MemError,
) -> MemError {
    let freed = tables
        .into_iter()
        .try_for_each(|table| host.free_table_page(table));
    freed.map_or_else(MemError::from, |()| cause)
}

/// Whether a VM's RAM can be.
pub(crate) fn check_ram(spec: &GuestSpec) -> Result<(), MemError> {
    let (base, bytes) = (spec.ram_base, spec.ram_bytes);
    let aligned = base.get().is_multiple_of(PAGE_SIZE) && bytes.is_multiple_of(PAGE_SIZE);
    let end = base
        .checked_add(bytes)
        .filter(|end| end.get() <= 1 << IPA_BITS);
    match aligned && bytes != 0 && end.is_some() {
        true => Ok(()),
        false => Err(MemError::BadRam { base, bytes }),
    }
}
