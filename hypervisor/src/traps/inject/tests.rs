//! Exceptions taken to EL1, against AArch64.TakeException.

use proptest::prelude::*;

use super::super::fixtures::{neoverse_n2, qemu_max};
use super::*;

const SPAN: u64 = 1 << 23;
const DSSBS: u64 = 1 << 44;
const SPINTMASK: u64 = 1 << 62;

const ALL: PstateFeatures = PstateFeatures {
    pan: true,
    ssbs: true,
    tco: true,
    nmi: true,
};

fn from(pstate: u64) -> Origin {
    Origin {
        pc: 0xffff_8000_0001_0004,
        pstate,
        sctlr_el1: SPAN | SPINTMASK,
        vbar_el1: 0xffff_8000_0808_0800,
    }
}

/// D1.3.1.5: by the exception level, the stack pointer and the execution state left.
#[test]
fn the_vector_follows_from_where_the_exception_comes() {
    let table = [
        (spsr::EL1T, 0x000),
        (spsr::EL1H, 0x200),
        (spsr::EL0, 0x400),
        (spsr::AARCH32, 0x600),
    ];
    for (mode, offset) in table {
        let sync = inject(Exception::Undefined, from(mode), ALL);
        assert_eq!(sync.pc, 0xffff_8000_0808_0800 + offset);
        let serror = inject(Exception::SError { iss: 0 }, from(mode), ALL);
        assert_eq!(serror.pc, 0xffff_8000_0808_0800 + offset + 0x180);
    }
}

/// VBAR_EL1 bits 10:0 are RES0.
#[test]
fn the_vector_base_is_aligned() {
    let origin = Origin {
        vbar_el1: 0x87ff,
        ..from(spsr::EL1H)
    };
    assert_eq!(inject(Exception::Undefined, origin, ALL).pc, 0x8200);
}

#[test]
fn what_was_interrupted_can_be_returned_to() {
    let pstate = spsr::NZCV | spsr::SS | spsr::BTYPE | spsr::IL | spsr::EL0;
    let injected = inject(Exception::Undefined, from(pstate), ALL);
    assert_eq!(injected.elr_el1, 0xffff_8000_0001_0004);
    assert_eq!(injected.spsr_el1, pstate);
}

/// EC 0x24 and 0x20 from EL0, 0x25 and 0x21 from EL1; IL is 1 without an instruction syndrome.
#[test]
fn the_syndrome_names_the_exception() {
    let data = |far, write, cache_maintenance| Exception::DataAbort {
        far,
        write,
        cache_maintenance,
    };
    let table = [
        (Exception::Undefined, spsr::EL0, 0x0200_0000),
        (Exception::Undefined, spsr::EL1H, 0x0200_0000),
        (data(Some(1), false, false), spsr::EL0, 0x9200_0010),
        (data(Some(1), true, false), spsr::EL1H, 0x9600_0050),
        (data(Some(1), true, true), spsr::EL1T, 0x9600_0150),
        (data(None, false, false), spsr::EL1H, 0x9600_0410),
        (data(Some(1), false, false), spsr::AARCH32, 0x9200_0010),
        (
            Exception::InstructionAbort { far: Some(1) },
            spsr::EL0,
            0x8200_0010,
        ),
        (
            Exception::InstructionAbort { far: None },
            spsr::EL1H,
            0x8600_0410,
        ),
        (
            Exception::SError { iss: 0x1 << 24 },
            spsr::EL1H,
            0xbf00_0000,
        ),
        (Exception::SError { iss: u32::MAX }, spsr::EL1H, 0xbfff_ffff),
    ];
    for (exception, mode, esr) in table {
        let injected = inject(exception, from(mode), ALL);
        assert_eq!(
            injected.esr_el1, esr,
            "{exception:?} {:#x}",
            injected.esr_el1
        );
    }
}

#[test]
fn the_fault_address_is_set_only_by_an_abort_that_has_one() {
    let far = Some(0x0500_ffff_0000_1234);
    let data = Exception::DataAbort {
        far,
        write: false,
        cache_maintenance: false,
    };
    let table = [
        (data, far),
        (Exception::InstructionAbort { far }, far),
        (Exception::InstructionAbort { far: None }, None),
        (Exception::Undefined, None),
        (Exception::SError { iss: 0 }, None),
    ];
    for (exception, expected) in table {
        assert_eq!(inject(exception, from(0), ALL).far_el1, expected);
    }
}

#[test]
fn the_handler_starts_masked_at_el1h_with_clean_state() {
    let before = !(spsr::AARCH32 | spsr::MODE);
    let injected = inject(Exception::Undefined, from(before), ALL);
    let kept = spsr::NZCV | spsr::DIT | spsr::PAN;
    assert_eq!(
        injected.pstate,
        kept | spsr::DAIF | spsr::EL1H | spsr::TCO,
        "BTYPE, SS, IL, UAO, SSBS and ALLINT are clear"
    );
}

/// PAN unless SCTLR_EL1.SPAN; SSBS as DSSBS; TCO with MTE; ALLINT unless SPINTMASK.
#[test]
fn sctlr_and_the_hardware_decide_the_rest_of_pstate() {
    let none = PstateFeatures::default();
    let base = spsr::DAIF | spsr::EL1H;
    let table = [
        (SPAN | SPINTMASK, none, base),
        (0, none, base),
        (DSSBS, none, base),
        (0, ALL, base | spsr::PAN | spsr::TCO | spsr::ALLINT),
        (SPAN | SPINTMASK, ALL, base | spsr::TCO),
        (SPAN | SPINTMASK | DSSBS, ALL, base | spsr::TCO | spsr::SSBS),
        (
            SPAN,
            PstateFeatures { nmi: true, ..none },
            base | spsr::ALLINT,
        ),
        (
            SPINTMASK,
            PstateFeatures { pan: true, ..none },
            base | spsr::PAN,
        ),
    ];
    for (sctlr_el1, features, pstate) in table {
        let origin = Origin {
            sctlr_el1,
            ..from(spsr::EL0)
        };
        assert_eq!(
            inject(Exception::Undefined, origin, features).pstate,
            pstate
        );
    }
}

#[test]
fn pstate_has_what_the_id_registers_say() {
    assert_eq!(PstateFeatures::of(&qemu_max()), ALL);
    let n2 = PstateFeatures::of(&neoverse_n2());
    assert_eq!(n2, PstateFeatures { nmi: false, ..ALL });
    assert_eq!(PstateFeatures::of(&IdRegs::ZERO), PstateFeatures::default());
}

#[test]
fn an_emulated_instruction_is_stepped_past() {
    let pstate = spsr::NZCV | spsr::BTYPE | spsr::SS | spsr::EL1H;
    assert_eq!(
        advance(0x1000, pstate, true),
        (0x1004, spsr::NZCV | spsr::EL1H)
    );
    // A64 has only 32-bit instructions, whatever IL says.
    assert_eq!(advance(0x1000, spsr::EL1H, false).0, 0x1004);
    assert_eq!(advance(u64::MAX - 3, spsr::EL1H, true).0, 0);
}

#[test]
fn an_emulated_thumb_instruction_is_2_or_4_bytes() {
    assert_eq!(advance(0x1000, spsr::AARCH32, false).0, 0x1002);
    assert_eq!(advance(0x1000, spsr::AARCH32, true).0, 0x1004);
    assert_eq!(advance(0xffff_fffe, spsr::AARCH32, false).0, 0);
}

/// ITAdvance: the mask moves up by one, and the block ends when its low three bits are clear.
#[test]
fn the_it_state_moves_on() {
    let it = |bits: u64| spsr::AARCH32 | (bits & 0b11) << 25 | (bits >> 2) << 10;
    for (before, after) in [
        (0b0000_0000, 0b0000_0000),
        (0b0000_1000, 0b0000_0000),
        (0b0001_0100, 0b0000_1000),
        (0b1011_0101, 0b1010_1010),
        (0b1110_0001, 0b1110_0010),
        (0b1111_1111, 0b1111_1110),
    ] {
        assert_eq!(advance(0, it(before), true).1, it(after), "{before:#010b}");
    }
}

proptest! {
    #[test]
    fn no_state_of_a_guest_leads_out_of_its_el1(pc: u64, pstate: u64, sctlr_el1: u64, vbar_el1: u64) {
        let origin = Origin { pc, pstate, sctlr_el1, vbar_el1 };
        for exception in [Exception::Undefined, Exception::InstructionAbort { far: Some(pc) }] {
            let injected = inject(exception, origin, ALL);
            prop_assert_eq!(injected.pstate & 0x1f, spsr::EL1H);
            prop_assert_eq!(injected.pstate & spsr::DAIF, spsr::DAIF);
            prop_assert_eq!(injected.pstate >> 32, 0);
        }
    }

    #[test]
    fn a_step_never_changes_the_exception_level(pc: u64, pstate: u64, long: bool) {
        prop_assert_eq!(advance(pc, pstate, long).1 & 0x1f, pstate & 0x1f);
    }
}
