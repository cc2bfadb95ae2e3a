//! The first pass over a device tree: every access checked, everything bounded.
//!
//! Writes a copy with the same nodes and properties that is canonical: no NOP tokens (QEMU and boot loaders
//! leave them where they deleted a node; the reader asserts that there are none), every node closed, nothing
//! after the root. Names longer than the 31 characters of the specification occur on real boards, but the
//! validating reader refuses them: no property with such a name is read here, so they are left out; a node is
//! kept under the first 31 characters of its name, so that what it holds stays visible.

use alloc::vec::Vec;

use super::error::DiscoverError;

/// Bytes of the header of a version 17 tree.
pub const HEADER_BYTES: usize = 40;
/// The most bytes that a tree may have: the limit of the arm64 boot protocol (`booting.rst` of Linux).
pub const MAX_DTB_BYTES: usize = 2 << 20;

const MAGIC: u32 = 0xd00d_feed;
const VERSION: u32 = 17;
const MAX_DEPTH: usize = 32;
const MAX_NODES: usize = 16 << 10;
const MAX_NAME: usize = 31;
const MAX_UNIT: usize = 63;

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

/// The canonical copy.
pub(super) struct Tidy {
    pub blob: Vec<u8>,
    /// How many nodes it has, the root included.
    pub nodes: usize,
}

/// Reads a big-endian 32-bit number, if it lies inside `bytes`.
pub(super) fn be32(bytes: &[u8], offset: usize) -> Option<u32> {
    let end = offset.checked_add(4)?;
    bytes
        .get(offset..end)?
        .try_into()
        .ok()
        .map(u32::from_be_bytes)
}

fn header_field(dtb: &[u8], index: usize) -> Result<u32, DiscoverError> {
    be32(dtb, index * 4).ok_or(DiscoverError::Short { bytes: dtb.len() })
}

pub(super) fn total_size(header: &[u8]) -> Result<usize, DiscoverError> {
    if header.len() < HEADER_BYTES {
        return Err(DiscoverError::Short {
            bytes: header.len(),
        });
    }
    let found = header_field(header, 0)?;
    if found != MAGIC {
        return Err(DiscoverError::Magic { found });
    }
    let (version, last_compatible) = (header_field(header, 5)?, header_field(header, 6)?);
    if version < VERSION || last_compatible > VERSION {
        return Err(DiscoverError::Version {
            version,
            last_compatible,
        });
    }
    let bytes = header_field(header, 1)?;
    let size = bytes as usize;
    if !(HEADER_BYTES..=MAX_DTB_BYTES).contains(&size) {
        return Err(DiscoverError::Size { bytes });
    }
    Ok(size)
}

/// The three blocks of a tree, with their place checked.
struct Blocks<'a> {
    reservations: &'a [u8],
    structure: &'a [u8],
    structure_offset: usize,
    strings: &'a [u8],
}

impl<'a> Blocks<'a> {
    fn new(dtb: &'a [u8]) -> Result<Self, DiscoverError> {
        let size = total_size(dtb)?;
        let dtb = dtb.get(..size).ok_or(DiscoverError::Truncated {
            expected: size,
            found: dtb.len(),
        })?;
        let block = |name, index, align: usize, length: Option<u32>| {
            let offset = header_field(dtb, index)? as usize;
            let end = match length {
                Some(length) => offset.checked_add(length as usize),
                None => Some(dtb.len()),
            };
            end.and_then(|end| dtb.get(offset..end))
                .filter(|_| offset >= HEADER_BYTES && offset.is_multiple_of(align))
                .ok_or(DiscoverError::Block { name, offset })
        };
        Ok(Self {
            structure: block("structure", 2, 4, Some(header_field(dtb, 9)?))?,
            structure_offset: header_field(dtb, 2)? as usize,
            strings: block("strings", 3, 1, Some(header_field(dtb, 8)?))?,
            reservations: reservations(block("memory reservation", 4, 8, None)?)?,
        })
    }
}

/// Cuts the memory reservation block after its last entry, an entry of zeros.
fn reservations(block: &[u8]) -> Result<&[u8], DiscoverError> {
    let (entries, _) = block.as_chunks::<16>();
    let last = entries.iter().position(|entry| entry == &[0; 16]);
    last.and_then(|last| block.get(..(last + 1) * 16))
        .ok_or(DiscoverError::Block {
            name: "memory reservation",
            offset: block.len(),
        })
}

/// Makes the canonical copy of a device tree.
pub(super) fn tidy(dtb: &[u8]) -> Result<Tidy, DiscoverError> {
    let blocks = Blocks::new(dtb)?;
    // Shortening names and leaving out tokens only makes it smaller; a NUL is added to the strings.
    let bytes = HEADER_BYTES
        + blocks.reservations.len()
        + blocks.structure.len()
        + blocks.strings.len()
        + 1;
    let mut blob = Vec::new();
    blob.try_reserve_exact(bytes)
        .map_err(|_| DiscoverError::OutOfMemory { bytes })?;
    blob.resize(HEADER_BYTES, 0);
    blob.extend_from_slice(blocks.reservations);
    let structure = blob.len();
    let mut walk = Walk {
        input: blocks.structure,
        at: 0,
        start: blocks.structure_offset,
        strings: blocks.strings,
        blob,
        nodes: 0,
    };
    walk.tree()?;
    let Walk {
        mut blob, nodes, ..
    } = walk;
    let strings = blob.len();
    blob.extend_from_slice(blocks.strings);
    blob.push(0);
    let header = Header {
        structure,
        strings,
        total: blob.len(),
    };
    header.write(&mut blob);
    Ok(Tidy { blob, nodes })
}

/// Where the blocks of the copy are.
struct Header {
    structure: usize,
    strings: usize,
    total: usize,
}

impl Header {
    fn write(&self, blob: &mut [u8]) {
        let fields = [
            MAGIC as usize,
            self.total,
            self.structure,
            self.strings,
            HEADER_BYTES,
            VERSION as usize,
            16,
            0,
            self.total - self.strings,
            self.strings - self.structure,
        ];
        for (place, field) in blob.as_chunks_mut::<4>().0.iter_mut().zip(fields) {
            // No field exceeds MAX_DTB_BYTES or the magic number.
            *place = (field as u32).to_be_bytes();
        }
    }
}

/// A walk over the structure block that writes what it accepts.
struct Walk<'a> {
    input: &'a [u8],
    at: usize,
    /// Offset of the block in the tree, for messages.
    start: usize,
    strings: &'a [u8],
    blob: Vec<u8>,
    nodes: usize,
}

impl<'a> Walk<'a> {
    fn tree(&mut self) -> Result<(), DiscoverError> {
        let mut depth = 0;
        // Properties come before the children of a node.
        let mut properties = false;
        loop {
            let offset = self.start + self.at;
            match self.word()? {
                NOP => {}
                BEGIN_NODE if depth > 0 || self.nodes == 0 => {
                    if depth == MAX_DEPTH {
                        return Err(DiscoverError::Depth { limit: MAX_DEPTH });
                    }
                    self.begin_node()?;
                    depth += 1;
                    properties = true;
                }
                END_NODE if depth > 0 => {
                    self.put(END_NODE);
                    depth -= 1;
                    properties = false;
                }
                PROP if properties => self.property(offset)?,
                END if depth == 0 && self.nodes > 0 => {
                    self.put(END);
                    return Ok(());
                }
                _ => return Err(DiscoverError::Token { offset }),
            }
        }
    }

    fn begin_node(&mut self) -> Result<(), DiscoverError> {
        let offset = self.start + self.at;
        let rest = self.input.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|&byte| byte == 0);
        let name = length
            .and_then(|length| rest.get(..length))
            .ok_or(DiscoverError::Token { offset })?;
        self.at += (name.len() + 1).next_multiple_of(4);
        if self.nodes == MAX_NODES {
            return Err(DiscoverError::TooMany {
                what: "nodes",
                limit: MAX_NODES,
            });
        }
        let name = if self.nodes == 0 {
            // Some tools name the root "/"; the reader wants it empty.
            Some(&[][..]).filter(|_| name.is_empty() || name == b"/")
        } else {
            node_name(name)
        };
        let name = name.ok_or(DiscoverError::NodeName { offset })?;
        self.nodes += 1;
        self.put(BEGIN_NODE);
        self.blob.extend_from_slice(name);
        self.blob.push(0);
        self.align();
        Ok(())
    }

    fn property(&mut self, offset: usize) -> Result<(), DiscoverError> {
        let length = self.word()? as usize;
        let name_offset = self.word()?;
        let value = self
            .at
            .checked_add(length)
            .and_then(|end| self.input.get(self.at..end))
            .ok_or(DiscoverError::Token { offset })?;
        self.at += length.next_multiple_of(4);
        let name = self.strings.get(name_offset as usize..).unwrap_or_default();
        let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        if name.is_empty() || !name.iter().all(u8::is_ascii_graphic) {
            return Err(DiscoverError::PropertyName { offset });
        }
        if name.len() > MAX_NAME
            || !name
                .iter()
                .all(|&byte| is_name(byte) || b"?#".contains(&byte))
        {
            return Ok(()); // a name that nothing here reads
        }
        self.put(PROP);
        self.put(length as u32);
        self.put(name_offset);
        self.blob.extend_from_slice(value);
        self.align();
        Ok(())
    }

    fn word(&mut self) -> Result<u32, DiscoverError> {
        let word = be32(self.input, self.at).ok_or(DiscoverError::Token {
            offset: self.start + self.at,
        })?;
        self.at += 4;
        Ok(word)
    }

    fn put(&mut self, word: u32) {
        self.blob.extend_from_slice(&word.to_be_bytes());
    }

    fn align(&mut self) {
        self.blob.resize(self.blob.len().next_multiple_of(4), 0);
    }
}

const fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b',' | b'.' | b'_' | b'+' | b'-')
}

/// Checks a node's name; cuts what is before `@` to the length that the validating reader takes, and then
/// leaves the unit address out, for the cut name must not pass for another node's.
fn node_name(name: &[u8]) -> Option<&[u8]> {
    let at = name.iter().position(|&byte| byte == b'@');
    let (base, unit) = match at {
        Some(at) => (name.get(..at)?, Some(name.get(at + 1..)?)),
        None => (name, None),
    };
    let unit_ok = unit.is_none_or(|unit| {
        (1..=MAX_UNIT).contains(&unit.len()) && unit.iter().all(|&byte| is_name(byte))
    });
    if base.is_empty() || !base.iter().all(|&byte| is_name(byte)) || !unit_ok {
        return None;
    }
    if base.len() > MAX_NAME {
        base.get(..MAX_NAME)
    } else {
        Some(name)
    }
}
