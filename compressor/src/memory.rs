//! What a process that serves a model takes of memory, before it is served.
//!
//! Without a device it is a model of the engine: a fixed part and a multiple of the weights. With a device's own
//! measurement of the model it runs now, only the *difference* between the two models is modelled.

use bundle::{Estimate, Quality};
use runtime::EngineKind;

/// Relative uncertainty of what is modelled: down to this share of it, and up to that.
const UNCERTAINTY: (f64, f64) = (0.6, 1.6);

/// What a device measured of the model that it runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Serving {
    /// Proportional set size of its process.
    pub pss_bytes: u64,
    /// Size of that model's file.
    pub size_bytes: u64,
}

/// Fixed part, and bytes for each byte of weights, as resident sizes of ResNet-18 (47 MB on disk) give them.
fn engine_model(engine: EngineKind) -> (f64, f64) {
    match engine {
        EngineKind::Ort => (30e6, 3.0),
        EngineKind::Tract => (17e6, 2.3),
    }
}

/// Memory of a process that serves a model of `size_bytes`, modelled: from the engine alone, or, where a device
/// measured another model, that measurement plus what the engine takes for the difference in size.
pub fn predict(engine: EngineKind, size_bytes: u64, current: Option<Serving>) -> Estimate {
    let (base, factor) = engine_model(engine);
    let (fixed, modelled) = match current {
        None => (0.0, base + factor * size_bytes as f64),
        Some(now) => (now.pss_bytes as f64, factor * (size_bytes as f64 - now.size_bytes as f64)),
    };
    let ends = (fixed + UNCERTAINTY.0 * modelled, fixed + UNCERTAINTY.1 * modelled);
    Estimate {
        value: (fixed + modelled).max(0.0),
        low: ends.0.min(ends.1).max(0.0),
        high: ends.0.max(ends.1).max(0.0),
        quality: Quality::Modelled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_carries_over_and_only_the_difference_is_modelled() {
        let now = Serving { pss_bytes: 30 << 20, size_bytes: 3 << 20 };
        let same = predict(EngineKind::Tract, 3 << 20, Some(now));
        assert_eq!((same.value, same.low, same.high), (31_457_280.0, 31_457_280.0, 31_457_280.0));
        let smaller = predict(EngineKind::Tract, 1 << 20, Some(now));
        assert!((same.value - smaller.value - 2.3 * f64::from(2 << 20)).abs() < 1.0);
        assert!(smaller.low < smaller.value && smaller.value < smaller.high);
        assert_eq!(smaller.quality, Quality::Modelled);
    }

    #[test]
    fn without_a_measurement_it_grows_with_the_weights_and_is_never_below_zero() {
        let of = |size| predict(EngineKind::Ort, size, None).value;
        assert!(of(10 << 20) > of(1 << 20));
        let odd = Serving { pss_bytes: 1, size_bytes: 1 << 30 };
        assert_eq!(predict(EngineKind::Ort, 1, Some(odd)).low, 0.0);
    }
}
