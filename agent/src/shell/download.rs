//! Fetches a bundle's files into the staging folder.
//!
//! The manifest first, held against the offer's digest; then each file it names, resumed where a
//! part of it lies there already, held against its size while it comes and its digest when it is
//! whole. Blocking, for a thread of its own; every wait has a deadline, and cancelling takes effect at
//! the next read. Over https the server's certificate is held against the CAs of `download.ca_file`; what
//! the bundle is worth says its digest in either case.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bundle::{Digest, FileEntry, Limits, MANIFEST_FILE, Manifest};
use tls::{Names, Parties, Settings};
use ureq::http::{Response, StatusCode, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body};

use super::state_dir::{sync_folder_of, write_atomically};
use crate::config::DownloadConfig;
use crate::core::StepFailure;
pub use pace::Pace;
use progress::Progress;

mod pace;
mod progress;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);
/// How long the server may be silent before it answers.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a body may stand still.
const STALL: Duration = Duration::from_secs(30);
/// Room that must be left on the file system beside the bundle.
const SPARE_BYTES: u64 = 16 << 20;
/// What is read at once.
const READ_BYTES: usize = 64 << 10;
/// How often a lock is tried.
const LOCK_GLANCE: Duration = Duration::from_millis(50);

/// What to fetch.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    /// The folder's address.
    pub url: &'a str,
    /// The bundle's digest.
    pub digest: Digest,
    /// The staging folder of this bundle.
    pub into: &'a Path,
    /// The limits to hold it to.
    pub limits: &'a Limits,
    /// How servers are reached.
    pub access: &'a Access,
    /// Set to stop.
    pub cancelled: &'a AtomicBool,
}

/// How servers are reached.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// The CAs that may have signed the certificate of a server; the system's if not given.
    pub ca: Option<PathBuf>,
    /// How fast all downloads together may come in.
    pub pace: Option<Arc<Pace>>,
}

const NAMES: Names = Names {
    ca: "download.ca_file",
    certificate: "a client certificate",
    key: "its key",
    server_name: "the address of the offer",
};
/// What is sent over https is not sent on in the clear.
const SECURE: &str = "https://";

/// Fetches all files.
///
/// # Errors
/// Transient when trying again may help, an ended attempt otherwise; the reason names file and
/// address.
pub fn fetch(job: &Job<'_>) -> Result<(), StepFailure> {
    check_scheme(job.url)?;
    fs::create_dir_all(job.into).map_err(|e| at(job.into, "create", &e))?;
    let _alone = alone(job)?;
    let agent = agent(job.url, job.access)?;
    let manifest = manifest(job, &agent)?;
    check_space(job, &manifest)?;
    for (name, entry) in &manifest.files {
        file(job, &agent, name, entry)?;
    }
    sync_folder_of(&job.into.join(MANIFEST_FILE)).map_err(StepFailure::transient)
}

/// The staging folder's lock. The thread of a download that was paused may still be waiting for its server.
fn alone(job: &Job<'_>) -> Result<File, StepFailure> {
    let folder = File::open(job.into).map_err(|e| at(job.into, "open", &e))?;
    loop {
        match folder.try_lock() {
            Ok(()) => return Ok(folder),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(e)) => return Err(at(job.into, "lock", &e)),
        }
        check_cancelled(job, job.url)?;
        std::thread::sleep(LOCK_GLANCE);
    }
}

fn check_cancelled(job: &Job<'_>, url: &str) -> Result<(), StepFailure> {
    if job.cancelled.load(Ordering::Relaxed) {
        return Err(StepFailure::attempt(format!("{url}: cancelled")));
    }
    Ok(())
}

pub(super) fn check_scheme(url: &str) -> Result<(), StepFailure> {
    if url.starts_with("http://") || url.starts_with(SECURE) {
        return Ok(());
    }
    let reason = format!("{url}: only http:// and https:// addresses can be fetched");
    Err(StepFailure::attempt(reason))
}

/// A client that reaches `url` and what it sends on to.
///
/// # Errors
/// Transient where the CAs of an https address cannot be read.
pub(super) fn agent(url: &str, access: &Access) -> Result<Agent, StepFailure> {
    let is_secure = url.starts_with(SECURE);
    let settings = access.settings();
    let found = tls::certificates(settings.ca_file());
    let found = match found {
        Ok(found) => found,
        // Needed only where the server sends on to https, and then nobody is trusted.
        Err(_) if !is_secure => Vec::new(),
        Err(what) => {
            let reason = format!("{}: {}: {what}", url, NAMES.ca);
            return Err(StepFailure::transient(reason));
        }
    };
    let trusted: Vec<_> = found.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(tls::provider())
        .root_certs(RootCerts::new_with_certs(&trusted))
        .build();
    Ok(Agent::config_builder()
        .tls_config(tls)
        .https_only(is_secure)
        .timeout_connect(Some(CONNECT))
        .timeout_resolve(Some(CONNECT))
        .timeout_recv_response(Some(ANSWER))
        .timeout_per_read(Some(STALL))
        .http_status_as_error(false)
        .max_redirects(3)
        .build()
        .into())
}

impl Access {
    /// As it is configured.
    #[must_use]
    pub fn new(config: &DownloadConfig) -> Self {
        let pace = config.max_bytes_per_s.map(|rate| Arc::new(Pace::new(rate)));
        Self { ca: config.ca_file.clone(), pace }
    }

    fn settings(&self) -> Settings {
        Settings { ca: self.ca.clone(), names: NAMES, ..Settings::default() }
    }
}

fn manifest(job: &Job<'_>, agent: &Agent) -> Result<Manifest, StepFailure> {
    let path = job.into.join(MANIFEST_FILE);
    let limits = job.limits;
    let fits = |bytes: &[u8]| Digest::of(bytes) == job.digest;
    let staged = fs::read(&path).ok().filter(|bytes| fits(bytes));
    let bytes = match staged {
        Some(bytes) => bytes,
        None => fetch_manifest(job, agent)?,
    };
    // Sizes are held against the device's own limit below, by the name of its key.
    let Limits { model_bytes, total_bytes, .. } = Limits::default();
    let format = Limits { model_bytes, total_bytes, ..limits.clone() };
    let manifest = Manifest::from_bytes(&bytes, &format).map_err(StepFailure::bundle)?;
    let total = manifest.files_bytes();
    if total > limits.total_bytes {
        let reason = format!(
            "the manifest's files of {total} bytes are over the limit install.max_bundle_bytes of {}",
            limits.total_bytes
        );
        return Err(StepFailure::bundle(reason));
    }
    write_atomically(&path, &bytes).map_err(StepFailure::transient)?;
    Ok(manifest)
}

fn fetch_manifest(job: &Job<'_>, agent: &Agent) -> Result<Vec<u8>, StepFailure> {
    let url = address(job.url, MANIFEST_FILE);
    let mut response = get(job, agent, &url, None)?;
    expect_status(&url, &response, &[StatusCode::OK])?;
    let limit = job.limits.manifest_bytes;
    let mut bytes = Vec::new();
    let mut body = response.body_mut().as_reader().take(limit + 1);
    let mut buffer = vec![0; READ_BYTES];
    let mut progress = Progress::default();
    loop {
        check_cancelled(job, &url)?;
        match progress
            .read(&mut body, &mut buffer)
            .map_err(|e| StepFailure::transient(format!("{url}: {e}")))?
        {
            0 => break,
            read => bytes.extend_from_slice(&buffer[..read]),
        }
    }
    if bytes.len() as u64 > limit {
        let reason = format!("{url}: over the limit manifest_bytes of {limit}");
        return Err(StepFailure::attempt(reason));
    }
    let got = Digest::of(&bytes);
    if got != job.digest {
        let wanted = &job.digest;
        let reason = format!("{url}: digest {got} is not the offered {wanted}");
        return Err(StepFailure::attempt(reason));
    }
    Ok(bytes)
}

fn check_space(job: &Job<'_>, manifest: &Manifest) -> Result<(), StepFailure> {
    let present = |name: &String| fs::metadata(job.into.join(name)).map_or(0, |m| m.len());
    let missing: u64 = manifest
        .files
        .iter()
        .map(|(name, entry)| entry.size_bytes.saturating_sub(present(name)))
        .sum();
    let stat = rustix::fs::statvfs(job.into).map_err(|e| at(job.into, "measure", &e.into()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if missing.saturating_add(SPARE_BYTES) > free {
        let reason = format!(
            "{missing} bytes are missing and {SPARE_BYTES} must stay free, but {} has {free}",
            job.into.display()
        );
        return Err(StepFailure::transient(reason));
    }
    Ok(())
}

/// One file, from where it stands. A staged file of the right size and digest is left alone; one that
/// turns out wrong is removed, so that the next attempt begins anew.
fn file(job: &Job<'_>, agent: &Agent, name: &str, entry: &FileEntry) -> Result<(), StepFailure> {
    let path = job.into.join(name);
    let url = address(job.url, name);
    let have = fs::symlink_metadata(&path).map_or(0, |m| if m.is_file() { m.len() } else { 0 });
    if have > entry.size_bytes {
        fs::remove_file(&path).map_err(|e| at(&path, "remove", &e))?;
        return file(job, agent, name, entry);
    }
    if have < entry.size_bytes || entry.size_bytes == 0 {
        receive(job, agent, &url, &path, have, entry.size_bytes)?;
    }
    if let Err(error) = bundle::verify_file(job.into, name, entry) {
        let _ = fs::remove_file(&path);
        return Err(StepFailure::attempt(format!("{url}: {error}")));
    }
    Ok(())
}

fn receive(
    job: &Job<'_>,
    agent: &Agent,
    url: &str,
    path: &Path,
    have: u64,
    wanted: u64,
) -> Result<(), StepFailure> {
    let mut response = get(job, agent, url, (have > 0).then_some(have))?;
    if let Some(total) = total_bytes(&response)
        && total != wanted
    {
        let _ = fs::remove_file(path);
        let reason =
            format!("{url}: the server's file has {total} bytes, the manifest says {wanted}");
        return Err(StepFailure::attempt(reason));
    }
    let resumed = have > 0 && starts_at(&response) == Some(have);
    if have > 0 && response.status() == StatusCode::PARTIAL_CONTENT && !resumed {
        let _ = fs::remove_file(path);
        let reason = format!("{url}: the server resumed at another place than {have}");
        return Err(StepFailure::transient(reason));
    }
    expect_status(url, &response, &[StatusCode::OK, StatusCode::PARTIAL_CONTENT])?;
    let begin = if resumed { have } else { 0 };
    let mut options = OpenOptions::new();
    let options = options.create(true).write(true).append(resumed).truncate(!resumed);
    let mut out = options.open(path).map_err(|e| at(path, "open", &e))?;
    let got = copy(job, url, &mut response, &mut out, path, wanted - begin);
    out.sync_all().map_err(|e| at(path, "sync", &e))?;
    got
}

/// Copies exactly `wanted` bytes.
fn copy(
    job: &Job<'_>,
    url: &str,
    response: &mut Response<Body>,
    out: &mut File,
    path: &Path,
    wanted: u64,
) -> Result<(), StepFailure> {
    let mut body = response.body_mut().as_reader();
    let pace = job.access.pace.as_deref();
    let mut buffer = vec![0; pace.map_or(READ_BYTES, |pace| pace.chunk(READ_BYTES))];
    let mut left = wanted;
    let mut progress = Progress::default();
    loop {
        check_cancelled(job, url)?;
        let read = progress.read(&mut body, &mut buffer);
        let read = read.map_err(|e| StepFailure::transient(format!("{url}: {e}")))?;
        if read == 0 {
            break;
        }
        if read as u64 > left {
            let reason = format!("{url}: longer than the {wanted} bytes that were due");
            return Err(StepFailure::attempt(reason));
        }
        out.write_all(&buffer[..read]).map_err(|e| at(path, "write", &e))?;
        left -= read as u64;
        if let Some(pace) = pace {
            pace.wait(read, job.cancelled);
        }
    }
    if left == 0 {
        return Ok(());
    }
    let reason = format!("{url}: ended {left} bytes early");
    Err(StepFailure::transient(reason))
}

fn get(
    job: &Job<'_>,
    agent: &Agent,
    url: &str,
    from: Option<u64>,
) -> Result<Response<Body>, StepFailure> {
    let request = agent.get(url);
    let request = match from {
        Some(from) => request.header(header::RANGE, format!("bytes={from}-")),
        None => request,
    };
    request.call().map_err(|error| {
        let settings = job.access.settings();
        let there = format!("the server of {}", job.url);
        let parties = Parties { here: "this device", there: &there, settings: &settings };
        let told = unwrapped(&error).and_then(|within| tls::explain(within, parties));
        StepFailure::transient(format!("{url}: {}", told.unwrap_or_else(|| error.to_string())))
    })
}

/// The error within a client's error, which does not name it as its source.
fn unwrapped(error: &ureq::Error) -> Option<&(dyn std::error::Error + 'static)> {
    match error {
        ureq::Error::Rustls(error) => Some(error),
        ureq::Error::Io(error) => Some(error),
        _ => None,
    }
}

/// The whole file's size, where the server states it: a file that is short for ever is no broken connection.
fn total_bytes(response: &Response<Body>) -> Option<u64> {
    let text = |name| response.headers().get(name)?.to_str().ok();
    match response.status() {
        StatusCode::OK => text(header::CONTENT_LENGTH)?.parse().ok(),
        StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
            text(header::CONTENT_RANGE)?.rsplit('/').next()?.parse().ok()
        }
        _ => None,
    }
}

/// The first byte of a partial answer.
fn starts_at(response: &Response<Body>) -> Option<u64> {
    let range = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    let first = range.strip_prefix("bytes ")?.split('-').next()?;
    first.parse().ok()
}

fn expect_status(
    url: &str,
    response: &Response<Body>,
    wanted: &[StatusCode],
) -> Result<(), StepFailure> {
    let status = response.status();
    if wanted.contains(&status) {
        return Ok(());
    }
    let reason = format!("{url}: the server answered {status}");
    // A server in trouble, or one that is still publishing, may do better later.
    let later = status.is_server_error()
        || [StatusCode::NOT_FOUND, StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS]
            .contains(&status);
    Err(if later { StepFailure::transient(reason) } else { StepFailure::attempt(reason) })
}

pub(super) fn address(folder: &str, name: &str) -> String {
    format!("{}/{name}", folder.trim_end_matches('/'))
}

fn at(path: &Path, doing: &str, error: &std::io::Error) -> StepFailure {
    StepFailure::transient(format!("cannot {doing} {}: {error}", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(in crate::shell) mod tests;
