//! Graphs: names become ids, bodies see the names around them, nodes are put in topological order.

use std::{collections::HashSet, sync::Arc};

use super::{ImportError, limits, tensor, tensor_type};
use crate::{
    DType, Dim, Graph, Node, NodeId, Op, Origin, TensorType, Value, ValueId, ir::Declared, order,
    proto,
};

/// What a body can see: the names of the graphs around it.
struct Scope<'a> {
    names: HashSet<String>,
    outer: Option<&'a Scope<'a>>,
    depth: usize,
}

impl Scope<'_> {
    fn contains(&self, name: &str) -> bool {
        self.names.contains(name) || self.outer.is_some_and(|outer| outer.contains(name))
    }
}

/// Imports the main graph.
pub(super) fn import(proto: proto::GraphProto) -> Result<Graph, ImportError> {
    within(proto, None, "graph".to_owned())
}

fn within(
    proto: proto::GraphProto,
    outer: Option<&Scope<'_>>,
    place: String,
) -> Result<Graph, ImportError> {
    let depth = outer.map_or(0, |outer| outer.depth + 1);
    let limit = |what, found, limit| match found > limit {
        true => Err(ImportError::Limit { place: place.clone(), what, found, limit }),
        false => Ok(()),
    };
    limit("levels of bodies", depth, limits::SUBGRAPH_DEPTH)?;
    limit("nodes", proto.node.len(), limits::NODES)?;
    let outputs: usize = proto.node.iter().map(|node| node.output.len()).sum();
    limit("values", outputs + proto.initializer.len() + proto.input.len(), limits::VALUES)?;
    Importer { graph: Graph::default(), outer, place, depth }.run(proto)
}

struct Importer<'a> {
    graph: Graph,
    outer: Option<&'a Scope<'a>>,
    place: String,
    depth: usize,
}

impl Importer<'_> {
    fn run(mut self, mut proto: proto::GraphProto) -> Result<Graph, ImportError> {
        self.graph.name = proto.name.take().unwrap_or_default();
        let nodes = std::mem::take(&mut proto.node);
        self.inputs(std::mem::take(&mut proto.input))?;
        self.initializers(std::mem::take(&mut proto.initializer))?;
        self.sparse_initializers(&proto.sparse_initializer)?;
        let node_outputs = self.node_outputs(&nodes)?;
        self.outputs(std::mem::take(&mut proto.output))?;
        proto.value_info = self.value_infos(std::mem::take(&mut proto.value_info));
        self.declare_types();
        self.nodes(nodes, node_outputs)?;
        self.graph.rest = Box::new(proto);
        order::sort(&mut self.graph).map_err(|circle| {
            let name = |id: &NodeId| node_label(self.graph.node(*id));
            let nodes = circle.iter().take(5).map(name).collect();
            ImportError::Cycle { place: self.place.clone(), nodes }
        })?;
        Ok(self.graph)
    }

    fn inputs(&mut self, inputs: Vec<proto::ValueInfoProto>) -> Result<(), ImportError> {
        for info in inputs {
            let id = self.define(info.name(), Origin::Input, "an input")?;
            self.graph.inputs.push(id);
            self.graph.listed.push(id);
            self.declared(id).input = Some(info);
        }
        Ok(())
    }

    fn initializers(&mut self, initializers: Vec<proto::TensorProto>) -> Result<(), ImportError> {
        for mut proto in initializers {
            let name = proto.name.take().unwrap_or_default();
            let place = || format!("{}, initializer `{name}`", self.place);
            let (tensor, rest) = tensor::import(proto, &place)?;
            let id = self.define_initializer(&name)?;
            if rest != proto::TensorProto::default() {
                self.declared(id).tensor = Some(rest);
            }
            let value = self.value(id);
            value.ty = Some(TensorType::of(&tensor));
            value.data = Some(Arc::new(tensor));
        }
        Ok(())
    }

    fn sparse_initializers(
        &mut self,
        initializers: &[proto::SparseTensorProto],
    ) -> Result<(), ImportError> {
        for sparse in initializers {
            let values = sparse.values.as_ref();
            let id = self.define_initializer(values.map_or("", |values| values.name()))?;
            let dims = sparse
                .dims
                .iter()
                .map(|&dim| usize::try_from(dim).map_or(Dim::Unknown, Dim::Fixed));
            let dtype = DType::from_onnx(values.map_or(0, |values| values.data_type()));
            self.value(id).ty = Some(TensorType { dtype, dims: Some(dims.collect()) });
        }
        Ok(())
    }

    /// An initializer gives a listed input its value; any other reuse of a name is wrong.
    fn define_initializer(&mut self, name: &str) -> Result<ValueId, ImportError> {
        match self.graph.value_by_name(name) {
            Some(id) if self.value(id).origin == Origin::Input => {
                self.value(id).origin = Origin::Initializer;
                self.graph.inputs.retain(|&input| input != id);
                Ok(id)
            }
            _ => self.define(name, Origin::Initializer, "an initializer"),
        }
    }

    fn node_outputs(
        &mut self,
        nodes: &[proto::NodeProto],
    ) -> Result<Vec<Vec<Option<ValueId>>>, ImportError> {
        let mut all = Vec::with_capacity(nodes.len());
        for (id, node) in (0u32..).map(NodeId).zip(nodes) {
            let mut outputs = Vec::with_capacity(node.output.len());
            for (slot, name) in node.output.iter().enumerate() {
                let origin = Origin::Node(id, slot);
                outputs.push(match name.as_str() {
                    "" => None,
                    name => Some(self.define(name, origin, "the output of a node")?),
                });
            }
            all.push(outputs);
        }
        Ok(all)
    }

    fn outputs(&mut self, outputs: Vec<proto::ValueInfoProto>) -> Result<(), ImportError> {
        for info in outputs {
            let Some(id) = self.resolve(info.name()) else {
                let place = format!("{}, output", self.place);
                return Err(ImportError::MissingValue { place, name: info.name().to_owned() });
            };
            self.graph.outputs.push(id);
            self.declared(id).output.get_or_insert(info);
        }
        Ok(())
    }

    /// Attaches what it can; what names nothing, or a value twice, is returned and carried.
    fn value_infos(&mut self, infos: Vec<proto::ValueInfoProto>) -> Vec<proto::ValueInfoProto> {
        let mut left = Vec::new();
        for info in infos {
            match self.graph.value_by_name(info.name()) {
                Some(id) if self.declared(id).inner.is_none() => {
                    self.declared(id).inner = Some(info)
                }
                _ => left.push(info),
            }
        }
        left
    }

    fn declare_types(&mut self) {
        for value in self.graph.values.iter_mut().flatten() {
            let Some(declared) = &mut value.declared else { continue };
            let infos = [&declared.input, &declared.output, &declared.inner];
            if value.ty.is_none() {
                value.ty = infos.into_iter().flatten().find_map(tensor_type);
            }
            declared.ty.clone_from(&value.ty);
        }
    }

    fn nodes(
        &mut self,
        nodes: Vec<proto::NodeProto>,
        outputs: Vec<Vec<Option<ValueId>>>,
    ) -> Result<(), ImportError> {
        let bodies =
            nodes.iter().flat_map(|node| &node.attribute).any(super::attribute::holds_graph);
        let names =
            if bodies { self.graph.names.keys().cloned().collect() } else { HashSet::new() };
        let scope = Scope { names, outer: self.outer, depth: self.depth };
        for (proto, outputs) in nodes.into_iter().zip(outputs) {
            let node = self.node(proto, outputs, &scope)?;
            self.graph.nodes.push(Some(node));
        }
        Ok(())
    }

    fn node(
        &mut self,
        mut proto: proto::NodeProto,
        outputs: Vec<Option<ValueId>>,
        scope: &Scope<'_>,
    ) -> Result<Node, ImportError> {
        let mut node = Node {
            name: proto.name.take().unwrap_or_default(),
            domain: proto.domain.take().unwrap_or_default(),
            op_type: proto.op_type.take().unwrap_or_default(),
            op: Op::Opaque,
            inputs: Vec::with_capacity(proto.input.len()),
            outputs,
            attributes: Vec::with_capacity(proto.attribute.len()),
            rest: None,
        };
        let label = match node.name.as_str() {
            "" => format!(
                "{} node writing `{}`",
                node.op_type,
                proto.output.first().map_or("", |o| o)
            ),
            name => format!("{} node `{name}`", node.op_type),
        };
        let place = format!("{}, {label}", self.place);
        for name in std::mem::take(&mut proto.input) {
            let input = self.resolve(&name);
            if input.is_none() && !name.is_empty() {
                return Err(ImportError::MissingValue { place, name });
            }
            node.inputs.push(input);
        }
        proto.output.clear();
        for attribute in std::mem::take(&mut proto.attribute) {
            let mut body = |graph: proto::GraphProto, name: &str| {
                let graph = within(graph, Some(scope), format!("{place}, `{name}`"))?;
                self.capture(&graph);
                Ok(graph)
            };
            let (attribute, rest) = super::attribute::import(attribute, &place, &mut body)?;
            node.attributes.push(attribute);
            proto.attribute.extend(rest);
        }
        node.rest = (proto != proto::NodeProto::default()).then(|| Box::new(proto));
        Ok(node)
    }

    /// What a body captures from beyond this graph passes through it as a value of its own, so that captures
    /// can be followed one level at a time.
    fn capture(&mut self, body: &Graph) {
        for (_, value) in body.values().filter(|(_, value)| value.origin == Origin::Outer) {
            self.resolve(&value.name);
        }
    }

    fn resolve(&mut self, name: &str) -> Option<ValueId> {
        if name.is_empty() {
            return None;
        }
        if let Some(id) = self.graph.value_by_name(name) {
            return Some(id);
        }
        let visible = self.outer.is_some_and(|outer| outer.contains(name));
        visible.then(|| self.graph.push_value(Value::new(name, Origin::Outer, None)))
    }

    fn define(
        &mut self,
        name: &str,
        origin: Origin,
        what: &'static str,
    ) -> Result<ValueId, ImportError> {
        if name.is_empty() {
            return Err(ImportError::NoName { place: self.place.clone(), what });
        }
        if self.graph.value_by_name(name).is_some() {
            let (place, name) = (self.place.clone(), name.to_owned());
            return Err(ImportError::DuplicateName { place, name, what });
        }
        Ok(self.graph.push_value(Value::new(name, origin, None)))
    }

    fn value(&mut self, id: ValueId) -> &mut Value {
        self.graph.values[id.0 as usize].as_mut().expect("import removes no value")
    }

    fn declared(&mut self, id: ValueId) -> &mut Declared {
        self.value(id).declared.get_or_insert_default()
    }
}

impl Graph {
    /// Adds a value; its name must be free.
    pub(crate) fn push_value(&mut self, value: Value) -> ValueId {
        let id = ValueId(u32::try_from(self.values.len()).expect("values are limited to far less"));
        let earlier = self.names.insert(value.name.clone(), id);
        debug_assert!(earlier.is_none(), "the name `{}` was free", value.name);
        self.values.push(Some(value));
        id
    }
}

/// How a person would name the node.
pub(crate) fn node_label(node: &Node) -> String {
    match node.name.as_str() {
        "" => format!("an unnamed {}", node.op_type),
        name => format!("{} `{name}`", node.op_type),
    }
}
