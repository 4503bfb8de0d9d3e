//! The agent's worker process, made as slow as a board: time dilation.
//!
//! `edge-sim worker` runs the agent's own worker with a [`ComputeHook`] that waits after every
//! inference until it has taken `factor` times the host's *CPU* time, and reports that time. CPU
//! time, because other work on the host would otherwise be taken for the board's slowness and be
//! multiplied by the factor. The factor depends on the model's data type and, through the fake
//! cpufreq files, on the board's present clock. How long the board was busy is left in a file for
//! the power model.
//!
//! The same goes for the host's caches, which are cold after the wait, and for its neighbours: the
//! factors were published for warm, quiet boards. So an inference is run several times, as often as the
//! wait hides it until no run is faster any more and twice from then on, and what counts is the fastest
//! run that this model ever had on inputs of these shapes. A board is hence steadier here than on a
//! table, and a model whose time depends on what its inputs hold is shown at its fastest. The further
//! runs are part of the wait, not added to it.
//!
//! The host must compute on one thread: a second one would halve the wall time and not the CPU time.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use espalier_agent::plane::worker::{ComputeHook, Took};

use crate::fakesys::BoardFiles;
use crate::profiles::DataType;

/// Bytes of a model file that are searched for integer operators.
const MAX_SEARCHED_BYTES: u64 = 4 << 30;
/// An inference is repeated as often as the factor holds this: a quarter of the wait at most.
const FACTOR_PER_REPEAT: f64 = 4.0;
/// The most repeats: from the third on, a run is as fast as it is in a loop without waits.
const MOST_REPEATS: usize = 3;
/// How much less time than the fastest run another one takes that counts as faster.
const FASTER: f64 = 0.99;
/// So many inferences without a faster run settle what the fastest one is.
const SETTLED: usize = 64;
/// The most input shapes that are kept apart.
const MOST_SHAPES: usize = 64;
/// Operators whose presence makes a model count as int8. `DequantizeLinear` is none: weights that are
/// only stored in int8 are computed with in fp32.
const INTEGER_OPS: [&[u8]; 5] =
    [b"MatMulInteger", b"ConvInteger", b"QLinearMatMul", b"QLinearConv", b"QuantizeLinear"];

/// How much slower than the host the board is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slowdown {
    /// For fp32 models.
    pub fp32: f64,
    /// For int8 models.
    pub int8: f64,
}

impl Slowdown {
    /// The factor for a data type.
    #[must_use]
    pub fn of(&self, data_type: DataType) -> f64 {
        match data_type {
            DataType::Fp32 => self.fp32,
            DataType::Int8 => self.int8,
        }
    }
}

/// Runs the agent's worker over standard input, slowed down. The result is the exit code.
#[must_use]
pub fn main(slowdown: Slowdown, board: Option<&Path>) -> i32 {
    espalier_worker::main(Box::new(Dilation::new(slowdown, board.map(BoardFiles::new))))
}

/// How long the board takes for what took the host `took`, and how long is still to wait. The report
/// is never shorter than the host's own time.
#[must_use]
pub fn dilate(took: Took, factor: f64) -> (Duration, Duration) {
    let board = took.cpu.min(took.wall).mul_f64(factor.max(1.0));
    (board.max(took.wall), board.saturating_sub(took.all_runs))
}

/// The data type that a model file computes in, by its operators: a single integer operator makes
/// it int8. Unreadable files count as fp32; loading them fails with a better message.
#[must_use]
pub fn data_type_of(model: &Path) -> DataType {
    match holds_integer_operator(model) {
        Ok(true) => DataType::Int8,
        _ => DataType::Fp32,
    }
}

/// Waits after each inference, and keeps account.
#[derive(Debug)]
pub struct Dilation {
    slowdown: Slowdown,
    data_type: DataType,
    board: Option<BoardFiles>,
    /// CPU time of the fastest run, by the shapes of the inputs.
    fastest: HashMap<u64, Duration>,
    /// Inferences since a run was faster than all before it.
    since_faster: usize,
    busy: Duration,
}

impl Dilation {
    /// A hook for a board; without `board` the clock never drops and nothing is accounted.
    #[must_use]
    pub fn new(slowdown: Slowdown, board: Option<BoardFiles>) -> Self {
        Self {
            slowdown,
            data_type: DataType::Fp32,
            board,
            fastest: HashMap::new(),
            since_faster: 0,
            busy: Duration::ZERO,
        }
    }

    /// Takes note of the model that is being loaded.
    pub fn set_model(&mut self, model: &Path) {
        self.data_type = data_type_of(model);
    }

    /// The same inference with the CPU time of the fastest one on these shapes.
    fn steadied(&mut self, took: Took) -> Took {
        let cpu = took.cpu.min(took.wall);
        if self.fastest.len() >= MOST_SHAPES && !self.fastest.contains_key(&took.shapes) {
            self.fastest.clear();
        }
        let fastest = self.fastest.entry(took.shapes).or_insert(Duration::MAX);
        let faster = cpu.as_secs_f64() < fastest.as_secs_f64() * FASTER;
        self.since_faster = if faster { 0 } else { self.since_faster.saturating_add(1) };
        *fastest = cpu.min(*fastest);
        Took { cpu: *fastest, ..took }
    }

    fn factor(&self) -> f64 {
        let clock = self.board.as_ref().map_or(1.0, BoardFiles::clock_stretch);
        self.slowdown.of(self.data_type) * clock
    }
}

impl ComputeHook for Dilation {
    fn loading(&mut self, model: &Path) {
        self.set_model(model);
    }

    /// None on a board that is not slow enough to hide one.
    fn repeats(&self) -> usize {
        let hidden = (self.factor() / FACTOR_PER_REPEAT) as usize;
        hidden.min(if self.since_faster < SETTLED { MOST_REPEATS } else { 1 })
    }

    fn after_run(&mut self, took: Took) -> Duration {
        let (reported, wait) = dilate(self.steadied(took), self.factor());
        thread::sleep(wait);
        self.busy += reported;
        if let Some(board) = &self.board {
            board.report_busy(std::process::id(), self.busy);
        }
        reported
    }
}

fn holds_integer_operator(model: &Path) -> io::Result<bool> {
    const CHUNK: usize = 1 << 20;
    let overlap = INTEGER_OPS.iter().map(|op| op.len()).max().unwrap_or(0);
    let mut file = fs::File::open(model)?.take(MAX_SEARCHED_BYTES);
    let mut window = Vec::with_capacity(CHUNK + overlap);
    loop {
        let kept = window.len().min(overlap);
        window.drain(..window.len() - kept);
        let read = (&mut file).take(CHUNK as u64).read_to_end(&mut window)?;
        if read == 0 {
            return Ok(false);
        }
        if INTEGER_OPS.iter().any(|op| contains(&window, op)) {
            return Ok(true);
        }
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// Where a worker's arguments stand on the command line of `edge-sim`.
#[must_use]
pub fn arguments(slowdown: Slowdown, board: &Path) -> Vec<String> {
    let board = PathBuf::from(board);
    vec![
        "worker".to_owned(),
        format!("--slowdown={}", slowdown.fp32),
        format!("--slowdown-int8={}", slowdown.int8),
        format!("--board={}", board.display()),
    ]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;
    use std::time::Instant;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SLOW: Slowdown = Slowdown { fp32: 14.0, int8: 15.0 };

    fn took(wall: Duration, cpu: Duration) -> Took {
        Took { wall, cpu, all_runs: wall, shapes: 0 }
    }

    #[test]
    fn the_board_takes_factor_times_the_cpu_time_of_the_host() {
        assert_eq!(dilate(took(10 * MS, 10 * MS), 14.0), (140 * MS, 130 * MS));
    }

    #[test]
    fn time_in_which_the_host_was_busy_with_other_work_is_not_multiplied() {
        assert_eq!(dilate(took(30 * MS, 10 * MS), 14.0), (140 * MS, 110 * MS));
        assert_eq!(dilate(took(200 * MS, 10 * MS), 14.0), (200 * MS, Duration::ZERO));
    }

    #[test]
    fn threads_that_compute_side_by_side_are_not_added_up() {
        assert_eq!(dilate(took(10 * MS, 40 * MS), 14.0), (140 * MS, 130 * MS));
    }

    #[test]
    fn nothing_becomes_faster_than_the_host() {
        assert_eq!(dilate(took(10 * MS, 10 * MS), 0.1), (10 * MS, Duration::ZERO));
    }

    #[test]
    fn repeats_are_part_of_the_wait_and_not_of_the_report() {
        let repeated = Took { all_runs: 35 * MS, ..took(10 * MS, 10 * MS) };
        assert_eq!(dilate(repeated, 14.0), (140 * MS, 105 * MS));
        assert_eq!(dilate(repeated, 1.5), (15 * MS, Duration::ZERO));
    }

    #[test]
    fn an_inference_is_repeated_only_on_a_board_slow_enough_to_hide_it() {
        let repeats = |fp32| Dilation::new(Slowdown { fp32, int8: 1.0 }, None).repeats();
        assert_eq!([0.5, 2.3, 4.0, 9.0, 14.0, 90.0].map(repeats), [0, 0, 1, 2, 3, 3]);
    }

    #[test]
    fn once_no_run_is_faster_any_more_one_repeat_is_enough_until_one_is() {
        let mut hook = Dilation::new(SLOW, None);
        let mut ran = |us: u64, times: usize| {
            for _ in 0..times {
                let time = Duration::from_micros(us);
                hook.steadied(took(time, time));
            }
            hook.repeats()
        };
        assert_eq!(ran(10_000, SETTLED), MOST_REPEATS);
        assert_eq!(ran(9_950, 1), 1, "faster by less than counts");
        assert_eq!(ran(9_000, 1), MOST_REPEATS);
        assert_eq!(ran(12_000, SETTLED), 1);
    }

    #[test]
    fn the_fastest_run_on_inputs_of_the_same_shapes_counts() {
        let mut hook = Dilation::new(Slowdown { fp32: 1.0, int8: 1.0 }, None);
        let mut cpu = |ms, shapes| {
            let took = Took { shapes, ..took(ms * MS, ms * MS) };
            hook.steadied(took).cpu
        };
        assert_eq!([cpu(12, 1), cpu(10, 1), cpu(17, 1)], [12 * MS, 10 * MS, 10 * MS]);
        assert_eq!([cpu(30, 2), cpu(9, 1)], [30 * MS, 9 * MS]);
        // As many as are kept apart are all remembered; one more starts anew.
        for shapes in 3..=MOST_SHAPES as u64 {
            cpu(40, shapes);
        }
        assert_eq!([cpu(50, 3), cpu(50, 1), cpu(50, 2)], [40 * MS, 9 * MS, 30 * MS]);
        assert_eq!([cpu(60, 0), cpu(60, 3)], [60 * MS, 60 * MS]);
        for shapes in 0..10_000 {
            cpu(40, shapes);
        }
        assert!(hook.fastest.len() <= MOST_SHAPES);
    }

    #[test]
    fn the_hook_really_waits_and_reports_what_it_waited() {
        let mut hook = Dilation::new(Slowdown { fp32: 10.0, int8: 10.0 }, None);
        let started = Instant::now();
        let reported = hook.after_run(took(2 * MS, 2 * MS));
        assert_eq!(reported, 20 * MS);
        assert!(started.elapsed() >= 18 * MS, "{:?}", started.elapsed());
    }

    #[test]
    fn a_throttled_board_is_slower_still_and_its_busy_time_is_left_for_the_power_model() {
        let dir = tempfile::tempdir().unwrap();
        let profile = crate::profiles::find("raspberry-pi-4").unwrap();
        let board = BoardFiles::new(dir.path());
        let mut state = crate::board::BoardState::idle(profile);
        board.write(profile, &state, &crate::fakesys::Counters::default()).unwrap();
        let mut hook = Dilation::new(SLOW, Some(board.clone()));
        assert!((hook.factor() - 14.0).abs() < 1e-9);
        state.freq_khz = 900_000;
        board.write(profile, &state, &crate::fakesys::Counters::default()).unwrap();
        assert!((hook.factor() - 28.0).abs() < 1e-9);
        let reported = hook.after_run(took(2 * MS, 2 * MS));
        assert_eq!(board.busy_us().values().sum::<u64>(), reported.as_micros() as u64);
    }

    #[test]
    fn a_model_with_an_integer_operator_counts_as_int8_wherever_it_stands() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        // Across the border of two chunks.
        file.write_all(&vec![0; (1 << 20) - 5]).unwrap();
        assert_eq!(data_type_of(file.path()), DataType::Fp32);
        file.write_all(b"MatMulInteger").unwrap();
        file.flush().unwrap();
        assert_eq!(data_type_of(file.path()), DataType::Int8);
        assert_eq!(data_type_of(Path::new("/nowhere/model.onnx")), DataType::Fp32);
    }

    #[test]
    fn the_model_is_known_before_it_is_loaded() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"ConvInteger").unwrap();
        file.flush().unwrap();
        let mut hook = Dilation::new(SLOW, None);
        hook.loading(file.path());
        assert_eq!(hook.factor(), SLOW.int8);
    }

    #[test]
    fn the_worker_arguments_are_what_the_command_line_reads() {
        let args = arguments(SLOW, Path::new("/run/board"));
        let line = std::iter::once("edge-sim".to_owned()).chain(args);
        let parsed = <crate::cli::Cli as clap::Parser>::try_parse_from(line).unwrap();
        let crate::cli::Mode::Worker(worker) = parsed.mode else { panic!("not the worker") };
        assert_eq!(worker.slowdown, 14.0);
        assert_eq!(worker.slowdown_int8, Some(15.0));
        assert_eq!(worker.board.as_deref(), Some(Path::new("/run/board")));
    }
}
