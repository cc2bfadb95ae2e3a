//! The rules of the GIC, by table and against a model that does everything the slow way.

mod cpu;
mod delivery;
mod model;
mod registers;
mod timer;

use super::*;
use cpu::Cpu;

const DIST: VgicFrame = VgicFrame::Dist;
const SGI_BASE: u64 = 0x1_0000;

// Offsets of the registers with one bit per interrupt.
const IGROUPR: u64 = 0x080;
const ISENABLER: u64 = 0x100;
const ICENABLER: u64 = 0x180;
const ISPENDR: u64 = 0x200;
const ICPENDR: u64 = 0x280;
const ISACTIVER: u64 = 0x300;
const ICACTIVER: u64 = 0x380;
const IPRIORITYR: u64 = 0x400;
const ICFGR: u64 = 0xc00;
const IROUTER: u64 = 0x6000;

/// Returns where the register `base` has `intid`: the frame, the offset of its word, the shift of its bit.
fn bit_of(vcpu: usize, base: u64, intid: u16) -> (VgicFrame, u64, u32) {
    let word = base + u64::from(intid / 32) * 4;
    if intid < 32 {
        (VgicFrame::Redist(vcpu), SGI_BASE + word, intid.into())
    } else {
        (DIST, word, u32::from(intid % 32))
    }
}

fn write_bit(vgic: &mut Vgic, vcpu: usize, base: u64, intid: u16) {
    let (frame, offset, shift) = bit_of(vcpu, base, intid);
    vgic.write(frame, offset, 4, 1 << shift);
}

fn read_bit(vgic: &Vgic, vcpu: usize, base: u64, intid: u16) -> bool {
    let (frame, offset, shift) = bit_of(vcpu, base, intid);
    vgic.read(frame, offset, 4) >> shift & 1 != 0
}

fn set_priority(vgic: &mut Vgic, vcpu: usize, intid: u16, priority: u8) {
    let offset = IPRIORITYR + u64::from(intid);
    if intid < 32 {
        vgic.write(
            VgicFrame::Redist(vcpu),
            SGI_BASE + offset,
            1,
            priority.into(),
        );
    } else {
        vgic.write(DIST, offset, 1, priority.into());
    }
}

fn set_edge(vgic: &mut Vgic, vcpu: usize, intid: u16, edge: bool) {
    let (frame, offset) = if intid < 32 {
        (
            VgicFrame::Redist(vcpu),
            SGI_BASE + ICFGR + u64::from(intid / 16) * 4,
        )
    } else {
        (DIST, ICFGR + u64::from(intid / 16) * 4)
    };
    let shift = u32::from(intid % 16) * 2 + 1;
    let word = vgic.read(frame, offset, 4) & !(1 << shift) | u64::from(edge) << shift;
    vgic.write(frame, offset, 4, word);
}

/// Makes a GIC with both groups on, and everything of interest enabled at priority 0xa0.
fn running(vcpus: usize) -> Vgic {
    let mut vgic = Vgic::new(vcpus, 64).unwrap();
    vgic.write(DIST, 0, 4, 0b11);
    for vcpu in 0..vcpus {
        for intid in 0..32 {
            set_priority(&mut vgic, vcpu, intid, 0xa0);
        }
        vgic.write(
            VgicFrame::Redist(vcpu),
            SGI_BASE + ISENABLER,
            4,
            0xffff_ffff,
        );
    }
    for intid in 32..96 {
        set_priority(&mut vgic, 0, intid, 0xa0);
    }
    vgic.write(DIST, ISENABLER + 4, 4, 0xffff_ffff);
    vgic.write(DIST, ISENABLER + 8, 4, 0xffff_ffff);
    vgic
}
