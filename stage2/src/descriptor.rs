//! Stage-2 descriptors and registers, VMSAv8-64 with a 4 KiB granule and FEAT_S2FWB
//! (DDI 0487, D8.3 and D8.6). The only file that knows their bits.

use crate::addr::{Frame, PAGE_SHIFT, PhysAddr};

/// Bits of a guest physical address: 64 GiB, walked from level 1 with one root table.
pub const IPA_BITS: u32 = 36;
/// Entries of the root table that [`IPA_BITS`] uses.
pub const ROOT_ENTRIES: usize = 1 << (IPA_BITS - 30);
/// Entries of a table.
pub const TABLE_ENTRIES: usize = 512;

const VALID: u64 = 1;
const TABLE_OR_PAGE: u64 = 1 << 1;
const MEM_ATTR_SHIFT: u32 = 2;
const MEM_ATTR_MASK: u64 = 0xf << MEM_ATTR_SHIFT;
const S2AP_READ_WRITE: u64 = 0b11 << 6;
const SH_INNER: u64 = 0b11 << 8;
const ACCESS_FLAG: u64 = 1 << 10;
const EXECUTE_NEVER: u64 = 0b10 << 53;
/// Output address bits 47:12.
const ADDRESS_MASK: u64 = ((1 << 48) - 1) & !((1 << PAGE_SHIFT) - 1);
/// An invalid entry of ours: broken, and about to be made again.
const BROKEN: u64 = 1 << 2;

/// A VM's identifier in the TLBs (VTTBR_EL2.VMID).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Vmid(pub u16);

/// A level of the stage-2 walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// 1 GiB an entry: the root.
    One,
    /// 2 MiB an entry: tables, and blocks of memory without tag access.
    Two,
    /// 4 KiB an entry: pages.
    Three,
}

/// What a page is to the guest, as MemAttr\[3:0\] with HCR_EL2.FWB = 1. The encodings that take the
/// guest's type are never used: a guest with its caches off would not be coherent with EL2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum MemAttr {
    /// Device-nGnRE.
    DeviceNGnRE = 0b0001,
    /// Normal, write-back; tag access allowed if the guest has HCR_EL2.ATA.
    WriteBack = 0b0110,
    /// Normal, write-back; the first tag access faults (FEAT_MTE_PERM).
    NoTagAccess = 0b1110,
}

impl MemAttr {
    const fn decode(bits: u64) -> Option<Self> {
        Some(match bits {
            0b0001 => Self::DeviceNGnRE,
            0b0110 => Self::WriteBack,
            0b1110 => Self::NoTagAccess,
            _ => return None,
        })
    }
}

/// A valid page or block entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// The host frame, of a block the first.
    pub frame: Frame,
    /// How the guest may use it.
    pub attr: MemAttr,
}

/// Why an entry is invalid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Vacancy {
    /// Nothing was ever mapped here.
    NeverMapped,
    /// The page is between break and make: its frame has an owner, and must not be zeroed.
    Broken,
}

/// A descriptor, decoded once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Not valid: an access faults.
    Invalid(Vacancy),
    /// The table of the next level.
    Table(Frame),
    /// A 4 KiB page, or at level 2 a block of 2 MiB.
    Page(Leaf),
    /// Bits that this crate never writes at this level.
    Foreign(u64),
}

impl Entry {
    /// Decodes `raw` as an entry of a table of `level`.
    // Three times in each walk.
    #[inline(always)]
    pub const fn decode(raw: u64, level: Level) -> Self {
        let frame = Frame::containing(PhysAddr::new(raw & ADDRESS_MASK));
        match (raw & (VALID | TABLE_OR_PAGE), level) {
            (0, _) if raw == 0 => Self::Invalid(Vacancy::NeverMapped),
            (0, Level::Two | Level::Three) if raw == BROKEN => Self::Invalid(Vacancy::Broken),
            (0b11, Level::One | Level::Two) => Self::Table(frame),
            (0b01, Level::Two) if !frame.number().is_multiple_of(TABLE_ENTRIES as u64) => {
                Self::Foreign(raw)
            }
            (0b11, Level::Three) | (0b01, Level::Two) => {
                match MemAttr::decode((raw & MEM_ATTR_MASK) >> MEM_ATTR_SHIFT) {
                    Some(attr) => Self::Page(Leaf { frame, attr }),
                    None => Self::Foreign(raw),
                }
            }
            _ => Self::Foreign(raw),
        }
    }

    /// The descriptor's bits in a table of `level`.
    #[inline(always)]
    pub const fn encode(self, level: Level) -> u64 {
        let page = match level {
            Level::One | Level::Two => 0,
            Level::Three => TABLE_OR_PAGE,
        };
        match self {
            Self::Invalid(Vacancy::NeverMapped) => 0,
            Self::Invalid(Vacancy::Broken) => BROKEN,
            Self::Table(frame) => frame.addr().get() | TABLE_OR_PAGE | VALID,
            Self::Page(Leaf { frame, attr }) => {
                let execute = match attr {
                    MemAttr::DeviceNGnRE => EXECUTE_NEVER,
                    MemAttr::WriteBack | MemAttr::NoTagAccess => 0,
                };
                frame.addr().get()
                    | (attr as u64) << MEM_ATTR_SHIFT
                    | execute
                    | S2AP_READ_WRITE
                    | SH_INNER
                    | ACCESS_FLAG
                    | page
                    | VALID
            }
            Self::Foreign(raw) => raw,
        }
    }
}

/// VTCR_EL2 for these tables: T0SZ for [`IPA_BITS`], walks from level 1, inner shareable
/// write-back walks, 4 KiB granule, no hardware update of AF or dirty state. `pa_range` is
/// ID_AA64MMFR0_EL1.PARange; without FEAT_LPA2 tables reach 48 bits at most. `vmid_16` is set if
/// ID_AA64MMFR1_EL1.VMIDBits says 16.
pub const fn vtcr(pa_range: u8, vmid_16: bool) -> u64 {
    const RES1: u64 = 1 << 31;
    const T0SZ: u64 = 64 - IPA_BITS as u64;
    const SL0_LEVEL_1: u64 = 0b01 << 6;
    const IRGN0_WRITE_BACK: u64 = 0b01 << 8;
    const ORGN0_WRITE_BACK: u64 = 0b01 << 10;
    const SH0_INNER: u64 = 0b11 << 12;
    const PS_48_BITS: u8 = 0b101;
    let ps = if pa_range > PS_48_BITS {
        PS_48_BITS
    } else {
        pa_range
    } as u64;
    let walks = SL0_LEVEL_1 | IRGN0_WRITE_BACK | ORGN0_WRITE_BACK | SH0_INNER;
    RES1 | T0SZ | walks | ps << 16 | (vmid_16 as u64) << 19
}

/// VTTBR_EL2 for a root table and its VMID (CnP = 0).
pub const fn vttbr(root: Frame, vmid: Vmid) -> u64 {
    (vmid.0 as u64) << 48 | root.addr().get()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Frame {
        Frame::from_addr(PhysAddr::new(0xffff_f123_4000)).unwrap()
    }

    #[test]
    fn every_entry_survives_encoding() {
        for level in [Level::One, Level::Two, Level::Three] {
            let mut entries = vec![Entry::Invalid(Vacancy::NeverMapped)];
            if level != Level::One {
                entries.push(Entry::Invalid(Vacancy::Broken));
                let frame = match level {
                    Level::Three => frame(),
                    _ => Frame::from_addr(PhysAddr::new(0xffff_f120_0000)).unwrap(),
                };
                for attr in [
                    MemAttr::DeviceNGnRE,
                    MemAttr::WriteBack,
                    MemAttr::NoTagAccess,
                ] {
                    entries.push(Entry::Page(Leaf { frame, attr }));
                }
            }
            if level != Level::Three {
                entries.push(Entry::Table(frame()));
            }
            for entry in entries {
                assert_eq!(Entry::decode(entry.encode(level), level), entry);
            }
        }
    }

    #[test]
    fn ram_descriptors_have_the_bits_of_the_manual() {
        let page = |attr| {
            Entry::Page(Leaf {
                frame: frame(),
                attr,
            })
            .encode(Level::Three)
        };
        // AF, SH = inner, S2AP = RW, XN = 0, valid page; MemAttr in bits 5:2.
        assert_eq!(
            page(MemAttr::WriteBack),
            0xffff_f123_4000 | 0x7c3 | 0b0110 << 2
        );
        assert_eq!(
            page(MemAttr::NoTagAccess),
            0xffff_f123_4000 | 0x7c3 | 0b1110 << 2
        );
        assert_eq!(page(MemAttr::DeviceNGnRE) >> 53 & 3, 0b10);
    }

    #[test]
    fn what_we_never_write_is_foreign() {
        let block = frame().addr().get() | 0x7d9;
        for (raw, level) in [
            (block, Level::One),
            // A block that is not aligned.
            (block, Level::Two),
            (block, Level::Three),
            (BROKEN, Level::One),
            (0x10, Level::Three),
            // MemAttr that takes the guest's type.
            (0xffff_f123_4000 | 0x7c3 | 0b0111 << 2, Level::Three),
            (0xffff_f123_4000 | 0x7c3 | 0b1111 << 2, Level::Three),
        ] {
            assert_eq!(
                Entry::decode(raw, level),
                Entry::Foreign(raw),
                "{raw:#x} {level:?}"
            );
        }
    }

    #[test]
    fn registers_have_the_fields_of_the_manual() {
        // T0SZ 28, SL0 1, IRGN0 1, ORGN0 1, SH0 3, TG0 0, PS 2, RES1.
        assert_eq!(vtcr(2, false), 0x8002_3000 | 1 << 10 | 1 << 8 | 1 << 6 | 28);
        assert_eq!(vtcr(6, false) >> 16 & 7, 5);
        assert_eq!(vtcr(5, true) >> 19 & 1, 1);
        assert_eq!(vttbr(frame(), Vmid(3)), 0x0003_ffff_f123_4000);
    }
}
