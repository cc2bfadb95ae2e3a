//! Feeds bytes to the discovery of the board. Whatever they are, it must answer, in one line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use platform::fdt::{HEADER_BYTES, MAX_DTB_BYTES, discover};

/// Offset of `totalsize` in the header.
const TOTAL_SIZE: core::ops::Range<usize> = 4..8;

fn try_one(dtb: &[u8]) {
    match discover(dtb) {
        Ok(machine) => {
            assert!(!machine.memory.is_empty() && !machine.cpus.is_empty());
            for pair in machine.memory.windows(2) {
                assert!(pair[0].range.end() <= pair[1].range.base());
            }
        }
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
}

fuzz_target!(|data: &[u8]| {
    try_one(data);
    // Most mutations change the length: the same with a header that agrees with it.
    if (HEADER_BYTES..=MAX_DTB_BYTES).contains(&data.len()) {
        let mut dtb = data.to_vec();
        dtb[TOTAL_SIZE].copy_from_slice(&(data.len() as u32).to_be_bytes());
        try_one(&dtb);
    }
});
