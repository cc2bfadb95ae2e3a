//! Device trees that are in order: what is found, and where.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic here is a failure

mod common;

use common::*;
use platform::fdt::discover;
use platform::{
    Conduit, Cpu, Interrupt, Machine, MemRange, Memory, PsciVersion, Reserved, ReservedBy,
    TagRegionNode, Trigger,
};

fn range(base: u64, size: u64) -> MemRange {
    MemRange::new(base, size).unwrap()
}

fn level(intid: u32) -> Interrupt {
    let trigger = Trigger::Level;
    Interrupt { intid, trigger }
}

fn machine(board: &mut Board) -> Machine {
    discover(&board.dtb()).unwrap()
}

fn region(block_bytes: u32) -> TagRegionNode {
    TagRegionNode {
        tag_base: TAG_BASE,
        tag_bytes: TAG_BYTES,
        tagged_base: RAM,
        tagged_bytes: TAGGED_BYTES,
        block_bytes,
        path: STORAGE.into(),
    }
}

#[test]
fn the_virt_machine_is_found_whole() {
    let found = machine(&mut virt());
    let taggable = true;
    let ram = range(RAM, RAM_BYTES);
    assert_eq!(
        found.memory,
        [Memory {
            range: ram,
            taggable
        }]
    );
    assert_eq!(found.memory_bytes(), RAM_BYTES);
    let psci = true;
    assert_eq!(found.cpus, [Cpu { mpidr: 0, psci }, Cpu { mpidr: 1, psci }]);
    let firmware = found.psci.unwrap();
    assert_eq!(firmware.conduit, Conduit::Smc);
    assert_eq!(firmware.version, PsciVersion::V1_0);
    assert_eq!(found.gic.distributor, range(0x800_0000, 0x1_0000));
    assert_eq!(found.gic.redistributors, [range(0x80a_0000, 0xf6_0000)]);
    assert_eq!(found.gic.stride, None);
    assert_eq!(found.gic.maintenance, Some(level(25)));
    assert_eq!(found.timer.virt, level(27));
    assert_eq!(found.timer.phys, Some(level(30)));
    assert_eq!(found.timer.phys_secure, Some(level(29)));
    assert_eq!(found.timer.hyp, Some(level(26)));
    assert_eq!(found.timer.hyp_virt, Some(level(28)));
    let uart = found.uart.unwrap();
    assert_eq!(uart.range, range(0x900_0000, 0x1000));
    assert_eq!(uart.interrupt, Some(level(33)));
    assert_eq!(uart.path, "/pl011@9000000");
    assert_eq!(found.initrd, Some(range(0x4800_0000, 0x100_0000)));
    assert_eq!(found.bootargs.as_deref(), Some("quiet"));
    assert!(found.tag_regions.is_empty() && found.refusals.is_empty());
    assert!(found.reserved.is_empty());
}

#[test]
fn the_rfc_binding_gives_a_region_and_its_storage_stays_out_of_the_reserved_ranges() {
    let found = machine(&mut tagged());
    assert_eq!(found.tag_regions, [region(0x1000)]);
    assert!(found.refusals.is_empty() && found.reserved.is_empty());
    // The storage's node joins its neighbour; the rest, which has no tags, does not.
    let tagged = range(RAM, TAGGED_BYTES + TAG_BYTES);
    let rest = range(REST_BASE, REST_BYTES);
    let memory = |range, taggable| Memory { range, taggable };
    assert_eq!(found.memory, [memory(tagged, true), memory(rest, false)]);
}

#[test]
fn the_old_name_of_the_phandle_is_understood() {
    let mut board = tagged();
    board
        .unset(STORAGE, "tagged-memory")
        .set(STORAGE, "memory", cells(&[MEMORY_PHANDLE]));
    assert_eq!(machine(&mut board).tag_regions, [region(0x1000)]);
}

#[test]
fn the_older_binding_gives_the_same_region() {
    let mut board = tagged_older();
    assert_eq!(machine(&mut board).tag_regions, [region(0x1000)]);
    board.set(STORAGE, "block-size", cells(&[0x2000]));
    assert_eq!(machine(&mut board).tag_regions, [region(0x2000)]);
    // An address of one cell will do.
    board.set(STORAGE, "storage-base", cells(&[RAM as u32]));
    assert_eq!(machine(&mut board).tag_regions, [region(0x2000)]);
}

#[test]
fn the_older_binding_ends_with_the_memory() {
    let mut board = tagged_older();
    board.set(STORAGE, "storage-base", pairs(&[RAM + 0x10_0000]));
    let found = machine(&mut board);
    assert_eq!(found.tag_regions[0].tagged_bytes, TAGGED_BYTES - 0x10_0000);
}

#[test]
fn a_strange_block_size_is_for_the_geometry_check_to_refuse() {
    for block in [0, 1, 0x1001, 0x3000, u32::MAX] {
        let mut board = tagged();
        board.set(STORAGE, "block-size", cells(&[block]));
        assert_eq!(machine(&mut board).tag_regions, [region(block)]);
    }
}

#[test]
fn two_regions_are_both_found() {
    let mut board = tagged();
    board
        .add(
            "/",
            memory_node("memory@880000000", 0x8_8000_0000, 0x4000_0000),
        )
        .set("/memory@880000000", "phandle", cells(&[0x77]))
        .add(
            "/reserved-memory",
            node(
                "tag-storage@8c0000000",
                &[
                    ("compatible", text(&["arm,mte-tag-storage"])),
                    ("reg", pairs(&[0x8_c000_0000, 0x200_0000])),
                    ("block-size", cells(&[0x2000])),
                    ("tagged-memory", cells(&[0x77])),
                    ("reusable", vec![]),
                ],
            ),
        );
    let found = machine(&mut board);
    assert_eq!(found.tag_regions.len(), 2);
    assert_eq!(found.tag_regions[1].tagged_base, 0x8_8000_0000);
    assert_eq!(found.tag_regions[1].block_bytes, 0x2000);
}

#[test]
fn memory_is_sorted_and_joined_only_with_its_kind() {
    let mut board = virt();
    board
        .set(
            MEMORY,
            "reg",
            pairs(&[0x6000_0000, 0x1000_0000, 0x4000_0000, 0x2000_0000, 0, 0]),
        )
        .add("/", memory_node("memory@70000000", 0x7000_0000, 0x1000))
        .set("/memory@70000000", "arm,no-mte", vec![])
        .add("/", memory_node("memory@0", 0x1000_0000, 0x1000));
    let memory = |base, size, taggable| Memory {
        range: range(base, size),
        taggable,
    };
    assert_eq!(
        machine(&mut board).memory,
        [
            memory(0x1000_0000, 0x1000, true),
            memory(0x4000_0000, 0x3000_0000, true),
            memory(0x7000_0000, 0x1000, false),
        ]
    );
}

#[test]
fn memory_without_tags_says_so_by_a_property_or_by_its_compatible() {
    let mut board = virt();
    board
        .add("/", memory_node("memory@d0000000", 0xd000_0000, 0x1000))
        .set("/memory@d0000000", "compatible", b"arm,no-mte\0".to_vec())
        .add("/", memory_node("memory@e0000000", 0xe000_0000, 0x1000))
        .set("/memory@e0000000", "arm,no-mte", vec![]);
    let memory = machine(&mut board).memory;
    let kinds: Vec<bool> = memory.iter().map(|memory| memory.taggable).collect();
    assert_eq!(kinds, [true, false, false]);
}

#[test]
fn reserved_ranges_come_from_both_places() {
    let mut board = tagged();
    board
        .reserve(0x4000_0000, 0x1_0000)
        .reserve(0x5000_0000, 0)
        .add(
            "/reserved-memory",
            node(
                "secure@7e000000",
                &[("reg", pairs(&[0x7e00_0000, 0x100_0000]))],
            ),
        )
        .add(
            "/reserved-memory",
            node("cma", &[("size", pairs(&[0x100_0000]))]),
        )
        .add(
            "/reserved-memory",
            node(
                "off@1000",
                &[
                    ("reg", pairs(&[0x1000, 0x1000])),
                    ("status", text(&["disabled"])),
                ],
            ),
        );
    let reserved = |base, size, by| Reserved {
        range: range(base, size),
        by,
    };
    assert_eq!(
        machine(&mut board).reserved,
        [
            reserved(0x4000_0000, 0x1_0000, ReservedBy::MemReserve),
            reserved(0x7e00_0000, 0x100_0000, ReservedBy::Node),
        ]
    );
}

#[test]
fn one_cell_addresses_are_read() {
    let mut board = virt();
    board
        .set("/", "#address-cells", cells(&[1]))
        .set("/", "#size-cells", cells(&[1]))
        .set(MEMORY, "reg", cells(&[0x4000_0000, 0x8000_0000]))
        .set("/pl011@9000000", "reg", cells(&[0x900_0000, 0x1000]))
        .set(
            GIC,
            "reg",
            cells(&[0x800_0000, 0x1_0000, 0x80a_0000, 0xf6_0000]),
        );
    let found = machine(&mut board);
    assert_eq!(found.memory[0].range, range(RAM, RAM_BYTES));
    assert_eq!(found.gic.redistributors, [range(0x80a_0000, 0xf6_0000)]);
}

#[test]
fn devices_behind_buses_are_translated() {
    // /soc maps 0x0 to 0x1_0000_0000, /soc/apb is identity.
    let mut board = virt();
    let bus = |name, ranges| {
        node(
            name,
            &[
                ("#address-cells", cells(&[1])),
                ("#size-cells", cells(&[1])),
                ("ranges", ranges),
            ],
        )
    };
    let uart = node(
        "serial@1000",
        &[
            ("compatible", text(&["arm,pl011"])),
            ("reg", cells(&[0x1000, 0x1000])),
            ("interrupts", cells(&[0, 5, 1])),
        ],
    );
    board
        .remove("/", "pl011@9000000")
        .add("/", bus("soc", cells(&[0, 1, 0, 0x10_0000])))
        .add("/soc", bus("apb", vec![]))
        .add("/soc/apb", uart)
        .set(
            "/chosen",
            "stdout-path",
            text(&["/soc/apb/serial:115200n8"]),
        );
    let uart = machine(&mut board).uart.unwrap();
    assert_eq!(uart.range, range(0x1_0000_1000, 0x1000));
    let trigger = Trigger::Edge;
    assert_eq!(uart.interrupt, Some(Interrupt { intid: 37, trigger }));
    // Outside the window, or below a bus without ranges: no console rather than a wrong one.
    board.set("/soc", "ranges", cells(&[0, 1, 0, 0x1800]));
    assert_eq!(machine(&mut board).uart, None);
    board.unset("/soc", "ranges");
    assert_eq!(machine(&mut board).uart, None);
}

#[test]
fn stdout_may_be_an_alias_and_the_first_pl011_is_the_fallback() {
    let mut board = virt();
    let second = node(
        "pl011@9040000",
        &[
            ("compatible", text(&["arm,pl011"])),
            ("reg", pairs(&[0x904_0000, 0x1000])),
        ],
    );
    board
        .add("/", second)
        .set("/aliases", "serial1", text(&["/pl011@9040000"]))
        .set("/chosen", "stdout-path", text(&["serial1:115200"]));
    let path = |board: &mut Board| machine(board).uart.unwrap().path;
    assert_eq!(path(&mut board), "/pl011@9040000");
    for bad in ["serial9", "/nowhere", "", "/cpus", "serial0\0x"] {
        board.set("/chosen", "stdout-path", text(&[bad]));
        assert_eq!(path(&mut board), "/pl011@9000000", "{bad}");
    }
    board.set("/pl011@9000000", "status", text(&["disabled"]));
    assert_eq!(path(&mut board), "/pl011@9040000");
    assert_eq!(machine(&mut board).uart.unwrap().interrupt, None);
}

#[test]
fn an_interrupt_of_another_controller_is_none() {
    let mut board = virt();
    board.set("/pl011@9000000", "interrupt-parent", cells(&[0x1234]));
    assert_eq!(machine(&mut board).uart.unwrap().interrupt, None);
    board.set(
        "/pl011@9000000",
        "interrupts-extended",
        cells(&[GIC_PHANDLE, 0, 7, 4]),
    );
    assert_eq!(machine(&mut board).uart.unwrap().interrupt, Some(level(39)));
    // SPI 988 and PPI 16 do not exist, nor type 4 or no trigger.
    for bad in [[0, 988, 4], [1, 16, 4], [4, 0, 4], [0, 1, 0]] {
        let mut value = cells(&[GIC_PHANDLE]);
        value.extend(cells(&bad));
        board.set("/pl011@9000000", "interrupts-extended", value);
        assert_eq!(machine(&mut board).uart.unwrap().interrupt, None);
    }
    board.set(
        "/pl011@9000000",
        "interrupts-extended",
        cells(&[GIC_PHANDLE, 2, 3, 4]),
    );
    assert_eq!(
        machine(&mut board).uart.unwrap().interrupt,
        Some(level(4099))
    );
}

#[test]
fn timer_interrupts_may_be_named() {
    let mut board = virt();
    board
        .set(
            "/timer",
            "interrupt-names",
            text(&["virt", "hyp-phys", "phys"]),
        )
        .set(
            "/timer",
            "interrupts",
            cells(&[1, 11, 8, 1, 10, 8, 1, 14, 8]),
        )
        .set("/timer", "clock-frequency", cells(&[62_500_000]));
    let timer = machine(&mut board).timer;
    assert_eq!(timer.virt, level(27));
    assert_eq!(timer.hyp, Some(level(26)));
    assert_eq!(timer.phys, Some(level(30)));
    assert_eq!(timer.phys_secure, None);
    assert_eq!(timer.frequency, Some(62_500_000));
}

#[test]
fn redistributor_regions_and_stride_are_read() {
    let mut board = virt();
    board
        .set(GIC, "#redistributor-regions", cells(&[2]))
        .set(GIC, "redistributor-stride", pairs(&[0x4_0000]))
        .set(
            GIC,
            "reg",
            pairs(&[
                0x800_0000,
                0x1_0000,
                0x80a_0000,
                0x10_0000,
                0x1_0000_0000,
                0x20_0000,
                0x900,
                0x10,
            ]),
        );
    let gic = machine(&mut board).gic;
    assert_eq!(gic.stride, Some(0x4_0000));
    assert_eq!(
        gic.redistributors,
        [
            range(0x80a_0000, 0x10_0000),
            range(0x1_0000_0000, 0x20_0000)
        ]
    );
}

#[test]
fn cpus_of_all_levels_of_affinity_are_read_and_failed_ones_left_out() {
    let mut board = virt();
    board
        .set("/cpus", "#address-cells", cells(&[2]))
        .set("/cpus/cpu@0", "reg", cells(&[1, 0x8100_0203]))
        .set("/cpus/cpu@1", "reg", cells(&[0, 2]))
        .set("/cpus/cpu@1", "enable-method", text(&["spin-table"]))
        .add(
            "/cpus",
            node(
                "cpu@9",
                &[("reg", cells(&[0, 9])), ("status", text(&["fail-ecc"]))],
            ),
        )
        .add("/cpus", node("cpu-map", &[]));
    let cpu = |mpidr, psci| Cpu { mpidr, psci };
    // The bits of MPIDR that are no affinity are dropped.
    assert_eq!(
        machine(&mut board).cpus,
        [cpu(0x1_0000_0203, true), cpu(2, false)]
    );
}

#[test]
fn psci_versions_are_told_apart() {
    let mut board = virt();
    board
        .set("/psci", "compatible", text(&["arm,psci-0.2"]))
        .set("/psci", "method", text(&["hvc"]));
    let psci = machine(&mut board).psci.unwrap();
    assert_eq!(psci.version, PsciVersion::V0_2);
    assert_eq!(psci.conduit, Conduit::Hvc);
    board.set("/psci", "compatible", text(&["arm,psci"]));
    assert_eq!(machine(&mut board).psci, None);
}

#[test]
fn an_empty_initrd_is_none_and_bootargs_may_lack_their_nul() {
    let mut board = virt();
    board
        .set("/chosen", "linux,initrd-end", cells(&[0x4800_0000]))
        .set("/chosen", "bootargs", b"a b".to_vec());
    let found = machine(&mut board);
    assert_eq!(found.initrd, None);
    assert_eq!(found.bootargs.as_deref(), Some("a b"));
    board.remove("/", "chosen");
    let found = machine(&mut board);
    assert_eq!((found.initrd, found.bootargs), (None, None));
    assert!(found.uart.is_some());
}

/// `/chosen` as a multiboot loader leaves it: modules, each with its models and its `reg`.
fn modules(modules: &[(&str, &[&str], u64)]) -> Board {
    let mut board = virt();
    board
        .unset("/chosen", "linux,initrd-start")
        .unset("/chosen", "linux,initrd-end")
        .set("/chosen", "#address-cells", cells(&[2]))
        .set("/chosen", "#size-cells", cells(&[2]));
    for (name, models, base) in modules {
        let properties = [
            ("compatible", text(models)),
            ("reg", pairs(&[*base, 0x1000])),
        ];
        board.add("/chosen", node(name, &properties));
    }
    board
}

#[test]
fn without_an_initrd_the_bundle_is_a_module() {
    const KERNEL: &[&str] = &["multiboot,kernel", "multiboot,module"];
    const RAMDISK: &[&str] = &["multiboot,ramdisk", "multiboot,module"];
    const PLAIN: &[&str] = &["multiboot,module"];
    let (first, second, third) = (0x4800_0000, 0x4900_0000, 0x4a00_0000);
    let found = |list: &[(&str, &[&str], u64)]| machine(&mut modules(list)).initrd;
    let at = |base| Some(range(base, 0x1000));
    assert_eq!(found(&[]), None);
    assert_eq!(found(&[("module@1", &["other"], first)]), None);
    for alone in [KERNEL, RAMDISK, PLAIN, &["multiboot,kernel"]] {
        assert_eq!(found(&[("module@1", alone, first)]), at(first));
    }
    let kernel = ("module@1", &["multiboot,kernel"][..], first);
    let (plain, ramdisk) = (("module@2", PLAIN, second), ("module@3", RAMDISK, third));
    assert_eq!(found(&[kernel, plain]), at(second));
    assert_eq!(found(&[kernel, plain, ramdisk]), at(third));
    assert_eq!(found(&[("module@1", KERNEL, first), plain]), at(first));
    // An initrd goes first.
    let mut board = modules(&[ramdisk]);
    board
        .set("/chosen", "linux,initrd-start", cells(&[0x4b00_0000]))
        .set("/chosen", "linux,initrd-end", cells(&[0x4b00_1000]));
    assert_eq!(machine(&mut board).initrd, at(0x4b00_0000));
}

#[test]
fn deleted_nodes_and_properties_leave_nothing_behind() {
    // NOP tokens where QEMU and boot loaders delete: between properties, before and between nodes.
    let mut board = tagged();
    board
        .add("/", node("nopnode", &[]))
        .add("/cpus", node("nopnod2", &[]));
    for path in ["/", MEMORY, "/cpus/cpu@0", "/chosen"] {
        board.set(path, "gone", cells(&[0xfeed_face]));
        board.set(path, "kept", cells(&[1]));
    }
    let mut dtb = board.dtb();
    let nops = [0, 0, 0, 4].repeat(4);
    for name in [b"nopnode\0", b"nopnod2\0"] {
        let node = [&[0, 0, 0, 1], &name[..], &[0, 0, 0, 2]].concat();
        patch(&mut dtb, &node, &nops);
    }
    while let Some(at) = dtb
        .windows(4)
        .position(|w| w == 0xfeed_face_u32.to_be_bytes())
    {
        dtb[at - 12..at + 4].copy_from_slice(&nops);
    }
    let found = discover(&dtb).unwrap();
    let clean = machine(&mut tagged());
    assert_eq!(
        found,
        Machine {
            dtb_bytes: dtb.len(),
            ..clean
        }
    );
}

#[test]
fn long_names_of_real_boards_do_not_hide_what_is_near_them() {
    let mut board = virt();
    let long = "a-bus-with-a-name-of-more-than-thirty-one-characters@12345678";
    board
        .set("/pl011@9000000", "snps,dis-del-phy-power-chg-quirk", vec![])
        .set("/", "vendor,*~odd", vec![])
        .add(
            "/",
            node(
                long,
                &[
                    ("#address-cells", cells(&[2])),
                    ("#size-cells", cells(&[2])),
                    ("ranges", vec![]),
                ],
            ),
        );
    let uart = board.at("/").remove_child("pl011@9000000").unwrap();
    board.at("/").child_mut(long).unwrap().add_child(uart);
    let uart = machine(&mut board).uart.unwrap();
    assert_eq!(uart.range, range(0x900_0000, 0x1000));
    assert_eq!(uart.interrupt, Some(level(33)));
}

#[test]
fn bytes_after_the_tree_do_not_matter() {
    let mut dtb = tagged().dtb();
    let bytes = dtb.len();
    dtb.resize(bytes + 4096, 0xff);
    assert_eq!(discover(&dtb).unwrap().dtb_bytes, bytes);
    assert_eq!(platform::fdt::dtb_size(&dtb[..40]), Ok(bytes));
}
