//! Mutated device trees: whatever the bytes are, discovery neither panics nor gives a contradictory machine.
//!
//! 20,000 mutations by default, a million in all with `TAGVISOR_FULL=1`. The sequence is fixed;
//! a failure names the seed and the number of the mutation.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic here is a failure

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::*;
use platform::Machine;
use platform::fdt::discover;

/// A generator of fixed sequence (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, limit: usize) -> usize {
        self.next() as usize % limit.max(1)
    }
}

/// Numbers at which decoders go wrong: tokens, limits, signs.
const NUMBERS: [u32; 20] = [
    0,
    1,
    2,
    3,
    4,
    5,
    8,
    9,
    31,
    32,
    0x40,
    0xff,
    0xfff,
    0x1000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fff0,
    0xffff_fffc,
    0xffff_ffff,
    0xd00d_feed,
];

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut nops = tagged();
    for path in ["/", MEMORY, STORAGE, "/cpus/cpu@0"] {
        nops.set(path, "gone", cells(&[0xfeed_face]));
    }
    let mut nops = nops.dtb();
    while let Some(at) = nops
        .windows(4)
        .position(|w| w == 0xfeed_face_u32.to_be_bytes())
    {
        nops[at - 12..at + 4].copy_from_slice(&[0, 0, 0, 4].repeat(4));
    }
    let mut bus = virt();
    let uart = bus.at("/").remove_child("pl011@9000000").unwrap();
    bus.add(
        "/",
        node(
            "soc",
            &[
                ("#address-cells", cells(&[2])),
                ("#size-cells", cells(&[2])),
                ("ranges", pairs(&[0, 0, 1 << 32])),
            ],
        ),
    )
    .add("/soc", uart)
    .reserve(RAM, 0x1000);
    vec![
        ("virt", virt().dtb()),
        ("tagged", tagged().dtb()),
        ("older binding", tagged_older().dtb()),
        ("with NOPs", nops),
        ("behind a bus", bus.dtb()),
    ]
}

fn mutate(dtb: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..1 + random.below(4) * random.below(2) {
        let at = random.below(dtb.len());
        let word = at & !3;
        match random.below(8) {
            0 => dtb[at] = random.next() as u8,
            1 => dtb[at] ^= 1 << random.below(8),
            2 if word + 4 <= dtb.len() => {
                let number = NUMBERS[random.below(NUMBERS.len())];
                dtb[word..word + 4].copy_from_slice(&number.to_be_bytes());
            }
            3 => {
                let offset = random.below(dtb.len() + 64) as u32;
                header(dtb, random.below(10), offset);
            }
            4 => {
                let bytes = 4 * random.below(32);
                let bytes = bytes.min(dtb.len() - word);
                let from = random.below(dtb.len() - bytes + 1);
                dtb.copy_within(from..from + bytes, word);
            }
            5 => {
                let end = (word + 4 * random.below(16)).min(dtb.len());
                dtb[word..end].fill(random.next() as u8 & 0x81);
            }
            6 => {
                // Tokens in a place of structure.
                let token = [1, 2, 3, 4, 9][random.below(5)];
                if word + 4 <= dtb.len() {
                    dtb[word..word + 4].copy_from_slice(&[0, 0, 0, token]);
                }
            }
            _ if random.below(8) == 0 => {
                dtb.truncate(at.max(40));
                let bytes = dtb.len() as u32;
                header(dtb, 1, bytes);
            }
            _ => dtb[at] = 0,
        }
    }
}

fn check(machine: &Machine) {
    let memory = &machine.memory;
    assert!(!memory.is_empty());
    assert!(
        memory
            .windows(2)
            .all(|w| w[0].range.end() <= w[1].range.base())
    );
    assert!(machine.memory_bytes() > 0);
    assert!(!machine.cpus.is_empty());
    assert!(!machine.gic.redistributors.is_empty());
    assert!((16..32).contains(&machine.timer.virt.intid));
    for region in &machine.tag_regions {
        assert!(region.tag_bytes > 0 && region.tagged_bytes > 0);
        assert!(region.tag_base.checked_add(region.tag_bytes).is_some());
        assert!(
            region
                .tagged_base
                .checked_add(region.tagged_bytes)
                .is_some()
        );
    }
    for refusal in &machine.refusals {
        assert!(!refusal.to_string().contains('\n'));
    }
}

#[test]
fn no_mutation_panics_or_makes_a_contradictory_machine() {
    let full = std::env::var_os("TAGVISOR_FULL").is_some_and(|value| value == "1");
    let seeds = seeds();
    let rounds = if full { 1_000_000 / seeds.len() } else { 4_000 };
    let (mut accepted, mut refused) = (0, 0);
    for (name, seed) in &seeds {
        for round in 0..rounds {
            let mut dtb = seed.clone();
            let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (round as u64 + 1));
            mutate(&mut dtb, &mut random);
            let result = catch_unwind(AssertUnwindSafe(|| match discover(&dtb) {
                Ok(machine) => {
                    check(&machine);
                    true
                }
                Err(error) => {
                    assert!(!error.to_string().contains('\n'));
                    assert!(!error.to_string().is_empty());
                    false
                }
            }));
            match result {
                Ok(true) => accepted += 1,
                Ok(false) => refused += 1,
                Err(_) => panic!("seed \"{name}\", mutation {round}"),
            }
        }
    }
    println!("{accepted} accepted, {refused} refused, none panicked");
    // Both outcomes must be common, or the mutations prove nothing.
    assert!(accepted * 20 > refused && refused * 20 > accepted);
}
