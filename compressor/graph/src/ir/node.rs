//! Reading a node.

use super::{Attribute, AttributeValue, Node, ValueId};
use crate::Op;

impl Node {
    /// A node that no file has described. Its `op` is [`Op::Opaque`] until a graph of a model takes it in.
    #[must_use]
    pub fn new(
        op_type: impl Into<String>,
        name: impl Into<String>,
        inputs: Vec<Option<ValueId>>,
        attributes: Vec<Attribute>,
    ) -> Self {
        Self {
            name: name.into(),
            domain: String::new(),
            op_type: op_type.into(),
            op: Op::Opaque,
            inputs,
            outputs: Vec::new(),
            attributes,
            rest: None,
        }
    }

    /// Input `slot`; `None` where it is omitted or absent.
    #[must_use]
    pub fn input(&self, slot: usize) -> Option<ValueId> {
        self.inputs.get(slot).copied().flatten()
    }

    /// Output `slot`; `None` where it is omitted or absent.
    #[must_use]
    pub fn output(&self, slot: usize) -> Option<ValueId> {
        self.outputs.get(slot).copied().flatten()
    }

    /// The attribute of that name.
    #[must_use]
    pub fn attr(&self, name: &str) -> Option<&AttributeValue> {
        self.attributes
            .iter()
            .find(|attribute| attribute.name == name)
            .map(|attribute| &attribute.value)
    }

    /// An integer attribute.
    #[must_use]
    pub fn attr_int(&self, name: &str) -> Option<i64> {
        if let Some(AttributeValue::Int(v)) = self.attr(name) { Some(*v) } else { None }
    }

    /// A float attribute.
    #[must_use]
    pub fn attr_float(&self, name: &str) -> Option<f32> {
        if let Some(AttributeValue::Float(v)) = self.attr(name) { Some(*v) } else { None }
    }

    /// An attribute of integers.
    #[must_use]
    pub fn attr_ints(&self, name: &str) -> Option<&[i64]> {
        if let Some(AttributeValue::Ints(v)) = self.attr(name) { Some(v) } else { None }
    }

    /// A string attribute, where it is UTF-8.
    #[must_use]
    pub fn attr_str(&self, name: &str) -> Option<&str> {
        if let Some(AttributeValue::String(v)) = self.attr(name) {
            std::str::from_utf8(v).ok()
        } else {
            None
        }
    }

    /// Whether an attribute holds a graph.
    #[must_use]
    pub fn has_subgraphs(&self) -> bool {
        let holds = |value: &AttributeValue| {
            matches!(value, AttributeValue::Graph(_) | AttributeValue::Graphs(_))
        };
        self.attributes.iter().any(|attribute| holds(&attribute.value))
    }
}
