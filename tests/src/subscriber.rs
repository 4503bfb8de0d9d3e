//! A subscriber that knows of Espalier what is published and nothing else: `asyncapi.json` and the schemas beside it.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use jsonschema::Validator;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Filter, Packet};
use rumqttc::v5::{Client, Event, MqttOptions, RecvTimeoutError};
use serde_json::Value;

use crate::until;

/// How long a receiving thread waits before it looks whether it is to end.
const SLICE: Duration = Duration::from_millis(100);
const PACKET_BYTES: u32 = 1 << 20;

/// A message as it came over the wire.
#[derive(Debug, Clone)]
pub struct Heard {
    /// Its whole topic.
    pub topic: String,
    /// Whether it was sent to be kept by the broker.
    pub retain: bool,
    /// What it carries.
    pub payload: Vec<u8>,
}

/// Hears everything below a topic root until it is dropped.
pub struct Subscriber {
    heard: Arc<Mutex<Vec<Heard>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Subscriber {
    /// Subscribes to everything below `root`.
    ///
    /// # Panics
    /// When the broker does not take it within `patience`.
    #[must_use]
    pub fn start((host, port): (&str, u16), root: &str, patience: Duration) -> Self {
        // Two of one name would kick each other out.
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("subscriber-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut options = MqttOptions::new(name, host, port);
        options.set_max_packet_size(Some(PACKET_BYTES));
        let (client, mut connection) = Client::new(options, 16);
        let mut filter = Filter::new(format!("{root}/#"), QoS::AtLeastOnce);
        // Else the broker clears the flag on what it passes on at once.
        filter.preserve_retain = true;
        client.try_subscribe_many([filter]).expect("room for one request");
        let (heard, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let subscribed = Arc::new(AtomicBool::new(false));
        let shared = (Arc::clone(&heard), stop.clone(), subscribed.clone());
        let thread = std::thread::spawn(move || {
            let (heard, stop, subscribed): (Arc<Mutex<Vec<Heard>>>, _, _) = shared;
            while !stop.load(Ordering::Relaxed) {
                match connection.recv_timeout(SLICE) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(Ok(Event::Incoming(Packet::SubAck(_)))) => {
                        subscribed.store(true, Ordering::Relaxed);
                    }
                    Ok(Ok(Event::Incoming(Packet::Publish(publish)))) => {
                        let topic = String::from_utf8_lossy(&publish.topic).into_owned();
                        let payload = publish.payload.to_vec();
                        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                        heard.push(Heard { topic, retain: publish.retain, payload });
                    }
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => panic!("the subscriber lost its broker: {error}"),
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        });
        until("the subscription", patience, || subscribed.load(Ordering::Relaxed).then_some(()));
        Self { heard, stop, thread: Some(thread) }
    }

    /// Everything heard so far.
    #[must_use]
    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // What it panicked with is on standard error already.
            let _ = thread.join();
        }
    }
}

/// The published interface.
pub struct Interface {
    channels: Vec<Channel>,
}

struct Channel {
    name: String,
    /// The parts of its address below the root; one in braces stands for anything.
    address: Vec<String>,
    /// Whether what is sent there is to be kept.
    retain: bool,
    messages: Vec<Validator>,
}

impl Interface {
    /// Reads `asyncapi.json` in `folder`, and every schema that it refers to.
    ///
    /// # Panics
    /// When it is not what AsyncAPI 3 says that it is.
    #[must_use]
    pub fn read(folder: &Path) -> Self {
        let document = json(&folder.join("asyncapi.json"));
        assert!(document["asyncapi"].as_str().is_some_and(|v| v.starts_with("3.")));
        let channels = document["channels"].as_object().expect("channels");
        let channels = channels.iter().map(|(name, channel)| {
            let address = channel["address"].as_str().expect("an address");
            let below = address.strip_prefix("{root}/").expect("below the root");
            let messages = channel["messages"].as_object().expect("messages");
            let messages = messages.values().map(|message| {
                let schema = followed(&document, message)["payload"]["schema"].clone();
                let file = schema["$ref"].as_str().expect("a schema in a file");
                let schema = json(&folder.join(file));
                jsonschema::validator_for(&schema).unwrap_or_else(|e| panic!("{file}: {e}"))
            });
            Channel {
                name: name.clone(),
                address: below.split('/').map(str::to_owned).collect(),
                retain: is_retained(&document, name),
                messages: messages.collect(),
            }
        });
        Self { channels: channels.collect() }
    }

    /// The names of all channels.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.channels.iter().map(|channel| channel.name.as_str())
    }

    /// The channel that a message came by.
    ///
    /// # Errors
    /// It came by none or by more than one, it is to be kept where it must not be or the other way round, or it is not
    /// what its schema says.
    pub fn channel_of(&self, root: &str, heard: &Heard) -> Result<&str, String> {
        let topic = &heard.topic;
        let below = topic.strip_prefix(root).and_then(|rest| rest.strip_prefix('/'));
        let parts: Vec<&str> = below.ok_or("not below the root")?.split('/').collect();
        let mut fitting = self.channels.iter().filter(|channel| channel.fits(&parts));
        let (Some(channel), None) = (fitting.next(), fitting.next()) else {
            return Err(format!("{topic} is not the address of one channel"));
        };
        if channel.retain != heard.retain {
            return Err(format!("{topic}: retain is {}, not as published", heard.retain));
        }
        let payload: Value = serde_json::from_slice(&heard.payload)
            .map_err(|e| format!("{topic}: {e}: {}", String::from_utf8_lossy(&heard.payload)))?;
        let wrong: Vec<String> = channel
            .messages
            .iter()
            .filter_map(|schema| schema.validate(&payload).err())
            .map(|error| format!("{error} at {}", error.instance_path()))
            .collect();
        if wrong.len() == channel.messages.len() {
            return Err(format!("{topic}: {wrong:?}: {payload}"));
        }
        Ok(&channel.name)
    }
}

impl Channel {
    fn fits(&self, parts: &[&str]) -> bool {
        let same = |(wanted, part): (&String, &&str)| wanted.starts_with('{') || wanted == part;
        self.address.len() == parts.len() && self.address.iter().zip(parts).all(same)
    }
}

/// Whether the operation on a channel says that its messages are kept.
fn is_retained(document: &Value, channel: &str) -> bool {
    let reference = format!("#/channels/{channel}");
    let operations = document["operations"].as_object().expect("operations");
    let own = operations.values().find(|operation| operation["channel"]["$ref"] == *reference);
    let own = own.unwrap_or_else(|| panic!("nobody uses the channel {channel}"));
    own["bindings"]["mqtt"]["retain"].as_bool().expect("whether it is retained")
}

/// What a reference within the document leads to; a value that is none is itself.
fn followed<'d>(document: &'d Value, value: &'d Value) -> &'d Value {
    match value["$ref"].as_str().and_then(|reference| reference.strip_prefix('#')) {
        Some(pointer) => document.pointer(pointer).expect("what a reference leads to"),
        None => value,
    }
}

fn json(path: &Path) -> Value {
    let text = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
