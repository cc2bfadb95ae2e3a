//! The state of a vCPU that stays in hardware from one exit to the next and moves only when another vCPU takes the CPU.

use aarch64_cpu::asm::barrier::{SY, isb};
use core::arch::global_asm;

use super::regs::{read_reg, write_reg};

/// Declares the EL1 and EL0 registers that belong to a vCPU, with how each is saved and restored.
macro_rules! el1_state {
    ($($(#[$doc:meta])* $field:ident = $register:literal,)*) => {
        /// EL1 and EL0 system registers of a vCPU.
        #[derive(Clone, Debug, Default)]
        pub struct El1State {
            $($(#[$doc])* pub $field: u64,)*
        }

        impl El1State {
            fn save(&mut self) {
                $(self.$field = read_reg!($register);)*
            }

            fn restore(&self) {
                $(write_reg!($register, self.$field);)*
            }
        }
    };
}

el1_state! {
    /// System control: MMU, caches, tag checks.
    sctlr = "sctlr_el1",
    /// FP and SVE access from EL0 and EL1.
    cpacr = "cpacr_el1",
    /// Lower half's tables.
    ttbr0 = "ttbr0_el1",
    /// Upper half's tables.
    ttbr1 = "ttbr1_el1",
    /// Translation control.
    tcr = "tcr_el1",
    /// Memory attributes.
    mair = "mair_el1",
    /// Auxiliary memory attributes.
    amair = "amair_el1",
    /// Context ID.
    contextidr = "contextidr_el1",
    /// Vectors.
    vbar = "vbar_el1",
    /// Syndrome.
    esr = "esr_el1",
    /// Fault address.
    far = "far_el1",
    /// Auxiliary fault status 0.
    afsr0 = "afsr0_el1",
    /// Auxiliary fault status 1.
    afsr1 = "afsr1_el1",
    /// Result of address translation instructions.
    par = "par_el1",
    /// Return address.
    elr = "elr_el1",
    /// Saved PSTATE.
    spsr = "spsr_el1",
    /// EL0's stack pointer.
    sp_el0 = "sp_el0",
    /// EL1's stack pointer.
    sp_el1 = "sp_el1",
    /// EL0's thread pointer.
    tpidr_el0 = "tpidr_el0",
    /// EL0's read-only thread pointer.
    tpidrro_el0 = "tpidrro_el0",
    /// EL1's thread pointer.
    tpidr_el1 = "tpidr_el1",
    /// Access to timers from EL0.
    cntkctl = "cntkctl_el1",
    /// Cache size selection.
    csselr = "csselr_el1",
    /// Debug: single step and the like; breakpoints are in `traps::debug`.
    mdscr = "mdscr_el1",
    /// When the virtual timer fires; its control register is switched apart, last.
    cntv_cval = "cntv_cval_el0",
}

/// Pointer authentication keys, lower and upper halves: IA, IB, DA, DB, GA (APIAKeyLo_EL1 and so on, by encoding: the assembler
/// knows the names only with FEAT_PAuth).
#[derive(Clone, Debug, Default)]
pub struct PauthKeys([u64; 10]);

macro_rules! pauth_registers {
    ($action:ident) => {
        $action! {
            0 "S3_0_C2_C1_0", 1 "S3_0_C2_C1_1", 2 "S3_0_C2_C1_2", 3 "S3_0_C2_C1_3", 4 "S3_0_C2_C2_0",
            5 "S3_0_C2_C2_1", 6 "S3_0_C2_C2_2", 7 "S3_0_C2_C2_3", 8 "S3_0_C2_C3_0", 9 "S3_0_C2_C3_1"
        }
    };
}

impl PauthKeys {
    fn save(&mut self) {
        macro_rules! save {
            ($($index:literal $register:literal),*) => { $(self.0[$index] = read_reg!($register);)* };
        }
        pauth_registers!(save);
    }

    fn restore(&self) {
        macro_rules! restore {
            ($($index:literal $register:literal),*) => { $(write_reg!($register, self.0[$index]);)* };
        }
        pauth_registers!(restore);
    }
}

/// MTE registers of a vCPU (GCR_EL1, RGSR_EL1, TFSR_EL1, TFSRE0_EL1).
#[derive(Clone, Debug, Default)]
pub struct MteState {
    gcr: u64,
    rgsr: u64,
    tfsr: u64,
    tfsre0: u64,
}

impl MteState {
    fn save(&mut self) {
        self.gcr = read_reg!("S3_0_C1_C0_6");
        self.rgsr = read_reg!("S3_0_C1_C0_5");
        self.tfsr = read_reg!("S3_0_C5_C6_0");
        self.tfsre0 = read_reg!("S3_0_C5_C6_1");
    }

    fn restore(&self) {
        write_reg!("S3_0_C1_C0_6", self.gcr);
        write_reg!("S3_0_C1_C0_5", self.rgsr);
        write_reg!("S3_0_C5_C6_0", self.tfsr);
        write_reg!("S3_0_C5_C6_1", self.tfsre0);
    }
}

/// V0 to V31, FPCR, FPSR. EL2 is built without FP, so they stay in hardware across exits.
#[derive(Clone, Debug, Default)]
#[repr(C, align(16))]
pub struct FpState {
    v: [u128; 32],
    fpcr: u64,
    fpsr: u64,
}

unsafe extern "C" {
    fn save_fp(state: *mut FpState);
    fn restore_fp(state: *const FpState);
}

/// Which optional registers exist on this CPU and are shown to this guest.
#[derive(Clone, Copy, Debug)]
pub struct SwitchedFeatures {
    /// FEAT_PAuth.
    pub pauth: bool,
    /// FEAT_MTE2: the registers exist. They are switched for every guest, so that none sees another's.
    pub mte: bool,
    /// FEAT_RAS: EL1's DISR_EL1 is VDISR_EL2, which nothing traps.
    pub ras: bool,
}

/// All that a vCPU leaves in hardware while it runs.
#[derive(Clone, Debug, Default)]
pub struct CpuState {
    /// EL1 and EL0 system registers.
    pub el1: El1State,
    /// CNTV_CTL_EL0.
    pub cntv_ctl: u64,
    /// Pointer authentication keys.
    pub pauth: PauthKeys,
    /// MTE registers.
    pub mte: MteState,
    /// VDISR_EL2.
    vdisr: u64,
    /// FP and SIMD registers.
    pub fp: FpState,
}

impl CpuState {
    /// The state of a vCPU as PSCI CPU_ON or power-on gives it: MMU and caches off.
    #[must_use]
    pub fn reset() -> Self {
        let mut state = Self::default();
        // RES1 bits (29, 28, 23, 22, 20, 11) as they are on CPUs without the features that gave them a meaning, and ITD, SED,
        // CP15BEN as Linux expects them to be ignored.
        state.el1.sctlr = 0x30d0_0800;
        state
    }

    /// Moves the state from hardware into `self`; the virtual timer is stopped.
    pub fn save(&mut self, features: SwitchedFeatures) {
        self.cntv_ctl = read_reg!("cntv_ctl_el0");
        write_reg!("cntv_ctl_el0", 0);
        isb(SY);
        self.el1.save();
        if features.pauth {
            self.pauth.save();
        }
        if features.mte {
            self.mte.save();
        }
        if features.ras {
            self.vdisr = read_reg!("S3_4_C12_C1_1");
        }
        // SAFETY: `fp` is a whole, aligned FpState that nobody else refers to.
        unsafe { save_fp(&raw mut self.fp) };
    }

    /// Moves the state from `self` into hardware.
    pub fn restore(&self, features: SwitchedFeatures) {
        self.el1.restore();
        if features.pauth {
            self.pauth.restore();
        }
        if features.mte {
            self.mte.restore();
        }
        if features.ras {
            write_reg!("S3_4_C12_C1_1", self.vdisr);
        }
        // SAFETY: `fp` is a whole, aligned FpState; EL2 itself uses no FP register.
        unsafe { restore_fp(&raw const self.fp) };
        isb(SY);
        write_reg!("cntv_ctl_el0", self.cntv_ctl);
    }
}

global_asm!(
    r#"
    .arch_extension fp
    .arch_extension simd
    .macro  each_pair op
    \op     q0, q1, [x0, #0]
    \op     q2, q3, [x0, #32]
    \op     q4, q5, [x0, #64]
    \op     q6, q7, [x0, #96]
    \op     q8, q9, [x0, #128]
    \op     q10, q11, [x0, #160]
    \op     q12, q13, [x0, #192]
    \op     q14, q15, [x0, #224]
    \op     q16, q17, [x0, #256]
    \op     q18, q19, [x0, #288]
    \op     q20, q21, [x0, #320]
    \op     q22, q23, [x0, #352]
    \op     q24, q25, [x0, #384]
    \op     q26, q27, [x0, #416]
    \op     q28, q29, [x0, #448]
    \op     q30, q31, [x0, #480]
    .endm
    .text
    .globl  save_fp
save_fp:
    each_pair stp
    mrs     x1, fpcr
    mrs     x2, fpsr
    str     x1, [x0, #512]
    str     x2, [x0, #520]
    ret
    .globl  restore_fp
restore_fp:
    each_pair ldp
    ldr     x1, [x0, #512]
    ldr     x2, [x0, #520]
    msr     fpcr, x1
    msr     fpsr, x2
    ret
    .arch_extension nosimd
    .arch_extension nofp
"#
);
