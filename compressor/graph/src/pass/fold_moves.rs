//! Carries out what only moves elements of constants.

use super::{Editor, Halt, Pass};
use crate::coupling::{Window, normal_axis};
use crate::{DType, Edit, Graph, Node, NodeId, Op, Shapes, Tensor, ValueId};

/// Replaces slices, concatenations, transpositions and reshapes of constants by their results.
///
/// Exporters reorder the gates of a recurrent layer, or cut one weight into several, by nodes. A pruning sees
/// through them, but a weight of which each reader takes a part must then be kept once for each. Nothing is
/// folded that would make more elements than it reads; outputs that bodies capture, and those of the graph, stay.
///
/// Nodes that are no longer read are left to [`DeadCode`](super::DeadCode).
#[derive(Debug, Clone, Copy, Default)]
pub struct FoldMoves;

impl Pass for FoldMoves {
    fn name(&self) -> &'static str {
        "fold-moves"
    }

    fn reads_shapes(&self) -> bool {
        true
    }

    fn run(&self, editor: &mut Editor<'_>) -> Result<(), Halt> {
        let shapes = editor.infer(editor.graph());
        let nodes: Vec<NodeId> = editor.graph().nodes().map(|(id, _)| id).collect();
        for id in nodes {
            // One by one, because a result may be what the next node moves.
            let Some(results) = results(editor.graph(), &shapes, id) else { continue };
            for (output, tensor) in results {
                let readers = editor.graph().consumers(output);
                let name = editor.graph().value(output).name.clone();
                let added = editor.apply(Edit::AddConstant { name, tensor }, "a moved constant")?;
                for (node, slot) in readers {
                    let edit = Edit::ReplaceInput { node, slot, value: added.value() };
                    editor.apply(edit, "reads the moved constant")?;
                }
            }
        }
        Ok(())
    }
}

/// What a node makes of constants, output by output, where it only moves them and nothing hinders.
fn results(graph: &Graph, shapes: &Shapes, id: NodeId) -> Option<Vec<(ValueId, Tensor)>> {
    let node = graph.node(id);
    let outputs: Vec<ValueId> = node.outputs.iter().flatten().copied().collect();
    let moves = matches!(
        node.op,
        Op::Slice { .. }
            | Op::Concat { .. }
            | Op::Transpose { .. }
            | Op::Reshape { .. }
            | Op::Flatten { .. }
            | Op::Squeeze { .. }
            | Op::Unsqueeze { .. }
            | Op::Split { .. }
    );
    let leaves =
        |value: ValueId| graph.outputs().contains(&value) || !graph.captured_by(value).is_empty();
    let unread = outputs.iter().all(|&output| graph.consumers(output).is_empty());
    if !moves || unread || outputs.iter().any(|&output| leaves(output)) {
        return None;
    }
    let made = moved(graph, shapes, node)?;
    let before: usize = constants(graph, node)?.iter().map(Tensor::len).sum();
    let after: usize = made.iter().map(Tensor::len).sum();
    (after <= before && made.len() == node.outputs.len() && outputs.len() == made.len())
        .then(|| outputs.into_iter().zip(made).collect())
}

/// The data operands; `None` unless all are constants.
fn constants(graph: &Graph, node: &Node) -> Option<Vec<Tensor>> {
    let count = if matches!(node.op, Op::Concat { .. }) { node.inputs.len() } else { 1 };
    let tensor = |slot: usize| Some(Tensor::clone(&*graph.constant(node.input(slot)?)?));
    (0..count).map(tensor).collect()
}

fn moved(graph: &Graph, shapes: &Shapes, node: &Node) -> Option<Vec<Tensor>> {
    let operands = constants(graph, node)?;
    let x = operands.first()?;
    match &node.op {
        Op::Slice { attrs } => {
            let windows = windows(graph, node, attrs.as_ref(), x.dims.len())?;
            let cut = windows.iter().try_fold(x.clone(), |tensor, window| {
                let (start, len) = window.clamp(*tensor.dims.get(window.axis)?)?;
                let indices: Vec<usize> = (start..start + len).collect();
                tensor.select(window.axis, &indices).ok()
            });
            Some(vec![cut?])
        }
        Op::Concat { axis } => Some(vec![joined(&operands, *axis)?]),
        Op::Transpose { perm } => {
            let reversed: Vec<usize> = (0..x.dims.len()).rev().collect();
            Some(vec![transposed(x, perm.as_deref().unwrap_or(&reversed))?])
        }
        Op::Reshape { .. } | Op::Flatten { .. } | Op::Squeeze { .. } | Op::Unsqueeze { .. } => {
            let dims = shapes.fixed_dims(node.output(0)?)?;
            Some(vec![with_dims(x, dims)?])
        }
        Op::Split { axis, .. } => {
            let axis = normal_axis(*axis, x.dims.len()).ok()?;
            let mut start = 0;
            let parts = node.outputs.iter().map(|output| {
                let len = *shapes.fixed_dims((*output)?)?.get(axis)?;
                let indices: Vec<usize> = (start..start + len).collect();
                start += len;
                x.select(axis, &indices).ok()
            });
            parts.collect()
        }
        _ => None,
    }
}

/// Windows of constant bounds and steps of 1.
fn windows(
    graph: &Graph,
    node: &Node,
    attrs: Option<&crate::SliceAttrs>,
    rank: usize,
) -> Option<Vec<Window>> {
    let ints = |slot: usize| match node.input(slot) {
        Some(value) => graph.constant_ints(value).map(Some),
        None => Some(None),
    };
    let (starts, ends, axes, steps) = match attrs {
        Some((starts, ends, axes)) => (starts.clone(), ends.clone(), axes.clone(), None),
        None => (ints(1)??, ints(2)??, ints(3)?, ints(4)?),
    };
    if starts.len() != ends.len() || steps.iter().flatten().any(|&step| step != 1) {
        return None;
    }
    let window = |at: usize| {
        let axis = match &axes {
            Some(axes) => normal_axis(*axes.get(at)?, rank).ok()?,
            None => at,
        };
        Some(Window { axis, start: starts[at], end: ends[at], step: 1 })
    };
    (0..starts.len()).map(window).collect()
}

fn with_dims(x: &Tensor, dims: Vec<usize>) -> Option<Tensor> {
    let moved = Tensor { dims, ..x.clone() };
    (moved.len() == x.len() && moved.check().is_ok()).then_some(moved)
}

fn joined(operands: &[Tensor], axis: i64) -> Option<Tensor> {
    let first = operands.first()?;
    let axis = normal_axis(axis, first.dims.len()).ok()?;
    let size = first.dtype.size()?;
    let fits = |part: &Tensor| {
        part.dtype == first.dtype
            && part.dims.len() == first.dims.len()
            && part.dims[..axis] == first.dims[..axis]
            && part.dims[axis + 1..] == first.dims[axis + 1..]
    };
    if first.dtype == DType::String || !operands.iter().all(fits) {
        return None;
    }
    let outer: usize = first.dims[..axis].iter().product();
    let mut bytes = Vec::new();
    for block in 0..outer {
        for part in operands {
            let len = part.dims[axis..].iter().product::<usize>() * size;
            bytes.extend_from_slice(part.data.get(block * len..(block + 1) * len)?);
        }
    }
    let mut dims = first.dims.clone();
    dims[axis] = operands.iter().map(|part| part.dims[axis]).sum();
    Tensor::new(first.dtype, dims, bytes).ok()
}

fn transposed(x: &Tensor, perm: &[usize]) -> Option<Tensor> {
    let size = x.dtype.size()?;
    let mut seen = perm.to_vec();
    seen.sort_unstable();
    if x.dtype == DType::String || seen != (0..x.dims.len()).collect::<Vec<_>>() {
        return None;
    }
    let mut strides = vec![size; x.dims.len()];
    for axis in (0..x.dims.len().saturating_sub(1)).rev() {
        strides[axis] = strides[axis + 1] * x.dims[axis + 1];
    }
    let dims: Vec<usize> = perm.iter().map(|&axis| x.dims[axis]).collect();
    let mut bytes = Vec::with_capacity(x.data.len());
    let mut at = vec![0; dims.len()];
    for _ in 0..x.len() {
        let start: usize = at.iter().zip(perm).map(|(index, &axis)| index * strides[axis]).sum();
        bytes.extend_from_slice(x.data.get(start..start + size)?);
        for axis in (0..dims.len()).rev() {
            at[axis] += 1;
            if at[axis] < dims[axis] {
                break;
            }
            at[axis] = 0;
        }
    }
    Tensor::new(x.dtype, dims, bytes).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::cast_precision_loss)]
mod tests {
    use super::*;

    fn counting(dims: &[usize]) -> Tensor {
        let values: Vec<f32> = (0..dims.iter().product::<usize>()).map(|i| i as f32).collect();
        Tensor::from_f32(dims.to_vec(), &values).unwrap()
    }

    #[test]
    fn transposed_and_joined_elements_are_where_they_belong() {
        let x = counting(&[2, 3]);
        let turned = transposed(&x, &[1, 0]).unwrap();
        assert_eq!(
            (turned.dims.as_slice(), turned.to_f32_vec().unwrap()),
            (&[3, 2][..], vec![0.0, 3.0, 1.0, 4.0, 2.0, 5.0])
        );
        assert!(transposed(&x, &[0, 0]).is_none());
        let cube = transposed(&counting(&[2, 2, 2]), &[2, 0, 1]).unwrap();
        assert_eq!(cube.to_f32_vec().unwrap(), [0.0, 2.0, 4.0, 6.0, 1.0, 3.0, 5.0, 7.0]);
        let both = joined(&[x.clone(), counting(&[2, 1])], -1).unwrap();
        assert_eq!(both.to_f32_vec().unwrap(), [0.0, 1.0, 2.0, 0.0, 3.0, 4.0, 5.0, 1.0]);
        assert!(joined(&[x, counting(&[3, 1])], 1).is_none());
    }
}
