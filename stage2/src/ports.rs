//! What this crate needs of the hardware, as small traits.
//!
//! EL2 implements them with instructions, [`fakes`](crate::fakes) with a simulated machine. This
//! crate decides *when* and *in which order*; a port decides nothing.

use crate::addr::{Frame, FrameRange, Ipa, PhysAddr};
use crate::descriptor::{TABLE_ENTRIES, Vmid};

/// Access to the frames that hold stage-2 tables: 512 entries of 64 bits each.
pub trait TableMemory {
    /// Reads entry `index` of `table`.
    fn read(&self, table: Frame, index: usize) -> u64;
    /// Writes entry `index` of `table` with one 64-bit store, as the walker may be reading it.
    fn write(&mut self, table: Frame, index: usize, raw: u64);
    /// Writes 0 to all entries of a frame that is not yet, or no longer, reachable.
    fn clear(&mut self, table: Frame);
    /// Writes `first`, `first` + `step` and so on to the entries of a frame that is not reachable.
    fn fill(&mut self, table: Frame, first: u64, step: u64) {
        self.clear(table);
        for index in 0..TABLE_ENTRIES {
            self.write(table, index, first + index as u64 * step);
        }
    }
}

/// The TLBs of all CPUs. TLB maintenance acts on the VMID in VTTBR_EL2, so each call names the
/// victim; the port loads its VTTBR_EL2, and restores the old one.
pub trait Tlb {
    /// Drops what any CPU may hold of the page at `ipa`, and waits until no access through it is
    /// under way: `DSB ISHST`, VTTBR_EL2 and `ISB`, `TLBI IPAS2E1IS`, `DSB ISH`, `TLBI VMALLE1IS`
    /// (for combined stage-1 and stage-2 entries), `DSB ISH`, the erratum repeat.
    fn invalidate_page(&mut self, vmid: Vmid, root: Frame, ipa: Ipa);
    /// Drops what any CPU may hold of the 2 MiB leaf that maps `ipa`, and waits. The steps are those of
    /// [`invalidate_page`](Self::invalidate_page): one `TLBI IPAS2E1IS` at any address of the leaf
    /// drops its entry, and each smaller one that was made of it.
    fn invalidate_block(&mut self, vmid: Vmid, root: Frame, ipa: Ipa);
    /// Drops all that any CPU holds of the VM, and waits: as above with `TLBI VMALLS12E1IS`.
    fn invalidate_vm(&mut self, vmid: Vmid, root: Frame);
    /// Makes entries written before visible to all walkers: `DSB ISHST`, `ISB`.
    fn publish(&mut self);
}

/// Maintenance of tags and of data in tag storage. Tag operations go through EL2's Tagged map, data
/// operations through its Untagged one. The calls do not wait: [`synchronize`](Self::synchronize)
/// does.
pub trait TagCache {
    /// Cleans and invalidates the data lines of `frames` to the point of coherency (`DC CIVAC`).
    fn clean_invalidate_data(&mut self, frames: FrameRange);
    /// Cleans and invalidates the tag lines of the tagged memory `frames` (`DC CIGVAC`).
    fn clean_invalidate_tags(&mut self, frames: FrameRange);
    /// Sets all tags of `frame` to 0 and leaves its data alone (`STGM` or `DC GVA`).
    fn zero_tags(&mut self, frame: Frame);
    /// Copies all tags of one frame to another (`LDGM`, `STGM`). Both have storage for them.
    fn copy_tags(&mut self, from: Frame, to: Frame);
    /// Whether all tags of `frame` are 0 (`LDGM`).
    fn tags_are_zero(&mut self, frame: Frame) -> bool;
    /// Waits for all maintenance, and for all writes of data and tags, before it (`DSB ISH`).
    fn synchronize(&mut self);
}

/// Writes to the data of frames that no guest can reach, through EL2's Untagged map. Tags stay as
/// they are. Only [`sync_code`](Self::sync_code) waits.
pub trait FrameCopy {
    /// Sets all bytes of `frames` to 0.
    fn zero_frames(&mut self, frames: FrameRange);
    /// Sets all bytes of one frame to 0.
    fn zero(&mut self, frame: Frame) {
        self.zero_frames(FrameRange::new(frame, 1));
    }
    /// Copies one frame to another.
    fn copy(&mut self, from: Frame, to: Frame);
    /// Copies bytes of memory that is no guest's into frames.
    fn copy_image(&mut self, from: PhysAddr, to: PhysAddr, bytes: u64);
    /// Swaps two frames, without a third.
    fn exchange(&mut self, one: Frame, other: Frame);
    /// Makes what was written into `frames` visible to instruction fetches, before they are mapped,
    /// and waits: `DC CVAU` unless CTR_EL0.IDC, `IC IVAU` or `IC IALLUIS` unless CTR_EL0.DIC, `DSB
    /// ISH`. Else a guest could execute what the frames held for their last owner.
    fn sync_code(&mut self, frames: FrameRange);
}

/// All ports.
pub trait Hardware: TableMemory + Tlb + TagCache + FrameCopy {}

impl<T: TableMemory + Tlb + TagCache + FrameCopy> Hardware for T {}
