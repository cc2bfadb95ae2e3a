//! A QEMU plugin that counts instructions per exception level.
//!
//! Options: `out=FILE`. The file gets one line for each event, `EVENT el0=N el1=N el2=N el3=N`, with the instructions
//! executed so far at each level; EVENT is `first-guest-instruction` (before the first at EL1), `mark-0xNN` (before a HINT
//! #0xNN, 0x60 to 0x7f, at EL0 or EL1: a no-op to hardware) or `exit`.
//!
//! With one CPU each instruction is counted by inline code, exactly. With several, QEMU 10 and 11 crash on inline code
//! under `-icount`, so there each block is counted by a call, whole: one that an exception cuts short counts too much.

mod event;
mod plugin;
mod qemu;
