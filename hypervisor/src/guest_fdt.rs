//! The device tree of a guest: QEMU virt's machine, with what this hypervisor gives of it.
//!
//! RAM in one piece, of which the page for stolen time is reserved, CPUs by PSCI over HVC, GICv3, the architectural timer, a PL011, and `/chosen`. All numbers come
//! from the same constants as the devices'.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use stage2::addr::PAGE_SIZE;
use writer::FdtWriter;

use crate::devices::{AFFINITY_MASK, mmio};
use crate::image::{self, RAM_BASE};

mod writer;

/// The clock of QEMU virt's UART, in Hz.
pub const UART_CLOCK_HZ: u32 = 24_000_000;
/// The most a device tree may take: Linux maps no more of it (arm64 `booting.rst`).
pub const MAX_FDT_BYTES: usize = 0x20_0000;

const GIC_PHANDLE: u32 = 1;
const CLOCK_PHANDLE: u32 = 2;
/// First cell of an interrupt specifier.
const GIC_SPI: u32 = 0;
const GIC_PPI: u32 = 1;
/// Third cell: level-sensitive, active high.
const LEVEL_HIGH: u32 = 4;
/// The PPIs of the secure, non-secure physical, virtual and hypervisor timers, as the binding orders them.
const TIMER_PPIS: [u32; 4] = [13, 14, 11, 10];

/// What a guest's device tree describes.
#[derive(Clone, Debug)]
pub struct GuestMachine<'a> {
    /// Bytes of RAM from [`RAM_BASE`] on, whole 4 KiB pages.
    pub memory_bytes: u64,
    /// The affinities of its virtual CPUs, the boot CPU first; other bits of `MPIDR_EL1` are left out.
    pub mpidrs: &'a [u64],
    /// Where its initrd is, if it has one.
    pub initrd: Option<Range<u64>>,
    /// The command line.
    pub bootargs: &'a str,
    /// Random bytes for the kernel's generator; empty for none.
    pub rng_seed: &'a [u8],
    /// Random bits for the kernel's place in memory; `None` keeps it where it is linked.
    pub kaslr_seed: Option<u64>,
    /// The clock of the UART in Hz, usually [`UART_CLOCK_HZ`].
    pub uart_clock_hz: u32,
}

/// The machine cannot be described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FdtError {
    /// RAM is empty, not of whole pages, or reaches beyond the address space.
    Memory(u64),
    /// There is no virtual CPU.
    NoVcpus,
    /// Two virtual CPUs have this affinity.
    SameAffinity(u64),
    /// The initrd is empty or not in RAM.
    Initrd(Range<u64>),
    /// The command line has a NUL at this byte.
    Bootargs(usize),
    /// The device tree would take this many bytes, more than [`MAX_FDT_BYTES`].
    TooLarge(usize),
}

impl fmt::Display for FdtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(bytes) => write!(
                f,
                "{bytes} bytes of guest memory: take a multiple of 4096 that is not 0"
            ),
            Self::NoVcpus => write!(f, "a guest without vCPUs: take at least one"),
            Self::SameAffinity(affinity) => {
                write!(f, "two vCPUs of a guest with the affinity {affinity:#x}")
            }
            Self::Initrd(range) => write!(
                f,
                "the initrd at {:#x}..{:#x} is not in the guest's memory: give it more",
                range.start, range.end
            ),
            Self::Bootargs(at) => write!(f, "the command line has a NUL at byte {at}: remove it"),
            Self::TooLarge(bytes) => write!(
                f,
                "the guest's device tree takes {bytes} bytes, more than {MAX_FDT_BYTES}: \
                 shorten the command line"
            ),
        }
    }
}

impl core::error::Error for FdtError {}

/// Writes the device tree of a guest, version 17.
///
/// # Errors
/// What of `machine` makes no sense; see [`FdtError`].
pub fn build(machine: &GuestMachine<'_>) -> Result<Vec<u8>, FdtError> {
    check(machine)?;
    let mut fdt = FdtWriter::new();
    fdt.begin("");
    fdt.cells("#address-cells", &[2]);
    fdt.cells("#size-cells", &[2]);
    fdt.string("compatible", "linux,dummy-virt");
    fdt.string("model", "tagvisor,virt");
    fdt.cells("interrupt-parent", &[GIC_PHANDLE]);
    chosen(&mut fdt, machine);
    aliases(&mut fdt);
    memory(&mut fdt, machine);
    cpus(&mut fdt, machine);
    psci(&mut fdt);
    gic(&mut fdt, machine);
    timer(&mut fdt);
    clock(&mut fdt, machine);
    uart(&mut fdt);
    fdt.end();
    let fdt = fdt.finish([image::pv_time_page(machine.memory_bytes), PAGE_SIZE]);
    if fdt.len() > MAX_FDT_BYTES {
        return Err(FdtError::TooLarge(fdt.len()));
    }
    Ok(fdt)
}

fn check(machine: &GuestMachine<'_>) -> Result<(), FdtError> {
    let bytes = machine.memory_bytes;
    let end = RAM_BASE.checked_add(bytes);
    let Some(end) = end.filter(|_| bytes != 0 && bytes.is_multiple_of(PAGE_SIZE)) else {
        return Err(FdtError::Memory(bytes));
    };
    if machine.mpidrs.is_empty() {
        return Err(FdtError::NoVcpus);
    }
    let mut affinities = machine.mpidrs.iter().map(|mpidr| mpidr & AFFINITY_MASK);
    while let Some(affinity) = affinities.next() {
        if affinities.clone().any(|other| other == affinity) {
            return Err(FdtError::SameAffinity(affinity));
        }
    }
    if let Some(initrd) = &machine.initrd
        && (initrd.is_empty() || initrd.start < RAM_BASE || initrd.end > end)
    {
        return Err(FdtError::Initrd(initrd.clone()));
    }
    // Lengths that could not be written at all are refused before anything is.
    let open = machine
        .bootargs
        .len()
        .saturating_add(machine.rng_seed.len());
    if open > MAX_FDT_BYTES {
        return Err(FdtError::TooLarge(open));
    }
    match machine.bootargs.find('\0') {
        Some(at) => Err(FdtError::Bootargs(at)),
        None => Ok(()),
    }
}

fn chosen(fdt: &mut FdtWriter, machine: &GuestMachine<'_>) {
    fdt.begin("chosen");
    fdt.string("stdout-path", &uart_path());
    fdt.string("bootargs", machine.bootargs);
    if let Some(initrd) = &machine.initrd {
        fdt.numbers("linux,initrd-start", &[initrd.start]);
        fdt.numbers("linux,initrd-end", &[initrd.end]);
    }
    if !machine.rng_seed.is_empty() {
        fdt.property("rng-seed", machine.rng_seed);
    }
    if let Some(seed) = machine.kaslr_seed {
        fdt.numbers("kaslr-seed", &[seed]);
    }
    fdt.end();
}

fn aliases(fdt: &mut FdtWriter) {
    fdt.begin("aliases");
    fdt.string("serial0", &uart_path());
    fdt.end();
}

fn memory(fdt: &mut FdtWriter, machine: &GuestMachine<'_>) {
    fdt.begin(&format!("memory@{RAM_BASE:x}"));
    fdt.string("device_type", "memory");
    fdt.numbers("reg", &[RAM_BASE, machine.memory_bytes]);
    fdt.end();
}

fn cpus(fdt: &mut FdtWriter, machine: &GuestMachine<'_>) {
    let affinities = machine.mpidrs.iter().map(|mpidr| mpidr & AFFINITY_MASK);
    // One cell will do unless somebody has an Aff3 (Linux's arm/cpus.yaml).
    let wide = affinities.clone().any(|affinity| affinity >> 32 != 0);
    fdt.begin("cpus");
    fdt.cells("#address-cells", &[if wide { 2 } else { 1 }]);
    fdt.cells("#size-cells", &[0]);
    for affinity in affinities {
        fdt.begin(&format!("cpu@{affinity:x}"));
        fdt.string("device_type", "cpu");
        fdt.string("compatible", "arm,armv8");
        fdt.string("enable-method", "psci");
        if wide {
            fdt.numbers("reg", &[affinity]);
        } else {
            fdt.cells("reg", &[affinity as u32]);
        }
        fdt.end();
    }
    fdt.end();
}

fn psci(fdt: &mut FdtWriter) {
    fdt.begin("psci");
    fdt.string("compatible", "arm,psci-1.0\0arm,psci-0.2");
    fdt.string("method", "hvc");
    fdt.end();
}

fn gic(fdt: &mut FdtWriter, machine: &GuestMachine<'_>) {
    let redistributors = mmio::GICR_SIZE * machine.mpidrs.len() as u64;
    let reg = [
        mmio::GICD.start,
        mmio::GICD.end - mmio::GICD.start,
        mmio::GICR_BASE,
        redistributors,
    ];
    fdt.begin(&format!("intc@{:x}", mmio::GICD.start));
    fdt.string("compatible", "arm,gic-v3");
    fdt.cells("#interrupt-cells", &[3]);
    fdt.cells("#address-cells", &[0]);
    fdt.property("interrupt-controller", &[]);
    fdt.cells("#redistributor-regions", &[1]);
    fdt.numbers("reg", &reg);
    fdt.cells("phandle", &[GIC_PHANDLE]);
    fdt.end();
}

fn timer(fdt: &mut FdtWriter) {
    let interrupts = TIMER_PPIS.map(|ppi| [GIC_PPI, ppi, LEVEL_HIGH]);
    fdt.begin("timer");
    fdt.string("compatible", "arm,armv8-timer\0arm,armv7-timer");
    fdt.cells("interrupts", interrupts.as_flattened());
    fdt.property("always-on", &[]);
    fdt.end();
}

fn clock(fdt: &mut FdtWriter, machine: &GuestMachine<'_>) {
    fdt.begin("apb-pclk");
    fdt.string("compatible", "fixed-clock");
    fdt.cells("#clock-cells", &[0]);
    fdt.cells("clock-frequency", &[machine.uart_clock_hz]);
    fdt.string("clock-output-names", "clk24mhz");
    fdt.cells("phandle", &[CLOCK_PHANDLE]);
    fdt.end();
}

fn uart(fdt: &mut FdtWriter) {
    let spi = u32::from(mmio::UART_INTID) - 32;
    fdt.begin(&uart_name());
    fdt.string("compatible", "arm,pl011\0arm,primecell");
    fdt.numbers(
        "reg",
        &[mmio::UART.start, mmio::UART.end - mmio::UART.start],
    );
    fdt.cells("interrupts", &[GIC_SPI, spi, LEVEL_HIGH]);
    fdt.cells("clocks", &[CLOCK_PHANDLE, CLOCK_PHANDLE]);
    fdt.string("clock-names", "uartclk\0apb_pclk");
    fdt.end();
}

fn uart_name() -> String {
    format!("pl011@{:x}", mmio::UART.start)
}

fn uart_path() -> String {
    format!("/{}", uart_name())
}

#[cfg(test)]
mod tests;
