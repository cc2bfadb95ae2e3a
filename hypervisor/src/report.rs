//! The report: what the carve-out was used for, per machine and per VM, as JSON for programs and a table for people.
//!
//! Terms: `carve_out` is all valid tag regions; `reserved` holds tags; `lent` holds data; `free` neither; `offline` is tags for
//! ever. `reclaimed = carve_out - reserved - offline`; `net` takes off what the reclaiming itself costs; `ideal` is what a
//! perfect placement of the live tagged pages would leave. All sizes are bytes. [`VERSION`] counts changes of the format.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::{self, Write};

use crate::json::{Json, json_struct};

/// Version of the JSON format: keys are only added within one version.
pub const VERSION: u32 = 1;

/// The whole report.
#[derive(Clone, Debug)]
pub struct Report {
    /// [`VERSION`].
    pub version: u32,
    /// The machine's policy: `static`, `eager` or `lazy`.
    pub policy: &'static str,
    /// The machine.
    pub machine: MachineInfo,
    /// The valid tag regions.
    pub regions: Vec<RegionInfo>,
    /// The carve-out at the last moment of the highest `reserved_bytes` (static: when the last VM had started).
    pub at_peak: CarveOut,
    /// What tagvisor itself takes.
    pub hypervisor: Footprint,
    /// The VMs, each at its end, or now if it runs.
    pub vms: Vec<VmInfo>,
    /// What was checked.
    pub invariants: Invariants,
    /// The carve-out now.
    pub now: CarveOut,
}

/// The machine as discovered.
#[derive(Clone, Debug)]
pub struct MachineInfo {
    /// All DRAM, carve-out included.
    pub memory_bytes: u64,
    /// CPUs in the device tree.
    pub cpus: usize,
    /// ID_AA64PFR1_EL1.MTE, if guests can be given MTE; else 0.
    pub mte: u8,
    /// FEAT_MTE_PERM: lazy is possible.
    pub mte_perm: bool,
}

/// A tag region.
#[derive(Clone, Debug)]
pub struct RegionInfo {
    /// First address of its tag storage.
    pub base: u64,
    /// Its size.
    pub bytes: u64,
    /// First address whose tags it holds.
    pub tagged_base: u64,
    /// Bytes whose tags it holds.
    pub tagged_bytes: u64,
    /// Size of a tag block.
    pub block_bytes: u64,
    /// Number of tag blocks.
    pub blocks: u64,
}

/// The carve-out at one moment.
#[derive(Clone, Debug, Default)]
pub struct CarveOut {
    /// All valid regions.
    pub carve_out_bytes: u64,
    /// Holding tags.
    pub reserved_bytes: u64,
    /// Holding data.
    pub lent_bytes: u64,
    /// Holding nothing.
    pub free_bytes: u64,
    /// Never usable as data.
    pub offline_bytes: u64,
    /// DRAM that has no tags and is in no region.
    pub untaggable_bytes: u64,
    /// The most that was ever lent.
    pub peak_lent_bytes: u64,
    /// Not needed for tags.
    pub reclaimed_bytes: u64,
    /// Less tables beyond what 2 MiB leaves would take, and frame metadata.
    pub net_reclaimed_bytes: i64,
    /// What a perfect placement would reclaim; none where tag access is not tag use (eager, static).
    pub ideal_bytes: Option<u64>,
    /// `reclaimed_bytes / ideal_bytes`.
    pub efficiency: Option<Ratio>,
}

/// Memory that tagvisor itself takes.
#[derive(Clone, Debug, Default)]
pub struct Footprint {
    /// Image in memory, stacks included.
    pub image_bytes: u64,
    /// Tables about frames, chunks and blocks.
    pub metadata_bytes: u64,
    /// Stage-2 tables of all VMs.
    pub table_bytes: u64,
    /// Heap in use, metadata included.
    pub heap_bytes: u64,
}

/// How a VM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It powered itself off.
    Off,
    /// It asked for a reset, and resets end a VM here.
    Reset,
    /// It did what no machine survives, or EL2 could not serve it.
    Crashed,
    /// The user stopped it.
    Stopped,
    /// It needed more tag storage than its budget.
    OverBudget,
    /// It could not be started.
    Refused,
    /// It ran when the run's time was up.
    Timeout,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Off => "off",
            Self::Reset => "reset",
            Self::Crashed => "crashed",
            Self::Stopped => "stopped",
            Self::OverBudget => "over_budget",
            Self::Refused => "refused",
            Self::Timeout => "timeout",
        })
    }
}

/// Pages of a VM by kind, 4 KiB each.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pages {
    /// Never accessed.
    pub untouched: u64,
    /// Resident without tag access.
    pub no_tag_access: u64,
    /// Resident with tag access.
    pub tagged: u64,
}

/// Exits of a VM to EL2, by cause.
#[derive(Clone, Copy, Debug, Default)]
pub struct Exits {
    /// All of them.
    pub total: u64,
    /// Physical interrupts.
    pub irq: u64,
    /// Stage-2 faults on RAM: first accesses.
    pub page: u64,
    /// Tag access faults.
    pub tag: u64,
    /// Emulated device accesses.
    pub mmio: u64,
    /// Trapped system registers.
    pub sysreg: u64,
    /// HVC and SMC.
    pub call: u64,
    /// WFI and WFE.
    pub wait: u64,
    /// Mistakes answered to the guest.
    pub injected: u64,
}

/// The highest figures of a VM.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peak {
    /// Most pages with tag access at once.
    pub tagged_pages: u64,
    /// Most tag storage at once.
    pub reserved_bytes: u64,
}

/// A VM.
#[derive(Clone, Debug, Default)]
pub struct VmInfo {
    /// Its name.
    pub name: String,
    /// Whether it sees MTE.
    pub mte: bool,
    /// When its pages get tag storage.
    pub policy: &'static str,
    /// Its vCPUs.
    pub vcpus: usize,
    /// Its RAM.
    pub memory_bytes: u64,
    /// RAM that has frames.
    pub resident_bytes: u64,
    /// Pages by kind.
    pub pages: Pages,
    /// Its share of the reserved blocks.
    pub reserved_bytes: u64,
    /// What a static carve-out takes for its RAM.
    pub static_cost_bytes: u64,
    /// The difference; negative where the blocks reserved are hardly used.
    pub reclaimed_bytes: i64,
    /// Tag access faults that gave a page its tag storage.
    pub tag_faults: u64,
    /// Pages moved in for its sake.
    pub moves: u64,
    /// Evictions that it caused.
    pub evictions_caused: u64,
    /// Evictions of its pages.
    pub evictions_suffered: u64,
    /// Exits by cause.
    pub exits: Exits,
    /// Highest figures.
    pub peak: Peak,
    /// How it ended; none while it runs.
    pub end: Option<End>,
}

/// Checks of the invariants.
#[derive(Clone, Copy, Debug, Default)]
pub struct Invariants {
    /// Facts compared.
    pub checked: u64,
    /// Of them wrong.
    pub broken: u64,
}

/// A ratio in millionths. JSON gets a decimal number; EL2 has no use for floating point otherwise, nor for its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio(pub u64);

impl Ratio {
    /// Divides, rounding down; none if there is nothing to divide by.
    #[must_use]
    pub fn new(part: u64, whole: u64) -> Option<Self> {
        let millionths = (u128::from(part) * 1_000_000).checked_div(u128::from(whole))?;
        u64::try_from(millionths).ok().map(Self)
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

impl Json for Ratio {
    fn write(&self, out: &mut String) {
        out.push_str(&self.to_string());
    }
}

json_struct!(Report { version, policy, machine, regions, ..at_peak, hypervisor, vms, invariants, now as "final", });
json_struct!(MachineInfo {
    memory_bytes,
    cpus,
    mte,
    mte_perm,
});
json_struct!(RegionInfo {
    base,
    bytes,
    tagged_base,
    tagged_bytes,
    block_bytes,
    blocks,
});
json_struct!(CarveOut {
    carve_out_bytes,
    reserved_bytes,
    lent_bytes,
    free_bytes,
    offline_bytes,
    untaggable_bytes,
    peak_lent_bytes,
    reclaimed_bytes,
    net_reclaimed_bytes,
    ideal_bytes,
    efficiency,
});
json_struct!(Footprint {
    image_bytes,
    metadata_bytes,
    table_bytes,
    heap_bytes,
});
json_struct!(Pages {
    untouched,
    no_tag_access,
    tagged,
});
json_struct!(Exits {
    total,
    irq,
    page,
    tag,
    mmio,
    sysreg,
    call,
    wait,
    injected,
});
json_struct!(Peak {
    tagged_pages,
    reserved_bytes,
});
json_struct!(VmInfo {
    name,
    mte,
    policy,
    vcpus,
    memory_bytes,
    resident_bytes,
    pages,
    reserved_bytes,
    static_cost_bytes,
    reclaimed_bytes,
    tag_faults,
    moves,
    evictions_caused,
    evictions_suffered,
    exits,
    peak,
    end,
});
json_struct!(Invariants { checked, broken });

impl Json for End {
    fn write(&self, out: &mut String) {
        self.to_string().write(out);
    }
}

/// A size in the unit that suits it.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        match self.0 {
            bytes if bytes >= 1 << 30 && bytes.is_multiple_of(1 << 28) => {
                let quarters = bytes >> 28;
                write!(text, "{}", quarters / 4)?;
                if quarters % 4 != 0 {
                    write!(text, ".{:02}", quarters % 4 * 25)?;
                }
                text.push_str(" GiB");
            }
            bytes if bytes >= 10 << 20 => {
                let tenths = (bytes * 10 + (1 << 19)) >> 20;
                write!(text, "{}.{} MiB", tenths / 10, tenths % 10)?;
            }
            bytes => write!(text, "{} KiB", bytes.div_ceil(1 << 10))?,
        }
        f.pad(&text)
    }
}

/// A cost avoided: what static takes, and what was taken at the most; negative if that was more.
struct Gain(u64, u64);

impl fmt::Display for Gain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < self.1 { "-" } else { "" };
        let size = Size(self.0.abs_diff(self.1));
        f.pad(&alloc::format!("{sign}{size}"))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = &self.at_peak;
        writeln!(f, "tag storage under policy {}", self.policy)?;
        if self.regions.is_empty() {
            writeln!(f, "  no tag region: nothing to reclaim on this machine")?;
        } else {
            let size = |bytes| Size(bytes);
            writeln!(
                f,
                "  {:<22}{:>12}  of {} DRAM",
                "carve-out",
                size(at.carve_out_bytes),
                Size(self.machine.memory_bytes)
            )?;
            writeln!(
                f,
                "  {:<22}{:>12}  {}",
                "reserved for tags",
                size(at.reserved_bytes),
                Percent(at.reserved_bytes, at.carve_out_bytes)
            )?;
            writeln!(
                f,
                "  {:<22}{:>12}  {}",
                "lent, holding data",
                size(at.lent_bytes),
                Percent(at.lent_bytes, at.carve_out_bytes)
            )?;
            writeln!(
                f,
                "  {:<22}{:>12}  {}",
                "free",
                size(at.free_bytes),
                Percent(at.free_bytes, at.carve_out_bytes)
            )?;
            writeln!(f, "  {:<22}{:>12}", "offline", size(at.offline_bytes))?;
            write!(
                f,
                "  {:<22}{:>12}  {}",
                "reclaimed",
                size(at.reclaimed_bytes),
                Percent(at.reclaimed_bytes, at.carve_out_bytes)
            )?;
            match at.ideal_bytes {
                Some(ideal) => writeln!(
                    f,
                    "; {} of the ideal {}",
                    Percent(at.reclaimed_bytes, ideal),
                    Size(ideal)
                )?,
                None => writeln!(f)?,
            }
            writeln!(
                f,
                "  (at the moment of the most reserved; now reserved: {})",
                Size(self.now.reserved_bytes)
            )?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "  {:<12}{:>4}{:>9}{:>12}{:>12}{:>10}{:>12}{:>12}{:>15}  end",
            "VM",
            "mte",
            "policy",
            "memory",
            "resident",
            "tagged",
            "static cost",
            "peak tags",
            "min reclaimed"
        )?;
        for vm in &self.vms {
            vm.write_row(f)?;
        }
        write!(
            f,
            "  invariants: {} checked, {} broken",
            self.invariants.checked, self.invariants.broken
        )
    }
}

impl VmInfo {
    fn write_row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "  {:<12}{:>4}{:>9}{:>12}{:>12}{:>10}{:>12}{:>12}{:>15}  ",
            self.name,
            if self.mte { "yes" } else { "no" },
            self.policy,
            Size(self.memory_bytes),
            Size(self.resident_bytes),
            self.peak.tagged_pages,
            Size(self.static_cost_bytes),
            Size(self.peak.reserved_bytes),
            Gain(self.static_cost_bytes, self.peak.reserved_bytes),
        )?;
        match self.end {
            Some(end) => writeln!(f, "{end}"),
            None => writeln!(f, "running"),
        }
    }
}

/// `part` of `whole` in percent with two decimals.
struct Percent(u64, u64);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hundredths = (u128::from(self.0) * 10_000)
            .checked_div(u128::from(self.1))
            .unwrap_or(0);
        write!(f, "{}.{:02} %", hundredths / 100, hundredths % 100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let at_peak = CarveOut {
            carve_out_bytes: 62 << 20,
            reserved_bytes: 1 << 20,
            free_bytes: 61 << 20,
            reclaimed_bytes: 61 << 20,
            net_reclaimed_bytes: -4096,
            ideal_bytes: Some(61 << 20),
            efficiency: Ratio::new(61, 61),
            ..CarveOut::default()
        };
        Report {
            version: VERSION,
            policy: "lazy",
            machine: MachineInfo {
                memory_bytes: 2 << 30,
                cpus: 2,
                mte: 3,
                mte_perm: true,
            },
            regions: Vec::from([RegionInfo {
                base: 0xbc00_0000,
                bytes: 62 << 20,
                tagged_base: 0x4000_0000,
                tagged_bytes: 0x7c00_0000,
                block_bytes: 4096,
                blocks: 15872,
            }]),
            now: CarveOut {
                efficiency: None,
                ideal_bytes: None,
                ..at_peak.clone()
            },
            at_peak,
            hypervisor: Footprint::default(),
            vms: Vec::from([VmInfo {
                name: "a".into(),
                end: Some(End::OverBudget),
                ..VmInfo::default()
            }]),
            invariants: Invariants {
                checked: 5,
                broken: 0,
            },
        }
    }

    #[test]
    fn the_json_has_the_documented_keys() {
        let json: serde_json::Value = serde_json::from_str(&report().to_json()).unwrap();
        let machine_keys = [
            "carve_out_bytes",
            "reserved_bytes",
            "lent_bytes",
            "free_bytes",
            "offline_bytes",
            "untaggable_bytes",
            "peak_lent_bytes",
            "reclaimed_bytes",
            "net_reclaimed_bytes",
            "ideal_bytes",
            "efficiency",
        ];
        for key in machine_keys {
            assert!(json.get(key).is_some(), "{key}");
            assert!(json["final"].get(key).is_some(), "final.{key}");
        }
        for key in [
            "version",
            "policy",
            "machine",
            "regions",
            "hypervisor",
            "vms",
            "invariants",
            "final",
        ] {
            assert!(json.get(key).is_some(), "{key}");
        }
        for key in [
            "name",
            "mte",
            "policy",
            "vcpus",
            "memory_bytes",
            "resident_bytes",
            "pages",
            "reserved_bytes",
            "static_cost_bytes",
            "reclaimed_bytes",
            "tag_faults",
            "moves",
            "evictions_caused",
            "evictions_suffered",
            "exits",
            "peak",
            "end",
        ] {
            assert!(json["vms"][0].get(key).is_some(), "vms[0].{key}");
        }
        assert_eq!(json["vms"][0]["end"], "over_budget");
        assert_eq!(json["efficiency"], 1.0);
        assert_eq!(json["net_reclaimed_bytes"], -4096);
        assert!(json["final"]["efficiency"].is_null());
    }

    #[test]
    fn ratios_round_down_and_never_say_more_than_there_is() {
        assert_eq!(Ratio::new(2, 3).unwrap().to_string(), "0.666666");
        assert_eq!(
            Ratio::new(999_999_999, 1_000_000_000).unwrap().to_string(),
            "0.999999"
        );
        assert_eq!(Ratio::new(1, 0), None);
        assert_eq!(
            Ratio::new(u64::MAX, u64::MAX).unwrap().to_string(),
            "1.000000"
        );
    }

    #[test]
    fn the_table_names_each_vm_and_what_was_reclaimed() {
        let text = report().to_string();
        assert!(
            text.contains("reclaimed                 61.0 MiB  98.38 %"),
            "{text}"
        );
        assert!(text.contains("over_budget"), "{text}");
        let without = Report {
            regions: Vec::new(),
            ..report()
        };
        assert!(without.to_string().contains("no tag region"));
    }
}
