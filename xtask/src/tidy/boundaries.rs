//! Who may know whom: read from `cargo metadata`, not from conventions.

use anyhow::{Context, Result};
use cargo_metadata::{MetadataCommand, Package};

use crate::paths;

/// For each of our crates, the crates of ours that it may depend on.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("espalier-bundle", &[]),
    ("espalier-manual", &[]),
    ("espalier-wire", &[]),
    ("espalier-engine", &[]),
    ("espalier-runtime", &["espalier-engine"]),
    ("espalier-trust", &["espalier-bundle"]),
    ("espalier-tls", &[]),
    ("espalier-graph", &[]),
    ("espalier-exec", &["espalier-graph"]),
    (
        "espalier",
        &[
            "espalier-bundle",
            "espalier-exec",
            "espalier-graph",
            "espalier-manual",
            "espalier-runtime",
            "espalier-tls",
            "espalier-trust",
            "espalier-wire",
        ],
    ),
    // Not the runtime: a process that links tract pays for it though it never computes.
    (
        "espalier-agent",
        &[
            "espalier-bundle",
            "espalier-engine",
            "espalier-manual",
            "espalier-tls",
            "espalier-trust",
            "espalier-wire",
        ],
    ),
    ("espalier-worker", &["espalier-agent", "espalier-bundle", "espalier-runtime"]),
    ("edge-sim", &["espalier-agent", "espalier-manual", "espalier-wire", "espalier-worker"]),
    ("espalier-fuzz", &["espalier-agent", "espalier-bundle", "espalier-graph", "espalier-wire"]),
    (
        "e2e",
        &[
            "edge-sim",
            "espalier",
            "espalier-agent",
            "espalier-bundle",
            "espalier-engine",
            "espalier-exec",
            "espalier-graph",
            "espalier-runtime",
            "espalier-tls",
            "espalier-trust",
            "espalier-wire",
            "espalier-worker",
        ],
    ),
    ("xtask", &[]),
];

/// Crates of others that only some of ours may name, and why. A pattern that ends in `*` is a prefix:
/// the parts of an engine are as much the engine as the crate that joins them.
const ONLY: &[(&[&str], &[&str], &str)] = &[
    (&["candle", "candle-*"], &["espalier-exec"], "candle is the tensor type at exec's boundary"),
    (&["tract", "tract-*"], &["espalier-runtime"], "engines stay behind the runtime's trait"),
    (&["ort", "ort-*"], &["espalier-runtime"], "engines stay behind the runtime's trait"),
    (
        &["rumqttc*"],
        &["espalier", "espalier-agent", "edge-sim", "e2e"],
        "files and graphs know no network",
    ),
    (&["rumqttd*"], &["edge-sim"], "the embedded broker is for demos"),
    (
        &["tokio", "tokio-*"],
        // The worker's tests alone: they hold the agent's plane, and a client.
        &[
            "espalier",
            "espalier-agent",
            "espalier-tls",
            "espalier-trust",
            "espalier-worker",
            "edge-sim",
            "e2e",
        ],
        "the libraries are not async, but for those that carry connections and what tough asks of trust",
    ),
    (
        &["rustls", "rustls-*"],
        &["espalier-tls", "e2e"],
        "one crate chooses the provider of cryptography and reads keys",
    ),
    (&["axum", "axum-*"], &["espalier", "espalier-agent"], "only the two servers serve HTTP"),
    (
        &["hyper", "hyper-*"],
        &["espalier", "espalier-agent", "espalier-worker"],
        "only the two servers serve HTTP, and the worker's tests ask one",
    ),
    (&["tough"], &["espalier-trust"], "what is trusted is decided in one place"),
    (&["rusqlite"], &["espalier"], "only the compressor keeps jobs"),
    (
        &["anyhow"],
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
    let dependencies = package.dependencies.iter().map(|dependency| dependency.name.as_str());
    judge(name, known, dependencies)
}

/// Tests and build scripts know no more than the crate itself: what needs more of ours is a test of the
/// parts together, and those are in `e2e`.
fn judge<'a>(
    name: &str,
    known: &[&str],
    dependencies: impl Iterator<Item = &'a str>,
) -> Vec<String> {
    let is_ours = |krate: &str| MAY_KNOW.iter().any(|(ours, _)| *ours == krate);
    let mut found = Vec::new();
    for dependency in dependencies {
        if is_ours(dependency) && !known.contains(&dependency) {
            found.push(format!("{name} may not depend on {dependency}"));
        }
        let only = ONLY
            .iter()
            .find(|(patterns, _, _)| patterns.iter().any(|pattern| matches(pattern, dependency)));
        if let Some((_, users, why)) = only
            && !users.contains(&name)
        {
            found.push(format!("{name} may not depend on {dependency}: {why}"));
        }
    }
    found
}

fn matches(pattern: &str, krate: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => krate.starts_with(prefix),
        None => krate == pattern,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_may_not_know_the_compressor_nor_an_engine() {
        let found = judge(
            "espalier-agent",
            &["espalier-wire"],
            ["espalier", "ort", "espalier-wire", "serde"].into_iter(),
        );
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[1].contains("engines stay behind"));
    }

    #[test]
    fn a_part_of_an_engine_or_of_a_client_is_as_much_of_it() {
        let parts =
            ["tract-core", "tract-onnx", "ort-sys", "candle-nn", "rumqttc-v5-next", "axum-core"];
        assert_eq!(judge("espalier-graph", &[], parts.into_iter()).len(), parts.len());
        let alike = ["ortho", "tractor", "candlelight", "hyperloglog", "tokiobar"];
        assert_eq!(judge("espalier-graph", &[], alike.into_iter()), [""; 0]);
        assert_eq!(judge("espalier-runtime", &[], ["tract-core", "ort-sys"].into_iter()), [""; 0]);
    }

    /// A package with one dependency of the kind, as cargo tells of it.
    fn package(name: &str, dependency: &str, kind: &str) -> Package {
        let text = format!(
            r#"{{"name": "{name}", "version": "0.1.0", "id": "{name}", "source": null, "targets": [],
                 "features": {{}}, "manifest_path": "/{name}/Cargo.toml", "dependencies": [{{
                     "name": "{dependency}", "req": "*", "kind": {kind}, "optional": false,
                     "uses_default_features": true, "features": [], "source": null}}]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_crate_s_tests_and_build_script_know_no_more_than_the_crate() {
        for kind in ["null", "\"dev\"", "\"build\""] {
            let found = violations(&package("espalier-graph", "espalier-exec", kind));
            assert_eq!(found, ["espalier-graph may not depend on espalier-exec"], "{kind}");
            let found = violations(&package("espalier-exec", "espalier-graph", kind));
            assert_eq!(found, [""; 0], "{kind}");
        }
    }
}
