//! The one `unsafe` of this crate: mapping a large file.

#![allow(unsafe_code)]

use std::{fs::File, io};

use bytes::Bytes;

/// Maps a whole file, read-only.
pub(super) fn map(file: &File) -> io::Result<Bytes> {
    // SAFETY: the mapping is private and read-only, and is only read through `&[u8]`. What Rust cannot rule out
    // is another process that writes to the very inode: its writes may show through, which can corrupt weights
    // but no memory of ours, and truncation ends the process with SIGBUS. `Model::load` says so; we ourselves
    // never write to a model file in place, but rename a new one over it, which leaves a mapped inode alone.
    let mapping = unsafe { memmap2::MmapOptions::new().map_copy_read_only(file)? };
    Ok(Bytes::from_owner(mapping))
}
