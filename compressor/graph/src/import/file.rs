//! Reading a file whole: into memory when small, mapped when large.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use bytes::Bytes;

/// Files at least this large are mapped instead of read.
pub const MAP_ABOVE_BYTES: u64 = 64 << 20;

pub(super) fn read(path: &Path) -> io::Result<Bytes> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if metadata.len() >= MAP_ABOVE_BYTES {
        return super::mapped::map(&file);
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
    // A file that grows while it is read must not fill memory.
    file.take(MAP_ABOVE_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes.into())
}
