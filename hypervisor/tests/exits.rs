//! What a guest gets for each kind of exit: the architecture's answer, to that guest alone.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is a failed test"
)]

mod support;

use hypervisor::devices::mmio::UART_INTID;
use hypervisor::exit::{Failure, Next, PHYSICAL_TIMER_INTID, access_uart};
use hypervisor::traps::fault::PlainAccess;
use hypervisor::traps::id_regs::{IdReg, Need};
use hypervisor::traps::inject::Injected;
use hypervisor::vcpu::Wake;
use proptest::prelude::*;
use stage2::addr::{Ipa, PAGE_SIZE};
use stage2::fakes::SimMachine;
use stage2::guest::{MemError, Policy};
use support::*;

const UART: u64 = 0x0900_0000;
const GICD: u64 = 0x0800_0000;
const GICR: u64 = 0x080a_0000;
const NOTHING_THERE: u64 = 0x0a00_0000;
/// A virtual address that is not the guest physical one.
const FAR: u64 = 0xffff_0000_0000_0000;
/// Undefined instruction, from the same level or a lower one.
const UNDEFINED: u64 = IL;

/// All that a guest may not find changed by an exit that was none of its doing.
fn state(rig: &Rig) -> String {
    let [a, b] = [0, 1].map(|vm| &rig.vms[vm]);
    let [mine, theirs] = [0, 1].map(|vm| rig.memory_of(vm).account());
    format!(
        "{:?}",
        (
            &a.vgic,
            &a.uart,
            &a.vcpus[1],
            mine,
            &b.vcpus,
            &b.vgic,
            theirs
        )
    )
}

/// An exit that must be answered by an exception in the guest and nothing else.
fn injected(rig: &mut Rig, esr: u64, far: u64, ipa: u64) -> Injected {
    let (before, context) = (state(rig), rig.context().clone());
    let earlier = rig.cpu.injected.len();
    assert_eq!(rig.exit(esr, far, ipa), Next::Resume);
    assert_eq!(rig.cpu.injected.len(), earlier + 1, "one exception");
    let injected = *rig.cpu.injected.last().unwrap();
    let kind = if context.pstate & 0xf == 0 {
        0x400
    } else {
        0x200
    };
    assert_eq!(injected.elr_el1, context.pc, "the instruction to blame");
    assert_eq!(injected.spsr_el1, context.pstate);
    assert_eq!(rig.context().pc, VBAR + kind);
    assert_eq!(rig.context().pstate & 0x3cf, 0x3c5, "EL1h, masked");
    assert_eq!(rig.context().x, context.x);
    assert!(state(rig) == before, "something else changed");
    injected
}

/// An exit that EL2 does the instruction of: the PC moves on by one, `rt` may change, no exception.
fn emulated(rig: &mut Rig, esr: u64, far: u64, ipa: u64, rt: usize) -> u64 {
    let context = rig.context().clone();
    assert!(goes_on(rig.exit(esr, far, ipa)));
    assert_eq!(rig.context().pc, context.pc + 4, "done once");
    assert_eq!(rig.cpu.injected, []);
    let mut x = context.x;
    if let Some(x) = x.get_mut(rt) {
        *x = rig.context().x[rt];
    }
    assert_eq!(rig.context().x, x, "no other register");
    rig.context().x.get(rt).copied().unwrap_or(0)
}

fn load(rig: &mut Rig, ipa: u64, bytes: u64) -> u64 {
    let esr = TRANSLATION | WIDE | described(bytes, 3);
    emulated(rig, esr, FAR | ipa, ipa, 3)
}

fn store(rig: &mut Rig, ipa: u64, bytes: u64, value: u64) {
    rig.context().x[3] = value;
    let esr = TRANSLATION | WRITE | described(bytes, 3);
    assert_eq!(emulated(rig, esr, FAR | ipa, ipa, 3), value);
}

// Row 4 of the faults: device accesses that the syndrome does not describe.

#[test]
fn an_undescribed_device_access_is_an_external_abort_and_reaches_no_device() {
    for ipa in [UART, GICD, GICR + 0x1_0080, NOTHING_THERE] {
        for write in [0, WRITE] {
            let mut rig = Rig::new(Policy::Lazy);
            let exception = injected(&mut rig, TRANSLATION | write, FAR | ipa, ipa);
            assert_eq!(exception.esr_el1, 0x25 << 26 | IL | write | 0x10);
            assert_eq!(exception.far_el1, Some(FAR | ipa));
            assert_eq!((rig.vms[0].exits.injected, rig.vms[0].exits.mmio), (1, 0));
        }
    }
}

#[test]
fn an_abort_of_el0_says_that_it_came_from_a_lower_level() {
    let mut rig = Rig::new(Policy::Lazy);
    rig.context().pstate = 0;
    let exception = injected(&mut rig, TRANSLATION, NOTHING_THERE, NOTHING_THERE);
    assert_eq!(exception.esr_el1, 0x24 << 26 | IL | 0x10);
}

#[test]
fn cache_maintenance_of_a_device_does_nothing_and_goes_on() {
    let mut rig = Rig::new(Policy::Lazy);
    for ipa in [UART, NOTHING_THERE] {
        let before = state(&rig);
        emulated(&mut rig, TRANSLATION | MAINTENANCE | WRITE, FAR, ipa, 31);
        assert!(state(&rig) == before);
    }
}

#[test]
fn cache_maintenance_whose_table_walk_finds_no_memory_is_an_external_abort() {
    // AT reports like cache maintenance: going on would leave an old PAR_EL1 to be believed.
    let mut rig = Rig::new(Policy::Lazy);
    let esr = TRANSLATION | MAINTENANCE | WRITE | WALK;
    let exception = injected(&mut rig, esr, FAR, NOTHING_THERE);
    assert_eq!(exception.esr_el1 & 0x1ff, MAINTENANCE | WRITE | 0x10);
}

// Row 5: widths, signs, register 31, borders.

#[test]
fn a_device_load_fills_its_register_as_the_instruction_says() {
    // UARTPCellID1 reads 0xf0.
    let ipa = UART + 0xff4;
    for (bytes, flags, expected) in [
        (1, 0, 0xf0),
        (1, SIGN, 0xffff_fff0),
        (1, SIGN | WIDE, 0xffff_ffff_ffff_fff0),
        (2, SIGN | WIDE, 0xf0),
        (4, 0, 0xf0),
        (4, WIDE, 0xf0),
        (8, WIDE, 0),
    ] {
        let mut rig = Rig::new(Policy::Lazy);
        let esr = TRANSLATION | flags | described(bytes, 3);
        let value = emulated(&mut rig, esr, FAR | ipa, ipa, 3);
        assert_eq!(value, expected, "{bytes} bytes, flags {flags:#x}");
    }
}

#[test]
fn register_31_of_a_device_access_is_zero_and_takes_nothing() {
    let mut rig = Rig::new(Policy::Lazy);
    emulated(&mut rig, TRANSLATION | described(4, 31), UART, UART, 31);
    store(&mut rig, UART + 0x38, 4, 0x50);
    assert_eq!(load(&mut rig, UART + 0x38, 4), 0x50);
    let esr = TRANSLATION | WRITE | described(4, 31);
    emulated(&mut rig, esr, UART + 0x38, UART, 31);
    assert_eq!(load(&mut rig, UART + 0x38, 4), 0);
}

#[test]
fn gic_registers_of_the_wrong_width_or_alignment_read_zero_and_ignore_writes() {
    let mut rig = Rig::new(Policy::Lazy);
    for (ipa, bytes) in [
        (GICD, 1),
        (GICD, 2),
        (GICD, 8),
        (GICD + 1, 4),
        (GICD + 0x104, 1),
        (GICD + 0xffc, 8),
        (GICR + 0x1_0100, 2),
    ] {
        let before = state(&rig);
        store(&mut rig, ipa, bytes, u64::MAX);
        assert_eq!(load(&mut rig, ipa, bytes), 0, "{ipa:#x} {bytes}");
        assert!(state(&rig) == before);
    }
}

#[test]
fn an_access_across_the_end_of_a_device_is_an_external_abort() {
    let mut rig = Rig::new(Policy::Lazy);
    for ipa in [UART + 0xffe, GICD + 0xfffc] {
        let esr = TRANSLATION | WRITE | described(8, 2);
        injected(&mut rig, esr, FAR | ipa, ipa);
    }
}

#[test]
fn the_guest_s_bytes_come_out_in_order_and_only_its_own() {
    let mut rig = Rig::new(Policy::Lazy);
    for byte in *b"ok\n" {
        store(&mut rig, UART, 1, 0xffff_ff00 | u64::from(byte));
    }
    assert_eq!(rig.sent, [(0, b'o'), (0, b'k'), (0, b'\n')]);
}

#[test]
fn a_guest_finds_its_uart_full_while_the_console_has_no_room() {
    const TXFF: u64 = 1 << 5;
    let mut rig = Rig::new(Policy::Lazy);
    store(&mut rig, UART + 0x38, 4, 1 << 5);
    store(&mut rig, UART, 4, b'a'.into());
    assert_eq!(load(&mut rig, UART + 0x18, 4) & TXFF, 0);
    assert!(rig.vms[0].uart.irq_level());
    rig.room = false;
    store(&mut rig, UART, 4, b'b'.into());
    assert_eq!(load(&mut rig, UART + 0x18, 4) & TXFF, TXFF);
    assert!(
        !rig.vms[0].uart.irq_level(),
        "no interrupt until there is room"
    );
    rig.vms[0].uart.set_transmit_room(true);
    assert_eq!(load(&mut rig, UART + 0x18, 4) & TXFF, 0);
    assert!(rig.vms[0].uart.irq_level());
    assert_eq!(rig.sent, [(0, b'a'), (0, b'b')], "nothing is lost");
}

/// An access to the UART: offset, bytes, and a value if it is a store; or the console says whether it has room.
#[derive(Clone, Debug)]
enum UartStep {
    Access(u64, u64, Option<u8>),
    Room(bool),
}

fn uart_steps() -> impl Strategy<Value = Vec<UartStep>> {
    let offset = prop_oneof![
        6 => Just(0_u64), 4 => Just(0x18), 4 => Just(0x38), 1 => Just(0x30), 1 => Just(0x44), 1 => 0..0x1000_u64,
    ];
    let value =
        prop_oneof![4 => b' '..=b'~', 1 => Just(b'\n'), 2 => Just(1 << 5), 1 => any::<u8>()];
    let value = proptest::option::weighted(0.7, value);
    let bytes = proptest::sample::select(vec![1, 2, 4, 8]);
    let access = (offset, bytes, value)
        .prop_map(|(offset, bytes, value)| UartStep::Access(offset & !(bytes - 1), bytes, value));
    let step = prop_oneof![50 => access, 1 => any::<bool>().prop_map(UartStep::Room)];
    proptest::collection::vec(step, 1..400)
}

/// What a guest has seen of its UART and its interrupt, and what came out.
#[derive(Debug, Default, PartialEq)]
struct UartSeen {
    read: Vec<u64>,
    lines: Vec<bool>,
    sent: Vec<(usize, u8)>,
    gic: String,
    exits: u64,
}

/// Takes the steps, `quick` where that is possible. Also returns how many were quick.
fn use_uart(steps: &[UartStep], quick: bool) -> (UartSeen, u64) {
    let mut rig = Rig::new(Policy::Lazy);
    let mut seen = UartSeen::default();
    for step in steps {
        match *step {
            UartStep::Room(room) => {
                rig.room = room;
                let vm = &mut rig.vms[0];
                vm.uart.set_transmit_room(room);
                vm.vgic.set_spi_level(UART_INTID, vm.uart.irq_level());
            }
            UartStep::Access(offset, bytes, value) => {
                let (ipa, pc) = (UART + offset, rig.context().pc);
                rig.context().x[3] = value.map_or(0x5a5a, u64::from);
                let write = value.map_or(0, |_| WRITE);
                let esr = TRANSLATION | WIDE | write | described(bytes, 3);
                let mut context = rig.context().clone();
                (context.esr, context.far, context.hpfar) = (esr, FAR | ipa, ipa >> 12 << 4);
                let access = PlainAccess::decode(context.syndrome()).filter(|_| quick);
                let vm = &mut rig.vms[0];
                if access.is_some_and(|access| access_uart(access, &mut context, vm, true)) {
                    *rig.context() = context;
                } else {
                    rig.exit(esr, FAR | ipa, ipa);
                }
                assert_eq!(rig.context().pc, pc + 4);
                seen.read.push(rig.context().x[3]);
            }
        }
        seen.lines.push(rig.vms[0].uart.irq_level());
    }
    let vm = &mut rig.vms[0];
    seen.sent = rig.sent;
    let kept = vm.uart.take_kept().iter();
    seen.sent.extend(kept.map(|byte| (0, *byte)));
    seen.gic = format!("{:?}", vm.vgic);
    seen.exits = vm.exits.told().mmio;
    (seen, vm.exits.quick)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if is_full() { 1024 } else { 64 }))]

    /// A guest cannot tell which accesses are answered without the rest of EL2, and nothing it sends is lost.
    #[test]
    fn quick_accesses_to_the_uart_are_like_all_others(steps in uart_steps()) {
        let (seen, none) = use_uart(&steps, false);
        let (quick_seen, quick) = use_uart(&steps, true);
        prop_assert_eq!(quick_seen, seen);
        prop_assert!(none == 0 && (quick > 0 || steps.len() < 50));
    }
}

// Row 6: fetches and table walks.

#[test]
fn a_fetch_from_a_device_or_from_nowhere_is_an_external_abort() {
    for ipa in [UART, NOTHING_THERE, 0, 0x000f_ffff_ffff_f000] {
        let mut rig = Rig::new(Policy::Lazy);
        let exception = injected(&mut rig, 0x20 << 26 | IL | 0x07, FAR | ipa, ipa);
        assert_eq!(exception.esr_el1, 0x21 << 26 | IL | 0x10);
        assert_eq!(exception.far_el1, Some(FAR | ipa));
    }
}

#[test]
fn a_fetch_or_table_walk_in_ram_maps_the_page_and_repeats() {
    let mut rig = Rig::new(Policy::Lazy);
    let (fetched, table) = (BASE + 0x10_0000, BASE + 0x10_1000);
    for (esr, ipa) in [
        (0x20 << 26 | IL | 0x07, fetched),
        (TRANSLATION | WALK | WRITE, table),
    ] {
        let context = rig.context().clone();
        assert_eq!(rig.exit(esr, FAR | 0x123, ipa), Next::Resume);
        assert_eq!(rig.mapped.unwrap().ipa, Ipa::new(ipa));
        assert_eq!(rig.context().pc, context.pc, "the guest repeats it");
        assert_eq!(rig.context().x, context.x);
        let memory = rig.memory_of(0);
        assert!(memory.translate(&rig.cpu, Ipa::new(ipa)).is_some());
    }
    assert_eq!((rig.vms[0].exits.page, rig.vms[0].exits.mmio), (2, 0));
}

#[test]
fn a_table_walk_into_a_device_is_an_external_abort_even_if_described() {
    let mut rig = Rig::new(Policy::Lazy);
    let esr = TRANSLATION | WALK | WRITE | described(4, 3);
    injected(&mut rig, esr, FAR | 0x18, UART);
}

// Row 7: calls.

#[test]
fn an_unknown_call_returns_minus_one_and_moves_on_once() {
    let ids = [
        0x8400_00ff,
        0xc400_0000,
        0x0400_0000,
        0,
        u64::MAX,
        0xc600_ff01,
    ];
    for (ec, step) in [(0x16, 0), (0x17, 4)] {
        for id in ids {
            let mut rig = Rig::new(Policy::Lazy);
            rig.context().x[0] = id;
            let context = rig.context().clone();
            assert_eq!(rig.exit(ec << 26 | IL, 0, 0), Next::Resume);
            assert_eq!(rig.context().x[0], u64::MAX, "{id:#x}");
            assert_eq!(rig.context().x[1..], context.x[1..], "preserved");
            assert_eq!(
                rig.context().pc,
                context.pc + step,
                "HVC is done already, SMC not"
            );
            assert_eq!(rig.cpu.injected, []);
        }
    }
}

#[test]
fn a_call_with_an_immediate_is_nobody_s() {
    for ec in [0x16, 0x17] {
        let mut rig = Rig::new(Policy::Lazy);
        rig.context().x[0] = 0x8400_0008;
        assert_eq!(rig.exit(ec << 26 | IL | 1, 0, 0), Next::Resume);
        assert_eq!(rig.context().x[0], u64::MAX);
    }
}

#[test]
fn smc_is_a_conduit_as_hvc_is() {
    let mut rig = Rig::new(Policy::Lazy);
    rig.context().x[0] = 0x8400_0000;
    assert_eq!(emulated(&mut rig, 0x17 << 26 | IL, 0, 0, 0), 0x1_0001);
}

#[test]
fn a_call_with_four_answers_changes_four_registers() {
    let mut rig = Rig::new(Policy::Lazy);
    let context = rig.context().clone();
    rig.hvc([0x8600_ff01, 1, 2, 3]);
    assert_eq!(rig.context().x[0], 0x1e6c_9f6b);
    assert_eq!(rig.context().x[3], 0x6f73_7667);
    assert_eq!(rig.context().x[4..], context.x[4..]);
}

#[test]
fn random_numbers_come_from_the_cpu_and_a_dry_one_says_so() {
    const RND64: u64 = 0xc400_0053;
    let mut rig = Rig::new(Policy::Lazy);
    rig.board.hw.set(IdReg::ISAR0, 0);
    rig.hvc([RND64, 64, 2, 3]);
    assert_eq!(
        rig.context().x[..4],
        [-1_i64 as u64, 64, 2, 3],
        "no FEAT_RNG"
    );
    rig.board.hw.set(IdReg::ISAR0, 1 << 60);
    rig.hvc([RND64, 64, 2, 3]);
    assert_eq!(rig.context().x[..4], [-3_i64 as u64, 0, 0, 0], "NO_ENTROPY");
    rig.cpu.entropy = vec![3, 2, 1];
    let context = rig.context().clone();
    rig.hvc([RND64, 192, 2, 3]);
    assert_eq!(rig.context().x[..4], [0, 3, 2, 1]);
    assert_eq!(rig.context().x[4..], context.x[4..], "preserved");
}

#[test]
fn firmware_is_called_for_a_workaround_that_is_needed_and_for_no_other() {
    let mut rig = Rig::new(Policy::Lazy);
    rig.board.hw.workarounds = [Need::Required, Need::NotRequired, Need::Unknown];
    for (id, answer) in [(0x8000_8000, 0), (0x8000_7fff, 0), (0x8000_3fff, u64::MAX)] {
        rig.hvc([id, 0, 0, 0]);
        assert_eq!(rig.context().x[0], answer, "{id:#x}");
    }
    assert_eq!(rig.cpu.worked_around, [0x8000_8000]);
}

#[test]
fn each_vcpu_is_told_where_its_stolen_time_is() {
    const PV_TIME_ST: u64 = 0xc500_0021;
    for policy in [Policy::Lazy, Policy::Eager, Policy::Static] {
        let mut rig = Rig::new(policy);
        let last = BASE + 8 * MIB - PAGE_SIZE;
        rig.vcpu(1).stolen.counts = 2_500_000;
        for vcpu in [0, 1] {
            assert_eq!(
                rig.hvc_of(vcpu, [0x8000_0001, 0xc500_0020, 0, 0]),
                Next::Resume
            );
            assert_eq!(rig.vcpu(vcpu).context.x[0], 0);
            assert_eq!(
                rig.hvc_of(vcpu, [0xc500_0020, PV_TIME_ST, 0, 0]),
                Next::Resume
            );
            assert_eq!(rig.vcpu(vcpu).context.x[0], 0);
            assert!(!rig.vcpu(vcpu).stolen.shown, "not before it asks where");
            assert_eq!(rig.hvc_of(vcpu, [PV_TIME_ST, 0, 0, 0]), Next::Resume);
            assert_eq!(rig.vcpu(vcpu).context.x[0], last + 64 * vcpu as u64);
            assert!(rig.vcpu(vcpu).stolen.shown);
        }
        let page = rig.ram(0, last, 128);
        let word = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
        assert_eq!((word(0), word(8)), (0, 0), "{policy:?}");
        assert_eq!((word(64), word(72)), (0, 2_500_000_000), "{policy:?}");
        rig.context().x[0] = PV_TIME_ST;
        rig.exit(0x16 << 26 | IL | 1, 0, 0);
        assert_eq!(rig.context().x[0] as i64, -1, "HVC #1 is nobody's");
    }
}

// Row 11: waits.

const WFI: u64 = 0x01 << 26 | IL;
const WFIT: u64 = WFI | 2;

/// A wait that an interrupt ends, or the count `at`.
fn until(at: Option<u64>) -> Wake {
    Wake {
        at,
        by_interrupt: true,
    }
}

#[test]
fn wfi_sleeps_behind_itself_until_an_interrupt() {
    let mut rig = Rig::new(Policy::Lazy);
    assert_eq!(rig.exit(WFI, 0, 0), Next::Yield);
    assert_eq!(rig.context().pc, PC + 4);
    assert_eq!(rig.vcpu(0).waiting, Some(until(None)));
    assert_eq!(rig.vcpu(1).waiting, None);
}

/// Enables group 1, and SGI 5 of vCPU 0 at the distributor; its CPU interface lets all priorities pass.
fn enable_sgi_5(rig: &mut Rig) {
    rig.cpu.vmcr = Some(0xff << 24 | 0b10);
    store(rig, GICD, 4, 0b10);
    store(rig, GICR + 0x1_0080, 4, u32::MAX.into());
    store(rig, GICR + 0x1_0100, 4, 1 << 5);
}

#[test]
fn wfi_with_a_pending_interrupt_goes_on_though_the_guest_masks_it() {
    let mut rig = Rig::new(Policy::Lazy);
    enable_sgi_5(&mut rig);
    rig.vms[0].vgic.send_sgi(1, 5 << 24 | 1);
    assert_eq!(rig.context().pstate & 0x80, 0x80, "PSTATE.I");
    let pc = rig.context().pc;
    assert_eq!(rig.exit(WFI, 0, 0), Next::Resume);
    assert_eq!((rig.context().pc, rig.vcpu(0).waiting), (pc + 4, None));
}

#[test]
fn wfi_with_a_pending_but_disabled_interrupt_sleeps() {
    let mut rig = Rig::new(Policy::Lazy);
    enable_sgi_5(&mut rig);
    rig.vms[0].vgic.send_sgi(1, 6 << 24 | 1);
    assert_eq!(rig.exit(WFI, 0, 0), Next::Yield);
}

#[test]
fn wfe_gives_way_and_does_not_sleep() {
    for kind in [1, 3, 3 | 1 << 2 | 4 << 5] {
        let mut rig = Rig::new(Policy::Lazy);
        assert_eq!(rig.exit(WFI | kind, 0, 0), Next::Yield);
        assert_eq!(rig.context().pc, PC + 4);
        assert_eq!(rig.vcpu(0).waiting, None);
    }
}

#[test]
fn wfit_sleeps_until_its_register_says() {
    for (rt, at) in [(4, 0xa5a5_0000_1234_8704), (31, 0)] {
        let mut rig = Rig::new(Policy::Lazy);
        assert_eq!(rig.exit(WFIT | 1 << 2 | rt << 5, 0, 0), Next::Yield);
        assert_eq!(rig.vcpu(0).waiting, Some(until(Some(at))));
    }
}

#[test]
fn wfit_whose_deadline_nobody_names_does_not_sleep() {
    // ISS.RV = 0: a sleep without a deadline would hold up a guest's udelay().
    let mut rig = Rig::new(Policy::Lazy);
    assert_eq!(rig.exit(WFIT, 0, 0), Next::Yield);
    assert_eq!(rig.context().pc, PC + 4);
    assert_eq!(rig.vcpu(0).waiting, None);
}

// Row 12: the EL1 physical timer, emulated.

const CNTP_TVAL: (u64, u64, u64, u64, u64) = (3, 3, 14, 2, 0);
const CNTP_CTL: (u64, u64, u64, u64, u64) = (3, 3, 14, 2, 1);
const CNTP_CVAL: (u64, u64, u64, u64, u64) = (3, 3, 14, 2, 2);

fn mrs(rig: &mut Rig, register: (u64, u64, u64, u64, u64)) -> u64 {
    emulated(rig, sysreg(register, 3, true), 0, 0, 3)
}

fn msr(rig: &mut Rig, register: (u64, u64, u64, u64, u64), value: u64) {
    rig.context().x[3] = value;
    assert_eq!(emulated(rig, sysreg(register, 3, false), 0, 0, 3), value);
}

/// Whether the GIC holds PPI `intid` of vCPU 0 pending, by GICR_ISPENDR0.
fn is_pending(rig: &mut Rig, intid: u16) -> bool {
    load(rig, GICR + 0x1_0200, 4) >> intid & 1 != 0
}

#[test]
fn the_physical_timer_s_line_follows_its_registers() {
    let intid = PHYSICAL_TIMER_INTID;
    let table = [
        (CNTP_CVAL, 0, 1, true),
        (CNTP_CVAL, u64::MAX, 1, false),
        (CNTP_CVAL, 999, 1, true),
        (CNTP_CVAL, 1001, 1, false),
        (CNTP_TVAL, 0xffff_ffff, 1, true),
        (CNTP_TVAL, 1, 1, false),
        (CNTP_CVAL, 0, 0b11, false),
        (CNTP_CVAL, 0, 0b10, false),
    ];
    for (register, value, ctl, high) in table {
        let mut rig = Rig::new(Policy::Lazy);
        msr(&mut rig, register, value);
        msr(&mut rig, CNTP_CTL, ctl);
        assert_eq!(
            is_pending(&mut rig, intid),
            high,
            "{value:#x}, ctl {ctl:#b}"
        );
        let istatus = u64::from(ctl & 1 != 0 && (high || ctl == 0b11)) << 2;
        assert_eq!(mrs(&mut rig, CNTP_CTL), ctl | istatus);
        // Masked, unmasked: the level moves with it.
        msr(&mut rig, CNTP_CTL, ctl | 0b10);
        assert!(!is_pending(&mut rig, intid));
        msr(&mut rig, CNTP_CTL, ctl);
        assert_eq!(is_pending(&mut rig, intid), high);
    }
}

#[test]
fn a_physical_timer_set_anew_has_the_run_loop_look_at_it() {
    let mut rig = Rig::new(Policy::Lazy);
    for register in [CNTP_TVAL, CNTP_CTL, CNTP_CVAL] {
        assert_eq!(rig.exit(sysreg(register, 3, false), 0, 0), Next::Rearm);
    }
}

#[test]
fn the_physical_timer_reads_back_as_written() {
    let mut rig = Rig::new(Policy::Lazy);
    msr(&mut rig, CNTP_TVAL, 0xffff_fff0);
    assert_eq!(mrs(&mut rig, CNTP_CVAL), 984);
    assert_eq!(mrs(&mut rig, CNTP_TVAL), 0xffff_fff0);
    rig.now += 1;
    assert_eq!(mrs(&mut rig, CNTP_TVAL), 0xffff_ffef);
    emulated(&mut rig, sysreg(CNTP_CVAL, 31, false), 0, 0, 31);
    assert_eq!(mrs(&mut rig, CNTP_CVAL), 0, "XZR");
    assert_eq!(rig.vcpu(1).physical_timer, Default::default());
}

// Row 13, the way in: the registers of the GIC by data aborts.

#[test]
fn the_gic_answers_at_its_addresses() {
    let mut rig = Rig::new(Policy::Lazy);
    assert_eq!(load(&mut rig, GICD + 4, 4) & 0x1f, 2, "64 SPIs");
    assert_eq!(load(&mut rig, GICD + 0xffe8, 4) >> 4 & 0xf, 3, "GICv3");
    assert_eq!(load(&mut rig, GICR + 8, 8) & 1 << 4, 0, "not the last");
    let last = load(&mut rig, GICR + 0x2_0008, 8);
    assert_eq!((last & 1 << 4, last >> 32), (1 << 4, 1), "affinity 1");
    store(&mut rig, GICD + 0x104, 4, 1 << 1);
    assert_eq!(load(&mut rig, GICD + 0x104, 4), 1 << 1);
    assert_eq!(load(&mut rig, GICD + 0x184, 4), 1 << 1);
    injected(
        &mut rig,
        TRANSLATION | described(4, 3),
        FAR,
        GICR + 0x4_0000,
    );
}

#[test]
fn what_the_gic_reserves_reads_zero_and_ignores_writes() {
    let mut rig = Rig::new(Policy::Lazy);
    // ISENABLER of SPIs there are not, IROUTER of an INTID there is not, holes.
    for ipa in [
        GICD + 0x10c,
        GICD + 0x17c,
        GICD + 0x7fd8,
        GICD + 0x5000,
        GICD + 0xc000,
        GICR + 0x9000,
        GICR + 0x1_f000,
    ] {
        let before = state(&rig);
        store(&mut rig, ipa, 4, u64::MAX);
        assert_eq!(load(&mut rig, ipa, 4), 0, "{ipa:#x}");
        assert!(state(&rig) == before, "{ipa:#x}");
    }
}

#[test]
fn an_sgi_by_register_reaches_the_other_vcpu() {
    let mut rig = Rig::new(Policy::Lazy);
    let sgi1r = (3, 0, 12, 11, 5);
    msr(&mut rig, sgi1r, 5 << 24 | 1 << 1);
    assert_eq!(load(&mut rig, GICR + 0x3_0200, 4), 1 << 5);
    assert_eq!(load(&mut rig, GICR + 0x1_0200, 4), 0);
    injected(&mut rig, sysreg(sgi1r, 3, true), 0, 0);
}

#[test]
fn the_system_register_interface_of_the_gic_cannot_be_turned_off() {
    let mut rig = Rig::new(Policy::Lazy);
    let sre = (3, 0, 12, 12, 5);
    msr(&mut rig, sre, 0);
    assert_eq!(mrs(&mut rig, sre), 7);
}

// Row 17: system registers.

#[test]
fn hidden_registers_are_undefined() {
    let hidden = [
        (3, 3, 9, 12, 0),  // PMCR_EL0
        (3, 3, 13, 2, 0),  // AMCR_EL0
        (3, 0, 1, 2, 0),   // ZCR_EL1
        (3, 0, 1, 2, 6),   // SMCR_EL1
        (3, 0, 5, 3, 0),   // ERRIDR_EL1
        (3, 0, 5, 4, 0),   // ERXFR_EL1
        (3, 0, 10, 4, 0),  // LORSA_EL1
        (3, 0, 9, 9, 0),   // PMSCR_EL1
        (3, 7, 15, 15, 7), // IMPLEMENTATION DEFINED
        (3, 4, 1, 1, 0),   // HCR_EL2
        (0, 0, 0, 0, 0),
    ];
    for register in hidden {
        for read in [true, false] {
            let mut rig = Rig::new(Policy::Lazy);
            let exception = injected(&mut rig, sysreg(register, 3, read), 0, 0);
            assert_eq!(exception.esr_el1, UNDEFINED, "{register:?}");
            assert_eq!(exception.far_el1, None);
        }
    }
}

#[test]
fn id_registers_show_what_the_vm_has() {
    let mut rig = Rig::new(Policy::Lazy);
    let pfr1 = (3, 0, 0, 4, 1);
    assert_eq!(mrs(&mut rig, pfr1) >> 8 & 0xf, 3, "MTE");
    assert_eq!(mrs(&mut rig, (3, 0, 0, 4, 0)) >> 32 & 0xf, 0, "no SVE");
    rig.vms[0].shape.mte = false;
    assert_eq!(mrs(&mut rig, pfr1) >> 8 & 0xf, 0, "MTE is off");
    injected(&mut rig, sysreg(pfr1, 3, false), 0, 0);
}

#[test]
fn registers_that_are_written_through_reach_the_hardware_in_the_allowed_bits() {
    let mut rig = Rig::new(Policy::Lazy);
    msr(&mut rig, (3, 0, 1, 0, 2), u64::MAX);
    let cpacr = rig.cpu.cpacr.unwrap();
    assert_eq!(cpacr >> 20 & 3, 3, "FPEN");
    assert_eq!(
        mrs(&mut rig, (3, 0, 1, 0, 2)),
        3 << 20,
        "the guest has no more"
    );
    msr(&mut rig, (2, 0, 1, 0, 4), 0);
    msr(&mut rig, (2, 0, 0, 2, 2), u64::MAX);
    assert_eq!(rig.cpu.mdscr, Some(0xb001));
}

// Row 17: debug.

#[test]
fn breakpoints_and_watchpoints_reach_the_hardware() {
    let mut rig = Rig::new(Policy::Lazy);
    assert_eq!(mrs(&mut rig, (3, 0, 0, 5, 0)) >> 12 & 0xf, 5);
    msr(&mut rig, (2, 0, 0, 5, 4), 0x4000_1234);
    msr(&mut rig, (2, 0, 0, 5, 5), 0x1e7);
    msr(&mut rig, (2, 0, 0, 3, 7), u64::MAX);
    let (debug, shown) = rig.cpu.comparators.unwrap();
    assert_eq!(shown, 6);
    let breakpoint = debug.breakpoints[5];
    assert_eq!(
        (breakpoint.value, breakpoint.control(0)),
        (0x4000_1234, 0x1e7)
    );
    assert_eq!(debug.watchpoints[3].control(0), 0x1f1f_ffff);
    assert_eq!(mrs(&mut rig, (2, 0, 0, 5, 4)), 0x4000_1234);
    assert!(rig.vcpu(0).sysregs.debug.is_active());
    assert!(
        !rig.vcpu(1).sysregs.debug.is_active(),
        "each vCPU has its own"
    );
    injected(&mut rig, sysreg((2, 0, 0, 6, 4), 3, false), 0, 0);
    injected(&mut rig, sysreg((2, 0, 0, 4, 7), 3, false), 0, 0);
    // What turns it on again finds none of it.
    rig.vcpu(0).power_on(BASE, 0);
    assert!(!rig.vcpu(0).sysregs.debug.is_active());
}

// Row 18: a VM without MTE; its STG and LDG do not leave EL1 at all.

#[test]
fn without_mte_the_registers_of_tags_are_undefined() {
    let mut rig = Rig::new(Policy::Lazy);
    rig.vms[0].shape.mte = false;
    for register in [
        (3, 0, 1, 0, 6), // GCR_EL1
        (3, 0, 1, 0, 5), // RGSR_EL1
        (3, 0, 5, 6, 0), // TFSR_EL1
        (3, 0, 5, 6, 1), // TFSRE0_EL1
        (3, 1, 0, 0, 4), // GMID_EL1
    ] {
        for read in [true, false] {
            let esr = sysreg(register, 3, read);
            assert_eq!(injected(&mut rig, esr, 0, 0).esr_el1, UNDEFINED);
        }
    }
}

// Row 24: cache maintenance by set and way.

#[test]
fn set_and_way_operations_go_on_and_those_of_tags_only_with_mte() {
    let (isw, csw, cisw) = ((1, 0, 7, 6, 2), (1, 0, 7, 10, 2), (1, 0, 7, 14, 2));
    let (igsw, cigdsw) = ((1, 0, 7, 6, 4), (1, 0, 7, 14, 6));
    let mut rig = Rig::new(Policy::Lazy);
    for operation in [isw, csw, cisw, igsw, cigdsw] {
        let before = state(&rig);
        emulated(&mut rig, sysreg(operation, 3, false), 0, 0, 31);
        assert!(state(&rig) == before);
    }
    rig.vms[0].shape.mte = false;
    for operation in [igsw, cigdsw] {
        injected(&mut rig, sysreg(operation, 3, false), 0, 0);
    }
}

// Row 31: addresses at the ends.

#[test]
fn addresses_at_the_ends_of_the_guest_s_space_are_external_aborts() {
    let last = 0x000f_ffff_ffff_f000;
    let end = BASE + 8 * MIB;
    for ipa in [0, BASE - 0x1000, end, 1 << 36, 1 << 48, last] {
        for esr in [TRANSLATION, TRANSLATION | WRITE | described(8, 3)] {
            let mut rig = Rig::new(Policy::Lazy);
            injected(&mut rig, esr, u64::MAX, ipa);
        }
    }
}

#[test]
fn maintenance_at_the_top_of_the_address_space_ends() {
    let mut rig = Rig::new(Policy::Lazy);
    let esr = TRANSLATION | MAINTENANCE | WRITE;
    emulated(&mut rig, esr, u64::MAX, 0x000f_ffff_ffff_f000, 31);
}

#[test]
fn an_address_that_no_table_can_map_is_an_external_abort() {
    let mut rig = Rig::new(Policy::Lazy);
    for code in [0x00, 0x29, 0x04, 0x2b] {
        injected(&mut rig, 0x24 << 26 | IL | code, FAR, 1 << 40);
    }
}

// What ends a VM, and only that VM.

#[test]
fn an_serror_or_a_class_that_was_never_offered_ends_the_vm() {
    for (ec, failure) in [
        (0x2f, Failure::SError as fn(u64) -> Failure),
        (0x3f, Failure::Unexpected),
        (0x1e, Failure::Unexpected),
    ] {
        let mut rig = Rig::new(Policy::Lazy);
        let (before, esr) = (state(&rig), ec << 26 | IL);
        assert_eq!(rig.exit(esr, 0, 0), Next::Fail(failure(esr)));
        assert!(state(&rig) == before);
        assert!(!failure(esr).to_string().is_empty());
    }
}

#[test]
fn what_a_guest_has_not_been_given_is_undefined() {
    for ec in [
        0x00, 0x07, 0x09, 0x0a, 0x14, 0x19, 0x1a, 0x1d, 0x27, 0x2d, 0x03,
    ] {
        let mut rig = Rig::new(Policy::Lazy);
        assert_eq!(injected(&mut rig, ec << 26 | IL, 0, 0).esr_el1, UNDEFINED);
    }
}

#[test]
fn a_vm_that_could_need_more_than_there_is_does_not_start_and_hurts_nobody() {
    let mut rig = Rig::new(Policy::Lazy);
    let before = rig.memory.account();
    let refused = rig.try_start(config("large", 128 * MIB, 1)).unwrap_err();
    let text = refused.to_string();
    // Both sums, and what to do.
    let sums = text.matches(" KiB").count();
    assert!(sums == 2 && text.contains("lower memory"), "{text}");
    assert_eq!(rig.memory.account(), before);
    let (_, faults) = rig.run(BASE + 5 * MIB, |sim, guest, ipa| sim.store(guest, ipa, 1));
    assert_eq!(faults, 1);
}

#[test]
fn a_vm_for_which_no_memory_is_left_fails_alone() {
    for policy in [Policy::Lazy, Policy::Eager] {
        let mut rig = Rig::new(policy);
        rig.start(config("poor", 8 * MIB, 1));
        // It was admitted, so this takes a machine that breaks its promise.
        rig.memory.host_mut().refuse_after(Some(0));
        let ipa = BASE + 3 * MIB;
        let failed = rig.exit_of((2, 0), TRANSLATION, ipa, ipa);
        assert_eq!(failed, Next::Fail(Failure::Memory(MemError::NoMemory)));
        rig.memory.host_mut().refuse_after(None);
        // The others live, in what they have.
        let (_, faults) = rig.run(BASE + 3 * MIB, |sim, guest, ipa| sim.store(guest, ipa, 1));
        assert_eq!(faults, 1);
        // And all comes back when it ends.
        let mut vm = rig.vms.pop().unwrap();
        vm.finish(
            hypervisor::report::End::Crashed,
            &mut rig.memory,
            &mut rig.cpu,
        )
        .unwrap();
        rig.check();
        let (value, _) = rig.run(BASE + 0x50_0000, SimMachine::load);
        assert_eq!(value, 0);
    }
}

#[test]
fn pending_and_active_bits_are_read_after_other_vcpus_were_synchronized() {
    let mut rig = Rig::new(Policy::Lazy);
    rig.gathered = false;
    for register in [0x200, 0x280, 0x300, 0x380] {
        for ipa in [GICD + 0x4 + register, GICR + 0x3_0000 + register] {
            let (before, exits) = (rig.context().clone(), rig.vms[0].exits.mmio);
            let read = TRANSLATION | described(4, 3);
            assert_eq!(rig.exit(read, ipa, ipa), Next::Gather, "{ipa:#x}");
            assert_eq!(rig.context().pc, before.pc, "{ipa:#x}: not yet");
            assert_eq!(rig.context().x, before.x, "{ipa:#x}: not yet");
            assert_eq!(rig.vms[0].exits.mmio, exits, "{ipa:#x}: one access");
            assert_eq!(rig.exit(read | WRITE, ipa, ipa), Next::Resume, "{ipa:#x}");
            rig.gathered = true;
            assert_eq!(rig.exit(read, ipa, ipa), Next::Resume, "{ipa:#x}");
            rig.gathered = false;
        }
    }
    for ipa in [
        GICD + 0x104,
        GICD + 0x400,
        GICR + 0x1_0100,
        GICD + 0x6100,
        UART,
    ] {
        let next = rig.exit(TRANSLATION | described(4, 3), ipa, ipa);
        assert_eq!(next, Next::Resume, "{ipa:#x} needs no other vCPU");
    }
    // A VM with one vCPU has nobody to ask.
    let read = TRANSLATION | described(4, 3);
    let next = rig.exit_of((1, 0), read, GICD + 0x304, GICD + 0x304);
    assert_eq!(next, Next::Resume);
}
