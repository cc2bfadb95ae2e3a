# Builds the host tool when its sources are newer, then becomes it. Sourced by the commands beside it.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
case $target in /*) ;; *) target=$root/$target ;; esac
export TAGVISOR_ROOT=$root CARGO_TARGET_DIR=$target

# Says how to get a program that is not there: its name, the remedy.
require() {
    if ! command -v "$1" >/dev/null; then
        echo "error: $1 is not in PATH: $2, then run this again" >&2
        exit 3
    fi
}

# Builds the tool. cargo needs a network only for packages that it has not fetched yet.
build_tool() {
    require cargo "install Rust with rustup (https://rustup.rs)"
    require cc "install a C compiler, which Rust links with (apt-get install gcc libc6-dev)"
    echo "==> building the host tool" >&2
    (cd "$root" && cargo build --package tagvisor-tool) >&2 || exit 3
    touch "$tool"
}

tool=$target/debug/tagvisor-tool
sources=("$root/scripts/src" "$root/scripts/Cargo.toml" "$root/Cargo.toml")
if [ ! -x "$tool" ] || [ -n "$(find "${sources[@]}" -newer "$tool" -print -quit)" ]; then
    build_tool
fi
