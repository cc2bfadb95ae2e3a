//! The machine's memory and that of all its VMs: the one thing that has to be locked for guest
//! memory. Lock rank: memory.
//!
//! A tag fault of one VM can move pages of another, so they are one, behind one lock that serves
//! whoever waits in order. Whoever calls holds it, and each call looks at everything anew: what a
//! vCPU faulted on may have changed while it waited. So a fault never loses a race once it is
//! served, and there is no order of locks in which two faults could wait for each other.

use alloc::vec::Vec;
use core::ops::Range;

use crate::account::{MachineAccount, VmAccount};
use crate::addr::{Frame, Ipa};
use crate::block::BlockState;
use crate::descriptor::MemAttr;
use crate::frames::VmId;
use crate::guest::{
    Access, Gap, GuestMemory, GuestSpec, IMAGES, Image, MemError, TagOutcome, TagUse, check_ram,
};
use crate::host::{HostMemory, Layout, LayoutError, Policy};
use crate::invariants::Violation;
use crate::lend::Holding;
use crate::pieces::Page;
use crate::placement::{Choice, Target, Wish};
use crate::pool::{BlockId, TagHold, Tenant};
use crate::ports::Hardware;
use crate::tables::Position;

/// One page on its way out of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Eviction {
    pub(crate) tenant: Tenant,
    pub(crate) from: Frame,
    pub(crate) to: Frame,
}

/// The machine's memory, and the memory of each VM.
pub struct Memory {
    pub(crate) host: HostMemory,
    guests: Vec<Option<GuestMemory>>,
    /// Pages that were evicted so far.
    pub(crate) evicted: u64,
    /// Room for the largest block's: an eviction must not need memory half way.
    pub(crate) evictions: Vec<Eviction>,
}

impl Memory {
    /// Takes over the machine's memory. Nothing of it is touched.
    pub fn new(layout: Layout) -> Result<Self, LayoutError> {
        let host = HostMemory::new(layout)?;
        let mut evictions = Vec::new();
        if host.lends {
            let most = host.blocks.largest_block() as usize;
            evictions
                .try_reserve_exact(most)
                .map_err(|_| LayoutError::NoHeap)?;
        }
        Ok(Self {
            host,
            guests: Vec::new(),
            evicted: 0,
            evictions,
        })
    }

    /// The machine's own part.
    pub const fn host(&self) -> &HostMemory {
        &self.host
    }

    /// The machine's own part, for tests that take its memory away.
    #[cfg(any(test, feature = "fakes"))]
    pub const fn host_mut(&mut self) -> &mut HostMemory {
        &mut self.host
    }

    /// The policy of the machine.
    pub const fn policy(&self) -> Policy {
        self.host.policy()
    }

    /// Lets a VM go from lazy to eager, for tests: it does so itself if it tags all that it touches.
    #[cfg(any(test, feature = "fakes"))]
    pub fn switch_to_eager(&mut self, vm: VmId) {
        if let Ok((_, guest)) = self.parts(vm) {
            guest.switch();
        }
    }

    /// How many pages were moved out of tag storage for tags so far.
    pub const fn evicted(&self) -> u64 {
        self.evicted
    }

    /// The memory of a VM, while it has any.
    pub fn guest(&self, vm: VmId) -> Option<&GuestMemory> {
        self.guests.get(usize::from(vm.index()))?.as_ref()
    }

    /// The memory of all VMs that have any.
    pub fn guests(&self) -> impl Iterator<Item = &GuestMemory> {
        self.guests.iter().flatten()
    }

    /// Makes the memory of a new VM, nothing of it mapped, if there is enough for what it and all
    /// others are promised.
    ///
    /// # Errors
    /// There is no room for it, or the VM has memory already; nothing has changed.
    pub fn create(&mut self, hw: &mut impl Hardware, spec: GuestSpec) -> Result<(), MemError> {
        check_ram(&spec)?;
        if (spec.policy == Policy::Static) != (self.host.policy() == Policy::Static) {
            return Err(MemError::StaticMismatch);
        }
        let index = usize::from(spec.vm.index());
        let more = (index + 1).saturating_sub(self.guests.len());
        let room = self.guests.try_reserve(more);
        let room = room.and(self.host.holdings.try_reserve(more));
        room.map_err(|_| MemError::NoMemory)?;
        let count = self.guests.len() + more;
        self.guests.resize_with(count, || None);
        self.host.holdings.resize_with(count, || Holding::NONE);
        let slot = self.guests.get_mut(index).filter(|slot| slot.is_none());
        let slot = slot.ok_or(MemError::VmExists(spec.vm))?;
        if let Some(holding) = self.host.holdings.get_mut(index) {
            *holding = Holding::new(self.host.lends && TagUse::of(&spec) != TagUse::Never);
        }
        let admitted = self.host.admit(spec.vm, self.host.claim(&spec));
        match admitted.and_then(|()| GuestMemory::new(&mut self.host, hw, spec)) {
            Ok(guest) => *slot = Some(guest),
            Err(cause) => {
                self.host.dismiss(spec.vm);
                return Err(cause);
            }
        }
        Ok(())
    }

    /// Gives a VM another budget of tag storage, as if it had been made with that.
    ///
    /// # Errors
    /// There is not enough for what all VMs are promised then, or more is reserved for the VM already,
    /// or it has no tags; nothing has changed.
    pub fn set_budget(&mut self, vm: VmId, bytes: u64) -> Result<(), MemError> {
        let (host, guest) = self.parts(vm)?;
        let spec = GuestSpec {
            tag_budget: bytes,
            ..*guest.spec()
        };
        if TagUse::of(&spec) == TagUse::Never {
            return Err(MemError::NotMte);
        }
        let budget = host.budget(&spec);
        if budget < guest.reserved {
            return Err(MemError::InUse {
                reserved: guest.reserved,
            });
        }
        let claim = host.holding(vm).renewed(host.claim(&spec), guest.ram.lent);
        host.admit(vm, claim)?;
        guest.set_spec(spec, budget);
        Ok(())
    }

    /// Says what a VM finds in its RAM at its first access, where that is not zero: now, and after
    /// each reset. Pages that it has touched stay as they are.
    ///
    /// # Errors
    /// Some of it is not RAM of the VM; nothing has changed.
    pub fn set_images(&mut self, vm: VmId, images: [Image; IMAGES]) -> Result<(), MemError> {
        let (_, guest) = self.parts(vm)?;
        guest.set_images(images)
    }

    /// Touches a page in the guest's name, as a loader does: mapped if it was not. Counts as an
    /// access.
    ///
    /// # Errors
    /// As for [`access_fault`](Self::access_fault).
    pub fn populate(
        &mut self,
        hw: &mut impl Hardware,
        vm: VmId,
        ipa: Ipa,
    ) -> Result<Frame, MemError> {
        match self.access_fault(hw, vm, ipa, u64::MAX)? {
            Access::Mapped(frame) => Ok(frame),
            Access::Spurious | Access::Wait => {
                let guest = self.guest(vm).ok_or(MemError::NoSuchVm(vm))?;
                guest.translate(hw, ipa).ok_or(MemError::NotRam(ipa))
            }
        }
    }

    /// Handles a stage-2 translation fault of a VM, which may evict `leave` pages.
    ///
    /// # Errors
    /// The page cannot be provided; nothing has changed.
    pub fn access_fault(
        &mut self,
        hw: &mut impl Hardware,
        vm: VmId,
        ipa: Ipa,
        leave: u64,
    ) -> Result<Access, MemError> {
        let (_, guest) = self.parts(vm)?;
        let page = guest.ram.page(ipa)?;
        let access = match self.touch(hw, vm, page, leave) {
            // It needs tag storage for its tags alone, however much it tags.
            Ok(Access::Wait) | Err(MemError::OverBudget { .. } | MemError::NoMemory)
                if self.parts(vm)?.1.counts.switched_to_eager =>
            {
                let (_, guest) = self.parts(vm)?;
                let position = guest.tables.walk(hw, ipa)?;
                return self.touch_without_tags(hw, vm, page, position);
            }
            access => access?,
        };
        match access {
            Access::Mapped(_) => {
                let (_, guest) = self.parts(vm)?;
                if let Some(neighbours) = guest.neighbours(page) {
                    self.each(hw, vm, neighbours, Self::touch)?;
                }
            }
            Access::Wait => self.parts(vm)?.1.counts.throttled += 1,
            Access::Spurious => {}
        }
        Ok(access)
    }

    /// Does for the neighbours of a page, where it has any, what was done for the page, as far as
    /// that takes nothing from anybody: without evictions, and until there is no room.
    #[cold]
    fn each<H: Hardware, T>(
        &mut self,
        hw: &mut H,
        vm: VmId,
        neighbours: Range<u32>,
        fault: impl Fn(&mut Self, &mut H, VmId, Page, u64) -> Result<T, MemError>,
    ) -> Result<(), MemError> {
        for page in neighbours.map(Page) {
            let (_, guest) = self.parts(vm)?;
            if guest.ram.page(guest.ram.ipa(page)).is_err() {
                continue;
            }
            match fault(self, hw, vm, page, 0) {
                Ok(_) => {}
                Err(MemError::NoMemory | MemError::OverBudget { .. } | MemError::Block(_)) => break,
                Err(lost) => return Err(lost),
            }
        }
        Ok(())
    }

    fn touch<H: Hardware>(
        &mut self,
        hw: &mut H,
        vm: VmId,
        page: Page,
        leave: u64,
    ) -> Result<Access, MemError> {
        let (host, guest) = self.parts(vm)?;
        let ipa = guest.ram.ipa(page);
        let position = match guest.tables.walk(hw, ipa)? {
            Position::Mapped(_) | Position::Big(_) | Position::Busy(_) => {
                return Ok(Access::Spurious);
            }
            position => position,
        };
        if guest.tag_use != TagUse::AtAccess {
            return self.touch_without_tags(hw, vm, page, position);
        }
        let gap = Gap::supply(position, host)?;
        match self.frame_with_tags(hw, vm, page, leave) {
            Ok(Some(hold)) => {
                let frame = hold.frame();
                let (host, guest) = self.parts(vm)?;
                guest.finish_tagged(host, hw, (page, gap, hold));
                Ok(Access::Mapped(frame))
            }
            Ok(None) => {
                gap.free(&mut self.host)?;
                Ok(Access::Wait)
            }
            Err(cause) => Err(gap.give_back(&mut self.host, cause)),
        }
    }

    /// Maps a page that was never touched, without tag access.
    fn touch_without_tags<H: Hardware>(
        &mut self,
        hw: &mut H,
        vm: VmId,
        page: Page,
        position: Position,
    ) -> Result<Access, MemError> {
        let (host, guest) = self.parts(vm)?;
        let frame = guest.fill(host, hw, page, position)?;
        guest.count_lent();
        host.count_lent();
        Ok(Access::Mapped(frame))
    }

    /// Takes a frame for a page that was never touched, whose tags have storage. `None` if that
    /// would take more evictions than `leave`.
    fn frame_with_tags<H: Hardware>(
        &mut self,
        hw: &mut H,
        vm: VmId,
        page: Page,
        leave: u64,
    ) -> Result<Option<TagHold>, MemError> {
        let (host, guest) = self.parts(vm)?;
        // The fullest block with a free frame: no page has to move.
        if let Some(block) = host.fullest_room(vm)
            && let Some((frame, None)) = host.chunks.room(host.blocks.coverage(block))
        {
            let (hold, _) = guest.prepare(host, hw, (page, frame), None)?;
            guest.ram.put(host, frame, page);
            return Ok(Some(hold));
        }
        let frame = guest.ram.take_frame(host, hw, page, Wish::Taggable);
        let frame = frame.ok_or(MemError::NoMemory)?;
        let target = self.target(hw, vm, (page, frame, false), leave);
        let (host, guest) = self.parts(vm)?;
        let taken = match target {
            Ok(Some((target, _))) => guest.take_target(host, hw, (page, frame), target).map(Some),
            refused => refused.map(|_| None),
        };
        host.free_kept()?;
        if !matches!(taken, Ok(Some(_))) {
            guest.ram.free_frame(host, frame)?;
            guest.ram.trim(host);
        }
        taken
    }

    /// Handles a tag access fault of a VM, which may evict `leave` pages.
    ///
    /// # Errors
    /// The page cannot be given tag storage; nothing has changed.
    pub fn tag_fault(
        &mut self,
        hw: &mut impl Hardware,
        vm: VmId,
        ipa: Ipa,
        leave: u64,
    ) -> Result<TagOutcome, MemError> {
        let (_, guest) = self.parts(vm)?;
        if guest.tag_use == TagUse::Never {
            return Err(MemError::NotMte);
        }
        let page = guest.ram.page(ipa)?;
        let outcome = self.tag(hw, vm, page, leave)?;
        match outcome {
            TagOutcome::Tagged => {
                let (_, guest) = self.parts(vm)?;
                guest.counts.tag_faults += 1;
                guest.adapt();
                if let Some(neighbours) = guest.neighbours(page) {
                    self.each(hw, vm, neighbours, Self::tag)?;
                }
            }
            TagOutcome::Wait => self.parts(vm)?.1.counts.throttled += 1,
            TagOutcome::Spurious => self.refresh(hw, vm, page)?,
            TagOutcome::Unmapped => {}
        }
        Ok(outcome)
    }

    /// Drops what TLBs hold of a page that is mapped.
    fn refresh(&mut self, hw: &mut impl Hardware, vm: VmId, page: Page) -> Result<(), MemError> {
        let (_, guest) = self.parts(vm)?;
        let ipa = guest.ram.ipa(page);
        if let Position::Mapped(_) = guest.tables.walk(hw, ipa)? {
            guest.tables.refresh(hw, ipa);
        }
        Ok(())
    }

    fn tag<H: Hardware>(
        &mut self,
        hw: &mut H,
        vm: VmId,
        page: Page,
        leave: u64,
    ) -> Result<TagOutcome, MemError> {
        let (_, guest) = self.parts(vm)?;
        let ipa = guest.ram.ipa(page);
        let mut position = guest.tables.walk(hw, ipa)?;
        let leaf = match &position {
            Position::Mapped(mapped) => mapped.leaf(),
            Position::Big(big) => big.leaf(),
            Position::Busy(_) => return Ok(TagOutcome::Spurious),
            Position::Vacant(_) | Position::Missing(_) => return Ok(TagOutcome::Unmapped),
        };
        if leaf.attr == MemAttr::WriteBack {
            return Ok(TagOutcome::Spurious);
        }
        let is_big = matches!(position, Position::Big(_));
        let target = self.target(hw, vm, (page, leaf.frame, is_big), leave);
        let (host, guest) = self.parts(vm)?;
        let tagged = match target {
            Ok(Some((target, frame))) => {
                if frame != leaf.frame {
                    // The page itself was evicted.
                    position = guest.tables.walk(hw, ipa)?;
                }
                guest.tag(host, hw, (page, frame, position), target)
            }
            Ok(None) => return Ok(TagOutcome::Wait),
            Err(refused) => Err(refused),
        };
        if tagged.is_err() || host.kept.is_used() {
            host.free_kept()?;
        }
        if let Err(refused) = tagged {
            guest.ram.trim(host);
            return Err(refused);
        }
        Ok(TagOutcome::Tagged)
    }

    /// Chooses where the page in `frame` gets its tags, and makes sure that there is no data there.
    /// What the page, which is in a 2 MiB leaf if it `is_big`, needs to get there is kept then. Returns
    /// the frame of the page too, which may have been evicted itself. `None` if it would take more
    /// evictions than `leave`.
    fn target<H: Hardware>(
        &mut self,
        hw: &mut H,
        vm: VmId,
        (page, frame, is_big): (Page, Frame, bool),
        leave: u64,
    ) -> Result<Option<(Target, Frame)>, MemError> {
        let (host, guest) = self.parts(vm)?;
        let left = guest.left();
        let block = match host.choose(&mut guest.ram, frame, left) {
            Choice::Place(target) => return Ok(Some((target, frame))),
            Choice::OverBudget => return Err(guest.over_budget()),
            Choice::Nowhere => return Err(MemError::NoMemory),
            Choice::Evict(block) => block,
        };
        if leave < self.lent_frames(block) {
            return Ok(None);
        }
        let is_tenant = self.host.blocks.storage_of(frame) == Some(block);
        self.host
            .keep(self.host.needs(page, frame, is_big, block))?;
        self.evict(hw, vm, block)?;
        let (host, guest) = self.parts(vm)?;
        let frame = match is_tenant {
            true => guest.translate(hw, guest.ram.ipa(page)).unwrap_or(frame),
            false => frame,
        };
        // It may have moved to where there is room now.
        let target = match host.blocks.block_of(frame) == Some(block) {
            true => Target::InPlace,
            false => host.room(block).ok_or(MemError::NoMemory)?,
        };
        Ok(Some((target, frame)))
    }

    fn lent_frames(&self, block: BlockId) -> u64 {
        match self.host.blocks.state(block) {
            BlockState::Lent { frames } => frames.into(),
            _ => 0,
        }
    }

    /// Looks at the next `pages` pages of a VM's RAM for some whose tags are all 0, and takes their
    /// tag access away: the guest cannot tell. Returns how many there were.
    ///
    /// # Errors
    /// A guarantee was lost before.
    pub fn demote(
        &mut self,
        hw: &mut impl Hardware,
        vm: VmId,
        pages: u64,
    ) -> Result<u64, MemError> {
        let (host, guest) = self.parts(vm)?;
        guest.demote_next(host, hw, pages)
    }

    /// Moves one page of a VM out of a block of tag storage that has tags of few, at most `percent`, of the
    /// frames that it covers, so that it becomes free sooner. Whether there was any to move.
    ///
    /// # Errors
    /// There is no room for a table; nothing has changed.
    pub fn compact(
        &mut self,
        hw: &mut impl Hardware,
        vm: VmId,
        percent: u64,
    ) -> Result<bool, MemError> {
        let (host, guest) = self.parts(vm)?;
        guest.compact(host, hw, percent)
    }

    /// Takes a part of the RAM of a VM away that does not run and is to be reset or destroyed, and
    /// checks it on the way; returns how many facts. The work is bounded, and anything may be done
    /// between two parts. `None` if nothing is left, and for a VM without memory.
    pub fn release(&mut self, hw: &mut impl Hardware, vm: VmId) -> Option<Result<u64, Violation>> {
        let (host, guest) = self.parts(vm).ok()?;
        guest.release(host, hw)
    }

    /// Takes all RAM away from a guest, as a reset does: each page is as at its start, and
    /// untouched, afterwards.
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
        let Some(guest) = slot.and_then(Option::take) else {
            return Ok(());
        };
        let destroyed = guest.destroy(&mut self.host, hw);
        self.host.dismiss(vm);
        destroyed
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

    pub(crate) fn parts(
        &mut self,
        vm: VmId,
    ) -> Result<(&mut HostMemory, &mut GuestMemory), MemError> {
        let guest = self.guests.get_mut(usize::from(vm.index()));
        let guest = guest
            .and_then(Option::as_mut)
            .ok_or(MemError::NoSuchVm(vm))?;
        Ok((&mut self.host, guest))
    }
}

impl GuestMemory {
    /// Gives the tags of a page, which has `frame` and was never touched, their place at `target`.
    /// The frame that holds them is the page's then.
    fn take_target<H: Hardware>(
        &mut self,
        host: &mut HostMemory,
        hw: &mut H,
        (page, frame): (Page, Frame),
        target: Target,
    ) -> Result<TagHold, MemError> {
        let Target::Into(to, tenant) = target else {
            return Ok(host.hold(hw, frame)?);
        };
        let (hold, ready) = self.prepare(host, hw, (page, to), tenant)?;
        if let (Some(tenant), Some(theirs)) = (tenant, self.break_tenant(host, hw, tenant, ready)?)
        {
            // The page that is there takes the frame that was to be this one's.
            hw.copy(to, frame);
            hw.sync_code(frame.into());
            hw.synchronize();
            self.tables
                .make(hw, theirs.vacant(), self.tag_use.untagged(frame));
            self.counts.moves += 1;
            self.ram.put(host, to, page);
            self.ram.replace(host, frame, tenant);
        } else {
            self.ram.put(host, to, page);
            self.ram.free_frame(host, frame)?;
        }
        Ok(hold)
    }
}
