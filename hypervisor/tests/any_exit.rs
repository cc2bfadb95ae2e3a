//! Whatever a guest does, and whatever the syndrome registers hold: an answer, to that guest alone, and no panic.
//!
//! 2,000 exits by default, a million with `TAGVISOR_FULL=1`, in sequences of ten and a hundred.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

mod support;

use hypervisor::exit::Next;
use hypervisor::traps::tag_access::AtForm;
use proptest::prelude::*;
use stage2::guest::Policy;
use support::*;

/// One exit: which vCPU, the registers that describe it, what AT finds, X0 to X3, PSTATE.
#[derive(Clone, Debug)]
struct Case {
    vcpu: usize,
    esr: u64,
    far: u64,
    ipa: u64,
    stage1: Option<u64>,
    x: [u64; 4],
    pstate: u64,
    ticks: u64,
}

/// Addresses where something is, and their borders.
fn address() -> impl Strategy<Value = u64> {
    let places = prop_oneof![
        4 => Just(BASE),
        1 => Just(BASE + 8 * MIB),
        2 => Just(0x0800_0000_u64),
        1 => Just(0x080a_0000),
        1 => Just(0x080b_0000),
        1 => Just(0x080e_0000),
        2 => Just(0x0900_0000),
        1 => Just(0x0900_1000),
        1 => Just(0),
        1 => Just(1 << 36),
        1 => Just(u64::MAX),
    ];
    let offset = prop_oneof![Just(0), 0..0x20_u64, 0..0x1_0000_u64, 0..8 * MIB];
    prop_oneof![
        8 => (places, offset, any::<bool>()).prop_map(|(place, offset, below)| match below {
            true => place.wrapping_sub(offset),
            false => place.wrapping_add(offset),
        }),
        1 => any::<u64>(),
    ]
}

/// Registers as calls use them.
fn register() -> impl Strategy<Value = u64> {
    let call = (0..0x20_u64, any::<bool>())
        .prop_map(|(function, wide)| 0x8400_0000 | function | u64::from(wide) << 30);
    prop_oneof![
        call,
        0x8000_0000..0x8000_0004_u64,
        0..4_u64,
        address(),
        any::<u64>()
    ]
}

/// ESR_EL2: any, or of a class with all its details random.
fn esr() -> impl Strategy<Value = u64> {
    let class = prop_oneof![
        6 => Just(0x24_u64),
        2 => Just(0x20),
        3 => Just(0x18),
        2 => Just(0x16),
        1 => Just(0x17),
        1 => Just(0x01),
        1 => 0..0x40_u64,
    ];
    let detail = prop_oneof![
        any::<u64>().prop_map(|bits| bits & 0x1ff_ffff),
        // A translation fault, described.
        any::<u64>().prop_map(|bits| bits & 0x0ff_f840 | 1 << 24 | 0x07),
        // Registers that exist.
        (0..8_u64, 0..16_u64, 0..0x400_u64).prop_map(|(op2, crm, low)| {
            3 << 20 | op2 << 17 | 12 << 10 | crm << 1 | low & 0x3e1
        }),
        Just(0x07),
        Just(0),
    ];
    let tag_access = prop_oneof![4 => Just(0_u64), 1 => Just(1 << 41), 1 => Just(!0 << 32)];
    prop_oneof![
        9 => (class, detail, tag_access, any::<bool>()).prop_map(|(class, iss, iss2, long)| {
            class << 26 | iss | iss2 | u64::from(long) << 25
        }),
        1 => any::<u64>(),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    let found = prop::option::of(address().prop_map(|at| at & 0x000f_ffff_ffff_f000));
    let pstate = prop_oneof![4 => Just(EL1H), 1 => Just(0_u64), 1 => any::<u64>()];
    let x = [register(), register(), register(), register()];
    (
        0..2_usize,
        esr(),
        address(),
        address(),
        found,
        x,
        pstate,
        0..1000_u64,
    )
        .prop_map(|(vcpu, esr, far, ipa, stage1, x, pstate, ticks)| Case {
            vcpu,
            esr,
            far,
            ipa,
            stage1,
            x,
            pstate,
            ticks,
        })
}

/// Lets the guest exit so, and checks what holds for every answer. What ends the VM ends it later, in the run loop.
fn answer(rig: &mut Rig, case: &Case) {
    let page = case.far & !0xfff;
    rig.cpu.stage1 = case
        .stage1
        .map(|ipa| (AtForm::S1E1A, page, ipa))
        .into_iter()
        .collect();
    rig.now += case.ticks;
    let context = &mut rig.vms[0].vcpus[case.vcpu].context;
    context.x[..4].copy_from_slice(&case.x);
    context.pstate = case.pstate;
    let before = context.clone();
    let other = rig.vms[0].vcpus[1 - case.vcpu].context.x;
    let (earlier, mapped) = (rig.cpu.injected.len(), rig.memory.account().ledger);

    let next = rig.exit_of((0, case.vcpu), case.esr, case.far, case.ipa);

    let context = &rig.vms[0].vcpus[case.vcpu].context;
    let changed: Vec<usize> = (0..31)
        .filter(|&index| context.x[index] != before.x[index])
        .collect();
    if let Some(injected) = rig.cpu.injected.get(earlier) {
        assert_eq!(rig.cpu.injected.len(), earlier + 1, "one exception");
        assert_eq!(next, Next::Resume);
        assert_eq!((injected.elr_el1, injected.pc), (before.pc, context.pc));
        assert_eq!((context.pc & !0x7ff, changed), (VBAR, vec![]));
        assert_eq!(rig.memory.account().ledger, mapped, "and nothing else");
    } else {
        let step = context.pc.wrapping_sub(before.pc);
        let aarch32 = before.pstate & 1 << 4 != 0;
        assert!(matches!(step, 0 | 4) || aarch32, "not, or once: {step:#x}");
        let is_call = matches!(case.esr >> 26 & 0x3f, 0x16 | 0x17);
        let may_change = if is_call { 4 } else { 1 };
        assert!(changed.len() <= may_change, "{changed:?}");
    }
    // A vCPU's registers change only when another turns it on.
    let target = &rig.vms[0].vcpus[1 - case.vcpu];
    assert!(target.context.x == other || target.fresh);
}

/// Sequences, and exits in each.
fn scale() -> (u32, usize) {
    if is_full() { (10_000, 100) } else { (200, 10) }
}

fn cases() -> ProptestConfig {
    ProptestConfig {
        cases: scale().0,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases())]
    #[test]
    fn every_exit_has_an_answer_and_breaks_nothing(
        policy in prop_oneof![3 => Just(Policy::Lazy), 1 => Just(Policy::Eager), 1 => Just(Policy::Static)],
        list in prop::collection::vec(case(), scale().1),
    ) {
        let mut rig = Rig::new(policy);
        let neighbour = |rig: &Rig| format!("{:?}", (&rig.vms[1].vcpus, rig.info(1)));
        let before = neighbour(&rig);
        for case in &list {
            rig.vms[0].vcpus[case.vcpu].fresh = false;
            answer(&mut rig, case);
        }
        prop_assert!(neighbour(&rig) == before, "the other VM has changed");
        prop_assert!(rig.sent.iter().all(|(vm, _)| *vm == 0));
        // Everything comes back.
        for vm in &mut rig.vms {
            vm.finish(hypervisor::report::End::Stopped, &mut rig.memory, &mut rig.cpu).unwrap();
        }
        rig.mapped = None;
        rig.check();
        let ledger = rig.ledger();
        prop_assert_eq!(ledger.owned + ledger.tables, 0);
    }
}
