//! What one group may keep, and what each width is taken to lose.

use crate::plan::{aligned_keep, alignment};
use crate::search::{NARROWEST, STEPS};

/// Shares of a group's units at which its loss is measured, from wide to narrow.
pub const SAMPLED: [f64; 5] = [0.875, 0.75, 0.5, 0.25, 0.125];

/// One width that a group may have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Units kept.
    pub width: usize,
    /// What that loses; 0 for the whole group, never less than a wider step loses.
    pub loss: f64,
}

/// The widths of one group, from whole to narrow.
#[derive(Debug, Clone, PartialEq)]
pub struct Menu {
    steps: Vec<Step>,
}

impl Menu {
    /// Of a group of `width`, with the losses of `points` (width and loss, from wide to narrow): every aligned width
    /// down to the last of them, at most [`STEPS`] in all. Between two points the loss is taken to lie on the line
    /// between them; a point that loses less than a wider one counts as that one. Points that are not finite, or not
    /// narrower than the one before, are left out.
    pub fn of(width: usize, points: &[(usize, f64)]) -> Self {
        let mut known = vec![Step { width, loss: 0.0 }];
        for &(at, loss) in points {
            let last = known[known.len() - 1];
            if at < last.width && loss.is_finite() {
                known.push(Step { width: at, loss: loss.max(last.loss) });
            }
        }
        let narrowest = known[known.len() - 1].width;
        let mut steps: Vec<Step> = Vec::new();
        let widths = widths(width).into_iter().chain(known.iter().map(|step| step.width));
        let mut widths: Vec<usize> = widths.filter(|w| *w >= narrowest).collect();
        widths.sort_unstable_by(|a, b| b.cmp(a));
        widths.dedup();
        for width in widths {
            steps.push(Step { width, loss: between(&known, width) });
        }
        Self { steps }
    }

    /// From whole to narrow; at least one.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The step at `index`, or the narrowest.
    pub fn step(&self, index: usize) -> Step {
        self.steps.get(index).or(self.steps.last()).copied().unwrap_or(Step { width: 0, loss: 0.0 })
    }

    /// Index of the narrowest step that still keeps `width` units.
    pub fn at_least(&self, width: usize) -> usize {
        self.steps.iter().rposition(|step| step.width >= width).unwrap_or(0)
    }

    /// With every loss raised to `exponent`: what is added up then counts large losses for more (above 1) or for
    /// less (below 1).
    #[must_use]
    pub fn raised(&self, exponent: f64) -> Self {
        let raise = |s: &Step| Step { width: s.width, loss: s.loss.powf(exponent) };
        Self { steps: self.steps.iter().map(raise).collect() }
    }
}

/// Widths narrower than `width` at which a group is measured: [`SAMPLED`], aligned, each once.
pub fn sampled_widths(width: usize) -> Vec<usize> {
    let mut widths: Vec<usize> = SAMPLED.iter().map(|share| aligned_keep(width, *share)).collect();
    widths.retain(|w| *w < width);
    widths.dedup();
    widths
}

/// Aligned widths from `width` down, at most [`STEPS`].
fn widths(width: usize) -> Vec<usize> {
    let blocks = width / alignment(width).max(1);
    let mut all = vec![width];
    if blocks <= STEPS {
        all.extend((1..=blocks).rev().map(|block| block * alignment(width)));
    } else {
        let steps = (NARROWEST..STEPS).rev();
        all.extend(steps.map(|step| aligned_keep(width, step as f64 / STEPS as f64)));
    }
    all.dedup();
    all
}

/// The loss of `width` on the line between its neighbours among `known`.
pub(crate) fn between(known: &[Step], width: usize) -> f64 {
    let above = known.iter().rfind(|step| step.width >= width);
    let below = known.iter().find(|step| step.width <= width);
    match (above, below) {
        (Some(a), Some(b)) if a.width > b.width => {
            let share = (a.width - width) as f64 / (a.width - b.width) as f64;
            a.loss + share * (b.loss - a.loss)
        }
        (Some(step), _) | (None, Some(step)) => step.loss,
        (None, None) => 0.0,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sampled_widths_are_aligned_and_each_is_there_once() {
        assert_eq!(sampled_widths(512), vec![448, 384, 256, 128, 64]);
        assert_eq!(sampled_widths(64), vec![48, 32, 16]);
        assert_eq!(sampled_widths(16), vec![8]);
        assert_eq!(sampled_widths(7), vec![6, 4, 2, 1]);
        assert!(sampled_widths(1).is_empty());
    }

    #[test]
    fn losses_lie_on_the_line_between_the_points_and_never_fall() {
        let menu = Menu::of(64, &[(48, 0.2), (32, 0.1), (16, 1.0)]);
        let steps: Vec<(usize, f64)> = menu.steps().iter().map(|s| (s.width, s.loss)).collect();
        assert_eq!(steps, [(64, 0.0), (48, 0.2), (32, 0.2), (16, 1.0)]);
        let fine = Menu::of(512, &[(256, 1.0)]);
        assert_eq!(fine.step(1).width, 480);
        assert!((fine.step(1).loss - 0.125).abs() < 1e-12);
        assert_eq!(fine.steps().last().unwrap().width, 256);
        assert_eq!(fine.at_least(400), 3);
    }

    #[test]
    fn a_group_without_points_stays_whole() {
        let menu = Menu::of(5, &[(5, 1.0), (3, f64::NAN)]);
        assert_eq!(menu.steps(), [Step { width: 5, loss: 0.0 }]);
    }

    proptest! {
        #[test]
        fn every_step_is_aligned_narrower_and_no_better(
            width in 1usize..3000,
            losses in prop::collection::vec(0.0f64..10.0, 5),
        ) {
            let points: Vec<_> = sampled_widths(width).into_iter().zip(losses).collect();
            let menu = Menu::of(width, &points);
            prop_assert_eq!(menu.steps()[0], Step { width, loss: 0.0 });
            prop_assert!(menu.steps().len() <= STEPS);
            for pair in menu.steps().windows(2) {
                prop_assert!(pair[1].width < pair[0].width && pair[1].loss >= pair[0].loss);
                prop_assert_eq!(pair[1].width % alignment(width), 0);
            }
        }
    }
}
