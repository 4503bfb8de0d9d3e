//! Gives bodies constants of their own.

use super::{Editor, Halt, Pass};
use crate::{Edit, Graph, Origin, Tensor, ValueId};

/// Captured constants of at most so many elements are copied into every body that reads them.
const MAX_COPIED: usize = 64;

/// Moves a constant that only one body reads into that body, and copies small ones (axes, sizes, scalars) into
/// every body that reads them: an operator's parameters are looked at within one graph, and a weight is pruned
/// there. A constant that is captured from further out than the graph around the body stays where it is.
///
/// What nothing reads afterwards is left to [`DeadCode`](super::DeadCode).
#[derive(Debug, Clone, Copy, Default)]
pub struct OwnConstants;

impl Pass for OwnConstants {
    fn name(&self) -> &'static str {
        "own-constants"
    }

    fn run(&self, editor: &mut Editor<'_>) -> Result<(), Halt> {
        let Some((outer, _)) = editor.outer else { return Ok(()) };
        for (value, tensor) in wanted(outer, editor.graph()) {
            let readers = editor.graph().consumers(value);
            let name = editor.graph().value(value).name.clone();
            let own = editor.apply(Edit::AddConstant { name, tensor }, "only its body reads it")?;
            for (node, slot) in readers {
                let edit = Edit::ReplaceInput { node, slot, value: own.value() };
                editor.apply(edit, "reads the constant of its own graph")?;
            }
        }
        Ok(())
    }
}

/// Captured constants that may be moved or copied. The body is out of the graph around it meanwhile, so that what
/// captures there is somebody else.
fn wanted(outer: &Graph, body: &Graph) -> Vec<(ValueId, Tensor)> {
    let captured = body.values().filter(|(_, value)| value.origin == Origin::Outer);
    let found = captured.filter_map(|(id, value)| {
        let source = outer.value_by_name(&value.name)?;
        let tensor = outer.constant(source)?;
        let here = !body.consumers(id).is_empty();
        let alone = outer.is_unused(source) && body.captured_by(id).is_empty();
        let small = tensor.len() <= MAX_COPIED;
        (here && (alone || small)).then(|| (id, Tensor::clone(&tensor)))
    });
    found.collect()
}
