//! Commands: done once, answered always, refused when late.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use wire::{BudgetKind, Budgets, Command, CommandKind};

use super::event::Millis;
use super::record::Record;
use super::{Core, MAX_SEEN_COMMANDS};

impl Core {
    pub(super) fn on_command(&mut self, now: Millis, command: &Command, unix_ms: Option<u64>) {
        if self.commands.contains(&command.id) {
            return;
        }
        self.commands.push_back(command.id.clone());
        if self.commands.len() > MAX_SEEN_COMMANDS {
            self.commands.pop_front();
        }
        let outcome = timely(command, unix_ms).and_then(|()| self.obey(now, command));
        self.report_result(&command.id, outcome);
    }

    fn obey(&mut self, now: Millis, command: &Command) -> Result<Value, String> {
        match command.kind {
            CommandKind::Ping => Ok(json!({ "pong": true })),
            CommandKind::Snapshot => {
                serde_json::to_value(self.status(now)).map_err(|e| e.to_string())
            }
            CommandKind::SetBudget => self.set_budget(&command.args),
            CommandKind::Rollback => self.command_rollback(&command.args),
            CommandKind::Measure => {
                Err("measure is not supported yet: this agent measures only what it serves".into())
            }
        }
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

    fn command_rollback(&mut self, args: &Value) -> Result<Value, String> {
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
        self.revert(&model, &from, "a rollback was commanded", true);
        Ok(json!({ "model": model, "from": from, "to": to }))
    }
}

/// Refuses a command that came too late, or whose lateness cannot be known though it matters.
fn timely(command: &Command, unix_ms: Option<u64>) -> Result<(), String> {
    let changes = matches!(command.kind, CommandKind::Rollback | CommandKind::SetBudget);
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
