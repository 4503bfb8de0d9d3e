//! What a model is: a typed ONNX graph, its shapes, couplings, edits and verifier.
//!
//! The crate knows nothing of engines, files other than models, or policy. A model goes through it
//! unharmed: [`Model::load`] then [`Model::save`] is semantically equal for every ONNX model, the
//! unknown included.

mod builder;
pub mod cost;
pub mod coupling;
mod edit;
mod export;
mod extract;
mod group;
mod import;
mod infer;
mod ir;
mod op;
mod order;
mod pass;
mod proto;
mod proto_walk;
mod prune;
mod same;
mod shape_operand;
mod tensor;
mod verify;

pub use builder::Builder;
pub use edit::{Applied, Cause, Edit, EditError, apply};
pub use export::{EXTERNAL_ABOVE_BYTES, ExportError, MAX_FILE_BYTES, SaveOptions, Saved};
pub use extract::{Given, extract};
pub use group::{
    Consumer, Group, GroupId, Grouping, Hop, IndexMap, Locked, LockedBy, MAX_REACHES, PairedBy,
    Reach, Role, Slice, StatePair, find, why,
};
pub use import::{ImportError, MAP_ABOVE_BYTES, limits};
pub use infer::{Conflict, Shapes, infer, infer_given};
pub use ir::{
    Attribute, AttributeValue, Dim, Graph, Model, Node, NodeId, OpsetImport, Origin, Scope,
    TensorType, Value, ValueId, Warning,
};
pub use op::{
    BinaryOp, ConvAttrs, EinsumEquation, GemmAttrs, NEWEST_OPSET, Op, PoolAttrs, PoolKind,
    RecurrentAttrs, RecurrentKind, ReduceKind, SliceAttrs, UnaryOp,
};
pub use pass::{
    DeadCode, Driver, Editor, FoldMoves, Halt, InlineIf, LiftConstants, OwnConstants, Pass,
    PassError, Step,
};
pub use prune::{Choice, PruneError, PrunePlan, PruneReport, mask, prune};
pub use same::{Difference, same};
pub use tensor::{DType, Tensor, TensorError};
pub use verify::Violation;
