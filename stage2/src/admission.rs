//! Whether the machine has what its VMs are promised. Lock rank: memory.
//!
//! An admitted VM always gets its memory and its tags, whatever is lent meanwhile. The argument: a
//! VM never holds more chunks and lent frames than its claim. If none could be had, chunks and tag
//! storage would be full, so the claims would be more than there is, less what budgets leave for
//! tags.

use crate::addr::PAGE_SIZE;
use crate::frames::{PIECE_BYTES, VmId, usable_frames};
use crate::guest::{GuestSpec, MemError, Policy, TagUse};
use crate::host::HostMemory;
use crate::lend::Holding;
use crate::region::TAG_RATIO;

/// What is promised to a VM, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Claim {
    /// Chunks and lent frames.
    pub(crate) memory: u64,
    /// Of them chunks, in any case.
    pub(crate) chunks: u64,
    /// Tag storage.
    pub(crate) tags: u64,
    /// Stage-2 tables.
    pub(crate) tables: u64,
}

impl Claim {
    pub(crate) const NONE: Self = Self {
        memory: 0,
        chunks: 0,
        tags: 0,
        tables: 0,
    };

    fn plus(self, other: Self) -> Self {
        Self {
            memory: self.memory.saturating_add(other.memory),
            chunks: self.chunks.saturating_add(other.chunks),
            tags: self.tags.saturating_add(other.tags),
            tables: self.tables.saturating_add(other.tables),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            memory: self.memory.saturating_sub(other.memory),
            chunks: self.chunks.saturating_sub(other.chunks),
            tags: self.tags.saturating_sub(other.tags),
            tables: self.tables.saturating_sub(other.tables),
        }
    }
}

/// Bytes of pages whose tags a VM's budget is for.
fn tagged_bytes(spec: &GuestSpec) -> u64 {
    let budget = if spec.mte { spec.tag_budget } else { 0 };
    let whole = budget.checked_next_multiple_of(PAGE_SIZE);
    whole.unwrap_or(u64::MAX).saturating_mul(TAG_RATIO)
}

impl HostMemory {
    /// The most tag storage that may be reserved for a VM, in bytes: its budget in whole blocks.
    /// All of them but one are full, and how many that takes depends on the region.
    pub(crate) fn budget(&self, spec: &GuestSpec) -> u64 {
        let Some(others) = tagged_bytes(spec).checked_sub(1).filter(|_| self.lends) else {
            return 0;
        };
        let largest = (self.blocks.largest_block() * PAGE_SIZE).max(PAGE_SIZE);
        let mut regions = self.blocks.regions();
        let is_uniform = regions.all(|region| region.block_bytes() == largest);
        let full = self.blocks.regions().map(|region| {
            let covered = usable_frames(region.coverage_frames()) * PAGE_SIZE;
            match is_uniform {
                true => others / covered * largest,
                false => others
                    .saturating_mul(region.block_bytes())
                    .div_ceil(covered),
            }
        });
        full.max().unwrap_or(0).saturating_add(largest)
    }

    /// What a VM is promised.
    pub(crate) fn claim(&self, spec: &GuestSpec) -> Claim {
        let chunk = self.chunks.largest().max(PIECE_BYTES);
        let (all, budget) = (self.chunks.bytes_for(spec.ram_bytes), self.budget(spec));
        let chunks = match TagUse::of(spec) {
            _ if !self.lends => all,
            TagUse::Never => 0,
            TagUse::AtAccess => all,
            TagUse::AtTagAccess => self.chunks.bytes_for(tagged_bytes(spec)).min(all),
        };
        // Where chunks differ, the last one may be a large one.
        let last = if self.chunks.are_alike() { 0 } else { chunk };
        let chunks = match chunks {
            0 => 0,
            some => some.saturating_add(last),
        };
        // What is partly in tag storage may need a chunk more than its pages fill.
        let memory = match chunks >= all {
            true => chunks,
            false => all.saturating_add(chunk).saturating_add(last),
        };
        let slots = spec.ram_bytes / PIECE_BYTES + 2;
        Claim {
            memory,
            chunks,
            tags: if spec.policy == Policy::Static {
                0
            } else {
                budget
            },
            tables: (slots + slots / 512 + 3) * PAGE_SIZE,
        }
    }

    /// Promises a VM `claim` instead of what it was promised before.
    ///
    /// # Errors
    /// There is not enough for all; nothing has changed.
    pub(crate) fn admit(&mut self, vm: VmId, claim: Claim) -> Result<(), MemError> {
        let holding = self.holding(vm);
        let all = self.admitted.minus(holding.claim).plus(claim);
        let outstanding = self.outstanding() - holding.outstanding();
        let own = claim.chunks.saturating_sub(holding.chunks());
        let (blocks, chunks) = (self.blocks.bytes(), self.chunks.bytes().total);
        let storage = match self.lends {
            true => blocks.carve_out - blocks.offline,
            false => 0,
        };
        let chunk = self.chunks.largest().max(PIECE_BYTES);
        let elsewhere = self.tables.own_bytes();
        let tables = all.tables.saturating_sub(elsewhere).next_multiple_of(chunk);
        let wanted = all.memory.saturating_add(all.tags).saturating_add(tables);
        let there = chunks + storage;
        if wanted > there {
            return Err(MemError::TooMuch { wanted, there });
        }
        let wanted = all.chunks.saturating_add(tables);
        if wanted > chunks {
            return Err(MemError::TooMuchTaggable {
                wanted,
                there: chunks,
            });
        }
        // Chunks that others have taken beyond what is kept for them do not come back.
        let wanted = outstanding.saturating_add(own);
        let there = self.chunks.free_bytes();
        if wanted > there {
            return Err(MemError::TooMuchTaggable { wanted, there });
        }
        self.admitted = all;
        if let Some(holding) = self.holdings.get_mut(usize::from(vm.index())) {
            holding.claim = claim;
        }
        Ok(())
    }

    /// Takes back what a VM was promised, which has nothing any more.
    pub(crate) fn dismiss(&mut self, vm: VmId) {
        if let Some(holding) = self.holdings.get_mut(usize::from(vm.index())) {
            let gone = core::mem::replace(holding, Holding::NONE);
            self.admitted = self.admitted.minus(gone.claim);
        }
    }
}
