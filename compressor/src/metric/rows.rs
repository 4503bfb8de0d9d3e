//! What a row of numbers says, and how like another row it is.

use super::MAX_SNR_DB;
use crate::quality::{argmax, scalars_agree};
pub use crate::quality::{cosine, divergence};

/// How many classes come before `class`: those with a larger element, and those with an equal one and a
/// smaller index, so that exactly one class has each rank. A single number is the probability of class 1.
pub fn rank(row: &[f32], class: usize) -> usize {
    if let [single] = row {
        return usize::from((*single >= 0.5) != (class == 1));
    }
    let Some(own) = row.get(class) else { return usize::MAX };
    let before = |(at, v): (usize, &f32)| v > own || (v == own && at < class);
    row.iter().enumerate().filter(|pair| before(*pair)).count()
}

/// The class that a row without NaN answers.
pub fn class(row: &[f32]) -> usize {
    match row {
        [single] => usize::from(*single >= 0.5),
        _ => argmax(row).unwrap_or(0),
    }
}

/// Whether two rows give the same answer: the same largest element, or, for a single number, the same
/// side of one half or nearly the same value.
pub fn agree(original: &[f32], candidate: &[f32]) -> bool {
    if original.len() < 2 {
        return scalars_agree(original, candidate);
    }
    let largest = argmax(original);
    largest.is_some() && largest == argmax(candidate)
}

/// Energy of the original, and of the difference.
pub fn energies(original: &[f32], candidate: &[f32]) -> [f64; 2] {
    original.iter().zip(candidate).fold([0.0, 0.0], |[signal, noise], (o, c)| {
        let (o, c) = (f64::from(*o), f64::from(*c));
        [signal + o * o, noise + (o - c) * (o - c)]
    })
}

/// 10 log₁₀ (signal / noise), within ±[`MAX_SNR_DB`]; NaN where there is neither.
pub fn decibels(signal: f64, noise: f64) -> f64 {
    if signal == 0.0 && noise == 0.0 {
        return f64::NAN;
    }
    (10.0 * (signal / noise).log10()).clamp(-MAX_SNR_DB, MAX_SNR_DB)
}
