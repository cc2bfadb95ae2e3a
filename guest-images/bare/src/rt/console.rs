//! Lines on the PL011.

use core::fmt::{self, Write};

/// Where the `virt` machine has its UART.
pub const UART: u64 = 0x0900_0000;
/// The data register.
pub const DATA: u64 = 0x00;
/// The flag register.
pub const FLAGS: u64 = 0x18;
/// Flag: the transmit FIFO is full.
const TX_FULL: u32 = 1 << 5;

struct Uart;

impl Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(put);
        Ok(())
    }
}

fn put(byte: u8) {
    let (data, flags) = ((UART + DATA) as *mut u32, (UART + FLAGS) as *const u32);
    // SAFETY: the UART's registers, mapped as device memory (or the MMU is off), which nothing else in the program uses.
    unsafe {
        while flags.read_volatile() & TX_FULL != 0 {}
        data.write_volatile(u32::from(byte));
    }
}

/// Prints `text` and ends the line.
pub fn line(text: fmt::Arguments<'_>) {
    // The UART takes everything.
    let _ = Uart.write_fmt(text);
    put(b'\n');
}
