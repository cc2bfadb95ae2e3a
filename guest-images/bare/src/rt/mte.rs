//! Tag instructions (DDI 0487, FEAT_MTE2), one function each. Addresses lie in a window of `mmu`.

use core::arch::asm;

use crate::{read_sys, write_sys};

/// Bytes that share one tag.
pub const GRANULE: u64 = 16;

/// Puts `tag` into bits 59:56 of `address`.
pub const fn with_tag(address: u64, tag: u64) -> u64 {
    address & !(0xf << 56) | (tag & 0xf) << 56
}

/// Defines functions that execute one instruction on an address and a second operand.
macro_rules! tag_operations {
    ($($(#[$doc:meta])* $name:ident $instruction:literal;)+) => {$(
        $(#[$doc])*
        pub fn $name(address: u64, operand: u64) {
            // SAFETY: changes tags, and for the zeroing forms data, of memory that the program uses as scratch pages; an
            // access that faults is skipped by the vectors.
            unsafe {
                asm!(".arch_extension memtag", $instruction, a = in(reg) address, o = in(reg) operand, options(nostack));
            }
        }
    )+};
}

tag_operations! {
    /// STG: the granule at `address` gets the tag in bits 59:56 of `operand`.
    stg "stg {o}, [{a}]";
    /// ST2G: two granules.
    st2g "st2g {o}, [{a}]";
    /// STZG: one granule, and its data becomes zero.
    stzg "stzg {o}, [{a}]";
    /// STZ2G: two granules, and their data becomes zero.
    stz2g "stz2g {o}, [{a}]";
    /// STGP: the granule at `address` gets the tag of `address`, and `operand` twice as data.
    stgp "stgp {o}, {o}, [{a}]";
    /// STGM: the block at `address` gets the tags in `operand`.
    stgm "stgm {o}, [{a}]";
    /// STZGM: the block at `address` gets the one tag in bits 3:0 of `operand`, and its data becomes zero.
    stzgm "stzgm {o}, [{a}]";
    /// DC GVA: the block gets the tag of `address`; the operand is unused.
    dc_gva "sys #3, c7, c4, #3, {a} // {o}";
    /// DC GZVA: as DC GVA, and its data becomes zero.
    dc_gzva "sys #3, c7, c4, #4, {a} // {o}";
    /// DC ZVA: the block's data becomes zero.
    dc_zva "sys #3, c7, c4, #1, {a} // {o}";
    /// DC CIGDVAC: cleans and invalidates data and tags of the line at `address`.
    dc_cigdvac "sys #3, c7, c14, #5, {a} // {o}";
    /// DC IGDVAC: invalidates data and tags; at EL1 under stage 2 it also cleans.
    dc_igdvac "sys #0, c7, c6, #5, {a} // {o}";
    /// DC CGVAC: cleans the tags of the line at `address`.
    dc_cgvac "sys #3, c7, c10, #3, {a} // {o}";
    /// DC CIVAC: cleans and invalidates the data of the line at `address`.
    dc_civac "dc civac, {a} // {o}";
}

/// LDG: the tag, 0 to 15, of the granule at `address`.
pub fn ldg(address: u64) -> u64 {
    let mut value = 0_u64;
    // SAFETY: reads a tag; changes nothing.
    unsafe {
        asm!(".arch_extension memtag", "ldg {v}, [{a}]", v = inout(reg) value, a = in(reg) address, options(nostack))
    };
    value >> 56 & 0xf
}

/// LDGM: the tags of the block at `address`, four bits each, at the place of address bits 7:4.
pub fn ldgm(address: u64) -> u64 {
    let value: u64;
    // SAFETY: reads tags; changes nothing.
    unsafe {
        asm!(".arch_extension memtag", "ldgm {v}, [{a}]", v = out(reg) value, a = in(reg) address, options(nostack))
    };
    value
}

/// Bytes whose tags LDGM and STGM access (GMID_EL1.BS).
pub fn multiple_bytes() -> u64 {
    4 << (read_sys!("S3_1_C0_C0_4") & 0xf)
}

/// Bytes of the block of DC GVA and DC ZVA (DCZID_EL0.BS).
pub fn zero_bytes() -> u64 {
    4 << (read_sys!("DCZID_EL0") & 0xf)
}

/// The size of the MTE implementation that the ID register shows: 0 to 3.
pub fn level() -> u64 {
    read_sys!("ID_AA64PFR1_EL1") >> 8 & 0xf
}

/// Whether tag-checked accesses are checked (PSTATE.TCO); without checks QEMU is several times as fast.
pub fn set_checks(on: bool) {
    write_sys!("S3_3_C4_C2_7", u64::from(!on) << 25);
}

/// Reads 64 bits.
pub fn read(address: u64) -> u64 {
    let value: u64;
    // SAFETY: reads memory or a device of the program's machine; an access that faults is skipped by the vectors.
    unsafe { asm!("ldr {v}, [{a}]", v = out(reg) value, a = in(reg) address, options(nostack)) };
    value
}

/// Writes 64 bits.
pub fn write(address: u64, value: u64) {
    // SAFETY: writes a scratch page, the carve-out, or a device without DMA; an access that faults is skipped.
    unsafe { asm!("str {v}, [{a}]", v = in(reg) value, a = in(reg) address, options(nostack)) };
}
