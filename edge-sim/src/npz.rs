//! Reads arrays out of an `.npz` file: a ZIP archive of NumPy `.npy` members.
//!
//! Understood are little-endian `bool`, integers and floats in C order, `.npy` versions 1 to 3 (NumPy enhancement
//! proposal 1). Everything else is an error that names the member. Sizes are checked against
//! [`MAX_MEMBER_BYTES`] before memory is taken.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The largest member that is read.
pub const MAX_MEMBER_BYTES: u64 = 1 << 30;
const MAX_HEADER_BYTES: usize = 64 * 1024;
const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// An array as it stands in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Array {
    /// Name without `.npy`.
    pub name: String,
    /// Type of the elements, in the protocol's spelling: `INT32`, `FP32`, …
    pub dtype: &'static str,
    /// Bytes per element.
    pub item_bytes: usize,
    /// Length of each axis; the first one counts samples.
    pub dims: Vec<usize>,
    /// Elements in C order, little endian.
    pub data: Vec<u8>,
}

impl Array {
    /// Number of samples: the length of the first axis, 0 for a scalar.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.dims.first().copied().unwrap_or(0)
    }

    /// The bytes of one sample.
    #[must_use]
    pub fn sample(&self, index: usize) -> Option<&[u8]> {
        let size = self.dims.get(1..)?.iter().product::<usize>() * self.item_bytes;
        self.data.get(index.checked_mul(size)?..)?.get(..size)
    }
}

/// What is wrong with the file.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct NpzError {
    path: PathBuf,
    problem: String,
}

/// Reads every array of `path`.
///
/// # Errors
/// The file is missing, no ZIP archive, cut short, or holds an array of another kind.
pub fn read(path: &Path) -> Result<Vec<Array>, NpzError> {
    let fail = |problem: String| NpzError { path: path.to_owned(), problem };
    let file = File::open(path).map_err(|e| fail(e.to_string()))?;
    let mut archive = zip::ZipArchive::new(file)
        .map_err(|e| fail(format!("is no readable .npz archive: {e}")))?;
    let mut arrays = Vec::new();
    for index in 0..archive.len() {
        let mut member =
            archive.by_index(index).map_err(|e| fail(format!("member {index}: {e}")))?;
        let member_name =
            member.name().map_err(|e| fail(format!("member {index}: {e}")))?.into_owned();
        let Some(name) = member_name.strip_suffix(".npy") else { continue };
        let bytes = read_member(&mut member).map_err(|e| fail(format!("{member_name}: {e}")))?;
        arrays.push(parse(name, bytes).map_err(|e| fail(format!("{member_name}: {e}")))?);
    }
    if arrays.is_empty() {
        return Err(fail("holds no array (no member ends in .npy)".to_owned()));
    }
    Ok(arrays)
}

fn read_member(member: &mut impl Read) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    member.take(MAX_MEMBER_BYTES + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > MAX_MEMBER_BYTES {
        return Err(format!("is over the limit of {MAX_MEMBER_BYTES} bytes"));
    }
    Ok(bytes)
}

/// Parses one `.npy` file.
fn parse(name: &str, mut bytes: Vec<u8>) -> Result<Array, String> {
    let (start, header) = split_header(&bytes)?;
    let (dtype, item_bytes) = dtype_of(&header_value(&header, "descr")?)?;
    if header_value(&header, "fortran_order")? != "False" {
        return Err("is in Fortran order; write it with numpy.ascontiguousarray".to_owned());
    }
    let dims = dims_of(&header_value(&header, "shape")?)?;
    let expected = dims
        .iter()
        .try_fold(item_bytes, |size, dim| size.checked_mul(*dim))
        .ok_or_else(|| format!("has an impossible shape {dims:?}"))?;
    let got = bytes.len() - start;
    if got != expected {
        return Err(format!("shape {dims:?} needs {expected} bytes of data, the file has {got}"));
    }
    bytes.drain(..start);
    Ok(Array { name: name.to_owned(), dtype, item_bytes, dims, data: bytes })
}

/// Where the data starts, and the header's text.
fn split_header(bytes: &[u8]) -> Result<(usize, String), String> {
    let cut = || "ends inside its .npy header".to_owned();
    if bytes.get(..6) != Some(MAGIC.as_slice()) {
        return Err("is no .npy array (wrong magic)".to_owned());
    }
    let (from, length) = match bytes.get(6).ok_or_else(cut)? {
        1 => {
            let raw = bytes.get(8..10).ok_or_else(cut)?;
            (10, usize::from(u16::from_le_bytes([raw[0], raw[1]])))
        }
        2 | 3 => {
            let raw = bytes.get(8..12).ok_or_else(cut)?;
            (12, u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]) as usize)
        }
        version => return Err(format!("has the unknown .npy version {version}")),
    };
    if length > MAX_HEADER_BYTES {
        return Err(format!("has a header of {length} bytes, over {MAX_HEADER_BYTES}"));
    }
    let text = bytes.get(from..from + length).ok_or_else(cut)?;
    Ok((from + length, String::from_utf8_lossy(text).into_owned()))
}

/// The value of `key` in the header's Python dictionary, quotes and brackets taken off.
fn header_value(header: &str, key: &str) -> Result<String, String> {
    let missing = || format!("has a header without a readable {key:?}");
    let rest = header.split_once(&format!("'{key}'")).ok_or_else(missing)?.1;
    let rest = rest.split_once(':').ok_or_else(missing)?.1.trim_start();
    let value = match rest.chars().next() {
        Some('\'') => rest[1..].split_once('\''),
        Some('(') => rest[1..].split_once(')'),
        _ => rest.split_once([',', '}']),
    };
    Ok(value.ok_or_else(missing)?.0.trim().to_owned())
}

fn dims_of(shape: &str) -> Result<Vec<usize>, String> {
    shape
        .split(',')
        .map(str::trim)
        .filter(|dim| !dim.is_empty())
        .map(|dim| dim.parse().map_err(|_| format!("has the shape ({shape}), which is no shape")))
        .collect()
}

fn dtype_of(descr: &str) -> Result<(&'static str, usize), String> {
    Ok(match descr {
        "|b1" => ("BOOL", 1),
        "|i1" => ("INT8", 1),
        "|u1" => ("UINT8", 1),
        "<i2" => ("INT16", 2),
        "<u2" => ("UINT16", 2),
        "<i4" => ("INT32", 4),
        "<u4" => ("UINT32", 4),
        "<i8" => ("INT64", 8),
        "<u8" => ("UINT64", 8),
        "<f2" => ("FP16", 2),
        "<f4" => ("FP32", 4),
        "<f8" => ("FP64", 8),
        other => return Err(format!("has elements of type {other:?}, which is not supported")),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use super::*;

    fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let header =
            format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}\n");
        let mut bytes = MAGIC.to_vec();
        bytes.extend([1, 0]);
        bytes.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    fn npz(members: &[(&str, Vec<u8>)]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = zip::ZipWriter::new(file.reopen().unwrap());
        for (name, bytes) in members {
            writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
            writer.write_all(bytes).unwrap();
        }
        writer.finish().unwrap();
        file
    }

    fn error(file: &tempfile::NamedTempFile) -> String {
        read(file.path()).unwrap_err().to_string()
    }

    #[test]
    fn an_int32_array_is_read_sample_by_sample() {
        let data: Vec<u8> = (0..6_i32).flat_map(i32::to_le_bytes).collect();
        let file = npz(&[("bytes.npy", npy("<i4", "2, 3", &data)), ("README", b"hello".to_vec())]);
        let arrays = read(file.path()).unwrap();
        assert_eq!(arrays.len(), 1);
        let array = &arrays[0];
        assert_eq!((array.name.as_str(), array.dtype, array.samples()), ("bytes", "INT32", 2));
        assert_eq!(array.sample(1).unwrap(), &data[12..24]);
        assert!(array.sample(2).is_none());
        assert!(array.sample(usize::MAX).is_none());
    }

    #[test]
    fn a_missing_file_is_named() {
        let text = read(Path::new("/nowhere/heldout.npz")).unwrap_err().to_string();
        assert!(text.starts_with("/nowhere/heldout.npz: "), "{text}");
    }

    #[test]
    fn a_file_that_is_no_archive_is_refused() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"just text").unwrap();
        assert!(error(&file).contains("no readable .npz archive"));
    }

    #[test]
    fn an_archive_cut_in_half_is_refused() {
        let whole = npz(&[("bytes.npy", npy("<i4", "64,", &[7; 256]))]);
        let bytes = std::fs::read(whole.path()).unwrap();
        let mut half = tempfile::NamedTempFile::new().unwrap();
        half.write_all(&bytes[..bytes.len() / 2]).unwrap();
        assert!(error(&half).contains("no readable .npz archive"));
    }

    #[test]
    fn an_archive_without_arrays_is_refused() {
        assert!(error(&npz(&[("notes.txt", b"x".to_vec())])).contains("holds no array"));
    }

    #[test]
    fn data_shorter_than_the_shape_is_refused_with_both_sizes() {
        let text = error(&npz(&[("bytes.npy", npy("<i4", "2, 2048", &[0; 12]))]));
        assert!(text.contains("needs 16384 bytes") && text.contains("has 12"), "{text}");
    }

    #[test]
    fn a_shape_whose_product_overflows_is_refused() {
        let huge = format!("{0}, {0}", u64::MAX / 2);
        let text = error(&npz(&[("bytes.npy", npy("<i4", &huge, &[]))]));
        assert!(text.contains("impossible shape"), "{text}");
    }

    #[test]
    fn fortran_order_objects_and_broken_headers_are_refused_by_name() {
        let mut fortran = npy("<i4", "1,", &[0; 4]);
        let text = String::from_utf8_lossy(&fortran).replace("False", "True ");
        // The magic's first byte is not UTF-8: put the header back behind the original prefix.
        let at = text.find('{').unwrap();
        fortran.truncate(10);
        fortran.extend(&text.as_bytes()[at..]);
        assert!(error(&npz(&[("a.npy", fortran)])).contains("Fortran order"));
        assert!(error(&npz(&[("a.npy", npy("|O", "1,", &[0; 8]))])).contains("\"|O\""));
        assert!(error(&npz(&[("a.npy", npy("<i4", "minus one", &[]))])).contains("no shape"));
        assert!(error(&npz(&[("a.npy", b"\x93NUMPY\x01".to_vec())])).contains("ends inside"));
        assert!(error(&npz(&[("a.npy", b"PNG....".to_vec())])).contains("wrong magic"));
        let text = error(&npz(&[("a.npy", b"\x93NUMPY\x09\x00\x00\x00".to_vec())]));
        assert!(text.contains("version 9"), "{text}");
    }
}
