//! The AsyncAPI 3 document of what devices say and hear over MQTT, generated from the types.

use serde_json::{Map, Value, json};

use crate::schema;
use crate::topic::DEFAULT_ROOT;

/// Where the schemas lie, as seen from the document.
const SCHEMAS: &str = "./schemas";

/// The document, from the device's side: what it sends lies under `up/`, what it receives under `dn/`.
#[must_use]
pub fn document() -> Value {
    let (mut channels, mut operations, mut messages) = (Map::new(), Map::new(), Map::new());
    for (name, schema) in schema::all() {
        let topic = schema["x-topic"].as_str().unwrap_or_default();
        let retained = schema["x-retained"].as_bool().unwrap_or_default();
        let short = short(name);
        channels.insert(short.clone(), channel(name, topic));
        operations.insert(operation_name(&short, topic), operation(&short, name, topic, retained));
        messages.insert(name.to_owned(), message(name, &schema));
    }
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Espalier's devices over MQTT 5",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "What espalier-agent sends (up/) and receives (dn/). Unknown fields are to be accepted: a newer \
                peer may say more. An empty retained payload takes back what was retained.",
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": { "messages": messages },
    })
}

/// `espalier.budget_breach.v1` as `budget_breach`.
fn short(name: &str) -> String {
    name.split('.').nth(1).unwrap_or(name).to_owned()
}

fn is_sent(topic: &str) -> bool {
    topic.starts_with("up/")
}

fn operation_name(short: &str, topic: &str) -> String {
    format!("{}_{short}", if is_sent(topic) { "send" } else { "receive" })
}

fn channel(name: &str, topic: &str) -> Value {
    let address = format!("{{root}}/d/{{device}}/{topic}");
    let mut parameters = Map::new();
    for level in address.split('/') {
        if let Some(parameter) = level.strip_prefix('{').and_then(|l| l.strip_suffix('}')) {
            parameters.insert(parameter.to_owned(), parameter_of(parameter));
        }
    }
    json!({
        "address": address,
        "parameters": parameters,
        "messages": { name: { "$ref": format!("#/components/messages/{name}") } },
    })
}

fn parameter_of(name: &str) -> Value {
    match name {
        "root" => json!({ "description": "Configured on both sides.", "default": DEFAULT_ROOT }),
        "device" => json!({ "description": "The device's name." }),
        "name" => json!({ "description": "The model's name." }),
        "kind" => json!({ "description": "The kind of command." }),
        _ => json!({ "description": "The command's identifier, which its result has too." }),
    }
}

fn operation(short: &str, name: &str, topic: &str, retained: bool) -> Value {
    json!({
        "action": if is_sent(topic) { "send" } else { "receive" },
        "channel": { "$ref": format!("#/channels/{short}") },
        "messages": [{ "$ref": format!("#/channels/{short}/messages/{name}") }],
        "bindings": { "mqtt": { "qos": 1, "retain": retained, "bindingVersion": "0.2.0" } },
    })
}

fn message(name: &str, schema: &Value) -> Value {
    json!({
        "name": name,
        "title": schema["title"],
        "summary": schema["description"],
        "payload": {
            "schemaFormat": "application/schema+json;version=2020-12",
            "schema": { "$ref": format!("{SCHEMAS}/{name}.json") },
        },
    })
}
