//! Who runs, and until when: round robin over the runnable vCPUs of each CPU, a time slice as long as others are on, sleepers
//! woken by their interrupts and deadlines. A vCPU stays on the CPU that it was given when it was turned on.

use super::{Guest, Hypervisor, ThisCpu, interrupts};
use crate::arch::switch::CpuState;
use crate::arch::timer;
use crate::devices::vpsci::VcpuPower;
use crate::devices::vtimer::{deadline, level};
use crate::exit::{PHYSICAL_TIMER_INTID, VIRTUAL_TIMER_INTID};
use crate::sched::{Place, RunQueue, least_loaded};
use crate::vm::Vm;

/// Time slices per second.
const SLICES_PER_SECOND: u64 = 100;

fn earlier(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    [one, other].into_iter().flatten().min()
}

impl Hypervisor {
    fn queue(&self, cpu: usize) -> Option<&RunQueue> {
        Some(&self.processors.get(cpu)?.queue)
    }

    /// Gives a vCPU that has been turned on a CPU, `this` or another.
    pub(super) fn find_cpu(&mut self, place: Place, this: usize) {
        let queues = self.processors.iter().map(|processor| &processor.queue);
        let Some(home) = least_loaded(queues, place.0) else {
            return;
        };
        let guest = self.guests.get_mut(place.0);
        let running = guest.filter(|guest| guest.life.is_running());
        let Some(vcpu) = running.and_then(|guest| guest.vm.vcpus.get_mut(place.1)) else {
            return;
        };
        vcpu.home = home;
        if let Some(processor) = self.processors.get_mut(home) {
            processor.queue.push(place);
            processor.look = true;
        }
        self.call(home, this);
    }

    /// Takes a vCPU that has been turned off from its CPU: whoever turns it on anew finds nothing of it in hardware.
    pub(super) fn retire(&mut self, cpu: &mut ThisCpu, place: Place) {
        if self
            .vcpu(place)
            .is_some_and(|vcpu| vcpu.power == VcpuPower::Off)
        {
            if let Some(processor) = self.processors.get_mut(cpu.index) {
                processor.queue.remove(place);
            }
            self.unload(cpu);
        }
    }

    /// Chooses the vCPU that runs next on this CPU.
    pub(super) fn next(&mut self, cpu: &mut ThisCpu) -> Option<Place> {
        self.deliver_input(cpu.index);
        self.wake_due(cpu);
        let (processor, guests) = (self.processors.get_mut(cpu.index)?, &self.guests);
        processor.look = false;
        processor.queue.next(|(vm, vcpu)| {
            let guest = guests.get(vm);
            let vcpu = guest.and_then(|guest| guest.vm.vcpus.get(vcpu));
            vcpu.is_some_and(|vcpu| vcpu.is_runnable())
        })
    }

    /// Wakes vCPUs of this CPU whose interrupt or deadline has come.
    fn wake_due(&mut self, cpu: &ThisCpu) {
        let now = timer::counter();
        let physical = cpu.interrupts.virtual_timer_ppi();
        let Some(processor) = self.processors.get(cpu.index) else {
            return;
        };
        for place in processor.queue.iter() {
            let (vm, index) = place;
            let Some(Guest { vm, states, .. }) = self.guests.get_mut(vm) else {
                continue;
            };
            let (Some(vcpu), Some(state)) = (vm.vcpus.get_mut(index), states.get(index)) else {
                continue;
            };
            let Some(wake) = vcpu.waiting else { continue };
            let due = cpu.loaded != Some(place) && timer_is_due(state, now);
            if due && !vm.vgic.is_hw_ppi_held(index, VIRTUAL_TIMER_INTID) {
                // As if this CPU had taken it: it is made active when the vCPU is loaded.
                vm.vgic.raise_hw_ppi(index, VIRTUAL_TIMER_INTID, physical);
            }
            if vcpu.physical_timer.level(now) {
                vm.vgic.set_ppi_level(index, PHYSICAL_TIMER_INTID, true);
            }
            if wake.at.is_some_and(|at| at <= now) || vm.vgic.has_pending(index) {
                vcpu.waiting = None;
            }
        }
    }

    /// Returns the earliest count at which a sleeping vCPU of this CPU must be looked at.
    pub(super) fn sleepers_deadline(&self, cpu: &ThisCpu) -> Option<u64> {
        let mut earliest = None;
        for place in self.queue(cpu.index)?.iter() {
            let (vm, index) = place;
            let Some(Guest { vm, states, .. }) = self.guests.get(vm) else {
                continue;
            };
            let (Some(vcpu), Some(state)) = (vm.vcpus.get(index), states.get(index)) else {
                continue;
            };
            let Some(wake) = vcpu.waiting else { continue };
            earliest = earlier(earliest, wake.at);
            let in_hardware = cpu.loaded == Some(place);
            if !in_hardware && !vm.vgic.is_hw_ppi_held(index, VIRTUAL_TIMER_INTID) {
                earliest = earlier(earliest, deadline(state.cntv_ctl, state.el1.cntv_cval, 0));
            }
            if !vm.vgic.is_ppi_high(index, PHYSICAL_TIMER_INTID) {
                earliest = earlier(earliest, vcpu.physical_timer.deadline());
            }
        }
        earliest
    }

    /// Returns when the vCPU that is about to run has to give way: at the end of a slice if anybody else is on here, or when a
    /// sleeper's time comes.
    pub(super) fn slice_end(&mut self, cpu: &mut ThisCpu) -> Option<u64> {
        (cpu.reschedule, cpu.gathered) = (false, false);
        let alone = self.queue(cpu.index)?.len() < 2;
        let slice = (!alone).then(|| timer::counter() + timer::frequency() / SLICES_PER_SECOND);
        earlier(slice, self.sleepers_deadline(cpu))
    }

    /// Sets EL2's timer for the running vCPU: to `until`, or to when its own physical timer fires.
    pub(super) fn arm(&mut self, place: Place, until: Option<u64>) {
        let own = self
            .vcpu(place)
            .and_then(|vcpu| vcpu.physical_timer.deadline());
        let raised = self
            .guests
            .get(place.0)
            .is_some_and(|guest| guest.vm.vgic.is_ppi_high(place.1, PHYSICAL_TIMER_INTID));
        timer::set_deadline(earlier(until, own.filter(|_| !raised)));
    }

    /// Tells whether the running vCPU has to stop running: its VM stops, its time is over, or somebody else here may have become
    /// runnable.
    pub(super) fn must_give_way(
        &mut self,
        cpu: &mut ThisCpu,
        place: Place,
        until: Option<u64>,
    ) -> bool {
        let Some(guest) = self.guests.get_mut(place.0) else {
            return true;
        };
        let running = guest.life.is_running();
        let kicks = guest.vm.vgic.take_kicks();
        if kicks != 0 {
            self.tell(place.0, kicks, cpu.index);
        }
        let look = self
            .processors
            .get(cpu.index)
            .is_none_or(|processor| processor.look);
        if !running || look {
            return true;
        }
        if core::mem::take(&mut cpu.reschedule) {
            if until.is_some_and(|until| until <= timer::counter()) {
                return true;
            }
            if let Some(guest) = self.guests.get_mut(place.0) {
                raise_physical_timer(&mut guest.vm, place.1);
            }
            self.arm(place, until);
        }
        false
    }

    /// Makes the CPUs of those vCPUs of a VM look that have something new (bit `n`: vCPU `n`): one that runs takes it at its next
    /// entry, one that sleeps may wake.
    pub(super) fn tell(&mut self, vm_index: usize, mut kicks: u64, this: usize) {
        while kicks != 0 {
            let vcpu_index = kicks.trailing_zeros() as usize;
            kicks &= kicks - 1;
            let place = (vm_index, vcpu_index);
            let Some((home, waits)) = self
                .vcpu(place)
                .filter(|vcpu| vcpu.power == VcpuPower::On)
                .map(|vcpu| (vcpu.home, vcpu.waiting.is_some()))
            else {
                continue;
            };
            let Some(processor) = self.processors.get_mut(home) else {
                continue;
            };
            processor.look |= waits;
            if waits || processor.entered == Some(place) {
                self.call(home, this);
            }
        }
    }

    /// Makes another CPU leave its guest or its sleep.
    pub(super) fn call(&mut self, index: usize, this: usize) {
        if index == this {
            return;
        }
        let Some(processor) = self.processors.get_mut(index) else {
            return;
        };
        if !core::mem::replace(&mut processor.called, true) {
            interrupts::call(processor.mpidr);
        }
    }

    /// Asks all other CPUs that are in the VM to store their list registers. Returns which (bit `n`: CPU `n`).
    pub(super) fn ask_for_sync(&mut self, this: usize, vm: usize) -> u64 {
        let mut asked = 0;
        for index in 0..self.processors.len() {
            let Some(processor) = self.processors.get_mut(index) else {
                continue;
            };
            if processor.entered.is_some_and(|place| place.0 == vm) {
                processor.sync = true;
                asked |= 1 << index;
                self.call(index, this);
            }
        }
        asked
    }
}

/// Raises the emulated physical timer of the vCPU that is about to run if it is due.
pub(super) fn raise_physical_timer(vm: &mut Vm, vcpu_index: usize) {
    let timer = vm.vcpus.get(vcpu_index).map(|vcpu| &vcpu.physical_timer);
    let on = timer.filter(|timer| timer.deadline().is_some());
    if on.is_some_and(|timer| timer.level(timer::counter())) {
        vm.vgic
            .set_ppi_level(vcpu_index, PHYSICAL_TIMER_INTID, true);
    }
}

fn timer_is_due(state: &CpuState, now: u64) -> bool {
    level(state.cntv_ctl, state.el1.cntv_cval, 0, now)
}
