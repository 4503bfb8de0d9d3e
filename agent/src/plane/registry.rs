//! Which instance of which model is active, stands by, or is a candidate.
//!
//! The locks here are held for pointer changes only, never across an await.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use engine::{ElementType, IoSpec};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use wire::Priority;

use super::batch::{self, Joining};
use super::buffers::Buffers;
use super::compare::check_close;
use super::drift::Lens;
use super::instance::{Health, Identity, Instance, JobError, OnHealth, QueueRules, Traffic};
use super::process::{Interface, WorkerError, WorkerProcess, WorkerSpec};
use super::protocol::{LoadRequest, NamedTensors, tensor_from_parts};
use super::shadow::Tally;
use super::window::Stats;
use super::{
    CandidateId, Endpoints, ModelWindow, PlaneConfig, PlaneError, PlaneEvent, ShadowReport,
};

/// The key that limits a worker's memory.
pub(super) const MEMORY_LIMIT: &str = "worker.memory_bytes";
/// The most worker processes at once: active models, those that stand by, and candidates.
const MAX_WORKERS: usize = 32;
/// How long one golden case may take.
const SELF_TEST_LIMIT: Duration = Duration::from_secs(120);
/// How many events a slow subscriber may be behind.
const EVENT_BACKLOG: usize = 64;

#[derive(Debug)]
pub(super) struct Registry {
    cfg: PlaneConfig,
    models: RwLock<BTreeMap<String, Slots>>,
    candidates: Mutex<BTreeMap<CandidateId, Candidate>>,
    /// The counters of every instance that served and whose last window was not taken.
    ledger: Mutex<Vec<Account>>,
    next_id: AtomicU64,
    workers: Arc<Semaphore>,
    pub(super) buffers: Buffers,
    events: broadcast::Sender<PlaneEvent>,
    draining: AtomicBool,
}

#[derive(Debug)]
struct Slots {
    active: Arc<Instance>,
    standby: Option<Arc<Instance>>,
}

#[derive(Debug, Clone)]
struct Candidate {
    instance: Arc<Instance>,
    tally: Tally,
    bundle: bundle::Bundle,
}

#[derive(Debug)]
struct Account {
    id: CandidateId,
    model: String,
    digest: String,
    stats: Arc<Stats>,
    lens: Option<Arc<Lens>>,
}

impl Registry {
    pub(super) fn new(cfg: PlaneConfig) -> Self {
        let buffers = Buffers::new(cfg.max_buffered_bytes);
        Self {
            cfg,
            models: RwLock::default(),
            candidates: Mutex::default(),
            ledger: Mutex::default(),
            next_id: AtomicU64::new(1),
            buffers,
            workers: Arc::new(Semaphore::new(MAX_WORKERS)),
            events: broadcast::channel(EVENT_BACKLOG).0,
            draining: AtomicBool::new(false),
        }
    }

    pub(super) fn config(&self) -> &PlaneConfig {
        &self.cfg
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// The instance that answers requests for a model now.
    pub(super) fn active(&self, name: &str) -> Option<Arc<Instance>> {
        self.models().get(name).map(|slots| slots.active.clone())
    }

    /// Every active instance, by name.
    pub(super) fn all_active(&self) -> Vec<Arc<Instance>> {
        self.models().values().map(|slots| slots.active.clone()).collect()
    }

    pub(super) async fn load(
        self: &Arc<Self>,
        name: &str,
        digest: &str,
        bundle: &bundle::Bundle,
    ) -> Result<CandidateId, PlaneError> {
        if self.is_draining() {
            return Err(PlaneError::Draining);
        }
        let permit = self.room_for_worker()?;
        let spec = self.worker_spec(name, bundle)?;
        let worker = WorkerProcess::start_judged(&spec).await;
        let worker = worker.map_err(|error| start_error(name, &spec, error))?;
        let manifest = &bundle.manifest;
        check_ports("input", &manifest.inputs, &worker.1.inputs)
            .and_then(|()| check_ports("output", &manifest.outputs, &worker.1.outputs))
            .map_err(|reason| PlaneError::Interface { model: name.to_owned(), reason })?;
        let lens = self.lens(name, bundle, &worker.1)?;
        let id = CandidateId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let identity = Identity {
            id,
            model: name.to_owned(),
            digest: digest.to_owned(),
            version: manifest.version.clone(),
            sequence: manifest.sequence,
        };
        let instance = Arc::new(Instance::new(
            identity,
            spec,
            worker,
            lens,
            QueueRules {
                depth: self.cfg.queue_depth,
                batch: self.cfg.batch,
                deadline: self.cfg.request_deadline,
            },
            permit,
            self.on_health(id, name),
        ));
        let candidate = Candidate { instance, tally: Tally::default(), bundle: bundle.clone() };
        self.candidates().insert(id, candidate);
        Ok(id)
    }

    pub(super) async fn self_test(
        &self,
        id: CandidateId,
        test: &bundle::SelfTest,
    ) -> Result<(), PlaneError> {
        let instance = self.candidate(id)?.instance;
        let (rtol, atol) = (f64::from(test.rtol), f64::from(test.atol));
        for (number, case) in test.cases.iter().enumerate() {
            let told = |reason| format!("case {number}: {reason}");
            run_case(&instance, case, rtol, atol).await.map_err(|failed| match failed {
                CaseError::Wrong(reason) => PlaneError::SelfTest(told(reason)),
                CaseError::Unanswered(reason) => PlaneError::Untested(told(reason)),
            })?;
        }
        Ok(())
    }

    pub(super) fn serve(&self, id: CandidateId) -> Result<(), PlaneError> {
        if self.is_draining() {
            return Err(PlaneError::Draining);
        }
        let Candidate { instance, bundle, .. } = self.candidate(id)?;
        let name = instance.identity.model.clone();
        instance.keep_alive();
        if let Some(reason) = instance.down() {
            return Err(PlaneError::WorkerGone { model: name, reason });
        }
        if instance.batcher.joining() == Joining::Unproven {
            // Not before: a worker that ends by it is started again from now on.
            tokio::spawn(prove_joining(instance.clone(), bundle));
        }
        instance.stats.cold();
        self.open_account(&instance);
        let mut models = self.models_mut();
        self.candidates().remove(&id);
        let previous = models.remove(&name);
        let (standby, obsolete) = match previous {
            Some(Slots { active, standby }) => {
                active.mirror.detach();
                (Some(active), standby)
            }
            None => (None, None),
        };
        let slots = Slots { active: instance, standby };
        models.insert(name, slots);
        drop(models);
        retire_later(obsolete);
        Ok(())
    }

    pub(super) fn shadow(&self, id: CandidateId) -> Result<(), PlaneError> {
        let Candidate { instance, tally, .. } = self.candidate(id)?;
        let name = &instance.identity.model;
        let active = self.active(name).ok_or_else(|| PlaneError::NotServing(name.clone()))?;
        let limit = self.run_limit();
        active.mirror.attach(id, instance, tally, limit);
        Ok(())
    }

    pub(super) fn shadow_report(&self, id: CandidateId) -> ShadowReport {
        self.candidate(id).map_or_else(|_| Tally::default().report(), |c| c.tally.report())
    }

    pub(super) fn rollback(&self, name: &str) -> Result<(), PlaneError> {
        let mut models = self.models_mut();
        let slots = models.get_mut(name).ok_or_else(|| PlaneError::NotServing(name.to_owned()))?;
        let no_standby = || PlaneError::NoStandby(name.to_owned());
        if let Some(reason) = slots.standby.as_ref().ok_or_else(no_standby)?.down() {
            return Err(PlaneError::WorkerGone { model: name.to_owned(), reason });
        }
        let standby = slots.standby.take().ok_or_else(no_standby)?;
        standby.stats.cold();
        self.open_account(&standby);
        let replaced = std::mem::replace(&mut slots.active, standby);
        drop(models);
        retire_later(Some(replaced));
        Ok(())
    }

    pub(super) async fn discard(&self, id: CandidateId) {
        let candidate = self.candidates().remove(&id);
        if let Some(Candidate { instance, .. }) = candidate {
            if let Some(active) = self.active(&instance.identity.model) {
                active.mirror.detach_from(id);
            }
            instance.retire().await;
        }
    }

    pub(super) async fn retire_standby(&self, name: &str) {
        let standby = self.models_mut().get_mut(name).and_then(|slots| slots.standby.take());
        if let Some(standby) = standby {
            standby.retire().await;
        }
    }

    pub(super) fn take_window(&self) -> Vec<ModelWindow> {
        if let Some(groups) = &self.cfg.worker_groups {
            groups.tidy();
        }
        let active = self.all_active();
        let active_by = |id: CandidateId| active.iter().find(|own| own.identity.id == id);
        let mut ledger = lock(&self.ledger);
        let windows = ledger
            .iter()
            .map(|account| {
                let mut window = account.stats.take(&account.model, &account.digest);
                window.drift = account.lens.as_ref().map(|lens| lens.take());
                let own = active_by(account.id);
                window.group = own.and_then(|instance| instance.usage());
                (own.is_some(), window)
            })
            .filter(|(active, window)| *active || window.requests + window.rejected > 0)
            .map(|(_, window)| window)
            .collect();
        // Once an instance is dropped nothing can be added to its account.
        ledger.retain(|account| Arc::strong_count(&account.stats) > 1);
        windows
    }

    pub(super) fn serving_pids(&self) -> Vec<(String, u32)> {
        let active = self.all_active().into_iter();
        active.filter_map(|i| Some((i.identity.model.clone(), i.pid()?))).collect()
    }

    pub(super) fn worker_pids(&self) -> Vec<(String, u32)> {
        self.everyone().iter().filter_map(|i| Some((i.identity.model.clone(), i.pid()?))).collect()
    }

    /// The active models that nothing will ever answer for any more.
    pub(super) fn wedged(&self) -> Vec<String> {
        let active = self.all_active();
        active.iter().filter(|i| i.is_wedged()).map(|i| i.identity.model.clone()).collect()
    }

    pub(super) fn events(&self) -> broadcast::Receiver<PlaneEvent> {
        self.events.subscribe()
    }

    pub(super) fn status(&self, endpoints: &Endpoints) -> Value {
        let models: serde_json::Map<String, Value> = self
            .models()
            .iter()
            .map(|(name, slots)| {
                let standby = slots.standby.as_deref().map(describe);
                let entry = json!({ "active": describe(&slots.active), "standby": standby });
                (name.clone(), entry)
            })
            .collect();
        let candidates: Vec<Value> =
            self.candidates().values().map(|c| describe(&c.instance)).collect();
        json!({
            "endpoints": endpoints,
            "draining": self.is_draining(),
            "models": models,
            "candidates": candidates,
        })
    }

    /// From now on nothing is loaded and the plane is not ready.
    pub(super) fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Ends every worker; those still busy at `end` are killed.
    pub(super) async fn drain(&self, end: Instant) {
        let everyone = self.everyone();
        self.candidates().clear();
        self.models_mut().clear();
        let mut ending = JoinSet::new();
        for instance in everyone {
            ending.spawn(async move {
                if timeout_at(end, instance.retire()).await.is_err() {
                    instance.abort();
                }
            });
        }
        while ending.join_next().await.is_some() {}
    }

    /// What the bundle says that requests look like. A reference of a version that is not known here
    /// is no reason to serve nothing.
    fn lens(
        &self,
        name: &str,
        bundle: &bundle::Bundle,
        interface: &Interface,
    ) -> Result<Option<Lens>, PlaneError> {
        let unfit = |reason: String| PlaneError::Interface { model: name.to_owned(), reason };
        match bundle.reference() {
            Ok(Some(reference)) => {
                let lens = Lens::new(reference, interface, self.cfg.drift_sample_every);
                lens.map(Some).map_err(unfit)
            }
            Ok(None) => {
                tracing::debug!(model = name, "no reference.json: drift is not watched");
                Ok(None)
            }
            Err(error @ bundle::BundleError::ReferenceVersion { .. }) => {
                tracing::warn!(model = name, %error, "drift is not watched");
                Ok(None)
            }
            Err(error) => Err(unfit(error.to_string())),
        }
    }

    /// Room for one more worker, until it is dropped.
    pub(super) fn room_for_worker(&self) -> Result<OwnedSemaphorePermit, PlaneError> {
        let room = self.workers.clone().try_acquire_owned();
        room.map_err(|_| PlaneError::TooManyWorkers { limit: MAX_WORKERS })
    }

    pub(super) fn worker_spec(
        &self,
        name: &str,
        bundle: &bundle::Bundle,
    ) -> Result<WorkerSpec, PlaneError> {
        let path = bundle.model_path();
        let model = std::path::absolute(&path).map_err(|error| PlaneError::Unloaded {
            model: name.to_owned(),
            reason: format!("{}: {error}", path.display()),
        })?;
        Ok(WorkerSpec {
            program: self.cfg.worker_program.clone(),
            args: self.cfg.worker_args.clone(),
            memory_bytes: self.cfg.worker_memory_bytes,
            memory_limit: MEMORY_LIMIT,
            priority: Priority::Normal,
            on_trial: false,
            groups: self.cfg.worker_groups.clone(),
            working_dir: self.cfg.run_dir.clone(),
            bundle: (bundle.dir.clone(), bundle.digest),
            load: LoadRequest::new(model, &self.cfg.engine),
            run_limit: self.run_limit(),
        })
    }

    fn run_limit(&self) -> Duration {
        self.cfg.run_limit.max(self.cfg.request_deadline)
    }

    fn on_health(self: &Arc<Self>, id: CandidateId, name: &str) -> OnHealth {
        let registry = Arc::downgrade(self);
        let model = name.to_owned();
        Box::new(move |health| {
            if let Some(registry) = registry.upgrade() {
                registry.tell(id, &model, health);
            }
        })
    }

    fn tell(&self, id: CandidateId, model: &str, health: Health) {
        let model = model.to_owned();
        let is_active = self.active(&model).is_some_and(|active| active.identity.id == id);
        let is_candidate = self.candidates().contains_key(&id);
        let event = match health {
            Health::Died(reason) => {
                tracing::warn!(%model, %reason, "worker died");
                if is_active {
                    PlaneEvent::WorkerDied { model, reason }
                } else if is_candidate {
                    PlaneEvent::CandidateDied { candidate: id, model, reason }
                } else {
                    return;
                }
            }
            Health::RestartFailed(reason) if is_active => {
                tracing::warn!(%model, %reason, "worker cannot be restarted");
                PlaneEvent::RestartFailed { model, reason }
            }
            Health::Restarted if is_active => {
                tracing::info!(%model, "worker restarted");
                PlaneEvent::WorkerRestarted { model }
            }
            Health::Restarted | Health::RestartFailed(_) => return,
        };
        // Without subscribers nobody wants to know.
        let _ = self.events.send(event);
    }

    fn open_account(&self, instance: &Instance) {
        let mut ledger = lock(&self.ledger);
        let id = instance.identity.id;
        if ledger.iter().all(|account| account.id != id) {
            ledger.push(Account {
                id,
                model: instance.identity.model.clone(),
                digest: instance.identity.digest.clone(),
                stats: instance.stats.clone(),
                lens: instance.lens().cloned(),
            });
        }
    }

    fn everyone(&self) -> Vec<Arc<Instance>> {
        let mut all: Vec<Arc<Instance>> = self
            .models()
            .values()
            .flat_map(|slots| [Some(slots.active.clone()), slots.standby.clone()])
            .flatten()
            .collect();
        all.extend(self.candidates().values().map(|c| c.instance.clone()));
        all
    }

    fn candidate(&self, id: CandidateId) -> Result<Candidate, PlaneError> {
        self.candidates().get(&id).cloned().ok_or(PlaneError::UnknownCandidate(id))
    }

    fn models(&self) -> RwLockReadGuard<'_, BTreeMap<String, Slots>> {
        self.models.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn models_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<String, Slots>> {
        self.models.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn candidates(&self) -> MutexGuard<'_, BTreeMap<CandidateId, Candidate>> {
        lock(&self.candidates)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn retire_later(instance: Option<Arc<Instance>>) {
    if let Some(instance) = instance {
        tokio::spawn(async move { instance.retire().await });
    }
}

pub(super) fn start_error(name: &str, spec: &WorkerSpec, error: WorkerError) -> PlaneError {
    match error {
        WorkerError::Spawn(source) => PlaneError::Spawn { program: spec.program.clone(), source },
        WorkerError::Refused(reason) => PlaneError::Load { model: name.to_owned(), reason },
        WorkerError::Unable(reason) | WorkerError::Unloaded(reason) | WorkerError::Died(reason) => {
            PlaneError::Unloaded { model: name.to_owned(), reason }
        }
    }
}

fn describe(instance: &Instance) -> Value {
    let identity = &instance.identity;
    json!({
        "candidate": identity.id.to_string(),
        "model": identity.model,
        "digest": identity.digest,
        "version": identity.version,
        "sequence": identity.sequence,
        "engine": instance.interface.engine_version,
        "pid": instance.pid(),
        "restarts": instance.restarts(),
        "waiting": instance.waiting(),
        "batching": instance.batcher.joining().to_string(),
        "down": instance.down(),
    })
}

/// Why a golden case did not pass.
enum CaseError {
    /// The model gives another answer, or none.
    Wrong(String),
    /// The model was not heard.
    Unanswered(String),
}

/// Runs golden cases joined; a model that answers them as it answers each may have its requests joined.
async fn prove_joining(instance: Arc<Instance>, bundle: bundle::Bundle) {
    let proof = match tokio::task::spawn_blocking(move || bundle.selftest()).await {
        Ok(Ok(test)) => try_joined(&instance, &test).await,
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let model = &instance.identity.model;
    let joining = match proof {
        Ok(()) => Joining::Proven,
        Err(reason) => {
            tracing::warn!(%model, %reason, "requests are not joined");
            Joining::Refused(reason)
        }
    };
    instance.batcher.set(joining);
}

async fn try_joined(instance: &Instance, test: &bundle::SelfTest) -> Result<(), String> {
    let cases = test.cases.iter().map(|case| Ok((tensors(&case.inputs)?, tensors(&case.outputs)?)));
    let cases: Vec<(NamedTensors, NamedTensors)> = cases.collect::<Result<_, String>>()?;
    let (inputs, wanted) = batch::joined_case(&cases)?;
    let answer = instance.submit(Arc::new(inputs), Traffic::Internal, SELF_TEST_LIMIT).await;
    let answer = answer.map_err(|error| format!("golden cases run as one: {error}"))?;
    check_outputs(&wanted, &answer.outputs, f64::from(test.rtol), f64::from(test.atol))
        .map_err(|reason| format!("golden cases run as one give something else: {reason}"))
}

async fn run_case(
    instance: &Instance,
    case: &bundle::Case,
    rtol: f64,
    atol: f64,
) -> Result<(), CaseError> {
    let inputs = Arc::new(tensors(&case.inputs).map_err(CaseError::Wrong)?);
    let answer = instance.submit(inputs, Traffic::Internal, SELF_TEST_LIMIT).await;
    let answer = answer.map_err(|error| match error {
        JobError::Input(_) | JobError::Engine(_) => CaseError::Wrong(error.to_string()),
        _ => CaseError::Unanswered(error.to_string()),
    })?;
    compare_case(case, &answer.outputs, rtol, atol).map_err(CaseError::Wrong)
}

fn compare_case(
    case: &bundle::Case,
    outputs: &NamedTensors,
    rtol: f64,
    atol: f64,
) -> Result<(), String> {
    check_outputs(&tensors(&case.outputs)?, outputs, rtol, atol)
}

fn check_outputs(
    wanted: &NamedTensors,
    outputs: &NamedTensors,
    rtol: f64,
    atol: f64,
) -> Result<(), String> {
    for (name, want) in wanted {
        let found = outputs.iter().find(|(other, _)| other == name);
        let (_, got) = found.ok_or_else(|| format!("output `{name}` is missing"))?;
        check_close(name, want, got, rtol, atol)?;
    }
    Ok(())
}

pub(super) fn tensors(named: &[bundle::NamedTensor]) -> Result<NamedTensors, String> {
    named
        .iter()
        .map(|tensor| {
            let dtype = ElementType::from_oip_name(&tensor.dtype)
                .ok_or_else(|| format!("`{}`: unknown data type {}", tensor.name, tensor.dtype))?;
            let (name, dims) = (&tensor.name, tensor.dims.clone());
            tensor_from_parts(name, dtype, dims, tensor.data.clone()).map(|t| (name.clone(), t))
        })
        .collect()
}

/// The manifest and the engine must agree on names, types and ranks, and on every dimension that
/// both fix.
pub(super) fn check_ports(
    what: &str,
    said: &[bundle::TensorSpec],
    found: &[IoSpec],
) -> Result<(), String> {
    if said.len() != found.len() {
        return Err(format!("{} {what}s, the manifest says {}", found.len(), said.len()));
    }
    for spec in said {
        let port = found
            .iter()
            .find(|port| port.name == spec.name)
            .ok_or_else(|| format!("it has no {what} `{}`", spec.name))?;
        let dims_fit = spec.dims.len() == port.dims.len()
            && spec.dims.iter().zip(&port.dims).all(|(&said, found)| {
                said < 0 || found.is_none_or(|found| i64::try_from(found) == Ok(said))
            });
        if port.dtype.oip_name() != spec.dtype || !dims_fit {
            return Err(format!(
                "{what} `{}` is {} {:?}, the manifest says {} {:?}",
                spec.name, port.dtype, port.dims, spec.dtype, spec.dims
            ));
        }
    }
    Ok(())
}
