//! The run loop of a CPU: which vCPU runs, its entries and exits.
//!
//! One CPU runs all VMs; nothing here is shared, so there are no locks but the console's. Interrupts stay masked at EL2:
//! they are taken as exits of a guest or found pending while idle.

mod interrupts;
mod lifecycle;
mod sched;

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use stage2::memory::Memory;

use crate::arch::cpu::{self, El2};
use crate::arch::switch::{CpuState, SwitchedFeatures};
use crate::arch::{ExitVector, enter_guest, timer};
use crate::bundle::Bundle;
use crate::config::Config;
use crate::exit::{Env, Failure, Next, VIRTUAL_TIMER_INTID, handle};
use crate::output::CONSOLE;
use crate::report::{End, Invariants, MachineInfo, RegionInfo, VmInfo};
use crate::traps::esr::{Esr, Exit, Syndrome};
use crate::vcpu::Vcpu;
use crate::vm::{Board, Vm};

pub use interrupts::Interrupts;

/// What the report says about the machine and never changes.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The machine.
    pub machine: MachineInfo,
    /// The valid tag regions.
    pub regions: Vec<RegionInfo>,
    /// Bytes of our image in memory.
    pub image_bytes: u64,
}

/// What boot has made.
pub struct Parts {
    /// This CPU.
    pub cpu: El2,
    /// What all VMs have in common.
    pub board: Board,
    /// The machine's memory.
    pub memory: Memory,
    /// Physical interrupts.
    pub interrupts: Interrupts,
    /// For the report.
    pub facts: Facts,
    /// What to run, and how.
    pub config: Config,
    /// The images.
    pub bundle: Bundle<'static>,
}

/// Which vCPU: index of the VM, index in it.
type Place = (usize, usize);

/// A VM and the registers of its vCPUs that stay in hardware while they run.
struct Guest {
    vm: Vm,
    states: Vec<CpuState>,
    /// The vCPU that ran last on this CPU: the VM's TLB entries are its.
    last_vcpu: Option<usize>,
    /// The count at which it was started last.
    started: u64,
}

/// Everything, on this CPU.
pub struct Hypervisor {
    cpu: El2,
    board: Board,
    memory: Memory,
    interrupts: Interrupts,
    facts: Facts,
    config: Config,
    bundle: Bundle<'static>,
    guests: Vec<Guest>,
    refused: Vec<VmInfo>,
    /// FEAT_RAS.
    ras: bool,
    /// Whose registers are in the hardware.
    loaded: Option<Place>,
    /// Who ran last.
    last: Option<Place>,
    /// EL2's timer has fired, or somebody else has become runnable: look whether the running vCPU should give way.
    reschedule: bool,
    /// Whose terminal the console is, if it is anybody's.
    attached: usize,
    /// Input that the attached guest has not read.
    input: VecDeque<u8>,
    input_lost: bool,
    invariants: Invariants,
}

impl Hypervisor {
    /// Puts together what boot has made.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self {
            ras: parts.board.hw.has_ras(),
            cpu: parts.cpu,
            board: parts.board,
            memory: parts.memory,
            interrupts: parts.interrupts,
            facts: parts.facts,
            config: parts.config,
            bundle: parts.bundle,
            guests: Vec::new(),
            refused: Vec::new(),
            loaded: None,
            last: None,
            reschedule: false,
            attached: 0,
            input: VecDeque::new(),
            input_lost: false,
            invariants: Invariants::default(),
        }
    }

    /// Starts all VMs and runs them until the last has ended.
    pub fn run(mut self) -> ! {
        self.start_all();
        while self.guests.iter().any(|guest| guest.vm.end.is_none()) {
            match self.next() {
                Some(place) => self.run_slice(place),
                None => self.idle(),
            }
        }
        self.shut_down()
    }

    fn vcpu(&self, (vm, vcpu): Place) -> Option<&Vcpu> {
        self.guests.get(vm)?.vm.vcpus.get(vcpu)
    }

    /// Runs a vCPU until it gives way, its slice is over, somebody else's time has come, or its VM ends.
    fn run_slice(&mut self, place: Place) {
        self.switch_to(place);
        self.last = Some(place);
        let until = self.slice_end(place);
        self.arm(place, until);
        loop {
            match self.enter(place) {
                Next::Resume => {}
                Next::Rearm => self.arm(place, until),
                Next::Yield => return,
                Next::End(End::Reset) if !self.config.batch => return self.restart(place.0),
                Next::End(end) => return self.end_vm(place.0, end),
                Next::Fail(failure) => return self.fail_vm(place.0, failure),
            }
            if self.must_give_way(place, until) {
                return;
            }
        }
    }

    /// Enters the guest once and answers its exit.
    fn enter(&mut self, place: Place) -> Next {
        let (vm_index, vcpu_index) = place;
        self.deliver_input();
        self.raise_physical_timer(place);
        let Some(vm) = self.guests.get_mut(vm_index).map(|guest| &mut guest.vm) else {
            return Next::Yield;
        };
        interrupts::flush(vm, vcpu_index, &mut self.cpu);
        let Some(vcpu) = vm.vcpus.get_mut(vcpu_index) else {
            return Next::Yield;
        };
        let vector = enter_guest(&mut vcpu.context);
        vm.exits.total += 1;
        if let Some(syndrome) = self.ras.then(cpu::take_deferred_serror).flatten() {
            return Next::Fail(Failure::SError(syndrome));
        }
        match vector {
            ExitVector::Irq | ExitVector::Fiq => {
                vm.exits.irq += 1;
                self.take_interrupts();
                if cfg!(debug_assertions) {
                    self.check_trap(vm_index, None);
                }
                Next::Resume
            }
            ExitVector::SError => Next::Fail(Failure::SError(vcpu.context.esr)),
            ExitVector::Sync => self.answer(place),
        }
    }

    /// Answers a synchronous exit.
    fn answer(&mut self, (vm_index, vcpu_index): Place) -> Next {
        let Some(vm) = self.guests.get_mut(vm_index).map(|guest| &mut guest.vm) else {
            return Next::Yield;
        };
        let Some(context) = vm.vcpus.get(vcpu_index).map(|vcpu| &vcpu.context) else {
            return Next::Yield;
        };
        let exit = Exit::decode(Syndrome {
            esr: Esr(context.esr),
            far: context.far,
            hpfar: context.hpfar,
        });
        let mut env = Env {
            cpu: &mut self.cpu,
            memory: &mut self.memory,
            hw: &self.board.hw,
            transmit: &mut |vm: &Vm, byte| {
                CONSOLE.lock().guest_byte(vm.index, &vm.config.name, byte);
            },
            mapped: None,
            now: timer::counter(),
        };
        let next = handle(exit, vm, vcpu_index, &mut env);
        let mapped = env.mapped;
        if cfg!(debug_assertions) {
            self.check_trap(vm_index, mapped);
        }
        next
    }

    /// Puts the vCPU's registers into the hardware, and those of the one before into memory.
    fn switch_to(&mut self, place: Place) {
        let fresh = self.vcpu(place).is_some_and(|vcpu| vcpu.fresh);
        if self.loaded == Some(place) && !fresh {
            return;
        }
        self.unload();
        let switched = self.switched();
        let (vm_index, vcpu_index) = place;
        let Some(Guest {
            vm,
            states,
            last_vcpu,
            ..
        }) = self.guests.get_mut(vm_index)
        else {
            return;
        };
        let held = vm.vgic.is_hw_ppi_held(vcpu_index, VIRTUAL_TIMER_INTID);
        let (Some(memory), Some(vcpu), Some(state)) = (
            self.memory.guest(vm.id),
            vm.vcpus.get_mut(vcpu_index),
            states.get_mut(vcpu_index),
        ) else {
            return;
        };
        let tables = memory.tables();
        let vttbr = stage2::descriptor::vttbr(tables.root(), tables.vmid());
        self.cpu
            .load_controls(&vm.controls, vttbr, Vm::mpidr(vcpu_index));
        if last_vcpu
            .replace(vcpu_index)
            .is_some_and(|last| last != vcpu_index)
        {
            cpu::drop_stage1_entries();
        }
        if core::mem::take(&mut vcpu.fresh) {
            *state = CpuState::reset();
            state.el1.cpacr = vcpu.sysregs.cpacr_el1(&self.board.hw);
            state.el1.mdscr = vcpu.sysregs.mdscr_el1();
            vcpu.lrs.reset_interface();
        }
        state.restore(switched);
        self.cpu.interface.restore(&vcpu.lrs);
        self.set_timer_active(held);
        self.loaded = Some(place);
    }

    fn switched(&self) -> SwitchedFeatures {
        SwitchedFeatures {
            pauth: self.board.hw.has_pauth(),
            // Where no guest has MTE none can reach the registers (HCR_EL2.ATA = 0), and EL3 may trap EL2's own accesses.
            mte: self.board.mte,
            ras: self.ras,
        }
    }

    /// Takes the registers of the loaded vCPU out of the hardware.
    fn unload(&mut self) {
        let Some((vm_index, vcpu_index)) = self.loaded.take() else {
            return;
        };
        let switched = self.switched();
        let Some(Guest { vm, states, .. }) = self.guests.get_mut(vm_index) else {
            return;
        };
        if let Some(state) = states.get_mut(vcpu_index) {
            state.save(switched);
        }
        if let Some(vcpu) = vm.vcpus.get_mut(vcpu_index) {
            self.cpu.interface.save(&mut vcpu.lrs);
            vm.vgic.sync(vcpu_index, &vcpu.lrs);
        }
        interrupts::deactivate_done(vm, vcpu_index);
        self.set_timer_active(false);
        cpu::unload_stage2();
    }
}
