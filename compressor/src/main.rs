//! Compresses ONNX models towards a device's budgets.
fn main() {}
