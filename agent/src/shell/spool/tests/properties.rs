//! The spool against a model: whatever is put in, sent, acknowledged and cut off in whatever order, it gives back what it
//! owes and keeps its bound.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use wire::Window;

use super::months::infer;
use super::*;

#[derive(Clone, Debug)]
enum Op {
    Push(Class, u16),
    Window,
    Take,
    Acknowledge(Index),
    Resend(Index),
    Disconnect,
    Connect,
    Tick(u8),
    /// The agent ends and starts again.
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let class = select(vec![Class::Urgent, Class::Event, Class::Telemetry]);
    prop_oneof![
        4 => (class, 0u16..400).prop_map(|(class, bytes)| Op::Push(class, bytes)),
        8 => Just(Op::Window),
        6 => Just(Op::Take),
        5 => any::<Index>().prop_map(Op::Acknowledge),
        1 => any::<Index>().prop_map(Op::Resend),
        1 => Just(Op::Disconnect),
        1 => Just(Op::Connect),
        2 => any::<u8>().prop_map(Op::Tick),
        1 => Just(Op::Restart),
    ]
}

/// What a message is known by: windows by the buckets of their histograms, which are one for each window put in.
fn marks(message: &Message) -> Vec<u64> {
    match Window::read(&message.payload) {
        Some(Window::Infer(window)) => window.compute.buckets().map(|(low, _, _)| low).collect(),
        _ => vec![1_000_000_000 + message.topic[2..].parse::<u64>().unwrap()],
    }
}

/// A time with a bucket of its own for each number.
fn time(n: u64) -> u64 {
    if n < 64 { n } else { (32 + n % 32) << (n / 32 - 1) }
}

struct Model {
    spool: Spool,
    dir: tempfile::TempDir,
    config: SpoolConfig,
    now: Instant,
    unix_ms: u64,
    pushed: u64,
    windows: u64,
    /// What is owed, and whether it is an event.
    owed: BTreeMap<u64, bool>,
    /// What was acknowledged and may come again after a restart.
    done: BTreeMap<u64, bool>,
    under_way: Vec<Message>,
    acknowledged: u64,
    restarted: bool,
    dropped: u64,
}

impl Model {
    fn new(config: SpoolConfig) -> Self {
        let dir = scratch();
        Self {
            spool: Spool::open(dir.path(), config.clone()).unwrap(),
            dir,
            config,
            now: Instant::now(),
            unix_ms: 1_795_000_000_000,
            pushed: 0,
            windows: 0,
            owed: BTreeMap::new(),
            done: BTreeMap::new(),
            under_way: Vec::new(),
            acknowledged: 0,
            restarted: false,
            dropped: 0,
        }
    }

    fn moment(&self) -> Moment {
        Moment { at: self.now, unix_ms: Some(self.unix_ms) }
    }

    fn push(&mut self, class: Class, topic: &str, payload: &[u8], mark: u64) {
        self.spool.push(class, self.moment(), topic, payload).unwrap();
        self.pushed += 1;
        self.owed.insert(mark, class != Class::Telemetry);
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Push(class, bytes) => {
                let n = self.pushed;
                let payload = vec![b'x'; usize::from(*bytes)];
                self.push(*class, &format!("t/{n}"), &payload, 1_000_000_000 + n);
            }
            Op::Window => {
                let mark = time(self.windows);
                self.windows += 1;
                self.unix_ms += 10_000;
                self.now += Duration::from_secs(10);
                let window = infer(self.unix_ms, self.windows, 10_000, &[mark]);
                self.push(Class::Telemetry, "m/infer/m", &wire::encode(&window), mark);
            }
            Op::Take => {
                if let Some(message) = self.spool.take_unsent(self.now).unwrap() {
                    assert!(self.under_way.iter().all(|other| other.id != message.id));
                    for mark in marks(&message) {
                        let again = self.restarted && self.done.contains_key(&mark);
                        assert!(self.owed.contains_key(&mark) || again, "{mark} is not owed");
                    }
                    self.under_way.push(message);
                }
            }
            Op::Acknowledge(which) if !self.under_way.is_empty() => {
                let message = self.under_way.remove(which.index(self.under_way.len()));
                self.spool.acknowledge(message.id).unwrap();
                self.acknowledged += 1;
                for mark in marks(&message) {
                    let event = self.owed.remove(&mark).unwrap_or(false);
                    self.done.insert(mark, event);
                }
            }
            Op::Resend(which) if !self.under_way.is_empty() => {
                let message = self.under_way.remove(which.index(self.under_way.len()));
                let dropped = self.spool.fill().dropped_records > 0;
                assert!(self.spool.resend(message.id) || dropped);
            }
            Op::Acknowledge(_) | Op::Resend(_) => {}
            Op::Disconnect => {
                self.spool.resend_all();
                self.under_way.clear();
            }
            Op::Connect => {
                self.spool.resend_all();
                self.under_way.clear();
                self.spool.connected();
            }
            Op::Tick(seconds) => {
                self.now += Duration::from_secs((*seconds).into());
                self.spool.tick(self.moment()).unwrap();
            }
            Op::Restart => {
                self.spool.flush(self.now).unwrap();
                self.dropped += self.spool.fill().dropped_records;
                self.spool = Spool::open(self.dir.path(), self.config.clone()).unwrap();
                assert_eq!(self.spool.fill().damaged_bytes, 0);
                self.under_way.clear();
                self.restarted = true;
            }
        }
        self.check();
    }

    fn check(&self) {
        let fill = self.spool.fill();
        assert!(fill.bytes <= fill.max_bytes, "{fill:?}");
        if !self.restarted {
            let gone = self.acknowledged + fill.merged_records + fill.dropped_records;
            assert_eq!(fill.records + gone, self.pushed, "{fill:?}");
        }
    }

    /// Everything that is left, each once.
    fn left(&mut self) -> BTreeMap<u64, u64> {
        self.spool.resend_all();
        let mut left = BTreeMap::new();
        drain(&mut self.spool, |message| {
            marks(message).into_iter().for_each(|mark| *left.entry(mark).or_default() += 1);
        });
        self.dropped += self.spool.fill().dropped_records;
        left
    }
}

fn policy() -> impl Strategy<Value = Fsync> {
    select(vec![Fsync::Always, Fsync::Events, Fsync::Interval])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_or_told_twice_while_there_is_room(fsync in policy(), ops in vec(op(), 1..200)) {
        let mut model = Model::new(SpoolConfig { max_bytes: 4 << 20, fsync, ..SpoolConfig::default() });
        ops.iter().for_each(|op| model.apply(op));
        let left = model.left();
        prop_assert!(left.values().all(|times| *times == 1), "{left:?}");
        for mark in model.owed.keys() {
            prop_assert!(left.contains_key(mark), "{mark} is lost");
        }
        prop_assert_eq!(model.dropped, 0);
    }

    #[test]
    fn near_the_bound_windows_are_merged_and_no_event_goes_before_them(fsync in policy(), ops in vec(op(), 200..600)) {
        let max_bytes = 48 << 10;
        let mut model = Model::new(SpoolConfig { max_bytes, fsync, ..SpoolConfig::default() });
        ops.iter().for_each(|op| model.apply(op));
        let left = model.left();
        prop_assert!(left.values().all(|times| *times == 1), "{left:?}");
        let lost: Vec<bool> =
            model.owed.iter().filter(|(mark, _)| !left.contains_key(mark)).map(|(_, event)| *event).collect();
        prop_assert!(lost.is_empty() || model.dropped > 0);
        let events: u64 = model.owed.iter().filter(|(_, event)| **event).count() as u64;
        // So few events that they alone never exceed the bound.
        prop_assert!(events * 500 > max_bytes / 2 || lost.iter().all(|event| !event), "an event is lost");
    }
}
