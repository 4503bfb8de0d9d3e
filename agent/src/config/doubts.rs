//! Budgets that are valid and yet held against nothing, or against little: told by `check` and in the log
//! of each start, because a budget that has no effect must not pass for one that is kept.

use wire::{Budgets, Quality};

use super::Config;
use crate::sys::{Roots, power};

/// A budget that has less effect than it seems to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// Its key.
    pub key: String,
    /// Why, and what would mend it.
    pub what: String,
}

impl Config {
    /// Which budgets have less effect than it seems. Looks at the machine for what tells its power.
    #[must_use]
    pub fn doubts(&self) -> Vec<Doubt> {
        let power = self.power_doubt();
        let of = |(model, budgets): (&String, &Budgets)| {
            let doubt = |field: &str, what: Option<&str>| {
                let key = format!("budgets.{model}.{field}");
                what.map(|what| Doubt { key, what: what.to_owned() })
            };
            let floor = budgets.agreement_min.and_then(|_| self.floor_doubt());
            let power_mw = budgets.power_mw.and(power);
            let energy_mj = budgets.energy_mj.and(power);
            [
                doubt("agreement_min", floor),
                doubt("power_mw", power_mw),
                doubt("energy_mj", energy_mj),
            ]
        };
        self.budgets.iter().flat_map(of).flatten().collect()
    }

    fn floor_doubt(&self) -> Option<&'static str> {
        (self.install.shadow_requests == 0).then_some(
            "with install.shadow_requests = 0 a new model is never compared with the one that serves: \
             the floor is held only against the agreement that a bundle's manifest states",
        )
    }

    fn power_doubt(&self) -> Option<&'static str> {
        let roots = Roots::under(&self.sys_root);
        let error = self.power.line().and_then(|line| line.residual);
        match power::at_hand(&self.power, &roots).1 {
            Quality::Measured => None,
            Quality::Modelled if error.is_some() => None,
            Quality::Modelled => Some(
                "nothing measures this device's power, and two figures do not tell how wrong they are, \
                 so that no budget is held against it: give power.profile three points or more",
            ),
            Quality::None => Some(
                "nothing tells this device's power now: the budget is held only while something does \
                 (a battery tells while it is being discharged), or with power.profile",
            ),
        }
    }
}
