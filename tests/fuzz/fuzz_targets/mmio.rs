//! Feeds syndromes of data aborts to the decoder, the bus and the devices of a guest.
#![no_main]

#[path = "../../../hypervisor/tests/fuzz/drivers.rs"]
mod drivers;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| drivers::drive::<drivers::Mmio>(data));
