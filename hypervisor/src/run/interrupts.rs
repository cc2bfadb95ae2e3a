//! Physical interrupts of a CPU, and what becomes of them: timers, console input, list registers, calls of other CPUs.

use platform::gic::{CpuInterface, GicError, Redistributor};
use platform::{Interrupt, Trigger};

use super::{Hypervisor, ThisCpu};
use crate::arch::cpu::El2;
use crate::arch::timer;
use crate::console::{Command, HELP, Input};
use crate::devices::mmio::UART_INTID;
use crate::exit::{VIRTUAL_TIMER_INTID, sync_interrupts};
use crate::life::Fate;
use crate::output::{CONSOLE, line};
use crate::report::End;
use crate::vm::Vm;

/// Input bytes kept while a guest does not read.
const INPUT_BYTES: usize = 4096;

/// The SGI by which a CPU makes another one look again.
pub const CALL: u32 = 0;

/// The interrupts of a CPU.
#[derive(Clone, Copy, Debug)]
pub struct Interrupts {
    /// Its redistributor.
    pub redistributor: Redistributor,
    /// The guests' timer, a PPI.
    pub virtual_timer: Interrupt,
    /// Ours.
    pub hypervisor_timer: Interrupt,
    /// List registers ask for attention.
    pub maintenance: Interrupt,
    /// The console has input; none on all CPUs but one.
    pub uart: Option<u32>,
}

impl Interrupts {
    /// Sets up the redistributor and the CPU interface of this CPU.
    ///
    /// # Errors
    ///
    /// The redistributor does not have one of the interrupts.
    pub fn enable(&mut self) -> Result<(), GicError> {
        self.redistributor.init();
        CpuInterface::init();
        let call = Interrupt {
            intid: CALL,
            trigger: Trigger::Edge,
        };
        for interrupt in [
            call,
            self.virtual_timer,
            self.hypervisor_timer,
            self.maintenance,
        ] {
            self.redistributor.enable(interrupt)?;
        }
        Ok(())
    }

    /// The same for another CPU, by its redistributor.
    #[must_use]
    pub const fn of_other_cpu(&self, redistributor: Redistributor) -> Self {
        Self {
            redistributor,
            uart: None,
            ..*self
        }
    }

    /// The guests' timer as list registers name it.
    pub(super) const fn virtual_timer_ppi(&self) -> u16 {
        self.virtual_timer.intid as u16
    }

    /// The physical interrupt of the virtual timer is active while a guest handles it; that state moves with the vCPU.
    pub(super) fn set_timer_active(&mut self, active: bool) {
        let intid = self.virtual_timer.intid;
        if let Err(error) = self.redistributor.set_active(intid, active) {
            log::error!("interrupt {intid} cannot be moved with its vCPU: {error}");
        }
    }
}

/// Makes the CPU with `mpidr` leave its guest or its sleep, or begin its work.
pub fn call(mpidr: u64) {
    // Boot has refused a CPU that no SGI reaches.
    let _ = CpuInterface::send_sgi(CALL, mpidr);
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

/// Gives the console what the UART of a VM has kept.
pub(super) fn show_kept(vm: &mut Vm) {
    CONSOLE.lock().guest_bytes(vm.index, vm.uart.take_kept());
}

impl Hypervisor {
    /// Takes all pending physical interrupts of this CPU.
    pub(super) fn take_interrupts(&mut self, cpu: &mut ThisCpu) {
        while let Some(intid) = CpuInterface::acknowledge() {
            CpuInterface::end(intid);
            if intid == cpu.interrupts.virtual_timer.intid {
                if self.raise_virtual_timer(cpu) {
                    continue; // the guest deactivates it
                }
            } else if intid == cpu.interrupts.hypervisor_timer.intid {
                timer::set_deadline(None);
                cpu.reschedule = true;
            } else if intid == CALL {
                if let Some(processor) = self.processors.get_mut(cpu.index) {
                    processor.called = false;
                }
            } else if intid == cpu.interrupts.maintenance.intid {
                self.refill(cpu);
            } else if Some(intid) == cpu.interrupts.uart {
                self.read_console(cpu);
            } else {
                log::warn!("unexpected interrupt {intid}");
            }
            CpuInterface::deactivate(intid);
        }
    }

    /// Deactivates what the loaded vCPU let go: before the CPU sleeps, or the next expiry of its timer would not be signalled.
    pub(super) fn settle(&mut self, cpu: &ThisCpu) {
        let Some((vm_index, vcpu_index)) = cpu.loaded else {
            return;
        };
        if let Some(guest) = self.guests.get_mut(vm_index) {
            deactivate_done(&mut guest.vm, vcpu_index);
        }
    }

    fn raise_virtual_timer(&mut self, cpu: &mut ThisCpu) -> bool {
        let physical = cpu.interrupts.virtual_timer_ppi();
        let Some((vm_index, vcpu_index)) = cpu.loaded else {
            return false;
        };
        let Some(vm) = self.guests.get_mut(vm_index).map(|guest| &mut guest.vm) else {
            return false;
        };
        let slot = vm.vgic.hw_ppi_slot(vcpu_index, VIRTUAL_TIMER_INTID);
        if !slot.is_some_and(|slot| cpu.el2.interface.rearm(slot)) {
            vm.vgic
                .raise_hw_ppi(vcpu_index, VIRTUAL_TIMER_INTID, physical);
        }
        true
    }

    /// More interrupts were pending than list registers, or one was ended that is in none: takes back those that are done and
    /// fills in others, at once: the interrupt stays raised until then.
    fn refill(&mut self, cpu: &mut ThisCpu) {
        let Some((vm_index, vcpu_index)) = cpu.loaded else {
            return;
        };
        if let Some(guest) = self.guests.get_mut(vm_index) {
            reload(&mut guest.vm, vcpu_index, &mut cpu.el2);
        }
    }

    fn read_console(&mut self, cpu: &mut ThisCpu) {
        loop {
            let next = CONSOLE.lock().input();
            match next {
                None => break,
                Some(Input::Byte(byte)) if self.input.len() < INPUT_BYTES => {
                    self.input.push_back(byte)
                }
                Some(Input::Byte(_)) => {
                    if !core::mem::replace(&mut self.input_lost, true) {
                        log::warn!("input lost: the guest does not read its console");
                    }
                }
                Some(Input::Command(command)) => self.obey(command, cpu),
                Some(Input::Line(text)) => self.take_line(&text, cpu),
                Some(Input::Complete) => self.complete(),
                Some(Input::Leave) => self.open_monitor(false),
            }
        }
        self.deliver_input(cpu.index);
        let freed = CONSOLE.lock().drain();
        self.give_room(freed, cpu.index);
    }

    /// Tells VMs (bit `n`: VM `n`) that their UARTs have room again.
    fn give_room(&mut self, mut freed: u64, this: usize) {
        while freed != 0 {
            let index = freed.trailing_zeros() as usize;
            freed &= freed - 1;
            let Some(vm) = self.guests.get_mut(index).map(|guest| &mut guest.vm) else {
                continue;
            };
            vm.uart.set_transmit_room(true);
            vm.vgic.set_spi_level(UART_INTID, vm.uart.irq_level());
            let kicks = vm.vgic.take_kicks();
            self.tell(index, kicks, this);
        }
    }

    pub(super) fn obey(&mut self, command: Command, cpu: &mut ThisCpu) {
        let end = match command {
            Command::Help => return line(format_args!("[tagvisor] {HELP}")),
            Command::Monitor => return self.open_monitor(true),
            Command::Report => return self.report_now(),
            Command::Next => return self.attach_next(),
            Command::Quit => End::Stopped,
            Command::Timeout => End::Timeout,
        };
        self.open_monitor(false);
        for vm in 0..self.guests.len() {
            self.stop(vm, Fate::End(end), cpu);
        }
    }

    /// Gives the attached guest as much input as its UART takes, wherever it runs.
    #[inline]
    pub(super) fn deliver_input(&mut self, this: usize) {
        if !self.input.is_empty() {
            self.deliver_some_input(this);
        }
    }

    #[cold]
    fn deliver_some_input(&mut self, this: usize) {
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
        let kicks = vm.vgic.take_kicks();
        self.tell(self.attached, kicks, this);
    }

    /// Gives the console to the next VM that runs, if there is another.
    pub(super) fn attach_next(&mut self) {
        let count = self.guests.len();
        let others = (1..count).map(|step| (self.attached + step) % count);
        let live = |index: &usize| {
            self.guests
                .get(*index)
                .is_some_and(|guest| !guest.life.is_over())
        };
        if let Some(next) = others.into_iter().find(live) {
            self.attach(next);
        }
    }

    /// Gives the console to a VM.
    pub(super) fn attach(&mut self, next: usize) {
        self.attached = next;
        self.input.clear();
        if let Some(guest) = self.guests.get_mut(next) {
            show_kept(&mut guest.vm);
        }
        CONSOLE.lock().show(next);
        if let Some(guest) = self.guests.get(next) {
            log::info!("this is now the console of vm={}", guest.vm.config.name);
        }
    }
}
