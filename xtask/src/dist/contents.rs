//! What each package holds: a table, and the files that it names.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::deb::{self, File, Package};
use super::elf;
use crate::{paths, process};

/// A Debian package of ours.
#[derive(Debug)]
pub(super) struct Recipe {
    pub(super) name: &'static str,
    /// Programs, which are also the names of the crates' binaries.
    pub(super) programs: &'static [&'static str],
    /// Programs that only the others start; they have no manual.
    helpers: &'static [(&'static str, &'static str)],
    summary: &'static str,
    description: &'static str,
    section: &'static str,
    /// Other packages it needs, beside those of its programs.
    depends: &'static [&'static str],
    recommends: &'static [&'static str],
    /// File of this repository, and where it goes.
    files: &'static [(&'static str, &'static str)],
    /// Compressed documentation, into the package's folder.
    docs: &'static [&'static str],
    conffiles: &'static [&'static str],
    /// Maintainer scripts, in `packaging/debian/NAME.SCRIPT`.
    scripts: &'static [&'static str],
}

pub(super) const RECIPES: &[Recipe] = &[
    Recipe {
        name: "espalier-agent",
        programs: &["espalier-agent"],
        helpers: &[("espalier-worker", "/usr/lib/espalier/espalier-worker")],
        summary: "serves ONNX models on a device inside its budgets",
        description: "A daemon that serves models over the Open Inference Protocol, measures what they\n\
                      cost, asks for smaller ones when a budget breaks, and installs them safely.",
        section: "net",
        // The unit's newest directive is ProtectProc; the user and the folders come from the tools.
        depends: &["systemd (>= 247)"],
        recommends: &[],
        files: &[
            ("systemd/espalier-agent.service", "/lib/systemd/system/espalier-agent.service"),
            ("systemd/espalier.sysusers", "/usr/lib/sysusers.d/espalier.conf"),
            ("systemd/espalier.tmpfiles", "/usr/lib/tmpfiles.d/espalier.conf"),
            ("systemd/espalier-powercap.rules", "/lib/udev/rules.d/60-espalier-powercap.rules"),
            ("packaging/agent.toml", "/etc/espalier/agent.toml"),
            (
                "packaging/telegraf/espalier.conf",
                "/usr/share/doc/espalier-agent/examples/telegraf.conf",
            ),
        ],
        docs: &["docs/agent.md", "docs/bundle.md"],
        conffiles: &["/etc/espalier/agent.toml"],
        scripts: &["preinst", "postinst", "prerm", "postrm"],
    },
    Recipe {
        name: "espalier",
        programs: &["espalier", "edge-sim"],
        helpers: &[],
        summary: "compresses ONNX models towards a device's budgets",
        description: "The compressor with its service, which answers devices that ask for smaller models,\n\
                      and edge-sim, which emulates boards.",
        section: "science",
        depends: &[],
        // What edge-sim runs on its boards.
        recommends: &["espalier-agent"],
        files: &[],
        docs: &["README.md", "docs/edge-sim.md", "docs/serve.md", "docs/pruning.md"],
        conffiles: &[],
        scripts: &[],
    },
];

/// Where the parts come from.
pub(super) struct Parts<'a> {
    /// The programs to pack.
    pub(super) programs: &'a Path,
    /// The same programs for this machine, which write their manual.
    pub(super) own: &'a Path,
    pub(super) version: &'a str,
    pub(super) maintainer: &'a str,
}

impl Recipe {
    /// Reads all files and fills in the fields; returns the package and its architecture.
    pub(super) fn gather(&self, parts: &Parts<'_>) -> Result<(Package, &'static str)> {
        let mut package = Package::default();
        let mut depends = Vec::new();
        let mut architectures = Vec::new();
        for (program, to) in self.placed() {
            let path = parts.programs.join(program);
            let bytes = read(&path)?;
            let needs = elf::needs(&bytes)
                .with_context(|| format!("{} cannot be packaged", path.display()))?;
            architectures.push(needs.architecture);
            depends.extend(needs.packages);
            package.files.insert(to, File::program(bytes));
        }
        for program in self.programs {
            package.files.extend(manual(&parts.own.join(program))?);
        }
        architectures.dedup();
        let &[architecture] = architectures.as_slice() else {
            anyhow::bail!("programs of several architectures: {}", architectures.join(", "));
        };
        depends.extend(self.depends.iter().map(|&name| name.to_owned()));
        depends.sort();
        depends.dedup();
        self.add_files(&mut package)?;
        package.fields = self.fields(parts, architecture, &depends);
        Ok((package, architecture))
    }

    /// The crates whose programs are packed.
    pub(super) fn built(&self) -> impl Iterator<Item = &'static str> {
        let helpers = self.helpers.iter().map(|(program, _)| *program);
        self.programs.iter().copied().chain(helpers)
    }

    /// Each program and its path on the device.
    fn placed(&self) -> impl Iterator<Item = (&'static str, String)> {
        let own = self.programs.iter().map(|program| (*program, format!("/usr/bin/{program}")));
        own.chain(self.helpers.iter().map(|(program, to)| (*program, (*to).to_owned())))
    }

    fn add_files(&self, package: &mut Package) -> Result<()> {
        let root = paths::root();
        let doc = format!("/usr/share/doc/{}", self.name);
        for (from, to) in self.files {
            package.files.insert((*to).to_owned(), File::data(read(&root.join(from))?));
        }
        for from in self.docs {
            let name = Path::new(from).file_name().unwrap_or_default().to_string_lossy();
            let bytes = deb::gzip(&read(&root.join(from))?)?;
            package.files.insert(format!("{doc}/{name}.gz"), File::data(bytes));
        }
        let copyright = read(&root.join("packaging/debian/copyright"))?;
        package.files.insert(format!("{doc}/copyright"), File::data(copyright));
        package.conffiles = self.conffiles.iter().map(|&path| path.to_owned()).collect();
        for script in self.scripts {
            let path = root.join("packaging/debian").join(format!("{}.{script}", self.name));
            let text = String::from_utf8(read(&path)?)
                .with_context(|| format!("{} is not text", path.display()))?;
            package.scripts.insert(script, text);
        }
        Ok(())
    }

    fn fields(
        &self,
        parts: &Parts<'_>,
        architecture: &str,
        depends: &[String],
    ) -> Vec<(&'static str, String)> {
        let folded = self.description.lines().map(|line| format!("\n {line}")).collect::<String>();
        let mut fields = vec![
            ("Package", self.name.to_owned()),
            ("Version", parts.version.to_owned()),
            ("Architecture", architecture.to_owned()),
            ("Maintainer", parts.maintainer.to_owned()),
            ("Section", self.section.to_owned()),
            ("Priority", "optional".to_owned()),
            ("Depends", depends.join(", ")),
        ];
        if !self.recommends.is_empty() {
            fields.push(("Recommends", self.recommends.join(", ")));
        }
        fields.push(("Description", self.summary.to_owned() + &folded));
        fields
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The pages and completions that a program writes of itself, by path; pages compressed.
fn manual(program: &Path) -> Result<BTreeMap<String, File>> {
    ensure!(
        program.is_file(),
        "{} is missing, which writes the manual that is packaged: build it for this machine with \
         `cargo build --release --workspace --bins`",
        program.display()
    );
    let folder = paths::target()?.join(format!("manual-{}", std::process::id()));
    fs::remove_dir_all(&folder).ok();
    process::output(Command::new(program).arg("manual").arg(&folder))?;
    let mut files = BTreeMap::new();
    collect(&folder, "/usr/share", &mut files)?;
    fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    Ok(files)
}

fn collect(folder: &Path, to: &str, files: &mut BTreeMap<String, File>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let target = format!("{to}/{name}");
        if path.is_dir() {
            collect(&path, &target, files)?;
        } else if target.starts_with("/usr/share/man/") {
            files.insert(target + ".gz", File::data(deb::gzip(&read(&path)?)?));
        } else {
            files.insert(target, File::data(read(&path)?));
        }
    }
    Ok(())
}
