//! A second CPU: where it starts, with a stack of its own and the same vectors.

use core::arch::global_asm;

use super::psci::{self, hvc};

global_asm!(
    ".section .text.second, \"ax\"",
    "second_entry:", // x0 = the function to call
    "msr daifset, #0xf",
    "msr spsel, #1",
    "adrp x1, second_stack_top",
    "add x1, x1, :lo12:second_stack_top",
    "mov sp, x1",
    "adrp x1, vectors_el1",
    "add x1, x1, :lo12:vectors_el1",
    "msr vbar_el1, x1",
    "mov x1, #(3 << 20)", // CPACR_EL1.FPEN
    "msr cpacr_el1, x1",
    "isb",
    "blr x0",
    "1: wfi",
    "b 1b",
    ".section .bss.second_stack, \"aw\", %nobits",
    ".balign 16",
    ".space 8192",
    "second_stack_top:",
    ".text",
);

unsafe extern "C" {
    /// Not to be called: only its address counts.
    fn second_entry();
}

/// Starts CPU 1 in `main`, at EL1 with the MMU off and interrupts masked; what PSCI's CPU_ON answers.
pub fn start_second(main: extern "C" fn() -> !) -> u64 {
    let entry = second_entry as *const () as u64;
    hvc(psci::CPU_ON, [1, entry, main as *const () as u64])
}
