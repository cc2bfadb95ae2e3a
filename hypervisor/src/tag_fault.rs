//! The tag access fault: which page it is about, and what to do about it.
//!
//! HPFAR_EL2 does not say (it is a permission fault), so FAR_EL2 is translated by the guest's own stage 1; see
//! `traps::tag_access` for what happens when the guest has changed that meanwhile.

use stage2::addr::Ipa;
use stage2::guest::{MemError, TagOutcome};

use crate::cpu::Cpu;
use crate::exit::Env;
use crate::traps::tag_access::{Lookup, TagFault};
use crate::vm::Vm;

/// What came of a tag access fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The guest repeats the access.
    Reenter,
    /// It was the page's first: it has its tag storage now. The guest repeats the access.
    Tagged(Ipa),
    /// No stage-1 form translates the address, twice: answer the guest with an external abort.
    Unresolved,
}

/// Handles a tag access fault of `vcpu` at virtual address `far`.
///
/// # Errors
///
/// The page cannot be given tag storage.
pub fn handle<C: Cpu>(
    vm: &mut Vm,
    vcpu: usize,
    far: u64,
    env: &mut Env<'_, C>,
) -> Result<Resolution, MemError> {
    let Some(state) = vm.vcpus.get_mut(vcpu) else {
        return Ok(Resolution::Reenter);
    };
    let fault = TagFault {
        elr: state.context.pc,
        far,
        pstate: state.context.pstate,
        ats1a: env.hw.has_ats1a(),
    };
    let page = match state
        .tag_guard
        .resolve(&fault, |form| env.cpu.translate(form, far))
    {
        Lookup::Page(page) => page,
        Lookup::Reenter | Lookup::Retry(_) => return Ok(Resolution::Reenter),
        Lookup::Report => return Ok(Resolution::Unresolved),
    };
    let ipa = Ipa::new(page);
    Ok(match env.memory.tag_fault(env.cpu, vm.id, ipa) {
        Ok(TagOutcome::Tagged) => Resolution::Tagged(ipa),
        Ok(TagOutcome::Spurious | TagOutcome::Unmapped) => Resolution::Reenter,
        // The VM has ended meanwhile.
        Err(MemError::NoSuchVm(_)) => Resolution::Reenter,
        Err(error) => return Err(error),
    })
}
