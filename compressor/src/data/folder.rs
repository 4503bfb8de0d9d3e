//! A folder of images or sound files: either one folder per class, or files without classes.

use std::fs;
use std::path::{Path, PathBuf};

use super::records::{Raw, Records};
use super::{MAX_SAMPLES, Problem, file_digest, limit};

/// The most class folders.
pub(crate) const MAX_CLASSES: usize = 65_536;
/// The name of the only field: the file itself.
pub(crate) const FILE: &str = "file";
const EXTENSIONS: [&str; 5] = ["png", "jpg", "jpeg", "bmp", "wav"];

/// Files in the order of their names, class by class.
#[derive(Debug)]
pub(crate) struct Folder {
    files: Vec<PathBuf>,
    classes: Option<Vec<String>>,
    digest: bundle::Digest,
}

impl Folder {
    /// One file as the only sample.
    pub(crate) fn single(file: &Path) -> Result<Self, Problem> {
        let digest = file_digest(file)?;
        Ok(Self { files: vec![file.to_path_buf()], classes: None, digest })
    }

    pub(crate) fn open(root: &Path) -> Result<Self, Problem> {
        let (folders, mut files) = entries(root)?;
        limit("number of class folders", folders.len() as u64, "MAX_CLASSES", MAX_CLASSES as u64)?;
        if !folders.is_empty() && !files.is_empty() {
            return Err(Problem::Format(format!(
                "holds both folders and files ({} and {}); samples lie in class folders or all beside \
                 each other",
                folders[0].display(),
                files[0].display()
            )));
        }
        let mut classes = Vec::new();
        for folder in &folders {
            let (nested, inside) = entries(folder)?;
            if let Some(nested) = nested.first() {
                return Err(Problem::Format(format!(
                    "holds a folder within a class folder: {}",
                    nested.display()
                )));
            }
            classes.resize(classes.len() + inside.len(), name(folder));
            files.extend(inside);
            limit("number of samples", files.len() as u64, "MAX_SAMPLES", MAX_SAMPLES as u64)?;
        }
        if files.is_empty() {
            return Err(Problem::NoSamples);
        }
        let digest = digest(root, &files)?;
        Ok(Self { files, classes: (!folders.is_empty()).then_some(classes), digest })
    }
}

impl Records for Folder {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn fields(&self) -> Vec<String> {
        vec![FILE.to_owned()]
    }

    fn get(&self, sample: usize, field: &str) -> Result<Raw, String> {
        if field != FILE {
            return Err(format!("has no field \"{field}\"; a folder's only one is \"{FILE}\""));
        }
        self.files.get(sample).cloned().map(Raw::File).ok_or_else(|| "is no sample".into())
    }

    fn classes(&self) -> Option<&[String]> {
        self.classes.as_deref()
    }

    fn digest(&self) -> bundle::Digest {
        self.digest
    }
}

/// Folders and sample files in a folder, sorted; hidden ones left out.
fn entries(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), Problem> {
    let (mut folders, mut files) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(folder).map_err(Problem::Read)? {
        let path = entry.map_err(Problem::Read)?.path();
        if name(&path).starts_with('.') {
            continue;
        }
        if path.is_dir() {
            folders.push(path);
            continue;
        }
        let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
        if !extension.is_some_and(|e| EXTENSIONS.contains(&e.as_str())) {
            return Err(Problem::Format(format!(
                "holds {}, which is none of .png, .jpg, .bmp and .wav",
                path.display()
            )));
        }
        if !path.is_file() {
            return Err(Problem::Format(format!("holds {}, which is no file", path.display())));
        }
        files.push(path);
        limit("number of samples", files.len() as u64, "MAX_SAMPLES", MAX_SAMPLES as u64)?;
    }
    folders.sort();
    files.sort();
    Ok((folders, files))
}

fn name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned())
}

/// Of each file's path within the folder and its digest.
fn digest(root: &Path, files: &[PathBuf]) -> Result<bundle::Digest, Problem> {
    let mut lines = String::new();
    for file in files {
        let within = file.strip_prefix(root).unwrap_or(file);
        lines.push_str(&format!("{}\0{}\n", within.display(), file_digest(file)?));
    }
    Ok(bundle::Digest::of(lines.as_bytes()))
}
