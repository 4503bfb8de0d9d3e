//! A cost of latency from a table of measured savings, corrected by measurements of whole choices.
//!
//! The table holds what narrowing one group alone saved, as a share of the whole model's time. Savings of several
//! groups do not add up: a layer between two halved groups has a quarter of its work left, and each of the two alone
//! saved half of it. How far they add up is taken from the multiply-accumulates, which are known for every choice:
//!
//! ```text
//! time(c) = 1 − s · ρ(c) · Σ saving(c_g),    ρ(c) = (1 − work(c)) / Σ (1 − work(c_g alone))
//! ```
//!
//! with `work` as a share of the whole model's. What is left of the error is one factor `s`, which each
//! measurement of a whole choice sets anew. [`tune`] alternates the two, and ends with measured moves: the table
//! proposes, and only what was measured counts.

use super::menu::{Menu, Step, between};
use super::search::{Cost, Found, Searched, search, with};

/// Whole choices that set the factor.
const CORRECTIONS: usize = 3;
/// Whole choices measured after that.
const MOVES: usize = 6;
/// What is measured this close under the limit is not improved on.
const CLOSE: f64 = 0.97;
/// The factor stays within these.
const SCALE: (f64, f64) = (0.1, 4.0);
/// A predicted saving under this sets no factor.
const LEAST_SAVING: f64 = 1e-3;

/// Predicts the time of a choice as a share of the whole model's.
pub struct Latency<'a, W> {
    menus: &'a [Menu],
    /// For each group and step, the share of the time that it saves alone.
    savings: Vec<Vec<f64>>,
    /// Multiply-accumulates of a choice; none where they cannot be counted, and savings are taken to add up.
    work: Option<W>,
    /// Of the whole model, and what each step alone leaves of it; known after the first question.
    alone: Option<(f64, Vec<Vec<f64>>)>,
    scale: f64,
}

impl<'a, W: Cost> Latency<'a, W> {
    /// From `table`: for each group the time at measured widths, as a share of the whole model's, from wide to narrow.
    /// Between two widths it is taken to lie on the line between them.
    pub fn new(menus: &'a [Menu], table: &[Vec<(usize, f64)>], work: Option<W>) -> Self {
        let savings = menus.iter().zip(table).map(|(menu, times)| {
            let known = times.iter().map(|(width, time)| Step { width: *width, loss: 1.0 - time });
            let whole = Step { width: menu.step(0).width, loss: 0.0 };
            let known: Vec<Step> = [whole].into_iter().chain(known).collect();
            menu.steps().iter().map(|step| between(&known, step.width)).collect()
        });
        Self { menus, savings: savings.collect(), work, alone: None, scale: 1.0 }
    }

    /// The factor that measurements of whole choices gave.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Sets the factor by a choice whose time was measured.
    ///
    /// # Errors
    /// Those of the work.
    pub fn correct(&mut self, choice: &[usize], measured: f64) -> Result<(), W::Error> {
        let saving = 1.0 - self.of(choice)?;
        if saving.is_finite() && saving > LEAST_SAVING && measured.is_finite() {
            let scale = self.scale * (1.0 - measured) / saving;
            self.scale = scale.clamp(SCALE.0, SCALE.1);
        }
        Ok(())
    }

    fn predicted(&self, choice: &[usize], work: Option<f64>) -> f64 {
        let at = |table: &[Vec<f64>], group: usize, step: usize| {
            table.get(group).and_then(|steps| steps.get(step)).copied().unwrap_or(0.0)
        };
        let sum = |table: &[Vec<f64>]| -> f64 {
            choice.iter().enumerate().map(|(group, step)| at(table, group, *step)).sum()
        };
        let saving = sum(&self.savings);
        let Some((work, (whole, alone))) = work.zip(self.alone.as_ref()) else {
            return 1.0 - self.scale * saving;
        };
        if !work.is_finite() {
            return f64::INFINITY;
        }
        let (together, apart) = (whole - work, sum(alone));
        let share = if apart > 0.0 { (together / apart).clamp(0.0, 1.0) } else { 1.0 };
        1.0 - self.scale * share * saving
    }

    /// Asks once what each step alone saves of the work.
    fn look(&mut self) -> Result<(), W::Error> {
        let Some(work) = self.work.as_mut().filter(|_| self.alone.is_none()) else {
            return Ok(());
        };
        let none = vec![0; self.menus.len()];
        let whole = work.of(&none)?;
        let mut alone = Vec::with_capacity(self.menus.len());
        for (group, menu) in self.menus.iter().enumerate() {
            let left = work.along(&none, group, menu.steps().len())?;
            let saved = |left: f64| if left.is_finite() { whole - left } else { 0.0 };
            alone.push(left.into_iter().map(saved).collect());
        }
        self.alone = Some((whole, alone));
        Ok(())
    }
}

impl<W: Cost> Cost for Latency<'_, W> {
    type Error = W::Error;

    fn of(&mut self, choice: &[usize]) -> Result<f64, W::Error> {
        self.look()?;
        let work = self.work.as_mut().map(|work| work.of(choice)).transpose()?;
        Ok(self.predicted(choice, work))
    }

    fn along(
        &mut self,
        choice: &[usize],
        group: usize,
        steps: usize,
    ) -> Result<Vec<f64>, W::Error> {
        self.look()?;
        let work = self.work.as_mut().map(|work| work.along(choice, group, steps)).transpose()?;
        let at = |step: usize| work.as_ref().and_then(|all| all.get(step)).copied();
        Ok((0..steps).map(|step| self.predicted(&with(choice, group, step), at(step))).collect())
    }
}

/// A whole choice that was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// One step of each menu, by index.
    pub choice: Vec<usize>,
    /// Its time as a share of the whole model's, as predicted when it was proposed.
    pub predicted: f64,
    /// The same as measured.
    pub measured: f64,
    /// The sum of its losses.
    pub loss: f64,
}

/// What [`tune`] ended with.
#[derive(Debug, Clone, PartialEq)]
pub struct Tuned {
    /// The choice of least loss that was measured within the limit; else the fastest measured.
    pub best: Measured,
    /// Whether it is within the limit.
    pub met: bool,
    /// Everything measured, in order.
    pub tried: Vec<Measured>,
}

/// Finds the choice of least loss whose time is *measured* at no more than `limit`, as a share of the whole model's.
///
/// # Errors
/// Those of the measurement, among which those of the work must be.
pub fn tune<W, E>(
    menus: &[Menu],
    latency: &mut Latency<'_, W>,
    limit: f64,
    measure: &mut dyn FnMut(&[usize]) -> Result<f64, E>,
) -> Result<Option<Tuned>, E>
where
    W: Cost,
    E: From<W::Error>,
{
    let mut tuner = Tuner { menus, limit, measure, tried: Vec::new() };
    for _ in 0..CORRECTIONS {
        let (Searched::Within(next) | Searched::Unreachable(next)) = search(menus, latency, limit)?;
        if tuner.knows(&next.choice) {
            break;
        }
        let measured = tuner.ask(&next)?;
        latency.correct(&next.choice, measured)?;
        if measured <= limit && measured >= limit * CLOSE {
            break;
        }
    }
    for _ in 0..MOVES {
        let Some(next) = tuner.next(latency)? else { break };
        tuner.ask(&next)?;
    }
    if tuner.best().is_none() {
        tuner.narrowest(latency)?;
    }
    Ok(tuner.end())
}

struct Tuner<'a, E> {
    menus: &'a [Menu],
    limit: f64,
    measure: &'a mut dyn FnMut(&[usize]) -> Result<f64, E>,
    tried: Vec<Measured>,
}

impl<E> Tuner<'_, E> {
    fn knows(&self, choice: &[usize]) -> bool {
        self.tried.iter().any(|tried| tried.choice == choice)
    }

    fn ask(&mut self, next: &Found) -> Result<f64, E> {
        let measured = (self.measure)(&next.choice)?;
        self.tried.push(Measured {
            choice: next.choice.clone(),
            predicted: next.cost,
            measured,
            loss: next.loss,
        });
        Ok(measured)
    }

    fn best(&self) -> Option<&Measured> {
        let within = self.tried.iter().filter(|tried| tried.measured <= self.limit);
        within.min_by(|a, b| a.loss.total_cmp(&b.loss).then(a.measured.total_cmp(&b.measured)))
    }

    /// The fastest measured.
    fn fastest(&self) -> Option<&Measured> {
        self.tried.iter().min_by(|a, b| a.measured.total_cmp(&b.measured))
    }

    /// The next choice to measure: one step wider than the best where there is room, one step narrower than the
    /// fastest where nothing is within the limit.
    fn next<W>(&self, latency: &mut Latency<'_, W>) -> Result<Option<Found>, E>
    where
        W: Cost,
        E: From<W::Error>,
    {
        match (self.best(), self.fastest()) {
            (Some(best), _) => self.wider(latency, best),
            (None, Some(fastest)) => self.narrower(latency, fastest),
            (None, None) => Ok(None),
        }
    }

    /// The step wider that wins most, among those that keep within the limit if what they are predicted to cost is
    /// added to what was measured.
    fn wider<W>(&self, latency: &mut Latency<'_, W>, best: &Measured) -> Result<Option<Found>, E>
    where
        W: Cost,
        E: From<W::Error>,
    {
        let now = latency.of(&best.choice)?;
        let mut found: Option<Found> = None;
        for (group, &at) in best.choice.iter().enumerate().filter(|(_, at)| **at > 0) {
            let choice = with(&best.choice, group, at - 1);
            let cost = best.measured + latency.of(&choice)? - now;
            let loss = super::search::loss(self.menus, &choice);
            let better = found.as_ref().is_none_or(|known| loss < known.loss);
            if cost <= self.limit && loss < best.loss && better && !self.knows(&choice) {
                found = Some(Found { choice, cost, loss });
            }
        }
        Ok(found)
    }

    /// The step narrower that loses least for what it is predicted to save.
    fn narrower<W>(&self, latency: &mut Latency<'_, W>, from: &Measured) -> Result<Option<Found>, E>
    where
        W: Cost,
        E: From<W::Error>,
    {
        let now = latency.of(&from.choice)?;
        let mut found: Option<(f64, Found)> = None;
        for (group, &at) in from.choice.iter().enumerate() {
            for step in at + 1..self.menus[group].steps().len() {
                let choice = with(&from.choice, group, step);
                let saved = now - latency.of(&choice)?;
                let loss = super::search::loss(self.menus, &choice);
                // What is saved beyond the limit is worth nothing.
                let worth = saved.min(from.measured - self.limit);
                let price = (loss - from.loss) / worth;
                let better = found.as_ref().is_none_or(|(known, _)| price < *known);
                if worth > 0.0 && better && !self.knows(&choice) {
                    found = Some((price, Found { choice, cost: from.measured - saved, loss }));
                }
            }
        }
        Ok(found.map(|(_, found)| found))
    }

    /// Measures the narrowest choice, if it was not.
    fn narrowest<W>(&mut self, latency: &mut Latency<'_, W>) -> Result<(), E>
    where
        W: Cost,
        E: From<W::Error>,
    {
        let choice: Vec<usize> = self.menus.iter().map(|menu| menu.steps().len() - 1).collect();
        if !self.knows(&choice) {
            let loss = super::search::loss(self.menus, &choice);
            let next = Found { cost: latency.of(&choice)?, choice, loss };
            self.ask(&next)?;
        }
        Ok(())
    }

    fn end(self) -> Option<Tuned> {
        let best = self.best().cloned();
        let met = best.is_some();
        let best = best.or_else(|| self.fastest().cloned())?;
        Some(Tuned { best, met, tried: self.tried })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "latency_tests.rs"]
mod tests;
