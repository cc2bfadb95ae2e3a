//! Tests of the tests: the real core on a machine that leaves out a step, which the model of
//! `common` must notice.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::{Board, MIB, World, page};
use stage2::addr::{Ipa, PAGE_SIZE};
use stage2::fakes::Sabotage;
use stage2::guest::{MemError, Policy};

const VMS: usize = 2;
const CPUS: u64 = 2;
const SEEDS: u64 = 12;

/// A small generator: the same seed, the same numbers.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (self.0 >> 33) % below
    }
}

/// What a machine is made with.
#[derive(Clone, Copy)]
struct Setting {
    policy: Policy,
    erratum: bool,
}

const LAZY: Setting = Setting {
    policy: Policy::Lazy,
    erratum: false,
};

/// Random accesses of VMs that move from CPU to CPU, all of it checked after each.
fn run(setting: Setting, seed: u64, how: Option<Sabotage>) {
    let board = Board::new(&[12 * MIB], 0x2000);
    let mut world = World::new(&board, setting.policy);
    world.sim = std::mem::take(&mut world.sim).with_adversary(seed);
    if setting.erratum {
        world.sim = std::mem::take(&mut world.sim).with_erratum();
    }
    world.sim.sabotage(how);
    let mut dice = Dice(seed);
    world.vms.resize_with(VMS, || None);
    for _ in 0..50 {
        let slot = dice.roll(VMS as u64) as usize;
        world.sim.run_on(dice.roll(CPUS) as usize);
        if world.vms[slot].is_none() {
            world.create(slot, 4 * MIB, true, setting.policy).unwrap();
        }
        let number = dice.roll(3) + 64 * dice.roll(2);
        let at = Ipa::new(page(number).get() + dice.roll(PAGE_SIZE / 16) * 16);
        let value = 1 + dice.roll(15) as u8;
        let result = match dice.roll(12) {
            0 | 1 => world.load(slot, at),
            2..=4 => world.store(slot, at, value),
            5 | 6 => world.ldg(slot, at),
            7..=9 => world.stg(slot, at, value),
            10 => {
                world.reset(slot);
                Ok(())
            }
            _ => {
                world.destroy(slot);
                Ok(())
            }
        };
        assert!(matches!(result, Ok(()) | Err(MemError::NoMemory)));
        world.check();
    }
    world.read_back();
    world.check();
    (0..VMS).for_each(|slot| world.destroy(slot));
    world.check();
}

fn noticed(setting: Setting, how: Sabotage) -> bool {
    (0..SEEDS).any(|seed| {
        let run = AssertUnwindSafe(|| run(setting, seed, Some(how)));
        catch_unwind(run).is_err()
    })
}

#[test]
fn no_adversary_gets_at_the_core() {
    for policy in [Policy::Lazy, Policy::Eager, Policy::Static] {
        for erratum in [false, true] {
            let setting = Setting { policy, erratum };
            (0..SEEDS).for_each(|seed| run(setting, seed, None));
        }
    }
}

#[test]
fn each_step_that_is_left_out_is_noticed() {
    for how in [
        Sabotage::NoTlbi,
        Sabotage::LocalTlbi,
        Sabotage::WrongVmid,
        Sabotage::NoStage1Tlbi,
        Sabotage::NoDsbBeforeTlbi,
        Sabotage::NoDsbAfterTlbi,
        Sabotage::NoPublish,
        Sabotage::NoSynchronize,
        Sabotage::NoDataClean,
        Sabotage::NoTagClean,
        Sabotage::NoTagZeroing,
        Sabotage::NoZero,
    ] {
        assert!(noticed(LAZY, how), "{how:?}");
    }
}

#[test]
fn a_repeat_that_is_left_out_is_noticed_with_the_erratum() {
    let erratum = Setting {
        erratum: true,
        ..LAZY
    };
    assert!(noticed(erratum, Sabotage::NoRepeat));
}
