//! A guest that measures the share of the CPUs that each of its vCPUs gets, or that makes the share of others small if it can.
//!
//! `mode=` on the command line says what it does, `vcpus=N` on how many vCPUs, all alike. From `from=MS` of its own time on, for
//! `ms=MS`, each vCPU counts its rounds; it goes on for `tail=MS`, so that guests that started at about the same time have company
//! as long as they count. A line `SHARE cpu=N rounds=N` for each vCPU, the last line is
//! `DONE MODE rounds=N bad=N`, the sum, and pages that did not hold what had been stored there.
//!
//! | mode | a round is |
//! |---|---|
//! | `count` | some 2,000 instructions, and with `touch=1`, for one vCPU, a look at the next page of all its memory and a store |
//! | `hvc` | a hypercall |
//! | `mmio` | a read of a device's register |
//! | `doze` | a sleep of `us=N` microseconds |
//! | `nap` | `busy=N` microseconds of work and a sleep of `us=N` microseconds |

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod guest {
    use core::arch::asm;
    use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use bare_guests::args;
    use bare_guests::rt::clock::{now, ticks};
    use bare_guests::rt::{Boot, gic, psci, smp};
    use bare_guests::{execute, read_sys, say};

    bare_guests::entry!(main);

    const PAGE: u64 = 4096;
    /// AFFINITY_INFO: the CPU is off.
    const OFF: u64 = 1;

    /// When counting begins and ends, and when all ends, by the virtual counter.
    static FROM: AtomicU64 = AtomicU64::new(0);
    static UNTIL: AtomicU64 = AtomicU64::new(0);
    static END: AtomicU64 = AtomicU64::new(0);
    /// Which mode, by its place in [`MODES`].
    static MODE: AtomicU64 = AtomicU64::new(0);
    /// How long a sleep and the work before it take, in counts of the virtual counter.
    static SLEEP: AtomicU64 = AtomicU64::new(0);
    static BUSY: AtomicU64 = AtomicU64::new(0);
    /// The pages that are touched: the next one, the first and the end of all; how often each has been, and what was wrong.
    static NEXT: AtomicU64 = AtomicU64::new(0);
    static FIRST: AtomicU64 = AtomicU64::new(0);
    static BEYOND: AtomicU64 = AtomicU64::new(0);
    static LAP: AtomicU64 = AtomicU64::new(0);
    static BAD: AtomicU64 = AtomicU64::new(0);

    static ROUNDS: [AtomicU64; smp::MOST as usize] =
        [const { AtomicU64::new(0) }; smp::MOST as usize];

    /// A mode: its name, and what a round of it is.
    type Mode = (&'static str, fn());

    const MODES: [Mode; 5] = [
        ("count", work),
        ("hvc", call),
        ("mmio", look),
        ("doze", sleep),
        ("nap", nap),
    ];

    fn rounds(cpu: u64) -> &'static AtomicU64 {
        ROUNDS.get(cpu as usize).unwrap_or(&ROUNDS[0])
    }

    /// Two instructions, a thousand times.
    fn burn() {
        // SAFETY: counts a register down.
        unsafe {
            asm!("2: subs {n}, {n}, #1", "b.ne 2b", n = inout(reg) 1000_u64 => _, options(nomem, nostack));
        }
    }

    fn work() {
        burn();
        let (first, beyond) = (FIRST.load(Relaxed), BEYOND.load(Relaxed));
        if first == beyond {
            return;
        }
        touch(first, beyond);
        // In counted time QEMU's CPUs take turns, and a turn ends here, or else with the next timer: the other CPUs keep pace.
        execute!("yield");
    }

    /// Looks whether the next page holds what was stored last, at first nothing, and stores something else.
    fn touch(first: u64, beyond: u64) {
        let (page, lap) = (NEXT.load(Relaxed), LAP.load(Relaxed));
        let stored = if lap == 0 { 0 } else { page + lap - 1 };
        let place = page as *mut u64;
        // SAFETY: RAM that nothing else is in, which `main` has looked up.
        let found = unsafe { place.read_volatile() };
        // SAFETY: as above.
        unsafe { place.write_volatile(page + lap) };
        BAD.fetch_add((found != stored).into(), Relaxed);
        let next = page + PAGE;
        let is_last = next >= beyond;
        NEXT.store(if is_last { first } else { next }, Relaxed);
        LAP.store(lap + u64::from(is_last), Relaxed);
    }

    fn call() {
        psci::hvc(psci::VERSION, [0; 3]);
    }

    fn look() {
        gic::read32(gic::DISTRIBUTOR);
    }

    fn sleep() {
        gic::start_timer(SLEEP.load(Relaxed));
        while !gic::is_pending() {
            execute!("wfi");
        }
        gic::stop_timer();
        let id = gic::acknowledge();
        if id != gic::SPURIOUS {
            gic::end(id);
        }
    }

    fn nap() {
        let until = now() + BUSY.load(Relaxed);
        while now() < until {
            burn();
        }
        sleep();
    }

    /// Does rounds until the end, and counts those that end in the time for it.
    fn run_on(cpu: u64) {
        gic::enable_cpu(cpu);
        let mode = MODES.get(MODE.load(Relaxed) as usize);
        let round = mode.map_or(work as fn(), |mode| mode.1);
        let (from, until, end) = (FROM.load(Relaxed), UNTIL.load(Relaxed), END.load(Relaxed));
        let mut count = 0;
        loop {
            round();
            let time = now();
            count += u64::from((from..until).contains(&time));
            if time >= end {
                break;
            }
        }
        rounds(cpu).store(count, Relaxed);
    }

    extern "C" fn other() -> ! {
        run_on(smp::this_cpu());
        psci::hvc(psci::CPU_OFF, [0; 3]);
        psci::system_off()
    }

    fn main(boot: Boot) -> ! {
        let line = boot.bootargs();
        let mode = args::text(line, "mode").unwrap_or_default();
        let Some(index) = MODES.iter().position(|known| known.0 == mode) else {
            say!("no mode {mode}: see el1-share.rs");
            psci::system_off()
        };
        let ms = |key, default| ticks(args::number(line, key, default));
        let us =
            |key, default| args::number(line, key, default) * read_sys!("CNTFRQ_EL0") / 1_000_000;
        MODE.store(index as u64, Relaxed);
        SLEEP.store(us("us", 100), Relaxed);
        BUSY.store(us("busy", 1000), Relaxed);
        let from = now() + ms("from", 100);
        let until = from + ms("ms", 1000);
        FROM.store(from, Relaxed);
        UNTIL.store(until, Relaxed);
        END.store(until + ms("tail", 100), Relaxed);
        if args::number(line, "touch", 0) != 0 {
            let (first, beyond) = boot.free(PAGE);
            FIRST.store(first, Relaxed);
            NEXT.store(first, Relaxed);
            BEYOND.store(beyond, Relaxed);
        }
        let vcpus = args::number(line, "vcpus", 1).min(smp::MOST);
        gic::enable();
        for cpu in 1..vcpus {
            smp::start(cpu, other);
        }
        run_on(0);
        for cpu in 1..vcpus {
            while psci::hvc(psci::AFFINITY_INFO, [cpu, 0, 0]) != OFF {}
        }
        let mut sum = 0;
        for cpu in 0..vcpus {
            let count = rounds(cpu).load(Relaxed);
            say!("SHARE cpu={cpu} rounds={count}");
            sum += count;
        }
        say!("DONE {mode} rounds={sum} bad={}", BAD.load(Relaxed));
        psci::system_off()
    }
}
