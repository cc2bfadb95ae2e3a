//! The run loop of each CPU: which vCPU runs, its entries and exits.
//!
//! All that CPUs share is in [`Hypervisor`], behind one lock (rank: first). A CPU holds it whenever it is neither in a guest nor
//! asleep, so whoever holds it knows where every other CPU is; [`ThisCpu`] is what only its own CPU touches. A CPU makes another
//! one look again by an SGI. Interrupts stay masked at EL2: they are taken as exits of a guest or found pending while idle.

mod interrupts;
mod lifecycle;
mod monitor;
mod sched;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use spin::mutex::{TicketMutex, TicketMutexGuard};
use stage2::memory::Memory;
use stage2::ports::TableMemory;

use crate::arch::cpu::{self, El2, Relax};
use crate::arch::switch::{CpuState, SwitchedFeatures};
use crate::arch::{ExitVector, enter_guest, timer};
use crate::bundle::Bundle;
use crate::config::Config;
use crate::cpu::Cpu;
use crate::exit::{self, Env, Failure, Next, VIRTUAL_TIMER_INTID, handle, sync_interrupts};
use crate::life::{Fate, Life};
use crate::monitor::Trace;
use crate::output::CONSOLE;
use crate::report::{End, Invariants, MachineInfo, RegionInfo, VmInfo};
use crate::sched::{Place, RunQueue};
use crate::traps::controls::{Controls, controls};
use crate::traps::debug::comparators_shown;
use crate::traps::esr::Exit;
use crate::traps::fault::PlainAccess;
use crate::traps::id_regs::{GuestShape, IdRegs};
use crate::vcpu::{GuestContext, Vcpu};
use crate::vm::{Board, Vm};

pub use interrupts::{Interrupts, call};

/// The lock over all that CPUs share.
pub type Shared = TicketMutex<Hypervisor, Relax>;

type Held = TicketMutexGuard<'static, Hypervisor, Relax>;

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
    /// What all VMs have in common.
    pub board: Board,
    /// The machine's memory.
    pub memory: Memory,
    /// The CPUs that run guests, by MPIDR_EL1; the boot CPU is the first.
    pub cpus: Vec<u64>,
    /// For the report.
    pub facts: Facts,
    /// What to run, and how.
    pub config: Config,
    /// The images.
    pub bundle: Bundle<'static>,
}

/// A VM and the registers of its vCPUs that stay in hardware while they run.
struct Guest {
    vm: Vm,
    life: Life,
    states: Vec<CpuState>,
    /// The vCPU that ran last on each CPU: the VM's TLB entries there are its.
    last_vcpus: Vec<Option<usize>>,
    /// The count at which it was started last.
    started: u64,
    /// It is forgotten as soon as it has ended.
    doomed: bool,
    /// Its last exits, while they are recorded.
    trace: Option<Box<Trace>>,
}

/// A CPU as the others see it.
struct Processor {
    mpidr: u64,
    /// Its vCPUs that are on.
    queue: RunQueue,
    /// The vCPU that has it, and the count since which that is not charged with it.
    given: Option<(Place, u64)>,
    /// The vCPU that it has entered. Its registers are not in the VM table, its interrupts are in list registers.
    entered: Option<Place>,
    /// A sleeper may have to wake, or there is a new vCPU: it looks who runs next.
    look: bool,
    /// One of its vCPUs is ready and waits for another.
    crowded: bool,
    /// The count at which a vCPU moved on to it or from it, last.
    moved: u64,
    /// It may be asleep: it is told when somebody waits elsewhere.
    idle: bool,
    /// Somebody waits until its list registers are stored.
    sync: bool,
    /// An SGI is on its way.
    called: bool,
}

/// Everything that CPUs share.
pub struct Hypervisor {
    board: Board,
    memory: Memory,
    /// No page moved when a CPU last had nothing else to do, and no memory of a VM has changed since.
    settled: bool,
    facts: Facts,
    config: Config,
    bundle: Bundle<'static>,
    guests: Vec<Guest>,
    refused: Vec<VmInfo>,
    processors: Vec<Processor>,
    /// Whose terminal the console is, if it is anybody's.
    attached: usize,
    /// Input that the attached guest has not read.
    input: VecDeque<u8>,
    input_lost: bool,
    /// The monitor is open.
    monitor: bool,
    invariants: Invariants,
}

/// The CPU that executes this.
pub struct ThisCpu {
    /// Its place among those that run guests.
    index: usize,
    el2: El2,
    interrupts: Interrupts,
    /// What denies a guest all that it is not shown on this CPU: for guests without and with MTE.
    controls: [Controls; 2],
    switched: SwitchedFeatures,
    /// Whose registers are in the hardware.
    loaded: Option<Place>,
    /// VMs whose memory this CPU takes away.
    leaving: Vec<usize>,
    /// Takes the place of a vCPU's registers in the VM table while it is in the guest.
    context: Box<GuestContext>,
    /// The vCPU that has just given way of its own.
    yielding: Option<Place>,
    /// The guest's WFI does not trap: what else this CPU could do meanwhile is nothing.
    sleeps_in_guest: bool,
    /// EL2's timer has fired: look whether the running vCPU should give way.
    reschedule: bool,
    /// The virtual GIC knows what other vCPUs have in list registers: for the next synchronous exit.
    gathered: bool,
}

impl ThisCpu {
    /// Puts together what a CPU has found out about itself; `hw` is what it has, `mte` whether guests can have it.
    #[must_use]
    pub fn new(index: usize, el2: El2, interrupts: Interrupts, hw: &IdRegs, mte: bool) -> Self {
        let counters = cpu::pmu_counters(hw);
        let switched = SwitchedFeatures {
            pauth: hw.has_pauth(),
            // Where no guest has MTE none can reach the registers (HCR_EL2.ATA = 0), and EL3 may trap EL2's own accesses.
            mte,
            ras: hw.has_ras(),
        };
        Self {
            index,
            el2,
            interrupts,
            controls: [false, true].map(|mte| controls(hw, GuestShape { mte }, counters)),
            switched,
            loaded: None,
            leaving: Vec::new(),
            context: Box::default(),
            yielding: None,
            sleeps_in_guest: false,
            reschedule: false,
            gathered: false,
        }
    }
}

impl Hypervisor {
    /// Puts together what boot has made, and starts all VMs, on the boot CPU.
    #[must_use]
    pub fn start(parts: Parts, cpu: &mut ThisCpu) -> Self {
        let processors = parts
            .cpus
            .iter()
            .enumerate()
            .map(|(index, &mpidr)| Processor {
                mpidr,
                queue: RunQueue::new(),
                given: None,
                entered: None,
                look: false,
                crowded: false,
                moved: 0,
                idle: false,
                sync: false,
                // All but this one begin when they are called.
                called: index != cpu.index,
            });
        let mut hypervisor = Self {
            processors: processors.collect(),
            board: parts.board,
            memory: parts.memory,
            settled: false,
            facts: parts.facts,
            config: parts.config,
            bundle: parts.bundle,
            guests: Vec::new(),
            refused: Vec::new(),
            attached: 0,
            input: VecDeque::new(),
            input_lost: false,
            monitor: false,
            invariants: Invariants::default(),
        };
        hypervisor.start_all(cpu);
        hypervisor
    }

    #[inline(never)]
    fn vcpu(&self, (vm, vcpu): Place) -> Option<&Vcpu> {
        self.guests.get(vm)?.vm.vcpus.get(vcpu)
    }
}

/// Runs the vCPUs of this CPU until the last VM has ended.
pub fn run(shared: &'static Shared, mut cpu: ThisCpu) -> ! {
    let mut all = shared.lock();
    loop {
        all.leave_stopped(&mut cpu);
        if all.take_away(&mut cpu) {
            // Whoever waits for the lock has it first.
            drop(all);
            all = shared.lock();
            continue;
        }
        if !all.monitor && all.guests.iter().all(|guest| guest.life.is_over()) {
            all.shut_down(&mut cpu);
        }
        all = match all.next(&mut cpu) {
            Some(place) => {
                all.give(cpu.index, place);
                let mut all = run_slice(shared, all, &mut cpu, place);
                all.charge(cpu.index);
                all
            }
            None => idle(shared, all, &mut cpu),
        };
    }
}

/// Waits for an interrupt or a deadline; with nothing else to do it first takes a vCPU over that waits for another CPU, or moves
/// pages together, one at a time, so that tag blocks become free.
fn idle(shared: &'static Shared, mut all: Held, cpu: &mut ThisCpu) -> Held {
    if all.pull(cpu.index) || !all.settled && all.compact(cpu) {
        return all;
    }
    all.settled = true;
    all.settle(cpu);
    timer::set_deadline(all.sleepers_deadline(cpu));
    all.set_idle(cpu.index, true);
    drop(all);
    cpu::wait_for_interrupt();
    let mut all = shared.lock();
    all.set_idle(cpu.index, false);
    all.take_interrupts(cpu);
    all
}

/// Runs a vCPU until it gives way, its slice is over, somebody else's time has come, or its VM stops.
#[inline(never)]
fn run_slice(shared: &'static Shared, mut all: Held, cpu: &mut ThisCpu, place: Place) -> Held {
    if !all.switch_to(cpu, place) {
        return all;
    }
    let until = all.slice_end(cpu);
    all.raise_physical_timer(place);
    all.arm(place, until);
    all.choose_traps(cpu);
    loop {
        if !all.prepare_entry(cpu, place) {
            return all;
        }
        let vector = loop {
            drop(all);
            let vector = enter_guest(&mut cpu.context);
            all = shared.lock();
            if vector != ExitVector::Sync || !all.access_uart(cpu, place.0) {
                break vector;
            }
        };
        all.finish_exit(cpu, place);
        let next = all.answer(cpu, place, vector);
        if next == Next::Gather {
            all = gather(shared, all, cpu, place.0);
        }
        let stays = all.follow(cpu, place, until, next);
        // Also if it yields: going to sleep may just have handed an interrupt to a vCPU that sleeps elsewhere.
        if all.must_give_way(cpu, place, until) || !stays {
            return all;
        }
    }
}

/// Waits until no other CPU that runs a vCPU of the VM has anything in its list registers that its GIC does not know; then the
/// guest's read is repeated.
#[cold]
fn gather(shared: &'static Shared, mut all: Held, cpu: &mut ThisCpu, vm: usize) -> Held {
    cpu.gathered = true;
    let others = all.ask_for_sync(cpu.index, vm);
    while all
        .processors
        .iter()
        .enumerate()
        .any(|(index, processor)| others >> index & 1 != 0 && processor.sync)
    {
        drop(all);
        cpu::relax();
        all = shared.lock();
    }
    all
}

impl Hypervisor {
    /// Makes the vCPU ready to be entered: its interrupts in list registers, its registers with this CPU.
    fn prepare_entry(&mut self, cpu: &mut ThisCpu, place: Place) -> bool {
        let (vm_index, vcpu_index) = place;
        self.deliver_input(cpu.index);
        let Some(vm) = self.guests.get_mut(vm_index).map(|guest| &mut guest.vm) else {
            return false;
        };
        interrupts::flush(vm, vcpu_index, &mut cpu.el2);
        let (Some(vcpu), Some(processor)) = (
            vm.vcpus.get_mut(vcpu_index),
            self.processors.get_mut(cpu.index),
        ) else {
            return false;
        };
        core::mem::swap(&mut vcpu.context, &mut cpu.context);
        processor.entered = Some(place);
        true
    }

    /// Answers an access to a UART that nobody else needs to know of. To the others the vCPU has never left the guest, as it
    /// goes back at once: what they have asked of it meanwhile has sent it an interrupt. An SError that it caused is left in
    /// `DISR_EL1` for its next exit.
    fn access_uart(&mut self, cpu: &mut ThisCpu, vm_index: usize) -> bool {
        let Some(access) = PlainAccess::decode(cpu.context.syndrome()) else {
            return false;
        };
        // What a terminal shows, it shows at once.
        let keep = self.config.batch || vm_index != self.attached;
        let guest = self.guests.get_mut(vm_index);
        let Some(Guest {
            vm, trace: None, ..
        }) = guest
        else {
            return false;
        };
        exit::access_uart(access, &mut cpu.context, vm, keep)
    }

    /// Puts the registers of a vCPU that has left the guest back.
    fn finish_exit(&mut self, cpu: &mut ThisCpu, (vm_index, vcpu_index): Place) {
        let (Some(guest), Some(processor)) = (
            self.guests.get_mut(vm_index),
            self.processors.get_mut(cpu.index),
        ) else {
            return;
        };
        processor.entered = None;
        if let Some(vcpu) = guest.vm.vcpus.get_mut(vcpu_index) {
            core::mem::swap(&mut vcpu.context, &mut cpu.context);
        }
        guest.vm.exits.total += 1;
        if processor.sync {
            processor.sync = false;
            sync_interrupts(&mut guest.vm, vcpu_index, &mut cpu.el2);
        }
    }

    /// Answers an exit.
    fn answer(&mut self, cpu: &mut ThisCpu, place: Place, vector: ExitVector) -> Next {
        if let Some(syndrome) = cpu.switched.ras.then(cpu::take_deferred_serror).flatten() {
            return Next::Fail(Failure::SError(syndrome));
        }
        match vector {
            ExitVector::Irq | ExitVector::Fiq => {
                if let Some(guest) = self.guests.get_mut(place.0) {
                    guest.vm.exits.irq += 1;
                }
                self.take_interrupts(cpu);
                if cfg!(debug_assertions) {
                    self.check_trap(cpu, place.0, None);
                }
                Next::Resume
            }
            ExitVector::SError => {
                let esr = self.vcpu(place).map_or(0, |vcpu| vcpu.context.esr);
                Next::Fail(Failure::SError(esr))
            }
            ExitVector::Sync => self.answer_sync(cpu, place),
        }
    }

    /// Does what an exit comes to. Returns whether the vCPU runs on.
    fn follow(&mut self, cpu: &mut ThisCpu, place: Place, until: Option<u64>, next: Next) -> bool {
        match next {
            Next::Resume | Next::Gather => return true,
            Next::Rearm => {
                self.arm(place, until);
                return true;
            }
            Next::Started(vcpu) => {
                self.find_cpu((place.0, vcpu), cpu.index);
                return true;
            }
            Next::Yield => {
                cpu.yielding = Some(place);
                self.retire(cpu, place);
            }
            Next::End(End::Reset) if !self.config.batch => self.stop(place.0, Fate::Restart, cpu),
            Next::End(End::OverBudget) => self.over_budget(place.0, cpu),
            Next::End(end) => self.stop(place.0, Fate::End(end), cpu),
            Next::Fail(failure) => self.fail_vm(place.0, failure, cpu),
        }
        false
    }

    fn answer_sync(&mut self, cpu: &mut ThisCpu, (vm_index, vcpu_index): Place) -> Next {
        let Some(Guest { vm, trace, .. }) = self.guests.get_mut(vm_index) else {
            return Next::Yield;
        };
        let Some(context) = vm.vcpus.get(vcpu_index).map(|vcpu| &vcpu.context) else {
            return Next::Yield;
        };
        if let Some(trace) = trace {
            trace.record(vcpu_index, context);
        }
        let exit = Exit::decode(context.syndrome());
        let mut env = Env {
            cpu: &mut cpu.el2,
            memory: &mut self.memory,
            hw: &self.board.hw,
            transmit: &mut |vm: &mut Vm, byte| {
                let mut console = CONSOLE.lock();
                console.guest_bytes(vm.index, vm.uart.take_kept());
                console.guest_byte(vm.index, byte)
            },
            gathered: core::mem::take(&mut cpu.gathered),
            mapped: None,
            now: timer::counter(),
            frequency: self.board.frequency,
        };
        let next = handle(exit, vm, vcpu_index, &mut env);
        let mapped = env.mapped;
        if mapped.is_some() {
            self.settled = false;
            if cpu.sleeps_in_guest {
                self.choose_traps(cpu);
            }
        }
        if cfg!(debug_assertions) {
            self.check_trap(cpu, vm_index, mapped);
        }
        next
    }

    /// Puts the vCPU's registers into the hardware, and those of the one before into memory. Returns whether they are there.
    fn switch_to(&mut self, cpu: &mut ThisCpu, place: Place) -> bool {
        let fresh = self.vcpu(place).is_some_and(|vcpu| vcpu.fresh);
        if cpu.loaded == Some(place) && !fresh {
            return true;
        }
        self.unload(cpu);
        let (vm_index, vcpu_index) = place;
        let Some(Guest {
            vm,
            life,
            states,
            last_vcpus,
            ..
        }) = self.guests.get_mut(vm_index)
        else {
            return false;
        };
        let held = vm.vgic.is_hw_ppi_held(vcpu_index, VIRTUAL_TIMER_INTID);
        let page = vm.pv_time_page();
        let (Some(memory), Some(vcpu), Some(state), Some(last)) = (
            self.memory.guest(vm.id),
            vm.vcpus.get_mut(vcpu_index),
            states.get_mut(vcpu_index),
            last_vcpus.get_mut(cpu.index),
        ) else {
            return false;
        };
        if !life.load(cpu.index) {
            return false;
        }
        let tables = memory.tables();
        let vttbr = stage2::descriptor::vttbr(tables.root(), tables.vmid());
        let [without_mte, with_mte] = &cpu.controls;
        let controls = if vm.shape.mte { with_mte } else { without_mte };
        cpu.el2
            .load_controls(controls, vttbr, Vm::mpidr(vcpu_index));
        if last
            .replace(vcpu_index)
            .is_some_and(|last| last != vcpu_index)
        {
            cpu::drop_stage1_entries();
        }
        if core::mem::take(&mut vcpu.fresh) {
            *state = CpuState::reset();
            state.el1.cpacr = vcpu.sysregs.cpacr_el1(&self.board.hw);
            state.el1.mdscr = vcpu.sysregs.debug.mdscr_el1();
            vcpu.lrs.reset_interface();
        }
        let stolen = timer::counter().saturating_sub(vcpu.ready_at);
        vcpu.stolen.counts += stolen;
        vm.time.stolen += stolen;
        if vcpu.stolen.shown
            && let Some(frame) = memory.translate(&cpu.el2, page)
        {
            let [_, (index, time)] = vcpu.stolen.words(vcpu_index, self.board.frequency);
            cpu.el2.write(frame, index, time);
        }
        vcpu.loaded = true;
        state.restore(cpu.switched);
        if vcpu.sysregs.debug.is_active() {
            let (shown, _) = comparators_shown(&self.board.hw);
            cpu.el2.write_comparators(&vcpu.sysregs.debug, shown);
        }
        cpu.el2.interface.restore(&vcpu.lrs);
        cpu.interrupts.set_timer_active(held);
        cpu.loaded = Some(place);
        true
    }

    /// Moves one page of some VM, if that makes a tag block free sooner. Whether there was any.
    fn compact(&mut self, cpu: &mut ThisCpu) -> bool {
        let Self { guests, memory, .. } = self;
        let percent = self.config.compact_below.into();
        let mut live = guests.iter().filter(|guest| guest.life.is_running());
        live.any(|guest| {
            let moved = memory.compact(&mut cpu.el2, guest.vm.id, percent);
            moved.unwrap_or(false)
        })
    }

    /// Takes the registers of the loaded vCPU out of the hardware. If its VM stops and this was the last, that happens now.
    fn unload(&mut self, cpu: &mut ThisCpu) {
        let Some((vm_index, vcpu_index)) = cpu.loaded.take() else {
            return;
        };
        let Some(Guest {
            vm, life, states, ..
        }) = self.guests.get_mut(vm_index)
        else {
            return;
        };
        if let Some(state) = states.get_mut(vcpu_index) {
            state.save(cpu.switched);
        }
        if let Some(vcpu) = vm.vcpus.get_mut(vcpu_index) {
            vcpu.loaded = false;
            if vcpu.sysregs.debug.is_active() {
                cpu::clear_comparators();
            }
            cpu.el2.interface.save(&mut vcpu.lrs);
            vm.vgic.sync(vcpu_index, &vcpu.lrs);
        }
        interrupts::deactivate_done(vm, vcpu_index);
        cpu.interrupts.set_timer_active(false);
        cpu::unload_stage2();
        let (kicks, fate) = (vm.vgic.take_kicks(), life.unload(cpu.index));
        self.tell(vm_index, kicks, cpu.index);
        if let Some(fate) = fate {
            self.carry_out(vm_index, fate, cpu);
        }
    }
}
