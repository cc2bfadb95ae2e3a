//! System registers and instructions: what the ID registers show works, what they do not show is undefined.

use core::arch::asm;

use bare_guests::rt::trap::{self, Outcome};
use bare_guests::{read_sys, write_sys};

use super::checks::{Checks, done, undefined};

type Read = fn() -> u64;

/// A register's name and how to read it.
macro_rules! register {
    ($name:literal, $encoding:literal) => {
        ($name, (|| read_sys!($encoding)) as Read)
    };
}

/// An ID field: register, lowest bit.
macro_rules! field {
    ($encoding:literal, $low:literal) => {
        read_sys!($encoding) >> $low & 0xf
    };
}

/// A feature and registers that exist only with it.
struct Feature {
    present: fn() -> bool,
    registers: &'static [(&'static str, Read)],
}

/// Not here: what EL2 has no means to trap (DISR_EL1, ALLINT, CNTVCTSS_EL0, fields of PSTATE) and what harms nobody.
const FEATURES: &[Feature] = &[
    Feature {
        present: || !matches!(field!("ID_AA64DFR0_EL1", 8), 0 | 0xf),
        registers: &[
            register!("PMCR_EL0", "S3_3_C9_C12_0"),
            register!("PMCCNTR_EL0", "S3_3_C9_C13_0"),
            register!("PMINTENSET_EL1", "S3_0_C9_C14_1"),
            register!("PMUSERENR_EL0", "S3_3_C9_C14_0"),
            register!("PMCCFILTR_EL0", "S3_3_C14_C15_7"),
        ],
    },
    Feature {
        present: || field!("ID_AA64DFR0_EL1", 32) != 0,
        registers: &[
            register!("PMSCR_EL1", "S3_0_C9_C9_0"),
            register!("PMSIDR_EL1", "S3_0_C9_C9_7"),
            register!("PMBLIMITR_EL1", "S3_0_C9_C10_0"),
            register!("PMBSR_EL1", "S3_0_C9_C10_3"),
        ],
    },
    Feature {
        present: || field!("ID_AA64DFR0_EL1", 40) != 0,
        registers: &[register!("TRFCR_EL1", "S3_0_C1_C2_1")],
    },
    Feature {
        present: || field!("ID_AA64DFR0_EL1", 44) != 0,
        registers: &[register!("TRBLIMITR_EL1", "S3_0_C9_C11_0")],
    },
    Feature {
        present: || field!("ID_AA64DFR0_EL1", 52) != 0,
        registers: &[register!("BRBCR_EL1", "S2_1_C9_C0_0")],
    },
    Feature {
        present: || field!("ID_AA64DFR0_EL1", 4) != 0,
        registers: &[register!("TRCIDR0", "S2_1_C0_C8_7")],
    },
    Feature {
        present: || field!("ID_AA64PFR0_EL1", 44) != 0,
        registers: &[
            register!("AMCR_EL0", "S3_3_C13_C2_0"),
            register!("AMUSERENR_EL0", "S3_3_C13_C2_3"),
            register!("AMCNTENSET0_EL0", "S3_3_C13_C2_5"),
            register!("AMEVCNTR00_EL0", "S3_3_C13_C4_0"),
        ],
    },
    Feature {
        present: || field!("ID_AA64PFR0_EL1", 32) != 0,
        registers: &[register!("ZCR_EL1", "S3_0_C1_C2_0")],
    },
    Feature {
        present: || field!("ID_AA64PFR1_EL1", 24) != 0,
        registers: &[
            register!("SMCR_EL1", "S3_0_C1_C2_6"),
            register!("SMIDR_EL1", "S3_1_C0_C0_6"),
            register!("SMPRI_EL1", "S3_0_C1_C2_4"),
            register!("TPIDR2_EL0", "S3_3_C13_C0_5"),
            register!("SVCR", "S3_3_C4_C2_2"),
        ],
    },
    Feature {
        present: || field!("ID_AA64PFR0_EL1", 28) != 0,
        registers: &[register!("ERRIDR_EL1", "S3_0_C5_C3_0")],
    },
    Feature {
        present: || field!("ID_AA64PFR0_EL1", 40) != 0 || field!("ID_AA64PFR1_EL1", 16) != 0,
        registers: &[
            register!("MPAM1_EL1", "S3_0_C10_C5_0"),
            register!("MPAM0_EL1", "S3_0_C10_C5_1"),
        ],
    },
    Feature {
        present: || field!("ID_AA64PFR1_EL1", 8) >= 2,
        registers: &[
            register!("RGSR_EL1", "S3_0_C1_C0_5"),
            register!("GCR_EL1", "S3_0_C1_C0_6"),
            register!("TFSR_EL1", "S3_0_C5_C6_0"),
            register!("TFSRE0_EL1", "S3_0_C5_C6_1"),
            register!("GMID_EL1", "S3_1_C0_C0_4"),
        ],
    },
    Feature {
        present: || field!("ID_AA64PFR1_EL1", 44) != 0,
        registers: &[
            register!("GCSCR_EL1", "S3_0_C2_C5_0"),
            register!("GCSPR_EL1", "S3_0_C2_C5_1"),
            register!("GCSCRE0_EL1", "S3_0_C2_C5_2"),
            register!("GCSPR_EL0", "S3_3_C2_C5_1"),
        ],
    },
    Feature {
        present: || field!("ID_AA64PFR1_EL1", 48) != 0,
        registers: &[register!("RCWMASK_EL1", "S3_0_C13_C0_6")],
    },
    Feature {
        present: || field!("S3_0_C0_C4_2", 32) != 0,
        registers: &[register!("FPMR", "S3_3_C4_C4_2")],
    },
    Feature {
        present: || field!("ID_AA64MMFR1_EL1", 16) != 0,
        registers: &[
            register!("LORID_EL1", "S3_0_C10_C4_7"),
            register!("LORSA_EL1", "S3_0_C10_C4_0"),
        ],
    },
    Feature {
        present: || field!("S3_0_C0_C7_3", 0) != 0,
        registers: &[register!("TCR2_EL1", "S3_0_C2_C0_3")],
    },
    Feature {
        present: || field!("S3_0_C0_C7_3", 4) != 0,
        registers: &[register!("SCTLR2_EL1", "S3_0_C1_C0_3")],
    },
    Feature {
        present: || field!("S3_0_C0_C7_3", 8) != 0,
        registers: &[
            register!("PIR_EL1", "S3_0_C10_C2_3"),
            register!("PIRE0_EL1", "S3_0_C10_C2_2"),
        ],
    },
    Feature {
        present: || field!("S3_0_C0_C7_3", 16) != 0,
        registers: &[
            register!("POR_EL1", "S3_0_C10_C2_4"),
            register!("POR_EL0", "S3_3_C10_C2_4"),
        ],
    },
    Feature {
        present: || field!("S3_0_C0_C7_3", 24) != 0,
        registers: &[
            register!("MAIR2_EL1", "S3_0_C10_C2_1"),
            register!("AMAIR2_EL1", "S3_0_C10_C3_1"),
        ],
    },
    Feature {
        present: || field!("ID_AA64ISAR1_EL1", 60) >= 3,
        registers: &[register!("ACCDATA_EL1", "S3_0_C13_C0_5")],
    },
    Feature {
        present: || field!("ID_AA64ISAR0_EL1", 60) != 0,
        registers: &[
            register!("RNDR", "S3_3_C2_C4_0"),
            register!("RNDRRS", "S3_3_C2_C4_1"),
        ],
    },
    Feature {
        present: || {
            field!("ID_AA64ISAR1_EL1", 4)
                | field!("ID_AA64ISAR1_EL1", 8)
                | field!("S3_0_C0_C6_2", 12)
                != 0
        },
        registers: &[
            register!("APIAKeyLo_EL1", "S3_0_C2_C1_0"),
            register!("APDBKeyHi_EL1", "S3_0_C2_C2_3"),
        ],
    },
    // With CSV2 = 1 the feature may still be there, by CSV2_frac.
    Feature {
        present: || field!("ID_AA64PFR0_EL1", 56) >= 2 || field!("ID_AA64PFR1_EL1", 32) >= 2,
        registers: &[
            register!("SCXTNUM_EL1", "S3_0_C13_C0_7"),
            register!("SCXTNUM_EL0", "S3_3_C13_C0_7"),
        ],
    },
];

fn features(checks: &mut Checks) {
    let bare = checks.bare;
    // QEMU's EL1 reports some absent ID registers as trapped (class 0x18) where no EL2 could have trapped them.
    let absent = |got: Outcome| {
        undefined(got) || bare && got.trap().is_some_and(|trap| trap.class() == 0x18)
    };
    for feature in FEATURES {
        let present = (feature.present)();
        for (name, read) in feature.registers {
            checks.attempt(
                name,
                read,
                |got| if present { done(got) } else { absent(got) },
            );
        }
    }
}

/// What no EL1 has: registers of EL2 and EL3, and encodings without a register.
const NEVER: &[(&str, Read)] = &[
    register!("HCR_EL2", "S3_4_C1_C1_0"),
    register!("VTTBR_EL2", "S3_4_C2_C1_0"),
    register!("VBAR_EL2", "S3_4_C12_C0_0"),
    register!("SCTLR_EL2", "S3_4_C1_C0_0"),
    register!("TCR_EL2", "S3_4_C2_C0_2"),
    register!("ESR_EL2", "S3_4_C5_C2_0"),
    register!("HPFAR_EL2", "S3_4_C6_C0_4"),
    register!("CPTR_EL2", "S3_4_C1_C1_2"),
    register!("MDCR_EL2", "S3_4_C1_C1_1"),
    register!("SP_EL1", "S3_4_C4_C1_0"),
    register!("VPIDR_EL2", "S3_4_C0_C0_0"),
    register!("CNTHCTL_EL2", "S3_4_C14_C1_0"),
    register!("CNTVOFF_EL2", "S3_4_C14_C0_3"),
    register!("ICC_SRE_EL2", "S3_4_C12_C9_5"),
    register!("ICH_HCR_EL2", "S3_4_C12_C11_0"),
    register!("ICH_LR0_EL2", "S3_4_C12_C12_0"),
    register!("SCTLR_EL12", "S3_5_C1_C0_0"),
    register!("CNTV_CTL_EL02", "S3_5_C14_C3_1"),
    register!("SCR_EL3", "S3_6_C1_C1_0"),
    register!("ICC_IGRPEN1_EL3", "S3_6_C12_C12_7"),
    register!("unallocated S3_0_C2_C7_7", "S3_0_C2_C7_7"),
    register!("unallocated S3_3_C3_C0_0", "S3_3_C3_C0_0"),
    register!("unallocated S3_0_C14_C7_7", "S3_0_C14_C7_7"),
    register!("unallocated S3_7_C6_C6_6", "S3_7_C6_C6_6"),
    register!("implementation defined S3_0_C15_C7_7", "S3_0_C15_C7_7"),
    register!("implementation defined S3_0_C11_C0_0", "S3_0_C11_C0_0"),
    register!("implementation defined S3_3_C15_C7_0", "S3_3_C15_C7_0"),
    register!("implementation defined S3_7_C15_C0_0", "S3_7_C15_C0_0"),
];

/// Registers of common cores that QEMU's EL1 has and a guest must not.
const CORE: &[(&str, Read)] = &[
    register!("CPUACTLR_EL1", "S3_1_C15_C2_0"),
    register!("L2CTLR_EL1", "S3_1_C11_C0_2"),
];

/// What every EL1 has.
const ALWAYS: &[(&str, Read)] = &[
    register!("MIDR_EL1", "MIDR_EL1"),
    register!("REVIDR_EL1", "REVIDR_EL1"),
    register!("AIDR_EL1", "S3_1_C0_C0_7"),
    register!("CTR_EL0", "CTR_EL0"),
    register!("DCZID_EL0", "DCZID_EL0"),
    register!("CLIDR_EL1", "S3_1_C0_C0_1"),
    register!("CCSIDR_EL1", "S3_1_C0_C0_0"),
    register!("CSSELR_EL1", "S3_2_C0_C0_0"),
    register!("ACTLR_EL1", "ACTLR_EL1"),
    register!("AMAIR_EL1", "AMAIR_EL1"),
    register!("AFSR0_EL1", "AFSR0_EL1"),
    register!("AFSR1_EL1", "AFSR1_EL1"),
    register!("CNTFRQ_EL0", "CNTFRQ_EL0"),
    register!("CNTPCT_EL0", "CNTPCT_EL0"),
    register!("CNTVCT_EL0", "CNTVCT_EL0"),
    register!("CNTKCTL_EL1", "CNTKCTL_EL1"),
    register!("CNTV_CTL_EL0", "CNTV_CTL_EL0"),
    register!("MDSCR_EL1", "S2_0_C0_C2_2"),
    register!("OSLSR_EL1", "S2_0_C1_C1_4"),
    register!("DBGBVR0_EL1", "S2_0_C0_C0_4"),
    register!("DBGBCR0_EL1", "S2_0_C0_C0_5"),
    register!("DBGWVR0_EL1", "S2_0_C0_C0_6"),
    register!("DBGWCR0_EL1", "S2_0_C0_C0_7"),
    register!("DBGCLAIMCLR_EL1", "S2_0_C7_C9_6"),
    register!("MDCCSR_EL0", "S2_3_C0_C1_0"),
    register!("ICC_SRE_EL1", "S3_0_C12_C12_5"),
    register!("ICC_PMR_EL1", "S3_0_C4_C6_0"),
    register!("ICC_BPR1_EL1", "S3_0_C12_C12_3"),
    register!("ICC_CTLR_EL1", "S3_0_C12_C12_4"),
    register!("ICC_IGRPEN1_EL1", "S3_0_C12_C12_7"),
    register!("ICC_HPPIR1_EL1", "S3_0_C12_C12_2"),
    register!("ICC_RPR_EL1", "S3_0_C12_C11_3"),
    register!("ICC_AP1R0_EL1", "S3_0_C12_C9_0"),
];

/// Reads the eight ID registers of one row of the space.
macro_rules! id_rows {
    ($($row:literal)+) => {
        &[$(
            (|| read_sys!(concat!("S3_0_C0_C", $row, "_0"))) as Read,
            || read_sys!(concat!("S3_0_C0_C", $row, "_1")),
            || read_sys!(concat!("S3_0_C0_C", $row, "_2")),
            || read_sys!(concat!("S3_0_C0_C", $row, "_3")),
            || read_sys!(concat!("S3_0_C0_C", $row, "_4")),
            || read_sys!(concat!("S3_0_C0_C", $row, "_5")),
            || read_sys!(concat!("S3_0_C0_C", $row, "_6")),
            || read_sys!(concat!("S3_0_C0_C", $row, "_7")),
        )+]
    };
}

/// The space of feature ID registers: each reads, those without a meaning as zero.
const ID_SPACE: &[Read] = id_rows!(1 2 3 4 5 6 7);

fn id_space(checks: &mut Checks) {
    let undefined = ID_SPACE
        .iter()
        .filter(|read| trap::attempt(**read).trap().is_some())
        .count();
    checks.equal("all 56 feature ID registers read", undefined as u64, 0);
    let twice = ID_SPACE
        .iter()
        .filter(|read| trap::attempt(**read) != trap::attempt(**read))
        .count();
    checks.equal("ID registers are constant", twice as u64, 0);
}

/// Features that a guest is not shown yet.
fn hidden(checks: &mut Checks) {
    if checks.bare {
        return;
    }
    let pmu = field!("ID_AA64DFR0_EL1", 8);
    for (name, value) in [
        ("SVE is hidden", field!("ID_AA64PFR0_EL1", 32)),
        ("RAS is hidden", field!("ID_AA64PFR0_EL1", 28)),
        ("AMU is hidden", field!("ID_AA64PFR0_EL1", 44)),
        ("EL2 is hidden", field!("ID_AA64PFR0_EL1", 8)),
        ("SME is hidden", field!("ID_AA64PFR1_EL1", 24)),
        ("MOPS is hidden", field!("S3_0_C0_C6_2", 16)),
        ("PMU is hidden", if pmu == 0xf { 0 } else { pmu }),
        ("SPE is hidden", field!("ID_AA64DFR0_EL1", 32)),
        ("NV is hidden", field!("ID_AA64MMFR2_EL1", 24)),
        (
            "SVE has no details",
            if field!("ID_AA64PFR0_EL1", 32) == 0 {
                read_sys!("S3_0_C0_C4_4")
            } else {
                0
            },
        ),
        (
            "SME has no details",
            if field!("ID_AA64PFR1_EL1", 24) == 0 {
                read_sys!("S3_0_C0_C4_5")
            } else {
                0
            },
        ),
    ] {
        checks.equal(name, value, 0);
    }
    let perm = field!("S3_0_C0_C4_2", 0);
    checks.check(
        "MTE_PERM is a matter of EL2",
        field!("ID_AA64PFR1_EL1", 8) >= 2 || perm == 0,
        perm,
    );
}

fn never_and_always(checks: &mut Checks) {
    for (name, read) in NEVER {
        checks.attempt(name, read, undefined);
    }
    if !checks.bare {
        for (name, read) in CORE {
            checks.attempt(name, read, undefined);
        }
    }
    for (name, read) in ALWAYS {
        checks.attempt(name, read, done);
    }
}

/// Tries `msr` of zero.
macro_rules! write {
    ($encoding:literal) => {
        || {
            write_sys!($encoding, 0);
            0
        }
    };
}

fn writes(checks: &mut Checks) {
    checks.attempt("MIDR_EL1 is not written", write!("S3_0_C0_C0_0"), undefined);
    checks.attempt(
        "ID_AA64PFR0_EL1 is not written",
        write!("S3_0_C0_C4_0"),
        undefined,
    );
    checks.attempt("HCR_EL2 is not written", write!("S3_4_C1_C1_0"), undefined);
    checks.attempt(
        "VTTBR_EL2 is not written",
        write!("S3_4_C2_C1_0"),
        undefined,
    );
    checks.attempt(
        "CNTVOFF_EL2 is not written",
        write!("S3_4_C14_C0_3"),
        undefined,
    );
    if !checks.bare {
        // Only the highest exception level writes it.
        checks.attempt(
            "CNTFRQ_EL0 is not written",
            write!("S3_3_C14_C0_0"),
            undefined,
        );
    }
    for (name, write) in [
        ("OSLAR_EL1 is written", write!("S2_0_C1_C0_4") as Read),
        ("MDSCR_EL1 is written", write!("S2_0_C0_C2_2")),
        ("DBGBCR0_EL1 is written", write!("S2_0_C0_C0_5")),
        ("DBGWCR0_EL1 is written", write!("S2_0_C0_C0_7")),
        ("OSDLR_EL1 is written", write!("S2_0_C1_C3_4")),
        ("ACTLR_EL1 is written", write!("ACTLR_EL1")),
        ("CSSELR_EL1 is written", write!("S3_2_C0_C0_0")),
        ("ICC_SRE_EL1 is written", write!("S3_0_C12_C12_5")),
    ] {
        checks.attempt(name, write, done);
    }
    let sre = read_sys!("S3_0_C12_C12_5");
    checks.equal("ICC_SRE_EL1.SRE stays 1", sre & 1, 1);
}

/// Executes one instruction that may be undefined and changes x0 to x7 at most.
macro_rules! instruction {
    ($($text:literal),+) => {
        || {
            let page = super::memory::scratch();
            // SAFETY: x8 points to a page of scratch memory, which is all that the instruction may change beside x0 to x7
            // and flags; a count in x1 is zero.
            unsafe {
                asm!($($text),+, in("x8") page, inout("x0") page => _, inout("x1") 0_u64 => _, out("x2") _, out("x3") _,
                    out("x4") _, out("x5") _, out("x6") _, out("x7") _, options(nostack))
            };
            0
        }
    };
}

fn instructions(checks: &mut Checks) {
    let when = |present: bool| if present { done } else { undefined };
    let (sve, sme) = (
        field!("ID_AA64PFR0_EL1", 32) != 0,
        field!("ID_AA64PFR1_EL1", 24) != 0,
    );
    checks.attempt(
        "RDVL goes with SVE",
        instruction!(".inst 0x04bf5020"),
        when(sve),
    );
    checks.attempt(
        "RDSVL goes with SME",
        instruction!(".inst 0x04bf5820"),
        when(sme),
    );
    let mops = field!("S3_0_C0_C6_2", 16) != 0;
    checks.attempt(
        "SETP goes with MOPS",
        instruction!(".arch_extension mops", "setp [x0]!, x1!, x2"),
        when(mops),
    );
    if field!("ID_AA64ISAR1_EL1", 60) == 0 {
        checks.attempt(
            "LD64B goes with LS64",
            instruction!(".inst 0xf83fd100"),
            undefined,
        );
        checks.attempt(
            "ST64BV goes with LS64",
            instruction!(".inst 0xf820b100"),
            undefined,
        );
    }
    if field!("ID_AA64ISAR0_EL1", 24) == 0 {
        checks.attempt(
            "TSTART goes with TME",
            instruction!(".inst 0xd5233060"),
            undefined,
        );
    }
    for (name, execute) in [
        (
            "HLT, which semihosting uses, is undefined",
            instruction!("hlt #0xf000") as Read,
        ),
        ("DRPS is undefined", instruction!(".inst 0xd6bf03e0")),
        ("DCPS1 is undefined", instruction!(".inst 0xd4a00001")),
        ("UDF is undefined", instruction!("udf #0")),
        (
            "AT S12E1R is undefined",
            instruction!("sys #4, c7, c8, #4, x0"),
        ),
        (
            "AT S1E2R is undefined",
            instruction!("sys #4, c7, c8, #0, x0"),
        ),
        (
            "TLBI ALLE1 is undefined",
            instruction!("sys #4, c8, c7, #4"),
        ),
        (
            "TLBI VMALLS12E1 is undefined",
            instruction!("sys #4, c8, c7, #6"),
        ),
        (
            "TLBI IPAS2E1 is undefined",
            instruction!("sys #4, c8, c4, #1, x0"),
        ),
        (
            "TLBI ALLE3 is undefined",
            instruction!("sys #6, c8, c7, #0"),
        ),
        (
            "implementation defined SYS is undefined",
            instruction!("sys #0, c11, c0, #0, x0"),
        ),
        (
            "implementation defined SYSL is undefined",
            instruction!("sysl x0, #3, c15, c0, #0"),
        ),
        (
            "unallocated SYS is undefined",
            instruction!("sys #0, c7, c15, #7, x0"),
        ),
    ] {
        checks.attempt(name, execute, undefined);
    }
}

fn set_way(checks: &mut Checks) {
    for (name, execute) in [
        ("DC ISW", instruction!("mov x0, #0", "dc isw, x0") as Read),
        ("DC CSW", instruction!("mov x0, #0", "dc csw, x0")),
        ("DC CISW", instruction!("mov x0, #-1", "dc cisw, x0")),
    ] {
        checks.attempt(name, execute, done);
    }
    if field!("ID_AA64PFR1_EL1", 8) >= 2 {
        for (name, execute) in [
            (
                "DC IGSW",
                instruction!("mov x0, #0", "sys #0, c7, c6, #4, x0") as Read,
            ),
            (
                "DC IGDSW",
                instruction!("mov x0, #0", "sys #0, c7, c6, #6, x0"),
            ),
            (
                "DC CGSW",
                instruction!("mov x0, #0", "sys #0, c7, c10, #4, x0"),
            ),
            (
                "DC CIGDSW",
                instruction!("mov x0, #0", "sys #0, c7, c14, #6, x0"),
            ),
        ] {
            checks.attempt(name, execute, done);
        }
    }
}

/// All of it.
pub fn run(checks: &mut Checks) {
    id_space(checks);
    hidden(checks);
    features(checks);
    never_and_always(checks);
    writes(checks);
    instructions(checks);
    set_way(checks);
}
