use std::convert::Infallible;

use super::*;
use crate::allocate::testing::{Chain, chains};
use proptest::prelude::*;

/// A machine on which a chain takes a fixed time, and time for its work, more of it for some groups' layers.
#[derive(Debug, Clone)]
struct Machine {
    chain: Chain,
    fixed: f64,
    /// Measured times are this much of what work alone would take.
    slow: f64,
    measured: usize,
}

impl Machine {
    fn time(&self, choice: &[usize]) -> f64 {
        let none = vec![0; self.chain.menus.len()];
        let share = (self.chain.cost(choice) / self.chain.cost(&none)).powf(self.slow);
        self.fixed + (1.0 - self.fixed) * share
    }

    fn table(&self) -> Vec<Vec<(usize, f64)>> {
        let none = vec![0; self.chain.menus.len()];
        let column = |(group, menu): (usize, &Menu)| {
            let steps = menu.steps().iter().enumerate().skip(1);
            steps.map(|(at, step)| (step.width, self.time(&with(&none, group, at)))).collect()
        };
        self.chain.menus.iter().enumerate().map(column).collect()
    }

    fn tune(&mut self, limit: f64) -> Tuned {
        let menus = self.chain.menus.clone();
        let mut latency = Latency::new(&menus, &self.table(), Some(self.chain.clone()));
        let mut count = 0;
        let found = tune::<_, Infallible>(&menus, &mut latency, limit, &mut |choice| {
            count += 1;
            Ok(self.time(choice))
        });
        self.measured += count;
        found.unwrap().unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_limit_is_met_by_measurement_or_the_narrowest_was_measured(
        chain in chains(),
        fixed in 0.0f64..0.5,
        slow in 0.5f64..1.2,
        limit in 0.2f64..1.1,
    ) {
        let mut machine = Machine { chain, fixed, slow, measured: 0 };
        let found = machine.tune(limit);
        prop_assert!(machine.measured <= CORRECTIONS + MOVES + 1);
        prop_assert_eq!(found.best.measured, machine.time(&found.best.choice));
        let narrowest: Vec<usize> =
            machine.chain.menus.iter().map(|menu| menu.steps().len() - 1).collect();
        prop_assert_eq!(found.met, found.best.measured <= limit);
        if !found.met {
            prop_assert!(machine.time(&narrowest) > limit);
            prop_assert_eq!(&found.best.choice, &narrowest);
        }
    }
}

/// On a machine that takes time for work alone, one correction makes the table exact, and the limit is nearly used.
#[test]
fn the_limit_is_nearly_used() {
    let chain = Chain::new(&[256, 256, 256, 256], &[1.0, 4.0, 2.0, 0.5]);
    for (fixed, slow) in [(0.0, 1.0), (0.3, 1.0), (0.1, 0.8)] {
        let mut machine = Machine { chain: chain.clone(), fixed, slow, measured: 0 };
        let found = machine.tune(0.6);
        assert!(found.met && found.best.measured > 0.5, "{fixed} {slow}: {:?}", found.best);
    }
}

#[test]
fn savings_that_meet_in_one_layer_are_not_counted_twice() {
    let chain = Chain { inputs: 0, outputs: 0, ..Chain::new(&[64, 64], &[1.0, 1.0]) };
    let machine = Machine { chain, fixed: 0.0, slow: 1.0, measured: 0 };
    let menus = machine.chain.menus.clone();
    let mut latency = Latency::new(&menus, &machine.table(), Some(machine.chain.clone()));
    // Both at half: a quarter of the work is left, where each alone saved half.
    assert!((latency.of(&[2, 2]).unwrap() - 0.25).abs() < 1e-12);
    let mut apart = Latency::new(&menus, &machine.table(), None::<Chain>);
    assert!(apart.of(&[2, 2]).unwrap().abs() < 1e-12);
    apart.correct(&[2, 2], 0.25).unwrap();
    assert!((apart.of(&[2, 2]).unwrap() - 0.25).abs() < 1e-12);
}

#[test]
fn nothing_that_is_slower_than_the_whole_is_called_within_a_limit_of_the_whole() {
    let chain = Chain::new(&[64, 64], &[1.0, 1.0]);
    let menus = chain.menus.clone();
    let table = vec![vec![(48, 1.3), (32, 1.2), (16, 1.1)]; 2];
    let mut latency = Latency::new(&menus, &table, Some(chain));
    let mut slower = |choice: &[usize]| {
        Ok::<_, Infallible>(if choice.iter().all(|at| *at == 0) { 1.0 } else { 1.2 })
    };
    let found = tune(&menus, &mut latency, 0.9, &mut slower).unwrap().unwrap();
    assert!(!found.met && found.best.measured >= 1.0);
    let found = tune(&menus, &mut latency, 1.0, &mut slower).unwrap().unwrap();
    assert_eq!((found.met, found.best.choice), (true, vec![0, 0]));
}
