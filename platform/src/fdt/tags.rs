//! Tag regions, by both bindings.
//!
//! Both describe tag storage by a child of `/reserved-memory` with `compatible = "arm,mte-tag-storage"`. The
//! RFC's binding names what it tags by the phandle of a `/memory` node (`tagged-memory`, in its first two
//! versions `memory`); the older one by the address of its first byte (`storage-base`), has neither
//! `block-size` (one page) nor `reusable`, and covers 32 times its own size.
//!
//! A region whose node is not in order is refused whole, and its storage is reserved for ever. Whether the
//! geometry of a readable region is possible is not decided here.

use alloc::vec::Vec;

use super::error::DiscoverError;
use super::memory::{is_memory, is_untaggable, limit};
use super::tree::{NodeId, Tree};
use crate::machine::{
    MemRange, Memory, Refusal, RefusalReason, Reserved, ReservedBy, TagRegionNode,
};

/// Bytes of DRAM whose tags one byte of tag storage holds: two granules of 16 bytes.
const DATA_PER_TAG_BYTE: u64 = 32;
/// What the older binding means by a block.
const DEFAULT_BLOCK_BYTES: u32 = 0x1000;

/// Tells whether a node describes tag storage.
pub(super) fn is_tag_storage(tree: &Tree<'_, '_>, id: NodeId) -> bool {
    tree.compatible(id, "arm,mte-tag-storage")
}

/// Reads all tag regions; those refused are added to `reserved` as far as their storage is known.
pub(super) fn tag_regions(
    tree: &Tree<'_, '_>,
    memory: &[Memory],
    reserved: &mut Vec<Reserved>,
) -> Result<(Vec<TagRegionNode>, Vec<Refusal>), DiscoverError> {
    let mut regions = Vec::new();
    let mut refusals = Vec::new();
    for id in tree.ids().filter(|&id| is_tag_storage(tree, id)) {
        match region(tree, id, memory) {
            Ok(region) => regions.push(region),
            Err(reason) => {
                let by = ReservedBy::TagStorage;
                let storage = tree.reg(id).unwrap_or_default();
                refusals.push(Refusal {
                    path: tree.path(id),
                    reason,
                    storage_known: !storage.is_empty(),
                });
                reserved.extend(storage.into_iter().map(|range| Reserved { range, by }));
            }
        }
        limit(regions.len() + refusals.len(), "tag regions")?;
        limit(reserved.len(), "reserved ranges")?;
    }
    Ok((regions, refusals))
}

fn region(
    tree: &Tree<'_, '_>,
    id: NodeId,
    memory: &[Memory],
) -> Result<TagRegionNode, RefusalReason> {
    let parent = tree.parent(id);
    if tree.parent(parent) != Tree::ROOT || tree.base_name(parent) != "reserved-memory" {
        return Err(RefusalReason::Place);
    }
    if !tree.enabled(id) {
        return Err(RefusalReason::Disabled);
    }
    let storage = tree.reg(id).map_err(RefusalReason::Reg)?;
    let storage = match (tree.reg_entries(id), storage.first()) {
        (1, Some(&storage)) => storage,
        (1, None) => return Err(RefusalReason::Empty(tree.path(id))),
        (entries, _) => return Err(RefusalReason::RegEntries(entries)),
    };
    let (tagged, block_bytes) = if tree.property(id, "storage-base").is_some() {
        (
            storage_base(tree, id, storage, memory)?,
            older_block(tree, id)?,
        )
    } else {
        (tagged_memory(tree, id)?, block_size(tree, id)?)
    };
    Ok(TagRegionNode {
        tag_base: storage.base(),
        tag_bytes: storage.size(),
        tagged_base: tagged.base(),
        tagged_bytes: tagged.size(),
        block_bytes,
        path: tree.path(id),
    })
}

/// Reads `block-size`, and insists on `reusable` as the RFC's binding does.
fn block_size(tree: &Tree<'_, '_>, id: NodeId) -> Result<u32, RefusalReason> {
    let value = tree
        .property(id, "block-size")
        .ok_or(RefusalReason::Missing("block-size"))?;
    if tree.property(id, "reusable").is_none() {
        return Err(RefusalReason::Missing("reusable"));
    }
    tree.u32(id, "block-size").ok_or(RefusalReason::Length {
        property: "block-size",
        bytes: value.len(),
    })
}

fn older_block(tree: &Tree<'_, '_>, id: NodeId) -> Result<u32, RefusalReason> {
    match tree.property(id, "block-size") {
        None => Ok(DEFAULT_BLOCK_BYTES),
        Some(value) => tree.u32(id, "block-size").ok_or(RefusalReason::Length {
            property: "block-size",
            bytes: value.len(),
        }),
    }
}

/// Follows `tagged-memory` to the one range of a memory node.
fn tagged_memory(tree: &Tree<'_, '_>, id: NodeId) -> Result<MemRange, RefusalReason> {
    let property = ["tagged-memory", "memory"]
        .into_iter()
        .find(|name| tree.property(id, name).is_some())
        .ok_or(RefusalReason::Missing("tagged-memory"))?;
    let phandle = tree.u32(id, property).ok_or(RefusalReason::Length {
        property,
        bytes: tree.property(id, property).map_or(0, <[u8]>::len),
    })?;
    let mut nodes = tree.with_phandle(phandle);
    let node = nodes.next().ok_or(RefusalReason::Dangling(phandle))?;
    if nodes.next().is_some() {
        return Err(RefusalReason::Ambiguous(phandle));
    }
    let path = tree.path(node);
    if !is_memory(tree, node) {
        return Err(RefusalReason::NotMemory(path));
    }
    if is_untaggable(tree, node) {
        return Err(RefusalReason::Untaggable(path));
    }
    let ranges = tree.reg(node).map_err(RefusalReason::Reg)?;
    match (tree.reg_entries(node), ranges.first()) {
        (1, Some(&tagged)) => Ok(tagged),
        (1, None) => Err(RefusalReason::Empty(path)),
        (entries, _) => Err(RefusalReason::TaggedEntries { path, entries }),
    }
}

/// Follows `storage-base`: 32 times the storage's size, or less where the memory ends before.
fn storage_base(
    tree: &Tree<'_, '_>,
    id: NodeId,
    storage: MemRange,
    memory: &[Memory],
) -> Result<MemRange, RefusalReason> {
    let base = tree.u64(id, "storage-base").ok_or(RefusalReason::Length {
        property: "storage-base",
        bytes: tree.property(id, "storage-base").map_or(0, <[u8]>::len),
    })?;
    memory
        .iter()
        .find(|m| m.taggable && (m.range.base()..m.range.end()).contains(&base))
        .and_then(|m| {
            let size = storage.size().saturating_mul(DATA_PER_TAG_BYTE);
            MemRange::new(base, size.min(m.range.end() - base))
        })
        .ok_or(RefusalReason::NoTaggedMemory(base))
}
