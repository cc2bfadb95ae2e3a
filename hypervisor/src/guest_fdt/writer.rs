//! Writes a flattened device tree (Devicetree Specification 0.4, chapter 5) from front to back.
//!
//! No tree is built first and nothing is hashed: the few names of a guest's properties are found again by a look through
//! the strings block. Node and property names are ours and not checked here. It runs once a VM: nothing is inlined.

use alloc::vec::Vec;

const MAGIC: u32 = 0xd00d_feed;
const VERSION: u32 = 17;
/// The oldest version whose readers understand this one.
const LAST_COMPATIBLE: u32 = 16;
const HEADER_BYTES: usize = 40;
/// An entry of the memory reservation block; one of zeros ends it.
const RESERVATION_BYTES: usize = 16;

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const END: u32 = 9;

/// A device tree under construction: the blocks that grow.
pub(super) struct FdtWriter {
    structure: Vec<u8>,
    strings: Vec<u8>,
}

impl FdtWriter {
    /// Starts a tree without a node.
    pub fn new() -> Self {
        Self {
            structure: Vec::new(),
            strings: Vec::new(),
        }
    }

    /// Opens a node below the open one; the first is the root, whose name is empty.
    #[inline(never)]
    pub fn begin(&mut self, name: &str) {
        self.word(BEGIN_NODE);
        self.text(name);
    }

    /// Closes the open node.
    pub fn end(&mut self) {
        self.word(END_NODE);
    }

    /// Adds a property of any bytes to the open node, which has no child yet.
    pub fn property(&mut self, name: &str, value: &[u8]) {
        self.head(name, value.len());
        self.structure.extend_from_slice(value);
        self.align();
    }

    /// Adds a string; a list has a NUL between its strings.
    #[inline(never)]
    pub fn string(&mut self, name: &str, value: &str) {
        self.head(name, value.len() + 1);
        self.text(value);
    }

    /// Adds 32-bit cells.
    #[inline(never)]
    pub fn cells(&mut self, name: &str, cells: &[u32]) {
        self.head(name, size_of_val(cells));
        for &cell in cells {
            self.word(cell);
        }
    }

    /// Adds 64-bit numbers, two cells each.
    #[inline(never)]
    pub fn numbers(&mut self, name: &str, numbers: &[u64]) {
        self.head(name, size_of_val(numbers));
        for &number in numbers {
            self.word((number >> 32) as u32);
            self.word(number as u32);
        }
    }

    /// Ends the tree, whose nodes are closed, with `reserved` memory (address, bytes), and returns it.
    ///
    /// Sizes are 32-bit numbers; what is larger is larger than any limit of a caller, too.
    pub fn finish(mut self, reserved: [u64; 2]) -> Vec<u8> {
        self.word(END);
        let structure = HEADER_BYTES + 2 * RESERVATION_BYTES;
        let strings = structure + self.structure.len();
        let header = [
            MAGIC,
            (strings + self.strings.len()) as u32,
            structure as u32,
            strings as u32,
            HEADER_BYTES as u32,
            VERSION,
            LAST_COMPATIBLE,
            0, // the boot CPU
            self.strings.len() as u32,
            self.structure.len() as u32,
        ];
        let mut fdt: Vec<u8> = header.iter().flat_map(|word| word.to_be_bytes()).collect();
        for number in reserved {
            fdt.extend_from_slice(&number.to_be_bytes());
        }
        fdt.resize(structure, 0);
        fdt.extend_from_slice(&self.structure);
        fdt.extend_from_slice(&self.strings);
        fdt
    }

    /// Begins a property of `bytes` bytes.
    #[inline(never)]
    fn head(&mut self, name: &str, bytes: usize) {
        let name = self.name(name);
        self.word(PROP);
        self.word(bytes as u32);
        self.word(name);
    }

    /// Returns where a property's name is in the strings block, and adds it if it is not there yet.
    fn name(&mut self, name: &str) -> u32 {
        let mut at = 0;
        for known in self.strings.split_inclusive(|&byte| byte == 0) {
            if known.strip_suffix(&[0]) == Some(name.as_bytes()) {
                return at;
            }
            at += known.len() as u32;
        }
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        at
    }

    #[inline(never)]
    fn text(&mut self, text: &str) {
        self.structure.extend_from_slice(text.as_bytes());
        self.structure.push(0);
        self.align();
    }

    #[inline(never)]
    fn word(&mut self, word: u32) {
        self.structure.extend_from_slice(&word.to_be_bytes());
    }

    fn align(&mut self) {
        let length = self.structure.len().next_multiple_of(4);
        self.structure.resize(length, 0);
    }
}
