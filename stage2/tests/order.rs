//! Operations that move pages or change the size of a leaf, step by step: the order that hardware
//! sees. What goes before what is the point: a page is out of reach while it is copied, a block is
//! reserved before it is mapped with tag access, and maintained at each change of role.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

mod common;

use common::steps::*;
use common::{BASE, MIB, World, page};
use stage2::addr::{Frame, FrameRange, Ipa, PAGE_SIZE, PhysAddr};
use stage2::block::BlockState;
use stage2::descriptor::MemAttr;
use stage2::fakes::Step;
use stage2::guest::{Access, Image, MemError, Policy, TagOutcome};

use MemAttr::{NoTagAccess, WriteBack};

fn zero(frames: FrameRange) -> Vec<Step> {
    let mut steps: Vec<Step> = frames.iter().map(Step::ZeroFrame).collect();
    steps.push(Step::SyncCode(frames));
    steps
}

fn write(table: Frame, index: usize, raw: u64) -> Vec<Step> {
    vec![Step::WriteEntry(table, index, raw), Step::Publish]
}

fn release_tags(frame: Frame) -> Vec<Step> {
    vec![Step::CleanTags(one(frame)), Step::Synchronize]
}

#[test]
fn the_first_access_to_a_whole_slot_zeroes_2_mib_then_makes_one_leaf() {
    let mut world = world_of(4 * MIB, true, Policy::Lazy);
    let Access::Mapped(third) = access(&mut world, 0, page(3)).unwrap() else {
        panic!()
    };
    let first = third.plus(0).number() - 3;
    let piece = FrameRange::new(Frame::from_number(first), 512);
    let middle = middle_table(&world, 0);
    let expected = [
        zero(piece),
        vec![Step::ClearTable(middle), Step::Publish],
        vec![Step::WriteEntry(root(&world, 0), 1, link(middle))],
        write(middle, 0, big_entry(piece.start, NoTagAccess)),
    ];
    assert_eq!(world.sim.take_log(), expected.concat());
    assert_eq!(world.guest(0).account().resident, 2 * MIB);
    // With the table there, only the leaf is left.
    access(&mut world, 0, page(512)).unwrap();
    let second = FrameRange::new(frame_of(&world, 0, page(512)), 512);
    let leaf = write(middle, 1, big_entry(second.start, NoTagAccess));
    assert_eq!(world.sim.take_log(), [zero(second), leaf].concat());
    assert_eq!(world.guest(0).account().big_leaves, 2);
    world.check();
}

#[test]
fn an_image_is_copied_before_its_page_is_mapped_and_zeroes_go_only_where_it_does_not_cover_all() {
    let mut world = world_of(4 * MIB, true, Policy::Lazy);
    let source = |offset| PhysAddr::new(0x1000_0074 + offset);
    // From the middle of page 3 to the end of the second 2 MiB.
    let (start, length) = (3 * PAGE_SIZE + 0x800, 4 * MIB - 3 * PAGE_SIZE - 0x800);
    let image = Image {
        ipa: Ipa::new(BASE + start),
        source: source(0),
        bytes: length,
    };
    world
        .memory
        .set_images(id(0), [image, Image::NONE])
        .unwrap();
    access(&mut world, 0, page(0)).unwrap();
    let first = FrameRange::new(frame_of(&world, 0, page(0)), 512);
    let to = PhysAddr::new(first.start.addr().get() + start);
    let mut expected: Vec<Step> = first.iter().map(Step::ZeroFrame).collect();
    expected.push(Step::CopyImage(source(0), to, 2 * MIB - start));
    expected.push(Step::SyncCode(first));
    let log = world.sim.take_log();
    assert_eq!(log[..expected.len()], expected);
    access(&mut world, 0, page(600)).unwrap();
    let second = FrameRange::new(frame_of(&world, 0, page(512)), 512);
    let middle = middle_table(&world, 0);
    let copied = [
        Step::CopyImage(source(2 * MIB - start), second.start.addr(), 2 * MIB),
        Step::SyncCode(second),
    ];
    let leaf = write(middle, 1, big_entry(second.start, NoTagAccess));
    assert_eq!(world.sim.take_log(), [copied.to_vec(), leaf].concat());
    world.check();
}

#[test]
fn a_page_of_an_image_that_gets_tags_at_its_first_access_is_copied_before_they_are_zeroed() {
    let mut world = world(true, Policy::Eager);
    let source = PhysAddr::new(0x1000_0074);
    let image = Image {
        ipa: page(1),
        source,
        bytes: 100,
    };
    world
        .memory
        .set_images(id(0), [Image::NONE, image])
        .unwrap();
    world.store(0, page(0), 1).unwrap();
    world.sim.take_log();
    access(&mut world, 0, page(1)).unwrap();
    let frame = frame_of(&world, 0, page(1));
    let copied = vec![
        Step::ZeroFrame(frame),
        Step::CopyImage(source, frame.addr(), 100),
        Step::SyncCode(one(frame)),
    ];
    let made = make_page(&world, 0, 1, entry(frame, WriteBack));
    assert_eq!(
        world.sim.take_log(),
        [copied, zero_tags(frame), made].concat()
    );
    world.check_only_core();
    assert_eq!(world.sim.broken_rules(), []);
}

#[test]
fn images_are_only_where_ram_is() {
    let mut world = world(true, Policy::Lazy);
    let image = |ipa, bytes| Image {
        ipa: Ipa::new(ipa),
        source: PhysAddr::new(0),
        bytes,
    };
    for (bad, what) in [
        (image(BASE - 1, 2), "before it"),
        (image(BASE + SMALL - 1, 2), "behind it"),
        (image(BASE, u64::MAX), "no end"),
        (image(BASE + 1, u64::MAX), "an end that wraps"),
    ] {
        let set = world.memory.set_images(id(0), [Image::NONE, bad]);
        assert!(matches!(set, Err(MemError::NotRam(_))), "{what}");
    }
    let all = image(BASE, SMALL);
    assert_eq!(world.memory.set_images(id(0), [all, Image::NONE]), Ok(()));
}

/// The steps of a split at `index`, of a leaf that mapped 2 MiB from `first` on.
fn split(world: &World, first: Frame, index: usize) -> Vec<Step> {
    let (middle, table) = (middle_table(world, 0), leaf_table(world, 0, 0));
    let raw = |at| entry(first.plus(at as u64), NoTagAccess);
    [
        vec![Step::ClearTable(table)],
        (0..512)
            .map(|at| Step::WriteEntry(table, at, raw(at)))
            .collect(),
        vec![Step::WriteEntry(table, index, BROKEN)],
        vec![Step::WriteEntry(middle, 0, BROKEN)],
        invalidate(world, 0, page(index as u64)),
        write(middle, 0, link(table)),
    ]
    .concat()
}

#[test]
fn the_first_tag_access_fills_a_table_then_breaks_the_leaf_once_and_tags_one_page() {
    let mut world = world_of(4 * MIB, true, Policy::Lazy);
    world.store(0, page(0), 1).unwrap();
    world.store(0, page(7), 2).unwrap();
    let first = frame_of(&world, 0, page(0));
    world.sim.take_log();
    assert_eq!(tag(&mut world, 0, page(7)), Ok(TagOutcome::Tagged));
    let seventh = first.plus(7);
    let expected = [
        sweep(0),
        maintain(0),
        split(&world, first, 7),
        zero_tags(seventh),
        make_page(&world, 0, 7, entry(seventh, WriteBack)),
    ]
    .concat();
    let log = world.sim.take_log();
    assert_eq!(log, expected);
    let tlbis = log.iter().filter(|step| matches!(step, Step::TlbiIpa(..)));
    assert_eq!(tlbis.count(), 1);
    world.ldg(0, page(7)).unwrap();
    let pages = world.guest(0).account().pages;
    assert_eq!((pages.tagged, pages.no_tag_access), (1, 511));
    world.read_back();
    world.check();
}

#[test]
fn a_page_moves_to_a_free_frame_of_a_reserved_block_while_it_is_out_of_reach() {
    let mut world = world(true, Policy::Lazy);
    world.stg(0, page(0), 3).unwrap();
    world.store(0, page(40), 9).unwrap();
    let (from, to) = (
        frame_of(&world, 0, page(40)),
        frame_of(&world, 0, page(0)).plus(1),
    );
    world.sim.take_log();
    assert_eq!(tag(&mut world, 0, page(40)), Ok(TagOutcome::Tagged));
    let expected = [
        break_page(&world, 0, 40),
        vec![Step::Copy(from, to), Step::SyncCode(one(to))],
        zero_tags(to),
        make_page(&world, 0, 40, entry(to, WriteBack)),
    ];
    assert_eq!(world.sim.take_log(), expected.concat());
    assert_eq!(state(&world, 0), BlockState::Reserved { users: 2 });
    assert_eq!(state(&world, 1), BlockState::Unswept, "no block was opened");
    assert_eq!(world.guest(0).account().moves, 1);
    world.ldg(0, page(40)).unwrap();
    world.read_back();
    world.check();
}

#[test]
fn two_pages_swap_while_both_are_out_of_reach_where_no_frame_is_free() {
    let mut world = world(true, Policy::Lazy);
    (0..32).for_each(|number| world.store(0, page(number), number as u8).unwrap());
    world.store(0, page(40), 99).unwrap();
    world.stg(0, page(0), 3).unwrap();
    let (from, to) = (frame_of(&world, 0, page(40)), frame_of(&world, 0, page(1)));
    world.sim.take_log();
    assert_eq!(tag(&mut world, 0, page(40)), Ok(TagOutcome::Tagged));
    let expected = [
        break_page(&world, 0, 40),
        break_page(&world, 0, 1),
        vec![
            Step::Exchange(from, to),
            Step::SyncCode(one(from)),
            Step::SyncCode(one(to)),
        ],
        zero_tags(to),
        make_page(&world, 0, 40, entry(to, WriteBack)),
        make_page(&world, 0, 1, entry(from, NoTagAccess)),
    ];
    assert_eq!(world.sim.take_log(), expected.concat());
    assert_eq!(state(&world, 0), BlockState::Reserved { users: 2 });
    assert_eq!(world.guest(0).account().moves, 2);
    world.ldg(0, page(40)).unwrap();
    world.read_back();
    world.check();
}

#[test]
fn lending_sweeps_a_block_that_boot_may_have_used_then_zeroes_the_page() {
    let mut world = world_of(4 * MIB, false, Policy::Lazy);
    let Access::Mapped(mapped) = access(&mut world, 0, page(0)).unwrap() else {
        panic!()
    };
    assert_eq!(one(mapped), storage(63), "least wanted: from the top");
    let (middle, leaf) = (middle_table(&world, 0), leaf_table(&world, 0, 0));
    let expected = [
        sweep(63),
        zero(one(mapped)),
        vec![
            Step::ClearTable(leaf),
            Step::ClearTable(middle),
            Step::WriteEntry(middle, 0, link(leaf)),
            Step::Publish,
            Step::WriteEntry(root(&world, 0), 1, link(middle)),
        ],
        write(leaf, 0, entry(mapped, WriteBack)),
    ];
    assert_eq!(world.sim.take_log(), expected.concat());
    assert_eq!(state(&world, 63), BlockState::Lent { frames: 1 });
    world.check();
}

#[test]
fn a_return_takes_no_step_but_the_unmapping_and_the_next_lending_does_not_sweep() {
    let mut world = world_of(4 * MIB, false, Policy::Lazy);
    world.store(0, page(0), 7).unwrap();
    let (middle, leaf) = (middle_table(&world, 0), leaf_table(&world, 0, 0));
    world.sim.take_log();
    world.reset(0);
    let expected = [
        detach(&world, 0, &[(leaf, 0), (middle, 0)]),
        detach(&world, 0, &[(root(&world, 0), 1)]),
    ];
    assert_eq!(world.sim.take_log(), expected.concat());
    assert_eq!(state(&world, 63), BlockState::Free);
    world.load(0, page(0)).unwrap();
    assert_eq!(state(&world, 63), BlockState::Lent { frames: 1 });
    assert_eq!(world.sim.take_log()[..2], zero(storage(63)));
    world.check();
}

/// VM 0 tags, and its chunk's blocks hold data of VM 1: all tag storage is lent.
fn all_lent() -> World {
    let mut world = world(true, Policy::Lazy);
    world.store(0, page(0), 5).unwrap();
    world.create(1, MIB, false, Policy::Lazy).unwrap();
    (0..64).for_each(|number| world.store(1, page(number), number as u8).unwrap());
    assert_eq!(world.memory.account().free, 0);
    world.sim.take_log();
    world
}

#[test]
fn a_lent_block_is_emptied_under_its_owners_vmid_then_maintained_then_reserved() {
    let mut world = all_lent();
    let (first, storage) = (frame_of(&world, 0, page(0)), storage(0).start);
    let victim = (0..64).find(|&number| frame_of(&world, 1, page(number)) == storage);
    let victim = victim.unwrap();
    assert_eq!(tag(&mut world, 0, page(0)), Ok(TagOutcome::Tagged));
    let to = frame_of(&world, 1, page(victim));
    let expected = [
        break_page(&world, 1, victim as usize),
        vec![
            Step::Copy(storage, to),
            Step::SyncCode(one(to)),
            Step::Synchronize,
        ],
        make_page(&world, 1, victim as usize, entry(to, WriteBack)),
        maintain(0),
        break_page(&world, 0, 0),
        zero_tags(first),
        make_page(&world, 0, 0, entry(first, WriteBack)),
    ];
    assert_eq!(world.sim.take_log(), expected.concat());
    assert_eq!(state(&world, 0), BlockState::Reserved { users: 1 });
    let (cause, suffered) = (world.guest(0).account(), world.guest(1).account());
    assert_eq!(
        (cause.evictions_caused, suffered.evictions_suffered),
        (1, 1)
    );
    world.ldg(0, page(0)).unwrap();
    world.read_back();
    world.check();
}

#[test]
fn a_fault_without_leave_to_evict_waits_and_changes_nothing() {
    let mut world = all_lent();
    world.leave = 0;
    let throttled = world.guest(0).account().throttled;
    let before = world.figures().pages;
    assert_eq!(tag(&mut world, 0, page(0)), Ok(TagOutcome::Wait));
    assert_eq!(world.sim.take_log(), []);
    assert_eq!(world.figures().pages, before);
    assert_eq!(world.guest(0).account().throttled, throttled + 1);
    world.leave = 1;
    world.ldg(0, page(0)).unwrap();
    world.check();
}

#[test]
fn a_demotion_breaks_makes_then_cleans_tags_while_reserved_and_scrubs_at_the_last() {
    let mut world = world(true, Policy::Lazy);
    world.watch = false;
    (0..2).for_each(|number| world.ldg(0, page(number)).unwrap());
    world.stg(0, page(2), 1).unwrap();
    let first = frame_of(&world, 0, page(0));
    let demoted = |world: &World, index: usize| {
        let frame = first.plus(index as u64);
        let made = make_page(world, 0, index, entry(frame, NoTagAccess));
        [break_page(world, 0, index), made, release_tags(frame)].concat()
    };
    world.sim.take_log();
    assert_eq!(world.demote(0, 3), 2);
    let expected = [demoted(&world, 0), demoted(&world, 1)].concat();
    assert_eq!(
        world.sim.take_log(),
        expected,
        "no step for the page that has tags"
    );
    assert_eq!(state(&world, 0), BlockState::Reserved { users: 1 });
    world.stg(0, page(2), 0).unwrap();
    assert_eq!(world.demote(0, 511), 1);
    let expected = [demoted(&world, 2), sweep(0)].concat();
    assert_eq!(world.sim.take_log(), expected);
    assert_eq!(state(&world, 0), BlockState::Free);
    assert_eq!(world.guest(0).account().demotions, 3);
    world.check();
}

#[test]
fn a_slot_that_is_uniform_again_is_joined_with_all_of_the_vm_invalidated() {
    let mut world = world_of(4 * MIB, true, Policy::Lazy);
    world.watch = false;
    world.ldg(0, page(0)).unwrap();
    let (first, middle) = (frame_of(&world, 0, page(0)), middle_table(&world, 0));
    world.store(0, page(100), 8).unwrap();
    let broken = break_page(&world, 0, 0);
    let made = make_page(&world, 0, 0, entry(first, NoTagAccess));
    world.sim.take_log();
    assert_eq!(world.demote(0, 1), 1);
    let expected = [
        broken,
        made,
        release_tags(first),
        sweep(0),
        vec![Step::WriteEntry(middle, 0, BROKEN)],
        invalidate_all(&world, 0),
        write(middle, 0, big_entry(first, NoTagAccess)),
    ];
    assert_eq!(world.sim.take_log(), expected.concat());
    let account = world.guest(0).account();
    assert_eq!((account.big_leaves, account.pages.no_tag_access), (1, 512));
    assert_eq!(world.memory.account().tables, 2 * PAGE_SIZE);
    world.read_back();
    world.check();
}

/// Block 0 has 4 pages with tags, all its other frames are in use; block 1 has one.
fn sparse() -> World {
    let mut world = world(true, Policy::Lazy);
    world.watch = false;
    (0..32).for_each(|number| world.ldg(0, page(number)).unwrap());
    (0..4).for_each(|number| world.stg(0, page(number), 1 + number as u8).unwrap());
    world.stg(0, page(32), 9).unwrap();
    world.store(0, page(4), 44).unwrap();
    world.store(0, page(32), 32).unwrap();
    assert_eq!(world.demote(0, 33), 28);
    let users = |index| state(&world, index);
    assert_eq!(users(0), BlockState::Reserved { users: 4 });
    assert_eq!(users(1), BlockState::Reserved { users: 1 });
    world.sim.take_log();
    world
}

#[test]
fn compaction_moves_data_and_tags_while_both_pages_are_out_of_reach_then_frees_the_block() {
    let mut world = sparse();
    let (from, to) = (frame_of(&world, 0, page(32)), frame_of(&world, 0, page(4)));
    assert_eq!(world.compact(0), Ok(1));
    let expected = [
        break_page(&world, 0, 32),
        break_page(&world, 0, 4),
        vec![
            Step::Exchange(from, to),
            Step::SyncCode(one(from)),
            Step::SyncCode(one(to)),
        ],
        vec![Step::CopyTags(from, to), Step::Synchronize],
        make_page(&world, 0, 32, entry(to, WriteBack)),
        make_page(&world, 0, 4, entry(from, NoTagAccess)),
        release_tags(from),
        sweep(1),
    ];
    assert_eq!(world.sim.take_log(), expected.concat());
    assert_eq!(state(&world, 0), BlockState::Reserved { users: 5 });
    assert_eq!(state(&world, 1), BlockState::Free);
    world.read_back();
    world.check();
}

#[test]
fn the_highest_moment_of_a_vm_that_leaves_is_told_with_all_its_tags() {
    let mut world = World::new(&board(), Policy::Lazy);
    world.create(0, SMALL, true, Policy::Lazy).unwrap();
    // Two blocks hold their tags, one would do once the first half of the pages is gone; both stay reserved until then.
    (0..500).for_each(|number| world.store(0, page(number), 1).unwrap());
    let tagged = (0..25)
        .chain(10..25)
        .zip(0..)
        .map(|(number, count)| 20 * number + count / 25);
    tagged.for_each(|number| world.stg(0, page(number), 1).unwrap());
    let before = world.memory.account();
    assert_eq!(before.reserved, 2 * PAGE_SIZE);
    world.release(0, 4);
    let amid = world.memory.account();
    assert!(amid.reserved == before.reserved && amid.ideal > before.ideal);
    world.destroy(0);
    assert_eq!(world.memory.account().reserved, 0);
    let highest = world.memory.highest();
    assert_eq!(
        (highest.reserved, highest.ideal),
        (before.reserved, before.ideal)
    );
}

#[test]
fn only_blocks_with_as_few_users_as_was_asked_for_are_emptied() {
    // One user of the 32 pages that the block covers: 3.125 %.
    for (percent, moved) in [(0, 0), (3, 0), (4, 1), (100, 1)] {
        let mut world = sparse();
        assert_eq!(world.compact_below(0, percent), Ok(moved), "{percent} %");
        world.check();
    }
}

#[test]
fn the_highest_moment_before_a_compaction_is_told_without_its_hold() {
    let mut world = World::new(&board(), Policy::Lazy);
    world.create(0, SMALL, true, Policy::Lazy).unwrap();
    // 24 pages in one block, 8 in the other: one would do, and 33 users would need two.
    (0..40).for_each(|number| world.ldg(0, page(number)).unwrap());
    (0..24).for_each(|number| world.stg(0, page(number), 1).unwrap());
    (32..40).for_each(|number| world.stg(0, page(number), 1).unwrap());
    world.demote(0, 511);
    let before = world.memory.account();
    assert_eq!(before.reserved, 2 * PAGE_SIZE);
    assert_eq!(world.compact(0), Ok(8));
    assert_eq!(world.memory.account().reserved, PAGE_SIZE);
    let highest = world.memory.highest();
    assert_eq!(
        (highest.reserved, highest.ideal),
        (before.reserved, before.ideal)
    );
}

#[test]
fn a_reset_unmaps_big_leaves_and_lent_pages_part_by_part_and_scrubs_only_tags() {
    let mut world = all_lent();
    world.watch = false;
    world.create(2, 2 * MIB, true, Policy::Lazy).unwrap();
    world.load(2, page(0)).unwrap();
    assert_eq!(world.guest(2).account().big_leaves, 1);
    world.sim.take_log();
    let middle = middle_table(&world, 2);
    world.reset(2);
    let big = detach(&world, 2, &[(middle, 0), (root(&world, 2), 1)]);
    assert_eq!(world.sim.take_log(), big);
    // The 64 pages are a part; the table, in which it did not see that nothing is left, is another.
    let (middle, leaf) = (middle_table(&world, 1), leaf_table(&world, 1, 0));
    world.reset(1);
    let pages: Vec<_> = (0..64).map(|index| (leaf, index)).collect();
    let expected = [
        detach(&world, 1, &[&pages[..], &[(middle, 0)]].concat()),
        detach(&world, 1, &[(root(&world, 1), 1)]),
    ];
    assert_eq!(world.sim.take_log(), expected.concat());
    for slot in [2, 1] {
        assert_eq!(world.guest(slot).account().resident, 0);
    }
    assert_eq!(world.memory.account().lent, 0);
    world.check();
    (0..3).for_each(|slot| world.destroy(slot));
    world.check();
    let ledger = board().memory(Policy::Lazy).account().ledger;
    assert_eq!(world.memory.account().ledger, ledger);
}
