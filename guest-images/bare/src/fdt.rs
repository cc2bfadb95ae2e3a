//! The two facts that the programs want from a device tree: memory and the command line.
//!
//! Format: Devicetree Specification v0.4, chapter 5. Whatever the blob holds, reading it ends and never panics.

const MAGIC: u32 = 0xd00d_feed;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;

/// A flattened device tree whose header has been checked.
#[derive(Clone, Copy, Debug)]
pub struct Fdt<'a> {
    structure: &'a [u8],
    strings: &'a [u8],
}

/// The length in bytes that the header at the start of `head` claims; none without the magic number.
pub fn total_size(head: &[u8]) -> Option<usize> {
    (be32(head, 0)? == MAGIC).then_some(be32(head, 4)? as usize)
}

impl<'a> Fdt<'a> {
    /// Takes `blob` if its header and its two blocks lie inside it.
    pub fn new(blob: &'a [u8]) -> Option<Self> {
        total_size(blob)?;
        let block = |offset: usize, size: usize| {
            let start = be32(blob, offset)? as usize;
            blob.get(start..start.checked_add(be32(blob, size)? as usize)?)
        };
        Some(Self {
            structure: block(8, 36)?,
            strings: block(12, 32)?,
        })
    }

    /// The first range of the first node called `memory...` at the top: base and bytes, both of two cells.
    pub fn memory(&self) -> Option<(u64, u64)> {
        let reg = self.property("memory", "reg")?;
        Some((be64(reg, 0)?, be64(reg, 8)?))
    }

    /// The kernel command line; empty if there is none.
    pub fn bootargs(&self) -> &'a str {
        let bytes = self.property("chosen", "bootargs").unwrap_or_default();
        let text = bytes.strip_suffix(&[0]).unwrap_or(bytes);
        core::str::from_utf8(text).unwrap_or_default()
    }

    /// The value of property `name` of the first top-level node whose name without unit address is `node`.
    fn property(&self, node: &str, name: &str) -> Option<&'a [u8]> {
        let (mut at, mut depth, mut inside) = (0, 0_u32, false);
        loop {
            let token = be32(self.structure, at)?;
            at += 4;
            match token {
                BEGIN_NODE => {
                    let called = text(self.structure, at)?;
                    at = align4(at + called.len() + 1);
                    depth += 1;
                    inside = depth == 2 && called.split('@').next() == Some(node);
                }
                END_NODE => {
                    depth = depth.checked_sub(1)?;
                    inside = false;
                }
                PROP => {
                    let bytes = be32(self.structure, at)? as usize;
                    let called = text(self.strings, be32(self.structure, at + 4)? as usize)?;
                    let value = self.structure.get(at + 8..(at + 8).checked_add(bytes)?)?;
                    if inside && called == name {
                        return Some(value);
                    }
                    at = align4(at + 8 + bytes);
                }
                NOP => {}
                _ => return None,
            }
        }
    }
}

fn align4(at: usize) -> usize {
    at.saturating_add(3) & !3
}

fn text(bytes: &[u8], at: usize) -> Option<&str> {
    let rest = bytes.get(at..)?;
    let end = rest.iter().position(|&byte| byte == 0)?;
    core::str::from_utf8(rest.get(..end)?).ok()
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(word.try_into().ok()?))
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from(be32(bytes, at)?) << 32 | u64::from(be32(bytes, at + 4)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    extern crate std;
    use std::vec::Vec;

    /// A tree with `/chosen` and `/memory@40000000`.
    fn blob() -> Vec<u8> {
        let strings = b"bootargs\0reg\0";
        let mut structure = Vec::new();
        let mut put = |words: &[u32]| {
            words
                .iter()
                .for_each(|word| structure.extend(word.to_be_bytes()))
        };
        put(&[BEGIN_NODE, 0]);
        put(&[
            BEGIN_NODE,
            u32::from_be_bytes(*b"chos"),
            u32::from_be_bytes(*b"en\0\0"),
        ]);
        put(&[PROP, 4, 0, u32::from_be_bytes(*b"a=1\0"), END_NODE]);
        put(&[
            BEGIN_NODE,
            u32::from_be_bytes(*b"memo"),
            u32::from_be_bytes(*b"ry@4"),
            0,
            NOP,
        ]);
        put(&[PROP, 16, 9, 0, 0x4000_0000, 1, 0, END_NODE, END_NODE, 9]);
        let mut header = Vec::new();
        let total = 40 + structure.len() + strings.len();
        let fields = [
            MAGIC,
            total as u32,
            40,
            40 + structure.len() as u32,
            40,
            17,
            16,
            0,
            strings.len() as u32,
            structure.len() as u32,
        ];
        fields
            .iter()
            .for_each(|field: &u32| header.extend(field.to_be_bytes()));
        header.extend(&structure);
        header.extend(strings);
        header
    }

    #[test]
    fn memory_and_command_line_are_found() {
        let blob = blob();
        let tree = Fdt::new(&blob).unwrap();
        assert_eq!(tree.memory(), Some((0x4000_0000, 0x1_0000_0000)));
        assert_eq!(tree.bootargs(), "a=1");
    }

    #[test]
    fn a_cut_or_changed_tree_never_panics() {
        let good = blob();
        for cut in 0..good.len() {
            let tree = Fdt::new(&good[..cut]);
            assert!(tree.is_none_or(|tree| tree.memory().is_none() || cut > 0));
        }
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                if let Some(tree) = Fdt::new(&bad) {
                    let _ = (tree.memory(), tree.bootargs());
                }
            }
        }
    }
}
