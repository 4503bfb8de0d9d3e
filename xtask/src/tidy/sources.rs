//! Rules about the text of our files, each with its reason.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{paths, process};

/// A line may not hold the pattern, unless the file is excepted.
struct Ban {
    pattern: &'static str,
    extensions: &'static [&'static str],
    except: &'static [&'static str],
    why: &'static str,
}

/// A test binary that plays the worker process of its own tests.
const TEST_WORKER: &str = "agent/src/plane/fake.rs";

/// Patterns are split so that this file does not hold them.
const BANS: &[Ban] = &[
    Ban {
        pattern: concat!("TO", "DO"),
        extensions: &["rs", "toml", "md", "py", "sh"],
        except: &[],
        why: "what is not done returns an error that says so",
    },
    Ban {
        pattern: concat!("FIX", "ME"),
        extensions: &["rs", "toml", "md", "py", "sh"],
        except: &[],
        why: "what is not done returns an error that says so",
    },
    Ban {
        pattern: concat!("#[ign", "ore"),
        extensions: &["rs"],
        except: &[TEST_WORKER],
        why: "a test runs or does not exist",
    },
    Ban {
        pattern: concat!("process::", "exit("),
        extensions: &["rs"],
        except: &[TEST_WORKER],
        why: "only main ends the process, by its exit code",
    },
    Ban {
        pattern: concat!("/ro", "ot/."),
        extensions: &["rs", "toml", "md", "py", "sh", "json"],
        except: &[],
        why: "no path of one machine",
    },
    Ban {
        pattern: concat!("crates", ".io"),
        extensions: &["rs", "toml", "md", "py", "sh"],
        except: &[],
        why: "no registry's host name: packages come by name",
    },
    Ban {
        pattern: concat!("pypi", ".org"),
        extensions: &["rs", "toml", "md", "py", "sh"],
        except: &[],
        why: "no registry's host name: packages come by name",
    },
    Ban {
        pattern: concat!("uns", "afe {"),
        extensions: &["rs"],
        except: &["compressor/graph/src/import/mapped.rs", "crates/runtime/src/onnxruntime/raw.rs"],
        why: "unsafe is for kernels and FFI alone",
    },
];

/// The longest file, in lines; tables and generated files apart.
const FILE_LINES: usize = 1_000;
const LONG_FILES: &[&str] = &["compressor/graph/src/proto/onnx.rs"];
/// ARCHITECTURE.md is a map, not a book.
const ARCHITECTURE_LINES: usize = 200;

pub(super) fn check() -> Result<Vec<String>> {
    let root = paths::root();
    let mut found = Vec::new();
    for file in tracked(&root)? {
        let name = file.to_string_lossy().into_owned();
        if name.ends_with("/mod.rs") && !name.contains("/tests/") {
            found.push(format!("{name}: modules are foo.rs beside foo/, not mod.rs"));
        }
        let Ok(text) = fs::read_to_string(root.join(&file)) else { continue };
        found.extend(violations(&name, &text));
    }
    Ok(found)
}

/// Files git tracks, and new ones it does not ignore.
fn tracked(root: &Path) -> Result<Vec<PathBuf>> {
    let listed = process::output(
        Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard"])
            .current_dir(root),
    )
    .context("tidy reads the list of files from git")?;
    Ok(listed.lines().map(PathBuf::from).collect())
}

fn violations(name: &str, text: &str) -> Vec<String> {
    let extension = Path::new(name).extension().and_then(|e| e.to_str()).unwrap_or_default();
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for ban in BANS {
            let applies = ban.extensions.contains(&extension) && !ban.except.contains(&name);
            if applies && line.contains(ban.pattern) {
                found.push(format!("{name}:{}: `{}`: {}", number + 1, ban.pattern, ban.why));
            }
        }
    }
    let lines = text.lines().count();
    if extension == "rs" && lines > FILE_LINES && !LONG_FILES.contains(&name) {
        found.push(format!(
            "{name}: {lines} lines; a file is about one thing ({FILE_LINES} at most)"
        ));
    }
    if name == "ARCHITECTURE.md" && lines >= ARCHITECTURE_LINES {
        found.push(format!("{name}: {lines} lines; it is a map ({ARCHITECTURE_LINES} at most)"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::violations;

    #[test]
    fn a_banned_pattern_is_found_with_its_line_and_reason() {
        let text = format!("fn f() {{}}\n// {}: later\n", concat!("TO", "DO"));
        let found = violations("agent/src/lib.rs", &text);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("agent/src/lib.rs:2:"), "{found:?}");
    }

    #[test]
    fn a_file_that_is_too_long_is_named() {
        let text = "\n".repeat(super::FILE_LINES + 1);
        assert_eq!(violations("agent/src/lib.rs", &text).len(), 1);
        assert!(violations(super::LONG_FILES[0], &text).is_empty());
    }
}
