//! What there is to know of a machine to understand how long something took on it, and what one process used of it.

use super::{Roots, field, read};

/// The longest name that is taken.
const MAX_NAME_BYTES: usize = 128;
/// Where processors say what they are: x86, then boards, then what old kernels of Arm have.
const NAMES: [&str; 3] = ["model name", "Model", "Hardware"];

/// The processor, or the board, as the kernel names it.
#[must_use]
pub fn cpu_name(roots: &Roots) -> Option<String> {
    let text = read(roots.proc.join("cpuinfo"))?;
    let named = |key: &str| {
        text.lines().find_map(|line| {
            let (found, name) = line.split_once(':')?;
            (found.trim() == key).then(|| name.trim().to_owned())
        })
    };
    let mut name = NAMES.iter().find_map(|key| named(key)).filter(|name| !name.is_empty())?;
    name.truncate(name.floor_char_boundary(MAX_NAME_BYTES));
    Some(name)
}

/// What decides on the clock of the first processor.
#[must_use]
pub fn governor(roots: &Roots) -> Option<String> {
    let text = read(roots.sys.join("devices/system/cpu/cpu0/cpufreq/scaling_governor"))?;
    let mut name = text.trim().to_owned();
    name.truncate(name.floor_char_boundary(MAX_NAME_BYTES));
    (!name.is_empty()).then_some(name)
}

/// Processor time of all threads of a process since its start, in ticks.
#[must_use]
pub fn process_ticks(roots: &Roots, pid: u32) -> Option<u64> {
    let text = read(roots.proc.join(pid.to_string()).join("stat"))?;
    // Its name, in brackets, may hold anything.
    let (_, rest) = text.rsplit_once(')')?;
    let at = |index: usize| rest.split_ascii_whitespace().nth(index)?.parse::<u64>().ok();
    at(11)?.checked_add(at(12)?)
}

/// The same in milliseconds, in steps of a tick.
#[must_use]
pub fn process_cpu_ms(roots: &Roots, pid: u32) -> Option<u64> {
    let ticks = process_ticks(roots, pid)?.checked_mul(1000)?;
    ticks.checked_div(rustix::param::clock_ticks_per_second())
}

/// The most memory that a process has had resident, the pages that it shares included.
#[must_use]
pub fn rss_peak_bytes(roots: &Roots, pid: u32) -> Option<u64> {
    let text = read(roots.proc.join(pid.to_string()).join("status"))?;
    field(&text, "VmHWM")?.checked_mul(1024)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sys::fixture::Machine;

    #[test]
    fn a_processor_goes_by_its_own_name_or_by_that_of_its_board() {
        let x86 = "processor\t: 0\nmodel\t\t: 154\nmodel name\t: Intel(R) N100\nflags\t: fpu\n";
        let pi = "processor\t: 0\nBogoMIPS\t: 108\n\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n";
        let of = |text: &str| cpu_name(&Machine::with(&[("proc/cpuinfo", text)]).roots());
        assert_eq!(of(x86).unwrap(), "Intel(R) N100");
        assert_eq!(of(pi).unwrap(), "Raspberry Pi 4 Model B Rev 1.4");
        assert_eq!(of("processor\t: 0\n"), None);
        assert_eq!(of(&format!("Model : {}\n", "é".repeat(100))).unwrap().len(), MAX_NAME_BYTES);
        assert_eq!(cpu_name(&Machine::empty().roots()), None);
    }

    #[test]
    fn a_process_is_read_whatever_its_name_is() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 9 0 0 0 250 50 0 0 20 0 3 0 1 1 1";
        let machine = Machine::with(&[
            ("proc/7/stat", stat),
            ("proc/7/status", "Name:\ta\nVmHWM:\t    2048 kB\nVmRSS:\t 100 kB\n"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "schedutil\n"),
        ]);
        assert_eq!(process_ticks(&machine.roots(), 7), Some(300));
        assert_eq!(rss_peak_bytes(&machine.roots(), 7), Some(2 << 20));
        assert_eq!(governor(&machine.roots()).as_deref(), Some("schedutil"));
        assert_eq!(process_ticks(&machine.roots(), 8), None);
    }

    #[test]
    fn this_process_has_used_something() {
        let roots = Roots::default();
        assert!(rss_peak_bytes(&roots, std::process::id()).is_some_and(|bytes| bytes > 1 << 20));
        assert!(process_ticks(&roots, std::process::id()).is_some());
    }
}
