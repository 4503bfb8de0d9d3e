//! The choice of least loss under a budget for a cost that does not add up.
//!
//! Around one choice a cost is made to add up: each step of each group costs what it changes there while the others
//! stay (their *marginal* cost). The [`Front`] of these is exact for changes of one group, and off where two groups
//! meet in one layer. So each choice that it gives is asked for its true cost, the budget given to the front is moved
//! by what it was off, and the whole is repeated around the best choice until nothing new comes. Then groups are moved
//! by their true cost alone: one a step wider, or one wider and another narrower, as long as the loss falls.

use super::knapsack::{Front, Offer};
use super::menu::Menu;

/// Choices around which costs are made to add up, from each beginning.
const ROUNDS: usize = 6;
/// Corrections of the budget around one choice.
const CORRECTIONS: usize = 5;
/// Moves of single groups.
const MOVES: usize = 48;
/// True costs asked for one move.
const ASKED: usize = 24;
/// A move of two groups, which is expected to cost more than the budget by up to this share of it, is asked for its
/// true cost.
const HOPEFUL: f64 = 0.1;

/// What a whole choice costs. A choice is one step of each menu, by index.
pub trait Cost {
    /// Why a cost could not be had.
    type Error;

    /// The cost of `choice`; infinite where it cannot be made.
    ///
    /// # Errors
    /// It ends the search.
    fn of(&mut self, choice: &[usize]) -> Result<f64, Self::Error>;

    /// The cost of `choice` at each of the first `steps` steps of `group` in turn.
    ///
    /// # Errors
    /// It ends the search.
    fn along(
        &mut self,
        choice: &[usize],
        group: usize,
        steps: usize,
    ) -> Result<Vec<f64>, Self::Error> {
        (0..steps).map(|step| self.of(&with(choice, group, step))).collect()
    }
}

/// A choice within the budget.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// One step of each menu, by index.
    pub choice: Vec<usize>,
    /// Its true cost.
    pub cost: f64,
    /// The sum of its losses.
    pub loss: f64,
}

/// What a search ended with.
#[derive(Debug, Clone, PartialEq)]
pub enum Searched {
    /// The choice of least loss that was found.
    Within(Found),
    /// No choice is known to be within the budget; this is the cheapest known.
    Unreachable(Found),
}

/// `choice` with `group` at `step`.
pub(crate) fn with(choice: &[usize], group: usize, step: usize) -> Vec<usize> {
    let mut choice = choice.to_vec();
    if let Some(at) = choice.get_mut(group) {
        *at = step;
    }
    choice
}

/// The sum of a choice's losses.
pub fn loss(menus: &[Menu], choice: &[usize]) -> f64 {
    menus.iter().zip(choice).map(|(menu, at)| menu.step(*at).loss).sum()
}

/// The widest choice within `budget` that keeps the same share of every group, rounded up to what each menu has; or
/// the narrowest of them all. The share comes with it.
///
/// # Errors
/// Those of the cost.
pub fn uniform<C: Cost>(
    menus: &[Menu],
    cost: &mut C,
    budget: f64,
) -> Result<(f64, Found), C::Error> {
    let steps = crate::search::STEPS;
    let mut last = None;
    for step in (1..=steps).rev() {
        let share = step as f64 / steps as f64;
        let choice: Vec<usize> = menus.iter().map(|menu| at_share(menu, share)).collect();
        if last.as_ref().is_some_and(|(_, found): &(f64, Found)| found.choice == choice) {
            continue;
        }
        let found = Found { cost: cost.of(&choice)?, loss: loss(menus, &choice), choice };
        let within = found.cost <= budget;
        last = Some((share, found));
        if within {
            break;
        }
    }
    let nothing = || (1.0, Found { choice: Vec::new(), cost: f64::INFINITY, loss: 0.0 });
    Ok(last.unwrap_or_else(nothing))
}

fn at_share(menu: &Menu, share: f64) -> usize {
    menu.at_least(crate::plan::aligned_keep(menu.step(0).width, share))
}

/// The choice of least loss whose true cost is within `budget`.
///
/// # Errors
/// Those of the cost.
pub fn search<C: Cost>(menus: &[Menu], cost: &mut C, budget: f64) -> Result<Searched, C::Error> {
    let narrowest: Vec<usize> = menus.iter().map(|menu| menu.steps().len() - 1).collect();
    let mut hunt = Hunt { menus, cost, budget, best: None, cheapest: None };
    hunt.ask(&vec![0; menus.len()])?;
    hunt.ask(&narrowest)?;
    let (_, even) = uniform(menus, hunt.cost, budget)?;
    hunt.ask(&even.choice)?;
    let mut seen: Vec<Vec<usize>> = Vec::new();
    for mut around in [vec![0; menus.len()], even.choice, narrowest] {
        for _ in 0..ROUNDS {
            if seen.contains(&around) {
                break;
            }
            seen.push(around.clone());
            if let Some(next) = hunt.around(&around)? {
                around = next;
            }
        }
    }
    hunt.polish()?;
    let Hunt { best, cheapest, .. } = hunt;
    let nothing = Found { choice: Vec::new(), cost: f64::INFINITY, loss: 0.0 };
    Ok(match best {
        Some(found) => Searched::Within(found),
        None => Searched::Unreachable(cheapest.unwrap_or(nothing)),
    })
}

struct Hunt<'a, C> {
    menus: &'a [Menu],
    cost: &'a mut C,
    budget: f64,
    /// Of those within the budget, the one of least loss.
    best: Option<Found>,
    cheapest: Option<Found>,
}

impl<C: Cost> Hunt<'_, C> {
    /// The true cost of a choice, which is kept if nothing better is known.
    fn ask(&mut self, choice: &[usize]) -> Result<f64, C::Error> {
        let cost = self.cost.of(choice)?;
        let found = Found { choice: choice.to_vec(), cost, loss: loss(self.menus, choice) };
        if self.cheapest.as_ref().is_none_or(|known| cost < known.cost) {
            self.cheapest = Some(found.clone());
        }
        let better = |known: &Found| (found.loss, found.cost) < (known.loss, known.cost);
        if cost <= self.budget && self.best.as_ref().is_none_or(better) {
            self.best = Some(found);
        }
        Ok(cost)
    }

    /// What each step of each group changes of the cost of `choice`.
    fn margins(&mut self, choice: &[usize]) -> Result<Vec<Vec<f64>>, C::Error> {
        let now = self.cost.of(choice)?;
        let mut all = Vec::with_capacity(self.menus.len());
        for (group, menu) in self.menus.iter().enumerate() {
            let along = self.cost.along(choice, group, menu.steps().len())?;
            all.push(along.into_iter().map(|cost| cost - now).collect());
        }
        Ok(all)
    }

    /// The last choice that the front around `choice` gave: the best by true cost once its budget was corrected.
    fn around(&mut self, choice: &[usize]) -> Result<Option<Vec<usize>>, C::Error> {
        let now = self.cost.of(choice)?;
        if !now.is_finite() {
            return Ok(None);
        }
        let margins = self.margins(choice)?;
        let offers = |(menu, costs): (&Menu, &Vec<f64>)| {
            let offers = menu.steps().iter().zip(costs);
            offers.map(|(step, cost)| Offer { loss: step.loss, cost: *cost }).collect()
        };
        let menus: Vec<Vec<Offer>> = self.menus.iter().zip(&margins).map(offers).collect();
        let Some(front) = Front::of(&menus) else {
            return Ok(None);
        };
        let mut allowance = self.budget - now;
        let mut last: Option<Vec<usize>> = None;
        for _ in 0..CORRECTIONS {
            let found = front.best(allowance).or_else(|| front.best(front.cheapest()));
            let Some(found) = found.filter(|found| last.as_ref() != Some(found)) else {
                break;
            };
            let cost = self.ask(&found)?;
            last = Some(found);
            if !cost.is_finite() {
                break;
            }
            allowance += self.budget - cost;
        }
        Ok(match &self.best {
            Some(best) => Some(best.choice.clone()),
            None => last,
        })
    }

    /// Moves single groups of the best choice as long as its loss falls.
    fn polish(&mut self) -> Result<(), C::Error> {
        for _ in 0..MOVES {
            let Some(best) = self.best.clone() else {
                return Ok(());
            };
            let margins = self.margins(&best.choice)?;
            let better =
                moves(self.menus, &best, &margins, self.budget).take_while(|(lost, _)| *lost < 0.0);
            for (_, choice) in better.take(ASKED) {
                self.ask(&choice)?;
                if self.best.as_ref() != Some(&best) {
                    break;
                }
            }
            if self.best.as_ref() == Some(&best) {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Choices one move from `from` that cost at most `budget`, by what their losses add up to, also where that is more
/// than now; about `most` of them. For a search that measures what choices really lose.
///
/// # Errors
/// Those of the cost.
pub fn neighbours<C: Cost>(
    menus: &[Menu],
    cost: &mut C,
    from: &Found,
    budget: f64,
    most: usize,
) -> Result<Vec<Found>, C::Error> {
    let mut hunt = Hunt { menus, cost, budget, best: None, cheapest: None };
    let margins = hunt.margins(&from.choice)?;
    let mut found = Vec::new();
    for (_, choice) in moves(menus, from, &margins, budget).take(ASKED) {
        let cost = hunt.cost.of(&choice)?;
        if cost <= budget {
            found.push(Found { loss: loss(menus, &choice), choice, cost });
        }
        if found.len() >= most {
            break;
        }
    }
    Ok(found)
}

/// One group a step wider, or one a step wider and another as much narrower as pays for it.
type Move = (f64, usize, Option<(usize, usize)>);

/// Choices one move from `from` that are expected to be within `budget`, and how much more each loses; by that.
fn moves<'m>(
    menus: &'m [Menu],
    from: &'m Found,
    margins: &[Vec<f64>],
    budget: f64,
) -> impl Iterator<Item = (f64, Vec<usize>)> + use<'m> {
    let margin = |group: usize, step: usize| {
        margins.get(group).and_then(|m| m.get(step)).copied().unwrap_or(f64::INFINITY)
    };
    let lost = |group: usize, step: usize| {
        menus[group].step(step).loss - menus[group].step(from.choice[group]).loss
    };
    let (room, slack) = (budget - from.cost, HOPEFUL * budget.abs());
    let mut found: Vec<Move> = Vec::new();
    for (wider, &at) in from.choice.iter().enumerate().filter(|(_, at)| **at > 0) {
        let (gain, cost) = (lost(wider, at - 1), margin(wider, at - 1));
        if cost <= room {
            found.push((gain, wider, None));
            continue;
        }
        for (other, menu) in menus.iter().enumerate().filter(|(o, _)| *o != wider) {
            // What two groups cost together is not known: the first step that may pay is tried, and the one behind it.
            let steps = from.choice[other] + 1..menu.steps().len();
            let paying = steps.filter(|step| cost + margin(other, *step) <= room + slack);
            for step in paying.take(2) {
                found.push((gain + lost(other, step), wider, Some((other, step))));
            }
        }
    }
    found.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| (a.1, a.2).cmp(&(b.1, b.2))));
    found.into_iter().map(move |(change, wider, other)| {
        let up = with(&from.choice, wider, from.choice[wider] - 1);
        (change, other.map_or(up.clone(), |(other, step)| with(&up, other, step)))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "search_tests.rs"]
mod tests;
