use graph::{Builder, DType, Dim};

use super::*;
use crate::pipeline::Silent;
use crate::pipeline::apply::{Applied, apply};
use crate::pipeline::hunt;
use crate::pipeline::observe::{Grams, Looks, Reach, observe};
use crate::pipeline::shop::Shop;
use crate::pipeline::testing::{job_of, noise};
use crate::plan::{Plan, RepairKind};

const DIMS: [usize; 3] = [1, 9, 9];
const SAMPLES: usize = 96;

fn norm(builder: &mut Builder, input: ValueId, width: usize) -> ValueId {
    let values: [Vec<f32>; 4] =
        [vec![1.0; width], vec![0.0; width], vec![0.1; width], vec![2.0; width]];
    let constants: Vec<ValueId> = ["gamma", "beta", "mean", "variance"]
        .into_iter()
        .zip(values)
        .map(|(name, v)| {
            builder.constant(name, graph::Tensor::from_f32(vec![width], &v).unwrap()).unwrap()
        })
        .collect();
    let inputs = [input, constants[0], constants[1], constants[2], constants[3]];
    builder.node("BatchNormalization", &inputs, []).unwrap()
}

fn conv(builder: &mut Builder, input: ValueId, to: usize, from: usize) -> ValueId {
    let values = noise(to * from * 9, (to * 31 + from) as u32);
    let w = builder
        .constant("w", graph::Tensor::from_f32(vec![to, from, 3, 3], &values).unwrap())
        .unwrap();
    builder.node("Conv", &[input, w], []).unwrap()
}

/// Three convolutions, the first two of which are normalized and rectified; the last is normalized.
fn normalized() -> Model {
    let mut builder = Builder::new(15);
    let dims = DIMS.map(Dim::Fixed);
    let dims = [Dim::Symbol("N".into())].into_iter().chain(dims).collect();
    let mut h = builder.input("x", DType::F32, dims);
    for (to, from) in [(16, 1), (16, 16)] {
        h = conv(&mut builder, h, to, from);
        h = norm(&mut builder, h, to);
        h = builder.node("Relu", &[h], []).unwrap();
    }
    h = conv(&mut builder, h, 4, 16);
    h = norm(&mut builder, h, 4);
    builder.finish(&[h]).unwrap()
}

/// Half of the first group, repaired by `kinds`; and the source.
fn repaired(kinds: &[RepairKind]) -> (Model, Applied) {
    let folder = tempfile::tempdir().unwrap();
    let job = job_of(folder.path(), &normalized(), &DIMS, SAMPLES);
    let shop = Shop::open_whole(&job, &Silent).unwrap();
    let looks = Looks { reach: Some(Reach::All), grams: Grams::None, samples: SAMPLES };
    let (original, _) = observe(&shop, &[], 0..0, looks).unwrap();
    let groups = vec![shop.source.choice(0, (0..8).collect())];
    let (repair, refused) = original.repair(&shop, SAMPLES, kinds, &groups);
    assert!(refused.is_empty(), "{refused:?}");
    let plan = Plan { repair: Some(repair), ..hunt::plan(&shop, 0.5, groups, None) };
    let fitting = Fitting { shop: &shop, original: &original };
    let made = apply(&shop.source, &plan, Some(fitting)).unwrap();
    // What each norm reads in the end, as moments.
    (shop.source.model.clone(), made)
}

fn norms_in(model: &Model) -> Vec<Norm> {
    model.graph.nodes().filter_map(|(id, _)| Norm::of(&model.graph, id)).collect()
}

#[test]
fn only_norms_behind_a_cut_are_taken_anew_each_behind_those_before_it() {
    let (source, made) = repaired(&[RepairKind::Bn]);
    let (old, new) = (norms_in(&source), norms_in(&made.model));
    assert_eq!((old.len(), new.len(), made.norms.len()), (3, 3, 2));
    assert_eq!(new[0].mean, vec![0.1; 8], "nothing in front of the first one changed");
    assert!(new[1].mean != old[1].mean && new[2].variance != old[2].variance);
    let all: Vec<NodeRef> = made
        .model
        .graph
        .nodes()
        .filter(|(_, n)| matches!(n.op, Op::BatchNormalization { .. }))
        .map(|(id, _)| NodeRef { node: id.0, label: String::new() })
        .collect();
    assert_eq!(layers(&made.model.graph, &all).len(), 3);
    // What each norm computes has the mean and the deviation that it had.
    let computed = |model: &Model| -> Vec<Vec<(f64, f64)>> {
        let folder = tempfile::tempdir().unwrap();
        let job = job_of(folder.path(), model, &DIMS, SAMPLES);
        let shop = Shop::open_whole(&job, &Silent).unwrap();
        let looks = Looks { reach: None, grams: Grams::None, samples: SAMPLES };
        let (original, _) = observe(&shop, &[], 0..0, looks).unwrap();
        let norms = norms_in(&shop.source.model);
        let fitting = Fitting { shop: &shop, original: &original };
        let before = fitting.norms_before(SAMPLES).unwrap();
        let of = |norm: &Norm| {
            let seen = Read::of(before.seen[&norm.node].as_ref().unwrap()).unwrap();
            let root = |at: usize| f64::from(norm.variance[at] + norm.epsilon).sqrt();
            let each = seen.means.iter().zip(&seen.deviations).enumerate();
            each.map(|(at, (m, s))| ((m - f64::from(norm.mean[at])) / root(at), s / root(at)))
                .collect()
        };
        norms.iter().map(of).collect()
    };
    let (old, new) = (computed(&source), computed(&made.model));
    for (old, new) in old[1..].iter().zip(&new[1..]) {
        for (old, new) in old.iter().zip(new) {
            assert!(
                (old.0 - new.0).abs() < 1e-3 && (old.1 - new.1).abs() < 1e-3,
                "{old:?} {new:?}"
            );
        }
    }
}

/// A re-fit behind a re-estimation fits to what the new norm makes of it, so that both together are no worse than
/// the re-fit alone.
#[test]
fn a_refit_behind_a_renewed_norm_fits_to_what_that_norm_needs() {
    let (source, made) = repaired(&[RepairKind::Bn, RepairKind::Ls]);
    assert_eq!(made.refits.len(), 2, "{:?}", made.refused);
    let alone = repaired(&[RepairKind::Ls]).1;
    for (both, alone) in made.refits.iter().zip(&alone.refits) {
        assert!((both.residual_after - alone.residual_after).abs() < 0.05, "{both:?} {alone:?}");
    }
    let norm = &norms_in(&source)[1];
    let output = norm.input;
    let columns: Vec<usize> = (0..16).collect();
    assert!(moved(&source.graph, &made.model.graph, output, &columns).is_some());
    assert!(moved(&source.graph, &source.graph, output, &columns).is_none());
}

#[test]
fn a_channel_that_no_longer_varies_keeps_its_variance() {
    let mut model = normalized();
    let norm = norms_in(&model).swap_remove(2);
    let (mut before, mut after) = (AxisMoments::new(5), AxisMoments::new(4));
    // Deviations of 1, 2, 1, 9 and 1 about 0; column 3 is gone.
    assert!(before.push(&[2, 5], 1, &[-1., -2., -1., -9., -1., 1., 2., 1., 9., 1.]));
    // Deviations of 0, 1, 1 and 2 about 3, 2, 0 and 1.
    assert!(after.push(&[2, 4], 1, &[3., 1., -1., -1., 3., 3., 1., 3.]));
    let step = norm.renew(&mut model, &before, &[0, 1, 2, 4], &after).unwrap();
    assert!(step.note.unwrap().contains("1 channels"));
    let new = norms_in(&model).swap_remove(2);
    // The old mean of 0.1 lies 0.1 behind, in the old deviation; half of that where the deviation halves.
    for (found, wanted) in new.mean.iter().zip([3.1f32, 2.05, 0.1, 1.2]) {
        assert!((found - wanted).abs() < 1e-4, "{:?}", new.mean);
    }
    for (found, wanted) in new.variance.iter().zip([2.0f32, 0.5, 2.0, 8.0]) {
        assert!((found - wanted).abs() < 1e-3, "{:?}", new.variance);
    }
    assert!(norm.renew(&mut model, &before, &[0], &after).is_err());
}
