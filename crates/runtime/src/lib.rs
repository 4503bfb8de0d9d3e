//! Inference engines behind one trait: tract and ONNX Runtime.
