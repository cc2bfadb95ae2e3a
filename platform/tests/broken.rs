//! Broken device trees, each with the message that a person gets. None may panic.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic here is a failure

mod common;

use common::*;
use platform::fdt::{MAX_DTB_BYTES, check_address, discover, dtb_size};
use platform::{Machine, ReservedBy};

/// Where the structure block of a tree without reservations begins.
const STRUCTURE: usize = 40 + 16;

type Damage = fn(&mut Vec<u8>);
type Change = fn(&mut Board);

fn message(dtb: &[u8]) -> String {
    match discover(dtb) {
        Err(error) => error.to_string(),
        Ok(machine) => format!("accepted: {machine:?}"),
    }
}

/// Bytes that are damaged as bytes.
const DAMAGED: &[(&str, Damage, &str)] = &[
    (
        "nothing at all",
        |dtb| dtb.clear(),
        "the device tree has 0 bytes, less than its header",
    ),
    (
        "half a header",
        |dtb| dtb.truncate(39),
        "the device tree has 39 bytes, less than its header",
    ),
    (
        "wrong x0: zeros",
        |dtb| dtb.fill(0),
        "no device tree where x0 points: found 0x00000000 instead of 0xd00dfeed; pass the board's DTB",
    ),
    (
        "magic in the wrong byte order",
        |dtb| header(dtb, 0, 0xedfe_0dd0),
        "no device tree where x0 points: found 0xedfe0dd0 instead of 0xd00dfeed; pass the board's DTB",
    ),
    (
        "totalsize 0",
        |dtb| header(dtb, 1, 0),
        "the device tree says it has 0 bytes; between 40 and 2097152 are allowed",
    ),
    (
        "totalsize 4 GiB - 1",
        |dtb| header(dtb, 1, u32::MAX),
        "the device tree says it has 4294967295 bytes; between 40 and 2097152 are allowed",
    ),
    (
        "cut off",
        |dtb| {
            header(dtb, 1, 3000);
            dtb.truncate(1000);
        },
        "the device tree is truncated: 1000 of 3000 bytes",
    ),
    (
        "version 16",
        |dtb| header(dtb, 5, 16),
        "the device tree has version 16 (compatible with 16); version 17 is understood, recompile it with dtc",
    ),
    (
        "of the future",
        |dtb| {
            header(dtb, 5, 99);
            header(dtb, 6, 18);
        },
        "the device tree has version 99 (compatible with 18); version 17 is understood, recompile it with dtc",
    ),
    (
        "structure outside",
        |dtb| header(dtb, 2, 0x1_0000),
        "the device tree is damaged: its structure block at offset 0x10000 is out of place",
    ),
    (
        "structure offset overflows",
        |dtb| header(dtb, 2, 0xffff_fffc),
        "the device tree is damaged: its structure block at offset 0xfffffffc is out of place",
    ),
    (
        "structure not aligned",
        |dtb| header(dtb, 2, STRUCTURE as u32 + 2),
        "the device tree is damaged: its structure block at offset 0x3a is out of place",
    ),
    (
        "structure inside the header",
        |dtb| header(dtb, 2, 0),
        "the device tree is damaged: its structure block at offset 0x0 is out of place",
    ),
    (
        "structure size overflows",
        |dtb| header(dtb, 9, u32::MAX),
        "the device tree is damaged: its structure block at offset 0x38 is out of place",
    ),
    (
        "structure size 0",
        |dtb| header(dtb, 9, 0),
        "the device tree is damaged: bad structure at offset 0x38",
    ),
    (
        "structure shorter than its tree",
        |dtb| header(dtb, 9, 0x100),
        "the device tree is damaged: bad structure at offset 0x12c",
    ),
    (
        "strings outside",
        |dtb| header(dtb, 3, 0x7fff_ffff),
        "the device tree is damaged: its strings block at offset 0x7fffffff is out of place",
    ),
    (
        "strings empty",
        |dtb| header(dtb, 8, 0),
        "the device tree is damaged: bad property name at offset 0x40",
    ),
    (
        "reservations outside",
        |dtb| header(dtb, 4, 0x10_0000),
        "the device tree is damaged: its memory reservation block at offset 0x100000 is out of place",
    ),
    (
        "reservations not aligned",
        |dtb| header(dtb, 4, 44),
        "the device tree is damaged: its memory reservation block at offset 0x2c is out of place",
    ),
    (
        "reservations without end",
        |dtb| {
            let total = dtb.len().next_multiple_of(16) + 16 + 8;
            dtb.resize(total, 0x11);
            header(dtb, 1, total as u32);
            header(dtb, 4, total as u32 - 24);
        },
        "the device tree is damaged: its memory reservation block at offset 0x18 is out of place",
    ),
    (
        "no tokens but NOP",
        |dtb| {
            let size = header_field(dtb, 9) as usize;
            for token in dtb[STRUCTURE..STRUCTURE + size].chunks_mut(4) {
                token.copy_from_slice(&[0, 0, 0, 4]);
            }
        },
        "the device tree is damaged: bad structure at offset 0x", // at the end of the block
    ),
    (
        "begins with END",
        |dtb| dtb[STRUCTURE + 3] = 9,
        "the device tree is damaged: bad structure at offset 0x38",
    ),
    (
        "unknown token",
        |dtb| dtb[STRUCTURE + 11] = 7,
        "the device tree is damaged: bad structure at offset 0x40",
    ),
    (
        "root with a name",
        |dtb| dtb[STRUCTURE + 4] = b'x',
        "the device tree is damaged: bad node name at offset 0x3c",
    ),
    (
        "property longer than the tree",
        |dtb| dtb[STRUCTURE + 12..STRUCTURE + 16].fill(0xff),
        "the device tree is damaged: bad structure at offset 0x40",
    ),
    (
        "property name outside the strings",
        |dtb| dtb[STRUCTURE + 16..STRUCTURE + 20].fill(0xff),
        "the device tree is damaged: bad property name at offset 0x40",
    ),
    (
        "property name not UTF-8",
        |dtb| {
            let strings = header_field(dtb, 3) as usize;
            dtb[strings] = 0xff;
        },
        "the device tree is damaged: bad property name at offset 0x40",
    ),
    (
        "node name not UTF-8",
        |dtb| patch(dtb, b"chosen\0", b"ch\xff\xfeen\0"),
        "the device tree is damaged: bad node name at offset 0x",
    ),
    (
        "node name with a space",
        |dtb| patch(dtb, b"chosen\0", b"ch sen\0"),
        "the device tree is damaged: bad node name at offset 0x",
    ),
    (
        "node name with two unit addresses",
        |dtb| patch(dtb, b"chosen\0", b"c@o@en\0"),
        "the device tree is damaged: bad node name at offset 0x",
    ),
    (
        "node name without NUL to the end",
        |dtb| {
            let begin = [&[0, 0, 0, 1], &b"chosen\0"[..]].concat();
            let at = dtb.windows(11).position(|w| w == begin).unwrap();
            let size = header_field(dtb, 9) as usize;
            dtb[at + 4..STRUCTURE + size].fill(b'a');
        },
        "the device tree is damaged: bad structure at offset 0x",
    ),
    (
        "nested 10000 deep",
        |dtb| {
            let nodes = [0, 0, 0, 1, b'n', 0, 0, 0].repeat(10_000);
            let strings = header_field(dtb, 3) as usize;
            let inserted = nodes.len() as u32;
            dtb.splice(strings - 8..strings - 8, nodes);
            for field in [1, 3, 9] {
                let old = header_field(dtb, field);
                header(dtb, field, old + inserted);
            }
        },
        "the device tree nests nodes more than 32 deep",
    ),
    (
        "two nodes of one name",
        |dtb| patch(dtb, b"cpu@1\0", b"cpu@0\0"),
        "the device tree has node /cpus/cpu@0 twice",
    ),
    (
        "two /chosen",
        |dtb| patch(dtb, b"\0\0\0\x01aliases\0", b"\0\0\0\x01chosen\0\0"),
        "the device tree has node /chosen twice",
    ),
    (
        "no END",
        |dtb| {
            let size = header_field(dtb, 9);
            header(dtb, 9, size - 4);
        },
        "the device tree is damaged: bad structure at offset 0x",
    ),
];

/// Trees that are well formed but say something that nothing can run on.
const REFUSED: &[(&str, Change, &str)] = &[
    (
        "no memory node",
        |b| {
            b.remove("/", "memory@40000000");
        },
        "no /memory node: the DTB names no RAM; pass the board's own DTB",
    ),
    (
        "memory of size 0",
        |b| {
            b.set(MEMORY, "reg", pairs(&[RAM, 0]));
        },
        "no /memory node: the DTB names no RAM; pass the board's own DTB",
    ),
    (
        "memory disabled",
        |b| {
            b.set(MEMORY, "status", text(&["disabled"]));
        },
        "no /memory node: the DTB names no RAM; pass the board's own DTB",
    ),
    (
        "memory without reg",
        |b| {
            b.unset(MEMORY, "reg");
        },
        "node /memory@40000000 cannot be used: reg is missing",
    ),
    (
        "memory reg of 3 cells",
        |b| {
            b.set(MEMORY, "reg", cells(&[0, 0x4000_0000, 1]));
        },
        "node /memory@40000000 cannot be used: reg has 12 bytes, not a multiple of 16",
    ),
    (
        "memory reg of 15 bytes",
        |b| {
            b.set(MEMORY, "reg", vec![0; 15]);
        },
        "node /memory@40000000 cannot be used: reg has 15 bytes, not a multiple of 16",
    ),
    (
        "memory reg empty",
        |b| {
            b.set(MEMORY, "reg", vec![]);
        },
        "node /memory@40000000 cannot be used: reg has 0 bytes, not a multiple of 16",
    ),
    (
        "memory wraps",
        |b| {
            b.set(MEMORY, "reg", pairs(&[u64::MAX - 0xfff, 0x2000]));
        },
        "node /memory@40000000 cannot be used: reg 0xfffffffffffff000 + 0x2000 runs over the end of the address space",
    ),
    (
        "memory overlaps itself",
        |b| {
            b.set(MEMORY, "reg", pairs(&[RAM, 0x2000, RAM + 0x1000, 0x2000]));
        },
        "/memory ranges [0x40000000, 0x40002000) and [0x40001000, 0x40003000) overlap; correct the DTB",
    ),
    (
        "memory named twice",
        |b| {
            b.add("/", memory_node("memory@1", RAM, RAM_BYTES));
        },
        "/memory ranges [0x40000000, 0xc0000000) and [0x40000000, 0xc0000000) overlap; correct the DTB",
    ),
    (
        "#address-cells 0",
        |b| {
            b.set("/", "#address-cells", cells(&[0]));
        },
        "node /memory@40000000 cannot be used: its parent has #address-cells = 0 and #size-cells = 2, 1 or 2 are understood",
    ),
    (
        "#address-cells 3",
        |b| {
            b.set("/", "#address-cells", cells(&[3]));
        },
        "node /memory@40000000 cannot be used: its parent has #address-cells = 3 and #size-cells = 2, 1 or 2 are understood",
    ),
    (
        "#size-cells 99",
        |b| {
            b.set("/", "#size-cells", cells(&[99]));
        },
        "node /memory@40000000 cannot be used: its parent has #address-cells = 2 and #size-cells = 99, 1 or 2 are understood",
    ),
    (
        "#size-cells 0",
        |b| {
            b.set("/", "#size-cells", cells(&[0]));
        },
        "node /memory@40000000 cannot be used: its parent has #address-cells = 2 and #size-cells = 0, 1 or 2 are understood",
    ),
    (
        "#address-cells of 3 bytes",
        |b| {
            b.set("/", "#address-cells", vec![0, 0, 2]);
        },
        "node /memory@40000000 cannot be used: its parent has an unreadable #address-cells and #size-cells = 2, 1 or 2 are understood",
    ),
    (
        "too many memory ranges",
        |b| {
            let list: Vec<u64> = (0..129).flat_map(|i| [RAM + i * 0x2000, 0x1000]).collect();
            b.set(MEMORY, "reg", pairs(&list));
        },
        "the device tree has more than 128 memory ranges",
    ),
    (
        "reservation wraps",
        |b| {
            b.reserve(u64::MAX, 2);
        },
        "memory reservation 0xffffffffffffffff + 0x2 runs over the end of the address space",
    ),
    (
        "firmware's memory unreadable",
        |b| {
            b.add(
                "/",
                node("reserved-memory", &[("#address-cells", cells(&[2]))]),
            )
            .add(
                "/reserved-memory",
                node("tee@0", &[("reg", cells(&[0, 0, 1, 2]))]),
            );
        },
        "node /reserved-memory/tee@0 cannot be used: reg has 16 bytes, not a multiple of 12",
    ),
    (
        "no /cpus",
        |b| {
            b.remove("/", "cpus");
        },
        "no CPU under /cpus; pass the board's own DTB",
    ),
    (
        "no CPU",
        |b| {
            b.remove("/cpus", "cpu@0").remove("/cpus", "cpu@1");
        },
        "no CPU under /cpus; pass the board's own DTB",
    ),
    (
        "CPU without reg",
        |b| {
            b.unset("/cpus/cpu@1", "reg");
        },
        "node /cpus/cpu@1 cannot be used: reg is missing",
    ),
    (
        "two CPUs with one MPIDR",
        |b| {
            b.set("/cpus/cpu@1", "reg", cells(&[0]));
        },
        "two CPUs under /cpus have MPIDR 0x0; correct the DTB",
    ),
    (
        "PSCI by magic",
        |b| {
            b.set("/psci", "method", text(&["magic"]));
        },
        "node /psci has a method that is neither \"smc\" nor \"hvc\"",
    ),
    (
        "no interrupt controller",
        |b| {
            b.remove("/", "intc@8000000");
        },
        "no GICv3 in the DTB; pass the board's own DTB",
    ),
    (
        "GICv2",
        |b| {
            b.set(GIC, "compatible", text(&["arm,cortex-a15-gic"]));
        },
        "interrupt controller /intc@8000000 is older than GICv3, which is required (QEMU: -M gic-version=3)",
    ),
    (
        "GIC without redistributor",
        |b| {
            b.set(GIC, "reg", pairs(&[0x800_0000, 0x1_0000]));
        },
        "node /intc@8000000 cannot be used: bad value of reg",
    ),
    (
        "GIC with more regions than reg",
        |b| {
            b.set(GIC, "#redistributor-regions", cells(&[2]));
        },
        "node /intc@8000000 cannot be used: bad value of reg",
    ),
    (
        "GIC with 4 billion regions",
        |b| {
            b.set(GIC, "#redistributor-regions", cells(&[u32::MAX]));
        },
        "the device tree has more than 128 redistributor regions",
    ),
    (
        "GIC with a stride of 1",
        |b| {
            b.set(GIC, "redistributor-stride", cells(&[1]));
        },
        "node /intc@8000000 cannot be used: bad value of redistributor-stride",
    ),
    (
        "no timer",
        |b| {
            b.remove("/", "timer");
        },
        "no arm,armv8-timer node with the virtual timer's interrupt; pass the board's own DTB",
    ),
    (
        "timer with two interrupts",
        |b| {
            b.set("/timer", "interrupts", cells(&[1, 13, 4, 1, 14, 4]));
        },
        "no arm,armv8-timer node with the virtual timer's interrupt; pass the board's own DTB",
    ),
    (
        "timer on SPIs",
        |b| {
            b.set("/timer", "interrupts", cells(&[0; 15]));
        },
        "no arm,armv8-timer node with the virtual timer's interrupt; pass the board's own DTB",
    ),
    (
        "timer on PPI 4294967295",
        |b| {
            b.set("/timer", "interrupts", cells(&[1, u32::MAX, 4].repeat(5)));
        },
        "no arm,armv8-timer node with the virtual timer's interrupt; pass the board's own DTB",
    ),
    (
        "interrupts of 99 cells",
        |b| {
            b.set(GIC, "#interrupt-cells", cells(&[99]));
        },
        "no arm,armv8-timer node with the virtual timer's interrupt; pass the board's own DTB",
    ),
    (
        "initrd backwards",
        |b| {
            b.set("/chosen", "linux,initrd-end", cells(&[0x1000]));
        },
        "/chosen has no usable initrd: linux,initrd-start = 0x48000000, linux,initrd-end = 0x1000",
    ),
    (
        "initrd without end",
        |b| {
            b.unset("/chosen", "linux,initrd-end");
        },
        "/chosen has no usable initrd: linux,initrd-start = 0x48000000, linux,initrd-end = missing or unreadable",
    ),
    (
        "initrd of 3 bytes",
        |b| {
            b.set("/chosen", "linux,initrd-start", vec![1, 2, 3]);
        },
        "/chosen has no usable initrd: linux,initrd-start = missing or unreadable, linux,initrd-end = 0x49000000",
    ),
    (
        "module without reg",
        |b| {
            b.unset("/chosen", "linux,initrd-start")
                .unset("/chosen", "linux,initrd-end")
                .add(
                    "/chosen",
                    node("module@1", &[("compatible", text(&["multiboot,module"]))]),
                );
        },
        "node /chosen/module@1 cannot be used: reg is missing",
    ),
    (
        "bootargs not UTF-8",
        |b| {
            b.set("/chosen", "bootargs", vec![0xc0, 0x80, 0]);
        },
        "/chosen has bootargs that are not UTF-8 or longer than 4096 bytes",
    ),
    (
        "bootargs of 1 MiB",
        |b| {
            b.set("/chosen", "bootargs", vec![b'x'; 1 << 20]);
        },
        "/chosen has bootargs that are not UTF-8 or longer than 4096 bytes",
    ),
    (
        "100000 nodes",
        |b| {
            let mut many = node("many", &[]);
            for i in 0..100_000 {
                many.add_child(node(&format!("n{i}"), &[]));
            }
            b.add("/", many);
        },
        "the device tree has more than 16384 nodes",
    ),
];

/// Tag regions that are refused, the rest of the machine being in order. The storage becomes reserved, or
/// MTE is off for all where it is unknown (`; where` in the message).
const REGIONS: &[(&str, Change, &str)] = &[
    (
        "phandle missing",
        |b| {
            b.unset(STORAGE, "tagged-memory");
        },
        "required property tagged-memory is missing; its tag storage stays static",
    ),
    (
        "phandle dangling",
        |b| {
            b.set(STORAGE, "tagged-memory", cells(&[0x99]));
        },
        "tagged-memory names phandle 0x99, which no node has; its tag storage stays static",
    ),
    (
        "phandle of two nodes",
        |b| {
            b.set("/timer", "phandle", cells(&[MEMORY_PHANDLE]));
        },
        "tagged-memory names phandle 0x8100, which several nodes have; its tag storage stays static",
    ),
    (
        "phandle of itself",
        |b| {
            b.set(STORAGE, "tagged-memory", cells(&[0x55]))
                .set(STORAGE, "phandle", cells(&[0x55]));
        },
        "tagged-memory names /reserved-memory/tag-storage@bc000000, which is not a /memory node in use; its tag storage stays static",
    ),
    (
        "phandle of the GIC",
        |b| {
            b.set(STORAGE, "tagged-memory", cells(&[GIC_PHANDLE]));
        },
        "tagged-memory names /intc@8000000, which is not a /memory node in use; its tag storage stays static",
    ),
    (
        "phandle of disabled memory",
        |b| {
            b.add("/", memory_node("memory@900000000", 0x9_0000_0000, 0x1000))
                .set("/memory@900000000", "phandle", cells(&[0x66]))
                .set("/memory@900000000", "status", text(&["disabled"]))
                .set(STORAGE, "tagged-memory", cells(&[0x66]));
        },
        "tagged-memory names /memory@900000000, which is not a /memory node in use; its tag storage stays static",
    ),
    (
        "phandle of 8 bytes",
        |b| {
            b.set(STORAGE, "tagged-memory", pairs(&[MEMORY_PHANDLE.into()]));
        },
        "property tagged-memory has a length of 8 bytes; its tag storage stays static",
    ),
    (
        "tagged memory of two entries",
        |b| {
            b.set(
                MEMORY,
                "reg",
                pairs(&[RAM, TAGGED_BYTES, 0x8_8000_0000, 0x1000]),
            );
        },
        "tagged-memory names /memory@40000000, whose reg has 2 entries, one is required; its tag storage stays static",
    ),
    (
        "tagged memory of an entry and an empty one",
        |b| {
            b.set(MEMORY, "reg", pairs(&[RAM, TAGGED_BYTES, 0, 0]));
        },
        "tagged-memory names /memory@40000000, whose reg has 2 entries, one is required; its tag storage stays static",
    ),
    (
        "tagged memory empty",
        |b| {
            b.set(MEMORY, "reg", pairs(&[RAM, 0]));
        },
        "reg of /memory@40000000 has size 0; its tag storage stays static",
    ),
    (
        "tagged memory without tags",
        |b| {
            b.set(MEMORY, "arm,no-mte", vec![]);
        },
        "tagged-memory names /memory@40000000, which says arm,no-mte; its tag storage stays static",
    ),
    (
        "block-size missing",
        |b| {
            b.unset(STORAGE, "block-size");
        },
        "required property block-size is missing; its tag storage stays static",
    ),
    (
        "block-size of 8 bytes",
        |b| {
            b.set(STORAGE, "block-size", pairs(&[0x1000]));
        },
        "property block-size has a length of 8 bytes; its tag storage stays static",
    ),
    (
        "not reusable",
        |b| {
            b.unset(STORAGE, "reusable");
        },
        "required property reusable is missing; its tag storage stays static",
    ),
    (
        "disabled",
        |b| {
            b.set(STORAGE, "status", text(&["disabled"]));
        },
        "its status is not \"okay\"; its tag storage stays static",
    ),
    (
        "storage of two entries",
        |b| {
            b.set(
                STORAGE,
                "reg",
                pairs(&[TAG_BASE, 0x1000, TAG_BASE + 0x1000, 0x1000]),
            );
        },
        "reg has 2 entries, one is required; its tag storage stays static",
    ),
    (
        "storage without reg",
        |b| {
            b.unset(STORAGE, "reg");
        },
        "reg is missing; where its tag storage is cannot be known: MTE is off for all guests",
    ),
    (
        "storage empty",
        |b| {
            b.set(STORAGE, "reg", pairs(&[TAG_BASE, 0]));
        },
        "reg of /reserved-memory/tag-storage@bc000000 has size 0; where its tag storage is cannot be known: MTE is off for all guests",
    ),
    (
        "storage wraps",
        |b| {
            b.set(STORAGE, "reg", pairs(&[u64::MAX, 0x1000]));
        },
        "reg 0xffffffffffffffff + 0x1000 runs over the end of the address space; where its tag storage is cannot be known: MTE is off for all guests",
    ),
    (
        "storage with cells of its own kind",
        |b| {
            b.set("/reserved-memory", "#address-cells", cells(&[3]));
        },
        "its parent has #address-cells = 3 and #size-cells = 2, 1 or 2 are understood; where its tag storage is cannot be known: MTE is off for all guests",
    ),
    (
        "storage outside /reserved-memory",
        |b| {
            let child = b
                .at("/reserved-memory")
                .remove_child("tag-storage@bc000000");
            b.add("/", child.unwrap());
        },
        "it is not a child of /reserved-memory; its tag storage stays static",
    ),
    (
        "storage-base outside memory",
        |b| {
            b.set(STORAGE, "storage-base", pairs(&[0x1000]));
        },
        "storage-base 0x1000 lies inside no taggable /memory node; its tag storage stays static",
    ),
    (
        "storage-base in memory without tags",
        |b| {
            b.set(STORAGE, "storage-base", pairs(&[REST_BASE]));
        },
        "storage-base 0xbfe00000 lies inside no taggable /memory node; its tag storage stays static",
    ),
    (
        "storage-base of 5 bytes",
        |b| {
            b.set(STORAGE, "storage-base", vec![0; 5]);
        },
        "property storage-base has a length of 5 bytes; its tag storage stays static",
    ),
];

#[test]
fn damaged_bytes_are_refused_with_one_clear_line() {
    for (name, damage, expected) in DAMAGED {
        let mut dtb = virt().dtb();
        damage(&mut dtb);
        let message = message(&dtb);
        assert!(message.starts_with(expected), "{name}: {message}");
        assert!(!message.contains('\n'), "{name}");
    }
}

#[test]
fn machines_that_cannot_be_run_on_are_refused_with_one_clear_line() {
    for (name, change, expected) in REFUSED {
        let mut board = virt();
        change(&mut board);
        assert_eq!(message(&board.dtb()), *expected, "{name}");
    }
}

/// What must hold of a machine with one refused region.
fn check_refused(name: &str, machine: &Machine, expected: &str) {
    assert!(machine.tag_regions.is_empty(), "{name}: used all the same");
    let [refusal] = &machine.refusals[..] else {
        panic!("{name}: {:?}", machine.refusals);
    };
    let line = refusal.to_string();
    let prefix = format!("tag region {} refused: ", refusal.path);
    assert_eq!(line.strip_prefix(&prefix), Some(expected), "{name}");
    let storage: Vec<_> = machine
        .reserved
        .iter()
        .filter(|r| r.by == ReservedBy::TagStorage)
        .collect();
    let unknown = expected.contains("; where its");
    assert_eq!(storage.is_empty(), unknown, "{name}");
    assert_eq!(machine.unknown_tag_storage().is_some(), unknown, "{name}");
}

#[test]
fn a_bad_tag_region_is_refused_whole_and_its_storage_kept() {
    for (name, change, expected) in REGIONS {
        let mut board = tagged();
        change(&mut board);
        let machine = discover(&board.dtb()).unwrap_or_else(|error| panic!("{name}: {error}"));
        check_refused(name, &machine, expected);
    }
}

#[test]
fn a_bad_region_does_not_take_a_good_one_with_it() {
    let mut board = tagged();
    let bad = node(
        "bad@1000",
        &[
            ("compatible", text(&["arm,mte-tag-storage"])),
            ("reg", pairs(&[0x1000, 0x1000])),
        ],
    );
    board.add("/reserved-memory", bad);
    let machine = discover(&board.dtb()).unwrap();
    assert_eq!(machine.tag_regions.len(), 1);
    assert_eq!(machine.refusals.len(), 1);
}

#[test]
fn the_address_in_x0_is_checked_before_it_is_read() {
    let message = |address| check_address(address).unwrap_err().to_string();
    assert_eq!(check_address(0x4800_0000), Ok(()));
    assert_eq!(
        message(0),
        "no device tree: x0 does not point at one; boot with a DTB (booti ADDR INITRD DTB)"
    );
    assert_eq!(
        message(0x4800_0004),
        "the device tree at 0x48000004 is not aligned to 8 bytes; load it at a multiple of 8"
    );
}

#[test]
fn the_size_is_read_from_the_header_alone() {
    let dtb = virt().dtb();
    assert_eq!(dtb_size(&dtb[..40]), Ok(dtb.len()));
    let mut big = dtb[..40].to_vec();
    header(&mut big, 1, MAX_DTB_BYTES as u32);
    assert_eq!(dtb_size(&big), Ok(MAX_DTB_BYTES));
    header(&mut big, 1, MAX_DTB_BYTES as u32 + 1);
    assert!(dtb_size(&big).is_err());
}

#[test]
fn every_prefix_of_a_tree_is_refused() {
    let dtb = tagged().dtb();
    for bytes in 0..dtb.len() {
        let mut short = dtb[..bytes].to_vec();
        assert!(discover(&short).is_err(), "{bytes}");
        if bytes >= 40 {
            // The same where the header agrees.
            header(&mut short, 1, bytes as u32);
            assert!(discover(&short).is_err(), "{bytes}");
        }
    }
}
