//! A simulated machine for tests: what real hardware does to a hypervisor that leaves a step out.
//!
//! Tags live in the carve-out, so that a tag write changes data there and a data write changes
//! tags; memory that nobody has written is garbage; TLB entries stay until they are invalidated,
//! combined stage-1 and stage-2 entries until *they* are; an entry that was not published may not
//! be seen. What a guest must never notice is kept as a [`BrokenRule`]; every step is kept in order
//! as a [`Step`].
//!
//! Nothing of this crate's own decoders is used here: a shared mistake would cancel out.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::addr::{Frame, FrameRange, Ipa, PAGE_SIZE, PhysAddr};
use crate::descriptor::Vmid;
use crate::ports::{FrameCopy, TableMemory, TagCache, Tlb};
use crate::region::TagRegionDesc;

/// Bytes of a tag granule.
pub const GRANULE: u64 = 16;
const OUTPUT_ADDRESS: u64 = 0x0000_ffff_ffff_f000;

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
    /// `DC CVAU`, `IC IVAU` over a frame, and `DSB`.
    SyncCode(Frame),
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
    /// A tag operation on memory that has no tags: tag storage, or outside all tagged memory.
    TagsOfUntaggable(Frame),
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

/// What a TLB holds of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TlbEntry {
    /// The page's descriptor.
    pub raw: u64,
    /// The tables that it was walked through, root first.
    pub path: [Frame; 3],
    /// Its index in the last of them.
    pub index: usize,
}

impl TlbEntry {
    /// The frame that the entry maps.
    pub const fn frame(&self) -> Frame {
        Frame::containing(PhysAddr::new(self.raw & OUTPUT_ADDRESS))
    }

    /// Whether a guest with HCR_EL2.ATA can use tags through it.
    pub const fn allows_tags(&self) -> bool {
        self.raw >> 2 & 0xf == 0b0110
    }
}

type Page = Box<[u8; PAGE_SIZE as usize]>;

/// The machine.
#[derive(Default)]
pub struct SimMachine {
    regions: Vec<TagRegionDesc>,
    hidden: Vec<FrameRange>,
    data: BTreeMap<Frame, Page>,
    hidden_tags: BTreeMap<u64, u8>,
    stage2: BTreeMap<(Vmid, u64), TlbEntry>,
    combined: BTreeMap<(Vmid, u64), TlbEntry>,
    vttbr: Option<(Vmid, Frame)>,
    unpublished: BTreeSet<(Frame, usize)>,
    /// Frames whose data or tags were written and not waited for.
    invisible: BTreeSet<Frame>,
    log: Vec<Step>,
    broken: Vec<BrokenRule>,
}

impl SimMachine {
    /// A machine with these tag regions. `hidden` memory has tags that no software can see as data.
    pub fn new(regions: Vec<TagRegionDesc>, hidden: Vec<FrameRange>) -> Self {
        Self {
            regions,
            hidden,
            ..Self::default()
        }
    }

    /// The steps since the last call.
    pub fn take_log(&mut self) -> Vec<Step> {
        core::mem::take(&mut self.log)
    }

    /// The rules broken so far: empty, or the hypervisor is wrong.
    pub fn broken_rules(&self) -> &[BrokenRule] {
        &self.broken
    }

    /// All that any TLB holds, of any kind.
    pub fn tlb(&self) -> impl Iterator<Item = (Vmid, Ipa, TlbEntry)> {
        let all = self.stage2.iter().chain(&self.combined);
        all.map(|(&(vmid, page), &entry)| (vmid, Ipa::new(page * PAGE_SIZE), entry))
    }

    /// Reads a byte of DRAM as data.
    pub fn byte(&self, pa: PhysAddr) -> u8 {
        let offset = (pa.get() % PAGE_SIZE) as usize;
        let page = self.data.get(&Frame::containing(pa));
        page.and_then(|page| page.get(offset).copied())
            .unwrap_or_else(|| garbage(pa))
    }

    /// Writes a byte of DRAM as data.
    pub fn set_byte(&mut self, pa: PhysAddr, value: u8) {
        let offset = (pa.get() % PAGE_SIZE) as usize;
        if let Some(byte) = self.page(Frame::containing(pa)).get_mut(offset) {
            *byte = value;
        }
    }

    /// Whether all bytes of `frame` are `value`.
    pub fn frame_is(&self, frame: Frame, value: u8) -> bool {
        self.data
            .get(&frame)
            .is_some_and(|page| page.iter().all(|&byte| byte == value))
    }

    /// Sets all bytes of `frame`, as somebody else's data.
    pub fn fill(&mut self, frame: Frame, value: u8) {
        self.page(frame).fill(value);
    }

    /// The allocation tag of the granule at `pa`.
    pub fn tag(&self, pa: PhysAddr) -> u8 {
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

    fn set_tag(&mut self, pa: PhysAddr, tag: u8) {
        match self.tag_place(pa) {
            Some(TagPlace::Storage(place, shift)) => {
                let other = self.byte(place) & 0xf << (4 - shift);
                self.set_byte(place, other | (tag & 0xf) << shift);
            }
            Some(TagPlace::Hidden) => {
                self.hidden_tags.insert(pa.get() / GRANULE, tag & 0xf);
            }
            None => self
                .broken
                .push(BrokenRule::TagsOfUntaggable(Frame::containing(pa))),
        }
    }

    /// A guest's load of one byte.
    pub fn load(&mut self, guest: SimGuest, ipa: Ipa) -> Result<u8, SimFault> {
        let entry = self.translate(guest, ipa)?;
        Ok(self.byte(at(entry, ipa)))
    }

    /// A guest's store of one byte.
    pub fn store(&mut self, guest: SimGuest, ipa: Ipa, value: u8) -> Result<(), SimFault> {
        let entry = self.translate(guest, ipa)?;
        self.set_byte(at(entry, ipa), value);
        Ok(())
    }

    /// A guest's `LDG`. Without HCR_EL2.ATA it reads 0.
    pub fn ldg(&mut self, guest: SimGuest, ipa: Ipa) -> Result<u8, SimFault> {
        let place = self.translate_tags(guest, ipa)?;
        Ok(place.map_or(0, |pa| self.tag(pa)))
    }

    /// A guest's `STG`. Without HCR_EL2.ATA it is ignored.
    pub fn stg(&mut self, guest: SimGuest, ipa: Ipa, tag: u8) -> Result<(), SimFault> {
        if let Some(pa) = self.translate_tags(guest, ipa)? {
            self.set_tag(pa, tag);
        }
        Ok(())
    }

    fn translate_tags(&mut self, guest: SimGuest, ipa: Ipa) -> Result<Option<PhysAddr>, SimFault> {
        let entry = self.translate(guest, ipa)?;
        match (guest.ata, entry.allows_tags()) {
            (false, _) => Ok(None),
            (true, true) => Ok(Some(at(entry, ipa))),
            (true, false) => Err(SimFault::TagAccess),
        }
    }

    /// Through the TLBs if they have an entry, stale or not; faults are not kept.
    fn translate(&mut self, guest: SimGuest, ipa: Ipa) -> Result<TlbEntry, SimFault> {
        let key = (guest.vmid, ipa.get() / PAGE_SIZE);
        if let Some(&entry) = self.combined.get(&key) {
            return Ok(entry);
        }
        let entry = match self.stage2.get(&key) {
            Some(&entry) => entry,
            None => self.walk(guest.root, ipa).ok_or(SimFault::Translation)?,
        };
        self.stage2.insert(key, entry);
        self.combined.insert(key, entry);
        Ok(entry)
    }

    fn walk(&mut self, root: Frame, ipa: Ipa) -> Option<TlbEntry> {
        if ipa.get() >> 36 != 0 {
            return None;
        }
        let mut path = [root; 3];
        let mut raw = root.addr().get();
        let mut index = 0;
        for (step, shift) in path.iter_mut().zip([30, 21, 12]) {
            *step = Frame::containing(PhysAddr::new(raw & OUTPUT_ADDRESS));
            index = (ipa.get() >> shift) as usize & 511;
            if self.unpublished.contains(&(*step, index)) {
                self.broken.push(BrokenRule::UnpublishedEntry(*step, index));
            }
            raw = self.read(*step, index);
            // Table or page, with the access flag where it matters.
            if raw & 3 != 3 || shift == 12 && raw & 1 << 10 == 0 {
                return None;
            }
        }
        Some(TlbEntry { raw, path, index })
    }

    fn page(&mut self, frame: Frame) -> &mut Page {
        self.data.entry(frame).or_insert_with(|| {
            let mut page = Box::new([0; PAGE_SIZE as usize]);
            for (byte, address) in page.iter_mut().zip(frame.addr().get()..) {
                *byte = garbage(PhysAddr::new(address));
            }
            page
        })
    }

    fn tag_place(&self, pa: PhysAddr) -> Option<TagPlace> {
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

    fn maps(&self, frame: Frame) -> bool {
        self.tlb().any(|(_, _, entry)| entry.frame() == frame)
    }

    fn must_be_unreachable(&mut self, frame: Frame) {
        if self.maps(frame) {
            self.broken.push(BrokenRule::FrameChangedWhileMapped(frame));
        }
    }

    fn load_vttbr(&mut self, vttbr: Option<(Vmid, Frame)>) -> Option<(Vmid, Frame)> {
        if let Some((vmid, root)) = vttbr {
            self.log.push(Step::LoadVttbr(vmid, root));
        }
        core::mem::replace(&mut self.vttbr, vttbr)
    }

    /// Whether a table was cleared and not published: nobody can have a link to it.
    fn is_fresh(&self, table: Frame) -> bool {
        [0, 511]
            .iter()
            .all(|&index| self.unpublished.contains(&(table, index)))
    }

    fn dsb(&mut self) {
        self.unpublished.clear();
        self.invisible.clear();
        self.log.push(Step::Publish);
    }

    fn tlbi_ipa(&mut self, ipa: Ipa) {
        if let Some((vmid, _)) = self.vttbr {
            self.stage2.remove(&(vmid, ipa.get() / PAGE_SIZE));
            self.log.push(Step::TlbiIpa(vmid, ipa));
        }
    }

    fn tlbi_stage1(&mut self) {
        if let Some((vmid, _)) = self.vttbr {
            self.combined.retain(|key, _| key.0 != vmid);
            self.log.push(Step::TlbiStage1(vmid));
        }
    }

    fn tlbi_all(&mut self) {
        if let Some((vmid, _)) = self.vttbr {
            self.combined.retain(|key, _| key.0 != vmid);
            self.stage2.retain(|key, _| key.0 != vmid);
            self.log.push(Step::TlbiAll(vmid));
        }
    }
}

/// Where a tag is: a byte of the carve-out and the shift of its nibble, or out of sight.
enum TagPlace {
    Storage(PhysAddr, u32),
    Hidden,
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

const fn at(entry: TlbEntry, ipa: Ipa) -> PhysAddr {
    PhysAddr::new(entry.frame().addr().get() + ipa.get() % PAGE_SIZE)
}

impl TableMemory for SimMachine {
    fn read(&self, table: Frame, index: usize) -> u64 {
        let start = index * 8;
        let page = self.data.get(&table);
        let bytes = page.and_then(|page| page.get(start..start + 8)?.try_into().ok());
        bytes.map_or(u64::MAX, u64::from_le_bytes)
    }

    fn write(&mut self, table: Frame, index: usize, raw: u64) {
        let old = self.read(table, index);
        if old & 1 != 0 && raw & 1 != 0 && old != raw {
            self.broken
                .push(BrokenRule::NoBreakBeforeMake(table, index));
        }
        let stale = self.tlb().any(|(_, _, entry)| {
            entry.path.last() == Some(&table) && entry.index == index && entry.raw != raw
        });
        if raw & 1 != 0 && stale {
            self.broken
                .push(BrokenRule::MadeOverLiveTlbEntry(table, index));
        }
        let target = Frame::containing(PhysAddr::new(raw & OUTPUT_ADDRESS));
        if raw & 1 != 0 && self.is_fresh(target) && !self.is_fresh(table) {
            self.broken.push(BrokenRule::LinkedBeforePublished(target));
        }
        if raw & 1 != 0 && self.invisible.contains(&target) {
            self.broken.push(BrokenRule::MappedBeforeVisible(target));
        }
        if let Some(entry) = self.page(table).get_mut(index * 8..index * 8 + 8) {
            entry.copy_from_slice(&raw.to_le_bytes());
        }
        self.unpublished.insert((table, index));
        self.log.push(Step::WriteEntry(table, index, raw));
    }

    fn clear(&mut self, table: Frame) {
        if self.tlb().any(|(_, _, entry)| entry.path.contains(&table)) {
            self.broken.push(BrokenRule::TableReusedWhileCached(table));
        }
        self.must_be_unreachable(table);
        self.page(table).fill(0);
        self.unpublished
            .extend((0..512).map(|index| (table, index)));
        self.log.push(Step::ClearTable(table));
    }
}

impl Tlb for SimMachine {
    fn invalidate_page(&mut self, vmid: Vmid, root: Frame, ipa: Ipa) {
        self.dsb();
        let own = self.load_vttbr(Some((vmid, root)));
        self.tlbi_ipa(ipa);
        self.dsb();
        self.tlbi_stage1();
        self.dsb();
        self.load_vttbr(own);
    }

    fn invalidate_block(&mut self, vmid: Vmid, root: Frame, ipa: Ipa) {
        self.invalidate_page(vmid, root, ipa);
    }

    fn invalidate_vm(&mut self, vmid: Vmid, root: Frame) {
        self.dsb();
        let own = self.load_vttbr(Some((vmid, root)));
        self.tlbi_all();
        self.dsb();
        self.load_vttbr(own);
    }

    fn publish(&mut self) {
        self.dsb();
    }
}

impl TagCache for SimMachine {
    fn clean_invalidate_data(&mut self, frames: FrameRange) {
        self.log.push(Step::CleanData(frames));
    }

    fn clean_invalidate_tags(&mut self, frames: FrameRange) {
        self.log.push(Step::CleanTags(frames));
    }

    fn zero_tags(&mut self, frame: Frame) {
        self.must_be_unreachable(frame);
        for granule in 0..PAGE_SIZE / GRANULE {
            self.set_tag(PhysAddr::new(frame.addr().get() + granule * GRANULE), 0);
        }
        self.invisible.insert(frame);
        self.log.push(Step::ZeroTags(frame));
    }

    fn copy_tags(&mut self, from: Frame, to: Frame) {
        self.must_be_unreachable(from);
        self.must_be_unreachable(to);
        for offset in (0..PAGE_SIZE).step_by(GRANULE as usize) {
            let tag = self.tag(PhysAddr::new(from.addr().get() + offset));
            self.set_tag(PhysAddr::new(to.addr().get() + offset), tag);
        }
        self.invisible.insert(to);
        self.log.push(Step::CopyTags(from, to));
    }

    fn tags_are_zero(&mut self, frame: Frame) -> bool {
        let granules = frame.addr().get()..frame.addr().get() + PAGE_SIZE;
        granules
            .step_by(GRANULE as usize)
            .all(|pa| self.tag(PhysAddr::new(pa)) == 0)
    }

    fn synchronize(&mut self) {
        self.invisible.clear();
        self.log.push(Step::Synchronize);
    }
}

impl FrameCopy for SimMachine {
    fn zero_frames(&mut self, frames: FrameRange) {
        for frame in frames.iter() {
            self.must_be_unreachable(frame);
            self.fill(frame, 0);
            self.invisible.insert(frame);
            self.log.push(Step::ZeroFrame(frame));
        }
    }

    fn copy(&mut self, from: Frame, to: Frame) {
        self.must_be_unreachable(from);
        self.must_be_unreachable(to);
        let page = self.page(from).clone();
        *self.page(to) = page;
        self.invisible.insert(to);
        self.log.push(Step::Copy(from, to));
    }

    fn exchange(&mut self, one: Frame, other: Frame) {
        self.must_be_unreachable(one);
        self.must_be_unreachable(other);
        let page = self.page(other).clone();
        let page = core::mem::replace(self.page(one), page);
        *self.page(other) = page;
        self.invisible.extend([one, other]);
        self.log.push(Step::Exchange(one, other));
    }

    fn sync_code(&mut self, frame: Frame) {
        self.invisible.clear();
        self.log.push(Step::SyncCode(frame));
    }
}
