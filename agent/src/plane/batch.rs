//! Micro-batching: requests that wait at the same time are joined along their first axis, run once, and taken apart.
//!
//! Joining changes nothing but time only where the first axis of every input and output is a batch, which a model's
//! interface does not say: an axis that is free may as well be time. So a model's requests are joined only after its
//! own golden cases, joined, have given the golden outputs (`joined_case`). Until then, and where they do not, each
//! request runs alone.
//!
//! While a candidate is shown the live requests they run alone too, so that the times of the two models compare.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use engine::{IoSpec, Tensor};

use super::process::Interface;
use super::protocol::NamedTensors;
use super::strings;

/// The most bytes of inputs that are joined; they are held twice meanwhile.
pub const MAX_BATCH_BYTES: usize = 16 << 20;

/// Workers that end in a joined run before nothing is joined any more.
const MAX_DEATHS: u32 = 3;

/// When requests are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchRules {
    /// The most rows of one run, over all requests in it; 1 joins nothing.
    pub max_rows: usize,
    /// How long the first request waits for others; zero joins only what waits already.
    pub max_delay: Duration,
}

impl BatchRules {
    /// Every request runs alone.
    pub const OFF: Self = Self { max_rows: 1, max_delay: Duration::ZERO };

    /// Whether anything is ever joined.
    #[must_use]
    pub fn are_on(&self) -> bool {
        self.max_rows > 1
    }
}

/// Whether a model's requests are joined, and why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Joining {
    /// The configuration does not ask for it.
    Off,
    /// The golden cases have not been run joined yet.
    Unproven,
    /// They gave the golden outputs.
    Proven,
    /// It would change answers, or nobody knows.
    Refused(String),
}

impl std::fmt::Display for Joining {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Unproven => f.write_str("not proven yet"),
            Self::Proven => f.write_str("on"),
            Self::Refused(reason) => write!(f, "refused: {reason}"),
        }
    }
}

/// The rules of one instance, and what is known of its model.
#[derive(Debug)]
pub(super) struct Batcher {
    rules: BatchRules,
    /// Workers that ended in a joined run.
    deaths: AtomicU32,
    joining: Mutex<Joining>,
}

impl Batcher {
    pub(super) fn new(rules: BatchRules, interface: &Interface) -> Self {
        let joining = if rules.are_on() {
            check_interface(interface).map_or_else(Joining::Refused, |()| Joining::Unproven)
        } else {
            Joining::Off
        };
        Self { rules, deaths: AtomicU32::new(0), joining: Mutex::new(joining) }
    }

    pub(super) fn joining(&self) -> Joining {
        self.joining.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set(&self, joining: Joining) {
        *self.joining.lock().unwrap_or_else(PoisonError::into_inner) = joining;
    }

    /// A worker ended in a joined run; where that comes again, joining may be why.
    pub(super) fn a_worker_died(&self, reason: &str) {
        if self.deaths.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_DEATHS {
            self.set(Joining::Refused(format!(
                "{MAX_DEATHS} joined runs ended the worker: {reason}"
            )));
        }
    }

    /// The rules, where requests are joined.
    pub(super) fn active(&self) -> Option<BatchRules> {
        let proven =
            *self.joining.lock().unwrap_or_else(PoisonError::into_inner) == Joining::Proven;
        (self.rules.are_on() && proven).then_some(self.rules)
    }
}

/// Whether the first axis of every input and output is free, as a batch's must be.
fn check_interface(interface: &Interface) -> Result<(), String> {
    let fixed = |what: &str, specs: &[IoSpec]| {
        let stiff = specs.iter().find(|spec| !matches!(spec.dims.first(), Some(None)));
        stiff.map(|spec| format!("the first axis of {what} `{}` is not free", spec.name))
    };
    match fixed("input", &interface.inputs).or_else(|| fixed("output", &interface.outputs)) {
        Some(reason) => Err(reason),
        None if interface.inputs.is_empty() => Err("the model has no input".to_owned()),
        None => Ok(()),
    }
}

/// How long the first axis of all of `tensors` is, where it is one length, and not zero.
pub(super) fn rows(tensors: &NamedTensors) -> Option<usize> {
    let (_, first) = tensors.first()?;
    let rows = *first.shape.first()?;
    let alike = tensors.iter().all(|(_, t)| t.shape.first() == Some(&rows));
    (alike && rows > 0).then_some(rows)
}

/// Whether two requests differ in nothing but the length of their first axis, and their elements.
pub(super) fn fit(a: &NamedTensors, b: &NamedTensors) -> bool {
    let same = |((name, x), (other, y)): (&(String, Tensor), &(String, Tensor))| {
        name == other && x.dtype == y.dtype && x.shape.get(1..) == y.shape.get(1..)
    };
    a.len() == b.len() && a.iter().zip(b).all(same)
}

/// The bytes that joining a request adds.
pub(super) fn bytes(tensors: &NamedTensors) -> usize {
    tensors.iter().map(|(_, tensor)| strings::byte_len(tensor)).sum()
}

/// One run of requests that [`fit`] each other.
pub(super) fn join(requests: &[&NamedTensors]) -> NamedTensors {
    let Some((&first, others)) = requests.split_first() else { return NamedTensors::new() };
    let mut joined = first.clone();
    for (at, (_, tensor)) in joined.iter_mut().enumerate() {
        let more: usize = others.iter().map(|request| request[at].1.data.len()).sum();
        tensor.data.reserve_exact(more);
        for request in others {
            let next = &request[at].1;
            tensor.data.extend_from_slice(&next.data);
            tensor.strings.extend_from_slice(&next.strings);
            tensor.shape[0] += next.shape[0];
        }
    }
    joined
}

/// Each request's part of the outputs of a run, by how many rows each has.
///
/// # Errors
/// An output whose first axis is not as long as all of them together.
pub(super) fn split(outputs: NamedTensors, rows: &[usize]) -> Result<Vec<NamedTensors>, String> {
    let total: usize = rows.iter().sum();
    let mut parts: Vec<NamedTensors> =
        rows.iter().map(|_| Vec::with_capacity(outputs.len())).collect();
    for (name, tensor) in outputs {
        if tensor.shape.first() != Some(&total) {
            let shape = &tensor.shape;
            return Err(format!("output `{name}` of {total} joined rows has shape {shape:?}"));
        }
        let mut from = 0;
        for (part, &rows) in parts.iter_mut().zip(rows) {
            part.push((name.clone(), slice_rows(&tensor, total, from, rows)));
            from += rows;
        }
    }
    Ok(parts)
}

/// `rows` of a tensor's `total`, from the one at `from` on.
fn slice_rows(tensor: &Tensor, total: usize, from: usize, rows: usize) -> Tensor {
    let range = |len: usize| {
        let each = len / total.max(1);
        from * each..(from + rows) * each
    };
    let mut shape = tensor.shape.clone();
    shape[0] = rows;
    Tensor {
        dtype: tensor.dtype,
        shape,
        data: tensor.data[range(tensor.data.len())].to_vec(),
        strings: tensor.strings[range(tensor.strings.len())].to_vec(),
    }
}

/// Two golden cases that are to give their golden outputs when they are run as one: they [`fit`] and differ, for a model
/// that mixes its rows may well give equal rows what it gives one.
///
/// # Errors
/// Why the cases prove nothing.
pub(super) fn joined_case(
    cases: &[(NamedTensors, NamedTensors)],
) -> Result<(NamedTensors, NamedTensors), String> {
    let (inputs, outputs) = cases.first().ok_or("the bundle has no golden case")?;
    let pair = cases[1..].iter().find(|(other, _)| fit(inputs, other) && other != inputs);
    let (more, wanted) = pair.ok_or("no two golden cases are of one shape and differ")?;
    for (inputs, outputs) in [(inputs, outputs), (more, wanted)] {
        let count = rows(inputs).ok_or("a golden case's inputs differ in their first axis")?;
        if let Some((name, _)) = outputs.iter().find(|(_, t)| t.shape.first() != Some(&count)) {
            return Err(format!("output `{name}` of a golden case has not a row for each input's"));
        }
    }
    if !fit(outputs, wanted) {
        return Err("the golden outputs differ in shape".to_owned());
    }
    Ok((join(&[inputs, more]), join(&[outputs, wanted])))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use engine::ElementType;
    use proptest::prelude::*;

    use super::*;

    fn floats(rows: usize, width: usize, from: usize) -> Tensor {
        #[allow(clippy::cast_precision_loss)]
        let values: Vec<f32> = (0..rows * width).map(|i| (from + i) as f32).collect();
        Tensor::from_f32(vec![rows, width], &values).unwrap()
    }

    fn words(rows: usize, from: usize) -> Tensor {
        let words = (0..rows).map(|i| "ä".repeat(from + i)).collect();
        Tensor::from_strings(vec![rows, 1], words).unwrap()
    }

    fn request(rows: usize, from: usize) -> NamedTensors {
        vec![("x".into(), floats(rows, 3, from)), ("w".into(), words(rows, from))]
    }

    fn port(name: &str, dims: &[Option<usize>]) -> IoSpec {
        IoSpec { name: name.into(), dtype: ElementType::F32, dims: dims.to_vec() }
    }

    proptest! {
        #[test]
        fn what_is_joined_comes_apart_as_it_was(counts in prop::collection::vec(1_usize..5, 1..6)) {
            let requests: Vec<NamedTensors> =
                counts.iter().enumerate().map(|(i, &n)| request(n, 10 * i)).collect();
            let borrowed: Vec<&NamedTensors> = requests.iter().collect();
            let joined = join(&borrowed);
            for (_, tensor) in &joined {
                tensor.check().unwrap();
            }
            prop_assert_eq!(rows(&joined), Some(counts.iter().sum()));
            prop_assert_eq!(bytes(&joined), requests.iter().map(bytes).sum::<usize>());
            prop_assert_eq!(split(joined, &counts).unwrap(), requests);
        }
    }

    #[test]
    fn requests_that_differ_in_more_than_their_rows_do_not_fit() {
        let a = request(1, 0);
        assert!(fit(&a, &request(4, 7)));
        let mut renamed = a.clone();
        renamed[0].0 = "y".into();
        let mut wider = a.clone();
        wider[0].1 = floats(1, 4, 0);
        let mut retyped = a.clone();
        retyped[0].1 = Tensor::from_i32(vec![1, 3], &[1, 2, 3]).unwrap();
        let fewer = a[..1].to_vec();
        for other in [renamed, wider, retyped, fewer] {
            assert!(!fit(&a, &other), "{other:?}");
        }
    }

    #[test]
    fn a_request_whose_inputs_have_different_or_no_rows_joins_nothing() {
        let uneven = vec![("a".into(), floats(1, 3, 0)), ("b".into(), floats(2, 3, 0))];
        let scalar = vec![("a".into(), Tensor::from_f32(vec![], &[1.0]).unwrap())];
        let empty = vec![("a".into(), floats(0, 3, 0))];
        for request in [uneven, scalar, empty, Vec::new()] {
            assert_eq!(rows(&request), None, "{request:?}");
        }
    }

    #[test]
    fn an_output_without_a_row_for_each_is_named() {
        let outputs = vec![("y".to_owned(), floats(3, 2, 0))];
        let error = split(outputs, &[2, 2]).unwrap_err();
        assert_eq!(error, "output `y` of 4 joined rows has shape [3, 2]");
    }

    #[test]
    fn an_axis_that_is_fixed_refuses_and_is_named() {
        let free = port("x", &[None, Some(3)]);
        let interface = |inputs: Vec<IoSpec>, outputs: Vec<IoSpec>| Interface {
            inputs,
            outputs,
            engine_version: "e 1".into(),
        };
        let rules = BatchRules { max_rows: 4, max_delay: Duration::ZERO };
        let with = |inputs, outputs| Batcher::new(rules, &interface(inputs, outputs)).joining();
        assert_eq!(with(vec![free.clone()], vec![port("y", &[None])]), Joining::Unproven);
        let stiff = with(vec![free.clone()], vec![port("y", &[Some(1)])]);
        assert_eq!(stiff.to_string(), "refused: the first axis of output `y` is not free");
        let scalar = with(vec![free.clone(), port("rate", &[])], vec![]);
        assert_eq!(scalar.to_string(), "refused: the first axis of input `rate` is not free");
        assert_eq!(with(vec![], vec![]).to_string(), "refused: the model has no input");
        let off = Batcher::new(BatchRules::OFF, &interface(vec![free], vec![]));
        assert_eq!((off.joining(), off.active()), (Joining::Off, None));
    }

    #[test]
    fn golden_cases_are_joined_with_another_that_fits_and_differs() {
        let case = |from| (request(1, from), vec![("y".to_owned(), floats(1, 2, from))]);
        let (inputs, outputs) = joined_case(&[case(1), case(5)]).unwrap();
        assert_eq!(inputs, join(&[&request(1, 1), &request(1, 5)]));
        assert_eq!(outputs[0].1.shape, vec![2, 2]);
        for cases in [vec![case(1)], vec![case(1), case(1)]] {
            assert!(joined_case(&cases).unwrap_err().contains("differ"));
        }
        assert!(joined_case(&[]).is_err());
        let summed = |from| (request(2, from), vec![("y".to_owned(), floats(1, 2, 0))]);
        assert!(joined_case(&[summed(0), summed(9)]).unwrap_err().contains("`y`"));
    }
}
