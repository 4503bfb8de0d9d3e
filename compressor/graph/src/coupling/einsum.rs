//! `Einsum`: letters are axes, shared letters go together, letters that the output lacks are summed over.

use super::{Contraction, Coupling, Ports, input, output};
use crate::{EinsumEquation, Role};

/// Links every axis of a letter, and says what is done along it.
pub(super) fn einsum(equation: &EinsumEquation, ports: &Ports) -> Result<Coupling, String> {
    let mut coupling = Coupling::default();
    for (slot, term) in equation.inputs.iter().enumerate() {
        if ports.rank(super::Port::In(slot)) != Some(term.len()) {
            return Err(format!("Einsum: input {slot} has not the rank of its term"));
        }
    }
    for letter in equation.letters() {
        let axes: Vec<_> = equation.axes(letter).map(|(slot, axis)| input(slot, axis)).collect();
        let Some((&first, others)) = axes.split_first() else { continue };
        for &other in others {
            coupling.same(first, other);
        }
        let role = match equation.output.iter().position(|&l| l == letter) {
            Some(at) => {
                axes.iter().for_each(|&axis| coupling.same(axis, output(0, at)));
                if others.is_empty() { Role::Producer } else { Role::Elementwise }
            }
            None if others.is_empty() => {
                coupling.sums.push(first);
                Role::Consumer
            }
            None => {
                let pairs = others.iter().map(|&weight| Contraction { data: first, weight });
                coupling.contractions.extend(pairs);
                Role::Consumer
            }
        };
        for (slot, axis) in equation.axes(letter) {
            coupling.role(slot, axis, role);
        }
    }
    Ok(coupling)
}
