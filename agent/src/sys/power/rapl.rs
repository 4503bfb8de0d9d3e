//! RAPL: the energy counters of the processor packages and of the memory beside them.
//!
//! A package's `core` and `uncore` sub-zones are part of it; its `dram` sub-zone is not, for it counts
//! another supply. `psys` counts the platform and overlaps all of them. Source: Intel's SDM, volume 3B,
//! "Package RAPL Domain" and "DRAM RAPL Domain"; the kernel's `Documentation/power/powercap`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::gauges::plausible;
use crate::sys::{Roots, numbered, read, value};

/// The energy counters.
#[derive(Debug, Default)]
pub(super) struct Rapl {
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
pub(super) struct RaplPower {
    pub(super) present: bool,
    pub(super) power_mw: Option<f64>,
}

impl Rapl {
    #[allow(clippy::cast_precision_loss)]
    pub(super) fn mean_power_mw(&mut self, roots: &Roots, now: Instant) -> RaplPower {
        let zones = zones(roots);
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

/// `None` when the zones are not the same, or one counter fell with no range to wrap at.
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

/// Whether there is a counter that can be read.
pub(super) fn is_there(roots: &Roots) -> bool {
    !zones(roots).is_empty()
}

/// The packages, each with its memory. The memory's counter may be the only one that cannot be read.
fn zones(roots: &Roots) -> Vec<Zone> {
    let class = roots.sys.join("class/powercap");
    let named = |zone: &Path, wanted: &str| {
        read(zone.join("name")).is_some_and(|name| name.starts_with(wanted))
    };
    let mut zones = Vec::new();
    for package in numbered(&class, "intel-rapl:").into_iter().filter(|z| named(z, "package")) {
        let below = package.file_name().map(|name| format!("{}:", name.to_string_lossy()));
        let memory = numbered(&class, &below.unwrap_or_default());
        zones.extend(zone(package));
        zones.extend(memory.into_iter().filter(|z| named(z, "dram")).filter_map(zone));
    }
    zones
}

fn zone(path: PathBuf) -> Option<Zone> {
    Some(Zone {
        energy_uj: value(path.join("energy_uj"))?,
        range_uj: value(path.join("max_energy_range_uj")),
        path,
    })
}
