//! The device tree of the machine: QEMU's, with our memory, tag storage and `/chosen` written into it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

use super::{BUNDLE, Geometry, MachineSpec, RAM_BASE, Span};
use crate::process::output;

/// Phandles of the taggable memory nodes; far above those that QEMU uses.
const FIRST_PHANDLE: u32 = 0x7a60_0000;

impl MachineSpec {
    /// Returns the device tree that QEMU makes for this machine, kept in `cache` for the next time.
    ///
    /// # Errors
    /// QEMU cannot be started or does not know the CPU model.
    pub fn qemu_tree(&self, qemu: &Path, cache: &Path) -> Result<DeviceTree> {
        let kept = cache.join(format!("{:016x}.dtb", self.identity(qemu)?));
        if let Ok(tree) = read_tree(&kept) {
            return Ok(tree);
        }
        fs::create_dir_all(cache)?;
        let fresh = cache.join(format!("{}.new", std::process::id()));
        let option = format!(",dumpdtb={}", fresh.display());
        output(
            Command::new(qemu)
                .args(self.machine_with(&option))
                .env_remove("TAGVISOR_PRELOAD"),
        )
        .with_context(|| format!("QEMU cannot make a machine with CPU model {}", self.cpu))?;
        let tree = read_tree(&fresh)?;
        fs::rename(&fresh, &kept)?;
        Ok(tree)
    }

    /// Names this machine on this QEMU.
    fn identity(&self, qemu: &Path) -> Result<u64> {
        use std::hash::{DefaultHasher, Hash, Hasher};
        use std::os::unix::fs::MetadataExt;
        let meta = fs::metadata(qemu)
            .with_context(|| format!("there is no QEMU at {}", qemu.display()))?;
        let mut hasher = DefaultHasher::new();
        (
            qemu,
            meta.len(),
            meta.mtime(),
            meta.ino(),
            self.machine_arguments(),
        )
            .hash(&mut hasher);
        Ok(hasher.finish())
    }

    /// Writes memory, tag storage and `/chosen` into the device tree of QEMU.
    ///
    /// # Errors
    /// A name cannot be a device tree's.
    pub fn rewrite(&self, tree: &mut DeviceTree, bundle_bytes: u64) -> Result<()> {
        let geometry = self.geometry();
        let memories: Vec<String> = names_of(&mut tree.root, "memory");
        for name in memories {
            tree.root.remove_child(&name);
        }
        if self.regions > 0 {
            add_memory(
                &mut tree.root,
                geometry.untaggable,
                Some("arm,no-mte"),
                None,
            )?;
            self.add_storage(tree, &geometry)?;
        } else {
            let taggable = Span {
                base: RAM_BASE,
                bytes: self.memory_bytes / 32 * 31,
            };
            add_memory(&mut tree.root, taggable, None, None)?;
        }
        let chosen = child(&mut tree.root, "chosen")?;
        set(chosen, "linux,initrd-start", BUNDLE)?;
        set(chosen, "linux,initrd-end", BUNDLE + bundle_bytes)?;
        if !self.bootargs.is_empty() {
            set(chosen, "bootargs", self.bootargs.as_str())?;
        }
        Ok(())
    }

    fn add_storage(&self, tree: &mut DeviceTree, geometry: &Geometry) -> Result<()> {
        for (region, phandle) in geometry.regions.iter().zip(FIRST_PHANDLE..) {
            add_memory(&mut tree.root, region.tagged, None, Some(phandle))?;
            add_memory(&mut tree.root, region.tags, None, None)?;
            let mut node = node(&format!("tag-storage@{:x}", region.tags.base))?;
            set(&mut node, "compatible", "arm,mte-tag-storage")?;
            set(&mut node, "reg", cells(region.tags))?;
            set(&mut node, "block-size", self.block_bytes)?;
            set(&mut node, "tagged-memory", phandle)?;
            set(&mut node, "reusable", [0u8; 0])?;
            let reserved = child(&mut tree.root, "reserved-memory")?;
            set(reserved, "#address-cells", 2u32)?;
            set(reserved, "#size-cells", 2u32)?;
            set(reserved, "ranges", [0u8; 0])?;
            reserved.add_child(node);
        }
        Ok(())
    }
}

fn read_tree(file: &Path) -> Result<DeviceTree> {
    let bytes = fs::read(file)?;
    let fdt = Fdt::new(&bytes).map_err(|error| anyhow!("{}: {error:?}", file.display()))?;
    Ok(DeviceTree::from_fdt(&fdt))
}

fn names_of(parent: &mut DeviceTreeNode, kind: &str) -> Vec<String> {
    use dtoolkit::Node;
    let names = parent
        .children_mut()
        .map(|child| (*child).name().to_owned());
    names
        .filter(|name| name == kind || name.starts_with(&format!("{kind}@")))
        .collect()
}

fn add_memory(
    root: &mut DeviceTreeNode,
    span: Span,
    compatible: Option<&str>,
    phandle: Option<u32>,
) -> Result<()> {
    if span.bytes == 0 {
        return Ok(());
    }
    let mut node = node(&format!("memory@{:x}", span.base))?;
    set(&mut node, "device_type", "memory")?;
    set(&mut node, "reg", cells(span))?;
    if let Some(compatible) = compatible {
        set(&mut node, "compatible", compatible)?;
    }
    if let Some(phandle) = phandle {
        set(&mut node, "phandle", phandle)?;
    }
    root.add_child(node);
    Ok(())
}

/// Finds a child or makes it.
fn child<'a>(parent: &'a mut DeviceTreeNode, name: &str) -> Result<&'a mut DeviceTreeNode> {
    if parent.child_mut(name).is_none() {
        parent.add_child(node(name)?);
    }
    parent
        .child_mut(name)
        .with_context(|| format!("the device tree has no {name}"))
}

fn node(name: &str) -> Result<DeviceTreeNode> {
    DeviceTreeNode::new(name).map_err(|error| anyhow!("{name} cannot be a node: {error:?}"))
}

fn set(node: &mut DeviceTreeNode, name: &str, value: impl dtoolkit::ToPropertyValue) -> Result<()> {
    node.remove_property(name);
    let property = DeviceTreeProperty::new(name, value);
    node.add_property(property.map_err(|error| anyhow!("{name} cannot be a property: {error:?}"))?);
    Ok(())
}

/// `reg` with two cells each for address and size, as virt's root has it.
fn cells(span: Span) -> Vec<u8> {
    [span.base.to_be_bytes(), span.bytes.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dtoolkit::{Node, Property};

    /// The parts of QEMU's tree that the rewriting touches.
    fn qemu_like() -> DeviceTree {
        let mut tree = DeviceTree::new();
        for name in ["memory@40000000", "chosen", "psci"] {
            tree.root.add_child(node(name).unwrap());
        }
        tree
    }

    fn property(tree: &DeviceTree, path: &str, name: &str) -> Option<Vec<u8>> {
        let node = tree.find_node(path)?;
        node.property(name)
            .map(|property| property.value().to_vec())
    }

    fn rewritten(spec: &MachineSpec) -> DeviceTree {
        let mut tree = qemu_like();
        spec.rewrite(&mut tree, 0x1234).unwrap();
        tree
    }

    #[test]
    fn the_tag_storage_is_described_by_the_binding() {
        let tree = rewritten(&MachineSpec::default());
        let storage = "/reserved-memory/tag-storage@bc000000";
        assert_eq!(
            property(&tree, storage, "compatible").unwrap(),
            b"arm,mte-tag-storage\0"
        );
        assert_eq!(
            property(&tree, storage, "reg").unwrap(),
            cells(Span {
                base: 0xbc00_0000,
                bytes: 62 << 20
            })
        );
        assert_eq!(
            property(&tree, storage, "block-size").unwrap(),
            0x1000u32.to_be_bytes()
        );
        assert_eq!(property(&tree, storage, "reusable").unwrap(), b"");
        assert_eq!(
            property(&tree, storage, "tagged-memory"),
            property(&tree, "/memory@40000000", "phandle"),
        );
        assert!(property(&tree, "/memory@bc000000", "reg").is_some());
        assert_eq!(
            property(&tree, "/memory@bfe00000", "compatible").unwrap(),
            b"arm,no-mte\0"
        );
    }

    #[test]
    fn the_bundle_is_named_as_the_initrd_and_the_rest_stays() {
        let tree = rewritten(&MachineSpec {
            bootargs: "log=debug".to_owned(),
            ..MachineSpec::default()
        });
        assert_eq!(
            property(&tree, "/chosen", "linux,initrd-start").unwrap(),
            BUNDLE.to_be_bytes()
        );
        assert_eq!(
            property(&tree, "/chosen", "linux,initrd-end").unwrap(),
            (BUNDLE + 0x1234).to_be_bytes()
        );
        assert_eq!(
            property(&tree, "/chosen", "bootargs").unwrap(),
            b"log=debug\0"
        );
        assert!(tree.find_node("/psci").is_some());
    }

    #[test]
    fn the_rewritten_tree_survives_its_flat_form() {
        let tree = rewritten(&MachineSpec {
            regions: 2,
            ..MachineSpec::default()
        });
        let bytes = tree.to_dtb();
        assert_eq!(DeviceTree::from_fdt(&Fdt::new(&bytes).unwrap()), tree);
    }

    #[test]
    fn without_a_region_only_the_taggable_memory_is_shown() {
        let tree = rewritten(&MachineSpec {
            regions: 0,
            ..MachineSpec::default()
        });
        assert!(tree.find_node("/reserved-memory").is_none());
        let memory = Span {
            base: RAM_BASE,
            bytes: (2u64 << 30) / 32 * 31,
        };
        assert_eq!(
            property(&tree, "/memory@40000000", "reg").unwrap(),
            cells(memory)
        );
    }
}
