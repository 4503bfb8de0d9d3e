//! Files that are read within a limit and replaced as a whole.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::{Result, TrustError};

/// A whole file of at most `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(TrustError::file("open", path))?;
    let mut bytes = Vec::new();
    let read = file.take(limit + 1).read_to_end(&mut bytes);
    read.map_err(TrustError::file("read", path))?;
    if bytes.len() as u64 > limit {
        let what = format!("it is over the limit of {limit} bytes for such a file");
        return Err(TrustError::file("read", path)(std::io::Error::other(what)));
    }
    Ok(bytes)
}

/// The same, or `None` where there is no such file.
pub(crate) fn read_if_there(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    match read(path, limit) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(TrustError::File { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces a file: whoever reads it, now or after a crash, finds the old content or the new.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let temporary = beside(path, ".tmp");
    write(&temporary, content, 0o644, true)?;
    fs::rename(&temporary, path).map_err(TrustError::file("replace", path))?;
    sync_folder_of(path)
}

/// Writes a file that must not be there yet, for its owner alone.
pub(crate) fn create_secret(path: &Path, content: &[u8]) -> Result<()> {
    let temporary = beside(path, &format!(".{}.tmp", std::process::id()));
    write(&temporary, content, 0o600, false)?;
    // A link, unlike a rename, fails where the name is taken.
    let linked = fs::hard_link(&temporary, path).map_err(TrustError::file("create", path));
    fs::remove_file(&temporary).map_err(TrustError::file("remove", &temporary))?;
    linked?;
    sync_folder_of(path)
}

fn write(path: &Path, content: &[u8], mode: u32, over: bool) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).mode(mode);
    let options = if over { options.create(true).truncate(true) } else { options.create_new(true) };
    let mut file = options.open(path).map_err(TrustError::file("create", path))?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    written.map_err(TrustError::file("write", path))
}

fn beside(path: &Path, ending: &str) -> std::path::PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(ending);
    path.with_file_name(name)
}

fn sync_folder_of(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(TrustError::file("sync", folder))
}
