//! The bundle: configuration, kernels and initrds as one cpio archive ("newc", uncompressed), passed by the boot loader as the
//! initrd. Every length and name is checked before anything of it is believed.

use alloc::vec::Vec;
use core::fmt;

use stage2::addr::{Ipa, PhysAddr};
use stage2::guest::Image;

const HEADER_BYTES: usize = 110;
const MAGIC: &[u8] = b"070701";
const TRAILER: &str = "TRAILER!!!";
/// Name of the first file: the configuration.
pub const CONFIG_NAME: &str = "tagvisor.conf";
const MAX_FILES: usize = 1024;

/// What is wrong with a bundle; `at` is a byte offset into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BundleError {
    /// The archive ends inside a header, a name or a file.
    Truncated {
        /// Where the part begins that does not fit.
        at: usize,
    },
    /// No "newc" header here.
    BadMagic {
        /// Where it should be.
        at: usize,
    },
    /// A number of a header is not hexadecimal.
    BadNumber {
        /// The header's offset.
        at: usize,
    },
    /// A name is empty, not UTF-8 or not terminated.
    BadName {
        /// The header's offset.
        at: usize,
    },
    /// Two files have one name.
    Duplicate {
        /// The second file's header.
        at: usize,
    },
    /// More files than any configuration could use.
    TooManyFiles,
    /// The first file is not the configuration.
    NoConfig,
}

impl fmt::Display for BundleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { at } => write!(
                f,
                "the bundle is cut off at byte {at}: was it loaded whole?"
            ),
            Self::BadMagic { at } => {
                write!(
                    f,
                    "no cpio header (newc) at byte {at} of the initrd: pass a bundle made by `scripts/bundle`"
                )
            }
            Self::BadNumber { at } => write!(
                f,
                "the cpio header at byte {at} of the bundle holds a bad number"
            ),
            Self::BadName { at } => write!(
                f,
                "the cpio header at byte {at} of the bundle holds a bad name"
            ),
            Self::Duplicate { at } => write!(
                f,
                "the file at byte {at} of the bundle has the name of an earlier one"
            ),
            Self::TooManyFiles => write!(f, "the bundle holds more than {MAX_FILES} files"),
            Self::NoConfig => write!(f, "the bundle does not begin with {CONFIG_NAME}"),
        }
    }
}

/// A file of the bundle.
#[derive(Clone, Copy, Debug)]
pub struct File<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its content.
    pub data: &'a [u8],
    /// Where in memory that is.
    pub at: PhysAddr,
}

impl File<'_> {
    /// Returns it as what a VM finds in its RAM from `ipa` on.
    #[must_use]
    pub const fn image_at(&self, ipa: u64) -> Image {
        Image {
            ipa: Ipa::new(ipa),
            source: self.at,
            bytes: self.data.len() as u64,
        }
    }
}

/// A checked bundle.
#[derive(Clone, Debug)]
pub struct Bundle<'a> {
    files: Vec<File<'a>>,
}

impl<'a> Bundle<'a> {
    /// Checks all headers of `archive`, which begins at `base` in memory.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, in archive order.
    pub fn parse(archive: &'a [u8], base: PhysAddr) -> Result<Self, BundleError> {
        let mut files: Vec<File<'a>> = Vec::new();
        let mut at = 0;
        loop {
            let (file, next) = read_file(archive, base, at)?;
            if file.name == TRAILER {
                break;
            }
            if files.iter().any(|earlier| earlier.name == file.name) {
                return Err(BundleError::Duplicate { at });
            }
            if files.len() == MAX_FILES {
                return Err(BundleError::TooManyFiles);
            }
            files.push(file);
            at = next;
        }
        match files.first() {
            Some(first) if first.name == CONFIG_NAME => Ok(Self { files }),
            _ => Err(BundleError::NoConfig),
        }
    }

    /// Returns the file `name`.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<File<'a>> {
        self.files.iter().find(|file| file.name == name).copied()
    }

    /// Returns the configuration's bytes.
    #[must_use]
    pub fn config(&self) -> &'a [u8] {
        self.files.first().map_or(&[], |file| file.data)
    }
}

/// Reads the file whose header is at `at`; returns it and where the next header is.
fn read_file(archive: &[u8], base: PhysAddr, at: usize) -> Result<(File<'_>, usize), BundleError> {
    let truncated = BundleError::Truncated { at };
    let header = slice(archive, at, HEADER_BYTES).ok_or(truncated.clone())?;
    if !header.starts_with(MAGIC) {
        return Err(BundleError::BadMagic { at });
    }
    let file_bytes = hex_field(header, 54).ok_or(BundleError::BadNumber { at })?;
    let name_bytes = hex_field(header, 94).ok_or(BundleError::BadNumber { at })?;
    let name_at = at + HEADER_BYTES;
    let raw_name = slice(archive, name_at, name_bytes).ok_or(truncated.clone())?;
    let name = raw_name.split(|byte| *byte == 0).next().unwrap_or_default();
    let name = core::str::from_utf8(name).map_err(|_| BundleError::BadName { at })?;
    if name.is_empty() || raw_name.last() != Some(&0) {
        return Err(BundleError::BadName { at });
    }
    let data_at = align4(name_at + name_bytes).ok_or(truncated.clone())?;
    let data = slice(archive, data_at, file_bytes).ok_or(truncated.clone())?;
    let next = align4(data_at + file_bytes).ok_or(truncated)?;
    let at = PhysAddr::new(base.get() + data_at as u64);
    Ok((File { name, data, at }, next))
}

fn slice(bytes: &[u8], at: usize, length: usize) -> Option<&[u8]> {
    bytes.get(at..at.checked_add(length)?)
}

fn hex_field(header: &[u8], at: usize) -> Option<usize> {
    let digits = core::str::from_utf8(header.get(at..at + 8)?).ok()?;
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    usize::from_str_radix(digits, 16).ok()
}

fn align4(at: usize) -> Option<usize> {
    at.checked_next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, data) in files.iter().chain(&[(TRAILER, &[][..])]) {
            let mut header = alloc::format!("070701{:08x}", 0);
            for (index, value) in [
                0o100_644,
                0,
                0,
                1,
                0,
                data.len(),
                0,
                0,
                0,
                0,
                name.len() + 1,
                0,
            ]
            .iter()
            .enumerate()
            {
                assert!(index < 12);
                header += &alloc::format!("{value:08x}");
            }
            out.extend(header.as_bytes());
            out.extend(name.as_bytes());
            out.push(0);
            out.resize(out.len().next_multiple_of(4), 0);
            out.extend(*data);
            out.resize(out.len().next_multiple_of(4), 0);
        }
        out
    }

    const BASE: u64 = 0x4800_0000;

    fn parse(bytes: &[u8]) -> Result<Bundle<'_>, BundleError> {
        Bundle::parse(bytes, PhysAddr::new(BASE))
    }

    #[test]
    fn files_are_found_by_name() {
        let bytes = archive(&[(CONFIG_NAME, b"tagvisor 1\n"), ("image-0", b"kernel")]);
        let bundle = parse(&bytes).unwrap();
        assert_eq!(bundle.config(), b"tagvisor 1\n");
        let file = bundle.file("image-0").unwrap();
        assert_eq!(file.data, b"kernel");
        let offset = bytes.windows(6).position(|part| part == b"kernel").unwrap();
        assert_eq!(file.at.get(), BASE + offset as u64);
        assert!(bundle.file("image-1").is_none());
    }

    #[test]
    fn broken_bundles_are_refused_with_the_reason() {
        let good = archive(&[(CONFIG_NAME, b"x"), ("a", b"1234")]);
        let twice = archive(&[(CONFIG_NAME, b"x"), ("a", b"1"), ("a", b"2")]);
        let no_config = archive(&[("a", b"1")]);
        let mut bad_size = good.clone();
        bad_size[54..62].copy_from_slice(b"ffffffff");
        let mut bad_hex = good.clone();
        bad_hex[54] = b'+';
        let mut no_nul = good.clone();
        no_nul[94..102].copy_from_slice(b"00000003");
        let mut bad_magic = good.clone();
        bad_magic[244] = b'x';
        let mut long_name = good.clone();
        long_name[94..102].copy_from_slice(b"7fffffff");
        let mut no_name = good.clone();
        no_name[94..102].copy_from_slice(b"00000000");
        let mut bad_utf8 = good.clone();
        bad_utf8[110] = 0xff;
        // As long as the archive, which would overlap the next file's header.
        let mut overlapping = good.clone();
        overlapping[54..62].copy_from_slice(b"00000070");
        let numbers: Vec<_> = (0..MAX_FILES).map(|n| n.to_string()).collect();
        let named = numbers.iter().map(|name| (name.as_str(), &[][..]));
        let many: Vec<_> = [(CONFIG_NAME, &b"x"[..])]
            .into_iter()
            .chain(named)
            .collect();
        let table: [(&[u8], BundleError); 16] = [
            (&good[..50], BundleError::Truncated { at: 0 }),
            (&good[..120], BundleError::Truncated { at: 0 }),
            (&good[..360], BundleError::Truncated { at: 244 }),
            (&bad_magic, BundleError::BadMagic { at: 244 }),
            (&long_name, BundleError::Truncated { at: 0 }),
            (&no_name, BundleError::BadName { at: 0 }),
            (&bad_utf8, BundleError::BadName { at: 0 }),
            (&archive(&many), BundleError::TooManyFiles),
            (b"", BundleError::Truncated { at: 0 }),
            (&good[..good.len() - 16], BundleError::Truncated { at: 244 }),
            (&[b'x'; 200], BundleError::BadMagic { at: 0 }),
            (&bad_size, BundleError::Truncated { at: 0 }),
            (&bad_hex, BundleError::BadNumber { at: 0 }),
            (&no_nul, BundleError::BadName { at: 0 }),
            (&twice, BundleError::Duplicate { at: 244 }),
            (&no_config, BundleError::NoConfig),
        ];
        for (bytes, expected) in table {
            let error = parse(bytes).unwrap_err();
            assert_eq!(error, expected);
            assert!(!alloc::format!("{error}").is_empty());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(
            flips in prop::collection::vec((0usize..400, any::<u8>()), 0..8), cut in 0usize..400,
        ) {
            let mut bytes = archive(&[(CONFIG_NAME, b"tagvisor 1\n"), ("image-0", &[7; 60])]);
            for (at, value) in flips {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            bytes.truncate(cut.max(1));
            let _ = parse(&bytes);
        }
    }
}
