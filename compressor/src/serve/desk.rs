//! Takes requests in and sends offers out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Filter, Publish};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use wire::{EventKind, InstallEvent, Payload, RecompressRequest, Topic, TopicError};

use super::jobs::{Waker, Workshop};
use super::link::{Line, LinkEvent};
use super::plan;
use super::store::{Accepted, Heard, StoreError, Waiting};

/// The wait after the outbox could not be read or written.
const STORE_RETRY: Duration = Duration::from_secs(5);

/// What can be seen of the desk from outside.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Connected, and the subscription is acknowledged.
    pub(super) connected: AtomicBool,
    pub(super) accepted: AtomicU64,
    pub(super) duplicates: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) malformed: AtomicU64,
    /// Bundles that devices took back.
    pub(super) taken_back: AtomicU64,
    /// Offers that the broker refused.
    pub(super) offers_refused: AtomicU64,
    /// Failures of the store.
    pub(super) store_errors: AtomicU64,
}

/// The desk: owns the line to the broker while there is one.
pub(super) struct Desk {
    pub(super) root: String,
    pub(super) agreement_min: f64,
    pub(super) shop: Arc<Workshop>,
    pub(super) jobs: Waker,
    pub(super) line: Option<Line>,
    /// Why the broker was not reached, as was said last.
    pub(super) unreached: Option<String>,
    /// When an offer that the broker refused may be tried again.
    pub(super) retry_at: Option<Instant>,
    /// The offer that the broker has not answered yet: one at a time, so that an answer needs no
    /// packet id to be matched.
    pub(super) in_flight: Option<i64>,
}

impl Desk {
    /// Works until the link ends.
    pub(super) async fn run(mut self, mut events: mpsc::Receiver<LinkEvent>) {
        let shop = Arc::clone(&self.shop);
        loop {
            let retry_at = self.retry_at;
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.on_event(event).await,
                    None => return,
                },
                () = shop.outbox.notified() => self.send_next().await,
                () = at(retry_at) => self.send_next().await,
            }
        }
    }

    async fn on_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up { line, session } => self.on_up(line, session).await,
            LinkEvent::Down { reason } => self.on_down(&reason).await,
            LinkEvent::Subscribed(answers) => self.on_subscribed(&answers),
            LinkEvent::Message(publish) => self.on_message(publish).await,
            LinkEvent::Sent(answer) => self.on_sent(answer).await,
        }
    }

    async fn on_up(&mut self, line: Line, session: bool) {
        tracing::info!(session, "connected to the broker");
        self.unreached = None;
        self.in_flight = None;
        // Also where the session is there: it may be of an older configuration, and it is idempotent.
        match filters(&self.root) {
            Ok(filters) => {
                if let Err(error) = line.client.try_subscribe_many(filters) {
                    tracing::error!(%error, "not subscribed");
                }
            }
            Err(error) => tracing::error!(%error, "not subscribed"),
        }
        self.line = Some(line);
        let store = Arc::clone(&self.shop.store);
        self.note(blocking(move || store.retry_refused()).await);
        self.send_next().await;
    }

    async fn on_down(&mut self, reason: &str) {
        let connected = self.counters().connected.swap(false, Ordering::Relaxed);
        if connected || self.line.is_some() {
            tracing::warn!(reason, "broker lost");
        } else if self.unreached.as_deref() != Some(reason) {
            tracing::warn!(reason, "broker not reached");
        } else {
            tracing::debug!(reason, "broker not reached");
        }
        self.unreached = Some(reason.to_owned());
        self.line = None;
        if let Some(id) = self.in_flight.take() {
            let store = Arc::clone(&self.shop.store);
            let reason = format!("the connection was lost before an answer: {reason}");
            self.note(blocking(move || store.lost(id, &reason)).await);
        }
    }

    /// In the order of [`filters`].
    fn on_subscribed(&self, answers: &[Result<(), String>]) {
        let what = ["requests", "installs: bundles that devices take back are offered again"];
        for (what, answer) in what.iter().zip(answers) {
            if let Err(reason) = answer {
                tracing::error!(
                    reason,
                    "the broker refuses the subscription to {what}: check its access rules"
                );
            }
        }
        if matches!(answers.first(), Some(Ok(()))) {
            tracing::info!("subscribed to requests");
            self.counters().connected.store(true, Ordering::Relaxed);
        }
    }

    /// A message is acknowledged once it is in the store, or once it is clear that it never will be.
    /// Where the store fails the connection is dropped: only then does the broker send it again.
    async fn on_message(&mut self, publish: Publish) {
        if let Err(error) = self.take(&publish).await {
            self.counters().store_errors.fetch_add(1, Ordering::Relaxed);
            tracing::error!(%error, "message not stored; connecting anew so that the broker sends it again");
            if let Some(line) = self.line.take() {
                line.hang_up();
            }
            return;
        }
        if let Some(line) = &self.line
            && let Err(error) = line.client.try_ack(&publish)
        {
            tracing::warn!(%error, "message not acknowledged; the broker will send it again");
        }
    }

    fn counters(&self) -> &Counters {
        &self.shop.counters
    }

    /// Counts and logs a failure of the store that loses nothing.
    fn note(&self, result: Result<(), StoreError>) {
        if let Err(error) = result {
            self.counters().store_errors.fetch_add(1, Ordering::Relaxed);
            tracing::error!(%error, "the store fails");
        }
    }

    async fn take(&self, publish: &Publish) -> Result<(), StoreError> {
        let topic = String::from_utf8_lossy(&publish.topic);
        match read(&self.root, &topic, &publish.payload) {
            Ok(Message::Request(request)) => self.take_request(request).await,
            Ok(Message::Install(device, event)) => self.take_install(device, event).await,
            Err(reason) => {
                self.counters().malformed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%topic, reason, "malformed message ignored");
                Ok(())
            }
        }
    }

    async fn take_install(&self, device: String, event: InstallEvent) -> Result<(), StoreError> {
        let store = Arc::clone(&self.shop.store);
        let heard = blocking(move || {
            let heard = store.heard(&device, &event)?;
            Ok((heard, device, event))
        });
        let (heard, device, event) = heard.await?;
        if heard == Heard::TakenBack {
            let (model, digest) = (&event.model, &event.digest);
            let reason = event.reason.as_deref().unwrap_or("without a reason");
            tracing::warn!(
                device,
                model,
                digest,
                reason,
                "bundle taken back; it is not offered again"
            );
            self.counters().taken_back.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn take_request(&self, request: RecompressRequest) -> Result<(), StoreError> {
        let spec = plan::job_for(&request, &self.shop.models, self.agreement_min);
        let (store, asked) = (Arc::clone(&self.shop.store), request.clone());
        let accepted = blocking(move || store.accept(&asked, spec)).await?;
        let (device, id, model) = (&request.device, &request.request_id, &request.model);
        match &accepted {
            Accepted::Refused(reason) => {
                tracing::warn!(device, id, model, reason, "request refused");
                self.counters().refused.fetch_add(1, Ordering::Relaxed);
            }
            Accepted::Duplicate => {
                tracing::debug!(device, id, model, "request known");
                self.counters().duplicates.fetch_add(1, Ordering::Relaxed);
            }
            other => {
                tracing::info!(device, id, model, "request {other:?}");
                self.counters().accepted.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.jobs.wake();
        self.shop.outbox.notify_one();
        Ok(())
    }

    async fn on_sent(&mut self, answer: Result<(), String>) {
        let Some(id) = self.in_flight.take() else { return };
        match answer {
            Ok(()) => {
                let store = Arc::clone(&self.shop.store);
                if let Err(error) = blocking(move || store.sent(id)).await {
                    tracing::error!(%error, "an offer stays in the outbox and is sent again");
                    self.counters().store_errors.fetch_add(1, Ordering::Relaxed);
                    self.retry_at = Some(Instant::now() + STORE_RETRY);
                    return;
                }
                self.send_next().await;
            }
            // It stays in the outbox, behind the others.
            Err(reason) => {
                tracing::error!(reason, "the broker refuses an offer: check its access rules");
                self.counters().offers_refused.fetch_add(1, Ordering::Relaxed);
                let store = Arc::clone(&self.shop.store);
                let stored = blocking(move || store.refused(id, &reason)).await;
                if stored.is_ok() {
                    self.send_next().await;
                }
                self.note(stored);
            }
        }
    }

    /// Sends the next offer, if there is a connection and nothing is in flight.
    async fn send_next(&mut self) {
        self.retry_at = None;
        let Some(line) = self.line.as_ref().filter(|_| self.in_flight.is_none()) else {
            return;
        };
        let store = Arc::clone(&self.shop.store);
        let unsent = match blocking(move || store.unsent()).await {
            Ok(Waiting::Offer(unsent)) => unsent,
            Ok(Waiting::Nothing) => return,
            Ok(Waiting::Later(wait)) => {
                self.retry_at = Some(Instant::now() + wait);
                return;
            }
            Err(error) => {
                self.retry_at = Some(Instant::now() + STORE_RETRY);
                return self.note(Err(error));
            }
        };
        let (topic, payload) = (unsent.topic.clone(), unsent.payload);
        match line.client.try_publish(topic, QoS::AtLeastOnce, true, payload) {
            Ok(()) => {
                tracing::info!(topic = unsent.topic, "offer sent");
                self.in_flight = Some(unsent.id);
            }
            Err(error) => {
                tracing::warn!(%error, topic = unsent.topic, "offer not sent; it stays in the outbox");
            }
        }
    }
}

/// Waits until a time; for ever where there is none.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// What the service hears: requests, and what becomes of its offers.
fn filters(root: &str) -> Result<[Filter; 2], TopicError> {
    let filters = [wire::requests_filter(root)?, wire::events_filter(root, EventKind::Install)?];
    Ok(filters.map(|filter| Filter::new(filter, QoS::AtLeastOnce)))
}

/// What a device says.
enum Message {
    Request(RecompressRequest),
    /// The device, and what it says about an install.
    Install(String, InstallEvent),
}

/// What is in a message, or what is wrong with it.
fn read(root: &str, topic: &str, payload: &[u8]) -> Result<Message, String> {
    let (device, kind) = wire::parse(root, topic).map_err(|error| error.to_string())?;
    match kind {
        Topic::Recompress => {
            let request: RecompressRequest = decode(payload)?;
            if request.device != device {
                return Err(format!("sent by device {device} in the name of {}", request.device));
            }
            Ok(Message::Request(request))
        }
        Topic::Event(EventKind::Install) => Ok(Message::Install(device, decode(payload)?)),
        _ => Err("not a topic of requests or installs".to_owned()),
    }
}

fn decode<P: Payload>(payload: &[u8]) -> Result<P, String> {
    wire::decode(payload).map_err(|error| error.to_string())
}

/// Runs a store function where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(StoreError::Row(error.to_string())),
    }
}
