//! A VM: its memory, vCPUs and devices, how it is made and loaded, and its part of the report.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use stage2::addr::{Ipa, PAGE_SIZE};
use stage2::descriptor::Vmid;
use stage2::frames::VmId;
use stage2::guest::{GuestSpec, Image, MemError, Policy};
use stage2::memory::Memory;

use crate::bundle::File;
use crate::config::VmConfig;
use crate::cpu::Cpu;
use crate::devices::mmio::GuestBus;
use crate::devices::pv_time::nanoseconds;
use crate::devices::vgic::{Vgic, VgicError};
use crate::devices::vpsci::{PsciVm, VcpuPower};
use crate::devices::vuart::Vuart;
use crate::devices::{affinity, mpidr};
use crate::guest_fdt::{self, FdtError, GuestMachine};
use crate::image::{self, PlacementError, RAM_BASE};
use crate::report::{End, Exits, VmInfo};
use crate::throttle::Throttle;
use crate::traps::id_regs::{GuestShape, IdRegs};
use crate::vcpu::Vcpu;

/// SPIs of a guest's GIC.
const SPIS: usize = 64;

/// What all VMs of this machine have in common.
#[derive(Clone, Debug)]
pub struct Board {
    /// ID registers of the hardware, the weakest CPU's.
    pub hw: IdRegs,
    /// Whether guests can be given MTE at all.
    pub mte: bool,
    /// When tag storage is reserved.
    pub policy: Policy,
    /// Pages a second that the tags of one VM may evict; 0: any number.
    pub eviction_rate: u32,
    /// Counts of the physical counter in a second.
    pub frequency: u64,
    /// List registers of the GIC.
    pub list_registers: usize,
}

/// The images a VM starts from, in the bundle.
#[derive(Clone, Copy, Debug)]
pub struct Images<'a> {
    /// The kernel.
    pub kernel: File<'a>,
    /// The initrd, if there is one.
    pub initrd: Option<File<'a>>,
}

/// Why a VM cannot start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartError {
    /// Its memory.
    Memory(MemError),
    /// Its images.
    Placement(PlacementError),
    /// Its DTB.
    Fdt(FdtError),
    /// Its GIC.
    Gic(VgicError),
    /// A file that the bundle does not have.
    NoFile(String),
    /// None of its CPUs runs guests.
    NoCpu,
    /// More VMs than VMIDs.
    TooMany,
    /// Policy lazy, and no FEAT_MTE_PERM.
    NotLazy,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(MemError::NoMemory) => {
                write!(
                    f,
                    "the machine has no memory left for its images: lower memory of some VM, or give the machine more"
                )
            }
            Self::Memory(error) => write!(f, "{error}"),
            Self::Placement(error) => write!(f, "{error}"),
            Self::Fdt(error) => write!(f, "no device tree for it: {error}"),
            Self::Gic(error) => write!(f, "no GIC for it: {error}"),
            Self::NoFile(name) => write!(f, "the bundle has no file `{name}`"),
            Self::NoCpu => write!(f, "none of its CPUs is there: allow it others"),
            Self::TooMany => write!(f, "there are no more VMIDs"),
            Self::NotLazy => write!(
                f,
                "policy lazy needs FEAT_MTE_PERM, which this machine lacks: use policy eager or auto"
            ),
        }
    }
}

impl From<MemError> for StartError {
    fn from(error: MemError) -> Self {
        Self::Memory(error)
    }
}

/// What the vCPUs of a VM have had of CPUs, in counts of the physical counter.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuTime {
    /// They had one. A sleep in the guest is in it: nobody else wanted that CPU.
    pub ran: u64,
    /// They were ready, and others had it.
    pub stolen: u64,
}

/// A VM.
#[derive(Debug)]
pub struct Vm {
    /// Its place in the VM table.
    pub index: usize,
    /// As configured.
    pub config: VmConfig,
    /// What its memory is called in [`Memory`].
    pub id: VmId,
    /// Its interrupt controller.
    pub vgic: Vgic,
    /// Its UART.
    pub uart: Vuart,
    /// Where its devices are.
    pub bus: GuestBus,
    /// Its vCPUs.
    pub vcpus: Vec<Vcpu>,
    /// What it sees of the CPU.
    pub shape: GuestShape,
    /// Exits by cause.
    pub exits: Exits,
    /// What it has had of CPUs.
    pub time: CpuTime,
    /// Counts in a second.
    frequency: u64,
    /// Its leave to evict pages of others.
    pub throttle: Throttle,
    /// Lines about its mistakes that the console has had.
    pub warnings: u32,
    /// How it ended; none while it lives.
    pub end: Option<End>,
    /// Why, if it was not by its own wish.
    pub reason: Option<String>,
    /// Its figures before its memory was taken away, at its end or for a reset.
    pub last_info: Option<VmInfo>,
}

impl Vm {
    /// Makes a VM with all its vCPUs off and no page mapped.
    ///
    /// # Errors
    ///
    /// No memory for its tables, or no VMID.
    pub fn new(
        index: usize,
        config: VmConfig,
        board: &Board,
        memory: &mut Memory,
        cpu: &mut impl Cpu,
    ) -> Result<Self, StartError> {
        let number = u16::try_from(index).map_err(|_| StartError::TooMany)?;
        let id = VmId::new(number).ok_or(StartError::TooMany)?;
        let mte = config.mte && board.mte;
        let vgic = Vgic::new(config.vcpus, SPIS).map_err(StartError::Gic)?;
        let spec = spec(id, &config, board)?;
        memory.create(cpu, spec)?;
        let shape = GuestShape { mte };
        Ok(Self {
            index,
            id,
            vgic,
            uart: Vuart::new(),
            bus: GuestBus::new(config.vcpus),
            vcpus: (0..config.vcpus)
                .map(|_| Vcpu::new(board.list_registers))
                .collect(),
            shape,
            exits: Exits::default(),
            time: CpuTime::default(),
            frequency: board.frequency,
            throttle: Throttle::new(board.eviction_rate, board.frequency),
            warnings: 0,
            end: None,
            reason: None,
            last_info: None,
            config,
        })
    }

    /// Gives a VM that has ended memory again; [`Self::reset`] and [`Self::load`] start it.
    ///
    /// # Errors
    ///
    /// No memory for it: others have it now.
    pub fn revive(
        &mut self,
        board: &Board,
        memory: &mut Memory,
        cpu: &mut impl Cpu,
    ) -> Result<(), StartError> {
        memory.create(cpu, spec(self.id, &self.config, board)?)?;
        (self.end, self.last_info, self.reason) = (None, None, None);
        Ok(())
    }

    /// Loads a DTB into RAM, has the images copied there as the guest gets to them, and turns vCPU 0 on.
    ///
    /// # Errors
    ///
    /// The images do not fit, or there is no memory left.
    pub fn load(
        &mut self,
        images: Images<'_>,
        rng_seed: &[u8],
        memory: &mut Memory,
        cpu: &mut impl Cpu,
    ) -> Result<(), StartError> {
        let Images { kernel, initrd } = images;
        let initrd_bytes = initrd.map_or(0, |initrd| initrd.data.len() as u64);
        let at = image::place(kernel.data, initrd_bytes, self.config.memory)
            .map_err(StartError::Placement)?;
        let mpidrs: Vec<u64> = (0..self.vcpus.len()).map(affinity).collect();
        let dtb = guest_fdt::build(&GuestMachine {
            memory_bytes: self.config.memory,
            mpidrs: &mpidrs,
            initrd: (initrd_bytes > 0).then_some(at.initrd..at.initrd + initrd_bytes),
            bootargs: &self.config.cmdline,
            rng_seed,
            kaslr_seed: None,
            uart_clock_hz: guest_fdt::UART_CLOCK_HZ,
        })
        .map_err(StartError::Fdt)?;
        let initrd = initrd.map_or(Image::NONE, |initrd| initrd.image_at(at.initrd));
        memory.set_images(self.id, [kernel.image_at(at.kernel), initrd])?;
        self.write(at.dtb, &dtb, memory, cpu)?;
        if let Some(first) = self.vcpus.first_mut() {
            first.power_on(at.kernel, at.dtb);
        }
        self.last_info = None;
        Ok(())
    }

    /// Copies `bytes` to guest address `ipa`, page by page, as a boot loader in the guest would.
    fn write(
        &mut self,
        ipa: u64,
        mut bytes: &[u8],
        memory: &mut Memory,
        cpu: &mut impl Cpu,
    ) -> Result<(), StartError> {
        let mut at = Ipa::new(ipa);
        while !bytes.is_empty() {
            let offset = at.get() - at.page().get();
            let length = bytes.len().min((PAGE_SIZE - offset) as usize);
            let (part, rest) = bytes.split_at(length);
            let frame = memory.populate(cpu, self.id, at.page())?;
            cpu.write_frame(frame, offset as usize, part);
            at = at.checked_add(length as u64).ok_or(MemError::NotRam(at))?;
            bytes = rest;
        }
        Ok(())
    }

    /// Puts devices and vCPUs into their reset state and gives all RAM back zeroed; [`Self::load`] starts it again.
    ///
    /// # Errors
    ///
    /// A guarantee about memory was lost before.
    pub fn reset(
        &mut self,
        board: &Board,
        memory: &mut Memory,
        cpu: &mut impl Cpu,
    ) -> Result<(), StartError> {
        self.vgic = Vgic::new(self.config.vcpus, SPIS).map_err(StartError::Gic)?;
        self.uart = Vuart::new();
        self.throttle = Throttle::new(board.eviction_rate, board.frequency);
        self.vcpus = (0..self.config.vcpus)
            .map(|_| Vcpu::new(board.list_registers))
            .collect();
        Ok(memory.reset(cpu, self.id)?)
    }

    /// Keeps its figures until it starts anew: its memory may be taken away then.
    pub fn keep_figures(&mut self, memory: &Memory) {
        self.last_info = Some(self.info(memory));
    }

    /// Notes how the VM ends, and its last figures, unless they are kept already; its memory may be taken away then. The first end
    /// counts.
    pub fn close(&mut self, end: End, memory: &Memory) {
        if self.end.is_some() {
            return;
        }
        self.end = Some(end);
        let last = VmInfo {
            end: self.end,
            reason: self.reason.clone(),
            ..self.info(memory)
        };
        self.last_info = Some(last);
        for vcpu in &mut self.vcpus {
            vcpu.power = VcpuPower::Off;
        }
    }

    /// Ends the VM: takes its last figures and gives all its memory back, as far as that has not been done yet.
    ///
    /// # Errors
    ///
    /// A guarantee about memory was lost before; all that could be released has been.
    pub fn finish(
        &mut self,
        end: End,
        memory: &mut Memory,
        cpu: &mut impl Cpu,
    ) -> Result<(), MemError> {
        self.close(end, memory);
        memory.destroy(cpu, self.id)
    }

    /// Logs a mistake of the guest, until it has made so many that it only floods the console.
    pub fn warn_guest(&mut self, what: fmt::Arguments<'_>) {
        const MOST: u32 = 16;
        if self.warnings < MOST {
            log::warn!("vm={} {what}", self.config.name);
        } else if self.warnings == MOST {
            log::warn!("vm={} makes more mistakes: not shown", self.config.name);
        }
        self.warnings = self.warnings.saturating_add(1);
    }

    /// Returns the page in which its guest is told about stolen time.
    #[must_use]
    pub const fn pv_time_page(&self) -> Ipa {
        Ipa::new(image::pv_time_page(self.config.memory))
    }

    /// Returns MPIDR_EL1 as `vcpu` reads it.
    #[must_use]
    pub fn mpidr(vcpu: usize) -> u64 {
        mpidr(vcpu)
    }

    /// Returns its part of the report: now, or at its end.
    #[must_use]
    pub fn info(&self, memory: &Memory) -> VmInfo {
        if let Some(info) = &self.last_info {
            return info.clone();
        }
        let policy = memory
            .guest(self.id)
            .map_or(memory.policy(), |guest| guest.spec().policy);
        let account = memory.vm_account(self.id).unwrap_or_default();
        VmInfo {
            name: self.config.name.clone(),
            mte: self.shape.mte,
            policy: policy_name(policy),
            vcpus: self.config.vcpus,
            memory_bytes: self.config.memory,
            tag_budget_bytes: if self.shape.mte {
                self.config.tag_budget_bytes()
            } else {
                0
            },
            cpu_ns: nanoseconds(self.time.ran, self.frequency),
            stolen_ns: nanoseconds(self.time.stolen, self.frequency),
            exits: self.exits.told(),
            end: self.end,
            reason: self.reason.clone(),
            ..VmInfo::from(account)
        }
    }

    /// A VM that could not be started, and why, for the report.
    #[must_use]
    pub fn refused(config: &VmConfig, policy: Policy, why: &StartError) -> VmInfo {
        VmInfo {
            name: config.name.clone(),
            mte: config.mte,
            policy: policy_name(policy),
            vcpus: config.vcpus,
            memory_bytes: config.memory,
            tag_budget_bytes: config.tag_budget_bytes(),
            static_cost_bytes: config.memory / 32,
            end: Some(End::Refused),
            reason: Some(why.to_string()),
            ..VmInfo::default()
        }
    }
}

/// What the memory of a VM is to be.
fn spec(vm: VmId, config: &VmConfig, board: &Board) -> Result<GuestSpec, StartError> {
    let policy = config.policy.of_vm(board.policy, board.hw.has_mte_perm());
    Ok(GuestSpec {
        vm,
        // VMID 0 is EL2's own: nothing runs with it.
        vmid: Vmid(vm.index() + 1),
        ram_base: Ipa::new(RAM_BASE),
        ram_bytes: config.memory,
        mte: config.mte && board.mte,
        policy: policy.ok_or(StartError::NotLazy)?,
        tag_budget: config.tag_budget_bytes(),
    })
}

impl PsciVm for Vm {
    fn vcpus(&self) -> usize {
        self.vcpus.len()
    }

    fn power(&self, vcpu: usize) -> VcpuPower {
        match self.vcpus.get(vcpu) {
            // Turned on, and no CPU has entered it yet.
            Some(vcpu) if vcpu.power == VcpuPower::On && vcpu.fresh => VcpuPower::OnPending,
            Some(vcpu) => vcpu.power,
            None => VcpuPower::Off,
        }
    }

    fn is_ram(&self, ipa: u64) -> bool {
        ipa.checked_sub(RAM_BASE)
            .is_some_and(|offset| offset < self.config.memory)
    }
}

/// The policy as reports name it.
#[must_use]
pub const fn policy_name(policy: Policy) -> &'static str {
    match policy {
        Policy::Static => "static",
        Policy::Eager => "eager",
        Policy::Lazy => "lazy",
    }
}
