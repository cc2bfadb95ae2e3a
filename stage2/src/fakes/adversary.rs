//! What hardware may do at any moment, chosen by a seed: the same seed does the same.

use alloc::vec::Vec;

use super::memory::TagPlace;
use super::{SimGuest, SimMachine};
use crate::addr::{Frame, Ipa, PAGE_SIZE, PhysAddr};
use crate::ports::TableMemory;

/// How many frames, and pages of a guest, it remembers.
const MEMORY: usize = 64;

pub(super) struct Adversary {
    state: u64,
    /// Taggable frames that somebody used lately.
    frames: Vec<Frame>,
}

impl SimMachine {
    /// The machine with caches and an adversary that follows from `seed`.
    pub fn with_adversary(mut self, seed: u64) -> Self {
        self.adversary = Some(Adversary {
            state: seed,
            frames: Vec::new(),
        });
        self
    }

    /// A number below `below`; always 0 without an adversary.
    pub(super) fn roll(&mut self, below: usize) -> usize {
        let Some(adversary) = &mut self.adversary else {
            return 0;
        };
        // SplitMix64.
        adversary.state = adversary.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = adversary.state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) % below.max(1) as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        let number = self.roll(from.len());
        from.get(number).copied()
    }

    /// Up to two things happen.
    pub(super) fn tick(&mut self) {
        for _ in 0..self.roll(3) {
            match self.roll(8) {
                0 => self.move_data_line(),
                1 => self.move_tag_line(),
                2 => self.prefetch_data(),
                3 => self.prefetch_tags(),
                4 if !self.stores.is_empty() => {
                    let number = self.roll(self.stores.len());
                    self.land_number(number);
                }
                5 if self.caches.pending() > 0 => {
                    let number = self.roll(self.caches.pending());
                    self.finish_maintenance(number);
                }
                6 if !self.pending_tlbi.is_empty() => {
                    let number = self.roll(self.pending_tlbi.len());
                    self.finish_tlbi(number);
                }
                7 => self.translate_ahead(),
                _ => {}
            }
        }
    }

    /// Remembers a frame of tagged memory.
    pub(super) fn note_frame(&mut self, frame: Frame) {
        let taggable = self.memory.is_taggable(frame);
        let number = self.roll(MEMORY);
        if let Some(adversary) = self.adversary.as_mut().filter(|_| taggable) {
            match adversary.frames.get_mut(number) {
                Some(old) => *old = frame,
                None => adversary.frames.push(frame),
            }
        }
    }

    /// Remembers where the guest of this CPU is.
    pub(super) fn note_access(&mut self, guest: SimGuest, ipa: Ipa) {
        if self.adversary.is_none() {
            return;
        }
        let number = self.roll(MEMORY);
        let (of, pages) = self.cpu().guest.get_or_insert((guest, Vec::new()));
        if *of != guest {
            (*of, *pages) = (guest, Vec::new());
        }
        match pages.get_mut(number) {
            Some(old) => *old = ipa.page(),
            None => pages.push(ipa.page()),
        }
    }

    fn move_data_line(&mut self) {
        let lines = self.caches.data_lines();
        let Some(frame) = self.pick(&lines) else {
            return;
        };
        match self.roll(2) {
            0 => self.write_back_data(frame),
            _ => self.evict_data(frame),
        }
    }

    fn move_tag_line(&mut self) {
        let lines = self.caches.tag_lines();
        let Some(frame) = self.pick(&lines) else {
            return;
        };
        match self.roll(2) {
            0 => self.write_back_tags(frame),
            _ => self.evict_tags(frame),
        }
    }

    /// A frame in use, or one near it.
    fn frame_near(&mut self) -> Option<Frame> {
        let frames = self.adversary.as_ref()?.frames.clone();
        let frame = self.pick(&frames)?;
        let near = self.roll(8) * self.roll(2);
        Some(Frame::from_number(frame.number() ^ near as u64))
    }

    fn prefetch_data(&mut self) {
        let Some(frame) = self.frame_near() else {
            return;
        };
        let offset = self.roll(PAGE_SIZE as usize) as u64;
        let pa = PhysAddr::new(frame.addr().get() + offset);
        if let Some(TagPlace::Storage(place, _)) = self.memory.tag_place(pa) {
            self.fetch_data(Frame::containing(place));
        }
    }

    fn prefetch_tags(&mut self) {
        if let Some(frame) = self.frame_near() {
            self.fetch_tags(frame);
        }
    }

    /// A CPU translates an address of its guest ahead. Of entries that are not published, its walker
    /// may see the old or the new.
    pub(super) fn translate_ahead(&mut self) {
        let cpus: Vec<usize> = self.cpus.keys().copied().collect();
        let Some(cpu) = self.pick(&cpus) else { return };
        let own = core::mem::replace(&mut self.on, cpu);
        if let Some((guest, pages)) = self.cpu().guest.clone()
            && let Some(ipa) = self.pick(&pages)
        {
            let entry = self.walk_with(guest.root, ipa, |sim, table, index| {
                match sim.before(table, index) {
                    Some(old) if sim.roll(2) == 0 => old,
                    _ => sim.read(table, index),
                }
            });
            if let Some(entry) = entry {
                self.hold_entry(guest.vmid, ipa.get() / PAGE_SIZE, entry);
            }
        }
        self.on = own;
    }
}
