//! The lives of VMs, from the bundle to the report, and the end of the machine.

use alloc::string::ToString;
use alloc::vec::Vec;

use stage2::guest::{MemError, Policy};

use super::{Guest, Hypervisor};
use crate::arch::switch::CpuState;
use crate::arch::{heap_used, timer};
use crate::boot::power_off;
use crate::config::VmConfig;
use crate::console::{Mode, help};
use crate::exit::{Failure, MappedPage};
use crate::json::Json;
use crate::output::{CONSOLE, line};
use crate::report::{CarveOut, End, Footprint, Report, VERSION};
use crate::vcpu::Wake;
use crate::vm::{Images, StartError, Vm, policy_name};

impl Hypervisor {
    /// Starts all VMs of the configuration; those that cannot start are reported as refused.
    pub(super) fn start_all(&mut self) {
        let mode = if self.config.batch {
            Mode::Batch
        } else {
            Mode::Interactive {
                attached: self.attached,
            }
        };
        CONSOLE.lock().start(mode, self.config.vms.len());
        for config in self.config.vms.clone() {
            if let Err(error) = self.start_vm(config.clone()) {
                log::error!("vm={} refused: {error}", config.name);
                let info = Vm::refused(&config, self.board.policy, &error);
                self.refused.push(info);
            }
        }
        if self.board.policy == Policy::Static {
            self.memory.snapshot_now();
        }
        if !self.config.batch {
            line(format_args!("[tagvisor] {}", help()));
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
            initrd: vm.initrd.as_deref().map_or(Ok(&[][..]), file)?,
        })
    }

    fn start_vm(&mut self, config: VmConfig) -> Result<(), StartError> {
        let images = self.images(&config)?;
        let index = self.guests.len();
        let mut vm = Vm::new(index, config, &self.board, &mut self.memory, &mut self.cpu)?;
        if vm.config.mte && !vm.shape.mte {
            log::warn!(
                "vm={} runs without MTE: this machine cannot give it",
                vm.config.name
            );
        }
        let seed = vm.config.seed.clone();
        if let Err(error) = vm.load(images, &seed, &mut self.memory, &mut self.cpu) {
            let destroyed = self.memory.destroy(&mut self.cpu, vm.id);
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
        let states = (0..vm.config.vcpus).map(|_| CpuState::reset()).collect();
        self.guests.push(Guest {
            vm,
            states,
            last_vcpu: None,
            started: timer::counter(),
        });
        Ok(())
    }

    /// Ends a VM that EL2 could not serve.
    pub(super) fn fail_vm(&mut self, vm: usize, failure: Failure) {
        if let Some(guest) = self.guests.get_mut(vm) {
            log::error!("vm={} stopped: {failure}", guest.vm.config.name);
            guest.vm.reason = Some(failure.to_string());
        }
        self.end_vm(vm, End::Crashed);
    }

    /// Ends a VM: its last figures are taken, all its memory comes back.
    pub(super) fn end_vm(&mut self, index: usize, end: End) {
        if self.loaded.is_some_and(|(vm, _)| vm == index) {
            self.unload();
        }
        let Some(guest) = self
            .guests
            .get(index)
            .filter(|guest| guest.vm.end.is_none())
        else {
            return;
        };
        CONSOLE.lock().flush_guest(index, &guest.vm.config.name);
        log::info!("vm={} ended: {end}", guest.vm.config.name);
        self.check_invariants();
        let Some(guest) = self.guests.get_mut(index) else {
            return;
        };
        let finished = guest.vm.finish(end, &mut self.memory, &mut self.cpu);
        self.note_lost(finished);
        if index == self.attached && !self.config.batch {
            self.attach_next();
        }
    }

    /// Restarts a VM that asked for a reset.
    pub(super) fn restart(&mut self, index: usize) {
        if self.loaded.is_some_and(|(vm, _)| vm == index) {
            self.unload();
        }
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
        log::info!("vm={} restarts", vm.config.name);
        // A seed serves once: a guest that starts again gathers its own randomness.
        let restarted = vm
            .reset(&self.board, &mut self.memory, &mut self.cpu)
            .and(images)
            .and_then(|images| vm.load(images, &[], &mut self.memory, &mut self.cpu));
        if let Err(error) = restarted {
            log::error!("vm={} does not restart: {error}", vm.config.name);
            vm.reason = Some(error.to_string());
            return self.end_vm(index, End::Crashed);
        }
        // A guest that resets in a loop starts once a second: loading it is long work for EL2.
        let (now, earliest) = (timer::counter(), started.saturating_add(timer::frequency()));
        *started = earliest.max(now);
        if let Some(first) = vm.vcpus.first_mut().filter(|_| now < earliest) {
            first.waiting = Some(Wake { at: Some(earliest) });
        }
    }

    /// A memory that could not be released whole is a guarantee lost.
    fn note_lost(&mut self, released: Result<(), MemError>) {
        if let Err(error) = released {
            self.break_invariant(format_args!("memory was not returned whole: {error}"));
        }
    }

    pub(super) fn shut_down(mut self) -> ! {
        self.check_invariants();
        self.report_now();
        power_off()
    }

    /// After each trap, where checks are built in: the page that it mapped, and that no memory is lost; now and then everything.
    pub(super) fn check_trap(&mut self, index: usize, mapped: Option<MappedPage>) {
        const ALL_EVERY: u64 = 4096;
        let Some(vm) = self.guests.get(index).map(|guest| &guest.vm) else {
            return;
        };
        if vm.exits.total.is_multiple_of(ALL_EVERY) {
            return self.check_invariants();
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
        let fresh = page.fresh_tags;
        let host = self.memory.host();
        match stage2::invariants::check_page(host, guest, &mut self.cpu, page.ipa, fresh) {
            Ok(checked) => self.invariants.checked += checked,
            Err(violation) => self.break_invariant(format_args!("{violation}")),
        }
    }

    fn check_invariants(&mut self) {
        let (host, guests) = (self.memory.host(), self.memory.guests());
        match stage2::invariants::check(host, guests, &mut self.cpu) {
            Ok(checked) => self.invariants.checked += checked,
            Err(violation) => self.break_invariant(format_args!("{violation}")),
        }
    }

    fn break_invariant(&mut self, what: core::fmt::Arguments<'_>) {
        self.invariants.broken += 1;
        log::error!("invariant broken: {what}");
    }

    /// Prints the report: the table, and the JSON line if the host tool has asked for it.
    pub(super) fn report_now(&self) {
        self.print_report();
        if let Some(key) = &self.config.report_key {
            CONSOLE.lock().report(key, &self.report().to_json());
        }
    }

    fn print_report(&self) {
        let text = alloc::format!("{}", self.report());
        for row in text.lines() {
            line(format_args!("[tagvisor] {row}"));
        }
    }

    fn report(&self) -> Report {
        let (highest, now) = (self.memory.highest(), self.memory.account());
        let vms = self.guests.iter().map(|guest| guest.vm.info(&self.memory));
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
            vms: vms.chain(self.refused.iter().cloned()).collect::<Vec<_>>(),
            invariants: self.invariants,
            now: now.into(),
        }
    }
}
