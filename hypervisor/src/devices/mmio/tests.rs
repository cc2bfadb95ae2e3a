//! The map of the bus.

use super::*;
use proptest::prelude::*;

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
    /// Any access is found or not, never with a panic.
    #[test]
    fn any_access_is_answered(ipa: u64, size: u8, vcpus: usize) {
        let _ = GuestBus::new(vcpus).find(ipa, size);
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
