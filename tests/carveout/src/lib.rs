//! The carve-out oracle: a library to preload into QEMU, which makes tags live in DRAM.
//!
//! Stock QEMU keeps MTE tags in a RAM block of its own (`mach-virt.tag`), so a hypervisor that lends a tag block too early
//! corrupts nothing and its tests pass for nothing. This library maps the last 1/32 of main RAM over that block: a tag
//! write changes carve-out bytes, and a data write there changes tags, as on hardware.
//!
//! How: QEMU calls `madvise` on each new RAM block before the machine can use it. The library interposes that call, asks
//! QEMU (through functions its binary exports) which region the memory belongs to, remembers the file behind region `mem`,
//! and maps that file at `size - size/32` over `mach-virt.tag`.
//!
//! It says nothing when all is well, writes `moved offset=.. size=..` to the file named by `CARVEOUT_PROOF`, and ends the
//! program with status 99 and a `carveout:` line when tags cannot be moved or were not moved. In a program that is not
//! QEMU it only passes `madvise` on.

// The library never runs beside EL2 code; a panic ends a host process that had to stop anyway.
#![warn(clippy::pedantic)]

mod geometry;
mod qemu;

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::io::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use geometry::TagRam;
use qemu::Qemu;

/// The exit status of a QEMU that the oracle stopped.
const REFUSED: c_int = 99;

/// The memory backend's id: the region that main RAM has to be.
const MAIN: &CStr = c"mem";
/// QEMU's name for the tags of main RAM on the `virt` machine.
const TAGS: &CStr = c"mach-virt.tag";
/// QEMU's name for the tags of secure RAM, which no carve-out holds.
const SECURE_TAGS: &CStr = c"mach-virt.secure-tag";

/// The memory backend as QEMU mapped it.
#[derive(Clone, Copy)]
struct MainRam {
    /// The host address of its first byte.
    host: usize,
    /// Its length in bytes.
    bytes: usize,
    /// The file behind it; -1 for anonymous memory.
    fd: c_int,
}

/// What the library has seen of this process.
struct Seen {
    main: Option<MainRam>,
    /// The RAM blocks with other names, and their lengths in bytes.
    others: Vec<(&'static CStr, usize)>,
    moved: bool,
}

static SEEN: Mutex<Seen> = Mutex::new(Seen {
    main: None,
    others: Vec::new(),
    moved: false,
});

fn seen() -> MutexGuard<'static, Seen> {
    SEEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says why and ends the process at once, before a guest can run without the oracle.
fn refuse(why: fmt::Arguments<'_>) -> ! {
    // Standard error may be closed; the exit status says it then.
    let _ = writeln!(std::io::stderr(), "carveout: {why}");
    // SAFETY: `_exit` takes no pointer and never returns.
    unsafe { libc::_exit(REFUSED) }
}

/// Passes `madvise` on to the kernel, after a look at what the memory is.
///
/// # Safety
/// As for `madvise(2)`: `addr` and `len` describe memory of the caller.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn madvise(addr: *mut c_void, len: usize, advice: c_int) -> c_int {
    if let Some(qemu) = Qemu::find()
        && qemu.is_block_start(addr)
    {
        look(&qemu, addr, len);
    }
    // SAFETY: the caller's own arguments, as it owes them to madvise; the raw call, since this function took its name.
    let result = unsafe { libc::syscall(libc::SYS_madvise, addr, len, advice) };
    c_int::try_from(result).unwrap_or(-1)
}

/// Acts on a RAM block that QEMU has just made, by its name.
fn look(qemu: &Qemu, addr: *mut c_void, len: usize) {
    let Some(name) = qemu.region_name(addr) else {
        return;
    };
    if name == MAIN {
        let fd = qemu.block_fd(addr);
        seen().main = Some(MainRam {
            host: addr as usize,
            bytes: len,
            fd,
        });
    } else if name == TAGS {
        move_tags(addr, len);
    } else if name == SECURE_TAGS {
        refuse(format_args!(
            "this machine has secure RAM with tags of its own, which no carve-out holds: run without secure=on"
        ));
    } else {
        seen().others.push((name, len));
    }
}

/// Maps the carve-out over the tag RAM at `addr` and proves the alias.
fn move_tags(addr: *mut c_void, len: usize) {
    let mut seen = seen();
    if seen.moved {
        return;
    }
    let Some(main) = seen.main else {
        refuse(format_args!(
            "tag RAM {} came before memory region {}: give QEMU -object memory-backend-memfd,id=mem,size=S,share=on \
             and -M virt,...,memory-backend=mem",
            TAGS.to_string_lossy(),
            MAIN.to_string_lossy()
        ));
    };
    let tags = match TagRam::of(main.bytes as u64, len as u64) {
        Ok(tags) => tags,
        Err(why) => refuse(format_args!("{why}")),
    };
    if main.fd < 0 {
        refuse(format_args!(
            "memory region {} has no file behind it: use memory-backend-memfd with share=on, not memory-backend-ram",
            MAIN.to_string_lossy()
        ));
    }
    if let Some((name, _)) = seen.others.iter().find(|(_, bytes)| *bytes == main.bytes) {
        refuse(format_args!(
            "memory region {} is as big as {}, so main RAM may be either: give QEMU one memory backend",
            name.to_string_lossy(),
            MAIN.to_string_lossy()
        ));
    }
    map_over(addr, len, main.fd, tags.offset);
    check_alias(addr, &main, tags.offset);
    leave_proof(&tags);
    seen.moved = true;
}

/// Maps `len` bytes of file `fd` from `offset` over the memory at `addr`.
fn map_over(addr: *mut c_void, len: usize, fd: c_int, offset: u64) {
    let at = libc::off_t::try_from(offset).unwrap_or(-1);
    // SAFETY: `addr..addr+len` is one RAM block that QEMU has just mapped and has not handed to anyone; MAP_FIXED replaces
    // exactly those pages, and the file is as long as the block of which `offset` is the last 1/32.
    let got = unsafe {
        libc::mmap(
            addr,
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_FIXED,
            fd,
            at,
        )
    };
    if got != addr {
        let error = std::io::Error::last_os_error();
        refuse(format_args!(
            "mapping the carve-out at offset {offset:#x} over the tag RAM failed: {error}"
        ));
    }
}

/// Writes one byte through each mapping and looks for it in the other; both bytes end as they were.
fn check_alias(tags: *mut c_void, main: &MainRam, offset: u64) {
    let tag = tags.cast::<u8>();
    let data = (main.host + usize::try_from(offset).unwrap_or(0)) as *mut u8;
    for (write, read) in [(tag, data), (data, tag)] {
        // SAFETY: both point to the first byte of mappings made readable and writable (main RAM by QEMU, tags by
        // `map_over`); no guest and no other thread of QEMU uses a machine that is still being built.
        let (seen, was) = unsafe {
            let was = write.read_volatile();
            write.write_volatile(was ^ 0xa5);
            let seen = read.read_volatile();
            write.write_volatile(was);
            (seen, was)
        };
        if seen != was ^ 0xa5 {
            refuse(format_args!(
                "the carve-out does not alias main RAM: give the memory backend share=on"
            ));
        }
    }
}

/// Leaves what was done where a test can find it.
fn leave_proof(tags: &TagRam) {
    let line = format!("moved offset={:#x} size={:#x}\n", tags.offset, tags.bytes);
    if let Some(path) = std::env::var_os("CARVEOUT_PROOF")
        && let Err(error) = std::fs::write(&path, &line)
    {
        refuse(format_args!(
            "CARVEOUT_PROOF names {}, which cannot be written: {error}",
            path.display()
        ));
    }
    if std::env::var_os("CARVEOUT_VERBOSE").is_some_and(|value| value == "1") {
        let _ = write!(std::io::stderr(), "carveout: {line}");
    }
}

/// Stops a QEMU that lacks the functions before it builds a machine.
extern "C" fn at_start() {
    if let (None, Some(missing)) = (Qemu::find(), qemu::missing_in_qemu()) {
        refuse(format_args!(
            "this QEMU does not export {}: use the QEMU that set-up brings, or run with --stock-tags",
            missing.to_string_lossy()
        ));
    }
}

/// Refuses a run whose machine had main RAM but no tag RAM that could be moved.
extern "C" fn at_end() {
    let seen = seen();
    if seen.main.is_some() && !seen.moved {
        refuse(format_args!(
            "a machine ran without its tags in the carve-out: no RAM block named {} appeared; add mte=on to -M virt",
            TAGS.to_string_lossy()
        ));
    }
}

/// Runs [`at_start`] when the loader has relocated the program and its libraries.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = at_start;

/// Runs [`at_end`] on `exit`.
#[used]
#[unsafe(link_section = ".fini_array")]
static AT_END: extern "C" fn() = at_end;

/// Borrows the C string at `text`; none for a null pointer.
///
/// # Safety
/// A non-null `text` points to a NUL-terminated string that lives as long as the process.
unsafe fn borrow(text: *const c_char) -> Option<&'static CStr> {
    // SAFETY: the caller's promise, above.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) })
}
