//! Which candidates to try, and which one to take: pure functions over measurements.
//!
//! A *family* narrows all groups at one ratio, or one group alone. Within a family a narrower candidate
//! is taken to be no slower and no better, so the search first finds, by latency alone and
//! without data, the widest step of each family that meets the goal, and only those are repaired and judged.

use std::fmt;

use bundle::Estimate;
use serde::{Deserialize, Serialize};

use crate::pipeline::Goal;
use crate::plan::aligned_keep;
use crate::quality::Share;

/// Ratios lie on this many steps.
pub const STEPS: usize = 16;
/// The narrowest ratio tried, in steps.
pub const NARROWEST: usize = 2;
/// Share of the latency that must be left under the budget while widths are searched: a single short
/// measurement may be off by as much.
pub const SEARCH_MARGIN: f64 = 0.10;
/// Share that must be left when the finished candidate is measured again.
pub const CONFIRM_MARGIN: f64 = 0.05;

/// Share of the memory that must be left under the budget: what a process takes varies by as much from one
/// start to the next, and a model that a device reports as over its budget must not count as within it.
pub const MEMORY_MARGIN: f64 = 0.02;

/// What is narrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Every group at the same ratio.
    All,
    /// One group (its index) alone.
    Single(usize),
}

impl Family {
    /// Whether the group at `index` is narrowed.
    pub fn narrows(self, index: usize) -> bool {
        match self {
            Self::All => true,
            Self::Single(only) => only == index,
        }
    }
}

/// The ratios of a family from wide to narrow, without those that give the same widths as a wider one
/// and without those that narrow nothing.
pub fn ladder(family: Family, widths: &[usize]) -> Vec<f64> {
    let kept = |ratio: f64| -> Vec<usize> {
        widths
            .iter()
            .enumerate()
            .map(|(i, w)| if family.narrows(i) { aligned_keep(*w, ratio) } else { *w })
            .collect()
    };
    let mut last = widths.to_vec();
    let mut ladder = Vec::new();
    for step in (NARROWEST..STEPS).rev() {
        let ratio = step as f64 / STEPS as f64;
        let widths = kept(ratio);
        if widths != last {
            ladder.push(ratio);
            last = widths;
        }
    }
    ladder
}

/// The first index of `0..count` (wide to narrow) for which `fits` holds, if it holds from there on. The
/// narrowest is asked first, so that a hopeless family costs one measurement; about log2(count) in all.
///
/// # Errors
/// Those of `fits`.
pub fn widest_that_fits<E>(
    count: usize,
    fits: &mut dyn FnMut(usize) -> Result<bool, E>,
) -> Result<Option<usize>, E> {
    let Some(narrowest) = count.checked_sub(1) else {
        return Ok(None);
    };
    if !fits(narrowest)? {
        return Ok(None);
    }
    let (mut low, mut high) = (0, narrowest);
    while low < high {
        let middle = usize::midpoint(low, high);
        if fits(middle)? {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Ok(Some(high))
}

/// What was measured of one candidate.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Its name.
    pub label: String,
    /// 95th percentile.
    pub latency_p95_us: Estimate,
    /// Memory of the serving process.
    pub memory_bytes: f64,
    /// Size of the model file.
    pub size_bytes: u64,
    /// Agreement with the original; `None` where it was not judged.
    pub agreement: Option<Share>,
}

/// Why a candidate's costs miss the goal; empty where they meet it.
pub fn cost_misses(candidate: &Measured, goal: &Goal, margin: f64) -> Vec<String> {
    let mut misses = Vec::new();
    if let Some(budget) = goal.latency_p95_us {
        let value = candidate.latency_p95_us.value;
        if value.is_nan() || value * (1.0 + margin) > budget as f64 {
            misses.push(format!(
                "p95 {} plus a margin of {:.0} % is over the budget of {}",
                milliseconds(value),
                margin * 100.0,
                milliseconds(budget as f64),
            ));
        }
    }
    if let Some(budget) = goal.memory_bytes
        && candidate.memory_bytes * (1.0 + MEMORY_MARGIN) > budget as f64
    {
        misses.push(format!(
            "memory {} (modelled) plus a margin of {:.0} % is over the budget of {}",
            mebibytes(candidate.memory_bytes),
            MEMORY_MARGIN * 100.0,
            mebibytes(budget as f64),
        ));
    }
    if let Some(budget) = goal.size_bytes
        && candidate.size_bytes > budget
    {
        misses.push(format!(
            "size {} is over the budget of {}",
            mebibytes(candidate.size_bytes as f64),
            mebibytes(budget as f64),
        ));
    }
    misses
}

/// Why a candidate's answers miss the goal.
pub fn quality_miss(candidate: &Measured, goal: &Goal) -> Option<String> {
    match candidate.agreement {
        None => Some("it was not judged".into()),
        Some(share) if share.value < goal.agreement_min => Some(format!(
            "agreement {:.1} % is under the floor of {:.1} %",
            share.value * 100.0,
            goal.agreement_min * 100.0
        )),
        Some(_) => None,
    }
}

/// The candidate to take: of those that meet every budget and the floor, the one with the best agreement;
/// of equals the faster one.
pub fn choose(table: &[Measured], goal: &Goal) -> Option<usize> {
    let agreement = |c: &Measured| c.agreement.map_or(0.0, |s| s.value);
    (0..table.len())
        .filter(|i| cost_misses(&table[*i], goal, CONFIRM_MARGIN).is_empty())
        .filter(|i| quality_miss(&table[*i], goal).is_none())
        .max_by(|a, b| {
            let (a, b) = (&table[*a], &table[*b]);
            agreement(a)
                .total_cmp(&agreement(b))
                .then(b.latency_p95_us.value.total_cmp(&a.latency_p95_us.value))
        })
}

/// No candidate meets the goal: what came nearest to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Unreachable {
    /// What was asked.
    pub goal: Goal,
    /// Everything measured.
    pub tried: Vec<Measured>,
    /// What was not done, as sentences.
    pub refused: Vec<String>,
}

impl Unreachable {
    /// The best agreement among candidates that meet the budgets.
    pub fn best_within_budgets(&self) -> Option<&Measured> {
        self.tried
            .iter()
            .filter(|c| {
                c.agreement.is_some() && cost_misses(c, &self.goal, CONFIRM_MARGIN).is_empty()
            })
            .max_by(|a, b| {
                let share = |c: &Measured| c.agreement.map_or(0.0, |s| s.value);
                share(a).total_cmp(&share(b))
            })
    }

    /// The fastest among candidates that hold the floor.
    pub fn fastest_above_floor(&self) -> Option<&Measured> {
        self.tried
            .iter()
            .filter(|c| quality_miss(c, &self.goal).is_none())
            .min_by(|a, b| a.latency_p95_us.value.total_cmp(&b.latency_p95_us.value))
    }
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no candidate meets the goal ({}), of {} tried",
            goal_text(&self.goal),
            self.tried.len()
        )?;
        match self.best_within_budgets() {
            Some(c) => write!(f, "; best agreement within the budgets: {}", describe(c))?,
            None => write!(f, "; no candidate that was judged is within the budgets")?,
        }
        match self.fastest_above_floor() {
            Some(c) => write!(f, "; fastest at or above the floor: {}", describe(c))?,
            None => write!(f, "; none holds the agreement floor")?,
        }
        if let Some(c) = self
            .tried
            .iter()
            .min_by(|a, b| a.latency_p95_us.value.total_cmp(&b.latency_p95_us.value))
        {
            write!(f, "; fastest of all: {}", describe(c))?;
        }
        for line in &self.refused {
            write!(f, "\n  {line}")?;
        }
        Ok(())
    }
}

fn describe(c: &Measured) -> String {
    let agreement = c
        .agreement
        .map_or_else(|| "not judged".into(), |s| format!("agreement {:.1} %", s.value * 100.0));
    format!(
        "{} (p95 {}, {}, {agreement})",
        c.label,
        milliseconds(c.latency_p95_us.value),
        mebibytes(c.size_bytes as f64),
    )
}

/// The goal in words.
pub fn goal_text(goal: &Goal) -> String {
    let mut parts = Vec::new();
    if let Some(us) = goal.latency_p95_us {
        parts.push(format!("p95 up to {}", milliseconds(us as f64)));
    }
    if let Some(bytes) = goal.memory_bytes {
        parts.push(format!("memory up to {}", mebibytes(bytes as f64)));
    }
    if let Some(bytes) = goal.size_bytes {
        parts.push(format!("size up to {}", mebibytes(bytes as f64)));
    }
    parts.push(format!("agreement from {:.1} %", goal.agreement_min * 100.0));
    parts.join(", ")
}

/// Microseconds as text.
pub fn milliseconds(us: f64) -> String {
    format!("{:.2} ms", us / 1000.0)
}

/// Bytes as text.
pub fn mebibytes(bytes: f64) -> String {
    format!("{:.2} MiB", bytes / (1024.0 * 1024.0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn measured(label: &str, p95_us: f64, agreement: Option<f64>) -> Measured {
        Measured {
            label: label.into(),
            latency_p95_us: Estimate {
                value: p95_us,
                low: p95_us,
                high: p95_us,
                quality: bundle::Quality::Modelled,
            },
            memory_bytes: 1e6,
            size_bytes: 1_000_000,
            agreement: agreement.map(|value| Share { value, low: value, high: value }),
        }
    }

    fn goal(latency_p95_us: u64, agreement_min: f64) -> Goal {
        Goal {
            latency_p95_us: Some(latency_p95_us),
            memory_bytes: None,
            size_bytes: None,
            agreement_min,
        }
    }

    #[test]
    fn the_best_agreement_within_the_budget_is_taken_not_the_fastest() {
        let table = [
            measured("original", 100.0, Some(1.0)),
            measured("all", 50.0, Some(0.91)),
            measured("single", 53.0, Some(0.94)),
            measured("tiny", 20.0, Some(0.5)),
        ];
        assert_eq!(choose(&table, &goal(60, 0.9)), Some(2));
        assert_eq!(choose(&table, &goal(60, 0.95)), None);
        assert_eq!(choose(&table, &goal(1000, 0.9)), Some(0));
    }

    #[test]
    fn a_latency_just_under_the_budget_is_inside_the_margin_and_refused() {
        let close = measured("close", 57.0, Some(1.0));
        let misses = cost_misses(&close, &goal(60, 0.9), 0.1);
        assert!(misses[0].contains("margin of 10 %"), "{misses:?}");
        assert!(cost_misses(&measured("ok", 54.0, None), &goal(60, 0.9), 0.1).is_empty());
        assert!(!cost_misses(&measured("nan", f64::NAN, None), &goal(60, 0.9), 0.0).is_empty());
    }

    #[test]
    fn a_candidate_that_was_not_judged_is_never_taken() {
        assert_eq!(choose(&[measured("fast", 1.0, None)], &goal(60, 0.0)), None);
    }

    #[test]
    fn of_equal_agreement_the_faster_one_is_taken() {
        let table = [measured("a", 40.0, Some(0.95)), measured("b", 30.0, Some(0.95))];
        assert_eq!(choose(&table, &goal(60, 0.9)), Some(1));
    }

    #[test]
    fn size_and_memory_are_budgets_too() {
        let mut g = goal(60, 0.9);
        g.size_bytes = Some(10);
        g.memory_bytes = Some(10);
        assert_eq!(cost_misses(&measured("big", 1.0, Some(1.0)), &g, 0.1).len(), 2);
    }

    #[test]
    fn what_came_nearest_is_named_for_each_constraint() {
        let end = Unreachable {
            goal: goal(60, 0.95),
            tried: vec![
                measured("original", 100.0, Some(1.0)),
                measured("half", 50.0, Some(0.91)),
                measured("tiny", 20.0, Some(0.5)),
            ],
            refused: vec!["embedding is locked: it is an output".into()],
        };
        let text = end.to_string();
        for part in [
            "best agreement within the budgets: half",
            "fastest at or above the floor: original",
            "fastest of all: tiny",
            "embedding is locked",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_ladder_holds_each_width_once_and_never_the_full_one() {
        assert_eq!(ladder(Family::All, &[512]).len(), STEPS - NARROWEST);
        // 64 units in blocks of 16 have three narrower widths.
        assert_eq!(ladder(Family::Single(0), &[64]).len(), 3);
        assert_eq!(ladder(Family::Single(0), &[1]), Vec::<f64>::new());
        assert_eq!(ladder(Family::Single(0), &[64, 512]).len(), 3);
    }

    proptest! {
        #[test]
        fn bisection_finds_the_first_fit_with_few_measurements(count in 1usize..40, first in 0usize..50) {
            let mut asked = 0;
            let found = widest_that_fits::<()>(count, &mut |i| { asked += 1; Ok(i >= first) }).unwrap();
            prop_assert_eq!(found, (first < count).then_some(first));
            prop_assert!(asked <= 7);
        }
    }
}
