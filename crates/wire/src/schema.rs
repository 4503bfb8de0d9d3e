//! JSON Schema (2020-12) of every payload, generated from the types.

use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use crate::payload::{
    Birth, BudgetBreach, Command, CommandResult, InferWindow, InstallEvent, ModelState, Offer,
    Payload, PowerWindow, RecompressRequest, ResourceWindow, RollbackEvent, SpoolDrop, StateReport,
    ThrottleEvent,
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
        of::<RecompressRequest>(),
        of::<CommandResult>(),
        of::<Offer>(),
        of::<Command>(),
    ]
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
