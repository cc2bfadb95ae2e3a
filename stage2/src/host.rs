//! The machine's memory: tag blocks, chunks, table frames. No hidden global: whoever changes memory
//! is handed this.

use alloc::vec::Vec;
use core::fmt;

use crate::account::{Ledger, MachineAccount};
use crate::addr::{Frame, FrameRange, PAGE_SIZE, PhysRange};
use crate::admission::Claim;
use crate::bitset::BitSet;
use crate::frames::{Chunks, NotOwned, Owner, PIECE_FRAMES, TableFrames};
use crate::kept::Kept;
use crate::lend::Holding;
use crate::pool::{List, TagBlocks};
use crate::region::{MemoryMap, TagRegion, subtract};

/// Physical address bits that stage-2 tables reach without FEAT_LPA2.
const PA_BITS: u32 = 48;

/// When tag storage is reserved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// The whole carve-out, for ever: today's machines, our baseline.
    Static,
    /// For a page at the guest's first access to it.
    Eager,
    /// For a page at the guest's first tag access to it (needs FEAT_MTE_PERM).
    Lazy,
}

/// The machine's memory, as discovered.
#[derive(Clone, Debug)]
pub struct Layout {
    /// DRAM, and what of it is taken. A region that was refused is in here as
    /// [`Occupant::StaticTags`](crate::region::Occupant::StaticTags).
    pub memory: MemoryMap,
    /// The regions that are sound, checked against the same memory.
    pub regions: Vec<TagRegion>,
    /// The machine's policy. Under [`Policy::Static`] the whole carve-out is reserved for ever.
    pub policy: Policy,
}

/// Why the machine's memory cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LayoutError {
    /// Two ranges of DRAM share memory.
    Overlap(PhysRange),
    /// Two tag regions share memory.
    RegionsOverlap(FrameRange),
    /// A tag region that was checked against other memory than this.
    RegionOutsideDram(FrameRange),
    /// DRAM beyond what stage-2 tables reach.
    TooHigh(PhysRange),
    /// The heap has no room for the tables that memory needs: about 1 byte for 32 KiB.
    NoHeap,
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlap(range) => write!(f, "memory {range} is described twice"),
            Self::NoHeap => write!(f, "the heap has no room for the tables of so much memory"),
            Self::RegionsOverlap(frames) => {
                write!(f, "two tag regions share {:#x}", frames.start.addr())
            }
            Self::RegionOutsideDram(frames) => {
                write!(
                    f,
                    "the carve-out at {:#x} is not all DRAM",
                    frames.start.addr()
                )
            }
            Self::TooHigh(range) => {
                write!(
                    f,
                    "memory {range} lies above the {PA_BITS} bits that stage 2 reaches"
                )
            }
        }
    }
}

/// The machine's memory.
pub struct HostMemory {
    /// The tag blocks of all regions.
    pub(crate) blocks: TagBlocks,
    /// Taggable DRAM.
    pub(crate) chunks: Chunks,
    /// Frames for tables.
    pub(crate) tables: TableFrames,
    /// Level-3 tables of all VMs.
    pub(crate) leaf_tables: u64,
    /// Bytes of the VMs' own maps.
    pub(crate) guest_metadata: u64,
    /// What each VM holds, by its number.
    pub(crate) holdings: Vec<Holding>,
    /// Free blocks that no VM's tags need soon, once they were used.
    pub(crate) idle: List,
    /// Frames without data in blocks that are lent.
    pub(crate) spare: BitSet,
    /// Whether tag storage is lent at all.
    pub(crate) lends: bool,
    pub(crate) peak_lent: u64,
    /// What all VMs are promised.
    pub(crate) admitted: Claim,
    /// What is kept for the operation under way.
    pub(crate) kept: Kept,
    /// Allocations until one is refused, in tests.
    #[cfg(any(test, feature = "fakes"))]
    pub(crate) refuse_after: Option<u64>,
    policy: Policy,
    discovered: u64,
    occupied: u64,
    untaggable: u64,
    highest: Option<MachineAccount>,
    pinned: bool,
}

impl HostMemory {
    /// Takes over the machine's memory. Nothing of it is touched: the work is in proportion to the
    /// number of ranges.
    pub fn new(layout: Layout) -> Result<Self, LayoutError> {
        check(&layout.memory, &layout.regions)?;
        let Layout {
            memory,
            regions,
            policy,
        } = layout;
        let dram = |taggable| {
            let ranges = memory
                .dram
                .iter()
                .filter(move |dram| dram.taggable == taggable);
            ranges
                .map(|dram| dram.range.inner_frames())
                .collect::<Vec<_>>()
        };
        let carve_outs = || regions.iter().map(TagRegion::tags);
        let taken = || {
            memory
                .occupied
                .iter()
                .map(|taken| taken.range.outer_frames())
        };
        let ours = |runs| subtract(subtract(runs, carve_outs()), taken());
        let (taggable, untaggable) = (ours(dram(true)), ours(dram(false)));
        let discovered = bytes(&dram(true)) + bytes(&dram(false));
        let in_use = bytes(&taggable) + bytes(&untaggable);
        let without_tags = bytes(&subtract(dram(false), carve_outs()));
        let carved: u64 = carve_outs().map(FrameRange::bytes).sum();
        let mut tables = TableFrames::new();
        for &run in &untaggable {
            tables.add_untaggable(run).ok_or(LayoutError::NoHeap)?;
        }
        let mut chunks = Chunks::new();
        share_out(&mut chunks, &mut tables, taggable, &regions).ok_or(LayoutError::NoHeap)?;
        let lends = policy != Policy::Static;
        let blocks = TagBlocks::new(regions, !lends).ok_or(LayoutError::NoHeap)?;
        let spare = BitSet::new(if lends { blocks.storage_frames() } else { 0 });
        Ok(Self {
            blocks,
            chunks,
            tables,
            leaf_tables: 0,
            guest_metadata: 0,
            holdings: Vec::new(),
            idle: List::EMPTY,
            spare: spare.ok_or(LayoutError::NoHeap)?,
            lends,
            peak_lent: 0,
            admitted: Claim::default(),
            kept: Kept::default(),
            #[cfg(any(test, feature = "fakes"))]
            refuse_after: None,
            policy,
            discovered,
            occupied: discovered - carved - in_use,
            untaggable: without_tags,
            highest: None,
            pinned: false,
        })
    }

    /// The machine's policy.
    pub const fn policy(&self) -> Policy {
        self.policy
    }

    /// The tag blocks of all regions.
    pub const fn blocks(&self) -> &TagBlocks {
        &self.blocks
    }

    /// The owner of the chunk that `frame` is part of; `None` if it is part of none.
    pub fn owner(&self, frame: Frame) -> Option<Owner> {
        Some(self.chunks.owner(self.chunks.chunk_of(frame)?))
    }

    /// Takes a frame for a table: of DRAM without tags if there is any, never of a carve-out. Its
    /// contents are whatever they were.
    pub fn alloc_table_page(&mut self) -> Option<Frame> {
        let kept = self.kept_table();
        kept.or_else(|| match self.grant() {
            true => self.tables.alloc(&mut self.chunks),
            false => None,
        })
    }

    /// Gives a table's frame back, after no walker can reach it (S14).
    pub fn free_table_page(&mut self, frame: Frame) -> Result<(), NotOwned> {
        self.tables.free(&mut self.chunks, frame)
    }

    /// The machine's figures now. Constant time in the size of memory.
    pub fn account(&self) -> MachineAccount {
        let blocks = self.blocks.bytes();
        let ledger = self.ledger();
        let reclaimed = blocks.carve_out - blocks.reserved - blocks.offline;
        let metadata = self.metadata_bytes();
        let costs = self.leaf_tables * PAGE_SIZE + metadata;
        let ideal = blocks.carve_out - blocks.offline - blocks.least_reserved;
        MachineAccount {
            discovered: self.discovered,
            carve_out: blocks.carve_out,
            reserved: blocks.reserved,
            offline: blocks.offline,
            lent: blocks.lent,
            peak_lent: self.peak_lent,
            free: blocks.free(),
            untaggable: self.untaggable,
            reclaimed,
            net_reclaimed: reclaimed as i64 - costs as i64,
            ideal: (self.policy == Policy::Lazy).then_some(ideal),
            tables: ledger.tables,
            metadata,
            ledger,
        }
    }

    /// The figures of the last moment at which the most tag storage was reserved.
    pub fn highest(&self) -> MachineAccount {
        let now = self.account();
        match self.highest {
            Some(highest) if self.pinned || now.reserved < highest.reserved => highest,
            _ => now,
        }
    }

    /// Makes this moment the one that [`highest`](Self::highest) tells: for the static policy,
    /// where nothing is ever released, when the last VM has started.
    pub fn snapshot_now(&mut self) {
        self.highest = Some(self.account());
        self.pinned = true;
    }

    /// To be called before pages lose tag access: keeps the figures if none were higher.
    pub(crate) fn before_release(&mut self) {
        self.keep_figures(|highest, reserved| highest <= reserved);
    }

    /// The same in the midst of taking a VM's memory away, where blocks are reserved whose tags are partly
    /// gone: such a moment counts only if it is higher.
    pub(crate) fn amid_release(&mut self) {
        self.keep_figures(|highest, reserved| highest < reserved);
    }

    fn keep_figures(&mut self, if_so: impl Fn(u64, u64) -> bool) {
        let reserved = self.blocks.bytes().reserved;
        let highest = self.highest.map(|highest| highest.reserved);
        if highest.is_none_or(|highest| if_so(highest, reserved)) && !self.pinned {
            self.highest = Some(self.account());
        }
    }

    /// Bytes of all metadata for memory.
    pub fn metadata_bytes(&self) -> u64 {
        let tables = self.tables.metadata_bytes() + self.chunks.metadata_bytes();
        let storage = self.blocks.metadata_bytes() + self.spare.metadata_bytes();
        tables + storage + self.guest_metadata
    }

    /// Whether something may be allocated: always, unless a test refuses.
    pub(crate) fn grant(&mut self) -> bool {
        #[cfg(any(test, feature = "fakes"))]
        if let Some(left) = &mut self.refuse_after {
            return match left.checked_sub(1) {
                Some(less) => {
                    *left = less;
                    true
                }
                None => false,
            };
        }
        true
    }

    /// Refuses every allocation after the next `grants`, or none: for tests of what a refusal leaves
    /// behind. Returns how many grants were left.
    #[cfg(any(test, feature = "fakes"))]
    pub fn refuse_after(&mut self, grants: Option<u64>) -> Option<u64> {
        core::mem::replace(&mut self.refuse_after, grants)
    }

    fn ledger(&self) -> Ledger {
        let (blocks, chunks, tables) = (
            self.blocks.bytes(),
            self.chunks.bytes(),
            self.tables.bytes(),
        );
        Ledger {
            owned: chunks.vms,
            tables: tables.used,
            reserved: blocks.reserved,
            lent: blocks.lent,
            free_storage: blocks.free(),
            offline: blocks.offline,
            free: chunks.total - chunks.vms - chunks.tables
                + tables.chunks_free
                + tables.fragments_free,
            free_untaggable: tables.untaggable_free,
            occupied: self.occupied,
        }
    }
}

fn bytes(runs: &[FrameRange]) -> u64 {
    runs.iter().map(|run| run.bytes()).sum()
}

fn check(memory: &MemoryMap, regions: &[TagRegion]) -> Result<(), LayoutError> {
    for (number, dram) in memory.dram.iter().enumerate() {
        if dram.range.end().get() > 1 << PA_BITS {
            return Err(LayoutError::TooHigh(dram.range));
        }
        let mut before = memory.dram.iter().take(number);
        if before.any(|other| other.range.overlaps(dram.range)) {
            return Err(LayoutError::Overlap(dram.range));
        }
    }
    let dram = || memory.dram.iter().map(|dram| dram.range.inner_frames());
    for (number, region) in regions.iter().enumerate() {
        if !subtract(alloc::vec![region.tags()], dram()).is_empty() {
            return Err(LayoutError::RegionOutsideDram(region.tags()));
        }
        let ours = [region.tags(), region.tagged()];
        let theirs = regions
            .iter()
            .take(number)
            .flat_map(|other| [other.tags(), other.tagged()]);
        for theirs in theirs {
            if ours.iter().any(|range| !range.intersect(theirs).is_empty()) {
                return Err(LayoutError::RegionsOverlap(theirs));
            }
        }
    }
    Ok(())
}

/// Cuts taggable DRAM into chunks, region by region; what is too small serves tables.
fn share_out(
    chunks: &mut Chunks,
    tables: &mut TableFrames,
    taggable: Vec<FrameRange>,
    regions: &[TagRegion],
) -> Option<()> {
    let plain = subtract(taggable.clone(), regions.iter().map(TagRegion::tagged));
    let plain = plain
        .into_iter()
        .map(|run| (run, Frame::from_number(0), PIECE_FRAMES));
    let covered = regions.iter().flat_map(|region| {
        let runs = taggable.iter().map(|run| run.intersect(region.tagged()));
        runs.map(|run| (run, region.tagged().start, region.coverage_frames()))
    });
    for (run, origin, coverage) in covered.chain(plain).collect::<Vec<_>>() {
        if !run.is_empty() {
            for rest in chunks.add(run, origin, coverage)? {
                tables.add_fragment(rest)?;
            }
        }
    }
    Some(())
}
