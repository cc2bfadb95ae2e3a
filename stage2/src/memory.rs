//! The machine's memory and that of all its VMs: the one thing that has to be locked for guest
//! memory. Lock rank: memory.
//!
//! A tag fault of one VM can move pages of another, so they are one. Whoever calls holds the lock,
//! and looks at everything anew: what a vCPU faulted on may have changed while it waited.

use alloc::vec::Vec;

use crate::account::{MachineAccount, VmAccount};
use crate::addr::{Frame, Ipa};
use crate::frames::VmId;
use crate::guest::{Access, GuestMemory, GuestSpec, MemError, TagOutcome};
use crate::host::{HostMemory, Layout, LayoutError, Policy};
use crate::ports::Hardware;

/// The machine's memory, and the memory of each VM.
pub struct Memory {
    host: HostMemory,
    guests: Vec<Option<GuestMemory>>,
}

impl Memory {
    /// Takes over the machine's memory. Nothing of it is touched.
    pub fn new(layout: Layout) -> Result<Self, LayoutError> {
        Ok(Self {
            host: HostMemory::new(layout)?,
            guests: Vec::new(),
        })
    }

    /// The machine's own part.
    pub const fn host(&self) -> &HostMemory {
        &self.host
    }

    /// The policy of the machine.
    pub const fn policy(&self) -> Policy {
        self.host.policy()
    }

    /// The memory of a VM, while it has any.
    pub fn guest(&self, vm: VmId) -> Option<&GuestMemory> {
        self.guests.get(usize::from(vm.index()))?.as_ref()
    }

    /// The memory of all VMs that have any.
    pub fn guests(&self) -> impl Iterator<Item = &GuestMemory> {
        self.guests.iter().flatten()
    }

    /// Makes the memory of a new VM, nothing of it mapped.
    ///
    /// # Errors
    /// There is no room for it, or the VM has memory already; nothing has changed.
    pub fn create(&mut self, hw: &mut impl Hardware, spec: GuestSpec) -> Result<(), MemError> {
        let index = usize::from(spec.vm.index());
        if self.guests.len() <= index {
            let more = index + 1 - self.guests.len();
            self.guests
                .try_reserve(more)
                .map_err(|_| MemError::NoMemory)?;
            self.guests.resize_with(index + 1, || None);
        }
        let slot = self.guests.get_mut(index).filter(|slot| slot.is_none());
        let slot = slot.ok_or(MemError::VmExists(spec.vm))?;
        *slot = Some(GuestMemory::new(&mut self.host, hw, spec)?);
        Ok(())
    }

    /// Touches a page in the guest's name, as a loader does: mapped if it was not.
    ///
    /// # Errors
    /// As for [`access_fault`](Self::access_fault).
    pub fn populate(
        &mut self,
        hw: &mut impl Hardware,
        vm: VmId,
        ipa: Ipa,
    ) -> Result<Frame, MemError> {
        let (host, guest) = self.parts(vm)?;
        guest.populate(host, hw, ipa)
    }

    /// Handles a stage-2 translation fault of a VM.
    ///
    /// # Errors
    /// The page cannot be provided; nothing has changed.
    pub fn access_fault(
        &mut self,
        hw: &mut impl Hardware,
        vm: VmId,
        ipa: Ipa,
    ) -> Result<Access, MemError> {
        let (host, guest) = self.parts(vm)?;
        guest.access_fault(host, hw, ipa)
    }

    /// Handles a tag access fault of a VM.
    ///
    /// # Errors
    /// The page cannot be given tag storage; nothing has changed.
    pub fn tag_fault(
        &mut self,
        hw: &mut impl Hardware,
        vm: VmId,
        ipa: Ipa,
    ) -> Result<TagOutcome, MemError> {
        let (host, guest) = self.parts(vm)?;
        guest.tag_fault(host, hw, ipa)
    }

    /// Takes all RAM away from a guest, as a reset does: each page is zero, and untouched,
    /// afterwards.
    ///
    /// # Errors
    /// A guarantee was lost before; all that can be released has been.
    pub fn reset(&mut self, hw: &mut impl Hardware, vm: VmId) -> Result<(), MemError> {
        let (host, guest) = self.parts(vm)?;
        guest.reset(host, hw)
    }

    /// Gives back all that a VM has. Its VMID may be used again. A VM without memory is no error.
    ///
    /// # Errors
    /// A guarantee was lost before; all that can be released has been.
    pub fn destroy(&mut self, hw: &mut impl Hardware, vm: VmId) -> Result<(), MemError> {
        let slot = self.guests.get_mut(usize::from(vm.index()));
        match slot.and_then(Option::take) {
            Some(guest) => guest.destroy(&mut self.host, hw),
            None => Ok(()),
        }
    }

    /// The figures of a VM now; `None` if it has no memory.
    pub fn vm_account(&self, vm: VmId) -> Option<VmAccount> {
        Some(self.guest(vm)?.account())
    }

    /// The machine's figures now.
    pub fn account(&self) -> MachineAccount {
        self.host.account()
    }

    /// The figures of the last moment at which the most tag storage was reserved.
    pub fn highest(&self) -> MachineAccount {
        self.host.highest()
    }

    /// Makes this moment the one that [`highest`](Self::highest) tells.
    pub fn snapshot_now(&mut self) {
        self.host.snapshot_now();
    }

    fn parts(&mut self, vm: VmId) -> Result<(&mut HostMemory, &mut GuestMemory), MemError> {
        let guest = self.guests.get_mut(usize::from(vm.index()));
        let guest = guest
            .and_then(Option::as_mut)
            .ok_or(MemError::NoSuchVm(vm))?;
        Ok((&mut self.host, guest))
    }
}
