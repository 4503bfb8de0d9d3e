//! Models made in code: for tests, tools and probes.

use std::sync::Arc;

use crate::{
    Applied, Attribute, AttributeValue, Cause, DType, Dim, Edit, EditError, Graph, Model, Node,
    OpsetImport, Origin, Tensor, TensorType, Value, ValueId, Violation, apply,
};

/// IR version of built models: the first one of today's rules for initializers and functions.
const IR_VERSION: i64 = 8;

/// Builds a model value by value.
///
/// ```
/// use graph::{Builder, DType, Dim, Tensor};
///
/// let mut builder = Builder::new(17);
/// let x = builder.input("x", DType::F32, vec![Dim::Symbol("N".into()), Dim::Fixed(2)]);
/// let w = builder.constant("w", Tensor::from_f32(vec![2, 3], &[0.0; 6]).unwrap()).unwrap();
/// let y = builder.node("MatMul", &[x, w], []).unwrap();
/// let model = builder.finish(&[y]).unwrap();
/// assert_eq!(graph::infer(&model).fixed_dims(w), Some(vec![2, 3]));
/// ```
#[derive(Debug, Clone)]
pub struct Builder {
    model: Model,
    cause: Cause,
}

impl Builder {
    /// An empty model of that `ai.onnx` operator set.
    #[must_use]
    pub fn new(opset: i64) -> Self {
        let mut model = Model {
            ir_version: IR_VERSION,
            opsets: vec![OpsetImport { domain: String::new(), version: opset }],
            ..Model::default()
        };
        "graph".clone_into(&mut model.graph.name);
        model.decode_ops();
        Self { model, cause: Cause::new("builder", "") }
    }

    /// Adds a graph input; the name is made unique.
    pub fn input(&mut self, name: &str, dtype: DType, dims: Vec<Dim>) -> ValueId {
        let name = self.model.graph.free_name(name);
        let ty = TensorType { dtype, dims: Some(dims) };
        let id = self.model.graph.push_value(Value::new(name, Origin::Input, Some(ty)));
        self.model.graph.inputs.push(id);
        self.model.graph.listed.push(id);
        id
    }

    /// Adds an initializer; the name is made unique.
    ///
    /// # Errors
    /// If the tensor's bytes and dimensions disagree.
    pub fn constant(&mut self, name: &str, tensor: Tensor) -> Result<ValueId, EditError> {
        let added = self.apply(Edit::AddConstant { name: name.to_owned(), tensor })?;
        Ok(added.values()[0])
    }

    /// Adds a node of the default domain with one output, which is named after the operator.
    ///
    /// # Errors
    /// If an input is not of this model.
    pub fn node<const N: usize>(
        &mut self,
        op_type: &str,
        inputs: &[ValueId],
        attributes: [(&str, AttributeValue); N],
    ) -> Result<ValueId, EditError> {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        Ok(self.nodes(op_type, &inputs, attributes, 1)?[0])
    }

    /// Adds a node with omitted inputs or several outputs.
    ///
    /// # Errors
    /// If an input is not of this model, or no output is wanted.
    pub fn nodes<'a>(
        &mut self,
        op_type: &str,
        inputs: &[Option<ValueId>],
        attributes: impl IntoIterator<Item = (&'a str, AttributeValue)>,
        outputs: usize,
    ) -> Result<Vec<ValueId>, EditError> {
        let attribute =
            |(name, value): (&str, AttributeValue)| Attribute { name: name.to_owned(), value };
        let attributes = attributes.into_iter().map(attribute).collect();
        let name = format!("{op_type}_{}", self.model.graph.nodes.len());
        let outputs = vec![name.clone(); outputs];
        let node = Node::new(op_type, name, inputs.to_vec(), attributes);
        Ok(self.apply(Edit::AddNode { node, outputs })?.values().to_vec())
    }

    /// Gives a value another name, which must be free.
    ///
    /// # Errors
    /// If it is not.
    pub fn rename(&mut self, value: ValueId, name: &str) -> Result<(), EditError> {
        self.apply(Edit::Rename { value, name: name.to_owned() }).map(drop)
    }

    /// A builder for the body of a control-flow node of this graph; [`Builder::control`] takes it in. Its names
    /// must be no names of this graph, but for those that it captures.
    #[must_use]
    pub fn body(&self) -> Self {
        let mut model = Model { graph: Graph::default(), ..self.model.clone() };
        model.graph.context = Arc::clone(&self.model.graph.context);
        "body".clone_into(&mut model.graph.name);
        Self { model, cause: self.cause.clone() }
    }

    /// In a body: the value of that name of a graph around it.
    pub fn capture(&mut self, name: &str) -> ValueId {
        let graph = &mut self.model.graph;
        let known = graph.value_by_name(name);
        known.unwrap_or_else(|| graph.push_value(Value::new(name, Origin::Outer, None)))
    }

    /// Adds a control-flow node with its bodies, by attribute name, each with its outputs.
    ///
    /// # Errors
    /// If an input is not of this model, or no output is wanted.
    pub fn control<'a>(
        &mut self,
        op_type: &str,
        inputs: &[Option<ValueId>],
        bodies: impl IntoIterator<Item = (&'a str, Self, Vec<ValueId>)>,
        outputs: usize,
    ) -> Result<Vec<ValueId>, EditError> {
        let added = self.nodes(op_type, inputs, [], outputs)?;
        let node = self.model.graph.producer(added[0]);
        for (name, body, outputs) in bodies {
            let mut graph = body.model.graph;
            graph.outputs = outputs;
            for (_, value) in graph.values().filter(|(_, value)| value.origin == Origin::Outer) {
                self.capture(&value.name);
            }
            if let Some(node) = node.and_then(|node| self.model.graph.node_mut(node)) {
                let value = AttributeValue::Graph(Box::new(graph));
                node.attributes.push(Attribute { name: name.to_owned(), value });
            }
        }
        Ok(added)
    }

    /// The graph so far.
    #[must_use]
    pub fn graph(&self) -> &Graph {
        &self.model.graph
    }

    /// The model with these outputs, whose types are inferred.
    ///
    /// # Errors
    /// What the verifier finds.
    pub fn finish(mut self, outputs: &[ValueId]) -> Result<Model, Vec<Violation>> {
        self.model.graph.outputs = outputs.to_vec();
        // Control flow is decoded by its bodies, which came after the node.
        self.model.decode_ops();
        self.model.verify()?;
        let shapes = crate::infer(&self.model);
        for &output in outputs {
            if let Some(value) =
                self.model.graph.value_mut(output).filter(|value| value.ty.is_none())
            {
                value.ty = shapes.ty(output).cloned();
            }
        }
        Ok(self.model)
    }

    fn apply(&mut self, edit: Edit) -> Result<Applied, EditError> {
        apply(&mut self.model.graph, edit, &self.cause)
    }
}
