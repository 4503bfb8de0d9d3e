//! Axes that must keep their width, and the reasons given.

#![allow(clippy::unwrap_used)]

use graph::{
    AttributeValue, Builder, DType, Dim, Grouping, LockedBy, Model, Tensor, ValueId, find, infer,
};

const WIDTH: usize = 6;

/// A product of width 6, whatever `rest` makes of it, and a product that consumes it where it still is `[N, 6]`.
fn locked(rest: impl FnOnce(&mut Builder, ValueId) -> ValueId) -> (Model, Grouping) {
    let mut builder = Builder::new(17);
    let x = builder.input("x", DType::F32, vec![Dim::Symbol("N".into()), Dim::Fixed(3)]);
    let w = weight(&mut builder, 3, WIDTH);
    let units = builder.node("MatMul", &[x, w], []).unwrap();
    let out = rest(&mut builder, units);
    let model = builder.finish(&[out]).unwrap();
    let grouping = find(&model, &infer(&model));
    (model, grouping)
}

fn weight(builder: &mut Builder, rows: usize, columns: usize) -> ValueId {
    let values: Vec<f32> = (0..rows * columns).map(|i| (i % 7) as f32 / 7.0 + 0.1).collect();
    builder.constant("w", Tensor::from_f32(vec![rows, columns], &values).unwrap()).unwrap()
}

fn consume(builder: &mut Builder, x: ValueId) -> ValueId {
    let w = weight(builder, WIDTH, 2);
    builder.node("MatMul", &[x, w], []).unwrap()
}

fn ints(builder: &mut Builder, values: &[i64]) -> ValueId {
    builder.constant("i", Tensor::from_i64(vec![values.len()], values).unwrap()).unwrap()
}

fn axis(axis: i64) -> [(&'static str, AttributeValue); 1] {
    [("axis", AttributeValue::Int(axis))]
}

/// Asserts that the units are locked by a node of `op` for a reason that contains `why`.
fn assert_locked((model, grouping): &(Model, Grouping), op: &str, why: &str) {
    assert!(
        grouping.groups.iter().all(|group| group.width != WIDTH),
        "found {:?}",
        grouping.groups
    );
    let by = |lock: &graph::Locked| match lock.by {
        LockedBy::Node(node) => model.graph.node(node).op_type.clone(),
        other => format!("{other:?}"),
    };
    let hit = grouping.locked.iter().any(|lock| by(lock) == op && lock.why.contains(why));
    assert!(hit, "wanted {op}: {why}; found {:#?}", grouping.locked);
}

#[test]
fn without_an_obstacle_the_units_are_free() {
    let (_, grouping) = locked(consume);
    assert_eq!(grouping.groups.iter().map(|group| group.width).collect::<Vec<_>>(), [WIDTH]);
}

#[test]
fn an_output_of_the_model_keeps_its_width() {
    assert_locked(
        &locked(|b, x| b.node("Relu", &[x], []).unwrap()),
        "GraphOutput",
        "output of the model",
    );
}

#[test]
fn folds_that_need_every_unit_lock() {
    for op in ["ReduceMax", "ReduceMin", "ReduceProd"] {
        let found =
            locked(|b, x| b.node(op, &[x], [("axes", AttributeValue::Ints(vec![1]))]).unwrap());
        assert_locked(&found, op, "folds this axis");
    }
}

#[test]
fn softmax_layer_norm_and_arg_max_lock_their_axis() {
    let softmax = locked(|b, x| {
        let y = b.node("Softmax", &[x], axis(-1)).unwrap();
        consume(b, y)
    });
    assert_locked(&softmax, "Softmax", "normalises");
    assert_locked(&locked(|b, x| b.node("ArgMax", &[x], axis(1)).unwrap()), "ArgMax", "positions");
    let norm = locked(|b, x| {
        let ones = Tensor::from_f32(vec![WIDTH], &[1.0; WIDTH]).unwrap();
        let scale = b.constant("scale", ones).unwrap();
        let x = b.node("Sigmoid", &[x], []).unwrap();
        let y = b.node("LayerNormalization", &[x, scale], axis(-1)).unwrap();
        consume(b, y)
    });
    assert_locked(&norm, "LayerNormalization", "not exactly zero");
}

#[test]
fn a_sum_tolerates_silent_units_and_locks_loud_ones() {
    let sum = |b: &mut Builder, x: ValueId| {
        let axes = ints(b, &[1]);
        b.node("ReduceSum", &[x, axes], []).unwrap()
    };
    let (_, silent) = locked(|b, x| {
        let y = b.node("Tanh", &[x], []).unwrap();
        sum(b, y)
    });
    assert_eq!(silent.groups.len(), 1);
    let (_, same) = locked(|b, x| {
        let y = b.node("Sigmoid", &[x], []).unwrap();
        let one = b.constant("one", Tensor::from_f32(vec![], &[1.0]).unwrap()).unwrap();
        let y = b.node("Add", &[y, one], []).unwrap();
        sum(b, y)
    });
    assert_eq!(same.groups.len(), 1, "what every masked unit holds can be added");
    let loud = locked(|b, x| {
        let y = b.node("Sigmoid", &[x], []).unwrap();
        let axes = ints(b, &[1]);
        b.node("ReduceL2", &[y, axes], []).unwrap()
    });
    assert_locked(&loud, "ReduceL2", "not exactly zero");
    let apart = locked(|b, x| {
        let loud = b.node("Sigmoid", &[x], []).unwrap();
        let turned = b.node("Transpose", &[loud], []).unwrap();
        b.node("ReduceMean", &[turned], [("axes", AttributeValue::Ints(vec![0]))]).unwrap()
    });
    assert_locked(&apart, "ReduceMean", "not exactly zero");
}

#[test]
fn a_mean_over_integers_or_several_axes_locks() {
    let along = locked(|b, x| {
        let y = b.node("Sigmoid", &[x], []).unwrap();
        b.node("ReduceMean", &[y], [("axes", AttributeValue::Ints(vec![0, 1]))]).unwrap()
    });
    assert_locked(&along, "ReduceMean", "along with other axes");
    let integers = locked(|b, x| {
        let y = b.node("Cast", &[x], [("to", AttributeValue::Int(7))]).unwrap();
        b.node("ReduceMean", &[y], [("axes", AttributeValue::Ints(vec![1]))]).unwrap()
    });
    assert_locked(&integers, "ReduceMean", "integers");
}

#[test]
fn a_product_of_two_loud_activations_locks() {
    let found = locked(|b, x| {
        let y = b.node("Sigmoid", &[x], []).unwrap();
        let turned = b.node("Transpose", &[y], []).unwrap();
        b.node("MatMul", &[y, turned], []).unwrap()
    });
    assert_locked(&found, "MatMul", "neither factor");
}

#[test]
fn units_that_might_be_infinite_lock_their_consumer() {
    let found = locked(|b, x| {
        let y = b.node("Reciprocal", &[x], []).unwrap();
        consume(b, y)
    });
    assert_locked(&found, "MatMul", "might not be finite");
}

#[test]
fn an_epsilon_keeps_a_masked_reciprocal_finite() {
    let (_, grouping) = locked(|b, x| {
        let epsilon = b.constant("epsilon", Tensor::from_f32(vec![], &[1e-5]).unwrap()).unwrap();
        let square = b.node("Mul", &[x, x], []).unwrap();
        let sum = b.node("Add", &[square, epsilon], []).unwrap();
        let root = b.node("Sqrt", &[sum], []).unwrap();
        let y = b.node("Reciprocal", &[root], []).unwrap();
        consume(b, y)
    });
    assert_eq!(grouping.groups.len(), 1);
}

#[test]
fn an_unknown_operator_is_a_barrier() {
    let found = locked(|b, x| {
        let y = b.node("Hardmax", &[x], axis(-1)).unwrap();
        consume(b, y)
    });
    assert_locked(&found, "Hardmax", "not understood");
}

#[test]
fn picked_positions_and_steps_lock() {
    let gathered = locked(|b, x| {
        let indices = ints(b, &[4, 2]);
        b.node("Gather", &[x, indices], axis(1)).unwrap()
    });
    assert_locked(&gathered, "Gather", "picks positions");
    let stepped = locked(|b, x| {
        let (start, end, axes, step) = (ints(b, &[0]), ints(b, &[6]), ints(b, &[1]), ints(b, &[2]));
        b.node("Slice", &[x, start, end, axes, step], []).unwrap()
    });
    assert_locked(&stepped, "Slice", "positions");
}

#[test]
fn arithmetic_with_the_width_locks_it_and_a_shape_operand_does_not() {
    let to = || [("to", AttributeValue::Int(1))];
    let counted = locked(|b, x| {
        let shape = b.node("Shape", &[x], []).unwrap();
        let one = ints(b, &[1]);
        let width = b.node("Gather", &[shape, one], []).unwrap();
        let width = b.node("Cast", &[width], to()).unwrap();
        let y = b.node("Div", &[x, width], []).unwrap();
        consume(b, y)
    });
    assert!(counted.1.groups.iter().all(|group| group.width != WIDTH), "{:?}", counted.1);
    assert!(
        counted.1.locked.iter().any(|lock| lock.why.contains("its size is computed with")),
        "{:?}",
        counted.1.locked
    );
    let (_, batched) = locked(|b, x| {
        let shape = b.node("Shape", &[x], []).unwrap();
        let zero = ints(b, &[0]);
        let batch = b.node("Gather", &[shape, zero], []).unwrap();
        let batch = b.node("Cast", &[batch], to()).unwrap();
        let y = b.node("Div", &[x, batch], []).unwrap();
        consume(b, y)
    });
    assert_eq!(batched.groups.len(), 1, "{:?}", batched.locked);
}

#[test]
fn a_reshape_without_common_factors_locks() {
    let mixed = locked(|b, x| {
        let w = weight(b, WIDTH, 4);
        let target = ints(b, &[-1, 4]);
        let y = b.node("Reshape", &[x, target], []).unwrap();
        let turned = b.node("Transpose", &[w], []).unwrap();
        b.node("MatMul", &[y, turned], []).unwrap()
    });
    assert!(mixed.1.groups.iter().all(|group| group.width != WIDTH));
    assert!(
        mixed.1.locked.iter().any(|lock| lock.why.contains("Reshape")),
        "{:#?}",
        mixed.1.locked
    );
}

/// `[N, 6]` as six channels of a plane of one, resized and summed up again.
fn resized(coordinates: &str, scale: f32) -> (Model, Grouping) {
    locked(|b, x| {
        let (planes, row) = (ints(b, &[0, 6, 1, 1]), ints(b, &[0, -1]));
        let x = b.node("Reshape", &[x, planes], []).unwrap();
        let scales = Tensor::from_f32(vec![4], &[1.0, scale, 2.0, 2.0]).unwrap();
        let scales = b.constant("scales", scales).unwrap();
        let mode = AttributeValue::String(coordinates.to_owned().into());
        let inputs = [Some(x), None, Some(scales)];
        let attributes = [("coordinate_transformation_mode", mode)];
        let y = b.nodes("Resize", &inputs, attributes, 1).unwrap()[0];
        let y = b.node("GlobalAveragePool", &[y], []).unwrap();
        let y = b.node("Reshape", &[y, row], []).unwrap();
        let w = weight(b, 6 * scale as usize, 2);
        b.node("MatMul", &[y, w], []).unwrap()
    })
}

#[test]
fn resize_passes_axes_that_keep_their_size_and_locks_the_others() {
    assert_eq!(resized("half_pixel", 1.0).1.groups.len(), 1);
    assert_locked(&resized("half_pixel", 2.0), "Resize", "interpolates");
    assert_locked(&resized("tf_crop_and_resize", 1.0), "Resize", "tf_crop_and_resize");
}

#[test]
fn an_equation_sums_over_silent_units_only() {
    let equation = |text: &str| [("equation", AttributeValue::String(text.to_owned().into()))];
    let (_, silent) = locked(|b, x| b.node("Einsum", &[x], equation("nd->n")).unwrap());
    assert_eq!(silent.groups.len(), 1);
    let loud = locked(|b, x| {
        let x = b.node("Sigmoid", &[x], []).unwrap();
        b.node("Einsum", &[x], equation("nd->n")).unwrap()
    });
    assert_locked(&loud, "Einsum", "not exactly zero");
    let both = locked(|b, x| {
        let x = b.node("Sigmoid", &[x], []).unwrap();
        b.node("Einsum", &[x, x], equation("nd,md->nm")).unwrap()
    });
    assert_locked(&both, "Einsum", "neither factor");
    let diagonal = locked(|b, x| b.node("Einsum", &[x], equation("...d->...d")).unwrap());
    assert_locked(&diagonal, "Einsum", "not understood");
}

fn scalar(builder: &mut Builder, dtype: DType, value: f64) -> ValueId {
    builder.constant("s", Tensor::from_f64_as(dtype, vec![], &[value]).unwrap()).unwrap()
}

/// A quantized product over the units, which `quantized` and `zero` make of them.
fn integer_product(
    rest: impl FnOnce(&mut Builder, ValueId, ValueId) -> (ValueId, ValueId),
) -> (Model, Grouping) {
    locked(|b, x| {
        let scale = scalar(b, DType::F32, 0.5);
        let (q, zero) = rest(b, x, scale);
        let turned = b.node("Transpose", &[q], []).unwrap();
        b.node("MatMulInteger", &[q, turned, zero, zero], []).unwrap()
    })
}

#[test]
fn a_masked_unit_is_silent_where_it_is_the_zero_point_that_is_read() {
    let (_, same) = integer_product(|b, x, scale| {
        let zero = scalar(b, DType::U8, 9.0);
        (b.node("QuantizeLinear", &[x, scale, zero], []).unwrap(), zero)
    });
    assert_eq!(same.groups.len(), 1, "{:#?}", same.locked);
    let (_, dynamic) = integer_product(|b, x, _| {
        let parts = b.nodes("DynamicQuantizeLinear", &[Some(x)], [], 3).unwrap();
        (parts[0], parts[2])
    });
    assert_eq!(dynamic.groups.len(), 1, "{:#?}", dynamic.locked);
    let other = integer_product(|b, x, scale| {
        let (zero, other) = (scalar(b, DType::U8, 9.0), scalar(b, DType::U8, 8.0));
        (b.node("QuantizeLinear", &[x, scale, zero], []).unwrap(), other)
    });
    assert_locked(&other, "MatMulInteger", "neither factor");
    let loud = integer_product(|b, x, scale| {
        let (x, zero) = (b.node("Sigmoid", &[x], []).unwrap(), scalar(b, DType::U8, 9.0));
        (b.node("QuantizeLinear", &[x, scale, zero], []).unwrap(), zero)
    });
    assert_locked(&loud, "MatMulInteger", "neither factor");
}

#[test]
fn a_dynamic_range_is_that_of_silent_units_only() {
    let loud = locked(|b, x| {
        let x = b.node("Sigmoid", &[x], []).unwrap();
        let parts = b.nodes("DynamicQuantizeLinear", &[Some(x)], [], 3).unwrap();
        let w = Tensor::new(DType::U8, vec![WIDTH, 2], vec![3; 2 * WIDTH]).unwrap();
        let w = b.constant("w", w).unwrap();
        b.node("MatMulInteger", &[parts[0], w, parts[2]], []).unwrap()
    });
    assert_locked(&loud, "DynamicQuantizeLinear", "not exactly zero");
}

#[test]
fn a_norm_with_computed_parameters_locks() {
    let found = locked(|b, x| {
        let axes = ints(b, &[0]);
        let scale = b.node("ReduceMax", &[x], [("axes", AttributeValue::Ints(vec![0]))]).unwrap();
        let scale = b.node("Squeeze", &[scale, axes], []).unwrap();
        let y = b.node("LayerNormalization", &[x, scale], axis(-1)).unwrap();
        consume(b, y)
    });
    assert_locked(&found, "LayerNormalization", "computed");
}

#[test]
fn an_axis_of_size_one_is_said_to_be_one() {
    let mut builder = Builder::new(17);
    let x = builder.input("x", DType::F32, vec![Dim::Symbol("N".into()), Dim::Fixed(3)]);
    let (first, second) = (weight(&mut builder, 3, 2), weight(&mut builder, 1, 2));
    let y = builder.node("MatMul", &[x, first], []).unwrap();
    let (start, end, axes) =
        (ints(&mut builder, &[0]), ints(&mut builder, &[1]), ints(&mut builder, &[1]));
    let y = builder.node("Slice", &[y, start, end, axes], []).unwrap();
    let out = builder.node("MatMul", &[y, second], []).unwrap();
    let model = builder.finish(&[out]).unwrap();
    let grouping = find(&model, &infer(&model));
    assert!(grouping.groups.is_empty());
    assert!(
        grouping
            .locked
            .iter()
            .any(|lock| lock.by == LockedBy::Limit && lock.why.contains("size 1"))
    );
}

#[test]
fn local_response_normalisation_mixes_neighbours() {
    let found = locked(|b, x| {
        let size = [("size", AttributeValue::Int(3))];
        let y = b.node("LRN", &[x], size).unwrap();
        consume(b, y)
    });
    assert_locked(&found, "LRN", "neighbouring");
}
