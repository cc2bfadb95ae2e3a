//! Stage 1: one table of 1 GiB blocks (4 KiB granule, 39-bit addresses), with four windows on the same 8 GiB.
//!
//! A window gives the same physical addresses another memory type, so that a program picks the type by the address. The
//! first window is the identity map: devices below 1 GiB, tagged memory above.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::{execute, read_sys, write_sys};

/// How far apart windows are in the address space.
const WINDOW: u64 = 64 << 30;
/// How many GiB a window shows.
const SHOWN: usize = 8;
/// A free part of the address space, for [`map`].
pub const SPARE: u64 = 256 << 30;

const GIB: u64 = 1 << 30;
const VALID_BLOCK: u64 = 1;
/// What marks an entry of level 1 or 2 that names a table.
pub const VALID_TABLE: u64 = 3;
const ACCESSED: u64 = 1 << 10;
const INNER_SHAREABLE: u64 = 3 << 8;

/// Memory types, by their index in MAIR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Device-nGnRE.
    Device = 0,
    /// Normal write-back, tagged.
    Tagged = 1,
    /// Normal write-back.
    Normal = 2,
    /// Normal non-cacheable.
    NonCacheable = 3,
}

const MAIR: u64 = 0x04 | 0xf0 << 8 | 0xff << 16 | 0x44 << 24;

impl Memory {
    /// The address that shows physical address `pa` (below 8 GiB) with this type.
    pub const fn at(self, pa: u64) -> u64 {
        pa + WINDOW * (1 + self as u64)
    }

    /// The entry of a table of level 1 or 2 that maps the block at `pa`.
    pub const fn block(self, pa: u64) -> u64 {
        pa | ACCESSED | INNER_SHAREABLE | (self as u64) << 2 | VALID_BLOCK
    }

    /// The entry of a table of level 3 that maps the page at `pa`.
    pub const fn page(self, pa: u64) -> u64 {
        self.block(pa) | VALID_TABLE
    }
}

#[repr(C, align(4096))]
struct Table([AtomicU64; 512]);

static TABLE: Table = Table([const { AtomicU64::new(0) }; 512]);

fn set(index: usize, entry: u64) {
    if let Some(slot) = TABLE.0.get(index) {
        slot.store(entry, Relaxed);
    }
}

/// Fills the table and switches the MMU, the caches and tag checking (synchronous) on.
pub fn enable() {
    for gib in 0..SHOWN {
        let pa = gib as u64 * GIB;
        set(
            gib,
            if gib == 0 {
                Memory::Device
            } else {
                Memory::Tagged
            }
            .block(pa),
        );
        for memory in [
            Memory::Device,
            Memory::Tagged,
            Memory::Normal,
            Memory::NonCacheable,
        ] {
            set((memory.at(pa) / GIB) as usize, memory.block(pa));
        }
    }
    execute!("dsb sy", "isb");
    enable_cpu();
}

/// Switches them on for another CPU, when [`enable`] has filled the table.
pub fn enable_cpu() {
    if super::current_el() == 1 {
        enable_el1()
    } else {
        enable_el2()
    }
}

fn root() -> u64 {
    (&raw const TABLE) as u64
}

/// TCR fields that EL1 and EL2 share: T0SZ = 25, write-back inner shareable walks.
const WALKS: u64 = 25 | 1 << 8 | 1 << 10 | 3 << 12;

/// The output address size: the CPU's, at most 48 bits.
fn address_size() -> u64 {
    (read_sys!("ID_AA64MMFR0_EL1") & 0xf).min(5)
}

fn enable_el1() {
    const NO_TTBR1: u64 = 1 << 23;
    const TBI0: u64 = 1 << 37;
    const TCMA0: u64 = 1 << 57;
    const RES1: u64 = 1 << 29 | 1 << 28 | 1 << 23 | 1 << 22 | 1 << 20 | 1 << 11;
    const ATA: u64 = 1 << 43;
    const TCF_SYNC: u64 = 1 << 40;
    write_sys!("MAIR_EL1", MAIR);
    write_sys!(
        "TCR_EL1",
        WALKS | NO_TTBR1 | TBI0 | TCMA0 | address_size() << 32
    );
    write_sys!("TTBR0_EL1", root());
    execute!("tlbi vmalle1", "dsb sy", "ic iallu", "dsb sy", "isb");
    write_sys!("SCTLR_EL1", RES1 | ATA | TCF_SYNC | 1 | 1 << 2 | 1 << 12);
    write_sys!("S3_3_C4_C2_7", 0); // PSTATE.TCO: exceptions set it
}

fn enable_el2() {
    const RES1: u64 = 1 << 31 | 1 << 23;
    const TBI: u64 = 1 << 20;
    const TCMA: u64 = 1 << 30;
    const SCTLR_RES1: u64 = 0x30c5_0830;
    const ATA: u64 = 1 << 43;
    write_sys!("MAIR_EL2", MAIR);
    write_sys!("TCR_EL2", WALKS | RES1 | TBI | TCMA | address_size() << 16);
    write_sys!("TTBR0_EL2", root());
    execute!("tlbi alle2", "dsb sy", "ic iallu", "dsb sy", "isb");
    write_sys!("SCTLR_EL2", SCTLR_RES1 | ATA | 1 | 1 << 2 | 1 << 12);
}

/// Maps the GiB at [`SPARE`] to the GiB-aligned physical address `pa`.
pub fn map(memory: Memory, pa: u64) {
    replace(memory.block(pa));
}

/// Makes the entry for [`SPARE`] name a next-level table at the 4 KiB aligned physical address `pa`.
pub fn map_table(pa: u64) {
    replace(pa | VALID_TABLE);
}

/// Break-before-make of the entry for [`SPARE`].
fn replace(entry: u64) {
    let index = (SPARE / GIB) as usize;
    set(index, 0);
    execute!("dsb sy", "tlbi vmalle1", "dsb sy", "isb");
    set(index, entry);
    execute!("dsb sy", "isb");
}
