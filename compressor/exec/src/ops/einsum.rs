//! `Einsum`: one axis a letter, multiplied with broadcasting, then summed.

use candle_core::Tensor as Array;
use graph::EinsumEquation;

use super::Context;
use crate::error::{Result, invalid};
use crate::value::Value;

pub(super) fn einsum(equation: &EinsumEquation, cx: &Context<'_>) -> Result<Value> {
    let letters = equation.letters();
    let mut product: Option<Array> = None;
    for (slot, term) in equation.inputs.iter().enumerate() {
        let laid = spread(&cx.get(slot)?.array, term, &letters)?;
        product = Some(match product {
            Some(product) => product.broadcast_mul(&laid)?,
            None => laid,
        });
    }
    let Some(product) = product else { return invalid("no operands") };
    // The letters of the output come first.
    let summed: Vec<usize> = (equation.output.len()..letters.len()).collect();
    let array = if summed.is_empty() { product } else { product.sum(summed)? };
    Ok(cx.get(0)?.with(array))
}

/// The axes of `array`, which are called `term`, in the order of `letters`, with ones for those that it lacks.
fn spread(array: &Array, term: &[char], letters: &[char]) -> Result<Array> {
    if array.rank() != term.len() {
        return invalid(format!("an operand of rank {} for {} letters", array.rank(), term.len()));
    }
    let at = |letter: &char| term.iter().position(|other| other == letter);
    let order: Vec<usize> = letters.iter().filter_map(at).collect();
    let dims: Vec<usize> =
        letters.iter().map(|letter| at(letter).map_or(1, |axis| array.dims()[axis])).collect();
    Ok(array.permute(order)?.contiguous()?.reshape(dims)?)
}
