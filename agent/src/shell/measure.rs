//! Measures a bundle that a command names: fetches it where it is not on the device, has it run off to the side, and
//! leaves nothing of it.
//!
//! It goes the way of an install up to the worker: the owner's keys, the limits and the rate of downloads, digest and
//! manifest. Its files lie in a folder of their own, so that neither an install nor what tidies up after one minds them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bundle::{Bundle, Digest, Manifest};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use wire::{Histogram, MeasureProfile, finite};

use super::download::{self, Access};
use super::store::Store;
use super::trust::{self, Trust};
use crate::config::{Config, DeviceConfig};
use crate::core::{Event, FailureClass, MeasureOrder, StepFailure};
use crate::plane::{MeasurePlan, Measured, Memory, Plane};
use crate::sys::{PowerConfig, Roots, machine, memory};

/// Memory that a measurement leaves to the rest of the device.
const SPARE_BYTES: u64 = 64 << 20;
/// Attempts at a download that fails for reasons outside the bundle.
const MAX_ATTEMPTS: u32 = 3;
/// The wait between two of them.
const BETWEEN: Duration = Duration::from_secs(2);
/// What limits a worker that has no limit of its own.
const FREE: &str = "the memory that is free";

/// Measures, one bundle at a time.
#[derive(Debug)]
pub struct Measurer {
    means: Arc<Means>,
    events: mpsc::Sender<Event>,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    cancelled: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

/// What it is done with.
#[derive(Debug)]
struct Means {
    plane: Plane,
    store: Store,
    folder: PathBuf,
    trust: Option<Arc<Trust>>,
    access: Access,
    device: DeviceConfig,
    runtime: &'static str,
    threads: usize,
    worker_bytes: Option<u64>,
    roots: Roots,
    power: PowerConfig,
}

/// A fetched bundle's folder, which goes with this.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(folder = %self.0.display(), %error, "a measured bundle stays");
        }
    }
}

impl Measurer {
    /// A measurer that answers to `events` and works in `folder`, which it empties.
    #[must_use]
    pub fn new(
        config: &Config,
        (plane, store): (Plane, Store),
        (trust, access): (Option<Arc<Trust>>, Access),
        folder: PathBuf,
        events: mpsc::Sender<Event>,
    ) -> Self {
        drop(Scratch(folder.clone()));
        let means = Means {
            plane,
            store,
            folder,
            trust,
            access,
            device: config.device.clone(),
            runtime: config.engine.kind.name(),
            threads: config.engine.threads,
            worker_bytes: config.worker.memory_bytes,
            roots: Roots::under(&config.sys_root),
            power: config.power,
        };
        Self { means: Arc::new(means), events, running: Mutex::default() }
    }

    /// Begins; one `Measured` event answers. What was under way before is stopped.
    pub fn begin(&self, order: MeasureOrder) {
        self.cancel();
        let cancelled = Arc::new(AtomicBool::new(false));
        let (means, events, stop) = (self.means.clone(), self.events.clone(), cancelled.clone());
        let task = tokio::spawn(async move {
            let outcome = means.measure(&order, &stop).await.map(Box::new);
            let _ = events.send(Event::Measured { id: order.id, outcome }).await;
        });
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        *running = Some(Running { cancelled, task });
    }

    /// Stops what is under way. Its worker ends and its files go; nothing answers.
    pub fn cancel(&self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Running { cancelled, task }) = running.take() {
            cancelled.store(true, Ordering::Relaxed);
            task.abort();
        }
    }
}

impl Drop for Measurer {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl Means {
    async fn measure(
        self: &Arc<Self>,
        order: &MeasureOrder,
        cancelled: &Arc<AtomicBool>,
    ) -> Result<MeasureProfile, String> {
        let offer = &order.offer;
        let digest: Digest = offer.digest.parse().map_err(|e| format!("args.digest: {e}"))?;
        let memory = self.memory();
        self.fits(order, offer.size_bytes, "its files have", memory)?;
        let (bundle, scratch) = self.bundle(order, digest, cancelled).await?;
        self.is_for_this_device(order, &bundle.manifest)?;
        match bundle.manifest.predicted.memory_bytes {
            Some(predicted) => {
                self.fits(order, whole(predicted.value), "its manifest predicts", memory)?;
            }
            None => self.fits(order, bundle.size_bytes(), "its files have", memory)?,
        }
        let plan = MeasurePlan {
            runs: order.runs,
            warmup: order.warmup,
            limit: Duration::from_millis(order.max_ms),
            memory,
            roots: self.roots.clone(),
            power: self.power,
        };
        let measured = self.plane.measure(&offer.model, &bundle, &plan).await;
        let measured = measured.map_err(|error| error.to_string())?;
        let profile = self.profile(&bundle, measured, memory);
        Ok(MeasureProfile { fetched: scratch.is_some(), ..profile })
    }

    /// What the worker may take: as much as any worker, and no more than is free.
    fn memory(&self) -> Option<Memory> {
        let free = memory::info(&self.roots).available_bytes;
        let free = free.map(|bytes| (bytes.saturating_sub(SPARE_BYTES), FREE));
        let own = self.worker_bytes.map(|bytes| (bytes, "worker.memory_bytes"));
        let least = [own, free].into_iter().flatten().min_by_key(|(bytes, _)| *bytes);
        least.map(|(bytes, limit)| Memory { bytes, limit })
    }

    fn fits(
        &self,
        order: &MeasureOrder,
        bytes: u64,
        who: &str,
        memory: Option<Memory>,
    ) -> Result<(), String> {
        let model = &order.offer.model;
        if let Some(budget) = order.memory_budget.filter(|budget| bytes > *budget) {
            return Err(format!(
                "it does not fit into memory: {who} {bytes} bytes, over the budget budgets.{model}.memory_bytes of {budget}"
            ));
        }
        match memory {
            Some(memory) if bytes > memory.bytes => Err(format!(
                "it does not fit into memory: {who} {bytes} bytes, over {} of {} bytes",
                memory.limit, memory.bytes
            )),
            _ => Ok(()),
        }
    }

    /// The bundle, whole and as its digest says; with its folder where it was fetched.
    async fn bundle(
        self: &Arc<Self>,
        order: &MeasureOrder,
        digest: Digest,
        cancelled: &Arc<AtomicBool>,
    ) -> Result<(Bundle, Option<Scratch>), String> {
        let (store, ask) = (self.store.clone(), digest);
        if let Ok(bundle) = blocking(move || store.open(&ask)).await {
            return Ok((bundle, None));
        }
        self.store.check_writable().map_err(|failure| failure.reason)?;
        if order.offer.url.is_empty() {
            return Err(
                "the bundle in the store is not whole; args.url must say where it is".into()
            );
        }
        let scratch = Scratch(self.folder.join(digest.hex()));
        let mut attempt = 1;
        loop {
            let (means, order) = (self.clone(), order.clone());
            let (cancelled, folder) = (cancelled.clone(), scratch.0.clone());
            let fetched = blocking(move || means.fetch(&order, digest, &folder, &cancelled)).await;
            match fetched {
                Ok(bundle) => return Ok((bundle, Some(scratch))),
                Err(failure)
                    if failure.class == FailureClass::Transient && attempt < MAX_ATTEMPTS =>
                {
                    tracing::debug!(failure.reason, "a bundle to measure is asked for again");
                }
                Err(failure) => return Err(failure.reason),
            }
            attempt += 1;
            tokio::time::sleep(BETWEEN).await;
        }
    }

    fn fetch(
        &self,
        order: &MeasureOrder,
        digest: Digest,
        folder: &std::path::Path,
        cancelled: &AtomicBool,
    ) -> Result<Bundle, StepFailure> {
        let length = match &self.trust {
            Some(trust) => Some(trust.allows(&order.offer, digest)?),
            None => None,
        };
        download::fetch(&download::Job {
            url: &order.offer.url,
            digest,
            into: folder,
            limits: self.store.limits(),
            access: &self.access,
            cancelled,
        })?;
        if let Some(length) = length {
            trust::check_length(folder, length)?;
        }
        let bundle = Bundle::open(folder, self.store.limits()).map_err(StepFailure::attempt)?;
        let (got, said) = (bundle.size_bytes(), order.offer.size_bytes);
        if bundle.digest != digest {
            let reason = format!("the manifest has digest {}, wanted {digest}", bundle.digest);
            return Err(StepFailure::attempt(reason));
        }
        if got > said {
            let reason = format!("the bundle has {got} bytes, args.size_bytes says {said}");
            return Err(StepFailure::attempt(reason));
        }
        Ok(bundle)
    }

    fn is_for_this_device(&self, order: &MeasureOrder, manifest: &Manifest) -> Result<(), String> {
        let (name, model) = (&manifest.name, &order.offer.model);
        if name != model {
            return Err(format!("the manifest is of model {name}, the command names {model}"));
        }
        if !manifest.fits_runtime(self.runtime) {
            let (theirs, ours) = (&manifest.runtime, self.runtime);
            return Err(format!("made for runtime {theirs}, this device runs {ours}"));
        }
        if !manifest.fits_class(&self.device.class) {
            let (theirs, ours) = (&manifest.device_class, &self.device.class);
            return Err(format!("made for device class {theirs}, this is a {ours}"));
        }
        Ok(())
    }

    fn profile(
        &self,
        bundle: &Bundle,
        measured: Measured,
        memory: Option<Memory>,
    ) -> MeasureProfile {
        let mut compute = Histogram::default();
        let mut us: Vec<u64> = measured.times.iter().map(|time| micros(*time)).collect();
        us.iter().for_each(|us| compute.record(*us));
        us.sort_unstable();
        let (sample, number) = (measured.sample, |n: usize| u32::try_from(n).unwrap_or(u32::MAX));
        MeasureProfile {
            model: bundle.manifest.name.clone(),
            digest: bundle.digest.to_string(),
            version: bundle.manifest.version.clone(),
            fetched: false,
            engine: measured.engine,
            threads: number(self.threads),
            inputs: measured.inputs,
            warmup: measured.warmup,
            runs: number(us.len()),
            end: measured.end,
            p50_us: rank(&us, 50),
            p95_us: rank(&us, 95),
            p99_us: rank(&us, 99),
            max_us: rank(&us, 100),
            mean_us: compute.mean().unwrap_or(0.0),
            compute,
            load_ms: u64::try_from(measured.load.as_millis()).unwrap_or(u64::MAX),
            pss_loaded_bytes: measured.pss_loaded,
            pss_steady_bytes: measured.pss_steady,
            pss_peak_bytes: measured.pss_peak,
            rss_peak_bytes: measured.rss_peak,
            memory_limit_bytes: memory.map(|memory| memory.bytes),
            power_source: sample.power.source.to_owned(),
            power_quality: sample.power.quality,
            power_mw: sample.power.power_mw.and_then(finite),
            energy_per_inference_mj: sample.power.energy_per_inference_mj.and_then(finite),
            priority: measured.priority,
            cpu_share: measured.cpu_share.and_then(finite),
            arch: std::env::consts::ARCH.to_owned(),
            cpu: machine::cpu_name(&self.roots),
            cpus: number(std::thread::available_parallelism().map_or(1, usize::from)),
            governor: machine::governor(&self.roots),
            freq_khz: sample.freq_khz,
            temperature_mc: sample.temperature_mc,
            throttled: sample.throttled,
            steal_percent: sample.steal_percent.and_then(finite),
            load1: sample.load1.and_then(finite),
        }
    }
}

/// What a manifest says in numbers with a point, which may be any.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(bytes: f64) -> u64 {
    bytes.max(0.0) as u64
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The smallest that so many percent do not exceed.
fn rank(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StepFailure> + Send + 'static,
) -> Result<T, StepFailure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(StepFailure::attempt(format!("it was ended: {error}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!([50, 95, 99, 100].map(|p| rank(&hundred, p)), [50, 95, 99, 100]);
        assert_eq!([50, 100].map(|p| rank(&[7], p)), [7, 7]);
        assert_eq!(rank(&[], 50), 0);
    }
}
