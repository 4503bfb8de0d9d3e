//! Load for a server of the Open Inference Protocol: the models it is asked, what it is asked, and what that
//! took. Plain blocking sockets, a thread a connection: the client is the same whoever answers.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

pub use self::client::{Client, Encoding, Request};
pub use self::subject::Subject;

mod client;
pub mod install;
pub mod overhead;
mod subject;
pub mod throughput;

/// Where a model is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// HTTP over TCP.
    Http(SocketAddr),
    /// HTTP over a UNIX socket.
    Unix(PathBuf),
}

impl Address {
    /// `http` or `unix`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Http(_) => "http",
            Self::Unix(_) => "unix",
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("http", address)) => {
                let wrong = |e| format!("{address:?} is no ADDRESS:PORT: {e}");
                address.parse().map(Self::Http).map_err(wrong)
            }
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            _ => Err(format!("{text:?} is neither http:ADDRESS:PORT nor unix:PATH")),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(address) => write!(f, "http:{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_written_alike_and_a_wrong_one_is_named() {
        for text in ["http:127.0.0.1:80", "unix:/run/infer.sock"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in ["http:localhost", "unix:", "tcp:1.2.3.4:5", ""] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
