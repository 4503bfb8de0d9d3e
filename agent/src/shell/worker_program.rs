//! Where the program is that hosts models.

use std::path::{Path, PathBuf};

/// Its name.
pub const NAME: &str = "espalier-worker";
/// Where a package may put it, when not beside the agent: nobody starts it by hand.
const PACKAGED: &str = "/usr/lib/espalier";

/// It is nowhere to be found.
#[derive(Debug, thiserror::Error)]
#[error(
    "the program that hosts models, {NAME}, is not in {looked}: install it beside the agent, or name it in worker.program"
)]
pub struct NotFound {
    looked: String,
}

/// The program beside this one, or the one in `/usr/lib/espalier`.
///
/// # Errors
/// It is in neither place.
pub fn find() -> Result<PathBuf, NotFound> {
    let own = std::env::current_exe().ok();
    let beside = own.as_deref().and_then(Path::parent).map(Path::to_path_buf);
    find_in(beside.into_iter().chain([PathBuf::from(PACKAGED)]))
}

fn find_in(folders: impl Iterator<Item = PathBuf>) -> Result<PathBuf, NotFound> {
    let mut looked = Vec::new();
    for folder in folders {
        let program = folder.join(NAME);
        if program.is_file() {
            return Ok(program);
        }
        looked.push(folder.display().to_string());
    }
    Err(NotFound { looked: looked.join(" or ") })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_first_folder_that_holds_it_counts_and_none_is_an_error_that_names_both() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let folders = || [first.path().to_path_buf(), second.path().to_path_buf()].into_iter();
        let error = find_in(folders()).unwrap_err().to_string();
        assert!(error.contains(&first.path().display().to_string()), "{error}");
        assert!(error.contains(&second.path().display().to_string()), "{error}");
        std::fs::write(second.path().join(NAME), "").unwrap();
        assert_eq!(find_in(folders()).unwrap(), second.path().join(NAME));
        std::fs::write(first.path().join(NAME), "").unwrap();
        assert_eq!(find_in(folders()).unwrap(), first.path().join(NAME));
    }
}
