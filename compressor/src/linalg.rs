//! Dense symmetric matrices in f64, as far as second-order scores and repairs need them.

use ndarray::{ArrayView2, ArrayViewMut2, linalg::general_mat_mul};

/// A symmetric matrix, stored whole, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Square {
    n: usize,
    values: Vec<f64>,
}

impl Square {
    /// Zero, `n` by `n`.
    pub fn zero(n: usize) -> Self {
        Self { n, values: vec![0.0; n * n] }
    }

    /// Rows (and columns).
    pub fn size(&self) -> usize {
        self.n
    }

    /// The element at row `i` and column `j`.
    pub fn at(&self, i: usize, j: usize) -> f64 {
        self.values[i * self.n + j]
    }

    /// Adds RᵀR, of `rows` whose length is a multiple of the size.
    pub fn add_rows(&mut self, rows: &[f64]) {
        let count = rows.len() / self.n.max(1);
        let (Ok(r), Ok(mut sum)) = (
            ArrayView2::from_shape((count, self.n), &rows[..count * self.n]),
            ArrayViewMut2::from_shape((self.n, self.n), &mut self.values),
        ) else {
            return;
        };
        general_mat_mul(1.0, &r.t(), &r, 1.0, &mut sum);
    }

    /// Mean of the diagonal.
    pub fn mean_diagonal(&self) -> f64 {
        (0..self.n).map(|i| self.at(i, i)).sum::<f64>() / self.n.max(1) as f64
    }

    /// Adds `shift` to the diagonal.
    pub fn add_diagonal(&mut self, shift: f64) {
        for i in 0..self.n {
            self.values[i * self.n + i] += shift;
        }
    }

    /// tr(WᵀAW) for W of `m` columns.
    pub fn energy(&self, weights: &[f64], m: usize) -> f64 {
        let mut total = 0.0;
        let mut product = vec![0.0; m];
        for i in 0..self.n {
            product.fill(0.0);
            for j in 0..self.n {
                let factor = self.at(i, j);
                let row = &weights[j * m..(j + 1) * m];
                product.iter_mut().zip(row).for_each(|(p, w)| *p += factor * w);
            }
            total += product.iter().zip(&weights[i * m..]).map(|(p, w)| p * w).sum::<f64>();
        }
        total
    }

    /// Rows and columns `indices`.
    pub fn block(&self, indices: &[usize]) -> Self {
        let values =
            indices.iter().flat_map(|&i| indices.iter().map(move |&j| self.at(i, j))).collect();
        Self { n: indices.len(), values }
    }

    /// A − A_:S·(A_SS)⁻¹·A_S:, with the rows and columns of S set to zero. None where A_SS is singular.
    pub fn eliminate(&mut self, indices: &[usize]) -> Option<()> {
        let inner = invert(&self.block(indices))?;
        let (n, s) = (self.n, indices.len());
        let rows: Vec<f64> =
            indices.iter().flat_map(|&i| self.values[i * n..(i + 1) * n].iter().copied()).collect();
        let mut scaled = vec![0.0; s * n];
        for i in 0..s {
            for j in 0..s {
                let factor = inner.at(i, j);
                let (to, from) = (&mut scaled[i * n..(i + 1) * n], &rows[j * n..(j + 1) * n]);
                to.iter_mut().zip(from).for_each(|(t, f)| *t += factor * f);
            }
        }
        let left = ArrayView2::from_shape((s, n), &rows).ok()?;
        let right = ArrayView2::from_shape((s, n), &scaled).ok()?;
        let mut all = ArrayViewMut2::from_shape((n, n), &mut self.values).ok()?;
        general_mat_mul(-1.0, &left.t(), &right, 1.0, &mut all);
        for &i in indices {
            for j in 0..n {
                self.values[i * n + j] = 0.0;
                self.values[j * n + i] = 0.0;
            }
        }
        Some(())
    }
}

/// The inverse of a symmetric positive definite matrix by Cholesky's factorisation; none where it is not.
pub fn invert(a: &Square) -> Option<Square> {
    let n = a.n;
    let mut factor = a.values.clone();
    cholesky(&mut factor, n).then_some(())?;
    // L⁻¹, row by row, then L⁻ᵀ·L⁻¹.
    let mut lower = vec![0.0; n * n];
    for i in 0..n {
        let (done, rest) = lower.split_at_mut(i * n);
        let row = &mut rest[..n];
        for j in 0..i {
            let l = factor[i * n + j];
            row[..=j].iter_mut().zip(&done[j * n..=j * n + j]).for_each(|(r, d)| *r -= l * d);
        }
        row[i] = 1.0;
        let pivot = factor[i * n + i];
        row[..=i].iter_mut().for_each(|v| *v /= pivot);
    }
    let mut inverse = Square::zero(n);
    inverse.add_rows(&lower);
    Some(inverse)
}

/// Factors the symmetric matrix whose lower triangle is in `a` (`n` by `n`, row-major) into L·Lᵀ in place. False
/// where a pivot is not safely positive.
fn cholesky(a: &mut [f64], n: usize) -> bool {
    let largest = (0..n).map(|i| a[i * n + i].abs()).fold(0.0, f64::max);
    let smallest = largest * n as f64 * f64::EPSILON;
    for i in 0..n {
        let (above, below) = a.split_at_mut(i * n);
        let row = &mut below[..n];
        for j in 0..i {
            let other = &above[j * n..=j * n + j];
            let sum: f64 = row[..j].iter().zip(other).map(|(x, y)| x * y).sum();
            row[j] = (row[j] - sum) / other[j];
        }
        let pivot = row[i] - row[..i].iter().map(|v| v * v).sum::<f64>();
        if pivot.is_nan() || pivot <= smallest {
            return false;
        }
        row[i] = pivot.sqrt();
    }
    true
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

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
        let inverse = invert(&a).unwrap();
        for i in 0..5 {
            for j in 0..5 {
                let sum: f64 = (0..5).map(|l| a.at(i, l) * inverse.at(l, j)).sum();
                assert!((sum - f64::from(u8::from(i == j))).abs() < 1e-9, "{i} {j} {sum}");
            }
        }
    }

    #[test]
    fn eliminating_from_an_inverse_inverts_what_is_left() {
        let mut a = Square::zero(6);
        a.add_rows(&random(30, 6, 7));
        let mut inverse = invert(&a).unwrap();
        inverse.eliminate(&[1, 4]).unwrap();
        let left = [0, 2, 3, 5];
        let expected = invert(&a.block(&left)).unwrap();
        for (i, &row) in left.iter().enumerate() {
            for (j, &column) in left.iter().enumerate() {
                assert!((inverse.at(row, column) - expected.at(i, j)).abs() < 1e-9);
            }
        }
        assert_eq!(inverse.at(1, 0), 0.0);
    }

    #[test]
    fn what_is_not_positive_definite_has_no_inverse() {
        assert!(invert(&Square::zero(2)).is_none());
    }
}
