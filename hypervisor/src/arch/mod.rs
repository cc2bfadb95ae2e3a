//! All that needs AArch64 at EL2: entry, vectors, world switch, maintenance, EL2's own map. It implements the ports of the
//! layers below and decides nothing; it holds all of this crate's unsafe code.

pub mod cpu;
mod entry;
mod heap;
pub mod ich;
pub mod linear;
mod maintenance;
mod regs;
pub mod secondary;
pub mod switch;
pub mod timer;
mod vectors;

use core::ops::Range;

use platform::mmio::Mmio;

pub use cpu::El2;
pub use entry::FALLBACK_UART;
pub use heap::heap_used;
pub use vectors::{ExitVector, enter_guest};

/// Where the first Rust code lies that runs after [`entry`]: caches and MMU are on, interrupts are masked.
extern "C" fn rust_entry(dtb: u64, image: u64) -> ! {
    debug_assert_eq!(image, image_symbols().start);
    heap::init_heap();
    crate::boot::start(dtb)
}

/// Addresses that the linker script gives, physical.
#[derive(Clone, Copy, Debug)]
pub struct ImageSymbols {
    /// Start of the image and of the code.
    pub start: u64,
    /// Start of the constants.
    pub rodata: u64,
    /// Start of the writable data.
    pub data: u64,
    /// The page below the boot CPU's stack.
    pub boot_stack_guard: u64,
    /// The page below the stack for faults at EL2.
    pub emergency_stack_guard: u64,
    /// End of the image in memory.
    pub end: u64,
}

/// Returns where the parts of this image lie.
#[must_use]
pub fn image_symbols() -> ImageSymbols {
    macro_rules! address {
        ($symbol:ident) => {{
            unsafe extern "C" {
                static $symbol: u8;
            }
            (&raw const $symbol) as u64
        }};
    }
    ImageSymbols {
        start: address!(_image_start),
        rodata: address!(_rodata_start),
        data: address!(_data_start),
        boot_stack_guard: address!(_boot_stack_guard),
        emergency_stack_guard: address!(_emergency_stack_guard),
        end: address!(_image_end),
    }
}

/// The physical range of the image, stacks included.
#[must_use]
pub fn image_range() -> Range<u64> {
    let at = image_symbols();
    at.start..at.end
}

/// Returns registers of a device that [`linear`] has mapped; none if they cannot be registers.
#[must_use]
pub fn device(range: &Range<u64>) -> Option<Mmio> {
    let bytes = usize::try_from(range.end.checked_sub(range.start)?).ok()?;
    // SAFETY: boot maps all devices of the device tree VA = PA before it asks for one, and never unmaps them.
    unsafe { Mmio::new(range.start as *mut u8, bytes) }
}

/// Returns memory that a boot loader filled: the DTB, the bundle.
///
/// The caller is the boot order: the range is mapped readable, and kept from guests and from the heap for ever.
pub(crate) fn loaded_bytes(range: &Range<u64>) -> &'static [u8] {
    let bytes = range.end.saturating_sub(range.start) as usize;
    // SAFETY: the DTB was found and mapped by the entry code; the bundle's range has been compared with what is mapped.
    // `Layout` marks both as taken, so nobody writes them.
    unsafe { core::slice::from_raw_parts(range.start as *const u8, bytes) }
}

/// Adds the heap's range of a layout to the heap. Called once.
pub(crate) fn grow_heap(layout: &crate::layout::Layout) {
    // SAFETY: the layout took the range from free DRAM and marks it as taken; it is mapped as data with all other DRAM.
    unsafe { heap::add_heap(layout.heap.clone()) };
}

/// Takes the console from whoever holds it, for a last message.
pub(crate) fn steal_console() {
    // Another CPU lets it go within a line; if it is this one, it never does.
    let patience = timer::counter() + timer::frequency();
    while crate::output::CONSOLE.is_locked() {
        if timer::counter() > patience {
            // On a ticket lock that is free, unlocking by force would lock it for ever.
            // SAFETY: this CPU holds the lock and never returns to the code that does; the panic handler does this once.
            unsafe { crate::output::CONSOLE.force_unlock() };
            return;
        }
    }
}
