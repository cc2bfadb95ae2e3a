//! DRAM and the ranges that are not ours.

use alloc::vec::Vec;

use super::error::DiscoverError;
use super::tree::{NodeId, Tree};
use crate::machine::{MemRange, Memory, Reserved, ReservedBy};

const MAX_RANGES: usize = 128;

/// Tells whether a node is a memory node in use.
pub(super) fn is_memory(tree: &Tree<'_, '_>, id: NodeId) -> bool {
    tree.parent(id) == Tree::ROOT
        && id != Tree::ROOT
        && (tree.string(id, "device_type") == Some("memory") || tree.base_name(id) == "memory")
        && tree.enabled(id)
}

/// Tells whether a memory node says that it has no tags: by a property, or by its `compatible`; both are in use.
pub(super) fn is_untaggable(tree: &Tree<'_, '_>, id: NodeId) -> bool {
    const NO_MTE: &str = "arm,no-mte";
    tree.property(id, NO_MTE).is_some() || tree.compatible(id, NO_MTE)
}

/// Reads all memory nodes: sorted, disjoint, neighbours of one kind made one.
pub(super) fn memory(tree: &Tree<'_, '_>) -> Result<Vec<Memory>, DiscoverError> {
    let mut memory = Vec::new();
    for id in tree.ids().filter(|&id| is_memory(tree, id)) {
        let taggable = !is_untaggable(tree, id);
        let ranges = tree.reg(id).map_err(|error| DiscoverError::Reg {
            path: tree.path(id),
            error,
        })?;
        for range in ranges {
            let at = memory.partition_point(|m: &Memory| m.range < range);
            memory.insert(at, Memory { range, taggable });
            limit(memory.len(), "memory ranges")?;
        }
    }
    merge(&memory)
}

fn merge(sorted: &[Memory]) -> Result<Vec<Memory>, DiscoverError> {
    let mut merged: Vec<Memory> = Vec::new();
    for &next in sorted {
        let Some(last) = merged.last_mut() else {
            merged.push(next);
            continue;
        };
        if last.range.overlaps(next.range) {
            return Err(DiscoverError::MemoryOverlap {
                first: last.range,
                second: next.range,
            });
        }
        let joined = MemRange::new(last.range.base(), last.range.size() + next.range.size());
        match joined {
            Some(range)
                if last.range.end() == next.range.base() && last.taggable == next.taggable =>
            {
                last.range = range;
            }
            _ => merged.push(next),
        }
    }
    if merged.is_empty() {
        return Err(DiscoverError::NoMemory);
    }
    Ok(merged)
}

/// Reads the memory reservation block.
pub(super) fn mem_reserve(fdt: &::fdt::Fdt<'_>) -> Result<Vec<Reserved>, DiscoverError> {
    let mut reserved = Vec::new();
    for entry in fdt.memory_reservations() {
        let (base, size) = (entry.address() as u64, entry.size() as u64);
        if size == 0 {
            continue;
        }
        let range = MemRange::new(base, size).ok_or(DiscoverError::MemReserve { base, size })?;
        let by = ReservedBy::MemReserve;
        reserved.push(Reserved { range, by });
        limit(reserved.len(), "memory reservations")?;
    }
    Ok(reserved)
}

/// Adds the children of `/reserved-memory`, tag storage excepted. A node without `reg` asks for memory of
/// the system's choice, which is no business of a hypervisor.
pub(super) fn reserved_nodes(
    tree: &Tree<'_, '_>,
    reserved: &mut Vec<Reserved>,
) -> Result<(), DiscoverError> {
    let Some(parent) = tree.child(Tree::ROOT, "reserved-memory") else {
        return Ok(());
    };
    for id in tree.children(parent) {
        if super::tags::is_tag_storage(tree, id)
            || !tree.enabled(id)
            || tree.property(id, "reg").is_none()
        {
            continue;
        }
        // What firmware keeps must be known before anything is written: a bad node is fatal.
        let ranges = tree.reg(id).map_err(|error| DiscoverError::Reg {
            path: tree.path(id),
            error,
        })?;
        let by = ReservedBy::Node;
        reserved.extend(ranges.into_iter().map(|range| Reserved { range, by }));
        limit(reserved.len(), "reserved ranges")?;
    }
    Ok(())
}

/// Refuses more than [`MAX_RANGES`] of something.
pub(super) const fn limit(count: usize, what: &'static str) -> Result<(), DiscoverError> {
    if count > MAX_RANGES {
        return Err(DiscoverError::TooMany {
            what,
            limit: MAX_RANGES,
        });
    }
    Ok(())
}
