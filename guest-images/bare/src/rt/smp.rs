//! Other CPUs: where they start, each with a stack of its own and the same vectors.

use core::arch::global_asm;

use super::psci::{self, hvc};
use crate::read_sys;

global_asm!(
    ".section .text.second, \"ax\"",
    "second_entry:", // x0 = the function to call
    "msr daifset, #0xf",
    "msr spsel, #1",
    "mrs x2, mpidr_el1",
    "and x2, x2, #15",
    "adrp x1, second_stacks",
    "add x1, x1, :lo12:second_stacks",
    "add x1, x1, x2, lsl #13", // CPU 1 has the first 8 KiB
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
    "second_stacks:",
    ".space 8192 * 7",
    ".text",
);

unsafe extern "C" {
    /// Not to be called: only its address counts.
    fn second_entry();
}

/// The most CPUs there can be, the first included.
pub const MOST: u64 = 8;

/// Starts CPU `cpu`, 1 to 7, in `main`, at EL1 with the MMU off and interrupts masked; what PSCI's CPU_ON answers.
pub fn start(cpu: u64, main: extern "C" fn() -> !) -> u64 {
    let entry = second_entry as *const () as u64;
    hvc(psci::CPU_ON, [cpu, entry, main as *const () as u64])
}

/// Starts CPU 1.
pub fn start_second(main: extern "C" fn() -> !) -> u64 {
    start(1, main)
}

/// The number of the CPU that executes this.
pub fn this_cpu() -> u64 {
    read_sys!("MPIDR_EL1") & 15
}
