#![allow(clippy::unwrap_used, missing_docs)]
use graph::*;
#[test]
fn dump() {
    let assets = std::path::PathBuf::from(std::env::var_os("ESPALIER_ASSETS").unwrap());
    for name in ["silero_vad_16k_sequence.onnx","silero_vad_openvino_16k.onnx","silero_vad_16k_op15.onnx","silero_vad_half.onnx","silero_vad.onnx","silero_vad_op18_ifless.onnx"] {
        let mut model = Model::load(assets.join("models").join(name)).unwrap();
        Driver::default().run(&mut model, &[&InlineIf, &OwnConstants, &FoldMoves, &DeadCode]).unwrap();
        let grouping = find(&model, &infer(&model));
        let plan = PrunePlan { choices: grouping.groups.iter().map(|g| Choice { group: g.id, keep: (0..g.width as u32).step_by(2).collect() }).collect() };
        let masked = mask(&model, &grouping, &plan).unwrap();
        let mut pruned = model.clone();
        let report = prune(&mut pruned, &grouping, &plan).unwrap();
        println!("{name} {} -> {} states {:?}", report.params_before, report.params_after, grouping.states);
        let out = std::path::Path::new("/tmp/w/g1/models");
        std::fs::create_dir_all(out).unwrap();
        model.save(out.join(format!("plain_{name}"))).unwrap();
        masked.save(out.join(format!("masked_{name}"))).unwrap();
        pruned.save(out.join(format!("pruned_{name}"))).unwrap();
    }
}
