//! Which page a tag access fault is about: HPFAR_EL2 does not say (it is a permission fault).
//!
//! The IPA is looked up by an address translation instruction of stage 1 on FAR_EL2. The guest may
//! have changed its tables since, so the lookup can fail: it is entered again, and what comes back
//! with the same ELR and FAR is tried by the other privilege, then reported. Nothing loops in EL2.
//!
//! DDI 0487: AT S1E1A (FEAT_ATS1A), AT S1E1R, AT S1E0R, PAR_EL1. Per vCPU, no lock.

use super::inject::is_el0;

/// A form of the AT instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtForm {
    /// AT S1E1A: without a permission check.
    S1E1A,
    /// AT S1E1R: as EL1 reads.
    S1E1R,
    /// AT S1E0R: as EL0 reads.
    S1E0R,
}

/// A value of PAR_EL1 in its 64-bit format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Par(pub u64);

impl Par {
    /// The page of the output address, or None if the translation failed (PAR_EL1.F).
    pub const fn page(self) -> Option<u64> {
        const PA: u64 = 0x000f_ffff_ffff_f000;
        if self.0 & 1 != 0 {
            None
        } else {
            Some(self.0 & PA)
        }
    }
}

/// A tag access fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagFault {
    /// ELR_EL2.
    pub elr: u64,
    /// FAR_EL2, with its tag byte.
    pub far: u64,
    /// SPSR_EL2.
    pub pstate: u64,
    /// The hardware has FEAT_ATS1A.
    pub ats1a: bool,
}

impl TagFault {
    /// The first form to try.
    pub const fn first_form(&self) -> AtForm {
        match (self.ats1a, is_el0(self.pstate)) {
            (true, _) => AtForm::S1E1A,
            (false, true) => AtForm::S1E0R,
            (false, false) => AtForm::S1E1R,
        }
    }

    /// The form of the other privilege: stage 1 permissions can give EL0 what EL1 has not.
    ///
    /// LDTR and its kin access as EL0 from EL1.
    pub const fn other_form(&self) -> AtForm {
        if is_el0(self.pstate) {
            AtForm::S1E1R
        } else {
            AtForm::S1E0R
        }
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The IPA of the page.
    Page(u64),
    /// Enter the guest again: its tables changed under the access.
    Reenter,
    /// Look up again by this form.
    Retry(AtForm),
    /// No form finds it, twice: count it and give the guest an abort.
    Report,
}

/// The memory of one vCPU for failed lookups: the guard against an endless loop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoopGuard {
    failed_at: Option<(u64, u64)>,
}

impl LoopGuard {
    /// Judges the result of an AT by `form`. `fault` is the same until the answer is not `Retry`.
    pub fn judge(&mut self, fault: &TagFault, form: AtForm, par: Par) -> Lookup {
        let here = Some((fault.elr, fault.far));
        if let Some(page) = par.page() {
            self.failed_at = None;
            Lookup::Page(page)
        } else if self.failed_at != here {
            self.failed_at = here;
            Lookup::Reenter
        } else if form == fault.first_form() {
            Lookup::Retry(fault.other_form())
        } else {
            self.failed_at = None;
            Lookup::Report
        }
    }

    /// Finds the page of `fault` by `translate`, which performs the AT and gives PAR_EL1.
    ///
    /// At most two translations.
    pub fn resolve(&mut self, fault: &TagFault, translate: impl FnMut(AtForm) -> Par) -> Lookup {
        let mut translate = translate;
        let first = fault.first_form();
        match self.judge(fault, first, translate(first)) {
            Lookup::Retry(other) => self.judge(fault, other, translate(other)),
            lookup => lookup,
        }
    }
}

#[cfg(test)]
mod tests;
