//! The part of a model that computes some of its values from others.

use std::collections::HashSet;
use std::sync::Arc;

use crate::{Graph, Model, NodeId, Origin, Tensor, TensorType, ValueId};

/// How a value is given to a part of a model.
#[derive(Debug, Clone, PartialEq)]
pub enum Given {
    /// By the caller, as an input of this type.
    Fed(TensorType),
    /// As a constant.
    Constant(Tensor),
}

/// The part of `model` that computes `outputs`, with the values `given` instead of computed. Ids are those
/// of the whole model. Inputs of the model that the part reads come first, then those of `given` that it reads.
///
/// # Errors
/// A sentence: a value is not in the graph, is asked for twice, is an output that is given, or is given and computed
/// by a node that is needed for another of its outputs.
pub fn extract(
    model: &Model,
    given: &[(ValueId, Given)],
    outputs: &[ValueId],
) -> Result<Model, String> {
    let graph = &model.graph;
    let fed: HashSet<ValueId> = given.iter().map(|(value, _)| *value).collect();
    if outputs.is_empty() || fed.len() < given.len() {
        return Err("there is nothing to compute, or a value is given twice".to_owned());
    }
    for (at, id) in outputs.iter().enumerate() {
        let value = graph.get_value(*id).ok_or_else(|| format!("there is no value {}", id.0))?;
        if fed.contains(id) || outputs[..at].contains(id) {
            return Err(format!("`{}` is given, or asked for twice", value.name));
        }
    }
    let (nodes, values) = needed(graph, &fed, outputs);
    let mut part = model.clone();
    part.graph.keep(&nodes, &values, outputs);
    for (id, how) in given.iter().filter(|(id, _)| values.contains(id)) {
        give(&mut part.graph, *id, how, &nodes)?;
    }
    Ok(part)
}

/// What `outputs` depend on, as far as it is not fed.
fn needed(
    graph: &Graph,
    fed: &HashSet<ValueId>,
    outputs: &[ValueId],
) -> (HashSet<NodeId>, HashSet<ValueId>) {
    let mut values: HashSet<ValueId> = outputs.iter().copied().collect();
    let mut nodes = HashSet::new();
    for (id, node) in graph.nodes().rev() {
        let wanted = |output: &ValueId| values.contains(output) && !fed.contains(output);
        if !node.outputs.iter().flatten().any(wanted) {
            continue;
        }
        nodes.insert(id);
        values.extend(node.inputs.iter().chain(&node.outputs).flatten());
        if node.has_subgraphs() {
            values.extend(graph.captures(id));
        }
    }
    (nodes, values)
}

/// Makes a computed value one that is given.
fn give(
    graph: &mut Graph,
    id: ValueId,
    how: &Given,
    needed: &HashSet<NodeId>,
) -> Result<(), String> {
    let value = graph.value_mut(id).ok_or_else(|| format!("there is no value {}", id.0))?;
    match value.origin {
        Origin::Node(node, _) if !needed.contains(&node) => value.declared = None,
        _ => return Err(format!("`{}` cannot be given: it is computed all the same", value.name)),
    }
    match how {
        Given::Fed(ty) => {
            (value.origin, value.ty) = (Origin::Input, Some(ty.clone()));
            graph.inputs.push(id);
            graph.listed.push(id);
        }
        Given::Constant(tensor) => {
            tensor.check().map_err(|error| error.to_string())?;
            (value.origin, value.ty) = (Origin::Initializer, Some(TensorType::of(tensor)));
            value.data = Some(Arc::new(tensor.clone()));
            graph.decode_readers(id);
        }
    }
    Ok(())
}

impl Graph {
    /// Drops everything but these nodes and values.
    fn keep(&mut self, nodes: &HashSet<NodeId>, values: &HashSet<ValueId>, outputs: &[ValueId]) {
        self.outputs = outputs.to_vec();
        self.order.retain(|id| nodes.contains(id));
        for (at, node) in (0u32..).zip(&mut self.nodes) {
            if !nodes.contains(&NodeId(at)) {
                *node = None;
            }
        }
        self.inputs.retain(|id| values.contains(id));
        self.listed.retain(|id| values.contains(id));
        let live: Vec<ValueId> = self.values().map(|(id, _)| id).collect();
        for id in live.into_iter().filter(|id| !values.contains(id)) {
            self.drop_value(id);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{Builder, DType, Dim, Tensor};

    fn free(dims: &[usize]) -> Given {
        let dims = dims.iter().map(|d| Dim::Fixed(*d)).collect();
        Given::Fed(TensorType { dtype: DType::F32, dims: Some(dims) })
    }

    /// Two layers, the first one split in two: x → (a, b) → y = relu(a)·w, with x2 read by nothing but `z`.
    struct Net {
        model: Model,
        values: [ValueId; 5],
    }

    fn net() -> Net {
        let mut builder = Builder::new(12);
        let x = builder.input("x", DType::F32, vec![Dim::Fixed(1), Dim::Fixed(4)]);
        let x2 = builder.input("x2", DType::F32, vec![Dim::Fixed(1), Dim::Fixed(2)]);
        let axis = ("axis", crate::AttributeValue::Int(1));
        let halves = builder.nodes("Split", &[Some(x)], [axis], 2).unwrap();
        let r = builder.node("Relu", &[halves[0]], []).unwrap();
        let w = builder.constant("w", Tensor::from_f32(vec![2, 2], &[1.0; 4]).unwrap()).unwrap();
        let y = builder.node("MatMul", &[r, w], []).unwrap();
        let z = builder.node("Add", &[halves[1], x2], []).unwrap();
        let model = builder.finish(&[y, z]).unwrap();
        Net { model, values: [halves[0], halves[1], r, y, z] }
    }

    fn names(graph: &Graph, values: &[ValueId]) -> Vec<String> {
        values.iter().map(|v| graph.value(*v).name.clone()).collect()
    }

    #[test]
    fn a_part_reads_what_it_is_given_and_is_a_model_of_its_own() {
        let Net { model, values: [_, _, r, y, _] } = net();
        let part = extract(&model, &[(r, free(&[1, 2]))], &[y]).unwrap();
        assert_eq!(
            part.graph.nodes().map(|(_, n)| n.op_type.as_str()).collect::<Vec<_>>(),
            ["MatMul"]
        );
        assert_eq!(names(&part.graph, part.graph.inputs()), names(&model.graph, &[r]));
        part.verify().unwrap();
        let again = Model::from_bytes(part.to_bytes().unwrap(), None).unwrap();
        assert_eq!(names(&again.graph, again.graph.inputs()), names(&model.graph, &[r]));
        assert_eq!(again.graph.nodes().count(), 1);
    }

    #[test]
    fn a_given_constant_is_a_constant_of_the_part() {
        let Net { model, values: [_, _, r, y, _] } = net();
        let one = Tensor::from_f32(vec![1, 2], &[1.0; 2]).unwrap();
        let part = extract(&model, &[(r, Given::Constant(one.clone()))], &[y]).unwrap();
        assert!(part.graph.inputs().is_empty());
        assert_eq!(part.graph.constant(r).as_deref(), Some(&one));
        part.verify().unwrap();
    }

    #[test]
    fn what_is_not_given_is_computed_from_the_models_own_inputs() {
        let Net { model, values: [a, _, r, _, z] } = net();
        let part = extract(&model, &[(r, free(&[1, 2]))], &[z, a]).unwrap();
        assert_eq!(part.graph.nodes().count(), 2);
        assert_eq!(names(&part.graph, part.graph.inputs()), ["x", "x2"]);
        part.verify().unwrap();
    }

    #[test]
    fn what_cannot_be_given_or_asked_for_is_said() {
        let Net { model, values: [a, b, r, y, z] } = net();
        let fails = |given: &[(ValueId, Given)], outputs: &[ValueId]| {
            extract(&model, given, outputs).unwrap_err()
        };
        // The split is needed for its other half.
        let both = fails(&[(a, free(&[1, 2]))], &[y, z]);
        assert!(both.contains("computed all the same"), "{both}");
        assert!(extract(&model, &[(a, free(&[1, 2])), (b, free(&[1, 2]))], &[y, z]).is_ok());
        assert!(fails(&[(r, free(&[1, 2]))], &[r]).contains("is given"));
        assert!(fails(&[], &[]).contains("nothing"));
        assert!(fails(&[], &[ValueId(99)]).contains("no value 99"));
    }
}
