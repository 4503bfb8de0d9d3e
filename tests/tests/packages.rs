//! The Debian packages: what dpkg finds in them, and the manual that the programs write of themselves.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::packages::{self, dist};
use e2e::{binary, provided, root};

/// Programs, the sections of their manuals, and the subcommands that have pages.
const PROGRAMS: &[(&str, &str, &[&str])] = &[
    ("espalier-agent", "8", &["run", "status", "check", "models", "journal", "bench"]),
    (
        "espalier",
        "1",
        &[
            "analyze", "inspect", "prune", "quantize", "compress", "apply", "bench", "serve",
            "trust",
        ],
    ),
    ("edge-sim", "1", &["demo", "run", "profiles"]),
];

fn text(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn field(package: &Path, name: &str) -> String {
    text(Command::new("dpkg-deb").arg("--field").arg(package).arg(name)).trim().to_owned()
}

fn unpack(package: &Path, folder: &Path) {
    text(Command::new("dpkg-deb").arg("--raw-extract").arg(package).arg(folder));
}

/// Every file below a folder, by path from it.
fn files(folder: &Path) -> BTreeSet<String> {
    fn below(folder: &Path, base: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                below(&path, base, found);
            } else {
                found.insert(path.strip_prefix(base).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    let mut found = BTreeSet::new();
    below(folder, folder, &mut found);
    found
}

fn manual(program: &str) -> tempfile::TempDir {
    let share = tempfile::tempdir().unwrap();
    text(Command::new(binary(program)).arg("manual").arg(share.path()));
    share
}

#[test]
fn every_subcommand_has_a_page_and_is_completed_in_every_shell() {
    for (program, section, subcommands) in PROGRAMS {
        let share = manual(program);
        let read = |file: &str| fs::read_to_string(share.path().join(file)).unwrap();
        let page = read(&format!("man/man{section}/{program}.{section}"));
        let shells = [
            read(&format!("bash-completion/completions/{program}")),
            read(&format!("zsh/vendor-completions/_{program}")),
            read(&format!("fish/vendor_completions.d/{program}.fish")),
        ];
        for subcommand in *subcommands {
            // In roff, a hyphen that is meant is `\-`.
            let name = format!("{}\\-{subcommand}({section})", program.replace('-', "\\-"));
            assert!(page.contains(&name), "{program} {subcommand}: {page}");
            let own = read(&format!("man/man{section}/{program}-{subcommand}.{section}"));
            assert!(own.contains(".SH SYNOPSIS") && own.contains(".SH OPTIONS"), "{own}");
            for shell in &shells {
                assert!(shell.contains(subcommand), "{program} {subcommand}: {shell}");
            }
        }
        let nested = |page: &String| {
            subcommands.iter().any(|name| page.contains(&format!("/{program}-{name}-")))
        };
        let mut pages = files(&share.path().join("man"));
        pages.retain(|page| !nested(page));
        assert_eq!(pages.len(), subcommands.len() + 1, "{pages:?}");
    }
}

#[test]
fn the_listed_subcommands_are_all_that_help_shows() {
    for (program, _, subcommands) in PROGRAMS {
        let help = text(Command::new(binary(program)).arg("--help"));
        let commands = help.split_once("Commands:\n").unwrap().1.split("\n\n").next().unwrap();
        let names = commands.lines().filter_map(|line| {
            let name = line.strip_prefix("  ")?;
            name.split(' ').next().filter(|name| !name.is_empty() && *name != "help")
        });
        assert_eq!(names.collect::<Vec<_>>(), *subcommands, "{program}");
    }
}

#[test]
fn bash_reads_the_completions() {
    for (program, ..) in PROGRAMS {
        let share = manual(program);
        let file = share.path().join("bash-completion/completions").join(program);
        text(Command::new("bash").arg("-n").arg(file));
    }
}

/// What the agent's package holds, beside its manual.
const AGENT_FILES: &[&str] = &[
    "DEBIAN/conffiles",
    "DEBIAN/control",
    "DEBIAN/md5sums",
    "DEBIAN/postinst",
    "DEBIAN/postrm",
    "DEBIAN/preinst",
    "DEBIAN/prerm",
    "etc/espalier/agent.toml",
    "lib/systemd/system/espalier-agent.service",
    "lib/udev/rules.d/60-espalier-powercap.rules",
    "usr/bin/espalier-agent",
    "usr/lib/espalier/espalier-worker",
    "usr/lib/sysusers.d/espalier.conf",
    "usr/lib/tmpfiles.d/espalier.conf",
    "usr/share/bash-completion/completions/espalier-agent",
    "usr/share/doc/espalier-agent/agent.md.gz",
    "usr/share/doc/espalier-agent/bundle.md.gz",
    "usr/share/doc/espalier-agent/copyright",
    "usr/share/doc/espalier-agent/examples/telegraf.conf",
    "usr/share/fish/vendor_completions.d/espalier-agent.fish",
    "usr/share/man/man8/espalier-agent-bench.8.gz",
    "usr/share/man/man8/espalier-agent-check.8.gz",
    "usr/share/man/man8/espalier-agent-journal.8.gz",
    "usr/share/man/man8/espalier-agent-models.8.gz",
    "usr/share/man/man8/espalier-agent-run.8.gz",
    "usr/share/man/man8/espalier-agent-status.8.gz",
    "usr/share/man/man8/espalier-agent.8.gz",
    "usr/share/zsh/vendor-completions/_espalier-agent",
];

#[test]
fn the_agent_s_package_is_what_dpkg_and_the_unit_expect() {
    let folder = tempfile::tempdir().unwrap();
    let package = dist("espalier-agent", "0.1.0", folder.path());
    let tree = folder.path().join("tree");
    unpack(&package, &tree);
    assert_eq!(files(&tree), AGENT_FILES.iter().map(|&file| file.to_owned()).collect());

    assert_eq!(field(&package, "Version"), "0.1.0");
    assert_eq!(field(&package, "Architecture"), packages::architecture());
    let depends = field(&package, "Depends");
    assert!(depends.contains("libc6 (>= 2.") && depends.contains("systemd (>= 247)"), "{depends}");
    let conffiles = fs::read_to_string(tree.join("DEBIAN/conffiles")).unwrap();
    assert_eq!(conffiles, "/etc/espalier/agent.toml\n");

    // The unit starts what is installed where it is installed.
    let unit = tree.join("lib/systemd/system/espalier-agent.service");
    assert_eq!(
        fs::read_to_string(unit).unwrap(),
        fs::read_to_string(root().join("systemd/espalier-agent.service")).unwrap()
    );
    let sums = Command::new("md5sum")
        .args(["--check", "--strict", "--quiet", "DEBIAN/md5sums"])
        .current_dir(&tree)
        .status()
        .unwrap();
    assert!(sums.success());
    for script in ["preinst", "postinst", "prerm", "postrm"] {
        text(Command::new("sh").arg("-n").arg(tree.join("DEBIAN").join(script)));
    }
    linked_as_it_says(&tree.join("usr/bin/espalier-agent"), &depends);
    linked_as_it_says(&tree.join("usr/lib/espalier/espalier-worker"), &depends);
}

/// Every library that the program is linked to is of a package that it depends on.
fn linked_as_it_says(program: &Path, depends: &str) {
    let listed = text(Command::new("readelf").arg("--dynamic").arg("--wide").arg(program));
    let needed = listed.lines().filter(|line| line.contains("(NEEDED)"));
    for line in needed {
        let library = line.split(['[', ']']).nth(1).unwrap();
        let package = match library {
            "libgcc_s.so.1" => "libgcc-s1",
            "libc.so.6" | "libm.so.6" => "libc6",
            name if name.starts_with("ld-linux") => "libc6",
            name => panic!("the program is linked to {name}: which package holds it?"),
        };
        assert!(depends.contains(package), "{library}: {depends}");
    }
}

#[test]
fn the_packaged_configuration_lacks_the_device_s_name_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(root().join("packaging/agent.toml")).unwrap();
    let check = |text: &str| {
        let file = folder.path().join("agent.toml");
        fs::write(&file, text).unwrap();
        let mut command = Command::new(binary("espalier-agent"));
        command.args(["check", "--json", "--config"]).arg(&file).output().unwrap()
    };
    let bare = check(&text);
    assert_eq!(bare.status.code(), Some(64));
    let told: serde_json::Value = serde_json::from_slice(&bare.stdout).unwrap();
    let problems = told["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 1, "{told}");
    assert_eq!(problems[0]["key"], "device.id");
    // Every line that is commented out is a key that exists, with a value that is taken.
    let uncommented: String = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let full = check(&uncommented);
    assert!(full.status.success(), "{}", String::from_utf8_lossy(&full.stdout));
}

#[test]
fn the_host_s_package_holds_both_programs_and_their_manuals() {
    let folder = tempfile::tempdir().unwrap();
    let package = dist("espalier", "0.1.0", folder.path());
    let contents = text(Command::new("dpkg-deb").arg("--contents").arg(&package));
    for file in [
        "./usr/bin/espalier\n",
        "./usr/bin/edge-sim\n",
        "./usr/share/man/man1/espalier-compress.1.gz\n",
        "./usr/share/man/man1/edge-sim.1.gz\n",
        "./usr/share/doc/espalier/README.md.gz\n",
    ] {
        assert!(contents.contains(file), "{file} in {contents}");
    }
    assert_eq!(field(&package, "Recommends"), "espalier-agent");
}

#[test]
fn the_same_programs_make_the_same_package() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let package = |folder: &Path| fs::read(dist("espalier-agent", "0.1.0", folder)).unwrap();
    assert!(package(one.path()) == package(two.path()));
}

#[test]
fn programs_that_were_not_built_are_named() {
    let (empty, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let output = packages::dist_command(empty.path(), "espalier-agent", "0.1.0", out.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    let missing: PathBuf = empty.path().join("espalier-agent");
    assert!(told.contains(missing.to_str().unwrap()), "{told}");
    assert!(provided("ESPALIER_BIN").join("espalier-agent").is_file());
}
