//! What a vCPU is to exit handling: plain data. The rest of its registers stays in hardware while it runs; see
//! `arch::switch`.

use alloc::boxed::Box;

use crate::devices::pv_time::StolenTime;
use crate::devices::vgic::ListRegisters;
use crate::devices::vpsci::VcpuPower;
use crate::devices::vtimer::EmulatedTimer;
use crate::tag_fault::Search;
use crate::traps::esr::{Esr, Syndrome};
use crate::traps::inject::spsr;
use crate::traps::sysreg::VcpuSysRegs;
use crate::traps::tag_access::LoopGuard;

/// The registers that every exit saves and every entry restores, and the syndrome of the last exit.
///
/// The layout is known to the assembly in `arch::vectors`.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct GuestContext {
    /// X0 to X30.
    pub x: [u64; 31],
    /// ELR_EL2: where the guest goes on.
    pub pc: u64,
    /// SPSR_EL2: the guest's PSTATE.
    pub pstate: u64,
    /// ESR_EL2 at the exit.
    pub esr: u64,
    /// FAR_EL2 at the exit.
    pub far: u64,
    /// HPFAR_EL2 at the exit.
    pub hpfar: u64,
}

impl GuestContext {
    /// Reads general-purpose register `index`; 31 is XZR.
    #[must_use]
    pub fn register(&self, index: u8) -> u64 {
        self.x.get(usize::from(index)).copied().unwrap_or(0)
    }

    /// Why it has left the guest, if synchronously.
    #[must_use]
    pub const fn syndrome(&self) -> Syndrome {
        Syndrome {
            esr: Esr(self.esr),
            far: self.far,
            hpfar: self.hpfar,
        }
    }

    /// Writes general-purpose register `index`; 31 is XZR.
    pub fn set_register(&mut self, index: u8, value: u64) {
        if let Some(register) = self.x.get_mut(usize::from(index)) {
            *register = value;
        }
    }
}

/// A vCPU.
#[derive(Debug)]
pub struct Vcpu {
    /// General-purpose registers; while the vCPU is in the guest they are with its CPU, and this is void.
    pub context: Box<GuestContext>,
    /// Virtual CPU interface of the GIC.
    pub lrs: ListRegisters,
    /// Registers that are trapped and kept here.
    pub sysregs: VcpuSysRegs,
    /// The EL1 physical timer, emulated.
    pub physical_timer: EmulatedTimer,
    /// Keeps tag access faults from repeating for ever.
    pub tag_guard: LoopGuard,
    /// What it looks for while its VM is at its budget.
    pub search: Search,
    /// Whether it is on.
    pub power: VcpuPower,
    /// It waits for an interrupt, or until this count of the physical counter.
    pub waiting: Option<Wake>,
    /// The CPU that runs it while it is on: its place among those that run guests.
    pub home: usize,
    /// That CPU has its registers in hardware.
    pub loaded: bool,
    /// The count at which it was last on the CPU, or became ready since.
    pub ready_at: u64,
    /// What others have taken of its time.
    pub stolen: StolenTime,
    /// It starts with the registers of a reset: what hardware or memory holds of it is void.
    pub fresh: bool,
}

/// What ends a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wake {
    /// The count at which it is over anyhow.
    pub at: Option<u64>,
    /// An interrupt ends it, as it ends a WFI; else the guest is not to run before `at`.
    pub by_interrupt: bool,
}

impl Vcpu {
    /// A vCPU that is off.
    #[must_use]
    pub fn new(list_registers: usize) -> Self {
        Self {
            context: Box::default(),
            lrs: ListRegisters::new(list_registers),
            sysregs: VcpuSysRegs::RESET,
            physical_timer: EmulatedTimer::default(),
            tag_guard: LoopGuard::default(),
            search: Search::default(),
            power: VcpuPower::Off,
            waiting: None,
            home: 0,
            loaded: false,
            ready_at: 0,
            stolen: StolenTime::default(),
            fresh: true,
        }
    }

    /// Turns the vCPU on: EL1h, interrupts masked, MMU and caches off, `argument` in X0 (PSCI CPU_ON; `booting.rst`).
    ///
    /// What it held in list registers is back in the GIC since it was switched out; its CPU interface begins anew.
    pub fn power_on(&mut self, entry: u64, argument: u64) {
        *self = Self::new(self.lrs.count());
        self.context.pc = entry;
        self.context.pstate = spsr::DAIF | spsr::EL1H;
        self.context.set_register(0, argument);
        self.power = VcpuPower::On;
    }

    /// Whether it has something to do.
    #[must_use]
    pub fn is_runnable(&self) -> bool {
        self.power == VcpuPower::On && self.waiting.is_none()
    }
}
