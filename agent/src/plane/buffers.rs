//! Bounds the memory that request bodies take, from before they are read until they are answered.
//!
//! Without it, memory would be bounded by connections times `max_request_bytes`, which is far more
//! than a small board has.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The unit in which bodies are counted.
const UNIT_BYTES: usize = 1 << 10;
/// Bodies of full size beyond those that a model's queue holds: one that is computed, one that is
/// being read.
const BEYOND_QUEUE: usize = 2;

/// Room for as many bodies of full size as one model's queue may hold, and two; for many more
/// small ones.
#[derive(Debug)]
pub(super) struct Buffers {
    room: Arc<Semaphore>,
    units: usize,
}

/// There is no room for a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("request bodies already take the {kib} KiB that queue_depth and max_request_bytes allow")]
pub(super) struct BuffersFull {
    kib: usize,
}

impl Buffers {
    pub(super) fn new(queue_depth: usize, max_request_bytes: usize) -> Self {
        let units = queue_depth
            .saturating_add(BEYOND_QUEUE)
            .saturating_mul(max_request_bytes.div_ceil(UNIT_BYTES).max(1))
            .min(Semaphore::MAX_PERMITS);
        Self { room: Arc::new(Semaphore::new(units)), units }
    }

    /// Takes room for a body until the result is dropped.
    pub(super) fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, BuffersFull> {
        let full = BuffersFull { kib: self.units };
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES).max(1)).map_err(|_| full)?;
        self.room.clone().try_acquire_many_owned(units).map_err(|_| full)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn room_is_taken_by_size_and_given_back() {
        let buffers = Buffers::new(2, 8 << 10);
        let held: Vec<_> = (0..4).map(|_| buffers.take(8 << 10).unwrap()).collect();
        assert_eq!(buffers.take(0).unwrap_err(), BuffersFull { kib: 32 });
        drop(held);
        let small: Vec<_> = (0..32).map(|_| buffers.take(100).unwrap()).collect();
        assert!(buffers.take(1).is_err());
        drop(small);
        assert!(buffers.take(usize::MAX).is_err());
        drop(buffers.take(32 << 10).unwrap());
    }

    #[test]
    fn no_configuration_overflows() {
        drop(Buffers::new(usize::MAX, usize::MAX).take(1 << 30).unwrap());
        drop(Buffers::new(0, 0).take(0).unwrap());
    }
}
