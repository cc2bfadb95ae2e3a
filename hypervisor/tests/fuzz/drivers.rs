//! What the fuzzers do with one input: some bytes, of which a part of tagvisor that faces guests makes something. The state that
//! inputs build up lives in the driver. Shared by the seeded random test beside this and by the targets in `tests/fuzz`.

use hypervisor::devices::mmio::{GICD, GICR_BASE, GICR_SIZE, GuestBus, Target, UART};
use hypervisor::devices::vgic::{ListRegisters, MAX_VCPUS, SgiGroup, Vgic, VgicFrame};
use hypervisor::devices::vpsci::{NOT_SUPPORTED, Outcome, PsciVm, VcpuPower, answer, random};
use hypervisor::devices::vuart::Vuart;
use hypervisor::traps::esr::{Esr, Exit, Syndrome};
use hypervisor::traps::id_regs::{GuestShape, IdReg, IdRegs, Need};
use hypervisor::traps::sysreg::{SysRegContext, SysRegOutcome, VcpuSysRegs, emulate};

/// Bytes of one input.
pub const INPUT_BYTES: usize = 40;

/// One input.
pub type Input = [u8; INPUT_BYTES];

/// A part of tagvisor that takes inputs.
pub trait Driver {
    /// The state after a reset.
    fn new() -> Self;

    /// Takes one input, and checks what holds for each. Returns whether it came to anything.
    fn take(&mut self, input: &Input) -> bool;
}

/// Runs a driver over bytes of any number.
#[allow(dead_code, reason = "for the targets in tests/fuzz")]
pub fn drive<D: Driver>(data: &[u8]) {
    let mut driver = D::new();
    for input in data.as_chunks::<INPUT_BYTES>().0 {
        driver.take(input);
    }
}

/// Parts of an input: each byte has one use.
struct Parts<'a>(&'a Input);

impl Parts<'_> {
    fn byte(&self, at: usize) -> u8 {
        self.0[at]
    }

    fn word(&self, at: usize) -> u64 {
        self.0[at..at + 8]
            .iter()
            .rev()
            .fold(0, |word, &byte| word << 8 | u64::from(byte))
    }

    /// One of `choices`.
    fn pick<T: Copy>(&self, at: usize, choices: &[T]) -> T {
        choices[usize::from(self.byte(at)) % choices.len()]
    }
}

/// Vcpus of the machine that the drivers have.
const VCPUS: usize = 3;

/// From the syndrome of a data abort to the device and back.
pub struct Mmio {
    vgic: Vgic,
    uart: Vuart,
    bus: GuestBus,
}

impl Driver for Mmio {
    fn new() -> Self {
        Self {
            vgic: Vgic::new(VCPUS, 64).unwrap(),
            uart: Vuart::new(),
            bus: GuestBus::new(VCPUS),
        }
    }

    /// Byte 0: how the rest is made likely; 1 to 8 ESR_EL2, 9 to 16 FAR_EL2, 17 to 24 HPFAR_EL2, 25 to 32 the register.
    fn take(&mut self, input: &Input) -> bool {
        let parts = Parts(input);
        let (how, mut esr) = (parts.byte(0), parts.word(1));
        if how & 1 != 0 {
            // A data abort by a translation fault that describes its instruction.
            esr = esr & 0x0ff_f840 | 0x24 << 26 | 1 << 24 | 0x07;
        }
        let (far, mut hpfar) = (parts.word(9), parts.word(17));
        if how & 2 != 0 {
            let page = parts.pick(
                17,
                &[
                    GICD.start,
                    GICD.end - 0x1000,
                    GICD.start + 0x6000,
                    GICR_BASE,
                    GICR_BASE + 0xf000,
                    GICR_BASE + 0x1_0000,
                    GICR_BASE + GICR_SIZE,
                    GICR_BASE + 3 * GICR_SIZE - 0x1000,
                    GICR_BASE + 3 * GICR_SIZE,
                    UART.start,
                    UART.end,
                ],
            );
            hpfar = page >> 12 << 4;
        }
        let exit = Exit::decode(Syndrome {
            esr: Esr(esr),
            far,
            hpfar,
        });
        let Exit::DataAbort(abort) = exit else {
            return false;
        };
        let (Some(access), Some(ipa)) = (abort.access, abort.ipa()) else {
            return false;
        };
        assert!(matches!(access.bytes, 1 | 2 | 4 | 8) && access.register < 32);
        assert!(ipa < 1 << 52);
        let Some(target) = self.bus.find(ipa, access.bytes) else {
            return false;
        };
        let limit = |bytes: u8| u64::MAX >> (64 - 8 * u32::from(bytes));
        let (offset, end) = match target {
            Target::Uart(offset) => (offset, UART.end - UART.start),
            Target::Gic(VgicFrame::Dist, offset) => (offset, GICD.end - GICD.start),
            Target::Gic(VgicFrame::Redist(vcpu), offset) => {
                assert!(vcpu < VCPUS);
                (offset, GICR_SIZE)
            }
        };
        assert!(offset + u64::from(access.bytes) <= end, "within the device");
        if abort.write {
            let value = access.stored(parts.word(25));
            assert!(value <= limit(access.bytes));
            match target {
                Target::Uart(offset) => {
                    let _ = self.uart.write(offset, access.bytes, value);
                }
                Target::Gic(frame, offset) => self.vgic.write(frame, offset, access.bytes, value),
            }
        } else {
            let value = match target {
                Target::Uart(offset) => self.uart.read(offset, access.bytes),
                Target::Gic(frame, offset) => self.vgic.read(frame, offset, access.bytes),
            };
            assert!(value <= limit(access.bytes), "no more than was asked for");
            let loaded = access.loaded(value);
            // No CPU has 8 bytes for a register of 4.
            let register = if access.wide_register { 8 } else { 4 };
            assert!(loaded <= limit(register));
            assert_eq!(
                loaded & limit(access.bytes),
                value & limit(register),
                "all of it"
            );
        }
        true
    }
}

/// The GIC: its registers, what raises interrupts, and CPUs that do to list registers what CPUs do.
pub struct Gic {
    vgic: Vgic,
    vcpus: Vec<ListRegisters>,
}

impl Gic {
    /// What a guest makes of a list register: acknowledged, ended, or left alone.
    fn run(lr: &mut u64, choice: u8) {
        const PENDING: u64 = 1 << 62;
        const ACTIVE: u64 = 1 << 63;
        match choice & 3 {
            0 if *lr & PENDING != 0 => *lr = *lr & !PENDING | ACTIVE,
            1 => *lr &= !ACTIVE,
            _ => {}
        }
    }

    fn enable_all(&mut self) {
        const ISENABLER: u64 = 0x100;
        self.vgic.write(VgicFrame::Dist, 0, 4, 3);
        for word in [4, 8] {
            self.vgic
                .write(VgicFrame::Dist, ISENABLER + word, 4, 0xffff_ffff);
        }
        for vcpu in 0..VCPUS {
            let frame = VgicFrame::Redist(vcpu);
            self.vgic.write(frame, 0x1_0000 + ISENABLER, 4, 0xffff_ffff);
        }
    }

    fn access(&mut self, parts: &Parts) {
        let frame = match parts.byte(1) % 5 {
            0 | 1 => VgicFrame::Dist,
            vcpu => VgicFrame::Redist(
                usize::from(vcpu) - 2 + usize::from(parts.byte(2) == 0) * MAX_VCPUS,
            ),
        };
        let mut offset = parts.word(3);
        if parts.byte(11) & 3 != 0 {
            // Where registers are.
            let base = parts.pick(
                12,
                &[
                    0, 0x80, 0x100, 0x180, 0x200, 0x280, 0x300, 0x380, 0x400, 0x800, 0xc00, 0xd00,
                    0x6000, 0x6100, 0x7ff8, 0xffd0,
                ],
            );
            let sgi_base = if frame == VgicFrame::Dist {
                0
            } else {
                0x1_0000 * (offset >> 63)
            };
            offset = sgi_base + base + (offset & 0x7f);
        }
        let size = parts.pick(13, &[1, 2, 4, 4, 4, 8, 8, 0, 3, 16]);
        if parts.byte(0) & 8 == 0 {
            let value = self.vgic.read(frame, offset, size);
            let width = 8 * u32::from(size.min(8));
            assert!(
                width == 64 || value >> width == 0,
                "{value:#x} in {size} bytes"
            );
            assert_eq!(
                self.vgic.read(frame, offset, size),
                value,
                "a read has no effect"
            );
        } else {
            self.vgic.write(frame, offset, size, parts.word(16));
        }
    }

    fn enter(&mut self, vcpu: usize) {
        let lrs = &mut self.vcpus[vcpu];
        self.vgic.flush(vcpu, lrs);
        assert!(!self.vgic.is_stale(vcpu));
        assert!(usize::from(lrs.used) <= lrs.count() && lrs.used <= lrs.to_load);
        let mut intids: Vec<u64> = lrs
            .lr
            .iter()
            .take(lrs.used.into())
            .map(|lr| lr & 0x3ff)
            .collect();
        intids.sort_unstable();
        intids.dedup();
        assert_eq!(
            intids.len(),
            usize::from(lrs.used),
            "each in one list register"
        );
        for lr in lrs.loadable() {
            assert_ne!(
                lr >> 61,
                0b111,
                "active and pending, with a physical interrupt"
            );
        }
    }
}

impl Driver for Gic {
    fn new() -> Self {
        let mut gic = Self {
            vgic: Vgic::new(VCPUS, 64).unwrap(),
            vcpus: vec![ListRegisters::new(2); VCPUS],
        };
        gic.enable_all();
        gic
    }

    /// Byte 0: what happens; 1 the virtual CPU; the rest depends.
    fn take(&mut self, input: &Input) -> bool {
        let parts = Parts(input);
        let vcpu = usize::from(parts.byte(1)) % (VCPUS + 1);
        let intid = parts.word(2) as u16;
        let some_intid = parts.pick(
            4,
            &[
                0, 1, 15, 16, 27, 30, 31, 32, 33, 63, 64, 95, 96, 1020, 1023, intid,
            ],
        );
        match parts.byte(0) % 16 {
            0..=6 => self.access(&parts),
            7 => self.enable_all(),
            8 => {
                // Routed to somebody, or nobody.
                let offset = 0x6100 + 8 * u64::from(parts.byte(5) % 64);
                self.vgic
                    .write(VgicFrame::Dist, offset, 8, u64::from(parts.byte(6) % 4));
            }
            9 => self.vgic.set_spi_level(some_intid, parts.byte(5) & 1 != 0),
            10 => self
                .vgic
                .set_ppi_level(vcpu, some_intid, parts.byte(5) & 1 != 0),
            11 => {
                let group = if parts.byte(5) & 7 == 0 {
                    SgiGroup::Group0
                } else {
                    SgiGroup::Group1
                };
                // Near affinities nobody has, and the ones there are.
                let mask = if parts.byte(6) & 1 == 0 {
                    u64::MAX
                } else {
                    1 << 40 | 0xf << 24 | 0xf
                };
                self.vgic
                    .send_sgi_in_group(vcpu, parts.word(8) & mask, group);
            }
            12 => self.vgic.raise_hw_ppi(vcpu, some_intid, 27),
            13 => self.vgic.cancel_hw_ppi(vcpu, some_intid),
            14 => self.vgic.deactivate(vcpu, some_intid),
            _ => {
                let Some(lrs) = self.vcpus.get_mut(vcpu) else {
                    return false;
                };
                let choices = parts.word(8).to_le_bytes();
                for (lr, choice) in lrs.in_use().iter_mut().zip(choices) {
                    Self::run(lr, choice);
                }
                lrs.vmcr = parts.word(16) | 3;
                // EOIcount.
                lrs.hcr |= u64::from(parts.byte(5) & 3) << 27;
                self.vgic.sync(vcpu, lrs);
                self.vgic.has_pending(vcpu);
                self.enter(vcpu);
            }
        }
        self.vgic.take_deactivations(vcpu);
        assert!(self.vgic.take_kicks() >> VCPUS == 0);
        let lrs = self.vcpus.get(vcpu);
        lrs.is_some_and(|lrs| lrs.used != 0)
    }
}

/// Calls of guests, and power states that follow from them.
pub struct Calls {
    power: Vec<VcpuPower>,
    hw: IdRegs,
}

impl PsciVm for Calls {
    fn vcpus(&self) -> usize {
        self.power.len()
    }

    fn power(&self, vcpu: usize) -> VcpuPower {
        self.power[vcpu]
    }

    fn is_ram(&self, ipa: u64) -> bool {
        (0x4000_0000..0x5000_0000).contains(&ipa)
    }
}

impl Driver for Calls {
    fn new() -> Self {
        Self {
            power: vec![VcpuPower::Off; 18],
            hw: IdRegs::ZERO,
        }
    }

    /// Byte 0: how the rest is made likely; 1 to 32 X0 to X3; 33 hardware; 34 a vCPU that is entered.
    fn take(&mut self, input: &Input) -> bool {
        let parts = Parts(input);
        let how = parts.byte(0);
        let mut x = [1, 9, 17, 25].map(|at| parts.word(at));
        if how & 7 != 0 {
            // The functions there are, and their neighbours.
            let services = [
                0x8400_0000,
                0x8400_0010,
                0x8400_0050,
                0x8000_0000,
                0x8000_8000,
                0x8000_3fff,
                0x8600_ff00,
            ];
            x[0] = (parts.pick(2, &services) + (x[0] & 0xf)) | x[0] & (1 << 30 | 1 << 16);
        }
        if how & 8 != 0 {
            x[1] = parts.pick(
                9,
                &[
                    0,
                    1,
                    15,
                    16,
                    17,
                    0x100,
                    0x101,
                    0x102,
                    0xff,
                    0x8000_8000,
                    0x8400_0003,
                ],
            );
            x[2] = parts.pick(
                17,
                &[
                    0,
                    1,
                    3,
                    4,
                    0x4000_0000,
                    0x4fff_fffc,
                    0x5000_0000,
                    0x4000_0002,
                ],
            );
        }
        self.hw
            .set(IdReg::ISAR0, u64::from(parts.byte(33) & 1) << 60);
        let need = |shift: u8| {
            [Need::Unknown, Need::NotRequired, Need::Required]
                [usize::from(parts.byte(33) >> shift) % 3]
        };
        self.hw.workarounds = [need(1), need(3), need(5)];
        let before = self.power.clone();
        let outcome = answer(&*self, &self.hw, x);
        assert_eq!(
            outcome,
            answer(&*self, &self.hw, x),
            "a function of the state"
        );
        match outcome {
            Outcome::Return(value) => assert!((-9..=0x1_0002).contains(&value)),
            Outcome::ReturnFour(_) => {}
            Outcome::Random { bits, wide } => {
                assert!(self.hw.get(IdReg::ISAR0) != 0);
                let [status, high, middle, low] = random(bits, wide, || Some(u64::MAX));
                let ones = [high, middle, low].map(u64::count_ones).iter().sum::<u32>();
                assert_eq!((status, u64::from(ones)), (0, bits));
            }
            Outcome::Firmware(function) => assert_eq!(function, x[0] as u32 & !(1 << 16)),
            Outcome::CpuOn { target, entry, .. } => {
                assert_eq!(before[target], VcpuPower::Off);
                assert!(self.is_ram(entry) && entry & 3 == 0);
                self.power[target] = VcpuPower::OnPending;
            }
            Outcome::CpuOff => {
                let vcpu = usize::from(parts.byte(34)) % self.power.len();
                self.power[vcpu] = VcpuPower::Off;
            }
            Outcome::Suspend => {}
            Outcome::SystemOff | Outcome::SystemReset => self.power.fill(VcpuPower::Off),
        }
        // A vCPU that was turned on is entered some time.
        let entered = usize::from(parts.byte(34)) % self.power.len();
        if self.power[entered] == VcpuPower::OnPending {
            self.power[entered] = VcpuPower::On;
        }
        outcome != Outcome::Return(NOT_SUPPORTED)
    }
}

/// System registers of a guest, from the syndrome of the trap.
pub struct SystemRegisters {
    regs: VcpuSysRegs,
    hw: IdRegs,
}

impl Driver for SystemRegisters {
    fn new() -> Self {
        let mut hw = IdRegs::ZERO;
        hw.set(IdReg::DFR0, 0x1000_0000_1030_560a);
        Self {
            regs: VcpuSysRegs::RESET,
            hw,
        }
    }

    /// Byte 0: how the rest is made likely; 1 to 8 ESR_EL2, 9 to 16 Rt; 17 to 25 an ID register of the hardware.
    fn take(&mut self, input: &Input) -> bool {
        let parts = Parts(input);
        let how = parts.byte(0);
        let mut esr = parts.word(1) & 0x1ff_ffff | 0x18 << 26;
        if how & 3 != 0 {
            // Debug, identification, the GIC, timers.
            let space = parts.pick(9, &[0x20_0000, 0x30_0000, 0x30_3000, 0x30_0400, 0x30_f800]);
            esr = esr & 0x0e_03ff | space | 0x18 << 26;
        }
        if how & 0xf0 == 0 {
            let id = IdReg {
                crm: parts.byte(17) & 0xf,
                op2: parts.byte(17) >> 4 & 7,
            };
            self.hw.set(id, parts.word(18));
        }
        let exit = Exit::decode(Syndrome {
            esr: Esr(esr),
            far: 0,
            hpfar: 0,
        });
        let Exit::SysReg(trap) = exit else {
            panic!("class 0x18 is a system register, not {exit:?}");
        };
        let before = self.regs;
        let context = SysRegContext {
            hw: &self.hw,
            shape: GuestShape { mte: how & 4 != 0 },
        };
        let outcome = emulate(trap, parts.word(9), context, &mut self.regs);
        match outcome {
            SysRegOutcome::Read(_) => assert!(!trap.write),
            SysRegOutcome::Undefined | SysRegOutcome::PhysicalTimer { .. } => {}
            _ => assert!(trap.write),
        }
        let written = matches!(
            outcome,
            SysRegOutcome::WriteHardware(..) | SysRegOutcome::WriteComparators
        );
        assert!(written || self.regs == before, "{trap:?} {outcome:?}");
        // Nothing of a debugger but monitor debug, step and the trap of EL0's debug channel.
        assert_eq!(self.regs.debug.mdscr_el1() & !0xb001, 0);
        outcome != SysRegOutcome::Undefined
    }
}
