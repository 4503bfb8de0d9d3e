//! Union-find, and the closures of indices under it.

use std::collections::HashMap;

use super::find::{Axis, MAX_AXIS, Search};
use crate::coupling::{Relation, Stripe};

/// Disjoint sets of `0..len`, each locked or not.
#[derive(Debug, Clone)]
pub(super) struct Sets {
    parent: Vec<u32>,
    locked: Vec<bool>,
}

impl Sets {
    /// `len` sets of one member each.
    pub(super) fn new(len: usize) -> Self {
        let len = u32::try_from(len).expect("the caller bounds the number of atoms");
        Self { parent: (0..len).collect(), locked: vec![false; len as usize] }
    }

    /// The representative of `member`'s set: its least member.
    pub(super) fn root(&mut self, member: usize) -> usize {
        let mut at = member;
        while self.parent[at] as usize != at {
            self.parent[at] = self.parent[self.parent[at] as usize];
            at = self.parent[at] as usize;
        }
        at
    }

    /// Joins two sets.
    pub(super) fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        let (low, high) = (a.min(b), a.max(b));
        self.parent[high] = self.parent[low];
        self.locked[low] |= self.locked[high];
    }

    /// Locks the set of `member`.
    pub(super) fn lock(&mut self, member: usize) {
        let root = self.root(member);
        self.locked[root] = true;
    }

    /// Whether the set of `member` is locked.
    pub(super) fn is_locked(&mut self, member: usize) -> bool {
        let root = self.root(member);
        self.locked[root]
    }
}

/// Indices of unit `unit` on an axis of `size`.
pub(super) fn stripe(stripe: Stripe, size: usize, unit: usize) -> impl Iterator<Item = usize> {
    let period = stripe.width * stripe.inner;
    (0..size / period.max(1)).flat_map(move |block| {
        let start = block * period + unit * stripe.inner;
        start..start + stripe.inner
    })
}

/// Calls `join` with every pair of indices that `relation` ties, on axes of the given sizes. Pairs of a
/// stripe are enough to connect it, not all of them.
///
/// # Errors
/// The relation does not fit the sizes.
pub(super) fn pairs(
    relation: Relation,
    (size_a, size_b): (usize, usize),
    mut join: impl FnMut(usize, usize),
) -> Result<(), String> {
    match relation {
        Relation::Same if size_a != size_b => Err(format!("sizes {size_a} and {size_b} differ")),
        Relation::Same => {
            (0..size_a).for_each(|i| join(i, i));
            Ok(())
        }
        Relation::Range { a, b, len } if a + len > size_a || b + len > size_b => {
            Err(format!("{len} indices at {a} and {b} do not fit sizes {size_a} and {size_b}"))
        }
        Relation::Range { a, b, len } => {
            (0..len).for_each(|i| join(a + i, b + i));
            Ok(())
        }
        Relation::Stripes { a, b } => {
            let fits = |s: Stripe, size: usize| {
                s.width > 0 && s.inner > 0 && size.is_multiple_of(s.width * s.inner) && size > 0
            };
            if !fits(a, size_a) || !fits(b, size_b) || a.width != b.width {
                return Err(format!(
                    "stripes {a:?} and {b:?} do not fit sizes {size_a} and {size_b}"
                ));
            }
            for unit in 0..a.width {
                let first_a = unit * a.inner;
                let first_b = unit * b.inner;
                stripe(a, size_a, unit).for_each(|i| join(i, first_b));
                stripe(b, size_b, unit).for_each(|j| join(first_a, j));
            }
            Ok(())
        }
    }
}

/// Indices followed in all; further axes are locked.
const MAX_ATOMS: usize = 1 << 26;

/// Every index of every class of axes.
pub(super) struct Atoms {
    pub(super) sets: Sets,
    class_of: Vec<usize>,
    /// First atom of every class, and its size.
    ranges: Vec<Option<(usize, usize)>>,
}

impl Atoms {
    pub(super) fn new(search: &Search<'_>) -> Self {
        let axes = &search.axes;
        let mut classes = Sets::new(axes.len());
        let mut rest = Vec::new();
        for statement in &search.statements {
            for link in &statement.links {
                let ends = search.id(statement.node, link.a).zip(search.id(statement.node, link.b));
                match ends {
                    Some((a, b))
                        if link.relation == Relation::Same && axes[a].size == axes[b].size =>
                    {
                        classes.join(a, b);
                    }
                    Some(ends) => rest.push((link.relation, ends)),
                    None => {}
                }
            }
        }
        let class_of: Vec<usize> = (0..axes.len()).map(|axis| classes.root(axis)).collect();
        let mut total = 0;
        let mut ranges = vec![None; axes.len()];
        for (axis, &class) in class_of.iter().enumerate() {
            if class == axis && axes[axis].size <= MAX_AXIS && total + axes[axis].size <= MAX_ATOMS
            {
                ranges[axis] = Some((total, axes[axis].size));
                total += axes[axis].size;
            }
        }
        let mut atoms = Self { sets: Sets::new(total), class_of, ranges };
        for (relation, ends) in rest {
            atoms.join(relation, ends, axes);
        }
        atoms
    }

    /// The class of an axis: one of its axes that are the same, index for index.
    pub(super) fn class(&self, axis: usize) -> usize {
        self.class_of[axis]
    }

    /// The first atom of an axis; `None` where it is too wide to follow.
    pub(super) fn first(&self, axis: usize) -> Option<usize> {
        self.ranges[self.class_of[axis]].map(|(first, _)| first)
    }

    /// Whether no index of an axis can go.
    pub(super) fn is_locked(&mut self, axis: usize, search: &Search<'_>) -> bool {
        let Some(first) = self.first(axis) else { return true };
        (first..first + search.axes[axis].size).all(|atom| self.sets.is_locked(atom))
    }

    pub(super) fn lock(&mut self, axis: usize) {
        if let Some((first, size)) = self.ranges[self.class_of[axis]] {
            (first..first + size).for_each(|atom| self.sets.lock(atom));
        }
    }

    pub(super) fn join(&mut self, relation: Relation, (a, b): (usize, usize), axes: &[Axis]) {
        let (Some(first_a), Some(first_b)) = (self.first(a), self.first(b)) else {
            self.lock(a);
            self.lock(b);
            return;
        };
        // A relation that does not fit has been locked.
        let _ = pairs(relation, (axes[a].size, axes[b].size), |i, j| {
            self.sets.join(first_a + i, first_b + j)
        });
    }

    /// How many units would be left free if `relation` were joined.
    pub(super) fn units_after(
        &mut self,
        relation: Relation,
        (a, b): (usize, usize),
        axes: &[Axis],
    ) -> usize {
        let (Relation::Stripes { a: stripe_a, b: stripe_b }, Some(first_a), Some(first_b)) =
            (relation, self.first(a), self.first(b))
        else {
            return 0;
        };
        let mut roots: HashMap<usize, usize> = HashMap::new();
        let mut merged = Sets::new(stripe_a.width);
        for unit in 0..stripe_a.width {
            let on_a = stripe(stripe_a, axes[a].size, unit).map(|i| first_a + i);
            let on_b = stripe(stripe_b, axes[b].size, unit).map(|i| first_b + i);
            for atom in on_a.chain(on_b) {
                let root = self.sets.root(atom);
                if self.sets.is_locked(root) {
                    merged.lock(unit);
                }
                merged.join(*roots.entry(root).or_insert(unit), unit);
            }
        }
        (0..stripe_a.width)
            .filter(|&unit| merged.root(unit) == unit && !merged.is_locked(unit))
            .count()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_stripe_of_an_inner_factor_repeats() {
        let inner = Stripe { width: 64, inner: 1 };
        assert_eq!(stripe(inner, 256, 3).collect::<Vec<_>>(), [3, 67, 131, 195]);
    }

    #[test]
    fn a_stripe_of_an_outer_factor_is_a_block() {
        let outer = Stripe { width: 8, inner: 3 };
        assert_eq!(stripe(outer, 24, 2).collect::<Vec<_>>(), [6, 7, 8]);
    }

    #[test]
    fn a_lock_spreads_to_whatever_joins() {
        let mut sets = Sets::new(4);
        sets.lock(3);
        sets.join(1, 3);
        sets.join(0, 1);
        assert!(sets.is_locked(0));
        assert!(!sets.is_locked(2));
    }

    #[test]
    fn relations_that_do_not_fit_are_refused() {
        assert!(pairs(Relation::Same, (3, 4), |_, _| {}).is_err());
        assert!(pairs(Relation::Range { a: 2, b: 0, len: 2 }, (3, 4), |_, _| {}).is_err());
        let wide = Stripe { width: 5, inner: 1 };
        assert!(pairs(Relation::Stripes { a: wide, b: wide }, (5, 6), |_, _| {}).is_err());
    }

    proptest::proptest! {
        #[test]
        fn striped_axes_have_exactly_one_set_for_each_unit(
            width in 1usize..6, inner_a in 1usize..4, inner_b in 1usize..4,
            repeat_a in 1usize..4, repeat_b in 1usize..4,
        ) {
            let (a, b) = (Stripe { width, inner: inner_a }, Stripe { width, inner: inner_b });
            let (size_a, size_b) = (width * inner_a * repeat_a, width * inner_b * repeat_b);
            let mut sets = Sets::new(size_a + size_b);
            pairs(Relation::Stripes { a, b }, (size_a, size_b), |i, j| sets.join(i, size_a + j)).unwrap();
            for i in 0..size_a {
                for j in 0..size_b {
                    let together = sets.root(i) == sets.root(size_a + j);
                    proptest::prop_assert_eq!(together, (i / inner_a) % width == (j / inner_b) % width);
                }
            }
        }
    }
}
