//! The connection to the broker.
//!
//! The client library is kept on a short leash, for reasons that were measured: its task does nothing
//! but poll; everything is handed over without waiting; each connection gets a new event loop, so that
//! no packet number or queued message of the last one lives on; what was not acknowledged comes again
//! from the spool. The broker keeps the session, and the agent subscribes on every connection, which
//! also brings the retained offers again. Over TLS it speaks to a [`Relay`], which reads certificates
//! anew for each connection.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnectProperties, DisconnectReasonCode, LastWill, LastWillProperties, PubAckReason,
    SubscribeReasonCode,
};
use rumqttc::v5::{
    AsyncClient, ConnectionError, Event, EventLoop, Incoming, MqttOptions, StateError,
};
use rumqttc::{NetworkOptions, Outgoing, Transport};
use tls::{Relay, Target};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::config::MqttConfig;
use patience::Patience;

mod patience;

/// Events that may wait for the agent; the poll task waits when there are more.
const MAX_EVENTS: usize = 256;
/// Requests that may wait for the network.
const MAX_REQUESTS: usize = 64;
/// The most that a packet of ours has beside topic and payload: its head, their lengths and a number.
const PACKET_HEAD: usize = 16;
/// Room beside the payload in a packet.
const PACKET_OVERHEAD: usize = 8 << 10;
/// How long a connection may take until the broker took it, seconds. Over TLS its parts have limits of
/// their own, which say more.
const CONNECT_S: (u64, u64) = (5, 30);

/// What the connection says.
#[derive(Debug)]
pub enum LinkEvent {
    /// The broker took the connection.
    Connected(Box<dyn Publisher>),
    /// The connection is gone, or could not be made.
    Disconnected(String),
    /// The oldest message handed over and not yet sent was sent under this number.
    Sent(u16),
    /// The broker has the message of this number, or refuses it.
    Acknowledged {
        /// The number.
        packet: u16,
        /// Why the broker refuses it.
        refused: Option<Refusal>,
    },
    /// The broker answered the subscription.
    Subscribed {
        /// Why it refuses it.
        refused: Option<String>,
    },
    /// A message came.
    Message {
        /// Its topic.
        topic: String,
        /// What it says.
        payload: Vec<u8>,
    },
}

/// Why the broker does not take a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The reason code's name.
    pub reason: String,
    /// Whether the message itself is wrong, so that no broker would ever take it. Everything else
    /// ends when somebody raises a quota or mends the access rules.
    pub for_good: bool,
}

/// There is no room to hand anything over now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy;

/// One living connection.
pub trait Publisher: Send + Sync + std::fmt::Debug {
    /// Hands a message over, at least once.
    ///
    /// # Errors
    /// No room.
    fn publish(&self, topic: &str, retain: bool, payload: &[u8]) -> Result<(), Busy>;
    /// Asks for messages.
    ///
    /// # Errors
    /// No room.
    fn subscribe(&self, filter: &str) -> Result<(), Busy>;
    /// Whether the broker takes a message of that size. One that it does not take costs the connection.
    fn takes(&self, topic: &str, payload: &[u8]) -> bool {
        let _ = (topic, payload);
        true
    }
    /// Says good-bye, so that the broker does not tell the will.
    fn disconnect(&self);
}

#[derive(Debug)]
struct Client {
    client: AsyncClient,
    /// The largest packet that the broker takes, where it says so.
    max_packet_bytes: Option<u32>,
}

impl Publisher for Client {
    fn publish(&self, topic: &str, retain: bool, payload: &[u8]) -> Result<(), Busy> {
        let qos = QoS::AtLeastOnce;
        let sent = self.client.try_publish(topic, qos, retain, payload.to_vec());
        sent.map_err(|_| Busy)
    }

    fn subscribe(&self, filter: &str) -> Result<(), Busy> {
        let asked = self.client.try_subscribe(filter, QoS::AtLeastOnce);
        asked.map_err(|_| Busy)
    }

    fn takes(&self, topic: &str, payload: &[u8]) -> bool {
        let bytes = topic.len() + payload.len() + PACKET_HEAD;
        self.max_packet_bytes
            .is_none_or(|most| u32::try_from(bytes).is_ok_and(|bytes| bytes <= most))
    }

    fn disconnect(&self) {
        let _ = self.client.try_disconnect();
    }
}

/// What the broker says for a device that vanished.
#[derive(Debug, Clone)]
pub struct Will {
    /// Where.
    pub topic: String,
    /// What.
    pub payload: Vec<u8>,
}

/// Connects, and connects again, until the receiver is dropped.
#[must_use]
pub fn start(
    config: &MqttConfig,
    client_id: &str,
    will: Will,
) -> (mpsc::Receiver<LinkEvent>, JoinHandle<()>) {
    let (events, receiver) = mpsc::channel(MAX_EVENTS);
    let (config, client_id) = (config.clone(), client_id.to_owned());
    let task =
        tokio::spawn(async move { keep_connected(&config, &client_id, &will, &events).await });
    (receiver, task)
}

async fn keep_connected(
    config: &MqttConfig,
    client_id: &str,
    will: &Will,
    events: &mpsc::Sender<LinkEvent>,
) {
    let seed = RandomState::new().build_hasher().finish();
    let mut chance = SmallRng::seed_from_u64(seed);
    let mut patience = Patience::default();
    loop {
        let begun = tokio::time::Instant::now();
        let ended = match dial(config, client_id, will) {
            Ok((options, relay)) => poll(options, relay.as_ref(), events).await,
            Err(reason) => Ended::Failed(reason),
        };
        let lived = begun.elapsed();
        let (reason, wait) = match ended {
            Ended::Unheard => return,
            Ended::TakenOver => {
                let reason = format!("another client connected as {client_id}");
                (reason, patience.after_takeover(lived, chance.random()))
            }
            Ended::Failed(reason) => (reason, patience.after_failure(lived, chance.random())),
        };
        if events.send(LinkEvent::Disconnected(reason)).await.is_err() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = events.closed() => return,
        }
    }
}

enum Ended {
    Failed(String),
    TakenOver,
    /// Nobody listens any more.
    Unheard,
}

/// One connection, from its first packet to its end.
async fn poll(
    options: MqttOptions,
    relay: Option<&Relay>,
    events: &mpsc::Sender<LinkEvent>,
) -> Ended {
    let (client, mut network) = AsyncClient::new(options, MAX_REQUESTS);
    loop {
        let event = match next(&mut network, events).await {
            Some(Ok(event)) => event,
            Some(Err(error)) => return ended(&error, relay),
            None => return Ended::Unheard,
        };
        let Some(event) = translate(event, &client) else {
            continue;
        };
        if events.send(event).await.is_err() {
            return Ended::Unheard;
        }
    }
}

/// The next event; none when nobody listens any more.
async fn next(
    network: &mut EventLoop,
    events: &mpsc::Sender<LinkEvent>,
) -> Option<Result<Event, ConnectionError>> {
    tokio::select! {
        event = network.poll() => Some(event),
        () = events.closed() => None,
    }
}

fn translate(event: Event, client: &AsyncClient) -> Option<LinkEvent> {
    match event {
        Event::Incoming(Incoming::ConnAck(ack)) => {
            let max_packet_bytes = ack.properties.and_then(|properties| properties.max_packet_size);
            let client = Client { client: client.clone(), max_packet_bytes };
            Some(LinkEvent::Connected(Box::new(client)))
        }
        Event::Incoming(Incoming::PubAck(ack)) => {
            Some(LinkEvent::Acknowledged { packet: ack.pkid, refused: refusal(ack.reason) })
        }
        Event::Incoming(Incoming::SubAck(ack)) => {
            Some(LinkEvent::Subscribed { refused: unsubscribed(&ack.return_codes) })
        }
        Event::Incoming(Incoming::Publish(message)) => Some(LinkEvent::Message {
            topic: String::from_utf8_lossy(&message.topic).into_owned(),
            payload: message.payload.to_vec(),
        }),
        Event::Outgoing(Outgoing::Publish(packet)) => Some(LinkEvent::Sent(packet)),
        _ => None,
    }
}

fn refusal(reason: PubAckReason) -> Option<Refusal> {
    let for_good = match reason {
        PubAckReason::Success | PubAckReason::NoMatchingSubscribers => return None,
        PubAckReason::TopicNameInvalid | PubAckReason::PayloadFormatInvalid => true,
        PubAckReason::UnspecifiedError
        | PubAckReason::ImplementationSpecificError
        | PubAckReason::NotAuthorized
        | PubAckReason::PacketIdentifierInUse
        | PubAckReason::QuotaExceeded => false,
    };
    Some(Refusal { reason: format!("{reason:?}"), for_good })
}

/// Why a subscription to one filter was refused.
fn unsubscribed(codes: &[SubscribeReasonCode]) -> Option<String> {
    let refused = codes.iter().find(|code| !matches!(code, SubscribeReasonCode::Success(_)))?;
    Some(format!("{refused:?}"))
}

fn ended(error: &ConnectionError, relay: Option<&Relay>) -> Ended {
    if let ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) = error
        && *reason_code == DisconnectReasonCode::SessionTakenOver
    {
        return Ended::TakenOver;
    }
    // What the client sees of a failure of TLS is a socket that closed.
    let reason = relay.and_then(Relay::reason);
    Ended::Failed(reason.unwrap_or_else(|| match error {
        ConnectionError::ConnectionRefused(code) => {
            format!("the broker refuses the connection: {code:?}")
        }
        other => other.to_string(),
    }))
}

/// The options of one connection, and its way over TLS where that is asked for.
fn dial(
    config: &MqttConfig,
    client_id: &str,
    will: &Will,
) -> Result<(MqttOptions, Option<Relay>), String> {
    let Some(settings) = &config.tls else {
        let mut to = MqttOptions::new(client_id, config.host.clone(), config.port);
        to.set_connection_timeout(CONNECT_S.0);
        return Ok((options(to, config, will)?, None));
    };
    let relay = Relay::open(Target {
        host: config.host.clone(),
        port: config.port,
        settings: settings.clone(),
        here: "this device",
        role: "the broker",
    })?;
    let mut to = MqttOptions::new(client_id, relay.address(), config.port);
    to.set_transport(Transport::Unix).set_connection_timeout(CONNECT_S.1);
    Ok((options(to, config, will)?, Some(relay)))
}

fn options(
    mut options: MqttOptions,
    config: &MqttConfig,
    will: &Will,
) -> Result<MqttOptions, String> {
    let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
    let packet = wire::MAX_PAYLOAD_BYTES + PACKET_OVERHEAD;
    let mut properties = ConnectProperties::new();
    properties.session_expiry_interval = Some(seconds(config.session_expiry));
    properties.max_packet_size = Some(u32::try_from(packet).unwrap_or(u32::MAX));
    properties.receive_maximum = Some(config.inflight);
    let delay = LastWillProperties {
        delay_interval: Some(seconds(config.will_delay)),
        payload_format_indicator: None,
        message_expiry_interval: None,
        content_type: None,
        response_topic: None,
        correlation_data: None,
        user_properties: Vec::new(),
    };
    let (topic, payload) = (will.topic.clone(), will.payload.clone());
    let will = LastWill::new(topic, payload, QoS::AtLeastOnce, true, Some(delay));
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options
        .set_keep_alive(config.keep_alive)
        .set_clean_start(false)
        .set_connect_properties(properties)
        .set_last_will(will)
        .set_outgoing_inflight_upper_limit(config.inflight)
        .set_network_options(network);
    if let Some(username) = &config.username {
        options.set_credentials(username, password(config)?);
    }
    Ok(options)
}

fn password(config: &MqttConfig) -> Result<String, String> {
    let Some(path) = &config.password_file else {
        return Ok(String::new());
    };
    let read = std::fs::read_to_string(path);
    let text = read.map_err(|e| format!("mqtt.password_file {}: {e}", path.display()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_wrong_in_itself_is_refused_for_good() {
        assert_eq!(refusal(PubAckReason::Success), None);
        assert_eq!(refusal(PubAckReason::NoMatchingSubscribers), None);
        for reason in [PubAckReason::TopicNameInvalid, PubAckReason::PayloadFormatInvalid] {
            assert!(refusal(reason).unwrap().for_good);
        }
        for reason in [
            PubAckReason::QuotaExceeded,
            PubAckReason::NotAuthorized,
            PubAckReason::UnspecifiedError,
        ] {
            assert!(!refusal(reason).unwrap().for_good);
        }
    }

    #[test]
    fn a_refused_subscription_is_seen() {
        assert_eq!(unsubscribed(&[SubscribeReasonCode::Success(QoS::AtLeastOnce)]), None);
        let refused = unsubscribed(&[SubscribeReasonCode::NotAuthorized]);
        assert_eq!(refused.as_deref(), Some("NotAuthorized"));
    }
}
