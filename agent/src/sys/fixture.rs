//! A tree of files that stands for a machine.

use std::fs;
use std::path::PathBuf;

use super::Roots;

#[derive(Debug)]
pub(crate) struct Machine {
    folder: tempfile::TempDir,
}

#[allow(clippy::unwrap_used)]
impl Machine {
    pub(crate) fn empty() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn with(files: &[(&str, &str)]) -> Self {
        let machine = Self::empty();
        for (path, text) in files {
            machine.write(path, text);
        }
        machine
    }

    pub(crate) fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    pub(crate) fn roots(&self) -> Roots {
        Roots::under(self.folder.path())
    }
}
