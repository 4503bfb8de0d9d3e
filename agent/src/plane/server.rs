//! Listens on TCP and on a UNIX socket, with the same routes on both.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout_at};

use super::instance::until;
use super::socket::Socket;
use super::write_timeout::WriteTimeout;
use super::{Endpoints, PlaneConfig, PlaneError};

/// The most connections at once to one listener; further ones wait to be accepted. Each listener has
/// its own, so that a crowd on the network leaves the local socket open.
const MAX_CONNECTIONS: usize = 256;
/// How long a connection may take to send a request's head, idle time included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// How long the client of an answer may read nothing of it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// The wait after a failed accept, which is usually for want of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// Who may connect to the UNIX socket: the owner and the group.
const SOCKET_MODE: u32 = 0o660;

#[derive(Debug)]
pub(super) struct Servers {
    endpoints: Endpoints,
    stop: watch::Sender<bool>,
    listeners: Mutex<JoinSet<()>>,
    aborts: Vec<AbortHandle>,
}

impl Servers {
    pub(super) async fn start(cfg: &PlaneConfig, router: Router) -> Result<Self, PlaneError> {
        let (stop, stopped) = watch::channel(false);
        let serving = Serving { router, stopped };
        let mut listeners = JoinSet::new();
        let mut aborts = Vec::new();
        let mut endpoints = Endpoints { http: None, unix: None };
        if let Some(address) = cfg.http {
            let bind = |source| bind_error(address.to_string(), source);
            let listener = TcpListener::bind(address).await.map_err(bind)?;
            endpoints.http = Some(listener.local_addr().map_err(bind)?);
            aborts.push(listeners.spawn(serving.clone().accept(listener)));
        }
        if let Some(path) = &cfg.unix {
            let path = cfg.run_dir.join(path);
            let listener = bind_unix(&path)
                .map_err(|source| bind_error(path.display().to_string(), source))?;
            endpoints.unix = Some(path);
            aborts.push(listeners.spawn(serving.accept(listener)));
        }
        Ok(Self { endpoints, stop, listeners: Mutex::new(listeners), aborts })
    }

    pub(super) fn endpoints(&self) -> Endpoints {
        self.endpoints.clone()
    }

    /// Stops to accept and waits until every connection has had its answer, at most until `end`.
    pub(super) async fn drain(&self, end: Instant) {
        self.stop.send_replace(true);
        let mut listeners = {
            let mut held = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *held)
        };
        let all = async { while listeners.join_next().await.is_some() {} };
        if timeout_at(end, all).await.is_err() {
            listeners.abort_all();
        }
        self.remove_socket();
    }

    fn remove_socket(&self) {
        if let Some(path) = &self.endpoints.unix {
            // It is gone already when the plane was drained before.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.aborts.iter().for_each(AbortHandle::abort);
        self.remove_socket();
    }
}

trait Accept: Send + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.accept().await?;
        // Answers are written whole; there is nothing to coalesce.
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl Accept for UnixListener {
    type Stream = Socket;

    async fn next(&self) -> io::Result<Socket> {
        let (stream, _) = self.accept().await?;
        Socket::new(stream.into_std()?)
    }
}

#[derive(Clone)]
struct Serving {
    router: Router,
    stopped: watch::Receiver<bool>,
}

impl Serving {
    /// Accepts until stopped, then waits for the connections that are open.
    async fn accept(mut self, listener: impl Accept) {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let accepted = tokio::select! {
                biased;
                () = until(&mut self.stopped) => break,
                accepted = admit(&listener, permits.clone()) => accepted,
            };
            match accepted {
                Ok((stream, permit)) => {
                    connections.spawn(self.clone().connection(stream, permit));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_RETRY).await;
                }
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    async fn connection(
        mut self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        _permit: OwnedSemaphorePermit,
    ) {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(
                TokioIo::new(WriteTimeout::new(stream, WRITE_TIMEOUT)),
                TowerToHyperService::new(self.router.clone()),
            );
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = until(&mut self.stopped) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "connection ended");
        }
    }
}

async fn admit<L: Accept>(
    listener: &L,
    permits: Arc<Semaphore>,
) -> io::Result<(L::Stream, OwnedSemaphorePermit)> {
    let permit = permits.acquire_owned().await.map_err(io::Error::other)?;
    Ok((listener.next().await?, permit))
}

fn bind_error(address: String, source: io::Error) -> PlaneError {
    PlaneError::Bind { address, source }
}

/// Replaces a socket that nobody listens on any more, and nothing else.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    remove_stale(path)?;
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
    Ok(listener)
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(found) if !found.file_type().is_socket() => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "something that is not a socket is there",
        )),
        Ok(_) => match StdUnixStream::connect(path) {
            Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there")),
            Err(_) => std::fs::remove_file(path),
        },
    }
}
