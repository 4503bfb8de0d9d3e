//! Moments of an activation along one axis.

/// What is gathered of an activation along one axis, over everything else: how much, how large and how often above
/// zero each index is.
#[derive(Debug, Clone, PartialEq)]
pub struct AxisMoments {
    count: u64,
    sum: Vec<f64>,
    squares: Vec<f64>,
    absolute: Vec<f64>,
    positive: Vec<f64>,
}

impl AxisMoments {
    /// Of an axis of `width`, with nothing seen.
    pub fn new(width: usize) -> Self {
        Self {
            count: 0,
            sum: vec![0.0; width],
            squares: vec![0.0; width],
            absolute: vec![0.0; width],
            positive: vec![0.0; width],
        }
    }

    /// Adds a tensor of `shape`; false where `axis` does not have the width expected.
    pub fn push(&mut self, shape: &[usize], axis: usize, data: &[f32]) -> bool {
        if shape.get(axis) != Some(&self.sum.len()) {
            return false;
        }
        let inner: usize = shape[axis + 1..].iter().product();
        let width = self.sum.len();
        if inner == 0 || width == 0 {
            return true;
        }
        if inner == 1 {
            data.chunks(width).for_each(|row| self.push_row(row));
        } else {
            for (block, values) in data.chunks(inner).enumerate() {
                self.push_run(block % width, values);
            }
        }
        self.count += (data.len() / width) as u64;
        true
    }

    /// Adds one element at each index.
    fn push_row(&mut self, row: &[f32]) {
        let sums = self.sum.iter_mut().zip(&mut self.squares);
        let shares = self.absolute.iter_mut().zip(&mut self.positive);
        for ((v, (sum, squares)), (absolute, positive)) in row.iter().zip(sums).zip(shares) {
            let v = f64::from(*v);
            *sum += v;
            *squares += v * v;
            *absolute += v.abs();
            *positive += f64::from(u8::from(v > 0.0));
        }
    }

    /// Adds elements of one index.
    fn push_run(&mut self, at: usize, values: &[f32]) {
        for block in values.chunks(BLOCK) {
            let [moved, squares, absolute, positive] = sums(block, block[0]);
            let (n, first) = (block.len() as f64, f64::from(block[0]));
            self.sum[at] += moved + n * first;
            self.squares[at] += squares + first * (2.0 * moved + n * first);
            self.absolute[at] += absolute;
            self.positive[at] += positive;
        }
    }

    /// Elements seen at each index.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Mean of each index.
    pub fn means(&self) -> Vec<f64> {
        self.over_count(&self.sum)
    }

    /// Standard deviation of each index.
    pub fn deviations(&self) -> Vec<f64> {
        let n = self.count.max(1) as f64;
        self.sum
            .iter()
            .zip(&self.squares)
            .map(|(s, q)| (q / n - (s / n).powi(2)).max(0.0).sqrt())
            .collect()
    }

    /// Mean square E(x²) of each index.
    pub fn mean_squares(&self) -> Vec<f64> {
        self.over_count(&self.squares)
    }

    /// Mean absolute value E|x| of each index.
    pub fn mean_absolutes(&self) -> Vec<f64> {
        self.over_count(&self.absolute)
    }

    /// Share of elements above zero at each index: one less the average percentage of zeros behind a ReLU.
    pub fn positive_shares(&self) -> Vec<f64> {
        self.over_count(&self.positive)
    }

    fn over_count(&self, sums: &[f64]) -> Vec<f64> {
        let n = self.count.max(1) as f64;
        sums.iter().map(|s| s / n).collect()
    }
}

/// Elements that are summed in f32, before the sums go on in f64.
const BLOCK: usize = 128;
const LANES: usize = 8;

/// Of some elements v, about `about`: the sums of v - about, of its square, of |v|, and of those above zero. Eight
/// elements at a time, so that the compiler can use vectors; about one of them, so that f32 holds what they differ by.
fn sums(values: &[f32], about: f32) -> [f64; 4] {
    let (lanes, rest) = values.as_chunks();
    let mut sums = [[0f32; LANES]; 4];
    lanes.iter().for_each(|lane| add(&mut sums, lane, about));
    let mut all = sums.map(|lanes| lanes.iter().map(|v| f64::from(*v)).sum());
    for v in rest {
        let moved = f64::from(v - about);
        let own = [moved, moved * moved, f64::from(v.abs()), f64::from(u8::from(*v > 0.0))];
        all.iter_mut().zip(own).for_each(|(sum, own): (&mut f64, f64)| *sum += own);
    }
    all
}

#[inline]
fn add(sums: &mut [[f32; LANES]; 4], lane: &[f32; LANES], about: f32) {
    let [moved, squares, absolute, positive] = sums;
    for (i, v) in lane.iter().enumerate() {
        let d = v - about;
        moved[i] += d;
        squares[i] += d * d;
        absolute[i] += v.abs();
        positive[i] += if *v > 0.0 { 1.0 } else { 0.0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_taken_along_the_axis_and_over_everything_else() {
        let mut moments = AxisMoments::new(2);
        // Shape [2, 2, 2]: index 0 of axis 1 sees -1, 1, 3, -3; index 1 sees 5, 5, 5, 5.
        assert!(moments.push(&[2, 2, 2], 1, &[-1., 1., 5., 5., 3., -3., 5., 5.]));
        let near = |found: Vec<f64>, wanted: [f64; 2]| {
            assert!(found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?}");
        };
        near(moments.means(), [0.0, 5.0]);
        near(moments.deviations(), [5f64.sqrt(), 0.0]);
        near(moments.mean_squares(), [5.0, 25.0]);
        near(moments.mean_absolutes(), [2.0, 5.0]);
        near(moments.positive_shares(), [0.5, 1.0]);
        assert_eq!(moments.count(), 4);
        assert!(!moments.push(&[1, 3], 1, &[0.0; 3]));
    }

    /// Far from zero a sum of squares in f32 would leave nothing of a small variance.
    #[test]
    fn a_small_variance_about_a_large_mean_is_kept() {
        let data: Vec<f32> = (0..1001u16).map(|i| 1000.0 + f32::from(i % 2)).collect();
        let mut moments = AxisMoments::new(1);
        moments.push(&[1, 1, 1001], 1, &data);
        let (mean, deviation) = (moments.means()[0], moments.deviations()[0]);
        assert!((mean - 1000.0 - 500.0 / 1001.0).abs() < 1e-9, "{mean}");
        assert!((deviation - 0.5).abs() < 1e-6, "{deviation}");
    }

    #[test]
    fn two_batches_give_what_one_gives() {
        let data: Vec<f32> = (0..24u16).map(|i| f32::from(i * i % 7)).collect();
        let mut whole = AxisMoments::new(3);
        whole.push(&[8, 3], 1, &data);
        let mut parts = AxisMoments::new(3);
        parts.push(&[5, 3], 1, &data[..15]);
        parts.push(&[3, 3], 1, &data[15..]);
        assert_eq!(whole, parts);
    }
}
