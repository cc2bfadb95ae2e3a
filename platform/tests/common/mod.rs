//! Device trees for tests, modelled on QEMU's `virt` machine with 2 GiB whose last 1/32 holds tags.
// Each test uses its part of this, and a panic here is a test's failure.
#![allow(dead_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use dtoolkit::memreserve::MemoryReservation;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

pub const RAM: u64 = 0x4000_0000;
pub const RAM_BYTES: u64 = 2 << 30;
/// Taggable DRAM: 31/32 of all.
pub const TAGGED_BYTES: u64 = RAM_BYTES / 32 * 31;
/// Tag storage: 1/32 of what it tags.
pub const TAG_BASE: u64 = RAM + TAGGED_BYTES;
pub const TAG_BYTES: u64 = TAGGED_BYTES / 32;
/// DRAM behind the tag storage, without tags.
pub const REST_BASE: u64 = TAG_BASE + TAG_BYTES;
pub const REST_BYTES: u64 = RAM_BYTES / 1024;

pub const GIC_PHANDLE: u32 = 0x8002;
pub const MEMORY_PHANDLE: u32 = 0x8100;
pub const STORAGE: &str = "/reserved-memory/tag-storage@bc000000";
pub const MEMORY: &str = "/memory@40000000";
pub const GIC: &str = "/intc@8000000";

/// Encodes cells.
pub fn cells(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_be_bytes()).collect()
}

/// Encodes numbers of two cells each.
pub fn pairs(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_be_bytes()).collect()
}

/// Encodes strings.
pub fn text(values: &[&str]) -> Vec<u8> {
    values.iter().flat_map(|v| v.bytes().chain([0])).collect()
}

/// Makes a node of properties; names are not checked, so that bad ones can be made.
pub fn node(name: &str, properties: &[(&str, Vec<u8>)]) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked(name);
    for (name, value) in properties {
        set(&mut node, name, value.clone());
    }
    node
}

/// Sets a property.
pub fn set(node: &mut DeviceTreeNode, name: &str, value: Vec<u8>) {
    node.add_property(DeviceTreeProperty::new_unchecked(name, value.as_slice()));
}

/// A device tree to be changed.
pub struct Board(pub DeviceTree);

impl Board {
    /// Finds a node that must exist.
    pub fn at(&mut self, path: &str) -> &mut DeviceTreeNode {
        self.0.find_node_mut(path).unwrap()
    }

    /// Sets a property of a node.
    pub fn set(&mut self, path: &str, name: &str, value: Vec<u8>) -> &mut Self {
        set(self.at(path), name, value);
        self
    }

    /// Removes a property that must exist.
    pub fn unset(&mut self, path: &str, name: &str) -> &mut Self {
        self.at(path).remove_property(name).unwrap();
        self
    }

    /// Removes a child that must exist.
    pub fn remove(&mut self, path: &str, name: &str) -> &mut Self {
        self.at(path).remove_child(name).unwrap();
        self
    }

    /// Adds a child.
    pub fn add(&mut self, path: &str, child: DeviceTreeNode) -> &mut Self {
        self.at(path).add_child(child);
        self
    }

    /// Adds an entry to the memory reservation block.
    pub fn reserve(&mut self, base: u64, size: u64) -> &mut Self {
        self.0
            .memory_reservations
            .push(MemoryReservation::new(base, size));
        self
    }

    /// Serializes the tree.
    pub fn dtb(&self) -> Vec<u8> {
        self.0.to_dtb()
    }
}

/// QEMU's machine with two CPUs, without tag storage.
pub fn virt() -> Board {
    let mut tree = DeviceTree::new();
    for (name, value) in [
        ("interrupt-parent", cells(&[GIC_PHANDLE])),
        ("#size-cells", cells(&[2])),
        ("#address-cells", cells(&[2])),
        ("compatible", text(&["linux,dummy-virt"])),
    ] {
        set(&mut tree.root, name, value);
    }
    let mut board = Board(tree);
    board
        .add(
            "/",
            node(
                "psci",
                &[
                    ("method", text(&["smc"])),
                    (
                        "compatible",
                        text(&["arm,psci-1.0", "arm,psci-0.2", "arm,psci"]),
                    ),
                ],
            ),
        )
        .add("/", memory_node("memory@40000000", RAM, RAM_BYTES))
        .add("/", uart_node())
        .add("/", gic_node())
        .add("/", cpus_node())
        .add("/", timer_node())
        .add(
            "/",
            node("aliases", &[("serial0", text(&["/pl011@9000000"]))]),
        )
        .add(
            "/",
            node(
                "chosen",
                &[
                    ("stdout-path", text(&["/pl011@9000000"])),
                    ("bootargs", text(&["quiet"])),
                    ("linux,initrd-start", cells(&[0x4800_0000])),
                    ("linux,initrd-end", pairs(&[0x4900_0000])),
                ],
            ),
        );
    board
}

pub fn memory_node(name: &str, base: u64, size: u64) -> DeviceTreeNode {
    node(
        name,
        &[
            ("device_type", text(&["memory"])),
            ("reg", pairs(&[base, size])),
        ],
    )
}

fn uart_node() -> DeviceTreeNode {
    node(
        "pl011@9000000",
        &[
            ("compatible", text(&["arm,pl011", "arm,primecell"])),
            ("reg", pairs(&[0x900_0000, 0x1000])),
            ("interrupts", cells(&[0, 1, 4])),
        ],
    )
}

fn gic_node() -> DeviceTreeNode {
    node(
        "intc@8000000",
        &[
            ("phandle", cells(&[GIC_PHANDLE])),
            ("compatible", text(&["arm,gic-v3"])),
            ("#interrupt-cells", cells(&[3])),
            ("interrupt-controller", vec![]),
            ("#redistributor-regions", cells(&[1])),
            ("reg", pairs(&[0x800_0000, 0x1_0000, 0x80a_0000, 0xf6_0000])),
            ("interrupts", cells(&[1, 9, 4])),
        ],
    )
}

fn cpus_node() -> DeviceTreeNode {
    let mut cpus = node(
        "cpus",
        &[
            ("#address-cells", cells(&[1])),
            ("#size-cells", cells(&[0])),
        ],
    );
    for (name, mpidr) in [("cpu@0", 0), ("cpu@1", 1)] {
        cpus.add_child(node(
            name,
            &[
                ("device_type", text(&["cpu"])),
                ("reg", cells(&[mpidr])),
                ("enable-method", text(&["psci"])),
            ],
        ));
    }
    cpus
}

fn timer_node() -> DeviceTreeNode {
    let ppis = [13, 14, 11, 10, 12];
    let interrupts: Vec<u32> = ppis.iter().flat_map(|&ppi| [1, ppi, 4]).collect();
    node(
        "timer",
        &[
            ("compatible", text(&["arm,armv8-timer", "arm,armv7-timer"])),
            ("interrupts", cells(&interrupts)),
            ("always-on", vec![]),
        ],
    )
}

/// The same with tag storage by the RFC's binding, as the test machine has it.
pub fn tagged() -> Board {
    let mut board = virt();
    board
        .set(MEMORY, "reg", pairs(&[RAM, TAGGED_BYTES]))
        .set(MEMORY, "phandle", cells(&[MEMORY_PHANDLE]))
        .add("/", memory_node("memory@bc000000", TAG_BASE, TAG_BYTES))
        .add("/", memory_node("memory@bfe00000", REST_BASE, REST_BYTES))
        .set("/memory@bfe00000", "arm,no-mte", vec![])
        .add(
            "/",
            node(
                "reserved-memory",
                &[
                    ("#address-cells", cells(&[2])),
                    ("#size-cells", cells(&[2])),
                    ("ranges", vec![]),
                ],
            ),
        )
        .add(
            "/reserved-memory",
            node(
                "tag-storage@bc000000",
                &[
                    ("compatible", text(&["arm,mte-tag-storage"])),
                    ("reg", pairs(&[TAG_BASE, TAG_BYTES])),
                    ("block-size", cells(&[0x1000])),
                    ("tagged-memory", cells(&[MEMORY_PHANDLE])),
                    ("reusable", vec![]),
                ],
            ),
        );
    board
}

/// The same by the older binding.
pub fn tagged_older() -> Board {
    let mut board = tagged();
    board
        .unset(STORAGE, "block-size")
        .unset(STORAGE, "tagged-memory")
        .unset(STORAGE, "reusable")
        .set(STORAGE, "storage-base", pairs(&[RAM]))
        .set(MEMORY, "arm,mte-alloc", vec![])
        .set("/memory@bc000000", "arm,no-mte", vec![]);
    board
}

/// Replaces the only occurrence of `old` by `new` of the same length.
pub fn patch(dtb: &mut [u8], old: &[u8], new: &[u8]) {
    assert_eq!(old.len(), new.len());
    let mut found = dtb
        .windows(old.len())
        .enumerate()
        .filter(|(_, w)| *w == old);
    let (at, _) = found.next().expect("nothing to patch");
    assert!(found.next().is_none(), "more than one place to patch");
    dtb[at..at + new.len()].copy_from_slice(new);
}

/// Writes field `index` of the header.
pub fn header(dtb: &mut [u8], index: usize, value: u32) {
    dtb[index * 4..index * 4 + 4].copy_from_slice(&value.to_be_bytes());
}

/// Reads field `index` of the header.
pub fn header_field(dtb: &[u8], index: usize) -> u32 {
    u32::from_be_bytes(dtb[index * 4..index * 4 + 4].try_into().unwrap())
}
