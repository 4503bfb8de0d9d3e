//! What is said of a name that nothing has.

use std::collections::BTreeSet;

use graph::Scope;

use super::{each_graph, load, named};
use crate::error::CompressError;
use crate::metric::text::edits;
use crate::pipeline::shop::Source;

/// The most names compared when a name is not found.
const MAX_NAMES: usize = 20_000;
/// The most names suggested.
const SUGGESTED: usize = 5;

/// The error for a name that nothing has.
pub(super) fn unknown(source: &Source, name: &str) -> Result<CompressError, CompressError> {
    let wrong = |what: String| CompressError::Model { path: source.path.clone(), what };
    let mut gone = false;
    each_graph(&load(&source.path)?.graph, &Scope::default(), &mut |graph, _| {
        gone |= !named(graph, name).is_empty();
    });
    if gone {
        return Ok(wrong(format!(
            "\"{name}\" is in the file, but nothing of it is left once branches that are always taken are put in \
             place, moved constants are folded, and what no output needs is dropped"
        )));
    }
    let near = near(source, name);
    let near = if near.is_empty() {
        "espalier inspect without --why lists inputs and outputs".to_owned()
    } else {
        let quoted: Vec<String> = near.iter().map(|name| format!("\"{name}\"")).collect();
        format!("did you mean {}?", quoted.join(", "))
    };
    Ok(wrong(format!("has no node and no value \"{name}\"; {near}")))
}

/// Names like `wanted`: those that hold it, or that it holds, then those that few edits part from it.
fn near(source: &Source, wanted: &str) -> Vec<String> {
    let mut names: BTreeSet<String> = BTreeSet::new();
    each_graph(&source.model.graph, &Scope::default(), &mut |graph, _| {
        let nodes = graph.nodes().map(|(_, node)| node.name.clone());
        let values = graph.values().map(|(_, value)| value.name.clone());
        let room = MAX_NAMES.saturating_sub(names.len());
        names.extend(nodes.chain(values).filter(|name| !name.is_empty()).take(room));
    });
    // Exporters part words by dots, slashes and dashes, which nobody remembers.
    let plain = |name: &str| -> String {
        name.to_lowercase().chars().filter(|c| c.is_alphanumeric()).collect()
    };
    let text = plain(wanted);
    let letters: Vec<char> = text.chars().collect();
    let distance = |name: &str| {
        let name = plain(name);
        let within = |long: &str, short: &str| short.len() >= 3 && long.contains(short);
        let within = within(&name, &text) || within(&text, &name);
        let parts = edits(&letters, &name.chars().collect::<Vec<char>>());
        (within || parts <= letters.len().div_ceil(3)).then_some((!within, parts))
    };
    let mut near: Vec<((bool, usize), String)> =
        names.into_iter().filter_map(|name| Some((distance(&name)?, name))).collect();
    near.sort();
    near.into_iter().take(SUGGESTED).map(|(_, name)| name).collect()
}
