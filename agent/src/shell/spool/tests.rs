use std::fs;
use std::path::PathBuf;

use super::*;

mod crashes;
mod months;
mod properties;

const ROOM: u64 = 1 << 20;

/// A folder in memory, where there is such a thing: what is looked at is not the disk.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

fn config() -> SpoolConfig {
    SpoolConfig { max_bytes: ROOM, fsync: Fsync::Always, ..SpoolConfig::default() }
}

fn open(dir: &Path) -> Spool {
    Spool::open(dir, config()).unwrap()
}

fn at(unix_ms: u64) -> Moment {
    Moment { at: Instant::now(), unix_ms: Some(unix_ms) }
}

fn put(spool: &mut Spool, class: Class, topic: &str, payload: &[u8]) {
    spool.push(class, at(7), topic, payload).unwrap();
}

fn push(spool: &mut Spool, class: Class, n: u32) {
    put(spool, class, &format!("t/{n}"), n.to_string().as_bytes());
}

/// Takes everything that is unsent: no rate holds it up where each is taken a day after the one before.
fn drain(spool: &mut Spool, mut take: impl FnMut(&Message)) {
    let mut now = Instant::now();
    while let Some(message) = spool.take_unsent(now).unwrap() {
        take(&message);
        now += Duration::from_secs(86_400);
    }
}

fn unsent(spool: &mut Spool) -> Vec<String> {
    let mut topics = Vec::new();
    drain(spool, |message| topics.push(message.topic.clone()));
    topics
}

fn lost(spool: &mut Spool) -> Vec<Dropped> {
    std::iter::from_fn(|| spool.take_lost()).collect()
}

fn segments(dir: &Path, queue: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join(queue)).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn what_is_of_this_connection_goes_in_order_over_all_queues_and_before_the_backlog() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    push(&mut spool, Class::Telemetry, 0);
    push(&mut spool, Class::Event, 1);
    push(&mut spool, Class::Urgent, 2);
    spool.connected();
    for (n, class) in [(3, Class::Telemetry), (4, Class::Event), (5, Class::Telemetry)] {
        push(&mut spool, class, n);
    }
    let first = spool.take_unsent(Instant::now()).unwrap().unwrap();
    assert_eq!((first.unix_ms, first.payload.as_slice()), (7, b"3".as_slice()));
    assert_eq!(unsent(&mut spool), ["t/4", "t/5", "t/2", "t/1", "t/0"]);
}

#[test]
fn the_backlog_goes_no_faster_than_configured_and_holds_nothing_new_up() {
    let dir = tempfile::tempdir().unwrap();
    let limits = SpoolConfig { backlog_bytes_per_s: 10_000, ..config() };
    let mut spool = Spool::open(dir.path(), limits).unwrap();
    for n in 0..200 {
        put(&mut spool, Class::Telemetry, &format!("t/{n}"), &[b'x'; 1000]);
    }
    spool.connected();
    let start = Instant::now();
    let mut went = 0;
    let mut take = |spool: &mut Spool, seconds: u64| {
        let now = start + Duration::from_secs(seconds);
        while let Some(message) = spool.take_unsent(now).unwrap() {
            went += u64::from(!message.topic.starts_with("new"));
            spool.acknowledge(message.id).unwrap();
        }
        went
    };
    let first = take(&mut spool, 0);
    assert!((60..=70).contains(&first), "{first}: what was saved up");
    assert_eq!(take(&mut spool, 0), first, "and no more at once");
    put(&mut spool, Class::Telemetry, "new", b"now");
    let message = spool.take_unsent(start).unwrap().unwrap();
    assert_eq!(message.topic, "new");
    let later = take(&mut spool, 5);
    assert!((45..=55).contains(&(later - first)), "{}", later - first);
}

#[test]
fn what_was_not_acknowledged_is_there_after_a_restart_and_what_was_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    push(&mut spool, Class::Event, 1);
    drop(spool);
    let mut spool = open(dir.path());
    assert_eq!(unsent(&mut spool), ["t/1"], "sent is not acknowledged");
    spool.acknowledge(1).unwrap();
    assert!(segments(dir.path(), "events").is_empty());
    push(&mut spool, Class::Event, 2);
    drop(spool);
    assert_eq!(unsent(&mut open(dir.path())), ["t/2"]);
}

#[test]
fn a_file_is_used_again_and_not_made_anew_for_each_event() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    spool.connected();
    for n in 0..5 {
        push(&mut spool, Class::Event, n);
        let message = spool.take_unsent(Instant::now()).unwrap().unwrap();
        assert_eq!(message.topic, format!("t/{n}"));
        spool.acknowledge(message.id).unwrap();
        let files = segments(dir.path(), "events");
        assert_eq!(files.len(), 1);
        assert_eq!(files[0].metadata().unwrap().len(), 0);
    }
    drop(spool);
    let mut spool = open(dir.path());
    assert!(unsent(&mut spool).is_empty());
    assert!(segments(dir.path(), "events").is_empty());
}

#[test]
fn after_a_lost_connection_everything_unacknowledged_is_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    for fsync in [Fsync::Always, Fsync::Events] {
        let mut spool =
            Spool::open(&dir.path().join(format!("{fsync:?}")), SpoolConfig { fsync, ..config() })
                .unwrap();
        spool.connected();
        for n in 0..4 {
            push(&mut spool, Class::Telemetry, n);
        }
        let first = spool.take_unsent(Instant::now()).unwrap().unwrap();
        assert_eq!(unsent(&mut spool).len(), 3);
        spool.acknowledge(first.id).unwrap();
        spool.resend_all();
        assert_eq!(unsent(&mut spool), ["t/1", "t/2", "t/3"]);
    }
}

#[test]
fn telemetry_that_is_acknowledged_in_time_never_comes_to_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool =
        Spool::open(dir.path(), SpoolConfig { fsync: Fsync::Events, ..config() }).unwrap();
    let start = Instant::now();
    let tick = |spool: &mut Spool, seconds: u64| {
        spool.tick(Moment { at: start + Duration::from_secs(seconds), unix_ms: None }).unwrap();
        segments(dir.path(), "telemetry").len()
    };
    spool.connected();
    let windows = |spool: &mut Spool, n| {
        let moment = Moment { at: start, unix_ms: None };
        spool.push(Class::Telemetry, moment, &format!("t/{n}"), b"w").unwrap();
    };
    windows(&mut spool, 0);
    let sent = spool.take_unsent(start).unwrap().unwrap();
    assert_eq!(tick(&mut spool, 299), 0);
    spool.acknowledge(sent.id).unwrap();
    assert_eq!(tick(&mut spool, 301), 0, "acknowledged");
    windows(&mut spool, 1);
    windows(&mut spool, 2);
    let sent = spool.take_unsent(start).unwrap().unwrap();
    assert_eq!(tick(&mut spool, 302), 1, "after an interval without an answer it is written");
    assert_eq!(spool.fill().memory_bytes, 0);
    spool.acknowledge(sent.id).unwrap();
    drop(spool);
    let left = unsent(&mut open(dir.path()));
    assert_eq!(left, ["t/1", "t/2"], "a restart forgets acknowledgements, and loses nothing");
}

#[test]
fn what_is_in_memory_is_bounded_and_written_when_the_agent_ends() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool =
        Spool::open(dir.path(), SpoolConfig { fsync: Fsync::Events, ..config() }).unwrap();
    for n in 0..100 {
        put(&mut spool, Class::Telemetry, &format!("t/{n}"), &[b'x'; 1000]);
        assert!(spool.fill().memory_bytes <= ROOM / 16);
    }
    spool.flush(Instant::now()).unwrap();
    drop(spool);
    assert_eq!(unsent(&mut open(dir.path())).len(), 100);
}

#[test]
fn a_full_spool_gives_up_the_oldest_telemetry_and_no_event() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    push(&mut spool, Class::Event, 0);
    for n in 1..200 {
        put(&mut spool, Class::Telemetry, &format!("t/{n}"), &[b'x'; 10_000]);
    }
    let [dropped] = lost(&mut spool)[..] else { panic!() };
    assert!(dropped.records > 50 && dropped.bytes > 500_000, "{dropped:?}");
    assert_eq!((dropped.events, dropped.reason), (0, DropReason::Full));
    let fill = spool.fill();
    assert!(fill.bytes <= ROOM);
    assert_eq!(fill.records + dropped.records, 200);
    let left = unsent(&mut spool);
    assert_eq!(left[0], "t/0", "the event outlives older and newer telemetry");
    assert_eq!(left[1], format!("t/{}", dropped.records + 1));
    assert_eq!(left.last().unwrap(), "t/199");
}

#[test]
fn where_events_alone_are_too_many_the_oldest_go_and_urgent_ones_last() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    push(&mut spool, Class::Telemetry, 0);
    for n in 1..150 {
        put(&mut spool, Class::Event, &format!("e/{n}"), &[b'x'; 10_000]);
    }
    let [dropped] = lost(&mut spool)[..] else { panic!() };
    assert_eq!(dropped.events, dropped.records - 1, "the telemetry went first");
    for n in 0..50 {
        put(&mut spool, Class::Urgent, &format!("u/{n}"), &[b'x'; 10_000]);
    }
    let left = unsent(&mut spool);
    assert_eq!(left.iter().filter(|topic| topic.starts_with("u/")).count(), 50);
    assert!(left.iter().filter(|topic| topic.starts_with("e/")).count() > 30);
    assert!(left.contains(&"e/149".to_owned()), "the newest");
    assert!(spool.fill().bytes <= ROOM);
    // Nothing that is worth less takes the place of urgent events.
    spool.resend_all();
    for n in 50..200 {
        put(&mut spool, Class::Urgent, &format!("u/{n}"), &[b'x'; 10_000]);
    }
    lost(&mut spool);
    put(&mut spool, Class::Event, "e/150", &[b'x'; 30_000]);
    put(&mut spool, Class::Telemetry, "t/151", &[b'x'; 30_000]);
    assert_eq!(
        lost(&mut spool).iter().map(|l| (l.records, l.events)).collect::<Vec<_>>(),
        [(2, 1)]
    );
}

#[test]
fn telemetry_goes_when_it_is_too_old_and_events_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let day = 86_400_000;
    let limits = SpoolConfig { max_age: Duration::from_secs(86_400), ..config() };
    let mut spool = Spool::open(dir.path(), limits.clone()).unwrap();
    for n in 0..50 {
        spool.push(Class::Telemetry, at(100 * day), &format!("t/{n}"), &[0; 2000]).unwrap();
    }
    spool.push(Class::Event, at(100 * day), "e", b"e").unwrap();
    drop(spool);
    let mut spool = Spool::open(dir.path(), limits.clone()).unwrap();
    spool.tick(at(101 * day)).unwrap();
    assert_eq!(spool.fill().records, 51, "a day old");
    let mut spool = Spool::open(dir.path(), limits).unwrap();
    spool.tick(Moment { at: Instant::now(), unix_ms: None }).unwrap();
    assert_eq!(spool.fill().records, 51, "without a clock nothing is old");
    spool.tick(at(101 * day + 1)).unwrap();
    assert_eq!(unsent(&mut spool), ["e"]);
    let [dropped] = lost(&mut spool)[..] else { panic!() };
    assert_eq!((dropped.records, dropped.events, dropped.reason), (50, 0, DropReason::Age));
}

#[test]
fn every_torn_tail_costs_only_the_torn_record() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    for n in 0..3 {
        push(&mut spool, Class::Event, n);
    }
    drop(spool);
    let path = segments(dir.path(), "events").remove(0);
    let whole = fs::read(&path).unwrap();
    let record = whole.len() / 3;
    for length in 2 * record..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let mut spool = open(dir.path());
        assert_eq!(unsent(&mut spool), ["t/0", "t/1"], "cut at {length}");
        assert_eq!(spool.fill().damaged_bytes, (length - 2 * record) as u64);
        let told = lost(&mut spool);
        assert_eq!(told.len(), usize::from(length > 2 * record), "{told:?}");
        push(&mut spool, Class::Event, 9);
        assert_eq!(unsent(&mut spool), ["t/9"]);
        segments(dir.path(), "events")[1..].iter().for_each(|p| fs::remove_file(p).unwrap());
    }
}

#[test]
fn a_flipped_bit_anywhere_costs_only_its_own_record() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    for n in 0..3 {
        push(&mut spool, Class::Event, n);
    }
    drop(spool);
    let path = segments(dir.path(), "events").remove(0);
    let whole = fs::read(&path).unwrap();
    let record = whole.len() / 3;
    for at in record..2 * record {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        fs::write(&path, &flipped).unwrap();
        let mut spool = open(dir.path());
        assert_eq!(unsent(&mut spool), ["t/0", "t/2"], "flipped at {at}");
    }
}

#[test]
fn a_record_that_is_damaged_while_it_waits_is_counted_and_holds_nothing_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    for n in 0..3 {
        push(&mut spool, Class::Event, n);
    }
    let path = segments(dir.path(), "events").remove(0);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert_eq!(unsent(&mut spool), ["t/0", "t/2"]);
    let [dropped] = lost(&mut spool)[..] else { panic!() };
    assert_eq!((dropped.records, dropped.events, dropped.reason), (1, 1, DropReason::Damaged));
}

#[test]
fn a_record_over_the_limit_is_counted_as_dropped_and_harms_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    put(&mut spool, Class::Event, "t/0", &vec![0; MAX_RECORD_BYTES]);
    let [dropped] = lost(&mut spool)[..] else { panic!() };
    assert_eq!((dropped.records, dropped.reason), (1, DropReason::TooLarge));
    push(&mut spool, Class::Event, 1);
    assert_eq!(unsent(&mut spool), ["t/1"]);
}

#[test]
fn what_the_disk_does_not_give_back_is_counted_and_its_file_goes() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    for n in 0..3 {
        push(&mut spool, Class::Event, n);
    }
    drop(spool);
    let mut spool = open(dir.path());
    fs::write(segments(dir.path(), "events").remove(0), vec![0; 100]).unwrap();
    push(&mut spool, Class::Event, 3);
    assert_eq!(unsent(&mut spool), ["t/3"]);
    assert_eq!(
        lost(&mut spool).iter().map(|l| (l.records, l.events)).collect::<Vec<_>>(),
        [(3, 3)]
    );
    assert_eq!(segments(dir.path(), "events").len(), 1);
}

#[test]
fn a_number_that_leaves_none_for_what_comes_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    for (id, whole) in [(0, 0), (u64::MAX, 0), (u64::MAX - 1, 0), (u64::MAX / 4, 1)] {
        fs::create_dir_all(dir.path().join("events")).unwrap();
        let segment = dir.path().join("events/00000000000000000001.seg");
        fs::write(&segment, record::encode(id, 7, "t/0", b"x")).unwrap();
        let mut spool = open(dir.path());
        assert_eq!(unsent(&mut spool).len(), whole, "{id}");
        push(&mut spool, Class::Event, 1);
        push(&mut spool, Class::Event, 2);
        assert_eq!(unsent(&mut spool), ["t/1", "t/2"], "{id}");
        fs::remove_dir_all(dir.path().join("events")).unwrap();
    }
}
