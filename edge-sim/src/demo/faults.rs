//! What may go wrong in a scenario, and when.

use std::time::Duration;

use serde::Deserialize;
use wire::{InstallOutcome, ModelPhase};

use crate::live::{Stack, StackError};
use crate::watcher::{Message, Record};

/// How long a part stays away when nothing else is said.
const DEFAULT_DOWN: Duration = Duration::from_millis(500);

/// Something that goes wrong, once.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// When.
    pub at: Point,
    /// What.
    #[serde(rename = "do")]
    pub act: Act,
    /// How long the part stays away, milliseconds.
    #[serde(default)]
    pub down_ms: Option<u64>,
}

impl Fault {
    /// How long the part stays away.
    #[must_use]
    pub fn down(&self) -> Duration {
        self.down_ms.map_or(DEFAULT_DOWN, Duration::from_millis)
    }

    /// The faults by name, for a message; empty when there are none.
    #[must_use]
    pub fn list(faults: &[Self]) -> String {
        faults.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    /// Whether requests fail while it lasts.
    #[must_use]
    pub fn interrupts_service(&self) -> bool {
        matches!(self.act, Act::AgentKill9 | Act::AgentPowerCut | Act::AgentRestart)
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {}", self.act.as_str(), self.at.as_str())
    }
}

/// A point in the loop: the first message that marks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Point {
    Breach,
    Request,
    Offer,
    Downloading,
    Verifying,
    Loading,
    SelfTest,
    Shadow,
    Probation,
}

impl Point {
    /// Its name in a scenario.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Breach => "breach",
            Self::Request => "request",
            Self::Offer => "offer",
            Self::Downloading => "downloading",
            Self::Verifying => "verifying",
            Self::Loading => "loading",
            Self::SelfTest => "self_test",
            Self::Shadow => "shadow",
            Self::Probation => "probation",
        }
    }

    /// Whether this message marks the point. Installs of the first model do not count: they replace
    /// nothing.
    #[must_use]
    pub fn matches(self, record: &Record) -> bool {
        let phase = match (&record.message, self) {
            (Message::Breach(_), Self::Breach) | (Message::Request(_), Self::Request) => {
                return true;
            }
            (Message::Offer(offer), Self::Offer) => return offer.request_id.is_some(),
            (Message::Install(event), _)
                if event.outcome == InstallOutcome::Progress && event.from_digest.is_some() =>
            {
                event.phase
            }
            _ => return false,
        };
        let wanted = match self {
            Self::Downloading => ModelPhase::Downloading,
            Self::Verifying => ModelPhase::Verifying,
            Self::Loading => ModelPhase::Loading,
            Self::SelfTest => ModelPhase::SelfTest,
            Self::Shadow => ModelPhase::Shadow,
            Self::Probation => ModelPhase::Probation,
            Self::Breach | Self::Request | Self::Offer => return false,
        };
        phase == wanted
    }
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// SIGKILL to the agent, then a start.
    AgentKill9,
    /// SIGKILL to the agent and its workers, then a start.
    AgentPowerCut,
    /// SIGTERM to the agent, then a start.
    AgentRestart,
    /// SIGKILL to the compressor service, then a start.
    ServiceKill9,
    /// The broker ends and starts again.
    BrokerRestart,
}

impl Act {
    /// Its name in a scenario.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AgentKill9 => "agent_kill9",
            Self::AgentPowerCut => "agent_power_cut",
            Self::AgentRestart => "agent_restart",
            Self::ServiceKill9 => "service_kill9",
            Self::BrokerRestart => "broker_restart",
        }
    }

    /// Does it, and returns when the part runs again.
    ///
    /// # Errors
    /// It does not run again.
    pub fn perform(self, stack: &mut Stack, down: Duration) -> Result<(), StackError> {
        match self {
            Self::AgentKill9 => stack.agent_kill9(),
            Self::AgentPowerCut => stack.agent_power_cut(),
            Self::AgentRestart => drop(stack.agent_stop()),
            Self::ServiceKill9 => stack.service_kill9(),
            Self::BrokerRestart => stack.broker_stop()?,
        }
        std::thread::sleep(down);
        match self {
            Self::AgentKill9 | Self::AgentPowerCut | Self::AgentRestart => stack.agent_start(),
            Self::ServiceKill9 => stack.service_start(),
            Self::BrokerRestart => stack.broker_start(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use wire::{Header, InstallEvent};

    use super::*;

    fn install(phase: ModelPhase, replaces: bool) -> Record {
        let message = Message::Install(InstallEvent {
            header: Header::of::<InstallEvent>(0, 0, ""),
            model: "magika".to_owned(),
            digest: "sha256:b".to_owned(),
            phase,
            outcome: InstallOutcome::Progress,
            reason: None,
            from_digest: replaces.then(|| "sha256:a".to_owned()),
            elapsed_ms: 0,
            comparison: None,
            blocked: false,
            trial: None,
        });
        let (topic, device) = (String::new(), String::new());
        Record { at_ms: 0, topic, device, retained: false, message }
    }

    #[test]
    fn a_fault_is_named_as_in_its_scenario() {
        let text = "at = 'self_test'\ndo = 'agent_power_cut'";
        let fault: Fault = toml::from_str(text).unwrap();
        assert_eq!(
            Fault::list(&[fault.clone(), fault]),
            "agent_power_cut at self_test, agent_power_cut at self_test"
        );
    }

    #[test]
    fn a_point_of_the_install_is_that_of_the_replacing_model() {
        assert!(Point::Shadow.matches(&install(ModelPhase::Shadow, true)));
        assert!(!Point::Shadow.matches(&install(ModelPhase::Shadow, false)));
        assert!(!Point::Shadow.matches(&install(ModelPhase::Probation, true)));
        assert!(!Point::Breach.matches(&install(ModelPhase::Shadow, true)));
    }
}
