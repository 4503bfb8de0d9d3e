//! The Open Inference Protocol, version 2, over HTTP.
//!
//! JSON tensors and the binary extension (`Inference-Header-Content-Length`), compressed or not, and
//! of Triton's extensions what its clients ask for. Not served: shared memory, classification, and
//! loading or unloading by request; each is refused by name. Beside it `/metrics`, for a scraper.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use engine::IoSpec;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Value, json};
use tokio::time::timeout;

use self::coding::Coding;
use self::error::OipError;
use self::request::InferRequest;
use super::buffers::{NoRoom, Room};
use super::instance::{Answer, Instance, JobError, Traffic};
use super::metrics;
use super::protocol::NamedTensors;
use super::registry::Registry;
use super::strings;

mod coding;
pub mod element;
pub mod error;
mod extensions;
#[doc(hidden)]
pub mod fuzzing;
pub mod request;
pub mod response;

/// The header that gives the length of the JSON before the binary tensors.
pub const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// Bodies above this are decoded off the threads that serve the network.
const DECODE_INLINE_BYTES: usize = 256 << 10;
/// How often a request follows a model that is replaced while it arrives.
const MAX_HANDOVERS: usize = 8;

/// The protocol's routes.
pub(super) fn router(registry: Arc<Registry>) -> Router {
    let model = Router::new().route("/", get(model_metadata)).route("/ready", get(model_ready));
    let model = extensions::of_model(model);
    extensions::of_server(Router::new())
        .route("/v2", get(server_metadata))
        .route("/v2/", get(server_metadata))
        .route("/metrics", get(metrics))
        .route("/v2/health/live", get(live))
        .route("/v2/health/ready", get(ready))
        // Not nested: taking a prefix off costs each request a new URI.
        .route("/v2/models/{name}/infer", post(infer))
        .route("/v2/models/{name}/versions/{version}/infer", post(infer))
        .nest("/v2/models/{name}", model.clone())
        .nest("/v2/models/{name}/versions/{version}", model)
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .with_state(registry)
}

/// The model that a path names.
#[derive(Debug, serde::Deserialize)]
struct Target {
    name: String,
    version: Option<String>,
}

impl Target {
    fn resolve(&self, registry: &Registry) -> Result<Arc<Instance>, OipError> {
        let instance =
            registry.active(&self.name).ok_or_else(|| unknown_model(registry, &self.name))?;
        let served = &instance.identity.version;
        match &self.version {
            Some(wanted) if wanted != served => Err(OipError::not_found(format!(
                "model `{}` has no version `{wanted}`; `{served}` is served",
                self.name
            ))),
            _ => Ok(instance),
        }
    }
}

fn unknown_model(registry: &Registry, name: &str) -> OipError {
    if registry.is_draining() {
        return OipError::unavailable("the server is shutting down");
    }
    let served = registry.all_active();
    if served.is_empty() {
        return OipError::unavailable(format!(
            "no model is being served yet, `{name}` was asked for"
        ));
    }
    let names: Vec<String> = served.iter().map(|i| format!("`{}`", i.identity.model)).collect();
    OipError::not_found(format!("there is no model `{name}`; {} is served", names.join(", ")))
}

async fn server_metadata() -> Json<Value> {
    let extensions: Vec<&str> =
        ["binary_tensor_data"].into_iter().chain(extensions::NAMES).collect();
    Json(json!({
        "name": "espalier-agent",
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": extensions,
    }))
}

async fn metrics(State(registry): State<Arc<Registry>>) -> Response {
    let kind = HeaderValue::from_static(metrics::CONTENT_TYPE);
    ([(header::CONTENT_TYPE, kind)], metrics::render(&registry)).into_response()
}

async fn live() -> Json<Value> {
    Json(json!({ "live": true }))
}

async fn ready(State(registry): State<Arc<Registry>>) -> Response {
    let active = registry.all_active();
    let all_up = !active.is_empty() && active.iter().all(|i| i.down().is_none());
    readiness(all_up && !registry.is_draining(), json!({}))
}

async fn model_ready(
    State(registry): State<Arc<Registry>>,
    Path(target): Path<Target>,
) -> Result<Response, OipError> {
    let instance = target.resolve(&registry)?;
    let ready = instance.down().is_none() && !registry.is_draining();
    Ok(readiness(ready, json!({ "name": instance.identity.model })))
}

fn readiness(ready: bool, mut body: Value) -> Response {
    body["ready"] = ready.into();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(body)).into_response()
}

async fn model_metadata(
    State(registry): State<Arc<Registry>>,
    Path(target): Path<Target>,
) -> Result<Json<Value>, OipError> {
    Ok(Json(metadata(&*target.resolve(&registry)?)))
}

fn metadata(instance: &Instance) -> Value {
    let interface = &instance.interface;
    json!({
        "name": instance.identity.model,
        "versions": [instance.identity.version],
        "platform": platform(&interface.engine_version),
        "inputs": response::ports(&interface.inputs),
        "outputs": response::ports(&interface.outputs),
    })
}

/// The dimensions of a tensor, -1 where they are free.
fn dims(spec: &IoSpec) -> Vec<i64> {
    let dims = spec.dims.iter();
    dims.map(|dim| dim.and_then(|d| i64::try_from(d).ok()).unwrap_or(-1)).collect()
}

/// As `onnx_tract` or `onnx_ort`.
fn platform(engine_version: &str) -> String {
    let engine = engine_version.split(' ').next().unwrap_or_default();
    format!("onnx_{engine}")
}

async fn infer(
    State(registry): State<Arc<Registry>>,
    Path(target): Path<Target>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, OipError> {
    let instance = target.resolve(&registry)?;
    if registry.is_draining() {
        return Err(OipError::unavailable("the server is shutting down"));
    }
    let cfg = registry.config();
    let header_length = check_headers(&headers, cfg.max_request_bytes)?;
    let coding = Coding::of_request(&headers)?;
    let size = announced_bytes(&headers)?.unwrap_or(cfg.max_request_bytes);
    let mut room = registry.buffers.take(size).map_err(|error| refused(error, &instance))?;
    let mut body = read_body(body, cfg.max_request_bytes, cfg.request_deadline).await?;
    room.shrink(body.len());
    if let Some(coding) = coding {
        (body, room) = unpack(&registry, &instance, body, coding).await?;
    }
    let (mut request, _room) = decode(&registry, &instance, body, header_length).await?;
    // The body itself is gone.
    drop(room);
    let limit = request.timeout().map_or(cfg.request_deadline, |t| t.min(cfg.request_deadline));
    let inputs = Arc::new(std::mem::take(&mut request.inputs));
    let (instance, answer) = ask(&registry, &target, &request, inputs, limit).await?;
    let size: usize = answer.outputs.iter().map(|(_, t)| strings::byte_len(t)).sum();
    let coding = Coding::of_answer(&headers);
    let encoded = off_thread(size, move || {
        let encoded = response::encode(&request, &instance.identity, &answer);
        encoded.map(|encoded| encoded.compressed(coding))
    });
    Ok(encoded.await??.into_response())
}

fn refused(error: NoRoom, instance: &Instance) -> OipError {
    let status = match error {
        NoRoom::Full { .. } => {
            instance.stats.rejected();
            StatusCode::TOO_MANY_REQUESTS
        }
        NoRoom::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
    };
    OipError::new(status, error.to_string())
}

/// A compressed body as it was, and the room that it takes: of what is too large, nothing is held.
async fn unpack(
    registry: &Registry,
    instance: &Arc<Instance>,
    body: Bytes,
    coding: Coding,
) -> Result<(Bytes, Room), OipError> {
    let (buffers, instance) = (registry.buffers.clone(), instance.clone());
    let max_bytes = registry.config().max_request_bytes;
    // However short it is, it may unpack to the most that is allowed.
    off_thread(usize::MAX, move || {
        let length = coding.plain_length(&body, max_bytes)?;
        let room = buffers.take_beside(body.len(), length);
        let room = room.map_err(|error| refused(error, &instance))?;
        Ok((coding.decode(&body, length)?, room))
    })
    .await?
}

/// The request, and the room that its tensors take.
async fn decode(
    registry: &Registry,
    instance: &Arc<Instance>,
    body: Bytes,
    header_length: Option<usize>,
) -> Result<(InferRequest, Option<Room>), OipError> {
    let (buffers, instance) = (registry.buffers.clone(), instance.clone());
    off_thread(body.len(), move || {
        let mut room = None;
        let request = InferRequest::decode_within(&body, header_length, |bytes| {
            let taken = buffers.take_beside(body.len(), bytes);
            room = Some(taken.map_err(|error| refused(error, &instance))?);
            Ok(())
        })?;
        Ok((request, room))
    })
    .await?
}

/// Asks the active model; where that is replaced between its being looked up and the request being
/// queued, asks its successor.
async fn ask(
    registry: &Registry,
    target: &Target,
    request: &InferRequest,
    inputs: Arc<NamedTensors>,
    limit: Duration,
) -> Result<(Arc<Instance>, Answer), OipError> {
    for _ in 0..MAX_HANDOVERS {
        let instance = target.resolve(registry)?;
        request.check(&inputs, &instance.interface)?;
        let answer = instance.submit(inputs.clone(), Traffic::Live, limit).await;
        match answer {
            Err(JobError::Retired) => {}
            Err(error) => return Err(error.into()),
            Ok(answer) => return Ok((instance, answer)),
        }
    }
    Err(OipError::unavailable("the model is being replaced"))
}

/// The length of the JSON part where the binary extension is used.
fn check_headers(headers: &HeaderMap, max_bytes: usize) -> Result<Option<usize>, OipError> {
    if announced_bytes(headers)?.is_some_and(|length| length > max_bytes) {
        return Err(OipError::too_large(max_bytes));
    }
    length_header(headers, &HEADER_LENGTH)
}

/// `None` for a body in chunks, whose length its end will tell.
fn announced_bytes(headers: &HeaderMap) -> Result<Option<usize>, OipError> {
    length_header(headers, &header::CONTENT_LENGTH)
}

fn length_header(headers: &HeaderMap, name: &HeaderName) -> Result<Option<usize>, OipError> {
    let Some(value) = headers.get(name) else {
        return Ok(None);
    };
    value
        .to_str()
        .ok()
        .and_then(|text| text.parse().ok())
        .map(Some)
        .ok_or_else(|| OipError::bad(format!("header {name} is not a length: {value:?}")))
}

async fn read_body(body: Body, max_bytes: usize, limit: Duration) -> Result<Bytes, OipError> {
    let read = timeout(limit, Limited::new(body, max_bytes).collect()).await;
    match read {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(OipError::too_large(max_bytes)),
        Ok(Err(error)) => Err(OipError::bad(format!("the body did not arrive: {error}"))),
        Err(_) => Err(OipError::new(
            StatusCode::REQUEST_TIMEOUT,
            format!("the body did not arrive within {} ms", limit.as_millis()),
        )),
    }
}

/// Large conversions must not hold up the network.
async fn off_thread<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, OipError> {
    if bytes <= DECODE_INLINE_BYTES {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| OipError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

async fn unknown_route() -> OipError {
    OipError::not_found("no such endpoint of the Open Inference Protocol is served here")
}

async fn wrong_method() -> OipError {
    OipError::new(StatusCode::METHOD_NOT_ALLOWED, "this endpoint does not take this method")
}
