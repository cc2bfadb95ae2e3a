//! The "newc" cpio format, as the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst` states it.

use std::fmt;

/// Length of a header: the magic and 13 fields of 8 hexadecimal digits.
const HEADER: usize = 6 + 13 * 8;
/// Names (with the header) and contents end on this boundary.
const ALIGN: usize = 4;
/// The archive ends on this boundary, as other writers' archives do.
const BLOCK: usize = 512;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file with its contents.
    File(Vec<u8>),
    /// A symbolic link with its target.
    Link(String),
    /// A character device with major and minor number.
    CharDevice(u32, u32),
}

/// One entry of an archive.
#[derive(Debug)]
pub struct Entry<'a> {
    /// Path from the root, without a leading slash.
    pub path: &'a str,
    /// Permission bits.
    pub mode: u32,
    /// Type and contents.
    pub kind: Kind,
}

/// A value does not fit the 32 bits that the format has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldTooBig {
    /// The size that was asked for, in bytes.
    pub bytes: usize,
}

impl fmt::Display for FieldTooBig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} bytes: cpio has 32 bits for a size; leave the file out or make it smaller",
            self.bytes
        )
    }
}

/// An archive under construction.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Starts an empty archive.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends an entry; parents must come before their children.
    ///
    /// # Errors
    /// [`FieldTooBig`] when the contents or the name pass 4 GiB.
    pub fn add(&mut self, entry: &Entry<'_>) -> Result<(), FieldTooBig> {
        let (file_type, device, data): (u32, (u32, u32), &[u8]) = match &entry.kind {
            Kind::Directory => (0o040_000, (0, 0), &[]),
            Kind::File(contents) => (0o100_000, (0, 0), contents),
            Kind::Link(target) => (0o120_000, (0, 0), target.as_bytes()),
            Kind::CharDevice(major, minor) => (0o020_000, (*major, *minor), &[]),
        };
        self.entries += 1;
        self.append(
            entry.path,
            [self.entries, file_type | entry.mode],
            device,
            data,
        )
    }

    /// Ends the archive and returns its bytes.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        // The trailer's name and size are constants that fit.
        let _fits = self.append("TRAILER!!!", [0, 0], (0, 0), &[]);
        self.pad(BLOCK);
        self.bytes
    }

    /// Writes header, name and contents. Owner, group and time stay zero: they would differ between machines.
    fn append(
        &mut self,
        name: &str,
        id: [u32; 2],
        device: (u32, u32),
        data: &[u8],
    ) -> Result<(), FieldTooBig> {
        let size = field(data.len())?;
        let name_size = field(name.len() + 1)?;
        let [inode, mode] = id;
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        let fields = [
            inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0,
        ];
        self.bytes
            .reserve(HEADER + name.len() + data.len() + 2 * ALIGN);
        self.bytes.extend_from_slice(b"070701");
        for value in fields {
            self.bytes
                .extend_from_slice(format!("{value:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad(ALIGN);
        self.bytes.extend_from_slice(data);
        self.pad(ALIGN);
        Ok(())
    }

    fn pad(&mut self, boundary: usize) {
        self.bytes
            .resize(self.bytes.len().next_multiple_of(boundary), 0);
    }
}

fn field(bytes: usize) -> Result<u32, FieldTooBig> {
    u32::try_from(bytes).map_err(|_| FieldTooBig { bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads the archive back: path, mode with type, contents.
    fn read(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut out = Vec::new();
        let mut at = 0;
        loop {
            let hex = |n: usize| {
                let start = at + 6 + 8 * n;
                u32::from_str_radix(std::str::from_utf8(&bytes[start..start + 8]).unwrap(), 16)
                    .unwrap()
            };
            assert_eq!(&bytes[at..at + 6], b"070701");
            let (mode, size, name_size) = (hex(1), hex(6) as usize, hex(11) as usize);
            let name = String::from_utf8(bytes[at + HEADER..at + HEADER + name_size - 1].to_vec())
                .unwrap();
            assert_eq!(bytes[at + HEADER + name_size - 1], 0);
            let data = (at + HEADER + name_size).next_multiple_of(ALIGN);
            at = (data + size).next_multiple_of(ALIGN);
            if name == "TRAILER!!!" {
                assert!(bytes[at..].iter().all(|b| *b == 0));
                return out;
            }
            out.push((name, mode, bytes[data..data + size].to_vec()));
        }
    }

    #[test]
    fn what_is_added_is_read_back() {
        let mut archive = Archive::new();
        let kinds = [
            ("dev", 0o755, Kind::Directory),
            ("dev/console", 0o600, Kind::CharDevice(5, 1)),
            ("init", 0o755, Kind::File(b"#!/bin/sh\n".to_vec())),
            ("sh", 0o777, Kind::Link("busybox".into())),
        ];
        for (path, mode, kind) in kinds {
            archive.add(&Entry { path, mode, kind }).unwrap();
        }
        let bytes = archive.finish();
        assert_eq!(bytes.len() % BLOCK, 0);
        let expected = [
            ("dev".to_owned(), 0o040_755, vec![]),
            ("dev/console".to_owned(), 0o020_600, vec![]),
            ("init".to_owned(), 0o100_755, b"#!/bin/sh\n".to_vec()),
            ("sh".to_owned(), 0o120_777, b"busybox".to_vec()),
        ];
        assert_eq!(read(&bytes), expected);
    }

    #[test]
    fn nothing_of_the_machine_gets_into_the_archive() {
        let mut archive = Archive::new();
        archive
            .add(&Entry {
                path: "a",
                mode: 0o644,
                kind: Kind::File(b"x".to_vec()),
            })
            .unwrap();
        let bytes = archive.finish();
        let header = std::str::from_utf8(&bytes[..HEADER]).unwrap();
        // uid, gid and mtime: fields 2, 3 and 5.
        for n in [2, 3, 5] {
            assert_eq!(&header[6 + 8 * n..14 + 8 * n], "00000000");
        }
    }
}
