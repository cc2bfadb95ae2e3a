//! The machine's console: the one UART behind its lock, and the logger over it.

use core::fmt;

use log::{Level, LevelFilter, Log, Metadata, Record};
use platform::pl011::Pl011;
use spin::mutex::TicketMutex;

use crate::console::{Console, Uart};

impl Uart for Pl011 {
    fn try_put(&mut self, byte: u8) -> bool {
        Pl011::try_put(self, byte)
    }

    fn put(&mut self, byte: u8) {
        // A dead UART must not stop the machine: what it does not take is lost.
        let _ = Pl011::put(self, byte);
    }

    fn tell_room(&mut self, on: bool) {
        self.enable_tx_interrupt(on);
    }

    fn listen(&mut self) {
        self.enable_rx_interrupt();
    }

    fn get(&mut self) -> Option<u8> {
        self.try_get()
    }
}

/// The console. Lock rank: last.
pub static CONSOLE: TicketMutex<Console<Pl011>> = TicketMutex::new(Console::new());

/// Prints a line of tagvisor's own that is no log message.
#[inline(never)]
pub fn line(text: fmt::Arguments<'_>) {
    CONSOLE.lock().line(text);
}

struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = match record.level() {
                Level::Error => "ERROR",
                Level::Warn => "WARN",
                Level::Info => "INFO",
                Level::Debug => "DEBUG",
                Level::Trace => "TRACE",
            };
            line(format_args!("[tagvisor] {level} {}", record.args()));
        }
    }

    fn flush(&self) {}
}

/// Sends log messages to the console from now on.
pub fn init_logger() {
    static LOGGER: Logger = Logger;
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}
