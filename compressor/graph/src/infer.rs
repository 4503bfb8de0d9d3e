//! Shapes without running: symbolic rules per operator family, and folding of the small integer tensors that
//! exporters compute shapes with (`Shape`, `Gather`, `Concat`, `Cast`, …).
//!
//! Sizes are numbers, names (`batch`), products of these (`4*batch`) or expressions (`((h+2-3)/2+1)`); one name
//! stands for one size throughout a model. What a rule cannot tell is [`Dim::Unknown`]; the types that the file
//! declares fill such gaps, and never overrule a rule. Nothing here is an error: a node that makes no sense has
//! unknown outputs, and is left to the runtime to refuse.

use std::collections::HashMap;

use crate::{DType, Dim, Graph, Model, Node, NodeId, Op, Origin, Scope, TensorType, ValueId};

mod elementwise;
mod fold;
mod layers;
mod movement;
mod size;

use fold::Content;

/// What is known of the values of one graph.
#[derive(Debug, Clone, Default)]
pub struct Shapes {
    types: Vec<Option<TensorType>>,
    contents: HashMap<ValueId, Content>,
    bodies: HashMap<(NodeId, usize), Shapes>,
    conflicts: Vec<Conflict>,
}

/// A declared type that the rules contradict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The value.
    pub value: ValueId,
    /// What the file says.
    pub declared: TensorType,
    /// What follows from the node and its inputs.
    pub inferred: TensorType,
}

impl Shapes {
    /// Element type and dimensions.
    #[must_use]
    pub fn ty(&self, value: ValueId) -> Option<&TensorType> {
        self.types.get(value.0 as usize)?.as_ref()
    }

    /// Dimensions, where at least the rank is known.
    #[must_use]
    pub fn dims(&self, value: ValueId) -> Option<&[Dim]> {
        self.ty(value)?.dims.as_deref()
    }

    /// Dimensions, where all are known numbers.
    #[must_use]
    pub fn fixed_dims(&self, value: ValueId) -> Option<Vec<usize>> {
        self.dims(value)?.iter().map(Dim::fixed).collect()
    }

    /// Number of dimensions.
    #[must_use]
    pub fn rank(&self, value: ValueId) -> Option<usize> {
        self.dims(value).map(<[Dim]>::len)
    }

    /// Element type.
    #[must_use]
    pub fn dtype(&self, value: ValueId) -> Option<DType> {
        self.ty(value).map(|ty| ty.dtype)
    }

    /// The integers that the value always holds, flattened: constants and what is computed from shapes.
    #[must_use]
    pub fn const_ints(&self, value: ValueId) -> Option<Vec<i64>> {
        self.contents.get(&value)?.known()
    }

    /// The integers that the value holds, read as sizes: `[N, 512, 256]` for the target of a reshape, say.
    #[must_use]
    pub fn const_sizes(&self, value: ValueId) -> Option<Vec<Dim>> {
        Some(self.contents.get(&value)?.values.iter().map(size::to_dim).collect())
    }

    /// What is known inside the `index`th body of `node` (as [`Graph::subgraphs`] lists them).
    #[must_use]
    pub fn body(&self, node: NodeId, index: usize) -> Option<&Shapes> {
        self.bodies.get(&(node, index))
    }

    /// What is known of the graph of that name, if there is one.
    #[must_use]
    pub fn at(&self, scope: &Scope) -> Option<&Shapes> {
        scope.0.iter().try_fold(self, |shapes, &(node, index)| shapes.body(node, index))
    }

    /// Where the file declares what cannot be.
    #[must_use]
    pub fn conflicts(&self) -> &[Conflict] {
        &self.conflicts
    }
}

/// Infers types and shapes of every value of the main graph and of the bodies in it.
#[must_use]
pub fn infer(model: &Model) -> Shapes {
    infer_given(model, &HashMap::new())
}

/// As [`infer`], of a model whose inputs are as `given` says, whatever the file declares.
#[must_use]
pub fn infer_given(model: &Model, given: &HashMap<ValueId, TensorType>) -> Shapes {
    infer_as(&model.graph, None, given)
}

/// The graph around a body, with what is known there.
pub(crate) type Outer<'a> = (&'a Graph, &'a Shapes);

/// As [`infer`], of one graph; `outer` is what is around a body.
pub(crate) fn infer_within(graph: &Graph, outer: Option<Outer<'_>>) -> Shapes {
    infer_as(graph, outer, &HashMap::new())
}

fn infer_as(
    graph: &Graph,
    outer: Option<Outer<'_>>,
    given: &HashMap<ValueId, TensorType>,
) -> Shapes {
    let mut shapes = Shapes { types: vec![None; graph.values.len()], ..Shapes::default() };
    for (id, value) in graph.values() {
        match value.origin {
            Origin::Outer => shapes.adopt(id, &value.name, outer),
            Origin::Input | Origin::Initializer => {
                let ty = given.get(&id).cloned().or_else(|| value.ty.clone());
                shapes.types[id.0 as usize] = ty;
            }
            Origin::Node(..) => {}
        }
        if let Some(data) = &value.data {
            shapes.remember(id, Content::of(data));
        }
    }
    for (id, node) in graph.nodes() {
        shapes.infer_bodies(graph, id, node);
        let context = Context { graph, shapes: &shapes, id, node };
        let outputs = rule(&context).unwrap_or_default();
        let mut outputs = outputs.into_iter();
        for output in &node.outputs {
            let found = outputs.next().unwrap_or_default();
            if let Some(value) = *output {
                shapes.conclude(graph, value, found);
            }
        }
    }
    shapes
}

impl Shapes {
    fn adopt(&mut self, id: ValueId, name: &str, outer: Option<Outer<'_>>) {
        let Some((graph, shapes)) = outer else { return };
        let Some(source) = graph.value_by_name(name) else { return };
        self.types[id.0 as usize] = shapes.ty(source).cloned();
        self.remember(id, shapes.contents.get(&source).cloned());
    }

    fn remember(&mut self, id: ValueId, content: Option<Content>) {
        if let Some(content) = content {
            self.contents.insert(id, content);
        }
    }

    fn infer_bodies(&mut self, graph: &Graph, id: NodeId, node: &Node) {
        if !node.has_subgraphs() {
            return;
        }
        for (index, (_, body)) in graph.subgraphs(id).into_iter().enumerate() {
            let inner = infer_within(body, Some((graph, self)));
            self.bodies.insert((id, index), inner);
        }
    }

    /// Joins what the rule found with what the file declares.
    fn conclude(&mut self, graph: &Graph, value: ValueId, found: Inferred) {
        let declared = graph.value(value).ty.as_ref();
        self.types[value.0 as usize] = match (found.ty, declared) {
            (Some(inferred), Some(declared)) => {
                if contradicts(&inferred, declared) {
                    let (declared, inferred) = (declared.clone(), inferred.clone());
                    self.conflicts.push(Conflict { value, declared, inferred });
                }
                Some(fill(inferred, declared))
            }
            (inferred, declared) => inferred.or_else(|| declared.cloned()),
        };
        self.remember(value, found.content);
    }
}

fn contradicts(inferred: &TensorType, declared: &TensorType) -> bool {
    let differ = |(a, b): (&Dim, &Dim)| matches!((a, b), (Dim::Fixed(a), Dim::Fixed(b)) if a != b);
    let dims = match (&inferred.dims, &declared.dims) {
        (Some(a), Some(b)) => a.len() != b.len() || a.iter().zip(b).any(differ),
        _ => false,
    };
    dims || inferred.dtype != declared.dtype
}

fn fill(inferred: TensorType, declared: &TensorType) -> TensorType {
    let dims = match (inferred.dims, &declared.dims) {
        (None, declared) => declared.clone(),
        (Some(dims), Some(declared)) if dims.len() == declared.len() => {
            let fill = |(dim, declared): (Dim, &Dim)| match (&dim, declared) {
                (Dim::Unknown, _) | (Dim::Symbol(_), Dim::Fixed(_)) => declared.clone(),
                _ => dim,
            };
            Some(dims.into_iter().zip(declared).map(fill).collect())
        }
        (dims, _) => dims,
    };
    TensorType { dtype: inferred.dtype, dims }
}

/// What a rule says of one output.
#[derive(Debug, Clone, Default)]
struct Inferred {
    ty: Option<TensorType>,
    content: Option<Content>,
}

impl Inferred {
    fn new(dtype: DType, dims: Option<Vec<Dim>>) -> Self {
        Self { ty: Some(TensorType { dtype, dims }), content: None }
    }

    fn with(mut self, content: Option<Content>) -> Self {
        self.content = content;
        self
    }
}

/// A node and what is known of its inputs.
struct Context<'a> {
    graph: &'a Graph,
    shapes: &'a Shapes,
    id: NodeId,
    node: &'a Node,
}

impl<'a> Context<'a> {
    fn ty(&self, slot: usize) -> Option<&'a TensorType> {
        self.shapes.ty(self.node.input(slot)?)
    }

    fn dtype(&self, slot: usize) -> Option<DType> {
        self.ty(slot).map(|ty| ty.dtype)
    }

    fn dims(&self, slot: usize) -> Option<&'a [Dim]> {
        self.ty(slot)?.dims.as_deref()
    }

    fn content(&self, slot: usize) -> Option<&'a Content> {
        self.shapes.contents.get(&self.node.input(slot)?)
    }

    /// A small constant's numbers.
    fn floats(&self, slot: usize) -> Option<Vec<f64>> {
        let constant = self.graph.constant(self.node.input(slot)?)?;
        (1..=64).contains(&constant.len()).then(|| constant.to_f64_vec().ok()).flatten()
    }

    fn ints(&self, slot: usize) -> Option<Vec<i64>> {
        self.content(slot)?.known()
    }

    /// The output has the type of input `slot`.
    fn like(&self, slot: usize) -> Option<Vec<Inferred>> {
        let ty = self.ty(slot)?;
        Some(vec![Inferred::new(ty.dtype, ty.dims.clone())])
    }

    /// One output with the element type of input 0.
    fn one(&self, dims: Option<Vec<Dim>>) -> Option<Vec<Inferred>> {
        Some(vec![Inferred::new(self.dtype(0)?, dims)])
    }
}

/// An axis counted from the front, if it lies within `rank`.
fn axis_of(axis: i64, rank: usize) -> Option<usize> {
    let signed = i64::try_from(rank).ok()?;
    let axis = if axis < 0 { axis.checked_add(signed)? } else { axis };
    usize::try_from(axis).ok().filter(|&axis| axis < rank)
}

/// The type rule of each operator; `None` where nothing can be said.
fn rule(context: &Context<'_>) -> Option<Vec<Inferred>> {
    match &context.node.op {
        Op::Unary(op) => elementwise::unary(context, *op),
        Op::Binary(op) => elementwise::binary(context, *op),
        Op::Softmax { .. } | Op::Lrn { .. } | Op::InstanceNormalization { .. } => context.like(0),
        Op::BatchNormalization { .. } => elementwise::batch_normalization(context),
        Op::RmsNormalization { .. } | Op::GroupNormalization { .. } => context.like(0),
        Op::LayerNormalization { axis, .. } => elementwise::layer_normalization(context, *axis),
        Op::DequantizeLinear { .. } => elementwise::dequantize(context),
        Op::QuantizeLinear { .. } => elementwise::quantize(context),
        Op::DynamicQuantizeLinear => elementwise::dynamic_quantize(context),
        Op::Conv(attrs) => layers::conv(context, attrs, 1, context.dtype(0)?),
        Op::ConvTranspose(attrs) => layers::conv_transpose(context, attrs),
        Op::Gemm(attrs) => layers::gemm(context, attrs),
        Op::MatMul => layers::matmul(context, (0, 1), context.dtype(0)?),
        Op::MatMulInteger => layers::matmul(context, (0, 1), DType::I32),
        Op::QLinearMatMul => layers::matmul(context, (0, 3), context.dtype(7)?),
        Op::ConvInteger(attrs) => layers::conv(context, attrs, 1, DType::I32),
        Op::QLinearConv(attrs) => layers::conv(context, attrs, 3, context.dtype(7)?),
        Op::Einsum(equation) => layers::einsum(context, equation),
        Op::Pool(attrs) => layers::pool(context, attrs),
        Op::Reduce { kind, axes, keepdims, noop_with_empty_axes } => {
            layers::reduce(context, *kind, axes.as_deref(), *keepdims, *noop_with_empty_axes)
        }
        Op::ArgMax { axis, keepdims } => layers::arg_max(context, *axis, *keepdims),
        Op::Reshape { allow_zero } => movement::reshape(context, *allow_zero),
        Op::Flatten { axis } => movement::flatten(context, *axis),
        Op::Transpose { perm } => movement::transpose(context, perm.as_deref()),
        Op::Squeeze { axes } => movement::squeeze(context, axes.as_deref()),
        Op::Unsqueeze { axes } => movement::unsqueeze(context, axes.as_deref()),
        Op::Concat { axis } => movement::concat(context, *axis),
        Op::Split { axis, sizes } => movement::split(context, *axis, sizes.as_deref()),
        Op::Slice { attrs } => movement::slice(context, attrs.as_ref()),
        Op::Gather { axis } => movement::gather(context, *axis),
        Op::Expand => movement::expand(context),
        Op::Resize => movement::resize(context),
        Op::Recurrent(attrs) => layers::recurrent(context, attrs),
        Op::Pad { pads, .. } => movement::pad(context, pads.as_deref()),
        Op::Shape { start, end } => fold::shape(context, *start, *end),
        Op::Size => fold::size(context),
        Op::Constant => fold::constant(context),
        Op::ConstantOfShape => fold::constant_of_shape(context),
        Op::Range => fold::range(context),
        Op::If => branches(context),
        Op::Loop | Op::Scan | Op::Opaque => None,
    }
}

/// What both branches agree on.
fn branches(context: &Context<'_>) -> Option<Vec<Inferred>> {
    let bodies = context.graph.subgraphs(context.id);
    let mut joined: Option<Vec<Option<TensorType>>> = None;
    for (index, (_, body)) in bodies.into_iter().enumerate() {
        let shapes = context.shapes.body(context.id, index)?;
        let types: Vec<_> =
            body.outputs().iter().map(|&output| shapes.ty(output).cloned()).collect();
        joined = Some(match joined {
            None => types,
            Some(earlier) => earlier.into_iter().zip(types).map(|(a, b)| common(a?, b?)).collect(),
        });
    }
    let inferred = |ty| Inferred { ty, content: None };
    Some(joined?.into_iter().map(inferred).collect())
}

fn common(a: TensorType, b: TensorType) -> Option<TensorType> {
    if a.dtype != b.dtype {
        return None;
    }
    let dims = match (a.dims, b.dims) {
        (Some(a), Some(b)) if a.len() == b.len() => {
            let join = |(a, b): (Dim, Dim)| if a == b { a } else { Dim::Unknown };
            Some(a.into_iter().zip(b).map(join).collect())
        }
        _ => None,
    };
    Some(TensorType { dtype: a.dtype, dims })
}
