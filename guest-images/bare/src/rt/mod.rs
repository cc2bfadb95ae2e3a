//! The run time: from the first instruction to `main`, and what the programs do to the machine.
//!
//! One CPU unless `smp` starts another, interrupts masked. Statics that the vectors and the program share are atomics, used with plain
//! loads and stores only (exclusives need the MMU).

pub mod clock;
pub mod console;
pub mod gic;
pub mod mmu;
pub mod mte;
pub mod pages;
pub mod psci;
pub mod smp;
mod start;
pub mod trap;

use crate::fdt::{self, Fdt};

/// Reads a system register.
#[macro_export]
macro_rules! read_sys {
    ($name:expr) => {{
        let value: u64;
        // SAFETY: reading a register changes no memory; one that traps is answered by the vectors, which skip it.
        unsafe { core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack)) };
        value
    }};
}

/// Writes a system register, and waits until it counts.
#[macro_export]
macro_rules! write_sys {
    ($name:expr, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: the programs own the whole machine; none of the registers they write changes where their code, stack or
        // data lie (`mmu` does that itself).
        unsafe { core::arch::asm!(concat!("msr ", $name, ", {}"), "isb", in(reg) value, options(nostack)) };
    }};
}

/// Executes instructions without operands.
#[macro_export]
macro_rules! execute {
    ($($line:expr),+) => {{
        // SAFETY: barriers, hints, TLB and cache maintenance: none changes the contents of memory or a register.
        unsafe { core::arch::asm!($($line),+, options(nostack)) };
    }};
}

/// Prints one line.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => { $crate::rt::console::line(format_args!($($text)*)) };
}

/// Marks a place for the plugin that counts instructions: HINT `$number`, #0x60 to #0x7f.
#[macro_export]
macro_rules! mark {
    ($number:literal) => {
        $crate::execute!(concat!("hint #", $number))
    };
}

/// Makes `$main`, a `fn(Boot) -> !`, the program's first function.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[unsafe(no_mangle)]
        extern "C" fn bare_main(dtb: u64) -> ! {
            let main: fn($crate::rt::Boot) -> ! = $main;
            main($crate::rt::Boot::new(dtb))
        }
    };
}

/// What a program was given.
pub struct Boot {
    /// The value of x0 at the first instruction.
    pub x0: u64,
    /// The device tree, if x0 or the start of RAM has one.
    pub tree: Option<Fdt<'static>>,
}

/// Where the `virt` machine has RAM; QEMU puts the device tree there for an ELF file.
pub const RAM_BASE: u64 = 0x4000_0000;

/// A device tree is no longer, in bytes.
const LONGEST_TREE: u64 = 2 << 20;

impl Boot {
    /// Looks for the device tree at `x0`, then at the start of RAM.
    pub fn new(x0: u64) -> Self {
        let tree = [x0, RAM_BASE]
            .into_iter()
            .filter(|&at| at >= RAM_BASE && at.is_multiple_of(8))
            .find_map(tree_at);
        Self { x0, tree }
    }

    /// RAM as base and bytes; (0, 0) without a device tree.
    pub fn memory(&self) -> (u64, u64) {
        self.tree.and_then(|tree| tree.memory()).unwrap_or_default()
    }

    /// The command line; empty without a device tree.
    pub fn bootargs(&self) -> &'static str {
        self.tree.map_or("", |tree| tree.bootargs())
    }
}

impl Boot {
    /// The larger of the two parts of RAM between program, device tree and end, that nobody has touched; `align` is a power
    /// of two, both ends are multiples of it.
    pub fn free(&self, align: u64) -> (u64, u64) {
        let (base, bytes) = self.memory();
        let (start, end) = (image_end(), base + bytes);
        let tree = if (start..end).contains(&self.x0) {
            (self.x0, self.x0 + LONGEST_TREE)
        } else {
            (end, end)
        };
        let inside =
            |from: u64, to: u64| (from.next_multiple_of(align), to.min(end) & !(align - 1));
        let (below, above) = (inside(start, tree.0), inside(tree.1, end));
        if below.1.saturating_sub(below.0) >= above.1.saturating_sub(above.0) {
            below
        } else {
            above
        }
    }
}

/// The device tree at `at`, if its header is there.
fn tree_at(at: u64) -> Option<Fdt<'static>> {
    let start = at as *const u8;
    // SAFETY: `at` is 8-aligned and in RAM, where a loader put either a device tree or nothing (then it reads as any
    // bytes); nobody writes there while the program runs.
    let head = unsafe { core::slice::from_raw_parts(start, 8) };
    let bytes = fdt::total_size(head)?;
    // SAFETY: the header names the length of the blob that the loader put there.
    Fdt::new(unsafe { core::slice::from_raw_parts(start, bytes) })
}

/// The exception level, 1 or 2.
pub fn current_el() -> u64 {
    read_sys!("CurrentEL") >> 2 & 3
}

/// Whether `address` lies in the program.
pub fn is_image(address: u64) -> bool {
    let start: u64;
    // SAFETY: takes the address of a symbol.
    unsafe { core::arch::asm!("adrp {}, _start", out(reg) start, options(nomem, nostack)) };
    (start..image_end()).contains(&address)
}

/// The first byte after the program, its data and its stack.
pub fn image_end() -> u64 {
    let end: u64;
    // SAFETY: takes the address of a symbol of the linker script.
    unsafe { core::arch::asm!("adrp {}, __image_end", out(reg) end, options(nomem, nostack)) };
    end
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    say!("PANIC {info}");
    psci::system_off()
}
