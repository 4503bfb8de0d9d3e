//! From [`Model`] to an ONNX file: what import understood is encoded anew, what it carried is written back.
//!
//! [`Model::save`] is atomic: the new file is complete beside the old one before it takes its name. Above
//! [`EXTERNAL_ABOVE_BYTES`] the large tensors go to a second file, since readers refuse larger single files.

use std::path::PathBuf;

use prost::Message;

use crate::{Model, Violation, proto};

mod graph;
mod save;

pub(crate) use graph::described;
pub use save::{SaveOptions, Saved};

/// Above this total, large tensors are written to a second file.
pub const EXTERNAL_ABOVE_BYTES: u64 = 1_800 << 20;

/// What readers of ONNX accept in one file: protobuf's own limit.
pub const MAX_FILE_BYTES: u64 = i32::MAX as u64;

/// Why a model could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The model breaks invariants.
    #[error("the model is not valid: {}", crate::verify::summary(.0))]
    Invalid(Vec<Violation>),
    /// Too large for one file.
    #[error("the encoded model takes {found} bytes, more than the limit of {limit} for one file")]
    TooLarge {
        /// Encoded size.
        found: u64,
        /// [`MAX_FILE_BYTES`].
        limit: u64,
    },
    /// The file cannot be written.
    #[error("cannot write {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl Model {
    /// Encodes the model into one file's bytes.
    ///
    /// # Errors
    /// If the model breaks an invariant, or is larger than [`MAX_FILE_BYTES`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, ExportError> {
        encode(&self.to_proto()?)
    }

    pub(crate) fn to_proto(&self) -> Result<proto::ModelProto, ExportError> {
        self.verify().map_err(ExportError::Invalid)?;
        let mut model = (*self.rest).clone();
        model.ir_version = (self.ir_version != 0).then_some(self.ir_version);
        let opset = |opset: &crate::OpsetImport| proto::OperatorSetIdProto {
            domain: Some(opset.domain.clone()),
            version: Some(opset.version),
        };
        model.opset_import = self.opsets.iter().map(opset).collect();
        model.graph = Some(graph::export(&self.graph));
        Ok(model)
    }
}

fn encode(model: &proto::ModelProto) -> Result<Vec<u8>, ExportError> {
    let found = model.encoded_len() as u64;
    if found > MAX_FILE_BYTES {
        return Err(ExportError::TooLarge { found, limit: MAX_FILE_BYTES });
    }
    Ok(model.encode_to_vec())
}
