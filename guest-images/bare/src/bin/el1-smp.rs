//! A guest with several vCPUs: they start and stop each other, interrupt each other, and leave while others run.
//!
//! `mode=` on the command line says what it does, `vcpus=N` how many it has, `n=N` how often; the last line is `DONE MODE` and what
//! it counted.
//!
//! | mode | does |
//! |---|---|
//! | `ring` | hands an SGI round `n` times from vCPU to vCPU, all of which look for it without an exit; with `sleep=1` all but the first sleep |
//! | `turns` | has vCPU 1 answer by a store `n` times; each waits for the other by WFE. Says how long it took |
//! | `active` | vCPU 1 holds an SGI active, `n` times; the first reads that from its redistributor |
//! | `again` | turns vCPU 1 on `n` times, which counts and turns itself off |
//! | `leave` | starts all others, which never stop, and powers off |
//! | `echo` | the same, and leaves when a person types `o`, or resets at `r` |

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod guest {
    use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use bare_guests::args;
    use bare_guests::rt::{Boot, console, gic, psci, smp};
    use bare_guests::{execute, read_sys, say};

    bare_guests::entry!(main);

    /// The SGI of all modes.
    const SGI: u64 = 3;
    /// How long something that must happen may take, in seconds.
    const PATIENCE: u64 = 20;
    /// AFFINITY_INFO: the CPU is off.
    const OFF: u64 = 1;

    /// What each vCPU has done.
    static DONE: [AtomicU64; smp::MOST as usize] =
        [const { AtomicU64::new(0) }; smp::MOST as usize];
    static VCPUS: AtomicU64 = AtomicU64::new(1);
    static SLEEP: AtomicU64 = AtomicU64::new(0);
    /// How often vCPU 1 may end its SGI.
    static ENDED: AtomicU64 = AtomicU64::new(0);

    fn done(cpu: u64) -> &'static AtomicU64 {
        DONE.get(cpu as usize).unwrap_or(&DONE[0])
    }

    fn count(cpu: u64) {
        done(cpu).store(done(cpu).load(Relaxed) + 1, Relaxed);
    }

    fn wait(done: impl Fn() -> bool) -> bool {
        gic::wait(PATIENCE * read_sys!("CNTFRQ_EL0"), done)
    }

    /// Starts all other vCPUs in `main`; how many count themselves.
    fn start_all(main: extern "C" fn() -> !) -> u64 {
        let others = 1..VCPUS.load(Relaxed).min(smp::MOST);
        for cpu in others.clone() {
            smp::start(cpu, main);
        }
        others
            .map(|cpu| u64::from(wait(|| done(cpu).load(Relaxed) != 0)))
            .sum()
    }

    /// Waits for the SGI and ends it.
    fn take_sgi() {
        while gic::acknowledge() != SGI {
            if SLEEP.load(Relaxed) != 0 {
                execute!("wfi");
            }
        }
        gic::end(SGI);
    }

    extern "C" fn hand_on() -> ! {
        let this = smp::this_cpu();
        gic::enable_cpu(this);
        loop {
            count(this);
            take_sgi();
            gic::send_sgi(SGI, 1 << ((this + 1) % VCPUS.load(Relaxed)));
        }
    }

    fn ring(times: u64) {
        gic::enable();
        let up = start_all(hand_on);
        let mut back = 0;
        for _ in 0..times {
            gic::send_sgi(SGI, 1 << 1);
            if !wait(gic::is_pending) {
                break;
            }
            gic::end(gic::acknowledge());
            back += 1;
        }
        say!("DONE ring up={up} back={back}");
    }

    /// Waits by WFE until vCPU `cpu` has counted to `number`.
    fn wait_for_event(cpu: u64, number: u64) {
        while done(cpu).load(Relaxed) < number {
            execute!("wfe");
        }
    }

    fn tell(cpu: u64) {
        count(cpu);
        execute!("dsb ish", "sev");
    }

    extern "C" fn answer() -> ! {
        loop {
            tell(1);
            wait_for_event(0, done(1).load(Relaxed));
        }
    }

    fn turns(times: u64) {
        let up = start_all(answer);
        let start = read_sys!("CNTVCT_EL0");
        for round in 1..=times {
            tell(0);
            wait_for_event(1, round + 1);
        }
        let ticks = read_sys!("CNTVCT_EL0") - start;
        let us = ticks * 1_000_000 / read_sys!("CNTFRQ_EL0");
        say!("DONE turns up={up} us={us}");
    }

    extern "C" fn hold() -> ! {
        gic::enable_cpu(1);
        loop {
            count(1);
            let round = done(1).load(Relaxed);
            while gic::acknowledge() != SGI {}
            count(2);
            while ENDED.load(Relaxed) != round {}
            gic::end(SGI);
        }
    }

    fn active(times: u64) {
        gic::enable();
        let up = start_all(hold);
        let (mut early, mut held, mut late) = (0, 0, 0);
        for round in 1..=times {
            early += u64::from(gic::is_active(1, SGI));
            gic::send_sgi(SGI, 1 << 1);
            if !wait(|| done(2).load(Relaxed) == round) {
                break;
            }
            held += u64::from(gic::is_active(1, SGI));
            ENDED.store(round, Relaxed);
            if !wait(|| done(1).load(Relaxed) == round + 1) {
                break;
            }
            late += u64::from(gic::is_active(1, SGI));
        }
        say!("DONE active up={up} early={early} held={held} late={late}");
    }

    extern "C" fn once() -> ! {
        count(1);
        psci::hvc(psci::CPU_OFF, [0; 3]);
        say!("CPU_OFF came back");
        psci::system_off()
    }

    fn again(times: u64) {
        let (mut refused, mut lost) = (0, 0);
        for round in 1..=times {
            refused += u64::from(smp::start(1, once) != 0);
            let is_off = || psci::hvc(psci::AFFINITY_INFO, [1, 0, 0]) == OFF;
            lost += u64::from(!wait(|| done(1).load(Relaxed) == round && is_off()));
        }
        say!("DONE again times={times} refused={refused} lost={lost}");
    }

    extern "C" fn stay() -> ! {
        loop {
            count(smp::this_cpu());
        }
    }

    fn leave() {
        let up = start_all(stay);
        say!("DONE leave up={up}");
    }

    fn echo() -> ! {
        gic::enable();
        console::listen();
        let up = start_all(stay);
        say!("ECHO ready up={up}");
        loop {
            match console::receive() {
                b'r' => psci::system_reset(),
                b'o' => psci::system_off(),
                _ => {}
            }
        }
    }

    fn main(boot: Boot) -> ! {
        let line = boot.bootargs();
        let times = args::number(line, "n", 10);
        VCPUS.store(args::number(line, "vcpus", 2), Relaxed);
        SLEEP.store(args::number(line, "sleep", 0), Relaxed);
        match args::text(line, "mode").unwrap_or_default() {
            "ring" => ring(times),
            "turns" => turns(times),
            "active" => active(times),
            "again" => again(times),
            "leave" => leave(),
            "echo" => echo(),
            other => say!("no mode {other}: see el1-smp.rs"),
        }
        psci::system_off()
    }
}
