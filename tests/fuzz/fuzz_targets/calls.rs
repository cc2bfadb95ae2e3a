//! Feeds calls of guests to PSCI and SMCCC.
#![no_main]

#[path = "../../../hypervisor/tests/fuzz/drivers.rs"]
mod drivers;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| drivers::drive::<drivers::Calls>(data));
