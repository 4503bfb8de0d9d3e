//! The interpreter's loop.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use graph::{Graph, Model, NodeId, Op, Origin, Tensor, ValueId};

use crate::error::{ExecError, OpError};
use crate::ops::{self, Context};
use crate::value::Value;

/// A model whose operators can all be run.
#[derive(Debug, Clone)]
pub struct Executor {
    graph: Arc<Graph>,
}

impl Executor {
    /// Checks that every operator of the main graph is supported.
    ///
    /// # Errors
    /// [`ExecError::Unsupported`] names the first node that is not.
    pub fn new(model: &Model) -> Result<Self, ExecError> {
        let graph = Arc::new(model.graph.clone());
        for (id, node) in graph.nodes() {
            if let Err(why) = ops::supported(node) {
                return Err(ExecError::Unsupported {
                    node: label(&graph, id),
                    op: node.op_type.clone(),
                    why,
                });
            }
        }
        Ok(Self { graph })
    }

    /// Names of the inputs that [`Executor::run`] wants.
    pub fn inputs(&self) -> impl Iterator<Item = &str> {
        self.graph.inputs().iter().map(|&value| self.name(value))
    }

    /// Computes `fetch` (the model's outputs or any other values) from `inputs`, by name.
    ///
    /// # Errors
    /// A missing or unreadable input, or a node that refuses its operands.
    #[allow(clippy::implicit_hasher)]
    pub fn run(
        &self,
        inputs: HashMap<String, Tensor>,
        fetch: &[ValueId],
    ) -> Result<HashMap<ValueId, Tensor>, ExecError> {
        let plan = self.plan(fetch)?;
        let mut values = self.feed(&inputs, &plan)?;
        let mut reads = plan.reads;
        for &id in &plan.nodes {
            let node = self.graph.node(id);
            let operands = self.operands(id, &values)?;
            let context = Context { node, operands };
            let results = ops::run(&context).map_err(|error| self.failed(id, &context, error))?;
            for (output, result) in node.outputs.iter().zip(results) {
                if let Some(output) = output.filter(|output| reads.contains_key(output)) {
                    values.insert(output, result);
                }
            }
            for input in node.inputs.iter().flatten() {
                release(*input, &mut reads, &mut values);
            }
        }
        fetch.iter().map(|&value| Ok((value, self.fetched(value, &values)?))).collect()
    }

    /// Nodes that `fetch` needs, in order, and how often each value is read.
    fn plan(&self, fetch: &[ValueId]) -> Result<Plan, ExecError> {
        let mut reads: HashMap<ValueId, usize> = HashMap::new();
        for &value in fetch {
            if self.graph.get_value(value).is_none() {
                let why = "it is not of this graph".to_owned();
                return Err(ExecError::Fetch { name: format!("{value:?}"), why });
            }
            *reads.entry(value).or_default() += 1;
        }
        let mut nodes = Vec::new();
        for (id, node) in self.graph.nodes().rev() {
            let wanted = node.outputs.iter().flatten().any(|output| reads.contains_key(output));
            if wanted && node.op != Op::Constant {
                nodes.push(id);
                for input in node.inputs.iter().flatten() {
                    *reads.entry(*input).or_default() += 1;
                }
            }
        }
        nodes.reverse();
        Ok(Plan { nodes, reads })
    }

    fn feed(
        &self,
        inputs: &HashMap<String, Tensor>,
        plan: &Plan,
    ) -> Result<HashMap<ValueId, Value>, ExecError> {
        let mut values = HashMap::new();
        let known: HashSet<&str> = self.inputs().collect();
        if let Some(name) = inputs.keys().find(|name| !known.contains(name.as_str())) {
            return Err(ExecError::Input {
                name: name.clone(),
                why: "the model has no such input".to_owned(),
            });
        }
        for &value in self.graph.inputs() {
            if !plan.reads.contains_key(&value) {
                continue;
            }
            let name = self.name(value);
            let fail = |why: String| ExecError::Input { name: name.to_owned(), why };
            let tensor = inputs.get(name).ok_or_else(|| fail("it is missing".to_owned()))?;
            let declared = self.graph.value(value).ty.as_ref();
            if let Some(ty) = declared.filter(|ty| ty.dtype != tensor.dtype) {
                return Err(fail(format!(
                    "the model wants {:?}, found {:?}",
                    ty.dtype, tensor.dtype
                )));
            }
            values.insert(
                value,
                Value::from_tensor(tensor).map_err(|error| fail(error.to_string()))?,
            );
        }
        Ok(values)
    }

    fn operands(
        &self,
        id: NodeId,
        values: &HashMap<ValueId, Value>,
    ) -> Result<Vec<Option<Value>>, ExecError> {
        let node = self.graph.node(id);
        node.inputs
            .iter()
            .map(|input| input.map(|value| self.operand(value, values)).transpose())
            .collect()
    }

    fn operand(
        &self,
        value: ValueId,
        values: &HashMap<ValueId, Value>,
    ) -> Result<Value, ExecError> {
        if let Some(found) = values.get(&value) {
            return Ok(found.clone());
        }
        let name = || self.name(value).to_owned();
        if let Some(tensor) = self.graph.constant(value) {
            return Value::from_tensor(&tensor)
                .map_err(|error| ExecError::Constant { name: name(), why: error.to_string() });
        }
        let why = match self.graph.value(value).origin {
            Origin::Outer => "it belongs to an enclosing graph",
            _ => "nothing computes it",
        };
        Err(ExecError::Fetch { name: name(), why: why.to_owned() })
    }

    fn fetched(
        &self,
        value: ValueId,
        values: &HashMap<ValueId, Value>,
    ) -> Result<Tensor, ExecError> {
        let found = self.operand(value, values)?;
        found.to_tensor().map_err(|error| ExecError::Fetch {
            name: self.name(value).to_owned(),
            why: error.to_string(),
        })
    }

    fn name(&self, value: ValueId) -> &str {
        &self.graph.value(value).name
    }

    fn failed(&self, id: NodeId, context: &Context<'_>, error: OpError) -> ExecError {
        let (node, op) = (label(&self.graph, id), context.node.op_type.clone());
        if let OpError::Unsupported(why) = error {
            return ExecError::Unsupported { node, op, why };
        }
        let shown = context.operands.iter().map(|operand| match operand {
            Some(value) => format!("{:?}{:?}", value.dtype, value.dims()),
            None => "-".to_owned(),
        });
        let operands = shown.collect::<Vec<_>>().join(", ");
        // candle appends a backtrace after the first line when one is enabled.
        let why = error.to_string().lines().next().unwrap_or_default().to_owned();
        ExecError::Run { node, op, operands, why }
    }
}

struct Plan {
    nodes: Vec<NodeId>,
    reads: HashMap<ValueId, usize>,
}

/// Forgets a value after its last read.
fn release(
    value: ValueId,
    reads: &mut HashMap<ValueId, usize>,
    values: &mut HashMap<ValueId, Value>,
) {
    if let Some(left) = reads.get_mut(&value) {
        *left = left.saturating_sub(1);
        if *left == 0 {
            values.remove(&value);
        }
    }
}

fn label(graph: &Graph, id: NodeId) -> String {
    let node = graph.node(id);
    if node.name.is_empty() { format!("#{}", id.0) } else { node.name.clone() }
}
