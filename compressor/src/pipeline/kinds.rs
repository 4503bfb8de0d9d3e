//! What kind of answer each output gives, and so how two answers are compared.
//!
//! First what the numbers say, since an exporter may write a softmax as five nodes: rows that sum to 1 are
//! distributions over classes, rows of length 1 are embeddings. Then how the graph ends: `Softmax` and `Sigmoid` say it
//! themselves, a weight in front of the output (MatMul, Gemm, Conv) computes scores of classes, and what a
//! norm, a pooling or an activation ends in is an embedding. What is one number is a value.

use graph::{BinaryOp, Graph, Op, Shapes, UnaryOp, ValueId};

use super::judge::Answers;
use super::shop::{Shop, Source};
use crate::plan::Refusal;
use crate::quality::{Answer, Compared, Comparison, distributions, unit_lengths};

/// How the outputs that `answers` holds an original answer of are compared, and a refusal for each other output.
pub(crate) fn comparisons(
    shop: &Shop<'_>,
    outputs: &[String],
    others: &[String],
    answers: &Answers<'_>,
) -> (Vec<Compared>, Vec<Refusal>) {
    let first = answers.first().unwrap_or_default();
    let labels = shop.heldout.labels().filter(|_| outputs.len() == 1);
    let compared = outputs.iter().enumerate().map(|(at, output)| {
        let nothing = Answer::default();
        compared(&shop.source, output, first.get(at).unwrap_or(&nothing), labels)
    });
    let refused = others.iter().map(|output| {
        let why = "it is no f32 tensor; candidates are judged by the other outputs alone";
        Refusal::new("judge", output.clone(), why)
    });
    (compared.collect(), refused.collect())
}

/// How one output is compared, by an original answer.
pub(super) fn compared(
    source: &Source,
    output: &str,
    answer: &Answer,
    labels: Option<&[i64]>,
) -> Compared {
    let graph = &source.model.graph;
    let rank = answer.shape.len();
    let end = graph.value_by_name(output).map_or(End::Other, |v| end(graph, &source.shapes, v));
    let usual = usual_axis(rank, &end);
    let width = usual.and_then(|axis| answer.shape.get(axis)).copied().unwrap_or(1);
    let distributed = usual.into_iter().chain((1..rank).rev()).find(|a| distributions(answer, *a));
    let (by, axis) = if let End::Softmax(axis) = end {
        (Comparison::Class, axis.or(usual))
    } else if let Some(axis) = distributed {
        (Comparison::Class, Some(axis))
    } else if end == End::Sigmoid {
        (Comparison::Sides, usual)
    } else if width < 2 {
        (Comparison::Value, None)
    } else if rank == 2 && labels.is_some_and(|l| are_classes(l, width)) {
        (Comparison::Class, usual)
    } else if usual.is_some_and(|axis| unit_lengths(answer, axis)) {
        (Comparison::Direction, usual)
    } else if matches!(end, End::Weight | End::Conv) {
        (Comparison::Class, usual)
    } else {
        (Comparison::Direction, usual)
    };
    Compared { output: output.to_owned(), by, axis }
}

/// Where classes or features lie if nothing says otherwise: the channels of an image or of a convolution's output, the last
/// axis elsewhere.
fn usual_axis(rank: usize, end: &End) -> Option<usize> {
    match (rank, end) {
        (0, _) => None,
        // A model without a batch axis.
        (1, _) => Some(0),
        (2, _) => Some(1),
        (3, End::Conv) => Some(1),
        (3, _) => Some(2),
        _ => Some(1),
    }
}

fn are_classes(labels: &[i64], width: usize) -> bool {
    labels.iter().all(|l| usize::try_from(*l).is_ok_and(|l| l < width))
}

/// How a graph ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Along this axis, if it is the output's.
    Softmax(Option<usize>),
    Sigmoid,
    /// A MatMul or Gemm with a constant weight.
    Weight,
    Conv,
    Other,
}

/// What computes `output`, behind operators that only move or scale its numbers.
fn end(graph: &Graph, shapes: &Shapes, output: ValueId) -> End {
    let (mut value, mut moved) = (output, false);
    loop {
        let Some(node) = graph.producer(value).and_then(|id| graph.get_node(id)) else {
            return End::Other;
        };
        let constant = |slot: usize| node.input(slot).is_some_and(|v| graph.constant(v).is_some());
        let next = match &node.op {
            Op::Softmax { axis, flat, .. } => {
                return End::Softmax(softmax_axis(shapes.rank(value), *axis, *flat, moved));
            }
            Op::Unary(UnaryOp::Sigmoid | UnaryOp::HardSigmoid) => return End::Sigmoid,
            Op::MatMul | Op::Gemm(_) if constant(1) => return End::Weight,
            Op::Conv(_) | Op::ConvTranspose(_) => return End::Conv,
            Op::Unary(UnaryOp::Identity | UnaryOp::Cast | UnaryOp::Dropout) | Op::Resize => {
                node.input(0)
            }
            Op::Reshape { .. }
            | Op::Flatten { .. }
            | Op::Squeeze { .. }
            | Op::Unsqueeze { .. }
            | Op::Transpose { .. } => {
                moved = true;
                node.input(0)
            }
            Op::Binary(BinaryOp::Add | BinaryOp::Mul | BinaryOp::Div) if constant(1) => {
                node.input(0)
            }
            Op::Binary(BinaryOp::Add | BinaryOp::Mul) if constant(0) => node.input(1),
            _ => return End::Other,
        };
        match next {
            Some(next) => value = next,
            None => return End::Other,
        }
    }
}

/// The axis of a softmax, if the output still has it where it was. A flat one spans several unless it is the last.
fn softmax_axis(rank: Option<usize>, axis: i64, flat: bool, moved: bool) -> Option<usize> {
    let rank = i64::try_from(rank?).ok()?;
    let axis = if axis < 0 { axis + rank } else { axis };
    if moved || (flat && axis + 1 != rank) {
        return None;
    }
    usize::try_from(axis).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "kinds_tests.rs"]
mod tests;
