//! What is checked of a model before an engine reads it.

use std::path::Path;

use engine::{EngineError, ErrorKind, LoadOptions};

/// The largest model, without its external data: protobuf ends there.
pub const MAX_MODEL_BYTES: u64 = 2 << 30;

/// Checks that `path` is a file an engine may open: there, regular, not empty, not too large.
pub(crate) fn check_file(path: &Path) -> Result<(), EngineError> {
    let shown = path.display();
    // Metadata first: opening a named pipe would wait for its other end.
    let metadata = std::fs::metadata(path)
        .map_err(|e| EngineError::load(format!("the model {shown} cannot be read: {e}")))?;
    if metadata.is_dir() {
        return Err(EngineError::load(format!("the model {shown} is a directory")));
    }
    if !metadata.is_file() {
        return Err(EngineError::load(format!("the model {shown} is not a regular file")));
    }
    std::fs::File::open(path)
        .map_err(|e| EngineError::load(format!("the model {shown} cannot be read: {e}")))?;
    check_length(&format!("the model {shown}"), metadata.len())
}

/// Checks a model held in memory as [`check_file`] checks a file.
pub(crate) fn check_bytes(bytes: &[u8]) -> Result<(), EngineError> {
    check_length("the model", u64::try_from(bytes.len()).unwrap_or(u64::MAX))
}

/// Checks what makes no sense for any model.
pub(crate) fn check_options(options: &LoadOptions) -> Result<(), EngineError> {
    if options.batch == Some(0) {
        return Err(EngineError::input("a batch of 0 computes nothing"));
    }
    Ok(())
}

fn check_length(what: &str, length: u64) -> Result<(), EngineError> {
    match length {
        0 => Err(EngineError::load(format!("{what} is empty"))),
        1..=MAX_MODEL_BYTES => Ok(()),
        _ => Err(EngineError::new(
            ErrorKind::Limit,
            format!(
                "{what} has {length} bytes, more than MAX_MODEL_BYTES = {MAX_MODEL_BYTES}; keep its weights in external data"
            ),
        )),
    }
}

/// The most of an engine's own text that an error carries: some print whole weights.
const MAX_TEXT: usize = 1500;

/// `text`, cut where an engine says too much.
pub(crate) fn shorten(text: String) -> String {
    if text.len() <= MAX_TEXT {
        return text;
    }
    let end = text.floor_char_boundary(MAX_TEXT);
    format!("{}… ({} bytes more)", &text[..end], text.len() - end)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_sparse_file_beyond_the_limit_is_refused_without_reading_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("huge.onnx");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(MAX_MODEL_BYTES + 1).unwrap();
        let error = check_file(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit);
        assert!(error.to_string().contains("MAX_MODEL_BYTES"), "{error}");
    }

    #[test]
    fn a_device_is_refused_without_opening_it() {
        let error = check_file(Path::new("/dev/zero")).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let text = "ü".repeat(2000);
        let cut = shorten(text);
        assert!(cut.len() < 1600);
        assert!(cut.ends_with("bytes more)"), "{cut}");
        assert_eq!(shorten("short".into()), "short");
    }
}
