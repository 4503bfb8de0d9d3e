//! Performs the steps of installs and activations beside the driver, and answers with events.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bundle::Digest;
use tokio::sync::{Semaphore, mpsc};
use wire::Offer;

use super::download::{self, Access};
use super::store::{self, Store};
use super::trust::{self, Trust};
use crate::core::{BundleFacts, Event, InstallId, ShadowFacts, Step, StepDone, StepFailure};
use crate::plane::{CandidateId, Plane, PlaneError};

/// Downloads at the same time, those included that were given up and still wait for their server.
const MAX_DOWNLOADS: usize = 8;

/// Performs steps. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Installer {
    plane: Plane,
    store: Store,
    trust: Option<Arc<Trust>>,
    access: Access,
    events: mpsc::Sender<Event>,
    work: Arc<Mutex<Work>>,
    /// Held while the serving model of any name is changed, together with what `work` says of it.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// One for each download at the same time.
    slots: Arc<Semaphore>,
}

/// What is under way and who serves.
#[derive(Debug, Default)]
struct Work {
    installs: BTreeMap<InstallId, Install>,
    serving: BTreeMap<String, Serving>,
}

#[derive(Debug, Default)]
struct Install {
    digest: String,
    candidate: Option<CandidateId>,
    token: Token,
}

/// What the steps of one attempt at an install share. After a stalled journal the same install is
/// attempted again; what is left of the attempt before must not be taken for part of the new one.
#[derive(Debug, Default, Clone)]
struct Token(Arc<AtomicBool>);

impl Token {
    fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Serving {
    active: Option<String>,
    standby: Option<String>,
}

impl Installer {
    /// An installer that answers to `events`.
    #[must_use]
    pub fn new(plane: Plane, store: Store, access: Access, events: mpsc::Sender<Event>) -> Self {
        let (work, turn) = (Arc::default(), Arc::default());
        let slots = Arc::new(Semaphore::new(MAX_DOWNLOADS));
        Self { plane, store, trust: None, access, events, work, turn, slots }
    }

    /// The same, for what an owner's keys allow and nothing else.
    #[must_use]
    pub fn trusting(self, trust: Option<Trust>) -> Self {
        Self { trust: trust.map(Arc::new), ..self }
    }

    /// Where answers go.
    #[cfg(test)]
    pub(super) fn sender(&self) -> mpsc::Sender<Event> {
        self.events.clone()
    }

    /// Begins a step; one `Step` event answers it.
    pub fn step(&self, model: String, install: InstallId, step: Step) {
        let this = self.clone();
        let token = this.work().installs.entry(install).or_default().token.clone();
        tokio::spawn(async move {
            let outcome = this.perform(&model, install, &token, step).await;
            if token.is_cancelled() {
                return;
            }
            let event = Event::Step { model, install, outcome };
            let _ = this.events.send(event).await;
        });
    }

    /// Stops an install's download, which another step goes on with.
    pub fn pause(&self, install: InstallId) {
        if let Some(own) = self.work().installs.get_mut(&install) {
            std::mem::take(&mut own.token).cancel();
        }
    }

    /// Stops an install and frees its worker.
    pub fn abandon(&self, install: InstallId) {
        let Some(own) = self.work().installs.remove(&install) else {
            return;
        };
        own.token.cancel();
        if let Some(candidate) = own.candidate {
            let plane = self.plane.clone();
            tokio::spawn(async move { plane.discard(candidate).await });
        }
    }

    /// Stops every install: the core that asked for them is gone.
    pub fn abandon_all(&self) {
        let all: Vec<InstallId> = self.work().installs.keys().copied().collect();
        all.into_iter().for_each(|install| self.abandon(install));
    }

    /// Brings an installed bundle to serve; `Activated` or `ActivateFailed` answers.
    pub fn activate(&self, model: String, digest: String) {
        let this = self.clone();
        tokio::spawn(async move {
            let event = match this.bring_to_serve(&model, &digest).await {
                Ok(()) => Event::Activated { model, digest },
                Err(failure) => Event::ActivateFailed { model, digest, failure },
            };
            let _ = this.events.send(event).await;
        });
    }

    /// Ends the worker of the model before the last switch.
    pub fn retire_standby(&self, model: String) {
        self.work().serving.entry(model.clone()).or_default().standby = None;
        let plane = self.plane.clone();
        tokio::spawn(async move { plane.retire_standby(&model).await });
    }

    /// What shadowing has seen of an install so far.
    #[must_use]
    pub fn shadow_facts(&self, install: InstallId) -> Option<ShadowFacts> {
        let candidate = self.work().installs.get(&install)?.candidate?;
        let report = self.plane.shadow_report(candidate);
        Some(ShadowFacts {
            requests: report.requests,
            agreement: report.agreement,
            before_p95_us: report.before.quantile(0.95),
            after_p95_us: report.after.quantile(0.95),
            failures: report.failures,
        })
    }

    /// The install that a candidate belongs to.
    #[must_use]
    pub fn install_of(&self, candidate: CandidateId) -> Option<InstallId> {
        let work = self.work();
        let mut installs = work.installs.iter();
        let found = installs.find(|(_, own)| own.candidate == Some(candidate))?;
        Some(*found.0)
    }

    async fn perform(
        &self,
        model: &str,
        install: InstallId,
        token: &Token,
        step: Step,
    ) -> Result<StepDone, StepFailure> {
        match step {
            Step::Download(offer) => {
                let digest = parse(&offer.digest)?;
                self.download(token, *offer, digest).await?;
                Ok(StepDone::Downloaded)
            }
            Step::Verify { digest } => self.verify(parse(&digest)?).await,
            Step::Load { digest } => {
                let candidate = self.load(model, &digest).await?;
                self.keep(install, token, &digest, candidate).await?;
                Ok(StepDone::Loaded)
            }
            Step::SelfTest { digest } => self.self_test(install, parse(&digest)?).await,
            Step::Shadow => {
                let candidate = self.candidate(install)?;
                self.plane.shadow(candidate).await.map_err(|e| classify(&e))?;
                Ok(StepDone::ShadowStarted)
            }
            Step::Switch => self.switch(model, install).await,
        }
    }

    async fn download(
        &self,
        token: &Token,
        offer: Offer,
        digest: Digest,
    ) -> Result<(), StepFailure> {
        let (store, token, trust) = (self.store.clone(), token.clone(), self.trust.clone());
        let access = self.access.clone();
        // Whoever offers one bundle after the other must not take all threads that block.
        let slot = self.slots.clone().acquire_owned().await.map_err(StepFailure::transient)?;
        blocking(move || {
            let _slot = slot;
            if token.0.load(Ordering::Relaxed) {
                return Err(StepFailure::attempt("cancelled"));
            }
            let length = trust.map(|trust| trust.allows(&offer, digest)).transpose()?;
            let fits = |folder: &Path| match length {
                Some(length) => trust::check_length(folder, length),
                None => Ok(()),
            };
            if store.has(&digest) && store.open(&digest).is_ok() {
                return fits(&store.stored(&digest));
            }
            download::fetch(&download::Job {
                url: &offer.url,
                digest,
                into: &store.staged(&digest),
                limits: store.limits(),
                access: &access,
                cancelled: &token.0,
            })?;
            fits(&store.staged(&digest))
        })
        .await
    }

    async fn verify(&self, digest: Digest) -> Result<StepDone, StepFailure> {
        let store = self.store.clone();
        blocking(move || {
            let bundle = store.admit(&digest).map_err(|failure| {
                // Whatever lies there is not what was offered: the next attempt begins anew.
                if let Err(error) = store.unstage(&digest) {
                    tracing::warn!(%error, "a bad bundle stays in staging");
                }
                StepFailure::attempt(failure.reason)
            })?;
            let size_bytes = bundle.size_bytes();
            let manifest = bundle.manifest;
            Ok(StepDone::Verified(BundleFacts {
                name: manifest.name,
                version: manifest.version,
                sequence: manifest.sequence,
                runtime: manifest.runtime,
                device_class: manifest.device_class,
                size_bytes,
            }))
        })
        .await
    }

    async fn load(&self, model: &str, digest: &str) -> Result<CandidateId, StepFailure> {
        let (store, parsed) = (self.store.clone(), parse(digest)?);
        let bundle = blocking(move || store.open(&parsed)).await?;
        let loaded = self.plane.load(model, digest, &bundle).await;
        loaded.map_err(|error| classify(&error))
    }

    /// Remembers a candidate, unless its attempt was given up while it was loading.
    async fn keep(
        &self,
        install: InstallId,
        token: &Token,
        digest: &str,
        candidate: CandidateId,
    ) -> Result<(), StepFailure> {
        let late = {
            let mut work = self.work();
            match work.installs.get_mut(&install).filter(|_| !token.is_cancelled()) {
                Some(own) => {
                    own.digest = digest.to_owned();
                    own.candidate.replace(candidate)
                }
                None => Some(candidate),
            }
        };
        if let Some(late) = late {
            self.plane.discard(late).await;
        }
        self.candidate(install).map(drop)
    }

    async fn self_test(&self, install: InstallId, digest: Digest) -> Result<StepDone, StepFailure> {
        let candidate = self.candidate(install)?;
        let store = self.store.clone();
        let test = blocking(move || {
            let bundle = store.open(&digest)?;
            // The file is what its digest says, so what is wrong with it is wrong for good.
            bundle.selftest().map_err(|e| {
                if store::is_passing(&e) {
                    StepFailure::transient(e)
                } else {
                    StepFailure::bundle(e)
                }
            })
        })
        .await?;
        let tested = self.plane.self_test(candidate, &test).await;
        tested.map_err(|error| classify(&error))?;
        Ok(StepDone::SelfTested)
    }

    async fn switch(&self, model: &str, install: InstallId) -> Result<StepDone, StepFailure> {
        let candidate = self.candidate(install)?;
        let _turn = self.turn.lock().await;
        let served = self.plane.serve(candidate).await;
        served.map_err(|error| classify(&error))?;
        let mut work = self.work();
        let own = work.installs.remove(&install).unwrap_or_default();
        let serving = work.serving.entry(model.to_owned()).or_default();
        serving.standby = serving.active.replace(own.digest);
        Ok(StepDone::Switched)
    }

    async fn bring_to_serve(&self, model: &str, digest: &str) -> Result<(), StepFailure> {
        let now = self.work().serving.get(model).cloned().unwrap_or_default();
        // A worker that cannot come back is loaded anew, which verifies its files.
        if now.active.as_deref() == Some(digest) && self.plane.is_up(model) {
            return Ok(());
        }
        let stands_by = now.standby.as_deref() == Some(digest);
        if stands_by && self.plane.rollback(model).await.is_ok() {
            self.serves(model, digest);
            return Ok(());
        }
        let candidate = self.load(model, digest).await?;
        if let Err(failure) = self.put_in_place(model, digest, &now, candidate).await {
            self.plane.discard(candidate).await;
            return Err(failure);
        }
        self.plane.retire_standby(model).await;
        Ok(())
    }

    /// Makes a loaded bundle the serving one, unless an install has switched while it was loading:
    /// that one is newer.
    async fn put_in_place(
        &self,
        model: &str,
        digest: &str,
        found: &Serving,
        candidate: CandidateId,
    ) -> Result<(), StepFailure> {
        let _turn = self.turn.lock().await;
        if self.work().serving.get(model).cloned().unwrap_or_default() != *found {
            return Err(StepFailure::attempt("another bundle was switched to meanwhile"));
        }
        self.plane.serve(candidate).await.map_err(|error| classify(&error))?;
        self.serves(model, digest);
        Ok(())
    }

    fn serves(&self, model: &str, digest: &str) {
        let serving = Serving { active: Some(digest.to_owned()), standby: None };
        self.work().serving.insert(model.to_owned(), serving);
    }

    fn candidate(&self, install: InstallId) -> Result<CandidateId, StepFailure> {
        let work = self.work();
        let own = work.installs.get(&install).and_then(|own| own.candidate);
        own.ok_or_else(|| StepFailure::attempt("the install's worker is gone"))
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse(digest: &str) -> Result<Digest, StepFailure> {
    digest.parse().map_err(|e| StepFailure::attempt(format!("{digest:?}: {e}")))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StepFailure> + Send + 'static,
) -> Result<T, StepFailure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(StepFailure::attempt(format!("the step was ended: {error}"))),
    }
}

/// What a failure of the plane means for the bundle.
fn classify(error: &PlaneError) -> StepFailure {
    match error {
        PlaneError::Load { .. } | PlaneError::Interface { .. } | PlaneError::SelfTest(_) => {
            StepFailure::bundle(error)
        }
        // Too little memory for it may be all that was wrong, so it is not tried again and again.
        PlaneError::Unloaded { .. } | PlaneError::Untested(_) => StepFailure::attempt(error),
        PlaneError::Spawn { .. }
        | PlaneError::TooManyWorkers { .. }
        | PlaneError::NotServing(_)
        | PlaneError::WorkerGone { .. } => StepFailure::transient(error),
        _ => StepFailure::attempt(error),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "install_tests.rs"]
mod tests;
