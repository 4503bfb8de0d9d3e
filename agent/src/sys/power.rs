//! Power, and what of it an inference costs.
//!
//! Sources, best first: a current sensor on the supply (INA and its like, through hwmon), a battery
//! that is discharging, RAPL (the processor package alone), and a straight line between two
//! configured powers over the processor's use. The last is *modelled*, and says so.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

use wire::Quality;

use super::{Roots, numbered, read, value};

/// Where power figures come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PowerSource {
    /// The best one that gives a figure.
    #[default]
    Auto,
    /// A current sensor on the supply.
    Hwmon,
    /// A discharging battery.
    Battery,
    /// The processor package's energy counter.
    Rapl,
    /// The configured powers and the processor's use.
    Model,
    /// None.
    Off,
}

/// The name is that of no power source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no power source; there are auto, hwmon, battery, rapl, model and none")]
pub struct UnknownPowerSource(String);

impl FromStr for PowerSource {
    type Err = UnknownPowerSource;

    fn from_str(text: &str) -> Result<Self, UnknownPowerSource> {
        Ok(match text {
            "auto" => Self::Auto,
            "hwmon" => Self::Hwmon,
            "battery" => Self::Battery,
            "rapl" => Self::Rapl,
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
}

/// The power drawn within a window.
#[derive(Debug, Clone, PartialEq)]
pub struct PowerReading {
    /// `hwmon`, `battery`, `rapl`, `model` or `none`.
    pub source: &'static str,
    /// Whether it was measured.
    pub quality: Quality,
    /// The mean over the window.
    pub power_mw: Option<f64>,
    /// What one inference cost above idle; see [`marginal_energy_mj`].
    pub energy_per_inference_mj: Option<f64>,
}

/// The energy of one inference above idle, in millijoules:
///
/// ```text
/// (mean power of the window - idle power) * length of the window / inferences
/// ```
///
/// with powers in milliwatts and the length in seconds. Everything else that the board did meanwhile
/// is charged to the inferences too, so it is an upper bound. `None` without inferences; never
/// negative.
#[must_use]
#[allow(clippy::cast_precision_loss)]
pub fn marginal_energy_mj(
    power_mw: f64,
    idle_mw: f64,
    seconds: f64,
    inferences: u64,
) -> Option<f64> {
    let energy = (power_mw - idle_mw).max(0.0) * seconds;
    (inferences > 0 && energy.is_finite()).then(|| energy / inferences as f64)
}

/// Adds up energy between two windows.
#[derive(Debug)]
pub(super) struct PowerMeter {
    config: PowerConfig,
    rapl: Rapl,
    last: Option<Gauge>,
    source: Source,
    energy_mj: f64,
    seconds: f64,
    /// The mean power of the last window without inferences.
    idle_mw: Option<f64>,
}

/// An instantaneous reading.
#[derive(Debug, Clone, Copy)]
struct Gauge {
    at: Instant,
    power_mw: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Hwmon,
    Battery,
    Rapl,
    Model,
    None,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Self::Hwmon => "hwmon",
            Self::Battery => "battery",
            Self::Rapl => "rapl",
            Self::Model => "model",
            Self::None => "none",
        }
    }

    fn quality(self) -> Quality {
        match self {
            Self::Hwmon | Self::Battery | Self::Rapl => Quality::Measured,
            Self::Model => Quality::Modelled,
            Self::None => Quality::None,
        }
    }
}

impl PowerMeter {
    pub(super) fn new(config: PowerConfig) -> Self {
        Self {
            config,
            rapl: Rapl::default(),
            last: None,
            source: Source::None,
            energy_mj: 0.0,
            seconds: 0.0,
            idle_mw: None,
        }
    }

    /// Reads the best source now. A window holds the readings of one source: when a better one
    /// appears or the one in use falls silent, the window starts anew.
    pub(super) fn tick(&mut self, roots: &Roots, now: Instant, busy: Option<f64>) {
        let rapl = self.rapl.mean_power_mw(roots, now);
        let (source, power_mw) = self.choose(roots, rapl, busy);
        if source != self.source {
            self.source = source;
            self.clear();
            self.idle_mw = None;
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
        }
    }

    /// Ends the window.
    pub(super) fn take(&mut self, inferences: u64) -> PowerReading {
        let power_mw = if self.seconds > 0.0 {
            Some(self.energy_mj / self.seconds)
        } else {
            self.last.map(|gauge| gauge.power_mw)
        };
        let seconds = self.seconds;
        self.clear();
        if inferences == 0 && power_mw.is_some() {
            self.idle_mw = power_mw;
        }
        let energy = power_mw
            .zip(self.idle_power_mw())
            .and_then(|(power, idle)| marginal_energy_mj(power, idle, seconds, inferences));
        let known = power_mw.is_some();
        PowerReading {
            source: if known { self.source.name() } else { "none" },
            quality: if known { self.source.quality() } else { Quality::None },
            power_mw,
            energy_per_inference_mj: energy.filter(|_| seconds > 0.0),
        }
    }

    /// The configured power at rest is the whole board's; RAPL sees the package alone, so there only
    /// a window without inferences tells.
    fn idle_power_mw(&self) -> Option<f64> {
        match self.source {
            Source::Rapl => self.idle_mw,
            _ => self.config.idle_mw.or(self.idle_mw),
        }
    }

    fn clear(&mut self) {
        self.energy_mj = 0.0;
        self.seconds = 0.0;
    }

    fn choose(&self, roots: &Roots, rapl: RaplPower, busy: Option<f64>) -> (Source, Option<f64>) {
        let wanted =
            |source| self.config.source == PowerSource::Auto || self.config.source == source;
        if wanted(PowerSource::Hwmon)
            && let Some(power) = hwmon_mw(roots)
        {
            return (Source::Hwmon, Some(power));
        }
        if wanted(PowerSource::Battery)
            && let Some(power) = battery_mw(roots)
        {
            return (Source::Battery, Some(power));
        }
        if wanted(PowerSource::Rapl) && rapl.present {
            return (Source::Rapl, rapl.power_mw);
        }
        if wanted(PowerSource::Model)
            && let (Some(idle), Some(load)) = (self.config.idle_mw, self.config.load_mw)
        {
            let power = busy.map(|busy| idle + (load - idle) * busy.clamp(0.0, 1.0));
            return (Source::Model, power);
        }
        (Source::None, None)
    }
}

/// Readings of a megawatt are a broken sensor's.
fn plausible(mw: f64) -> Option<f64> {
    Some(mw).filter(|mw| (0.0..1e9).contains(mw))
}

/// The first sensor of a supply rail: INA chips and ACPI power meters.
#[allow(clippy::cast_precision_loss)]
fn hwmon_mw(roots: &Roots) -> Option<f64> {
    numbered(roots.sys.join("class/hwmon"), "hwmon")
        .iter()
        .filter(|chip| {
            read(chip.join("name"))
                .is_some_and(|name| name.starts_with("ina") || name.trim() == "power_meter")
        })
        .find_map(|chip| {
            let microwatts = value::<u64>(chip.join("power1_input"))
                .or_else(|| value::<u64>(chip.join("power1_average")))
                .map(|uw| uw as f64);
            // Chips without a multiplier give millivolts and milliamperes.
            let product = || {
                let (mv, ma): (u32, u32) =
                    (value(chip.join("in1_input"))?, value(chip.join("curr1_input"))?);
                Some(f64::from(mv) * f64::from(ma))
            };
            plausible(microwatts.or_else(product)? / 1e3)
        })
}

/// Whether a battery of the machine is being discharged; those of its mice and keyboards do not count.
#[must_use]
pub fn on_battery(roots: &Roots) -> bool {
    discharging(roots).iter().any(|supply| !says(supply, "scope", "Device"))
}

fn says(supply: &Path, file: &str, text: &str) -> bool {
    read(supply.join(file)).is_some_and(|told| told.trim() == text)
}

/// Batteries that are being discharged, in order of name.
fn discharging(roots: &Roots) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(roots.sys.join("class/power_supply")) else {
        return Vec::new();
    };
    let mut supplies: Vec<PathBuf> = entries
        .take(super::MAX_DIR_ENTRIES)
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|supply| says(supply, "type", "Battery") && says(supply, "status", "Discharging"))
        .collect();
    supplies.sort();
    supplies
}

/// A battery that is charging says nothing about what the board draws.
fn battery_mw(roots: &Roots) -> Option<f64> {
    discharging(roots).iter().find_map(|supply| {
        // Some drivers give a discharge as a negative number.
        let magnitude = |file| value::<i32>(supply.join(file)).map(|v| f64::from(v.unsigned_abs()));
        let microwatts = magnitude("power_now").or_else(|| {
            let volts = magnitude("voltage_now")? / 1e6;
            Some(magnitude("current_now")? * volts)
        })?;
        plausible(microwatts / 1e3)
    })
}

/// The energy counters of the processor packages.
#[derive(Debug, Default)]
struct Rapl {
    last: Option<(Instant, Vec<Zone>)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Zone {
    path: PathBuf,
    energy_uj: u64,
    /// Where the counter starts again at zero.
    range_uj: Option<u64>,
}

/// Whether there are counters, and the mean power since the last reading.
#[derive(Debug, Clone, Copy)]
struct RaplPower {
    present: bool,
    power_mw: Option<f64>,
}

impl Rapl {
    #[allow(clippy::cast_precision_loss)]
    fn mean_power_mw(&mut self, roots: &Roots, now: Instant) -> RaplPower {
        let zones = packages(roots);
        let present = !zones.is_empty();
        let before = self.last.replace((now, zones.clone()));
        let power_mw = before.and_then(|(then, old)| {
            let seconds = now.saturating_duration_since(then).as_secs_f64();
            let energy_uj = used_uj(&old, &zones)?;
            (seconds > 0.0).then(|| energy_uj as f64 / 1e3 / seconds)
        });
        RaplPower { present, power_mw: power_mw.and_then(plausible) }
    }
}

/// `None` when the packages are not the same, or one counter fell with no range to wrap at.
fn used_uj(before: &[Zone], after: &[Zone]) -> Option<u64> {
    if before.len() != after.len() || after.is_empty() {
        return None;
    }
    before.iter().zip(after).try_fold(0_u64, |sum, (old, new)| {
        if old.path != new.path {
            return None;
        }
        let used = match new.energy_uj.checked_sub(old.energy_uj) {
            Some(used) => used,
            None => new.range_uj?.checked_sub(old.energy_uj)?.checked_add(new.energy_uj)?,
        };
        sum.checked_add(used)
    })
}

/// Top-level zones that are packages; their sub-zones are part of them, and `psys` overlaps them.
fn packages(roots: &Roots) -> Vec<Zone> {
    numbered(roots.sys.join("class/powercap"), "intel-rapl:")
        .into_iter()
        .filter(|zone| read(zone.join("name")).is_some_and(|name| name.starts_with("package")))
        .filter_map(|path| {
            Some(Zone {
                energy_uj: value(path.join("energy_uj"))?,
                range_uj: value(path.join("max_energy_range_uj")),
                path,
            })
        })
        .collect()
}
