//! What a device promises to keep, and the small vocabularies around it.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Declares a closed vocabulary with its one spelling on the wire, in `Display` and in `FromStr`.
macro_rules! vocabulary {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $text)] $variant,)+ }

        impl $name {
            /// Every value, in declaration order.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// The spelling on the wire.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::budget::UnknownName;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($text => Ok($name::$variant),)+
                    _ => Err($crate::budget::UnknownName::new(stringify!($name), text, &[$($text),+])),
                }
            }
        }
    };
}
pub(crate) use vocabulary;

/// A word that is not in the vocabulary it was looked up in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{got:?} is no {vocabulary}; known are {known}")]
pub struct UnknownName {
    vocabulary: &'static str,
    got: String,
    known: String,
}

impl UnknownName {
    pub(crate) fn new(vocabulary: &'static str, got: &str, known: &[&str]) -> Self {
        let got = got.chars().take(64).collect();
        Self { vocabulary, got, known: known.join(", ") }
    }
}

vocabulary! {
    /// Where a number comes from.
    Quality {
        /// Read from a counter or a sensor.
        Measured = "measured",
        /// Computed from a model of the device.
        Modelled = "modelled",
        /// There is no such number here.
        None = "none",
    }
}

vocabulary! {
    /// The engine that runs a model on the device.
    Runtime {
        /// tract, built into the agent.
        Tract = "tract",
        /// ONNX Runtime, loaded at run time.
        Ort = "ort",
    }
}

vocabulary! {
    /// What a breach is attributed to.
    Cause {
        /// The model itself is too slow, large or inaccurate: the only cause that a smaller model mends.
        Model = "model",
        /// The CPU was throttled by heat.
        Thermal = "thermal",
        /// A hypervisor or a neighbour took CPU time, or drew the power.
        Steal = "steal",
        /// Pages were being read back from swap.
        Swap = "swap",
        /// The model had just been loaded.
        ColdStart = "cold_start",
        /// Requests no longer look like what the model was judged on.
        Data = "data",
        /// More requests came than the device can serve: the queue, not the model, is slow.
        Overload = "overload",
    }
}

vocabulary! {
    /// Which budget is meant.
    BudgetKind {
        /// 95th percentile of the compute time, microseconds.
        LatencyP95 = "latency_p95",
        /// Memory of the model's worker, bytes.
        Memory = "memory",
        /// Power draw, milliwatts.
        Power = "power",
        /// Energy per inference, millijoules.
        Energy = "energy",
        /// Share of answers equal to the original model's, 0 to 1.
        Agreement = "agreement",
        /// Distance of the requests from what the model was judged on, a population stability index.
        Drift = "drift",
    }
}

/// The budgets of one model on one device. An absent one is not watched.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Budgets {
    /// 95th percentile of the compute time, microseconds.
    #[serde(default)]
    pub latency_p95_us: Option<u64>,
    /// Proportional set size of the model's worker, bytes.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Mean power draw, milliwatts.
    #[serde(default)]
    pub power_mw: Option<u64>,
    /// Energy per inference, millijoules.
    #[serde(default)]
    pub energy_mj: Option<f64>,
    /// Lowest share of answers equal to the original model's, 0 to 1.
    #[serde(default)]
    pub agreement_min: Option<f64>,
    /// Greatest distance of the requests from what the model was judged on, a population stability
    /// index.
    #[serde(default)]
    pub drift_psi: Option<f64>,
}

impl Budgets {
    /// The limit of one kind, in the unit of its field.
    #[must_use]
    #[allow(clippy::cast_precision_loss)]
    pub fn limit(&self, kind: BudgetKind) -> Option<f64> {
        match kind {
            BudgetKind::LatencyP95 => self.latency_p95_us.map(|v| v as f64),
            BudgetKind::Memory => self.memory_bytes.map(|v| v as f64),
            BudgetKind::Power => self.power_mw.map(|v| v as f64),
            BudgetKind::Energy => self.energy_mj,
            BudgetKind::Agreement => self.agreement_min,
            BudgetKind::Drift => self.drift_psi,
        }
    }

    /// Whether nothing is watched.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        BudgetKind::ALL.iter().all(|kind| self.limit(*kind).is_none())
    }
}

/// The number, unless it is NaN or infinite: what an `Option<f64>` field of a payload should be given.
#[must_use]
pub fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

/// Serde for a required number: NaN and infinities are written as `null`, and `null` is read as NaN.
pub(crate) mod number {
    use super::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        super::finite(*value).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_word_reads_back_as_itself_and_is_spelled_alike_in_json() {
        for cause in Cause::ALL {
            assert_eq!(cause.to_string().parse::<Cause>().unwrap(), *cause);
            assert_eq!(serde_json::to_value(cause).unwrap(), cause.as_str());
        }
        for kind in BudgetKind::ALL {
            assert_eq!(kind.to_string().parse::<BudgetKind>().unwrap(), *kind);
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }

    #[test]
    fn an_unknown_word_names_the_known_ones() {
        let error = "tensorrt".parse::<Runtime>().unwrap_err();
        assert_eq!(error.to_string(), "\"tensorrt\" is no Runtime; known are tract, ort");
    }

    #[test]
    fn the_limit_of_a_kind_is_its_field() {
        let budgets =
            Budgets { power_mw: Some(2500), agreement_min: Some(0.9), ..Budgets::default() };
        assert_eq!(budgets.limit(BudgetKind::Power), Some(2500.0));
        assert_eq!(budgets.limit(BudgetKind::Agreement), Some(0.9));
        assert_eq!(budgets.limit(BudgetKind::LatencyP95), None);
        assert!(!budgets.is_empty());
        assert!(Budgets::default().is_empty());
    }
}
