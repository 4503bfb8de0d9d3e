//! Demo, test, tidy, assets, bench.
fn main() {}
