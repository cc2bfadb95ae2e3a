//! Stores under way: translated already, not yet in memory.

use super::tlb::Tlbi;
use super::{BrokenRule, SimGuest, SimMachine};
use crate::addr::{Frame, Ipa, PhysAddr};
use crate::descriptor::Vmid;

/// What a store writes.
#[derive(Clone, Copy)]
pub(super) enum Value {
    Data(u8),
    Tag(u8),
}

/// How far the TLB entry is gone that a store was translated by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Doom {
    Live,
    Invalidated,
    /// With the erratum: a `DSB` has come and gone.
    Escaped,
    Repeated,
}

/// A guest's store that has not landed.
pub(super) struct Store {
    cpu: usize,
    vmid: Vmid,
    page: Ipa,
    pa: PhysAddr,
    value: Value,
    doom: Doom,
}

impl SimMachine {
    /// Lets a guest's next store wait until something makes it land: a `DSB` after the TLBI of its
    /// page, an access of the same CPU or guest, [`land_stores`](Self::land_stores), the adversary.
    pub fn hold_next_store(&mut self) {
        self.hold_store = true;
    }

    /// All stores under way land.
    pub fn land_stores(&mut self) {
        self.land(|_| true);
    }

    pub(super) fn begin_store(
        &mut self,
        guest: SimGuest,
        ipa: Ipa,
        (pa, value): (PhysAddr, Value),
    ) {
        self.stores.push(Store {
            cpu: self.on,
            vmid: guest.vmid,
            page: ipa.page(),
            pa,
            value,
            doom: Doom::Live,
        });
        let held = core::mem::take(&mut self.hold_store) || self.roll(4) == 1;
        if !held {
            self.land_number(self.stores.len() - 1);
        }
    }

    pub(super) fn land_number(&mut self, number: usize) {
        let Store { pa, value, .. } = self.stores.remove(number);
        match value {
            Value::Data(value) => self.set_byte(pa, value),
            Value::Tag(tag) => self.set_tag(pa, tag),
        }
    }

    fn land(&mut self, which: impl Fn(&Store) -> bool) {
        while let Some(number) = self.stores.iter().position(&which) {
            self.land_number(number);
        }
    }

    /// A guest sees its own stores.
    pub(super) fn land_stores_of_guest(&mut self, guest: SimGuest, ipa: Ipa) {
        self.land(|store| (store.vmid, store.page) == (guest.vmid, ipa.page()));
    }

    /// EL2 sees the stores of its own CPU to `frame`.
    pub(super) fn land_own_stores(&mut self, frame: Frame) {
        let on = self.on;
        self.land(|store| Frame::containing(store.pa) == frame && store.cpu == on);
    }

    /// EL2 sees the stores of its own CPU to `frame`, and must have waited for those of others.
    pub(super) fn land_stores_of_this_cpu(&mut self, frame: Frame) {
        self.land_own_stores(frame);
        let hit = move |store: &Store| Frame::containing(store.pa) == frame;
        if self.stores.iter().any(hit) {
            self.broken.push(BrokenRule::FrameChangedUnderStore(frame));
        }
    }

    pub(super) fn doom_stores(&mut self, vmid: Vmid, tlbi: Tlbi, reached: impl Fn(usize) -> bool) {
        for store in self.stores.iter_mut().filter(|store| reached(store.cpu)) {
            match tlbi {
                Tlbi::Stage1 | Tlbi::All if store.vmid == vmid => {
                    store.doom = store.doom.max(Doom::Invalidated);
                }
                Tlbi::Repeat if store.doom == Doom::Escaped => store.doom = Doom::Repeated,
                // The store may have been translated by a combined entry, which TLBI IPAS2E1 leaves.
                Tlbi::Ipa(_) | Tlbi::Stage1 | Tlbi::All | Tlbi::Repeat => {}
            }
        }
    }

    /// What a `DSB` waits for: stores whose TLB entries are gone. With the erratum those slip
    /// through, unless the TLBI is repeated after a first `DSB`.
    pub(super) fn wait_for_stores(&mut self) {
        let least = match self.erratum {
            true => Doom::Repeated,
            false => Doom::Invalidated,
        };
        self.land(|store| store.doom >= least);
        for store in &mut self.stores {
            if store.doom == Doom::Invalidated {
                store.doom = Doom::Escaped;
            }
        }
    }
}
