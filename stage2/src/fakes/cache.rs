//! Caches of the carve-out: data lines and tag lines of the same bytes, which do not know of each
//! other. A line is a frame of tag storage, or the tags of a frame. Only a machine with an
//! adversary has them: without, each write reaches memory at once, and each read comes from there.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::memory::{Page, Tags, offset};
use super::{BrokenRule, GRANULE, SimMachine};
use crate::addr::{Frame, FrameRange, PhysAddr};

/// A line. Stale if memory has changed since `base`.
pub(super) struct Line<T> {
    now: T,
    /// What memory held when the line was filled, or written as a whole.
    base: T,
    dirty: bool,
}

/// Maintenance that no `DSB` has waited for.
#[derive(Clone, Copy)]
pub(super) enum Maintenance {
    Data(FrameRange),
    Tags(FrameRange),
}

#[derive(Default)]
pub(super) struct Caches {
    data: BTreeMap<Frame, Line<Page>>,
    tags: BTreeMap<Frame, Line<Tags>>,
    pending: Vec<Maintenance>,
}

impl<T: Clone> Line<T> {
    fn clean(now: T) -> Self {
        Self {
            base: now.clone(),
            now,
            dirty: false,
        }
    }
}

impl Caches {
    pub(super) fn data_lines(&self) -> Vec<Frame> {
        self.data.keys().copied().collect()
    }

    pub(super) fn tag_lines(&self) -> Vec<Frame> {
        self.tags.keys().copied().collect()
    }

    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }
}

impl SimMachine {
    /// Reads a byte of DRAM as the CPUs' data accesses do.
    pub fn byte(&self, pa: PhysAddr) -> u8 {
        let line = self.caches.data.get(&Frame::containing(pa));
        line.and_then(|line| line.now.get(offset(pa)).copied())
            .unwrap_or_else(|| self.memory.byte(pa))
    }

    /// Writes a byte of DRAM as the CPUs' data accesses do.
    pub fn set_byte(&mut self, pa: PhysAddr, value: u8) {
        let frame = Frame::containing(pa);
        if !self.is_cached() || !self.memory.is_storage(frame) {
            return self.memory.set_byte(pa, value);
        }
        self.fetch_data(frame);
        if let Some(line) = self.caches.data.get_mut(&frame)
            && let Some(byte) = line.now.get_mut(offset(pa))
        {
            *byte = value;
            line.dirty = true;
        }
    }

    /// The allocation tag of the granule at `pa`, as the CPUs' tag accesses see it.
    pub fn tag(&self, pa: PhysAddr) -> u8 {
        let line = self.caches.tags.get(&Frame::containing(pa));
        line.and_then(|line| line.now.get(granule(pa)).copied())
            .unwrap_or_else(|| self.memory.tag(pa))
    }

    pub(super) fn set_tag(&mut self, pa: PhysAddr, tag: u8) {
        let frame = Frame::containing(pa);
        if !self.has_tags(frame) {
            return;
        }
        if !self.is_cached() {
            return self.memory.set_tag(pa, tag);
        }
        self.fetch_tags(frame);
        if let Some(line) = self.caches.tags.get_mut(&frame)
            && let Some(old) = line.now.get_mut(granule(pa))
        {
            *old = tag & 0xf;
            line.dirty = true;
        }
    }

    pub(super) fn read_page(&mut self, frame: Frame) -> Page {
        match self.caches.data.get(&frame) {
            Some(line) => line.now.clone(),
            None => self.memory.page(frame).clone(),
        }
    }

    pub(super) fn write_page(&mut self, frame: Frame, page: Page) {
        if !self.is_cached() || !self.memory.is_storage(frame) {
            *self.memory.page(frame) = page;
            return;
        }
        let line = Line {
            base: self.memory.page(frame).clone(),
            now: page,
            dirty: true,
        };
        self.caches.data.insert(frame, line);
    }

    pub(super) fn read_tags(&mut self, frame: Frame) -> Tags {
        self.has_tags(frame);
        match self.caches.tags.get(&frame) {
            Some(line) => line.now.clone(),
            None => self.memory.tags(frame),
        }
    }

    pub(super) fn write_tags(&mut self, frame: Frame, tags: Tags) {
        if !self.has_tags(frame) {
            return;
        }
        if !self.is_cached() {
            return self.memory.set_tags(frame, &tags);
        }
        let line = Line {
            base: self.memory.tags(frame),
            now: tags,
            dirty: true,
        };
        self.caches.tags.insert(frame, line);
    }

    /// Whether `frame` has tags; a tag operation on it breaks a rule if it has none.
    pub(super) fn has_tags(&mut self, frame: Frame) -> bool {
        let taggable = self.memory.is_taggable(frame);
        if !taggable {
            self.broken.push(BrokenRule::TagsOfUntaggable(frame));
        }
        taggable
    }

    const fn is_cached(&self) -> bool {
        self.adversary.is_some()
    }

    /// Brings a frame of tag storage into the caches, as data: an access or speculation.
    pub(super) fn fetch_data(&mut self, frame: Frame) {
        let held = self.caches.data.contains_key(&frame);
        if self.is_cached() && !held && self.memory.is_storage(frame) {
            let page = self.memory.page(frame).clone();
            self.caches.data.insert(frame, Line::clean(page));
        }
    }

    /// Brings the tags of a frame into the caches: an access or speculation by EL2's Tagged map.
    pub(super) fn fetch_tags(&mut self, frame: Frame) {
        let held = self.caches.tags.contains_key(&frame);
        if self.is_cached() && !held && self.memory.is_taggable(frame) {
            let tags = self.memory.tags(frame);
            self.caches.tags.insert(frame, Line::clean(tags));
        }
    }

    /// Writes a data line to memory if it is dirty. It stays, clean.
    pub(super) fn write_back_data(&mut self, frame: Frame) {
        let Some(line) = self.caches.data.get_mut(&frame).filter(|line| line.dirty) else {
            return;
        };
        let page = self.memory.page(frame);
        if *page != line.base {
            self.broken.push(BrokenRule::DataOverwroteTags(frame));
        }
        page.clone_from(&line.now);
        line.base.clone_from(&line.now);
        line.dirty = false;
    }

    /// Writes a tag line to memory if it is dirty. It stays, clean.
    pub(super) fn write_back_tags(&mut self, frame: Frame) {
        let Some(line) = self.caches.tags.get_mut(&frame).filter(|line| line.dirty) else {
            return;
        };
        if self.memory.tags(frame) != line.base {
            self.broken.push(BrokenRule::TagsOverwroteData(frame));
        }
        self.memory.set_tags(frame, &line.now);
        line.base.clone_from(&line.now);
        line.dirty = false;
    }

    /// Loses a data line, written back if it is dirty.
    pub(super) fn evict_data(&mut self, frame: Frame) {
        self.write_back_data(frame);
        self.caches.data.remove(&frame);
    }

    /// Loses a tag line, written back if it is dirty.
    pub(super) fn evict_tags(&mut self, frame: Frame) {
        self.write_back_tags(frame);
        self.caches.tags.remove(&frame);
    }

    pub(super) fn maintain(&mut self, what: Maintenance) {
        self.caches.pending.push(what);
    }

    /// Maintenance that waits is done in any order, at any moment until the `DSB`.
    pub(super) fn finish_maintenance(&mut self, number: usize) {
        let lines = |frames: FrameRange| frames.start..frames.end();
        match self.caches.pending.swap_remove(number) {
            Maintenance::Data(frames) => {
                let hit = self.caches.data.range(lines(frames));
                let hit: Vec<Frame> = hit.map(|(&frame, _)| frame).collect();
                hit.into_iter().for_each(|frame| self.evict_data(frame));
            }
            Maintenance::Tags(frames) => {
                let hit = self.caches.tags.range(lines(frames));
                let hit: Vec<Frame> = hit.map(|(&frame, _)| frame).collect();
                hit.into_iter().for_each(|frame| self.evict_tags(frame));
            }
        }
    }
}

const fn granule(pa: PhysAddr) -> usize {
    offset(pa) / GRANULE as usize
}
