//! A host machine with VMs on it, and a CPU that is a simulation: what exit handling needs, and nothing of EL2.
#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

use hypervisor::bundle::File;
use hypervisor::config::{Config, VmConfig};
use hypervisor::cpu::Cpu;
use hypervisor::devices::vgic::ListRegisters;
use hypervisor::exit::{Env, MappedPage, Next, handle};
use hypervisor::layout::{Layout, Loaded};
use hypervisor::report::VmInfo;
use hypervisor::traps::debug::DebugRegs;
use hypervisor::traps::esr::{Esr, Exit, Syndrome};
use hypervisor::traps::id_regs::{IdReg, IdRegs};
use hypervisor::traps::inject::{Injected, Origin};
use hypervisor::traps::tag_access::{AtForm, Par};
use hypervisor::vcpu::{GuestContext, Vcpu};
use hypervisor::vm::{Board, Images, StartError, Vm};
use platform::timer::Timer;
use platform::{
    Gic, Interrupt, Machine, MemRange, Memory, Reserved, ReservedBy, TagRegionNode, Trigger,
};
use stage2::account::Ledger;
use stage2::addr::{Frame, FrameRange, Ipa, PAGE_SIZE, PhysAddr};
use stage2::descriptor::Vmid;
use stage2::fakes::{SimFault, SimGuest, SimMachine};
use stage2::guest::{GuestMemory, Policy};
use stage2::host::Layout as HostLayout;
use stage2::invariants;
use stage2::memory::Memory as GuestsMemory;
use stage2::ports::{FrameCopy, TableMemory, TagCache, Tlb};
use stage2::region::TagRegionDesc;

pub const MIB: u64 = 1 << 20;
/// Where DRAM starts on the host, and RAM in each guest.
pub const BASE: u64 = 0x4000_0000;
/// VBAR_EL1 of every guest.
pub const VBAR: u64 = 0xffff_8000_0801_0000;
/// A virtual address that guests run at.
pub const PC: u64 = 0xffff_8000_0801_2344;
/// EL1 with SP_EL1, all masked.
pub const EL1H: u64 = 0x3c5;
/// ESR_ELx.IL.
pub const IL: u64 = 1 << 25;

/// Whether the long tests were asked for.
pub fn is_full() -> bool {
    std::env::var_os("TAGVISOR_FULL").is_some_and(|value| value == "1")
}

/// Where in memory the bundle has the kernel: as little aligned as files of a bundle are.
pub const KERNEL: u64 = BASE + 0x50_007c;
/// Where it has an initrd.
pub const INITRD: u64 = BASE + 0x50_4004;

/// A file of the bundle that lies at `at`.
pub fn file(data: &[u8], at: u64) -> File<'_> {
    File {
        name: "image",
        data,
        at: PhysAddr::new(at),
    }
}

/// Bytes of a kernel image that is no Linux `Image`.
pub fn kernel() -> Vec<u8> {
    (0..5000_u32).map(|index| (index % 251) as u8).collect()
}

/// QEMU virt with `dram` bytes as the host tool describes it: taggable memory, its tag storage in a node of its own, and
/// 1/1024 without tags.
pub fn machine(dram: u64) -> Machine {
    let (tagged, storage) = (dram / 32 * 31, dram / 1024 * 31);
    let memory = |base, bytes, taggable| Memory {
        range: MemRange::new(base, bytes).unwrap(),
        taggable,
    };
    Machine {
        memory: vec![
            memory(BASE, tagged + storage, true),
            memory(BASE + tagged + storage, dram / 1024, false),
        ],
        reserved: Vec::new(),
        tag_regions: vec![TagRegionNode {
            tag_base: BASE + tagged,
            tag_bytes: storage,
            tagged_base: BASE,
            tagged_bytes: tagged,
            block_bytes: 4096,
            path: "/reserved-memory/tags".into(),
        }],
        refusals: Vec::new(),
        cpus: vec![platform::Cpu {
            mpidr: 0,
            psci: true,
        }],
        psci: None,
        gic: Gic {
            distributor: MemRange::new(0x0800_0000, 0x1_0000).unwrap(),
            redistributors: vec![MemRange::new(0x080a_0000, 0x2_0000).unwrap()],
            stride: None,
            maintenance: None,
        },
        timer: Timer {
            phys_secure: None,
            phys: None,
            virt: Interrupt {
                intid: 27,
                trigger: Trigger::Level,
            },
            hyp: None,
            hyp_virt: None,
            frequency: None,
        },
        uart: None,
        initrd: None,
        bootargs: None,
        dtb_bytes: 0x1_0000,
    }
}

/// A reserved range of the device tree.
pub fn reserved(base: u64, bytes: u64, by: ReservedBy) -> Reserved {
    Reserved {
        range: MemRange::new(base, bytes).unwrap(),
        by,
    }
}

/// What a boot loader put into [`machine`].
pub fn loaded() -> Loaded {
    Loaded {
        image: BASE + 0x20_0000..BASE + 0x24_0000,
        dtb: BASE + 0x40_0000..BASE + 0x41_0000,
        bundle: Some(BASE + 0x50_0000..BASE + 0x51_0000),
    }
}

/// ID registers as of a large recent CPU.
pub fn id_regs() -> IdRegs {
    let mut regs = IdRegs::ZERO;
    for (id, value) in [
        (IdReg::PFR0, 0x1301_0011_2111_0222),
        (IdReg::PFR1, 0x0010_1010_1200_0321),
        (IdReg::PFR2, 0x0000_0001_0000_0111),
        (IdReg::DFR0, 0x1000_0000_1030_560a),
        (IdReg::ISAR0, 0x1221_1111_1031_2120),
        (IdReg::ISAR1, 0x0111_2111_1021_1502),
        (IdReg::ISAR2, 0x1120_0000_0011_0012),
        (IdReg::MMFR0, 0x2100_0323_1020_1126),
        (IdReg::MMFR1, 0x0110_1120_1031_2122),
        (IdReg::MMFR2, 0x1221_0111_1201_1011),
    ] {
        regs.set(id, value);
    }
    regs
}

/// The CPU: memory and TLBs are the simulated machine's, the rest is written down.
pub struct FakeCpu {
    pub sim: SimMachine,
    /// What AT finds: form, page of the virtual address, page of the IPA.
    pub stage1: Vec<(AtForm, u64, u64)>,
    /// The AT instructions so far.
    pub lookups: Vec<AtForm>,
    pub injected: Vec<Injected>,
    pub mdscr: Option<u64>,
    pub cpacr: Option<u64>,
    /// Breakpoints and watchpoints as written last, and how many breakpoints the guest sees.
    pub comparators: Option<(DebugRegs, usize)>,
    /// Functions that firmware was asked for.
    pub worked_around: Vec<u32>,
    /// Random numbers that are left.
    pub entropy: Vec<u64>,
    /// What the guest wrote to ICH_VMCR_EL2, by its CPU interface.
    pub vmcr: Option<u64>,
}

impl FakeCpu {
    fn new(sim: SimMachine) -> Self {
        Self {
            sim,
            stage1: Vec::new(),
            lookups: Vec::new(),
            injected: Vec::new(),
            mdscr: None,
            cpacr: None,
            comparators: None,
            worked_around: Vec::new(),
            entropy: Vec::new(),
            vmcr: None,
        }
    }
}

impl TableMemory for FakeCpu {
    fn read(&self, table: Frame, index: usize) -> u64 {
        self.sim.read(table, index)
    }
    fn write(&mut self, table: Frame, index: usize, raw: u64) {
        self.sim.write(table, index, raw);
    }
    fn clear(&mut self, table: Frame) {
        self.sim.clear(table);
    }
}

impl Tlb for FakeCpu {
    fn invalidate_page(&mut self, vmid: Vmid, root: Frame, ipa: Ipa) {
        self.sim.invalidate_page(vmid, root, ipa);
    }
    fn invalidate_block(&mut self, vmid: Vmid, root: Frame, ipa: Ipa) {
        self.sim.invalidate_block(vmid, root, ipa);
    }
    fn invalidate_vm(&mut self, vmid: Vmid, root: Frame) {
        self.sim.invalidate_vm(vmid, root);
    }
    fn publish(&mut self) {
        self.sim.publish();
    }
}

impl TagCache for FakeCpu {
    fn clean_invalidate_data(&mut self, frames: FrameRange) {
        self.sim.clean_invalidate_data(frames);
    }
    fn clean_invalidate_tags(&mut self, frames: FrameRange) {
        self.sim.clean_invalidate_tags(frames);
    }
    fn zero_tags(&mut self, frame: Frame) {
        self.sim.zero_tags(frame);
    }
    fn copy_tags(&mut self, from: Frame, to: Frame) {
        self.sim.copy_tags(from, to);
    }
    fn tags_are_zero(&mut self, frame: Frame) -> bool {
        self.sim.tags_are_zero(frame)
    }
    fn synchronize(&mut self) {
        self.sim.synchronize();
    }
}

impl FrameCopy for FakeCpu {
    fn zero_frames(&mut self, frames: FrameRange) {
        self.sim.zero_frames(frames);
    }
    fn copy(&mut self, from: Frame, to: Frame) {
        self.sim.copy(from, to);
    }
    fn exchange(&mut self, one: Frame, other: Frame) {
        self.sim.exchange(one, other);
    }
    fn copy_image(&mut self, from: PhysAddr, to: PhysAddr, bytes: u64) {
        self.sim.copy_image(from, to, bytes);
    }
    fn sync_code(&mut self, frames: FrameRange) {
        self.sim.sync_code(frames);
    }
}

impl Cpu for FakeCpu {
    fn virtual_timer_is_quiet(&self) -> bool {
        false
    }

    fn translate(&mut self, form: AtForm, va: u64) -> Par {
        self.lookups.push(form);
        let found = self
            .stage1
            .iter()
            .find(|(of, page, _)| *of == form && *page == va & !0xfff);
        Par(found.map_or(1, |(_, _, ipa)| *ipa | 0xff00_0000_0000_0800))
    }
    fn origin(&self, context: &GuestContext) -> Origin {
        Origin {
            pc: context.pc,
            pstate: context.pstate,
            sctlr_el1: 0,
            vbar_el1: VBAR,
        }
    }
    fn take_exception(&mut self, injected: &Injected) {
        self.injected.push(*injected);
    }
    fn write_mdscr(&mut self, value: u64) {
        self.mdscr = Some(value);
    }
    fn write_comparators(&mut self, debug: &DebugRegs, shown: usize) {
        self.comparators = Some((*debug, shown));
    }
    fn write_cpacr(&mut self, value: u64) {
        self.cpacr = Some(value);
    }
    fn work_around(&mut self, function: u32) {
        self.worked_around.push(function);
    }
    fn random(&mut self) -> Option<u64> {
        self.entropy.pop()
    }
    fn store_list_registers(&mut self, lrs: &mut ListRegisters) {
        lrs.vmcr = self.vmcr.unwrap_or(lrs.vmcr);
    }
    fn write_frame(&mut self, frame: Frame, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= PAGE_SIZE as usize);
        for (at, &byte) in (frame.addr().get() + offset as u64..).zip(bytes) {
            self.sim.set_byte(PhysAddr::new(at), byte);
        }
    }
}

/// The machine, its memory and its VMs.
pub struct Rig {
    pub cpu: FakeCpu,
    pub memory: GuestsMemory,
    pub board: Board,
    pub vms: Vec<Vm>,
    /// What guests sent by their UARTs.
    pub sent: Vec<(usize, u8)>,
    /// Whether the console has room for more.
    pub room: bool,
    /// The physical counter.
    pub now: u64,
    /// Other vCPUs have been synchronized.
    pub gathered: bool,
    /// What the last exit mapped.
    pub mapped: Option<MappedPage>,
}

/// A configuration of a VM with MTE.
pub fn config(name: &str, memory: u64, vcpus: usize) -> VmConfig {
    let text = "tagvisor 1\nvm a\nkernel kernel\nmemory 8388608\ncmdline console=ttyAMA0\n";
    let parsed = Config::parse(text.as_bytes()).unwrap();
    VmConfig {
        name: name.into(),
        memory,
        vcpus,
        ..parsed.vms[0].clone()
    }
}

/// Whether the vCPU is to run on.
pub fn goes_on(next: Next) -> bool {
    !matches!(next, Next::Yield | Next::End(_) | Next::Fail(_))
}

impl Rig {
    /// A machine of 64 MiB without VMs.
    pub fn empty(policy: Policy) -> Self {
        let machine = machine(64 * MIB);
        let layout = Layout::new(&machine, &loaded()).unwrap();
        assert_eq!(layout.refused, []);
        let descs = machine.tag_regions.iter().map(|node| TagRegionDesc {
            tags_base: PhysAddr::new(node.tag_base),
            tags_bytes: node.tag_bytes,
            tagged_base: PhysAddr::new(node.tagged_base),
            tagged_bytes: node.tagged_bytes,
            block_size: node.block_bytes,
        });
        let mut sim = SimMachine::new(descs.collect(), Vec::new());
        for (at, byte) in (KERNEL..).zip(kernel()) {
            sim.set_byte(PhysAddr::new(at), byte);
        }
        let memory = GuestsMemory::new(HostLayout {
            memory: layout.map,
            regions: layout.regions,
            policy,
        });
        Self {
            cpu: FakeCpu::new(sim),
            memory: memory.unwrap(),
            board: Board {
                eviction_rate: 0,
                frequency: 1_000_000,
                hw: id_regs(),
                mte: true,
                policy,
                list_registers: 4,
            },
            vms: Vec::new(),
            sent: Vec::new(),
            room: true,
            now: 1000,
            gathered: true,
            mapped: None,
        }
    }

    /// Two VMs of 8 MiB, loaded: `a` with two vCPUs, both on and running at [`PC`], and `b`, the neighbour.
    pub fn new(policy: Policy) -> Self {
        let mut rig = Self::empty(policy);
        rig.start(config("a", 8 * MIB, 2));
        rig.start(config("b", 8 * MIB, 1));
        rig.vms[0].vcpus[1].power_on(BASE, 0);
        rig.enter(0);
        rig.enter(1);
        // As after the first sync, which each entry begins with.
        hypervisor::exit::sync_interrupts(&mut rig.vms[0], 0, &mut rig.cpu);
        for index in 0..2 {
            let context = &mut rig.vms[0].vcpus[index].context;
            (context.pc, context.pstate) = (PC, EL1H);
            for (number, x) in context.x.iter_mut().enumerate() {
                *x = 0xa5a5_0000_1234_8700 + number as u64;
            }
        }
        rig
    }

    /// Makes and loads a VM.
    pub fn start(&mut self, config: VmConfig) {
        self.try_start(config).unwrap();
    }

    /// The same for one that may be refused.
    pub fn try_start(&mut self, config: VmConfig) -> Result<(), StartError> {
        let index = self.vms.len();
        let kernel = kernel();
        let images = Images {
            kernel: file(&kernel, KERNEL),
            initrd: None,
        };
        let mut vm = Vm::new(index, config, &self.board, &mut self.memory, &mut self.cpu)?;
        vm.load(images, &[7; 32], &mut self.memory, &mut self.cpu)?;
        self.vms.push(vm);
        self.check();
        Ok(())
    }

    /// A CPU has taken the vCPU and entered it.
    pub fn enter(&mut self, vcpu: usize) {
        self.vcpu(vcpu).fresh = false;
    }

    pub fn vcpu(&mut self, vcpu: usize) -> &mut Vcpu {
        &mut self.vms[0].vcpus[vcpu]
    }

    pub fn context(&mut self) -> &mut GuestContext {
        &mut self.vms[0].vcpus[0].context
    }

    /// An exit of a vCPU of a VM, answered; the invariants hold afterwards.
    pub fn exit_of(&mut self, (vm, vcpu): (usize, usize), esr: u64, far: u64, ipa: u64) -> Next {
        let hpfar = ipa >> 12 << 4;
        let context = &mut self.vms[vm].vcpus[vcpu].context;
        (context.esr, context.far, context.hpfar) = (esr, far, hpfar);
        let exit = Exit::decode(Syndrome {
            esr: Esr(esr),
            far,
            hpfar,
        });
        let (sent, room) = (&mut self.sent, self.room);
        let mut env = Env {
            cpu: &mut self.cpu,
            memory: &mut self.memory,
            hw: &self.board.hw,
            transmit: &mut |vm: &mut Vm, byte| {
                let kept = vm.uart.take_kept().to_vec();
                sent.extend(kept.iter().map(|byte| (vm.index, *byte)));
                sent.push((vm.index, byte));
                room
            },
            gathered: self.gathered,
            mapped: None,
            now: self.now,
            frequency: self.board.frequency,
        };
        let next = handle(exit, &mut self.vms[vm], vcpu, &mut env);
        self.mapped = env.mapped;
        self.check();
        next
    }

    /// An exit of vCPU 0 of VM 0.
    pub fn exit(&mut self, esr: u64, far: u64, ipa: u64) -> Next {
        self.exit_of((0, 0), esr, far, ipa)
    }

    /// HVC #0 by vCPU 0 of VM 0.
    pub fn hvc(&mut self, x: [u64; 4]) -> Next {
        self.hvc_of(0, x)
    }

    pub fn hvc_of(&mut self, vcpu: usize, x: [u64; 4]) -> Next {
        self.vms[0].vcpus[vcpu].context.x[..4].copy_from_slice(&x);
        self.exit_of((0, vcpu), 0x16 << 26 | IL, 0, 0)
    }

    /// All invariants, and the simulated machine's own rules.
    pub fn check(&mut self) {
        let (host, guests) = (self.memory.host(), self.memory.guests());
        let checked = invariants::check(host, guests, &mut self.cpu);
        assert!(checked.is_ok(), "{checked:?}");
        assert_eq!(self.cpu.sim.broken_rules(), []);
        if let (Some(page), Some(guest)) = (self.mapped, self.memory.guest(self.vms[0].id)) {
            let fresh = page.fresh_tags;
            invariants::check_page(host, guest, &mut self.cpu, page.ipa, fresh).unwrap();
        }
    }

    /// The memory of a VM that has some.
    pub fn memory_of(&self, vm: usize) -> &GuestMemory {
        self.memory.guest(self.vms[vm].id).unwrap()
    }

    /// The part of the report about a VM.
    pub fn info(&self, vm: usize) -> VmInfo {
        self.vms[vm].info(&self.memory)
    }

    pub fn ledger(&self) -> Ledger {
        self.memory.account().ledger
    }

    /// How hardware sees a VM.
    pub fn guest(&self, vm: usize) -> SimGuest {
        let memory = self.memory_of(vm);
        SimGuest {
            vmid: memory.tables().vmid(),
            root: memory.tables().root(),
            ata: self.vms[vm].shape.mte,
        }
    }

    /// An access of VM 0 that runs with stage 1 off, repeated until it does not fault; returns its result and how many
    /// faults it took.
    pub fn run<T>(
        &mut self,
        ipa: u64,
        access: impl Fn(&mut SimMachine, SimGuest, Ipa) -> Result<T, SimFault>,
    ) -> (T, usize) {
        let page = ipa & !0xfff;
        for form in [AtForm::S1E1A, AtForm::S1E1R] {
            self.cpu.stage1.push((form, page, page));
        }
        let guest = self.guest(0);
        for faults in 0..4 {
            let esr = match access(&mut self.cpu.sim, guest, Ipa::new(ipa)) {
                Ok(result) => return (result, faults),
                Err(SimFault::Translation) => TRANSLATION,
                Err(SimFault::TagAccess) => TAG_ACCESS,
            };
            let hpfar_is_known = esr == TRANSLATION;
            let next = self.exit(esr, ipa, if hpfar_is_known { ipa } else { 0 });
            assert_eq!(next, Next::Resume);
        }
        panic!("the access at {ipa:#x} faults for ever")
    }

    /// Bytes of VM 0's RAM as its guest reads them.
    pub fn read(&mut self, ipa: u64, bytes: u64) -> Vec<u8> {
        (ipa..ipa + bytes)
            .map(|at| self.run(at, SimMachine::load).0)
            .collect()
    }

    /// Bytes of a VM's RAM as EL2 finds them.
    pub fn ram(&self, vm: usize, ipa: u64, bytes: u64) -> Vec<u8> {
        let memory = self.memory_of(vm);
        (ipa..ipa + bytes)
            .map(|at| {
                let frame = memory.translate(&self.cpu, Ipa::new(at)).expect("mapped");
                let offset = at % PAGE_SIZE;
                self.cpu
                    .sim
                    .byte(PhysAddr::new(frame.addr().get() + offset))
            })
            .collect()
    }
}

/// ESR_EL2 of a data abort without a description of the instruction, stage-2 translation fault at level 3.
pub const TRANSLATION: u64 = 0x24 << 26 | IL | 0x07;
/// ESR_EL2 of a tag access fault.
pub const TAG_ACCESS: u64 = 1 << 41 | 0x24 << 26 | IL | 0x0f;
/// ISS.WnR.
pub const WRITE: u64 = 1 << 6;
/// ISS.S1PTW.
pub const WALK: u64 = 1 << 7;
/// ISS.CM.
pub const MAINTENANCE: u64 = 1 << 8;
/// ISS.SSE.
pub const SIGN: u64 = 1 << 21;
/// ISS.SF.
pub const WIDE: u64 = 1 << 15;

/// ISS.ISV with an access of `bytes` by register `rt`.
pub fn described(bytes: u64, rt: u64) -> u64 {
    1 << 24 | u64::from(bytes.trailing_zeros()) << 22 | rt << 16
}

/// ESR_EL2 of a trapped MRS or MSR: op0, op1, CRn, CRm, op2.
pub fn sysreg((op0, op1, crn, crm, op2): (u64, u64, u64, u64, u64), rt: u64, read: bool) -> u64 {
    let iss = op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | rt << 5 | crm << 1;
    0x18 << 26 | IL | iss | u64::from(read)
}
