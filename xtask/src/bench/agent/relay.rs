//! A relay in front of the broker that counts the bytes in each direction.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, Result};

/// How much is passed on at once.
const CHUNK_BYTES: usize = 16 << 10;

/// What has gone through so far: the payload of TCP, without the headers below it.
#[derive(Debug, Default)]
pub(super) struct Counted {
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
}

/// Relays from a free port, which it returns, to `to`, until this process ends.
pub(super) fn start(to: SocketAddr) -> Result<(u16, Arc<Counted>)> {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port for the counting relay")?;
    let port = listener.local_addr()?.port();
    let counted = Arc::new(Counted::default());
    let counting = counted.clone();
    thread::spawn(move || {
        for client in listener.incoming().filter_map(Result::ok) {
            // A connection that cannot be passed on is closed, and the client sees that.
            let _ = relay(client, to, &counting);
        }
    });
    Ok((port, counted))
}

fn relay(client: TcpStream, to: SocketAddr, counted: &Arc<Counted>) -> std::io::Result<()> {
    let server = TcpStream::connect(to)?;
    let (client_in, server_in) = (client.try_clone()?, server.try_clone()?);
    let (there, back) = (counted.clone(), counted.clone());
    thread::spawn(move || pass(client_in, server, &there.sent));
    thread::spawn(move || pass(server_in, client, &back.received));
    Ok(())
}

fn pass(mut from: TcpStream, mut to: TcpStream, count: &AtomicU64) {
    let mut chunk = [0; CHUNK_BYTES];
    while let Ok(got @ 1..) = from.read(&mut chunk) {
        count.fetch_add(got as u64, Ordering::Relaxed);
        if to.write_all(&chunk[..got]).is_err() {
            break;
        }
    }
    // Either side may be gone already.
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_are_counted() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (port, counted) = start(server.local_addr().unwrap()).unwrap();
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let (mut end, _) = server.accept().unwrap();
        client.write_all(b"hello").unwrap();
        end.read_exact(&mut [0; 5]).unwrap();
        end.write_all(b"you").unwrap();
        client.read_exact(&mut [0; 3]).unwrap();
        assert_eq!(counted.sent.load(Ordering::Relaxed), 5);
        assert_eq!(counted.received.load(Ordering::Relaxed), 3);
    }
}
