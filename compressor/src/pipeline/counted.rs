//! What a choice of widths costs in parameters, multiply-accumulates or bytes, by cutting the model.

use std::collections::HashMap;

use graph::{Model, NodeId};

use super::Progress;
use super::curves::choices;
use super::shop::{Source, constant_bytes};
use crate::allocate::{Cost, Menu};
use crate::error::CompressError;
use crate::refit;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Params,
    Macs,
    /// Bytes of the file, and those of it that are no constants.
    Size {
        overhead: i64,
    },
}

/// Counts choices of widths.
pub(crate) struct Counter<'a> {
    source: &'a Source,
    units: &'a [Vec<f64>],
    menus: &'a [Menu],
    what: What,
    /// Layers that are re-fitted, which gives convolutions a bias.
    refitted: Vec<NodeId>,
    progress: &'a dyn Progress,
    known: HashMap<Vec<usize>, f64>,
}

impl<'a> Counter<'a> {
    /// `units` are the ratings of each group's units.
    pub(crate) fn new(
        source: &'a Source,
        units: &'a [Vec<f64>],
        menus: &'a [Menu],
        what: What,
        refitted: Vec<NodeId>,
        progress: &'a dyn Progress,
    ) -> Self {
        Self { source, units, menus, what, refitted, progress, known: HashMap::new() }
    }

    fn count(&self, choice: &[usize]) -> Result<f64, CompressError> {
        if self.progress.cancelled() {
            return Err(CompressError::Cancelled("counting choices of widths".into()));
        }
        let choices = choices(self.source, self.units, &narrowed(self.menus, choice));
        match self.source.pruned(&choices) {
            Ok(model) => Ok(counted(&model, self.what, &self.refitted)),
            // Widths that do not go together cost too much.
            Err(error) => error.of_candidate().map(|_| f64::INFINITY),
        }
    }
}

/// What `model` costs once the layers at `refitted` were re-fitted.
pub(crate) fn counted(model: &Model, what: What, refitted: &[NodeId]) -> f64 {
    match what {
        What::Macs => graph::cost::macs(model, &graph::infer(model), 1) as f64,
        What::Params => (graph::cost::params(model) + new_biases(model, refitted)) as f64,
        What::Size { overhead } => {
            (constant_bytes(model) + 4 * new_biases(model, refitted)) as f64 + overhead as f64
        }
    }
}

/// Elements of the biases that a re-fit adds.
fn new_biases(model: &Model, refitted: &[NodeId]) -> u64 {
    let graph = &model.graph;
    let there = refitted.iter().filter(|node| graph.get_node(**node).is_some());
    let sites = there.filter_map(|node| refit::site(graph, *node).ok());
    let bare = sites.filter(|site| site.bias.is_none() && site.conv.is_some());
    let outputs = bare.filter_map(|site| Some(site.size(&graph.constant(site.weight)?.dims).1));
    outputs.map(|outputs| outputs as u64).sum()
}

/// Groups that a choice narrows, and their widths.
pub(crate) fn narrowed(menus: &[Menu], choice: &[usize]) -> Vec<(usize, usize)> {
    let all = menus.iter().zip(choice).enumerate().filter(|(_, (_, at))| **at > 0);
    all.map(|(group, (menu, at))| (group, menu.step(*at).width)).collect()
}

impl Cost for Counter<'_> {
    type Error = CompressError;

    fn of(&mut self, choice: &[usize]) -> Result<f64, CompressError> {
        if let Some(known) = self.known.get(choice) {
            return Ok(*known);
        }
        let counted = self.count(choice)?;
        self.known.insert(choice.to_vec(), counted);
        Ok(counted)
    }

    /// A unit stands on at most two axes of a product, so that counts along one group are a polynomial of its width of
    /// degree two at most, but for constants that layers share as long as they take the same of it: three widths give
    /// them all.
    fn along(
        &mut self,
        choice: &[usize],
        group: usize,
        steps: usize,
    ) -> Result<Vec<f64>, CompressError> {
        let at = |step: usize| crate::allocate::search::with(choice, group, step);
        if steps > 3 {
            let nodes = [0, steps / 2, steps - 1];
            let width = |step: usize| self.menus[group].step(step).width as f64;
            let x = nodes.map(width);
            let all: Vec<f64> = (0..steps).map(width).collect();
            let mut y = [0.0; 3];
            for (y, step) in y.iter_mut().zip(nodes) {
                *y = self.of(&at(step))?;
            }
            if y.iter().all(|y| y.is_finite()) {
                return Ok(all.into_iter().map(|w| parabola(x, y, w)).collect());
            }
        }
        (0..steps).map(|step| self.of(&at(step))).collect()
    }
}

/// The parabola through three points (Lagrange), at `w`.
fn parabola(x: [f64; 3], y: [f64; 3], w: f64) -> f64 {
    let part = |i: usize, j: usize, k: usize| {
        y[i] * (w - x[j]) * (w - x[k]) / ((x[i] - x[j]) * (x[i] - x[k]))
    };
    part(0, 1, 2) + part(1, 0, 2) + part(2, 0, 1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::allocate::sampled_widths;
    use crate::pipeline::Silent;

    /// Along every group of a residual network, three cuts give what each cut gives, but for a few shared constants.
    #[test]
    fn three_widths_give_the_counts_of_all() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/fashion.onnx");
        let source = Source::load(&path).unwrap();
        let menu = |width: usize| {
            let points: Vec<_> = sampled_widths(width).into_iter().map(|w| (w, 1.0)).collect();
            Menu::of(width, &points)
        };
        let menus: Vec<Menu> = source.widths().into_iter().map(menu).collect();
        let units: Vec<Vec<f64>> = source.widths().iter().map(|w| vec![1.0; *w]).collect();
        let around: Vec<usize> = menus.iter().enumerate().map(|(i, _)| i % 2).collect();
        let mut interpolated = 0;
        for what in [What::Params, What::Macs, What::Size { overhead: -3 }] {
            let mut counter = Counter::new(&source, &units, &menus, what, Vec::new(), &Silent);
            for (group, menu) in menus.iter().enumerate() {
                let steps = menu.steps().len();
                let along = counter.along(&around, group, steps).unwrap();
                for (step, counted) in along.into_iter().enumerate() {
                    let choice = crate::allocate::search::with(&around, group, step);
                    let cut = counter.count(&choice).unwrap();
                    let off = (cut - counted).abs() / cut;
                    let most = if what == What::Macs { 1e-9 } else { 1e-2 };
                    assert!(off <= most, "{what:?} {group} at {step}: {cut}, not {counted}");
                }
                interpolated += usize::from(steps > 3);
            }
        }
        assert!(interpolated > 0);
    }
}
