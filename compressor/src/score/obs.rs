//! Second-order removal of whole units with compensation: the optimal brain surgeon over structures, greedily.
//!
//! For a consumer with inputs X (rows by `k`), weights W (`k` by `m`) and H = XᵀX + λ·I, removing the inputs S of a
//! unit and moving all other weights to where they make up for it best costs, and is done by,
//!
//! ```text
//! loss = tr(W_Sᵀ · (H⁻¹_SS)⁻¹ · W_S)
//! W   ← W   − H⁻¹_:S · (H⁻¹_SS)⁻¹ · W_S
//! H⁻¹ ← H⁻¹ − H⁻¹_:S · (H⁻¹_SS)⁻¹ · H⁻¹_S:
//! ```
//!
//! (Hassibi & Stork 1993; for structures ZipLM, arXiv 2302.04089, section 3). A unit that several consumers read
//! costs the sum of what it costs each, as shares of what each computes. Knows nothing of graphs.

use crate::linalg::{Square, invert};

/// One consumer of a group's units.
#[derive(Debug, Clone)]
pub struct Reader {
    /// Second moments XᵀX of what it reads, `k` by `k`.
    pub moments: Square,
    /// Its weights, `k` inputs by `m` outputs, row-major.
    pub weights: Vec<f64>,
    /// Number of outputs.
    pub outputs: usize,
    /// Inputs of each unit.
    pub units: Vec<Vec<usize>>,
}

/// A unit that was removed, and what it cost when it was its turn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// The unit.
    pub unit: usize,
    /// The loss, as a share of what the readers compute, summed over them.
    pub loss: f64,
}

/// Share of the mean diagonal added to the second moments.
pub const DAMPING: f64 = 1e-2;

/// The order in which units are removed until `keep` are left, cheapest first, and the compensated weights of
/// every reader (rows of removed inputs are zero).
///
/// # Errors
/// A sentence: a reader's moments cannot be inverted, or its units do not fit.
pub fn order(
    readers: &[Reader],
    width: usize,
    keep: usize,
) -> Result<(Vec<Step>, Vec<Vec<f64>>), String> {
    let mut states: Vec<State> = readers.iter().map(|r| State::new(r, width)).collect::<Result<_, _>>()?;
    let mut alive: Vec<usize> = (0..width).collect();
    let mut steps = Vec::with_capacity(width.saturating_sub(keep));
    while alive.len() > keep.max(1) {
        let mut best: Option<(usize, f64)> = None;
        for (at, &unit) in alive.iter().enumerate() {
            let loss: f64 = states.iter().map(|s| s.loss(unit)).sum();
            if best.is_none_or(|(_, least)| loss < least) {
                best = Some((at, loss));
            }
        }
        let Some((at, loss)) = best else { break };
        let unit = alive.remove(at);
        states.iter_mut().try_for_each(|s| s.remove(unit))?;
        steps.push(Step { unit, loss });
    }
    Ok((steps, states.into_iter().map(|s| s.weights).collect()))
}

/// A reader while units are removed from it.
struct State {
    inverse: Square,
    weights: Vec<f64>,
    outputs: usize,
    units: Vec<Vec<usize>>,
    /// tr(WᵀHW) of the whole reader.
    energy: f64,
}

impl State {
    fn new(reader: &Reader, width: usize) -> Result<Self, String> {
        let k = reader.moments.size();
        if reader.weights.len() != k * reader.outputs || reader.units.len() != width {
            return Err(format!(
                "{} weights and {} units do not fit {k} inputs and a group of {width}",
                reader.weights.len(),
                reader.units.len()
            ));
        }
        if reader.units.iter().flatten().any(|&input| input >= k) {
            return Err(format!("a unit's input is outside of {k}"));
        }
        let mut damped = reader.moments.clone();
        let shift = DAMPING * damped.mean_diagonal().max(f64::MIN_POSITIVE);
        damped.add_diagonal(shift);
        let energy = damped.energy(&reader.weights, reader.outputs).max(f64::MIN_POSITIVE);
        Ok(Self {
            inverse: invert(&damped).ok_or("its second moments cannot be inverted")?,
            weights: reader.weights.clone(),
            outputs: reader.outputs,
            units: reader.units.clone(),
            energy,
        })
    }

    /// (H⁻¹_SS)⁻¹·W_S, `s` by `m`; none where the block is singular, which a removed or dead input makes it.
    fn pull(&self, inputs: &[usize]) -> Option<Vec<f64>> {
        let block = invert(&self.inverse.block(inputs))?;
        let (s, m) = (inputs.len(), self.outputs);
        let mut pull = vec![0.0; s * m];
        for i in 0..s {
            for (j, &input) in inputs.iter().enumerate() {
                let factor = block.at(i, j);
                let row = &self.weights[input * m..(input + 1) * m];
                pull[i * m..(i + 1) * m].iter_mut().zip(row).for_each(|(p, w)| *p += factor * w);
            }
        }
        Some(pull)
    }

    fn loss(&self, unit: usize) -> f64 {
        let inputs = &self.units[unit];
        let Some(pull) = self.pull(inputs) else { return 0.0 };
        let m = self.outputs;
        let rows = inputs.iter().flat_map(|&input| &self.weights[input * m..(input + 1) * m]);
        rows.zip(&pull).map(|(w, p)| w * p).sum::<f64>().max(0.0) / self.energy
    }

    fn remove(&mut self, unit: usize) -> Result<(), String> {
        let inputs = std::mem::take(&mut self.units[unit]);
        let (k, m) = (self.inverse.size(), self.outputs);
        if let Some(pull) = self.pull(&inputs) {
            for i in 0..k {
                for (j, &input) in inputs.iter().enumerate() {
                    let factor = self.inverse.at(i, input);
                    let row = &mut self.weights[i * m..(i + 1) * m];
                    row.iter_mut().zip(&pull[j * m..(j + 1) * m]).for_each(|(w, p)| *w -= factor * p);
                }
            }
            self.inverse.eliminate(&inputs).ok_or("its second moments became singular")?;
        }
        for input in inputs {
            self.weights[input * m..(input + 1) * m].fill(0.0);
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "obs_tests.rs"]
mod tests;
