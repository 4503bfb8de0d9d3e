//! Against a server of a few lines that can be told to misbehave.

use super::*;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use bundle::{Bundle, Draft, NamedTensor, SelfTest, Source, TensorSpec};

/// How the server answers a request for a file: its whole content, and the first byte asked for.
pub(in crate::shell) type Answer = dyn Fn(&str, &[u8], u64) -> Vec<u8> + Send + Sync;

pub(in crate::shell) struct Server {
    pub(in crate::shell) url: String,
    asked: Arc<Mutex<Vec<(String, u64)>>>,
}

pub(in crate::shell) fn honest(_: &str, content: &[u8], from: u64) -> Vec<u8> {
    let rest = &content[from as usize..];
    let mut answer = if from == 0 {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", rest.len())
    } else {
        let (total, last) = (content.len(), content.len() - 1);
        format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{last}/{total}\r\n\r\n",
            rest.len()
        )
    }
    .into_bytes();
    answer.extend(rest);
    answer
}

/// Serves a folder, one connection after the other.
pub(in crate::shell) fn serve(folder: &Path, answer: Box<Answer>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked: Arc<Mutex<Vec<(String, u64)>>> = Arc::default();
    let (folder, log) = (folder.to_owned(), asked.clone());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut lines = (&mut reader).lines().map_while(Result::ok);
            let Some(first) = lines.next() else { continue };
            let name =
                first.split_whitespace().nth(1).unwrap_or("/").trim_start_matches('/').to_owned();
            let mut from = 0;
            for line in lines.take_while(|line| !line.is_empty()) {
                if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                    from = range.trim_end_matches('-').parse().unwrap();
                }
            }
            log.lock().unwrap().push((name.clone(), from));
            let bytes = match fs::read(folder.join(&name)) {
                Ok(content) => answer(&name, &content, from),
                Err(_) => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
            };
            let _ = stream.write_all(&bytes);
        }
    });
    Server { url, asked }
}

struct Fixture {
    dir: tempfile::TempDir,
    bundle: Bundle,
}

const MODEL_BYTES: usize = 200_000;

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let model: Vec<u8> = (0..MODEL_BYTES).map(|i| (i % 251) as u8).collect();
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
        cases: vec![bundle::Case { inputs: vec![tensor("x")], outputs: vec![tensor("y")] }],
        rtol: 0.0,
        atol: 0.0,
    };
    let bundle = draft.write(&dir.path().join("published")).unwrap();
    Fixture { dir, bundle }
}

impl Fixture {
    fn staged(&self) -> std::path::PathBuf {
        self.dir.path().join("staged")
    }

    fn fetch(&self, url: &str) -> Result<(), StepFailure> {
        self.fetch_with(url, &Limits::default(), &AtomicBool::new(false))
    }

    fn fetch_with(
        &self,
        url: &str,
        limits: &Limits,
        cancelled: &AtomicBool,
    ) -> Result<(), StepFailure> {
        let into = self.staged();
        let access = &Access::default();
        fetch(&Job { url, digest: self.bundle.digest, into: &into, limits, access, cancelled })
    }

    fn serve(&self, answer: Box<Answer>) -> Server {
        serve(&self.bundle.dir, answer)
    }
}

use crate::core::FailureClass;

#[test]
fn a_bundle_arrives_whole() {
    let fixture = fixture();
    let server = fixture.serve(Box::new(honest));
    fixture.fetch(&server.url).unwrap();
    let got = Bundle::open(&fixture.staged(), &Limits::default()).unwrap();
    assert_eq!(got.digest, fixture.bundle.digest);
}

#[test]
fn a_cut_download_is_transient_and_goes_on_where_it_stopped() {
    let fixture = fixture();
    let cut: Box<Answer> = Box::new(|name, content, from| {
        let mut whole = honest(name, content, from);
        if name == "model.onnx" && from == 0 {
            whole.truncate(whole.len() - MODEL_BYTES / 2);
        }
        whole
    });
    let server = fixture.serve(cut);
    let failure = fixture.fetch(&server.url).unwrap_err();
    assert_eq!(failure.class, FailureClass::Transient, "{}", failure.reason);
    assert!(failure.reason.contains("model.onnx"), "{}", failure.reason);
    fixture.fetch(&server.url).unwrap();
    let asked = server.asked.lock().unwrap().clone();
    let resumed: Vec<u64> =
        asked.iter().filter(|(name, _)| name == "model.onnx").map(|(_, from)| *from).collect();
    assert_eq!(resumed, [0, MODEL_BYTES as u64 / 2]);
    let manifests = asked.iter().filter(|(name, _)| name == "manifest.json").count();
    assert_eq!(manifests, 1, "the staged manifest is used again");
}

#[test]
fn a_server_without_ranges_costs_a_new_beginning_and_no_more() {
    let fixture = fixture();
    let server = fixture.serve(Box::new(|name, content, _| honest(name, content, 0)));
    fs::create_dir_all(fixture.staged()).unwrap();
    fs::write(fixture.staged().join("model.onnx"), [9; 1000]).unwrap();
    fixture.fetch(&server.url).unwrap();
}

#[test]
fn a_manifest_of_another_digest_is_refused_before_anything_else_is_fetched() {
    let fixture = fixture();
    let server = fixture.serve(Box::new(|name, content, from| {
        let mut content = content.to_vec();
        content[10] ^= 1;
        honest(name, &content, from)
    }));
    let failure = fixture.fetch(&server.url).unwrap_err();
    assert_eq!(failure.class, FailureClass::Attempt);
    assert!(failure.reason.contains("is not the offered sha256:"), "{}", failure.reason);
    assert_eq!(server.asked.lock().unwrap().len(), 1);
}

#[test]
fn a_damaged_file_is_refused_by_name_and_not_kept() {
    let fixture = fixture();
    let server = fixture.serve(Box::new(|name, content, from| {
        let mut content = content.to_vec();
        if name == "model.onnx" {
            content[1000] ^= 1;
        }
        honest(name, &content, from)
    }));
    let failure = fixture.fetch(&server.url).unwrap_err();
    assert_eq!(failure.class, FailureClass::Attempt);
    assert!(failure.reason.contains("model.onnx"), "{}", failure.reason);
    assert!(!fixture.staged().join("model.onnx").exists());
}

#[test]
fn a_file_longer_than_announced_is_refused_without_filling_the_disk() {
    let fixture = fixture();
    let server = fixture.serve(Box::new(|name, content, from| {
        let mut content = content.to_vec();
        if name == "model.onnx" {
            content.extend(vec![0; 10 << 20]);
        }
        honest(name, &content, from)
    }));
    let failure = fixture.fetch(&server.url).unwrap_err();
    assert_eq!(failure.class, FailureClass::Attempt);
    assert!(failure.reason.contains("the manifest says 200000"), "{}", failure.reason);
    let kept = fs::metadata(fixture.staged().join("model.onnx")).map_or(0, |m| m.len());
    assert!(kept <= MODEL_BYTES as u64);
}

#[test]
fn a_file_that_is_short_on_the_server_ends_the_attempt_instead_of_resuming_for_ever() {
    let fixture = fixture();
    let half = |name: &str, content: &[u8], from| {
        let whole = if name == "model.onnx" { &content[..MODEL_BYTES / 2] } else { content };
        honest(name, whole, from)
    };
    let server = fixture.serve(Box::new(half));
    let failure = fixture.fetch(&server.url).unwrap_err();
    assert_eq!(failure.class, FailureClass::Attempt);
    assert!(
        failure.reason.contains("has 100000 bytes, the manifest says 200000"),
        "{}",
        failure.reason
    );
}

#[test]
fn a_bundle_over_the_limit_is_refused_after_its_manifest() {
    let fixture = fixture();
    let server = fixture.serve(Box::new(honest));
    let limits = Limits { total_bytes: 1000, model_bytes: 1000, ..Limits::default() };
    let failure = fixture.fetch_with(&server.url, &limits, &AtomicBool::new(false)).unwrap_err();
    assert_eq!(failure.class, FailureClass::Bundle);
    let key = "over the limit install.max_bundle_bytes of 1000";
    assert!(failure.reason.contains(key), "{}", failure.reason);
    assert_eq!(server.asked.lock().unwrap().len(), 1);
}

#[test]
fn cancelling_ends_it() {
    let fixture = fixture();
    let server = fixture.serve(Box::new(honest));
    let cancelled = AtomicBool::new(true);
    let failure = fixture.fetch_with(&server.url, &Limits::default(), &cancelled).unwrap_err();
    assert!(failure.reason.ends_with("cancelled"), "{}", failure.reason);
}

#[test]
fn nobody_there_is_transient_and_an_address_of_another_kind_is_refused() {
    let fixture = fixture();
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let failure = fixture.fetch(&format!("http://{unused}")).unwrap_err();
    assert_eq!(failure.class, FailureClass::Transient);
    let failure = fixture.fetch("ftp://host/b").unwrap_err();
    assert_eq!(failure.class, FailureClass::Attempt);
    assert!(failure.reason.contains("http:// and https://"), "{}", failure.reason);
    let missing = fixture.serve(Box::new(honest));
    let failure = fixture.fetch(&format!("{}/elsewhere", missing.url)).unwrap_err();
    assert_eq!(failure.class, FailureClass::Transient);
    assert!(failure.reason.contains("404"), "{}", failure.reason);
}

#[test]
fn a_limit_on_the_rate_holds_from_the_first_byte() {
    let fixture = fixture();
    let server = fixture.serve(Box::new(honest));
    let rate = std::num::NonZeroU64::new(1 << 20).unwrap();
    let access = &Access { ca: None, pace: Some(Arc::new(Pace::new(rate))) };
    let (into, limits, cancelled) = (fixture.staged(), &Limits::default(), &AtomicBool::new(false));
    let (url, digest) = (server.url.as_str(), fixture.bundle.digest);
    let begun = std::time::Instant::now();
    fetch(&Job { url, digest, into: &into, limits, access, cancelled }).unwrap();
    // Never faster, however slow the machine.
    assert!(begun.elapsed() >= Duration::from_millis(MODEL_BYTES as u64 * 1000 / (1 << 20)));
}

#[test]
fn a_second_thread_waits_for_the_first_and_ends_when_it_is_cancelled() {
    let fixture = fixture();
    let server = fixture.serve(Box::new(honest));
    fs::create_dir_all(fixture.staged()).unwrap();
    let first = File::open(fixture.staged()).unwrap();
    first.lock().unwrap();
    let cancelled = AtomicBool::new(true);
    let failure = fixture.fetch_with(&server.url, &Limits::default(), &cancelled).unwrap_err();
    assert!(failure.reason.ends_with("cancelled"), "{}", failure.reason);
    drop(first);
    fixture.fetch(&server.url).unwrap();
}
