//! The ports of this crate, on the simulated machine.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::cache::Maintenance;
use super::memory::GRANULES;
use super::tlb::{OUTPUT_ADDRESS, Tlbi};
use super::{BLOCK_PAGES, BrokenRule, Sabotage, SimMachine, Step};
use crate::addr::{Frame, FrameRange, Ipa, PAGE_SIZE, PhysAddr};
use crate::descriptor::Vmid;
use crate::ports::{FrameCopy, TableMemory, TagCache, Tlb};

impl TableMemory for SimMachine {
    fn read(&self, table: Frame, index: usize) -> u64 {
        let start = index * 8;
        let page = self.memory.written(table);
        let bytes = page.and_then(|page| page.get(start..start + 8)?.try_into().ok());
        bytes.map_or(u64::MAX, u64::from_le_bytes)
    }

    fn write(&mut self, table: Frame, index: usize, raw: u64) {
        let old = self.read(table, index);
        if raw & 1 != 0 {
            self.check_make(table, index, (old, raw));
        }
        if let Some(entry) = self.memory.page(table).get_mut(index * 8..index * 8 + 8) {
            entry.copy_from_slice(&raw.to_le_bytes());
        }
        self.unpublished.entry((table, index)).or_insert(old);
        self.step(Step::WriteEntry(table, index, raw));
    }

    fn clear(&mut self, table: Frame) {
        if self.tlb().any(|(_, _, entry)| entry.came_from(table, None)) {
            self.broken.push(BrokenRule::TableReusedWhileCached(table));
        }
        self.must_be_unreachable(table);
        let old = core::mem::replace(self.memory.page(table), Box::new([0; PAGE_SIZE as usize]));
        self.cleared.entry(table).or_insert(old);
        self.step(Step::ClearTable(table));
    }
}

impl SimMachine {
    /// The rules for writing a valid entry.
    fn check_make(&mut self, table: Frame, index: usize, (old, raw): (u64, u64)) {
        if old & 1 != 0 && old != raw {
            self.broken
                .push(BrokenRule::NoBreakBeforeMake(table, index));
        }
        let stale = |entry: super::TlbEntry| entry.came_from(table, Some((index, raw)));
        if self.tlb().any(|(_, _, entry)| stale(entry)) {
            self.broken
                .push(BrokenRule::MadeOverLiveTlbEntry(table, index));
        }
        let target = Frame::containing(PhysAddr::new(raw & OUTPUT_ADDRESS));
        let fresh = |table| self.cleared.contains_key(&table);
        if fresh(target) && !fresh(table) {
            self.broken.push(BrokenRule::LinkedBeforePublished(target));
        }
        // A table is never among these: it is cleared, not zeroed.
        let pages = if raw & 2 == 0 { BLOCK_PAGES } else { 1 };
        let mapped = target..target.plus(pages);
        let unseen = |frames: &alloc::collections::BTreeSet<Frame>| {
            frames.range(mapped.clone()).next().copied()
        };
        let (invisible, stale) = (unseen(&self.invisible), unseen(&self.stale_code));
        self.broken
            .extend(invisible.map(BrokenRule::MappedBeforeVisible));
        self.broken.extend(stale.map(BrokenRule::StaleCodeMapped));
    }

    /// Runs TLBIs for a VM, each with a `DSB` behind it, and the repeat.
    fn invalidate(&mut self, vmid: Vmid, root: Frame, tlbis: &[Tlbi]) {
        if !self.is(Sabotage::NoDsbBeforeTlbi) {
            self.dsb_of_stores();
        }
        let vmid = match self.is(Sabotage::WrongVmid) {
            true => Vmid(vmid.0 ^ 0x8000),
            false => vmid,
        };
        let own = self.load_vttbr(Some((vmid, root)));
        for &tlbi in tlbis {
            self.issue(tlbi);
        }
        if self.erratum && !self.is(Sabotage::NoRepeat) {
            self.issue(Tlbi::Repeat);
        }
        self.load_vttbr(own);
    }

    fn issue(&mut self, tlbi: Tlbi) {
        let stage1 = matches!(tlbi, Tlbi::Stage1);
        if !(self.is(Sabotage::NoTlbi) || stage1 && self.is(Sabotage::NoStage1Tlbi)) {
            let broadcast = !self.is(Sabotage::LocalTlbi);
            self.tlbi(tlbi, broadcast);
        }
        if !self.is(Sabotage::NoDsbAfterTlbi) {
            self.dsb();
        }
    }

    /// Data of `frame` is about to be written.
    fn change(&mut self, frame: Frame) {
        self.must_be_unreachable(frame);
        self.note_frame(frame);
        self.invisible.insert(frame);
    }
}

impl Tlb for SimMachine {
    fn invalidate_page(&mut self, vmid: Vmid, root: Frame, ipa: Ipa) {
        self.invalidate(vmid, root, &[Tlbi::Ipa(ipa), Tlbi::Stage1]);
    }

    fn invalidate_block(&mut self, vmid: Vmid, root: Frame, ipa: Ipa) {
        self.invalidate_page(vmid, root, ipa);
    }

    fn invalidate_vm(&mut self, vmid: Vmid, root: Frame) {
        self.invalidate(vmid, root, &[Tlbi::All]);
    }

    fn publish(&mut self) {
        if !self.is(Sabotage::NoPublish) {
            self.dsb_of_stores();
        }
    }
}

impl TagCache for SimMachine {
    fn clean_invalidate_data(&mut self, frames: FrameRange) {
        if !self.is(Sabotage::NoDataClean) {
            self.maintain(Maintenance::Data(frames));
            self.step(Step::CleanData(frames));
        }
    }

    fn clean_invalidate_tags(&mut self, frames: FrameRange) {
        if !self.is(Sabotage::NoTagClean) {
            self.maintain(Maintenance::Tags(frames));
            self.step(Step::CleanTags(frames));
        }
    }

    fn zero_tags(&mut self, frame: Frame) {
        if !self.is(Sabotage::NoTagZeroing) {
            self.change(frame);
            self.write_tags(frame, Box::new([0; GRANULES]));
            self.step(Step::ZeroTags(frame));
        }
    }

    fn copy_tags(&mut self, from: Frame, to: Frame) {
        if !self.is(Sabotage::NoTagCopy) {
            self.must_be_unreachable(from);
            self.change(to);
            let tags = self.read_tags(from);
            self.write_tags(to, tags);
            self.step(Step::CopyTags(from, to));
        }
    }

    fn tags_are_zero(&mut self, frame: Frame) -> bool {
        // A look at a page that a guest still uses is allowed: it tells what was, not what is. Stores
        // of other CPUs may land after it.
        self.land_own_stores(frame);
        self.read_tags(frame).iter().all(|&tag| tag == 0)
    }

    fn synchronize(&mut self) {
        if !self.is(Sabotage::NoSynchronize) {
            self.finish_pending();
            self.invisible.clear();
            self.step(Step::Synchronize);
        }
    }
}

impl FrameCopy for SimMachine {
    fn zero_frames(&mut self, frames: FrameRange) {
        if self.is(Sabotage::NoZero) {
            return;
        }
        for frame in frames.iter() {
            self.change(frame);
            self.write_page(frame, Box::new([0; PAGE_SIZE as usize]));
            self.stale_code.insert(frame);
            self.step(Step::ZeroFrame(frame));
        }
    }

    fn copy(&mut self, from: Frame, to: Frame) {
        self.must_be_unreachable(from);
        self.change(to);
        self.stale_code.insert(to);
        if !self.is(Sabotage::NoCopy) {
            let page = self.read_page(from);
            self.write_page(to, page);
        }
        self.step(Step::Copy(from, to));
    }

    fn exchange(&mut self, one: Frame, other: Frame) {
        self.change(one);
        self.change(other);
        self.stale_code.extend([one, other]);
        let (first, second) = (self.read_page(one), self.read_page(other));
        self.write_page(other, first);
        if !self.is(Sabotage::HalfExchange) {
            self.write_page(one, second);
        }
        self.step(Step::Exchange(one, other));
    }

    fn copy_image(&mut self, from: PhysAddr, to: PhysAddr, bytes: u64) {
        let frame_of = |at| Frame::containing(PhysAddr::new(at));
        let end = to.get() + bytes;
        let mut image = Vec::new();
        for frame in
            FrameRange::between(frame_of(from.get()), frame_of(from.get() + bytes + 4095)).iter()
        {
            image.extend_from_slice(&*self.read_page(frame));
        }
        let mut image = image.into_iter().skip((from.get() % PAGE_SIZE) as usize);
        for frame in FrameRange::between(frame_of(to.get()), frame_of(end + 4095)).iter() {
            self.change(frame);
            self.stale_code.insert(frame);
            let mut page = self.read_page(frame);
            for (byte, at) in page.iter_mut().zip(frame.addr().get()..) {
                if (to.get()..end).contains(&at) {
                    *byte = image.next().unwrap_or(0);
                }
            }
            if !self.is(Sabotage::NoCopy) {
                self.write_page(frame, page);
            }
        }
        self.step(Step::CopyImage(from, to, bytes));
    }

    fn sync_code(&mut self, frames: FrameRange) {
        if !self.is(Sabotage::NoSyncCode) {
            self.stale_code.retain(|&frame| !frames.contains(frame));
            self.finish_pending();
            self.invisible.clear();
            self.step(Step::SyncCode(frames));
        }
    }
}
