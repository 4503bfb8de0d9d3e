//! Prints the install journal, while an agent runs or when none does, past what is damaged.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::{AskArgs, Failure, failed, say};
use crate::core::{Durable, Record};
use crate::shell::journal::reading::{self, Fault, Line, Noted, Reading};

#[derive(Debug, Args)]
pub(super) struct JournalArgs {
    #[command(flatten)]
    ask: AskArgs,
    /// Only what is about this model
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Only the last entries
    #[arg(long, short = 'n', value_name = "COUNT")]
    last: Option<usize>,
    /// Another file than the state directory's, such as `journal.damaged`
    #[arg(long, value_name = "FILE", conflicts_with = "state")]
    file: Option<PathBuf>,
}

pub(super) fn run(args: &JournalArgs) -> Result<(), Failure> {
    let path = match &args.file {
        Some(file) => file.clone(),
        None => args.ask.state_dir()?.join("journal"),
    };
    let reading = reading::read(&path).map_err(|error| match error.source.kind() {
        std::io::ErrorKind::NotFound => failed(format!(
            "{error} (nothing was ever installed there, or the state directory is another; see --state)"
        )),
        _ => failed(error),
    })?;
    let wanted: Vec<&Line> = reading.lines.iter().filter(|line| concerns(line, args)).collect();
    let skip = args.last.map_or(0, |last| wanted.len().saturating_sub(last));
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for line in &wanted[skip..] {
        let text = if args.ask.json { as_json(line).to_string() } else { as_text(line) };
        // A reader that has heard enough is no error.
        if writeln!(out, "{text}").is_err() {
            return Ok(());
        }
    }
    let _ = out.flush();
    drop(out);
    if reading.lines.is_empty() && !args.ask.json {
        say("the journal is empty: nothing was ever installed");
    }
    verdict(&path, &reading)
}

/// What is damaged is always shown.
fn concerns(line: &Line, args: &JournalArgs) -> bool {
    let Some(wanted) = &args.model else {
        return true;
    };
    line.content.as_ref().map_or(true, |noted| match &noted.record {
        Record::Snapshot { durable } => durable.models.contains_key(wanted),
        record => model_of(record) == Some(wanted),
    })
}

fn model_of(record: &Record) -> Option<&str> {
    match record {
        Record::Offered { model, .. }
        | Record::Install { model, .. }
        | Record::Watched { model, .. }
        | Record::Resumed { model, .. }
        | Record::Reverted { model, .. }
        | Record::Requested { model, .. }
        | Record::RequestClosed { model, .. }
        | Record::BudgetsSet { model, .. } => Some(model),
        Record::Measuring { command } => command.args["model"].as_str(),
        Record::Snapshot { .. } | Record::Told { .. } | Record::Measured { .. } => None,
    }
}

/// Names the file and the place of what is damaged, and what an agent makes of it.
fn verdict(path: &Path, reading: &Reading) -> Result<(), Failure> {
    let path = path.display();
    if let Some((line, fault)) = reading.damage() {
        let (number, offset) = (line.number, line.offset);
        return Err(failed(format!(
            "{path} is damaged from line {number} on (byte {offset}): {fault}. An agent that opens it goes on from the \
             lines before that, and sets the rest aside in journal.damaged"
        )));
    }
    if reading.too_long {
        return Err(failed(format!("{path} is longer than what is read of a journal (MAX_BYTES)")));
    }
    Ok(())
}

fn as_json(line: &Line) -> Value {
    match &line.content {
        Ok(Noted { ts, record }) => json!({ "line": line.number, "ts": ts, "record": record }),
        Err(fault) => json!({
            "line": line.number,
            "damaged": fault.to_string(),
            "offset": line.offset,
            "bytes": line.bytes,
        }),
    }
}

fn as_text(line: &Line) -> String {
    let number = line.number;
    match &line.content {
        Ok(Noted { ts, record }) => format!("{number:>5}  {}  {}", time(*ts), describe(record)),
        Err(Fault::Torn) => format!("{number:>5}  {:20}  {}", "", Fault::Torn),
        Err(fault) => format!("{number:>5}  {:20}  DAMAGED ({} bytes): {fault}", "", line.bytes),
    }
}

fn time(ts: u64) -> String {
    let seconds = i64::try_from(ts / 1000).unwrap_or(0);
    if ts == 0 { format!("{:20}", "(clock not set)") } else { tls::calendar::date_time(seconds) }
}

/// One decision in a line.
fn describe(record: &Record) -> String {
    match record {
        Record::Snapshot { durable } => snapshot(durable),
        Record::Offered { model, install, offer } => format!(
            "{model} #{install}: offered version {} (sequence {}, {} bytes) {}",
            offer.version, offer.sequence, offer.size_bytes, offer.digest
        ),
        Record::Install { model, install, state, reason, block, .. } => {
            let blocked = if *block { ", digest blocked" } else { "" };
            format!("{model} #{install}: {}{}{blocked}", word(*state), because(reason.as_deref()))
        }
        Record::Watched { model, install, trial } => {
            let windows = trial.windows();
            format!("{model} #{install}: {windows} windows of its probation are evidence")
        }
        Record::Resumed { model, install, state } => {
            format!("{model} #{install}: starts over at {} after a restart", word(*state))
        }
        Record::Reverted { model, from, reason, block } => {
            let blocked = if *block { ", digest blocked" } else { "" };
            format!("{model}: taken back from {from} ({reason}){blocked}")
        }
        Record::Requested { model, budget, request_id, digest, .. } => {
            format!(
                "{model}: asks for a model within {budget}, request {request_id}, instead of {digest}"
            )
        }
        Record::RequestClosed { model, budget, reason } => {
            format!("{model}: the request about {budget} is closed ({reason})")
        }
        Record::Told { through } => format!("ends of installs up to {through} are told"),
        Record::BudgetsSet { model, budgets: Some(budgets) } => {
            let budgets = serde_json::to_string(budgets).unwrap_or_default();
            format!("{model}: budgets set by command to {budgets}")
        }
        Record::BudgetsSet { model, budgets: None } => {
            format!("{model}: budgets are the configuration's again")
        }
        Record::Measuring { command } => format!(
            "{}: measures {} for command {}",
            command.args["model"].as_str().unwrap_or("?"),
            command.args["digest"].as_str().unwrap_or("?"),
            command.id
        ),
        Record::Measured { id } => format!("the measurement of command {id} is over"),
    }
}

fn snapshot(durable: &Durable) -> String {
    let model = |(name, model): (&String, &crate::core::DurableModel)| match &model.active {
        Some(active) => format!("{name} {} ({})", active.version, active.digest),
        None => format!("{name} without a bundle"),
    };
    let models: Vec<String> = durable.models.iter().map(model).collect();
    let models = if models.is_empty() { "no models".to_owned() } else { models.join(", ") };
    format!("everything so far: {models}")
}

/// A state by its name in the journal.
fn word(state: crate::core::InstallState) -> String {
    serde_json::to_value(state).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

fn because(reason: Option<&str>) -> String {
    reason.map_or_else(String::new, |reason| format!(" ({reason})"))
}
