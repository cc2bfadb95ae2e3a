//! Random inputs for each part of tagvisor that decodes what a guest does: none panics, and what holds for each input holds.
//!
//! 200,000 inputs of each by default, ten million with `TAGVISOR_FULL=1`, from a seed: always the same. `tests/fuzz` has the same
//! drivers as targets for a fuzzer that is guided by coverage.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

mod drivers;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use drivers::{Calls, Driver, Gic, Input, Mmio, SystemRegisters};

/// Inputs between two resets of the driver.
const SEQUENCE: u64 = 1000;

fn inputs() -> u64 {
    let full = std::env::var_os("TAGVISOR_FULL").is_some_and(|value| value == "1");
    if full { 10_000_000 } else { 200_000 }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn input(&mut self) -> Input {
        let mut input = [0; drivers::INPUT_BYTES];
        for bytes in input.chunks_exact_mut(8) {
            bytes.copy_from_slice(&self.next().to_le_bytes());
        }
        // Words with few ones, or few zeroes, are likely too.
        match self.next() % 4 {
            0 => input
                .iter_mut()
                .skip(8)
                .for_each(|byte| *byte &= self.next() as u8 & self.next() as u8),
            1 => input
                .iter_mut()
                .skip(8)
                .for_each(|byte| *byte |= self.next() as u8 | self.next() as u8),
            _ => {}
        }
        input
    }
}

/// Feeds a driver; a failure names the sequence, by which it can be repeated.
fn feed<D: Driver>() {
    let begun = Instant::now();
    let mut reached = 0;
    for sequence in 0..inputs() / SEQUENCE {
        let mut random = Random(sequence << 32);
        let mut taken = 0;
        let fed = catch_unwind(AssertUnwindSafe(|| {
            let mut driver = D::new();
            for _ in 0..SEQUENCE {
                taken += 1;
                reached += u64::from(driver.take(&random.input()));
            }
        }));
        assert!(fed.is_ok(), "sequence {sequence}, input {taken}");
    }
    println!(
        "{} inputs, of which {reached} came to something, in {:?}",
        inputs(),
        begun.elapsed()
    );
    // Both must be common, or the inputs prove nothing.
    assert!(reached > inputs() / 20 && inputs() - reached > inputs() / 20);
}

#[test]
fn device_accesses_are_decoded_and_answered() {
    feed::<Mmio>();
}

#[test]
fn the_gic_takes_any_access_at_any_time() {
    feed::<Gic>();
}

#[test]
fn any_call_is_answered() {
    feed::<Calls>();
}

#[test]
fn any_system_register_is_emulated_or_undefined() {
    feed::<SystemRegisters>();
}
