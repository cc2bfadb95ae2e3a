//! The boot order, on the boot CPU: device tree, EL2's map, console, CPU checks, bundle, memory, GIC, VMs.
//!
//! Each step either leaves the machine ready for the next or ends in one line that says what is wrong and what to do.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use platform::features::{NoMteReason, StaticReason, TagSupport};
use platform::gic::{CpuInterface, Distributor, GicError, Redistributor};
use platform::mmio::Mmio;
use platform::pl011::Pl011;
use platform::smccc::Firmware;
use platform::{Machine, fdt};
use stage2::addr::PhysAddr;
use stage2::guest::Policy;
use stage2::host::Layout as HostLayout;
use stage2::memory::Memory;

use crate::arch::cpu::{self, El2};
use crate::arch::linear::{AddressSpace, Kind};
use crate::arch::{self, FALLBACK_UART, timer};
use crate::bundle::Bundle;
use crate::config::{Config, PolicyChoice};
use crate::cpus::{Cpus, Survey, release};
use crate::layout::{Layout, Loaded, without};
use crate::output::{CONSOLE, init_logger, line};
use crate::report::{MachineInfo, RegionInfo};
use crate::run::{Facts, Hypervisor, Interrupts, Parts, Shared, ThisCpu, run};
use crate::stacks::Stacks;
use crate::vm::{Board, policy_name};

/// A line for the person at the console: boot cannot go on.
struct Fatal(String);

impl<E: ToString> From<E> for Fatal {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// Boots. `dtb` is the device tree's address, 0 if none was found.
pub fn start(dtb: u64) -> ! {
    let machine = match read_dtb(dtb) {
        Ok(machine) => machine,
        Err(Fatal(text)) => {
            open_fallback_console();
            fatal(&text)
        }
    };
    match prepare(dtb, &machine) {
        Ok((shared, cpu)) => run(shared, cpu),
        Err(Fatal(text)) => fatal(&text),
    }
}

fn fatal(text: &str) -> ! {
    line(format_args!("[tagvisor] FATAL {text}"));
    power_off()
}

/// Powers the machine off; where firmware cannot, parks this CPU.
pub fn power_off() -> ! {
    if let Some(mut console) = CONSOLE.try_lock() {
        console.flush();
    }
    match firmware() {
        Some(firmware) => {
            let _ = firmware.system_off();
        }
        None => {
            // No device tree has said how. SMC is the one way that leaves EL2; where nobody answers it, it is undefined and
            // ends in `panic`, quietly.
            PANICKED.store(cpu::mpidr(), Ordering::Relaxed);
            SILENT.store(true, Ordering::Relaxed);
            let _ = Firmware::assumed().system_off();
        }
    }
    cpu::park()
}

static FIRMWARE: spin::Once<Firmware> = spin::Once::new();

/// The firmware that the device tree names.
pub fn firmware() -> Option<&'static Firmware> {
    FIRMWARE.get()
}

fn read_dtb(dtb: u64) -> Result<Machine, Fatal> {
    fdt::check_address(dtb)?;
    let header = dtb..dtb + fdt::HEADER_BYTES as u64;
    // The entry code found the magic there, and mapped the 2 MiB blocks of its first and its last byte.
    let header = arch::loaded_bytes(&header);
    let bytes = fdt::dtb_size(header)?;
    let whole = dtb..dtb + bytes as u64;
    Ok(fdt::discover(arch::loaded_bytes(&whole))?)
}

/// Without a device tree no UART is known: tries the one of QEMU's virt machine.
fn open_fallback_console() {
    open_console(Some(FALLBACK_UART..FALLBACK_UART + 0x1000));
}

/// Maps our image and the UART alone, and prints from now on: whatever fails later can be said.
fn open_console(uart: Option<Range<u64>>) {
    let mut space = AddressSpace::new();
    let mapped = space.map_image().is_ok()
        && uart
            .clone()
            .is_none_or(|uart| space.map(uart, Kind::Device).is_ok());
    init_logger();
    if !mapped {
        return;
    }
    space.activate();
    if let Some(registers) = uart.as_ref().and_then(arch::device) {
        let mut uart = Pl011::new(registers);
        uart.init();
        CONSOLE.lock().attach(uart);
    }
}

fn range(of: platform::MemRange) -> Range<u64> {
    of.base()..of.end()
}

fn prepare(dtb: u64, machine: &Machine) -> Result<(&'static Shared, ThisCpu), Fatal> {
    open_console(machine.uart.as_ref().map(|uart| range(uart.range)));
    find_firmware(machine);
    banner(machine);
    let loaded = Loaded {
        image: arch::image_range(),
        dtb: dtb..dtb + machine.dtb_bytes as u64,
        bundle: machine.initrd.map(range),
    };
    let layout = Layout::new(machine, &loaded)?;
    let root = activate_map(machine, &layout)?;
    arch::grow_heap(&layout);
    for refused in &layout.refused {
        log::warn!("{refused}");
    }
    // A tag that is written where nobody knows its storage may be written anywhere.
    let probe = layout.tagged.first();
    let probe = probe.filter(|_| machine.unknown_tag_storage().is_none());
    let own = Survey::of_this_cpu(probe)?;
    let bundle = open_bundle(machine, &layout)?;
    let config = Config::parse(bundle.config())?;
    log::set_max_level(config.log);
    let (interrupts, selects_ranges) = set_up_interrupts(machine)?;
    let mut cpus = Cpus::new(own.clone());
    cpus.start_others(machine, &layout, root, probe, |mpidr| {
        CpuInterface::check_target(mpidr, selects_ranges)?;
        let redistributor = find_redistributor(machine, mpidr)?;
        Ok(interrupts.of_other_cpu(redistributor))
    });
    let Survey { features, hw, .. } = cpus.all;
    let support = tag_support(machine, &cpus.all, &layout);
    let mte = !matches!(support, TagSupport::NoMte(_));
    let policy = choose_policy(config.policy, &support)?;
    log::info!(
        "policy={} mte={mte} mte_perm={} cpus={}",
        policy_name(policy),
        features.mte_perm,
        cpus.mpidrs.len()
    );
    log::debug!("{support}");
    let board = Board {
        hw,
        mte,
        policy,
        eviction_rate: config.eviction_rate,
        frequency: timer::frequency(),
        list_registers: cpus.all.interface.list_registers,
    };
    let facts = Facts {
        machine: MachineInfo {
            memory_bytes: machine.memory_bytes(),
            cpus: machine.cpus.len(),
            mte: if mte { features.mte as u8 } else { 0 },
            mte_perm: features.mte_perm,
        },
        regions: regions(&layout),
        image_bytes: loaded.image.end - loaded.image.start,
    };
    let memory = Memory::new(HostLayout {
        memory: layout.map,
        regions: layout.regions,
        policy,
    })?;
    cpu::set_up(mte);
    let el2 = El2::new(&features, own.interface);
    el2.interface.deny_sre();
    let mut cpu = ThisCpu::new(0, el2, interrupts, &own.hw, mte);
    let parts = Parts {
        board,
        memory,
        cpus: cpus.mpidrs.clone(),
        facts,
        config,
        bundle,
    };
    let hypervisor = Hypervisor::start(parts, &mut cpu);
    let shared = Box::leak(Box::new(Shared::new(hypervisor)));
    release(cpus.mpidrs, features, mte, shared);
    Ok((shared, cpu))
}

fn find_firmware(machine: &Machine) {
    match Firmware::new(machine.psci) {
        Ok(firmware) => {
            FIRMWARE.call_once(|| firmware);
        }
        Err(error) => log::warn!("{error}"),
    }
}

/// Maps all that there is, and returns what TTBR0_EL2 is then.
fn activate_map(machine: &Machine, layout: &Layout) -> Result<u64, Fatal> {
    let mut space = AddressSpace::new();
    space.map_image().map_err(unmappable)?;
    let uart = machine.uart.iter().map(|uart| uart.range);
    let gic = [machine.gic.distributor]
        .into_iter()
        .chain(machine.gic.redistributors.iter().copied());
    for device in gic.chain(uart) {
        space.map(range(device), Kind::Device).map_err(unmappable)?;
    }
    let guards: Vec<Range<u64>> = Stacks::in_range(&layout.stacks)
        .flat_map(Stacks::guards)
        .collect();
    for data in without(&layout.data, &guards) {
        space.map(data, Kind::Data).map_err(unmappable)?;
    }
    for tagged in &layout.tagged {
        space
            .map(tagged.clone(), Kind::Tagged)
            .map_err(unmappable)?;
    }
    Ok(space.activate())
}

fn unmappable(bad: arch::linear::Unmappable) -> Fatal {
    Fatal(format!(
        "[{:#x}, {:#x}) cannot be mapped at EL2: 46 bits are the limit",
        bad.start, bad.end
    ))
}

/// Decides what can be done with tags: what all CPUs can do, if tags work on each.
fn tag_support(machine: &Machine, all: &Survey, layout: &Layout) -> TagSupport {
    match all.features.tag_support(machine) {
        no @ TagSupport::NoMte(_) => no,
        _ if !all.tags_work => {
            log::warn!(
                "tags written at EL2 do not read back: firmware keeps SCR_EL3.ATA at 0; no guest gets MTE"
            );
            TagSupport::NoMte(NoMteReason::Firmware)
        }
        // All regions were refused: their storage holds tags for ever.
        TagSupport::Lazy | TagSupport::EagerOnly if layout.regions.is_empty() => {
            TagSupport::StaticOnly(StaticReason::NoRegion)
        }
        support => support,
    }
}

fn banner(machine: &Machine) {
    log::info!(
        "tagvisor {} on {} CPUs, {} MiB of DRAM, image at {:#x}",
        env!("CARGO_PKG_VERSION"),
        machine.cpus.len(),
        machine.memory_bytes() >> 20,
        arch::image_range().start
    );
    for refusal in &machine.refusals {
        log::warn!("{refusal}");
    }
}

fn open_bundle(machine: &Machine, layout: &Layout) -> Result<Bundle<'static>, Fatal> {
    let Some(initrd) = machine.initrd.map(range) else {
        return Err(Fatal(
            "no bundle: /chosen names no initrd and no module; pass one made by `scripts/bundle`"
                .into(),
        ));
    };
    if !layout.maps(&initrd) {
        return Err(Fatal(format!(
            "the bundle at [{:#x}, {:#x}) is not in DRAM that is ours to read: load it elsewhere",
            initrd.start, initrd.end
        )));
    }
    let base = PhysAddr::new(initrd.start);
    Ok(Bundle::parse(arch::loaded_bytes(&initrd), base)?)
}

fn choose_policy(choice: PolicyChoice, support: &TagSupport) -> Result<Policy, Fatal> {
    Ok(match (choice, support) {
        (PolicyChoice::Static, _) => Policy::Static,
        (_, TagSupport::NoMte(_) | TagSupport::StaticOnly(_)) => {
            if choice != PolicyChoice::Auto {
                log::warn!("policy {choice:?} has nothing to work on: {support}");
            }
            Policy::Static
        }
        (PolicyChoice::Eager, _) | (PolicyChoice::Auto, TagSupport::EagerOnly) => Policy::Eager,
        (PolicyChoice::Lazy, TagSupport::EagerOnly) => {
            return Err(Fatal(
                "policy lazy needs FEAT_MTE_PERM, which this CPU lacks: use policy eager or auto"
                    .into(),
            ));
        }
        (PolicyChoice::Lazy | PolicyChoice::Auto, TagSupport::Lazy) => Policy::Lazy,
    })
}

fn regions(layout: &Layout) -> Vec<RegionInfo> {
    let bytes = |frames: stage2::addr::FrameRange| (frames.start.addr().get(), frames.bytes());
    layout
        .regions
        .iter()
        .map(|region| {
            let (base, length) = bytes(region.tags());
            let (tagged_base, tagged_bytes) = bytes(region.tagged());
            RegionInfo {
                base,
                bytes: length,
                tagged_base,
                tagged_bytes,
                block_bytes: region.block_bytes(),
                blocks: region.blocks().into(),
            }
        })
        .collect()
}

fn registers(range: &platform::MemRange) -> Option<Mmio> {
    arch::device(&(range.base()..range.end()))
}

fn find_redistributor(machine: &Machine, mpidr: u64) -> Result<Redistributor, GicError> {
    let regions = machine.gic.redistributors.iter().filter_map(registers);
    Redistributor::find(regions, machine.gic.stride, mpidr)
}

/// Sets up the distributor and this CPU's part of the GIC. Says too whether the distributor takes SGIs to any Aff0.
fn set_up_interrupts(machine: &Machine) -> Result<(Interrupts, bool), Fatal> {
    let mpidr = cpu::mpidr();
    let range = &machine.gic.distributor;
    let distributor = registers(range).ok_or(Fatal(format!(
        "the GIC's registers at {range} are misplaced"
    )))?;
    let mut distributor = Distributor::new(distributor)?;
    distributor.init();
    let needed = |interrupt: Option<platform::Interrupt>, what: &str| {
        interrupt.ok_or_else(|| {
            Fatal(format!(
                "the device tree names no interrupt for {what}: pass one that does"
            ))
        })
    };
    let uart = machine.uart.as_ref().and_then(|uart| uart.interrupt);
    let mut interrupts = Interrupts {
        redistributor: find_redistributor(machine, mpidr)?,
        virtual_timer: machine.timer.virt,
        hypervisor_timer: needed(
            machine.timer.hyp,
            "the EL2 physical timer (armv8-timer, 4th)",
        )?,
        maintenance: needed(machine.gic.maintenance, "GIC maintenance")?,
        uart: uart.map(|interrupt| interrupt.intid),
    };
    interrupts.enable()?;
    if let Some(interrupt) = uart {
        distributor.enable(interrupt, mpidr)?;
    }
    Ok((interrupts, distributor.selects_ranges()))
}

/// The CPU that panics, by MPIDR_EL1, which is never 0: bit 31 is RES1.
static PANICKED: AtomicU64 = AtomicU64::new(0);
/// It has nothing more to say.
static SILENT: AtomicBool = AtomicBool::new(false);

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let this = cpu::mpidr();
    match PANICKED.compare_exchange(0, this, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => {
            arch::steal_console();
            line(format_args!("[tagvisor] PANIC {info}"));
            power_off()
        }
        // Even the message failed.
        Err(first) if first == this && !SILENT.swap(true, Ordering::Relaxed) => power_off(),
        // The machine is about to be powered off.
        Err(_) => cpu::park(),
    }
}
