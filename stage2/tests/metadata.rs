//! What the maps of memory cost.

#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod common;

use common::{BASE, Board, MIB};
use stage2::addr::{Ipa, PAGE_SIZE};
use stage2::descriptor::Vmid;
use stage2::fakes::Tables;
use stage2::frames::VmId;
use stage2::guest::{Access, GuestSpec, Policy, TagOutcome};

#[test]
fn metadata_is_at_most_4_bytes_a_frame_where_each_2_mib_has_a_map() {
    // 2 GiB in all, the carve-out included.
    let board = Board::new(&[1984 * MIB], 0x1000);
    let (mut memory, mut hw) = (board.memory(Policy::Lazy), Tables::default());
    let vm = |index, megabytes, mte: bool| GuestSpec {
        vm: VmId::new(index).unwrap(),
        vmid: Vmid(index + 1),
        ram_base: Ipa::new(BASE),
        ram_bytes: megabytes * MIB,
        mte,
        policy: Policy::Lazy,
        tag_budget: megabytes * MIB / 32,
    };
    let vms = [vm(0, 1200, true), vm(1, 730, true), vm(2, 40, false)];
    for spec in vms {
        memory.create(&mut hw, spec).unwrap();
    }
    for spec in vms {
        let slots = spec.ram_bytes / (2 * MIB);
        for slot in 0..slots {
            let at = Ipa::new(BASE + slot * 2 * MIB + slot % 512 * PAGE_SIZE);
            let access = memory.access_fault(&mut hw, spec.vm, at, u64::MAX);
            assert!(matches!(access, Ok(Access::Mapped(_))));
            if spec.mte {
                let tagged = memory.tag_fault(&mut hw, spec.vm, at, u64::MAX);
                assert_eq!(tagged, Ok(TagOutcome::Tagged));
            }
        }
        if spec.mte {
            assert_eq!(memory.vm_account(spec.vm).unwrap().big_leaves, 0);
        }
    }
    let account = memory.account();
    let hundredths = account.metadata * 100 / (account.discovered / PAGE_SIZE);
    println!("{}.{:02} bytes a frame", hundredths / 100, hundredths % 100);
    assert!((300..=400).contains(&hundredths), "{hundredths}");
}
