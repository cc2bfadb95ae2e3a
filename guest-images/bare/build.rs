//! Links the bare-metal programs: each as one flat, complete image.

/// The guests, which run wherever they are loaded: position independent, linked at 0.
const GUESTS: [&str; 8] = [
    "el1-hello",
    "el1-tags",
    "el1-hostile",
    "el1-neighbour",
    "el1-smp",
    "el1-share",
    "el1-storage",
    "el1-steps",
];
/// What QEMU loads as an ELF file, above the DTB that it puts at the start of RAM.
const PAYLOAD: (&str, &str) = ("oracle-payload", "0x40200000");

fn main() {
    println!("cargo:rerun-if-changed=image.ld");
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os != "none") {
        return;
    }
    let here = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    for guest in GUESTS {
        link(guest, &here, "0");
        for argument in ["-pie", "--no-dynamic-linker", "-znorelro", "-znotext"] {
            println!("cargo:rustc-link-arg-bin={guest}={argument}");
        }
    }
    link(PAYLOAD.0, &here, PAYLOAD.1);
}

/// Links `bin` by the script in the folder `here`, with its first byte at `base`.
fn link(bin: &str, here: &str, base: &str) {
    println!("cargo:rustc-link-arg-bin={bin}=-T{here}/image.ld");
    println!("cargo:rustc-link-arg-bin={bin}=--defsym=IMAGE_BASE={base}");
}
