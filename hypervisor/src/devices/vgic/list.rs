//! The virtual CPU interface's registers as plain data: what the world switch loads and stores.

/// List registers the architecture allows (IHI 0069, 12.4.6).
pub const MAX_LIST_REGISTERS: usize = 16;

/// Priority bits that are implemented: five, the fewest a virtual CPU interface may have.
pub(super) const PRIORITY_MASK: u8 = 0xf8;

// ICH_LR<n>_EL2.
pub(super) const PHYSICAL_SHIFT: u32 = 32;
pub(super) const EOI: u64 = 1 << 41;
pub(super) const PRIORITY_SHIFT: u32 = 48;
pub(super) const GROUP1: u64 = 1 << 60;
pub(super) const HARDWARE: u64 = 1 << 61;
pub(super) const PENDING: u64 = 1 << 62;
pub(super) const ACTIVE: u64 = 1 << 63;
pub(super) const STATE: u64 = PENDING | ACTIVE;

// ICH_HCR_EL2.
pub(super) const HCR_EN: u64 = 1 << 0;
pub(super) const HCR_LRENPIE: u64 = 1 << 2;
pub(super) const HCR_NPIE: u64 = 1 << 3;
pub(super) const HCR_TDIR: u64 = 1 << 14;
pub(super) const HCR_EOICOUNT_SHIFT: u32 = 27;

// ICH_VMCR_EL2.
pub(super) const VMCR_ENG0: u64 = 1 << 0;
pub(super) const VMCR_ENG1: u64 = 1 << 1;
pub(super) const VMCR_EOIM: u64 = 1 << 9;
pub(super) const VMCR_PMR_SHIFT: u32 = 24;

/// The hypervisor's view of one virtual CPU interface.
///
/// [`Vgic::flush`](super::Vgic::flush) fills `lr[..used]`, clears the rest and sets `hcr`; the world switch writes
/// `lr[..to_load]` and `hcr` to the CPU and, after an exit, stores `lr[..used]`, `hcr` and `vmcr` back before
/// [`Vgic::sync`](super::Vgic::sync). The active priorities belong to the CPU and the guest alone: they are only saved
/// and restored.
#[derive(Clone, Debug)]
pub struct ListRegisters {
    /// `ICH_LR<n>_EL2`.
    pub lr: [u64; MAX_LIST_REGISTERS],
    /// `ICH_HCR_EL2`.
    pub hcr: u64,
    /// `ICH_VMCR_EL2`.
    pub vmcr: u64,
    /// `ICH_AP0R<n>_EL2`.
    pub ap0r: [u64; 4],
    /// `ICH_AP1R<n>_EL2`.
    pub ap1r: [u64; 4],
    /// List registers that the CPU implements, by `ICH_VTR_EL2.ListRegs`.
    pub(super) count: u8,
    /// List registers in use, always the first ones.
    pub used: u8,
    /// List registers to write to the CPU after a flush: those in use now or before it. A CPU that ran another
    /// virtual CPU in between has to write all [`count`](Self::count).
    pub to_load: u8,
}

impl ListRegisters {
    /// Makes the reset state for a CPU with `count` list registers (1 to 16; anything else is brought into range).
    pub fn new(count: usize) -> Self {
        Self {
            lr: [0; MAX_LIST_REGISTERS],
            hcr: HCR_EN,
            vmcr: 0,
            ap0r: [0; 4],
            ap1r: [0; 4],
            count: count.clamp(1, MAX_LIST_REGISTERS) as u8,
            used: 0,
            to_load: 0,
        }
    }

    /// Returns how many list registers the CPU implements.
    pub const fn count(&self) -> usize {
        self.count as usize
    }

    /// Puts the virtual CPU interface itself into its reset state: nothing enabled, no active priority.
    pub const fn reset_interface(&mut self) {
        self.vmcr = 0;
        self.ap0r = [0; 4];
        self.ap1r = [0; 4];
    }

    /// Returns the list registers to write to the CPU, in order.
    pub fn loadable(&self) -> &[u64] {
        self.lr.get(..usize::from(self.to_load)).unwrap_or(&self.lr)
    }

    /// Returns the list registers to store from the CPU, in order.
    pub fn in_use(&mut self) -> &mut [u64] {
        let used = usize::from(self.used).min(MAX_LIST_REGISTERS);
        self.lr.get_mut(..used).unwrap_or_default()
    }

    /// Returns what to write to a list register that reads `lr`, to signal its physical interrupt again; `None` unless
    /// the guest has deactivated it. For the one that [`Vgic::hw_ppi_slot`](super::Vgic::hw_ppi_slot) names.
    pub const fn rearm(lr: u64) -> Option<u64> {
        if lr & (HARDWARE | STATE) == HARDWARE {
            Some(lr | PENDING)
        } else {
            None
        }
    }
}
