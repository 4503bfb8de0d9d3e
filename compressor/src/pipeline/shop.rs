//! What every stage works with: the source model, the engine, the samples, a folder for candidates, and
//! the bench on which candidates are timed beside the reference.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use graph::{Choice, GroupId, Grouping, Model, PrunePlan, Shapes};
use runtime::measure::{LatencyStats, Rounds};
use runtime::{Engine, IoSpec, LoadOptions, Session, Tensor};

use super::finish::ModelFile;
use super::hunt::PAYS;
use super::{CompressJob, DeviceBaseline, Progress, analysis};
use crate::calibrate::{Runner, WorkDir};
use crate::data::{DataError, Dataset, Problem};
use crate::error::CompressError;
use crate::latency::HostLatency;
use crate::memory::Serving;
use crate::plan::{GroupChoice, alignment};
use crate::refit;

/// Time that a comparison of a candidate with the reference takes: at least, and at most where the limit lies
/// inside its interval.
const PROBE_TIME: (Duration, Duration) = (Duration::from_millis(700), Duration::from_secs(4));
/// Rounds between two looks at the clock.
const PROBE_ROUNDS: usize = 8;

/// Without held-out data of its own, every so many samples of the calibration data are kept apart.
pub(crate) const HOLD_OUT_EVERY: usize = 4;
/// The fewest samples that a verdict is taken from: on fewer, any floor is met or missed by chance.
pub(crate) const MIN_HELDOUT: usize = 8;

/// Which samples are fitted and which judge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parting {
    /// As the files say; two files with the same bytes count as one, of which some samples are kept apart.
    Judged,
    /// Both files whole, whether or not they are the same: nothing is judged that was fitted.
    Whole,
    /// The calibration file alone, less every so many samples.
    Fitted(Option<usize>),
}

/// The source model and what was found in it.
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) digest: bundle::Digest,
    /// Of the file, and of the tensors that lie in other files.
    pub(crate) size_bytes: u64,
    /// Whether tensors lie in other files.
    external: bool,
    /// Elements of the file's constants, those of branches that are never taken included.
    pub(crate) file_params: u64,
    /// The file's model with decided branches and moved constants put in place, and without what nothing reads. Ids
    /// of a plan are those of this one, which is the same whenever the same file is read.
    pub(crate) model: Model,
    pub(crate) shapes: Shapes,
    pub(crate) grouping: Grouping,
}

impl Source {
    /// Reads and checks the model at `path`, and finds its groups.
    pub(crate) fn load(path: &Path) -> Result<Self, CompressError> {
        let wrong = |what: String| CompressError::Model { path: path.to_path_buf(), what };
        let mut model = Model::load(path).map_err(|e| wrong(e.to_string()))?;
        model.verify().map_err(|violations| {
            let all: Vec<String> = violations.iter().map(ToString::to_string).collect();
            wrong(format!("is not valid: {}", all.join("; ")))
        })?;
        let digest = bundle::Digest::of_file(path).map_err(|e| wrong(e.to_string()))?;
        let (file, constants) = (file_size(path)?, constant_bytes(&model));
        let external = file < constants;
        let size_bytes = if external { file + constants } else { file };
        let file_params = graph::cost::params(&model);
        graph::Driver::default()
            .run(
                &mut model,
                &[&graph::InlineIf, &graph::OwnConstants, &graph::FoldMoves, &graph::DeadCode],
            )
            .map_err(|e| wrong(e.to_string()))?;
        let shapes = graph::infer(&model);
        let grouping = graph::find(&model, &shapes);
        let path = path.to_path_buf();
        Ok(Self { path, digest, size_bytes, external, file_params, model, shapes, grouping })
    }

    /// Whether tensors lie in other files.
    pub(crate) fn is_external(&self) -> bool {
        self.external
    }

    /// The model as a file that can be bundled: the very file, or, where its tensors lie in other files, a copy in
    /// `work` with at most one of these.
    pub(crate) fn file(&self, work: &WorkDir) -> Result<ModelFile, CompressError> {
        if !self.external {
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
        let locks = analysis::locks(self).into_iter();
        let locks = locks.map(|l| format!("{}, locked by {}: {}", l.dim, l.locker(), l.why));
        locks.chain(analysis::not_understood(self)).collect()
    }
}

/// Bytes of the main graph's constants.
pub(crate) fn constant_bytes(model: &Model) -> u64 {
    let constants = model.graph.values().filter_map(|(_, v)| v.data.as_ref());
    constants.map(|tensor| tensor.byte_size() as u64).sum()
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
    /// Every how-manieth sample of the calibration file is not in `calibration`.
    pub(crate) hold_out_every: Option<usize>,
    /// What the device measured, where it did, no better than the budget it reports as broken.
    pub(crate) baseline: Option<DeviceBaseline>,
    /// The same of its memory.
    pub(crate) serving: Option<Serving>,
    pub(crate) specs: (Vec<IoSpec>, Vec<IoSpec>),
    pub(crate) work: WorkDir,
}

impl<'a> Shop<'a> {
    /// Opens the engine, reads the model and both data sets. One set of data for both is split.
    pub(crate) fn open(
        job: &'a CompressJob,
        progress: &'a dyn Progress,
    ) -> Result<Self, CompressError> {
        Self::open_with(job, progress, Parting::Judged)
    }

    /// As [`Self::open`], for work that does not judge what it fitted: one file serves whole for both.
    pub(crate) fn open_whole(
        job: &'a CompressJob,
        progress: &'a dyn Progress,
    ) -> Result<Self, CompressError> {
        Self::open_with(job, progress, Parting::Whole)
    }

    /// As [`Self::open`], for work that only fits, to the samples that another job fitted to.
    pub(crate) fn open_fitted(
        job: &'a CompressJob,
        progress: &'a dyn Progress,
        hold_out_every: Option<usize>,
    ) -> Result<Self, CompressError> {
        Self::open_with(job, progress, Parting::Fitted(hold_out_every))
    }

    fn open_with(
        job: &'a CompressJob,
        progress: &'a dyn Progress,
        parting: Parting,
    ) -> Result<Self, CompressError> {
        progress.stage("reading the model and the data", 0);
        let source = Source::load(&job.source)?;
        let runner = Runner::open(&job.engine)?;
        let specs = specs(&runner, &job.source)?;
        let (calibration, heldout, hold_out_every) = samples(job, &specs.0, parting)?;
        let current = match (&job.baseline, &job.current_model) {
            (Some(_), Some(current)) => file_size(current)?,
            _ => source.size_bytes,
        };
        let baseline = job.baseline.map(|b| b.at_least_the_breach(&job.goal));
        let serving = job.baseline.and_then(|b| b.serving(&job.goal, job.engine.kind, current));
        Ok(Self {
            calibration,
            heldout,
            hold_out_every,
            baseline,
            serving,
            work: WorkDir::new(job.work_dir.as_deref())?,
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

/// The samples to fit, those to judge by, and how they were parted if they come from one file.
fn samples(
    job: &CompressJob,
    specs: &[IoSpec],
    parting: Parting,
) -> Result<(Dataset, Dataset, Option<usize>), CompressError> {
    let calibration = Dataset::load(&job.calibration, specs)?;
    match parting {
        Parting::Whole if job.heldout != job.calibration => {
            Ok((calibration, Dataset::load(&job.heldout, specs)?, None))
        }
        Parting::Whole | Parting::Fitted(None) => Ok((calibration.clone(), calibration, None)),
        Parting::Fitted(Some(every)) => {
            let (calibration, heldout) = calibration.hold_out(every)?;
            Ok((calibration, heldout, Some(every)))
        }
        Parting::Judged => {
            if job.heldout != job.calibration {
                let heldout = Dataset::load(&job.heldout, specs)?;
                if heldout.digest() != calibration.digest() {
                    enough(&heldout, MIN_HELDOUT)?;
                    return Ok((calibration, heldout, None));
                }
            }
            enough(&calibration, MIN_HELDOUT * HOLD_OUT_EVERY)?;
            let (calibration, heldout) = calibration.hold_out(HOLD_OUT_EVERY)?;
            Ok((calibration, heldout, Some(HOLD_OUT_EVERY)))
        }
    }
}

fn enough(data: &Dataset, wanted: usize) -> Result<(), DataError> {
    if data.len() >= wanted {
        return Ok(());
    }
    let problem = Problem::TooFewToJudge { samples: data.len(), wanted };
    Err(DataError { file: data.file().to_path_buf(), problem })
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
