//! What clients of Triton ask for beside inference: a model's configuration, the index of models, statistics.
//!
//! Nothing here changes what is served: bundles do, which the agent installs by itself.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Json;
use axum::routing::{get, post};
use engine::{ElementType, IoSpec};
use serde::Deserialize;
use serde_json::{Value, json};
use wire::Histogram;

use super::error::OipError;
use super::{Target, dims, metadata, platform, read_body};
use crate::plane::instance::Instance;
use crate::plane::registry::Registry;

/// Their names in the server's metadata.
pub(super) const NAMES: [&str; 3] = ["model_configuration", "model_repository", "statistics"];

/// Of one model.
pub(super) fn of_model(model: Router<Arc<Registry>>) -> Router<Arc<Registry>> {
    model.route("/config", get(configuration)).route("/stats", get(statistics))
}

/// Of the server.
pub(super) fn of_server(server: Router<Arc<Registry>>) -> Router<Arc<Registry>> {
    server
        .route("/v2/models/stats", get(all_statistics))
        .route("/v2/repository/index", post(index))
        .route("/v2/repository/models/{name}/load", post(not_by_request))
        .route("/v2/repository/models/{name}/unload", post(not_by_request))
}

async fn configuration(
    State(registry): State<Arc<Registry>>,
    Path(target): Path<Target>,
) -> Result<Json<Value>, OipError> {
    let instance = target.resolve(&registry)?;
    let interface = &instance.interface;
    // Requests are not merged, so that the batch is an axis like any other.
    Ok(Json(json!({
        "name": instance.identity.model,
        "platform": platform(&interface.engine_version),
        "backend": "onnx",
        "version_policy": { "latest": { "num_versions": 1 } },
        "max_batch_size": 0,
        "input": ports(&interface.inputs),
        "output": ports(&interface.outputs),
        "instance_group": [{ "name": instance.identity.model, "kind": "KIND_CPU", "count": 1 }],
    })))
}

fn ports(specs: &[IoSpec]) -> Vec<Value> {
    let port = |spec: &IoSpec| json!({ "name": spec.name, "data_type": type_name(spec.dtype), "dims": dims(spec) });
    specs.iter().map(port).collect()
}

/// As a model configuration has it.
fn type_name(dtype: ElementType) -> String {
    match dtype {
        ElementType::String => "TYPE_STRING".to_owned(),
        other => format!("TYPE_{}", other.oip_name()),
    }
}

/// What a client may ask of the index.
#[derive(Debug, Default, Deserialize)]
struct IndexRequest {
    /// Whether only models that are ready are wanted.
    #[serde(default)]
    ready: bool,
}

/// The longest request for the index.
const MAX_INDEX_BYTES: usize = 4 << 10;

async fn index(
    State(registry): State<Arc<Registry>>,
    body: Body,
) -> Result<Json<Vec<Value>>, OipError> {
    let body = read_body(body, MAX_INDEX_BYTES, registry.config().request_deadline).await?;
    let wanted: IndexRequest = if body.iter().all(u8::is_ascii_whitespace) {
        IndexRequest::default()
    } else {
        serde_json::from_slice(&body)
            .map_err(|e| OipError::bad(format!("the request is not a valid JSON request: {e}")))?
    };
    let entry = |instance: &Arc<Instance>| {
        let down = instance.down();
        (!wanted.ready || down.is_none()).then(|| {
            json!({
                "name": instance.identity.model,
                "version": instance.identity.version,
                "state": if down.is_none() { "READY" } else { "UNAVAILABLE" },
                "reason": down.unwrap_or_default(),
            })
        })
    };
    Ok(Json(registry.all_active().iter().filter_map(entry).collect()))
}

async fn not_by_request(Path(name): Path<String>) -> OipError {
    OipError::new(
        StatusCode::FORBIDDEN,
        format!(
            "model `{name}` is neither loaded nor unloaded by request: the agent installs bundles"
        ),
    )
}

async fn statistics(
    State(registry): State<Arc<Registry>>,
    Path(target): Path<Target>,
) -> Result<Json<Value>, OipError> {
    let instance = target.resolve(&registry)?;
    Ok(Json(json!({ "model_stats": [of_instance(&instance)] })))
}

/// Of all models; but where one is named `stats`, its metadata, which the protocol itself has at this address.
async fn all_statistics(State(registry): State<Arc<Registry>>) -> Json<Value> {
    if let Some(instance) = registry.active("stats") {
        return Json(metadata(&instance));
    }
    let stats: Vec<Value> = registry.all_active().iter().map(|i| of_instance(i)).collect();
    Json(json!({ "model_stats": stats }))
}

/// Since the instance was loaded. How long failed requests took is not measured.
fn of_instance(instance: &Instance) -> Value {
    let totals = instance.stats.totals();
    let (compute, queue) = (&totals.compute, &totals.queue);
    let none = json!({ "count": 0, "ns": 0 });
    let whole = compute.sum().saturating_add(queue.sum()).saturating_mul(1000);
    json!({
        "name": instance.identity.model,
        "version": instance.identity.version,
        "inference_count": compute.count(),
        "execution_count": compute.count(),
        "inference_stats": {
            "success": { "count": compute.count(), "ns": whole },
            "fail": { "count": totals.errors, "ns": 0 },
            "queue": duration(queue),
            "compute_input": none,
            "compute_infer": duration(compute),
            "compute_output": none,
            "cache_hit": none,
            "cache_miss": none,
        },
        "batch_stats": [],
    })
}

fn duration(times: &Histogram) -> Value {
    json!({ "count": times.count(), "ns": times.sum().saturating_mul(1000) })
}
