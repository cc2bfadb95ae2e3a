//! One interrupt: what the architecture keeps about it, and where it is at the moment.
//!
//! The state machine of IHI 0069, 4.1 (inactive, pending, active, active and pending), with one twist: while the
//! interrupt sits in a list register, the CPU moves that copy without telling anybody. So the pending latch is *moved*
//! into the list register (`HELD`), and [`Irq::fold`] brings back what is left of it. A second edge that arrives
//! meanwhile sets the latch here and is not lost.

use super::list;

/// No virtual CPU: not queued anywhere, or routed to an affinity that nobody has.
pub(super) const NOWHERE: u8 = u8::MAX;

/// Set-enable.
const ENABLED: u16 = 1 << 0;
/// Group 1 (else group 0).
const GROUP1: u16 = 1 << 1;
/// Edge-triggered (else level-sensitive).
const EDGE: u16 = 1 << 2;
/// The device's line is high.
const LINE: u16 = 1 << 3;
/// Made pending by an edge, an SGI, `ISPENDR` or a physical interrupt, and not acknowledged since.
const LATCH: u16 = 1 << 4;
/// The latch was moved into the list register.
const HELD: u16 = 1 << 5;
/// Active; while resident, as of the moment it was placed.
const ACTIVE: u16 = 1 << 6;
/// Resident: in a list register of virtual CPU `owner`.
const IN_LR: u16 = 1 << 7;
/// `ICACTIVER` came while the interrupt was resident.
const DROP_ACTIVE: u16 = 1 << 8;
/// `ISACTIVER` came while the interrupt was resident.
const TAKE_ACTIVE: u16 = 1 << 9;
/// Backed by a physical interrupt, which is active until the guest deactivates this one.
const HARDWARE: u16 = 1 << 10;
/// Active because the guest acknowledged it, not by `ISACTIVER`.
const ACKNOWLEDGED: u16 = 1 << 11;
/// The physical interrupt came again while this one was resident: the guest had deactivated both.
const AGAIN: u16 = 1 << 12;

/// The state of one interrupt. Eight bytes, as an SMP guest has hundreds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Irq {
    flags: u16,
    /// The INTID of the physical interrupt, if `HARDWARE`.
    physical: u16,
    priority: u8,
    /// Where the interrupt goes when it becomes pending.
    target: u8,
    /// Who has it active or in a list register.
    owner: u8,
    /// In whose queue it waits for a list register.
    queued: u8,
}

/// What a write to the physical GIC has to deactivate, if anything: the INTID there.
pub(super) type Deactivate = Option<u16>;

impl Irq {
    /// Makes a disabled group 1 interrupt of the highest priority that goes to `target`.
    ///
    /// Group 1 out of reset, as under KVM: a guest that never writes `IGROUPR` then gets IRQs, not FIQs.
    pub(super) const fn new(target: u8, edge: bool) -> Self {
        Self {
            flags: GROUP1 | if edge { EDGE } else { 0 },
            physical: 0,
            priority: 0,
            target,
            owner: target,
            queued: NOWHERE,
        }
    }

    const fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    const fn set(&mut self, flag: u16, on: bool) {
        if on {
            self.flags |= flag;
        } else {
            self.flags &= !flag;
        }
    }

    pub(super) const fn is_enabled(&self) -> bool {
        self.has(ENABLED)
    }

    pub(super) const fn is_active(&self) -> bool {
        self.has(ACTIVE)
    }

    /// Says whether the guest acknowledged the interrupt and will end it.
    pub(super) const fn is_acknowledged(&self) -> bool {
        self.has(ACKNOWLEDGED)
    }

    pub(super) const fn is_group1(&self) -> bool {
        self.has(GROUP1)
    }

    pub(super) const fn is_edge(&self) -> bool {
        self.has(EDGE)
    }

    pub(super) const fn is_resident(&self) -> bool {
        self.has(IN_LR)
    }

    /// Says whether the interrupt is pending: by its latch, wherever that is, or by a high line.
    pub(super) const fn is_pending(&self) -> bool {
        self.has(LATCH | HELD) || self.flags & (LINE | EDGE) == LINE
    }

    /// Says whether a physical interrupt stays active until the guest deactivates this one.
    pub(super) const fn is_hardware(&self) -> bool {
        self.has(HARDWARE)
    }

    /// Says whether the interrupt was placed pending, backed by a physical one, and not touched since.
    pub(super) const fn is_held_hardware(&self) -> bool {
        const ALL: u16 = IN_LR | HELD | HARDWARE;
        self.flags & (ALL | LATCH | ACTIVE) == ALL
    }

    pub(super) const fn priority(&self) -> u8 {
        self.priority
    }

    pub(super) const fn owner(&self) -> u8 {
        self.owner
    }

    /// Returns the virtual CPU that has to deal with the interrupt next.
    pub(super) const fn home(&self) -> u8 {
        if self.has(ACTIVE | IN_LR) {
            self.owner
        } else {
            self.target
        }
    }

    /// Says whether the interrupt needs a list register: active, or deliverable with these group enables.
    ///
    /// `ctlr`: the enable bits of `GICD_CTLR`, bit 0 for group 0, bit 1 for group 1.
    pub(super) const fn wants_list_register(&self, ctlr: u32) -> bool {
        !self.has(IN_LR) && (self.has(ACTIVE) || self.is_deliverable(ctlr))
    }

    /// Says whether the distributor forwards the interrupt: pending, enabled, and its group enabled.
    pub(super) const fn is_deliverable(&self, ctlr: u32) -> bool {
        self.has(ENABLED) && self.is_pending() && ctlr >> (self.has(GROUP1) as u32) & 1 != 0
    }

    /// Moves the interrupt, which is not resident, to the queue of its home if it wants a list register, else to none.
    /// Returns the queue it was in and the one where it belongs.
    pub(super) const fn requeue(&mut self, ctlr: u32) -> (u8, u8) {
        let before = self.queued;
        self.queued = if self.wants_list_register(ctlr) {
            self.home()
        } else {
            NOWHERE
        };
        (before, self.queued)
    }

    pub(super) const fn enable(&mut self, on: bool) {
        self.set(ENABLED, on);
    }

    pub(super) const fn set_group1(&mut self, on: bool) {
        self.set(GROUP1, on);
    }

    pub(super) const fn set_edge(&mut self, on: bool) {
        self.set(EDGE, on);
    }

    /// Sets the priority, as far as it is implemented (five bits).
    pub(super) const fn set_priority(&mut self, priority: u8) {
        self.priority = priority & list::PRIORITY_MASK;
    }

    /// Sets where the interrupt goes from now on; one that is active stays with its owner.
    pub(super) const fn route(&mut self, target: u8) {
        self.target = target;
    }

    /// Moves the device's line. Returns whether anything changed.
    pub(super) const fn set_line(&mut self, high: bool) -> bool {
        if self.has(LINE) == high {
            return false;
        }
        self.set(LINE, high);
        if high && self.has(EDGE) {
            self.set(LATCH, true);
        }
        true
    }

    /// Says whether the device's line is high.
    pub(super) const fn is_line_high(&self) -> bool {
        self.has(LINE)
    }

    /// Makes the interrupt pending.
    pub(super) const fn latch(&mut self) {
        self.set(LATCH, true);
    }

    /// Makes the interrupt pending for a physical one that has been acknowledged and not deactivated.
    pub(super) const fn latch_hardware(&mut self, physical: u16) {
        self.physical = physical;
        self.set(LATCH | HARDWARE, true);
        self.set(AGAIN, self.has(IN_LR));
    }

    /// Clears the pending latch; a high line keeps a level-sensitive interrupt pending.
    pub(super) const fn unlatch(&mut self) -> Deactivate {
        self.set(LATCH | HELD, false);
        self.release_hardware()
    }

    /// Sets or clears the active state by software.
    pub(super) const fn set_active(&mut self, on: bool) -> Deactivate {
        if self.has(IN_LR) {
            self.set(TAKE_ACTIVE, on);
            self.set(DROP_ACTIVE, !on);
        } else if on && !self.has(ACTIVE) {
            self.owner = self.target;
        }
        if !on {
            self.set(ACKNOWLEDGED, false);
        }
        self.set(ACTIVE, on);
        self.release_hardware()
    }

    /// Ends the bond with the physical interrupt once this one is neither pending nor active; says that software owes
    /// the deactivation. The bond of a resident interrupt is judged when it is folded.
    const fn release_hardware(&mut self) -> Deactivate {
        if !self.has(HARDWARE) || self.has(LATCH | ACTIVE | IN_LR) {
            return None;
        }
        self.set(HARDWARE, false);
        Some(self.physical)
    }

    /// Takes the interrupt out of a list register that now reads `lr`.
    pub(super) const fn fold(&mut self, lr: u64) -> Deactivate {
        const RESIDENT: u16 =
            IN_LR | HELD | ACTIVE | DROP_ACTIVE | TAKE_ACTIVE | ACKNOWLEDGED | AGAIN;
        let was = self.flags;
        let mut now = was & !RESIDENT;
        if lr & list::PENDING != 0 && was & HELD != 0 {
            now |= LATCH;
        }
        if lr & list::ACTIVE != 0 && was & DROP_ACTIVE == 0 || was & TAKE_ACTIVE != 0 {
            now |= ACTIVE;
            if was & (ACTIVE | ACKNOWLEDGED) != ACTIVE {
                now |= ACKNOWLEDGED;
            }
        }
        if lr & (list::HARDWARE | list::STATE) == list::HARDWARE && was & AGAIN == 0 {
            now &= !HARDWARE;
        }
        self.flags = now;
        self.release_hardware()
    }

    /// Moves the interrupt into a list register of `vcpu` and returns that register's value.
    ///
    /// A level-sensitive interrupt is never placed active *and* pending: it asks for a maintenance interrupt when the
    /// guest deactivates it, and its line is looked at again then. Once the line is low, nothing is asked for. A
    /// physical interrupt's list register cannot be active and pending either (IHI 0069, 12.4.6); if software latched
    /// it again, the list register is an ordinary one and we deactivate the physical interrupt at the end. One that is
    /// active and disabled is not placed pending: the CPU would signal it.
    pub(super) const fn place(&mut self, vcpu: u8, intid: u16, ctlr: u32) -> u64 {
        let pending = self.is_pending();
        let active = self.has(ACTIVE);
        let hardware = self.has(HARDWARE);
        let level = !hardware && !self.has(EDGE);
        let mut lr = intid as u64 | (self.priority as u64) << list::PRIORITY_SHIFT;
        if active {
            lr |= list::ACTIVE;
        }
        if !active || self.is_deliverable(ctlr) && !level {
            lr |= list::PENDING;
            if self.has(LATCH) {
                self.flags = self.flags & !LATCH | HELD;
            }
        }
        if self.has(GROUP1) {
            lr |= list::GROUP1;
        }
        if hardware && !(active && pending) {
            lr |= list::HARDWARE | (self.physical as u64) << list::PHYSICAL_SHIFT;
        } else if pending && (level || hardware) {
            lr |= list::EOI;
        }
        self.flags |= IN_LR;
        self.owner = vcpu;
        self.queued = NOWHERE;
        lr
    }
}
