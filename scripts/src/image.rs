//! From tagvisor's ELF to the flat Image that QEMU and boot loaders take, and the stub that QEMU enters first.

use std::fs;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

const ELF_MAGIC: &[u8] = b"\x7fELF";
const ELF_CLASS_64: u8 = 2;
const ELF_LITTLE_ENDIAN: u8 = 1;
const MACHINE_AARCH64: u16 = 183;
const SEGMENT_LOAD: u32 = 1;
const PROGRAM_HEADER_BYTES: usize = 56;
const ELF_HEADER_BYTES: usize = 64;
/// No Image of tagvisor or of a test comes near it: a bigger one is a broken ELF.
const LARGEST_IMAGE: u64 = 64 << 20;

/// An arm64 Image header's magic and its place (Linux, Documentation/arch/arm64/booting.rst).
const IMAGE_MAGIC: &[u8] = b"ARM\x64";
const IMAGE_MAGIC_OFFSET: usize = 56;
/// The length of an arm64 Image header in bytes.
pub const IMAGE_HEADER_BYTES: usize = 64;

/// One PT_LOAD segment: where it goes and its bytes in the file.
struct Segment {
    address: u64,
    file: Range<usize>,
    memory_bytes: u64,
}

/// Makes the flat image of an ELF: the bytes of its PT_LOAD segments from the lowest address on, without the zeroed end.
///
/// # Errors
/// It is not an AArch64 ELF, its headers do not fit the file, or it has nothing to load.
pub fn flatten(elf: &[u8]) -> Result<Vec<u8>> {
    let segments = segments(elf)?;
    let base = segments
        .iter()
        .map(|s| s.address)
        .min()
        .context("the ELF has nothing to load")?;
    let mut flat = Vec::new();
    for segment in &segments {
        let from = usize::try_from(segment.address - base)?;
        let bytes = elf
            .get(segment.file.clone())
            .context("a segment is outside the ELF file")?;
        if !bytes.is_empty() {
            flat.resize(flat.len().max(from + bytes.len()), 0);
            flat[from..from + bytes.len()].copy_from_slice(bytes);
        }
    }
    Ok(flat)
}

/// Returns the bytes of text and data in an ELF: its segments in the file, without the gaps between them.
///
/// # Errors
/// As of [`flatten`].
pub fn text_and_data(elf: &[u8]) -> Result<u64> {
    Ok(segments(elf)?.iter().map(|s| s.file.len() as u64).sum())
}

/// Reads the ELF file `from` and writes its flat image to `to`; returns the image's length in bytes.
///
/// # Errors
/// As of [`flatten`]; a file cannot be read or written.
pub fn flatten_file(from: &Path, to: &Path) -> Result<u64> {
    let elf = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    let flat = flatten(&elf).with_context(|| format!("{} is no usable ELF", from.display()))?;
    fs::write(to, &flat).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(flat.len() as u64)
}

/// What kind of kernel a file is, as tagvisor tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// A Linux arm64 Image that asks for this many bytes of memory from its start (0: an old one that does not say).
    Image {
        /// `image_size` of its header.
        memory_bytes: u64,
    },
    /// Anything else: entered at its first byte.
    Raw,
}

/// Tells what kind of kernel begins with `header` (up to the first [`IMAGE_HEADER_BYTES`] bytes).
#[must_use]
pub fn kernel_kind(header: &[u8]) -> Kernel {
    let magic = header.get(IMAGE_MAGIC_OFFSET..IMAGE_MAGIC_OFFSET + IMAGE_MAGIC.len());
    match (
        magic,
        header.get(16..24).and_then(|bytes| bytes.try_into().ok()),
    ) {
        (Some(IMAGE_MAGIC), Some(size)) => Kernel::Image {
            memory_bytes: u64::from_le_bytes(size),
        },
        _ => Kernel::Raw,
    }
}

/// Makes the ELF that QEMU enters at EL2: at `at`, it puts the address of the DTB into x0 and jumps to the Image.
#[must_use]
pub fn stub(at: u64, dtb: u64, image: u64) -> Vec<u8> {
    let code: [u32; 6] = [
        0x5800_00c0, // ldr x0, at + 0x18
        0xaa1f_03e1, // mov x1, xzr
        0xaa1f_03e2, // mov x2, xzr
        0xaa1f_03e3, // mov x3, xzr
        0x5800_0084, // ldr x4, at + 0x20
        0xd61f_0080, // br x4
    ];
    let mut text: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    text.extend_from_slice(&dtb.to_le_bytes());
    text.extend_from_slice(&image.to_le_bytes());
    elf_around(&text, at)
}

/// Makes an executable ELF with one segment, loaded and entered at `at`.
#[must_use]
pub fn elf_around(text: &[u8], at: u64) -> Vec<u8> {
    let mut elf = Vec::from([
        0x7f,
        b'E',
        b'L',
        b'F',
        ELF_CLASS_64,
        ELF_LITTLE_ENDIAN,
        1,
        0,
    ]);
    elf.resize(16, 0);
    for half in [2, MACHINE_AARCH64] {
        elf.extend_from_slice(&half.to_le_bytes());
    }
    elf.extend_from_slice(&1u32.to_le_bytes());
    for entry_and_tables in [at, ELF_HEADER_BYTES as u64, 0] {
        elf.extend_from_slice(&entry_and_tables.to_le_bytes());
    }
    elf.extend_from_slice(&0u32.to_le_bytes());
    for half in [
        ELF_HEADER_BYTES as u16,
        PROGRAM_HEADER_BYTES as u16,
        1,
        0,
        0,
        0,
    ] {
        elf.extend_from_slice(&half.to_le_bytes());
    }
    let (offset, length) = (
        (ELF_HEADER_BYTES + PROGRAM_HEADER_BYTES) as u64,
        text.len() as u64,
    );
    elf.extend_from_slice(&SEGMENT_LOAD.to_le_bytes());
    elf.extend_from_slice(&5u32.to_le_bytes()); // read and execute
    for field in [offset, at, at, length, length, 8] {
        elf.extend_from_slice(&field.to_le_bytes());
    }
    elf.extend_from_slice(text);
    elf
}

fn segments(elf: &[u8]) -> Result<Vec<Segment>> {
    ensure!(elf.get(..4) == Some(ELF_MAGIC), "not an ELF file");
    ensure!(
        elf.get(4..6) == Some(&[ELF_CLASS_64, ELF_LITTLE_ENDIAN]),
        "not a little-endian 64-bit ELF"
    );
    ensure!(
        u16::from_le_bytes(field(elf, 18)?) == MACHINE_AARCH64,
        "not for AArch64"
    );
    let table = usize::try_from(u64::from_le_bytes(field(elf, 32)?))?;
    let count = usize::from(u16::from_le_bytes(field(elf, 56)?));
    let headers =
        (0..count).map(|index| segment(elf, table.saturating_add(index * PROGRAM_HEADER_BYTES)));
    let segments: Vec<Segment> = headers
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .flatten()
        .collect();
    let base = segments.iter().map(|s| s.address).min().unwrap_or(0);
    let end = segments
        .iter()
        .filter_map(|s| s.address.checked_add(s.memory_bytes))
        .max()
        .unwrap_or(0);
    if end.saturating_sub(base) > LARGEST_IMAGE {
        bail!(
            "the segments span {} bytes, more than any Image",
            end.saturating_sub(base)
        );
    }
    Ok(segments)
}

/// Reads one program header; `None` if there is nothing to load.
fn segment(elf: &[u8], at: usize) -> Result<Option<Segment>> {
    let double = |offset: usize| field(elf, at.saturating_add(offset)).map(u64::from_le_bytes);
    let memory_bytes = double(40)?;
    if u32::from_le_bytes(field(elf, at)?) != SEGMENT_LOAD || memory_bytes == 0 {
        return Ok(None);
    }
    let from = usize::try_from(double(8)?)?;
    let length = usize::try_from(double(32)?)?;
    let to = from
        .checked_add(length)
        .filter(|&to| to <= elf.len())
        .context("a segment is outside the ELF file")?;
    Ok(Some(Segment {
        address: double(24)?,
        file: from..to,
        memory_bytes,
    }))
}

fn field<const N: usize>(elf: &[u8], at: usize) -> Result<[u8; N]> {
    let bytes = at
        .checked_add(N)
        .and_then(|end| elf.get(at..end))
        .context("the ELF file is too short")?;
    Ok(bytes.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stub_is_an_elf_whose_code_ends_in_the_two_addresses() {
        let elf = stub(0x4018_0000, 0x41e0_0000, 0x4020_0000);
        let flat = flatten(&elf).unwrap();
        assert_eq!(flat.len(), 0x28);
        assert_eq!(
            u64::from_le_bytes(flat[0x18..0x20].try_into().unwrap()),
            0x41e0_0000
        );
        assert_eq!(
            u64::from_le_bytes(flat[0x20..0x28].try_into().unwrap()),
            0x4020_0000
        );
        assert_eq!(
            u64::from_le_bytes(elf[24..32].try_into().unwrap()),
            0x4018_0000
        );
    }

    #[test]
    fn segments_lie_at_their_distance_and_the_zeroed_end_is_left_out() {
        let mut elf = elf_around(b"headtext", 0x1000);
        // A second segment, of four bytes and 0x100 bytes of memory, 0x10 above the first.
        let second = elf[ELF_HEADER_BYTES..ELF_HEADER_BYTES + PROGRAM_HEADER_BYTES].to_vec();
        elf.splice(
            ELF_HEADER_BYTES + PROGRAM_HEADER_BYTES..ELF_HEADER_BYTES + PROGRAM_HEADER_BYTES,
            second,
        );
        elf[56] = 2;
        for header in 0..2 {
            let at = ELF_HEADER_BYTES + header * PROGRAM_HEADER_BYTES;
            let offset = (ELF_HEADER_BYTES + 2 * PROGRAM_HEADER_BYTES) as u64;
            elf[at + 8..at + 16].copy_from_slice(&(offset + 4 * header as u64).to_le_bytes());
            elf[at + 32..at + 40].copy_from_slice(&4u64.to_le_bytes());
        }
        let second = ELF_HEADER_BYTES + PROGRAM_HEADER_BYTES;
        elf[second + 24..second + 32].copy_from_slice(&0x1010u64.to_le_bytes());
        elf[second + 40..second + 48].copy_from_slice(&0x100u64.to_le_bytes());
        assert_eq!(flatten(&elf).unwrap(), b"head\0\0\0\0\0\0\0\0\0\0\0\0text");
        assert_eq!(text_and_data(&elf).unwrap(), 8);
    }

    #[test]
    fn a_broken_elf_is_an_error_that_says_what_is_wrong() {
        let good = stub(0x1000, 0, 0);
        let broken = |edit: fn(&mut Vec<u8>)| {
            let mut elf = good.clone();
            edit(&mut elf);
            format!("{:#}", flatten(&elf).unwrap_err())
        };
        assert_eq!(broken(|elf| elf[0] = 0), "not an ELF file");
        assert_eq!(broken(|elf| elf[4] = 1), "not a little-endian 64-bit ELF");
        assert_eq!(broken(|elf| elf[18] = 62), "not for AArch64");
        assert_eq!(broken(|elf| elf.truncate(100)), "the ELF file is too short");
        assert_eq!(
            broken(|elf| elf.truncate(130)),
            "a segment is outside the ELF file"
        );
        assert_eq!(broken(|elf| elf[64] = 2), "the ELF has nothing to load");
        assert!(broken(|elf| elf[64 + 47] = 0x7f).contains("more than any Image"));
    }

    #[test]
    fn a_kernel_is_an_image_only_with_the_magic_in_its_place() {
        let mut header = [0; IMAGE_HEADER_BYTES];
        assert_eq!(kernel_kind(&header), Kernel::Raw);
        header[56..60].copy_from_slice(b"ARM\x64");
        header[16..24].copy_from_slice(&0x2c0_0000u64.to_le_bytes());
        assert_eq!(
            kernel_kind(&header),
            Kernel::Image {
                memory_bytes: 0x2c0_0000
            }
        );
        assert_eq!(kernel_kind(&header[..58]), Kernel::Raw);
    }
}
