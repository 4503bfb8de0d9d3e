//! LSTM, GRU and RNN, step by step in f64.
//!
//! Formulas and the order of gates are those of the ONNX operator pages. Steps beyond a sequence's length are
//! zeros, and a reversed direction starts at the sequence's own end.

use graph::{AttributeValue, Node, RecurrentAttrs, RecurrentKind};

use super::Context;
use crate::error::{Result, invalid, unsupported};
use crate::value::Value;

/// Outputs `Y`, `Y_h` and, for LSTM, `Y_c`.
pub(super) fn recurrent(attrs: &RecurrentAttrs, cx: &Context<'_>) -> Result<Vec<Value>> {
    let x = cx.get(0)?;
    let weights = Weights::read(attrs, cx)?;
    let data = time_first(x, attrs)?;
    let &[steps, batch, features] = data.dims() else { return invalid("X must have three axes") };
    if features != weights.features {
        return invalid(format!(
            "{features} features, and weights for {} of them",
            weights.features
        ));
    }
    let (directions, hidden) = (attrs.directions, weights.hidden);
    let input = data.floats()?;
    let lengths = lengths(cx, steps, batch)?;
    let mut h = state(cx, 5, attrs, [directions, batch, hidden])?;
    let mut c = state(cx, 6, attrs, [directions, batch, hidden])?;
    let mut y = vec![0.0; steps * directions * batch * hidden];
    for direction in 0..directions {
        let cell = Cell::new(attrs, cx.node, &weights, direction)?;
        let reversed = cell.reversed;
        for (sample, &length) in lengths.iter().enumerate() {
            let at = (direction * batch + sample) * hidden;
            let (h, c) = (&mut h[at..at + hidden], &mut c[at..at + hidden]);
            for step in 0..length {
                let step = if reversed { length - 1 - step } else { step };
                let from = (step * batch + sample) * features;
                cell.step(&input[from..from + features], h, c);
                let to = ((step * directions + direction) * batch + sample) * hidden;
                y[to..to + hidden].copy_from_slice(h);
            }
        }
    }
    let y = Value::from_floats(y, &[steps, directions, batch, hidden], x.dtype)?;
    let last = |values: Vec<f64>| -> Result<Value> {
        let value = Value::from_floats(values, &[directions, batch, hidden], x.dtype)?;
        if attrs.batch_first { Ok(value.with(value.array.transpose(0, 1)?)) } else { Ok(value) }
    };
    let y = if attrs.batch_first { y.with(y.array.permute([2, 0, 1, 3])?) } else { y };
    Ok(vec![y, last(h)?, last(c)?])
}

/// `[T, N, I]` whatever the layout.
fn time_first(x: &Value, attrs: &RecurrentAttrs) -> Result<Value> {
    if attrs.batch_first && x.rank() == 3 {
        return Ok(x.with(x.array.transpose(0, 1)?));
    }
    Ok(x.clone())
}

fn lengths(cx: &Context<'_>, steps: usize, batch: usize) -> Result<Vec<usize>> {
    let Some(given) = cx.find(4) else { return Ok(vec![steps; batch]) };
    let lengths = given.ints()?.into_iter().map(super::size_of).collect::<Result<Vec<_>>>()?;
    if lengths.len() != batch || lengths.iter().any(|&length| length > steps) {
        return invalid(format!("lengths {lengths:?} for {batch} sequences of {steps} steps"));
    }
    Ok(lengths)
}

/// `[D, N, H]`, zeros where it is not given.
fn state(
    cx: &Context<'_>,
    slot: usize,
    attrs: &RecurrentAttrs,
    dims: [usize; 3],
) -> Result<Vec<f64>> {
    let Some(given) = cx.find(slot) else { return Ok(vec![0.0; dims.iter().product()]) };
    let state = time_first(given, attrs)?;
    if state.dims() != dims {
        return invalid(format!("an initial state {:?}, wanted {dims:?}", state.dims()));
    }
    state.floats()
}

/// The constants of both directions, as the file has them.
struct Weights {
    gates: usize,
    hidden: usize,
    features: usize,
    w: Vec<f64>,
    r: Vec<f64>,
    bias: Vec<f64>,
    peepholes: Vec<f64>,
}

impl Weights {
    fn read(attrs: &RecurrentAttrs, cx: &Context<'_>) -> Result<Self> {
        let gates = match attrs.kind {
            RecurrentKind::Lstm => 4,
            RecurrentKind::Gru => 3,
            RecurrentKind::Rnn => 1,
        };
        let (w, r) = (cx.get(1)?, cx.get(2)?);
        let (&[_, rows, features], &[directions, _, hidden]) = (w.dims(), r.dims()) else {
            return invalid("W and R must have three axes");
        };
        let fits = rows == gates * hidden
            && r.dims() == [directions, rows, hidden]
            && directions == attrs.directions
            && w.dims()[0] == directions
            && (attrs.hidden == 0 || attrs.hidden == hidden);
        if !fits {
            return invalid(format!(
                "weights do not fit {gates} gates of {} hidden units in {} directions",
                attrs.hidden, attrs.directions
            ));
        }
        let optional = |slot: usize, columns: usize| -> Result<Vec<f64>> {
            match cx.find(slot) {
                None => Ok(vec![0.0; directions * columns]),
                Some(value) if value.dims() == [directions, columns] => value.floats(),
                Some(value) => {
                    invalid(format!("input {slot} is {:?}, wanted {columns} columns", value.dims()))
                }
            }
        };
        Ok(Self {
            gates,
            hidden,
            features,
            w: w.floats()?,
            r: r.floats()?,
            bias: optional(3, 2 * rows)?,
            peepholes: optional(7, 3 * hidden)?,
        })
    }
}

/// One direction's step.
struct Cell<'a> {
    kind: RecurrentKind,
    reversed: bool,
    hidden: usize,
    features: usize,
    w: &'a [f64],
    r: &'a [f64],
    /// Of the input's product, then of the recurrence's.
    bias: (&'a [f64], &'a [f64]),
    peepholes: &'a [f64],
    activations: Vec<Activation>,
    clip: f64,
    input_forget: bool,
    reset_behind: bool,
}

impl<'a> Cell<'a> {
    fn new(
        attrs: &RecurrentAttrs,
        node: &Node,
        weights: &'a Weights,
        direction: usize,
    ) -> Result<Self> {
        let rows = weights.gates * weights.hidden;
        let part = |of: &'a [f64], len: usize| &of[direction * len..(direction + 1) * len];
        let each = match attrs.kind {
            RecurrentKind::Lstm => 3,
            RecurrentKind::Gru => 2,
            RecurrentKind::Rnn => 1,
        };
        let all = activations(node, attrs.kind, each * attrs.directions)?;
        let flag = |name: &str| node.attr_int(name).unwrap_or(0) != 0;
        Ok(Self {
            kind: attrs.kind,
            reversed: direction == 1 || node.attr_str("direction") == Some("reverse"),
            hidden: weights.hidden,
            features: weights.features,
            w: part(&weights.w, rows * weights.features),
            r: part(&weights.r, rows * weights.hidden),
            bias: part(&weights.bias, 2 * rows).split_at(rows),
            peepholes: part(&weights.peepholes, 3 * weights.hidden),
            activations: all[direction * each..(direction + 1) * each].to_vec(),
            clip: node.attr_float("clip").map_or(f64::INFINITY, f64::from),
            input_forget: flag("input_forget"),
            reset_behind: flag("linear_before_reset"),
        })
    }

    fn step(&self, x: &[f64], h: &mut [f64], c: &mut [f64]) {
        match self.kind {
            RecurrentKind::Lstm => self.lstm(x, h, c),
            RecurrentKind::Gru => self.gru(x, h),
            RecurrentKind::Rnn => {
                let rows = self.rows(0, x, h);
                h.iter_mut().zip(rows).for_each(|(h, row)| *h = self.activate(0, row));
            }
        }
    }

    /// Gates stand in the order input, output, forget, cell; peepholes in the order input, output, forget.
    fn lstm(&self, x: &[f64], h: &mut [f64], c: &mut [f64]) {
        let gates: Vec<Vec<f64>> = (0..4).map(|gate| self.rows(gate, x, h)).collect();
        let peephole = |gate: usize, unit: usize| self.peepholes[gate * self.hidden + unit];
        for unit in 0..self.hidden {
            let input = self.activate(0, gates[0][unit] + peephole(0, unit) * c[unit]);
            let forget = match self.input_forget {
                true => 1.0 - input,
                false => self.activate(0, gates[2][unit] + peephole(2, unit) * c[unit]),
            };
            c[unit] = forget * c[unit] + input * self.activate(1, gates[3][unit]);
            let output = self.activate(0, gates[1][unit] + peephole(1, unit) * c[unit]);
            h[unit] = output * self.activate(2, c[unit]);
        }
    }

    /// Gates stand in the order update, reset, hidden.
    fn gru(&self, x: &[f64], h: &mut [f64]) {
        let gate = |gate: usize| -> Vec<f64> {
            self.rows(gate, x, h).into_iter().map(|row| self.activate(0, row)).collect()
        };
        let (update, reset) = (gate(0), gate(1));
        let from_input = self.product(2, x, self.w, self.bias.0);
        let hidden: Vec<f64> = if self.reset_behind {
            let back = self.product(2, h, self.r, self.bias.1);
            from_input.iter().zip(back.iter().zip(&reset)).map(|(x, (h, r))| x + r * h).collect()
        } else {
            let kept: Vec<f64> = h.iter().zip(&reset).map(|(h, r)| h * r).collect();
            let back = self.product(2, &kept, self.r, self.bias.1);
            from_input.iter().zip(&back).map(|(x, h)| x + h).collect()
        };
        for unit in 0..self.hidden {
            let candidate = self.activate(1, hidden[unit]);
            h[unit] = (1.0 - update[unit]) * candidate + update[unit] * h[unit];
        }
    }

    /// What a gate reads of the input and of the state.
    fn rows(&self, gate: usize, x: &[f64], h: &[f64]) -> Vec<f64> {
        let from_input = self.product(gate, x, self.w, self.bias.0);
        let back = self.product(gate, h, self.r, self.bias.1);
        from_input.into_iter().zip(back).map(|(x, h)| x + h).collect()
    }

    fn product(&self, gate: usize, from: &[f64], weights: &[f64], bias: &[f64]) -> Vec<f64> {
        let columns = from.len();
        let rows = gate * self.hidden..(gate + 1) * self.hidden;
        debug_assert!(columns == self.features || columns == self.hidden);
        let row = |row: usize| {
            let weights = &weights[row * columns..(row + 1) * columns];
            weights.iter().zip(from).map(|(w, x)| w * x).sum::<f64>() + bias[row]
        };
        rows.map(row).collect()
    }

    fn activate(&self, index: usize, x: f64) -> f64 {
        // `clamp` panics on bounds out of order, which a file could ask for.
        let x = if self.clip > 0.0 { x.clamp(-self.clip, self.clip) } else { x };
        self.activations[index].apply(x)
    }
}

/// A named function with its parameters.
#[derive(Debug, Clone, PartialEq)]
struct Activation {
    name: String,
    alpha: f64,
    beta: f64,
}

/// The activations of all directions. Functions that have parameters take them in order from the attributes.
fn activations(node: &Node, kind: RecurrentKind, count: usize) -> Result<Vec<Activation>> {
    let names: Vec<String> = match node.attr("activations") {
        Some(AttributeValue::Strings(names)) => {
            names.iter().map(|name| String::from_utf8_lossy(name).to_lowercase()).collect()
        }
        _ => {
            let defaults: &[&str] = match kind {
                RecurrentKind::Lstm => &["sigmoid", "tanh", "tanh"],
                RecurrentKind::Gru => &["sigmoid", "tanh"],
                RecurrentKind::Rnn => &["tanh"],
            };
            defaults.iter().cycle().take(count).map(|name| (*name).to_owned()).collect()
        }
    };
    if names.len() != count {
        return invalid(format!("{} activations, wanted {count}", names.len()));
    }
    let floats = |name: &str| match node.attr(name) {
        Some(AttributeValue::Floats(values)) => values.clone(),
        _ => Vec::new(),
    };
    let (alphas, betas) = (floats("activation_alpha"), floats("activation_beta"));
    let (mut alphas, mut betas) = (alphas.into_iter(), betas.into_iter());
    let mut found = Vec::new();
    for name in names {
        let Some((alpha, beta)) = parameters(&name) else {
            return unsupported(format!("activation `{name}`"));
        };
        let take = |default: Option<f64>, given: &mut std::vec::IntoIter<f32>| {
            default.map_or(0.0, |default| given.next().map_or(default, f64::from))
        };
        let alpha = take(alpha, &mut alphas);
        found.push(Activation { name, alpha, beta: take(beta, &mut betas) });
    }
    Ok(found)
}

type Parameter = Option<f64>;

/// Defaults of alpha and beta, where the function has them; `None` for an unknown function.
fn parameters(name: &str) -> Option<(Parameter, Parameter)> {
    Some(match name {
        "relu" | "tanh" | "sigmoid" | "softsign" | "softplus" => (None, None),
        "affine" | "scaledtanh" => (Some(1.0), Some(if name == "affine" { 0.0 } else { 1.0 })),
        "leakyrelu" => (Some(0.01), None),
        "thresholdedrelu" | "elu" => (Some(1.0), None),
        "hardsigmoid" => (Some(0.2), Some(0.5)),
        _ => return None,
    })
}

impl Activation {
    fn apply(&self, x: f64) -> f64 {
        let (alpha, beta) = (self.alpha, self.beta);
        match self.name.as_str() {
            "relu" => x.max(0.0),
            "tanh" => x.tanh(),
            "sigmoid" => (1.0 + (-x).exp()).recip(),
            "softsign" => x / (1.0 + x.abs()),
            "softplus" => x.max(0.0) + (-x.abs()).exp().ln_1p(),
            "affine" => alpha * x + beta,
            "scaledtanh" => alpha * (beta * x).tanh(),
            "leakyrelu" if x < 0.0 => alpha * x,
            "thresholdedrelu" if x <= alpha => 0.0,
            "elu" if x < 0.0 => alpha * x.exp_m1(),
            "hardsigmoid" => (alpha * x + beta).clamp(0.0, 1.0),
            _ => x,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Activation {
        let (alpha, beta) = parameters(name).unwrap_or_default();
        Activation { name: name.to_owned(), alpha: alpha.unwrap_or(0.0), beta: beta.unwrap_or(0.0) }
    }

    #[test]
    fn activations_follow_the_specification() {
        for (name, x, wanted) in [
            ("relu", -1.0, 0.0),
            ("leakyrelu", -2.0, -0.02),
            ("thresholdedrelu", 0.5, 0.0),
            ("thresholdedrelu", 1.5, 1.5),
            ("elu", -1.0, (-1.0_f64).exp_m1()),
            ("hardsigmoid", 1.0, 0.7),
            ("hardsigmoid", 9.0, 1.0),
            ("softsign", -1.0, -0.5),
            ("softplus", 0.0, 2.0_f64.ln()),
            ("affine", 3.0, 3.0),
            ("scaledtanh", 0.0, 0.0),
        ] {
            let found = named(name).apply(x);
            assert!((found - wanted).abs() < 1e-12, "{name}({x}) is {found}, wanted {wanted}");
        }
    }
}
