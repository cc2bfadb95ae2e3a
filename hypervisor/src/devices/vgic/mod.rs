//! A guest's GICv3: distributor, redistributors, SGIs, and the list registers of its virtual CPUs.
//!
//! What it is: one security state (`GICD_CTLR.DS`), affinity routing always on, 64 to 288 SPIs, no LPIs, no ITS, no
//! message-based SPIs, up to 64 virtual CPUs. The CPU interface itself is the hardware's (`ICV_*`).
//!
//! # How the run loop uses it
//! Whoever calls has the VM to itself. Per virtual CPU:
//! - Anything that changes what a virtual CPU should see makes it *stale*. Before entering a guest: if
//!   [`Vgic::is_stale`], store the list registers in use, [`Vgic::sync`], [`Vgic::flush`], load them. If it is not,
//!   the list registers in the CPU are still right and nothing need be touched.
//! - `sync` before handling a guest's own access to the GIC or a trapped `ICC_DIR_EL1`, before
//!   [`Vgic::has_pending`] decides on a WFI, after a maintenance interrupt, and before the virtual CPU leaves its CPU.
//!   After `sync`, always `flush` before the next entry.
//! - [`Vgic::take_kicks`] names the virtual CPUs that must come to that point soon: interrupt those that run,
//!   wake those that sleep.
//! - [`Vgic::take_deactivations`] names the physical PPIs that are left for us to deactivate: before the virtual CPU is entered,
//!   leaves its CPU, or sleeps.
//!
//! # Invariants
//! - An interrupt that wants a list register and has none is in exactly one queue, its home's ([`Irq::home`]).
//! - A resident interrupt is in no queue, and in exactly one slot of its owner.

mod irq;
mod list;
mod queue;
mod registers;
mod residency;
#[cfg(test)]
mod tests;

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

pub use list::{ListRegisters, MAX_LIST_REGISTERS};

use super::{affinity, vcpu_with_affinity};
use irq::{Deactivate, Irq, NOWHERE};
use list::{VMCR_ENG0, VMCR_ENG1, VMCR_PMR_SHIFT};
use queue::{Bits, Queue};

/// The most virtual CPUs a VM may have: they are counted in the bits of a word.
pub const MAX_VCPUS: usize = 64;
/// The fewest SPIs a distributor may have.
pub const MIN_SPIS: usize = 64;
/// The most SPIs a distributor may have, as many as QEMU virt has.
pub const MAX_SPIS: usize = MAX_INTIDS - PRIVATE;

/// INTIDs below this belong to one virtual CPU: 16 SGIs, 16 PPIs.
const PRIVATE: usize = 32;
/// INTIDs below this are SGIs.
const SGIS: u16 = 16;
/// INTIDs there can be.
const MAX_INTIDS: usize = 320;

/// A VM's GIC cannot be made as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VgicError {
    /// The number of virtual CPUs is 0 or above [`MAX_VCPUS`].
    Vcpus(usize),
    /// The number of SPIs is not a multiple of 32 from [`MIN_SPIS`] to [`MAX_SPIS`].
    Spis(usize),
}

impl fmt::Display for VgicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vcpus(n) => write!(f, "a GIC for {n} vCPUs: take 1 to {MAX_VCPUS}"),
            Self::Spis(n) => write!(
                f,
                "a GIC with {n} SPIs: take a multiple of 32 from {MIN_SPIS} to {MAX_SPIS}"
            ),
        }
    }
}

impl core::error::Error for VgicError {}

/// A 64 KiB (distributor) or 128 KiB (redistributor) frame of registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VgicFrame {
    /// The distributor.
    Dist,
    /// The redistributor of this virtual CPU.
    Redist(usize),
}

/// The interrupt group an SGI is sent in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SgiGroup {
    /// By `ICC_SGI0R_EL1`.
    Group0,
    /// By `ICC_SGI1R_EL1`.
    Group1,
}

/// What one virtual CPU has of the GIC.
#[derive(Debug)]
struct Bank {
    irqs: [Irq; PRIVATE],
    queue: Queue,
    /// The INTID in each list register, `used` of them.
    slots: [u16; MAX_LIST_REGISTERS],
    used: u8,
    /// An active interrupt had to stay outside: its deactivation is counted in `ICH_HCR_EL2.EOIcount`.
    spilled: bool,
    /// `GICR_WAKER.ProcessorSleep`. Kept for the guest to read; like QEMU, we forward interrupts regardless.
    asleep: bool,
    /// `ICH_VMCR_EL2` as of the last sync.
    vmcr: u64,
    /// Physical PPIs to be deactivated by software.
    deactivations: u32,
}

impl Bank {
    fn new(vcpu: usize) -> Self {
        let home = vcpu as u8;
        let mut irqs = [Irq::new(home, false); PRIVATE];
        for sgi in irqs.iter_mut().take(usize::from(SGIS)) {
            *sgi = Irq::new(home, true);
        }
        Self {
            irqs,
            queue: Queue::default(),
            slots: [0; MAX_LIST_REGISTERS],
            used: 0,
            spilled: false,
            asleep: true,
            // Until the first sync, any priority and any group may end a WFI.
            vmcr: 0xff << VMCR_PMR_SHIFT | VMCR_ENG0 | VMCR_ENG1,
            deactivations: 0,
        }
    }

    /// Notes that the physical PPI `physical` is to be deactivated by software.
    fn owe(&mut self, physical: u16) {
        self.deactivations |= 1_u32.checked_shl(physical.into()).unwrap_or(0);
    }

    /// Says whether `irq` would be signalled to the virtual CPU, whatever its PSTATE and running priority.
    fn would_signal(&self, irq: &Irq, ctlr: u32) -> bool {
        let group = if irq.is_group1() {
            VMCR_ENG1
        } else {
            VMCR_ENG0
        };
        irq.is_deliverable(ctlr)
            && !irq.is_active()
            && self.vmcr & group != 0
            && u64::from(irq.priority()) < self.vmcr >> VMCR_PMR_SHIFT & 0xff
    }
}

/// The GIC of one VM.
#[derive(Debug)]
pub struct Vgic {
    /// `GICD_CTLR`: the two group enables.
    ctlr: u32,
    spis: Vec<Irq>,
    /// `GICD_IROUTER<n>`.
    routers: Vec<u64>,
    banks: Vec<Bank>,
    /// Virtual CPUs whose list registers are out of date.
    stale: u64,
    /// Those of them that must be told.
    kicks: u64,
}

impl Vgic {
    /// Makes a GIC in its reset state: everything disabled, all SPIs routed to virtual CPU 0.
    ///
    /// # Errors
    /// More virtual CPUs or SPIs than there can be, none, or SPIs that are not a multiple of 32.
    pub fn new(vcpus: usize, spis: usize) -> Result<Self, VgicError> {
        if vcpus == 0 || vcpus > MAX_VCPUS {
            return Err(VgicError::Vcpus(vcpus));
        }
        if !(MIN_SPIS..=MAX_SPIS).contains(&spis) || !spis.is_multiple_of(32) {
            return Err(VgicError::Spis(spis));
        }
        Ok(Self {
            ctlr: 0,
            spis: vec![Irq::new(0, false); spis],
            routers: vec![0; spis],
            banks: (0..vcpus).map(Bank::new).collect(),
            stale: u64::MAX,
            kicks: 0,
        })
    }

    /// Returns the number of virtual CPUs.
    pub fn vcpus(&self) -> usize {
        self.banks.len()
    }

    /// Says whether the list registers of `vcpu` are out of date: `sync` and `flush` before it is entered.
    pub const fn is_stale(&self, vcpu: usize) -> bool {
        vcpu < MAX_VCPUS && self.stale >> vcpu & 1 != 0
    }

    /// Returns and forgets the virtual CPUs (bit `n`: virtual CPU `n`) that have something new to see.
    pub const fn take_kicks(&mut self) -> u64 {
        core::mem::replace(&mut self.kicks, 0)
    }

    /// Returns and forgets the physical PPIs (bit `n`: INTID `n`) that have to be deactivated on the CPU of `vcpu`: before it is
    /// entered, leaves that CPU, or sleeps.
    pub fn take_deactivations(&mut self, vcpu: usize) -> u32 {
        self.banks
            .get_mut(vcpu)
            .map_or(0, |bank| core::mem::replace(&mut bank.deactivations, 0))
    }

    /// Moves the line of the SPI `intid` (32 and up).
    pub fn set_spi_level(&mut self, intid: u16, high: bool) {
        if usize::from(intid) >= PRIVATE {
            self.set_level(0, intid, high);
        }
    }

    /// Moves the line of the PPI `intid` (16 to 31) of `vcpu`.
    pub fn set_ppi_level(&mut self, vcpu: usize, intid: u16, high: bool) {
        if (SGIS..PRIVATE as u16).contains(&intid) {
            self.set_level(vcpu, intid, high);
        }
    }

    /// Says whether the line of the PPI `intid` of `vcpu` is high.
    pub fn is_ppi_high(&self, vcpu: usize, intid: u16) -> bool {
        let bank = self.banks.get(vcpu);
        bank.and_then(|bank| bank.irqs.get(usize::from(intid)))
            .is_some_and(Irq::is_line_high)
    }

    fn set_level(&mut self, vcpu: usize, intid: u16, high: bool) {
        let ctlr = self.ctlr;
        let Some(irq) = self.irq_mut(vcpu, intid) else {
            return;
        };
        if !irq.set_line(high) {
            return;
        }
        if irq.is_resident() {
            let owner = irq.owner();
            // A line that falls under a guest's feet can wait for its next exit; a new edge cannot.
            self.mark(owner, high);
        } else {
            let (before, home) = irq.requeue(ctlr);
            self.move_queues(intid, before, home);
        }
    }

    /// Makes the PPI `intid` of `vcpu` pending for the physical interrupt `physical`, which the caller acknowledged
    /// and did not deactivate: the guest's deactivation does that, in hardware.
    pub fn raise_hw_ppi(&mut self, vcpu: usize, intid: u16, physical: u16) {
        if (SGIS..PRIVATE as u16).contains(&intid) {
            self.change(vcpu, intid, |irq| {
                irq.latch_hardware(physical);
                None
            });
        }
    }

    /// Takes back a [`raise_hw_ppi`](Self::raise_hw_ppi) that the guest has not acknowledged, as its source is quiet
    /// again. The physical interrupt is then among the [deactivations](Self::take_deactivations).
    pub fn cancel_hw_ppi(&mut self, vcpu: usize, intid: u16) {
        if self.is_hw_ppi_held(vcpu, intid) {
            self.change(vcpu, intid, Irq::unlatch);
        }
    }

    /// Says whether the guest has a physical interrupt in its hands: it stays active on the CPU that runs `vcpu`, and
    /// must be made so on the next one.
    pub fn is_hw_ppi_held(&self, vcpu: usize, intid: u16) -> bool {
        usize::from(intid) < PRIVATE && self.irq(vcpu, intid).is_some_and(Irq::is_hardware)
    }

    /// Sends the SGI of a write to `ICC_SGI1R_EL1` by virtual CPU `from`.
    pub fn send_sgi(&mut self, from: usize, icc_sgi1r: u64) {
        self.send_sgi_in_group(from, icc_sgi1r, SgiGroup::Group1);
    }

    /// Sends the SGI of a write to `ICC_SGI1R_EL1` or `ICC_SGI0R_EL1` by virtual CPU `from` (IHI 0069, 12.2.17).
    ///
    /// A target that has the SGI configured in the other group does not get it. Affinities nobody has are ignored.
    pub fn send_sgi_in_group(&mut self, from: usize, sgir: u64, group: SgiGroup) {
        let intid = (sgir >> 24 & 0xf) as u16;
        if sgir >> 40 & 1 != 0 {
            for vcpu in 0..self.banks.len() {
                if vcpu != from {
                    self.signal_sgi(vcpu, intid, group);
                }
            }
            return;
        }
        let cluster =
            (sgir >> 48 & 0xff) << 32 | (sgir >> 32 & 0xff) << 16 | (sgir >> 16 & 0xff) << 8;
        let first = (sgir >> 44 & 0xf) * 16;
        for bit in Bits(sgir & 0xffff) {
            let target = cluster | (first + u64::from(bit));
            if let Some(vcpu) = vcpu_with_affinity(target, self.banks.len()) {
                self.signal_sgi(vcpu, intid, group);
            }
        }
    }

    fn signal_sgi(&mut self, vcpu: usize, intid: u16, group: SgiGroup) {
        self.change(vcpu, intid, |irq| {
            if irq.is_group1() == (group == SgiGroup::Group1) {
                irq.latch();
            }
            None
        });
    }

    /// Deactivates an interrupt by a trapped write to `ICC_DIR_EL1`; call [`sync`](Self::sync) first.
    pub fn deactivate(&mut self, vcpu: usize, intid: u16) {
        if self.irq(vcpu, intid).is_some_and(Irq::is_active) {
            self.change(vcpu, intid, |irq| irq.set_active(false));
        }
    }

    /// Says whether `vcpu` has an interrupt that ends a WFI: one its CPU interface would signal if PSTATE let it.
    ///
    /// The priority mask and group enables are those of the last [`sync`](Self::sync).
    pub fn has_pending(&self, vcpu: usize) -> bool {
        let Some(bank) = self.banks.get(vcpu) else {
            return false;
        };
        let resident = bank.slots.iter().copied().take(usize::from(bank.used));
        bank.queue.iter().chain(resident).any(|intid| {
            self.irq(vcpu, intid)
                .is_some_and(|irq| bank.would_signal(irq, self.ctlr))
        })
    }

    fn irq(&self, vcpu: usize, intid: u16) -> Option<&Irq> {
        let intid = usize::from(intid);
        match intid.checked_sub(PRIVATE) {
            Some(spi) => self.spis.get(spi),
            None => self.banks.get(vcpu)?.irqs.get(intid),
        }
    }

    fn irq_mut(&mut self, vcpu: usize, intid: u16) -> Option<&mut Irq> {
        let intid = usize::from(intid);
        match intid.checked_sub(PRIVATE) {
            Some(spi) => self.spis.get_mut(spi),
            None => self.banks.get_mut(vcpu)?.irqs.get_mut(intid),
        }
    }

    /// Changes an interrupt and draws the consequences: queues, stale list registers, physical deactivation.
    fn change(&mut self, vcpu: usize, intid: u16, change: impl FnOnce(&mut Irq) -> Deactivate) {
        let ctlr = self.ctlr;
        let Some(irq) = self.irq_mut(vcpu, intid) else {
            return;
        };
        let deactivate = change(irq);
        if irq.is_resident() {
            let owner = irq.owner();
            self.mark(owner, true);
        } else {
            let (before, home) = irq.requeue(ctlr);
            self.move_queues(intid, before, home);
        }
        if let Some(physical) = deactivate
            && let Some(bank) = self.banks.get_mut(vcpu)
        {
            bank.owe(physical);
            // Only its own CPU can do it.
            self.mark(vcpu as u8, true);
        }
    }

    /// Puts an interrupt into the queue where it belongs, if any, and out of any other.
    fn move_queues(&mut self, intid: u16, before: u8, home: u8) {
        if before != home
            && let Some(bank) = self.banks.get_mut(usize::from(before))
        {
            bank.queue.remove(intid);
        }
        if let Some(bank) = self.banks.get_mut(usize::from(home)) {
            bank.queue.insert(intid);
            // Even if it waited there before: it may have become the most urgent one.
            self.stale |= 1 << home;
            self.kicks |= 1 << home;
        }
    }

    /// Marks the list registers of a virtual CPU as out of date, and has it told if that must not wait.
    fn mark(&mut self, vcpu: u8, kick: bool) {
        if usize::from(vcpu) < self.banks.len() {
            self.stale |= 1 << vcpu;
            self.kicks |= u64::from(kick) << vcpu;
        }
    }

    /// Draws the consequences of a new `GICD_CTLR` for every interrupt.
    fn refresh_all(&mut self) {
        for vcpu in 0..self.banks.len() {
            for intid in 0..PRIVATE as u16 {
                self.change(vcpu, intid, |_| None);
            }
        }
        for spi in 0..self.spis.len() {
            self.change(0, (PRIVATE + spi) as u16, |_| None);
        }
    }
}
