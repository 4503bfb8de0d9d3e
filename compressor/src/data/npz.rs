//! A zip of `.npy` arrays, which NumPy's `savez` and `savez_compressed` write.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use super::npy::read_npy;
use super::series::Array;
use super::{MAX_ARRAYS, MAX_DATA_BYTES, Problem, limit};

/// Reads every array. What the entries say of their sizes is counted against the limit before anything
/// is unpacked, and no more than that is unpacked, so that a bomb costs nothing.
pub(crate) fn read_npz(path: &Path) -> Result<BTreeMap<String, Array>, Problem> {
    let file = File::open(path).map_err(Problem::Read)?;
    let mut zip = zip::ZipArchive::new(BufReader::new(file))
        .map_err(|e| Problem::Container(e.to_string()))?;
    limit("number of arrays", zip.len() as u64, "MAX_ARRAYS", MAX_ARRAYS as u64)?;
    let mut total = 0u64;
    for at in 0..zip.len() {
        let entry = zip.by_index_raw(at).map_err(|e| Problem::Container(e.to_string()))?;
        total = total.saturating_add(entry.size());
    }
    limit("size of the arrays in bytes", total, "MAX_DATA_BYTES", MAX_DATA_BYTES)?;
    let mut arrays = BTreeMap::new();
    for at in 0..zip.len() {
        let entry = zip.by_index(at).map_err(|e| Problem::Container(e.to_string()))?;
        let name = entry.name().map_err(|e| Problem::Container(e.to_string()))?.into_owned();
        let Some(array) = name.strip_suffix(".npy") else {
            return Err(Problem::Container(format!("it holds \"{name}\", which is no .npy")));
        };
        let size = entry.size();
        let read = read_npy(entry.take(size), size)
            .map_err(|what| Problem::Array { array: array.to_owned(), what })?;
        arrays.insert(array.to_owned(), read);
    }
    Ok(arrays)
}
