//! A small machine with VMs on it, next to a naive model of what each guest must see.
#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use std::collections::{BTreeMap, BTreeSet};

use stage2::account::{MachineAccount, VmAccount};
use stage2::addr::{Frame, FrameRange, Ipa, PAGE_SIZE, PhysAddr, PhysRange};
use stage2::block::BlockState;
use stage2::descriptor::Vmid;
use stage2::fakes::{GRANULE, SimFault, SimGuest, SimMachine};
use stage2::frames::VmId;
use stage2::guest::{GuestMemory, GuestSpec, MemError, Policy, TagOutcome};
use stage2::host::{HostMemory, Layout};
use stage2::invariants;
use stage2::pool::BlockId;
use stage2::region::{Dram, MemoryMap, Occupied, TagRegion, TagRegionDesc};

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
        let total: u64 = tagged.iter().sum();
        let block = (1..)
            .map(|n| n * PAGE_SIZE)
            .find(|b| b % u64::from(block_size) == 0)
            .unwrap();
        let (mut tagged_base, mut tags_base) = (BASE, BASE + total);
        let mut descs = Vec::new();
        for &bytes in tagged {
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

    pub fn host(&self, policy: Policy) -> HostMemory {
        let (memory, regions) = (self.memory.clone(), self.regions());
        HostMemory::new(Layout {
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

/// A VM, and what its guest must see.
pub struct Vm {
    pub memory: GuestMemory,
    data: BTreeMap<u64, u8>,
    tags: BTreeMap<u64, u8>,
    touched: BTreeSet<u64>,
    tag_touched: BTreeSet<u64>,
}

impl Vm {
    pub fn sim(&self) -> SimGuest {
        let tables = self.memory.tables();
        SimGuest {
            vmid: tables.vmid(),
            root: tables.root(),
            ata: self.memory.spec().mte,
        }
    }
}

/// The machine, its VMs, and their models.
pub struct World {
    pub sim: SimMachine,
    pub host: HostMemory,
    pub vms: Vec<Option<Vm>>,
    /// The facts that the invariants checked.
    pub facts: u64,
    canaries: BTreeMap<BlockId, Vec<Frame>>,
    blocks: Vec<(BlockId, FrameRange)>,
}

impl World {
    pub fn new(board: &Board, policy: Policy) -> Self {
        let host = board.host(policy);
        let mut blocks = Vec::new();
        for (region, geometry) in (0..).zip(host.blocks().regions()) {
            for index in 0..geometry.blocks() {
                blocks.push((BlockId { region, index }, geometry.storage(index)));
            }
        }
        let (sim, canaries) = (board.sim(), BTreeMap::new());
        let mut world = Self {
            sim,
            host,
            vms: Vec::new(),
            facts: 0,
            canaries,
            blocks,
        };
        world.sow(true);
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
        let (vm, vmid) = (VmId::new(slot as u16).unwrap(), Vmid(slot as u16 + 1));
        let (ram_base, ram_bytes) = (Ipa::new(BASE), bytes);
        let spec = GuestSpec {
            vm,
            vmid,
            ram_base,
            ram_bytes,
            mte,
            policy,
        };
        let memory = GuestMemory::new(&mut self.host, &mut self.sim, spec)?;
        let (data, tags) = (BTreeMap::new(), BTreeMap::new());
        let (touched, tag_touched) = (BTreeSet::new(), BTreeSet::new());
        self.vms.resize_with(self.vms.len().max(slot + 1), || None);
        self.vms[slot] = Some(Vm {
            memory,
            data,
            tags,
            touched,
            tag_touched,
        });
        Ok(())
    }

    pub fn vm(&mut self, slot: usize) -> &mut Vm {
        self.vms[slot].as_mut().unwrap()
    }

    /// Lets the guest try `op` until it no longer faults, as EL2 does.
    fn run<T>(
        &mut self,
        slot: usize,
        ipa: Ipa,
        op: impl Fn(&mut SimMachine, SimGuest) -> Result<T, SimFault>,
    ) -> Result<T, MemError> {
        let vm = self.vms[slot].as_mut().unwrap();
        let guest = vm.sim();
        for _ in 0..3 {
            let fresh = match op(&mut self.sim, guest) {
                Ok(value) => {
                    vm.touched.insert(ipa.get() / PAGE_SIZE);
                    return Ok(value);
                }
                Err(SimFault::Translation) => {
                    vm.memory.access_fault(&mut self.host, &mut self.sim, ipa)?;
                    vm.memory.spec().policy != Policy::Lazy
                }
                Err(SimFault::TagAccess) => {
                    let outcome = vm.memory.tag_fault(&mut self.host, &mut self.sim, ipa)?;
                    assert_eq!(outcome, TagOutcome::Tagged, "each fault has one cause here");
                    true
                }
            };
            let (host, sim) = (&self.host, &mut self.sim);
            self.facts += invariants::check_page(host, &vm.memory, sim, ipa, fresh).unwrap();
        }
        panic!("the guest faults for ever at {ipa:?}");
    }

    pub fn load(&mut self, slot: usize, ipa: Ipa) -> Result<(), MemError> {
        let seen = self.run(slot, ipa, |sim, guest| sim.load(guest, ipa))?;
        let expected = self.vm(slot).data.get(&ipa.get()).copied().unwrap_or(0);
        assert_eq!(seen, expected, "data of vm {slot} at {ipa:?}");
        Ok(())
    }

    pub fn store(&mut self, slot: usize, ipa: Ipa, value: u8) -> Result<(), MemError> {
        self.run(slot, ipa, |sim, guest| sim.store(guest, ipa, value))?;
        self.vm(slot).data.insert(ipa.get(), value);
        Ok(())
    }

    pub fn ldg(&mut self, slot: usize, ipa: Ipa) -> Result<(), MemError> {
        let seen = self.run(slot, ipa, |sim, guest| sim.ldg(guest, ipa))?;
        let vm = self.vm(slot);
        let expected = vm.tags.get(&(ipa.get() / GRANULE)).copied().unwrap_or(0);
        vm.tag_touched.insert(ipa.get() / PAGE_SIZE);
        assert_eq!(seen, expected, "tag of vm {slot} at {ipa:?}");
        Ok(())
    }

    pub fn stg(&mut self, slot: usize, ipa: Ipa, tag: u8) -> Result<(), MemError> {
        self.run(slot, ipa, |sim, guest| sim.stg(guest, ipa, tag))?;
        let vm = self.vm(slot);
        if vm.memory.spec().mte {
            vm.tags.insert(ipa.get() / GRANULE, tag & 0xf);
        }
        vm.tag_touched.insert(ipa.get() / PAGE_SIZE);
        Ok(())
    }

    /// Takes all frames that tables could have, but `left` of them.
    pub fn leave_tables(&mut self, left: usize) -> Vec<Frame> {
        let mut taken: Vec<Frame> = std::iter::from_fn(|| self.host.alloc_table_page()).collect();
        for _ in 0..left.min(taken.len()) {
            self.host.free_table_page(taken.pop().unwrap()).unwrap();
        }
        taken
    }

    pub fn free_tables(&mut self, tables: Vec<Frame>) {
        tables
            .into_iter()
            .for_each(|table| self.host.free_table_page(table).unwrap());
    }

    /// All that is counted of the machine and of one VM.
    pub fn figures(&self, slot: usize) -> (MachineAccount, VmAccount) {
        (
            self.host.account(),
            self.vms[slot].as_ref().unwrap().memory.account(),
        )
    }

    pub fn reset(&mut self, slot: usize) {
        let vm = self.vms[slot].as_mut().unwrap();
        vm.memory.reset(&mut self.host, &mut self.sim).unwrap();
        vm.data.clear();
        vm.tags.clear();
        vm.touched.clear();
        vm.tag_touched.clear();
    }

    pub fn destroy(&mut self, slot: usize) {
        if let Some(vm) = self.vms[slot].take() {
            vm.memory.destroy(&mut self.host, &mut self.sim).unwrap();
        }
    }

    /// Each guest reads back all that it ever wrote, data and tags.
    pub fn read_back(&mut self) {
        for slot in 0..self.vms.len() {
            let Some(vm) = &self.vms[slot] else { continue };
            let data: Vec<u64> = vm.data.keys().copied().collect();
            let tags: Vec<u64> = vm.tags.keys().copied().collect();
            data.into_iter()
                .for_each(|ipa| self.load(slot, Ipa::new(ipa)).unwrap());
            tags.into_iter()
                .for_each(|tag| self.ldg(slot, Ipa::new(tag * GRANULE)).unwrap());
        }
    }

    /// All that must hold at rest, by three witnesses: the core's own invariants, the simulated
    /// machine, and the model.
    pub fn check(&mut self) {
        self.check_only_core();
        assert_eq!(self.sim.broken_rules(), []);
        self.check_tlbs();
        self.check_canaries();
        self.check_accounts();
    }

    /// The core's own invariants alone: for tests that write behind its back.
    pub fn check_only_core(&mut self) {
        let guests = self.vms.iter().flatten().map(|vm| &vm.memory);
        self.facts += invariants::check(&self.host, guests, &mut self.sim).unwrap();
    }

    /// S3 and S4 for TLB entries, and no entry of a VM that is gone.
    fn check_tlbs(&self) {
        for (vmid, ipa, entry) in self.sim.tlb() {
            let vm = self.vms.iter().flatten().find(|vm| vm.sim().vmid == vmid);
            let vm = vm.unwrap_or_else(|| panic!("{ipa:?} of dead {vmid:?} is in a TLB"));
            let mapped = vm.memory.leaf(&self.sim, ipa).map(|leaf| leaf.frame);
            assert_eq!(
                mapped,
                Some(entry.frame()),
                "stale TLB entry of {vmid:?} at {ipa:?}"
            );
            assert_eq!(self.host.blocks().storage_of(entry.frame()), None);
            let block = self.host.blocks().block_of(entry.frame());
            if let (true, true, Some(block)) = (vm.sim().ata, entry.allows_tags(), block) {
                let state = self.host.blocks().state(block);
                let storage = matches!(state, BlockState::Reserved { .. } | BlockState::Offline);
                assert!(
                    storage,
                    "{ipa:?} of {vmid:?} has tag access, {block:?} is {state:?}"
                );
            }
        }
    }

    /// Blocks that hold no tags hold somebody's data, which nothing may change; and one that was
    /// just released is zero in memory (S9).
    fn check_canaries(&mut self) {
        for (block, frames) in &self.canaries {
            match self.host.blocks().state(*block) {
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
        self.sow(false);
    }

    fn sow(&mut self, first: bool) {
        for &(block, storage) in &self.blocks {
            match self.host.blocks().state(block) {
                BlockState::Unswept | BlockState::Free => {
                    self.canaries.entry(block).or_insert_with(|| {
                        for frame in storage.iter() {
                            assert!(
                                first || self.sim.frame_is(frame, 0),
                                "{block:?} not scrubbed"
                            );
                            self.sim.fill(frame, CANARY);
                        }
                        storage.iter().collect()
                    });
                }
                _ => drop(self.canaries.remove(&block)),
            }
        }
    }

    /// Each VM's figures are the model's; the machine's blocks are those of its VMs.
    fn check_accounts(&self) {
        let mut reserved = 0;
        for vm in self.vms.iter().flatten() {
            let (account, spec) = (vm.memory.account(), vm.memory.spec());
            let touched = vm.touched.len() as u64;
            let tagged = match (spec.mte, spec.policy) {
                (false, _) => 0,
                (true, Policy::Lazy) => vm.tag_touched.len() as u64,
                (true, _) => touched,
            };
            assert_eq!(account.resident, touched * PAGE_SIZE);
            assert_eq!(account.pages.tagged, tagged);
            assert_eq!(account.pages.no_tag_access, touched - tagged);
            assert_eq!(
                account.pages.untouched,
                spec.ram_bytes / PAGE_SIZE - touched
            );
            assert_eq!(account.static_cost, spec.ram_bytes / 32);
            assert_eq!(
                account.reclaimed,
                account.static_cost as i64 - account.reserved as i64
            );
            assert_eq!(account.reserved, self.expected_reserved(vm));
            reserved += account.reserved;
        }
        let machine = self.host.account();
        if self.host.policy() != Policy::Static {
            assert_eq!(machine.reserved, reserved);
        }
        assert_eq!(
            machine.reclaimed,
            machine.carve_out - machine.reserved - machine.offline
        );
        assert_eq!(machine.free, machine.reclaimed - machine.lent);
        assert_eq!(machine.ideal.is_some(), self.host.policy() == Policy::Lazy);
        assert!(machine.ideal.is_none_or(|ideal| machine.reclaimed <= ideal));
    }

    fn expected_reserved(&self, vm: &Vm) -> u64 {
        let spec = vm.memory.spec();
        if spec.policy == Policy::Static {
            return spec.ram_bytes / 32;
        }
        let pages = match (spec.mte, spec.policy) {
            (false, _) => return 0,
            (true, Policy::Lazy) => &vm.tag_touched,
            (true, _) => &vm.touched,
        };
        let frames = pages
            .iter()
            .map(|page| vm.memory.translate(&self.sim, Ipa::new(page * PAGE_SIZE)));
        let blocks: BTreeSet<BlockId> = frames
            .filter_map(|frame| self.host.blocks().block_of(frame.unwrap()))
            .collect();
        let on = blocks
            .into_iter()
            .filter(|&b| self.host.blocks().state(b) != BlockState::Offline);
        on.map(|block| self.block_bytes(block)).sum()
    }

    fn block_bytes(&self, block: BlockId) -> u64 {
        self.host
            .blocks()
            .regions()
            .nth(block.region.into())
            .unwrap()
            .block_bytes()
    }
}
