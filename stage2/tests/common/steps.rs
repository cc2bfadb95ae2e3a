//! The steps that hardware sees, on a machine of 8 MiB with tag blocks of 4 KiB.

use stage2::addr::{Frame, FrameRange, Ipa, PAGE_SIZE};
use stage2::block::BlockState;
use stage2::descriptor::{Entry, Leaf, Level, MemAttr, Vacancy, Vmid};
use stage2::fakes::Step;
use stage2::frames::VmId;
use stage2::guest::{Access, MemError, Policy, TagOutcome};
use stage2::pool::BlockId;
use stage2::ports::TableMemory;

use super::{BASE, Board, MIB, World, frame, pa};

/// RAM that no 2 MiB leaf can map.
pub const SMALL: u64 = 2 * MIB - PAGE_SIZE;

pub fn board() -> Board {
    Board::new(&[8 * MIB], 0x1000)
}

/// The machine with one VM whose pages come one by one, its log empty.
pub fn world(mte: bool, policy: Policy) -> World {
    world_of(SMALL, mte, policy)
}

/// The machine with one VM, its log empty.
pub fn world_of(bytes: u64, mte: bool, policy: Policy) -> World {
    let mut world = World::new(&board(), policy);
    world.create(0, bytes, mte, policy).unwrap();
    world.sim.take_log();
    world
}

pub fn id(slot: usize) -> VmId {
    VmId::new(slot as u16).unwrap()
}

/// What TLB entries of VM `slot` are marked with.
pub fn vmid(slot: usize) -> Vmid {
    Vmid(slot as u16 + 1)
}

pub fn access(world: &mut World, slot: usize, ipa: Ipa) -> Result<Access, MemError> {
    let World {
        sim, memory, leave, ..
    } = world;
    memory.access_fault(sim, id(slot), ipa, *leave)
}

pub fn tag(world: &mut World, slot: usize, ipa: Ipa) -> Result<TagOutcome, MemError> {
    let World {
        sim, memory, leave, ..
    } = world;
    memory.tag_fault(sim, id(slot), ipa, *leave)
}

pub fn frame_of(world: &World, slot: usize, ipa: Ipa) -> Frame {
    world.guest(slot).translate(&world.sim, ipa).unwrap()
}

pub fn root(world: &World, slot: usize) -> Frame {
    world.guest(slot).tables().root()
}

/// The table of level 2 behind RAM, once there is one.
pub fn middle_table(world: &World, slot: usize) -> Frame {
    target(world.sim.read(root(world, slot), (BASE >> 30) as usize))
}

/// The table of level 3 behind 2 MiB of RAM, once there is one.
pub fn leaf_table(world: &World, slot: usize, number: usize) -> Frame {
    target(world.sim.read(middle_table(world, slot), number))
}

fn target(raw: u64) -> Frame {
    Frame::containing(pa(raw & 0xffff_ffff_f000))
}

pub fn one(frame: Frame) -> FrameRange {
    FrameRange::new(frame, 1)
}

/// The frames of a block of the only region.
pub fn storage(index: u32) -> FrameRange {
    one(frame(BASE + 8 * MIB).plus(index.into()))
}

/// What the block covers.
pub fn coverage(index: u32) -> FrameRange {
    FrameRange::new(frame(BASE).plus(32 * u64::from(index)), 32)
}

/// The block whose coverage a frame is in.
pub fn block_of(frame: Frame) -> u32 {
    ((frame.addr().get() - BASE) / (32 * PAGE_SIZE)) as u32
}

pub fn state(world: &World, index: u32) -> BlockState {
    let blocks = world.memory.host().blocks();
    blocks.state(BlockId { region: 0, index })
}

/// A table's descriptor.
pub fn link(table: Frame) -> u64 {
    table.addr().get() | 3
}

/// A page's descriptor.
pub fn entry(frame: Frame, attr: MemAttr) -> u64 {
    Entry::Page(Leaf { frame, attr }).encode(Level::Three)
}

/// A 2 MiB leaf's descriptor.
pub fn big_entry(frame: Frame, attr: MemAttr) -> u64 {
    Entry::Page(Leaf { frame, attr }).encode(Level::Two)
}

pub const BROKEN: u64 = Entry::Invalid(Vacancy::Broken).encode(Level::Three);

pub fn sweep(index: u32) -> Vec<Step> {
    vec![
        Step::CleanTags(coverage(index)),
        Step::Synchronize,
        Step::ZeroFrame(storage(index).start),
        Step::CleanData(storage(index)),
        Step::Synchronize,
    ]
}

pub fn maintain(index: u32) -> Vec<Step> {
    vec![
        Step::CleanData(storage(index)),
        Step::Synchronize,
        Step::CleanTags(coverage(index)),
        Step::Synchronize,
    ]
}

/// A page, or the 2 MiB leaf around it, leaves all TLBs.
pub fn invalidate(world: &World, slot: usize, ipa: Ipa) -> Vec<Step> {
    vec![
        Step::Publish,
        Step::LoadVttbr(vmid(slot), root(world, slot)),
        Step::TlbiIpa(vmid(slot), ipa),
        Step::Publish,
        Step::TlbiStage1(vmid(slot)),
        Step::Publish,
    ]
}

/// All of a VM leaves all TLBs.
pub fn invalidate_all(world: &World, slot: usize) -> Vec<Step> {
    vec![
        Step::Publish,
        Step::LoadVttbr(vmid(slot), root(world, slot)),
        Step::TlbiAll(vmid(slot)),
        Step::Publish,
    ]
}

/// The last entries of a table, and its link, leave all TLBs at once; the table is free then.
pub fn detach(world: &World, slot: usize, entries: &[(Frame, usize)]) -> Vec<Step> {
    let entries = entries.iter();
    let mut steps: Vec<Step> = entries
        .map(|&(table, index)| Step::WriteEntry(table, index, 0))
        .collect();
    steps.extend(invalidate_all(world, slot));
    steps
}

/// The page at `index` of the first 2 MiB of RAM is broken.
pub fn break_page(world: &World, slot: usize, index: usize) -> Vec<Step> {
    let table = leaf_table(world, slot, 0);
    let mut steps = vec![Step::WriteEntry(table, index, BROKEN)];
    steps.extend(invalidate(world, slot, super::page(index as u64)));
    steps
}

/// The page at `index` of the first 2 MiB of RAM is made.
pub fn make_page(world: &World, slot: usize, index: usize, raw: u64) -> Vec<Step> {
    let table = leaf_table(world, slot, 0);
    vec![Step::WriteEntry(table, index, raw), Step::Publish]
}

pub fn zero_tags(frame: Frame) -> Vec<Step> {
    vec![Step::ZeroTags(frame), Step::Synchronize]
}
