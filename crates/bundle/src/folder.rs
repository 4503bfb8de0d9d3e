//! A bundle as a folder: writing one whole, opening one suspiciously.

use std::collections::BTreeMap;
use std::fs::{self, File, FileType, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::Result;
use crate::digest::Digest;
use crate::durable::{Staging, move_dir, write_new};
use crate::error::{BundleError, io_at, shorten};
use crate::limits::Limits;
use crate::manifest::{
    ANY, FileEntry, Lineage, MANIFEST_FILE, MODEL_FILE, Manifest, Predicted, REFERENCE_FILE,
    REPORT_FILE, SCHEMA_VERSION, SELFTEST_FILE, TensorSpec, check_file_name, check_size,
};
use crate::reference::Reference;
use crate::selftest::SelfTest;

/// A verified bundle on disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Bundle {
    /// Its folder.
    pub dir: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// Digest of its manifest, which names it.
    pub digest: Digest,
    manifest_bytes: u64,
    selftest_limit: u64,
    reference_limit: u64,
}

/// Where the content of a file comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// A file to copy.
    Path(PathBuf),
    /// The content itself.
    Bytes(Vec<u8>),
}

/// A bundle about to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    /// The model's name.
    pub name: String,
    /// The bundle's version, for people.
    pub version: String,
    /// Rises with every bundle of this model for this device.
    pub sequence: u64,
    /// `tract`, `ort` or `any`.
    pub runtime: String,
    /// The class of device, or `any`.
    pub device_class: String,
    /// The model's inputs.
    pub inputs: Vec<TensorSpec>,
    /// The model's outputs.
    pub outputs: Vec<TensorSpec>,
    /// What it should cost.
    pub predicted: Predicted,
    /// Where it comes from.
    pub lineage: Lineage,
    /// The model.
    pub model: Source,
    /// Files of external data, by the name that the model uses.
    pub external: Vec<(String, Source)>,
    /// Golden inputs and outputs.
    pub selftest: SelfTest,
    /// What inputs and outputs look like on the samples it was judged on.
    pub reference: Option<Reference>,
    /// The report for people.
    pub report_html: Option<String>,
    /// Limits to keep while writing.
    pub limits: Limits,
}

impl Draft {
    /// A draft for any runtime and device, with no self-test cases and no predictions.
    #[must_use]
    pub fn new(name: &str, version: &str, model: Source) -> Self {
        Self {
            name: name.to_owned(),
            version: version.to_owned(),
            sequence: 0,
            runtime: ANY.to_owned(),
            device_class: ANY.to_owned(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            predicted: Predicted::default(),
            lineage: Lineage::default(),
            model,
            external: Vec::new(),
            selftest: SelfTest::default(),
            reference: None,
            report_html: None,
            limits: Limits::default(),
        }
    }

    /// Writes the bundle to `dir`, which must not exist. All or nothing.
    pub fn write(self, dir: &Path) -> Result<Bundle> {
        if fs::symlink_metadata(dir).is_ok() {
            return Err(BundleError::AlreadyExists(dir.to_owned()));
        }
        let limits = self.limits.clone();
        let staging = Staging::beside(dir)?;
        self.fill(staging.dir())?;
        staging.keep_as(dir)?;
        Bundle::open(dir, &limits)
    }

    /// Writes the bundle into `store`, as a folder named by the hexadecimal digits of its digest. A
    /// bundle that is already there is verified and returned.
    pub fn write_into(self, store: &Path) -> Result<Bundle> {
        let limits = self.limits.clone();
        let staging = Staging::beside(&store.join("bundle"))?;
        let digest = self.fill(staging.dir())?;
        let dir = store.join(digest.hex());
        match staging.keep_as(&dir) {
            Ok(()) | Err(BundleError::AlreadyExists(_)) => Bundle::open(&dir, &limits),
            Err(error) => Err(error),
        }
    }

    fn fill(self, dir: &Path) -> Result<Digest> {
        let mut sources = vec![(MODEL_FILE.to_owned(), self.model)];
        sources.extend(self.external);
        sources.push((SELFTEST_FILE.to_owned(), Source::Bytes(self.selftest.to_bytes()?)));
        if let Some(reference) = self.reference {
            sources.push((REFERENCE_FILE.to_owned(), Source::Bytes(reference.to_bytes()?)));
        }
        sources.extend(
            self.report_html.map(|html| (REPORT_FILE.to_owned(), Source::Bytes(html.into_bytes()))),
        );
        let mut files = BTreeMap::new();
        for (name, source) in sources {
            check_file_name(&name)?;
            if name == MANIFEST_FILE || files.contains_key(&name) {
                return Err(BundleError::FileName { name, why: "it is taken" });
            }
            let entry = write_source(dir, &name, source, &self.limits)?;
            files.insert(name, entry);
        }
        let manifest = Manifest {
            schema: SCHEMA_VERSION,
            name: self.name,
            version: self.version,
            sequence: self.sequence,
            runtime: self.runtime,
            device_class: self.device_class,
            inputs: self.inputs,
            outputs: self.outputs,
            files,
            predicted: self.predicted,
            lineage: self.lineage,
        };
        let bytes = manifest.to_bytes(&self.limits)?;
        write_new(&dir.join(MANIFEST_FILE), &mut bytes.as_slice(), self.limits.manifest_bytes)?;
        Ok(Digest::of(&bytes))
    }
}

impl Bundle {
    /// Opens a folder and verifies everything in it: the manifest, the names, that nothing is
    /// missing, added or linked, every size and every digest.
    pub fn open(dir: &Path, limits: &Limits) -> Result<Self> {
        let bytes = read_manifest(dir, limits)?;
        let manifest = Manifest::from_bytes(&bytes, limits)?;
        check_listing(dir, &manifest, limits)?;
        for (name, entry) in &manifest.files {
            verify_file(dir, name, entry)?;
        }
        Ok(Self {
            dir: dir.to_owned(),
            digest: Digest::of(&bytes),
            manifest,
            manifest_bytes: bytes.len() as u64,
            selftest_limit: limits.selftest_bytes,
            reference_limit: limits.reference_bytes,
        })
    }

    /// The model file.
    #[must_use]
    pub fn model_path(&self) -> PathBuf {
        self.dir.join(MODEL_FILE)
    }

    /// The report, where there is one.
    #[must_use]
    pub fn report_path(&self) -> Option<PathBuf> {
        self.manifest.files.contains_key(REPORT_FILE).then(|| self.dir.join(REPORT_FILE))
    }

    /// Reads the golden inputs and outputs.
    pub fn selftest(&self) -> Result<SelfTest> {
        SelfTest::from_bytes(&self.read(SELFTEST_FILE, self.selftest_limit)?)
    }

    /// Reads what inputs and outputs looked like when it was judged; none in a bundle without.
    pub fn reference(&self) -> Result<Option<Reference>> {
        if !self.manifest.files.contains_key(REFERENCE_FILE) {
            return Ok(None);
        }
        Reference::from_bytes(&self.read(REFERENCE_FILE, self.reference_limit)?).map(Some)
    }

    fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let file = open_regular(&self.dir, name)?;
        let mut bytes = Vec::new();
        let read = file.take(limit).read_to_end(&mut bytes);
        read.map_err(io_at("read", &self.dir.join(name)))?;
        Ok(bytes)
    }

    /// Moves the folder into `store`, under the hexadecimal digits of its digest. Where that bundle
    /// is there already, it is verified and this copy is deleted. Both must be on one file system.
    pub fn move_into(self, store: &Path) -> Result<Self> {
        let dir = store.join(self.digest.hex());
        match move_dir(&self.dir, &dir) {
            Ok(()) => Ok(Self { dir, ..self }),
            Err(BundleError::AlreadyExists(_)) => {
                let limits = Limits {
                    selftest_bytes: self.selftest_limit,
                    reference_bytes: self.reference_limit,
                    ..Limits::default()
                };
                let there = Self::open(&dir, &limits)?;
                fs::remove_dir_all(&self.dir).map_err(io_at("remove", &self.dir))?;
                Ok(there)
            }
            Err(error) => Err(error),
        }
    }

    /// Size of all files, the manifest included.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.manifest.files_bytes().saturating_add(self.manifest_bytes)
    }
}

/// Verifies one file of a bundle: a regular file of that size and digest.
pub fn verify_file(dir: &Path, name: &str, entry: &FileEntry) -> Result<()> {
    check_file_name(name)?;
    let path = dir.join(name);
    let file = open_regular(dir, name)?;
    let got = file.metadata().map_err(io_at("read", &path))?.len();
    let wanted = entry.size_bytes;
    if got != wanted {
        return Err(BundleError::WrongSize { name: name.to_owned(), wanted, got });
    }
    let (digest, got) = Digest::of_reader(&mut file.take(wanted.saturating_add(1)))
        .map_err(io_at("read", &path))?;
    if got != wanted {
        return Err(BundleError::WrongSize { name: name.to_owned(), wanted, got });
    }
    if digest != entry.sha256 {
        return Err(BundleError::WrongDigest {
            name: name.to_owned(),
            wanted: entry.sha256,
            got: digest,
        });
    }
    Ok(())
}

fn write_source(dir: &Path, name: &str, source: Source, limits: &Limits) -> Result<FileEntry> {
    let path = dir.join(name);
    let (sha256, size_bytes) = match source {
        Source::Bytes(bytes) => {
            check_size(name, bytes.len() as u64, limits)?;
            write_new(&path, &mut bytes.as_slice(), u64::MAX)?
        }
        Source::Path(from) => {
            let mut file = File::open(&from).map_err(io_at("open", &from))?;
            let metadata = file.metadata().map_err(io_at("read", &from))?;
            if !metadata.is_file() {
                return Err(not_a_file(&from.to_string_lossy(), metadata.file_type()));
            }
            check_size(name, metadata.len(), limits)?;
            write_new(&path, &mut file, metadata.len())?
        }
    };
    check_size(name, size_bytes, limits)?;
    Ok(FileEntry { sha256, size_bytes })
}

fn read_manifest(dir: &Path, limits: &Limits) -> Result<Vec<u8>> {
    let path = dir.join(MANIFEST_FILE);
    fs::read_dir(dir).map_err(io_at("open", dir))?;
    let file = open_regular(dir, MANIFEST_FILE)?;
    let mut bytes = Vec::new();
    let limit = limits.manifest_bytes;
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(io_at("read", &path))?;
    if bytes.len() as u64 > limit {
        return Err(BundleError::ManifestTooLarge { limit });
    }
    Ok(bytes)
}

fn check_listing(dir: &Path, manifest: &Manifest, limits: &Limits) -> Result<()> {
    for (count, entry) in fs::read_dir(dir).map_err(io_at("list", dir))?.enumerate() {
        let entry = entry.map_err(io_at("list", dir))?;
        if count >= limits.file_count {
            return Err(BundleError::TooManyFiles { count: count + 1, limit: limits.file_count });
        }
        let name = entry.file_name();
        let known = name
            .to_str()
            .is_some_and(|name| name == MANIFEST_FILE || manifest.files.contains_key(name));
        if !known {
            return Err(BundleError::Unexpected { name: shorten(&name.to_string_lossy()) });
        }
    }
    Ok(())
}

/// Opens a regular file; a link, a pipe or a device is refused before it is opened.
fn open_regular(dir: &Path, name: &str) -> Result<File> {
    let path = dir.join(name);
    let before = fs::symlink_metadata(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => BundleError::Missing { name: name.to_owned() },
        _ => io_at("look at", &path)(error),
    })?;
    if !before.is_file() {
        return Err(not_a_file(name, before.file_type()));
    }
    let file = File::open(&path).map_err(io_at("open", &path))?;
    let after = file.metadata().map_err(io_at("look at", &path))?;
    if same_file(&before, &after) { Ok(file) } else { Err(not_a_file(name, after.file_type())) }
}

fn same_file(before: &Metadata, after: &Metadata) -> bool {
    (before.dev(), before.ino()) == (after.dev(), after.ino())
}

fn not_a_file(name: &str, kind: FileType) -> BundleError {
    let kind = if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_dir() {
        "a folder"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_char_device() || kind.is_block_device() {
        "a device"
    } else {
        "being replaced"
    };
    BundleError::NotAFile { name: shorten(name), kind }
}
