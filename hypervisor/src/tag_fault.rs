//! The tag access fault: which page it is about, and what to do about it.
//!
//! HPFAR_EL2 does not say (it is a permission fault), so FAR_EL2 is translated by the guest's own stage 1; see
//! `traps::tag_access` for what happens when the guest has changed that meanwhile.

use stage2::addr::{Ipa, PAGE_SIZE};
use stage2::frames::VmId;
use stage2::guest::{MemError, TagOutcome};
use stage2::memory::Memory;

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
    /// It would evict more pages of others than the VM has leave for: the guest repeats the access later.
    Wait,
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
    let outcome = evicting(vm, env, |memory, cpu, id, leave| {
        memory.tag_fault(cpu, id, ipa, leave)
    });
    Ok(match outcome {
        Ok(TagOutcome::Tagged) => Resolution::Tagged(ipa),
        Ok(TagOutcome::Spurious | TagOutcome::Unmapped) => Resolution::Reenter,
        Ok(TagOutcome::Wait) => Resolution::Wait,
        // The VM has ended meanwhile.
        Err(MemError::NoSuchVm(_)) => Resolution::Reenter,
        Err(error) => return Err(error),
    })
}

/// Lets a fault of `vm` evict as many pages as it has leave for, and charges it for them.
pub fn evicting<C: Cpu, T>(
    vm: &mut Vm,
    env: &mut Env<'_, C>,
    fault: impl FnOnce(&mut Memory, &mut C, VmId, u64) -> T,
) -> T {
    let before = env.memory.evicted();
    let leave = vm.throttle.leave(env.now);
    let outcome = fault(env.memory, env.cpu, vm.id, leave);
    let evicted = env.memory.evicted() - before;
    if evicted > 0 {
        vm.throttle.spend(evicted);
    }
    outcome
}

/// A vCPU's search for pages of its VM that use no tags, while the VM is at its budget.
#[derive(Clone, Copy, Debug, Default)]
pub struct Search {
    /// ELR and FAR of the fault it is for: another one begins anew, as the guest may have given tags up meanwhile.
    fault: (u64, u64),
    /// Pages that are left to be looked at.
    left: u64,
}

/// Looks for pages of a VM at its budget that use no tags, a part of its RAM at a time: the guest repeats its access after each.
/// Tells whether there is hope.
pub fn give_back_unused<C: Cpu>(
    vm: &mut Vm,
    vcpu: usize,
    env: &mut Env<'_, C>,
) -> Result<bool, MemError> {
    /// What is looked at in one exit.
    const PAGES: u64 = 64;
    let Some(state) = vm.vcpus.get_mut(vcpu) else {
        return Ok(false);
    };
    let (fault, all) = (
        (state.context.pc, state.context.far),
        vm.config.memory / PAGE_SIZE,
    );
    if state.search.left == 0 || state.search.fault != fault {
        state.search = Search { fault, left: all };
    }
    state.search.left = match env.memory.demote(env.cpu, vm.id, PAGES)? {
        0 => state.search.left.saturating_sub(PAGES),
        _ => all,
    };
    Ok(state.search.left > 0)
}
