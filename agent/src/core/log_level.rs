//! What a command makes of the log, for a while.

use serde_json::{Value, json};
use wire::LogLevelArgs;

use super::Core;
use super::effect::Effect;
use super::event::Millis;
use super::status::LogStatus;

/// A commanded log level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LogLevel {
    /// What is logged.
    pub(super) level: String,
    until: Millis,
}

impl LogLevel {
    pub(super) fn status(&self, now: Millis) -> LogStatus {
        LogStatus { level: self.level.clone(), left_ms: self.until.since(now) }
    }
}

impl Core {
    pub(super) fn set_log_level(&mut self, now: Millis, args: &Value) -> Result<Value, String> {
        let args = LogLevelArgs::read(args)?;
        let Some(level) = args.level else {
            self.reset_log_level();
            return Ok(json!({ "level": null }));
        };
        let answer = json!({ "level": level, "for_ms": args.for_ms });
        self.emit(Effect::SetLogLevel(Some(level.clone())));
        self.log_level = Some(LogLevel { level, until: now.plus(args.for_ms) });
        Ok(answer)
    }

    pub(super) fn tick_log_level(&mut self, now: Millis) {
        if self.log_level.as_ref().is_some_and(|own| now >= own.until) {
            self.reset_log_level();
        }
    }

    fn reset_log_level(&mut self) {
        self.log_level = None;
        self.emit(Effect::SetLogLevel(None));
    }
}
