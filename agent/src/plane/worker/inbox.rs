//! The orders as they come over the socket.
//!
//! Waits for what can be read and for nothing else: a thread that sleeps in `recv` on a UNIX socket is also
//! woken each time the other end reads what was sent to it.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::super::frames::Frames;
use super::super::protocol::{FrameError, Message};

/// Reads frames, on the thread that waits for them.
pub(super) struct Inbox {
    socket: UnixStream,
    poll: Poll,
    events: Events,
    frames: Frames,
    /// Nothing is left to be read until the socket says so.
    drained: bool,
    /// The other end has closed. That may have been told together with data, and is not told twice.
    closed: bool,
}

impl Inbox {
    pub(super) fn new(socket: UnixStream) -> io::Result<Self> {
        let poll = Poll::new()?;
        let fd = socket.as_raw_fd();
        poll.registry().register(&mut SourceFd(&fd), Token(0), Interest::READABLE)?;
        let events = Events::with_capacity(1);
        Ok(Self { socket, poll, events, frames: Frames::default(), drained: false, closed: false })
    }

    /// Waits for the next message; `None` when the stream ends between frames.
    ///
    /// # Errors
    /// What came is no message, or the socket failed.
    pub(super) fn next(&mut self) -> Result<Option<Message>, FrameError> {
        loop {
            if let Some(message) = self.frames.next()?.map(Message::decode) {
                self.frames.let_go();
                return message.map(Some);
            }
            if self.receive()? == 0 {
                return self.frames.cut().map_or(Ok(None), Err);
            }
        }
    }

    fn receive(&mut self) -> io::Result<usize> {
        loop {
            if self.drained {
                match self.poll.poll(&mut self.events, None) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    polled => polled?,
                }
                self.closed |= self.events.iter().any(mio::event::Event::is_read_closed);
                self.drained = false;
            }
            let bytes = self.frames.room();
            let room = bytes.capacity() - bytes.len();
            match rustix::net::recv(&self.socket, spare_capacity(bytes), RecvFlags::DONTWAIT) {
                Ok((got, _)) => {
                    // What comes after a read that did not fill its room wakes the poll.
                    self.drained = got < room && !self.closed;
                    return Ok(got);
                }
                Err(Errno::AGAIN) => self.drained = true,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
