//! Where `Resize` and `Upsample` say by how much.

use crate::{AttributeValue, Node};

/// Input that holds the sizes.
pub(crate) const SIZES: usize = 3;

/// The scales, if given: an attribute in the oldest form, input 1 where there are two, otherwise input 2.
pub(crate) fn scales(node: &Node, floats: impl Fn(usize) -> Option<Vec<f64>>) -> Option<Vec<f64>> {
    match (node.attr("scales"), node.inputs.len()) {
        (Some(AttributeValue::Floats(scales)), _) => {
            Some(scales.iter().map(|&scale| f64::from(scale)).collect())
        }
        (_, 2) => floats(1),
        _ => floats(2).filter(|scales| !scales.is_empty()),
    }
}
