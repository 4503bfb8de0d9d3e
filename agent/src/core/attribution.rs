//! Whom a window is attributed to, before the model itself.
//!
//! A smaller model mends only what the model costs. What heat, a hypervisor, a neighbour, a full memory
//! or a start cost is told as theirs, and no other model is asked for. The order is that of certainty:
//! what the kernel counts by name goes before what is inferred.

use wire::{BudgetKind, Cause, ResourceWindow};

use super::event::{ModelFacts, WindowFacts};
use super::settings::BreachRules;

/// The share of its time in the engine that a worker must have waited for a processor, beyond
/// [`WAKE_US`], before others are to blame. Between two sizes of one model lies more than that, so that
/// a model which is over its budget by a size is not taken for a good one with bad neighbours.
const WAIT_SHARE: f64 = 0.1;
/// Of a worker's waiting, the part that the time of other processes must account for; the rest may be
/// the agent's own doing, or a second's rounding of the kernel's.
const OTHERS_SHARE: f64 = 0.5;
/// What waking up for a request may cost on a quiet device, in microseconds: it is no neighbour's doing
/// and most of it passes before the engine begins. A neighbour's turn takes a thousand or more.
const WAKE_US: u64 = 50;
/// The share of a window, in percent, in which something waited for memory from which slowness is the
/// memory's: pages are being reclaimed faster than they are used.
const MEMORY_PRESSURE_PERCENT: f64 = 10.0;
/// The share of a window, in percent, in which everything waited for storage, from which even single
/// page faults of a worker that had to go there account for its slowness.
const STORAGE_STALL_PERCENT: f64 = 10.0;

/// The device, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine {
    /// Its processors.
    pub cpus: u32,
    /// Threads of an inference.
    pub threads: u32,
}

/// Whom a window's slowness is to be attributed to.
pub(super) fn attribute(
    facts: &ModelFacts,
    window: &WindowFacts,
    machine: Machine,
    rules: &BreachRules,
) -> Cause {
    let over = |limit: f64| move |value: f64| value >= limit;
    let resources = window.resources.as_ref();
    match resources {
        Some(r) if r.throttled => Cause::Thermal,
        Some(r) if r.steal_percent.is_some_and(over(rules.steal_percent)) => Cause::Steal,
        // A model that was just loaded is read from the storage, page by page.
        _ if facts.cold && !swaps(resources, rules) => Cause::ColdStart,
        _ if thrashes(facts, resources, rules) => Cause::Swap,
        _ if has_neighbours(facts, window, machine) => Cause::Steal,
        _ => Cause::Model,
    }
}

fn swaps(resources: Option<&ResourceWindow>, rules: &BreachRules) -> bool {
    let pages = resources.and_then(|resources| resources.swap_in_pages);
    pages.is_some_and(|pages| pages >= rules.swap_in_pages)
}

/// Whether memory is short: pages come back from swap or, where there is no swap, the worker's own pages
/// of the model's file were evicted and are read again.
fn thrashes(facts: &ModelFacts, resources: Option<&ResourceWindow>, rules: &BreachRules) -> bool {
    let faults = facts.major_faults.unwrap_or(0);
    let over = |value: Option<f64>, limit: f64| value.is_some_and(|value| value >= limit);
    swaps(resources, rules)
        || faults >= rules.swap_in_pages
        || resources.is_some_and(|r| {
            let group = over(r.group_memory_pressure_percent, MEMORY_PRESSURE_PERCENT);
            group
                || over(r.memory_pressure_percent, MEMORY_PRESSURE_PERCENT)
                || (faults > 0 && over(r.io_stall_percent, STORAGE_STALL_PERCENT))
        })
}

/// Whether other processes kept the worker from the processor: each of its threads waited for a good
/// part of the time in the engine, and others used enough of the processor to account for it. How long a
/// worker waited is its threads' run delay, or else how long the agent or any worker waited.
#[allow(clippy::cast_precision_loss)]
fn has_neighbours(facts: &ModelFacts, window: &WindowFacts, machine: Machine) -> bool {
    let window_us = window.window_ms as f64 * 1000.0;
    let Some(resources) = &window.resources else { return false };
    let of_group = || resources.group_cpu_pressure_percent.map(|share| share / 100.0 * window_us);
    let threads = f64::from(machine.threads.max(1));
    let waited = facts.wait_us.map(|us| us as f64 / threads).or_else(of_group);
    let (Some(waited), Some(others)) = (waited, resources.others_percent) else { return false };
    let excess = waited - (WAKE_US * facts.compute.count()) as f64;
    let others_us = others / 100.0 * window_us * f64::from(machine.cpus.max(1));
    facts.compute.sum() > 0
        && excess >= WAIT_SHARE * facts.compute.sum() as f64
        && others_us >= OTHERS_SHARE * excess
}

/// Whom a budget that is one number per window is held against. A worker's memory is its own whatever
/// the device is going through, but for the moments of loading; power belongs to whoever draws it.
pub(super) fn scalar_cause(budget: BudgetKind, cause: Cause, draws_the_power: bool) -> Cause {
    match (budget, cause) {
        (BudgetKind::Memory, Cause::ColdStart) => Cause::ColdStart,
        (BudgetKind::Memory, _) => Cause::Model,
        (BudgetKind::Power, Cause::Model) if !draws_the_power => Cause::Steal,
        (_, cause) => cause,
    }
}
