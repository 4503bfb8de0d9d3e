//! Emulates constrained devices.
fn main() {}
