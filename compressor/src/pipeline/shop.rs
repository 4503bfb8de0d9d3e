//! What every stage works with: the source model, the engine, the samples, a folder for candidates, and
//! the bench on which candidates are timed beside the reference.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use graph::{Choice, GroupId, Grouping, Model, PrunePlan, Shapes};
use runtime::measure::{LatencyStats, Rounds};
use runtime::{Engine, IoSpec, LoadOptions, Session, Tensor};

use super::finish::ModelFile;
use super::hunt::PAYS;
use super::{CompressJob, Progress};
use crate::calibrate::{Runner, WorkDir};
use crate::data::Dataset;
use crate::error::CompressError;
use crate::latency::HostLatency;
use crate::plan::{GroupChoice, alignment};
use crate::refit;

/// Time that a comparison of a candidate with the reference takes: at least, and at most where the limit lies
/// inside its interval.
const PROBE_TIME: (Duration, Duration) = (Duration::from_millis(700), Duration::from_secs(4));
/// Rounds between two looks at the clock.
const PROBE_ROUNDS: usize = 8;

/// Without held-out data of its own, every so many samples of the calibration data are kept apart.
pub(crate) const HOLD_OUT_EVERY: usize = 4;

/// The source model and what was found in it.
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) digest: bundle::Digest,
    pub(crate) model: Model,
    pub(crate) shapes: Shapes,
    pub(crate) grouping: Grouping,
}

impl Source {
    /// Reads and checks the model at `path`, and finds its groups.
    pub(crate) fn load(path: &Path) -> Result<Self, CompressError> {
        let wrong = |what: String| CompressError::Model { path: path.to_path_buf(), what };
        let model = Model::load(path).map_err(|e| wrong(e.to_string()))?;
        model.verify().map_err(|violations| {
            let all: Vec<String> = violations.iter().map(ToString::to_string).collect();
            wrong(format!("is not valid: {}", all.join("; ")))
        })?;
        let digest = bundle::Digest::of_file(path).map_err(|e| wrong(e.to_string()))?;
        let shapes = graph::infer(&model);
        let grouping = graph::find(&model, &shapes);
        Ok(Self { path: path.to_path_buf(), digest, model, shapes, grouping })
    }

    /// The model as a file that can be bundled: the very file, or, where its tensors lie in other files, a copy in
    /// `work` with at most one of these.
    pub(crate) fn file(&self, work: &WorkDir) -> Result<ModelFile, CompressError> {
        let constants: usize = self
            .model
            .graph
            .values()
            .filter_map(|(_, v)| v.data.as_ref())
            .map(|t| t.byte_size())
            .sum();
        if file_size(&self.path)? >= constants as u64 {
            return Ok(ModelFile { path: self.path.clone(), external: None });
        }
        save_as(&self.model, &work.join("source.onnx"))
    }

    /// The graph that a group or a lock speaks of.
    pub(crate) fn graph_of(&self, scope: &graph::Scope) -> &graph::Graph {
        self.model.graph_at(scope).unwrap_or(&self.model.graph)
    }

    /// Groups of the main graph, whose activations can be observed.
    pub(crate) fn observable(&self) -> impl Iterator<Item = &graph::Group> {
        self.grouping.groups.iter().filter(|group| group.scope.is_main())
    }

    /// What people call a group: its first producer.
    pub(crate) fn group_label(&self, index: usize) -> String {
        let group = &self.grouping.groups[index];
        let graph = self.graph_of(&group.scope);
        group
            .producers
            .first()
            .map_or_else(|| format!("group {index}"), |node| refit::label(graph, *node))
    }

    /// Units of each group.
    pub(crate) fn widths(&self) -> Vec<usize> {
        self.grouping.groups.iter().map(|g| g.width).collect()
    }

    /// The choice of `keep` in group `index`, as the plan writes it.
    pub(crate) fn choice(&self, index: usize, keep: Vec<u32>) -> GroupChoice {
        let width = self.grouping.groups[index].width;
        GroupChoice {
            group: index as u32,
            label: self.group_label(index),
            width,
            keep,
            alignment: alignment(width),
        }
    }

    /// A copy of the source with `choices` applied.
    pub(crate) fn pruned(&self, choices: &[GroupChoice]) -> Result<Model, CompressError> {
        let mut model = self.model.clone();
        let plan = PrunePlan {
            choices: choices
                .iter()
                .map(|c| Choice { group: GroupId(c.group), keep: c.keep.clone() })
                .collect(),
        };
        if !plan.choices.is_empty() {
            graph::prune(&mut model, &self.grouping, &plan)
                .map_err(|e| CompressError::Graph { stage: "prune", what: e.to_string() })?;
        }
        Ok(model)
    }

    /// Why dimensions cannot be narrowed, as sentences.
    pub(crate) fn locked(&self) -> Vec<String> {
        self.grouping
            .locked
            .iter()
            .map(|l| {
                let value = &self.graph_of(&l.scope).value(l.value).name;
                format!("{value}, axis {} of width {}: {}", l.axis, l.width, l.why)
            })
            .collect()
    }
}

/// Writes `model`, without what nothing reads, to `path` and returns its size, external data included.
pub(crate) fn save(model: &Model, path: &Path) -> Result<u64, CompressError> {
    let external = save_as(model, path)?.external;
    let external = external.as_deref().map_or(Ok(0), file_size)?;
    Ok(file_size(path)? + external)
}

/// Writes `model`, without what nothing reads, to `path`.
pub(crate) fn save_as(model: &Model, path: &Path) -> Result<ModelFile, CompressError> {
    let wrong = |what: String| CompressError::Graph { stage: "export", what };
    let mut model = model.clone();
    graph::Driver::default()
        .run(&mut model, &[&graph::DeadCode])
        .map_err(|e| wrong(e.to_string()))?;
    let saved = model.save(path).map_err(|e| wrong(e.to_string()))?;
    Ok(ModelFile { path: saved.model, external: saved.external })
}

/// Multiply-accumulates of one sample; `None` where no product's shapes are known.
pub(crate) fn macs(model: &Model, shapes: &Shapes) -> Option<u64> {
    Some(graph::cost::macs(model, shapes, 1)).filter(|macs| *macs > 0)
}

/// Size of a model file.
pub(crate) fn file_size(path: &Path) -> Result<u64, CompressError> {
    std::fs::metadata(path).map(|m| m.len()).map_err(CompressError::io(path))
}

/// Everything a job needs open.
pub(crate) struct Shop<'a> {
    pub(crate) job: &'a CompressJob,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) source: Source,
    pub(crate) runner: Runner,
    pub(crate) calibration: Dataset,
    pub(crate) heldout: Dataset,
    pub(crate) specs: (Vec<IoSpec>, Vec<IoSpec>),
    pub(crate) work: WorkDir,
}

impl<'a> Shop<'a> {
    /// Opens the engine, reads the model and both data sets. One file for both is split.
    pub(crate) fn open(
        job: &'a CompressJob,
        progress: &'a dyn Progress,
    ) -> Result<Self, CompressError> {
        Self::open_with(job, progress, job.heldout == job.calibration)
    }

    /// As [`Self::open`], for work that does not judge what it fitted: one file serves whole for both.
    pub(crate) fn open_whole(
        job: &'a CompressJob,
        progress: &'a dyn Progress,
    ) -> Result<Self, CompressError> {
        Self::open_with(job, progress, false)
    }

    fn open_with(
        job: &'a CompressJob,
        progress: &'a dyn Progress,
        split: bool,
    ) -> Result<Self, CompressError> {
        progress.stage("reading the model and the data", 0);
        let source = Source::load(&job.source)?;
        let runner = Runner::open(&job.engine)?;
        let specs = specs(&runner, &job.source)?;
        let calibration = Dataset::load(&job.calibration, &specs.0)?;
        let (calibration, heldout) = if split {
            calibration.hold_out(HOLD_OUT_EVERY)?
        } else {
            (calibration, Dataset::load(&job.heldout, &specs.0)?)
        };
        Ok(Self {
            calibration,
            heldout,
            work: WorkDir::new()?,
            job,
            progress,
            source,
            runner,
            specs,
        })
    }

    /// An error if the caller asked to stop.
    pub(crate) fn check(&self, stage: &str) -> Result<(), CompressError> {
        if self.progress.cancelled() {
            return Err(CompressError::Cancelled(stage.to_owned()));
        }
        Ok(())
    }
}

/// Inputs and outputs of the model at `path`, batch free where the model leaves it free.
pub(crate) fn specs(
    runner: &Runner,
    path: &Path,
) -> Result<(Vec<IoSpec>, Vec<IoSpec>), CompressError> {
    let session = runner
        .load(path, &LoadOptions::default())
        .map_err(CompressError::engine(format!("loading {}", path.display())))?;
    Ok((session.inputs().to_vec(), session.outputs().to_vec()))
}

/// Times candidates beside the reference: the model that the device runs, or the source.
pub(crate) struct Bench {
    engine: Box<dyn Engine>,
    reference: Box<dyn Session>,
    inputs: Vec<(String, Tensor)>,
    /// The reference alone, as first measured.
    pub(crate) stats: LatencyStats,
}

impl Bench {
    /// Loads the reference and measures it alone.
    pub(crate) fn open(shop: &Shop<'_>) -> Result<Self, CompressError> {
        let job = shop.job;
        let path = match (&job.baseline, &job.current_model) {
            (Some(_), Some(current)) => current,
            _ => &job.source,
        };
        let engine = runtime::open(&job.engine)
            .map_err(CompressError::engine(format!("opening the engine {}", job.engine.kind)))?;
        let mut reference = engine
            .load(path, &single())
            .map_err(CompressError::engine(format!("loading {}", path.display())))?;
        let inputs = shop
            .heldout
            .batch(&[0])
            .map_err(CompressError::engine("taking the first held-out sample"))?;
        let stats = runtime::measure::latency(reference.as_mut(), &borrow(&inputs), 3, 21)
            .map_err(CompressError::engine(format!("timing {}", path.display())))?;
        Ok(Self { engine, reference, inputs, stats })
    }

    /// Times the model at `path` beside the reference, until the ratio is clearly on one side of `limit`.
    pub(crate) fn against_reference(
        &mut self,
        path: &Path,
        limit: Option<f64>,
    ) -> Result<HostLatency, CompressError> {
        let mut candidate = self.load(path)?;
        let reference = self.reference.as_mut();
        compare(candidate.as_mut(), reference, &self.inputs, limit)
    }

    /// Times the model at `path` beside the one at `base`, until it is clear whether it pays.
    pub(crate) fn against(
        &mut self,
        path: &Path,
        base: &Path,
    ) -> Result<HostLatency, CompressError> {
        let mut candidate = self.load(path)?;
        let mut base = self.load(base)?;
        compare(candidate.as_mut(), base.as_mut(), &self.inputs, Some(PAYS))
    }

    fn load(&self, path: &Path) -> Result<Box<dyn Session>, CompressError> {
        self.engine.load(path, &single()).map_err(CompressError::engine("loading a candidate"))
    }
}

fn single() -> LoadOptions {
    LoadOptions { batch: Some(1), ..LoadOptions::default() }
}

/// Interleaved rounds, a few at a time, for as long as [`PROBE_TIME`] and the limit ask for.
fn compare(
    candidate: &mut dyn Session,
    base: &mut dyn Session,
    inputs: &[(String, Tensor)],
    limit: Option<f64>,
) -> Result<HostLatency, CompressError> {
    let inputs = borrow(inputs);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let start = Instant::now();
    loop {
        let warmup = if ours.is_empty() { 2 } else { 0 };
        let layout = Rounds { rounds: PROBE_ROUNDS, runs: 1, warmup };
        let mut sessions: [&mut dyn Session; 2] = [&mut *candidate, &mut *base];
        let results = runtime::measure::interleaved(&mut sessions, &inputs, layout)
            .map_err(CompressError::engine("timing a candidate"))?;
        for (all, result) in [&mut ours, &mut theirs].into_iter().zip(results) {
            all.extend(result.round_p50_us);
        }
        let host = HostLatency::of(&ours, &theirs);
        let open = limit.is_some_and(|limit| host.ratio_low <= limit && limit < host.ratio_high);
        let spent = start.elapsed();
        if spent >= PROBE_TIME.1 || (spent >= PROBE_TIME.0 && !open) {
            return Ok(host);
        }
    }
}

fn borrow(inputs: &[(String, Tensor)]) -> Vec<(&str, &Tensor)> {
    inputs.iter().map(|(n, t)| (n.as_str(), t)).collect()
}
