//! Aborts, from the encodings of DDI 0487 and from what QEMU was measured to say.

use proptest::prelude::*;

use super::super::esr::Exit;
use super::*;

const TAG_ACCESS: u64 = 1 << 41;
const ISV: u64 = 1 << 24;
const S1PTW: u64 = 1 << 7;
const FNV: u64 = 1 << 10;

const FAR: u64 = 0x0500_ffff_1234_5678;
const HPFAR: u64 = 0x4_0123 << 4;

fn data_abort(bits: u64) -> DataAbort {
    let esr = Esr(0x24 << 26 | 1 << 25 | bits);
    let exit = Exit::decode(Syndrome {
        esr,
        far: FAR,
        hpfar: HPFAR,
    });
    match exit {
        Exit::DataAbort(abort) => abort,
        exit => panic!("{exit:?}"),
    }
}

fn instruction_abort(bits: u64) -> InstructionAbort {
    let esr = Esr(0x20 << 26 | 1 << 25 | bits);
    let exit = Exit::decode(Syndrome {
        esr,
        far: FAR,
        hpfar: HPFAR,
    });
    match exit {
        Exit::InstructionAbort(abort) => abort,
        exit => panic!("{exit:?}"),
    }
}

/// ISS encoding for a Data Abort, DFSC.
#[test]
fn every_fault_status_code_has_its_class_and_level() {
    use Stage2Fault::*;
    let table = [
        (0x00, AddressSize { level: 0 }),
        (0x03, AddressSize { level: 3 }),
        (0x04, Translation { level: 0 }),
        (0x07, Translation { level: 3 }),
        (0x08, AccessFlag { level: 0 }),
        (0x0b, AccessFlag { level: 3 }),
        (0x0c, Permission { level: 0 }),
        (0x0f, Permission { level: 3 }),
        (0x10, ExternalAbort),
        (0x11, TagCheck),
        (0x12, ExternalAbortOnWalk { level: -2 }),
        (0x13, ExternalAbortOnWalk { level: -1 }),
        (0x14, ExternalAbortOnWalk { level: 0 }),
        (0x17, ExternalAbortOnWalk { level: 3 }),
        (0x18, Parity),
        (0x1b, Parity),
        (0x1f, Parity),
        (0x21, Alignment),
        (0x22, GranuleProtection),
        (0x28, GranuleProtection),
        (0x29, AddressSize { level: -1 }),
        (0x2a, Translation { level: -2 }),
        (0x2b, Translation { level: -1 }),
        (0x2c, AddressSize { level: -2 }),
        (0x30, TlbConflict),
        (0x31, UnsupportedAtomicUpdate),
        (0x35, UnsupportedAtomic),
    ];
    for (dfsc, fault) in table {
        assert_eq!(data_abort(dfsc).fault, fault, "DFSC {dfsc:#x}");
    }
    for code in [0x19, 0x1a, 0x20, 0x2d, 0x32, 0x34, 0x3d, 0x3f] {
        assert_eq!(data_abort(u64::from(code)).fault, Other { code });
    }
}

/// DFSC should be a permission fault; QEMU 11.1.3 says 0.
#[test]
fn tag_access_fault_is_told_from_a_permission_fault() {
    for dfsc in [0x0f, 0x0e, 0x00] {
        assert_eq!(data_abort(TAG_ACCESS | dfsc).fault, Stage2Fault::TagAccess);
    }
    assert_eq!(data_abort(0x0f).fault, Stage2Fault::Permission { level: 3 });
}

/// QEMU 11.1.3 sign-extends the syndrome of a Tag Check Fault, so that bit 41 is 1.
#[test]
fn tag_check_fault_is_never_a_tag_access_fault() {
    for upper in [0, TAG_ACCESS, 0xffff_ffff_0000_0000] {
        assert_eq!(data_abort(upper | 0x11).fault, Stage2Fault::TagCheck);
    }
}

#[test]
fn a_fetch_is_never_a_tag_fault() {
    assert_eq!(
        instruction_abort(TAG_ACCESS | 0x0f).fault,
        Stage2Fault::Permission { level: 3 }
    );
}

/// HPFAR_EL2 is written for translation, access flag and address size faults, and for any fault of
/// a stage 1 walk; UNKNOWN for a permission fault.
#[test]
fn the_ipa_is_believed_only_where_hpfar_is_written() {
    let page = Some(0x4012_3000);
    let table = [
        (0x07, page),
        (0x0b, page),
        (0x00, page),
        (0x0f, None),
        (0x0f | S1PTW, page),
        (0x07 | S1PTW, page),
        (0x0f | TAG_ACCESS, None),
        (TAG_ACCESS, None),
        (0x10, None),
        (0x11, None),
        (0x21, None),
        (0x35, None),
    ];
    for (bits, expected) in table {
        assert_eq!(data_abort(bits).ipa_page, expected, "{bits:#x}");
        if bits & TAG_ACCESS == 0 && bits & 0x3f != 0x11 {
            assert_eq!(instruction_abort(bits).ipa_page, expected, "{bits:#x}");
        }
    }
}

/// HPFAR_EL2.FIPA, bits 43:4, is IPA[51:12]; bit 63 is NS.
#[test]
fn the_page_is_40_bits_of_hpfar() {
    assert_eq!(page_of_hpfar(u64::MAX), 0x000f_ffff_ffff_f000);
    assert_eq!(page_of_hpfar(0xf), 0);
    assert_eq!(page_of_hpfar(0x10), 0x1000);
}

#[test]
fn the_offset_in_the_page_comes_from_the_address() {
    assert_eq!(data_abort(0x07).ipa(), Some(0x4012_3678));
    assert_eq!(data_abort(0x07 | S1PTW).ipa(), None);
    assert_eq!(data_abort(0x0f).ipa(), None);
}

/// FnV has a meaning only for DFSC 0x10.
#[test]
fn an_address_that_is_not_valid_is_not_given() {
    assert_eq!(data_abort(FNV | 0x10).far, None);
    assert_eq!(data_abort(0x10).far, Some(FAR));
    assert_eq!(data_abort(FNV | 0x07).far, Some(FAR));
    assert_eq!(instruction_abort(FNV | 0x10).far, None);
}

/// ISS: ISV 24, SAS 23:22, SSE 21, SRT 20:16, SF 15, AR 14, CM 8, WnR 6.
#[test]
fn a_valid_syndrome_describes_the_access() {
    let abort = data_abort(ISV | 2 << 22 | 1 << 21 | 9 << 16 | 1 << 15 | 1 << 6 | 0x07);
    assert!(abort.write && !abort.cache_maintenance && !abort.on_stage1_walk);
    assert_eq!(
        abort.access,
        Some(Access {
            bytes: 4,
            sign_extend: true,
            register: 9,
            wide_register: true,
            ordered: false,
        })
    );
    assert!(data_abort(1 << 8 | 0x07).cache_maintenance);
    assert!(data_abort(ISV | 1 << 14 | 7).access.unwrap().ordered);
}

#[test]
fn without_a_valid_syndrome_there_is_no_access_to_emulate() {
    assert_eq!(data_abort(0x07).access, None);
    assert_eq!(data_abort(ISV | S1PTW | 0x07).access, None);
}

#[test]
fn a_load_fills_its_register_by_width_and_sign() {
    let table = [
        // (bytes, sign_extend, wide_register, data, value)
        (1, false, false, 0xffff_ff80, 0x80),
        (1, true, false, 0x80, 0xffff_ff80),
        (1, true, true, 0x80, 0xffff_ffff_ffff_ff80),
        (1, true, true, 0x7f, 0x7f),
        (2, false, true, 0x1_8000, 0x8000),
        (2, true, true, 0x8000, 0xffff_ffff_ffff_8000),
        (4, true, true, 0x8000_0000, 0xffff_ffff_8000_0000),
        (4, true, false, 0x8000_0000, 0x8000_0000),
        (4, false, false, u64::MAX, 0xffff_ffff),
        (8, false, true, u64::MAX, u64::MAX),
        (8, true, true, 1 << 63, 1 << 63),
    ];
    for (bytes, sign_extend, wide_register, data, value) in table {
        let access = Access {
            bytes,
            sign_extend,
            register: 0,
            wide_register,
            ordered: false,
        };
        assert_eq!(access.loaded(data), value, "{access:?} {data:#x}");
    }
}

#[test]
fn a_store_writes_only_its_bytes() {
    for (bytes, stored) in [
        (1, 0xef),
        (2, 0xcdef),
        (4, 0x89ab_cdef),
        (8, 0x0123_4567_89ab_cdef),
    ] {
        let access = Access {
            bytes,
            sign_extend: false,
            register: 0,
            wide_register: true,
            ordered: false,
        };
        assert_eq!(access.stored(0x0123_4567_89ab_cdef), stored);
    }
}

proptest! {
    #[test]
    fn an_ipa_is_a_page_of_52_bits_or_none(iss in 0u64..1 << 25, iss2 in 0u64..1 << 24, hpfar: u64) {
        for ec in [0x20, 0x24] {
            let esr = Esr(ec << 26 | iss | iss2 << 32);
            let page = match Exit::decode(Syndrome { esr, far: FAR, hpfar }) {
                Exit::DataAbort(abort) => abort.ipa_page,
                Exit::InstructionAbort(abort) => abort.ipa_page,
                exit => panic!("{exit:?}"),
            };
            prop_assert!(page.is_none_or(|page| page & 0xfff == 0 && page >> 52 == 0));
        }
    }

    #[test]
    fn an_access_has_a_size_that_a_device_can_be_asked_for(iss in 0u64..1 << 25, data: u64) {
        if let Some(access) = data_abort(iss | 0x07).access {
            prop_assert!([1, 2, 4, 8].contains(&access.bytes) && access.register < 32);
            prop_assert!(access.bytes == 8 || access.stored(data) >> (8 * access.bytes) == 0);
            prop_assert!(access.wide_register || access.loaded(data) >> 32 == 0);
        }
    }
    /// Nearly all bits right, so that many are plain; and what is decoded whole says the same.
    #[test]
    fn a_plain_access_is_what_is_decoded_whole(
        esr in prop_oneof![Just(0x93_u64 << 24 | 6), any::<u64>()],
        flips in proptest::collection::vec(0..64_u32, 0..3),
        size in 0..4_u64, rt in 0..32_u64, write: bool, far: u64, hpfar: u64,
    ) {
        let esr = esr & !(3 << 22 | 31 << 16 | 1 << 6) | size << 22 | rt << 16 | u64::from(write) << 6;
        let esr = flips.iter().fold(esr, |esr, bit| esr ^ 1 << bit);
        let syndrome = Syndrome { esr: Esr(esr), far, hpfar };
        let whole = match Exit::decode(syndrome) {
            Exit::DataAbort(abort) => Some(abort),
            _ => None,
        };
        match PlainAccess::decode(syndrome) {
            Some(plain) => {
                let abort = whole.unwrap();
                let access = abort.access.unwrap();
                let is_translation = matches!(abort.fault, Stage2Fault::Translation { .. });
                prop_assert!(is_translation && !abort.cache_maintenance);
                prop_assert_eq!((Some(plain.ipa), plain.write), (abort.ipa(), abort.write));
                prop_assert_eq!((plain.bytes, plain.register), (access.bytes, access.register));
                prop_assert!(!access.sign_extend);
            }
            None => {
                let is_plain = whole.is_some_and(|abort| {
                    let level = matches!(abort.fault, Stage2Fault::Translation { level: 0.. });
                    level && !abort.cache_maintenance && abort.access.is_some_and(|access| !access.sign_extend)
                });
                prop_assert!(!is_plain || esr & 1 << 25 == 0, "{:x} would be plain", esr);
            }
        }
    }
}
