//! Frames as they come out of a stream: in pieces, or several at once.
//!
//! What is allocated follows what has arrived, never what a length claims.

use super::protocol::{FrameError, HEADER_BYTES, frame_length};

/// What is made room for at once.
const CHUNK_BYTES: usize = 64 << 10;

/// Bytes that were read, up to the next frame's end and perhaps beyond.
#[derive(Debug, Default)]
pub(super) struct Frames {
    bytes: Vec<u8>,
    /// Where the next frame begins.
    at: usize,
}

impl Frames {
    /// The body of the next frame, if all of it is there.
    ///
    /// # Errors
    /// A length over the limit.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, FrameError> {
        let Some(length) = self.length()? else {
            return Ok(None);
        };
        let body = self.at + HEADER_BYTES;
        let Some(end) = body.checked_add(length).filter(|&end| end <= self.bytes.len()) else {
            return Ok(None);
        };
        self.at = end;
        Ok(self.bytes.get(body..end))
    }

    /// Where bytes that arrive are appended, with room for some.
    pub(super) fn room(&mut self) -> &mut Vec<u8> {
        self.let_go();
        // As much again as has arrived, so that a long frame is copied a few times only.
        let more = self.bytes.len().max(CHUNK_BYTES);
        let missing = match self.length() {
            Ok(Some(length)) => (HEADER_BYTES + length).saturating_sub(self.bytes.len()),
            _ => 0,
        };
        let spare = self.bytes.capacity() - self.bytes.len();
        if spare < missing.clamp(1, CHUNK_BYTES) {
            self.bytes.reserve_exact(missing.clamp(CHUNK_BYTES.min(more), more));
        }
        &mut self.bytes
    }

    /// Why the stream may not end here; `None` between frames.
    pub(super) fn cut(&self) -> Option<FrameError> {
        let there = self.bytes.len() - self.at;
        let whole = match self.length() {
            Ok(Some(length)) => HEADER_BYTES + length,
            _ => HEADER_BYTES,
        };
        (there > 0).then(|| FrameError::Truncated { missing: whole.saturating_sub(there) })
    }

    /// The length of the next frame's body, if that much is known.
    fn length(&self) -> Result<Option<usize>, FrameError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        rest.first_chunk().map(|header| frame_length(*header)).transpose()
    }

    /// Forgets the frames that were taken, and the memory that a long one took.
    pub(super) fn let_go(&mut self) {
        if self.at == 0 {
            return;
        }
        let rest = self.bytes.len() - self.at;
        if self.bytes.capacity() > 2 * CHUNK_BYTES && rest <= CHUNK_BYTES {
            let mut fresh = Vec::with_capacity(CHUNK_BYTES.max(rest));
            fresh.extend_from_slice(&self.bytes[self.at..]);
            self.bytes = fresh;
        } else {
            self.bytes.drain(..self.at);
        }
        self.at = 0;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(body: &[u8]) -> Vec<u8> {
        [&u32::try_from(body.len()).unwrap().to_le_bytes()[..], body].concat()
    }

    #[test]
    fn a_length_alone_takes_no_memory() {
        let mut frames = Frames::default();
        frames.room().extend_from_slice(&(200_u32 << 20).to_le_bytes());
        assert!(frames.next().unwrap().is_none());
        assert!(frames.room().capacity() <= 4 * CHUNK_BYTES);
        let missing = frames.cut().unwrap();
        assert!(matches!(missing, FrameError::Truncated { missing } if missing == 200 << 20));
    }

    #[test]
    fn a_length_over_the_limit_is_refused() {
        let mut frames = Frames::default();
        frames.room().extend_from_slice(&[255; 4]);
        assert!(matches!(frames.next(), Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn the_memory_of_a_long_frame_is_let_go() {
        let mut frames = Frames::default();
        let long = frame(&vec![7; 3 << 20]);
        frames.room().extend_from_slice(&long);
        assert_eq!(frames.next().unwrap().unwrap().len(), 3 << 20);
        frames.let_go();
        assert!(frames.bytes.capacity() <= 2 * CHUNK_BYTES);
        assert!(frames.cut().is_none());
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_they_were_cut(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..6),
            cuts in proptest::collection::vec(1_usize..50, 1..20),
        ) {
            let stream: Vec<u8> = bodies.iter().flat_map(|body| frame(body)).collect();
            let (mut frames, mut out, mut rest) = (Frames::default(), Vec::new(), &stream[..]);
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                frames.room().extend_from_slice(now);
                while let Some(body) = frames.next().unwrap() {
                    out.push(body.to_vec());
                }
                prop_assert_eq!(frames.cut().is_none(), frames.at == frames.bytes.len());
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(out, bodies);
        }
    }
}
