//! An agent as a device would run it, and what it is asked with.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::child::{Running, tied};
use crate::process;

/// How long the agent may take to be ready.
const READY_DEADLINE: Duration = Duration::from_secs(60);

/// Where everything is.
pub(super) struct Places {
    /// Stripped copies of the agent and its worker.
    pub(super) bin: PathBuf,
    /// The program that makes the load.
    pub(super) load: PathBuf,
    pub(super) onnxruntime: PathBuf,
    /// For state, logs and sockets.
    pub(super) scratch: PathBuf,
    /// The models, as `agent-load` names them.
    pub(super) tiny: String,
    pub(super) middle: String,
}

/// What one agent is to be like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) engine: &'a str,
    /// The model that is installed, if any.
    pub(super) model: Option<&'a str>,
    /// The broker's port.
    pub(super) broker: Option<u16>,
}

/// A running agent.
pub(super) struct Agent {
    pub(super) running: Running,
    pub(super) state: PathBuf,
    /// From the start of the process until it said that it is ready.
    pub(super) ready_after: Duration,
}

impl Agent {
    /// Starts one on an empty state directory, but for its model, and waits until it says that it is ready.
    pub(super) fn start(places: &Places, wanted: Wanted<'_>) -> Result<Self> {
        let home = places.scratch.join("agent");
        fs::remove_dir_all(&home).ok();
        let state = home.join("state");
        fs::create_dir_all(&state).with_context(|| format!("cannot create {}", state.display()))?;
        if let Some(model) = wanted.model {
            places.ask_load(|load| {
                load.args(["install", "--model", model, "--engine", wanted.engine]);
                load.arg("--ort-library").arg(&places.onnxruntime).arg(&state);
            })?;
        }
        let config = home.join("agent.toml");
        fs::write(&config, configuration(places, wanted, &state))?;
        let (manager, socket) = manager(&home)?;
        let began = Instant::now();
        let mut running =
            Running::start(&places.bin.join("espalier-agent"), &home.join("log"), |agent| {
                agent.args(["run", "--config"]).arg(&config);
                agent.env("NOTIFY_SOCKET", &socket).env_remove("RUST_LOG");
            })?;
        let ready = running.until("it was ready", READY_DEADLINE, || hears_ready(&manager));
        let told = || fs::read_to_string(home.join("log")).unwrap_or_default();
        ready.with_context(|| format!("the agent's log:\n{}", told()))?;
        Ok(Self { running, state, ready_after: began.elapsed() })
    }

    /// Where it serves: over TCP, and over a UNIX socket.
    pub(super) fn doors(&self) -> Result<[String; 2]> {
        let file = self.state.join("run/endpoints.json");
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let found: Value = serde_json::from_str(&text)?;
        let at = |key: &str| found[key].as_str().with_context(|| format!("no {key} endpoint"));
        Ok([format!("http:{}", at("http")?), format!("unix:{}", at("unix")?)])
    }
}

impl Places {
    /// Runs `agent-load`, and returns what it found.
    pub(super) fn ask_load(&self, prepare: impl FnOnce(&mut Command)) -> Result<Value> {
        let mut load = tied(&self.load);
        prepare(&mut load);
        let text = process::output(&mut load)?;
        serde_json::from_str(&text).context("agent-load printed no JSON object")
    }
}

/// What a device that serves has, and the defaults for everything else.
fn configuration(places: &Places, wanted: Wanted<'_>, state: &Path) -> String {
    let broker = wanted
        .broker
        .map(|port| format!("[mqtt]\nhost = \"127.0.0.1\"\nport = {port}\n"))
        .unwrap_or_default();
    format!(
        "[device]\nid = \"bench\"\nclass = \"bench\"\n\
         [state]\ndir = {state:?}\n\
         [runtime]\nengine = \"{}\"\nort_library = {:?}\n\
         [serve]\nhttp = \"127.0.0.1:0\"\nunix = \"infer.sock\"\n{broker}",
        wanted.engine, places.onnxruntime
    )
}

/// A service manager's socket, as sd_notify(3) wants it.
fn manager(home: &Path) -> Result<(UnixDatagram, PathBuf)> {
    let path = home.join("notify.sock");
    let socket = UnixDatagram::bind(&path)
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    socket.set_nonblocking(true)?;
    Ok((socket, path))
}

fn hears_ready(manager: &UnixDatagram) -> Option<()> {
    let mut message = [0; 512];
    while let Ok(length) = manager.recv(&mut message) {
        let text = String::from_utf8_lossy(&message[..length]);
        if text.lines().any(|line| line == "READY=1") {
            return Some(());
        }
    }
    None
}

/// Whether whoever listens at `address` says that it is ready.
pub(super) fn is_ready(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let patience = Duration::from_secs(1);
        let mut stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        let request = "GET /v2/health/ready HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes())?;
        let mut start = [0; 15];
        stream.read_exact(&mut start)?;
        Ok(&start == b"HTTP/1.1 200 OK")
    };
    ask().unwrap_or(false)
}

/// A port that is free now.
pub(super) fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).context("no free port")?;
    Ok(listener.local_addr()?.port())
}
