//! Bare-metal test guests.
fn main() {}
