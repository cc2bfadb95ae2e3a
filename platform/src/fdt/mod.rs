//! Discovery: from the bytes of a device tree (FDT, version 17) to a [`Machine`].
//!
//! The input is firmware's and may be anything. Three steps, each of which only sees what the one before let
//! through, so that no input panics, recurses without bound or allocates more than a few times its own size:
//!
//! 1. `tidy` walks the tokens once with every access checked and writes a copy without NOP tokens and without
//!    names that the readers do not take; depth, sizes and counts are bounded here.
//! 2. `dtoolkit` validates the copy.
//! 3. `fdt` reads the copy, by children and properties only: its `reg`, `memory` and `chosen` panic on values
//!    of the wrong length, so values are decoded here (`tree`).
//!
//! Sources: Devicetree Specification 0.4; `Documentation/devicetree/bindings` of Linux; for tag storage the
//! binding of the RFC "arm64: mte: dynamic tag storage reuse" and the older one with `storage-base`.

mod devices;
mod error;
mod memory;
mod tags;
mod tidy;
mod tree;

pub use error::{DiscoverError, RegError};
pub use tidy::{HEADER_BYTES, MAX_DTB_BYTES};

use crate::machine::Machine;
use tree::Tree;

/// Checks the address that the boot loader left in x0.
///
/// # Errors
/// [`DiscoverError::NoAddress`] for 0, [`DiscoverError::Misaligned`] if it is not a multiple of 8.
pub const fn check_address(address: u64) -> Result<(), DiscoverError> {
    if address == 0 {
        Err(DiscoverError::NoAddress)
    } else if !address.is_multiple_of(8) {
        Err(DiscoverError::Misaligned { address })
    } else {
        Ok(())
    }
}

/// Reads the size in bytes of a whole device tree from its first [`HEADER_BYTES`] bytes or more.
///
/// # Errors
/// The header is too short, has the wrong magic or version, or names a size below that of a header or above
/// [`MAX_DTB_BYTES`].
pub fn dtb_size(header: &[u8]) -> Result<usize, DiscoverError> {
    tidy::total_size(header)
}

/// Turns a device tree into the machine that it describes. `dtb` may be longer than the tree.
///
/// Allocates at most about twice the tree's size for the time of the call.
///
/// # Errors
/// The tree is damaged, or a part is missing or contradictory without which nothing can run. A bad tag
/// region or console is no error: see [`Machine::refusals`] and [`Machine::uart`].
pub fn discover(dtb: &[u8]) -> Result<Machine, DiscoverError> {
    let copy = tidy::tidy(dtb)?;
    dtoolkit::fdt::Fdt::new(&copy.blob).map_err(DiscoverError::Damaged)?;
    let fdt = ::fdt::Fdt::new(&copy.blob).map_err(|_| DiscoverError::Unreadable)?;
    let tree = Tree::new(&fdt, copy.nodes)?;
    read_machine(&tree, &fdt, dtb_size(dtb)?)
}

fn read_machine(
    tree: &Tree<'_, '_>,
    fdt: &::fdt::Fdt<'_>,
    dtb_bytes: usize,
) -> Result<Machine, DiscoverError> {
    let memory = memory::memory(tree)?;
    let mut reserved = memory::mem_reserve(fdt)?;
    memory::reserved_nodes(tree, &mut reserved)?;
    let (tag_regions, refusals) = tags::tag_regions(tree, &memory, &mut reserved)?;
    let (gic, gic_node) = devices::gic(tree)?;
    let chosen = tree.child(Tree::ROOT, "chosen");
    Ok(Machine {
        memory,
        reserved,
        tag_regions,
        refusals,
        cpus: devices::cpus(tree)?,
        psci: devices::psci(tree)?,
        timer: devices::timer(tree, gic_node)?,
        uart: devices::uart(tree, chosen, gic_node),
        initrd: devices::initrd(tree, chosen)?,
        bootargs: devices::bootargs(tree, chosen)?,
        gic,
        dtb_bytes,
    })
}
