//! Exception vectors and the guest's entry and exit.
//!
//! An exception from a guest returns from [`enter_guest`]; one taken at EL2 itself is always a fault of ours: it goes to a
//! stack of its own (the old one may be the cause), all registers are dumped and the machine stops.

use core::arch::global_asm;
use core::mem::offset_of;

use crate::vcpu::GuestContext;

/// Which vector brought the CPU back from a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitVector {
    /// Synchronous: `esr`, `far` and `hpfar` of the context are those of the exit.
    Sync,
    /// A physical interrupt is pending.
    Irq,
    /// A physical fast interrupt is pending (group 0: never enabled here).
    Fiq,
    /// An SError: `esr` of the context holds its syndrome.
    SError,
}

impl ExitVector {
    const fn from_raw(raw: u64) -> Self {
        match raw {
            0 => Self::Sync,
            1 => Self::Irq,
            2 => Self::Fiq,
            _ => Self::SError,
        }
    }
}

/// The registers at an exception taken at EL2.
#[repr(C)]
pub struct El2Frame {
    x: [u64; 31],
    sp: u64,
    elr: u64,
    spsr: u64,
    esr: u64,
    far: u64,
}

impl core::fmt::Display for El2Frame {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        writeln!(
            f,
            "pc {:#018x} sp {:#018x} spsr {:#010x}",
            self.elr, self.sp, self.spsr
        )?;
        writeln!(f, "esr {:#012x} far {:#018x}", self.esr, self.far)?;
        for (row, pair) in self.x.chunks(4).enumerate() {
            for (column, value) in pair.iter().enumerate() {
                write!(f, "x{:<2} {value:#018x} ", row * 4 + column)?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

unsafe extern "C" {
    fn enter_guest_asm(context: *mut GuestContext) -> u64;
}

/// Runs the guest described by `context` on this CPU until its next exception to EL2.
///
/// The caller has loaded the vCPU's system registers and stage 2 before.
pub fn enter_guest(context: &mut GuestContext) -> ExitVector {
    // SAFETY: the assembly saves and restores all callee-saved registers, writes nothing but `context`, and what the guest
    // can reach of this machine is bounded by the stage 2 and the traps that the caller has loaded.
    ExitVector::from_raw(unsafe { enter_guest_asm(context) })
}

extern "C" fn el2_exception(frame: &El2Frame, vector: u64) -> ! {
    let image = super::image_range().start;
    panic!(
        "exception {vector} at EL2 (image at {image:#x}, pc in it {:#x})\n{frame}",
        frame.elr.wrapping_sub(image)
    );
}

global_asm!(
    r#"
    .macro  current_el vector
    .balign 128
    msr     tpidr_el0, x0           // free to clobber: nothing returns from here, guests are dead
    mov     x0, #\vector
    b       el2_fault
    .endm
    .macro  lower_el vector
    .balign 128
    stp     x0, x1, [sp, #-16]!
    mov     x1, #\vector
    b       guest_exit
    .endm

    .text
    .balign 2048
    .globl  vectors
vectors:
    current_el 0
    current_el 1
    current_el 2
    current_el 3
    current_el 4
    current_el 5
    current_el 6
    current_el 7
    lower_el 0
    lower_el 1
    lower_el 2
    lower_el 3
    lower_el 0                      // from AArch32: a guest can get there by ERET, though it is not offered
    lower_el 1
    lower_el 2
    lower_el 3

el2_fault:
    // TPIDR_EL0 = the old x0, x0 = vector. The frame goes to this CPU's emergency stack: the old one may be the cause.
    msr     spsel, #1
    msr     tpidrro_el0, x1
    mov     x1, sp
    msr     tpidr_el1, x1
    mrs     x1, tpidr_el2
    mov     sp, x1
    sub     sp, sp, #{frame}
    mrs     x1, tpidrro_el0
    stp     x1, x2, [sp, #8]
    stp     x3, x4, [sp, #24]
    stp     x5, x6, [sp, #40]
    stp     x7, x8, [sp, #56]
    stp     x9, x10, [sp, #72]
    stp     x11, x12, [sp, #88]
    stp     x13, x14, [sp, #104]
    stp     x15, x16, [sp, #120]
    stp     x17, x18, [sp, #136]
    stp     x19, x20, [sp, #152]
    stp     x21, x22, [sp, #168]
    stp     x23, x24, [sp, #184]
    stp     x25, x26, [sp, #200]
    stp     x27, x28, [sp, #216]
    stp     x29, x30, [sp, #232]
    mrs     x2, tpidr_el0
    str     x2, [sp]
    mrs     x2, tpidr_el1
    mrs     x3, elr_el2
    stp     x2, x3, [sp, #248]
    mrs     x2, spsr_el2
    mrs     x3, esr_el2
    stp     x2, x3, [sp, #264]
    mrs     x2, far_el2
    str     x2, [sp, #280]
    mov     x1, x0
    mov     x0, sp
    b       {el2_exception}

    // u64 enter_guest_asm(context): callee-saved registers and the context's address stay on the stack.
    .globl  enter_guest_asm
enter_guest_asm:
    sub     sp, sp, #112
    str     x0, [sp]
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    stp     x29, x30, [sp, #96]
    ldp     x2, x3, [x0, #{pc}]     // pc, pstate
    msr     elr_el2, x2
    msr     spsr_el2, x3
    ldp     x2, x3, [x0, #16]
    ldp     x4, x5, [x0, #32]
    ldp     x6, x7, [x0, #48]
    ldp     x8, x9, [x0, #64]
    ldp     x10, x11, [x0, #80]
    ldp     x12, x13, [x0, #96]
    ldp     x14, x15, [x0, #112]
    ldp     x16, x17, [x0, #128]
    ldp     x18, x19, [x0, #144]
    ldp     x20, x21, [x0, #160]
    ldp     x22, x23, [x0, #176]
    ldp     x24, x25, [x0, #192]
    ldp     x26, x27, [x0, #208]
    ldp     x28, x29, [x0, #224]
    ldr     x30, [x0, #240]
    ldp     x0, x1, [x0]
    eret
    dsb     nsh                     // no speculation past the return
    isb

guest_exit:
    hint    #16                     // ESB: an SError that the guest has caused is put into DISR_EL1 here, not charged to the next
    ldr     x0, [sp, #16]
    stp     x2, x3, [x0, #16]
    stp     x4, x5, [x0, #32]
    stp     x6, x7, [x0, #48]
    stp     x8, x9, [x0, #64]
    stp     x10, x11, [x0, #80]
    stp     x12, x13, [x0, #96]
    stp     x14, x15, [x0, #112]
    stp     x16, x17, [x0, #128]
    stp     x18, x19, [x0, #144]
    stp     x20, x21, [x0, #160]
    stp     x22, x23, [x0, #176]
    stp     x24, x25, [x0, #192]
    stp     x26, x27, [x0, #208]
    stp     x28, x29, [x0, #224]
    str     x30, [x0, #240]
    ldp     x2, x3, [sp], #16
    stp     x2, x3, [x0]
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x2, x3, [x0, #{pc}]
    mrs     x2, esr_el2
    mrs     x3, far_el2
    stp     x2, x3, [x0, #{esr}]
    mrs     x2, hpfar_el2
    str     x2, [x0, #{hpfar}]
    mov     x0, x1
    ldp     x19, x20, [sp, #16]
    ldp     x21, x22, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #64]
    ldp     x27, x28, [sp, #80]
    ldp     x29, x30, [sp, #96]
    add     sp, sp, #112
    ret
"#,
    frame = const size_of::<El2Frame>(),
    pc = const offset_of!(GuestContext, pc),
    esr = const offset_of!(GuestContext, esr),
    hpfar = const offset_of!(GuestContext, hpfar),
    el2_exception = sym el2_exception,
);
