//! Interrupts into the list registers before a guest is entered, and back out of them.

use super::Vgic;
use super::irq::NOWHERE;
use super::list::{
    HCR_EN, HCR_EOICOUNT_SHIFT, HCR_LRENPIE, HCR_NPIE, HCR_TDIR, ListRegisters, VMCR_EOIM,
};
use super::queue::Selection;

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
            self.change(vcpu, intid, |irq| irq.fold(lr));
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

    /// Fills the list registers of `vcpu` for its next entry, if it [is stale](Self::is_stale).
    pub fn flush(&mut self, vcpu: usize, lrs: &mut ListRegisters) {
        lrs.to_load = lrs.used;
        if !self.is_stale(vcpu) {
            return;
        }
        self.stale &= !(1 << vcpu);
        self.kicks &= !(1 << vcpu);
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
        self.place(vcpu, &selection, lrs);
        lrs.hcr = HCR_EN | maintenance(pending_left, selection.active_left, lrs.vmcr);
        if let Some(bank) = self.banks.get_mut(vcpu) {
            bank.spilled = selection.active_left;
        }
    }

    /// Moves the chosen interrupts from the queue into the list registers.
    fn place(&mut self, vcpu: usize, selection: &Selection, lrs: &mut ListRegisters) {
        let ctlr = self.ctlr;
        let mut used = 0;
        for (intid, lr) in selection.chosen().zip(&mut lrs.lr) {
            let Some(irq) = self.irq_mut(vcpu, intid) else {
                continue;
            };
            *lr = irq.place(vcpu as u8, intid, ctlr);
            irq.queued = NOWHERE;
            let Some(bank) = self.banks.get_mut(vcpu) else {
                continue;
            };
            bank.queue.remove(intid);
            if let Some(slot) = bank.slots.get_mut(used) {
                *slot = intid;
            }
            used += 1;
            bank.used = used as u8;
        }
        let before = usize::from(lrs.used);
        for lr in lrs.lr.iter_mut().take(before).skip(used) {
            *lr = 0;
        }
        lrs.used = used as u8;
        lrs.to_load = before.max(used) as u8;
    }
}

/// Returns the maintenance interrupts to ask for, given what did not fit (IHI 0069, 12.4.4).
///
/// A pending interrupt outside is no better than the pending ones inside, of which there is one at least: nothing need
/// happen until none inside is pending. An active one outside is ended by a count, or by a trapped `ICC_DIR_EL1`.
fn maintenance(pending_left: bool, active_left: bool, vmcr: u64) -> u64 {
    let mut hcr = 0;
    if pending_left {
        hcr |= HCR_NPIE;
    }
    if active_left {
        hcr |= HCR_LRENPIE;
        if vmcr & VMCR_EOIM != 0 {
            hcr |= HCR_TDIR;
        }
    }
    hcr
}
