//! The machine that QEMU runs: its geometry, its device tree with the tag storage, QEMU's arguments.
//!
//! RAM of S bytes at 1 GiB holds taggable memory in [0, 31S/32), its tags in [31S/32, +31S/1024) and, above, DRAM that
//! has no tags of its own because its tags' place would hold tags of tags. Image, DTB and bundle lie at the bottom.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

mod tree;

/// Where QEMU's virt machine has its RAM.
pub const RAM_BASE: u64 = 0x4000_0000;
/// Where the stub lies: above the DTB that QEMU itself puts at the RAM's base.
pub const STUB: u64 = RAM_BASE + 0x18_0000;
/// Where tagvisor's Image lies.
pub const IMAGE: u64 = RAM_BASE + 0x20_0000;
/// Where the DTB lies.
pub const DTB: u64 = RAM_BASE + 0x1e0_0000;
/// Where the bundle lies.
pub const BUNDLE: u64 = RAM_BASE + 0x200_0000;

/// The smallest machine: EL2 and a small guest.
pub const LEAST_MEMORY: u64 = 128 << 20;
/// The alignment of memory sizes: of the regions' borders, so that all are whole blocks of up to 32 KiB.
pub const MEMORY_STEP: u64 = 32 << 20;

/// A page, the least that changes its use.
pub(crate) const PAGE: u64 = 0x1000;

/// A machine to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineSpec {
    /// RAM in bytes.
    pub memory_bytes: u64,
    /// CPUs.
    pub cpus: u32,
    /// QEMU's name of the CPU model.
    pub cpu: String,
    /// `block-size` of the tag storage in bytes, as the DTB says it.
    pub block_bytes: u32,
    /// Tag regions, 1 or 2; 0 is a machine whose tags are hidden from software.
    pub regions: u32,
    /// Whether the tags stay where stock QEMU keeps them, out of RAM.
    pub stock_tags: bool,
    /// Whether QEMU loads Image and bundle itself (`-kernel`, `-initrd`), with its own DTB: no tag region.
    pub no_region: bool,
    /// `/chosen/bootargs`.
    pub bootargs: String,
}

impl Default for MachineSpec {
    fn default() -> Self {
        Self {
            memory_bytes: 2 << 30,
            cpus: 2,
            cpu: "max".to_owned(),
            block_bytes: 0x1000,
            regions: 1,
            stock_tags: false,
            no_region: false,
            bootargs: String::new(),
        }
    }
}

/// A piece of memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its first address.
    pub base: u64,
    /// Its length.
    pub bytes: u64,
}

/// Taggable memory and its tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The memory whose tags it holds.
    pub tagged: Span,
    /// The carve-out.
    pub tags: Span,
}

/// How the RAM is divided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The regions; each one's taggable memory follows the one before.
    pub regions: Vec<Region>,
    /// What is left at the top, which has no tags.
    pub untaggable: Span,
}

impl MachineSpec {
    /// Divides the RAM.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        let taggable = self.memory_bytes / 32 * 31;
        let block = least_common_multiple(u64::from(self.block_bytes.max(1)), PAGE);
        let mut regions = Vec::new();
        let mut from = 0;
        for left in (1..=u64::from(self.regions)).rev() {
            let all = taggable - from;
            let bytes = if left == 1 {
                all
            } else {
                all / left / (32 * block) * (32 * block)
            };
            let tags = Span {
                base: RAM_BASE + taggable + from / 32,
                bytes: (bytes / 32).next_multiple_of(block),
            };
            regions.push(Region {
                tagged: Span {
                    base: RAM_BASE + from,
                    bytes,
                },
                tags,
            });
            from += bytes;
        }
        let top = regions.last().map_or(RAM_BASE + taggable, |region| {
            region.tags.base + region.tags.bytes
        });
        Geometry {
            regions,
            untaggable: Span {
                base: top,
                bytes: RAM_BASE + self.memory_bytes - top,
            },
        }
    }

    /// Returns QEMU's arguments for the machine itself, without what is loaded.
    #[must_use]
    pub fn machine_arguments(&self) -> Vec<OsString> {
        self.machine_with("")
    }

    fn machine_with(&self, option: &str) -> Vec<OsString> {
        let memory = self.memory_bytes;
        let machine = format!(
            "virt,virtualization=on,mte=on,gic-version=3,memory-backend=mem,dtb-randomness=off{option}"
        );
        let backend = format!("memory-backend-memfd,id=mem,size={memory},share=on");
        let (ram, cpus) = (format!("{memory}B"), self.cpus.to_string());
        [
            "-nodefaults",
            "-M",
            &machine,
            "-object",
            &backend,
            "-m",
            &ram,
            "-cpu",
            &self.cpu,
            "-smp",
            &cpus,
        ]
        .into_iter()
        .chain(["-nic", "none", "-display", "none", "-no-user-config"])
        .map(OsString::from)
        .collect()
    }

    /// Checks that the machine can be built.
    ///
    /// # Errors
    /// A size is out of range; the message says the range.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.memory_bytes >= LEAST_MEMORY && self.memory_bytes.is_multiple_of(MEMORY_STEP),
            "a machine has at least 128M of memory, in steps of 32M"
        );
        ensure!(
            self.memory_bytes <= 64 << 30,
            "a machine has at most 64G of memory"
        );
        ensure!((1..=64).contains(&self.cpus), "a machine has 1 to 64 CPUs");
        ensure!(self.regions <= 2, "a machine has 0 to 2 tag regions");
        Ok(())
    }
}

/// What is loaded into a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The flat Image to run at EL2.
    pub image: PathBuf,
    /// The bundle.
    pub bundle: Option<PathBuf>,
    /// The DTB.
    pub dtb: PathBuf,
    /// The ELF that QEMU enters.
    pub stub: PathBuf,
}

impl Loaded {
    /// Returns QEMU's arguments that load it.
    #[must_use]
    pub fn arguments(&self, spec: &MachineSpec) -> Vec<OsString> {
        if spec.no_region {
            let mut arguments: Vec<OsString> = vec!["-kernel".into(), self.image.clone().into()];
            arguments.extend(
                self.bundle
                    .iter()
                    .flat_map(|bundle| ["-initrd".into(), bundle.clone().into()]),
            );
            if !spec.bootargs.is_empty() {
                arguments.extend(["-append".into(), spec.bootargs.clone().into()]);
            }
            return arguments;
        }
        let bundle = self.bundle.as_ref().map(|bundle| (bundle, BUNDLE));
        let raw = [(&self.image, IMAGE), (&self.dtb, DTB)]
            .into_iter()
            .chain(bundle);
        let mut arguments: Vec<OsString> = vec!["-kernel".into(), self.stub.clone().into()];
        for (file, address) in raw {
            let mut loader = OsString::from(format!("loader,addr={address:#x},force-raw=on,file="));
            loader.push(file.as_os_str().to_string_lossy().replace(',', ",,"));
            arguments.extend(["-device".into(), loader]);
        }
        arguments
    }

    /// Writes DTB and stub for a machine into `dir` beside the Image and the bundle that are given.
    ///
    /// # Errors
    /// QEMU cannot tell its device tree, the bundle does not fit the machine, or a file cannot be written.
    pub fn prepare(spec: &MachineSpec, boot: &Boot<'_>, dir: &Path) -> Result<Self> {
        spec.check()?;
        let bundle_bytes = boot
            .bundle
            .map_or(Ok(0), |bundle| fs::metadata(bundle).map(|meta| meta.len()))?;
        let image_bytes = fs::metadata(boot.image)?.len();
        ensure!(
            IMAGE + image_bytes <= DTB,
            "the Image is {image_bytes} bytes: at most {} fit",
            DTB - IMAGE
        );
        let end = RAM_BASE + spec.memory_bytes / 32 * 31;
        ensure!(
            BUNDLE + bundle_bytes <= end,
            "the kernels and initrds are {bundle_bytes} bytes, more than the machine's memory takes: give it more with --memory"
        );
        let loaded = Self {
            image: boot.image.to_path_buf(),
            bundle: boot.bundle.map(Path::to_path_buf),
            dtb: dir.join("machine.dtb"),
            stub: dir.join("stub.elf"),
        };
        if !spec.no_region {
            let mut tree = spec.qemu_tree(boot.qemu, boot.dtb_cache)?;
            spec.rewrite(&mut tree, bundle_bytes)?;
            fs::write(&loaded.dtb, tree.to_dtb())?;
            fs::write(&loaded.stub, crate::image::stub(STUB, DTB, IMAGE))?;
        }
        Ok(loaded)
    }
}

/// What [`Loaded::prepare`] works from.
#[derive(Clone, Copy, Debug)]
pub struct Boot<'a> {
    /// The QEMU program.
    pub qemu: &'a Path,
    /// The flat Image to run at EL2.
    pub image: &'a Path,
    /// The bundle.
    pub bundle: Option<&'a Path>,
    /// Where QEMU's device trees are kept.
    pub dtb_cache: &'a Path,
}

pub(crate) fn least_common_multiple(a: u64, b: u64) -> u64 {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(memory_bytes: u64, block_bytes: u32, regions: u32) -> MachineSpec {
        MachineSpec {
            memory_bytes,
            block_bytes,
            regions,
            ..MachineSpec::default()
        }
    }

    #[test]
    fn two_gibibytes_have_a_carve_out_of_62_mebibytes_and_2_mebibytes_without_tags() {
        let geometry = spec(2 << 30, 0x1000, 1).geometry();
        let tagged = Span {
            base: RAM_BASE,
            bytes: 1984 << 20,
        };
        let tags = Span {
            base: 0xbc00_0000,
            bytes: 62 << 20,
        };
        assert_eq!(geometry.regions, [Region { tagged, tags }]);
        assert_eq!(
            geometry.untaggable,
            Span {
                base: 0xbfe0_0000,
                bytes: 2 << 20
            }
        );
    }

    #[test]
    fn the_parts_cover_the_ram_and_tags_lie_where_the_hardware_looks_for_them() {
        for memory in [128 << 20, 1 << 30, 4 << 30] {
            for block in [1, 0x1000, 0x2000, 0x3000, 0x8000] {
                for regions in 1..=2 {
                    let geometry = spec(memory, block, regions).geometry();
                    assert_eq!(geometry.regions.len(), regions as usize);
                    let mut tagged_end = RAM_BASE;
                    let mut tags_end = RAM_BASE + memory / 32 * 31;
                    for region in &geometry.regions {
                        assert_eq!(region.tagged.base, tagged_end);
                        assert_eq!(region.tags.base, tags_end, "{memory} {block} {regions}");
                        let offset = (region.tagged.base - RAM_BASE) / 32;
                        assert_eq!(region.tags.base, RAM_BASE + memory / 32 * 31 + offset);
                        tagged_end += region.tagged.bytes;
                        tags_end += region.tags.bytes;
                    }
                    assert_eq!(tagged_end, RAM_BASE + memory / 32 * 31);
                    assert_eq!(geometry.untaggable.base, tags_end);
                    assert_eq!(tags_end + geometry.untaggable.bytes, RAM_BASE + memory);
                }
            }
        }
    }

    #[test]
    fn a_machine_that_cannot_be_is_refused() {
        assert!(spec(64 << 20, 0x1000, 1).check().is_err());
        assert!(spec((1 << 30) + 0x1000, 0x1000, 1).check().is_err());
        assert!(spec(1 << 30, 0x1000, 3).check().is_err());
        assert!(
            MachineSpec {
                cpus: 0,
                ..MachineSpec::default()
            }
            .check()
            .is_err()
        );
        assert!(spec(1 << 30, 0x1000, 1).check().is_ok());
    }
}
