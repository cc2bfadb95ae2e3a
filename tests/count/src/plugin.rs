//! The plugin: what it asks QEMU to call, and what it does then.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::event::{Event, LEVELS, level_of, line, mark_of};
use crate::qemu::{
    ADD, Block, Bytes, Callback, Counter, Functions, Info, NO_REGISTERS, Register, find_register,
};

/// Marks count at this exception level and below.
const GUEST_LEVELS: usize = 1;

/// Counters by inline code, or by a call for each block.
enum Counts {
    /// The address of QEMU's scoreboard of [`LEVELS`] counters.
    Inline(usize),
    /// Our own counters.
    Calls([AtomicU64; LEVELS]),
}

struct Plugin {
    functions: Functions,
    has_user_data: bool,
    counts: Counts,
    out: Mutex<File>,
    /// QEMU's handle of PSTATE plus one; 0 before the first CPU. All CPUs have the same.
    pstate: AtomicUsize,
    /// The address of GLib's array that registers are read into.
    value: Mutex<usize>,
    guest_seen: AtomicBool,
}

static PLUGIN: OnceLock<Plugin> = OnceLock::new();

/// Begins the plugin: QEMU calls it once after loading.
///
/// # Safety
/// `info` and the `count` strings at `options` are QEMU's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    info: *const Info,
    count: c_int,
    options: *const *const c_char,
) -> c_int {
    // SAFETY: QEMU passes its description, valid for the call.
    let info = unsafe { &*info };
    let options = (0..usize::try_from(count).unwrap_or(0)).map(|index| {
        // SAFETY: QEMU passes `count` C strings.
        unsafe { CStr::from_ptr(*options.add(index)) }
            .to_string_lossy()
            .into_owned()
    });
    match install(id, info, &options.collect::<Vec<_>>()) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("count: {error}");
            1
        }
    }
}

fn install(id: u64, info: &Info, options: &[String]) -> Result<(), String> {
    let functions = Functions::find()
        .map_err(|name| format!("QEMU has no {name:?}: use QEMU 10.0 or later"))?;
    let path = options
        .iter()
        .find_map(|option| option.strip_prefix("out="))
        .ok_or("give the option out=FILE")?;
    let out = File::create(path).map_err(|error| format!("cannot write {path}: {error}"))?;
    let counts = if info.is_smp() {
        Counts::Calls([const { AtomicU64::new(0) }; LEVELS])
    } else {
        // SAFETY: making counters has no precondition.
        Counts::Inline(unsafe { (functions.new_counters)(LEVELS * 8) } as usize)
    };
    // SAFETY: making an array has no precondition.
    let value = unsafe { (functions.new_bytes)() } as usize;
    let plugin = Plugin {
        functions,
        has_user_data: info.has_user_data(),
        counts,
        out: Mutex::new(out),
        pstate: AtomicUsize::new(0),
        value: Mutex::new(value),
        guest_seen: AtomicBool::new(false),
    };
    let newer = plugin.has_user_data;
    PLUGIN.set(plugin).map_err(|_| "is loaded twice")?;
    let (cpu, block): (Callback, Callback) = if newer {
        (on_cpu as *const c_void, on_block as *const c_void)
    } else {
        (
            on_cpu_of_plugin as *const c_void,
            on_block_of_plugin as *const c_void,
        )
    };
    // SAFETY: the callbacks have the form of this API; the older ones take no third argument and ignore it.
    unsafe {
        (functions.on_cpu)(id, cpu, 0);
        (functions.on_translation)(id, block, 0);
        (functions.on_exit)(id, on_exit as *const c_void, 0);
    }
    Ok(())
}

extern "C" fn on_cpu_of_plugin(_plugin: u64, cpu: u32) {
    on_cpu(cpu, 0);
}

extern "C" fn on_cpu(_cpu: u32, _user: usize) {
    let Some(plugin) = PLUGIN.get() else { return };
    match find_register(&plugin.functions, plugin.has_user_data, c"cpsr") {
        Some(register) => plugin
            .pstate
            .store(register as usize + 1, Ordering::Relaxed),
        None => eprintln!("count: the CPU shows no register cpsr, all is counted as EL0"),
    }
}

extern "C" fn on_block_of_plugin(_plugin: u64, block: *mut Block) {
    on_block(block, 0);
}

extern "C" fn on_block(block: *mut Block, _user: usize) {
    if let Some(plugin) = PLUGIN.get() {
        plugin.instrument(block);
    }
}

extern "C" fn on_exit() {
    if let Some(plugin) = PLUGIN.get() {
        plugin.note(Event::Exit);
    }
}

extern "C" fn on_first(_cpu: u32, _user: usize) {
    if let Some(plugin) = PLUGIN.get()
        && !plugin.guest_seen.swap(true, Ordering::Relaxed)
    {
        plugin.note(Event::FirstGuestInstruction);
    }
}

extern "C" fn on_mark(_cpu: u32, number: usize) {
    if let Some(plugin) = PLUGIN.get() {
        plugin.note(Event::Mark(number as u8));
    }
}

/// `counted` holds the instructions of the block, and below them its exception level in two bits.
extern "C" fn on_counted_block(_cpu: u32, counted: usize) {
    if let Some(Counts::Calls(counts)) = PLUGIN.get().map(|plugin| &plugin.counts)
        && let Some(count) = counts.get(counted & 3)
    {
        count.fetch_add(counted as u64 >> 2, Ordering::Relaxed);
    }
}

impl Plugin {
    /// Adds the counting and the events to a block. All its instructions run at one exception level, the current one.
    fn instrument(&self, block: *mut Block) {
        let level = level_of(self.pstate());
        // SAFETY: the block is QEMU's, valid during its translation.
        let instructions = unsafe { (self.functions.instructions)(block) };
        for index in 0..instructions {
            // SAFETY: the index is below the block's number of instructions.
            let instruction = unsafe { (self.functions.instruction)(block, index) };
            let mut code = [0; 4];
            // SAFETY: at most four bytes are copied into the four.
            unsafe { (self.functions.code)(instruction, code.as_mut_ptr(), code.len()) };
            let call = |callback, user| {
                // SAFETY: the instruction is valid during the translation; the callback has the form for it.
                unsafe { (self.functions.call_at)(instruction, callback, NO_REGISTERS, user) };
            };
            if level == 1 && index == 0 && !self.guest_seen.load(Ordering::Relaxed) {
                call(on_first, 0);
            }
            if let Some(number) =
                mark_of(u32::from_le_bytes(code)).filter(|_| level <= GUEST_LEVELS)
            {
                call(on_mark, number.into());
            }
            if let Counts::Inline(_) = self.counts {
                // SAFETY: as above; the counter is one of the scoreboard's.
                unsafe { (self.functions.add_at)(instruction, ADD, self.counter(level), 1) };
            }
        }
        if let Counts::Calls(_) = self.counts {
            // SAFETY: the block is valid during its translation; the callback has the form for it.
            unsafe {
                (self.functions.call_at_block)(
                    block,
                    on_counted_block,
                    NO_REGISTERS,
                    instructions << 2 | level,
                )
            };
        }
    }

    /// Returns PSTATE of the current CPU; the translation happens at the exception level of the code.
    fn pstate(&self) -> u64 {
        let Some(register) = self.pstate.load(Ordering::Relaxed).checked_sub(1) else {
            return 0;
        };
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = *value as *mut Bytes;
        // SAFETY: the array is GLib's and the lock makes it ours; QEMU allows reading while it translates for the CPU.
        unsafe {
            (self.functions.resize)(bytes, 0);
            (self.functions.read)(register as *mut Register, bytes);
        }
        // SAFETY: the array is valid, and nobody else uses it while the lock is held.
        let bytes = unsafe { &*bytes };
        let length = (bytes.length as usize).min(8);
        let mut value = [0; 8];
        // SAFETY: the array has `length` bytes at least, and `value` has eight.
        unsafe {
            bytes
                .data
                .copy_to_nonoverlapping(value.as_mut_ptr(), length)
        };
        u64::from_le_bytes(value)
    }

    const fn counter(&self, level: usize) -> Counter {
        let board = match self.counts {
            Counts::Inline(board) => board,
            Counts::Calls(_) => 0,
        };
        Counter {
            board: board as *mut _,
            offset: level * 8,
        }
    }

    fn note(&self, event: Event) {
        let counts = std::array::from_fn(|level| match &self.counts {
            // SAFETY: the counter is one of the scoreboard's.
            Counts::Inline(_) => unsafe { (self.functions.sum)(self.counter(level)) },
            Counts::Calls(counts) => counts
                .get(level)
                .map_or(0, |count| count.load(Ordering::Relaxed)),
        });
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = out.write_all(line(event, counts).as_bytes()) {
            eprintln!("count: cannot write {event}: {error}");
        }
    }
}
