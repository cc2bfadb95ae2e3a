//! PSCI and SMCCC by table.

use super::*;
use proptest::prelude::*;

const RAM: core::ops::Range<u64> = 0x4000_0000..0x5000_0000;
const ENTRY: u64 = 0x4008_0000;
const CPU_ON_64: u64 = 0xc400_0003;
const AFFINITY_INFO_64: u64 = 0xc400_0004;

struct Vm(Vec<VcpuPower>);

impl PsciVm for Vm {
    fn vcpus(&self) -> usize {
        self.0.len()
    }

    fn power(&self, vcpu: usize) -> VcpuPower {
        self.0[vcpu]
    }

    fn is_ram(&self, ipa: u64) -> bool {
        RAM.contains(&ipa)
    }
}

/// One virtual CPU that calls, one off, one being started.
fn vm() -> Vm {
    Vm(vec![VcpuPower::On, VcpuPower::Off, VcpuPower::OnPending])
}

/// Hardware with random numbers, whose firmware has one workaround that is needed, one in effect, one that is not needed.
fn hw() -> IdRegs {
    let mut hw = IdRegs::ZERO;
    hw.set(IdReg::ISAR0, 1 << 60);
    hw.workarounds = [Need::Required, Need::Required, Need::NotRequired];
    hw
}

fn call(x: [u64; 4]) -> Outcome {
    answer(&vm(), &hw(), x)
}

#[test]
fn versions_and_the_functions_without_arguments() {
    let table = [
        (0x8400_0000, Outcome::Return(0x1_0001)),
        (0x8000_0000, Outcome::Return(0x1_0002)),
        (0x8400_0002, Outcome::CpuOff),
        (0x8400_0006, Outcome::Return(2)),
        (0x8400_0008, Outcome::SystemOff),
        (0x8400_0009, Outcome::SystemReset),
    ];
    for (id, outcome) in table {
        assert_eq!(call([id, 0, 0, 0]), outcome, "{id:#x}");
        let dirty = 0xdead_beef_0000_0000 | id;
        assert_eq!(call([dirty, 7, 7, 7]), outcome, "only w0 is looked at");
        assert_eq!(
            call([id | 1 << 30, 0, 0, 0]),
            Outcome::Return(-1),
            "no SMC64 form"
        );
    }
}

#[test]
fn unknown_functions_are_minus_one() {
    let unknown = [
        0x8400_0005,
        0xc400_0005, // MIGRATE
        0x8400_0007,
        0xc400_0007, // MIGRATE_INFO_UP_CPU
        0x8400_000b,
        0x8400_000c,
        0xc400_000e,
        0x8400_000f,
        0xc400_0010,
        0x8400_0013,
        0x8400_0014,
        0x8400_001f,
        0xc400_0050,
        0xc400_0051,
        0xc400_0052,
        0x8400_0054, // TRNG: no SMC64 form, no such function
        0x8000_0002,
        0xc000_8000,
        0x8000_0004, // SoC id, no SMC64 form of a workaround, no such workaround
        0xc500_0020,
        0xc500_0021, // stolen time
        0x8600_0000,
        0x8600_ff00,
        0xc600_ff01,
        0x0400_0000,
        0x95c1_ba5e,
        0,
        0xffff_ffff,
        0x8402_0000, // a reserved bit
    ];
    for id in unknown {
        assert_eq!(
            call([id, 0, 0, 0]),
            Outcome::Return(NOT_SUPPORTED),
            "{id:#x}"
        );
    }
}

#[test]
fn features_are_those_there_are() {
    let there = [
        0x8400_0000,
        0x8400_0001,
        0xc400_0001,
        0x8400_0002,
        0x8400_0003,
        0xc400_0003,
        0x8400_0004,
        0xc400_0004,
        0x8400_0006,
        0x8400_0008,
        0x8400_0009,
        0x8400_000a,
        0x8400_0012,
        0xc400_0012,
        0x8000_0000,
    ];
    for id in there {
        assert_eq!(call([0x8400_000a, id, 0, 0]), Outcome::Return(0), "{id:#x}");
    }
    for id in [
        0x8400_0050,
        0x8000_8000,
        0xc400_0000,
        0xc400_0008,
        0x8400_0005,
        0x8400_000e,
        0x8000_0001,
        0x8600_ff01,
        0,
        0xffff_ffff,
    ] {
        assert_eq!(
            call([0x8400_000a, id, 0, 0]),
            Outcome::Return(-1),
            "{id:#x}"
        );
    }
    for (id, answer) in [
        (0x8000_0000, 0),
        (0x8000_0001, 0),
        (0x8000_8000, 0),
        (0x8000_7fff, 1),
        (0x8000_3fff, 1),
        (0x8000_0004, -1),
        (0x8400_0000, -1),
        (0x8000_0002, -1),
    ] {
        assert_eq!(
            call([0x8000_0001, id, 0, 0]),
            Outcome::Return(answer),
            "ARCH_FEATURES {id:#x}"
        );
    }
}

#[test]
fn cpu_on_starts_what_is_off() {
    let started = Outcome::CpuOn {
        target: 1,
        entry: ENTRY,
        context: 0xfeed_0000_0000_0001,
    };
    assert_eq!(call([CPU_ON_64, 1, ENTRY, 0xfeed_0000_0000_0001]), started);
    let narrow = Outcome::CpuOn {
        target: 1,
        entry: ENTRY,
        context: 1,
    };
    let dirty = 0xdead_0000_0000_0000;
    assert_eq!(
        call([0x8400_0003, dirty | 1, dirty | ENTRY, dirty | 1]),
        narrow,
        "SMC32"
    );
}

#[test]
fn cpu_on_has_an_error_for_each_mistake() {
    let table = [
        (0, ENTRY, ALREADY_ON, "itself"),
        (2, ENTRY, ON_PENDING, "being started"),
        (3, ENTRY, INVALID_PARAMETERS, "no such vCPU"),
        (0x100, ENTRY, INVALID_PARAMETERS, "no such cluster"),
        (
            0x8000_0001,
            ENTRY,
            INVALID_PARAMETERS,
            "a reserved bit: MPIDR_EL1 instead of an affinity",
        ),
        (1 << 32 | 1, ENTRY, INVALID_PARAMETERS, "Aff3"),
        (u64::MAX, ENTRY, INVALID_PARAMETERS, "anything"),
        (1, RAM.start - 4, INVALID_ADDRESS, "below RAM"),
        (1, RAM.end, INVALID_ADDRESS, "above RAM"),
        (1, 0x0900_0000, INVALID_ADDRESS, "a device"),
        (1, !3, INVALID_ADDRESS, "the end of the address space"),
        (1, ENTRY + 2, INVALID_ADDRESS, "unaligned"),
    ];
    for (target, entry, error, what) in table {
        assert_eq!(
            call([CPU_ON_64, target, entry, 0]),
            Outcome::Return(error),
            "{what}"
        );
    }
}

#[test]
fn the_second_of_two_that_start_one_vcpu_is_told_so() {
    let mut vm = vm();
    let on = [CPU_ON_64, 1, ENTRY, 0];
    assert!(matches!(
        answer(&vm, &hw(), on),
        Outcome::CpuOn { target: 1, .. }
    ));
    vm.0[1] = VcpuPower::OnPending;
    assert_eq!(answer(&vm, &hw(), on), Outcome::Return(ON_PENDING));
    vm.0[1] = VcpuPower::On;
    assert_eq!(answer(&vm, &hw(), on), Outcome::Return(ALREADY_ON));
}

#[test]
fn affinity_info_tells_the_power_state() {
    let table = [
        (0, 0, 0),
        (1, 0, 1),
        (2, 0, 2),
        (3, 0, INVALID_PARAMETERS),
        (0x100, 0, INVALID_PARAMETERS),
        // A cluster is on if one of it is.
        (0, 1, 0),
        (0xff, 1, 0),
        (0x100, 1, INVALID_PARAMETERS),
        (0xffff, 2, 0),
        (0xff_ffff, 3, 0),
        (1 << 32, 3, INVALID_PARAMETERS),
        (0, 4, INVALID_PARAMETERS),
        (0, u64::MAX, INVALID_PARAMETERS),
        (1 << 24, 0, INVALID_PARAMETERS),
    ];
    for (target, level, state) in table {
        assert_eq!(
            call([AFFINITY_INFO_64, target, level, 0]),
            Outcome::Return(state),
            "{target:#x} at {level}"
        );
    }
    let vm = Vm(vec![VcpuPower::Off, VcpuPower::OnPending, VcpuPower::Off]);
    assert_eq!(
        answer(&vm, &hw(), [AFFINITY_INFO_64, 0, 1, 0]),
        Outcome::Return(2)
    );
    let vm = Vm(vec![VcpuPower::Off; 2]);
    assert_eq!(
        answer(&vm, &hw(), [AFFINITY_INFO_64, 0, 1, 0]),
        Outcome::Return(1)
    );
}

#[test]
fn cpu_suspend_waits_unless_its_arguments_are_wrong() {
    let table = [
        (0, 0, Outcome::Suspend), // standby: no entry point needed
        (0x0300_ffff, 0, Outcome::Suspend),
        (0x0001_0000, ENTRY, Outcome::Suspend), // power-down, met as standby
        (0x0001_0000, 0, Outcome::Return(INVALID_ADDRESS)),
        (0x0001_0000, ENTRY + 1, Outcome::Return(INVALID_ADDRESS)),
        (0x0002_0000, 0, Outcome::Return(INVALID_PARAMETERS)),
        (0x8000_0000, 0, Outcome::Return(INVALID_PARAMETERS)),
    ];
    for (state, entry, outcome) in table {
        assert_eq!(call([0xc400_0001, state, entry, 0]), outcome, "{state:#x}");
        assert_eq!(call([0x8400_0001, state, entry, 0]), outcome, "{state:#x}");
    }
}

#[test]
fn only_the_architectural_reset_is_there() {
    for id in [0x8400_0012, 0xc400_0012] {
        assert_eq!(call([id, 0, 9, 0]), Outcome::SystemReset);
        for kind in [1, 0x7fff_ffff, 0x8000_0000, 0x8000_0001] {
            assert_eq!(
                call([id, kind, 0, 0]),
                Outcome::Return(INVALID_PARAMETERS),
                "{kind:#x}"
            );
        }
    }
}

#[test]
fn the_sve_hint_is_no_part_of_the_function() {
    assert_eq!(call([0x8401_0000, 0, 0, 0]), Outcome::Return(0x1_0001));
    assert_eq!(
        call([CPU_ON_64 | 1 << 16, 0, ENTRY, 0]),
        Outcome::Return(ALREADY_ON)
    );
}

#[test]
fn a_workaround_is_firmware_s_where_it_is_needed_and_nothing_where_it_is_not() {
    assert_eq!(call([0x8000_8000, 0, 0, 0]), Outcome::Firmware(0x8000_8000));
    assert_eq!(call([0x8000_7fff, 0, 0, 0]), Outcome::Return(SUCCESS));
    assert_eq!(call([0x8000_3fff, 0, 0, 0]), Outcome::Return(SUCCESS));
    let silent = IdRegs::ZERO;
    for id in [0x8000_8000, 0x8000_7fff, 0x8000_3fff] {
        let outcome = Outcome::Return(NOT_SUPPORTED);
        assert_eq!(answer(&vm(), &silent, [id, 0, 0, 0]), outcome);
        assert_eq!(answer(&vm(), &silent, [0x8000_0001, id, 0, 0]), outcome);
    }
}

#[test]
fn random_numbers_are_there_with_the_hardware_s() {
    assert_eq!(call([0x8400_0050, 0, 0, 0]), Outcome::Return(0x1_0000));
    for id in [
        0x8400_0050,
        0x8400_0051,
        0x8400_0052,
        0x8400_0053,
        0xc400_0053,
    ] {
        assert_eq!(call([0x8400_0051, id, 0, 0]), Outcome::Return(0), "{id:#x}");
    }
    for id in [0xc400_0050, 0x8400_0054, 0x8400_0000] {
        assert_eq!(
            call([0x8400_0051, id, 0, 0]),
            Outcome::Return(-1),
            "{id:#x}"
        );
    }
    for id in [
        0x8400_0050,
        0x8400_0051,
        0x8400_0052,
        0x8400_0053,
        0xc400_0053,
    ] {
        let outcome = answer(&vm(), &IdRegs::ZERO, [id, 1, 0, 0]);
        assert_eq!(outcome, Outcome::Return(NOT_SUPPORTED), "{id:#x}");
    }
}

#[test]
fn random_numbers_are_given_up_to_three_registers_of_the_caller_s_width() {
    for (id, wide, most) in [(0x8400_0053, false, 96), (0xc400_0053, true, 192)] {
        for bits in [1, 31, 32, 33, 64, most] {
            let outcome = Outcome::Random { bits, wide };
            assert_eq!(call([id, bits, 0, 0]), outcome, "{bits}");
        }
        for bits in [0, most + 1, u64::from(u32::MAX)] {
            let outcome = Outcome::Return(INVALID_PARAMETERS);
            assert_eq!(call([id, bits, 0, 0]), outcome, "{bits}");
        }
    }
    // All that was asked for and nothing else, the lowest bits in x3.
    let ones = || Some(u64::MAX);
    for (bits, wide, x) in [
        (1, true, [0, 0, 0, 1]),
        (64, true, [0, 0, 0, u64::MAX]),
        (65, true, [0, 0, 1, u64::MAX]),
        (192, true, [0, u64::MAX, u64::MAX, u64::MAX]),
        (32, false, [0, 0, 0, 0xffff_ffff]),
        (40, false, [0, 0, 0xff, 0xffff_ffff]),
        (96, false, [0, 0xffff_ffff, 0xffff_ffff, 0xffff_ffff]),
    ] {
        assert_eq!(random(bits, wide, ones), x, "{bits}");
    }
    let mut once = [None, Some(7)].into_iter();
    let dry = random(128, true, || once.next_back().flatten());
    assert_eq!(dry, [NO_ENTROPY as u64, 0, 0, 0], "no half of an answer");
}

#[test]
fn the_hypervisor_can_be_told_by_its_uuid() {
    let Outcome::ReturnFour(words) = call([0x8600_ff01, 0, 0, 0]) else {
        panic!("four words");
    };
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    assert_eq!(
        bytes[..4],
        [0x6b, 0x9f, 0x6c, 0x1e],
        "byte 0 of the UUID is in bits 7:0 of w0"
    );
    assert_eq!(&bytes[10..], b"tagvso");
    assert_eq!(bytes[6] >> 4, 4, "a random UUID");
    assert_ne!(words[0], 0xb66f_b428, "not KVM's");
}

proptest! {
    /// Any call has an answer, and starts nothing but what is off, in RAM.
    #[test]
    fn any_call_is_answered(
        id in prop_oneof![any::<u64>(), (0..0x60_u64).prop_map(|n| 0x8400_0000 | n), (0..0x20_u64).prop_map(|n| 0xc400_0000 | n)],
        a in prop_oneof![any::<u64>(), 0..5_u64], b: u64, c: u64,
    ) {
        match answer(&vm(), &hw(), [id, a, b, c]) {
            Outcome::CpuOn { target, entry, .. } => prop_assert!(target == 1 && RAM.contains(&entry) && entry & 3 == 0),
            Outcome::Return(value) => prop_assert!(value >= INVALID_ADDRESS),
            _ => {}
        }
    }
}
