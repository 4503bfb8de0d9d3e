use super::*;

const ROOM: u64 = 1 << 20;

fn open(dir: &Path) -> Spool {
    Spool::open(dir, ROOM).unwrap()
}

fn push(spool: &mut Spool, class: Class, n: u32) -> Dropped {
    spool.push(class, 7, &format!("t/{n}"), n.to_string().as_bytes()).unwrap()
}

fn unsent(spool: &mut Spool) -> Vec<String> {
    let next = || spool.take_unsent().unwrap().map(|message| message.topic);
    std::iter::from_fn(next).collect()
}

fn segments(dir: &Path, queue: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join(queue)).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn messages_come_out_in_the_order_they_went_in_over_both_queues() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    for (n, class) in [Class::Telemetry, Class::Event, Class::Telemetry].iter().enumerate() {
        push(&mut spool, *class, n as u32);
    }
    let first = spool.take_unsent().unwrap().unwrap();
    assert_eq!((first.unix_ms, first.payload.as_slice()), (7, b"0".as_slice()));
    assert_eq!(unsent(&mut spool), ["t/1", "t/2"]);
}

#[test]
fn what_was_not_acknowledged_is_there_after_a_restart_and_what_was_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    push(&mut spool, Class::Event, 1);
    let sent = spool.take_unsent().unwrap().unwrap();
    drop(spool);
    let mut spool = open(dir.path());
    assert_eq!(unsent(&mut spool), ["t/1"], "sent is not acknowledged");
    spool.acknowledge(sent.id).unwrap();
    assert!(segments(dir.path(), "events").is_empty());
    push(&mut spool, Class::Event, 2);
    drop(spool);
    assert_eq!(unsent(&mut open(dir.path())), ["t/2"]);
}

#[test]
fn after_a_lost_connection_everything_unacknowledged_is_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    for n in 0..4 {
        push(&mut spool, Class::Telemetry, n);
    }
    let first = spool.take_unsent().unwrap().unwrap();
    assert_eq!(unsent(&mut spool).len(), 3);
    spool.acknowledge(first.id).unwrap();
    spool.resend_all();
    assert_eq!(unsent(&mut spool), ["t/1", "t/2", "t/3"]);
}

#[test]
fn a_full_spool_gives_up_the_oldest_telemetry_and_no_event() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    push(&mut spool, Class::Event, 0);
    let payload = vec![b'x'; 10_000];
    let mut dropped = Dropped::default();
    for n in 1..200 {
        let gone = spool.push(Class::Telemetry, 7, &format!("t/{n}"), &payload).unwrap();
        dropped.records += gone.records;
        dropped.bytes += gone.bytes;
    }
    assert!(dropped.records > 50 && dropped.bytes > 500_000, "{dropped:?}");
    let fill = spool.fill();
    assert!(fill.bytes <= ROOM);
    assert_eq!(fill.records + dropped.records, 200);
    let left = unsent(&mut spool);
    assert_eq!(left[0], "t/0", "the event outlives older and newer telemetry");
    assert_eq!(left[1], format!("t/{}", dropped.records + 1));
    assert_eq!(left.last().unwrap(), "t/199");
}

#[test]
fn events_go_only_when_there_is_no_telemetry_left() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    let payload = vec![b'x'; 10_000];
    push(&mut spool, Class::Telemetry, 0);
    for n in 1..150 {
        spool.push(Class::Event, 7, &format!("t/{n}"), &payload).unwrap();
    }
    let left = unsent(&mut spool);
    assert_ne!(left[0], "t/0");
    assert_eq!(left.last().unwrap(), "t/149");
    assert!(spool.fill().bytes <= ROOM);
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
fn a_record_over_the_limit_is_counted_as_dropped_and_harms_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path());
    let gone = spool.push(Class::Event, 7, "t/0", &vec![0; MAX_RECORD_BYTES]).unwrap();
    assert_eq!(gone.records, 1);
    push(&mut spool, Class::Event, 1);
    assert_eq!(unsent(&mut spool), ["t/1"]);
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
