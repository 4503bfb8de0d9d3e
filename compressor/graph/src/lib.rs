//! What a model is: a typed ONNX graph, its shapes, couplings, edits and verifier.
//!
//! The crate knows nothing of engines, files other than models, or policy. A model goes through it
//! unharmed: [`Model::load`] then [`Model::save`] is semantically equal for every ONNX model, the
//! unknown included.

mod group;
mod prune;
mod ir;
mod op;
mod tensor;

pub use ir::{
    Attribute, AttributeValue, Dim, Graph, Model, Node, NodeId, OpsetImport, Origin, TensorType,
    Value, ValueId,
};
pub use op::{
    BinaryOp, ConvAttrs, GemmAttrs, Op, PoolAttrs, PoolKind, ReduceKind, UnaryOp,
};
pub use tensor::{DType, Tensor, TensorError};
pub use group::{
    Consumer, Group, GroupId, Grouping, IndexMap, Locked, LockedBy, Role, Slice,
};
pub use prune::{Choice, PrunePlan, PruneReport};
