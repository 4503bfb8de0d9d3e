//! The store alone, with bundles that are folders with a manifest.
#![allow(clippy::unwrap_used)]

use tempfile::TempDir;
use wire::{
    BudgetKind, Budgets, Cause, Comparison, Header, InstallEvent, InstallOutcome, ModelPhase,
    RecompressRequest, Runtime,
};

use super::*;
use crate::pipeline::{DeviceBaseline, Goal};
use crate::serve::plan::JobSpec;

struct Fixture {
    dir: TempDir,
    store: Store,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Self::open(&dir);
        Self { dir, store }
    }

    fn open(dir: &TempDir) -> Store {
        let offers = Offers::new("espalier/v1", "http://host");
        Store::open(&dir.path().join("jobs.sqlite"), &dir.path().join("bundles"), offers).unwrap()
    }

    /// As after a crash: what was running is not told.
    fn crash(self) -> Self {
        let Self { dir, store } = self;
        drop(store);
        let store = Self::open(&dir);
        Self { dir, store }
    }

    fn ask(&self, device: &str, id: &str) -> Accepted {
        self.store.accept(&request(device, id, 1), Ok(spec("current"))).unwrap()
    }

    /// A bundle that is in the store as far as the store looks.
    fn facts(&self, sequence: u64) -> OfferFacts {
        let digest = bundle::Digest::of(&sequence.to_le_bytes());
        let dir = self.dir.path().join("bundles").join(digest.hex());
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(bundle::MANIFEST_FILE), b"{}").unwrap();
        OfferFacts {
            model: "m".into(),
            version: "v".into(),
            sequence,
            content: digest.to_string(),
            digest: digest.to_string(),
            size_bytes: 1,
            runtime: Runtime::Tract,
            device_class: "any".into(),
        }
    }

    fn sent(&self) -> Vec<wire::Offer> {
        let mut offers = Vec::new();
        while let Waiting::Offer(unsent) = self.store.unsent().unwrap() {
            offers.push(wire::decode(&unsent.payload).unwrap());
            self.store.sent(unsent.id).unwrap();
        }
        offers
    }
}

fn spec(current: &str) -> JobSpec {
    JobSpec {
        model: "m".into(),
        source: "s".into(),
        data: "d".into(),
        tool: "t".into(),
        runtime: Runtime::Tract,
        device_class: "any".into(),
        threads: 1,
        current: current.into(),
        budget: BudgetKind::LatencyP95,
        goal: Goal {
            latency_p95_us: Some(1),
            memory_bytes: None,
            size_bytes: None,
            agreement_min: 0.9,
        },
        baseline: DeviceBaseline::latency(1, 2),
    }
}

fn request(device: &str, id: &str, sequence: u64) -> RecompressRequest {
    RecompressRequest {
        header: Header::of::<RecompressRequest>(0, 0, "b"),
        request_id: id.into(),
        device: device.into(),
        model: "m".into(),
        digest: bundle::Digest::of(b"current").to_string(),
        sequence,
        device_class: "any".into(),
        runtime: Runtime::Tract,
        arch: "x".into(),
        threads: 1,
        budgets: Budgets::default(),
        budget: BudgetKind::LatencyP95,
        cause: Cause::Model,
        p50_us: 1,
        p95_us: 2,
        windows_over: 1,
        windows_seen: 1,
        workers_pss_bytes: None,
        emulated: false,
        drift: None,
    }
}

#[test]
fn one_job_serves_every_request_for_the_same_thing() {
    let f = Fixture::new();
    assert_eq!(f.ask("a", "1"), Accepted::Queued);
    assert_eq!(f.ask("b", "1"), Accepted::Joined);
    assert_eq!(f.ask("a", "1"), Accepted::Duplicate);
    let job = f.store.next().unwrap().unwrap();
    assert_eq!(f.ask("c", "1"), Accepted::Joined);
    assert_eq!((job.spec, job.sequence), (spec("current"), 2));
    assert_eq!(f.store.next().unwrap(), None);
    f.store.finish(job.id, &Ok(f.facts(2))).unwrap();
    assert_eq!(f.ask("d", "1"), Accepted::Offered);
    let offers = f.sent();
    assert_eq!(offers.len(), 4);
    assert!(
        offers.iter().all(|offer| offer.sequence == 2 && offer.request_id.as_deref() == Some("1"))
    );
    assert_eq!(f.store.next().unwrap(), None);
}

#[test]
fn a_job_that_ran_when_the_service_died_runs_again_but_not_for_ever() {
    let mut f = Fixture::new();
    f.ask("a", "1");
    for _ in 0..MAX_ATTEMPTS {
        assert!(f.store.next().unwrap().is_some());
        f = f.crash();
    }
    assert_eq!(f.store.next().unwrap(), None);
    let Listing { jobs, requests, .. } = f.store.list(10).unwrap();
    assert_eq!((jobs[0].state.as_str(), requests[0].state.as_str()), ("failed", "failed"));
    assert!(requests[0].reason.as_deref().unwrap().contains("MAX_ATTEMPTS"));
    assert!(
        matches!(f.ask("a", "2"), Accepted::Refused(reason) if reason.contains("MAX_ATTEMPTS"))
    );
}

#[test]
fn a_job_that_was_asked_to_stop_has_not_failed() {
    let f = Fixture::new();
    f.ask("a", "1");
    for _ in 0..2 * MAX_ATTEMPTS {
        let job = f.store.next().unwrap().unwrap();
        f.store.release(job.id).unwrap();
    }
    assert!(f.store.next().unwrap().is_some());
}

#[test]
fn sequence_numbers_rise_over_jobs_originals_devices_and_restarts() {
    let f = Fixture::new();
    f.store.accept(&request("a", "1", 40), Ok(spec("x"))).unwrap();
    f.store.accept(&request("b", "1", 7), Ok(spec("y"))).unwrap();
    assert_eq!(f.store.next().unwrap().unwrap().sequence, 41);
    assert_eq!(f.store.next().unwrap().unwrap().sequence, 42);
    assert_eq!(f.store.original("k", "m", "c").unwrap(), Err(43));
    let f = f.crash();
    assert_eq!(f.store.next().unwrap().unwrap().sequence, 44);
    assert_eq!(f.store.original("k", "another model", "c").unwrap(), Err(1));
}

#[test]
fn jobs_run_in_the_order_they_were_queued() {
    let f = Fixture::new();
    for (device, current) in [("a", "x"), ("b", "y"), ("c", "z")] {
        f.store.accept(&request(device, "1", 1), Ok(spec(current))).unwrap();
    }
    let first = f.store.next().unwrap().unwrap();
    assert_eq!(first.spec.current, "x");
    f.store.finish(first.id, &Err("why".into())).unwrap();
    f.store.accept(&request("a", "2", 1), Ok(spec("x"))).unwrap();
    let order: Vec<String> =
        std::iter::from_fn(|| f.store.next().unwrap()).map(|job| job.spec.current).collect();
    assert_eq!(order, ["y", "z", "x"]);
}

#[test]
fn a_bundle_that_is_gone_or_older_than_the_devices_is_made_again() {
    let f = Fixture::new();
    f.ask("a", "1");
    let job = f.store.next().unwrap().unwrap();
    let facts = f.facts(job.sequence);
    f.store.finish(job.id, &Ok(facts.clone())).unwrap();
    let newer = f.store.accept(&request("b", "1", 9), Ok(spec("current"))).unwrap();
    assert_eq!(newer, Accepted::Queued);
    let job = f.store.next().unwrap().unwrap();
    assert!(job.sequence > 9);
    let facts = f.facts(job.sequence);
    f.store.finish(job.id, &Ok(facts.clone())).unwrap();
    std::fs::remove_dir_all(f.dir.path().join("bundles").join(facts.hex())).unwrap();
    assert_eq!(f.ask("c", "1"), Accepted::Queued);
}

#[test]
fn an_original_is_made_once_per_key_and_again_for_a_device_that_is_ahead() {
    let f = Fixture::new();
    let sequence = f.store.original("k", "m", "a").unwrap().unwrap_err();
    let facts = f.facts(sequence);
    f.store.keep_original("k", &facts).unwrap();
    f.store.offer("a", &facts).unwrap();
    assert_eq!(f.store.original("k", "m", "a").unwrap(), Ok(facts.clone()));
    assert_eq!(f.store.original("k", "m", "b").unwrap(), Ok(facts));
    f.store.accept(&request("b", "1", 5), Ok(spec("x"))).unwrap();
    assert_eq!(f.store.original("k", "m", "b").unwrap(), Err(6));
}

#[test]
fn a_newer_offer_takes_the_place_of_an_unsent_one() {
    let f = Fixture::new();
    f.store.offer("a", &f.facts(1)).unwrap();
    f.store.offer("b", &f.facts(1)).unwrap();
    f.store.offer("a", &f.facts(2)).unwrap();
    let f = f.crash();
    let sequences: Vec<u64> = f.sent().iter().map(|offer| offer.sequence).collect();
    assert_eq!(sequences, [1, 2]);
}

#[test]
fn a_full_queue_refuses_with_the_limits_name() {
    let f = Fixture::new();
    f.store
        .lock()
        .execute_batch(&format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {MAX_QUEUED_JOBS})
             INSERT INTO jobs(key, spec, state, device_sequence, place, queued_ms)
             SELECT 'k' || i, '{{}}', 'queued', 0, i, 0 FROM n"
        ))
        .unwrap();
    assert!(
        matches!(f.ask("a", "1"), Accepted::Refused(reason) if reason.contains("MAX_QUEUED_JOBS"))
    );
}

#[test]
fn answered_requests_are_forgotten_beyond_the_limit() {
    let f = Fixture::new();
    f.store
        .lock()
        .execute_batch(&format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i <= {MAX_REQUESTS})
             INSERT INTO requests(device, request_id, model, state, received_ms)
             SELECT 'd' || i, 'r', 'm', CASE i WHEN 1 THEN 'waiting' ELSE 'failed' END, 0 FROM n"
        ))
        .unwrap();
    f.ask("a", "1");
    let count: u32 =
        f.store.lock().query_row("SELECT count(*) FROM requests", [], |row| row.get(0)).unwrap();
    assert_eq!(count, MAX_REQUESTS + 1, "the newest and the one that waits");
}

#[test]
fn a_store_of_another_version_and_a_file_that_is_no_store_are_refused() {
    let f = Fixture::new();
    f.store.lock().pragma_update(None, "user_version", 99).unwrap();
    let Fixture { dir, store } = f;
    drop(store);
    let path = dir.path().join("jobs.sqlite");
    let open = || Store::open(&path, dir.path(), Offers::new("r", "http://h")).err().unwrap();
    assert!(matches!(open(), StoreError::Version { got: 99, .. }));
    for name in ["jobs.sqlite-wal", "jobs.sqlite-shm"] {
        let _ = std::fs::remove_file(dir.path().join(name));
    }
    std::fs::write(&path, vec![b'x'; 8192]).unwrap();
    assert!(matches!(open(), StoreError::Sql(_)));
}

#[test]
fn what_was_remembered_stays() {
    let f = Fixture::new();
    assert_eq!(f.store.remember("client_id", "first").unwrap(), "first");
    let f = f.crash();
    assert_eq!(f.store.remember("client_id", "second").unwrap(), "first");
}

/// What a device says that was offered this bundle.
fn event(facts: &OfferFacts, outcome: InstallOutcome) -> InstallEvent {
    InstallEvent {
        header: Header::of::<InstallEvent>(0, 0, "b"),
        model: "m".into(),
        digest: facts.digest.clone(),
        phase: ModelPhase::Rejected,
        outcome,
        reason: Some("it is slow here".into()),
        from_digest: None,
        elapsed_ms: 1,
        comparison: None,
        blocked: outcome == InstallOutcome::Rejected,
        trial: None,
    }
}

impl Fixture {
    /// Runs the next job, whose bundle this is.
    fn made(&self) -> OfferFacts {
        let job = self.store.next().unwrap().unwrap();
        let facts = self.facts(job.sequence);
        self.store.finish(job.id, &Ok(facts.clone())).unwrap();
        facts
    }

    fn hear(&self, device: &str, event: &InstallEvent) -> Heard {
        self.store.heard(device, event).unwrap()
    }

    fn sql(&self, sql: &str) {
        self.store.lock().execute_batch(sql).unwrap();
    }

    fn number(&self, sql: &str) -> i64 {
        self.store.lock().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    fn refused(&self, device: &str, id: &str, why: &str) {
        let accepted = self.ask(device, id);
        assert!(
            matches!(&accepted, Accepted::Refused(reason) if reason.contains(why)),
            "{accepted:?}"
        );
    }
}

#[test]
fn a_bundle_that_a_device_took_back_is_made_anew_a_bounded_number_of_times() {
    let f = Fixture::new();
    for round in 0..MAX_TAKEN_BACK {
        assert_eq!(f.ask("a", &round.to_string()), Accepted::Queued);
        let job = f.store.next().unwrap().unwrap();
        assert_eq!(job.lessons.len(), round);
        let facts = f.facts(job.sequence);
        f.store.finish(job.id, &Ok(facts.clone())).unwrap();
        let mut back = event(&facts, InstallOutcome::RolledBack);
        back.comparison = Some(Comparison {
            shadow_requests: 9,
            agreement: 0.5,
            before_p95_us: None,
            after_p95_us: None,
        });
        assert_eq!(f.hear("a", &back), Heard::TakenBack);
        assert_eq!(f.hear("a", &back), Heard::Noted, "twice is as good as once");
    }
    let lessons = f.store.list(1).unwrap().jobs[0].taken_back().clone();
    assert_eq!((&lessons[0]["device"], &lessons[0]["agreement"]), (&"a".into(), &0.5.into()));
    f.refused("b", "late", "MAX_TAKEN_BACK");
    assert_eq!(f.store.retry(1).unwrap(), Ok(()));
    assert!(f.store.next().unwrap().unwrap().lessons.is_empty());
    assert_eq!(f.number("SELECT count(*) FROM requests WHERE state = 'waiting'"), 1);
}

/// A probation that measured twice the latency that was predicted.
fn trial() -> wire::Trial {
    let latency = wire::TrialMetric {
        metric: wire::Metric::LatencyP95,
        predicted: Some(10_000.0),
        measured: Some(20_000.0),
        before: None,
        prediction_error: Some(1.0),
        reference: Some(wire::Reference::Previous),
        limit: Some(12_500.0),
        allowed: Some(0.05),
        observations: 30.0,
        over: 30.0,
        e_value: 1e6,
        e_needed: 1200.0,
    };
    wire::Trial { false_rollback_rate: 0.01, windows: 3, requests: 60, metrics: vec![latency] }
}

#[test]
fn what_a_probation_measured_stays_with_the_job_and_teaches_the_next_round() {
    let f = Fixture::new();
    f.ask("a", "1");
    let facts = f.made();
    let mut committed = event(&facts, InstallOutcome::Committed);
    committed.trial = Some(trial());
    assert_eq!(f.hear("a", &committed), Heard::Noted);
    let results = f.store.list(1).unwrap().jobs[0].results().to_vec();
    assert_eq!(results.len(), 1);
    assert_eq!((&results[0]["device"], &results[0]["outcome"]), (&"a".into(), &"committed".into()));
    assert_eq!(results[0]["trial"]["metrics"][0]["prediction_error"], 1.0);
    let mut back = event(&facts, InstallOutcome::RolledBack);
    back.trial = Some(trial());
    assert_eq!(f.hear("a", &back), Heard::TakenBack);
    assert_eq!(
        f.store.list(1).unwrap().jobs[0].results().len(),
        1,
        "one for each device and bundle"
    );
    assert_eq!(f.ask("a", "2"), Accepted::Queued);
    let job = f.store.next().unwrap().unwrap();
    assert_eq!((job.lessons[0].latency_error, job.lessons[0].memory_error), (Some(1.0), None));
}

#[test]
fn a_store_from_before_results_were_kept_is_read() {
    let f = Fixture::new();
    f.sql("DROP TABLE results");
    let f = f.crash();
    assert_eq!(f.number("SELECT count(*) FROM results"), 0);
}

#[test]
fn only_the_device_that_was_offered_a_bundle_speaks_for_it_and_only_when_it_is_final() {
    let f = Fixture::new();
    f.ask("a", "1");
    let facts = f.made();
    let back = event(&facts, InstallOutcome::Rejected);
    assert_eq!(f.hear("somebody else", &back), Heard::Nothing);
    assert_eq!(f.hear("a", &event(&facts, InstallOutcome::Progress)), Heard::Nothing);
    // A download that failed, or an offer that another has overtaken, says nothing about the bundle.
    let passing = InstallEvent { blocked: false, ..back.clone() };
    assert_eq!(f.hear("a", &passing), Heard::Noted);
    assert_eq!(f.ask("a", "2"), Accepted::Offered);
    assert_eq!(f.hear("a", &back), Heard::TakenBack);
    assert_eq!(f.ask("a", "3"), Accepted::Queued);
}

#[test]
fn an_original_that_was_taken_back_is_bundled_anew_when_the_operator_asks_again() {
    let f = Fixture::new();
    let facts = f.facts(f.store.original("k", "m", "a").unwrap().unwrap_err());
    f.store.keep_original("k", &facts).unwrap();
    f.store.offer("a", &facts).unwrap();
    assert_eq!(f.hear("a", &event(&facts, InstallOutcome::Rejected)), Heard::TakenBack);
    assert_eq!(f.store.original("k", "m", "a").unwrap(), Err(2));
}

#[test]
fn failures_expire_and_can_be_retried_at_once() {
    let f = Fixture::new();
    for round in 0..MAX_ATTEMPTS {
        assert_eq!(f.ask("a", &round.to_string()), Accepted::Queued);
        let job = f.store.next().unwrap().unwrap();
        f.store.finish(job.id, &Err("no luck".into())).unwrap();
    }
    f.refused("a", "now", "FAILURE_KEPT");
    f.sql(&format!("UPDATE jobs SET finished_ms = finished_ms - {}", millis(FAILURE_KEPT)));
    assert_eq!(f.ask("a", "a day later"), Accepted::Queued);
    let job = f.store.next().unwrap().unwrap();
    f.store.finish(job.id, &Err("no luck".into())).unwrap();
    assert_eq!(f.store.retry(job.id).unwrap(), Ok(()));
    assert!(f.store.retry(job.id).unwrap().unwrap_err().contains("queued"));
    assert!(f.store.retry(99).unwrap().unwrap_err().contains("no job 99"));
    let facts = f.made();
    let offer = f.sent().pop().unwrap();
    assert_eq!((&offer.digest, offer.request_id.as_deref()), (&facts.digest, Some("a day later")));
    assert!(f.store.retry(job.id).unwrap().unwrap_err().contains("done"));
}

#[test]
fn a_job_that_cannot_be_read_fails_and_the_next_one_runs() {
    let f = Fixture::new();
    f.ask("a", "1");
    f.sql("UPDATE jobs SET spec = '{}'");
    f.store.accept(&request("b", "1", 1), Ok(spec("y"))).unwrap();
    assert_eq!(f.store.next().unwrap().unwrap().spec.current, "y");
    assert!(f.store.list(9).unwrap().requests[1].reason.as_deref().unwrap().contains("read"));
}

#[test]
fn an_offer_that_the_broker_refuses_goes_behind_the_others_and_waits_longer_each_time() {
    let f = Fixture::new();
    f.store.offer("a", &f.facts(1)).unwrap();
    let Waiting::Offer(first) = f.store.unsent().unwrap() else { panic!("nothing to send") };
    f.store.refused(first.id, "not authorized").unwrap();
    let Waiting::Later(short) = f.store.unsent().unwrap() else { panic!("sent at once") };
    f.store.offer("b", &f.facts(1)).unwrap();
    let Waiting::Offer(second) = f.store.unsent().unwrap() else { panic!("nothing to send") };
    assert!(second.topic.contains("/b/"), "{}", second.topic);
    f.store.sent(second.id).unwrap();
    f.store.refused(first.id, "not authorized").unwrap();
    let Waiting::Later(long) = f.store.unsent().unwrap() else { panic!("sent at once") };
    assert!(long > short, "{long:?} {short:?}");
    let row = serde_json::to_value(f.store.list(1).unwrap()).unwrap()["outbox"][0].clone();
    assert_eq!((&row["attempts"], &row["reason"]), (&2.into(), &"not authorized".into()));

    f.store.retry_refused().unwrap();
    assert_eq!(f.store.unsent().unwrap(), Waiting::Offer(first.clone()));
    // One that was in flight when the connection broke may be the reason.
    f.store.offer("c", &f.facts(1)).unwrap();
    f.store.lost(first.id, "gone").unwrap();
    let Waiting::Offer(third) = f.store.unsent().unwrap() else { panic!("nothing to send") };
    assert!(third.topic.contains("/c/"), "{}", third.topic);
}

#[test]
fn a_full_outbox_refuses_with_the_limits_name() {
    let f = Fixture::new();
    f.sql(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {MAX_OUTBOX})
         INSERT INTO outbox(topic, payload, posted_ms) SELECT 't' || i, x'00', 0 FROM n"
    ));
    f.refused("a", "1", "MAX_OUTBOX");
    let error = f.store.offer("a", &f.facts(1)).unwrap_err();
    assert!(matches!(error, StoreError::Limit(why) if why.contains("MAX_OUTBOX")));
}

#[test]
fn a_device_waits_with_its_newest_request_and_all_devices_with_a_limited_number() {
    let f = Fixture::new();
    assert_eq!(f.ask("a", "1"), Accepted::Queued);
    assert_eq!(f.ask("a", "2"), Accepted::Joined);
    let states: Vec<String> =
        f.store.list(9).unwrap().requests.into_iter().map(|row| row.state).collect();
    assert_eq!(states, ["waiting", "replaced"]);
    f.sql(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {MAX_WAITING})
         INSERT INTO requests(device, request_id, model, state, received_ms)
         SELECT 'd' || i, 'r', 'm', 'waiting', 0 FROM n"
    ));
    f.refused("b", "1", "MAX_WAITING");
    assert_eq!(f.number("SELECT count(*) FROM jobs"), 1);
}

#[test]
fn devices_not_heard_of_for_longest_are_forgotten_and_sequences_still_rise() {
    let f = Fixture::new();
    for (device, sequence) in [("old", 90), ("new", 5)] {
        f.store.accept(&request(device, "1", sequence), Ok(spec("x"))).unwrap();
    }
    f.sql("UPDATE devices SET seen_ms = 1 WHERE device = 'old'");
    f.store.transaction(|tx| devices::forget(tx, 1)).unwrap();
    assert_eq!(f.number("SELECT count(*) FROM devices WHERE device = 'new'"), 1);
    assert_eq!(f.number("SELECT count(*) FROM devices"), 1);
    assert_eq!(f.store.next().unwrap().unwrap().sequence, 91);
}

#[test]
fn what_a_device_runs_or_was_offered_is_kept_and_the_oldest_of_the_rest_makes_room() {
    let f = Fixture::new();
    let trash = f.dir.path().join("work");
    std::fs::create_dir(&trash).unwrap();
    let all: Vec<OfferFacts> = (1..=5).map(|sequence| f.facts(sequence)).collect();
    for (age, facts) in all.iter().enumerate() {
        let dir = std::fs::File::open(f.dir.path().join("bundles").join(facts.hex())).unwrap();
        let time = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000 + age as u64);
        dir.set_modified(time).unwrap();
    }
    f.store.keep_original("k", &all[1]).unwrap();
    f.store.offer("a", &all[0]).unwrap();
    f.hear("a", &event(&all[0], InstallOutcome::Committed));
    f.store.offer("a", &all[2]).unwrap();
    let fresh = std::collections::BTreeSet::from([all[3].hex().to_owned()]);
    let collect = |shelf: Shelf| f.store.collect(&shelf, &fresh, &trash).unwrap();
    let there = || -> Vec<u64> {
        let dirs =
            all.iter().filter(|facts| f.dir.path().join("bundles").join(facts.hex()).exists());
        dirs.map(|facts| facts.sequence).collect()
    };

    assert_eq!(collect(Shelf::default()), Room::Free);
    assert_eq!(there(), [1, 2, 3, 4, 5], "there was room");
    assert_eq!(collect(Shelf { bundles: 5, ..Shelf::default() }), Room::Free);
    assert_eq!(there(), [1, 3, 4, 5], "the oldest that no device needs");
    assert_eq!(f.number("SELECT count(*) FROM originals"), 0);
    // Each holds a manifest of two bytes.
    let room = collect(Shelf { bytes: 1, ..Shelf::default() });
    assert!(matches!(room, Room::Full(why) if why.contains("MAX_STORE_BYTES")));
    assert_eq!(there(), [1, 3, 4]);
}

#[test]
fn jobs_long_ended_are_forgotten_with_their_part_in_requests() {
    let f = Fixture::new();
    let trash = f.dir.path().join("work");
    for current in ["x", "y", "z"] {
        f.store.accept(&request(current, "1", 1), Ok(spec(current))).unwrap();
    }
    let first = f.made();
    f.made();
    std::fs::create_dir_all(&trash).unwrap();
    let shelf = Shelf { jobs: 1, ..Shelf::default() };
    f.store.collect(&shelf, &std::collections::BTreeSet::new(), &trash).unwrap();
    assert_eq!(f.number("SELECT count(*) FROM jobs"), 2, "the newest ended, and the queued one");
    assert_eq!(f.number("SELECT count(*) FROM requests WHERE job IS NULL"), 1);
    assert!(f.dir.path().join("bundles").join(first.hex()).exists(), "a device was offered it");
}
