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

/// One-sided 95 % quantile of the normal distribution.
const Z: f64 = 1.645;

/// Whether a shadowed candidate may be switched to. One that fails requests which the serving model
/// answers may not, whatever the rest of its answers are. Of those, too few comparisons say nothing,
/// and a floor counts as missed only when even the upper end of the agreement's interval is under it:
/// a model that agrees exactly as often as the floor asks is turned away in one of twenty shadows,
/// not in every second.
pub(super) fn shadow(
    facts: &ShadowFacts,
    floor: Option<f64>,
    rules: &InstallRules,
) -> Result<(), String> {
    let failed = rate(facts.failures, facts.shown());
    if facts.failures >= MIN_ERRORS && failed > rules.max_error_rate {
        return Err(format!(
            "it failed {} of {} live requests that the serving model answered, over \
             install.max_error_rate {}",
            facts.failures,
            facts.shown(),
            rules.max_error_rate
        ));
    }
    let Some(floor) = floor else { return Ok(()) };
    let enough = facts.requests.saturating_mul(4) >= rules.shadow_requests && facts.requests > 0;
    let upper = wilson_upper(facts.agreement, facts.requests);
    if enough && upper < floor {
        return Err(format!(
            "agreement {:.4} with the serving model over {} live requests (at most {upper:.4}) is under \
             agreement_min {floor}",
            facts.agreement, facts.requests
        ));
    }
    Ok(())
}

/// Upper end of Wilson's one-sided 95 % interval for a share `p` of `n` trials:
/// `(p + z²/2n + z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)`.
#[allow(clippy::cast_precision_loss)]
fn wilson_upper(p: f64, n: u64) -> f64 {
    let n = n.max(1) as f64;
    let spread = (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    ((p + Z * Z / (2.0 * n) + Z * spread) / (1.0 + Z * Z / n)).min(1.0)
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

    fn facts(requests: u64, agreement: f64) -> ShadowFacts {
        ShadowFacts { requests, agreement, ..ShadowFacts::default() }
    }

    #[test]
    fn a_shadow_a_little_under_the_floor_by_chance_passes_and_a_bad_one_does_not() {
        let rules = InstallRules { shadow_requests: 20, ..InstallRules::default() };
        let shadow = |facts, floor| shadow(&facts, floor, &rules);
        assert!(shadow(facts(20, 0.80), Some(0.85)).is_ok(), "4 of 20 differ: may be chance");
        let refused = shadow(facts(20, 0.55), Some(0.85)).unwrap_err();
        assert!(refused.contains("agreement_min 0.85"), "{refused}");
        assert!(shadow(facts(2000, 0.80), Some(0.85)).is_err(), "many requests leave no chance");
        assert!(shadow(facts(2, 0.0), Some(0.85)).is_ok(), "two requests say nothing");
        assert!(shadow(facts(20, 0.0), None).is_ok(), "no floor, no judgement");
    }

    #[test]
    fn a_candidate_that_fails_requests_is_refused_with_and_without_a_floor() {
        let rules = InstallRules { max_error_rate: 0.1, ..InstallRules::default() };
        let failing = |requests, failures| ShadowFacts { failures, ..facts(requests, 1.0) };
        for floor in [None, Some(0.9)] {
            let refused = shadow(&failing(0, 50), floor, &rules).unwrap_err();
            assert!(refused.contains("50 of 50") && refused.contains("max_error_rate 0.1"));
            assert!(shadow(&failing(20, 3), floor, &rules).is_err(), "3 of 23");
            assert!(shadow(&failing(40, 3), floor, &rules).is_ok(), "3 of 43");
            assert!(shadow(&failing(0, 2), floor, &rules).is_ok(), "two are no evidence");
        }
    }

    #[test]
    fn the_interval_is_wilsons() {
        // The bound solves the score equation (p - u)² = z² u (1 - u) / n.
        for (p, n) in [(0.9, 10), (0.5, 37), (0.99, 400)] {
            let u = wilson_upper(p, n);
            #[allow(clippy::cast_precision_loss)]
            let right = Z * Z * u * (1.0 - u) / n as f64;
            assert!(u > p && ((p - u).powi(2) - right).abs() < 1e-12);
        }
        assert!(wilson_upper(1.0, 5) <= 1.0);
    }
}
