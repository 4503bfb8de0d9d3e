//! Rules about the text of our files, each with its reason.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::links;
use crate::{paths, process};

/// A line may not hold the pattern, unless the file is excepted.
struct Ban {
    pattern: &'static str,
    place: Place,
    files: Files,
    except: &'static [&'static str],
    why: &'static str,
}

/// Where in a line a pattern counts.
#[derive(Clone, Copy)]
enum Place {
    Anywhere,
    /// Where it begins an absolute path: `/x/y`, but not `a/x/y` nor `{dir}/x/y`.
    PathStart,
}

/// Which files a ban is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Files {
    /// Every text file but lock files, which cargo writes.
    Text,
    Rust,
}

/// A test binary that plays the worker process of its own tests.
const TEST_WORKER: &str = "agent/src/plane/fake.rs";
/// The agent that another test traces.
const TRACED: &str = "agent/src/shell/driver/tests/crashes.rs";
/// The spool that another test traces.
const TRACED_SPOOL: &str = "agent/src/shell/spool/tests/crashes.rs";
/// The agents on disks that take no more, each in a process that another test starts.
const STARVED: &str = "agent/src/shell/driver/tests/faults.rs";

const UNFINISHED: &str = "what is not done returns an error that says so";
const REGISTRY: &str = "no registry's host name: packages come by name";
const MACHINE: &str = "no path of one machine";

/// Patterns are split so that this file does not hold them.
const BANS: &[Ban] = &[
    text(concat!("TO", "DO"), UNFINISHED),
    text(concat!("FIX", "ME"), UNFINISHED),
    text(concat!("crates", ".io"), REGISTRY),
    text(concat!("pypi", ".org"), REGISTRY),
    text(concat!("python", "hosted.org"), REGISTRY),
    text(concat!("npm", "js."), REGISTRY),
    text(concat!("debian", ".org"), REGISTRY),
    text(concat!("ubuntu", ".com"), REGISTRY),
    text(concat!("proxy.", "golang.org"), REGISTRY),
    text(concat!("docker", ".io"), REGISTRY),
    text(concat!("ghcr", ".io"), REGISTRY),
    path(concat!("/ho", "me/")),
    path(concat!("/ro", "ot/")),
    path(concat!("/wo", "rk/")),
    path(concat!("/Us", "ers/")),
    rust(
        concat!("#[ign", "ore"),
        &[TEST_WORKER, TRACED, TRACED_SPOOL, STARVED],
        "a test runs or does not exist",
    ),
    rust(
        concat!("process::", "exit("),
        &[TEST_WORKER],
        "only main ends the process, by its exit code",
    ),
    rust(concat!("uns", "afe {"), UNSAFE, "unsafe is for kernels and FFI alone"),
];

const fn text(pattern: &'static str, why: &'static str) -> Ban {
    Ban { pattern, place: Place::Anywhere, files: Files::Text, except: &[], why }
}

const fn path(pattern: &'static str) -> Ban {
    Ban { pattern, place: Place::PathStart, files: Files::Text, except: &[], why: MACHINE }
}

const fn rust(pattern: &'static str, except: &'static [&'static str], why: &'static str) -> Ban {
    Ban { pattern, place: Place::Anywhere, files: Files::Rust, except, why }
}

impl Ban {
    fn applies_to(&self, name: &str) -> bool {
        let is_rust = has_extension(name, "rs");
        let is_meant = self.files == Files::Rust && is_rust
            || self.files == Files::Text && !has_extension(name, "lock");
        is_meant && !self.except.contains(&name)
    }

    fn is_in(&self, line: &str) -> bool {
        line.match_indices(self.pattern).any(|(at, _)| match self.place {
            Place::Anywhere => true,
            Place::PathStart => !line[..at].ends_with(is_of_a_path),
        })
    }
}

/// Whether a slash behind this character goes on with a path rather than beginning one.
fn is_of_a_path(c: char) -> bool {
    c.is_alphanumeric() || "._-~*})>]".contains(c)
}

fn has_extension(name: &str, wanted: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == wanted)
}

/// Where unsafe code is.
const UNSAFE: &[&str] =
    &["compressor/graph/src/import/mapped.rs", "crates/runtime/src/onnxruntime/raw.rs"];
/// What the root of every other crate says.
const FORBIDS: &str = "#![forbid(unsafe_code)]";

/// Whether a crate's root leaves out that it has no unsafe code.
fn forgets_to_forbid(name: &str, text: &str) -> bool {
    let is_root = name.ends_with("src/lib.rs") || name.ends_with("src/main.rs");
    let has_some = name
        .strip_suffix("lib.rs")
        .is_some_and(|src| UNSAFE.iter().any(|file| file.starts_with(src)));
    is_root && !has_some && !text.lines().any(|line| line == FORBIDS)
}

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
        if forgets_to_forbid(&name, &text) {
            found.push(format!("{name}: the root of a crate without unsafe code says `{FORBIDS}`"));
        }
        if has_extension(&name, "md") {
            found.extend(links::broken(&root, &name, &text));
        }
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
    let bans: Vec<_> = BANS.iter().filter(|ban| ban.applies_to(name)).collect();
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for ban in bans.iter().filter(|ban| ban.is_in(line)) {
            found.push(format!("{name}:{}: `{}`: {}", number + 1, ban.pattern, ban.why));
        }
    }
    let lines = text.lines().count();
    if has_extension(name, "rs") && lines > FILE_LINES && !LONG_FILES.contains(&name) {
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

    #[test]
    fn every_text_file_is_read_but_lock_files() {
        let text = concat!("see https://static.crates", ".io/x\n");
        for name in [".ci/run", "systemd/espalier-agent.service", "templates/report.html", "a.yaml"]
        {
            assert_eq!(violations(name, text).len(), 1, "{name}");
        }
        assert!(violations("Cargo.lock", text).is_empty());
    }

    #[test]
    fn a_path_of_one_machine_is_found_where_it_begins_and_nowhere_else() {
        let is_found = |text: &str| !violations("docs/a.md", text).is_empty();
        for folder in [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/wo", "rk/")] {
            for before in ["", "see ", "\"", "(", "`", "=", ":", "file://"] {
                assert!(is_found(&format!("{before}{folder}x")), "{before}{folder}");
            }
            for before in ["{dir}", "state", "..", "${x}"] {
                assert!(!is_found(&format!("{before}{folder}x")), "{before}{folder}");
            }
        }
        assert!(!is_found("/etc/espalier/agent.toml, /var/lib/espalier, /usr/local/lib"));
    }
}
