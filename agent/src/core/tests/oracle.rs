//! What a re-compression request must have behind it, told from the windows themselves and not from what
//! the core made of them: at least N of the last M windows were over the budget by the model's own doing.

use std::collections::VecDeque;

use wire::{BudgetKind, DriftTest};

use super::*;

/// The last windows of each model and budget.
#[derive(Debug, Default)]
pub(super) struct Oracle {
    watched: BTreeMap<(String, BudgetKind), Watched>,
    /// Whether any window that is being pooled for a test of drift was shifted.
    shifted: BTreeMap<String, bool>,
}

/// The last windows of one.
#[derive(Debug, Default)]
struct Watched {
    /// Whose windows, under which limit: others do not count.
    under: Option<(String, f64)>,
    over: VecDeque<bool>,
}

/// Whether a window of these tests may count as over the budget by the model's own doing.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn is_over(
    facts: &WindowFacts,
    model: &ModelFacts,
    budget: BudgetKind,
    limit: f64,
) -> Option<bool> {
    let resources = facts.resources.as_ref().unwrap();
    let calm = !resources.throttled && !model.cold;
    let power = facts.power.as_ref().filter(|_| model.requests > 0);
    Some(match budget {
        // A histogram may place a time up to 1.6 % above itself.
        BudgetKind::LatencyP95 => {
            let us = model.compute.max()?;
            calm && us + us / 50 > limit as u64
        }
        BudgetKind::Memory => model.pss_bytes? as f64 > limit && !model.cold,
        BudgetKind::Power => {
            let mw = power?.power_mw?;
            calm && mw > limit
        }
        BudgetKind::Energy => {
            let (mj, error) = (power?.energy_per_inference_mj?, power?.energy_error_mj?);
            calm && mj - error > limit
        }
        BudgetKind::Agreement | BudgetKind::Drift => return None,
    })
}

impl Oracle {
    /// Takes note of a window, before the core does.
    pub(super) fn see(&mut self, core: &Core, facts: &WindowFacts) {
        for model in &facts.models {
            let install = core.install(&model.model).map(|own| own.state);
            let watched =
                matches!(install, None | Some(InstallState::Offered | InstallState::Downloading));
            if !watched || core.active_digest(&model.model).as_deref() != Some(&model.digest) {
                continue;
            }
            let budgets = core.budgets(&model.model);
            for budget in BudgetKind::ALL {
                let Some(limit) = budgets.limit(*budget) else { continue };
                if let Some(over) = is_over(facts, model, *budget, limit) {
                    let under = (model.digest.clone(), limit);
                    let most = core.settings.breach.windows_seen;
                    self.entry(&model.model, *budget).push(under, over, most);
                }
            }
        }
    }

    /// A window of requests like the reference, or of others, is about to come.
    pub(super) fn looks(&mut self, model: &str, shifted: bool) {
        *self.shifted.entry(model.to_owned()).or_default() |= shifted;
    }

    /// A pool of requests was tested.
    pub(super) fn tested(&mut self, model: &str, test: &DriftTest) {
        let shifted = self.shifted.insert(model.to_owned(), false).unwrap_or_default();
        let under = (String::new(), test.psi_limit);
        let most = settings().breach.windows_seen;
        self.entry(model, BudgetKind::Drift).push(under, shifted, most);
    }

    /// How many of the last windows were over.
    pub(super) fn over(&self, model: &str, budget: BudgetKind) -> u32 {
        let watched = self.watched.get(&(model.to_owned(), budget));
        let over = watched.map_or(0, |watched| watched.over.iter().filter(|over| **over).count());
        u32::try_from(over).unwrap()
    }

    fn entry(&mut self, model: &str, budget: BudgetKind) -> &mut Watched {
        self.watched.entry((model.to_owned(), budget)).or_default()
    }
}

impl Watched {
    fn push(&mut self, under: (String, f64), over: bool, most: u32) {
        if self.under.as_ref() != Some(&under) {
            self.over.clear();
            self.under = Some(under);
        }
        self.over.push_back(over);
        while self.over.len() > most as usize {
            self.over.pop_front();
        }
    }
}
