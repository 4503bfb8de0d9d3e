//! Crates of others that nothing in the build may be, however far down.
//!
//! Read from `cargo tree`: the lock file and `cargo metadata` also hold what a feature names and no build has.

use anyhow::Result;

use crate::{build, paths, process};

/// What may not be built, and why.
const NOWHERE: &[(&str, &str)] = &[
    ("ring", "aws-lc-rs is the one provider of cryptography"),
    ("openssl-sys", "aws-lc-rs is the one provider of cryptography"),
    ("native-tls", "aws-lc-rs is the one provider of cryptography"),
    ("webpki-roots", "whom to trust is for the device's files to say"),
    ("webpki-root-certs", "whom to trust is for the device's files to say"),
];
/// The one provider; without it there is nothing to watch.
const PROVIDER: &str = "aws-lc-rs";

pub(super) fn check() -> Result<Vec<String>> {
    let mut command = build::cargo()?;
    command.current_dir(paths::root()).args([
        "tree",
        "--locked",
        "--workspace",
        "--target",
        "all",
        "--edges",
        "normal,build,dev",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]);
    Ok(judge(&process::output(&mut command)?))
}

fn judge(tree: &str) -> Vec<String> {
    let built = |krate: &str| tree.lines().any(|line| line.split(' ').next() == Some(krate));
    let unwanted = NOWHERE.iter().filter(|(krate, _)| built(krate));
    let mut found: Vec<String> = unwanted
        .map(|(krate, why)| {
            format!(
                "{krate} is built (cargo tree --workspace --target all --invert {krate}): {why}"
            )
        })
        .collect();
    if !built(PROVIDER) {
        found.push(format!("{PROVIDER} is not built: which provider of cryptography is, then?"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_provider_is_found_by_its_whole_name() {
        let good =
            "a v0.1.0 (/a)\naws-lc-rs v1.19.0\naws-lc-sys v0.47.0\nstring v0.1.0\nring-like v0.1.0";
        assert_eq!(judge(good), [""; 0]);
        let bad = judge("ring v0.17.14 (*)\nopenssl-sys v0.9.0");
        assert_eq!(bad.len(), 3, "{bad:?}");
        assert!(bad[0].starts_with("ring is built"), "{bad:?}");
    }
}
