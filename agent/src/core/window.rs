//! When downloads may move: the rules, and what the shell sees of the world.

use std::fmt;
use std::str::FromStr;

/// Minutes of a day.
const DAY: u16 = 24 * 60;

/// When downloads may move.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DownloadRules {
    /// The part of the day; always, where there is none.
    pub window: Option<Window>,
    /// Whether they stand still while the device runs from a battery.
    pub pause_on_battery: bool,
}

/// A part of each day, UTC. It reaches over midnight where it ends before it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The first minute of the day that belongs to it.
    from: u16,
    /// The first that does not.
    to: u16,
}

/// The text is no part of a day.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no part of a day: say HH:MM-HH:MM, in UTC, as in \"22:00-06:00\"")]
pub struct NoWindow(String);

/// What the world is like, as far as downloads care.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// The minute of the day, UTC; none where the clock was never set.
    pub minute: Option<u16>,
    /// Whether a battery is being discharged.
    pub on_battery: bool,
}

/// Why downloads stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The shell has not said yet what the world is like.
    Unseen,
    /// It is not the time of day for it.
    Window(Window),
    /// Nobody knows the time of day.
    ClockUnset(Window),
    /// The device runs from a battery.
    Battery,
}

impl DownloadRules {
    /// Whether there is anything to wait for at all.
    #[must_use]
    pub fn are_strict(&self) -> bool {
        *self != Self::default()
    }

    /// Why downloads stand still, if they do.
    #[must_use]
    pub fn hold(&self, conditions: Option<Conditions>) -> Option<Hold> {
        if !self.are_strict() {
            return None;
        }
        let Some(conditions) = conditions else {
            return Some(Hold::Unseen);
        };
        if self.pause_on_battery && conditions.on_battery {
            return Some(Hold::Battery);
        }
        let window = self.window?;
        match conditions.minute {
            None => Some(Hold::ClockUnset(window)),
            Some(minute) => (!window.contains(minute)).then_some(Hold::Window(window)),
        }
    }
}

impl Window {
    /// Whether a minute of the day belongs to it.
    #[must_use]
    pub fn contains(self, minute: u16) -> bool {
        if self.from < self.to {
            (self.from..self.to).contains(&minute)
        } else {
            minute >= self.from || minute < self.to
        }
    }
}

impl FromStr for Window {
    type Err = NoWindow;

    fn from_str(text: &str) -> Result<Self, NoWindow> {
        let both = text.split_once('-').and_then(|(from, to)| Some((minute(from)?, minute(to)?)));
        match both {
            Some((from, to)) if from != to => Ok(Self { from, to }),
            _ => Err(NoWindow(text.to_owned())),
        }
    }
}

/// `HH:MM`, by two digits each.
fn minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.trim().split_once(':')?;
    let number = |text: &str| -> Option<u16> {
        let is_plain = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        is_plain.then(|| text.parse().ok())?
    };
    let (hour, minute) = (number(hour)?, number(minute)?);
    let all = hour * 60 + minute;
    (minute < 60 && all < DAY).then_some(all)
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to } = self;
        write!(f, "{:02}:{:02}-{:02}:{:02} UTC", from / 60, from % 60, to / 60, to % 60)
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unseen => write!(f, "waits to see time of day and power"),
            Self::Window(window) => write!(f, "waits for download.window = {window}"),
            Self::ClockUnset(window) => write!(
                f,
                "waits for the clock to be set, without which there is no download.window = {window}"
            ),
            Self::Battery => {
                write!(
                    f,
                    "waits for the mains (download.pause_on_battery; a battery is discharging)"
                )
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn window(text: &str) -> Window {
        text.parse().unwrap()
    }

    #[test]
    fn a_window_holds_its_first_minute_and_not_its_last_also_over_midnight() {
        let night = window("22:00-06:00");
        for (minute, inside) in [(0, true), (359, true), (360, false), (1319, false), (1320, true)]
        {
            assert_eq!(night.contains(minute), inside, "{minute}");
        }
        let noon = window("11:30-12:00");
        for (minute, inside) in [(0, false), (689, false), (690, true), (719, true), (720, false)] {
            assert_eq!(noon.contains(minute), inside, "{minute}");
        }
        assert_eq!(night.to_string(), "22:00-06:00 UTC");
    }

    #[test]
    fn what_is_no_part_of_a_day_is_refused() {
        for text in [
            "",
            "22:00",
            "22-06",
            "24:00-06:00",
            "22:60-06:00",
            "2:00-3:00",
            "06:00-06:00",
            "+1:00-02:00",
        ] {
            assert!(text.parse::<Window>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_reason_is_the_first_that_holds() {
        let at = |minute, on_battery| Some(Conditions { minute, on_battery });
        let free = DownloadRules::default();
        assert_eq!(free.hold(None), None);
        let night = window("22:00-06:00");
        let rules = DownloadRules { window: Some(night), pause_on_battery: true };
        assert_eq!(rules.hold(None), Some(Hold::Unseen));
        assert_eq!(rules.hold(at(Some(0), true)), Some(Hold::Battery));
        assert_eq!(rules.hold(at(Some(0), false)), None);
        assert_eq!(rules.hold(at(Some(720), false)), Some(Hold::Window(night)));
        assert_eq!(rules.hold(at(None, false)), Some(Hold::ClockUnset(night)));
        let careless = DownloadRules { pause_on_battery: false, ..rules };
        assert_eq!(careless.hold(at(Some(0), true)), None);
    }
}
