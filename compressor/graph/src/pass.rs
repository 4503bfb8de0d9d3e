//! Passes: rewrites that make a graph simpler without changing what it computes.
//!
//! The [`Driver`] names and counts every edit, verifies after every pass, and can stop after any number of
//! edits, which finds the one that breaks a model by bisection. When a pass leaves a graph that the verifier
//! refuses, a folder with the model before the pass and the list of edits is left behind, where one is named.

use std::{fmt::Write as _, fs, path::PathBuf};

use crate::infer::{Outer, infer_within};
use crate::{
    Applied, AttributeValue, Cause, Edit, EditError, Graph, Model, NodeId, Shapes, Violation, edit,
};

mod dead;
mod fold_moves;
mod inline_if;
mod lift;
mod own_constants;

pub use dead::DeadCode;
pub use fold_moves::FoldMoves;
pub use inline_if::InlineIf;
pub use lift::LiftConstants;
pub use own_constants::OwnConstants;

/// Passes are repeated until none edits, at most this often.
const MAX_ROUNDS: usize = 16;

/// A rewrite of one graph; bodies are rewritten like the main graph, each on its own.
pub trait Pass {
    /// Short name, for causes and reports.
    fn name(&self) -> &'static str;

    /// Whether it asks for shapes; then those around a body are made ready.
    fn reads_shapes(&self) -> bool {
        false
    }

    /// Rewrites the graph through `editor`.
    ///
    /// # Errors
    /// Those of the edits, passed on: the driver stops a pass through them.
    fn run(&self, editor: &mut Editor<'_>) -> Result<(), Halt>;
}

/// Why a pass ended early.
#[derive(Debug, thiserror::Error)]
pub enum Halt {
    /// The driver's number of edits is reached.
    #[error("the number of edits asked for is reached")]
    Enough,
    /// An edit was refused, which is a fault of the pass.
    #[error(transparent)]
    Refused(#[from] EditError),
}

/// The graph in a pass's hands.
pub struct Editor<'a> {
    graph: &'a mut Graph,
    outer: Option<Outer<'a>>,
    pass: &'static str,
    log: &'a mut Vec<Step>,
    budget: &'a mut usize,
}

impl Editor<'_> {
    /// The graph as it is now.
    #[must_use]
    pub fn graph(&self) -> &Graph {
        self.graph
    }

    /// Shapes of `graph` (this one, or a variant of it) as it is now, with what the graphs around it tell.
    #[must_use]
    pub fn infer(&self, graph: &Graph) -> Shapes {
        infer_within(graph, self.outer)
    }

    /// Makes an edit and logs it.
    ///
    /// # Errors
    /// If the edit is refused, or enough have been made.
    pub fn apply(&mut self, edit: Edit, note: impl Into<String>) -> Result<Applied, Halt> {
        *self.budget = self.budget.checked_sub(1).ok_or(Halt::Enough)?;
        let cause = Cause::new(self.pass, note);
        let text = edit.to_string();
        let applied = edit::apply(self.graph, edit, &cause)?;
        self.log.push(Step { cause, edit: text });
        Ok(applied)
    }
}

/// An edit that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The pass and its reason.
    pub cause: Cause,
    /// The edit, for a person.
    pub edit: String,
}

/// Why the driver gave up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PassError {
    /// A pass asked for an edit that cannot be.
    #[error("pass {pass}: {source}")]
    Refused {
        /// The pass.
        pass: &'static str,
        /// What was wrong with the edit.
        source: EditError,
    },
    /// A pass broke an invariant.
    #[error("pass {pass} left a broken model: {}", crate::verify::summary(violations))]
    Broken {
        /// The pass.
        pass: &'static str,
        /// What it broke.
        violations: Vec<Violation>,
    },
}

/// Runs passes over a model.
#[derive(Debug, Clone, Default)]
pub struct Driver {
    /// Stop after so many edits.
    pub stop_after: Option<usize>,
    /// Where to leave the model and the edits when a pass fails.
    pub reproducer: Option<PathBuf>,
}

impl Driver {
    /// Runs the passes in order, again and again until none changes anything, and returns the edits made.
    ///
    /// # Errors
    /// If a pass fails: then the model is as it was before that pass.
    pub fn run(&self, model: &mut Model, passes: &[&dyn Pass]) -> Result<Vec<Step>, PassError> {
        let mut log = Vec::new();
        let mut budget = self.stop_after.unwrap_or(usize::MAX);
        for _ in 0..MAX_ROUNDS {
            let before = log.len();
            for pass in passes {
                if !self.run_one(model, *pass, &mut log, &mut budget)? {
                    return Ok(log);
                }
            }
            if log.len() == before {
                break;
            }
        }
        Ok(log)
    }

    /// `false` when enough edits have been made.
    fn run_one(
        &self,
        model: &mut Model,
        pass: &dyn Pass,
        log: &mut Vec<Step>,
        budget: &mut usize,
    ) -> Result<bool, PassError> {
        let before = model.clone();
        let ended = run_graph(&mut model.graph, None, pass, log, budget);
        let error = match (ended, model.verify()) {
            (Ok(()), Ok(())) => return Ok(true),
            (Err(Halt::Enough), Ok(())) => return Ok(false),
            (Err(Halt::Refused(source)), _) => PassError::Refused { pass: pass.name(), source },
            (_, Err(violations)) => PassError::Broken { pass: pass.name(), violations },
        };
        *model = before;
        self.leave_reproducer(model, log, &error);
        Err(error)
    }

    /// A best effort: the error itself is what counts.
    fn leave_reproducer(&self, model: &Model, log: &[Step], error: &PassError) {
        let Some(folder) = &self.reproducer else { return };
        let mut text = format!("{error}\n\n");
        for (number, step) in log.iter().enumerate() {
            let _ = writeln!(text, "{} {}: {}", number + 1, step.cause, step.edit);
        }
        let _ = fs::create_dir_all(folder);
        let _ = model.save(folder.join("before.onnx"));
        let _ = fs::write(folder.join("edits.txt"), text);
    }
}

/// The graph, then its bodies.
fn run_graph(
    graph: &mut Graph,
    outer: Option<Outer<'_>>,
    pass: &dyn Pass,
    log: &mut Vec<Step>,
    budget: &mut usize,
) -> Result<(), Halt> {
    pass.run(&mut Editor { graph, outer, pass: pass.name(), log, budget })?;
    let holders: Vec<NodeId> =
        graph.nodes().filter(|(_, node)| node.has_subgraphs()).map(|(id, _)| id).collect();
    if holders.is_empty() {
        return Ok(());
    }
    let shapes = if pass.reads_shapes() { infer_within(graph, outer) } else { Shapes::default() };
    for id in holders {
        for index in 0..graph.node(id).attributes.len() {
            // Out of the graph for as long as it is edited, so that the graph around it can be read.
            let Some(mut value) = swap_attribute(graph, id, index, AttributeValue::Ints(vec![]))
            else {
                continue;
            };
            let outer = Some((&*graph, &shapes));
            let done = match &mut value {
                AttributeValue::Graph(body) => run_graph(body, outer, pass, log, budget),
                AttributeValue::Graphs(bodies) => {
                    bodies.iter_mut().try_for_each(|body| run_graph(body, outer, pass, log, budget))
                }
                _ => Ok(()),
            };
            swap_attribute(graph, id, index, value);
            done?;
        }
    }
    Ok(())
}

fn swap_attribute(
    graph: &mut Graph,
    id: NodeId,
    index: usize,
    value: AttributeValue,
) -> Option<AttributeValue> {
    let held = &mut graph.node_mut(id)?.attributes.get_mut(index)?.value;
    Some(std::mem::replace(held, value))
}
