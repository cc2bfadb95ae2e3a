//! Device registers by accesses that a driver would not make.

use core::arch::asm;

use bare_guests::pattern::Sequence;
use bare_guests::rt::console::{FLAGS, UART};
use bare_guests::rt::gic::{DISTRIBUTOR, REDISTRIBUTOR, read32};
use bare_guests::rt::mmu::Memory;
use bare_guests::rt::trap::{self, Outcome};

use super::checks::{Checks, done_or_external};

/// A register of the UART that takes zeroes without effect: the interrupt clear register, with DMACR behind it.
const HARMLESS: u64 = UART + 0x44;

/// One access by the given text, with the address in `x0`, data in `x1` (zero before) and `x2`; what is in `x1` after.
macro_rules! access {
    ($($text:literal),+) => {
        |address: u64| {
            let value: u64;
            // SAFETY: the address is a device's; its registers do not change the program's memory.
            unsafe {
                asm!(".arch armv8.5-a+fp+simd+lse", $($text),+, inout("x0") address => _, inout("x1") 0_u64 => value,
                    inout("x2") 0_u64 => _, inout("x3") 0_u64 => _, out("x4") _, options(nostack))
            };
            value
        }
    };
}

type Access = fn(u64) -> u64;

/// The PL011's identification: PeriphID0 to 3 and PCellID0 to 3.
const IDENTIFICATION: [u64; 8] = [0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

fn identification(checks: &mut Checks) {
    for (index, want) in IDENTIFICATION.into_iter().enumerate() {
        let got = u64::from(read32(UART + 0xfe0 + 4 * index as u64));
        // PeriphID2 holds the revision above bit 4.
        let mask = if index == 2 { 0xf } else { 0xff };
        checks.check("PL011 identification", got & mask == want & mask, got);
    }
}

/// Loads of the byte 0xf0 (PCellID1) in each width and extension.
fn extension(checks: &mut Checks) {
    let at = UART + 0xff4;
    let loads: [(&str, Access, u64); 7] = [
        ("LDRB", access!("ldrb w1, [x0]"), 0xf0),
        ("LDRH", access!("ldrh w1, [x0]"), 0xf0),
        ("LDR w", access!("ldr w1, [x0]"), 0xf0),
        ("LDRSB w", access!("ldrsb w1, [x0]"), 0xffff_fff0),
        ("LDRSB x", access!("ldrsb x1, [x0]"), 0xffff_ffff_ffff_fff0),
        ("LDRSH x", access!("ldrsh x1, [x0]"), 0xf0),
        ("LDRSW x", access!("ldrsw x1, [x0]"), 0xf0),
    ];
    for (name, load, want) in loads {
        checks.attempt(
            name,
            || load(at),
            |got| got.value().is_none_or(|value| value == want) && done_or_external(got),
        );
    }
    let word: Access = access!("mov x1, #-1", "ldr w1, [x0]");
    checks.attempt(
        "LDR w clears the upper half",
        || word(at),
        |got| got == Outcome::Done(0xf0),
    );
    let zero: Access = access!(
        "mov x4, sp",
        "ldr wzr, [x0]",
        "mov x3, sp",
        "sub x1, x3, x4",
        "orr x1, x1, xzr"
    );
    checks.attempt(
        "LDR to wzr changes neither wzr nor sp",
        || zero(at),
        |got| got == Outcome::Done(0),
    );
    let store: Access = access!("str wzr, [x0]");
    checks.attempt(
        "STR of wzr",
        || store(HARMLESS),
        |got| got == Outcome::Done(0),
    );
}

/// Accesses without a syndrome (ISV = 0), which must be decoded or aborted.
fn without_syndrome(checks: &mut Checks) {
    let accesses: [(&str, Access); 18] = [
        ("LDP w", access!("ldp w1, w2, [x0]")),
        ("LDP x", access!("sub x0, x0, #4", "ldp x1, x2, [x0]")),
        ("LDPSW", access!("ldpsw x1, x2, [x0]")),
        ("STP w", access!("stp w2, w3, [x0]")),
        ("STP x", access!("sub x0, x0, #4", "stp x2, x3, [x0]")),
        ("LDNP", access!("ldnp w1, w2, [x0]")),
        ("LDR s", access!("ldr s0, [x0]")),
        ("LDR q", access!("ldr q0, [x0, #-4]!")),
        ("STR q", access!("movi v0.16b, #0", "str q0, [x0, #-4]!")),
        ("LD1", access!("ld1 {{v0.4s}}, [x0]")),
        (
            "ST1 lane",
            access!("movi v0.16b, #0", "st1 {{v0.s}}[1], [x0]"),
        ),
        ("LDXR", access!("ldxr w1, [x0]", "clrex")),
        ("STXR", access!("ldxr w1, [x0]", "stxr w2, w3, [x0]")),
        ("LDAXP", access!("ldaxp w1, w2, [x0]", "clrex")),
        ("LDADD", access!("ldadd w2, w1, [x0]")),
        ("SWPAL", access!("swpal w2, w1, [x0]")),
        ("CAS", access!("cas w2, w3, [x0]")),
        ("CASP", access!("casp w2, w3, w2, w3, [x0]")),
    ];
    for (name, access) in accesses {
        checks.attempt(name, || access(HARMLESS), done_or_external);
        checks.attempt(
            name,
            || access(Memory::Normal.at(HARMLESS)),
            done_or_external,
        );
        checks.attempt(name, || access(DISTRIBUTOR + 0x44), done_or_external);
    }
}

/// Write-back of the base register happens if, and only if, the access was done.
fn write_back(checks: &mut Checks) {
    let accesses: [(&str, Access, u64); 5] = [
        (
            "LDR post-index",
            access!("mov x1, x0", "ldr w2, [x0], #4", "sub x1, x0, x1"),
            4,
        ),
        (
            "LDR pre-index",
            access!("mov x1, x0", "ldr w2, [x0, #4]!", "sub x1, x0, x1"),
            4,
        ),
        (
            "STR post-index",
            access!("mov x1, x0", "str w2, [x0], #4", "sub x1, x0, x1"),
            4,
        ),
        (
            "LDP post-index",
            access!("mov x1, x0", "ldp w2, w3, [x0], #8", "sub x1, x0, x1"),
            8,
        ),
        (
            "LDRB post-index",
            access!("mov x1, x0", "ldrb w2, [x0], #1", "sub x1, x0, x1"),
            1,
        ),
    ];
    for (name, access, step) in accesses {
        let mut moved = u64::MAX;
        let outcome = trap::attempt(|| {
            moved = access(HARMLESS);
            moved
        });
        let want = if outcome.trap().is_some() { 0 } else { step };
        checks.check(name, done_or_external(outcome) && moved == want, moved);
    }
}

/// Odd sizes and places.
fn misfits(checks: &mut Checks) {
    let (byte, half, word, double): (Access, Access, Access, Access) = (
        access!("ldrb w1, [x0]"),
        access!("ldrh w1, [x0]"),
        access!("ldr w1, [x0]"),
        access!("ldr x1, [x0]"),
    );
    let (store_byte, store_half, store_double): (Access, Access, Access) = (
        access!("strb w2, [x0]"),
        access!("strh w2, [x0]"),
        access!("str x2, [x0]"),
    );
    let normal = |address| Memory::Normal.at(address);
    let attempts: [(&str, Access, u64); 22] = [
        ("8 bytes of the UART flags", double, UART + FLAGS),
        ("2 bytes of the UART flags", half, UART + FLAGS),
        ("1 byte inside the UART flags", byte, UART + FLAGS + 3),
        (
            "4 bytes across two UART registers",
            word,
            normal(UART + FLAGS + 2),
        ),
        (
            "8 bytes at the end of the UART's page",
            double,
            normal(UART + 0xffc),
        ),
        (
            "2 bytes across the end of the UART's page",
            half,
            normal(UART + 0xfff),
        ),
        ("an unused UART register", word, UART + 0x80),
        (
            "a store to an unused UART register",
            store_half,
            UART + 0x82,
        ),
        ("a byte store to the UART flags", store_byte, UART + FLAGS),
        ("8 bytes stored to the UART", store_double, HARMLESS - 4),
        ("1 byte of GICD_CTLR", byte, DISTRIBUTOR),
        ("8 bytes of GICD_CTLR", double, DISTRIBUTOR),
        ("2 bytes of GICD_TYPER", half, DISTRIBUTOR + 4),
        (
            "4 bytes across GICD registers",
            word,
            normal(DISTRIBUTOR + 2),
        ),
        ("1 byte of GICD_ISENABLER", byte, DISTRIBUTOR + 0x101),
        ("a reserved GICD register", word, DISTRIBUTOR + 0xc000),
        (
            "GICD enables behind the last SPI",
            word,
            DISTRIBUTOR + 0x17c,
        ),
        ("the lower half of GICD_IROUTER", word, DISTRIBUTOR + 0x6100),
        (
            "4 bytes across the end of the GICD",
            word,
            normal(DISTRIBUTOR + 0xfffe),
        ),
        (
            "4 bytes of GICR_TYPER's upper half",
            word,
            REDISTRIBUTOR + 12,
        ),
        ("a reserved GICR register", word, REDISTRIBUTOR + 0x8000),
        ("behind the last GICR", word, REDISTRIBUTOR + 0x4_0000),
    ];
    for (name, access, address) in attempts {
        checks.attempt(name, || access(address), done_or_external);
    }
}

fn gic(checks: &mut Checks) {
    let typer: Access = access!("ldr x1, [x0]");
    let architecture = |id: u32| u64::from(id >> 4 & 0xf);
    let version = architecture(read32(DISTRIBUTOR + 0xffe8));
    checks.check(
        "GICD_PIDR2 says GICv3 or v4",
        (3..=4).contains(&version),
        version,
    );
    let version = architecture(read32(REDISTRIBUTOR + 0xffe8));
    checks.check(
        "GICR_PIDR2 says GICv3 or v4",
        (3..=4).contains(&version),
        version,
    );
    checks.attempt(
        "GICR_TYPER is 64 bits",
        || typer(REDISTRIBUTOR + 8),
        |got| got.value().is_some(),
    );
    let high: Access = access!("ldr w1, [x0, #4]");
    let affinity = trap::attempt(|| high(REDISTRIBUTOR + 8));
    checks.outcome("GICR_TYPER.Affinity is this CPU's", affinity, |got| {
        got == Outcome::Done(0)
    });
}

/// Cache maintenance of a device's address.
fn maintenance(checks: &mut Checks) {
    let operations: [(&str, Access); 5] = [
        ("DC CIVAC of a device", access!("dc civac, x0")),
        ("DC IVAC of a device", access!("dc ivac, x0")),
        ("DC CVAU of a device", access!("dc cvau, x0")),
        ("IC IVAU of a device", access!("ic ivau, x0")),
        ("DC ZVA of a device", access!("dc zva, x0")),
    ];
    for (name, operation) in operations {
        checks.attempt(
            name,
            || operation(Memory::Normal.at(HARMLESS)),
            done_or_external,
        );
        checks.attempt(
            name,
            || operation(Memory::Normal.at(super::memory::NOTHING)),
            done_or_external,
        );
    }
}

/// All of it, but the part that leaves the GIC in disorder.
pub fn run(checks: &mut Checks) {
    identification(checks);
    extension(checks);
    without_syndrome(checks);
    write_back(checks);
    misfits(checks);
    gic(checks);
    maintenance(checks);
}

/// Random accesses of random sizes all over the GIC and the UART: each is done or aborted, and the machine lives.
pub fn fuzz(checks: &mut Checks, seed: u64) {
    let mut random = Sequence::new(seed);
    let accesses: [(Access, u64); 8] = [
        (access!("ldrb w1, [x0]"), 1),
        (access!("ldrh w1, [x0]"), 2),
        (access!("ldr w1, [x0]"), 4),
        (access!("ldr x1, [x0]"), 8),
        (access!("mov x2, #-1", "strb w2, [x0]"), 1),
        (access!("mov x2, #-1", "strh w2, [x0]"), 2),
        (access!("mov x2, #-1", "str w2, [x0]"), 4),
        (access!("mov x2, #0xffff", "str x2, [x0]"), 8),
    ];
    let mut wrong = 0;
    for _ in 0..20_000 {
        let Some(&(access, bytes)) = accesses.get(random.below(8) as usize) else {
            continue;
        };
        let writes_little = random.below(4) == 0;
        let base = match random.below(3) {
            0 => DISTRIBUTOR + random.below(0x1_0000),
            1 => REDISTRIBUTOR + random.below(0x2_0000),
            // The UART's identification: writes elsewhere would stop its output.
            _ => UART + 0xfe0 + random.below(0x20),
        };
        let address = if writes_little {
            Memory::Normal.at(base)
        } else {
            base & !(bytes - 1)
        };
        wrong += u64::from(!done_or_external(trap::attempt(|| access(address))));
    }
    checks.equal("20000 random device accesses", wrong, 0);
}
