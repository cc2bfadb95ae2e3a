//! Access to memory-mapped registers: the one place of this crate with unsafe code.
//!
//! An [`Mmio`] is a promise made once, where the mapping is made; from there on drivers are safe code.
#![allow(unsafe_code)]

use core::fmt::{self, Debug, Formatter};
use core::ptr::NonNull;

use safe_mmio::UniqueMmioPointer;

/// The registers of one device, mapped for the rest of the run.
///
/// A copy names the same registers. Two users of one register are kept apart by whoever owns the drivers, as
/// nothing in the registers of a device is memory of Rust's.
#[derive(Clone, Copy)]
pub struct Mmio {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: `new`'s caller mapped the registers on all CPUs for ever, and they are no Rust memory.
unsafe impl Send for Mmio {}
// SAFETY: as above; accesses are single volatile loads and stores.
unsafe impl Sync for Mmio {}

impl Debug for Mmio {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "Mmio({:p} + {:#x})", self.base, self.bytes)
    }
}

impl Mmio {
    /// Takes over `bytes` bytes of registers at `base`. None if `base` is null or not aligned to 8 bytes.
    ///
    /// # Safety
    /// They are mapped readable and writable as Device memory on every CPU for the rest of the run, and hold
    /// nothing that Rust references point to. Reading or writing any of them does not corrupt memory by
    /// itself (a DMA engine's registers are no Mmio).
    #[must_use]
    pub unsafe fn new(base: *mut u8, bytes: usize) -> Option<Self> {
        if !base.addr().is_multiple_of(8) || base.addr().checked_add(bytes).is_none() {
            return None;
        }
        NonNull::new(base).map(|base| Self { base, bytes })
    }

    /// Returns how many bytes there are.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.bytes
    }

    /// Cuts out `bytes` bytes at `offset`, a multiple of 8; none if they do not lie inside.
    #[must_use]
    pub fn slice(self, offset: usize, bytes: usize) -> Option<Self> {
        let inside = offset.checked_add(bytes)? <= self.bytes && offset.is_multiple_of(8);
        inside.then(|| Self {
            // SAFETY: `inside`: the result stays within the mapping that `new`'s caller vouches for.
            base: unsafe { self.base.add(offset) },
            bytes,
        })
    }

    /// Returns where a register of type `T` lies, if inside and aligned.
    fn register<T>(self, offset: usize) -> Option<NonNull<T>> {
        let inside = offset.checked_add(size_of::<T>())? <= self.bytes;
        let aligned = offset.is_multiple_of(align_of::<T>()) && align_of::<T>() <= 8;
        // SAFETY: inside the mapping that `new`'s caller vouches for.
        (inside && aligned).then(|| unsafe { self.base.add(offset) }.cast())
    }

    /// Reads the 32-bit register at `offset`; 0 if there is none.
    #[must_use]
    pub fn read32(self, offset: usize) -> u32 {
        match self.register(offset) {
            // SAFETY: `new`'s caller promised that registers may be read; `register` checked the place.
            Some(register) => unsafe { UniqueMmioPointer::<u32>::new(register).read_unsafe() },
            None => 0,
        }
    }

    /// Writes the 32-bit register at `offset`; does nothing if there is none.
    pub fn write32(self, offset: usize, value: u32) {
        if let Some(register) = self.register(offset) {
            // SAFETY: as for `read32`.
            unsafe { UniqueMmioPointer::<u32>::new(register).write_unsafe(value) };
        }
    }

    /// Reads the 64-bit register at `offset`; 0 if there is none.
    #[must_use]
    pub fn read64(self, offset: usize) -> u64 {
        match self.register(offset) {
            // SAFETY: as for `read32`.
            Some(register) => unsafe { UniqueMmioPointer::<u64>::new(register).read_unsafe() },
            None => 0,
        }
    }

    /// Views the start as the register block `T` of a driver crate. None if `T` is bigger.
    ///
    /// `T` is a type of `arm-gic` that describes registers field by field.
    pub(crate) fn block<'a, T>(self) -> Option<UniqueMmioPointer<'a, T>> {
        // SAFETY: inside the mapping; `T`'s crate accesses each field by volatile loads and stores only.
        self.register(0)
            .map(|block| unsafe { UniqueMmioPointer::new(block) })
    }
}

/// Waits until all accesses before are complete (DSB SY).
#[cfg(any(test, target_arch = "aarch64"))]
#[inline(always)]
pub(crate) fn complete() {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier has no effect on memory or registers.
    unsafe {
        core::arch::asm!("dsb sy", options(nostack, preserves_flags));
    }
}

/// Makes writes to system registers take effect before what follows (ISB).
#[cfg(any(test, target_arch = "aarch64"))]
#[inline(always)]
pub(crate) fn synchronize() {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier has no effect on memory or registers.
    unsafe {
        core::arch::asm!("isb", options(nostack, preserves_flags));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_stay_inside_and_aligned() {
        let mut memory = [0u64; 2];
        // SAFETY: the array outlives `mmio` and is used through it only.
        let mmio = unsafe { Mmio::new(memory.as_mut_ptr().cast(), 16) }.unwrap();
        mmio.write32(4, 0x1234_5678);
        assert_eq!(mmio.read32(4), 0x1234_5678);
        assert_eq!(mmio.read64(0), 0x1234_5678_0000_0000);
        for outside in [16, 13, 14, 2, usize::MAX, usize::MAX - 3] {
            mmio.write32(outside, 7);
            assert_eq!(mmio.read32(outside), 0, "{outside}");
        }
        assert_eq!(mmio.read64(12), 0);
        assert_eq!(mmio.slice(8, 8).unwrap().read32(0), 0);
        assert!(mmio.slice(8, 9).is_none());
        assert!(mmio.slice(4, 4).is_none());
        assert!(mmio.slice(usize::MAX, 2).is_none());
        assert!(mmio.block::<[u64; 3]>().is_none());
    }

    #[test]
    fn a_null_or_odd_base_is_refused() {
        // SAFETY: nothing is accessed.
        unsafe {
            assert!(Mmio::new(core::ptr::null_mut(), 8).is_none());
            assert!(Mmio::new(core::ptr::without_provenance_mut(4), 8).is_none());
            assert!(Mmio::new(core::ptr::without_provenance_mut(usize::MAX - 7), 16).is_none());
        }
    }
}
