//! Single instructions with a result: loads and stores of each size, atomics, exclusives, code.

use core::arch::asm;

use bare_guests::rt::mte;

/// Defines functions of an address and a value, which execute instructions and return `{v}`.
macro_rules! operations {
    ($($name:ident $($line:literal),+;)+) => {$(
        fn $name(address: u64, value: u64) -> u64 {
            let result: u64;
            // SAFETY: reads and writes a page that the program steps on; what faults is skipped by the vectors, and the
            // registers are set before, so the result is then a constant.
            unsafe {
                asm!(".arch_extension lse", $($line),+, a = in(reg) address, s = in(reg) value, t = in(reg) !value,
                    v = inout(reg) 0_u64 => result, w = inout(reg) 0_u64 => _, options(nostack));
            }
            result
        }
    )+};
}

operations! {
    load8 "ldrb {v:w}, [{a}]", "// {s} {t} {w}";
    load16 "ldrh {v:w}, [{a}]", "// {s} {t} {w}";
    load32 "ldr {v:w}, [{a}]", "// {s} {t} {w}";
    load64 "ldr {v}, [{a}]", "// {s} {t} {w}";
    load128 "ldp {v}, {w}, [{a}]", "eor {v}, {v}, {w}, ror #7", "// {s} {t}";
    store8 "strb {s:w}, [{a}]", "// {v} {t} {w}";
    store16 "strh {s:w}, [{a}]", "// {v} {t} {w}";
    store32 "str {s:w}, [{a}]", "// {v} {t} {w}";
    store64 "str {s}, [{a}]", "// {v} {t} {w}";
    store128 "stp {s}, {t}, [{a}]", "// {v} {w}";
    add "ldaddal {s}, {v}, [{a}]", "// {t} {w}";
    set "ldset {s}, {v}, [{a}]", "// {t} {w}";
    swap "swpal {s}, {v}, [{a}]", "// {t} {w}";
    compare "ldr {v}, [{a}]", "casal {v}, {s}, [{a}]", "// {t} {w}";
    acquire "ldar {v}, [{a}]", "// {s} {t} {w}";
    release "stlr {s}, [{a}]", "// {v} {t} {w}";
}

/// An operation on memory.
pub type Operation = fn(u64, u64) -> u64;

/// Loads of 1 to 16 bytes.
pub const LOADS: [Operation; 5] = [load8, load16, load32, load64, load128];
/// Stores of 1 to 16 bytes.
pub const STORES: [Operation; 5] = [store8, store16, store32, store64, store128];
/// Operations on eight aligned bytes.
pub const ATOMICS: [Operation; 6] = [add, set, swap, compare, acquire, release];

/// Exchanges 8 bytes for `value` by exclusives; the old ones. An exit between the two halves makes them fail, so again.
pub fn exclusive(address: u64, value: u64) -> u64 {
    let mut old = 0_u64;
    for _ in 0..1000 {
        let mut failed = 1_u64;
        // SAFETY: as for the operations above.
        unsafe {
            asm!("ldaxr {v}, [{a}]", "stlxr {f:w}, {s}, [{a}]",
                a = in(reg) address, s = in(reg) value, v = inout(reg) old, f = inout(reg) failed, options(nostack));
        }
        if failed & 1 == 0 {
            break;
        }
    }
    old
}

/// Copies 16 bytes to the 16 before them at `address`, and returns a part of them.
pub fn copy_from_next(address: u64, _: u64) -> u64 {
    let part: u64;
    // SAFETY: as for the operations above.
    unsafe {
        asm!("ldp {v}, {w}, [{a}, #16]", "stp {w}, {v}, [{a}]", a = in(reg) address,
            v = inout(reg) 0_u64 => _, w = inout(reg) 0_u64 => part, options(nostack));
    }
    part
}

/// Writes `movz x0, #low; movk x0, #high, lsl #16; ret` to `address`, runs it, and returns what it returns.
pub fn run_code(address: u64, value: u64) -> u64 {
    let (low, high) = (value & 0xffff, value >> 16 & 0xffff);
    mte::write(
        address,
        0xd280_0000 | low << 5 | (0xf2a0_0000 | high << 5) << 32,
    );
    mte::write(address + 8, 0xd65f_03c0);
    // SAFETY: a function that changes x0 alone; where the page is not mapped, the vectors return from it.
    unsafe {
        asm!("dc cvau, {a}", "dsb ish", "ic ivau, {a}", "dsb ish", "isb", "mov x0, xzr", "blr {a}",
            a = in(reg) address, out("x0") _, out("x30") _, options(nostack));
    }
    let result: u64;
    // SAFETY: as above; it runs a second time.
    unsafe {
        asm!("mov x0, xzr", "blr {a}", a = in(reg) address, out("x0") result, out("x30") _, options(nostack));
    }
    result
}

/// IRG, ADDG, SUBG, GMI and SUBP of `address`: no memory, but the random tag's registers.
pub fn arithmetic(address: u64, value: u64) -> u64 {
    let (result, w): (u64, u64);
    // SAFETY: computes with registers.
    unsafe {
        asm!(".arch_extension memtag", "irg {v}, {a}, {s}", "addg {w}, {v}, #32, #3", "subg {w}, {w}, #16, #1",
            "gmi {s}, {w}, {s}", "eor {v}, {v}, {s}", a = in(reg) address, s = inout(reg) value & 0xffff => _,
            v = out(reg) result, w = out(reg) w, options(nostack));
    }
    result ^ w
}
