//! Changing a graph: a change is a value ([`Edit`]) with a reason ([`Cause`]), and [`apply`] makes it.
//!
//! Every edit leaves a graph that [`Model::verify`](crate::Model::verify) accepts, or fails and leaves it as it
//! was. Ids stay valid until their node or value is removed. What an edit means for the numbers is the caller's
//! affair; types that the file declared for other values are not touched (see [`Edit::SetType`] and
//! [`Edit::ForgetTypes`]).

use std::{fmt, sync::Arc};

use crate::{AttributeValue, Graph, Node, NodeId, Tensor, TensorType, ValueId};

mod inline;
mod nodes;
mod values;

/// Who changes something, and why: shown in reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Pass, rule or group.
    pub by: String,
    /// The reason, for a person.
    pub note: String,
}

impl Cause {
    /// A cause.
    #[must_use]
    pub fn new(by: impl Into<String>, note: impl Into<String>) -> Self {
        Self { by: by.into(), note: note.into() }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.note.is_empty() {
            f.write_str(&self.by)
        } else {
            write!(f, "{}: {}", self.by, self.note)
        }
    }
}

/// One change of a graph.
#[derive(Debug, Clone)]
pub enum Edit {
    /// Gives an initializer, or the output of a `Constant` node, another tensor.
    SetConstant {
        /// The constant itself; not an `Identity` alias of one.
        value: ValueId,
        /// Its new tensor.
        tensor: Tensor,
    },
    /// Adds an initializer.
    AddConstant {
        /// Wished name; made unique.
        name: String,
        /// Its tensor.
        tensor: Tensor,
    },
    /// Removes an initializer that nothing reads.
    RemoveConstant {
        /// The initializer.
        value: ValueId,
    },
    /// Adds a node, after those that it reads.
    AddNode {
        /// From [`Node::new`]; its outputs are made by this edit.
        node: Node,
        /// Wished names of its outputs; made unique.
        outputs: Vec<String>,
    },
    /// Puts another node in the place of one: it writes the same outputs and keeps the id.
    ReplaceNode {
        /// The node that goes.
        node: NodeId,
        /// From [`Node::new`].
        with: Node,
    },
    /// Removes a node whose outputs nothing reads.
    RemoveNode {
        /// The node.
        node: NodeId,
    },
    /// Removes what a body captured and reads no more.
    RemoveCapture {
        /// The captured value.
        value: ValueId,
    },
    /// Replaces an `If` by one of its branches.
    Inline {
        /// The `If`.
        node: NodeId,
        /// `then_branch` or `else_branch`.
        branch: String,
    },
    /// Makes a node read another value.
    ReplaceInput {
        /// The node.
        node: NodeId,
        /// Input slot; one beyond the last appends.
        slot: usize,
        /// What to read; `None` omits the input.
        value: Option<ValueId>,
    },
    /// Sets or removes an attribute that is no graph.
    SetAttribute {
        /// The node.
        node: NodeId,
        /// Attribute name.
        name: String,
        /// Its value; `None` removes it.
        value: Option<AttributeValue>,
    },
    /// Appends a graph output.
    AddOutput {
        /// A value of the graph that is no output yet.
        value: ValueId,
    },
    /// Makes these the graph outputs.
    SetOutputs {
        /// The new outputs, in order; at least one.
        values: Vec<ValueId>,
    },
    /// Renames a value, in the bodies that capture it too.
    Rename {
        /// The value.
        value: ValueId,
        /// The new name; must be free, in bodies too.
        name: String,
    },
    /// Replaces a declared type.
    SetType {
        /// A value that is no constant.
        value: ValueId,
        /// What to declare; `None` declares nothing.
        ty: Option<TensorType>,
    },
    /// Forgets the declared types of everything that nodes compute, outputs of the graph excepted: after an
    /// edit that changes shapes they would be wrong.
    ForgetTypes,
}

/// What an edit made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    node: Option<NodeId>,
    values: Vec<ValueId>,
}

impl Applied {
    /// The node that was added.
    #[must_use]
    pub fn node(&self) -> Option<NodeId> {
        self.node
    }

    /// The value that was added: the constant, or the first output of the node.
    #[must_use]
    pub fn value(&self) -> Option<ValueId> {
        self.values.first().copied()
    }

    /// Every value that was added.
    #[must_use]
    pub fn values(&self) -> &[ValueId] {
        &self.values
    }
}

/// Why an edit was not made. The graph is as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{cause}: {what}")]
pub struct EditError {
    /// Who wanted it.
    pub cause: Cause,
    /// What stands against it.
    pub what: String,
}

/// Makes one edit.
///
/// # Errors
/// If the edit would break an invariant: then the graph is as it was.
pub fn apply(graph: &mut Graph, edit: Edit, cause: &Cause) -> Result<Applied, EditError> {
    let done = match edit {
        Edit::SetConstant { value, tensor } => values::set_constant(graph, value, tensor),
        Edit::AddConstant { name, tensor } => values::add_constant(graph, &name, tensor),
        Edit::RemoveConstant { value } => values::remove_constant(graph, value),
        Edit::RemoveCapture { value } => values::remove_capture(graph, value),
        Edit::AddNode { node, outputs } => nodes::add(graph, node, &outputs),
        Edit::ReplaceNode { node, with } => nodes::replace(graph, node, with),
        Edit::RemoveNode { node } => nodes::remove(graph, node),
        Edit::Inline { node, branch } => inline::inline(graph, node, &branch),
        Edit::ReplaceInput { node, slot, value } => nodes::replace_input(graph, node, slot, value),
        Edit::SetAttribute { node, name, value } => nodes::set_attribute(graph, node, &name, value),
        Edit::AddOutput { value } => values::add_output(graph, value),
        Edit::SetOutputs { values } => values::set_outputs(graph, values),
        Edit::Rename { value, name } => values::rename(graph, value, name),
        Edit::SetType { value, ty } => values::set_type(graph, value, ty),
        Edit::ForgetTypes => Ok(values::forget_types(graph)),
    };
    done.map_err(|what| EditError { cause: cause.clone(), what })
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetConstant { value, tensor } => {
                write!(f, "set constant {} to {:?}", value.0, tensor.dims)
            }
            Self::AddConstant { name, tensor } => {
                write!(f, "add constant `{name}` {:?}", tensor.dims)
            }
            Self::RemoveConstant { value } => write!(f, "remove constant {}", value.0),
            Self::RemoveCapture { value } => write!(f, "forget captured value {}", value.0),
            Self::AddNode { node, .. } => write!(f, "add {} `{}`", node.op_type, node.name),
            Self::ReplaceNode { node, with } => {
                write!(f, "replace node {} by {}", node.0, with.op_type)
            }
            Self::RemoveNode { node } => write!(f, "remove node {}", node.0),
            Self::Inline { node, branch } => write!(f, "replace node {} by its {branch}", node.0),
            Self::ReplaceInput { node, slot, value } => {
                let value = value
                    .map_or_else(|| "nothing".to_owned(), |value| format!("value {}", value.0));
                write!(f, "feed input {slot} of node {} from {value}", node.0)
            }
            Self::SetAttribute { node, name, .. } => {
                write!(f, "set attribute `{name}` of node {}", node.0)
            }
            Self::AddOutput { value } => write!(f, "make value {} an output", value.0),
            Self::SetOutputs { values } => write!(f, "make {} values the outputs", values.len()),
            Self::Rename { value, name } => write!(f, "name value {} `{name}`", value.0),
            Self::SetType { value, .. } => write!(f, "declare the type of value {}", value.0),
            Self::ForgetTypes => f.write_str("forget the declared types"),
        }
    }
}

impl Graph {
    /// A name like `wish` that no value of this graph, of the graphs around it that it captures from, or of its
    /// bodies has.
    #[must_use]
    pub fn free_name(&self, wish: &str) -> String {
        let wish = if wish.is_empty() { "value" } else { wish };
        let numbered = (1u32..).map(|number| format!("{wish}_{number}"));
        let mut names = std::iter::once(wish.to_owned()).chain(numbered);
        names.find(|name| !self.knows(name)).unwrap_or_else(|| wish.to_owned())
    }

    fn knows(&self, name: &str) -> bool {
        let bodies = || self.order.iter().flat_map(|&id| self.subgraphs(id));
        self.names.contains_key(name) || bodies().any(|(_, body)| body.knows(name))
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(id.0 as usize)?.as_mut()
    }

    pub(crate) fn value_mut(&mut self, id: ValueId) -> Option<&mut crate::Value> {
        self.values.get_mut(id.0 as usize)?.as_mut()
    }

    fn check_value(&self, id: ValueId) -> Result<&crate::Value, String> {
        self.get_value(id).ok_or_else(|| format!("there is no value {}", id.0))
    }

    fn check_node(&self, id: NodeId) -> Result<&Node, String> {
        self.get_node(id).ok_or_else(|| format!("there is no node {}", id.0))
    }

    /// Decodes anew the nodes that look at the constant `value`, aliases of it included.
    pub(crate) fn decode_readers(&mut self, value: ValueId) {
        let mut changed = vec![value];
        while let Some(value) = changed.pop() {
            for (id, _) in self.consumers(value) {
                let before = self.node(id).op.clone();
                self.decode_again(id);
                let node = self.node(id);
                if matches!(node.op, crate::Op::Unary(crate::UnaryOp::Identity))
                    || before != node.op
                {
                    changed.extend(node.output(0));
                }
            }
        }
    }

    fn decode_again(&mut self, id: NodeId) {
        let context = Arc::clone(&self.context);
        let op = context.decode(self, self.node(id)).unwrap_or(crate::Op::Opaque);
        if let Some(node) = self.node_mut(id) {
            node.op = op;
        }
    }
}
