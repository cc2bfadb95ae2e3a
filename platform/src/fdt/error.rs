//! Why a device tree cannot be used, in one line each, with the remedy where there is one.

use alloc::string::String;
use core::fmt::{self, Display, Formatter};

use super::tidy::MAX_DTB_BYTES;
use crate::machine::MemRange;

/// What is wrong with a `reg` property.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegError {
    /// There is none.
    Missing,
    /// `#address-cells` or `#size-cells` of the parent is no number of cells that an address or size has.
    Cells {
        /// `#address-cells`, if it can be read.
        address: Option<u32>,
        /// `#size-cells`, if it can be read.
        size: Option<u32>,
    },
    /// Its length is not a multiple of an entry's.
    Length {
        /// Length of the property in bytes.
        bytes: usize,
        /// Length of an entry in bytes.
        entry: usize,
    },
    /// An entry ends above 2^64 - 1.
    Wraps {
        /// The entry's address.
        base: u64,
        /// The entry's size.
        size: u64,
    },
    /// No `ranges` entry of a bus above maps the address.
    Untranslatable {
        /// The address on the bus.
        base: u64,
    },
}

impl Display for RegError {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Missing => write!(f, "reg is missing"),
            Self::Cells { address, size } => {
                write!(f, "its parent has ")?;
                cells(f, "#address-cells", address)?;
                write!(f, " and ")?;
                cells(f, "#size-cells", size)?;
                write!(f, ", 1 or 2 are understood")
            }
            Self::Length { bytes, entry } => {
                write!(f, "reg has {bytes} bytes, not a multiple of {entry}")
            }
            Self::Wraps { base, size } => {
                write!(
                    f,
                    "reg {base:#x} + {size:#x} runs over the end of the address space"
                )
            }
            Self::Untranslatable { base } => {
                write!(
                    f,
                    "no ranges of the buses above translate address {base:#x}"
                )
            }
        }
    }
}

fn cells(f: &mut Formatter<'_>, name: &str, value: Option<u32>) -> fmt::Result {
    match value {
        Some(value) => write!(f, "{name} = {value}"),
        None => write!(f, "an unreadable {name}"),
    }
}

/// Why there is no machine to run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiscoverError {
    /// x0 did not point at a device tree, and there was none where it is looked for otherwise.
    NoAddress,
    /// The device tree is not aligned to 8 bytes.
    Misaligned {
        /// Where it is.
        address: u64,
    },
    /// Fewer bytes than a header has.
    Short {
        /// How many there are.
        bytes: usize,
    },
    /// It does not begin like a device tree.
    Magic {
        /// The first 4 bytes.
        found: u32,
    },
    /// Neither version 17 nor compatible with it.
    Version {
        /// `version`.
        version: u32,
        /// `last_comp_version`.
        last_compatible: u32,
    },
    /// `totalsize` is below a header's size or above the limit of the arm64 boot protocol.
    Size {
        /// What it says, in bytes.
        bytes: u32,
    },
    /// There are fewer bytes than `totalsize` says.
    Truncated {
        /// What `totalsize` says.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// A block of the header lies outside the tree, is not aligned or overlaps the header.
    Block {
        /// Which one.
        name: &'static str,
        /// Its offset in bytes.
        offset: usize,
    },
    /// The structure block ends in the middle of something, or holds a token out of place.
    Token {
        /// Where, in bytes from the start of the tree.
        offset: usize,
    },
    /// A node's name is empty, too long or not of the characters allowed.
    NodeName {
        /// Where, in bytes from the start of the tree.
        offset: usize,
    },
    /// A property's name is outside the strings block or not of printable ASCII characters.
    PropertyName {
        /// Where the property is, in bytes from the start of the tree.
        offset: usize,
    },
    /// Nodes are nested too deeply.
    Depth {
        /// The limit.
        limit: usize,
    },
    /// More of something than is worth believing.
    TooMany {
        /// What.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The heap is too small for the copy.
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// The validating reader refuses it.
    Damaged(dtoolkit::error::FdtParseError),
    /// The reader refuses it.
    Unreadable,
    /// Two nodes have the same path.
    Duplicate {
        /// The path.
        path: String,
    },
    /// No DRAM.
    NoMemory,
    /// A node without which nothing can run has a bad `reg`.
    Reg {
        /// The node.
        path: String,
        /// What is wrong.
        error: RegError,
    },
    /// Two memory nodes have addresses in common.
    MemoryOverlap {
        /// One of them.
        first: MemRange,
        /// The other.
        second: MemRange,
    },
    /// The memory reservation block has an entry that wraps.
    MemReserve {
        /// The entry's address.
        base: u64,
        /// The entry's size.
        size: u64,
    },
    /// No CPU.
    NoCpu,
    /// Two CPUs have the same MPIDR.
    DuplicateCpu {
        /// The MPIDR.
        mpidr: u64,
    },
    /// The PSCI node's `method` is neither `smc` nor `hvc`.
    PsciMethod,
    /// No GICv3.
    NoGic,
    /// The interrupt controller is older than GICv3.
    OldGic {
        /// The node.
        path: String,
    },
    /// A property of a node without which nothing can run has an unusable value.
    Property {
        /// The node.
        path: String,
        /// The property.
        name: &'static str,
    },
    /// No generic timer with a virtual timer interrupt.
    NoTimer,
    /// `linux,initrd-start` and `-end` are no range.
    Initrd {
        /// The start, if it can be read.
        start: Option<u64>,
        /// The end, if it can be read.
        end: Option<u64>,
    },
    /// The command line is too long or not UTF-8.
    BootArgs,
}

impl Display for DiscoverError {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAddress
            | Self::Misaligned { .. }
            | Self::Short { .. }
            | Self::Magic { .. }
            | Self::Version { .. }
            | Self::Size { .. }
            | Self::Truncated { .. } => self.fmt_header(f),
            Self::Block { .. }
            | Self::Token { .. }
            | Self::NodeName { .. }
            | Self::PropertyName { .. }
            | Self::Depth { .. }
            | Self::TooMany { .. }
            | Self::OutOfMemory { .. }
            | Self::Damaged(_)
            | Self::Unreadable
            | Self::Duplicate { .. } => self.fmt_structure(f),
            _ => self.fmt_content(f),
        }
    }
}

impl DiscoverError {
    fn fmt_header(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAddress => write!(
                f,
                "no device tree: x0 does not point at one; boot with a DTB (booti ADDR INITRD DTB)"
            ),
            Self::Misaligned { address } => write!(
                f,
                "the device tree at {address:#x} is not aligned to 8 bytes; load it at a multiple of 8"
            ),
            Self::Short { bytes } => {
                write!(f, "the device tree has {bytes} bytes, less than its header")
            }
            Self::Magic { found } => write!(
                f,
                "no device tree where x0 points: found {found:#010x} instead of 0xd00dfeed; pass the board's DTB"
            ),
            Self::Version {
                version,
                last_compatible,
            } => write!(
                f,
                "the device tree has version {version} (compatible with {last_compatible}); version 17 is understood, recompile it with dtc"
            ),
            Self::Size { bytes } => write!(
                f,
                "the device tree says it has {bytes} bytes; between 40 and {MAX_DTB_BYTES} are allowed"
            ),
            Self::Truncated { expected, found } => write!(
                f,
                "the device tree is truncated: {found} of {expected} bytes"
            ),
            _ => Ok(()),
        }
    }

    fn fmt_structure(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block { name, offset } => write!(
                f,
                "the device tree is damaged: its {name} block at offset {offset:#x} is out of place"
            ),
            Self::Token { offset } => write!(
                f,
                "the device tree is damaged: bad structure at offset {offset:#x}"
            ),
            Self::NodeName { offset } => write!(
                f,
                "the device tree is damaged: bad node name at offset {offset:#x}"
            ),
            Self::PropertyName { offset } => write!(
                f,
                "the device tree is damaged: bad property name at offset {offset:#x}"
            ),
            Self::Depth { limit } => {
                write!(f, "the device tree nests nodes more than {limit} deep")
            }
            Self::TooMany { what, limit } => {
                write!(f, "the device tree has more than {limit} {what}")
            }
            Self::OutOfMemory { bytes } => write!(
                f,
                "the device tree is too big for the heap: {bytes} bytes are not free"
            ),
            Self::Damaged(error) => write!(f, "the device tree is damaged: {error}"),
            Self::Unreadable => write!(f, "the device tree is damaged: it cannot be read"),
            Self::Duplicate { path } => write!(f, "the device tree has node {path} twice"),
            _ => Ok(()),
        }
    }

    fn fmt_content(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory => write!(
                f,
                "no /memory node: the DTB names no RAM; pass the board's own DTB"
            ),
            Self::Reg { path, error } => write!(f, "node {path} cannot be used: {error}"),
            Self::MemoryOverlap { first, second } => {
                write!(
                    f,
                    "/memory ranges {first} and {second} overlap; correct the DTB"
                )
            }
            Self::MemReserve { base, size } => write!(
                f,
                "memory reservation {base:#x} + {size:#x} runs over the end of the address space"
            ),
            Self::NoCpu => write!(f, "no CPU under /cpus; pass the board's own DTB"),
            Self::DuplicateCpu { mpidr } => {
                write!(
                    f,
                    "two CPUs under /cpus have MPIDR {mpidr:#x}; correct the DTB"
                )
            }
            Self::PsciMethod => {
                write!(
                    f,
                    "node /psci has a method that is neither \"smc\" nor \"hvc\""
                )
            }
            Self::NoGic => write!(f, "no GICv3 in the DTB; pass the board's own DTB"),
            Self::OldGic { path } => write!(
                f,
                "interrupt controller {path} is older than GICv3, which is required (QEMU: -M gic-version=3)"
            ),
            Self::Property { path, name } => {
                write!(f, "node {path} cannot be used: bad value of {name}")
            }
            Self::NoTimer => write!(
                f,
                "no arm,armv8-timer node with the virtual timer's interrupt; pass the board's own DTB"
            ),
            Self::Initrd { start, end } => {
                write!(f, "/chosen has no usable initrd: linux,initrd-start = ")?;
                address(f, *start)?;
                write!(f, ", linux,initrd-end = ")?;
                address(f, *end)
            }
            Self::BootArgs => write!(
                f,
                "/chosen has bootargs that are not UTF-8 or longer than 4096 bytes"
            ),
            _ => Ok(()),
        }
    }
}

fn address(f: &mut Formatter<'_>, value: Option<u64>) -> fmt::Result {
    match value {
        Some(value) => write!(f, "{value:#x}"),
        None => write!(f, "missing or unreadable"),
    }
}

impl core::error::Error for DiscoverError {}
