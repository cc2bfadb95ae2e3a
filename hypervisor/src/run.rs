//! The run loop of a CPU: which vCPU runs, its entry and exits, physical interrupts, the end of VMs and of the machine.
//!
//! One CPU runs all VMs; nothing here is shared, so there are no locks but the console's. Interrupts stay masked at EL2:
//! they are taken as exits of a guest or found pending while idle.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use platform::gic::{CpuInterface, Redistributor};
use stage2::guest::{MemError, Policy};
use stage2::host::HostMemory;

use crate::arch::cpu::{self, El2};
use crate::arch::switch::{CpuState, SwitchedFeatures};
use crate::arch::{ExitVector, enter_guest, heap_used, timer};
use crate::boot::power_off;
use crate::bundle::Bundle;
use crate::config::Config;
use crate::console::{Command, Input, Mode, help};
use crate::devices::mmio::UART_INTID;
use crate::devices::vtimer::{deadline, level};
#[cfg(debug_assertions)]
use crate::exit::MappedPage;
use crate::exit::{Env, Failure, Next, PHYSICAL_TIMER_INTID, handle, sync_interrupts};
use crate::output::{CONSOLE, line};
use crate::report::{
    CarveOut, End, Footprint, Invariants, MachineInfo, Ratio, RegionInfo, Report, VERSION, VmInfo,
};
use crate::traps::esr::{Esr, Exit, Syndrome};
use crate::vm::{Board, Images, StartError, Vm, policy_name};

/// INTID of the virtual timer, for guests and, on each board so far, for us.
const VIRTUAL_TIMER_INTID: u16 = 27;
/// Time slices per second.
const SLICES_PER_SECOND: u64 = 100;
/// Input bytes kept while a guest does not read.
const INPUT_BYTES: usize = 4096;

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

/// The interrupts of this CPU, INTIDs.
#[derive(Debug)]
pub struct Interrupts {
    /// This CPU's redistributor.
    pub redistributor: Redistributor,
    /// The guests' timer.
    pub virtual_timer: u32,
    /// Ours.
    pub hypervisor_timer: Option<u32>,
    /// List registers ask for attention.
    pub maintenance: Option<u32>,
    /// The console has input.
    pub uart: Option<u32>,
}

/// Which vCPU: index of the VM, index in it.
type Place = (usize, usize);

/// Everything, on this CPU.
pub struct Hypervisor {
    cpu: El2,
    board: Board,
    host: HostMemory,
    interrupts: Interrupts,
    facts: Facts,
    config: Config,
    bundle: Bundle<'static>,
    vms: Vec<Vm>,
    states: Vec<Vec<CpuState>>,
    refused: Vec<VmInfo>,
    loaded: Option<Place>,
    last: Option<Place>,
    input: VecDeque<u8>,
    invariants: Invariants,
}

impl Hypervisor {
    /// Puts together what boot has made.
    pub fn new(
        cpu: El2,
        board: Board,
        host: HostMemory,
        interrupts: Interrupts,
        facts: Facts,
        config: Config,
        bundle: Bundle<'static>,
    ) -> Self {
        Self {
            cpu,
            board,
            host,
            interrupts,
            facts,
            config,
            bundle,
            vms: Vec::new(),
            states: Vec::new(),
            refused: Vec::new(),
            loaded: None,
            last: None,
            input: VecDeque::new(),
            invariants: Invariants::default(),
        }
    }

    /// Starts all VMs and runs them until the last has ended.
    pub fn run(mut self) -> ! {
        let mode = if self.config.batch {
            Mode::Batch
        } else {
            Mode::Interactive { attached: 0 }
        };
        CONSOLE.lock().start(mode, self.config.vms.len());
        for config in self.config.vms.clone() {
            if let Err(error) = self.start_vm(config.clone()) {
                log::error!("vm={} refused: {error}", config.name);
                self.refused.push(Vm::refused(&config, self.board.policy));
            }
        }
        if self.board.policy == Policy::Static {
            self.host.snapshot_now();
        }
        if !self.config.batch {
            line(format_args!("[tagvisor] {}", help()));
        }
        if let Some(input) = &self.interrupts.uart {
            log::debug!("console input by interrupt {input}");
        }
        CONSOLE.lock().listen();
        while self.vms.iter().any(|vm| vm.end.is_none()) {
            match self.next() {
                Some(place) => self.run_slice(place),
                None => self.idle(),
            }
        }
        self.shut_down()
    }

    fn images(&self, vm: &crate::config::VmConfig) -> Result<Images<'static>, StartError> {
        let file = |name: &str| {
            self.bundle
                .file(name)
                .ok_or_else(|| StartError::NoFile(name.into()))
        };
        Ok(Images {
            kernel: file(&vm.kernel)?,
            initrd: vm.initrd.as_deref().map_or(Ok(&[][..]), file)?,
        })
    }

    fn start_vm(&mut self, config: crate::config::VmConfig) -> Result<(), StartError> {
        let images = self.images(&config)?;
        let mut vm = Vm::new(
            self.vms.len(),
            config,
            &self.board,
            &mut self.host,
            &mut self.cpu,
        )?;
        if vm.config.mte && !vm.shape.mte {
            log::warn!(
                "vm={} runs without MTE: this machine cannot give it",
                vm.config.name
            );
        }
        let seed = rng_seed(vm.index, self.config.report_key.as_deref());
        if let Err(error) = vm.load(images, &seed, &mut self.host, &mut self.cpu) {
            if let Some(memory) = vm.memory.take() {
                let destroyed = memory.destroy(&mut self.host, &mut self.cpu);
                self.note_lost(destroyed);
            }
            return Err(error);
        }
        log::info!(
            "vm={} started: memory={} MiB vcpus={} mte={}",
            vm.config.name,
            vm.config.memory >> 20,
            vm.config.vcpus,
            vm.shape.mte
        );
        self.states
            .push((0..vm.config.vcpus).map(|_| CpuState::reset()).collect());
        self.vms.push(vm);
        Ok(())
    }

    /// Chooses the next runnable vCPU after the last one, in turn.
    fn next(&mut self) -> Option<Place> {
        self.wake_due();
        let mut first = None;
        for vm in &self.vms {
            for (index, _) in vm
                .vcpus
                .iter()
                .enumerate()
                .filter(|(_, vcpu)| vcpu.is_runnable())
            {
                let place = (vm.index, index);
                if Some(place) > self.last {
                    return Some(place);
                }
                first = first.or(Some(place));
            }
        }
        first
    }

    fn vcpu(&self, (vm, vcpu): Place) -> Option<&crate::vcpu::Vcpu> {
        self.vms.get(vm)?.vcpus.get(vcpu)
    }

    /// Wakes vCPUs whose interrupt or deadline has come.
    fn wake_due(&mut self) {
        let now = timer::counter();
        for vm in self.vms.iter_mut().filter(|vm| vm.end.is_none()) {
            for index in 0..vm.vcpus.len() {
                let place = (vm.index, index);
                let Some(vcpu) = vm.vcpus.get_mut(index) else {
                    continue;
                };
                let Some(wake) = vcpu.waiting else { continue };
                let saved = self
                    .states
                    .get(vm.index)
                    .and_then(|states| states.get(index));
                let timer_due = saved.is_some_and(|state| {
                    self.loaded != Some(place) && level(state.cntv_ctl, state.el1.cntv_cval, 0, now)
                });
                let gives_up = wake.at.is_some_and(|at| at <= now);
                let physical_due = vcpu.physical_timer.level(now);
                if physical_due {
                    vm.vgic.set_ppi_level(index, PHYSICAL_TIMER_INTID, true);
                }
                if timer_due || gives_up || vm.vgic.has_pending(index) {
                    vcpu.waiting = None;
                }
            }
        }
    }

    /// Returns the earliest count at which somebody must be woken, or the running vCPU's physical timer fires.
    fn earliest_deadline(&self) -> Option<u64> {
        let mut earliest: Option<u64> = None;
        for vm in self.vms.iter().filter(|vm| vm.end.is_none()) {
            for (index, vcpu) in vm.vcpus.iter().enumerate() {
                let loaded = self.loaded == Some((vm.index, index));
                if !loaded && vcpu.waiting.is_none() {
                    continue;
                }
                let state = self
                    .states
                    .get(vm.index)
                    .and_then(|states| states.get(index));
                let virtual_timer = state
                    .filter(|_| !loaded)
                    .and_then(|state| deadline(state.cntv_ctl, state.el1.cntv_cval, 0));
                let pending_already = vcpu.physical_timer.level(timer::counter());
                let physical_timer = vcpu.physical_timer.deadline().filter(|_| !pending_already);
                let gives_up = vcpu.waiting.and_then(|wake| wake.at);
                for at in [virtual_timer, physical_timer, gives_up]
                    .into_iter()
                    .flatten()
                {
                    earliest = Some(earliest.map_or(at, |earliest| earliest.min(at)));
                }
            }
        }
        earliest
    }

    fn idle(&mut self) {
        timer::set_deadline(self.earliest_deadline());
        cpu::wait_for_interrupt();
        self.take_interrupts();
    }

    /// Runs a vCPU until it gives way, its slice is over, or its VM ends.
    fn run_slice(&mut self, place: Place) {
        self.switch_to(place);
        self.last = Some(place);
        let contended = self
            .vms
            .iter()
            .flat_map(|vm| &vm.vcpus)
            .filter(|vcpu| vcpu.is_runnable())
            .count()
            > 1;
        let slice_end =
            contended.then(|| timer::counter() + timer::frequency() / SLICES_PER_SECOND);
        loop {
            let deadline = [slice_end, self.earliest_deadline()]
                .into_iter()
                .flatten()
                .min();
            timer::set_deadline(deadline);
            match self.enter(place) {
                Next::Resume => {}
                Next::Yield => return,
                Next::End(End::Reset) if !self.config.batch => return self.restart(place.0),
                Next::End(end) => return self.end_vm(place.0, end),
                Next::Fail(failure) => return self.fail_vm(place.0, failure),
            }
            if slice_end.is_some_and(|end| end <= timer::counter()) {
                return;
            }
            if self.vms.get(place.0).is_none_or(|vm| vm.end.is_some()) {
                return;
            }
        }
    }

    /// Enters the guest once and answers its exit.
    fn enter(&mut self, (vm_index, vcpu_index): Place) -> Next {
        self.deliver_input();
        let Some(vm) = self.vms.get_mut(vm_index) else {
            return Next::Yield;
        };
        flush_interrupts(vm, vcpu_index, &mut self.cpu);
        let Some(vcpu) = vm.vcpus.get_mut(vcpu_index) else {
            return Next::Yield;
        };
        let vector = enter_guest(&mut vcpu.context);
        vm.exits.total += 1;
        let context = &vcpu.context;
        match vector {
            ExitVector::Irq | ExitVector::Fiq => {
                vm.exits.irq += 1;
                self.take_interrupts();
                Next::Resume
            }
            ExitVector::SError => Next::Fail(Failure::SError(context.esr)),
            ExitVector::Sync => {
                let syndrome = Syndrome {
                    esr: Esr(context.esr),
                    far: context.far,
                    hpfar: context.hpfar,
                };
                let exit = Exit::decode(syndrome);
                let mut env = Env {
                    cpu: &mut self.cpu,
                    host: &mut self.host,
                    hw: &self.board.hw,
                    transmit: &mut |vm: &Vm, byte| {
                        CONSOLE.lock().guest_byte(vm.index, &vm.config.name, byte);
                    },
                    mapped: None,
                    now: timer::counter(),
                };
                let next = handle(exit, vm, vcpu_index, &mut env);
                let mapped = env.mapped;
                #[cfg(debug_assertions)]
                self.check_trap(vm_index, mapped);
                #[cfg(not(debug_assertions))]
                let _ = mapped;
                next
            }
        }
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
        let Some(vm) = self.vms.get_mut(vm_index) else {
            return;
        };
        let Some(memory) = &vm.memory else { return };
        let tables = memory.tables();
        let vttbr = stage2::descriptor::vttbr(tables.root(), tables.vmid());
        self.cpu
            .load_controls(&vm.controls, vttbr, Vm::mpidr(vcpu_index));
        if vm
            .last_vcpu
            .replace(vcpu_index)
            .is_some_and(|last| last != vcpu_index)
        {
            cpu::drop_stage1_entries();
        }
        let held = vm.vgic.is_hw_ppi_held(vcpu_index, VIRTUAL_TIMER_INTID);
        let Some(vcpu) = vm.vcpus.get_mut(vcpu_index) else {
            return;
        };
        let Some(state) = self
            .states
            .get_mut(vm_index)
            .and_then(|states| states.get_mut(vcpu_index))
        else {
            return;
        };
        if fresh {
            *state = CpuState::reset();
            state.el1.cpacr = vcpu.sysregs.cpacr_el1(&self.board.hw);
            state.el1.mdscr = vcpu.sysregs.mdscr_el1();
            vcpu.fresh = false;
        }
        state.restore(switched);
        self.cpu.interface.restore(&vcpu.lrs);
        self.set_timer_active(held);
        self.loaded = Some(place);
    }

    fn switched(&self) -> SwitchedFeatures {
        SwitchedFeatures {
            pauth: self.board.hw.has_pauth(),
            mte: self.board.mte,
        }
    }

    /// Takes the registers of the loaded vCPU out of the hardware.
    fn unload(&mut self) {
        let Some((vm_index, vcpu_index)) = self.loaded.take() else {
            return;
        };
        let switched = self.switched();
        if let Some(state) = self
            .states
            .get_mut(vm_index)
            .and_then(|states| states.get_mut(vcpu_index))
        {
            state.save(switched);
        }
        let Some(vm) = self.vms.get_mut(vm_index) else {
            return;
        };
        if let Some(vcpu) = vm.vcpus.get_mut(vcpu_index) {
            self.cpu.interface.save(&mut vcpu.lrs);
            vm.vgic.sync(vcpu_index, &vcpu.lrs);
        }
        deactivate_done(vm, vcpu_index);
        self.set_timer_active(false);
        cpu::unload_stage2();
    }

    /// The physical interrupt of the virtual timer is active while a guest handles it; that state moves with the vCPU.
    fn set_timer_active(&mut self, active: bool) {
        let _ = self
            .interrupts
            .redistributor
            .set_active(self.interrupts.virtual_timer, active);
    }

    /// Takes all pending physical interrupts.
    fn take_interrupts(&mut self) {
        while let Some(intid) = CpuInterface::acknowledge() {
            CpuInterface::end(intid);
            if intid == self.interrupts.virtual_timer && self.raise_virtual_timer() {
                continue; // the guest deactivates it
            }
            if Some(intid) == self.interrupts.hypervisor_timer {
                timer::set_deadline(None);
                self.fire_physical_timer();
            } else if Some(intid) == self.interrupts.uart {
                self.read_console();
            } else if Some(intid) == self.interrupts.maintenance {
                self.refill();
            } else if intid != self.interrupts.virtual_timer {
                log::warn!("unexpected interrupt {intid}");
            }
            CpuInterface::deactivate(intid);
        }
    }

    fn raise_virtual_timer(&mut self) -> bool {
        let Some((vm_index, vcpu_index)) = self.loaded else {
            return false;
        };
        let Some(vm) = self.vms.get_mut(vm_index) else {
            return false;
        };
        let slot = vm.vgic.hw_ppi_slot(vcpu_index, VIRTUAL_TIMER_INTID);
        if !slot.is_some_and(|slot| self.cpu.interface.rearm(slot)) {
            vm.vgic
                .raise_hw_ppi(vcpu_index, VIRTUAL_TIMER_INTID, VIRTUAL_TIMER_INTID);
        }
        true
    }

    /// Raises the emulated physical timer of the loaded vCPU if it is due.
    fn fire_physical_timer(&mut self) {
        let now = timer::counter();
        let Some((vm_index, vcpu_index)) = self.loaded else {
            return;
        };
        let Some(vm) = self.vms.get_mut(vm_index) else {
            return;
        };
        let due = vm
            .vcpus
            .get(vcpu_index)
            .is_some_and(|vcpu| vcpu.physical_timer.level(now));
        if due {
            vm.vgic
                .set_ppi_level(vcpu_index, PHYSICAL_TIMER_INTID, true);
        }
    }

    /// More interrupts were pending than list registers: takes back those that are done and fills in others.
    fn refill(&mut self) {
        let Some((vm_index, vcpu_index)) = self.loaded else {
            return;
        };
        if let Some(vm) = self.vms.get_mut(vm_index) {
            sync_interrupts(vm, vcpu_index, &mut self.cpu);
        }
    }

    fn read_console(&mut self) {
        loop {
            let next = CONSOLE.lock().input();
            match next {
                None => break,
                Some(Input::Guest(byte)) if self.input.len() < INPUT_BYTES => {
                    self.input.push_back(byte)
                }
                Some(Input::Guest(_)) => {
                    log::warn!("input lost: the guest does not read its console")
                }
                Some(Input::Command(command)) => self.obey(command),
            }
        }
    }

    fn obey(&mut self, command: Command) {
        let end = match command {
            Command::Help => return line(format_args!("[tagvisor] {}", help())),
            Command::Report => return self.print_report(),
            Command::Quit => End::Stopped,
            Command::Timeout => End::Timeout,
        };
        for vm in 0..self.vms.len() {
            self.end_vm(vm, end);
        }
    }

    /// Gives the attached guest as much input as its UART takes.
    fn deliver_input(&mut self) {
        if self.input.is_empty() {
            return;
        }
        let Some(vm) = self.vms.first_mut() else {
            return;
        };
        while vm.uart.can_receive() {
            let Some(byte) = self.input.pop_front() else {
                break;
            };
            let _ = vm.uart.receive(byte);
        }
        vm.vgic.set_spi_level(UART_INTID, vm.uart.irq_level());
    }

    fn fail_vm(&mut self, vm: usize, failure: Failure) {
        if let Some(vm) = self.vms.get(vm) {
            log::error!("vm={} stopped: {failure}", vm.config.name);
        }
        self.end_vm(vm, End::Crashed);
    }

    fn end_vm(&mut self, index: usize, end: End) {
        if self.loaded.is_some_and(|(vm, _)| vm == index) {
            self.unload();
        }
        let Some(vm) = self.vms.get_mut(index).filter(|vm| vm.end.is_none()) else {
            return;
        };
        CONSOLE.lock().flush_guest(index, &vm.config.name);
        log::info!("vm={} ended: {end}", vm.config.name);
        self.check_invariants();
        let Some(vm) = self.vms.get_mut(index) else {
            return;
        };
        let finished = vm.finish(end, &mut self.host, &mut self.cpu);
        self.note_lost(finished);
    }

    /// A memory that could not be released whole is a guarantee lost.
    fn note_lost(&mut self, released: Result<(), MemError>) {
        if let Err(error) = released {
            self.invariants.broken += 1;
            log::error!("memory was not returned whole: {error}");
        }
    }

    /// Restarts a VM that asked for a reset.
    fn restart(&mut self, index: usize) {
        if self.loaded.is_some_and(|(vm, _)| vm == index) {
            self.unload();
        }
        let Some(images) = self
            .vms
            .get(index)
            .and_then(|vm| self.images(&vm.config).ok())
        else {
            return;
        };
        let seed = rng_seed(index, self.config.report_key.as_deref());
        let Some(vm) = self.vms.get_mut(index) else {
            return;
        };
        log::info!("vm={} restarts", vm.config.name);
        let restarted = vm
            .reset(&self.board, &mut self.host, &mut self.cpu)
            .and_then(|()| vm.load(images, &seed, &mut self.host, &mut self.cpu));
        if let Err(error) = restarted {
            log::error!("vm={} does not restart: {error}", vm.config.name);
            self.end_vm(index, End::Crashed);
        }
    }

    fn shut_down(mut self) -> ! {
        self.check_invariants();
        self.print_report();
        if let Some(key) = &self.config.report_key {
            match self.report().json() {
                Ok(json) => CONSOLE.lock().report(key, &json),
                Err(error) => log::error!("no JSON report: {error}"),
            }
        }
        power_off()
    }

    /// After each trap, where checks are built in: the page that it mapped, and that no memory is lost; now and then everything.
    #[cfg(debug_assertions)]
    fn check_trap(&mut self, index: usize, mapped: Option<MappedPage>) {
        const ALL_EVERY: u64 = 4096;
        let Some(vm) = self.vms.get(index) else {
            return;
        };
        if vm.exits.total.is_multiple_of(ALL_EVERY) {
            return self.check_invariants();
        }
        let account = self.host.account();
        self.invariants.checked += 1;
        if account.ledger.sum() != account.discovered {
            self.break_invariant(format_args!("S17: memory was lost: {:?}", account.ledger));
        }
        let Some((page, memory)) =
            mapped.zip(self.vms.get(index).and_then(|vm| vm.memory.as_ref()))
        else {
            return;
        };
        let fresh = page.fresh_tags;
        match stage2::invariants::check_page(&self.host, memory, &mut self.cpu, page.ipa, fresh) {
            Ok(checked) => self.invariants.checked += checked,
            Err(violation) => self.break_invariant(format_args!("{violation}")),
        }
    }

    fn break_invariant(&mut self, what: core::fmt::Arguments<'_>) {
        self.invariants.broken += 1;
        log::error!("invariant broken: {what}");
    }

    fn check_invariants(&mut self) {
        let guests = self.vms.iter().filter_map(|vm| vm.memory.as_ref());
        match stage2::invariants::check(&self.host, guests, &mut self.cpu) {
            Ok(checked) => self.invariants.checked += checked,
            Err(violation) => self.break_invariant(format_args!("{violation}")),
        }
    }

    fn print_report(&self) {
        let text = alloc::format!("{}", self.report());
        for row in text.lines() {
            line(format_args!("[tagvisor] {row}"));
        }
    }

    fn report(&self) -> Report {
        let carve_out = |account: stage2::account::MachineAccount| CarveOut {
            carve_out_bytes: account.carve_out,
            reserved_bytes: account.reserved,
            lent_bytes: account.lent,
            free_bytes: account.free,
            offline_bytes: account.offline,
            untaggable_bytes: account.untaggable,
            peak_lent_bytes: 0,
            reclaimed_bytes: account.reclaimed,
            net_reclaimed_bytes: account.net_reclaimed,
            ideal_bytes: account.ideal,
            efficiency: account.efficiency_millionths().map(Ratio),
        };
        let (highest, now) = (self.host.highest(), self.host.account());
        Report {
            version: VERSION,
            policy: policy_name(self.board.policy),
            machine: self.facts.machine.clone(),
            regions: self.facts.regions.clone(),
            at_peak: carve_out(highest),
            hypervisor: Footprint {
                image_bytes: self.facts.image_bytes,
                metadata_bytes: highest.metadata,
                table_bytes: highest.tables,
                heap_bytes: heap_used(),
            },
            vms: self
                .vms
                .iter()
                .map(Vm::info)
                .chain(self.refused.iter().cloned())
                .collect(),
            invariants: self.invariants,
            now: carve_out(now),
        }
    }
}

/// Gives the guest its newest interrupts, if there is anything new.
fn flush_interrupts(vm: &mut Vm, vcpu_index: usize, cpu: &mut El2) {
    if !vm.vgic.is_stale(vcpu_index) {
        return;
    }
    sync_interrupts(vm, vcpu_index, cpu);
    if let Some(vcpu) = vm.vcpus.get_mut(vcpu_index) {
        vm.vgic.flush(vcpu_index, &mut vcpu.lrs);
        cpu.interface.load(&vcpu.lrs);
    }
    deactivate_done(vm, vcpu_index);
}

/// Deactivates the physical interrupts that the guest, without knowing, no longer holds.
fn deactivate_done(vm: &mut Vm, vcpu_index: usize) {
    let mut done = vm.vgic.take_deactivations(vcpu_index);
    while done != 0 {
        CpuInterface::deactivate(done.trailing_zeros());
        done &= done - 1;
    }
}

/// A seed for a guest's random numbers: different for each run by the run's key, the same when runs are to be repeatable.
fn rng_seed(vm: usize, key: Option<&str>) -> [u8; 32] {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ vm as u64;
    state ^= timer::counter() << 8;
    for byte in key.unwrap_or_default().bytes() {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let mut seed = [0; 32];
    for chunk in seed.chunks_mut(8) {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        chunk.copy_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    seed
}
