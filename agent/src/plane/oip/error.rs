//! An error as the protocol has it: a status and `{"error": "..."}`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use serde_json::json;

use crate::plane::instance::JobError;

/// How long a client that was turned away had better wait.
const RETRY_AFTER_SECONDS: &str = "1";

/// Why a request was not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OipError {
    status: StatusCode,
    message: String,
}

impl OipError {
    /// An error with a status of its own.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// The request cannot be understood or does not fit the model.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// What was asked for does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// It would be served at another time.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// The body is larger than allowed.
    #[must_use]
    pub fn too_large(max_bytes: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body exceeds max_request_bytes ({max_bytes})"),
        )
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What the client reads.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    fn is_temporary(&self) -> bool {
        matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
    }
}

impl From<JobError> for OipError {
    fn from(error: JobError) -> Self {
        let status = match error {
            JobError::Input(_) => StatusCode::BAD_REQUEST,
            JobError::Engine(_) => StatusCode::INTERNAL_SERVER_ERROR,
            JobError::QueueFull(_) => StatusCode::TOO_MANY_REQUESTS,
            JobError::Deadline(_) => StatusCode::GATEWAY_TIMEOUT,
            JobError::WorkerDied(_) | JobError::Down(_) | JobError::Retired => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        };
        Self::new(status, error.to_string())
    }
}

impl IntoResponse for OipError {
    fn into_response(self) -> Response {
        let temporary = self.is_temporary();
        let mut response = (self.status, Json(json!({ "error": self.message }))).into_response();
        if temporary {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
        }
        response
    }
}
