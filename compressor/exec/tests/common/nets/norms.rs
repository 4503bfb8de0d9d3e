//! Blocks that normalise.

use graph::{AttributeValue, ValueId};

use super::Net;

impl Net {
    pub(super) fn batch_norm(&mut self) {
        let c = self.dims[0];
        let (scale, bias) = (self.param(&[c], 0.5, 1.0), self.param(&[c], 0.5, 0.0));
        let (mean, var) = (self.param(&[c], 0.5, 0.0), self.param(&[c], 0.4, 1.0));
        self.at = self.op("BatchNormalization", &[self.at, scale, bias, mean, var], []);
    }

    /// A layer norm over the channels, from sums and a constant count, as some exporters decompose it.
    pub(super) fn sum_norm(&mut self) {
        let (axis, width) =
            if self.dims.len() == 3 { (1, self.dims[0]) } else { (-1, *self.dims.last().unwrap()) };
        let axes = self.ints(&[axis]);
        let (count, epsilon) = (self.scalar(1.0 / width as f32), self.scalar(1e-3));
        let x = self.at;
        let sum = self.op("ReduceSum", &[x, axes], []);
        let mean = self.op("Mul", &[sum, count], []);
        let square = self.op("Mul", &[x, x], []);
        let squares = self.op("ReduceSum", &[square, axes], []);
        let power = self.op("Mul", &[squares, count], []);
        let mean_square = self.op("Mul", &[mean, mean], []);
        let variance = self.op("Sub", &[power, mean_square], []);
        let zero = self.scalar(0.0);
        let variance = self.op("Max", &[variance, zero], []);
        let variance = self.op("Add", &[variance, epsilon], []);
        let deviation = self.op("Sqrt", &[variance], []);
        let centred = self.op("Sub", &[x, mean], []);
        self.at = self.op("Div", &[centred, deviation], []);
        self.broadcast("Mul", 0.5, 1.0);
        self.broadcast("Add", 0.5, 0.0);
    }

    /// The axis of the units.
    pub(super) fn width_axis(&self) -> i64 {
        if self.dims.len() == 3 { 1 } else { -1 }
    }

    pub(super) fn reduce(&mut self, op: &str, x: ValueId, axis: i64) -> ValueId {
        if op == "ReduceSum" || self.opset >= 18 {
            let axes = self.ints(&[axis]);
            return self.op(op, &[x, axes], []);
        }
        self.op(op, &[x], [("axes", AttributeValue::Ints(vec![axis]))])
    }

    /// A layer norm or root-mean-square norm, as an operator or in one of its decompositions.
    pub(super) fn norm(&mut self, how: u8) {
        let width = self.dims[if self.dims.len() == 3 { 0 } else { self.dims.len() - 1 }];
        match how {
            0 | 1 => {
                self.native_norm(if how == 0 { "LayerNormalization" } else { "RMSNormalization" })
            }
            _ => {
                self.decomposed_norm(how, width);
                self.broadcast("Mul", 0.5, 1.0);
                self.broadcast("Add", 0.5, 0.0);
            }
        }
    }

    /// Over the last axis; the channels of an image are turned there and back.
    pub(super) fn native_norm(&mut self, op: &str) {
        let image = self.dims.len() == 3;
        let turn = |net: &mut Self, perm: [i64; 4]| {
            if image {
                net.at =
                    net.op("Transpose", &[net.at], [("perm", AttributeValue::Ints(perm.to_vec()))]);
            }
        };
        let width = if image { self.dims[0] } else { *self.dims.last().unwrap() };
        turn(self, [0, 2, 3, 1]);
        let (scale, bias) = (self.param(&[width], 0.5, 1.0), self.param(&[width], 0.5, 0.0));
        let epsilon = [("epsilon", AttributeValue::Float(1e-2))];
        self.at = match op {
            "RMSNormalization" if self.opset < 23 => {
                self.op("SimplifiedLayerNormalization", &[self.at, scale], epsilon)
            }
            "RMSNormalization" => self.op(op, &[self.at, scale], epsilon),
            _ => self.op(op, &[self.at, scale, bias], epsilon),
        };
        turn(self, [0, 3, 1, 2]);
    }

    pub(super) fn decomposed_norm(&mut self, how: u8, width: usize) {
        let (axis, x) = (self.width_axis(), self.at);
        let mean = |net: &mut Self, x: ValueId, how: u8| match how {
            4 => {
                let sum = net.reduce("ReduceSum", x, axis);
                let count = net.scalar(1.0 / width as f32);
                net.op("Mul", &[sum, count], [])
            }
            5 => {
                let sum = net.reduce("ReduceSum", x, axis);
                let count = net.scalar(width as f32);
                net.op("Div", &[sum, count], [])
            }
            _ => net.reduce("ReduceMean", x, axis),
        };
        let centred = match how {
            7 => x,
            _ => {
                let mean = mean(self, x, how);
                self.op("Sub", &[x, mean], [])
            }
        };
        let square = match how {
            3 | 5 => self.op("Mul", &[centred, centred], []),
            _ => {
                let two = self.scalar(2.0);
                self.op("Pow", &[centred, two], [])
            }
        };
        let variance = mean(self, square, how);
        let epsilon = self.scalar(1e-2);
        let variance = self.op("Add", &[variance, epsilon], []);
        let deviation = self.op("Sqrt", &[variance], []);
        self.at = match how {
            6 => {
                let inverse = self.op("Reciprocal", &[deviation], []);
                self.op("Mul", &[centred, inverse], [])
            }
            _ => self.op("Div", &[centred, deviation], []),
        };
    }

    /// As an operator, or as an instance norm of reshaped groups, with the shape as constants or from `Shape`.
    pub(super) fn group_norm(&mut self, how: u8) {
        let c = self.dims[0];
        let Some(groups) = [3, 2, 5].into_iter().find(|&g| c.is_multiple_of(g) && c > g) else {
            return;
        };
        if how == 0 {
            if self.opset < 18 {
                return;
            }
            let params = if self.opset < 21 { groups } else { c };
            let (scale, bias) = (self.param(&[params], 0.5, 1.0), self.param(&[params], 0.5, 0.0));
            let attributes = [("num_groups", AttributeValue::Int(groups as i64))];
            self.at = self.op("GroupNormalization", &[self.at, scale, bias], attributes);
            return;
        }
        let x = self.at;
        let target = self.ints(&[0, groups as i64, -1]);
        let grouped = self.op("Reshape", &[x, target], []);
        let (scale, bias) = (self.param(&[groups], 0.0, 1.0), self.param(&[groups], 0.0, 0.0));
        let y = self.op("InstanceNormalization", &[grouped, scale, bias], []);
        let back = match how {
            1 => self.op("Shape", &[x], []),
            _ => {
                let back: Vec<i64> = self.dims.iter().map(|&size| size as i64).collect();
                self.ints(&[&[-1], back.as_slice()].concat())
            }
        };
        self.at = self.op("Reshape", &[y, back], []);
        self.broadcast("Mul", 0.5, 1.0);
        self.broadcast("Add", 0.5, 0.0);
    }

    /// `x` plus what a fold over `sigmoid(x) − 1` gives: no unit is zero there.
    pub(super) fn centred(&mut self, sum: bool) {
        let x = self.at;
        let one = self.scalar(1.0);
        let gate = self.op("Sigmoid", &[x], []);
        let loud = self.op("Sub", &[gate, one], []);
        let fold =
            self.reduce(if sum { "ReduceSum" } else { "ReduceMean" }, loud, self.width_axis());
        self.at = self.op("Mul", &[x, fold], []);
    }
}
