//! The channel Gram matrix of an activation: how its channels go together, over samples and all other axes.
//!
//! With x the channels at one place, `H = E[x·xᵀ]` (C by C), or about the mean where what reads the activation has
//! a bias to take up means. It is gathered as samples stream by, in f64 but for sums over a block
//! of rows, which are about the first row; memory is one C by C matrix, whatever the samples. It says how well the channels that stay can stand in for those that go: with K kept, R removed and λ a
//! ridge,
//!
//! ```text
//! D = (H_KK + λ·I)⁻¹ · H_KR        x_R ≈ Dᵀ·x_K + (μ_R − Dᵀ·μ_K)
//! ```
//!
//! so that weights W that read the channels become `W_K + D·W_R` (GRAIL, arXiv 2602.23795). The ridge pulls towards
//! the plain cut. Of a convolution all taps of a channel are one weight here: the moments of its windows, which the
//! full least squares of [`crate::refit`] use, have a square of the taps as many elements. Knows nothing of graphs.

use crate::linalg::{Square, axpy};

/// The ridge, as a share of the mean diagonal of H.
pub const DAMPING: f64 = 1e-2;
/// The widest axis whose Gram matrix is kept.
pub const MAX_CHANNELS: usize = 4096;
/// The most multiply-adds spent on one Gram matrix, where that leaves rows enough.
const WORK: f64 = 1e9;
/// The most rows that are used.
const MOST_ROWS: f64 = 1e5;
/// The least rows that are used, where there are as many: for each channel, and in all.
const LEAST_ROWS: (usize, usize) = (4, 4096);
/// Rows gathered before they are multiplied.
const BLOCK: usize = 128;
/// Times that a ridge may grow tenfold where the channels depend on each other.
const GROWTHS: usize = 8;

/// Rows that are used for the moments of `width` channels, where there are as many. Scores of the second order go by
/// small differences between channels, and need more of them than a repair does.
pub fn rows_wanted(width: usize) -> usize {
    let affordable = (WORK / (width.max(1) as f64).powi(2)).min(MOST_ROWS);
    // Positive, and not large.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let affordable = affordable as usize;
    affordable.max(LEAST_ROWS.0 * width).max(LEAST_ROWS.1)
}

/// Second moments of an activation along one axis.
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelGram {
    rows: u64,
    /// The first row. All others are taken as what they differ from it by, which f32 holds where their means are large.
    origin: Vec<f32>,
    squares: Square,
    sums: Vec<f64>,
    /// Rows that are not in the moments yet, fewer than a block.
    waiting: Vec<f32>,
}

impl ChannelGram {
    /// Of an axis of `width`, with nothing seen.
    pub fn new(width: usize) -> Self {
        let (origin, waiting) = (Vec::new(), Vec::new());
        Self { rows: 0, origin, squares: Square::zero(width), sums: vec![0.0; width], waiting }
    }

    /// Channels.
    pub fn width(&self) -> usize {
        self.squares.size()
    }

    /// Rows seen.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Adds rows of `width` channels each.
    pub fn push(&mut self, rows: &[f32]) {
        let width = self.width().max(1);
        let rows = &rows[..rows.len() / width * width];
        self.rows += (rows.len() / width) as u64;
        let (first, rest) = rows.split_at(rows.len().min(BLOCK * width - self.waiting.len()));
        self.waiting.extend_from_slice(first);
        let mut room = Vec::new();
        if self.waiting.len() == BLOCK * width {
            let waiting = std::mem::take(&mut self.waiting);
            self.add(&waiting, &mut room);
        }
        let blocks = rest.chunks_exact(BLOCK * width);
        self.waiting.extend_from_slice(blocks.remainder());
        blocks.for_each(|block| self.add(block, &mut room));
    }

    fn add(&mut self, rows: &[f32], room: &mut Vec<f32>) {
        let width = self.sums.len().max(1);
        if let (true, Some(first)) = (self.origin.is_empty(), rows.chunks_exact(width).next()) {
            self.origin = first.to_vec();
        }
        let moved = rows.iter().zip(self.origin.iter().cycle()).map(|(v, origin)| v - origin);
        let moved: Vec<f32> = moved.collect();
        for row in moved.chunks_exact(width) {
            self.sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(*v));
        }
        self.squares.add_few(&moved, room);
    }

    /// Multiplies what waits into the moments; call it when the last row is in.
    pub fn settle(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        self.add(&waiting, &mut Vec::new());
    }

    /// Means of the channels.
    fn means(&self) -> Vec<f64> {
        let moved = self.moved();
        self.origin.iter().zip(moved).map(|(origin, moved)| f64::from(*origin) + moved).collect()
    }

    /// Means of what the rows differ from the first one by.
    fn moved(&self) -> Vec<f64> {
        self.sums.iter().map(|s| s / self.rows.max(1) as f64).collect()
    }

    /// H, about the means if `centred`.
    ///
    /// # Errors
    /// A sentence: nothing was seen, what was is not finite, or it never differs from zero (or from its mean).
    pub(crate) fn moments(&self, centred: bool) -> Result<Square, String> {
        if self.rows == 0 {
            return Err("its activations were not observed".into());
        }
        let mut moments = self.squares.clone();
        moments.scale(1.0 / self.rows as f64);
        let (moved, means) = (self.moved(), self.means());
        for i in 0..self.width() {
            axpy(-moved[i], &moved, moments.row_mut(i));
            if !centred {
                axpy(means[i], &means, moments.row_mut(i));
            }
        }
        if !moments.is_finite() {
            return Err("its activations are not finite".into());
        }
        if moments.mean_diagonal() <= 0.0 {
            return Err("its activations never change".into());
        }
        Ok(moments)
    }

    /// How the channels `keep` stand in for the channels `gone`.
    ///
    /// # Errors
    /// As `moments`; or a channel is outside of the width, or no ridge makes the system solvable.
    pub(crate) fn stand_in(
        &self,
        keep: &[usize],
        gone: &[usize],
        centred: bool,
    ) -> Result<StandIn, String> {
        if keep.iter().chain(gone).any(|c| *c >= self.width()) {
            return Err(format!("a channel is outside of the {} that were observed", self.width()));
        }
        let moments = self.moments(centred)?;
        let (factors, ridge) = solved(&moments, keep, gone)?;
        let left = left(&moments, keep, gone, &factors, ridge * moments.mean_diagonal());
        let means = self.means();
        let constants = centred.then(|| {
            let mut left: Vec<f64> = gone.iter().map(|c| means[*c]).collect();
            for (row, channel) in factors.chunks_exact(gone.len().max(1)).zip(keep) {
                axpy(-means[*channel], row, &mut left);
            }
            left
        });
        let note = note(self.rows, self.width(), ridge);
        Ok(StandIn { factors, constants, moments, left, ridge, rows: self.rows, note })
    }
}

/// How kept channels stand in for removed ones.
#[derive(Debug, Clone)]
pub(crate) struct StandIn {
    /// D, kept by removed.
    pub(crate) factors: Vec<f64>,
    /// What of the removed channels is constant, where a bias takes it up.
    pub(crate) constants: Option<Vec<f64>>,
    /// H, without the ridge.
    pub(crate) moments: Square,
    /// Moments of what the removed channels have that the kept ones do not give: those of x_R − Dᵀ·x_K.
    pub(crate) left: Square,
    /// The ridge used, as a share of the mean diagonal.
    pub(crate) ridge: f64,
    /// Rows that H was taken from.
    pub(crate) rows: u64,
    /// Said where the rows do not span every direction, or the ridge had to grow.
    pub(crate) note: Option<String>,
}

/// D and the ridge that was used: it grows tenfold until the system is positive definite in f64.
fn solved(moments: &Square, keep: &[usize], gone: &[usize]) -> Result<(Vec<f64>, f64), String> {
    let (inner, right) = (moments.block(keep), moments.rectangle(keep, gone));
    let mut ridge = DAMPING;
    for _ in 0..GROWTHS {
        let mut damped = inner.clone();
        damped.add_diagonal(ridge * moments.mean_diagonal());
        if let Some(factors) = damped.solve(right.clone(), gone.len()) {
            return Ok((factors, ridge));
        }
        ridge *= 10.0;
    }
    Err("its channels are too dependent: no ridge made the system solvable".into())
}

/// H_RR − 2·H_RK·D + Dᵀ·H_KK·D, which is H_RR − (H_RK + λ·Dᵀ)·D for the D that was solved for.
fn left(moments: &Square, keep: &[usize], gone: &[usize], factors: &[f64], shift: f64) -> Square {
    let mut left = moments.block(gone);
    for (row, channel) in factors.chunks_exact(gone.len().max(1)).zip(keep) {
        for (at, removed) in gone.iter().enumerate() {
            axpy(-(moments.at(*channel, *removed) + shift * row[at]), row, left.row_mut(at));
        }
    }
    left
}

/// W·Wᵀ of a weight whose `axis` are the `channels`, everything else flattened. Of a convolution in groups (outputs
/// on axis 0), channels of different groups share no output. None where the weight does not lie so.
pub(crate) fn products(
    values: &[f32],
    dims: &[usize],
    axis: usize,
    groups: usize,
    channels: usize,
) -> Option<Square> {
    let each = *dims.get(axis)?;
    if each == 0 || each * groups != channels || values.len() != dims.iter().product::<usize>() {
        return None;
    }
    let inner: usize = dims.iter().skip(axis + 1).product();
    let blocks = values.len() / (each * inner).max(1);
    let mut whole = Square::zero(channels);
    for group in 0..groups {
        let own = group * blocks / groups..(group + 1) * blocks / groups;
        let row = |channel: usize| {
            own.clone().flat_map(move |block| {
                let from = (block * each + channel) * inner;
                values[from..from + inner].iter().map(|v| f64::from(*v))
            })
        };
        let rows: Vec<f64> = (0..each).flat_map(row).collect();
        let own = Square::of_products(each, &rows);
        for i in 0..each {
            whole.row_mut(group * each + i)[group * each..][..each].copy_from_slice(own.row(i));
        }
    }
    Some(whole)
}

fn note(rows: u64, width: usize, ridge: f64) -> Option<String> {
    if ridge > DAMPING {
        return Some(format!(
            "the channels are nearly dependent: the ridge grew from {DAMPING:.0e} to {ridge:.0e}"
        ));
    }
    (rows < width as u64).then(|| {
        format!("{rows} rows for {width} channels: what they do not show stays as the cut left it")
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Rows of four channels: 2 repeats 0, and 3 is twice channel 1 plus 5.
    fn dependent(rows: usize) -> Vec<f32> {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1u32 << 24) as f32 - 0.5
        };
        (0..rows)
            .flat_map(|_| {
                let (a, b) = (next(), next());
                [a, b, a, 2.0 * b + 5.0]
            })
            .collect()
    }

    #[test]
    fn a_channel_that_follows_from_another_is_stood_in_for_and_its_mean_goes_to_the_bias() {
        let mut gram = ChannelGram::new(4);
        gram.push(&dependent(400));
        gram.settle();
        let stand_in = gram.stand_in(&[0, 1], &[2, 3], true).unwrap();
        let wanted = [1.0, 0.0, 0.0, 2.0];
        for (factor, wanted) in stand_in.factors.iter().zip(wanted) {
            assert!((factor - wanted).abs() < 0.1, "{:?}", stand_in.factors);
        }
        let constants = stand_in.constants.unwrap();
        assert!(constants[0].abs() < 0.01 && (constants[1] - 5.0).abs() < 0.05, "{constants:?}");
        assert!(stand_in.note.is_none());
    }

    #[test]
    fn weights_of_groups_share_outputs_within_a_group_only() {
        // Two groups of two channels, one output each: [O, C/g, taps].
        let found = products(&[1., 2., 3., 4., 5., 6., 7., 8.], &[2, 2, 2], 1, 2, 4).unwrap();
        let wanted =
            [[5., 11., 0., 0.], [11., 25., 0., 0.], [0., 0., 61., 83.], [0., 0., 83., 113.]];
        for (i, row) in wanted.iter().enumerate() {
            assert_eq!(found.row(i), row);
        }
        // A matrix of inputs by outputs.
        let found = products(&[1., 2., 3., 4.], &[2, 2], 0, 1, 2).unwrap();
        assert_eq!((found.at(0, 1), found.at(1, 1)), (11.0, 25.0));
        assert!(products(&[1.0; 6], &[2, 3], 1, 1, 2).is_none());
    }

    #[test]
    fn what_is_left_are_the_moments_of_the_difference() {
        let mut gram = ChannelGram::new(4);
        let rows = dependent(200);
        gram.push(&rows);
        gram.settle();
        let (keep, gone) = ([0, 1], [2, 3]);
        let found = gram.stand_in(&keep, &gone, false).unwrap();
        let mut wanted = Square::zero(2);
        for row in rows.chunks(4) {
            let given = |r: usize| {
                (0..2).map(|k| found.factors[k * 2 + r] * f64::from(row[keep[k]])).sum::<f64>()
            };
            let off: Vec<f64> = (0..2).map(|r| f64::from(row[gone[r]]) - given(r)).collect();
            wanted.add_rows(&off);
        }
        for i in 0..2 {
            for j in 0..2 {
                let wanted = wanted.at(i, j) / 200.0;
                // Blocks of rows are summed in f32.
                assert!((found.left.at(i, j) - wanted).abs() < 1e-5, "{i} {j}");
            }
        }
    }

    /// Products of numbers far from zero, summed in f32, would leave nothing of a small variance.
    #[test]
    fn small_moments_about_large_means_are_kept() {
        let mut gram = ChannelGram::new(2);
        let rows: Vec<f32> = (0..1000u16)
            .flat_map(|i| [1000.0 + f32::from(i % 2), -2000.0 - f32::from(i % 2)])
            .collect();
        gram.push(&rows);
        gram.settle();
        let near = |found: f64, wanted: f64| (found / wanted - 1.0).abs() < 1e-6;
        let centred = gram.moments(true).unwrap();
        assert!(near(centred.at(0, 0), 0.25) && near(centred.at(0, 1), -0.25));
        let raw = gram.moments(false).unwrap();
        assert!(near(raw.at(0, 0), 1_001_000.5) && near(raw.at(0, 1), -(1000.5 * 2000.5 + 0.25)));
    }

    #[test]
    fn two_batches_give_what_one_gives() {
        let rows = dependent(300);
        let (mut whole, mut parts) = (ChannelGram::new(4), ChannelGram::new(4));
        whole.push(&rows);
        parts.push(&rows[..4 * 77]);
        parts.push(&rows[4 * 77..]);
        whole.settle();
        parts.settle();
        assert_eq!(whole, parts);
        assert_eq!(whole.rows(), 300);
    }

    #[test]
    fn fewer_rows_than_channels_are_said_and_nothing_seen_is_refused() {
        let mut gram = ChannelGram::new(4);
        assert!(gram.stand_in(&[0], &[1], false).unwrap_err().contains("not observed"));
        gram.push(&dependent(2));
        gram.settle();
        let note = gram.stand_in(&[0, 1], &[2], false).unwrap().note.unwrap();
        assert!(note.contains("2 rows for 4 channels"), "{note}");
        assert!(gram.stand_in(&[0], &[4], false).is_err());
        let mut still = ChannelGram::new(1);
        still.push(&[3.0, 3.0]);
        still.settle();
        assert!(still.moments(true).unwrap_err().contains("never change"));
        assert!(still.moments(false).is_ok());
    }
}
