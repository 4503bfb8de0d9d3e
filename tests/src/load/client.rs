//! One keep-alive connection, and the request that it repeats.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use runtime::Tensor;
use serde_json::json;

use super::{Address, Subject};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest answer.
const MAX_ANSWER_BYTES: usize = 16 << 20;
/// How much is read at once.
const CHUNK_BYTES: usize = 64 << 10;

/// How tensors travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// As numbers in JSON, both ways.
    Json,
    /// As bytes behind the JSON, both ways: the protocol's binary extension.
    Binary,
}

impl FromStr for Encoding {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "json" => Ok(Self::Json),
            "binary" => Ok(Self::Binary),
            _ => Err(format!("{text:?} is neither json nor binary")),
        }
    }
}

/// A request, ready to be written: head and body in one piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request(Vec<u8>);

impl Request {
    /// Asks `model` its one question.
    ///
    /// # Errors
    /// None that a known model brings.
    pub fn new(model: &Subject, encoding: Encoding) -> Result<Self> {
        let (name, input) = model.input()?;
        let (body, header_length) = match encoding {
            Encoding::Json => (json_body(name, &input).into_bytes(), None),
            Encoding::Binary => {
                let mut body = binary_head(name, &input).into_bytes();
                let length = body.len();
                body.extend_from_slice(&input.data);
                (body, Some(length))
            }
        };
        let kind = match header_length {
            None => "Content-Type: application/json\r\n".to_owned(),
            Some(length) => format!(
                "Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {length}\r\n"
            ),
        };
        let mut bytes = format!(
            "POST /v2/models/{}/infer HTTP/1.1\r\nHost: bench\r\n{kind}Content-Length: {}\r\n\r\n",
            model.name(),
            body.len()
        )
        .into_bytes();
        bytes.extend_from_slice(&body);
        Ok(Self(bytes))
    }
}

fn json_body(name: &str, input: &Tensor) -> String {
    let data: Vec<f32> = input
        .data
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        .collect();
    let tensor = json!({
        "name": name, "datatype": input.dtype.oip_name(), "shape": input.shape, "data": data,
    });
    json!({ "inputs": [tensor] }).to_string()
}

fn binary_head(name: &str, input: &Tensor) -> String {
    let tensor = json!({
        "name": name, "datatype": input.dtype.oip_name(), "shape": input.shape,
        "parameters": { "binary_data_size": input.data.len() },
    });
    json!({ "inputs": [tensor], "parameters": { "binary_data_output": true } }).to_string()
}

/// A stream that the client holds open.
trait Stream: Read + Write + Send {}

impl<S: Read + Write + Send> Stream for S {}

/// One connection.
pub struct Client {
    stream: Box<dyn Stream>,
    /// What is read at once. Made once: to clear it for each answer would cost as much as to ask for it.
    chunk: Box<[u8]>,
    /// What was read; answers begin at its beginning.
    buffer: Vec<u8>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(at: &Address) -> Result<Self> {
        let wrong = || format!("cannot connect to {at}");
        let stream: Box<dyn Stream> = match at {
            Address::Http(address) => {
                let stream = TcpStream::connect(address).with_context(wrong)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                Box::new(stream)
            }
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).with_context(wrong)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                Box::new(stream)
            }
        };
        Ok(Self { stream, chunk: vec![0; CHUNK_BYTES].into(), buffer: Vec::new() })
    }

    /// Asks and waits; the answer's body.
    ///
    /// # Errors
    /// The connection broke, no answer came within 30 s, or it is not 200: then its text.
    pub fn ask(&mut self, request: &Request) -> Result<&[u8]> {
        self.stream.write_all(&request.0).context("cannot send the request")?;
        self.buffer.clear();
        loop {
            let got = self.stream.read(&mut self.chunk).context("no answer")?;
            ensure!(got > 0, "the server closed the connection before its answer was whole");
            self.buffer.extend_from_slice(&self.chunk[..got]);
            ensure!(
                self.buffer.len() <= MAX_ANSWER_BYTES,
                "an answer over {MAX_ANSWER_BYTES} bytes"
            );
            let Some(head) = head_of(&self.buffer)? else { continue };
            if self.buffer.len() < head.bytes + head.body_bytes {
                continue;
            }
            let body = &self.buffer[head.bytes..];
            if head.status != 200 {
                bail!("status {}: {}", head.status, String::from_utf8_lossy(body));
            }
            return Ok(body);
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Head {
    bytes: usize,
    body_bytes: usize,
    status: u16,
}

/// The head of an answer, once it is there.
fn head_of(bytes: &[u8]) -> Result<Option<Head>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&bytes[..end]).context("the answer's head is no text")?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .context("an answer without Content-Length")?;
    Ok(Some(Head {
        bytes: end + 4,
        body_bytes: length.1.trim().parse().context("Content-Length is no number")?,
        status: status.parse().with_context(|| format!("{text:?} is no answer of HTTP"))?,
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A server that answers one request with each of `pieces` written by itself.
    fn answering(pieces: &'static [&'static str]) -> Address {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            let mut asked = [0; 4096];
            assert!(stream.read(&mut asked).unwrap() > 0);
            for piece in pieces {
                stream.write_all(piece.as_bytes()).unwrap();
            }
        });
        Address::Http(address)
    }

    fn ask(pieces: &'static [&'static str]) -> Result<Vec<u8>> {
        let request = Request::new(&Subject::Tiny, Encoding::Json)?;
        Client::connect(&answering(pieces))?.ask(&request).map(<[u8]>::to_vec)
    }

    #[test]
    fn an_answer_in_pieces_is_put_together() {
        let whole = ask(&["HTTP/1.1 200 OK\r\ncontent-le", "ngth: 4\r\n\r\nab", "cd"]).unwrap();
        assert_eq!(whole, b"abcd");
    }

    #[test]
    fn a_refusal_and_a_torn_answer_are_errors_that_say_so() {
        let refused = ask(&["HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno"]).unwrap_err();
        assert_eq!(refused.to_string(), "status 404: no");
        let torn = ask(&["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nno"]).unwrap_err();
        assert!(torn.to_string().contains("before its answer was whole"), "{torn}");
    }

    #[test]
    fn a_binary_request_tells_where_its_json_ends() {
        let Request(bytes) = Request::new(&Subject::Tiny, Encoding::Binary).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let length: usize = head
            .lines()
            .find_map(|line| line.strip_prefix("Inference-Header-Content-Length: "))
            .unwrap()
            .parse()
            .unwrap();
        assert!(body[..length].ends_with('}'));
        assert!(head.contains(&format!("Content-Length: {}", length + 16 * 4)));
    }
}
