//! A network of layers in a row, whose cost is known by heart.
#![allow(clippy::unwrap_used)]

use std::convert::Infallible;

use proptest::prelude::*;

use super::menu::{Menu, sampled_widths};
use super::search::Cost;

/// Layers between groups of units: each costs the product of the widths it lies between.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    pub(crate) menus: Vec<Menu>,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) asked: usize,
}

impl Chain {
    pub(crate) fn new(widths: &[usize], losses: &[f64]) -> Self {
        let menu = |(width, loss): (&usize, &f64)| {
            let lost = |at: usize| loss * (1.0 - at as f64 / *width as f64).powi(2);
            let points: Vec<_> =
                sampled_widths(*width).into_iter().map(|at| (at, lost(at))).collect();
            Menu::of(*width, &points)
        };
        let menus = widths.iter().zip(losses).map(menu).collect();
        Self { menus, inputs: 9, outputs: 10, asked: 0 }
    }

    pub(crate) fn cost(&self, choice: &[usize]) -> f64 {
        let inner = self.menus.iter().zip(choice).map(|(menu, at)| menu.step(*at).width);
        let widths: Vec<usize> =
            [self.inputs].into_iter().chain(inner).chain([self.outputs]).collect();
        widths.windows(2).map(|pair| (pair[0] * pair[1]) as f64).sum()
    }

    /// Every choice there is.
    pub(crate) fn choices(&self) -> Vec<Vec<usize>> {
        let mut all = vec![Vec::new()];
        for menu in &self.menus {
            let longer = |c: &Vec<usize>| {
                (0..menu.steps().len()).map(|at| [c.as_slice(), &[at]].concat()).collect::<Vec<_>>()
            };
            all = all.iter().flat_map(longer).collect();
        }
        all
    }
}

impl Cost for Chain {
    type Error = Infallible;

    fn of(&mut self, choice: &[usize]) -> Result<f64, Infallible> {
        self.asked += 1;
        Ok(self.cost(choice))
    }
}

/// Chains of a few groups.
pub(crate) fn chains() -> impl Strategy<Value = Chain> {
    let width = prop::sample::select(vec![8usize, 16, 24, 32, 48, 64]);
    prop::collection::vec((width, 0.01f64..10.0), 1..5).prop_map(|groups| {
        let (widths, losses): (Vec<usize>, Vec<f64>) = groups.into_iter().unzip();
        Chain::new(&widths, &losses)
    })
}
