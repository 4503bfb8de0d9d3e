//! The listener: how many connections there are, and how long each may keep it waiting.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::ConnectInfo;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// Connections at once; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 512;
/// The wait after a failed accept, which is usually for want of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// How long a peer may keep the server waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Patience {
    /// For the head of a request, idle time before it included.
    pub(super) head: Duration,
    /// For the next bytes, while a request's body is read or an answer is written.
    pub(super) stall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { head: Duration::from_secs(30), stall: Duration::from_secs(60) }
    }
}

/// Serves until the task is dropped, and every connection with it.
pub(super) async fn serve(listener: TcpListener, router: Router, patience: Patience) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let router = router.clone();
        connections.spawn(async move {
            let _permit = permit;
            if let Err(error) = connection(stream, peer, router, patience).await {
                tracing::debug!(%peer, %error, "connection ended");
            }
        });
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    patience: Patience,
) -> hyper::Result<()> {
    let router = router.layer(Extension(ConnectInfo(peer)));
    let stream = TokioIo::new(Paced::new(stream, patience.stall));
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.head)
        .serve_connection(stream, TowerToHyperService::new(router))
        .await
}

/// A stream whose writes fail once the peer has taken nothing for a while. Reads are left alone: an
/// idle peer is hyper's to judge.
struct Paced {
    stream: TcpStream,
    stall: Duration,
    /// Running while a write waits.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Paced {
    fn new(stream: TcpStream, stall: Duration) -> Self {
        Self { stream, stall, deadline: None }
    }

    /// Passes on what a write came to, or ends one that has waited too long.
    fn paced<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.deadline = None;
            return written;
        }
        let end = Instant::now() + self.stall;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep_until(end)));
        if deadline.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        let why = format!("the peer took nothing for {:?}", self.stall);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)))
    }
}

impl AsyncRead for Paced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Paced {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.paced(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.paced(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.paced(context, shut)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, buffers);
        self.paced(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Mutex;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::oneshot;
    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    async fn start(router: Router, patience: Patience) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, router, patience));
        address
    }

    #[tokio::test]
    async fn a_peer_that_says_nothing_or_half_a_head_is_dropped() {
        let patience = Patience { head: Duration::from_millis(50), stall: LONG };
        let address = start(Router::new(), patience).await;
        for said in ["", "GET / HTTP/1.1\r\nHos"] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(said.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            let ended = timeout(LONG, stream.read_to_end(&mut answer)).await;
            assert!(ended.is_ok(), "still connected after {said:?}");
        }
    }

    /// Tells when it is dropped: with the connection.
    struct Told(Option<oneshot::Sender<()>>);

    impl Drop for Told {
        fn drop(&mut self) {
            let _ = self.0.take().map(|sender| sender.send(()));
        }
    }

    #[tokio::test]
    async fn a_peer_that_takes_no_bytes_of_its_answer_is_dropped() {
        let (sender, ended) = oneshot::channel();
        let told = Arc::new(Mutex::new(Some(Told(Some(sender)))));
        let answer = move || {
            let told = told.lock().unwrap().take();
            async move {
                // Far more than the buffers of both sockets take.
                let chunk = bytes::Bytes::from(vec![0; 1 << 20]);
                let body = Endless { chunk, _told: told };
                axum::body::Body::new(body)
            }
        };
        let patience = Patience { head: LONG, stall: Duration::from_millis(50) };
        let address = start(Router::new().route("/", get(answer)), patience).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert!(timeout(LONG, ended).await.is_ok(), "the answer still waits");
        drop(stream);
    }

    struct Endless {
        chunk: bytes::Bytes,
        _told: Option<Told>,
    }

    impl hyper::body::Body for Endless {
        type Data = bytes::Bytes;
        type Error = io::Error;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<hyper::body::Frame<bytes::Bytes>, io::Error>>> {
            Poll::Ready(Some(Ok(hyper::body::Frame::data(self.chunk.clone()))))
        }
    }
}
