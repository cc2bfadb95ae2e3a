//! A guest's UART: an Arm PL011 (DDI 0183) as Linux's `amba-pl011` driver, its earlycon and simple guests use it.
//!
//! A byte written is gone at once: the guest finds its transmit FIFO empty, unless the console behind it
//! [has no room](Vuart::set_transmit_room). It is sent, or [kept](Vuart::poke) until its line ends. Received bytes wait in a FIFO of 16 ([`Vuart::receive`] refuses more). Like QEMU,
//! sending and receiving work without `UARTCR.UARTEN`, as early consoles expect. No modem lines, no DMA, no errors.

use alloc::collections::VecDeque;

/// Bytes a guest may send after the console said that it has no room: Linux's interrupt handler fills half a FIFO
/// without looking, and earlycon one byte.
pub const TRANSMIT_HEADROOM: usize = 16;

/// Bytes that wait here for the end of their line.
pub const KEPT_BYTES: usize = 128;

/// Depth of the receive FIFO: 16, as PeriphID revision 1 says.
const FIFO_DEPTH: usize = 16;

const DR: u64 = 0x00;
const FR: u64 = 0x18;
const ILPR: u64 = 0x20;
const IBRD: u64 = 0x24;
const FBRD: u64 = 0x28;
const LCR_H: u64 = 0x2c;
const CR: u64 = 0x30;
const IFLS: u64 = 0x34;
const IMSC: u64 = 0x38;
const RIS: u64 = 0x3c;
const MIS: u64 = 0x40;
const ICR: u64 = 0x44;
const DMACR: u64 = 0x48;
const IDS: u64 = 0xfe0;

/// `UARTPeriphID0` to 3 (part 0x011, Arm, revision 1) and `UARTPCellID0` to 3.
const ID_BYTES: [u8; 8] = [0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

// UARTFR.
const FR_CTS: u32 = 1 << 0;
const FR_DSR: u32 = 1 << 1;
const FR_DCD: u32 = 1 << 2;
const FR_BUSY: u32 = 1 << 3;
const FR_RXFE: u32 = 1 << 4;
const FR_TXFF: u32 = 1 << 5;
const FR_RXFF: u32 = 1 << 6;
const FR_TXFE: u32 = 1 << 7;

/// `UARTLCR_H.FEN`: FIFOs on.
const LCR_H_FEN: u32 = 1 << 4;
/// `UARTCR.LBE`: what is sent is received.
const CR_LBE: u32 = 1 << 7;
/// `UARTCR.TXE` and `RXE`, set by reset.
const CR_RESET: u32 = 0x300;
/// Both triggers at half a FIFO.
const IFLS_RESET: u32 = 0x12;

// Interrupts, in UARTIMSC, UARTRIS, UARTMIS, UARTICR.
const INT_RX: u32 = 1 << 4;
const INT_TX: u32 = 1 << 5;
/// Receive timeout: bytes wait, and no more came for a while.
const INT_RT: u32 = 1 << 6;
const INT_ALL: u32 = 0x7ff;

/// The UART of one VM.
#[derive(Debug)]
pub struct Vuart {
    /// What the guest has sent and nobody has got yet, and how much of it there is.
    kept: [u8; KEPT_BYTES],
    kept_bytes: usize,
    received: VecDeque<u8>,
    transmit_room: bool,
    /// `UARTRIS`.
    raised: u32,
    /// `UARTIMSC`.
    mask: u32,
    control: u32,
    line_control: u32,
    fifo_levels: u32,
    baud_integer: u32,
    baud_fraction: u32,
    low_power: u32,
    dma_control: u32,
}

impl Default for Vuart {
    fn default() -> Self {
        Self::new()
    }
}

impl Vuart {
    /// Makes a UART in its reset state.
    pub fn new() -> Self {
        Self {
            kept: [0; KEPT_BYTES],
            kept_bytes: 0,
            received: VecDeque::with_capacity(FIFO_DEPTH),
            transmit_room: true,
            raised: 0,
            mask: 0,
            control: CR_RESET,
            line_control: 0,
            fifo_levels: IFLS_RESET,
            baud_integer: 0,
            baud_fraction: 0,
            low_power: 0,
            dma_control: 0,
        }
    }

    /// Says whether the interrupt line (level-sensitive) is high.
    pub const fn irq_level(&self) -> bool {
        self.raised & self.mask != 0
    }

    /// Gives the guest a byte. Returns whether there was room: if not, keep it and try again after the guest has read.
    #[must_use]
    pub fn receive(&mut self, byte: u8) -> bool {
        if self.control & CR_LBE != 0 {
            return false;
        }
        self.push(byte)
    }

    /// Says whether [`receive`](Self::receive) would take a byte.
    pub fn can_receive(&self) -> bool {
        self.control & CR_LBE == 0 && self.received.len() < self.depth()
    }

    /// Says whether the console behind the UART has room. Without it the guest sees a full transmit FIFO; it may still
    /// send [`TRANSMIT_HEADROOM`] bytes.
    pub const fn set_transmit_room(&mut self, room: bool) {
        if room && !self.transmit_room {
            self.raised |= INT_TX;
        } else if !room {
            self.raised &= !INT_TX;
        }
        self.transmit_room = room;
    }

    /// Reads `size` bytes at `offset`. Reading the data register takes the byte out of the FIFO.
    pub fn read(&mut self, offset: u64, size: u8) -> u64 {
        if !is_access(offset, size) {
            return 0;
        }
        let value = match offset {
            DR => self.pop(),
            IDS.. => id(offset),
            _ => self.register(offset),
        };
        // A narrow access sees the low bytes.
        u64::from(value) & (u64::MAX >> (64 - u32::from(size) * 8))
    }

    /// Writes `size` bytes at `offset`. Returns the byte to send, if the guest sent one.
    #[must_use = "the guest's output is lost"]
    pub fn write(&mut self, offset: u64, size: u8, value: u64) -> Option<u8> {
        if !is_access(offset, size) {
            return None;
        }
        if offset == DR {
            return self.transmit(value as u8);
        }
        self.set_register(offset, value as u32);
        None
    }

    /// Reads the flags, which Linux reads before each byte. `None`: it is another register, or none.
    #[inline]
    pub fn peek(&self, offset: u64, size: u8) -> Option<u64> {
        (offset == FR && size <= 4).then(|| self.flags().into())
    }

    /// Writes what concerns nobody else now: a byte that does not end its line, which is [kept](Self::take_kept), or a mask
    /// that does not move the interrupt line. Returns whether it was that; if not, nothing has changed.
    #[inline]
    pub fn poke(&mut self, offset: u64, size: u8, value: u64) -> bool {
        match offset {
            DR if size <= 4 => self.keep(value as u8),
            IMSC if size <= 4 => {
                let mask = value as u32 & INT_ALL;
                let stays = self.irq_level() == (self.raised & mask != 0);
                if stays {
                    self.mask = mask;
                }
                stays
            }
            _ => false,
        }
    }

    fn keep(&mut self, byte: u8) -> bool {
        let is_sent = self.transmit_room && self.control & CR_LBE == 0;
        // Else the byte raises the interrupt.
        let is_quiet = self.raised & INT_TX != 0;
        if byte == b'\n' || !is_sent || !is_quiet {
            return false;
        }
        let count = self.kept_bytes;
        let Some(slot) = self.kept.get_mut(count) else {
            return false;
        };
        *slot = byte;
        self.kept_bytes = count + 1;
        true
    }

    /// Takes the bytes that the guest has sent and nobody has got yet.
    pub fn take_kept(&mut self) -> &[u8] {
        let count = core::mem::take(&mut self.kept_bytes);
        self.kept.get(..count).unwrap_or_default()
    }

    fn register(&self, offset: u64) -> u32 {
        match offset {
            FR => self.flags(),
            ILPR => self.low_power,
            IBRD => self.baud_integer,
            FBRD => self.baud_fraction,
            LCR_H => self.line_control,
            CR => self.control,
            IFLS => self.fifo_levels,
            IMSC => self.mask,
            RIS => self.raised,
            MIS => self.raised & self.mask,
            DMACR => self.dma_control,
            _ => 0,
        }
    }

    fn set_register(&mut self, offset: u64, value: u32) {
        match offset {
            ILPR => self.low_power = value & 0xff,
            IBRD => self.baud_integer = value & 0xffff,
            FBRD => self.baud_fraction = value & 0x3f,
            LCR_H => {
                self.line_control = value & 0xff;
                self.received.truncate(self.depth());
                self.update_receive();
            }
            CR => self.control = value & 0xff87,
            IFLS => {
                self.fifo_levels = value & 0x3f;
                self.update_receive();
            }
            IMSC => self.mask = value & INT_ALL,
            ICR => self.raised &= !(value & INT_ALL),
            DMACR => self.dma_control = value & 0x7,
            _ => {}
        }
    }

    fn transmit(&mut self, byte: u8) -> Option<u8> {
        // The FIFO has drained below its trigger again by the time the guest looks, or it is full.
        if self.transmit_room {
            self.raised |= INT_TX;
        } else {
            self.raised &= !INT_TX;
        }
        if self.control & CR_LBE != 0 {
            self.push(byte);
            return None;
        }
        Some(byte)
    }

    fn push(&mut self, byte: u8) -> bool {
        if self.received.len() >= self.depth() {
            return false;
        }
        self.received.push_back(byte);
        // The line is idle after each byte, so the timeout has always passed.
        self.raised |= INT_RT;
        if self.received.len() >= self.trigger() {
            self.raised |= INT_RX;
        }
        true
    }

    fn pop(&mut self) -> u32 {
        let byte = self.received.pop_front();
        self.update_receive();
        byte.unwrap_or(0).into()
    }

    /// Takes back the receive interrupts that have lost their reason. They are raised by bytes that arrive only: one
    /// that was cleared by `UARTICR` does not come back for the same bytes.
    fn update_receive(&mut self) {
        if self.received.len() < self.trigger() {
            self.raised &= !INT_RX;
        }
        if self.received.is_empty() {
            self.raised &= !INT_RT;
        }
    }

    /// Bytes the receive FIFO holds: one with the FIFOs off.
    const fn depth(&self) -> usize {
        if self.line_control & LCR_H_FEN != 0 {
            FIFO_DEPTH
        } else {
            1
        }
    }

    /// Bytes that raise the receive interrupt: 1/8, 1/4, 1/2, 3/4 or 7/8 of the FIFO.
    const fn trigger(&self) -> usize {
        if self.line_control & LCR_H_FEN == 0 {
            return 1;
        }
        match self.fifo_levels >> 3 & 7 {
            0 => FIFO_DEPTH / 8,
            1 => FIFO_DEPTH / 4,
            2 => FIFO_DEPTH / 2,
            3 => FIFO_DEPTH * 3 / 4,
            _ => FIFO_DEPTH * 7 / 8,
        }
    }

    fn flags(&self) -> u32 {
        let mut flags = FR_CTS | FR_DSR | FR_DCD;
        if self.received.is_empty() {
            flags |= FR_RXFE;
        } else if self.received.len() >= self.depth() {
            flags |= FR_RXFF;
        }
        flags
            | if self.transmit_room {
                FR_TXFE
            } else {
                FR_TXFF | FR_BUSY
            }
    }
}

/// Says whether a register can be accessed so: at its own address, by 8, 16 or 32 bits.
const fn is_access(offset: u64, size: u8) -> bool {
    matches!(size, 1 | 2 | 4) && offset & 3 == 0
}

fn id(offset: u64) -> u32 {
    let index = usize::try_from((offset - IDS) / 4).ok();
    index
        .and_then(|index| ID_BYTES.get(index))
        .map_or(0, |&byte| byte.into())
}

#[cfg(test)]
mod tests;
