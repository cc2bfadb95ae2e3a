//! The boot order, on the boot CPU: device tree, EL2's map, console, CPU checks, bundle, memory, GIC, VMs.
//!
//! Each step either leaves the machine ready for the next or ends in one line that says what is wrong and what to do.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ops::Range;

use platform::features::{CpuFeatures, TagSupport};
use platform::gic::{CpuInterface, Distributor, Redistributor};
use platform::pl011::Pl011;
use platform::smccc::Firmware;
use platform::{Machine, fdt};
use stage2::guest::Policy;
use stage2::host::HostMemory;
use stage2::host::Layout as HostLayout;

use crate::arch::cpu::{self, El2};
use crate::arch::linear::{AddressSpace, Kind};
use crate::arch::{self, FALLBACK_UART};
use crate::bundle::Bundle;
use crate::config::{Config, PolicyChoice};
use crate::layout::{Layout, Loaded};
use crate::output::{CONSOLE, init_logger, line};
use crate::report::{MachineInfo, RegionInfo};
use crate::run::{Facts, Hypervisor, Interrupts};
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
        Ok(hypervisor) => hypervisor.run(),
        Err(Fatal(text)) => fatal(&text),
    }
}

fn fatal(text: &str) -> ! {
    line(format_args!("[tagvisor] FATAL {text}"));
    power_off()
}

/// Powers the machine off; where firmware cannot, parks this CPU.
pub fn power_off() -> ! {
    if let Some(firmware) = FIRMWARE.get() {
        let _ = firmware.system_off();
    }
    cpu::park()
}

static FIRMWARE: spin::Once<Firmware> = spin::Once::new();

fn read_dtb(dtb: u64) -> Result<Machine, Fatal> {
    fdt::check_address(dtb)?;
    let header = dtb..dtb + fdt::HEADER_BYTES as u64;
    // The entry code found the magic there, and mapped the two 2 MiB blocks from there on.
    let header = arch::loaded_bytes(&header);
    let bytes = fdt::dtb_size(header)?;
    let whole = dtb..dtb + bytes as u64;
    Ok(fdt::discover(arch::loaded_bytes(&whole))?)
}

/// Without a device tree no UART is known: tries the one of QEMU's virt machine.
fn open_fallback_console() {
    let uart = FALLBACK_UART..FALLBACK_UART + 0x1000;
    let mut space = AddressSpace::new();
    if space.map_image().is_ok() && space.map(uart.clone(), Kind::Device).is_ok() {
        space.activate();
        open_console(&uart);
    }
}

fn open_console(registers: &Range<u64>) {
    if let Some(registers) = arch::device(registers) {
        let mut uart = Pl011::new(registers);
        uart.init();
        CONSOLE.lock().attach(uart);
    }
    init_logger();
}

fn range(of: platform::MemRange) -> Range<u64> {
    of.base()..of.end()
}

fn prepare(dtb: u64, machine: &Machine) -> Result<Hypervisor, Fatal> {
    let loaded = Loaded {
        image: arch::image_range(),
        dtb: dtb..dtb + machine.dtb_bytes as u64,
        bundle: machine.initrd.map(range),
    };
    let layout = Layout::new(machine, &loaded);
    activate_map(machine, layout.as_ref().ok())?;
    match Firmware::new(machine.psci) {
        Ok(firmware) => {
            FIRMWARE.call_once(|| firmware);
        }
        Err(error) => log::warn!("{error}"),
    }
    let layout = layout?;
    banner(machine);
    let hw = cpu::id_regs();
    let features = CpuFeatures::new(&cpu::id_registers());
    features.check_required()?;
    let support = features.tag_support(machine);
    let bundle = open_bundle(machine, &layout)?;
    let config = Config::parse(bundle.config())?;
    log::set_max_level(config.log);
    arch::grow_heap(&layout);
    for refused in &layout.refused {
        log::warn!("{refused}");
    }
    let mte = !matches!(support, TagSupport::NoMte(_));
    cpu::set_up(mte);
    let cpu = El2::new(&features);
    if mte && !cpu.tags_work(layout.tagged.first()) {
        return Err(Fatal("tags written at EL2 do not read back: firmware keeps SCR_EL3.ATA at 0; pass a DTB without tag regions".into()));
    }
    let policy = choose_policy(config.policy, &support)?;
    log::info!("policy={} cpu={support}", policy_name(policy));
    let board = Board {
        pmu_counters: cpu::pmu_counters(&hw),
        hw,
        mte,
        policy,
        list_registers: cpu.interface.list_registers,
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
    let host = HostMemory::new(HostLayout {
        memory: layout.map,
        regions: layout.regions,
        policy,
    })?;
    let interrupts = set_up_interrupts(machine)?;
    Ok(Hypervisor::new(
        cpu, board, host, interrupts, facts, config, bundle,
    ))
}

/// Maps what there is and opens the console. Without a layout only the image and the console, for the message.
fn activate_map(machine: &Machine, layout: Option<&Layout>) -> Result<(), Fatal> {
    let mut space = AddressSpace::new();
    let unmappable = |bad: arch::linear::Unmappable| {
        Fatal(format!(
            "[{:#x}, {:#x}) cannot be mapped at EL2: 46 bits are the limit",
            bad.start, bad.end
        ))
    };
    space.map_image().map_err(unmappable)?;
    let uart = machine.uart.as_ref().map(|uart| range(uart.range));
    let gic = [machine.gic.distributor]
        .into_iter()
        .chain(machine.gic.redistributors.iter().copied())
        .map(range);
    let devices = gic.chain(uart.clone()).map(|range| (range, Kind::Device));
    let data = layout
        .iter()
        .flat_map(|layout| layout.data.iter().cloned())
        .map(|range| (range, Kind::Data));
    let mut refused = None;
    for (range, kind) in devices.chain(data) {
        refused = space.map(range, kind).err().or(refused);
    }
    for range in layout
        .iter()
        .flat_map(|layout| layout.tagged.iter().cloned())
    {
        refused = space.map(range, Kind::Tagged).err().or(refused);
    }
    space.activate();
    match &uart {
        Some(uart) => open_console(uart),
        None => init_logger(),
    }
    refused.map_or(Ok(()), |bad| Err(unmappable(bad)))
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
            "no bundle: /chosen names no initrd; pass one made by `tagvisor-tool bundle` as the initrd".into(),
        ));
    };
    let mapped = layout
        .data
        .iter()
        .any(|data| data.start <= initrd.start && initrd.end <= data.end);
    if !mapped {
        return Err(Fatal(format!(
            "the bundle at [{:#x}, {:#x}) is not in DRAM that is ours to read: load it elsewhere",
            initrd.start, initrd.end
        )));
    }
    Ok(Bundle::parse(arch::loaded_bytes(&initrd))?)
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

fn set_up_interrupts(machine: &Machine) -> Result<Interrupts, Fatal> {
    let registers = |range: &platform::MemRange| {
        arch::device(&(range.base()..range.end())).ok_or(Fatal(format!(
            "the GIC's registers at {range} are misplaced"
        )))
    };
    let mpidr = cpu::mpidr();
    let mut distributor = Distributor::new(registers(&machine.gic.distributor)?)?;
    distributor.init();
    let frames: Vec<_> = machine
        .gic
        .redistributors
        .iter()
        .map(registers)
        .collect::<Result<_, _>>()?;
    let mut redistributor = Redistributor::find(frames, machine.gic.stride, mpidr)?;
    redistributor.init();
    CpuInterface::init();
    let ppis = [
        Some(machine.timer.virt),
        machine.timer.hyp,
        machine.gic.maintenance,
    ];
    for interrupt in ppis.into_iter().flatten() {
        redistributor.enable(interrupt)?;
    }
    let uart = machine.uart.as_ref().and_then(|uart| uart.interrupt);
    if let Some(interrupt) = uart {
        distributor.enable(interrupt, mpidr)?;
    }
    let interrupts = Interrupts {
        redistributor,
        virtual_timer: machine.timer.virt.intid,
        hypervisor_timer: machine.timer.hyp.map(|interrupt| interrupt.intid),
        maintenance: machine.gic.maintenance.map(|interrupt| interrupt.intid),
        uart: uart.map(|interrupt| interrupt.intid),
    };
    Ok(interrupts)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    use core::sync::atomic::{AtomicBool, Ordering};
    static PANICKING: AtomicBool = AtomicBool::new(false);
    if PANICKING.swap(true, Ordering::Relaxed) {
        cpu::park();
    }
    arch::steal_console();
    line(format_args!("[tagvisor] PANIC {info}"));
    power_off()
}
