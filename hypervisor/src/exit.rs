//! Exit dispatch: each exit of a guest is answered here, by one call per kind. A guest's mistake is answered to that guest;
//! what no machine survives ends its VM only.

use alloc::string::ToString;

use stage2::addr::Ipa;
use stage2::guest::{Access, MemError};
use stage2::memory::Memory;

use crate::cpu::Cpu;
use crate::devices::mmio::{Target, UART, UART_INTID};
use crate::devices::pv_time::{self, PvTimeCall};
use crate::devices::vgic::SgiGroup;
use crate::devices::vpsci::{NOT_SUPPORTED, Outcome, VcpuPower, answer, random};
use crate::report::End;
use crate::tag_fault::{self, Resolution};
use crate::traps::debug::comparators_shown;
use crate::traps::esr::{Exit, SysRegTrap, Wait, WaitKind};
use crate::traps::fault::{DataAbort, InstructionAbort, PlainAccess, Stage2Fault};
use crate::traps::id_regs::IdRegs;
use crate::traps::inject::{Exception, PstateFeatures, advance, inject};
use crate::traps::sysreg::{HardwareReg, SgiReg, SysRegContext, SysRegOutcome, TimerReg, emulate};
use crate::vcpu::{GuestContext, Wake};
use crate::vm::Vm;

/// INTID of the virtual timer.
pub const VIRTUAL_TIMER_INTID: u16 = 27;
/// INTID of the EL1 physical timer.
pub const PHYSICAL_TIMER_INTID: u16 = 30;

/// What the run loop does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Enters the vCPU again.
    Resume,
    /// The same, after its physical timer has been set anew.
    Rearm,
    /// The same, after it has turned this vCPU on, which needs a CPU.
    Started(usize),
    /// Has the guest repeat its access, which is answered with [`Env::gathered`]: what other vCPUs have in list registers must be
    /// known first.
    Gather,
    /// Lets another vCPU run: this one waits, or is off, or gave way.
    Yield,
    /// Ends the VM.
    End(End),
    /// Ends the VM because EL2 could not serve it; the reason is for the console.
    Fail(Failure),
}

/// Why a VM cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Its memory could not be provided.
    Memory(MemError),
    /// It runs in a state that was never offered to it: this class of exception.
    Unexpected(u64),
    /// The hardware reported an error that it consumed.
    SError(u64),
}

impl core::fmt::Display for Failure {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Memory(error) => write!(f, "{error}"),
            Self::Unexpected(esr) => write!(f, "unexpected exception, esr={esr:#x}"),
            Self::SError(esr) => {
                write!(f, "SError, esr={esr:#x}: the memory it uses may be damaged")
            }
        }
    }
}

/// A page that an exit has mapped anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedPage {
    /// Where.
    pub ipa: Ipa,
    /// It has tag access since this exit: its tags are zero.
    pub fresh_tags: bool,
}

/// What exit handling works with besides the VM.
pub struct Env<'a, C> {
    /// The CPU that the vCPU runs on.
    pub cpu: &'a mut C,
    /// The machine's memory and that of its VMs.
    pub memory: &'a mut Memory,
    /// ID registers of the hardware.
    pub hw: &'a IdRegs,
    /// Takes a byte of the guest's UART, and what the UART has kept before; returns whether it has room for more.
    pub transmit: &'a mut dyn FnMut(&mut Vm, u8) -> bool,
    /// The virtual GIC knows what all other vCPUs of the VM have in list registers.
    pub gathered: bool,
    /// Out: the page that the exit has mapped, or given tag access.
    pub mapped: Option<MappedPage>,
    /// The physical counter now.
    pub now: u64,
    /// Its counts in a second.
    pub frequency: u64,
}

/// Answers one synchronous exit of `vcpu`.
pub fn handle<C: Cpu>(exit: Exit, vm: &mut Vm, vcpu: usize, env: &mut Env<'_, C>) -> Next {
    match exit {
        Exit::DataAbort(abort) => data_abort(abort, vm, vcpu, env),
        Exit::InstructionAbort(abort) => instruction_abort(abort, vm, vcpu, env),
        Exit::SysReg(trap) => system_register(trap, vm, vcpu, env),
        Exit::Hvc { imm } => call(imm, vm, vcpu, env),
        Exit::Smc { imm } => {
            skip(vm, vcpu);
            call(imm, vm, vcpu, env)
        }
        Exit::Wait(wait) => wait_for_event(wait, vm, vcpu, env),
        Exit::SError(_) => Next::Fail(Failure::SError(esr(vm, vcpu))),
        Exit::GranuleProtection | Exit::Unexpected { .. } => {
            Next::Fail(Failure::Unexpected(esr(vm, vcpu)))
        }
        // All that is hidden from guests and traps: as if it did not exist.
        Exit::UnknownReason
        | Exit::SysReg128
        | Exit::FpAccess
        | Exit::Sve
        | Exit::Sme
        | Exit::Pauth
        | Exit::PauthFailure
        | Exit::Ls64
        | Exit::Tstart
        | Exit::BranchTarget
        | Exit::IllegalState
        | Exit::PcAlignment
        | Exit::SpAlignment
        | Exit::Eret
        | Exit::Mops
        | Exit::Gcs
        | Exit::Svc { .. }
        | Exit::FpException
        | Exit::Debug(_)
        | Exit::AArch32(_)
        | Exit::Brk { .. } => give(Exception::Undefined, vm, vcpu, env),
    }
}

/// Answers an access to the UART that concerns nobody but it and the guest, as most do. Returns whether it was one; the guest
/// may go on as if it had never left then. Bytes are kept in the UART where they may be.
pub fn access_uart(
    access: PlainAccess,
    context: &mut GuestContext,
    vm: &mut Vm,
    keep: bool,
) -> bool {
    let PlainAccess {
        ipa,
        bytes,
        register,
        write,
    } = access;
    let offset = ipa.wrapping_sub(UART.start);
    if write {
        let value = context.register(register);
        if !(keep && vm.uart.poke(offset, bytes, value)) {
            return false;
        }
    } else {
        let Some(value) = vm.uart.peek(offset, bytes) else {
            return false;
        };
        context.set_register(register, value);
    }
    vm.exits.quick += 1;
    (context.pc, context.pstate) = advance(context.pc, context.pstate, true);
    true
}

/// Takes note of what the guest did to its interrupts since its entry.
pub fn sync_interrupts(vm: &mut Vm, vcpu: usize, cpu: &mut impl Cpu) {
    if let Some(state) = vm.vcpus.get_mut(vcpu) {
        cpu.store_list_registers(&mut state.lrs);
        vm.vgic.sync(vcpu, &state.lrs);
        if cpu.virtual_timer_is_quiet() {
            // The guest has stopped or moved the timer before it took the interrupt.
            vm.vgic.cancel_hw_ppi(vcpu, VIRTUAL_TIMER_INTID);
        }
    }
}

fn esr(vm: &Vm, vcpu: usize) -> u64 {
    vm.vcpus.get(vcpu).map_or(0, |vcpu| vcpu.context.esr)
}

/// Goes on behind the instruction that EL2 has done.
fn skip(vm: &mut Vm, vcpu: usize) {
    if let Some(vcpu) = vm.vcpus.get_mut(vcpu) {
        let context = &mut vcpu.context;
        let is_32_bit = context.esr >> 25 & 1 != 0;
        (context.pc, context.pstate) = advance(context.pc, context.pstate, is_32_bit);
    }
}

/// Gives the guest an exception.
fn give<C: Cpu>(exception: Exception, vm: &mut Vm, vcpu: usize, env: &mut Env<'_, C>) -> Next {
    vm.exits.injected += 1;
    if let Some(vcpu) = vm.vcpus.get_mut(vcpu) {
        let origin = env.cpu.origin(&vcpu.context);
        let injected = inject(exception, origin, PstateFeatures::of(env.hw));
        env.cpu.take_exception(&injected);
        (vcpu.context.pc, vcpu.context.pstate) = (injected.pc, injected.pstate);
    }
    Next::Resume
}

fn data_abort<C: Cpu>(abort: DataAbort, vm: &mut Vm, vcpu: usize, env: &mut Env<'_, C>) -> Next {
    let external = Exception::DataAbort {
        far: abort.far,
        write: abort.write,
        cache_maintenance: abort.cache_maintenance,
    };
    match (abort.fault, abort.ipa_page) {
        (Stage2Fault::TagAccess, _) => tag_access(external, abort.far.unwrap_or(0), vm, vcpu, env),
        (_, Some(page)) if is_ram(vm, page) => page_fault(page, vm, vcpu, env),
        // Maintenance of what has no cache lines: there is nothing to do. An AT reports the same, but only ever from its
        // table walk, and has a result to give: it falls through.
        (Stage2Fault::Translation { .. }, Some(_))
            if abort.cache_maintenance && !abort.on_stage1_walk =>
        {
            skip(vm, vcpu);
            Next::Resume
        }
        (Stage2Fault::Translation { .. }, Some(_)) => match mmio(&abort, vm, vcpu, env) {
            Some(next) => next,
            None => give(external, vm, vcpu, env),
        },
        _ => give(external, vm, vcpu, env),
    }
}

fn instruction_abort<C: Cpu>(
    abort: InstructionAbort,
    vm: &mut Vm,
    vcpu: usize,
    env: &mut Env<'_, C>,
) -> Next {
    match abort.ipa_page {
        Some(page) if is_ram(vm, page) => page_fault(page, vm, vcpu, env),
        _ => give(
            Exception::InstructionAbort { far: abort.far },
            vm,
            vcpu,
            env,
        ),
    }
}

fn is_ram(vm: &Vm, ipa: u64) -> bool {
    crate::devices::vpsci::PsciVm::is_ram(vm, ipa)
}

fn page_fault<C: Cpu>(page: u64, vm: &mut Vm, vcpu: usize, env: &mut Env<'_, C>) -> Next {
    vm.exits.page += 1;
    let ipa = Ipa::new(page);
    let fault = tag_fault::evicting(vm, env, |memory, cpu, id, leave| {
        memory.access_fault(cpu, id, ipa, leave)
    });
    match fault {
        Ok(Access::Wait) => wait_for_leave(vm, vcpu),
        Ok(access) => {
            let fresh_tags = matches!(access, Access::Mapped(_));
            env.mapped = Some(MappedPage { ipa, fresh_tags });
            Next::Resume
        }
        Err(error) => out_of_memory(error, vm, vcpu, env),
    }
}

fn tag_access<C: Cpu>(
    external: Exception,
    far: u64,
    vm: &mut Vm,
    vcpu: usize,
    env: &mut Env<'_, C>,
) -> Next {
    vm.exits.tag += 1;
    match tag_fault::handle(vm, vcpu, far, env) {
        Ok(Resolution::Tagged(ipa)) => {
            env.mapped = Some(MappedPage {
                ipa,
                fresh_tags: true,
            });
            Next::Resume
        }
        Ok(Resolution::Reenter) => Next::Resume,
        Ok(Resolution::Wait) => wait_for_leave(vm, vcpu),
        Ok(Resolution::Unresolved) | Err(MemError::NotRam(_) | MemError::NotMte) => {
            vm.warn_guest(format_args!(
                "tag access at va={far:#x} that stage 1 does not translate"
            ));
            give(external, vm, vcpu, env)
        }
        Err(error) => out_of_memory(error, vm, vcpu, env),
    }
}

/// Lets the vCPU sleep until its VM may evict again; it repeats its access then.
fn wait_for_leave(vm: &mut Vm, vcpu: usize) -> Next {
    let at = Some(vm.throttle.next());
    if let Some(vcpu) = vm.vcpus.get_mut(vcpu) {
        vcpu.waiting = Some(Wake {
            at,
            by_interrupt: false,
        });
    }
    Next::Yield
}

/// The guest cannot have the page, or the tags, that it needs to go on.
fn out_of_memory<C: Cpu>(error: MemError, vm: &mut Vm, vcpu: usize, env: &mut Env<'_, C>) -> Next {
    match error {
        // It has ended meanwhile.
        MemError::NoSuchVm(_) => Next::Yield,
        MemError::OverBudget { .. } => match tag_fault::give_back_unused(vm, vcpu, env) {
            Ok(true) => Next::Resume,
            Ok(false) => {
                vm.reason = Some(error.to_string());
                Next::End(End::OverBudget)
            }
            Err(lost) => Next::Fail(Failure::Memory(lost)),
        },
        error => Next::Fail(Failure::Memory(error)),
    }
}

/// Emulates a device access; none: there is no device, or the syndrome does not say what the access is.
fn mmio<C: Cpu>(abort: &DataAbort, vm: &mut Vm, vcpu: usize, env: &mut Env<'_, C>) -> Option<Next> {
    let access = abort.access?;
    let target = vm.bus.find(abort.ipa()?, access.bytes)?;
    if let Target::Gic(frame, offset) = target
        && !(abort.write || env.gathered)
        && vm.vgic.reads_list_registers(frame, offset)
    {
        return Some(Next::Gather);
    }
    vm.exits.mmio += 1;
    if matches!(target, Target::Gic(..)) {
        sync_interrupts(vm, vcpu, env.cpu);
    }
    if abort.write {
        let value = access.stored(vm.vcpus.get(vcpu)?.context.register(access.register));
        match target {
            Target::Uart(offset) => {
                if let Some(byte) = vm.uart.write(offset, access.bytes, value) {
                    let room = (env.transmit)(vm, byte);
                    vm.uart.set_transmit_room(room);
                }
            }
            Target::Gic(frame, offset) => vm.vgic.write(frame, offset, access.bytes, value),
        }
    } else {
        let value = match target {
            Target::Uart(offset) => vm.uart.read(offset, access.bytes),
            Target::Gic(frame, offset) => vm.vgic.read(frame, offset, access.bytes),
        };
        vm.vcpus
            .get_mut(vcpu)?
            .context
            .set_register(access.register, access.loaded(value));
    }
    if matches!(target, Target::Uart(_)) {
        vm.vgic.set_spi_level(UART_INTID, vm.uart.irq_level());
    }
    skip(vm, vcpu);
    Some(Next::Resume)
}

fn system_register<C: Cpu>(
    trap: SysRegTrap,
    vm: &mut Vm,
    vcpu: usize,
    env: &mut Env<'_, C>,
) -> Next {
    vm.exits.sysreg += 1;
    let Some(state) = vm.vcpus.get_mut(vcpu) else {
        return Next::Yield;
    };
    let value = state.context.register(trap.rt);
    let context = SysRegContext {
        hw: env.hw,
        shape: vm.shape,
    };
    match emulate(trap, value, context, &mut state.sysregs) {
        SysRegOutcome::Read(value) => state.context.set_register(trap.rt, value),
        SysRegOutcome::WriteIgnored | SysRegOutcome::SetWay => {}
        SysRegOutcome::WriteHardware(HardwareReg::MdscrEl1, value) => env.cpu.write_mdscr(value),
        SysRegOutcome::WriteHardware(HardwareReg::CpacrEl1, value) => env.cpu.write_cpacr(value),
        SysRegOutcome::WriteComparators => {
            let (shown, _) = comparators_shown(env.hw);
            env.cpu.write_comparators(&state.sysregs.debug, shown);
        }
        SysRegOutcome::Sgi { register, value } => {
            let group = match register {
                SgiReg::Sgi1r => SgiGroup::Group1,
                SgiReg::Asgi1r | SgiReg::Sgi0r => SgiGroup::Group0,
            };
            vm.vgic.send_sgi_in_group(vcpu, value, group);
        }
        SysRegOutcome::PhysicalTimer { register, write } => {
            physical_timer(register, write, trap.rt, vm, vcpu, env.now);
            skip(vm, vcpu);
            return Next::Rearm;
        }
        SysRegOutcome::DeactivateInterrupt(intid) => {
            sync_interrupts(vm, vcpu, env.cpu);
            if let Ok(intid) = u16::try_from(intid) {
                vm.vgic.deactivate(vcpu, intid);
            }
        }
        SysRegOutcome::Undefined => {
            vm.warn_guest(format_args!(
                "undefined system register S{}_{}_C{}_C{}_{}",
                trap.op0, trap.op1, trap.crn, trap.crm, trap.op2
            ));
            return give(Exception::Undefined, vm, vcpu, env);
        }
    }
    skip(vm, vcpu);
    Next::Resume
}

fn physical_timer(
    register: TimerReg,
    write: Option<u64>,
    rt: u8,
    vm: &mut Vm,
    vcpu: usize,
    now: u64,
) {
    let Some(state) = vm.vcpus.get_mut(vcpu) else {
        return;
    };
    let timer = &mut state.physical_timer;
    match (register, write) {
        (TimerReg::Ctl, None) => state.context.set_register(rt, timer.ctl(now)),
        (TimerReg::Cval, None) => state.context.set_register(rt, timer.cval()),
        (TimerReg::Tval, None) => state.context.set_register(rt, timer.tval(now)),
        (TimerReg::Ctl, Some(value)) => timer.set_ctl(value),
        (TimerReg::Cval, Some(value)) => timer.set_cval(value),
        (TimerReg::Tval, Some(value)) => timer.set_tval(value, now),
    }
    vm.vgic
        .set_ppi_level(vcpu, PHYSICAL_TIMER_INTID, timer.level(now));
}

/// A hypervisor call or a trapped SMC. The PC already points behind it.
fn call<C: Cpu>(imm: u16, vm: &mut Vm, vcpu: usize, env: &mut Env<'_, C>) -> Next {
    vm.exits.call += 1;
    let Some(context) = vm.vcpus.get(vcpu).map(|vcpu| &vcpu.context) else {
        return Next::Yield;
    };
    let arguments = [0, 1, 2, 3].map(|index| context.register(index));
    // SMCCC 1.2, 2.9: the immediate is 0; other values are nobody's.
    let [x0, x1, ..] = arguments;
    let outcome = match pv_time::decode(x0, x1) {
        _ if imm != 0 => Outcome::Return(NOT_SUPPORTED),
        Some(PvTimeCall::Answer(value)) => Outcome::Return(value),
        Some(PvTimeCall::Start) => Outcome::Return(show_stolen_time(vm, vcpu, env)),
        None => answer(&*vm, env.hw, arguments),
    };
    let Some(state) = vm.vcpus.get_mut(vcpu) else {
        return Next::Yield;
    };
    match outcome {
        Outcome::Return(value) => state.context.set_register(0, value as u64),
        Outcome::ReturnFour(values) => {
            for (register, value) in (0..).zip(values) {
                state.context.set_register(register, value.into());
            }
        }
        Outcome::Random { bits, wide } => {
            let values = random(bits, wide, || env.cpu.random());
            for (register, value) in (0..).zip(values) {
                state.context.set_register(register, value);
            }
        }
        Outcome::Firmware(function) => {
            env.cpu.work_around(function);
            state.context.set_register(0, 0);
        }
        Outcome::Suspend => {
            state.context.set_register(0, 0);
            return wait_until(None, vm, vcpu, env);
        }
        Outcome::CpuOn {
            target,
            entry,
            context,
        } => {
            state.context.set_register(0, 0);
            if let Some(target) = vm.vcpus.get_mut(target) {
                target.power_on(entry, context);
            }
            vm.vgic.set_ppi_level(target, PHYSICAL_TIMER_INTID, false);
            return Next::Started(target);
        }
        Outcome::CpuOff => {
            state.power = VcpuPower::Off;
            let last = vm.vcpus.iter().all(|vcpu| vcpu.power == VcpuPower::Off);
            return if last {
                Next::End(End::Off)
            } else {
                Next::Yield
            };
        }
        Outcome::SystemOff => return Next::End(End::Off),
        Outcome::SystemReset => return Next::End(End::Reset),
    }
    Next::Resume
}

/// Begins to tell the guest how much of the vCPU's time others have had. Returns where.
fn show_stolen_time<C: Cpu>(vm: &mut Vm, vcpu: usize, env: &mut Env<'_, C>) -> i64 {
    let page = vm.pv_time_page();
    let frame = env.memory.populate(env.cpu, vm.id, page);
    let (Ok(frame), Some(state)) = (frame, vm.vcpus.get_mut(vcpu)) else {
        return NOT_SUPPORTED;
    };
    state.stolen.shown = true;
    let words = state.stolen.words(vcpu, env.frequency);
    for (index, word) in words {
        env.cpu.write(frame, index, word);
    }
    let [(first, _), _] = words;
    page.get() as i64 + first as i64 * size_of::<u64>() as i64
}

fn wait_for_event<C: Cpu>(wait: Wait, vm: &mut Vm, vcpu: usize, env: &mut Env<'_, C>) -> Next {
    vm.exits.wait += 1;
    skip(vm, vcpu);
    match wait.kind {
        WaitKind::Wfi => wait_until(None, vm, vcpu, env),
        WaitKind::Wfit => {
            let context = vm.vcpus.get(vcpu).map(|vcpu| &vcpu.context);
            match wait.deadline_register.zip(context) {
                Some((rt, context)) => wait_until(Some(context.register(rt)), vm, vcpu, env),
                // ISS.RV = 0: a sleep would have no end, so there is none. WFIT may always end early.
                None => Next::Yield,
            }
        }
        // An event may come from anywhere: give way, but do not sleep.
        WaitKind::Wfe | WaitKind::Wfet => Next::Yield,
    }
}

fn wait_until<C: Cpu>(at: Option<u64>, vm: &mut Vm, vcpu: usize, env: &mut Env<'_, C>) -> Next {
    sync_interrupts(vm, vcpu, env.cpu);
    if vm.vgic.has_pending(vcpu) {
        return Next::Resume;
    }
    if let Some(vcpu) = vm.vcpus.get_mut(vcpu) {
        vcpu.waiting = Some(Wake {
            at,
            by_interrupt: true,
        });
    }
    Next::Yield
}
