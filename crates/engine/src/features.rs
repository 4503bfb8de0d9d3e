//! One number of a tensor per sample: what a model's inputs and outputs are compared by over time.
//!
//! Everything here reads a bounded number of elements where they lie and allocates nothing, whatever
//! the tensor's size. What is read depends on the shape and on `turn`, the number of the sample, alone,
//! so that whoever made a reference and whoever holds requests against it look at the same places.

use half::{bf16, f16};

use crate::tensor::{ElementType, Tensor};

/// The most elements that a summary reads; of more, every so many.
pub const MAX_SUMMARY_ELEMENTS: usize = 1024;
/// The most elements of a row that a class is chosen from; a wider one chooses nothing.
pub const MAX_ROW_ELEMENTS: usize = 4096;

/// What the elements of one sample have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Mean of the finite elements; NaN without any.
    pub mean: f64,
    /// Their standard deviation; NaN without any.
    pub deviation: f64,
    /// Share of elements that are 0.
    pub zeros: f64,
    /// Share of elements that are NaN or infinite.
    pub nonfinite: f64,
}

/// What a row of scores or probabilities chooses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The place of the largest number, the first of equals; `None` in a row with a NaN.
    pub class: Option<usize>,
    /// Its probability; NaN in a row with a NaN.
    pub confidence: f64,
}

/// Summarises one sample of a tensor: the whole of it, or where `batched` one step along its first
/// axis. `None` for strings and for a tensor without elements.
#[must_use]
pub fn summary(tensor: &Tensor, batched: bool, turn: u64) -> Option<Summary> {
    let (start, length) = sample(tensor, batched, turn)?;
    let step = length.div_ceil(MAX_SUMMARY_ELEMENTS);
    let (mut seen, mut finite, mut zeros) = (0_u32, 0_u32, 0_u32);
    // Welford's recurrence: no cancellation where the mean is large.
    let (mut mean, mut squares) = (0.0, 0.0);
    for at in (start..start + length).step_by(step) {
        let value = element(tensor, at)?;
        seen += 1;
        zeros += u32::from(value == 0.0);
        if value.is_finite() {
            finite += 1;
            let gap = value - mean;
            mean += gap / f64::from(finite);
            squares += gap * (value - mean);
        }
    }
    let known = finite > 0;
    Some(Summary {
        mean: if known { mean } else { f64::NAN },
        deviation: if known { (squares / f64::from(finite)).sqrt() } else { f64::NAN },
        zeros: f64::from(zeros) / f64::from(seen),
        nonfinite: f64::from(seen - finite) / f64::from(seen),
    })
}

/// One element of one sample, at a place that `turn` chooses. `None` as for [`summary`].
#[must_use]
pub fn value(tensor: &Tensor, batched: bool, turn: u64) -> Option<f64> {
    let (start, length) = sample(tensor, batched, turn)?;
    element(tensor, start + place(turn, 1, length))
}

/// What one row along `axis` chooses; `turn` says which of several. Scores become probabilities by
/// softmax. `None` for strings, a tensor without elements or without that axis, and a row of more than
/// [`MAX_ROW_ELEMENTS`].
#[must_use]
pub fn choice(tensor: &Tensor, axis: usize, scores: bool, turn: u64) -> Option<Choice> {
    let width = *tensor.shape.get(axis)?;
    if width == 0 || width > MAX_ROW_ELEMENTS {
        return None;
    }
    let inner = tensor.shape[axis + 1..].iter().try_fold(1_usize, |p, d| p.checked_mul(*d))?;
    let rows = tensor.len() / width;
    if rows == 0 {
        return None;
    }
    let row = place(turn, 2, rows);
    let start = (row / inner) * width * inner + row % inner;
    let at = |column: usize| element(tensor, start + column * inner);
    let (mut class, mut largest) = (0, at(0)?);
    for column in 0..width {
        let value = at(column)?;
        if value.is_nan() {
            return Some(Choice { class: None, confidence: f64::NAN });
        }
        if value > largest {
            (class, largest) = (column, value);
        }
    }
    let confidence = if scores {
        let total: f64 = (0..width).filter_map(at).map(|value| (value - largest).exp()).sum();
        1.0 / total
    } else {
        largest
    };
    Some(Choice { class: Some(class), confidence })
}

/// First element and length of one sample.
fn sample(tensor: &Tensor, batched: bool, turn: u64) -> Option<(usize, usize)> {
    let all = tensor.len();
    if all == 0 || tensor.dtype == ElementType::String {
        return None;
    }
    let samples = tensor.shape.first().copied().filter(|_| batched).unwrap_or(1);
    let length = all / samples;
    Some((place(turn, 0, samples) * length, length))
}

/// A place below `of`, mixed from the turn (the finalizer of SplitMix64: Steele, Lea and Flood, 2014), so
/// that no pattern in the traffic keeps step with it.
#[allow(clippy::cast_possible_truncation)]
fn place(turn: u64, stream: u64, of: usize) -> usize {
    let mut z = turn.wrapping_mul(3).wrapping_add(stream + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) % of.max(1) as u64) as usize
}

/// One element; `None` outside the tensor and for strings.
#[allow(clippy::cast_precision_loss)]
fn element(tensor: &Tensor, at: usize) -> Option<f64> {
    fn bytes<const N: usize>(data: &[u8], at: usize) -> Option<[u8; N]> {
        let start = at.checked_mul(N)?;
        data.get(start..start.checked_add(N)?)?.try_into().ok()
    }
    let data = tensor.data.as_slice();
    Some(match tensor.dtype {
        ElementType::F32 => f64::from(f32::from_le_bytes(bytes(data, at)?)),
        ElementType::F64 => f64::from_le_bytes(bytes(data, at)?),
        ElementType::F16 => f64::from(f16::from_le_bytes(bytes(data, at)?)),
        ElementType::Bf16 => f64::from(bf16::from_le_bytes(bytes(data, at)?)),
        ElementType::I8 => f64::from(i8::from_le_bytes(bytes(data, at)?)),
        ElementType::I16 => f64::from(i16::from_le_bytes(bytes(data, at)?)),
        ElementType::I32 => f64::from(i32::from_le_bytes(bytes(data, at)?)),
        ElementType::I64 => i64::from_le_bytes(bytes(data, at)?) as f64,
        ElementType::U8 | ElementType::Bool => f64::from(u8::from_le_bytes(bytes(data, at)?)),
        ElementType::U16 => f64::from(u16::from_le_bytes(bytes(data, at)?)),
        ElementType::U32 => f64::from(u32::from_le_bytes(bytes(data, at)?)),
        ElementType::U64 => u64::from_le_bytes(bytes(data, at)?) as f64,
        ElementType::String => return None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn floats(shape: &[usize], values: &[f32]) -> Tensor {
        Tensor::from_f32(shape.to_vec(), values).unwrap()
    }

    #[test]
    fn a_summary_is_of_the_finite_elements_and_counts_the_others() {
        let tensor = floats(&[6], &[0.0, 2.0, f32::NAN, 4.0, f32::INFINITY, 0.0]);
        let got = summary(&tensor, false, 0).unwrap();
        assert_eq!((got.mean, got.zeros, got.nonfinite), (1.5, 2.0 / 6.0, 2.0 / 6.0));
        // numpy: std([0, 2, 4, 0]).
        assert!((got.deviation - 1.658_312_395_177_7).abs() < 1e-12, "{got:?}");
    }

    #[test]
    fn of_a_batch_one_sample_is_taken_and_in_time_every_one() {
        let tensor = floats(&[3, 2], &[1.0, 1.0, 2.0, 2.0, 3.0, 3.0]);
        let mut times = [0; 4];
        for turn in 0..300 {
            let got = summary(&tensor, true, turn).unwrap();
            assert_eq!(got.deviation, 0.0, "never of two samples together");
            times[got.mean as usize] += 1;
        }
        assert!(times[1..].iter().all(|n| (60..140).contains(n)), "{times:?}");
    }

    #[test]
    fn every_element_is_looked_at_in_time() {
        let tensor = floats(&[1, 8], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        let mut times = [0; 8];
        (0..800).for_each(|turn| times[value(&tensor, true, turn).unwrap() as usize] += 1);
        assert!(times.iter().all(|n| (60..140).contains(n)), "{times:?}");
    }

    #[test]
    fn a_large_tensor_is_read_at_no_more_places_than_the_limit() {
        let values: Vec<f32> = (0..1_000_000).map(|i| (i % 1000) as f32).collect();
        let got = summary(&floats(&[1000, 1000], &values), false, 0).unwrap();
        assert!((got.mean - 499.5).abs() < 15.0, "{got:?}");
    }

    #[test]
    fn a_choice_is_the_largest_number_and_its_probability() {
        let probabilities = floats(&[1, 3], &[0.2, 0.7, 0.1]);
        let got = choice(&probabilities, 1, false, 9).unwrap();
        assert_eq!((got.class, got.confidence), (Some(1), f64::from(0.7_f32)));
        // scipy: softmax([1, 3, 2])[1].
        let got = choice(&floats(&[1, 3], &[1.0, 3.0, 2.0]), 1, true, 9).unwrap();
        assert!((got.confidence - 0.665_240_955_774_821_9).abs() < 1e-12, "{got:?}");
        let broken = choice(&floats(&[1, 2], &[f32::NAN, 0.5]), 1, true, 9).unwrap();
        assert!(broken.class.is_none() && broken.confidence.is_nan());
    }

    #[test]
    fn rows_along_any_axis_are_found_where_they_lie() {
        // Two classes by three pixels: pixel 0 chooses 0, the others 1.
        let tensor = floats(&[1, 2, 3], &[9.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let mut times = [0; 2];
        (0..300)
            .for_each(|turn| times[choice(&tensor, 1, true, turn).unwrap().class.unwrap()] += 1);
        assert!((60..140).contains(&times[0]), "{times:?}");
    }

    #[test]
    fn every_type_but_text_is_read_as_numbers() {
        for dtype in ElementType::ALL {
            let tensor = Tensor::zeros(dtype, vec![2, 2]).unwrap();
            let wanted = (dtype != ElementType::String).then_some(0.0);
            assert_eq!(value(&tensor, true, 5), wanted, "{dtype}");
        }
        assert_eq!(
            Tensor::from_i64(vec![1], &[-7]).map(|t| value(&t, false, 0)).unwrap(),
            Some(-7.0)
        );
        let empty = floats(&[0, 3], &[]);
        assert_eq!((summary(&empty, true, 0), value(&empty, true, 0)), (None, None));
        assert_eq!(choice(&empty, 1, true, 0), None);
        assert_eq!(choice(&floats(&[2], &[1.0, 2.0]), 4, true, 0), None);
    }
}
