//! The intermediate representation: arenas of nodes and values keyed by id newtypes.
//!
//! Names from the file are labels for people and for export, never keys. Every value has exactly one
//! [`Origin`]. A subgraph (`If`, `Loop`, `Scan` bodies) is a [`Graph`] of its own inside an attribute;
//! what it reads from outside appears in it as a value with [`Origin::Outer`].

use std::{collections::HashMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{DType, Op, Tensor, op::resolve::Context, proto};

mod access;
mod constant;
mod node;
mod scope;

pub(crate) use constant::constant_of;
pub use scope::Scope;

/// Names a node of one [`Graph`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeId(pub u32);

/// Names a value (an edge: input, initializer or node output) of one [`Graph`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ValueId(pub u32);

/// One dimension of a shape.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Dim {
    /// A known size.
    Fixed(usize),
    /// A named symbol, equal wherever the same name stands.
    Symbol(String),
    /// Nothing is known.
    Unknown,
}

/// Element type and, where known, shape of a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Dimensions, or `None` when even the rank is unknown.
    pub dims: Option<Vec<Dim>>,
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A graph input fed by the caller.
    Input,
    /// A constant: an initializer, whether or not it is also listed as a graph input (IR < 4).
    Initializer,
    /// Output `1` of node `0`.
    Node(NodeId, usize),
    /// Captured by name from an enclosing graph.
    Outer,
}

/// An edge of the graph.
#[derive(Debug, Clone)]
pub struct Value {
    /// Label from the file; unique within the graph and its enclosing graphs.
    pub name: String,
    /// Where it comes from.
    pub origin: Origin,
    /// Type as declared by the file (`value_info`, inputs, outputs, initializers), not inferred.
    pub ty: Option<TensorType>,
    /// The constant itself, for [`Origin::Initializer`]; absent for a sparse initializer, which is carried but
    /// not computed with.
    pub data: Option<Arc<Tensor>>,
    /// What the file said beyond that.
    pub(crate) declared: Option<Box<Declared>>,
}

/// The file's own words about a value, written back as they were unless its type has been edited.
#[derive(Debug, Clone, Default)]
pub(crate) struct Declared {
    /// [`Value::ty`] as imported: where it differs now, the types below are rebuilt.
    pub(crate) ty: Option<TensorType>,
    pub(crate) input: Option<proto::ValueInfoProto>,
    pub(crate) output: Option<proto::ValueInfoProto>,
    pub(crate) inner: Option<proto::ValueInfoProto>,
    /// Documentation and metadata of an initializer, without its data.
    pub(crate) tensor: Option<proto::TensorProto>,
}

/// A node.
#[derive(Debug, Clone)]
pub struct Node {
    /// Label from the file, possibly empty.
    pub name: String,
    /// Operator domain; empty for `ai.onnx`.
    pub domain: String,
    /// Operator type as in the file.
    pub op_type: String,
    /// The decoded operator; [`Op::Opaque`] where the type is unknown or an attribute was not understood.
    pub op: Op,
    /// Inputs; `None` for an omitted optional one.
    pub inputs: Vec<Option<ValueId>>,
    /// Outputs; `None` for an omitted optional one.
    pub outputs: Vec<Option<ValueId>>,
    /// Every attribute of the file, in its order. `op` is derived from them.
    pub attributes: Vec<Attribute>,
    /// Documentation, overload, metadata and placement; its attributes hold only documentation.
    pub(crate) rest: Option<Box<proto::NodeProto>>,
}

/// A named attribute.
#[derive(Debug, Clone)]
pub struct Attribute {
    /// Attribute name.
    pub name: String,
    /// Its value.
    pub value: AttributeValue,
}

/// An attribute's value. What is not one of the plain kinds stays as the file had it.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum AttributeValue {
    Float(f32),
    Int(i64),
    String(bytes::Bytes),
    Floats(Vec<f32>),
    Ints(Vec<i64>),
    Strings(Vec<bytes::Bytes>),
    Tensor(Arc<Tensor>),
    Graph(Box<Graph>),
    Graphs(Vec<Graph>),
    /// Sparse tensors, type protos, references of function bodies: the encoded `AttributeProto`.
    Raw(bytes::Bytes),
}

/// A graph: the main one of a model or the body of a control-flow node.
///
/// Ids stay valid until their node or value is removed, and are never used again.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    /// Label from the file.
    pub name: String,
    pub(crate) nodes: Vec<Option<Node>>,
    pub(crate) values: Vec<Option<Value>>,
    /// Live nodes in topological order; that of the file where the file is sorted.
    pub(crate) order: Vec<NodeId>,
    /// Inputs that the caller feeds.
    pub(crate) inputs: Vec<ValueId>,
    /// Every value listed as a graph input: `inputs` and, in old files, initializers.
    pub(crate) listed: Vec<ValueId>,
    pub(crate) outputs: Vec<ValueId>,
    pub(crate) names: HashMap<String, ValueId>,
    /// What decoding a node depends on besides the graph; the model's, shared with the bodies.
    pub(crate) context: Arc<Context>,
    /// Everything else the file said of this graph (documentation, metadata, quantization annotations, sparse
    /// initializers, `value_info` of unknown names).
    pub(crate) rest: Box<proto::GraphProto>,
}

/// An operator set the model imports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpsetImport {
    /// Domain; empty for `ai.onnx`.
    pub domain: String,
    /// Version.
    pub version: i64,
}

/// Something in the file that was carried along but not understood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// Graph and node, as a person would name them.
    pub place: String,
    /// What was not understood.
    pub reason: String,
}

/// A whole model.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// `ir_version` of the file.
    pub ir_version: i64,
    /// Imported operator sets.
    pub opsets: Vec<OpsetImport>,
    /// The main graph.
    pub graph: Graph,
    /// What import preserved without understanding it.
    pub warnings: Vec<Warning>,
    /// Everything else (producer, metadata, functions, training info).
    pub(crate) rest: Box<proto::ModelProto>,
}

impl Model {
    /// Version of the operator set of `domain` (empty for `ai.onnx`).
    #[must_use]
    pub fn opset(&self, domain: &str) -> Option<i64> {
        let domain = canonical_domain(domain);
        self.opsets
            .iter()
            .find(|set| canonical_domain(&set.domain) == domain)
            .map(|set| set.version)
    }
}

impl Value {
    /// A value of `origin` that no file has described.
    pub(crate) fn new(name: impl Into<String>, origin: Origin, ty: Option<TensorType>) -> Self {
        Self { name: name.into(), origin, ty, data: None, declared: None }
    }
}

impl TensorType {
    /// Type of a constant.
    #[must_use]
    pub fn of(tensor: &Tensor) -> Self {
        let dims = tensor.dims.iter().map(|&dim| Dim::Fixed(dim)).collect();
        Self { dtype: tensor.dtype, dims: Some(dims) }
    }
}

impl Dim {
    /// The size, where known.
    #[must_use]
    pub fn fixed(&self) -> Option<usize> {
        match self {
            Self::Fixed(size) => Some(*size),
            Self::Symbol(_) | Self::Unknown => None,
        }
    }
}

/// `ai.onnx` is the long name of the default domain.
pub(crate) fn canonical_domain(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}
