//! The CPUs' TLBs, the walk that fills them, and what removes entries.
//!
//! Each CPU holds stage-2 entries, and combined ones of stage 1 and stage 2, which only `TLBI
//! VMALLE1` or `VMALLS12E1` removes. A 2 MiB leaf may be held whole or as 4 KiB pieces. A TLBI has
//! done its work when a `DSB` has waited for it, not before.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::{BrokenRule, SimFault, SimGuest, SimMachine, Step};
use crate::addr::{Frame, FrameRange, Ipa, PAGE_SIZE, PhysAddr};
use crate::descriptor::Vmid;
use crate::ports::TableMemory;

pub(super) const OUTPUT_ADDRESS: u64 = 0x0000_ffff_ffff_f000;
/// Pages of a 2 MiB leaf.
pub(super) const BLOCK_PAGES: u64 = 512;

/// A descriptor that a walk read: its table, its index, its bits.
type Read = (Frame, usize, u64);
/// VMID, first page, number of pages.
type Key = (Vmid, u64, u64);
type Entries = BTreeMap<Key, TlbEntry>;

/// What a TLB holds of a page, or of a 2 MiB leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TlbEntry {
    raw: u64,
    frames: FrameRange,
    /// Two reads to a block, three to a page; the others repeat the last one.
    path: [Read; 3],
    of_block: bool,
}

impl TlbEntry {
    /// The first frame that the entry maps.
    pub const fn frame(&self) -> Frame {
        self.frames.start
    }

    /// The frames that the entry maps: 1 or 512.
    pub const fn frames(&self) -> FrameRange {
        self.frames
    }

    /// Whether a guest with HCR_EL2.ATA can use tags through it.
    pub const fn allows_tags(&self) -> bool {
        self.raw >> 2 & 0xf == 0b0110
    }

    /// Whether the walk to it read another descriptor from `table`, or from that entry of it.
    pub(super) fn came_from(&self, table: Frame, entry: Option<(usize, u64)>) -> bool {
        self.path.iter().any(|&(from, index, raw)| {
            from == table && entry.is_none_or(|(i, new)| i == index && new != raw)
        })
    }

    fn piece(&self, page: u64) -> Self {
        let frame = self.frames.start.plus(page % self.frames.count);
        Self {
            frames: FrameRange::new(frame, 1),
            ..*self
        }
    }

    pub(super) const fn at(&self, ipa: Ipa) -> PhysAddr {
        let offset = ipa.get() % (self.frames.count * PAGE_SIZE);
        PhysAddr::new(self.frames.start.addr().get() + offset)
    }
}

/// A CPU.
#[derive(Default)]
pub(super) struct Cpu {
    stage2: Entries,
    combined: Entries,
    pub(super) vttbr: Option<(Vmid, Frame)>,
    /// The guest that ran last, and where it was: what speculation may translate.
    pub(super) guest: Option<(SimGuest, Vec<Ipa>)>,
}

/// A TLBI. It acts on the VMID that is loaded.
#[derive(Clone, Copy)]
pub(super) enum Tlbi {
    Ipa(Ipa),
    Stage1,
    All,
    Repeat,
}

/// A TLBI that no `DSB` has waited for.
pub(super) struct PendingTlbi {
    vmid: Vmid,
    tlbi: Tlbi,
    /// The CPU that it is for; none: all.
    only: Option<usize>,
}

fn find(entries: &Entries, vmid: Vmid, page: u64) -> Option<TlbEntry> {
    let first = page - page % BLOCK_PAGES;
    let whole = || entries.get(&(vmid, first, BLOCK_PAGES));
    entries.get(&(vmid, page, 1)).or_else(whole).copied()
}

fn insert(entries: &mut Entries, vmid: Vmid, page: u64, entry: TlbEntry) {
    let pages = entry.frames.count;
    entries.insert((vmid, page - page % pages, pages), entry);
}

impl Cpu {
    pub(super) fn entries(&self) -> impl Iterator<Item = (Vmid, Ipa, TlbEntry)> {
        let all = self.stage2.iter().chain(&self.combined);
        all.map(|(&(vmid, page, _), &entry)| (vmid, Ipa::new(page * PAGE_SIZE), entry))
    }

    fn drop_entries(&mut self, vmid: Vmid, tlbi: Tlbi) {
        match tlbi {
            Tlbi::Ipa(ipa) => {
                let page = ipa.get() / PAGE_SIZE;
                self.stage2.retain(|&(of, first, pages), entry| {
                    let same_block = first / BLOCK_PAGES == page / BLOCK_PAGES;
                    let hit = (first..first + pages).contains(&page);
                    of != vmid || !(hit || entry.of_block && same_block)
                });
            }
            Tlbi::Stage1 => self.combined.retain(|key, _| key.0 != vmid),
            Tlbi::All => {
                self.combined.retain(|key, _| key.0 != vmid);
                self.stage2.retain(|key, _| key.0 != vmid);
                self.guest.take_if(|(guest, _)| guest.vmid == vmid);
            }
            Tlbi::Repeat => {}
        }
    }
}

impl SimMachine {
    /// All that any TLB holds, of any kind. The address of a 2 MiB entry is its first.
    pub fn tlb(&self) -> impl Iterator<Item = (Vmid, Ipa, TlbEntry)> {
        self.cpus.values().flat_map(Cpu::entries)
    }

    /// What the TLBs of one CPU hold.
    pub fn tlb_of(&self, cpu: usize) -> impl Iterator<Item = (Vmid, Ipa, TlbEntry)> {
        self.cpus.get(&cpu).into_iter().flat_map(Cpu::entries)
    }

    pub(super) fn cpu(&mut self) -> &mut Cpu {
        self.cpus.entry(self.on).or_default()
    }

    /// Through the TLBs if they have an entry, stale or not; faults are not kept.
    pub(super) fn translate(&mut self, guest: SimGuest, ipa: Ipa) -> Result<TlbEntry, SimFault> {
        let page = ipa.get() / PAGE_SIZE;
        if let Some(entry) = find(&self.cpu().combined, guest.vmid, page) {
            return Ok(entry.piece(page));
        }
        let entry = match find(&self.cpu().stage2, guest.vmid, page) {
            Some(entry) => entry,
            None => self.walk(guest.root, ipa).ok_or(SimFault::Translation)?,
        };
        self.hold_entry(guest.vmid, page, entry);
        Ok(entry.piece(page))
    }

    /// A block is held whole in stage 2 and as a piece in combined entries, unless the adversary
    /// has it otherwise.
    pub(super) fn hold_entry(&mut self, vmid: Vmid, page: u64, entry: TlbEntry) {
        let (pieces, whole) = (self.roll(2) == 1, self.roll(2) == 1);
        let pick = |piece| if piece { entry.piece(page) } else { entry };
        let cpu = self.cpu();
        if find(&cpu.stage2, vmid, page).is_none() {
            insert(&mut cpu.stage2, vmid, page, pick(pieces));
        }
        if find(&cpu.combined, vmid, page).is_none() {
            insert(&mut cpu.combined, vmid, page, pick(!whole));
        }
    }

    fn walk(&mut self, root: Frame, ipa: Ipa) -> Option<TlbEntry> {
        self.walk_with(root, ipa, |sim, table, index| {
            if sim.before(table, index).is_some() {
                sim.broken.push(BrokenRule::UnpublishedEntry(table, index));
            }
            sim.read(table, index)
        })
    }

    pub(super) fn walk_with(
        &mut self,
        root: Frame,
        ipa: Ipa,
        mut read: impl FnMut(&mut Self, Frame, usize) -> u64,
    ) -> Option<TlbEntry> {
        if ipa.get() >> 36 != 0 {
            return None;
        }
        let mut path = [(root, 0, 0); 3];
        let (mut raw, mut pages, mut levels) = (root.addr().get(), 1, 0);
        for (step, shift) in path.iter_mut().zip([30, 21, 12]) {
            let table = Frame::containing(PhysAddr::new(raw & OUTPUT_ADDRESS));
            let index = (ipa.get() >> shift) as usize & 511;
            raw = read(self, table, index);
            *step = (table, index, raw);
            levels += 1;
            match (raw & 3, shift) {
                (0b11, 21 | 30) => {}
                // A page or a block, with the access flag.
                (0b11, 12) | (0b01, 21) if raw & 1 << 10 != 0 => {
                    pages = 1 << (shift - 12);
                    break;
                }
                _ => return None,
            }
        }
        if levels == 2 {
            path[2] = path[1];
        }
        let first = (raw & OUTPUT_ADDRESS) / PAGE_SIZE;
        let frames = FrameRange::new(Frame::from_number(first - first % pages), pages);
        Some(TlbEntry {
            raw,
            frames,
            path,
            of_block: levels == 2,
        })
    }

    pub(super) fn maps(&self, frame: Frame) -> bool {
        self.tlb().any(|(_, _, entry)| entry.frames.contains(frame))
    }

    pub(super) fn load_vttbr(&mut self, vttbr: Option<(Vmid, Frame)>) -> Option<(Vmid, Frame)> {
        if let Some((vmid, root)) = vttbr {
            self.step(Step::LoadVttbr(vmid, root));
        }
        core::mem::replace(&mut self.cpu().vttbr, vttbr)
    }

    /// Begins a TLBI for the VM that this CPU has loaded, on all CPUs or on this one alone.
    pub(super) fn tlbi(&mut self, tlbi: Tlbi, broadcast: bool) {
        let Some((vmid, _)) = self.cpu().vttbr else {
            return;
        };
        let only = (!broadcast).then_some(self.on);
        self.pending_tlbi.push(PendingTlbi { vmid, tlbi, only });
        self.step(match tlbi {
            Tlbi::Ipa(ipa) => Step::TlbiIpa(vmid, ipa),
            Tlbi::Stage1 => Step::TlbiStage1(vmid),
            Tlbi::All => Step::TlbiAll(vmid),
            Tlbi::Repeat => Step::TlbiRepeat,
        });
    }

    /// Does a TLBI, at any moment until the `DSB`.
    pub(super) fn finish_tlbi(&mut self, number: usize) {
        let PendingTlbi { vmid, tlbi, only } = self.pending_tlbi.remove(number);
        let reached = |cpu: usize| only.is_none_or(|only| only == cpu);
        for (&number, cpu) in &mut self.cpus {
            if reached(number) {
                cpu.drop_entries(vmid, tlbi);
            }
        }
        self.doom_stores(vmid, tlbi, reached);
    }
}
