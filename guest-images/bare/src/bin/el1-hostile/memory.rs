//! Accesses, fetches and table walks where there is no memory.

use core::cell::UnsafeCell;

use bare_guests::read_sys;
use bare_guests::rt::console::UART;
use bare_guests::rt::mmu::{self, Memory, SPARE};
use bare_guests::rt::mte;
use bare_guests::rt::trap::{self, Outcome};

use super::checks::{Checks, done, external};

/// An address where the `virt` machine has nothing.
pub const NOTHING: u64 = 0x0f00_0000;

/// A page that anything may write to.
#[repr(C, align(4096))]
struct Scratch(UnsafeCell<[u8; 4096]>);

// SAFETY: the program has one thread, and touches the page through raw pointers only.
unsafe impl Sync for Scratch {}

static SCRATCH: Scratch = Scratch(UnsafeCell::new([0; 4096]));

/// The scratch page's address.
pub fn scratch() -> u64 {
    SCRATCH.0.get() as u64
}

/// Calls `address`.
fn call(address: u64) -> u64 {
    // SAFETY: what is there either faults at once, and the vectors return here, or is an undefined instruction.
    unsafe { core::arch::asm!("blr {}", in(reg) address, clobber_abi("C"), options(nostack)) };
    0
}

fn store(address: u64) -> u64 {
    mte::write(address, 0);
    0
}

/// An external abort at `address`.
fn external_at(address: u64) -> impl Fn(Outcome) -> bool {
    move |outcome| external(outcome) && outcome.trap().is_some_and(|trap| trap.far == address)
}

/// An external abort on a fetch.
fn fetch_abort(outcome: Outcome) -> bool {
    outcome
        .trap()
        .is_some_and(|trap| trap.class() == trap::FETCH_ABORT && trap.status() == trap::EXTERNAL)
}

fn data(checks: &mut Checks, end: u64) {
    for (name, address) in [
        (
            "a load where nothing is, as device",
            Memory::Device.at(NOTHING),
        ),
        (
            "a load where nothing is, as memory",
            Memory::Normal.at(NOTHING),
        ),
        ("a load behind RAM", Memory::Tagged.at(end)),
        (
            "a load behind RAM, not cached",
            Memory::NonCacheable.at(end + 0x1000),
        ),
    ] {
        checks.attempt(name, || mte::read(address), external_at(address));
    }
    for (name, address) in [
        ("a store where nothing is", Memory::Device.at(NOTHING)),
        ("a store behind RAM", Memory::Tagged.at(end + 8)),
    ] {
        checks.attempt(name, || store(address), external_at(address));
    }
    let crossing = Memory::Tagged.at(end - 4);
    checks.attempt(
        "a load that leaves RAM half way",
        || mte::read(crossing),
        external,
    );
    let zero = Memory::Normal.at(end);
    checks.attempt(
        "DC ZVA behind RAM",
        || {
            mte::dc_zva(zero, 0);
            0
        },
        external,
    );
}

/// Addresses far above what stage 2 maps; QEMU's machine has PCI there.
fn high(checks: &mut Checks) {
    if checks.bare {
        return;
    }
    // PARange 0 to 6 is 32, 36, 40, 42, 44, 48, 52 bits.
    let bits = match read_sys!("ID_AA64MMFR0_EL1") & 0xf {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        _ => 48,
    };
    for shift in [36, 38, 39, 40, 43, 47] {
        if shift >= bits {
            continue;
        }
        mmu::map(Memory::Normal, 1 << shift);
        checks.attempt(
            "a load high above RAM",
            || mte::read(SPARE + 0x1238),
            external,
        );
        checks.attempt("a store high above RAM", || store(SPARE + 0x1238), external);
        checks.attempt("a fetch high above RAM", || call(SPARE), fetch_abort);
    }
    mmu::map(Memory::Normal, (1 << bits) - (1 << 30));
    checks.attempt(
        "a load at the end of the address space",
        || mte::read(SPARE + (1 << 30) - 8),
        external,
    );
}

fn fetches(checks: &mut Checks, end: u64) {
    for (name, address) in [
        ("a fetch where nothing is", Memory::Normal.at(NOTHING)),
        ("a fetch behind RAM", Memory::Normal.at(end)),
    ] {
        checks.attempt(name, || call(address), fetch_abort);
    }
    let bare = checks.bare;
    let uart = Memory::Normal.at(UART);
    // QEMU fetches from its UART, and finds an undefined instruction there.
    checks.attempt(
        "a fetch from the UART",
        || call(uart),
        |got| fetch_abort(got) || bare && got.is_undefined(),
    );
    checks.attempt(
        "a fetch from an odd address",
        || call(scratch() + 1),
        |got| {
            got.trap()
                .is_some_and(|trap| trap.class() == trap::PC_ALIGNMENT)
        },
    );
}

/// Whether `status` is an external abort, on a table walk or (a hypervisor is not told at which level the walk was) not.
fn is_external(status: u64) -> bool {
    status == trap::EXTERNAL || (0x14..=0x17).contains(&status)
}

/// Stage-1 tables of the guest where there is no memory: an external abort.
fn walks(checks: &mut Checks, end: u64) {
    for (name, table) in [
        ("a table where nothing is", NOTHING),
        ("a table behind RAM", end),
    ] {
        mmu::map_table(table);
        checks.attempt(
            name,
            || mte::read(SPARE),
            |got| {
                got.trap().is_some_and(|trap| {
                    trap.class() == trap::DATA_ABORT
                        && is_external(trap.status())
                        && trap.far == SPARE
                })
            },
        );
        checks.attempt(
            name,
            || call(SPARE),
            |got| {
                got.trap().is_some_and(|trap| {
                    trap.class() == trap::FETCH_ABORT && is_external(trap.status())
                })
            },
        );
    }
    mmu::map_table(UART & !0xfff);
    let bare = checks.bare;
    checks.attempt(
        "a table in the UART",
        || mte::read(SPARE),
        |got| {
            got.trap().is_some_and(|trap| {
                trap.class() == trap::DATA_ABORT && is_external(trap.status())
                    || bare && trap.is_data_abort(0x06)
            })
        },
    );
    // RAM that nobody has touched reads as zero: an ordinary translation fault, and no trouble below.
    mmu::map_table(end - 0x1000);
    checks.attempt(
        "a table in fresh RAM",
        || mte::read(SPARE),
        |got| got.trap().is_some_and(|trap| trap.is_data_abort(0x06)),
    );
}

fn ram(checks: &mut Checks, (base, bytes): (u64, u64)) {
    let last = base + bytes - 8;
    checks.attempt("the last word of RAM reads", || mte::read(last), done);
    checks.attempt("the last word of RAM is written", || store(last), done);
    let prefetch = || {
        // SAFETY: a prefetch reads no data and takes no exception.
        unsafe {
            core::arch::asm!("prfm pldl1keep, [{}]", in(reg) Memory::Normal.at(NOTHING), options(nostack))
        };
        0
    };
    checks.attempt("a prefetch where nothing is", prefetch, done);
}

/// All of it, with RAM as base and bytes.
pub fn run(checks: &mut Checks, (base, bytes): (u64, u64)) {
    let end = base + bytes;
    ram(checks, (base, bytes));
    data(checks, end);
    high(checks);
    fetches(checks, end);
    walks(checks, end);
}
