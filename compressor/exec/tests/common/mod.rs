//! What the tests of this crate share.

use std::collections::HashMap;
use std::path::PathBuf;

use graph::{DType, Tensor};

/// The folder of models and test data.
pub(crate) fn assets() -> PathBuf {
    PathBuf::from(std::env::var_os("ESPALIER_ASSETS").expect("run through `cargo xtask test`"))
}

/// Reads a `TensorProto` file. Only what the official test data uses.
pub(crate) fn tensor_file(bytes: &[u8]) -> Result<Tensor, String> {
    let (mut dims, mut kind, mut raw, mut floats, mut doubles, mut ints) =
        (Vec::new(), 0, None, Vec::<f32>::new(), Vec::<f64>::new(), Vec::<i64>::new());
    let mut at = bytes;
    while !at.is_empty() {
        let key = varint(&mut at)?;
        match (key >> 3, key & 7) {
            (1, 0) => dims.push(varint(&mut at)? as usize),
            (1, 2) => dims.extend(packed(&mut at, varint)?.into_iter().map(|size| size as usize)),
            (2, 0) => kind = varint(&mut at)? as i32,
            (4, 5) => floats.push(f32::from_le_bytes(take(&mut at)?)),
            (4, 2) => floats.extend(packed(&mut at, |b| take(b).map(f32::from_le_bytes))?),
            (5 | 7, 0) => ints.push(varint(&mut at)? as i64),
            (5 | 7, 2) => {
                ints.extend(packed(&mut at, varint)?.into_iter().map(|value| value as i64))
            }
            (9, 2) => raw = Some(chunk(&mut at)?.to_vec()),
            (10, 2) => doubles.extend(packed(&mut at, |b| take(b).map(f64::from_le_bytes))?),
            (_, 0) => drop(varint(&mut at)?),
            (_, 2) => drop(chunk(&mut at)?),
            (field, wire) => return Err(format!("field {field} of wire type {wire}")),
        }
    }
    let dtype = DType::from_onnx(kind);
    let built = match raw {
        Some(raw) => Tensor::new(dtype, dims, raw),
        None if !floats.is_empty() => Tensor::from_f32(dims, &floats),
        None if !doubles.is_empty() => Tensor::from_f64_as(dtype, dims, &doubles),
        None => {
            let width = dtype.size().ok_or("no width")?;
            let bytes: Vec<u8> =
                ints.iter().flat_map(|v| v.to_le_bytes()[..width].to_vec()).collect();
            Tensor::new(dtype, dims, bytes)
        }
    };
    built.map_err(|error| error.to_string())
}

fn varint(at: &mut &[u8]) -> Result<u64, String> {
    let mut value = 0;
    for shift in (0..70).step_by(7) {
        let [byte] = take::<1>(at)?;
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err("varint too long".to_owned())
}

fn take<const N: usize>(at: &mut &[u8]) -> Result<[u8; N], String> {
    let (head, rest) = at.split_first_chunk::<N>().ok_or("cut short")?;
    *at = rest;
    Ok(*head)
}

fn chunk<'a>(at: &mut &'a [u8]) -> Result<&'a [u8], String> {
    let len = varint(at)? as usize;
    let (head, rest) = at.split_at_checked(len).ok_or("cut short")?;
    *at = rest;
    Ok(head)
}

fn packed<T>(
    at: &mut &[u8],
    mut one: impl FnMut(&mut &[u8]) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    let (mut inner, mut found) = (chunk(at)?, Vec::new());
    while !inner.is_empty() {
        found.push(one(&mut inner)?);
    }
    Ok(found)
}

/// Differences beyond `atol + rtol |want|`, as a sentence.
pub(crate) fn compare(got: &Tensor, want: &Tensor, rtol: f64, atol: f64) -> Result<(), String> {
    if (got.dtype, &got.dims) != (want.dtype, &want.dims) {
        return Err(format!(
            "{:?}{:?}, wanted {:?}{:?}",
            got.dtype, got.dims, want.dtype, want.dims
        ));
    }
    let read = |tensor: &Tensor| tensor.to_f64_vec().map_err(|error| error.to_string());
    let pairs = read(got)?.into_iter().zip(read(want)?).enumerate();
    for (index, (got, want)) in pairs {
        let equal = got == want || (got.is_nan() && want.is_nan());
        let near = (got - want).abs() <= atol + rtol * want.abs();
        if !equal && !near {
            return Err(format!("element {index} is {got}, wanted {want}"));
        }
    }
    Ok(())
}

/// A map of one named tensor.
#[allow(dead_code)]
pub(crate) fn named(name: &str, tensor: Tensor) -> HashMap<String, Tensor> {
    HashMap::from([(name.to_owned(), tensor)])
}
