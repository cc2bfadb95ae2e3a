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
const SEEDS: u64 = 10;

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
    lends: bool,
}

const LAZY: Setting = Setting {
    policy: Policy::Lazy,
    erratum: false,
    lends: false,
};
const LENDING: Setting = Setting {
    lends: true,
    ..LAZY
};

/// A VM whose pages lie in tag storage too, as its budget covers 2 MiB of its RAM; without lending one
/// with all the tags it may want. The second one's data move for the tags of the first.
fn create(world: &mut World, slot: usize, setting: Setting) {
    let lends = setting.lends && setting.policy == Policy::Lazy;
    let (mte, budget) = match (lends, slot) {
        (true, 0) => (true, 64 << 10),
        (true, _) => (false, 0),
        (false, _) => (true, 192 << 10),
    };
    let created = world.create_with(slot, 6 * MIB, mte, setting.policy, budget);
    created.unwrap();
    if lends && slot == 1 {
        // All tag storage, so that tags need a frame of it back: 512 KiB.
        for number in 1024..1024 + 128 {
            let _ = world.store(slot, page(number), 1);
        }
    }
}

/// Random accesses of VMs that move from CPU to CPU, all of it checked after each.
fn run(setting: Setting, seed: u64, how: Option<Sabotage>) {
    let board = Board::new(&[16 * MIB], 0x2000);
    let mut world = World::new(&board, setting.policy);
    world.sim = std::mem::take(&mut world.sim).with_adversary(seed);
    if setting.erratum {
        world.sim = std::mem::take(&mut world.sim).with_erratum();
    }
    world.sim.sabotage(how);
    // A free block that was lent has dirty lines, which nobody needs: what a test writes into its
    // memory does not stay.
    world.watch = !setting.lends;
    let mut dice = Dice(seed);
    world.vms.resize_with(VMS, || None);
    for step in 0..70 {
        let slot = dice.roll(VMS as u64) as usize;
        world.sim.run_on(dice.roll(CPUS) as usize);
        if world.vms[slot].is_none() {
            create(&mut world, slot, setting);
        }
        let number = dice.roll(3) + 64 * dice.roll(2) + 512 * dice.roll(3);
        let at = Ipa::new(page(number).get() + dice.roll(PAGE_SIZE / 16) * 16);
        let value = 1 + dice.roll(15) as u8;
        let mte = world.vm(slot).spec.mte;
        let result = match dice.roll(14) {
            0 | 1 => world.load(slot, at),
            5 | 6 if mte => world.ldg(slot, at),
            7..=11 if mte => world.stg(slot, at, value),
            2..=11 => world.store(slot, at, value),
            12 if dice.roll(3) > 0 => world.load(slot, at),
            12 => {
                world.reset(slot);
                Ok(())
            }
            _ => {
                world.destroy(slot);
                Ok(())
            }
        };
        match result {
            Ok(()) | Err(MemError::NoMemory | MemError::OverBudget { .. }) => {}
            Err(other) => panic!("{other}"),
        }
        // Pages that lie close together again.
        if step % 16 == 15 && world.vms[0].is_some() {
            world.demote(0, 2000);
            world.compact(0).unwrap();
        }
        world.check();
    }
    world.read_back();
    world.check();
    (0..VMS).for_each(|slot| world.destroy(slot));
    world.check();
}

fn noticed(setting: Setting, how: Sabotage) -> bool {
    // As soon as one does.
    (0..10 * SEEDS).any(|seed| {
        let run = AssertUnwindSafe(|| run(setting, seed, Some(how)));
        catch_unwind(run).is_err()
    })
}

#[test]
fn no_adversary_gets_at_the_core() {
    for policy in [Policy::Lazy, Policy::Eager, Policy::Static] {
        for erratum in [false, true] {
            for lends in [false, true] {
                let setting = Setting {
                    policy,
                    erratum,
                    lends,
                };
                (0..SEEDS).for_each(|seed| run(setting, seed, None));
            }
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
fn each_step_of_a_move_that_is_left_out_is_noticed() {
    for how in [
        Sabotage::NoCopy,
        Sabotage::HalfExchange,
        Sabotage::NoSyncCode,
    ] {
        assert!(noticed(LENDING, how), "{how:?}");
    }
}

#[test]
fn a_repeat_that_is_left_out_is_noticed_with_the_erratum() {
    let erratum = Setting {
        erratum: true,
        ..LENDING
    };
    assert!(noticed(erratum, Sabotage::NoRepeat));
}

/// Two pages keep tags in one block, and there is room for them in another.
fn compact(how: Option<Sabotage>) {
    let mut world = World::new(&Board::new(&[8 * MIB], 0x1000), Policy::Lazy);
    world.create(0, 4 * MIB, true, Policy::Lazy).unwrap();
    for number in 0..64 {
        let has_tags = number < 28 || (32..34).contains(&number);
        world
            .stg(0, page(number), if has_tags { 5 } else { 0 })
            .unwrap();
    }
    assert_eq!(world.demote(0, 1024), 34);
    world.sim.sabotage(how);
    assert_eq!(world.compact(0), Ok(2));
    assert_eq!(world.guest(0).account().reserved, PAGE_SIZE);
    world.read_back();
    world.check();
}

#[test]
fn tags_that_stay_behind_are_noticed() {
    compact(None);
    let sabotaged = catch_unwind(|| compact(Some(Sabotage::NoTagCopy)));
    assert!(sabotaged.is_err());
}
