//! Tells Home Assistant which of the device's topics hold what: one retained message of MQTT discovery for the whole device,
//! as its documentation has it ("Device discovery payload").
//!
//! Nothing else is sent for Home Assistant: it reads the topics that everybody reads. Availability is that of the retained
//! state, where the last will is told too. What was told is remembered in the state directory, so that it can be taken
//! back when the configuration no longer asks for it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::{Map, Value, json};
use wire::{Birth, Stream, Topics};

use super::state_dir::{PathError, write_atomically};
use crate::config::HomeAssistantConfig;
use crate::core::Report;

/// Where more is said.
const ABOUT: &str = "espalier-agent";

/// What is told, and what was.
#[derive(Debug)]
pub struct HomeAssistant {
    topics: Topics,
    /// Where the device is told; none where it is not.
    here: Option<String>,
    /// Where it was told before and must be taken back.
    elsewhere: Option<String>,
    memory: PathBuf,
    birth: Option<Birth>,
    models: BTreeSet<String>,
    /// Models that were told in this run and are gone.
    gone: BTreeSet<String>,
    has_power: bool,
}

impl HomeAssistant {
    /// With what was told before, which lies in the file `memory`.
    #[must_use]
    pub fn new(config: &HomeAssistantConfig, topics: Topics, memory: PathBuf) -> Self {
        let here = config.enabled.then(|| topic(&config.prefix, topics.device()));
        let told = std::fs::read_to_string(&memory).ok();
        let elsewhere = told.map(|told| told.trim().to_owned());
        let elsewhere = elsewhere.filter(|told| !told.is_empty() && Some(told) != here.as_ref());
        Self {
            topics,
            here,
            elsewhere,
            memory,
            birth: None,
            models: BTreeSet::new(),
            gone: BTreeSet::new(),
            has_power: false,
        }
    }

    /// Takes a report in; what is to be told because of it, retained: topics and payloads.
    pub fn hear(&mut self, report: &Report) -> Vec<(String, Vec<u8>)> {
        let mut told = Vec::new();
        let news = match report {
            Report::Birth(birth) => {
                self.birth = Some(birth.clone());
                told.extend(self.elsewhere.clone().map(|topic| (topic, Vec::new())));
                true
            }
            Report::Model(model) if model.digest.is_some() => {
                self.gone.remove(&model.model);
                self.models.insert(model.model.clone())
            }
            Report::Model(model) => {
                let was_told = self.models.remove(&model.model);
                was_told && self.gone.insert(model.model.clone())
            }
            Report::Power(_) => !std::mem::replace(&mut self.has_power, true),
            _ => false,
        };
        if let (true, Some(topic), Some(birth)) = (news, &self.here, &self.birth) {
            told.push((topic.clone(), self.config(birth).to_string().into_bytes()));
        }
        told
    }

    /// The broker holds what was told there, or no longer holds it.
    ///
    /// # Errors
    /// It cannot be remembered; it is told again with the next start.
    pub fn acknowledged(&mut self, topic: &str) -> Result<(), PathError> {
        if self.elsewhere.as_deref() == Some(topic) {
            self.elsewhere = None;
            if self.here.is_none() {
                return match std::fs::remove_file(&self.memory) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        Err(PathError::at("remove", &self.memory)(error))
                    }
                    _ => Ok(()),
                };
            }
        }
        Ok(())
    }

    /// Remembers where the device is told, before it is. A place where it was told before and is still to be taken back
    /// stays remembered until then.
    ///
    /// # Errors
    /// The system's, with the path.
    pub fn remember(&self) -> Result<(), PathError> {
        let known = std::fs::read_to_string(&self.memory).unwrap_or_default();
        match &self.here {
            Some(topic) if self.elsewhere.is_none() && known.trim() != topic => {
                write_atomically(&self.memory, format!("{topic}\n").as_bytes())
            }
            _ => Ok(()),
        }
    }

    fn config(&self, birth: &Birth) -> Value {
        let device = &birth.device;
        let mut components = Map::new();
        self.add_device(device, &mut components);
        for model in &self.models {
            self.add_model(device, model, &mut components);
        }
        // What names nothing but its platform is removed.
        for key in self.gone.iter().flat_map(|model| model_keys(model)) {
            components.insert(key, json!({ "platform": "sensor" }));
        }
        json!({
            "device": {
                "identifiers": [format!("espalier_{device}")],
                "name": device,
                "manufacturer": "Espalier",
                "model": birth.device_class,
                "sw_version": birth.agent_version,
            },
            "origin": { "name": ABOUT, "sw_version": birth.agent_version },
            "availability": [{
                "topic": self.topics.state(),
                "value_template": "{{ 'offline' if value_json.state == 'offline' else 'online' }}",
            }],
            "qos": 1,
            "components": components,
        })
    }

    fn add_device(&self, device: &str, into: &mut Map<String, Value>) {
        let resources = self.topics.metrics(&Stream::Res).unwrap_or_default();
        let mut add = |key: &str, value: Value| {
            into.insert(key.to_owned(), sensor(device, key, value));
        };
        add(
            "state",
            json!({
                "name": "State", "state_topic": self.topics.state(),
                "value_template": "{{ value_json.state }}",
                "device_class": "enum", "options": ["online", "degraded", "offline"],
            }),
        );
        add(
            "agent_memory",
            json!({
                "name": "Agent memory", "state_topic": resources,
                "value_template": "{{ value_json.agent_pss_bytes }}",
                "device_class": "data_size", "unit_of_measurement": "B", "state_class": "measurement",
            }),
        );
        add(
            "workers_memory",
            json!({
                "name": "Workers memory", "state_topic": resources,
                "value_template": "{{ value_json.workers_pss_bytes }}",
                "device_class": "data_size", "unit_of_measurement": "B", "state_class": "measurement",
            }),
        );
        add(
            "disk_written_day",
            json!({
                "name": "Written in a day", "state_topic": resources,
                "value_template": "{{ value_json.disk_written_day_bytes }}",
                "device_class": "data_size", "unit_of_measurement": "B", "state_class": "measurement",
                "entity_category": "diagnostic",
            }),
        );
        add(
            "temperature",
            json!({
                "name": "Temperature", "state_topic": resources,
                "value_template": thousandth("temperature_mc"),
                "device_class": "temperature", "unit_of_measurement": "°C", "state_class": "measurement",
            }),
        );
        if self.has_power {
            let power = self.topics.metrics(&Stream::Power).unwrap_or_default();
            add(
                "power",
                json!({
                    "name": "Power", "state_topic": power, "value_template": thousandth("power_mw"),
                    "device_class": "power", "unit_of_measurement": "W", "state_class": "measurement",
                    "json_attributes_topic": power,
                    "json_attributes_template":
                        r#"{"quality": "{{ value_json.quality }}", "source": "{{ value_json.source }}"}"#,
                }),
            );
        }
    }

    fn add_model(&self, device: &str, model: &str, into: &mut Map<String, Value>) {
        let topics =
            (self.topics.metrics(&Stream::Infer(model.to_owned())), self.topics.model(model));
        let (Ok(windows), Ok(state)) = topics else {
            return;
        };
        let [p95, digest, phase] = model_keys(model);
        let latency = json!({
            "name": format!("{model} p95"), "state_topic": windows, "value_template": thousandth("p95_us"),
            "device_class": "duration", "unit_of_measurement": "ms", "state_class": "measurement",
        });
        let told = |name: &str, field: &str| {
            json!({
                "name": format!("{model} {name}"), "state_topic": state,
                "value_template": format!("{{{{ value_json.{field} }}}}"),
                "entity_category": "diagnostic",
            })
        };
        for (key, value) in
            [(p95, latency), (digest, told("digest", "digest")), (phase, told("phase", "phase"))]
        {
            let value = sensor(device, &key, value);
            into.insert(key, value);
        }
    }
}

/// Where Home Assistant looks for a device. The name holds only letters, digits, `-` and `_` there.
fn topic(prefix: &str, device: &str) -> String {
    let mut name = String::new();
    for byte in device.bytes() {
        match byte {
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'_' => name.push(char::from(byte)),
            other => name.push_str(&format!("_{other:02x}")),
        }
    }
    format!("{prefix}/device/espalier-{name}/config")
}

fn model_keys(model: &str) -> [String; 3] {
    ["p95", "digest", "phase"].map(|what| format!("model_{model}_{what}"))
}

/// A component that is a sensor.
fn sensor(device: &str, key: &str, mut value: Value) -> Value {
    value["platform"] = json!("sensor");
    value["unique_id"] = json!(format!("espalier_{device}_{key}"));
    value
}

/// A template for a field in thousandths, which may be null.
fn thousandth(field: &str) -> String {
    format!(
        "{{{{ (value_json.{field} / 1000) | round(3) if value_json.{field} is not none else none }}}}"
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use wire::{Header, ModelPhase, ModelState, Quality, Runtime};

    fn birth() -> Report {
        Report::Birth(Birth {
            header: Header::of::<Birth>(0, 0, ""),
            device: "dev.1".into(),
            device_class: "pi4".into(),
            agent_version: "1".into(),
            arch: "aarch64".into(),
            runtime: Runtime::Tract,
            engine_version: "1".into(),
            cpus: 4,
            memory_bytes: 1,
            power_source: "none".into(),
            power_quality: Quality::None,
            emulated: false,
        })
    }

    fn model(digest: Option<&str>) -> Report {
        Report::Model(ModelState {
            header: Header::of::<ModelState>(0, 0, ""),
            model: "m".into(),
            digest: digest.map(str::to_owned),
            version: None,
            sequence: None,
            phase: ModelPhase::Serving,
            reason: None,
            size_bytes: None,
        })
    }

    fn at(dir: &std::path::Path, enabled: bool, prefix: &str) -> HomeAssistant {
        let config = HomeAssistantConfig { enabled, prefix: prefix.into() };
        HomeAssistant::new(&config, Topics::new("r", "dev.1").unwrap(), dir.join("told"))
    }

    fn components(told: &[(String, Vec<u8>)]) -> Value {
        let (_, payload) = told.last().unwrap();
        serde_json::from_slice::<Value>(payload).unwrap()["components"].clone()
    }

    #[test]
    fn a_device_that_does_not_ask_for_it_tells_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut home = at(dir.path(), false, "ha");
        home.remember().unwrap();
        assert!(home.hear(&birth()).is_empty() && home.hear(&model(Some("d"))).is_empty());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn models_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut home = at(dir.path(), true, "ha");
        let told = home.hear(&birth());
        assert_eq!(told[0].0, "ha/device/espalier-dev_2e1/config");
        assert!(components(&told).get("model_m_p95").is_none());
        let told = home.hear(&model(Some("d")));
        assert_eq!(components(&told)["model_m_p95"]["state_topic"], "r/d/dev.1/up/m/infer/m");
        assert!(home.hear(&model(Some("e"))).is_empty(), "nothing new");
        let told = home.hear(&model(None));
        assert_eq!(components(&told)["model_m_p95"], json!({ "platform": "sensor" }));
    }

    #[test]
    fn what_was_told_is_taken_back_where_it_was_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut home = at(dir.path(), true, "ha");
        home.remember().unwrap();
        let first = home.hear(&birth()).pop().unwrap().0;
        // Another prefix, then none at all; in between it could not be taken back.
        let mut home = at(dir.path(), true, "other");
        home.remember().unwrap();
        let told = home.hear(&birth());
        assert_eq!((told[0].0.as_str(), told[0].1.len()), (first.as_str(), 0));
        assert!(told[1].0.starts_with("other/"));
        home.acknowledged(&first).unwrap();
        home.remember().unwrap();
        let mut home = at(dir.path(), false, "other");
        let told = home.hear(&birth());
        assert_eq!(told, [("other/device/espalier-dev_2e1/config".to_owned(), Vec::new())]);
        home.acknowledged(&told[0].0).unwrap();
        assert!(at(dir.path(), false, "other").hear(&birth()).is_empty(), "only once");
    }
}
