//! The lives of VMs, from the bundle to the report, and the end of the machine.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Display;

use stage2::guest::{MemError, Policy};
use stage2::invariants::Violation;

use super::interrupts::show_kept;
use super::{Guest, Hypervisor, ThisCpu};
use crate::arch::switch::CpuState;
use crate::arch::{heap_used, timer};
use crate::boot::power_off;
use crate::config::{Config, MAX_VMS, VmConfig};
use crate::console::HELP;
use crate::exit::{Failure, MappedPage};
use crate::json::Json;
use crate::life::{Fate, Life};
use crate::output::{CONSOLE, line};
use crate::report::{CarveOut, End, Footprint, Report, VERSION};
use crate::vcpu::Wake;
use crate::vm::{Images, StartError, Vm, policy_name};

impl Hypervisor {
    /// Starts all VMs of the configuration; those that cannot start are reported as refused.
    pub(super) fn start_all(&mut self, cpu: &mut ThisCpu) {
        let told = cpu.interrupts.uart.is_some();
        let Config { batch, colour, .. } = self.config;
        CONSOLE.lock().start(!batch, colour, told);
        for template in 0..self.config.vms.len() {
            if let Some(config) = self.config.instance_of(template)
                && config.autostart
                && let Err(error) = self.start_vm(template, &config, cpu)
            {
                let info = Vm::refused(&config, self.board.policy, &error);
                self.refused.push(info);
            }
        }
        if self.board.policy == Policy::Static {
            self.memory.snapshot_now();
        }
        if !self.config.batch {
            line(format_args!("[tagvisor] {HELP}"));
            if !self.config.vms.iter().any(|vm| vm.autostart) {
                self.open_monitor(true);
            }
        }
        CONSOLE.lock().listen();
    }

    fn images(&self, vm: &VmConfig) -> Result<Images<'static>, StartError> {
        let file = |name: &str| {
            self.bundle
                .file(name)
                .ok_or_else(|| StartError::NoFile(name.into()))
        };
        Ok(Images {
            kernel: file(&vm.kernel)?,
            initrd: vm.initrd.as_deref().map(file).transpose()?,
        })
    }

    /// Starts a VM of a template, in the place of one that is forgotten, or a new one. Says why if it cannot start.
    pub(super) fn start_vm(
        &mut self,
        template: usize,
        config: &VmConfig,
        cpu: &mut ThisCpu,
    ) -> Result<(), StartError> {
        let started = self.try_start(config, cpu);
        match &started {
            Ok(()) => self.config.spend_seed(template),
            Err(error) => complain(config, "refused", error),
        }
        started
    }

    fn try_start(&mut self, config: &VmConfig, cpu: &mut ThisCpu) -> Result<(), StartError> {
        let images = self.images(config)?;
        if config.cpus.trailing_zeros() as usize >= self.processors.len() {
            return Err(StartError::NoCpu);
        }
        let places = || self.guests.iter().map(|guest| &guest.vm.config.name);
        let index = places().position(String::is_empty);
        let index = index.unwrap_or(self.guests.len());
        if index >= MAX_VMS {
            return Err(StartError::TooMany);
        }
        let mut vm = Vm::new(
            index,
            config.clone(),
            &self.board,
            &mut self.memory,
            &mut cpu.el2,
        )?;
        if vm.config.mte && !vm.shape.mte {
            log::warn!(
                "vm={} runs without MTE: this machine cannot give it",
                vm.config.name
            );
        }
        let seed = vm.config.seed.clone();
        if let Err(error) = vm.load(images, &seed, &mut self.memory, &mut cpu.el2) {
            let destroyed = self.memory.destroy(&mut cpu.el2, vm.id);
            self.note_lost(destroyed);
            return Err(error);
        }
        log::info!(
            "vm={} started: memory={} MiB vcpus={} mte={}",
            vm.config.name,
            vm.config.memory >> 20,
            vm.config.vcpus,
            vm.shape.mte
        );
        CONSOLE.lock().add(index, &vm.config.name);
        let states = (0..vm.config.vcpus).map(|_| CpuState::reset()).collect();
        let guest = Guest {
            vm,
            life: Life::default(),
            states,
            last_vcpus: alloc::vec![None; self.processors.len()],
            started: timer::counter(),
            doomed: false,
            trace: None,
        };
        let nobody = self
            .guests
            .get(self.attached)
            .is_none_or(|guest| guest.life.is_over());
        match self.guests.get_mut(index) {
            Some(place) => *place = guest,
            None => self.guests.push(guest),
        }
        if nobody {
            self.attached = index;
            CONSOLE.lock().show(index);
        }
        self.find_cpu((index, 0), cpu.index);
        Ok(())
    }

    /// Starts a VM anew that has ended.
    pub(super) fn revive(&mut self, index: usize, cpu: &mut ThisCpu) {
        let Some(Guest { vm, life, .. }) = self.guests.get_mut(index) else {
            return;
        };
        match vm.revive(&self.board, &mut self.memory, &mut cpu.el2) {
            Ok(()) => {
                *life = Life::default();
                self.restart(index, cpu);
            }
            Err(error) => complain(&vm.config, "refused", &error),
        }
    }

    /// Ends a VM that EL2 could not serve.
    pub(super) fn fail_vm(&mut self, index: usize, failure: Failure, cpu: &mut ThisCpu) {
        if let Some(guest) = self
            .guests
            .get_mut(index)
            .filter(|guest| guest.life.is_live())
        {
            complain(&guest.vm.config, "stopped", &failure);
            guest.vm.reason = Some(failure.to_string());
        }
        self.stop(index, Fate::End(End::Crashed), cpu);
    }

    /// Stops a VM: at once, or as soon as no other CPU has a vCPU of it in hardware.
    pub(super) fn stop(&mut self, index: usize, fate: Fate, cpu: &mut ThisCpu) {
        let Some(guest) = self.guests.get_mut(index) else {
            return;
        };
        let due = guest.life.stop(fate);
        let holders = guest.life.holders();
        for processor in &mut self.processors {
            processor.queue.remove_vm(index);
        }
        if let Some(fate) = due {
            self.carry_out(index, fate, cpu);
        }
        self.call_all(holders, cpu);
        self.leave_stopped(cpu);
    }

    /// Makes CPUs (bit `n`: CPU `n`) leave their guest or their sleep.
    #[inline(never)]
    fn call_all(&mut self, mut cpus: u64, cpu: &ThisCpu) {
        while cpus != 0 {
            self.call(cpus.trailing_zeros() as usize, cpu.index);
            cpus &= cpus - 1;
        }
    }

    /// Pauses a VM: its vCPUs stay where they are, and none is entered.
    pub(super) fn pause(&mut self, index: usize, cpu: &mut ThisCpu) {
        if let Some(guest) = self.guests.get_mut(index) {
            guest.life.pause();
            let holders = guest.life.holders();
            self.call_all(holders, cpu);
            self.leave_stopped(cpu);
        }
    }

    /// Pauses a VM at its budget, so that somebody can raise it; in batch it ends.
    pub(super) fn over_budget(&mut self, index: usize, cpu: &mut ThisCpu) {
        let (what, remedy) = match self.config.batch {
            true => ("stopped", ""),
            false => ("paused", " by 'vm budget NAME SIZE', then 'vm resume NAME'"),
        };
        if let Some(Guest { vm, life, .. }) = self.guests.get(index)
            && life.is_running()
        {
            let reason = vm.reason.as_deref().unwrap_or_default();
            complain(&vm.config, what, &format_args!("{reason}{remedy}"));
        }
        if self.config.batch {
            self.stop(index, Fate::End(End::OverBudget), cpu);
        } else {
            self.pause(index, cpu);
        }
    }

    /// Lets a paused VM run again: what its vCPUs waited for meanwhile is looked at first.
    pub(super) fn resume(&mut self, index: usize, cpu: &ThisCpu) {
        if let Some(guest) = self.guests.get_mut(index) {
            guest.vm.reason = None;
            guest.life.resume();
            for processor in &mut self.processors {
                processor.look = true;
            }
            self.call_all(u64::MAX, cpu);
        }
    }

    /// Takes the vCPU that is loaded out of hardware if its VM stops.
    pub(super) fn leave_stopped(&mut self, cpu: &mut ThisCpu) {
        let guest = cpu.loaded.and_then(|(vm, _)| self.guests.get(vm));
        if guest.is_some_and(|guest| !guest.life.is_running()) {
            self.unload(cpu);
        }
    }

    /// Begins what is to become of a VM that no CPU has in hardware any more: this CPU takes its memory away first.
    pub(super) fn carry_out(&mut self, index: usize, fate: Fate, cpu: &mut ThisCpu) {
        self.charge_all();
        if let Some(guest) = self.guests.get_mut(index) {
            guest.vm.keep_figures(&self.memory);
        }
        if let Fate::End(end) = fate {
            self.close(index, end);
        }
        cpu.leaving.push(index);
        if let Some(processor) = self.processors.get_mut(cpu.index) {
            processor.look = true;
        }
    }

    /// Takes away a part of the memory of a VM that leaves; after the last one does what becomes of the VM. Returns whether
    /// there was one: others go between two parts.
    pub(super) fn take_away(&mut self, cpu: &mut ThisCpu) -> bool {
        let Some(&index) = cpu.leaving.last() else {
            return false;
        };
        let vm = self.guests.get(index).map(|guest| guest.vm.id);
        if let Some(checked) = vm.and_then(|vm| self.memory.release(&mut cpu.el2, vm)) {
            self.note_checked(checked);
            return true;
        }
        cpu.leaving.pop();
        let guest = self.guests.get_mut(index);
        match guest.and_then(|guest| guest.life.finish()) {
            Some(Fate::End(end)) => self.end_vm(index, end, cpu),
            Some(Fate::Restart) => self.restart(index, cpu),
            None => {}
        }
        true
    }

    /// Notes how a VM ends, and takes the end of what it had to say.
    fn close(&mut self, index: usize, end: End) {
        let open = |guest: &&mut Guest| guest.vm.end.is_none();
        let Some(guest) = self.guests.get_mut(index).filter(open) else {
            return;
        };
        show_kept(&mut guest.vm);
        CONSOLE.lock().flush_guest(index);
        guest.vm.close(end, &self.memory);
    }

    /// Ends a VM whose memory is gone but for its root table.
    fn end_vm(&mut self, index: usize, end: End, cpu: &mut ThisCpu) {
        self.close(index, end);
        // It takes long; without it each page of a VM is checked when it is taken away, and the rest at the end of the machine.
        if cfg!(debug_assertions) {
            self.check_invariants(cpu);
        }
        let Some(guest) = self.guests.get_mut(index) else {
            return;
        };
        log::info!("vm={} ended: {end}", guest.vm.config.name);
        let finished = guest.vm.finish(end, &mut self.memory, &mut cpu.el2);
        let doomed = guest.doomed;
        self.note_lost(finished);
        if doomed {
            self.forget(index);
        }
        if index == self.attached && !self.config.batch {
            self.attach_next();
        }
    }

    /// Restarts a VM that asked for a reset.
    fn restart(&mut self, index: usize, cpu: &mut ThisCpu) {
        let Some(images) = self
            .guests
            .get(index)
            .map(|guest| self.images(&guest.vm.config))
        else {
            return;
        };
        let Some(Guest { vm, started, .. }) = self.guests.get_mut(index) else {
            return;
        };
        show_kept(vm);
        CONSOLE.lock().flush_guest(index);
        log::info!("vm={} restarts", vm.config.name);
        vm.reason = None;
        // A seed serves once: a guest that starts again gathers its own randomness.
        let restarted = vm
            .reset(&self.board, &mut self.memory, &mut cpu.el2)
            .and(images)
            .and_then(|images| vm.load(images, &[], &mut self.memory, &mut cpu.el2));
        if let Err(error) = restarted {
            complain(&vm.config, "does not restart", &error);
            vm.reason = Some(error.to_string());
            return self.stop(index, Fate::End(End::Crashed), cpu);
        }
        // A guest that resets in a loop starts once a second: taking its memory away is long work for this CPU.
        let (now, earliest) = (timer::counter(), started.saturating_add(timer::frequency()));
        *started = earliest.max(now);
        if let Some(first) = vm.vcpus.first_mut().filter(|_| now < earliest) {
            first.waiting = Some(Wake {
                at: Some(earliest),
                by_interrupt: false,
            });
        }
        self.find_cpu((index, 0), cpu.index);
    }

    /// A memory that could not be released whole is a guarantee lost.
    fn note_lost(&mut self, released: Result<(), MemError>) {
        if let Err(error) = released {
            self.break_invariant(format_args!("memory was not returned whole: {error}"));
        }
    }

    pub(super) fn shut_down(&mut self, cpu: &mut ThisCpu) -> ! {
        self.check_invariants(cpu);
        self.report_now();
        power_off()
    }

    /// After each trap, where checks are built in: the page that it mapped, and that no memory is lost; now and then everything.
    pub(super) fn check_trap(
        &mut self,
        cpu: &mut ThisCpu,
        index: usize,
        mapped: Option<MappedPage>,
    ) {
        const ALL_EVERY: u64 = 4096;
        let Some(Guest { vm, life, .. }) = self.guests.get(index) else {
            return;
        };
        if vm.exits.total.is_multiple_of(ALL_EVERY) {
            return self.check_invariants(cpu);
        }
        let account = self.memory.account();
        self.invariants.checked += 1;
        if account.ledger.sum() != account.discovered {
            let (there, all) = (account.ledger.sum(), account.discovered);
            return self.break_invariant(format_args!("S17: {there} bytes of {all} are there"));
        }
        let Some((page, guest)) = mapped.zip(self.memory.guest(vm.id)) else {
            return;
        };
        // Another vCPU may have set tags already.
        let fresh = page.fresh_tags && life.holders().count_ones() < 2;
        let host = self.memory.host();
        let checked = stage2::invariants::check_page(host, guest, &mut cpu.el2, page.ipa, fresh);
        self.note_checked(checked);
    }

    fn check_invariants(&mut self, cpu: &mut ThisCpu) {
        let (host, guests) = (self.memory.host(), self.memory.guests());
        let checked = stage2::invariants::check(host, guests, &mut cpu.el2);
        self.note_checked(checked);
    }

    fn note_checked(&mut self, checked: Result<u64, Violation>) {
        match checked {
            Ok(facts) => self.invariants.checked += facts,
            Err(violation) => self.break_invariant(format_args!("{violation}")),
        }
    }

    fn break_invariant(&mut self, what: core::fmt::Arguments<'_>) {
        self.invariants.broken += 1;
        log::error!("invariant broken: {what}");
    }

    /// Prints the report: the table, and the JSON line if the host tool has asked for it.
    pub(super) fn report_now(&mut self) {
        self.charge_all();
        self.print_report();
        if let Some(key) = &self.config.report_key {
            CONSOLE.lock().report(key, &self.report().to_json());
        }
    }

    pub(super) fn print_report(&self) {
        let text = alloc::format!("{}", self.report());
        for row in text.lines() {
            line(format_args!("[tagvisor] {row}"));
        }
    }

    fn report(&self) -> Report {
        let (highest, now) = (self.memory.highest(), self.memory.account());
        let mut vms = Vec::new();
        for guest in self.vms() {
            vms.push(guest.vm.info(&self.memory));
        }
        vms.extend_from_slice(&self.refused);
        Report {
            version: VERSION,
            policy: policy_name(self.board.policy),
            machine: self.facts.machine.clone(),
            regions: self.facts.regions.clone(),
            at_peak: CarveOut {
                peak_lent_bytes: now.peak_lent,
                ..highest.into()
            },
            hypervisor: Footprint {
                image_bytes: self.facts.image_bytes,
                metadata_bytes: highest.metadata,
                table_bytes: highest.tables,
                heap_bytes: heap_used(),
            },
            vms,
            invariants: self.invariants,
            now: now.into(),
        }
    }
}

/// Tells the person at the console what became of a VM, and why.
#[inline(never)]
fn complain(config: &VmConfig, what: &str, why: &dyn Display) {
    log::error!("vm={} {what}: {why}", config.name);
}
