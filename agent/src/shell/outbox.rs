//! Everything on its way to the broker: retained reports at once or not at all, everything else
//! through the spool, deleted only when the broker has acknowledged it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use wire::{DropReason, EventKind, Header, Payload, Stream, Topics};

use super::homeassistant::HomeAssistant;
use super::mqtt::{Publisher, Refusal};
use super::spool::{Class, Fill, Moment, Spool};
use super::state_dir::PathError;
use crate::core::{Dropped, Report};

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

/// The wait after the broker first refused a message; it doubles with each refusal.
const REFUSED_FIRST: Duration = Duration::from_secs(1);
/// The longest such wait.
const REFUSED_MOST: Duration = Duration::from_secs(300);

/// Why a report is not on its way.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// It cannot be a message, now or later.
    #[error("{0}")]
    Unfit(String),
    /// The spool could not take it; it may later.
    #[error(transparent)]
    Disk(#[from] PathError),
}

/// A message that was handed to the connection.
#[derive(Debug)]
enum Handed {
    Retained { topic: String, payload: Vec<u8> },
    Spooled { id: u64, bytes: u64, is_loss: bool, is_event: bool },
}

/// Something that the broker refused and may take later.
#[derive(Debug, Default)]
struct Held {
    refusals: u32,
    /// When to try again; none while that is being done.
    due: Option<Instant>,
}

impl Held {
    fn refused(&mut self, now: Instant) {
        self.refusals = self.refusals.saturating_add(1);
        self.due = Some(now + patience(self.refusals));
    }
}

/// A retained report that the broker refused and may take later.
#[derive(Debug, Default)]
struct Aside {
    held: Held,
    payload: Vec<u8>,
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
    /// What became of refused subscriptions.
    subscription: Held,
    retained: BTreeMap<String, Vec<u8>>,
    handed: VecDeque<Handed>,
    inflight: HashMap<u16, Handed>,
    held: BTreeMap<u64, Held>,
    aside: BTreeMap<String, Aside>,
    /// What the broker refused for good.
    refused: Option<Dropped>,
    homeassistant: Option<HomeAssistant>,
}

/// A report ready to be sent.
struct Letter {
    topic: String,
    payload: Vec<u8>,
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
            subscription: Held::default(),
            retained: BTreeMap::new(),
            handed: VecDeque::new(),
            inflight: HashMap::new(),
            held: BTreeMap::new(),
            aside: BTreeMap::new(),
            refused: None,
            homeassistant: None,
        }
    }

    /// Tells Home Assistant of the device, or takes back what was told.
    #[must_use]
    pub fn telling(self, homeassistant: HomeAssistant) -> Self {
        Self { homeassistant: Some(homeassistant), ..self }
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
        self.spool.connected();
        self.link = Some(link);
    }

    /// The connection is gone, and with it the knowledge of what arrived.
    pub fn disconnected(&mut self) {
        self.link = None;
        self.subscribed = false;
        self.subscription = Held::default();
        self.retained.clear();
        self.handed.clear();
        self.inflight.clear();
        self.held.clear();
        self.aside.clear();
        self.spool.resend_all();
    }

    /// Asks for everything that the broker retains once more.
    pub fn subscribe_again(&mut self) {
        self.subscribed = false;
    }

    /// The broker answered the subscription. A refused one is tried again after a while.
    pub fn subscription_answered(&mut self, refused: Option<&str>, now: Instant) {
        match refused {
            None => self.subscription = Held::default(),
            Some(_) => self.subscription.refused(now),
        }
    }

    /// Says good-bye to the broker.
    pub fn close(&mut self) {
        if let Some(link) = self.link.take() {
            link.disconnect();
        }
    }

    /// What was given up since this was asked last, one reason at a time.
    pub fn take_lost(&mut self) -> Option<Dropped> {
        self.refused.take().or_else(|| self.spool.take_lost())
    }

    /// Writes what is due, and gives up what is too old.
    ///
    /// # Errors
    /// The spool's; it is tried again after a while.
    pub fn tick(&mut self, moment: Moment) -> Result<(), PathError> {
        self.spool.tick(moment)
    }

    /// Makes everything durable that waits.
    ///
    /// # Errors
    /// The spool's.
    pub fn flush(&mut self, now: Instant) -> Result<(), PathError> {
        self.spool.flush(now)
    }

    /// Takes a report in.
    ///
    /// # Errors
    /// The report could not be written, with the reason; it is not kept.
    pub fn put(&mut self, report: Report, moment: Moment) -> Result<(), PutError> {
        let class = class_of(&report);
        if let Some(homeassistant) = &mut self.homeassistant {
            let told = homeassistant.hear(&report);
            if self.link.is_some() {
                self.retained.extend(told);
            }
        }
        let letter = self.write(report, moment.unix_ms).map_err(PutError::Unfit)?;
        let Letter { topic, payload } = letter;
        let Some(class) = class else {
            if self.link.is_some() {
                self.retained.insert(topic, payload);
            }
            return Ok(());
        };
        Ok(self.spool.push(class, moment, &topic, &payload)?)
    }

    /// Hands over as much as may be under way. The subscription goes last on a new connection, so
    /// that the device's state stands before offers are answered.
    ///
    /// # Errors
    /// The spool's.
    pub fn pump(&mut self, now: Instant) -> Result<(), String> {
        self.retry_held(now);
        let Some(link) = &self.link else {
            return Ok(());
        };
        while self.handed.len() + self.inflight.len() < self.limit {
            if let Some((topic, payload)) = self.retained.pop_first() {
                if !link.takes(&topic, &payload) {
                    tracing::error!(
                        topic,
                        "a report is larger than any packet that the broker takes"
                    );
                    continue;
                }
                if link.publish(&topic, true, &payload).is_err() {
                    self.retained.insert(topic, payload);
                    break;
                }
                self.handed.push_back(Handed::Retained { topic, payload });
                continue;
            }
            if !self.subscribed {
                self.subscribed = link.subscribe(&self.topics.down_filter()).is_ok();
            }
            // Where the broker refuses everything, the next message would fare no better.
            let waiting = self.held.values().filter(|held| held.due.is_some()).count();
            if waiting >= self.limit {
                break;
            }
            let Some(message) = self.spool.take_unsent(now).map_err(|e| e.to_string())? else {
                break;
            };
            let (id, bytes) = (message.id, message.payload.len() as u64);
            let is_event = !message.topic.starts_with(&self.topics.metrics_prefix());
            if !link.takes(&message.topic, &message.payload) {
                let topic = &message.topic;
                tracing::warn!(
                    topic,
                    bytes,
                    "larger than any packet that the broker takes: given up"
                );
                self.spool.acknowledge(id).map_err(|e| e.to_string())?;
                note_refused(&mut self.refused, bytes, is_event);
                continue;
            }
            if link.publish(&message.topic, false, &message.payload).is_err() {
                self.spool.resend(id);
                break;
            }
            let is_loss = message.topic == self.topics.event(EventKind::SpoolDrop);
            self.handed.push_back(Handed::Spooled { id, bytes, is_loss, is_event });
        }
        Ok(())
    }

    fn retry_held(&mut self, now: Instant) {
        let is_due = |due: Option<Instant>| due.is_some_and(|due| now >= due);
        for (topic, aside) in &mut self.aside {
            if is_due(aside.held.due) {
                aside.held.due = None;
                let payload = std::mem::take(&mut aside.payload);
                // What was said there since is newer.
                self.retained.entry(topic.clone()).or_insert(payload);
            }
        }
        if is_due(self.subscription.due) {
            self.subscription.due = None;
            self.subscribed = false;
        }
        self.held.retain(|id, held| {
            if !is_due(held.due) {
                return true;
            }
            held.due = None;
            self.spool.resend(*id)
        });
    }

    /// The oldest message handed over went out under this number.
    pub fn sent(&mut self, packet: u16) {
        if let Some(handed) = self.handed.pop_front() {
            self.inflight.insert(packet, handed);
        }
    }

    /// The broker has the message of this number, or refuses it. Only a message that is wrong in itself is: sending it again would not help, and
    /// would hold up what is behind it. Any other is kept and tried again.
    ///
    /// # Errors
    /// The spool's.
    pub fn acknowledged(
        &mut self,
        packet: u16,
        refused: Option<&Refusal>,
        now: Instant,
    ) -> Result<(), String> {
        let Some(handed) = self.inflight.remove(&packet) else {
            return Ok(());
        };
        match (handed, refused) {
            (Handed::Spooled { id, .. }, Some(refusal)) if !refusal.for_good => {
                tracing::warn!(refusal.reason, "the broker refused a message; it is kept");
                self.held.entry(id).or_default().refused(now);
            }
            (Handed::Spooled { id, bytes, is_loss, is_event }, refused) => {
                self.held.remove(&id);
                self.spool.acknowledge(id).map_err(|e| e.to_string())?;
                let Some(Refusal { reason, .. }) = refused else {
                    return Ok(());
                };
                tracing::warn!(reason, "the broker refused a message for good; it is given up");
                // A loss that cannot be told is not told by another such message.
                if !is_loss {
                    note_refused(&mut self.refused, bytes, is_event);
                }
            }
            (Handed::Retained { topic, payload }, Some(refusal)) if !refusal.for_good => {
                let aside = self.aside.entry(topic).or_default();
                aside.payload = payload;
                tracing::warn!(refusal.reason, "the broker refused a report; it is kept");
                aside.held.refused(now);
            }
            (Handed::Retained { topic, .. }, _) => {
                self.aside.remove(&topic);
                if let (Some(homeassistant), None) = (&mut self.homeassistant, refused) {
                    let done = homeassistant.acknowledged(&topic);
                    done.and_then(|()| homeassistant.remember()).map_err(|e| e.to_string())?;
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, report: Report, unix_ms: Option<u64>) -> Result<Letter, String> {
        let t = &self.topics;
        let s = &mut self.stamp;
        let topic = |topic: Result<String, wire::TopicError>| topic.map_err(|e| e.to_string());
        match report {
            Report::Birth(mut p) => letter(s, unix_ms, &mut p, |p| &mut p.header, t.birth()),
            Report::State(mut p) => letter(s, unix_ms, &mut p, |p| &mut p.header, t.state()),
            Report::Model(mut p) => {
                let topic = topic(t.model(&p.model))?;
                letter(s, unix_ms, &mut p, |p| &mut p.header, topic)
            }
            Report::Infer(mut p) => {
                let topic = topic(t.metrics(&Stream::Infer(p.model.clone())))?;
                letter(s, unix_ms, &mut p, |p| &mut p.header, topic)
            }
            Report::Resources(mut p) => {
                let topic = topic(t.metrics(&Stream::Res))?;
                letter(s, unix_ms, &mut p, |p| &mut p.header, topic)
            }
            Report::Power(mut p) => {
                let topic = topic(t.metrics(&Stream::Power))?;
                letter(s, unix_ms, &mut p, |p| &mut p.header, topic)
            }
            Report::Breach(mut p) => {
                let topic = t.event(EventKind::BudgetBreach);
                letter(s, unix_ms, &mut p, |p| &mut p.header, topic)
            }
            Report::Install(mut p) => {
                let topic = t.event(EventKind::Install);
                letter(s, unix_ms, &mut p, |p| &mut p.header, topic)
            }
            Report::Rollback(mut p) => {
                let topic = t.event(EventKind::Rollback);
                letter(s, unix_ms, &mut p, |p| &mut p.header, topic)
            }
            Report::Throttle(mut p) => {
                let topic = t.event(EventKind::Throttle);
                letter(s, unix_ms, &mut p, |p| &mut p.header, topic)
            }
            Report::SpoolDrop(mut p) => {
                let topic = t.event(EventKind::SpoolDrop);
                letter(s, unix_ms, &mut p, |p| &mut p.header, topic)
            }
            Report::Command(mut p) => {
                let topic = t.event(EventKind::Command);
                letter(s, unix_ms, &mut p, |p| &mut p.header, topic)
            }
            Report::Recompress(mut p) => {
                letter(s, unix_ms, &mut p, |p| &mut p.header, t.recompress())
            }
            Report::Result(mut p) => {
                let topic = topic(t.result(&p.id))?;
                letter(s, unix_ms, &mut p, |p| &mut p.header, topic)
            }
        }
    }
}

/// How a report is kept until the broker has it; retained ones are not.
fn class_of(report: &Report) -> Option<Class> {
    match report {
        Report::Birth(_) | Report::State(_) | Report::Model(_) => None,
        Report::Infer(_) | Report::Resources(_) | Report::Power(_) => Some(Class::Telemetry),
        urgent if urgent.is_urgent() => Some(Class::Urgent),
        _ => Some(Class::Event),
    }
}

/// Counts a message that no broker, or not this one, will ever take.
fn note_refused(refused: &mut Option<Dropped>, bytes: u64, is_event: bool) {
    let reason = DropReason::Refused;
    let own = Dropped { records: 1, bytes, events: u64::from(is_event), reason };
    refused.get_or_insert(Dropped::none(reason)).add(own);
}

/// The wait after that many refusals.
fn patience(refusals: u32) -> Duration {
    let doubled = REFUSED_FIRST.saturating_mul(1 << refusals.saturating_sub(1).min(16));
    doubled.min(REFUSED_MOST)
}

fn letter<P: Payload>(
    stamp: &mut Stamp,
    unix_ms: Option<u64>,
    payload: &mut P,
    header: impl Fn(&mut P) -> &mut Header,
    topic: String,
) -> Result<Letter, String> {
    stamp.write(header(payload), unix_ms);
    let payload = wire::try_encode(payload).map_err(|e| e.to_string())?;
    Ok(Letter { topic, payload })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::super::mqtt::Busy;
    use super::*;
    use crate::config::SpoolConfig;
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
        let spool =
            Spool::open(dir, SpoolConfig { max_bytes: 1 << 20, ..SpoolConfig::default() }).unwrap();
        Outbox::new(topics, Stamp::new("b"), spool, limit)
    }

    fn at() -> Moment {
        Moment { at: Instant::now(), unix_ms: None }
    }

    fn event() -> Report {
        Report::SpoolDrop(SpoolDrop {
            header: Header::of::<SpoolDrop>(0, 0, ""),
            dropped_records: 1,
            dropped_bytes: 1,
            dropped_events: 0,
            reason: DropReason::Full,
        })
    }

    fn state() -> Report {
        Report::State(StateReport {
            header: Header::of::<StateReport>(0, 0, ""),
            state: wire::DeviceState::Online,
            reason: None,
            log_level: None,
        })
    }

    #[test]
    fn an_event_is_kept_until_its_acknowledgement_over_any_number_of_connections() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = outbox(dir.path(), 4);
        outbox.put(event(), at()).unwrap();
        for _ in 0..2 {
            let wire = Wire::default();
            outbox.connected(Box::new(wire.clone()));
            outbox.pump(Instant::now()).unwrap();
            outbox.sent(1);
            assert!(wire.0.lock().unwrap().contains(&"r/d/d/up/e/spool_drop false".to_owned()));
            outbox.disconnected();
            assert_eq!(outbox.fill().records, 1);
        }
        outbox.connected(Box::new(Wire::default()));
        outbox.pump(Instant::now()).unwrap();
        outbox.sent(7);
        outbox.acknowledged(7, None, Instant::now()).unwrap();
        assert_eq!(outbox.fill().records, 0);
        assert!(!outbox.is_busy());
    }

    /// A broker that takes no more than so many bytes.
    #[derive(Debug)]
    struct Narrow(Wire, usize);

    impl Publisher for Narrow {
        fn publish(&self, topic: &str, retain: bool, payload: &[u8]) -> Result<(), Busy> {
            self.0.publish(topic, retain, payload)
        }

        fn subscribe(&self, filter: &str) -> Result<(), Busy> {
            self.0.subscribe(filter)
        }

        fn takes(&self, _: &str, payload: &[u8]) -> bool {
            payload.len() <= self.1
        }

        fn disconnect(&self) {}
    }

    #[test]
    fn a_message_larger_than_the_broker_takes_is_counted_and_those_behind_it_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = outbox(dir.path(), 4);
        let answer = |id: &str, data: &str| {
            Report::Result(wire::CommandResult {
                header: Header::of::<wire::CommandResult>(0, 0, ""),
                id: id.into(),
                ok: true,
                error: None,
                data: data.into(),
            })
        };
        outbox.put(answer("large", &"x".repeat(4096)), at()).unwrap();
        outbox.put(answer("small", "x"), at()).unwrap();
        let wire = Wire::default();
        outbox.connected(Box::new(Narrow(wire.clone(), 1024)));
        outbox.pump(Instant::now()).unwrap();
        assert_eq!(*wire.0.lock().unwrap(), ["subscribe r/d/d/dn/#", "r/d/d/up/rs/small false"]);
        let lost = outbox.take_lost().unwrap();
        assert_eq!((lost.records, lost.events, lost.reason), (1, 1, DropReason::Refused));
        assert_eq!(outbox.fill().records, 1);
    }

    #[test]
    fn retained_reports_go_first_then_the_subscription_then_the_spool() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = outbox(dir.path(), 4);
        outbox.put(event(), at()).unwrap();
        outbox.put(state(), at()).unwrap();
        let wire = Wire::default();
        outbox.connected(Box::new(wire.clone()));
        outbox.put(state(), at()).unwrap();
        outbox.pump(Instant::now()).unwrap();
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
            outbox.put(event(), at()).unwrap();
        }
        let wire = Wire::default();
        outbox.connected(Box::new(wire.clone()));
        outbox.pump(Instant::now()).unwrap();
        assert_eq!(wire.0.lock().unwrap().len(), 3, "two messages and the subscription");
        outbox.sent(1);
        outbox.acknowledged(1, None, Instant::now()).unwrap();
        outbox.pump(Instant::now()).unwrap();
        assert_eq!(wire.0.lock().unwrap().len(), 4);
        assert_eq!(outbox.fill().records, 4);
    }

    fn refusal(reason: &str, for_good: bool) -> Refusal {
        Refusal { reason: reason.to_owned(), for_good }
    }

    #[test]
    fn a_message_refused_for_a_quota_is_kept_and_tried_again_with_growing_waits() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = outbox(dir.path(), 4);
        outbox.put(event(), at()).unwrap();
        let wire = Wire::default();
        outbox.connected(Box::new(wire.clone()));
        let mut now = Instant::now();
        for wait in [1, 2, 4] {
            outbox.pump(now).unwrap();
            let before = wire.0.lock().unwrap().len();
            outbox.sent(1);
            let refused = refusal("QuotaExceeded", false);
            outbox.acknowledged(1, Some(&refused), now).unwrap();
            assert_eq!((outbox.take_lost(), outbox.fill().records), (None, 1));
            now += Duration::from_secs(wait) - Duration::from_millis(1);
            outbox.pump(now).unwrap();
            assert_eq!(wire.0.lock().unwrap().len(), before, "tried again too soon");
            now += Duration::from_millis(1);
        }
        outbox.pump(now).unwrap();
        outbox.sent(2);
        outbox.acknowledged(2, None, now).unwrap();
        assert_eq!(outbox.fill().records, 0);
    }

    #[test]
    fn a_refused_subscription_is_made_again_after_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = outbox(dir.path(), 4);
        let wire = Wire::default();
        outbox.connected(Box::new(wire.clone()));
        let now = Instant::now();
        outbox.pump(now).unwrap();
        outbox.subscription_answered(Some("NotAuthorized"), now);
        outbox.pump(now + REFUSED_FIRST / 2).unwrap();
        assert_eq!(wire.0.lock().unwrap().len(), 1, "too soon");
        outbox.pump(now + REFUSED_FIRST).unwrap();
        assert_eq!(wire.0.lock().unwrap().len(), 2);
        outbox.subscription_answered(None, now);
        outbox.pump(now + REFUSED_MOST).unwrap();
        assert_eq!(wire.0.lock().unwrap().len(), 2, "taken");
    }

    #[test]
    fn a_refused_message_does_not_hold_up_the_others_until_all_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = outbox(dir.path(), 2);
        for _ in 0..5 {
            outbox.put(event(), at()).unwrap();
        }
        let wire = Wire::default();
        outbox.connected(Box::new(wire.clone()));
        let now = Instant::now();
        for packet in 1..=5 {
            outbox.pump(now).unwrap();
            outbox.sent(packet);
            let refused = (packet > 1).then(|| refusal("NotAuthorized", false));
            outbox.acknowledged(packet, refused.as_ref(), now).unwrap();
        }
        // The subscription, the one that was taken, and as many refused ones as may be under way,
        // with the one that was under way by then.
        assert_eq!(wire.0.lock().unwrap().len(), 5);
        assert_eq!(outbox.fill().records, 4);
    }

    #[test]
    fn a_retained_report_that_is_refused_is_told_again_unless_there_is_a_newer_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = outbox(dir.path(), 4);
        let wire = Wire::default();
        outbox.connected(Box::new(wire.clone()));
        outbox.put(state(), at()).unwrap();
        let now = Instant::now();
        outbox.pump(now).unwrap();
        outbox.sent(1);
        let refused = refusal("NotAuthorized", false);
        outbox.acknowledged(1, Some(&refused), now).unwrap();
        outbox.pump(now + REFUSED_FIRST).unwrap();
        let states = || wire.0.lock().unwrap().iter().filter(|m| m.contains("up/state")).count();
        assert_eq!(states(), 2);
    }

    #[test]
    fn a_message_that_no_broker_takes_is_given_up_and_counted_but_for_the_count_itself() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = outbox(dir.path(), 4);
        let answer = Report::Result(wire::CommandResult {
            header: Header::of::<wire::CommandResult>(0, 0, ""),
            id: "1".into(),
            ok: true,
            error: None,
            data: serde_json::Value::Null,
        });
        outbox.put(answer, at()).unwrap();
        outbox.put(event(), at()).unwrap();
        outbox.connected(Box::new(Wire::default()));
        let now = Instant::now();
        outbox.pump(now).unwrap();
        let refused = refusal("PayloadFormatInvalid", true);
        for (packet, lost) in [(1, 1), (2, 0)] {
            outbox.sent(packet);
            outbox.acknowledged(packet, Some(&refused), now).unwrap();
            let told = outbox.take_lost().map_or((0, 0, 0), |l| (l.records, l.events, l.bytes));
            assert_eq!((told.0, told.1, told.2 > 0), (lost, lost, lost > 0));
        }
        assert_eq!(outbox.fill().records, 0);
    }
}
