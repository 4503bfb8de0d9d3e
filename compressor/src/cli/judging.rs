//! How `compress` is told what decides on a candidate.

use std::time::Duration;

use clap::Args;

use super::common::{duration, share};
use crate::metric::Metric;
use crate::metric::external::External;
use crate::pipeline::{Judging, Measure};

/// What decides on a candidate.
#[derive(Debug, Clone, Args)]
pub struct JudgingArgs {
    /// Confidence with which a candidate must be shown to lose less than is allowed (0.95), or none: then what is seen
    /// on the held-out samples decides, and the report says how sure that is.
    #[arg(long, value_name = "SHARE", value_parser = confidence, default_value = "0.95")]
    confidence: Confidence,
    /// What is measured on the held-out samples: agreement, accuracy, top-K, macro-f1, micro-f1, auc or eer (need
    /// labels), cosine, snr or kl.
    #[arg(long, value_name = "NAME", value_parser = Metric::named, default_value = "agreement")]
    metric: Metric,
    /// How much worse than the original's the metric may be, in its unit (shares as 0.01 or 1%).
    #[arg(long, value_name = "DROP", value_parser = drop_of, allow_negative_numbers = true)]
    metric_drop: Option<f64>,
    /// The worst value allowed of a metric that compares with the original, such as 20 (dB) for snr.
    #[arg(
        long,
        value_name = "VALUE",
        conflicts_with = "metric_drop",
        allow_negative_numbers = true
    )]
    metric_min: Option<f64>,
    /// The output that the metric measures, where there are several.
    #[arg(long, value_name = "NAME")]
    metric_output: Option<String>,
    /// A command that measures instead: it is given the model's path and that of --heldout, and prints JSON
    /// (docs/quality.md). Words are parted at spaces.
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["metric", "metric_min", "metric_output"])]
    evaluator: Option<String>,
    /// How long the command may take for one model.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "600s")]
    evaluator_timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Confidence(Option<f64>);

fn confidence(text: &str) -> Result<Confidence, String> {
    if text == "none" {
        return Ok(Confidence(None));
    }
    let value = share(text).ok().filter(|c| *c > 0.5 && *c < 1.0);
    let value = value.ok_or("write it as 0.95 or 95%, above one half and below 1, or as none")?;
    Ok(Confidence(Some(value)))
}

fn drop_of(text: &str) -> Result<f64, String> {
    let value = match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().map(|v| v / 100.0),
        None => text.parse(),
    };
    let value = value.ok().filter(|v| v.is_finite() && *v > 0.0);
    value.ok_or_else(|| format!("\"{text}\" is no drop; write it as 0.01, 1% or 3, above 0"))
}

impl JudgingArgs {
    /// Whether nothing but agreement is measured.
    pub fn is_agreement(&self) -> bool {
        self.metric == Metric::Agreement && self.evaluator.is_none()
    }

    /// What the arguments ask for.
    ///
    /// # Errors
    /// They contradict each other, or a drop is missing.
    pub fn judging(&self) -> anyhow::Result<Judging> {
        Ok(Judging { confidence: self.confidence.0, measure: self.measure()? })
    }

    fn measure(&self) -> anyhow::Result<Measure> {
        if let Some(command) = &self.evaluator {
            let command: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
            anyhow::ensure!(!command.is_empty(), "--evaluator names no command");
            let margin = self.metric_drop.ok_or_else(|| {
                anyhow::anyhow!("--evaluator needs --metric-drop: how much worse its metric may be")
            })?;
            let command = External { command, timeout: self.evaluator_timeout };
            return Ok(Measure::External { command, margin });
        }
        if self.metric == Metric::Agreement {
            let asked = self.metric_drop.or(self.metric_min);
            anyhow::ensure!(asked.is_none(), "agreement is bounded by --accuracy-drop");
            anyhow::ensure!(
                self.metric_output.is_none(),
                "agreement is taken over all outputs; --metric-output is for another --metric"
            );
            return Ok(Measure::Agreement);
        }
        let (metric, output) = (self.metric.clone(), self.metric_output.clone());
        Ok(Measure::Metric { margin: self.margin()?, metric, output })
    }

    /// The loss that is accepted of the metric.
    fn margin(&self) -> anyhow::Result<f64> {
        let name = self.metric.name();
        let Some(worst) = self.metric_min else {
            return self.metric_drop.ok_or_else(|| {
                anyhow::anyhow!("--metric needs --metric-drop: how much worse its {name} may be")
            });
        };
        let perfect = self.metric.perfect().ok_or_else(|| {
            anyhow::anyhow!("--metric-min is for metrics that compare with the original; bound {name} by --metric-drop")
        })?;
        let margin = if self.metric.higher_is_better() { perfect - worst } else { worst - perfect };
        anyhow::ensure!(
            margin.is_finite() && margin > 0.0,
            "--metric-min {worst} is no worse than the original's own {name} of {perfect}"
        );
        Ok(margin)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Wrapper {
        #[command(flatten)]
        args: JudgingArgs,
    }

    fn parse(text: &str) -> anyhow::Result<Judging> {
        let words = std::iter::once("espalier").chain(text.split_whitespace());
        Wrapper::try_parse_from(words)?.args.judging()
    }

    fn refused(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn confidence_is_asked_for_unless_it_is_refused() {
        assert_eq!(parse("").unwrap().confidence, Some(0.95));
        assert_eq!(parse("--confidence 99%").unwrap().confidence, Some(0.99));
        assert_eq!(parse("--confidence none").unwrap(), Judging::default());
        for wrong in ["0.4", "1", "95", "maybe"] {
            assert!(
                refused(&format!("--confidence {wrong}")).contains("above one half"),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_metric_needs_a_margin_of_its_own() {
        let margin = |text: &str| match parse(text).unwrap().measure {
            Measure::Metric { margin, .. } => margin,
            other => panic!("{other:?}"),
        };
        assert_eq!(margin("--metric accuracy --metric-drop 1%"), 0.01);
        assert_eq!(margin("--metric snr --metric-min 20"), 180.0);
        assert!((margin("--metric cosine --metric-min 0.9") - 0.1).abs() < 1e-12);
        assert_eq!(margin("--metric kl --metric-min 0.5"), 0.5);
        for (text, part) in [
            ("--metric accuracy", "needs --metric-drop"),
            ("--metric accuracy --metric-min 0.9", "bound accuracy by --metric-drop"),
            ("--metric cosine --metric-min 2", "no worse than the original's"),
            ("--metric-drop 1%", "--accuracy-drop"),
            ("--metric-output y", "over all outputs"),
            ("--metric cer --metric-drop 1%", "cer needs a dictionary"),
            ("--metric top-0 --metric-drop 1%", "there are agreement, accuracy"),
            ("--evaluator ./score", "--evaluator needs --metric-drop"),
            ("--metric accuracy --metric-drop -1", "no drop"),
        ] {
            assert!(refused(text).contains(part), "{text}: {}", refused(text));
        }
    }

    #[test]
    fn an_evaluator_is_split_into_words() {
        let args = ["espalier", "--evaluator", "python3 score.py", "--metric-drop", "0.02"];
        let args = Wrapper::try_parse_from(args).unwrap().args;
        assert!(!args.is_agreement());
        let Measure::External { command, margin } = args.judging().unwrap().measure else {
            panic!("an evaluator was asked for")
        };
        assert_eq!((command.command, margin), (vec!["python3".into(), "score.py".into()], 0.02));
    }
}
