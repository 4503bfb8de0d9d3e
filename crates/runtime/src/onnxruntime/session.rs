//! A model in ONNX Runtime.

use ort::session::SessionInputValue;
use ort::value::{DynTensorValueType, DynValue, Outlet, TensorElementType, ValueType};

use super::raw;
use crate::model_file::shorten;
use engine::{
    Axis, Declared, ElementType, EngineError, ErrorKind, IoSpec, Session, Tensor, check_inputs,
    fix_batch, guard,
};

/// A session with what its model takes and gives.
pub(super) struct OrtSession {
    session: ort::session::Session,
    inputs: Vec<IoSpec>,
    outputs: Vec<IoSpec>,
}

impl OrtSession {
    pub(super) fn new(
        session: ort::session::Session,
        batch: Option<usize>,
    ) -> Result<Self, EngineError> {
        let mut inputs = declared(session.inputs(), "input")?;
        let mut outputs = declared(session.outputs(), "output")?;
        if let Some(batch) = batch {
            fix_batch(&mut inputs, &mut outputs, batch);
        }
        let specs = |all: Vec<Declared>| all.into_iter().map(Declared::into_spec).collect();
        Ok(Self { session, inputs: specs(inputs), outputs: specs(outputs) })
    }
}

impl Session for OrtSession {
    fn inputs(&self) -> &[IoSpec] {
        &self.inputs
    }

    fn outputs(&self) -> &[IoSpec] {
        &self.outputs
    }

    fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, EngineError> {
        let ordered = check_inputs(&self.inputs, inputs)?;
        let Self { session, inputs, .. } = self;
        guard(ErrorKind::Run, "ONNX Runtime", || {
            let values = inputs
                .iter()
                .zip(ordered)
                .map(|(spec, tensor)| Ok((spec.name.as_str(), to_value(tensor)?)))
                .collect::<Result<Vec<_>, EngineError>>()?;
            let outputs = session.run(values).map_err(|e| {
                EngineError::run(format!("ONNX Runtime failed: {}", shorten(e.to_string())))
            })?;
            outputs
                .into_iter()
                .map(|(name, value)| Ok((name.to_owned(), from_value(name, &value)?)))
                .collect()
        })
    }
}

fn declared(outlets: &[Outlet], role: &str) -> Result<Vec<Declared>, EngineError> {
    outlets.iter().map(|o| declare(o, role)).collect()
}

fn declare(outlet: &Outlet, role: &str) -> Result<Declared, EngineError> {
    let ValueType::Tensor { ty, shape, dimension_symbols } = outlet.dtype() else {
        return Err(EngineError::unsupported(format!(
            "{role} \"{}\" is no tensor but {}; only tensors are supported",
            outlet.name(),
            outlet.dtype()
        )));
    };
    let dtype = element_type(*ty).ok_or_else(|| {
        EngineError::unsupported(format!(
            "{role} \"{}\" has elements of type {ty}, which is not supported",
            outlet.name()
        ))
    })?;
    let names = dimension_symbols.iter().map(Some).chain(std::iter::repeat(None));
    let axes = shape
        .iter()
        .zip(names)
        .map(|(length, name)| match (usize::try_from(*length), name) {
            (Ok(length), _) => Axis::Fixed(length),
            (Err(_), Some(name)) if !name.is_empty() => Axis::Named(name.clone()),
            (Err(_), _) => Axis::Free,
        })
        .collect();
    Ok(Declared { name: outlet.name().to_owned(), dtype, axes })
}

fn to_value(tensor: &Tensor) -> Result<SessionInputValue<'static>, EngineError> {
    if tensor.dtype == ElementType::String {
        let value = ort::value::Tensor::from_string_array((
            tensor.shape.clone(),
            tensor.strings.as_slice(),
        ))
        .map_err(|e| EngineError::input(format!("a string cannot be passed on: {e}")))?;
        return Ok(value.into());
    }
    let dtype = ort_type(tensor.dtype);
    Ok(raw::tensor_of(dtype, &tensor.shape, &tensor.data)?.into())
}

fn from_value(name: &str, value: &DynValue) -> Result<Tensor, EngineError> {
    let wrong = |what: &str| EngineError::run(format!("output \"{name}\" {what}"));
    let view = value.view().downcast::<DynTensorValueType>().map_err(|_| wrong("is no tensor"))?;
    let shape = view
        .shape()
        .iter()
        .map(|n| usize::try_from(*n))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| wrong("has a negative extent"))?;
    let dtype = element_type(*view.data_type())
        .ok_or_else(|| wrong("has elements of an unsupported type"))?;
    if dtype == ElementType::String {
        let (_, strings) =
            view.try_extract_strings().map_err(|e| wrong(&format!("cannot be read: {e}")))?;
        return Tensor::from_strings(shape, strings);
    }
    Tensor::new(dtype, shape, raw::bytes_of(&view)?)
}

fn element_type(ty: TensorElementType) -> Option<ElementType> {
    ElementType::ALL.into_iter().find(|t| ort_type(*t) == ty)
}

const fn ort_type(dtype: ElementType) -> TensorElementType {
    match dtype {
        ElementType::F32 => TensorElementType::Float32,
        ElementType::F64 => TensorElementType::Float64,
        ElementType::F16 => TensorElementType::Float16,
        ElementType::Bf16 => TensorElementType::Bfloat16,
        ElementType::I8 => TensorElementType::Int8,
        ElementType::I16 => TensorElementType::Int16,
        ElementType::I32 => TensorElementType::Int32,
        ElementType::I64 => TensorElementType::Int64,
        ElementType::U8 => TensorElementType::Uint8,
        ElementType::U16 => TensorElementType::Uint16,
        ElementType::U32 => TensorElementType::Uint32,
        ElementType::U64 => TensorElementType::Uint64,
        ElementType::Bool => TensorElementType::Bool,
        ElementType::String => TensorElementType::String,
    }
}
