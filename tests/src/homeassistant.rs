//! What Home Assistant would show of a device: it knows the discovery topic and nothing else of Espalier, subscribes to what
//! is told there, and renders the templates.

use std::collections::BTreeMap;

use minijinja::{Environment, context};
use serde_json::Value;

use crate::subscriber::Heard;

/// What a discovery message says, with every topic and template in it.
pub struct Discovered {
    /// The message.
    pub config: Value,
}

impl Discovered {
    /// The last message at a discovery topic, if it was not taken back.
    ///
    /// # Panics
    /// When it is no message that Home Assistant's documentation allows.
    #[must_use]
    pub fn last(prefix: &str, heard: &[Heard]) -> Option<Self> {
        let is_config = |topic: &str| {
            let rest = topic.strip_prefix(prefix)?.strip_prefix("/device/")?;
            let name = rest.strip_suffix("/config")?;
            let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            assert!(!name.is_empty() && name.chars().all(allowed), "{name} is no object id");
            Some(())
        };
        let last = heard.iter().rev().find(|heard| is_config(&heard.topic).is_some())?;
        assert!(last.retain, "discovery messages are retained");
        if last.payload.is_empty() {
            return None;
        }
        let config: Value = serde_json::from_slice(&last.payload).expect("JSON");
        check(&config);
        Some(Self { config })
    }

    /// The entities by their keys, and what each shows after these messages; none for `unknown`.
    #[must_use]
    pub fn shown(&self, heard: &[Heard]) -> BTreeMap<String, Option<String>> {
        let components = self.config["components"].as_object().expect("components");
        let whole = components.iter().filter(|(_, component)| component["unique_id"].is_string());
        whole.map(|(key, component)| (key.clone(), state(component, heard))).collect()
    }

    /// The attributes of an entity.
    #[must_use]
    pub fn attributes(&self, key: &str, heard: &[Heard]) -> Option<Value> {
        let component = &self.config["components"][key];
        let topic = component["json_attributes_topic"].as_str()?;
        let template = component["json_attributes_template"].as_str()?;
        serde_json::from_str(&render(template, last(topic, heard)?)).ok()
    }

    /// Whether the device is available.
    #[must_use]
    pub fn is_available(&self, heard: &[Heard]) -> bool {
        let availability = &self.config["availability"][0];
        let topic = availability["topic"].as_str().expect("a topic");
        let template = availability["value_template"].as_str().expect("a template");
        last(topic, heard).is_some_and(|payload| render(template, payload) == "online")
    }
}

/// What the documentation requires.
fn check(config: &Value) {
    let text = |value: &Value, what: &str| {
        assert!(value.as_str().is_some_and(|text| !text.is_empty()), "{what} is missing: {config}");
    };
    assert!(config["device"]["identifiers"].as_array().is_some_and(|ids| !ids.is_empty()));
    text(&config["origin"]["name"], "origin.name");
    let mut ids = Vec::new();
    for (key, component) in config["components"].as_object().expect("components") {
        text(&component["platform"], "platform");
        if component.as_object().is_some_and(|fields| fields.len() == 1) {
            continue;
        }
        text(&component["unique_id"], "unique_id");
        text(&component["state_topic"], "state_topic");
        ids.push(component["unique_id"].to_string());
        let class = component["device_class"].as_str();
        let unit = component["unit_of_measurement"].as_str();
        let allowed = match class {
            None => unit.is_none(),
            Some("enum") => unit.is_none() && component["options"].is_array(),
            Some("data_size") => unit == Some("B"),
            Some("temperature") => unit == Some("°C"),
            Some("power") => unit == Some("W"),
            Some("duration") => unit == Some("ms"),
            Some(_) => false,
        };
        assert!(allowed, "{key}: {class:?} in {unit:?}");
        assert!(component["state_class"].is_null() || unit.is_some(), "{key}");
    }
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count, "identifiers are unique");
}

fn state(component: &Value, heard: &[Heard]) -> Option<String> {
    let payload = last(component["state_topic"].as_str()?, heard)?;
    let shown = render(component["value_template"].as_str()?, payload);
    // What `None` in a template means to Home Assistant.
    let is_none = shown.eq_ignore_ascii_case("none");
    (!is_none).then_some(shown)
}

fn last<'h>(topic: &str, heard: &'h [Heard]) -> Option<&'h [u8]> {
    let own = heard.iter().rev().find(|heard| heard.topic == topic)?;
    Some(&own.payload)
}

fn render(template: &str, payload: &[u8]) -> String {
    let value_json: Value = serde_json::from_slice(payload).expect("JSON");
    let environment = Environment::new();
    let value_json = minijinja::Value::from(minijinja::value::Serde(&value_json));
    let rendered = environment.render_str(template, context! { value_json });
    rendered.unwrap_or_else(|error| panic!("{template}: {error}"))
}
