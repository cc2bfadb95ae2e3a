//! What is counted, and what "reclaimed" means: one definition for reports, tests and benchmarks.
//! All figures are bytes unless named otherwise.

/// Where all discovered DRAM is (S17). The fields share no byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ledger {
    /// Chunks of VMs, touched or not.
    pub owned: u64,
    /// Stage-2 tables.
    pub tables: u64,
    /// Tag blocks that hold tags.
    pub reserved: u64,
    /// Tag blocks that hold data.
    pub lent: u64,
    /// Tag blocks that hold nothing.
    pub free_storage: u64,
    /// Tag blocks that hold tags for ever.
    pub offline: u64,
    /// Taggable DRAM that nobody uses.
    pub free: u64,
    /// DRAM without tags that nobody uses.
    pub free_untaggable: u64,
    /// The hypervisor's image and data, firmware, what was loaded, refused carve-outs.
    pub occupied: u64,
}

impl Ledger {
    /// The sum of all fields: the discovered DRAM, or something was lost.
    pub const fn sum(&self) -> u64 {
        let storage = self.reserved + self.lent + self.free_storage + self.offline;
        let memory = self.owned + self.tables + self.free + self.free_untaggable + self.occupied;
        storage + memory
    }
}

/// The machine's figures at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MachineAccount {
    /// All DRAM that the device tree names.
    pub discovered: u64,
    /// All valid tag regions.
    pub carve_out: u64,
    /// Blocks that hold tags.
    pub reserved: u64,
    /// Blocks that hold tags for ever.
    pub offline: u64,
    /// Blocks that hold data.
    pub lent: u64,
    /// The most that ever held data at once.
    pub peak_lent: u64,
    /// Blocks that hold neither.
    pub free: u64,
    /// DRAM without tags, in use or not.
    pub untaggable: u64,
    /// carve_out - reserved - offline.
    pub reclaimed: u64,
    /// reclaimed, less the tables that 2 MiB leaves would save, less metadata.
    pub net_reclaimed: i64,
    /// The most that could be reclaimed with the pages that have tag access now. `None` unless the
    /// policy is lazy: under the others tag access is not tag use.
    pub ideal: Option<u64>,
    /// Stage-2 tables of all VMs.
    pub tables: u64,
    /// Block tables, ownership tables, bitmaps, maps of VMs.
    pub metadata: u64,
    /// Where all memory is.
    pub ledger: Ledger,
}

/// Pages of a VM's RAM by kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PageCounts {
    /// Never touched.
    pub untouched: u64,
    /// Touched, and without tag access; all touched pages of a VM without MTE.
    pub no_tag_access: u64,
    /// With tag access.
    pub tagged: u64,
}

/// The highest figures of a VM's life.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VmPeak {
    /// Pages with tag access.
    pub tagged_pages: u64,
    /// Tag storage.
    pub reserved: u64,
    /// RAM in tag storage.
    pub lent: u64,
}

/// One VM's figures at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VmAccount {
    /// RAM that the guest sees.
    pub memory: u64,
    /// RAM that is mapped.
    pub resident: u64,
    /// Pages by kind.
    pub pages: PageCounts,
    /// RAM that is in tag storage.
    pub lent: u64,
    /// 2 MiB leaves that map RAM now.
    pub big_leaves: u64,
    /// Tag storage reserved for its pages: whole blocks, as a block's users belong to one VM. Under
    /// the static policy the whole `static_cost`.
    pub reserved: u64,
    /// What a static carve-out costs: RAM / 32.
    pub static_cost: u64,
    /// static_cost - reserved. Below 0 where blocks are only partly used, up to a block a chunk.
    pub reclaimed: i64,
    /// Tag faults that gave a page tag access.
    pub tag_faults: u64,
    /// Pages that moved to another frame.
    pub moves: u64,
    /// Pages of others that moved for this VM's tags.
    pub evictions_caused: u64,
    /// Pages that moved for another VM's tags.
    pub evictions_suffered: u64,
    /// Pages that gave tag access back, other than by a reset or the VM's end.
    pub demotions: u64,
    /// Tag faults that had to wait for leave to evict.
    pub throttled: u64,
    /// Whether a lazy VM tags so much that its pages get tag storage at the first access now.
    pub switched_to_eager: bool,
    /// The highest figures so far.
    pub peak: VmPeak,
}
