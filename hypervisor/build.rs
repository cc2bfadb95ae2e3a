//! Passes the linker script of the EL2 image; on the host there is nothing to do.

fn main() {
    println!("cargo:rerun-if-changed=link.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    for arg in [
        &format!("-T{dir}/link.ld"),
        "-pie",
        "--no-dynamic-linker",
        "-znorelro",
        // Constants hold addresses too: the entry code relocates before anything is read-only.
        "-znotext",
        "-zpack-relative-relocs",
        "--build-id=none",
    ] {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
}
