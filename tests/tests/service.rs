//! The packaged agent under a real systemd, in a container: installed, started, stuck, killed, short of
//! memory, upgraded, removed.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use bundle::{Bundle, Case, Draft, NamedTensor, SelfTest, Source, TensorSpec};
use e2e::container::Container;
use e2e::packages::{architecture, dist};
use e2e::{asset, until};
use serde_json::{Value, json};

const UNIT: &str = "espalier-agent";
/// How long systemd and the agent may take for one thing, on a slow machine with other work.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the classifier takes of a file.
const SAMPLE: usize = 2048;
/// The kinds of file that it tells apart.
const LABELS: usize = 214;
/// More samples at once than [`MEMORY_MAX`] has room for: each alone takes half a megabyte in the
/// model's first layer.
const TOO_MANY: usize = 900;
/// The service's memory in the test that runs out of it.
const MEMORY_MAX: u64 = 200 << 20;

const CONFIGURATION: &str = "[device]\nid = \"bench-1\"\n[serve]\nmax_request_bytes = 33554432\n";

/// A container in which the package is installed.
struct Machine {
    container: Container,
}

impl Machine {
    /// Installs the package on a fresh machine, as `apt install ./FILE` would.
    fn with_package(name: &str) -> Self {
        let container = Container::boot(name);
        let _ = dist(UNIT, "0.1.0", container.shared());
        let machine = Self { container };
        machine.install("0.1.0");
        machine
    }

    /// The same, with a model and a name for the device, and running.
    fn serving(name: &str) -> Self {
        let machine = Self::with_package(name);
        machine.configure("device.toml", CONFIGURATION);
        machine.put_model();
        machine.container.shell("systemctl start espalier-agent");
        assert!(machine.infers(), "ready, and does not serve");
        machine
    }

    fn install(&self, version: &str) -> String {
        let arch = architecture();
        self.container.shell(&format!("dpkg --install /mnt/{UNIT}_{version}_{arch}.deb 2>&1"))
    }

    fn configure(&self, piece: &str, text: &str) {
        fs::write(self.container.shared().join(piece), text).unwrap();
        self.container.shell(&format!("cp /mnt/{piece} /etc/espalier/conf.d/"));
    }

    fn drop_in(&self, name: &str, text: &str) {
        fs::write(self.container.shared().join(name), text).unwrap();
        self.container.shell(&format!(
            "mkdir -p /etc/systemd/system/{UNIT}.service.d
             cp /mnt/{name} /etc/systemd/system/{UNIT}.service.d/
             systemctl daemon-reload"
        ));
    }

    /// Puts a model where an install would have put it, and requests beside.
    fn put_model(&self) {
        let shared = self.container.shared();
        let bundle = classifier(&shared.join("state/store"));
        let active = json!([{
            "model": "magika", "digest": bundle.digest.to_string(), "version": "1",
            "sequence": 1, "size_bytes": bundle.size_bytes(),
        }]);
        fs::write(shared.join("state/active.json"), active.to_string()).unwrap();
        for (name, samples) in [("one", 1), ("many", TOO_MANY)] {
            let (header, body) = request(samples);
            fs::write(shared.join(name), body).unwrap();
            let length = format!("Inference-Header-Content-Length: {header}");
            fs::write(shared.join(format!("{name}.header")), length).unwrap();
        }
        self.container
            .shell("cp -r /mnt/state/. /var/lib/espalier/ && chown -R espalier: /var/lib/espalier");
    }

    /// The status of the answer to a request, and its text where that is short.
    fn ask(&self, file: &str) -> String {
        self.container.shell(&format!(
            "curl --silent --max-time 100 --output /tmp/answer --write-out '%{{http_code}} ' \
             --unix-socket /run/espalier/infer.sock --header @/mnt/{file}.header --data-binary @/mnt/{file} \
             http://agent/v2/models/magika/infer || true
             head -c 300 /tmp/answer || true"
        ))
    }

    fn infers(&self) -> bool {
        self.ask("one").starts_with("200 ")
    }

    fn main_pid(&self) -> String {
        self.container.property(UNIT, "MainPID")
    }

    fn restarts(&self) -> String {
        self.container.property(UNIT, "NRestarts")
    }

    /// Waits until systemd has started the agent again and it serves.
    fn back(&self, restarts: &str) {
        until("the agent to be started again", PATIENCE, || {
            (self.restarts() == restarts).then_some(())
        });
        until("the agent to serve again", PATIENCE, || self.infers().then_some(()));
    }

    fn status(&self) -> Value {
        let told =
            self.container.shell("espalier-agent status --json --config /etc/espalier/agent.toml");
        serde_json::from_str(&told).unwrap()
    }

    /// Waits for a message of the agent in the journal, with its fields.
    fn message(&self, text: &str) -> Value {
        until(&format!("{text:?} in the journal"), PATIENCE, || {
            let mut journal = self.container.journal(UNIT).into_iter();
            journal.find(|entry| entry["MESSAGE"] == text)
        })
    }
}

/// The real classifier as a bundle in a store.
fn classifier(store: &Path) -> Bundle {
    let spec = |name: &str, dtype: &str, width: usize| TensorSpec {
        name: name.to_owned(),
        dtype: dtype.to_owned(),
        dims: vec![-1, i64::try_from(width).unwrap()],
    };
    let mut draft = Draft::new("magika", "1", Source::Path(asset("magika.onnx")));
    draft.sequence = 1;
    draft.inputs = vec![spec("bytes", "INT32", SAMPLE)];
    draft.outputs = vec![spec("target_label", "FP32", LABELS)];
    draft.selftest = shares();
    fs::create_dir_all(store).unwrap();
    draft.write_into(store).unwrap()
}

/// A self-test by which every label's share lies between 0 and 1.
fn shares() -> SelfTest {
    let tensor = |name: &str, dtype: &str, width: usize, value: [u8; 4]| NamedTensor {
        name: name.to_owned(),
        dtype: dtype.to_owned(),
        dims: vec![1, width],
        data: value.repeat(width),
    };
    let inputs = vec![tensor("bytes", "INT32", SAMPLE, 97_i32.to_le_bytes())];
    let outputs = vec![tensor("target_label", "FP32", LABELS, 0.5_f32.to_le_bytes())];
    SelfTest { cases: vec![Case { inputs, outputs }], rtol: 0.0, atol: 0.5 }
}

/// So many equal samples in a request of the Open Inference Protocol, and the length of its header.
/// Binary: numbers as text would cost the agent more memory than they cost the worker.
fn request(samples: usize) -> (usize, Vec<u8>) {
    let data = 97_i32.to_le_bytes().repeat(samples * SAMPLE);
    let input = json!({
        "name": "bytes", "datatype": "INT32", "shape": [samples, SAMPLE],
        "parameters": { "binary_data_size": data.len() },
    });
    let header = json!({ "inputs": [input] }).to_string().into_bytes();
    (header.len(), [header, data].concat())
}

#[test]
fn a_package_lives_from_its_installation_to_its_purge() {
    let machine = Machine::with_package("life");
    let container = &machine.container;
    // Without a name for the device it is enabled, not started, and asks for one.
    assert_eq!(container.property(UNIT, "UnitFileState"), "enabled");
    assert_eq!(container.property(UNIT, "ActiveState"), "inactive");
    assert_eq!(container.run(&["systemctl", "start", UNIT]).status.code(), Some(1));
    until("systemd to give up", PATIENCE, || {
        (container.property(UNIT, "ActiveState") == "failed").then_some(())
    });
    assert_eq!(container.property(UNIT, "ExecMainStatus"), "64");
    assert_eq!(machine.restarts(), "0", "started again with a configuration that is wrong");

    machine.configure("device.toml", CONFIGURATION);
    machine.put_model();
    container.shell("systemctl reset-failed; systemctl start espalier-agent");
    assert!(machine.infers(), "ready, and does not serve");
    assert_eq!(container.property(UNIT, "Type"), "notify");
    assert_eq!(container.property(UNIT, "SubState"), "running");
    assert_eq!(container.property(UNIT, "StatusText"), "1 models");
    let user =
        container.shell("ps -o user= -p $(systemctl show --value -p MainPID espalier-agent)");
    assert_eq!(user.trim(), "espalier");
    journal_has_fields(&machine);
    budgets_are_read_again(&machine);
    upgrade_keeps_what_there_is(&machine);
    removal(&machine);
}

fn journal_has_fields(machine: &Machine) {
    let told = machine.message("ready");
    assert_eq!(told["F_STATUS"], "1 models", "{told}");
    assert_eq!(told["TARGET"], "espalier_agent::shell::notify", "{told}");
    // A notice: what tracing calls information.
    assert_eq!(told["PRIORITY"], "5", "{told}");
    assert_eq!(told["_SYSTEMD_UNIT"], "espalier-agent.service", "{told}");
}

fn budgets_are_read_again(machine: &Machine) {
    let pid = machine.main_pid();
    machine.configure("budget.toml", "[budgets.magika]\nlatency_p95_us = 123456\n");
    machine.container.shell("systemctl reload espalier-agent");
    until("the new budget", PATIENCE, || {
        let status = machine.status();
        let budget = status.pointer("/core/models/0/budgets/latency_p95_us")?;
        (budget == 123_456).then_some(())
    });
    assert_eq!(machine.main_pid(), pid, "a reload is no restart");
    assert_eq!(machine.container.property(UNIT, "ActiveState"), "active");
}

fn upgrade_keeps_what_there_is(machine: &Machine) {
    let container = &machine.container;
    let (pid, before) = (machine.main_pid(), machine.status());
    let edited = "# edited\n";
    container.shell(&format!("printf '{edited}' >>/etc/espalier/agent.toml"));
    let _ = dist(UNIT, "0.2.0", container.shared());
    machine.install("0.2.0");
    assert_eq!(
        container.shell("dpkg-query --show --showformat='${Version} ${Status}' espalier-agent"),
        "0.2.0 install ok installed"
    );
    until("the upgraded agent to serve", PATIENCE, || machine.infers().then_some(()));
    assert_ne!(machine.main_pid(), pid, "the old program still runs");
    let after = machine.status();
    let active = "/core/models/0/active";
    assert!(before.pointer(active).is_some());
    assert_eq!(before.pointer(active), after.pointer(active));
    assert!(container.shell("cat /etc/espalier/agent.toml").ends_with(edited));
    let verified = container.shell("dpkg --verify espalier-agent");
    assert_eq!(verified.trim(), "??5?????? c /etc/espalier/agent.toml");

    // Whoever stopped it keeps it stopped through an upgrade.
    container.shell("systemctl stop espalier-agent");
    machine.install("0.2.0");
    assert_eq!(container.property(UNIT, "ActiveState"), "inactive");
    container.shell("systemctl start espalier-agent");
}

fn removal(machine: &Machine) {
    let container = &machine.container;
    container.shell("dpkg --remove espalier-agent");
    assert_eq!(container.property(UNIT, "ActiveState"), "inactive");
    container.shell("test -s /var/lib/espalier/journal && test -e /etc/espalier/agent.toml");
    machine.install("0.2.0");
    until("the agent that came back to serve", PATIENCE, || machine.infers().then_some(()));
    container.shell("dpkg --purge espalier-agent");
    container.shell("test ! -e /var/lib/espalier && test ! -e /etc/espalier");
    let left = container.shell("find /etc/systemd /usr/bin /lib/systemd -name 'espalier*'");
    assert_eq!(left, "");
}

/// What the drop-in below passes on, and a configuration that names it as the unit sees it.
const CREDENTIAL: &str = "[Service]\nLoadCredential=ca.crt:/etc/espalier/ca.crt\n";
const BROKER: &str = "[mqtt]\nhost = \"localhost\"\n[mqtt.tls]\nca_file = \"ca.crt\"\n";

#[test]
fn an_agent_that_needs_its_credentials_starts_when_it_is_installed_again() {
    let machine = Machine::serving("credentials");
    let container = &machine.container;
    let authority = e2e::certificates::Authority::new(container.shared(), "owner");
    fs::copy(&authority.file, container.shared().join("ca.crt")).unwrap();
    container.shell("cp /mnt/ca.crt /etc/espalier/ca.crt");
    machine.drop_in("credentials.conf", CREDENTIAL);
    machine.configure("broker.toml", BROKER);
    container.shell("systemctl restart espalier-agent");
    assert!(machine.infers());
    container.shell("dpkg --remove espalier-agent");
    assert_eq!(container.property(UNIT, "ActiveState"), "inactive");
    let told = machine.install("0.1.0");
    assert!(!told.contains("not complete"), "{told}");
    assert_eq!(container.property(UNIT, "ActiveState"), "active", "{told}");
    assert!(machine.infers(), "{told}");
}

#[test]
fn an_upgrade_starts_an_agent_that_failed_or_was_about_to_start_and_no_other() {
    let machine = Machine::serving("upgrade");
    let container = &machine.container;
    let _ = dist(UNIT, "0.2.0", container.shared());
    // About to start, and not there yet.
    machine.drop_in("slow.conf", "[Service]\nExecStartPre=/bin/sleep 1000\nTimeoutStartSec=2000\n");
    container.shell("systemctl restart --no-block espalier-agent");
    until("the agent to be starting", PATIENCE, || {
        (container.property(UNIT, "ActiveState") == "activating").then_some(())
    });
    container.shell("rm /etc/systemd/system/espalier-agent.service.d/slow.conf");
    let told = machine.install("0.2.0");
    assert_eq!(container.property(UNIT, "ActiveState"), "active", "{told}");
    assert!(machine.infers(), "{told}");

    // Failed, for a reason that is mended meanwhile.
    machine.configure("wrong.toml", "nonsense = 1\n");
    let _ = container.run(&["systemctl", "restart", UNIT]);
    let failed = || (container.property(UNIT, "ActiveState") == "failed").then_some(());
    until("the agent to fail", PATIENCE, failed);
    let told = machine.install("0.2.0");
    assert!(told.contains("not complete"), "{told}");
    assert_eq!(container.property(UNIT, "ActiveState"), "inactive");
    let _ = container.run(&["systemctl", "start", UNIT]);
    until("the agent to fail again", PATIENCE, failed);
    container.shell("rm /etc/espalier/conf.d/wrong.toml");
    let told = machine.install("0.2.0");
    assert_eq!(container.property(UNIT, "ActiveState"), "active", "{told}");

    // Disabled: Debian starts what is enabled.
    machine.configure("wrong.toml", "nonsense = 1\n");
    let _ = container.run(&["systemctl", "restart", UNIT]);
    until("the agent to fail once more", PATIENCE, failed);
    container.shell("rm /etc/espalier/conf.d/wrong.toml; systemctl disable espalier-agent");
    machine.install("0.2.0");
    assert_ne!(container.property(UNIT, "ActiveState"), "active");
    assert_eq!(container.property(UNIT, "UnitFileState"), "disabled");
}

#[test]
fn systemd_brings_back_an_agent_that_was_killed_or_is_stuck() {
    let machine = Machine::serving("watch");
    let container = &machine.container;
    let before = machine.status();
    container.shell("systemctl kill --kill-whom=main --signal=KILL espalier-agent");
    machine.back("1");
    let active = "/core/models/0/active";
    assert_eq!(machine.status().pointer(active), before.pointer(active));

    machine.drop_in("watchdog.conf", "[Service]\nWatchdogSec=3\n");
    container.shell("systemctl restart espalier-agent");
    assert!(machine.infers());
    let pid = machine.main_pid();
    container.shell(&format!("kill -STOP {pid}"));
    machine.back("1");
    assert_ne!(machine.main_pid(), pid);
    let told = container.journal(UNIT);
    let timeout = |entry: &Value| {
        entry["MESSAGE"].as_str().is_some_and(|text| text.contains("Watchdog timeout"))
    };
    assert!(told.iter().any(timeout), "{told:?}");
}

/// In version 1 of control groups systemd gives an unprivileged service no controller but its own, so an
/// administrator does (docs/agent.md, "As a service").
const GIVE_MEMORY: &str = "[Service]
ExecStartPre=+/bin/chown espalier /sys/fs/cgroup/memory/system.slice/%n \
    /sys/fs/cgroup/memory/system.slice/%n/cgroup.procs
";

#[test]
fn a_worker_that_runs_out_of_memory_costs_the_agent_nothing() {
    let machine = Machine::serving("memory");
    run_out_of_memory(&machine);
}

#[test]
fn a_worker_in_a_group_of_its_own_is_told_by_the_kernel_why_it_ended() {
    let machine = Machine::serving("groups");
    let container = &machine.container;
    let is_version_two =
        container.run(&["test", "-e", "/sys/fs/cgroup/cgroup.controllers"]).status.success();
    if !is_version_two {
        machine.message("workers share the agent's control group, which is not delegated to it");
        machine.drop_in("groups.conf", GIVE_MEMORY);
    }
    let reason = run_out_of_memory(&machine);
    assert!(reason.starts_with("was killed by the kernel, which was out of memory"), "{reason}");
    let metrics = container
        .shell("curl --silent --unix-socket /run/espalier/infer.sock http://agent/metrics");
    let labels = "{model=\"magika\",version=\"1\"}";
    let value = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("{name}{labels} ")));
        line.unwrap_or_else(|| panic!("{name} in {metrics}")).parse::<u64>().unwrap()
    };
    assert_eq!(value("espalier_worker_oom_kills_total"), 1);
    let (now, peak) =
        (value("espalier_worker_memory_bytes"), value("espalier_worker_memory_peak_bytes"));
    assert!(0 < now && now <= peak && peak < MEMORY_MAX, "{now} {peak}");
    // The dead worker's group went with it, and the agent is in none of them.
    let groups = container.shell(
        "cd /sys/fs/cgroup/memory/system.slice/espalier-agent.service 2>/dev/null ||
             cd /sys/fs/cgroup/system.slice/espalier-agent.service
         for group in worker-*; do echo $group $(cat $group/cgroup.procs); done",
    );
    let worker = groups.trim().split(' ').collect::<Vec<_>>();
    assert_eq!((worker.len(), worker[0]), (2, "worker-2"), "{groups}");
    assert_ne!(worker[1], machine.main_pid());
}

/// Has the service asked for more than its memory; returns how it says that the worker ended.
fn run_out_of_memory(machine: &Machine) -> String {
    let container = &machine.container;
    machine.drop_in("memory.conf", &format!("[Service]\nMemoryMax={MEMORY_MAX}\n"));
    container.shell("systemctl restart espalier-agent");
    limit_holds(container);
    let pid = machine.main_pid();
    assert!(machine.infers());

    let answer = machine.ask("many");
    assert!(answer.starts_with("503 "), "{TOO_MANY} samples in {MEMORY_MAX} bytes: {answer}");
    let died = machine.message("a worker died");
    assert_eq!(died["F_MODEL"], "magika", "{died}");
    let reason = died["F_REASON"].as_str().unwrap().to_owned();
    assert!(reason.contains("out of memory"), "{died}");
    machine.message("its worker runs again");
    until("the model to be served again", PATIENCE, || machine.infers().then_some(()));
    assert_eq!(machine.main_pid(), pid, "the agent was killed with its worker");
    assert_eq!(machine.restarts(), "0");
    reason
}

/// systemd takes a limit that it cannot set without an error; the kernel's own file tells.
fn limit_holds(container: &Container) {
    let told = container.shell(
        "for file in /sys/fs/cgroup/memory/system.slice/espalier-agent.service/memory.limit_in_bytes \
                     /sys/fs/cgroup/system.slice/espalier-agent.service/memory.max; do
             if [ -e $file ]; then cat $file; fi
         done",
    );
    assert_eq!(
        told.trim(),
        MEMORY_MAX.to_string(),
        "MemoryMax has no effect in this container: its systemd has no memory controller"
    );
}
