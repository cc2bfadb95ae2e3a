//! Tag regions: the geometry for any block size, and what is refused with which words.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

mod common;

use common::{BASE, Board, KIB, MIB, frame, pa, range};
use proptest::prelude::*;
use stage2::addr::{Frame, FrameRange, PAGE_SIZE, PhysAddr};
use stage2::guest::Policy;
use stage2::host::{HostMemory, Layout, LayoutError};
use stage2::region::{Dram, MemoryMap, Occupant, Occupied, RegionError, TagRegion, TagRegionDesc};

/// The example of the RFC: 2 GiB whose tags lie far away.
fn rfc() -> (TagRegionDesc, MemoryMap) {
    let desc = TagRegionDesc {
        tags_base: pa(0x8_f800_0000),
        tags_bytes: 0x400_0000,
        tagged_base: pa(0x8000_0000),
        tagged_bytes: 0x8000_0000,
        block_size: 0x1000,
    };
    let dram = [
        range(0x8000_0000, 0x8000_0000),
        range(0x8_8000_0000, 0x7c00_0000),
    ];
    let dram = dram
        .map(|range| Dram {
            range,
            taggable: true,
        })
        .to_vec();
    (
        desc,
        MemoryMap {
            dram,
            occupied: Vec::new(),
        },
    )
}

fn refusal(change: impl Fn(&mut TagRegionDesc, &mut MemoryMap)) -> RegionError {
    let (mut desc, mut memory) = rfc();
    change(&mut desc, &mut memory);
    TagRegion::new(&desc, &memory, &[]).unwrap_err()
}

#[test]
fn the_example_of_the_rfc_is_sound() {
    let (desc, memory) = rfc();
    let region = TagRegion::new(&desc, &memory, &[]).unwrap();
    assert_eq!((region.blocks(), region.block_bytes()), (0x4000, 0x1000));
    assert_eq!(region.block_of(frame(0x8000_0000)), Some(0));
    assert_eq!(region.block_of(frame(0xffff_f000)), Some(0x3fff));
    assert_eq!(region.block_of(frame(0x1_0000_0000)), None);
    assert_eq!(region.storage_of(frame(0x8_f800_1000)), Some(1));
    assert_eq!(region.offline(), []);
}

/// block(X) as the binding says it, in bytes.
fn block_address(desc: &TagRegionDesc, block: u64, x: u64) -> u64 {
    desc.tags_base.get() + (x - desc.tagged_base.get()) / 32 / block * block
}

#[test]
fn blocks_of_any_size_follow_the_formula() {
    for (block_size, block) in [
        (0x1000, 0x1000),
        (0x2000, 0x2000),
        (0x3000, 0x3000),
        (0x8000, 0x8000),
        (1, 0x1000),
        (16, 0x1000),
        (0x1800, 0x3000),
        (0x1001, 0x100_1000),
    ] {
        // The last block covers less than the others.
        let board = Board::new(&[12 * MIB + 20 * KIB], block_size);
        let (desc, region) = (board.descs[0], &board.regions()[0]);
        assert_eq!(region.block_bytes(), block, "block-size {block_size:#x}");
        for x in region.tagged().iter() {
            let index = region.block_of(x).unwrap();
            let storage = region.storage(index);
            let address = block_address(&desc, block, x.addr().get());
            assert_eq!(storage, FrameRange::new(frame(address), block / PAGE_SIZE));
            assert!(region.coverage(index).contains(x));
            assert!(
                storage
                    .iter()
                    .all(|frame| region.storage_of(frame) == Some(index))
            );
        }
        let covered: u64 = (0..region.blocks()).map(|b| region.coverage(b).count).sum();
        assert_eq!(covered, region.tagged().count, "each frame is covered once");
        assert!(region.coverage(region.blocks() - 1).count <= region.coverage_frames());
    }
}

#[test]
fn what_is_refused_says_why_in_one_line() {
    type Change = fn(&mut TagRegionDesc, &mut MemoryMap);
    let table: [(Change, &str); 18] = [
        (|d, _| d.block_size = 0, "block-size is 0"),
        (|d, _| d.tags_bytes = 0, "the range at 0x8f8000000 is empty"),
        (
            |d, _| d.tagged_bytes = 0,
            "the range at 0x80000000 is empty",
        ),
        (
            |d, _| d.tags_base = pa(u64::MAX - 0xfff),
            "the range at 0xfffffffffffff000 of 0x4000000 bytes passes the end of memory",
        ),
        (
            |d, _| d.tagged_bytes = u64::MAX,
            "the range at 0x80000000 of 0xffffffffffffffff bytes passes the end of memory",
        ),
        (
            |d, _| d.tags_base = pa(0x8_f800_0800),
            "[0x8f8000800, 0x8fc000800) is not aligned to 4 KiB",
        ),
        (
            |d, _| d.tagged_base = pa(0x8000_0010),
            "[0x80000010, 0x100000010) is not aligned to 4 KiB",
        ),
        (
            |d, _| d.tags_bytes = 0x3ff_f000,
            "the carve-out has 0x3fff000 bytes, its tagged memory needs 0x4000000",
        ),
        (
            |d, _| d.block_size = 0x3000,
            "the carve-out has 0x4000000 bytes, its tagged memory needs 0x4002000",
        ),
        (
            |d, _| d.block_size = 0xffff_ffff,
            "the carve-out has 0x4000000 bytes, its tagged memory needs 0xffffffff000",
        ),
        (
            |d, _| d.tags_base = pa(0x9_0000_0000),
            "the carve-out [0x900000000, 0x904000000) is not all DRAM",
        ),
        (
            |d, _| d.tags_base = pa(0x8_fb00_0000),
            "the carve-out [0x8fb000000, 0x8ff000000) is not all DRAM",
        ),
        (
            |_, m| m.dram.clear(),
            "the carve-out [0x8f8000000, 0x8fc000000) is not all DRAM",
        ),
        (
            |d, _| d.tags_base = pa(0x9000_0000),
            "[0x90000000, 0x94000000) overlaps [0x80000000, 0x100000000)",
        ),
        (
            |d, _| d.tagged_base = pa(0x8_8000_0000),
            "[0x8f8000000, 0x8fc000000) overlaps [0x880000000, 0x900000000)",
        ),
        (
            |_, m| {
                let loaded = range(0x8_fbff_ffff, 0x10);
                m.occupied.push(Occupied {
                    range: loaded,
                    by: Occupant::Data,
                });
            },
            "[0x8fbffffff, 0x8fc00000f) was loaded into the carve-out [0x8f8000000, \
             0x8fc000000): load it elsewhere",
        ),
        (
            |d, _| (d.tagged_bytes, d.tags_bytes) = (1 << 62, 1 << 57),
            "[0x8f8000000, 0x2000008f8000000) overlaps [0x80000000, 0x4000000080000000)",
        ),
        (
            |d, _| (d.block_size, d.tags_bytes) = (0xffff_ffff, 0xfff_ffff_f000),
            "a block of 0xffffffff000 bytes is too large",
        ),
    ];
    for (change, message) in table {
        assert_eq!(refusal(change).to_string(), message);
    }
}

#[test]
fn a_region_that_overlaps_another_is_refused_even_if_the_other_is_unsound() {
    let (desc, memory) = rfc();
    let mut other = desc;
    other.block_size = 0;
    (other.tagged_base, other.tagged_bytes) = (pa(0x10_0000_0000), 0x8000_0000);
    let refused = TagRegion::new(&desc, &memory, &[other]);
    let tags = range(0x8_f800_0000, 0x400_0000);
    assert_eq!(
        refused,
        Err(RegionError::Overlap {
            ours: tags,
            other: tags
        })
    );
    // Its tagged memory would be our carve-out: tags of tags.
    (other.tags_base, other.tagged_base) = (pa(0x20_0000_0000), pa(0x8_8000_0000));
    assert!(matches!(
        TagRegion::new(&desc, &memory, &[other]),
        Err(RegionError::Overlap { .. })
    ));
}

fn offline(board: &Board) -> Vec<u32> {
    board.regions()[0]
        .offline()
        .iter()
        .cloned()
        .flatten()
        .collect()
}

#[test]
fn a_block_is_offline_if_a_byte_of_it_or_of_its_coverage_is_not_ours() {
    let board = || Board::new(&[8 * MIB], 0x2000);
    let tags = BASE + 8 * MIB;
    let firmware = |base, bytes| Occupied {
        range: range(base, bytes),
        by: Occupant::Firmware,
    };
    assert_eq!(offline(&board()), []);
    // Blocks cover 256 KiB each.
    let covered = board().occupy(firmware(BASE + 256 * KIB - 1, 2));
    assert_eq!(offline(&covered), [0, 1]);
    let own = board().occupy(firmware(tags + 0x2000 * 5 + 0x1fff, 1));
    assert_eq!(offline(&own), [5]);
    let taken = |base, by| Occupied {
        range: range(base, 1),
        by,
    };
    let image = taken(BASE + MIB, Occupant::Image);
    assert_eq!(offline(&board().occupy(image)), [4]);
    let data = taken(BASE + MIB, Occupant::Data);
    assert_eq!(offline(&board().occupy(data)), [], "it has no tags");
    let both = board()
        .occupy(firmware(BASE + MIB, MIB))
        .occupy(firmware(BASE + MIB, 2 * MIB));
    assert_eq!(offline(&both), (4..12).collect::<Vec<_>>());
    let elsewhere = board().occupy(firmware(0, BASE));
    assert_eq!(offline(&elsewhere), []);
}

#[test]
fn a_hole_in_the_tagged_memory_puts_its_blocks_offline_and_the_machine_still_works() {
    let mut board = Board::new(&[8 * MIB], 0x1000);
    let end = board.memory.dram[0].range.end().get();
    board.memory.dram[0].range = range(BASE, 3 * MIB + 4 * KIB);
    let rest = Dram {
        range: range(BASE + 4 * MIB, end - BASE - 4 * MIB),
        taggable: true,
    };
    board.memory.dram.push(rest);
    assert_eq!(offline(&board), (24..32).collect::<Vec<_>>());
    let account = board.memory(Policy::Lazy).account();
    assert_eq!(account.offline, 8 * PAGE_SIZE);
    assert_eq!(account.ledger.sum(), account.discovered);
    assert_eq!(
        account.discovered,
        7 * MIB + 4 * KIB + 8 * MIB / 32 + 64 * KIB
    );
}

#[test]
fn tagged_memory_that_cannot_have_tags_is_not_ours_to_tag() {
    let mut board = Board::new(&[8 * MIB], 0x1000);
    let end = board.memory.dram[0].range.end().get();
    board.memory.dram[0].range = range(BASE, 4 * MIB);
    board.memory.dram.push(Dram {
        range: range(BASE + 4 * MIB, end - BASE - 4 * MIB),
        taggable: false,
    });
    assert_eq!(offline(&board), (32..64).collect::<Vec<_>>());
}

#[test]
fn memory_described_twice_or_too_high_is_refused() {
    let host = |dram: Vec<Dram>| {
        let memory = MemoryMap {
            dram,
            occupied: Vec::new(),
        };
        HostMemory::new(Layout {
            memory,
            regions: Vec::new(),
            policy: Policy::Lazy,
        })
        .map(drop)
    };
    let dram = |base, bytes| Dram {
        range: range(base, bytes),
        taggable: true,
    };
    let twice = host(vec![dram(BASE, MIB), dram(BASE + MIB - 1, MIB)]);
    assert_eq!(twice, Err(LayoutError::Overlap(range(BASE + MIB - 1, MIB))));
    let high = host(vec![dram((1 << 48) - MIB, MIB + 1)]);
    assert_eq!(
        high,
        Err(LayoutError::TooHigh(range((1 << 48) - MIB, MIB + 1)))
    );
    assert_eq!(
        host(vec![
            dram((1 << 48) - MIB, MIB),
            dram(BASE, 1),
            dram(BASE + 1, 0)
        ]),
        Ok(())
    );
    let board = Board::new(&[8 * MIB], 0x1000);
    let regions = vec![board.regions().remove(0), board.regions().remove(0)];
    let other = MemoryMap {
        dram: vec![dram(BASE, 8 * MIB)],
        occupied: Vec::new(),
    };
    let layout = Layout {
        memory: other,
        regions: board.regions(),
        policy: Policy::Lazy,
    };
    assert!(matches!(
        HostMemory::new(layout),
        Err(LayoutError::RegionOutsideDram(_))
    ));
    let layout = Layout {
        memory: board.memory,
        regions,
        policy: Policy::Lazy,
    };
    assert!(matches!(
        HostMemory::new(layout),
        Err(LayoutError::RegionsOverlap(_))
    ));
}

fn any_desc() -> impl Strategy<Value = TagRegionDesc> {
    let near = |around: u64| {
        prop_oneof![
            4 => (0..64_u64).prop_map(move |n| around + n * 0x800),
            1 => any::<u64>(),
            1 => Just(around),
        ]
    };
    let block = prop_oneof![any::<u32>(), 0..0x9000_u32, Just(0x1000)];
    (
        near(BASE + 8 * MIB),
        near(256 * KIB),
        near(BASE),
        near(8 * MIB),
        block,
    )
        .prop_map(
            |(tags_base, tags_bytes, tagged_base, tagged_bytes, block_size)| TagRegionDesc {
                tags_base: PhysAddr::new(tags_base),
                tags_bytes,
                tagged_base: PhysAddr::new(tagged_base),
                tagged_bytes,
                block_size,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn no_description_panics_and_what_is_accepted_is_sound(
        descs in proptest::collection::vec(any_desc(), 1..3),
        taken in proptest::collection::vec((0..10 * MIB, 0..MIB), 0..4),
    ) {
        let dram = vec![Dram { range: range(BASE, 10 * MIB), taggable: true }];
        let taken = taken.into_iter().map(|(at, bytes)| Occupied {
            range: range(BASE + at, bytes),
            by: Occupant::Firmware,
        });
        let memory = MemoryMap { dram, occupied: taken.collect() };
        let others: Vec<_> = descs.iter().skip(1).copied().collect();
        if let Ok(region) = TagRegion::new(&descs[0], &memory, &others) {
            prop_assert!(region.offline().iter().all(|range| range.end <= region.blocks()));
            for index in 0..region.blocks() {
                prop_assert!(!region.coverage(index).is_empty());
                let online = !region.offline().iter().any(|range| range.contains(&index));
                let overlaps = |frames: FrameRange| memory.occupied.iter()
                    .any(|taken| !taken.range.outer_frames().intersect(frames).is_empty());
                let clear = !overlaps(region.coverage(index)) && !overlaps(region.storage(index));
                prop_assert!(!online || clear, "block {} is used and not all ours", index);
            }
            let layout = Layout { memory: memory.clone(), regions: vec![region], policy: Policy::Lazy };
            let account = HostMemory::new(layout).unwrap().account();
            prop_assert_eq!(account.ledger.sum(), account.discovered);
            prop_assert_eq!(account.discovered, 10 * MIB);
        }
    }

    #[test]
    fn no_frame_is_both_table_memory_and_taken(
        taken in proptest::collection::vec((0..9 * MIB, 0..MIB), 0..6),
        block in proptest::sample::select(vec![0x1000_u32, 0x3000, 0x8000]),
    ) {
        let mut board = Board::new(&[8 * MIB], block);
        let tags = board.regions()[0].tags();
        for (at, bytes) in taken {
            let range = range(BASE + at, bytes);
            if range.outer_frames().intersect(tags).is_empty() {
                board.memory.occupied.push(Occupied { range, by: Occupant::Data });
            }
        }
        let mut memory = board.memory(Policy::Lazy);
        let host = memory.host_mut();
        let mut seen: Vec<Frame> = std::iter::from_fn(|| host.alloc_table_page()).collect();
        let account = host.account();
        prop_assert_eq!(account.tables, account.ledger.tables);
        prop_assert_eq!(account.ledger.free + account.ledger.free_untaggable, 0);
        prop_assert_eq!(account.ledger.sum(), account.discovered);
        for &frame in &seen {
            prop_assert!(!tags.contains(frame));
            prop_assert!(board.memory.occupied.iter().all(|o| !o.range.outer_frames().contains(frame)));
        }
        let all = seen.len();
        seen.sort_unstable();
        seen.dedup();
        prop_assert_eq!(seen.len(), all, "a frame was given twice");
    }
}
