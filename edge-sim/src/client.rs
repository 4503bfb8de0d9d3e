//! A local program that uses the model on the device: real requests through the Open Inference
//! Protocol, one at a time, with nothing retried and every failure counted.
//!
//! Tensors travel in the protocol's binary extension. The address is looked up again after a
//! failure, because an agent that was started again listens elsewhere. Answers are remembered per
//! sample and *phase*, so that two models can be compared on the same input afterwards.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use wire::Histogram;

use crate::npz::Array;

/// The largest answer that is read.
pub const MAX_ANSWER_BYTES: u64 = 64 << 20;
/// Failures whose text is kept, per phase.
pub const MAX_FAILURE_TEXTS: usize = 20;
const LENGTH_HEADER: &str = "inference-header-content-length";
const AFTER_FAILURE: Duration = Duration::from_millis(50);

/// What to ask, of whom and how often.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// The model's name.
    pub model: String,
    /// The model's inputs; the first axis of each counts samples.
    pub inputs: Vec<Array>,
    /// Where the agent says what it listens on.
    pub endpoints: PathBuf,
    /// Time between an answer and the next request.
    pub pause: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
}

/// One answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Position of the largest value of the first output.
    pub argmax: usize,
    /// The version that the device says it answered with.
    pub version: Option<String>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RequestError(String);

/// What happened in one phase.
#[derive(Debug, Clone, Default)]
pub struct PhaseStats {
    /// Requests that were sent and have ended.
    pub requests: u64,
    /// Requests without a usable answer.
    pub failed: u64,
    /// The first failures in words.
    pub failures: Vec<String>,
    /// Time from sending to the whole answer, as the client sees it.
    pub latency: Histogram,
    /// The last answer to each sample.
    pub answers: BTreeMap<usize, Answer>,
}

/// What happened so far.
#[derive(Debug, Clone, Default)]
pub struct ClientStats {
    /// By phase.
    pub phases: BTreeMap<String, PhaseStats>,
}

impl ClientStats {
    /// Requests in all phases.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.phases.values().map(|phase| phase.requests).sum()
    }

    /// Failed requests in all phases.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.phases.values().map(|phase| phase.failed).sum()
    }

    /// The failures' texts of all phases.
    pub fn failures(&self) -> impl Iterator<Item = &str> {
        self.phases.values().flat_map(|phase| phase.failures.iter().map(String::as_str))
    }

    /// The share of the samples answered both in one of the phases `before` and in `after` that got
    /// the same answer, and their number.
    #[must_use]
    #[allow(clippy::cast_precision_loss)]
    pub fn agreement(&self, before: &[&str], after: &str) -> Option<(f64, usize)> {
        let earlier = |sample: &usize| {
            before.iter().find_map(|phase| self.phases.get(*phase)?.answers.get(sample))
        };
        let after = self.phases.get(after)?.answers.iter();
        let pairs: Vec<_> =
            after.filter_map(|(sample, b)| Some((earlier(sample)?.argmax, b.argmax))).collect();
        let same = pairs.iter().filter(|(a, b)| a == b).count();
        (!pairs.is_empty()).then(|| (same as f64 / pairs.len() as f64, pairs.len()))
    }
}

#[derive(Default)]
struct Inner {
    phase: String,
    next_sample: usize,
    stats: ClientStats,
}

#[derive(Default)]
struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
    stop: AtomicBool,
}

/// Sends requests until it is stopped or dropped.
pub struct LoadClient {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl LoadClient {
    /// Starts with the first sample, in phase `phase`.
    ///
    /// # Errors
    /// There are no samples, or the thread cannot be started.
    pub fn start(options: ClientOptions, phase: &str) -> Result<Self, RequestError> {
        let samples = options.inputs.iter().map(Array::samples).min().unwrap_or(0);
        if samples == 0 {
            return Err(RequestError("there are no samples to send".to_owned()));
        }
        let shared = Arc::new(Shared::default());
        shared.lock().phase = phase.to_owned();
        let for_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("client".to_owned())
            .spawn(move || keep_asking(&for_thread, &options, samples))
            .map_err(|error| RequestError(format!("cannot start the client: {error}")))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Counts from now on under `phase`, and begins again with the first sample.
    pub fn set_phase(&self, phase: &str) {
        let mut inner = self.shared.lock();
        phase.clone_into(&mut inner.phase);
        inner.next_sample = 0;
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> ClientStats {
        self.shared.lock().stats.clone()
    }

    /// Waits until `enough` holds; false when `deadline` passes first.
    pub fn wait(&self, deadline: Instant, enough: impl Fn(&ClientStats) -> bool) -> bool {
        let mut inner = self.shared.lock();
        loop {
            if enough(&inner.stats) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            inner = self.shared.wait(inner, left);
        }
    }

    /// Ends after the request under way and says what happened.
    #[must_use]
    pub fn stop(mut self) -> ClientStats {
        self.end();
        self.stats()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for LoadClient {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, guard: MutexGuard<'a, Inner>, at_most: Duration) -> MutexGuard<'a, Inner> {
        self.changed.wait_timeout(guard, at_most).unwrap_or_else(PoisonError::into_inner).0
    }

    /// The phase and sample of the next request.
    fn next(&self, samples: usize) -> (String, usize) {
        let mut inner = self.lock();
        let sample = inner.next_sample % samples;
        inner.next_sample = sample + 1;
        (inner.phase.clone(), sample)
    }

    fn count(
        &self,
        phase: &str,
        sample: usize,
        took: Duration,
        result: Result<Answer, RequestError>,
    ) {
        let mut inner = self.lock();
        let stats = inner.stats.phases.entry(phase.to_owned()).or_default();
        stats.requests += 1;
        match result {
            Ok(answer) => {
                stats.latency.record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
                stats.answers.insert(sample, answer);
            }
            Err(error) => {
                stats.failed += 1;
                if stats.failures.len() < MAX_FAILURE_TEXTS {
                    stats.failures.push(error.to_string());
                }
            }
        }
        self.changed.notify_all();
    }

    /// Waits, unless it is to end.
    fn pause(&self, duration: Duration) {
        let deadline = Instant::now() + duration;
        let mut inner = self.lock();
        while !self.stop.load(Ordering::Relaxed) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            inner = self.wait(inner, left);
        }
    }
}

fn keep_asking(shared: &Shared, options: &ClientOptions, samples: usize) {
    let agent = http(options.timeout);
    let mut address = None;
    while !shared.stop.load(Ordering::Relaxed) {
        let (phase, sample) = shared.next(samples);
        let started = Instant::now();
        let result = ask(&agent, options, &mut address, sample);
        let failed = result.is_err();
        shared.count(&phase, sample, started.elapsed(), result);
        if failed {
            address = None;
        }
        shared.pause(if failed { options.pause.max(AFTER_FAILURE) } else { options.pause });
    }
}

fn ask(
    agent: &ureq::Agent,
    options: &ClientOptions,
    address: &mut Option<String>,
    sample: usize,
) -> Result<Answer, RequestError> {
    let address = match address {
        Some(address) => address,
        None => address.insert(http_address(&options.endpoints)?),
    };
    infer(agent, address, &options.model, &options.inputs, sample)
}

/// The HTTP client that requests go through.
#[must_use]
pub fn http(timeout: Duration) -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_global(Some(timeout))
        .http_status_as_error(false)
        .build()
        .into()
}

/// The HTTP address in an agent's `endpoints.json`.
///
/// # Errors
/// The file is not there, no JSON, or says that HTTP is not served.
pub fn http_address(endpoints: &Path) -> Result<String, RequestError> {
    #[derive(Deserialize)]
    struct Endpoints {
        http: Option<String>,
    }
    let fail = |why: String| RequestError(format!("{}: {why}", endpoints.display()));
    let bytes = std::fs::read(endpoints).map_err(|e| fail(e.to_string()))?;
    let parsed: Endpoints = serde_json::from_slice(&bytes).map_err(|e| fail(e.to_string()))?;
    parsed.http.ok_or_else(|| fail("the agent does not serve HTTP".to_owned()))
}

#[derive(Serialize)]
struct RequestHead<'a> {
    id: String,
    inputs: Vec<InputHead<'a>>,
    parameters: BinaryOutput,
}

#[derive(Serialize)]
struct InputHead<'a> {
    name: &'a str,
    shape: Vec<usize>,
    datatype: &'a str,
    parameters: BinarySize,
}

#[derive(Serialize, Deserialize)]
struct BinarySize {
    binary_data_size: usize,
}

#[derive(Serialize)]
struct BinaryOutput {
    binary_data_output: bool,
}

#[derive(Deserialize)]
struct AnswerHead {
    #[serde(default)]
    model_version: Option<String>,
    outputs: Vec<OutputHead>,
}

#[derive(Deserialize)]
struct OutputHead {
    name: String,
    datatype: String,
    #[serde(default)]
    parameters: Option<BinarySize>,
    #[serde(default)]
    data: Option<Vec<f64>>,
}

/// Sends one sample and reads the answer.
///
/// # Errors
/// The device cannot be reached, answers with another status than 200, or with something that is
/// not the protocol's.
pub fn infer(
    agent: &ureq::Agent,
    address: &str,
    model: &str,
    inputs: &[Array],
    sample: usize,
) -> Result<Answer, RequestError> {
    let (head_bytes, body) = request_body(inputs, sample)?;
    let url = format!("http://{address}/v2/models/{model}/infer");
    let fail = |why: String| RequestError(format!("{url}: {why}"));
    let mut response = agent
        .post(&url)
        .header("content-type", "application/octet-stream")
        .header(LENGTH_HEADER, head_bytes.to_string())
        .send(&body)
        .map_err(|error| fail(error.to_string()))?;
    let status = response.status().as_u16();
    let head_length = response
        .headers()
        .get(LENGTH_HEADER)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let mut bytes = Vec::new();
    response
        .body_mut()
        .as_reader()
        .take(MAX_ANSWER_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|error| fail(error.to_string()))?;
    if status != 200 {
        let text: String = String::from_utf8_lossy(&bytes).chars().take(300).collect();
        return Err(fail(format!("status {status}: {text}")));
    }
    read_answer(&bytes, head_length).map_err(fail)
}

/// The body of a request, and how many of its bytes are JSON.
fn request_body(inputs: &[Array], sample: usize) -> Result<(usize, Vec<u8>), RequestError> {
    let mut heads = Vec::with_capacity(inputs.len());
    let mut tail = Vec::new();
    for input in inputs {
        let data = input
            .sample(sample)
            .ok_or_else(|| RequestError(format!("{} has no sample {sample}", input.name)))?;
        let mut shape = input.dims.clone();
        shape[0] = 1;
        heads.push(InputHead {
            name: &input.name,
            shape,
            datatype: input.dtype,
            parameters: BinarySize { binary_data_size: data.len() },
        });
        tail.extend_from_slice(data);
    }
    let head = RequestHead {
        id: sample.to_string(),
        inputs: heads,
        parameters: BinaryOutput { binary_data_output: true },
    };
    let mut body = serde_json::to_vec(&head).map_err(|e| RequestError(e.to_string()))?;
    let head_bytes = body.len();
    body.append(&mut tail);
    Ok((head_bytes, body))
}

fn read_answer(bytes: &[u8], head_length: Option<usize>) -> Result<Answer, String> {
    let (head, binary) = bytes
        .split_at_checked(head_length.unwrap_or(bytes.len()))
        .ok_or_else(|| format!("{LENGTH_HEADER} is larger than the answer"))?;
    let head: AnswerHead = serde_json::from_slice(head).map_err(|e| format!("the answer: {e}"))?;
    let output = head.outputs.first().ok_or("the answer holds no output")?;
    let values = match (&output.parameters, &output.data) {
        (Some(size), _) => {
            let raw = binary.get(..size.binary_data_size).ok_or_else(|| {
                format!("output {} announces more bytes than there are", output.name)
            })?;
            floats(raw, &output.datatype)?
        }
        (None, Some(data)) => data.clone(),
        (None, None) => return Err(format!("output {} has no data", output.name)),
    };
    let largest = values.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    let argmax = largest.ok_or_else(|| format!("output {} is empty", output.name))?.0;
    if values.iter().any(|value| value.is_nan()) {
        return Err(format!("output {} holds NaN", output.name));
    }
    Ok(Answer { argmax, version: head.model_version })
}

fn floats(raw: &[u8], datatype: &str) -> Result<Vec<f64>, String> {
    if datatype != "FP32" || !raw.len().is_multiple_of(4) {
        return Err(format!("cannot read {} bytes of {datatype}, only FP32", raw.len()));
    }
    let float =
        |bytes: &[u8]| f64::from(f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    Ok(raw.chunks_exact(4).map(float).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    use super::*;

    fn two_samples() -> Vec<Array> {
        vec![Array {
            name: "bytes".to_owned(),
            dtype: "INT32",
            item_bytes: 4,
            dims: vec![2, 3],
            data: (0..6_i32).flat_map(i32::to_le_bytes).collect(),
        }]
    }

    fn answer(values: &[f32]) -> (Vec<u8>, usize) {
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let head = serde_json::json!({
            "model_name": "magika", "model_version": "1.0.0",
            "outputs": [{"name": "target_label", "shape": [1, values.len()], "datatype": "FP32",
                         "parameters": {"binary_data_size": raw.len()}}],
        });
        let mut bytes = serde_json::to_vec(&head).unwrap();
        let length = bytes.len();
        bytes.extend(raw);
        (bytes, length)
    }

    /// Answers each request with the next of `responses`, the last one for ever, and hands over the
    /// bodies.
    fn server(
        responses: Vec<(u16, Vec<u8>, usize)>,
    ) -> (String, std::sync::mpsc::Receiver<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for index in 0.. {
                let Ok((stream, _)) = listener.accept() else { return };
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut length = 0;
                loop {
                    let mut line = String::new();
                    if reader.read_line(&mut line).unwrap() <= 2 {
                        break;
                    }
                    if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                let _ = sender.send(body);
                let (status, bytes, head) = &responses[index.min(responses.len() - 1)];
                let mut stream = stream;
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status} x\r\ncontent-length: {}\r\n{LENGTH_HEADER}: {head}\r\nconnection: close\r\n\r\n",
                    bytes.len()
                );
                let _ = stream.write_all(bytes);
            }
        });
        (address, receiver)
    }

    fn ok(values: &[f32]) -> (u16, Vec<u8>, usize) {
        let (bytes, length) = answer(values);
        (200, bytes, length)
    }

    #[test]
    fn a_sample_is_sent_as_a_batch_of_one_and_the_largest_output_is_the_answer() {
        let (address, bodies) = server(vec![ok(&[0.1, 0.2, 0.7])]);
        let agent = http(Duration::from_secs(10));
        let answer = infer(&agent, &address, "magika", &two_samples(), 1).unwrap();
        assert_eq!(answer, Answer { argmax: 2, version: Some("1.0.0".to_owned()) });
        let body = bodies.recv().unwrap();
        let split = body.len() - 12;
        let head: serde_json::Value = serde_json::from_slice(&body[..split]).unwrap();
        assert_eq!(head["inputs"][0]["shape"], serde_json::json!([1, 3]));
        assert_eq!(head["inputs"][0]["datatype"], "INT32");
        assert_eq!(head["parameters"]["binary_data_output"], true);
        assert_eq!(&body[split..], &two_samples()[0].data[12..]);
    }

    #[test]
    fn a_refusal_is_reported_with_its_status_and_text() {
        let (address, _bodies) = server(vec![(429, b"queue full".to_vec(), 0)]);
        let agent = http(Duration::from_secs(10));
        let error = infer(&agent, &address, "magika", &two_samples(), 0).unwrap_err().to_string();
        assert!(error.contains("status 429: queue full"), "{error}");
    }

    #[test]
    fn answers_that_are_not_the_protocol_s_are_failures_and_never_panics() {
        let (good, length) = answer(&[1.0, 2.0]);
        assert!(read_answer(&good, Some(length)).is_ok());
        assert!(read_answer(&good, Some(good.len() + 1)).is_err());
        assert!(read_answer(&good[..good.len() - 1], Some(length)).is_err());
        assert!(read_answer(b"", None).is_err());
        assert!(read_answer(b"{\"outputs\":[]}", None).is_err());
        let (nan, length) = answer(&[1.0, f32::NAN]);
        assert!(read_answer(&nan, Some(length)).unwrap_err().contains("NaN"));
        let json = br#"{"outputs":[{"name":"y","datatype":"FP32","data":[3.0, 5.0, 4.0]}]}"#;
        assert_eq!(read_answer(json, None).unwrap().argmax, 1);
        let text =
            br#"{"outputs":[{"name":"y","datatype":"BYTES","parameters":{"binary_data_size":0}}]}"#;
        assert!(read_answer(text, None).is_err());
    }

    #[test]
    fn a_failure_is_counted_and_the_next_request_is_sent_all_the_same() {
        let responses = vec![ok(&[1.0, 0.0]), (503, b"starting".to_vec(), 0), ok(&[1.0, 0.0])];
        let (address, _bodies) = server(responses);
        let dir = tempfile::tempdir().unwrap();
        let endpoints = dir.path().join("endpoints.json");
        std::fs::write(&endpoints, format!("{{\"http\":\"{address}\"}}")).unwrap();
        let options = ClientOptions {
            model: "magika".to_owned(),
            inputs: two_samples(),
            endpoints,
            pause: Duration::ZERO,
            timeout: Duration::from_secs(10),
        };
        let client = LoadClient::start(options, "before").unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        assert!(client.wait(deadline, |stats| stats.requests() >= 3));
        client.set_phase("after");
        assert!(client.wait(deadline, |stats| {
            stats.phases.get("after").is_some_and(|phase| phase.answers.len() == 2)
        }));
        let stats = client.stop();
        assert_eq!(stats.failed(), 1);
        assert!(stats.failures().all(|text| text.contains("status 503: starting")));
        assert_eq!(stats.phases["after"].failed, 0);
    }

    #[test]
    fn two_phases_are_compared_on_the_samples_that_both_answered() {
        let phase = |answers: &[(usize, usize)]| PhaseStats {
            answers: answers
                .iter()
                .map(|&(sample, argmax)| (sample, Answer { argmax, version: None }))
                .collect(),
            ..PhaseStats::default()
        };
        let stats = ClientStats {
            phases: BTreeMap::from([
                ("before".to_owned(), phase(&[(0, 5), (1, 5), (2, 7), (9, 1)])),
                ("after".to_owned(), phase(&[(0, 5), (1, 6), (2, 7), (3, 1), (9, 1)])),
                ("more".to_owned(), phase(&[(3, 1)])),
                ("alone".to_owned(), phase(&[(77, 1)])),
            ]),
        };
        assert_eq!(stats.agreement(&["before"], "after"), Some((0.75, 4)));
        assert_eq!(stats.agreement(&["before", "more"], "after"), Some((0.8, 5)));
        assert_eq!(stats.agreement(&["before"], "alone"), None);
        assert_eq!(stats.agreement(&["before"], "never"), None);
    }

    #[test]
    fn an_agent_that_is_not_there_yet_is_a_counted_failure() {
        let options = ClientOptions {
            model: "magika".to_owned(),
            inputs: two_samples(),
            endpoints: PathBuf::from("/nowhere/endpoints.json"),
            pause: Duration::ZERO,
            timeout: Duration::from_secs(1),
        };
        let client = LoadClient::start(options, "only").unwrap();
        assert!(client.wait(Instant::now() + Duration::from_secs(20), |s| s.failed() >= 2));
        let stats = client.stop();
        assert_eq!(stats.requests(), stats.failed());
        assert!(stats.failures().next().unwrap().contains("/nowhere/endpoints.json"));
    }

    #[test]
    fn without_samples_there_is_no_client() {
        let options = ClientOptions {
            model: "magika".to_owned(),
            inputs: Vec::new(),
            endpoints: PathBuf::new(),
            pause: Duration::ZERO,
            timeout: Duration::ZERO,
        };
        assert!(LoadClient::start(options, "only").is_err());
    }
}
