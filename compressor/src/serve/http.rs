//! The HTTP server: bundles for devices, reports for people, and two routes for the operator that
//! only answer on the loopback interface.

use std::io;
use std::net::SocketAddr;
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderMap, Method, Response, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use bundle::{Digest, Limits, MANIFEST_FILE, Manifest, REPORT_FILE};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::desk::blocking;
use super::files::{Served, send, send_current};
use super::jobs::{Waker, Workshop};
use super::offers::OfferFacts;
use super::plan;
use super::signing::Unsigned;
use super::store::{Listing, StoreError};
use crate::pipeline::OriginalJob;

/// Files sent at once; one more is answered with 503.
const MAX_DOWNLOADS: usize = 256;
/// Jobs and requests listed.
const MAX_LISTED: u32 = 1000;
/// Largest body of a request.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// What the routes share.
pub(super) struct Front {
    pub(super) shop: Arc<Workshop>,
    pub(super) jobs: Waker,
    pub(super) runtime: runtime::EngineKind,
    pub(super) downloads: Arc<Semaphore>,
    /// Originals are bundled one at a time.
    pub(super) deploying: tokio::sync::Mutex<()>,
}

impl Front {
    pub(super) fn downloads() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(MAX_DOWNLOADS))
    }
}

/// All routes.
pub(super) fn router(front: Arc<Front>) -> Router {
    let admin = Router::new()
        .route("/jobs", get(jobs))
        .route("/jobs/{id}/retry", post(retry))
        .route("/deploy", post(deploy))
        .route_layer(middleware::from_fn(loopback_only));
    Router::new()
        .route("/healthz", get(health))
        .route("/bundles/{hex}/{file}", get(bundle_file))
        .route("/reports/{hex}", get(report))
        .route("/trust/{file}", get(metadata_file))
        .merge(admin)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(front)
}

/// An answer that is not the one hoped for.
#[derive(Debug)]
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response<Body> {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

type Answer<T> = Result<T, Refusal>;

async fn loopback_only(
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response<Body> {
    if peer.ip().to_canonical().is_loopback() {
        return next.run(request).await;
    }
    Refusal(StatusCode::FORBIDDEN, "only from the machine itself".to_owned()).into_response()
}

async fn health(State(front): State<Arc<Front>>) -> Json<serde_json::Value> {
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let counters = &front.shop.counters;
    Json(json!({
        "ok": true,
        "broker_connected": counters.connected.load(Ordering::Relaxed),
        "requests_accepted": count(&counters.accepted),
        "requests_duplicate": count(&counters.duplicates),
        "requests_refused": count(&counters.refused),
        "requests_malformed": count(&counters.malformed),
        "bundles_taken_back": count(&counters.taken_back),
        "offers_refused": count(&counters.offers_refused),
        "store_errors": count(&counters.store_errors),
    }))
}

async fn jobs(State(front): State<Arc<Front>>) -> Answer<Json<serde_json::Value>> {
    let store = Arc::clone(&front.shop.store);
    let listing = blocking(move || store.list(MAX_LISTED)).await.map_err(internal)?;
    let stage = front.shop.stage();
    Ok(Json(json!(Listed { listing, stage })))
}

/// Answer of `GET /jobs`.
#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    listing: Listing,
    stage: String,
}

/// Queues a job again that failed, or whose bundles were taken back.
async fn retry(
    State(front): State<Arc<Front>>,
    Path(id): Path<i64>,
) -> Answer<Json<serde_json::Value>> {
    let store = Arc::clone(&front.shop.store);
    let queued = blocking(move || store.retry(id)).await.map_err(internal)?;
    queued.map_err(|why| Refusal(StatusCode::CONFLICT, why))?;
    front.jobs.wake();
    Ok(Json(json!({ "queued": id })))
}

async fn bundle_file(
    State(front): State<Arc<Front>>,
    Path((hex, file)): Path<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Answer<Response<Body>> {
    serve_file(&front, &hex, &file, &method, &headers).await
}

async fn report(
    State(front): State<Arc<Front>>,
    Path(hex): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Answer<Response<Body>> {
    serve_file(&front, &hex, REPORT_FILE, &method, &headers).await
}

/// Sends a file of the trust repository's metadata. Roots, snapshots and targets never change under their names; the
/// timestamp does.
async fn metadata_file(
    State(front): State<Arc<Front>>,
    Path(file): Path<String>,
) -> Answer<Response<Body>> {
    let unknown = || Refusal(StatusCode::NOT_FOUND, "no such metadata".to_owned());
    let signing = front.shop.signing.clone().ok_or_else(unknown)?;
    let path = signing.metadata(&file).ok_or_else(unknown)?;
    let place = place(&front)?;
    let limit = ::trust::Limits::default().targets_bytes;
    let sent = send_current(&path, content_type(&file), limit, place).await.map_err(internal)?;
    sent.ok_or_else(unknown)
}

/// A place among the downloads.
fn place(front: &Front) -> Answer<OwnedSemaphorePermit> {
    Arc::clone(&front.downloads).try_acquire_owned().map_err(|_| {
        let why =
            format!("{MAX_DOWNLOADS} downloads are under way (MAX_DOWNLOADS); try again later");
        Refusal(StatusCode::SERVICE_UNAVAILABLE, why)
    })
}

/// Sends a file that the bundle's own manifest lists, and no other.
async fn serve_file(
    front: &Front,
    hex: &str,
    file: &str,
    method: &Method,
    headers: &HeaderMap,
) -> Answer<Response<Body>> {
    let unknown = || Refusal(StatusCode::NOT_FOUND, "no such bundle or file".to_owned());
    let digest = Digest::from_hex(hex).map_err(|_| unknown())?;
    bundle::check_file_name(file).map_err(|_| unknown())?;
    let permit = place(front)?;
    let dir = front.shop.bundles.join(digest.hex());
    let found = tokio::task::spawn_blocking({
        let (dir, file) = (dir.clone(), file.to_owned());
        move || look_up(&dir, &file, digest)
    });
    let found = found.await.map_err(internal)?.map_err(internal)?;
    let (sha256, size) = found.ok_or_else(unknown)?;
    let path = dir.join(file);
    let served = Served {
        path: &path,
        size,
        etag: format!("\"{}\"", sha256.hex()),
        content_type: content_type(file),
    };
    let mut response = send(served, method, headers, permit).await.map_err(internal)?;
    if file == REPORT_FILE {
        // The report is a page of one file; should a model's names smuggle markup in, nothing is loaded.
        let policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'";
        response
            .headers_mut()
            .insert(header::CONTENT_SECURITY_POLICY, header::HeaderValue::from_static(policy));
    }
    Ok(response)
}

/// Digest and size of a file of a bundle; nothing where there is no such bundle or file.
fn look_up(dir: &FsPath, file: &str, digest: Digest) -> Result<Option<(Digest, u64)>, String> {
    let bytes = match std::fs::read(dir.join(MANIFEST_FILE)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{}: {error}", dir.display())),
    };
    if Digest::of(&bytes) != digest {
        return Err(format!("{}: the manifest was changed", dir.display()));
    }
    if file == MANIFEST_FILE {
        return Ok(Some((digest, bytes.len() as u64)));
    }
    let manifest =
        Manifest::from_bytes(&bytes, &Limits::default()).map_err(|error| error.to_string())?;
    Ok(manifest.files.get(file).map(|entry| (entry.sha256, entry.size_bytes)))
}

fn content_type(file: &str) -> &'static str {
    match file.rsplit_once('.') {
        Some((_, "json")) => "application/json",
        Some((_, "html")) => "text/html; charset=utf-8",
        _ => "application/octet-stream",
    }
}

/// Body of `POST /deploy`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Deploy {
    device: String,
    model: String,
    runtime: Option<wire::Runtime>,
    device_class: Option<String>,
}

/// Answer of `POST /deploy`.
#[derive(Debug, Serialize)]
struct Deployed {
    #[serde(flatten)]
    facts: OfferFacts,
    url: String,
}

/// Offers the unmodified model to a device, as a bundle that is made where needed.
async fn deploy(
    State(front): State<Arc<Front>>,
    Json(asked): Json<Deploy>,
) -> Answer<Json<Deployed>> {
    let bad = |error: wire::TopicError| Refusal(StatusCode::BAD_REQUEST, error.to_string());
    let class = asked.device_class.clone().unwrap_or_else(|| bundle::ANY.to_owned());
    wire::check_name("device", &asked.device).map_err(bad)?;
    wire::check_name("device class", &class).map_err(bad)?;
    if !front.shop.models.contains_key(&asked.model) {
        return Err(Refusal(
            StatusCode::NOT_FOUND,
            format!("model {:?} is unknown here", asked.model),
        ));
    }
    let _alone = front.deploying.lock().await;
    let runtime = asked.runtime.unwrap_or_else(|| plan::wire_runtime(front.runtime));
    let shop = Arc::clone(&front.shop);
    let facts = tokio::task::spawn_blocking(move || original(&shop, &asked, runtime, &class));
    let facts = facts.await.map_err(internal)??;
    front.shop.outbox.notify_one();
    let url = front.shop.store.offers().url(&facts);
    Ok(Json(Deployed { facts, url }))
}

fn original(
    shop: &Workshop,
    asked: &Deploy,
    runtime: wire::Runtime,
    class: &str,
) -> Answer<OfferFacts> {
    let model = shop.models.get(&asked.model).ok_or_else(|| internal("the model is unknown"))?;
    let key = format!("{}|{}|{runtime}|{class}", asked.model, model.source_digest);
    let known = shop.store.original(&key, &asked.model, &asked.device).map_err(internal)?;
    let facts = match known {
        Ok(facts) => {
            // The owner may have taken it out of the trust repository.
            let opened = bundle::Bundle::open(&shop.bundles.join(facts.hex()), &Limits::default());
            shop.sign(&opened.map_err(internal)?).map_err(unsigned)?;
            facts
        }
        Err(sequence) => {
            shop.make_room().map_err(internal)?;
            let job = original_job(shop, asked, runtime, class, sequence, model);
            let make = || shop.compressor.bundle_original(&job, shop);
            let made = Workshop::make(&job.out_dir, make).map_err(internal)?;
            let facts = shop.take_in(made, runtime).map_err(internal)?;
            let kept = shop.store.keep_original(&key, &facts);
            return offered(shop, &asked.device, facts, kept).map_err(internal);
        }
    };
    offered(shop, &asked.device, facts, Ok(())).map_err(internal)
}

fn unsigned(why: Unsigned) -> Refusal {
    match why {
        Unsigned::TakenBack(reason) => Refusal(StatusCode::CONFLICT, reason),
        Unsigned::Failed(reason) => internal(reason),
    }
}

/// Posts the offer of a bundle, if what had to be done before it was.
fn offered(
    shop: &Workshop,
    device: &str,
    facts: OfferFacts,
    before: Result<(), StoreError>,
) -> Result<OfferFacts, String> {
    let posted = before.and_then(|()| shop.store.offer(device, &facts));
    shop.settle(&facts);
    posted.map_err(|error| error.to_string())?;
    Ok(facts)
}

fn original_job(
    shop: &Workshop,
    asked: &Deploy,
    runtime: wire::Runtime,
    class: &str,
    sequence: u64,
    model: &plan::Model,
) -> OriginalJob {
    let mut engine = runtime::EngineOptions::new(plan::engine_kind(runtime));
    engine.ort_library.clone_from(&shop.ort_library);
    OriginalJob {
        name: asked.model.clone(),
        source: model.files.source.clone(),
        heldout: model.files.heldout.clone(),
        engine,
        device_class: class.to_owned(),
        sequence,
        version: format!("{sequence}-original"),
        out_dir: work_dir(shop, sequence),
        work_dir: Some(shop.work.clone()),
        seed: shop.seed,
    }
}

fn work_dir(shop: &Workshop, sequence: u64) -> PathBuf {
    shop.work.join(format!("original-{sequence}"))
}

fn internal(error: impl std::fmt::Display) -> Refusal {
    tracing::error!(%error, "request not answered");
    Refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::extract::connect_info::MockConnectInfo;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// The status line that a peer of this address gets.
    async fn status_for(peer: &str) -> String {
        let peer: SocketAddr = peer.parse().unwrap();
        let app = Router::new()
            .route("/", get(|| async { "inside" }))
            .route_layer(middleware::from_fn(loopback_only))
            .layer(MockConnectInfo(peer));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, app).await });
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        server.abort();
        answer.lines().next().unwrap().to_owned()
    }

    #[tokio::test]
    async fn admin_routes_answer_on_the_loopback_interface_only() {
        for peer in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(status_for(peer).await.contains("200"), "{peer}");
        }
        for peer in ["10.0.0.1:1", "0.0.0.0:1", "[::ffff:10.0.0.1]:1", "[2001:db8::1]:1"] {
            assert!(status_for(peer).await.contains("403"), "{peer}");
        }
    }
}
