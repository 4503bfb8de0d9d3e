//! The power chip of a Raspberry Pi 5, which measures the supplies behind it.
//!
//! Only the firmware can ask the chip, and only its program `vcgencmd` the firmware: `vcgencmd
//! pmic_read_adc` prints a voltage and a current of each supply. The sum of their products is what the
//! board's chips draw; what hangs directly on the five volts (USB devices, a fan, a hat) and what the
//! chip itself loses is not in it.
//!
//! The program runs beside the agent, which never waits for it: a call looks whether it has ended. One
//! that does not end is killed, and tried again a while later.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::gauges::plausible;
use crate::sys::{Roots, read};

/// The program, below [`Roots::programs`].
const PROGRAM: &str = "vcgencmd";
/// Boards that have the chip, as the device tree names them.
const BOARDS: [&str; 3] = ["Raspberry Pi 5", "Raspberry Pi Compute Module 5", "Raspberry Pi 500"];
/// How long the program may take.
const DEADLINE: Duration = Duration::from_secs(2);
/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(60);
/// How old a reading may be that still counts.
const STALE: Duration = Duration::from_secs(5);
/// The most that is read of what it prints, which is 1.5 kB. A pipe holds more, so that the program can
/// always end before it is read.
const MAX_OUTPUT_BYTES: u64 = 16 * 1024;

/// Asks the chip again and again.
#[derive(Debug, Default)]
pub(super) struct Pmic {
    run: Run,
    reading: Option<(Instant, f64)>,
    failed: bool,
}

#[derive(Debug, Default)]
enum Run {
    /// Nothing runs, and nothing is to run before then.
    #[default]
    Ready,
    Waiting(Instant),
    Asking(Child, Instant),
    /// It was killed and has not ended yet.
    Dying(Child),
}

impl Pmic {
    /// Whether this board has the chip and the program.
    pub(super) fn is_there(roots: &Roots) -> bool {
        let model = read(roots.sys.join("firmware/devicetree/base/model")).unwrap_or_default();
        BOARDS.iter().any(|board| model.starts_with(board))
            && roots.programs.join(PROGRAM).is_file()
    }

    /// Whether the chip can be asked, and what it said last. Starts the program, or looks after the one
    /// that runs.
    pub(super) fn poll(&mut self, roots: &Roots, now: Instant) -> (bool, Option<f64>) {
        if !Self::is_there(roots) {
            return (false, None);
        }
        self.run = self.step(now);
        if let Run::Ready = self.run {
            self.run = ask(roots)
                .map_or_else(|error| self.fails(now, &error), |child| Run::Asking(child, now));
        }
        let fresh = |(at, _): &(Instant, f64)| now.saturating_duration_since(*at) <= STALE;
        let power = self.reading.filter(fresh).map(|(_, power)| power);
        (power.is_some() || !self.failed, power)
    }

    fn step(&mut self, now: Instant) -> Run {
        match std::mem::take(&mut self.run) {
            Run::Waiting(until) if now < until => Run::Waiting(until),
            Run::Ready | Run::Waiting(_) => Run::Ready,
            Run::Asking(mut child, since) => match child.try_wait() {
                Ok(Some(status)) if status.success() => match answer(&mut child) {
                    Some(power) => {
                        self.failed = false;
                        self.reading = Some((now, power));
                        Run::Ready
                    }
                    None => self.fails(now, "it printed no voltage and current of one supply"),
                },
                Ok(Some(status)) => self.fails(now, &format!("it ended with {status}")),
                Ok(None) if now.saturating_duration_since(since) < DEADLINE => {
                    Run::Asking(child, since)
                }
                Ok(None) => {
                    let _ = child.kill();
                    Run::Dying(child)
                }
                Err(error) => self.fails(now, &error.to_string()),
            },
            Run::Dying(mut child) => match child.try_wait() {
                Ok(None) => Run::Dying(child),
                _ => {
                    self.fails(now, &format!("no answer after {} s (DEADLINE)", DEADLINE.as_secs()))
                }
            },
        }
    }

    /// Says so once, and waits before the next try.
    fn fails(&mut self, now: Instant, why: &str) -> Run {
        if !self.failed {
            tracing::warn!(why, "vcgencmd pmic_read_adc does not tell the board's power");
        }
        self.failed = true;
        Run::Waiting(now + RETRY)
    }

    /// Waits for the program, which only tests may.
    #[cfg(test)]
    pub(super) fn settle(&mut self) {
        if let Run::Asking(child, _) | Run::Dying(child) = &mut self.run {
            let _ = child.wait();
        }
    }
}

impl Drop for Pmic {
    fn drop(&mut self) {
        if let Run::Asking(child, _) | Run::Dying(child) = &mut self.run {
            let _ = child.kill();
        }
    }
}

fn ask(roots: &Roots) -> Result<Child, String> {
    Command::new(roots.programs.join(PROGRAM))
        .arg("pmic_read_adc")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| error.to_string())
}

/// What a program that has ended printed. Whoever it may have left behind is not waited for.
fn answer(child: &mut Child) -> Option<f64> {
    let output = child.stdout.take()?;
    rustix::io::ioctl_fionbio(&output, true).ok()?;
    let mut bytes = Vec::new();
    match output.take(MAX_OUTPUT_BYTES).read_to_end(&mut bytes) {
        Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return None,
        _ => {}
    }
    power_mw(&String::from_utf8(bytes).ok()?)
}

/// The sum over supplies that tell both a voltage and a current, from lines such as
/// ` VDD_CORE_A current(7)=1.23400000A` and ` VDD_CORE_V volt(15)=0.87500000V`.
fn power_mw(text: &str) -> Option<f64> {
    let (mut volts, mut amperes) = (BTreeMap::new(), BTreeMap::new());
    for line in text.lines() {
        let Some((name, rest)) = line.trim().split_once(' ') else { continue };
        let Some((_, number)) = rest.split_once('=') else { continue };
        let of = |suffix: &str, unit: char| {
            let value = number.trim().strip_suffix(unit)?.parse::<f64>().ok()?;
            Some((name.strip_suffix(suffix)?.to_owned(), value)).filter(|_| value.is_finite())
        };
        volts.extend(of("_V", 'V'));
        amperes.extend(of("_A", 'A'));
    }
    let both = volts.iter().filter_map(|(name, volts)| Some(volts * amperes.get(name)?));
    let powers: Vec<f64> = both.collect();
    if powers.is_empty() { None } else { plausible(powers.iter().sum::<f64>() * 1e3) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::sys::fixture::Machine;

    const ANSWER: &str = " VDD_CORE_A current(7)=2.00000000A\n VDD_CORE_V volt(15)=0.90000000V\n \
        3V3_SYS_A current(1)=0.10000000A\n 3V3_SYS_V volt(9)=3.30000000V\n EXT5V_V volt(24)=5.1V\n";

    /// A board with a program of that text.
    pub(crate) fn board(model: &str, script: &str) -> Machine {
        let machine = Machine::with(&[("sys/firmware/devicetree/base/model", model)]);
        machine.write("usr/bin/vcgencmd", format!("#!/bin/sh\n{script}\n"));
        let program = machine.path("usr/bin/vcgencmd");
        std::fs::set_permissions(program, PermissionsExt::from_mode(0o755)).unwrap();
        machine
    }

    fn answering() -> Machine {
        board("Raspberry Pi 5 Model B Rev 1.0\0", &format!("printf '{ANSWER}'"))
    }

    #[test]
    fn the_supplies_that_tell_both_are_summed() {
        assert!((power_mw(ANSWER).unwrap() - 2130.0).abs() < 1e-6);
        for nothing in ["", "error=1 error_msg=\"Command not registered\"", "A_V volt(1)=xV", "="] {
            assert_eq!(power_mw(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn the_program_is_asked_without_waiting_for_it_and_its_answer_grows_old() {
        let (machine, start) = (answering(), Instant::now());
        let roots = machine.roots();
        let mut pmic = Pmic::default();
        assert_eq!(pmic.poll(&roots, start), (true, None), "asked, and not answered yet");
        pmic.settle();
        let (there, power) = pmic.poll(&roots, start + Duration::from_secs(1));
        assert!(there && (power.unwrap() - 2130.0).abs() < 1e-6);
        pmic.settle();
        machine.write("usr/bin/vcgencmd", "#!/bin/sh\nexit 1\n");
        pmic.poll(&roots, start + Duration::from_secs(2));
        pmic.settle();
        let (there, power) = pmic.poll(&roots, start + Duration::from_secs(3));
        assert!(there && power.is_some(), "the last one is still fresh");
        let late = start + Duration::from_secs(20);
        assert_eq!(pmic.poll(&roots, late), (false, None), "stale, and not to be asked now");
    }

    #[test]
    fn a_program_that_hangs_is_killed_and_tried_again_later() {
        let (machine, start) = (board("Raspberry Pi 500", "exec sleep 1000"), Instant::now());
        let roots = machine.roots();
        let mut pmic = Pmic::default();
        let at = |s| start + Duration::from_secs(s);
        assert_eq!(pmic.poll(&roots, start), (true, None));
        assert_eq!(pmic.poll(&roots, at(1)), (true, None), "it may take that long");
        pmic.poll(&roots, at(3));
        pmic.settle();
        assert_eq!(pmic.poll(&roots, at(4)), (false, None));
        assert!(matches!(pmic.run, Run::Waiting(_)));
        pmic.poll(&roots, at(4) + RETRY);
        assert!(matches!(pmic.run, Run::Asking(..)), "{pmic:?}");
    }

    #[test]
    fn other_boards_and_boards_without_the_program_are_not_asked() {
        let other = board("Raspberry Pi 4 Model B Rev 1.4\0", "exit 0");
        assert!(!Pmic::is_there(&other.roots()));
        let bare = Machine::with(&[("sys/firmware/devicetree/base/model", "Raspberry Pi 5\0")]);
        assert!(!Pmic::is_there(&bare.roots()));
        assert_eq!(Pmic::default().poll(&bare.roots(), Instant::now()), (false, None));
    }
}
