//! Power, and what of it an inference costs.
//!
//! Sources, best first: a battery that is being discharged, a current sensor on the supply (INA and its
//! like, through hwmon), RAPL (processor packages and their memory), the power chip of a Raspberry Pi 5,
//! and a straight line over the processor's use. The line is *modelled*, and says so: it is learned from
//! a gauge of the whole board while there was one, or else fitted to the configured profile.

use std::str::FromStr;
use std::time::Instant;

use wire::Quality;

use super::Roots;
use energy::Windows;
use line::Fit;
use pmic::Pmic;
use rapl::Rapl;

pub use energy::Marginal;
pub use gauges::on_battery;
pub use line::{Line, MAX_PROFILE_POINTS, profile};

mod energy;
mod gauges;
mod line;
pub(super) mod pmic;
mod rapl;

/// Where power figures come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PowerSource {
    /// The best one that gives a figure.
    #[default]
    Auto,
    /// Discharging batteries.
    Battery,
    /// A current sensor on the supply.
    Hwmon,
    /// The energy counters of processor packages and memory.
    Rapl,
    /// The power chip of a Raspberry Pi 5.
    Pmic,
    /// A line over the processor's use.
    Model,
    /// None.
    Off,
}

/// The name is that of no power source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no power source; there are auto, battery, hwmon, rapl, pmic, model and none")]
pub struct UnknownPowerSource(String);

impl FromStr for PowerSource {
    type Err = UnknownPowerSource;

    fn from_str(text: &str) -> Result<Self, UnknownPowerSource> {
        Ok(match text {
            "auto" => Self::Auto,
            "battery" => Self::Battery,
            "hwmon" => Self::Hwmon,
            "rapl" => Self::Rapl,
            "pmic" => Self::Pmic,
            "model" => Self::Model,
            "none" => Self::Off,
            other => return Err(UnknownPowerSource(other.to_owned())),
        })
    }
}

/// How power is to be had.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PowerConfig {
    /// Which source.
    pub source: PowerSource,
    /// The board's power at rest, in milliwatts.
    pub idle_mw: Option<f64>,
    /// The board's power with every processor busy, in milliwatts.
    pub load_mw: Option<f64>,
    /// The line fitted to the board's profile; it goes before the two powers.
    pub profile: Option<Line>,
}

impl PowerConfig {
    /// The board's power over the processor's use, as far as it is configured.
    #[must_use]
    pub fn line(&self) -> Option<Line> {
        let two = || {
            let (idle, load) = (self.idle_mw?, self.load_mw?);
            Fit::of([(0.0, idle), (1.0, load)]).line()
        };
        self.profile.or_else(two)
    }
}

/// The power drawn within a window.
#[derive(Debug, Clone, PartialEq)]
pub struct PowerReading {
    /// `battery`, `hwmon`, `rapl`, `pmic`, `model` or `none`.
    pub source: &'static str,
    /// Whether it was measured.
    pub quality: Quality,
    /// The mean over the window.
    pub power_mw: Option<f64>,
    /// How far a modelled power lies from the truth (standard deviation); `None` where that is unknown,
    /// and for gauges, which do not tell their tolerance.
    pub power_error_mw: Option<f64>,
    /// What one inference costs above rest.
    pub energy_per_inference_mj: Option<f64>,
    /// The standard error of that; `None` where it is unknown.
    pub energy_error_mj: Option<f64>,
}

/// What would tell the power now, for whoever wants to know before the first window. A battery tells only
/// while it is being discharged.
#[must_use]
pub fn at_hand(config: &PowerConfig, roots: &Roots) -> (&'static str, Quality) {
    let wanted = |source| config.source == PowerSource::Auto || config.source == source;
    let found = [
        (Source::Battery, wanted(PowerSource::Battery) && gauges::battery_mw(roots).is_some()),
        (Source::Hwmon, wanted(PowerSource::Hwmon) && gauges::hwmon_mw(roots).is_some()),
        (Source::Rapl, wanted(PowerSource::Rapl) && rapl::is_there(roots)),
        (Source::Pmic, wanted(PowerSource::Pmic) && Pmic::is_there(roots)),
        (Source::Model, wanted(PowerSource::Model) && config.line().is_some()),
    ];
    let best = found.iter().find_map(|(source, there)| there.then_some(*source));
    let best = best.unwrap_or(Source::None);
    (best.name(), best.quality())
}

/// Adds up energy between two windows.
#[derive(Debug)]
pub(super) struct PowerMeter {
    config: PowerConfig,
    rapl: Rapl,
    pmic: Pmic,
    last: Option<Gauge>,
    source: Source,
    energy_mj: f64,
    seconds: f64,
    /// What gauges of the whole board said beside the processor's use.
    learned: Fit,
    /// The line that the last modelled powers are from.
    line: Option<Line>,
    windows: Windows,
    /// Whose inferences they hold.
    workers: Vec<u32>,
}

/// An instantaneous reading.
#[derive(Debug, Clone, Copy)]
struct Gauge {
    at: Instant,
    power_mw: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Battery,
    Hwmon,
    Rapl,
    Pmic,
    Model,
    None,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Self::Battery => "battery",
            Self::Hwmon => "hwmon",
            Self::Rapl => "rapl",
            Self::Pmic => "pmic",
            Self::Model => "model",
            Self::None => "none",
        }
    }

    fn quality(self) -> Quality {
        match self {
            Self::Battery | Self::Hwmon | Self::Rapl | Self::Pmic => Quality::Measured,
            Self::Model => Quality::Modelled,
            Self::None => Quality::None,
        }
    }

    /// Whether it measures all that the board draws, so that a line may be learned from it.
    fn is_of_the_board(self) -> bool {
        matches!(self, Self::Battery | Self::Hwmon)
    }
}

impl PowerMeter {
    pub(super) fn new(config: PowerConfig) -> Self {
        Self {
            config,
            rapl: Rapl::default(),
            pmic: Pmic::default(),
            last: None,
            source: Source::None,
            energy_mj: 0.0,
            seconds: 0.0,
            learned: Fit::default(),
            line: None,
            windows: Windows::default(),
            workers: Vec::new(),
        }
    }

    /// Reads the best source now; `busy` is the processor's use since the last call, 0 to 1. A window
    /// holds the readings of one source: when a better one appears or the one in use falls silent, the
    /// window starts anew.
    pub(super) fn tick(&mut self, roots: &Roots, now: Instant, busy: Option<f64>) {
        let (source, power_mw) = self.choose(roots, now, busy);
        if source != self.source {
            self.source = source;
            self.clear();
            self.windows = Windows::default();
            self.last = None;
        }
        let Some(power_mw) = power_mw else { return };
        let gauge = Gauge { at: now, power_mw };
        if let Some(before) = self.last.replace(gauge) {
            let seconds = now.saturating_duration_since(before.at).as_secs_f64();
            // RAPL and the model give a mean since the last reading, the others a moment's value.
            let mean = match source {
                Source::Rapl | Source::Model => power_mw,
                _ => f64::midpoint(before.power_mw, power_mw),
            };
            self.energy_mj += mean * seconds;
            self.seconds += seconds;
            if let Some(busy) = busy.filter(|_| source.is_of_the_board() && seconds > 0.0) {
                self.learned.add(busy.clamp(0.0, 1.0), mean);
            }
        }
    }

    /// Ends the window, in which these workers answered so many requests.
    pub(super) fn take(&mut self, inferences: u64, workers: &[u32]) -> PowerReading {
        let seconds = self.seconds;
        let mean = (seconds > 0.0).then(|| self.energy_mj / seconds);
        let power_mw = mean.or(self.last.map(|gauge| gauge.power_mw));
        self.clear();
        if self.workers != workers {
            workers.clone_into(&mut self.workers);
            self.windows.forget_inferences();
        }
        if let Some(power) = power_mw {
            self.windows.push(power, seconds, inferences);
        }
        let worth = seconds > 0.0 && inferences > 0;
        let idle = self.idle_power_mw();
        let marginal = worth.then(|| self.windows.marginal(idle)).flatten();
        let line = self.line.filter(|_| self.source == Source::Model);
        let known = power_mw.is_some();
        PowerReading {
            source: if known { self.source.name() } else { "none" },
            quality: if known { self.source.quality() } else { Quality::None },
            power_mw,
            power_error_mw: line.filter(|_| known).and_then(|line| line.residual),
            energy_per_inference_mj: marginal.map(|marginal| marginal.energy_mj),
            energy_error_mj: marginal.and_then(|marginal| self.error_mj(marginal)),
        }
    }

    /// A modelled energy is as wrong as its line's slope, beside what the windows differ by.
    fn error_mj(&self, marginal: Marginal) -> Option<f64> {
        let error = marginal.error_mj?;
        if self.source != Source::Model {
            return Some(error);
        }
        let line = self.line?;
        let share = line.slope_error? / line.slope;
        share.is_finite().then(|| error.hypot(marginal.energy_mj * share))
    }

    /// The configured power at rest is the whole board's; RAPL and the power chip see a part of it, so
    /// that there only windows tell.
    fn idle_power_mw(&self) -> Option<f64> {
        match self.source {
            Source::Battery | Source::Hwmon => self.config.idle_mw,
            Source::Model => self.line.map(|line| line.intercept),
            Source::Rapl | Source::Pmic | Source::None => None,
        }
    }

    fn clear(&mut self) {
        self.energy_mj = 0.0;
        self.seconds = 0.0;
    }

    fn choose(&mut self, roots: &Roots, now: Instant, busy: Option<f64>) -> (Source, Option<f64>) {
        let config = self.config;
        let wanted = |source| config.source == PowerSource::Auto || config.source == source;
        // Followed whether it is the best source or not, for it tells what lies between two readings.
        let rapl = self.rapl.mean_power_mw(roots, now);
        if wanted(PowerSource::Battery)
            && let Some(power) = gauges::battery_mw(roots)
        {
            return (Source::Battery, Some(power));
        }
        if wanted(PowerSource::Hwmon)
            && let Some(power) = gauges::hwmon_mw(roots)
        {
            return (Source::Hwmon, Some(power));
        }
        if wanted(PowerSource::Rapl) && rapl.present {
            return (Source::Rapl, rapl.power_mw);
        }
        if wanted(PowerSource::Pmic)
            && let (true, power) = self.pmic.poll(roots, now)
        {
            return (Source::Pmic, power);
        }
        if wanted(PowerSource::Model)
            && let Some(line) = self.learned.learned().or_else(|| config.line())
        {
            self.line = Some(line);
            return (Source::Model, busy.map(|busy| line.at(busy.clamp(0.0, 1.0)).max(0.0)));
        }
        (Source::None, None)
    }
}
