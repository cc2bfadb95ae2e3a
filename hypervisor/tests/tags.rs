//! Tag access faults: what the guest finds, what is reserved for it, and that none repeats for ever.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

mod support;

use hypervisor::exit::{MappedPage, Next};
use hypervisor::report::End;
use hypervisor::traps::tag_access::AtForm;
use stage2::addr::{Ipa, PAGE_SIZE};
use stage2::fakes::SimMachine;
use stage2::guest::Policy;
use support::*;

/// A page in 2 MiB of RAM that nothing was loaded into; the first access to any of them maps them all.
const PAGE: u64 = BASE + 0x30_0000;
/// A page in other 2 MiB of such RAM.
const ELSEWHERE: u64 = PAGE + 2 * MIB;
/// A virtual address, with a tag in its top byte.
const VA: u64 = 0x0500_aaaa_0000_1230;
const VA_PAGE: u64 = VA & !0xfff;
/// PSTATE of EL0.
const EL0: u64 = 0;

fn tagged(rig: &Rig) -> u64 {
    rig.memory_of(0).account().pages.tagged
}

fn reserved_bytes(rig: &Rig) -> u64 {
    rig.memory.account().reserved
}

/// A lazy machine whose VM 0 has touched [`PAGE`] and maps it at [`VA`].
fn touched() -> Rig {
    let mut rig = Rig::new(Policy::Lazy);
    rig.run(PAGE, |sim, guest, ipa| sim.store(guest, ipa, 0x77));
    rig.cpu.stage1 = vec![(AtForm::S1E1A, VA_PAGE, PAGE)];
    rig
}

/// A tag access fault after which nothing must have changed but what the guest sees of its exception.
fn unchanged(rig: &mut Rig, esr: u64, far: u64) -> Next {
    let (account, ledger, context) = (rig.memory.account(), rig.ledger(), rig.context().clone());
    let next = rig.exit(esr, far, 0);
    assert_eq!((rig.memory.account(), rig.ledger()), (account, ledger));
    assert_eq!(rig.context().x, context.x);
    assert_eq!(rig.mapped, None);
    next
}

#[test]
fn the_first_tag_access_reserves_one_block_and_repeats_the_access() {
    let mut rig = touched();
    let context = rig.context().clone();
    assert_eq!(rig.exit(TAG_ACCESS, VA, 0), Next::Resume);
    assert_eq!(rig.context().pc, context.pc);
    assert_eq!(rig.context().x, context.x);
    let page = MappedPage {
        ipa: Ipa::new(PAGE),
        fresh_tags: true,
    };
    assert_eq!(rig.mapped, Some(page));
    assert_eq!((tagged(&rig), reserved_bytes(&rig)), (1, PAGE_SIZE));
    assert_eq!(rig.vms[0].exits.tag, 1);
    assert_eq!(rig.cpu.injected, []);
}

#[test]
fn qemu_s_form_of_the_fault_is_the_same_fault() {
    // DFSC 0 and a TagAccess bit, as QEMU 11.1.3 reports it; HPFAR_EL2 holds rubbish.
    let mut rig = touched();
    let esr = TAG_ACCESS & !0x3f | WRITE;
    assert_eq!(rig.exit(esr, VA, ELSEWHERE), Next::Resume);
    assert_eq!(tagged(&rig), 1);
    assert_eq!(rig.mapped.map(|page| page.ipa), Some(Ipa::new(PAGE)));
    let memory = rig.memory_of(0);
    assert_eq!(memory.translate(&rig.cpu, Ipa::new(ELSEWHERE)), None);
}

#[test]
fn a_guest_finds_the_same_under_every_policy() {
    // S18, with the faults each policy takes for: store, STG, LDG, load, LDG of the next granule.
    for (policy, faults) in [
        (Policy::Static, [1, 0, 0, 0, 0]),
        (Policy::Eager, [1, 0, 0, 0, 0]),
        (Policy::Lazy, [1, 1, 0, 0, 0]),
    ] {
        let mut rig = Rig::new(policy);
        let (_, stored) = rig.run(PAGE, |sim, guest, ipa| sim.store(guest, ipa, 0x5a));
        let (_, tagged) = rig.run(PAGE, |sim, guest, ipa| sim.stg(guest, ipa, 9));
        let (tag, read) = rig.run(PAGE, SimMachine::ldg);
        let (data, loaded) = rig.run(PAGE, SimMachine::load);
        let (next, again) = rig.run(PAGE + 16, SimMachine::ldg);
        assert_eq!((tag, data, next), (9, 0x5a, 0), "{policy:?}");
        assert_eq!([stored, tagged, read, loaded, again], faults, "{policy:?}");
    }
}

#[test]
fn a_tag_access_to_an_untouched_page_maps_it_first() {
    let mut rig = Rig::new(Policy::Lazy);
    let resident = rig.memory_of(0).account().resident;
    let (tag, faults) = rig.run(PAGE, SimMachine::ldg);
    assert_eq!((tag, faults), (0, 2));
    // Its 2 MiB with it, and none of those has tag storage but the page itself.
    assert_eq!(rig.memory_of(0).account().resident, resident + 2 * MIB);
    assert_eq!((tagged(&rig), reserved_bytes(&rig)), (1, PAGE_SIZE));
}

#[test]
fn tag_storage_is_reserved_when_the_policy_says() {
    let mut lazy = Rig::new(Policy::Lazy);
    assert_eq!(reserved_bytes(&lazy), 0, "loading needs no tags");
    lazy.run(PAGE, SimMachine::load);
    assert_eq!(reserved_bytes(&lazy), 0);

    let mut eager = Rig::new(Policy::Eager);
    let before = tagged(&eager);
    eager.run(PAGE, SimMachine::load);
    assert_eq!(tagged(&eager), before + 1);
    assert_eq!(eager.mapped.map(|page| page.fresh_tags), Some(true));

    let fixed = Rig::new(Policy::Static);
    let account = fixed.memory.account();
    assert_eq!(account.reserved + account.offline, account.carve_out);
}

#[test]
fn an_instruction_over_two_pages_faults_once_for_each() {
    // Row 19: STZGM, ST2G and DC GVA are repeated from the page that has no tag access yet.
    let mut rig = touched();
    rig.run(PAGE + PAGE_SIZE, SimMachine::load);
    let both = |sim: &mut SimMachine, guest, ipa: Ipa| {
        let next = ipa.checked_add(PAGE_SIZE).unwrap();
        sim.stg(guest, ipa, 3)
            .and_then(|()| sim.stg(guest, next, 3))
    };
    let guest = rig.guest(0);
    let mut faults = 0;
    while both(&mut rig.cpu.sim, guest, Ipa::new(PAGE)).is_err() {
        let page = PAGE + faults * PAGE_SIZE;
        rig.cpu.stage1 = vec![(AtForm::S1E1A, page, page)];
        assert_eq!(rig.exit(TAG_ACCESS, page, 0), Next::Resume);
        faults += 1;
    }
    assert_eq!((faults, tagged(&rig)), (2, 2));
}

#[test]
fn two_vcpus_that_fault_on_one_page_reserve_once_and_both_go_on() {
    // Row 1: the second one's fault was taken before the first one was answered.
    let mut rig = touched();
    let far = VA + 0x200;
    assert_eq!(rig.exit_of((0, 0), TAG_ACCESS, VA, 0), Next::Resume);
    rig.run(PAGE, |sim, guest, ipa| sim.stg(guest, ipa, 6));
    rig.cpu.stage1 = vec![(AtForm::S1E1A, VA_PAGE, PAGE)];
    assert_eq!(rig.exit_of((0, 1), TAG_ACCESS, far, 0), Next::Resume);
    assert_eq!((tagged(&rig), reserved_bytes(&rig)), (1, PAGE_SIZE));
    assert_eq!(rig.run(PAGE, SimMachine::ldg), (6, 0), "zeroed once only");
    assert_eq!(rig.cpu.injected, []);
}

#[test]
fn a_stale_tlb_entry_is_dropped_and_the_access_repeated() {
    let mut rig = touched();
    let guest = rig.guest(0);
    rig.exit(TAG_ACCESS, VA, 0);
    rig.cpu.sim.take_log();
    assert_eq!(unchanged(&mut rig, TAG_ACCESS, VA), Next::Resume);
    assert!(!rig.cpu.sim.take_log().is_empty(), "a TLBI");
    assert_eq!(rig.cpu.sim.ldg(guest, Ipa::new(PAGE)), Ok(0));
}

#[test]
fn a_page_that_is_gone_from_stage_2_is_left_to_its_translation_fault() {
    let mut rig = Rig::new(Policy::Lazy);
    rig.cpu.stage1 = vec![(AtForm::S1E1A, VA_PAGE, PAGE)];
    assert_eq!(unchanged(&mut rig, TAG_ACCESS, VA), Next::Resume);
    assert_eq!(rig.cpu.injected, []);
}

#[test]
fn a_stage_1_that_changed_under_the_access_repeats_it_once_then_aborts() {
    let mut rig = touched();
    rig.cpu.stage1.clear();
    let pc = rig.context().pc;
    assert_eq!(unchanged(&mut rig, TAG_ACCESS | WRITE, VA), Next::Resume);
    assert_eq!((rig.context().pc, rig.cpu.injected.len()), (pc, 0));
    assert_eq!(unchanged(&mut rig, TAG_ACCESS | WRITE, VA), Next::Resume);
    let exception = *rig.cpu.injected.last().unwrap();
    assert_eq!(exception.esr_el1, 0x25 << 26 | IL | WRITE | 0x10);
    assert_eq!((exception.far_el1, exception.elr_el1), (Some(VA), pc));
    assert_eq!(rig.cpu.injected.len(), 1);
    let forms = [AtForm::S1E1A, AtForm::S1E1A, AtForm::S1E0R];
    assert_eq!(rig.cpu.lookups, forms);
}

#[test]
fn another_fault_in_between_is_not_the_second_of_the_first() {
    let mut rig = touched();
    rig.cpu.stage1.clear();
    for round in 0..4 {
        rig.context().pc += 4;
        unchanged(&mut rig, TAG_ACCESS, VA);
        assert_eq!(rig.cpu.injected, [], "round {round}");
    }
    // Nor is the same fault after one that was found.
    rig.cpu.stage1 = vec![(AtForm::S1E1A, VA_PAGE, PAGE)];
    rig.exit(TAG_ACCESS, VA, 0);
    rig.cpu.stage1.clear();
    unchanged(&mut rig, TAG_ACCESS, VA);
    assert_eq!(rig.cpu.injected, []);
}

#[test]
fn each_vcpu_has_a_guard_of_its_own() {
    let mut rig = touched();
    rig.cpu.stage1.clear();
    for vcpu in [0, 1] {
        assert_eq!(rig.exit_of((0, vcpu), TAG_ACCESS, VA, 0), Next::Resume);
    }
    assert_eq!(rig.cpu.injected, []);
}

#[test]
fn without_ats1a_the_lookup_has_the_privilege_of_the_access_then_the_other() {
    for (pstate, forms) in [
        (EL1H, [AtForm::S1E1R, AtForm::S1E0R]),
        (EL0, [AtForm::S1E0R, AtForm::S1E1R]),
    ] {
        let mut rig = touched();
        rig.board.hw = hypervisor::traps::id_regs::IdRegs::ZERO;
        rig.context().pstate = pstate;
        // Stage 1 gives only the other one the page.
        rig.cpu.stage1 = vec![(forms[1], VA_PAGE, PAGE)];
        rig.exit(TAG_ACCESS, VA, 0);
        assert_eq!(tagged(&rig), 0);
        rig.exit(TAG_ACCESS, VA, 0);
        assert_eq!((tagged(&rig), rig.cpu.injected.len()), (1, 0));
        assert_eq!(rig.cpu.lookups, [forms[0], forms[0], forms[1]]);
    }
}

#[test]
fn a_tag_access_outside_ram_reserves_nothing_and_is_an_external_abort() {
    // Row 20.
    for ipa in [0x0900_0000, 0x0800_0000, 0, BASE + 8 * MIB, 1 << 47] {
        let mut rig = touched();
        rig.cpu.stage1 = vec![(AtForm::S1E1A, VA_PAGE, ipa)];
        assert_eq!(unchanged(&mut rig, TAG_ACCESS, VA), Next::Resume);
        assert_eq!(rig.cpu.injected.len(), 1, "{ipa:#x}");
        assert_eq!(rig.cpu.injected[0].esr_el1 & 0x3f, 0x10);
    }
}

#[test]
fn a_vm_without_mte_reserves_nothing_whatever_it_does() {
    // Row 18: HCR_EL2.ATA = 0, so that LDG reads 0, STG is ignored, and neither faults.
    for policy in [Policy::Lazy, Policy::Eager] {
        let mut rig = Rig::empty(policy);
        rig.start(hypervisor::config::VmConfig {
            mte: false,
            ..config("plain", 8 * MIB, 1)
        });
        rig.run(PAGE, |sim, guest, ipa| sim.stg(guest, ipa, 7));
        assert_eq!(rig.run(PAGE, SimMachine::ldg), (0, 0));
        rig.cpu.stage1 = vec![(AtForm::S1E1A, VA_PAGE, PAGE)];
        assert_eq!(unchanged(&mut rig, TAG_ACCESS, VA), Next::Resume);
        assert_eq!(rig.cpu.injected.len(), 1, "impossible, and an abort");
        assert_eq!((tagged(&rig), reserved_bytes(&rig)), (0, 0));
        assert!(!rig.info(0).mte);
    }
}

#[test]
fn a_tag_check_fault_is_not_a_tag_access_fault() {
    // QEMU 11.1.3 sign-extends its syndrome, so that the TagAccess bit reads 1.
    let mut rig = touched();
    let esr = TAG_ACCESS & !0x3f | 0x11;
    assert_eq!(unchanged(&mut rig, esr, VA), Next::Resume);
    assert_eq!(rig.cpu.lookups, []);
    assert_eq!(rig.cpu.injected.len(), 1);
}

#[test]
fn a_guest_reads_no_earlier_owner_s_tags_or_data() {
    for policy in [Policy::Lazy, Policy::Eager, Policy::Static] {
        let mut rig = Rig::new(policy);
        rig.run(PAGE, |sim, guest, ipa| sim.store(guest, ipa, 0xee));
        rig.run(PAGE, |sim, guest, ipa| sim.stg(guest, ipa, 0xe));
        let (board, vm) = (&rig.board, &mut rig.vms[0]);
        vm.reset(board, &mut rig.memory, &mut rig.cpu).unwrap();
        rig.mapped = None;
        rig.check();
        assert_eq!(rig.run(PAGE, SimMachine::load).0, 0);
        assert_eq!(rig.run(PAGE, SimMachine::ldg).0, 0);
    }
}

/// A VM whose budget of one block is full of tags that are in use; it maps a page without tag access at [`VA`].
fn at_its_budget() -> Rig {
    let mut rig = Rig::empty(Policy::Lazy);
    rig.start(hypervisor::config::VmConfig {
        tag_budget: Some(PAGE_SIZE),
        ..config("frugal", 8 * MIB, 2)
    });
    for page in 0..32 {
        rig.run(PAGE + page * PAGE_SIZE, |sim, guest, ipa| {
            sim.stg(guest, ipa, 7)
        });
    }
    let another = PAGE + 32 * PAGE_SIZE;
    rig.run(another, SimMachine::load);
    rig.cpu.stage1 = vec![(AtForm::S1E1A, VA_PAGE, another)];
    rig
}

#[test]
fn a_vm_at_its_budget_ends_after_each_page_was_looked_at_in_vain() {
    let mut rig = at_its_budget();
    // 2,048 pages, 64 a time.
    for _ in 1..32 {
        assert_eq!(rig.exit(TAG_ACCESS, VA, 0), Next::Resume);
    }
    assert_eq!(rig.exit(TAG_ACCESS, VA, 0), Next::End(End::OverBudget));
}

#[test]
fn a_vm_at_its_budget_goes_on_once_that_is_raised_and_looks_again_if_not() {
    let mut rig = at_its_budget();
    let pc = rig.context().pc;
    for _ in 0..2 {
        // Resumed with the same budget, it looks through all its pages anew.
        let mut answers = (0..100).map(|_| rig.exit(TAG_ACCESS, VA, 0));
        assert_eq!(answers.next(), Some(Next::Resume));
        let last = answers.find(|next| *next != Next::Resume);
        assert_eq!(last, Some(Next::End(End::OverBudget)));
    }
    let id = rig.vms[0].id;
    let low = rig.memory.set_budget(id, 0).unwrap_err();
    assert_eq!(low.to_string(), "its tags take 4 KiB already");
    rig.memory.set_budget(id, 2 * PAGE_SIZE).unwrap();
    assert_eq!(rig.exit(TAG_ACCESS, VA, 0), Next::Resume);
    assert_eq!(
        (tagged(&rig), rig.context().pc),
        (33, pc),
        "it repeats its access"
    );
    rig.check();
}

#[test]
fn a_vm_that_gave_tags_up_since_another_search_is_not_over_its_budget() {
    let mut rig = at_its_budget();
    // The guest is interrupted while its pages are looked at, and does something else for a while.
    assert_eq!(rig.exit(TAG_ACCESS, VA, 0), Next::Resume);
    rig.run(PAGE, |sim, guest, ipa| sim.stg(guest, ipa, 0));
    rig.context().pc += 4;
    let faults = (0..100)
        .take_while(|_| rig.exit(TAG_ACCESS, VA, 0) == Next::Resume && rig.mapped.is_none());
    assert!(faults.count() <= 32);
    assert_eq!(tagged(&rig), 32);
    assert_eq!(rig.run(PAGE + 32 * PAGE_SIZE, SimMachine::ldg), (0, 0));
}
