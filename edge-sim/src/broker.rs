//! MQTT brokers to run the loop on: an embedded one, mosquitto, or one that is already there.
//!
//! The embedded broker (rumqttd) needs nothing installed and is meant for demonstrations. It keeps
//! nothing on disk, so a restart loses retained messages and sessions; it truncates more than 100
//! retained messages; it ignores `no_local` and retain handling, and its queue for an absent client
//! drops the oldest silently. Tests of the loop's robustness therefore use mosquitto, which persists
//! and is started here with its own configuration on a free port.
//!
//! Both run as child processes, the embedded one as `edge-sim broker`, so that both can be stopped
//! and started again in the middle of the loop.

use std::collections::HashMap;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::process::{POLL, Process, SpawnError, tied};

/// How long a broker may take until it accepts connections.
pub const START_DEADLINE: Duration = Duration::from_secs(15);
/// Messages that mosquitto keeps for an absent client.
pub const MAX_QUEUED_MESSAGES: u32 = 100_000;
/// Connections that the embedded broker accepts.
pub const MAX_CONNECTIONS: usize = 1_000;
const PORT_ATTEMPTS: u32 = 5;
/// Room for topic and properties beside the payload.
const PACKET_OVERHEAD_BYTES: usize = 4 * 1024;

/// Which broker to use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerKind {
    /// rumqttd, in a child process of this program.
    Embedded,
    /// Debian's mosquitto, in a child process.
    Mosquitto,
    /// One that already runs at `host:port`.
    External(String, u16),
}

/// Why there is no broker.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The text names no broker.
    #[error("{0:?} is no broker: say embedded, mosquitto or HOST:PORT")]
    Kind(String),
    /// The program is missing.
    #[error("mosquitto is not installed (looked for ESPALIER_MOSQUITTO, /usr/sbin and PATH)")]
    NoMosquitto,
    /// The child did not start.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// Files or ports could not be had.
    #[error("broker: {what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// It does not accept connections.
    #[error("the broker at {address} does not accept connections: {why}")]
    Unreachable {
        /// Where.
        address: String,
        /// Its log, or the deadline.
        why: String,
    },
    /// A broker that somebody else runs cannot be stopped or started.
    #[error("the broker at {0} was not started here and cannot be stopped or started")]
    NotOurs(String),
}

impl FromStr for BrokerKind {
    type Err = BrokerError;

    fn from_str(text: &str) -> Result<Self, BrokerError> {
        match text {
            "embedded" => Ok(Self::Embedded),
            "mosquitto" => Ok(Self::Mosquitto),
            _ => text
                .rsplit_once(':')
                .and_then(|(host, port)| Some((host, port.parse().ok()?)))
                .filter(|(host, port)| !host.is_empty() && *port != 0)
                .map(|(host, port)| Self::External(host.to_owned(), port))
                .ok_or_else(|| BrokerError::Kind(text.to_owned())),
        }
    }
}

impl std::fmt::Display for BrokerKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Embedded => f.write_str("embedded"),
            Self::Mosquitto => f.write_str("mosquitto"),
            Self::External(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// A broker that accepts connections, until it is stopped or dropped.
#[derive(Debug)]
pub struct Broker {
    kind: BrokerKind,
    host: String,
    port: u16,
    dir: PathBuf,
    edge_sim: PathBuf,
    process: Option<Process>,
}

impl Broker {
    /// Starts a broker of `kind` with its files in `dir`; `edge_sim` is this package's binary.
    ///
    /// # Errors
    /// The broker cannot be started, or is not reachable within [`START_DEADLINE`].
    pub fn start(kind: BrokerKind, dir: &Path, edge_sim: &Path) -> Result<Self, BrokerError> {
        std::fs::create_dir_all(dir).map_err(io(format!("creating {}", dir.display())))?;
        let (host, port) = match &kind {
            BrokerKind::External(host, port) => (host.clone(), *port),
            _ => (Ipv4Addr::LOCALHOST.to_string(), 0),
        };
        let (dir, edge_sim) = (dir.to_owned(), edge_sim.to_owned());
        let mut broker = Self { kind, host, port, dir, edge_sim, process: None };
        if broker.port != 0 {
            broker.wait_until_reachable()?;
            return Ok(broker);
        }
        // Between finding a free port and listening on it somebody else may take it.
        let mut result = Ok(());
        for _ in 0..PORT_ATTEMPTS {
            broker.port = free_port()?;
            result = broker.resume();
            if result.is_ok() {
                break;
            }
        }
        result.map(|()| broker)
    }

    /// Its host.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `host:port`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Where it logs.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("broker.log")
    }

    /// Ends it in good order: mosquitto saves sessions and retained messages.
    ///
    /// # Errors
    /// The broker was not started here.
    pub fn stop(&mut self) -> Result<(), BrokerError> {
        self.ours()?;
        if let Some(mut process) = self.process.take() {
            // The embedded broker ends when its standard input closes.
            drop(process.take_stdin());
            process.stop(Duration::from_secs(5));
        }
        Ok(())
    }

    /// Starts it again on the same port.
    ///
    /// # Errors
    /// The broker was not started here, or does not come up.
    pub fn resume(&mut self) -> Result<(), BrokerError> {
        self.ours()?;
        let command = match self.kind {
            BrokerKind::Mosquitto => tied(&self.edge_sim, &self.mosquitto()?),
            // It ends with its standard input, which this process holds.
            _ => self.embedded(),
        };
        self.process = Some(Process::spawn("broker", command, &self.log())?);
        self.wait_until_reachable()
    }

    fn ours(&self) -> Result<(), BrokerError> {
        match self.kind {
            BrokerKind::External(..) => Err(BrokerError::NotOurs(self.address())),
            _ => Ok(()),
        }
    }

    fn embedded(&self) -> Command {
        let mut command = Command::new(&self.edge_sim);
        command.args(["broker", "--listen", &self.address()]);
        command
    }

    fn mosquitto(&self) -> Result<Command, BrokerError> {
        let program = find_mosquitto().ok_or(BrokerError::NoMosquitto)?;
        let file = self.dir.join("mosquitto.conf");
        std::fs::write(&file, mosquitto_conf(self.port, &self.dir))
            .map_err(io(format!("writing {}", file.display())))?;
        let mut command = Command::new(program);
        command.arg("-c").arg(file);
        Ok(command)
    }

    fn wait_until_reachable(&mut self) -> Result<(), BrokerError> {
        let address = self.address();
        let unreachable = |why: String| BrokerError::Unreachable { address: address.clone(), why };
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            if reachable(&self.host, self.port) {
                return Ok(());
            }
            if let Some(process) = &mut self.process
                && let Some(status) = process.exited()
            {
                return Err(unreachable(format!("it ended ({status})\n{}", process.log_tail(10))));
            }
            if Instant::now() > deadline {
                return Err(unreachable(format!("{} s are over", START_DEADLINE.as_secs())));
            }
            std::thread::sleep(POLL);
        }
    }
}

/// Runs the embedded broker until standard input ends: the body of `edge-sim broker`.
///
/// # Errors
/// The address cannot be listened on.
pub fn run_embedded(listen: SocketAddr) -> Result<(), BrokerError> {
    // rumqttd reports a port that is taken only in its log: ask first.
    drop(TcpListener::bind(listen).map_err(io(format!("listening on {listen}")))?);
    let (end, ended) = std::sync::mpsc::channel();
    let failed = end.clone();
    let mut broker = rumqttd::Broker::new(embedded_config(listen));
    std::thread::spawn(move || {
        let why = broker.start().err().map_or("it ended".to_owned(), |error| error.to_string());
        let _ = failed.send(Some(why));
    });
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = end.send(None);
    });
    match ended.recv() {
        Ok(Some(why)) => Err(BrokerError::Unreachable { address: listen.to_string(), why }),
        Ok(None) | Err(_) => Ok(()),
    }
}

fn embedded_config(listen: SocketAddr) -> rumqttd::Config {
    let server = rumqttd::ServerSettings {
        name: "v5".to_owned(),
        listen,
        tls: None,
        next_connection_delay_ms: 1,
        connections: rumqttd::ConnectionSettings {
            connection_timeout_ms: 10_000,
            max_payload_size: wire::MAX_PAYLOAD_BYTES + PACKET_OVERHEAD_BYTES,
            max_inflight_count: 200,
            auth: None,
            external_auth: None,
            dynamic_filters: true,
        },
    };
    rumqttd::Config {
        router: rumqttd::RouterConfig {
            max_connections: MAX_CONNECTIONS,
            max_outgoing_packet_count: 200,
            max_segment_size: 10 * 1024 * 1024,
            max_segment_count: 10,
            ..rumqttd::RouterConfig::default()
        },
        v5: Some(HashMap::from([("v5".to_owned(), server)])),
        ..rumqttd::Config::default()
    }
}

fn mosquitto_conf(port: u16, dir: &Path) -> String {
    // Started by root it would otherwise become the user `mosquitto`, who may not write here.
    let user = if rustix::process::geteuid().is_root() { "user root\n" } else { "" };
    format!(
        "listener {port} 127.0.0.1\n\
         allow_anonymous true\n\
         {user}\
         persistence true\n\
         persistence_location {}/\n\
         max_queued_messages {MAX_QUEUED_MESSAGES}\n\
         log_dest stderr\n",
        dir.display()
    )
}

fn find_mosquitto() -> Option<PathBuf> {
    let named = std::env::var_os("ESPALIER_MOSQUITTO").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let searched = std::env::split_paths(&path).map(|dir| dir.join("mosquitto"));
    named
        .into_iter()
        .chain([PathBuf::from("/usr/sbin/mosquitto")])
        .chain(searched)
        .find(|program| program.is_file())
}

fn reachable(host: &str, port: u16) -> bool {
    let Ok(mut addresses) = (host, port).to_socket_addrs() else { return false };
    addresses.any(|a| TcpStream::connect_timeout(&a, Duration::from_millis(500)).is_ok())
}

pub(crate) fn free_port() -> Result<u16, BrokerError> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(io("finding a free port".to_owned()))
}

fn io(what: String) -> impl FnOnce(std::io::Error) -> BrokerError {
    move |source| BrokerError::Io { what, source }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_is_named_by_kind_or_by_address() {
        assert_eq!("embedded".parse::<BrokerKind>().unwrap(), BrokerKind::Embedded);
        assert_eq!("mosquitto".parse::<BrokerKind>().unwrap(), BrokerKind::Mosquitto);
        let external = BrokerKind::External("broker.local".to_owned(), 1883);
        assert_eq!("broker.local:1883".parse::<BrokerKind>().unwrap(), external);
        assert_eq!(external.to_string(), "broker.local:1883");
    }

    #[test]
    fn anything_else_is_an_error_that_says_what_may_be_said() {
        for text in ["", "mosquito", ":1883", "host:", "host:0", "host:70000"] {
            let error = text.parse::<BrokerKind>().unwrap_err().to_string();
            assert!(error.contains("embedded, mosquitto or HOST:PORT"), "{error}");
        }
    }

    #[test]
    fn a_broker_of_somebody_else_can_neither_be_stopped_nor_started() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let kind = BrokerKind::External("127.0.0.1".to_owned(), port);
        let mut broker = Broker::start(kind, dir.path(), Path::new("/nowhere")).unwrap();
        assert!(matches!(broker.stop(), Err(BrokerError::NotOurs(_))));
        assert!(matches!(broker.resume(), Err(BrokerError::NotOurs(_))));
    }

    #[test]
    fn a_broker_program_that_ends_at_once_is_reported_with_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let error = Broker::start(BrokerKind::Embedded, dir.path(), Path::new("/bin/false"));
        let text = error.unwrap_err().to_string();
        assert!(text.contains("it ended (exit status: 1)"), "{text}");
    }

    #[test]
    fn the_embedded_broker_lets_the_largest_payload_through() {
        let config = embedded_config("127.0.0.1:1883".parse().unwrap());
        let server = &config.v5.unwrap()["v5"];
        assert!(server.connections.max_payload_size > wire::MAX_PAYLOAD_BYTES);
    }
}
