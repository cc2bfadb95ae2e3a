//! The host's GICv3 (Arm IHI 0069), over the `arm-gic` crate.
//!
//! Three parts as in the architecture: the distributor (one, for SPIs), a redistributor per CPU (SGIs and
//! PPIs) and the CPU interface (system registers). All interrupts are Non-secure group 1 at one priority, so
//! none preempts another. EOImode is 1 on every CPU: `CpuInterface::end` drops the priority and
//! `CpuInterface::deactivate`, or the guest through a list register with HW = 1, makes the interrupt
//! inactive. `arm-gic`'s own `init_cpu` sets EOImode 0 and is not used.

use core::fmt::{self, Display, Formatter};

use arm_gic::IntId;
use arm_gic::gicv3::registers::{Gicd, GicrSgi};
use arm_gic::gicv3::{GicDistributor, GicRedistributor};

use crate::machine::{Interrupt, Trigger};
use crate::mmio::Mmio;

/// Bytes of the distributor's registers.
pub const DISTRIBUTOR_BYTES: usize = 0x1_0000;
/// Bytes of a redistributor's two frames that are used here.
pub const REDISTRIBUTOR_BYTES: usize = 0x2_0000;

const PIDR2: usize = 0xffe8;
const GICD_TYPER: usize = 0x4;
const GICD_TYPER_RSS: u32 = 1 << 26;
const GICR_TYPER: usize = 0x8;
const GICR_TYPER_VLPIS: u64 = 1 << 1;
const GICR_TYPER_LAST: u64 = 1 << 4;
const SGI_FRAME: usize = 0x1_0000;
const GICR_ISPENDR0: usize = SGI_FRAME + 0x200;
const GICR_ICPENDR0: usize = SGI_FRAME + 0x280;
const GICR_ISACTIVER0: usize = SGI_FRAME + 0x300;
const GICR_ICACTIVER0: usize = SGI_FRAME + 0x380;
const FIRST_SPI: u32 = 32;

/// What is wrong with the interrupt controller or with a request to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GicError {
    /// The device tree gives it fewer registers than it must have.
    Registers {
        /// How many bytes.
        bytes: usize,
    },
    /// What is there is no GICv3 or v4.
    Revision(u32),
    /// No redistributor belongs to this CPU.
    NoRedistributor {
        /// The CPU.
        mpidr: u64,
    },
    /// The interrupt is none of those that this part serves.
    Interrupt(u32),
    /// An SGI cannot reach a CPU whose Aff0 is above 15: this GIC does not select ranges.
    Target {
        /// The CPU.
        mpidr: u64,
    },
}

impl Display for GicError {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Registers { bytes } => {
                write!(
                    f,
                    "the GIC has only {bytes:#x} bytes of registers in the DTB"
                )
            }
            Self::Revision(found) => write!(
                f,
                "the GIC's registers say architecture revision {found}, 3 or 4 is required; check its address in the DTB"
            ),
            Self::NoRedistributor { mpidr } => write!(
                f,
                "no GIC redistributor for the CPU with MPIDR {mpidr:#x}; check the GIC's reg in the DTB"
            ),
            Self::Interrupt(intid) => write!(f, "interrupt {intid} is out of range"),
            Self::Target { mpidr } => {
                write!(f, "the CPU with MPIDR {mpidr:#x} cannot be sent an SGI")
            }
        }
    }
}

fn check_revision(registers: Mmio) -> Result<(), GicError> {
    match registers.read32(PIDR2) >> 4 & 0xf {
        3 | 4 => Ok(()),
        found => Err(GicError::Revision(found)),
    }
}

fn known(intid: u32) -> Result<IntId, GicError> {
    IntId::try_from(intid).map_err(|_| GicError::Interrupt(intid))
}

const fn trigger(trigger: Trigger) -> arm_gic::Trigger {
    match trigger {
        Trigger::Level => arm_gic::Trigger::Level,
        Trigger::Edge => arm_gic::Trigger::Edge,
    }
}

/// The distributor.
#[derive(Debug)]
pub struct Distributor {
    driver: GicDistributor<'static>,
    registers: Mmio,
}

impl Distributor {
    /// Takes over the distributor at `registers`.
    ///
    /// # Errors
    /// There are too few registers, or they are no GICv3's.
    pub fn new(registers: Mmio) -> Result<Self, GicError> {
        let block = registers.block::<Gicd>().ok_or(GicError::Registers {
            bytes: registers.bytes(),
        })?;
        check_revision(registers)?;
        Ok(Self {
            driver: GicDistributor::new(block),
            registers,
        })
    }

    /// Disables all SPIs and makes them group 1, level-triggered, of equal priority; then forwards group 1.
    pub fn init(&mut self) {
        self.driver.enable_all_interrupts(false);
        self.driver.wait_for_pending_write();
        // Seen from Non-secure state the bit that this sets first is ARE_NS (IHI 0069, 12.9.4).
        self.driver.configure_default_settings();
    }

    /// Returns how many SPIs there are.
    #[must_use]
    pub fn spi_count(&self) -> u32 {
        self.driver.typer().num_spis()
    }

    /// Says whether SGIs can reach CPUs whose Aff0 is above 15 (GICD_TYPER.RSS).
    #[must_use]
    pub fn selects_ranges(&self) -> bool {
        self.registers.read32(GICD_TYPER) & GICD_TYPER_RSS != 0
    }

    /// Routes an SPI to the CPU with `mpidr` and enables it.
    ///
    /// # Errors
    /// It is no SPI that the distributor has.
    pub fn enable(&mut self, interrupt: Interrupt, mpidr: u64) -> Result<(), GicError> {
        let intid = self.spi(interrupt.intid)?;
        let refused = |_| GicError::Interrupt(interrupt.intid);
        let driver = &mut self.driver;
        driver
            .set_trigger(intid, trigger(interrupt.trigger))
            .and_then(|()| driver.set_routing(intid, Some(mpidr)))
            .and_then(|()| driver.enable_interrupt(intid, true))
            .map_err(refused)
    }

    /// Disables an SPI and waits until that has taken effect.
    ///
    /// # Errors
    /// It is no SPI that the distributor has.
    pub fn disable(&mut self, intid: u32) -> Result<(), GicError> {
        let spi = self.spi(intid)?;
        let result = self.driver.enable_interrupt(spi, false);
        self.driver.wait_for_pending_write();
        result.map_err(|_| GicError::Interrupt(intid))
    }

    fn spi(&self, intid: u32) -> Result<IntId, GicError> {
        if !(FIRST_SPI..FIRST_SPI + self.spi_count()).contains(&intid) {
            return Err(GicError::Interrupt(intid));
        }
        known(intid)
    }
}

/// The redistributor of one CPU: its SGIs (INTID 0..16) and PPIs (16..32).
#[derive(Clone, Copy, Debug)]
pub struct Redistributor {
    registers: Mmio,
}

impl Redistributor {
    /// Finds the redistributor of the CPU with `mpidr` in the regions of the device tree. `stride` is the
    /// board's distance from one to the next; without it GICR_TYPER.VLPIS tells (IHI 0069, 12.10).
    ///
    /// # Errors
    /// There is none, or the registers are no GICv3's.
    pub fn find(
        regions: impl IntoIterator<Item = Mmio>,
        stride: Option<u64>,
        mpidr: u64,
    ) -> Result<Self, GicError> {
        let wanted = (mpidr >> 32 & 0xff) << 24 | mpidr & 0xff_ffff;
        for region in regions {
            let mut offset = 0;
            while let Some(registers) = region.slice(offset, REDISTRIBUTOR_BYTES) {
                check_revision(registers)?;
                let typer = registers.read64(GICR_TYPER);
                if typer >> 32 == wanted {
                    return Ok(Self { registers });
                }
                if typer & GICR_TYPER_LAST != 0 {
                    break;
                }
                let frames = if typer & GICR_TYPER_VLPIS == 0 { 1 } else { 2 };
                let step = stride.map_or(frames * REDISTRIBUTOR_BYTES, |bytes| bytes as usize);
                offset = offset.saturating_add(step.max(SGI_FRAME));
            }
        }
        Err(GicError::NoRedistributor { mpidr })
    }

    /// Wakes the redistributor, to be called on its own CPU, and disables and clears all its interrupts.
    pub fn init(&mut self) {
        if let Some(mut driver) = self.driver() {
            driver.power_on();
            // Fails only if firmware has woken it before.
            let _ = driver.mark_core_awake();
            driver.configure_default_settings();
            driver.wait_for_pending_write();
        }
        self.registers.write32(GICR_ICPENDR0, u32::MAX);
        self.registers.write32(GICR_ICACTIVER0, u32::MAX);
    }

    fn driver(&mut self) -> Option<GicRedistributor<'static>> {
        self.registers.block::<GicrSgi>().map(GicRedistributor::new)
    }

    /// Enables an SGI or PPI.
    ///
    /// # Errors
    /// It is neither.
    pub fn enable(&mut self, interrupt: Interrupt) -> Result<(), GicError> {
        let intid = interrupt.intid;
        bit(intid)?;
        let (id, refused) = (known(intid)?, GicError::Interrupt(intid));
        let mut driver = self.driver().ok_or(refused)?;
        if intid >= 16 {
            // The trigger of an SGI is fixed.
            driver
                .set_trigger(id, trigger(interrupt.trigger))
                .map_err(|_| refused)?;
        }
        driver.enable_interrupt(id, true).map_err(|_| refused)
    }

    /// Disables an SGI or PPI and waits until that has taken effect.
    ///
    /// # Errors
    /// It is neither.
    pub fn disable(&mut self, intid: u32) -> Result<(), GicError> {
        bit(intid)?;
        let (id, refused) = (known(intid)?, GicError::Interrupt(intid));
        let mut driver = self.driver().ok_or(refused)?;
        driver.enable_interrupt(id, false).map_err(|_| refused)?;
        driver.wait_for_pending_write();
        Ok(())
    }

    /// Makes an SGI or PPI active or inactive: an active one is not taken again. A vCPU's level-triggered
    /// PPI stays active while the guest handles it, and this moves that state with the vCPU.
    ///
    /// # Errors
    /// It is neither.
    pub fn set_active(&mut self, intid: u32, active: bool) -> Result<(), GicError> {
        let bit = bit(intid)?;
        let register = if active {
            GICR_ISACTIVER0
        } else {
            GICR_ICACTIVER0
        };
        self.registers.write32(register, bit);
        Ok(())
    }

    /// Tells whether an SGI or PPI is active.
    ///
    /// # Errors
    /// It is neither.
    pub fn is_active(&self, intid: u32) -> Result<bool, GicError> {
        Ok(self.registers.read32(GICR_ISACTIVER0) & bit(intid)? != 0)
    }

    /// Tells whether an SGI or PPI is pending.
    ///
    /// # Errors
    /// It is neither.
    pub fn is_pending(&self, intid: u32) -> Result<bool, GicError> {
        Ok(self.registers.read32(GICR_ISPENDR0) & bit(intid)? != 0)
    }

    /// Makes an edge-triggered PPI or SGI not pending.
    ///
    /// # Errors
    /// It is neither.
    pub fn clear_pending(&mut self, intid: u32) -> Result<(), GicError> {
        let bit = bit(intid)?;
        self.registers.write32(GICR_ICPENDR0, bit);
        Ok(())
    }
}

/// Returns the bit of an SGI or PPI in the registers with one bit for each.
const fn bit(intid: u32) -> Result<u32, GicError> {
    if intid < FIRST_SPI {
        Ok(1 << intid)
    } else {
        Err(GicError::Interrupt(intid))
    }
}

#[cfg(any(test, target_arch = "aarch64"))]
pub use cpu::CpuInterface;

/// System registers exist where there is a CPU that has them, and as `arm-sysregs`' fakes in tests.
#[cfg(any(test, target_arch = "aarch64"))]
mod cpu {
    use arm_gic::InterruptGroup;
    use arm_gic::gicv3::GicCpuInterface;
    use arm_sysregs::el1::accessors::{
        read_icc_ctlr_el1, write_icc_ctlr_el1, write_icc_dir_el1, write_icc_sgi1r_el1,
    };
    use arm_sysregs::el1::registers::{IccCtlrEl1, IccDirEl1, IccSgi1rEl1};

    use super::{GicError, known};
    use crate::mmio::{complete, synchronize};

    const GROUP: InterruptGroup = InterruptGroup::Group1;
    /// All priorities pass.
    const ALL_PRIORITIES: u8 = 0xff;
    /// INTIDs 1020 to 1023 say that there is no interrupt for us.
    const SPECIAL: core::ops::Range<u32> = 1020..1024;

    /// Which sixteen values of Aff0 that of `mpidr` is among.
    const fn range(mpidr: u64) -> u64 {
        mpidr >> 4 & 0xf
    }

    /// The CPU interface of the CPU that calls.
    #[derive(Debug)]
    pub struct CpuInterface;

    impl CpuInterface {
        /// Enables the system registers for EL2 and EL1 and group 1 interrupts, with EOImode 1.
        pub fn init() {
            GicCpuInterface::enable_system_register_el2(true);
            GicCpuInterface::disable_legacy_interrupt_bypass_el2(true);
            synchronize();
            GicCpuInterface::enable_system_register_el1();
            synchronize();
            GicCpuInterface::set_priority_mask(ALL_PRIORITIES);
            write_icc_ctlr_el1(IccCtlrEl1::EOIMODE);
            GicCpuInterface::enable_group1(true);
            synchronize();
        }

        /// Takes the pending interrupt of highest priority: it is active from now on. None if there is none.
        #[must_use]
        pub fn acknowledge() -> Option<u32> {
            let intid = GicCpuInterface::get_and_acknowledge_interrupt(GROUP).map(u32::from);
            // The device accesses of the handler stay behind the acknowledgement.
            complete();
            intid.filter(|intid| !SPECIAL.contains(intid))
        }

        /// Drops the running priority after [`acknowledge`](Self::acknowledge); the interrupt stays active.
        pub fn end(intid: u32) {
            if let Ok(intid) = known(intid) {
                GicCpuInterface::end_interrupt(intid, GROUP);
                synchronize();
            }
        }

        /// Makes an interrupt inactive, after [`end`](Self::end).
        pub fn deactivate(intid: u32) {
            // The handler's device accesses, which quieted the line, come first.
            complete();
            write_icc_dir_el1(IccDirEl1::from_bits_retain(u64::from(intid)));
            synchronize();
        }

        /// Checks that an SGI of this CPU can reach the CPU with `mpidr`; whether the distributor
        /// [selects ranges](super::Distributor::selects_ranges) is said by it.
        ///
        /// # Errors
        /// Aff0 of the CPU is above 15, and this CPU or the distributor does not select ranges.
        pub fn check_target(mpidr: u64, distributor_selects: bool) -> Result<(), GicError> {
            let selects = || distributor_selects && read_icc_ctlr_el1().contains(IccCtlrEl1::RSS);
            if range(mpidr) == 0 || selects() {
                Ok(())
            } else {
                Err(GicError::Target { mpidr })
            }
        }

        /// Sends SGI `sgi` to the CPU with `mpidr`, which [can be reached](Self::check_target); memory written before is
        /// visible to its handler.
        ///
        /// # Errors
        /// There is no such SGI.
        pub fn send_sgi(sgi: u32, mpidr: u64) -> Result<(), GicError> {
            if sgi >= 16 {
                return Err(GicError::Interrupt(sgi));
            }
            let target = (mpidr >> 32 & 0xff) << 48
                | range(mpidr) << 44
                | (mpidr >> 16 & 0xff) << 32
                | (mpidr >> 8 & 0xff) << 16
                | 1 << (mpidr & 0xf);
            complete();
            write_icc_sgi1r_el1(IccSgi1rEl1::from_bits_retain(target | u64::from(sgi) << 24));
            synchronize();
            Ok(())
        }
    }
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use arm_sysregs::el1::fake::SYSREGS;
    use arm_sysregs::el1::registers::{IccCtlrEl1, IccIar1El1};

    use super::*;

    const FRAME_WORDS: usize = REDISTRIBUTOR_BYTES / 8;

    /// Register frames in memory: what is written stays, nothing reacts.
    fn frames(words: usize) -> (Vec<u64>, Mmio) {
        let mut memory = vec![0u64; words];
        // SAFETY: the vector is returned beside `mmio` and not used while that is.
        let mmio = unsafe { Mmio::new(memory.as_mut_ptr().cast(), words * 8) }.unwrap();
        (memory, mmio)
    }

    fn redistributor(region: Mmio, at: usize, affinity: u64, flags: u64) {
        let frame = region.slice(at, REDISTRIBUTOR_BYTES).unwrap();
        frame.write32(PIDR2, 0x3b);
        frame.write32(GICR_TYPER, flags as u32);
        frame.write32(GICR_TYPER + 4, affinity as u32);
    }

    #[test]
    fn a_redistributor_is_found_by_affinity_in_all_regions() {
        let (_a, first) = frames(2 * FRAME_WORDS);
        let (_b, second) = frames(FRAME_WORDS);
        redistributor(first, 0, 0, 0);
        redistributor(first, REDISTRIBUTOR_BYTES, 1, GICR_TYPER_LAST);
        redistributor(second, 0, 0x0102_0003, GICR_TYPER_LAST);
        let find = |mpidr| Redistributor::find([first, second], None, mpidr);
        find(0x8000_0000).unwrap();
        let mut one = find(1).unwrap();
        one.set_active(27, true).unwrap();
        assert_eq!(first.read32(REDISTRIBUTOR_BYTES + GICR_ISACTIVER0), 1 << 27);
        // Aff3 lies in bits 39:32 of MPIDR.
        find(0x1_0002_0003).unwrap();
        assert_eq!(find(2).err(), Some(GicError::NoRedistributor { mpidr: 2 }));
    }

    #[test]
    fn the_distance_between_redistributors_is_the_boards_or_vlpis() {
        let (_memory, region) = frames(6 * FRAME_WORDS);
        redistributor(region, 0, 0, GICR_TYPER_VLPIS);
        redistributor(region, 2 * REDISTRIBUTOR_BYTES, 1, GICR_TYPER_VLPIS);
        redistributor(region, 4 * REDISTRIBUTOR_BYTES, 2, GICR_TYPER_LAST);
        Redistributor::find([region], None, 2).unwrap();
        Redistributor::find([region], Some(4 * REDISTRIBUTOR_BYTES as u64), 2).unwrap();
        // A region that ends without a last one ends the search.
        assert!(Redistributor::find([region], None, 9).is_err());
        let empty = region.slice(0, 0x1000).unwrap();
        assert!(Redistributor::find([empty], None, 0).is_err());
        assert!(Redistributor::find([], None, 0).is_err());
    }

    #[test]
    fn registers_that_are_no_gic_are_refused() {
        let (_memory, region) = frames(FRAME_WORDS);
        assert_eq!(
            Redistributor::find([region], None, 0).err(),
            Some(GicError::Revision(0))
        );
        assert_eq!(Distributor::new(region).err(), Some(GicError::Revision(0)));
        let bytes = 0x1000;
        let short = region.slice(0, bytes).unwrap();
        assert_eq!(
            Distributor::new(short).err(),
            Some(GicError::Registers { bytes })
        );
    }

    #[test]
    fn private_interrupts_are_enabled_with_their_trigger() {
        let (_memory, region) = frames(FRAME_WORDS);
        redistributor(region, 0, 0, GICR_TYPER_LAST);
        let mut own = Redistributor::find([region], None, 0).unwrap();
        own.init();
        assert_eq!(region.read32(SGI_FRAME + 0x180), u32::MAX); // GICR_ICENABLER0
        assert_eq!(region.read32(SGI_FRAME + 0x80), u32::MAX); // GICR_IGROUPR0
        assert_eq!(region.read32(SGI_FRAME + 0x404), 0x8080_8080); // GICR_IPRIORITYR1
        assert_eq!(region.read32(GICR_ICACTIVER0), u32::MAX);
        let trigger = Trigger::Edge;
        own.enable(Interrupt { intid: 30, trigger }).unwrap();
        assert_eq!(region.read32(SGI_FRAME + 0x100), 1 << 30); // GICR_ISENABLER0
        assert_eq!(region.read32(SGI_FRAME + 0xc04), 1 << 29); // GICR_ICFGR1
        own.disable(27).unwrap();
        assert_eq!(region.read32(SGI_FRAME + 0x180), 1 << 27);
        own.set_active(27, false).unwrap();
        assert_eq!(region.read32(GICR_ICACTIVER0), 1 << 27);
        own.clear_pending(5).unwrap();
        assert_eq!(region.read32(GICR_ICPENDR0), 1 << 5);
        region.write32(GICR_ISPENDR0, 1 << 26);
        assert_eq!(own.is_pending(26), Ok(true));
        assert_eq!(own.is_active(26), Ok(false));
        for intid in [32, 1020, 1056, 4096, u32::MAX] {
            let refused = Err(GicError::Interrupt(intid));
            assert_eq!(own.enable(Interrupt { intid, trigger }), refused);
            assert_eq!(own.disable(intid), refused);
            assert_eq!(own.set_active(intid, true), refused);
        }
    }

    #[test]
    fn shared_interrupts_are_routed_and_out_of_range_ones_refused() {
        let (_memory, registers) = frames(DISTRIBUTOR_BYTES / 8);
        registers.write32(PIDR2, 0x3b);
        registers.write32(4, 2); // GICD_TYPER.ITLinesNumber: 64 SPIs
        let mut distributor = Distributor::new(registers).unwrap();
        distributor.init();
        assert_eq!(distributor.spi_count(), 64);
        assert!(!distributor.selects_ranges());
        registers.write32(4, 2 | 1 << 26);
        assert!(distributor.selects_ranges());
        assert_eq!(registers.read32(0), 0x12); // GICD_CTLR: ARE, group 1
        assert_eq!(registers.read32(0x84), u32::MAX); // GICD_IGROUPR1
        let trigger = Trigger::Level;
        let uart = Interrupt { intid: 33, trigger };
        distributor.enable(uart, 0x1_8000_0203).unwrap();
        assert_eq!(registers.read32(0x104), 1 << 1); // GICD_ISENABLER1

        distributor.disable(33).unwrap();
        assert_eq!(registers.read32(0x184), 1 << 1); // GICD_ICENABLER1
        for intid in [0, 31, 96, 1019, 1020, 4096, u32::MAX] {
            let refused = Err(GicError::Interrupt(intid));
            assert_eq!(distributor.enable(Interrupt { intid, trigger }, 0), refused);
            assert_eq!(distributor.disable(intid), refused);
        }
    }

    /// One test, as the fake registers are shared by all.
    #[test]
    fn the_cpu_interface_runs_with_eoimode_1() {
        CpuInterface::init();
        let registers = || SYSREGS.lock().unwrap();
        assert_eq!(registers().icc_ctlr_el1.bits(), 1 << 1);
        assert_eq!(registers().icc_pmr_el1.bits(), 0xff);
        assert_eq!(registers().icc_igrpen1_el1.bits(), 1);
        for (read, taken) in [(27, Some(27)), (33, Some(33)), (8192, Some(8192))] {
            registers().icc_iar1_el1 = IccIar1El1::from_bits_retain(read);
            assert_eq!(CpuInterface::acknowledge(), taken);
        }
        for special in 1020..1024 {
            registers().icc_iar1_el1 = IccIar1El1::from_bits_retain(special);
            assert_eq!(CpuInterface::acknowledge(), None);
        }
        CpuInterface::end(27);
        assert_eq!(registers().icc_eoir1_el1.bits(), 27);
        CpuInterface::deactivate(27);
        assert_eq!(registers().icc_dir_el1.bits(), 27);
        CpuInterface::send_sgi(3, 0x1_0002_0304).unwrap();
        assert_eq!(registers().icc_sgi1r_el1.bits(), 0x0001_0002_0303_0010);
        CpuInterface::send_sgi(3, 0x1_0002_03f4).unwrap();
        assert_eq!(registers().icc_sgi1r_el1.bits(), 0x0001_f002_0303_0010);
        let refused = |mpidr| Err(GicError::Target { mpidr });
        for selects in [false, true] {
            registers().icc_ctlr_el1 = IccCtlrEl1::EOIMODE;
            assert_eq!(CpuInterface::check_target(15, selects), Ok(()));
            assert_eq!(CpuInterface::check_target(16, selects), refused(16));
            registers().icc_ctlr_el1 = IccCtlrEl1::EOIMODE | IccCtlrEl1::RSS;
            let reached = if selects { Ok(()) } else { refused(16) };
            assert_eq!(CpuInterface::check_target(16, selects), reached);
        }
        assert_eq!(CpuInterface::send_sgi(16, 0), Err(GicError::Interrupt(16)));
    }
}
