//! Progress of the demonstration: a spinner per step on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::Step;

/// Where progress is shown.
pub trait Display {
    /// A step begins.
    fn begin(&mut self, step: Step);
    /// Something happened within the step.
    fn note(&mut self, text: &str);
    /// The step is over.
    fn done(&mut self, text: &str);
}

/// Shows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Display for Silent {
    fn begin(&mut self, _step: Step) {}
    fn note(&mut self, _text: &str) {}
    fn done(&mut self, _text: &str) {}
}

/// What fits standard error: it is a terminal, or it is not.
#[must_use]
pub fn for_terminal() -> Box<dyn Display> {
    if std::io::stderr().is_terminal() {
        Box::new(Spinner { bar: None, started: Instant::now() })
    } else {
        Box::new(Lines { last: String::new(), started: Instant::now(), out: std::io::stderr() })
    }
}

struct Spinner {
    bar: Option<ProgressBar>,
    started: Instant,
}

impl Display for Spinner {
    fn begin(&mut self, step: Step) {
        let (number, title) = step.title();
        let style = ProgressStyle::with_template("{spinner:.green} {prefix} {wide_msg}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bar = ProgressBar::new_spinner().with_style(style);
        bar.set_prefix(format!("{number}/6 {title:<26}"));
        bar.enable_steady_tick(Duration::from_millis(100));
        self.started = Instant::now();
        self.bar = Some(bar);
    }

    fn note(&mut self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
        }
    }

    fn done(&mut self, text: &str) {
        if let Some(bar) = self.bar.take() {
            let took = self.started.elapsed().as_secs_f64();
            bar.finish_with_message(format!("{text} [{took:.1} s]"));
        }
    }
}

/// Plain lines with the time since the start; a note that repeats itself is shown once.
struct Lines<W: Write> {
    last: String,
    started: Instant,
    out: W,
}

impl<W: Write> Lines<W> {
    fn line(&mut self, text: &str) {
        let seconds = self.started.elapsed().as_secs_f64();
        // Nobody may be listening any more; the demonstration goes on.
        let _ = writeln!(self.out, "[{seconds:6.1} s] {text}");
    }
}

impl<W: Write> Display for Lines<W> {
    fn begin(&mut self, step: Step) {
        let (number, title) = step.title();
        self.line(&format!("{number}/6 {title}"));
    }

    fn note(&mut self, text: &str) {
        if self.last != text {
            text.clone_into(&mut self.last);
            self.line(&format!("    {text}"));
        }
    }

    fn done(&mut self, text: &str) {
        self.line(&format!("    {text}"));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn plain_lines_do_not_repeat_a_note() {
        let mut lines = Lines { last: String::new(), started: Instant::now(), out: Vec::new() };
        lines.begin(Step::Answer);
        lines.note("job running: pruning");
        lines.note("job running: pruning");
        lines.done("offer");
        let text = String::from_utf8(lines.out).unwrap();
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("4/6 The compressor answers"));
    }
}
