//! A small machine with VMs on it, next to a naive model of what each guest must see.
#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

pub mod steps;

use std::collections::{BTreeMap, BTreeSet};

use stage2::account::{MachineAccount, PageCounts, VmAccount};
use stage2::addr::{Frame, FrameRange, Ipa, PAGE_SIZE, PhysAddr, PhysRange};
use stage2::block::BlockState;
use stage2::descriptor::Vmid;
use stage2::fakes::{GRANULE, SimFault, SimGuest, SimMachine, Step};
use stage2::frames::{Owner, VmId};
use stage2::guest::{Access, GuestMemory, GuestSpec, IMAGES, Image, MemError, Policy, TagOutcome};
use stage2::host::Layout;
use stage2::invariants;
use stage2::memory::Memory;
use stage2::pool::BlockId;
use stage2::region::{Dram, MemoryMap, Occupied, TagRegion, TagRegionDesc};
use stage2::tables::Visit;

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
/// Where DRAM starts on the host, and RAM in each guest.
pub const BASE: u64 = 0x4000_0000;
/// What somebody else's data looks like, in blocks that are not reserved.
const CANARY: u8 = 0xca;

pub fn pa(address: u64) -> PhysAddr {
    PhysAddr::new(address)
}

pub fn range(base: u64, bytes: u64) -> PhysRange {
    PhysRange::new(pa(base), bytes).unwrap()
}

pub fn frame(address: u64) -> Frame {
    Frame::from_addr(pa(address)).unwrap()
}

/// The address of byte 0 of a page of guest RAM.
pub fn page(number: u64) -> Ipa {
    Ipa::new(BASE + number * PAGE_SIZE)
}

/// What a machine is built from.
#[derive(Clone, Debug)]
pub struct Board {
    pub memory: MemoryMap,
    pub descs: Vec<TagRegionDesc>,
}

impl Board {
    /// Tagged memory of each length in `tagged`, one region each, then their carve-outs, then 64
    /// KiB without tags.
    pub fn new(tagged: &[u64], block_size: u32) -> Self {
        let regions: Vec<_> = tagged.iter().map(|&bytes| (bytes, block_size)).collect();
        Self::with_regions(&regions)
    }

    /// The same with a block size for each region.
    pub fn with_regions(regions: &[(u64, u32)]) -> Self {
        let total: u64 = regions.iter().map(|&(bytes, _)| bytes).sum();
        let (mut tagged_base, mut tags_base) = (BASE, BASE + total);
        let mut descs = Vec::new();
        for &(bytes, block_size) in regions {
            let block = (1..)
                .map(|n| n * PAGE_SIZE)
                .find(|b| b % u64::from(block_size) == 0)
                .unwrap();
            let tags_bytes = bytes.div_ceil(32).div_ceil(block) * block;
            descs.push(TagRegionDesc {
                tags_base: pa(tags_base),
                tags_bytes,
                tagged_base: pa(tagged_base),
                tagged_bytes: bytes,
                block_size,
            });
            tagged_base += bytes;
            tags_base += tags_bytes;
        }
        let mut dram = vec![Dram {
            range: range(BASE, tags_base - BASE),
            taggable: true,
        }];
        dram.push(Dram {
            range: range(tags_base, 64 * KIB),
            taggable: false,
        });
        Self {
            memory: MemoryMap {
                dram,
                occupied: Vec::new(),
            },
            descs,
        }
    }

    /// Taggable DRAM whose tags no software sees, and nothing else.
    pub fn without_region(bytes: u64) -> Self {
        let dram = vec![Dram {
            range: range(BASE, bytes),
            taggable: true,
        }];
        Self {
            memory: MemoryMap {
                dram,
                occupied: Vec::new(),
            },
            descs: Vec::new(),
        }
    }

    pub fn occupy(mut self, taken: Occupied) -> Self {
        self.memory.occupied.push(taken);
        self
    }

    pub fn regions(&self) -> Vec<TagRegion> {
        let others = |number: usize| {
            let mut others = self.descs.clone();
            others.remove(number);
            others
        };
        let descs = self.descs.iter().enumerate();
        descs
            .map(|(number, desc)| TagRegion::new(desc, &self.memory, &others(number)).unwrap())
            .collect()
    }

    pub fn memory(&self, policy: Policy) -> Memory {
        let (memory, regions) = (self.memory.clone(), self.regions());
        Memory::new(Layout {
            memory,
            regions,
            policy,
        })
        .unwrap()
    }

    pub fn sim(&self) -> SimMachine {
        let hidden = match self.descs.is_empty() {
            true => self
                .memory
                .dram
                .iter()
                .map(|dram| dram.range.inner_frames())
                .collect(),
            false => Vec::new(),
        };
        SimMachine::new(self.descs.clone(), hidden)
    }
}

/// How a VM is to be.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub base: u64,
    pub bytes: u64,
    pub mte: bool,
    pub policy: Policy,
    pub tag_budget: u64,
}

/// Where everything is: a refusal must leave it as it was.
#[derive(Clone, PartialEq, Debug)]
pub struct Figures {
    pub machine: MachineAccount,
    pub vms: Vec<VmAccount>,
    pub pages: Vec<(VmId, Visit)>,
    pub blocks: Vec<BlockState>,
    pub owners: Vec<Option<Owner>>,
}

/// Images of a VM, which no page bounds, the second with a whole slot of 2 MiB in it, as far as its
/// RAM reaches. What the machine has below its DRAM is never the same twice.
fn images(slot: usize, shape: Shape) -> [Image; IMAGES] {
    let places = [
        (2 * PAGE_SIZE + 16, 33 * PAGE_SIZE + 5),
        (511 * PAGE_SIZE + 8, 1030 * PAGE_SIZE),
    ];
    places.map(|(start, end)| Image {
        ipa: Ipa::new(shape.base + start),
        source: pa(((slot as u64 + 1) << 24) + start + 0x74),
        bytes: end.min(shape.bytes).saturating_sub(start),
    })
}

/// A VM, and what its guest must see.
pub struct Vm {
    pub id: VmId,
    pub spec: GuestSpec,
    images: [Image; IMAGES],
    data: BTreeMap<u64, u8>,
    tags: BTreeMap<u64, u8>,
    touched: BTreeSet<u64>,
    tag_touched: BTreeSet<u64>,
    /// Its pages gave tag access back, or got it early: how many have it is not told by their use.
    pub loose: bool,
    /// Its memory is being taken away.
    pub leaving: bool,
}

/// The machine, its VMs, and their models.
pub struct World {
    pub sim: SimMachine,
    pub memory: Memory,
    pub vms: Vec<Option<Vm>>,
    /// The facts that the invariants checked.
    pub facts: u64,
    /// Pages that one fault may evict.
    pub leave: u64,
    /// Whether free blocks are watched: only where each step is checked, as one may be lent, and
    /// come back, between two checks.
    pub watch: bool,
    /// Whether VMs that are made from now on find images in their RAM.
    pub images: bool,
    /// If set, each fault is tried with so many allocations granted first, then one more each time:
    /// what is refused must leave all as it was.
    pub grants: Option<u64>,
    /// Faults that were refused, and that had to wait.
    pub refused: u64,
    pub waited: u64,
    canaries: BTreeMap<BlockId, Vec<Frame>>,
    /// Each block, its frames, and whether it held tags when it was looked at last.
    blocks: Vec<(BlockId, FrameRange, bool)>,
}

impl World {
    pub fn new(board: &Board, policy: Policy) -> Self {
        let memory = board.memory(policy);
        let mut blocks = Vec::new();
        for (region, geometry) in (0..).zip(memory.host().blocks().regions()) {
            for index in 0..geometry.blocks() {
                blocks.push((BlockId { region, index }, geometry.storage(index), false));
            }
        }
        let (sim, canaries) = (board.sim(), BTreeMap::new());
        let mut world = Self {
            sim,
            memory,
            vms: Vec::new(),
            facts: 0,
            leave: u64::MAX,
            watch: true,
            images: false,
            grants: None,
            refused: 0,
            waited: 0,
            canaries,
            blocks,
        };
        world.sow();
        world
    }

    /// Makes VM `slot`, numbered by it.
    pub fn create(
        &mut self,
        slot: usize,
        bytes: u64,
        mte: bool,
        policy: Policy,
    ) -> Result<(), MemError> {
        self.create_with(slot, bytes, mte, policy, bytes / 32)
    }

    /// The same with a tag budget.
    pub fn create_with(
        &mut self,
        slot: usize,
        bytes: u64,
        mte: bool,
        policy: Policy,
        tag_budget: u64,
    ) -> Result<(), MemError> {
        self.create_shape(
            slot,
            Shape {
                base: BASE,
                bytes,
                mte,
                policy,
                tag_budget,
            },
        )
    }

    pub fn create_shape(&mut self, slot: usize, shape: Shape) -> Result<(), MemError> {
        let (vm, vmid) = (VmId::new(slot as u16).unwrap(), Vmid(slot as u16 + 1));
        let spec = GuestSpec {
            vm,
            vmid,
            ram_base: Ipa::new(shape.base),
            ram_bytes: shape.bytes,
            mte: shape.mte,
            policy: shape.policy,
            tag_budget: shape.tag_budget,
        };
        self.refusable(|memory, sim| memory.create(sim, spec))?;
        let images = match self.images {
            true => images(slot, shape),
            false => [Image::NONE; IMAGES],
        };
        self.memory.set_images(vm, images).unwrap();
        let (data, tags) = (BTreeMap::new(), BTreeMap::new());
        let (touched, tag_touched) = (BTreeSet::new(), BTreeSet::new());
        self.vms.resize_with(self.vms.len().max(slot + 1), || None);
        self.vms[slot] = Some(Vm {
            id: vm,
            spec,
            images,
            data,
            tags,
            touched,
            tag_touched,
            loose: false,
            leaving: false,
        });
        Ok(())
    }

    pub fn vm(&mut self, slot: usize) -> &mut Vm {
        self.vms[slot].as_mut().unwrap()
    }

    /// The memory of VM `slot`.
    pub fn guest(&self, slot: usize) -> &GuestMemory {
        let id = self.vms[slot].as_ref().unwrap().id;
        self.memory.guest(id).unwrap()
    }

    fn sim_guest(&self, slot: usize) -> SimGuest {
        sim_of(self.guest(slot))
    }

    /// Does what the core may refuse: first, if [`grants`](Self::grants) says so, with too few
    /// allocations.
    pub fn refusable<T>(
        &mut self,
        op: impl Fn(&mut Memory, &mut SimMachine) -> Result<T, MemError>,
    ) -> Result<T, MemError> {
        let Some(first) = self.grants else {
            return op(&mut self.memory, &mut self.sim);
        };
        let mut grants = first;
        loop {
            let before = self.figures();
            self.sim.take_log();
            self.memory.host_mut().refuse_after(Some(grants));
            let result = op(&mut self.memory, &mut self.sim);
            let left = self.memory.host_mut().refuse_after(None);
            let Err(cause) = result else {
                return result;
            };
            assert_eq!(self.figures(), before, "{cause} after {grants} grants");
            let log = self.sim.take_log();
            let steps = log.iter().find(|step| matches!(step, Step::WriteEntry(..)));
            assert_eq!(steps, None, "{cause} after {grants} grants");
            self.refused += 1;
            if left != Some(0) || cause != MemError::NoMemory {
                return Err(cause);
            }
            grants += 1;
        }
    }

    /// Lets the guest try `op` until it no longer faults, as EL2 does. `None`: it has to wait.
    fn run<T>(
        &mut self,
        slot: usize,
        ipa: Ipa,
        op: impl Fn(&mut SimMachine, SimGuest) -> Result<T, SimFault>,
    ) -> Result<Option<T>, MemError> {
        let guest = self.sim_guest(slot);
        let (id, policy, leave) = (self.vm(slot).id, self.vm(slot).spec.policy, self.leave);
        for _ in 0..3 {
            let (fresh, waits) = match op(&mut self.sim, guest) {
                Ok(value) => {
                    self.vm(slot).touched.insert(ipa.get() / PAGE_SIZE);
                    return Ok(Some(value));
                }
                Err(SimFault::Translation) => {
                    let access = |memory: &mut Memory, sim: &mut SimMachine| {
                        memory.access_fault(sim, id, ipa, leave)
                    };
                    let outcome = self.refusable(access)?;
                    (policy != Policy::Lazy, outcome == Access::Wait)
                }
                Err(SimFault::TagAccess) => {
                    let tag = |memory: &mut Memory, sim: &mut SimMachine| {
                        memory.tag_fault(sim, id, ipa, leave)
                    };
                    let outcome = self.refusable(tag)?;
                    assert!(
                        matches!(outcome, TagOutcome::Tagged | TagOutcome::Wait),
                        "each fault has one cause here"
                    );
                    (true, outcome == TagOutcome::Wait)
                }
            };
            if waits {
                assert_ne!(self.leave, u64::MAX, "nothing to wait for");
                self.waited += 1;
                return Ok(None);
            }
            let (host, memory) = (self.memory.host(), self.memory.guest(id).unwrap());
            self.facts += invariants::check_page(host, memory, &mut self.sim, ipa, fresh).unwrap();
        }
        panic!("the guest faults for ever at {ipa:?}");
    }

    pub fn load(&mut self, slot: usize, ipa: Ipa) -> Result<(), MemError> {
        let Some(seen) = self.run(slot, ipa, |sim, guest| sim.load(guest, ipa))? else {
            return Ok(());
        };
        let written = self.vm(slot).data.get(&ipa.get()).copied();
        let expected = written.unwrap_or_else(|| self.untouched(slot, ipa));
        assert_eq!(seen, expected, "data of vm {slot} at {ipa:?}");
        Ok(())
    }

    /// What a VM finds where it has never written.
    fn untouched(&mut self, slot: usize, ipa: Ipa) -> u8 {
        let images = self.vm(slot).images.into_iter();
        let mut bytes = images.filter_map(
            |Image {
                 ipa: start,
                 source,
                 bytes,
             }| {
                let offset = ipa
                    .get()
                    .checked_sub(start.get())
                    .filter(|&offset| offset < bytes)?;
                Some(pa(source.get() + offset))
            },
        );
        bytes.next().map_or(0, |at| self.sim.byte(at))
    }

    pub fn store(&mut self, slot: usize, ipa: Ipa, value: u8) -> Result<(), MemError> {
        let stored = self.run(slot, ipa, |sim, guest| sim.store(guest, ipa, value))?;
        if stored.is_some() {
            self.vm(slot).data.insert(ipa.get(), value);
        }
        Ok(())
    }

    pub fn ldg(&mut self, slot: usize, ipa: Ipa) -> Result<(), MemError> {
        let Some(seen) = self.run(slot, ipa, |sim, guest| sim.ldg(guest, ipa))? else {
            return Ok(());
        };
        let vm = self.vm(slot);
        let expected = vm.tags.get(&(ipa.get() / GRANULE)).copied().unwrap_or(0);
        vm.tag_touched.insert(ipa.get() / PAGE_SIZE);
        assert_eq!(seen, expected, "tag of vm {slot} at {ipa:?}");
        Ok(())
    }

    pub fn stg(&mut self, slot: usize, ipa: Ipa, tag: u8) -> Result<(), MemError> {
        let stored = self.run(slot, ipa, |sim, guest| sim.stg(guest, ipa, tag))?;
        if stored.is_none() {
            return Ok(());
        }
        let vm = self.vm(slot);
        if vm.spec.mte {
            vm.tags.insert(ipa.get() / GRANULE, tag & 0xf);
        }
        vm.tag_touched.insert(ipa.get() / PAGE_SIZE);
        Ok(())
    }

    /// Takes all frames that tables could have, but `left` of them.
    pub fn leave_tables(&mut self, left: usize) -> Vec<Frame> {
        let host = self.memory.host_mut();
        let mut taken: Vec<Frame> = std::iter::from_fn(|| host.alloc_table_page()).collect();
        // Those that are of no chunk, if there are any: one would keep its chunk from VMs.
        for table in taken.drain(..left.min(taken.len())) {
            host.free_table_page(table).unwrap();
        }
        taken
    }

    pub fn free_tables(&mut self, tables: Vec<Frame>) {
        let host = self.memory.host_mut();
        tables
            .into_iter()
            .for_each(|table| host.free_table_page(table).unwrap());
    }

    /// All that is counted of the machine and of all VMs, and where each page is. A block that was
    /// swept early counts as unswept, and room that was made for maps is nobody's loss.
    pub fn figures(&mut self) -> Figures {
        let (mut vms, mut pages) = (Vec::new(), Vec::new());
        for guest in self.memory.guests() {
            vms.push(guest.account());
            let vm = guest.spec().vm;
            guest
                .tables()
                .visit(&mut self.sim, |_, item| pages.push((vm, item)));
        }
        let host = self.memory.host();
        let blocks = self
            .blocks
            .iter()
            .map(|&(block, ..)| host.blocks().state(block));
        let blocks = blocks.map(|state| match state {
            BlockState::Unswept => BlockState::Free,
            other => other,
        });
        let dram = host.blocks().regions().map(|region| region.tagged());
        let owners = dram.flat_map(|tagged| tagged.iter().step_by(512));
        let owners = owners.map(|frame| host.owner(frame)).collect();
        let blocks = blocks.collect();
        let machine = MachineAccount {
            metadata: 0,
            net_reclaimed: 0,
            ..self.memory.account()
        };
        Figures {
            machine,
            vms,
            pages,
            blocks,
            owners,
        }
    }

    pub fn reset(&mut self, slot: usize) {
        let vm = self.vms[slot].as_mut().unwrap();
        self.memory.reset(&mut self.sim, vm.id).unwrap();
        vm.data.clear();
        vm.tags.clear();
        vm.touched.clear();
        vm.tag_touched.clear();
        (vm.loose, vm.leaving) = (false, false);
    }

    /// Takes some parts of a VM's memory away: nobody runs it any more, and it has no more of it than
    /// before.
    pub fn release(&mut self, slot: usize, parts: u64) {
        let vm = self.vms[slot].as_mut().unwrap();
        vm.leaving = true;
        for _ in 0..parts {
            let before = self.memory.vm_account(vm.id).unwrap();
            let Some(checked) = self.memory.release(&mut self.sim, vm.id) else {
                assert_eq!(before.resident, 0);
                return;
            };
            self.facts += checked.unwrap();
            let after = self.memory.vm_account(vm.id).unwrap();
            let gone = before.resident - after.resident;
            assert!(gone <= 8 * 2 * MIB && after.reserved <= before.reserved);
            assert!(gone <= 64 * PAGE_SIZE || before.big_leaves > after.big_leaves);
        }
    }

    pub fn destroy(&mut self, slot: usize) {
        if let Some(vm) = self.vms[slot].take() {
            self.memory.destroy(&mut self.sim, vm.id).unwrap();
        }
    }

    /// Gives the VM another budget; a refusal leaves all as it was.
    pub fn set_budget(&mut self, slot: usize, bytes: u64) -> Result<(), MemError> {
        let id = self.vm(slot).id;
        self.refusable(|memory, _| memory.set_budget(id, bytes))?;
        self.vm(slot).spec.tag_budget = bytes;
        Ok(())
    }

    /// Looks for pages of the VM whose tags are all 0.
    pub fn demote(&mut self, slot: usize, pages: u64) -> u64 {
        let vm = self.vms[slot].as_mut().unwrap();
        vm.loose = true;
        self.memory.demote(&mut self.sim, vm.id, pages).unwrap()
    }

    /// Moves pages of the VM together until there is nothing to move.
    pub fn compact(&mut self, slot: usize) -> Result<u64, MemError> {
        self.compact_below(slot, 25)
    }

    /// The same for blocks that have tags of at most `percent` of what they cover.
    pub fn compact_below(&mut self, slot: usize, percent: u64) -> Result<u64, MemError> {
        let id = self.vms[slot].as_ref().unwrap().id;
        let mut moved = 0;
        while self.refusable(|memory, sim| memory.compact(sim, id, percent))? {
            moved += 1;
        }
        Ok(moved)
    }

    /// Lets a lazy VM's pages get tag storage at the first access.
    pub fn switch_to_eager(&mut self, slot: usize) {
        let vm = self.vms[slot].as_mut().unwrap();
        vm.loose = true;
        self.memory.switch_to_eager(vm.id);
    }

    /// Each guest reads back all that it ever wrote, data and tags.
    pub fn read_back(&mut self) {
        for slot in 0..self.vms.len() {
            let Some(vm) = &self.vms[slot] else { continue };
            if vm.leaving {
                continue;
            }
            let data: Vec<u64> = vm.data.keys().copied().collect();
            let tags: Vec<u64> = vm.tags.keys().copied().collect();
            data.into_iter()
                .for_each(|ipa| self.load(slot, Ipa::new(ipa)).unwrap());
            for tag in tags {
                let read = self.ldg(slot, Ipa::new(tag * GRANULE));
                // Pages that got tags early may have used up what a demoted page needs again.
                let lacks = matches!(read, Err(MemError::OverBudget { .. }));
                assert!(read.is_ok() || lacks && self.vm(slot).loose, "{read:?}");
            }
        }
    }

    /// All that must hold at rest, by three witnesses: the core's own invariants, the simulated
    /// machine, and the model.
    pub fn check(&mut self) {
        self.check_only_core();
        assert_eq!(self.sim.broken_rules().first(), None);
        self.check_tlbs();
        if self.watch {
            self.check_canaries();
        }
        self.check_accounts();
    }

    /// The core's own invariants alone: for tests that write behind its back.
    pub fn check_only_core(&mut self) {
        let checked = invariants::check(self.memory.host(), self.memory.guests(), &mut self.sim);
        self.facts += checked.unwrap();
    }

    /// S3 and S4 for TLB entries, and no entry of a VM that is gone.
    fn check_tlbs(&self) {
        for (vmid, ipa, entry) in self.sim.tlb() {
            let guest = self
                .memory
                .guests()
                .find(|guest| sim_of(guest).vmid == vmid);
            let guest = guest.unwrap_or_else(|| panic!("{ipa:?} of dead {vmid:?} is in a TLB"));
            let mapped = guest.leaf(&self.sim, ipa).map(|leaf| leaf.frame);
            assert_eq!(
                mapped,
                Some(entry.frame()),
                "stale TLB entry of {vmid:?} at {ipa:?}"
            );
            let (blocks, tags) = (
                self.memory.host().blocks(),
                entry.allows_tags() && sim_of(guest).ata,
            );
            if let Some(block) = blocks.storage_of(entry.frame()) {
                let lent = matches!(blocks.state(block), BlockState::Lent { .. });
                assert!(lent && !tags, "{ipa:?} of {vmid:?} is in {block:?}");
            }
            let block = blocks.block_of(entry.frame());
            if let (true, Some(block)) = (tags, block) {
                let state = blocks.state(block);
                let storage = matches!(state, BlockState::Reserved { .. } | BlockState::Offline);
                assert!(
                    storage,
                    "{ipa:?} of {vmid:?} has tag access, {block:?} is {state:?}"
                );
            }
        }
    }

    /// Blocks that hold neither data nor tags hold somebody's data, which nothing may change; and one
    /// that was just released is zero in memory (S9).
    fn check_canaries(&mut self) {
        for (block, frames) in &self.canaries {
            match self.memory.host().blocks().state(*block) {
                BlockState::Unswept | BlockState::Free => {
                    for &frame in frames {
                        assert!(
                            self.sim.frame_is(frame, CANARY),
                            "{block:?} lost data, no tags"
                        );
                    }
                }
                _ => {}
            }
        }
        self.sow();
    }

    fn sow(&mut self) {
        for (block, storage, held_tags) in &mut self.blocks {
            match self.memory.host().blocks().state(*block) {
                BlockState::Unswept | BlockState::Free => {
                    self.canaries.entry(*block).or_insert_with(|| {
                        for frame in storage.iter() {
                            assert!(
                                !*held_tags || self.sim.frame_is(frame, 0),
                                "{block:?} not scrubbed"
                            );
                            self.sim.fill(frame, CANARY);
                        }
                        storage.iter().collect()
                    });
                    *held_tags = false;
                }
                BlockState::Reserved { .. } => {
                    self.canaries.remove(block);
                    *held_tags = true;
                }
                _ => {
                    self.canaries.remove(block);
                    *held_tags = false;
                }
            }
        }
    }

    /// Each VM's figures are the model's; the machine's blocks are those of its VMs.
    fn check_accounts(&self) {
        let mut reserved = 0;
        for (slot, vm) in self.vms.iter().enumerate() {
            let Some(vm) = vm else { continue };
            let (account, spec) = (self.guest(slot).account(), &vm.spec);
            let touched = vm.touched.len() as u64;
            let tagged = match (spec.mte, spec.policy) {
                (false, _) => 0,
                (true, Policy::Lazy) => vm.tag_touched.len() as u64,
                (true, _) => touched,
            };
            // Neighbours came with a page where one leaf maps 2 MiB.
            assert!(vm.leaving || account.resident >= touched * PAGE_SIZE);
            // One that went eager by itself has tags for neighbours, too.
            if !(vm.loose || vm.leaving || account.switched_to_eager) {
                assert_eq!(account.pages.tagged, tagged);
                assert_eq!(account.reserved, self.expected_reserved(slot));
            }
            let PageCounts {
                untouched,
                no_tag_access,
                tagged,
            } = account.pages;
            assert_eq!(
                untouched + no_tag_access + tagged,
                spec.ram_bytes / PAGE_SIZE
            );
            assert_eq!(account.resident, (no_tag_access + tagged) * PAGE_SIZE);
            assert_eq!(account.static_cost, spec.ram_bytes / 32);
            assert_eq!(
                account.reclaimed,
                account.static_cost as i64 - account.reserved as i64
            );
            assert!(account.lent <= account.resident);
            reserved += account.reserved;
        }
        let machine = self.memory.account();
        if self.memory.policy() != Policy::Static {
            assert_eq!(machine.reserved, reserved);
        }
        assert_eq!(
            machine.reclaimed,
            machine.carve_out - machine.reserved - machine.offline
        );
        assert_eq!(machine.free, machine.reclaimed - machine.lent);
        assert_eq!(
            machine.ideal.is_some(),
            self.memory.policy() == Policy::Lazy
        );
        assert!(machine.ideal.is_none_or(|ideal| machine.reclaimed <= ideal));
        assert!(machine.lent <= machine.peak_lent);
    }

    fn expected_reserved(&self, slot: usize) -> u64 {
        let vm = self.vms[slot].as_ref().unwrap();
        let spec = vm.spec;
        if spec.policy == Policy::Static {
            return spec.ram_bytes / 32;
        }
        let pages = match (spec.mte, spec.policy) {
            (false, _) => return 0,
            (true, Policy::Lazy) => &vm.tag_touched,
            (true, _) => &vm.touched,
        };
        let (guest, host) = (self.guest(slot), self.memory.host());
        let frames = pages
            .iter()
            .map(|page| guest.translate(&self.sim, Ipa::new(page * PAGE_SIZE)));
        let blocks: BTreeSet<BlockId> = frames
            .filter_map(|frame| host.blocks().block_of(frame.unwrap()))
            .collect();
        let on = blocks
            .into_iter()
            .filter(|&b| host.blocks().state(b) != BlockState::Offline);
        on.map(|block| self.block_bytes(block)).sum()
    }

    fn block_bytes(&self, block: BlockId) -> u64 {
        self.memory
            .host()
            .blocks()
            .regions()
            .nth(block.region.into())
            .unwrap()
            .block_bytes()
    }
}

/// A VM as the simulated machine sees it.
pub fn sim_of(guest: &GuestMemory) -> SimGuest {
    let tables = guest.tables();
    SimGuest {
        vmid: tables.vmid(),
        root: tables.root(),
        ata: guest.spec().mte,
    }
}
