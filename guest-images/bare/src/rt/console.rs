//! Lines on the PL011.

use core::fmt::{self, Write};

use super::gic;

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
    while gic::read32(UART + FLAGS) & TX_FULL != 0 {}
    gic::write32(UART + DATA, u32::from(byte));
}

/// Prints `text` and ends the line.
pub fn line(text: fmt::Arguments<'_>) {
    // The UART takes everything.
    let _ = Uart.write_fmt(text);
    put(b'\n');
}
