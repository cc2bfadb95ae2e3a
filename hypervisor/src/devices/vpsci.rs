//! PSCI 1.1 (DEN0022), SMCCC 1.2 (DEN0028) and TRNG 1.0 (DEN0098) for guests, by HVC or SMC: from a call to what is to be
//! done.
//!
//! A function of the call and the power states. The caller holds whatever lock orders `CPU_ON` of several virtual CPUs:
//! it must go from [`answer`] to `OnPending` in one step.

use super::{affinity, vcpu_with_affinity};
use crate::traps::id_regs::{IdReg, IdRegs, Need, Workaround};

/// Whether a virtual CPU runs, as PSCI sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VcpuPower {
    /// It runs, or would if scheduled.
    On,
    /// It waits for `CPU_ON`.
    Off,
    /// `CPU_ON` was called, and it has not reached its entry point yet.
    OnPending,
}

/// The VM as PSCI has to know it.
pub trait PsciVm {
    /// Returns the number of virtual CPUs.
    fn vcpus(&self) -> usize;
    /// Returns the power state of virtual CPU `vcpu`, which exists.
    fn power(&self, vcpu: usize) -> VcpuPower;
    /// Says whether the guest has RAM at this guest physical address.
    fn is_ram(&self, ipa: u64) -> bool;
}

/// What a call comes to. Unless it says otherwise, the caller goes on with `x0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// `x0` is this value. Negative ones are sign-extended to 64 bits, which serves callers of both widths: SMC32
    /// callers look at `w0` alone.
    Return(i64),
    /// `w0` to `w3` are these values.
    ReturnFour([u32; 4]),
    /// So many random bits, at most 96, or 192 if `wide`: see [`random`].
    Random {
        /// How many, at least 1.
        bits: u64,
        /// 64 of them go into a register, else 32.
        wide: bool,
    },
    /// Have firmware do its part against speculation on this CPU, by this function; then [`SUCCESS`].
    Firmware(u32),
    /// Start virtual CPU `target`, which is off, at `entry` with `context` in `x0`, MMU off; then [`SUCCESS`].
    CpuOn {
        /// The virtual CPU to start.
        target: usize,
        /// Its first program counter, a guest physical address in RAM.
        entry: u64,
        /// Its `x0`.
        context: u64,
    },
    /// Stop the calling virtual CPU; nothing is returned.
    CpuOff,
    /// Wait for an interrupt like WFI; then [`SUCCESS`].
    Suspend,
    /// Power the VM off; nothing is returned.
    SystemOff,
    /// Restart the VM; nothing is returned.
    SystemReset,
}

/// The call did what it says.
pub const SUCCESS: i64 = 0;
/// Unknown or absent function (also of SMCCC).
pub const NOT_SUPPORTED: i64 = -1;
/// An argument is wrong.
pub const INVALID_PARAMETERS: i64 = -2;
/// The virtual CPU is on.
pub const ALREADY_ON: i64 = -4;
/// There are no random bits at the moment (TRNG).
pub const NO_ENTROPY: i64 = -3;
/// The virtual CPU is being started.
pub const ON_PENDING: i64 = -5;
/// The entry point is no address in RAM, or not one of an instruction.
pub const INVALID_ADDRESS: i64 = -9;

/// Bit 30 of a function identifier: arguments are 64 bits wide.
const SMC64: u32 = 1 << 30;
/// Bit 16: the caller does not need its SVE registers (SMCCC 1.3). They are not touched anyway.
const SVE_HINT: u32 = 1 << 16;

// Function identifiers without their SMC64 bit.
const SMCCC_VERSION: u32 = 0x8000_0000;
const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
const PSCI_VERSION: u32 = 0x8400_0000;
const CPU_SUSPEND: u32 = 0x8400_0001;
const CPU_OFF: u32 = 0x8400_0002;
const CPU_ON: u32 = 0x8400_0003;
const AFFINITY_INFO: u32 = 0x8400_0004;
const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
const SYSTEM_OFF: u32 = 0x8400_0008;
const SYSTEM_RESET: u32 = 0x8400_0009;
const PSCI_FEATURES: u32 = 0x8400_000a;
const SYSTEM_RESET2: u32 = 0x8400_0012;
const TRNG_VERSION: u32 = 0x8400_0050;
const TRNG_FEATURES: u32 = 0x8400_0051;
const TRNG_GET_UUID: u32 = 0x8400_0052;
const TRNG_RND: u32 = 0x8400_0053;
const VENDOR_UID: u32 = 0x8600_ff01;
const VENDOR_REVISION: u32 = 0x8600_ff03;

/// SMCCC 1.2.
const SMCCC_1_2: i64 = 0x1_0002;
/// PSCI 1.1.
const PSCI_1_1: i64 = 0x1_0001;
/// TRNG 1.0.
const TRNG_1_0: i64 = 0x1_0000;
/// `MIGRATE_INFO_TYPE`: no trusted OS, or one that need not be migrated.
const NO_TRUSTED_OS: i64 = 2;
/// `CPU_SUSPEND`, original format: StateID, StateType, PowerLevel; the rest must be zero.
const POWER_STATE_MASK: u64 = 0x0301_ffff;
const POWER_STATE_DOWN: u64 = 1 << 16;
/// The UUID of this hypervisor, 6b9f6c1e-3f0a-4c3e-9d57-74616776736f, as DEN0028 puts it into registers.
const UID: [u32; 4] = [0x1e6c_9f6b, 0x3e4c_0a3f, 0x6174_579d, 0x6f73_7667];

/// The functions there are, with how wide their arguments may be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Function {
    SmcccVersion,
    SmcccArchFeatures,
    Workaround(Workaround),
    TrngVersion,
    TrngFeatures,
    TrngGetUuid,
    TrngRnd,
    VendorUid,
    VendorRevision,
    Version,
    CpuSuspend,
    CpuOff,
    CpuOn,
    AffinityInfo,
    MigrateInfoType,
    SystemOff,
    SystemReset,
    Features,
    SystemReset2,
}

impl Function {
    /// Finds the function that a guest on this hardware has by this identifier.
    fn decode(hw: &IdRegs, id: u32) -> Option<Self> {
        let id = id & !SVE_HINT;
        let (function, has_smc64) = match id & !SMC64 {
            SMCCC_VERSION => (Self::SmcccVersion, false),
            SMCCC_ARCH_FEATURES => (Self::SmcccArchFeatures, false),
            TRNG_VERSION => (Self::TrngVersion, false),
            TRNG_FEATURES => (Self::TrngFeatures, false),
            TRNG_GET_UUID => (Self::TrngGetUuid, false),
            TRNG_RND => (Self::TrngRnd, true),
            VENDOR_UID => (Self::VendorUid, false),
            VENDOR_REVISION => (Self::VendorRevision, false),
            other => match Workaround::from_function(other) {
                Some(workaround) => (Self::Workaround(workaround), false),
                None => Self::decode_psci(other)?,
            },
        };
        let exists = match function {
            Self::Workaround(workaround) => hw.workaround(workaround) != Need::Unknown,
            function if function.is_trng() => hw.field(IdReg::ISAR0, 60) != 0,
            _ => true,
        };
        (exists && (has_smc64 || id & SMC64 == 0)).then_some(function)
    }

    const fn decode_psci(id: u32) -> Option<(Self, bool)> {
        Some(match id {
            PSCI_VERSION => (Self::Version, false),
            CPU_SUSPEND => (Self::CpuSuspend, true),
            CPU_OFF => (Self::CpuOff, false),
            CPU_ON => (Self::CpuOn, true),
            AFFINITY_INFO => (Self::AffinityInfo, true),
            MIGRATE_INFO_TYPE => (Self::MigrateInfoType, false),
            SYSTEM_OFF => (Self::SystemOff, false),
            SYSTEM_RESET => (Self::SystemReset, false),
            PSCI_FEATURES => (Self::Features, false),
            SYSTEM_RESET2 => (Self::SystemReset2, true),
            _ => return None,
        })
    }

    const fn is_trng(self) -> bool {
        matches!(
            self,
            Self::TrngVersion | Self::TrngFeatures | Self::TrngGetUuid | Self::TrngRnd
        )
    }

    const fn is_psci(self) -> bool {
        !self.is_trng()
            && !matches!(
                self,
                Self::SmcccArchFeatures
                    | Self::Workaround(_)
                    | Self::VendorUid
                    | Self::VendorRevision
            )
    }
}

/// Answers the call in `x0` to `x3` (function identifier, three arguments) of a VM's virtual CPU; `hw` is the hardware that
/// all of them run on.
///
/// The caller has checked that the immediate of the HVC or SMC was zero; any other is [`NOT_SUPPORTED`].
pub fn answer(vm: &impl PsciVm, hw: &IdRegs, x: [u64; 4]) -> Outcome {
    let id = x[0] as u32;
    let Some(function) = Function::decode(hw, id) else {
        return Outcome::Return(NOT_SUPPORTED);
    };
    let wide = id & SMC64 != 0;
    let [_, a, b, c] = x.map(|x| if wide { x } else { x & 0xffff_ffff });
    match function {
        Function::SmcccVersion => Outcome::Return(SMCCC_1_2),
        Function::SmcccArchFeatures => Outcome::Return(arch_features(hw, a)),
        Function::Workaround(workaround) => match hw.workaround(workaround) {
            Need::Required => Outcome::Firmware(workaround.function()),
            _ => Outcome::Return(SUCCESS),
        },
        Function::TrngVersion => Outcome::Return(TRNG_1_0),
        Function::TrngFeatures => Outcome::Return(features(hw, a, Function::is_trng)),
        Function::TrngGetUuid | Function::VendorUid => Outcome::ReturnFour(UID),
        Function::TrngRnd if (1..=if wide { 192 } else { 96 }).contains(&a) => {
            Outcome::Random { bits: a, wide }
        }
        Function::TrngRnd => Outcome::Return(INVALID_PARAMETERS),
        Function::VendorRevision => Outcome::ReturnFour([0, 1, 0, 0]),
        Function::Version => Outcome::Return(PSCI_1_1),
        Function::CpuSuspend => cpu_suspend(vm, a, b),
        Function::CpuOff => Outcome::CpuOff,
        Function::CpuOn => cpu_on(vm, a, b, c),
        Function::AffinityInfo => Outcome::Return(affinity_info(vm, a, b)),
        Function::MigrateInfoType => Outcome::Return(NO_TRUSTED_OS),
        Function::SystemOff => Outcome::SystemOff,
        Function::SystemReset => Outcome::SystemReset,
        Function::Features => Outcome::Return(features(hw, a, Function::is_psci)),
        // The architectural warm reset is the one we have; vendor-specific ones we have not.
        Function::SystemReset2 if a == 0 => Outcome::SystemReset,
        Function::SystemReset2 => Outcome::Return(INVALID_PARAMETERS),
    }
}

/// Says whether an SMCCC function is there, and whether a workaround is needed.
fn arch_features(hw: &IdRegs, id: u64) -> i64 {
    match Function::decode(hw, id as u32) {
        Some(Function::SmcccVersion | Function::SmcccArchFeatures) => SUCCESS,
        Some(Function::Workaround(workaround)) => hw.workaround(workaround).answer(),
        _ => NOT_SUPPORTED,
    }
}

/// Says whether a function of this kind is there; zero is also the set of its flags (`CPU_SUSPEND`: original format, platform
/// coordinated).
fn features(hw: &IdRegs, id: u64, kind: fn(Function) -> bool) -> i64 {
    match Function::decode(hw, id as u32) {
        Some(function) if kind(function) => SUCCESS,
        _ => NOT_SUPPORTED,
    }
}

/// Returns `x0` to `x3` for [`Outcome::Random`]: the status, then the bits, the lowest ones in `x3`; what was not asked for is 0.
///
/// `source` gives 64 bits, or none at the moment.
pub fn random(bits: u64, wide: bool, mut source: impl FnMut() -> Option<u64>) -> [u64; 4] {
    let width = if wide { 64 } else { 32 };
    let mut left = bits;
    let mut x = [SUCCESS as u64, 0, 0, 0];
    for register in x.iter_mut().skip(1).rev() {
        let here = left.min(width);
        left -= here;
        if here != 0 {
            match source() {
                Some(random) => *register = random >> (64 - here),
                None => return [NO_ENTROPY as u64, 0, 0, 0],
            }
        }
    }
    x
}

/// A power-down request is met as a standby, which PSCI allows (DEN0022, 5.4.5): it returns when an interrupt comes.
fn cpu_suspend(vm: &impl PsciVm, power_state: u64, entry: u64) -> Outcome {
    if power_state & !POWER_STATE_MASK != 0 {
        return Outcome::Return(INVALID_PARAMETERS);
    }
    if power_state & POWER_STATE_DOWN != 0 && !is_entry(vm, entry) {
        return Outcome::Return(INVALID_ADDRESS);
    }
    Outcome::Suspend
}

fn cpu_on(vm: &impl PsciVm, target: u64, entry: u64, context: u64) -> Outcome {
    let Some(target) = vcpu_with_affinity(target, vm.vcpus()) else {
        return Outcome::Return(INVALID_PARAMETERS);
    };
    if !is_entry(vm, entry) {
        return Outcome::Return(INVALID_ADDRESS);
    }
    match vm.power(target) {
        VcpuPower::On => Outcome::Return(ALREADY_ON),
        VcpuPower::OnPending => Outcome::Return(ON_PENDING),
        VcpuPower::Off => Outcome::CpuOn {
            target,
            entry,
            context,
        },
    }
}

/// Says whether a virtual CPU can begin at this address: in RAM, and aligned for A64.
fn is_entry(vm: &impl PsciVm, entry: u64) -> bool {
    entry & 3 == 0 && vm.is_ram(entry)
}

/// Answers `AFFINITY_INFO`: 0 if any virtual CPU of the affinity instance is on, else 2 if any is being started, else
/// 1. Level 1 is a cluster of sixteen.
fn affinity_info(vm: &impl PsciVm, target: u64, level: u64) -> i64 {
    let ignored = match level {
        0 => 0,
        1 => 0xff,
        2 => 0xffff,
        3 => 0xff_ffff,
        _ => return INVALID_PARAMETERS,
    };
    if target & !super::AFFINITY_MASK != 0 {
        return INVALID_PARAMETERS;
    }
    let mut state = None;
    for vcpu in 0..vm.vcpus() {
        if (affinity(vcpu) ^ target) & !ignored != 0 {
            continue;
        }
        state = match (vm.power(vcpu), state) {
            (VcpuPower::On, _) => return 0,
            (VcpuPower::OnPending, _) | (_, Some(2)) => Some(2),
            (VcpuPower::Off, _) => Some(1),
        };
    }
    state.unwrap_or(INVALID_PARAMETERS)
}

#[cfg(test)]
mod tests;
