//! A simulated machine with one guest, whose tables the tests write themselves, bit by bit.
#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use stage2::addr::{Frame, Ipa, PAGE_SIZE, PhysAddr};
use stage2::descriptor::Vmid;
use stage2::fakes::{BrokenRule, GRANULE, SimGuest, SimMachine};
use stage2::ports::{TableMemory, Tlb};
use stage2::region::TagRegionDesc;

/// 4 MiB of tagged memory, their tags, and the frames of tables.
pub const TAGGED: u64 = 0x4000_0000;
pub const TAGS: u64 = 0x5000_0000;
pub const TABLES: u64 = 0x6000_0000;

pub const VMID: Vmid = Vmid(1);
pub const ROOT: Frame = Frame::from_number(TABLES / PAGE_SIZE);
pub const LEVEL_2: Frame = ROOT.plus(1);
pub const LEVEL_3: Frame = ROOT.plus(2);
pub const GUEST: SimGuest = SimGuest {
    vmid: VMID,
    root: ROOT,
    ata: true,
};

const LEAF: u64 = 0b11 << 6 | 0b11 << 8 | 1 << 10;
pub const WRITE_BACK: u64 = LEAF | 0b0110 << 2;
pub const NO_TAG_ACCESS: u64 = LEAF | 0b1110 << 2;
pub const PAGE: u64 = 0b11;
pub const BLOCK: u64 = 0b01;

/// A frame of tagged memory.
pub fn frame(number: u64) -> Frame {
    Frame::from_number(TAGGED / PAGE_SIZE + number)
}

/// The frame that holds the tags of the first 32 frames.
pub fn storage() -> Frame {
    Frame::from_number(TAGS / PAGE_SIZE)
}

pub fn ipa(page: u64) -> Ipa {
    Ipa::new(page * PAGE_SIZE)
}

pub fn granule(frame: Frame, number: u64) -> PhysAddr {
    PhysAddr::new(frame.addr().get() + number * GRANULE)
}

pub fn machine() -> SimMachine {
    let desc = TagRegionDesc {
        tags_base: PhysAddr::new(TAGS),
        tags_bytes: 4 << 15,
        tagged_base: PhysAddr::new(TAGGED),
        tagged_bytes: 4 << 20,
        block_size: 0x1000,
    };
    SimMachine::new(vec![desc], vec![])
}

/// Root, a table of level 2 and one of level 3, empty.
pub fn with_tables(mut sim: SimMachine) -> SimMachine {
    for table in [ROOT, LEVEL_2, LEVEL_3] {
        sim.clear(table);
    }
    sim.publish();
    write(&mut sim, (ROOT, 0), LEVEL_2.addr().get() | PAGE);
    write(&mut sim, (LEVEL_2, 0), LEVEL_3.addr().get() | PAGE);
    sim.take_log();
    sim
}

/// Writes an entry and publishes it.
pub fn write(sim: &mut SimMachine, (table, index): (Frame, usize), raw: u64) {
    sim.write(table, index, raw);
    sim.publish();
}

/// Maps a page of the first 2 MiB.
pub fn map(sim: &mut SimMachine, page: usize, to: Frame, bits: u64) {
    write(sim, (LEVEL_3, page), to.addr().get() | bits | PAGE);
}

/// Takes the page out of the table, and nothing else.
pub fn unmap(sim: &mut SimMachine, page: usize) {
    sim.write(LEVEL_3, page, 0);
}

/// Break in full.
pub fn break_page(sim: &mut SimMachine, page: usize) {
    unmap(sim, page);
    sim.invalidate_page(VMID, ROOT, ipa(page as u64));
}

/// Maps 2 MiB from frame `first` on by one leaf of level 2, in place of nothing.
pub fn map_block(sim: &mut SimMachine, index: usize, first: Frame) {
    let raw = first.addr().get() | NO_TAG_ACCESS | BLOCK;
    write(sim, (LEVEL_2, index), raw);
}

/// Time goes by, and the adversary does what it likes.
pub fn idle(sim: &mut SimMachine) {
    (0..60).for_each(|_| sim.publish());
}

/// How many seeds of the adversary a test tries.
pub const SEEDS: u64 = 200;

/// Whether a thing happens under some seed.
pub fn can_happen(test: impl Fn(u64) -> bool) -> bool {
    (0..SEEDS).any(test)
}

pub fn only(sim: &SimMachine, rule: BrokenRule) {
    assert_eq!(sim.broken_rules(), [rule]);
}

pub fn none(sim: &SimMachine) {
    assert_eq!(sim.broken_rules(), []);
}
