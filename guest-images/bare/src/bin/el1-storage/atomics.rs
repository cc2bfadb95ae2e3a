//! Two vCPUs count in the same words, by exclusives and by atomics, while the pages get tags and move.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bare_guests::pattern::Sequence;
use bare_guests::rt::pages::{Pages, Wrong};
use bare_guests::rt::{clock, gic, mmu, mte, smp};
use bare_guests::{execute, say};

use super::tagger::Choice;
use super::{Found, Job};

/// How long the other vCPU may take to start or stop, in milliseconds.
const PATIENCE: u64 = 20_000;
/// The ways to add one.
const WAYS: u64 = 5;

static BASE: AtomicU64 = AtomicU64::new(0);
static COUNT: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicU64 = AtomicU64::new(0);
static ADDED: AtomicU64 = AtomicU64::new(0);
static STOPPED: AtomicU64 = AtomicU64::new(0);

/// Defines functions that add one to the word at an address, by a loop that ends when its exclusive or comparison holds.
macro_rules! ways {
    ($($name:ident $($line:literal),+;)+) => {$(
        fn $name(address: u64) {
            // SAFETY: adds one to a word of a page that holds nothing but such words.
            unsafe {
                asm!(".arch_extension lse", $($line),+, a = in(reg) address, v = out(reg) _, n = out(reg) _,
                    one = in(reg) 1_u64, o = out(reg) _, options(nostack));
            }
        }
    )+};
}

ways! {
    exclusive "2: ldxr {v}, [{a}]", "add {n}, {v}, #1", "stxr {o:w}, {n}, [{a}]", "cbnz {o:w}, 2b", "// {one}";
    acquire "2: ldaxr {v}, [{a}]", "add {n}, {v}, {one}", "stlxr {o:w}, {n}, [{a}]", "cbnz {o:w}, 2b";
    ldadd "ldaddal {one}, {v}, [{a}]", "// {n} {o}";
    cas "2: ldr {v}, [{a}]", "mov {o}, {v}", "add {n}, {v}, {one}", "casal {o}, {n}, [{a}]", "cmp {o}, {v}", "b.ne 2b";
    pair "2: ldxp {v}, {o}, [{a}]", "add {n}, {v}, {one}", "stxp {v:w}, {n}, {o}, [{a}]", "cbnz {v:w}, 2b";
}

/// Adds one to a random word; words lie 128 bytes apart, so that granules and cache lines between them stay free.
fn add(pages: &Pages, random: &mut Sequence) {
    let choice = random.next();
    let at = pages.address(choice % pages.count) + (choice >> 32) % 32 * 128;
    match (choice >> 40) % WAYS {
        0 => exclusive(at),
        1 => acquire(at),
        2 => ldadd(at),
        3 => cas(at),
        _ => pair(at),
    }
}

/// The second vCPU counts, and nothing else.
extern "C" fn counter() -> ! {
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
        add(&pages, &mut random);
        ADDED.fetch_add(1, Relaxed);
    }
    STOPPED.store(1, Relaxed);
    loop {
        execute!("wfi");
    }
}

/// The sum of all words.
fn sum(pages: &Pages) -> u64 {
    let words = |page| (0..32).map(move |word| mte::read(pages.address(page) + word * 128));
    (0..pages.count).flat_map(words).fold(0, u64::wrapping_add)
}

/// Tags and counts, then compares.
pub fn run(job: &Job) -> Result<Found, Wrong> {
    let pages = Pages {
        stride: 1,
        ..job.pages
    };
    let (choice, mut found) = (Choice::of(job), Found::default());
    for page in 0..pages.count {
        mte::write(pages.address(page), 0);
    }
    BASE.store(pages.base, Relaxed);
    COUNT.store(pages.count, Relaxed);
    if smp::start_second(counter) != 0
        || !gic::wait(clock::ticks(PATIENCE), || ADDED.load(Relaxed) > 0)
    {
        say!("vCPU 1 does not start");
    }
    job.wait();
    let (mut random, each) = (Sequence::new(pages.seed), job.number("busy", 32));
    found.tagged = choice.each(|page| {
        if mte::level() >= 2 {
            pages.tag(page);
        }
        (0..each).for_each(|_| add(&pages, &mut random));
        found.done += each;
        Ok(())
    })?;
    STOP.store(1, Relaxed);
    let stopped = gic::wait(clock::ticks(PATIENCE), || STOPPED.load(Relaxed) == 1);
    let (got, want) = (sum(&pages), found.done + ADDED.load(Relaxed));
    say!(
        "COUNTED stopped={stopped} by0={} by1={} sum={got}",
        found.done,
        ADDED.load(Relaxed)
    );
    if !stopped || got != want {
        let what = "an addition was lost";
        return Err(Wrong {
            what,
            page: 0,
            address: pages.base,
            got,
            want,
        });
    }
    if mte::level() >= 2 {
        (0..pages.count)
            .filter(|&page| choice.has(page))
            .try_for_each(|page| pages.check_tags(page))?;
    }
    Ok(found)
}
