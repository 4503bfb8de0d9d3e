//! The terminal: a progress bar where there is one, lines on standard error elsewhere.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressStyle};

use crate::pipeline::Progress;

/// Whether the person at the terminal asked to stop.
static STOP: AtomicBool = AtomicBool::new(false);

/// Shows a compression's progress on standard error.
#[derive(Debug)]
pub struct Terminal {
    bar: Option<ProgressBar>,
    stage: Mutex<String>,
    total: AtomicU64,
}

impl Terminal {
    /// A bar if standard error is a terminal, plain lines if not.
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            if let Ok(style) =
                ProgressStyle::with_template("{spinner} {msg} {wide_bar} {pos}/{len} {elapsed}")
            {
                bar.set_style(style);
            }
            bar
        });
        Self { bar, stage: Mutex::new(String::new()), total: AtomicU64::new(0) }
    }
}

impl Terminal {
    /// As [`Self::new`], and the first Ctrl-C asks the work to stop between two steps; the second ends it at once.
    ///
    /// # Errors
    /// Ctrl-C cannot be listened to.
    pub fn interruptible() -> std::io::Result<Self> {
        let listener = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        std::thread::Builder::new()
            .name("ctrl-c".into())
            .spawn(move || listener.block_on(listen()))?;
        Ok(Self::new())
    }
}

async fn listen() {
    if tokio::signal::ctrl_c().await.is_err() {
        return;
    }
    STOP.store(true, Ordering::Relaxed);
    eprintln!("stopping after this step; once more ends at once");
    if tokio::signal::ctrl_c().await.is_ok() {
        let own = rustix::process::getpid();
        let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
    }
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Terminal {
    fn stage(&self, name: &str, total: u64) {
        self.total.store(total, Ordering::Relaxed);
        if let Ok(mut stage) = self.stage.lock() {
            name.clone_into(&mut stage);
        }
        match &self.bar {
            Some(bar) => {
                bar.set_length(total);
                bar.set_position(0);
                bar.set_message(name.to_owned());
                bar.tick();
            }
            None => eprintln!("{name}"),
        }
    }

    fn step(&self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
    }

    fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(format!("  {text}")),
            None => eprintln!("  {text}"),
        }
    }

    fn cancelled(&self) -> bool {
        STOP.load(Ordering::Relaxed)
    }
}
