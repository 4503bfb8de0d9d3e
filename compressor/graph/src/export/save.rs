//! Writing files: a temporary one beside the target, synced, then renamed over it.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{EXTERNAL_ABOVE_BYTES, ExportError, encode};
use crate::{Model, proto};
use proto::tensor_proto::DataLocation;

/// Tensors below this size stay in the model file.
const EXTERNAL_TENSOR_BYTES: usize = 4 << 10;
/// Alignment of tensors in the second file: a page, so that it can be mapped.
const ALIGNMENT: u64 = 4 << 10;

/// How to write a model.
#[derive(Debug, Clone)]
pub struct SaveOptions {
    /// Large tensors go to a second file when all of them take more than this.
    pub external_above_bytes: u64,
}

impl Default for SaveOptions {
    fn default() -> Self {
        Self { external_above_bytes: EXTERNAL_ABOVE_BYTES }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// The model file.
    pub model: PathBuf,
    /// The second file with the large tensors, where one was needed; in the same folder.
    pub external: Option<PathBuf>,
}

impl Model {
    /// Writes the model; `path` holds the old file or the whole new one at every moment.
    ///
    /// Large models are written as two files. The second has a name that no file had, so that the old model
    /// stays whole until the new one takes its place; it is not removed afterwards.
    ///
    /// # Errors
    /// See [`ExportError`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<Saved, ExportError> {
        self.save_with(path, &SaveOptions::default())
    }

    /// [`Model::save`] with a threshold of one's own.
    ///
    /// # Errors
    /// See [`ExportError`].
    pub fn save_with(
        &self,
        path: impl AsRef<Path>,
        options: &SaveOptions,
    ) -> Result<Saved, ExportError> {
        let path = path.as_ref();
        let mut proto = self.to_proto()?;
        let mut external = None;
        if total_bytes(&mut proto) > options.external_above_bytes {
            let second = free_name(path);
            write_atomically(&second, |file| externalise(&mut proto, file_name(&second), file))?;
            external = Some(second);
        }
        let bytes = encode(&proto)?;
        write_atomically(path, |file| file.write_all(&bytes))?;
        Ok(Saved { model: path.to_owned(), external })
    }
}

fn total_bytes(proto: &mut proto::ModelProto) -> u64 {
    let mut total = 0u64;
    each_initializer(proto, &mut |tensor| {
        total += tensor.raw_data.as_ref().map_or(0, Bytes::len) as u64;
        Ok(())
    })
    .map_or(0, |()| total)
}

/// Moves the large initializers of the main graph into `file`, aligned.
fn externalise(
    proto: &mut proto::ModelProto,
    location: &str,
    file: &mut dyn Write,
) -> io::Result<()> {
    let mut offset = 0u64;
    each_initializer(proto, &mut |tensor| {
        let large = |data: &Bytes| data.len() >= EXTERNAL_TENSOR_BYTES;
        let Some(data) = tensor.raw_data.take_if(|data| large(data)) else { return Ok(()) };
        let start = offset.next_multiple_of(ALIGNMENT);
        let gap = usize::try_from(start - offset).unwrap_or(0);
        file.write_all(&[0; ALIGNMENT as usize][..gap])?;
        file.write_all(&data)?;
        offset = start + data.len() as u64;
        let entry = |key: &str, value: String| proto::StringStringEntryProto {
            key: Some(key.to_owned()),
            value: Some(value),
        };
        tensor.data_location = Some(DataLocation::External as i32);
        tensor.external_data = vec![
            entry("location", location.to_owned()),
            entry("offset", start.to_string()),
            entry("length", data.len().to_string()),
        ];
        Ok(())
    })
}

type Visit<'a> = dyn FnMut(&mut proto::TensorProto) -> io::Result<()> + 'a;

fn each_initializer(proto: &mut proto::ModelProto, visit: &mut Visit<'_>) -> io::Result<()> {
    let initializers = proto.graph.iter_mut().flat_map(|graph| &mut graph.initializer);
    initializers.into_iter().try_for_each(visit)
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or("model.onnx.data")
}

/// `model.onnx.data`, or `model.onnx.1.data` and so on where that exists.
fn free_name(path: &Path) -> PathBuf {
    let base = file_name(path).to_owned();
    let first = path.with_file_name(format!("{base}.data"));
    let numbered = (1u32..).map(|number| path.with_file_name(format!("{base}.{number}.data")));
    let mut names = std::iter::once(first).chain(numbered);
    names.find(|name| !name.exists()).unwrap_or_else(|| path.with_extension("data"))
}

fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), ExportError> {
    let temporary = path.with_file_name(format!(".{}.{}.tmp", file_name(path), std::process::id()));
    let result = write_then_rename(path, &temporary, write);
    if result.is_err() {
        // The error that matters is the first one.
        let _ = fs::remove_file(&temporary);
    }
    result.map_err(|source| ExportError::Io { path: path.to_owned(), source })
}

fn write_then_rename(
    path: &Path,
    temporary: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(temporary)?);
    write(&mut file)?;
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(temporary, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
