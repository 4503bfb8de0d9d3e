//! Which repairs a plan asks for, from what was seen of the original.

use std::collections::BTreeSet;

use graph::NodeId;

use super::norms;
use super::observe::{Original, RATING_SAMPLES};
use super::seen;
use super::shop::Shop;
use crate::plan::{GramSite, GroupChoice, NodeRef, RefitSite, Refusal, Repair, RepairKind};
use crate::refit;

impl Original {
    /// The repairs of these kinds, in this order, that all of this allows of a model that `groups` narrow, fitted to
    /// the first `samples` samples; and what they leave out.
    pub(crate) fn repair(
        &self,
        shop: &Shop<'_>,
        samples: usize,
        kinds: &[RepairKind],
        groups: &[GroupChoice],
    ) -> (Repair, Vec<Refusal>) {
        let asked = |kind| kinds.contains(&kind);
        let at = |node: NodeId, label: &str| NodeRef { node: node.0, label: label.to_owned() };
        let (gram, mut refused) = if asked(RepairKind::Gram) {
            self.gram_sites(shop, groups, None)
        } else if asked(RepairKind::Ls) && !self.wide.is_empty() {
            self.gram_sites(shop, groups, Some(&self.wide))
        } else {
            (Vec::new(), Vec::new())
        };
        let mut kinds = kinds.to_vec();
        if !gram.is_empty() && !kinds.contains(&RepairKind::Gram) {
            kinds.insert(0, RepairKind::Gram);
        }
        let norms =
            if asked(RepairKind::Bn) { norms::behind(&shop.source, groups) } else { Vec::new() };
        if asked(RepairKind::Bn) && norms.is_empty() {
            refused.push(Refusal::new("norm", "bn", norms::NONE));
        }
        let fits = asked(RepairKind::Ls);
        let sums = self.sums.iter().filter(|_| fits);
        let targets = self.targets.iter().filter(|_| fits);
        let repair = Repair {
            data_sha256: shop.calibration.digest().to_string(),
            hold_out_every: shop.hold_out_every,
            engine: shop.job.engine.kind,
            samples,
            rescale_samples: RATING_SAMPLES.min(shop.calibration.len()),
            rescale: sums.map(|s| at(s.node, &s.label)).collect(),
            refit: targets
                .map(|t| RefitSite {
                    at: at(t.site.node, &t.site.label),
                    stride: t.stride,
                    samples: Some(t.samples),
                })
                .collect(),
            kinds,
            gram,
            norms,
        };
        (repair, refused)
    }

    /// Consumers of the narrowed groups (of those in `only`) that can take over what removed channels gave.
    fn gram_sites(
        &self,
        shop: &Shop<'_>,
        groups: &[GroupChoice],
        only: Option<&[NodeId]>,
    ) -> (Vec<GramSite>, Vec<Refusal>) {
        let graph = &shop.source.model.graph;
        let watches = seen::by_key(&self.watches);
        let (mut sites, mut refused) = (Vec::new(), Vec::new());
        let mut consumers = BTreeSet::new();
        for choice in groups {
            let group = shop.source.grouping.groups.get(choice.group as usize);
            let group = group.filter(|group| group.scope.is_main());
            consumers
                .extend(group.iter().flat_map(|g| &g.consumers).map(|c| (c.node, c.input_axis)));
        }
        consumers.retain(|(node, _)| only.is_none_or(|only| only.contains(node)));
        for (node, axis) in consumers {
            let label = refit::label(graph, node);
            let watch = refit::linear(graph, node).and_then(|site| {
                self.evidence.gram(site.input, axis)?;
                watches.get(&(site.input, axis)).ok_or_else(|| "it was not observed".to_owned())
            });
            match watch {
                Ok(watch) => sites.push(GramSite {
                    at: NodeRef { node: node.0, label },
                    axis,
                    stride: watch.stride,
                    samples: watch.samples,
                }),
                Err(why) => refused.push(Refusal::new("gram", label, why)),
            }
        }
        (sites, refused)
    }
}
