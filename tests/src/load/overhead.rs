//! What the way through the agent adds to an inference: the engine in this process against the same model
//! behind the agent's doors, in rounds that turn.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use runtime::measure::LatencyStats;
use runtime::{EngineOptions, LoadOptions, Session, Tensor};
use serde_json::{Value, json};

use super::{Address, Client, Encoding, Request, Subject};

/// Requests of each way that do not count.
const WARMUP: usize = 200;

/// What to measure.
#[derive(Debug)]
pub struct Plan {
    /// The model.
    pub model: Subject,
    /// The engine in this process, which should be opened as the agent's workers open theirs.
    pub engine: EngineOptions,
    /// Whether it keeps its memory from run to run.
    pub keep_memory: bool,
    /// Rounds.
    pub rounds: usize,
    /// Requests of a round and way.
    pub runs: usize,
    /// The doors.
    pub at: Vec<Address>,
}

/// One way to have the model answer.
enum Way {
    Here(Box<dyn Session>, &'static str, Tensor),
    There(Client, Request),
}

impl Way {
    fn ask(&mut self) -> Result<()> {
        match self {
            Self::Here(session, name, input) => {
                std::hint::black_box(session.run(&[(*name, input)])?);
            }
            Self::There(client, request) => {
                std::hint::black_box(client.ask(request)?);
            }
        }
        Ok(())
    }
}

/// Asks every way in turn. Binary tensors, one connection each, kept alive.
///
/// # Errors
/// A way cannot be gone, or its answers differ from those of the engine in this process.
pub fn measure(plan: &Plan) -> Result<Value> {
    ensure!(plan.rounds > 0 && plan.runs > 0, "nothing to measure: no rounds or no runs");
    let (mut ways, names) = ways(plan)?;
    for way in &mut ways {
        for _ in 0..WARMUP {
            way.ask()?;
        }
    }
    let mut times: Vec<Vec<Vec<Duration>>> = vec![Vec::new(); ways.len()];
    for round in 0..plan.rounds {
        for turn in 0..ways.len() {
            let at = (round + turn) % ways.len();
            times[at].push(timed(&mut ways[at], plan.runs)?);
        }
    }
    let mut found = json!({ "model": plan.model.name(), "rounds": plan.rounds, "runs": plan.runs });
    for (name, rounds) in names.iter().zip(&times) {
        found[name] = summary(rounds, &times[0]).context("no run was timed")?;
    }
    Ok(found)
}

fn ways(plan: &Plan) -> Result<(Vec<Way>, Vec<&'static str>)> {
    let engine = runtime::open(&plan.engine)?;
    let options = LoadOptions { keep_memory: plan.keep_memory, ..LoadOptions::default() };
    let mut session = engine.load_bytes(&plan.model.bytes()?, &options)?;
    let (input, tensor) = plan.model.input()?;
    let answer = session.run(&[(input, &tensor)])?;
    let mut ways = vec![Way::Here(session, input, tensor)];
    let mut names = vec!["in_process"];
    for at in &plan.at {
        let mut client = Client::connect(at)?;
        let request = Request::new(&plan.model, Encoding::Binary)?;
        let body = client.ask(&request)?;
        let (_, first) = answer.first().context("the model gives nothing")?;
        ensure!(body.ends_with(&first.data), "the answer at {at} is not that of the engine here");
        ways.push(Way::There(client, request));
        names.push(at.kind());
    }
    Ok((ways, names))
}

fn timed(way: &mut Way, runs: usize) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(runs);
    for _ in 0..runs {
        let start = Instant::now();
        way.ask()?;
        times.push(start.elapsed());
    }
    Ok(times)
}

/// Percentiles over all rounds, and what they are over those of `base`: the median of the rounds' differences
/// of medians, and the difference of the 99th percentiles.
fn summary(rounds: &[Vec<Duration>], base: &[Vec<Duration>]) -> Option<Value> {
    let all = |rounds: &[Vec<Duration>]| LatencyStats::of(&rounds.concat());
    let median = |round: &Vec<Duration>| LatencyStats::of(round).map(|stats| stats.p50_us);
    let (own, other) = (all(rounds)?, all(base)?);
    let mut differences = Vec::new();
    for (round, other) in rounds.iter().zip(base) {
        differences.push(median(round)? - median(other)?);
    }
    differences.sort_by(f64::total_cmp);
    Some(json!({
        "p50_us": own.p50_us, "p99_us": own.p99_us, "min_us": own.min_us,
        "over_p50_us": differences[differences.len() / 2],
        "over_p99_us": own.p99_us - other.p99_us,
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_overhead_is_the_median_of_the_rounds_differences() {
        let round = |us: u64| vec![Duration::from_micros(us); 3];
        let base = [round(10), round(100), round(10)];
        let own = [round(15), round(105), round(90)];
        let found = summary(&own, &base).unwrap();
        assert!((found["over_p50_us"].as_f64().unwrap() - 5.0).abs() < 1e-6, "{found}");
    }
}
