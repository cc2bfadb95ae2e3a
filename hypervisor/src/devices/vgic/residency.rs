//! Interrupts into the list registers before a guest is entered, and back out of them.

use super::irq::NOWHERE;
use super::list::{
    HCR_EN, HCR_EOICOUNT_SHIFT, HCR_LRENPIE, HCR_NPIE, HCR_TDIR, ListRegisters, VMCR_EOIM,
};
use super::queue::Selection;
use super::{PRIVATE, Vgic};

impl Vgic {
    /// Takes back what the CPU did to the interrupts in its list registers.
    pub fn sync(&mut self, vcpu: usize, lrs: &ListRegisters) {
        let Some(bank) = self.banks.get_mut(vcpu) else {
            return;
        };
        bank.vmcr = lrs.vmcr;
        if bank.spilled {
            bank.spilled = false;
            self.deactivate_spilled(vcpu, lrs.hcr >> HCR_EOICOUNT_SHIFT & 0x1f);
        }
        let Some(bank) = self.banks.get_mut(vcpu) else {
            return;
        };
        let used = core::mem::replace(&mut bank.used, 0);
        if used == 0 {
            return;
        }
        // Even list registers that have become empty must be written: they may still ask for maintenance.
        self.stale |= 1 << vcpu;
        let slots = bank.slots;
        for (&intid, &lr) in slots.iter().zip(&lrs.lr).take(usize::from(used)) {
            self.fold(vcpu, intid, lr);
        }
    }

    /// Takes one interrupt out of a list register, into the queue of whoever has to deal with it next.
    fn fold(&mut self, vcpu: usize, intid: u16, lr: u64) {
        let ctlr = self.ctlr;
        let Some(irq) = self.irq_mut(vcpu, intid) else {
            return;
        };
        let deactivate = irq.fold(lr);
        let (_, home) = irq.requeue(ctlr);
        if home != NOWHERE {
            self.move_queues(intid, NOWHERE, home);
        }
        if let Some(physical) = deactivate
            && let Some(bank) = self.banks.get_mut(vcpu)
        {
            bank.owe(physical);
        }
    }

    /// Deactivates `count` interrupts that the guest ended while they were in no list register.
    ///
    /// The CPU counts them without saying which they were. With EOImode 0 the guest ends what it acknowledged in the
    /// order of the priorities, highest first; with EOImode 1 `ICC_DIR_EL1` is trapped and the count stays 0.
    #[cold]
    fn deactivate_spilled(&mut self, vcpu: usize, count: u64) {
        for _ in 0..count {
            let Some(bank) = self.banks.get(vcpu) else {
                return;
            };
            let active = bank.queue.iter().filter_map(|intid| {
                let irq = self.irq(vcpu, intid)?;
                irq.is_active()
                    .then_some((!irq.is_acknowledged(), irq.priority(), intid))
            });
            let Some((_, _, intid)) = active.min() else {
                return;
            };
            self.change(vcpu, intid, |irq| irq.set_active(false));
        }
    }

    /// Returns the list register that was given the PPI `intid` by [`raise_hw_ppi`](Self::raise_hw_ppi), if nothing
    /// that concerns `vcpu` has changed since: the short way for the timer's next tick.
    ///
    /// If the CPU shows that the guest is done with it, [`ListRegisters::rearm`] gives the value for the next tick, and
    /// neither sync nor flush is needed: what the GIC knows about the interrupt is the same as before.
    pub fn hw_ppi_slot(&self, vcpu: usize, intid: u16) -> Option<usize> {
        if self.is_stale(vcpu) {
            return None;
        }
        let bank = self.banks.get(vcpu)?;
        let irq = bank.irqs.get(usize::from(intid))?;
        let slots = bank.slots.get(..usize::from(bank.used))?;
        if !irq.is_held_hardware() {
            return None;
        }
        slots.iter().position(|&slot| slot == intid)
    }

    /// Fills the list registers of `vcpu` for its next entry, if it [is stale](Self::is_stale).
    pub fn flush(&mut self, vcpu: usize, lrs: &mut ListRegisters) {
        lrs.to_load = lrs.used;
        if !self.is_stale(vcpu) {
            return;
        }
        self.stale &= !(1 << vcpu);
        self.kicks &= !(1 << vcpu);
        lrs.hcr = HCR_EN;
        let Some(bank) = self.banks.get(vcpu) else {
            return;
        };
        if bank.queue.exceeds(lrs.count()) {
            self.place_best(vcpu, lrs);
        } else {
            while let Some(intid) = self.pop(vcpu) {
                self.place(vcpu, intid, lrs);
            }
        }
        self.clear_rest(vcpu, lrs);
    }

    fn pop(&mut self, vcpu: usize) -> Option<u16> {
        self.banks.get_mut(vcpu)?.queue.pop()
    }

    /// Fills the list registers with the best of what is too much for them.
    #[cold]
    fn place_best(&mut self, vcpu: usize, lrs: &mut ListRegisters) {
        let Some(bank) = self.banks.get(vcpu) else {
            return;
        };
        let mut selection = Selection::new(lrs.count(), lrs.vmcr & VMCR_EOIM != 0);
        for intid in bank.queue.iter() {
            if let Some(irq) = self.irq(vcpu, intid) {
                selection.offer(intid, irq);
            }
        }
        let pending_left = selection.finish();
        lrs.hcr |= maintenance(pending_left, selection.active_left);
        for intid in selection.chosen() {
            if let Some(bank) = self.banks.get_mut(vcpu) {
                bank.queue.remove(intid);
                bank.spilled = selection.active_left;
            }
            self.place(vcpu, intid, lrs);
        }
    }

    /// Puts an interrupt that is in no queue any more into the next list register.
    fn place(&mut self, vcpu: usize, intid: u16, lrs: &mut ListRegisters) {
        let Some(bank) = self.banks.get_mut(vcpu) else {
            return;
        };
        let index = usize::from(intid);
        let irq = match index.checked_sub(PRIVATE) {
            Some(spi) => self.spis.get_mut(spi),
            None => bank.irqs.get_mut(index),
        };
        let next = usize::from(bank.used);
        if let Some(irq) = irq
            && let Some(lr) = lrs.lr.get_mut(next)
            && let Some(slot) = bank.slots.get_mut(next)
        {
            *lr = irq.place(vcpu as u8, intid, self.ctlr);
            *slot = intid;
            bank.used += 1;
        }
    }

    /// Clears the list registers that were in use before and are not now.
    fn clear_rest(&mut self, vcpu: usize, lrs: &mut ListRegisters) {
        let before = lrs.used;
        lrs.used = self.banks.get(vcpu).map_or(0, |bank| bank.used);
        lrs.to_load = before.max(lrs.used);
        for freed in lrs.used..before {
            if let Some(lr) = lrs.lr.get_mut(usize::from(freed)) {
                *lr = 0;
            }
        }
    }
}

/// Returns the maintenance interrupts to ask for, given what did not fit (IHI 0069, 12.4.4).
///
/// A pending interrupt outside is no better than the pending ones inside, of which there is one at least: nothing need
/// happen until none inside is pending. An active one outside is ended by a count, or by a trapped `ICC_DIR_EL1`: also with
/// EOImode 0, as the guest may go to 1 without an exit.
fn maintenance(pending_left: bool, active_left: bool) -> u64 {
    let mut hcr = 0;
    if pending_left {
        hcr |= HCR_NPIE;
    }
    if active_left {
        hcr |= HCR_LRENPIE | HCR_TDIR;
    }
    hcr
}
