//! Calls to what runs below: SMC Calling Convention (DEN 0028) and PSCI (DEN 0022).

use core::arch::asm;

/// PSCI_VERSION.
pub const VERSION: u64 = 0x8400_0000;
/// CPU_SUSPEND, 64-bit.
pub const CPU_SUSPEND: u64 = 0xc400_0001;
/// CPU_OFF.
pub const CPU_OFF: u64 = 0x8400_0002;
/// CPU_ON, 64-bit.
pub const CPU_ON: u64 = 0xc400_0003;
/// AFFINITY_INFO, 64-bit.
pub const AFFINITY_INFO: u64 = 0xc400_0004;
/// SYSTEM_OFF.
pub const SYSTEM_OFF: u64 = 0x8400_0008;
/// SYSTEM_RESET.
pub const SYSTEM_RESET: u64 = 0x8400_0009;
/// PSCI_FEATURES.
pub const FEATURES: u64 = 0x8400_000a;
/// SMCCC_VERSION.
pub const SMCCC_VERSION: u64 = 0x8000_0000;
/// SMCCC_ARCH_FEATURES.
pub const ARCH_FEATURES: u64 = 0x8000_0001;

/// The call is not there (SMCCC and PSCI).
pub const NOT_SUPPORTED: u64 = -1_i64 as u64;
/// An argument is wrong (PSCI).
pub const INVALID_PARAMETERS: u64 = -2_i64 as u64;
/// The CPU is on already (PSCI).
pub const ALREADY_ON: u64 = -4_i64 as u64;
/// The entry point is no address to start at (PSCI).
pub const INVALID_ADDRESS: u64 = -9_i64 as u64;

/// A call by HVC, with three arguments; x0 of the answer.
pub fn hvc(function: u64, arguments: [u64; 3]) -> u64 {
    let mut x0 = function;
    // SAFETY: the callee is outside the program and, by the SMCCC, changes x0 to x17 at most.
    unsafe {
        asm!("hvc #0", inout("x0") x0, inout("x1") arguments[0] => _, inout("x2") arguments[1] => _,
            inout("x3") arguments[2] => _, clobber_abi("C"), options(nostack));
    }
    x0
}

/// A call by SMC, with three arguments; x0 of the answer.
pub fn smc(function: u64, arguments: [u64; 3]) -> u64 {
    let mut x0 = function;
    // SAFETY: as for `hvc`.
    unsafe {
        asm!("smc #0", inout("x0") x0, inout("x1") arguments[0] => _, inout("x2") arguments[1] => _,
            inout("x3") arguments[2] => _, clobber_abi("C"), options(nostack));
    }
    x0
}

/// Powers the machine off: by HVC from EL1, by SMC from EL2.
pub fn system_off() -> ! {
    end(SYSTEM_OFF)
}

/// Resets the machine.
pub fn system_reset() -> ! {
    end(SYSTEM_RESET)
}

fn end(function: u64) -> ! {
    if super::current_el() == 1 {
        hvc(function, [0; 3]);
    } else {
        smc(function, [0; 3]);
    }
    loop {
        crate::execute!("wfi");
    }
}
