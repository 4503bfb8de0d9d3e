//! Chooses widths: by count, and by measured time.

use super::super::counted::{Counter, narrowed};
use super::super::curves::Field;
use super::super::hunt::PAYS;
use super::super::shop::{Bench, Source, save};
use super::super::{Progress, curves};
use super::report::{Allocation, Even, Trial};
use super::{Limit, uniform};
use crate::allocate::latency::Measured;
use crate::allocate::search::{loss, neighbours};
use crate::allocate::{Cost, Found, Latency, Menu, Searched, Tuned, search, tune};
use crate::calibrate::WorkDir;
use crate::error::CompressError;
use crate::latency::HostLatency;

/// Powers that losses are raised to before they are added up: how losses of single groups add up in a whole model is
/// not known, so that the choices that several sums prefer are measured.
const EXPONENTS: [f64; 3] = [1.0, 0.5, 2.0];
/// Whole choices whose loss is measured to improve on the best.
const MEASURED_MOVES: usize = 12;
/// Share of a latency that is left under the budget in the search.
const TIME_MARGIN: f64 = 0.02;

/// A choice of widths.
pub(super) struct Chosen {
    pub(super) choice: Vec<usize>,
    predicted: f64,
    loss_predicted: f64,
    loss_measured: Option<f64>,
    even: Option<Even>,
    timed: Vec<Trial>,
}

impl Chosen {
    pub(super) fn report(self, limit: &Limit, real: f64) -> Allocation {
        Allocation {
            of: limit.name,
            budget: limit.most,
            original: limit.original,
            predicted: self.predicted,
            real,
            loss_predicted: self.loss_predicted,
            loss_measured: self.loss_measured,
            even: self.even,
            timed: self.timed,
            points: None,
        }
    }
}

/// Chooses by what can be counted.
pub(super) struct Counting<'a, 'f> {
    /// Measures losses of whole choices; none without samples.
    pub(super) field: Option<&'a mut Field<'f>>,
}

/// A choice within the budget, and its measured loss.
type Weighed = (Found, Option<f64>);

impl Counting<'_, '_> {
    /// The choice that loses least of those that cost at most `most`.
    pub(super) fn choose(
        mut self,
        menus: &[Menu],
        counter: &mut Counter<'_>,
        limit: &Limit,
        most: f64,
        progress: &dyn Progress,
    ) -> Result<Chosen, CompressError> {
        progress.stage("allocating widths", 0);
        let mut found = Vec::new();
        let exponents = if self.field.is_some() { &EXPONENTS[..] } else { &EXPONENTS[..1] };
        for exponent in exponents {
            let raised: Vec<Menu> = menus.iter().map(|menu| menu.raised(*exponent)).collect();
            match search(&raised, counter, most)? {
                Searched::Within(next) => {
                    let next = Found { loss: loss(menus, &next.choice), ..next };
                    if !found.iter().any(|known: &Found| known.choice == next.choice) {
                        found.push(next);
                    }
                }
                Searched::Unreachable(nearest) => return Err(limit.missed(nearest.cost)),
            }
        }
        let (ratio, even) = uniform(menus, counter, most)?;
        let even = Some(even).filter(|even| even.cost <= most);
        progress.stage("measuring choices", (found.len() + 1 + MEASURED_MOVES) as u64);
        let even_loss = even.as_ref().map(|even| self.measure(menus, &even.choice)).transpose()?;
        let even_loss = even_loss.flatten();
        let mut best: Option<Weighed> = even.clone().map(|even| (even, even_loss));
        for (at, next) in found.into_iter().enumerate() {
            let measured = self.measure(menus, &next.choice)?;
            let next = (next, measured);
            best = Some(match best {
                Some(best) => better(best, next),
                None => next,
            });
            progress.step(at as u64 + 2);
        }
        let Some(mut best) = best else {
            return Err(limit.missed(f64::INFINITY));
        };
        if self.field.is_some() {
            best = self.improve(menus, counter, most, best)?;
        }
        let (found, loss_measured) = best;
        let even = even.map(|even| Even {
            ratio,
            cost: even.cost,
            loss_predicted: even.loss,
            loss_measured: even_loss,
        });
        Ok(Chosen {
            choice: found.choice,
            predicted: found.cost,
            loss_predicted: found.loss,
            loss_measured,
            even,
            timed: Vec::new(),
        })
    }

    /// Goes from choice to choice as long as a move is measured to lose less.
    fn improve(
        &mut self,
        menus: &[Menu],
        counter: &mut Counter<'_>,
        most: f64,
        mut best: Weighed,
    ) -> Result<Weighed, CompressError> {
        let mut left = MEASURED_MOVES;
        let mut seen = vec![best.0.choice.clone()];
        loop {
            let before = best.0.choice.clone();
            for next in neighbours(menus, counter, &best.0, most, left)? {
                if seen.contains(&next.choice) {
                    continue;
                }
                seen.push(next.choice.clone());
                left -= 1;
                let measured = self.measure(menus, &next.choice)?;
                best = better(best, (next, measured));
                if left == 0 || best.0.choice != before {
                    break;
                }
            }
            if left == 0 || best.0.choice == before {
                return Ok(best);
            }
        }
    }

    fn measure(&mut self, menus: &[Menu], choice: &[usize]) -> Result<Option<f64>, CompressError> {
        match &mut self.field {
            Some(field) => field.loss(&narrowed(menus, choice)),
            None => Ok(None),
        }
    }
}

/// The one that is measured to lose less; what was not measured is judged by its curves, and by nothing beside one that
/// was.
fn better(known: Weighed, next: Weighed) -> Weighed {
    let wins = match (known.1, next.1) {
        (Some(a), Some(b)) => b < a,
        (None, Some(_)) => true,
        (Some(_), None) => false,
        (None, None) => next.0.loss < known.0.loss,
    };
    if wins { next } else { known }
}

/// Chooses by measured time.
pub(super) struct Timing<'a, 'f> {
    pub(super) source: &'a Source,
    pub(super) units: &'a [Vec<f64>],
    pub(super) work: &'a WorkDir,
    pub(super) field: &'a mut Field<'f>,
    pub(super) bench: &'a mut Bench,
}

impl Timing<'_, '_> {
    /// The choice that loses least of those that are measured to take at most `most`.
    pub(super) fn choose(
        mut self,
        menus: &[Menu],
        counter: &mut Counter<'_>,
        limit: &Limit,
        most: f64,
        progress: &dyn Progress,
    ) -> Result<Chosen, CompressError> {
        let ratio = most * (1.0 - TIME_MARGIN) / limit.original;
        let table = self.table(menus, progress)?;
        let work = (counter.of(&vec![0; menus.len()])? > 0.0).then_some(Borrowed(counter));
        let mut latency = Latency::new(menus, &table, work);
        progress.stage("timing choices", 0);
        let tuned = tune(menus, &mut latency, ratio, &mut |choice| {
            let took = self.time(&narrowed(menus, choice), ratio)?;
            Ok::<f64, CompressError>(took.map_or(f64::INFINITY, |host| host.ratio))
        })?;
        let Some(tuned) = tuned else {
            return Err(limit.missed(f64::INFINITY));
        };
        if !tuned.met {
            return Err(limit.missed(tuned.best.measured * limit.original));
        }
        let (share, even) = uniform(menus, &mut latency, ratio)?;
        let mut best = tuned.best.clone();
        let mut lost = self.field.loss(&narrowed(menus, &best.choice))?;
        let mut report = None;
        if even.cost <= ratio {
            let widths = narrowed(menus, &even.choice);
            let even_lost = self.field.loss(&widths)?;
            report = Some(Even {
                ratio: share,
                cost: even.cost * limit.original,
                loss_predicted: even.loss,
                loss_measured: even_lost,
            });
            let less = even_lost.zip(lost).is_some_and(|(even, ours)| even < ours);
            let took = if less { self.time(&widths, ratio)? } else { None };
            if let Some(took) = took.filter(|took| took.ratio <= ratio) {
                let (predicted, measured) = (even.cost, took.ratio);
                best = Measured { choice: even.choice, predicted, measured, loss: even.loss };
                lost = even_lost;
            }
        }
        Ok(Chosen {
            predicted: best.predicted * limit.original,
            loss_predicted: best.loss,
            loss_measured: lost,
            even: report,
            timed: trials(menus, &tuned),
            choice: best.choice,
        })
    }

    /// The time of each group alone at the widths of its curve, as a share of the original's.
    fn table(
        &mut self,
        menus: &[Menu],
        progress: &dyn Progress,
    ) -> Result<Vec<Vec<(usize, f64)>>, CompressError> {
        let widths = |menu: &Menu| crate::allocate::sampled_widths(menu.step(0).width);
        let total: usize = menus.iter().map(|menu| widths(menu).len()).sum();
        progress.stage("timing widths", total as u64);
        let (mut table, mut done) = (Vec::new(), 0);
        for (group, menu) in menus.iter().enumerate() {
            let mut column = Vec::new();
            for width in widths(menu) {
                let took = self.time(&[(group, width)], PAYS)?;
                column.extend(took.map(|host| (width, host.ratio)));
                done += 1;
                progress.step(done);
            }
            table.push(column);
        }
        Ok(table)
    }

    /// The time at these widths beside the original; none where such a model cannot be made or run, which is refused.
    fn time(
        &mut self,
        widths: &[(usize, usize)],
        limit: f64,
    ) -> Result<Option<HostLatency>, CompressError> {
        let widths = widths.to_vec();
        if widths.is_empty() {
            return Ok(Some(HostLatency::reference(&self.bench.stats)));
        }
        if let Some(known) = self.field.store.latency(&widths) {
            return Ok(Some(known));
        }
        self.field.check()?;
        let path = self.work.join("timed.onnx");
        let groups = curves::choices(self.source, self.units, &widths);
        let made = self.source.pruned(&groups).and_then(|model| save(&model, &path));
        match made.and_then(|_| self.bench.against_reference(&path, Some(limit))) {
            Ok(took) => {
                self.field.store.keep_latency(&widths, took)?;
                Ok(Some(took))
            }
            Err(error) => {
                let why = error.of_candidate()?;
                self.field.refuse(&widths, why);
                Ok(None)
            }
        }
    }
}

fn trials(menus: &[Menu], tuned: &Tuned) -> Vec<Trial> {
    let widths = |choice: &[usize]| -> Vec<usize> {
        menus.iter().zip(choice).map(|(menu, at)| menu.step(*at).width).collect()
    };
    let trial = |m: &Measured| Trial {
        widths: widths(&m.choice),
        predicted_ratio: m.predicted,
        measured_ratio: m.measured,
    };
    tuned.tried.iter().map(trial).collect()
}

/// A counter that outlives the table that is weighed by it.
struct Borrowed<'b, 'c>(&'b mut Counter<'c>);

impl Cost for Borrowed<'_, '_> {
    type Error = CompressError;

    fn of(&mut self, choice: &[usize]) -> Result<f64, CompressError> {
        self.0.of(choice)
    }

    fn along(
        &mut self,
        choice: &[usize],
        group: usize,
        steps: usize,
    ) -> Result<Vec<f64>, CompressError> {
        self.0.along(choice, group, steps)
    }
}
