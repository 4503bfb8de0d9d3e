//! How long a session takes: percentiles of one, and a fair comparison of several.
//!
//! Two engines or two models are compared in *interleaved rounds*: a machine's clock drifts and
//! its neighbours come and go, so that all of A before all of B would measure the weather. Each
//! round runs every session, the order turning by one from round to round, and the comparison is
//! of medians per round.

use std::time::{Duration, Instant};

use crate::engine::Session;
use crate::error::{EngineError, ErrorKind};
use crate::tensor::Tensor;

/// The most runs of one measurement.
pub const MAX_RUNS: usize = 10_000_000;

/// How a set of durations is distributed, in microseconds.
///
/// A percentile is the smallest duration that at least that share of the runs did not exceed
/// (nearest rank).
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LatencyStats {
    /// How many runs were timed.
    pub runs: usize,
    /// The fastest.
    pub min_us: f64,
    /// The median.
    pub p50_us: f64,
    /// The 95th percentile.
    pub p95_us: f64,
    /// The 99th percentile.
    pub p99_us: f64,
    /// The mean.
    pub mean_us: f64,
}

impl LatencyStats {
    /// The statistics of `durations`; `None` where there are none.
    #[allow(clippy::cast_precision_loss)]
    pub fn of(durations: &[Duration]) -> Option<Self> {
        let mut us: Vec<f64> = durations.iter().map(|d| d.as_secs_f64() * 1e6).collect();
        us.sort_by(f64::total_cmp);
        let min_us = *us.first()?;
        Some(Self {
            runs: us.len(),
            min_us,
            p50_us: percentile(&us, 0.50),
            p95_us: percentile(&us, 0.95),
            p99_us: percentile(&us, 0.99),
            mean_us: us.iter().sum::<f64>() / us.len() as f64,
        })
    }
}

/// How a comparison is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rounds {
    /// How often each session gets its turn.
    pub rounds: usize,
    /// The timed runs of one turn.
    pub runs: usize,
    /// The untimed runs of each session before the first round.
    pub warmup: usize,
}

/// What interleaved rounds found for one session.
#[derive(Debug, Clone, PartialEq)]
pub struct Interleaved {
    /// Over all its runs.
    pub stats: LatencyStats,
    /// The median of each round, in microseconds, in the order of the rounds.
    pub round_p50_us: Vec<f64>,
}

impl Interleaved {
    /// How many times as long this session takes as `base`: the median over the rounds of the
    /// ratio of the two medians in that round. Below 1 it is the faster one.
    pub fn ratio_to(&self, base: &Self) -> f64 {
        let mut ratios: Vec<f64> = self
            .round_p50_us
            .iter()
            .zip(&base.round_p50_us)
            .map(|(own, other)| own / other)
            .collect();
        ratios.sort_by(f64::total_cmp);
        percentile(&ratios, 0.50)
    }
}

/// Times `runs` runs of `session` after `warmup` untimed ones. Checking the inputs and copying the
/// tensors in and out counts, since a caller pays for it too.
///
/// # Errors
/// `runs` is 0 or beyond [`MAX_RUNS`], or a run failed.
pub fn latency(
    session: &mut dyn Session,
    inputs: &[(&str, &Tensor)],
    warmup: usize,
    runs: usize,
) -> Result<LatencyStats, EngineError> {
    check_runs(runs)?;
    for _ in 0..warmup {
        session.run(inputs)?;
    }
    statistics(&timed(session, inputs, runs)?)
}

/// Times `sessions` against each other on the same `inputs`, in interleaved rounds. The results
/// come in the order of the sessions.
///
/// # Errors
/// There are no sessions, rounds or runs, or beyond [`MAX_RUNS`] in all, or a run failed.
pub fn interleaved(
    sessions: &mut [&mut dyn Session],
    inputs: &[(&str, &Tensor)],
    layout: Rounds,
) -> Result<Vec<Interleaved>, EngineError> {
    check_runs(layout.rounds.saturating_mul(layout.runs))?;
    if sessions.is_empty() {
        return Err(EngineError::input("there is no session to measure"));
    }
    for session in sessions.iter_mut() {
        for _ in 0..layout.warmup {
            session.run(inputs)?;
        }
    }
    let mut all = vec![Vec::new(); sessions.len()];
    let mut medians = vec![Vec::new(); sessions.len()];
    for round in 0..layout.rounds {
        for turn in 0..sessions.len() {
            let at = (round + turn) % sessions.len();
            let durations = timed(&mut *sessions[at], inputs, layout.runs)?;
            medians[at].push(statistics(&durations)?.p50_us);
            all[at].extend(durations);
        }
    }
    all.iter()
        .zip(medians)
        .map(|(durations, round_p50_us)| {
            Ok(Interleaved { stats: statistics(durations)?, round_p50_us })
        })
        .collect()
}

fn timed(
    session: &mut dyn Session,
    inputs: &[(&str, &Tensor)],
    runs: usize,
) -> Result<Vec<Duration>, EngineError> {
    let mut durations = Vec::with_capacity(runs);
    for _ in 0..runs {
        let start = Instant::now();
        std::hint::black_box(session.run(inputs)?);
        durations.push(start.elapsed());
    }
    Ok(durations)
}

fn statistics(durations: &[Duration]) -> Result<LatencyStats, EngineError> {
    LatencyStats::of(durations).ok_or_else(|| EngineError::input("no run was timed"))
}

fn check_runs(runs: usize) -> Result<(), EngineError> {
    match runs {
        0 => Err(EngineError::input("a measurement needs at least one run")),
        1..=MAX_RUNS => Ok(()),
        _ => Err(EngineError::new(
            ErrorKind::Limit,
            format!("{runs} runs are more than a measurement takes (MAX_RUNS = {MAX_RUNS})"),
        )),
    }
}

/// Nearest rank of `share` in `sorted`, which is not empty.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::spec::IoSpec;

    /// Writes its name into a shared log at every run, and can fail.
    struct Fake {
        name: char,
        log: Arc<Mutex<String>>,
        fail_after: usize,
    }

    impl Session for Fake {
        fn inputs(&self) -> &[IoSpec] {
            &[]
        }
        fn outputs(&self) -> &[IoSpec] {
            &[]
        }
        fn run(&mut self, _: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, EngineError> {
            let mut log = self.log.lock().unwrap();
            log.push(self.name);
            if log.len() > self.fail_after {
                return Err(EngineError::run("broke"));
            }
            Ok(vec![])
        }
    }

    fn pair(fail_after: usize) -> (Fake, Fake, Arc<Mutex<String>>) {
        let log = Arc::new(Mutex::new(String::new()));
        let fake = |name| Fake { name, log: Arc::clone(&log), fail_after };
        (fake('a'), fake('b'), Arc::clone(&log))
    }

    #[test]
    fn percentiles_are_nearest_ranks() {
        let durations: Vec<Duration> = (1..=100).rev().map(Duration::from_micros).collect();
        let stats = LatencyStats::of(&durations).unwrap();
        assert_eq!(stats.runs, 100);
        for (got, wanted) in [
            (stats.min_us, 1.0),
            (stats.p50_us, 50.0),
            (stats.p95_us, 95.0),
            (stats.p99_us, 99.0),
            (stats.mean_us, 50.5),
        ] {
            assert!((got - wanted).abs() < 1e-6, "{got} is not {wanted}");
        }
        assert_eq!(LatencyStats::of(&[]), None);
    }

    #[test]
    fn one_run_is_every_percentile() {
        let stats = LatencyStats::of(&[Duration::from_micros(7)]).unwrap();
        assert!((stats.p99_us - 7.0).abs() < 1e-6);
        assert!((stats.min_us - stats.p50_us).abs() < 1e-12);
    }

    #[test]
    fn rounds_interleave_and_turn_the_order() {
        let (mut a, mut b, log) = pair(usize::MAX);
        let layout = Rounds { rounds: 3, runs: 2, warmup: 1 };
        let results = interleaved(&mut [&mut a, &mut b], &[], layout).unwrap();
        assert_eq!(*log.lock().unwrap(), "abaabbbbaaaabb");
        assert_eq!(results.len(), 2);
        assert_eq!(results[0].stats.runs, 6);
        assert_eq!(results[1].round_p50_us.len(), 3);
    }

    #[test]
    fn a_ratio_is_the_median_over_rounds_so_one_disturbed_round_does_not_count() {
        let with = |round_p50_us: Vec<f64>| Interleaved {
            stats: LatencyStats::of(&[Duration::from_micros(1)]).unwrap(),
            round_p50_us,
        };
        let slow = with(vec![2.0, 200.0, 2.2]);
        let base = with(vec![1.0, 1.0, 1.0]);
        assert!((slow.ratio_to(&base) - 2.2).abs() < 1e-12);
    }

    #[test]
    fn a_failing_run_ends_the_measurement() {
        let (mut a, mut b, _) = pair(3);
        let layout = Rounds { rounds: 5, runs: 1, warmup: 0 };
        let error = interleaved(&mut [&mut a, &mut b], &[], layout).unwrap_err();
        assert_eq!(error.to_string(), "broke");
    }

    #[test]
    fn nothing_to_measure_and_too_much_to_measure_are_errors() {
        let (mut a, _, _) = pair(usize::MAX);
        assert!(latency(&mut a, &[], 0, 0).is_err());
        let error = latency(&mut a, &[], 0, MAX_RUNS + 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit);
        let layout = Rounds { rounds: 1, runs: 1, warmup: 0 };
        assert!(interleaved(&mut [], &[], layout).is_err());
    }
}
