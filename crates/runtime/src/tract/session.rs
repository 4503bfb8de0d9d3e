//! A model in tract.

use std::sync::Arc;

use tract_onnx::pb;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::dimension::Value as DimValue;
use tract_onnx::pb::type_proto::Value as TypeValue;
use tract_onnx::prelude::{
    DatumType, InferenceModel, InferenceModelExt, IntoRunnable, TValue, TVec, TractError,
    TractResult, TypedSimplePlan,
};
use tract_onnx::tract_hir::infer::{Factoid, InferenceFact, ShapeFactoid};
use tract_onnx::tract_hir::internal::{DimLike, ToDim};
use tract_onnx::tract_hir::ops::unimpl::UnimplementedOp;

use crate::model_file::shorten;
use engine::{
    Axis, Declared, ElementType, EngineError, ErrorKind, IoSpec, Session, Tensor, check_inputs,
    fix_batch, guard,
};

/// The most plans that a session keeps of a model whose free axes tract cannot carry through.
const MAX_PLANS: usize = 4;

/// A model with what it takes and gives.
pub(super) struct TractSession {
    plans: Plans,
    inputs: Vec<IoSpec>,
    outputs: Vec<IoSpec>,
}

enum Plans {
    /// One plan for every shape.
    One(Arc<TypedSimplePlan>),
    /// A plan for each combination of input shapes, made when it first comes.
    PerShape(Box<PerShape>),
}

/// The model before optimization, and the plans of the shapes seen last, the latest at the end.
struct PerShape {
    what: String,
    model: InferenceModel,
    plans: Vec<(Shapes, Arc<TypedSimplePlan>)>,
}

type Shapes = Vec<Vec<usize>>;

impl TractSession {
    pub(super) fn new(
        what: &str,
        proto: pb::ModelProto,
        folder: Option<&str>,
        batch: Option<usize>,
    ) -> Result<Self, EngineError> {
        let graph = proto
            .graph
            .as_ref()
            .ok_or_else(|| EngineError::load(format!("{what} is not an ONNX model: no graph")))?;
        let names: Vec<String> = graph.output.iter().map(|o| o.name.clone()).collect();
        let mut inputs = declared_inputs(graph)?;
        let mut outputs = declared_outputs(graph);
        if let Some(batch) = batch {
            let outputs = outputs.as_mut().map_or(&mut [][..], Vec::as_mut_slice);
            fix_batch(&mut inputs, outputs, batch);
        }
        let model = parse(&proto, folder).map_err(|e| refused(what, &e))?;
        // The weights are in `model` by now; planning makes a third copy of some.
        drop(proto);
        let may_wait = inputs.iter().any(is_free) && !has_unknown_operators(&model);
        let kept = may_wait.then(|| model.clone());
        let (plans, outputs) = match (plan(model, &inputs), kept) {
            (Ok(plan), _) => {
                let outputs = planned_outputs(names, &plan)?;
                (Plans::One(plan), outputs)
            }
            (Err(_), Some(model)) => {
                let per_shape = PerShape { what: what.to_owned(), model, plans: Vec::new() };
                let outputs = outputs?.into_iter().map(Declared::into_spec).collect();
                (Plans::PerShape(Box::new(per_shape)), outputs)
            }
            (Err(e), None) => return Err(refused(what, &e)),
        };
        Ok(Self { plans, inputs: inputs.into_iter().map(Declared::into_spec).collect(), outputs })
    }
}

impl Session for TractSession {
    fn inputs(&self) -> &[IoSpec] {
        &self.inputs
    }

    fn outputs(&self) -> &[IoSpec] {
        &self.outputs
    }

    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, EngineError> {
        let ordered = check_inputs(&self.inputs, inputs)?;
        guard(ErrorKind::Run, "tract", || {
            let plan = match &mut self.plans {
                Plans::One(plan) => Arc::clone(plan),
                Plans::PerShape(plans) => plans.for_inputs(&self.inputs, &ordered)?,
            };
            let values = ordered.into_iter().map(to_value).collect::<Result<TVec<_>, _>>()?;
            let results = plan.run(values).map_err(|e| {
                EngineError::run(format!("tract failed: {}", shorten(format!("{e:#}"))))
            })?;
            self.outputs
                .iter()
                .zip(&results)
                .map(|(spec, value)| Ok((spec.name.clone(), from_value(spec, value)?)))
                .collect()
        })
    }
}

impl PerShape {
    fn for_inputs(
        &mut self,
        specs: &[IoSpec],
        inputs: &[&Tensor],
    ) -> Result<Arc<TypedSimplePlan>, EngineError> {
        let shapes: Shapes = inputs.iter().map(|t| t.shape.clone()).collect();
        let kept = self.plans.iter().position(|(known, _)| *known == shapes);
        let entry = match kept {
            Some(at) => self.plans.remove(at),
            None => {
                let plan = self.build(specs, &shapes)?;
                (shapes, plan)
            }
        };
        let plan = Arc::clone(&entry.1);
        if self.plans.len() == MAX_PLANS {
            self.plans.remove(0);
        }
        self.plans.push(entry);
        Ok(plan)
    }

    fn build(
        &self,
        specs: &[IoSpec],
        shapes: &Shapes,
    ) -> Result<Arc<TypedSimplePlan>, EngineError> {
        let inputs: Vec<Declared> = specs
            .iter()
            .zip(shapes)
            .map(|(spec, shape)| Declared {
                name: spec.name.clone(),
                dtype: spec.dtype,
                axes: shape.iter().map(|n| Axis::Fixed(*n)).collect(),
            })
            .collect();
        plan(self.model.clone(), &inputs)
            .map_err(|e| refused(&format!("{} for shapes {shapes:?}", self.what), &e))
    }
}

fn refused(what: &str, cause: &TractError) -> EngineError {
    let cause = shorten(format!("{cause:#}"));
    EngineError::unsupported(format!("tract cannot run {what}: {cause}"))
}

fn is_free(declared: &Declared) -> bool {
    declared.axes.iter().any(|a| !matches!(a, Axis::Fixed(_)))
}

/// The inputs that a caller gives: those of the graph that no initializer fills.
fn declared_inputs(graph: &pb::GraphProto) -> Result<Vec<Declared>, EngineError> {
    graph
        .input
        .iter()
        .filter(|input| graph.initializer.iter().all(|i| i.name != input.name))
        .map(|input| declare(input, "input"))
        .collect()
}

/// What the graph says that it gives.
fn declared_outputs(graph: &pb::GraphProto) -> Result<Vec<Declared>, EngineError> {
    graph.output.iter().map(|o| declare(o, "output")).collect()
}

fn declare(value: &pb::ValueInfoProto, role: &str) -> Result<Declared, EngineError> {
    let Some(TypeValue::TensorType(tensor)) = value.r#type.as_ref().and_then(|t| t.value.as_ref())
    else {
        return Err(EngineError::unsupported(format!(
            "{role} \"{}\" has no tensor type; only tensors are supported",
            value.name
        )));
    };
    let dtype = declared_type(tensor.elem_type).map_err(|type_name| {
        EngineError::unsupported(format!(
            "{role} \"{}\" has elements of type {type_name}, which tract does not support",
            value.name
        ))
    })?;
    let shape = tensor.shape.as_ref().ok_or_else(|| {
        EngineError::unsupported(format!(
            "{role} \"{}\" has no declared rank, which tract needs",
            value.name
        ))
    })?;
    Ok(Declared { name: value.name.clone(), dtype, axes: shape.dim.iter().map(axis).collect() })
}

fn axis(dim: &pb::tensor_shape_proto::Dimension) -> Axis {
    match &dim.value {
        Some(DimValue::DimValue(n)) => usize::try_from(*n).map_or(Axis::Free, Axis::Fixed),
        Some(DimValue::DimParam(name)) if !name.is_empty() => Axis::Named(name.clone()),
        Some(DimValue::DimParam(_)) | None => Axis::Free,
    }
}

/// The element type of that ONNX number, or the name of one that tract has not.
fn declared_type(number: i32) -> Result<ElementType, String> {
    match DataType::try_from(number) {
        Ok(DataType::Float) => Ok(ElementType::F32),
        Ok(DataType::Double) => Ok(ElementType::F64),
        Ok(DataType::Float16) => Ok(ElementType::F16),
        Ok(DataType::Int8) => Ok(ElementType::I8),
        Ok(DataType::Int16) => Ok(ElementType::I16),
        Ok(DataType::Int32) => Ok(ElementType::I32),
        Ok(DataType::Int64) => Ok(ElementType::I64),
        Ok(DataType::Uint8) => Ok(ElementType::U8),
        Ok(DataType::Uint16) => Ok(ElementType::U16),
        Ok(DataType::Uint32) => Ok(ElementType::U32),
        Ok(DataType::Uint64) => Ok(ElementType::U64),
        Ok(DataType::Bool) => Ok(ElementType::Bool),
        Ok(DataType::Bfloat16) => Err(ElementType::Bf16.to_string()),
        Ok(DataType::String) => Err(ElementType::String.to_string()),
        Ok(other) => Err(format!("{other:?}")),
        Err(_) => Err(format!("number {number}")),
    }
}

/// The model as tract reads it. What the file says of the shapes between its nodes is left out:
/// exporters write names there that contradict a fixed batch, and tract infers them anyway.
fn parse(proto: &pb::ModelProto, folder: Option<&str>) -> TractResult<InferenceModel> {
    let parsed = tract_onnx::onnx().with_ignore_value_info(true).parse(proto, folder)?;
    if !parsed.unresolved_inputs.is_empty() {
        return Err(TractError::msg(format!(
            "nothing gives the values {:?}",
            parsed.unresolved_inputs
        )));
    }
    Ok(parsed.model)
}

/// Whether no shape would help.
fn has_unknown_operators(model: &InferenceModel) -> bool {
    model.nodes().iter().any(|node| node.op_is::<UnimplementedOp>())
}

/// Optimizes `model` for the axes of `inputs`.
fn plan(mut model: InferenceModel, inputs: &[Declared]) -> TractResult<Arc<TypedSimplePlan>> {
    for (at, declared) in inputs.iter().enumerate() {
        let fact = fact(&model, at, declared)?;
        model.set_input_fact(at, fact)?;
    }
    model.into_optimized()?.into_runnable()
}

/// What tract is told of input `at`: the declared type, its fixed axes, and a symbol for each free
/// one (that of its name, where tract made one of it).
fn fact(model: &InferenceModel, at: usize, declared: &Declared) -> TractResult<InferenceFact> {
    let known = model.input_fact(at)?.clone();
    let dims = declared
        .axes
        .iter()
        .enumerate()
        .map(|(axis, length)| match length {
            Axis::Fixed(n) => n.to_dim().into(),
            Axis::Named(_) | Axis::Free => known
                .shape
                .dim(axis)
                .filter(Factoid::is_concrete)
                .unwrap_or_else(|| model.symbols.new_with_prefix("free").to_dim().into()),
        })
        .collect();
    Ok(known.with_shape(ShapeFactoid::closed(dims)))
}

/// What the optimized model gives, by the names that the graph declares.
fn planned_outputs(names: Vec<String>, plan: &TypedSimplePlan) -> Result<Vec<IoSpec>, EngineError> {
    let lost = |e| EngineError::load(format!("tract lost an output: {e:#}"));
    names
        .into_iter()
        .enumerate()
        .map(|(at, name)| {
            let fact = plan.model().output_fact(at).map_err(lost)?;
            let dtype = element_type(fact.datum_type).ok_or_else(|| {
                EngineError::unsupported(format!(
                    "output \"{name}\" has elements of type {:?}, which is not supported",
                    fact.datum_type
                ))
            })?;
            let dims = fact.shape.iter().map(|d| d.to_usize().ok()).collect();
            Ok(IoSpec { name, dtype, dims })
        })
        .collect()
}

fn to_value(tensor: &Tensor) -> Result<TValue, EngineError> {
    let dtype = datum_type(tensor.dtype)
        .ok_or_else(|| EngineError::unsupported(format!("tract has no {}", tensor.dtype)))?;
    let mut value = tract_onnx::prelude::Tensor::zero_dt(dtype, &tensor.shape)
        .map_err(|e| EngineError::run(format!("no tensor of shape {:?}: {e:#}", tensor.shape)))?;
    let target = value.as_bytes_mut();
    if target.len() != tensor.data.len() {
        return Err(EngineError::input(format!(
            "{} of shape {:?} does not have {} bytes",
            tensor.dtype,
            tensor.shape,
            tensor.data.len()
        )));
    }
    target.copy_from_slice(&tensor.data);
    Ok(value.into())
}

/// The output as `spec` declares it: tract's dimensions (`TDim`) become integers, its quantized
/// types the integers they are stored in.
fn from_value(spec: &IoSpec, value: &TValue) -> Result<Tensor, EngineError> {
    let wrong = |what: String| EngineError::run(format!("output \"{}\" {what}", spec.name));
    let given = value.datum_type();
    let shape = value.shape().to_vec();
    if element_type(given) != Some(spec.dtype) {
        return Err(wrong(format!("should be {}, but tract gave {given:?}", spec.dtype)));
    }
    if given.is_tdim() {
        let whole =
            value.cast_to_dt(DatumType::I64).map_err(|e| wrong(format!("is no number: {e:#}")))?;
        return Tensor::new(spec.dtype, shape, whole.as_bytes().to_vec());
    }
    Tensor::new(spec.dtype, shape, value.as_bytes().to_vec())
}

fn element_type(datum: DatumType) -> Option<ElementType> {
    match datum.unquantized() {
        DatumType::TDim => Some(ElementType::I64),
        plain => ElementType::ALL.into_iter().find(|t| datum_type(*t) == Some(plain)),
    }
}

const fn datum_type(dtype: ElementType) -> Option<DatumType> {
    match dtype {
        ElementType::F32 => Some(DatumType::F32),
        ElementType::F64 => Some(DatumType::F64),
        ElementType::F16 => Some(DatumType::F16),
        ElementType::I8 => Some(DatumType::I8),
        ElementType::I16 => Some(DatumType::I16),
        ElementType::I32 => Some(DatumType::I32),
        ElementType::I64 => Some(DatumType::I64),
        ElementType::U8 => Some(DatumType::U8),
        ElementType::U16 => Some(DatumType::U16),
        ElementType::U32 => Some(DatumType::U32),
        ElementType::U64 => Some(DatumType::U64),
        ElementType::Bool => Some(DatumType::Bool),
        ElementType::Bf16 | ElementType::String => None,
    }
}
