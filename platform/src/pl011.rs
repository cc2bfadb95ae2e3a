//! The PL011 UART (Arm DDI 0183): the console. Line settings stay as firmware left them.

use crate::mmio::Mmio;

const DATA: usize = 0x00;
const FLAGS: usize = 0x18;
const LINE_CONTROL: usize = 0x2c;
const CONTROL: usize = 0x30;
const FIFO_LEVELS: usize = 0x34;
const INTERRUPT_MASK: usize = 0x38;
const INTERRUPT_CLEAR: usize = 0x44;

const FLAG_RX_EMPTY: u32 = 1 << 4;
const FLAG_TX_FULL: u32 = 1 << 5;
const LINE_FIFO: u32 = 1 << 4;
const LINE_8_BITS: u32 = 3 << 5;
const CONTROL_ENABLE: u32 = 1 | 1 << 8 | 1 << 9; // UART, transmitter, receiver
const INTERRUPT_RX: u32 = 1 << 4;
const INTERRUPT_TX: u32 = 1 << 5;
const INTERRUPT_RX_TIMEOUT: u32 = 1 << 6;
const ALL_INTERRUPTS: u32 = 0x7ff;

/// How often a full transmit FIFO is looked at before a byte is given up: more than a FIFO of 32 bytes takes
/// to drain at 115200 baud (3 ms), at 20 ns a look. A dead console must not stop the hypervisor.
const PATIENCE: u32 = 200_000;

/// A PL011.
#[derive(Debug)]
pub struct Pl011 {
    registers: Mmio,
    dead: bool,
}

impl Pl011 {
    /// Takes over a PL011; its registers take 4 KiB.
    #[must_use]
    pub const fn new(registers: Mmio) -> Self {
        Self {
            registers,
            dead: false,
        }
    }

    /// Enables transmitter, receiver and FIFOs, all interrupts masked. Firmware's speed stays.
    pub fn init(&mut self) {
        let registers = self.registers;
        registers.write32(INTERRUPT_MASK, 0);
        registers.write32(INTERRUPT_CLEAR, ALL_INTERRUPTS);
        registers.write32(LINE_CONTROL, LINE_8_BITS | LINE_FIFO);
        let control = registers.read32(CONTROL);
        registers.write32(CONTROL, control | CONTROL_ENABLE);
    }

    /// Sends a byte, waiting a bounded time for room. False if it was given up; then the next bytes do not
    /// wait until there is room again.
    pub fn put(&mut self, byte: u8) -> bool {
        let tries = if self.dead { 1 } else { PATIENCE };
        self.dead = !(0..tries).any(|_| self.registers.read32(FLAGS) & FLAG_TX_FULL == 0);
        if !self.dead {
            self.registers.write32(DATA, u32::from(byte));
        }
        !self.dead
    }

    /// Sends a byte if that needs no wait, or gives it up as [`put`](Self::put) would. False if neither.
    #[inline]
    pub fn try_put(&mut self, byte: u8) -> bool {
        if self.registers.read32(FLAGS) & FLAG_TX_FULL != 0 {
            return self.dead;
        }
        self.dead = false;
        self.registers.write32(DATA, u32::from(byte));
        true
    }

    /// Takes a received byte, if there is one. Line errors are ignored.
    pub fn try_get(&mut self) -> Option<u8> {
        if self.registers.read32(FLAGS) & FLAG_RX_EMPTY != 0 {
            return None;
        }
        Some(self.registers.read32(DATA) as u8)
    }

    /// Lets received bytes raise the interrupt: at an eighth of the FIFO, or 32 bit times after the last.
    pub fn enable_rx_interrupt(&mut self) {
        self.registers.write32(FIFO_LEVELS, 0);
        let mask = self.registers.read32(INTERRUPT_MASK);
        self.registers
            .write32(INTERRUPT_MASK, mask | INTERRUPT_RX | INTERRUPT_RX_TIMEOUT);
    }

    /// Lets room in the transmit FIFO raise the interrupt: when it is drained to an eighth.
    pub fn enable_tx_interrupt(&mut self, on: bool) {
        let mask = self.registers.read32(INTERRUPT_MASK) & !INTERRUPT_TX;
        let tx = if on { INTERRUPT_TX } else { 0 };
        self.registers.write32(INTERRUPT_MASK, mask | tx);
    }

    /// Clears the receive interrupt, after the received bytes have been taken.
    pub fn acknowledge(&mut self) {
        self.registers
            .write32(INTERRUPT_CLEAR, INTERRUPT_RX | INTERRUPT_RX_TIMEOUT);
    }
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use super::*;

    fn with_uart(test: impl FnOnce(&mut Pl011, Mmio)) {
        let mut memory = [0u64; 512];
        // SAFETY: the array outlives `registers` and is used through it only.
        let registers = unsafe { Mmio::new(memory.as_mut_ptr().cast(), 4096) }.unwrap();
        test(&mut Pl011::new(registers), registers);
    }

    #[test]
    fn init_enables_the_uart_and_masks_interrupts() {
        with_uart(|uart, registers| {
            registers.write32(CONTROL, 1 << 14); // CTS flow control of firmware's
            registers.write32(INTERRUPT_MASK, 0x7ff);
            uart.init();
            assert_eq!(registers.read32(CONTROL), 0x4301);
            assert_eq!(registers.read32(INTERRUPT_MASK), 0);
            assert_eq!(registers.read32(LINE_CONTROL), 0x70);
        });
    }

    #[test]
    fn a_full_fifo_gives_up_and_recovers() {
        with_uart(|uart, registers| {
            registers.write32(FLAGS, FLAG_TX_FULL);
            assert!(!uart.try_put(b'w'));
            assert!(!uart.put(b'x'));
            assert!(uart.try_put(b'y'), "nobody waits for a dead one");
            assert!(!uart.put(b'y'));
            assert_eq!(registers.read32(DATA), 0);
            registers.write32(FLAGS, 0);
            assert!(uart.put(b'z'));
            assert_eq!(registers.read32(DATA), u32::from(b'z'));
        });
    }

    #[test]
    fn received_bytes_are_taken_without_their_error_bits() {
        with_uart(|uart, registers| {
            registers.write32(FLAGS, FLAG_RX_EMPTY);
            assert_eq!(uart.try_get(), None);
            registers.write32(FLAGS, 0);
            registers.write32(DATA, 0x541); // break and framing error bits above the byte
            assert_eq!(uart.try_get(), Some(0x41));
            uart.enable_rx_interrupt();
            assert_eq!(registers.read32(INTERRUPT_MASK), 0x50);
            uart.enable_tx_interrupt(true);
            assert_eq!(registers.read32(INTERRUPT_MASK), 0x70);
            uart.enable_tx_interrupt(false);
            assert_eq!(registers.read32(INTERRUPT_MASK), 0x50);
            uart.acknowledge();
            assert_eq!(registers.read32(INTERRUPT_CLEAR), 0x50);
        });
    }
}
