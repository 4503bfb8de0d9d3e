//! What a device remembers between updates, in one file that is replaced as a whole.
//!
//! `tough` keeps its own files in a folder, and replaces them by removing and writing them anew: a crash between the
//! two forgets what had been seen. So it works in a folder of its own that is made for one update, and what it accepted
//! is taken over from there.

use std::fs;
use std::path::{Path, PathBuf};

use bundle::Digest;
use serde::{Deserialize, Serialize};

use crate::time::Known;
use crate::{Result, TrustError, file};

const FILE: &str = "trusted.json";
const WORK: &str = "work";
/// Above the limits of the files that it holds.
const MAX_BYTES: u64 = 64 << 20;

/// What is remembered. Metadata is kept as text, signatures included.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Remembered {
    /// The digest of the root that the device was given, from which `root` descends.
    pub(crate) anchor: Option<Digest>,
    pub(crate) root: Option<String>,
    pub(crate) timestamp: Option<String>,
    pub(crate) snapshot: Option<String>,
    #[serde(flatten)]
    pub(crate) known: Known,
}

/// The file: what is remembered as text, and that text's digest, for a bit that flips inside of metadata would
/// otherwise be taken for a trusted root that does not verify.
#[derive(Serialize, Deserialize)]
struct Sealed {
    sha256: Digest,
    text: String,
}

impl Sealed {
    fn of(remembered: &Remembered) -> serde_json::Result<Self> {
        let text = serde_json::to_string(remembered)?;
        Ok(Self { sha256: Digest::of(text.as_bytes()), text })
    }

    fn open(bytes: &[u8]) -> std::result::Result<Remembered, String> {
        let sealed: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if Digest::of(sealed.text.as_bytes()) != sealed.sha256 {
            return Err("its text has another digest".to_owned());
        }
        serde_json::from_str(&sealed.text).map_err(|e| e.to_string())
    }
}

/// The folder that it lies in.
#[derive(Clone, Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// What is remembered, and a warning where it was damaged and had to be set aside.
    pub(crate) fn recall(&self) -> Result<(Remembered, Option<String>)> {
        fs::create_dir_all(&self.0).map_err(TrustError::file("create", &self.0))?;
        let path = self.0.join(FILE);
        let Some(bytes) = file::read_if_there(&path, MAX_BYTES)? else {
            return Ok((Remembered::default(), None));
        };
        match Sealed::open(&bytes) {
            Ok(remembered) => Ok((remembered, None)),
            Err(error) => {
                let aside = path.with_extension("damaged");
                fs::rename(&path, &aside).map_err(TrustError::file("set aside", &path))?;
                let warning = format!(
                    "{} is damaged ({error}) and set aside: what older metadata the device had seen is forgotten, and it begins \
                     at the root that it was given",
                    path.display()
                );
                Ok((Remembered::default(), Some(warning)))
            }
        }
    }

    pub(crate) fn remember(&self, remembered: &Remembered) -> Result<()> {
        let path = self.0.join(FILE);
        let text = Sealed::of(remembered)
            .and_then(|sealed| serde_json::to_vec(&sealed))
            .map_err(|e| TrustError::file("write", &path)(std::io::Error::other(e)))?;
        file::replace(&path, &text)
    }

    /// An empty folder for `tough`, with what it holds new metadata against.
    pub(crate) fn work(&self, remembered: &Remembered) -> Result<Work> {
        let path = self.0.join(WORK);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(TrustError::file("remove", &path)(error));
            }
            _ => {}
        }
        fs::create_dir(&path).map_err(TrustError::file("create", &path))?;
        let work = Work(path);
        for (name, text) in
            [("timestamp.json", &remembered.timestamp), ("snapshot.json", &remembered.snapshot)]
        {
            if let Some(text) = text {
                let path = work.0.join(name);
                fs::write(&path, text).map_err(TrustError::file("write", &path))?;
            }
        }
        Ok(work)
    }
}

/// The folder that `tough` works in. It goes when this does; one that a crash leaves goes with the next update.
#[derive(Debug)]
pub(crate) struct Work(PathBuf);

impl Work {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// A file as `tough` has left it.
    pub(crate) fn text(&self, name: &str) -> Result<Option<String>> {
        let path = self.0.join(name);
        let Some(bytes) = file::read_if_there(&path, MAX_BYTES)? else {
            return Ok(None);
        };
        let text = String::from_utf8(bytes);
        text.map(Some).map_err(|e| TrustError::file("read", &path)(std::io::Error::other(e)))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
