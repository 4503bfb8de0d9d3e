//! The one error type of engines.

use std::error::Error as StdError;
use std::fmt;

/// What part of the work failed, so that a caller can decide without reading the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The engine itself is not there: not compiled in, or its library is missing or unusable.
    Library,
    /// The model could not be read or prepared.
    Load,
    /// The model, type or option is sound but this engine does not support it.
    Unsupported,
    /// The tensors given do not fit the model.
    Input,
    /// The engine failed while it computed.
    Run,
    /// A named limit was reached.
    Limit,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Library => "library",
            Self::Load => "load",
            Self::Unsupported => "unsupported",
            Self::Input => "input",
            Self::Run => "run",
            Self::Limit => "limit",
        })
    }
}

/// Why an engine could not be opened, a model not loaded, or a run not done.
///
/// The text is complete: it carries the causes the engine gave, so that printing the error with
/// `{}` loses nothing. [`StdError::source`] stays empty for the same reason: a chain printer would
/// repeat the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineError {
    kind: ErrorKind,
    message: String,
}

impl EngineError {
    /// An error of `kind` that reads `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// An error of `kind` that reads `message`, a colon, and the whole chain of causes.
    pub fn caused(
        kind: ErrorKind,
        message: impl fmt::Display,
        cause: &(dyn StdError + 'static),
    ) -> Self {
        Self::new(kind, format!("{message}: {}", chain(cause)))
    }

    /// What part of the work failed.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The engine itself is not there.
    pub fn library(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Library, message)
    }

    /// The model could not be read or prepared.
    pub fn load(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Load, message)
    }

    /// This engine does not support it.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// What was given does not fit.
    pub fn input(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Input, message)
    }

    /// The engine failed while it computed.
    pub fn run(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Run, message)
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for EngineError {}

/// The texts of `error` and its sources, outermost first, leaving out a cause that the text before
/// it already holds.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Runs `work`, and turns a panic inside the engine into an error of `kind`.
///
/// The panic hook still prints; only the unwinding stops here. A session that panicked is left
/// unspecified by its engine, so the callers drop or refuse it afterwards.
///
/// # Errors
/// What `work` says, or its panic.
pub fn guard<T>(
    kind: ErrorKind,
    what: impl fmt::Display,
    work: impl FnOnce() -> Result<T, EngineError>,
) -> Result<T, EngineError> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(result) => result,
        Err(payload) => Err(EngineError::new(
            kind,
            format!("{what}: the engine panicked: {}", panic_text(&*payload)),
        )),
    }
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] Inner);
    #[derive(Debug, thiserror::Error)]
    #[error("inner cause")]
    struct Inner;

    #[test]
    fn the_text_holds_every_cause_once() {
        let error = EngineError::caused(ErrorKind::Library, "cannot open", &Outer(Inner));
        assert_eq!(error.to_string(), "cannot open: outer: inner cause");
        assert_eq!(error.kind(), ErrorKind::Library);
    }

    #[test]
    fn a_panic_becomes_an_error_with_its_message() {
        let error =
            guard::<()>(ErrorKind::Run, "run", || panic!("index {} out of range", 7)).unwrap_err();
        assert!(error.to_string().contains("index 7 out of range"), "{error}");
        assert_eq!(error.kind(), ErrorKind::Run);
    }
}
