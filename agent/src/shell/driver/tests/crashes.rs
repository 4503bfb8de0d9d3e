//! A crash at every file-system call of three installs, the first of which finds no model.
//!
//! The installs run once, under `strace`, in a process of their own; its calls are applied one after the other to a
//! [`Disk`], and what a crash behind each of them leaves, killed or without power, is laid out in a folder of its own,
//! where an agent starts. It must serve what was committed, or what is newer, finish the install that it is
//! offered, and say so.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Command;

use tokio::task::JoinSet;

use super::disk::{Disk, Image, Loss, lay_out};
use super::trace::{Call, calls, traced};
use super::*;
use crate::shell::download::tests::Server;

/// Tells the process that is traced where it is to work.
const FOLDER: &str = "ESPALIER_TEST_RECORDED";
/// How many bundles are installed.
const INSTALLS: u64 = 3;
/// Agents that come back at the same time.
const AT_ONCE: usize = 12;

/// The bundles, each with its server.
struct Published {
    folder: tempfile::TempDir,
    bundles: Vec<(Bundle, Server)>,
}

impl Published {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let published = (1..=INSTALLS).map(|n| {
            // Equal numbers, other bytes.
            let bundle = bundle(folder.path(), n, &format!("2.{}", "0".repeat(n as usize)));
            let server = serve(&bundle.dir, Box::new(honest));
            std::fs::write(folder.path().join(format!("url-{n}")), &server.url).unwrap();
            (bundle, server)
        });
        let bundles = published.collect();
        Self { folder, bundles }
    }

    fn sequence_of(&self, digest: &str) -> Option<u64> {
        let own = |(bundle, _): &&(Bundle, Server)| bundle.digest.to_string() == digest;
        self.bundles.iter().find(own).map(|(bundle, _)| bundle.manifest.sequence)
    }
}

/// The installs, as another process runs them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the process that another test traces"]
async fn recorded() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let mut device = Device::within(&folder);
    device.log = Some(Arc::new(Mutex::new(std::fs::File::create(folder.join("said")).unwrap())));
    device.start().await;
    let mut busy = None;
    for n in 1..=INSTALLS {
        let url = std::fs::read_to_string(folder.join(format!("url-{n}"))).unwrap();
        let published = folder.join(format!("published-{n}"));
        let bundle = Bundle::open(&published, &bundle::Limits::default()).unwrap();
        device.note(&format!("offered {n}"));
        device.offer(&bundle, &url).await;
        until("the commit", || device.ends().len() as u64 == n).await;
        assert_eq!(device.ends().pop().unwrap().outcome, InstallOutcome::Committed);
        busy.get_or_insert_with(|| traffic(&device.address()));
    }
    drop(busy);
    device.stop().await;
    device.note("over");
}

/// What is known from outside at some call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Known {
    /// The bundle that was offered last.
    offered: u64,
    /// The bundle whose commit was told last.
    told: u64,
}

/// One crash.
struct Crash {
    image: Image,
    known: Known,
    /// Where it happens, for people.
    label: String,
}

fn trace(published: &Published) -> Vec<Call> {
    let log = published.folder.path().join("calls");
    let mut command: Command = traced(&std::env::current_exe().unwrap(), &log);
    command.args(["--exact", "shell::driver::tests::crashes::recorded", "--ignored"]);
    command.env(FOLDER, published.folder.path());
    let output = command.output().expect("strace runs (Debian's package `strace`)");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");
    calls(&std::fs::read_to_string(log).unwrap())
}

/// Every crash that leaves something else than another one does.
fn crashes(published: &Published, calls: &[Call]) -> Vec<Crash> {
    let is_state =
        |call: &&Call| matches!(call, Call::MakeFolder { path } if path.ends_with("state"));
    let Some(Call::MakeFolder { path }) = calls.iter().find(is_state) else { panic!("no state") };
    let mut disk = Disk::new(path);
    let mut known = Known { offered: 0, told: 0 };
    let mut found: HashMap<(Image, Known), String> = HashMap::new();
    for (at, call) in calls.iter().enumerate().skip_while(|(_, call)| !is_state(call)).skip(1) {
        if let Call::Write { path, data, .. } = call
            && path.ends_with("said")
        {
            let line = String::from_utf8_lossy(data);
            match line.trim().split_once(' ') {
                Some(("offered", number)) => known.offered = number.parse().unwrap(),
                Some((_, digest)) => known.told = published.sequence_of(digest).unwrap(),
                None => break,
            }
        }
        if !disk.apply(call) && !matches!(call, Call::Write { path, .. } if path.ends_with("said"))
        {
            continue;
        }
        for loss in Loss::EVERY {
            let mut image = disk.image(loss);
            // Sockets and addresses of the process that is gone.
            image.retain(|path, _| !path.starts_with("run"));
            let label = || format!("call {at}, {call:.200?}, lost: {loss:?}");
            found.entry((image, known)).or_insert_with(label);
        }
    }
    let crashes = found.into_iter();
    crashes.map(|((image, known), label)| Crash { image, known, label }).collect()
}

/// Starts an agent on what a crash left, and holds it to what it owes.
async fn recover(published: Arc<Published>, crash: Crash) {
    let Crash { image, known, label } = crash;
    let mut device = Device::new();
    lay_out(&image, &device.state_dir());
    let committed = committed(&durable(&device), &published);
    assert!(committed >= known.told, "{label}: the commit of {} was told and is lost", known.told);
    device.start().await;
    if committed > 0 {
        let answered = served_by(&device, &label).await;
        let sequence: u64 = answered.rsplit('.').next().unwrap().parse().unwrap();
        assert!(sequence >= committed, "{label}: {sequence} serves, {committed} was committed");
    }
    if known.offered > 0 {
        let (bundle, server) = &published.bundles[known.offered as usize - 1];
        let busy = (committed > 0).then(|| traffic(&device.address()));
        device.offer(bundle, &server.url).await;
        until(&format!("{label}: the commit of {}", known.offered), || {
            self::committed(&durable(&device), &published) == known.offered
        })
        .await;
        let digest = bundle.digest.to_string();
        // The retained state says what serves, whatever became of the event.
        until(&format!("{label}: the device says that {} serves", known.offered), || {
            device.names_serving(&digest)
        })
        .await;
        // An end that was told before the crash need not be told again.
        if known.told < known.offered {
            let told = || device.ends().iter().any(|end| end.digest == digest);
            until(&format!("{label}: the end of {} is told", known.offered), told).await;
        }
        let ends = device.ends();
        let outcomes = ends.iter().filter(|end| end.digest == digest).map(|end| end.outcome);
        assert!(outcomes.clone().all(|o| o == InstallOutcome::Committed), "{label}: {ends:?}");
        drop(busy);
    }
    device.stop().await;
}

fn durable(device: &Device) -> Durable {
    let mut durable = Durable::default();
    device.journal().iter().for_each(|record| durable.apply(record));
    durable
}

/// The newest bundle that is committed; 0 for none.
fn committed(durable: &Durable, published: &Published) -> u64 {
    let Some(model) = durable.models.get("double") else { return 0 };
    let on_trial = model.install.as_ref().is_some_and(|i| i.state == InstallState::Probation);
    let installed = if on_trial { &model.previous } else { &model.active };
    let digest = installed.as_ref().map(|installed| &installed.digest);
    digest.and_then(|digest| published.sequence_of(digest)).unwrap_or(0)
}

/// The version that answers first. Not asked on the threads that are to answer.
async fn served_by(device: &Device, label: &str) -> String {
    let address = device.address();
    let patience = Duration::from_secs(60);
    let asking = tokio::task::spawn_blocking(move || {
        let deadline = Instant::now() + patience;
        loop {
            match answering(&address) {
                None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                answered => return answered,
            }
        }
    });
    asking.await.unwrap().unwrap_or_else(|| panic!("{label}: no model serves"))
}

/// The version that answers.
fn answering(address: &str) -> Option<String> {
    let url = format!("http://{address}/v2/models/double/infer");
    let input = json!({ "name": "x", "shape": [1, 2], "datatype": "FP32", "data": [3.0, 4.0] });
    let body = json!({ "inputs": [input] }).to_string();
    let answer = ureq::post(&url).content_type("application/json").send(body).ok()?;
    let text = answer.into_body().read_to_string().ok()?;
    let answer: Value = serde_json::from_str(&text).ok()?;
    answer["model_version"].as_str().map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_behind_any_file_system_call_of_an_install_leaves_an_agent_that_goes_on() {
    let published = Arc::new(Published::new());
    let calls = trace(&published);
    let crashes = crashes(&published, &calls);
    // What the three installs are known to do at the least: a trace that shows less shows nothing.
    assert!(crashes.len() > 100, "{} crashes of {} calls", crashes.len(), calls.len());
    let mut left = crashes.into_iter();
    let mut coming_back = JoinSet::new();
    for crash in left.by_ref().take(AT_ONCE) {
        coming_back.spawn(recover(published.clone(), crash));
    }
    let mut failed = Vec::new();
    while let Some(outcome) = coming_back.join_next().await {
        failed.extend(outcome.err().map(|error| error.to_string()));
        left.next().map(|crash| coming_back.spawn(recover(published.clone(), crash)));
    }
    assert!(failed.is_empty(), "{} crashes: {failed:#?}", failed.len());
}
