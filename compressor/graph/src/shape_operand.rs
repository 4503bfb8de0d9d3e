//! Shape operands as constants: what to write into the second input of `Reshape` and `Expand` so that it
//! says the sizes of the output, leaving the unknown ones to the run time.

use crate::Dim;

/// What the node does with the operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `Reshape`: −1 is inferred, and 0 copies the input's axis unless `allow_zero`.
    Reshape { allow_zero: bool },
    /// `Expand`: 1 keeps the input's axis.
    Expand,
    /// `ConstantOfShape`: every size must be said.
    Filled,
}

/// The operand for an output of dims `to`, from an input of dims `from`.
///
/// # Errors
/// More axes of unknown size than the operand can leave open.
pub(crate) fn constant(kind: Kind, from: &[Dim], to: &[Dim]) -> Result<Vec<i64>, String> {
    match kind {
        Kind::Reshape { allow_zero } => reshape(allow_zero, from, to),
        Kind::Expand => each(to, |axis| {
            let at = (axis + from.len()).checked_sub(to.len())?;
            (from[at] == to[axis] && from[at] != Dim::Unknown).then_some(1)
        }),
        Kind::Filled => each(to, |_| None),
    }
}

fn reshape(allow_zero: bool, from: &[Dim], to: &[Dim]) -> Result<Vec<i64>, String> {
    let open = to.iter().filter(|dim| !matches!(dim, Dim::Fixed(_))).count();
    let mut inferred = false;
    each(to, |axis| {
        let copied = !allow_zero && from.get(axis) == Some(&to[axis]) && to[axis] != Dim::Unknown;
        if open > 1 && copied {
            return Some(0);
        }
        (!std::mem::replace(&mut inferred, true)).then_some(-1)
    })
}

fn each(to: &[Dim], mut open: impl FnMut(usize) -> Option<i64>) -> Result<Vec<i64>, String> {
    to.iter()
        .enumerate()
        .map(|(axis, dim)| match dim {
            Dim::Fixed(size) => i64::try_from(*size).map_err(|_| format!("size {size} overflows")),
            _ => open(axis).ok_or_else(|| format!("the size of output axis {axis} is only known at run time")),
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sym(name: &str) -> Dim {
        Dim::Symbol(name.to_owned())
    }

    const RESHAPE: Kind = Kind::Reshape { allow_zero: false };

    #[test]
    fn one_open_axis_is_inferred() {
        let operand = constant(RESHAPE, &[sym("N"), Dim::Fixed(6)], &[sym("N"), Dim::Fixed(2), Dim::Fixed(3)]);
        assert_eq!(operand.unwrap(), [-1, 2, 3]);
    }

    #[test]
    fn several_open_axes_are_copied_where_they_stand_still() {
        let from = [sym("N"), sym("L"), Dim::Fixed(8)];
        let to = [sym("N"), sym("L"), Dim::Fixed(2), Dim::Fixed(4)];
        assert_eq!(constant(RESHAPE, &from, &to).unwrap(), [0, 0, 2, 4]);
    }

    #[test]
    fn open_axes_that_move_cannot_be_said() {
        let from = [sym("N"), sym("L"), Dim::Fixed(8)];
        let to = [sym("L"), sym("N"), Dim::Fixed(8)];
        assert!(constant(RESHAPE, &from, &to).unwrap_err().contains("output axis 1"));
    }

    #[test]
    fn expand_keeps_an_equal_axis_and_refuses_an_unknown_one() {
        let from = [sym("N"), Dim::Fixed(1)];
        assert_eq!(constant(Kind::Expand, &from, &[sym("N"), Dim::Fixed(5)]).unwrap(), [1, 5]);
        assert!(constant(Kind::Expand, &from, &[sym("M"), Dim::Fixed(5)]).is_err());
        assert!(constant(Kind::Expand, &[Dim::Unknown], &[Dim::Unknown]).is_err());
    }

    #[test]
    fn a_filled_tensor_needs_every_size() {
        assert!(constant(Kind::Filled, &[], &[sym("N")]).is_err());
    }
}
