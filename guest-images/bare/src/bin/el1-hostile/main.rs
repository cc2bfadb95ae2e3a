//! Does at EL1 what a hostile or an unlucky guest may do, and checks each answer against the architecture.
//!
//! One line for each check, `ok NAME` or `not ok NAME got ...`, then `HOSTILE passed=N failed=N`, then SYSTEM_OFF. With
//! `bare=1` on the command line it expects QEMU's own EL1 below: there nothing is hidden and SMC is undefined. With `debug=N` it
//! debugs itself N times and does nothing else.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
#[path = "."]
mod guest {
    mod calls;
    mod checks;
    mod debug;
    mod devices;
    mod interrupts;
    mod memory;
    mod registers;
    mod state;
    mod tags;

    use bare_guests::rt::{Boot, current_el, mmu, psci};
    use bare_guests::{args, say, write_sys};

    use checks::Checks;

    bare_guests::entry!(main);

    /// FP, SVE and SME are not trapped by the guest itself.
    const CPACR: u64 = 3 << 16 | 3 << 20 | 3 << 24;

    fn main(boot: Boot) -> ! {
        let mut checks = Checks::new(args::number(boot.bootargs(), "bare", 0) == 1);
        checks.equal("runs at EL1", current_el(), 1);
        write_sys!("CPACR_EL1", CPACR);
        mmu::enable();
        let rounds = args::number(boot.bootargs(), "debug", 0);
        if rounds != 0 {
            debug::repeat(&mut checks, rounds);
            end(&checks);
        }
        calls::run(&mut checks);
        registers::run(&mut checks);
        memory::run(&mut checks, boot.memory());
        devices::run(&mut checks);
        tags::run(&mut checks, boot.memory());
        state::run(&mut checks);
        debug::run(&mut checks);
        interrupts::run(&mut checks);
        devices::fuzz(&mut checks, args::number(boot.bootargs(), "seed", 1));
        end(&checks)
    }

    fn end(checks: &Checks) -> ! {
        say!("HOSTILE passed={} failed={}", checks.passed, checks.failed);
        psci::system_off()
    }
}
