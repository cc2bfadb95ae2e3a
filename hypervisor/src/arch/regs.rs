//! System registers by name. Reading one has no effect on memory; writing one may pull the floor from under us, so
//! [`write_reg!`](crate::arch::regs::write_reg) may only be used in this folder.

/// Reads a system register, named as the assembler knows it (or `S3_op1_Cn_Cm_op2`).
macro_rules! read_reg {
    ($name:expr) => {{
        let value: u64;
        // SAFETY: MRS of a register that exists at EL2 on each CPU we run on has no side effect on memory.
        unsafe {
            core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags));
        }
        value
    }};
}

/// Writes a system register.
macro_rules! write_reg {
    ($name:expr, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: each use says, by its place, why EL2's own execution does not depend on the old value: it is a register of
        // EL1 or EL0, or one that controls guests only, or part of boot.
        unsafe {
            core::arch::asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags));
        }
    }};
}

/// An instruction without operands, such as a barrier.
macro_rules! instruction {
    ($text:expr) => {
        // SAFETY: barriers, WFI and TLB or instruction cache invalidations change no architectural state that Rust sees.
        unsafe {
            core::arch::asm!($text, options(nostack, preserves_flags));
        }
    };
    ($text:expr, $operand:expr) => {{
        let operand: u64 = $operand;
        // SAFETY: as above; the operand is an address or a VMID for maintenance, which never writes memory.
        unsafe {
            core::arch::asm!(concat!($text, ", {}"), in(reg) operand, options(nostack, preserves_flags));
        }
    }};
}

pub(super) use {instruction, read_reg, write_reg};
