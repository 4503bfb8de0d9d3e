//! What the agent says to the service manager and to the broker before anything else, read by stand-ins for both.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use e2e::binary;
use e2e::guarded::write_config;
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(30);

/// An agent, and the socket that it takes for its service manager's.
struct Service {
    agent: Child,
    manager: UnixDatagram,
    config: PathBuf,
    _folder: tempfile::TempDir,
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

impl Service {
    /// With these keys beside those of every device, and a watchdog of so many microseconds.
    fn start(more: &str, watchdog_us: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("notify");
        let manager = UnixDatagram::bind(&socket).unwrap();
        manager.set_read_timeout(Some(PATIENCE)).unwrap();
        let config = write_config(folder.path(), "managed", more);
        let agent = Command::new("sh")
            // The process that is watched is named by its number.
            .args(["-c", "WATCHDOG_PID=$$ exec \"$0\" run --config \"$1\""])
            .arg(binary("espalier-agent"))
            .arg(&config)
            .env("NOTIFY_SOCKET", &socket)
            .env("WATCHDOG_USEC", watchdog_us.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { agent, manager, config, _folder: folder }
    }

    /// Waits for a message that has all of these lines.
    fn hears(&self, lines: &[&str]) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = [0; 4096];
        loop {
            assert!(Instant::now() < deadline, "never {lines:?}");
            let length = self.manager.recv(&mut buffer).unwrap();
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if lines.iter().all(|line| text.lines().any(|said| said.starts_with(line))) {
                return text;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.agent), signal).unwrap();
    }
}

/// Keys of a broker that nobody is.
fn nobody() -> String {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    format!("[mqtt]\nhost = \"127.0.0.1\"\nport = {port}\n")
}

#[test]
fn a_device_without_a_model_is_ready_though_its_broker_is_not() {
    let service = Service::start(&nobody(), 60_000_000);
    service.hears(&["READY=1", "STATUS=0 models"]);
}

#[test]
fn the_watchdog_is_told_again_and_again_and_the_end_is_given_the_time_it_may_take() {
    let more = format!("{}[budgets.m]\nlatency_p95_us = 1\n", nobody());
    let mut service = Service::start(&more, 300_000);
    service.hears(&["READY=1"]);
    for _ in 0..3 {
        service.hears(&["WATCHDOG=1"]);
    }
    service.signal(Signal::TERM);
    // serve.drain_deadline_ms is 10 s unless it is configured.
    let last = service.hears(&["STOPPING=1", "EXTEND_TIMEOUT_USEC="]);
    let asked = last.lines().find_map(|line| line.strip_prefix("EXTEND_TIMEOUT_USEC=")).unwrap();
    assert!(asked.parse::<u64>().unwrap() > 10_000_000, "{asked}");
    assert!(service.agent.wait().unwrap().success());
}

#[test]
fn a_reload_that_is_refused_says_so_and_leaves_the_service_as_it_was() {
    let service = Service::start("", 60_000_000);
    service.hears(&["READY=1"]);
    let good = fs::read_to_string(&service.config).unwrap();
    let reload = |text: &str| {
        fs::write(&service.config, text).unwrap();
        service.signal(Signal::HUP);
        service.hears(&["RELOADING=1", "MONOTONIC_USEC="]);
        service.hears(&["READY=1", "STATUS="])
    };
    assert!(reload(&good).contains("STATUS=the configuration was read again"));
    let refused = reload(&format!("{good}[budgets.m]\nlatency_p95_us = 0\npower_mw = -1\n"));
    assert!(refused.contains("is not taken over"), "{refused}");
    assert!(reload(&good).contains("was read again"));
}

/// What an MQTT 5 client asks of its broker, by the numbers of the properties.
#[derive(Debug, PartialEq)]
struct Connect {
    clean_start: bool,
    keep_alive: u64,
    session_expiry: Option<u64>,
    receive_maximum: Option<u64>,
    max_packet_bytes: Option<u64>,
    will: Option<(u8, bool, Option<u64>)>,
}

/// The parts of a packet, taken one after the other.
struct Packet<'a>(&'a [u8]);

impl Packet<'_> {
    fn number(&mut self, bytes: usize) -> u64 {
        let (number, rest) = self.0.split_at(bytes);
        self.0 = rest;
        number.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    fn varint(&mut self) -> usize {
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let byte = usize::try_from(self.number(1)).unwrap();
            value |= (byte & 127) << shift;
            if byte & 128 == 0 {
                break;
            }
        }
        value
    }

    /// The properties of MQTT 5 that are numbers, of which alone there are any here.
    fn properties(&mut self) -> Vec<(u64, u64)> {
        let length = self.varint();
        let end = self.0.len() - length;
        let mut found = Vec::new();
        while self.0.len() > end {
            let kind = self.number(1);
            let width = match kind {
                0x01 | 0x17 | 0x19 => 1,
                0x21 | 0x22 => 2,
                0x02 | 0x11 | 0x18 | 0x27 => 4,
                other => panic!("property {other:#x}"),
            };
            found.push((kind, self.number(width)));
        }
        found
    }

    fn skip(&mut self) {
        let length = self.number(2);
        self.number(usize::try_from(length).unwrap());
    }
}

fn parse(body: &[u8]) -> Connect {
    let mut packet = Packet(body);
    packet.skip();
    assert_eq!(packet.number(1), 5, "MQTT 5");
    let flags = u8::try_from(packet.number(1)).unwrap();
    let keep_alive = packet.number(2);
    let properties = packet.properties();
    packet.skip();
    let of = |properties: &[(u64, u64)], kind: u64| {
        properties.iter().find(|(found, _)| *found == kind).map(|(_, value)| *value)
    };
    let will = (flags & 4 != 0).then(|| {
        let own = packet.properties();
        (flags >> 3 & 3, flags & 32 != 0, of(&own, 0x18))
    });
    Connect {
        clean_start: flags & 2 != 0,
        keep_alive,
        session_expiry: of(&properties, 0x11),
        receive_maximum: of(&properties, 0x21),
        max_packet_bytes: of(&properties, 0x27),
        will,
    }
}

/// What the agent asks of a broker that only listens.
fn connect_of(more: &str, folder: &Path) -> Connect {
    let broker = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = broker.local_addr().unwrap().port();
    let more = format!("[mqtt]\nhost = \"127.0.0.1\"\nport = {port}\n{more}");
    let config = write_config(folder, "asking", &more);
    let mut agent = Command::new(binary("espalier-agent"))
        .args(["run", "--config"])
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut socket, _) = broker.accept().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut first = [0; 1];
    socket.read_exact(&mut first).unwrap();
    assert_eq!(first[0], 0x10, "CONNECT comes first");
    let mut length = Vec::new();
    while length.last().is_none_or(|byte| byte & 128 != 0) {
        let mut byte = [0; 1];
        socket.read_exact(&mut byte).unwrap();
        length.push(byte[0]);
    }
    let mut body = vec![0; Packet(&length).varint()];
    socket.read_exact(&mut body).unwrap();
    agent.kill().unwrap();
    agent.wait().unwrap();
    parse(&body)
}

#[test]
fn the_session_is_asked_for_with_every_number_that_is_documented_or_configured() {
    let folder = tempfile::tempdir().unwrap();
    let packet = u64::try_from(wire::MAX_PAYLOAD_BYTES).unwrap() + 8192;
    let documented = Connect {
        clean_start: false,
        keep_alive: 30,
        session_expiry: Some(7 * 86_400),
        receive_maximum: Some(16),
        max_packet_bytes: Some(packet),
        will: Some((1, true, Some(10))),
    };
    assert_eq!(connect_of("", folder.path()), documented);
    let keys = "keep_alive = 77\nsession_expiry_s = 99\nwill_delay_s = 0\ninflight = 3\n";
    let configured = Connect {
        clean_start: false,
        keep_alive: 77,
        session_expiry: Some(99),
        receive_maximum: Some(3),
        max_packet_bytes: Some(packet),
        will: Some((1, true, Some(0))),
    };
    assert_eq!(connect_of(keys, folder.path()), configured);
}
