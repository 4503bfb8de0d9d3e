//! Writes `.npz`: a zip of `.npy` arrays, readable by NumPy.

use std::io::{Cursor, Write};

use anyhow::Result;
use zip::write::SimpleFileOptions;

/// One array of 32-bit integers, shape `[rows, columns]`, under `name`.
pub(super) fn int32(name: &str, rows: &[Vec<i32>], columns: usize) -> Result<Vec<u8>> {
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    archive.start_file(format!("{name}.npy"), options)?;
    archive.write_all(&header(rows.len(), columns))?;
    for row in rows {
        let bytes: Vec<u8> = row.iter().flat_map(|value| value.to_le_bytes()).collect();
        archive.write_all(&bytes)?;
    }
    Ok(archive.finish()?.into_inner())
}

/// NumPy format 1.0: magic, version, header length, a Python literal padded to 64 bytes.
fn header(rows: usize, columns: usize) -> Vec<u8> {
    let mut text =
        format!("{{'descr': '<i4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}");
    let unpadded = 10 + text.len() + 1;
    text.push_str(&" ".repeat(unpadded.next_multiple_of(64) - unpadded));
    text.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    // The literal is far shorter than 64 KiB.
    bytes.extend_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_header_is_aligned_and_names_the_shape() {
        let header = super::header(3, 2048);
        assert_eq!(header.len() % 64, 0);
        assert!(String::from_utf8_lossy(&header).contains("(3, 2048)"));
    }
}
