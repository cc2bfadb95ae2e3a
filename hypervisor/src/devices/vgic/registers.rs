//! The registers of the distributor and the redistributors (IHI 0069, 12.9 to 12.11).
//!
//! Accesses of a size or alignment the architecture does not give a register, reserved offsets, interrupts that do not
//! exist, and in the distributor the private interrupts (affinity routing is on): RAZ/WI.

use super::irq::Irq;
use super::{Deactivate, NOWHERE, PRIVATE, SGIS, Vgic, VgicFrame, affinity, vcpu_with_affinity};

// Distributor.
const GICD_CTLR: u64 = 0x0000;
const GICD_TYPER: u64 = 0x0004;
const GICD_IIDR: u64 = 0x0008;
const GICD_IROUTER: u64 = 0x6000;
const GICD_IROUTER_END: u64 = 0x8000;
// Redistributor, RD_base.
const GICR_IIDR: u64 = 0x0004;
const GICR_TYPER: u64 = 0x0008;
const GICR_TYPER_HIGH: u64 = 0x000c;
const GICR_WAKER: u64 = 0x0014;
/// Where SGI_base begins within a redistributor.
const SGI_BASE: u64 = 0x1_0000;
// The same in the distributor and in SGI_base.
const BITS: u64 = 0x0080;
const PRIORITY: u64 = 0x0400;
const TARGETS: u64 = 0x0800;
const CONFIG: u64 = 0x0c00;
const CONFIG_END: u64 = 0x0d00;
const IDS: u64 = 0xffd0;

/// `GICD_CTLR.EnableGrp0` and `EnableGrp1`: what can be written.
const CTLR_ENABLES: u32 = 0b11;
/// `GICD_CTLR.ARE` and `DS`: always one.
const CTLR_FIXED: u32 = 1 << 4 | 1 << 6;
/// `GICD_TYPER.No1N` and `IDbits` (10 bits of INTID).
const TYPER_FIXED: u32 = 1 << 25 | 9 << 19;
/// `GICD_IIDR` and `GICR_IIDR`: designed by Arm, as software has seen it most.
const IIDR: u32 = 0x43b;
/// `GICR_TYPER.Last`.
const TYPER_LAST: u64 = 1 << 4;
/// `GICR_WAKER.ProcessorSleep` and `ChildrenAsleep`.
const WAKER_SLEEP: u32 = 1 << 1;
const WAKER_ASLEEP: u32 = 1 << 2;
/// PIDR4 to 7, PIDR0 to 3 (PIDR2: architecture version 3), CIDR0 to 3.
const DIST_IDS: [u32; 12] = [0x44, 0, 0, 0, 0x92, 0xb4, 0x3b, 0, 0x0d, 0xf0, 0x05, 0xb1];
const REDIST_IDS: [u32; 12] = [0x44, 0, 0, 0, 0x93, 0xb4, 0x3b, 0, 0x0d, 0xf0, 0x05, 0xb1];

/// A register with one bit per interrupt.
#[derive(Clone, Copy)]
enum BitKind {
    Group,
    SetEnable,
    ClearEnable,
    SetPending,
    ClearPending,
    SetActive,
    ClearActive,
}

/// A register that covers interrupts from `first` on.
#[derive(Clone, Copy)]
enum Banked {
    Bits {
        kind: BitKind,
        first: u16,
    },
    /// As many priorities as the access has bytes.
    Priority {
        first: u16,
    },
    Config {
        first: u16,
    },
}

impl Banked {
    fn decode(offset: u64, size: u8) -> Option<Self> {
        let word = size == 4;
        Some(match offset {
            BITS..PRIORITY if word => Self::Bits {
                kind: BitKind::decode(offset)?,
                first: (offset as u16 & 0x7f) * 8,
            },
            PRIORITY..TARGETS if word || size == 1 => Self::Priority {
                first: (offset - PRIORITY) as u16,
            },
            CONFIG..CONFIG_END if word => Self::Config {
                first: (offset - CONFIG) as u16 * 4,
            },
            _ => return None,
        })
    }

    const fn first(self) -> u16 {
        match self {
            Self::Bits { first, .. } | Self::Priority { first } | Self::Config { first } => first,
        }
    }
}

impl BitKind {
    const fn decode(offset: u64) -> Option<Self> {
        Some(match offset >> 7 {
            1 => Self::Group,
            2 => Self::SetEnable,
            3 => Self::ClearEnable,
            4 => Self::SetPending,
            5 => Self::ClearPending,
            6 => Self::SetActive,
            7 => Self::ClearActive,
            _ => return None,
        })
    }

    const fn read(self, irq: &Irq) -> bool {
        match self {
            Self::Group => irq.is_group1(),
            Self::SetEnable | Self::ClearEnable => irq.is_enabled(),
            Self::SetPending | Self::ClearPending => irq.is_pending(),
            Self::SetActive | Self::ClearActive => irq.is_active(),
        }
    }

    /// Writes one bit of the register.
    const fn write(self, irq: &mut Irq, one: bool) -> Deactivate {
        match (self, one) {
            (Self::Group, _) => irq.set_group1(one),
            (_, false) => {}
            (Self::SetEnable, true) => irq.enable(true),
            (Self::ClearEnable, true) => irq.enable(false),
            (Self::SetPending, true) => irq.latch(),
            (Self::ClearPending, true) => return irq.unlatch(),
            (Self::SetActive, true) => return irq.set_active(true),
            (Self::ClearActive, true) => return irq.set_active(false),
        }
        None
    }
}

impl Vgic {
    /// Says whether what is read there depends on list registers of more than one virtual CPU: it is right only if all that run
    /// have been [synchronized](Self::sync).
    pub fn reads_list_registers(&self, frame: VgicFrame, offset: u64) -> bool {
        let offset = match frame {
            VgicFrame::Dist => Some(offset),
            VgicFrame::Redist(_) => offset.checked_sub(SGI_BASE),
        };
        let kind = offset.and_then(BitKind::decode);
        let dynamic = matches!(
            kind,
            Some(
                BitKind::SetPending
                    | BitKind::ClearPending
                    | BitKind::SetActive
                    | BitKind::ClearActive
            )
        );
        dynamic && self.banks.len() > 1
    }

    /// Reads `size` bytes (1, 2, 4 or 8) at `offset` of a frame.
    pub fn read(&self, frame: VgicFrame, offset: u64, size: u8) -> u64 {
        if !is_natural(offset, size) {
            return 0;
        }
        match frame {
            VgicFrame::Dist => self.read_dist(offset, size),
            VgicFrame::Redist(vcpu) if vcpu >= self.banks.len() => 0,
            VgicFrame::Redist(vcpu) => match offset.checked_sub(SGI_BASE) {
                Some(offset) => self.read_sgi_base(vcpu, offset, size),
                None => self.read_rd_base(vcpu, offset, size),
            },
        }
    }

    /// Writes `size` bytes (1, 2, 4 or 8) at `offset` of a frame.
    pub fn write(&mut self, frame: VgicFrame, offset: u64, size: u8, value: u64) {
        if !is_natural(offset, size) {
            return;
        }
        match frame {
            VgicFrame::Dist => self.write_dist(offset, size, value),
            VgicFrame::Redist(vcpu) => {
                let banked = |offset| Banked::decode(offset, size);
                if offset == GICR_WAKER && size == 4 {
                    self.write_waker(vcpu, value as u32);
                } else if let Some(register) = offset.checked_sub(SGI_BASE).and_then(banked)
                    && usize::from(register.first()) < PRIVATE
                {
                    self.write_banked(vcpu, register, size, value);
                }
            }
        }
    }

    fn read_dist(&self, offset: u64, size: u8) -> u64 {
        let word = match offset {
            GICD_IROUTER..GICD_IROUTER_END => return self.read_router(offset, size),
            _ if size != 4 => None,
            GICD_CTLR => Some(self.ctlr | CTLR_FIXED),
            GICD_TYPER => Some(TYPER_FIXED | (self.spis.len() / 32) as u32),
            GICD_IIDR => Some(IIDR),
            IDS.. => id(&DIST_IDS, offset),
            _ => None,
        };
        if let Some(word) = word {
            return word.into();
        }
        match Banked::decode(offset, size) {
            Some(register) if usize::from(register.first()) >= PRIVATE => {
                self.read_banked(0, register, size)
            }
            _ => 0,
        }
    }

    fn write_dist(&mut self, offset: u64, size: u8, value: u64) {
        match offset {
            GICD_CTLR if size == 4 => {
                let enables = value as u32 & CTLR_ENABLES;
                if enables != self.ctlr {
                    self.ctlr = enables;
                    self.refresh_all();
                }
            }
            GICD_IROUTER..GICD_IROUTER_END => self.write_router(offset, size, value),
            _ => {
                if let Some(register) = Banked::decode(offset, size)
                    && usize::from(register.first()) >= PRIVATE
                {
                    self.write_banked(0, register, size, value);
                }
            }
        }
    }

    fn read_rd_base(&self, vcpu: usize, offset: u64, size: u8) -> u64 {
        match (offset, size) {
            (GICR_TYPER | GICR_TYPER_HIGH, _) => {
                let last = if vcpu + 1 == self.banks.len() {
                    TYPER_LAST
                } else {
                    0
                };
                let aff = affinity(vcpu);
                let packed = aff >> 32 << 24 | aff & 0xff_ffff;
                part(packed << 32 | (vcpu as u64) << 8 | last, offset, size)
            }
            (GICR_IIDR, 4) => IIDR.into(),
            (GICR_WAKER, 4) => {
                let asleep = self.banks.get(vcpu).is_some_and(|bank| bank.asleep);
                u64::from(asleep) * u64::from(WAKER_SLEEP | WAKER_ASLEEP)
            }
            (IDS.., 4) => id(&REDIST_IDS, offset).unwrap_or(0).into(),
            _ => 0,
        }
    }

    /// The children fall asleep and wake with the processor, at once.
    fn write_waker(&mut self, vcpu: usize, value: u32) {
        if let Some(bank) = self.banks.get_mut(vcpu) {
            bank.asleep = value & WAKER_SLEEP != 0;
        }
    }

    fn read_sgi_base(&self, vcpu: usize, offset: u64, size: u8) -> u64 {
        match Banked::decode(offset, size) {
            Some(register) if usize::from(register.first()) < PRIVATE => {
                self.read_banked(vcpu, register, size)
            }
            // Both frames of a redistributor end with the same identification.
            _ if size == 4 => id(&REDIST_IDS, offset).unwrap_or(0).into(),
            _ => 0,
        }
    }

    fn read_banked(&self, vcpu: usize, register: Banked, size: u8) -> u64 {
        let irq = |intid| self.irq(vcpu, intid);
        let gather = |first: u16, count: u16, width: u16, field: &dyn Fn(&Irq) -> u64| {
            (0..count).fold(0, |word, n| {
                word | irq(first + n).map_or(0, field) << (n * width)
            })
        };
        match register {
            Banked::Bits { kind, first } => gather(first, 32, 1, &|irq| kind.read(irq).into()),
            Banked::Priority { first } => {
                gather(first, size.into(), 8, &|irq| irq.priority().into())
            }
            Banked::Config { first } => gather(first, 16, 2, &|irq| u64::from(irq.is_edge()) << 1),
        }
    }

    fn write_banked(&mut self, vcpu: usize, register: Banked, size: u8, value: u64) {
        match register {
            Banked::Bits { kind, first } => {
                for n in 0..32 {
                    let one = value >> n & 1 != 0;
                    if one || matches!(kind, BitKind::Group) {
                        self.change(vcpu, first + n, |irq| kind.write(irq, one));
                    }
                }
            }
            Banked::Priority { first } => {
                for (intid, byte) in (first..).zip(value.to_le_bytes()).take(size.into()) {
                    self.configure(vcpu, intid, |irq| irq.set_priority(byte));
                }
            }
            // SGIs are always edge-triggered.
            Banked::Config { first } if first < SGIS => {}
            Banked::Config { first } => {
                for n in 0..16 {
                    let edge = value >> (n * 2 + 1) & 1 != 0;
                    self.configure(vcpu, first + n, |irq| irq.set_edge(edge));
                }
            }
        }
    }

    fn configure(&mut self, vcpu: usize, intid: u16, configure: impl FnOnce(&mut Irq)) {
        self.change(vcpu, intid, |irq| {
            configure(irq);
            None
        });
    }

    fn read_router(&self, offset: u64, size: u8) -> u64 {
        let router = router_index(offset).and_then(|spi| self.routers.get(spi));
        router.map_or(0, |&router| part(router, offset, size))
    }

    /// `Interrupt_Routing_Mode` is RAZ/WI, as `GICD_TYPER.No1N` says. An affinity nobody has keeps the interrupt
    /// pending in the distributor.
    fn write_router(&mut self, offset: u64, size: u8, value: u64) {
        let Some(spi) = router_index(offset) else {
            return;
        };
        let Some(router) = self.routers.get_mut(spi) else {
            return;
        };
        *router = merge(*router, offset, size, value) & crate::devices::AFFINITY_MASK;
        let vcpu = vcpu_with_affinity(*router, self.banks.len());
        let target = vcpu.map_or(NOWHERE, |vcpu| vcpu as u8);
        self.configure(0, (PRIVATE + spi) as u16, |irq| irq.route(target));
    }
}

/// Says whether the access is of a size there is, and aligned to it.
const fn is_natural(offset: u64, size: u8) -> bool {
    matches!(size, 1 | 2 | 4 | 8) && offset & (size as u64 - 1) == 0
}

/// Returns which SPI an offset into `GICD_IROUTER<n>` is about.
fn router_index(offset: u64) -> Option<usize> {
    usize::try_from((offset - GICD_IROUTER) / 8)
        .ok()?
        .checked_sub(PRIVATE)
}

/// Reads a 64-bit register at once or by halves.
const fn part(register: u64, offset: u64, size: u8) -> u64 {
    match (size, offset & 4) {
        (8, _) => register,
        (4, 0) => register & 0xffff_ffff,
        (4, _) => register >> 32,
        _ => 0,
    }
}

/// Writes a 64-bit register at once or by halves.
const fn merge(register: u64, offset: u64, size: u8, value: u64) -> u64 {
    let low = 0xffff_ffff;
    match (size, offset & 4) {
        (8, _) => value,
        (4, 0) => register & !low | value & low,
        (4, _) => register & low | value << 32,
        _ => register,
    }
}

/// Reads an identification register; `offset` is from [`IDS`] on.
fn id(ids: &[u32; 12], offset: u64) -> Option<u32> {
    let index = usize::try_from(offset.checked_sub(IDS)? / 4).ok()?;
    ids.get(index).copied()
}
