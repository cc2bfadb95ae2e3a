//! Where a guest's kernel, initrd and DTB go in its RAM.
//!
//! A Linux arm64 `Image` (Documentation/arch/arm64/booting.rst) goes to a 2 MiB boundary plus its `text_offset` and owns
//! `image_size` bytes from there, its .bss included. Anything else is a raw flat image: it goes where QEMU's virt machine puts
//! one, [`RAW_OFFSET`] above the start of RAM, and is entered at its first byte. The DTB lies in the last 2 MiB of RAM, above any
//! image's .bss and stack, with the initrd right below.

use core::fmt;

use stage2::addr::PAGE_SIZE;

use crate::guest_fdt::MAX_FDT_BYTES;

/// First address of guest RAM (QEMU virt's).
pub const RAM_BASE: u64 = 0x4000_0000;
/// Offset of a raw image from [`RAM_BASE`]; 64 KiB aligned.
pub const RAW_OFFSET: u64 = 0x8_0000;

const MIB: u64 = 1 << 20;
const DTB_AREA: u64 = MAX_FDT_BYTES as u64;
const HEADER_BYTES: usize = 64;
const MAGIC_AT: usize = 56;
const MAGIC: &[u8] = b"ARM\x64";

/// Where things go: guest physical addresses and sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// First byte of the kernel, which is also its entry.
    pub kernel: u64,
    /// First byte of the initrd; equal to `dtb` if there is none.
    pub initrd: u64,
    /// First byte of the DTB, which may take 2 MiB.
    pub dtb: u64,
}

/// Why images cannot be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlacementError {
    /// The kernel has no bytes.
    Empty,
    /// The `Image` is big endian.
    BigEndian,
    /// The `Image` is older than Linux 3.17 and does not say how large it is.
    NoImageSize,
    /// Kernel, initrd and DTB need more RAM than there is.
    TooSmall {
        /// RAM needed, bytes.
        needed: u64,
        /// RAM there is, bytes.
        memory: u64,
    },
}

impl fmt::Display for PlacementError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "its kernel is empty"),
            Self::BigEndian => write!(
                f,
                "its kernel is a big-endian Image; only little-endian ones run"
            ),
            Self::NoImageSize => write!(
                f,
                "its kernel is an Image without image_size (before Linux 3.17)"
            ),
            Self::TooSmall { needed, memory } => write!(
                f,
                "its kernel and initrd need {} MiB of RAM, memory is {} MiB: give it more memory",
                needed.div_ceil(MIB),
                memory / MIB
            ),
        }
    }
}

/// Offset from [`RAM_BASE`] and size in memory of a kernel.
fn extent(kernel: &[u8]) -> Result<(u64, u64), PlacementError> {
    let file_bytes = kernel.len() as u64;
    if kernel.is_empty() {
        return Err(PlacementError::Empty);
    }
    let header = match kernel.get(..HEADER_BYTES) {
        Some(header) if header.get(MAGIC_AT..MAGIC_AT + 4) == Some(MAGIC) => header,
        _ => return Ok((RAW_OFFSET, file_bytes)),
    };
    let (text_offset, image_size, flags) = (word(header, 8), word(header, 16), word(header, 24));
    if flags & 1 != 0 {
        return Err(PlacementError::BigEndian);
    }
    if image_size == 0 {
        return Err(PlacementError::NoImageSize);
    }
    Ok((text_offset, image_size.max(file_bytes)))
}

fn word(header: &[u8], at: usize) -> u64 {
    header
        .get(at..at + 8)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

/// Returns the page of RAM in which a guest is told about stolen time: the last, which its DTB reserves.
#[must_use]
pub const fn pv_time_page(memory: u64) -> u64 {
    RAM_BASE + memory - PAGE_SIZE
}

/// Places a kernel, an initrd of `initrd_bytes` and a DTB in `memory` bytes of RAM (a multiple of 2 MiB).
///
/// # Errors
///
/// The kernel is no kernel, or they do not fit.
pub fn place(kernel: &[u8], initrd_bytes: u64, memory: u64) -> Result<Placement, PlacementError> {
    let (offset, bytes) = extent(kernel)?;
    let initrd_room = initrd_bytes.checked_next_multiple_of(PAGE_SIZE);
    let needed = [Some(bytes), initrd_room, Some(DTB_AREA)]
        .into_iter()
        .try_fold(offset, |sum, part| sum.checked_add(part?))
        .unwrap_or(u64::MAX);
    if needed > memory {
        return Err(PlacementError::TooSmall { needed, memory });
    }
    let dtb = RAM_BASE + memory - DTB_AREA;
    Ok(Placement {
        kernel: RAM_BASE + offset,
        initrd: dtb - initrd_room.unwrap_or(0),
        dtb,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn linux(text_offset: u64, image_size: u64, flags: u64) -> Vec<u8> {
        let mut image = vec![0; 4096];
        image[8..16].copy_from_slice(&text_offset.to_le_bytes());
        image[16..24].copy_from_slice(&image_size.to_le_bytes());
        image[24..32].copy_from_slice(&flags.to_le_bytes());
        image[MAGIC_AT..MAGIC_AT + 4].copy_from_slice(MAGIC);
        image
    }

    #[test]
    fn a_linux_image_goes_to_its_text_offset_and_owns_its_bss() {
        let at = place(&linux(0, 40 * MIB, 0xa), 5000, 64 * MIB).unwrap();
        assert_eq!(
            at,
            Placement {
                kernel: 0x4000_0000,
                initrd: 0x43df_e000,
                dtb: 0x43e0_0000
            }
        );
        assert_eq!(
            place(&linux(0x8_0000, MIB, 0), 0, 8 * MIB).unwrap().kernel,
            0x4008_0000
        );
    }

    #[test]
    fn a_raw_image_goes_where_virt_puts_it_64_kib_aligned() {
        let at = place(&[1; 100], 0, 4 * MIB).unwrap();
        assert_eq!(
            at,
            Placement {
                kernel: 0x4008_0000,
                initrd: 0x4020_0000,
                dtb: 0x4020_0000
            }
        );
        assert!(at.kernel.is_multiple_of(1 << 16));
    }

    #[test]
    fn what_cannot_be_placed_is_refused_with_the_reason() {
        let table = [
            (place(&[], 0, 64 * MIB), PlacementError::Empty),
            (
                place(&linux(0, MIB, 1), 0, 64 * MIB),
                PlacementError::BigEndian,
            ),
            (
                place(&linux(0, 0, 0), 0, 64 * MIB),
                PlacementError::NoImageSize,
            ),
            (
                place(&linux(0, 63 * MIB, 0), 0, 64 * MIB),
                PlacementError::TooSmall {
                    needed: 65 * MIB,
                    memory: 64 * MIB,
                },
            ),
            (
                place(&linux(u64::MAX, 63, 0), 0, 64 * MIB),
                PlacementError::TooSmall {
                    needed: u64::MAX,
                    memory: 64 * MIB,
                },
            ),
            (
                place(&[1], u64::MAX, 64 * MIB),
                PlacementError::TooSmall {
                    needed: u64::MAX,
                    memory: 64 * MIB,
                },
            ),
        ];
        for (result, expected) in table {
            assert_eq!(result, Err(expected));
            assert!(!expected.to_string().is_empty());
        }
    }

    proptest! {
        #[test]
        fn what_is_placed_lies_in_ram_and_apart(
            offset in 0u64..4 * MIB, size in 1u64..64 * MIB, initrd in 0u64..64 * MIB, chunks in 1u64..64,
        ) {
            let memory = chunks * 2 * MIB;
            if let Ok(at) = place(&linux(offset, size, 0), initrd, memory) {
                prop_assert!(at.kernel >= RAM_BASE && at.kernel + size.max(4096) <= at.initrd);
                prop_assert!(at.initrd + initrd <= at.dtb && at.dtb + DTB_AREA == RAM_BASE + memory);
                prop_assert!(at.initrd.is_multiple_of(PAGE_SIZE));
            }
        }
    }
}
