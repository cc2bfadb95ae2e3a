//! The library in programs that are not QEMU.

use std::path::PathBuf;
use std::process::Command;

/// The library as cargo built it for this test, beside the test itself.
fn library() -> PathBuf {
    std::env::current_exe()
        .map(|test| test.with_file_name("libcarveout.so"))
        .unwrap_or_default()
}

#[test]
fn a_program_that_is_not_qemu_runs_as_ever() {
    let output = Command::new("/bin/sh")
        .args(["-c", "echo hello; exit 7"])
        .env("LD_PRELOAD", library())
        .env("CARVEOUT_PROOF", "/nonexistent/proof")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn a_qemu_without_the_functions_is_stopped_before_it_starts() {
    let output = Command::new("/bin/bash")
        .args(["-c", "exec -a qemu-system-aarch64 /bin/true"])
        .env_clear()
        .env("LD_PRELOAD", library())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(99), "{said}");
    assert!(
        said.starts_with("carveout: this QEMU does not export memory_region_from_host:"),
        "{said}"
    );
}
