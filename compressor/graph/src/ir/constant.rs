//! Constants wherever exporters put them: initializers, `Constant` nodes, and `Identity` aliases of either.

use std::sync::Arc;

use super::{AttributeValue, Graph, Node, Origin, ValueId};
use crate::{Op, Tensor, UnaryOp};

/// Aliases followed before giving up; exporters chain one or two.
const MAX_ALIASES: usize = 64;

impl Graph {
    /// The tensor that `value` always holds: an initializer, the output of a `Constant` node, or an `Identity`
    /// of one. `None` for everything else, sparse initializers included.
    #[must_use]
    pub fn constant(&self, value: ValueId) -> Option<Arc<Tensor>> {
        let mut value = value;
        for _ in 0..MAX_ALIASES {
            let found = self.get_value(value)?;
            let Origin::Node(node, 0) = found.origin else {
                return if found.origin == Origin::Initializer { found.data.clone() } else { None };
            };
            let node = self.get_node(node)?;
            match node.op {
                Op::Constant => return constant_of(node),
                Op::Unary(UnaryOp::Identity) => value = node.input(0)?,
                _ => return None,
            }
        }
        None
    }

    /// The integers that `value` always holds, flattened.
    #[must_use]
    pub fn constant_ints(&self, value: ValueId) -> Option<Vec<i64>> {
        self.constant(value)?.to_i64_vec().ok()
    }
}

/// The tensor of a `Constant` node, from whichever attribute carries it.
pub(crate) fn constant_of(node: &Node) -> Option<Arc<Tensor>> {
    let [attribute] = node.attributes.as_slice() else { return None };
    let built = match (attribute.name.as_str(), &attribute.value) {
        ("value", AttributeValue::Tensor(tensor)) => return Some(Arc::clone(tensor)),
        ("value_float", AttributeValue::Float(v)) => Tensor::from_f32(vec![], &[*v]),
        ("value_floats", AttributeValue::Floats(v)) => Tensor::from_f32(vec![v.len()], v),
        ("value_int", AttributeValue::Int(v)) => Tensor::from_i64(vec![], &[*v]),
        ("value_ints", AttributeValue::Ints(v)) => Tensor::from_i64(vec![v.len()], v),
        ("value_string", AttributeValue::String(v)) => {
            Tensor::from_strings(vec![], vec![v.clone()])
        }
        ("value_strings", AttributeValue::Strings(v)) => {
            Tensor::from_strings(vec![v.len()], v.clone())
        }
        _ => return None,
    };
    built.ok().map(Arc::new)
}
