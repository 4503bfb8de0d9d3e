//! Gauges that tell a moment's power: batteries, and current sensors on the supply.

use std::path::{Path, PathBuf};

use crate::sys::{MAX_DIR_ENTRIES, Roots, numbered, read, value};

/// Readings of a megawatt are a broken sensor's.
pub(super) fn plausible(mw: f64) -> Option<f64> {
    Some(mw).filter(|mw| (0.0..1e9).contains(mw))
}

/// The first sensor of a supply rail: INA chips and ACPI power meters.
#[allow(clippy::cast_precision_loss)]
pub(super) fn hwmon_mw(roots: &Roots) -> Option<f64> {
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
    !discharging(roots).is_empty()
}

fn says(supply: &Path, file: &str, text: &str) -> bool {
    read(supply.join(file)).is_some_and(|told| told.trim() == text)
}

/// The machine's batteries that are being discharged, in order of name.
fn discharging(roots: &Roots) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(roots.sys.join("class/power_supply")) else {
        return Vec::new();
    };
    let mut supplies: Vec<PathBuf> = entries
        .take(MAX_DIR_ENTRIES)
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|supply| says(supply, "type", "Battery") && says(supply, "status", "Discharging"))
        .filter(|supply| !says(supply, "scope", "Device"))
        .collect();
    supplies.sort();
    supplies
}

/// What the batteries give together. One that is charging says nothing about what the board draws, and
/// where one of several that discharge does not tell, the sum of the others is not what the board draws.
pub(super) fn battery_mw(roots: &Roots) -> Option<f64> {
    let supplies = discharging(roots);
    let powers: Vec<f64> =
        supplies.iter().map(|supply| discharge_mw(supply)).collect::<Option<_>>()?;
    (!powers.is_empty()).then(|| powers.iter().sum())
}

fn discharge_mw(supply: &Path) -> Option<f64> {
    // Some drivers give a discharge as a negative number.
    let magnitude = |file| value::<i32>(supply.join(file)).map(|v| f64::from(v.unsigned_abs()));
    let microwatts = magnitude("power_now").or_else(|| {
        let volts = magnitude("voltage_now")? / 1e6;
        Some(magnitude("current_now")? * volts)
    })?;
    plausible(microwatts / 1e3)
}
