//! Detection: how well scores part positives from negatives, whatever the threshold.

/// The score of an answer: the one number, or how much more the second of two classes has than the
/// first, which orders samples as the second class's probability does; `None` for other lengths.
pub fn score(answer: &[f32]) -> Option<f64> {
    let score = match answer {
        [score] => f64::from(*score),
        [no, yes] if no == yes => 0.0,
        [no, yes] => f64::from(*yes) - f64::from(*no),
        _ => return None,
    };
    Some(score)
}

/// Samples in the order of their scores, so that each resample costs one pass.
#[derive(Debug, Clone)]
pub struct Ranked {
    /// `(sample, positive, whether its score is the one before it)`, by ascending score.
    order: Vec<(usize, bool, bool)>,
}

impl Ranked {
    /// Of rows *(score, 1 for positive)*.
    pub fn new(rows: &[f64]) -> Self {
        let rows = rows.as_chunks::<2>().0;
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by(|a, b| rows[*a][0].total_cmp(&rows[*b][0]));
        let tied = |at: usize| at > 0 && rows[order[at]][0] == rows[order[at - 1]][0];
        let order =
            (0..order.len()).map(|at| (order[at], rows[order[at]][1] > 0.5, tied(at))).collect();
        Self { order }
    }

    /// Calls `each(positives, negatives)` for every distinct score, upwards.
    fn groups(&self, counts: &[u32], mut each: impl FnMut(f64, f64)) {
        let (mut positives, mut negatives) = (0.0, 0.0);
        for (sample, positive, tied) in &self.order {
            if !tied {
                each(positives, negatives);
                (positives, negatives) = (0.0, 0.0);
            }
            let count = f64::from(counts.get(*sample).copied().unwrap_or(0));
            if *positive {
                positives += count;
            } else {
                negatives += count;
            }
        }
        each(positives, negatives);
    }

    fn totals(&self, counts: &[u32]) -> (f64, f64) {
        let mut totals = (0.0, 0.0);
        self.groups(counts, |p, n| totals = (totals.0 + p, totals.1 + n));
        totals
    }

    /// P(a positive scores above a negative) + ½ P(they score alike); NaN without one of both.
    pub fn auc(&self, counts: &[u32]) -> f64 {
        let (mut won, mut below) = (0.0, 0.0);
        self.groups(counts, |positives, negatives| {
            won += positives * (below + 0.5 * negatives);
            below += negatives;
        });
        let (positives, negatives) = self.totals(counts);
        won / (positives * negatives)
    }

    /// The rate at which false accepts equal false rejects, where the line between two neighbouring
    /// thresholds crosses equality; NaN without one of both classes.
    pub fn eer(&self, counts: &[u32]) -> f64 {
        let (positives, negatives) = self.totals(counts);
        if positives == 0.0 || negatives == 0.0 {
            return f64::NAN;
        }
        // With the lowest threshold all are accepted: false rejects 0, false accepts 1.
        let (mut rejects, mut accepts) = (0.0, 1.0);
        let mut found = None;
        self.groups(counts, |p, n| {
            let next = (rejects + p / positives, accepts - n / negatives);
            if found.is_none() && next.0 >= next.1 {
                let (before, after) = (accepts - rejects, next.1 - next.0);
                let part = if before > after { before / (before - after) } else { 0.0 };
                found = Some(rejects + part * (next.0 - rejects));
            }
            (rejects, accepts) = next;
        });
        found.unwrap_or(f64::NAN)
    }
}
