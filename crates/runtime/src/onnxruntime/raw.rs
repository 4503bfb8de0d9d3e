//! The places where bytes and pointers cross to ONNX Runtime by hand.
//!
//! ort's safe functions copy by element type, and without its `half` feature they know no 16-bit
//! floats; a tensor here is bytes already. And ort keeps the library's version to itself.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::path::Path;

use ort::memory::Allocator;
use ort::sys::{ORT_API_VERSION, OrtApiBase};
use ort::value::{DynTensor, DynTensorRef, TensorElementType};

use engine::{EngineError, MINIMUM_VERSION};

/// Loads the library at `path` and asks for its version.
///
/// # Errors
/// The loader refuses it, it is not ONNX Runtime, or it does not speak the API that is used here.
pub(super) fn library_version(path: &Path) -> Result<String, EngineError> {
    let refuse = |why: String| {
        EngineError::library(format!(
            "{} is not a usable ONNX Runtime library: {why} (wanted: {MINIMUM_VERSION} or later)",
            path.display()
        ))
    };
    // SAFETY: loading runs the library's constructors. The file is the one that the operator
    // configured as code to run in this process; its header was checked to be a whole shared
    // library for this machine.
    let library = unsafe { libloading::Library::new(path) }
        .map_err(|e| refuse(format!("it does not load: {e}")))?;
    // SAFETY: in every release of ONNX Runtime `OrtGetApiBase` has this signature and gives a
    // pointer to a table of two functions that lives as long as the library, which outlives `base`
    // and `text` here. A library of another kind that exports the same name cannot be told apart.
    let version = unsafe {
        let base = library
            .get::<unsafe extern "C" fn() -> *const OrtApiBase>(b"OrtGetApiBase\0")
            .map_err(|_| refuse("it does not export OrtGetApiBase".into()))?;
        let base = base().as_ref().ok_or_else(|| refuse("OrtGetApiBase gives nothing".into()))?;
        let text = (base.GetVersionString)();
        if text.is_null() {
            return Err(refuse("it tells no version".into()));
        }
        let version = CStr::from_ptr(text).to_string_lossy().into_owned();
        if (base.GetApi)(ORT_API_VERSION).is_null() {
            return Err(refuse(format!(
                "version {version} does not speak API {ORT_API_VERSION}, it is too old"
            )));
        }
        version
    };
    Ok(version)
}

/// A tensor of ONNX Runtime's own with these bytes.
///
/// # Errors
/// The bytes do not fill the shape, or there is no memory.
pub(super) fn tensor_of(
    dtype: TensorElementType,
    shape: &[usize],
    bytes: &[u8],
) -> Result<DynTensor, EngineError> {
    let mut tensor = DynTensor::new(&Allocator::default(), dtype, shape.to_vec())
        .map_err(|e| EngineError::run(format!("no tensor of shape {shape:?}: {e}")))?;
    if tensor.size() != Some(bytes.len()) {
        return Err(EngineError::input(format!(
            "a tensor of {dtype} and shape {shape:?} does not have {} bytes",
            bytes.len()
        )));
    }
    if bytes.is_empty() {
        return Ok(tensor);
    }
    let target = tensor.data_ptr_mut().cast::<u8>();
    if target.is_null() {
        return Err(EngineError::run("ONNX Runtime gave a tensor without memory"));
    }
    // SAFETY: `target` is the CPU memory of a tensor that was just made by the default (CPU)
    // allocator; it is not null, `size` says that it holds `bytes.len()` bytes, and nothing else
    // refers to it. The bytes are valid for the type: booleans were checked to be 0 or 1.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) };
    Ok(tensor)
}

/// The bytes of a tensor that is not one of strings.
///
/// # Errors
/// It lies outside the CPU's memory, or its type has no size.
pub(super) fn bytes_of(tensor: &DynTensorRef<'_>) -> Result<Vec<u8>, EngineError> {
    if !tensor.memory_info().is_cpu_accessible() {
        return Err(EngineError::run("an output lies outside the CPU's memory"));
    }
    let size = tensor.size().ok_or_else(|| EngineError::run("an output of unknown size"))?;
    if size == 0 {
        return Ok(Vec::new());
    }
    let source = tensor.data_ptr().cast::<u8>();
    if source.is_null() {
        return Err(EngineError::run("an output without memory"));
    }
    // SAFETY: the tensor is borrowed for the whole call, its memory is the CPU's, not null, and
    // `size` bytes long; ONNX Runtime has written all of them when a run ends without error.
    Ok(unsafe { std::slice::from_raw_parts(source, size) }.to_vec())
}
