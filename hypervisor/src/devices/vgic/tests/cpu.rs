//! A virtual CPU interface as the hardware is one (IHI 0069, 4.6 and 12.4), for the tests.

use super::super::list::*;
use super::*;

/// No active interrupt.
const IDLE: u8 = 0xff;

pub(super) struct Cpu {
    pub(super) vcpu: usize,
    pub(super) lrs: ListRegisters,
    /// Active priorities, the running one last.
    active: Vec<u8>,
    /// Physical interrupts that the hardware deactivated.
    pub(super) deactivated: Vec<u16>,
    /// List registers as the CPU has them: loaded and stored like a world switch would.
    hw: [u64; MAX_LIST_REGISTERS],
}

impl Cpu {
    /// Makes a CPU interface with both groups on and no priority masked.
    pub(super) fn new(vcpu: usize, list_registers: usize) -> Self {
        let mut lrs = ListRegisters::new(list_registers);
        lrs.vmcr = 0xf8 << VMCR_PMR_SHIFT | VMCR_ENG0 | VMCR_ENG1;
        Self {
            vcpu,
            lrs,
            active: Vec::new(),
            deactivated: Vec::new(),
            hw: [0; MAX_LIST_REGISTERS],
        }
    }

    pub(super) fn set_eoi_mode(&mut self, one: bool) {
        self.lrs.vmcr = self.lrs.vmcr & !VMCR_EOIM | if one { VMCR_EOIM } else { 0 };
    }

    pub(super) fn eoi_mode1(&self) -> bool {
        self.lrs.vmcr & VMCR_EOIM != 0
    }

    pub(super) fn set_mask(&mut self, priority: u8) {
        let others = self.lrs.vmcr & !(0xff << VMCR_PMR_SHIFT);
        self.lrs.vmcr = others | u64::from(priority) << VMCR_PMR_SHIFT;
    }

    pub(super) fn mask(&self) -> u8 {
        (self.lrs.vmcr >> VMCR_PMR_SHIFT) as u8
    }

    pub(super) fn running(&self) -> u8 {
        self.active.iter().copied().min().unwrap_or(IDLE)
    }

    /// Exits, syncs, flushes, enters: whatever the state.
    pub(super) fn update(&mut self, vgic: &mut Vgic) {
        self.sync(vgic);
        self.enter(vgic);
    }

    /// Stores what the CPU has and hands it over.
    pub(super) fn sync(&mut self, vgic: &mut Vgic) {
        let hw = self.hw;
        for (lr, hw) in self.lrs.in_use().iter_mut().zip(hw) {
            *lr = hw;
        }
        vgic.sync(self.vcpu, &self.lrs);
    }

    /// Loads what is to be loaded and checks that the guest can run on.
    pub(super) fn enter(&mut self, vgic: &mut Vgic) {
        vgic.flush(self.vcpu, &mut self.lrs);
        for (hw, lr) in self.hw.iter_mut().zip(self.lrs.loadable()) {
            *hw = *lr;
        }
        assert!(!self.wants_maintenance(), "a storm: {self:x?}");
        assert!(!vgic.is_stale(self.vcpu));
        for lr in self.hw {
            assert_ne!(lr & (HARDWARE | STATE), HARDWARE | STATE, "reserved state");
        }
    }

    /// Enters the guest if something changed, like the run loop.
    pub(super) fn settle(&mut self, vgic: &mut Vgic) {
        if vgic.is_stale(self.vcpu) || self.wants_maintenance() {
            self.update(vgic);
        }
    }

    /// Gives the guest the timer's next tick the short way, if that is open.
    pub(super) fn rearm(&mut self, vgic: &Vgic, intid: u16) -> bool {
        let Some(slot) = vgic.hw_ppi_slot(self.vcpu, intid) else {
            return false;
        };
        assert_eq!(self.hw[slot] as u16, intid);
        let armed = ListRegisters::rearm(self.hw[slot]);
        self.hw[slot] = armed.unwrap_or(self.hw[slot]);
        armed.is_some()
    }

    pub(super) fn wants_maintenance(&self) -> bool {
        let lrs = self.hw.iter().take(self.lrs.count());
        let ended = |lr: &u64| lr & (STATE | HARDWARE | EOI) == EOI;
        let hcr = self.lrs.hcr;
        lrs.clone().any(ended)
            || hcr & HCR_NPIE != 0 && !lrs.clone().any(|lr| lr & STATE == PENDING)
            || hcr & HCR_LRENPIE != 0 && hcr >> HCR_EOICOUNT_SHIFT != 0
    }

    /// Returns the INTIDs and states in the list registers, sorted.
    pub(super) fn resident(&self) -> Vec<(u16, u64)> {
        let valid = self.hw.iter().filter(|&lr| lr & STATE != 0);
        let mut all: Vec<_> = valid.map(|lr| (*lr as u16, *lr)).collect();
        all.sort_unstable();
        all
    }

    /// Reads `ICC_IAR`: acknowledges the best interrupt there is.
    pub(super) fn acknowledge(&mut self) -> Option<(u16, u8)> {
        let (mask, running) = (self.mask(), self.running());
        let vmcr = self.lrs.vmcr;
        let best = self.hw.iter_mut().filter(|lr| {
            let group = if **lr & GROUP1 != 0 {
                VMCR_ENG1
            } else {
                VMCR_ENG0
            };
            let priority = (**lr >> PRIORITY_SHIFT) as u8;
            **lr & STATE == PENDING && vmcr & group != 0 && priority < mask && priority < running
        });
        let lr = best.min_by_key(|lr| (**lr >> PRIORITY_SHIFT) as u8)?;
        *lr = *lr & !STATE | ACTIVE;
        let priority = (*lr >> PRIORITY_SHIFT) as u8;
        self.active.push(priority);
        Some((*lr as u16, priority))
    }

    /// Writes `ICC_EOIR`.
    pub(super) fn end(&mut self, intid: u16) {
        self.active.pop();
        if !self.eoi_mode1() {
            self.deactivate(intid);
        }
    }

    /// Writes `ICC_DIR`, which may trap.
    pub(super) fn deactivate_separately(&mut self, vgic: &mut Vgic, intid: u16) {
        if self.lrs.hcr & HCR_TDIR != 0 {
            self.sync(vgic);
            vgic.deactivate(self.vcpu, intid);
            self.enter(vgic);
        } else {
            self.deactivate(intid);
        }
    }

    fn deactivate(&mut self, intid: u16) {
        let mut lrs = self.hw.iter_mut();
        let found = lrs.find(|lr| **lr & ACTIVE != 0 && **lr as u16 == intid);
        let Some(lr) = found else {
            self.lrs.hcr += 1 << HCR_EOICOUNT_SHIFT;
            return;
        };
        *lr &= !ACTIVE;
        if *lr & HARDWARE != 0 {
            self.deactivated
                .push((*lr >> PHYSICAL_SHIFT & 0x3ff) as u16);
        }
    }
}

impl core::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Cpu")
            .field("vcpu", &self.vcpu)
            .field("hw", &self.hw)
            .field("hcr", &self.lrs.hcr)
            .finish()
    }
}
