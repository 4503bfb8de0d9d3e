//! Judgements of an install: pure functions from what was seen to yes, or no and why.

use std::collections::VecDeque;

use wire::{Comparison, Histogram, Offer};

use super::event::{BundleFacts, ShadowFacts, StepFailure};
use super::live::{Evidence, Probation};
use super::record::Baseline;
use super::settings::InstallRules;

/// Errors below this number are no evidence, whatever their share.
const MIN_ERRORS: u64 = 3;
/// Without evidence against it, a model stays after this many times its probation's windows.
const IDLE_FACTOR: u32 = 4;

/// Whether a verified bundle is what was offered, and made for this device.
pub(super) fn manifest(
    offer: &Offer,
    facts: &BundleFacts,
    runtime: &str,
    class: &str,
) -> Result<(), StepFailure> {
    let unfit = |what: &str, theirs: &str, ours: &str| {
        let reason = format!("the manifest says {what} {theirs}, this device is {ours}");
        Err(StepFailure::bundle(reason))
    };
    if facts.runtime != "any" && facts.runtime != runtime {
        return unfit("runtime", &facts.runtime, runtime);
    }
    if facts.device_class != "any" && facts.device_class != class {
        return unfit("device class", &facts.device_class, class);
    }
    let differs = |what: &str, manifest: &str, offered: &str| {
        let reason = format!("the manifest says {what} {manifest}, the offer says {offered}");
        Err(StepFailure::attempt(reason))
    };
    if facts.name != offer.model {
        return differs("name", &facts.name, &offer.model);
    }
    if facts.sequence != offer.sequence {
        let (manifest, offered) = (facts.sequence.to_string(), offer.sequence.to_string());
        return differs("sequence", &manifest, &offered);
    }
    Ok(())
}

/// Whether a shadowed candidate may be switched to. Too few comparisons say nothing.
pub(super) fn shadow(facts: &ShadowFacts, wanted: u64, floor: Option<f64>) -> Result<(), String> {
    let Some(floor) = floor else { return Ok(()) };
    let enough = facts.requests.saturating_mul(4) >= wanted && facts.requests > 0;
    if enough && facts.agreement < floor {
        return Err(format!(
            "agreement {:.4} with the serving model over {} live requests is under agreement_min {floor}",
            facts.agreement, facts.requests
        ));
    }
    Ok(())
}

/// What the model before the switch is remembered by.
pub(super) fn baseline(recent: &VecDeque<Evidence>, shadow: &ShadowFacts) -> Baseline {
    let mut times = Histogram::default();
    recent.iter().for_each(|seen| times.merge(&seen.compute));
    let requests = recent.iter().map(|seen| seen.requests).sum();
    let errors = recent.iter().map(|seen| seen.errors).sum();
    Baseline {
        p95_us: times.quantile(0.95),
        error_rate: rate(errors, requests),
        shadow_requests: shadow.requests,
        agreement: (shadow.requests > 0).then_some(shadow.agreement),
        shadow_before_p95_us: shadow.before_p95_us,
        shadow_after_p95_us: shadow.after_p95_us,
    }
}

/// The baseline as it is told outside.
pub(super) fn comparison(baseline: Option<&Baseline>) -> Option<Comparison> {
    let baseline = baseline?;
    Some(Comparison {
        shadow_requests: baseline.shadow_requests,
        agreement: baseline.agreement?,
        before_p95_us: baseline.shadow_before_p95_us,
        after_p95_us: baseline.shadow_after_p95_us,
    })
}

/// Where a probation stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Watch on.
    Watch,
    /// Nothing speaks against it.
    Keep,
    /// Take it back.
    Back(String),
}

/// Errors decide at once; speed at the end, and only against a model that misses its budget, or has
/// none, *and* is slower than the one before it.
pub(super) fn probation(
    seen: &Probation,
    before: &Baseline,
    limit_us: Option<u64>,
    rules: &InstallRules,
) -> Verdict {
    let errors = rate(seen.errors, seen.requests);
    let bearable = rules.max_error_rate.max(2.0 * before.error_rate);
    if seen.errors >= MIN_ERRORS && errors > bearable {
        let percent = errors * 100.0;
        return Verdict::Back(format!("{percent:.1} % of its requests failed in probation"));
    }
    let idle = seen.windows >= rules.probation_windows.saturating_mul(IDLE_FACTOR);
    if seen.evidence < rules.probation_windows && !idle {
        return Verdict::Watch;
    }
    match slower(&seen.times, before, limit_us, rules.regress_ratio) {
        Some(reason) => Verdict::Back(reason),
        None => Verdict::Keep,
    }
}

#[allow(clippy::cast_precision_loss)]
fn slower(
    times: &Histogram,
    before: &Baseline,
    limit_us: Option<u64>,
    ratio: f64,
) -> Option<String> {
    let (after, before) = (times.quantile(0.95)?, before.p95_us?);
    let misses = limit_us.is_none_or(|limit| after > limit);
    (misses && after as f64 > before as f64 * ratio).then(|| {
        format!("p95 rose from {before} us to {after} us, over install.regress_ratio {ratio}")
    })
}

#[allow(clippy::cast_precision_loss)]
fn rate(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn seen(us: u64, windows: u32) -> Probation {
        let mut times = Histogram::default();
        (0..100).for_each(|_| times.record(us));
        Probation { windows, evidence: windows, times, requests: 100, ..Probation::default() }
    }

    fn before(p95_us: u64) -> Baseline {
        Baseline { p95_us: Some(p95_us), ..Baseline::default() }
    }

    #[test]
    fn a_model_inside_its_budget_stays_even_if_slower_than_before() {
        let rules = InstallRules::default();
        let verdict = probation(&seen(900, 3), &before(100), Some(1000), &rules);
        assert_eq!(verdict, Verdict::Keep);
    }

    #[test]
    fn a_model_that_misses_its_budget_but_is_faster_than_before_stays() {
        let rules = InstallRules::default();
        let verdict = probation(&seen(1500, 3), &before(3000), Some(1000), &rules);
        assert_eq!(verdict, Verdict::Keep);
    }

    #[test]
    fn a_model_that_misses_its_budget_and_is_slower_is_taken_back() {
        let rules = InstallRules::default();
        let verdict = probation(&seen(5000, 3), &before(3000), Some(1000), &rules);
        assert!(matches!(verdict, Verdict::Back(why) if why.contains("regress_ratio")));
    }

    #[test]
    fn errors_end_a_probation_before_its_time_but_two_are_no_evidence() {
        let rules = InstallRules::default();
        let mut probed = seen(100, 1);
        probed.errors = 2;
        assert_eq!(probation(&probed, &before(100), None, &rules), Verdict::Watch);
        probed.errors = 3;
        let verdict = probation(&probed, &before(100), None, &rules);
        assert!(matches!(verdict, Verdict::Back(why) if why.contains("3.0 %")));
    }

    #[test]
    fn errors_that_the_model_before_had_too_are_not_held_against_the_new_one() {
        let rules = InstallRules::default();
        let mut probed = seen(100, 3);
        probed.errors = 8;
        let mut earlier = before(100);
        earlier.error_rate = 0.05;
        assert_eq!(probation(&probed, &earlier, None, &rules), Verdict::Keep);
    }

    #[test]
    fn without_traffic_a_model_stays_in_the_end() {
        let rules = InstallRules::default();
        let idle = |windows| Probation { windows, ..Probation::default() };
        assert_eq!(probation(&idle(11), &before(1), None, &rules), Verdict::Watch);
        assert_eq!(probation(&idle(12), &before(1), None, &rules), Verdict::Keep);
    }

    #[test]
    fn a_candidate_that_disagrees_is_refused_once_enough_was_compared() {
        let facts = |requests| ShadowFacts { requests, agreement: 0.5, ..ShadowFacts::default() };
        assert!(shadow(&facts(5), 50, Some(0.9)).is_ok());
        let reason = shadow(&facts(50), 50, Some(0.9)).unwrap_err();
        assert!(reason.contains("0.5000") && reason.contains("50 live requests"));
        assert!(shadow(&facts(50), 50, None).is_ok());
    }
}
