use super::*;
use crate::pipeline::Silent;
use crate::pipeline::testing::{job, mlp};

fn empty() -> Hunt {
    Hunt { trials: Vec::new(), shortlist: Vec::new(), refused: Vec::new(), timed: HashMap::new() }
}

/// 28 by 48 weights are worth a format, 28 by 32 are not: what is too narrow for it ends neither the search nor
/// its family.
#[test]
fn widths_that_a_format_cannot_be_made_at_are_refused_and_the_wider_ones_searched() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(folder.path(), &mlp(&[28, 64, 4]), 28, 80);
    let shop = Shop::open(&job, &Silent).unwrap();
    let mut bench = Bench::open(&shop).unwrap();
    let mut hunt = empty();
    let format = Some(QuantFormat::Int8);
    let found = hunt.widest(&shop, &mut bench, Family::Single(0), format).unwrap();
    let plan = &hunt.trials[found.unwrap()].plan;
    assert_eq!((plan.groups[0].keep.len(), plan.quantize), (48, format));
    let refused: Vec<&Refusal> = hunt.refused.iter().filter(|r| r.stage == "search").collect();
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert!(refused.iter().all(|r| r.why.contains("MIN_ELEMENTS")), "{refused:?}");
}

#[test]
fn a_device_that_reports_a_breach_is_never_served_the_same_model_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(folder.path(), &mlp(&[28, 64, 4]), 28, 80);
    job.goal.size_bytes = None;
    job.goal.memory_bytes = Some(28 << 20);
    let original_meets = |job: &crate::pipeline::CompressJob| {
        let shop = Shop::open(job, &Silent).unwrap();
        let mut bench = Bench::open(&shop).unwrap();
        let mut hunt = empty();
        let trial = build(&shop, &mut bench, None, 1.0, None).unwrap();
        hunt.add(&shop, trial);
        hunt.meets(&shop, 0)
    };
    assert!(original_meets(&job), "17 MB and a few KiB are under 28 MiB, as far as is known");
    let measured = crate::pipeline::DeviceBaseline {
        memory_bytes: Some(30 << 20),
        ..crate::pipeline::DeviceBaseline::latency(1, 1)
    };
    job.baseline = Some(measured);
    assert!(!original_meets(&job), "the device measured more than the budget");
    for memory_bytes in [None, Some(20 << 20)] {
        let breached = Some(wire::BudgetKind::Memory);
        job.baseline = Some(crate::pipeline::DeviceBaseline { memory_bytes, breached, ..measured });
        assert!(!original_meets(&job), "a breach counts for more than {memory_bytes:?}");
    }
    job.baseline =
        Some(crate::pipeline::DeviceBaseline { memory_bytes: Some(20 << 20), ..measured });
    assert!(original_meets(&job));
    job.goal.latency_p95_us = Some(1_000_000);
    job.goal.memory_bytes = None;
    let breached = Some(wire::BudgetKind::LatencyP95);
    job.baseline = Some(crate::pipeline::DeviceBaseline { breached, ..measured });
    assert!(!original_meets(&job), "p95 of 1 us, but the device says that it is over a second");
}
