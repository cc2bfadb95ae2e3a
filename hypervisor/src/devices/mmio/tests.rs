//! Syndromes and the bus.

use super::*;
use proptest::prelude::*;

/// A data abort with a valid syndrome: SAS, SSE, SRT, SF, WnR.
const fn esr(sas: u64, sse: u64, srt: u64, sf: u64, wnr: u64) -> u64 {
    0x24 << 26
        | 1 << 25
        | 1 << 24
        | sas << 22
        | sse << 21
        | srt << 16
        | sf << 15
        | wnr << 6
        | 0b000111
}

/// `HPFAR_EL2` for an address.
const fn hpfar(ipa: u64) -> u64 {
    ipa >> 12 << 4
}

#[test]
fn a_store_word_is_decoded() {
    let access = MmioAccess::decode(
        esr(2, 0, 19, 0, 1),
        0xffff_8000_1234_5008,
        hpfar(0x0900_0000),
    );
    let expected = MmioAccess {
        ipa: 0x0900_0008,
        size: 4,
        register: 19,
        sign_extend: false,
        sixty_four: false,
        write: true,
        ordered: false,
    };
    assert_eq!(access, Ok(expected));
}

#[test]
fn what_the_syndrome_does_not_tell_is_named() {
    let base = esr(2, 0, 1, 0, 0);
    let table = [
        (base & !(1 << 24), NotDecodable::NoSyndrome),
        (base | 1 << 10, NotDecodable::NoAddress),
        (base | 1 << 8, NotDecodable::CacheMaintenance),
        (base | 1 << 7, NotDecodable::TableWalk),
        (base & !(1 << 24) | 1 << 8, NotDecodable::CacheMaintenance),
        (base & !(1 << 24) | 1 << 7, NotDecodable::TableWalk),
        (0, NotDecodable::NoSyndrome),
        (u64::MAX, NotDecodable::TableWalk),
    ];
    for (esr, reason) in table {
        assert_eq!(MmioAccess::decode(esr, 0, 0), Err(reason), "{esr:#x}");
    }
}

#[test]
fn loads_extend_as_the_instruction_says() {
    // (SAS, SSE, SF, device's answer, register)
    let table = [
        (0, 0, 0, 0xffff_ff80, 0x80),           // LDRB
        (0, 1, 0, 0x80, 0xffff_ff80),           // LDRSB W
        (0, 1, 1, 0x80, 0xffff_ffff_ffff_ff80), // LDRSB X
        (0, 1, 1, 0x7f, 0x7f),
        (1, 0, 0, 0x1_8001, 0x8001),                             // LDRH
        (1, 1, 0, 0x8001, 0xffff_8001),                          // LDRSH W
        (1, 1, 1, 0x8001, 0xffff_ffff_ffff_8001),                // LDRSH X
        (2, 0, 0, 0x1_8000_0000, 0x8000_0000),                   // LDR W
        (2, 1, 1, 0x8000_0000, 0xffff_ffff_8000_0000),           // LDRSW
        (3, 0, 1, 0x8000_0000_0000_0001, 0x8000_0000_0000_0001), // LDR X
        (3, 1, 1, u64::MAX, u64::MAX),
    ];
    for (sas, sse, sf, value, register) in table {
        let access = MmioAccess::decode(esr(sas, sse, 3, sf, 0), 0, 0).unwrap();
        assert_eq!(
            access.loaded(value),
            Some(register),
            "{sas} {sse} {sf} {value:#x}"
        );
    }
}

#[test]
fn the_zero_register_stores_zero_and_takes_nothing() {
    let load = MmioAccess::decode(esr(3, 0, 31, 1, 0), 0, 0).unwrap();
    assert_eq!(load.loaded(5), None);
    let store = MmioAccess::decode(esr(3, 0, 31, 1, 1), 0, 0).unwrap();
    assert_eq!(store.stored(0xdead), 0);
}

#[test]
fn stores_carry_no_more_than_their_size() {
    for (sas, value) in [(0, 0xff), (1, 0xffff), (2, 0xffff_ffff), (3, u64::MAX)] {
        let access = MmioAccess::decode(esr(sas, 0, 0, 1, 1), 0, 0).unwrap();
        assert_eq!(access.stored(u64::MAX), value);
    }
}

#[test]
fn acquire_and_release_are_told() {
    let access = MmioAccess::decode(esr(2, 0, 0, 0, 1) | 1 << 14, 0, 0).unwrap();
    assert!(access.ordered);
}

#[test]
fn the_bus_finds_its_devices() {
    let bus = GuestBus::new(2);
    let gic = |frame, offset| Some(Target::Gic(frame, offset));
    let table = [
        (0x0900_0000, 4, Some(Target::Uart(0))),
        (0x0900_0ffc, 4, Some(Target::Uart(0xffc))),
        (0x0800_0000, 4, gic(VgicFrame::Dist, 0)),
        (0x0800_6100, 8, gic(VgicFrame::Dist, 0x6100)),
        (0x0800_ffff, 1, gic(VgicFrame::Dist, 0xffff)),
        (0x080a_0000, 4, gic(VgicFrame::Redist(0), 0)),
        (0x080b_0100, 4, gic(VgicFrame::Redist(0), 0x1_0100)),
        (0x080c_0008, 8, gic(VgicFrame::Redist(1), 8)),
        (0x080d_fffc, 4, gic(VgicFrame::Redist(1), 0x1_fffc)),
        // Beyond the last redistributor, in the holes, at the ends of the address space.
        (0x080e_0000, 4, None),
        (0x0801_0000, 4, None),
        (0x0808_0000, 4, None),
        (0x0900_1000, 4, None),
        (0x08ff_ffff, 1, None),
        (0, 8, None),
        (u64::MAX, 1, None),
        (u64::MAX, 8, None),
    ];
    for (ipa, size, target) in table {
        assert_eq!(bus.find(ipa, size), target, "{ipa:#x} by {size}");
    }
}

#[test]
fn an_access_across_an_end_belongs_to_nobody() {
    let bus = GuestBus::new(2);
    for (ipa, size) in [
        (0x0900_0ffd, 4),
        (0x0900_0ffc, 8),
        (0x0800_fffc, 8),
        (0x080b_fffe, 4),
        (0x080d_fffc, 8),
        (0x07ff_fffe, 4),
        (0x08ff_fffe, 4),
        (0x0809_fffc, 8),
    ] {
        assert_eq!(bus.find(ipa, size), None, "{ipa:#x} by {size}");
    }
}

proptest! {
    /// Any syndrome is decoded or refused, any access is found or not: never a panic, and never a wrong width.
    #[test]
    fn any_abort_is_answered(esr: u64, far: u64, hpfar: u64, value: u64, vcpus in 0..300_usize) {
        if let Ok(access) = MmioAccess::decode(esr, far, hpfar) {
            prop_assert!(matches!(access.size, 1 | 2 | 4 | 8) && access.register < 32);
            prop_assert!(access.size == 8 || access.stored(value) >> (access.size * 8) == 0);
            if let Some(loaded) = access.loaded(value) {
                prop_assert!(access.sixty_four || loaded >> 32 == 0);
            }
            let _ = GuestBus::new(vcpus).find(access.ipa, access.size);
        }
    }

    /// The address is the page of `HPFAR_EL2` and the offset of `FAR_EL2`.
    #[test]
    fn the_address_comes_back(ipa in 0..1_u64 << 52, top in 0..1_u64 << 52) {
        prop_assert_eq!(fault_ipa(top << 12 | ipa & 0xfff, hpfar(ipa)), ipa);
    }

    /// What the bus finds lies in the device with all its bytes.
    #[test]
    fn what_is_found_is_inside(ipa in 0x0700_0000..0x0a00_0000_u64, shift in 0..4_u32) {
        let size = 1 << shift;
        match GuestBus::new(8).find(ipa, size) {
            Some(Target::Uart(offset)) => prop_assert!(offset + u64::from(size) <= 0x1000),
            Some(Target::Gic(VgicFrame::Dist, offset)) => prop_assert!(offset + u64::from(size) <= 0x1_0000),
            Some(Target::Gic(VgicFrame::Redist(vcpu), offset)) => {
                prop_assert!(vcpu < 8 && offset + u64::from(size) <= GICR_SIZE);
                prop_assert_eq!(GICR_BASE + vcpu as u64 * GICR_SIZE + offset, ipa);
            }
            None => {}
        }
    }
}
