//! What an operation takes before it evicts: once the first page has moved, nothing may be refused
//! (F1). Lock rank: memory.

use crate::addr::Frame;
use crate::block::BlockState;
use crate::frames::Piece;
use crate::guest::MemError;
use crate::host::HostMemory;
use crate::pieces::MapId;
use crate::pool::BlockId;

/// Tables and maps that are kept for the operation under way: for the split of a page, and of the one
/// that it swaps with.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    tables: [Option<Frame>; 2],
    maps: [Option<MapId>; 2],
    /// There is some of either.
    is_used: bool,
    /// An eviction is under way: what is kept is for what follows it.
    pub(crate) is_locked: bool,
    /// The block that was emptied for its tags.
    pub(crate) drained: Option<BlockId>,
}

/// How much there is to keep, at most 2 of each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Needs {
    pub(crate) tables: usize,
    pub(crate) maps: usize,
}

impl Kept {
    /// Whether there may be something to give back.
    pub(crate) const fn is_used(&self) -> bool {
        self.is_used || self.drained.is_some()
    }
}

impl HostMemory {
    /// Keeps what `needs` says.
    ///
    /// # Errors
    /// There is not enough; nothing has changed.
    pub(crate) fn keep(&mut self, needs: Needs) -> Result<(), MemError> {
        if needs.tables == 0 && needs.maps == 0 {
            return Ok(());
        }
        let mut kept = Kept {
            is_used: true,
            ..Kept::default()
        };
        let tables = kept.tables.iter_mut().take(needs.tables);
        tables.for_each(|table| *table = self.alloc_table_page());
        let maps = kept.maps.iter_mut().take(needs.maps);
        maps.for_each(|map| *map = self.alloc_map());
        let there = |needed, found| needed == found;
        let complete = there(needs.tables, kept.tables.iter().flatten().count())
            && there(needs.maps, kept.maps.iter().flatten().count());
        self.kept = kept;
        match complete {
            true => Ok(()),
            false => Err(self.free_kept().err().unwrap_or(MemError::NoMemory)),
        }
    }

    /// Gives back what was kept and not used.
    pub(crate) fn free_kept(&mut self) -> Result<(), MemError> {
        if let Some(block) = self.kept.drained.take()
            && matches!(self.blocks.state(block), BlockState::Evicting { .. })
        {
            self.end_evict(block)?;
        }
        if !self.kept.is_used {
            return Ok(());
        }
        let Kept { tables, maps, .. } = core::mem::take(&mut self.kept);
        maps.into_iter()
            .flatten()
            .for_each(|map| self.chunks.free_map(map));
        let mut tables = tables.into_iter().flatten();
        Ok(tables.try_for_each(|table| self.free_table_page(table))?)
    }

    /// A table that was kept.
    pub(crate) fn kept_table(&mut self) -> Option<Frame> {
        let free = self.kept.is_used && !self.kept.is_locked;
        let mut tables = self.kept.tables.iter_mut().filter(|_| free);
        tables.find_map(Option::take)
    }

    fn alloc_map(&mut self) -> Option<MapId> {
        let free = self.kept.is_used && !self.kept.is_locked;
        let mut maps = self.kept.maps.iter_mut().filter(|_| free);
        let kept = maps.find_map(Option::take);
        kept.or_else(|| match self.grant() {
            true => self.chunks.alloc_map(),
            false => None,
        })
    }

    /// Gives the piece at `base` a map as the home of `slot`: empty if it is unused, in step if it
    /// is whole. `None` if there is no room for one; nothing has changed.
    pub(crate) fn open_piece(&mut self, base: Frame, slot: u32) -> Option<()> {
        if !matches!(self.chunks.piece(base), Piece::Mapped(_)) {
            let map = self.alloc_map()?;
            self.chunks.open_piece(base, slot, map);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{PhysAddr, PhysRange};
    use crate::host::{Layout, Policy};
    use crate::region::{Dram, MemoryMap};

    fn host() -> HostMemory {
        let dram = vec![Dram {
            range: PhysRange::new(PhysAddr::new(0), 8 << 20).unwrap(),
            taggable: true,
        }];
        HostMemory::new(Layout {
            memory: MemoryMap {
                dram,
                occupied: vec![],
            },
            regions: vec![],
            policy: Policy::Lazy,
        })
        .unwrap()
    }

    const ALL: Needs = Needs { tables: 2, maps: 2 };

    #[test]
    fn what_was_kept_is_there_when_nothing_else_is() {
        let mut host = host();
        let before = host.account().ledger;
        host.keep(ALL).unwrap();
        host.refuse_after(Some(0));
        let tables = [0, 1].map(|_| host.alloc_table_page().unwrap());
        assert_eq!(host.alloc_table_page(), None);
        for piece in [0, 512] {
            host.open_piece(Frame::from_number(piece), 3).unwrap();
        }
        assert_eq!(host.open_piece(Frame::from_number(1024), 3), None);
        host.free_kept().unwrap();
        assert_ne!(host.account().ledger, before, "it was used");
        for table in tables {
            host.free_table_page(table).unwrap();
        }
        assert_eq!(host.account().ledger, before);
    }

    #[test]
    fn all_is_kept_or_nothing() {
        for grants in 0..4 {
            let mut host = host();
            let before = host.account().ledger;
            host.refuse_after(Some(grants));
            assert_eq!(host.keep(ALL), Err(MemError::NoMemory));
            assert_eq!(host.account().ledger, before, "{grants} grants");
            host.refuse_after(Some(0));
            assert_eq!(host.alloc_table_page(), None);
        }
        let mut host = host();
        let before = host.account().ledger;
        host.keep(ALL).unwrap();
        host.free_kept().unwrap();
        assert_eq!(host.account().ledger, before);
    }
}
