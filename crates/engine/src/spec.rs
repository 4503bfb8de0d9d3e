//! What a model takes and gives, and whether a request fits it.

use crate::error::EngineError;
use crate::tensor::{ElementType, Tensor};

/// The name, type and shape of one input or output of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoSpec {
    /// The tensor's name in the model.
    pub name: String,
    /// The type of its elements.
    pub dtype: ElementType,
    /// The extent of each axis, `None` where any extent is taken.
    pub dims: Vec<Option<usize>>,
}

impl IoSpec {
    /// Whether a tensor of `shape` fits: the same rank, and every fixed extent met.
    pub fn accepts_shape(&self, shape: &[usize]) -> bool {
        self.dims.len() == shape.len()
            && self.dims.iter().zip(shape).all(|(dim, got)| dim.is_none_or(|wanted| wanted == *got))
    }

    /// The shape with every free extent set to `free`.
    pub fn shape_with(&self, free: usize) -> Vec<usize> {
        self.dims.iter().map(|d| d.unwrap_or(free)).collect()
    }

    fn dims_text(&self) -> String {
        let dims: Vec<String> =
            self.dims.iter().map(|d| d.map_or_else(|| "?".to_owned(), |d| d.to_string())).collect();
        format!("[{}]", dims.join(", "))
    }
}

/// Puts `inputs` in the order of `specs`.
///
/// # Errors
/// A tensor is missing, unknown or given twice, or one has another type, rank or extent, or its
/// bytes do not fill its shape; the text names the tensor, what was wanted and what came.
pub fn check_inputs<'t>(
    specs: &[IoSpec],
    inputs: &[(&str, &'t Tensor)],
) -> Result<Vec<&'t Tensor>, EngineError> {
    for (at, (name, _)) in inputs.iter().enumerate() {
        if !specs.iter().any(|s| s.name == *name) {
            return Err(EngineError::input(format!(
                "there is no input \"{name}\"; the model takes {}",
                names(specs)
            )));
        }
        if inputs[..at].iter().any(|(earlier, _)| earlier == name) {
            return Err(EngineError::input(format!("input \"{name}\" is given twice")));
        }
    }
    specs.iter().map(|spec| pick(spec, inputs)).collect()
}

/// An axis as a model declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Axis {
    /// Always this long.
    Fixed(usize),
    /// As long as every other axis of that name.
    Named(String),
    /// Of any length.
    Free,
}

/// An input or output as a model declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub dtype: ElementType,
    /// Its axes, outermost first.
    pub axes: Vec<Axis>,
}

impl Declared {
    /// What is known of it from outside: an axis of a name is as free as one without.
    pub fn into_spec(self) -> IoSpec {
        let dims = self
            .axes
            .into_iter()
            .map(|axis| match axis {
                Axis::Fixed(n) => Some(n),
                Axis::Named(_) | Axis::Free => None,
            })
            .collect();
        IoSpec { name: self.name, dtype: self.dtype, dims }
    }
}

/// Makes the first axis of each of `inputs` `batch` long where it is not fixed, and with it every
/// axis of the same name in `inputs` and `outputs`.
pub fn fix_batch(inputs: &mut [Declared], outputs: &mut [Declared], batch: usize) {
    let mut names = Vec::new();
    for first in inputs.iter_mut().filter_map(|d| d.axes.first_mut()) {
        match first {
            Axis::Fixed(_) => continue,
            Axis::Named(name) => names.push(name.clone()),
            Axis::Free => {}
        }
        *first = Axis::Fixed(batch);
    }
    for declared in inputs.iter_mut().chain(outputs) {
        for axis in &mut declared.axes {
            if matches!(axis, Axis::Named(name) if names.contains(name)) {
                *axis = Axis::Fixed(batch);
            }
        }
    }
}

fn pick<'t>(spec: &IoSpec, inputs: &[(&str, &'t Tensor)]) -> Result<&'t Tensor, EngineError> {
    let name = &spec.name;
    let Some((_, tensor)) = inputs.iter().find(|(given, _)| given == name) else {
        return Err(EngineError::input(format!(
            "input \"{name}\" is missing ({} {})",
            spec.dtype,
            spec.dims_text()
        )));
    };
    if tensor.dtype != spec.dtype {
        return Err(EngineError::input(format!(
            "input \"{name}\" wants {}, got {}",
            spec.dtype, tensor.dtype
        )));
    }
    if !spec.accepts_shape(&tensor.shape) {
        return Err(EngineError::input(format!(
            "input \"{name}\" wants shape {}, got {:?}",
            spec.dims_text(),
            tensor.shape
        )));
    }
    tensor.check().map_err(|e| EngineError::input(format!("input \"{name}\": {e}")))?;
    Ok(tensor)
}

fn names(specs: &[IoSpec]) -> String {
    let quoted: Vec<String> = specs.iter().map(|s| format!("\"{}\"", s.name)).collect();
    if quoted.is_empty() { "none".to_owned() } else { quoted.join(", ") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn specs() -> Vec<IoSpec> {
        vec![
            IoSpec { name: "image".into(), dtype: ElementType::F32, dims: vec![None, Some(3)] },
            IoSpec { name: "rate".into(), dtype: ElementType::I64, dims: vec![] },
        ]
    }

    fn text(inputs: &[(&str, &Tensor)]) -> String {
        check_inputs(&specs(), inputs).unwrap_err().to_string()
    }

    #[test]
    fn inputs_come_out_in_the_models_order() {
        let image = Tensor::from_f32(vec![2, 3], &[0.0; 6]).unwrap();
        let rate = Tensor::from_i64(vec![], &[16_000]).unwrap();
        let sorted = check_inputs(&specs(), &[("rate", &rate), ("image", &image)]).unwrap();
        assert_eq!(sorted, vec![&image, &rate]);
    }

    #[test]
    fn each_mistake_is_named() {
        let image = Tensor::from_f32(vec![2, 3], &[0.0; 6]).unwrap();
        let rate = Tensor::from_i64(vec![], &[16_000]).unwrap();
        let wide = Tensor::from_f32(vec![2, 4], &[0.0; 8]).unwrap();
        let flat = Tensor::from_f32(vec![3], &[0.0; 3]).unwrap();
        assert_eq!(text(&[("image", &image)]), "input \"rate\" is missing (INT64 [])");
        assert_eq!(
            text(&[("image", &image), ("rate", &rate), ("x", &rate)]),
            "there is no input \"x\"; the model takes \"image\", \"rate\""
        );
        assert_eq!(text(&[("image", &image), ("image", &image)]), "input \"image\" is given twice");
        assert_eq!(
            text(&[("image", &rate), ("rate", &rate)]),
            "input \"image\" wants FP32, got INT64"
        );
        assert_eq!(
            text(&[("image", &wide), ("rate", &rate)]),
            "input \"image\" wants shape [?, 3], got [2, 4]"
        );
        assert_eq!(
            text(&[("image", &flat), ("rate", &rate)]),
            "input \"image\" wants shape [?, 3], got [3]"
        );
    }

    #[test]
    fn a_tensor_whose_fields_were_edited_is_caught() {
        let mut image = Tensor::from_f32(vec![2, 3], &[0.0; 6]).unwrap();
        image.data.truncate(23);
        let rate = Tensor::from_i64(vec![], &[1]).unwrap();
        assert_eq!(
            text(&[("image", &image), ("rate", &rate)]),
            "input \"image\": FP32 of shape [2, 3] needs 24 bytes, got 23"
        );
    }

    #[test]
    fn fixing_the_batch_follows_the_axis_name_and_leaves_the_rest_alone() {
        let declared = |name: &str, axes: &[Axis]| Declared {
            name: name.into(),
            dtype: ElementType::F32,
            axes: axes.to_vec(),
        };
        let named = |name: &str| Axis::Named(name.into());
        let mut inputs = [
            declared("input", &[named("batch"), named("time")]),
            declared("state", &[Axis::Fixed(2), named("batch"), Axis::Free]),
            declared("mask", &[Axis::Free]),
            declared("rate", &[]),
        ];
        let mut outputs = [declared("output", &[named("batch"), named("time")])];
        fix_batch(&mut inputs, &mut outputs, 3);
        let dims: Vec<_> = inputs.into_iter().map(|d| d.into_spec().dims).collect();
        assert_eq!(
            dims,
            vec![vec![Some(3), None], vec![Some(2), Some(3), None], vec![Some(3)], vec![]]
        );
        assert_eq!(outputs[0].axes, vec![Axis::Fixed(3), named("time")]);
    }
}
