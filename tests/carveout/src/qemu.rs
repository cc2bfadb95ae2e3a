//! The functions of QEMU's own binary that say which RAM block an address belongs to.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

type RegionFromHost = unsafe extern "C" fn(*mut c_void, *mut u64) -> *mut c_void;
type RegionName = unsafe extern "C" fn(*const c_void) -> *const c_char;
type BlockFromHost = unsafe extern "C" fn(*mut c_void, bool, *mut u64) -> *mut c_void;
type BlockFd = unsafe extern "C" fn(*mut c_void) -> c_int;

/// What the oracle calls; all four are exported by QEMU's dynamic symbol table.
const NEEDED: [&CStr; 4] = [
    c"memory_region_from_host",
    c"memory_region_name",
    c"qemu_ram_block_from_host",
    c"qemu_ram_get_fd",
];

/// The functions found in this process.
#[derive(Clone, Copy)]
pub struct Qemu {
    region_from_host: RegionFromHost,
    region_name: RegionName,
    block_from_host: BlockFromHost,
    block_fd: BlockFd,
}

/// Looks `name` up in all loaded objects.
fn symbol(name: &CStr) -> *mut c_void {
    // SAFETY: `name` is NUL-terminated; a lookup changes nothing.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }
}

impl Qemu {
    /// Finds the functions; none in a program that is not QEMU.
    pub fn find() -> Option<Self> {
        let [from_host, name, block, fd] = NEEDED.map(symbol);
        if [from_host, name, block, fd].contains(&ptr::null_mut()) {
            return None;
        }
        // SAFETY: the four symbols are QEMU's own (nobody else exports these names) and have had these prototypes since
        // QEMU 5.1: include/exec/memory.h and include/exec/cpu-common.h; `ram_addr_t` and `hwaddr` are 64 bits wide.
        unsafe {
            Some(Self {
                region_from_host: std::mem::transmute::<*mut c_void, RegionFromHost>(from_host),
                region_name: std::mem::transmute::<*mut c_void, RegionName>(name),
                block_from_host: std::mem::transmute::<*mut c_void, BlockFromHost>(block),
                block_fd: std::mem::transmute::<*mut c_void, BlockFd>(fd),
            })
        }
    }

    /// Whether `addr` is the first byte of a RAM block.
    pub fn is_block_start(&self, addr: *mut c_void) -> bool {
        self.block(addr).is_some()
    }

    /// The name of the memory region that starts at `addr`.
    pub fn region_name(&self, addr: *mut c_void) -> Option<&'static CStr> {
        let mut offset = 0;
        // SAFETY: any address may be asked for; QEMU takes its own lock and answers null for memory it does not know.
        let region = unsafe { (self.region_from_host)(addr, &raw mut offset) };
        if region.is_null() {
            return None;
        }
        // SAFETY: a region that QEMU has just named; its name lives as long as the machine.
        unsafe { super::borrow((self.region_name)(region)) }
    }

    /// The file behind the RAM block that starts at `addr`; -1 if there is none.
    ///
    /// Asks the block and not the region, whose pointer to the block is not set yet while the block is being made.
    pub fn block_fd(&self, addr: *mut c_void) -> c_int {
        // SAFETY: `block` is a block that QEMU has just returned, and blocks live as long as the machine.
        self.block(addr)
            .map_or(-1, |block| unsafe { (self.block_fd)(block) })
    }

    fn block(&self, addr: *mut c_void) -> Option<*mut c_void> {
        let mut offset = 0;
        // SAFETY: as for `memory_region_from_host`: any address may be asked for.
        let block = unsafe { (self.block_from_host)(addr, false, &raw mut offset) };
        (!block.is_null() && offset == 0).then_some(block)
    }
}

/// The first function that a program called like QEMU's system emulator does not export; none for any other program.
pub fn missing_in_qemu() -> Option<&'static CStr> {
    let name = std::env::args_os().next()?;
    let looks_like_qemu = name.to_string_lossy().contains("qemu-system");
    let partly = NEEDED.iter().any(|name| !symbol(name).is_null());
    (looks_like_qemu || partly)
        .then(|| NEEDED.into_iter().find(|name| symbol(name).is_null()))
        .flatten()
}
