//! Nodes that fold an axis which shrank, and have to compute as if it had not.
//!
//! With `K` of `N` units left and `e` what each of the others held, a sum becomes `Σ + (N−K)·e` and a mean
//! `K/N·mean + (1−K/N)·e`. A norm over a width of which units went that were zero gets these zeros back for itself;
//! one by the root mean square becomes `√(N/K)·RMSNorm(x, ε·N/K)`, which is `ε` and the scale alone.

use std::collections::{BTreeMap, BTreeSet};

use super::{Gone, PruneError, Removal, Work, cause};
use crate::coupling::FoldKind;
use crate::group::folds::{Correction, Echo};
use crate::{
    Attribute, AttributeValue, Cause, DType, Edit, Graph, GroupId, Grouping, Node, NodeId, Op,
    Shapes, Tensor, TensorError, ValueId,
};

/// Corrects every node that needs it. `graph` is the unpruned one.
pub(super) fn apply_all(
    work: &mut Work,
    graph: &Graph,
    grouping: &Grouping,
    removal: &Removal,
    shapes: &Shapes,
) -> Result<(), PruneError> {
    let mut by_node: BTreeMap<NodeId, Vec<Shrunk<'_>>> = BTreeMap::new();
    for correction in grouping.corrections.get(&work.scope).into_iter().flatten() {
        let Some(value) = graph.get_node(correction.node).and_then(|node| node.input(0)) else {
            return Err(PruneError::Stale(format!("{:?} has no input", correction.node)));
        };
        let size = shapes.dims(value).and_then(|dims| dims.get(correction.axis)?.fixed());
        if let (Some(gone), Some(size)) = (removal.gone(Some(value), correction.axis), size) {
            by_node.entry(correction.node).or_default().push(Shrunk { correction, gone, size });
        }
    }
    for (id, shrunk) in by_node {
        let groups: BTreeSet<GroupId> =
            shrunk.iter().flat_map(|shrunk| shrunk.gone.groups.iter().copied()).collect();
        let cause = cause(&groups, "as if nothing had gone");
        let value = graph.node(id).input(0);
        let dtype = value.and_then(|value| shapes.dtype(value)).unwrap_or(DType::F32);
        let rank = value.and_then(|value| shapes.rank(value)).unwrap_or(0);
        let place = Place { id, shrunk, cause, dtype, rank, shapes, graph };
        place.one_echo()?;
        match place.shrunk.first().map(|shrunk| shrunk.correction.kind) {
            Some(FoldKind::Sum) => place.sum(work)?,
            Some(FoldKind::Mean) => place.mean(work)?,
            Some(FoldKind::Standardised) => place.standardised(work)?,
            Some(FoldKind::RootMeanSquare) => place.root_mean_square(work)?,
            None => {}
        }
    }
    Ok(())
}

/// A folded axis that shrank.
struct Shrunk<'a> {
    correction: &'a Correction,
    gone: &'a Gone,
    size: usize,
}

impl Shrunk<'_> {
    fn left(&self) -> usize {
        self.size.saturating_sub(self.gone.indices.len())
    }
}

struct Place<'a> {
    id: NodeId,
    shrunk: Vec<Shrunk<'a>>,
    cause: Cause,
    dtype: DType,
    rank: usize,
    shapes: &'a Shapes,
    graph: &'a Graph,
}

fn stale(error: TensorError) -> PruneError {
    PruneError::Stale(error.to_string())
}

#[allow(clippy::cast_precision_loss)]
impl Place<'_> {
    /// What removed units held on one axis is not known beside others that shrink.
    fn one_echo(&self) -> Result<(), PruneError> {
        let held = self.shrunk.iter().any(|shrunk| shrunk.correction.echo.is_some());
        match held && self.shrunk.len() > 1 {
            true => Err(PruneError::Stale(format!("{:?} folds several axes that shrink", self.id))),
            false => Ok(()),
        }
    }

    /// The share of the folded elements that is left.
    fn share(&self) -> f64 {
        self.shrunk.iter().map(|shrunk| shrunk.left() as f64 / shrunk.size as f64).product()
    }

    fn sum(&self, work: &mut Work) -> Result<(), PruneError> {
        let [Shrunk { correction: Correction { echo: Some(echo), .. }, gone, .. }] =
            self.shrunk.as_slice()
        else {
            return Ok(());
        };
        let kept = self.again(work, None)?;
        let held = self.scaled(work, echo, gone.indices.len() as f64)?;
        self.become_node(work, "Add", vec![Some(kept), Some(held)])
    }

    fn mean(&self, work: &mut Work) -> Result<(), PruneError> {
        let share = self.share();
        let kept = self.again(work, None)?;
        let factor = self.number(work, share)?;
        let echo = match self.shrunk.as_slice() {
            [one] => one.correction.echo.as_ref(),
            _ => None,
        };
        let Some(echo) = echo else {
            return self.become_node(work, "Mul", vec![Some(kept), Some(factor)]);
        };
        let kept = self.add(work, "Mul", vec![Some(kept), Some(factor)], Vec::new())?;
        let held = self.scaled(work, echo, 1.0 - share)?;
        self.become_node(work, "Add", vec![Some(kept), Some(held)])
    }

    /// Zeros for the removed units, in front of the node only. Where they stand does not matter to a norm.
    fn standardised(&self, work: &mut Work) -> Result<(), PruneError> {
        let node = work.graph().node(self.id).clone();
        let mut inputs = node.inputs.clone();
        for shrunk in &self.shrunk {
            let (axis, more) = (shrunk.correction.axis, shrunk.gone.indices.len());
            inputs[0] = Some(self.pad(work, inputs[0], axis, more)?);
            for (slot, param) in inputs.iter_mut().enumerate().skip(1) {
                *param = self.pad_param(work, slot, *param, shrunk)?;
            }
        }
        let mut out = self.again(work, Some(inputs))?;
        let (last, rest) = self
            .shrunk
            .split_last()
            .ok_or_else(|| PruneError::Stale("a norm to correct over no axis".to_owned()))?;
        for shrunk in rest {
            let (inputs, attributes) = self.slice(work, out, shrunk)?;
            out = self.add(work, "Slice", inputs, attributes)?;
        }
        let (inputs, attributes) = self.slice(work, out, last)?;
        self.become_with(work, "Slice", inputs, attributes)
    }

    fn root_mean_square(&self, work: &mut Work) -> Result<(), PruneError> {
        let share = self.share();
        let node = work.graph().node(self.id).clone();
        let epsilon = f64::from(node.attr_float("epsilon").unwrap_or(1e-5)) / share;
        #[allow(clippy::cast_possible_truncation)]
        let value = Some(AttributeValue::Float(epsilon as f32));
        let name = "epsilon".to_owned();
        work.edit(Edit::SetAttribute { node: self.id, name, value }, &self.cause)?;
        let scale = node.input(1);
        let tensor = scale.and_then(|scale| work.graph().constant(scale));
        let tensor = tensor
            .ok_or_else(|| PruneError::Stale("a norm without a constant scale".to_owned()))?;
        let factor = share.sqrt().recip();
        let values: Vec<f64> =
            tensor.to_f64_vec().map_err(stale)?.into_iter().map(|v| v * factor).collect();
        let tensor = Tensor::from_f64_as(tensor.dtype, tensor.dims.clone(), &values);
        let value = self.constant(work, "scale", tensor.map_err(stale)?)?;
        let edit = Edit::ReplaceInput { node: self.id, slot: 1, value: Some(value) };
        work.edit(edit, &self.cause).map(drop)
    }

    /// The node once more, with a value of its own to write; on other inputs, if given.
    fn again(
        &self,
        work: &mut Work,
        inputs: Option<Vec<Option<ValueId>>>,
    ) -> Result<ValueId, PruneError> {
        let node = work.graph().node(self.id);
        let inputs = inputs.unwrap_or_else(|| node.inputs.clone());
        let mut again = Node::new(node.op_type.clone(), "kept", inputs, node.attributes.clone());
        again.domain.clone_from(&node.domain);
        work.add_node(again, &self.cause)
    }

    fn add(
        &self,
        work: &mut Work,
        op: &str,
        inputs: Vec<Option<ValueId>>,
        attributes: Vec<Attribute>,
    ) -> Result<ValueId, PruneError> {
        let name = op.to_lowercase();
        work.add_node(Node::new(op, format!("corrected_{name}"), inputs, attributes), &self.cause)
    }

    /// Puts a node in the place of the folding one, whose readers so read the corrected value.
    fn become_node(
        &self,
        work: &mut Work,
        op: &str,
        inputs: Vec<Option<ValueId>>,
    ) -> Result<(), PruneError> {
        self.become_with(work, op, inputs, Vec::new())
    }

    fn become_with(
        &self,
        work: &mut Work,
        op: &str,
        inputs: Vec<Option<ValueId>>,
        attributes: Vec<Attribute>,
    ) -> Result<(), PruneError> {
        let with = Node::new(op, "", inputs, attributes);
        work.edit(Edit::ReplaceNode { node: self.id, with }, &self.cause).map(drop)
    }

    fn constant(&self, work: &mut Work, name: &str, tensor: Tensor) -> Result<ValueId, PruneError> {
        let edit = Edit::AddConstant { name: format!("corrected_{name}"), tensor };
        let value = work.edit(edit, &self.cause)?;
        value.ok_or_else(|| PruneError::Stale("no constant was added".to_owned()))
    }

    fn number(&self, work: &mut Work, number: f64) -> Result<ValueId, PruneError> {
        let tensor = Tensor::from_f64_as(self.dtype, Vec::new(), &[number]).map_err(stale)?;
        self.constant(work, "factor", tensor)
    }

    /// `factor` times what the removed units held.
    fn scaled(&self, work: &mut Work, echo: &Echo, factor: f64) -> Result<ValueId, PruneError> {
        if let Echo::Exact(number, _) = echo {
            return self.number(work, number * factor);
        }
        let held = self.held(work, echo, &mut Vec::new())?;
        let factor = self.number(work, factor)?;
        self.add(work, "Mul", vec![Some(held), Some(factor)], Vec::new())
    }

    /// Repeats what led to the value; a node that is reached in two ways is repeated once.
    fn held(
        &self,
        work: &mut Work,
        echo: &Echo,
        known: &mut Vec<(NodeId, ValueId)>,
    ) -> Result<ValueId, PruneError> {
        let (id, parts) = match echo {
            Echo::Exact(number, like) => {
                let constant = work.graph().constant(*like).map(|tensor| tensor.dtype);
                let dtype = constant.or_else(|| self.shapes.dtype(*like)).unwrap_or(self.dtype);
                let tensor = Tensor::from_f64_as(dtype, Vec::new(), &[*number]).map_err(stale)?;
                return self.constant(work, "held", tensor);
            }
            Echo::Again(id, parts) => (*id, parts),
        };
        if let Some((_, value)) = known.iter().find(|(node, _)| *node == id) {
            return Ok(*value);
        }
        let node = work.graph().node(id).clone();
        let mut inputs = node.inputs.clone();
        for (input, part) in inputs.iter_mut().zip(parts) {
            if let Some(part) = part {
                *input = Some(self.held(work, part, known)?);
            }
        }
        let mut again = Node::new(node.op_type.clone(), "held", inputs, node.attributes.clone());
        again.domain.clone_from(&node.domain);
        let value = work.add_node(again, &self.cause)?;
        known.push((id, value));
        Ok(value)
    }

    fn pad(
        &self,
        work: &mut Work,
        value: Option<ValueId>,
        axis: usize,
        more: usize,
    ) -> Result<ValueId, PruneError> {
        let mut pads = vec![0; 2 * self.rank];
        pads[self.rank + axis] = super::operands::to_int(more)?;
        if work.model.opset("").unwrap_or(1) < 11 {
            return self.add(work, "Pad", vec![value], vec![ints("pads", pads)]);
        }
        let pads = work.ints(&pads, &self.cause)?;
        self.add(work, "Pad", vec![value, Some(pads)], Vec::new())
    }

    /// A parameter along the axis, with zeros for the removed units; one without the axis stays.
    fn pad_param(
        &self,
        work: &mut Work,
        slot: usize,
        param: Option<ValueId>,
        shrunk: &Shrunk<'_>,
    ) -> Result<Option<ValueId>, PruneError> {
        let node = self.graph.node(self.id);
        let constant = |graph: &Graph, value: Option<ValueId>| graph.constant(value?);
        let (Some(old), Some(new)) =
            (constant(self.graph, node.input(slot)), constant(work.graph(), param))
        else {
            return Ok(param);
        };
        let aligned = (shrunk.correction.axis + old.dims.len()).checked_sub(self.rank);
        let aligned = aligned.filter(|&at| old.dims.get(at) == Some(&shrunk.size));
        let (Op::LayerNormalization { .. }, Some(at)) = (&node.op, aligned) else {
            return Ok(param);
        };
        let tensor = lengthened(&new, at, shrunk.gone.indices.len()).map_err(stale)?;
        self.constant(work, "parameter", tensor).map(Some)
    }

    fn slice(
        &self,
        work: &mut Work,
        value: ValueId,
        shrunk: &Shrunk<'_>,
    ) -> Result<(Vec<Option<ValueId>>, Vec<Attribute>), PruneError> {
        let to_int = super::operands::to_int;
        let bounds = [
            ("starts", 0),
            ("ends", to_int(shrunk.left())?),
            ("axes", to_int(shrunk.correction.axis)?),
        ];
        if work.model.opset("").unwrap_or(1) < 10 {
            let attributes = bounds.map(|(name, bound)| ints(name, vec![bound]));
            return Ok((vec![Some(value)], attributes.to_vec()));
        }
        let mut inputs = vec![Some(value)];
        for (_, bound) in bounds {
            inputs.push(Some(work.ints(&[bound], &self.cause)?));
        }
        Ok((inputs, Vec::new()))
    }
}

fn ints(name: &str, values: Vec<i64>) -> Attribute {
    Attribute { name: name.to_owned(), value: AttributeValue::Ints(values) }
}

/// `tensor` with `more` zeros at the end of `axis`.
fn lengthened(tensor: &Tensor, axis: usize, more: usize) -> Result<Tensor, TensorError> {
    tensor.check()?;
    let wanted = "a type whose elements are whole bytes";
    let width = tensor.dtype.size().ok_or(TensorError::DType { found: tensor.dtype, wanted })?;
    let inner: usize = tensor.dims[axis + 1..].iter().product::<usize>() * width;
    let block = (tensor.dims[axis] * inner).max(1);
    let mut bytes = Vec::with_capacity(tensor.data.len());
    for part in tensor.data.chunks(block) {
        bytes.extend_from_slice(part);
        bytes.resize(bytes.len() + more * inner, 0);
    }
    let mut dims = tensor.dims.clone();
    dims[axis] += more;
    Tensor::new(tensor.dtype, dims, bytes)
}
