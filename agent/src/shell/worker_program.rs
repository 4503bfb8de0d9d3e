//! Where the program is that hosts models, and whether it goes with this agent.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::config::WorkerConfig;
use crate::plane::protocol::{Hello, read_frame};

/// Its name.
pub const NAME: &str = "espalier-worker";
/// Where a package may put it, when not beside the agent: nobody starts it by hand.
const PACKAGED: &str = "/usr/lib/espalier";

/// How long it may take to say its version.
const ANSWER: Duration = Duration::from_secs(30);

/// What its `bench` prints.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct BenchReport {
    /// How long inferences took.
    #[serde(flatten)]
    pub latency: engine::measure::LatencyStats,
    /// Proportional set size once the model was loaded.
    pub pss_loaded_bytes: Option<u64>,
    /// The same after the last inference.
    pub pss_bytes: Option<u64>,
    /// Processor time that all threads took in the second after that, in steps of a tick of the kernel.
    pub rest_cpu_ms: Option<u64>,
}

/// It does not go with this agent.
#[derive(Debug, thiserror::Error)]
#[error("{program}: {why}", program = .program.display())]
pub struct Unfit {
    /// The program.
    pub program: PathBuf,
    /// What is wrong with it.
    pub why: String,
}

/// Starts the program, hears it say its version, and ends it.
///
/// # Errors
/// It cannot be started, says nothing, or is of another version than this agent.
pub fn probe(program: &Path, args: &[String]) -> Result<Hello, Unfit> {
    let unfit = |why: String| Unfit { program: program.to_owned(), why };
    let (ours, theirs) = UnixStream::pair().map_err(|e| unfit(format!("no socket: {e}")))?;
    let limited = ours.set_read_timeout(Some(ANSWER));
    limited.map_err(|e| unfit(format!("no deadline: {e}")))?;
    let child = Command::new(program)
        .args(args)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_USEC")
        // Without the pipe of a worker that is to stay, its last word is a complaint.
        .env_remove("JOURNAL_STREAM")
        .spawn();
    let mut child = child.map_err(|e| unfit(format!("cannot be started: {e}")))?;
    let said = match read_frame(&mut &ours) {
        Ok(Some(body)) => Hello::expect(&body),
        Ok(None) => Err("it ended without a word".to_owned()),
        Err(error) => Err(format!("it does not say its version: {error}")),
    };
    // It has nothing that it could lose.
    let _ = child.kill();
    let _ = child.wait();
    said.map_err(unfit)
}

/// As [`probe`], of the program that is configured or found.
///
/// # Errors
/// It is nowhere, or does not go with this agent.
pub fn check(config: &WorkerConfig) -> Result<Hello, String> {
    let program = match &config.program {
        Some(program) => program.clone(),
        None => find().map_err(|error| error.to_string())?,
    };
    probe(&program, &config.args).map_err(|error| error.to_string())
}

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
    fn a_program_that_is_no_worker_of_this_version_is_told_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let told = |program: &str, args: &[&str]| {
            let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
            probe(Path::new(program), &args).unwrap_err().to_string()
        };
        assert!(told("/nowhere/worker", &[]).starts_with("/nowhere/worker: cannot be started"));
        assert!(told("/bin/true", &[]).contains("ended without a word"));
        // Says that it speaks protocol 1, in a frame as a worker does.
        let hello = br#"{"protocol":1,"version":"0.0.9"}"#;
        let mut frame = u32::try_from(hello.len() + 1).unwrap().to_le_bytes().to_vec();
        frame.push(7);
        frame.extend_from_slice(hello);
        let file = dir.path().join("hello");
        std::fs::write(&file, frame).unwrap();
        let older = told("/bin/sh", &["-c", &format!("cat {} >&0", file.display())]);
        assert!(older.contains("the worker is of version 0.0.9 (protocol 1)"), "{older}");
        let other = told("/bin/sh", &["-c", "printf '\\001\\000\\000\\000x' >&0"]);
        assert!(other.contains("does not say its version"), "{other}");
    }

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
