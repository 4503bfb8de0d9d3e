//! `probation.*`: when a new model counts as worse than it may be.

use super::reader::Reader;
use crate::core::ProbationRules;

pub(super) fn read(r: &mut Reader) -> ProbationRules {
    let d = ProbationRules::default();
    ProbationRules {
        false_rollback_rate: r.number(
            "probation.false_rollback_rate",
            d.false_rollback_rate,
            1e-9..=0.5,
        ),
        correlation_ms: r.integer("probation.correlation_ms", d.correlation_ms, 0..=3_600_000),
        latency_floor_us: r.integer(
            "probation.latency_floor_us",
            d.latency_floor_us,
            0..=3_600_000_000,
        ),
        memory_floor_bytes: r.integer(
            "probation.memory_floor_bytes",
            d.memory_floor_bytes,
            0..=1 << 40,
        ),
        energy_floor_mj: r.number("probation.energy_floor_mj", d.energy_floor_mj, 0.0..=1e9),
    }
}
