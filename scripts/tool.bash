# Builds the host tool when its sources are newer, then becomes it. Sourced by setup, run and test.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
case $target in /*) ;; *) target=$root/$target ;; esac
export TAGVISOR_ROOT=$root CARGO_TARGET_DIR=$target

# Says how to get Rust when cargo is not there.
require_cargo() {
    if ! command -v cargo >/dev/null; then
        echo "error: cargo is not in PATH: install Rust with rustup (https://rustup.rs), then run this again" >&2
        exit 3
    fi
}

# Builds the tool; without a network cargo uses what it fetched before.
build_tool() {
    require_cargo
    echo "==> building the host tool" >&2
    (cd "$root" && { cargo build --package tagvisor-tool || cargo build --offline --package tagvisor-tool; }) >&2 || exit 3
    touch "$tool"
}

tool=$target/debug/tagvisor-tool
sources=("$root/scripts/src" "$root/scripts/Cargo.toml" "$root/Cargo.toml")
if [ ! -x "$tool" ] || [ -n "$(find "${sources[@]}" -newer "$tool" -print -quit)" ]; then
    build_tool
fi
