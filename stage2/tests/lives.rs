//! Many short lives: whatever a VM did, all that it had comes back.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

mod common;

use common::{Board, KIB, MIB, World, page};
use stage2::guest::Policy;

const LIVES: u64 = if cfg!(feature = "full") { 24_000 } else { 240 };

#[test]
fn accounting_is_exact_after_many_lives_beside_a_vm_that_stays() {
    let mut world = World::new(&Board::new(&[10 * MIB], 0x2000), Policy::Lazy);
    world.watch = false;
    // It stays, half of it in tag storage, some of that in the way of the others' tags.
    world.create(0, MIB, false, Policy::Lazy).unwrap();
    for number in 0..128 {
        world.store(0, page(number), number as u8).unwrap();
    }
    let mut fresh = None;
    for life in 0..LIVES {
        let bytes = [64 * KIB, MIB, 2 * MIB, 2 * MIB + 4 * KIB][(life % 4) as usize];
        let policy = if life % 7 == 6 {
            Policy::Eager
        } else {
            Policy::Lazy
        };
        world.create(1, bytes, life % 5 != 4, policy).unwrap();
        let pages = bytes / (4 * KIB);
        for step in 0..4 {
            let number = (life * 31 + step * 97) % pages;
            world.store(1, page(number), life as u8).unwrap();
            world
                .stg(1, page((number + step) % pages), 1 + (life % 15) as u8)
                .unwrap();
        }
        if life % 3 == 0 {
            world.reset(1);
            world.stg(1, page(life % pages), 0).unwrap();
            world.demote(1, pages);
        }
        // What stays goes on between the parts of an end, also where tags of others evict what it had.
        for part in 0..life % 4 {
            world.release(1, 1);
            world
                .store(0, page((life * 17 + part) % 128), part as u8)
                .unwrap();
        }
        world.destroy(1);
        world.sim.take_log();
        let ledger = world.memory.account().ledger;
        assert_eq!(*fresh.get_or_insert(ledger), ledger, "life {life}");
        if life % (LIVES / 20) == 0 {
            world.read_back();
            world.check();
        }
    }
    world.read_back();
    world.check();
    let suffered = world.guest(0).account().evictions_suffered;
    assert!(suffered > 0, "the lives were in the way of nobody");
    world.destroy(0);
    world.check();
    let ledger = world.memory.account().ledger;
    let used = (ledger.owned, ledger.tables, ledger.reserved, ledger.lent);
    assert_eq!(used, (0, 0, 0, 0));
}
