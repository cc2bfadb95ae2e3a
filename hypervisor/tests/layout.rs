//! Who gets which DRAM: from the board and what is loaded to what EL2 maps and what guests may have.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

mod support;

use core::ops::Range;

use hypervisor::layout::{Layout, Loaded, Unusable, heap_bytes, without};
use hypervisor::life::MAX_CPUS;
use hypervisor::stacks::Stacks;
use platform::{Machine, MemRange, Memory, ReservedBy, TagRegionNode};
use stage2::guest::Policy;
use stage2::host::{HostMemory, Layout as HostLayout};
use stage2::region::{Occupant, RegionError};
use support::*;

const GIB: u64 = 1 << 30;

fn covers(ranges: &[Range<u64>], wanted: &Range<u64>) -> bool {
    without(std::slice::from_ref(wanted), ranges).is_empty()
}

fn touches(ranges: &[Range<u64>], wanted: &Range<u64>) -> bool {
    let overlap = |range: &&Range<u64>| range.start < wanted.end && wanted.start < range.end;
    ranges.iter().find(overlap).is_some()
}

fn taken(layout: &Layout, by: Occupant) -> Vec<Range<u64>> {
    let occupied = layout.map.occupied.iter().filter(|taken| taken.by == by);
    occupied
        .map(|taken| taken.range.base().get()..taken.range.end().get())
        .collect()
}

fn storage(machine: &Machine) -> Range<u64> {
    let node = &machine.tag_regions[0];
    node.tag_base..node.tag_base + node.tag_bytes
}

/// What holds for each layout: all DRAM is accounted for, what is loaded is readable and nobody else's.
fn check(machine: &Machine, loaded: &Loaded, layout: &Layout) -> HostMemory {
    let host = HostMemory::new(HostLayout {
        memory: layout.map.clone(),
        regions: layout.regions.clone(),
        policy: Policy::Lazy,
    })
    .unwrap();
    let account = host.account();
    assert_eq!(account.discovered, machine.memory_bytes());
    assert_eq!(account.ledger.sum(), account.discovered);
    assert!(
        !touches(&layout.data, &loaded.image),
        "mapped as code, not data"
    );
    let ours = taken(layout, Occupant::Data);
    for range in [&loaded.dtb, &layout.heap] {
        assert!(covers(&ours, range), "{range:x?}");
    }
    assert!(covers(&taken(layout, Occupant::Image), &loaded.image));
    // A block that is used is swept first, through the Tagged view of what it covers.
    for region in &layout.regions {
        let offline = |block| region.offline().iter().any(|range| range.contains(&block));
        for block in (0..region.blocks()).filter(|&block| !offline(block)) {
            let covered = region.coverage(block);
            let start = covered.start.addr().get();
            let covered = start..start + covered.bytes();
            assert!(covers(&layout.tagged, &covered), "{covered:x?}");
        }
    }
    assert!(covers(&layout.data, &layout.heap));
    let lost = taken(layout, Occupant::StaticTags);
    assert!(!lost.iter().any(|range| touches(&layout.data, range)));
    assert!(!lost.iter().any(|range| touches(&layout.tagged, range)));
    host
}

#[test]
fn on_the_usual_machine_all_but_the_image_is_data_and_storage_is_never_tagged() {
    let (machine, loaded) = (machine(64 * MIB), loaded());
    let layout = Layout::new(&machine, &loaded).unwrap();
    check(&machine, &loaded, &layout);
    let (end, storage) = (BASE + 64 * MIB, storage(&machine));
    assert_eq!(
        layout.data,
        [
            BASE..loaded.image.start,
            loaded.image.end..end - 64 * 1024,
            end - 64 * 1024..end
        ]
    );
    let tagged = [BASE..loaded.image.start, loaded.image.end..storage.start];
    assert_eq!(layout.tagged, tagged);
    assert_eq!((layout.regions.len(), layout.refused.len()), (1, 0));
    let image =
        (loaded.image.start - BASE) / (128 << 10)..(loaded.image.end - BASE).div_ceil(128 << 10);
    let offline = layout.regions[0].offline().to_vec();
    let image = image.start as u32..image.end as u32;
    assert_eq!(
        offline,
        vec![image],
        "what it loaded as data never has tags"
    );
    let tags = layout.regions[0].tags();
    assert_eq!(
        (tags.start.addr().get(), tags.bytes()),
        (storage.start, storage.end - storage.start)
    );
    assert!(layout.maps(&loaded.bundle.unwrap()));
}

#[test]
fn the_heap_goes_where_no_guest_could_have_tags_if_it_fits() {
    let mut board = machine(GIB);
    let (bytes, untaggable) = (heap_bytes(GIB), board.memory[1].range);
    assert_eq!(untaggable.size(), bytes, "1/1024 of the machine");
    let layout = Layout::new(&board, &loaded()).unwrap();
    assert_eq!(layout.heap, untaggable.base()..untaggable.end());
    check(&board, &loaded(), &layout);

    board.reserved = vec![reserved(untaggable.base(), 0x1000, ReservedBy::Node)];
    let layout = Layout::new(&board, &loaded()).unwrap();
    let taggable = storage(&board).start;
    assert_eq!(
        layout.heap,
        taggable - bytes..taggable,
        "the top of what is no tag storage"
    );
    check(&board, &loaded(), &layout);
}

#[test]
fn the_heap_avoids_all_that_is_taken() {
    let mut board = machine(64 * MIB);
    let top = storage(&board).start;
    board.reserved = vec![
        reserved(top - 0x10_0000, 0x10_0000, ReservedBy::Node),
        reserved(board.memory[1].range.base(), 1, ReservedBy::Node),
    ];
    let loaded = Loaded {
        bundle: Some(top - 0x30_0000..top - 0x10_8000),
        ..loaded()
    };
    let layout = Layout::new(&board, &loaded).unwrap();
    check(&board, &loaded, &layout);
    assert_eq!(layout.heap.end, top - 0x30_0000);
}

#[test]
fn every_cpu_but_one_gets_stacks_if_there_is_room() {
    let mut board = machine(GIB);
    board.cpus = (0..4)
        .map(|mpidr| platform::Cpu { mpidr, psci: true })
        .collect();
    let layout = Layout::new(&board, &loaded()).unwrap();
    check(&board, &loaded(), &layout);
    assert_eq!(Stacks::in_range(&layout.stacks).count(), 3);
    assert_eq!(layout.stacks.end, storage(&board).start, "no tag storage");
    assert!(covers(&taken(&layout, Occupant::Data), &layout.stacks));
    assert!(covers(&layout.data, &layout.stacks));
    assert!(!touches(std::slice::from_ref(&layout.heap), &layout.stacks));

    board.cpus = (0..100)
        .map(|mpidr| platform::Cpu { mpidr, psci: true })
        .collect();
    let layout = Layout::new(&board, &loaded()).unwrap();
    assert_eq!(Stacks::in_range(&layout.stacks).count(), MAX_CPUS - 1);

    // All but the boot CPU are left out on such a machine.
    let crowded = Loaded {
        bundle: Some(BASE + 0x50_0000..storage(&board).start - 0x1000),
        ..loaded()
    };
    board.reserved = vec![reserved(BASE, 0x50_0000, ReservedBy::Node)];
    let layout = Layout::new(&board, &crowded).unwrap();
    assert_eq!(layout.stacks, 0..0);
}

#[test]
fn without_room_for_the_heap_there_is_no_layout() {
    let mut board = machine(64 * MIB);
    board.reserved = vec![reserved(board.memory[1].range.base(), 1, ReservedBy::Node)];
    let loaded = Loaded {
        image: BASE..BASE + 0x24_0000,
        bundle: Some(BASE + 0x24_8000..storage(&board).start - 0x1000),
        ..loaded()
    };
    let error = Layout::new(&board, &loaded).unwrap_err();
    assert_eq!(
        error,
        Unusable::NoRoom {
            bytes: heap_bytes(64 * MIB)
        }
    );
    assert!(error.to_string().contains("give the machine more memory"));
}

#[test]
fn reserved_memory_is_neither_mapped_nor_given_away() {
    let mut board = machine(64 * MIB);
    let firmware = BASE + 0x60_0800..BASE + 0x60_1800;
    board.reserved = vec![
        reserved(firmware.start, 0x1000, ReservedBy::MemReserve),
        reserved(8 * GIB, MIB, ReservedBy::Node),
    ];
    let layout = Layout::new(&board, &loaded()).unwrap();
    let host = check(&board, &loaded(), &layout);
    for mapped in [&layout.data, &layout.tagged] {
        assert!(
            !touches(mapped, &(BASE + 0x60_0000..BASE + 0x60_2000)),
            "whole pages"
        );
    }
    assert!(covers(&taken(&layout, Occupant::Firmware), &firmware));
    assert!(host.account().offline > 0, "its tags are not ours to move");
}

#[test]
fn what_a_boot_loader_reserves_for_us_stays_ours() {
    let bundle = loaded().bundle.unwrap();
    for (start, end) in [
        (bundle.start, bundle.end),
        (bundle.start + 0x800, bundle.end - 0x800),
        // Rounded up to its own granule.
        (bundle.start, bundle.end + 0x3000),
        (bundle.start - 0x1_0000, bundle.end + 0x1_0000),
        (bundle.start + 0x800, bundle.end + 0x10),
        // From the DTB to the bundle, as one.
        (loaded().dtb.start, bundle.end),
    ] {
        let mut board = machine(64 * MIB);
        board.reserved = vec![reserved(start, end - start, ReservedBy::MemReserve)];
        let layout = Layout::new(&board, &loaded()).unwrap();
        check(&board, &loaded(), &layout);
        assert!(covers(&layout.data, &bundle), "{start:#x}..{end:#x}");
        assert!(covers(&layout.data, &loaded().dtb), "{start:#x}..{end:#x}");
        // What is beyond ours is still nobody's.
        let all: Vec<_> = layout.map.occupied.iter().collect();
        let all: Vec<_> = all
            .iter()
            .map(|taken| taken.range.base().get()..taken.range.end().get())
            .collect();
        assert!(covers(&all, &(start..end)), "{start:#x}..{end:#x}");
    }
}

#[test]
fn a_bundle_that_overlaps_our_image_is_not_ours_to_read() {
    let board = machine(64 * MIB);
    let image = loaded().image;
    for bundle in [
        image.clone(),
        image.start - 0x1000..image.start + 1,
        image.end - 1..image.end + 0x1000,
        image.start - 0x1000..image.end + 0x1000,
    ] {
        let loaded = Loaded {
            bundle: Some(bundle.clone()),
            ..loaded()
        };
        let layout = Layout::new(&board, &loaded).unwrap();
        assert!(!layout.maps(&bundle), "{bundle:#x?}");
    }
}

#[test]
fn tag_storage_that_something_was_loaded_into_stays_tag_storage() {
    // Refused already when the device tree was read, or here: the bundle is then not ours to read, and boot says so.
    let mut board = machine(64 * MIB);
    let storage = storage(&board);
    let inside = Loaded {
        bundle: Some(storage.start + 0x4000..storage.start + 0x5000),
        ..loaded()
    };
    let around = Loaded {
        bundle: Some(storage.start - 0x1000..storage.end + 0x1000),
        ..loaded()
    };
    for loaded in [&inside, &around] {
        let layout = Layout::new(&board, loaded).unwrap();
        check(&board, loaded, &layout);
        assert!(matches!(
            layout.refused[0].error,
            RegionError::Loaded { .. }
        ));
        assert!(!covers(&layout.data, loaded.bundle.as_ref().unwrap()));
    }
    board.tag_regions.clear();
    board.reserved = vec![reserved(
        storage.start,
        storage.end - storage.start,
        ReservedBy::TagStorage,
    )];
    for loaded in [&inside, &around] {
        let layout = Layout::new(&board, loaded).unwrap();
        check(&board, loaded, &layout);
        assert!(taken(&layout, Occupant::StaticTags).contains(&storage));
        assert!(!touches(&layout.data, &storage));
    }
}

#[test]
fn a_hypervisor_loaded_into_tag_storage_does_not_start() {
    // A guest's tags would overwrite it.
    let mut board = machine(64 * MIB);
    let storage = storage(&board);
    let loaded = Loaded {
        image: storage.end - 0x1000..storage.end + 0x1000,
        ..loaded()
    };
    let expected = Unusable::ImageInTagStorage {
        image: loaded.image.clone(),
    };
    assert_eq!(
        Layout::new(&board, &loaded).map(drop),
        Err(expected.clone())
    );
    assert!(expected.to_string().contains("load it elsewhere"));
    board.tag_regions.clear();
    board.reserved = vec![reserved(
        storage.start,
        storage.end - storage.start,
        ReservedBy::TagStorage,
    )];
    assert_eq!(Layout::new(&board, &loaded).map(drop), Err(expected));
}

#[test]
fn a_refused_region_keeps_its_storage_static_and_its_memory_usable() {
    type Break = fn(&mut TagRegionNode);
    let table: [Break; 5] = [
        |node| node.block_bytes = 0,
        |node| node.tag_bytes -= 4096,
        |node| node.tagged_bytes += 4096,
        |node| node.tag_base += 0x800,
        |node| node.tagged_base = u64::MAX - 4095,
    ];
    for broken in table {
        let mut board = machine(64 * MIB);
        broken(&mut board.tag_regions[0]);
        let layout = Layout::new(&board, &loaded()).unwrap();
        let host = check(&board, &loaded(), &layout);
        assert_eq!((layout.regions.len(), layout.refused.len()), (0, 1));
        let text = layout.refused[0].to_string();
        assert!(text.contains("/reserved-memory/tags refused: "), "{text}");
        assert_eq!(taken(&layout, Occupant::StaticTags), [storage(&board)]);
        assert_eq!(host.account().carve_out, 0);
        assert!(
            covers(&layout.tagged, &(BASE + 8 * MIB..BASE + 60 * MIB)),
            "still taggable"
        );
    }
}

#[test]
fn a_region_that_is_no_range_is_refused_without_harm() {
    for (base, bytes) in [(BASE, 0), (u64::MAX - 4095, 8192), (0, u64::MAX)] {
        let mut board = machine(64 * MIB);
        let node = &mut board.tag_regions[0];
        (node.tag_base, node.tag_bytes) = (base, bytes);
        let layout = Layout::new(&board, &loaded());
        if let Ok(layout) = layout {
            check(&board, &loaded(), &layout);
            assert_eq!(layout.regions, []);
        }
    }
}

/// Two regions of 30 MiB and 32 MiB, each with its storage behind it.
fn two_regions() -> Machine {
    let mut board = machine(64 * MIB);
    let node = |tagged_base, tagged_bytes: u64, block_bytes| TagRegionNode {
        tag_base: tagged_base + tagged_bytes,
        tag_bytes: tagged_bytes / 32,
        tagged_base,
        tagged_bytes,
        block_bytes,
        path: format!("/reserved-memory/tags@{tagged_base:x}"),
    };
    let second = BASE + 31 * MIB;
    board.tag_regions = vec![node(BASE, 30 * MIB, 4096), node(second, 32 * MIB, 8192)];
    board.memory = vec![Memory {
        range: MemRange::new(BASE, 65 * MIB).unwrap(),
        taggable: true,
    }];
    board
}

#[test]
fn two_regions_are_both_used() {
    let board = two_regions();
    let layout = Layout::new(&board, &loaded()).unwrap();
    let host = check(&board, &loaded(), &layout);
    assert_eq!((layout.regions.len(), layout.refused.len()), (2, 0));
    let carve_out: u64 = board.tag_regions.iter().map(|node| node.tag_bytes).sum();
    assert_eq!(host.account().carve_out, carve_out);
    for node in &board.tag_regions {
        let storage = node.tag_base..node.tag_base + node.tag_bytes;
        assert!(!touches(&layout.tagged, &storage));
        assert!(!touches(std::slice::from_ref(&layout.heap), &storage));
    }
}

#[test]
fn of_two_regions_the_unsound_one_alone_is_refused_unless_they_overlap() {
    let mut board = two_regions();
    board.tag_regions[1].block_bytes = 0;
    let layout = Layout::new(&board, &loaded()).unwrap();
    check(&board, &loaded(), &layout);
    assert_eq!((layout.regions.len(), layout.refused.len()), (1, 1));
    assert_eq!(layout.refused[0].path, board.tag_regions[1].path);

    let mut board = two_regions();
    board.tag_regions[1].tag_base = board.tag_regions[0].tag_base;
    let layout = Layout::new(&board, &loaded()).unwrap();
    check(&board, &loaded(), &layout);
    assert_eq!((layout.regions.len(), layout.refused.len()), (0, 2));
}

#[test]
fn a_board_without_tag_regions_and_without_a_bundle_has_a_layout() {
    let mut board = machine(64 * MIB);
    board.tag_regions.clear();
    let loaded = Loaded {
        bundle: None,
        ..loaded()
    };
    let layout = Layout::new(&board, &loaded).unwrap();
    let host = check(&board, &loaded, &layout);
    assert_eq!((layout.regions.len(), host.account().carve_out), (0, 0));
}
