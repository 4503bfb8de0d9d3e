//! UNIX sockets that wake their owner for what can be read, and for nothing else.
//!
//! The kernel reports a UNIX socket as writable each time the other end reads from it, so that whoever is
//! registered for both is woken once more for every message it sends. These write at once, which succeeds
//! unless the other end is behind, and are registered for writing only while it is.

use std::io::{self, IoSlice, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::buffer::spare_capacity;
use rustix::net::RecvFlags;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// The most that is read at once: the buffer is cleared before, for want of a way around that without
/// `unsafe` code.
const READ_BYTES: usize = 64 << 10;

/// A socket that is registered for reading, and for writing while there is no room.
#[derive(Debug)]
pub(super) struct Socket {
    stream: AsyncFd<UnixStream>,
    /// The same socket, while a write waits for room.
    waiting: Option<AsyncFd<UnixStream>>,
}

impl Socket {
    /// Takes over a stream; within a runtime.
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let stream = registered(stream, Interest::READABLE)?;
        Ok(Self { stream, waiting: None })
    }

    /// Says to the other end that nothing comes any more, and that nothing is read.
    pub(super) fn close(&self) {
        // A failure means that the other end is closed already.
        let _ = self.stream.get_ref().shutdown(Shutdown::Both);
    }

    /// Sends all of the pieces, one after the other.
    pub(super) async fn send(&mut self, pieces: &[impl AsRef<[u8]>]) -> io::Result<()> {
        let mut slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece.as_ref())).collect();
        let mut rest = &mut slices[..];
        // Leaves out what is empty.
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            let write = |mut stream: &UnixStream| match &*rest {
                [one] => stream.write(one),
                more => stream.write_vectored(more),
            };
            let sent = std::future::poll_fn(|cx| self.poll_send(cx, write)).await?;
            if sent == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            IoSlice::advance_slices(&mut rest, sent);
        }
        self.waiting = None;
        Ok(())
    }

    /// Appends what has arrived to `bytes`, which must have room; at least one byte, but for the end.
    pub(super) async fn receive(&mut self, bytes: &mut Vec<u8>) -> io::Result<usize> {
        loop {
            let mut ready = self.stream.readable().await?;
            let room = bytes.capacity() - bytes.len();
            let stream = ready.get_inner();
            match rustix::net::recv(stream, spare_capacity(bytes), RecvFlags::DONTWAIT) {
                Ok((got, _)) => {
                    // More would have been taken, had it been there; what comes wakes again.
                    if got < room {
                        ready.clear_ready();
                    }
                    return Ok(got);
                }
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&UnixStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let waiting = match &self.waiting {
            Some(waiting) => waiting,
            None => {
                match write(self.stream.get_ref()) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    done => return Poll::Ready(done),
                }
                let twin = self.stream.get_ref().try_clone()?;
                &*self.waiting.insert(registered(twin, Interest::WRITABLE)?)
            }
        };
        loop {
            let mut ready = ready!(waiting.poll_write_ready(cx))?;
            match ready.try_io(|stream| write(stream.get_ref())) {
                Ok(done) => return Poll::Ready(done),
                Err(_not_yet) => {}
            }
        }
    }
}

/// What is deprecated about it is that a type may close its descriptor while it is registered; a stream of the
/// standard library holds its own open for as long as it lives, and is never taken out again here.
#[allow(deprecated)]
fn registered(stream: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    AsyncFd::with_interest(stream, interest)
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let room = buffer.remaining().min(READ_BYTES);
        loop {
            let mut ready = ready!(this.stream.poll_read_ready(cx))?;
            let bytes = buffer.initialize_unfilled_to(room);
            match rustix::net::recv(this.stream.get_ref(), bytes, RecvFlags::DONTWAIT) {
                Ok((got, _)) => {
                    if got < room {
                        ready.clear_ready();
                    }
                    buffer.advance(got);
                    return Poll::Ready(Ok(()));
                }
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, |mut stream| stream.write(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, |mut stream| stream.write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // All that was to be said is said.
        self.waiting = None;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.stream.get_ref().shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn pair() -> (Socket, Socket) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Socket::new(ours).unwrap(), Socket::new(theirs).unwrap())
    }

    #[tokio::test]
    async fn more_than_fits_is_sent_while_it_is_read_and_nothing_waits_afterwards() {
        let (mut ours, mut theirs) = pair();
        let long: Vec<u8> = (0..4_u32 << 20).map(|n| n.to_le_bytes()[1]).collect();
        let expected = long.clone();
        let reading = tokio::spawn(async move {
            let mut got = Vec::with_capacity(1 << 20);
            while got.len() < expected.len() {
                got.reserve(1 << 16);
                assert!(theirs.receive(&mut got).await.unwrap() > 0);
            }
            assert!(got == expected);
            theirs
        });
        ours.send(&[&long[..5], &[], &long[5..]]).await.unwrap();
        assert!(ours.waiting.is_none());
        let mut theirs = reading.await.unwrap();
        theirs.write_all(b"done").await.unwrap();
        theirs.flush().await.unwrap();
        let mut word = [0; 4];
        ours.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"done");
    }

    #[tokio::test]
    async fn a_stream_in_pieces_is_read_to_its_end() {
        let (ours, mut theirs) = pair();
        let mut ours = tokio::io::BufReader::with_capacity(7, ours);
        let sending = tokio::spawn(async move {
            for _ in 0..1000 {
                theirs.write_all(b"piece").await.unwrap();
                tokio::task::yield_now().await;
            }
            theirs.shutdown().await.unwrap();
            theirs
        });
        let mut all = String::new();
        ours.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "piece".repeat(1000));
        drop(sending.await.unwrap());
    }

    #[tokio::test]
    async fn a_closed_socket_ends_the_other_ends_reading_and_writing() {
        let (ours, mut theirs) = pair();
        ours.close();
        let mut rest = Vec::with_capacity(8);
        assert_eq!(theirs.receive(&mut rest).await.unwrap(), 0);
        assert_eq!(theirs.send(&[b"late"]).await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
