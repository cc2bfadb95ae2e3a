//! Registers by table.

use super::*;
use proptest::prelude::*;

#[test]
fn identification_and_reset_values() {
    let vgic = Vgic::new(3, 64).unwrap();
    let redist = VgicFrame::Redist;
    let table = [
        (DIST, 0x0000, 4, 0x50, "GICD_CTLR: ARE, DS"),
        (
            DIST,
            0x0004,
            4,
            0x0248_0002,
            "GICD_TYPER: No1N, 10 bits, 64 SPIs",
        ),
        (DIST, 0x0008, 4, 0x43b, "GICD_IIDR"),
        (DIST, 0x000c, 4, 0, "GICD_TYPER2"),
        (DIST, 0xffe8, 4, 0x3b, "GICD_PIDR2"),
        (DIST, 0xffe0, 4, 0x92, "GICD_PIDR0"),
        (DIST, 0xfffc, 4, 0xb1, "GICD_CIDR3"),
        (DIST, 0x0084, 4, 0xffff_ffff, "GICD_IGROUPR1"),
        (DIST, 0x6100, 8, 0, "GICD_IROUTER32"),
        (redist(0), 0x0000, 4, 0, "GICR_CTLR"),
        (redist(0), 0x0004, 4, 0x43b, "GICR_IIDR"),
        (redist(0), 0x0008, 8, 0, "GICR_TYPER of the first"),
        (
            redist(1),
            0x0008,
            8,
            0x1_0000_0100,
            "GICR_TYPER of the second",
        ),
        (
            redist(2),
            0x0008,
            8,
            0x2_0000_0210,
            "GICR_TYPER of the last",
        ),
        (redist(2), 0x0008, 4, 0x210, "GICR_TYPER, low half"),
        (redist(2), 0x000c, 4, 2, "GICR_TYPER, high half"),
        (redist(0), 0x0014, 4, 0b110, "GICR_WAKER: asleep"),
        (redist(0), 0xffe8, 4, 0x3b, "GICR_PIDR2"),
        (redist(0), 0x1_ffe8, 4, 0x3b, "GICR_PIDR2 in SGI_base"),
        (redist(0), 0x1_0080, 4, 0xffff_ffff, "GICR_IGROUPR0"),
        (
            redist(0),
            0x1_0c00,
            4,
            0xaaaa_aaaa,
            "GICR_ICFGR0: SGIs are edges",
        ),
        (redist(0), 0x1_0c04, 4, 0, "GICR_ICFGR1"),
        (redist(0), 0x0070, 8, 0, "GICR_PROPBASER: no LPIs"),
    ];
    for (frame, offset, size, expected, what) in table {
        assert_eq!(vgic.read(frame, offset, size), expected, "{what}");
    }
}

#[test]
fn typer_carries_the_affinity_of_the_seventeenth() {
    let vgic = Vgic::new(17, 64).unwrap();
    let typer = vgic.read(VgicFrame::Redist(16), 8, 8);
    assert_eq!(typer, 0x100 << 32 | 16 << 8 | 1 << 4);
}

#[test]
fn waker_wakes_the_children_at_once() {
    let mut vgic = Vgic::new(1, 64).unwrap();
    vgic.write(VgicFrame::Redist(0), 0x14, 4, 0);
    assert_eq!(vgic.read(VgicFrame::Redist(0), 0x14, 4), 0);
    vgic.write(VgicFrame::Redist(0), 0x14, 4, 0b10);
    assert_eq!(vgic.read(VgicFrame::Redist(0), 0x14, 4), 0b110);
}

#[test]
fn distributor_control_keeps_only_the_group_enables() {
    let mut vgic = Vgic::new(1, 64).unwrap();
    vgic.write(DIST, 0, 4, 0xffff_ffff);
    assert_eq!(vgic.read(DIST, 0, 4), 0x53);
    vgic.write(DIST, 0, 4, 0);
    assert_eq!(vgic.read(DIST, 0, 4), 0x50);
}

#[test]
fn set_and_clear_registers_are_two_views_of_one_state() {
    for (set, clear) in [
        (ISENABLER, ICENABLER),
        (ISPENDR, ICPENDR),
        (ISACTIVER, ICACTIVER),
    ] {
        for (frame, base) in [(VgicFrame::Redist(1), SGI_BASE), (DIST, 4), (DIST, 8)] {
            let mut vgic = Vgic::new(2, 64).unwrap();
            vgic.write(frame, base + set, 4, 0x8000_f00f);
            assert_eq!(vgic.read(frame, base + set, 4), 0x8000_f00f);
            assert_eq!(vgic.read(frame, base + clear, 4), 0x8000_f00f);
            vgic.write(frame, base + set, 4, 0x10);
            vgic.write(frame, base + clear, 4, 0x8000_000f);
            assert_eq!(vgic.read(frame, base + set, 4), 0xf010, "{set:#x}");
            assert_eq!(
                vgic.read(VgicFrame::Redist(0), SGI_BASE + set, 4),
                0,
                "banked"
            );
        }
    }
}

#[test]
fn group_and_config_registers_hold_what_is_written() {
    let mut vgic = Vgic::new(1, 64).unwrap();
    vgic.write(DIST, IGROUPR + 4, 4, 0x1234_5678);
    assert_eq!(vgic.read(DIST, IGROUPR + 4, 4), 0x1234_5678);
    vgic.write(DIST, ICFGR + 8, 4, 0xffff_ffff);
    assert_eq!(vgic.read(DIST, ICFGR + 8, 4), 0xaaaa_aaaa, "odd bits only");
    vgic.write(VgicFrame::Redist(0), SGI_BASE + ICFGR, 4, 0);
    let sgis = vgic.read(VgicFrame::Redist(0), SGI_BASE + ICFGR, 4);
    assert_eq!(sgis, 0xaaaa_aaaa, "SGIs stay edges");
    vgic.write(VgicFrame::Redist(0), SGI_BASE + ICFGR + 4, 4, 0x8);
    assert_eq!(
        vgic.read(VgicFrame::Redist(0), SGI_BASE + ICFGR + 4, 4),
        0x8
    );
}

#[test]
fn priorities_go_by_byte_and_by_word_with_five_bits() {
    let mut vgic = Vgic::new(1, 64).unwrap();
    for (frame, at) in [
        (VgicFrame::Redist(0), SGI_BASE + IPRIORITYR),
        (DIST, IPRIORITYR + 32),
    ] {
        vgic.write(frame, at, 4, 0x1020_3fff);
        assert_eq!(vgic.read(frame, at, 4), 0x1020_38f8);
        vgic.write(frame, at + 1, 1, 0xa7);
        assert_eq!(vgic.read(frame, at + 1, 1), 0xa0);
        assert_eq!(vgic.read(frame, at, 4), 0x1020_a0f8);
    }
}

#[test]
fn routers_go_whole_and_by_halves_without_one_of_n() {
    let mut vgic = Vgic::new(2, 64).unwrap();
    let at = IROUTER + 8 * 40;
    vgic.write(DIST, at, 8, u64::MAX);
    assert_eq!(vgic.read(DIST, at, 8), 0xff_00ff_ffff);
    vgic.write(DIST, at, 4, 0x8000_0001);
    assert_eq!(vgic.read(DIST, at, 8), 0xff_0000_0001);
    vgic.write(DIST, at + 4, 4, 0);
    assert_eq!(vgic.read(DIST, at, 8), 1);
    assert_eq!(vgic.read(DIST, at + 4, 4), 0);
    assert_eq!(vgic.read(DIST, at + 1, 1), 0, "not by bytes");
}

#[test]
fn private_interrupts_are_not_in_the_distributor() {
    let mut vgic = Vgic::new(1, 64).unwrap();
    for offset in [
        IGROUPR,
        ISENABLER,
        ISPENDR,
        ISACTIVER,
        IPRIORITYR,
        IPRIORITYR + 28,
        ICFGR + 4,
    ] {
        vgic.write(DIST, offset, 4, 0xffff_ffff);
        assert_eq!(vgic.read(DIST, offset, 4), 0, "{offset:#x}");
    }
    vgic.write(DIST, IROUTER + 8, 8, 1);
    assert_eq!(vgic.read(DIST, IROUTER + 8, 8), 0);
    assert_eq!(vgic.read(VgicFrame::Redist(0), SGI_BASE + ISENABLER, 4), 0);
    vgic.write(VgicFrame::Redist(0), SGI_BASE + ISENABLER + 4, 4, 0xff);
    assert_eq!(vgic.read(DIST, ISENABLER + 4, 4), 0, "nor SPIs in SGI_base");
}

#[test]
fn interrupts_beyond_the_last_are_raz_wi() {
    let mut vgic = Vgic::new(1, 64).unwrap();
    for offset in [
        IGROUPR + 12,
        ISENABLER + 12,
        ISPENDR + 12,
        IPRIORITYR + 96,
        ICFGR + 24,
    ] {
        vgic.write(DIST, offset, 4, 0xffff_ffff);
        assert_eq!(vgic.read(DIST, offset, 4), 0, "{offset:#x}");
    }
    vgic.write(DIST, IROUTER + 8 * 96, 8, 1);
    assert_eq!(vgic.read(DIST, IROUTER + 8 * 96, 8), 0);
    vgic.set_spi_level(96, true);
    vgic.set_spi_level(u16::MAX, true);
    vgic.set_spi_level(3, true);
    vgic.set_ppi_level(0, 32, true);
    vgic.set_ppi_level(9, 20, true);
    vgic.raise_hw_ppi(9, 27, 27);
    assert_eq!(vgic.take_kicks(), 0);
}

#[test]
fn sizes_the_architecture_does_not_give_are_raz_wi() {
    let mut vgic = Vgic::new(1, 64).unwrap();
    let wrong = [
        (0x0000, 1),
        (0x0000, 2),
        (0x0000, 8),
        (0x0004, 8),
        (0x0004, 1),
        (0xffe8, 1),
        (0x0104, 1),
        (0x0104, 2),
        (0x0108, 8),
        (0x0105, 4),
        (0x0421, 4),
        (0x0420, 2),
        (0x0420, 8),
        (0x0c08, 1),
        (0x6100, 1),
        (0x6104, 8),
        (0x0004, 3),
        (0x0004, 0),
        (0x0004, 16),
        (0x0008, 64),
    ];
    for (offset, size) in wrong {
        vgic.write(DIST, offset, size, u64::MAX);
        assert_eq!(vgic.read(DIST, offset, size), 0, "{offset:#x} by {size}");
    }
    for offset in (0x100..0x400).step_by(4) {
        assert_eq!(
            vgic.read(DIST, offset, 4),
            0,
            "nothing was written at {offset:#x}"
        );
    }
}

#[test]
fn a_redistributor_nobody_has_is_raz_wi() {
    let mut vgic = Vgic::new(2, 64).unwrap();
    for vcpu in [2, 63, 64, usize::MAX] {
        vgic.write(VgicFrame::Redist(vcpu), 0x14, 4, 0);
        vgic.write(VgicFrame::Redist(vcpu), SGI_BASE + ISENABLER, 4, 1);
        assert_eq!(vgic.read(VgicFrame::Redist(vcpu), 8, 8), 0);
        assert!(!vgic.has_pending(vcpu) && !vgic.is_hw_ppi_held(vcpu, 27));
        vgic.sync(vcpu, &ListRegisters::new(4));
        vgic.flush(vcpu, &mut ListRegisters::new(4));
    }
}

#[test]
fn a_gic_that_cannot_be_is_refused() {
    assert_eq!(Vgic::new(0, 64).unwrap_err(), VgicError::Vcpus(0));
    assert_eq!(Vgic::new(65, 64).unwrap_err(), VgicError::Vcpus(65));
    for spis in [0, 32, 65, 320] {
        assert_eq!(Vgic::new(1, spis).unwrap_err(), VgicError::Spis(spis));
    }
    assert!(Vgic::new(64, 288).is_ok());
}

#[test]
fn the_largest_gic_works_to_its_last_interrupt() {
    let mut vgic = Vgic::new(64, 288).unwrap();
    assert_eq!(vgic.read(DIST, 4, 4) & 0x1f, 9);
    vgic.write(DIST, 0, 4, 0b10);
    vgic.write(DIST, IROUTER + 8 * 319, 8, affinity(63));
    write_bit(&mut vgic, 0, ISENABLER, 319);
    vgic.set_spi_level(319, true);
    assert_eq!(vgic.take_kicks(), 1 << 63);
    let mut cpu = Cpu::new(63, 16);
    cpu.update(&mut vgic);
    assert_eq!(cpu.acknowledge(), Some((319, 0)));
}

proptest! {
    /// No access panics, and a read never gives more than its size.
    #[test]
    fn any_access_is_answered(
        accesses in prop::collection::vec((0..5_usize, 0..0x2_0100_u64, any::<u8>(), any::<u64>(), any::<bool>()), 1..60)
    ) {
        let mut vgic = Vgic::new(3, 96).unwrap();
        let mut lrs = ListRegisters::new(4);
        for (which, offset, size, value, write) in accesses {
            let size = if size < 0xf0 { 1 << (size & 3) } else { size };
            let frame = which.checked_sub(1).map_or(DIST, VgicFrame::Redist);
            if write {
                vgic.write(frame, offset, size, value);
            } else {
                let read = vgic.read(frame, offset, size);
                prop_assert!(size >= 8 || read >> (u32::from(size) * 8) == 0);
            }
            let vcpu = (value % 3) as usize;
            lrs.lr[0] = value;
            lrs.hcr = value;
            vgic.sync(vcpu, &lrs);
            vgic.flush(vcpu, &mut lrs);
            vgic.send_sgi(vcpu, value);
            vgic.deactivate(vcpu, value as u16);
            vgic.cancel_hw_ppi(vcpu, value as u16);
        }
    }
}
