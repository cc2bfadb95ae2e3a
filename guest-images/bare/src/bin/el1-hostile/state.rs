//! A guest's registers are its own: each survives calls, device accesses, faults and sleep.

use core::arch::{asm, global_asm};

use bare_guests::rt::console::{FLAGS, UART};
use bare_guests::rt::{gic, mmu, mte, psci};
use bare_guests::{execute, read_sys, write_sys};

use super::checks::Checks;

// Each function fills the registers, leaves EL1 once, and returns the bits that differ afterwards.
global_asm!(
    ".arch armv8.5-a+fp+simd",
    ".macro general name, way:vararg",
    ".global \\name",
    "\\name:",
    "stp x29, x30, [sp, #-112]!",
    "stp x19, x20, [sp, #16]",
    "stp x21, x22, [sp, #32]",
    "stp x23, x24, [sp, #48]",
    "stp x25, x26, [sp, #64]",
    "stp x27, x28, [sp, #80]",
    "mov x1, x0",
    ".irp n, 4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30",
    "movz x\\n, #(0x1100 + \\n), lsl #48",
    "movk x\\n, #(0x2200 + \\n)",
    ".endr",
    "\\way",
    "mov x0, #0",
    ".irp n, 4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30",
    "movz x2, #(0x1100 + \\n), lsl #48",
    "movk x2, #(0x2200 + \\n)",
    "eor x2, x2, x\\n",
    "orr x0, x0, x2",
    ".endr",
    "ldp x19, x20, [sp, #16]",
    "ldp x21, x22, [sp, #32]",
    "ldp x23, x24, [sp, #48]",
    "ldp x25, x26, [sp, #64]",
    "ldp x27, x28, [sp, #80]",
    "ldp x29, x30, [sp], #112",
    "ret",
    ".endm",
    ".macro floating name, way:vararg",
    ".global \\name",
    "\\name:",
    "sub sp, sp, #16",
    "mov x1, x0",
    "mov x3, #0x5a5a",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "add x4, x3, #\\n",
    "mvn x5, x4",
    "stp x4, x5, [sp]",
    "ldr q\\n, [sp]",
    ".endr",
    "mov x4, #0x3000000", // FPCR: another rounding mode, flush to zero
    "msr fpcr, x4",
    "mov x4, #0x1f",
    "msr fpsr, x4",
    "\\way",
    "mov x0, #0",
    "mov x3, #0x5a5a",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "add x4, x3, #\\n",
    "str q\\n, [sp]",
    "ldp x5, x6, [sp]",
    "eor x5, x5, x4",
    "orr x0, x0, x5",
    "mvn x4, x4",
    "eor x6, x6, x4",
    "orr x0, x0, x6",
    ".endr",
    "mrs x4, fpcr",
    "mov x5, #0x3000000",
    "eor x4, x4, x5",
    "orr x0, x0, x4",
    "mrs x4, fpsr",
    "mov x5, #0x1f",
    "eor x4, x4, x5",
    "orr x0, x0, x4",
    "msr fpcr, xzr",
    "add sp, sp, #16",
    "ret",
    ".endm",
    ".section .text.hostile, \"ax\"",
    "general general_call, hvc #0",
    "general general_load, ldr w0, [x1]",
    "general general_fault, ldr x0, [x1]",
    "general general_wfi, wfi",
    "floating floating_call, hvc #0",
    "floating floating_load, ldr w0, [x1]",
    "floating floating_fault, ldr x0, [x1]",
    "floating floating_wfi, wfi",
);

unsafe extern "C" {
    safe fn general_call(x0: u64) -> u64;
    safe fn general_load(x0: u64) -> u64;
    safe fn general_fault(x0: u64) -> u64;
    safe fn general_wfi(x0: u64) -> u64;
    safe fn floating_call(x0: u64) -> u64;
    safe fn floating_load(x0: u64) -> u64;
    safe fn floating_fault(x0: u64) -> u64;
    safe fn floating_wfi(x0: u64) -> u64;
}

/// An unknown call.
const CALL: u64 = 0x8600_4242;

/// The first of some pages that nobody touches but this file.
fn fresh(page: u64) -> u64 {
    bare_guests::rt::image_end().next_multiple_of(2 << 20) + (4 << 20) + page * 4096
}

/// Starts the timer so that WFI ends.
fn wake_soon() {
    gic::start_timer(read_sys!("CNTFRQ_EL0") / 1000);
}

fn registers(checks: &mut Checks) {
    type Way = extern "C" fn(u64) -> u64;
    let ways: [(&str, Way, u64); 6] = [
        ("x4 to x30 survive a call", general_call, CALL),
        (
            "x4 to x30 survive a device access",
            general_load,
            UART + FLAGS,
        ),
        (
            "x4 to x30 survive a page's first touch",
            general_fault,
            fresh(0),
        ),
        ("v0 to v31 survive a call", floating_call, CALL),
        (
            "v0 to v31 survive a device access",
            floating_load,
            UART + FLAGS,
        ),
        (
            "v0 to v31 survive a page's first touch",
            floating_fault,
            fresh(1),
        ),
    ];
    for (name, way, argument) in ways {
        checks.equal(name, way(argument), 0);
    }
    wake_soon();
    checks.equal("x4 to x30 survive sleep", general_wfi(0), 0);
    gic::stop_timer();
    wake_soon();
    checks.equal("v0 to v31 survive sleep", floating_wfi(0), 0);
    gic::stop_timer();
}

/// Leaves EL1 in several ways.
fn leave(page: u64) {
    psci::hvc(CALL, [1, 2, 3]);
    gic::read32(UART + FLAGS);
    mte::read(fresh(page));
    wake_soon();
    execute!("wfi");
    gic::stop_timer();
}

/// Writes values to registers, leaves EL1, and reads them back.
macro_rules! survive {
    ($checks:expr, $page:expr, $($name:literal = $value:expr),+ $(,)?) => {{
        $(write_sys!($name, $value);)+
        leave($page);
        $($checks.equal(concat!($name, " survives"), read_sys!($name), $value);)+
    }};
}

fn system(checks: &mut Checks) {
    survive!(
        checks,
        2,
        "TPIDR_EL0" = 0x1111_2222_3333_4444,
        "TPIDR_EL1" = 0x2222_3333_4444_5555,
        "TPIDRRO_EL0" = 0x3333_4444_5555_6666,
        "SP_EL0" = 0x4444_5555_6666_7770,
        "CONTEXTIDR_EL1" = 0x1234_5678,
        "ELR_EL1" = 0x5555_6666_7777_8888,
        "SPSR_EL1" = 0x6000_0000,
        "ESR_EL1" = 0x5600_0007,
        "FAR_EL1" = 0x6666_7777_8888_9999,
        "AFSR0_EL1" = 0,
        "CNTKCTL_EL1" = 3,
        "MDSCR_EL1" = 0x1000,
        "CSSELR_EL1" = 1,
    );
    write_sys!("MDSCR_EL1", 0);
    let pauth = read_sys!("ID_AA64ISAR1_EL1") >> 4 & 0xff | read_sys!("S3_0_C0_C6_2") >> 12 & 0xf;
    if pauth != 0 {
        survive!(
            checks,
            3,
            "S3_0_C2_C1_0" = 0x0101_0202_0303_0404,
            "S3_0_C2_C1_1" = 0x1101_0202_0303_0404,
            "S3_0_C2_C1_2" = 0x2101_0202_0303_0404,
            "S3_0_C2_C1_3" = 0x3101_0202_0303_0404,
            "S3_0_C2_C2_0" = 0x4101_0202_0303_0404,
            "S3_0_C2_C2_3" = 0x5101_0202_0303_0404,
            "S3_0_C2_C3_0" = 0x6101_0202_0303_0404,
            "S3_0_C2_C3_1" = 0x7101_0202_0303_0404,
        );
    }
    if mte::level() >= 2 {
        survive!(
            checks,
            4,
            "S3_0_C1_C0_6" = 0x1_00f0, // GCR_EL1
            "S3_0_C1_C0_5" = 0x5a05,   // RGSR_EL1
            "S3_0_C5_C6_0" = 1,        // TFSR_EL1
            "S3_0_C5_C6_1" = 1,        // TFSRE0_EL1
        );
        write_sys!("S3_0_C5_C6_0", 0);
        write_sys!("S3_0_C5_C6_1", 0);
    }
}

/// PAR_EL1 holds the result of a translation over exits, also ones in which EL2 translates for itself.
fn translation(checks: &mut Checks) {
    // SAFETY: translates an address into PAR_EL1.
    unsafe {
        asm!("at s1e1r, {}", "isb", in(reg) mmu::Memory::Normal.at(0x4000_1000), options(nostack))
    };
    let before = read_sys!("PAR_EL1");
    checks.equal(
        "AT finds the address",
        before & 0xffff_ffff_f001,
        0x4000_1000,
    );
    leave(5);
    if mte::level() >= 2 {
        mte::stg(fresh(6), mte::with_tag(0, 1));
    }
    checks.equal("PAR_EL1 survives", read_sys!("PAR_EL1"), before);
}

/// An exclusive pair with an exit between its halves must end, with success or not, and a loop of pairs must succeed.
fn exclusives(checks: &mut Checks) {
    let address = fresh(7);
    let mut tries = 0_u64;
    for want in 1..=100_u64 {
        let mut failed = 1_u64;
        while failed != 0 && tries < 10_000 {
            tries += 1;
            // SAFETY: adds one to a word of a scratch page.
            unsafe {
                asm!("ldxr {v}, [{a}]", "add {v}, {v}, #1", "stxr {f:w}, {v}, [{a}]",
                    v = out(reg) _, a = in(reg) address, f = inout(reg) failed, options(nostack));
            }
        }
        if mte::read(address) != want {
            break;
        }
    }
    checks.equal("100 exclusive additions", mte::read(address), 100);
}

/// All of it.
pub fn run(checks: &mut Checks) {
    gic::enable();
    registers(checks);
    system(checks);
    translation(checks);
    exclusives(checks);
}
