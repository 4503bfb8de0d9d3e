//! Everything on its way to the broker: retained reports at once or not at all, everything else
//! through the spool, deleted only when the broker has acknowledged it.

use std::collections::{BTreeMap, HashMap, VecDeque};

use wire::{EventKind, Header, Payload, Stream, Topics};

use super::mqtt::Publisher;
use super::spool::{Class, Dropped, Fill, Spool};
use crate::core::Report;

/// Stamps headers: when, which in a row, of which run.
#[derive(Debug)]
pub struct Stamp {
    boot_id: String,
    seq: u64,
}

impl Stamp {
    /// For one run of the agent.
    #[must_use]
    pub fn new(boot_id: &str) -> Self {
        Self { boot_id: boot_id.to_owned(), seq: 0 }
    }

    fn write(&mut self, header: &mut Header, unix_ms: Option<u64>) {
        self.seq += 1;
        header.ts = unix_ms.unwrap_or(0);
        header.seq = self.seq;
        header.boot_id.clone_from(&self.boot_id);
    }
}

/// A message that was handed to the connection.
#[derive(Debug)]
enum Handed {
    Retained,
    Spooled(u64),
}

/// Everything on its way to the broker.
#[derive(Debug)]
pub struct Outbox {
    topics: Topics,
    stamp: Stamp,
    spool: Spool,
    limit: usize,
    link: Option<Box<dyn Publisher>>,
    subscribed: bool,
    retained: BTreeMap<String, Vec<u8>>,
    handed: VecDeque<Handed>,
    inflight: HashMap<u16, Handed>,
}

/// A report ready to be sent.
struct Letter {
    topic: String,
    payload: Vec<u8>,
    /// How it is kept until then; retained reports are not.
    class: Option<Class>,
}

impl Outbox {
    /// An outbox with at most `limit` messages under way.
    #[must_use]
    pub fn new(topics: Topics, stamp: Stamp, spool: Spool, limit: u16) -> Self {
        Self {
            topics,
            stamp,
            spool,
            limit: usize::from(limit),
            link: None,
            subscribed: false,
            retained: BTreeMap::new(),
            handed: VecDeque::new(),
            inflight: HashMap::new(),
        }
    }

    /// How full the spool is.
    #[must_use]
    pub fn fill(&self) -> Fill {
        self.spool.fill()
    }

    /// Whether there is a connection.
    #[must_use]
    pub fn is_linked(&self) -> bool {
        self.link.is_some()
    }

    /// Whether there is a connection and something is on its way over it.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        let waiting = self.spool.fill().records > 0 || !self.retained.is_empty();
        self.link.is_some() && (waiting || !self.handed.is_empty() || !self.inflight.is_empty())
    }

    /// The broker took the connection. The core's retained reports follow.
    pub fn connected(&mut self, link: Box<dyn Publisher>) {
        self.disconnected();
        self.link = Some(link);
    }

    /// The connection is gone, and with it the knowledge of what arrived.
    pub fn disconnected(&mut self) {
        self.link = None;
        self.subscribed = false;
        self.retained.clear();
        self.handed.clear();
        self.inflight.clear();
        self.spool.resend_all();
    }

    /// Asks for everything that the broker retains once more.
    pub fn subscribe_again(&mut self) {
        self.subscribed = false;
    }

    /// Says good-bye to the broker.
    pub fn close(&mut self) {
        if let Some(link) = self.link.take() {
            link.disconnect();
        }
    }

    /// Takes a report in, and says what the spool had to give up for it.
    ///
    /// # Errors
    /// The report could not be written, with the reason; it is lost.
    pub fn put(&mut self, report: Report, unix_ms: Option<u64>) -> Result<Dropped, String> {
        let letter = self.write(report, unix_ms)?;
        let Letter { topic, payload, class } = letter;
        let Some(class) = class else {
            if self.link.is_some() {
                self.retained.insert(topic, payload);
            }
            return Ok(Dropped::default());
        };
        let pushed = self.spool.push(class, unix_ms.unwrap_or(0), &topic, &payload);
        pushed.map_err(|e| e.to_string())
    }

    /// Hands over as much as may be under way. The subscription goes last on a new connection, so
    /// that the device's state stands before offers are answered.
    ///
    /// # Errors
    /// The spool's.
    pub fn pump(&mut self) -> Result<(), String> {
        let Some(link) = &self.link else {
            return Ok(());
        };
        while self.handed.len() + self.inflight.len() < self.limit {
            if let Some((topic, payload)) = self.retained.pop_first() {
                if link.publish(&topic, true, &payload).is_err() {
                    self.retained.insert(topic, payload);
                    break;
                }
                self.handed.push_back(Handed::Retained);
                continue;
            }
            if !self.subscribed {
                self.subscribed = link.subscribe(&self.topics.down_filter()).is_ok();
            }
            let Some(message) = self.spool.take_unsent().map_err(|e| e.to_string())? else {
                break;
            };
            if link.publish(&message.topic, false, &message.payload).is_err() {
                self.spool.resend(message.id);
                break;
            }
            self.handed.push_back(Handed::Spooled(message.id));
        }
        Ok(())
    }

    /// The oldest message handed over went out under this number.
    pub fn sent(&mut self, packet: u16) {
        if let Some(handed) = self.handed.pop_front() {
            self.inflight.insert(packet, handed);
        }
    }

    /// The broker has the message of this number, or refuses it for good: sending it again would
    /// not help, and would hold up what is behind it.
    ///
    /// # Errors
    /// The spool's.
    pub fn acknowledged(&mut self, packet: u16, refused: Option<&str>) -> Result<(), String> {
        if let Some(reason) = refused {
            tracing::warn!(reason, "the broker refused a message; it is given up");
        }
        match self.inflight.remove(&packet) {
            Some(Handed::Spooled(id)) => self.spool.acknowledge(id).map_err(|e| e.to_string()),
            Some(Handed::Retained) | None => Ok(()),
        }
    }

    fn write(&mut self, report: Report, unix_ms: Option<u64>) -> Result<Letter, String> {
        let t = &self.topics;
        let s = &mut self.stamp;
        let event = Some(Class::Event);
        let window = Some(Class::Telemetry);
        let topic = |topic: Result<String, wire::TopicError>| topic.map_err(|e| e.to_string());
        match report {
            Report::Birth(mut p) => letter(s, unix_ms, &mut p, |p| &mut p.header, t.birth(), None),
            Report::State(mut p) => letter(s, unix_ms, &mut p, |p| &mut p.header, t.state(), None),
            Report::Model(mut p) => {
                let topic = topic(t.model(&p.model))?;
                letter(s, unix_ms, &mut p, |p| &mut p.header, topic, None)
            }
            Report::Infer(mut p) => {
                let topic = topic(t.metrics(&Stream::Infer(p.model.clone())))?;
                letter(s, unix_ms, &mut p, |p| &mut p.header, topic, window)
            }
            Report::Resources(mut p) => {
                let topic = topic(t.metrics(&Stream::Res))?;
                letter(s, unix_ms, &mut p, |p| &mut p.header, topic, window)
            }
            Report::Power(mut p) => {
                let topic = topic(t.metrics(&Stream::Power))?;
                letter(s, unix_ms, &mut p, |p| &mut p.header, topic, window)
            }
            Report::Breach(mut p) => {
                let topic = t.event(EventKind::BudgetBreach);
                letter(s, unix_ms, &mut p, |p| &mut p.header, topic, event)
            }
            Report::Install(mut p) => {
                let topic = t.event(EventKind::Install);
                letter(s, unix_ms, &mut p, |p| &mut p.header, topic, event)
            }
            Report::SpoolDrop(mut p) => {
                let topic = t.event(EventKind::SpoolDrop);
                letter(s, unix_ms, &mut p, |p| &mut p.header, topic, event)
            }
            Report::Recompress(mut p) => {
                letter(s, unix_ms, &mut p, |p| &mut p.header, t.recompress(), event)
            }
            Report::Result(mut p) => {
                let topic = topic(t.result(&p.id))?;
                letter(s, unix_ms, &mut p, |p| &mut p.header, topic, event)
            }
        }
    }
}

fn letter<P: Payload>(
    stamp: &mut Stamp,
    unix_ms: Option<u64>,
    payload: &mut P,
    header: impl Fn(&mut P) -> &mut Header,
    topic: String,
    class: Option<Class>,
) -> Result<Letter, String> {
    stamp.write(header(payload), unix_ms);
    let payload = wire::try_encode(payload).map_err(|e| e.to_string())?;
    Ok(Letter { topic, payload, class })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::super::mqtt::Busy;
    use super::*;
    use wire::{SpoolDrop, StateReport};

    #[derive(Debug, Clone, Default)]
    struct Wire(Arc<Mutex<Vec<String>>>);

    impl Publisher for Wire {
        fn publish(&self, topic: &str, retain: bool, _: &[u8]) -> Result<(), Busy> {
            self.0.lock().unwrap().push(format!("{topic} {retain}"));
            Ok(())
        }

        fn subscribe(&self, filter: &str) -> Result<(), Busy> {
            self.0.lock().unwrap().push(format!("subscribe {filter}"));
            Ok(())
        }

        fn disconnect(&self) {}
    }

    fn outbox(dir: &std::path::Path, limit: u16) -> Outbox {
        let topics = Topics::new("r", "d").unwrap();
        let spool = Spool::open(dir, 1 << 20).unwrap();
        Outbox::new(topics, Stamp::new("b"), spool, limit)
    }

    fn event() -> Report {
        Report::SpoolDrop(SpoolDrop {
            header: Header::of::<SpoolDrop>(0, 0, ""),
            dropped_records: 1,
            dropped_bytes: 1,
        })
    }

    fn state() -> Report {
        Report::State(StateReport {
            header: Header::of::<StateReport>(0, 0, ""),
            state: wire::DeviceState::Online,
            reason: None,
        })
    }

    #[test]
    fn an_event_is_kept_until_its_acknowledgement_over_any_number_of_connections() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = outbox(dir.path(), 4);
        outbox.put(event(), None).unwrap();
        for _ in 0..2 {
            let wire = Wire::default();
            outbox.connected(Box::new(wire.clone()));
            outbox.pump().unwrap();
            outbox.sent(1);
            assert!(wire.0.lock().unwrap().contains(&"r/d/d/up/e/spool_drop false".to_owned()));
            outbox.disconnected();
            assert_eq!(outbox.fill().records, 1);
        }
        outbox.connected(Box::new(Wire::default()));
        outbox.pump().unwrap();
        outbox.sent(7);
        outbox.acknowledged(7, None).unwrap();
        assert_eq!(outbox.fill().records, 0);
        assert!(!outbox.is_busy());
    }

    #[test]
    fn retained_reports_go_first_then_the_subscription_then_the_spool() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = outbox(dir.path(), 4);
        outbox.put(event(), None).unwrap();
        outbox.put(state(), None).unwrap();
        let wire = Wire::default();
        outbox.connected(Box::new(wire.clone()));
        outbox.put(state(), None).unwrap();
        outbox.pump().unwrap();
        assert_eq!(
            *wire.0.lock().unwrap(),
            ["r/d/d/up/state true", "subscribe r/d/d/dn/#", "r/d/d/up/e/spool_drop false"],
            "a state from before the connection is not sent: the core tells it anew"
        );
    }

    #[test]
    fn no_more_messages_are_under_way_than_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = outbox(dir.path(), 2);
        for _ in 0..5 {
            outbox.put(event(), None).unwrap();
        }
        let wire = Wire::default();
        outbox.connected(Box::new(wire.clone()));
        outbox.pump().unwrap();
        assert_eq!(wire.0.lock().unwrap().len(), 3, "two messages and the subscription");
        outbox.sent(1);
        outbox.acknowledged(1, Some("QuotaExceeded")).unwrap();
        outbox.pump().unwrap();
        assert_eq!(wire.0.lock().unwrap().len(), 4);
        assert_eq!(outbox.fill().records, 4);
    }
}
