//! Calls: unknown ones, odd ones, and PSCI with bad arguments (SMCCC DEN 0028, PSCI DEN 0022).

use core::arch::asm;

use bare_guests::rt::psci::{self, hvc, smc};
use bare_guests::rt::trap;
use bare_guests::{execute, read_sys};

use super::checks::Checks;

/// A call by HVC with a non-zero immediate.
fn hvc_immediate(function: u64) -> u64 {
    let mut x0 = function;
    // SAFETY: as for `hvc`: what is below changes x0 to x17 at most.
    unsafe { asm!("hvc #1", inout("x0") x0, clobber_abi("C"), options(nostack)) };
    x0
}

/// A call by SMC with a non-zero immediate.
fn smc_immediate(function: u64) -> u64 {
    let mut x0 = function;
    // SAFETY: as for `hvc_immediate`.
    unsafe { asm!("smc #0xffff", inout("x0") x0, clobber_abi("C"), options(nostack)) };
    x0
}

/// How many of the three instructions behind an unknown call are executed.
macro_rules! steps_after {
    ($call:literal) => {{
        let steps: u64;
        // SAFETY: as for `hvc_immediate`; the additions touch one register.
        unsafe {
            asm!("mov x20, #0", "mov w0, #0x4242", "movk w0, #0x8600, lsl #16", $call,
                "add x20, x20, #1", "add x20, x20, #1", "add x20, x20, #1",
                out("x20") steps, clobber_abi("C"), options(nostack));
        }
        steps
    }};
}

const UNKNOWN: [(&str, u64); 8] = [
    ("arm architecture 0x80004242", 0x8000_4242),
    ("vendor hypervisor 0x86004242", 0x8600_4242),
    ("vendor hypervisor 64-bit 0xc6004242", 0xc600_4242),
    ("standard 0x84004242", 0x8400_4242),
    ("64-bit standard 0xc4004242", 0xc400_4242),
    ("yielding 0x02000000", 0x0200_0000),
    ("trusted OS 0xb2000000", 0xb200_0000),
    ("all ones", 0xffff_ffff),
];

fn unknown(checks: &mut Checks) {
    for (name, function) in UNKNOWN {
        let got = hvc(function, [0; 3]);
        checks.check(name, is_not_supported(function, got), got);
        if !checks.bare {
            let got = smc(function, [1, 2, 3]);
            checks.check(name, is_not_supported(function, got), got);
        }
    }
}

/// -1 in all 64 bits; a 32-bit call may leave the upper half.
fn is_not_supported(function: u64, got: u64) -> bool {
    if function & 1 << 30 != 0 {
        got == psci::NOT_SUPPORTED
    } else {
        got as u32 == u32::MAX
    }
}

fn odd(checks: &mut Checks) {
    if checks.bare {
        return;
    }
    checks.equal(
        "an HVC returns to the next instruction",
        steps_after!("hvc #0"),
        3,
    );
    checks.equal(
        "an SMC returns to the next instruction",
        steps_after!("smc #0"),
        3,
    );
    checks.equal(
        "PSCI_VERSION by HVC #1 is not supported",
        hvc_immediate(psci::VERSION),
        psci::NOT_SUPPORTED,
    );
    checks.equal(
        "SYSTEM_OFF by HVC #1 is not done",
        hvc_immediate(psci::SYSTEM_OFF),
        psci::NOT_SUPPORTED,
    );
    checks.equal(
        "SYSTEM_OFF by SMC #0xffff is not done",
        smc_immediate(psci::SYSTEM_OFF),
        psci::NOT_SUPPORTED,
    );
    let version = hvc(psci::VERSION, [0; 3]);
    checks.equal(
        "PSCI_VERSION reads w0 only",
        hvc(psci::VERSION | 0xffff_ffff << 32, [0; 3]),
        version,
    );
    checks.equal(
        "PSCI_VERSION by SMC64 is not supported",
        hvc(psci::VERSION | 1 << 30, [0; 3]),
        psci::NOT_SUPPORTED,
    );
    checks.equal(
        "SYSTEM_OFF by SMC64 is not done",
        hvc(psci::SYSTEM_OFF | 1 << 30, [0; 3]),
        psci::NOT_SUPPORTED,
    );
    checks.check(
        "PSCI is 1.0 or later",
        (0x1_0000..0x2_0000).contains(&version),
        version,
    );
    checks.equal(
        "PSCI_VERSION with the SVE hint",
        hvc(psci::VERSION | 1 << 16, [0; 3]),
        version,
    );
    let smccc = hvc(psci::SMCCC_VERSION, [0; 3]);
    checks.check(
        "SMCCC is 1.1 or later",
        (0x1_0001..0x2_0000).contains(&smccc),
        smccc,
    );
    let feature = hvc(psci::FEATURES, [psci::SMCCC_VERSION, 0, 0]);
    checks.equal("SMCCC_VERSION is a feature", feature & 0xffff_ffff, 0);
    let none = hvc(psci::ARCH_FEATURES, [0x8000_7fff, 0, 0]);
    checks.equal(
        "an unknown workaround is not there",
        none as i32 as u64,
        psci::NOT_SUPPORTED,
    );
}

/// Calls that PSCI 1.0 demands.
const MANDATORY: [(&str, u64); 8] = [
    ("PSCI_VERSION is a feature", psci::VERSION),
    ("CPU_SUSPEND is a feature", psci::CPU_SUSPEND),
    ("CPU_OFF is a feature", 0x8400_0002),
    ("CPU_ON is a feature", psci::CPU_ON),
    ("AFFINITY_INFO is a feature", psci::AFFINITY_INFO),
    ("SYSTEM_OFF is a feature", psci::SYSTEM_OFF),
    ("SYSTEM_RESET is a feature", psci::SYSTEM_RESET),
    ("PSCI_FEATURES is a feature", psci::FEATURES),
];

fn features(checks: &mut Checks) {
    for (name, function) in MANDATORY {
        let got = hvc(psci::FEATURES, [function, 0, 0]);
        checks.check(name, got as i32 >= 0, got);
    }
    let got = hvc(psci::FEATURES, [0x8400_00ff, 0, 0]);
    checks.equal(
        "an unknown PSCI call is no feature",
        got as i32 as u64,
        psci::NOT_SUPPORTED,
    );
}

fn power(checks: &mut Checks) {
    let own = read_sys!("MPIDR_EL1") & 0xff_00ff_ffff;
    let entry = 0x4000_0000;
    let on = |target: u64, entry: u64| hvc(psci::CPU_ON, [target, entry, 7]);
    checks.equal("CPU_ON of this CPU", on(own, entry), psci::ALREADY_ON);
    for (name, target) in [
        ("CPU_ON of a CPU that is not there", 0xff),
        ("CPU_ON of affinity 3", 1 << 32),
        ("CPU_ON with a reserved bit", own | 1 << 31),
        ("CPU_ON with bits above affinity 3", own | 1 << 40),
        ("CPU_ON of all ones", u64::MAX),
    ] {
        let got = on(target, entry);
        checks.check(name, got == psci::INVALID_PARAMETERS || checks.bare, got);
    }
    for (name, entry) in [
        ("unaligned entry", 0x4000_0001),
        ("entry outside RAM", 0x0900_0000),
        ("entry at ~0", !3),
    ] {
        let got = on(own, entry);
        checks.check(
            name,
            got == psci::ALREADY_ON || got == psci::INVALID_ADDRESS || checks.bare,
            got,
        );
    }
    let info = |target: u64, level: u64| hvc(psci::AFFINITY_INFO, [target, level, 0]);
    checks.equal("AFFINITY_INFO of this CPU is ON", info(own, 0), 0);
    checks.equal(
        "AFFINITY_INFO of no CPU",
        info(0xff, 0),
        psci::INVALID_PARAMETERS,
    );
    for level in [4, u64::MAX] {
        let got = info(own, level);
        checks.check(
            "AFFINITY_INFO of a level that is not there",
            got == psci::INVALID_PARAMETERS || checks.bare,
            got,
        );
    }
    let got = hvc(0x8400_0012, [1, 0, 0]);
    checks.check(
        "SYSTEM_RESET2 of a reserved type",
        (got as i32) == -1 || (got as i32) == -2,
        got,
    );
}

/// TRNG_RND64: status, and the registers with random bits, highest first.
fn random(bits: u64) -> [u64; 4] {
    let (mut x0, mut x1, x2, x3) = (0xc400_0053_u64, bits, 0_u64, 0_u64);
    let (got2, got3);
    // SAFETY: as for `hvc`.
    unsafe {
        asm!("hvc #0", inout("x0") x0, inout("x1") x1, inout("x2") x2 => got2, inout("x3") x3 => got3,
            clobber_abi("C"), options(nostack));
    }
    [x0, x1, got2, got3]
}

/// Random numbers (DEN 0098), if there are any.
fn entropy(checks: &mut Checks) {
    const TRNG_VERSION: u64 = 0x8400_0050;
    let rndr = read_sys!("ID_AA64ISAR0_EL1") >> 60 != 0;
    let version = hvc(TRNG_VERSION, [0; 3]);
    let want = if rndr { 0x1_0000 } else { psci::NOT_SUPPORTED };
    checks.equal("TRNG is there with FEAT_RNG", version, want);
    if !rndr {
        return;
    }
    let [status, high, middle, low] = random(192);
    checks.equal("192 random bits", status, 0);
    let differ = high != middle && middle != low && low != high && low != 0;
    checks.check("are no constant", differ, low);
    let [status, high, middle, low] = random(5);
    checks.check(
        "5 random bits",
        status == 0 && (high, middle) == (0, 0) && low < 32,
        low,
    );
    for bits in [0, 193, u64::MAX] {
        let [status, ..] = random(bits);
        checks.equal(
            "a wrong number of random bits",
            status,
            psci::INVALID_PARAMETERS,
        );
    }
}

/// Many bad calls in a row: a hypervisor that prints each one floods its log.
fn flood(checks: &mut Checks) {
    let wrong = (0..2000)
        .filter(|&n| hvc(0x8600_5000 + n, [0; 3]) as u32 != u32::MAX)
        .count();
    checks.equal("2000 unknown calls", wrong as u64, 0);
}

/// All of it.
pub fn run(checks: &mut Checks) {
    if checks.bare {
        checks.attempt(
            "SMC is undefined without EL3 and EL2",
            || smc(psci::VERSION, [0; 3]),
            super::checks::undefined,
        );
    }
    unknown(checks);
    odd(checks);
    features(checks);
    power(checks);
    if !checks.bare {
        entropy(checks);
    }
    flood(checks);
    let breakpoint = trap::attempt(|| {
        execute!("brk #7");
        0
    });
    checks.outcome("BRK comes back to EL1", breakpoint, |got| {
        got.trap().is_some_and(|trap| trap.class() == 0x3c)
    });
}
