//! Temperature, and whether the processor is being slowed down.

use super::{Roots, cpu, numbered, read, value};

/// Readings outside this range are a broken sensor's, in thousandths of a degree Celsius.
const PLAUSIBLE_MC: std::ops::RangeInclusive<i64> = -60_000..=200_000;
/// From here on a clock below its maximum under load is taken for throttling where no trip point
/// says better.
const HOT_MC: i64 = 80_000;
/// How far below a passive trip point the kernel already holds the clock down.
const TRIP_MARGIN_MC: i64 = 2_000;
/// A processor this busy would clock up if it could.
const BUSY_PERCENT: f64 = 50.0;
/// Below this share of the maximum the clock counts as held down.
const FULL_CLOCK: f64 = 0.95;
/// The Raspberry Pi firmware's present-time bits: clock capped, throttled, soft temperature limit.
/// Bit 0, under-voltage alone, slows nothing down.
const PI_SLOWED: u64 = 0b1110;

/// The hottest processor zone, in thousandths of a degree Celsius; the hottest of all where none
/// says that it is a processor's.
#[must_use]
pub fn temperature_mc(roots: &Roots) -> Option<i64> {
    let zones: Vec<(bool, i64)> = numbered(roots.sys.join("class/thermal"), "thermal_zone")
        .iter()
        .filter_map(|zone| {
            let reading = value(zone.join("temp")).filter(|t| PLAUSIBLE_MC.contains(t))?;
            let kind = read(zone.join("type")).unwrap_or_default().to_lowercase();
            let cpu = ["cpu", "soc", "pkg", "core"].iter().any(|k| kind.contains(k));
            Some((cpu, reading))
        })
        .collect();
    let hottest = |of_cpu: bool| {
        zones.iter().filter(|(cpu, _)| *cpu || !of_cpu).map(|&(_, reading)| reading).max()
    };
    hottest(true).or_else(|| hottest(false))
}

/// Finds throttling; it remembers the counters that only rise.
#[derive(Debug, Default)]
pub(super) struct ThrottleWatch {
    events: Option<u64>,
}

impl ThrottleWatch {
    /// What says that the processor is slowed down, or was since the last call.
    pub(super) fn cause(
        &mut self,
        roots: &Roots,
        temperature_mc: Option<i64>,
        busy_percent: Option<f64>,
    ) -> Option<&'static str> {
        let counted = self.changed(roots);
        if firmware_throttles(roots) {
            Some("firmware")
        } else if counted {
            Some("core_throttle_count")
        } else if cooling(roots) {
            Some("cooling_device")
        } else if held_down(roots, temperature_mc, busy_percent) {
            Some("clock_below_maximum_while_hot")
        } else {
            None
        }
    }

    /// Whether x86's throttle counters rose since the last call.
    pub(super) fn changed(&mut self, roots: &Roots) -> bool {
        let now = numbered(roots.sys.join("devices/system/cpu"), "cpu")
            .iter()
            .filter_map(|cpu| value(cpu.join("thermal_throttle/core_throttle_count")))
            .reduce(u64::saturating_add);
        let before = std::mem::replace(&mut self.events, now);
        matches!((before, now), (Some(before), Some(now)) if now > before)
    }
}

fn firmware_throttles(roots: &Roots) -> bool {
    read(roots.sys.join("devices/platform/soc/soc:firmware/get_throttled"))
        .and_then(|text| {
            let text = text.trim();
            let digits = text.strip_prefix("0x").unwrap_or(text);
            u64::from_str_radix(digits, 16).ok()
        })
        .is_some_and(|bits| bits & PI_SLOWED != 0)
}

/// A cooling device that works by slowing processors down, at work.
fn cooling(roots: &Roots) -> bool {
    numbered(roots.sys.join("class/thermal"), "cooling_device").iter().any(|device| {
        let kind = read(device.join("type")).unwrap_or_default().to_lowercase();
        let slows = kind.contains("cpufreq") || kind.contains("processor");
        slows && value::<u64>(device.join("cur_state")).is_some_and(|state| state > 0)
    })
}

/// Busy, hot, and yet not at the full clock.
#[allow(clippy::cast_precision_loss)]
fn held_down(roots: &Roots, temperature_mc: Option<i64>, busy_percent: Option<f64>) -> bool {
    let limit = passive_trip_mc(roots).map_or(HOT_MC, |trip| trip - TRIP_MARGIN_MC);
    let hot = temperature_mc.is_some_and(|t| t >= limit);
    let busy = busy_percent.is_some_and(|busy| busy >= BUSY_PERCENT);
    let slow = match (cpu::freq_khz(roots), cpu::max_freq_khz(roots)) {
        (Some(now), Some(max)) => (now as f64) < FULL_CLOCK * max as f64,
        _ => false,
    };
    hot && busy && slow
}

fn passive_trip_mc(roots: &Roots) -> Option<i64> {
    numbered(roots.sys.join("class/thermal"), "thermal_zone")
        .iter()
        .flat_map(|zone| (0..8).map(move |n| (zone.clone(), n)))
        .filter(|(zone, n)| {
            read(zone.join(format!("trip_point_{n}_type"))).is_some_and(|t| t.trim() == "passive")
        })
        .filter_map(|(zone, n)| value(zone.join(format!("trip_point_{n}_temp"))))
        .filter(|trip| PLAUSIBLE_MC.contains(trip))
        .min()
}
