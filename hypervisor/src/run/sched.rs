//! Who runs, and until when: round robin over runnable vCPUs, a time slice as long as others are on, sleepers woken by their
//! interrupts and deadlines.

use super::{Guest, Hypervisor, Place};
use crate::arch::switch::CpuState;
use crate::arch::{cpu, timer};
use crate::devices::vpsci::VcpuPower;
use crate::devices::vtimer::{deadline, level};
use crate::exit::{PHYSICAL_TIMER_INTID, VIRTUAL_TIMER_INTID};

/// Time slices per second.
const SLICES_PER_SECOND: u64 = 100;

fn earlier(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    [one, other].into_iter().flatten().min()
}

impl Hypervisor {
    /// Chooses the next runnable vCPU after the last one, in turn.
    pub(super) fn next(&mut self) -> Option<Place> {
        self.deliver_input();
        self.wake_due();
        let mut first = None;
        for Guest { vm, .. } in &self.guests {
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

    /// Wakes vCPUs whose interrupt or deadline has come.
    fn wake_due(&mut self) {
        let now = timer::counter();
        let loaded = self.loaded;
        let physical = self.interrupts.virtual_timer;
        for Guest { vm, states, .. } in self
            .guests
            .iter_mut()
            .filter(|guest| guest.vm.end.is_none())
        {
            for (index, state) in states.iter().enumerate() {
                let Some(vcpu) = vm.vcpus.get_mut(index) else {
                    continue;
                };
                let Some(wake) = vcpu.waiting else { continue };
                let due = loaded != Some((vm.index, index)) && timer_is_due(state, now);
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
    }

    /// Returns the earliest count at which a sleeping vCPU must be looked at.
    fn sleepers_deadline(&self) -> Option<u64> {
        let mut earliest = None;
        for Guest { vm, states, .. } in self.guests.iter().filter(|guest| guest.vm.end.is_none()) {
            for (index, (vcpu, state)) in vm.vcpus.iter().zip(states).enumerate() {
                let Some(wake) = vcpu.waiting else { continue };
                earliest = earlier(earliest, wake.at);
                let in_hardware = self.loaded == Some((vm.index, index));
                if !in_hardware && !vm.vgic.is_hw_ppi_held(index, VIRTUAL_TIMER_INTID) {
                    earliest = earlier(earliest, deadline(state.cntv_ctl, state.el1.cntv_cval, 0));
                }
                if !vm.vgic.is_ppi_high(index, PHYSICAL_TIMER_INTID) {
                    earliest = earlier(earliest, vcpu.physical_timer.deadline());
                }
            }
        }
        earliest
    }

    /// Returns when the vCPU at `place` has to give way: at the end of a slice if anybody else is on, or when a sleeper's
    /// time comes.
    pub(super) fn slice_end(&mut self, place: Place) -> Option<u64> {
        self.reschedule = false;
        let company = self.guests.iter().flat_map(|Guest { vm, .. }| {
            vm.vcpus
                .iter()
                .enumerate()
                .filter(|(_, vcpu)| vcpu.power == VcpuPower::On)
                .map(|(index, _)| (vm.index, index))
        });
        let alone = company.filter(|other| *other != place).count() == 0;
        let slice = (!alone).then(|| timer::counter() + timer::frequency() / SLICES_PER_SECOND);
        earlier(slice, self.sleepers_deadline())
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

    /// Tells whether the running vCPU has to stop running: its VM has ended, its time is over, or it has sent an interrupt to a
    /// vCPU that sleeps.
    pub(super) fn must_give_way(&mut self, place: Place, until: Option<u64>) -> bool {
        let Some(vm) = self.guests.get_mut(place.0).map(|guest| &mut guest.vm) else {
            return true;
        };
        if vm.end.is_some() || vm.vgic.take_kicks() & !(1 << place.1) != 0 {
            return true;
        }
        if core::mem::take(&mut self.reschedule) {
            if until.is_some_and(|until| until <= timer::counter()) {
                return true;
            }
            self.raise_physical_timer(place);
            self.arm(place, until);
        }
        false
    }

    /// Waits for an interrupt or a deadline.
    pub(super) fn idle(&mut self) {
        self.settle();
        timer::set_deadline(self.sleepers_deadline());
        cpu::wait_for_interrupt();
        self.take_interrupts();
    }

    /// Raises the emulated physical timer of the vCPU that is about to run if it is due.
    pub(super) fn raise_physical_timer(&mut self, (vm_index, vcpu_index): Place) {
        let Some(vm) = self.guests.get_mut(vm_index).map(|guest| &mut guest.vm) else {
            return;
        };
        let timer = vm.vcpus.get(vcpu_index).map(|vcpu| &vcpu.physical_timer);
        let on = timer.filter(|timer| timer.deadline().is_some());
        if on.is_some_and(|timer| timer.level(timer::counter())) {
            vm.vgic
                .set_ppi_level(vcpu_index, PHYSICAL_TIMER_INTID, true);
        }
    }
}

fn timer_is_due(state: &CpuState, now: u64) -> bool {
    level(state.cntv_ctl, state.el1.cntv_cval, 0, now)
}
