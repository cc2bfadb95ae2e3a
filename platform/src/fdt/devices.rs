//! CPUs, PSCI, interrupt controller, timer, console and what the boot loader passed.

use alloc::string::String;
use alloc::vec::Vec;

use super::error::{DiscoverError, RegError};
use super::memory::limit;
use super::tidy::be32;
use super::tree::{NodeId, Tree};
use crate::machine::{Conduit, Cpu, Gic, Interrupt, MemRange, Psci, PsciVersion, Trigger, Uart};
use crate::timer::Timer;

const MAX_CPUS: usize = 512;
const MAX_BOOTARGS: usize = 4096;
/// The affinity fields of MPIDR_EL1.
const MPIDR_AFFINITY: u64 = 0xff_00ff_ffff;

fn bad_reg(tree: &Tree<'_, '_>, id: NodeId, error: RegError) -> DiscoverError {
    let path = tree.path(id);
    DiscoverError::Reg { path, error }
}

/// Reads the CPUs. One whose `status` says that it failed is left out; `disabled` means that it has not
/// been started yet.
pub(super) fn cpus(tree: &Tree<'_, '_>) -> Result<Vec<Cpu>, DiscoverError> {
    let parent = tree.child(Tree::ROOT, "cpus").ok_or(DiscoverError::NoCpu)?;
    let mut cpus: Vec<Cpu> = Vec::new();
    for id in tree.children(parent) {
        let is_cpu = tree.string(id, "device_type") == Some("cpu") || tree.base_name(id) == "cpu";
        let failed = tree
            .string(id, "status")
            .is_some_and(|status| status.starts_with("fail"));
        if !is_cpu || failed {
            continue;
        }
        let reg = tree.reg_address(id);
        let mpidr = reg.map_err(|error| bad_reg(tree, id, error))? & MPIDR_AFFINITY;
        if cpus.iter().any(|cpu| cpu.mpidr == mpidr) {
            return Err(DiscoverError::DuplicateCpu { mpidr });
        }
        let psci = tree.string(id, "enable-method") == Some("psci");
        cpus.push(Cpu { mpidr, psci });
        if cpus.len() > MAX_CPUS {
            let limit = MAX_CPUS;
            return Err(DiscoverError::TooMany {
                what: "CPUs",
                limit,
            });
        }
    }
    if cpus.is_empty() {
        return Err(DiscoverError::NoCpu);
    }
    Ok(cpus)
}

/// Reads the PSCI node. PSCI 0.1, whose function numbers are the board's own, counts as none.
pub(super) fn psci(tree: &Tree<'_, '_>) -> Result<Option<Psci>, DiscoverError> {
    let versions = [
        ("arm,psci-1.0", PsciVersion::V1_0),
        ("arm,psci-0.2", PsciVersion::V0_2),
    ];
    for (model, version) in versions {
        let mut nodes = tree.ids().filter(|&id| tree.compatible(id, model));
        let Some(id) = nodes.find(|&id| tree.enabled(id)) else {
            continue;
        };
        let conduit = match tree.string(id, "method") {
            Some("smc") => Conduit::Smc,
            Some("hvc") => Conduit::Hvc,
            _ => return Err(DiscoverError::PsciMethod),
        };
        return Ok(Some(Psci { conduit, version }));
    }
    Ok(None)
}

/// Finds the GICv3's node.
fn gic_node(tree: &Tree<'_, '_>) -> Result<NodeId, DiscoverError> {
    let find = |models: &[&str]| {
        tree.ids()
            .find(|&id| models.iter().any(|model| tree.compatible(id, model)) && tree.enabled(id))
    };
    find(&["arm,gic-v3"]).ok_or_else(|| {
        match find(&["arm,cortex-a15-gic", "arm,gic-400", "arm,cortex-a7-gic"]) {
            Some(old) => DiscoverError::OldGic {
                path: tree.path(old),
            },
            None => DiscoverError::NoGic,
        }
    })
}

/// Reads the interrupt controller; also returns its node, which interrupts of others refer to.
pub(super) fn gic(tree: &Tree<'_, '_>) -> Result<(Gic, NodeId), DiscoverError> {
    let id = gic_node(tree)?;
    let bad = |name| DiscoverError::Property {
        path: tree.path(id),
        name,
    };
    let regs = tree
        .translated_reg(id)
        .map_err(|error| bad_reg(tree, id, error))?;
    let regions = match tree.property(id, "#redistributor-regions") {
        None => Some(1),
        Some(_) => tree.u32(id, "#redistributor-regions"),
    };
    let regions = regions.ok_or_else(|| bad("#redistributor-regions"))? as usize;
    limit(regions, "redistributor regions")?;
    let stride = match tree.property(id, "redistributor-stride") {
        None => None,
        Some(_) => match tree.u64(id, "redistributor-stride") {
            Some(stride) if stride > 0 && stride.is_multiple_of(0x1_0000) => Some(stride),
            _ => return Err(bad("redistributor-stride")),
        },
    };
    let gic = regs.split_first().and_then(|(&distributor, rest)| {
        Some(Gic {
            distributor,
            redistributors: rest.get(..regions).filter(|r| !r.is_empty())?.to_vec(),
            stride,
            maintenance: interrupt(tree, id, 0, id),
        })
    });
    Ok((gic.ok_or_else(|| bad("reg"))?, id))
}

/// Decodes an interrupt specifier of the GIC (`arm,gic-v3` binding): type, number, flags.
fn specifier(cells: &[u8]) -> Option<Interrupt> {
    let (kind, number, flags) = (be32(cells, 0)?, be32(cells, 4)?, be32(cells, 8)?);
    let (first, count) = match kind {
        0 => (32, 988),    // SPI
        1 => (16, 16),     // PPI
        2 => (4096, 1024), // extended SPI
        3 => (1056, 64),   // extended PPI
        _ => return None,
    };
    let trigger = match flags & 0xf {
        1 | 2 => Trigger::Edge,
        4 | 8 => Trigger::Level,
        _ => return None,
    };
    (number < count).then(|| Interrupt {
        intid: first + number,
        trigger,
    })
}

/// Reads interrupt `index` of a node, if its interrupt parent is `gic`.
fn interrupt(tree: &Tree<'_, '_>, id: NodeId, index: usize, gic: NodeId) -> Option<Interrupt> {
    let cells = tree.u32(gic, "#interrupt-cells")? as usize;
    if !(3..=4).contains(&cells) {
        return None;
    }
    if let Some(value) = tree.property(id, "interrupts-extended") {
        let entry = value.chunks_exact(4 * (cells + 1)).nth(index)?;
        let (parent, entry) = entry.split_at(4);
        return specifier(entry).filter(|_| is_phandle(tree, be32(parent, 0), gic));
    }
    let value = tree.property(id, "interrupts")?;
    let entry = value.chunks_exact(4 * cells).nth(index)?;
    // The GIC's own interrupt is its own; without any interrupt-parent the GIC is the only candidate.
    let ours = id == gic
        || match interrupt_parent(tree, id) {
            Some(phandle) => is_phandle(tree, Some(phandle), gic),
            None => true,
        };
    specifier(entry).filter(|_| ours)
}

fn is_phandle(tree: &Tree<'_, '_>, phandle: Option<u32>, id: NodeId) -> bool {
    phandle.is_some() && tree.u32(id, "phandle") == phandle
}

fn interrupt_parent(tree: &Tree<'_, '_>, id: NodeId) -> Option<u32> {
    let mut node = id;
    loop {
        if let Some(phandle) = tree.u32(node, "interrupt-parent") {
            return Some(phandle);
        }
        if node == Tree::ROOT {
            return None;
        }
        node = tree.parent(node);
    }
}

/// Reads the generic timer.
pub(super) fn timer(tree: &Tree<'_, '_>, gic: NodeId) -> Result<Timer, DiscoverError> {
    let id = tree
        .ids()
        .find(|&id| tree.compatible(id, "arm,armv8-timer") && tree.enabled(id))
        .ok_or(DiscoverError::NoTimer)?;
    // Without names the order is fixed by the binding.
    let named = |name: &str, index: usize| {
        let index = match tree.property(id, "interrupt-names") {
            None => index,
            Some(names) => names
                .split(|&byte| byte == 0)
                .position(|entry| entry == name.as_bytes())?,
        };
        interrupt(tree, id, index, gic).filter(|i| (16..32).contains(&i.intid))
    };
    Ok(Timer {
        phys_secure: named("sec-phys", 0),
        phys: named("phys", 1),
        virt: named("virt", 2).ok_or(DiscoverError::NoTimer)?,
        hyp: named("hyp-phys", 3),
        hyp_virt: named("hyp-virt", 4),
        frequency: tree.u32(id, "clock-frequency"),
    })
}

/// Finds the console: what `stdout-path` names if it is a PL011, else the first PL011.
pub(super) fn uart(tree: &Tree<'_, '_>, chosen: Option<NodeId>, gic: NodeId) -> Option<Uart> {
    let usable = |id: NodeId| {
        let pl011 = tree.compatible(id, "arm,pl011") || tree.compatible(id, "arm,sbsa-uart");
        if !pl011 || !tree.enabled(id) {
            return None;
        }
        Some(Uart {
            range: *tree.translated_reg(id).ok()?.first()?,
            interrupt: interrupt(tree, id, 0, gic),
            path: tree.path(id),
        })
    };
    stdout(tree, chosen)
        .and_then(usable)
        .or_else(|| tree.ids().find_map(usable))
}

fn stdout(tree: &Tree<'_, '_>, chosen: Option<NodeId>) -> Option<NodeId> {
    let path = tree
        .string(chosen?, "stdout-path")
        .or_else(|| tree.string(chosen?, "linux,stdout-path"))?;
    let path = path.split(':').next()?;
    if path.starts_with('/') {
        return tree.find(path);
    }
    let aliases = tree.child(Tree::ROOT, "aliases")?;
    tree.find(tree.string(aliases, path)?)
}

/// Reads the range of the initrd; without one, that of a module that a multiboot loader has described.
pub(super) fn initrd(
    tree: &Tree<'_, '_>,
    chosen: Option<NodeId>,
) -> Result<Option<MemRange>, DiscoverError> {
    let Some(chosen) = chosen else {
        return Ok(None);
    };
    let names = ["linux,initrd-start", "linux,initrd-end"];
    if names
        .iter()
        .all(|name| tree.property(chosen, name).is_none())
    {
        return module(tree, chosen);
    }
    let [start, end] = names.map(|name| tree.u64(chosen, name));
    match (start, end) {
        (Some(from), Some(to)) if from == to => Ok(None),
        (Some(from), Some(to)) if from < to => Ok(MemRange::new(from, to - from)),
        _ => Err(DiscoverError::Initrd { start, end }),
    }
}

/// Reads the range of the first ramdisk; else of the first module, else of the first kernel.
fn module(tree: &Tree<'_, '_>, chosen: NodeId) -> Result<Option<MemRange>, DiscoverError> {
    let first = |model| {
        let mut children = tree.children(chosen);
        children.find(|&id| tree.compatible(id, model))
    };
    let models = ["multiboot,ramdisk", "multiboot,module", "multiboot,kernel"];
    let Some(id) = models.into_iter().find_map(first) else {
        return Ok(None);
    };
    let ranges = tree.reg(id).map_err(|error| bad_reg(tree, id, error))?;
    Ok(ranges.first().copied())
}

/// Reads the command line.
pub(super) fn bootargs(
    tree: &Tree<'_, '_>,
    chosen: Option<NodeId>,
) -> Result<Option<String>, DiscoverError> {
    let Some(value) = chosen.and_then(|chosen| tree.property(chosen, "bootargs")) else {
        return Ok(None);
    };
    let text = value.strip_suffix(&[0]).unwrap_or(value);
    match core::str::from_utf8(text) {
        Ok(text) if text.len() <= MAX_BOOTARGS => Ok(Some(String::from(text))),
        _ => Err(DiscoverError::BootArgs),
    }
}
