//! The floor under a model's agreement with its original, as far as a device can hold it before any live
//! request: against what the bundle says of itself.
//!
//! The other half is the shadow, which compares a candidate with the model that serves. Where nothing
//! serves yet, or nothing is shadowed, this is all. Once a model is committed its original is not there
//! to compare with, and no window says anything about the floor.

use super::event::StepFailure;

/// Whether a bundle's own agreement may be over the floor: refused only where even the upper end of the
/// stated interval is under it. A bundle that states none passes. The floor may change, so the digest is
/// not blocked.
pub(super) fn stated(agreement_high: Option<f64>, floor: Option<f64>) -> Result<(), StepFailure> {
    match agreement_high.zip(floor) {
        Some((high, floor)) if high < floor => Err(StepFailure::attempt(format!(
            "the manifest says that the model agrees with its original on at most {high:.4} of the \
             answers, under agreement_min {floor}"
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::event::FailureClass;
    use super::*;

    #[test]
    fn only_an_agreement_that_cannot_reach_the_floor_is_refused_and_not_for_ever() {
        assert!(stated(Some(0.95), Some(0.95)).is_ok());
        assert!(stated(None, Some(0.95)).is_ok());
        assert!(stated(Some(0.1), None).is_ok());
        let refused = stated(Some(0.94), Some(0.95)).unwrap_err();
        assert!(refused.reason.contains("0.9400") && refused.reason.contains("agreement_min 0.95"));
        assert_eq!(refused.class, FailureClass::Attempt);
    }
}
