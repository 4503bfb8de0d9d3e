//! The algebra of reshapes: two shapes of one row-major buffer, refined to their common factors.
//!
//! `[2048, 64] → [512, 256]` has the factors 512, 4 and 64: axis 0 is `512·4` and axis 1 is `64` before,
//! `512` and `4·64` after. An index along one factor names the same elements on both sides, so removing it
//! is a removal of whole stripes on each; that is all a pruning needs to know of any reshape.

use super::{Relation, Stripe};
use crate::Dim;

/// A common factor of two shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Factor {
    /// Axis before, and the factor's stripes on it.
    pub from: (usize, Stripe),
    /// Axis after, and the factor's stripes on it.
    pub to: (usize, Stripe),
    /// Whether the factor is the whole of both axes.
    pub whole: bool,
}

impl Factor {
    /// The factor as a relation of its two axes.
    pub(crate) fn relation(&self) -> Relation {
        if self.whole { Relation::Same } else { Relation::Stripes { a: self.from.1, b: self.to.1 } }
    }
}

/// What is known of a reshape: its factors, outermost first, and pairs of equal axes of unknown size. An
/// axis in neither has no common factor that could be found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Factoring {
    /// Factors of known width.
    pub factors: Vec<Factor>,
    /// Axes (before, after) of equal but unknown size.
    pub equal: Vec<(usize, usize)>,
}

type Axes<'a> = &'a [(usize, &'a Dim)];

/// Refines the shapes `from` and `to` of the same elements.
pub(super) fn factors(from: &[Dim], to: &[Dim]) -> Factoring {
    let significant = |dims: &'_ [Dim]| -> Vec<usize> {
        (0..dims.len()).filter(|&axis| dims[axis] != Dim::Fixed(1)).collect()
    };
    let before: Vec<_> = significant(from).into_iter().map(|axis| (axis, &from[axis])).collect();
    let after: Vec<_> = significant(to).into_iter().map(|axis| (axis, &to[axis])).collect();
    let (mut a, mut b): (Axes<'_>, Axes<'_>) = (&before, &after);
    let mut tail = Factoring::default();
    while let Some((la, lb)) = last_segment(a, b) {
        let (rest_a, segment_a) = a.split_at(a.len() - la);
        let (rest_b, segment_b) = b.split_at(b.len() - lb);
        prepend(&mut tail, segment(segment_a, segment_b));
        (a, b) = (rest_a, rest_b);
    }
    let mut found = Factoring::default();
    while let Some((la, lb)) = first_segment(a, b) {
        append(&mut found, segment(&a[..la], &b[..lb]));
        (a, b) = (&a[la..], &b[lb..]);
    }
    if let ([(before, _)], [(after, _)]) = (a, b) {
        // All else is equal, so these are.
        found.equal.push((*before, *after));
    } else {
        append(&mut found, ends(a, b));
    }
    append(&mut found, tail);
    found
}

/// Common factors at the ends of two runs with unknown sizes between: of two outermost (or innermost) sizes of
/// which one divides the other, the smaller is a factor of both axes, whatever follows.
fn ends(a: Axes<'_>, b: Axes<'_>) -> Factoring {
    let mut found = Factoring::default();
    let shared = |x: Option<&(usize, &Dim)>, y: Option<&(usize, &Dim)>| {
        let (&(ax, dx), &(ay, dy)) = (x?, y?);
        let (sx, sy) = (fixed(dx)?, fixed(dy)?);
        let width = sx.min(sy);
        let divides = width > 1 && sx != sy && sx.max(sy).is_multiple_of(width);
        divides.then_some((width, (ax, sx), (ay, sy)))
    };
    let mut add = |(width, (ax, sx), (ay, sy)): (usize, (usize, usize), (usize, usize)), outer| {
        let stripe = |size: usize| Stripe { width, inner: if outer { size / width } else { 1 } };
        let factor = Factor { from: (ax, stripe(sx)), to: (ay, stripe(sy)), whole: false };
        found.factors.push(factor);
    };
    if let Some(factor) = shared(a.first(), b.first()) {
        add(factor, true);
    }
    if let Some(factor) = shared(a.last(), b.last()) {
        add(factor, false);
    }
    found
}

fn append(to: &mut Factoring, more: Factoring) {
    to.factors.extend(more.factors);
    to.equal.extend(more.equal);
}

fn prepend(to: &mut Factoring, mut more: Factoring) {
    std::mem::swap(to, &mut more);
    append(to, more);
}

fn last_segment(a: Axes<'_>, b: Axes<'_>) -> Option<(usize, usize)> {
    let (mut ra, mut rb): (Vec<_>, Vec<_>) = (a.to_vec(), b.to_vec());
    ra.reverse();
    rb.reverse();
    first_segment(&ra, &rb)
}

/// How many leading axes of each side have the same product; the shortest such run.
fn first_segment(a: Axes<'_>, b: Axes<'_>) -> Option<(usize, usize)> {
    let (&(_, first_a), &(_, first_b)) = (a.first()?, b.first()?);
    if first_a == first_b && *first_a != Dim::Unknown {
        return Some((1, 1));
    }
    let (mut la, mut lb, mut pa, mut pb) = (1, 1, fixed(first_a)?, fixed(first_b)?);
    while pa != pb {
        if pa < pb {
            pa = pa.checked_mul(fixed(a.get(la)?.1)?)?;
            la += 1;
        } else {
            pb = pb.checked_mul(fixed(b.get(lb)?.1)?)?;
            lb += 1;
        }
    }
    Some((la, lb))
}

fn fixed(dim: &Dim) -> Option<usize> {
    match dim {
        Dim::Fixed(size) if *size > 0 => Some(*size),
        _ => None,
    }
}

/// Factors of two runs of axes with equal product; none where the boundaries do not divide each other.
fn segment(a: Axes<'_>, b: Axes<'_>) -> Factoring {
    if let ([(before, Dim::Symbol(_))], [(after, _)]) = (a, b) {
        return Factoring { factors: Vec::new(), equal: vec![(*before, *after)] };
    }
    let (spans_a, spans_b) = (spans(a), spans(b));
    let mut bounds: Vec<usize> =
        spans_a.iter().chain(&spans_b).flat_map(|span| [span.inner, span.outer]).collect();
    bounds.sort_unstable();
    bounds.dedup();
    if bounds.windows(2).any(|pair| !pair[1].is_multiple_of(pair[0])) {
        return Factoring::default();
    }
    let stripe = |spans: &[Span], low: usize, high: usize| {
        spans
            .iter()
            .find(|span| span.inner <= low && high <= span.outer)
            .map(|span| (span.axis, Stripe { width: high / low, inner: low / span.inner }))
    };
    let factors = bounds
        .windows(2)
        .rev()
        .filter_map(|pair| {
            let (from, to) =
                (stripe(&spans_a, pair[0], pair[1])?, stripe(&spans_b, pair[0], pair[1])?);
            let is_whole =
                |spans: &[Span]| spans.iter().any(|s| s.inner == pair[0] && s.outer == pair[1]);
            Some(Factor { from, to, whole: is_whole(&spans_a) && is_whole(&spans_b) })
        })
        .collect();
    Factoring { factors, equal: Vec::new() }
}

/// An axis within its segment: stride of its indices, and of the axis outside of it.
struct Span {
    axis: usize,
    inner: usize,
    outer: usize,
}

fn spans(axes: Axes<'_>) -> Vec<Span> {
    let mut inner = 1;
    axes.iter()
        .rev()
        .filter_map(|&(axis, dim)| {
            let span = Span { axis, inner, outer: inner * fixed(dim)? };
            inner = span.outer;
            Some(span)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims(spec: &str) -> Vec<Dim> {
        spec.split_whitespace()
            .map(|word| match word.parse() {
                Ok(size) => Dim::Fixed(size),
                Err(_) if word == "?" => Dim::Unknown,
                Err(_) => Dim::Symbol(word.to_owned()),
            })
            .collect()
    }

    /// `axis:width*inner>axis:width*inner`, `=` for a whole factor, `a~b` for equal unknown axes.
    fn show(from: &str, to: &str) -> String {
        let found = factors(&dims(from), &dims(to));
        let mut words: Vec<String> = found.equal.iter().map(|(a, b)| format!("{a}~{b}")).collect();
        words.extend(found.factors.iter().map(|f| {
            let ((a, sa), (b, sb)) = (f.from, f.to);
            let sign = if f.whole { "=" } else { ">" };
            format!("{a}:{}*{}{sign}{b}:{}*{}", sa.width, sa.inner, sb.width, sb.inner)
        }));
        words.join(" ")
    }

    #[test]
    fn unequal_axes_refine_to_their_common_factors() {
        assert_eq!(
            show("N 2048 64", "N 512 256"),
            "0~0 1:512*4>1:512*1 1:4*1>2:4*64 2:64*1>2:64*1"
        );
    }

    #[test]
    fn flattening_gives_each_channel_a_block() {
        assert_eq!(show("N 8 3 5", "N 120"), "0~0 1:8*1>1:8*15 2:3*1>1:3*5 3:5*1>1:5*1");
    }

    #[test]
    fn equal_axes_are_whole_factors() {
        assert_eq!(show("2 3 4", "2 12"), "0:2*1=0:2*1 1:3*1>1:3*4 2:4*1>1:4*1");
    }

    #[test]
    fn axes_of_one_are_ignored() {
        assert_eq!(show("N 64 1 1", "N 64"), "0~0 1:64*1=1:64*1");
        assert_eq!(show("64", "1 64 1"), "0:64*1=1:64*1");
    }

    #[test]
    fn heads_split_off_behind_unknown_leading_axes() {
        assert_eq!(show("? L 768", "? L 12 64"), "0~0 1~1 2:12*64>2:12*1 2:64*1>3:64*1");
    }

    #[test]
    fn the_ends_of_what_is_not_known_may_have_a_factor() {
        assert_eq!(show("N 32 ? ?", "N 8 ?"), "0~0 1:8*4>1:8*1");
        assert_eq!(show("? 7 64", "? 5 16"), "2:16*1>2:16*1");
        assert_eq!(show("32 ? 6", "8 ? 12"), "0:8*4>0:8*1 2:6*1>2:6*1");
        assert_eq!(show("6 ?", "4 ?"), "");
    }

    #[test]
    fn boundaries_that_do_not_divide_have_no_factors() {
        assert_eq!(show("6 4", "4 6"), "");
    }

    #[test]
    fn two_unknown_axes_are_not_guessed() {
        assert_eq!(show("? ? 8", "? 8"), "2:8*1=1:8*1");
    }
}
