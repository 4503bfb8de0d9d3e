//! Regularised least squares from second moments: accumulation, cross-validation, and the solution by
//! Cholesky's factorisation in f64. Knows nothing of graphs.

use ndarray::{ArrayView2, ArrayViewMut2, linalg::general_mat_mul};

use crate::linalg::{axpy, cholesky, dot, substitute};

/// Folds of the cross-validation.
pub const FOLDS: usize = 4;
/// Ridges tried, as shares of the mean diagonal of XᵀX.
pub const RIDGES: [f64; 5] = [1e-3, 1e-2, 1e-1, 3e-1, 1.0];
/// Above this width the ridge is not cross-validated: [`WIDE_RIDGE`] is taken.
pub const CROSS_VALIDATED_INPUTS: usize = 1024;
/// The ridge of consumers too wide for cross-validation.
pub const WIDE_RIDGE: f64 = 1e-1;
/// Rows gathered before they are multiplied: enough for the product to run at the speed of a matrix product.
const BLOCK: usize = 128;

/// Second moments of activations X and missing outputs R of one fold.
#[derive(Debug, Clone)]
pub struct Gram {
    k: usize,
    m: usize,
    rows: u64,
    xtx: Vec<f64>,
    xtr: Vec<f64>,
    rtr: f64,
    sum_x: Vec<f64>,
    sum_r: Vec<f64>,
    /// ‖Y‖² and the sums of Y, for relative residuals.
    target_squares: f64,
    target_sums: Vec<f64>,
    /// Rows of X and of R that are not in the moments yet.
    waiting: (Vec<f64>, Vec<f64>),
}

impl Gram {
    /// Moments of `k` inputs and `m` outputs, of no rows yet.
    pub fn new(k: usize, m: usize) -> Self {
        Self {
            k,
            m,
            rows: 0,
            xtx: vec![0.0; k * k],
            xtr: vec![0.0; k * m],
            rtr: 0.0,
            sum_x: vec![0.0; k],
            sum_r: vec![0.0; m],
            target_squares: 0.0,
            target_sums: vec![0.0; m],
            waiting: (Vec::new(), Vec::new()),
        }
    }

    /// Inputs and outputs.
    pub fn size(&self) -> (usize, usize) {
        (self.k, self.m)
    }

    /// Adds one row: activations `x`, what the pruned model computes (`z`) and what the original does (`y`).
    pub fn push_target(&mut self, x: &[f32], z: &[f32], y: &[f32]) {
        for (sum, y) in self.target_sums.iter_mut().zip(y) {
            *sum += f64::from(*y);
            self.target_squares += f64::from(*y).powi(2);
        }
        let missing = z.iter().zip(y).map(|(z, y)| f64::from(*y) - f64::from(*z));
        self.waiting.1.extend(missing);
        self.waiting.0.extend(x.iter().map(|v| f64::from(*v)));
        self.count_row();
    }

    /// Adds one row: `x` of `k` inputs, `r` of `m` missing outputs.
    pub fn push(&mut self, x: &[f64], r: &[f64]) {
        self.waiting.0.extend_from_slice(x);
        self.waiting.1.extend_from_slice(r);
        self.count_row();
    }

    fn count_row(&mut self) {
        self.rows += 1;
        if self.waiting.1.len() >= BLOCK * self.m.max(1) {
            self.settle();
        }
    }

    /// Multiplies what waits into the moments; [`solve`] asks for it.
    fn settle(&mut self) {
        let (xs, rs) = std::mem::take(&mut self.waiting);
        let rows = xs.len() / self.k.max(1);
        for row in xs.chunks_exact(self.k.max(1)) {
            axpy(1.0, row, &mut self.sum_x);
        }
        for row in rs.chunks_exact(self.m.max(1)) {
            axpy(1.0, row, &mut self.sum_r);
            self.rtr += dot(row, row);
        }
        let views = (
            ArrayView2::from_shape((rows, self.k), &xs),
            ArrayView2::from_shape((rows, self.m), &rs),
            ArrayViewMut2::from_shape((self.k, self.k), &mut self.xtx),
            ArrayViewMut2::from_shape((self.k, self.m), &mut self.xtr),
        );
        if let (Ok(x), Ok(r), Ok(mut xtx), Ok(mut xtr)) = views {
            general_mat_mul(1.0, &x.t(), &x, 1.0, &mut xtx);
            general_mat_mul(1.0, &x.t(), &r, 1.0, &mut xtr);
        }
        self.waiting = (xs, rs);
        self.waiting.0.clear();
        self.waiting.1.clear();
    }

    fn add(&mut self, other: &Self, sign: f64) {
        self.rows = if sign > 0.0 { self.rows + other.rows } else { self.rows - other.rows };
        axpy(sign, &other.xtx, &mut self.xtx);
        axpy(sign, &other.xtr, &mut self.xtr);
        axpy(sign, &other.sum_x, &mut self.sum_x);
        axpy(sign, &other.sum_r, &mut self.sum_r);
        self.rtr += sign * other.rtr;
    }

    fn total(folds: &[Self]) -> Self {
        let mut total = Self::new(folds[0].k, folds[0].m);
        for fold in folds {
            total.add(fold, 1.0);
        }
        total
    }

    /// Lower triangle of XᵀX and XᵀR about their means, or as they are.
    fn centred(&self, centre: bool) -> (Vec<f64>, Vec<f64>) {
        let (mut a, mut b) = (self.xtx.clone(), self.xtr.clone());
        if centre && self.rows > 0 {
            let n = self.rows as f64;
            for i in 0..self.k {
                let mean = self.sum_x[i] / n;
                axpy(-mean, &self.sum_x[..=i], &mut a[i * self.k..i * self.k + i + 1]);
                axpy(-mean, &self.sum_r, &mut b[i * self.m..(i + 1) * self.m]);
            }
        }
        (a, b)
    }

    /// ‖R − X·D − 1·dᵀ‖², from the moments alone.
    fn residual(&self, fit: &Fit) -> f64 {
        let (k, m, n) = (self.k, self.m, self.rows as f64);
        let mut total = self.rtr;
        let mut g_d = vec![0.0; m];
        for i in 0..k {
            // Row i of XᵀX·D, of which only the lower triangle is stored.
            g_d.fill(0.0);
            for j in 0..k {
                let g = if j <= i { self.xtx[i * k + j] } else { self.xtx[j * k + i] };
                axpy(g, &fit.weight[j * m..(j + 1) * m], &mut g_d);
            }
            let row = &fit.weight[i * m..(i + 1) * m];
            total += dot(row, &g_d) - 2.0 * dot(row, &self.xtr[i * m..(i + 1) * m]);
            if let Some(bias) = &fit.bias {
                total += 2.0 * self.sum_x[i] * dot(row, bias);
            }
        }
        if let Some(bias) = &fit.bias {
            total += n * dot(bias, bias) - 2.0 * dot(bias, &self.sum_r);
        }
        total.max(0.0)
    }
}

/// ‖Y − ȳ‖² over all folds: what there is to explain.
pub fn target_energy(folds: &[Gram]) -> f64 {
    let rows: u64 = folds.iter().map(|f| f.rows).sum();
    let squares: f64 = folds.iter().map(|f| f.target_squares).sum();
    let width = folds.first().map_or(0, |f| f.m);
    let means: f64 =
        (0..width).map(|j| folds.iter().map(|f| f.target_sums[j]).sum::<f64>().powi(2)).sum();
    (squares - means / rows.max(1) as f64).max(0.0)
}

/// A correction: `k` by `m` weights and `m` biases.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// Added to the weight, inputs by outputs.
    pub weight: Vec<f64>,
    /// Added to the bias.
    pub bias: Option<Vec<f64>>,
}

/// A correction with what it promises.
#[derive(Debug, Clone, PartialEq)]
pub struct Solution {
    /// The correction.
    pub fit: Fit,
    /// The ridge that cross-validation chose.
    pub ridge: f64,
    /// ‖R‖² before.
    pub before: f64,
    /// ‖R‖² after, on the rows that were fitted.
    pub after: f64,
    /// ‖R‖² after, on folds that were not fitted; none without cross-validation.
    pub cross_validated: Option<f64>,
    /// Rows used.
    pub rows: u64,
    /// Said where the activations do not span every direction, or a ridge had to grow.
    pub note: Option<String>,
}

impl Solution {
    /// The solutions of products that stand side by side, of the given inputs and outputs, as one. A product
    /// without a solution keeps its weights.
    ///
    /// # Errors
    /// No product has one: the reason of the first.
    pub fn joined(
        parts: Vec<Result<Self, String>>,
        sizes: &[(usize, usize)],
    ) -> Result<Self, String> {
        if parts.len() == 1 {
            return parts
                .into_iter()
                .next()
                .unwrap_or_else(|| Err("there is nothing to fit".into()));
        }
        let inputs = sizes.first().map_or(0, |size| size.0);
        let outputs: usize = sizes.iter().map(|size| size.1).sum();
        let mut whole = Self {
            fit: Fit { weight: vec![0.0; inputs * outputs], bias: Some(vec![0.0; outputs]) },
            ridge: 0.0,
            before: 0.0,
            after: 0.0,
            cross_validated: Some(0.0),
            rows: 0,
            note: None,
        };
        let (mut solved, mut why, mut first) = (0, None, 0);
        for (part, (_, each)) in parts.into_iter().zip(sizes) {
            match part {
                Ok(part) => {
                    whole.place(&part, first, *each, outputs);
                    solved += 1;
                }
                Err(reason) => why = why.or(Some(reason)),
            }
            first += each;
        }
        if solved == 0 {
            return Err(why.unwrap_or_else(|| "there is nothing to fit".into()));
        }
        if let Some(why) = why {
            let left = format!(
                "{} of {} groups keep their weights: {why}",
                sizes.len() - solved,
                sizes.len()
            );
            whole.note = Some(left);
        }
        Ok(whole)
    }

    fn place(&mut self, part: &Self, first: usize, each: usize, outputs: usize) {
        for (input, row) in part.fit.weight.chunks_exact(each.max(1)).enumerate() {
            let at = input * outputs + first;
            self.fit.weight[at..at + each].copy_from_slice(row);
        }
        match (&mut self.fit.bias, &part.fit.bias) {
            (Some(all), Some(own)) => all[first..first + each].copy_from_slice(own),
            (all, _) => *all = None,
        }
        self.ridge = self.ridge.max(part.ridge);
        self.before += part.before;
        self.after += part.after;
        self.cross_validated = self.cross_validated.zip(part.cross_validated).map(|(a, b)| a + b);
        self.rows = self.rows.max(part.rows);
        self.note = self.note.take().or_else(|| part.note.clone());
    }
}

/// Fits on `folds`, with a bias correction if `with_bias`.
///
/// # Errors
/// A sentence: nothing to fit, or no ridge helps on rows that were not fitted.
pub fn solve(folds: &mut [Gram], with_bias: bool) -> Result<Solution, String> {
    if folds.is_empty() {
        return Err("there are no activations to fit".into());
    }
    folds.iter_mut().for_each(Gram::settle);
    let total = Gram::total(folds);
    if total.rows == 0 {
        return Err("there are no activations to fit".into());
    }
    if !total.rtr.is_finite() || total.xtx.iter().any(|v| !v.is_finite()) {
        return Err("its activations are not finite".into());
    }
    if total.rtr == 0.0 {
        return Err("its outputs are exactly the original's already".into());
    }
    let (ridge, cross_validated) = choose_ridge(folds, &total, with_bias)?;
    let (fit, grown) = ridge_fit(&total, ridge, with_bias)?;
    let after = total.residual(&fit);
    Ok(Solution {
        fit,
        ridge: grown,
        before: total.rtr,
        after,
        cross_validated,
        rows: total.rows,
        note: rank_note(&total, ridge, grown),
    })
}

fn choose_ridge(
    folds: &[Gram],
    total: &Gram,
    with_bias: bool,
) -> Result<(f64, Option<f64>), String> {
    let filled = folds.iter().filter(|f| f.rows > 0).count();
    if total.k > CROSS_VALIDATED_INPUTS || filled < 2 {
        return Ok((WIDE_RIDGE, None));
    }
    let mut best: Option<(f64, f64)> = None;
    for ridge in RIDGES {
        let mut error = 0.0;
        for fold in folds.iter().filter(|f| f.rows > 0) {
            let mut rest = total.clone();
            rest.add(fold, -1.0);
            error += fold.residual(&ridge_fit(&rest, ridge, with_bias)?.0);
        }
        if best.is_none_or(|(_, least)| error < least) {
            best = Some((ridge, error));
        }
    }
    match best {
        Some((ridge, error)) if error < total.rtr => Ok((ridge, Some(error))),
        _ => Err(
            "no ridge brings its outputs nearer to the original's on samples it was not fitted to"
                .into(),
        ),
    }
}

fn rank_note(total: &Gram, asked: f64, used: f64) -> Option<String> {
    if used > asked {
        return Some(format!(
            "the activations are nearly dependent: the ridge grew from {asked:.0e} to {used:.0e}"
        ));
    }
    (total.rows < total.k as u64).then(|| {
        format!(
            "{} rows for {} inputs: directions the samples do not show keep the original weights",
            total.rows, total.k
        )
    })
}

/// The correction at one ridge, and the ridge that was really used: it grows tenfold until the system
/// is positive definite in f64.
fn ridge_fit(gram: &Gram, ridge: f64, with_bias: bool) -> Result<(Fit, f64), String> {
    const GROWTHS: usize = 8;
    let (a, b) = gram.centred(with_bias);
    let k = gram.k;
    let mean_diagonal = (0..k).map(|i| a[i * k + i]).sum::<f64>() / k.max(1) as f64;
    if mean_diagonal <= 0.0 {
        return bias_only(gram, ridge, with_bias);
    }
    let mut used = ridge;
    for _ in 0..GROWTHS {
        let mut factor = a.clone();
        for i in 0..k {
            factor[i * k + i] += used * mean_diagonal;
        }
        if cholesky(&mut factor, k) {
            let mut weight = b.clone();
            substitute(&factor, k, &mut weight, gram.m);
            let bias = with_bias.then(|| mean_correction(gram, &weight));
            return Ok((Fit { weight, bias }, used));
        }
        used = (used * 10.0).max(1e-12);
    }
    Err("its activations are too dependent to fit: no ridge made the system solvable".into())
}

/// Activations that never change: only the bias can be corrected.
fn bias_only(gram: &Gram, ridge: f64, with_bias: bool) -> Result<(Fit, f64), String> {
    if !with_bias {
        return Err("its activations are all zero".into());
    }
    let weight = vec![0.0; gram.k * gram.m];
    let bias = Some(mean_correction(gram, &weight));
    Ok((Fit { weight, bias }, ridge))
}

/// r̄ − Dᵀx̄.
fn mean_correction(gram: &Gram, weight: &[f64]) -> Vec<f64> {
    let n = gram.rows.max(1) as f64;
    let mut bias: Vec<f64> = gram.sum_r.iter().map(|v| v / n).collect();
    for (i, sum) in gram.sum_x.iter().enumerate() {
        axpy(-sum / n, &weight[i * gram.m..(i + 1) * gram.m], &mut bias);
    }
    bias
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "ridge_tests.rs"]
mod tests;
