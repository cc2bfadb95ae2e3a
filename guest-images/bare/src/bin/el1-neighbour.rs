//! A guest for machines with company: it shares a CPU with another guest or another vCPU, or a terminal with a person.
//!
//! `mode=` on the command line says what it does; the last line of all but `echo` is `DONE MODE` and what it counted.
//! `ms=N` is how long, in milliseconds, `n=N` how often.
//!
//! | mode | does |
//! |---|---|
//! | `spin` | keeps its vCPU busy for `ms`, without an exit of its own |
//! | `sleep` | sleeps `n` times for `ms`, by WFI and the virtual timer |
//! | `share` | is busy while the counter goes from `from` to `to` milliseconds, and says what part of that it ran, in permille; with `nap=N` it sleeps N microseconds after each millisecond |
//! | `ipi` | starts vCPU 1, and sends it `n` SGIs, each when the one before was served; never sleeps |
//! | `cntp` | starts the physical timer `n` times and waits for each, trapping all the time in every other round |
//! | `suspend` | moves a virtual timer that is pending `ms` into the future and sleeps by CPU_SUSPEND, `n` times |
//! | `disr` | writes `value=N` to DISR_EL1 and reads it for `ms` |
//! | `echo` | echoes lines; `reset` and `off` are obeyed instead |

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod guest {
    use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use bare_guests::args;
    use bare_guests::rt::{Boot, console, gic, psci, smp, trap};
    use bare_guests::{execute, read_sys, say, write_sys};

    bare_guests::entry!(main);

    /// The SGI of `ipi`.
    const SGI: u64 = 3;
    /// How long something that must happen may take, in seconds.
    const PATIENCE: u64 = 5;
    /// What the busy loop of `share` takes at most while nobody else runs, in microseconds.
    const GAP: u64 = 20;
    /// The longest line of `echo`, in bytes.
    const LINE: usize = 64;

    /// What vCPU 1 has done: started, and then SGIs.
    static SERVED: AtomicU64 = AtomicU64::new(0);

    fn now() -> u64 {
        read_sys!("CNTVCT_EL0")
    }

    fn second() -> u64 {
        read_sys!("CNTFRQ_EL0")
    }

    fn micros(ticks: u64) -> u64 {
        ticks * 1_000_000 / second()
    }

    fn spin(ticks: u64) {
        say!("SPIN begins");
        gic::wait(ticks, || false);
        say!("DONE spin");
    }

    fn nap(ticks: u64) {
        let (before, _) = trap::interrupts();
        gic::start_timer(ticks);
        while trap::interrupts().0 == before {
            // Masked, or the interrupt could come between the look and the WFI.
            execute!("wfi", "msr daifclr, #2", "isb", "msr daifset, #2");
        }
    }

    fn share(window: core::ops::Range<u64>, sleep: u64) {
        let (millisecond, gap) = (second() / 1000, GAP * second() / 1_000_000);
        gic::enable();
        while now() < window.start {}
        let (mut ran, mut awake, mut last) = (0, 0, now());
        while last < window.end {
            let step = now() - last;
            last += step;
            if step < gap {
                ran += step;
                awake += step;
            }
            if sleep != 0 && awake >= millisecond {
                nap(sleep);
                (awake, last) = (0, now());
            }
        }
        let part = ran * 1000 / (window.end - window.start);
        say!("DONE share ran={part}");
    }

    fn sleep(ticks: u64, times: u64) {
        let mut worst = 0;
        gic::enable();
        for _ in 0..times {
            let start = now();
            nap(ticks);
            worst = worst.max(now() - start - ticks);
        }
        say!("DONE sleep times={times} late={} us", micros(worst));
    }

    /// vCPU 1 sleeps until it is sent something.
    extern "C" fn receiver() -> ! {
        gic::enable_cpu(1);
        SERVED.store(1, Relaxed);
        loop {
            execute!("wfi");
            let id = gic::acknowledge();
            if id == SGI {
                gic::end(id);
                SERVED.store(SERVED.load(Relaxed) + 1, Relaxed);
            }
        }
    }

    fn ipi(times: u64) {
        gic::enable();
        let answer = smp::start_second(receiver);
        let up = gic::wait(PATIENCE * second(), || SERVED.load(Relaxed) == 1);
        let (mut served, mut worst) = (0, 0);
        for round in 2..times + 2 {
            let start = now();
            gic::send_sgi(SGI, 1 << 1);
            if gic::wait(PATIENCE * second(), || SERVED.load(Relaxed) == round) {
                served += 1;
                worst = worst.max(now() - start);
            }
        }
        let worst = micros(worst);
        say!("DONE ipi on={answer} up={up} served={served} late={worst} us");
    }

    fn cntp(times: u64) {
        let (mut lost, mut wrong) = (0, 0);
        gic::enable();
        gic::enable_ppi(gic::PHYSICAL_TIMER);
        for round in 0..times {
            // From 200 us on, each time a little longer: no fixed distance to EL2's own deadlines.
            write_sys!("CNTP_TVAL_EL0", second() / 5000 + round * 7);
            write_sys!("CNTP_CTL_EL0", 1);
            let arrived = gic::wait(PATIENCE * second(), || {
                if round % 2 == 0 {
                    gic::read32(console::UART + console::FLAGS);
                }
                gic::is_pending()
            });
            lost += u64::from(!arrived);
            let id = gic::acknowledge();
            write_sys!("CNTP_CTL_EL0", 0);
            if id != gic::SPURIOUS {
                gic::end(id);
            }
            wrong += u64::from(arrived && id != gic::PHYSICAL_TIMER);
        }
        say!("DONE cntp times={times} lost={lost} wrong={wrong}");
    }

    /// Interrupts are masked, so one that was pending is never taken: what sleeps has to look at the timer itself.
    fn suspend(ticks: u64, times: u64) {
        let (mut refused, mut slow, mut lost) = (0, 0, 0);
        gic::enable();
        for _ in 0..times {
            gic::start_timer(0);
            lost += u64::from(!gic::wait(PATIENCE * second(), gic::is_pending));
            let start = now();
            write_sys!("CNTV_CVAL_EL0", start + ticks);
            // power_state 0: standby.
            refused += u64::from(psci::hvc(psci::CPU_SUSPEND, [0; 3]) != 0);
            slow += u64::from(now() - start > PATIENCE * second());
            lost += u64::from(!gic::wait(PATIENCE * second(), gic::is_pending));
            gic::stop_timer();
        }
        say!("DONE suspend times={times} refused={refused} slow={slow} lost={lost}");
    }

    fn disr(ticks: u64, value: u64) {
        // DISR_EL1: A, IDS and ISS.
        let value = 1 << 31 | 1 << 24 | value & 0xff_ffff;
        let first = read_sys!("S3_0_C12_C1_1");
        write_sys!("S3_0_C12_C1_1", value);
        let changed = gic::wait(ticks, || read_sys!("S3_0_C12_C1_1") != value);
        let last = read_sys!("S3_0_C12_C1_1");
        say!("DONE disr first={first:#x} changed={changed} last={last:#x}");
    }

    /// Reads a line; what is too long is left out.
    fn read_line(line: &mut [u8; LINE]) -> &str {
        let mut length = 0;
        loop {
            let byte = console::receive();
            if byte == b'\r' || byte == b'\n' {
                let text = line.get(..length).unwrap_or_default();
                return core::str::from_utf8(text).unwrap_or_default();
            }
            if let Some(place) = line.get_mut(length) {
                *place = byte;
                length += 1;
            }
        }
    }

    fn echo() -> ! {
        gic::enable();
        console::listen();
        say!("ECHO ready");
        let mut line = [0; LINE];
        loop {
            match read_line(&mut line) {
                "reset" => psci::system_reset(),
                "off" => psci::system_off(),
                text => say!("ECHO {text}"),
            }
        }
    }

    fn main(boot: Boot) -> ! {
        let line = boot.bootargs();
        let milliseconds = |key, default| args::number(line, key, default) * second() / 1000;
        let ticks = milliseconds("ms", 100);
        let times = args::number(line, "n", 10);
        match args::text(line, "mode").unwrap_or_default() {
            "spin" => spin(ticks),
            "sleep" => sleep(ticks, times),
            "share" => share(
                milliseconds("from", 100)..milliseconds("to", 500),
                args::number(line, "nap", 0) * second() / 1_000_000,
            ),
            "ipi" => ipi(times),
            "cntp" => cntp(times),
            "suspend" => suspend(ticks, times),
            "disr" => disr(ticks, args::number(line, "value", 0)),
            "echo" => echo(),
            other => say!("no mode {other}: see el1-neighbour.rs"),
        }
        psci::system_off()
    }
}
