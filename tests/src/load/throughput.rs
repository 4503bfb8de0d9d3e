//! How many requests a second are answered, over several connections, each of which asks as soon as its last
//! answer is there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use runtime::measure::LatencyStats;
use serde_json::{Value, json};

use super::{Address, Client, Encoding, Request, Subject};

/// The most connections at once.
const MAX_CONNECTIONS: usize = 256;

/// What to measure.
#[derive(Debug)]
pub struct Plan {
    /// The model.
    pub model: Subject,
    /// How tensors travel.
    pub encoding: Encoding,
    /// Connections.
    pub connections: usize,
    /// For how long, after a tenth of it that does not count.
    pub time: Duration,
    /// The server.
    pub at: Address,
}

/// Asks for so long.
///
/// # Errors
/// The server cannot be reached, or one request failed.
pub fn measure(plan: &Plan) -> Result<Value> {
    ensure!(
        (1..=MAX_CONNECTIONS).contains(&plan.connections),
        "{} connections: 1 to {MAX_CONNECTIONS} (MAX_CONNECTIONS) can be had",
        plan.connections
    );
    let request = Request::new(&plan.model, plan.encoding)?;
    let counting = AtomicBool::new(false);
    let stop = AtomicBool::new(false);
    let mut clients = Vec::new();
    for _ in 0..plan.connections {
        let mut client = Client::connect(&plan.at)?;
        client.ask(&request)?;
        clients.push(client);
    }
    let (counted, times) = thread::scope(|scope| {
        let ask = |client| asking(client, &request, &counting, &stop);
        let asking: Vec<_> =
            clients.into_iter().map(|client| scope.spawn(move || ask(client))).collect();
        thread::sleep(plan.time / 10);
        counting.store(true, Ordering::Relaxed);
        let began = Instant::now();
        thread::sleep(plan.time);
        stop.store(true, Ordering::Relaxed);
        let counted = began.elapsed();
        let mut times = Vec::new();
        for thread in asking {
            times.extend(thread.join().map_err(|_| anyhow!("a connection's thread panicked"))??);
        }
        Ok::<_, anyhow::Error>((counted, times))
    })?;
    let stats = LatencyStats::of(&times).context("not one request was answered in time")?;
    #[allow(clippy::cast_precision_loss)]
    let per_second = times.len() as f64 / counted.as_secs_f64();
    Ok(json!({
        "model": plan.model.name(),
        "connections": plan.connections,
        "seconds": counted.as_secs_f64(),
        "requests": times.len(),
        "per_second": per_second,
        "p50_us": stats.p50_us, "p99_us": stats.p99_us,
    }))
}

/// The times of the requests that began and ended while it counted.
fn asking(
    mut client: Client,
    request: &Request,
    counting: &AtomicBool,
    stop: &AtomicBool,
) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    loop {
        let counts = counting.load(Ordering::Relaxed);
        let start = Instant::now();
        client.ask(request)?;
        if stop.load(Ordering::Relaxed) {
            return Ok(times);
        }
        if counts {
            times.push(start.elapsed());
        }
    }
}
