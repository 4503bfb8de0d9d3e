//! Who may know whom: read from `cargo metadata`, not from conventions.

use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, MetadataCommand, Package};

use crate::paths;

/// For each of our crates, the crates of ours that it may depend on.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("espalier-bundle", &[]),
    ("espalier-wire", &[]),
    ("espalier-runtime", &[]),
    ("espalier-graph", &[]),
    ("espalier-exec", &["espalier-graph"]),
    (
        "espalier",
        &[
            "espalier-bundle",
            "espalier-exec",
            "espalier-graph",
            "espalier-runtime",
            "espalier-wire",
        ],
    ),
    ("espalier-agent", &["espalier-bundle", "espalier-runtime", "espalier-wire"]),
    ("edge-sim", &["espalier-agent", "espalier-wire"]),
    (
        "e2e",
        &[
            "edge-sim",
            "espalier",
            "espalier-agent",
            "espalier-bundle",
            "espalier-exec",
            "espalier-graph",
            "espalier-runtime",
            "espalier-wire",
        ],
    ),
    ("xtask", &[]),
];

/// Crates of others that only some of ours may name, and why.
const ONLY: &[(&str, &[&str], &str)] = &[
    ("candle-core", &["espalier-exec"], "candle is the tensor type at exec's boundary"),
    ("tract-onnx", &["espalier-runtime"], "engines stay behind the runtime's trait"),
    ("ort", &["espalier-runtime"], "engines stay behind the runtime's trait"),
    (
        "rumqttc",
        &["espalier", "espalier-agent", "edge-sim", "e2e"],
        "files and graphs know no network",
    ),
    ("rumqttd", &["edge-sim"], "the embedded broker is for demos"),
    ("tokio", &["espalier", "espalier-agent", "edge-sim", "e2e"], "the libraries are not async"),
    ("axum", &["espalier", "espalier-agent"], "only the two servers serve HTTP"),
    ("hyper", &["espalier", "espalier-agent"], "only the two servers serve HTTP"),
    ("rusqlite", &["espalier"], "only the compressor keeps jobs"),
    (
        "anyhow",
        &["espalier", "espalier-agent", "edge-sim", "e2e", "xtask"],
        "libraries have typed errors",
    ),
];

pub(super) fn check() -> Result<Vec<String>> {
    let metadata = MetadataCommand::new()
        .manifest_path(paths::root().join("Cargo.toml"))
        .no_deps()
        .exec()
        .context("cannot read the workspace's metadata")?;
    Ok(metadata.packages.iter().flat_map(violations).collect())
}

fn violations(package: &Package) -> Vec<String> {
    let name = package.name.as_str();
    let Some((_, known)) = MAY_KNOW.iter().find(|(krate, _)| *krate == name) else {
        return vec![format!("{name} is not in the map of crates (xtask/src/tidy/boundaries.rs)")];
    };
    let dependencies = package.dependencies.iter().map(|dependency| {
        (dependency.name.as_str(), dependency.kind == DependencyKind::Development)
    });
    judge(name, known, dependencies)
}

/// A crate's tests may know more of ours than the crate itself, but never the engines directly.
fn judge<'a>(
    name: &str,
    known: &[&str],
    dependencies: impl Iterator<Item = (&'a str, bool)>,
) -> Vec<String> {
    let is_ours = |krate: &str| MAY_KNOW.iter().any(|(ours, _)| *ours == krate);
    let mut found = Vec::new();
    for (dependency, is_for_tests) in dependencies {
        if is_ours(dependency) && !is_for_tests && !known.contains(&dependency) {
            found.push(format!("{name} may not depend on {dependency}"));
        }
        let only = ONLY.iter().find(|(krate, _, _)| *krate == dependency);
        if let Some((_, users, why)) = only
            && !users.contains(&name)
        {
            found.push(format!("{name} may not depend on {dependency}: {why}"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::judge;

    #[test]
    fn the_agent_may_not_know_the_compressor_nor_an_engine() {
        let found = judge(
            "espalier-agent",
            &["espalier-wire"],
            [("espalier", false), ("ort", false), ("espalier-wire", false), ("serde", false)]
                .into_iter(),
        );
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[1].contains("engines stay behind"));
    }

    #[test]
    fn a_test_may_know_another_crate_of_ours_but_no_engine() {
        let found = judge(
            "espalier-graph",
            &[],
            [("espalier-exec", true), ("candle-core", true)].into_iter(),
        );
        assert_eq!(found.len(), 1, "{found:?}");
    }
}
