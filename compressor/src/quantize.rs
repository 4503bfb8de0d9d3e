//! Integer formats for MatMul and Gemm with constant weights. Never convolutions: dynamic int8
//! convolutions are several times slower than fp32 in every engine here.
//!
//! *Weight-only int8* stores `q = round(w / s)` with one scale for each output column,
//! `s = max|w| / 127`, behind `DequantizeLinear` (opset 13 for the per-axis form). *Dynamic int8*
//! quantizes the activation tensor to uint8 when it runs (`DynamicQuantizeLinear`, opset 11), multiplies
//! integers (`MatMulInteger`, opset 10), and scales back. In both, a column's weight is off by at most `s/2`.
//!
//! The opset is never raised: a model below it is refused by name, since raising it would change what other
//! nodes mean. Whether a format *pays* is not decided here: the caller measures.

use graph::{
    Attribute, AttributeValue, Cause, DType, Edit, Graph, Model, Node, NodeId, Op, Shapes, Tensor,
    ValueId,
};

use crate::plan::{QuantFormat, Refusal};
use crate::refit;

/// Weights with fewer elements stay as they are: the extra nodes would cost more.
pub const MIN_ELEMENTS: usize = 1024;

/// A quantized model.
#[derive(Debug)]
pub struct Quantized {
    /// The model.
    pub model: Model,
    /// Layers that were converted.
    pub sites: Vec<String>,
    /// Layers that were not, and why.
    pub refused: Vec<Refusal>,
}

/// A weight matrix, inputs by outputs, as int8 with a scale for each output.
#[derive(Debug, Clone, PartialEq)]
pub struct Int8Weight {
    /// Inputs by outputs, row-major.
    pub values: Vec<i8>,
    /// One scale for each output.
    pub scales: Vec<f32>,
}

/// Quantizes `weights` (`inputs` by `outputs`, row-major) symmetrically, per output.
///
/// # Errors
/// A weight is not finite, or the sizes do not match.
pub fn int8_weight(weights: &[f32], inputs: usize, outputs: usize) -> Result<Int8Weight, String> {
    if weights.len() != inputs * outputs || outputs == 0 {
        return Err(format!("{} weights are no {inputs} by {outputs}", weights.len()));
    }
    if weights.iter().any(|w| !w.is_finite()) {
        return Err("its weight holds numbers that are not finite".into());
    }
    let mut largest = vec![0.0f32; outputs];
    for row in weights.chunks_exact(outputs) {
        for (most, w) in largest.iter_mut().zip(row) {
            *most = most.max(w.abs());
        }
    }
    let scales: Vec<f32> = largest.iter().map(|m| (m / 127.0).max(f32::MIN_POSITIVE)).collect();
    let values = weights
        .chunks_exact(outputs)
        .flat_map(|row| row.iter().zip(&scales))
        .map(|(w, s)| (w / s).round().clamp(-127.0, 127.0) as i8)
        .collect();
    Ok(Int8Weight { values, scales })
}

/// A copy of `model` with every layer in `format` that can be.
///
/// # Errors
/// A sentence: the opset is too low, or no layer can be converted.
pub fn quantize(model: &Model, shapes: &Shapes, format: QuantFormat) -> Result<Quantized, String> {
    let needed = match format {
        QuantFormat::Int8 => 13,
        QuantFormat::DynamicInt8 => 11,
    };
    let opset = model.opset("").unwrap_or(0);
    if opset < needed {
        return Err(format!(
            "it needs opset {needed} and the model has {opset}; the opset is not raised, since that can change what other nodes mean"
        ));
    }
    let mut out = Quantized { model: model.clone(), sites: Vec::new(), refused: Vec::new() };
    let nodes: Vec<NodeId> = model
        .graph
        .nodes()
        .filter(|(_, n)| matches!(n.op, Op::MatMul | Op::Gemm(_)))
        .map(|(id, _)| id)
        .collect();
    for node in nodes {
        let label = refit::label(&model.graph, node);
        let converted = layer(&model.graph, shapes, node)
            .and_then(|layer| layer.convert(&mut out.model.graph, format));
        match converted {
            Ok(()) => out.sites.push(label),
            Err(why) => out.refused.push(Refusal::new("quantize", label, why)),
        }
    }
    if out.sites.is_empty() {
        let reasons: Vec<String> =
            out.refused.iter().map(|r| format!("{}: {}", r.what, r.why)).collect();
        return Err(if reasons.is_empty() {
            "the model has no MatMul or Gemm".into()
        } else {
            format!("no layer can be converted: {}", reasons.join("; "))
        });
    }
    Ok(out)
}

/// A layer that can be converted.
struct Layer {
    node: NodeId,
    label: String,
    input: ValueId,
    bias: Option<ValueId>,
    transposed: bool,
    inputs: usize,
    outputs: usize,
    weight: Int8Weight,
}

fn layer(graph: &Graph, shapes: &Shapes, node: NodeId) -> Result<Layer, String> {
    let site = refit::site(graph, node)?;
    if site.alpha != 1.0 || site.beta != 1.0 {
        return Err("its alpha or beta is not 1".into());
    }
    let weight = graph.constant(site.weight).ok_or("its weight is gone")?;
    if weight.len() < MIN_ELEMENTS {
        return Err(format!(
            "its weight has {} elements, fewer than MIN_ELEMENTS = {MIN_ELEMENTS}",
            weight.len()
        ));
    }
    if shapes.dtype(site.input).is_some_and(|d| d != DType::F32) {
        return Err("its activations are not f32".into());
    }
    let values = weight.to_f32_vec().map_err(|e| e.to_string())?;
    let (inputs, outputs, values) = if site.transposed {
        let (o, i) = (weight.dims[0], weight.dims[1]);
        (i, o, transpose(&values, o, i))
    } else {
        (weight.dims[0], weight.dims[1], values)
    };
    let gemm = matches!(graph.node(node).op, Op::Gemm(_));
    Ok(Layer {
        node,
        label: site.label,
        input: site.input,
        bias: graph.node(node).input(2).filter(|_| gemm),
        transposed: site.transposed,
        inputs,
        outputs,
        weight: int8_weight(&values, inputs, outputs)?,
    })
}

fn transpose<T: Copy>(values: &[T], rows: usize, columns: usize) -> Vec<T> {
    (0..columns).flat_map(|c| (0..rows).map(move |r| values[r * columns + c])).collect()
}

impl Layer {
    fn convert(&self, graph: &mut Graph, format: QuantFormat) -> Result<(), String> {
        let cause = Cause::new("quantize", format!("{}: {format}", self.label));
        let mut build = Builder { graph, cause, prefix: &self.label };
        match format {
            QuantFormat::Int8 => self.weight_only(&mut build),
            QuantFormat::DynamicInt8 => self.dynamic(&mut build),
        }
    }

    fn weight_only(&self, build: &mut Builder<'_>) -> Result<(), String> {
        // The layout of the source is kept, so that a Gemm's transB stays true.
        let (values, dims, axis) = if self.transposed {
            let turned = transpose(&self.weight.values, self.inputs, self.outputs);
            (turned, vec![self.outputs, self.inputs], 0)
        } else {
            (self.weight.values.clone(), vec![self.inputs, self.outputs], 1)
        };
        let q = build.int8("weight_int8", dims, &values)?;
        let scale = build.floats("weight_scale", &self.weight.scales)?;
        let zero = build.int8("weight_zero", vec![self.outputs], &vec![0; self.outputs])?;
        let axis = Attribute { name: "axis".into(), value: AttributeValue::Int(axis) };
        let inputs = vec![Some(q), Some(scale), Some(zero)];
        let weight = build.node("DequantizeLinear", "dequantize", inputs, vec![axis], 1)?[0];
        build.apply(Edit::ReplaceInput { node: self.node, slot: 1, value: Some(weight) })?;
        Ok(())
    }

    fn dynamic(&self, build: &mut Builder<'_>) -> Result<(), String> {
        let dims = vec![self.inputs, self.outputs];
        let weight = build.int8("weight_int8", dims, &self.weight.values)?;
        let weight_scale = build.floats("weight_scale", &self.weight.scales)?;
        let input = vec![Some(self.input)];
        let quantized = build.node("DynamicQuantizeLinear", "quantize", input, vec![], 3)?;
        let [x, x_scale, x_zero] = quantized[..] else {
            return Err("DynamicQuantizeLinear did not give three outputs".into());
        };
        let factors = vec![Some(x), Some(weight), Some(x_zero)];
        let product = build.node("MatMulInteger", "product", factors, vec![], 1)?[0];
        let to = Attribute {
            name: "to".into(),
            value: AttributeValue::Int(i64::from(DType::F32.to_onnx())),
        };
        let product = build.node("Cast", "cast", vec![Some(product)], vec![to], 1)?[0];
        let scales = vec![Some(x_scale), Some(weight_scale)];
        let scale = build.node("Mul", "scale", scales, vec![], 1)?[0];
        let scaled = vec![Some(product), Some(scale)];
        let with = match self.bias {
            None => ("Mul", scaled),
            Some(bias) => {
                let scaled = build.node("Mul", "scaled", scaled, vec![], 1)?[0];
                ("Add", vec![Some(scaled), Some(bias)])
            }
        };
        build.apply(Edit::ReplaceNode {
            node: self.node,
            with: Node::new(with.0, self.label.clone(), with.1, vec![]),
        })?;
        Ok(())
    }
}

/// Adds constants and nodes under one cause.
struct Builder<'a> {
    graph: &'a mut Graph,
    cause: Cause,
    prefix: &'a str,
}

impl Builder<'_> {
    fn apply(&mut self, edit: Edit) -> Result<graph::Applied, String> {
        graph::apply(self.graph, edit, &self.cause).map_err(|e| e.to_string())
    }

    fn constant(&mut self, name: &str, tensor: Tensor) -> Result<ValueId, String> {
        let name = format!("{}_{name}", self.prefix);
        self.apply(Edit::AddConstant { name, tensor })?
            .value()
            .ok_or_else(|| "a constant was not added".into())
    }

    fn int8(&mut self, name: &str, dims: Vec<usize>, values: &[i8]) -> Result<ValueId, String> {
        let bytes: Vec<u8> = values.iter().map(|v| v.to_le_bytes()[0]).collect();
        let tensor = Tensor::new(DType::I8, dims, bytes).map_err(|e| e.to_string())?;
        self.constant(name, tensor)
    }

    fn floats(&mut self, name: &str, values: &[f32]) -> Result<ValueId, String> {
        let tensor = Tensor::from_f32(vec![values.len()], values).map_err(|e| e.to_string())?;
        self.constant(name, tensor)
    }

    /// Adds a node; `role` tells it from the others of its layer, since engines refuse two nodes of one name.
    fn node(
        &mut self,
        op_type: &str,
        role: &str,
        inputs: Vec<Option<ValueId>>,
        attributes: Vec<Attribute>,
        outputs: usize,
    ) -> Result<Vec<ValueId>, String> {
        let name = format!("{}_{role}", self.prefix);
        let outputs = (0..outputs).map(|i| format!("{name}_{i}")).collect();
        let node = Node::new(op_type, name, inputs, attributes);
        let added = self.apply(Edit::AddNode { node, outputs })?;
        match added.values() {
            [] => Err(format!("{op_type} was not added")),
            values => Ok(values.to_vec()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "quantize_tests.rs"]
mod tests;
