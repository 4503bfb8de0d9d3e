//! A straight line by least squares, and power as such a line over the processor's use.
//!
//! For points (x, y) with means x̄ and ȳ, Sxx = Σ(x - x̄)², Sxy = Σ(x - x̄)(y - ȳ):
//!
//! ```text
//! slope     = Sxy / Sxx          intercept = ȳ - slope x̄
//! residual  = sqrt(Σ(y - intercept - slope x)² / (n - 2))
//! error of the slope = residual / sqrt(Sxx)
//! ```
//!
//! Two points lie on a line whatever the truth is, so that they leave nothing to judge it by: the errors
//! are unknown then.

/// The most points that a [`Fit`] weighs; older ones fade.
const MOST_POINTS: f64 = 3600.0;
/// Points that make a line learned from a gauge worth more than a profile: a minute of them.
const FEWEST_POINTS: f64 = 60.0;
/// How far they must be spread: the standard deviation of the processor's use, 0 to 1.
const LEAST_SPREAD: f64 = 0.1;
/// The most points of a configured profile.
pub const MAX_PROFILE_POINTS: usize = 64;

/// A straight line through points.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line {
    /// Its value at zero.
    pub intercept: f64,
    /// What it rises by.
    pub slope: f64,
    /// How far points lie from it (standard deviation); `None` with two points alone.
    pub residual: Option<f64>,
    /// The standard error of its slope; likewise.
    pub slope_error: Option<f64>,
}

impl Line {
    /// Its value.
    #[must_use]
    pub fn at(&self, x: f64) -> f64 {
        self.intercept + self.slope * x
    }
}

/// Adds points up to a line.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Fit {
    n: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
    yy: f64,
}

impl Fit {
    pub(super) fn of(points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let mut fit = Self::default();
        points.into_iter().for_each(|(x, y)| fit.add(x, y));
        fit
    }

    /// Adds a point. Beyond [`MOST_POINTS`] all of them lose half of their weight, so that a board that
    /// changes is followed.
    pub(super) fn add(&mut self, x: f64, y: f64) {
        if self.n >= MOST_POINTS {
            (self.n, self.xx) = (self.n / 2.0, self.xx / 2.0);
            (self.xy, self.yy) = (self.xy / 2.0, self.yy / 2.0);
        }
        // Welford's update, which loses no digits to large means.
        self.n += 1.0;
        let (dx, dy) = (x - self.x, y - self.y);
        self.x += dx / self.n;
        self.y += dy / self.n;
        self.xx += dx * (x - self.x);
        self.xy += dx * (y - self.y);
        self.yy += dy * (y - self.y);
    }

    /// The line through them; `None` where they do not determine one.
    pub(super) fn line(&self) -> Option<Line> {
        if self.n < 2.0 || self.xx <= f64::EPSILON * self.n * (self.x * self.x).max(1e-12) {
            return None;
        }
        let slope = self.xy / self.xx;
        let left = (self.yy - slope * self.xy).max(0.0);
        let residual = (self.n > 2.5).then(|| (left / (self.n - 2.0)).sqrt());
        let line = Line {
            intercept: self.y - slope * self.x,
            slope,
            residual,
            slope_error: residual.map(|residual| residual / self.xx.sqrt()),
        };
        (line.intercept.is_finite() && line.slope.is_finite()).then_some(line)
    }

    /// The line of power over the processor's use, once there are points enough, far enough apart.
    pub(super) fn learned(&self) -> Option<Line> {
        let spread = self.n >= FEWEST_POINTS && (self.xx / self.n).sqrt() >= LEAST_SPREAD;
        self.line().filter(|line| spread && line.slope >= 0.0)
    }
}

/// The line through a profile: entries of `PERCENT:MILLIWATTS`, such as `25:2700`, where the first is
/// the processor's use.
///
/// # Errors
/// An entry that is not of that form, more than [`MAX_PROFILE_POINTS`], or points that determine no
/// line that rises.
pub fn profile(entries: &[String]) -> Result<Line, String> {
    if entries.len() > MAX_PROFILE_POINTS {
        return Err(format!(
            "{} points are over the limit of {MAX_PROFILE_POINTS} (MAX_PROFILE_POINTS)",
            entries.len()
        ));
    }
    let points = entries.iter().map(|entry| point(entry)).collect::<Result<Vec<_>, _>>()?;
    let line = Fit::of(points).line().ok_or("it takes two points or more of different use")?;
    if line.slope < 0.0 {
        return Err("the power falls where the use rises".to_owned());
    }
    Ok(line)
}

fn point(entry: &str) -> Result<(f64, f64), String> {
    let wrong = || format!("{entry:?} is not PERCENT:MILLIWATTS, such as \"25:2700\"");
    let (percent, mw) = entry.split_once(':').ok_or_else(wrong)?;
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|v| v.is_finite());
    let (percent, mw) = number(percent).zip(number(mw)).ok_or_else(wrong)?;
    if !(0.0..=100.0).contains(&percent) || mw < 0.0 {
        return Err(format!("{entry:?}: the use is from 0 to 100 and the power 0 or more"));
    }
    Ok((percent / 100.0, mw))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9 * b.abs().max(1.0)
    }

    #[test]
    fn the_line_and_its_errors_are_those_of_least_squares() {
        // Worked by hand: x̄ = 2, Sxx = 2, ȳ = 11/3, Sxy = 3, residuals 1/6, -1/3, 1/6.
        let line =
            Fit::of([(1.0, 2.0 + 1.0 / 3.0), (2.0, 3.0 + 1.0 / 3.0), (3.0, 5.0 + 1.0 / 3.0)]);
        let line = line.line().unwrap();
        assert!(close(line.slope, 1.5) && close(line.at(2.0), 11.0 / 3.0), "{line:?}");
        let residual = (1.0_f64 / 6.0).sqrt();
        assert!(close(line.residual.unwrap(), residual), "{line:?}");
        assert!(close(line.slope_error.unwrap(), residual / 2.0_f64.sqrt()), "{line:?}");
    }

    #[test]
    fn two_points_are_a_line_of_unknown_error_and_one_is_none() {
        let line = Fit::of([(0.0, 1600.0), (1.0, 5000.0)]).line().unwrap();
        assert!(close(line.at(0.5), 3300.0));
        assert_eq!((line.residual, line.slope_error), (None, None));
        assert_eq!(Fit::of([(0.3, 1.0)]).line(), None);
        assert_eq!(Fit::of([(0.3, 1.0), (0.3, 2.0), (0.3, 3.0)]).line(), None);
    }

    #[test]
    fn what_is_learned_needs_points_that_are_spread_and_follows_a_board_that_changes() {
        let at = |use_percent: u32, mw: f64| (f64::from(use_percent) / 100.0, mw);
        assert_eq!(Fit::of((0..300).map(|i| at(i % 3, 2000.0))).learned(), None, "always idle");
        assert_eq!(Fit::of((0..30).map(|i| at(i * 3, 2000.0))).learned(), None, "too few");
        let mut fit = Fit::of((0..8000).map(|i| at(i % 100, 1000.0 + 30.0 * f64::from(i % 100))));
        assert!((fit.learned().unwrap().at(0.5) - 2500.0).abs() < 0.01);
        (0..40_000_u32)
            .for_each(|i| fit.add(f64::from(i % 100) / 100.0, 4000.0 + f64::from(i % 100)));
        assert!(fit.learned().unwrap().at(0.5) > 3900.0);
    }

    #[test]
    fn a_profile_is_fitted_and_what_is_none_is_refused_by_name() {
        let entries = |text: &[&str]| text.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        let line = profile(&entries(&["0:1600", "50:3400", "100:5000"])).unwrap();
        assert!((line.intercept - 1633.3).abs() < 0.1 && close(line.slope, 3400.0), "{line:?}");
        assert!(line.residual.unwrap() > 0.0);
        for (wrong, why) in [
            (&["0:1600", "x"][..], "PERCENT:MILLIWATTS"),
            (&["0:1600", "130:2"], "from 0 to 100"),
            (&["50:1600"], "two points"),
            (&["0:5000", "100:1000"], "falls"),
        ] {
            let error = profile(&entries(wrong)).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let many = vec!["1:1".to_owned(); MAX_PROFILE_POINTS + 1];
        assert!(profile(&many).unwrap_err().contains("MAX_PROFILE_POINTS"));
    }
}
