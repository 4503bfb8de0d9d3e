//! A mosquitto that asks for certificates and goes by their names, and an agent alone with it.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::certificates::{Authority, Identity};
use crate::{binary, provided, until};

const PATIENCE: Duration = Duration::from_secs(30);
/// The rules of docs/operations.md: two lines for a fleet, and one user for the service.
pub const ACL: &str = "pattern write espalier/v1/d/%u/up/#\n\
                       pattern read espalier/v1/d/%u/dn/#\n\
                       \n\
                       user service\n\
                       topic read espalier/v1/d/+/up/#\n\
                       topic write espalier/v1/d/+/dn/offer/+\n";
/// The name in the broker's certificate.
pub const BROKER: &str = "broker.example";

/// A process that ends with the test.
struct Owned(Child);

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A broker with several doors.
pub struct Guarded {
    /// Its certificate is good, and it asks for the client's.
    pub port: u16,
    /// Its certificate is over.
    pub expired_port: u16,
    /// Neither TLS nor rules: for a test's own eyes, on loopback.
    pub plain_port: u16,
    _process: Owned,
}

impl Guarded {
    /// Starts it with its files in `folder`.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start(folder: &Path, authority: &Authority) -> Self {
        let ports = free_ports();
        let [port, expired_port, plain_port] = ports;
        let good = authority.identity("broker", &[BROKER]);
        let expired = authority.expired("old-broker", &[BROKER]);
        let acl = folder.join("acl");
        fs::write(&acl, ACL).expect("a file");
        let door = |port: u16, identity: &Identity| {
            format!(
                "listener {port} 127.0.0.1\ncafile {}\ncertfile {}\nkeyfile {}\n\
                 require_certificate true\nuse_identity_as_username true\nacl_file {}\n",
                authority.file.display(),
                identity.certificate.display(),
                identity.key.display(),
                acl.display()
            )
        };
        let user = if rustix::process::geteuid().is_root() { "user root\n" } else { "" };
        let text = format!(
            "per_listener_settings true\n{user}log_dest stderr\n{}{}\
             listener {plain_port} 127.0.0.1\nallow_anonymous true\n",
            door(port, &good),
            door(expired_port, &expired)
        );
        let conf = folder.join("mosquitto.conf");
        fs::write(&conf, text).expect("a file");
        let log = fs::File::create(folder.join("mosquitto.log")).expect("a file");
        let child = Command::new(provided("ESPALIER_MOSQUITTO"))
            .arg("-c")
            .arg(&conf)
            .stderr(log)
            .spawn()
            .expect("mosquitto");
        let process = Owned(child);
        for port in ports {
            until("mosquitto to listen", PATIENCE, || {
                TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()
            });
        }
        Self { port, expired_port, plain_port, _process: process }
    }
}

fn free_ports() -> [u16; 3] {
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let held = [bind(), bind(), bind()];
    held.each_ref().map(|socket| socket.local_addr().expect("an address").port())
}

/// An agent of its own, without a model.
pub struct LoneAgent {
    state: PathBuf,
    log: PathBuf,
    _process: Owned,
}

impl LoneAgent {
    /// Starts it with the `[mqtt]` and other keys of `more`, in TOML.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start(folder: &Path, id: &str, more: &str) -> Self {
        fs::create_dir_all(folder).expect("a folder");
        let config = write_config(folder, id, more);
        let log = folder.join("agent.log");
        let file = fs::File::create(&log).expect("a file");
        let child = Command::new(binary("espalier-agent"))
            .args(["run", "--config"])
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .expect("an agent");
        let agent = Self { state: folder.join("state"), log, _process: Owned(child) };
        until("the agent to answer", PATIENCE, || agent.status());
        agent
    }

    /// What it says of itself.
    #[must_use]
    pub fn status(&self) -> Option<Value> {
        use espalier_agent::shell::{state_dir, status};
        status::ask(&state_dir::status_socket(&self.state)).ok()
    }

    /// What it logged.
    ///
    /// # Panics
    /// When there is no log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("a log")
    }

    /// Waits until the broker has it.
    ///
    /// # Panics
    /// When it does not.
    pub fn wait_connected(&self) {
        until("the broker to take the agent", PATIENCE, || {
            self.status()?["core"]["connected"].as_bool().filter(|connected| *connected)
        });
    }

    /// Waits until it says why it has no broker in words that hold all of `parts`, and gives them back.
    ///
    /// # Panics
    /// When it does not.
    pub fn wait_refused(&self, parts: &[&str]) -> String {
        let mut last = String::new();
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            if let Some(reason) = status.as_ref().and_then(|s| s["core"]["offline_reason"].as_str())
            {
                if parts.iter().all(|part| reason.contains(part)) {
                    return reason.to_owned();
                }
                last = reason.to_owned();
            }
            assert!(std::time::Instant::now() < deadline, "not {parts:?}, but {last:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether it answers requests for inferences.
    ///
    /// # Panics
    /// When it does not say where.
    #[must_use]
    pub fn serves(&self) -> bool {
        let text = fs::read_to_string(self.state.join("run/endpoints.json")).expect("endpoints");
        let endpoints: Value = serde_json::from_str(&text).expect("JSON");
        let http = endpoints["http"].as_str().expect("an address");
        ureq::get(format!("http://{http}/v2/health/live")).call().is_ok()
    }
}

/// Writes an agent's configuration and says where it is.
///
/// # Panics
/// When it cannot be written.
#[must_use]
pub fn write_config(folder: &Path, id: &str, more: &str) -> PathBuf {
    let state = folder.join("state");
    let text = format!(
        "[device]\nid = {id:?}\n[state]\ndir = {state:?}\n[serve]\nhttp = \"127.0.0.1:0\"\n{more}"
    );
    let path = folder.join("agent.toml");
    fs::write(&path, text).expect("a file");
    path
}

/// `[mqtt]` for a door of the broker, with the keys of `[mqtt.tls]`.
#[must_use]
pub fn mqtt(port: u16, tls: &str) -> String {
    format!("[mqtt]\nhost = \"127.0.0.1\"\nport = {port}\nwill_delay_s = 0\n[mqtt.tls]\n{tls}")
}

/// The keys of a device that does everything right.
#[must_use]
pub fn keys(authority: &Authority, identity: Option<&Identity>, name: Option<&str>) -> String {
    let mut text = format!("ca_file = {:?}\n", authority.file);
    if let Some(Identity { certificate, key }) = identity {
        text.push_str(&format!("cert_file = {certificate:?}\nkey_file = {key:?}\n"));
    }
    if let Some(name) = name {
        text.push_str(&format!("server_name = {name:?}\n"));
    }
    text
}
