//! Before and after, as a table and as JSON. Every number says whether it was measured or modelled.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use wire::{BudgetBreach, Histogram, InferWindow, InstallEvent, Offer, Quality};

use super::{AFTER, BEFORE, WAITING, ms, secs};
use crate::client::ClientStats;
use crate::live::Stack;
use crate::profiles;
use crate::watcher::{Message, Watcher};

/// One model in one period, as the device saw it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Measured {
    /// Requests in the windows.
    pub requests: u64,
    /// Median compute time on the emulated board.
    pub p50_us: Option<u64>,
    /// 95th percentile of the compute time on the emulated board.
    pub p95_us: Option<u64>,
    /// Proportional set size of all workers; measured on the host.
    pub workers_pss_bytes: Option<u64>,
    /// Proportional set size of the agent's own process; measured on the host.
    pub agent_pss_bytes: Option<u64>,
    /// Energy of one inference.
    pub energy_per_inference_mj: Option<f64>,
    /// Whether that was measured.
    pub energy_quality: Option<Quality>,
    /// Size of the model's bundle.
    pub model_bytes: Option<u64>,
    /// Digest of its bundle.
    pub digest: String,
}

impl Measured {
    /// The windows of one model put together, with the newest memory and the mean energy over the
    /// same time.
    #[must_use]
    pub fn new(windows: &[InferWindow], watcher: &Watcher, digest: &str) -> Self {
        let mut times = Histogram::default();
        windows.iter().for_each(|window| times.merge(&window.compute));
        let since = windows.first().map_or(0, |window| window.header.ts);
        let mut measured = Self {
            requests: windows.iter().map(|window| window.requests).sum(),
            p50_us: times.quantile(0.5),
            p95_us: times.quantile(0.95),
            digest: digest.to_owned(),
            ..Self::default()
        };
        let mut energies = Vec::new();
        for record in watcher.records(0) {
            match &record.message {
                Message::Resources(window) if window.header.ts >= since => {
                    measured.agent_pss_bytes = window.agent_pss_bytes.or(measured.agent_pss_bytes);
                    measured.workers_pss_bytes =
                        window.workers_pss_bytes.or(measured.workers_pss_bytes);
                }
                Message::Power(window) if window.header.ts >= since => {
                    energies.extend(window.energy_per_inference_mj);
                    measured.energy_quality = Some(window.quality);
                }
                _ => {}
            }
        }
        measured.energy_per_inference_mj = mean(&energies);
        measured
    }

    pub(super) fn line(&self) -> String {
        let show = |us: Option<u64>| us.map_or("?".to_owned(), ms);
        format!("{} requests, p50 {}, p95 {}", self.requests, show(self.p50_us), show(self.p95_us))
    }
}

/// What the demonstration has shown.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Always true: what fails is an error.
    pub ok: bool,
    /// The emulated board.
    pub board: String,
    /// How many times slower than the host's core it computes fp32; modelled.
    pub slowdown: f64,
    /// How fast the host's core is taken to be, relative to the reference core; not measured, so that
    /// there is no bound on the error of `slowdown`.
    pub host_speed: f64,
    /// The reference core.
    pub reference: String,
    /// The engine.
    pub runtime: wire::Runtime,
    /// The budget.
    pub budget_p95_us: u64,
    /// The original model.
    pub before: Measured,
    /// The new model, after the commit.
    pub after: Measured,
    /// Models that were asked for: more than one where the first did not meet the budget.
    pub rounds: u32,
    /// Windows over the budget among those after the commit.
    pub windows_over_after: usize,
    /// Windows judged after the commit.
    pub windows_after: usize,
    /// What the breach was attributed to.
    pub cause: wire::Cause,
    /// From the breach's arrival to the commit's, here.
    pub breach_to_committed_ms: u64,
    /// From the offer to the commit, on the device.
    pub install_ms: u64,
    /// Share of equal answers to the same held-out files before and after.
    pub agreement: Option<f64>,
    /// How many files that is.
    pub agreement_samples: usize,
    /// Share of equal answers while both models saw the same live requests.
    pub shadow_agreement: Option<f64>,
    /// Requests that the client sent, over everything.
    pub requests: u64,
    /// Requests without an answer, over everything.
    pub requests_failed: u64,
    /// The client's own p95, before and after, transport included.
    pub client_p95_us: (Option<u64>, Option<u64>),
    /// The report on the compression.
    pub report: Option<PathBuf>,
    /// Logs, bundles and state of the run.
    pub run_dir: PathBuf,
    /// The whole run.
    pub took_ms: u64,
}

pub(super) struct Facts<'a> {
    pub(super) stack: &'a Stack,
    pub(super) before: Measured,
    pub(super) after: Measured,
    pub(super) original: &'a str,
    pub(super) offer: &'a Offer,
    pub(super) budget_us: u64,
    pub(super) breach: &'a BudgetBreach,
    pub(super) install: &'a InstallEvent,
    pub(super) breach_to_committed_ms: u64,
    pub(super) took: Duration,
    pub(super) rounds: u32,
    pub(super) windows_over: usize,
    pub(super) windows_after: usize,
    pub(super) stats: &'a ClientStats,
}

impl Summary {
    pub(super) fn new(facts: Facts) -> Self {
        let o = facts.stack.options();
        let agreement = facts.stats.agreement(&[BEFORE, WAITING], AFTER);
        let client_p95 = |phase| facts.stats.phases.get(phase)?.latency.quantile(0.95);
        let model_bytes = |digest: &str| {
            let file = facts.stack.bundle_dir(digest).join("model.onnx");
            fs::metadata(file).ok().map(|file| file.len())
        };
        Self {
            ok: true,
            board: o.board.title.clone(),
            slowdown: facts.stack.slowdown().fp32,
            host_speed: o.host_speed,
            reference: profiles::reference_title().to_owned(),
            runtime: o.runtime,
            budget_p95_us: facts.budget_us,
            before: Measured { model_bytes: model_bytes(facts.original), ..facts.before },
            after: Measured { model_bytes: model_bytes(&facts.offer.digest), ..facts.after },
            rounds: facts.rounds,
            windows_over_after: facts.windows_over,
            windows_after: facts.windows_after,
            cause: facts.breach.cause,
            breach_to_committed_ms: facts.breach_to_committed_ms,
            install_ms: facts.install.elapsed_ms,
            agreement: agreement.map(|(share, _)| share),
            agreement_samples: agreement.map_or(0, |(_, samples)| samples),
            shadow_agreement: facts.install.comparison.as_ref().map(|c| c.agreement),
            requests: facts.stats.requests(),
            requests_failed: facts.stats.failed(),
            client_p95_us: (client_p95(BEFORE), client_p95(AFTER)),
            report: report(facts.stack, &facts.offer.digest),
            run_dir: o.run_dir.clone(),
            took_ms: u64::try_from(facts.took.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// The table that people read.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::new();
        let mut row = |name: &str, before: &str, after: &str, note: &str| {
            let _ = writeln!(text, "  {name:<22}{before:>12}{after:>12}   {note}");
        };
        let time = |us: Option<u64>| us.map_or("-".to_owned(), ms);
        let emulated = format!(
            "modelled: {} = host x {:.1}; this host is taken to be {} {}",
            self.board,
            self.slowdown,
            relative(self.host_speed),
            self.reference
        );
        row("", "before", "after", "");
        row("p50 latency", &time(self.before.p50_us), &time(self.after.p50_us), &emulated);
        let budget = format!("budget {}", ms(self.budget_p95_us));
        row("p95 latency", &time(self.before.p95_us), &time(self.after.p95_us), &budget);
        let memory = |m: &Measured| megabytes(m.workers_pss_bytes);
        row("worker memory (PSS)", &memory(&self.before), &memory(&self.after), "measured");
        let agent = |m: &Measured| megabytes(m.agent_pss_bytes);
        row("agent memory (PSS)", &agent(&self.before), &agent(&self.after), "measured");
        let size = |m: &Measured| megabytes(m.model_bytes);
        row("model file", &size(&self.before), &size(&self.after), "measured");
        let energy = |m: &Measured| {
            m.energy_per_inference_mj.map_or("-".to_owned(), |mj| format!("{mj:.0} mJ"))
        };
        let quality = self.after.energy_quality.unwrap_or(Quality::None);
        row("energy per inference", &energy(&self.before), &energy(&self.after), quality.as_str());
        let share =
            |share: Option<f64>| share.map_or("-".to_owned(), |s| format!("{:.1} %", s * 100.0));
        let files = format!("on {} held-out files, measured", self.agreement_samples);
        row("agreement", "", &share(self.agreement), &files);
        row("agreement in shadow", "", &share(self.shadow_agreement), "on live requests, measured");
        let failed = format!("{} of {}", self.requests_failed, self.requests);
        row("requests failed", "", &failed, "over the whole run");
        let closed = format!("{:.1} s", secs(self.breach_to_committed_ms));
        let rounds =
            if self.rounds == 1 { String::new() } else { format!("in {} rounds", self.rounds) };
        row("breach to committed", "", &closed, &rounds);
        let report = self.report.as_ref().map_or("none".to_owned(), |p| p.display().to_string());
        let _ = write!(text, "  report: {report}\n  logs:   {}", self.run_dir.display());
        text
    }
}

/// A speed relative to another's, which follows.
fn relative(speed: f64) -> String {
    if (speed - 1.0).abs() < 1e-9 {
        "as fast as".to_owned()
    } else {
        format!("{speed} times as fast as")
    }
}

/// The bundle's report, copied to where the run's other files are.
fn report(stack: &Stack, digest: &str) -> Option<PathBuf> {
    let copy = stack.options().run_dir.join("report.html");
    fs::copy(stack.bundle_dir(digest).join("report.html"), &copy).ok().map(|_| copy)
}

#[allow(clippy::cast_precision_loss)]
fn megabytes(bytes: Option<u64>) -> String {
    bytes.map_or("-".to_owned(), |bytes| format!("{:.2} MB", bytes as f64 / 1e6))
}

#[allow(clippy::cast_precision_loss)]
fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn measured(p95_us: u64) -> Measured {
        Measured {
            requests: 40,
            p50_us: Some(p95_us / 2),
            p95_us: Some(p95_us),
            workers_pss_bytes: Some(40_000_000),
            agent_pss_bytes: Some(12_000_000),
            energy_per_inference_mj: Some(120.4),
            energy_quality: Some(Quality::Modelled),
            model_bytes: Some(3_160_000),
            digest: "sha256:a".to_owned(),
        }
    }

    fn summary() -> Summary {
        Summary {
            ok: true,
            board: "Raspberry Pi 4 Model B".to_owned(),
            slowdown: 14.1,
            host_speed: 1.0,
            reference: "a Ryzen".to_owned(),
            runtime: wire::Runtime::Tract,
            budget_p95_us: 170_000,
            before: measured(240_000),
            after: measured(150_000),
            rounds: 1,
            windows_over_after: 0,
            windows_after: 4,
            cause: wire::Cause::Model,
            breach_to_committed_ms: 61_500,
            install_ms: 20_000,
            agreement: Some(0.9),
            agreement_samples: 50,
            shadow_agreement: None,
            requests: 300,
            requests_failed: 0,
            client_p95_us: (None, None),
            report: None,
            run_dir: PathBuf::from("/run"),
            took_ms: 100_000,
        }
    }

    #[test]
    fn the_table_marks_what_was_modelled_and_what_is_missing() {
        let table = summary().table();
        let line = |name: &str| {
            table.lines().find(|line| line.contains(name)).unwrap_or_default().to_owned()
        };
        assert!(line("p50 latency").contains(
            "modelled: Raspberry Pi 4 Model B = host x 14.1; this host is taken to be as fast as a Ryzen"
        ));
        let faster = Summary { host_speed: 1.5, ..summary() }.table();
        assert!(faster.contains("taken to be 1.5 times as fast as a Ryzen"), "{faster}");
        assert!(line("energy").contains("120 mJ") && line("energy").ends_with("modelled"));
        assert!(line("worker memory").ends_with("measured"));
        assert!(line("agreement in shadow").contains(" - "));
        assert!(line("requests failed").contains("0 of 300"));
        assert!(line("report").contains("none"));
    }

    #[test]
    fn the_json_holds_the_loop_s_duration_and_both_sides() {
        let json = serde_json::to_value(summary()).unwrap();
        assert_eq!(json["breach_to_committed_ms"], 61_500);
        assert_eq!(json["after"]["p95_us"], 150_000);
        assert_eq!(json["before"]["energy_quality"], "modelled");
    }
}
