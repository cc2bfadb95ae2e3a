//! The bus of a guest: which device answers an access. The access itself is decoded in [`crate::traps`].

use core::ops::Range;

use super::vgic::VgicFrame;

/// Where a guest's distributor is, as on QEMU virt.
pub const GICD: Range<u64> = 0x0800_0000..0x0801_0000;
/// Where the redistributor of virtual CPU 0 is.
pub const GICR_BASE: u64 = 0x080a_0000;
/// What a redistributor takes: `RD_base` and `SGI_base`.
pub const GICR_SIZE: u64 = 0x2_0000;
/// Where a guest's UART is.
pub const UART: Range<u64> = 0x0900_0000..0x0900_1000;
/// The interrupt of the UART: SPI 1.
pub const UART_INTID: u16 = 33;

/// A device and where in it an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The UART, at this offset.
    Uart(u64),
    /// A frame of the GIC, at this offset.
    Gic(VgicFrame, u64),
}

/// The devices on a guest's bus.
#[derive(Clone, Copy, Debug)]
pub struct GuestBus {
    vcpus: usize,
}

impl GuestBus {
    /// Makes the bus of a machine with so many virtual CPUs, of which each has a redistributor.
    pub const fn new(vcpus: usize) -> Self {
        Self { vcpus }
    }

    /// Finds the device that has all `size` bytes from `ipa` on. `None`: nothing is there, or the access crosses the
    /// end of a device or of a redistributor.
    pub fn find(&self, ipa: u64, size: u8) -> Option<Target> {
        if let Some(offset) = offset_in(&UART, ipa, size) {
            return Some(Target::Uart(offset));
        }
        if let Some(offset) = offset_in(&GICD, ipa, size) {
            return Some(Target::Gic(VgicFrame::Dist, offset));
        }
        let offset = ipa.checked_sub(GICR_BASE)?;
        let vcpu = usize::try_from(offset / GICR_SIZE).ok()?;
        let within = offset_in(&(0..GICR_SIZE), offset % GICR_SIZE, size)?;
        (vcpu < self.vcpus).then_some(Target::Gic(VgicFrame::Redist(vcpu), within))
    }
}

/// Returns the offset of an access that lies in `region` with all its bytes.
fn offset_in(region: &Range<u64>, ipa: u64, size: u8) -> Option<u64> {
    let offset = ipa.checked_sub(region.start)?;
    let end = ipa.checked_add(size.into())?;
    (end <= region.end).then_some(offset)
}

#[cfg(test)]
mod tests;
