//! JSON Schema (2020-12) of every payload, generated from the types.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use crate::command::{LogLevelArgs, MeasureArgs, MeasureProfile};
use crate::payload::{
    Birth, BudgetBreach, Command, CommandEvent, CommandResult, InferWindow, InstallEvent,
    ModelState, Offer, Payload, PowerWindow, RecompressRequest, ResourceWindow, RollbackEvent,
    SpoolDrop, StateReport, ThrottleEvent,
};

/// Every payload's schema name (`espalier.birth.v1`) and JSON Schema.
#[must_use]
pub fn all() -> Vec<(&'static str, Value)> {
    vec![
        of::<Birth>(),
        of::<StateReport>(),
        of::<ModelState>(),
        of::<InferWindow>(),
        of::<ResourceWindow>(),
        of::<PowerWindow>(),
        of::<BudgetBreach>(),
        of::<InstallEvent>(),
        of::<RollbackEvent>(),
        of::<ThrottleEvent>(),
        of::<SpoolDrop>(),
        of::<CommandEvent>(),
        of::<RecompressRequest>(),
        of::<CommandResult>(),
        of::<Offer>(),
        of::<Command>(),
    ]
}

/// What stands in `args` and `data` of some commands and their results: the file's name and JSON Schema.
#[must_use]
pub fn parts() -> Vec<(&'static str, Value)> {
    vec![
        ("command.measure.args", part::<MeasureArgs>()),
        ("command.measure.data", part::<MeasureProfile>()),
        ("command.log_level.args", part::<LogLevelArgs>()),
    ]
}

fn part<T: JsonSchema>() -> Value {
    SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>().to_value()
}

fn of<P: Payload>() -> (&'static str, Value) {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let mut schema = generator.into_root_schema_for::<P>().to_value();
    let pattern = format!("^{}(\\.[0-9]+)?$", P::SCHEMA.replace('.', "\\."));
    schema["properties"]["schema"]["pattern"] = json!(pattern);
    schema["x-topic"] = json!(P::TOPIC);
    schema["x-retained"] = json!(P::RETAINED);
    (P::SCHEMA, schema)
}
