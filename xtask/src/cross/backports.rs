//! The source of Rust's standard library, out of Debian's backports.
//!
//! It is fetched with an apt that has lists of its own: the machine's stay as they are, and nothing is installed. Its
//! package is checked against the suite's signed index, as apt does with every package.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{paths, process};

/// Where newer compilers are than in a release.
const SUITE: &str = "trixie-backports";
const PACKAGE: &str = "rust-src";
/// Whose signatures count.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// What there is of the source.
pub(super) enum Source {
    /// The folder `library`.
    At(PathBuf),
    /// Why it is to be had no more, or not on this machine.
    Gone(String),
}

/// The source of the standard library of that release of the compiler, fetched if need be.
pub(super) fn rust_source(release: &str) -> Result<Source> {
    let folder = paths::target()?.join("sysroots").join(format!("source-{release}"));
    let library = folder.join("library");
    if library.is_dir() {
        return Ok(Source::At(library));
    }
    let apt = Apt::new(&paths::target()?.join("sysroots/apt"))?;
    let Some(apt) = apt else {
        return Ok(Source::Gone(format!(
            "apt knows no archive of Debian here, which has {PACKAGE} for Rust {release}"
        )));
    };
    let listed = apt.versions()?;
    let Some(version) = version_of(release, &listed) else {
        return Ok(Source::Gone(gone(release, &listed)));
    };
    eprintln!("fetching {PACKAGE} {version}");
    let partial = folder.with_extension("partial");
    fs::remove_dir_all(&partial).ok();
    fs::create_dir_all(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
    let package = apt.download(&version, &partial)?;
    process::output(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&partial))?;
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let unpacked = partial.join(format!("usr/src/rustc-{release}/library"));
    fs::rename(&unpacked, &library)
        .with_context(|| format!("{PACKAGE} {version} holds no {}", unpacked.display()))?;
    fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))?;
    Ok(Source::At(library))
}

fn gone(release: &str, listed: &str) -> String {
    let mut versions: Vec<&str> = listed.lines().filter_map(version_in).collect();
    versions.sort_unstable();
    versions.dedup();
    let there = if versions.is_empty() { "none".to_owned() } else { versions.join(", ") };
    format!(
        "Debian's {SUITE} has no {PACKAGE} for this toolchain's Rust {release} any more (it has: {there}), and Rust's \
         standard library for other machines can be built from no other version"
    )
}

/// The version of the package that is that release, in the lines of `apt-cache madison`.
fn version_of(release: &str, listed: &str) -> Option<String> {
    let is_it = |version: &&str| {
        let rest = version.strip_prefix(release);
        rest.is_some_and(|rest| rest.starts_with(['+', '-', '~']) || rest.is_empty())
    };
    listed.lines().filter_map(version_in).find(is_it).map(str::to_owned)
}

fn version_in(line: &str) -> Option<&str> {
    line.split('|').nth(1).map(str::trim)
}

/// An apt with one suite and lists of its own.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    /// None where the machine's apt knows no archive of Debian.
    fn new(folder: &Path) -> Result<Option<Self>> {
        let asked = Command::new("apt-get")
            .args(["indextargets", "--format", "$(SITE)"])
            .args(["Created-By: Packages", "Origin: Debian", "Component: main"])
            .output();
        let sites = asked.map(|it| String::from_utf8_lossy(&it.stdout).into_owned());
        let sites = sites.unwrap_or_default();
        let Some(site) =
            sites.lines().find(|site| !site.trim_end_matches('/').ends_with("-security"))
        else {
            return Ok(None);
        };
        if !Path::new(KEYRING).is_file() {
            return Ok(None);
        }
        for part in ["lists/partial", "cache/archives/partial"] {
            let part = folder.join(part);
            fs::create_dir_all(&part)
                .with_context(|| format!("cannot create {}", part.display()))?;
        }
        let sources = folder.join("sources.list");
        fs::write(&sources, format!("deb [signed-by={KEYRING}] {site} {SUITE} main\n"))
            .with_context(|| format!("cannot write {}", sources.display()))?;
        let set = |key: &str, value: &Path| format!("-o{key}={}", value.display());
        Ok(Some(Self {
            options: vec![
                set("Dir::Etc::SourceList", &sources),
                set("Dir::Etc::SourceParts", Path::new("/dev/null")),
                set("Dir::State::Lists", &folder.join("lists")),
                set("Dir::Cache", &folder.join("cache")),
                // Its other user could not write into our folders.
                "-oAPT::Sandbox::User=root".to_owned(),
            ],
        }))
    }

    fn versions(&self) -> Result<String> {
        process::output(Command::new("apt-get").args(&self.options).arg("update"))
            .with_context(|| format!("cannot read the list of Debian's {SUITE}"))?;
        process::output(Command::new("apt-cache").args(&self.options).args(["madison", PACKAGE]))
    }

    fn download(&self, version: &str, to: &Path) -> Result<PathBuf> {
        let mut get = Command::new("apt-get");
        get.args(&self.options).args(["download", &format!("{PACKAGE}={version}")]);
        process::output(get.current_dir(to))
            .with_context(|| format!("apt could not fetch {PACKAGE} {version}"))?;
        let found = fs::read_dir(to)?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"));
        let found = found.with_context(|| format!("apt left no package in {}", to.display()))?;
        ensure!(found.is_file(), "{} is no file", found.display());
        Ok(found)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LISTED: &str = "\
  rust-src | 1.97.1+dfsg1-1~bpo13+1 | site trixie-backports/main amd64 Packages
  rust-src | 1.95.0+dfsg1-2~bpo13+1 | site trixie-backports/main amd64 Packages
  rust-src | 1.9.0+dfsg1-1 | site trixie-backports/main amd64 Packages
";

    #[test]
    fn the_source_is_of_the_compiler_s_own_version_and_no_other() {
        assert_eq!(version_of("1.95.0", LISTED).unwrap(), "1.95.0+dfsg1-2~bpo13+1");
        assert_eq!(version_of("1.9.0", LISTED).unwrap(), "1.9.0+dfsg1-1");
        for other in ["1.97.0", "1.9", "1.95", "2.0.0"] {
            assert_eq!(version_of(other, LISTED), None, "{other}");
        }
    }

    #[test]
    fn a_version_that_went_is_told_with_those_that_are_there() {
        let text = gone("1.92.0", LISTED);
        assert!(text.contains("1.92.0 any more") && text.contains("1.97.1+dfsg1"), "{text}");
        assert!(gone("1.92.0", "").contains("it has: none"));
    }
}
