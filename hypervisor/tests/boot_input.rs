//! Whatever a boot loader passes as the bundle: a configuration that can be started, or a reason.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod support;

use hypervisor::bundle::Bundle;
use hypervisor::config::{Config, MAX_VCPUS, MAX_VMS};
use hypervisor::image::place;
use proptest::prelude::*;
use stage2::addr::PhysAddr;
use support::*;

/// A line: of known keys and values, of unknown ones, or of anything.
fn line() -> impl Strategy<Value = String> {
    let keys = [
        "policy",
        "batch",
        "log",
        "vm",
        "kernel",
        "initrd",
        "cmdline",
        "memory",
        "vcpus",
        "mte",
        "report-key",
        "#",
        "",
    ];
    let values = [
        "lazy",
        "on",
        "off",
        "info",
        "a",
        "b",
        "2097152",
        "67645734912",
        "67647832064",
        "0",
        "8",
        "9",
        "-1",
        "18446744073709551616",
        "00ff",
        " ",
        "tagvisor",
        "\u{0}",
        "\u{e9}",
    ];
    prop_oneof![
        9 => (prop::sample::select(keys.to_vec()), prop::sample::select(values.to_vec()))
            .prop_map(|(key, value)| format!("{key} {value}")),
        1 => "\\PC{0,40}",
    ]
}

proptest! {
    #[test]
    fn a_configuration_is_within_the_limits_or_refused_with_a_reason(
        lines in prop::collection::vec(line(), 0..30),
        whole in prop::option::of(prop::collection::vec(any::<u8>(), 0..200)),
    ) {
        let text = format!("tagvisor 1\nvm first\nkernel k\nmemory 4194304\n{}\n", lines.join("\n"));
        let bytes = whole.unwrap_or(text.into_bytes());
        match Config::parse(&bytes) {
            Err(error) => prop_assert!(error.to_string().starts_with("tagvisor.conf")),
            Ok(config) => {
                prop_assert!((1..=MAX_VMS).contains(&config.vms.len()));
                for vm in &config.vms {
                    prop_assert!((1..=MAX_VCPUS).contains(&vm.vcpus));
                    prop_assert!(vm.memory.is_multiple_of(2 * MIB) && vm.memory >= 2 * MIB);
                    prop_assert!(BASE + vm.memory <= 1 << 36, "the guest's addresses");
                    prop_assert!(!vm.name.is_empty() && !vm.kernel.is_empty());
                }
                let names: std::collections::BTreeSet<_> =
                    config.vms.iter().map(|vm| &vm.name).collect();
                prop_assert_eq!(names.len(), config.vms.len());
            }
        }
    }

    #[test]
    fn a_kernel_s_header_is_believed_only_as_far_as_ram_goes(
        fields in prop::array::uniform3(prop_oneof![any::<u64>(), 0..64 * MIB]),
        initrd in prop_oneof![any::<u64>(), 0..64 * MIB],
        memory in 1..64_u64,
    ) {
        let mut kernel = vec![0; 4096];
        for (at, field) in [8, 16, 24].into_iter().zip(fields) {
            kernel.splice(at..at + 8, field.to_le_bytes());
        }
        kernel.splice(56..60, *b"ARM\x64");
        let memory = memory * 2 * MIB;
        match place(&kernel, initrd, memory) {
            Err(error) => prop_assert!(!error.to_string().is_empty()),
            Ok(at) => {
                prop_assert!(at.kernel >= BASE && at.kernel + 4096 <= at.initrd);
                prop_assert!(at.initrd + initrd <= at.dtb && at.dtb < BASE + memory);
            }
        }
    }

    #[test]
    fn a_bundle_of_any_bytes_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut archive = b"070701".to_vec();
        archive.extend(bytes.iter().map(|byte| b"0123456789abcdefX\0/"[usize::from(*byte) % 19]));
        if let Err(error) = Bundle::parse(&archive, PhysAddr::new(0)) {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
