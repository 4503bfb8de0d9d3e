//! The one function that turns the source and a plan into a model.
//!
//! The search times, screens and judges what [`apply`] gives, and a plan that was written down gives the same bytes
//! again: nothing of a candidate is decided here.

use graph::Model;

use super::check::check;
use super::repair::Fitting;
use super::shop::Source;
use crate::error::CompressError;
use crate::plan::{NormStep, Plan, RefitStep, Refusal, Repair, RepairKind, RescaleStep};
use crate::quantize;

/// A model that a plan gave, and what its repairs came to.
#[derive(Debug)]
pub(crate) struct Applied {
    pub(crate) model: Model,
    /// The model before it became integer, where the plan says so.
    pub(crate) float: Option<Model>,
    /// Layers that became integer.
    pub(crate) integer: Vec<String>,
    pub(crate) rescales: Vec<RescaleStep>,
    pub(crate) grams: Vec<RefitStep>,
    pub(crate) norms: Vec<NormStep>,
    pub(crate) refits: Vec<RefitStep>,
    pub(crate) refused: Vec<Refusal>,
}

/// Cuts, repairs and quantizes a copy of `source` as `plan` says. `fitting` is asked for by plans that repair.
pub(crate) fn apply(
    source: &Source,
    plan: &Plan,
    fitting: Option<Fitting<'_>>,
) -> Result<Applied, CompressError> {
    let digest = source.digest.to_string();
    if plan.source_sha256 != digest {
        return Err(wrong(format!(
            "it is for the model {}, and {} is {digest}",
            plan.source_sha256,
            source.path.display()
        )));
    }
    check(source, plan).map_err(wrong)?;
    let mut made = Applied {
        model: source.pruned(&plan.groups)?,
        float: None,
        integer: Vec::new(),
        rescales: Vec::new(),
        grams: Vec::new(),
        norms: Vec::new(),
        refits: Vec::new(),
        refused: Vec::new(),
    };
    if let Some(repair) = &plan.repair {
        let fitting = fitting.ok_or_else(|| {
            wrong("it repairs, which takes the calibration samples it was fitted to".into())
        })?;
        made.repair(plan, repair, fitting)?;
        // The weights before the repair would still count as parameters.
        graph::Driver::default()
            .run(&mut made.model, &[&graph::DeadCode])
            .map_err(|error| CompressError::Graph { stage: "repair", what: error.to_string() })?;
    }
    if let Some(format) = plan.quantize {
        let shapes = graph::infer(&made.model);
        let quantized = quantize::quantize(&made.model, &shapes, format)
            .map_err(|what| CompressError::Graph { stage: "quantize", what })?;
        made.refused.extend(quantized.refused);
        made.integer = quantized.sites;
        made.float = Some(std::mem::replace(&mut made.model, quantized.model));
    }
    Ok(made)
}

impl Applied {
    fn repair(
        &mut self,
        plan: &Plan,
        repair: &Repair,
        fitting: Fitting<'_>,
    ) -> Result<(), CompressError> {
        let shop = fitting.shop;
        let (data, engine) = (shop.calibration.digest().to_string(), shop.job.engine.kind);
        if (repair.data_sha256 != data) || (repair.hold_out_every != shop.hold_out_every) {
            return Err(wrong(format!(
                "its repairs are fitted to the samples {}, and {} is {data}",
                repair.data_sha256,
                shop.calibration.file().display()
            )));
        }
        if repair.engine != engine {
            return Err(wrong(format!(
                "its repairs are fitted in {}, not in {engine}",
                repair.engine
            )));
        }
        for kind in &repair.kinds {
            let refused = self.repair_by(*kind, plan, repair, fitting)?;
            self.refused.extend(refused);
        }
        Ok(())
    }

    fn repair_by(
        &mut self,
        kind: RepairKind,
        plan: &Plan,
        repair: &Repair,
        fitting: Fitting<'_>,
    ) -> Result<Vec<Refusal>, CompressError> {
        let model = &mut self.model;
        match kind {
            RepairKind::Gram => {
                let (steps, refused) = fitting.take_over(model, &plan.groups, &repair.gram);
                self.grams.extend(steps);
                Ok(refused)
            }
            RepairKind::Bn => {
                let (steps, refused) =
                    fitting.renew_norms(model, &plan.groups, &repair.norms, repair.samples)?;
                self.norms.extend(steps);
                Ok(refused)
            }
            RepairKind::Ls => {
                let (steps, mut refused) =
                    fitting.rescale(model, &repair.rescale, repair.rescale_samples)?;
                self.rescales.extend(steps);
                let (steps, more) =
                    fitting.refit(model, &plan.groups, &repair.refit, repair.samples)?;
                self.refits.extend(steps);
                refused.extend(more);
                Ok(refused)
            }
        }
    }
}

fn wrong(what: String) -> CompressError {
    CompressError::Graph { stage: "plan", what }
}
