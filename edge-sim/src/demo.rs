//! The demonstration: a device that misses its latency budget asks for a smaller model, gets one,
//! checks it, and meets the budget. Six steps, each of which either holds or says why not.
//!
//! The loop counts as closed only if the new model was committed, no request failed, the budget is
//! met in the windows after the commit, and everything that was to go wrong did go wrong.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde_json::Value;
use wire::{
    BudgetBreach, InferWindow, InstallEvent, InstallOutcome, ModelPhase, Offer, RecompressRequest,
};

use crate::client::{ClientStats, LoadClient};
use crate::live::{Stack, StackError, StackOptions};
use crate::watcher::{Message, Record};

pub use self::display::{Display, Silent, for_terminal};
pub use self::faults::{Act, Fault, Point};
pub use self::summary::{Measured, Summary};

mod display;
mod faults;
mod summary;

/// The budget, as a share of the p95 measured before, when none is given.
pub const DEFAULT_BUDGET_SHARE: f64 = 0.8;
/// How long the whole run may take when nothing else is said.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(170);
/// How much longer it may take for each time that the device asks again.
const MORE_TIME: Duration = Duration::from_secs(120);
/// Models that are offered at most: what else the host does can make one miss its budget that was measured before.
const MOST_ROUNDS: u32 = 3;
/// Successive windows within the budget after the commit that show that it is met.
const WINDOWS_AFTER: usize = 4;
/// Windows after the commit by which that has to have happened: what else the host does for a while shows in the
/// percentiles of the emulated board as well.
const MOST_WINDOWS_AFTER: usize = 24;
/// Windows measured before the budget is set; the first after a switch does not count.
const WINDOWS_BEFORE: usize = 3;

/// Answers in a phase before it may end, so that there is something to compare.
const MIN_ANSWERS: usize = 10;

/// The phases of the client's requests.
const BEFORE: &str = "before";
const WAITING: &str = "waiting";
const INSTALLING: &str = "installing";
const AFTER: &str = "after";

/// What to demonstrate.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Boards, programs, data.
    pub stack: StackOptions,
    /// The p95 budget; [`DEFAULT_BUDGET_SHARE`] of what is measured when absent.
    pub budget_p95_us: Option<u64>,
    /// How long the whole run may take.
    pub timeout: Duration,
    /// What goes wrong on the way.
    pub faults: Vec<Fault>,
    /// Whether the emulated percentiles have to be within the budget after the commit. Tests say no: a busy host
    /// shows in them.
    pub judge_speed: bool,
}

/// A step of the demonstration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Model and data are there.
    Assets,
    /// Everything runs and the original model serves.
    Deploy,
    /// The device notices that it misses its budget.
    Notice,
    /// The compressor answers with an offer.
    Answer,
    /// The device installs the offered model.
    Install,
    /// The budget is met.
    Judge,
}

impl Step {
    /// Position and name.
    #[must_use]
    pub fn title(self) -> (u8, &'static str) {
        match self {
            Self::Assets => (1, "Assets"),
            Self::Deploy => (2, "Deploy the original model"),
            Self::Notice => (3, "The device notices"),
            Self::Answer => (4, "The compressor answers"),
            Self::Install => (5, "The device installs"),
            Self::Judge => (6, "The budget is met"),
        }
    }
}

/// Which step failed, and why.
#[derive(Debug, thiserror::Error)]
#[error("step {} of 6 failed ({}): {why}", step.title().0, step.title().1)]
pub struct DemoError {
    /// The step.
    pub step: Step,
    /// What happened.
    pub why: Failure,
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A part did not do its part.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// Everything ran and the result is not what was to be shown.
    #[error("{0}")]
    Result(String),
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::Result(why)
    }
}

/// Runs the demonstration. `cancel` ends it early.
///
/// # Errors
/// The step that failed, and why.
pub fn run(
    options: DemoOptions,
    display: &mut dyn Display,
    cancel: Arc<AtomicBool>,
) -> Result<Summary, DemoError> {
    let started = Instant::now();
    let at = |step: Step| move |why: Failure| DemoError { step, why };
    display.begin(Step::Assets);
    check_assets(&options, display).map_err(at(Step::Assets))?;

    display.begin(Step::Deploy);
    let mut driver = Driver::start(options, started, cancel).map_err(at(Step::Deploy))?;
    let deployed = driver.deploy(display).map_err(at(Step::Deploy))?;

    display.begin(Step::Notice);
    let mut noticed = driver.notice(&deployed, display).map_err(at(Step::Notice))?;

    loop {
        display.begin(Step::Answer);
        let offer = driver.answer(&noticed, display).map_err(at(Step::Answer))?;

        display.begin(Step::Install);
        deployed.client.set_phase(INSTALLING);
        let installed = driver.install(&offer, display).map_err(at(Step::Install))?;

        display.begin(Step::Judge);
        deployed.client.set_phase(AFTER);
        match driver.settle(&noticed, &offer, &installed, display).map_err(at(Step::Judge))? {
            Settled::Windows(windows) => {
                let done = Done { deployed, noticed, offer, installed, windows };
                return driver.judge(done, display).map_err(at(Step::Judge));
            }
            Settled::Again(request) => driver.again(&mut noticed, *request, display),
        }
    }
}

fn check_assets(options: &DemoOptions, display: &mut dyn Display) -> Result<(), Failure> {
    let stack = &options.stack;
    stack.binaries.check()?;
    stack.assets.check()?;
    let samples = |path: &Path| -> Result<usize, StackError> {
        let arrays = crate::npz::read(path)?;
        Ok(arrays.iter().map(crate::npz::Array::samples).min().unwrap_or(0))
    };
    let (calibration, heldout) =
        (samples(&stack.assets.calibration)?, samples(&stack.assets.heldout)?);
    display.done(&format!(
        "{} ({:.2} MB), {calibration} calibration and {heldout} held-out files",
        stack.model,
        file_mb(&stack.assets.model)
    ));
    Ok(())
}

/// What step 2 leaves behind.
struct Deployed {
    digest: String,
    before: Measured,
    client: LoadClient,
}

/// What step 3 leaves behind.
struct Noticed {
    budget_us: u64,
    breach: BudgetBreach,
    request: RecompressRequest,
    breach_at_ms: u64,
    /// Models asked for so far.
    rounds: u32,
}

/// What step 5 leaves behind.
struct Installed {
    event: InstallEvent,
    committed_at_ms: u64,
    mark: usize,
}

/// How the windows after a commit ended.
enum Settled {
    /// These are to be judged.
    Windows(Vec<InferWindow>),
    /// The device asks for a smaller one.
    Again(Box<RecompressRequest>),
}

/// Everything that the verdict looks at.
struct Done {
    deployed: Deployed,
    noticed: Noticed,
    offer: Offer,
    installed: Installed,
    windows: Vec<InferWindow>,
}

/// The running stack, the clock, and what is still to go wrong.
struct Driver {
    stack: Stack,
    deadline: Instant,
    started: Instant,
    budget_p95_us: Option<u64>,
    faults: Vec<Fault>,
    may_fail: bool,
    judge_speed: bool,
    mark: usize,
}

impl Driver {
    fn start(
        options: DemoOptions,
        started: Instant,
        cancel: Arc<AtomicBool>,
    ) -> Result<Self, Failure> {
        let stack = Stack::start_cancellable(options.stack, cancel)?;
        let may_fail = options.faults.iter().any(Fault::interrupts_service);
        Ok(Self {
            stack,
            deadline: started + options.timeout,
            started,
            budget_p95_us: options.budget_p95_us,
            faults: options.faults,
            may_fail,
            judge_speed: options.judge_speed,
            mark: 0,
        })
    }

    fn deploy(&mut self, display: &mut dyn Display) -> Result<Deployed, Failure> {
        let o = self.stack.options();
        display.note(&format!(
            "{} x{:.1} slower than this host's core (modelled), {} thread(s), {}, broker at {}",
            o.board.title,
            self.stack.slowdown().fp32,
            o.threads,
            o.runtime,
            self.stack.broker_address()
        ));
        self.stack.deploy()?;
        let serving = |record: &Record| match &record.message {
            Message::Install(event) => serves(event),
            _ => None,
        };
        let digest = self.wait("the original model to serve", serving)??;
        let client = self.stack.client(BEFORE)?;
        display.note("it serves; measuring with real requests");
        let mut windows = Vec::new();
        let mut committed = false;
        while !committed || windows.len() <= WINDOWS_BEFORE {
            let found = self.wait(
                "the original model to be committed and measured",
                |record| match &record.message {
                    Message::Install(event) if event.digest == digest => {
                        ended(event).map(|end| end.map(|()| None))
                    }
                    Message::Infer(window) if window.digest == digest && window.requests > 0 => {
                        Some(Ok(Some(window.clone())))
                    }
                    _ => None,
                },
            )??;
            match found {
                Some(window) => windows.push(window),
                None => committed = true,
            }
        }
        self.wait_for_answers(&client, BEFORE)?;
        let before = Measured::new(&windows[1..], self.stack.watcher(), &digest);
        display.done(&before.line());
        Ok(Deployed { digest, before, client })
    }

    fn notice(
        &mut self,
        deployed: &Deployed,
        display: &mut dyn Display,
    ) -> Result<Noticed, Failure> {
        let p95_us = deployed.before.p95_us.ok_or("the client got no answers".to_owned())?;
        let budget_us = self.budget_p95_us.unwrap_or_else(|| default_budget(p95_us));
        if budget_us >= p95_us {
            return Err(Failure::Result(format!(
                "the original model's p95 of {} already meets the budget of {}: nothing to show",
                ms(p95_us),
                ms(budget_us)
            )));
        }
        deployed.client.set_phase(WAITING);
        self.stack.set_latency_budget(budget_us)?;
        display.note(&format!("the p95 budget is {} now", ms(budget_us)));
        // The two leave the device together, in either order.
        let (mut breach, mut request) = (None, None);
        let (breach, breach_at_ms, request) =
            self.wait("budget_breach and the re-compression request", |record| {
                match &record.message {
                    Message::Breach(event) if event.recompress => {
                        breach.get_or_insert((event.clone(), record.at_ms));
                    }
                    Message::Request(wanted) => {
                        request.get_or_insert(wanted.clone());
                    }
                    _ => {}
                }
                let (breach, at_ms) = breach.clone()?;
                Some((breach, at_ms, request.clone()?))
            })?;
        display.note(&format!(
            "breach: {} of {} windows over, p95 {:.0} ms, cause: {}",
            breach.windows_over,
            breach.windows_seen,
            breach.observed / 1000.0,
            breach.cause
        ));
        display.done(&format!(
            "{} asks for p95 {} (has {})",
            request.device,
            ms(request.budgets.latency_p95_us.unwrap_or(budget_us)),
            ms(request.p95_us)
        ));
        Ok(Noticed { budget_us, breach, request, breach_at_ms, rounds: 1 })
    }

    fn answer(&mut self, noticed: &Noticed, display: &mut dyn Display) -> Result<Offer, Failure> {
        let wanted = &noticed.request;
        let mut doing = String::new();
        loop {
            let soon = self.deadline.min(Instant::now() + Duration::from_secs(1));
            let patience = soon.saturating_duration_since(Instant::now());
            let found = self.wait_at_most("an offer", patience, |record| match &record.message {
                Message::Offer(offer) if offer.digest != wanted.digest => Some(offer.clone()),
                _ => None,
            });
            match found {
                Ok(offer) => {
                    display.done(&offer_line(&offer));
                    return Ok(offer);
                }
                Err(StackError::Waited { .. }) if Instant::now() < self.deadline => {}
                Err(StackError::Waited { .. }) => return Err(self.no_offer(&doing)),
                Err(error) => return Err(error.into()),
            }
            if let Ok(jobs) = self.stack.jobs() {
                doing = look_at_jobs(&jobs)?;
                display.note(&doing);
            }
        }
    }

    fn no_offer(&self, doing: &str) -> Failure {
        let took = self.started.elapsed().as_secs();
        let log = crate::process::tail(&self.stack.service_log(), 15);
        Failure::Result(format!(
            "no offer within the run's time of {took} s; {doing}\n--- end of the service's log\n{log}"
        ))
    }

    fn install(&mut self, offer: &Offer, display: &mut dyn Display) -> Result<Installed, Failure> {
        // The install may have begun before the offer was recorded here.
        self.mark = 0;
        loop {
            let (event, at_ms) =
                self.wait("the install to end", |record| match &record.message {
                    Message::Install(event) if event.digest == offer.digest => {
                        Some((event.clone(), record.at_ms))
                    }
                    _ => None,
                })?;
            if let Some(end) = ended(&event) {
                end?;
                display.done(&format!("committed {:.1} s after the offer", secs(event.elapsed_ms)));
                let mark = self.stack.mark();
                return Ok(Installed { event, committed_at_ms: at_ms, mark });
            }
            display.note(&install_line(&event));
        }
    }

    /// The device is followed into another round, with time of its own.
    fn again(
        &mut self,
        noticed: &mut Noticed,
        request: RecompressRequest,
        display: &mut dyn Display,
    ) {
        display.done(&format!(
            "not yet: p95 is {}, and {} asks again",
            ms(request.p95_us),
            request.device
        ));
        self.deadline += MORE_TIME;
        noticed.rounds += 1;
        noticed.request = request;
    }

    fn judge(&mut self, done: Done, display: &mut dyn Display) -> Result<Summary, Failure> {
        let Done { deployed, noticed, offer, installed, windows } = done;
        self.wait_for_answers(&deployed.client, AFTER)?;
        let after = Measured::new(&windows, self.stack.watcher(), &offer.digest);
        let over = windows.iter().filter(|window| is_over(window, noticed.budget_us)).count();
        let stats = deployed.client.stop();
        let summary = Summary::new(summary::Facts {
            stack: &self.stack,
            before: deployed.before,
            after,
            original: &deployed.digest,
            offer: &offer,
            budget_us: noticed.budget_us,
            breach: &noticed.breach,
            install: &installed.event,
            breach_to_committed_ms: installed.committed_at_ms.saturating_sub(noticed.breach_at_ms),
            took: self.started.elapsed(),
            rounds: noticed.rounds,
            windows_over: over,
            windows_after: WINDOWS_AFTER,
            stats: &stats,
        });
        self.verdict(&summary, &stats)?;
        display.done(&format!(
            "p95 {} within the budget of {}",
            ms(summary.after.p95_us.unwrap_or(0)),
            ms(noticed.budget_us)
        ));
        Ok(summary)
    }

    /// The last few windows of the new model (the first that are all within the budget, or the last ones seen), or
    /// that the device is not content with it.
    fn settle(
        &mut self,
        noticed: &Noticed,
        offer: &Offer,
        installed: &Installed,
        display: &mut dyn Display,
    ) -> Result<Settled, Failure> {
        self.mark = installed.mark;
        let mut windows: Vec<InferWindow> = Vec::new();
        // The first window may have begun before the commit.
        while windows.len() <= MOST_WINDOWS_AFTER {
            let next = self.wait("windows of the new model", |record| of_model(record, offer));
            match next {
                Ok(After::Window(window)) => windows.push(*window),
                Ok(After::Request(request)) if self.judge_speed && noticed.rounds < MOST_ROUNDS => {
                    return Ok(Settled::Again(request));
                }
                Ok(After::Request(_)) => {}
                Err(_) if windows.len() > WINDOWS_AFTER => break,
                Err(error) => return Err(error.into()),
            }
            let seen = windows.len().saturating_sub(1);
            if seen > 0 {
                display
                    .note(&format!("window {seen}, {WINDOWS_AFTER} within the budget are wanted"));
            }
            let last = &windows[windows.len().saturating_sub(WINDOWS_AFTER)..];
            let over = last.iter().any(|window| is_over(window, noticed.budget_us));
            if seen >= WINDOWS_AFTER && !(self.judge_speed && over) {
                break;
            }
        }
        Ok(Settled::Windows(windows.split_off(windows.len() - WINDOWS_AFTER)))
    }

    fn wait_for_answers(&self, client: &LoadClient, phase: &str) -> Result<(), Failure> {
        let answers = |stats: &ClientStats| stats.phases.get(phase).map_or(0, |p| p.answers.len());
        let samples = self.stack.inputs().iter().map(crate::npz::Array::samples).min().unwrap_or(0);
        let wanted = MIN_ANSWERS.min(samples);
        if client.wait(self.deadline, |stats| answers(stats) >= wanted) {
            return Ok(());
        }
        let stats = client.stats();
        let failure = stats.failures().last().unwrap_or("no failure");
        let got = answers(&stats);
        Err(format!("only {got} of {wanted} answers {phase}; the last failure: {failure}").into())
    }

    /// Whether what was to be shown has been shown.
    fn verdict(&self, summary: &Summary, stats: &ClientStats) -> Result<(), Failure> {
        let text = summary.table();
        let p95 = summary.after.p95_us.ok_or("there were no answers after".to_owned())?;
        if self.judge_speed && p95 > summary.budget_p95_us {
            let (is, budget) = (ms(p95), ms(summary.budget_p95_us));
            return Err(format!("p95 is {is} after, over the budget of {budget}\n{text}").into());
        }
        let allowed = self.stack.options().breach.windows_over as usize;
        if self.judge_speed && summary.windows_over_after >= allowed {
            let over = summary.windows_over_after;
            return Err(format!("{over} of {WINDOWS_AFTER} windows are over\n{text}").into());
        }
        if stats.failed() > 0 && !self.may_fail {
            let first = stats.failures().next().unwrap_or("no text").to_owned();
            let failed = stats.failed();
            return Err(format!("{failed} requests failed, the first: {first}\n{text}").into());
        }
        if !self.faults.is_empty() {
            let left = Fault::list(&self.faults);
            return Err(format!("the loop closed without: {left}\n{text}").into());
        }
        Ok(())
    }

    /// Waits until the end of the run for a record, and lets go wrong what is due on the way.
    fn wait<T>(
        &mut self,
        what: &str,
        pick: impl FnMut(&Record) -> Option<T>,
    ) -> Result<T, StackError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        self.wait_at_most(what, left, pick)
    }

    fn wait_at_most<T>(
        &mut self,
        what: &str,
        patience: Duration,
        mut pick: impl FnMut(&Record) -> Option<T>,
    ) -> Result<T, StackError> {
        let until = Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let faults = &self.faults;
            let hit = self.stack.wait_from(&mut self.mark, what, left, |record| {
                let due = faults.iter().position(|fault| fault.at.matches(record));
                let found = pick(record);
                (due.is_some() || found.is_some()).then_some((due, found))
            })?;
            if let Some(index) = hit.0 {
                let fault = self.faults.remove(index);
                tracing::info!(?fault, "injecting");
                fault.act.perform(&mut self.stack, fault.down())?;
            }
            if let Some(found) = hit.1 {
                return Ok(found);
            }
        }
    }
}

/// What a device says of a new model after its commit.
enum After {
    Window(Box<InferWindow>),
    Request(Box<RecompressRequest>),
}

fn of_model(record: &Record, offer: &Offer) -> Option<After> {
    match &record.message {
        Message::Infer(window) if window.digest == offer.digest && window.requests > 0 => {
            Some(After::Window(Box::new(window.clone())))
        }
        Message::Request(wanted) if wanted.digest == offer.digest => {
            Some(After::Request(Box::new(wanted.clone())))
        }
        _ => None,
    }
}

/// The digest of an install that has begun to serve, or why it never will.
fn serves(event: &InstallEvent) -> Option<Result<String, Failure>> {
    match (event.outcome, event.phase) {
        (InstallOutcome::Progress, ModelPhase::Probation) | (InstallOutcome::Committed, _) => {
            Some(Ok(event.digest.clone()))
        }
        (InstallOutcome::Progress, _) => None,
        _ => ended(event).map(|end| end.map(|()| event.digest.clone())),
    }
}

/// How an install ended, if it has.
fn ended(event: &InstallEvent) -> Option<Result<(), Failure>> {
    match event.outcome {
        InstallOutcome::Progress => None,
        InstallOutcome::Committed => Some(Ok(())),
        outcome => {
            let reason = event.reason.clone().unwrap_or_else(|| "no reason given".to_owned());
            let digest = event.digest.clone();
            Some(Err(StackError::NotInstalled { digest, outcome, reason }.into()))
        }
    }
}

#[allow(clippy::cast_precision_loss)]
fn offer_line(offer: &Offer) -> String {
    format!("offer: version {}, {:.2} MB", offer.version, offer.size_bytes as f64 / 1e6)
}

fn install_line(event: &InstallEvent) -> String {
    let compared = event.comparison.as_ref().map(|c| {
        format!(
            ", {} requests compared, agreement {:.3}, p95 {} -> {}",
            c.shadow_requests,
            c.agreement,
            c.before_p95_us.map_or("?".to_owned(), ms),
            c.after_p95_us.map_or("?".to_owned(), ms)
        )
    });
    let reason = event.reason.as_ref().map(|reason| format!(" ({reason})"));
    format!("{}{}{}", event.phase, compared.unwrap_or_default(), reason.unwrap_or_default())
}

/// What the newest job is doing; a job or request that failed ends the demonstration.
fn look_at_jobs(table: &Value) -> Result<String, Failure> {
    let rows = |key: &str| table[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut all = rows("jobs").iter().chain(rows("requests"));
    if let Some(row) = all.find(|row| row["state"] == "failed") {
        let why = row["reason"].as_str().unwrap_or("no reason given");
        return Err(Failure::Result(format!("the compressor gave up: {why}")));
    }
    let Some(job) = rows("jobs").iter().max_by_key(|job| job["id"].as_i64()) else {
        return Ok("no job yet".to_owned());
    };
    let stage = table["stage"].as_str().unwrap_or_default();
    Ok(format!("job {}: {stage}", job["state"].as_str().unwrap_or_default()))
}

/// The default budget: a share of the p95, rounded to two digits.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn default_budget(p95_us: u64) -> u64 {
    let wanted = p95_us as f64 * DEFAULT_BUDGET_SHARE;
    let digit = 10_f64.powf(wanted.max(1.0).log10().floor() - 1.0).max(1.0);
    ((wanted / digit).round() * digit) as u64
}

#[allow(clippy::cast_precision_loss)]
fn ms(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1000.0)
}

#[allow(clippy::cast_precision_loss)]
fn secs(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

#[allow(clippy::cast_precision_loss)]
fn file_mb(path: &Path) -> f64 {
    fs::metadata(path).map_or(0.0, |file| file.len() as f64 / 1e6)
}

/// Where a run goes when nothing else is said.
#[must_use]
pub fn default_run_dir() -> PathBuf {
    std::env::temp_dir().join(format!("espalier-demo-{}", std::process::id()))
}

fn is_over(window: &InferWindow, budget_us: u64) -> bool {
    window.p95_us.is_some_and(|p95| p95 > budget_us)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_default_budget_is_a_share_of_the_p95_with_two_digits() {
        assert_eq!(default_budget(243_117), 190_000);
        assert_eq!(default_budget(98_765), 79_000);
        assert_eq!(default_budget(1_234), 990);
        assert_eq!(default_budget(3), 2);
    }

    #[test]
    fn a_failed_job_or_request_ends_the_wait_for_an_offer_with_its_reason() {
        let table = serde_json::json!({"stage": "pruning", "requests": [], "jobs": [
            {"id": 1, "state": "done"},
            {"id": 2, "state": "failed", "reason": "no candidate reaches 0.85"},
        ]});
        let error = look_at_jobs(&table).unwrap_err().to_string();
        assert!(error.contains("no candidate reaches 0.85"), "{error}");
        let table = serde_json::json!({"jobs": [], "requests": [
            {"state": "failed", "reason": "there is no model of this name"},
        ]});
        let error = look_at_jobs(&table).unwrap_err().to_string();
        assert!(error.contains("no model of this name"), "{error}");
        for harmless in [serde_json::json!({"jobs": []}), serde_json::json!("nonsense")] {
            assert!(look_at_jobs(&harmless).is_ok());
        }
    }

    #[test]
    fn a_failed_step_says_which_one_and_why() {
        let error = DemoError { step: Step::Answer, why: "it said no".to_owned().into() };
        assert_eq!(error.to_string(), "step 4 of 6 failed (The compressor answers): it said no");
    }
}
