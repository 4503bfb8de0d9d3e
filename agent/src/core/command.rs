//! Commands: done once, answered always, refused when late, and every one of them told as an event.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use wire::{BudgetKind, Budgets, Command, CommandEvent, CommandKind, CommandOutcome, Header};

use super::effect::Report;
use super::event::Millis;
use super::record::Record;
use super::report::blank;
use super::{Core, MAX_SEEN_COMMANDS};

/// The most bytes of a command's arguments, or of a text in it, that its event repeats.
const MAX_AUDIT_BYTES: usize = 1024;

/// What obeying brought.
enum Answer {
    /// This, at once.
    Done(Value),
    /// Nothing yet: the result follows.
    Later,
}

impl Core {
    pub(super) fn on_command(&mut self, now: Millis, command: &Command, unix_ms: Option<u64>) {
        if self.is_known(&command.id) {
            return;
        }
        let answer = timely(command, unix_ms).and_then(|()| self.obey(now, command, unix_ms));
        match answer {
            Ok(Answer::Later) => {}
            Ok(Answer::Done(data)) => {
                self.audit(command, CommandOutcome::Done, None, 0);
                self.report_result(&command.id, Ok(data));
            }
            Err(reason) => {
                self.audit(command, CommandOutcome::Refused, Some(reason.clone()), 0);
                self.report_result(&command.id, Err(reason));
            }
        }
    }

    /// What came where a command should be is answered, too.
    pub(super) fn on_bad_command(&mut self, kind: CommandKind, id: &str, reason: &str) {
        if self.is_known(id) {
            return;
        }
        let command = Command {
            header: Header::of::<Command>(0, 0, ""),
            id: id.to_owned(),
            kind,
            expires_ms: 0,
            args: Value::Null,
        };
        let mut reason = reason.to_owned();
        shorten(&mut reason, MAX_AUDIT_BYTES);
        self.audit(&command, CommandOutcome::Refused, Some(reason.clone()), 0);
        self.report_result(id, Err(reason));
    }

    /// Whether a command was seen before; from now on it was.
    fn is_known(&mut self, id: &str) -> bool {
        if self.commands.iter().any(|known| known == id) {
            return true;
        }
        self.commands.push_back(id.to_owned());
        if self.commands.len() > MAX_SEEN_COMMANDS {
            self.commands.pop_front();
        }
        false
    }

    /// Tells who commanded what, and what became of it.
    pub(super) fn audit(
        &mut self,
        command: &Command,
        outcome: CommandOutcome,
        reason: Option<String>,
        elapsed_ms: u64,
    ) {
        let mut args_text = match &command.args {
            Value::Null => String::new(),
            args => args.to_string(),
        };
        shorten(&mut args_text, MAX_AUDIT_BYTES);
        let mut sender = command.header.boot_id.clone();
        shorten(&mut sender, MAX_AUDIT_BYTES);
        self.publish(Report::Command(CommandEvent {
            header: blank::<CommandEvent>(),
            id: command.id.clone(),
            kind: command.kind,
            outcome,
            reason,
            topic: format!("dn/cmd/{}/{}", command.kind, command.id),
            sender,
            sent_ts: command.header.ts,
            expires_ms: command.expires_ms,
            args_text,
            elapsed_ms,
        }));
    }

    fn obey(
        &mut self,
        now: Millis,
        command: &Command,
        unix_ms: Option<u64>,
    ) -> Result<Answer, String> {
        let data = match command.kind {
            CommandKind::Ping => Ok(json!({ "pong": true })),
            CommandKind::Snapshot => {
                serde_json::to_value(self.status(now)).map_err(|e| e.to_string())
            }
            CommandKind::SetBudget => self.set_budget(&command.args),
            CommandKind::Rollback => self.command_rollback(now, &command.args),
            CommandKind::LogLevel => self.set_log_level(now, &command.args),
            CommandKind::Measure => {
                self.measure(now, command, unix_ms)?;
                return Ok(Answer::Later);
            }
        };
        data.map(Answer::Done)
    }

    fn set_budget(&mut self, args: &Value) -> Result<Value, String> {
        let model = model_of(args)?;
        let reset = args.get("reset").and_then(Value::as_bool).unwrap_or(false);
        if !self.durable.models.contains_key(&model) && !self.settings.budgets.contains_key(&model)
        {
            return Err(format!("there is no model {model} on this device"));
        }
        let before = self.budgets(&model);
        let budgets = if reset { None } else { Some(overlaid(&before, args)?) };
        self.record(Record::BudgetsSet { model: model.clone(), budgets });
        self.budgets_changed(&model, &before);
        serde_json::to_value(self.budgets(&model)).map_err(|e| e.to_string())
    }

    /// A changed limit makes what its gauge has seen, and what was asked for because of it, void.
    fn budgets_changed(&mut self, model: &str, before: &Budgets) {
        let after = self.budgets(model);
        for budget in BudgetKind::ALL {
            if before.limit(*budget) == after.limit(*budget) {
                continue;
            }
            self.live(model).gauges.remove(budget.as_str());
            if *budget == BudgetKind::Drift {
                self.live(model).forget_drift();
            }
            self.close_request(model, *budget, "the budget was changed");
        }
    }

    pub(super) fn on_budgets_configured(&mut self, budgets: BTreeMap<String, Budgets>) {
        let models: Vec<String> = self.live.keys().cloned().collect();
        let before: Vec<Budgets> = models.iter().map(|model| self.budgets(model)).collect();
        self.settings.budgets = budgets;
        for (model, before) in models.iter().zip(&before) {
            self.budgets_changed(model, before);
        }
    }

    fn command_rollback(&mut self, now: Millis, args: &Value) -> Result<Value, String> {
        let model = model_of(args)?;
        let durable = self.durable.models.get(&model);
        let durable = durable.ok_or_else(|| format!("there is no model {model} on this device"))?;
        if durable.install.is_some() {
            return Err(format!("an install of {model} is under way; try again when it is over"));
        }
        let (Some(active), Some(previous)) = (&durable.active, &durable.previous) else {
            return Err(format!("there is no earlier bundle of {model} to go back to"));
        };
        let (from, to) = (active.digest.clone(), previous.digest.clone());
        self.stop_measuring(now, "a rollback was commanded, which goes first");
        self.revert(&model, &from, "a rollback was commanded", true);
        Ok(json!({ "model": model, "from": from, "to": to }))
    }
}

/// Refuses a command that came too late, or whose lateness cannot be known though it matters.
fn timely(command: &Command, unix_ms: Option<u64>) -> Result<(), String> {
    let changes = match command.kind {
        CommandKind::Rollback | CommandKind::SetBudget => true,
        CommandKind::Measure | CommandKind::LogLevel => true,
        CommandKind::Ping | CommandKind::Snapshot => false,
    };
    match unix_ms {
        _ if command.expires_ms == 0 => Ok(()),
        Some(now) if now > command.expires_ms => {
            Err(format!("expired {} ms before it arrived", now - command.expires_ms))
        }
        None if changes => {
            Err("the device's clock is not set, so the command's expiry cannot be checked".into())
        }
        _ => Ok(()),
    }
}

/// Cuts a text off behind so many bytes, or up to three earlier, where a character ends.
pub(super) fn shorten(text: &mut String, bytes: usize) {
    text.truncate(text.floor_char_boundary(bytes));
}

fn model_of(args: &Value) -> Result<String, String> {
    let model = args.get("model").and_then(Value::as_str);
    let model = model.ok_or("args.model must name the model")?;
    wire::check_name("model", model).map_err(|e| e.to_string())?;
    Ok(model.to_owned())
}

/// `before` with the budgets that `args` names; null takes one away.
fn overlaid(before: &Budgets, args: &Value) -> Result<Budgets, String> {
    let Value::Object(args) = args else {
        return Err("args must be an object".into());
    };
    let mut merged = serde_json::to_value(before).map_err(|e| e.to_string())?;
    for (key, value) in args.iter().filter(|(key, _)| *key != "model" && *key != "reset") {
        match merged.get_mut(key) {
            Some(slot) => *slot = value.clone(),
            None => return Err(format!("args.{key} is no budget")),
        }
    }
    let budgets: Budgets = serde_json::from_value(merged).map_err(|e| format!("args: {e}"))?;
    check_budgets(&budgets)?;
    Ok(budgets)
}

/// Whether every limit is a number one can meet.
pub fn check_budgets(budgets: &Budgets) -> Result<(), String> {
    for kind in BudgetKind::ALL {
        let Some(limit) = budgets.limit(*kind) else {
            continue;
        };
        if !limit.is_finite() || limit <= 0.0 {
            return Err(format!("the {kind} budget must be over 0, not {limit}"));
        }
        if *kind == BudgetKind::Agreement && limit > 1.0 {
            return Err(format!("agreement_min is a share from 0 to 1, not {limit}"));
        }
    }
    Ok(())
}
