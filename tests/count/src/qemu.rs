//! QEMU's plugin interface, as much as is used here, for API 4 (QEMU 10.0) to 7 (11.1).
//!
//! Its functions are looked up in the running program, so the library links without QEMU. In API 7 each callback has lost
//! the plugin's id and gained a pointer of ours at the end.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::{AtomicI32, Ordering};

/// The API whose callbacks have the newer form.
const USER_DATA_API: c_int = 7;
/// The API that all QEMU from 9.2 on know, but for those that want the newer form.
const OLDER_API: c_int = 4;

/// The API that this library speaks: QEMU reads it after loading, before `qemu_plugin_install`.
#[allow(non_upper_case_globals, reason = "QEMU looks for this name")]
#[unsafe(no_mangle)]
pub static qemu_plugin_version: AtomicI32 = AtomicI32::new(OLDER_API);

/// Chooses the API when the library is loaded.
#[used]
#[unsafe(link_section = ".init_array")]
static CHOOSE: extern "C" fn() = choose_api;

extern "C" fn choose_api() {
    let told = std::env::var("TAGVISOR_PLUGIN_API")
        .ok()
        .and_then(|api| api.parse().ok());
    // Came with API 6, the last before 7; QEMU 11.0 has to be told.
    let newer = look_up(c"qemu_plugin_register_vcpu_syscall_filter_cb").is_some();
    let guess = if newer { USER_DATA_API } else { OLDER_API };
    qemu_plugin_version.store(told.unwrap_or(guess), Ordering::Relaxed);
}

/// What QEMU tells a plugin about itself.
#[repr(C)]
pub struct Info {
    target: *const c_char,
    oldest_api: c_int,
    newest_api: c_int,
    system: bool,
    cpus: c_int,
    most_cpus: c_int,
}

impl Info {
    /// Whether callbacks have the newer form.
    pub const fn has_user_data(&self) -> bool {
        self.newest_api >= USER_DATA_API
    }

    /// Whether the machine may have several CPUs.
    pub const fn is_smp(&self) -> bool {
        self.cpus > 1
    }
}

/// A block of translated instructions.
pub enum Block {}
/// An instruction of a block.
pub enum Instruction {}
/// Counters of each CPU.
pub enum Scoreboard {}
/// A register of a CPU, as QEMU names it to itself.
pub enum Register {}

/// One 64-bit counter in a scoreboard.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Counter {
    pub board: *mut Scoreboard,
    pub offset: usize,
}

/// A byte array of GLib, which QEMU uses.
#[repr(C)]
pub struct Bytes {
    pub data: *mut u8,
    pub length: u32,
}

/// A callback with the form that its registration wants.
pub type Callback = *const c_void;
/// A callback of an executed instruction or block: the CPU's number and our pointer.
pub type Executed = extern "C" fn(u32, usize);

/// No access to registers is needed in a callback.
pub const NO_REGISTERS: c_int = 0;
/// The inline operation: add to a counter.
pub const ADD: c_int = 0;

macro_rules! functions {
    ($($(#[$doc:meta])* $name:ident = $symbol:literal: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// QEMU's functions.
        #[derive(Clone, Copy)]
        pub struct Functions {
            $($(#[$doc])* pub $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Functions {
            /// Finds the functions in the running program; names the first that is missing.
            pub fn find() -> Result<Self, &'static CStr> {
                Ok(Self { $($name: {
                    let address = look_up($symbol).ok_or($symbol)?;
                    // SAFETY: the symbol is QEMU's or GLib's function of this type, stable since API 4.
                    unsafe { std::mem::transmute::<*const c_void, unsafe extern "C" fn($($argument),*) $(-> $result)?>(address) }
                },)* })
            }
        }
    };
}

functions! {
    /// Calls back for each new CPU.
    on_cpu = c"qemu_plugin_register_vcpu_init_cb": fn(u64, Callback, usize);
    /// Calls back for each block that is translated.
    on_translation = c"qemu_plugin_register_vcpu_tb_trans_cb": fn(u64, Callback, usize);
    /// Calls back at the end.
    on_exit = c"qemu_plugin_register_atexit_cb": fn(u64, Callback, usize);
    /// Counts the instructions of a block.
    instructions = c"qemu_plugin_tb_n_insns": fn(*const Block) -> usize;
    /// Returns an instruction of a block.
    instruction = c"qemu_plugin_tb_get_insn": fn(*const Block, usize) -> *mut Instruction;
    /// Copies the bytes of an instruction.
    code = c"qemu_plugin_insn_data": fn(*const Instruction, *mut u8, usize) -> usize;
    /// Adds to a counter whenever an instruction is executed.
    add_at = c"qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu": fn(*mut Instruction, c_int, Counter, u64);
    /// Calls back whenever an instruction is executed.
    call_at = c"qemu_plugin_register_vcpu_insn_exec_cb": fn(*mut Instruction, Executed, c_int, usize);
    /// Calls back whenever a block is entered.
    call_at_block = c"qemu_plugin_register_vcpu_tb_exec_cb": fn(*mut Block, Executed, c_int, usize);
    /// Makes counters.
    new_counters = c"qemu_plugin_scoreboard_new": fn(usize) -> *mut Scoreboard;
    /// Sums a counter over all CPUs.
    sum = c"qemu_plugin_u64_sum": fn(Counter) -> u64;
    /// Lists the registers of the current CPU.
    registers = c"qemu_plugin_get_registers": fn() -> *mut Bytes;
    /// Reads a register of the current CPU.
    read = c"qemu_plugin_read_register": fn(*mut Register, *mut Bytes) -> c_int;
    /// Makes a byte array.
    new_bytes = c"g_byte_array_new": fn() -> *mut Bytes;
    /// Resizes a byte array.
    resize = c"g_byte_array_set_size": fn(*mut Bytes, u32) -> *mut Bytes;
}

fn look_up(symbol: &CStr) -> Option<*const c_void> {
    // SAFETY: the name is a C string; looking up a symbol has no other precondition.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, symbol.as_ptr()) };
    (!address.is_null()).then_some(address.cast_const())
}

/// The first fields of a register's description; API 7 has one more behind them.
#[repr(C)]
struct Description {
    register: *mut Register,
    name: *const c_char,
    feature: *const c_char,
}

/// Finds a register of the current CPU by QEMU's name.
pub fn find_register(
    functions: &Functions,
    has_user_data: bool,
    name: &CStr,
) -> Option<*mut Register> {
    let bytes = std::mem::size_of::<Description>() + if has_user_data { 8 } else { 0 };
    // SAFETY: called from the callback of a new CPU, where QEMU allows it; the list is ours.
    let list = unsafe { (functions.registers)().as_ref() }?;
    (0..list.length as usize).find_map(|index| {
        // SAFETY: the list has `length` descriptions of `bytes` bytes, aligned as GLib allocates them.
        let description = unsafe { &*list.data.add(index * bytes).cast::<Description>() };
        // SAFETY: QEMU gives each register a name, a C string that lives as long as the CPU.
        let found = unsafe { CStr::from_ptr(description.name) } == name;
        found.then_some(description.register)
    })
}
