//! What can go wrong, and where.

/// Why a graph does not run.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ExecError {
    /// An operator that this executor lacks.
    #[error("node `{node}`: operator {op} is not supported: {why}")]
    Unsupported {
        /// Name of the node, or its position where it has none.
        node: String,
        /// Operator type of the file.
        op: String,
        /// What is missing.
        why: String,
    },
    /// An operator refused its operands.
    #[error("node `{node}` ({op}) on {operands}: {why}")]
    Run {
        /// Name of the node, or its position where it has none.
        node: String,
        /// Operator type of the file.
        op: String,
        /// Types and shapes of its inputs.
        operands: String,
        /// What is wrong with them.
        why: String,
    },
    /// An input is missing, or not one that this executor can read.
    #[error("input `{name}`: {why}")]
    Input {
        /// Name of the input.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// A constant that this executor cannot read.
    #[error("constant `{name}`: {why}")]
    Constant {
        /// Name of the constant.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// A value that no node computes.
    #[error("value `{name}` cannot be fetched: {why}")]
    Fetch {
        /// Name of the value.
        name: String,
        /// Why.
        why: String,
    },
}

/// An operator's refusal, without its place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpError {
    /// The operator or a variant of it is missing.
    #[error("{0}")]
    Unsupported(String),
    /// The operands do not fit.
    #[error("{0}")]
    Invalid(String),
    /// The tensor library refused.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

pub(crate) type Result<T> = std::result::Result<T, OpError>;

/// The operands do not fit.
pub(crate) fn invalid<T>(why: impl Into<String>) -> Result<T> {
    Err(OpError::Invalid(why.into()))
}

/// The variant is missing.
pub(crate) fn unsupported<T>(why: impl Into<String>) -> Result<T> {
    Err(OpError::Unsupported(why.into()))
}
