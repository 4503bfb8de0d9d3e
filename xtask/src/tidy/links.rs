//! Relative links of our Markdown lead somewhere.

use std::fs;
use std::path::Path;

/// What is wrong with the links of one file of the repository.
pub(super) fn broken(root: &Path, name: &str, text: &str) -> Vec<String> {
    let folder = root.join(name);
    let folder = folder.parent().unwrap_or(root);
    let mut found = Vec::new();
    let mut fenced = false;
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        for target in targets(line).filter(|_| !fenced) {
            if let Err(why) = resolve(root, folder, Path::new(name), target) {
                found.push(format!("{name}:{}: the link to `{target}` {why}", number + 1));
            }
        }
    }
    found
}

/// The targets of a line's inline links.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next())
}

fn resolve(root: &Path, folder: &Path, name: &Path, target: &str) -> Result<(), String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return Ok(());
    }
    let (path, heading) = target.split_once('#').unwrap_or((target, ""));
    let file = if path.is_empty() { root.join(name) } else { folder.join(path) };
    if !file.exists() {
        return Err("leads nowhere".to_owned());
    }
    if heading.is_empty() || file.extension().is_none_or(|extension| extension != "md") {
        return Ok(());
    }
    let text = fs::read_to_string(&file).map_err(|error| error.to_string())?;
    let is_there = text
        .lines()
        .filter(|line| line.starts_with('#'))
        .any(|line| anchor(line.trim_start_matches('#')) == heading);
    if is_there { Ok(()) } else { Err("names no heading of that file".to_owned()) }
}

/// A heading as a link names it: lower case, spaces as hyphens, punctuation left out.
fn anchor(heading: &str) -> String {
    heading
        .trim()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .flat_map(char::to_lowercase)
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_link_leads_to_a_file_and_a_heading_that_are_there() {
        let root = std::env::temp_dir().join(format!("espalier-links-{}", std::process::id()));
        fs::create_dir_all(root.join("docs")).unwrap();
        fs::write(root.join("docs/agent.md"), "# The agent\n\n## As a *service*, then\n").unwrap();
        fs::write(root.join("README.md"), "# Here\n").unwrap();
        let judged = |text: &str| broken(&root, "README.md", text);
        let fine = "[a](docs/agent.md) [b](docs) [c](docs/agent.md#as-a-service-then)\n\
                    [d](https://example.org/x) `[e]`\n```\n[f](gone.md)\n```\n";
        assert_eq!(judged(fine), [""; 0]);
        let found = judged("# Here\n[a](docs/gone.md), [b](docs/agent.md#gone), [c](#here)\n");
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("README.md:2: the link to `docs/gone.md` leads nowhere"));
        assert!(found[1].contains("names no heading"));
        assert_eq!(broken(&root, "docs/agent.md", "[up](../README.md#here)"), [""; 0]);
        assert_eq!(broken(&root, "docs/agent.md", "[here](README.md)").len(), 1);
        fs::remove_dir_all(&root).unwrap();
    }
}
