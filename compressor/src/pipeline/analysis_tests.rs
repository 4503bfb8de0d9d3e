use super::*;
use crate::pipeline::testing::mlp;

/// 8 by 16 and 16 by 4: the classes stay, and the inputs.
#[test]
fn shares_of_an_analysis_are_what_a_cut_takes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    mlp(&[8, 16, 4]).save(&path).unwrap();
    let found = analyze(&path).unwrap();
    assert_eq!((found.params, found.file_params, found.inner_params), (192, 192, 128));
    assert_eq!((found.macs, found.groups.len(), found.groups[0].width), (Some(192), 1, 16));
    let half = Shares { params: 0.5, inner_params: 0.5, macs: Some(0.5) };
    assert_eq!((found.half, found.half_aligned), (half, half));
    assert_eq!(found.in_groups, Shares { params: 1.0, inner_params: 1.0, macs: Some(1.0) });
    let classifier = Excluded { constant: "w1".into(), kind: "classifier", params: 64 };
    assert_eq!(found.excluded, [classifier]);
    let lock = &found.blocked[0];
    assert_eq!((lock.width, lock.holds, lock.by.as_str()), (4, 64, "model output"));
    let source = Source::load(&path).unwrap();
    let refusal = lock.refusal();
    assert!(refusal.what.ends_with("(axis 1, width 4), locked by model output"), "{refusal:?}");
    assert_eq!(locks(&source), found.blocked);
}
