//! Topological order.

use std::{cmp::Reverse, collections::BinaryHeap};

use crate::{Graph, NodeId};

/// Puts the live nodes in topological order, keeping today's order (or that of ids, for new nodes) wherever
/// it allows. On failure the order is unchanged and the nodes of the circles are returned.
pub(crate) fn sort(graph: &mut Graph) -> Result<(), Vec<NodeId>> {
    let ids: Vec<NodeId> = ranked(graph);
    let mut rank = vec![usize::MAX; graph.nodes.len()];
    for (position, id) in ids.iter().enumerate() {
        rank[id.0 as usize] = position;
    }
    let mut waiting = vec![0usize; ids.len()];
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); ids.len()];
    for (position, &id) in ids.iter().enumerate() {
        for producer in dependencies(graph, id) {
            let from = rank[producer.0 as usize];
            // A producer that is gone is for the verifier to report.
            if from != usize::MAX {
                waiting[position] += 1;
                readers[from].push(position);
            }
        }
    }
    let ready = (0..ids.len()).filter(|&position| waiting[position] == 0).map(Reverse);
    let mut ready: BinaryHeap<Reverse<usize>> = ready.collect();
    let mut order = Vec::with_capacity(ids.len());
    while let Some(Reverse(position)) = ready.pop() {
        order.push(ids[position]);
        for &reader in &readers[position] {
            waiting[reader] -= 1;
            if waiting[reader] == 0 {
                ready.push(Reverse(reader));
            }
        }
    }
    if order.len() < ids.len() {
        let stuck = (0..ids.len()).filter(|&position| waiting[position] > 0);
        return Err(stuck.map(|position| ids[position]).collect());
    }
    graph.order = order;
    Ok(())
}

/// Live nodes: those ordered already, then the new ones.
fn ranked(graph: &Graph) -> Vec<NodeId> {
    let mut ids: Vec<NodeId> =
        graph.order.iter().copied().filter(|&id| graph.get_node(id).is_some()).collect();
    let mut known = vec![false; graph.nodes.len()];
    for id in &ids {
        known[id.0 as usize] = true;
    }
    let all = (0u32..).map(NodeId).zip(&graph.nodes);
    ids.extend(all.filter(|(id, node)| node.is_some() && !known[id.0 as usize]).map(|(id, _)| id));
    ids
}

/// Nodes whose outputs `id` reads, directly or from within its bodies; repeated where read repeatedly.
fn dependencies(graph: &Graph, id: NodeId) -> Vec<NodeId> {
    let captures = if graph.node(id).has_subgraphs() { graph.captures(id) } else { Vec::new() };
    let inputs = graph.node(id).inputs.iter().flatten().copied();
    inputs.chain(captures).filter_map(|value| graph.producer(value)).collect()
}
