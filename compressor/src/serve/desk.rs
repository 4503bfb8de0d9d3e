//! Takes requests in and sends offers out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rumqttc::v5::AsyncClient;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Publish;
use tokio::sync::mpsc;
use wire::{RecompressRequest, Topic};

use super::jobs::{Waker, Workshop};
use super::link::LinkEvent;
use super::plan;
use super::store::{Accepted, StoreError};

/// What can be seen of the desk from outside.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Connected, and the subscription is acknowledged.
    pub(super) connected: AtomicBool,
    pub(super) accepted: AtomicU64,
    pub(super) duplicates: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) malformed: AtomicU64,
}

/// The desk: owns the client while there is a connection.
pub(super) struct Desk {
    pub(super) root: String,
    pub(super) agreement_min: f64,
    pub(super) shop: Arc<Workshop>,
    pub(super) counters: Arc<Counters>,
    pub(super) jobs: Waker,
    pub(super) client: Option<AsyncClient>,
    /// The offer that the broker has not answered yet: one at a time, so that an answer needs no
    /// packet id to be matched.
    pub(super) in_flight: Option<i64>,
}

impl Desk {
    /// Works until the link ends.
    pub(super) async fn run(mut self, mut events: mpsc::Receiver<LinkEvent>) {
        let shop = Arc::clone(&self.shop);
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.on_event(event).await,
                    None => return,
                },
                () = shop.outbox.notified() => self.send_next().await,
            }
        }
    }

    async fn on_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up { client, session } => self.on_up(client, session).await,
            LinkEvent::Down { reason } => {
                if self.counters.connected.swap(false, Ordering::Relaxed) || self.client.is_some() {
                    tracing::warn!(reason, "broker lost");
                } else {
                    tracing::debug!(reason, "broker not reached");
                }
                self.client = None;
                self.in_flight = None;
            }
            LinkEvent::Subscribed(Ok(())) => {
                tracing::info!("subscribed to requests");
                self.counters.connected.store(true, Ordering::Relaxed);
            }
            LinkEvent::Subscribed(Err(reason)) => {
                tracing::error!(
                    reason,
                    "the broker refuses the subscription to requests: check its access rules"
                );
            }
            LinkEvent::Message(publish) => self.on_message(publish).await,
            LinkEvent::Sent(answer) => self.on_sent(answer).await,
        }
    }

    async fn on_up(&mut self, client: AsyncClient, session: bool) {
        tracing::info!(session, "connected to the broker");
        self.in_flight = None;
        // Also where the session is there: it may be of an older configuration, and it is idempotent.
        match wire::requests_filter(&self.root) {
            Ok(filter) => {
                if let Err(error) = client.try_subscribe(filter, QoS::AtLeastOnce) {
                    tracing::error!(%error, "not subscribed");
                }
            }
            Err(error) => tracing::error!(%error, "not subscribed"),
        }
        self.client = Some(client);
        self.send_next().await;
    }

    /// A message is acknowledged once it is in the store, or once it is clear that it never will be.
    async fn on_message(&mut self, publish: Publish) {
        if let Err(error) = self.take(&publish).await {
            tracing::error!(%error, "request not stored; the broker will send it again");
            return;
        }
        if let Some(client) = &self.client
            && let Err(error) = client.try_ack(&publish)
        {
            tracing::warn!(%error, "request not acknowledged; the broker will send it again");
        }
    }

    async fn take(&self, publish: &Publish) -> Result<(), StoreError> {
        let topic = String::from_utf8_lossy(&publish.topic);
        let request = match read(&self.root, &topic, &publish.payload) {
            Ok(request) => request,
            Err(reason) => {
                self.counters.malformed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%topic, reason, "malformed request ignored");
                return Ok(());
            }
        };
        let spec = plan::job_for(&request, &self.shop.models, self.agreement_min);
        let (store, asked) = (Arc::clone(&self.shop.store), request.clone());
        let accepted = blocking(move || store.accept(&asked, spec)).await?;
        let (device, id, model) = (&request.device, &request.request_id, &request.model);
        match &accepted {
            Accepted::Refused(reason) => {
                tracing::warn!(device, id, model, reason, "request refused");
                self.counters.refused.fetch_add(1, Ordering::Relaxed);
            }
            Accepted::Duplicate => {
                tracing::debug!(device, id, model, "request known");
                self.counters.duplicates.fetch_add(1, Ordering::Relaxed);
            }
            other => {
                tracing::info!(device, id, model, "request {other:?}");
                self.counters.accepted.fetch_add(1, Ordering::Relaxed);
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
                    return;
                }
                self.send_next().await;
            }
            // It stays in the outbox: the next offer or connection tries again.
            Err(reason) => {
                tracing::error!(reason, "the broker refuses an offer: check its access rules")
            }
        }
    }

    /// Sends the oldest offer, if there is a connection and nothing is in flight.
    async fn send_next(&mut self) {
        let Some(client) = self.client.as_ref().filter(|_| self.in_flight.is_none()) else {
            return;
        };
        let store = Arc::clone(&self.shop.store);
        let unsent = match blocking(move || store.unsent()).await {
            Ok(Some(unsent)) => unsent,
            Ok(None) => return,
            Err(error) => return tracing::error!(%error, "the outbox cannot be read"),
        };
        match client.try_publish(unsent.topic.clone(), QoS::AtLeastOnce, true, unsent.payload) {
            Ok(()) => {
                tracing::info!(topic = unsent.topic, "offer sent");
                self.in_flight = Some(unsent.id);
            }
            Err(error) => {
                tracing::warn!(%error, topic = unsent.topic, "offer not sent; it stays in the outbox")
            }
        }
    }
}

/// The request in a message, or what is wrong with it.
fn read(root: &str, topic: &str, payload: &[u8]) -> Result<RecompressRequest, String> {
    let (device, kind) = wire::parse(root, topic).map_err(|error| error.to_string())?;
    if kind != Topic::Recompress {
        return Err("not a topic of requests".to_owned());
    }
    let request: RecompressRequest = wire::decode(payload).map_err(|error| error.to_string())?;
    if request.device != device {
        return Err(format!("sent by device {device} in the name of {}", request.device));
    }
    Ok(request)
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
