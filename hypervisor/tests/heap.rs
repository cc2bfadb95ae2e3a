//! The heap is large enough for what is kept about memory, as its allocator rounds.

#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hypervisor::layout::heap_bytes;
use stage2::addr::{Ipa, PAGE_SIZE, PhysAddr, PhysRange};
use stage2::descriptor::Vmid;
use stage2::fakes::Tables;
use stage2::frames::VmId;
use stage2::guest::{GuestSpec, Policy};
use stage2::host::Layout as HostLayout;
use stage2::memory::Memory;
use stage2::region::{Dram, MemoryMap, TagRegion, TagRegionDesc};

/// Counts what the buddy allocator would have given away, each allocation rounded up to a power of two.
struct Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
static USED: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn rounded(layout: Layout) -> usize {
    layout.size().next_power_of_two().max(layout.align()).max(8)
}

// SAFETY: all memory is the system allocator's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTS.load(Ordering::Relaxed) {
            let used = USED.fetch_add(rounded(layout), Ordering::Relaxed) + rounded(layout);
            MOST.fetch_max(used, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        if COUNTS.load(Ordering::Relaxed) {
            USED.fetch_sub(rounded(layout), Ordering::Relaxed);
        }
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `work`, whose allocations count, or not.
fn counted<T>(counts: bool, work: impl FnOnce() -> T) -> T {
    let before = COUNTS.swap(counts, Ordering::Relaxed);
    let result = work();
    COUNTS.store(before, Ordering::Relaxed);
    result
}

const MIB: u64 = 1 << 20;

/// The memory of a machine of so many GiB, as on QEMU's virt.
fn machine(gib: u64) -> HostLayout {
    let base = 1 << 30;
    let (all, taggable) = (gib << 30, (gib << 30) / 32 * 31);
    let range = |start, bytes| PhysRange::new(PhysAddr::new(base + start), bytes).unwrap();
    let tags = taggable / 32;
    let dram = |start, bytes, taggable| Dram {
        range: range(start, bytes),
        taggable,
    };
    let desc = TagRegionDesc {
        tags_base: PhysAddr::new(base + taggable),
        tags_bytes: tags,
        tagged_base: PhysAddr::new(base),
        tagged_bytes: taggable,
        block_size: 4096,
    };
    let memory = MemoryMap {
        dram: vec![
            dram(0, taggable, true),
            dram(taggable, tags, false),
            dram(taggable + tags, all - taggable - tags, false),
        ],
        occupied: Vec::new(),
    };
    let region = TagRegion::new(&desc, &memory, &[]).unwrap();
    HostLayout {
        memory,
        regions: vec![region],
        policy: Policy::Lazy,
    }
}

/// All that EL2 ever keeps about the memory of a machine of so many GiB whose guests have tags in each 2 MiB, in bytes of heap.
fn most(gib: u64) -> u64 {
    // Tables are no part of the heap.
    let (layout, mut hw) = (machine(gib), Tables::new(|work| counted(false, work)));
    USED.store(0, Ordering::Relaxed);
    MOST.store(0, Ordering::Relaxed);
    counted(true, || {
        let mut memory = Memory::new(layout).unwrap();
        // A VM has at most 63 GiB. What is left of taggable memory is for tables.
        let mut left = (gib << 10) * 31 / 32 - 8 * gib - 8;
        for index in 0.. {
            let mib = left.min(60 << 10) & !1;
            if mib == 0 {
                break;
            }
            left -= mib;
            fill(&mut memory, &mut hw, index, mib * MIB);
        }
    });
    MOST.load(Ordering::Relaxed) as u64
}

/// A VM that touches and tags one page of each 2 MiB.
fn fill(memory: &mut Memory, hw: &mut Tables, index: u16, bytes: u64) {
    let vm = VmId::new(index).unwrap();
    let ram_base = Ipa::new(1 << 30);
    let spec = GuestSpec {
        vm,
        vmid: Vmid(index + 1),
        ram_base,
        ram_bytes: bytes,
        mte: true,
        policy: Policy::Lazy,
        tag_budget: bytes / 32,
    };
    memory.create(hw, spec).unwrap();
    for slot in 0..bytes / (2 * MIB) {
        let at = Ipa::new(ram_base.get() + slot * 2 * MIB + slot % 512 * PAGE_SIZE);
        memory.access_fault(hw, vm, at, u64::MAX).unwrap();
        memory.tag_fault(hw, vm, at, u64::MAX).unwrap();
    }
}

#[test]
fn the_heap_holds_all_that_is_kept_about_memory_on_machines_of_any_size() {
    for gib in [1, 2, 33, 64] {
        let (most, heap) = (most(gib), heap_bytes(gib << 30));
        println!("{gib} GiB: {} KiB of {} KiB", most >> 10, heap >> 10);
        // The boot heap, 2 MiB, is for everything else.
        assert!(most <= heap, "{gib} GiB: {most} bytes, {heap} there");
    }
}
