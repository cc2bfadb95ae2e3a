//! The CPUs of the machine: firmware starts each, and it is looked at and counted in, or reported and left out.
//!
//! They come one after the other, before anything is decided that depends on what they can do: the weakest decides for all.
//! Then each sleeps until there are VMs to run. One that does not come within a second is not waited for, and turned away if it
//! comes later.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use platform::Machine;
use platform::features::{CpuFeatures, MissingFeature, MteLevel};
use platform::gic::GicError;
use platform::smccc::PsciError;

use crate::arch::cpu::{self, El2};
use crate::arch::ich::VirtualInterface;
use crate::arch::secondary::Start;
use crate::arch::timer;
use crate::boot::firmware;
use crate::layout::Layout;
use crate::life::MAX_CPUS;
use crate::run::{Interrupts, Shared, ThisCpu, call, run};
use crate::stacks::Stacks;
use crate::traps::id_regs::{IdRegs, Need, Workaround};

/// SMCCC_ARCH_FEATURES.
const ARCH_FEATURES: u32 = 0x8000_0001;
/// Fields of MPIDR_EL1 that name a CPU.
const AFFINITY: u64 = 0xff_00ff_ffff;

/// What a CPU can do, or all CPUs of the machine.
#[derive(Clone)]
pub struct Survey {
    /// What EL2 needs of it.
    pub features: CpuFeatures,
    /// What guests may see of it.
    pub hw: IdRegs,
    /// The virtual CPU interface of its GIC.
    pub interface: VirtualInterface,
    /// Tags that it writes read back, or it has none.
    pub tags_work: bool,
}

impl Survey {
    /// Looks at the CPU that executes this, and sets it up; it tries tags at the start of `probe`.
    ///
    /// # Errors
    ///
    /// It cannot run guests.
    pub fn of_this_cpu(probe: Option<&Range<u64>>) -> Result<Self, MissingFeature> {
        let features = CpuFeatures::new(&cpu::id_registers());
        features.check_required()?;
        let mte = features.mte >= MteLevel::Full;
        cpu::set_up(mte);
        let mut hw = cpu::id_regs();
        if let Some(firmware) = firmware() {
            hw.workarounds = Workaround::ALL.map(|workaround| {
                Need::of(firmware.architecture(ARCH_FEATURES, workaround.function()))
            });
        }
        Ok(Self {
            features,
            hw,
            interface: VirtualInterface::enable(),
            tags_work: probe.filter(|_| mte).is_none_or(cpu::tags_work),
        })
    }

    /// Adds what another CPU can do: what one lacks, all lack.
    fn merge(&mut self, other: &Self) {
        self.features = self.features.merge(other.features);
        self.hw = self.hw.weakest(&other.hw);
        self.interface = self.interface.least(other.interface);
        self.tags_work &= other.tags_work;
    }
}

/// Why a CPU of the device tree does not run guests.
#[derive(Clone, Copy)]
pub enum LeftOut {
    /// There are [`MAX_CPUS`] already.
    TooMany,
    /// The device tree says that it is not started by PSCI.
    Method,
    /// No DRAM was left.
    NoStack,
    /// There is no PSCI, or it is called by HVC.
    NoFirmware,
    /// Firmware's answer to CPU_ON.
    Firmware(PsciError),
    /// It has not come.
    Late,
    /// The one that has come is another, by MPIDR_EL1.
    Other(u64),
    /// Its part of the GIC.
    Gic(GicError),
    /// What EL2 cannot do without.
    Missing(MissingFeature),
    /// Bits of its physical addresses.
    PaRange(u8),
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany => write!(f, "{MAX_CPUS} are the limit"),
            Self::Method => write!(f, "its enable-method in the DTB is not \"psci\""),
            Self::NoStack => write!(f, "there is no memory for its stack"),
            Self::NoFirmware => write!(f, "firmware cannot be called"),
            Self::Firmware(error) => write!(f, "firmware does not start it: {error}"),
            Self::Late => write!(f, "it did not come within a second"),
            Self::Other(mpidr) => write!(f, "another one came, with MPIDR {mpidr:#x}"),
            Self::Gic(error) => write!(f, "{error}"),
            Self::Missing(feature) => write!(f, "{feature}"),
            Self::PaRange(bits) => write!(f, "its {bits} address bits do not reach all DRAM"),
        }
    }
}

/// What a CPU is started for.
pub struct Invitation {
    mpidr: u64,
    /// Its place among those that run guests.
    index: usize,
    interrupts: Interrupts,
    /// The first address above all DRAM.
    memory_end: u64,
    /// Where it tries tags.
    probe: Option<Range<u64>>,
    /// What it has found.
    survey: spin::Once<Result<Survey, LeftOut>>,
}

impl Invitation {
    fn accept(&self) -> Result<Survey, LeftOut> {
        let mpidr = cpu::mpidr() & AFFINITY;
        if mpidr != self.mpidr {
            return Err(LeftOut::Other(mpidr));
        }
        let survey = Survey::of_this_cpu(self.probe.as_ref()).map_err(LeftOut::Missing)?;
        let bits = survey.features.pa_range_bits;
        if self.memory_end > 1 << bits {
            return Err(LeftOut::PaRange(bits));
        }
        let mut interrupts = self.interrupts;
        interrupts.enable().map_err(LeftOut::Gic)?;
        Ok(survey)
    }
}

/// What the CPUs begin with.
struct Go {
    /// Those that run guests, by MPIDR_EL1.
    cpus: Vec<u64>,
    features: CpuFeatures,
    mte: bool,
    shared: &'static Shared,
}

static GO: spin::Once<Go> = spin::Once::new();

/// Where a CPU arrives that firmware has started.
pub fn arrive(invitation: &'static Invitation) -> ! {
    let survey = invitation.survey.call_once(|| invitation.accept());
    let Ok(survey) = survey else { leave() };
    let go = loop {
        match GO.get() {
            Some(go) => break go,
            None => cpu::wait_for_interrupt(),
        }
    };
    let Invitation {
        index, interrupts, ..
    } = *invitation;
    if go.cpus.get(index) != Some(&invitation.mpidr) {
        leave()
    }
    cpu::set_up(go.mte);
    let el2 = El2::new(&go.features, survey.interface);
    el2.interface.deny_sre();
    run(
        go.shared,
        ThisCpu::new(index, el2, interrupts, &survey.hw, go.mte),
    )
}

/// Switches this CPU off.
fn leave() -> ! {
    if let Some(firmware) = firmware() {
        let _ = firmware.cpu_off();
    }
    cpu::park()
}

/// The CPUs that run guests, while boot collects them.
pub struct Cpus {
    /// By MPIDR_EL1; the boot CPU is the first.
    pub mpidrs: Vec<u64>,
    /// What all of them can do.
    pub all: Survey,
}

impl Cpus {
    /// Begins with the boot CPU.
    pub fn new(own: Survey) -> Self {
        Self {
            mpidrs: alloc::vec![cpu::mpidr() & AFFINITY],
            all: own,
        }
    }

    /// Has all other CPUs of the machine started, with the translation tables at `root`; those that do not come are reported.
    /// `interrupts` finds what a CPU needs of the GIC.
    pub fn start_others(
        &mut self,
        machine: &Machine,
        layout: &Layout,
        root: u64,
        probe: Option<&Range<u64>>,
        interrupts: impl Fn(u64) -> Result<Interrupts, GicError>,
    ) {
        let mut stacks = Stacks::in_range(&layout.stacks);
        let ends = machine.memory.iter().map(|memory| memory.range.end());
        let memory_end = ends.max().unwrap_or(0);
        for cpu in &machine.cpus {
            if self.mpidrs.first() == Some(&cpu.mpidr) {
                continue;
            }
            let invite = |interrupts| Invitation {
                mpidr: cpu.mpidr,
                index: self.mpidrs.len(),
                interrupts,
                memory_end,
                probe: probe.cloned(),
                survey: spin::Once::new(),
            };
            let survey = if self.mpidrs.len() >= MAX_CPUS {
                Err(LeftOut::TooMany)
            } else if !cpu.psci {
                Err(LeftOut::Method)
            } else {
                let line = self.all.features.data_line.into();
                interrupts(cpu.mpidr)
                    .map_err(LeftOut::Gic)
                    .and_then(|interrupts| {
                        let stacks = stacks.next().ok_or(LeftOut::NoStack)?;
                        start(Start::new(root, stacks, line, invite(interrupts)))
                    })
            };
            match survey {
                Ok(survey) => {
                    self.all.merge(survey);
                    self.mpidrs.push(cpu.mpidr);
                }
                Err(why) => log::warn!("the CPU with MPIDR {:#x} is left out: {why}", cpu.mpidr),
            }
        }
    }
}

/// Has a CPU started and waits for what it says.
fn start(start: &'static Start) -> Result<&'static Survey, LeftOut> {
    let invitation = start.invitation();
    let (entry, context) = start.entry();
    firmware()
        .ok_or(LeftOut::NoFirmware)?
        .cpu_on(invitation.mpidr, entry, context)
        .map_err(LeftOut::Firmware)?;
    let patience = timer::counter() + timer::frequency();
    loop {
        if let Some(survey) = invitation.survey.get() {
            return survey.as_ref().map_err(|why| *why);
        }
        if timer::counter() > patience {
            start.close();
            return Err(LeftOut::Late);
        }
        cpu::relax();
    }
}

/// Lets all CPUs but this one begin.
pub fn release(cpus: Vec<u64>, features: CpuFeatures, mte: bool, shared: &'static Shared) {
    let go = GO.call_once(|| Go {
        cpus,
        features,
        mte,
        shared,
    });
    for &mpidr in go.cpus.iter().skip(1) {
        call(mpidr);
    }
}
