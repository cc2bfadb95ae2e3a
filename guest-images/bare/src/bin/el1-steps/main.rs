//! A differential test: random steps on data, tags and mappings, and one number that depends on everything they saw.
//!
//! `n=N` steps (100000) of seed `seed=N` on `pages=N` pages (2048, a multiple of 512), which come into play one after the
//! other, so that pages are touched and tagged for the first time all the way through. What is printed depends on these
//! three alone: not on who keeps the tags, nor on where the pages are.
//!
//! A step loads or stores 1 to 16 bytes with a right, a wrong or no tag, synchronously, asynchronously or asymmetrically
//! checked or not at all; executes a tag instruction, an atomic or exclusive one, or cache maintenance; writes code and runs
//! it; or changes the guest's own stage 1, whose tables lie among the pages.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
#[path = "."]
mod guest {
    mod access;
    mod maps;
    mod steps;

    use bare_guests::rt::{Boot, current_el, mmu, mte, psci};
    use bare_guests::{args, say};

    use steps::Steps;

    bare_guests::entry!(main);

    /// Pages of a block of stage 1.
    const BLOCK_PAGES: u64 = 512;
    /// How often the sum is printed on the way.
    const REPORTS: u64 = 16;

    fn main(boot: Boot) -> ! {
        let line = boot.bootargs();
        let (seed, n) = (
            args::number(line, "seed", 1),
            args::number(line, "n", 100_000),
        );
        let pages = args::number(line, "pages", 2048).next_multiple_of(BLOCK_PAGES);
        let (base, end) = boot.free(2 << 20);
        let room = end.saturating_sub(base) / 4096;
        if current_el() != 1 || mte::level() < 2 || room < pages || pages == 0 {
            say!(
                "RESULT bad needs EL1, MTE and room: mte={} pages={room}",
                mte::level()
            );
            psci::system_off();
        }
        mmu::enable();
        let mut steps = Steps::new(seed, base, pages);
        for step in 1..=n {
            steps.step(step, n);
            if step.is_multiple_of((n / REPORTS).max(1)) {
                say!("STEPS at={step} {}", steps.told());
            }
        }
        steps.finish();
        say!("RESULT ok steps={n} pages={pages} {}", steps.told());
        psci::system_off()
    }
}
