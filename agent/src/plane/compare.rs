//! Whether two answers to one request say the same.

use engine::{ElementType, Tensor};

use super::protocol::NamedTensors;

/// How far two elements may be apart where no class is being chosen: `|a - b| <= ATOL + RTOL |a|`.
const RTOL: f64 = 0.05;
const ATOL: f64 = 0.05;

/// The share of `before`'s answers, 0 to 1, that `after` gives too.
///
/// A float output whose last axis is longer than one is read as scores: per row, both must have
/// their maximum at the same place. Any other output must be equal within a tolerance (exactly, for
/// integers), as a whole. The result is the mean over the outputs; an output that is missing or has
/// another shape agrees nowhere.
pub(super) fn agreement(before: &NamedTensors, after: &NamedTensors) -> f64 {
    let scores = before.iter().map(|(name, old)| {
        after
            .iter()
            .find(|(other, _)| other == name)
            .map_or(0.0, |(_, new)| tensor_agreement(old, new))
    });
    mean(scores).unwrap_or(1.0)
}

/// Compares an output with its golden values: `|want - got| <= atol + rtol |want|`, for every
/// element; integers, booleans and strings exactly.
pub(super) fn check_close(
    name: &str,
    want: &Tensor,
    got: &Tensor,
    rtol: f64,
    atol: f64,
) -> Result<(), String> {
    if want.dtype != got.dtype || want.shape != got.shape {
        return Err(format!(
            "output `{name}` is {} {:?}, wanted {} {:?}",
            got.dtype, got.shape, want.dtype, want.shape
        ));
    }
    if !is_float(want.dtype) {
        return if same(want, got) { Ok(()) } else { Err(format!("output `{name}` differs")) };
    }
    let values =
        |tensor: &Tensor| tensor.to_f64_lossy().map_err(|e| format!("output `{name}`: {e}"));
    let (wanted, gotten) = (values(want)?, values(got)?);
    let off = wanted.iter().zip(&gotten).position(|(&want, &got)| !close(want, got, rtol, atol));
    match off {
        None => Ok(()),
        Some(at) => Err(format!(
            "output `{name}`, element {at}: {} where {} is wanted (rtol {rtol}, atol {atol})",
            gotten[at], wanted[at]
        )),
    }
}

/// Whether the elements are the same, bit for bit.
fn same(a: &Tensor, b: &Tensor) -> bool {
    a.data == b.data && a.strings == b.strings
}

fn tensor_agreement(old: &Tensor, new: &Tensor) -> f64 {
    if old.dtype != new.dtype || old.shape != new.shape {
        return 0.0;
    }
    if !is_float(old.dtype) {
        return f64::from(u8::from(same(old, new)));
    }
    let (Ok(a), Ok(b)) = (old.to_f64_lossy(), new.to_f64_lossy()) else {
        return 0.0;
    };
    match old.shape.last() {
        Some(&width) if width > 1 => {
            let rows = a.chunks(width).zip(b.chunks(width));
            mean(rows.map(|(a, b)| f64::from(u8::from(same_choice(a, b))))).unwrap_or(1.0)
        }
        _ => {
            let same = a.iter().zip(&b).all(|(&a, &b)| close(a, b, RTOL, ATOL));
            f64::from(u8::from(same))
        }
    }
}

/// A row of NaN chooses nothing, so it agrees with nothing.
fn same_choice(a: &[f64], b: &[f64]) -> bool {
    matches!((argmax(a), argmax(b)), (Some(a), Some(b)) if a == b)
}

fn argmax(row: &[f64]) -> Option<usize> {
    if row.iter().any(|v| v.is_nan()) {
        return None;
    }
    (0..row.len()).reduce(|best, at| if row[at] > row[best] { at } else { best })
}

fn close(want: f64, got: f64, rtol: f64, atol: f64) -> bool {
    // An infinity is near nothing but itself.
    want == got || (want.is_finite() && (want - got).abs() <= atol + rtol * want.abs())
}

fn is_float(dtype: ElementType) -> bool {
    matches!(dtype, ElementType::F16 | ElementType::Bf16 | ElementType::F32 | ElementType::F64)
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), v| (sum + v, count + 1.0));
    (count > 0.0).then(|| sum / count)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn scores(rows: &[f32], width: usize) -> NamedTensors {
        let tensor = Tensor::from_f32(vec![rows.len() / width, width], rows).unwrap();
        vec![("scores".to_owned(), tensor)]
    }

    #[test]
    fn classifiers_agree_where_their_choices_are_the_same_however_far_the_scores() {
        let before = scores(&[0.9, 0.1, 0.2, 0.8], 2);
        let after = scores(&[0.6, 0.4, 0.7, 0.3], 2);
        assert_eq!(agreement(&before, &after), 0.5);
    }

    #[test]
    fn an_answer_of_nan_agrees_with_nothing_not_even_itself() {
        let nan = scores(&[f32::NAN, 0.1], 2);
        assert_eq!(agreement(&nan, &nan), 0.0);
    }

    #[test]
    fn a_missing_or_differently_shaped_output_disagrees() {
        let before = scores(&[0.9, 0.1], 2);
        assert_eq!(agreement(&before, &Vec::new()), 0.0);
        assert_eq!(agreement(&before, &scores(&[0.9, 0.1, 0.3, 0.2], 2)), 0.0);
    }

    #[test]
    fn single_values_agree_within_the_tolerance_and_integers_exactly() {
        let one = |v: f32| vec![("p".to_owned(), Tensor::from_f32(vec![1], &[v]).unwrap())];
        assert_eq!(agreement(&one(0.5), &one(0.51)), 1.0);
        assert_eq!(agreement(&one(0.5), &one(0.9)), 0.0);
        let int = |v: i64| vec![("n".to_owned(), Tensor::from_i64(vec![1], &[v]).unwrap())];
        assert_eq!(agreement(&int(7), &int(7)), 1.0);
        assert_eq!(agreement(&int(7), &int(8)), 0.0);
    }

    #[test]
    fn a_golden_output_that_is_missed_is_named_with_both_values() {
        let want = Tensor::from_f32(vec![2], &[1.0, 2.0]).unwrap();
        let near = Tensor::from_f32(vec![2], &[1.0, 2.01]).unwrap();
        let far = Tensor::from_f32(vec![2], &[1.0, 2.5]).unwrap();
        assert_eq!(check_close("y", &want, &near, 0.01, 0.0), Ok(()));
        let error = check_close("y", &want, &far, 0.01, 0.0).unwrap_err();
        assert!(error.contains("`y`, element 1: 2.5 where 2 is wanted"), "{error}");
        let nan = Tensor::from_f32(vec![2], &[1.0, f32::NAN]).unwrap();
        assert!(check_close("y", &want, &nan, 0.01, 0.0).is_err());
        let endless = Tensor::from_f32(vec![2], &[1.0, f32::INFINITY]).unwrap();
        assert!(check_close("y", &want, &endless, 0.01, 0.0).is_err());
        assert!(check_close("y", &endless, &want, 0.01, 0.0).is_err());
        assert_eq!(check_close("y", &endless, &endless, 0.01, 0.0), Ok(()));
        let wide = Tensor::from_f32(vec![1, 2], &[1.0, 2.0]).unwrap();
        assert!(check_close("y", &want, &wide, 0.01, 0.0).unwrap_err().contains("wanted"));
    }
}
