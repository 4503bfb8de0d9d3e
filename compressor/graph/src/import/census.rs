//! Counts the messages of a file before it is decoded.
//!
//! An empty message takes two bytes in a file and hundreds in memory, so that a small hostile file could fill
//! it. Only the large kinds are counted; what is malformed is left to the decoder to report.

/// Bodies nested deeper than the decoder follows need not be counted.
const MAX_DEPTH: usize = 64;

/// A message that holds others.
#[derive(Clone, Copy)]
enum Kind {
    Model,
    Training,
    Function,
    Graph,
    Node,
    Attribute,
    /// Tensors, types and entries: counted, not entered.
    Leaf,
}

impl Kind {
    /// The kind of a field, by its number in `onnx.proto`.
    fn child(self, field: u64) -> Option<Self> {
        match (self, field) {
            (Self::Model, 7) | (Self::Training, 1 | 2) | (Self::Attribute, 6 | 11) => {
                Some(Self::Graph)
            }
            (Self::Model, 20) => Some(Self::Training),
            (Self::Model, 25) => Some(Self::Function),
            (Self::Graph, 1) | (Self::Function, 7) => Some(Self::Node),
            (Self::Node, 5) | (Self::Function, 11) => Some(Self::Attribute),
            (Self::Model, 8 | 14 | 26)
            | (Self::Training, 3 | 4)
            | (Self::Function, 9 | 12 | 14)
            | (Self::Graph, 5 | 11..=16)
            | (Self::Node, 9 | 10)
            | (Self::Attribute, 5 | 10 | 14 | 15 | 22 | 23) => Some(Self::Leaf),
            _ => None,
        }
    }
}

/// Messages in an encoded model; stops counting beyond `limit`.
pub(super) fn messages(model: &[u8], limit: usize) -> usize {
    let mut found = 0;
    // Still to be entered; never more than were counted.
    let mut open = vec![(model, Kind::Model, 0)];
    while let Some((mut bytes, kind, depth)) = open.pop() {
        while let Some((field, content)) = next(&mut bytes) {
            let (Some(content), Some(child)) = (content, kind.child(field)) else { continue };
            found += 1;
            if found > limit {
                return found;
            }
            if depth < MAX_DEPTH && !matches!(child, Kind::Leaf) {
                open.push((content, child, depth + 1));
            }
        }
    }
    found
}

/// The next field's number and, where it is length-delimited, its content.
fn next<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Option<&'a [u8]>)> {
    let tag = varint(bytes)?;
    let fixed = |bytes: &mut &'a [u8], len: usize| bytes.split_off(..len).map(drop);
    match tag & 7 {
        0 => varint(bytes).map(drop)?,
        1 => fixed(bytes, 8)?,
        2 => {
            let len = usize::try_from(varint(bytes)?).ok()?;
            return Some((tag >> 3, Some(bytes.split_off(..len)?)));
        }
        5 => fixed(bytes, 4)?,
        _ => return None,
    }
    Some((tag >> 3, None))
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.split_off_first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_messages_are_counted_and_counting_stops_at_the_limit() {
        // A graph of three empty nodes and one node with an empty attribute.
        let graph = [0x0a, 0, 0x0a, 0, 0x0a, 0, 0x0a, 2, 0x2a, 0];
        let mut model = vec![0x08, 8, 0x3a, u8::try_from(graph.len()).unwrap_or(0)];
        model.extend(graph);
        assert_eq!(messages(&model, 100), 6);
        assert_eq!(messages(&model, 2), 3);
    }

    #[test]
    fn malformed_bytes_end_the_count() {
        for bytes in [&[0xff_u8; 20][..], &[0x3a, 0x7f], &[0x3a], &[0x0b], &[]] {
            assert_eq!(messages(bytes, 10), 0, "{bytes:?}");
        }
    }
}
