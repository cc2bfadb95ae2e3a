//! Lines on the PL011.

use core::fmt::{self, Write};

use super::gic;
use crate::execute;

/// Where the `virt` machine has its UART.
pub const UART: u64 = 0x0900_0000;
/// The data register.
pub const DATA: u64 = 0x00;
/// The flag register.
pub const FLAGS: u64 = 0x18;
/// The control register.
const CONTROL: u64 = 0x30;
/// The interrupt mask.
const MASK: u64 = 0x38;
/// Flag: the transmit FIFO is full.
const TX_FULL: u32 = 1 << 5;
/// Flag: nothing has been received.
const RX_EMPTY: u32 = 1 << 4;
/// Interrupt: something has been received.
const RX: u32 = 1 << 4;
/// The UART's INTID on the `virt` machine.
const INTID: u64 = 33;

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

/// Makes the UART receive, and interrupt when it has; the GIC is enabled.
pub fn listen() {
    gic::enable_spi(INTID);
    gic::write32(UART + CONTROL, 1 << 9 | 1 << 8 | 1); // RXE, TXE, UARTEN
    gic::write32(UART + MASK, RX);
}

/// Sleeps until a byte has been received, and returns it.
pub fn receive() -> u8 {
    while gic::read32(UART + FLAGS) & RX_EMPTY != 0 {
        execute!("wfi");
        let id = gic::acknowledge();
        if id != gic::SPURIOUS {
            gic::end(id);
        }
    }
    gic::read32(UART + DATA) as u8
}
