use super::*;
use proptest::prelude::*;

/// Solves the centred normal equations by Gauss-Jordan elimination: slow, plain, another path.
fn brute_force(x: &[Vec<f64>], r: &[Vec<f64>], ridge: f64) -> (Vec<f64>, Vec<f64>) {
    let (n, k, m) = (x.len() as f64, x[0].len(), r[0].len());
    let mean = |rows: &[Vec<f64>], c: usize| rows.iter().map(|row| row[c]).sum::<f64>() / n;
    let mx: Vec<f64> = (0..k).map(|c| mean(x, c)).collect();
    let mr: Vec<f64> = (0..m).map(|c| mean(r, c)).collect();
    let mut a = vec![vec![0.0; k + m]; k];
    for (xr, rr) in x.iter().zip(r) {
        for i in 0..k {
            for j in 0..k {
                a[i][j] += (xr[i] - mx[i]) * (xr[j] - mx[j]);
            }
            for j in 0..m {
                a[i][k + j] += (xr[i] - mx[i]) * (rr[j] - mr[j]);
            }
        }
    }
    let shift = ridge * (0..k).map(|i| a[i][i]).sum::<f64>() / k as f64;
    for (i, row) in a.iter_mut().enumerate() {
        row[i] += shift;
    }
    for i in 0..k {
        let pivot = (i..k).max_by(|p, q| a[*p][i].abs().total_cmp(&a[*q][i].abs())).unwrap();
        a.swap(i, pivot);
        let lead = a[i][i];
        a[i].iter_mut().for_each(|v| *v /= lead);
        for j in (0..k).filter(|j| *j != i) {
            let factor = a[j][i];
            let source = a[i].clone();
            a[j].iter_mut().zip(source).for_each(|(v, s)| *v -= factor * s);
        }
    }
    let d: Vec<f64> = a.iter().flat_map(|row| row[k..].to_vec()).collect();
    let bias = (0..m).map(|j| mr[j] - (0..k).map(|i| mx[i] * d[i * m + j]).sum::<f64>()).collect();
    (d, bias)
}

fn gram_of(x: &[Vec<f64>], r: &[Vec<f64>]) -> Gram {
    let mut gram = Gram::new(x[0].len(), r[0].len());
    for (x, r) in x.iter().zip(r) {
        gram.push(x, r);
    }
    gram.settle();
    gram
}

fn folds_of(x: &[Vec<f64>], r: &[Vec<f64>]) -> Vec<Gram> {
    let mut folds = vec![Gram::new(x[0].len(), r[0].len()); FOLDS];
    for (at, (x, r)) in x.iter().zip(r).enumerate() {
        folds[at % FOLDS].push(x, r);
    }
    folds
}

fn matrix(rows: usize, columns: usize) -> impl Strategy<Value = Vec<Vec<f64>>> {
    prop::collection::vec(prop::collection::vec(-3.0f64..3.0, columns), rows)
}

proptest! {
    #[test]
    fn the_fit_solves_the_normal_equations(x in matrix(12, 4), r in matrix(12, 3), ridge in 1e-3f64..1.0) {
        let (fit, used) = ridge_fit(&gram_of(&x, &r), ridge, true).unwrap();
        prop_assert_eq!(used, ridge);
        let (d, bias) = brute_force(&x, &r, ridge);
        for (got, want) in fit.weight.iter().zip(&d).chain(fit.bias.unwrap().iter().zip(&bias)) {
            prop_assert!((got - want).abs() < 1e-7, "{got} against {want}");
        }
    }

    #[test]
    fn the_residual_from_moments_is_the_residual_of_the_rows(x in matrix(9, 3), r in matrix(9, 2)) {
        let gram = gram_of(&x, &r);
        let (fit, _) = ridge_fit(&gram, 0.1, true).unwrap();
        let bias = fit.bias.clone().unwrap();
        let direct: f64 = x.iter().zip(&r).flat_map(|(x, r)| {
            let (fit, bias) = (&fit, &bias);
            (0..2).map(move |j| {
                let y: f64 = (0..3).map(|i| x[i] * fit.weight[i * 2 + j]).sum::<f64>() + bias[j];
                (r[j] - y).powi(2)
            })
        }).sum();
        prop_assert!((gram.residual(&fit) - direct).abs() < 1e-6 * (1.0 + direct));
    }
}

/// Unit 2 was always the sum of units 0 and 1; with it removed, what is missing is `w·(x0 + x1)`.
#[test]
fn a_removed_redundant_unit_is_repaired_exactly() {
    let x: Vec<Vec<f64>> = (0..200)
        .map(|i| vec![f64::from(i * 37 % 101) / 50.0 - 1.0, f64::from(i * 53 % 97) / 48.0 - 1.0])
        .collect();
    let w = [0.7, -1.3];
    let r: Vec<Vec<f64>> =
        x.iter().map(|x| w.iter().map(|w| w * (x[0] + x[1])).collect()).collect();
    let (fit, _) = ridge_fit(&gram_of(&x, &r), 1e-12, true).unwrap();
    for (i, d) in fit.weight.iter().enumerate() {
        assert!((d - w[i % 2]).abs() < 1e-6, "{:?}", fit.weight);
    }
    let solution = solve(&mut folds_of(&x, &r), true).unwrap();
    assert!(solution.after < 1e-4 * solution.before, "{solution:?}");
    assert!(solution.cross_validated.unwrap() < 1e-3 * solution.before);
}

#[test]
fn dependent_activations_are_fitted_and_the_growing_ridge_is_said() {
    let x: Vec<Vec<f64>> = (0..50)
        .map(|i| {
            let v = f64::from(i % 7) - 3.0;
            vec![v, 2.0 * v, -v]
        })
        .collect();
    let r: Vec<Vec<f64>> = x.iter().map(|x| vec![x[0]]).collect();
    let (fit, used) = ridge_fit(&gram_of(&x, &r), 0.0, true).unwrap();
    assert!(used > 0.0);
    assert!(fit.weight.iter().all(|v| v.is_finite()));
    let note = rank_note(&gram_of(&x, &r), 0.0, used).unwrap();
    assert!(note.contains("nearly dependent"), "{note}");
}

#[test]
fn fewer_rows_than_inputs_are_said() {
    let x: Vec<Vec<f64>> =
        (0..8).map(|i| (0..16).map(|j| f64::from((i * j) % 5)).collect()).collect();
    let r: Vec<Vec<f64>> = x.iter().map(|x| vec![x[1] + 0.5 * x[2]]).collect();
    let solution = solve(&mut folds_of(&x, &r), true).unwrap();
    assert!(solution.note.unwrap().contains("8 rows for 16 inputs"));
}

#[test]
fn noise_that_no_weight_explains_is_refused() {
    let x: Vec<Vec<f64>> = (0..16)
        .map(|i| (0..12).map(|j| f64::from((i * 7919 + j * 104_729) % 31)).collect())
        .collect();
    let r: Vec<Vec<f64>> = (0..16)
        .map(|i| vec![if i % 2 == 0 { 1.0 } else { -1.0 } * f64::from((i * 31) % 11 - 5)])
        .collect();
    match solve(&mut folds_of(&x, &r), true) {
        Err(why) => assert!(why.contains("no ridge"), "{why}"),
        Ok(solution) => assert!(solution.cross_validated.unwrap() < solution.before),
    }
}

#[test]
fn nothing_missing_and_nothing_seen_are_refused_by_name() {
    let gram = gram_of(&[vec![1.0], vec![2.0]], &[vec![0.0], vec![0.0]]);
    assert!(solve(&mut [gram], true).unwrap_err().contains("already"));
    assert!(solve(&mut [Gram::new(2, 2)], true).unwrap_err().contains("no activations"));
    let bad = gram_of(&[vec![f64::NAN]], &[vec![1.0]]);
    assert!(solve(&mut [bad], false).unwrap_err().contains("not finite"));
}

#[test]
fn constant_activations_leave_the_bias_to_correct() {
    let x = vec![vec![2.0, 2.0]; 10];
    let r = vec![vec![3.0]; 10];
    let solution = solve(&mut folds_of(&x, &r), true).unwrap();
    assert!((solution.fit.bias.unwrap()[0] - 3.0).abs() < 1e-9);
    assert!(solution.after < 1e-9);
}
