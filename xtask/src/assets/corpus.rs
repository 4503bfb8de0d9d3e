//! Real input: files found on this machine, balanced over file types, as the classifier's features.
//!
//! Calibration and held-out files never come from the same package or documentation folder, whatever
//! its version, because two versions of one file are nearly the same file.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashSet};
use std::env;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::{hex, npz, write_atomically};

/// Columns of the model's input: 1024 of the beginning and 1024 of the end.
const FEATURES: usize = 2048;
const HALF: usize = FEATURES / 2;
/// Bytes looked at on either end.
const BLOCK: u64 = 4096;
/// Stands for "no byte here".
const PADDING: i32 = 256;

/// Files of one type on either side, at most.
const PER_TYPE: usize = 64;
/// A type needs this many files to take part.
const TYPE_MINIMUM: usize = 6;
const CALIBRATION_FILES: usize = 1536;
const HELDOUT_FILES: usize = 512;
/// Fewer held-out files than this could not tell a good model from a bad one.
const HELDOUT_MINIMUM: usize = 128;
/// Fewer calibration files than this leave file types, and so whole channels, unseen.
const CALIBRATION_MINIMUM: usize = 512;
/// How many files the walk looks at before it stops.
const WALK_LIMIT: usize = 400_000;

/// To be raised with every change of what is collected or how it becomes features: files of another
/// recipe are collected anew.
const RECIPE: u32 = 2;
const CALIBRATION: &str = "calib.npz";
const HELDOUT: &str = "heldout.npz";
/// Names the recipe and the hashes of both files; written last.
const STAMP: &str = "corpus-recipe";

/// Writes `calib.npz` and `heldout.npz` unless both are there, whole and of this recipe.
pub(super) fn collect(folder: &Path) -> Result<()> {
    if is_current(folder) {
        return Ok(());
    }
    super::crates::fetch_sources()?;
    eprintln!("collecting files of this machine as real input");
    let (mut for_calibration, mut for_heldout) = balanced(files_by_type());
    shuffle(&mut for_calibration);
    shuffle(&mut for_heldout);
    for_calibration.truncate(CALIBRATION_FILES);
    for_heldout.truncate(HELDOUT_FILES);
    let mut seen = HashSet::new();
    let heldout = rows(&for_heldout, &mut seen);
    let calibration = rows(&for_calibration, &mut seen);
    save(folder, &calibration, &heldout)
}

fn is_current(folder: &Path) -> bool {
    let wanted = || -> Result<String> {
        Ok(stamp(&fs::read(folder.join(CALIBRATION))?, &fs::read(folder.join(HELDOUT))?))
    };
    let Ok(found) = fs::read_to_string(folder.join(STAMP)) else { return false };
    wanted().is_ok_and(|wanted| wanted == found)
}

fn stamp(calibration: &[u8], heldout: &[u8]) -> String {
    let sha256 = |bytes: &[u8]| hex(&Sha256::digest(bytes));
    format!(
        "recipe {RECIPE}\n{CALIBRATION} {}\n{HELDOUT} {}\n",
        sha256(calibration),
        sha256(heldout)
    )
}

/// Writes both files, or neither where one would be too thin.
fn save(folder: &Path, calibration: &[Vec<i32>], heldout: &[Vec<i32>]) -> Result<()> {
    enough("held-out", heldout.len(), HELDOUT_MINIMUM)?;
    enough("calibration", calibration.len(), CALIBRATION_MINIMUM)?;
    let archive = |rows: &[Vec<i32>]| npz::int32("bytes", rows, FEATURES);
    let (calibration_npz, heldout_npz) = (archive(calibration)?, archive(heldout)?);
    // Never a stamp beside files that it does not describe.
    fs::remove_file(folder.join(STAMP)).ok();
    write_atomically(&folder.join(CALIBRATION), &calibration_npz)?;
    write_atomically(&folder.join(HELDOUT), &heldout_npz)?;
    write_atomically(&folder.join(STAMP), stamp(&calibration_npz, &heldout_npz).as_bytes())?;
    eprintln!(
        "  {} files -> {CALIBRATION}, {} files -> {HELDOUT}",
        calibration.len(),
        heldout.len()
    );
    Ok(())
}

fn enough(what: &str, found: usize, minimum: usize) -> Result<()> {
    if found < minimum {
        bail!(
            "only {found} {what} files of known types were found (at least {minimum} are needed): \
             the sources of cargo's registry, /usr/share, /usr/lib/python3 and /etc are where they come from"
        );
    }
    Ok(())
}

/// The features of the files that can be read, none twice.
fn rows(files: &[PathBuf], seen: &mut HashSet<Vec<u8>>) -> Vec<Vec<i32>> {
    files
        .iter()
        .filter_map(|file| features(file).ok())
        .filter(|row| seen.insert(fingerprint(row)))
        .collect()
}

fn fingerprint(row: &[i32]) -> Vec<u8> {
    let bytes: Vec<u8> = row.iter().flat_map(|value| value.to_le_bytes()).collect();
    Sha256::digest(&bytes).to_vec()
}

/// The classifier's preprocessing: the first 4096 bytes without leading white space, 1024 of them, and
/// the last 4096 without trailing white space, 1024 of them, each padded with 256.
fn features(path: &Path) -> Result<Vec<i32>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut beginning = Vec::new();
    (&mut file).take(BLOCK).read_to_end(&mut beginning)?;
    file.seek(SeekFrom::Start(length.saturating_sub(BLOCK)))?;
    let mut end = Vec::new();
    file.take(BLOCK).read_to_end(&mut end).with_context(|| path.display().to_string())?;
    Ok(row(&beginning, &end))
}

fn row(beginning: &[u8], end: &[u8]) -> Vec<i32> {
    let beginning = beginning.trim_ascii_start();
    let end = end.trim_ascii_end();
    let head = &beginning[..beginning.len().min(HALF)];
    let tail = &end[end.len().saturating_sub(HALF)..];
    let mut row = vec![PADDING; FEATURES];
    for (slot, byte) in row.iter_mut().zip(head) {
        *slot = i32::from(*byte);
    }
    for (slot, byte) in row[FEATURES - tail.len()..].iter_mut().zip(tail) {
        *slot = i32::from(*byte);
    }
    row
}

/// File type (the name's extension) to `(origin, file)`.
fn files_by_type() -> BTreeMap<String, Vec<(String, PathBuf)>> {
    let mut found = BTreeMap::new();
    let mut budget = WALK_LIMIT;
    for root in roots() {
        walk(&root, &root, &mut found, &mut budget);
    }
    found
}

fn roots() -> Vec<PathBuf> {
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    let registry = cargo_home.map(|home| home.join("registry/src"));
    // One folder per registry, whose name says nothing about the files.
    let registries = registry.and_then(|dir| fs::read_dir(dir).ok()).into_iter().flatten();
    registries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .chain(["/usr/share", "/usr/lib/python3", "/etc"].map(PathBuf::from))
        .collect()
}

fn walk(
    root: &Path,
    folder: &Path,
    found: &mut BTreeMap<String, Vec<(String, PathBuf)>>,
    budget: &mut usize,
) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    for path in paths {
        if *budget == 0 {
            return;
        }
        let Ok(meta) = path.symlink_metadata() else { continue };
        if meta.is_dir() {
            walk(root, &path, found, budget);
        } else if meta.is_file() && (64..4_000_000).contains(&meta.len()) {
            *budget -= 1;
            if let Some(kind) = kind_of(&path) {
                found.entry(kind).or_default().push((origin(root, &path), path));
            }
        }
    }
}

fn kind_of(path: &Path) -> Option<String> {
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    (1..=6).contains(&extension.len()).then_some(extension)
}

/// What a file shares with its near copies: in a registry the package without its version, elsewhere
/// the folder.
fn origin(root: &Path, path: &Path) -> String {
    if root.starts_with("/usr") || root.starts_with("/etc") {
        return path.parent().unwrap_or(root).to_string_lossy().into_owned();
    }
    let first = path.strip_prefix(root).ok().and_then(|rest| rest.components().next());
    let name =
        first.map(|part| part.as_os_str().to_string_lossy().into_owned()).unwrap_or_default();
    let end = name.find(|c: char| c.is_ascii_digit()).unwrap_or(name.len());
    name[..end].trim_end_matches('-').to_owned()
}

/// At most [`PER_TYPE`] files of each type on either side; an origin is wholly on one side.
fn balanced(by_type: BTreeMap<String, Vec<(String, PathBuf)>>) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (mut calibration, mut heldout) = (Vec::new(), Vec::new());
    for (_, mut files) in by_type {
        if files.len() < TYPE_MINIMUM {
            continue;
        }
        files.sort_by_key(|(_, path)| hash(path));
        let (mut left, mut right) = (PER_TYPE, PER_TYPE / 2);
        for (origin, path) in files {
            let is_heldout = hash(&origin) % 4 == 0;
            let (side, room) =
                if is_heldout { (&mut heldout, &mut right) } else { (&mut calibration, &mut left) };
            if *room > 0 {
                *room -= 1;
                side.push(path);
            }
        }
    }
    (calibration, heldout)
}

fn shuffle(files: &mut [PathBuf]) {
    files.sort_by_key(|path| hash(&(path, "order")));
}

/// `DefaultHasher::new` has fixed keys: the same files give the same split.
fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn white_space_is_stripped_and_both_halves_are_padded() {
        let row = row(b"  \nabc", b"xyz \n");
        assert_eq!(row[..4], [97, 98, 99, PADDING]);
        assert_eq!(row[FEATURES - 4..], [PADDING, 120, 121, 122]);
        assert_eq!(row.len(), FEATURES);
    }

    #[test]
    fn two_versions_of_a_package_are_one_origin() {
        let root = Path::new("/registry");
        let one = origin(root, Path::new("/registry/thiserror-1.0.69/src/lib.rs"));
        assert_eq!(one, origin(root, Path::new("/registry/thiserror-2.0.3/src/lib.rs")));
        assert_ne!(one, origin(root, Path::new("/registry/thiserror-impl-2.0.3/src/lib.rs")));
    }

    #[test]
    fn no_origin_is_on_both_sides() {
        let files =
            (0..400).map(|i| (format!("p{}", i % 40), PathBuf::from(format!("/p{}/{i}", i % 40))));
        let (calibration, heldout) = balanced(BTreeMap::from([("rs".to_owned(), files.collect())]));
        assert!(!calibration.is_empty() && !heldout.is_empty());
        let folder = |path: &PathBuf| path.parent().unwrap().to_path_buf();
        let left: HashSet<_> = calibration.iter().map(folder).collect();
        assert!(heldout.iter().all(|path| !left.contains(&folder(path))));
    }
    fn scratch(name: &str) -> PathBuf {
        let folder = env::temp_dir().join(format!("espalier-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn made_up(count: usize) -> Vec<Vec<i32>> {
        (0..count).map(|i| vec![i32::try_from(i).unwrap(); FEATURES]).collect()
    }

    #[test]
    fn too_few_rows_on_either_side_write_nothing() {
        let folder = scratch("thin-corpus");
        let (calibration, heldout) = (made_up(CALIBRATION_MINIMUM), made_up(HELDOUT_MINIMUM));
        let thin = save(&folder, &calibration[1..], &heldout).unwrap_err().to_string();
        assert!(thin.contains("511 calibration") && thin.contains("512"), "{thin}");
        let thin = save(&folder, &calibration, &heldout[1..]).unwrap_err().to_string();
        assert!(thin.contains("127 held-out"), "{thin}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_corpus_is_kept_while_it_is_whole_and_of_this_recipe() {
        let folder = scratch("kept-corpus");
        assert!(!is_current(&folder));
        save(&folder, &made_up(CALIBRATION_MINIMUM), &made_up(HELDOUT_MINIMUM)).unwrap();
        assert!(is_current(&folder));

        let stamp = fs::read_to_string(folder.join(STAMP)).unwrap();
        let other = stamp.replace(&format!("recipe {RECIPE}"), "recipe 1");
        fs::write(folder.join(STAMP), other).unwrap();
        assert!(!is_current(&folder), "another recipe");
        fs::write(folder.join(STAMP), stamp).unwrap();
        assert!(is_current(&folder));

        fs::write(folder.join(HELDOUT), b"cut short").unwrap();
        assert!(!is_current(&folder), "another file");
        fs::remove_file(folder.join(STAMP)).unwrap();
        assert!(!is_current(&folder), "a corpus from before there were stamps");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_is_there_twice_or_cannot_be_read_is_no_row() {
        let folder = scratch("rows");
        let [one, two, gone] = ["one", "two", "gone"].map(|name| folder.join(name));
        fs::write(&one, "the same").unwrap();
        fs::write(&two, "the same").unwrap();
        assert_eq!(rows(&[one, two, gone], &mut HashSet::new()).len(), 1);
        fs::remove_dir_all(&folder).unwrap();
    }
}
