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

    /// Adds elements of one index, in lanes that do not wait for each other.
    fn push_run(&mut self, at: usize, values: &[f32]) {
        let (lanes, rest) = values.as_chunks();
        let mut sums = Lanes::default();
        lanes.iter().for_each(|lane| sums.add(lane));
        // Zeros add nothing to any of the sums.
        let mut last = [0.0; LANES];
        last[..rest.len()].copy_from_slice(rest);
        sums.add(&last);
        self.sum[at] += sums.sum.iter().sum::<f64>();
        self.squares[at] += sums.squares.iter().sum::<f64>();
        self.absolute[at] += sums.absolute.iter().sum::<f64>();
        self.positive[at] += sums.positive.iter().sum::<f64>();
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

const LANES: usize = 8;

/// The sums of every eighth element each. All in f64, counts too, which it holds exactly: vectors of one kind.
#[derive(Default)]
struct Lanes {
    sum: [f64; LANES],
    squares: [f64; LANES],
    absolute: [f64; LANES],
    positive: [f64; LANES],
}

impl Lanes {
    fn add(&mut self, values: &[f32; LANES]) {
        for (i, v) in values.iter().enumerate() {
            let v = f64::from(*v);
            self.sum[i] += v;
            self.squares[i] += v * v;
            self.absolute[i] += v.abs();
            self.positive[i] += f64::from(u8::from(v > 0.0));
        }
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
