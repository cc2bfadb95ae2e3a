//! Physical interrupts of this CPU, and what becomes of them: timers, console input, list registers.

use platform::gic::{CpuInterface, Redistributor};

use super::Hypervisor;
use crate::arch::cpu::El2;
use crate::arch::timer;
use crate::console::{Command, Input, help};
use crate::devices::mmio::UART_INTID;
use crate::exit::{VIRTUAL_TIMER_INTID, sync_interrupts};
use crate::output::{CONSOLE, line};
use crate::report::End;
use crate::vm::Vm;

/// Input bytes kept while a guest does not read.
const INPUT_BYTES: usize = 4096;

/// The interrupts of this CPU, INTIDs.
#[derive(Debug)]
pub struct Interrupts {
    /// This CPU's redistributor.
    pub redistributor: Redistributor,
    /// The guests' timer.
    pub virtual_timer: u16,
    /// Ours.
    pub hypervisor_timer: u32,
    /// List registers ask for attention.
    pub maintenance: u32,
    /// The console has input.
    pub uart: Option<u32>,
}

/// Gives the guest its newest interrupts, if there is anything new.
pub(super) fn flush(vm: &mut Vm, vcpu_index: usize, cpu: &mut El2) {
    if vm.vgic.is_stale(vcpu_index) {
        reload(vm, vcpu_index, cpu);
    }
}

fn reload(vm: &mut Vm, vcpu_index: usize, cpu: &mut El2) {
    sync_interrupts(vm, vcpu_index, cpu);
    if let Some(vcpu) = vm.vcpus.get_mut(vcpu_index) {
        vm.vgic.flush(vcpu_index, &mut vcpu.lrs);
        cpu.interface.load(&vcpu.lrs);
    }
    deactivate_done(vm, vcpu_index);
}

/// Deactivates the physical interrupts that the guest, without knowing, no longer holds.
pub(super) fn deactivate_done(vm: &mut Vm, vcpu_index: usize) {
    let mut done = vm.vgic.take_deactivations(vcpu_index);
    while done != 0 {
        CpuInterface::deactivate(done.trailing_zeros());
        done &= done - 1;
    }
}

impl Hypervisor {
    /// The physical interrupt of the virtual timer is active while a guest handles it; that state moves with the vCPU.
    pub(super) fn set_timer_active(&mut self, active: bool) {
        let intid = self.interrupts.virtual_timer.into();
        if let Err(error) = self.interrupts.redistributor.set_active(intid, active) {
            log::error!("interrupt {intid} cannot be moved with its vCPU: {error}");
        }
    }

    /// Takes all pending physical interrupts.
    pub(super) fn take_interrupts(&mut self) {
        while let Some(intid) = CpuInterface::acknowledge() {
            CpuInterface::end(intid);
            if intid == u32::from(self.interrupts.virtual_timer) {
                if self.raise_virtual_timer() {
                    continue; // the guest deactivates it
                }
            } else if intid == self.interrupts.hypervisor_timer {
                timer::set_deadline(None);
                self.reschedule = true;
            } else if intid == self.interrupts.maintenance {
                self.refill();
            } else if Some(intid) == self.interrupts.uart {
                self.read_console();
            } else {
                log::warn!("unexpected interrupt {intid}");
            }
            CpuInterface::deactivate(intid);
        }
    }

    /// Deactivates what the loaded vCPU let go: before the CPU sleeps, or the next expiry of its timer would not be signalled.
    pub(super) fn settle(&mut self) {
        let Some((vm_index, vcpu_index)) = self.loaded else {
            return;
        };
        if let Some(guest) = self.guests.get_mut(vm_index) {
            deactivate_done(&mut guest.vm, vcpu_index);
        }
    }

    fn raise_virtual_timer(&mut self) -> bool {
        let physical = self.interrupts.virtual_timer;
        let Some((vm_index, vcpu_index)) = self.loaded else {
            return false;
        };
        let Some(vm) = self.guests.get_mut(vm_index).map(|guest| &mut guest.vm) else {
            return false;
        };
        let slot = vm.vgic.hw_ppi_slot(vcpu_index, VIRTUAL_TIMER_INTID);
        if !slot.is_some_and(|slot| self.cpu.interface.rearm(slot)) {
            vm.vgic
                .raise_hw_ppi(vcpu_index, VIRTUAL_TIMER_INTID, physical);
        }
        true
    }

    /// More interrupts were pending than list registers, or one was ended that is in none: takes back those that are done and
    /// fills in others, at once: the interrupt stays raised until then.
    fn refill(&mut self) {
        let Some((vm_index, vcpu_index)) = self.loaded else {
            return;
        };
        if let Some(guest) = self.guests.get_mut(vm_index) {
            reload(&mut guest.vm, vcpu_index, &mut self.cpu);
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
                    if !core::mem::replace(&mut self.input_lost, true) {
                        log::warn!("input lost: the guest does not read its console");
                    }
                }
                Some(Input::Command(command)) => self.obey(command),
            }
        }
        self.deliver_input();
        if self.loaded.is_some_and(|(vm, _)| vm != self.attached) {
            self.reschedule = true;
        }
    }

    fn obey(&mut self, command: Command) {
        let end = match command {
            Command::Help => return line(format_args!("[tagvisor] {}", help())),
            Command::Report => return self.report_now(),
            Command::Next => return self.attach_next(),
            Command::Quit => End::Stopped,
            Command::Timeout => End::Timeout,
        };
        for vm in 0..self.guests.len() {
            self.end_vm(vm, end);
        }
    }

    /// Gives the attached guest as much input as its UART takes.
    pub(super) fn deliver_input(&mut self) {
        if self.input.is_empty() {
            return;
        }
        let Some(vm) = self
            .guests
            .get_mut(self.attached)
            .map(|guest| &mut guest.vm)
        else {
            return;
        };
        while vm.uart.can_receive() {
            let Some(byte) = self.input.pop_front() else {
                self.input_lost = false;
                break;
            };
            // There is room: it was asked.
            let _ = vm.uart.receive(byte);
        }
        vm.vgic.set_spi_level(UART_INTID, vm.uart.irq_level());
    }

    /// Gives the console to the next VM that runs, if there is another.
    pub(super) fn attach_next(&mut self) {
        let count = self.guests.len();
        let others = (1..count).map(|step| (self.attached + step) % count);
        let live = |index: &usize| {
            self.guests
                .get(*index)
                .is_some_and(|guest| guest.vm.end.is_none())
        };
        let Some(next) = others.into_iter().find(live) else {
            return;
        };
        self.attached = next;
        self.input.clear();
        CONSOLE.lock().show(next);
        if let Some(guest) = self.guests.get(next) {
            log::info!("this is now the console of vm={}", guest.vm.config.name);
        }
    }
}
