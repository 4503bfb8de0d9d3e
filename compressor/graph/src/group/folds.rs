//! Folded axes: what a pruning has to make up for, or why it cannot.
//!
//! A sum over an axis does not miss units that were exactly zero. A mean misses them in its count, and both miss
//! what removed units held where that was not zero. Where it was the same for all of them, and follows from
//! values that do not have the axis, the pruned model can compute it: that is an [`Echo`]. The centred values of a
//! layer norm are the example: a masked unit is zero before, and minus the mean behind.

use super::atoms::Atoms;
use super::find::{Owner, Search};
use crate::coupling::masked::{Fact, ZERO, carriers};
use crate::coupling::{AxisRef, Fold, FoldKind, Port};
use crate::{NodeId, Op, UnaryOp, ValueId};

/// Elementwise nodes that are repeated for the removed units, one behind the other.
const MAX_ECHO: usize = 8;

/// What a node needs when an axis that it folds shrinks.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Correction {
    /// The folding node.
    pub(crate) node: NodeId,
    /// Axis of its input 0.
    pub(crate) axis: usize,
    /// How it folds.
    pub(crate) kind: FoldKind,
    /// What the removed units held; `None` where that was zero.
    pub(crate) echo: Option<Echo>,
}

/// What removed units would have held in a value, without the axis that they were on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Echo {
    /// This number, in the element type of the value.
    Exact(f64, ValueId),
    /// What the node computes from these; `None` for inputs that do not have the axis.
    Again(NodeId, Vec<Option<Echo>>),
}

/// A lock: axis, node and reason.
type Refusal = (usize, NodeId, String);

/// The corrections of every fold that can be pruned over, and the locks of the others.
pub(super) fn settle(
    search: &Search<'_>,
    atoms: &mut Atoms,
    facts: &[Fact],
) -> (Vec<Correction>, Vec<Refusal>) {
    let (mut corrections, mut refused) = (Vec::new(), Vec::new());
    for statement in &search.statements {
        for fold in &statement.coupling.folds {
            let Some(axis) = search.id(statement.node, fold.at) else { continue };
            let place = Place { search, facts, node: statement.node, fold };
            match place.correction(atoms, axis) {
                Ok(correction) => corrections.push(correction),
                Err(why) => {
                    let op = &search.graph.node(statement.node).op_type;
                    refused.push((axis, statement.node, format!("{op} {why}")));
                }
            }
        }
    }
    (corrections, refused)
}

struct Place<'a> {
    search: &'a Search<'a>,
    facts: &'a [Fact],
    node: NodeId,
    fold: &'a Fold,
}

impl Place<'_> {
    fn correction(&self, atoms: &mut Atoms, axis: usize) -> Result<Correction, String> {
        let node = self.search.graph.node(self.node);
        if !matches!(self.search.axes[axis].owner, Owner::Value(_)) {
            return Err("folds a constant over it".to_owned());
        }
        if node.outputs.iter().skip(1).any(Option::is_some) {
            return Err("folds it into further outputs".to_owned());
        }
        let fact = self.facts[axis];
        let echo = match (self.fold.kind, fact) {
            (_, ZERO) => None,
            (FoldKind::Sum | FoldKind::Mean, Fact::Exact(_) | Fact::Common) => {
                Some(self.echo(atoms, fact)?)
            }
            (kind, _) => return Err(loud(kind)),
        };
        let floats = self.search.is_float(self.search.axes[axis].value);
        let exact_count = matches!(self.fold.kind, FoldKind::Sum) && echo.is_none();
        if !floats && !exact_count {
            return Err("folds integers over it".to_owned());
        }
        let (node, axis, kind) = (self.node, self.fold.at.axis, self.fold.kind);
        Ok(Correction { node, axis, kind, echo })
    }

    /// What the removed units held, where it can be added to what the node computes.
    fn echo(&self, atoms: &mut Atoms, fact: Fact) -> Result<Echo, String> {
        let number = matches!(fact, Fact::Exact(_));
        let mean = self.fold.kind == FoldKind::Mean;
        for &other in &self.fold.beside {
            let at = AxisRef { port: Port::In(0), axis: other };
            let one = self.search.size(self.node, at) == Some(1);
            let still =
                self.search.id(self.node, at).is_none_or(|axis| atoms.is_locked(axis, self.search));
            let harmless = one || (mean && number && still);
            if !harmless {
                return Err(format!("{} along with other axes", loud(self.fold.kind)));
            }
        }
        if !number && !self.fold.keeps_rank {
            return Err(format!("{}, and drops the axis", loud(self.fold.kind)));
        }
        self.held(self.node, self.fold.at, MAX_ECHO)
            .ok_or_else(|| format!("{} and is not followed", loud(self.fold.kind)))
    }

    /// What a removed unit held on axis `at` of an input of `node`.
    fn held(&self, node: NodeId, at: AxisRef, steps: usize) -> Option<Echo> {
        let axis = self.search.id(node, at)?;
        let value = self.search.axes[axis].value;
        if let Fact::Exact(number) = self.facts[axis] {
            return Some(Echo::Exact(number, value));
        }
        let steps = steps.checked_sub(1)?;
        let source = self.search.graph.producer(value)?;
        let source_node = self.search.graph.node(source);
        let repeats = match &source_node.op {
            Op::Unary(op) => *op != UnaryOp::Dropout,
            Op::Binary(_) => true,
            _ => false,
        };
        if self.facts[axis] != Fact::Common || !repeats {
            return None;
        }
        let out = AxisRef { port: Port::Out(0), axis: at.axis };
        let statement = &self.search.statements[*self.search.statement_of.get(&source)?];
        let carriers = carriers(&statement.links, out);
        let part = |slot: usize| match carriers.iter().find(|carrier| carrier.0 == slot) {
            Some(&(slot, axis)) => {
                self.held(source, AxisRef { port: Port::In(slot), axis }, steps).map(Some)
            }
            None => Some(None),
        };
        let parts = (0..source_node.inputs.len()).map(part).collect::<Option<Vec<_>>>()?;
        Some(Echo::Again(source, parts))
    }
}

fn loud(kind: FoldKind) -> String {
    let folds = match kind {
        FoldKind::Sum => "sums over it",
        FoldKind::Mean => "averages over it",
        FoldKind::Standardised | FoldKind::RootMeanSquare => "normalises over it",
    };
    format!("{folds}, where a masked unit is not exactly zero")
}
