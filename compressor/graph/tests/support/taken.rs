//! What must hold of any bytes that are offered as a model: an error, or a model that stays one.

use graph::{Choice, Model, PrunePlan, find, infer, prune, same};

/// How far a file came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Came {
    /// It is no model.
    Refused,
    /// It is a model that the verifier does not accept.
    Invalid,
    /// It is a valid model.
    Valid,
}

/// Reads `bytes`, looks for groups, and halves them all.
///
/// # Panics
/// Where a valid model does not survive being written and read, or a pruning leaves an invalid one.
pub(crate) fn take(bytes: &[u8]) -> Came {
    let Ok(model) = Model::from_bytes(bytes.to_vec(), None) else {
        return Came::Refused;
    };
    if model.verify().is_err() {
        return Came::Invalid;
    }
    survives(&model);
    halve(model);
    Came::Valid
}

fn survives(model: &Model) {
    let Ok(written) = model.to_bytes() else { return };
    let back = Model::from_bytes(written, None).expect("what was written is read");
    assert_eq!(same(model, &back), Ok(()), "it comes back as another model");
}

fn halve(mut model: Model) {
    let grouping = find(&model, &infer(&model));
    let halves = grouping.groups.iter().filter(|group| group.width > 1).map(|group| Choice {
        group: group.id,
        keep: (0..group.width as u32).step_by(2).collect(),
    });
    let plan = PrunePlan { choices: halves.collect() };
    let before = model.clone();
    match prune(&mut model, &grouping, &plan) {
        Ok(_) => assert_eq!(model.verify(), Ok(()), "a pruning left an invalid model"),
        Err(_) => assert_eq!(same(&before, &model), Ok(()), "a refused pruning changed it"),
    }
}
