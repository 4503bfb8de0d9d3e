//! One loaded model: its worker process, its bounded queue, and the task that drives both.
//!
//! ```text
//!   start ──► up ──worker dies──► down ──backoff──► up …
//!              │                    │
//!              └──────retire────────┴──► ended        (a candidate goes from down to ended)
//! ```
//! The task owns the worker. While the instance is up it takes one job at a time, what waits for a quick model
//! ([`queue`]), or what may be joined ([`batch`]); while it is down every job is answered at once with the reason;
//! once retired it finishes what was queued first.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout_at};

use super::CandidateId;
use super::batch::{self, BatchRules, Batcher};
use super::drift::Lens;
use super::groups::WorkerGroup;
use super::process::{Interface, RunOutcome, WorkerError, WorkerProcess, WorkerSpec};
use super::protocol::{FailureKind, NamedTensors};
use super::shadow::Mirror;
use super::window::Stats;
use crate::sys::cgroup::Usage;
use queue::Queue;

mod queue;

/// The first wait before a dead worker is started again; it doubles with each death.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// The longest such wait.
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// A worker that lived this long starts the waits anew.
const STABLE_AFTER: Duration = Duration::from_secs(60);

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum JobError {
    /// The request does not fit the model.
    #[error("{0}")]
    Input(String),
    /// The engine failed on it.
    #[error("inference failed: {0}")]
    Engine(String),
    /// The worker died while it held the request.
    #[error("the model's worker {0}; it is being restarted")]
    WorkerDied(String),
    /// The worker is down.
    #[error("the model's worker is not running ({0}); it is being restarted")]
    Down(String),
    /// As many requests wait as may.
    #[error("the queue is full: {0} requests wait for this model")]
    QueueFull(usize),
    /// The deadline passed first.
    #[error("no answer within the deadline of {0} ms")]
    Deadline(u128),
    /// The instance takes no more requests; another one does.
    #[error("the model was replaced")]
    Retired,
}

/// What a request was answered with.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) outputs: Arc<NamedTensors>,
    /// Time in the engine.
    pub(super) compute: Duration,
    /// Time in the queue.
    pub(super) queued: Duration,
}

/// Whether a request is a client's, and so counts in the windows and is mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Traffic {
    Live,
    Internal,
}

/// What an instance tells of its worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Health {
    Died(String),
    RestartFailed(String),
    Restarted,
}

/// What is served under one digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) id: CandidateId,
    pub(super) model: String,
    pub(super) digest: String,
    pub(super) version: String,
    pub(super) sequence: u64,
}

#[derive(Debug)]
pub(super) struct Instance {
    pub(super) identity: Identity,
    pub(super) interface: Interface,
    pub(super) stats: Arc<Stats>,
    pub(super) mirror: Mirror,
    /// Whether its requests may be joined.
    pub(super) batcher: Arc<Batcher>,
    /// What requests are to look like, where the bundle says so.
    lens: Option<Arc<Lens>>,
    shared: Arc<Shared>,
    queue: mpsc::Sender<Job>,
    queue_depth: usize,
    /// How long a request may take whatever its client says.
    deadline: Duration,
    retire: watch::Sender<bool>,
    driver: Mutex<Option<JoinHandle<()>>>,
    killer: AbortHandle,
    /// Counts against the limit of worker processes.
    _permit: OwnedSemaphorePermit,
}

/// What the driver and the handles both see.
#[derive(Debug)]
struct Shared {
    /// 0 while no worker is running.
    pid: AtomicU32,
    restarts: AtomicU64,
    /// The worker's control group, while it has one of its own.
    group: Mutex<Option<Arc<WorkerGroup>>>,
    /// How often the kernel killed a worker in such a group for want of memory.
    oom_kills: AtomicU64,
    /// A candidate is not restarted: that it died is what was to be found out.
    restart: AtomicBool,
    /// Why the worker is down; `None` while it is up.
    down: Mutex<Option<String>>,
}

#[derive(Debug)]
struct Job {
    inputs: Arc<NamedTensors>,
    traffic: Traffic,
    arrived: Instant,
    deadline: Instant,
    reply: oneshot::Sender<Result<Answer, JobError>>,
}

impl Job {
    /// Whether nobody waits for it any more: the client has had its 504, or has gone.
    fn is_stale(&self) -> bool {
        self.is_stale_at(Instant::now())
    }

    fn is_stale_at(&self, now: Instant) -> bool {
        self.deadline <= now || self.reply.is_closed()
    }
}

/// How requests wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueueRules {
    /// How many may.
    pub(super) depth: usize,
    /// Which of them run together.
    pub(super) batch: BatchRules,
    /// How long each may take.
    pub(super) deadline: Duration,
}

pub(super) type OnHealth = Box<dyn Fn(Health) + Send + Sync>;

impl Instance {
    /// Takes over a loaded worker.
    pub(super) fn new(
        identity: Identity,
        spec: WorkerSpec,
        (process, interface): (WorkerProcess, Interface),
        lens: Option<Lens>,
        queue: QueueRules,
        permit: OwnedSemaphorePermit,
        on_health: OnHealth,
    ) -> Self {
        let (queue_depth, deadline) = (queue.depth.max(1), queue.deadline);
        let batcher = Arc::new(Batcher::new(queue.batch, &interface));
        let (queue, jobs) = mpsc::channel(queue_depth);
        let (retire, retired) = watch::channel(false);
        let shared = Arc::new(Shared {
            pid: AtomicU32::new(process.pid().unwrap_or(0)),
            restarts: AtomicU64::new(0),
            group: Mutex::new(None),
            oom_kills: AtomicU64::new(0),
            restart: AtomicBool::new(false),
            down: Mutex::new(None),
        });
        let stats = Arc::new(Stats::default());
        let mirror = Mirror::default();
        let lens = lens.map(Arc::new);
        let mut looking = JoinSet::new();
        if let Some(lens) = lens.clone() {
            looking.spawn(async move { lens.keep_up().await });
        }
        let driver = Driver {
            spec,
            interface: interface.clone(),
            shared: shared.clone(),
            stats: stats.clone(),
            mirror: mirror.clone(),
            lens: lens.clone(),
            batcher: batcher.clone(),
            jobs: Queue::new(jobs),
            retired,
            on_health,
            _looking: looking,
        };
        let driver = tokio::spawn(driver.run(process));
        Self {
            identity,
            interface,
            stats,
            mirror,
            batcher,
            lens,
            shared,
            queue,
            queue_depth,
            deadline,
            retire,
            killer: driver.abort_handle(),
            driver: Mutex::new(Some(driver)),
            _permit: permit,
        }
    }

    /// Asks the model, and waits for its answer until `limit` has passed.
    pub(super) async fn submit(
        &self,
        inputs: Arc<NamedTensors>,
        traffic: Traffic,
        limit: Duration,
    ) -> Result<Answer, JobError> {
        let result = self.ask(inputs, traffic, limit).await;
        if traffic == Traffic::Live {
            match &result {
                Err(JobError::Retired) => {}
                Ok(_) | Err(JobError::Input(_)) => self.stats.answered(),
                Err(JobError::QueueFull(_)) => self.stats.rejected(),
                // One that the client set; the server's own is long enough for any model that is well.
                Err(JobError::Deadline(_)) if limit < self.deadline => self.stats.late(),
                Err(_) => self.stats.failed(),
            }
        }
        result
    }

    /// Where its requests are held against its reference, if it has one.
    pub(super) fn lens(&self) -> Option<&Arc<Lens>> {
        self.lens.as_ref()
    }

    /// The worker's process, while there is one.
    pub(super) fn pid(&self) -> Option<u32> {
        Some(self.shared.pid.load(Ordering::Relaxed)).filter(|&pid| pid != 0)
    }

    /// Whether the task that drives the worker has ended without being asked to: nothing would answer any more.
    pub(super) fn is_wedged(&self) -> bool {
        !*self.retire.borrow() && self.killer.is_finished()
    }

    /// How often the worker was started again.
    pub(super) fn restarts(&self) -> u64 {
        self.shared.restarts.load(Ordering::Relaxed)
    }

    /// Where its workers have control groups of their own: the memory of the one that runs, and how many
    /// the kernel killed for want of it.
    pub(super) fn usage(&self) -> Option<Usage> {
        let current = self.shared.group().as_ref().map(|group| group.usage());
        let before = self.shared.oom_kills.load(Ordering::Relaxed);
        let usage = current.or((before > 0).then(Usage::default))?;
        Some(Usage { oom_kills: Some(before), ..usage })
    }

    /// How many requests wait.
    pub(super) fn waiting(&self) -> usize {
        self.queue_depth.saturating_sub(self.queue.capacity())
    }

    /// Why the worker is down; `None` while it is up.
    pub(super) fn down(&self) -> Option<String> {
        self.shared.reason()
    }

    /// From now on a worker that dies is started again.
    pub(super) fn keep_alive(&self) {
        self.shared.restart.store(true, Ordering::Relaxed);
    }

    /// Takes no more requests, finishes those that wait, ends the worker, and returns when it has
    /// ended.
    pub(super) async fn retire(&self) {
        self.mirror.detach();
        self.retire.send_replace(true);
        let driver = self.driver.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(driver) = driver
            && let Err(error) = driver.await
        {
            tracing::error!(model = %self.identity.model, %error, "the driver of a worker failed");
        }
    }

    /// Ends at once, killing the worker. For after a [`Self::retire`] that takes too long.
    pub(super) fn abort(&self) {
        self.killer.abort();
    }

    async fn ask(
        &self,
        inputs: Arc<NamedTensors>,
        traffic: Traffic,
        limit: Duration,
    ) -> Result<Answer, JobError> {
        let arrived = Instant::now();
        let deadline = arrived + limit;
        let (reply, answer) = oneshot::channel();
        let job = Job { inputs, traffic, arrived, deadline, reply };
        self.queue.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => JobError::QueueFull(self.queue_depth),
            mpsc::error::TrySendError::Closed(_) => self.closed(),
        })?;
        match timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            // It was left out because nobody would have waited for it any more.
            Ok(Err(_)) if deadline <= Instant::now() => Err(JobError::Deadline(limit.as_millis())),
            Ok(Err(_)) => Err(self.closed()),
            Err(_) => Err(JobError::Deadline(limit.as_millis())),
        }
    }

    fn closed(&self) -> JobError {
        match self.down() {
            Some(reason) if !*self.retire.borrow() => JobError::Down(reason),
            _ => JobError::Retired,
        }
    }
}

impl Shared {
    fn reason(&self) -> Option<String> {
        self.down.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn group(&self) -> MutexGuard<'_, Option<Arc<WorkerGroup>>> {
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker runs.
    fn enter(&self, worker: &WorkerProcess) {
        self.pid.store(worker.pid().unwrap_or(0), Ordering::Relaxed);
        *self.group() = worker.group();
        self.set_down(None);
    }

    /// It runs no more.
    fn leave(&self) {
        self.pid.store(0, Ordering::Relaxed);
        if let Some(group) = self.group().take() {
            // The kernel may count a process twice: as its choice, and as one of the group.
            let killed = group.usage().oom_kills.is_some_and(|kills| kills > 0);
            self.oom_kills.fetch_add(killed.into(), Ordering::Relaxed);
        }
    }

    fn set_down(&self, reason: Option<String>) {
        *self.down.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }
}

struct Driver {
    spec: WorkerSpec,
    interface: Interface,
    shared: Arc<Shared>,
    stats: Arc<Stats>,
    mirror: Mirror,
    lens: Option<Arc<Lens>>,
    batcher: Arc<Batcher>,
    jobs: Queue,
    retired: watch::Receiver<bool>,
    on_health: OnHealth,
    /// Looks at what is handed to the lens, for as long as there is a driver.
    _looking: JoinSet<()>,
}

enum End {
    Retired,
    Died(String),
}

impl Driver {
    async fn run(mut self, process: WorkerProcess) {
        let mut process = Some(process);
        let mut deaths = 0_u32;
        while let Some(worker) = process.take() {
            let started = Instant::now();
            self.shared.enter(&worker);
            self.stats.cold();
            if self.shared.restarts.load(Ordering::Relaxed) > 0 {
                (self.on_health)(Health::Restarted);
            }
            let end = self.serve(worker).await;
            self.shared.leave();
            let End::Died(reason) = end else { break };
            self.shared.set_down(Some(reason.clone()));
            (self.on_health)(Health::Died(reason));
            if started.elapsed() > STABLE_AFTER {
                deaths = 0;
            }
            process = self.revive(&mut deaths).await;
        }
        self.close().await;
    }

    /// Serves until the instance is retired or the worker dies.
    async fn serve(&mut self, mut worker: WorkerProcess) -> End {
        loop {
            let job = tokio::select! {
                biased;
                () = until(&mut self.retired) => {
                    let end = self.finish(&mut worker).await;
                    worker.end().await;
                    return end;
                }
                reason = worker.exited() => return End::Died(reason),
                job = self.jobs.next() => job,
            };
            let Some(job) = job else {
                worker.end().await;
                return End::Retired;
            };
            if let Some(reason) = self.work(&mut worker, job).await {
                return End::Died(reason);
            }
        }
    }

    /// Answers what was queued before the instance was retired.
    async fn finish(&mut self, worker: &mut WorkerProcess) -> End {
        self.jobs.close();
        while let Some(job) = self.jobs.next().await {
            if let Some(reason) = self.work(worker, job).await {
                self.shared.set_down(Some(reason));
                break;
            }
        }
        End::Retired
    }

    /// Runs a job, and those that go with it; the result says how the worker ended, if it did.
    async fn work(&mut self, worker: &mut WorkerProcess, first: Job) -> Option<String> {
        let rules = self.batcher.active();
        match rules.filter(|_| first.traffic == Traffic::Live && !self.mirror.is_attached()) {
            None => {
                let jobs = self.jobs.together(first);
                self.run_apart(worker, jobs).await
            }
            Some(rules) => {
                let jobs = self.jobs.gather(first, rules).await;
                self.run_joined(worker, jobs).await
            }
        }
    }

    /// Sends jobs to the worker together, and answers one after the other.
    async fn run_apart(&mut self, worker: &mut WorkerProcess, jobs: Vec<Job>) -> Option<String> {
        let inputs: Vec<_> = jobs.iter().map(|job| job.inputs.clone()).collect();
        let mut started = Instant::now();
        let (runs, mut died) = match worker.send(&inputs).await {
            Ok(runs) => (runs, None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        let mut runs = runs.into_iter();
        for job in jobs {
            let result = match (runs.next(), died.clone()) {
                (Some(Ok(run)), None) => match worker.answer(run).await {
                    Ok(outcome) => self.outcome(&job, started, outcome),
                    Err(error) => Err(JobError::WorkerDied(died.insert(error.to_string()).clone())),
                },
                (Some(Err(error)), None) => Err(JobError::Input(error)),
                (_, reason) => Err(JobError::WorkerDied(reason.unwrap_or_default())),
            };
            if result.is_ok() && job.traffic == Traffic::Live {
                self.stats.executed();
            }
            // The client may have gone meanwhile.
            let _ = job.reply.send(result);
            // The worker has taken up the next one.
            started = Instant::now();
        }
        died
    }

    /// Runs jobs as one.
    async fn run_joined(&mut self, worker: &mut WorkerProcess, jobs: Vec<Job>) -> Option<String> {
        if jobs.len() < 2 {
            return self.run_apart(worker, jobs).await;
        }
        let started = Instant::now();
        let requests: Vec<&NamedTensors> = jobs.iter().map(|job| &*job.inputs).collect();
        let counts: Vec<usize> =
            requests.iter().filter_map(|request| batch::rows(request)).collect();
        let joined = Arc::new(batch::join(&requests));
        match worker.run(joined).await {
            Ok(RunOutcome::Done { compute, outputs }) => match batch::split(outputs, &counts) {
                Ok(parts) => {
                    self.share_out(started, compute, jobs, parts);
                    None
                }
                Err(reason) => {
                    tracing::warn!(%reason, "requests are not joined any more");
                    self.batcher.set(batch::Joining::Refused(reason));
                    self.run_each(worker, jobs).await
                }
            },
            // One of them is at fault, and the others are not to pay for it.
            Ok(RunOutcome::Failed { .. }) => self.run_each(worker, jobs).await,
            Err(error) => {
                let reason = error.to_string();
                self.batcher.a_worker_died(&reason);
                for job in jobs {
                    // The client may have gone meanwhile.
                    let _ = job.reply.send(Err(JobError::WorkerDied(reason.clone())));
                }
                Some(reason)
            }
        }
    }

    /// Answers the jobs of one run. Each has waited for the whole of it, so each took as long.
    fn share_out(
        &mut self,
        started: Instant,
        compute: Duration,
        jobs: Vec<Job>,
        parts: Vec<NamedTensors>,
    ) {
        self.stats.executed();
        for (job, outputs) in jobs.into_iter().zip(parts) {
            let result = self.outcome(&job, started, RunOutcome::Done { compute, outputs });
            // The client may have gone meanwhile.
            let _ = job.reply.send(result);
        }
    }

    /// Runs each job by itself, until the worker dies.
    async fn run_each(&mut self, worker: &mut WorkerProcess, jobs: Vec<Job>) -> Option<String> {
        let mut died: Option<String> = None;
        for job in jobs {
            match &died {
                Some(reason) => {
                    // The client may have gone meanwhile.
                    let _ = job.reply.send(Err(JobError::Down(reason.clone())));
                }
                None if job.is_stale() => {}
                None => died = self.run_apart(worker, vec![job]).await,
            }
        }
        died
    }

    /// What a job comes to whose worker survived it.
    fn outcome(
        &mut self,
        job: &Job,
        started: Instant,
        outcome: RunOutcome,
    ) -> Result<Answer, JobError> {
        let (compute, outputs) = match outcome {
            RunOutcome::Done { compute, outputs } => (compute, outputs),
            RunOutcome::Failed { kind: FailureKind::Input, error } => {
                return Err(JobError::Input(error));
            }
            RunOutcome::Failed { error, .. } => return Err(JobError::Engine(error)),
        };
        self.jobs.took(compute);
        let queued = started.duration_since(job.arrived);
        let answer = Answer { outputs: Arc::new(outputs), compute, queued };
        if job.traffic == Traffic::Live {
            self.stats.computed(compute, queued);
            self.mirror.offer(&job.inputs, &answer);
            if let Some(lens) = &self.lens {
                // Before the answer, so that whoever has it finds it counted.
                lens.hand_over(&job.inputs, &answer.outputs, started);
            }
        }
        Ok(answer)
    }

    /// Starts the worker again, after a wait that grows with each death. `None` when it is not to
    /// be started again.
    async fn revive(&mut self, deaths: &mut u32) -> Option<WorkerProcess> {
        loop {
            if !self.shared.restart.load(Ordering::Relaxed) {
                return None;
            }
            let wait = backoff(*deaths);
            *deaths = deaths.saturating_add(1);
            let spec = self.spec.clone();
            let start = async {
                sleep(wait).await;
                spec.verify().await?;
                WorkerProcess::start(&spec).await
            };
            let reason = match self.meanwhile(start).await? {
                Ok((worker, interface)) if interface == self.interface => {
                    self.shared.restarts.fetch_add(1, Ordering::Relaxed);
                    return Some(worker);
                }
                Ok(_) => "the model's inputs or outputs changed on disk".to_owned(),
                Err(error) => error.to_string(),
            };
            self.shared.set_down(Some(reason.clone()));
            (self.on_health)(Health::RestartFailed(reason));
        }
    }

    /// Waits for `start`, answering every job meanwhile. `None` when retired first.
    async fn meanwhile(
        &mut self,
        start: impl Future<Output = Result<(WorkerProcess, Interface), WorkerError>>,
    ) -> Option<Result<(WorkerProcess, Interface), WorkerError>> {
        tokio::pin!(start);
        loop {
            tokio::select! {
                biased;
                () = until(&mut self.retired) => return None,
                started = &mut start => return Some(started),
                job = self.jobs.next() => {
                    let reason = self.shared.reason().unwrap_or_default();
                    // The client may have gone meanwhile.
                    let _ = job?.reply.send(Err(JobError::Down(reason)));
                }
            }
        }
    }

    /// Answers what is left: by its successor when retired, as down otherwise.
    async fn close(&mut self) {
        self.jobs.close();
        let retired = *self.retired.borrow();
        while let Some(job) = self.jobs.next().await {
            let error = match self.shared.reason() {
                Some(reason) if !retired => JobError::Down(reason),
                _ => JobError::Retired,
            };
            // The client may have gone meanwhile.
            let _ = job.reply.send(Err(error));
        }
    }
}

/// Returns when the flag is set, or when nobody can set it any more.
pub(super) async fn until(flag: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which ends the wait as well.
    let _ = flag.wait_for(|set| *set).await;
}

/// `FIRST_BACKOFF` doubled per death, at most `MAX_BACKOFF`, jittered down by up to a quarter so
/// that several workers killed at once do not load their models at once.
fn backoff(deaths: u32) -> Duration {
    let full = FIRST_BACKOFF.saturating_mul(1 << deaths.min(16)).min(MAX_BACKOFF);
    // Every hasher of the standard library is seeded at random, which is random enough here.
    let share = RandomState::new().build_hasher().finish() % 256;
    full.mul_f64(1.0 - 0.25 * f64::from(u8::try_from(share).unwrap_or(0)) / 256.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_before_a_restart_grows_and_is_capped() {
        for deaths in 0..40 {
            let full = (FIRST_BACKOFF * 2_u32.pow(deaths.min(16))).min(MAX_BACKOFF);
            let wait = backoff(deaths);
            assert!(wait <= full && wait >= full.mul_f64(0.74), "{deaths}: {wait:?}");
        }
        assert!(backoff(u32::MAX) <= MAX_BACKOFF);
    }
}
