//! Whether a plan, which people may edit, fits the model it is for.

use std::collections::BTreeSet;

use super::shop::Source;
use crate::plan::{GroupChoice, Plan};

/// Checks what a plan says of groups and samples.
///
/// # Errors
/// A sentence that names the group and what is wrong with it.
pub(crate) fn check(source: &Source, plan: &Plan) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for choice in &plan.groups {
        if !seen.insert(choice.group) {
            return Err(format!("it names group {} (\"{}\") twice", choice.group, choice.label));
        }
        fits(source, choice)
            .map_err(|what| format!("group {} (\"{}\"): {what}", choice.group, choice.label))?;
    }
    match &plan.repair {
        Some(repair) if repair.samples == 0 && !repair.refit.is_empty() => {
            Err("its repair re-fits on 0 samples; give at least 1, or take the re-fits out".into())
        }
        Some(repair) if repair.rescale_samples == 0 && !repair.rescale.is_empty() => {
            Err("its repair scales sums on 0 samples; give at least 1, or take the sums out".into())
        }
        _ => Ok(()),
    }
}

fn fits(source: &Source, choice: &GroupChoice) -> Result<(), String> {
    let groups = &source.grouping.groups;
    let group = groups.get(choice.group as usize).ok_or_else(|| match groups.len() {
        0 => "the model has no groups".to_owned(),
        n => format!("the model has no such group, only 0 to {}", n - 1),
    })?;
    let width = group.width;
    if choice.width != width {
        return Err(format!(
            "the plan says that it has {} units, and it has {width}",
            choice.width
        ));
    }
    if choice.keep.is_empty() {
        return Err("it keeps no unit; at least one must stay".into());
    }
    if let Some(unit) = choice.keep.iter().find(|unit| **unit as usize >= width) {
        return Err(format!(
            "it keeps unit {unit}, and units are 0 to {}",
            width.saturating_sub(1)
        ));
    }
    if let Some(pair) = choice.keep.windows(2).find(|pair| pair[0] >= pair[1]) {
        let what = if pair[0] == pair[1] { "twice" } else { "out of order" };
        return Err(format!(
            "it keeps unit {} {what}; units that are kept stand in ascending order, each once",
            pair[1]
        ));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::pipeline::apply::apply;
    use crate::pipeline::testing::mlp;
    use crate::plan::ScoreKind;

    fn source(folder: &std::path::Path) -> Source {
        let path = folder.join("model.onnx");
        mlp(&[6, 8, 8, 4]).save(&path).unwrap();
        Source::load(&path).unwrap()
    }

    fn plan(source: &Source, groups: Vec<GroupChoice>) -> Plan {
        Plan {
            source_sha256: source.digest.to_string(),
            keep_ratio: 0.5,
            score: ScoreKind::Magnitude,
            seed: 0,
            groups,
            repair: None,
            quantize: None,
        }
    }

    #[test]
    fn a_plan_that_was_edited_is_taken_if_it_fits() {
        let folder = tempfile::tempdir().unwrap();
        let source = source(folder.path());
        let edited = plan(&source, vec![source.choice(1, vec![0, 7]), source.choice(0, vec![3])]);
        let made = apply(&source, &edited, None).unwrap();
        assert_eq!(graph::cost::params(&made.model), 6 + 2 + 2 * 4);
    }

    #[test]
    fn every_edit_that_does_not_fit_is_named_with_its_group() {
        let folder = tempfile::tempdir().unwrap();
        let source = source(folder.path());
        let keep = |units: &[u32]| source.choice(0, units.to_vec());
        let wrong_width = GroupChoice { width: 16, ..keep(&[0]) };
        for (groups, part) in [
            (vec![keep(&[])], "keeps no unit"),
            (vec![keep(&[0, 8])], "keeps unit 8, and units are 0 to 7"),
            (vec![keep(&[u32::MAX])], "keeps unit 4294967295"),
            (vec![keep(&[3, 1])], "keeps unit 1 out of order"),
            (vec![keep(&[2, 2])], "keeps unit 2 twice"),
            (vec![keep(&[0]), keep(&[1])], "names group 0 (\"w0\") twice"),
            (vec![wrong_width], "says that it has 16 units, and it has 8"),
            (vec![GroupChoice { group: 9, ..keep(&[0]) }], "no such group, only 0 to 1"),
        ] {
            let error = apply(&source, &plan(&source, groups), None).unwrap_err().to_string();
            let part = part.replace("\"w0\"", &format!("\"{}\"", source.group_label(0)));
            assert!(error.contains(&part), "{error} lacks {part}");
            assert!(error.contains(&format!("\"{}\"", source.group_label(0))), "{error}");
        }
    }

    #[test]
    fn a_plan_for_another_model_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let source = source(folder.path());
        let other = Plan { source_sha256: "sha256:00".into(), ..plan(&source, Vec::new()) };
        assert!(apply(&source, &other, None).unwrap_err().to_string().contains("is for the model"));
    }
}
