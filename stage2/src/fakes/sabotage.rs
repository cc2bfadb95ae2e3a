//! Steps that the machine can be told to leave out: tests of the tests.

use super::SimMachine;

/// A step that is not done, though the hypervisor asked for it, or done wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sabotage {
    /// No TLBI at all.
    NoTlbi,
    /// TLBIs reach this CPU alone.
    LocalTlbi,
    /// TLBIs act on the VMID of another VM.
    WrongVmid,
    /// No `TLBI VMALLE1IS`: combined entries stay.
    NoStage1Tlbi,
    /// No repeat of the TLBI.
    NoRepeat,
    /// No `DSB ISHST` between the broken entry and the TLBI.
    NoDsbBeforeTlbi,
    /// No `DSB ISH` after TLBIs.
    NoDsbAfterTlbi,
    /// Table entries are not published.
    NoPublish,
    /// No `DSB` after maintenance and writes of frames.
    NoSynchronize,
    /// No `DC CIVAC`.
    NoDataClean,
    /// No `DC CIGVAC`.
    NoTagClean,
    /// Tags are not zeroed.
    NoTagZeroing,
    /// Tags are not copied.
    NoTagCopy,
    /// Data is not zeroed.
    NoZero,
    /// Data is not copied.
    NoCopy,
    /// Of an exchange only one half is done: a copy.
    HalfExchange,
    /// Instruction fetches are not told of a copy.
    NoSyncCode,
}

impl SimMachine {
    /// From now on does something wrong, until told otherwise.
    pub fn sabotage(&mut self, how: impl Into<Option<Sabotage>>) {
        self.sabotage = how.into();
    }

    pub(super) fn is(&self, how: Sabotage) -> bool {
        self.sabotage == Some(how)
    }
}
