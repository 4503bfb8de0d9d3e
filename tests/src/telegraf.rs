//! What Telegraf would make of a message: the documented rules of its `mqtt_consumer` (topics, `topic_parsing`) and of its
//! `json_v2` parser (objects), as far as `packaging/telegraf/espalier.conf` uses them. A key that is not known here is an
//! error, so that the file cannot come to use what is not tested.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use toml::Table;

/// A value as InfluxDB's line protocol has it.
#[derive(Clone, Debug, PartialEq)]
pub enum Field {
    /// `1.5`
    Float(f64),
    /// `1i`
    Int(i64),
    /// `true`
    Bool(bool),
    /// `"text"`
    Text(String),
}

/// One point.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// The measurement.
    pub name: String,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Its fields.
    pub fields: BTreeMap<String, Field>,
    /// Milliseconds of Unix time; the time of arrival where there is none.
    pub time_ms: Option<i64>,
}

/// The configured inputs.
pub struct Telegraf {
    inputs: Vec<Input>,
}

struct Input {
    topics: Vec<String>,
    parsing: Vec<Parsing>,
    name: String,
    object: Object,
}

struct Parsing {
    topic: Vec<String>,
    tags: Vec<String>,
}

#[derive(Default)]
struct Object {
    timestamp_key: Option<String>,
    tags: Vec<String>,
    included: Option<Vec<String>>,
    excluded: Vec<String>,
    types: BTreeMap<String, String>,
}

impl Telegraf {
    /// Reads a configuration.
    ///
    /// # Panics
    /// When it is none, or holds something that is not known here.
    #[must_use]
    pub fn read(text: &str) -> Self {
        let table: Table = text.parse().expect("TOML");
        let inputs = table["inputs"]["mqtt_consumer"].as_array().expect("inputs");
        Self {
            inputs: inputs
                .iter()
                .map(|input| Input::read(input.as_table().expect("a table")))
                .collect(),
        }
    }

    /// The filters that it subscribes to.
    pub fn topics(&self) -> impl Iterator<Item = &str> {
        self.inputs.iter().flat_map(|input| &input.topics).map(String::as_str)
    }

    /// What a message becomes; none where no input hears it.
    ///
    /// # Errors
    /// The parser would refuse the message.
    pub fn points(&self, topic: &str, payload: &[u8]) -> Result<Vec<Point>, String> {
        let hears = |input: &&Input| input.topics.iter().any(|filter| matches(filter, topic));
        self.inputs.iter().filter(hears).map(|input| input.point(topic, payload)).collect()
    }
}

impl Input {
    fn read(table: &Table) -> Self {
        const KNOWN: [&str; 10] = [
            "servers",
            "topics",
            "qos",
            "persistent_session",
            "client_id",
            "topic_tag",
            "data_format",
            "topic_parsing",
            "json_v2",
            "name",
        ];
        only(table, &KNOWN);
        assert_eq!(table["data_format"].as_str(), Some("json_v2"));
        assert_eq!(table["topic_tag"].as_str(), Some(""), "the whole topic is no tag");
        let parsing =
            table["topic_parsing"].as_array().expect("topic_parsing").iter().map(|parsing| {
                only(parsing.as_table().expect("a table"), &["topic", "tags"]);
                let parts = |key: &str| {
                    parsing[key].as_str().expect("text").split('/').map(str::to_owned).collect()
                };
                let parsing = Parsing { topic: parts("topic"), tags: parts("tags") };
                assert_eq!(
                    parsing.topic.len(),
                    parsing.tags.len(),
                    "tags length does not equal topic length"
                );
                parsing
            });
        let [metric] = table["json_v2"].as_array().expect("json_v2").as_slice() else {
            panic!("one json_v2")
        };
        only(metric.as_table().expect("a table"), &["measurement_name", "object"]);
        let [object] = metric["object"].as_array().expect("object").as_slice() else {
            panic!("one object")
        };
        Self {
            topics: strings(&table["topics"]),
            parsing: parsing.collect(),
            name: metric["measurement_name"].as_str().expect("a name").to_owned(),
            object: Object::read(object.as_table().expect("a table")),
        }
    }

    fn point(&self, topic: &str, payload: &[u8]) -> Result<Point, String> {
        let value: Value = serde_json::from_slice(payload).map_err(|e| format!("{topic}: {e}"))?;
        let object = value.as_object().ok_or_else(|| format!("{topic}: no object"))?;
        let (tags, fields) = (BTreeMap::new(), BTreeMap::new());
        let mut point = Point { name: self.name.clone(), tags, fields, time_ms: None };
        self.object.take("", object, &mut point).map_err(|e| format!("{topic}: {e}"))?;
        let parts: Vec<&str> = topic.split('/').collect();
        for parsing in self.parsing.iter().filter(|parsing| parsing.fits(&parts)) {
            let named = parsing.tags.iter().zip(&parts).filter(|(name, _)| *name != "_");
            point.tags.extend(named.map(|(name, part)| (name.clone(), (*part).to_owned())));
        }
        Ok(point)
    }
}

impl Parsing {
    fn fits(&self, parts: &[&str]) -> bool {
        let same = |(wanted, part): (&String, &&str)| wanted == "+" || wanted == part;
        parts.len() == self.topic.len() && self.topic.iter().zip(parts).all(same)
    }
}

impl Object {
    fn read(table: &Table) -> Self {
        let known = [
            "path",
            "timestamp_key",
            "timestamp_format",
            "tags",
            "included_keys",
            "excluded_keys",
            "fields",
        ];
        only(table, &known);
        assert_eq!(table["path"].as_str(), Some("@this"));
        let text = |key: &str| Some(table.get(key)?.as_str().expect("text").to_owned());
        let timestamp_key = text("timestamp_key");
        assert!(timestamp_key.is_none() || text("timestamp_format").as_deref() == Some("unix_ms"));
        let list = |key: &str| table.get(key).map(strings);
        let types = table.get("fields").and_then(toml::Value::as_table).into_iter().flatten();
        Self {
            timestamp_key,
            tags: list("tags").unwrap_or_default(),
            included: list("included_keys"),
            excluded: list("excluded_keys").unwrap_or_default(),
            types: types
                .map(|(key, of)| (key.clone(), of.as_str().expect("a type").to_owned()))
                .collect(),
        }
    }

    /// Nested objects become keys that begin with their parent's; arrays would become points of their own.
    fn take(
        &self,
        parent: &str,
        object: &Map<String, Value>,
        point: &mut Point,
    ) -> Result<(), String> {
        for (key, value) in object {
            let key = if parent.is_empty() { key.clone() } else { format!("{parent}_{key}") };
            let included = self.included.as_ref().is_none_or(|included| included.contains(&key));
            if self.excluded.contains(&key) || !included {
                continue;
            }
            match value {
                Value::Null => {}
                Value::Object(inner) => self.take(&key, inner, point)?,
                Value::Array(_) => return Err(format!("{key} is an array: points would multiply")),
                _ if self.timestamp_key.as_ref() == Some(&key) => {
                    point.time_ms = Some(value.as_i64().ok_or("no time")?);
                }
                _ if self.tags.contains(&key) => {
                    point.tags.insert(key, text(value));
                }
                _ => {
                    let field = converted(value, self.types.get(&key).map(String::as_str));
                    let field =
                        field.ok_or_else(|| format!("{key}: {value} is not of its type"))?;
                    point.fields.insert(key, field);
                }
            }
        }
        Ok(())
    }
}

/// A value of the type that is asked for; without one, numbers are floats.
fn converted(value: &Value, to: Option<&str>) -> Option<Field> {
    Some(match (to, value) {
        (Some("int"), Value::Number(n)) => {
            #[allow(clippy::cast_possible_truncation)]
            let whole = n.as_i64().or_else(|| n.as_f64().map(|n| n as i64));
            Field::Int(whole?)
        }
        (Some("float") | None, Value::Number(n)) => Field::Float(n.as_f64()?),
        (Some("bool") | None, Value::Bool(b)) => Field::Bool(*b),
        (Some("string"), value) => Field::Text(text(value)),
        (None, Value::String(text)) => Field::Text(text.clone()),
        (Some("float"), Value::String(text)) => Field::Float(text.parse().ok()?),
        (Some("int"), Value::String(text)) => Field::Int(text.parse().ok()?),
        _ => return None,
    })
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

impl Point {
    /// InfluxDB's line protocol, in nanoseconds, tags and fields in order of name.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = escaped(&self.name, &[',', ' ']);
        for (key, value) in &self.tags {
            let sign = [',', '=', ' '];
            line.push_str(&format!(",{}={}", escaped(key, &sign), escaped(value, &sign)));
        }
        let fields: Vec<String> = self
            .fields
            .iter()
            .map(|(key, field)| format!("{}={}", escaped(key, &[',', '=', ' ']), field.line()))
            .collect();
        line.push_str(&format!(" {}", fields.join(",")));
        if let Some(ms) = self.time_ms {
            line.push_str(&format!(" {}", i128::from(ms) * 1_000_000));
        }
        line
    }
}

impl Field {
    fn line(&self) -> String {
        match self {
            Self::Float(value) => format!("{value}"),
            Self::Int(value) => format!("{value}i"),
            Self::Bool(value) => value.to_string(),
            Self::Text(text) => format!("\"{}\"", escaped(text, &['"', '\\'])),
        }
    }
}

fn escaped(text: &str, signs: &[char]) -> String {
    let mut escaped = String::new();
    for sign in text.chars() {
        if signs.contains(&sign) {
            escaped.push('\\');
        }
        escaped.push(sign);
    }
    escaped
}

/// Whether an MQTT filter matches a topic.
fn matches(filter: &str, topic: &str) -> bool {
    let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
    loop {
        match (filter.next(), topic.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(wanted), Some(part)) if wanted == part => {}
            _ => return false,
        }
    }
}

fn strings(value: &toml::Value) -> Vec<String> {
    let list = value.as_array().expect("a list").iter();
    list.map(|text| text.as_str().expect("text").to_owned()).collect()
}

fn only(table: &Table, known: &[&str]) {
    let unknown: Vec<_> = table.keys().filter(|key| !known.contains(&key.as_str())).collect();
    assert!(unknown.is_empty(), "{unknown:?} are not known here");
}
