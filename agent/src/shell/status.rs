//! The status socket: whoever connects is told everything, as one JSON object.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

use super::state_dir::PathError;

/// How long the agent may take to answer, and the asker to listen.
const PATIENCE: Duration = Duration::from_secs(5);
/// The largest status read.
const MAX_BYTES: u64 = 16 << 20;

/// Somebody asks; the answer goes into the channel.
pub type Question = oneshot::Sender<Value>;

/// Listens at `path` and passes questions on.
///
/// # Errors
/// The socket cannot be made.
pub fn listen(path: &Path, questions: mpsc::Sender<Question>) -> Result<(), PathError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(PathError::at("remove", path)(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(PathError::at("listen at", path))?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let questions = questions.clone();
            tokio::spawn(tokio::time::timeout(PATIENCE, answer(stream, questions)));
        }
    });
    Ok(())
}

async fn answer(mut stream: tokio::net::UnixStream, questions: mpsc::Sender<Question>) {
    let (question, answer) = oneshot::channel();
    if questions.send(question).await.is_err() {
        return;
    }
    if let Ok(status) = answer.await {
        let _ = stream.write_all(status.to_string().as_bytes()).await;
        let _ = stream.shutdown().await;
    }
}

/// Asks a running agent.
///
/// # Errors
/// No agent runs there, or it does not answer in time.
pub fn ask(path: &Path) -> Result<Value, String> {
    let fail = |what: &str, e: &dyn std::fmt::Display| {
        format!(
            "cannot {what} {}: {e} (is the agent running with this state directory?)",
            path.display()
        )
    };
    let stream = UnixStream::connect(path).map_err(|e| fail("connect to", &e))?;
    let limited = stream.set_read_timeout(Some(PATIENCE));
    limited.map_err(|e| fail("ask", &e))?;
    let mut text = String::new();
    let read = stream.take(MAX_BYTES).read_to_string(&mut text);
    read.map_err(|e| fail("read", &e))?;
    serde_json::from_str(&text).map_err(|e| fail("understand", &e))
}

/// The status for people.
#[must_use]
pub fn render(status: &Value) -> String {
    let core = &status["core"];
    let mut lines = vec![
        format!(
            "{} is {}{}",
            text(&core["device"]),
            text(&core["state"]),
            because(&core["reason"])
        ),
        match core["connected"].as_bool() {
            Some(true) => "broker: connected".to_owned(),
            _ => format!("broker: not connected{}", because(&core["offline_reason"])),
        },
        format!(
            "serving at: http {}, unix {}",
            text(&status["endpoints"]["http"]),
            text(&status["endpoints"]["unix"])
        ),
        format!(
            "spool: {} messages, {} of {} bytes, {} bytes in memory",
            status["spool"]["records"],
            status["spool"]["bytes"],
            status["spool"]["max_bytes"],
            status["spool"]["memory_bytes"]
        ),
        format!(
            "disk: {} bytes written in the last 24 hours or since the start",
            text(&status["disk"]["written_day_bytes"])
        ),
    ];
    if let Some(level) = core["log_level"].as_object() {
        let (left, level) = (&level["left_ms"], text(&level["level"]));
        lines.push(format!("log level, by command: {level} for {left} ms more"));
    }
    if let Some(own) = core["measuring"].as_object() {
        let (model, digest, ms) = (text(&own["model"]), text(&own["digest"]), &own["elapsed_ms"]);
        lines.push(format!(
            "measuring {model} {digest} for {ms} ms, by command {}",
            text(&own["id"])
        ));
    }
    let models = core["models"].as_array().cloned().unwrap_or_default();
    if models.is_empty() {
        lines.push("no models".to_owned());
    }
    models.iter().for_each(|model| render_model(model, &mut lines));
    lines.join("\n")
}

fn render_model(model: &Value, lines: &mut Vec<String>) {
    lines.push(format!(
        "model {}: {}{}",
        text(&model["name"]),
        text(&model["phase"]),
        because(&model["reason"])
    ));
    for (what, key) in [("active", "active"), ("previous", "previous")] {
        if let Some(bundle) = model[key].as_object() {
            lines.push(format!(
                "  {what}: {} (sequence {}) {}",
                text(&bundle["version"]),
                bundle["sequence"],
                text(&bundle["digest"])
            ));
        }
    }
    if let Some(install) = model["install"].as_object() {
        lines.push(format!(
            "  installing sequence {}: {} for {} ms{}",
            install["sequence"],
            text(&install["state"]),
            install["elapsed_ms"],
            because(&install["waiting"])
        ));
    }
    for broken in model["broken"].as_array().into_iter().flatten() {
        lines.push(format!("  over budget: {}", text(broken)));
    }
    for request in model["requests"].as_array().into_iter().flatten() {
        lines.push(format!("  asked for a smaller model: {}", text(request)));
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn because(reason: &Value) -> String {
    reason.as_str().map_or_else(String::new, |reason| format!(" ({reason})"))
}
