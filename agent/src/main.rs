//! Serves models on a device inside its budgets.
fn main() {}
