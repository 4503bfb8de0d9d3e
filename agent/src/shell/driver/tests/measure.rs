//! The measurement of a bundle off to the side: what is brought, what is refused, and that nothing of it stays.

use super::*;
use serde_json::{Value, json};
use wire::{CommandEvent, CommandKind, CommandOutcome, CommandResult};

impl Device {
    /// Has the device measure, and gives the result back.
    async fn measure(&self, id: &str, args: Value) -> CommandResult {
        self.command(id, CommandKind::Measure, args).await;
        until("the result", || self.result(id).is_some()).await;
        self.result(id).unwrap()
    }

    async fn command(&self, id: &str, kind: CommandKind, args: Value) {
        let header = Header::of::<Command>(1, 1, "console");
        let command = Command { header, id: id.to_owned(), kind, expires_ms: 0, args };
        let topic = format!("espalier/v1/d/d/dn/cmd/{kind}/{id}");
        let message = LinkEvent::Message { topic, payload: wire::encode(&command) };
        self.broker.as_ref().unwrap().link.send(message).await.unwrap();
    }

    fn result(&self, id: &str) -> Option<CommandResult> {
        let said = self.broker.as_ref().unwrap().said.lock().unwrap();
        let own = said.iter().find(|(topic, _)| topic.ends_with(&format!("up/rs/{id}")))?;
        Some(wire::decode(&own.1).unwrap())
    }

    fn audit(&self, id: &str) -> Vec<CommandOutcome> {
        let said = self.broker.as_ref().unwrap().said.lock().unwrap();
        let events = said.iter().filter(|(topic, _)| topic.ends_with("up/e/command"));
        let events = events.map(|(_, payload)| wire::decode::<CommandEvent>(payload).unwrap());
        events.filter(|event| event.id == id).map(|event| event.outcome).collect()
    }

    /// What lies in the folder of measured bundles.
    fn scratch(&self) -> usize {
        std::fs::read_dir(self.state_dir().join("measure")).map_or(0, Iterator::count)
    }
}

fn args(bundle: &Bundle, url: &str) -> Value {
    json!({
        "model": "double", "digest": bundle.digest.to_string(), "url": url,
        "size_bytes": bundle.size_bytes(), "runs": 20, "warmup": 2,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_is_fetched_measured_and_gone_and_the_installed_one_is_measured_where_it_lies()
{
    let mut device = installed(1).await;
    let candidate = bundle(device.dir.path(), 2, "2.0");
    let server = serve(&candidate.dir, Box::new(honest));
    let result = device.measure("a", args(&candidate, &server.url)).await;
    assert_eq!(result.error, None);
    let profile: wire::MeasureProfile = serde_json::from_value(result.data).unwrap();
    assert_eq!((profile.runs, profile.warmup, profile.fetched), (20, 2, true));
    assert_eq!((profile.digest, profile.version.as_str()), (candidate.digest.to_string(), "1.0.2"));
    assert_eq!(profile.compute.count(), 20);
    assert!(profile.p50_us <= profile.p95_us && profile.p95_us <= profile.max_us);
    assert!(profile.pss_steady_bytes.is_some_and(|bytes| bytes > 0));
    assert!(profile.memory_limit_bytes.is_some_and(|bytes| bytes > 0), "as much as is free");
    assert_eq!((device.scratch(), device.served()), (0, "1.0.1".to_owned()));
    assert_eq!(device.audit("a"), [CommandOutcome::Accepted, CommandOutcome::Done]);
    let text = std::fs::read(device.state_dir().join("active.json")).unwrap();
    let active: Vec<ActiveEntry> = serde_json::from_slice(&text).unwrap();
    let here = json!({ "model": "double", "digest": active[0].installed.digest, "runs": 3 });
    let result = device.measure("b", here).await;
    assert_eq!((result.error, &result.data["fetched"]), (None, &json!(false)));
    assert!(infer(&device.address(), 1.0), "the model that serves does so all the time");
    device.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_candidate_is_a_clear_failure_and_leaves_nothing() {
    let mut device = installed(1).await;
    let corrupt: Box<Answer> = Box::new(|name, content, from| {
        let content = if name == "model.onnx" { b"9" } else { content };
        honest(name, content, from)
    });
    let bundles: Vec<Bundle> = ["2.0", "nonsense", "abort", "panic", "fails"]
        .iter()
        .zip(2..)
        .map(|(factor, n)| bundle(device.dir.path(), n, factor))
        .collect();
    let whys = ["digest", "is no model", "while loading", "panicked", "inference 1: "];
    for (n, (bundle, why)) in bundles.iter().zip(whys).enumerate() {
        let answer: Box<Answer> = if n == 0 {
            Box::new(|_: &str, c: &[u8], f| honest("", c, f))
        } else {
            Box::new(honest)
        };
        let server = serve(&bundle.dir, answer);
        let mut args = args(bundle, &server.url);
        if n == 0 {
            args["digest"] = json!(format!("sha256:{:064x}", 1));
        }
        let result = device.measure(&format!("h{n}"), args).await;
        let error = result.error.unwrap();
        assert!(error.contains(why), "{error} does not say {why}");
        assert_eq!(
            device.audit(&format!("h{n}")),
            [CommandOutcome::Accepted, CommandOutcome::Failed]
        );
        assert_eq!(device.scratch(), 0, "{error}");
    }
    let server = serve(&bundles[0].dir, corrupt);
    let result = device.measure("corrupt", args(&bundles[0], &server.url)).await;
    assert!(result.error.unwrap().contains("model.onnx"));
    let larger = json!({ "size_bytes": 10 });
    let server = serve(&bundles[0].dir, Box::new(honest));
    let mut told = args(&bundles[0], &server.url);
    told["size_bytes"] = larger["size_bytes"].clone();
    let result = device.measure("larger", told).await;
    assert!(result.error.unwrap().contains("args.size_bytes says 10"));
    let mut other = args(&bundles[0], &server.url);
    other["model"] = json!("triple");
    let result = device.measure("other", other).await;
    assert!(result.error.unwrap().contains("the manifest is of model double"));
    let mut ftp = args(&bundles[0], "ftp://h/b");
    ftp["runs"] = json!(1);
    let result = device.measure("ftp", ftp).await;
    assert!(result.error.unwrap().contains("only http:// and https://"));
    assert_eq!((device.scratch(), device.served()), (0, "1.0.1".to_owned()));
    assert!(infer(&device.address(), 1.0));
    device.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_into_memory_is_not_even_fetched() {
    let mut device = installed(1).await;
    device
        .command("b", CommandKind::SetBudget, json!({ "model": "double", "memory_bytes": 5 }))
        .await;
    let candidate = bundle(device.dir.path(), 2, "2.0");
    let result = device.measure("a", args(&candidate, "http://127.0.0.1:1/never-asked")).await;
    let error = result.error.unwrap();
    assert!(error.contains("over the budget budgets.double.memory_bytes of 5"), "{error}");
    device.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_measurement_that_is_cut_off_leaves_no_worker_and_no_files_and_says_so_after_the_start() {
    let mut device = installed(1).await;
    let candidate = bundle(device.dir.path(), 2, "2.0");
    // The manifest comes, and then the server says nothing more.
    let (asked, asking) = std::sync::mpsc::channel();
    let (held, holding) = std::sync::mpsc::channel::<()>();
    let asked = Mutex::new(asked);
    let holding = Mutex::new(holding);
    let stuck: Box<Answer> = Box::new(move |name, content, from| {
        if name == "model.onnx" {
            let _ = asked.lock().unwrap().send(());
            let _ = holding.lock().unwrap().recv();
        }
        honest(name, content, from)
    });
    let server = serve(&candidate.dir, stuck);
    device.command("a", CommandKind::Measure, args(&candidate, &server.url)).await;
    tokio::task::spawn_blocking(move || asking.recv().unwrap()).await.unwrap();
    assert_eq!(device.scratch(), 1);
    device.crash().await;
    drop(held);
    device.start().await;
    until("the result", || device.result("a").is_some()).await;
    assert!(device.result("a").unwrap().error.unwrap().contains("interrupted"));
    assert_eq!(device.audit("a"), [CommandOutcome::Accepted, CommandOutcome::Failed]);
    until("an empty folder", || device.scratch() == 0).await;
    until("the model serves", || infer(&device.address(), 1.0)).await;
    let result =
        device.measure("b", args(&candidate, &serve(&candidate.dir, Box::new(honest)).url)).await;
    assert_eq!(result.error, None);
    device.stop().await;
}
