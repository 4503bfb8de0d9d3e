//! What systemd is told: ready, alive, reloading, ending. Without systemd all of it is nothing.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// How much longer the service manager is asked to wait for the start, each time.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// What the end may take beside the requests at hand.
const END_MARGIN: Duration = Duration::from_secs(10);
/// How often it is asked.
const START_ASK: Duration = Duration::from_secs(10);

/// The service manager's end of the line.
#[derive(Debug, Default)]
pub struct Manager {
    ready: bool,
    asked: Option<Instant>,
}

impl Manager {
    /// The models are still being loaded, which has limits of its own: the manager's patience is not
    /// to be one of them.
    pub fn starting(&mut self, now: Instant) {
        if let Some(state) = self.ask(now) {
            tell(&[state]);
        }
    }

    fn ask(&mut self, now: Instant) -> Option<NotifyState<'static>> {
        let due = self.asked.is_none_or(|asked| now.duration_since(asked) >= START_ASK);
        if self.ready || !due {
            return None;
        }
        self.asked = Some(now);
        let micros = u32::try_from(START_PATIENCE.as_micros()).unwrap_or(u32::MAX);
        Some(NotifyState::ExtendTimeoutUsec(micros))
    }

    /// The service is up: it serves its models, or has none yet, as `status` says.
    pub fn ready(&mut self, status: &str) {
        if !self.ready {
            self.ready = true;
            tracing::info!(status, version = env!("CARGO_PKG_VERSION"), "ready");
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

    /// That is over, and this came of it.
    pub fn reloaded(&self, outcome: &str) {
        tracing::info!(outcome, "reloaded");
        tell(&[NotifyState::Ready, NotifyState::Status(outcome)]);
    }

    /// The service is ending, and may take so long to answer the requests at hand.
    pub fn stopping(&self, patience: Duration) {
        tracing::info!("ending");
        let micros = u32::try_from((patience + END_MARGIN).as_micros()).unwrap_or(u32::MAX);
        tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros)]);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_start_asks_for_more_time_again_and_again_until_it_is_over() {
        let mut manager = Manager::default();
        let begun = Instant::now();
        let mut granted = begun;
        for second in 0..300 {
            let now = begun + Duration::from_secs(second);
            if let Some(NotifyState::ExtendTimeoutUsec(micros)) = manager.ask(now) {
                granted = now + Duration::from_micros(micros.into());
            }
            assert!(granted > now, "the manager's patience ends after {second} s");
        }
        manager.ready("1 models");
        assert!(manager.ask(begun + Duration::from_secs(600)).is_none());
    }
}
