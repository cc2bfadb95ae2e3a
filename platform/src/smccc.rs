//! Calls to firmware: PSCI (Arm DEN 0022) by the SMC Calling Convention, through the `smccc` crate.

pub use smccc::psci::error::Error as PsciError;
pub use smccc::psci::{AffinityState, LowestAffinityLevel, Version};

use core::fmt::{self, Display, Formatter};
use core::marker::PhantomData;

use smccc::Call;

use crate::machine::{self, Conduit};

/// Why firmware cannot be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPsci {
    /// The device tree names none.
    Absent,
    /// It is called by HVC, which at EL2 would call ourselves.
    Hvc,
}

impl Display for NoPsci {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => write!(
                f,
                "no PSCI 0.2 or later in the DTB: this board can neither start CPUs nor power off"
            ),
            Self::Hvc => write!(
                f,
                "the DTB says that PSCI is called by hvc, which cannot leave EL2; pass a DTB with method \"smc\" (QEMU: -M virtualization=on)"
            ),
        }
    }
}

/// Firmware's PSCI, called by `C`: `Firmware` at EL2, a fake in tests.
#[derive(Debug)]
pub struct Psci<C>(PhantomData<C>);

/// Firmware's PSCI, called by SMC.
#[cfg(target_arch = "aarch64")]
pub type Firmware = Psci<smccc::Smc>;

impl<C: Call> Psci<C> {
    /// Accepts what the device tree says about PSCI.
    ///
    /// # Errors
    /// There is none, or it cannot be called from EL2.
    pub fn new(node: Option<machine::Psci>) -> Result<Self, NoPsci> {
        match node {
            None => Err(NoPsci::Absent),
            Some(node) if node.conduit == Conduit::Hvc => Err(NoPsci::Hvc),
            Some(_) => Ok(Self(PhantomData)),
        }
    }

    /// Firmware that no device tree has named: for a last attempt to power off.
    #[must_use]
    pub const fn assumed() -> Self {
        Self(PhantomData)
    }

    /// Asks for the version.
    ///
    /// # Errors
    /// Firmware's answer, if it is one.
    pub fn version(&self) -> Result<Version, PsciError> {
        smccc::psci::version::<C>()
    }

    /// Powers the machine off. Returns only on failure.
    ///
    /// # Errors
    /// Firmware's answer, if it is one.
    pub fn system_off(&self) -> Result<(), PsciError> {
        smccc::psci::system_off::<C>()
    }

    /// Resets the machine. Returns only on failure.
    ///
    /// # Errors
    /// Firmware's answer, if it is one.
    pub fn system_reset(&self) -> Result<(), PsciError> {
        smccc::psci::system_reset::<C>()
    }

    /// Starts the CPU with affinity `mpidr` at physical address `entry`, MMU off, with `context` in x0.
    ///
    /// # Errors
    /// Firmware's answer: already on, unknown CPU, bad address.
    pub fn cpu_on(&self, mpidr: u64, entry: u64, context: u64) -> Result<(), PsciError> {
        smccc::psci::cpu_on::<C>(mpidr, entry, context)
    }

    /// Asks whether a CPU is on, off or on its way.
    ///
    /// # Errors
    /// Firmware's answer: unknown CPU.
    pub fn affinity_info(&self, mpidr: u64) -> Result<AffinityState, PsciError> {
        smccc::psci::affinity_info::<C>(mpidr, LowestAffinityLevel::All)
    }

    /// Calls a 32-bit function of the Arm architecture service, with one argument. Unknown ones return -1.
    #[must_use]
    pub fn architecture(&self, function: u32, argument: u32) -> i64 {
        let [answer, ..] = C::call32(function, [argument, 0, 0, 0, 0, 0, 0]);
        i64::from(answer as i32)
    }

    /// Switches this CPU off. Returns only on failure.
    ///
    /// # Errors
    /// Firmware's answer: denied.
    pub fn cpu_off(&self) -> Result<(), PsciError> {
        smccc::psci::cpu_off::<C>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::PsciVersion;

    /// Firmware with one CPU 0x100 to start.
    struct Fake;

    impl Call for Fake {
        fn call32(function: u32, args: [u32; 7]) -> [u32; 8] {
            let answer = match (function, args[0]) {
                (0x8400_0000, _) => 0x1_0001,
                (0x8400_0008, _) => 0,
                (0x8000_0001, 0x8000_3fff) => 1,
                _ => -1i32 as u32,
            };
            [answer, 0, 0, 0, 0, 0, 0, 0]
        }

        fn call64(function: u32, args: [u64; 17]) -> [u64; 18] {
            let answer = match (function, args[0], args[1], args[2]) {
                (0xc400_0003, 0x100, 0x4020_0000, 7) => 0,
                (0xc400_0003, 0, ..) => -4i64 as u64,
                (0xc400_0003, ..) => -2i64 as u64,
                (0xc400_0004, 0x100, ..) => 1,
                _ => -1i64 as u64,
            };
            let mut result = [0; 18];
            result[0] = answer;
            result
        }
    }

    fn psci() -> Psci<Fake> {
        let (conduit, version) = (Conduit::Smc, PsciVersion::V1_0);
        Psci::new(Some(machine::Psci { conduit, version })).unwrap()
    }

    #[test]
    fn calls_use_the_numbers_and_arguments_of_the_specification() {
        let psci = psci();
        assert_eq!(psci.version(), Ok(Version { major: 1, minor: 1 }));
        assert_eq!(psci.system_off(), Ok(()));
        assert_eq!(psci.cpu_on(0x100, 0x4020_0000, 7), Ok(()));
        assert_eq!(psci.affinity_info(0x100), Ok(AffinityState::Off));
    }

    #[test]
    fn refusals_of_firmware_come_back_as_errors() {
        let psci = psci();
        assert_eq!(psci.cpu_on(0, 0, 0), Err(PsciError::AlreadyOn));
        assert_eq!(psci.cpu_on(5, 0, 0), Err(PsciError::InvalidParameters));
        assert_eq!(psci.system_reset(), Err(PsciError::NotSupported));
        assert_eq!(psci.cpu_off(), Err(PsciError::NotSupported));
    }

    #[test]
    fn an_architecture_call_passes_its_argument_and_signs_its_answer() {
        let psci = psci();
        assert_eq!(psci.architecture(0x8000_0001, 0x8000_3fff), 1);
        assert_eq!(psci.architecture(0x8000_0001, 0x8000_8000), -1);
        assert_eq!(psci.architecture(0x8000_8000, 0), -1);
    }

    #[test]
    fn hvc_is_refused_at_el2() {
        let (conduit, version) = (Conduit::Hvc, PsciVersion::V1_0);
        let node = machine::Psci { conduit, version };
        assert_eq!(Psci::<Fake>::new(Some(node)).err(), Some(NoPsci::Hvc));
        assert_eq!(Psci::<Fake>::new(None).err(), Some(NoPsci::Absent));
    }
}
