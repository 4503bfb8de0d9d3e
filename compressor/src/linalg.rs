//! Dense matrices in f64, row-major, as far as second-order scores and repairs need them.

use ndarray::{ArrayView2, ArrayViewMut2, linalg::general_mat_mul};

/// A symmetric matrix, stored whole.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Square {
    n: usize,
    values: Vec<f64>,
}

impl Square {
    /// Zero, `n` by `n`.
    pub(crate) fn zero(n: usize) -> Self {
        Self { n, values: vec![0.0; n * n] }
    }

    /// Rows (and columns).
    pub(crate) fn size(&self) -> usize {
        self.n
    }

    /// The element at row `i` and column `j`.
    pub(crate) fn at(&self, i: usize, j: usize) -> f64 {
        self.values[i * self.n + j]
    }

    /// Row `i`.
    pub(crate) fn row(&self, i: usize) -> &[f64] {
        &self.values[i * self.n..(i + 1) * self.n]
    }

    /// The element at row `i` and column `j`, read from the upper triangle.
    pub(crate) fn upper(&self, i: usize, j: usize) -> f64 {
        self.at(i.min(j), i.max(j))
    }

    /// Row `i`, read from the upper triangle.
    pub(crate) fn upper_row(&self, i: usize) -> Vec<f64> {
        (0..i).map(|j| self.at(j, i)).chain(self.row(i)[i..].iter().copied()).collect()
    }

    /// Rows and columns `indices`, read from the upper triangle.
    pub(crate) fn upper_block(&self, indices: &[usize]) -> Self {
        let values = indices.iter().flat_map(|&i| indices.iter().map(move |&j| self.upper(i, j)));
        Self { n: indices.len(), values: values.collect() }
    }

    /// Row `i`. The caller keeps the matrix symmetric.
    pub(crate) fn row_mut(&mut self, i: usize) -> &mut [f64] {
        &mut self.values[i * self.n..(i + 1) * self.n]
    }

    /// Whether every element is a finite number.
    pub(crate) fn is_finite(&self) -> bool {
        self.values.iter().all(|v| v.is_finite())
    }

    /// Adds RᵀR, of `rows` whose length is a multiple of the size.
    #[cfg(test)]
    pub(crate) fn add_rows(&mut self, rows: &[f64]) {
        let count = rows.len() / self.n.max(1);
        let views = (
            ArrayView2::from_shape((count, self.n), &rows[..count * self.n]),
            ArrayViewMut2::from_shape((self.n, self.n), &mut self.values),
        );
        if let (Ok(r), Ok(mut sum)) = views {
            general_mat_mul(1.0, &r.t(), &r, 1.0, &mut sum);
        }
    }

    /// Adds RᵀR of a few `rows` whose length is a multiple of the size. The products are summed in f32, which a few rows
    /// allow, and in `room`, which is made as large as it must be.
    pub(crate) fn add_few(&mut self, rows: &[f32], room: &mut Vec<f32>) {
        let count = rows.len() / self.n.max(1);
        room.resize(self.values.len(), 0.0);
        let views = (
            ArrayView2::from_shape((count, self.n), &rows[..count * self.n]),
            ArrayViewMut2::from_shape((self.n, self.n), &mut *room),
        );
        if let (Ok(r), Ok(mut sum)) = views {
            general_mat_mul(1.0, &r.t(), &r, 0.0, &mut sum);
            for (value, few) in self.values.iter_mut().zip(room) {
                *value += f64::from(*few);
            }
        }
    }

    /// W·Wᵀ of the `n` rows of `w`.
    pub(crate) fn of_products(n: usize, w: &[f64]) -> Self {
        let mut product = Self::zero(n);
        let views = (
            ArrayView2::from_shape((n, w.len() / n.max(1)), w),
            ArrayViewMut2::from_shape((n, n), &mut product.values),
        );
        if let (Ok(w), Ok(mut sum)) = views {
            general_mat_mul(1.0, &w, &w.t(), 0.0, &mut sum);
        }
        product
    }

    /// Adds `factor · other`.
    pub(crate) fn add(&mut self, factor: f64, other: &Self) {
        axpy(factor, &other.values, &mut self.values);
    }

    /// Multiplies every element by `factor`.
    pub(crate) fn scale(&mut self, factor: f64) {
        scale(factor, &mut self.values);
    }

    /// Mean of the diagonal.
    pub(crate) fn mean_diagonal(&self) -> f64 {
        (0..self.n).map(|i| self.at(i, i)).sum::<f64>() / self.n.max(1) as f64
    }

    /// Adds `shift` to the diagonal.
    pub(crate) fn add_diagonal(&mut self, shift: f64) {
        for i in 0..self.n {
            self.values[i * self.n + i] += shift;
        }
    }

    /// tr(A·B).
    pub(crate) fn trace_with(&self, other: &Self) -> f64 {
        dot(&self.values, &other.values)
    }

    /// Rows and columns `indices`.
    pub(crate) fn block(&self, indices: &[usize]) -> Self {
        Self { n: indices.len(), values: self.rectangle(indices, indices) }
    }

    /// Rows `rows` and columns `columns`.
    pub(crate) fn rectangle(&self, rows: &[usize], columns: &[usize]) -> Vec<f64> {
        rows.iter().flat_map(|&i| columns.iter().map(move |&j| self.at(i, j))).collect()
    }

    /// X with A·X = B, for `b` of `m` columns, where A is safely positive definite; else none.
    pub(crate) fn solve(&self, mut b: Vec<f64>, m: usize) -> Option<Vec<f64>> {
        let mut factor = self.values.clone();
        cholesky(&mut factor, self.n).then_some(())?;
        substitute(&factor, self.n, &mut b, m);
        Some(b)
    }

    /// The inverse, where the matrix is safely positive definite; else none.
    pub(crate) fn inverse(&self) -> Option<Self> {
        if let [only] = self.values.as_slice() {
            return (*only > 0.0).then(|| Self { n: 1, values: vec![1.0 / only] });
        }
        let n = self.n;
        let mut identity = Self::zero(n);
        identity.add_diagonal(1.0);
        let values = self.solve(identity.values, n)?;
        Some(Self { n, values })
    }
}

/// Factors the symmetric matrix whose lower triangle is in `a` (`n` by `n`, row-major) into L·Lᵀ in
/// place. False where a pivot is not safely positive.
pub(crate) fn cholesky(a: &mut [f64], n: usize) -> bool {
    let largest = (0..n).map(|i| a[i * n + i].abs()).fold(0.0, f64::max);
    let smallest = largest * n as f64 * f64::EPSILON;
    for i in 0..n {
        let (above, below) = a.split_at_mut(i * n);
        let row = &mut below[..n];
        for j in 0..i {
            let other = &above[j * n..j * n + j + 1];
            row[j] = (row[j] - dot(&row[..j], &other[..j])) / other[j];
        }
        let pivot = row[i] - dot(&row[..i], &row[..i]);
        if pivot.is_nan() || pivot <= smallest {
            return false;
        }
        row[i] = pivot.sqrt();
    }
    true
}

/// Solves L·Lᵀ·D = B in place of `b` (`n` by `m`, row-major).
pub(crate) fn substitute(l: &[f64], n: usize, b: &mut [f64], m: usize) {
    for i in 0..n {
        let (done, rest) = b.split_at_mut(i * m);
        let row = &mut rest[..m];
        for j in 0..i {
            axpy(-l[i * n + j], &done[j * m..(j + 1) * m], row);
        }
        scale(1.0 / l[i * n + i], row);
    }
    for i in (0..n).rev() {
        let (head, done) = b.split_at_mut((i + 1) * m);
        let row = &mut head[i * m..];
        for j in i + 1..n {
            let at = (j - i - 1) * m;
            axpy(-l[j * n + i], &done[at..at + m], row);
        }
        scale(1.0 / l[i * n + i], row);
    }
}

pub(crate) fn axpy(a: f64, x: &[f64], y: &mut [f64]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

pub(crate) fn scale(a: f64, y: &mut [f64]) {
    for v in y {
        *v *= a;
    }
}

/// Four partial sums, so that the compiler can use vectors.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a4, a_rest) = a.as_chunks::<4>();
    let (b4, b_rest) = b.as_chunks::<4>();
    let mut sums = [0.0; 4];
    for (x, y) in a4.iter().zip(b4) {
        for (sum, (x, y)) in sums.iter_mut().zip(x.iter().zip(y)) {
            *sum += x * y;
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// `rows` by `n` numbers about zero.
    fn random(rows: usize, n: usize, seed: u64) -> Vec<f64> {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
        };
        (0..rows * n).map(|_| next()).collect()
    }

    #[test]
    fn an_inverse_times_its_matrix_is_the_identity() {
        let mut a = Square::zero(5);
        a.add_rows(&random(20, 5, 3));
        let inverse = a.inverse().unwrap();
        for i in 0..5 {
            for j in 0..5 {
                let sum: f64 = (0..5).map(|l| a.at(i, l) * inverse.at(l, j)).sum();
                assert!((sum - f64::from(u8::from(i == j))).abs() < 1e-9, "{i} {j} {sum}");
            }
        }
    }

    #[test]
    fn products_of_rows_and_of_columns_are_those_of_the_transpose() {
        let w = random(3, 4, 9);
        let transposed: Vec<f64> =
            (0..4).flat_map(|j| (0..3).map(move |i| (i, j))).map(|(i, j)| w[i * 4 + j]).collect();
        let mut by_columns = Square::zero(3);
        by_columns.add_rows(&transposed);
        let by_rows = Square::of_products(3, &w);
        for i in 0..3 {
            for j in 0..3 {
                assert!((by_rows.at(i, j) - by_columns.at(i, j)).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn what_is_not_positive_definite_has_no_inverse() {
        assert!(Square::zero(2).inverse().is_none() && Square::zero(1).inverse().is_none());
        let mut singular = Square::zero(2);
        singular.add_rows(&[1.0, 1.0]);
        assert!(singular.inverse().is_none());
    }
}
