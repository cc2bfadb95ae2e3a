//! The discovered board as plain data.
//!
//! Addresses are physical byte addresses, sizes are bytes, interrupts are GIC INTIDs. Nothing here has been
//! compared with what is loaded where: that is the boot order's work, and the geometry of a tag region is
//! judged by the memory layer.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Display, Formatter};

use crate::fdt::RegError;
use crate::timer::Timer;

/// A range of physical addresses that neither is empty nor wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemRange {
    base: u64,
    size: u64,
}

impl MemRange {
    /// Makes a range of `size` bytes at `base`; none if it is empty or ends above 2^64 - 1.
    #[must_use]
    pub const fn new(base: u64, size: u64) -> Option<Self> {
        match base.checked_add(size) {
            Some(_) if size > 0 => Some(Self { base, size }),
            _ => None,
        }
    }

    /// Returns the first address.
    #[must_use]
    pub const fn base(self) -> u64 {
        self.base
    }

    /// Returns the number of bytes.
    #[must_use]
    pub const fn size(self) -> u64 {
        self.size
    }

    /// Returns the first address after the range.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.base + self.size // `new` has checked the sum
    }

    /// Tells whether all of `other` lies inside.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.base <= other.base && other.end() <= self.end()
    }

    /// Tells whether the two have an address in common.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.base < other.end() && other.base < self.end()
    }
}

impl Display for MemRange {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}, {:#x})", self.base, self.end())
    }
}

/// DRAM as one or more adjacent `/memory` nodes of the same kind name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Where it is.
    pub range: MemRange,
    /// False where the node says `arm,no-mte`: it can hold data, but has no tags. Tag storage is marked
    /// here only if the board's node does so; see [`Machine::tag_regions`].
    pub taggable: bool,
}

/// Why a range is reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservedBy {
    /// The memory reservation block of the device tree.
    MemReserve,
    /// A child of `/reserved-memory`.
    Node,
    /// Tag storage of a refused region: it holds tags for ever and must not hold data.
    TagStorage,
}

/// DRAM that belongs to somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// Where it is; need not lie inside DRAM.
    pub range: MemRange,
    /// Who says so.
    pub by: ReservedBy,
}

/// A tag region as the device tree describes it: readable, not yet believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagRegionNode {
    /// First byte of the tag storage.
    pub tag_base: u64,
    /// Bytes of tag storage.
    pub tag_bytes: u64,
    /// First byte of the DRAM whose tags it holds.
    pub tagged_base: u64,
    /// Bytes of DRAM whose tags it holds.
    pub tagged_bytes: u64,
    /// The binding's `block-size` in bytes, whatever it says (also 0).
    pub block_bytes: u32,
    /// The node, for messages.
    pub path: String,
}

/// What is wrong with the node of a tag region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RefusalReason {
    /// It is not a child of `/reserved-memory`.
    Place,
    /// `status` is neither absent nor `okay`.
    Disabled,
    /// `reg` cannot be read.
    Reg(RegError),
    /// `reg` has another number of entries than one.
    RegEntries(usize),
    /// The `reg` entry of this node, the region's or its memory's, has size 0.
    Empty(String),
    /// A required property is absent.
    Missing(&'static str),
    /// A property has not the length of its type.
    Length {
        /// Its name.
        property: &'static str,
        /// Its length in bytes.
        bytes: usize,
    },
    /// No node has the phandle that `tagged-memory` names.
    Dangling(u32),
    /// More than one node has the phandle that `tagged-memory` names.
    Ambiguous(u32),
    /// `tagged-memory` names a node that is not a `/memory` node in use.
    NotMemory(String),
    /// `reg` of the `/memory` node has another number of entries than one.
    TaggedEntries {
        /// The `/memory` node.
        path: String,
        /// How many entries its `reg` has.
        entries: usize,
    },
    /// The `/memory` node says `arm,no-mte`.
    Untaggable(String),
    /// `storage-base` is an address inside no taggable `/memory` node.
    NoTaggedMemory(u64),
}

impl Display for RefusalReason {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Place => write!(f, "it is not a child of /reserved-memory"),
            Self::Disabled => write!(f, "its status is not \"okay\""),
            Self::Reg(error) => write!(f, "{error}"),
            Self::RegEntries(n) => write!(f, "reg has {n} entries, one is required"),
            Self::Empty(path) => write!(f, "reg of {path} has size 0"),
            Self::Missing(name) => write!(f, "required property {name} is missing"),
            Self::Length { property, bytes } => {
                write!(f, "property {property} has a length of {bytes} bytes")
            }
            Self::Dangling(phandle) => {
                write!(
                    f,
                    "tagged-memory names phandle {phandle:#x}, which no node has"
                )
            }
            Self::Ambiguous(phandle) => write!(
                f,
                "tagged-memory names phandle {phandle:#x}, which several nodes have"
            ),
            Self::NotMemory(path) => {
                write!(
                    f,
                    "tagged-memory names {path}, which is not a /memory node in use"
                )
            }
            Self::TaggedEntries { path, entries } => write!(
                f,
                "tagged-memory names {path}, whose reg has {entries} entries, one is required"
            ),
            Self::Untaggable(path) => {
                write!(f, "tagged-memory names {path}, which says arm,no-mte")
            }
            Self::NoTaggedMemory(base) => {
                write!(
                    f,
                    "storage-base {base:#x} lies inside no taggable /memory node"
                )
            }
        }
    }
}

/// A tag region that is not used: its storage holds tags for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The region's node.
    pub path: String,
    /// What is wrong with it.
    pub reason: RefusalReason,
    /// Whether its storage is known and therefore listed in [`Machine::reserved`]. If not, any DRAM may
    /// hold tags: no guest may use MTE.
    pub storage_known: bool,
}

impl Display for Refusal {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let kept = if self.storage_known {
            "its tag storage stays static"
        } else {
            "where its tag storage is cannot be known: MTE is off for all guests"
        };
        write!(
            f,
            "tag region {} refused: {}; {kept}",
            self.path, self.reason
        )
    }
}

/// A CPU of the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// The affinity fields of its MPIDR_EL1.
    pub mpidr: u64,
    /// Whether PSCI starts it (`enable-method = "psci"`).
    pub psci: bool,
}

/// How firmware is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// By SMC, the only one that leaves EL2.
    Smc,
    /// By HVC, for callers at EL1.
    Hvc,
}

/// The newest PSCI version that the node is compatible with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PsciVersion {
    /// `arm,psci-0.2`: function identifiers as in the specification.
    V0_2,
    /// `arm,psci-1.0`: PSCI_FEATURES as well.
    V1_0,
}

/// The firmware's PSCI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Psci {
    /// How it is called.
    pub conduit: Conduit,
    /// What it is compatible with; PSCI_VERSION says the rest.
    pub version: PsciVersion,
}

/// When an interrupt line counts as asserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// While the line is active.
    Level,
    /// When it becomes active.
    Edge,
}

/// An interrupt of the GIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// INTID: SGIs 0..16, PPIs 16..32, SPIs 32..1020, extended ranges above 1056.
    pub intid: u32,
    /// How it is triggered.
    pub trigger: Trigger,
}

/// The interrupt controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gic {
    /// The distributor's registers.
    pub distributor: MemRange,
    /// Each range holds the redistributors of some CPUs, one after the other.
    pub redistributors: Vec<MemRange>,
    /// Bytes from one redistributor to the next where the board says so; else GICR_TYPER.VLPIS decides.
    pub stride: Option<u64>,
    /// The interrupt by which list registers ask for attention.
    pub maintenance: Option<Interrupt>,
}

/// The console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uart {
    /// The registers of the PL011.
    pub range: MemRange,
    /// Its interrupt, if it is one of the GIC.
    pub interrupt: Option<Interrupt>,
    /// The node, for messages.
    pub path: String,
}

/// What the device tree says about the board.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// All DRAM, sorted by address, disjoint, not empty.
    pub memory: Vec<Memory>,
    /// Ranges that are not ours, in the order of the device tree.
    pub reserved: Vec<Reserved>,
    /// Tag regions that can be read.
    pub tag_regions: Vec<TagRegionNode>,
    /// Tag regions that cannot.
    pub refusals: Vec<Refusal>,
    /// The CPUs, in the order of the device tree, not empty, each MPIDR once.
    pub cpus: Vec<Cpu>,
    /// Firmware's PSCI, if any.
    pub psci: Option<Psci>,
    /// The interrupt controller.
    pub gic: Gic,
    /// The generic timer.
    pub timer: Timer,
    /// The console, if the board has a PL011.
    pub uart: Option<Uart>,
    /// What the boot loader passed as the initrd, or as a module: the bundle.
    pub initrd: Option<MemRange>,
    /// The boot loader's command line.
    pub bootargs: Option<String>,
    /// `totalsize` of the device tree in bytes.
    pub dtb_bytes: usize,
}

impl Machine {
    /// Returns the bytes of all DRAM.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.memory.iter().map(|m| m.range.size()).sum()
    }

    /// Returns the refused region whose storage is unknown, if there is one: MTE must stay off.
    #[must_use]
    pub fn unknown_tag_storage(&self) -> Option<&Refusal> {
        self.refusals.iter().find(|r| !r.storage_known)
    }
}
