//! What others make of the device's messages, over a real broker, without a line of code of ours: Telegraf by the rules that
//! it documents and the configuration that we ship, Home Assistant by the discovery message alone.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use e2e::homeassistant::Discovered;
use e2e::subscriber::{Heard, Subscriber};
use e2e::telegraf::{Field, Point, Telegraf};
use e2e::{configure, quick_stack, root, until};
use edge_sim::live::Stack;
use serde_json::Value;
use wire::{InferWindow, PowerWindow, ResourceWindow};

const PATIENCE: Duration = Duration::from_secs(60);

fn shipped() -> Telegraf {
    let text = std::fs::read_to_string(root().join("packaging/telegraf/espalier.conf")).unwrap();
    Telegraf::read(&text)
}

fn subscribed(stack: &Stack, root: &str) -> Subscriber {
    let address = stack.broker_address();
    let (host, port) = address.rsplit_once(':').unwrap();
    Subscriber::start((host, port.parse().unwrap()), root, PATIENCE)
}

#[test]
fn telegraf_makes_of_a_window_the_line_that_it_should() {
    let payload = br#"{"schema":"espalier.infer.v1","ts":1795000000123,"seq":7,"boot_id":"b","model":"m 1","digest":"sha256:ab",
        "window_ms":10000,"windows":1,"requests":3,"errors":0,"rejected":1,"p50_us":950,"p95_us":1200,"p99_us":1200,
        "max_us":1234,"mean_us":1000.5,"queue_p95_us":null,"drift":null,
        "compute":{"unit":"us","buckets":[[150,3]],"sum_us":3001,"max_us":1234}}"#;
    let points = shipped().points("espalier/v1/d/pi 4/up/m/infer/m 1", payload).unwrap();
    let lines: Vec<String> = points.iter().map(Point::line).collect();
    assert_eq!(
        lines,
        [
            r"espalier_infer,device=pi\ 4,digest=sha256:ab,model=m\ 1 errors=0i,max_us=1234i,mean_us=1000.5,p50_us=950i,p95_us=1200i,p99_us=1200i,rejected=1i,requests=3i,window_ms=10000i,windows=1i 1795000000123000000"
        ]
    );
    let payload = br#"{"schema":"espalier.state.v1","ts":1,"seq":1,"boot_id":"b","state":"degraded","reason":"model \"m\""}"#;
    let points = shipped().points("espalier/v1/d/d/up/state", payload).unwrap();
    assert_eq!(
        points[0].line(),
        r#"espalier_state,device=d reason="model \"m\"",state="degraded""#
    );
}

/// Holds a point against what the message says to whoever knows its type.
fn check(heard: &Heard, point: &Point) {
    let int = |key: &str| match point.fields.get(key) {
        Some(Field::Int(value)) => u64::try_from(*value).ok(),
        None => None,
        other => panic!("{key} is {other:?}"),
    };
    let float = |key: &str| match point.fields.get(key) {
        Some(Field::Float(value)) => Some(*value),
        None => None,
        other => panic!("{key} is {other:?}"),
    };
    let payload: Value = serde_json::from_slice(&heard.payload).unwrap();
    assert_eq!(point.tags["device"], heard.topic.split('/').nth(3).unwrap());
    if point.time_ms.is_some() {
        assert_eq!(point.time_ms, payload["ts"].as_i64());
    }
    match point.name.as_str() {
        "espalier_infer" => {
            let window: InferWindow = wire::decode(&heard.payload).unwrap();
            assert_eq!(
                (&point.tags["model"], &point.tags["digest"]),
                (&window.model, &window.digest)
            );
            assert_eq!(int("requests"), Some(window.requests));
            assert_eq!(int("p95_us"), window.p95_us);
            assert_eq!(float("mean_us"), window.mean_us);
            assert_eq!(point.tags.len(), 3);
        }
        "espalier_res" => {
            let window: ResourceWindow = wire::decode(&heard.payload).unwrap();
            assert_eq!(int("agent_pss_bytes"), window.agent_pss_bytes);
            assert_eq!(int("disk_written_bytes"), window.disk_written_bytes);
            assert_eq!(float("cpu_percent"), window.cpu_percent);
            assert_eq!(point.fields["throttled"], Field::Bool(window.throttled));
        }
        "espalier_power" => {
            let window: PowerWindow = wire::decode(&heard.payload).unwrap();
            assert_eq!(point.tags["quality"], window.quality.as_str());
            assert_eq!(float("power_mw"), window.power_mw);
        }
        "espalier_state" => {
            assert_eq!(
                point.fields["state"],
                Field::Text(payload["state"].as_str().unwrap().to_owned())
            );
        }
        "espalier_event" => assert_eq!(point.tags["kind"], heard.topic.rsplit('/').next().unwrap()),
        other => panic!("{other} is no measurement of ours"),
    }
    let line = point.line();
    assert!(!line.contains("NaN") && !line.contains("inf,"), "{line}");
    let numbers = payload.as_object().unwrap().iter().filter(|(_, value)| value.is_number());
    for (key, _) in numbers {
        if let Some(field) = point.fields.get(key) {
            assert!(matches!(field, Field::Int(_) | Field::Float(_)), "{key} is a number: {line}");
        }
    }
}

#[test]
fn telegraf_reads_what_a_device_says_with_the_configuration_that_we_ship() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = quick_stack(folder.path());
    options.root = "espalier/v1".to_owned();
    let mut stack = Stack::start(options).unwrap();
    let subscriber = subscribed(&stack, "espalier/v1");
    stack.deploy().unwrap();
    stack.wait_committed(PATIENCE).unwrap();
    let _client = stack.client("all").unwrap();
    let telegraf = shipped();
    let wanted: BTreeSet<&str> =
        ["espalier_infer", "espalier_res", "espalier_power", "espalier_state", "espalier_event"]
            .into();
    until("every measurement", PATIENCE, || {
        let mut seen = BTreeSet::new();
        for heard in subscriber.heard().iter().filter(|heard| !heard.payload.is_empty()) {
            let points = telegraf.points(&heard.topic, &heard.payload).unwrap();
            assert!(points.len() <= 1, "{} is one point", heard.topic);
            for point in points {
                check(heard, &point);
                seen.insert(point.name);
            }
        }
        wanted.iter().all(|name| seen.contains(*name)).then_some(())
    });
}

/// What Home Assistant would show for a field in thousandths.
fn thousandth(value: Option<f64>) -> Option<f64> {
    value.map(|value| (value / 1000.0 * 1000.0).round() / 1000.0)
}

#[test]
fn home_assistant_shows_a_device_by_its_discovery_message_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = quick_stack(folder.path());
    configure(&mut options, "[homeassistant]\nenabled = true\nprefix = \"ha\"");
    let mut stack = Stack::start(options).unwrap();
    let discovery = subscribed(&stack, "ha");
    let topics = stack.options().root.clone();
    let subscriber = subscribed(&stack, &topics);
    stack.deploy().unwrap();
    let committed = stack.wait_committed(PATIENCE).unwrap();
    let client = stack.client("all").unwrap();
    let model = stack.options().model.clone();
    let p95 = format!("model_{model}_p95");
    until("a model's latency", PATIENCE, || {
        let found = Discovered::last("ha", &discovery.heard())?;
        let shown = found.shown(&subscriber.heard());
        (shown.get(&p95)?.is_some() && shown.get("power")?.is_some()).then_some(())
    });
    drop(client);

    // All of it against what the messages say to whoever knows their types.
    let found = Discovered::last("ha", &discovery.heard()).unwrap();
    let heard = subscriber.heard();
    let shown = found.shown(&heard);
    let last = |end: &str| {
        heard
            .iter()
            .rev()
            .find(|heard| heard.topic.ends_with(end))
            .map(|heard| heard.payload.clone())
            .unwrap()
    };
    let number = |key: &str| shown[key].as_ref().map(|text| text.parse::<f64>().unwrap());
    let infer: InferWindow = wire::decode(&last(&format!("up/m/infer/{model}"))).unwrap();
    #[allow(clippy::cast_precision_loss)]
    let wide = |value: Option<u64>| value.map(|value| value as f64);
    assert_eq!(number(&p95), thousandth(wide(infer.p95_us)));
    let resources: ResourceWindow = wire::decode(&last("up/m/res")).unwrap();
    assert_eq!(number("agent_memory"), wide(resources.agent_pss_bytes));
    assert_eq!(number("workers_memory"), wide(resources.workers_pss_bytes));
    assert_eq!(number("disk_written_day"), wide(resources.disk_written_day_bytes));
    #[allow(clippy::cast_precision_loss)]
    let temperature = resources.temperature_mc.map(|value| value as f64);
    assert_eq!(number("temperature"), thousandth(temperature));
    let power: PowerWindow = wire::decode(&last("up/m/power")).unwrap();
    assert_eq!(number("power"), thousandth(power.power_mw));
    let attributes = found.attributes("power", &heard).unwrap();
    assert_eq!(attributes["quality"], power.quality.as_str(), "the tag travels with the number");
    assert_eq!(shown[&format!("model_{model}_digest")].as_deref(), Some(committed.digest.as_str()));
    assert_eq!(shown["state"].as_deref(), Some("online"));
    assert!(found.is_available(&heard));

    // The last will makes it unavailable.
    stack.agent_kill9();
    until("the device to be gone", PATIENCE, || {
        (!found.is_available(&subscriber.heard())).then_some(())
    });

    // Switched off, it is taken back.
    configure(stack.options_mut(), "[homeassistant]\nenabled = false");
    stack.agent_start().unwrap();
    until("the device to be taken back", PATIENCE, || {
        Discovered::last("ha", &discovery.heard()).is_none().then_some(())
    });
    let after = subscribed(&stack, "ha");
    stack.wait_online(PATIENCE).unwrap();
    assert!(after.heard().iter().all(|heard| heard.payload.is_empty()), "the broker keeps nothing");
}
