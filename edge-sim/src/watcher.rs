//! An MQTT client that records everything under a topic root, decoded and with its time of arrival.
//!
//! The recording is what the demonstration and the end-to-end tests judge by: they wait for records
//! and never for a length of time. The client keeps its session over reconnects, so that a broker
//! which persists sessions (mosquitto) loses none of its messages.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish};
use rumqttc::v5::{Client, Connection, Event, MqttOptions};
use serde::Serialize;
use wire::{
    Birth, BudgetBreach, Command, CommandEvent, CommandResult, EventKind, InferWindow,
    InstallEvent, ModelState, Offer, PowerWindow, RecompressRequest, ResourceWindow, RollbackEvent,
    SpoolDrop, StateReport, Stream, ThrottleEvent, Topic,
};

/// Records that are kept; the oldest go first.
pub const MAX_RECORDS: usize = 200_000;
const PACKET_BYTES: u32 = 4096 + wire::MAX_PAYLOAD_BYTES as u32;
const RECONNECT: Duration = Duration::from_millis(200);
const SLICE: Duration = Duration::from_secs(1);
const SESSION_SECONDS: u32 = 3600;

/// What a message says.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Message {
    Birth(Birth),
    State(StateReport),
    Model(ModelState),
    Infer(InferWindow),
    Resources(ResourceWindow),
    Power(PowerWindow),
    Breach(BudgetBreach),
    Install(InstallEvent),
    Rollback(RollbackEvent),
    Throttle(ThrottleEvent),
    SpoolDrop(SpoolDrop),
    Audit(CommandEvent),
    Request(RecompressRequest),
    Result(CommandResult),
    Offer(Offer),
    Command(Command),
    /// A retained message was deleted.
    Cleared,
    /// Not a message of Espalier's, and why.
    Unreadable {
        why: String,
    },
}

/// A message, where it was found and when it came.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Record {
    /// Milliseconds since the watcher was started.
    pub at_ms: u64,
    /// The whole topic.
    pub topic: String,
    /// The device in the topic.
    pub device: String,
    /// Whether the broker had kept it from before the subscription.
    pub retained: bool,
    /// What it says.
    pub message: Message,
}

/// Why the watcher cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The root cannot start a topic.
    #[error(transparent)]
    Topic(#[from] wire::TopicError),
    /// No connection in time.
    #[error("no connection to the broker at {address} within {} ms: {why}", waited.as_millis())]
    NotConnected {
        /// The broker.
        address: String,
        /// The deadline.
        waited: Duration,
        /// The last error.
        why: String,
    },
    /// The client would not take the message.
    #[error("cannot publish to {topic}: {why}")]
    Publish {
        /// Where to.
        topic: String,
        /// The client's error.
        why: String,
    },
    /// The thread could not be started.
    #[error("cannot start the watcher's thread: {0}")]
    Thread(#[from] std::io::Error),
}

#[derive(Default)]
struct Inner {
    records: Vec<Arc<Record>>,
    dropped: usize,
    client: Option<Client>,
    subscribed: bool,
    last_error: String,
}

struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
    stop: AtomicBool,
    root: String,
    filter: String,
    started: Instant,
}

/// Records until it is dropped.
pub struct Watcher {
    shared: Arc<Shared>,
    address: String,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Connects to the broker and records everything under `root`.
    ///
    /// # Errors
    /// `root` is no topic root, or there is no connection within `patience`.
    pub fn start(
        (host, port): (&str, u16),
        root: &str,
        patience: Duration,
    ) -> Result<Self, WatchError> {
        let shared = Arc::new(Shared {
            inner: Mutex::default(),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
            root: root.to_owned(),
            filter: wire::everything_filter(root)?,
            started: Instant::now(),
        });
        let mut options = MqttOptions::new(client_id(), host, port);
        options
            .set_clean_start(false)
            .set_session_expiry_interval(Some(SESSION_SECONDS))
            .set_max_packet_size(Some(PACKET_BYTES))
            .set_keep_alive(Duration::from_secs(10))
            .set_connection_timeout(5);
        let for_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("watcher".to_owned())
            .spawn(move || keep_watching(&for_thread, &options))?;
        let watcher = Self { shared, address: format!("{host}:{port}"), thread: Some(thread) };
        watcher.wait_connected(patience)?;
        Ok(watcher)
    }

    /// Waits until the subscription holds.
    ///
    /// # Errors
    /// It does not within `patience`.
    pub fn wait_connected(&self, patience: Duration) -> Result<(), WatchError> {
        let deadline = Instant::now() + patience;
        let mut inner = self.shared.lock();
        while !inner.subscribed {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let (address, why) = (self.address.clone(), inner.last_error.clone());
                return Err(WatchError::NotConnected { address, waited: patience, why });
            }
            inner = self.shared.wait(inner, left);
        }
        Ok(())
    }

    /// Publishes with `QoS` 1, waiting for a connection first.
    ///
    /// # Errors
    /// No connection within `patience`, or the client refuses the message.
    pub fn publish(
        &self,
        topic: &str,
        retain: bool,
        payload: Vec<u8>,
        patience: Duration,
    ) -> Result<(), WatchError> {
        self.wait_connected(patience)?;
        let fail = |why: String| WatchError::Publish { topic: topic.to_owned(), why };
        let client = self.shared.lock().client.clone();
        let client = client.ok_or_else(|| fail("the connection is gone".to_owned()))?;
        client
            .try_publish(topic, QoS::AtLeastOnce, retain, payload)
            .map_err(|error| fail(error.to_string()))
    }

    /// The position after the newest record, to wait from.
    #[must_use]
    pub fn cursor(&self) -> usize {
        let inner = self.shared.lock();
        inner.dropped + inner.records.len()
    }

    /// Every record from position `from` on.
    #[must_use]
    pub fn records(&self, from: usize) -> Vec<Arc<Record>> {
        let inner = self.shared.lock();
        let skip = from.saturating_sub(inner.dropped).min(inner.records.len());
        inner.records[skip..].to_vec()
    }

    /// Waits for records after `*from`, and moves it behind them. Empty when `deadline` passes.
    pub fn next(&self, from: &mut usize, deadline: Instant) -> Vec<Arc<Record>> {
        let mut inner = self.shared.lock();
        loop {
            let end = inner.dropped + inner.records.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if end > *from || left.is_zero() {
                let skip = from.saturating_sub(inner.dropped).min(inner.records.len());
                *from = end.max(*from);
                return inner.records[skip..].to_vec();
            }
            inner = self.shared.wait(inner, left);
        }
    }

    /// Waits for the first record from `*from` on that `pick` takes, and moves `*from` behind it.
    pub fn wait<T>(
        &self,
        from: &mut usize,
        deadline: Instant,
        mut pick: impl FnMut(&Record) -> Option<T>,
    ) -> Option<T> {
        loop {
            let start = (*from).max(self.shared.lock().dropped);
            let batch = self.next(from, deadline);
            if batch.is_empty() {
                return None;
            }
            for (index, record) in batch.iter().enumerate() {
                if let Some(found) = pick(record) {
                    *from = start + index + 1;
                    return Some(found);
                }
            }
        }
    }

    /// How long it has been recording.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.shared.started.elapsed()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(client) = self.shared.lock().client.take() {
            let _ = client.try_disconnect();
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, guard: MutexGuard<'a, Inner>, at_most: Duration) -> MutexGuard<'a, Inner> {
        self.changed.wait_timeout(guard, at_most).unwrap_or_else(PoisonError::into_inner).0
    }

    fn record(&self, publish: &Publish) {
        let topic = String::from_utf8_lossy(&publish.topic).into_owned();
        let (device, message) = read(&self.root, &topic, &publish.payload);
        let at_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let retained = publish.retain;
        let mut inner = self.lock();
        inner.records.push(Arc::new(Record { at_ms, topic, device, retained, message }));
        if inner.records.len() > MAX_RECORDS {
            let excess = MAX_RECORDS / 10;
            inner.records.drain(..excess);
            inner.dropped += excess;
        }
        self.changed.notify_all();
    }

    fn disconnected(&self, why: String) {
        let mut inner = self.lock();
        inner.subscribed = false;
        inner.client = None;
        inner.last_error = why;
    }
}

/// One connection after another, each with a client of its own: rumqttc's own reconnecting resends
/// what the broker has forgotten.
fn keep_watching(shared: &Shared, options: &MqttOptions) {
    while !shared.stop.load(Ordering::Relaxed) {
        let (client, mut connection) = Client::new(options.clone(), 64);
        let why = watch_once(shared, &client, &mut connection);
        shared.disconnected(why);
        let guard = shared.lock();
        if !shared.stop.load(Ordering::Relaxed) {
            drop(shared.wait(guard, RECONNECT));
        }
    }
}

fn watch_once(shared: &Shared, client: &Client, connection: &mut Connection) -> String {
    use rumqttc::v5::RecvTimeoutError;
    while !shared.stop.load(Ordering::Relaxed) {
        let event = match connection.recv_timeout(SLICE) {
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return "closed".to_owned(),
            Ok(Err(error)) => return error.to_string(),
            Ok(Ok(event)) => event,
        };
        match event {
            Event::Incoming(Packet::ConnAck(_)) => {
                if let Err(error) = client.try_subscribe(&shared.filter, QoS::AtLeastOnce) {
                    return error.to_string();
                }
            }
            Event::Incoming(Packet::SubAck(_)) => {
                let mut inner = shared.lock();
                inner.client = Some(client.clone());
                inner.subscribed = true;
                shared.changed.notify_all();
            }
            Event::Incoming(Packet::Publish(publish)) => shared.record(&publish),
            _ => {}
        }
    }
    "stopped".to_owned()
}

fn read(root: &str, topic: &str, payload: &[u8]) -> (String, Message) {
    match wire::parse(root, topic) {
        Err(error) => (String::new(), Message::Unreadable { why: error.to_string() }),
        Ok((device, _)) if payload.is_empty() => (device, Message::Cleared),
        Ok((device, topic)) => {
            let message = decode(&topic, payload)
                .unwrap_or_else(|error| Message::Unreadable { why: error.to_string() });
            (device, message)
        }
    }
}

fn decode(topic: &Topic, payload: &[u8]) -> Result<Message, wire::PayloadError> {
    Ok(match topic {
        Topic::Birth => Message::Birth(wire::decode(payload)?),
        Topic::State => Message::State(wire::decode(payload)?),
        Topic::Model(_) => Message::Model(wire::decode(payload)?),
        Topic::Metrics(Stream::Infer(_)) => Message::Infer(wire::decode(payload)?),
        Topic::Metrics(Stream::Res) => Message::Resources(wire::decode(payload)?),
        Topic::Metrics(Stream::Power) => Message::Power(wire::decode(payload)?),
        Topic::Event(EventKind::BudgetBreach) => Message::Breach(wire::decode(payload)?),
        Topic::Event(EventKind::Install) => Message::Install(wire::decode(payload)?),
        Topic::Event(EventKind::Rollback) => Message::Rollback(wire::decode(payload)?),
        Topic::Event(EventKind::SpoolDrop) => Message::SpoolDrop(wire::decode(payload)?),
        Topic::Event(EventKind::Command) => Message::Audit(wire::decode(payload)?),
        Topic::Event(EventKind::Throttle) => Message::Throttle(wire::decode(payload)?),
        Topic::Recompress => Message::Request(wire::decode(payload)?),
        Topic::Result(_) => Message::Result(wire::decode(payload)?),
        Topic::Offer(_) => Message::Offer(wire::decode(payload)?),
        Topic::Command(..) => Message::Command(wire::decode(payload)?),
    })
}

fn client_id() -> String {
    use std::sync::atomic::AtomicU32;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("edge-sim-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use wire::Header;

    use super::*;

    fn state() -> Vec<u8> {
        wire::encode(&StateReport {
            header: Header::of::<StateReport>(1, 2, "boot"),
            state: wire::DeviceState::Online,
            reason: None,
            log_level: None,
        })
    }

    #[test]
    fn a_message_is_decoded_by_its_topic() {
        let (device, message) = read("espalier/v1", "espalier/v1/d/pi/up/state", &state());
        assert_eq!(device, "pi");
        let Message::State(report) = message else { panic!("{message:?}") };
        assert_eq!(report.state, wire::DeviceState::Online);
    }

    #[test]
    fn what_cannot_be_read_is_recorded_with_the_reason_and_never_lost() {
        let unreadable = |topic: &str, payload: &[u8]| match read("espalier/v1", topic, payload).1 {
            Message::Unreadable { why } => why,
            other => panic!("{other:?}"),
        };
        assert!(unreadable("espalier/v1/d/pi/up/state", b"{\"sch").contains("espalier.state.v1"));
        assert!(unreadable("espalier/v1/d/pi/up/birth", &state()).contains("espalier.state.v1"));
        assert!(unreadable("espalier/v1/d/pi/up/nonsense", &state()).contains("nonsense"));
    }

    #[test]
    fn an_empty_payload_is_a_deleted_retained_message() {
        let (device, message) = read("espalier/v1", "espalier/v1/d/pi/dn/offer/magika", b"");
        assert_eq!((device.as_str(), message), ("pi", Message::Cleared));
    }

    #[test]
    fn without_a_broker_the_error_names_the_address_and_the_cause() {
        let error = Watcher::start(("127.0.0.1", 9), "espalier/v1", Duration::from_millis(500));
        let text = error.err().unwrap().to_string();
        assert!(text.contains("127.0.0.1:9") && text.contains("500 ms"), "{text}");
    }

    #[test]
    fn a_root_that_cannot_be_subscribed_to_is_refused() {
        assert!(matches!(
            Watcher::start(("127.0.0.1", 9), "a/#", Duration::ZERO),
            Err(WatchError::Topic(_))
        ));
    }
}
