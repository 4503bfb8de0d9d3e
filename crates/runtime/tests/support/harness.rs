//! Engines, assets and comparisons for the tests.
#![allow(dead_code)]

use std::path::PathBuf;

use runtime::{ElementType, Engine, EngineKind, EngineOptions, LoadOptions, Session, Tensor, open};

/// The file `name` among the tests' assets.
pub(crate) fn asset(name: &str) -> PathBuf {
    let folder = variable("ESPALIER_ASSETS");
    let path = PathBuf::from(folder).join(name);
    assert!(path.exists(), "{} is missing: run through `cargo xtask test`", path.display());
    path
}

/// The environment variable `name`.
pub(crate) fn variable(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: run through `cargo xtask test`"))
}

/// An engine on one thread.
pub(crate) fn engine(kind: EngineKind) -> Box<dyn Engine> {
    if kind == EngineKind::Ort {
        variable("ORT_DYLIB_PATH");
    }
    open(&EngineOptions::new(kind)).unwrap()
}

/// Both engines, tract first.
pub(crate) fn engines() -> [Box<dyn Engine>; 2] {
    EngineKind::ALL.map(engine)
}

/// The options that fix the batch.
pub(crate) fn batch(size: usize) -> LoadOptions {
    LoadOptions { batch: Some(size), ..LoadOptions::default() }
}

/// Numbers that look random and are the same in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// In -1 .. 1.
    pub(crate) fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn floats(&mut self, shape: &[usize]) -> Tensor {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| self.float()).collect();
        Tensor::from_f32(shape.to_vec(), &values).unwrap()
    }

    /// Bytes and the padding token 256, as magika takes them.
    pub(crate) fn magika(&mut self, rows: usize) -> Tensor {
        let values: Vec<i32> = (0..rows * 2048).map(|_| (self.next() % 257) as i32).collect();
        Tensor::from_i32(vec![rows, 2048], &values).unwrap()
    }
}

/// How far `got` is from `wanted`: `None` where all elements agree within `tolerance` (absolute and
/// relative), else what differs.
pub(crate) fn difference(got: &Tensor, wanted: &Tensor, tolerance: f64) -> Option<String> {
    if got.dtype != wanted.dtype || got.shape != wanted.shape {
        return Some(format!(
            "{} {:?} is not {} {:?}",
            got.dtype, got.shape, wanted.dtype, wanted.shape
        ));
    }
    if got.dtype == ElementType::String {
        return (got != wanted).then(|| "the strings differ".to_owned());
    }
    let (a, b) = (got.to_f64_lossy().unwrap(), wanted.to_f64_lossy().unwrap());
    let at = a.iter().zip(&b).position(|(a, b)| {
        !(a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance * (1.0 + b.abs()))
    })?;
    Some(format!("element {at} is {}, not {}", a[at], b[at]))
}

/// Runs the same inputs through two sessions and compares all outputs.
pub(crate) fn assert_agree(
    sessions: &mut [Box<dyn Session>; 2],
    inputs: &[(&str, &Tensor)],
    tolerance: f64,
) {
    let [tract, ort] = sessions.each_mut().map(|s| s.run(inputs).unwrap());
    assert_eq!(tract.len(), ort.len());
    for ((tract_name, tract), (ort_name, ort)) in tract.iter().zip(&ort) {
        assert_eq!(tract_name, ort_name);
        if let Some(difference) = difference(tract, ort, tolerance) {
            panic!("tract's {tract_name}: {difference}");
        }
    }
}

/// The model `name` in both engines.
pub(crate) fn load_both(name: &str, options: &LoadOptions) -> [Box<dyn Session>; 2] {
    let path = asset(name);
    engines().map(|engine| engine.load(&path, options).unwrap())
}
