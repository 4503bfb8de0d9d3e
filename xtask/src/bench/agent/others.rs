//! The two programs of others: the broker that the agent tells, and MLServer, which it is measured beside.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::child::Running;
use super::rig::{Places, free_port, is_ready};

/// How long either may take to start.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// Starts mosquitto on a free port.
pub(super) fn broker(program: &Path, scratch: &Path) -> Result<(Running, SocketAddr)> {
    let home = scratch.join("broker");
    fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let config = home.join("mosquitto.conf");
    let text = format!("listener {} 127.0.0.1\nallow_anonymous true\n", address.port());
    fs::write(&config, text)?;
    let mut running = Running::start(program, &home.join("log"), |broker| {
        broker.arg("-c").arg(&config);
    })?;
    running.until("it listened", START_DEADLINE, || TcpStream::connect(address).ok())?;
    Ok((running, address))
}

/// A model for MLServer that runs in ONNX Runtime, on one thread as the agent's do.
const RUNTIME: &str = r#"import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            self.settings.parameters.uri, options, providers=["CPUExecutionProvider"]
        )
        self.names = [output.name for output in self.session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        inputs = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
        outputs = self.session.run(self.names, inputs)
        return InferenceResponse(
            model_name=self.name,
            model_version=self.version,
            outputs=[NumpyCodec.encode_output(*named) for named in zip(self.names, outputs)],
        )
"#;

/// Starts MLServer with both models; `workers` processes infer, or its own where that is 0.
pub(super) fn mlserver(
    python: &Path,
    places: &Places,
    workers: usize,
) -> Result<(Running, SocketAddr)> {
    let home = places.scratch.join("mlserver");
    fs::remove_dir_all(&home).ok();
    fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
    fs::write(home.join("onnx_model.py"), RUNTIME)?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let settings = json!({
        "host": "127.0.0.1", "http_port": address.port(), "grpc_port": free_port()?,
        "metrics_port": free_port()?, "metrics_endpoint": null, "debug": false,
        "parallel_workers": workers,
    });
    fs::write(home.join("settings.json"), settings.to_string())?;
    for (name, model) in [("tiny", &places.tiny), ("cls", &places.middle)] {
        add_model(places, &home.join(name), name, model)?;
    }
    let program: PathBuf = python.with_file_name("mlserver");
    let mut running = Running::start(&program, &home.join("log"), |server| {
        server.arg("start").arg(&home).current_dir(&home).env("PYTHONPATH", &home);
    })?;
    let ready = running
        .until("it was ready", START_DEADLINE, || is_ready(address).then_some(()))
        .with_context(|| {
            let log = fs::read_to_string(home.join("log")).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            format!("its last lines: {}", lines[lines.len().saturating_sub(5)..].join(" / "))
        });
    ready?;
    Ok((running, address))
}

fn add_model(places: &Places, folder: &Path, name: &str, model: &str) -> Result<()> {
    fs::create_dir_all(folder)?;
    let file = folder.join("model.onnx");
    places.ask_load(|load| {
        load.args(["model", "--model", model]).arg(&file);
    })?;
    let settings = json!({
        "name": name, "implementation": "onnx_model.OnnxModel",
        "parameters": { "uri": file, "version": "1" },
    });
    fs::write(folder.join("model-settings.json"), settings.to_string())?;
    Ok(())
}
