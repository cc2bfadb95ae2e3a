//! The smallest guest: entered at its first byte at EL1, says so, asks PSCI, and powers off.
//!
//! `end=off` (default), `end=reset` and `end=hang` on the command line choose how it ends.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod guest {
    use bare_guests::rt::psci::{self, hvc};
    use bare_guests::rt::{Boot, current_el};
    use bare_guests::{args, execute, read_sys, say};

    bare_guests::entry!(main);

    /// Prints one check.
    fn check(name: &str, holds: bool, got: u64) -> bool {
        if holds {
            say!("ok {name}");
        } else {
            say!("not ok {name} got {got:#x}");
        }
        holds
    }

    fn checks(boot: &Boot) -> bool {
        let el = current_el();
        let version = hvc(psci::VERSION, [0; 3]);
        let off = hvc(psci::FEATURES, [psci::SYSTEM_OFF, 0, 0]);
        let unknown = hvc(0x8600_4242, [0; 3]);
        let (base, bytes) = boot.memory();
        say!("HELLO memory={bytes} base={base:#x}");
        [
            check("runs at EL1", el == 1, el),
            check(
                "MMU is off",
                read_sys!("SCTLR_EL1") & 1 == 0,
                read_sys!("SCTLR_EL1"),
            ),
            check(
                "x0 is the device tree",
                boot.tree.is_some() && boot.x0 != 0,
                boot.x0,
            ),
            check("the device tree names memory", bytes != 0, bytes),
            check(
                "PSCI is 1.0 or later",
                (0x1_0000..0x2_0000).contains(&version),
                version,
            ),
            check("SYSTEM_OFF is a feature", off == 0, off),
            check(
                "an unknown call is not supported",
                unknown == psci::NOT_SUPPORTED,
                unknown,
            ),
        ]
        .iter()
        .all(|&holds| holds)
    }

    fn main(boot: Boot) -> ! {
        say!("HELLO from EL{}", current_el());
        say!("HELLO {}", if checks(&boot) { "PASS" } else { "FAIL" });
        match args::text(boot.bootargs(), "end") {
            Some("reset") => psci::system_reset(),
            Some("hang") => loop {
                execute!("wfi");
            },
            _ => psci::system_off(),
        }
    }
}
