//! The connection to the broker. This task polls and forwards, and does nothing else.
//!
//! Every connection gets a fresh client and event loop, so that no unacknowledged packet of an older
//! one can be repeated behind the outbox's back; what must survive is in the store. The broker keeps
//! the session (subscriptions and what was not acknowledged) between connections. Over TLS the client
//! speaks to a [`Relay`], which reads certificates anew for each connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use rumqttc::Transport;
use rumqttc::v5::mqttbytes::v5::{Packet, PubAckReason, Publish, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions};
use tls::{Relay, Target};
use tokio::sync::{Notify, mpsc};

use super::offers::entropy;

/// How long the broker keeps the session without a connection, seconds.
const SESSION_EXPIRY_S: u32 = 7 * 24 * 3600;
/// Largest packet accepted; the broker drops larger ones itself.
#[allow(clippy::cast_possible_truncation)]
const MAX_PACKET_BYTES: u32 = wire::MAX_PAYLOAD_BYTES as u32 + 16 * 1024;
/// Requests that the broker may send before the first is acknowledged.
const RECEIVE_MAXIMUM: u16 = 32;
/// Packets waiting to be sent: acknowledgements, a subscription, one offer.
const QUEUE: usize = 128;
/// How long a connection may take until the broker took it, seconds. Over TLS its parts have limits of
/// their own, which say more.
const CONNECT_S: (u64, u64) = (5, 30);
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A connection that held this long was a good one.
const GOOD_CONNECTION: Duration = Duration::from_secs(10);

/// One connection, from its beginning to its end.
#[derive(Clone)]
pub(super) struct Line {
    pub(super) client: AsyncClient,
    dropped: Arc<Notify>,
}

impl Line {
    /// Ends the connection without a word: the broker keeps the session, and sends again on the next
    /// connection what was not acknowledged on this one.
    pub(super) fn hang_up(&self) {
        self.dropped.notify_one();
    }
}

/// What happens on the connection.
pub(super) enum LinkEvent {
    /// Connected; `session` says whether the broker remembered the subscription.
    Up { line: Line, session: bool },
    /// Disconnected, or not connected.
    Down { reason: String },
    /// The broker's answers to a subscription, one for each filter.
    Subscribed(Vec<Result<(), String>>),
    /// A message, to be acknowledged once it is taken.
    Message(Publish),
    /// The broker's answer to the one offer in flight.
    Sent(Result<(), String>),
}

/// Where the broker is and how it is reached.
#[derive(Debug, Clone)]
pub(super) struct Way {
    /// Host and port.
    pub(super) broker: (String, u16),
    /// What the connection is secured with, if it is.
    pub(super) tls: Option<tls::Settings>,
    /// This service's name on the broker.
    pub(super) client_id: String,
}

impl Way {
    /// Options of the next connection, and its way over TLS.
    fn dial(&self) -> Result<(MqttOptions, Option<Relay>), String> {
        let (host, port) = self.broker.clone();
        let Some(settings) = self.tls.clone() else {
            let mut to = MqttOptions::new(&self.client_id, host, port);
            to.set_connection_timeout(CONNECT_S.0);
            return Ok((options(to), None));
        };
        let (here, role) = ("this service", "the broker");
        let relay = Relay::open(Target { host, port, settings, here, role })?;
        let mut to = MqttOptions::new(&self.client_id, relay.address(), port);
        to.set_transport(Transport::Unix).set_connection_timeout(CONNECT_S.1);
        Ok((options(to), Some(relay)))
    }
}

/// What all connections have in common.
fn options(mut options: MqttOptions) -> MqttOptions {
    options.set_keep_alive(Duration::from_secs(30));
    options.set_clean_start(false);
    options.set_session_expiry_interval(Some(SESSION_EXPIRY_S));
    options.set_receive_maximum(Some(RECEIVE_MAXIMUM));
    options.set_max_packet_size(Some(MAX_PACKET_BYTES));
    options.set_manual_acks(true);
    options.set_outgoing_inflight_upper_limit(16);
    options
}

/// Connects, forwards, and connects again, until nobody listens any more.
pub(super) async fn run(way: Way, events: mpsc::Sender<LinkEvent>) {
    let mut backoff = Backoff::default();
    let mut jitter = SmallRng::seed_from_u64(entropy());
    loop {
        let since = Instant::now();
        let reason = match way.dial() {
            Ok((options, relay)) => {
                let (client, mut eventloop) = AsyncClient::new(options, QUEUE);
                let line = Line { client, dropped: Arc::default() };
                connection(&line, &mut eventloop, relay.as_ref(), &events).await
            }
            Err(reason) => reason,
        };
        if events.send(LinkEvent::Down { reason }).await.is_err() {
            return;
        }
        let wait = backoff.next(since.elapsed(), jitter.random());
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = events.closed() => return,
        }
    }
}

/// Polls one connection until it ends, and says why.
async fn connection(
    line: &Line,
    eventloop: &mut EventLoop,
    relay: Option<&Relay>,
    events: &mpsc::Sender<LinkEvent>,
) -> String {
    loop {
        let event = tokio::select! {
            event = eventloop.poll() => event,
            () = line.dropped.notified() => return "the service hung up".to_owned(),
            () = events.closed() => return "the service stops".to_owned(),
        };
        let forward = match event {
            Ok(Event::Incoming(packet)) => translate(line, packet),
            Ok(Event::Outgoing(_)) => None,
            Err(error) => return ended(&error, relay),
        };
        if let Some(event) = forward
            && events.send(event).await.is_err()
        {
            return "the service stops".to_owned();
        }
    }
}

/// Why a connection ended. What the client sees of a failure of TLS is a socket that closed.
fn ended(error: &ConnectionError, relay: Option<&Relay>) -> String {
    let reason = relay.and_then(Relay::reason);
    reason.unwrap_or_else(|| match error {
        ConnectionError::ConnectionRefused(code) => {
            format!("the broker refuses the connection: {code:?}")
        }
        other => other.to_string(),
    })
}

fn translate(line: &Line, packet: Packet) -> Option<LinkEvent> {
    match packet {
        Packet::ConnAck(connack) => {
            Some(LinkEvent::Up { line: line.clone(), session: connack.session_present })
        }
        Packet::Publish(publish) => Some(LinkEvent::Message(publish)),
        Packet::SubAck(suback) => {
            let answer = |code: &SubscribeReasonCode| match code {
                SubscribeReasonCode::Success(_) => Ok(()),
                refused => Err(format!("{refused:?}")),
            };
            Some(LinkEvent::Subscribed(suback.return_codes.iter().map(answer).collect()))
        }
        Packet::PubAck(puback) => Some(LinkEvent::Sent(match puback.reason {
            PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Ok(()),
            reason => Err(format!("{reason:?}")),
        })),
        _ => None,
    }
}

/// Waits that double up to a limit, spread over their whole length, and start over after a good connection.
#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next wait; `jitter` between 0 and 1 scales it.
    fn next(&mut self, connected: Duration, jitter: f64) -> Duration {
        if connected >= GOOD_CONNECTION {
            self.failures = 0;
        }
        let wait = FIRST_WAIT.saturating_mul(1 << self.failures.min(16)).min(LONGEST_WAIT);
        self.failures = self.failures.saturating_add(1);
        wait.mul_f64(jitter.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_a_limit_and_start_over_after_a_good_connection() {
        let mut backoff = Backoff::default();
        let short = Duration::from_secs(1);
        let waits: Vec<u128> = (0..9).map(|_| backoff.next(short, 1.0).as_millis()).collect();
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert_eq!(backoff.next(GOOD_CONNECTION, 0.5).as_millis(), 125);
        for _ in 0..100 {
            assert!(backoff.next(short, 1.0) <= LONGEST_WAIT);
        }
    }
}
