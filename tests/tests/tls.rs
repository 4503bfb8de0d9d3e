//! Devices and the service at a broker that asks for certificates, and bundles over https.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bundle::{Bundle, Case, Draft, Limits, NamedTensor, SelfTest, Source, TensorSpec};
use e2e::certificates::{Authority, Identity};
use e2e::files::{Damage, FileServer};
use e2e::guarded::{BROKER, Guarded, LoneAgent, keys, mqtt, write_config};
use e2e::subscriber::Subscriber;
use e2e::{binary, until};
use espalier_agent::shell::download::{Access, Job, fetch};
use rumqttc::Transport;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PubAckReason};
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use serde_json::Value;
use tls::{Names, Relay, Settings, Target};

const PATIENCE: Duration = Duration::from_secs(30);

struct World {
    folder: tempfile::TempDir,
    authority: Authority,
    broker: Guarded,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(&folder.path().join("ca"), "fleet");
        let broker = Guarded::start(folder.path(), &authority);
        Self { folder, authority, broker }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn agent(&self, id: &str, more: &str) -> LoneAgent {
        LoneAgent::start(&self.path(id), id, more)
    }

    fn good(&self, identity: &Identity) -> String {
        keys(&self.authority, Some(identity), Some(BROKER))
    }
}

#[test]
fn a_device_speaks_to_its_broker_with_its_certificate_and_the_will_is_told() {
    let world = World::new();
    let port = world.broker.plain_port;
    let eyes = Subscriber::start(("127.0.0.1", port), "espalier/v1", PATIENCE);
    let said = |topic: &str, part: &str| {
        let part = part.to_owned();
        let heard = eyes.heard();
        heard
            .iter()
            .any(|m| m.topic == topic && String::from_utf8_lossy(&m.payload).contains(&part))
    };
    let more = mqtt(world.broker.port, &world.good(&world.authority.identity("dev-1", &[])));
    let agent = world.agent("dev-1", &more);
    agent.wait_connected();
    until("birth and state", PATIENCE, || {
        let all = said("espalier/v1/d/dev-1/up/birth", "dev-1")
            && said("espalier/v1/d/dev-1/up/state", "online");
        all.then_some(())
    });
    // Killed, so that nobody says good-bye.
    drop(agent);
    until("the will", PATIENCE, || said("espalier/v1/d/dev-1/up/state", "offline").then_some(()));
}

#[test]
fn each_failure_of_trust_is_told_with_the_side_that_refuses_and_the_agent_serves_on() {
    let world = World::new();
    let stranger = Authority::new(&world.path("other"), "stranger");
    let good = world.authority.identity("good", &[]);
    let foreign = stranger.identity("foreign", &[]);
    let over = world.authority.expired("over", &[]);
    let port = world.broker.port;
    let name = Some(BROKER);
    let here = "this device refuses the certificate of the broker 127.0.0.1";
    let there = "the broker 127.0.0.1";
    let cases: [(&str, String, &[&str]); 8] = [
        (
            "wrong-ca",
            mqtt(port, &keys(&stranger, Some(&good), name)),
            &[here, "none of the CAs", "stranger.crt", "mqtt.tls.ca_file"],
        ),
        (
            "wrong-name",
            mqtt(port, &keys(&world.authority, Some(&good), None)),
            &[here, "it is for broker.example, not for 127.0.0.1", "mqtt.tls.server_name"],
        ),
        (
            "old-broker",
            mqtt(world.broker.expired_port, &world.good(&good)),
            &[here, "it expired on 2021-02-03", "the clock here says"],
        ),
        (
            "none-sent",
            mqtt(port, &keys(&world.authority, None, name)),
            &[there, "may want a certificate, and none is set (mqtt.tls.cert_file"],
        ),
        (
            "foreign",
            mqtt(port, &world.good(&foreign)),
            &[there, "the certificate of mqtt.tls.cert_file"],
        ),
        ("over", mqtt(port, &world.good(&over)), &[there, "the certificate of mqtt.tls.cert_file"]),
        (
            "plain-door",
            mqtt(world.broker.plain_port, &world.good(&good)),
            &[there, "is the port the one for TLS?"],
        ),
        (
            "no-file",
            mqtt(port, "ca_file = \"/nowhere/ca.crt\""),
            &["mqtt.tls.ca_file: cannot read /nowhere/ca.crt"],
        ),
    ];
    for (id, more, parts) in cases {
        let agent = world.agent(id, &more);
        let reason = agent.wait_refused(parts);
        assert!(agent.serves(), "{id}");
        assert!(agent.log().contains(&reason), "{id}: {}", agent.log());
    }
}

#[test]
fn a_renewed_certificate_is_taken_without_a_restart() {
    let world = World::new();
    let over = world.authority.expired("dev-2", &[]);
    let agent = world.agent("dev-2", &mqtt(world.broker.port, &world.good(&over)));
    agent.wait_refused(&["the broker 127.0.0.1"]);
    let renewed = world.authority.identity("dev-2", &[]);
    assert_eq!(renewed.certificate, over.certificate);
    agent.wait_connected();
}

/// A client with a device's certificate, its event loop, and what carries it.
fn device(world: &World, id: &str) -> (AsyncClient, EventLoop, Relay) {
    let identity = world.authority.identity(id, &[]);
    let settings = Settings {
        ca: Some(world.authority.file.clone()),
        certificate: Some(identity.certificate),
        key: Some(identity.key),
        server_name: Some(BROKER.to_owned()),
        names: Names::default(),
    };
    let (host, port) = ("127.0.0.1".to_owned(), world.broker.port);
    let relay =
        Relay::open(Target { host, port, settings, here: "the test", role: "the broker" }).unwrap();
    let mut options = MqttOptions::new(id, relay.address(), port);
    options.set_transport(Transport::Unix);
    let (client, events) = AsyncClient::new(options, 16);
    (client, events, relay)
}

/// The next packet that the broker sends, or its failure.
async fn incoming(events: &mut EventLoop) -> Packet {
    let next = async {
        loop {
            if let Event::Incoming(packet) = events.poll().await.unwrap() {
                return packet;
            }
        }
    };
    tokio::time::timeout(PATIENCE, next).await.unwrap()
}

async fn published(client: &AsyncClient, events: &mut EventLoop, topic: &str) -> PubAckReason {
    client.publish(topic, QoS::AtLeastOnce, true, "x").await.unwrap();
    loop {
        if let Packet::PubAck(ack) = incoming(events).await {
            return ack.reason;
        }
    }
}

#[tokio::test]
async fn two_lines_of_access_rules_keep_every_device_to_its_own_topics() {
    let world = World::new();
    let up = |id: &str| format!("espalier/v1/d/{id}/up/state");
    let down = |id: &str| format!("espalier/v1/d/{id}/dn/offer/m");
    let (service, mut service_events, _relay) = device(&world, "service");
    for id in ["ann", "bob"] {
        let taken = published(&service, &mut service_events, &down(id)).await;
        assert!(matches!(taken, PubAckReason::Success | PubAckReason::NoMatchingSubscribers));
    }
    let (ann, mut events, _relay_of_ann) = device(&world, "ann");
    for (topic, allowed) in
        [(up("ann"), true), (up("bob"), false), (down("ann"), false), (down("bob"), false)]
    {
        let reason = published(&ann, &mut events, &topic).await;
        let taken = matches!(reason, PubAckReason::Success | PubAckReason::NoMatchingSubscribers);
        assert_eq!(taken, allowed, "{topic}: {reason:?}");
        assert!(taken || reason == PubAckReason::NotAuthorized, "{topic}: {reason:?}");
    }
    // Bob's offer is retained as Ann's is, and was published later; asked for first, it would come first.
    for topic in ["espalier/v1/d/bob/#", "espalier/v1/#", "espalier/v1/d/ann/dn/#"] {
        ann.subscribe(topic, QoS::AtLeastOnce).await.unwrap();
    }
    let (mut subscribed, mut heard) = (0, Vec::new());
    while subscribed < 3 || !heard.contains(&down("ann")) {
        match incoming(&mut events).await {
            Packet::SubAck(_) => subscribed += 1,
            Packet::Publish(message) => {
                heard.push(String::from_utf8_lossy(&message.topic).into_owned());
            }
            _ => {}
        }
    }
    // What was sent before the answer to this has come.
    published(&ann, &mut events, &up("ann")).await;
    assert!(heard.iter().all(|topic| topic.starts_with("espalier/v1/d/ann/dn/")), "{heard:?}");
}

fn check(world: &World, id: &str, more: &str, credentials: Option<&Path>) -> (Output, Value) {
    let folder = world.path(id);
    fs::create_dir_all(&folder).unwrap();
    let config = write_config(&folder, id, more);
    let mut command = Command::new(binary("espalier-agent"));
    command.args(["check", "--json", "--config"]).arg(config);
    if let Some(folder) = credentials {
        command.env("CREDENTIALS_DIRECTORY", folder);
    }
    let output = command.output().unwrap();
    let told = serde_json::from_slice(&output.stdout).unwrap();
    (output, told)
}

fn told(list: &Value) -> Vec<String> {
    let one =
        |v: &Value| format!("{}: {}", v["key"].as_str().unwrap(), v["what"].as_str().unwrap());
    list.as_array().unwrap().iter().map(one).collect()
}

#[test]
fn check_tells_everything_about_certificates_at_once() {
    let world = World::new();
    let over = world.authority.expired("dev-3", &[]);
    let other = world.authority.identity("somebody", &[]);
    let swapped = Identity { certificate: over.certificate.clone(), key: other.key.clone() };
    let more = mqtt(8883, &keys(&world.authority, Some(&swapped), Some("no name")))
        + "[download]\nca_file = \"/nowhere\"\nwindow = \"late\"\n";
    let (output, found) = check(&world, "dev-3", &more, None);
    assert_eq!(output.status.code(), Some(64));
    let problems = told(&found["problems"]);
    for part in [
        "mqtt.tls.cert_file: ",
        "expired on 2021-02-03",
        "mqtt.tls.key_file: ",
        "somebody.key is not the key of the certificate in",
        "mqtt.tls.server_name: \"no name\" is neither",
        "download.ca_file: cannot read /nowhere",
        "download.window: \"late\" is no part of a day",
    ] {
        assert!(problems.iter().any(|problem| problem.contains(part)), "{part}: {problems:#?}");
    }
    let (output, found) = check(&world, "dev-4", "[mqtt]\nhost = \"broker.example\"\n", None);
    assert!(output.status.success());
    assert!(
        told(&found["warnings"])[0].contains("mqtt.host: the connection to broker.example is not")
    );
}

#[test]
fn names_of_credentials_are_found_where_systemd_puts_them() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let identity = world.authority.identity("dev-5", &[]);
    fs::set_permissions(&identity.key, fs::Permissions::from_mode(0o644)).unwrap();
    let folder = world.authority.file.parent().unwrap();
    let tls = "ca_file = \"fleet.crt\"\ncert_file = \"dev-5.crt\"\nkey_file = \"dev-5.key\"\n";
    let more = mqtt(8883, tls);
    let (output, found) = check(&world, "dev-5", &more, Some(folder));
    assert!(output.status.success(), "{found}");
    let warnings = told(&found["warnings"]);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].contains("mqtt.tls.key_file") && warnings[0].contains("mode 644"),
        "{warnings:?}"
    );
    fs::set_permissions(&identity.key, fs::Permissions::from_mode(0o600)).unwrap();
    let (_, found) = check(&world, "dev-6", &more, Some(folder));
    let warnings = told(&found["warnings"]);
    assert!(warnings[0].contains("is for \"dev-5\", not for \"dev-6\""), "{warnings:?}");
    let (output, found) = check(&world, "dev-5", &more, None);
    assert_eq!(output.status.code(), Some(64));
    assert!(told(&found["problems"])[0].contains("$CREDENTIALS_DIRECTORY"), "{found}");
}

#[test]
fn the_service_speaks_to_the_broker_with_its_certificate() {
    let world = World::new();
    let identity = world.authority.identity("service", &[]);
    for name in ["m.onnx", "d.npz"] {
        fs::write(world.path(name), name).unwrap();
    }
    let (model, data) = (world.path("m.onnx"), world.path("d.npz"));
    let log = world.path("service.log");
    let port = world.broker.port;
    let mut command = Command::new(binary("espalier"));
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--broker"])
        .arg(format!("127.0.0.1:{port}"))
        .arg("--store")
        .arg(world.path("jobs"))
        .arg("--model")
        .arg(format!("m={}", model.display()))
        .arg("--calibration")
        .arg(format!("m={}", data.display()))
        .arg("--heldout")
        .arg(format!("m={}", data.display()))
        .arg("--mqtt-ca")
        .arg(&world.authority.file)
        .arg("--mqtt-cert")
        .arg(&identity.certificate)
        .arg("--mqtt-key")
        .arg(&identity.key)
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log).unwrap());
    let mut wrong = Command::new(command.get_program());
    wrong.args(command.get_args()).args(["--mqtt-server-name", "no name"]);
    let refused = wrong.output().unwrap();
    assert_eq!(refused.status.code(), Some(64), "{}", String::from_utf8_lossy(&refused.stderr));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("--mqtt-server-name: \"no name\" is neither"), "{said}");

    let logged = |part: &str| {
        until(part, PATIENCE, || fs::read_to_string(&log).unwrap().contains(part).then_some(()));
    };
    let mut nameless = Command::new(command.get_program());
    nameless.args(command.get_args()).stderr(fs::File::create(&log).unwrap());
    let mut child = nameless.stdout(Stdio::null()).spawn().unwrap();
    logged("this service refuses the certificate of the broker 127.0.0.1");
    child.kill().unwrap();
    child.wait().unwrap();
    command.args(["--mqtt-server-name", BROKER]);
    command.stderr(fs::File::create(&log).unwrap());
    let mut child = command.spawn().unwrap();
    logged("connected to the broker");
    child.kill().unwrap();
    child.wait().unwrap();
}

const MODEL_BYTES: usize = 300_000;

fn published_bundle(folder: &Path) -> Bundle {
    let model: Vec<u8> = (0..MODEL_BYTES).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let mut draft = Draft::new("m", "1.0.0", Source::Bytes(model));
    let spec = |name: &str| TensorSpec { name: name.into(), dtype: "FP32".into(), dims: vec![1] };
    let tensor = |name: &str| NamedTensor {
        name: name.into(),
        dtype: "FP32".into(),
        dims: vec![1],
        data: vec![0; 4],
    };
    draft.inputs = vec![spec("x")];
    draft.outputs = vec![spec("y")];
    draft.selftest = SelfTest {
        cases: vec![Case { inputs: vec![tensor("x")], outputs: vec![tensor("y")] }],
        rtol: 0.0,
        atol: 0.0,
    };
    draft.write(&folder.join("b")).unwrap()
}

#[test]
fn a_bundle_comes_over_https_and_goes_on_where_it_was_cut() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(&folder.path().join("ca"), "fleet");
    let bundle = published_bundle(folder.path());
    let identity = authority.identity("server", &["127.0.0.1"]);
    let server = FileServer::start_secure(folder.path(), &identity);
    let into = folder.path().join("staged");
    let download = |server: &FileServer, ca: &Path| {
        let access = Access { ca: Some(ca.to_owned()), pace: None };
        let (limits, cancelled) = (Limits::default(), AtomicBool::new(false));
        let (url, digest) = (server.url("b"), bundle.digest);
        fetch(&Job {
            url: &url,
            digest,
            into: &into,
            limits: &limits,
            access: &access,
            cancelled: &cancelled,
        })
    };
    let stranger = Authority::new(&folder.path().join("other"), "stranger");
    let reason = download(&server, &stranger.file).unwrap_err().reason;
    let parts =
        ["this device refuses the certificate of the server", "stranger.crt (download.ca_file)"];
    assert!(parts.iter().all(|part| reason.contains(part)), "{reason}");
    let missing = download(&server, Path::new("/nowhere/ca.crt")).unwrap_err().reason;
    assert!(missing.contains("download.ca_file: cannot read /nowhere/ca.crt"), "{missing}");

    let elsewhere = authority.identity("elsewhere", &["files.example"]);
    let named = FileServer::start_secure(folder.path(), &elsewhere);
    let reason = download(&named, &authority.file).unwrap_err().reason;
    assert!(reason.contains("it is for files.example, not for 127.0.0.1"), "{reason}");
    let over = authority.expired("past", &["127.0.0.1"]);
    let old = FileServer::start_secure(folder.path(), &over);
    let reason = download(&old, &authority.file).unwrap_err().reason;
    assert!(reason.contains("expired on 2021-02-03"), "{reason}");

    server.set_damage(Damage::CutInHalf);
    download(&server, &authority.file).unwrap_err();
    server.set_damage(Damage::None);
    download(&server, &authority.file).unwrap();
    assert_eq!(server.asked_for("b/model.onnx"), [0, u64::try_from(MODEL_BYTES / 2).unwrap()]);
    let staged = fs::read(into.join("model.onnx")).unwrap();
    assert_eq!(staged, fs::read(folder.path().join("b/model.onnx")).unwrap());
}
