//! External data: tensors whose elements lie in another file of the model's folder.
//!
//! A location is relative, has no `..`, and leads to a file inside the folder even through links.

use std::{
    collections::HashMap,
    path::{Component, Path, PathBuf},
};

use bytes::Bytes;

use super::{ImportError, file};
use crate::{DType, proto, proto_walk};
use proto::tensor_proto::DataLocation;

/// Replaces every reference to external data by the data: a slice of the other file.
pub(super) fn inline(
    model: &mut proto::ModelProto,
    folder: Option<&Path>,
) -> Result<(), ImportError> {
    let mut files = Files { folder, root: None, open: HashMap::new() };
    proto_walk::tensors(model, &mut |tensor| {
        if tensor.data_location == Some(DataLocation::External as i32) {
            tensor.raw_data = Some(files.data(tensor)?);
            tensor.data_location = None;
            tensor.external_data.clear();
        }
        Ok(())
    })
}

struct Files<'a> {
    folder: Option<&'a Path>,
    root: Option<PathBuf>,
    open: HashMap<String, Bytes>,
}

impl Files<'_> {
    fn data(&mut self, tensor: &proto::TensorProto) -> Result<Bytes, ImportError> {
        let place = format!("tensor `{}`", tensor.name());
        let entry = |key: &str| {
            let entry = tensor.external_data.iter().find(|entry| entry.key() == key);
            entry.map(|entry| entry.value().to_owned())
        };
        let location = entry("location").unwrap_or_default();
        let wrong = |reason: String| ImportError::External {
            place: place.clone(),
            location: location.clone(),
            reason,
        };
        let number = |key: &str| match entry(key) {
            None => Ok(None),
            Some(text) => match text.trim().parse::<usize>() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(wrong(format!("`{key}` is `{text}`, not a number of bytes"))),
            },
        };
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        let expected = expected_bytes(tensor).map_err(wrong)?;
        let length = length.unwrap_or(expected);
        if length != expected {
            let dims = &tensor.dims;
            return Err(wrong(format!(
                "its length is {length}, dimensions {dims:?} need {expected} bytes"
            )));
        }
        let file = self.open(&location).map_err(wrong)?;
        match offset.checked_add(length).filter(|&end| end <= file.len()) {
            Some(end) => Ok(file.slice(offset..end)),
            None => {
                let size = file.len();
                Err(wrong(format!(
                    "bytes {offset} to {offset} + {length} are beyond its end at {size}"
                )))
            }
        }
    }

    fn open(&mut self, location: &str) -> Result<Bytes, String> {
        if let Some(bytes) = self.open.get(location) {
            return Ok(bytes.clone());
        }
        let folder =
            self.folder.ok_or("the model was not read from a folder that could hold it")?;
        let relative = Path::new(location);
        let mut components =
            relative.components().filter(|part| *part != Component::CurDir).peekable();
        if components.peek().is_none() {
            return Err("it names no file".to_owned());
        }
        if location.contains('\\') || !components.all(|part| matches!(part, Component::Normal(_))) {
            return Err("only relative paths without `..` are read".to_owned());
        }
        let root = match &self.root {
            Some(root) => root.clone(),
            None => folder.canonicalize().map_err(|error| error.to_string())?,
        };
        let path = root.join(relative).canonicalize().map_err(|error| error.to_string())?;
        if !path.starts_with(&root) {
            return Err("it is a link out of the model's folder".to_owned());
        }
        self.root = Some(root);
        let bytes = file::read(&path).map_err(|error| error.to_string())?;
        self.open.insert(location.to_owned(), bytes.clone());
        Ok(bytes)
    }
}

fn expected_bytes(tensor: &proto::TensorProto) -> Result<usize, String> {
    let dtype = DType::from_onnx(tensor.data_type());
    let bits =
        dtype.bits().ok_or_else(|| format!("elements of type {dtype:?} cannot lie outside"))?;
    let mut sizes = tensor.dims.iter().map(|&dim| usize::try_from(dim).ok());
    let len = sizes.try_fold(1usize, |len, dim| len.checked_mul(dim?));
    let total = len.and_then(|len| len.checked_mul(bits));
    total
        .map(|total| total.div_ceil(8))
        .ok_or_else(|| format!("dimensions {:?} are not sizes", tensor.dims))
}
