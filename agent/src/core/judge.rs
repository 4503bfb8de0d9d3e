//! Judgements of an install: pure functions from what was seen to yes, or no and why.

use std::collections::VecDeque;

use wire::{Comparison, Histogram, Offer};

use super::event::{BundleFacts, ShadowFacts, StepFailure};
use super::live::Evidence;
use super::record::Baseline;
use super::settings::Settings;
use super::trial::ProbationRules;
use super::trial::evidence::ln_evidence;
use super::trial::p95_edge;

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

/// A shadow in which the candidate does worse than it may goes on for so many times its requests.
const SHADOW_PATIENCE: u64 = 4;

/// Where a shadow stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shadow {
    /// Go on, while there is time.
    Watch,
    /// Switch to it.
    Pass,
    /// Turn it away.
    Refuse(String),
}

/// Whether a shadowed candidate may be switched to. One that fails requests which the serving model
/// answers may not, whatever the rest of its answers are; nor one that agrees less often than the
/// floor. Both are tested like a probation ([`super::trial`]), at their part of the same rate, so that a
/// model which agrees exactly as often as the floor asks is hardly ever turned away; one that so far
/// agrees less is watched for longer instead.
#[allow(clippy::cast_precision_loss)]
pub(super) fn shadow(
    facts: &ShadowFacts,
    floor: Option<f64>,
    restarts: u32,
    settings: &Settings,
) -> Shadow {
    let (rules, level) = (&settings.install, settings.probation.shadow_level(restarts));
    let failed = rate(facts.failures, facts.shown());
    let each = ProbationRules::error_weight();
    let (failures, shown) = (facts.failures as f64 * each, facts.shown() as f64 * each);
    // Errors share their part with the probation.
    if ln_evidence(failures, shown, rules.max_error_rate) >= (2.0 / level).ln() {
        return Shadow::Refuse(format!(
            "it failed {} of {} live requests that the serving model answered, over \
             install.max_error_rate {}",
            facts.failures,
            facts.shown(),
            rules.max_error_rate
        ));
    }
    let requests = facts.requests as f64;
    let disagreed = (1.0 - facts.agreement).max(0.0) * requests;
    if let Some(floor) = floor
        && ln_evidence(disagreed, requests, 1.0 - floor) >= (1.0 / level).ln()
    {
        return Shadow::Refuse(format!(
            "agreement {:.4} with the serving model over {} live requests is under agreement_min {floor}, \
             beyond chance (probation.false_rollback_rate {})",
            facts.agreement, facts.requests, settings.probation.false_rollback_rate
        ));
    }
    let below = facts.requests > 0 && floor.is_some_and(|floor| facts.agreement < floor);
    let patience = if below || failed > rules.max_error_rate { SHADOW_PATIENCE } else { 1 };
    match facts.shown() >= rules.shadow_requests.saturating_mul(patience) {
        true => Shadow::Pass,
        false => Shadow::Watch,
    }
}

/// What the model before the switch is remembered by. The record counts as few independent requests as
/// the busiest of its windows would make of all.
#[allow(clippy::cast_precision_loss)]
pub(super) fn baseline(recent: &VecDeque<Evidence>, shadow: &ShadowFacts) -> Baseline {
    let mut times = Histogram::default();
    recent.iter().for_each(|seen| times.merge(&seen.compute));
    let requests = recent.iter().map(|seen| seen.requests).sum();
    let errors = recent.iter().map(|seen| seen.errors).sum();
    let each = recent.iter().map(|seen| seen.weight).fold(1.0, f64::min);
    let counted = times.count() as f64 * each;
    let edge = p95_edge(&times);
    Baseline {
        p95_us: times.quantile(0.95),
        p95_edge_us: edge.map(|(us, _)| us),
        requests: counted,
        over: edge.map_or(0.0, |(_, share)| share * counted),
        error_rate: rate(errors, requests),
        memory_bytes: recent.iter().filter_map(|seen| seen.memory_bytes).max(),
        energy_mj: recent.iter().filter_map(|seen| seen.energy_mj).reduce(f64::max),
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

#[allow(clippy::cast_precision_loss)]
fn rate(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::settings;

    fn facts(requests: u64, agreement: f64) -> ShadowFacts {
        ShadowFacts { requests, agreement, ..ShadowFacts::default() }
    }

    fn judged(facts: &ShadowFacts, floor: Option<f64>, shadow_requests: u64) -> Shadow {
        let mut settings = settings();
        settings.install.shadow_requests = shadow_requests;
        shadow(facts, floor, 0, &settings)
    }

    #[test]
    fn a_shadow_a_little_under_the_floor_is_watched_for_longer_and_a_bad_one_is_refused() {
        let judged = |requests, agreement, floor| judged(&facts(requests, agreement), floor, 20);
        assert_eq!(judged(20, 0.90, Some(0.85)), Shadow::Pass);
        assert_eq!(judged(19, 0.90, Some(0.85)), Shadow::Watch);
        assert_eq!(judged(20, 0.80, Some(0.85)), Shadow::Watch, "4 of 20 differ: may be chance");
        assert_eq!(judged(80, 0.80, Some(0.85)), Shadow::Pass, "and is not to be told from it");
        for (requests, agreement) in [(10, 0.1), (40, 0.55), (2000, 0.80)] {
            let refused = judged(requests, agreement, Some(0.85));
            assert!(
                matches!(&refused, Shadow::Refuse(why) if why.contains("agreement_min 0.85")),
                "{requests}, {agreement}: {refused:?}"
            );
        }
        assert_eq!(judged(2, 0.0, Some(0.85)), Shadow::Watch, "two requests say nothing");
        assert_eq!(judged(20, 0.0, None), Shadow::Pass, "no floor, no judgement");
    }

    #[test]
    fn a_candidate_that_fails_requests_is_refused_with_and_without_a_floor() {
        let failing = |requests, failures| ShadowFacts { failures, ..facts(requests, 1.0) };
        for floor in [None, Some(0.9)] {
            let judged = |facts| judged(&facts, floor, 20);
            let refused = judged(failing(0, 10));
            assert!(
                matches!(&refused, Shadow::Refuse(why) if why.contains("10 of 10")),
                "{refused:?}"
            );
            assert!(matches!(judged(failing(30, 30)), Shadow::Refuse(_)));
            assert_eq!(judged(failing(20, 3)), Shadow::Watch, "they may have failed together");
            assert_eq!(judged(failing(77, 3)), Shadow::Pass);
        }
    }

    #[test]
    fn a_restart_of_the_agent_makes_the_next_shadow_harder_to_refuse() {
        let settings = settings();
        let refused = |restarts| {
            let bad = |requests| shadow(&facts(requests, 0.5), Some(0.85), restarts, &settings);
            (1..400).find(|requests| matches!(bad(*requests), Shadow::Refuse(_)))
        };
        assert!(refused(0) < refused(4), "{:?} {:?}", refused(0), refused(4));
    }
}
