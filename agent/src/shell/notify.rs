//! What systemd is told: ready, alive, reloading, ending. Without systemd all of it is nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// The service manager's end of the line.
#[derive(Debug, Default)]
pub struct Manager {
    ready: bool,
}

impl Manager {
    /// The service is up: it serves its models, or has none yet, as `status` says.
    pub fn ready(&mut self, status: &str) {
        if !self.ready {
            self.ready = true;
            tell(&[NotifyState::Ready, NotifyState::Status(status)]);
        }
    }

    /// The main loop has just gone round.
    pub fn alive(&self) {
        tell(&[NotifyState::Watchdog]);
    }

    /// The configuration is being read again.
    pub fn reloading(&self) {
        let now = NotifyState::monotonic_usec_now();
        match now {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(_) => tell(&[NotifyState::Reloading]),
        }
    }

    /// It was read.
    pub fn reloaded(&self) {
        tell(&[NotifyState::Ready]);
    }

    /// The service is ending.
    pub fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }
}

/// How often [`Manager::alive`] is due: a third of the watchdog's patience.
#[must_use]
pub fn watchdog_interval() -> Option<Duration> {
    let mut micros = 0;
    sd_notify::watchdog_enabled(false, &mut micros).then(|| Duration::from_micros(micros / 3))
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}
