use super::*;

#[test]
fn verdicts_are_written_for_people_and_machines() {
    let undecided = Verdict::Undecided { samples_needed: Some(900) };
    assert_eq!(undecided.to_string(), "undecided: about 900 samples are needed");
    let json = serde_json::to_string(&undecided).unwrap();
    assert_eq!(json, r#"{"verdict":"undecided","samples_needed":900}"#);
    assert_eq!(serde_json::from_str::<Verdict>(&json).unwrap(), undecided);
}
