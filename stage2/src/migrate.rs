//! Pages that move, and pages that give their tags back. Lock rank: memory.
//!
//! Each operation first takes all that it needs, which may fail and then leaves nothing behind;
//! then it breaks the pages, moves data and tags while no guest can reach them (S10), and makes
//! them. Nothing in that part can fail.

use alloc::vec::Vec;

use crate::addr::Frame;
use crate::block::BlockState;
use crate::frames::VmId;
use crate::guest::{Gap, GuestMemory, MemError, Ready, TagUse};
use crate::host::HostMemory;
use crate::memory::{Eviction, Memory};
use crate::pieces::Page;
use crate::placement::Target;
use crate::pool::{BlockId, TagHold, TagsKept};
use crate::ports::Hardware;
use crate::tables::{Broken, Mapping, Position};

impl GuestMemory {
    /// Gives a page that is mapped at `position`, in `from`, tag access at `target`.
    pub(crate) fn tag<H: Hardware>(
        &mut self,
        host: &mut HostMemory,
        hw: &mut H,
        (page, from, position): (Page, Frame, Position),
        target: Target,
    ) -> Result<(), MemError> {
        let ready = self.ready(host, page, position)?;
        match target {
            Target::InPlace => self.tag_in_place(host, hw, (page, ready), from),
            Target::Into(to, tenant) => self.tag_into(host, hw, (page, from, ready), (to, tenant)),
        }?;
        self.no_tag_access -= 1;
        Ok(())
    }

    fn tag_in_place<H: Hardware>(
        &mut self,
        host: &mut HostMemory,
        hw: &mut H,
        (page, ready): (Page, Ready),
        frame: Frame,
    ) -> Result<(), MemError> {
        let hold = match host.hold(hw, frame) {
            Ok(hold) => hold,
            Err(bad) => return Err(ready.give_back(host, bad.into())),
        };
        let opened = hold.opened();
        let broken = self.break_page(host, hw, page, ready);
        let zeroed = hold.zero_tags(hw);
        self.tables
            .make(hw, broken.vacant(), Mapping::Tagged(zeroed));
        host.chunks.set_tagged(frame, true);
        self.count_tagged(opened);
        Ok(())
    }

    /// Moves a page to `to`, where its tags have a place, and the page that is there to where this
    /// one was.
    fn tag_into<H: Hardware>(
        &mut self,
        host: &mut HostMemory,
        hw: &mut H,
        (page, from, ready): (Page, Frame, Ready),
        (to, tenant): (Frame, Option<Page>),
    ) -> Result<(), MemError> {
        let (hold, theirs) = match self.prepare(host, hw, (page, to), tenant) {
            Ok(prepared) => prepared,
            Err(cause) => return Err(ready.give_back(host, cause)),
        };
        let opened = hold.opened();
        let broken = self.break_page(host, hw, page, ready);
        match self.break_tenant(host, hw, tenant, theirs)? {
            Some(theirs) => {
                hw.exchange(from, to);
                hw.sync_code(from.into());
                hw.sync_code(to.into());
                let zeroed = hold.zero_tags(hw);
                self.tables
                    .make(hw, broken.vacant(), Mapping::Tagged(zeroed));
                self.tables
                    .make(hw, theirs.vacant(), self.tag_use.untagged(from));
                self.counts.moves += 1;
            }
            None => {
                hw.copy(from, to);
                hw.sync_code(to.into());
                let zeroed = hold.zero_tags(hw);
                self.tables
                    .make(hw, broken.vacant(), Mapping::Tagged(zeroed));
            }
        }
        self.counts.moves += 1;
        self.count_tagged(opened);
        self.ram.put(host, to, page);
        host.chunks.set_tagged(to, true);
        match tenant {
            Some(tenant) => self.ram.replace(host, from, tenant),
            None => self.ram.free_frame(host, from)?,
        }
        Ok(())
    }

    /// Takes what moving a page into `to` needs besides what the page itself does: the block, and
    /// what breaking the page in it needs.
    pub(crate) fn prepare<H: Hardware>(
        &mut self,
        host: &mut HostMemory,
        hw: &mut H,
        (page, to): (Page, Frame),
        tenant: Option<Page>,
    ) -> Result<(TagHold, Option<Ready>), MemError> {
        let theirs = match tenant {
            // One split serves both: the other page has an entry of its own after it.
            Some(tenant) if tenant.slot() == page.slot() => None,
            Some(tenant) => Some(self.ready_at(host, hw, tenant)?),
            None if self.ram.settle(host, to, page) => None,
            None => return Err(MemError::NoMemory),
        };
        match host.hold(hw, to) {
            Ok(hold) => Ok((hold, theirs)),
            Err(bad) => {
                if tenant.is_none() {
                    self.ram.unsettle(host, to);
                }
                let cause = MemError::from(bad);
                Err(match theirs {
                    Some(ready) => ready.give_back(host, cause),
                    None => cause,
                })
            }
        }
    }

    /// Breaks the page that another one displaces, once that one is broken.
    pub(crate) fn break_tenant<H: Hardware>(
        &mut self,
        host: &mut HostMemory,
        hw: &mut H,
        tenant: Option<Page>,
        ready: Option<Ready>,
    ) -> Result<Option<Broken>, MemError> {
        let Some(tenant) = tenant else {
            return Ok(None);
        };
        let ready = match ready {
            Some(ready) => ready,
            // Of the same 2 MiB, which have a table now: this takes nothing.
            None => self.ready_at(host, hw, tenant)?,
        };
        Ok(Some(self.break_page(host, hw, tenant, ready)))
    }

    /// Maps a page that was never touched with tag access, in `frame`, which is the page's already.
    pub(crate) fn finish_tagged<H: Hardware>(
        &mut self,
        host: &mut HostMemory,
        hw: &mut H,
        (page, gap, hold): (Page, Gap, TagHold),
    ) {
        let (frame, opened) = (hold.frame(), hold.opened());
        self.provide(hw, page, frame.into());
        let zeroed = hold.zero_tags(hw);
        let vacant = gap.fill(host, &mut self.tables, hw);
        self.tables.make(hw, vacant, Mapping::Tagged(zeroed));
        host.chunks.set_tagged(frame, true);
        self.count_tagged(opened);
    }

    /// Makes a page NoTagAccess again if all its tags are 0 (S11): nobody can tell. Whether it did.
    fn demote<H: Hardware>(
        &mut self,
        host: &mut HostMemory,
        hw: &mut H,
        page: Page,
    ) -> Result<bool, MemError> {
        let mapped = match self.tables.walk(hw, self.ram.ipa(page))? {
            Position::Mapped(mapped) if self.has_tag_access(mapped.leaf()) => mapped,
            _ => return Ok(false),
        };
        let frame = mapped.leaf().frame;
        // A first look, in which a guest may still write tags; what counts is the one after the break.
        if !hw.tags_are_zero(frame) {
            return Ok(false);
        }
        let broken = self.tables.break_page(hw, self.ram.ipa(page), mapped);
        if !hw.tags_are_zero(frame) {
            let kept = Mapping::Retagged(TagsKept::still(frame));
            self.tables.make(hw, broken.vacant(), kept);
            return Ok(false);
        }
        self.tables
            .make(hw, broken.vacant(), Mapping::NoTagAccess(frame));
        host.before_release();
        self.reserved -= host.drop_user(hw, frame)?;
        host.chunks.set_tagged(frame, false);
        self.tagged -= 1;
        self.no_tag_access += 1;
        self.counts.demotions += 1;
        self.join(host, hw, frame);
        Ok(true)
    }

    /// Looks at the next `pages` pages of RAM for some that need no tag access.
    pub(crate) fn demote_next<H: Hardware>(
        &mut self,
        host: &mut HostMemory,
        hw: &mut H,
        pages: u64,
    ) -> Result<u64, MemError> {
        let mut demoted = 0;
        // Without FEAT_MTE_PERM, which only lazy VMs are sure to have, tags written later would be lost.
        if TagUse::of(self.spec()) != TagUse::AtTagAccess {
            return Ok(0);
        }
        for _ in 0..pages {
            if self.ram.page(self.ram.ipa(self.cursor)).is_err() {
                self.cursor = self.ram.first_page();
            }
            demoted += u64::from(self.demote(host, hw, self.cursor)?);
            self.cursor = Page(self.cursor.0 + 1);
        }
        Ok(demoted)
    }

    /// Moves one page with its tags from a block with few users, at most `percent` of the frames that it
    /// covers, to the fullest one with room, if that one has room for all of them: so blocks become free.
    /// Whether a page has moved.
    pub(crate) fn compact<H: Hardware>(
        &mut self,
        host: &mut HostMemory,
        hw: &mut H,
        percent: u64,
    ) -> Result<bool, MemError> {
        let Some((from, to, tenant)) = self.compaction(host, percent) else {
            return Ok(false);
        };
        let Some(page) = host.chunks.page_in(from) else {
            return Ok(false);
        };
        // Before the hold, which is no page of its own.
        host.before_release();
        let ready = self.ready_at(host, hw, page)?;
        let (hold, theirs) = match self.prepare(host, hw, (page, to), tenant) {
            Ok(prepared) => prepared,
            Err(cause) => return Err(ready.give_back(host, cause)),
        };
        let broken = self.break_page(host, hw, page, ready);
        let theirs = self.break_tenant(host, hw, tenant, theirs)?;
        match &theirs {
            Some(_) => {
                hw.exchange(from, to);
                hw.sync_code(from.into());
            }
            None => hw.copy(from, to),
        }
        hw.sync_code(to.into());
        let kept = hold.copy_tags(hw, from);
        self.tables
            .make(hw, broken.vacant(), Mapping::Retagged(kept));
        if let Some(theirs) = theirs {
            self.tables
                .make(hw, theirs.vacant(), self.tag_use.untagged(from));
        }
        self.reserved -= host.drop_user(hw, from)?;
        self.counts.moves += 1 + u64::from(tenant.is_some());
        self.ram.put(host, to, page);
        host.chunks.set_tagged(to, true);
        match tenant {
            Some(tenant) => {
                self.ram.replace(host, from, tenant);
                self.join(host, hw, from);
            }
            None => self.ram.free_frame(host, from)?,
        }
        Ok(true)
    }

    /// A page to move, where to, and who is there.
    fn compaction(&self, host: &HostMemory, percent: u64) -> Option<(Frame, Frame, Option<Page>)> {
        let vm = self.ram.vm;
        let (sparse, full) = (host.emptiest_room(vm)?, host.fullest_room(vm)?);
        let users = |block| match host.blocks.state(block) {
            BlockState::Reserved { users } => u64::from(users),
            _ => u64::MAX,
        };
        let covered = host.blocks.capacity(full);
        let fits = users(sparse) <= covered.saturating_sub(users(full));
        let few = host.blocks.coverage(sparse).count * percent / 100;
        if sparse == full || !fits || users(sparse) > few {
            return None;
        }
        let from = host.chunks.first_tagged(host.blocks.coverage(sparse))?;
        let (to, tenant) = host.chunks.room(host.blocks.coverage(full))?;
        Some((from, to, tenant))
    }
}

impl Memory {
    /// Moves the data out of a block for the tags of VM `cause`; the block waits for them afterwards.
    /// Each owner keeps running, and finds its page elsewhere.
    ///
    /// # Errors
    /// There is no other place for some of it; nothing has changed.
    pub(crate) fn evict<H: Hardware>(
        &mut self,
        hw: &mut H,
        cause: VmId,
        block: BlockId,
    ) -> Result<(), MemError> {
        let mut evictions = core::mem::take(&mut self.evictions);
        self.host.kept.is_locked = true;
        let result = self.evict_to(hw, cause, block, &mut evictions);
        self.host.kept.is_locked = false;
        self.host.kept.drained = result.is_ok().then_some(block);
        evictions.clear();
        self.evictions = evictions;
        result
    }

    fn evict_to<H: Hardware>(
        &mut self,
        hw: &mut H,
        cause: VmId,
        block: BlockId,
        evictions: &mut Vec<Eviction>,
    ) -> Result<(), MemError> {
        self.host.begin_evict(block)?;
        for from in self.host.blocks.storage(block).iter() {
            let Some(tenant) = self.host.blocks.tenant(from) else {
                continue;
            };
            let to = self.parts(tenant.vm).ok().and_then(|(host, guest)| {
                let wish = guest.wish();
                guest.ram.take_frame(host, hw, tenant.page, wish)
            });
            match to {
                Some(to) => evictions.push(Eviction { tenant, from, to }),
                None => return Err(self.abort(block, evictions)),
            }
        }
        for &Eviction { tenant, from, to } in evictions.iter() {
            let (host, guest) = self.parts(tenant.vm)?;
            guest.move_page(host, hw, tenant.page, to)?;
            guest.ram.free_frame(host, from)?;
            guest.count_lent();
            guest.counts.evictions_suffered += 1;
        }
        self.evicted += evictions.len() as u64;
        let (_, guest) = self.parts(cause)?;
        guest.counts.evictions_caused += evictions.len() as u64;
        Ok(())
    }

    fn abort(&mut self, block: BlockId, evictions: &[Eviction]) -> MemError {
        for eviction in evictions.iter().rev() {
            if let Ok((host, guest)) = self.parts(eviction.tenant.vm)
                && let Err(bad) = guest.ram.free_frame(host, eviction.to)
            {
                return bad.into();
            }
        }
        match self.host.end_evict(block) {
            Ok(()) => MemError::NoMemory,
            Err(bad) => bad.into(),
        }
    }
}
