//! The closed set of operators we understand. Everything else is [`Op::Opaque`]: carried byte-faithfully
//! and a barrier for every edit.

mod attrs;
pub(crate) mod decode;
mod einsum;
pub(crate) mod resize;
pub(crate) mod resolve;

pub use decode::NEWEST_OPSET;
pub use einsum::EinsumEquation;

/// Elementwise functions of one input that keep shape and index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum UnaryOp {
    Abs,
    Ceil,
    Cos,
    Elu,
    Erf,
    Exp,
    Floor,
    Gelu,
    HardSigmoid,
    HardSwish,
    Identity,
    IsNan,
    LeakyRelu,
    Log,
    Neg,
    Not,
    Reciprocal,
    Relu,
    Round,
    Selu,
    Sigmoid,
    Sign,
    Sin,
    Softplus,
    Softsign,
    Sqrt,
    Tan,
    Tanh,
    Clip,
    Cast,
    Dropout,
}

/// Elementwise functions of two or more inputs with multidirectional broadcasting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum BinaryOp {
    Add,
    Sub,
    Mul,
    Div,
    Pow,
    Min,
    Max,
    Mean,
    Sum,
    Mod,
    Equal,
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
    And,
    Or,
    Xor,
    PRelu,
    Where,
}

/// Reductions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ReduceKind {
    Sum,
    Mean,
    Max,
    Min,
    Prod,
    L1,
    L2,
    LogSum,
    LogSumExp,
    SumSquare,
}

/// Pooling flavours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum PoolKind {
    Max,
    Average,
    Lp,
    GlobalMax,
    GlobalAverage,
    GlobalLp,
}

/// Attributes of `Conv` and `ConvTranspose`; empty vectors mean the specification's defaults.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct ConvAttrs {
    pub auto_pad: String,
    pub group: usize,
    pub kernel_shape: Vec<usize>,
    pub strides: Vec<usize>,
    pub dilations: Vec<usize>,
    /// Begins, then ends, per spatial axis.
    pub pads: Vec<i64>,
    /// `ConvTranspose` only.
    pub output_padding: Vec<usize>,
    /// `ConvTranspose` only.
    pub output_shape: Vec<usize>,
}

/// Attributes of `Gemm`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct GemmAttrs {
    pub alpha: f32,
    pub beta: f32,
    pub trans_a: bool,
    pub trans_b: bool,
}

/// Recurrent layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum RecurrentKind {
    Lstm,
    Gru,
    Rnn,
}

/// Attributes of the recurrent layers that shape their outputs.
#[derive(Debug, Clone, PartialEq)]
pub struct RecurrentAttrs {
    /// Which layer.
    pub kind: RecurrentKind,
    /// Hidden units; 0 where the file leaves them to the weights.
    pub hidden: usize,
    /// 2 for bidirectional ones.
    pub directions: usize,
    /// Whether the batch comes before the sequence (`layout` 1).
    pub batch_first: bool,
}

/// Attributes of the pooling operators.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct PoolAttrs {
    pub kind: PoolKind,
    pub auto_pad: String,
    pub ceil_mode: bool,
    pub count_include_pad: bool,
    pub kernel_shape: Vec<usize>,
    pub strides: Vec<usize>,
    pub dilations: Vec<usize>,
    pub pads: Vec<i64>,
    pub p: i64,
}

/// Starts, ends and axes of a `Slice` before opset 10.
pub type SliceAttrs = (Vec<i64>, Vec<i64>, Option<Vec<i64>>);

/// What a node computes.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Op {
    Unary(UnaryOp),
    Binary(BinaryOp),
    Conv(ConvAttrs),
    ConvTranspose(ConvAttrs),
    Gemm(GemmAttrs),
    MatMul,
    Einsum(EinsumEquation),
    /// Inputs `x, scale, bias, mean, var`; channel axis 1.
    BatchNormalization {
        epsilon: f32,
        training: bool,
    },
    /// Inputs `x, scale, bias`; normalises the spatial axes of each channel.
    InstanceNormalization {
        epsilon: f32,
    },
    /// Normalises axes `axis..`.
    LayerNormalization {
        axis: i64,
        epsilon: f32,
    },
    /// `RMSNormalization`, or `SimplifiedLayerNormalization` as ONNX Runtime writes it: divides by the root mean
    /// square of axes `axis..`. Inputs `x, scale`.
    RmsNormalization {
        axis: i64,
        epsilon: f32,
    },
    /// Inputs `x, scale, bias`; normalises groups of channels, spatial axes included.
    GroupNormalization {
        groups: usize,
        epsilon: f32,
    },
    Pool(PoolAttrs),
    /// Local response normalisation over axis 1.
    Lrn {
        size: usize,
    },
    /// Axes from the attribute or input 1, both covered; `None` is all axes unless `noop_with_empty_axes`.
    Reduce {
        kind: ReduceKind,
        axes: Option<Vec<i64>>,
        keepdims: bool,
        noop_with_empty_axes: bool,
    },
    /// Before opset 13 the axes are those of the flattened trailing matrix (`flat`).
    Softmax {
        axis: i64,
        log: bool,
        flat: bool,
    },
    ArgMax {
        axis: i64,
        keepdims: bool,
    },
    Reshape {
        allow_zero: bool,
    },
    Flatten {
        axis: i64,
    },
    Transpose {
        perm: Option<Vec<usize>>,
    },
    /// Axes from the attribute (opset < 13); otherwise input 1.
    Squeeze {
        axes: Option<Vec<i64>>,
    },
    /// Axes from the attribute (opset < 13); otherwise input 1.
    Unsqueeze {
        axes: Option<Vec<i64>>,
    },
    Concat {
        axis: i64,
    },
    /// Sizes from the attribute (opset < 13); otherwise input 1.
    Split {
        axis: i64,
        sizes: Option<Vec<i64>>,
    },
    /// Opset < 10 carries `(starts, ends, axes)` as attributes; otherwise inputs 1 to 4.
    Slice {
        attrs: Option<SliceAttrs>,
    },
    Gather {
        axis: i64,
    },
    Expand,
    /// `Resize` and `Upsample`: scales or sizes from the inputs (`Upsample` before opset 9: from the attribute);
    /// the interpolation stays in the attributes.
    Resize,
    /// Inputs `x, w, r, b, sequence lengths, initial states`.
    Recurrent(RecurrentAttrs),
    Shape {
        start: i64,
        end: Option<i64>,
    },
    /// The number of elements, a scalar.
    Size,
    Pad {
        mode: String,
        pads: Option<Vec<i64>>,
    },
    /// A `Constant` node: its tensor is found through [`crate::Graph::constant`].
    Constant,
    ConstantOfShape,
    Range,
    DequantizeLinear {
        axis: i64,
    },
    QuantizeLinear {
        axis: i64,
    },
    DynamicQuantizeLinear,
    MatMulInteger,
    /// Inputs `x, w, x zero point, w zero point`.
    ConvInteger(ConvAttrs),
    /// Inputs `x, w, bias` with scale and zero point behind `x` and `w`, those of the output before the bias.
    QLinearConv(ConvAttrs),
    /// Inputs `a, b, y`, each with scale and zero point; `y` itself is the output.
    QLinearMatMul,
    /// Bodies stay in the attributes.
    If,
    Loop,
    Scan,
    /// Not understood: preserved, never edited, locks what it touches.
    Opaque,
}
