//! The host tool behind `scripts/setup`, `scripts/run` and `scripts/test`.
fn main() {}
