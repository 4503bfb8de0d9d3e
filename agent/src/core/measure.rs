//! The measurement that a command asks for: whether it may begin, and what ends it.
//!
//! One at a time, and only while no install is under way: an install goes first, and ends it. It is journalled, so
//! that an agent that was stopped in the middle of it says so.

use wire::{Command, CommandOutcome, Header, MeasureArgs, MeasureProfile, Offer, Payload};

use super::Core;
use super::effect::Effect;
use super::event::Millis;
use super::record::Record;
use super::status::MeasureStatus;
use super::window::Hold;

/// The longest that a measurement takes with all that belongs to it, the download included.
const MAX_MEASURE_MS: u64 = 3_600_000;
/// The most bytes of a sender's own name for itself that are kept.
const MAX_SENDER_BYTES: usize = 64;

/// What to measure, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct MeasureOrder {
    /// The command that asks for it.
    pub id: String,
    /// The bundle, as an offer would name it; without an address where it is in the store.
    pub offer: Offer,
    /// Inferences that are timed.
    pub runs: u32,
    /// Inferences before them.
    pub warmup: u32,
    /// When to stop timing, however many there were.
    pub max_ms: u64,
    /// The model's memory budget, which it must be expected to fit.
    pub memory_budget: Option<u64>,
}

/// A measurement under way.
#[derive(Debug)]
pub(super) struct Measuring {
    command: Command,
    model: String,
    digest: String,
    began: Millis,
    until: Millis,
    why: &'static str,
}

impl Core {
    /// Begins, or says why not.
    pub(super) fn measure(
        &mut self,
        now: Millis,
        command: &Command,
        unix_ms: Option<u64>,
    ) -> Result<(), String> {
        let args = MeasureArgs::read(&command.args)?;
        let order = self.order(command, &args)?;
        self.may_measure(&order)?;
        let limit = now.plus(MAX_MEASURE_MS);
        let expires = match (command.expires_ms, unix_ms) {
            (1.., Some(unix_ms)) => now.plus(command.expires_ms.saturating_sub(unix_ms)),
            _ => limit,
        };
        let (until, why) = if expires < limit {
            (expires, "the command expired")
        } else {
            (limit, "it took longer than MAX_MEASURE_MS, an hour")
        };
        let command = kept(command);
        self.record(Record::Measuring { command: Box::new(command.clone()) });
        self.audit(&command, CommandOutcome::Accepted, None, 0);
        let (model, digest) = (args.model, args.digest);
        self.measuring = Some(Measuring { command, model, digest, began: now, until, why });
        self.emit(Effect::Measure(Box::new(order)));
        Ok(())
    }

    fn order(&self, command: &Command, args: &MeasureArgs) -> Result<MeasureOrder, String> {
        let birth = &self.settings.birth;
        let offer = Offer {
            header: Header::of::<Offer>(0, 0, ""),
            model: args.model.clone(),
            version: String::new(),
            sequence: args.sequence.unwrap_or(0),
            digest: args.digest.clone(),
            url: args.url.clone().unwrap_or_default(),
            size_bytes: args.size_bytes.unwrap_or(0),
            runtime: birth.runtime,
            device_class: birth.device_class.clone(),
            request_id: None,
        };
        offer.check().map_err(|error| format!("args: {error}"))?;
        let limit = self.settings.install.max_bundle_bytes;
        if offer.size_bytes > limit {
            let got = offer.size_bytes;
            return Err(format!(
                "{got} bytes are over the limit install.max_bundle_bytes of {limit}"
            ));
        }
        Ok(MeasureOrder {
            id: command.id.clone(),
            memory_budget: self.budgets(&args.model).memory_bytes,
            offer,
            runs: args.runs,
            warmup: args.warmup,
            max_ms: u64::from(args.max_seconds) * 1000,
        })
    }

    fn may_measure(&self, order: &MeasureOrder) -> Result<(), String> {
        if self.ending {
            return Err("the agent is ending".to_owned());
        }
        if let Some(other) = &self.measuring {
            return Err(format!(
                "the measurement of command {} is under way, and there is one at a time",
                other.command.id
            ));
        }
        let mut models = self.durable.models.iter();
        if let Some((name, _)) = models.find(|(_, model)| model.install.is_some()) {
            return Err(format!("an install of {name} is under way; try again when it is over"));
        }
        let here = self.durable.referenced().contains(&order.offer.digest);
        if !here && order.offer.url.is_empty() {
            return Err("the bundle is not on the device; args.url must say where it is".to_owned());
        }
        match self.settings.download.hold(self.conditions) {
            Some(hold @ (Hold::Battery | Hold::Unseen)) => Err(refusal(&hold)),
            // What is on the device needs no download.
            Some(hold) if !here => Err(refusal(&hold)),
            _ => Ok(()),
        }
    }

    /// It ended by itself.
    pub(super) fn on_measured(
        &mut self,
        now: Millis,
        id: &str,
        outcome: Result<Box<MeasureProfile>, String>,
    ) {
        // A late answer to one that was stopped, and is told already.
        if self.measuring.as_ref().is_some_and(|own| own.command.id == id) {
            let outcome = outcome
                .and_then(|profile| serde_json::to_value(profile).map_err(|e| e.to_string()));
            self.end_measuring(now, outcome);
        }
    }

    /// Stops the one under way, if there is one.
    pub(super) fn stop_measuring(&mut self, now: Millis, reason: &str) {
        if self.measuring.is_some() {
            self.emit(Effect::CancelMeasure);
            self.end_measuring(now, Err(format!("stopped: {reason}")));
        }
    }

    pub(super) fn tick_measuring(&mut self, now: Millis) {
        if let Some(why) = self.measuring.as_ref().filter(|own| now >= own.until).map(|own| own.why)
        {
            self.stop_measuring(now, why);
        }
    }

    /// A device that comes to live on its battery has better things to do.
    pub(super) fn weigh_measuring(&mut self, now: Millis) {
        if let Some(hold @ Hold::Battery) = self.settings.download.hold(self.conditions) {
            self.stop_measuring(now, &hold.to_string());
        }
    }

    /// After a start: the measurement that the agent was stopped in. Its command may come again, and is not
    /// begun again.
    pub(super) fn tell_interrupted(&mut self) {
        let Some(command) = self.durable.measuring.clone() else {
            return;
        };
        self.commands.push_back(command.id.clone());
        self.emit(Effect::CancelMeasure);
        let reason = "interrupted: the agent was stopped while it measured".to_owned();
        self.tell_measured(&command, Err(reason), 0);
    }

    pub(super) fn measuring_status(&self, now: Millis) -> Option<MeasureStatus> {
        self.measuring.as_ref().map(|own| MeasureStatus {
            id: own.command.id.clone(),
            model: own.model.clone(),
            digest: own.digest.clone(),
            elapsed_ms: now.since(own.began),
        })
    }

    fn end_measuring(&mut self, now: Millis, outcome: Result<serde_json::Value, String>) {
        if let Some(own) = self.measuring.take() {
            self.tell_measured(&own.command, outcome, now.since(own.began));
        }
    }

    /// Told first and journalled then: a crash in between costs a second result, not the only one.
    fn tell_measured(
        &mut self,
        command: &Command,
        outcome: Result<serde_json::Value, String>,
        elapsed_ms: u64,
    ) {
        let became = match &outcome {
            Ok(_) => CommandOutcome::Done,
            Err(_) => CommandOutcome::Failed,
        };
        self.audit(command, became, outcome.as_ref().err().cloned(), elapsed_ms);
        self.report_result(&command.id, outcome);
        self.record(Record::Measured { id: command.id.clone() });
    }
}

fn refusal(hold: &Hold) -> String {
    format!("nothing is measured while the device {hold}")
}

/// The command as it is kept: its arguments have been read, and every part of it has a limit.
fn kept(command: &Command) -> Command {
    let mut kept = command.clone();
    kept.header = Header { schema: Command::SCHEMA.to_owned(), ..kept.header };
    super::command::shorten(&mut kept.header.boot_id, MAX_SENDER_BYTES);
    kept
}
