//! `.safetensors`: eight bytes of header length, a JSON header of names, types, shapes and offsets, and
//! the elements, read from the file sample by sample.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use runtime::ElementType;
use serde::Deserialize;

use super::series::{FileArray, Series, byte_len};
use super::{MAX_ARRAYS, Problem, limit};

/// The longest header.
pub(crate) const MAX_SAFETENSORS_HEADER_BYTES: u64 = 16 << 20;

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

/// Opens every tensor but reads none.
pub(crate) fn open(path: &Path) -> Result<BTreeMap<String, Series>, Problem> {
    let wrong = |what: String| Problem::Format(format!("is no readable .safetensors: {what}"));
    let mut file = File::open(path).map_err(Problem::Read)?;
    let size = file.metadata().map_err(Problem::Read)?.len();
    let mut length = [0u8; 8];
    file.read_exact(&mut length).map_err(|e| wrong(format!("it is cut short: {e}")))?;
    let length = u64::from_le_bytes(length);
    let name = "MAX_SAFETENSORS_HEADER_BYTES";
    limit("length of the header in bytes", length, name, MAX_SAFETENSORS_HEADER_BYTES)?;
    let mut header = vec![0u8; length as usize];
    file.read_exact(&mut header).map_err(|e| wrong(format!("its header is cut short: {e}")))?;
    let header: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(&header).map_err(|e| wrong(format!("its header: {e}")))?;
    limit("number of arrays", header.len() as u64, "MAX_ARRAYS", MAX_ARRAYS as u64)?;
    let (begin, file) = (8 + length, Arc::new(file));
    header
        .into_iter()
        .filter(|(name, _)| name != "__metadata__")
        .map(|(name, entry)| {
            let array = tensor(entry, size.saturating_sub(begin))
                .map_err(|what| Problem::Array { array: name.clone(), what })?;
            let (dtype, shape, offset) = array;
            let series = FileArray { file: file.clone(), offset: begin + offset, dtype, shape };
            Ok((name, series.into_series()))
        })
        .collect()
}

/// Type, shape and offset of a tensor that lies within `size` bytes.
fn tensor(entry: serde_json::Value, size: u64) -> Result<(ElementType, Vec<usize>, u64), String> {
    let entry: Entry =
        serde_json::from_value(entry).map_err(|e| format!("has a damaged header: {e}"))?;
    let dtype = match entry.dtype.as_str() {
        "F64" => ElementType::F64,
        "F32" => ElementType::F32,
        "F16" => ElementType::F16,
        "BF16" => ElementType::Bf16,
        "I64" => ElementType::I64,
        "I32" => ElementType::I32,
        "I16" => ElementType::I16,
        "I8" => ElementType::I8,
        "U64" => ElementType::U64,
        "U32" => ElementType::U32,
        "U16" => ElementType::U16,
        "U8" => ElementType::U8,
        "BOOL" => ElementType::Bool,
        other => return Err(format!("has element type {other}, which cannot be read")),
    };
    let [begin, end] = entry.data_offsets;
    let bytes = byte_len(dtype, &entry.shape).map(|b| b as u64);
    if begin > end || end > size || bytes != Some(end - begin) {
        return Err(format!(
            "claims shape {:?} of {dtype} in bytes {begin} to {end} of {size}",
            entry.shape
        ));
    }
    Ok((dtype, entry.shape, begin))
}
