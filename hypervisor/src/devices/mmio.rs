//! A guest's access to a device: from the syndrome of its data abort to the device and back to its registers.

use core::ops::Range;

use super::vgic::VgicFrame;

/// Why an access cannot be emulated from its syndrome. The guest gets an external abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotDecodable {
    /// The syndrome does not describe the instruction (`ISV` = 0): a pair, a write-back, SIMD, exclusive, `DC ZVA`...
    NoSyndrome,
    /// The guest's own translation tables are where no memory is.
    TableWalk,
    /// A cache maintenance instruction.
    CacheMaintenance,
    /// `FAR_EL2` does not hold the address (`FnV`).
    NoAddress,
}

/// A load or store that a device has to answer (DDI 0487, D24.2.40: ISS encoding of a data abort).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioAccess {
    /// The guest physical address.
    pub ipa: u64,
    /// Bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// The general-purpose register; 31 is the zero register.
    pub register: u8,
    /// The loaded value is sign-extended.
    pub sign_extend: bool,
    /// The register is 64 bits wide (`X`, not `W`).
    pub sixty_four: bool,
    /// A store.
    pub write: bool,
    /// Load-acquire or store-release.
    pub ordered: bool,
}

impl MmioAccess {
    /// Decodes a stage 2 data abort from `ESR_EL2`, `FAR_EL2` and `HPFAR_EL2`.
    ///
    /// # Errors
    /// What the syndrome does not tell, in the order of [`NotDecodable`]'s consequences: a failed table walk is one
    /// whatever the instruction was.
    pub const fn decode(esr: u64, far: u64, hpfar: u64) -> Result<Self, NotDecodable> {
        if esr >> 7 & 1 != 0 {
            return Err(NotDecodable::TableWalk);
        }
        if esr >> 8 & 1 != 0 {
            return Err(NotDecodable::CacheMaintenance);
        }
        if esr >> 24 & 1 == 0 {
            return Err(NotDecodable::NoSyndrome);
        }
        if esr >> 10 & 1 != 0 {
            return Err(NotDecodable::NoAddress);
        }
        Ok(Self {
            ipa: fault_ipa(far, hpfar),
            size: 1 << (esr >> 22 & 3),
            sign_extend: esr >> 21 & 1 != 0,
            register: (esr >> 16 & 0x1f) as u8,
            sixty_four: esr >> 15 & 1 != 0,
            ordered: esr >> 14 & 1 != 0,
            write: esr >> 6 & 1 != 0,
        })
    }

    /// Returns what a store stores, given what its register holds. The zero register stores zero, not what `x[31]`
    /// may be in the caller's table.
    pub const fn stored(&self, register: u64) -> u64 {
        if self.register == 31 {
            return 0;
        }
        register & self.mask()
    }

    /// Returns what a load puts into its register, given the device's answer; `None` for the zero register.
    pub const fn loaded(&self, value: u64) -> Option<u64> {
        if self.register == 31 {
            return None;
        }
        let mut value = value & self.mask();
        if self.sign_extend {
            let unused = 64 - self.size as u32 * 8;
            value = ((value << unused) as i64 >> unused) as u64;
        }
        // Writing a W register clears the upper half of the X register.
        Some(if self.sixty_four {
            value
        } else {
            value & 0xffff_ffff
        })
    }

    const fn mask(&self) -> u64 {
        u64::MAX >> (64 - self.size as u32 * 8)
    }
}

/// Returns the guest physical address of a stage 2 fault: the page from `HPFAR_EL2`, the offset from `FAR_EL2`.
///
/// With `FnV` or for a table walk the offset means nothing.
pub const fn fault_ipa(far: u64, hpfar: u64) -> u64 {
    (hpfar & 0x0fff_ffff_fff0) << 8 | far & 0xfff
}

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
