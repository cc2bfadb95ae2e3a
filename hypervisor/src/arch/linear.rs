//! EL2's own address space: VA = PA for everything EL2 owns or serves, W^X, stacks above unmapped guard pages, and a second,
//! Tagged view of taggable DRAM at [`TAGGED_ALIAS`] for tag maintenance. Tag storage is never mapped Tagged (S4).

use aarch64_cpu::asm::barrier::{ISHST, dsb};
use core::arch::global_asm;
use core::ops::Range;
use core::ptr::NonNull;

use aarch64_paging::descriptor::{El23Attributes as Flags, PhysicalAddress};
use aarch64_paging::paging::{Constraints, El2, MemoryRegion, PageTable, RootTable, Translation};

/// Offset from a frame's address to its Tagged view.
pub const TAGGED_ALIAS: u64 = 1 << 46;

/// First physical address that EL2 cannot map: the Tagged view of lower ones begins here.
pub const PHYSICAL_LIMIT: u64 = TAGGED_ALIAS;

/// A range cannot be mapped: it wraps, or lies at or above [`PHYSICAL_LIMIT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmappable {
    /// The range asked for, physical addresses.
    pub start: u64,
    /// Its end.
    pub end: u64,
}

/// Tables come from the heap, which lies in the image or in DRAM mapped VA = PA.
#[derive(Debug)]
struct HeapTables;

impl Translation<Flags> for HeapTables {
    fn allocate_table(&mut self) -> (NonNull<PageTable<Flags>>, PhysicalAddress) {
        let table = PageTable::new();
        (table, PhysicalAddress(table.as_ptr() as usize))
    }

    unsafe fn deallocate_table(&mut self, page_table: NonNull<PageTable<Flags>>) {
        // SAFETY: the caller says that it came from `allocate_table`, hence from the heap with this layout.
        unsafe {
            alloc::alloc::dealloc(
                page_table.as_ptr().cast(),
                core::alloc::Layout::new::<PageTable<Flags>>(),
            );
        }
    }

    fn physical_to_virtual(&self, pa: PhysicalAddress) -> NonNull<PageTable<Flags>> {
        // A table's address is never 0: it came from `allocate_table`.
        NonNull::new(pa.0 as *mut PageTable<Flags>).unwrap_or(NonNull::dangling())
    }
}

/// What a range holds, which decides how EL2 maps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Registers of a device.
    Device,
    /// Our code.
    Code,
    /// Our constants, the DTB.
    ReadOnly,
    /// Our data, and DRAM as data.
    Data,
    /// DRAM with its tags; the virtual address is [`TAGGED_ALIAS`] above the physical one.
    Tagged,
}

/// EL2's translation tables while they are built.
pub struct AddressSpace(RootTable<El2, HeapTables>);

impl AddressSpace {
    /// An address space with nothing in it.
    #[must_use]
    pub fn new() -> Self {
        Self(RootTable::new(HeapTables, 0, El2))
    }

    /// Maps the physical `range`, rounded out to pages.
    ///
    /// # Errors
    ///
    /// The range wraps or lies beyond what EL2 can map.
    pub fn map(&mut self, range: Range<u64>, kind: Kind) -> Result<(), Unmappable> {
        let unmappable = Unmappable {
            start: range.start,
            end: range.end,
        };
        if range.start >= range.end {
            return Ok(());
        }
        if range.end > PHYSICAL_LIMIT {
            return Err(unmappable);
        }
        let normal = Flags::ATTRIBUTE_INDEX_1 | Flags::INNER_SHAREABLE;
        let (flags, offset) = match kind {
            Kind::Device => (Flags::ATTRIBUTE_INDEX_0 | Flags::XN, 0),
            Kind::Code => (normal | Flags::READ_ONLY, 0),
            Kind::ReadOnly => (normal | Flags::READ_ONLY | Flags::XN, 0),
            Kind::Data => (normal | Flags::XN, 0),
            Kind::Tagged => (
                Flags::ATTRIBUTE_INDEX_2 | Flags::INNER_SHAREABLE | Flags::XN,
                TAGGED_ALIAS,
            ),
        };
        let start = range.start & !0xfff;
        let region = MemoryRegion::new((start + offset) as usize, (range.end + offset) as usize);
        let flags = flags | Flags::VALID | Flags::ACCESSED | Flags::USER_RES1;
        self.0
            .map_range(
                &region,
                PhysicalAddress(start as usize),
                flags,
                Constraints::NO_CONTIGUOUS_HINT,
            )
            .map_err(|_| unmappable)
    }

    /// Maps our own image: code, constants, data and stacks, not their guard pages.
    ///
    /// # Errors
    ///
    /// As for [`Self::map`].
    pub fn map_image(&mut self) -> Result<(), Unmappable> {
        let at = super::image_symbols();
        self.map(at.start..at.rodata, Kind::Code)?;
        self.map(at.rodata..at.data, Kind::ReadOnly)?;
        self.map(at.data..at.boot_stack_guard, Kind::Data)?;
        self.map(
            at.boot_stack_guard + 0x1000..at.emergency_stack_guard,
            Kind::Data,
        )?;
        self.map(at.emergency_stack_guard + 0x1000..at.end, Kind::Data)
    }

    /// Makes this CPU use these tables, for ever. Returns what other CPUs need in TTBR0_EL2 to use them too.
    pub fn activate(self) -> u64 {
        let root = self.0.to_physical().0 as u64;
        core::mem::forget(self.0);
        dsb(ISHST);
        // SAFETY: the caller has mapped the image, the heap and all DRAM that EL2 has references into at VA = PA, as the old
        // tables had them; the code that runs with the MMU off touches no memory.
        unsafe { switch_tables(root) };
        root
    }
}

impl Default for AddressSpace {
    fn default() -> Self {
        Self::new()
    }
}

unsafe extern "C" {
    fn switch_tables(root: u64);
}

// The old tables map the image by 2 MiB blocks, the new ones by pages: break-before-make asks that no translation exists in
// between, so the MMU is off for these few instructions.
global_asm!(
    r#"
    .text
    .balign 64
    .globl  switch_tables
switch_tables:
    mrs     x1, sctlr_el2
    bic     x2, x1, #1
    msr     sctlr_el2, x2
    isb
    msr     ttbr0_el2, x0
    tlbi    alle2
    tlbi    alle1                   // entries that an earlier owner of EL2 left under our VMIDs
    dsb     nsh
    isb
    msr     sctlr_el2, x1
    isb
    ret
"#
);
