//! Boards that can be emulated, and how much slower than the reference core each of them is.
//!
//! A profile holds published figures only: milliseconds of three nets (ncnn's benchmark), the power
//! of the idle and of the loaded board, and constants of a first-order thermal model. The factor by
//! which a computation is stretched is *fitted* to the published milliseconds: per data type and
//! thread count the geometric mean, over the nets, of `board ms / reference ms`. How well that
//! carries over to a net that was not in the fit is stated by [`Fit::held_out`].
//!
//! It does not know the host: the factor is relative to the reference core, and a host whose core
//! is faster or slower is corrected by [`Profile::slowdown`]'s `host_speed`.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// Data type of the arithmetic that does the work of a net.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataType {
    /// 32 bit floating point.
    Fp32,
    /// 8 bit integers with 32 bit sums.
    Int8,
}

/// Whether a figure was read off a meter or estimated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Published by somebody who measured it.
    Measured,
    /// Estimated by us.
    Modelled,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Measured => "measured",
            Self::Modelled => "modelled",
        })
    }
}

/// Published milliseconds of one net in both data types.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetMillis {
    /// Average milliseconds of the fp32 net.
    pub fp32_ms: f64,
    /// Average milliseconds of the int8 net.
    pub int8_ms: f64,
}

/// One row of the published table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    /// Threads the figures were taken with.
    pub threads: u32,
    /// `MobileNetV1`.
    pub mobilenet_v1: Option<NetMillis>,
    /// ResNet-18.
    pub resnet18: Option<NetMillis>,
    /// ResNet-50.
    pub resnet50: Option<NetMillis>,
}

/// Power of the whole board.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoardPower {
    /// Idle, milliwatts.
    pub idle_mw: f64,
    /// All cores busy, milliwatts.
    pub load_mw: f64,
    /// Where the two figures come from.
    pub quality: Origin,
    /// Who measured, or how it was estimated.
    pub source: String,
}

/// Constants of the first-order thermal model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThermalConstants {
    /// Temperature of the air.
    pub ambient_c: f64,
    /// Kelvin above ambient per watt, in equilibrium.
    pub resistance_c_per_w: f64,
    /// Joules that warm the board by one kelvin.
    pub capacity_j_per_c: f64,
    /// The clock drops at this temperature …
    pub throttle_c: f64,
    /// … and rises again at this one.
    pub resume_c: f64,
    /// The clock while throttled.
    pub throttled_khz: u64,
    /// Always modelled.
    pub quality: Origin,
}

/// A board.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Name on the command line and device class on the wire.
    pub slug: String,
    /// Name for people.
    pub title: String,
    /// Cores and their kind.
    pub cpu: String,
    /// Instruction set of the real board (the emulated agent runs the host's).
    pub arch: String,
    /// Number of cores.
    pub cores: u32,
    /// Main memory.
    pub memory_mib: u64,
    /// Highest clock.
    pub max_khz: u64,
    /// Lowest clock.
    pub min_khz: u64,
    /// Published milliseconds.
    pub figures: Vec<Figures>,
    /// Power of the board.
    pub power: BoardPower,
    /// Thermal model.
    pub thermal: ThermalConstants,
}

/// A slowdown fitted to the published figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fit {
    /// Threads on the board (the reference figures are always for one).
    pub threads: u32,
    /// Data type.
    pub data_type: DataType,
    /// Geometric mean of board time over reference time.
    pub factor: f64,
    /// The ratio of each net.
    pub ratios: BTreeMap<&'static str, f64>,
    /// Error for each net when it is predicted from the others, `predicted / published - 1`.
    pub held_out: BTreeMap<&'static str, f64>,
    /// Largest absolute held-out error.
    pub held_out_worst: f64,
}

/// Why a profile or a factor is not available.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// No such board.
    #[error("there is no board profile {wanted:?}; known are {known}")]
    Unknown {
        /// What was asked for.
        wanted: String,
        /// Every slug.
        known: String,
    },
    /// No published figures for this thread count.
    #[error("no figures are published for {slug} with {threads} thread(s); published are {known}")]
    Threads {
        /// Board.
        slug: String,
        /// What was asked for.
        threads: u32,
        /// Thread counts with figures.
        known: String,
    },
    /// A host speed that is no speed.
    #[error("the host's speed relative to the reference core must be between 0.05 and 20, not {0}")]
    HostSpeed(f64),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reference {
    title: String,
    figures: Figures,
}

const BOARD_FILES: [&str; 9] = [
    include_str!("../profiles/raspberry-pi-zero-2-w.toml"),
    include_str!("../profiles/raspberry-pi-3b-plus.toml"),
    include_str!("../profiles/raspberry-pi-4.toml"),
    include_str!("../profiles/raspberry-pi-5.toml"),
    include_str!("../profiles/jetson-nano.toml"),
    include_str!("../profiles/qrb2210.toml"),
    include_str!("../profiles/allwinner-h616.toml"),
    include_str!("../profiles/imx7d.toml"),
    include_str!("../profiles/celeron-n5105.toml"),
];
const REFERENCE_FILE: &str = include_str!("../profiles/reference.toml");

/// Every board, in the order of the table they were published in.
#[must_use]
pub fn all() -> &'static [Profile] {
    static ALL: OnceLock<Vec<Profile>> = OnceLock::new();
    ALL.get_or_init(|| {
        BOARD_FILES
            .iter()
            .map(|text| toml::from_str(text).expect("the embedded profiles are tested to parse"))
            .collect()
    })
}

/// Name of the core that all factors are relative to.
#[must_use]
pub fn reference_title() -> &'static str {
    &reference().title
}

/// The board called `slug`.
///
/// # Errors
/// [`ProfileError::Unknown`] lists the boards there are.
pub fn find(slug: &str) -> Result<&'static Profile, ProfileError> {
    all().iter().find(|p| p.slug == slug).ok_or_else(|| ProfileError::Unknown {
        wanted: slug.to_owned(),
        known: all().iter().map(|p| p.slug.as_str()).collect::<Vec<_>>().join(", "),
    })
}

impl Profile {
    /// Every fit the published figures allow.
    #[must_use]
    pub fn fits(&self) -> Vec<Fit> {
        let types = [DataType::Fp32, DataType::Int8];
        self.figures.iter().flat_map(|row| types.map(|data_type| fit(row, data_type))).collect()
    }

    /// The fit for a thread count and data type.
    ///
    /// # Errors
    /// [`ProfileError::Threads`] when the board has no published figures for that thread count:
    /// nothing is extrapolated, because four threads give anything between 2.0 and 3.3 times one.
    pub fn fit(&self, threads: u32, data_type: DataType) -> Result<Fit, ProfileError> {
        let row = self.figures.iter().find(|row| row.threads == threads);
        row.map(|row| fit(row, data_type)).ok_or_else(|| ProfileError::Threads {
            slug: self.slug.clone(),
            threads,
            known: self
                .figures
                .iter()
                .map(|f| f.threads.to_string())
                .collect::<Vec<_>>()
                .join(", "),
        })
    }

    /// How many times longer one host core's computation takes on the board.
    ///
    /// `host_speed` is the host core's speed relative to the reference core, 1.0 when they are
    /// taken to be equal. The host computes on one thread whatever `threads` says.
    ///
    /// # Errors
    /// No published figures for `threads`, or a `host_speed` out of range.
    pub fn slowdown(
        &self,
        threads: u32,
        data_type: DataType,
        host_speed: f64,
    ) -> Result<f64, ProfileError> {
        if !(0.05..=20.0).contains(&host_speed) {
            return Err(ProfileError::HostSpeed(host_speed));
        }
        Ok(self.fit(threads, data_type)?.factor * host_speed)
    }

    /// Main memory in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.memory_mib * 1024 * 1024
    }
}

fn reference() -> &'static Reference {
    static REFERENCE: OnceLock<Reference> = OnceLock::new();
    REFERENCE.get_or_init(|| {
        toml::from_str(REFERENCE_FILE).expect("the embedded reference is tested to parse")
    })
}

fn fit(row: &Figures, data_type: DataType) -> Fit {
    let ratios = ratios(row, data_type);
    let held_out: BTreeMap<_, _> = ratios
        .iter()
        .filter(|_| ratios.len() > 1)
        .map(|(net, actual)| {
            let others = ratios.iter().filter(|(other, _)| *other != net).map(|(_, r)| *r);
            (*net, geometric_mean(others) / actual - 1.0)
        })
        .collect();
    Fit {
        threads: row.threads,
        data_type,
        factor: geometric_mean(ratios.values().copied()),
        held_out_worst: held_out.values().fold(0.0, |worst: f64, e| worst.max(e.abs())),
        ratios,
        held_out,
    }
}

fn ratios(row: &Figures, data_type: DataType) -> BTreeMap<&'static str, f64> {
    let pick = |net: &NetMillis| match data_type {
        DataType::Fp32 => net.fp32_ms,
        DataType::Int8 => net.int8_ms,
    };
    let base = &reference().figures;
    [
        ("mobilenet_v1", &row.mobilenet_v1, &base.mobilenet_v1),
        ("resnet18", &row.resnet18, &base.resnet18),
        ("resnet50", &row.resnet50, &base.resnet50),
    ]
    .into_iter()
    .filter_map(|(name, board, base)| Some((name, pick(board.as_ref()?) / pick(base.as_ref()?))))
    .collect()
}

#[allow(clippy::cast_precision_loss)]
fn geometric_mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0_u32), |(sum, n), v| (sum + v.ln(), n + 1));
    if n == 0 { f64::NAN } else { (sum / f64::from(n)).exp() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_embedded_profile_parses_and_has_a_unique_slug() {
        let mut slugs: Vec<_> = all().iter().map(|p| &p.slug).collect();
        slugs.sort();
        slugs.dedup();
        assert_eq!(slugs.len(), 9);
        assert!(reference_title().contains("8573C"));
    }

    #[test]
    fn a_pi_4_thread_is_fourteen_times_slower_than_the_reference_core_in_fp32() {
        let fit = find("raspberry-pi-4").unwrap().fit(1, DataType::Fp32).unwrap();
        // (124.3/7.9 * 191.1/14.6 * 534.1/39.1)^(1/3)
        assert!((fit.factor - 14.117).abs() < 0.01, "{}", fit.factor);
        assert_eq!(fit.ratios.len(), 3);
    }

    #[test]
    fn leaving_a_net_out_predicts_it_from_the_other_two() {
        let fit = find("raspberry-pi-4").unwrap().fit(1, DataType::Fp32).unwrap();
        let others = ((191.1_f64 / 14.6) * (534.1 / 39.1)).sqrt();
        let expected = others / (124.3 / 7.9) - 1.0;
        assert!((fit.held_out["mobilenet_v1"] - expected).abs() < 1e-12);
        assert!((fit.held_out_worst - expected.abs()).abs() < 1e-12);
    }

    #[test]
    fn a_net_that_was_left_out_is_predicted_within_a_factor_of_two_on_every_board() {
        for profile in all() {
            for fit in profile.fits() {
                assert!(fit.factor > 1.0, "{} {fit:?}", profile.slug);
                assert!(fit.held_out_worst < 0.85, "{} {fit:?}", profile.slug);
                assert!(!fit.held_out.is_empty());
            }
        }
    }

    #[test]
    fn int8_is_slower_than_fp32_on_the_n5105_and_faster_on_a_pi_zero() {
        let ms = |slug, data_type| {
            // The reference core's own gain from int8 is part of the figures, so compare times.
            let row = &find(slug).unwrap().figures[0];
            let net = row.resnet18.unwrap();
            if data_type == DataType::Int8 { net.int8_ms } else { net.fp32_ms }
        };
        assert!(ms("celeron-n5105", DataType::Int8) > ms("celeron-n5105", DataType::Fp32));
        assert!(
            ms("raspberry-pi-zero-2-w", DataType::Int8)
                < ms("raspberry-pi-zero-2-w", DataType::Fp32)
        );
    }

    #[test]
    fn a_thread_count_without_published_figures_is_an_error_that_lists_those_there_are() {
        let error = find("allwinner-h616").unwrap().slowdown(1, DataType::Fp32, 1.0).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("allwinner-h616") && text.contains("published are 4"), "{text}");
    }

    #[test]
    fn an_unknown_board_is_an_error_that_lists_the_known_ones() {
        let text = find("raspberry-pi-44").unwrap_err().to_string();
        assert!(text.contains("raspberry-pi-4,") && text.contains("jetson-nano"), "{text}");
    }

    #[test]
    fn a_host_twice_as_fast_as_the_reference_is_stretched_twice_as_much() {
        let board = find("raspberry-pi-5").unwrap();
        let equal = board.slowdown(4, DataType::Int8, 1.0).unwrap();
        let fast = board.slowdown(4, DataType::Int8, 2.0).unwrap();
        assert!((fast / equal - 2.0).abs() < 1e-12);
        assert!(board.slowdown(4, DataType::Int8, 0.0).is_err());
        assert!(board.slowdown(4, DataType::Int8, f64::NAN).is_err());
    }
}
