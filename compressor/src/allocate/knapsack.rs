//! The multiple-choice knapsack: one offer of each menu, the least loss that a budget pays for.
//!
//! A dynamic program over *fronts*: menu by menu, the sums that no other sum beats in both cost and loss. As long as
//! a front is no longer than [`BINS`] it holds every optimum, for all budgets at once. A longer one is thinned: its
//! range of costs is cut into [`BINS`] bins, of each of which the cheapest and the best stay. Costs are never
//! rounded, so that no choice costs more than it says, and a front knows no budget, so that a larger budget never
//! gives more loss. What thinning gives away is bounded: every sum dropped has one in its bin that is no worse, and
//! costs at most a [`BINS`]-th of the range more.

/// Bins of a front that is thinned.
pub const BINS: usize = 1024;

/// What a group may become: what it loses, and what it costs. An offer that is not finite is not taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Offer {
    /// In any unit, at least 0; losses add up.
    pub loss: f64,
    /// In any unit, also below 0; costs add up.
    pub cost: f64,
}

/// One sum of offers, and the sum of one menu less that it came from.
#[derive(Debug, Clone, Copy)]
struct Sum {
    loss: f64,
    cost: f64,
    offer: usize,
    before: usize,
}

/// For every budget the choice of least loss.
#[derive(Debug, Clone)]
pub struct Front {
    /// Menu by menu, sums by rising cost and falling loss. The first holds nothing but the empty sum.
    stages: Vec<Vec<Sum>>,
}

impl Front {
    /// Of one offer of each menu; `None` where a menu has no finite offer.
    pub fn of(menus: &[Vec<Offer>]) -> Option<Self> {
        let mut stages = vec![vec![Sum { loss: 0.0, cost: 0.0, offer: 0, before: 0 }]];
        for menu in menus {
            let sums = thinned(unbeaten(extended(stages.last()?, menu)));
            if sums.is_empty() {
                return None;
            }
            stages.push(sums);
        }
        Some(Self { stages })
    }

    /// The least that any choice costs.
    pub fn cheapest(&self) -> f64 {
        let last = self.stages.last().and_then(|sums| sums.first());
        last.map_or(f64::INFINITY, |sum| sum.cost)
    }

    /// Which offer to take of each menu for the least loss within `budget`, if there is a choice within it.
    pub fn best(&self, budget: f64) -> Option<Vec<usize>> {
        let within = self.stages.last()?.partition_point(|sum| sum.cost <= budget);
        let mut at = within.checked_sub(1)?;
        let mut choice = Vec::with_capacity(self.stages.len());
        for sums in self.stages.iter().skip(1).rev() {
            let sum = sums.get(at)?;
            choice.push(sum.offer);
            at = sum.before;
        }
        choice.reverse();
        Some(choice)
    }
}

/// Every sum with every offer added.
fn extended(sums: &[Sum], menu: &[Offer]) -> Vec<Sum> {
    let finite = |offer: &Offer| offer.loss.is_finite() && offer.cost.is_finite();
    let offers: Vec<(usize, &Offer)> = menu.iter().enumerate().filter(|(_, o)| finite(o)).collect();
    let added = |(before, sum): (usize, &Sum)| {
        let (loss, cost) = (sum.loss, sum.cost);
        offers
            .iter()
            .map(move |(offer, o)| Sum {
                loss: loss + o.loss,
                cost: cost + o.cost,
                offer: *offer,
                before,
            })
            .collect::<Vec<_>>()
    };
    sums.iter().enumerate().flat_map(added).collect()
}

/// By rising cost, each with less loss than all that are cheaper.
fn unbeaten(mut sums: Vec<Sum>) -> Vec<Sum> {
    let place = |s: &Sum| (s.before, s.offer);
    sums.sort_by(|a, b| {
        a.cost
            .total_cmp(&b.cost)
            .then(a.loss.total_cmp(&b.loss))
            .then_with(|| place(a).cmp(&place(b)))
    });
    let mut least = f64::INFINITY;
    sums.retain(|sum| {
        let better = sum.loss < least;
        least = least.min(sum.loss);
        better
    });
    sums
}

/// The cheapest and the best of each bin, if there are more sums than bins.
fn thinned(sums: Vec<Sum>) -> Vec<Sum> {
    let (Some(first), Some(last)) = (sums.first(), sums.last()) else {
        return sums;
    };
    if sums.len() <= BINS {
        return sums;
    }
    let (low, range) = (first.cost, (last.cost - first.cost).max(f64::MIN_POSITIVE));
    let bin = |sum: &Sum| ((sum.cost - low) / range * BINS as f64) as usize;
    let mut kept: Vec<Sum> = Vec::with_capacity(2 * BINS);
    for bin in sums.chunk_by(|a, b| bin(a) == bin(b)) {
        kept.extend(bin.first());
        kept.extend(bin.last().filter(|_| bin.len() > 1));
    }
    kept
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn total(menus: &[Vec<Offer>], choice: &[usize]) -> Offer {
        let taken = menus.iter().zip(choice).map(|(menu, at)| menu[*at]);
        taken.fold(Offer { loss: 0.0, cost: 0.0 }, |sum, offer| Offer {
            loss: sum.loss + offer.loss,
            cost: sum.cost + offer.cost,
        })
    }

    /// The least loss within the budget, by trying everything.
    fn brute(menus: &[Vec<Offer>], budget: f64) -> Option<f64> {
        let mut choices = vec![Vec::new()];
        for menu in menus {
            let longer = |c: &Vec<usize>| {
                (0..menu.len()).map(|at| [c.as_slice(), &[at]].concat()).collect::<Vec<_>>()
            };
            choices = choices.iter().flat_map(longer).collect();
        }
        let totals = choices.iter().map(|choice| total(menus, choice));
        totals.filter(|t| t.cost <= budget).map(|t| t.loss).min_by(f64::total_cmp)
    }

    /// Whole numbers, whose sums are exact.
    fn menus(groups: usize) -> impl Strategy<Value = Vec<Vec<Offer>>> {
        let number = |range: std::ops::Range<i32>| range.prop_map(f64::from);
        let offer =
            (number(0..100), number(-20..100)).prop_map(|(loss, cost)| Offer { loss, cost });
        prop::collection::vec(prop::collection::vec(offer, 1..5), 1..=groups)
    }

    proptest! {
        #[test]
        fn the_choice_is_the_best_of_all_and_never_over_the_budget(
            menus in menus(5),
            budget in (-50i32..400).prop_map(f64::from),
        ) {
            let front = Front::of(&menus).unwrap();
            let found = front.best(budget).map(|choice| total(&menus, &choice));
            prop_assert_eq!(found.map(|t| t.loss), brute(&menus, budget));
            prop_assert!(found.is_none_or(|t| t.cost <= budget));
            prop_assert_eq!(found.is_none(), budget < front.cheapest());
        }

        #[test]
        fn more_budget_never_gives_more_loss(
            menus in menus(14),
            budget in (-50i32..800).prop_map(f64::from),
            more in (0i32..200).prop_map(f64::from),
        ) {
            let front = Front::of(&menus).unwrap();
            let loss = |budget| front.best(budget).map(|choice| total(&menus, &choice).loss);
            if let Some(loss_before) = loss(budget) {
                prop_assert!(loss(budget + more).unwrap() <= loss_before);
            }
        }
    }

    /// Far more sums than bins: thinned, still within the budget, and close to what nothing can beat: the bound in
    /// which offers may be taken in part.
    #[test]
    fn a_long_front_is_thinned_and_stays_near_the_optimum() {
        let offers = |group: i32| {
            let offer = |step: i32| {
                let (width, odd) = (f64::from(16 - step) / 16.0, f64::from(group % 7 + 1));
                let cost = width * (1000.0 + 37.0 * f64::from(group * group % 91));
                Offer { loss: odd * (1.0 - width).powi(2), cost }
            };
            (0..16).map(offer).collect::<Vec<_>>()
        };
        let menus: Vec<Vec<Offer>> = (0..60).map(offers).collect();
        let front = Front::of(&menus).unwrap();
        assert!(front.stages.iter().all(|sums| sums.len() <= 2 * (BINS + 1)));
        assert!(front.stages.last().unwrap().len() > BINS);
        let whole: f64 = menus.iter().map(|menu| menu[0].cost).sum();
        for share in [0.3, 0.5, 0.9] {
            let budget = whole * share;
            let found = total(&menus, &front.best(budget).unwrap());
            assert!(found.cost <= budget);
            let bound = dual_bound(&menus, budget);
            assert!(found.loss <= 1.01 * bound + 0.02, "{} at {share}, bound {bound}", found.loss);
        }
    }

    /// max over λ of Σ min (loss + λ·cost) − λ·budget: no choice within the budget loses less.
    fn dual_bound(menus: &[Vec<Offer>], budget: f64) -> f64 {
        let value = |lambda: f64| {
            let least = |menu: &Vec<Offer>| {
                let all = menu.iter().map(|o| o.loss + lambda * o.cost);
                all.min_by(f64::total_cmp).unwrap()
            };
            menus.iter().map(least).sum::<f64>() - lambda * budget
        };
        (0..4000).map(|step| value(f64::from(step) * 1e-5)).max_by(f64::total_cmp).unwrap()
    }

    #[test]
    fn an_offer_that_is_not_finite_is_not_taken() {
        let offer = |loss, cost| Offer { loss, cost };
        let menus = [vec![offer(0.0, f64::NAN), offer(5.0, 1.0), offer(f64::INFINITY, 0.0)]];
        assert_eq!(Front::of(&menus).unwrap().best(1e9), Some(vec![1]));
        assert!(Front::of(&[vec![offer(f64::NAN, 1.0)]]).is_none());
        assert_eq!(Front::of(&[]).unwrap().best(0.0), Some(vec![]));
    }
}
