//! Bounds the memory that requests take, from before they are read until they are answered: the body
//! as it comes, and the tensors that are made of it.
//!
//! Without it, memory would be bounded by connections times `max_request_bytes`, which is far more
//! than a small board has.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The unit in which requests are counted.
const UNIT_BYTES: usize = 1 << 10;

/// Room for so many bytes.
#[derive(Debug, Clone)]
pub(super) struct Buffers {
    room: Arc<Semaphore>,
    units: usize,
}

/// There is no room for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoRoom {
    /// Not now.
    #[error("requests already take the {kib} KiB that max_buffered_bytes allows")]
    Full {
        /// The limit.
        kib: usize,
    },
    /// Never.
    #[error("a request that takes {bytes} bytes is over the {kib} KiB of max_buffered_bytes")]
    TooLarge {
        /// What it would take.
        bytes: usize,
        /// The limit.
        kib: usize,
    },
}

/// Room that was taken; it is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Room(OwnedSemaphorePermit);

impl Room {
    /// Gives back what is more than so many bytes need.
    pub(super) fn shrink(&mut self, bytes: usize) {
        let more = self.0.num_permits().saturating_sub(units(bytes));
        drop(self.0.split(more));
    }
}

impl Buffers {
    pub(super) fn new(max_buffered_bytes: usize) -> Self {
        let units = units(max_buffered_bytes).min(Semaphore::MAX_PERMITS);
        Self { room: Arc::new(Semaphore::new(units)), units }
    }

    /// Takes room for a request.
    pub(super) fn take(&self, bytes: usize) -> Result<Room, NoRoom> {
        self.take_beside(0, bytes)
    }

    /// Takes more room for a request that holds some already.
    pub(super) fn take_beside(&self, held: usize, bytes: usize) -> Result<Room, NoRoom> {
        let kib = self.units;
        let together = units(bytes).saturating_add(held.div_ceil(UNIT_BYTES));
        let wanted = u32::try_from(units(bytes)).ok().filter(|_| together <= kib);
        let wanted = wanted.ok_or(NoRoom::TooLarge { bytes: bytes.saturating_add(held), kib })?;
        let taken = self.room.clone().try_acquire_many_owned(wanted);
        taken.map(Room).map_err(|_| NoRoom::Full { kib })
    }
}

fn units(bytes: usize) -> usize {
    bytes.div_ceil(UNIT_BYTES).max(1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn room_is_taken_by_size_and_given_back() {
        let buffers = Buffers::new(32 << 10);
        let mut held: Vec<_> = (0..4).map(|_| buffers.take(8 << 10).unwrap()).collect();
        assert_eq!(buffers.take(0).unwrap_err(), NoRoom::Full { kib: 32 });
        held[0].shrink(3 << 10);
        assert!(buffers.take(6 << 10).is_err());
        drop(buffers.take(5 << 10).unwrap());
        drop(held);
        let small: Vec<_> = (0..32).map(|_| buffers.take(100).unwrap()).collect();
        assert!(buffers.take(1).is_err());
        drop(small);
        let never = buffers.take(usize::MAX).unwrap_err();
        assert_eq!(never, NoRoom::TooLarge { bytes: usize::MAX, kib: 32 });
        let body = buffers.take(2 << 10).unwrap();
        assert!(matches!(buffers.take_beside(2 << 10, 31 << 10), Err(NoRoom::TooLarge { .. })));
        drop(buffers.take_beside(2 << 10, 30 << 10).unwrap());
        drop(body);
        drop(buffers.take(32 << 10).unwrap());
    }

    #[test]
    fn no_configuration_overflows() {
        drop(Buffers::new(usize::MAX).take(1 << 30).unwrap());
        drop(Buffers::new(0).take(0).unwrap());
    }
}
