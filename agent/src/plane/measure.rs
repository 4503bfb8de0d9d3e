//! A bundle measured off to the side: in a worker of its own, last in line for the processor, under its own limit on
//! memory. It never serves, and what is served does not know of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{ElementType, IoSpec, Tensor};
use wire::{InputSource, MeasureEnd, Priority};

use super::PlaneError;
use super::process::{Interface, RunOutcome, WorkerProcess};
use super::protocol::NamedTensors;
use super::registry::{self, Registry};
use crate::sys::{PowerConfig, PowerSource, Roots, Sample, Sampler, machine, memory};

/// How often memory and power are looked at.
const GLANCE: Duration = Duration::from_millis(200);
/// How long the device is watched at rest before, where its power is known.
const REST: Duration = Duration::from_secs(1);
/// What an inference may take beyond the time for all of them.
const GRACE: Duration = Duration::from_secs(10);
/// The most bytes of an input that is made up.
const MAX_GENERATED_BYTES: usize = 64 << 20;

/// How to measure.
#[derive(Debug, Clone)]
pub struct MeasurePlan {
    /// Inferences that are timed.
    pub runs: u32,
    /// Inferences before them; they may take as long as the timed ones.
    pub warmup: u32,
    /// When to stop timing, however many there were.
    pub limit: Duration,
    /// The limit on the worker's private memory.
    pub memory: Option<Memory>,
    /// Where the machine tells of itself.
    pub roots: Roots,
    /// How its power is to be had.
    pub power: PowerConfig,
}

/// A limit on memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// The limit.
    pub bytes: u64,
    /// Whose it is.
    pub limit: &'static str,
}

/// What was measured.
#[derive(Debug, Clone)]
pub struct Measured {
    /// The engine's name and version.
    pub engine: String,
    /// What it was run on.
    pub inputs: InputSource,
    /// From the start of the worker to the loaded model.
    pub load: Duration,
    /// Inferences before the timed ones.
    pub warmup: u32,
    /// Time in the engine, of each timed inference.
    pub times: Vec<Duration>,
    /// What ended them.
    pub end: MeasureEnd,
    /// PSS of the worker once the model was loaded.
    pub pss_loaded: Option<u64>,
    /// The same after the last inference.
    pub pss_steady: Option<u64>,
    /// The most of it that was seen from then on.
    pub pss_peak: Option<u64>,
    /// The most memory that it had resident at any time.
    pub rss_peak: Option<u64>,
    /// How it stood against the device's other work.
    pub priority: Priority,
    /// Processor time of the worker over the time in the engine.
    pub cpu_share: Option<f64>,
    /// The machine meanwhile.
    pub sample: Sample,
}

/// Measures, and ends the worker.
pub(super) async fn measure(
    registry: &Registry,
    name: &str,
    bundle: &bundle::Bundle,
    plan: &MeasurePlan,
) -> Result<Measured, PlaneError> {
    if registry.is_draining() {
        return Err(PlaneError::Draining);
    }
    let _room = registry.room_for_worker()?;
    let mut spec = registry.worker_spec(name, bundle)?;
    spec.priority = Priority::Low;
    spec.run_limit = plan.limit + GRACE;
    if let Some(Memory { bytes, limit }) = plan.memory {
        (spec.memory_bytes, spec.memory_limit) = (Some(bytes), limit);
    }
    let began = Instant::now();
    let started = WorkerProcess::start_limited(&spec).await;
    let (worker, interface) = started.map_err(|error| registry::start_error(name, &spec, error))?;
    let load = began.elapsed();
    let manifest = &bundle.manifest;
    let wrong = |reason| PlaneError::Interface { model: name.to_owned(), reason };
    registry::check_ports("input", &manifest.inputs, &interface.inputs)
        .and_then(|()| registry::check_ports("output", &manifest.outputs, &interface.outputs))
        .map_err(wrong)?;
    let (inputs, cases) = cases(bundle, &interface).map_err(wrong)?;
    let mut bench = Bench::new(worker, cases, plan);
    let measured = bench.measure(interface.engine_version, inputs, load).await;
    bench.worker.end().await;
    measured
}

/// The worker on the bench.
struct Bench<'a> {
    worker: WorkerProcess,
    pid: Option<u32>,
    cases: Vec<Arc<NamedTensors>>,
    plan: &'a MeasurePlan,
    pss_peak: Option<u64>,
    glanced: Instant,
    number: u64,
}

impl<'a> Bench<'a> {
    fn new(worker: WorkerProcess, cases: Vec<NamedTensors>, plan: &'a MeasurePlan) -> Self {
        let (pid, glanced) = (worker.pid(), Instant::now());
        let cases = cases.into_iter().map(Arc::new).collect();
        Self { worker, pid, cases, plan, pss_peak: None, glanced, number: 0 }
    }

    async fn measure(
        &mut self,
        engine: String,
        inputs: InputSource,
        load: Duration,
    ) -> Result<Measured, PlaneError> {
        let pss_loaded = self.pss();
        let mut sampler = Sampler::new(self.plan.roots.clone(), self.plan.power, Instant::now());
        let warmup = self.run(self.plan.warmup, &mut sampler).await?.len();
        let at_rest = self.rest(&mut sampler).await;
        let ticks = self.ticks();
        let times = self.run(self.plan.runs.max(1), &mut sampler).await?;
        let sample = sampler.sample(Instant::now(), &[], times.len() as u64);
        let cpu_share = self.cpu_share(ticks, &times);
        let all = times.len() == self.plan.runs.max(1) as usize;
        let end = if all { MeasureEnd::Runs } else { MeasureEnd::Time };
        tracing::debug!(at_rest, ?sample, "measured");
        Ok(Measured {
            engine,
            inputs,
            load,
            warmup: u32::try_from(warmup).unwrap_or(u32::MAX),
            end,
            pss_loaded,
            pss_steady: self.pss(),
            pss_peak: self.pss_peak,
            rss_peak: self.pid.and_then(|pid| machine::rss_peak_bytes(&self.plan.roots, pid)),
            priority: self.worker.priority(),
            cpu_share,
            sample,
            times,
        })
    }

    /// Up to `count` inferences, one at least where any are asked for, within the time for them.
    async fn run(
        &mut self,
        count: u32,
        sampler: &mut Sampler,
    ) -> Result<Vec<Duration>, PlaneError> {
        let began = Instant::now();
        let mut times = Vec::with_capacity(count as usize);
        while times.len() < count as usize
            && (times.is_empty() || began.elapsed() < self.plan.limit)
        {
            let inputs = self.cases[times.len() % self.cases.len()].clone();
            self.number += 1;
            let number = self.number;
            let failed = |reason| PlaneError::Measure { number, reason };
            match self.worker.run(inputs).await {
                Ok(RunOutcome::Done { compute, .. }) => times.push(compute),
                Ok(RunOutcome::Failed { error, .. }) => return Err(failed(error)),
                Err(error) => return Err(failed(format!("the worker {error}"))),
            }
            if self.glanced.elapsed() >= GLANCE {
                self.glanced = Instant::now();
                self.pss();
                sampler.tick(self.glanced);
            }
        }
        Ok(times)
    }

    /// Begins the window of the timed inferences; before it, where power may be known, the device is watched without
    /// them, so that what they cost above that can be told.
    async fn rest(&self, sampler: &mut Sampler) -> Option<f64> {
        if self.plan.power.source != PowerSource::Off {
            sampler.sample(Instant::now(), &[], 1);
            let until = Instant::now() + REST;
            while Instant::now() < until {
                tokio::time::sleep(GLANCE).await;
                sampler.tick(Instant::now());
            }
        }
        sampler.sample(Instant::now(), &[], 0).power.power_mw
    }

    /// The worker's PSS now.
    fn pss(&mut self) -> Option<u64> {
        let now = self.pid.and_then(|pid| memory::pss_bytes(&self.plan.roots, pid));
        self.pss_peak = self.pss_peak.max(now);
        now
    }

    fn ticks(&self) -> Option<u64> {
        self.pid.and_then(|pid| machine::process_ticks(&self.plan.roots, pid))
    }

    /// Processor time over time in the engine; none where that is too short for the clock of the kernel.
    #[allow(clippy::cast_precision_loss)]
    fn cpu_share(&self, before: Option<u64>, times: &[Duration]) -> Option<f64> {
        let used = self.ticks()?.checked_sub(before?)?;
        let tick = 1.0 / rustix::param::clock_ticks_per_second() as f64;
        let engine: f64 = times.iter().map(Duration::as_secs_f64).sum();
        (engine >= 10.0 * tick).then(|| used as f64 * tick / engine)
    }
}

/// What to run it on: its golden inputs, or where it has none what its shapes ask for.
fn cases(
    bundle: &bundle::Bundle,
    interface: &Interface,
) -> Result<(InputSource, Vec<NamedTensors>), String> {
    let test = bundle.selftest().map_err(|error| error.to_string())?;
    if test.cases.is_empty() {
        let made = interface.inputs.iter().map(generated).collect::<Result<_, _>>()?;
        return Ok((InputSource::Generated, vec![made]));
    }
    let cases = test.cases.iter().map(|case| registry::tensors(&case.inputs));
    Ok((InputSource::Example, cases.collect::<Result<_, _>>()?))
}

/// Numbers from 0 to 1 that are the same each time; zeros for what is no such number.
#[allow(clippy::cast_precision_loss)]
fn generated(spec: &IoSpec) -> Result<(String, Tensor), String> {
    let shape: Vec<usize> = spec.dims.iter().map(|dim| dim.unwrap_or(1)).collect();
    let elements = shape.iter().try_fold(1_usize, |all, &dim| all.checked_mul(dim));
    let size = spec.dtype.size().unwrap_or(size_of::<String>());
    let bytes = elements.and_then(|elements| elements.checked_mul(size));
    if bytes.is_none_or(|bytes| bytes > MAX_GENERATED_BYTES) {
        return Err(format!(
            "input `{}` of {shape:?} is over MAX_GENERATED_BYTES ({MAX_GENERATED_BYTES})",
            spec.name
        ));
    }
    let tensor = match spec.dtype {
        ElementType::F32 => {
            let step = |n: usize| (n.wrapping_mul(40_503) % 65_536) as f32 / 65_536.0;
            let values: Vec<f32> = (0..elements.unwrap_or(0)).map(step).collect();
            Tensor::from_f32(shape, &values)
        }
        dtype => Tensor::zeros(dtype, shape),
    };
    tensor.map(|tensor| (spec.name.clone(), tensor)).map_err(|error| error.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bundle::{Draft, Source, TensorSpec};

    use super::super::fake::{Bench as Fakes, HOG, HOGGED, golden};
    use super::*;

    fn plan(runs: u32) -> MeasurePlan {
        MeasurePlan {
            runs,
            warmup: 2,
            limit: Duration::from_secs(60),
            memory: None,
            roots: Roots::default(),
            power: PowerConfig { source: PowerSource::Off, ..PowerConfig::default() },
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_bundle_is_measured_beside_the_one_that_serves_and_leaves_no_worker() {
        let fakes = Fakes::start().await;
        fakes.serve("2").await;
        let measured = fakes.plane.measure("double", &fakes.bundle("3"), &plan(20)).await.unwrap();
        assert_eq!((measured.times.len(), measured.warmup), (20, 2));
        assert_eq!((measured.end, measured.inputs), (MeasureEnd::Runs, InputSource::Example));
        assert_eq!((measured.priority, measured.engine.as_str()), (Priority::Low, "fake 1"));
        assert!(measured.pss_loaded.unwrap() > 0 && measured.rss_peak.unwrap() > 0);
        assert!(measured.pss_peak >= measured.pss_steady);
        assert_eq!(fakes.plane.worker_pids().len(), 1, "only the one that serves");
        assert!(fakes.plane.is_up("double"));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_cannot_be_measured_says_why() {
        let fakes = Fakes::start().await;
        for (model, why) in [
            ("nonsense", "`nonsense` is no model"),
            ("abort", "while loading"),
            ("panic", "asked to panic while loading"),
            ("fails", "inference 1: "),
        ] {
            let error = fakes.plane.measure("double", &fakes.bundle(model), &plan(5)).await;
            let error = error.map(drop).unwrap_err().to_string();
            assert!(error.contains(why), "{model}: {error}");
        }
        let measured = fakes.plane.measure("double", &fakes.bundle("2"), &plan(5)).await;
        assert_eq!(measured.unwrap().times.len(), 5, "the next one is measured");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn time_that_is_over_ends_it_with_what_there_is() {
        let fakes = Fakes::start().await;
        let plan = MeasurePlan { limit: Duration::ZERO, ..plan(1000) };
        let measured = fakes.plane.measure("double", &fakes.bundle("2"), &plan).await.unwrap();
        assert_eq!((measured.times.len(), measured.end), (1, MeasureEnd::Time));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_limit_on_memory_is_that_of_the_plan_and_goes_by_its_name() {
        let fakes = Fakes::start().await;
        let spec = |name: &str| TensorSpec {
            name: name.to_owned(),
            dtype: "FP32".to_owned(),
            dims: vec![-1, 2],
        };
        let mut draft = Draft::new("double", "1", Source::Bytes("2".into()));
        (draft.inputs, draft.outputs) = (vec![spec("x")], vec![spec("y")]);
        draft.selftest = golden(2.0);
        let greedy = &mut draft.selftest.cases[0].inputs[0].data[..4];
        greedy.copy_from_slice(&HOG.to_le_bytes());
        let bundle = draft.write(&fakes.folder.path().join("greedy")).unwrap();
        let memory = Some(Memory { bytes: HOGGED as u64 / 2, limit: "a limit of its own" });
        let plan = MeasurePlan { memory, ..plan(5) };
        let error = fakes.plane.measure("double", &bundle, &plan).await;
        let error = error.map(drop).unwrap_err().to_string();
        assert!(error.contains("inference 1: ") && error.contains("a limit of its own"), "{error}");
    }

    #[test]
    fn made_up_inputs_have_the_model_s_types_and_shapes_and_a_limit() {
        let spec = |dtype, dims| IoSpec { name: "x".to_owned(), dtype, dims };
        let (_, floats) = generated(&spec(ElementType::F32, vec![None, Some(3)])).unwrap();
        assert_eq!(floats.shape, [1, 3]);
        assert!(floats.to_f32().unwrap().iter().all(|value| (0.0..1.0).contains(value)));
        for dtype in ElementType::ALL {
            let (_, tensor) = generated(&spec(dtype, vec![Some(2), None])).unwrap();
            assert_eq!((tensor.dtype, tensor.shape), (dtype, vec![2, 1]));
        }
        let huge = generated(&spec(ElementType::F32, vec![Some(1 << 40), Some(1 << 40)]));
        assert!(huge.unwrap_err().contains("MAX_GENERATED_BYTES"));
    }
}
