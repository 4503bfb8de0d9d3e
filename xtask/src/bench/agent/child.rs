//! Programs that the measurement starts, and that do not outlive it.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::process;

/// How often a wait looks again.
const POLL: Duration = Duration::from_millis(5);
/// How long a program may take to end when asked to.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// A running program. It is ended when this is dropped; where `setpriv` (util-linux) is installed, also when
/// the measurement is killed.
pub(super) struct Running {
    child: Child,
    name: String,
}

impl Running {
    /// Starts `program`, after `prepare` has added what it is to be told. Its output goes to `log`.
    pub(super) fn start(
        program: &Path,
        log: &Path,
        prepare: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut command = tied(program);
        prepare(&mut command);
        let output =
            File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { child, name })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `met` gives something, and that the program still runs meanwhile.
    pub(super) fn until<T>(
        &mut self,
        what: &str,
        patience: Duration,
        mut met: impl FnMut() -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(found) = met() {
                return Ok(found);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status} before {what}", self.name);
            }
            ensure!(Instant::now() < deadline, "{}: no {what} after {patience:?}", self.name);
            thread::sleep(POLL);
        }
    }

    /// Asks it to end, and waits until it has.
    pub(super) fn end(mut self) -> Result<()> {
        process::output(Command::new("kill").arg(self.pid().to_string()))?;
        let deadline = Instant::now() + END_DEADLINE;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "{} does not end", self.name);
            thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A command that the kernel ends when this process ends.
pub(super) fn tied(program: &Path) -> Command {
    match process::find("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL"]).arg(program);
            command
        }
        None => Command::new(program),
    }
}
