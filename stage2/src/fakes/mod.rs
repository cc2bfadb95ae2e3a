//! A simulated machine for tests: what real hardware does to a hypervisor that leaves a step out.
//!
//! Tags live in the carve-out, so that a tag write changes data there and a data write changes
//! tags; memory that nobody has written is garbage; each CPU's TLB entries stay until they are
//! invalidated, combined stage-1 and stage-2 entries until *they* are; an entry that was not
//! published may not be seen. What a guest must never notice is kept as a [`BrokenRule`]; every
//! step is kept in order as a [`Step`].
//!
//! With an adversary ([`SimMachine::with_adversary`]) the carve-out is cached, as data and as tags,
//! lines are fetched and written back at any moment, CPUs translate ahead, stores land late, and
//! maintenance is done at any moment until the `DSB`. All of it follows from a seed.
//!
//! Nothing of this crate's own decoders is used here: a shared mistake would cancel out.

mod adversary;
mod cache;
mod memory;
mod ports;
mod sabotage;
mod stores;
mod tables;
mod tlb;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use self::adversary::Adversary;
use self::cache::Caches;
use self::memory::{Memory, Page};
pub use self::sabotage::Sabotage;
use self::stores::{Store, Value};
pub use self::tables::Tables;
pub use self::tlb::TlbEntry;
use self::tlb::{BLOCK_PAGES, Cpu, PendingTlbi};
use crate::addr::{Frame, FrameRange, Ipa, PAGE_SIZE, PhysAddr};
use crate::descriptor::Vmid;
use crate::region::TagRegionDesc;

/// Bytes of a tag granule.
pub const GRANULE: u64 = 16;

/// One step of the hypervisor on the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// A table entry was written.
    WriteEntry(Frame, usize, u64),
    /// A table was cleared.
    ClearTable(Frame),
    /// VTTBR_EL2 was loaded.
    LoadVttbr(Vmid, Frame),
    /// `TLBI IPAS2E1IS` for the loaded VMID.
    TlbiIpa(Vmid, Ipa),
    /// `TLBI VMALLE1IS` for the loaded VMID.
    TlbiStage1(Vmid),
    /// `TLBI VMALLS12E1IS` for the loaded VMID.
    TlbiAll(Vmid),
    /// `TLBI VALE2IS`, which repeats the last one for the erratum.
    TlbiRepeat,
    /// `DSB` after TLB maintenance or table writes.
    Publish,
    /// `DC CIVAC` over frames.
    CleanData(FrameRange),
    /// `DC CIGVAC` over frames.
    CleanTags(FrameRange),
    /// The tags of a frame were zeroed.
    ZeroTags(Frame),
    /// `DSB` after cache maintenance or tag writes.
    Synchronize,
    /// The data of a frame was zeroed.
    ZeroFrame(Frame),
    /// Data was copied.
    Copy(Frame, Frame),
    /// The data of two frames was swapped.
    Exchange(Frame, Frame),
    /// Tags were copied.
    CopyTags(Frame, Frame),
    /// Bytes of an image were copied.
    CopyImage(PhysAddr, PhysAddr, u64),
    /// `DC CVAU`, `IC IVAU` over frames, and `DSB`.
    SyncCode(FrameRange),
}

/// Something that the architecture, or safety, forbids.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BrokenRule {
    /// A valid entry was overwritten by another valid one.
    NoBreakBeforeMake(Frame, usize),
    /// An entry was made while a TLB held its predecessor.
    MadeOverLiveTlbEntry(Frame, usize),
    /// A table was linked before its contents were published.
    LinkedBeforePublished(Frame),
    /// A page was mapped before its new data or tags were visible everywhere.
    MappedBeforeVisible(Frame),
    /// A walker met an entry that was written and not published.
    UnpublishedEntry(Frame, usize),
    /// A table was cleared while a TLB entry came from it.
    TableReusedWhileCached(Frame),
    /// Data or tags were changed while a TLB still maps the frame.
    FrameChangedWhileMapped(Frame),
    /// Data or tags were changed while a store of another CPU to the frame was under way.
    FrameChangedUnderStore(Frame),
    /// A page was mapped whose data was written and not made visible to instruction fetches.
    StaleCodeMapped(Frame),
    /// A tag operation on memory that has no tags: tag storage, or outside all tagged memory.
    TagsOfUntaggable(Frame),
    /// A dirty line of tags of this frame was written back over data that was newer.
    TagsOverwroteData(Frame),
    /// A dirty line of data in this frame of tag storage was written back over newer tags.
    DataOverwroteTags(Frame),
}

/// A guest's view of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SimGuest {
    /// Its TLB entries' mark.
    pub vmid: Vmid,
    /// Its root table.
    pub root: Frame,
    /// HCR_EL2.ATA.
    pub ata: bool,
}

/// A stage-2 fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SimFault {
    /// No valid entry.
    Translation,
    /// The entry allows no tag access.
    TagAccess,
}

/// The machine.
#[derive(Default)]
pub struct SimMachine {
    memory: Memory,
    caches: Caches,
    cpus: BTreeMap<usize, Cpu>,
    /// The CPU of whatever is done next, by a guest or by EL2.
    on: usize,
    pending_tlbi: Vec<PendingTlbi>,
    stores: Vec<Store>,
    hold_store: bool,
    /// Table entries that walkers may or may not see yet, and what they were before.
    unpublished: BTreeMap<(Frame, usize), u64>,
    /// The same for whole tables: nobody can have a link to them.
    cleared: BTreeMap<Frame, Page>,
    /// Frames whose data or tags were written and not waited for.
    invisible: BTreeSet<Frame>,
    /// Frames whose data was written, and in which instruction fetches may see what was there before.
    stale_code: BTreeSet<Frame>,
    erratum: bool,
    adversary: Option<Adversary>,
    sabotage: Option<Sabotage>,
    log: Vec<Step>,
    broken: Vec<BrokenRule>,
}

impl SimMachine {
    /// A machine with these tag regions. `hidden` memory has tags that no software can see as data.
    pub fn new(regions: Vec<TagRegionDesc>, hidden: Vec<FrameRange>) -> Self {
        Self {
            memory: Memory::new(regions, hidden),
            ..Self::default()
        }
    }

    /// The machine with CPUs of erratum CVE-2025-10263: a store may land after the `DSB` that
    /// should have waited for it, until the TLBI is repeated.
    pub fn with_erratum(mut self) -> Self {
        self.erratum = true;
        self
    }

    /// Makes `cpu` the CPU of all that follows: guests' accesses and the hypervisor's steps.
    pub fn run_on(&mut self, cpu: usize) {
        self.on = cpu;
    }

    /// The steps since the last call.
    pub fn take_log(&mut self) -> Vec<Step> {
        core::mem::take(&mut self.log)
    }

    /// The rules broken so far: empty, or the hypervisor is wrong.
    pub fn broken_rules(&self) -> &[BrokenRule] {
        &self.broken
    }

    /// Whether all bytes of `frame` are `value`, in memory: no cache is asked.
    pub fn frame_is(&self, frame: Frame, value: u8) -> bool {
        self.memory
            .written(frame)
            .is_some_and(|page| **page == [value; PAGE_SIZE as usize])
    }

    /// Sets all bytes of `frame` in memory, as somebody else's data: past all caches.
    pub fn fill(&mut self, frame: Frame, value: u8) {
        self.memory.page(frame).fill(value);
    }

    /// A guest's load of one byte.
    pub fn load(&mut self, guest: SimGuest, ipa: Ipa) -> Result<u8, SimFault> {
        let entry = self.access(guest, ipa)?;
        Ok(self.byte(entry.at(ipa)))
    }

    /// A guest's store of one byte.
    pub fn store(&mut self, guest: SimGuest, ipa: Ipa, value: u8) -> Result<(), SimFault> {
        let entry = self.access(guest, ipa)?;
        self.begin_store(guest, ipa, (entry.at(ipa), Value::Data(value)));
        Ok(())
    }

    /// A guest's `LDG`. Without HCR_EL2.ATA it reads 0.
    pub fn ldg(&mut self, guest: SimGuest, ipa: Ipa) -> Result<u8, SimFault> {
        let Some(pa) = self.access_tags(guest, ipa)? else {
            return Ok(0);
        };
        self.has_tags(Frame::containing(pa));
        Ok(self.tag(pa))
    }

    /// A guest's `STG`. Without HCR_EL2.ATA it is ignored.
    pub fn stg(&mut self, guest: SimGuest, ipa: Ipa, tag: u8) -> Result<(), SimFault> {
        if let Some(pa) = self.access_tags(guest, ipa)? {
            self.begin_store(guest, ipa, (pa, Value::Tag(tag)));
        }
        Ok(())
    }

    fn access(&mut self, guest: SimGuest, ipa: Ipa) -> Result<TlbEntry, SimFault> {
        self.tick();
        self.land_stores_of_guest(guest, ipa);
        self.note_access(guest, ipa);
        let entry = self.translate(guest, ipa)?;
        self.note_frame(entry.frame());
        Ok(entry)
    }

    fn access_tags(&mut self, guest: SimGuest, ipa: Ipa) -> Result<Option<PhysAddr>, SimFault> {
        let entry = self.access(guest, ipa)?;
        match (guest.ata, entry.allows_tags()) {
            (false, _) => Ok(None),
            (true, true) => Ok(Some(entry.at(ipa))),
            (true, false) => Err(SimFault::TagAccess),
        }
    }

    /// Writes a step down; anything may happen after it.
    fn step(&mut self, step: Step) {
        self.log.push(step);
        self.tick();
    }

    fn must_be_unreachable(&mut self, frame: Frame) {
        self.land_stores_of_this_cpu(frame);
        if self.maps(frame) {
            self.broken.push(BrokenRule::FrameChangedWhileMapped(frame));
        }
    }

    /// What an entry was that walkers may not see as it is; none if they do.
    fn before(&self, table: Frame, index: usize) -> Option<u64> {
        let cleared = self.cleared.get(&table);
        let entry = cleared.and_then(|page| page.as_chunks().0.get(index));
        entry
            .map(|raw| u64::from_le_bytes(*raw))
            .or_else(|| self.unpublished.get(&(table, index)).copied())
    }

    /// `DSB ISHST`: stores are visible, to walkers too.
    fn dsb_of_stores(&mut self) {
        self.unpublished.clear();
        self.cleared.clear();
        self.invisible.clear();
        self.step(Step::Publish);
    }

    /// `DSB ISH`: besides, TLBIs and maintenance are done, and what they had to wait for.
    fn dsb(&mut self) {
        self.finish_pending();
        // A TLBI does not wait for entries that were written before it.
        if !self.unpublished.is_empty() {
            (0..self.roll(16)).for_each(|_| self.translate_ahead());
        }
        self.dsb_of_stores();
    }

    fn finish_pending(&mut self) {
        while !self.pending_tlbi.is_empty() {
            self.finish_tlbi(0);
        }
        while self.caches.pending() > 0 {
            let number = self.roll(self.caches.pending());
            self.finish_maintenance(number);
        }
        self.wait_for_stores();
    }
}
