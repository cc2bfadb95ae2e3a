//! This CPU at EL2: what it can do, and the port that exit handling works through.

use aarch64_cpu::asm::barrier::{NSH, SY, dsb, isb};
use aarch64_cpu::asm::wfi;
use aarch64_cpu::registers::{
    CNTHCTL_EL2, CNTV_CTL_EL0, CNTVOFF_EL2, CPACR_EL1, CPTR_EL2, ELR_EL1, FAR_EL1, HCR_EL2,
    MDCR_EL2, MDSCR_EL1, MIDR_EL1, MPIDR_EL1, OSLAR_EL1, Readable, SCTLR_EL1, SCTLR_EL2, VBAR_EL1,
    VMPIDR_EL2, VTTBR_EL2, Writeable,
};
use core::ops::Range;
use platform::features::{CpuFeatures, IdRegisters};

use stage2::addr::{Frame, PhysAddr};

use super::ich::VirtualInterface;
use super::maintenance::write_frame;
use super::regs::{instruction, read_reg, write_reg};
use crate::cpu::Cpu;
use crate::devices::vgic::ListRegisters;
use crate::traps::controls::{Controls, hcr};
use crate::traps::debug::DebugRegs;
use crate::traps::id_regs::IdRegs;
use crate::traps::inject::{Injected, Origin};
use crate::traps::tag_access::{AtForm, Par};
use crate::vcpu::GuestContext;

/// How often RNDRRS is tried for one number.
const RANDOM_TRIES: u32 = 10;

/// Line sizes and errata that maintenance needs. One per CPU; the weakest CPU's values serve all.
#[derive(Clone, Debug)]
pub struct El2 {
    /// Smallest data cache line, bytes.
    pub(super) data_line: u64,
    /// Bytes of data whose tags one tag cache line holds.
    pub(super) tag_line: u64,
    /// Bytes that DC ZVA zeroes; 0: prohibited.
    pub(super) zva_bytes: u64,
    /// Bytes whose tags one LDGM or STGM moves.
    pub(super) tag_step: u64,
    /// Smallest instruction cache line, bytes.
    pub(super) instruction_line: u64,
    /// Instruction fetches see written data without cleaning to the point of unification (CTR_EL0.IDC).
    pub(super) idc: bool,
    /// Instruction fetches see written data without invalidation (CTR_EL0.DIC).
    pub(super) dic: bool,
    /// Instructions can be invalidated by EL2's own address of them.
    pub(super) pipt: bool,
    /// CVE-2025-10263: repeat the TLBI.
    pub(super) repeat_tlbi: bool,
    /// The GIC's virtual CPU interface.
    pub interface: VirtualInterface,
}

impl El2 {
    /// Describes this CPU by what all CPUs have in common, and its own virtual interface.
    #[must_use]
    pub fn new(features: &CpuFeatures, interface: VirtualInterface) -> Self {
        Self {
            data_line: features.data_line.into(),
            tag_line: features.tag_line.into(),
            zva_bytes: features.dc_zva.map_or(0, u64::from),
            // Without LDGM guests have no MTE; the least step is right for any CPU.
            tag_step: features.ldgm.map_or(16, u64::from),
            instruction_line: features.instruction_line.into(),
            idc: features.idc,
            dic: features.dic,
            pipt: features.pipt,
            repeat_tlbi: features.errata.repeat_tlbi,
            interface,
        }
    }

    /// Loads what controls a guest of this shape: traps, stage 2, virtual identity.
    pub fn load_controls(&self, controls: &Controls, vttbr: u64, vmpidr: u64) {
        HCR_EL2.set(controls.hcr_el2);
        CPTR_EL2.set(controls.cptr_el2);
        MDCR_EL2.set(controls.mdcr_el2);
        CNTHCTL_EL2.set(controls.cnthctl_el2);
        if let Some(hcrx) = controls.hcrx_el2 {
            write_reg!("S3_4_C1_C2_2", hcrx);
        }
        if let Some(fgt) = &controls.fgt {
            write_reg!("S3_4_C1_C1_4", fgt.hfgrtr);
            write_reg!("S3_4_C1_C1_5", fgt.hfgwtr);
            write_reg!("S3_4_C1_C1_6", fgt.hfgitr);
            write_reg!("S3_4_C3_C1_4", fgt.hdfgrtr);
            write_reg!("S3_4_C3_C1_5", fgt.hdfgwtr);
            if let Some(hafgrtr) = fgt.hafgrtr {
                write_reg!("S3_4_C3_C1_6", hafgrtr);
            }
        }
        if let Some(fgt2) = &controls.fgt2 {
            write_reg!("S3_4_C3_C1_2", fgt2.hfgrtr2);
            write_reg!("S3_4_C3_C1_3", fgt2.hfgwtr2);
            write_reg!("S3_4_C3_C1_7", fgt2.hfgitr2);
            write_reg!("S3_4_C3_C1_0", fgt2.hdfgrtr2);
            write_reg!("S3_4_C3_C1_1", fgt2.hdfgwtr2);
        }
        if let Some(mpam2) = controls.mpam2_el2 {
            write_reg!("S3_4_C10_C5_0", mpam2);
        }
        write_reg!("vpidr_el2", MIDR_EL1.get());
        VMPIDR_EL2.set(vmpidr);
        CNTVOFF_EL2.set(0);
        VTTBR_EL2.set(vttbr);
        isb(SY);
    }
}

impl El2 {
    /// Makes WFI and WFE of the guest that is loaded trap, or not.
    pub fn trap_waits(&self, wfi: bool, wfe: bool) {
        let others = HCR_EL2.get() & !(hcr::TWI | hcr::TWE);
        let (wfi, wfe) = (u64::from(wfi) * hcr::TWI, u64::from(wfe) * hcr::TWE);
        HCR_EL2.set(others | wfi | wfe);
    }
}

/// Tells whether a tag written at the first page of `tagged` reads back on this CPU, which [`set_up`] has given MTE; firmware
/// may have kept SCR_EL3.ATA at 0, and then tag accesses are ignored. The page's first tag is 0 afterwards.
#[must_use]
pub fn tags_work(tagged: &Range<u64>) -> bool {
    super::maintenance::probe_tag(Frame::containing(PhysAddr::new(tagged.start)))
}

impl Cpu for El2 {
    fn translate(&mut self, form: AtForm, va: u64) -> Par {
        let saved = read_reg!("par_el1");
        match form {
            // AT S1E1A by its encoding: the assembler may not know FEAT_ATS1A.
            AtForm::S1E1A => instruction!("sys #0, c7, c9, #2", va),
            AtForm::S1E1R => instruction!("at s1e1r", va),
            AtForm::S1E0R => instruction!("at s1e0r", va),
        }
        isb(SY);
        let par = read_reg!("par_el1");
        write_reg!("par_el1", saved);
        Par(par)
    }

    fn origin(&self, context: &GuestContext) -> Origin {
        Origin {
            pc: context.pc,
            pstate: context.pstate,
            sctlr_el1: SCTLR_EL1.get(),
            vbar_el1: VBAR_EL1.get(),
        }
    }

    fn take_exception(&mut self, injected: &Injected) {
        ELR_EL1.set(injected.elr_el1);
        write_reg!("spsr_el1", injected.spsr_el1);
        write_reg!("esr_el1", injected.esr_el1);
        if let Some(far) = injected.far_el1 {
            FAR_EL1.set(far);
        }
    }

    fn virtual_timer_is_quiet(&self) -> bool {
        // ENABLE and ISTATUS, not IMASK.
        CNTV_CTL_EL0.get() & 7 != 5
    }

    fn write_mdscr(&mut self, value: u64) {
        MDSCR_EL1.set(value);
    }

    fn write_comparators(&mut self, debug: &DebugRegs, shown: usize) {
        let (breakpoints, watchpoints) = comparators();
        let first = breakpoints.saturating_sub(shown as u64);
        for (number, one) in (first..breakpoints).zip(&debug.breakpoints) {
            write_breakpoint(number, one.value, one.control(first));
        }
        for (number, one) in (0..watchpoints).zip(&debug.watchpoints) {
            write_watchpoint(number, one.value, one.control(first));
        }
    }

    fn write_cpacr(&mut self, value: u64) {
        CPACR_EL1.set(value);
    }

    fn work_around(&mut self, function: u32) {
        if let Some(firmware) = crate::boot::firmware() {
            let _ = firmware.architecture(function, 0);
        }
    }

    fn random(&mut self) -> Option<u64> {
        // The source may be dry for moments; who asks is told so in the end, and asks again.
        (0..RANDOM_TRIES).find_map(|_| {
            let (value, empty): (u64, u64);
            // SAFETY: RNDRRS, by its encoding, which the caller knows to exist, changes nothing but the flags: Z if it failed.
            unsafe {
                core::arch::asm!("mrs {}, S3_3_C2_C4_1", "cset {}, eq", out(reg) value, out(reg) empty, options(nomem, nostack));
            }
            (empty == 0).then_some(value)
        })
    }

    fn store_list_registers(&mut self, lrs: &mut ListRegisters) {
        self.interface.store(lrs);
    }

    fn write_frame(&mut self, frame: Frame, offset: usize, bytes: &[u8]) {
        write_frame(frame, offset, bytes);
    }
}

/// Reads one ID register: op0 = 3, op1 = 0, CRn = 0.
fn read_id(crm: u8, op2: u8) -> u64 {
    macro_rules! table {
        ($($crm:literal),*) => {
            match (crm, op2) {
                $(
                    ($crm, 0) => read_reg!(concat!("S3_0_C0_C", $crm, "_0")),
                    ($crm, 1) => read_reg!(concat!("S3_0_C0_C", $crm, "_1")),
                    ($crm, 2) => read_reg!(concat!("S3_0_C0_C", $crm, "_2")),
                    ($crm, 3) => read_reg!(concat!("S3_0_C0_C", $crm, "_3")),
                    ($crm, 4) => read_reg!(concat!("S3_0_C0_C", $crm, "_4")),
                    ($crm, 5) => read_reg!(concat!("S3_0_C0_C", $crm, "_5")),
                    ($crm, 6) => read_reg!(concat!("S3_0_C0_C", $crm, "_6")),
                    ($crm, 7) => read_reg!(concat!("S3_0_C0_C", $crm, "_7")),
                )*
                _ => 0,
            }
        };
    }
    table!(1, 2, 3, 4, 5, 6, 7)
}

/// Reads the ID registers of this CPU.
#[must_use]
pub fn id_regs() -> IdRegs {
    let mut regs = IdRegs::read(read_id);
    regs.revidr = read_reg!("revidr_el1");
    regs
}

/// Number of event counters of the PMU, which MDCR_EL2.HPMN must allow; 0 without a PMU.
#[must_use]
pub fn pmu_counters(hw: &IdRegs) -> u64 {
    if hw.has_pmu() {
        (read_reg!("pmcr_el0") >> 11) & 0x1f
    } else {
        0
    }
}

/// Reads what `platform` decides features from.
#[must_use]
pub fn id_registers() -> IdRegisters {
    let pfr1 = read_id(4, 1);
    IdRegisters {
        midr: MIDR_EL1.get(),
        pfr0: read_id(4, 0),
        pfr1,
        pfr2: read_id(4, 2),
        isar0: read_id(6, 0),
        isar1: read_id(6, 1),
        isar2: read_id(6, 2),
        isar3: read_id(6, 3),
        mmfr0: read_id(7, 0),
        mmfr1: read_id(7, 1),
        mmfr2: read_id(7, 2),
        mmfr3: read_id(7, 3),
        mmfr4: read_id(7, 4),
        dfr0: read_id(5, 0),
        zfr0: read_id(4, 4),
        smfr0: read_id(4, 5),
        ctr: read_reg!("ctr_el0"),
        dczid: read_reg!("dczid_el0"),
        // GMID_EL1 exists with FEAT_MTE2 only.
        gmid: if (pfr1 >> 8) & 0xf >= 2 {
            read_reg!("S3_1_C0_C0_4")
        } else {
            0
        },
    }
}

/// Returns MPIDR_EL1 of this CPU.
#[must_use]
pub fn mpidr() -> u64 {
    MPIDR_EL1.get()
}

/// Sets what EL2 itself runs with, after its own map is in use: W^X, and with MTE access to tags without checks; a guest's
/// asynchronous tag faults are recorded before EL2 runs (ITFSB), or they would land in another vCPU's TFSR. Stage 2's format
/// is the same for all guests.
pub fn set_up(mte: bool) {
    const WXN: u64 = 1 << 19;
    const ITFSB: u64 = 1 << 37;
    const ATA: u64 = 1 << 43;
    let tags = if mte { ITFSB | ATA } else { 0 };
    SCTLR_EL2.set(super::entry::SCTLR | WXN | tags);
    let vmid_16 = (read_id(7, 1) >> 4) & 0xf == 2;
    write_reg!(
        "vtcr_el2",
        stage2::descriptor::vtcr((read_id(7, 0) & 0xf) as u8, vmid_16)
    );
    // Debug and performance monitors, unknown at reset: unlocked and off. Guests' accesses to them are trapped.
    // Physical interrupts are EL2's: they end a WFI here.
    HCR_EL2.write(
        HCR_EL2::RW::EL1IsAarch64 + HCR_EL2::AMO::SET + HCR_EL2::IMO::SET + HCR_EL2::FMO::SET,
    );
    write_reg!("cntv_ctl_el0", 0);
    super::timer::set_deadline(None);
    unload_stage2();
    OSLAR_EL1.set(0);
    MDSCR_EL1.set(0);
    clear_comparators();
    write_reg!("hstr_el2", 0);
    if (read_id(4, 0) >> 28) & 0xf != 0 {
        // VSESR_EL2: what a guest's deferred SError would be told.
        write_reg!("S3_4_C5_C2_3", 0);
    }
    isb(SY);
}

/// Breakpoints and watchpoints of this CPU.
fn comparators() -> (u64, u64) {
    let dfr0 = read_id(5, 0);
    ((dfr0 >> 12 & 0xf) + 1, (dfr0 >> 20 & 0xf) + 1)
}

/// Disables all breakpoints and watchpoints: those of firmware or a debugger before the first guest may enable monitor debug
/// (MDSCR_EL1.MDE), those of a guest before the next one.
pub fn clear_comparators() {
    let (breakpoints, watchpoints) = comparators();
    for number in 0..breakpoints {
        write_breakpoint(number, 0, 0);
    }
    for number in 0..watchpoints {
        write_watchpoint(number, 0, 0);
    }
}

/// Defines a function that writes one of the comparators, which have a pair of registers each.
macro_rules! comparator_registers {
    ($(#[$doc:meta])* $function:ident, $value:literal, $control:literal, $($number:literal)*) => {
        $(#[$doc])*
        fn $function(number: u64, value: u64, control: u64) {
            match number {
                $($number => {
                    write_reg!(concat!($value, $number, "_el1"), value);
                    write_reg!(concat!($control, $number, "_el1"), control);
                })*
                _ => {}
            }
        }
    };
}

comparator_registers! {
    /// Writes one breakpoint, which exists.
    write_breakpoint, "dbgbvr", "dbgbcr", 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
}

comparator_registers! {
    /// Writes one watchpoint, which exists.
    write_watchpoint, "dbgwvr", "dbgwcr", 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
}

/// Takes the SError that the exit's ESB has deferred, if there is one: its syndrome (DISR_EL1). Needs FEAT_RAS.
#[must_use]
pub fn take_deferred_serror() -> Option<u64> {
    const A: u64 = 1 << 31;
    let disr = read_reg!("S3_0_C12_C1_1");
    if disr & A == 0 {
        return None;
    }
    write_reg!("S3_0_C12_C1_1", 0);
    Some(disr)
}

/// Takes stage 2 of the last guest out of use, before its tables go.
pub fn unload_stage2() {
    VTTBR_EL2.set(0);
    isb(SY);
}

/// Drops the TLB entries of stage 1 of the VM that is loaded, on this CPU: two vCPUs share its VMID.
pub fn drop_stage1_entries() {
    instruction!("tlbi vmalle1");
    dsb(NSH);
    isb(SY);
}

/// How a CPU waits for another one that holds a lock.
#[derive(Debug)]
pub struct Relax;

impl spin::RelaxStrategy for Relax {
    fn relax() {
        relax();
    }
}

/// Lets another CPU go first: to an emulator YIELD is the hint, to CPUs ISB takes a while.
pub fn relax() {
    instruction!("yield");
    isb(SY);
}

/// Cleans the cache line at `address` to memory, for a CPU whose MMU is off.
pub fn clean_to_memory(address: u64) {
    instruction!("dc cvac", address);
    dsb(SY);
}

/// Waits for an interrupt to be pending; DAIF stays masked.
pub fn wait_for_interrupt() {
    dsb(SY);
    wfi();
}

/// Parks this CPU for ever.
pub fn park() -> ! {
    loop {
        wfi();
    }
}
