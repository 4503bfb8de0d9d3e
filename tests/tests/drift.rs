//! A bundle of the compressor's own making, served by a real worker: requests like the held-out data pass
//! for such, and requests that are not are found, in the very counts that the agent's core is given.

#![allow(clippy::unwrap_used, clippy::cast_precision_loss)]

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bundle::Bundle;
use e2e::{asset, binary, provided};
use espalier::pipeline::{OriginalJob, Silent, bundle_original};
use espalier_agent::core::{BreachRules, DriftRules, examine};
use espalier_agent::plane::{Plane, PlaneConfig};
use graph::{Builder, DType, Dim, Tensor};
use runtime::{EngineKind, EngineOptions};
use wire::{DriftTest, Feature, Side};

const PIXELS: usize = 28 * 28;
const CLASSES: usize = 10;
/// Test images that the bundle's reference is made of; requests are of those behind them.
const HELDOUT: usize = 1000;
/// Requests of one pool: the least that the agent tests by default.
const POOL: usize = 200;
const PATIENCE: Duration = Duration::from_secs(120);

type Image = [f32; PIXELS];

/// Images of Fashion-MNIST, 0 to 1, with their classes.
fn fashion(part: &str, most: usize) -> Vec<(Image, usize)> {
    let read = |kind: &str, header: usize| {
        let path = asset(&format!("fashion-mnist/{part}-{kind}-ubyte.gz"));
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).unwrap();
        flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
        bytes.split_off(header)
    };
    let (pixels, labels) = (read("images-idx3", 16), read("labels-idx1", 8));
    let image = |bytes: &[u8]| std::array::from_fn(|at| f32::from(bytes[at]) / 255.0);
    let images = pixels.chunks_exact(PIXELS).map(image);
    images.zip(labels.into_iter().map(usize::from)).take(most).collect()
}

/// The classifier of the nearest class mean: scores w·x + b with w = s·mean and b = -s·|mean|²/2.
fn nearest_mean(path: &Path) {
    const SCALE: f32 = 0.2;
    let mut means = vec![[0.0_f32; PIXELS]; CLASSES];
    let mut times = [0.0_f32; CLASSES];
    for (image, class) in fashion("train", 3000) {
        times[class] += 1.0;
        means[class].iter_mut().zip(image).for_each(|(sum, value)| *sum += value);
    }
    for (mean, times) in means.iter_mut().zip(times) {
        mean.iter_mut().for_each(|value| *value /= times);
    }
    let weights: Vec<f32> =
        (0..PIXELS).flat_map(|pixel| means.iter().map(move |mean| SCALE * mean[pixel])).collect();
    let bias: Vec<f32> =
        means.iter().map(|mean| -0.5 * SCALE * mean.iter().map(|v| v * v).sum::<f32>()).collect();
    let mut builder = Builder::new(17);
    let dims = vec![Dim::Symbol("N".into()), Dim::Fixed(PIXELS)];
    let x = builder.input("x", DType::F32, dims);
    let constant =
        |dims: &[usize], values: &[f32]| Tensor::from_f32(dims.to_vec(), values).unwrap();
    let w = constant(&[PIXELS, CLASSES], &weights);
    let w = builder.constant("w", w).unwrap();
    let b = builder.constant("b", constant(&[CLASSES], &bias)).unwrap();
    let scores = builder.node("MatMul", &[x, w], []).unwrap();
    let y = builder.node("Add", &[scores, b], []).unwrap();
    builder.rename(y, "y").unwrap();
    builder.finish(&[y]).unwrap().save(path).unwrap();
}

/// The images as input `x` in a file that the compressor reads.
fn safetensors(path: &Path, images: &[(Image, usize)]) {
    let data: Vec<u8> =
        images.iter().flat_map(|(image, _)| image).flat_map(|v| v.to_le_bytes()).collect();
    let entry = serde_json::json!({
        "x": { "dtype": "F32", "shape": [images.len(), PIXELS], "data_offsets": [0, data.len()] },
    });
    let header = entry.to_string().into_bytes();
    let length = (header.len() as u64).to_le_bytes().to_vec();
    std::fs::write(path, [length, header, data].concat()).unwrap();
}

fn made(folder: &Path, heldout: &[(Image, usize)]) -> Bundle {
    let (source, data) = (folder.join("mean.onnx"), folder.join("heldout.safetensors"));
    nearest_mean(&source);
    safetensors(&data, heldout);
    let job = OriginalJob {
        name: "fashion".into(),
        source,
        heldout: data,
        engine: EngineOptions::new(EngineKind::Tract),
        device_class: "any".into(),
        sequence: 1,
        version: "1".into(),
        out_dir: folder.join("bundle"),
        work_dir: None,
        seed: 1,
    };
    bundle_original(&job, &Silent).unwrap();
    Bundle::open(&job.out_dir, &bundle::Limits::default()).unwrap()
}

/// A plane with the bundle in a worker of its own.
struct Served {
    plane: Plane,
    url: String,
    runtime: tokio::runtime::Runtime,
    _folder: tempfile::TempDir,
}

impl Served {
    fn start(heldout: &[(Image, usize)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bundle = made(folder.path(), heldout);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let config = PlaneConfig {
            engine: EngineOptions::new(EngineKind::Tract),
            worker_program: binary("espalier-worker"),
            worker_args: vec!["worker".to_owned()],
            worker_memory_bytes: None,
            worker_groups: None,
            http: Some("127.0.0.1:0".parse().unwrap()),
            unix: None,
            queue_depth: 16,
            batch: espalier_agent::plane::batch::BatchRules::OFF,
            max_request_bytes: 1 << 20,
            max_buffered_bytes: 64 << 20,
            request_deadline: PATIENCE,
            run_limit: Duration::from_secs(120),
            drift_sample_every: Duration::ZERO,
            run_dir: folder.path().join("run"),
            roots: espalier_agent::sys::Roots::default(),
        };
        let plane = runtime.block_on(async {
            let plane = Plane::start(config).await.unwrap();
            let digest = bundle.digest.to_string();
            let candidate = plane.load("fashion", &digest, &bundle).await.unwrap();
            plane.self_test(candidate, &bundle.selftest().unwrap()).await.unwrap();
            plane.serve(candidate).await.unwrap();
            plane
        });
        let address = plane.endpoints().http.unwrap();
        let url = format!("http://{address}/v2/models/fashion/infer");
        Self { plane, url, runtime, _folder: folder }
    }

    /// Asks for each image, and tests what was counted as the agent does.
    fn ask(&self, images: impl Iterator<Item = Image>) -> DriftTest {
        for image in images {
            let body = serde_json::json!({
                "inputs": [{ "name": "x", "datatype": "FP32", "shape": [1, PIXELS], "data": image.to_vec() }],
            });
            let answer = ureq::post(&self.url).send(body.to_string()).unwrap();
            assert_eq!(answer.status(), 200);
        }
        let facts = self.counted();
        let rules = DriftRules::default();
        let test = examine(&facts, rules.pool_ms, rules.level(&BreachRules::default()), 0.2);
        eprintln!("{test:#?}");
        test
    }

    /// A request is counted after it was answered.
    fn counted(&self) -> espalier_agent::core::DriftFacts {
        let facts = self.runtime.block_on(async { self.plane.take_window() });
        facts.into_iter().next().unwrap().drift.unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.runtime.block_on(self.plane.drain(Duration::from_secs(10)));
    }
}

fn drifted(test: &DriftTest) -> Vec<(Side, Feature)> {
    test.features.iter().filter(|f| f.drifted).map(|f| (f.side, f.feature)).collect()
}

#[test]
fn shifted_requests_are_found_and_held_out_ones_are_not() {
    let _: PathBuf = provided("ESPALIER_ASSETS");
    let images = fashion("t10k", 10_000);
    let (heldout, unseen) = images.split_at(HELDOUT);
    let served = Served::start(heldout);

    for pool in unseen.chunks_exact(POOL).take(3) {
        let like = served.ask(pool.iter().map(|(image, _)| *image));
        assert!(!like.drifted, "{like:#?}");
        assert_eq!(like.watched, 7, "five features of x, class and confidence of y");
    }

    let pool = &unseen[..POOL];
    let inverted = served.ask(pool.iter().map(|(image, _)| image.map(|pixel| 1.0 - pixel)));
    let found = drifted(&inverted);
    assert!(found.contains(&(Side::Input, Feature::Mean)), "{found:?}");
    assert!(found.contains(&(Side::Output, Feature::Class)), "{found:?}");

    let boots = unseen.iter().filter(|(_, class)| *class == 9).take(POOL);
    let one_class = served.ask(boots.map(|(image, _)| *image));
    assert!(drifted(&one_class).contains(&(Side::Output, Feature::Class)), "{one_class:#?}");

    let again = served.ask(unseen[3 * POOL..4 * POOL].iter().map(|(image, _)| *image));
    assert!(!again.drifted, "{again:#?}");
}
