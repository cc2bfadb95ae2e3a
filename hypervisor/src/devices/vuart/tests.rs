//! The UART as drivers use it.

use super::*;
use proptest::prelude::*;

/// Sets the UART up like Linux's driver: FIFOs on, triggers at half, receive interrupts on.
fn linux() -> Vuart {
    let mut uart = Vuart::new();
    let _ = uart.write(ICR, 2, 0x7ff);
    let _ = uart.write(IFLS, 2, 0x12);
    let _ = uart.write(LCR_H, 2, 0x70);
    let _ = uart.write(CR, 2, 0x301);
    let _ = uart.write(IMSC, 2, u64::from(INT_RX | INT_RT));
    uart
}

fn drain(uart: &mut Vuart) -> Vec<u8> {
    let mut bytes = Vec::new();
    while uart.read(FR, 2) & u64::from(FR_RXFE) == 0 {
        bytes.push(uart.read(DR, 2) as u8);
    }
    bytes
}

#[test]
fn identification_is_the_amba_pl011s() {
    let mut uart = Vuart::new();
    let ids: Vec<_> = (0..8).map(|n| uart.read(IDS + n * 4, 4)).collect();
    assert_eq!(ids, [0x11, 0x10, 0x14, 0, 0x0d, 0xf0, 0x05, 0xb1]);
    let periphid = ids.iter().take(4).rev().fold(0, |id, byte| id << 8 | byte);
    assert_eq!(periphid & 0xf_ffff, 0x4_1011, "the driver's id table");
}

#[test]
fn reset_values() {
    let mut uart = Vuart::new();
    let table = [
        (FR, 0x97),
        (CR, 0x300),
        (IFLS, 0x12),
        (LCR_H, 0),
        (IMSC, 0),
        (RIS, 0),
        (MIS, 0),
        (DMACR, 0),
    ];
    for (offset, value) in table {
        assert_eq!(uart.read(offset, 4), value, "{offset:#x}");
    }
    assert!(!uart.irq_level());
}

#[test]
fn registers_keep_the_bits_they_have() {
    let table = [
        (ILPR, 0xff),
        (IBRD, 0xffff),
        (FBRD, 0x3f),
        (LCR_H, 0xff),
        (CR, 0xff87),
        (IFLS, 0x3f),
        (IMSC, 0x7ff),
        (DMACR, 7),
        (FR, 0x97),
        (RIS, 0),
        (MIS, 0),
        (ICR, 0),
        (0x04, 0),
        (0x08, 0),
        (0x80, 0),
        (0xfdc, 0),
    ];
    for (offset, value) in table {
        let mut uart = Vuart::new();
        assert_eq!(uart.write(offset, 4, u64::MAX), None);
        assert_eq!(uart.read(offset, 4), value, "{offset:#x}");
    }
}

#[test]
fn an_early_console_sends_before_anything_is_set_up() {
    let mut uart = Vuart::new();
    for (byte, size) in [(b'a', 1), (b'b', 2), (b'c', 4)] {
        assert_eq!(uart.read(FR, 4) & u64::from(FR_TXFF | FR_BUSY), 0);
        assert_eq!(uart.write(DR, size, 0xff00 | u64::from(byte)), Some(byte));
    }
    assert!(!uart.irq_level());
}

#[test]
fn output_by_interrupts_goes_on_until_the_driver_stops_it() {
    let mut uart = linux();
    // pl011_start_tx: fill the FIFO, then unmask.
    assert_eq!(uart.write(DR, 2, b'a'.into()), Some(b'a'));
    let _ = uart.write(IMSC, 2, u64::from(INT_RX | INT_RT | INT_TX));
    assert!(uart.irq_level());
    // pl011_int writes more without clearing the transmit interrupt...
    assert_eq!(uart.read(MIS, 2), u64::from(INT_TX));
    assert_eq!(uart.write(DR, 2, b'b'.into()), Some(b'b'));
    assert!(uart.irq_level());
    // ...and masks it when nothing is left.
    let _ = uart.write(IMSC, 2, u64::from(INT_RX | INT_RT));
    assert!(!uart.irq_level());
}

#[test]
fn a_cleared_transmit_interrupt_comes_back_with_the_next_byte() {
    let mut uart = linux();
    let _ = uart.write(IMSC, 2, u64::from(INT_TX));
    assert!(!uart.irq_level(), "not before anything was sent");
    let _ = uart.write(DR, 2, 0);
    let _ = uart.write(ICR, 2, u64::from(INT_TX));
    assert!(!uart.irq_level());
    let _ = uart.write(DR, 2, 0);
    assert!(uart.irq_level());
}

#[test]
fn a_console_without_room_is_a_full_fifo_and_loses_nothing() {
    let mut uart = linux();
    let _ = uart.write(IMSC, 2, u64::from(INT_TX));
    let _ = uart.write(DR, 2, 1);
    uart.set_transmit_room(false);
    assert!(!uart.irq_level(), "a full FIFO asks for nothing");
    let flags = uart.read(FR, 2) as u32;
    assert_eq!(flags & (FR_TXFF | FR_TXFE | FR_BUSY), FR_TXFF | FR_BUSY);
    assert_eq!(
        uart.write(DR, 2, 2),
        Some(2),
        "the driver does not always look"
    );
    assert!(!uart.irq_level());
    uart.set_transmit_room(true);
    assert!(uart.irq_level(), "go on");
    assert_eq!(
        uart.read(FR, 2) as u32 & (FR_TXFF | FR_TXFE | FR_BUSY),
        FR_TXFE
    );
    let _ = uart.write(ICR, 2, u64::from(INT_TX));
    uart.set_transmit_room(true);
    assert!(!uart.irq_level(), "no news");
}

#[test]
fn one_byte_of_input_is_told_by_the_timeout_interrupt() {
    let mut uart = linux();
    assert!(uart.receive(b'x'));
    assert_eq!(uart.read(MIS, 2), u64::from(INT_RT));
    assert!(uart.irq_level());
    assert_eq!(uart.read(DR, 2), u64::from(b'x'));
    assert!(!uart.irq_level(), "reading the last byte clears it");
}

#[test]
fn the_receive_interrupt_follows_the_trigger_level() {
    for (select, trigger) in [(0, 2), (1, 4), (2, 8), (3, 12), (4, 14), (7, 14)] {
        let mut uart = linux();
        let _ = uart.write(IFLS, 2, select << 3);
        for count in 1..=FIFO_DEPTH {
            assert!(uart.receive(0));
            assert_eq!(
                uart.read(RIS, 2) as u32 & INT_RX != 0,
                count >= trigger,
                "{count} of {trigger}"
            );
        }
        for count in (0..FIFO_DEPTH).rev() {
            uart.read(DR, 2);
            assert_eq!(
                uart.read(RIS, 2) as u32 & INT_RX != 0,
                count >= trigger,
                "{count} of {trigger}"
            );
        }
    }
}

#[test]
fn a_full_receive_fifo_pushes_back() {
    let mut uart = linux();
    for byte in 0..16 {
        assert!(uart.can_receive() && uart.receive(byte));
    }
    assert!(!uart.can_receive() && !uart.receive(16));
    assert_eq!(uart.read(FR, 2) as u32 & (FR_RXFF | FR_RXFE), FR_RXFF);
    assert_eq!(drain(&mut uart), (0..16).collect::<Vec<_>>());
    assert!(uart.can_receive());
}

#[test]
fn without_fifos_one_byte_is_held() {
    let mut uart = Vuart::new();
    assert!(uart.receive(b'a'));
    assert_eq!(uart.read(RIS, 2) as u32, INT_RX | INT_RT);
    assert_eq!(uart.read(FR, 2) as u32 & (FR_RXFF | FR_RXFE), FR_RXFF);
    assert!(!uart.receive(b'b'));
    let _ = uart.write(LCR_H, 2, 0x70);
    assert_eq!(uart.read(FR, 2) as u32 & (FR_RXFF | FR_RXFE), 0);
    assert!(
        uart.receive(b'b'),
        "the byte stays and there is room for more"
    );
    assert_eq!(drain(&mut uart), b"ab");
}

#[test]
fn turning_the_fifos_off_keeps_the_oldest_byte() {
    let mut uart = linux();
    for byte in *b"abc" {
        assert!(uart.receive(byte));
    }
    let _ = uart.write(LCR_H, 2, 0x60);
    assert_eq!(drain(&mut uart), b"a");
    assert_eq!(uart.read(RIS, 2), 0);
}

#[test]
fn input_before_the_driver_starts_does_not_leave_an_interrupt_stuck() {
    let mut uart = Vuart::new();
    assert!(uart.receive(b'a'));
    // pl011_hwinit and pl011_enable_interrupts: clear, drain, unmask.
    let _ = uart.write(LCR_H, 2, 0x70);
    let _ = uart.write(ICR, 2, u64::from(INT_RX | INT_RT));
    drain(&mut uart);
    let _ = uart.write(IMSC, 2, u64::from(INT_RX | INT_RT));
    assert!(!uart.irq_level());
    assert!(uart.receive(b'b'));
    assert!(uart.irq_level());
}

#[test]
fn reading_an_empty_fifo_gives_zero() {
    let mut uart = linux();
    assert_eq!(uart.read(DR, 4), 0);
    assert_eq!(uart.read(RIS, 4), 0);
}

#[test]
fn loopback_receives_what_it_sends_and_nothing_else() {
    let mut uart = linux();
    let _ = uart.write(CR, 2, 0x381);
    assert_eq!(uart.write(DR, 2, b'x'.into()), None);
    assert!(!uart.can_receive() && !uart.receive(b'y'));
    assert_eq!(drain(&mut uart), b"x");
    for _ in 0..40 {
        assert_eq!(uart.write(DR, 2, 0), None);
    }
    assert_eq!(drain(&mut uart).len(), FIFO_DEPTH);
}

#[test]
fn odd_accesses_are_raz_wi() {
    let mut uart = linux();
    assert!(uart.receive(b'x'));
    for (offset, size) in [(1, 1), (2, 2), (0, 8), (0x19, 1), (0, 3), (0, 0), (0, 64)] {
        assert_eq!(uart.read(offset, size), 0, "{offset:#x} by {size}");
        assert_eq!(
            uart.write(offset, size, 0x55),
            None,
            "{offset:#x} by {size}"
        );
    }
    assert_eq!(drain(&mut uart), b"x");
}

proptest! {
    /// Whatever the guest writes: no panic, every byte arrives in order or is refused, and nothing waits unannounced
    /// while the receive interrupts are on and were not cleared by hand.
    #[test]
    fn input_arrives_in_order(ops in prop::collection::vec((0..4_u8, 0..0x1010_u64, any::<u8>(), any::<u32>()), 0..200)) {
        let mut uart = linux();
        let mut expected = alloc::collections::VecDeque::new();
        for (what, offset, size, value) in ops {
            match what {
                0 | 1 if uart.receive(value as u8) => expected.push_back(value as u8),
                0 | 1 => {}
                2 if uart.read(FR, 4) as u32 & FR_RXFE == 0 => {
                    let byte = uart.read(DR, 4) as u8;
                    prop_assert_eq!(Some(byte), expected.pop_front());
                }
                // Line control and loopback change what is in the FIFO.
                _ if ![DR, LCR_H, CR, ICR, IMSC].contains(&offset) => {
                    prop_assert_eq!(uart.write(offset, size, value.into()), None);
                    uart.read(offset, size);
                }
                _ => {}
            }
            prop_assert_eq!(uart.irq_level(), !expected.is_empty());
        }
        prop_assert_eq!(drain(&mut uart), Vec::from(expected));
    }

    /// No sequence of accesses panics.
    #[test]
    fn any_access_is_answered(ops in prop::collection::vec((any::<bool>(), 0..0x1010_u64, any::<u8>(), any::<u64>()), 0..100)) {
        let mut uart = Vuart::new();
        for (write, offset, size, value) in ops {
            let size = if size & 1 == 0 { size >> 6 } else { size };
            if write {
                let _ = uart.write(offset, size, value);
            } else {
                uart.read(offset, size);
            }
            let _ = uart.receive(value as u8);
            uart.set_transmit_room(value & 1 == 0);
        }
    }
}
