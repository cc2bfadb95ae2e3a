//! Who runs, and until when: of the runnable vCPUs of each CPU the one that has run least, for a slice where others wait, sleepers
//! woken by their interrupts and deadlines. A CPU without work takes a vCPU over that waits for another one; where all have work,
//! but not the same, vCPUs move on in turn.

use super::{Guest, Hypervisor, ThisCpu, interrupts};
use crate::arch::timer;
use crate::devices::vpsci::VcpuPower;
use crate::devices::vtimer::{deadline, raise_if_due};
use crate::exit::{PHYSICAL_TIMER_INTID, VIRTUAL_TIMER_INTID};
use crate::sched::{Place, RunQueue, least_loaded, moves_on};
use crate::vcpu::Vcpu;

/// Time slices per second.
const SLICES_PER_SECOND: u64 = 400;

/// In a second: whoever gets the CPU has it for so long before a sleeper's deadline takes it, or two that sleep for moments only would
/// have the CPU change hands all the time.
const LEAST_PER_SECOND: u64 = 20_000;

/// How often in a second a vCPU may move on from a CPU where more are ready than elsewhere.
const MOVES_PER_SECOND: u64 = 50;

/// Counts in a slice. A sleeper keeps as much of what it could have run meanwhile.
fn slice() -> u64 {
    timer::frequency() / SLICES_PER_SECOND
}

fn earlier(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// Whether a vCPU could run now.
fn is_ready(guests: &[Guest], (vm, vcpu): Place) -> bool {
    let running = guests.get(vm).filter(|guest| guest.life.is_running());
    let vcpu = running.and_then(|guest| guest.vm.vcpus.get(vcpu));
    vcpu.is_some_and(Vcpu::is_runnable)
}

impl Hypervisor {
    fn queue(&self, cpu: usize) -> Option<&RunQueue> {
        Some(&self.processors.get(cpu)?.queue)
    }

    /// Gives a vCPU that has been turned on a CPU, `this` or another.
    pub(super) fn find_cpu(&mut self, place: Place, this: usize) {
        let queues = self.processors.iter().map(|processor| &processor.queue);
        let Some(home) = least_loaded(queues, place.0, self.allowed(place.0)) else {
            return;
        };
        let guest = self.guests.get_mut(place.0);
        let live = guest.filter(|guest| guest.life.is_live());
        let Some(vcpu) = live.and_then(|guest| guest.vm.vcpus.get_mut(place.1)) else {
            return;
        };
        vcpu.home = home;
        vcpu.ready_at = timer::counter();
        if let Some(processor) = self.processors.get_mut(home) {
            processor.queue.push(place, 0);
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
        let yielding = cpu.yielding.take();
        let choice = processor
            .queue
            .next(slice(), yielding, |place| is_ready(guests, place))?;
        processor.crowded = choice.waiting.is_some();
        if let Some(waiting) = choice.waiting
            && !self.offer(waiting, cpu.index)
        {
            self.move_on(cpu, choice.place);
        }
        Some(choice.place)
    }

    /// Lets a vCPU of this CPU, where others wait too, move on to a CPU where fewer do, now and then.
    #[cold]
    fn move_on(&mut self, cpu: &mut ThisCpu, next: Place) {
        let now = timer::counter();
        let since = self.processors.get(cpu.index).map_or(0, |this| this.moved);
        if now.saturating_sub(since) < timer::frequency() / MOVES_PER_SECOND {
            return;
        }
        let queues = self.processors.iter().map(|processor| &processor.queue);
        let ready = |place| is_ready(&self.guests, place);
        let moves = moves_on(queues, cpu.index, next, ready, |vm| self.allowed(vm));
        let Some((place, to)) = moves else { return };
        if cpu.loaded == Some(place) {
            self.unload(cpu);
        }
        self.change_cpu(place, cpu.index, to);
        for index in [cpu.index, to] {
            if let Some(processor) = self.processors.get_mut(index) {
                processor.moved = now;
                // Unloading may have made this one look again, too.
                processor.look |= index == to;
            }
        }
        self.call(to, cpu.index);
    }

    fn change_cpu(&mut self, place: Place, from: usize, to: usize) {
        let other = self.processors.get_mut(from);
        let ahead = other.map_or(0, |other| other.queue.remove(place));
        if let Some(processor) = self.processors.get_mut(to) {
            processor.queue.push(place, ahead);
        }
        if let Some(vcpu) = self.vcpu_mut(place) {
            vcpu.home = to;
        }
    }

    /// Gives a CPU to a vCPU.
    #[inline(never)]
    pub(super) fn give(&mut self, index: usize, place: Place) {
        if let Some(processor) = self.processors.get_mut(index) {
            processor.given = Some((place, timer::counter()));
        }
    }

    /// Takes a CPU back from the vCPU that has it, and charges that with its time.
    #[inline(never)]
    pub(super) fn charge(&mut self, index: usize) {
        let now = timer::counter();
        let Some(processor) = self.processors.get_mut(index) else {
            return;
        };
        let Some((place, since)) = processor.given.take() else {
            return;
        };
        let counts = now.saturating_sub(since);
        processor.queue.charge(place, counts);
        if let Some(guest) = self.guests.get_mut(place.0) {
            guest.vm.time.ran += counts;
        }
        if let Some(vcpu) = self.vcpu_mut(place) {
            vcpu.ready_at = now;
        }
    }

    /// Charges all vCPUs that have a CPU with their time so far.
    pub(super) fn charge_all(&mut self) {
        for index in 0..self.processors.len() {
            let given = self.processors.get(index).and_then(|cpu| cpu.given);
            if let Some((place, _)) = given {
                self.charge(index);
                self.give(index, place);
            }
        }
    }

    #[inline(never)]
    fn vcpu_mut(&mut self, (vm, vcpu): Place) -> Option<&mut Vcpu> {
        self.guests.get_mut(vm)?.vm.vcpus.get_mut(vcpu)
    }

    /// The CPUs (bit `n`: CPU `n`) on which vCPUs of a VM may run.
    #[inline(never)]
    fn allowed(&self, vm: usize) -> u64 {
        let guest = self.guests.get(vm);
        guest.map_or(0, |guest| guest.vm.config.cpus)
    }

    /// Wakes a CPU without work that may take over a vCPU which waits here. Returns whether there is one.
    #[cold]
    fn offer(&mut self, place: Place, this: usize) -> bool {
        let allowed = self.allowed(place.0);
        let mut others = self.processors.iter_mut().enumerate();
        let idle = others.find(|(index, other)| allowed >> index & 1 != 0 && other.idle);
        let Some((index, other)) = idle else {
            return false;
        };
        other.look = true;
        self.call(index, this);
        true
    }

    pub(super) fn set_idle(&mut self, this: usize, idle: bool) {
        if let Some(processor) = self.processors.get_mut(this) {
            processor.idle = idle;
        }
    }

    /// Takes over a vCPU that waits for another CPU, of the longest queue. Returns whether there was any.
    pub(super) fn pull(&mut self, this: usize) -> bool {
        self.is_crowded() && self.pull_from_others(this)
    }

    fn is_crowded(&self) -> bool {
        self.processors.iter().any(|processor| processor.crowded)
    }

    #[cold]
    fn pull_from_others(&mut self, this: usize) -> bool {
        let (mut most, mut found) = (0, None);
        for (index, processor) in self.processors.iter().enumerate() {
            let queue = &processor.queue;
            if index == this || queue.len() <= most {
                continue;
            }
            let may_move = |place: &Place| {
                is_ready(&self.guests, *place)
                    && self.vcpu(*place).is_some_and(|vcpu| !vcpu.loaded)
                    && self.allowed(place.0) >> this & 1 != 0
            };
            if let Some(place) = queue.iter().find(may_move) {
                (most, found) = (queue.len(), Some((index, place)));
            }
        }
        let Some((from, place)) = found else {
            return false;
        };
        self.change_cpu(place, from, this);
        true
    }

    /// Decides what of a guest's waiting traps. A WFI does not while there is nothing else that its CPU could do: then the vCPU
    /// sleeps in the guest, and its next interrupt costs one exit. A WFE does where others wait for the CPU.
    pub(super) fn choose_traps(&mut self, cpu: &mut ThisCpu) {
        let crowded_anywhere = self.is_crowded();
        let Some(processor) = self.processors.get_mut(cpu.index) else {
            return;
        };
        cpu.sleeps_in_guest = self.settled && !crowded_anywhere && processor.queue.len() == 1;
        processor.idle = cpu.sleeps_in_guest;
        cpu.el2.trap_waits(!cpu.sleeps_in_guest, processor.crowded);
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
            if cpu.loaded != Some(place) {
                let timer = (state.cntv_ctl, state.el1.cntv_cval);
                raise_if_due(&mut vm.vgic, index, timer, now, physical);
            }
            if vcpu.physical_timer.level(now) {
                vm.vgic.set_ppi_level(index, PHYSICAL_TIMER_INTID, true);
            }
            let is_over = wake.at.is_some_and(|at| at <= now);
            if is_over || wake.by_interrupt && vm.vgic.has_pending(index) {
                vcpu.waiting = None;
                vcpu.ready_at = now;
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
            if !wake.by_interrupt {
                continue;
            }
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

    /// Returns when the vCPU that is about to run has to give way: at the end of a slice if anybody else waits here, or when a
    /// sleeper's time comes.
    pub(super) fn slice_end(&mut self, cpu: &mut ThisCpu) -> Option<u64> {
        (cpu.reschedule, cpu.gathered) = (false, false);
        let now = timer::counter();
        let crowded = self.processors.get(cpu.index)?.crowded;
        let end = crowded.then(|| now + slice());
        let least = now + timer::frequency() / LEAST_PER_SECOND;
        let sleepers = self.sleepers_deadline(cpu);
        earlier(end, sleepers.map(|deadline| deadline.max(least)))
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
        if cpu.reschedule {
            cpu.reschedule = false;
            if until.is_some_and(|until| until <= timer::counter()) {
                return true;
            }
            self.raise_physical_timer(place);
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

    /// Raises the emulated physical timer of the vCPU that is about to run, or runs, if it is due: when it gets the CPU, and when
    /// EL2's timer fires.
    #[inline(never)]
    pub(super) fn raise_physical_timer(&mut self, (vm, vcpu): Place) {
        let Some(vm) = self.guests.get_mut(vm).map(|guest| &mut guest.vm) else {
            return;
        };
        let timer = vm.vcpus.get(vcpu).map(|vcpu| vcpu.physical_timer);
        if timer.is_some_and(|timer| timer.level(timer::counter())) {
            vm.vgic.set_ppi_level(vcpu, PHYSICAL_TIMER_INTID, true);
        }
    }
}
