//! A Debian package as bytes: an `ar` of two compressed tars (deb(5)).
//!
//! The same input gives the same bytes: entries come in order of path, belong to root, and carry the one
//! time that is given. Nothing is read from the file system here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write;

use anyhow::{Context, Result, bail, ensure};
use flate2::{Compression, GzBuilder};
use md5::{Digest, Md5};

/// The largest member of an `ar`: its size is ten decimal digits.
const MAX_MEMBER_BYTES: usize = 9_999_999_999;

/// A file of a package.
#[derive(Debug, Clone)]
pub(super) struct File {
    pub(super) bytes: Vec<u8>,
    pub(super) mode: Mode,
}

/// What may be done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Everybody reads it.
    Data,
    /// Everybody runs it.
    Program,
}

/// What is packed.
#[derive(Debug, Default)]
pub(super) struct Package {
    /// Fields of the control file in their order, without `Installed-Size`.
    pub(super) fields: Vec<(&'static str, String)>,
    /// `postinst` and the like, by name.
    pub(super) scripts: BTreeMap<&'static str, String>,
    /// Files by absolute path.
    pub(super) files: BTreeMap<String, File>,
    /// Those of the files that an administrator may change, and which an upgrade leaves alone.
    pub(super) conffiles: BTreeSet<String>,
}

impl File {
    pub(super) fn data(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), mode: Mode::Data }
    }

    pub(super) fn program(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), mode: Mode::Program }
    }

    fn bits(&self) -> u32 {
        match self.mode {
            Mode::Data => 0o644,
            Mode::Program => 0o755,
        }
    }
}

impl Package {
    /// The package's bytes, every time stamp in it being `epoch` (seconds since 1970).
    pub(super) fn pack(&self, epoch: u64) -> Result<Vec<u8>> {
        self.check()?;
        let control = self.control_files()?;
        let mut archive = b"!<arch>\n".to_vec();
        member(&mut archive, "debian-binary", b"2.0\n", epoch)?;
        member(&mut archive, "control.tar.gz", &tar(&control, epoch)?, epoch)?;
        member(&mut archive, "data.tar.gz", &tar(&self.files, epoch)?, epoch)?;
        Ok(archive)
    }

    fn check(&self) -> Result<()> {
        for wanted in ["Package", "Version", "Architecture", "Maintainer", "Description"] {
            ensure!(self.fields.iter().any(|(name, _)| *name == wanted), "no field {wanted}");
        }
        for path in self.files.keys() {
            ensure!(path.starts_with('/') && !path.contains("/../"), "{path} is not absolute");
        }
        for path in &self.conffiles {
            ensure!(self.files.contains_key(path), "{path} is a conffile but not in the package");
        }
        Ok(())
    }

    fn control_files(&self) -> Result<BTreeMap<String, File>> {
        let mut files = BTreeMap::new();
        files.insert("/control".to_owned(), File::data(self.control()?));
        files.insert("/md5sums".to_owned(), File::data(self.sums()));
        if !self.conffiles.is_empty() {
            let list: String = self.conffiles.iter().map(|path| format!("{path}\n")).collect();
            files.insert("/conffiles".to_owned(), File::data(list));
        }
        for (name, script) in &self.scripts {
            files.insert(format!("/{name}"), File::program(script.as_bytes()));
        }
        Ok(files)
    }

    fn control(&self) -> Result<String> {
        let mut text = String::new();
        for (name, value) in &self.fields {
            if *name == "Description" {
                // In KiB, each file rounded up, as dpkg-gencontrol counts.
                let kib: usize =
                    self.files.values().map(|file| file.bytes.len().div_ceil(1024)).sum();
                writeln!(text, "Installed-Size: {kib}")?;
            }
            let folded = value.lines().skip(1).all(|line| line.starts_with(' ') && line.len() > 1);
            ensure!(!value.is_empty() && folded, "the field {name} is not one field: {value:?}");
            writeln!(text, "{name}: {value}")?;
        }
        Ok(text)
    }

    /// What `dpkg --verify` holds files against; conffiles have sums of their own there.
    fn sums(&self) -> String {
        let mut text = String::new();
        for (path, file) in self.files.iter().filter(|(path, _)| !self.conffiles.contains(*path)) {
            let sum = Md5::digest(&file.bytes);
            let hex: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{hex}  {}", path.trim_start_matches('/'));
        }
        text
    }
}

/// Compresses as `gzip -9n` does: without a name or a time.
pub(super) fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

/// A compressed tar of the files and of the folders that lead to them.
fn tar(files: &BTreeMap<String, File>, epoch: u64) -> Result<Vec<u8>> {
    let encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::default());
    let mut builder = tar::Builder::new(encoder);
    let mut folders = BTreeSet::new();
    let mut append = |path: &str, kind, bits, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(bits);
        header.set_mtime(epoch);
        header.set_uid(0);
        header.set_gid(0);
        header.set_username("root")?;
        header.set_groupname("root")?;
        header.set_size(bytes.len() as u64);
        // `append_data` would take away the leading `./` that dpkg's own packages have.
        set_path(&mut header, &format!(".{path}"))?;
        header.set_cksum();
        builder.append(&header, bytes).with_context(|| format!("cannot pack {path}"))
    };
    append("/", tar::EntryType::Directory, 0o755, &[])?;
    for (path, file) in files {
        for (at, _) in path.match_indices('/').skip(1) {
            if folders.insert(&path[..at]) {
                append(&path[..=at], tar::EntryType::Directory, 0o755, &[])?;
            }
        }
        append(path, tar::EntryType::Regular, file.bits(), &file.bytes)?;
    }
    Ok(builder.into_inner()?.finish()?)
}

fn set_path(header: &mut tar::Header, path: &str) -> Result<()> {
    let name = &mut header.as_gnu_mut().context("a header of another kind")?.name;
    let Some(room) = name.get_mut(..path.len()) else {
        bail!("{path} is longer than the {} bytes that a header has for it", name.len());
    };
    room.copy_from_slice(path.as_bytes());
    Ok(())
}

/// Appends a member to an `ar`: a header of text in fixed columns, then the bytes, padded to an even
/// length.
fn member(archive: &mut Vec<u8>, name: &str, bytes: &[u8], epoch: u64) -> Result<()> {
    ensure!(bytes.len() <= MAX_MEMBER_BYTES, "{name} has more than {MAX_MEMBER_BYTES} bytes");
    let header =
        format!("{name:<16}{epoch:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, "100644", bytes.len());
    ensure!(header.len() == 60, "{name} or the time {epoch} is too long for its column");
    archive.extend_from_slice(header.as_bytes());
    archive.extend_from_slice(bytes);
    if !bytes.len().is_multiple_of(2) {
        archive.push(b'\n');
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::process;

    fn package() -> Package {
        let mut package = Package {
            fields: vec![
                ("Package", "thing".to_owned()),
                ("Version", "1.0".to_owned()),
                ("Architecture", "all".to_owned()),
                ("Maintainer", "Nobody <nobody@localhost>".to_owned()),
                ("Description", "a thing\n that is not needed".to_owned()),
            ],
            ..Package::default()
        };
        package.files.insert("/usr/bin/thing".to_owned(), File::program("#!/bin/sh\n"));
        package.files.insert("/usr/share/thing/data".to_owned(), File::data(vec![7; 1500]));
        package.files.insert("/etc/thing.conf".to_owned(), File::data("a = 1\n"));
        package.conffiles.insert("/etc/thing.conf".to_owned());
        package.scripts.insert("postinst", "#!/bin/sh\n".to_owned());
        package
    }

    #[test]
    fn dpkg_reads_what_was_packed() {
        let file = std::env::temp_dir().join(format!("espalier-deb-{}.deb", std::process::id()));
        std::fs::write(&file, package().pack(1_700_000_001).unwrap()).unwrap();
        let ask =
            |option| process::output(Command::new("dpkg-deb").arg(option).arg(&file)).unwrap();
        let info = ask("--info");
        assert!(info.contains("Installed-Size: 4") && info.contains("postinst"), "{info}");
        let contents = ask("--contents");
        for line in [
            "drwxr-xr-x root/root         0 2023-11-14",
            "-rwxr-xr-x root/root        10 2023-11-14",
            "./usr/bin/thing",
            "./usr/share/thing/",
        ] {
            assert!(contents.contains(line), "{contents}");
        }
        let sums = process::output(Command::new("dpkg-deb").args(["-I"]).arg(&file).arg("md5sums"));
        let sums = sums.unwrap();
        // `printf '#!/bin/sh\n' | md5sum`
        assert!(sums.contains("3e2b31c72181b87149ff995e7202c0e3  usr/bin/thing\n"), "{sums}");
        assert!(!sums.contains("thing.conf"), "{sums}");
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn the_same_package_has_the_same_bytes() {
        assert_eq!(package().pack(1).unwrap(), package().pack(1).unwrap());
        assert_ne!(package().pack(1).unwrap(), package().pack(2).unwrap());
    }

    #[test]
    fn what_dpkg_would_refuse_is_refused() {
        let wrong = |change: fn(&mut Package)| {
            let mut package = package();
            change(&mut package);
            package.pack(1).unwrap_err().to_string()
        };
        let unfolded = wrong(|package| package.fields[4].1.push_str("\nanother paragraph"));
        assert!(unfolded.contains("Description"), "{unfolded}");
        let missing = wrong(|package| drop(package.fields.remove(1)));
        assert!(missing.contains("no field Version"), "{missing}");
        let absent = wrong(|package| drop(package.files.remove("/etc/thing.conf")));
        assert!(absent.contains("/etc/thing.conf"), "{absent}");
        let long = wrong(|package| {
            package.files.insert(format!("/usr/{}", "x".repeat(100)), File::data(""));
        });
        assert!(long.contains("100 bytes"), "{long}");
    }
}
