//! tagvisor on machines that `scripts/run` does not make: other block sizes, no tag region, broken inputs.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tagvisor_tool::board::{Boot, IMAGE, Loaded, MachineSpec, STUB, Span};
use tagvisor_tool::bundle::{Bundle, Policy};
use tagvisor_tool::image::stub;
use tagvisor_tool::paths::Cache;
use tagvisor_tool::run::filter::ReportFilter;

use crate::build::{carveout, qemu_program, tagvisor_image};
use crate::process::{Finished, Folder, run_within};
use crate::scenario::{Guest, Run};

/// A guest here takes a few seconds.
const LIMIT: Duration = Duration::from_secs(120);
/// The report's key; nothing that runs here knows it.
const KEY: &str = "7e577e577e577e57";

/// Changes a file of the machine before it starts.
type Change = fn(&mut Vec<u8>);

/// One machine with tagvisor at EL2.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The machine's geometry.
    pub spec: MachineSpec,
    /// How tag storage is reserved.
    pub policy: Policy,
    /// Pages a second that one guest's tag faults may evict; none: EL2's default.
    pub eviction_rate: Option<u32>,
    guests: Vec<Guest>,
    bundle: Option<Change>,
    dtb: Option<Change>,
    x0: Option<u64>,
    junk: Vec<Span>,
    limit: Duration,
    arguments: Vec<String>,
}

impl Machine {
    /// Makes a machine of 1 GiB and one CPU for one guest.
    #[must_use]
    pub fn of(guest: Guest) -> Self {
        Self {
            spec: MachineSpec {
                memory_bytes: 1 << 30,
                cpus: 1,
                ..MachineSpec::default()
            },
            policy: Policy::Auto,
            eviction_rate: None,
            guests: vec![guest],
            bundle: None,
            dtb: None,
            x0: None,
            junk: Vec::new(),
            limit: LIMIT,
            arguments: Vec::new(),
        }
    }

    /// Changes the bundle before the machine starts; an empty one is left out.
    #[must_use]
    pub fn with_bundle(mut self, change: Change) -> Self {
        self.bundle = Some(change);
        self
    }

    /// Changes the DTB before the machine starts.
    #[must_use]
    pub fn with_dtb(mut self, change: Change) -> Self {
        self.dtb = Some(change);
        self
    }

    /// Enters tagvisor with this in x0 instead of the DTB's address.
    #[must_use]
    pub const fn with_x0(mut self, x0: u64) -> Self {
        self.x0 = Some(x0);
        self
    }

    /// Adds arguments of QEMU.
    #[must_use]
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments
            .extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// Fills `bytes` of its RAM from `base` on with what is neither zero data nor zero tags.
    #[must_use]
    pub fn with_junk(mut self, base: u64, bytes: u64) -> Self {
        self.junk.push(Span { base, bytes });
        self
    }

    /// Sets its time limit in seconds; a machine that cannot power itself off runs until then.
    #[must_use]
    pub const fn within(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// Something cannot be built or started.
    pub fn run(&self) -> Result<Run> {
        let folder = Folder::new()?;
        let loaded = self.prepare(folder.path())?;
        let mut command = Command::new(qemu_program()?);
        command
            .args(self.spec.machine_arguments())
            .args(loaded.arguments(&self.spec));
        command
            .args(["-serial", "stdio", "-monitor", "none"])
            .args(&self.arguments);
        for (number, junk) in self.junk.iter().enumerate() {
            let file = folder.path().join(format!("junk-{number}"));
            std::fs::write(&file, vec![0x5a; usize::try_from(junk.bytes)?])?;
            let at = format!(
                "loader,addr={:#x},force-raw=on,file={}",
                junk.base,
                file.display()
            );
            command.args(["-device", &at]);
        }
        if !self.spec.stock_tags {
            command
                .env("TAGVISOR_PRELOAD", carveout()?)
                .env("CARVEOUT_PROOF", folder.path().join("proof"));
        }
        take_report(run_within(&mut command, self.limit)?)
    }

    fn prepare(&self, folder: &Path) -> Result<Loaded> {
        let file = folder.join("bundle.cpio");
        self.write_bundle(&file)?;
        if let Some(change) = self.bundle {
            edit(&file, change)?;
        }
        let boot = Boot {
            qemu: &qemu_program()?,
            image: &tagvisor_image()?,
            bundle: (file.metadata()?.len() > 0).then_some(file.as_path()),
            dtb_cache: &Cache::of_user()?.root().join("dtb"),
        };
        let loaded = Loaded::prepare(&self.spec, &boot, folder)?;
        if let Some(change) = self.dtb {
            edit(&loaded.dtb, change)?;
        }
        if let Some(x0) = self.x0 {
            std::fs::write(&loaded.stub, stub(STUB, x0, IMAGE))?;
        }
        Ok(loaded)
    }

    fn write_bundle(&self, file: &Path) -> Result<u64> {
        let guests = self
            .guests
            .iter()
            .map(Guest::to_bundle)
            .collect::<Result<_>>()?;
        let key = Some(KEY.to_owned());
        Bundle {
            policy: self.policy,
            eviction_rate: self.eviction_rate,
            compact_below: None,
            batch: true,
            colour: false,
            report_key: key,
            log: None,
            guests,
        }
        .write(file)
    }
}

fn edit(file: &Path, change: Change) -> Result<()> {
    let mut bytes = std::fs::read(file)?;
    change(&mut bytes);
    Ok(std::fs::write(file, bytes)?)
}

/// Takes the report out of the console's output.
fn take_report(mut finished: Finished) -> Result<Run> {
    let mut filter = ReportFilter::new(KEY);
    let shown = filter.push(finished.output.as_bytes());
    finished.output = String::from_utf8_lossy(&shown).into_owned();
    let report = match filter.report() {
        Some(text) => serde_json::from_str(text).context("the report is no JSON")?,
        None => Value::Null,
    };
    Ok(Run { finished, report })
}
