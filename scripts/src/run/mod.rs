//! Running the machine.

pub mod scratch;
