//! Small models and samples that need no file from outside.
#![allow(dead_code, clippy::unwrap_used)]

use std::io::Write as _;
use std::path::Path;

use graph::{Builder, DType, Dim, Model, Tensor, ValueId};
use ndarray_npy::WriteNpyExt as _;

/// Numbers about zero that look random and are always the same.
pub(crate) fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(state >> 8) / f64::from(1u32 << 24) - 0.5
    };
    // Four uniform numbers are nearly normal; their sum has a variance of 1/3.
    (0..count).map(|_| ((next() + next() + next() + next()) * 1.73) as f32).collect()
}

/// A weight of `rows` by `columns` that keeps the size of what it multiplies.
pub(crate) fn weight(builder: &mut Builder, name: &str, rows: usize, columns: usize) -> ValueId {
    let scale = (1.0 / rows as f32).sqrt();
    let seed = name.bytes().fold(7, |s, b| s * 31 + u32::from(b));
    let values: Vec<f32> = noise(rows * columns, seed).iter().map(|v| v * scale).collect();
    builder.constant(name, Tensor::from_f32(vec![rows, columns], &values).unwrap()).unwrap()
}

/// MatMul layers of these widths with Relu between them; the first width is the input's, `x`.
pub(crate) fn mlp(widths: &[usize]) -> Model {
    let mut builder = Builder::new(15);
    let dims = vec![Dim::Symbol("N".into()), Dim::Fixed(widths[0])];
    let mut value = builder.input("x", DType::F32, dims);
    for (at, pair) in widths.windows(2).enumerate() {
        if at > 0 {
            value = builder.node("Relu", &[value], []).unwrap();
        }
        let w = weight(&mut builder, &format!("w{at}"), pair[0], pair[1]);
        value = builder.node("MatMul", &[value, w], []).unwrap();
    }
    builder.finish(&[value]).unwrap()
}

/// Writes `count` samples named `x`, each of shape `dims`.
pub(crate) fn samples(path: &Path, count: usize, dims: &[usize], seed: u32) {
    samples_of(path, "x", count, dims, seed);
}

/// Writes `count` samples for the input `name`, each of shape `dims`.
pub(crate) fn samples_of(path: &Path, name: &str, count: usize, dims: &[usize], seed: u32) {
    let shape: Vec<usize> = [count].iter().chain(dims).copied().collect();
    let values = noise(shape.iter().product(), seed);
    let array = ndarray::ArrayD::from_shape_vec(shape, values).unwrap();
    let mut bytes = Vec::new();
    array.write_npy(&mut bytes).unwrap();
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    let file = format!("{name}.npy");
    zip.start_file(file, zip::write::SimpleFileOptions::default()).unwrap();
    zip.write_all(&bytes).unwrap();
    zip.finish().unwrap();
}
