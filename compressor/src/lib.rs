//! Compresses ONNX models towards a device's budgets.
