//! The heap: a small arena in the image for boot, then one from DRAM, sized by the machine.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ops::Range;
use core::ptr::NonNull;

use buddy_system_allocator::Heap;
use spin::mutex::TicketMutex;

/// Room for the largest device tree that is accepted, and for EL2's tables on a board with a hundred holes in its DRAM.
const BOOT_HEAP_BYTES: usize = 2 << 20;

#[repr(C, align(4096))]
struct BootArena(UnsafeCell<MaybeUninit<[u8; BOOT_HEAP_BYTES]>>);

// SAFETY: nobody touches the arena but the allocator, which has a lock.
unsafe impl Sync for BootArena {}

#[unsafe(link_section = ".boot_heap")]
static BOOT_ARENA: BootArena = BootArena(UnsafeCell::new(MaybeUninit::uninit()));

struct LockedHeap(TicketMutex<Heap<33>>);

#[global_allocator]
static HEAP: LockedHeap = LockedHeap(TicketMutex::new(Heap::new()));

// SAFETY: `Heap` is a correct allocator over the ranges it was given, and the lock gives it to one caller at a time.
unsafe impl GlobalAlloc for LockedHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0
            .lock()
            .alloc(layout)
            .map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        if let Some(ptr) = NonNull::new(ptr) {
            // SAFETY: the caller promises that `ptr` came from `alloc` with this layout.
            unsafe { self.0.lock().dealloc(ptr, layout) };
        }
    }
}

/// Gives the boot arena to the allocator. Called once, before anything allocates.
pub fn init_heap() {
    let start = BOOT_ARENA.0.get() as usize;
    // SAFETY: the arena is ours alone, mapped, and handed over once.
    unsafe { HEAP.0.lock().add_to_heap(start, start + BOOT_HEAP_BYTES) };
}

/// Adds a range of DRAM to the heap.
///
/// # Safety
///
/// The range is DRAM mapped VA = PA as data, used by nothing else from now on.
pub unsafe fn add_heap(range: Range<u64>) {
    // SAFETY: the caller's promise.
    unsafe {
        HEAP.0
            .lock()
            .add_to_heap(range.start as usize, range.end as usize)
    };
}

/// Bytes of heap in use, rounded as the allocator rounds.
pub fn heap_used() -> u64 {
    HEAP.0.lock().stats_alloc_actual() as u64
}
