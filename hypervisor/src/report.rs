//! The report: what the carve-out was used for, per machine and per VM, as JSON for programs and a table for people.
//!
//! Terms: `carve_out` is all valid tag regions; `reserved` holds tags; `lent` holds data; `free` neither; `offline` is tags for
//! ever. `reclaimed = carve_out - reserved - offline`; `net` takes off what the reclaiming itself costs; `ideal` is what a
//! perfect placement of the live tagged pages would leave. All sizes are bytes. [`VERSION`] counts changes of the format.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::{self, Write};

use stage2::account::{MachineAccount, VmAccount};

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

impl From<MachineAccount> for CarveOut {
    fn from(account: MachineAccount) -> Self {
        Self {
            carve_out_bytes: account.carve_out,
            reserved_bytes: account.reserved,
            lent_bytes: account.lent,
            free_bytes: account.free,
            offline_bytes: account.offline,
            untaggable_bytes: account.untaggable,
            peak_lent_bytes: account.peak_lent,
            reclaimed_bytes: account.reclaimed,
            net_reclaimed_bytes: account.net_reclaimed,
            ideal_bytes: account.ideal,
            efficiency: account
                .ideal
                .and_then(|ideal| Ratio::new(account.reclaimed, ideal)),
        }
    }
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
    /// Device accesses that were answered at once, and are in no other figure yet.
    pub quick: u64,
}

impl Exits {
    /// The figures as they are told.
    #[must_use]
    pub const fn told(&self) -> Self {
        Self {
            total: self.total + self.quick,
            mmio: self.mmio + self.quick,
            quick: 0,
            ..*self
        }
    }
}

/// The highest figures of a VM.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peak {
    /// Most pages with tag access at once.
    pub tagged_pages: u64,
    /// Most tag storage at once.
    pub reserved_bytes: u64,
    /// Most RAM in tag storage at once.
    pub lent_bytes: u64,
}

/// A VM.
#[derive(Clone, Debug, Default)]
pub struct VmInfo {
    /// Its name.
    pub name: String,
    /// Whether it sees MTE.
    pub mte: bool,
    /// When its pages get tag storage, at its start.
    pub policy: &'static str,
    /// Whether it tagged so much that it went from lazy to eager.
    pub switched_to_eager: bool,
    /// Its vCPUs.
    pub vcpus: usize,
    /// Its RAM.
    pub memory_bytes: u64,
    /// The most tag storage that may be reserved for it.
    pub tag_budget_bytes: u64,
    /// RAM that has frames.
    pub resident_bytes: u64,
    /// RAM that is in tag storage.
    pub lent_bytes: u64,
    /// 2 MiB leaves that map its RAM.
    pub big_leaves: u64,
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
    /// Pages that gave tag access back.
    pub demotions: u64,
    /// Tag faults that waited for leave to evict.
    pub throttled: u64,
    /// Time for which its vCPUs have had a CPU, nanoseconds.
    pub cpu_ns: u64,
    /// Time for which they were ready and others had it, nanoseconds.
    pub stolen_ns: u64,
    /// Exits by cause.
    pub exits: Exits,
    /// Highest figures.
    pub peak: Peak,
    /// How it ended; none while it runs.
    pub end: Option<End>,
    /// Why, if it was not by its own wish.
    pub reason: Option<String>,
}

impl From<VmAccount> for VmInfo {
    /// Takes over the figures of its memory; all else is empty.
    fn from(account: VmAccount) -> Self {
        Self {
            switched_to_eager: account.switched_to_eager,
            resident_bytes: account.resident,
            lent_bytes: account.lent,
            big_leaves: account.big_leaves,
            pages: Pages {
                untouched: account.pages.untouched,
                no_tag_access: account.pages.no_tag_access,
                tagged: account.pages.tagged,
            },
            reserved_bytes: account.reserved,
            static_cost_bytes: account.static_cost,
            reclaimed_bytes: account.reclaimed,
            tag_faults: account.tag_faults,
            moves: account.moves,
            evictions_caused: account.evictions_caused,
            evictions_suffered: account.evictions_suffered,
            demotions: account.demotions,
            throttled: account.throttled,
            peak: Peak {
                tagged_pages: account.peak.tagged_pages,
                reserved_bytes: account.peak.reserved,
                lent_bytes: account.peak.lent,
            },
            ..Self::default()
        }
    }
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
        scaled(part, whole, 1_000_000).map(Self)
    }
}

/// `part` of `whole` in units of which `units` (at most 2^20) are the whole; none if there is no whole. Exact below 2^44, and for
/// pages below 2^56: 128-bit division would take 2 KiB of code.
fn scaled(part: u64, whole: u64, units: u64) -> Option<u64> {
    let shift = (u64::BITS - part.leading_zeros()).saturating_sub(44);
    ((part >> shift) * units).checked_div(whole >> shift)
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
    lent_bytes,
});
json_struct!(VmInfo {
    name,
    mte,
    policy,
    switched_to_eager,
    vcpus,
    memory_bytes,
    tag_budget_bytes,
    resident_bytes,
    lent_bytes,
    big_leaves,
    pages,
    reserved_bytes,
    static_cost_bytes,
    reclaimed_bytes,
    tag_faults,
    moves,
    evictions_caused,
    evictions_suffered,
    demotions,
    throttled,
    cpu_ns,
    stolen_ns,
    exits,
    peak,
    end,
    reason,
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
            bytes if bytes >= 1000 << 20 => {
                let hundredths = ((bytes >> 20) * 100) >> 10;
                write!(text, "{}.{:02} GiB", hundredths / 100, hundredths % 100)?;
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

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "tag storage under policy {}", self.policy)?;
        if self.regions.is_empty() {
            writeln!(f, "  no tag region: nothing to reclaim on this machine")?;
        } else {
            self.write_carve_out(f)?;
        }
        writeln!(f, "{HEADING}")?;
        for vm in &self.vms {
            vm.write_row(f)?;
        }
        for vm in &self.vms {
            vm.write_events(f)?;
        }
        match self.invariants {
            // A release build looks when a VM ends.
            Invariants {
                checked: 0,
                broken: 0,
            } => f.write_str("  invariants: not checked yet"),
            Invariants { checked, broken } => {
                write!(f, "  invariants: {checked} checked, {broken} broken")
            }
        }
    }
}

impl Report {
    fn write_carve_out(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = &self.at_peak;
        let all = at.carve_out_bytes;
        let dram = Size(self.machine.memory_bytes);
        write_bytes(f, "carve-out", all)?;
        writeln!(f, "  of {dram} DRAM")?;
        for (what, bytes) in [
            ("reserved for tags", at.reserved_bytes),
            ("lent, holding data", at.lent_bytes),
            ("free", at.free_bytes),
            ("offline", at.offline_bytes),
            ("most ever lent", at.peak_lent_bytes),
        ] {
            write_bytes(f, what, bytes)?;
            writeln!(f, "  {}", Percent(bytes, all))?;
        }
        write_bytes(f, "reclaimed", at.reclaimed_bytes)?;
        write!(f, "  {}", Percent(at.reclaimed_bytes, all))?;
        if let Some(ideal) = at.ideal_bytes {
            let part = Percent(at.reclaimed_bytes, ideal);
            write!(f, "; {part} of the ideal {}", Size(ideal))?;
        }
        writeln!(
            f,
            "\n  (when the most was reserved; now reserved: {}, lent: {})",
            Size(self.now.reserved_bytes),
            Size(self.now.lent_bytes)
        )
    }
}

fn write_bytes(f: &mut fmt::Formatter<'_>, what: &str, bytes: u64) -> fmt::Result {
    write!(f, "  {what:<22}{:>12}", Size(bytes))
}

/// The columns of [`VmInfo::write_row`]. With the console's prefix a row fits 100 columns.
const HEADING: &str =
    "\n  VM       policy    memory  resident      lent   tagged peak tags    budget  end";

impl VmInfo {
    fn write_row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "  {:<8} {:>6}{:>10}{:>10}{:>10}{:>9}{:>10}{:>10}  ",
            self.name,
            if self.mte { self.policy } else { "no MTE" },
            Size(self.memory_bytes),
            Size(self.resident_bytes),
            Size(self.peak.lent_bytes),
            self.peak.tagged_pages,
            Size(self.peak.reserved_bytes),
            Size(self.tag_budget_bytes),
        )?;
        match self.end {
            Some(end) => writeln!(f, "{end}"),
            None => writeln!(f, "running"),
        }
    }

    /// What happened to its pages, if anything did.
    fn write_events(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (count, what) in [
            (self.moves, "pages moved"),
            (self.evictions_caused, "pages of others evicted for it"),
            (self.evictions_suffered, "of its pages evicted for others"),
            (self.throttled, "waits to evict"),
            (self.demotions, "pages gave tag access back"),
            (
                self.switched_to_eager.into(),
                "switch from lazy to eager: it tags most of what it touches",
            ),
        ] {
            if count > 0 {
                writeln!(f, "  {}: {count} {what}", self.name)?;
            }
        }
        Ok(())
    }
}

/// `part` of `whole` in percent with two decimals.
struct Percent(u64, u64);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hundredths = scaled(self.0, self.1, 10_000).unwrap_or(0);
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
                reason: Some("it needs more".into()),
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
            "demotions",
            "throttled",
            "switched_to_eager",
            "tag_budget_bytes",
            "lent_bytes",
            "big_leaves",
            "cpu_ns",
            "stolen_ns",
            "exits",
            "peak",
            "end",
            "reason",
        ] {
            assert!(json["vms"][0].get(key).is_some(), "vms[0].{key}");
        }
        assert_eq!(json["vms"][0]["end"], "over_budget");
        assert_eq!(json["vms"][0]["reason"], "it needs more");
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
        let early = Report {
            invariants: Invariants::default(),
            ..report()
        };
        assert!(early.to_string().ends_with("invariants: not checked yet"));
        let lost = Invariants {
            checked: 0,
            broken: 1,
        };
        let lost = Report {
            invariants: lost,
            ..report()
        };
        assert!(lost.to_string().ends_with("0 checked, 1 broken"));
    }

    #[test]
    fn the_table_fits_100_columns_and_says_what_happened_only_where_something_did() {
        let quiet = VmInfo {
            name: "eightchr".into(),
            mte: true,
            policy: "static",
            memory_bytes: 63 << 30,
            tag_budget_bytes: (63 << 30) / 32,
            resident_bytes: (63 << 30) - 4096,
            peak: Peak {
                tagged_pages: 16_515_071,
                reserved_bytes: (1 << 30) + 4096,
                lent_bytes: 999 << 20,
            },
            end: Some(End::OverBudget),
            ..VmInfo::default()
        };
        let busy = VmInfo {
            name: "busy".into(),
            moves: 12_345_678,
            evictions_caused: 1,
            evictions_suffered: 2,
            throttled: 3,
            demotions: 4,
            switched_to_eager: true,
            ..quiet.clone()
        };
        let text = Report {
            vms: Vec::from([quiet, busy]),
            ..report()
        }
        .to_string();
        for line in text.lines() {
            assert!("[tagvisor] ".len() + line.len() <= 100, "{line}");
        }
        assert!(!text.contains("eightchr:"), "{text}");
        for event in [
            "12345678 pages moved",
            "1 pages of others evicted for it",
            "2 of its pages evicted for others",
            "3 waits to evict",
            "4 pages gave tag access back",
            "1 switch from lazy to eager",
        ] {
            assert!(
                text.contains(&alloc::format!("\n  busy: {event}")),
                "{text}"
            );
        }
    }

    #[test]
    fn figures_of_memory_reach_the_report() {
        let vm = VmInfo::from(VmAccount {
            resident: 1,
            lent: 2,
            big_leaves: 3,
            reserved: 4,
            static_cost: 5,
            reclaimed: -6,
            tag_faults: 7,
            moves: 8,
            evictions_caused: 9,
            evictions_suffered: 10,
            demotions: 11,
            throttled: 12,
            switched_to_eager: true,
            ..VmAccount::default()
        });
        let json: serde_json::Value = serde_json::from_str(&vm.to_json()).unwrap();
        for (key, value) in [
            ("resident_bytes", 1),
            ("lent_bytes", 2),
            ("big_leaves", 3),
            ("reserved_bytes", 4),
            ("static_cost_bytes", 5),
            ("reclaimed_bytes", -6),
            ("tag_faults", 7),
            ("moves", 8),
            ("evictions_caused", 9),
            ("evictions_suffered", 10),
            ("demotions", 11),
            ("throttled", 12),
        ] {
            assert_eq!(json[key], value, "{key}");
        }
        assert_eq!(json["switched_to_eager"], true);
    }
}
