//! LSTM, GRU and RNN: a hidden unit is one row of every gate in both directions, its column of the recurrence
//! weights, its bias, peephole and initial state, and one place in every output.
//!
//! Gates stand one behind the other on axis 1 of the weights (and twice on that of the bias), so a unit is a
//! stripe there. Directions share the numbering of their units.

use super::masked::{Fact, ZERO};
use super::{AxisRef, Coupling, Port, Ports, Relation, Stripe, input};
use crate::{AttributeValue, Node, RecurrentAttrs, RecurrentKind, Role};

/// Slots of the inputs, as in the specification.
const X: usize = 0;
const W: usize = 1;
const R: usize = 2;
const BIAS: usize = 3;
const LENGTHS: usize = 4;
const INITIAL_H: usize = 5;
const INITIAL_C: usize = 6;
const PEEPHOLES: usize = 7;

/// Weights `W [D, G·H, I]`, `R [D, G·H, H]`, bias `[D, 2·G·H]`, peepholes `[D, 3·H]`; data
/// `X [T, N, I]`, states `[D, N, H]`, `Y [T, D, N, H]`, or with `layout` 1 `[N, T, I]`, `[N, D, H]`, `[N, T, D, H]`.
pub(super) fn recurrent(
    attrs: &RecurrentAttrs,
    op: &str,
    ports: &Ports,
) -> Result<Coupling, String> {
    let hidden = ports.size(input(R, 2)).filter(|&hidden| hidden > 0);
    let hidden = hidden.ok_or_else(|| format!("{op}: the number of hidden units is not known"))?;
    if attrs.hidden != 0 && attrs.hidden != hidden {
        return Err(format!("{op}: {} hidden units, and weights for {hidden}", attrs.hidden));
    }
    let mut coupling = Coupling::default();
    for (slot, blocks) in gate_blocks(attrs.kind) {
        if !ports.has(slot) {
            continue;
        }
        if ports.size(input(slot, 1)) != Some(blocks * hidden) {
            return Err(format!("{op}: input {slot} does not have {blocks} rows a hidden unit"));
        }
        let unit = Stripe { width: hidden, inner: 1 };
        coupling.link(input(R, 2), input(slot, 1), Relation::Stripes { a: unit, b: unit });
    }
    units(&mut coupling, attrs, ports);
    features(&mut coupling);
    others(&mut coupling, attrs, op, ports);
    Ok(coupling)
}

/// Constants whose axis 1 holds blocks of one row for each hidden unit, and how many blocks.
fn gate_blocks(kind: RecurrentKind) -> [(usize, usize); 4] {
    let gates = match kind {
        RecurrentKind::Lstm => 4,
        RecurrentKind::Gru => 3,
        RecurrentKind::Rnn => 1,
    };
    [(W, gates), (R, gates), (BIAS, 2 * gates), (PEEPHOLES, 3)]
}

/// The last axis of states and outputs.
fn units(coupling: &mut Coupling, attrs: &RecurrentAttrs, ports: &Ports) {
    for at in ends(ports).map(|port| last(port, ports)) {
        coupling.same(input(R, 2), at);
    }
    // What one step sums over is the step before it, which some output always shows.
    for port in outputs(ports).take(1) {
        let pair = super::Contraction { data: last(port, ports), weight: input(R, 2) };
        coupling.contractions.push(pair);
    }
    for slot in [W, R, BIAS] {
        coupling.role(slot, 1, Role::Producer);
    }
    coupling.role(R, 2, Role::Consumer);
    if attrs.kind == RecurrentKind::Lstm {
        coupling.role(PEEPHOLES, 1, Role::Elementwise);
    }
    for slot in [INITIAL_H, INITIAL_C] {
        coupling.role(slot, 2, Role::Elementwise);
    }
}

fn features(coupling: &mut Coupling) {
    coupling.contract(input(X, 2), input(W, 2));
    coupling.role(W, 2, Role::Consumer);
}

/// Batch passes; time and directions keep their sizes.
fn others(coupling: &mut Coupling, attrs: &RecurrentAttrs, op: &str, ports: &Ports) {
    let (time, batch) = if attrs.batch_first { (1, 0) } else { (0, 1) };
    let (recurs, one_each) =
        (format!("{op} recurs over this axis"), format!("{op} has a direction at each index"));
    coupling.lock(input(X, time), &recurs);
    coupling.lock(AxisRef { port: Port::Out(0), axis: time }, &recurs);
    for port in ends(ports) {
        let (batch_here, direction) = match (attrs.batch_first, port == Port::Out(0)) {
            (true, true) => (0, 2),
            (true, false) => (0, 1),
            (false, true) => (2, 1),
            (false, false) => (1, 0),
        };
        coupling.same(input(X, batch), AxisRef { port, axis: batch_here });
        coupling.lock(AxisRef { port, axis: direction }, &one_each);
    }
    if ports.has(LENGTHS) {
        coupling.same(input(X, batch), input(LENGTHS, 0));
    }
    for slot in [W, R, BIAS, PEEPHOLES].into_iter().filter(|&slot| ports.has(slot)) {
        coupling.lock(input(slot, 0), &one_each);
    }
}

/// Outputs, and inputs of the same axes.
fn ends(ports: &Ports) -> impl Iterator<Item = Port> {
    let initial = [INITIAL_H, INITIAL_C].into_iter().filter(|&slot| ports.has(slot)).map(Port::In);
    initial.chain(outputs(ports))
}

fn outputs(ports: &Ports) -> impl Iterator<Item = Port> {
    (0..ports.outputs.len()).map(Port::Out).filter(|&port| ports.get(port).is_some())
}

fn last(port: Port, ports: &Ports) -> AxisRef {
    AxisRef { port, axis: ports.rank(port).unwrap_or(1).saturating_sub(1) }
}

/// What a masked unit leaves on axis `out` of an output.
///
/// Its gates read zero. LSTM: `c = f(0)·c₀ + f(0)·g(0)`, `h = f(0)·h(c)`; GRU, wherever it resets:
/// `h = (1 − f(0))·g(0) + f(0)·h₀`; RNN: `h = f(0)`. So the unit stays exactly zero if it begins there and its
/// candidate keeps zero, and merely finite if no activation can make it grow.
pub(super) fn masked(
    attrs: &RecurrentAttrs,
    node: &Node,
    ports: &Ports,
    out: AxisRef,
    fact: &dyn Fn(usize, usize) -> Fact,
) -> Fact {
    if Some(out.axis + 1) != ports.rank(out.port) {
        return Fact::Finite;
    }
    let rows = [(W, 1), (R, 1), (BIAS, 1), (PEEPHOLES, 1)];
    let given = |slot: usize| ports.has(slot);
    let silent = |&(slot, axis): &(usize, usize)| !given(slot) || fact(slot, axis) == ZERO;
    let facts = rows.iter().chain(&[(INITIAL_H, 2), (INITIAL_C, 2)]);
    if facts.filter(|at| given(at.0)).any(|at| fact(at.0, at.1) == Fact::Wild) {
        return Fact::Wild;
    }
    let functions = activations(attrs, node);
    let candidate = |index: usize| match (attrs.kind, index % per_direction(attrs.kind)) {
        (RecurrentKind::Lstm | RecurrentKind::Gru, 0) => false,
        (RecurrentKind::Lstm | RecurrentKind::Gru | RecurrentKind::Rnn, _) => true,
    };
    let zero_candidates =
        functions.iter().enumerate().all(|(index, name)| !candidate(index) || keeps_zero(name));
    let silent_rows = rows.iter().all(silent);
    let from_zero = [(INITIAL_H, 2), (INITIAL_C, 2)].iter().all(silent);
    let tame = |name: &String| bounded(name) || (silent_rows && keeps_zero(name));
    match (silent_rows && zero_candidates && from_zero, functions.iter().all(tame)) {
        (true, true) => ZERO,
        (false, true) => Fact::Finite,
        (_, false) => Fact::Wild,
    }
}

fn per_direction(kind: RecurrentKind) -> usize {
    match kind {
        RecurrentKind::Lstm => 3,
        RecurrentKind::Gru => 2,
        RecurrentKind::Rnn => 1,
    }
}

/// Names in lower case, those of the second direction behind those of the first.
fn activations(attrs: &RecurrentAttrs, node: &Node) -> Vec<String> {
    if let Some(AttributeValue::Strings(names)) = node.attr("activations") {
        return names.iter().map(|name| String::from_utf8_lossy(name).to_lowercase()).collect();
    }
    let defaults: &[&str] = match attrs.kind {
        RecurrentKind::Lstm => &["sigmoid", "tanh", "tanh"],
        RecurrentKind::Gru => &["sigmoid", "tanh"],
        RecurrentKind::Rnn => &["tanh"],
    };
    defaults.iter().map(|name| (*name).to_owned()).collect()
}

/// Whatever its parameters: `f(0) = 0`.
fn keeps_zero(name: &str) -> bool {
    matches!(
        name,
        "relu" | "tanh" | "leakyrelu" | "thresholdedrelu" | "scaledtanh" | "elu" | "softsign"
    )
}

fn bounded(name: &str) -> bool {
    matches!(name, "sigmoid" | "tanh" | "hardsigmoid" | "softsign")
}
