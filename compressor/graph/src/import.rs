//! From an ONNX file to [`Model`].
//!
//! What the graph needs is decoded; everything else the file says is carried along and written back. Weights
//! are not copied: they are slices of the file, mapped where it is large.
//!
//! Nothing in a file makes import panic: what is wrong is an [`ImportError`] that says what and where, and
//! what grows with the file has a limit in [`limits`].

use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;

use crate::{Model, OpsetImport, TensorError, Violation, Warning, proto};

mod attribute;
mod census;
mod external;
mod file;
mod graph;
mod mapped;
mod tensor;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod types;

pub use file::MAP_ABOVE_BYTES;
pub(crate) use graph::node_label;
pub(crate) use types::tensor_type;

/// How much of anything a file may hold.
pub mod limits {
    /// Nodes, attributes, tensors, types and entries of a file, bodies and functions included. In memory each
    /// takes hundreds of bytes.
    pub const MESSAGES: usize = 1 << 22;
    /// Nodes of one graph.
    pub const NODES: usize = 1 << 20;
    /// Values of one graph.
    pub const VALUES: usize = 1 << 22;
    /// Depth of control-flow bodies within bodies.
    pub const SUBGRAPH_DEPTH: usize = 24;
    /// Rank of a tensor.
    pub const RANK: usize = 64;
    /// Warnings kept; further ones are only counted, in the last.
    pub const WARNINGS: usize = 1000;
}

/// Why a file is no model that we can read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The bytes are no `ModelProto`: truncated, damaged, or another format.
    #[error("not an ONNX model, or a damaged one: {0}")]
    Decode(#[from] prost::DecodeError),
    /// The bytes decode, but hold no graph.
    #[error("the file holds no graph: is it an ONNX model?")]
    NoGraph,
    /// An operator set that cannot be: not positive, or imported twice.
    #[error("operator set {version} of domain `{domain}` is not valid: {reason}")]
    Opset {
        /// Domain.
        domain: String,
        /// Version.
        version: i64,
        /// What is wrong.
        reason: &'static str,
    },
    /// Two values of one graph have one name.
    #[error("{place}: the name `{name}` is given to two values, the second {what}")]
    DuplicateName {
        /// Graph.
        place: String,
        /// The name.
        name: String,
        /// What the second one is.
        what: &'static str,
    },
    /// A value that must have a name has none.
    #[error("{place}: {what} has no name")]
    NoName {
        /// Graph.
        place: String,
        /// What lacks it.
        what: &'static str,
    },
    /// A name is read that nothing provides.
    #[error("{place}: `{name}` is read, and nothing provides it")]
    MissingValue {
        /// Graph and node, or output.
        place: String,
        /// The name.
        name: String,
    },
    /// Nodes that depend on themselves.
    #[error("{place}: the nodes depend on each other in a circle: {}", nodes.join(", "))]
    Cycle {
        /// Graph.
        place: String,
        /// Some of them.
        nodes: Vec<String>,
    },
    /// A tensor whose bytes, type and dimensions disagree.
    #[error("{place}: {source}")]
    Tensor {
        /// Graph and name.
        place: String,
        /// What disagrees.
        source: TensorError,
    },
    /// A tensor that is wrong in another way.
    #[error("{place}: {reason}")]
    TensorData {
        /// Graph and name.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// External data that cannot or must not be read.
    #[error("{place}: external data at `{location}`: {reason}")]
    External {
        /// Graph and name.
        place: String,
        /// The location, as the file has it.
        location: String,
        /// What is wrong.
        reason: String,
    },
    /// An attribute that holds a graph and something else besides.
    #[error("{place}: attribute `{name}` holds more than one value")]
    Attribute {
        /// Graph and node.
        place: String,
        /// Attribute.
        name: String,
    },
    /// More of something than [`limits`] allows.
    #[error("{place}: {found} {what}, more than the limit of {limit}")]
    Limit {
        /// Graph or tensor.
        place: String,
        /// What there is too much of.
        what: &'static str,
        /// How much there is.
        found: usize,
        /// How much there may be.
        limit: usize,
    },
    /// The model was read, and breaks invariants.
    #[error("the model is not valid: {}", crate::verify::summary(.0))]
    Invalid(Vec<Violation>),
}

impl Model {
    /// Reads a model and its external data.
    ///
    /// Files of [`MAP_ABOVE_BYTES`](crate::MAP_ABOVE_BYTES) and more are mapped, not read: whoever truncates
    /// such a file while the model lives ends the process. Replacing it (as [`Model::save`] does) is harmless.
    ///
    /// # Errors
    /// See [`ImportError`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ImportError> {
        let path = path.as_ref();
        let bytes =
            file::read(path).map_err(|source| ImportError::Io { path: path.into(), source })?;
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        Self::from_bytes(bytes, Some(folder))
    }

    /// Reads a model from memory; external data is looked for in `external_dir`.
    ///
    /// # Errors
    /// See [`ImportError`].
    pub fn from_bytes(
        bytes: impl Into<Bytes>,
        external_dir: Option<&Path>,
    ) -> Result<Self, ImportError> {
        let bytes: Bytes = bytes.into();
        let len = bytes.len();
        let found = census::messages(&bytes, limits::MESSAGES);
        if found > limits::MESSAGES {
            let (place, what) = ("file".to_owned(), "messages");
            return Err(ImportError::Limit { place, what, found, limit: limits::MESSAGES });
        }
        let mut proto = proto::ModelProto::decode(bytes)?;
        let lost = len.saturating_sub(proto.encoded_len());
        external::inline(&mut proto, external_dir)?;
        let mut model = from_proto(proto)?;
        if lost > 0 {
            let reason = format!(
                "{lost} bytes are of fields newer than this version knows, and are not written back"
            );
            model.warnings.push(Warning { place: "file".to_owned(), reason });
        }
        model.verify().map_err(ImportError::Invalid)?;
        Ok(model)
    }
}

fn from_proto(mut proto: proto::ModelProto) -> Result<Model, ImportError> {
    let graph = proto.graph.take().ok_or(ImportError::NoGraph)?;
    let opsets = opsets(std::mem::take(&mut proto.opset_import))?;
    let ir_version = proto.ir_version.take().unwrap_or(0);
    let graph = graph::import(graph)?;
    let rest = Box::new(proto);
    let mut model = Model { ir_version, opsets, graph, warnings: Vec::new(), rest };
    model.decode_ops();
    Ok(model)
}

fn opsets(imports: Vec<proto::OperatorSetIdProto>) -> Result<Vec<OpsetImport>, ImportError> {
    let mut opsets: Vec<OpsetImport> = Vec::with_capacity(imports.len());
    for import in imports {
        let opset = OpsetImport {
            domain: import.domain.unwrap_or_default(),
            version: import.version.unwrap_or_default(),
        };
        let invalid = |reason| ImportError::Opset {
            domain: if opset.domain.is_empty() { "ai.onnx" } else { &*opset.domain }.to_owned(),
            version: opset.version,
            reason,
        };
        if opset.version < 1 {
            return Err(invalid("versions start at 1"));
        }
        let canonical = crate::ir::canonical_domain;
        let twice =
            opsets.iter().find(|other| canonical(&other.domain) == canonical(&opset.domain));
        match twice {
            Some(other) if other.version != opset.version => {
                return Err(invalid("the domain is imported twice, with different versions"));
            }
            Some(other) if other.domain == opset.domain => {}
            _ => opsets.push(opset),
        }
    }
    Ok(opsets)
}
