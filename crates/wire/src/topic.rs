//! Where a message goes: `{root}/d/{device}/…`, built and read in one place.
//!
//! Two access-control patterns cover a fleet: a device writes `up/#` and reads `dn/#`.

use crate::budget::vocabulary;
use crate::payload::CommandKind;

/// Root used when the configuration names none.
pub const DEFAULT_ROOT: &str = "espalier/v1";
/// Longest device, model or identifier name in a topic, bytes.
pub const MAX_NAME_BYTES: usize = 128;
/// Longest root, bytes.
pub const MAX_ROOT_BYTES: usize = 256;

vocabulary! {
    /// Kinds of events under `up/e/`.
    EventKind {
        /// A budget was broken.
        BudgetBreach = "budget_breach",
        /// An install made progress or ended.
        Install = "install",
        /// An installed model was rolled back.
        Rollback = "rollback",
        /// The CPU is or was throttled.
        Throttle = "throttle",
        /// Telemetry was dropped for lack of space.
        SpoolDrop = "spool_drop",
        /// Somebody commanded something.
        Command = "command",
    }
}

/// A stream of windowed metrics under `up/m/`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stream {
    /// Requests of one model: `infer/{name}`.
    Infer(String),
    /// Memory, CPU, temperature: `res`.
    Res,
    /// Power and energy: `power`.
    Power,
}

/// What a topic says below the device.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// `up/birth`
    Birth,
    /// `up/state`
    State,
    /// `up/model/{name}`
    Model(String),
    /// `up/m/{stream}`
    Metrics(Stream),
    /// `up/e/{kind}`
    Event(EventKind),
    /// `up/rq/recompress`
    Recompress,
    /// `up/rs/{id}`
    Result(String),
    /// `dn/offer/{name}`
    Offer(String),
    /// `dn/cmd/{kind}/{id}`
    Command(CommandKind, String),
}

/// Why a topic or a name in it was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// The name cannot stand in a topic.
    #[error("{what} name {name:?} cannot be part of a topic: {why}")]
    Name {
        /// Which name: device, model, …
        what: &'static str,
        /// The name, shortened.
        name: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// The root cannot start a topic.
    #[error("topic root {root:?}: {why}")]
    Root {
        /// The root, shortened.
        root: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// The topic does not start with the root and `/d/`.
    #[error("topic {topic:?} is not under {root:?}")]
    OutsideRoot {
        /// The topic, shortened.
        topic: String,
        /// The root that was expected.
        root: String,
    },
    /// The part below the device is not one that Espalier knows.
    #[error("topic {0:?} is not one of Espalier's")]
    Unknown(String),
}

/// The topics of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topics {
    base: String,
    device: String,
}

impl Topics {
    /// Topics of `device` under `root`; both are checked.
    pub fn new(root: &str, device: &str) -> Result<Self, TopicError> {
        check_root(root)?;
        check_name("device", device)?;
        Ok(Self { base: format!("{root}/d/{device}"), device: device.to_owned() })
    }

    /// The device's name.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Identity and capabilities, retained.
    #[must_use]
    pub fn birth(&self) -> String {
        format!("{}/up/birth", self.base)
    }

    /// Online, offline, degraded; retained, and the last will.
    #[must_use]
    pub fn state(&self) -> String {
        format!("{}/up/state", self.base)
    }

    /// The actual model, retained.
    pub fn model(&self, name: &str) -> Result<String, TopicError> {
        self.named("model", "up/model", name)
    }

    /// Windowed metrics.
    pub fn metrics(&self, stream: &Stream) -> Result<String, TopicError> {
        match stream {
            Stream::Infer(model) => self.named("model", "up/m/infer", model),
            Stream::Res => Ok(format!("{}/up/m/res", self.base)),
            Stream::Power => Ok(format!("{}/up/m/power", self.base)),
        }
    }

    /// What all windowed metrics begin with.
    #[must_use]
    pub fn metrics_prefix(&self) -> String {
        format!("{}/up/m/", self.base)
    }

    /// Events.
    #[must_use]
    pub fn event(&self, kind: EventKind) -> String {
        format!("{}/up/e/{kind}", self.base)
    }

    /// Requests for a smaller model.
    #[must_use]
    pub fn recompress(&self) -> String {
        format!("{}/up/rq/recompress", self.base)
    }

    /// The result of a command.
    pub fn result(&self, id: &str) -> Result<String, TopicError> {
        self.named("command", "up/rs", id)
    }

    /// The desired model, retained.
    pub fn offer(&self, name: &str) -> Result<String, TopicError> {
        self.named("model", "dn/offer", name)
    }

    /// A one-shot command.
    pub fn command(&self, kind: CommandKind, id: &str) -> Result<String, TopicError> {
        check_name("command", id)?;
        Ok(format!("{}/dn/cmd/{kind}/{id}", self.base))
    }

    /// Everything a device reads.
    #[must_use]
    pub fn down_filter(&self) -> String {
        format!("{}/dn/#", self.base)
    }

    fn named(&self, what: &'static str, path: &str, name: &str) -> Result<String, TopicError> {
        check_name(what, name)?;
        Ok(format!("{}/{path}/{name}", self.base))
    }
}

/// The filter of all devices' re-compression requests.
pub fn requests_filter(root: &str) -> Result<String, TopicError> {
    check_root(root)?;
    Ok(format!("{root}/d/+/up/rq/recompress"))
}

/// The filter of all devices' events of one kind.
pub fn events_filter(root: &str, kind: EventKind) -> Result<String, TopicError> {
    check_root(root)?;
    Ok(format!("{root}/d/+/up/e/{kind}"))
}

/// The filter of everything under a root.
pub fn everything_filter(root: &str) -> Result<String, TopicError> {
    check_root(root)?;
    Ok(format!("{root}/d/#"))
}

/// Reads a topic: the device and what is said about it.
pub fn parse(root: &str, topic: &str) -> Result<(String, Topic), TopicError> {
    check_root(root)?;
    let outside = || TopicError::OutsideRoot { topic: shorten(topic), root: root.to_owned() };
    let rest = topic.strip_prefix(root).and_then(|rest| rest.strip_prefix("/d/"));
    let (device, rest) = rest.and_then(|rest| rest.split_once('/')).ok_or_else(outside)?;
    check_name("device", device)?;
    let parts: Vec<&str> = rest.splitn(6, '/').collect();
    let parsed = match parts.as_slice() {
        ["up", "birth"] => Topic::Birth,
        ["up", "state"] => Topic::State,
        ["up", "model", name] => Topic::Model(checked("model", name)?),
        ["up", "m", "infer", name] => Topic::Metrics(Stream::Infer(checked("model", name)?)),
        ["up", "m", "res"] => Topic::Metrics(Stream::Res),
        ["up", "m", "power"] => Topic::Metrics(Stream::Power),
        ["up", "e", kind] => Topic::Event(kind.parse().map_err(|_| unknown(topic))?),
        ["up", "rq", "recompress"] => Topic::Recompress,
        ["up", "rs", id] => Topic::Result(checked("command", id)?),
        ["dn", "offer", name] => Topic::Offer(checked("model", name)?),
        ["dn", "cmd", kind, id] => {
            Topic::Command(kind.parse().map_err(|_| unknown(topic))?, checked("command", id)?)
        }
        _ => return Err(unknown(topic)),
    };
    Ok((device.to_owned(), parsed))
}

/// Whether a name may stand in a topic, and hence in a file name: not empty, at most
/// [`MAX_NAME_BYTES`], no `/`, `\`, `+`, `#` or control character, and not `.` or `..`.
pub fn check_name(what: &'static str, name: &str) -> Result<(), TopicError> {
    let why = if name.is_empty() {
        "it is empty"
    } else if name.len() > MAX_NAME_BYTES {
        "it is longer than 128 bytes"
    } else if name.contains(['/', '\\', '+', '#']) {
        "it contains one of / \\ + #"
    } else if name.chars().any(char::is_control) {
        "it contains a control character"
    } else if name == "." || name == ".." {
        "it is a path"
    } else {
        return Ok(());
    };
    Err(TopicError::Name { what, name: shorten(name), why })
}

fn checked(what: &'static str, name: &str) -> Result<String, TopicError> {
    check_name(what, name)?;
    Ok(name.to_owned())
}

fn check_root(root: &str) -> Result<(), TopicError> {
    let why = if root.len() > MAX_ROOT_BYTES {
        "it is longer than 256 bytes"
    } else if root.starts_with('$') {
        "topics that start with $ belong to the broker"
    } else if root.split('/').any(|level| check_name("root", level).is_err()) {
        "every level needs a name without + # or control characters"
    } else {
        return Ok(());
    };
    Err(TopicError::Root { root: shorten(root), why })
}

fn unknown(topic: &str) -> TopicError {
    TopicError::Unknown(shorten(topic))
}

/// Enough of a hostile string for a log line.
fn shorten(text: &str) -> String {
    text.chars().take(MAX_NAME_BYTES).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ROOT: &str = DEFAULT_ROOT;

    fn topics() -> Topics {
        Topics::new(ROOT, "pi-1").unwrap()
    }

    #[test]
    fn every_topic_reads_back_as_what_it_was_built_from() {
        let t = topics();
        let mut cases = vec![
            (t.birth(), Topic::Birth),
            (t.state(), Topic::State),
            (t.model("magika").unwrap(), Topic::Model("magika".into())),
            (t.recompress(), Topic::Recompress),
            (t.result("7").unwrap(), Topic::Result("7".into())),
            (t.offer("a b").unwrap(), Topic::Offer("a b".into())),
        ];
        for stream in [Stream::Infer("m".into()), Stream::Res, Stream::Power] {
            cases.push((t.metrics(&stream).unwrap(), Topic::Metrics(stream)));
        }
        for kind in EventKind::ALL {
            cases.push((t.event(*kind), Topic::Event(*kind)));
        }
        for kind in CommandKind::ALL {
            cases.push((t.command(*kind, "c-1").unwrap(), Topic::Command(*kind, "c-1".into())));
        }
        for (text, topic) in cases {
            assert_eq!(parse(ROOT, &text).unwrap(), ("pi-1".to_owned(), topic), "{text}");
        }
    }

    #[test]
    fn topics_look_as_the_design_says() {
        let t = topics();
        assert_eq!(
            t.metrics(&Stream::Infer("m".into())).unwrap(),
            "espalier/v1/d/pi-1/up/m/infer/m"
        );
        assert_eq!(t.event(EventKind::BudgetBreach), "espalier/v1/d/pi-1/up/e/budget_breach");
        assert_eq!(t.command(CommandKind::Ping, "1").unwrap(), "espalier/v1/d/pi-1/dn/cmd/ping/1");
        assert_eq!(t.down_filter(), "espalier/v1/d/pi-1/dn/#");
        assert_eq!(requests_filter(ROOT).unwrap(), "espalier/v1/d/+/up/rq/recompress");
        assert_eq!(
            events_filter(ROOT, EventKind::Install).unwrap(),
            "espalier/v1/d/+/up/e/install"
        );
        assert_eq!(everything_filter("x").unwrap(), "x/d/#");
    }

    #[test]
    fn a_name_that_would_change_the_topic_is_refused() {
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        for name in ["", "a/b", "+", "#", "a#", "nul\0", "tab\t", "..", ".", "a\\b", long.as_str()]
        {
            assert!(matches!(Topics::new(ROOT, name), Err(TopicError::Name { .. })), "{name:?}");
            assert!(matches!(topics().offer(name), Err(TopicError::Name { .. })), "{name:?}");
            assert!(topics().metrics(&Stream::Infer(name.to_owned())).is_err(), "{name:?}");
        }
        assert!(topics().offer(&"x".repeat(MAX_NAME_BYTES)).is_ok());
    }

    #[test]
    fn a_root_that_is_no_root_is_refused() {
        for root in
            ["", "/", "a/", "/a", "a//b", "a/+", "#", "$SYS", "$share/g/x", &"x/".repeat(200)]
        {
            assert!(matches!(Topics::new(root, "d"), Err(TopicError::Root { .. })), "{root:?}");
            assert!(requests_filter(root).is_err() && everything_filter(root).is_err(), "{root:?}");
            assert!(events_filter(root, EventKind::Install).is_err(), "{root:?}");
        }
    }

    #[test]
    fn a_foreign_topic_is_refused_with_the_reason() {
        for topic in [
            "",
            "other/d/x/up/birth",
            "espalier/v1",
            "espalier/v1/d/x",
            "espalier/v1x/d/x/up/birth",
        ] {
            assert!(matches!(parse(ROOT, topic), Err(TopicError::OutsideRoot { .. })), "{topic:?}");
        }
        for rest in [
            "up",
            "up/",
            "up/birth/x",
            "up/m/infer",
            "up/m/infer/a/b",
            "up/e/unheard_of",
            "dn/cmd/ping",
            "dn/cmd/explode/1",
            "up/rq/recompress/a/b/c/d/e",
        ] {
            let topic = format!("{ROOT}/d/x/{rest}");
            assert!(matches!(parse(ROOT, &topic), Err(TopicError::Unknown(_))), "{topic:?}");
        }
        assert!(matches!(parse(ROOT, "espalier/v1/d//up/birth"), Err(TopicError::Name { .. })));
        assert!(matches!(parse(ROOT, "espalier/v1/d/x/up/model/"), Err(TopicError::Name { .. })));
    }
}
