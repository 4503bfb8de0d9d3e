//! Files over HTTP: ranges, entity tags, and bodies that are read as fast as the client takes them.

use std::io::{self, SeekFrom};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;

const CHUNK_BYTES: usize = 64 * 1024;
/// How long a client may take for one chunk: a download is never slower than about 1 KiB/s.
pub(super) const CHUNK_PATIENCE: Duration = Duration::from_secs(60);
/// Chunks read ahead of the client.
const CHUNKS_AHEAD: usize = 4;

/// A file to send, and what is known about it.
pub(super) struct Served<'a> {
    pub(super) path: &'a Path,
    /// Its size by the manifest.
    pub(super) size: u64,
    /// Quoted.
    pub(super) etag: String,
    pub(super) content_type: &'static str,
}

/// Which bytes a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    All,
    /// First byte and number of bytes.
    Part(u64, u64),
    /// Nothing of it exists.
    Beyond,
}

/// Answers GET and HEAD for one file.
pub(super) async fn send(
    served: Served<'_>,
    method: &Method,
    headers: &HeaderMap,
    permit: OwnedSemaphorePermit,
) -> io::Result<Response<Body>> {
    let mut file = File::open(served.path).await?;
    let on_disk = file.metadata().await?.len();
    if on_disk != served.size {
        let message =
            format!("{} has {on_disk} bytes instead of {}", served.path.display(), served.size);
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    if text(headers, header::IF_NONE_MATCH).is_some_and(|tags| lists(tags, &served.etag)) {
        return answer(&served, StatusCode::NOT_MODIFIED, None, None, Body::empty());
    }
    let current = text(headers, header::IF_RANGE).is_none_or(|tag| tag == served.etag);
    let range = text(headers, header::RANGE).filter(|_| current);
    let (status, start, length, content_range) = match wanted(range, served.size) {
        Wanted::All => (StatusCode::OK, 0, served.size, None),
        Wanted::Part(start, length) => {
            let content_range = format!("bytes {start}-{}/{}", start + length - 1, served.size);
            (StatusCode::PARTIAL_CONTENT, start, length, Some(content_range))
        }
        Wanted::Beyond => {
            let content_range = Some(format!("bytes */{}", served.size));
            return answer(
                &served,
                StatusCode::RANGE_NOT_SATISFIABLE,
                Some(0),
                content_range,
                Body::empty(),
            );
        }
    };
    let body = if *method == Method::HEAD {
        Body::empty()
    } else {
        file.seek(SeekFrom::Start(start)).await?;
        Body::new(FileBody::read(file, length, permit, CHUNK_PATIENCE))
    };
    answer(&served, status, Some(length), content_range, body)
}

/// Answers GET for a whole file whose content under its name may be replaced at any time; nothing where there is none.
pub(super) async fn send_current(
    path: &Path,
    content_type: &'static str,
    limit_bytes: u64,
    permit: OwnedSemaphorePermit,
) -> io::Result<Option<Response<Body>>> {
    let file = match File::open(path).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let meta = file.metadata().await?;
    let length = meta.len();
    if !meta.is_file() {
        return Ok(None);
    }
    if length > limit_bytes {
        let message = format!("{} is over the limit of {limit_bytes} bytes", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    let response = Response::builder()
        .header(header::CONTENT_TYPE, HeaderValue::from_static(content_type))
        .header(header::CACHE_CONTROL, "no-cache")
        .header(header::CONTENT_LENGTH, length)
        .body(Body::new(FileBody::read(file, length, permit, CHUNK_PATIENCE)));
    response.map(Some).map_err(io::Error::other)
}

fn answer(
    served: &Served<'_>,
    status: StatusCode,
    length: Option<u64>,
    content_range: Option<String>,
    body: Body,
) -> io::Result<Response<Body>> {
    let mut response = Response::builder()
        .status(status)
        .header(header::ETAG, &served.etag)
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::CONTENT_TYPE, HeaderValue::from_static(served.content_type))
        // The address holds the digest: what it names never changes.
        .header(header::CACHE_CONTROL, "public, max-age=31536000, immutable");
    if let Some(length) = length {
        response = response.header(header::CONTENT_LENGTH, length);
    }
    if let Some(content_range) = content_range {
        response = response.header(header::CONTENT_RANGE, content_range);
    }
    response.body(body).map_err(io::Error::other)
}

/// Reads a `Range` header (RFC 9110, section 14.2). One that is malformed, of another unit or of
/// several parts is ignored, as the specification allows.
fn wanted(range: Option<&str>, size: u64) -> Wanted {
    let part = range.and_then(|range| range.trim().strip_prefix("bytes="));
    let Some((first, last)) = part.and_then(|part| part.split_once('-')) else {
        return Wanted::All;
    };
    let (first, last) = (first.trim(), last.trim());
    match (number(first), number(last)) {
        (None, Some(0)) if first.is_empty() => Wanted::Beyond,
        (None, Some(suffix)) if first.is_empty() && size > 0 => {
            let length = suffix.min(size);
            Wanted::Part(size - length, length)
        }
        (None, Some(_)) if first.is_empty() => Wanted::Beyond,
        (Some(first), Some(last)) if last < first => Wanted::All,
        (Some(first), _) if !last.is_empty() && number(last).is_none() || first >= u64::MAX - 1 => {
            Wanted::All
        }
        (Some(first), _) if first >= size => Wanted::Beyond,
        (Some(first), last) => {
            let end = last.map_or(size, |last| last.saturating_add(1).min(size));
            Wanted::Part(first, end - first)
        }
        _ => Wanted::All,
    }
}

fn number(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Whether a list of entity tags holds this one, or `*`.
fn lists(tags: &str, etag: &str) -> bool {
    tags.split(',').map(str::trim).any(|tag| tag == "*" || tag.trim_start_matches("W/") == etag)
}

/// A part of a file, read in chunks by a task that waits while the client is slow, but not for ever.
struct FileBody {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    left: u64,
}

impl FileBody {
    fn read(file: File, length: u64, permit: OwnedSemaphorePermit, patience: Duration) -> Self {
        let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
        tokio::spawn(async move {
            let _permit = permit;
            pump(file, length, sender, patience).await;
        });
        Self { chunks, left: length }
    }
}

async fn pump(
    file: File,
    length: u64,
    sender: mpsc::Sender<io::Result<Bytes>>,
    patience: Duration,
) {
    let mut file = file.take(length);
    let mut left = length;
    while left > 0 {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        let read = (&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut chunk).await;
        let chunk = match read {
            Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter")),
            Ok(n) => {
                left = left.saturating_sub(n as u64);
                Ok(Bytes::from(chunk))
            }
            Err(error) => Err(error),
        };
        let failed = chunk.is_err();
        match timeout(patience, sender.send(chunk)).await {
            Ok(Ok(())) if !failed => {}
            Ok(_) => return,
            Err(_) => {
                return tracing::debug!(?patience, left, "a download stands still; it is ended");
            }
        }
    }
}

impl hyper::body::Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.chunks.poll_recv(context).map(|chunk| {
            let chunk = chunk?;
            if let Ok(bytes) = &chunk {
                self.left = self.left.saturating_sub(bytes.len() as u64);
            }
            Some(chunk.map(Frame::data))
        })
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;

    use hyper::body::Body as _;
    use tokio::sync::Semaphore;

    use super::*;

    #[test]
    fn ranges_are_read_as_the_specification_says() {
        for (range, expected) in [
            ("bytes=0-", Wanted::Part(0, 10)),
            ("bytes=0-0", Wanted::Part(0, 1)),
            ("bytes=3-5", Wanted::Part(3, 3)),
            ("bytes=3-500", Wanted::Part(3, 7)),
            ("bytes=9-", Wanted::Part(9, 1)),
            ("bytes=-3", Wanted::Part(7, 3)),
            ("bytes=-300", Wanted::Part(0, 10)),
            ("bytes=3-18446744073709551615", Wanted::Part(3, 7)),
            ("bytes=10-", Wanted::Beyond),
            ("bytes=10-12", Wanted::Beyond),
            ("bytes=-0", Wanted::Beyond),
            ("bytes=5-3", Wanted::All),
            ("bytes=0-1,3-4", Wanted::All),
            ("bytes=a-b", Wanted::All),
            ("bytes=1-b", Wanted::All),
            ("bytes=-", Wanted::All),
            ("bytes=+1-2", Wanted::All),
            ("bytes=--1", Wanted::All),
            ("items=0-1", Wanted::All),
            ("bytes=99999999999999999999-", Wanted::All),
            ("", Wanted::All),
        ] {
            assert_eq!(wanted(Some(range), 10), expected, "{range}");
        }
        assert_eq!(wanted(None, 10), Wanted::All);
        assert_eq!(wanted(Some("bytes=0-"), 0), Wanted::Beyond);
        assert_eq!(wanted(Some("bytes=-1"), 0), Wanted::Beyond);
    }

    #[tokio::test]
    async fn a_download_that_nobody_reads_ends_and_gives_its_place_back() {
        let temp = tempfile::NamedTempFile::new().unwrap();
        let length = (CHUNKS_AHEAD as u64 + 2) * CHUNK_BYTES as u64;
        temp.as_file().set_len(length).unwrap();
        let places = Arc::new(Semaphore::new(1));
        let permit = Arc::clone(&places).try_acquire_owned().unwrap();
        let file = File::open(temp.path()).await.unwrap();
        let body = FileBody::read(file, length, permit, Duration::from_millis(50));
        let freed = timeout(Duration::from_secs(30), places.acquire()).await;
        assert!(freed.is_ok(), "the place was not given back");
        drop(body);
    }

    #[tokio::test]
    async fn a_file_of_metadata_is_read_as_it_is_taken_and_has_a_place() {
        let temp = tempfile::NamedTempFile::new().unwrap();
        let length = 4 << 20;
        temp.as_file().set_len(length).unwrap();
        let places = Arc::new(Semaphore::new(1));
        let place = || Arc::clone(&places).try_acquire_owned();
        let send = |place| send_current(temp.path(), "application/json", length, place);
        let answer = send(place().unwrap()).await.unwrap().unwrap();
        let mut body = answer.into_body();
        let frame = poll_fn(|context| Pin::new(&mut body).poll_frame(context));
        let first = frame.await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first.len(), CHUNK_BYTES, "not all of it");
        assert!(place().is_err(), "its place is free while it is sent");
        drop(body);
        let freed = timeout(Duration::from_secs(30), Arc::clone(&places).acquire_owned()).await;
        let place = freed.expect("the place is given back").unwrap();
        temp.as_file().set_len(length + 1).unwrap();
        let over = send(place).await.unwrap_err().to_string();
        assert!(over.contains("over the limit of 4194304 bytes"), "{over}");
    }

    #[test]
    fn entity_tags_compare_weakly_and_in_lists() {
        assert!(lists("\"a\", W/\"b\"", "\"b\"") && lists("*", "\"b\""));
        assert!(!lists("\"a\"", "\"b\"") && !lists("b", "\"b\""));
    }
}
