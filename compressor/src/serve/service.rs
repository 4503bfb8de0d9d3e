//! Puts the parts together, and takes them apart again.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc as blocking_mpsc};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{fs, io};

use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};

use super::config::{self, ModelFiles, ServeConfig};
use super::connections::{self, Patience};
use super::desk::{Counters, Desk};
use super::http::{self, Front};
use super::jobs::{self, Compressor, Waker, Workshop, remove_if_there};
use super::link::{self, Way};
use super::offers::{Offers, entropy};
use super::plan::Model;
use super::signing::{self, Signing};
use super::store::{Shelf, Store, StoreError};

/// Events of the link that wait for the desk.
const LINK_QUEUE: usize = 64;

/// Why the service does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A file or folder cannot be used.
    #[error("{what} {}: {source}", path.display())]
    File {
        /// What it is for.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Another service works on the same store.
    #[error("store {} is used by another espalier serve", .0.display())]
    Locked(PathBuf),
    /// The trust repository is not usable.
    #[error("--trust: {0}")]
    Trust(#[from] ::trust::TrustError),
    /// The store is not usable.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A running service. Dropping it stops it; the job that is running goes back to the queue.
pub struct Service {
    http_url: String,
    address: SocketAddr,
    shop: Arc<Workshop>,
    waker: Waker,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    worker: Option<JoinHandle<()>>,
    _lock: File,
}

impl Service {
    /// Starts the service in the current tokio runtime. When it returns, HTTP requests are answered;
    /// the broker may come later.
    pub async fn start(
        config: ServeConfig,
        compressor: Arc<dyn Compressor>,
    ) -> Result<Self, ServeError> {
        let lock = lock(&config.store)?;
        let (bundles, work) = (config.store.join("bundles"), config.store.join("work"));
        let signing = signing(&config, &bundles, &work).await?;
        remove_if_there(&work).map_err(at("cannot clear", &work))?;
        for dir in [&bundles, &work] {
            fs::create_dir_all(dir).map_err(at("cannot create", dir))?;
        }
        let models = read_models(&config.models)?;
        let address = config.listen;
        let listen = |source| ServeError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let http_url = config.http_url.clone().unwrap_or_else(|| format!("http://{address}"));
        let http_url = http_url.trim_end_matches('/').to_owned();
        if config::is_local(&http_url) {
            tracing::warn!(
                http_url,
                "offers name an address that only devices on this machine reach (--http-url)"
            );
        }
        warn_of_way(&config);
        let offers = Offers::new(&config.root, &http_url);
        let store = Arc::new(Store::open(&config.store.join("jobs.sqlite"), &bundles, offers)?);
        let shop = Arc::new(Workshop {
            store,
            compressor,
            models,
            bundles,
            work,
            ort_library: config.ort_library.clone(),
            confidence: config.confidence,
            seed: config.seed,
            shelf: Shelf::default(),
            fresh: Mutex::default(),
            counters: Counters::default(),
            stop: AtomicBool::new(false),
            stage: Mutex::default(),
            signing,
            outbox: Notify::new(),
        });
        let (waker, worker) = start_worker(&shop)?;
        let tasks = start_tasks(&config, &shop, &waker, listener)?;
        Ok(Self { http_url, address, shop, waker, tasks, worker: Some(worker), _lock: lock })
    }

    /// Where devices reach the HTTP server.
    #[must_use]
    pub fn http_url(&self) -> &str {
        &self.http_url
    }

    /// Where the HTTP server listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops, waiting for the running job to notice. That job runs again at the next start.
    pub async fn stop(mut self) {
        self.signal();
        if let Some(worker) = self.worker.take() {
            let joined = tokio::task::spawn_blocking(move || worker.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!("the thread that runs jobs ended badly");
            }
        }
    }

    fn signal(&self) {
        self.shop.stop.store(true, Ordering::Relaxed);
        self.waker.wake();
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.signal();
        if let Some(worker) = self.worker.take() {
            // The store stays locked until the job has noticed.
            let _ = worker.join();
        }
    }
}

/// The trust repository, in line with what the store holds.
async fn signing(
    config: &ServeConfig,
    bundles: &Path,
    work: &Path,
) -> Result<Option<Signing>, ServeError> {
    let Some(repository) = config.trust.clone() else { return Ok(None) };
    fs::create_dir_all(bundles).map_err(at("cannot create", bundles))?;
    let (bundles, at_work) = (bundles.to_owned(), work.to_owned());
    let opened = tokio::task::spawn_blocking(move || {
        let signing = Signing::open(&repository)?;
        signing.reconcile(&bundles, &at_work)?;
        Ok::<_, ServeError>(Some(signing))
    });
    let opened = opened.await.map_err(io::Error::other);
    opened.map_err(at("cannot look through", work))?
}

/// What should be seen to about the way to the broker; the service runs without one all the same.
fn warn_of_way(config: &ServeConfig) {
    let (host, _) = &config.broker;
    let Some(settings) = &config.tls else {
        if !tls::is_loopback(host) {
            tracing::warn!(
                host,
                "the connection to the broker is not encrypted, and whoever is on the way can read and change \
                 it (--mqtt-ca)"
            );
        }
        return;
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok();
    let now = now.and_then(|since| i64::try_from(since.as_secs()).ok());
    for finding in tls::examine(settings, host, None, now) {
        match finding.weight {
            tls::Weight::Problem => tracing::error!("{}", finding.error),
            tls::Weight::Warning => tracing::warn!("{}", finding.error),
        }
    }
}

fn start_worker(shop: &Arc<Workshop>) -> Result<(Waker, JoinHandle<()>), ServeError> {
    let (sender, receiver) = blocking_mpsc::sync_channel(1);
    let waker = Waker(sender);
    let mine = Arc::clone(shop);
    let worker = std::thread::Builder::new()
        .name("jobs".to_owned())
        .spawn(move || jobs::run(&mine, &receiver));
    let worker = worker.map_err(at("cannot start the thread that runs jobs of", &shop.work))?;
    Ok((waker, worker))
}

fn start_tasks(
    config: &ServeConfig,
    shop: &Arc<Workshop>,
    waker: &Waker,
    listener: TcpListener,
) -> Result<Vec<tokio::task::JoinHandle<()>>, ServeError> {
    let fresh = format!("espalier-{:016x}", entropy());
    let client_id = match &config.client_id {
        Some(id) => id.clone(),
        None => shop.store.remember("client_id", &fresh)?,
    };
    let way = Way { broker: config.broker.clone(), tls: config.tls.clone(), client_id };
    let (sender, events) = mpsc::channel(LINK_QUEUE);
    let desk = Desk {
        root: config.root.clone(),
        agreement_min: config.agreement_min,
        shop: Arc::clone(shop),
        jobs: waker.clone(),
        line: None,
        unreached: None,
        retry_at: None,
        in_flight: None,
    };
    let front = Arc::new(Front {
        shop: Arc::clone(shop),
        jobs: waker.clone(),
        runtime: config.runtime,
        downloads: Front::downloads(),
        deploying: tokio::sync::Mutex::default(),
    });
    let renewing = shop.signing.clone();
    Ok(vec![
        tokio::spawn(signing::keep_fresh(renewing)),
        tokio::spawn(link::run(way, sender)),
        tokio::spawn(desk.run(events)),
        tokio::spawn(connections::serve(listener, http::router(front), Patience::default())),
    ])
}

/// One service per store: two would run the same jobs.
fn lock(store: &Path) -> Result<File, ServeError> {
    fs::create_dir_all(store).map_err(at("cannot create", store))?;
    let path = store.join("lock");
    let options = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = options.map_err(at("cannot open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(ServeError::Locked(store.to_owned())),
        Err(TryLockError::Error(source)) => Err(at("cannot lock", &path)(source)),
    }
}

fn read_models(
    models: &BTreeMap<String, ModelFiles>,
) -> Result<BTreeMap<String, Model>, ServeError> {
    let mut read = BTreeMap::new();
    for (name, files) in models {
        let source_digest = bundle::Digest::of_file(&files.source)
            .map_err(|error| at("cannot read model", &files.source)(io::Error::other(error)))?;
        let data_digest = digest_of_data(files)?;
        read.insert(name.clone(), Model { files: files.clone(), source_digest, data_digest });
    }
    Ok(read)
}

/// Over both files, each with its part in it.
fn digest_of_data(files: &ModelFiles) -> Result<bundle::Digest, ServeError> {
    let mut text = String::new();
    for (part, path) in [("calibration", &files.calibration), ("heldout", &files.heldout)] {
        let digest = bundle::Digest::of_file(path)
            .map_err(|error| at("cannot read data", path)(io::Error::other(error)))?;
        text.push_str(&format!("{part} {digest}\n"));
    }
    Ok(bundle::Digest::of(text.as_bytes()))
}

fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ServeError {
    let path = path.to_owned();
    move |source| ServeError::File { what, path, source }
}
