//! What several commands share: engine options and the units people write.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use runtime::{EngineKind, EngineOptions};

use crate::pipeline::budget::Amount;

/// What every command takes, for those that run no engine and draw nothing at random.
#[derive(Debug, Clone, Args)]
pub struct Reporting {
    /// Print one JSON object to standard output.
    #[arg(long)]
    pub json: bool,
    /// Taken as everywhere; nothing here is random.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Taken as everywhere; no inference is computed here.
    #[arg(long, default_value_t = 1, value_parser = threads)]
    pub threads: usize,
}

/// Which engine, and how to report.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Engine to measure in: the one that will serve the model.
    #[arg(long, value_name = "ENGINE", default_value_t = EngineKind::Tract)]
    pub runtime: EngineKind,
    /// Threads that compute one inference.
    #[arg(long, default_value_t = 1, value_parser = threads)]
    pub threads: usize,
    /// ONNX Runtime library; without it ORT_DYLIB_PATH and the usual places are searched.
    #[arg(long, value_name = "FILE")]
    pub ort_library: Option<PathBuf>,
    /// Print one JSON object to standard output.
    #[arg(long)]
    pub json: bool,
    /// Seed of everything random: the same seed gives the same bytes.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

impl Common {
    /// The engine's options.
    pub fn engine(&self) -> EngineOptions {
        EngineOptions {
            threads: self.threads,
            ort_library: self.ort_library.clone(),
            ..EngineOptions::new(self.runtime)
        }
    }
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=256) => Ok(n),
        _ => Err("threads are 1 to 256".into()),
    }
}

/// A duration such as `20ms`, `1.5s` or `800us`.
///
/// # Errors
/// The text is no such duration, or is not above zero.
pub fn duration(text: &str) -> Result<Duration, String> {
    let units = [("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)];
    let seconds = with_unit(text, &units)
        .ok_or_else(|| format!("\"{text}\" is no duration; write it as 20ms, 1.5s or 800us"))?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|d| d.as_micros() > 0)
        .ok_or_else(|| format!("\"{text}\" is not a duration of at least 1us"))
}

/// A size such as `64MiB`, `3MB` or `4096`.
///
/// # Errors
/// The text is no such size, or is not above zero.
pub fn size(text: &str) -> Result<u64, String> {
    let units = [
        ("KiB", 1024.0),
        ("MiB", 1024.0 * 1024.0),
        ("GiB", 1024.0 * 1024.0 * 1024.0),
        ("kB", 1e3),
        ("KB", 1e3),
        ("MB", 1e6),
        ("GB", 1e9),
        ("B", 1.0),
        ("", 1.0),
    ];
    with_unit(text, &units)
        .filter(|bytes| *bytes >= 1.0 && *bytes < 1e18)
        .map(|bytes| bytes as u64)
        .ok_or_else(|| format!("\"{text}\" is no size; write it as 64MiB, 3MB or 4096"))
}

/// A share such as `0.01` or `1%`.
///
/// # Errors
/// The text is no number from 0 to 1.
pub fn share(text: &str) -> Result<f64, String> {
    let value = match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().map(|v| v / 100.0),
        None => text.parse(),
    };
    value
        .ok()
        .filter(|v| (0.0..=1.0).contains(v))
        .ok_or_else(|| format!("\"{text}\" is no share; write it as 0.01 or 1%"))
}

/// A count such as `250000`, `250k`, `1.5M` or `2G`.
///
/// # Errors
/// The text is no such number, or is under 1.
pub fn count(text: &str) -> Result<u64, String> {
    with_unit(text, &[("k", 1e3), ("M", 1e6), ("G", 1e9), ("", 1.0)])
        .filter(|count| *count >= 1.0 && *count < 1e18)
        .map(|count| count as u64)
        .ok_or_else(|| format!("\"{text}\" is no count; write it as 250000, 250k, 1.5M or 2G"))
}

/// A share of what the original has, such as `60%`, or what `own` reads, in its unit.
///
/// # Errors
/// The text is neither.
pub fn amount(text: &str, own: impl Fn(&str) -> Result<f64, String>) -> Result<Amount, String> {
    if text.trim_end().ends_with('%') {
        return share(text.trim()).map(Amount::Share).and_then(|amount| match amount {
            Amount::Share(share) if share <= 0.0 => Err("0% leaves nothing".into()),
            amount => Ok(amount),
        });
    }
    own(text).map(Amount::Of).map_err(|why| format!("{why}, or as a share of the original: 60%"))
}

fn with_unit(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let text = text.trim();
    units.iter().find_map(|(unit, factor)| {
        let number = text.strip_suffix(unit)?.trim_end();
        let value: f64 = number.parse().ok()?;
        (value.is_finite() && value > 0.0).then_some(value * factor)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_units() {
        assert_eq!(duration("20ms").unwrap(), Duration::from_millis(20));
        assert_eq!(duration("1.5s").unwrap(), Duration::from_millis(1500));
        assert_eq!(duration("800 us").unwrap(), Duration::from_micros(800));
        for bad in ["20", "ms", "-1ms", "0ms", "nanms", "1e300s", "0.1us"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(size("64MiB").unwrap(), 64 << 20);
        assert_eq!(size("3MB").unwrap(), 3_000_000);
        assert_eq!(size("4096").unwrap(), 4096);
        for bad in ["", "MiB", "-1", "0", "1e30GiB", "inf"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn amounts_are_counts_or_shares_of_the_original() {
        let params = |text: &str| amount(text, |text| count(text).map(|n| n as f64));
        assert_eq!(params("250k").unwrap(), Amount::Of(250_000.0));
        assert_eq!(params("1.5M").unwrap(), Amount::Of(1_500_000.0));
        assert_eq!(params("60%").unwrap(), Amount::Share(0.6));
        for bad in ["0%", "101%", "-3", "0", "0.5", "k", "1e30", "nan", "%"] {
            assert!(params(bad).is_err(), "{bad}");
        }
        assert!(params("many").unwrap_err().contains("60%"));
    }

    #[test]
    fn shares_are_fractions_or_percent() {
        assert!((share("1%").unwrap() - 0.01).abs() < 1e-12);
        assert!((share("0.9").unwrap() - 0.9).abs() < 1e-12);
        for bad in ["2", "-0.1", "101%", "x"] {
            assert!(share(bad).is_err(), "{bad}");
        }
    }
}
