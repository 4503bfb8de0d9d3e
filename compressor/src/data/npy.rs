//! One array in NumPy's format (NEP 1): magic, version, header length, a Python dictionary, elements.

use std::io::Read;

use runtime::ElementType;

use super::series::{Array, byte_len};

/// The longest header of one array.
pub const MAX_HEADER_BYTES: usize = 64 << 10;

/// Reads one array of `size` bytes in all.
pub(crate) fn read_npy(mut reader: impl Read, size: u64) -> Result<Array, String> {
    let (dtype, shape) = read_header(&mut reader)?;
    let bytes = claimed(dtype, &shape, size)?;
    let mut data = vec![0u8; bytes];
    reader.read_exact(&mut data).map_err(cut)?;
    if reader.read(&mut [0u8]).map_err(cut)? != 0 {
        return Err(format!("has more elements than its shape {shape:?}"));
    }
    Ok(Array { dtype, shape, data })
}

/// Bytes of the elements, if at most `size`: what a header claims is not believed before that.
pub(crate) fn claimed(dtype: ElementType, shape: &[usize], size: u64) -> Result<usize, String> {
    byte_len(dtype, shape).filter(|n| *n as u64 <= size).ok_or_else(|| {
        format!("claims shape {shape:?} of {dtype}, more than the {size} bytes it has")
    })
}

fn cut(error: std::io::Error) -> String {
    format!("is cut short or damaged: {error}")
}

/// Reads up to the first element.
pub(crate) fn read_header(mut reader: impl Read) -> Result<(ElementType, Vec<usize>), String> {
    let mut start = [0u8; 8];
    reader.read_exact(&mut start).map_err(cut)?;
    if &start[..6] != b"\x93NUMPY" {
        return Err("is no .npy: it does not begin with the NumPy magic".into());
    }
    let header_len = match start[6] {
        1 => {
            let mut len = [0u8; 2];
            reader.read_exact(&mut len).map_err(cut)?;
            usize::from(u16::from_le_bytes(len))
        }
        2 | 3 => {
            let mut len = [0u8; 4];
            reader.read_exact(&mut len).map_err(cut)?;
            u32::from_le_bytes(len) as usize
        }
        other => return Err(format!("has .npy version {other}; versions 1 to 3 are read")),
    };
    if header_len > MAX_HEADER_BYTES {
        return Err(format!(
            "has a header of {header_len} bytes, more than MAX_HEADER_BYTES = {MAX_HEADER_BYTES}"
        ));
    }
    let mut header = vec![0u8; header_len];
    reader.read_exact(&mut header).map_err(cut)?;
    let header = String::from_utf8(header).map_err(|_| "has a header that is no text")?;
    parse_header(&header)
}

/// The element type and shape out of `{'descr': '<i4', 'fortran_order': False, 'shape': (512, 2048), }`.
fn parse_header(header: &str) -> Result<(ElementType, Vec<usize>), String> {
    let after = |key: &str| {
        header
            .split_once(&format!("'{key}':"))
            .map(|(_, rest)| rest.trim_start())
            .ok_or_else(|| format!("has no '{key}' in its header"))
    };
    let descr = after("descr")?
        .strip_prefix('\'')
        .and_then(|rest| rest.split_once('\''))
        .map(|(descr, _)| descr)
        .ok_or("has a structured element type, which no model input takes")?;
    if !after("fortran_order")?.starts_with("False") {
        return Err("is in Fortran order; store it with numpy.ascontiguousarray".into());
    }
    let dims = after("shape")?
        .strip_prefix('(')
        .and_then(|rest| rest.split_once(')'))
        .map(|(dims, _)| dims)
        .ok_or("has no readable shape in its header")?;
    let shape = dims
        .split(',')
        .map(str::trim)
        .filter(|d| !d.is_empty())
        .map(|d| d.parse().map_err(|_| format!("has \"{d}\" in its shape")))
        .collect::<Result<Vec<usize>, String>>()?;
    Ok((element_type(descr)?, shape))
}

fn element_type(descr: &str) -> Result<ElementType, String> {
    Ok(match descr {
        "<f4" => ElementType::F32,
        "<f8" => ElementType::F64,
        "<f2" => ElementType::F16,
        "|i1" => ElementType::I8,
        "<i2" => ElementType::I16,
        "<i4" => ElementType::I32,
        "<i8" => ElementType::I64,
        "|u1" => ElementType::U8,
        "<u2" => ElementType::U16,
        "<u4" => ElementType::U32,
        "<u8" => ElementType::U64,
        "|b1" => ElementType::Bool,
        other => return Err(format!("has element type {other}, which cannot be read")),
    })
}
