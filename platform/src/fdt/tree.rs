//! The nodes of a validated tree as a flat list, and the decoding of their values.
//!
//! Everything works on indices into the list. Values are decoded here and not by the reader, whose own
//! decoding panics on values of an unexpected length.

use alloc::collections::BinaryHeap;
use alloc::string::String;
use alloc::vec::Vec;

use ::fdt::node::FdtNode;

use super::error::{DiscoverError, RegError};
use super::tidy::be32;
use crate::machine::MemRange;

struct Entry<'b, 'a> {
    node: FdtNode<'b, 'a>,
    parent: u16,
}

/// Index of a node; parents come before their children.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NodeId(u16);

/// All nodes, in the order of the tree.
pub(super) struct Tree<'b, 'a> {
    nodes: Vec<Entry<'b, 'a>>,
}

/// Cells of an address and of a size below a node.
#[derive(Clone, Copy)]
struct Cells {
    address: usize,
    size: usize,
}

impl<'b, 'a> Tree<'b, 'a> {
    /// The root node.
    pub const ROOT: NodeId = NodeId(0);

    /// Lists the nodes of `fdt`, which has `count` of them.
    pub fn new(fdt: &'b ::fdt::Fdt<'a>, count: usize) -> Result<Self, DiscoverError> {
        let mut nodes = Vec::new();
        nodes
            .try_reserve_exact(count)
            .map_err(|_| DiscoverError::OutOfMemory {
                bytes: count * size_of::<Entry<'_, '_>>(),
            })?;
        let root = fdt.find_node("/").ok_or(DiscoverError::Unreadable)?;
        let mut tree = Self { nodes };
        tree.add(root, 0);
        tree.check_unique()?;
        Ok(tree)
    }

    /// Adds a node and all below it. The first pass has bounded depth and number.
    fn add(&mut self, node: FdtNode<'b, 'a>, parent: u16) {
        let id = self.nodes.len() as u16;
        self.nodes.push(Entry { node, parent });
        for child in node.children() {
            self.add(child, id);
        }
    }

    fn check_unique(&self) -> Result<(), DiscoverError> {
        let mut names: BinaryHeap<(NodeId, &str, NodeId)> = BinaryHeap::new();
        let bytes = self.nodes.len() * size_of::<(NodeId, &str, NodeId)>();
        names
            .try_reserve_exact(self.nodes.len())
            .map_err(|_| DiscoverError::OutOfMemory { bytes })?;
        // Only nodes that matter here: the rest of the board may be as sloppy as it likes.
        names.extend(self.ids().skip(1).filter_map(|id| {
            let parent = self.parent(id);
            let top = parent == Self::ROOT || self.parent(parent) == Self::ROOT;
            top.then(|| (parent, self.name(id), id))
        }));
        // Popped in falling order, so equal names follow each other.
        let mut last = None;
        while let Some((parent, name, id)) = names.pop() {
            if last == Some((parent, name)) {
                let path = self.path(id);
                return Err(DiscoverError::Duplicate { path });
            }
            last = Some((parent, name));
        }
        Ok(())
    }

    /// Lists all nodes, the root first.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nodes.len() as u16).map(NodeId)
    }

    /// Lists the children of a node.
    pub fn children(&self, of: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        self.ids()
            .filter(move |&id| id != Self::ROOT && self.parent(id) == of)
    }

    /// Finds the child whose name without unit address is `name`.
    pub fn child(&self, of: NodeId, name: &str) -> Option<NodeId> {
        self.children(of).find(|&id| self.base_name(id) == name)
    }

    fn entry(&self, id: NodeId) -> Option<&Entry<'b, 'a>> {
        self.nodes.get(usize::from(id.0))
    }

    /// Returns the parent; the root is its own.
    pub fn parent(&self, id: NodeId) -> NodeId {
        NodeId(self.entry(id).map_or(0, |entry| entry.parent))
    }

    /// Returns the name with unit address.
    pub fn name(&self, id: NodeId) -> &'a str {
        self.entry(id).map_or("", |entry| entry.node.name)
    }

    /// Returns the name without unit address.
    pub fn base_name(&self, id: NodeId) -> &'a str {
        self.name(id).split('@').next().unwrap_or_default()
    }

    /// Returns the path, for messages.
    pub fn path(&self, id: NodeId) -> String {
        if id == Self::ROOT {
            return String::from("/");
        }
        let parent = self.parent(id);
        let mut path = if parent == Self::ROOT {
            String::new()
        } else {
            self.path(parent)
        };
        path.push('/');
        path.push_str(self.name(id));
        path
    }

    /// Finds a node by its path; a part without unit address finds the first node of that name.
    pub fn find(&self, path: &str) -> Option<NodeId> {
        let mut id = Self::ROOT;
        for part in path.strip_prefix('/')?.split('/').filter(|p| !p.is_empty()) {
            id = self
                .children(id)
                .find(|&child| self.name(child) == part || self.base_name(child) == part)?;
        }
        Some(id)
    }

    /// Returns the bytes of a property.
    pub fn property(&self, id: NodeId, name: &str) -> Option<&'a [u8]> {
        Some(self.entry(id)?.node.property(name)?.value)
    }

    /// Reads a property of one cell; none if it is absent or has another length.
    pub fn u32(&self, id: NodeId, name: &str) -> Option<u32> {
        self.property(id, name)
            .filter(|value| value.len() == 4)
            .and_then(|value| be32(value, 0))
    }

    /// Reads a property of one or two cells.
    pub fn u64(&self, id: NodeId, name: &str) -> Option<u64> {
        let value = self.property(id, name)?;
        matches!(value.len(), 4 | 8).then(|| number(value))
    }

    /// Reads a property that is one string.
    pub fn string(&self, id: NodeId, name: &str) -> Option<&'a str> {
        let value = self.property(id, name)?;
        core::str::from_utf8(value.strip_suffix(&[0])?).ok()
    }

    /// Tells whether `compatible` lists `model`.
    pub fn compatible(&self, id: NodeId, model: &str) -> bool {
        self.property(id, "compatible").is_some_and(|value| {
            value
                .split(|&byte| byte == 0)
                .any(|entry| entry == model.as_bytes())
        })
    }

    /// Tells whether `status` says that the node is in use.
    pub fn enabled(&self, id: NodeId) -> bool {
        match self.property(id, "status") {
            None => true,
            Some(value) => matches!(value, b"okay\0" | b"ok\0"),
        }
    }

    /// Finds the nodes with a phandle.
    pub fn with_phandle(&self, phandle: u32) -> impl Iterator<Item = NodeId> + '_ {
        self.ids().filter(move |&id| {
            self.u32(id, "phandle")
                .or_else(|| self.u32(id, "linux,phandle"))
                == Some(phandle)
        })
    }

    fn cells_of(&self, id: NodeId) -> Result<Cells, RegError> {
        let read = |name, default| match self.property(id, name) {
            None => Some(default),
            Some(_) => self.u32(id, name),
        };
        let (address, size) = (read("#address-cells", 2), read("#size-cells", 1));
        match (address, size) {
            (Some(address @ 1..=2), Some(size @ 0..=2)) => Ok(Cells {
                address: address as usize,
                size: size as usize,
            }),
            _ => Err(RegError::Cells { address, size }),
        }
    }

    /// Reads the first number of each `reg` entry of a node whose parent has `#size-cells = 0`.
    pub fn reg_address(&self, id: NodeId) -> Result<u64, RegError> {
        let cells = self.cells_of(self.parent(id))?;
        let value = self.property(id, "reg").ok_or(RegError::Missing)?;
        let entry = 4 * (cells.address + cells.size);
        if value.len() < entry || !value.len().is_multiple_of(entry) {
            let bytes = value.len();
            return Err(RegError::Length { bytes, entry });
        }
        Ok(number(value.get(..4 * cells.address).unwrap_or_default()))
    }

    /// Reads `reg` as ranges on the parent's bus. Entries of size 0 are left out.
    pub fn reg(&self, id: NodeId) -> Result<Vec<MemRange>, RegError> {
        let cells = self.cells_of(self.parent(id))?;
        if cells.size == 0 {
            return Err(RegError::Cells {
                address: Some(cells.address as u32),
                size: Some(0),
            });
        }
        let value = self.property(id, "reg").ok_or(RegError::Missing)?;
        let entry = 4 * (cells.address + cells.size);
        if value.is_empty() || !value.len().is_multiple_of(entry) {
            let bytes = value.len();
            return Err(RegError::Length { bytes, entry });
        }
        let mut ranges = Vec::new();
        for entry in value.chunks_exact(entry) {
            let (base, size) = entry.split_at(4 * cells.address);
            let (base, size) = (number(base), number(size));
            if size > 0 {
                ranges.push(MemRange::new(base, size).ok_or(RegError::Wraps { base, size })?);
            }
        }
        Ok(ranges)
    }

    /// Counts the entries of `reg`, those of size 0 included.
    pub fn reg_entries(&self, id: NodeId) -> usize {
        let bytes = self.property(id, "reg").map_or(0, <[u8]>::len);
        self.cells_of(self.parent(id))
            .map_or(0, |cells| bytes / (4 * (cells.address + cells.size)))
    }

    /// Reads `reg` as physical addresses, through the `ranges` of all buses above.
    pub fn translated_reg(&self, id: NodeId) -> Result<Vec<MemRange>, RegError> {
        let mut ranges = self.reg(id)?;
        let mut bus = self.parent(id);
        while bus != Self::ROOT {
            for range in &mut ranges {
                *range = self.translate(bus, *range)?;
            }
            bus = self.parent(bus);
        }
        Ok(ranges)
    }

    /// Translates a range from the bus below `bus` to the one that `bus` is on.
    fn translate(&self, bus: NodeId, range: MemRange) -> Result<MemRange, RegError> {
        let base = range.base();
        let error = RegError::Untranslatable { base };
        let map = self.property(bus, "ranges").ok_or(error)?;
        if map.is_empty() {
            return Ok(range);
        }
        let (child, parent) = (self.cells_of(bus)?, self.cells_of(self.parent(bus))?);
        let entry = 4 * (child.address + parent.address + child.size);
        map.chunks_exact(entry)
            .find_map(|entry| {
                let (from, rest) = entry.split_at(4 * child.address);
                let (to, size) = rest.split_at(4 * parent.address);
                let window = MemRange::new(number(from), number(size))?;
                let moved = number(to).checked_add(base.checked_sub(window.base())?)?;
                MemRange::new(moved, range.size()).filter(|_| window.contains(range))
            })
            .ok_or(error)
    }
}

/// Reads a big-endian number of up to 8 bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |number, &byte| number << 8 | u64::from(byte))
}
