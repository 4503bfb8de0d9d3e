use proptest::prelude::*;

use super::*;
use crate::stats::{Plan, Resampling, Verdict};

fn meter(metric: Metric, row: usize, samples: &[(&[f32], Reference<'_>)]) -> Meter {
    let mut meter = Meter::new(metric, row);
    for (answer, reference) in samples {
        meter.push(answer, *reference).unwrap();
    }
    meter
}

fn value(metric: Metric, row: usize, samples: &[(&[f32], Reference<'_>)]) -> f64 {
    meter(metric, row, samples).value().unwrap()
}

fn near(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-9, "{a} is not {b}");
}

fn refused(metric: Metric, answer: &[f32], reference: Reference<'_>) -> String {
    Meter::new(metric, answer.len()).push(answer, reference).unwrap_err().to_string()
}

#[test]
fn top_k_counts_the_classes_before_and_breaks_ties_by_index() {
    let answer: &[f32] = &[0.1, 0.4, 0.4, 0.1];
    let of = |k, class| value(Metric::TopK(k), 4, &[(answer, Reference::Class(class))]);
    assert_eq!([of(1, 1), of(1, 2), of(2, 2), of(3, 0), of(3, 3)], [1.0, 0.0, 1.0, 1.0, 0.0]);
    let single: &[f32] = &[0.7];
    assert_eq!(value(Metric::TopK(1), 1, &[(single, Reference::Class(1))]), 1.0);
    assert_eq!(value(Metric::TopK(1), 1, &[(single, Reference::Class(0))]), 0.0);
}

#[test]
fn likeness_is_taken_row_by_row() {
    let original: &[f32] = &[0.9, 0.1, 0.2, 0.8];
    let answer: &[f32] = &[0.6, 0.4, 0.7, 0.3];
    let of = |metric| value(metric, 2, &[(answer, Reference::Answer(original))]);
    assert_eq!(of(Metric::Agreement), 0.5);
    let kl = |p: f64, q: f64| p * (p / q).ln() + (1.0 - p) * ((1.0 - p) / (1.0 - q)).ln();
    assert!((of(Metric::Kl) - 0.5 * (kl(0.9, 0.6) + kl(0.2, 0.7))).abs() < 1e-6);
    // Energies 1.5 and 0.09 + 0.09 + 0.25 + 0.25.
    assert!((of(Metric::SnrDb) - 10.0 * (1.5f64 / 0.68).log10()).abs() < 1e-5);
    let same = |metric| value(metric, 2, &[(original, Reference::Answer(original))]);
    near(same(Metric::Cosine), 1.0);
    assert_eq!(same(Metric::SnrDb), MAX_SNR_DB);
}

/// scikit-learn 1.9: `f1_score` of the same labels, class 4 answered and never right.
#[test]
fn f1_matches_scikit_learn() {
    let labels = [0i64, 1, 2, 0, 1, 2, 3, 0];
    let of = |metric: Metric, answers: [usize; 8]| {
        let mut meter = Meter::new(metric, 5);
        for (label, answer) in labels.iter().zip(answers) {
            let mut row = [0.0f32; 5];
            row[answer] = 1.0;
            meter.push(&row, Reference::Class(*label)).unwrap();
        }
        meter.value().unwrap()
    };
    near(of(Metric::MacroF1, [0, 2, 1, 0, 0, 1, 3, 3]), 1.0 / 3.0);
    near(of(Metric::MacroF1, [0, 2, 1, 0, 0, 1, 4, 3]), 2.0 / 15.0);
    near(of(Metric::MicroF1, [0, 2, 1, 0, 0, 1, 3, 3]), 0.375);
}

/// scikit-learn 1.9: `roc_auc_score`, and the crossing of `roc_curve` by `brentq`; scores tie within
/// and between classes.
#[test]
fn detection_matches_scikit_learn() {
    let scores = [0.1f32, 0.4, 0.35, 0.8, 0.4, 0.7, 0.35, 0.2, 0.9, 0.4];
    let labels = [0i64, 0, 1, 1, 1, 0, 0, 0, 1, 1];
    let of = |metric: Metric| {
        let mut meter = Meter::new(metric, 1);
        for (score, label) in scores.iter().zip(labels) {
            meter.push(&[*score], Reference::Class(label)).unwrap();
        }
        meter.value().unwrap()
    };
    near(of(Metric::Auc), 0.78);
    near(of(Metric::Eer), 1.0 / 3.0);
}

#[test]
fn one_class_alone_has_no_curve_and_two_columns_are_a_score() {
    let two: &[f32] = &[2.0, 3.0];
    let one_class =
        meter(Metric::Auc, 2, &[(two, Reference::Class(1)), (two, Reference::Class(1))]);
    assert_eq!(one_class.value(), None);
    let higher: &[f32] = &[-1.0, 1.0];
    let apart = [(two, Reference::Class(0)), (higher, Reference::Class(1))];
    assert_eq!(value(Metric::Auc, 2, &apart), 1.0);
    assert_eq!(value(Metric::Eer, 2, &apart), 0.0);
    let alike = [(two, Reference::Class(0)), (two, Reference::Class(1))];
    assert_eq!(value(Metric::Auc, 2, &alike), 0.5);
    assert_eq!(value(Metric::Eer, 2, &alike), 0.5);
}

/// Rows of the blank and two letters.
fn ctc() -> Ctc {
    Ctc::new(vec!["a".into(), "b".into()], 0)
}

fn spell(classes: &[usize]) -> Vec<f32> {
    classes.iter().flat_map(|c| (0..3).map(move |i| if i == *c { 5.0 } else { 0.0 })).collect()
}

#[test]
fn greedy_decoding_joins_repeats_and_drops_blanks() {
    assert_eq!(ctc().decode(&spell(&[1, 1, 0, 1, 2, 2, 0])), "aab");
    assert_eq!(ctc().decode(&spell(&[0, 0])), "");
    assert_eq!(Ctc::new(vec!["a".into()], 1).decode(&[9.0, 1.0, 0.0, 1.0, 9.0, 1.0]), "aa");
}

#[test]
fn error_rates_are_edits_over_the_reference() {
    let answer = spell(&[1, 0, 2, 0, 2]);
    let samples: Vec<(&[f32], Reference<'_>)> =
        vec![(&answer, Reference::Text("ab")), (&answer, Reference::Text("abb b"))];
    // "abb" for "ab" is one insertion, for "abb b" two deletions: 3 of 7 characters, 2 of 3 words.
    near(value(Metric::Cer(ctc()), 3, &samples), 3.0 / 7.0);
    near(value(Metric::Wer(ctc()), 3, &samples), 2.0 / 3.0);
    assert_eq!(text::character_edits("kitten", "sitting"), (3, 6));
    assert_eq!(text::character_edits("", "ab"), (2, 0));
}

#[test]
fn what_cannot_be_measured_is_named_with_its_sample() {
    let two: &[f32] = &[0.0, 1.0];
    let text = refused(Metric::TopK(1), two, Reference::Class(2));
    assert!(text.contains("class 2") && text.contains("0 to 1"), "{text}");
    assert!(refused(Metric::TopK(1), two, Reference::Class(-1)).contains("class -1"));
    let text = refused(Metric::Auc, two, Reference::Class(3));
    assert!(text.contains("1 is positive"), "{text}");
    let text = refused(Metric::Auc, &[0.0; 3], Reference::Class(1));
    assert!(text.contains("one score or two classes"), "{text}");
    let text = refused(Metric::Kl, two, Reference::Answer(&[1.0]));
    assert!(text.contains("1 numbers") && text.contains("2 numbers"), "{text}");
    let text = refused(Metric::Kl, two, Reference::Class(1));
    assert!(text.contains("the original's answer"), "{text}");
    let text = refused(Metric::Cer(ctc()), two, Reference::Text("a"));
    assert!(text.contains("3 classes"), "{text}");
    let text = refused(Metric::Agreement, &[f32::NAN, 1.0], Reference::Answer(two));
    assert!(text.contains("NaN"), "{text}");
    let masked = [f32::NEG_INFINITY, 1.0];
    assert!(refused(Metric::Cosine, &masked, Reference::Answer(two)).contains("inf"));
    assert_eq!(value(Metric::TopK(1), 2, &[(&masked, Reference::Class(1))]), 1.0);
}

/// 400 samples of two classes; the candidate gives the first `lost` a wrong answer.
fn pair(lost: usize) -> (Meter, Meter) {
    let of = |wrong: usize| {
        let mut meter = Meter::new(Metric::TopK(1), 2);
        for i in 0..400 {
            let label = i64::from(i % 2 == 0);
            let right = i >= wrong;
            let row: [f32; 2] = if (label == 1) == right { [0.1, 0.9] } else { [0.9, 0.1] };
            meter.push(&row, Reference::Class(label)).unwrap();
        }
        meter
    };
    (of(0), of(lost))
}

#[test]
fn right_and_wrong_answers_go_to_the_exact_tests() {
    let (original, candidate) = pair(4);
    let plan = Plan::default();
    let got = compare(Some(&original), &candidate, 0.05, plan, &Resampling::default()).unwrap();
    let Test::Score { lost: 4, gained: 0, mcnemar } = got.test else { panic!("{got:?}") };
    assert_eq!(mcnemar.two_sided, 0.125);
    assert_eq!((got.verdict, got.samples), (Verdict::NonInferior, 400));
    near(got.evidence.difference.value, -0.01);
    let (_, worse) = pair(60);
    let all = [candidate, worse];
    let both = compare_all(Some(&original), &all, 0.05, plan, &Resampling::default()).unwrap();
    assert_eq!(both[0].verdict, Verdict::NonInferior);
    assert_eq!(both[1].verdict, Verdict::Inferior);
}

#[test]
fn agreement_needs_no_original_and_no_labels() {
    let rows: [&[f32]; 2] = [&[0.1, 0.9], &[0.9, 0.1]];
    let mut meter = Meter::new(Metric::Agreement, 2);
    for i in 0..500 {
        meter.push(rows[usize::from(i < 2)], Reference::Answer(rows[0])).unwrap();
    }
    let plan = Plan::default();
    let got = compare(None, &meter, 0.02, plan, &Resampling::default()).unwrap();
    assert!(matches!(got.test, Test::Score { lost: 2, gained: 0, .. }));
    assert_eq!(got.verdict, Verdict::NonInferior);
    let few = compare(None, &meter, 0.005, plan, &Resampling::default()).unwrap();
    assert!(matches!(few.verdict, Verdict::Undecided { samples_needed: Some(500..) }), "{few:?}");
}

#[test]
fn everything_else_is_resampled_by_sample() {
    let of = |errors: usize| {
        let mut meter = Meter::new(Metric::Cer(ctc()), 3);
        for i in 0..300 {
            let classes = if i < errors { [1, 0, 1, 0] } else { [1, 0, 2, 0] };
            meter.push(&spell(&classes), Reference::Text("ab")).unwrap();
        }
        meter
    };
    let plan = Plan::default();
    let with = |errors, margin| {
        compare(Some(&of(6)), &of(errors), margin, plan, &Resampling::default()).unwrap()
    };
    let slightly = with(9, 0.03);
    assert_eq!((slightly.test, slightly.verdict), (Test::Bootstrap, Verdict::NonInferior));
    // More errors are a loss, whichever way the metric counts.
    near(slightly.evidence.difference.value, -0.005);
    assert_eq!(with(90, 0.03).verdict, Verdict::Inferior);
}

#[test]
fn meters_that_do_not_belong_together_are_refused() {
    let (original, candidate) = pair(1);
    let plan = Plan::default();
    let error = |original: Option<&Meter>, candidate: &Meter| {
        compare(original, candidate, 0.1, plan, &Resampling::default()).unwrap_err().to_string()
    };
    assert!(error(None, &candidate).contains("original's own values"));
    let short = meter(Metric::TopK(1), 2, &[(&[0.1, 0.9], Reference::Class(1))]);
    assert!(error(Some(&original), &short).contains("400"));
    let other = meter(Metric::MacroF1, 2, &[(&[0.1, 0.9], Reference::Class(1))]);
    assert!(error(Some(&original), &other).contains("macro F1"));
    assert!(error(None, &Meter::new(Metric::Agreement, 2)).contains("no samples"));
}

proptest! {
    #[test]
    fn edit_distance_is_a_metric(a in "[abc]{0,8}", b in "[abc]{0,8}", c in "[abc]{0,8}") {
        let d = |x: &str, y: &str| text::character_edits(x, y).0;
        prop_assert_eq!(d(&a, &b), d(&b, &a));
        prop_assert_eq!(d(&a, &b) == 0, a == b);
        prop_assert!(d(&a, &c) <= d(&a, &b) + d(&b, &c));
        prop_assert!(d(&a, &b) >= a.len().abs_diff(b.len()) && d(&a, &b) <= a.len().max(b.len()));
    }

    /// AUC is the share of pairs in order; counting them one by one is the definition.
    #[test]
    fn auc_is_the_share_of_pairs_in_order(
        samples in prop::collection::vec((0u8..6, any::<bool>(), 0u32..3), 1..30)
    ) {
        let kept: Vec<f64> =
            samples.iter().flat_map(|(s, p, _)| [f64::from(*s), f64::from(u8::from(*p))]).collect();
        let counts: Vec<u32> = samples.iter().map(|s| s.2).collect();
        let (mut won, mut pairs) = (0.0, 0.0);
        for (p, _, n) in samples.iter().filter(|s| s.1) {
            for (q, _, m) in samples.iter().filter(|s| !s.1) {
                let weight = f64::from(n * m);
                pairs += weight;
                won += weight * if p > q { 1.0 } else if p == q { 0.5 } else { 0.0 };
            }
        }
        let ranked = detect::Ranked::new(&kept);
        let auc = ranked.auc(&counts);
        prop_assert!((pairs == 0.0 && auc.is_nan()) || (auc - won / pairs).abs() < 1e-12);
        let eer = ranked.eer(&counts);
        prop_assert!((pairs == 0.0 && eer.is_nan()) || (0.0..=1.0).contains(&eer), "{}", eer);
    }

    /// A count of two is the sample given twice.
    #[test]
    fn counting_twice_is_being_there_twice(
        samples in prop::collection::vec((prop::collection::vec(-3.0f32..3.0, 3), 0i64..3), 1..20),
        macro_average in any::<bool>()
    ) {
        let metric = if macro_average { Metric::MacroF1 } else { Metric::TopK(2) };
        let mut once = Meter::new(metric.clone(), 3);
        let mut twice = Meter::new(metric, 3);
        let mut counts = Vec::new();
        for (at, (row, class)) in samples.iter().enumerate() {
            let count = 1 + at as u32 % 2;
            counts.push(count);
            once.push(row, Reference::Class(*class)).unwrap();
            for _ in 0..count {
                twice.push(row, Reference::Class(*class)).unwrap();
            }
        }
        prop_assert!((once.resampled()(&counts) - twice.value().unwrap()).abs() < 1e-12);
    }
}

fn evaluation(
    per_sample: Option<Vec<f64>>,
    metric: f64,
    higher_is_better: bool,
) -> external::Evaluation {
    external::Evaluation { metric, per_sample, higher_is_better }
}

#[test]
fn evaluations_are_compared_by_what_they_say_of_samples() {
    let of = |before: &external::Evaluation, after: &external::Evaluation| {
        compare_evaluations(before, after, 0.2, Plan::default(), &Resampling::default())
    };
    let binary = |lost: usize| (0..200).map(|i| f64::from(u8::from(i >= lost))).collect::<Vec<_>>();
    let right = evaluation(Some(binary(0)), 1.0, true);
    let found = of(&right, &evaluation(Some(binary(10)), 0.95, true)).unwrap();
    assert!(matches!(found.test, Test::Score { lost: 10, gained: 0, .. }), "{found:?}");
    assert_eq!(found.verdict, Verdict::NonInferior);
    // Where less is better, a 1 is a fault.
    let faults = |count: usize| binary(count).iter().map(|v| 1.0 - v).collect::<Vec<_>>();
    let clean = evaluation(Some(faults(0)), 0.0, false);
    let found = of(&clean, &evaluation(Some(faults(100)), 0.5, false)).unwrap();
    assert!(matches!(found.test, Test::Score { lost: 100, gained: 0, .. }), "{found:?}");
    assert_eq!((found.verdict, found.loss()), (Verdict::Inferior, 0.5));
    let spread = |shift: f64| (0..200).map(|i| f64::from(i % 7) / 7.0 - shift).collect::<Vec<_>>();
    let found =
        of(&evaluation(Some(spread(0.0)), 0.4, true), &evaluation(Some(spread(0.1)), 0.3, true));
    let found = found.unwrap();
    assert_eq!((&found.test, found.verdict), (&Test::Bootstrap, Verdict::NonInferior));
    assert!((found.loss() - 0.1).abs() < 1e-9, "{found:?}");
    let found = of(&evaluation(None, 0.9, true), &evaluation(None, 0.8, true)).unwrap();
    assert!(found.test == Test::Point && found.sentence().contains("untested"), "{found:?}");
    let mixed = of(&right, &evaluation(Some(binary(0)), 1.0, false)).unwrap_err().to_string();
    assert!(mixed.contains("more is better for one"), "{mixed}");
    let short = of(&right, &evaluation(Some(vec![1.0]), 1.0, true)).unwrap_err().to_string();
    assert!(short.contains("200 samples") && short.contains("candidate 1"), "{short}");
}

#[test]
fn agreement_of_whole_samples_is_counted_and_of_parts_resampled() {
    let of = |shares: &[f64], margin: f64| {
        compare_agreement(shares, margin, Plan::default(), &Resampling::default())
    };
    let mut shares = vec![1.0; 400];
    shares[0] = 0.0;
    let found = of(&shares, 0.05).unwrap();
    assert!(matches!(found.test, Test::Score { lost: 1, gained: 0, .. }), "{found:?}");
    let sentence = found.sentence();
    for part in
        ["agreement: 99.8 %", "a loss of 0.2 %", "400 samples", "non-inferior", "95 % confidence"]
    {
        assert!(sentence.contains(part), "{part}: {sentence}");
    }
    shares[0] = 0.5;
    assert_eq!(of(&shares, 0.05).unwrap().test, Test::Bootstrap);
    assert!(of(&shares[1..], 1.0).is_err() && of(&shares[1..], 0.0).is_err());
}

/// Without noise there is no ratio; what an unchanged model counts as leaves room for a floor.
#[test]
fn a_floor_of_the_signal_to_noise_ratio_is_a_margin_from_the_best() {
    let original: Vec<Vec<f32>> =
        (0..40).map(|i| (0..8).map(|j| (i * 8 + j) as f32 * 0.1 - 5.0).collect()).collect();
    let mut meter = Meter::new(Metric::SnrDb, 8);
    for row in &original {
        let noisy: Vec<f32> =
            row.iter().enumerate().map(|(j, v)| v * (1.0 + 0.01 * (j % 3) as f32)).collect();
        meter.push(&noisy, Reference::Answer(row)).unwrap();
    }
    let at = |floor: f64| {
        let margin = MAX_SNR_DB - floor;
        compare(None, &meter, margin, Plan::default(), &Resampling::default()).unwrap().verdict
    };
    assert_eq!((at(20.0), at(80.0)), (Verdict::NonInferior, Verdict::Inferior));
}
