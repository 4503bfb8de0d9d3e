//! What one more inference costs: how the power of windows rises with the rate of inferences.
//!
//! ```text
//! power of a window = power at rest + energy of an inference * inferences a second
//! ```
//!
//! Milliwatts over inferences a second are millijoules. Where the power at rest is configured the line
//! goes through it; otherwise windows without inferences hold it down, or rates that differ do. The
//! energy is the slope by least squares and its uncertainty the slope's standard error, which grows with
//! everything else that the board did meanwhile. What the board always does beside an inference is
//! charged to it.

use std::collections::VecDeque;

use super::line::Fit;

/// Windows with inferences that are remembered, and as many without.
const MAX_WINDOWS: usize = 30;

/// What one more inference costs, in millijoules.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Marginal {
    /// The energy, never negative.
    pub energy_mj: f64,
    /// Its standard error; `None` with so few windows that there is nothing to judge it by.
    pub error_mj: Option<f64>,
}

/// The last windows, as inferences a second and milliwatts.
#[derive(Debug, Default)]
pub(super) struct Windows {
    idle: VecDeque<f64>,
    loaded: VecDeque<(f64, f64)>,
}

impl Windows {
    #[allow(clippy::cast_precision_loss)]
    pub(super) fn push(&mut self, power_mw: f64, seconds: f64, inferences: u64) {
        if seconds <= 0.0 || !power_mw.is_finite() {
            return;
        }
        if inferences == 0 {
            self.idle.push_back(power_mw);
        } else {
            self.loaded.push_back((inferences as f64 / seconds, power_mw));
        }
        while self.idle.len() > MAX_WINDOWS {
            self.idle.pop_front();
        }
        while self.loaded.len() > MAX_WINDOWS {
            self.loaded.pop_front();
        }
    }

    /// Other workers cost something else.
    pub(super) fn forget_inferences(&mut self) {
        self.loaded.clear();
    }

    /// The energy of an inference; `None` where the windows do not determine it.
    pub(super) fn marginal(&self, idle_mw: Option<f64>) -> Option<Marginal> {
        if self.loaded.is_empty() {
            return None;
        }
        let marginal = match idle_mw {
            Some(idle) => self.above(idle)?,
            None => {
                let idle = self.idle.iter().map(|power| (0.0, *power));
                let line = Fit::of(idle.chain(self.loaded.iter().copied())).line()?;
                Marginal { energy_mj: line.slope, error_mj: line.slope_error }
            }
        };
        let energy_mj = marginal.energy_mj.max(0.0);
        energy_mj.is_finite().then_some(Marginal { energy_mj, ..marginal })
    }

    /// The slope of the line through the power at rest: `Σ x (y - idle) / Σ x²`, with one number
    /// estimated from n windows.
    #[allow(clippy::cast_precision_loss)]
    fn above(&self, idle_mw: f64) -> Option<Marginal> {
        let sum = |of: &dyn Fn(f64, f64) -> f64| {
            self.loaded.iter().map(|(x, power)| of(*x, power - idle_mw)).sum::<f64>()
        };
        let xx = sum(&|x, _| x * x);
        let energy_mj = sum(&|x, y| x * y) / xx;
        let left = sum(&|x, y| (y - energy_mj * x).powi(2));
        let freedom = self.loaded.len() - 1;
        let error_mj = (freedom > 0).then(|| (left / freedom as f64 / xx).sqrt());
        (xx > 0.0).then_some(Marginal { energy_mj, error_mj })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-6 * b.abs().max(1.0)
    }

    /// Ten seconds each.
    fn windows(entries: &[(f64, u64)]) -> Windows {
        let mut windows = Windows::default();
        entries.iter().for_each(|(power, inferences)| windows.push(*power, 10.0, *inferences));
        windows
    }

    #[test]
    fn energy_above_rest_is_shared_by_the_inferences_and_never_negative() {
        let of = |power, idle| windows(&[(power, 100)]).marginal(Some(idle)).unwrap();
        assert_eq!(of(3000.0, 1000.0), Marginal { energy_mj: 200.0, error_mj: None });
        assert!(close(of(900.0, 1000.0).energy_mj, 0.0));
        assert_eq!(windows(&[(3000.0, 0)]).marginal(Some(1000.0)), None, "no inferences");
        assert_eq!(windows(&[(f64::NAN, 9)]).marginal(Some(1000.0)), None);
        assert_eq!(windows(&[(3000.0, 100)]).marginal(None), None, "nothing to compare with");
    }

    #[test]
    fn the_error_is_what_windows_differ_by() {
        // 10 a second; 190, 200 and 210 mJ each: residuals of 100 mW, sqrt((2 * 100²) / 2 / 300).
        let noisy = windows(&[(2900.0, 100), (3000.0, 100), (3100.0, 100)]);
        let marginal = noisy.marginal(Some(1000.0)).unwrap();
        assert!(close(marginal.energy_mj, 200.0), "{marginal:?}");
        assert!(close(marginal.error_mj.unwrap(), (10_000.0_f64 / 300.0).sqrt()), "{marginal:?}");
        let calm = windows(&[(3000.0, 100), (3000.0, 100)]).marginal(Some(1000.0)).unwrap();
        assert!(close(calm.error_mj.unwrap(), 0.0));
    }

    #[test]
    fn without_a_power_at_rest_rates_that_differ_tell_it() {
        let marginal = windows(&[(1000.0, 0), (2000.0, 50), (3000.0, 100)]).marginal(None).unwrap();
        assert!(close(marginal.energy_mj, 200.0), "{marginal:?}");
        assert!(close(marginal.error_mj.unwrap(), 0.0), "{marginal:?}");
        assert_eq!(windows(&[(2000.0, 50), (2100.0, 50)]).marginal(None), None, "one rate");
        let mut other = windows(&[(1000.0, 0), (2000.0, 50)]);
        other.forget_inferences();
        assert_eq!(other.marginal(None), None, "of other workers");
    }
}
