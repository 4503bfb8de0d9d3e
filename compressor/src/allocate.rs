//! How wide each group becomes under one budget: pure functions over losses and costs.
//!
//! A [`Menu`] holds what one group may keep and what that loses; a [`Cost`] says what a whole choice costs. The
//! choice of least total loss is found in three steps. [`knapsack`] solves the case in which costs add up, over the
//! front of all choices that no other beats. [`search()`] makes costs that do not add up (a layer between two groups
//! costs the product of their widths) add up around one choice, solves that, and goes on from what it found; then it
//! moves single groups by their true cost. [`latency`] gives such a cost from a table of measured savings, and
//! corrects it by measurements of whole choices.
//!
//! Invariants: what is returned costs no more than the budget by the cost that was asked; nothing here measures,
//! reads a file, a clock or a random number.

pub mod knapsack;
pub mod latency;
pub mod menu;
pub mod search;

pub use knapsack::{Front, Offer};
pub use latency::{Latency, Tuned, tune};
pub use menu::{Menu, Step, sampled_widths};
pub use search::{Cost, Found, Searched, search, uniform};

#[cfg(test)]
#[path = "allocate/testing.rs"]
mod testing;
