//! As much of GICv3 and the virtual timer as the programs need.

use core::arch::asm;

use crate::rt::mte;
use crate::{read_sys, write_sys};

/// The distributor.
pub const DISTRIBUTOR: u64 = 0x0800_0000;
/// The first CPU's redistributor.
pub const REDISTRIBUTOR: u64 = 0x080a_0000;
/// From a redistributor to its frame for SGIs and PPIs.
const SGI_FRAME: u64 = 0x1_0000;
/// From one CPU's redistributor to the next one's.
const NEXT_REDISTRIBUTOR: u64 = 0x2_0000;

/// The virtual timer's INTID.
pub const TIMER: u64 = 27;
/// The physical timer's INTID.
pub const PHYSICAL_TIMER: u64 = 30;
/// The INTID that says "nothing pending".
pub const SPURIOUS: u64 = 1023;

/// Reads 32 bits of a device, by one plain load: a compiler might choose one with write-back, which no hypervisor has to
/// emulate.
pub fn read32(address: u64) -> u32 {
    let value: u32;
    // SAFETY: a device register, mapped as device memory; an access that aborts is skipped by the vectors.
    unsafe { asm!("ldr {v:w}, [{a}]", v = out(reg) value, a = in(reg) address, options(nostack)) };
    value
}

/// Writes 32 bits of a device, by one plain store.
pub fn write32(address: u64, value: u32) {
    // SAFETY: as for `read32`; no device of the programs' machine does DMA.
    unsafe { asm!("str {v:w}, [{a}]", v = in(reg) value, a = in(reg) address, options(nostack)) };
}

/// Enables group 1, and SGIs, the virtual timer and SPI 40 for the first CPU.
pub fn enable() {
    write32(DISTRIBUTOR, 0x12); // ARE_NS, EnableGrp1
    write32(DISTRIBUTOR + 0x84, !0); // GICD_IGROUPR1
    enable_spi(40);
    enable_cpu(0);
}

/// Enables SGIs and the virtual timer for CPU `cpu`, which executes this.
pub fn enable_cpu(cpu: u64) {
    let redistributor = REDISTRIBUTOR + cpu * NEXT_REDISTRIBUTOR;
    write_sys!("S3_0_C12_C12_5", read_sys!("S3_0_C12_C12_5") | 1); // ICC_SRE_EL1.SRE
    write32(redistributor + 0x14, 0); // GICR_WAKER: awake
    write32(redistributor + SGI_FRAME + 0x80, !0); // GICR_IGROUPR0
    write32(redistributor + SGI_FRAME + 0x100, 1 << TIMER | 0xffff); // GICR_ISENABLER0
    write_sys!("S3_0_C4_C6_0", 0xff); // ICC_PMR_EL1
    write_sys!("S3_0_C12_C12_7", 1); // ICC_IGRPEN1_EL1
}

/// Whether private interrupt `id` of CPU `cpu` is active, as its redistributor says.
pub fn is_active(cpu: u64, id: u64) -> bool {
    let redistributor = REDISTRIBUTOR + cpu * NEXT_REDISTRIBUTOR;
    read32(redistributor + SGI_FRAME + 0x300) >> id & 1 != 0 // GICR_ISACTIVER0
}

/// Enables the first CPU's private interrupt `id`, 16 to 31.
pub fn enable_ppi(id: u64) {
    write32(REDISTRIBUTOR + SGI_FRAME + 0x100, 1 << (id & 31));
}

/// Enables shared interrupt `id`, 32 to 63, for the first CPU.
pub fn enable_spi(id: u64) {
    mte::write(DISTRIBUTOR + 0x6000 + 8 * id, 0); // GICD_IROUTER
    write32(DISTRIBUTOR + 0x104, 1 << (id & 31)); // GICD_ISENABLER1
}

/// Makes INTID 40 pending.
pub fn raise_spi() {
    write32(DISTRIBUTOR + 0x204, 1 << 8); // GICD_ISPENDR1
}

/// Acknowledges the highest pending interrupt; [`SPURIOUS`] if there is none.
pub fn acknowledge() -> u64 {
    read_sys!("S3_0_C12_C12_0") & 0xff_ffff // ICC_IAR1_EL1
}

/// Ends interrupt `id`.
pub fn end(id: u64) {
    write_sys!("S3_0_C12_C12_1", id); // ICC_EOIR1_EL1
}

/// Sends SGI `id` to the CPUs of `targets` in affinity 0.0.0.
pub fn send_sgi(id: u64, targets: u64) {
    write_sys!("S3_0_C12_C11_5", id << 24 | targets); // ICC_SGI1R_EL1
}

/// Whether an interrupt waits for this CPU (ISR_EL1.I).
pub fn is_pending() -> bool {
    read_sys!("ISR_EL1") & 1 << 7 != 0
}

/// Starts the virtual timer, to fire in `ticks`.
pub fn start_timer(ticks: u64) {
    // Not TVAL: it has 32 bits, 2 s at 1 GHz.
    let at = read_sys!("CNTVCT_EL0").wrapping_add(ticks);
    write_sys!("CNTV_CVAL_EL0", at);
    write_sys!("CNTV_CTL_EL0", 1);
}

/// Stops the virtual timer.
pub fn stop_timer() {
    write_sys!("CNTV_CTL_EL0", 0);
}

/// Waits until the virtual counter has advanced by `ticks`, or `done` holds; whether it held.
pub fn wait(ticks: u64, done: impl Fn() -> bool) -> bool {
    let start = read_sys!("CNTVCT_EL0");
    while read_sys!("CNTVCT_EL0").wrapping_sub(start) < ticks {
        if done() {
            return true;
        }
    }
    done()
}
