# Sourced by build and kselftest, in this folder: paths, compiler, packing.
# shellcheck shell=bash

cache=${TAGVISOR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tagvisor}
root=${PWD%/*}
target=${CARGO_TARGET_DIR:-target}
[[ $target == /* ]] || target=$root/$target # as the host tool takes it
out=${TAGVISOR_OUT:-$target/guest-images}
busybox=$cache/guests/busybox
# What every image depends on; the stamps are newer than what set-up unpacked, whatever the packages' times.
common=("$busybox" "$cache"/{guests,cross}/stamp common.sh mkinitramfs/Cargo.toml mkinitramfs/src/*)

# fail WHAT REMEDY
fail() {
    printf 'guest-images: %s: %s\n' "$1" "$2" >&2
    exit 1
}

# One builder at a time; runs that find everything built never come here.
lock() {
    [[ -z ${locked:-} ]] || return 0
    mkdir -p "$out"
    exec {locked}>"$out/.lock"
    flock "$locked"
}

# stale TARGET INPUT...: true if TARGET is missing or older than an input
stale() {
    local target=$1 input
    [[ -e $target ]] || return 0
    for input in "${@:2}"; do
        [[ $input -nt $target ]] && return 0
    done
    return 1
}

need_busybox() {
    [[ -f $busybox ]] || fail "$busybox is missing" "run scripts/setup"
}

find_compiler() {
    local name=aarch64-linux-gnu-gcc
    if [[ -x $cache/cross/bin/$name ]]; then
        echo "$cache/cross/bin/$name"
    elif ! type -P "$name"; then
        fail "no $name" "run scripts/setup, or install the package gcc-aarch64-linux-gnu"
    fi
}

# compile BINARY SOURCE: one static aarch64 program; nothing of the machine's paths gets into it
compile() {
    local cc
    cc=$(find_compiler)
    "$cc" -O2 -std=gnu11 -Wall -Wextra -Wno-clobbered -march=armv8.5-a+memtag -static -pthread -s \
        -Wl,--build-id=none -o "$1.$$" "$2"
    mv "$1.$$" "$1"
}

# pack MANIFEST IMAGE
pack() {
    cargo run --quiet --package mkinitramfs -- "$1" "$2" \
        --root "src=$PWD" --root "guests=$cache/guests" --root "stress=$cache/stress" --root "out=$out"
}
