//! The device tree of a guest: QEMU virt's machine, with what this hypervisor gives of it.
//!
//! RAM in one piece, CPUs by PSCI over HVC, GICv3, the architectural timer, a PL011, and `/chosen`. All numbers come
//! from the same constants as the devices'.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use dtoolkit::ToPropertyValue;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use stage2::addr::PAGE_SIZE;

use crate::devices::{AFFINITY_MASK, mmio};
use crate::image::RAM_BASE;

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
    let mut tree = DeviceTree::new();
    tree.root = Node::new("")
        .with("#address-cells", 2_u32)
        .with("#size-cells", 2_u32)
        .with("compatible", "linux,dummy-virt")
        .with("model", "tagvisor,virt")
        .with("interrupt-parent", GIC_PHANDLE)
        .child(chosen(machine))
        .child(Node::new("aliases").with("serial0", uart_path().as_str()))
        .child(memory(machine))
        .child(cpus(machine))
        .child(psci())
        .child(gic(machine))
        .child(timer())
        .child(clock(machine))
        .child(uart())
        .0;
    let fdt = tree.to_dtb();
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

/// A node under construction. Its names are ours, so they are not checked again.
struct Node(DeviceTreeNode);

impl Node {
    fn new(name: impl Into<String>) -> Self {
        Self(DeviceTreeNode::new_unchecked(name))
    }

    fn with(mut self, name: &str, value: impl ToPropertyValue) -> Self {
        self.0
            .add_property(DeviceTreeProperty::new_unchecked(name, value));
        self
    }

    /// Adds a property that is there or not.
    fn flag(self, name: &str) -> Self {
        self.with(name, [0_u8; 0])
    }

    fn child(mut self, child: Self) -> Self {
        self.0.add_child(child.0);
        self
    }
}

fn chosen(machine: &GuestMachine<'_>) -> Node {
    let mut node = Node::new("chosen")
        .with("stdout-path", uart_path().as_str())
        .with("bootargs", machine.bootargs);
    if let Some(initrd) = &machine.initrd {
        node = node
            .with("linux,initrd-start", initrd.start)
            .with("linux,initrd-end", initrd.end);
    }
    if !machine.rng_seed.is_empty() {
        node = node.with("rng-seed", machine.rng_seed);
    }
    match machine.kaslr_seed {
        Some(seed) => node.with("kaslr-seed", seed),
        None => node,
    }
}

fn memory(machine: &GuestMachine<'_>) -> Node {
    Node::new(format!("memory@{RAM_BASE:x}"))
        .with("device_type", "memory")
        .with("reg", cells(&[RAM_BASE, machine.memory_bytes]))
}

fn cpus(machine: &GuestMachine<'_>) -> Node {
    let affinities = machine.mpidrs.iter().map(|mpidr| mpidr & AFFINITY_MASK);
    // One cell will do unless somebody has an Aff3 (Linux's arm/cpus.yaml).
    let wide = affinities.clone().any(|affinity| affinity >> 32 != 0);
    let mut node = Node::new("cpus")
        .with("#address-cells", if wide { 2_u32 } else { 1 })
        .with("#size-cells", 0_u32);
    for affinity in affinities {
        let cpu = Node::new(format!("cpu@{affinity:x}"))
            .with("device_type", "cpu")
            .with("compatible", "arm,armv8")
            .with("enable-method", "psci");
        node = node.child(if wide {
            cpu.with("reg", affinity)
        } else {
            cpu.with("reg", affinity as u32)
        });
    }
    node
}

fn psci() -> Node {
    Node::new("psci")
        .with("compatible", "arm,psci-1.0\0arm,psci-0.2")
        .with("method", "hvc")
}

fn gic(machine: &GuestMachine<'_>) -> Node {
    let redistributors = mmio::GICR_SIZE * machine.mpidrs.len() as u64;
    let reg = [
        mmio::GICD.start,
        mmio::GICD.end - mmio::GICD.start,
        mmio::GICR_BASE,
        redistributors,
    ];
    Node::new(format!("intc@{:x}", mmio::GICD.start))
        .with("compatible", "arm,gic-v3")
        .with("#interrupt-cells", 3_u32)
        .with("#address-cells", 0_u32)
        .flag("interrupt-controller")
        .with("#redistributor-regions", 1_u32)
        .with("reg", cells(&reg))
        .with("phandle", GIC_PHANDLE)
}

fn timer() -> Node {
    let interrupts = TIMER_PPIS.map(|ppi| [GIC_PPI, ppi, LEVEL_HIGH]);
    Node::new("timer")
        .with("compatible", "arm,armv8-timer\0arm,armv7-timer")
        .with("interrupts", interrupts.as_flattened())
        .flag("always-on")
}

fn clock(machine: &GuestMachine<'_>) -> Node {
    Node::new("apb-pclk")
        .with("compatible", "fixed-clock")
        .with("#clock-cells", 0_u32)
        .with("clock-frequency", machine.uart_clock_hz)
        .with("clock-output-names", "clk24mhz")
        .with("phandle", CLOCK_PHANDLE)
}

fn uart() -> Node {
    let spi = u32::from(mmio::UART_INTID) - 32;
    let reg = [mmio::UART.start, mmio::UART.end - mmio::UART.start];
    Node::new(uart_name())
        .with("compatible", "arm,pl011\0arm,primecell")
        .with("reg", cells(&reg))
        .with("interrupts", [GIC_SPI, spi, LEVEL_HIGH])
        .with("clocks", [CLOCK_PHANDLE, CLOCK_PHANDLE])
        .with("clock-names", "uartclk\0apb_pclk")
}

fn uart_name() -> String {
    format!("pl011@{:x}", mmio::UART.start)
}

fn uart_path() -> String {
    format!("/{}", uart_name())
}

/// Returns 64-bit numbers as pairs of cells.
fn cells(numbers: &[u64]) -> Vec<u8> {
    numbers
        .iter()
        .flat_map(|number| number.to_be_bytes())
        .collect()
}

#[cfg(test)]
mod tests;
