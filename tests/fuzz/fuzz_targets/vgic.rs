//! Feeds accesses, interrupts and list registers to a guest's GIC.
#![no_main]

#[path = "../../../hypervisor/tests/fuzz/drivers.rs"]
mod drivers;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| drivers::drive::<drivers::Gic>(data));
