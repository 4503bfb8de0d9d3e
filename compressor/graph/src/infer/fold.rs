//! Folding of the small integer tensors that shapes are computed with; their elements may be names.

use super::{
    Context, Inferred, axis_of,
    movement::Range,
    size::{self, Int},
};
use crate::{AttributeValue, BinaryOp, DType, Dim, Tensor, UnaryOp};

/// Tensors with more elements are weights, not shapes.
const MAX_ELEMENTS: usize = 1024;

/// The elements of a small integer tensor, flattened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) values: Vec<Int>,
}

impl Content {
    /// The elements of an integer or boolean constant that is small.
    pub(super) fn of(tensor: &Tensor) -> Option<Self> {
        let integral = matches!(tensor.dtype, DType::I64 | DType::I32 | DType::Bool);
        if !integral || tensor.dims.len() > 2 || tensor.len() > MAX_ELEMENTS {
            return None;
        }
        let values = tensor.to_i64_vec().ok()?;
        Some(Self { values: values.into_iter().map(Int::Known).collect() })
    }

    pub(super) fn known(&self) -> Option<Vec<i64>> {
        let known = |value: &Int| if let Int::Known(value) = value { Some(*value) } else { None };
        self.values.iter().map(known).collect()
    }

    fn new(values: Vec<Int>) -> Option<Self> {
        (values.len() <= MAX_ELEMENTS).then_some(Self { values })
    }
}

pub(super) fn shape(context: &Context<'_>, start: i64, end: Option<i64>) -> Option<Vec<Inferred>> {
    let Some(dims) = context.dims(0) else {
        return Some(vec![Inferred::new(DType::I64, Some(vec![Dim::Unknown]))]);
    };
    let rank = i64::try_from(dims.len()).ok()?;
    let bound = |at: i64| if at < 0 { at.saturating_add(rank) } else { at }.clamp(0, rank);
    let (start, end) = (bound(start), bound(end.unwrap_or(rank)));
    let range = usize::try_from(start).ok()?..usize::try_from(end.max(start)).ok()?;
    let values: Vec<Int> = dims[range].iter().map(size::from_dim).collect();
    let ty = Inferred::new(DType::I64, Some(vec![Dim::Fixed(values.len())]));
    Some(vec![ty.with(Content::new(values))])
}

pub(super) fn size(context: &Context<'_>) -> Option<Vec<Inferred>> {
    let content = context.dims(0).and_then(|dims| Content::new(vec![size::product(dims)]));
    Some(vec![Inferred::new(DType::I64, Some(Vec::new())).with(content)])
}

pub(super) fn constant(context: &Context<'_>) -> Option<Vec<Inferred>> {
    let tensor = crate::ir::constant_of(context.node)?;
    let content = Content::of(&tensor);
    let dims = tensor.dims.iter().map(|&dim| Dim::Fixed(dim)).collect();
    Some(vec![Inferred::new(tensor.dtype, Some(dims)).with(content)])
}

pub(super) fn constant_of_shape(context: &Context<'_>) -> Option<Vec<Inferred>> {
    let value = match context.node.attr("value") {
        Some(AttributeValue::Tensor(tensor)) => Some(tensor),
        _ => None,
    };
    let dtype = value.map_or(DType::F32, |value| value.dtype);
    let dims: Option<Vec<Dim>> = match context.content(0) {
        Some(target) => Some(target.values.iter().map(size::to_dim).collect()),
        None => match context.dims(0)? {
            [Dim::Fixed(rank)] if *rank <= MAX_ELEMENTS => Some(vec![Dim::Unknown; *rank]),
            _ => None,
        },
    };
    let fill = value.and_then(|value| Content::of(value));
    let content =
        fill.zip(dims.as_deref()).and_then(|(fill, dims)| repeat(fill.values.first()?, dims));
    Some(vec![Inferred::new(dtype, dims).with(content)])
}

/// `start`, `limit`, `delta`; only integers are counted.
pub(super) fn range(context: &Context<'_>) -> Option<Vec<Inferred>> {
    let dtype = context.dtype(0)?;
    let one = |slot: usize| match context.content(slot)?.values.as_slice() {
        [value] => Some(value.clone()),
        _ => None,
    };
    let bounds = one(0).zip(one(1)).zip(one(2));
    let (length, content) = match bounds {
        Some(((Int::Known(start), Int::Known(limit)), Int::Known(delta))) if delta != 0 => {
            counted(start, limit, delta)
        }
        Some(((Int::Known(0), limit), Int::Known(1))) => (limit, None),
        _ => (Int::Unknown, None),
    };
    Some(vec![Inferred::new(dtype, Some(vec![size::to_dim(&length)])).with(content)])
}

fn counted(start: i64, limit: i64, delta: i64) -> (Int, Option<Content>) {
    let distance = i128::from(limit) - i128::from(start);
    let delta = i128::from(delta);
    let rounded = distance + delta - delta.signum();
    let Ok(count) = i64::try_from((rounded / delta).max(0)) else { return (Int::Unknown, None) };
    let small = usize::try_from(count).is_ok_and(|count| count <= MAX_ELEMENTS);
    let value = |index: i64| i64::try_from(i128::from(start) + i128::from(index) * delta);
    let values = small
        .then(|| (0..count).map(|index| value(index).map_or(Int::Unknown, Int::Known)).collect());
    (Int::Known(count), values.and_then(Content::new))
}

/// The same elements in another shape.
pub(super) fn flat(context: &Context<'_>, slot: usize) -> Option<Content> {
    context.content(slot).cloned()
}

pub(super) fn unary(context: &Context<'_>, op: UnaryOp, dtype: DType) -> Option<Content> {
    let content = context.content(0)?;
    match op {
        UnaryOp::Identity => Some(content.clone()),
        UnaryOp::Cast if matches!(dtype, DType::I64 | DType::I32) => Some(content.clone()),
        UnaryOp::Cast if dtype == DType::Bool => {
            Content::new(content.values.iter().map(truth).collect())
        }
        UnaryOp::Neg => {
            Content::new(content.values.iter().map(|v| size::mul(v, &Int::Known(-1))).collect())
        }
        UnaryOp::Not => Content::new(content.values.iter().map(not).collect()),
        _ => None,
    }
}

fn not(value: &Int) -> Int {
    match value {
        Int::Known(value) => Int::Known(i64::from(*value == 0)),
        _ => Int::Unknown,
    }
}

/// A size of 0 is possible, so a name says nothing.
fn truth(value: &Int) -> Int {
    match value {
        Int::Known(value) => Int::Known(i64::from(*value != 0)),
        Int::Name(_) | Int::Unknown => Int::Unknown,
    }
}

pub(super) fn binary(context: &Context<'_>, op: BinaryOp) -> Option<Content> {
    if !vectors(context) {
        return None;
    }
    if op == BinaryOp::Where {
        return choose(context.content(0)?, context.content(1)?, context.content(2)?);
    }
    let combine: fn(&Int, &Int) -> Int = match op {
        BinaryOp::Add => size::add,
        BinaryOp::Sub => size::sub,
        BinaryOp::Mul => size::mul,
        BinaryOp::Div => divide,
        BinaryOp::Equal => |a, b| compare(a, b, |a, b| a == b),
        BinaryOp::Greater => |a, b| compare(a, b, |a, b| a > b),
        BinaryOp::Less => |a, b| compare(a, b, |a, b| a < b),
        BinaryOp::GreaterOrEqual => |a, b| compare(a, b, |a, b| a >= b),
        BinaryOp::LessOrEqual => |a, b| compare(a, b, |a, b| a <= b),
        BinaryOp::And => |a, b| logic(a, b, 0),
        BinaryOp::Or => |a, b| logic(a, b, 1),
        BinaryOp::Max => |a, b| either(a, b, i64::max),
        BinaryOp::Min => |a, b| either(a, b, i64::min),
        _ => return None,
    };
    if context.node.inputs.len() != 2 {
        return None;
    }
    let (a, b) = (context.content(0)?, context.content(1)?);
    let len = common_len(&[a, b])?;
    Content::new((0..len).map(|index| combine(a.at(index), b.at(index))).collect())
}

/// Integer division drops the fraction, towards zero.
fn divide(a: &Int, b: &Int) -> Int {
    match (a, b) {
        (Int::Known(a), Int::Known(b)) => a.checked_div(*b).map_or(Int::Unknown, Int::Known),
        _ => size::div_floor(a, b),
    }
}

/// Flattened elements meet one by one only where nothing has two dimensions.
fn vectors(context: &Context<'_>) -> bool {
    (0..context.node.inputs.len())
        .all(|slot| context.dims(slot).is_some_and(|dims| dims.len() <= 1))
}

fn choose(condition: &Content, yes: &Content, no: &Content) -> Option<Content> {
    let len = common_len(&[condition, yes, no])?;
    let pick = |index: usize| match condition.at(index) {
        Int::Known(0) => no.at(index).clone(),
        Int::Known(_) => yes.at(index).clone(),
        _ if yes.at(index) == no.at(index) => yes.at(index).clone(),
        _ => Int::Unknown,
    };
    Content::new((0..len).map(pick).collect())
}

impl Content {
    /// A single element stands for all.
    fn at(&self, index: usize) -> &Int {
        if self.values.len() == 1 { &self.values[0] } else { &self.values[index] }
    }
}

/// Vectors of one length, or single elements beside them.
fn common_len(contents: &[&Content]) -> Option<usize> {
    let longest = contents.iter().map(|content| content.values.len()).max()?;
    let fits = |content: &&Content| content.values.len() == longest || content.values.len() == 1;
    contents.iter().all(fits).then_some(longest)
}

/// A size has a name because it is not known; it is no negative number, unless the name is a difference.
fn compare(a: &Int, b: &Int, test: fn(i64, i64) -> bool) -> Int {
    match (a, b) {
        (Int::Known(a), Int::Known(b)) => Int::Known(i64::from(test(*a, *b))),
        (Int::Name(name), Int::Known(..0)) if !name.contains('-') => {
            Int::Known(i64::from(test(1, -1)))
        }
        (Int::Known(..0), Int::Name(name)) if !name.contains('-') => {
            Int::Known(i64::from(test(-1, 1)))
        }
        _ => Int::Unknown,
    }
}

/// `decisive` on either side is the outcome, whatever the other.
fn logic(a: &Int, b: &Int, decisive: i64) -> Int {
    match (a, b) {
        (Int::Known(a), _) | (_, Int::Known(a)) if *a == decisive => Int::Known(decisive),
        (Int::Known(_), Int::Known(_)) => Int::Known(1 - decisive),
        _ => Int::Unknown,
    }
}

fn either(a: &Int, b: &Int, pick: fn(i64, i64) -> i64) -> Int {
    match (a, b) {
        (Int::Known(a), Int::Known(b)) => Int::Known(pick(*a, *b)),
        (a, b) if a == b => a.clone(),
        _ => Int::Unknown,
    }
}

pub(super) fn concat(context: &Context<'_>) -> Option<Content> {
    let mut values = Vec::new();
    for slot in 0..context.node.inputs.len() {
        if context.dims(slot)?.len() != 1 {
            return None;
        }
        match (context.content(slot), context.dims(slot)?) {
            (Some(content), _) => values.extend(content.values.iter().cloned()),
            // The length is enough to keep the others in place.
            (None, [Dim::Fixed(len)]) if *len <= MAX_ELEMENTS => {
                values.extend(std::iter::repeat_n(Int::Unknown, *len));
            }
            _ => return None,
        }
    }
    Content::new(values)
}

pub(super) fn slice(context: &Context<'_>, range: &Range) -> Option<Content> {
    let content = context.content(0)?;
    let indices = range.indices(i64::try_from(content.values.len()).ok()?);
    let at = |step: i64| usize::try_from(indices.first + step * indices.step).ok();
    let values = (0..indices.count).map(|step| content.values.get(at(step)?).cloned());
    Content::new(values.collect::<Option<_>>()?)
}

pub(super) fn gather(context: &Context<'_>) -> Option<Content> {
    if context.dims(0)?.len() != 1 {
        return None;
    }
    let content = context.content(0)?;
    let indices = context.ints(1)?;
    let pick = |index: i64| Some(content.values[axis_of(index, content.values.len())?].clone());
    Content::new(indices.into_iter().map(pick).collect::<Option<_>>()?)
}

pub(super) fn expand(context: &Context<'_>, dims: Option<&[Dim]>) -> Option<Content> {
    let content = context.content(0)?;
    match content.values.as_slice() {
        [value] => repeat(value, dims?),
        _ if context.dims(0) == dims => Some(content.clone()),
        _ => None,
    }
}

fn repeat(value: &Int, dims: &[Dim]) -> Option<Content> {
    let mut len = 1usize;
    for dim in dims {
        len = len.checked_mul(dim.fixed()?).filter(|&len| len <= MAX_ELEMENTS)?;
    }
    Content::new(vec![value.clone(); len])
}

pub(super) fn product(context: &Context<'_>) -> Option<Content> {
    let values = &context.content(0)?.values;
    Content::new(vec![
        values.iter().fold(Int::Known(1), |product, value| size::mul(&product, value)),
    ])
}
