//! Compressed bodies: `gzip` and `deflate`, each way.

use std::io::{self, Read, Write};

use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use bytes::Bytes;
use flate2::Compression;
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};

use super::error::OipError;

/// Answers shorter than this are not worth the work of either side.
const LEAST_COMPRESSED: usize = 1 << 10;

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    /// In the format of zlib, as HTTP has it.
    Deflate,
}

impl Coding {
    fn named(name: &str) -> Option<Self> {
        match name {
            "gzip" | "x-gzip" => Some(Self::Gzip),
            "deflate" => Some(Self::Deflate),
            _ => None,
        }
    }

    /// Its name in headers.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }

    /// How a request's body is compressed; `None` if it is not.
    pub(super) fn of_request(headers: &HeaderMap) -> Result<Option<Self>, OipError> {
        let mut lines = headers.get_all(header::CONTENT_ENCODING).iter();
        let Some(name) = lines.next() else { return Ok(None) };
        let name = name.to_str().ok().filter(|_| lines.next().is_none());
        let name = name.map(|name| name.trim().to_ascii_lowercase());
        let coding = match name.as_deref() {
            Some("" | "identity") => return Ok(None),
            name => name.and_then(Self::named),
        };
        coding.map(Some).ok_or_else(|| {
            OipError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "this Content-Encoding is not served; gzip and deflate are, one at a time",
            )
        })
    }

    /// The first coding that a client names in `Accept-Encoding` and does not forbid. None is chosen for `*`: a
    /// device does not compress for who does not ask.
    pub(super) fn of_answer(headers: &HeaderMap) -> Option<Self> {
        let accepted = text(headers, header::ACCEPT_ENCODING)?.to_ascii_lowercase();
        accepted.split(',').find_map(|item| {
            let (name, parameters) = item.split_once(';').unwrap_or((item, ""));
            let weight = parameters.trim().strip_prefix("q=").map(str::trim);
            let forbidden = weight.is_some_and(|q| q.parse().is_ok_and(|q: f32| q <= 0.0));
            Self::named(name.trim()).filter(|_| !forbidden)
        })
    }

    /// How long a request's body was, which may be at most `max_bytes`. Nothing of it is held.
    pub(super) fn plain_length(self, body: &[u8], max_bytes: usize) -> Result<usize, OipError> {
        let mut counted = Count(0);
        let read = self.decode_to(body, max_bytes, &mut counted);
        if counted.0 > max_bytes {
            return Err(OipError::too_large(max_bytes));
        }
        read.map(|()| counted.0)
            .map_err(|e| OipError::bad(format!("the body is not valid {}: {e}", self.name())))
    }

    /// A request's body as it was, `length` bytes long.
    pub(super) fn decode(self, body: &[u8], length: usize) -> Result<Bytes, OipError> {
        let mut plain = Vec::with_capacity(length);
        self.decode_to(body, length, &mut plain)
            .map_err(|e| OipError::bad(format!("the body is not valid {}: {e}", self.name())))?;
        Ok(plain.into())
    }

    /// Writes at most one byte more than `most`.
    fn decode_to(self, body: &[u8], most: usize, to: &mut impl Write) -> io::Result<()> {
        let most = (most as u64).saturating_add(1);
        match self {
            Self::Gzip => io::copy(&mut MultiGzDecoder::new(body).take(most), to),
            Self::Deflate => io::copy(&mut ZlibDecoder::new(body).take(most), to),
        }
        .map(drop)
    }

    /// An answer's body compressed; `None` for one that is not worth it.
    pub(super) fn encode(self, body: &[u8]) -> Option<Vec<u8>> {
        if body.len() < LEAST_COMPRESSED {
            return None;
        }
        let compressed = match self {
            Self::Gzip => written(GzEncoder::new(Vec::new(), Compression::fast()), body)
                .and_then(GzEncoder::finish),
            Self::Deflate => written(ZlibEncoder::new(Vec::new(), Compression::fast()), body)
                .and_then(ZlibEncoder::finish),
        };
        // Writing to memory does not fail.
        compressed.ok().filter(|compressed| compressed.len() < body.len())
    }
}

/// Counts what is written to it.
struct Count(usize);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn written<W: Write>(mut to: W, body: &[u8]) -> io::Result<W> {
    to.write_all(body)?;
    Ok(to)
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(name: HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn bodies_survive_both_codings() {
        let body: Vec<u8> = (0..5000_u32).map(|i| (i / 50) as u8).collect();
        for coding in [Coding::Gzip, Coding::Deflate] {
            let packed = coding.encode(&body).unwrap();
            assert!(packed.len() < body.len() / 4);
            let length = |packed: &[u8], most| coding.plain_length(packed, most);
            assert_eq!(length(&packed, body.len()).unwrap(), body.len());
            assert_eq!(coding.decode(&packed, body.len()).unwrap(), body);
            let error = length(&packed, body.len() - 1).unwrap_err();
            assert_eq!(error.status(), StatusCode::PAYLOAD_TOO_LARGE);
            let error = length(&packed[..packed.len() - 5], body.len()).unwrap_err();
            assert_eq!(error.status(), StatusCode::BAD_REQUEST);
            assert!(length(b"plain", 100).unwrap_err().message().contains(coding.name()));
            assert!(coding.encode(&body[..100]).is_none());
        }
    }

    #[test]
    fn the_coding_of_a_request_is_served_or_refused() {
        let of = |value| Coding::of_request(&headers(header::CONTENT_ENCODING, value));
        assert_eq!(of("gzip").unwrap(), Some(Coding::Gzip));
        assert_eq!(of("Deflate").unwrap(), Some(Coding::Deflate));
        assert_eq!(of("identity").unwrap(), None);
        for other in ["br", "gzip, gzip"] {
            assert_eq!(of(other).unwrap_err().status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
        }
        let mut twice = headers(header::CONTENT_ENCODING, "gzip");
        twice.append(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        assert!(Coding::of_request(&twice).is_err());
    }

    #[test]
    fn an_answer_takes_the_first_coding_that_is_named_and_not_forbidden() {
        let of = |value| Coding::of_answer(&headers(header::ACCEPT_ENCODING, value));
        assert_eq!(of("br, gzip;q=0.5, deflate"), Some(Coding::Gzip));
        assert_eq!(of("gzip;q=0, deflate"), Some(Coding::Deflate));
        assert_eq!([of("*"), of("identity"), of("gzip; q=0.0")], [None; 3]);
        assert_eq!(Coding::of_answer(&HeaderMap::new()), None);
    }
}
