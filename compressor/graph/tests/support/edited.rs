//! Edits of a small graph, read from bytes: what must hold of each.

use graph::{
    AttributeValue, Builder, Cause, DType, Dim, Edit, Model, Node, NodeId, Tensor, ValueId, apply,
    same,
};

/// The most edits made of one string of bytes.
const MOST: usize = 64;

/// `y = reduce(relu(x w), axes) + c`, where `w` is read through two aliases and `axes` is a constant.
pub(crate) fn sample() -> Model {
    let mut builder = Builder::new(18);
    let x = builder.input("x", DType::F32, vec![Dim::Symbol("N".into()), Dim::Fixed(4)]);
    let w = builder.constant("w", Tensor::from_f32(vec![4, 6], &[0.5; 24]).unwrap()).unwrap();
    let axes = builder.constant("axes", Tensor::from_i64(vec![1], &[1]).unwrap()).unwrap();
    let one = AttributeValue::Tensor(Tensor::from_f32(vec![1], &[1.0]).unwrap().into());
    let c = builder.node("Constant", &[], [("value", one)]).unwrap();
    let alias = builder.node("Identity", &[w], []).unwrap();
    let again = builder.node("Identity", &[alias], []).unwrap();
    let h = builder.node("MatMul", &[x, again], []).unwrap();
    let h = builder.node("Relu", &[h], []).unwrap();
    let h = builder.node("ReduceMean", &[h, axes], []).unwrap();
    let y = builder.node("Add", &[h, c], []).unwrap();
    builder.finish(&[y]).unwrap()
}

/// Makes the edits that `bytes` spell, each of up to five bytes.
///
/// # Panics
/// Where an edit leaves an invalid model, a refused one changes something, or the end does not survive export.
#[allow(dead_code)]
pub(crate) fn edit_all(bytes: &[u8]) {
    let mut model = sample();
    for letters in bytes.chunks(5).take(MOST) {
        edit_one(&mut model, edit(letters));
    }
    let _ = graph::infer(&model);
    let back = Model::from_bytes(model.to_bytes().unwrap(), None).unwrap();
    assert_eq!(same(&model, &back), Ok(()));
}

/// Makes one edit.
///
/// # Panics
/// Where it leaves an invalid model, or is refused and changes something.
pub(crate) fn edit_one(model: &mut Model, edit: Edit) {
    let (before, text) = (model.clone(), edit.to_string());
    match apply(&mut model.graph, edit, &Cause::new("test", "because")) {
        Ok(_) => assert_eq!(model.verify(), Ok(()), "{text}"),
        Err(_) => assert_eq!(same(&before, model), Ok(()), "{text}"),
    }
}

fn edit(letters: &[u8]) -> Edit {
    let at = |index: usize| letters.get(index).copied().unwrap_or(0);
    let value = |index: usize| ValueId(u32::from(at(index) % 20));
    let some = |index: usize| (at(index) < 200).then(|| value(index));
    let node = NodeId(u32::from(at(1) % 12));
    let name = || ["x", "w", "new", ""][usize::from(at(2) % 4)].to_owned();
    let count = usize::from(at(3) % 4);
    let tensor = || Tensor::from_i64(vec![count], &vec![1; count]).unwrap();
    let op = ["Neg", "Identity", "Add", "Constant", "Nonsense"][usize::from(at(4) % 5)];
    let new = || Node::new(op, "", [some(2), some(3)][..usize::from(at(1) % 3)].to_vec(), vec![]);
    match at(0) % 14 {
        0 => Edit::SetConstant { value: value(1), tensor: tensor() },
        1 => Edit::AddConstant { name: name(), tensor: tensor() },
        2 => Edit::RemoveConstant { value: value(1) },
        3 => Edit::AddNode { node: new(), outputs: vec![name(); count] },
        4 => Edit::ReplaceNode { node, with: new() },
        5 => Edit::RemoveNode { node },
        6 => Edit::ReplaceInput { node, slot: count, value: some(2) },
        7 => {
            let number = (at(2) < 200).then(|| AttributeValue::Int(i64::from(at(2) % 3)));
            Edit::SetAttribute { node, name: "axis".into(), value: number }
        }
        8 => Edit::AddOutput { value: value(1) },
        9 => Edit::SetOutputs { values: [value(1), value(2), value(4)][..count.min(3)].to_vec() },
        10 => Edit::Rename { value: value(1), name: name() },
        11 => Edit::SetType { value: value(1), ty: None },
        12 => Edit::RemoveCapture { value: value(1) },
        _ => Edit::ForgetTypes,
    }
}
