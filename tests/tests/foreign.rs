//! The agent and its worker for other machines, under an emulator of their processors: they test themselves, and serve
//! what this machine's serve.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use e2e::load::{Address, Client, Encoding, Request, Subject, install};
use e2e::packages::{architecture, dist, dist_command};
use e2e::{asset, binary, provided, root, until};
use runtime::{EngineKind, EngineOptions};
use serde_json::Value;

/// Programs that are not optimised, under an emulator, on a machine with other work.
const PATIENCE: Duration = Duration::from_secs(240);
/// What the same engine's answers may differ by between processors, whose kernels sum in another order.
const TOLERANCE: f64 = 1e-4;

/// A machine whose programs were built.
struct Machine {
    triple: &'static str,
    debian: &'static str,
    emulator: &'static str,
    /// Where Debian's cross packages have its C library.
    libraries: &'static str,
}

const MACHINES: [Machine; 2] = [
    Machine {
        triple: "aarch64-unknown-linux-gnu",
        debian: "arm64",
        emulator: "qemu-aarch64-static",
        libraries: "/usr/aarch64-linux-gnu",
    },
    Machine {
        triple: "armv7-unknown-linux-gnueabihf",
        debian: "armhf",
        emulator: "qemu-arm-static",
        libraries: "/usr/arm-linux-gnueabihf",
    },
];

impl Machine {
    /// The folder of its programs; none where the task runner could not build any, which it tells.
    fn programs(&self) -> Option<PathBuf> {
        let folder = provided("ESPALIER_FOREIGN");
        if folder.as_os_str() == "none" {
            println!("skipped: there are no programs for other machines");
            return None;
        }
        let programs = folder.join(self.triple).join("cross");
        assert!(programs.join("espalier-agent").is_file(), "{}", programs.display());
        Some(programs)
    }

    /// A command that runs a program under the emulator.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(self.emulator);
        command.args(["-L", self.libraries]).arg(program);
        command
    }

    /// A script that starts the worker under the emulator, for an agent that starts it.
    fn worker(&self, programs: &Path, folder: &Path) -> PathBuf {
        let script = folder.join("espalier-worker");
        let worker = programs.join("espalier-worker");
        let text = format!(
            "#!/bin/sh\nexec {} -L {} {} \"$@\"\n",
            self.emulator,
            self.libraries,
            worker.display()
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        script
    }
}

/// An agent with one model, without a broker.
struct Device {
    folder: tempfile::TempDir,
    subject: Subject,
    engine: EngineKind,
}

impl Device {
    fn with(subject: Subject, engine: EngineKind) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = EngineOptions {
            ort_library: Some(provided("ORT_DYLIB_PATH")),
            ..EngineOptions::new(engine)
        };
        install::install(&subject, &options, &folder.path().join("state")).unwrap();
        Self { folder, subject, engine }
    }

    fn config(&self, worker: &Path, onnxruntime: &Path) -> PathBuf {
        let file = self.folder.path().join("agent.toml");
        let text = format!(
            "[device]\nid = \"foreign\"\n[state]\ndir = {:?}\n\
             [runtime]\nengine = \"{}\"\nort_library = {onnxruntime:?}\n\
             [serve]\nhttp = \"127.0.0.1:0\"\nrequest_deadline_ms = {}\n[worker]\nprogram = {worker:?}\n",
            self.folder.path().join("state"),
            self.engine,
            PATIENCE.as_millis()
        );
        fs::write(&file, text).unwrap();
        file
    }

    /// Runs the agent, asks it once over HTTP, and returns the numbers of its answer.
    fn answer(&self, agent: Command, worker: &Path, onnxruntime: &Path) -> Vec<f64> {
        let endpoints = self.folder.path().join("state/run/endpoints.json");
        fs::remove_file(&endpoints).ok();
        let mut running =
            Running::start(agent, &self.config(worker, onnxruntime), self.folder.path());
        let address = until("the agent listens", PATIENCE, || {
            running.must_run();
            let told: Value = serde_json::from_slice(&fs::read(&endpoints).ok()?).ok()?;
            told["http"].as_str()?.parse::<SocketAddr>().ok()
        });
        let request = Request::new(&self.subject, Encoding::Json).unwrap();
        let body = until("an answer", PATIENCE, || {
            running.must_run();
            let mut client = Client::patient(&Address::Http(address), PATIENCE).ok()?;
            // 503 until the worker has loaded the model.
            client.ask(&request).ok().map(<[u8]>::to_vec)
        });
        let answer: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(answer["outputs"][0]["datatype"], "FP32", "{answer}");
        let numbers = answer["outputs"][0]["data"].as_array().unwrap().iter();
        numbers.map(|number| number.as_f64().unwrap()).collect()
    }
}

/// A process that ends with the test.
struct Running(Child, PathBuf);

impl Running {
    fn start(mut agent: Command, config: &Path, folder: &Path) -> Self {
        let log = folder.join("log");
        agent.args(["run", "--config"]).arg(config);
        agent.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap());
        Self(agent.spawn().unwrap(), log)
    }

    fn must_run(&mut self) {
        let ended = self.0.try_wait().unwrap();
        assert!(ended.is_none(), "{ended:?}:\n{}", fs::read_to_string(&self.1).unwrap());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn answers_as_here(machine: &Machine, subject: &Subject, engine: EngineKind) {
    let Some(programs) = machine.programs() else { return };
    let device = Device::with(subject.clone(), engine);
    let native = device.answer(
        Command::new(binary("espalier-agent")),
        &binary("espalier-worker"),
        &provided("ORT_DYLIB_PATH"),
    );
    // The same state directory, as if its card were put into the other board.
    let worker = machine.worker(&programs, device.folder.path());
    let agent = machine.command(&programs.join("espalier-agent"));
    let foreign = device.answer(agent, &worker, &asset("libonnxruntime-arm64.so"));
    let listed = machine
        .command(&programs.join("espalier-agent"))
        .args(["models", "--state"])
        .arg(device.folder.path().join("state"))
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains(subject.name()), "{listed}");
    assert!(!native.is_empty());
    assert_eq!(foreign.len(), native.len());
    for (theirs, ours) in foreign.iter().zip(&native) {
        let off = (theirs - ours).abs();
        assert!(off <= TOLERANCE * (1.0 + ours.abs()), "{foreign:?} and {native:?}");
    }
}

/// PP-OCRv4's classifier of text direction.
fn real() -> Subject {
    Subject::Cls(asset("models/ppocr_cls.onnx"))
}

fn tests_itself(machine: &Machine) {
    let Some(programs) = machine.programs() else { return };
    let agent = programs.join("espalier-agent");
    for program in [&agent, &programs.join("espalier-worker")] {
        let told = text(machine.command(program).arg("--version"));
        assert!(told.contains(env!("CARGO_PKG_VERSION")), "{told}");
    }
    let device = Device::with(Subject::Tiny, EngineKind::Tract);
    let worker = machine.worker(&programs, device.folder.path());
    let config = device.config(&worker, &provided("ORT_DYLIB_PATH"));
    let ask = |arguments: &[&str]| {
        let mut command = machine.command(&agent);
        command.args(arguments).arg("--json").arg("--config").arg(&config);
        serde_json::from_str::<Value>(&text(&mut command)).unwrap()
    };
    assert_eq!(ask(&["check"])["problems"], Value::Array(Vec::new()));
    let measured = ask(&["bench", "--runs", "2", "--warmup", "1"]);
    assert_eq!(measured["runs"], 2, "{measured}");
    // Trust and TLS are read from files with the cryptography of this processor.
    let wrong = device.folder.path().join("wrong.toml");
    let broken = fs::read_to_string(&config).unwrap()
        + "[mqtt]\nhost = \"h\"\n[mqtt.tls]\nca_file = \"/dev/null\"\n";
    fs::write(&wrong, broken).unwrap();
    let output = machine.command(&agent).args(["check", "--config"]).arg(&wrong).output().unwrap();
    assert_eq!(output.status.code(), Some(64), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What a package holds, without what differs between architectures: the programs, and what is said of them.
fn common(package: &Path, folder: &Path) -> Vec<(String, Vec<u8>)> {
    text(Command::new("dpkg-deb").arg("--raw-extract").arg(package).arg(folder));
    let listed = text(Command::new("find").args([".", "-type", "f"]).current_dir(folder));
    let mut files: Vec<_> = listed.lines().map(str::to_owned).collect();
    files.sort();
    files
        .into_iter()
        .map(|file| {
            let differs =
                ["./usr/bin/", "./usr/lib/espalier/", "./DEBIAN/md5sums", "./DEBIAN/control"];
            let differs = differs.iter().any(|start| file.starts_with(start));
            let bytes = if differs { Vec::new() } else { fs::read(folder.join(&file)).unwrap() };
            (file, bytes)
        })
        .collect()
}

fn field(package: &Path, name: &str) -> String {
    text(Command::new("dpkg-deb").arg("--field").arg(package).arg(name)).trim().to_owned()
}

fn is_packaged_like_this_machine_s(machine: &Machine) {
    let Some(programs) = machine.programs() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut command = dist_command(&programs, "espalier-agent", "0.1.0", folder.path());
    text(command.args(["--target", machine.triple]));
    let package = folder.path().join(format!("espalier-agent_0.1.0_{}.deb", machine.debian));
    let own = dist("espalier-agent", "0.1.0", folder.path());

    assert_eq!(field(&package, "Architecture"), machine.debian);
    assert_eq!(field(&own, "Architecture"), architecture());
    let depends = field(&package, "Depends");
    assert!(depends.contains("libc6 (>= 2.") && depends.contains("systemd (>= 247)"), "{depends}");
    for name in ["Package", "Version", "Maintainer", "Section", "Description"] {
        assert_eq!(field(&package, name), field(&own, name));
    }
    let info = text(Command::new("dpkg").arg("--info").arg(&package));
    assert!(info.contains("postinst") && info.contains("conffiles"), "{info}");
    let contents = text(Command::new("dpkg").arg("--contents").arg(&package));
    assert!(contents.contains("./usr/lib/espalier/espalier-worker\n"), "{contents}");

    // Unit, maintainer scripts, manual, configuration: byte for byte.
    let theirs = common(&package, &folder.path().join("theirs"));
    let ours = common(&own, &folder.path().join("ours"));
    let names = |files: &[(String, Vec<u8>)]| {
        files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&theirs), names(&ours));
    for ((name, theirs), (_, ours)) in theirs.iter().zip(&ours) {
        assert!(theirs == ours, "{name} differs between {} and {}", machine.debian, architecture());
    }
    let unit = theirs.iter().find(|(name, _)| name.ends_with("/espalier-agent.service")).unwrap();
    assert_eq!(unit.1, fs::read(root().join("systemd/espalier-agent.service")).unwrap());
}

#[test]
fn the_programs_for_arm64_test_themselves() {
    tests_itself(&MACHINES[0]);
}

#[test]
fn the_programs_for_armhf_test_themselves() {
    tests_itself(&MACHINES[1]);
}

#[test]
fn a_small_net_and_a_real_one_answer_on_arm64_as_here() {
    answers_as_here(&MACHINES[0], &Subject::Tiny, EngineKind::Tract);
    answers_as_here(&MACHINES[0], &real(), EngineKind::Tract);
}

#[test]
fn a_small_net_and_a_real_one_answer_on_armhf_as_here() {
    answers_as_here(&MACHINES[1], &Subject::Tiny, EngineKind::Tract);
    answers_as_here(&MACHINES[1], &real(), EngineKind::Tract);
}

#[test]
fn onnx_runtime_answers_on_arm64_as_here() {
    answers_as_here(&MACHINES[0], &real(), EngineKind::Ort);
}

#[test]
fn the_package_for_arm64_is_this_machine_s_but_for_the_programs() {
    is_packaged_like_this_machine_s(&MACHINES[0]);
}

#[test]
fn the_package_for_armhf_is_this_machine_s_but_for_the_programs() {
    is_packaged_like_this_machine_s(&MACHINES[1]);
}
