//! Hardware for tests of what is kept about memory: tables, and nothing in any other frame.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::addr::{Frame, FrameRange, Ipa, PhysAddr};
use crate::descriptor::{TABLE_ENTRIES, Vmid};
use crate::ports::{FrameCopy, TableMemory, TagCache, Tlb};

/// Does something that allocates.
type Aside = fn(&mut dyn FnMut());

/// Hardware without any memory but tables: machines of any size cost next to nothing.
pub struct Tables {
    tables: BTreeMap<Frame, Vec<u64>>,
    aside: Aside,
}

impl Tables {
    /// No table yet. What the tables themselves allocate is allocated within `aside`, for tests that count the heap.
    pub fn new(aside: Aside) -> Self {
        Self {
            tables: BTreeMap::new(),
            aside,
        }
    }
}

impl Default for Tables {
    fn default() -> Self {
        Self::new(|work| work())
    }
}

impl TableMemory for Tables {
    fn read(&self, table: Frame, index: usize) -> u64 {
        let entries = self.tables.get(&table);
        let entry = entries.and_then(|entries| entries.get(index));
        entry.copied().unwrap_or(0)
    }

    fn write(&mut self, table: Frame, index: usize, raw: u64) {
        (self.aside)(&mut || {
            let entries = self.tables.entry(table);
            let entries = entries.or_insert_with(|| alloc::vec![0; TABLE_ENTRIES]);
            if let Some(entry) = entries.get_mut(index) {
                *entry = raw;
            }
        });
    }

    fn clear(&mut self, table: Frame) {
        (self.aside)(&mut || drop(self.tables.remove(&table)));
    }
}

impl Tlb for Tables {
    fn invalidate_page(&mut self, _: Vmid, _: Frame, _: Ipa) {}
    fn invalidate_block(&mut self, _: Vmid, _: Frame, _: Ipa) {}
    fn invalidate_vm(&mut self, _: Vmid, _: Frame) {}
    fn publish(&mut self) {}
}

impl TagCache for Tables {
    fn clean_invalidate_data(&mut self, _: FrameRange) {}
    fn clean_invalidate_tags(&mut self, _: FrameRange) {}
    fn zero_tags(&mut self, _: Frame) {}
    fn copy_tags(&mut self, _: Frame, _: Frame) {}
    fn tags_are_zero(&mut self, _: Frame) -> bool {
        false
    }
    fn synchronize(&mut self) {}
}

impl FrameCopy for Tables {
    fn zero_frames(&mut self, _: FrameRange) {}
    fn copy(&mut self, _: Frame, _: Frame) {}
    fn exchange(&mut self, _: Frame, _: Frame) {}
    fn copy_image(&mut self, _: PhysAddr, _: PhysAddr, _: u64) {}
    fn sync_code(&mut self, _: FrameRange) {}
}
