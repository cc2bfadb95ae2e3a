//! The virtual timer's interrupt on its way from the physical one to the guest, while the guest's vCPU runs, sleeps and moves: a
//! model of the hardware around [`Vgic`], with the steps of the run loop in between.

use super::*;
use crate::devices::vtimer::{self, level};
use proptest::prelude::*;

const TIMER: u16 = 27;
const CPUS: usize = 2;
/// `CNTV_CTL_EL0`: ENABLE, IMASK.
const ON: u64 = 0b01;
const MASKED: u64 = 0b11;

struct Machine {
    vgic: Vgic,
    cpu: Cpu,
    now: u64,
    /// `CNTV_CTL_EL0` and `CNTV_CVAL_EL0`, in hardware or saved.
    ctl: u64,
    cval: u64,
    /// The CPU that has the vCPU's registers.
    loaded: Option<usize>,
    /// Whether the physical interrupt of each CPU is active.
    active: [bool; CPUS],
    /// The guest is between acknowledging and ending the interrupt.
    handling: bool,
    was_high: bool,
    edges: usize,
    taken: usize,
    /// The line has gone high and the guest has not been told.
    untold: bool,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Advance(u64),
    /// The guest lets the timer fire so much later than now, or earlier.
    Set(i64),
    Mask,
    /// The guest takes the interrupt, if there is one, and quiets the timer: by its mask or for so long.
    Take(Option<u64>),
    End,
    /// An exit that looks at what the guest did.
    Exit,
    Unload,
    /// EL2 looks whether a sleeper is to wake.
    Look,
    Load(usize),
}

impl Machine {
    fn new() -> Self {
        Self {
            vgic: running(1),
            cpu: Cpu::new(0, 4),
            now: 1000,
            ctl: 0,
            cval: 0,
            loaded: None,
            active: [false; CPUS],
            handling: false,
            was_high: false,
            edges: 0,
            taken: 0,
            untold: false,
        }
    }

    fn is_high(&self) -> bool {
        level(self.ctl, self.cval, 0, self.now)
    }

    fn is_active(&mut self, active: bool) {
        if let Some(cpu) = self.loaded {
            self.active[cpu] = active;
        }
    }

    /// What the guest's deactivations did, and those that are left to EL2.
    fn deactivate(&mut self) {
        if !self
            .cpu
            .deactivated
            .drain(..)
            .collect::<Vec<_>>()
            .is_empty()
        {
            self.is_active(false);
        }
    }

    fn deactivate_owed(&mut self) {
        if self.vgic.take_deactivations(0) != 0 {
            self.is_active(false);
        }
    }

    /// `exit::sync_interrupts`.
    fn sync(&mut self) {
        self.cpu.sync(&mut self.vgic);
        if !self.is_high() {
            self.vgic.cancel_hw_ppi(0, TIMER);
        }
    }

    /// The way back into the guest.
    fn enter(&mut self) {
        if self.vgic.is_stale(0) {
            self.sync();
            self.cpu.enter(&mut self.vgic);
            self.deactivate_owed();
        }
    }

    /// The CPU takes physical interrupts as long as there are any.
    fn interrupt(&mut self) {
        for _ in 0..3 {
            let Some(cpu) = self.loaded.filter(|_| self.is_high()) else {
                return;
            };
            if self.active[cpu] {
                return;
            }
            self.active[cpu] = true;
            if !self.cpu.rearm(&self.vgic, TIMER) {
                self.vgic.raise_hw_ppi(0, TIMER, TIMER);
            }
            self.enter();
        }
        panic!("a storm");
    }

    fn load(&mut self, cpu: usize) {
        let held = self.vgic.is_hw_ppi_held(0, TIMER);
        self.loaded = Some(cpu);
        self.is_active(held);
        self.enter();
    }

    fn unload(&mut self) {
        self.cpu.sync(&mut self.vgic);
        self.deactivate_owed();
        self.is_active(false);
        self.loaded = None;
    }

    fn take(&mut self, quiet_for: Option<u64>) -> bool {
        let taken = self.cpu.acknowledge().is_some();
        if taken {
            (self.taken, self.untold, self.handling) = (self.taken + 1, false, true);
            match quiet_for {
                Some(counts) => self.cval = self.now + 1 + counts,
                None => self.ctl = MASKED,
            }
        }
        taken
    }

    fn step(&mut self, step: Step) {
        let in_guest = self.loaded.is_some();
        match step {
            Step::Advance(counts) => self.now += counts,
            Step::Set(after) if in_guest && !self.handling => {
                (self.ctl, self.cval) = (ON, self.now.saturating_add_signed(after));
            }
            Step::Mask if in_guest => self.ctl = MASKED,
            Step::Take(quiet_for) if in_guest && !self.handling => {
                self.take(quiet_for);
            }
            Step::End if in_guest && self.handling && !self.is_high() => {
                self.cpu.end(TIMER);
                self.handling = false;
                self.deactivate();
            }
            Step::Exit if in_guest => {
                self.sync();
                self.enter();
            }
            Step::Unload if in_guest => self.unload(),
            Step::Look if !in_guest => {
                vtimer::raise_if_due(&mut self.vgic, 0, (self.ctl, self.cval), self.now, TIMER);
            }
            Step::Load(cpu) if !in_guest => self.load(cpu),
            _ => {}
        }
        self.note();
        self.interrupt();
    }

    /// Counts edges.
    fn note(&mut self) {
        let high = self.is_high();
        if high && !self.was_high {
            self.edges += 1;
            self.untold = true;
        }
        self.untold &= high;
        self.was_high = high;
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..40_u64).prop_map(Step::Advance),
        3 => (-5..40_i64).prop_map(Step::Set),
        1 => Just(Step::Mask),
        4 => prop::option::of(0..40_u64).prop_map(Step::Take),
        4 => Just(Step::End),
        2 => Just(Step::Exit),
        2 => Just(Step::Unload),
        2 => Just(Step::Look),
        4 => (0..CPUS).prop_map(Step::Load),
    ]
}

#[test]
fn a_tick_that_comes_due_while_the_vcpu_is_away_is_taken_on_its_next_cpu() {
    let mut machine = Machine::new();
    for step in [
        Step::Load(0),
        Step::Set(10),
        Step::Unload,
        Step::Advance(20),
        Step::Look,
        Step::Load(1),
    ] {
        machine.step(step);
    }
    assert_eq!(machine.active, [false, true]);
    machine.step(Step::Take(None));
    machine.step(Step::End);
    assert_eq!((machine.taken, machine.active), (1, [false; 2]));
}

proptest! {
    /// The guest takes no more interrupts than the line had edges, and one is there for it as long as the line is high and it has
    /// not been told.
    #[test]
    fn the_timer_interrupts_once_for_each_edge(steps in prop::collection::vec(step(), 1..120)) {
        let mut machine = Machine::new();
        for step in steps {
            machine.step(step);
            prop_assert!(machine.taken <= machine.edges, "{step:?}");
            if machine.untold && machine.loaded.is_some() && !machine.handling {
                let there = machine.cpu.resident().iter().any(|(intid, _)| *intid == TIMER);
                prop_assert!(there, "lost after {step:?}");
            }
        }
        if machine.loaded.is_none() {
            machine.step(Step::Load(0));
        }
        while machine.handling {
            machine.step(Step::Mask);
            machine.step(Step::End);
        }
        if machine.untold {
            prop_assert!(machine.take(None), "lost");
        }
        // Nothing stays active for nobody: the next expiry is signalled.
        machine.step(Step::Set(1));
        machine.step(Step::Exit);
        machine.step(Step::Advance(5));
        prop_assert!(machine.handling || machine.take(None), "the next expiry is lost");
    }
}
