//! Data and instruction aborts that reach EL2: what failed, where, and by which access.
//!
//! Sources: Arm ARM DDI 0487, the ISS encodings for a Data Abort and an Instruction Abort, ISS2,
//! HPFAR_EL2.

use super::esr::{Esr, Syndrome};

/// What stage 2, or memory itself, refused. Levels are those of the walk, -1 to 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage2Fault {
    /// A synchronous Tag Check Fault (DFSC 0x11): the guest's own affair, not stage 2's.
    TagCheck,
    /// A tag access to a page that stage 2 maps NoTagAccess (ESR_EL2.ISS2.TagAccess).
    TagAccess,
    /// The IPA is outside the size that stage 2 or the tables allow.
    AddressSize {
        /// Level of the walk.
        level: i8,
    },
    /// No valid descriptor.
    Translation {
        /// Level of the walk.
        level: i8,
    },
    /// The access flag is clear.
    AccessFlag {
        /// Level of the walk.
        level: i8,
    },
    /// The descriptor does not permit the access.
    Permission {
        /// Level of the walk.
        level: i8,
    },
    /// Memory answered the access with an error.
    ExternalAbort,
    /// Memory answered a table walk with an error.
    ExternalAbortOnWalk {
        /// Level of the walk.
        level: i8,
    },
    /// Parity or ECC, on the access or on a walk.
    Parity,
    /// The address is not aligned as the access needs.
    Alignment,
    /// Granule protection (FEAT_RME).
    GranuleProtection,
    /// Two TLB entries for one address.
    TlbConflict,
    /// A hardware update of the tables that the memory does not support (0x31).
    UnsupportedAtomicUpdate,
    /// An exclusive or atomic access that the memory type does not support (0x35).
    UnsupportedAtomic,
    /// A status code that is not one of these.
    Other {
        /// ESR_EL2.DFSC or IFSC.
        code: u8,
    },
}

impl Stage2Fault {
    const TAG_CHECK: u8 = 0x11;
    /// ESR_EL2.ISS2.TagAccess: bit 9 of ISS2, which starts at bit 32.
    const TAG_ACCESS_BIT: u32 = 32 + 9;

    /// Decodes a data abort.
    ///
    /// The order matters: QEMU 11.1.3 sign-extends the syndrome of a Tag Check Fault, so that the
    /// TagAccess bit reads 1 there too, and reports DFSC 0 with a true TagAccess.
    const fn of_data(esr: Esr) -> Self {
        if esr.dfsc() == Self::TAG_CHECK {
            Self::TagCheck
        } else if esr.bit(Self::TAG_ACCESS_BIT) {
            Self::TagAccess
        } else {
            Self::of_status(esr.dfsc())
        }
    }

    /// Decodes DFSC or IFSC (ISS encoding for an exception from a Data Abort).
    const fn of_status(code: u8) -> Self {
        let level = (code & 3) as i8;
        match code {
            0x00..=0x03 => Self::AddressSize { level },
            0x29 => Self::AddressSize { level: -1 },
            0x2c => Self::AddressSize { level: -2 },
            0x04..=0x07 => Self::Translation { level },
            0x2b => Self::Translation { level: -1 },
            0x2a => Self::Translation { level: -2 },
            0x08..=0x0b => Self::AccessFlag { level },
            0x0c..=0x0f => Self::Permission { level },
            code => Self::of_memory_status(code),
        }
    }

    const fn of_memory_status(code: u8) -> Self {
        match code {
            0x10 => Self::ExternalAbort,
            0x12 => Self::ExternalAbortOnWalk { level: -2 },
            0x13 => Self::ExternalAbortOnWalk { level: -1 },
            0x14..=0x17 => Self::ExternalAbortOnWalk {
                level: (code & 3) as i8,
            },
            0x18 | 0x1b..=0x1f => Self::Parity,
            0x21 => Self::Alignment,
            0x22..=0x28 => Self::GranuleProtection,
            0x30 => Self::TlbConflict,
            0x31 => Self::UnsupportedAtomicUpdate,
            0x35 => Self::UnsupportedAtomic,
            code => Self::Other { code },
        }
    }

    /// Whether HPFAR_EL2 holds the IPA (DDI 0487, HPFAR_EL2).
    ///
    /// A permission fault leaves it UNKNOWN unless the fault is on a stage 1 walk. A tag access
    /// fault is a permission fault.
    const fn has_ipa(self, on_stage1_walk: bool) -> bool {
        match self {
            Self::Translation { .. } | Self::AccessFlag { .. } | Self::AddressSize { .. } => true,
            Self::Permission { .. } => on_stage1_walk,
            _ => false,
        }
    }

    /// Whether FAR_EL2 may be not valid: only an external abort on the access itself says so, by FnV.
    const fn uses_fnv(self) -> bool {
        matches!(self, Self::ExternalAbort)
    }
}

/// HPFAR_EL2.FIPA, bits 43:4, is `IPA[51:12]`.
const fn page_of_hpfar(hpfar: u64) -> u64 {
    (hpfar >> 4 & ((1 << 40) - 1)) << 12
}

/// A data abort taken to EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataAbort {
    /// What failed.
    pub fault: Stage2Fault,
    /// FAR_EL2, if it is valid: the virtual address with its tag byte.
    pub far: Option<u64>,
    /// The IPA of the page, if HPFAR_EL2 holds it. On a stage 1 walk: the page of the descriptor.
    pub ipa_page: Option<u64>,
    /// WnR: a write. Not reliable for a tag access fault.
    pub write: bool,
    /// S1PTW: the fault is on the guest's own table walk.
    pub on_stage1_walk: bool,
    /// CM: a cache maintenance or address translation instruction.
    pub cache_maintenance: bool,
    /// The instruction, if the syndrome describes it (ISV).
    pub access: Option<Access>,
}

impl DataAbort {
    pub(super) const fn decode(syndrome: Syndrome) -> Self {
        let esr = syndrome.esr;
        let fault = Stage2Fault::of_data(esr);
        let on_stage1_walk = esr.bit(7);
        Self {
            fault,
            far: valid_far(syndrome, fault),
            ipa_page: valid_page(syndrome, fault, on_stage1_walk),
            write: esr.bit(6),
            on_stage1_walk,
            cache_maintenance: esr.bit(8),
            access: if esr.bit(24) && !on_stage1_walk {
                Some(Access::decode(esr))
            } else {
                None
            },
        }
    }

    /// The full IPA of the access: the page from HPFAR_EL2, the offset from FAR_EL2.
    ///
    /// None on a stage 1 walk, where FAR_EL2 does not name what was accessed.
    pub const fn ipa(&self) -> Option<u64> {
        match (self.ipa_page, self.far) {
            (Some(page), Some(far)) if !self.on_stage1_walk => Some(page | far & 0xfff),
            _ => None,
        }
    }
}

/// A load or store that a device is asked for, of the kind that nearly all are, decoded alone and therefore quickly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainAccess {
    /// The full IPA.
    pub ipa: u64,
    /// Bytes: 1, 2, 4 or 8.
    pub bytes: u8,
    /// The general-purpose register; 31 is XZR.
    pub register: u8,
    /// A store.
    pub write: bool,
}

impl PlainAccess {
    /// Decodes a data abort from a lower EL by a translation fault, with a valid syndrome of a load that does not extend
    /// the sign or of a store. `None`: it is anything else.
    #[inline]
    pub const fn decode(syndrome: Syndrome) -> Option<Self> {
        /// TagAccess, EC, IL, ISV, SSE, CM, S1PTW, and all of DFSC but the level.
        const MASK: u64 =
            1 << Stage2Fault::TAG_ACCESS_BIT | 0xff << 24 | 1 << 21 | 1 << 8 | 1 << 7 | 0x3c;
        /// A data abort (0x24), of an instruction of 32 bits, described; a translation fault.
        const PLAIN: u64 = 0x24 << 26 | 1 << 25 | 1 << 24 | 4;
        let esr = syndrome.esr.0;
        if esr & MASK != PLAIN {
            return None;
        }
        Some(Self {
            ipa: page_of_hpfar(syndrome.hpfar) | syndrome.far & 0xfff,
            bytes: 1 << (esr >> 22 & 3),
            register: (esr >> 16 & 31) as u8,
            write: esr & 1 << 6 != 0,
        })
    }
}

const fn valid_far(syndrome: Syndrome, fault: Stage2Fault) -> Option<u64> {
    if fault.uses_fnv() && syndrome.esr.bit(10) {
        None
    } else {
        Some(syndrome.far)
    }
}

const fn valid_page(syndrome: Syndrome, fault: Stage2Fault, on_stage1_walk: bool) -> Option<u64> {
    if fault.has_ipa(on_stage1_walk) {
        Some(page_of_hpfar(syndrome.hpfar))
    } else {
        None
    }
}

/// The load or store behind a data abort with a valid instruction syndrome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// SAS: 1, 2, 4 or 8 bytes.
    pub bytes: u8,
    /// SSE: a load extends the sign of what it read.
    pub sign_extend: bool,
    /// SRT: the register, 31 is XZR.
    pub register: u8,
    /// SF: the register is 64 bits wide.
    pub wide_register: bool,
    /// AR: acquire or release.
    pub ordered: bool,
}

impl Access {
    const fn decode(esr: Esr) -> Self {
        Self {
            bytes: 1 << esr.field(22, 2),
            sign_extend: esr.bit(21),
            register: esr.field(16, 5) as u8,
            wide_register: esr.bit(15),
            ordered: esr.bit(14),
        }
    }

    /// The value that a load leaves in its register, of `data` read from the device.
    pub const fn loaded(&self, data: u64) -> u64 {
        let unused = 64 - 8 * self.bytes as u32;
        let narrow = data << unused;
        let value = if self.sign_extend {
            (narrow as i64 >> unused) as u64
        } else {
            narrow >> unused
        };
        if self.wide_register {
            value
        } else {
            value & 0xffff_ffff
        }
    }

    /// The bytes that a store writes, of the value of its register.
    pub const fn stored(&self, register: u64) -> u64 {
        let unused = 64 - 8 * self.bytes as u32;
        register << unused >> unused
    }
}

/// An instruction abort taken to EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstructionAbort {
    /// What failed. Never a tag fault: fetches are not tag-checked.
    pub fault: Stage2Fault,
    /// FAR_EL2, if it is valid.
    pub far: Option<u64>,
    /// The IPA of the page, if HPFAR_EL2 holds it.
    pub ipa_page: Option<u64>,
    /// S1PTW: the fault is on the guest's own table walk.
    pub on_stage1_walk: bool,
}

impl InstructionAbort {
    pub(super) const fn decode(syndrome: Syndrome) -> Self {
        let fault = Stage2Fault::of_status(syndrome.esr.dfsc());
        let on_stage1_walk = syndrome.esr.bit(7);
        Self {
            fault,
            far: valid_far(syndrome, fault),
            ipa_page: valid_page(syndrome, fault, on_stage1_walk),
            on_stage1_walk,
        }
    }
}

#[cfg(test)]
mod tests;
