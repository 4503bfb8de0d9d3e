//! String tensors as bytes: each element is a little-endian `u32` length and so many bytes of UTF-8, as the Open
//! Inference Protocol has them.

use std::borrow::Cow;

use engine::{ElementType, Tensor};

/// What one element takes in memory beside its bytes: itself, and what an allocation takes at least.
pub(super) const ELEMENT_BYTES: usize = size_of::<String>() + 32;
const LENGTH_BYTES: usize = size_of::<u32>();

/// A tensor's elements as bytes: its own, or those of its strings.
pub(super) fn bytes_of(tensor: &Tensor) -> Cow<'_, [u8]> {
    if tensor.dtype != ElementType::String {
        return Cow::Borrowed(&tensor.data);
    }
    let mut bytes = Vec::with_capacity(byte_len(tensor));
    for string in &tensor.strings {
        put(&mut bytes, string);
    }
    Cow::Owned(bytes)
}

/// How many bytes [`bytes_of`] gives.
pub(super) fn byte_len(tensor: &Tensor) -> usize {
    let strings: usize = tensor.strings.iter().map(|s| LENGTH_BYTES + s.len()).sum();
    tensor.data.len() + strings
}

/// Appends one element. Nothing here comes near the 4 GiB that a length can say.
pub(super) fn put(bytes: &mut Vec<u8>, string: &str) {
    let length = u32::try_from(string.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(string.as_bytes());
}

/// The strings of a tensor of `shape`.
///
/// # Errors
/// Which element is cut off or is no UTF-8, or how many there are where how many are wanted.
pub(super) fn tensor(shape: Vec<usize>, data: &[u8]) -> Result<Tensor, String> {
    let mut rest = data;
    let wanted = shape.iter().try_fold(1_usize, |count, &dim| count.checked_mul(dim));
    let wanted = wanted.unwrap_or(usize::MAX);
    let mut strings = Vec::with_capacity(wanted.min(data.len() / LENGTH_BYTES));
    while !rest.is_empty() {
        let place = strings.len();
        if place == wanted {
            return Err(format!("BYTES {shape:?} has more elements in its bytes"));
        }
        let (length, tail) = rest
            .split_first_chunk::<LENGTH_BYTES>()
            .ok_or_else(|| format!("element {place}: its length is cut off"))?;
        let length = u32::from_le_bytes(*length) as usize;
        let (bytes, tail) = tail.split_at_checked(length).ok_or_else(|| {
            format!("element {place} has {length} bytes by its length, {} are left", tail.len())
        })?;
        let string = std::str::from_utf8(bytes)
            .map_err(|_| format!("element {place} is not UTF-8, as the strings of ONNX are"))?;
        strings.push(string.to_owned());
        rest = tail;
    }
    if strings.len() != wanted {
        return Err(format!("BYTES {shape:?} has {} elements in its bytes", strings.len()));
    }
    Tensor::from_strings(shape, strings).map_err(|error| error.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn strings_survive_their_bytes() {
        let strings = ["", "a", "Grüße", "\0\n"].map(str::to_owned).to_vec();
        let before = Tensor::from_strings(vec![2, 2], strings).unwrap();
        let bytes = bytes_of(&before);
        assert_eq!(bytes.len(), byte_len(&before));
        assert_eq!(tensor(vec![2, 2], &bytes).unwrap(), before);
        let numbers = Tensor::from_f32(vec![1], &[1.0]).unwrap();
        assert_eq!((bytes_of(&numbers).as_ref(), byte_len(&numbers)), (&numbers.data[..], 4));
    }

    #[test]
    fn what_is_cut_off_or_no_text_or_too_many_is_named() {
        let error = |shape: Vec<usize>, bytes: &[u8]| tensor(shape, bytes).unwrap_err();
        assert_eq!(error(vec![1], &[1, 0, 0]), "element 0: its length is cut off");
        assert_eq!(
            error(vec![2], &[0, 0, 0, 0, 5, 0, 0, 0, b'a']),
            "element 1 has 5 bytes by its length, 1 are left"
        );
        assert!(error(vec![1], &[1, 0, 0, 0, 0xff]).contains("element 0 is not UTF-8"));
        assert_eq!(error(vec![2], &[0, 0, 0, 0]), "BYTES [2] has 1 elements in its bytes");
        assert!(error(vec![usize::MAX, 2], &[]).contains("0 elements"));
        assert!(error(vec![1], &[0; 8]).contains("more elements"));
        assert!(error(vec![0], &[0; 4]).contains("more elements"));
        assert!(error(vec![1], &[0xff, 0xff, 0xff, 0xff]).contains("4294967295"));
    }
}
