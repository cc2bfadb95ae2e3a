//! The EL2 image. All of it is in the library; this names the entry.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
use hypervisor as _;

/// On the host there is no EL2: say what to run instead.
#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!(
        "tagvisor runs at EL2 of an AArch64 machine: scripts/run builds it and starts it in QEMU"
    );
    std::process::exit(2);
}
