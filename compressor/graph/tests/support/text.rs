//! Small models with bodies, as text.
//!
//! One statement a line: `input NAME DTYPE SIZE…` (a word is a symbol), `const NAME DTYPE[SIZES] = NUMBER` (every
//! element is that number, or counts up from it after `+`), `OP OUT… = IN…` (`_` omits an input), `output NAME`.
//! A line `ATTRIBUTE:` under a node begins a body, which is indented further and sees the names around it.

use graph::{Builder, DType, Dim, Model, Tensor, ValueId};

/// Reads a model of operator set 17.
///
/// # Panics
/// When the text makes no sense.
#[allow(dead_code)]
pub(crate) fn model(text: &str) -> Model {
    let lines: Vec<(usize, &str)> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| (line.len() - line.trim_start().len(), line.trim()))
        .collect();
    let (builder, outputs) = graph(Builder::new(17), &lines);
    builder.finish(&outputs).unwrap()
}

fn graph(mut builder: Builder, mut lines: &[(usize, &str)]) -> (Builder, Vec<ValueId>) {
    let mut outputs = Vec::new();
    while let Some((&(depth, line), rest)) = lines.split_first() {
        let nested = rest.iter().take_while(|(deeper, _)| *deeper > depth).count();
        statement(&mut builder, line, &rest[..nested], &mut outputs);
        lines = &rest[nested..];
    }
    (builder, outputs)
}

fn statement(
    builder: &mut Builder,
    line: &str,
    bodies: &[(usize, &str)],
    outputs: &mut Vec<ValueId>,
) {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["input", name, dtype, sizes @ ..] => {
            builder.input(name, kind(dtype), sizes.iter().map(|size| dim(size)).collect());
        }
        ["const", name, ty, "=", value] => {
            let tensor = constant(ty, value);
            builder.constant(name, tensor).unwrap();
        }
        ["output", name] => outputs.push(value(builder, name).unwrap()),
        [op, rest @ ..] => {
            let at = rest.iter().position(|word| *word == "=").unwrap();
            let inputs: Vec<_> = rest[at + 1..].iter().map(|name| value(builder, name)).collect();
            let bodies = self::bodies(builder, bodies);
            let bodies = bodies
                .iter()
                .map(|(name, body, outputs)| (attribute(name), body.clone(), outputs.clone()));
            let made = builder.control(op, &inputs, bodies, at).unwrap();
            for (made, name) in made.into_iter().zip(&rest[..at]) {
                builder.rename(made, name).unwrap();
            }
        }
        [] => {}
    }
}

fn bodies(builder: &Builder, mut lines: &[(usize, &str)]) -> Vec<(String, Builder, Vec<ValueId>)> {
    let mut found = Vec::new();
    while let Some((&(depth, head), rest)) = lines.split_first() {
        let nested = rest.iter().take_while(|(deeper, _)| *deeper > depth).count();
        let (body, outputs) = graph(builder.body(), &rest[..nested]);
        found.push((head.trim_end_matches(':').to_owned(), body, outputs));
        lines = &rest[nested..];
    }
    found
}

fn attribute(name: &str) -> &str {
    match name {
        "then" => "then_branch",
        "else" => "else_branch",
        other => other,
    }
}

/// A name of the graph, or one that it captures.
fn value(builder: &mut Builder, name: &str) -> Option<ValueId> {
    (name != "_").then(|| match builder.graph().value_by_name(name) {
        Some(known) => known,
        None => builder.capture(name),
    })
}

fn dim(size: &str) -> Dim {
    size.parse().map_or_else(|_| Dim::Symbol(size.to_owned()), Dim::Fixed)
}

fn kind(dtype: &str) -> DType {
    match dtype {
        "f32" => DType::F32,
        "i64" => DType::I64,
        "bool" => DType::Bool,
        other => panic!("no element type `{other}`"),
    }
}

fn constant(ty: &str, value: &str) -> Tensor {
    let (dtype, sizes) = ty.split_once('[').unwrap_or((ty, ""));
    let sizes = sizes.trim_end_matches(']').split(',').filter(|size| !size.is_empty());
    let dims: Vec<usize> = sizes.map(|size| size.parse().unwrap()).collect();
    let len: usize = dims.iter().product();
    let (start, step) = match value.strip_prefix('+') {
        Some(start) => (start.parse::<f64>().unwrap(), 1.0),
        None => (value.parse::<f64>().unwrap(), 0.0),
    };
    #[allow(clippy::cast_precision_loss)]
    let values: Vec<f64> = (0..len).map(|i| start + step * (i % 11) as f64).collect();
    Tensor::from_f64_as(kind(dtype), dims, &values).unwrap()
}
