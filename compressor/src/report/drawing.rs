//! Where the points of the report's drawings lie.

use serde::Serialize;

use super::{Curve, percent};
use crate::pipeline::{CandidateReport, Goal, Verdict};
use crate::search::milliseconds;

/// One candidate in the plane of latency and agreement.
#[derive(Debug, Serialize)]
pub(super) struct Point {
    x: f64,
    y: f64,
    label: String,
    class: &'static str,
    /// Whether no other is both faster and more like the original.
    front: bool,
}

/// Candidates by latency and agreement.
#[derive(Debug, Serialize)]
pub(super) struct Scatter {
    points: Vec<Point>,
    /// The front as the points of a line.
    front: String,
    budget_x: Option<f64>,
    floor_y: f64,
    x_max: String,
    y_min: String,
}

/// Points in a 100 by 60 plane: latency to the right, agreement upwards. The original agrees with itself.
pub(super) fn scatter(
    original: &CandidateReport,
    candidates: &[CandidateReport],
    goal: &Goal,
) -> Scatter {
    let agreement = |c: &CandidateReport| c.quality.as_ref().map(|q| q.agreement.value);
    let judged = candidates.iter().filter(|c| c.label != original.label);
    let judged = judged.filter_map(|c| Some((c, agreement(c)?)));
    let points: Vec<(&CandidateReport, f64)> = judged.chain([(original, 1.0)]).collect();
    let budget = goal.latency_p95_us.map(|us| us as f64);
    let latencies = points.iter().map(|(c, _)| c.latency_p95_us.value).chain(budget);
    let x_max = latencies.fold(1.0, f64::max) * 1.08;
    let lowest = points.iter().map(|(_, a)| *a).fold(goal.agreement_min, f64::min);
    let y_min = (lowest - 0.03).max(0.0);
    let place_y = |a: f64| 60.0 * (1.0 - (a - y_min) / (1.0 - y_min).max(1e-6));
    let costs: Vec<(f64, f64)> =
        points.iter().map(|(c, agreement)| (c.latency_p95_us.value, *agreement)).collect();
    let point = |(c, agreement): &(&CandidateReport, f64)| Point {
        x: 100.0 * c.latency_p95_us.value / x_max,
        y: place_y(*agreement),
        label: format!(
            "{}: {}, {}",
            c.label,
            milliseconds(c.latency_p95_us.value),
            percent(*agreement)
        ),
        class: match c.verdict {
            Verdict::Chosen => "chosen",
            Verdict::Feasible | Verdict::NotJudged(_) => "feasible",
            Verdict::Refused(_) => "refused",
        },
        front: on_front((c.latency_p95_us.value, *agreement), &costs),
    };
    let points: Vec<Point> = points.iter().map(point).collect();
    Scatter {
        front: line(points.iter().filter(|p| p.front).map(|p| (p.x, p.y)).collect()),
        points,
        budget_x: budget.map(|us| 100.0 * us / x_max),
        floor_y: place_y(goal.agreement_min),
        x_max: milliseconds(x_max),
        y_min: percent(y_min),
    }
}

/// Whether none of `all` is at least as good in both (less of the first, more of the second) and better in one.
fn on_front(own: (f64, f64), all: &[(f64, f64)]) -> bool {
    let beats = |other: &(f64, f64)| other.0 <= own.0 && other.1 >= own.1 && *other != own;
    !all.iter().any(beats)
}

/// The points of an SVG line, from left to right.
fn line(mut points: Vec<(f64, f64)>) -> String {
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let points = points.iter().map(|(x, y)| format!("{x:.2},{y:.2}"));
    points.collect::<Vec<_>>().join(" ")
}

/// A sensitivity curve in a 100 by 40 plane: units kept to the right, loss upwards.
#[derive(Debug, Serialize)]
pub(super) struct Drawn {
    label: String,
    width: usize,
    line: String,
    points: Vec<Dot>,
    most: String,
}

/// A point of a curve.
#[derive(Debug, Serialize)]
struct Dot {
    x: f64,
    y: f64,
    label: String,
}

/// Curves in one scale, so that groups can be compared.
pub(super) fn drawn(curves: &[Curve]) -> Vec<Drawn> {
    let losses = curves.iter().flat_map(|curve| &curve.points).map(|(_, loss)| *loss);
    let most = losses.filter(|loss| loss.is_finite()).fold(0.0, f64::max).max(1e-12);
    curves.iter().map(|curve| draw(curve, most)).collect()
}

fn draw(curve: &Curve, most: f64) -> Drawn {
    let finite = curve.points.iter().filter(|(_, loss)| loss.is_finite());
    let points: Vec<Dot> = finite
        .map(|(kept, loss)| Dot {
            x: 100.0 * *kept as f64 / curve.width.max(1) as f64,
            y: 40.0 * (1.0 - loss.max(0.0) / most),
            label: format!("{kept} of {} units: {loss:.4}", curve.width),
        })
        .collect();
    Drawn {
        label: curve.label.clone(),
        width: curve.width,
        line: line(points.iter().map(|dot| (dot.x, dot.y)).collect()),
        points,
        most: format!("{most:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_is_what_nothing_beats() {
        let all = [(10.0, 0.9), (20.0, 0.95), (20.0, 0.8), (40.0, 1.0), (40.0, 0.95)];
        let front: Vec<bool> = all.iter().map(|own| on_front(*own, &all)).collect();
        assert_eq!(front, [true, true, false, true, false]);
    }

    #[test]
    fn curves_share_one_scale_and_leave_out_what_is_not_finite() {
        let curve = |label: &str, points: Vec<(usize, f64)>| Curve {
            label: label.into(),
            width: 64,
            points,
        };
        let drawn = drawn(&[
            curve("a", vec![(64, 0.0), (32, 0.5)]),
            curve("b", vec![(16, f64::NAN), (32, 1.0)]),
        ]);
        assert_eq!(drawn[0].line, "50.00,20.00 100.00,40.00");
        assert_eq!((drawn[1].line.as_str(), drawn[1].points.len()), ("50.00,0.00", 1));
    }
}
