//! A bundle as one `.tar`: plain entries only, the manifest first.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use tar::{Archive, Builder, Entry, EntryType, Header};

use crate::Result;
use crate::durable::{Staging, write_new};
use crate::error::{BundleError, io_at, shorten};
use crate::folder::Bundle;
use crate::limits::Limits;
use crate::manifest::{MANIFEST_FILE, Manifest, check_file_name, check_size};

/// Writes a bundle's folder as a tar archive. The same bundle gives the same bytes.
pub fn pack(dir: &Path, writer: impl Write) -> Result<Bundle> {
    let bundle = Bundle::open(dir, &Limits::default())?;
    let mut builder = Builder::new(writer);
    let names =
        std::iter::once(MANIFEST_FILE).chain(bundle.manifest.files.keys().map(String::as_str));
    for name in names {
        let path = dir.join(name);
        let file = File::open(&path).map_err(io_at("open", &path))?;
        let size = file.metadata().map_err(io_at("look at", &path))?.len();
        let mut header = Header::new_gnu();
        header.set_path(name).map_err(io_at("name in an archive", &path))?;
        header.set_size(size);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_cksum();
        builder.append(&header, file.take(size)).map_err(io_at("pack", &path))?;
    }
    let mut writer = builder.into_inner().map_err(io_at("pack", dir))?;
    writer.flush().map_err(io_at("pack", dir))?;
    Ok(bundle)
}

/// Reads a tar archive into `dest`, which must not exist, and verifies the bundle. All or nothing.
///
/// Links, devices, folders, extension headers, absolute paths, `..`, names given twice, names that
/// the manifest does not list and sizes over the limits are each an error, found before the bytes of
/// that entry are read. The manifest must come first.
pub fn unpack(reader: impl Read, dest: &Path, limits: &Limits) -> Result<Bundle> {
    if std::fs::symlink_metadata(dest).is_ok() {
        return Err(BundleError::AlreadyExists(dest.to_owned()));
    }
    let staging = Staging::beside(dest)?;
    let mut archive = Archive::new(reader);
    let entries = archive.entries().map_err(|error| garbage(&error))?.raw(true);
    let mut unpacker =
        Unpacker { dir: staging.dir(), limits, manifest: None, seen: BTreeSet::new() };
    for entry in entries {
        unpacker.take(&mut entry.map_err(|error| garbage(&error))?)?;
    }
    Bundle::open(staging.dir(), limits)?;
    staging.keep_as(dest)?;
    Bundle::open(dest, limits)
}

struct Unpacker<'a> {
    dir: &'a Path,
    limits: &'a Limits,
    manifest: Option<Manifest>,
    seen: BTreeSet<String>,
}

impl Unpacker<'_> {
    fn take<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<()> {
        let name = entry_name(entry)?;
        let size = entry.header().entry_size().map_err(|error| garbage(&error))?;
        if self.seen.len() >= self.limits.file_count {
            let count = self.seen.len() + 1;
            return Err(BundleError::TooManyFiles { count, limit: self.limits.file_count });
        }
        if self.seen.contains(&name) {
            return Err(BundleError::ArchiveDuplicate { name });
        }
        check_size(&name, size, self.limits)?;
        match &self.manifest {
            None if name == MANIFEST_FILE => {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).map_err(|error| cut(&name, &error))?;
                same_size(&name, size, bytes.len() as u64)?;
                self.manifest = Some(Manifest::from_bytes(&bytes, self.limits)?);
                write_new(&self.dir.join(&name), &mut bytes.as_slice(), size)?;
            }
            None => return Err(BundleError::ArchiveOrder { name }),
            Some(manifest) => {
                let Some(claim) = manifest.files.get(&name) else {
                    return Err(BundleError::Unexpected { name });
                };
                if claim.size_bytes != size {
                    return Err(BundleError::WrongSize {
                        name,
                        wanted: claim.size_bytes,
                        got: size,
                    });
                }
                let (_, got) = write_new(&self.dir.join(&name), entry, size)?;
                same_size(&name, size, got)?;
            }
        }
        self.seen.insert(name);
        Ok(())
    }
}

/// The entry's name, if entry and name are of the allowed kind.
fn entry_name<R: Read>(entry: &Entry<'_, R>) -> Result<String> {
    let bytes = entry.header().path_bytes();
    let name = shorten(&String::from_utf8_lossy(&bytes));
    match entry.header().entry_type() {
        EntryType::Regular => {}
        EntryType::Symlink => return Err(BundleError::ArchiveLink { name, kind: "symbolic" }),
        EntryType::Link => return Err(BundleError::ArchiveLink { name, kind: "hard" }),
        other => return Err(BundleError::ArchiveKind { name, kind: kind_of(other) }),
    }
    if bytes.starts_with(b"/") {
        return Err(BundleError::ArchiveAbsolute { name });
    }
    if bytes.split(|byte| *byte == b'/').any(|part| part == b"..") {
        return Err(BundleError::ArchiveParent { name });
    }
    check_file_name(&name)?;
    Ok(name)
}

fn kind_of(kind: EntryType) -> &'static str {
    match kind {
        EntryType::Char | EntryType::Block => "a device",
        EntryType::Directory => "a folder",
        EntryType::Fifo => "a pipe",
        EntryType::GNUSparse => "a sparse file",
        EntryType::GNULongName
        | EntryType::GNULongLink
        | EntryType::XHeader
        | EntryType::XGlobalHeader => "an extension header",
        _ => "of an unknown kind",
    }
}

fn same_size(name: &str, wanted: u64, got: u64) -> Result<()> {
    if wanted == got {
        return Ok(());
    }
    Err(BundleError::ArchiveTruncated { name: name.to_owned() })
}

fn cut(name: &str, error: &io::Error) -> BundleError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => BundleError::ArchiveTruncated { name: name.to_owned() },
        _ => garbage(error),
    }
}

fn garbage(error: &io::Error) -> BundleError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => BundleError::ArchiveTruncated { name: String::new() },
        _ => BundleError::ArchiveGarbage(shorten(&error.to_string())),
    }
}
