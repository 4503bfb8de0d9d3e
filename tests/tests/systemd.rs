//! The unit file is valid, and what it may do stays small.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::{binary, root};
use espalier_agent::config;

/// `systemd-analyze security` times ten: 1.2 is the most we accept.
const EXPOSURE_LIMIT: &str = "12";

fn unit_with_built_agent(folder: &tempfile::TempDir) -> PathBuf {
    let unit = std::fs::read_to_string(root().join("systemd/espalier-agent.service")).unwrap();
    let agent = binary("espalier-agent");
    assert!(unit.contains("/usr/bin/espalier-agent"));
    let path = folder.path().join("espalier-agent.service");
    std::fs::write(&path, unit.replace("/usr/bin/espalier-agent", &agent.to_string_lossy()))
        .unwrap();
    path
}

fn analyze(arguments: &[&str], unit: &PathBuf) -> std::process::Output {
    Command::new("systemd-analyze").args(arguments).arg(unit).output().unwrap()
}

#[test]
fn systemd_accepts_the_unit_without_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let unit = unit_with_built_agent(&folder);
    let output = analyze(&["verify", "--man=no"], &unit);
    let text = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<_> = text.lines().filter(|line| line.contains("espalier")).collect();
    assert!(output.status.success() && ours.is_empty(), "{text}");
}

#[test]
fn the_unit_is_exposed_at_most_one_point_two() {
    let folder = tempfile::tempdir().unwrap();
    let unit = unit_with_built_agent(&folder);
    let threshold = format!("--threshold={EXPOSURE_LIMIT}");
    let output = analyze(&["security", "--offline=true", "--no-pager", &threshold], &unit);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn the_gate_notices_a_unit_without_hardening() {
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("bare.service");
    std::fs::write(&unit, "[Service]\nExecStart=/bin/true\n").unwrap();
    let threshold = format!("--threshold={EXPOSURE_LIMIT}");
    assert!(
        !analyze(&["security", "--offline=true", "--no-pager", &threshold], &unit).status.success()
    );
}

#[test]
fn the_tmpfiles_and_sysusers_files_parse() {
    for (tool, file) in
        [("systemd-tmpfiles", "espalier.tmpfiles"), ("systemd-sysusers", "espalier.sysusers")]
    {
        let tree = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(tree.path().join("etc")).unwrap();
        let users = std::fs::read_to_string(root().join("systemd/espalier.sysusers")).unwrap();
        std::fs::create_dir_all(tree.path().join("usr/lib/sysusers.d")).unwrap();
        std::fs::write(tree.path().join("usr/lib/sysusers.d/espalier.conf"), users).unwrap();
        let mut command = Command::new(tool);
        command.arg(format!("--root={}", tree.path().display()));
        if tool == "systemd-tmpfiles" {
            // The users must exist for ownership to resolve.
            let made = Command::new("systemd-sysusers")
                .arg(format!("--root={}", tree.path().display()))
                .status()
                .unwrap();
            assert!(made.success());
            command.arg("--create").arg(root().join("systemd").join(file));
        } else {
            command.arg(root().join("systemd").join(file));
        }
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !text.contains("Unknown"), "{tool}: {text}");
        if tool == "systemd-tmpfiles" {
            assert!(tree.path().join("var/lib/espalier").is_dir(), "{text}");
        } else {
            let users = std::fs::read_to_string(tree.path().join("etc/passwd")).unwrap();
            assert!(users.lines().any(|line| line.starts_with("espalier:")), "{users}");
        }
    }
}

#[test]
fn the_tmpfiles_and_the_unit_name_the_configuration_that_the_agent_reads() {
    let file = Path::new(config::DEFAULT_FILE);
    let tmpfiles = std::fs::read_to_string(root().join("systemd/espalier.tmpfiles")).unwrap();
    let made: Vec<PathBuf> = tmpfiles
        .lines()
        .filter_map(|line| line.strip_prefix("d ")?.split_whitespace().next())
        .map(PathBuf::from)
        .filter(|folder| folder.starts_with("/etc"))
        .collect();
    assert_eq!(made, [file.parent().unwrap().to_path_buf(), config::pieces(file)]);
    let unit = std::fs::read_to_string(root().join("systemd/espalier-agent.service")).unwrap();
    assert!(unit.contains(&format!(" run --config {}\n", file.display())), "{unit}");
}

#[test]
fn nothing_removes_a_half_made_download_at_boot() {
    let tmpfiles = std::fs::read_to_string(root().join("systemd/espalier.tmpfiles")).unwrap();
    let removing = |line: &&str| {
        let kind = line.split_whitespace().next().unwrap_or_default();
        kind.starts_with(['r', 'R', 'D', 'e']) && !line.starts_with('#')
    };
    assert_eq!(tmpfiles.lines().filter(removing).collect::<Vec<_>>(), [""; 0]);
}
