//! States at the interface of the model: as wide as before outside, narrower or silent inside.

use super::{Gone, PruneError, Removal, Work};
use crate::{Attribute, AttributeValue, Cause, Edit, Grouping, StatePair, Tensor, ValueId};

/// Narrows every state whose units `removal` takes: `Gather` of what is left behind the input, and before the
/// output one `0` more (`Pad`), which a `Gather` puts wherever a unit is gone.
pub(super) fn narrow_all(
    work: &mut Work,
    grouping: &Grouping,
    removal: &Removal,
) -> Result<(), PruneError> {
    for (pair, gone) in affected(work, grouping, removal) {
        let cause = gone.cause("a narrower state");
        let kept = gone.kept(pair.width);
        let indices = work.ints(&integers(kept.iter().copied())?, &cause)?;
        replace_input(work, pair, &cause, |work, state| {
            work.node("Gather", vec![Some(state), Some(indices)], axis(pair.axis)?, &cause)
        })?;
        let mut next = 0;
        let places = (0..pair.width).map(|unit| {
            let place = if kept.contains(&unit) { next } else { kept.len() };
            next += usize::from(kept.contains(&unit));
            place
        });
        let places = work.ints(&integers(places)?, &cause)?;
        replace_output(work, pair, &cause, |work, state, name| {
            let padded = padded(work, pair, state, &cause)?;
            let inputs = vec![Some(padded), Some(places)];
            work.named_node("Gather", inputs, axis(pair.axis)?, name, &cause)
        })?;
    }
    Ok(())
}

/// Multiplies every such state by 0 and 1 where it comes in and where it goes out.
pub(super) fn silence_all(
    work: &mut Work,
    grouping: &Grouping,
    removal: &Removal,
) -> Result<(), PruneError> {
    for (pair, gone) in affected(work, grouping, removal) {
        let cause = gone.cause("a silent part of a state");
        let mut dims = vec![1; pair.rank - pair.axis];
        dims[0] = pair.width;
        let mut values = vec![0.0; pair.width];
        gone.kept(pair.width).into_iter().for_each(|unit| values[unit] = 1.0);
        let tensor = Tensor::from_f64_as(pair.dtype, dims, &values);
        let tensor = tensor.map_err(|error| PruneError::Stale(error.to_string()))?;
        let mask = work.constant("state_mask", tensor, &cause)?;
        replace_input(work, pair, &cause, |work, state| {
            work.node("Mul", vec![Some(state), Some(mask)], Vec::new(), &cause)
        })?;
        replace_output(work, pair, &cause, |work, state, name| {
            work.named_node("Mul", vec![Some(state), Some(mask)], Vec::new(), name, &cause)
        })?;
    }
    Ok(())
}

/// States of the graph that is edited, with what goes of them.
fn affected<'a>(
    work: &Work,
    grouping: &'a Grouping,
    removal: &'a Removal,
) -> Vec<(&'a StatePair, &'a Gone)> {
    let gone = |pair: &'a StatePair| Some((pair, removal.gone(Some(pair.input), pair.axis)?));
    let here = grouping.states.iter().filter(|pair| pair.scope == work.scope);
    here.filter_map(gone).collect()
}

/// Everything that read the state reads what `make` makes of it.
fn replace_input(
    work: &mut Work,
    pair: &StatePair,
    cause: &Cause,
    make: impl FnOnce(&mut Work, ValueId) -> Result<ValueId, PruneError>,
) -> Result<(), PruneError> {
    let readers = work.graph().consumers(pair.input);
    let made = make(work, pair.input)?;
    for (node, slot) in readers {
        work.edit(Edit::ReplaceInput { node, slot, value: Some(made) }, cause)?;
    }
    Ok(())
}

/// What `make` makes of the state is the output, under its name.
fn replace_output(
    work: &mut Work,
    pair: &StatePair,
    cause: &Cause,
    make: impl FnOnce(&mut Work, ValueId, String) -> Result<ValueId, PruneError>,
) -> Result<(), PruneError> {
    let graph = work.graph();
    let name = graph.value(pair.output).name.clone();
    let inner = graph.free_name(&format!("{name}_inner"));
    work.edit(Edit::Rename { value: pair.output, name: inner }, cause)?;
    let made = make(work, pair.output, name)?;
    let swap = |&value: &ValueId| if value == pair.output { made } else { value };
    let outputs = work.graph().outputs().iter().map(swap).collect();
    work.edit(Edit::SetOutputs { values: outputs }, cause)?;
    let ty = work.interface.get(&(pair.scope.clone(), pair.output)).cloned();
    work.edit(Edit::SetType { value: made, ty }, cause).map(drop)
}

/// One zero behind the last index of the state's axis.
fn padded(
    work: &mut Work,
    pair: &StatePair,
    state: ValueId,
    cause: &Cause,
) -> Result<ValueId, PruneError> {
    /// From here on the amounts are an input.
    const AMOUNTS_AS_INPUT: i64 = 11;
    let mut amounts = vec![0; 2 * pair.rank];
    amounts[pair.rank + pair.axis] = 1;
    if work.model.opset("").unwrap_or(1) < AMOUNTS_AS_INPUT {
        let pads = Attribute { name: "pads".to_owned(), value: AttributeValue::Ints(amounts) };
        return work.node("Pad", vec![Some(state)], vec![pads], cause);
    }
    let amounts = work.ints(&amounts, cause)?;
    work.node("Pad", vec![Some(state), Some(amounts)], Vec::new(), cause)
}

fn axis(axis: usize) -> Result<Vec<Attribute>, PruneError> {
    let value = AttributeValue::Int(super::operands::to_int(axis)?);
    Ok(vec![Attribute { name: "axis".to_owned(), value }])
}

fn integers(values: impl Iterator<Item = usize>) -> Result<Vec<i64>, PruneError> {
    values.map(super::operands::to_int).collect()
}
