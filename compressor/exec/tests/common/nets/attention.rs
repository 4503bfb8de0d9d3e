//! Blocks of transformers: attention in its exported forms, gates, and products written as equations.

use graph::{AttributeValue, ValueId};

use super::Net;

impl Net {
    pub(super) fn attention(&mut self, heads: usize) {
        let [length, width] = self.dims[..] else { return };
        let each = 3;
        let turned = |net: &mut Self, perm: [i64; 4]| {
            let w = net.weight(&[width, heads * each], width);
            let x = net.op("MatMul", &[net.at, w], []);
            let split = net.ints(&[0, length as i64, heads as i64, each as i64]);
            let x = net.op("Reshape", &[x, split], []);
            net.op("Transpose", &[x], [("perm", AttributeValue::Ints(perm.to_vec()))])
        };
        let (q, k) = (turned(self, [0, 2, 1, 3]), turned(self, [0, 2, 3, 1]));
        let v = turned(self, [0, 2, 1, 3]);
        let scores = self.op("MatMul", &[q, k], []);
        let weights = self.op("Softmax", &[scores], [("axis", AttributeValue::Int(-1))]);
        let mixed = self.op("MatMul", &[weights, v], []);
        let mixed =
            self.op("Transpose", &[mixed], [("perm", AttributeValue::Ints(vec![0, 2, 1, 3]))]);
        let merged = self.ints(&[0, 0, -1]);
        self.at = self.op("Reshape", &[mixed, merged], []);
        self.dims = vec![length, heads * each];
        self.dense(width, false);
    }

    fn turned(&mut self, x: ValueId, perm: &[i64]) -> ValueId {
        self.op("Transpose", &[x], [("perm", AttributeValue::Ints(perm.to_vec()))])
    }

    fn shaped(&mut self, x: ValueId, dims: &[usize]) -> ValueId {
        let target: Vec<i64> = [0].into_iter().chain(dims.iter().map(|&d| d as i64)).collect();
        let target = self.ints(&target);
        self.op("Reshape", &[x, target], [])
    }

    fn projected(&mut self, x: ValueId, width: usize, out: usize) -> ValueId {
        let w = self.weight(&[width, out], width);
        self.op("MatMul", &[x, w], [])
    }

    /// From queries and values `[N, H, L, d]` and turned keys `[N, H, d, L]` to `[N, L, H·d]`.
    fn attended(&mut self, q: ValueId, k: ValueId, v: ValueId, merged: &[usize]) {
        let scores = self.op("MatMul", &[q, k], []);
        let weights = self.op("Softmax", &[scores], [("axis", AttributeValue::Int(-1))]);
        let mixed = self.op("MatMul", &[weights, v], []);
        let mixed = self.turned(mixed, &[0, 2, 1, 3]);
        self.at = self.shaped(mixed, merged);
        self.dims = merged.to_vec();
    }

    /// Twice as many heads of queries as of keys and values, which are expanded.
    pub(super) fn grouped_query(&mut self, groups: usize) {
        let [length, width] = self.dims[..] else { return };
        let (x, each, repeats) = (self.at, 3, 2);
        let heads = groups * repeats;
        let q = self.projected(x, width, heads * each);
        let q = self.shaped(q, &[length, heads, each]);
        let q = self.turned(q, &[0, 2, 1, 3]);
        let expanded = |net: &mut Self| {
            let x = net.projected(x, width, groups * each);
            let x = net.shaped(x, &[length, groups, each]);
            let x = net.turned(x, &[0, 2, 1, 3]);
            let axes = net.ints(&[2]);
            let x = net.op("Unsqueeze", &[x, axes], []);
            let target = [1, groups as i64, repeats as i64, length as i64, each as i64];
            let target = net.ints(&target);
            let x = net.op("Expand", &[x, target], []);
            net.shaped(x, &[heads, length, each])
        };
        let (k, v) = (expanded(self), expanded(self));
        let k = self.turned(k, &[0, 1, 3, 2]);
        self.attended(q, k, v, &[length, heads * each]);
        self.dense(width, false);
    }

    /// Query, key and value from one product, taken apart by `Split`, `Slice` or `Gather`.
    pub(super) fn fused_attention(&mut self, how: u8) {
        let [length, width] = self.dims[..] else { return };
        let (heads, each) = (4, 3);
        let fused = self.projected(self.at, width, 3 * heads * each);
        let parts: Vec<ValueId> = if how == 0 {
            let axis = [("axis", AttributeValue::Int(-1))];
            let sizes = self.ints(&[(heads * each) as i64; 3]);
            let parts = self.builder.nodes("Split", &[Some(fused), Some(sizes)], axis, 3).unwrap();
            let split = |&part: &ValueId| {
                let part = self.shaped(part, &[length, heads, each]);
                self.turned(part, &[0, 2, 1, 3])
            };
            parts.iter().map(split).collect()
        } else {
            let x = self.shaped(fused, &[length, 3, heads, each]);
            let x = self.turned(x, &[2, 0, 3, 1, 4]);
            (0..3).map(|part| self.part(x, part, how)).collect()
        };
        let k = self.turned(parts[1], &[0, 1, 3, 2]);
        self.attended(parts[0], k, parts[2], &[length, heads * each]);
        self.dense(width, false);
    }

    /// Index `part` of axis 0, without the axis.
    fn part(&mut self, x: ValueId, part: i64, how: u8) -> ValueId {
        if how == 1 {
            let (start, end, axis) = (self.ints(&[part]), self.ints(&[part + 1]), self.ints(&[0]));
            let x = self.op("Slice", &[x, start, end, axis], []);
            return self.op("Squeeze", &[x, axis], []);
        }
        let index = graph::Tensor::from_i64(vec![], &[part]).unwrap();
        let index = self.builder.constant("index", index).unwrap();
        self.op("Gather", &[x, index], [("axis", AttributeValue::Int(0))])
    }

    /// `down(silu(gate(x)) · up(x))`, with two weights or with one that is split.
    pub(super) fn gated(&mut self, fused: bool) {
        let (x, width, inner) = (self.at, *self.dims.last().unwrap(), 4);
        let (gate, up) = if fused {
            let both = self.projected(x, width, 2 * inner);
            let axis = [("axis", AttributeValue::Int(-1))];
            let sizes = self.ints(&[inner as i64; 2]);
            let parts = self.builder.nodes("Split", &[Some(both), Some(sizes)], axis, 2).unwrap();
            (parts[0], parts[1])
        } else {
            (self.projected(x, width, inner), self.projected(x, width, inner))
        };
        let sigmoid = self.op("Sigmoid", &[gate], []);
        let silu = self.op("Mul", &[gate, sigmoid], []);
        let product = self.op("Mul", &[silu, up], []);
        self.at = self.projected(product, inner, width);
    }

    /// A projection, or scores and what they mix, as equations.
    pub(super) fn einsum(&mut self, how: u8) {
        let equation = |text: &str| [("equation", AttributeValue::String(text.to_owned().into()))];
        let (x, out) = (self.at, 6);
        match (self.dims.len(), how) {
            (3, _) => {
                let w = self.weight(&[out, self.dims[0]], self.dims[0]);
                self.at = self.op("Einsum", &[w, x], equation("oc,nchw->nohw"));
                self.dims[0] = out;
            }
            (2, 0) => {
                let scores = self.op("Einsum", &[x, x], equation("nld,nmd->nlm"));
                let weights = self.op("Softmax", &[scores], [("axis", AttributeValue::Int(-1))]);
                self.at = self.op("Einsum", &[weights, x], equation("nlm,nmd->nld"));
            }
            (rank, _) => {
                let width = self.dims[rank - 1];
                let w = self.weight(&[width, out], width);
                let text = if rank == 2 { "nld,de->nle" } else { "nd,de->ne" };
                self.at = self.op("Einsum", &[x, w], equation(text));
                self.dims[rank - 1] = out;
            }
        }
    }
}
