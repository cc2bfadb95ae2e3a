//! What a guest reads from its device tree.

use super::*;
use dtoolkit::fdt::Fdt;
use dtoolkit::{Node as _, Property as _};

const MIB: u64 = 1 << 20;

fn machine() -> GuestMachine<'static> {
    GuestMachine {
        memory_bytes: 512 * MIB,
        mpidrs: &[0x8000_0000, 0x8000_0001, 0x8000_0100],
        initrd: Some(0x4800_0000..0x4812_3456),
        bootargs: "console=ttyAMA0 quiet",
        rng_seed: &[7; 32],
        kaslr_seed: None,
        uart_clock_hz: UART_CLOCK_HZ,
    }
}

/// Returns the value of `/path:property` of a device tree just built.
fn property(fdt: &[u8], path: &str, name: &str) -> Option<Vec<u8>> {
    let fdt = Fdt::new(fdt).unwrap();
    let node = fdt.find_node(path).unwrap_or_else(|| panic!("no {path}"));
    node.property(name)
        .map(|property| property.value().to_vec())
}

fn u32s(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

#[test]
fn the_tree_reads_back_as_qemu_virt() {
    let fdt = build(&machine()).unwrap();
    let expected: &[(&str, &str, Vec<u8>)] = &[
        ("/", "#address-cells", u32s(&[2])),
        ("/", "#size-cells", u32s(&[2])),
        ("/", "interrupt-parent", u32s(&[1])),
        ("/memory@40000000", "device_type", b"memory\0".to_vec()),
        (
            "/memory@40000000",
            "reg",
            u32s(&[0, 0x4000_0000, 0, 512 << 20]),
        ),
        ("/cpus", "#address-cells", u32s(&[1])),
        ("/cpus", "#size-cells", u32s(&[0])),
        ("/cpus/cpu@0", "reg", u32s(&[0])),
        ("/cpus/cpu@1", "reg", u32s(&[1])),
        ("/cpus/cpu@100", "reg", u32s(&[0x100])),
        ("/cpus/cpu@100", "enable-method", b"psci\0".to_vec()),
        ("/cpus/cpu@100", "compatible", b"arm,armv8\0".to_vec()),
        (
            "/psci",
            "compatible",
            b"arm,psci-1.0\0arm,psci-0.2\0".to_vec(),
        ),
        ("/psci", "method", b"hvc\0".to_vec()),
        ("/intc@8000000", "compatible", b"arm,gic-v3\0".to_vec()),
        ("/intc@8000000", "interrupt-controller", Vec::new()),
        ("/intc@8000000", "#interrupt-cells", u32s(&[3])),
        ("/intc@8000000", "phandle", u32s(&[1])),
        (
            "/intc@8000000",
            "reg",
            u32s(&[0, 0x0800_0000, 0, 0x1_0000, 0, 0x080a_0000, 0, 0x6_0000]),
        ),
        (
            "/timer",
            "interrupts",
            u32s(&[1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4]),
        ),
        (
            "/pl011@9000000",
            "compatible",
            b"arm,pl011\0arm,primecell\0".to_vec(),
        ),
        ("/pl011@9000000", "reg", u32s(&[0, 0x0900_0000, 0, 0x1000])),
        ("/pl011@9000000", "interrupts", u32s(&[0, 1, 4])),
        ("/pl011@9000000", "clocks", u32s(&[2, 2])),
        (
            "/pl011@9000000",
            "clock-names",
            b"uartclk\0apb_pclk\0".to_vec(),
        ),
        ("/apb-pclk", "phandle", u32s(&[2])),
        ("/apb-pclk", "#clock-cells", u32s(&[0])),
        ("/apb-pclk", "clock-frequency", u32s(&[24_000_000])),
        ("/chosen", "stdout-path", b"/pl011@9000000\0".to_vec()),
        ("/chosen", "bootargs", b"console=ttyAMA0 quiet\0".to_vec()),
        ("/chosen", "linux,initrd-start", u32s(&[0, 0x4800_0000])),
        ("/chosen", "linux,initrd-end", u32s(&[0, 0x4812_3456])),
        ("/chosen", "rng-seed", vec![7; 32]),
        ("/aliases", "serial0", b"/pl011@9000000\0".to_vec()),
    ];
    for (path, name, value) in expected {
        let found = property(&fdt, path, name);
        assert_eq!(found.as_ref(), Some(value), "{path}:{name}");
    }
}

#[test]
fn the_page_for_stolen_time_is_reserved() {
    let fdt = build(&machine()).unwrap();
    let reserved: Vec<_> = Fdt::new(&fdt).unwrap().memory_reservations().collect();
    let [page] = reserved[..] else {
        panic!("{reserved:?}");
    };
    assert_eq!((page.address(), page.size()), (0x5fff_f000, 0x1000));
}

#[test]
fn what_is_not_asked_for_is_left_out() {
    let plain = GuestMachine {
        initrd: None,
        rng_seed: &[],
        ..machine()
    };
    let fdt = build(&plain).unwrap();
    for name in [
        "linux,initrd-start",
        "linux,initrd-end",
        "rng-seed",
        "kaslr-seed",
    ] {
        assert_eq!(property(&fdt, "/chosen", name), None, "{name}");
    }
    let seeded = GuestMachine {
        kaslr_seed: Some(5),
        ..plain
    };
    let fdt = build(&seeded).unwrap();
    assert_eq!(property(&fdt, "/chosen", "kaslr-seed"), Some(u32s(&[0, 5])));
}

#[test]
fn an_aff3_takes_two_cells_for_every_cpu() {
    let machine = GuestMachine {
        mpidrs: &[0x8000_0000, 0x1_8000_0002],
        ..machine()
    };
    let fdt = build(&machine).unwrap();
    assert_eq!(property(&fdt, "/cpus", "#address-cells"), Some(u32s(&[2])));
    assert_eq!(property(&fdt, "/cpus/cpu@0", "reg"), Some(u32s(&[0, 0])));
    assert_eq!(
        property(&fdt, "/cpus/cpu@100000002", "reg"),
        Some(u32s(&[1, 2]))
    );
}

#[test]
fn a_property_name_is_stored_once_and_no_name_passes_for_its_end() {
    let mut writer = FdtWriter::new();
    writer.begin("");
    writer.cells("clock-cells", &[1]);
    writer.string("cells", "a");
    writer.begin("child");
    writer.cells("cells", &[2, 3]);
    writer.property("clock-cells", &[9]);
    writer.end();
    writer.end();
    let fdt = writer.finish([0, 0]);
    assert_eq!(
        fdt.len() as u32,
        u32::from_be_bytes(fdt[4..8].try_into().unwrap())
    );
    assert!(fdt.ends_with(b"\0\0\0\x09clock-cells\0cells\0"));
    assert_eq!(property(&fdt, "/", "cells"), Some(b"a\0".to_vec()));
    assert_eq!(property(&fdt, "/child", "cells"), Some(u32s(&[2, 3])));
    assert_eq!(property(&fdt, "/child", "clock-cells"), Some(vec![9]));
}

#[test]
fn there_is_one_memory_node() {
    let fdt = build(&machine()).unwrap();
    let fdt = Fdt::new(&fdt).unwrap();
    let names = fdt.root().children().map(|node| String::from(node.name()));
    assert_eq!(names.filter(|name| name.starts_with("memory")).count(), 1);
}

#[test]
fn a_machine_that_makes_no_sense_is_refused_with_its_cause() {
    let bad = [
        (
            GuestMachine {
                memory_bytes: 0,
                ..machine()
            },
            FdtError::Memory(0),
        ),
        (
            GuestMachine {
                memory_bytes: 4097,
                ..machine()
            },
            FdtError::Memory(4097),
        ),
        (
            GuestMachine {
                memory_bytes: !0xfff,
                ..machine()
            },
            FdtError::Memory(!0xfff),
        ),
        (
            GuestMachine {
                mpidrs: &[],
                ..machine()
            },
            FdtError::NoVcpus,
        ),
        (
            GuestMachine {
                mpidrs: &[0x8000_0001, 2, 1],
                ..machine()
            },
            FdtError::SameAffinity(1),
        ),
        (
            GuestMachine {
                initrd: Some(0x3fff_f000..0x4000_1000),
                ..machine()
            },
            FdtError::Initrd(0x3fff_f000..0x4000_1000),
        ),
        (
            GuestMachine {
                initrd: Some(0x5fff_f000..0x6000_0001),
                ..machine()
            },
            FdtError::Initrd(0x5fff_f000..0x6000_0001),
        ),
        (
            GuestMachine {
                initrd: Some(0x4000_0000..0x4000_0000),
                ..machine()
            },
            FdtError::Initrd(0x4000_0000..0x4000_0000),
        ),
        (
            GuestMachine {
                bootargs: "a\0b",
                ..machine()
            },
            FdtError::Bootargs(1),
        ),
    ];
    for (machine, error) in bad {
        assert_eq!(build(&machine).unwrap_err(), error);
        assert!(!error.to_string().is_empty());
    }
}

#[test]
fn a_command_line_beyond_two_mebibytes_is_refused() {
    let line = "x".repeat(MAX_FDT_BYTES - 100);
    let machine = GuestMachine {
        bootargs: &line,
        ..machine()
    };
    assert!(matches!(build(&machine), Err(FdtError::TooLarge(_))));
}

#[test]
fn the_longest_machine_still_fits() {
    let mpidrs: Vec<u64> = (0..64).map(crate::devices::mpidr).collect();
    let machine = GuestMachine {
        mpidrs: &mpidrs,
        ..machine()
    };
    let fdt = build(&machine).unwrap();
    assert!(fdt.len() < 16 << 10, "{}", fdt.len());
    assert_eq!(property(&fdt, "/cpus/cpu@30f", "reg"), Some(u32s(&[0x30f])));
}
