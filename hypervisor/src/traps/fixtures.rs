//! ID registers of real and of imagined hardware, for the tests.

use super::id_regs::{IdReg, IdRegs};

/// QEMU 11.1.3 `-M virt,virtualization=on,mte=on,gic-version=3 -cpu max`, read at EL2.
pub(super) fn qemu_max() -> IdRegs {
    with(&[
        (IdReg { crm: 1, op2: 0 }, 0x1102_0131),
        (IdReg { crm: 1, op2: 1 }, 0x1001_1001),
        (IdReg { crm: 1, op2: 2 }, 0x0600_000a),
        (IdReg { crm: 2, op2: 0 }, 0x0210_1110),
        (IdReg { crm: 2, op2: 7 }, 0x0111_1111),
        (IdReg { crm: 3, op2: 0 }, 0x1011_0222),
        (IdReg { crm: 3, op2: 4 }, 0x0000_0011),
        (IdReg::PFR0, 0x1301_0011_2111_0222),
        (IdReg::PFR1, 0x0010_1010_1200_0321),
        (IdReg::PFR2, 0x0000_0001_0000_0111),
        (IdReg::ZFR0, 0x0110_1101_0121_0022),
        (IdReg::SMFR0, 0x92f1_5fff_7180_0001),
        (IdReg::FPFR0, 0xfc00_0003),
        (IdReg::DFR0, 0x1000_0000_1030_560a),
        (IdReg::ISAR0, 0x1221_1111_1031_2120),
        (IdReg::ISAR1, 0x0111_2111_1021_1502),
        (IdReg::ISAR2, 0x1120_0000_0011_0012),
        (IdReg::ISAR3, 0x1000_0010),
        (IdReg::MMFR0, 0x2100_0323_1020_1126),
        (IdReg::MMFR1, 0x0110_1120_1031_2122),
        (IdReg::MMFR2, 0x1221_0111_1201_1011),
        (IdReg::MMFR3, 0x1000_0000_1100_1111),
        (IdReg::MMFR4, 0x0000_0000_0000_0100),
    ])
}

/// The same with `-cpu neoverse-n2`: Armv8.5 with MTE2, without FEAT_FGT, FEAT_HCX, FEAT_MTE_PERM.
pub(super) fn neoverse_n2() -> IdRegs {
    with(&[
        (IdReg { crm: 1, op2: 0 }, 0x2101_0131),
        (IdReg { crm: 2, op2: 0 }, 0x0210_1110),
        (IdReg { crm: 3, op2: 0 }, 0x1011_0222),
        (IdReg::PFR0, 0x1201_0011_2111_0112),
        (IdReg::PFR1, 0x221),
        (IdReg::ZFR0, 0x1101_0011_0021),
        (IdReg::DFR0, 0x00f0_1030_5609),
        (IdReg::ISAR0, 0x1221_1111_1021_2120),
        (IdReg::ISAR1, 0x0011_1111_1021_1502),
        (IdReg::MMFR0, 0x0000_0222_0010_1125),
        (IdReg::MMFR1, 0x1021_2122),
        (IdReg::MMFR2, 0x1221_0111_1210_1011),
    ])
}

/// Every feature at once, each field 3: more than any hardware has.
pub(super) fn everything() -> IdRegs {
    IdRegs::read(|_, _| 0x3333_3333_3333_3333)
}

/// Hardware with these registers and no others.
pub(super) fn with(values: &[(IdReg, u64)]) -> IdRegs {
    let mut regs = IdRegs::ZERO;
    for &(id, value) in values {
        regs.set(id, value);
    }
    regs
}
