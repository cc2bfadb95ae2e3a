//! Code in pages that move: rewritten and run, with and without tags, by one vCPU or two.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bare_guests::pattern::{self, Sequence};
use bare_guests::rt::pages::{Pages, Wrong};
use bare_guests::rt::{clock, gic, mmu, mte, smp};
use bare_guests::{execute, say};

use super::tagger::Choice;
use super::{Found, Job};

/// Every fourth page holds code that is never rewritten: what the second vCPU runs.
const FIXED: u64 = 4;
/// How long the other vCPU may take to start or stop, in milliseconds.
const PATIENCE: u64 = 20_000;

/// What the other vCPU works with, and what it found: pages run, and how many of them were wrong.
static BASE: AtomicU64 = AtomicU64::new(0);
static COUNT: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicU64 = AtomicU64::new(0);
static RUN: AtomicU64 = AtomicU64::new(0);
static BAD: AtomicU64 = AtomicU64::new(0);
static STOPPED: AtomicU64 = AtomicU64::new(0);

/// Where the code of a page starts.
const fn entry(pages: &Pages, page: u64) -> u64 {
    pages.address(page) + pattern::mix(page) % 60 * 64
}

/// What the code of a page returns.
const fn value(page: u64, version: u64) -> u64 {
    pattern::mix(page << 24 | version) & 0xffff_ffff
}

/// Writes `movz x0, #low; movk x0, #high, lsl #16; ret`, and makes it visible to fetches.
fn install(pages: &Pages, page: u64, version: u64) {
    let (at, value) = (entry(pages, page), value(page, version));
    let (low, high) = (value & 0xffff, value >> 16);
    mte::write(at, 0xd280_0000 | low << 5 | (0xf2a0_0000 | high << 5) << 32);
    mte::write(at + 8, 0xd65f_03c0);
    // SAFETY: cache maintenance by address changes no contents.
    unsafe {
        core::arch::asm!("dc cvau, {a}", "dsb ish", "ic ivau, {a}", "dsb ish", "isb", a = in(reg) at, options(nostack));
    }
}

/// Runs the code of a page.
fn call(pages: &Pages, page: u64) -> u64 {
    let result: u64;
    // SAFETY: `install` has written a function there that changes x0 alone.
    unsafe {
        core::arch::asm!("blr {a}", a = in(reg) entry(pages, page), lateout("x0") result, clobber_abi("C"), options(nostack));
    }
    result
}

fn check(pages: &Pages, page: u64, version: u64) -> Result<(), Wrong> {
    let (got, want) = (call(pages, page), value(page, version));
    if got == want {
        return Ok(());
    }
    let address = entry(pages, page);
    let what = "stale code ran";
    Err(Wrong {
        what,
        page,
        address,
        got,
        want,
    })
}

/// The second vCPU runs code, and nothing else.
extern "C" fn runner() -> ! {
    mmu::enable_cpu();
    if mte::level() >= 2 {
        mte::set_checks(false);
    }
    let pages = Pages {
        seed: 0,
        base: BASE.load(Relaxed),
        count: COUNT.load(Relaxed),
        stride: 1,
        bytes: 0,
    };
    let mut random = Sequence::new(2);
    while STOP.load(Relaxed) == 0 {
        let page = random.below(pages.count / FIXED) * FIXED;
        if call(&pages, page) != value(page, 0) {
            BAD.fetch_add(1, Relaxed);
        }
        RUN.fetch_add(1, Relaxed);
    }
    STOPPED.store(1, Relaxed);
    loop {
        execute!("wfi");
    }
}

/// Rewrites and runs one random page.
fn step(pages: &Pages, random: &mut Sequence, versions: &mut u64) -> Result<(), Wrong> {
    let page = random.below(pages.count);
    let version = if page.is_multiple_of(FIXED) {
        0
    } else {
        *versions
    };
    if version != 0 {
        *versions += 1;
        install(pages, page, version);
    }
    check(pages, page, version)
}

/// Installs code everywhere, then tags and runs.
pub fn run(job: &Job) -> Result<Found, Wrong> {
    let pages = Pages {
        stride: 1,
        ..job.pages
    };
    let (choice, mut found) = (Choice::of(job), Found::default());
    (0..pages.count).for_each(|page| install(&pages, page, 0));
    BASE.store(pages.base, Relaxed);
    COUNT.store(pages.count, Relaxed);
    say!("WRITTEN pages={}", pages.count);
    let second = job.number("vcpus", 1) > 1;
    if second
        && (smp::start_second(runner) != 0
            || !gic::wait(clock::ticks(PATIENCE), || RUN.load(Relaxed) > 0))
    {
        say!("vCPU 1 does not start");
    }
    job.wait();
    let (mut random, mut versions) = (Sequence::new(pages.seed), 1);
    let each = job.number("busy", 8);
    found.tagged = choice.each(|page| {
        let before = call(&pages, page);
        if mte::level() >= 2 {
            pages.tag(page);
        }
        for (got, want) in [(call(&pages, page), before)] {
            if got != want {
                let (what, address) = ("tagging changed code", entry(&pages, page));
                return Err(Wrong {
                    what,
                    page,
                    address,
                    got,
                    want,
                });
            }
        }
        found.done += each;
        (0..each).try_for_each(|_| step(&pages, &mut random, &mut versions))
    })?;
    STOP.store(1, Relaxed);
    if second {
        let stopped = gic::wait(clock::ticks(PATIENCE), || STOPPED.load(Relaxed) == 1);
        say!(
            "RUNNER stopped={stopped} run={} bad={}",
            RUN.load(Relaxed),
            BAD.load(Relaxed)
        );
        let (what, got) = (
            "another vCPU ran stale code",
            BAD.load(Relaxed) + u64::from(!stopped),
        );
        if got != 0 {
            return Err(Wrong {
                what,
                page: 0,
                address: 0,
                got,
                want: 0,
            });
        }
    }
    Ok(found)
}
