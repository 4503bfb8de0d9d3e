//! Power and temperature of an emulated board: a pure step function.
//!
//! Power follows the share of busy cores linearly between the idle and the loaded board. The
//! temperature follows the power as a first-order system, solved exactly over a step of constant
//! power `P`, with thermal resistance `R` and capacity `C`:
//!
//! ```text
//! T(t + dt) = T_eq + (T(t) - T_eq) * exp(-dt / (R * C)),   T_eq = T_ambient + P * R
//! ```
//!
//! At `throttle_c` the clock drops to `throttled_khz` and stays there until `resume_c`. A throttled
//! board computes slower in proportion to its clock, and the part of its power above idle falls in
//! the same proportion (voltage is taken to be constant, which errs on the warm side).
//!
//! No IO, no clock. Everything that comes out of here is *modelled*.

use std::time::Duration;

use crate::profiles::Profile;

/// What the board is like at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BoardState {
    /// Temperature of the processor.
    pub temperature_c: f64,
    /// Power of the whole board.
    pub power_mw: f64,
    /// Clock of all cores.
    pub freq_khz: u64,
    /// Whether the clock is held down by heat.
    pub throttled: bool,
    /// Share of all cores that was busy in the last step, 0 to 1.
    pub utilisation: f64,
    /// Energy since the start.
    pub energy_mj: f64,
}

impl BoardState {
    /// A board that has been idle for long.
    #[must_use]
    pub fn idle(profile: &Profile) -> Self {
        let power_mw = profile.power.idle_mw;
        Self {
            temperature_c: equilibrium_c(profile, power_mw),
            power_mw,
            freq_khz: profile.max_khz,
            throttled: false,
            utilisation: 0.0,
            energy_mj: 0.0,
        }
    }

    /// The board after `dt` with `utilisation` of its cores busy (clamped to 0..=1; NaN is 0).
    #[must_use]
    pub fn step(&self, profile: &Profile, utilisation: f64, dt: Duration) -> Self {
        let utilisation = if utilisation.is_nan() { 0.0 } else { utilisation.clamp(0.0, 1.0) };
        let power_mw = power_mw(profile, utilisation, self.freq_khz);
        let target_c = equilibrium_c(profile, power_mw);
        let thermal = &profile.thermal;
        let time_constant_s = thermal.resistance_c_per_w * thermal.capacity_j_per_c;
        let decay = (-dt.as_secs_f64() / time_constant_s).exp();
        let temperature_c = target_c + (self.temperature_c - target_c) * decay;
        let throttled = if self.throttled {
            temperature_c > thermal.resume_c
        } else {
            temperature_c >= thermal.throttle_c
        };
        Self {
            temperature_c,
            power_mw,
            freq_khz: if throttled { thermal.throttled_khz } else { profile.max_khz },
            throttled,
            utilisation,
            energy_mj: self.energy_mj + power_mw * dt.as_secs_f64(),
        }
    }

    /// How much longer everything takes at the present clock, 1.0 when it is not held down.
    #[must_use]
    #[allow(clippy::cast_precision_loss)]
    pub fn clock_stretch(&self, profile: &Profile) -> f64 {
        profile.max_khz as f64 / self.freq_khz as f64
    }
}

#[allow(clippy::cast_precision_loss)]
fn power_mw(profile: &Profile, utilisation: f64, freq_khz: u64) -> f64 {
    let clock = freq_khz as f64 / profile.max_khz as f64;
    profile.power.idle_mw + utilisation * clock * (profile.power.load_mw - profile.power.idle_mw)
}

fn equilibrium_c(profile: &Profile, power_mw: f64) -> f64 {
    profile.thermal.ambient_c + power_mw / 1000.0 * profile.thermal.resistance_c_per_w
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::profiles;

    fn pi4() -> &'static Profile {
        profiles::find("raspberry-pi-4").unwrap()
    }

    fn run(mut state: BoardState, utilisation: f64, seconds: u32) -> BoardState {
        for _ in 0..seconds {
            state = state.step(pi4(), utilisation, Duration::from_secs(1));
        }
        state
    }

    #[test]
    fn an_idle_board_stays_as_it_is() {
        let start = BoardState::idle(pi4());
        let later = run(start, 0.0, 3600);
        assert!((later.temperature_c - start.temperature_c).abs() < 1e-9);
        assert_eq!(later.power_mw, 1600.0);
        assert!((later.energy_mj - 1600.0 * 3600.0).abs() < 1.0);
    }

    #[test]
    fn power_is_linear_between_the_published_idle_and_load_figures() {
        let idle = BoardState::idle(pi4());
        assert_eq!(idle.step(pi4(), 1.0, Duration::from_millis(1)).power_mw, 5000.0);
        let half = idle.step(pi4(), 0.5, Duration::from_millis(1));
        assert!((half.power_mw - 3300.0).abs() < 1e-9);
    }

    #[test]
    fn after_one_time_constant_it_has_gone_63_percent_of_the_way() {
        let start = BoardState::idle(pi4());
        let tau = pi4().thermal.resistance_c_per_w * pi4().thermal.capacity_j_per_c;
        let later = start.step(pi4(), 0.25, Duration::from_secs_f64(tau));
        let target = 25.0 + 2.45 * 12.0;
        let share = (later.temperature_c - start.temperature_c) / (target - start.temperature_c);
        assert!((share - 0.632).abs() < 0.001, "{share}");
    }

    #[test]
    fn many_small_steps_and_one_large_step_agree() {
        let start = BoardState::idle(pi4());
        let mut small = start;
        for _ in 0..1000 {
            small = small.step(pi4(), 0.3, Duration::from_millis(50));
        }
        let large = start.step(pi4(), 0.3, Duration::from_secs(50));
        assert!((small.temperature_c - large.temperature_c).abs() < 1e-6);
    }

    #[test]
    fn full_load_throttles_the_bare_board_and_it_recovers_with_hysteresis() {
        let hot = run(BoardState::idle(pi4()), 1.0, 900);
        let mut seen_throttled = false;
        let mut state = BoardState::idle(pi4());
        for _ in 0..900 {
            state = state.step(pi4(), 1.0, Duration::from_secs(1));
            seen_throttled |= state.throttled;
        }
        assert!(seen_throttled, "{hot:?}");
        let at_limit = BoardState { temperature_c: 80.0, throttled: false, ..state };
        let over = at_limit.step(pi4(), 1.0, Duration::from_secs(1));
        assert!(over.throttled);
        assert_eq!(over.freq_khz, 1_000_000);
        assert!((over.clock_stretch(pi4()) - 1.8).abs() < 1e-12);
        let cooling = BoardState { temperature_c: 78.5, ..over };
        assert!(cooling.step(pi4(), 0.0, Duration::from_millis(1)).throttled);
        assert!(!run(over, 0.0, 60).throttled);
    }

    #[test]
    fn a_share_that_is_not_a_number_counts_as_idle_and_too_much_as_all() {
        let idle = BoardState::idle(pi4());
        assert_eq!(idle.step(pi4(), f64::NAN, Duration::from_secs(1)).power_mw, 1600.0);
        assert_eq!(idle.step(pi4(), 7.0, Duration::from_secs(1)).power_mw, 5000.0);
        assert_eq!(idle.step(pi4(), -1.0, Duration::from_secs(1)).utilisation, 0.0);
    }
}
