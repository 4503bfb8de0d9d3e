//! Pressure stall information: for how much of the time something waited for a resource.
//!
//! The kernel tells it of the machine in `/proc/pressure` and, in version 2, of each control group
//! (`cpu.pressure` and its like). *Some* is time in which at least one task waited, *full* time in which
//! all that were not idle did. Kernels without `CONFIG_PSI`, or booted with `psi=0`, tell nothing.
//! Source: the kernel's `Documentation/accounting/psi.rst`.

use std::path::Path;
use std::time::Duration;

use super::{Roots, read};

/// For how long there was pressure on one resource since the machine started, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stalls {
    /// At least one task waited.
    pub some_us: u64,
    /// All tasks waited; `None` where the kernel does not tell, as of the processor on older ones.
    pub full_us: Option<u64>,
}

/// For how long there was pressure on each resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Waiting for a processor.
    pub cpu: Option<Stalls>,
    /// Waiting for memory: reclaim, swap, pages that had been evicted.
    pub memory: Option<Stalls>,
    /// Waiting for storage.
    pub io: Option<Stalls>,
}

/// Pressure within a window, in percent of it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PressureShares {
    /// Something waited for a processor.
    pub cpu: Option<f64>,
    /// Something waited for memory.
    pub memory: Option<f64>,
    /// Everything waited for memory.
    pub memory_full: Option<f64>,
    /// Something waited for storage.
    pub io: Option<f64>,
    /// Everything waited for storage.
    pub io_full: Option<f64>,
}

impl Pressure {
    /// The machine's.
    #[must_use]
    pub fn of_machine(roots: &Roots) -> Self {
        let folder = roots.proc.join("pressure");
        let of = |name: &str| stalls(&folder.join(name));
        Self { cpu: of("cpu"), memory: of("memory"), io: of("io") }
    }

    /// That of a control group of version 2.
    #[must_use]
    pub fn of_group(folder: &Path) -> Self {
        let of = |name: &str| stalls(&folder.join(format!("{name}.pressure")));
        Self { cpu: of("cpu"), memory: of("memory"), io: of("io") }
    }

    /// What lies between an earlier reading and this one.
    #[must_use]
    pub fn since(&self, before: &Self, elapsed: Duration) -> PressureShares {
        let some = |now: Option<Stalls>, before: Option<Stalls>| {
            share(Some(now?.some_us), Some(before?.some_us), elapsed)
        };
        let full = |now: Option<Stalls>, before: Option<Stalls>| {
            share(now?.full_us, before?.full_us, elapsed)
        };
        PressureShares {
            cpu: some(self.cpu, before.cpu),
            memory: some(self.memory, before.memory),
            memory_full: full(self.memory, before.memory),
            io: some(self.io, before.io),
            io_full: full(self.io, before.io),
        }
    }
}

#[allow(clippy::cast_precision_loss)]
fn share(now: Option<u64>, before: Option<u64>, elapsed: Duration) -> Option<f64> {
    let stalled = now?.checked_sub(before?)? as f64;
    let whole = elapsed.as_micros() as f64;
    (whole > 0.0).then(|| (100.0 * stalled / whole).clamp(0.0, 100.0))
}

/// Lines of `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`.
fn stalls(file: &Path) -> Option<Stalls> {
    let text = read(file)?;
    let total = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
        line.split_ascii_whitespace().find_map(|word| word.strip_prefix("total=")?.parse().ok())
    };
    Some(Stalls { some_us: total("some")?, full_us: total("full") })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::float_cmp)]
mod tests {
    use super::*;
    use crate::sys::fixture::Machine;

    fn text(some: u64, full: u64) -> String {
        format!(
            "some avg10=9.00 avg60=9.00 avg300=9.00 total={some}\nfull avg10=9.00 avg60=0.00 avg300=0.00 total={full}\n"
        )
    }

    #[test]
    fn pressure_is_the_share_of_the_window_and_not_the_kernel_s_averages() {
        let machine = Machine::with(&[
            ("proc/pressure/cpu", "some avg10=0.00 avg60=0.00 avg300=0.00 total=1000\n"),
            ("proc/pressure/memory", &text(5000, 100)),
        ]);
        let before = Pressure::of_machine(&machine.roots());
        machine.write("proc/pressure/cpu", "some avg10=0.00 total=251000\n");
        machine.write("proc/pressure/memory", text(105_000, 50_100));
        let after = Pressure::of_machine(&machine.roots());
        let shares = after.since(&before, Duration::from_secs(1));
        let wanted = PressureShares {
            cpu: Some(25.0),
            memory: Some(10.0),
            memory_full: Some(5.0),
            io: None,
            io_full: None,
        };
        assert_eq!(shares, wanted);
    }

    #[test]
    fn a_group_s_files_have_other_names_and_nonsense_is_nothing() {
        let machine = Machine::with(&[
            ("g/cpu.pressure", &text(7, 3)),
            ("g/memory.pressure", "some avg10=0.00 total=x\n"),
            ("g/io.pressure", "full total=1\n"),
        ]);
        let pressure = Pressure::of_group(&machine.path("g"));
        assert_eq!(pressure.cpu, Some(Stalls { some_us: 7, full_us: Some(3) }));
        assert_eq!((pressure.memory, pressure.io), (None, None));
        assert_eq!(Pressure::of_machine(&machine.roots()), Pressure::default());
    }

    #[test]
    fn a_counter_that_runs_backwards_is_no_pressure_at_all() {
        let of = |some_us| Pressure {
            cpu: Some(Stalls { some_us, full_us: None }),
            ..Pressure::default()
        };
        assert_eq!(of(5).since(&of(9), Duration::from_secs(1)).cpu, None);
        assert_eq!(of(9).since(&of(5), Duration::ZERO).cpu, None);
        assert_eq!(of(9_000_000).since(&of(0), Duration::from_secs(1)).cpu, Some(100.0));
    }
}
