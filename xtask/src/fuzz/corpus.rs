//! The inputs of a fuzzer: those that are committed, and those that it grew on this machine.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::paths;

/// What the committed inputs of one target may take together.
const COMMITTED_BYTES: u64 = 32 << 10;
/// What the grown ones may take before they are thinned out.
const GROWN_BYTES: u64 = 8 << 20;

/// Where the inputs of one target lie.
pub(super) struct Folders {
    /// In the repository: real messages, and what reaches more than they do.
    pub(super) corpus: PathBuf,
    /// In the repository: what was once a finding.
    pub(super) regressions: PathBuf,
    /// In the kept target folder: what reached something new on this machine.
    pub(super) grown: PathBuf,
    /// Where a finding is put.
    pub(super) findings: PathBuf,
}

impl Folders {
    /// Those of a target, made where they are missing.
    pub(super) fn of(target: &str) -> Result<Self> {
        let (root, kept) = (paths::root().join("fuzz"), paths::target()?.join("fuzz"));
        let folders = Self {
            corpus: root.join("corpus").join(target),
            regressions: root.join("regressions").join(target),
            grown: kept.join("corpus").join(target),
            findings: kept.join("findings").join(target),
        };
        for folder in [&folders.corpus, &folders.grown, &folders.findings] {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
        Ok(folders)
    }

    /// The committed folders that there are.
    pub(super) fn given(&self) -> Vec<PathBuf> {
        let both = [&self.corpus, &self.regressions];
        both.into_iter().filter(|folder| folder.is_dir()).cloned().collect()
    }

    /// Thins out the grown inputs where they have become too many.
    pub(super) fn thin_out(&self, merge: impl Fn((&Path, &[PathBuf])) -> Result<()>) -> Result<()> {
        let bytes: u64 = by_age(&self.grown)?.iter().map(|(bytes, _)| bytes).sum();
        if bytes <= GROWN_BYTES {
            return Ok(());
        }
        let least = self.merged(merge, &[])?;
        replace(&self.grown, &least)
    }

    /// Commits a few inputs that reach what all reach beyond the real messages, as far as there is room: `merge` writes
    /// those first that reach most.
    pub(super) fn keep(&self, merge: impl Fn((&Path, &[PathBuf])) -> Result<()>) -> Result<()> {
        let (grown, named): (Vec<_>, Vec<_>) =
            by_age(&self.corpus)?.into_iter().partition(|(_, file)| is_grown(file));
        let least = self.merged(merge, &named)?;
        for (_, file) in grown {
            fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
        let taken: u64 = named.iter().map(|(bytes, _)| bytes).sum();
        let mut room = COMMITTED_BYTES.saturating_sub(taken);
        for (bytes, file) in by_age(&least)?.into_iter().filter(|(_, file)| is_grown(file)) {
            let Some(left) = room.checked_sub(bytes) else { break };
            room = left;
            copy_into(&self.corpus, &file)?;
        }
        fs::remove_dir_all(&least).with_context(|| format!("cannot remove {}", least.display()))
    }

    /// A folder with `first`, and the least inputs that reach what all others reach beyond them.
    fn merged(
        &self,
        merge: impl Fn((&Path, &[PathBuf])) -> Result<()>,
        first: &[(u64, PathBuf)],
    ) -> Result<PathBuf> {
        let least = self.grown.with_extension("least");
        fs::remove_dir_all(&least).ok();
        fs::create_dir_all(&least).with_context(|| format!("cannot create {}", least.display()))?;
        first.iter().try_for_each(|(_, file)| copy_into(&least, file))?;
        let mut from = self.given();
        from.push(self.grown.clone());
        merge((&least, &from))?;
        Ok(least)
    }
}

fn copy_into(folder: &Path, file: &Path) -> Result<()> {
    let name = file.file_name().unwrap_or_default();
    let copied = fs::copy(file, folder.join(name));
    copied.map(drop).with_context(|| format!("cannot copy {}", file.display()))
}

fn replace(folder: &Path, with: &Path) -> Result<()> {
    fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    fs::rename(with, folder).with_context(|| format!("cannot write {}", folder.display()))
}

/// Whether a fuzzer named the file: by the 40 digits of its digest.
fn is_grown(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The files of a folder with their sizes, the oldest first.
fn by_age(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let list = || -> std::io::Result<Vec<_>> {
        let of = |entry: std::fs::DirEntry| {
            let metadata = entry.metadata()?;
            Ok((metadata.modified()?, metadata.len(), entry.path()))
        };
        fs::read_dir(folder)?.map(|entry| entry.and_then(of)).collect()
    };
    let mut files = list().with_context(|| format!("cannot list {}", folder.display()))?;
    files.sort();
    Ok(files.into_iter().map(|(_, bytes, file)| (bytes, file)).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn folders(name: &str) -> Folders {
        let root = std::env::temp_dir().join(format!("espalier-{name}-{}", std::process::id()));
        fs::remove_dir_all(&root).ok();
        let at = |part: &str| root.join(part);
        for part in ["corpus", "grown", "findings"] {
            fs::create_dir_all(at(part)).unwrap();
        }
        Folders {
            corpus: at("corpus"),
            regressions: at("regressions"),
            grown: at("grown"),
            findings: at("findings"),
        }
    }

    #[test]
    fn real_messages_stay_and_what_of_the_grown_has_room_is_kept_beside_them() {
        let f = folders("keep");
        let digit = |d: char| d.to_string().repeat(40);
        let full = vec![0; usize::try_from(COMMITTED_BYTES).unwrap()];
        fs::write(f.corpus.join("birth.json"), [0; 1000]).unwrap();
        fs::write(f.corpus.join(digit('a')), [0; 10]).unwrap();
        let merge = |(to, from): (&Path, &[PathBuf])| {
            assert_eq!(from, [f.corpus.clone(), f.grown.clone()]);
            assert!(to.join("birth.json").is_file(), "what it reaches need not be reached again");
            fs::write(to.join(digit('b')), [0; 5]).unwrap();
            fs::write(to.join(digit('c')), &full).unwrap();
            Ok(())
        };
        f.keep(merge).unwrap();
        let kept: Vec<_> = by_age(&f.corpus).unwrap().into_iter().map(|(size, _)| size).collect();
        assert_eq!(kept, [1000, 5]);
        fs::remove_dir_all(f.corpus.parent().unwrap()).unwrap();
    }

    #[test]
    fn grown_inputs_are_thinned_out_only_when_they_are_too_many() {
        let f = folders("thin");
        fs::write(f.grown.join("one"), "1").unwrap();
        f.thin_out(|_| panic!("there is room")).unwrap();
        fs::write(f.grown.join("two"), vec![0; usize::try_from(GROWN_BYTES).unwrap()]).unwrap();
        f.thin_out(|(to, _)| Ok(fs::write(to.join("least"), "1")?)).unwrap();
        let left = by_age(&f.grown).unwrap();
        assert_eq!(left.len(), 1);
        assert!(left[0].1.ends_with("least"));
        fs::remove_dir_all(f.corpus.parent().unwrap()).unwrap();
    }
}
